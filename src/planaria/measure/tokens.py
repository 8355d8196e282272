"""Tokenizers: texts to token numbers, by a Hugging Face folder on disk or by two small ones of our own."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planaria.core.errors import EnvironmentProblem, InputError, UnsafeError

Text = str | list[str]
"""A text, or one that comes as a list of words."""

SPECIAL = ("<pad>", "<unknown>", "<separator>", "<masked>")
"""Tokens 0 to 3 of our own tokenizers."""

OWN = ("chars", "words")
"""Names of our own tokenizers."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Files that hold the tokens of a Hugging Face tokenizer; one of them must be in its folder."""

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_LISTED = 1000  # tokens; longer vocabularies are in the record by their hash alone


@dataclass(frozen=True)
class Tokens:
    """One text, or a pair of texts, as tokens.

    Attributes:
        ids: Number of each token.
        types: 0 for tokens of the first text and 1 for those of the second; None where the tokenizer has none.
        words: For a text that came as words: place of the word each token is from; None for added tokens.
        cut: Whether tokens were left out because the text is too long.
    """

    ids: list[int]
    types: list[int] | None
    words: list[int | None]
    cut: bool


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Texts to tokens.

    Attributes:
        encode: `(texts, seconds or None, longest) -> Tokens`, one per text; `seconds` makes pairs.
        size: Number of different tokens.
        pad: Token that fills short rows up.
        masked: Token that hides another one; None if there is none.
        special: Tokens that stand for no part of a text.
        left: Whether short rows are filled up on their left.
        record: What it is, JSON-able.
    """

    encode: Callable[[Sequence[Text], Sequence[Text] | None, int], list[Tokens]]
    size: int
    pad: int
    masked: int | None
    special: frozenset[int]
    left: bool
    record: dict[str, object]


def own_tokenizer(name: str, texts: Iterable[Text]) -> Tokenizer:
    """A tokenizer of characters or of words, with the vocabulary of some texts.

    Token 0 fills up, 1 stands for what the vocabulary lacks, 2 lies between the texts of a pair, 3 hides another one;
    the sorted vocabulary follows. Words are runs of letters and digits, and single other marks, in lower case.

    Args:
        name: "chars" or "words".
        texts: The vocabulary is what they consist of: give the training texts.

    Example:
        >>> own_tokenizer("words", ["The cat.", "a dog"]).encode(["The dog!"], None, 8)[0].ids
        [8, 7, 1]
    """
    split: Callable[[str], list[str]] = list if name == "chars" else _words
    seen: set[str] = set()
    for text in texts:
        seen.update(piece for piece, _ in _pieces(text, split))
    vocabulary = sorted(seen)
    number = {piece: at for at, piece in enumerate(vocabulary, len(SPECIAL))}

    def encode(firsts: Sequence[Text], seconds: Sequence[Text] | None, longest: int) -> list[Tokens]:
        found = []
        for at, text in enumerate(firsts):
            first = [(number.get(piece, 1), word) for piece, word in _pieces(text, split)]
            second = None
            if seconds is not None:
                second = [(number.get(piece, 1), word) for piece, word in _pieces(seconds[at], split)]
            found.append(_joined(first, second, longest))
        return found

    digest = hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
    record: dict[str, object] = {"tokenizer": name, "vocabulary_size": len(vocabulary), "vocabulary_sha256": digest}
    if len(vocabulary) <= _LISTED:
        record["vocabulary"] = vocabulary
    size = len(SPECIAL) + len(vocabulary)
    return Tokenizer(encode, size, 0, 3, frozenset((0, 2, 3)), False, record)


def hub_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a Hugging Face folder on disk; nothing is downloaded, no code in the folder is run.

    Args:
        folder: With `tokenizer.json`, or the vocabulary files of the tokenizer's kind.

    Raises:
        InputError: No such folder, or its files are missing or damaged.
        UnsafeError: The tokenizer is code in the folder.
        EnvironmentProblem: The library transformers is not installed.

    Not guaranteed: the same tokens under another version of transformers.
    """
    where = f"tokenizer={folder}"
    known = " or ".join(OWN)
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise InputError(where, f"{known}, or a folder with a tokenizer", got, "Check the path.")
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not files:
        looked = f"none of {', '.join(TOKENIZER_FILES)}"
        remedy = "Save it there with tokenizer.save_pretrained(FOLDER)."
        raise InputError(where, "the files of a tokenizer", looked, remedy)
    found = _loaded(folder, where)
    special = frozenset(int(number) for number in found.all_special_ids) - {found.unk_token_id}
    pad = next(number for number in (found.pad_token_id, found.eos_token_id, 0) if number is not None)
    files += [folder / name for name in _SETTINGS if (folder / name).is_file()]
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name}|{path.stat().st_size}|".encode() + path.read_bytes())

    def encode(firsts: Sequence[Text], seconds: Sequence[Text] | None, longest: int) -> list[Tokens]:
        def called(rows: list[int], cut: bool) -> Any:
            return found(
                [firsts[at] for at in rows],
                None if seconds is None else [seconds[at] for at in rows],
                is_split_into_words=bool(firsts) and isinstance(firsts[0], list),
                truncation=cut,
                max_length=longest if cut else None,
                verbose=False,
            )

        try:
            whole = called(list(range(len(firsts))), False)
            long = [at for at, ids in enumerate(whole["input_ids"]) if len(ids) > longest]
            short = called(long, True) if long else None
        except Exception as problem:  # from the library, of many kinds: ValueError, TypeError, and Rust's own
            raise InputError(where, "a tokenizer that takes these texts", _said(problem), _OTHER) from problem
        again = {at: row for row, at in enumerate(long)}
        return [
            _of_hub(short, again[at], True) if at in again else _of_hub(whole, at, False) for at in range(len(firsts))
        ]

    record = {"tokenizer": type(found).__name__, "vocabulary_size": len(found), "tokenizer_sha256": total.hexdigest()}
    return Tokenizer(encode, len(found), pad, found.mask_token_id, special, found.padding_side == "left", record)


_OTHER = "Use another tokenizer, or tokenizer=words."


def _loaded(folder: Path, where: str) -> Any:
    try:
        library = importlib.import_module("transformers")
    except ImportError as problem:
        raise EnvironmentProblem(
            where, "the library transformers", _said(problem), "Install it: pip install 'planaria[hf]'."
        ) from problem
    try:
        return library.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as problem:  # from the library, of many kinds
        if "trust_remote_code" in str(problem):
            remedy = "Use a tokenizer that transformers knows, or tokenise in a function of yours: py:FILE.py:FUNCTION."
            raise UnsafeError(where, "a tokenizer of data", "one that is code in the folder", remedy) from problem
        remedy = "Save it again with tokenizer.save_pretrained(FOLDER), or install what it needs."
        raise InputError(where, "a tokenizer that transformers can load", _said(problem), remedy) from problem


def _of_hub(encoded: Any, row: int, cut: bool) -> Tokens:
    types = encoded["token_type_ids"][row] if "token_type_ids" in encoded else None
    words = encoded.word_ids(row) if encoded.is_fast else []
    return Tokens(list(encoded["input_ids"][row]), types, words, cut)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _pieces(text: Text, split: Callable[[str], list[str]]) -> list[tuple[str, int | None]]:
    """Pieces with the place of the word they are from."""
    if isinstance(text, str):
        return [(piece, None) for piece in split(text)]
    if split is not list:
        return [(piece, at) for at, word in enumerate(text) for piece in split(word)]
    spaced: list[tuple[str, int | None]] = []
    for at, word in enumerate(text):  # the blank between words is a character too
        spaced += ([(" ", None)] if at else []) + [(piece, at) for piece in word]
    return spaced


def _joined(first: list[tuple[int, int | None]], second: list[tuple[int, int | None]] | None, longest: int) -> Tokens:
    whole = len(first) + (0 if second is None else 1 + len(second))
    if second is None:
        kept = first[:longest]
    else:
        first, second = list(first), list(second)
        while len(first) + 1 + len(second) > longest and (first or second):
            (first if len(first) >= len(second) else second).pop()
        kept = [*first, (SPECIAL.index("<separator>"), None), *second]
    types = None if second is None else [0] * (len(first) + 1) + [1] * len(second)
    return Tokens([number for number, _ in kept], types, [word for _, word in kept], whole > len(kept))


def _said(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {(str(problem).splitlines() or ['no message'])[0][:300]}"
