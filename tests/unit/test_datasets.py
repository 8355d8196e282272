"""Tasks by name: every source, every key, and every way the data can be wrong."""

from __future__ import annotations

import gzip
import json
import lzma
import pickle
import struct
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from planaria.core.errors import EnvironmentProblem, InputError, PlanariaError, UnsafeError
from planaria.measure import datasets
from planaria.measure.datasets import data_roots, task
from planaria.measure.task import Task

RNG = np.random.default_rng(0)


# ------------------------------------------------------------------------------------------ the text form


def test_the_digits_are_split_in_order_because_writers_leak_across_a_random_split() -> None:
    digits = task("digits")
    with np.load(Path(datasets.__file__).with_name("digits.npz")) as arrays:
        images = torch.from_numpy(arrays["images"]).flatten(1) / 16
        labels = torch.from_numpy(arrays["labels"]).long()
    rows = [1069, 188, 540]
    for data, x, y in zip(digits.splits.values(), images.split(rows), labels.split(rows), strict=True):
        assert torch.equal(data.inputs, x)
        assert torch.equal(data.targets, y)
    assert (digits.classes, digits.chance) == (10, 0.1)
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)


def test_the_digits_are_those_of_scikit_learn() -> None:
    known = pytest.importorskip("sklearn.datasets").load_digits()
    with np.load(Path(datasets.__file__).with_name("digits.npz")) as arrays:
        assert np.array_equal(arrays["images"], known.images)
        assert np.array_equal(arrays["labels"], known.target)


def test_the_repr_of_a_loaded_task_evaluates_back_to_an_equal_one() -> None:
    for text in ("digits", "digits?train=50&mean=0.3&std=0.4"):
        assert eval(repr(task(text)), {"task": task}) == task(text)
    assert task("digits") != task("digits?train=50")


def test_loading_draws_nothing_from_the_global_generator(tmp_path: Path) -> None:
    save_images(tmp_path)
    before = torch.get_rng_state()
    task("digits")
    task(f"folder:{tmp_path}")
    assert torch.equal(torch.get_rng_state(), before)


def test_keys_select_rows_from_the_front_and_hold_out_validation_from_the_end() -> None:
    whole, part = task("digits"), task("digits?train=100&test=50&validation=200")
    assert [len(data) for data in part.splits.values()] == [100, 200, 50]
    assert torch.equal(part.train.inputs, whole.train.inputs[:100])
    assert torch.equal(part.test.targets, whole.test.targets[:50])
    assert torch.equal(part.validation.inputs[-188:], whole.validation.inputs)
    assert part.split == (
        "validation is the last 200 of 1257 training rows; train is the first 100 of 1057; test is the first 50 of 540"
    )


def test_a_short_test_split_keeps_all_classes() -> None:
    assert task("digits?test=3").classes == 10


def test_preprocessing_is_done_in_order_and_recorded() -> None:
    raw = task("digits?scale=raw&flat=0").train.inputs
    assert raw.shape == (1069, 1, 8, 8)
    assert float(raw.max()) == 16.0
    done = task("digits?mean=0.3&std=0.5")
    assert torch.allclose(done.train.inputs, ((raw / 16 - 0.3) / 0.5).flatten(1))
    assert done.record()["preprocessing"] == {"divided_by": 16.0, "flat": True, "mean": [0.3], "std": [0.5]}
    json.dumps(done.record(), allow_nan=False)
    assert done.name == "digits?mean=0.3&std=0.5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digit", "Did you mean digits"),
        ("mnits", "Did you mean mnist"),
        ("", "a known task"),
        ("some.npz", "Write npz:some.npz"),
        ("mine.py:load", "Write py:mine.py:load"),
        ("nzp:some", "Did you mean npz"),
        ("npz:", "npz:FILE"),
        ("digits?", "known keys after '?'"),
        ("digits?trian=5", "Did you mean train"),
        ("digits?train=5&train=6", "train once"),
        ("digits?train=0", "a whole number above 0, got '0'"),
        ("digits?train=-1", "a whole number above 0"),
        ("digits?train=1e3", "a whole number above 0"),
        ("digits?train", "a whole number above 0, got ''"),
        ("digits?train=1070", "at most 1069 rows, got 1070"),
        ("digits?test=541", "at most 540 rows"),
        ("digits?validation=1257", "validation"),
        ("digits?scale=255", "unit or raw"),
        ("digits?flat=yes", "0 or 1"),
        ("digits?mean=", "a number"),
        ("digits?mean=nan", "a number"),
        ("digits?mean=1,2", "1 number, got 2"),
        ("digits?std=0", "numbers above 0"),
        ("digits?std=-1", "numbers above 0"),
        ("digits?classes=9", "labels from 0 to 8, got 9 at index 9"),
        ("hf:mnist", "hf:NAME@REVISION"),
        ("py:nothing", "package.module:name or path/file.py:name"),
    ],
)
def test_a_wrong_text_is_refused_with_what_is_right(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        task(text)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@given(st.text(alphabet="digts?=&:.,nrapzxyf01-/ ", max_size=25))
@settings(deadline=None, max_examples=150)
def test_any_text_gives_a_task_or_an_explained_error(text: str) -> None:
    try:
        assert isinstance(task(text), Task)
    except PlanariaError as problem:
        assert "expected" in str(problem)


def test_rows_sorted_by_class_are_refused_under_the_name_of_the_task(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz", y_train=np.arange(40) // 10)
    with pytest.raises(InputError, match=r"task 'npz:.*a\.npz', train: .* sorted by class"):
        task(f"npz:{tmp_path / 'a.npz'}")


# -------------------------------------------------------------------------------------------- npz files


def save_npz(path: Path, **changes: object) -> None:
    arrays = {
        "x_train": RNG.normal(size=(40, 3)),
        "y_train": np.arange(40) % 4,
        "x_test": RNG.normal(size=(8, 3)),
        "y_test": np.arange(8) % 4,
    } | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})  # type: ignore[arg-type]


def test_npz_arrays_become_a_classification_or_with_float_targets_a_regression(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz", x_validation=np.ones((5, 3)), y_validation=np.zeros((5, 1), np.int32))
    loaded = task(f"npz:{tmp_path / 'a.npz'}")
    assert loaded.train.inputs.dtype == torch.float32
    assert [len(data) for data in loaded.splits.values()] == [40, 5, 8]
    assert (loaded.classes, loaded.scorer.name, loaded.split) == (4, "accuracy", "validation as given")
    save_npz(tmp_path / "b.npz", y_train=RNG.normal(size=40), y_test=RNG.normal(size=8))
    loaded = task(f"npz:{tmp_path / 'b.npz'}")
    assert (loaded.classes, loaded.scorer.name, loaded.record()["loss"]) == (None, "r2", "mse")
    assert len(loaded.validation) == 4


def test_npz_images_get_channels_in_front_and_are_scaled(tmp_path: Path) -> None:
    grey, colour = (RNG.integers(0, 256, (40, 6, 5, *tail), np.uint8) for tail in ((), (3,)))
    save_npz(tmp_path / "grey.npz", x_train=grey, x_test=grey[:8])
    loaded = task(f"npz:{tmp_path / 'grey.npz'}")
    assert torch.equal(loaded.test.inputs, torch.from_numpy(grey[:8, None]).float() / 255)
    save_npz(tmp_path / "colour.npz", x_train=colour, x_test=colour[:8])
    loaded = task(f"npz:{tmp_path / 'colour.npz'}?scale=raw&mean=1,2,3")
    shift = torch.tensor([1.0, 2.0, 3.0])
    expected = torch.from_numpy(colour[:8]).float() - shift
    assert torch.equal(loaded.test.inputs, expected.permute(0, 3, 1, 2))
    assert loaded.preprocessing["layout"] == "channels moved to the front"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.full((40, 3), np.nan)}, "train.inputs: expected finite numbers, got 120 NaN or Inf"),
        ({"y_test": np.full(8, np.inf), "y_train": np.zeros(40)}, "test.targets: expected finite numbers"),
        ({"x_train": np.zeros((0, 3)), "y_train": np.zeros(0)}, "at least one row"),
        ({"x_test": np.zeros((8, 4))}, "Task.test.inputs: expected rows of shape [3] as in train, got [4]"),
        ({"x_train": np.zeros(40), "x_test": np.zeros(8)}, "2 dimensions or more, got [40]"),
        ({"y_train": np.arange(39) % 4}, "40 inputs and 39 targets"),
        ({"y_train": np.eye(4, dtype=int)[np.arange(40) % 4]}, "argmax(1)"),
        ({"y_train": np.arange(40) % 4 - 1}, "train.targets: expected labels from 0, got -1 at index 0"),
        ({"x_train": np.array(["a"] * 40)}, "x_train: expected an array of numbers"),
        ({"x_test": None}, "expected an array x_test"),
        ({"y_validation": np.zeros(3)}, "expected an array x_validation"),
        ({"x_valid": np.zeros(3)}, "Did you mean x_validation"),
        ({"x_train": np.float64(3)}, "x_train: expected an array of numbers"),
        ({"labels_train": np.arange(40) % 4}, "targets under one name, got y and labels"),
        ({"train.x": np.zeros((40, 3))}, "one array x for train, got a second one, train.x"),
        ({"train.mask": np.zeros((40, 3))}, "expected an array test.mask, got only x_train, y_train"),
        ({"train.x2": np.zeros((39, 3)), "test.x2": np.zeros((8, 3))}, "x: 40, x2: 39"),
        ({"x": np.zeros(3)}, "Or SPLIT.NAME, such as train.input_ids and test.labels"),
    ],
)
def test_npz_arrays_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    save_npz(tmp_path / "a.npz", **changes)
    with pytest.raises(InputError) as caught:
        task(f"npz:{tmp_path / 'a.npz'}")
    assert message in str(caught.value)


def tokenised(spelling: str, labels: str | None = "labels") -> dict[str, np.ndarray[Any, Any]]:
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for part, rows in (("train", 40), ("test", 8)):
        columns: dict[str, np.ndarray[Any, Any]] = {
            "input_ids": np.arange(rows * 6, dtype=np.int32).reshape(rows, 6) % 9
        }
        columns["attention_mask"] = np.ones((rows, 6), bool)
        if labels is not None:
            columns[labels] = np.arange(rows) % 4
        arrays |= {spelling.format(part=part, entry=entry): array for entry, array in columns.items()}
    return arrays


def test_npz_entries_of_other_names_are_the_arguments_of_the_network(tmp_path: Path) -> None:
    loaded = []
    for spelling, labels in (("{part}.{entry}", "labels"), ("{part}_{entry}", "y"), ("{entry}_{part}", "label")):
        np.savez(tmp_path / "a.npz", **tokenised(spelling, labels))  # type: ignore[arg-type]
        loaded.append(task(f"npz:{tmp_path / 'a.npz'}"))
    assert len({made.train.sha256 for made in loaded}) == 1
    layout = loaded[0].train.layout
    assert layout is not None
    assert [(part.name, part.shape, part.dtype) for part in layout.parts] == [
        ("attention_mask", (6,), torch.bool),
        ("input_ids", (6,), torch.int64),
    ]
    assert (loaded[0].classes, [len(data) for data in loaded[0].splits.values()]) == (4, [36, 4, 8])
    with pytest.raises(InputError, match="flat: expected inputs that are one tensor"):
        task(f"npz:{tmp_path / 'a.npz'}?flat=1")


def test_npz_labels_may_be_one_per_position(tmp_path: Path) -> None:
    arrays = {name: array for name, array in tokenised("{part}.{entry}", None).items() if "input" in name}
    arrays["train.labels"], arrays["test.labels"] = arrays["train.input_ids"] % 3, arrays["test.input_ids"] % 3
    arrays["test.labels"][:, -1] = -100
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    loaded = task(f"npz:{tmp_path / 'a.npz'}?score=f1")
    assert (loaded.classes, loaded.test.targets.shape) == (3, (8, 6))
    assert bool((loaded.test.targets[:, -1] == -100).all())


class Trap:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_pickled_objects_in_npz_are_refused_unrun(tmp_path: Path) -> None:
    objects = np.empty(40, object)
    objects[:] = [Trap(tmp_path / "sprung")] * 40
    save_npz(tmp_path / "a.npz", y_train=objects)
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(UnsafeError, match="pickled Python objects") as caught:
            task(f"npz:{tmp_path / name}")
        assert caught.value.exit_code == 4
    assert not (tmp_path / "sprung").exists()


def test_damaged_npz_files_are_refused(tmp_path: Path) -> None:
    save_npz(tmp_path / "good.npz")
    whole = (tmp_path / "good.npz").read_bytes()
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    for name, content in (("cut.npz", whole[:-50]), ("empty.npz", b""), ("text.npz", b"words")):
        (tmp_path / name).write_bytes(content)
    for name in ("cut.npz", "empty.npz", "text.npz", "single.npz", "missing.npz", ""):
        with pytest.raises(PlanariaError, match=r"npz:"):
            task(f"npz:{tmp_path / name}")


def test_an_npz_header_that_claims_a_giant_array_is_refused(tmp_path: Path) -> None:
    import io
    import zipfile

    header = io.BytesIO()
    shape = (10**14,)
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x_train.npy", header.getvalue())
    with pytest.raises(InputError, match=r"a \.npz file"):
        task(f"npz:{tmp_path / 'a.npz'}")


# ----------------------------------------------------------------------------------- idx and CIFAR files


def idx_bytes(array: np.ndarray[Any, Any]) -> bytes:
    kind = {"uint8": 0x08, "int32": 0x0C, "float32": 0x0D}[array.dtype.name]
    head = struct.pack(">BBBB", 0, 0, kind, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def save_idx(folder: Path, stems: str = "{}-images-idx3-ubyte {}-labels-idx1-ubyte", ending: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for prefix, rows in (("train", 50), ("t10k", 10)):
        images, labels = stems.format(prefix, prefix).split()
        contents = rng.integers(0, 256, (rows, 6, 5), np.uint8), (np.arange(rows) % 10).astype(np.uint8)
        for name, array in zip((images, labels), contents, strict=True):
            content = idx_bytes(array)
            (folder / (name + ending)).write_bytes(gzip.compress(content) if ending else content)


def test_idx_files_read_the_same_in_all_their_spellings(tmp_path: Path) -> None:
    save_idx(tmp_path / "a")
    save_idx(tmp_path / "b", ending=".gz")
    save_idx(tmp_path / "c", "{}-images.idx3-ubyte {}-labels.idx1-ubyte")
    loaded = [task(f"idx:{tmp_path / name}") for name in "abc"]
    assert loaded[0].train.inputs.shape == (45, 1, 6, 5)
    assert len({made.train.sha256 + made.test.sha256 for made in loaded}) == 1
    assert 0.9 < float(loaded[0].train.inputs.max()) <= 1.0
    assert task(f"idx:{tmp_path / 'a'}?flat=1").train.inputs.shape == (45, 30)


def test_damaged_idx_files_are_refused_by_name(tmp_path: Path) -> None:
    def broken(name: str, content: bytes) -> str:
        save_idx(tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            task(f"idx:{tmp_path}")
        assert name in str(caught.value)
        return str(caught.value)

    images, labels = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
    whole = idx_bytes(np.zeros((50, 6, 5), np.uint8))
    assert "cut off" in broken(images, whole[:-1])
    assert "cut off" in broken(images, whole[:9])
    assert "cut off" in broken(images, whole[:4] + b"\xff" * 12 + whole[16:])
    assert "idx format" in broken(images, b"")
    assert "idx format" in broken(images, b"\1" + whole[1:])
    assert "one label per image" in broken(labels, idx_bytes(np.zeros((50, 1), np.uint8)))


def test_damaged_compression_is_refused_by_name(tmp_path: Path) -> None:
    save_idx(tmp_path, ending=".gz")
    whole = (tmp_path / "train-images-idx3-ubyte.gz").read_bytes()
    for content in (b"no gzip", whole[:-10], whole[:100] + b"\0" * 20 + whole[120:]):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
        with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz: expected"):
            task(f"idx:{tmp_path}")


def test_labels_and_images_of_different_number_are_refused(tmp_path: Path) -> None:
    save_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(9, np.uint8)))
    with pytest.raises(InputError, match="10 inputs and 9 targets"):
        task(f"idx:{tmp_path}")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train-images-idx3-ubyte"):
        task(f"idx:{tmp_path}")
    with pytest.raises(InputError, match="expected a folder, got nothing"):
        task(f"idx:{tmp_path / 'no'}")
    with pytest.raises(InputError, match="data_batch_N"):
        task(f"cifar:{tmp_path}")


def save_cifar(folder: Path, parts: tuple[int, ...], ending: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in [*((f"data_batch_{n}", 20 + n) for n in parts), ("test_batch", 10)]:
        rng = np.random.default_rng(rows)
        body = rng.integers(0, 256, (rows, 3073), np.uint8)
        body[:, 0] = np.arange(rows) % 10
        content = body.tobytes()
        (folder / f"{name}.bin{ending}").write_bytes(lzma.compress(content, preset=0) if ending else content)


def test_cifar_reads_as_many_training_batches_as_there_are(tmp_path: Path) -> None:
    save_cifar(tmp_path / "a", (1, 2))
    save_cifar(tmp_path / "b", (1, 2), ".xz")
    loaded, packed = (task(f"cifar:{tmp_path / name}?scale=raw") for name in "ab")
    assert (len(loaded.train) + len(loaded.validation), len(loaded.test)) == (43, 10)
    assert loaded.train.inputs.shape[1:] == (3, 32, 32)
    assert loaded.train.sha256 == packed.train.sha256
    body = np.frombuffer((tmp_path / "a" / "test_batch.bin").read_bytes(), np.uint8).reshape(10, 3073)
    assert float(loaded.test.inputs[4, 2, 1, 7]) == body[4, 1 + 2 * 1024 + 32 + 7]
    assert loaded.preprocessing["training_files"] == ["data_batch_1.bin", "data_batch_2.bin"]


def test_cifar_files_of_a_wrong_length_are_refused(tmp_path: Path) -> None:
    save_cifar(tmp_path, (1,))
    for content in (b"", b"\0" * 3072):
        (tmp_path / "test_batch.bin").write_bytes(content)
        with pytest.raises(InputError, match=r"test_batch\.bin: expected rows of 3073 bytes"):
            task(f"cifar:{tmp_path}")


# ---------------------------------------------------------------------------------------- image folders


def save_images(folder: Path, size: tuple[int, int] = (5, 4), mode: str = "RGB", classes: str = "ab") -> None:
    rng = np.random.default_rng(2)
    for part, rows in (("train", 15), ("test", 3)):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for i in range(rows):
                shape = size[::-1] if mode == "L" else (*size[::-1], 3)
                pixels = rng.integers(0, 256, shape, np.uint8)
                Image.fromarray(pixels, mode).save(folder / part / name / f"{i}.png")


def test_a_folder_of_images_is_read_in_a_fixed_mixed_order(tmp_path: Path) -> None:
    save_images(tmp_path)
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    loaded = task(f"folder:{tmp_path}")
    assert loaded.train.inputs.shape == (27, 3, 4, 5)
    assert loaded == task(f"folder:{tmp_path}")
    assert loaded.preprocessing["classes"] == ["a", "b"]
    assert sorted(loaded.test.targets.tolist()) == [0, 0, 0, 1, 1, 1]
    assert 0 < int(loaded.validation.targets.sum() + loaded.train.targets[:5].sum()) < 8
    image = np.array(Image.open(tmp_path / "test" / "b" / "0.png"))
    assert any(torch.equal(x, torch.from_numpy(image).permute(2, 0, 1) / 255) for x in loaded.test.inputs)


def test_grey_images_have_one_channel_and_mixed_ones_three(tmp_path: Path) -> None:
    save_images(tmp_path / "grey", mode="L")
    assert task(f"folder:{tmp_path / 'grey'}").train.inputs.shape[1:] == (1, 4, 5)
    save_images(tmp_path / "mixed")
    Image.new("L", (5, 4), 255).save(tmp_path / "mixed" / "train" / "a" / "grey.png")
    assert task(f"folder:{tmp_path / 'mixed'}").train.inputs.shape[1:] == (3, 4, 5)


def test_images_of_different_sizes_are_cut_around_their_centre(tmp_path: Path) -> None:
    save_images(tmp_path, (8, 6), classes="a")
    for part in ("train", "test"):
        (tmp_path / part / "b").mkdir()
        Image.new("L", (30, 40), 51).save(tmp_path / part / "b" / "grey.png")
    loaded = task(f"folder:{tmp_path}?size=6")
    assert loaded.train.inputs.shape[1:] == (3, 6, 6)
    assert loaded.preprocessing["size"] == 6
    image = torch.from_numpy(np.array(Image.open(tmp_path / "test" / "a" / "0.png")))
    cut = image.permute(2, 0, 1)[:, :, 1:7] / 255  # the shorter side is 6 already
    assert any(torch.equal(x, cut) for x in loaded.test.inputs)
    assert torch.allclose(loaded.test.inputs[loaded.test.targets == 1], torch.tensor(0.2))
    assert task(f"folder:{tmp_path}?size=4&resize=9&channels=1").train.inputs.shape[1:] == (1, 4, 4)
    for keys, message in (
        ("resize=9", "resize beside a size that is not larger, got no size"),
        ("size=9&resize=4", "got resize=4 below size=9"),
        ("size=9&channels=2", "1 (grey) or 3 (colour), got '2'"),
    ):
        with pytest.raises(InputError) as caught:
            task(f"folder:{tmp_path}?{keys}")
        assert message in str(caught.value)
    with pytest.raises(InputError, match="size with folder:DIR"):
        task("digits?size=4")


def test_image_folders_may_nest_hold_hidden_folders_and_call_their_test_split_val(tmp_path: Path) -> None:
    save_images(tmp_path)
    (tmp_path / "test").rename(tmp_path / "val")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    deeper = tmp_path / "train" / "a" / "deeper"
    deeper.mkdir()
    (tmp_path / "train" / "a" / "0.png").rename(deeper / "0.png")
    loaded = task(f"folder:{tmp_path}")
    assert [len(data) for data in loaded.splits.values()] == [27, 3, 6]
    assert loaded.preprocessing["classes"] == ["a", "b"]
    assert loaded.preprocessing["test"] == "the folder val"
    save_images(tmp_path / "more")
    (tmp_path / "val").rename(tmp_path / "more" / "val")
    assert [len(data) for data in task(f"folder:{tmp_path / 'more'}").splits.values()] == [30, 6, 6]


def test_image_folders_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    save_images(tmp_path / "a")
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "train" / "b" / "big.png")
    with pytest.raises(InputError, match=r"\.png: expected \d x \d pixels as in the first image"):
        task(f"folder:{tmp_path / 'a'}")
    save_images(tmp_path / "b")
    (tmp_path / "b" / "test" / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"0\.png: expected an image"):
        task(f"folder:{tmp_path / 'b'}")
    save_images(tmp_path / "c")
    (tmp_path / "c" / "test" / "cat").mkdir()
    with pytest.raises(InputError, match="a class that train has too, got 'cat'"):
        task(f"folder:{tmp_path / 'c'}")
    save_images(tmp_path / "d")
    Image.fromarray(np.full((4, 5), 40000, np.uint16)).save(tmp_path / "d" / "train" / "a" / "deep.png")
    with pytest.raises(InputError, match="8 bits per channel"):
        task(f"folder:{tmp_path / 'd'}")
    (tmp_path / "e" / "train" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="images in CLASS"):
        task(f"folder:{tmp_path / 'e'}")
    save_images(tmp_path / "f")
    (tmp_path / "f" / "train" / "cat").mkdir()
    (tmp_path / "f" / "train" / "cat" / "one.heic").write_bytes(b"a format that is not read")
    with pytest.raises(InputError, match=r"train/cat: expected images \(.*\), got none among 1 files"):
        task(f"folder:{tmp_path / 'f'}")
    (tmp_path / "f" / "train" / "cat" / ".thumbnails").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "f" / "train" / "cat" / ".thumbnails" / "one.png")
    with pytest.raises(InputError, match="got none among 1 files"):  # nor in hidden folders
        task(f"folder:{tmp_path / 'f'}")


# ---------------------------------------------------------------------------- well-known sets by name


def test_well_known_names_are_found_in_data_dir_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_idx(tmp_path / "one" / "mnist")
    save_idx(tmp_path / "two" / "mnist", ending=".gz")
    save_cifar(tmp_path / "two" / "cifar10", (1,), ".xz")
    monkeypatch.setenv("PLANARIA_DATA", str(tmp_path / "two"))
    assert data_roots(str(tmp_path / "one")) == [tmp_path / "one", tmp_path / "two"]
    assert task("mnist").train.inputs.shape[1:] == (1, 6, 5)
    assert len(task("cifar10").test) == 10
    (tmp_path / "two" / "mnist" / "train-labels-idx1-ubyte.gz").unlink()
    assert len(task("mnist", data_dir=str(tmp_path / "one")).test) == 10
    with pytest.raises(InputError, match="train-labels-idx1-ubyte"):
        task("mnist")
    with pytest.raises(InputError, match="--data-dir: expected a folder"):
        task("mnist", data_dir=str(tmp_path / "three"))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_a_missing_well_known_set_says_in_one_message_how_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "DEBIAN_FASHION", tmp_path / "debian")
    monkeypatch.delenv("PLANARIA_DATA", raising=False)
    save_idx(tmp_path / "other")
    with pytest.raises(EnvironmentProblem) as caught:
        task(name, data_dir=str(tmp_path))
    message = str(caught.value)
    assert all(word in message for word in (name, str(tmp_path), "PLANARIA_DATA", "--data-dir", "torchvision:"))
    assert caught.value.exit_code == 5


def test_fashion_mnist_is_found_in_the_folder_of_its_debian_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_idx(tmp_path, ending=".gz")
    monkeypatch.setattr(datasets, "DEBIAN_FASHION", tmp_path)
    monkeypatch.delenv("PLANARIA_DATA", raising=False)
    assert len(task("fashion-mnist").test) == 10


# --------------------------------------------------------------------------------------------- libraries


@pytest.mark.parametrize(
    ("text", "library", "install"),
    [
        ("torchvision:MNIST", "torchvision", "pip install torchvision --index-url"),
        ("hf:ylecun/mnist@main", "datasets", "pip install datasets"),
        ("folder:.", "PIL", "pip install pillow"),
    ],
)
def test_a_missing_library_is_named_with_its_install_line(
    text: str, library: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(EnvironmentProblem, match="not installed") as caught:
        task(text)
    assert install in str(caught.value)


def test_a_torchvision_built_for_another_torch_is_told_from_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(EnvironmentProblem, match="does not import: operator torchvision::nms") as caught:
        task("torchvision:MNIST")
    assert torch.__version__ in str(caught.value)


def pictures(rows: int) -> list[tuple[Image.Image, int]]:
    return [(Image.new("L", (5, 4), 10 * i), i % 2) for i in range(rows)]


class Pictures:
    """Stands for a data set of torchvision; it records how it was asked."""

    asked: list[tuple[object, ...]] = []  # noqa: RUF012

    def __init__(self, root: str, train: bool = True, transform: object = None, download: bool = False) -> None:
        self.asked.append((root, train, download))
        self.rows = pictures(20 if train else 4)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.rows[index]


class Splits(Pictures):
    """The other of torchvision's two signatures."""

    def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
        self.rows = pictures({"train": 30, "test": 5}[split])


class Offline(Pictures):
    """A data set that cannot be reached."""

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        raise OSError("no route to host")


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package, module = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    for made in (Pictures, Splits, Offline):
        setattr(module, made.__name__, made)
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    Pictures.asked.clear()
    yield


@pytest.mark.usefixtures("torchvision")
def test_torchvision_sets_become_tensors(tmp_path: Path) -> None:
    loaded = task("torchvision:Pictures?scale=raw", data_dir=str(tmp_path))
    assert Pictures.asked == [(str(tmp_path), True, True), (str(tmp_path), False, True)]
    assert loaded.train.inputs.shape == (18, 1, 4, 5)
    assert loaded.test.inputs[:, 0, 0, 0].tolist() == [0.0, 10.0, 20.0, 30.0]
    assert len(task("torchvision:Splits", data_dir=str(tmp_path)).test) == 5
    with pytest.raises(InputError, match="Did you mean Pictures"):
        task("torchvision:Picture")
    with pytest.raises(EnvironmentProblem, match="OSError: no route to host"):
        task("torchvision:Offline")


def test_hugging_face_sets_become_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows(list[dict[str, object]]):
        features: dict[str, object]

    library = types.ModuleType("datasets")
    library.Image, library.ClassLabel = type("Image", (), {}), type("ClassLabel", (), {})  # type: ignore[attr-defined]
    asked: list[object] = []

    def load_dataset(name: str, config: str | None, revision: str) -> dict[str, Rows]:
        asked.append((name, config, revision))
        if name == "gone":
            raise ConnectionError("offline")
        made = {}
        for part, count in (("train", 30), ("test", 4)):
            made[part] = Rows({"pic": image, "kind": label} for image, label in pictures(count))
            made[part].features = {"pic": library.Image(), "kind": library.ClassLabel()}
            if name == "text":
                made[part].features = {"text": object(), "kind": library.ClassLabel()}
        return made

    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    loaded = task("hf:org/pics:small@abc123")
    assert asked == [("org/pics", "small", "abc123")]
    assert (loaded.test.inputs.shape, loaded.classes) == ((4, 1, 4, 5), 2)
    assert loaded.preprocessing["revision"] == "abc123"
    with pytest.raises(EnvironmentProblem, match="ConnectionError: offline"):
        task("hf:gone@main")
    with pytest.raises(InputError, match=r"one column of images.*Texts need \?tokenizer="):
        task("hf:text@main")


def test_texts_of_hugging_face_sets_become_tokens_by_the_keys_of_texts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = types.ModuleType("datasets")
    rows = [{"sentence": f"row {i}", "label": i % 2, "idx": i} for i in range(30)]

    def load_dataset(name: str, config: str | None, revision: str) -> object:
        return {"train": rows, "test": rows[:4]} if name == "mine" else rows

    def load_from_disk(folder: str) -> object:
        if not (Path(folder) / "state.json").is_file():
            raise FileNotFoundError("no data set there")
        return {"train": rows}

    library.load_dataset, library.load_from_disk = load_dataset, load_from_disk  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    loaded = task("hf:mine@abc?tokenizer=words&text=sentence")
    assert ([len(data) for data in loaded.splits.values()], loaded.classes) == ([27, 3, 4], 2)
    assert (loaded.preprocessing["revision"], loaded.preprocessing["goal"]) == ("abc", "class")
    (tmp_path / "state.json").touch()
    assert len(task(f"hf:{tmp_path}?tokenizer=words&text=sentence").test) == 6
    for text, message in (
        ("hf:mine@abc?tokenizer=words", "hf:mine@abc train, row 0: expected a column 'text'"),
        ("hf:single@abc?tokenizer=words", "splits train and test, got list"),
        (f"hf:{tmp_path.parent}?tokenizer=words", "a folder saved by the library datasets"),
        ("hf:mine@abc?text=sentence", "tokenizer=chars, tokenizer=words or tokenizer=FOLDER"),
    ):
        with pytest.raises(InputError) as caught:
            task(text)
        assert message in str(caught.value)


# --------------------------------------------------------------------------------------------- user code

USER = """
import torch
import neighbour
from torch.utils.data import DataLoader, TensorDataset
from planaria.measure.task import Data, Task

X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(30) % 3

def pair(): return (X, Y), (X[:6], Y[:6])
def triple(): return Data(X, Y), Data(X[:5], Y[:5]), Data(X[:6], Y[:6])
def loaders(): return [DataLoader(TensorDataset(X, Y), batch_size=7), TensorDataset(X[:6], Y[:6])]
def regression(): return (X, X.sum(1, keepdim=True)), (X, X.sum(1, keepdim=True))
def ready(): return Task.of("other name", (X, Y), (X[:6], Y[:6]), validation=(X[:5], Y[:5]))
def absolute(outputs, targets): return (outputs - targets).abs().mean()
def closeness(outputs, targets): return float(-(outputs - targets).abs().mean())
def full():
    same = (X, X)
    return {"train": same, "test": same, "validation": same, "loss": absolute, "score": closeness}

def scored(): return {"train": (X, X), "test": (X, X), "score": "r2"}
def tokens(): return (Y[:, None].repeat(1, 4), Y), (Y[:6, None].repeat(1, 4), Y[:6])
def nothing(): return None
def alone(): return X
def four(): return 1, 2, 3, 4
def typo(): return {"train": (X, Y), "tset": (X, Y)}
def untested(): return {"train": (X, Y)}
def bad_loss(): return {"train": (X, Y), "test": (X, Y), "loss": "mes"}
def bad_classes(): return {"train": (X, Y), "test": (X, Y), "classes": 2}
def needs(argument): return pair()
def fails(): raise KeyError("lost")
def leaves(): raise SystemExit(3)
constant = 5
"""


@pytest.fixture
def user(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(USER)
    (tmp_path / "neighbour.py").write_text("")
    return f"py:{tmp_path / 'mine.py'}"


def test_user_functions_may_return_splits_in_every_form(user: str) -> None:
    sizes = {
        name: [len(data) for data in task(f"{user}:{name}").splits.values()]
        for name in ("pair", "triple", "loaders", "regression", "ready", "full", "tokens")
    }
    assert sizes == {
        "pair": [27, 3, 6],
        "triple": [30, 5, 6],
        "loaders": [27, 3, 6],
        "regression": [27, 3, 30],
        "ready": [30, 5, 6],
        "full": [30, 30, 30],
        "tokens": [27, 3, 6],
    }
    assert task(f"{user}:pair").train.sha256 == task(f"{user}:loaders").train.sha256


def test_user_functions_may_bring_any_loss_and_score(user: str) -> None:
    full = task(f"{user}:full")
    assert (full.record()["loss"], full.scorer.name, full.classes) == ("absolute", "closeness", None)
    assert full.score(lambda x: x + 1) == pytest.approx(-1.0)
    scored = task(f"{user}:scored")
    assert (scored.record()["loss"], scored.scorer.name, scored.output_size) == ("mse", "r2", 3)
    assert task(f"{user}:regression").score(lambda x: x.sum(1)) == 1.0


def test_keys_apply_to_user_data_and_tokens_stay_integers(user: str) -> None:
    assert len(task(f"{user}:pair?train=10&test=2").train) == 10
    assert torch.allclose(task(f"{user}:pair?mean=1").test.inputs, task(f"{user}:pair").test.inputs - 1)
    assert task(f"{user}:tokens").train.inputs.dtype == torch.int64
    assert task(f"{user}:tokens?scale=raw").train.inputs.dtype == torch.float32
    assert task(f"{user}:ready?train=3").name.endswith("mine.py:ready?train=3")


def test_preprocessing_leaves_the_users_tensors_alone(user: str) -> None:
    task(f"{user}:pair?mean=1&std=2")
    module = next(module for name, module in sys.modules.items() if name.startswith("planaria_user_mine"))
    assert torch.equal(module.X, torch.randn(30, 3, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "a Task, (train, test)"),
        ("alone", "got Tensor"),
        ("four", "got tuple of length 4"),
        ("typo", "Did you mean test"),
        ("untested", "a dict with 'test'"),
        ("bad_loss", "Did you mean mse"),
        ("bad_classes", "labels from 0 to 1, got 2 at index 2"),
        ("needs", "TypeError"),
        ("fails", "KeyError: 'lost'"),
        ("leaves", "SystemExit"),
        ("constant", "a function, got constant of type int"),
        ("pairs", "Did you mean pair"),
    ],
)
def test_what_user_functions_get_wrong_is_explained(user: str, name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        task(f"{user}:{name}")
    assert message in str(caught.value)
    assert f"{name}" in str(caught.value)


def test_user_modules_that_do_not_import_are_explained(tmp_path: Path) -> None:
    for name, text in (("broken", "def :"), ("missing", "import nowhere_to_be_found"), ("raises", "1 / 0")):
        (tmp_path / f"{name}.py").write_text(text)
    for spec, message in (
        (f"{tmp_path}/broken.py:f", "SyntaxError"),
        (f"{tmp_path}/missing.py:f", "No module named 'nowhere_to_be_found'"),
        (f"{tmp_path}/raises.py:f", "ZeroDivisionError"),
        (f"{tmp_path}/absent.py:f", "no file"),
        ("nowhere.to.be.found:f", "no module 'nowhere'"),
        ("json.absent:f", "no module 'json.absent'"),
    ):
        with pytest.raises(InputError) as caught:
            task(f"py:{spec}")
        assert message in str(caught.value)
    assert not any(name.startswith("planaria_user_raises") for name in sys.modules)


def test_modules_in_the_working_folder_are_found_and_the_path_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here_only.py").write_text(USER.replace("import neighbour", ""))
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert len(task("py:here_only:pair").test) == 6
    assert sys.path == before
    monkeypatch.delitem(sys.modules, "here_only")


# --------------------------------------------------------------------------------------------- real data


def test_mnist_is_loaded_in_full(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANARIA_DATA", str(data_root))
    mnist = task("mnist")
    assert [len(data) for data in mnist.splits.values()] == [55_000, 5_000, 10_000]
    assert mnist.train.inputs.shape[1:] == (1, 28, 28)
    assert mnist.test.targets[:5].tolist() == [7, 2, 1, 0, 4]
    assert float(mnist.train.inputs.mean()) == pytest.approx(0.1307, abs=5e-4)
    assert mnist.chance == pytest.approx(0.1)


def test_the_loaders_import_no_library_before_it_is_needed() -> None:
    code = (
        "import sys; from planaria.measure.datasets import task; task('digits');"
        "loaded = {name.partition('.')[0] for name in sys.modules};"
        "print(*{'PIL', 'torchvision', 'datasets', 'sklearn', 'scipy'} & loaded)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
