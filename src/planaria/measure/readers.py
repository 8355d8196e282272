"""Readers: one per kind of data source, from files or libraries to raw arrays in memory.

Nothing is scaled here; `planaria.measure.datasets` does that, and records it. Files are read as data, never
as code: arrays with Python objects are refused. Libraries beyond torch and numpy are imported when needed.
"""

from __future__ import annotations

import gzip
import importlib
import inspect
import io
import lzma
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planaria.core.errors import EnvironmentProblem, InputError, PlanariaError, UnsafeError, nearest
from planaria.core.streams import stream
from planaria.measure.data import Data, sorted_by_class
from planaria.measure.task import Task
from planaria.measure.usercode import called, user_callable

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
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
    """

    splits: Mapping[str, Data]
    full_scale: float | None = None
    flat: bool = False
    validation_rows: int | None = None
    classes: int | None = None
    loss: object = None
    score: object = None
    notes: Mapping[str, object] | None = None


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
    found = {path.name.removesuffix(".xz"): path for path in sorted(_folder(folder).glob("data_batch_*.bin*"))}
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
    """Arrays x_train, y_train, x_test, y_test and perhaps x_validation, y_validation in one .npz file.

    x: [N, ...]; uint8 [N, H, W] and [N, H, W, channels] are read as images. y: integer labels [N], or floats
    [N, ...] for a regression.
    """
    arrays = _npz_arrays(path)
    pairs = {part: (f"x_{part}", f"y_{part}") for part in SPLITS}
    known = [name for pair in pairs.values() for name in pair]
    for name in arrays:
        if name not in known:
            raise InputError(f"{path}", "arrays with known names", repr(name), nearest(name, known))
    splits, notes = {}, {}
    for part, (x, y) in pairs.items():
        missing = [name for name in (x, y) if name not in arrays]
        if missing == [x, y] and part == "validation":
            continue
        if missing:
            raise InputError(f"{path}", f"an array {missing[0]}", f"only {', '.join(arrays)}", "Save it too.")
        inputs, targets = torch.from_numpy(arrays[x]), torch.from_numpy(arrays[y])
        if _channels_last(inputs):
            inputs, notes["layout"] = inputs.permute(0, 3, 1, 2).contiguous(), "channels moved to the front"
        elif inputs.dtype == torch.uint8 and inputs.ndim == 3:
            inputs = inputs[:, None]
        if inputs.dtype == torch.float64:
            inputs = inputs.float()
        targets = targets.float() if targets.is_floating_point() else targets.long()
        if targets.ndim == 2 and targets.shape[1] == 1 and not targets.is_floating_point():
            targets = targets[:, 0]
        if targets.ndim != 1 and not targets.is_floating_point():
            raise InputError(
                f"{path}: {y}",
                "integer labels [N], or floats for a regression",
                f"integers {list(targets.shape)}",
                "Turn one-hot rows into labels with argmax(1).",
            )
        splits[part] = Data.of((inputs, targets), f"{path}: {part}")
    is_image = splits["train"].inputs.dtype == torch.uint8
    return Raw(splits, full_scale=255.0 if is_image else None, notes=notes)


def read_folder(folder: Path) -> Raw:
    """Images as DIR/train/CLASS/*.png and DIR/test/CLASS/*.png, perhaps DIR/validation/CLASS/*.png.

    Classes are numbered by the sorted names of the folders in train. Rows are in a fixed mixed order.
    """
    image_library = _library("PIL.Image", "pillow", f"folder:{folder}")
    names = [path.name for path in sorted(_folder(_folder(folder) / "train").iterdir()) if path.is_dir()]
    splits = {}
    for part in SPLITS:
        if part == "validation" and not (folder / part).is_dir():
            continue
        listed: list[tuple[Path, int]] = []
        for sub in sorted(path for path in _folder(folder / part).iterdir() if path.is_dir()):
            if sub.name not in names:
                raise InputError(f"{sub}", "a class that train has too", repr(sub.name), nearest(sub.name, names))
            listed += [
                (path, names.index(sub.name)) for path in sorted(sub.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES
            ]
        if not listed:
            raise InputError(f"{folder / part}", "images in CLASS/*.png", "none", "Make one folder per class.")

        def opened(rows: list[tuple[Path, int]] = listed) -> Iterator[tuple[object, object, str]]:
            for path, label in rows:
                try:
                    with image_library.open(path) as image:
                        image.load()
                        yield image, label, str(path)
                except (OSError, ValueError, SyntaxError, image_library.DecompressionBombError) as problem:
                    raise InputError(f"{path}", "an image", str(problem), "Remove or repair it.") from problem

        splits[part] = _images(opened(), str(folder / part))
    return Raw(splits, full_scale=255.0, classes=len(names), notes={"classes": names})


# ---------------------------------------------------------------------------------------------- libraries


def read_torchvision(name: str, store: Path) -> Raw:
    """A labelled image set of torchvision.datasets, downloaded into `store` unless it is there."""
    where = f"torchvision:{name}"
    library = _library("torchvision.datasets", "torchvision", where)
    if not inspect.isclass(getattr(library, name, None)):
        known = [word for word in dir(library) if inspect.isclass(getattr(library, word))]
        raise InputError(where, "a data set of torchvision", repr(name), nearest(name, known))
    make = getattr(library, name)
    wanted = inspect.signature(make).parameters
    splits = {}
    for part in ("train", "test"):
        which: dict[str, Any] = {"train": part == "train"} if "train" in wanted else {"split": part}
        try:
            rows = make(str(store), download=True, **which)
        except TypeError as problem:
            raise InputError(where, "a set with train and test", str(problem), _WRITE_A_FUNCTION) from problem
        except Exception as problem:
            raise _unreachable(where, problem) from problem
        pairs = (rows[i] for i in range(len(rows)))
        splits[part] = _images(((*pair[:2], f"row {i}") for i, pair in enumerate(pairs)), f"{where} {part}")
    return Raw(splits, full_scale=255.0)


def read_hf(spec: str) -> Raw:
    """A labelled image set of the Hugging Face hub: NAME@REVISION or NAME:CONFIG@REVISION."""
    where = f"hf:{spec}"
    place, at, revision = spec.rpartition("@")
    if not (at and place and revision):
        raise InputError(where, "hf:NAME@REVISION", repr(spec), "Name the revision: it fixes which data are meant.")
    library = _library("datasets", "datasets", where)
    name, _, config = place.partition(":")
    try:
        loaded = library.load_dataset(name, config or None, revision=revision)
    except Exception as problem:
        raise _unreachable(where, problem) from problem
    if not (isinstance(loaded, Mapping) and {"train", "test"} <= set(loaded)):
        raise InputError(where, "splits train and test", list(loaded), _WRITE_A_FUNCTION)
    columns = loaded["train"].features
    x = [column for column, kind in columns.items() if isinstance(kind, library.Image)]
    y = [column for column, kind in columns.items() if isinstance(kind, library.ClassLabel)]
    if len(x) != 1 or len(y) != 1:
        raise InputError(where, "one column of images and one of classes", list(columns), _WRITE_A_FUNCTION)
    splits = {
        part: _images(((row[x[0]], row[y[0]], f"row {i}") for i, row in enumerate(loaded[part])), f"{where} {part}")
        for part in SPLITS
        if part in loaded
    }
    return Raw(splits, full_scale=255.0, notes={"revision": revision})


_WRITE_A_FUNCTION = "Load it in a function of yours and name that: py:FILE.py:FUNCTION."


def _unreachable(where: str, problem: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        where,
        "the data set, stored or downloadable",
        f"{type(problem).__name__}: {_first_line(problem)}",
        "Check the name and the internet connection.",
    )


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
        raise InputError(where, "a Task, (train, test), (train, validation, test) or a dict of these", _kind(value), "")
    known = (*SPLITS, "loss", "score", "classes")
    for key in value:
        if key not in known:
            raise InputError(where, "a dict with known keys", repr(key), nearest(str(key), known))
    for part in ("train", "test"):
        if part not in value:
            raise InputError(where, f"a dict with {part!r}", f"only {', '.join(value)}", "Return it too.")
    splits = {part: Data.of(value[part], f"{where} {part}") for part in SPLITS if part in value}
    return Raw(splits, classes=value.get("classes"), loss=value.get("loss"), score=value.get("score"))


# ------------------------------------------------------------------------------------------------ helpers


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise InputError(f"{path}", "a folder", "a file" if path.exists() else "nothing", "Check the path.")
    return path


def _one_of(folder: Path, names: list[str], endings: tuple[str, ...]) -> Path:
    for name in names:
        for ending in endings:
            if (path := _folder(folder) / (name + ending)).is_file():
                return path
    raise InputError(f"{folder}", f"a file {' or '.join(names)}{' or '.join(endings)}", "none", "Put it there.")


def _unpacked(path: Path) -> bytes:
    packers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        with packers.get(path.suffix, open)(path, "rb") as file:
            content: bytes = file.read()
            return content
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as problem:
        raise InputError(f"{path}", "a readable file", _kind_of(problem), "Get the file again.") from problem


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
        raise InputError(f"npz:{path}", "a .npz file", _kind_of(problem), "Save it again.") from problem
    except (
        OSError,
        EOFError,
        KeyError,
        MemoryError,
        zlib.error,
        zipfile.BadZipFile,
        NotImplementedError,
    ) as problem:
        raise InputError(f"npz:{path}", "a .npz file", _kind_of(problem), "Save it again.") from problem
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            got = f"{array.dtype} {list(array.shape)}"
            raise InputError(f"npz:{path}: {name}", "an array of numbers [N, ...]", got, "Convert it.")
        if not array.dtype.isnative or array.dtype.itemsize > 8:
            arrays[name] = array.astype(np.float64 if array.dtype.kind == "f" else array.dtype.newbyteorder("="))
    return arrays


def _channels_last(inputs: Tensor) -> bool:
    is_images = inputs.dtype == torch.uint8 and inputs.ndim == 4
    return is_images and inputs.shape[3] in (1, 3) and inputs.shape[1] not in (1, 3)


def _images(rows: Iterable[tuple[Any, Any, str]], where: str) -> Data:
    images: list[np.ndarray[Any, Any]] = []
    labels: list[int] = []
    for image, label, name in rows:
        if not hasattr(image, "mode") or image.mode in ("I", "F") or image.mode.startswith("I;"):
            got = f"mode {image.mode}" if hasattr(image, "mode") else type(image).__name__
            raise InputError(f"{where}: {name}", "an image of 8 bits per channel", got, _WRITE_A_FUNCTION)
        if not isinstance(label, int | np.integer):
            raise InputError(f"{where}: {name}", "an integer class", _kind(label), _WRITE_A_FUNCTION)
        pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
        if images and pixels.shape[:2] != images[0].shape[:2]:
            expected = f"{images[0].shape[1]} x {images[0].shape[0]} pixels as in the first image"
            got = f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise InputError(f"{where}: {name}", expected, got, "Bring all images to one size.")
        images.append(pixels if pixels.ndim == 3 else pixels[..., None])
        labels.append(int(label))
    channels = max((pixels.shape[2] for pixels in images), default=1)
    same = [np.repeat(pixels, channels // pixels.shape[2], 2) for pixels in images]
    stacked = torch.from_numpy(np.stack(same) if same else np.zeros((0, 1), np.uint8))
    data = Data.of((stacked.permute(0, 3, 1, 2).contiguous() if same else stacked, torch.tensor(labels)), where)
    if not sorted_by_class(data.targets):
        return data
    # Class after class, as folders are: the last rows would be no sample of the set. This order is fixed.
    return data.take(torch.randperm(len(data), generator=stream(0, "mixed order")))


def _library(module: str, package: str, where: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        missing = module.partition(".")[0] == str(problem.name).partition(".")[0]
        got = "not installed" if missing else _kind_of(problem)
    except (RuntimeError, OSError) as problem:
        # A torchvision built for another torch fails like this, with an operator that does not exist.
        got = f"installed, but it does not import: {_first_line(problem)}"
    install = f"pip install {package}"
    if package == "torchvision":
        install += f" --index-url https://download.pytorch.org/whl/cpu (it must fit torch {torch.__version__})"
    raise EnvironmentProblem(where, f"the library {package}", got, f"Install it: {install}")


def _kind(value: object) -> str:
    return f"{type(value).__name__}" + (f" of length {len(value)}" if isinstance(value, tuple | list) else "")


def _kind_of(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {_first_line(problem)}"


def _first_line(problem: BaseException) -> str:
    return (str(problem).splitlines() or ["no message"])[0][:300]
