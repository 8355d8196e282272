"""Keys of a task text: `?key=value&...`, each checked and converted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from planaria.core.errors import InputError, nearest
from planaria.measure.losses import LOSSES
from planaria.measure.scores import score_named
from planaria.measure.text import GOALS


@dataclass(frozen=True)
class Keys:
    """What the keys of a task text say; None where a key is not given. See `planaria.measure.datasets`."""

    scale: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    flat: bool | None = None
    train: int | None = None
    test: int | None = None
    validation: int | None = None
    classes: int | None = None
    score: str | None = None
    loss: str | None = None
    size: int | None = None
    resize: int | None = None
    channels: int | None = None
    tokenizer: str | None = None
    max_length: int | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    goal: str | None = None
    held_out: float | None = None
    plain: bool | None = None


OF_IMAGES = ("size", "resize", "channels")
"""Keys that belong to sources of images."""

OF_TEXTS = ("tokenizer", "max_length", "text", "pair", "label", "goal", "held_out", "plain")
"""Keys that belong to sources of texts: the fields of `planaria.measure.text.Wording`."""


def _count(word: str) -> int:
    if not (word.isascii() and word.isdigit() and int(word) > 0):
        raise ValueError("a whole number above 0")
    return int(word)


def _flag(word: str) -> bool:
    if word not in ("0", "1"):
        raise ValueError("0 or 1")
    return word == "1"


def _scale(word: str) -> str:
    if word not in ("unit", "raw"):
        raise ValueError("unit or raw")
    return word


def _numbers(word: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in word.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError("a number, or numbers with commas")
    return numbers


def _spread(word: str) -> tuple[float, ...]:
    if min(numbers := _numbers(word)) <= 0:
        raise ValueError("numbers above 0")
    return numbers


def _score(word: str) -> str:
    try:
        return score_named(word).name
    except InputError as problem:
        raise ValueError(f"a known score ({problem.remedy.rstrip('.')})") from None


def _loss(word: str) -> str:
    if word not in LOSSES:
        raise ValueError(f"a known loss ({nearest(word, LOSSES).rstrip('.')})")
    return word


def _word(word: str) -> str:
    if not word:
        raise ValueError("a word")
    return word


def _goal(word: str) -> str:
    if word not in GOALS:
        raise ValueError(", ".join(GOALS))
    return word


def _channels(word: str) -> int:
    if word not in ("1", "3"):
        raise ValueError("1 (grey) or 3 (colour)")
    return int(word)


def _share(word: str) -> float:
    if len(numbers := _numbers(word)) != 1 or not 0.0 < numbers[0] < 1.0:
        raise ValueError("a number above 0 and below 1")
    return numbers[0]


_CONVERT: Mapping[str, Callable[[str], object]] = {
    "scale": _scale,
    "mean": _numbers,
    "std": _spread,
    "flat": _flag,
    "train": _count,
    "test": _count,
    "validation": _count,
    "classes": _count,
    "score": _score,
    "loss": _loss,
    "size": _count,
    "resize": _count,
    "channels": _channels,
    "tokenizer": _word,
    "max_length": _count,
    "text": _word,
    "pair": _word,
    "label": _word,
    "goal": _goal,
    "held_out": _share,
    "plain": _flag,
}


def keys_of(query: str, text: str) -> Keys:
    """The keys in `key=value&key=value`.

    Args:
        query: What follows the question mark.
        text: The whole task text, for error messages.

    Raises:
        InputError: An unknown key, one given twice, or a value that it cannot have.

    Example:
        >>> keys_of("train=50&mean=0.5", "digits?train=50&mean=0.5").train
        50
    """
    values: dict[str, Any] = {}
    for part in query.split("&"):
        key, _, word = part.partition("=")
        if key not in _CONVERT:
            raise InputError(f"task {text!r}", "known keys after '?'", repr(key), nearest(key, _CONVERT))
        if key in values:
            raise InputError(f"task {text!r}", f"{key} once", "it twice", "Remove one.")
        try:
            values[key] = _CONVERT[key](word)
        except ValueError as problem:
            raise InputError(f"task {text!r}, {key}", str(problem), repr(word), "Correct it.") from None
    return Keys(**values)


assert set(_CONVERT) == {field.name for field in fields(Keys)}
