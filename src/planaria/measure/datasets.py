"""Tasks by name: one string form for built-in data, files, libraries and user code.

    source[?key=value&...]

Sources: `digits` (in the package); `mnist`, `fashion-mnist`, `cifar10` (looked for in the data folders);
`idx:DIR`, `cifar:DIR`, `npz:FILE`, `folder:DIR` (files); `torchvision:NAME`, `hf:NAME@REVISION` (libraries);
`py:package.module:function` or `py:path/file.py:function` (the user's code). What each must hold is
said with its reader, in `planaria.measure.readers`.

Keys: `scale` (`unit`: divide by the largest pixel value, the default for images; `raw`: as stored), `mean`
and `std` (a number, or one per channel, applied after scale), `flat` (1: rows become vectors), `train` and
`test` (use the first N rows), `validation` (rows held out from the end of train; default a tenth, at most
5,000), `classes`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planaria.core.errors import EnvironmentProblem, InputError, nearest
from planaria.measure import readers
from planaria.measure.data import Data, check_labels, hold_out
from planaria.measure.readers import Raw
from planaria.measure.scores import ACCURACY
from planaria.measure.task import Task

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class _Stored:
    """A well-known set: how it is read, the folders it is known to lie in, how to get it."""

    read: Callable[[Path], Raw]
    folders: tuple[str, ...]
    proof: tuple[str, ...]
    remedy: str


_IDX = ("train-images-idx3-ubyte", "train-images.idx3-ubyte")
_STORED = {
    "mnist": _Stored(
        readers.read_idx,
        ("mnist", "MNIST/raw"),
        _IDX,
        "Put the four files train-images-idx3-ubyte.gz and so on into DIR/mnist and give DIR as --data-dir "
        "or PLANARIA_DATA, or use --task torchvision:MNIST, which downloads them.",
    ),
    "fashion-mnist": _Stored(
        readers.read_idx,
        ("fashion-mnist", "FashionMNIST/raw"),
        _IDX,
        "On Debian: apt install dataset-fashion-mnist. Else put the four files train-images-idx3-ubyte.gz "
        "and so on into DIR/fashion-mnist and give DIR as --data-dir or PLANARIA_DATA, or use "
        "--task torchvision:FashionMNIST, which downloads them.",
    ),
    "cifar10": _Stored(
        readers.read_cifar,
        ("cifar10", "cifar-10-batches-bin"),
        ("data_batch_",),
        "Unpack cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html into DIR/cifar10 and "
        "give DIR as --data-dir or PLANARIA_DATA, or use --task torchvision:CIFAR10, which downloads it.",
    ),
}
_KINDS = {
    "idx": "idx:DIR",
    "cifar": "cifar:DIR",
    "npz": "npz:FILE",
    "folder": "folder:DIR",
    "torchvision": "torchvision:NAME",
    "hf": "hf:NAME@REVISION",
    "py": "py:FILE.py:FUNCTION",
}
NAMES = ("digits", *_STORED)
"""Names that stand for a whole task."""


def task(text: str, *, data_dir: str | None = None) -> Task:
    """The task a text stands for; see the module for the form.

    Args:
        text: `source[?key=value&...]`.
        data_dir: Folder that is searched first for the well-known sets.

    Returns:
        The task, named `text`. The same text and files give the same task.

    Raises:
        InputError: Unknown source or key, or data that are damaged, empty, not finite, or have labels outside
            the classes.
        UnsafeError: A file that would have to be unpickled.
        EnvironmentProblem: Data or a library that is not here, with how to get it.

    Example:
        >>> digits = task("digits")
        >>> digits
        task('digits')
        >>> len(digits.train), len(digits.validation), len(digits.test), digits.classes
        (1069, 188, 540, 10)
        >>> digits.train.inputs.shape
        torch.Size([1069, 64])
        >>> task("digits?train=100&flat=0").train.inputs.shape
        torch.Size([100, 1, 8, 8])
    """
    source, mark, query = text.partition("?")
    options = _options(query, text) if mark else _Options()
    raw = _read(source, data_dir)
    try:
        return _prepared(text, raw, options)
    except InputError as problem:  # the same complaint, under the name of the task
        raise InputError(f"task {text!r}, {problem.where}", problem.expected, problem.got, problem.remedy) from None


def data_roots(data_dir: str | None = None) -> list[Path]:
    """Folders searched for the well-known sets, in order: `data_dir`, then the environment's PLANARIA_DATA.

    Raises:
        InputError: `data_dir` is given and is no folder.

    Example:
        >>> data_roots(".")[0]
        PosixPath('.')
    """
    roots = []
    if data_dir is not None:
        roots.append(Path(data_dir).expanduser())
        if not roots[0].is_dir():
            raise InputError("--data-dir", "a folder", repr(data_dir), "Check the path.")
    if named := os.environ.get("PLANARIA_DATA"):
        roots.append(Path(named).expanduser())
    return roots


# ---------------------------------------------------------------------------------------------- the text


@dataclass(frozen=True)
class _Options:
    scale: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    flat: bool | None = None
    train: int | None = None
    test: int | None = None
    validation: int | None = None
    classes: int | None = None


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


_CONVERT: Mapping[str, Callable[[str], object]] = {
    "scale": _scale,
    "mean": _numbers,
    "std": _spread,
    "flat": _flag,
    "train": _count,
    "test": _count,
    "validation": _count,
    "classes": _count,
}


def _options(query: str, text: str) -> _Options:
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
    return _Options(**values)


def _read(source: str, data_dir: str | None) -> Raw:
    kind, colon, rest = source.partition(":")
    if source == "digits":
        return readers.read_digits()
    if source in _STORED:
        return _stored(source, data_dir)
    if not colon or kind not in _KINDS:
        remedy = f"{nearest(kind, [*NAMES, *_KINDS])} Forms: {', '.join(_KINDS.values())}."
        if source.endswith(".npz"):
            remedy = f"Write npz:{source}. {remedy}"
        elif ".py:" in source:
            remedy = f"Write py:{source}. {remedy}"
        raise InputError("task", "a known task", repr(source), remedy)
    if not rest:
        raise InputError("task", _KINDS[kind], repr(source), "Say which.")
    if kind == "torchvision":
        return readers.read_torchvision(rest, Path(data_dir or Path.home() / ".cache" / "planaria"))
    if kind == "hf":
        return readers.read_hf(rest)
    if kind == "py":
        return readers.read_python(rest)
    read = {
        "idx": readers.read_idx,
        "cifar": readers.read_cifar,
        "npz": readers.read_npz,
        "folder": readers.read_folder,
    }
    return read[kind](Path(rest).expanduser())


def _stored(name: str, data_dir: str | None) -> Raw:
    known = _STORED[name]
    places = [root / folder for root in data_roots(data_dir) for folder in known.folders]
    if name == "fashion-mnist":
        places.append(DEBIAN_FASHION)
    for place in places:
        if any(file.exists() for stem in known.proof for file in place.glob(f"{stem}*")):
            return known.read(place)
    looked = ", ".join(map(str, places)) or "no folder, as neither --data-dir nor PLANARIA_DATA is given"
    raise EnvironmentProblem(f"task {name}", "its files", f"none; looked in {looked}", known.remedy)


# ------------------------------------------------------------------------------------------- preparation


def _prepared(text: str, raw: Raw, options: _Options) -> Task:
    splits = dict(raw.splits)
    for part, data in splits.items():
        if data.inputs.ndim < 2:
            raise InputError(
                f"{part}.inputs",
                "[N, ...] with 2 dimensions or more",
                list(data.inputs.shape),
                "Give one number per row as [N, 1].",
            )
    regression = any(data.targets.is_floating_point() for data in splits.values())
    loss = raw.loss or ("mse" if regression or raw.score == "r2" else "cross_entropy")
    score = raw.score or ("r2" if regression or loss == "mse" else "accuracy")
    classes = options.classes or raw.classes
    if not regression and score in ("accuracy", ACCURACY):
        # Before rows are dropped: so that an index is the file's, and `test=N` does not change the classes.
        for part, data in splits.items():
            check_labels(data.targets, classes, f"{part}.targets")
        classes = classes or 1 + max(int(data.targets.max()) for data in splits.values())
    splits, rule = _split(splits, raw, options)
    preprocess, record = _preprocessing(splits["train"].inputs, raw, options)
    ready = {part: Data(preprocess(data.inputs), data.targets) for part, data in splits.items()}
    made = Task.of(
        text,
        ready["train"],
        ready["test"],
        validation=ready["validation"],
        loss=loss,  # type: ignore[arg-type]  # Task.of checks what a user's function returned
        score=score,  # type: ignore[arg-type]
        classes=classes,
    )
    return replace(made, preprocessing=record, split=rule, loadable=True)


def _split(splits: dict[str, Data], raw: Raw, options: _Options) -> tuple[dict[str, Data], str]:
    def first(part: str, count: int | None) -> str:
        if count is None:
            return ""
        if count > len(splits[part]):
            raise InputError(part, f"at most {len(splits[part])} rows", count, "Ask for fewer rows.")
        rule = f"; {part} is the first {count} of {len(splits[part])}"
        splits[part] = splits[part].take(count)
        return rule

    rows = len(splits["train"])
    if "validation" in splits:
        rule = "validation as given" + first("validation", options.validation)
    else:
        count = options.validation or raw.validation_rows or min(5000, max(1, rows // 10))
        splits["train"], splits["validation"] = hold_out(splits["train"], count)
        rule = f"validation is the last {count} of {rows} training rows"
    return splits, rule + first("train", options.train) + first("test", options.test)


def _preprocessing(
    example: Tensor, raw: Raw, options: _Options
) -> tuple[Callable[[Tensor], Tensor], dict[str, object]]:
    scale = options.scale or ("unit" if raw.full_scale else None)
    divisor = (raw.full_scale or 255.0) if scale == "unit" else 1.0
    touched = scale is not None or options.mean is not None or options.std is not None
    # Integers that nobody wants scaled are tokens, and stay integers.
    to_float = touched and not example.is_floating_point()
    flat = raw.flat if options.flat is None else options.flat
    channels = example.shape[1]
    moments: dict[str, Tensor] = {}
    for name, numbers in (("mean", options.mean), ("std", options.std)):
        if numbers is None:
            continue
        if len(numbers) not in (1, channels):
            expected = f"1 or {channels} numbers" if channels > 1 else "1 number"
            raise InputError(name, expected, len(numbers), "Give one, or one per channel.")
        moments[name] = torch.tensor(numbers).reshape(-1, *[1] * (example.ndim - 2))

    def preprocess(inputs: Tensor) -> Tensor:
        inputs = inputs.to(torch.get_default_dtype()) if to_float else inputs.clone() if touched else inputs
        if divisor != 1.0:
            inputs.div_(divisor)
        if "mean" in moments:
            inputs.sub_(moments["mean"])
        if "std" in moments:
            inputs.div_(moments["std"])
        return inputs.flatten(1) if flat else inputs

    record: dict[str, object] = {"divided_by": divisor, "flat": flat, **dict(raw.notes or {})}
    record |= {name: list(numbers) for name in ("mean", "std") if (numbers := getattr(options, name)) is not None}
    return preprocess, record


assert set(_CONVERT) == {field.name for field in fields(_Options)}
