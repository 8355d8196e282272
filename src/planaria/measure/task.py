"""Task: data in three splits, a loss and a score; what everything above measures and repairs against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from planaria.core.errors import InputError, nearest
from planaria.core.network import Network
from planaria.core.port import Port
from planaria.measure.data import Data as Data
from planaria.measure.data import check_labels, hold_out
from planaria.measure.losses import LOSSES as LOSSES
from planaria.measure.losses import Loss as Loss
from planaria.measure.losses import cross_entropy as cross_entropy
from planaria.measure.losses import mse as mse
from planaria.measure.scores import Score, score_named

FORWARD_BATCH = 1000

KEPT = 1 << 29
"""Bytes of outputs that are kept for a score which could be summed up instead."""


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
            if data.inputs.shape[1:] != self.train.inputs.shape[1:] or data.layout != self.train.layout:
                raise InputError(
                    f"Task.{name}.inputs",
                    f"rows of shape {self.train.layout or list(self.train.inputs.shape[1:])} as in train",
                    f"{data.layout or list(data.inputs.shape[1:])}",
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
            loss: "cross_entropy", "mse", "cosine" or a function (outputs, targets) -> mean loss.
            score: A name (see `planaria.measure.scores`), a Score, or a function (outputs, targets) -> float, higher is
                better.
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
        if scorer.labels or classes is not None or (function is cross_entropy and labels):
            for part, data in given.items():
                check_labels(data.targets, classes, f"{part}.targets")
            classes = classes or 1 + max(int(data.targets.max()) for data in given.values())
        return Task(name, given["train"], given["validation"], given["test"], function, scorer, classes, split=split)

    @property
    def splits(self) -> dict[str, Data]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def outputs(self, net: Callable[[Tensor], Tensor], data: Data) -> Tensor:
        """Outputs of the network for every input of `data`, without gradients, 1,000 inputs at a time.

        Fewer where a pass would need gigabytes. An `nn.Module` is put in eval mode for the call, and back.

        Raises:
            InputError: The network returns no tensor with one row per input.
        """
        return torch.cat([outputs for outputs, _ in self._passes(net, data)])

    def _passes(self, net: Callable[[Tensor], Tensor], data: Data) -> Iterator[tuple[Tensor, Tensor]]:
        """Outputs with their targets, some rows at a time."""
        forward = self._taking(net, data)
        size = FORWARD_BATCH
        if isinstance(net, Network):
            count = min(size, len(data))
            size = self._forward(lambda rows: net.at_once(rows, count), data.inputs[:1])
        with torch.no_grad(), _eval_mode(net):
            for batch, targets in zip(data.inputs.split(size), data.targets.split(size), strict=True):
                out = self._forward(forward, batch)
                if not isinstance(out, Tensor) or out.ndim == 0 or len(out) != len(batch):
                    raise InputError(
                        "network",
                        f"a tensor with {len(batch)} rows, one per input",
                        f"shape {list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__,
                        "Wrap the network so that its forward returns only that tensor.",
                    )
                yield out, targets

    def _taking(self, net: Callable[..., Any], data: Data) -> Callable[[Tensor], Any]:
        """The network as a function of rows like those of `data`."""
        if isinstance(net, Network):
            if data.layout is not None and data.layout != net.port.layout:
                got = "one plain tensor" if net.port.layout is None else f"{net.port.layout}"
                remedy = "Build it with the task's own inputs: Network.of(model, task.train.examples)."
                raise InputError("network", f"one that takes {data.layout}", got, remedy)
            return net
        if isinstance(net, nn.Module) or data.layout is not None:
            return partial(Port.of(net, data.examples), net)
        return net

    def _forward(self, net: Callable[[Tensor], Any], batch: Tensor) -> Any:
        try:
            return net(batch)
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, AssertionError) as problem:
            if isinstance(problem, InputError) or "memory" in str(problem):
                raise
            raise InputError(
                f"network on task {self.name!r}",
                f"one that takes {self.train.layout or f'{batch.dtype} inputs of shape {list(batch.shape[1:])}'}",
                f"{type(problem).__name__}: {(str(problem).splitlines() or ['no message'])[0]}",
                "Bring the task's inputs to the shape the network was trained on.",
            ) from problem

    def score(self, net: Callable[[Tensor], Tensor], data: Data | None = None) -> float:
        """Score of the network on the test split, or on `data`. A score of NaN is reported as -inf."""
        data = self.test if data is None else data
        passes = self._passes(net, data)
        first, targets = next(passes)
        scorer = self.scorer
        large = first.nbytes * (len(data) / len(first)) > KEPT
        if large and (scorer.per_example is not None or scorer.pooled is not None):
            total, count = _sums(scorer, first, targets)
            del first
            for outputs, targets in passes:
                more, further = _sums(scorer, outputs, targets)
                total, count = total + more, count + further
            value = scorer.of_mean(total / count) if scorer.per_example is None else total / count
        else:
            value = float(scorer.function(torch.cat([first, *(outputs for outputs, _ in passes)]), data.targets))
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
            "input_shape": list(self.train.inputs.shape[1:]) if self.train.layout is None else f"{self.train.layout}",
            "splits": {name: len(data) for name, data in self.splits.items()},
            "split_rule": self.split,
            "sha256": {f"{name}.{array}": h for name, data in self.splits.items() for array, h in data.hashes.items()},
            "preprocessing": dict(self.preprocessing),
        }

    def __repr__(self) -> str:
        if self.loadable:
            return f"task({self.name!r})"
        return f"<Task {self.name!r}: {', '.join(f'{len(data)} {name}' for name, data in self.splits.items())}>"

    def _identity(self) -> tuple[str, ...]:
        return (self.name, *(data.sha256 for data in self.splits.values()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Task):
            return NotImplemented
        return self is other or (self.name == other.name and self._identity() == other._identity())

    def __hash__(self) -> int:
        return hash(self._identity())


def _sums(score: Score, outputs: Tensor, targets: Tensor) -> tuple[float, int]:
    """Sum and number of what a score is the mean of, or a function of the mean."""
    if score.per_example is not None:
        return float(score.per_example(outputs, targets).double().sum()), len(outputs)
    assert score.pooled is not None
    return score.pooled(outputs, targets)


def _known(word: object, table: Mapping[str, Any], where: str) -> Any:
    if not isinstance(word, str) or word not in table:
        raise InputError(where, "a known name or a function", repr(word), nearest(str(word), table))
    return table[word]


def _scorer(score: object) -> Score:
    if isinstance(score, Score):
        return score
    if callable(score):
        return Score(getattr(score, "__name__", type(score).__name__), score)
    return score_named(str(score))


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
