"""Tasks by name: one string form for built-in data, files, libraries and user code.

    source[?key=value&...]

Sources: `digits` (in the package); `mnist`, `fashion-mnist`, `cifar10` (looked for in the data folders);
`idx:DIR`, `cifar:DIR`, `npz:FILE`, `folder:DIR`, `text:FILE` (files); `torchvision:NAME`, `hf:NAME@REVISION`
(libraries); `py:package.module:function` or `py:path/file.py:function` (the user's code). What each must hold is
said with its reader, in `planaria.measure.readers`, `images` and `text`.

Keys: `scale` (`unit`: divide by the largest pixel value, the default for images; `raw`: as stored), `mean`
and `std` (a number, or one per channel, applied after scale), `flat` (1: rows become vectors), `train` and
`test` (use the first N rows), `validation` (rows held out from the end of train; default a tenth, at most
5,000), `classes`, `score` (a name of `planaria.measure.scores`, such as top5 or f1) and `loss` (a name of
`planaria.measure.losses`), instead of those that come with the data.

Keys of images in files of their own (`folder`, `torchvision`, `hf`): `size` (cut to a square of that side around the
centre), `resize` (shorter side before that; default `size`), `channels` (1: grey, 3: colour).

Keys of texts (`text`, `hf`): `tokenizer` (`chars`, `words`, or a Hugging Face folder), `max_length` (tokens, default
128), `text`, `pair`, `label` (names of columns), `goal` (`class`, `number`, `similarity`, `tags`, `lm`, `masked`),
`held_out` (share of the rows that is the test split where there is none; default 0.2), `plain` (1: token numbers
alone); see `planaria.measure.text.Wording`.

Data without labels, and any data under `score=agreement` or `score=similarity`, wait for a network whose answers
become their targets; see `planaria.measure.unlabelled`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planaria.core.errors import EnvironmentProblem, InputError, nearest
from planaria.measure import readers
from planaria.measure.data import Data, check_labels, hold_out
from planaria.measure.images import Crop, read_folder, read_hf, read_torchvision, rows_of_hf
from planaria.measure.keys import OF_IMAGES, OF_TEXTS, Keys, keys_of
from planaria.measure.readers import Raw
from planaria.measure.scores import ACCURACY, R2, SCORES, Score, score_named
from planaria.measure.task import Task
from planaria.measure.text import Wording, read_text, tokenised
from planaria.measure.unlabelled import WAYS, Unlabelled

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
    "text": "text:FILE",
    "torchvision": "torchvision:NAME",
    "hf": "hf:NAME@REVISION",
    "py": "py:FILE.py:FUNCTION",
}
NAMES = ("digits", *_STORED)
"""Names that stand for a whole task."""


def task(text: str, *, data_dir: str | None = None, net: Callable[..., Any] | None = None) -> Task:
    """The task a text stands for; see the module for the form.

    Args:
        text: `source[?key=value&...]`.
        data_dir: Folder that is searched first for the well-known sets.
        net: The intact network, whose answers are the targets of data without labels, and of any data under
            `score=agreement` or `score=similarity`.

    Returns:
        The task, named `text`. The same text, files and network give the same task.

    Raises:
        InputError: Unknown source or key, data that are damaged, empty, not finite, or have labels outside the
            classes, or that have no labels where no network is given.
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
    found = load(text, data_dir=data_dir)
    if isinstance(found, Task):
        return found
    if net is None:
        why = "data without labels" if found.by is None else f"score={found.by}"
        remedy = f"Give it: task({text!r}, net=network). On the command line, give --weights."
        raise InputError(f"task {text!r}", "the network whose answers are the targets", why, remedy)
    return found.answered(net)


def load(text: str, *, data_dir: str | None = None) -> Task | Unlabelled:
    """The task a text stands for, or one that still waits for the intact network's answers.

    Args:
        text: `source[?key=value&...]`.
        data_dir: Folder that is searched first for the well-known sets.

    Raises:
        PlanariaError: As `task` does.

    Example:
        >>> load("digits"), load("digits?score=agreement")
        (task('digits'), <Unlabelled 'digits?score=agreement': 1069 train, 188 validation, 540 test>)
    """
    source, mark, query = text.partition("?")
    options = keys_of(query, text) if mark else Keys()
    raw = _read(source, data_dir, options, text)
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


# ------------------------------------------------------------------------------------------------ sources


def _wording(options: Keys, text: str) -> Wording:
    given = {name: value for name in OF_TEXTS if (value := getattr(options, name)) is not None}
    if "tokenizer" not in given:
        expected = "tokenizer=chars, tokenizer=words or tokenizer=FOLDER"
        raise InputError(f"task {text!r}", expected, "none", "Say how texts become tokens.")
    return Wording(**given)


def _crop(options: Keys, text: str) -> Crop:
    if options.resize is not None and (options.size is None or options.resize < options.size):
        got = "no size" if options.size is None else f"resize={options.resize} below size={options.size}"
        raise InputError(f"task {text!r}", "resize beside a size that is not larger", got, "For example size=224.")
    return Crop(options.size, options.resize, options.channels)


def _read(source: str, data_dir: str | None, options: Keys, text: str) -> Raw:
    kind, colon, rest = source.partition(":")
    for names, kinds in ((OF_IMAGES, ("folder", "torchvision", "hf")), (OF_TEXTS, ("text", "hf"))):
        given = [name for name in names if getattr(options, name) is not None]
        if given and kind not in kinds:
            expected = f"{given[0]} with {' or '.join(_KINDS[name] for name in kinds)}"
            raise InputError(f"task {text!r}", expected, f"with {source!r}", "Leave it out.")
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
        store = Path(data_dir or Path.home() / ".cache" / "planaria")
        return read_torchvision(rest, store, _crop(options, text))
    if kind == "text":
        return read_text(Path(rest).expanduser(), _wording(options, text))
    if kind == "hf" and any(getattr(options, name) is not None for name in OF_TEXTS):
        rows, notes = rows_of_hf(rest)
        words = tokenised(rows, _wording(options, text), f"hf:{rest}")
        return replace(words, notes={**notes, **(words.notes or {})})
    if kind == "hf":
        return read_hf(rest, _crop(options, text))
    if kind == "py":
        return readers.read_python(rest)
    if kind == "folder":
        return read_folder(Path(rest).expanduser(), _crop(options, text))
    read = {"idx": readers.read_idx, "cifar": readers.read_cifar, "npz": readers.read_npz}
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


def _prepared(text: str, raw: Raw, options: Keys) -> Task | Unlabelled:
    splits = dict(raw.splits)
    for part, data in splits.items():
        if data.inputs.ndim < 2:
            raise InputError(
                f"{part}.inputs",
                "[N, ...] with 2 dimensions or more",
                list(data.inputs.shape),
                "Give one number per row as [N, 1].",
            )
    if raw.unlabelled or options.score in WAYS:
        return _waiting(text, raw, options, splits)
    regression = any(data.targets.is_floating_point() for data in splits.values())
    score: Any = options.score or raw.score
    score = score_named(score) if isinstance(score, str) else score
    of_numbers = isinstance(score, Score) and score in SCORES.values() and not score.labels
    loss = options.loss or raw.loss or ("mse" if regression or of_numbers else "cross_entropy")
    score = score or (R2 if regression or loss == "mse" else ACCURACY)
    classes = options.classes or raw.classes
    if not regression and isinstance(score, Score) and score.labels:
        # Before rows are dropped: so that an index is the file's, and `test=N` does not change the classes.
        for part, data in splits.items():
            check_labels(data.targets, classes, f"{part}.targets")
        classes = classes or 1 + max(int(data.targets.max()) for data in splits.values())
    splits, rule = _split(splits, raw, options)
    ready, record = _preprocessed(splits, raw, options)
    made = Task.of(
        text,
        ready["train"],
        ready["test"],
        validation=ready["validation"],
        loss=loss,  # type: ignore[arg-type]  # Task.of checks what a user's function returned
        score=score,
        classes=classes,
    )
    return replace(made, preprocessing=record, split=rule, loadable=True)


def _waiting(text: str, raw: Raw, options: Keys, splits: dict[str, Data]) -> Unlabelled:
    if options.score is not None and options.score not in WAYS:
        expected = f"score={' or score='.join(WAYS)} for data without labels"
        raise InputError("score", expected, options.score, "Leave it out, or give labels.")
    classes = options.classes or raw.classes
    if not raw.unlabelled and not any(data.targets.is_floating_point() for data in splits.values()):
        classes = classes or 1 + max(int(data.targets.max()) for data in splits.values())
    splits, rule = _split(splits, raw, options)
    ready, record = _preprocessed(splits, raw, options)
    by = options.score or ("similarity" if raw.score == "spearman" else None)
    inputs = {part: ready[part] for part in ("train", "validation", "test")}
    return Unlabelled(text, inputs, by, options.loss, classes, record, rule)


def _split(splits: dict[str, Data], raw: Raw, options: Keys) -> tuple[dict[str, Data], str]:
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


def _preprocessed(splits: Mapping[str, Data], raw: Raw, options: Keys) -> tuple[dict[str, Data], dict[str, object]]:
    if splits["train"].layout is not None:
        given = [name for name in ("scale", "mean", "std", "flat") if getattr(options, name) is not None]
        if given:
            got = f"{splits['train'].layout}"
            raise InputError(given[0], "inputs that are one tensor, to be scaled", got, "Leave it out.")
        return dict(splits), dict(raw.notes or {})
    preprocess, record = _preprocessing(splits["train"].inputs, raw, options)
    return {part: Data(preprocess(data.inputs), data.targets) for part, data in splits.items()}, record


def _preprocessing(example: Tensor, raw: Raw, options: Keys) -> tuple[Callable[[Tensor], Tensor], dict[str, object]]:
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
