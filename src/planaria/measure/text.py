"""Text tasks: tables of texts in files, to rows of token numbers and what a network should say to them.

Everything is deterministic: the vocabulary of our own tokenizers is that of the training rows, class names are numbered
in sorted order, and what was cut off or left out is counted in the record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planaria.core.errors import InputError, nearest
from planaria.core.streams import stream
from planaria.measure.data import Data, sorted_by_class
from planaria.measure.labels import IGNORED
from planaria.measure.readers import Raw
from planaria.measure.tables import Row, read_tables
from planaria.measure.tokens import OWN, Text, Tokenizer, Tokens, hub_tokenizer, own_tokenizer

GOALS = ("class", "number", "similarity", "tags", "lm", "masked")
"""What a network says to a text; see `Wording.goal`."""

_SHARE_HIDDEN = 0.15  # of the tokens, in masked language modelling, as in Devlin et al. 2018
_SCORES = {"similarity": "spearman", "tags": "f1", "lm": "perplexity", "masked": "perplexity"}


@dataclass(frozen=True)
class Wording:
    """How a table of texts becomes a task.

    Attributes:
        tokenizer: "chars", "words", or a Hugging Face folder on disk.
        max_length: Tokens of a text, or of a pair, that are kept at most.
        text: Column of the text; by default "text", for tags "tokens".
        pair: Column of a second text; None if there is one only.
        label: Column of what is to be said; by default "label", for tags "tags", and none where that is missing.
        goal: "class" (a class per text), "number" (a regression), "similarity" (a number for a pair whose texts go
            separately into the network), "tags" (a class per word), "lm" (the next token), "masked" (hidden tokens).
            None: "class" or "number", as the labels are.
        held_out: Share of the rows that becomes the test split where the files have none.
        plain: Whether inputs are the token numbers alone, as one tensor.
    """

    tokenizer: str
    max_length: int = 128
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    goal: str | None = None
    held_out: float = 0.2
    plain: bool = False


def read_text(path: Path, wording: Wording) -> Raw:
    """Texts in one file, or in a folder with train.*, test.* and perhaps validation.*, as tokens.

    Args:
        path: A file .csv, .tsv, .jsonl or .txt, or a folder of such files.
        wording: What to make of them.

    Raises:
        InputError: Files that are missing, empty, damaged, or not UTF-8; columns or labels that do not fit, with the
            line; a tokenizer without its files.
        EnvironmentProblem: A Hugging Face tokenizer, and no library for it.
    """
    return tokenised(read_tables(path), wording, f"text:{path}")


def tokenised(tables: Mapping[str, Sequence[Row]], wording: Wording, where: str) -> Raw:
    """Rows of texts as tokens, with what is to be said to them.

    Args:
        tables: Rows of "train", and perhaps of "test" and "validation". Without test rows, a share of train is held
            out.
        wording: What to make of them.
        where: Begins the error messages.

    Returns:
        Inputs `input_ids` and `attention_mask`, and `token_type_ids` where the tokenizer has them, [N, length], or
        [N, 2, length] for the two texts of a similarity: filled up to the longest row of all. Without a label column,
        `Raw.unlabelled`.
    """
    notes: dict[str, object] = {"goal": wording.goal}
    rows = {part: list(table) for part, table in tables.items()}
    if "test" not in rows:
        rows, notes["test"] = _held_out(rows, wording.held_out, where)
    label = _label_column(rows["train"], wording, where)
    texts = {part: [_texts(row, wording) for row in table] for part, table in rows.items()}
    tokenizer = _tokenizer(wording.tokenizer, [text for pair in texts["train"] for text in pair])
    notes |= tokenizer.record
    encoded = {part: _encoded(table, tokenizer, wording) for part, table in texts.items()}
    if wording.goal in ("lm", "masked"):
        notes["left_out"] = _drop_short(encoded, tokenizer, wording)
        inputs, targets = _self_labelled(encoded, tokenizer, wording, where)
        classes: int | None = tokenizer.size
    else:
        for part, table in encoded.items():
            _none_empty(rows[part], table)
        inputs = _padded(encoded, tokenizer, wording)
        targets, classes = _targets(rows, encoded, label, wording, inputs, notes)
    longest = {part: sum(any(tokens.cut for tokens in row) for row in table) for part, table in encoded.items()}
    notes |= {"max_length": wording.max_length, "cut_to_max_length": longest}
    splits = {
        part: Data.of((columns["input_ids"] if wording.plain else columns, targets[part]), f"{where} {part}")
        for part, columns in inputs.items()
    }
    for part, data in splits.items():
        if part in tables and sorted_by_class(data.targets):  # as in folders of images: one fixed order
            splits[part] = data.take(torch.randperm(len(data), generator=stream(0, "mixed order")))
    goal = notes["goal"]
    return Raw(
        splits,
        classes=classes,
        score=_SCORES.get(str(goal), "spearman" if goal == "number" and wording.pair else None),
        notes=notes,
        unlabelled=goal is None or (goal == "similarity" and label is None),
    )


def _held_out(rows: dict[str, list[Row]], share: float, where: str) -> tuple[dict[str, list[Row]], str]:
    train = rows["train"]
    count = max(1, int(share * len(train)))
    if count >= len(train):
        raise InputError(where, "at least two rows, to hold one out", len(train), "Give more rows, or a test file.")
    order = torch.randperm(len(train), generator=stream(0, "mixed order")).tolist()
    mixed = [train[at] for at in order]
    rule = f"the last {count} of {len(train)} rows in a fixed mixed order"
    return rows | {"train": mixed[:-count], "test": mixed[-count:]}, rule


# --------------------------------------------------------------------------------------------------- texts


def _label_column(train: Sequence[Row], wording: Wording, where: str) -> str | None:
    """Name of the label column; None if there is none. Complains about a goal and columns that cannot go together."""
    goal = wording.goal
    if wording.pair is not None and goal in ("tags", "lm", "masked"):
        raise InputError(where, f"one text per row for goal={goal}", f"pair={wording.pair}", "Leave pair out.")
    if goal == "similarity" and wording.pair is None:
        raise InputError(where, "pair=COLUMN beside goal=similarity", "one text per row", "Name the second text.")
    if wording.plain and wording.pair is not None:
        raise InputError(where, "one text per row with plain=1", f"pair={wording.pair}", "Leave plain out.")
    if goal in ("lm", "masked"):
        if wording.label is not None:
            got = f"label={wording.label}"
            raise InputError(where, f"no labels for goal={goal}: the text is its own", got, "Leave label out.")
        return None
    name = wording.label or ("tags" if goal == "tags" else "label")
    there = name in train[0][1]
    if not there and (wording.label is not None or goal in ("class", "number", "tags")):
        raise InputError(train[0][0], f"a column {name!r}", "none of that name", nearest(name, train[0][1]))
    return name if there else None


def _texts(row: Row, wording: Wording) -> list[Text]:
    """The text of a row, or its two texts."""
    where, cells = row
    names = [wording.text or ("tokens" if wording.goal == "tags" else "text")]
    if wording.pair is not None:
        names.append(wording.pair)
    found: list[Text] = []
    for name in names:
        if name not in cells:
            raise InputError(where, f"a column {name!r}", "none of that name", nearest(name, cells))
        value = cells[name]
        if wording.goal == "tags":
            words = value.split() if isinstance(value, str) else value
            if not (isinstance(words, list) and words and all(isinstance(word, str) and word for word in words)):
                raise InputError(f"{where}, {name}", "a list of words", _kind(value), "Write one word per tag.")
            found.append(words)
        elif isinstance(value, str):
            found.append(value)
        else:
            raise InputError(f"{where}, {name}", "a text", _kind(value), "Put it in quotes.")
    return found


def _tokenizer(name: str, training: Sequence[Text]) -> Tokenizer:
    return own_tokenizer(name, training) if name in OWN else hub_tokenizer(Path(name).expanduser())


def _encoded(texts: list[list[Text]], tokenizer: Tokenizer, wording: Wording) -> list[list[Tokens]]:
    """Tokens of each row: of its text or pair together, of the two texts of a similarity separately."""
    firsts = [row[0] for row in texts]
    seconds = [row[1] for row in texts] if wording.pair is not None else None
    if seconds is None or wording.goal != "similarity":
        return [[tokens] for tokens in tokenizer.encode(firsts, seconds, wording.max_length)]
    sides = [tokenizer.encode(side, None, wording.max_length) for side in (firsts, seconds)]
    return [list(pair) for pair in zip(*sides, strict=True)]


def _none_empty(rows: Sequence[Row], encoded: list[list[Tokens]]) -> None:
    for (where, _), row in zip(rows, encoded, strict=True):
        if not all(tokens.ids for tokens in row):
            raise InputError(where, "a text with at least one token", "an empty one", "Remove the row.")


def _drop_short(encoded: dict[str, list[list[Tokens]]], tokenizer: Tokenizer, wording: Wording) -> dict[str, int]:
    """Take out rows of which nothing can be asked: no second token, or none to hide; how many, by split."""

    def has_answers(tokens: Tokens) -> bool:
        return len(tokens.ids) > 1 if wording.goal == "lm" else any(t not in tokenizer.special for t in tokens.ids)

    counts = {}
    for part, table in encoded.items():
        long = [row for row in table if has_answers(row[0])]
        counts[part], encoded[part] = len(table) - len(long), long
    return counts


# ------------------------------------------------------------------------------------------------- tensors


def _padded(
    encoded: dict[str, list[list[Tokens]]], tokenizer: Tokenizer, wording: Wording
) -> dict[str, dict[str, Tensor]]:
    """Columns of tensors [N, length] by split, filled up to the longest row of all."""
    length = max((len(tokens.ids) for table in encoded.values() for row in table for tokens in row), default=1)

    def filled(lists: Sequence[Sequence[int]], filler: int) -> Tensor:
        found = torch.full((len(lists), length), filler)
        for row, numbers in zip(found, lists, strict=True):
            place = slice(length - len(numbers), None) if tokenizer.left else slice(len(numbers))
            row[place] = torch.tensor(numbers, dtype=torch.int64)
        return found

    inputs: dict[str, dict[str, Tensor]] = {}
    for part, table in encoded.items():
        flat = [tokens for row in table for tokens in row]
        columns = {
            "input_ids": filled([tokens.ids for tokens in flat], tokenizer.pad),
            "attention_mask": filled([[1] * len(tokens.ids) for tokens in flat], 0),
        }
        if flat and flat[0].types is not None:
            columns["token_type_ids"] = filled([tokens.types or [] for tokens in flat], 0)
        shape = (len(table), 2, length) if wording.goal == "similarity" else (len(table), length)
        inputs[part] = {name: column.reshape(shape) for name, column in columns.items()}
    return inputs


def _self_labelled(
    encoded: dict[str, list[list[Tokens]]], tokenizer: Tokenizer, wording: Wording, where: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Inputs, and the tokens to be said: the next ones, or those that are hidden."""
    for part, table in encoded.items():
        if not table:
            expected = "at least one text of two tokens or more"
            raise InputError(f"{where} {part}", expected, "none", "Give longer texts.")
    inputs = _padded(encoded, tokenizer, wording)
    targets = {}
    for part, columns in inputs.items():
        ids, real = columns["input_ids"], columns["attention_mask"].bool()
        said = torch.full_like(ids, IGNORED)
        if wording.goal == "lm":
            both = real[:, 1:] & real[:, :-1]
            said[:, :-1] = torch.where(both, ids[:, 1:], IGNORED)
        else:
            if tokenizer.masked is None:
                expected = "a tokenizer with a token that hides others"
                raise InputError(where, expected, "one without", "Use goal=lm, or another tokenizer.")
            hidden = _hidden(ids, real, tokenizer, stream(0, "hidden tokens", part))
            said = torch.where(hidden, ids, IGNORED)
            columns["input_ids"] = torch.where(hidden, tokenizer.masked, ids)
        targets[part] = said
    return inputs, targets


def _hidden(ids: Tensor, real: Tensor, tokenizer: Tokenizer, rng: torch.Generator) -> Tensor:
    """Which tokens are hidden: 15 % at random, at least one per row that has any of a text."""
    special = torch.tensor(sorted(tokenizer.special) or [-1])
    allowed = real & ~torch.isin(ids, special)
    lots = torch.rand(ids.shape, generator=rng).masked_fill(~allowed, 2.0)
    return allowed & ((lots < _SHARE_HIDDEN) | (lots == lots.min(1, keepdim=True).values))


# -------------------------------------------------------------------------------------------------- labels


def _targets(
    rows: Mapping[str, Sequence[Row]],
    encoded: Mapping[str, list[list[Tokens]]],
    label: str | None,
    wording: Wording,
    inputs: Mapping[str, dict[str, Tensor]],
    notes: dict[str, object],
) -> tuple[dict[str, Tensor], int | None]:
    """Targets by split and the number of classes; notes the goal that the labels decide, and the names of classes."""
    if label is None:
        return {part: torch.zeros(len(table), dtype=torch.int64) for part, table in rows.items()}, None
    cells = {part: [(f"{where}, {label}", _cell(where, row, label)) for where, row in rows[part]] for part in rows}
    if wording.goal == "tags":
        return _tags(rows, cells, encoded, wording, inputs, notes)
    words = {part: [(where, _word(where, value)) for where, value in table] for part, table in cells.items()}
    flat = [word for table in words.values() for _, word in table]
    whole, numeric = all(map(_is_whole, flat)), all(map(_is_number, flat))
    goal = wording.goal or ("class" if whole or not numeric else "number")
    notes |= {"goal": goal, "label": label}
    if goal != "class":
        numbers = {part: [_number(where, word) for where, word in table] for part, table in words.items()}
        return {part: torch.tensor(table) for part, table in numbers.items()}, None
    if whole:
        return {part: torch.tensor([int(word) for _, word in table]) for part, table in words.items()}, None
    names = sorted({word for _, word in words["train"]})
    notes["classes"] = names
    found = {part: [_place(where, word, names) for where, word in table] for part, table in words.items()}
    return {part: torch.tensor(table) for part, table in found.items()}, len(names)


def _tags(
    rows: Mapping[str, Sequence[Row]],
    cells: Mapping[str, list[tuple[str, Any]]],
    encoded: Mapping[str, list[list[Tokens]]],
    wording: Wording,
    inputs: Mapping[str, dict[str, Tensor]],
    notes: dict[str, object],
) -> tuple[dict[str, Tensor], int | None]:
    """A label at the first token of each word, and -100 elsewhere."""
    tags: dict[str, list[tuple[str, list[Any]]]] = {}
    for part, table in cells.items():
        tags[part] = []
        for (where, value), source in zip(table, rows[part], strict=True):
            given = value.split() if isinstance(value, str) else value
            words = _texts(source, wording)[0]
            if not isinstance(given, list) or len(given) != len(words):
                got = f"{len(given)}" if isinstance(given, list) else _kind(given)
                raise InputError(where, f"{len(words)} tags, one per word", got, "Give each word one tag.")
            tags[part].append((where, given))
    flat = [tag for table in tags.values() for _, row in table for tag in row]
    whole = all(isinstance(tag, int) and not isinstance(tag, bool) for tag in flat)
    whole = whole or all(isinstance(tag, str) and _is_whole(tag) for tag in flat)
    names = [] if whole else sorted({tag for _, row in tags["train"] for tag in row if isinstance(tag, str)})
    notes |= {"label": wording.label or "tags"} | ({} if whole else {"classes": names})
    number: Callable[[str, Any], int] = (lambda _, tag: int(tag)) if whole else (lambda at, tag: _place(at, tag, names))
    targets = {}
    for part, table in tags.items():
        real = inputs[part]["attention_mask"].bool()
        said = torch.full(real.shape, IGNORED)
        for at, ((where, row), tokens) in enumerate(zip(table, encoded[part], strict=True)):
            places = tokens[0].words
            if len(places) != len(tokens[0].ids):
                expected = "a tokenizer that says which word a token is from"
                raise InputError(where, expected, "a slow one", "Save its fast version (tokenizer.json).")
            seen: set[int] = set()
            marks = []
            for word in places:
                first = word is not None and word not in seen
                marks.append(number(where, row[word]) if word is not None and first else IGNORED)
                seen |= set() if word is None else {word}
            said[at, real[at]] = torch.tensor(marks)
        targets[part] = said
    return targets, None if whole else len(names)


def _cell(where: str, row: Mapping[str, Any], label: str) -> Any:
    if label not in row:
        raise InputError(where, f"a column {label!r}", "none of that name", nearest(label, row))
    return row[label]


def _word(where: str, value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        got = "nothing" if value is None or value == "" else _kind(value)
        raise InputError(where, "a label: a whole number, a word or a number", got, "Give every row one, or none.")
    return value.strip()


def _is_whole(word: str) -> bool:
    digits = word.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 10


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return "_" not in word


def _number(where: str, word: str) -> float:
    if not _is_number(word) or not math.isfinite(float(word)):
        raise InputError(where, "a finite number", repr(word), "Correct it, or remove the row.")
    return float(word)


def _place(where: str, word: object, names: Sequence[str]) -> int:
    if word not in names:
        hint = nearest(str(word), names) if len(names) < 100 else ""
        raise InputError(where, "a label that the training rows have", repr(word), hint)
    return names.index(str(word))


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
