"""Data: inputs and their targets, checked when made, from whatever holds pairs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planaria.core.errors import InputError
from planaria.core.port import LABELS, Inputs, Layout
from planaria.core.trees import digest
from planaria.measure.labels import IGNORED, counting


def _not_finite(tensor: Tensor) -> int:
    if not tensor.is_floating_point() or math.isfinite(float(tensor.sum())):
        return 0  # a sum is finite only if every term is; the count below costs ten times as much
    return int((~tensor.isfinite()).sum())


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Inputs and their targets, row by row; checked when made.

    Args:
        inputs: Tensor [N, ...].
        targets: Tensor [N, ...]. Integer targets are kept as int64.
        layout: How the tensors that a model takes lie side by side in `inputs`; None if it takes one tensor.

    Raises:
        InputError: Not tensors, no rows, different lengths, or NaN / Inf.

    Not guaranteed: the tensors are not copied; changing them in place falsifies the hashes.

    Example:
        >>> import torch
        >>> data = Data(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
        >>> len(data), len(data.take(3)), data.take([0, 2]).targets.tolist()
        (4, 3, [0, 0])
    """

    inputs: Tensor
    targets: Tensor
    layout: Layout | None = None

    def __post_init__(self) -> None:
        for name, tensor in (("inputs", self.inputs), ("targets", self.targets)):
            if not isinstance(tensor, Tensor):
                raise InputError(
                    f"Data.{name}",
                    "a tensor",
                    type(tensor).__name__,
                    "Use Data.of(...) for arrays and loaders.",
                )
            if tensor.ndim == 0 or tensor.numel() == 0:
                raise InputError(
                    f"Data.{name}",
                    "at least one row",
                    f"shape {list(tensor.shape)}",
                    "Give data that is not empty.",
                )
            if bad := _not_finite(tensor):
                raise InputError(
                    f"Data.{name}",
                    "finite numbers",
                    f"{bad} NaN or Inf among {tensor.numel()}",
                    "Clean the data before planaria measures anything on it.",
                )
        if len(self.inputs) != len(self.targets):
            raise InputError(
                "Data",
                "as many targets as inputs",
                f"{len(self.inputs)} inputs and {len(self.targets)} targets",
                "Pair each input with one target.",
            )
        object.__setattr__(self, "inputs", self.inputs.detach())
        targets = self.targets.detach()
        object.__setattr__(self, "targets", targets if targets.is_floating_point() else targets.long())

    @staticmethod
    def of(source: object, where: str = "data") -> Data:
        """Data from whatever holds pairs: Data, (inputs, targets), a Dataset, or the batches of a DataLoader.

        Args:
            source: Data; a pair of tensors, arrays or lists; an object with `__getitem__` and `__len__` that
                gives (input, target); or an iterable of (inputs, targets) batches, which are concatenated. Inputs that
                are a tuple or a mapping of tensors are the positional or keyword arguments of a model that takes
                several. Instead of (inputs, targets), a mapping may hold the targets under "labels", as Hugging Face
                has them.
            where: Name for error messages.

        Returns:
            The data, in memory. numpy's float64 becomes torch's default dtype; tensors keep theirs.

        Raises:
            InputError: None of these, or not usable as `Data`.

        Example:
            >>> Data.of(([[0.0, 1.0], [2.0, 3.0]], [0, 1])).inputs.shape
            torch.Size([2, 2])
            >>> Data.of({"input_ids": [[5, 7], [5, 8]], "attention_mask": [[1, 1], [1, 0]], "labels": [0, 1]})
            <Data: 2 rows, inputs attention_mask [2], input_ids [2], targets []>
        """
        if isinstance(source, Data):
            return source
        if isinstance(source, Mapping) and LABELS & source.keys():
            source = _labelled(source, where)
        if isinstance(source, tuple | list) and len(source) == 2 and _are_columns(*source):
            inputs, layout = _packed(source[0], f"{where}.inputs")
            targets = _tensor(source[1], f"{where}.targets")
        else:
            rows = _rows(source, where)
            ys = [_tensor(y, f"{where}.targets") for _, y in rows]
            firsts = [_tensor(*_first(x, f"{where}.inputs")) for x, _ in rows]
            batches = _are_batches(source, firsts, ys)
            layout = None
            xs = firsts
            if _are_several(rows[0][0]):
                packed = [_packed(x if batches else _alone(x, f"{where}.inputs"), f"{where}.inputs") for x, _ in rows]
                layout = packed[0][1]
                if wrong := [other for _, other in packed if other != layout]:
                    raise InputError(f"{where}.inputs", f"examples of one form: {layout}", f"{wrong[0]}", "Pad them.")
                xs = [x if batches else x[0] for x, _ in packed]
            join = torch.cat if batches else torch.stack
            try:
                inputs, targets = join(xs), join(ys)
            except RuntimeError as problem:
                got = str(problem).splitlines()[0]
                raise InputError(where, "examples of one shape", got, "Crop or pad them.") from problem
        try:
            return Data(inputs, targets, layout)
        except InputError as problem:  # the same complaint, under the name the user knows
            name = problem.where.replace("Data", where, 1)
            raise InputError(name, problem.expected, problem.got, problem.remedy) from None

    def __len__(self) -> int:
        return len(self.inputs)

    def __repr__(self) -> str:
        shapes = f"inputs {self.layout or list(self.inputs.shape[1:])}, targets {list(self.targets.shape[1:])}"
        return f"<Data: {len(self)} rows, {shapes}>"

    @property
    def examples(self) -> Inputs:
        """Two rows as the model takes them: a tensor, positional or keyword arguments.

        The first two; of several tensors, the two with most and least zeros. Padding is then among them, so that what a
        network does about it is seen.
        """
        if self.layout is None:
            return self.inputs[:2]
        order = (self.inputs != 0).sum(1).argsort()
        return self.layout.unpack(self.inputs[order[[0, -1]] if len(self) > 1 else order])

    def take(self, rows: int | slice | Sequence[int] | Tensor) -> Data:
        """These rows: the first `rows` when a number, else the rows with these indices.

        Raises:
            InputError: More rows than there are, an index outside, or none.
        """
        if isinstance(rows, int):
            if not 0 < rows <= len(self):
                raise InputError("Data.take", f"a number of rows from 1 to {len(self)}", rows, "Ask for fewer rows.")
            rows = slice(rows)
        elif not isinstance(rows, slice):
            rows = torch.as_tensor(rows, dtype=torch.long, device=self.inputs.device)
            if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(self)):
                raise InputError(
                    "Data.take",
                    f"indices from 0 to {len(self) - 1}",
                    f"{int(rows.min())} to {int(rows.max())}",
                )
        return Data(self.inputs[rows], self.targets[rows], self.layout)

    def to(self, device: torch.device | str) -> Data:
        """The same data on a device; itself where it is there already."""
        inputs, targets = self.inputs.to(device), self.targets.to(device)
        if inputs is self.inputs and targets is self.targets:
            return self
        return Data(inputs, targets, self.layout)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each array, by name; see `digest`."""
        return {"inputs": digest({"": self.inputs}), "targets": digest({"": self.targets})}

    @property
    def sha256(self) -> str:
        """SHA-256 over the hashes of both arrays."""
        return hashlib.sha256("".join(self.hashes.values()).encode()).hexdigest()


def _are_columns(inputs: object, targets: object) -> bool:
    """Whether two things are all inputs and all targets; else they are two examples or batches."""
    if isinstance(targets, Mapping):
        return False
    if not _is_pair(inputs):
        return True
    # Two tensors: the positional inputs of a model, unless the other one is such a pair as well.
    return hasattr(targets, "shape") and getattr(targets, "ndim", 0) > 0


def _labelled(row: Mapping[Any, Any], where: str) -> tuple[object, object]:
    """A mapping that holds the targets too, as (inputs, targets)."""
    names = sorted(LABELS & row.keys())
    if len(names) > 1:
        raise InputError(where, "targets under one name", ", ".join(names), "Remove one.")
    return {name: part for name, part in row.items() if name not in LABELS}, row[names[0]]


def _packed(inputs: Any, where: str) -> tuple[Tensor, Layout | None]:
    """Inputs as one tensor, and how several lie in it."""
    layout = Layout.of(inputs, where) if _are_several(inputs) else None
    return (_tensor(inputs, where), None) if layout is None else (layout.pack(inputs, where), layout)


def _are_several(inputs: Any) -> bool:
    """Whether inputs are several tensors; a list of numbers is one."""
    if isinstance(inputs, Mapping):
        return True
    return isinstance(inputs, tuple | list) and all(isinstance(part, Tensor | np.ndarray) for part in inputs)


def _alone(example: Any, where: str) -> Any:
    """The arguments for one example as those for a batch of one."""
    if isinstance(example, Mapping):
        given = {name: part for name, part in example.items() if part is not None}
        return {name: _tensor(part, f"{where}[{name!r}]")[None] for name, part in given.items()}
    return tuple(_tensor(part, f"{where}[{at}]")[None] for at, part in enumerate(example))


def _first(inputs: Any, where: str) -> tuple[object, str]:
    """The first tensor of what a model is called with, and its name."""
    if isinstance(inputs, Mapping):
        return next(((part, f"{where}[{name!r}]") for name, part in inputs.items() if part is not None), ((), where))
    several = isinstance(inputs, tuple | list) and inputs and hasattr(inputs[0], "shape")
    return (inputs[0] if several else inputs), where


def _is_pair(value: object) -> bool:
    # Tells a list of two examples or batches, (x, y) each, from the pair (inputs, targets).
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    shaped = hasattr(value[0], "shape") and (hasattr(value[1], "shape") or isinstance(value[1], int))
    return shaped or isinstance(value[0], Mapping)


def _are_batches(source: object, xs: list[Tensor], ys: list[Tensor]) -> bool:
    if hasattr(source, "batch_size"):  # a DataLoader; its batch_size None means single examples
        return source.batch_size is not None or source.batch_sampler is not None  # type: ignore[attr-defined]
    if hasattr(source, "__getitem__") and not isinstance(source, list | tuple):
        return False  # a Dataset
    return all(x.ndim and y.ndim and len(x) == len(y) for x, y in zip(xs, ys, strict=True))


def _tensor(value: object, where: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.dtype(str(torch.get_default_dtype()).removeprefix("torch.")))
        return torch.tensor(array)
    except (TypeError, ValueError) as problem:
        raise InputError(
            where,
            "numbers in one array",
            f"{type(value).__name__} ({problem})",
            "Convert it to a tensor or an array, or leave it out.",
        ) from problem


def _rows(source: object, where: str) -> list[tuple[object, object]]:
    # A mapping or a text would iterate into nonsense; anything else is told by its elements.
    rows: list[tuple[object, object]] = []
    if isinstance(source, Mapping | str) or not (hasattr(source, "__iter__") or hasattr(source, "__getitem__")):
        got = type(source).__name__
    else:
        got = "nothing"
        items: Any = source
        if not hasattr(source, "__iter__"):
            items = map(items.__getitem__, range(len(items)))
        for item in items:
            if isinstance(item, Mapping) and LABELS & item.keys():
                item = _labelled(item, where)
            if not (isinstance(item, tuple | list) and len(item) == 2):
                rows, got = [], f"an element of type {type(item).__name__}"
                break
            rows.append((item[0], item[1]))
    if not rows:
        raise InputError(
            where,
            "Data, (inputs, targets), a Dataset, or batches of (inputs, targets)",
            got,
            "Return pairs, for example a DataLoader whose batches are (x, y), or ((a, b), y) for two inputs.",
        )
    return rows


def hold_out(train: Data, count: int) -> tuple[Data, Data]:
    """Training data without its last `count` rows, and these rows as validation data.

    Raises:
        InputError: Nothing would be left to train on, or the rows are sorted by class, so that the last ones
            show only some of the classes.

    Example:
        >>> import torch
        >>> [len(part) for part in hold_out(Data(torch.zeros(10, 1), torch.arange(10) % 2), 3)]
        [7, 3]
    """
    if not 0 < count < len(train):
        raise InputError(
            "validation",
            f"from 1 to {len(train) - 1} of the {len(train)} training rows",
            count,
            "Ask for fewer rows.",
        )
    if sorted_by_class(train.targets):
        raise InputError(
            "train", "rows in mixed order", "rows sorted by class", "Shuffle them, or give validation data."
        )
    return train.take(slice(None, -count)), train.take(slice(-count, None))


def sorted_by_class(labels: Tensor) -> bool:
    """Whether integer labels [N] of several classes come in order; False below 20 rows, where chance does it.

    Example:
        >>> sorted_by_class(torch.arange(20) // 10), sorted_by_class(torch.arange(20) % 10)
        (True, False)
    """
    if labels.ndim != 1 or labels.is_floating_point() or len(labels) < 20:
        return False
    return bool((labels.diff() >= 0).all()) and bool(labels[0] != labels[-1])


def check_labels(labels: Tensor, classes: int | None, where: str) -> None:
    """Complain unless the labels are integers from 0 to classes - 1 (from 0 up when `classes` is None).

    In sequences -100 is no label, but every example must have one.

    Raises:
        InputError: Named `where`, with the first offending label and its index.
    """
    if labels.is_floating_point():
        raise InputError(
            where,
            "integer labels",
            f"{str(labels.dtype).removeprefix('torch.')} numbers",
            'Convert the labels to integers, or for a regression use loss "mse" and score "r2".',
        )
    bad = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    if labels.ndim > 1:
        bad &= labels != IGNORED
    if bool(bad.any()):
        index = tuple(int(i) for i in bad.nonzero()[0])
        expected = "labels from 0" if classes is None else f"labels from 0 to {classes - 1}"
        raise InputError(
            where,
            expected,
            f"{int(labels[index])} at index {', '.join(map(str, index))} ({int(bad.sum())} such labels)",
            "Renumber the labels from 0, or set the number of classes."
            + (f" What is no label must be {IGNORED}." if labels.ndim > 1 else ""),
        )
    if labels.ndim > 1:
        counting(labels, where)
