"""Scores: how good a network's outputs are on held-out data. Higher is better, always."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from planaria.core.errors import InputError


def _no_chance(targets: Tensor) -> float:
    del targets
    return 0.0


@dataclass(frozen=True, repr=False)
class Score:
    """How good outputs are, as one number that is higher when they are better.

    Args:
        name: Word under which the score is recorded.
        function: `(outputs [N, ...], targets [N, ...]) -> float`.
        chance: `(targets) -> float`, the score of guessing. 0 when not given.
        per_example: `(outputs, targets) -> Tensor [N]` whose mean is the score; None if it is not a mean.
        bounds: Least and greatest possible score, to which intervals are clipped; None if there are none.

    Example:
        >>> import torch
        >>> share_close = Score("close", lambda y, t: float(((y - t).abs() < 0.5).float().mean()))
        >>> share_close.function(torch.tensor([0.1, 2.0]), torch.tensor([0.0, 0.0]))
        0.5
    """

    name: str
    function: Callable[[Tensor, Tensor], float]
    chance: Callable[[Tensor], float] = _no_chance
    per_example: Callable[[Tensor, Tensor], Tensor] | None = None
    bounds: tuple[float, float] | None = None

    def __repr__(self) -> str:
        return f"SCORES[{self.name!r}]" if SCORES.get(self.name) is self else f"<Score {self.name}>"


def same_shape(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets of a regression in one shape: [N, 1] and [N] match, nothing is ever broadcast.

    Args:
        outputs: Floats [N, ...].
        targets: Floats [N, ...] with as many numbers.

    Returns:
        The outputs in the shape of the targets, and the targets on the outputs' device.

    Raises:
        InputError: The shapes differ by more than dimensions of length 1.

    Example:
        >>> import torch
        >>> same_shape(torch.zeros(3, 1), torch.ones(3))[0].shape
        torch.Size([3])
    """
    if [n for n in outputs.shape if n != 1] != [n for n in targets.shape if n != 1]:
        raise InputError(
            "network outputs",
            f"the shape of the targets, {list(targets.shape)}",
            list(outputs.shape),
            "Give the network one output per target number.",
        )
    return outputs.reshape(targets.shape), targets.to(outputs.device)


def _right(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.ndim != targets.ndim + 1 or outputs.shape[:1] + outputs.shape[2:] != targets.shape:
        raise InputError(
            "network outputs",
            f"one row of class scores per label, [N, classes, ...] for labels {list(targets.shape)}",
            list(outputs.shape),
            "Let the network return the scores before the argmax, classes in dimension 1.",
        )
    right = outputs.argmax(1) == targets.to(outputs.device)
    # The argmax of a row with NaN is the first NaN: an answer, and for that class even a right one. A finite sum says
    # that all its terms are finite, in a tenth of the time; elsewhere than on the CPU asking takes more than it saves.
    if outputs.device.type != "cpu" or not bool(outputs.sum().isfinite()):
        right &= outputs.isfinite().all(1)
    return right.flatten(1).double().mean(1) if right.ndim > 1 else right.double()


def _accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float(_right(outputs, targets).mean())


def _one_of_the_classes(targets: Tensor) -> float:
    return 1.0 / len(torch.unique(targets))


def _r2(outputs: Tensor, targets: Tensor) -> float:
    outputs, targets = same_shape(outputs, targets)
    if not bool(outputs.isfinite().all()):
        return -math.inf
    outputs, targets = outputs.double(), targets.double()
    error = float(((outputs - targets) ** 2).sum())
    spread = float(((targets - targets.mean(0)) ** 2).sum())
    if spread == 0.0:
        return 1.0 if error == 0.0 else 0.0
    return 1.0 - error / spread


ACCURACY = Score("accuracy", _accuracy, _one_of_the_classes, _right, (0.0, 1.0))
"""Share of examples whose largest output is the label's.

A row with any NaN or Inf is wrong, whatever its argmax. Chance is 1 / (classes present in the targets).
"""

R2 = Score("r2", _r2)
"""Share of the targets' variance explained: 1 - sum (y - t)^2 / sum (t - mean t)^2, all outputs pooled.

-inf when any output is NaN or Inf. For targets without variance: 1 when every output is exact, else 0.
Chance, the score of the mean, is 0. Not a mean over examples, so `per_example` is None.
"""

SCORES: dict[str, Score] = {score.name: score for score in (ACCURACY, R2)}
