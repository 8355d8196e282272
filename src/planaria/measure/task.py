"""Task: data in three splits, a loss and a score; what everything above measures and repairs against."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from planaria.core.errors import InputError, nearest
from planaria.core.trees import digest
from planaria.measure.scores import ACCURACY, SCORES, Score, same_shape

Loss = Callable[[Tensor, Tensor], Tensor]

FORWARD_BATCH = 1000


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
                gives (input, target); or an iterable of (inputs, targets) batches, which are concatenated.
            where: Name for error messages.

        Returns:
            The data, in memory. numpy's float64 becomes torch's default dtype; tensors keep theirs.

        Raises:
            InputError: None of these, or not usable as `Data`.

        Example:
            >>> Data.of(([[0.0, 1.0], [2.0, 3.0]], [0, 1])).inputs.shape
            torch.Size([2, 2])
        """
        if isinstance(source, Data):
            return source
        if isinstance(source, tuple | list) and len(source) == 2 and not _is_pair(source[0]):
            inputs, targets = _tensor(source[0], f"{where}.inputs"), _tensor(source[1], f"{where}.targets")
        else:
            rows = _rows(source, where)
            xs = [_tensor(x, f"{where}.inputs") for x, _ in rows]
            ys = [_tensor(y, f"{where}.targets") for _, y in rows]
            join = torch.cat if _are_batches(source, xs, ys) else torch.stack
            try:
                inputs, targets = join(xs), join(ys)
            except RuntimeError as problem:
                got = str(problem).splitlines()[0]
                raise InputError(where, "examples of one shape", got, "Crop or pad them.") from problem
        try:
            return Data(inputs, targets)
        except InputError as problem:  # the same complaint, under the name the user knows
            name = problem.where.replace("Data", where, 1)
            raise InputError(name, problem.expected, problem.got, problem.remedy) from None

    def __len__(self) -> int:
        return len(self.inputs)

    def __repr__(self) -> str:
        shapes = f"inputs {list(self.inputs.shape[1:])}, targets {list(self.targets.shape[1:])}"
        return f"<Data: {len(self)} rows, {shapes}>"

    def take(self, rows: int | slice | Sequence[int] | Tensor) -> Data:
        """These rows: the first `rows` when a number, else the rows with these indices.

        Raises:
            InputError: More rows than there are, an index outside, or none.
        """
        if isinstance(rows, int):
            if not 0 < rows <= len(self):
                raise InputError(
                    "Data.take", f"a number of rows from 1 to {len(self)}", rows, "Ask for fewer rows."
                )
            rows = slice(rows)
        elif not isinstance(rows, slice):
            rows = torch.as_tensor(rows, dtype=torch.long, device=self.inputs.device)
            if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(self)):
                raise InputError(
                    "Data.take",
                    f"indices from 0 to {len(self) - 1}",
                    f"{int(rows.min())} to {int(rows.max())}",
                )
        return Data(self.inputs[rows], self.targets[rows])

    def to(self, device: torch.device | str) -> Data:
        """The same data on a device."""
        return Data(self.inputs.to(device), self.targets.to(device))

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each array, by name; see `digest`."""
        return {"inputs": digest({"": self.inputs}), "targets": digest({"": self.targets})}

    @property
    def sha256(self) -> str:
        """SHA-256 over the hashes of both arrays."""
        return hashlib.sha256("".join(self.hashes.values()).encode()).hexdigest()


def _is_pair(value: object) -> bool:
    # Tells a list of two examples or batches, (x, y) each, from the pair (inputs, targets).
    is_two = isinstance(value, tuple | list) and len(value) == 2
    return is_two and hasattr(value[0], "shape") and (hasattr(value[1], "shape") or isinstance(value[1], int))  # type: ignore[index]


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
            "Convert it to a tensor or an array.",
        ) from problem


def _rows(source: object, where: str) -> list[tuple[object, object]]:
    # A mapping or a text would iterate into nonsense; anything else is told by its elements.
    rows: list[tuple[object, object]] = []
    if isinstance(source, Mapping | str) or not (
        hasattr(source, "__iter__") or hasattr(source, "__getitem__")
    ):
        got = type(source).__name__
    else:
        got = "nothing"
        items: Any = source
        if not hasattr(source, "__iter__"):
            items = map(items.__getitem__, range(len(items)))
        for item in items:
            if not (isinstance(item, tuple | list) and len(item) == 2):
                rows, got = [], f"an element of type {type(item).__name__}"
                break
            rows.append((item[0], item[1]))
    if not rows:
        raise InputError(
            where,
            "Data, (inputs, targets), a Dataset, or batches of (inputs, targets)",
            got,
            "Return pairs, for example a DataLoader whose batches are (x, y).",
        )
    return rows


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of class scores [N, classes, ...] against labels [N, ...], in nats."""
    return nn.functional.cross_entropy(outputs, labels)


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error. [N, 1] and [N] match; other shapes raise instead of being broadcast."""
    outputs, targets = same_shape(outputs, targets)
    return nn.functional.mse_loss(outputs, targets.to(outputs.dtype))


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse}


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """What a network is for: data in three splits, a loss that repairs lower, a score that studies report.

    Repairs see `train`, stopping and "rescued" are judged on `validation`, reported scores come from `test`.
    Two tasks are equal when name and data are. Make one with `Task.of`, or load one with `task("digits")`.

    Args:
        name: Name, or the text it was loaded from.
        train: What repairs may learn from.
        validation: What decisions are judged on.
        test: What scores are reported on.
        loss: `(outputs, targets) -> scalar`, mean over the batch.
        scorer: The score.
        classes: Number of classes; None for a regression.
        preprocessing: What was done to the raw data, JSON-able; part of the record.
        split: How the validation split was chosen, in words.
        loadable: True when `task(name)` loads it again.

    Raises:
        InputError: Labels that are no integers from 0 to classes - 1, or splits whose shapes differ.

    Example:
        >>> import torch
        >>> x, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
        >>> mine = Task.of("mine", (x[:30], y[:30]), (x[30:], y[30:]))
        >>> len(mine.train), len(mine.validation), len(mine.test), mine.chance
        (27, 3, 10, 0.5)
        >>> mine.score(lambda x: torch.stack([x[:, 0] * 0 + 1, x[:, 0] * 0], 1))
        0.5
    """

    name: str
    train: Data
    validation: Data
    test: Data
    loss: Loss
    scorer: Score
    classes: int | None
    preprocessing: dict[str, object] = field(default_factory=dict)
    split: str = "given"
    loadable: bool = False

    def __post_init__(self) -> None:
        for name, data in self.splits.items():
            if data.inputs.shape[1:] != self.train.inputs.shape[1:]:
                raise InputError(
                    f"Task.{name}.inputs",
                    f"rows of shape {list(self.train.inputs.shape[1:])} as in train",
                    list(data.inputs.shape[1:]),
                    "Bring all splits to one shape.",
                )
            if self.classes is not None:
                check_labels(data.targets, self.classes, f"Task.{name}.targets")

    @staticmethod
    def of(
        name: str,
        train: object,
        test: object,
        *,
        validation: object | None = None,
        loss: str | Loss = "cross_entropy",
        score: str | Score | Callable[[Tensor, Tensor], float] = "accuracy",
        validation_share: float = 0.1,
        classes: int | None = None,
    ) -> Task:
        """Task from data in memory.

        Args:
            name: Name for reports.
            train: Anything `Data.of` takes.
            test: The same.
            validation: The same, or None: the last part of train.
            loss: "cross_entropy", "mse" or a function (outputs, targets) -> mean loss.
            score: "accuracy", "r2", a Score, or a function (outputs, targets) -> float, higher is better.
            validation_share: Share of train, above 0 and below 1, that becomes validation when none is given.
            classes: Number of classes; the largest label + 1 when not given and the task is a classification.

        Returns:
            The checked task.

        Raises:
            InputError: Unusable data, an unknown loss or score, or train sorted by class, whose last part is
                no sample of it.

        Example:
            >>> import torch
            >>> x = torch.linspace(-1, 1, 50).reshape(-1, 1)
            >>> Task.of("line", (x, 2 * x), (x, 2 * x), loss="mse", score="r2").score(lambda x: 2 * x)
            1.0
        """
        given = {"train": Data.of(train, "train"), "test": Data.of(test, "test")}
        if validation is not None:
            given["validation"] = Data.of(validation, "validation")
            split = "validation given"
        else:
            if not 0.0 < validation_share < 1.0:
                raise InputError("validation_share", "a number above 0 and below 1", validation_share)
            count = max(1, int(validation_share * len(given["train"])))
            given["train"], given["validation"] = hold_out(given["train"], count)
            split = f"validation is the last {count} of train"
        function: Loss = loss if callable(loss) else _known(loss, LOSSES, "loss")
        scorer = _scorer(score)
        labels = not any(data.targets.is_floating_point() for data in given.values())
        if scorer is ACCURACY or classes is not None or (function is cross_entropy and labels):
            for part, data in given.items():
                check_labels(data.targets, classes, f"{part}.targets")
            classes = classes or 1 + max(int(data.targets.max()) for data in given.values())
        return Task(
            name, given["train"], given["validation"], given["test"], function, scorer, classes, split=split
        )

    @property
    def splits(self) -> dict[str, Data]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def outputs(self, net: Callable[[Tensor], Tensor], data: Data) -> Tensor:
        """Outputs of the network for every input of `data`, without gradients, 1,000 inputs at a time.

        An `nn.Module` is put in eval mode for the call, and back.

        Raises:
            InputError: The network returns no tensor with one row per input.
        """
        parts = []
        with torch.no_grad(), _eval_mode(net):
            for batch in torch.split(data.inputs, FORWARD_BATCH):
                out = net(batch)
                if not isinstance(out, Tensor) or out.ndim == 0 or len(out) != len(batch):
                    raise InputError(
                        "network",
                        f"a tensor with {len(batch)} rows, one per input",
                        f"shape {list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__,
                        "Wrap the network so that its forward returns only that tensor.",
                    )
                parts.append(out)
        return torch.cat(parts)

    def score(self, net: Callable[[Tensor], Tensor], data: Data | None = None) -> float:
        """Score of the network on the test split, or on `data`. A score of NaN is reported as -inf."""
        data = self.test if data is None else data
        value = float(self.scorer.function(self.outputs(net, data), data.targets))
        return -math.inf if math.isnan(value) else value

    @property
    def output_size(self) -> int:
        """Numbers a network must give per input: the classes, or the numbers in one target."""
        return self.classes or self.test.targets[0].numel()

    @property
    def chance(self) -> float:
        """Score of guessing on the test split."""
        return float(self.scorer.chance(self.test.targets))

    def to(self, device: torch.device | str) -> Task:
        """The same task with its data on a device."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
        )

    def record(self) -> dict[str, object]:
        """What identifies the task, JSON-able: sizes, SHA-256 of each array, preprocessing, split rule."""
        return {
            "name": self.name,
            "score": self.scorer.name,
            "loss": getattr(self.loss, "__name__", type(self.loss).__name__),
            "chance": self.chance,
            "classes": self.classes,
            "input_shape": list(self.train.inputs.shape[1:]),
            "splits": {name: len(data) for name, data in self.splits.items()},
            "split_rule": self.split,
            "sha256": {
                f"{name}.{array}": h for name, data in self.splits.items() for array, h in data.hashes.items()
            },
            "preprocessing": dict(self.preprocessing),
        }

    def __repr__(self) -> str:
        if self.loadable:
            return f"task({self.name!r})"
        return (
            f"<Task {self.name!r}: {', '.join(f'{len(data)} {name}' for name, data in self.splits.items())}>"
        )

    def _identity(self) -> tuple[str, ...]:
        return (self.name, *(data.sha256 for data in self.splits.values()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Task):
            return NotImplemented
        return self is other or (self.name == other.name and self._identity() == other._identity())

    def __hash__(self) -> int:
        return hash(self._identity())


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
    labels = train.targets
    # 20 rows in order by chance: below 1 in 10,000 for two balanced classes.
    ordinary = labels.ndim == 1 and not labels.is_floating_point() and len(labels) >= 20
    if ordinary and bool((labels.diff() >= 0).all()) and bool(labels[0] != labels[-1]):
        raise InputError(
            "train", "rows in mixed order", "rows sorted by class", "Shuffle them, or give validation data."
        )
    return train.take(slice(None, -count)), train.take(slice(-count, None))


def check_labels(labels: Tensor, classes: int | None, where: str) -> None:
    """Complain unless the labels are integers from 0 to classes - 1 (from 0 up when `classes` is None).

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
    if bool(bad.any()):
        index = tuple(int(i) for i in bad.nonzero()[0])
        expected = "labels from 0" if classes is None else f"labels from 0 to {classes - 1}"
        raise InputError(
            where,
            expected,
            f"{int(labels[index])} at index {', '.join(map(str, index))} ({int(bad.sum())} such labels)",
            "Renumber the labels from 0, or set the number of classes.",
        )


def _known(word: object, table: Mapping[str, Any], where: str) -> Any:
    if not isinstance(word, str) or word not in table:
        raise InputError(where, "a known name or a function", repr(word), nearest(str(word), table))
    return table[word]


def _scorer(score: object) -> Score:
    if isinstance(score, Score):
        return score
    if callable(score):
        return Score(getattr(score, "__name__", type(score).__name__), score)
    found: Score = _known(score, SCORES, "score")
    return found


@contextmanager
def _eval_mode(net: object) -> Iterator[None]:
    modules = [m for m in net.modules() if m.training] if isinstance(net, nn.Module) else []
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module in modules:
            module.training = True
