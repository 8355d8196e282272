"""Tables of texts in files: CSV with a header line, TSV, JSONL, and plain text.

Read as data, always as UTF-8. TSV is CSV with tabs and without quoting, as benchmarks have it; JSONL has one object per
line; of plain text every line is a row with the one column "text". Empty lines are no rows.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from planaria.core.errors import InputError
from planaria.measure.readers import SPLITS

ENDINGS = (".csv", ".tsv", ".jsonl", ".txt")
Row = tuple[str, dict[str, Any]]
"""Where a row is, for error messages, and its columns."""


def read_tables(path: Path) -> dict[str, list[Row]]:
    """Rows by split: of one file, all "train"; of a folder, those of train.*, test.* and validation.*.

    Args:
        path: A file .csv, .tsv, .jsonl or .txt, or a folder of such files; `valid`, `val` and `dev` mean validation.

    Raises:
        InputError: No such file, or one that `read_table` refuses.
    """
    if not path.is_dir():
        return {"train": read_table(path)}
    found = {part: file for part in SPLITS if (file := _split_file(path, part)) is not None}
    if "train" not in found:
        names = ", ".join(f"train{ending}" for ending in ENDINGS)
        raise InputError(f"text:{path}", f"a file {names}", "none", "Name the training rows so.")
    return {part: read_table(file) for part, file in found.items()}


def read_table(path: Path) -> list[Row]:
    """Rows of a table in a file .csv, .tsv, .jsonl or .txt, each with the line it is from.

    Raises:
        InputError: Another ending, nothing in it, or a line that does not fit.
    """
    reader = {".csv": _delimited, ".tsv": _delimited, ".jsonl": _json_lines, ".txt": _lines}.get(path.suffix.lower())
    if reader is None:
        expected = f"a file {', '.join(ENDINGS)}, or a folder with train.* and test.*"
        raise InputError(f"text:{path}", expected, repr(path.name), "Save the table as one of these.")
    if not path.is_file():
        raise InputError(f"text:{path}", "a file", "a folder" if path.is_dir() else "nothing", "Check the path.")
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        got = f"byte {problem.object[problem.start] if problem.object else 0:#04x} at position {problem.start}"
        raise InputError(f"{path}", "text in UTF-8", got, "Save the file as UTF-8.") from problem
    except OSError as problem:
        raise InputError(f"{path}", "a readable file", str(problem), "Check the path.") from problem
    rows = reader(path, content)
    if not rows:
        raise InputError(f"{path}", "at least one row", "none", "Give a table that is not empty.")
    return rows


def _split_file(folder: Path, part: str) -> Path | None:
    stems = ("validation", "valid", "val", "dev") if part == "validation" else (part,)
    found = [file for stem in stems for ending in ENDINGS if (file := folder / (stem + ending)).is_file()]
    if len(found) > 1:
        got = ", ".join(file.name for file in found)
        raise InputError(f"{folder}", f"one file with the {part} rows", got, "Remove the others.")
    return found[0] if found else None


def _delimited(path: Path, content: str) -> list[Row]:
    is_tsv = path.suffix.lower() == ".tsv"
    stored = io.StringIO(content, newline="")
    dialect: Any = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if is_tsv else {"strict": True}
    reader = csv.reader(stored, **dialect)
    rows: list[Row] = []
    header: list[str] = []
    try:
        for cells in reader:
            if not cells:
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header):
                    double = next(name for name in header if header.count(name) > 1)
                    raise InputError(f"{path}", "columns of different names", f"{double!r} twice", "Rename one.")
                continue
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(header):
                remedy = "Quote cells that hold a comma, or save the table as JSONL."
                raise InputError(where, f"{len(header)} cells, as in the header", len(cells), remedy)
            rows.append((where, dict(zip(header, cells, strict=True))))
    except csv.Error as problem:
        remedy = "Correct the quotes, or save the table as JSONL."
        raise InputError(f"{path}, line {reader.line_num}", "a line of a table", str(problem), remedy) from problem
    return rows


def _json_lines(path: Path, content: str) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as problem:
            got = str(problem) or type(problem).__name__
            raise InputError(where, "one JSON object per line", got, "Correct the line.") from problem
        if not isinstance(value, dict):
            raise InputError(where, "one JSON object per line", type(value).__name__, "Write {...} with named values.")
        rows.append((where, value))
    return rows


def _lines(path: Path, content: str) -> list[Row]:
    return [(f"{path}, line {n}", {"text": line}) for n, line in enumerate(content.splitlines(), 1) if line.strip()]
