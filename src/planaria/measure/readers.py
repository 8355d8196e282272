"""Readers: one per kind of file, and one of user code, to raw arrays in memory.

Nothing is scaled here; `planaria.measure.datasets` does that, and records it. Files are read as data, never
as code: arrays with Python objects are refused. Images, texts and libraries have files of their own: `images`, `text`.
"""

from __future__ import annotations

import gzip
import io
import lzma
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planaria.core.errors import InputError, PlanariaError, UnsafeError, nearest
from planaria.core.port import LABELS
from planaria.measure.data import Data
from planaria.measure.task import Task
from planaria.measure.usercode import called, user_callable

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Raw:
    """What a source holds, before any preprocessing.

    Args:
        splits: "train", "test" and perhaps "validation". Images are uint8 [N, channels, height, width].
        full_scale: What `scale=unit` divides by; None if the source needs no scaling unless asked.
        flat: Whether rows become vectors unless asked otherwise.
        validation_rows: Size of the validation split where the source prescribes one.
        classes: Number of classes where the source says so.
        loss: Loss where the source says so, as `Task.of` takes it.
        score: Score, the same.
        notes: What a reader decided about the layout; goes into the record.
        unlabelled: Whether the targets stand for nothing: the answers of a network will be the targets.
    """

    splits: Mapping[str, Data]
    full_scale: float | None = None
    flat: bool = False
    validation_rows: int | None = None
    classes: int | None = None
    loss: object = None
    score: object = None
    notes: Mapping[str, object] | None = None
    unlabelled: bool = False


# ------------------------------------------------------------------------------------------------ files


def read_digits() -> Raw:
    """The 1,797 digits in the package: the first 1,257 to learn from, the last 540 to test."""
    with np.load(io.BytesIO(files("planaria.measure").joinpath("digits.npz").read_bytes())) as arrays:
        images, labels = torch.from_numpy(arrays["images"])[:, None], torch.from_numpy(arrays["labels"])
    splits = {"train": Data(images[:1257], labels[:1257]), "test": Data(images[1257:], labels[1257:])}
    return Raw(splits, full_scale=16.0, flat=True, validation_rows=188)


def read_idx(folder: Path) -> Raw:
    """Four files in MNIST's format: {train,t10k}-{images-idx3,labels-idx1}-ubyte, also dotted, also .gz."""
    splits = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        arrays = []
        for kind in ("images-idx3", "labels-idx1"):
            names = [f"{prefix}-{stem}-ubyte" for stem in (kind, kind.replace("-idx", ".idx"))]
            arrays.append(_idx_array(_one_of(folder, names, ("", ".gz"))))
        images, labels = arrays
        if labels.ndim != 1:
            name = f"{folder}/{prefix}-labels-idx1-ubyte"
            raise InputError(name, "one label per image", f"shape {list(labels.shape)}", "Get the file again.")
        splits[part] = Data.of((images[:, None] if images.ndim == 3 else images, labels), f"{folder}: {part}")
    return Raw(splits, full_scale=255.0)


def read_cifar(folder: Path) -> Raw:
    """CIFAR-10's binary version: test_batch and as many data_batch_N as there are, .bin or .bin.xz."""
    found = {path.name.removesuffix(".xz"): path for path in sorted(folder_at(folder).glob("data_batch_*.bin*"))}
    parts = [path for name, path in sorted(found.items()) if name.endswith(".bin")]
    if not parts:
        raise InputError(f"cifar:{folder}", "files data_batch_N.bin or .bin.xz", "none", _CIFAR_HELP)
    train = [_cifar_batch(path) for path in parts]
    images, labels = (torch.cat(tensors) for tensors in zip(*train, strict=True))
    test = _cifar_batch(_one_of(folder, ["test_batch.bin"], ("", ".xz")))
    notes = {"training_files": [path.name for path in parts]}
    return Raw({"train": Data(images, labels), "test": Data(*test)}, full_scale=255.0, notes=notes)


_CIFAR_HELP = "Unpack cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html there."


def read_npz(path: Path) -> Raw:
    """Arrays of two or three splits in one .npz file, named by split and entry: `train.input_ids`, `test.labels`.

    `train_input_ids` and `input_ids_train` mean the same. The entry `y` (or `labels`, `label`, `targets`) holds
    integer labels [N] or [N, positions], or floats [N, ...] for a regression; without it in any split, the data are
    unlabelled. An entry `x` alone is the one tensor a network takes: uint8 [N, H, W] and [N, H, W, channels] are read
    as images. Other entries, [N, ...], are the arguments of its forward by those names.
    """
    arrays, spelling = _by_split(path, _npz_arrays(path))
    entries = list(dict.fromkeys(entry for columns in arrays.values() for entry in columns))
    labels = [entry for entry in entries if entry in _TARGETS]
    if len(labels) > 1:
        raise InputError(f"{path}", "targets under one name", " and ".join(labels), "Remove one.")
    wanted = [entry for entry in entries if entry not in _TARGETS] or ["x"]
    splits, notes = {}, {}
    for part in SPLITS:
        if part == "validation" and part not in arrays:
            continue
        columns = arrays.get(part, {})
        if missing := [entry for entry in [*wanted, *labels] if entry not in columns]:
            name = spelling.get(missing[0], "{entry}_{part}").format(entry=missing[0], part=part)
            got = f"only {', '.join(spelling[e].format(entry=e, part=p) for p in arrays for e in arrays[p]) or 'none'}"
            raise InputError(f"{path}", f"an array {name}", got, "Save it too.")
        inputs: Any = {entry: _plain_numbers(torch.from_numpy(columns[entry])) for entry in wanted}
        if wanted == ["x"]:
            inputs = torch.from_numpy(columns["x"])
            if _channels_last(inputs):
                inputs, notes["layout"] = inputs.permute(0, 3, 1, 2).contiguous(), "channels moved to the front"
            elif inputs.dtype == torch.uint8 and inputs.ndim == 3:
                inputs = inputs[:, None]
            if inputs.dtype == torch.float64:
                inputs = inputs.float()
        rows = len(columns[wanted[0]])
        targets = torch.zeros(rows, dtype=torch.int64)
        if labels:
            name = spelling[labels[0]].format(entry=labels[0], part=part)
            targets = _npz_targets(torch.from_numpy(columns[labels[0]]), f"{path}: {name}")
        splits[part] = Data.of((inputs, targets), f"{path}: {part}")
    is_image = splits["train"].inputs.dtype == torch.uint8
    return Raw(splits, full_scale=255.0 if is_image else None, notes=notes, unlabelled=not labels)


# ---------------------------------------------------------------------------------------------- user code


def read_python(spec: str) -> Raw:
    """What a function of the user's returns: a Task, splits in a tuple or in a dict.

    (train, test) or (train, validation, test), or a dict with the keys train, test, and perhaps validation,
    loss, score, classes. Each split is anything `Data.of` takes. Float targets mean a regression unless loss
    or score say otherwise.
    """
    where = f"py:{spec}"
    with torch.random.fork_rng(devices=[]):
        # A shuffling loader must give the same order every time, or the same command would never resume.
        torch.default_generator.manual_seed(0)
        return _python(called(user_callable(spec, where), where), where)


def _python(value: object, where: str) -> Raw:
    if isinstance(value, Task):
        return Raw(
            value.splits,
            classes=value.classes,
            loss=value.loss,
            score=value.scorer,
            notes=value.preprocessing,
        )
    if isinstance(value, tuple | list) and len(value) in (2, 3):
        value = dict(zip(("train", "test") if len(value) == 2 else SPLITS, value, strict=True))
    if not isinstance(value, dict):
        raise InputError(where, "a Task, (train, test), (train, validation, test) or a dict of these", kind(value), "")
    known = (*SPLITS, "loss", "score", "classes")
    for key in value:
        if key not in known:
            raise InputError(where, "a dict with known keys", repr(key), nearest(str(key), known))
    for part in ("train", "test"):
        if part not in value:
            raise InputError(where, f"a dict with {part!r}", f"only {', '.join(value)}", "Return it too.")
    given = [value[part] for part in SPLITS if part in value]
    unlabelled = all(
        isinstance(split, Tensor) or (isinstance(split, Mapping) and not LABELS & set(split)) for split in given
    )
    if unlabelled:
        value = value | {part: (value[part], _no_targets(value[part])) for part in SPLITS if part in value}
    splits = {part: Data.of(value[part], f"{where} {part}") for part in SPLITS if part in value}
    return Raw(
        splits,
        classes=value.get("classes"),
        loss=value.get("loss"),
        score=value.get("score"),
        unlabelled=unlabelled,
    )


def _no_targets(inputs: Any) -> Tensor:
    first = next((part for part in inputs.values() if part is not None), ()) if isinstance(inputs, Mapping) else inputs
    return torch.zeros(len(first), dtype=torch.int64)


# ------------------------------------------------------------------------------------------------ helpers


def folder_at(path: Path) -> Path:
    """The folder, once it is known to be one."""
    if not path.is_dir():
        raise InputError(f"{path}", "a folder", "a file" if path.exists() else "nothing", "Check the path.")
    return path


def _one_of(folder: Path, names: list[str], endings: tuple[str, ...]) -> Path:
    for name in names:
        for ending in endings:
            if (path := folder_at(folder) / (name + ending)).is_file():
                return path
    raise InputError(f"{folder}", f"a file {' or '.join(names)}{' or '.join(endings)}", "none", "Put it there.")


def _unpacked(path: Path) -> bytes:
    packers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        with packers.get(path.suffix, open)(path, "rb") as file:
            content: bytes = file.read()
            return content
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as problem:
        raise InputError(f"{path}", "a readable file", said(problem), "Get the file again.") from problem


_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def _idx_array(path: Path) -> Tensor:
    content = _unpacked(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES or content[3] == 0:
        raise InputError(f"{path}", "a file in idx format", f"first bytes {content[:4]!r}", "Get the file again.")
    kind, dims = np.dtype(_IDX_TYPES[content[2]]), content[3]
    head, body = content[4 : 4 + 4 * dims], content[4 + 4 * dims :]
    shape = [int.from_bytes(head[i : i + 4], "big") for i in range(0, 4 * dims, 4)]
    claimed = math.prod(shape) * kind.itemsize
    if len(head) != 4 * dims or claimed != len(body):
        got = f"{len(body)} bytes"
        remedy = "The file is cut off or damaged; get it again."
        raise InputError(f"{path}", f"{claimed} bytes of data for shape {shape} of {kind.name}", got, remedy)
    array = np.frombuffer(bytearray(body), kind).reshape(shape)
    return torch.from_numpy(array.astype(kind.newbyteorder("="), copy=False))


def _cifar_batch(path: Path) -> tuple[Tensor, Tensor]:
    content, row = _unpacked(path), 1 + 3 * 32 * 32
    if not content or len(content) % row:
        raise InputError(f"{path}", f"rows of {row} bytes", f"{len(content)} bytes", _CIFAR_HELP)
    rows = torch.from_numpy(np.frombuffer(bytearray(content), np.uint8).reshape(-1, row))
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].long()


def _npz_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    if not path.is_file():
        raise InputError(f"npz:{path}", "a file", "a folder" if path.is_dir() else "nothing", "Check the path.")
    try:
        with path.open("rb") as file:  # numpy would leave a damaged file open
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"npz:{path}", "a .npz file", "a single array", "Use numpy.savez.")
            arrays = {name: archive[name] for name in archive.files}
    except ValueError as problem:
        if isinstance(problem, PlanariaError):
            raise
        if "allow_pickle" in str(problem):
            raise UnsafeError(
                f"npz:{path}",
                "arrays of numbers",
                "pickled Python objects, which can run code when loaded",
                "Save the arrays with a numeric dtype.",
            ) from problem
        raise InputError(f"npz:{path}", "a .npz file", said(problem), "Save it again.") from problem
    except (
        OSError,
        EOFError,
        KeyError,
        MemoryError,
        zlib.error,
        zipfile.BadZipFile,
        NotImplementedError,
    ) as problem:
        raise InputError(f"npz:{path}", "a .npz file", said(problem), "Save it again.") from problem
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            got = f"{array.dtype} {list(array.shape)}"
            raise InputError(f"npz:{path}: {name}", "an array of numbers [N, ...]", got, "Convert it.")
        if not array.dtype.isnative or array.dtype.itemsize > 8:
            arrays[name] = array.astype(np.float64 if array.dtype.kind == "f" else array.dtype.newbyteorder("="))
    return arrays


_TARGETS = ("y", "labels", "label", "targets")
_SPELLINGS = ("{part}.{entry}", "{part}_{entry}", "{entry}_{part}")


def _by_split(
    path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]
) -> tuple[dict[str, dict[str, np.ndarray[Any, Any]]], dict[str, str]]:
    """Arrays by split and entry, and how the names are made up from these."""
    found: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    spelling: dict[str, str] = {}
    for name, array in arrays.items():
        before, after = (
            re.fullmatch(r"(train|validation|test)[._](.+)", name),
            re.fullmatch(r"(.+)_(train|validation|test)", name),
        )
        if before is not None:
            part, entry = before[1], before[2]
        elif after is not None:
            entry, part = after[1], after[2]
        else:
            known = [f"{entry}_{part}" for part in SPLITS for entry in "xy"]
            remedy = f"{nearest(name, known)} Or SPLIT.NAME, such as train.input_ids and test.labels."
            raise InputError(f"{path}", "arrays with known names", repr(name), remedy)
        if entry in found.setdefault(part, {}):
            raise InputError(f"{path}", f"one array {entry} for {part}", f"a second one, {name}", "Remove one.")
        found[part][entry] = array
        spelling[entry] = next(form for form in _SPELLINGS if form.format(part=part, entry=entry) == name)
    return found, spelling


def _plain_numbers(array: Tensor) -> Tensor:
    """Numbers of the types that networks take: float32 for float64, int64 for other integers."""
    if array.dtype == torch.float64:
        return array.float()
    return array if array.is_floating_point() or array.dtype == torch.bool else array.long()


def _npz_targets(targets: Tensor, where: str) -> Tensor:
    if targets.is_floating_point():
        return targets.float()
    targets = targets.long()
    if targets.ndim == 2 and targets.shape[1] == 1:
        return targets[:, 0]
    if targets.ndim > 1 and bool(((targets == 0) | (targets == 1)).all()) and bool((targets.sum(1) == 1).all()):
        raise InputError(
            where,
            "integer labels [N] or [N, positions], or floats for a regression",
            f"integers {list(targets.shape)}, one 1 per row",
            "Turn one-hot rows into labels with argmax(1).",
        )
    return targets


def _channels_last(inputs: Tensor) -> bool:
    is_images = inputs.dtype == torch.uint8 and inputs.ndim == 4
    return is_images and inputs.shape[3] in (1, 3) and inputs.shape[1] not in (1, 3)


def kind(value: object) -> str:
    """Type of a value, for a message."""
    return f"{type(value).__name__}" + (f" of length {len(value)}" if isinstance(value, tuple | list) else "")


def said(problem: BaseException) -> str:
    """What an error of another library says, in one line."""
    return f"{type(problem).__name__}: {(str(problem).splitlines() or ['no message'])[0][:300]}"
