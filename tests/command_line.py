"""The command line, called in this process as `planaria` would call it, and what it may leave behind."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planaria.cli.app import app, guarded

TINY = (
    *("--task", "digits?train=400", "--model", "mlp:64-16-10", "--train-epochs", "6"),
    *("--updates", "20", "--seeds", "1"),
)
"""A subject and a budget that take a second."""


@dataclass(frozen=True)
class Done:
    """A finished command: exit code, and what it wrote on stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout; NaN and Infinity, which JSON has not, are refused."""

        def refuse(word: str) -> None:
            raise ValueError(f"{word} is not JSON")

        value: dict[str, Any] = json.loads(self.out, parse_constant=refuse)
        return value


@dataclass(frozen=True)
class Finished:
    """A finished run: the command without --out, its folder, what it said."""

    command: tuple[str, ...]
    folder: Path
    done: Done

    def copy(self, to: Path) -> Path:
        """The folder, to do things to."""
        shutil.copytree(self.folder, to)
        return to


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def planaria(
    *args: str | Path,
    cwd: Path,
    terminal: bool = False,
    environment: Mapping[str, str] | None = None,
    debug: bool = False,
) -> Done:
    """Run a command in a folder."""
    out, err = (Terminal(), Terminal()) if terminal else (io.StringIO(), io.StringIO())
    words = [str(arg) for arg in args]
    with (
        _environment({"TERM": "xterm", "COLUMNS": "200", **(environment or {})}, debug),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = guarded(lambda: app(words, prog_name="planaria", standalone_mode=False))
    return Done(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str], debug: bool) -> Iterator[None]:
    before = dict(os.environ)
    for name in ("NO_COLOR", "FORCE_COLOR", "PLANARIA_DEBUG"):
        os.environ.pop(name, None)
    os.environ.update(wanted)
    if debug:
        os.environ["PLANARIA_DEBUG"] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def everything_in(folder: Path) -> dict[str, str]:
    """Path -> hash of every file, and an entry for every folder; Python's own caches apart."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" not in path.parts:
            content = path.read_bytes() if path.is_file() else b"a folder"
            found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def without_time(value: Any) -> Any:
    """A result without what may differ between two equal runs: seconds, places, surroundings."""
    if isinstance(value, dict):
        return {
            key: without_time(item)
            for key, item in value.items()
            if key not in ("seconds", "files", "command_line") and not key.endswith(".seconds")
        }
    return [without_time(item) for item in value] if isinstance(value, list) else value
