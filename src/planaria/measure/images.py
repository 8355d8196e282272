"""Images in folders and in libraries, to raw arrays in memory; texts in the library datasets, to rows.

Libraries beyond torch and numpy are imported when needed.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from planaria.core.errors import EnvironmentProblem, InputError, nearest
from planaria.core.streams import stream
from planaria.measure.data import Data, sorted_by_class
from planaria.measure.readers import SPLITS, Raw, folder_at, kind, said

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


@dataclass(frozen=True)
class Crop:
    """How images of different sizes are brought to one, as torchvision's Resize and CenterCrop do.

    Attributes:
        size: Side of the square that is cut out around the centre; None: images stay as they are.
        resize: Shorter side before that, the other one in proportion; None: `size`.
        channels: 1 for grey, 3 for colour; None: colour if any image has it.
    """

    size: int | None = None
    resize: int | None = None
    channels: int | None = None


_AS_STORED = Crop()


def read_folder(folder: Path, crop: Crop = _AS_STORED) -> Raw:
    """Images as DIR/train/CLASS/*.png and DIR/test/CLASS/*.png, perhaps DIR/validation/CLASS/*.png.

    Classes are numbered by the sorted names of the folders in train, as torchvision's ImageFolder does; hidden folders
    (.name) are none, and images may lie in folders within. Rows are in a fixed mixed order. `val` and `valid` mean
    validation; without a test folder it is the test split.
    """
    image_library = _library("PIL.Image", "pillow", f"folder:{folder}")
    names = [path.name for path in _shown_folders(folder_at(folder_at(folder) / "train"))]
    places = {"train": folder / "train", "test": folder / "test"}
    for name in ("validation", "valid", "val"):
        if (folder / name).is_dir():
            places["validation"] = folder / name
    notes: dict[str, object] = {"classes": names, **_noted(crop)}
    if "validation" in places and not places["test"].is_dir():
        places["test"] = places.pop("validation")
        notes["test"] = f"the folder {places['test'].name}"
    splits = {}
    for part, place in places.items():
        listed: list[tuple[Path, int]] = []
        empty: list[tuple[Path, int]] = []
        for sub in _shown_folders(folder_at(place)):
            if sub.name not in names:
                raise InputError(f"{sub}", "a class that train has too", repr(sub.name), nearest(sub.name, names))
            shown = [path for path in sub.rglob("*") if not any(w[0] == "." for w in path.relative_to(sub).parts)]
            files_there = sorted(path for path in shown if path.suffix.lower() in IMAGE_SUFFIXES)
            if not files_there:
                empty.append((sub, len(shown)))
            listed += [(path, names.index(sub.name)) for path in files_there]
        if not listed:
            raise InputError(f"{place}", "images in CLASS/*.png", "none", "Make one folder per class.")
        if empty and part == "train":
            got = f"none among {empty[0][1]} files" if empty[0][1] else "none"
            remedy = "Convert them, or remove the folder: every folder in train is a class."
            raise InputError(f"{empty[0][0]}", f"images ({', '.join(IMAGE_SUFFIXES)})", got, remedy)

        def opened(rows: list[tuple[Path, int]] = listed) -> Iterator[tuple[object, object, str]]:
            for path, label in rows:
                try:
                    with image_library.open(path) as image:
                        image.load()
                        yield image, label, str(path)
                except (OSError, ValueError, SyntaxError, image_library.DecompressionBombError) as problem:
                    raise InputError(f"{path}", "an image", str(problem), "Remove or repair it.") from problem

        splits[part] = _images(opened(), str(place), crop)
    return Raw(splits, full_scale=255.0, classes=len(names), notes=notes)


def _shown_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


# ---------------------------------------------------------------------------------------------- libraries


def read_torchvision(name: str, store: Path, crop: Crop = _AS_STORED) -> Raw:
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
        splits[part] = _images(((*pair[:2], f"row {i}") for i, pair in enumerate(pairs)), f"{where} {part}", crop)
    return Raw(splits, full_scale=255.0, notes=_noted(crop))


def read_hf(spec: str, crop: Crop = _AS_STORED) -> Raw:
    """A labelled image set of the Hugging Face hub: NAME@REVISION or NAME:CONFIG@REVISION; or saved in a folder."""
    where = f"hf:{spec}"
    library, loaded, notes = _hub_set(spec, where)
    if "test" not in loaded:
        raise InputError(where, "splits train and test", list(loaded), _WRITE_A_FUNCTION)
    columns = loaded["train"].features
    x = [column for column, kind in columns.items() if isinstance(kind, library.Image)]
    y = [column for column, kind in columns.items() if isinstance(kind, library.ClassLabel)]
    if len(x) != 1 or len(y) != 1:
        remedy = f"Texts need ?tokenizer=. {_WRITE_A_FUNCTION}"
        raise InputError(where, "one column of images and one of classes", list(columns), remedy)
    splits = {}
    for part in SPLITS:
        if part in loaded:
            rows = ((row[x[0]], row[y[0]], f"row {i}") for i, row in enumerate(loaded[part]))
            splits[part] = _images(rows, f"{where} {part}", crop)
    return Raw(splits, full_scale=255.0, notes={**notes, **_noted(crop)})


def rows_of_hf(spec: str) -> tuple[dict[str, list[tuple[str, dict[str, Any]]]], dict[str, object]]:
    """Rows of a set of the Hugging Face hub by split, each with its place, and notes on where they are from."""
    where = f"hf:{spec}"
    _, loaded, notes = _hub_set(spec, where)
    parts = [part for part in SPLITS if part in loaded]
    return {
        part: [(f"{where} {part}, row {i}", dict(row)) for i, row in enumerate(loaded[part])] for part in parts
    }, notes


def _hub_set(spec: str, where: str) -> tuple[Any, Any, dict[str, object]]:
    """The library, the splits, and notes on where they are from."""
    folder = Path(spec).expanduser()
    place, at, revision = spec.rpartition("@")
    notes: dict[str, object] = {}
    if not folder.is_dir() and not (at and place and revision):
        remedy = "Name the revision: it fixes which data are meant."
        raise InputError(where, "hf:NAME@REVISION, or a folder", repr(spec), remedy)
    library = _library("datasets", "datasets", where)
    try:
        if folder.is_dir():
            loaded = library.load_from_disk(str(folder))
        else:
            name, _, config = place.partition(":")
            loaded, notes = library.load_dataset(name, config or None, revision=revision), {"revision": revision}
    except Exception as problem:
        if folder.is_dir():
            remedy = "Save it there with save_to_disk(FOLDER)."
            raise InputError(where, "a folder saved by the library datasets", said(problem), remedy) from problem
        raise _unreachable(where, problem) from problem
    if not (isinstance(loaded, Mapping) and "train" in loaded):
        got = list(loaded) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise InputError(where, "splits train and test", got, _WRITE_A_FUNCTION)
    return library, loaded, notes


_WRITE_A_FUNCTION = "Load it in a function of yours and name that: py:FILE.py:FUNCTION."


def _unreachable(where: str, problem: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        where,
        "the data set, stored or downloadable",
        said(problem),
        "Check the name and the internet connection.",
    )


_BILINEAR = 2  # PIL.Image.Resampling.BILINEAR, which averages over what it shrinks


def _noted(crop: Crop) -> dict[str, object]:
    given = {"size": crop.size, "resize": crop.resize, "channels": crop.channels}
    return {name: value for name, value in given.items() if value is not None}


def _pixels(image: Any, crop: Crop) -> np.ndarray[Any, Any]:
    """[H, W] or [H, W, 3], cut as asked."""
    grey = image.mode in ("1", "L") if crop.channels is None else crop.channels == 1
    image = image.convert("L" if grey else "RGB")
    if crop.size is None:
        return np.asarray(image)
    wide, high = image.size
    shorter = crop.resize or crop.size
    # As torchvision rounds: the longer side down, the corner of the cut to the nearest.
    sides = (shorter, int(shorter * high / wide)) if wide <= high else (int(shorter * wide / high), shorter)
    if image.size != sides:
        image = image.resize(sides, _BILINEAR)
    left, top = (round((side - crop.size) / 2.0) for side in sides)
    return np.asarray(image.crop((left, top, left + crop.size, top + crop.size)))


def _images(rows: Iterable[tuple[Any, Any, str]], where: str, crop: Crop) -> Data:
    images: list[np.ndarray[Any, Any]] = []
    labels: list[int] = []
    for image, label, name in rows:
        if not hasattr(image, "mode") or image.mode in ("I", "F") or image.mode.startswith("I;"):
            got = f"mode {image.mode}" if hasattr(image, "mode") else type(image).__name__
            raise InputError(f"{where}: {name}", "an image of 8 bits per channel", got, _WRITE_A_FUNCTION)
        if not isinstance(label, int | np.integer):
            raise InputError(f"{where}: {name}", "an integer class", kind(label), _WRITE_A_FUNCTION)
        pixels = _pixels(image, crop)
        if images and pixels.shape[:2] != images[0].shape[:2]:
            expected = f"{images[0].shape[1]} x {images[0].shape[0]} pixels as in the first image"
            got = f"{pixels.shape[1]} x {pixels.shape[0]}"
            remedy = "Bring all images to one size, for example with ?size=224."
            raise InputError(f"{where}: {name}", expected, got, remedy)
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
        got = "not installed" if missing else said(problem)
    except (RuntimeError, OSError) as problem:
        # A torchvision built for another torch fails like this, with an operator that does not exist.
        got = f"installed, but it does not import: {said(problem).partition(': ')[2]}"
    install = f"pip install {package}"
    if package == "torchvision":
        install += f" --index-url https://download.pytorch.org/whl/cpu (it must fit torch {torch.__version__})"
    raise EnvironmentProblem(where, f"the library {package}", got, f"Install it: {install}")
