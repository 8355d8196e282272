"""Profile: loss and score along a path, its barriers and its lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planaria.core.devices import clock
from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost
from planaria.core.trees import norm
from planaria.geometry.path import Path
from planaria.measure.data import Data
from planaria.measure.labels import IGNORED, class_scores
from planaria.measure.statistics import Estimate, Floats, finite, mean_interval
from planaria.measure.task import FORWARD_BATCH, Task

ROUNDS = 2
"""Times that the grid is refined around the worst point."""

BLOCKS = 100
"""Parts of the data whose losses tell how sure a loss is."""


@dataclass(frozen=True, eq=False, repr=False)
class Profile:
    """What networks along a path do on some data.

    Attributes:
        examples: Data points.
        times: Where the path was evaluated, rising from 0 to 1; denser around the worst points.
        losses: The task's loss at each; infinite where outputs are not finite.
        scores: The task's score at each; minus infinity where outputs are not finite.
        loss_barrier: Largest loss above the straight line between the losses of the ends, 0 or more, with a 95 %
            interval from paired parts of the data at that point; infinite if outputs are not finite somewhere.
        score_barrier: Largest score below the straight line between the scores of the ends, the same way, paired by
            example; without an interval for scores that are no means over examples.
        worst_loss: Time of the loss barrier.
        worst_score: Time of the score barrier.
        length: Length of the path of outputs: sum over the grid of the distances between neighbours.
        energy: Sum over the grid of distance^2 / (difference of times); length^2 for a path at constant speed.
        distance: What the distance is, in words.
        euclidean: Length in weight space.
        broken: Times at which outputs are not finite.
        cost: Of measuring this.

    Not guaranteed: that no point between those visited is worse; intervals take the worst point as given, although it
    was chosen on the same data.
    """

    examples: int
    times: tuple[float, ...]
    losses: tuple[float, ...]
    scores: tuple[float, ...]
    loss_barrier: Estimate
    score_barrier: Estimate
    worst_loss: float
    worst_score: float
    length: float
    energy: float
    distance: str
    euclidean: float
    broken: tuple[float, ...]
    cost: Cost

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-able; what is infinite becomes None."""
        plain = {name: value.to_dict() if isinstance(value, Estimate) else value for name, value in vars(self).items()}
        plain["cost"] = dict(vars(self.cost))
        result: dict[str, Any] = finite(plain)
        return result

    def __repr__(self) -> str:
        said = f"loss barrier {self.loss_barrier}, score barrier {self.score_barrier}"
        return f"<Profile: {said}, {len(self.times)} points on {self.examples} examples>"


@dataclass(frozen=True, eq=False)
class _Point:
    """One network of the path on the data; `outputs` only where finite."""

    loss: float
    parts: Floats
    score: float
    each: Floats | None
    outputs: Tensor | None


def profile(path: Path, task: Task, data: Data | None = None, *, points: int = 25) -> Profile:
    """Evaluate a path: an even grid, with the knots of a polygon and the middles between them, then finer.

    The neighbourhood of the worst loss, and that of the worst score, is divided by 5 more points, twice.

    Args:
        path: Any path.
        task: Its loss and score.
        data: Labelled; the task's test split if not given.
        points: Of the even grid, at least 3; 25 or more for numbers to be told.

    Returns:
        The profile. Points at which outputs are not finite are named in it.

    Raises:
        InputError: Fewer than 3 points, or an end whose outputs or loss are not finite.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> from planaria.measure.datasets import task
        >>> digits = task("digits")
        >>> a, b = (Network.of(nn.Linear(64, 10), digits.train.inputs) for _ in range(2))
        >>> profile(Path((a, b)), digits).examples == len(digits.test)
        True
    """
    if not (isinstance(points, int) and points >= 3):
        raise InputError("profile(points)", "a whole number of at least 3", repr(points))
    first = path.knots[0]
    start = clock(first.device)
    data = (task.test if data is None else data).to(first.device)
    known: dict[float, _Point] = {}
    for end in (0.0, 1.0):
        known[end] = _evaluate(path, end, task, data, keep=False)
        if not math.isfinite(known[end].loss):
            expected = "a network with finite outputs and loss on the data"
            raise InputError(f"path({end:g})", expected, "NaN or infinity", "Repair or exclude this network.")
    apart, distance = between_outputs(task, data)
    marks = path.curve.marks(len(path.knots))
    middles = [(one + two) / 2 for one, two in pairwise(marks)]
    grid = sorted({*(float(t) for t in np.linspace(0.0, 1.0, points)), *marks, *(middles if len(marks) > 2 else ())})
    length = energy = euclidean = 0.0
    before, last = None, path.knots[0]
    for place, t in enumerate(grid):
        net = path(t)
        now = _evaluate(path, t, task, data, keep=True)
        known[t] = _Point(now.loss, now.parts, now.score, now.each, None)
        if place:
            whole = before is not None and now.outputs is not None
            square = float(apart(before, now.outputs, data.targets)) if whole else math.inf  # type: ignore[arg-type]
            length, energy = length + math.sqrt(max(0.0, square)), energy + square / (t - grid[place - 1])
            euclidean += float(norm({name: w for name, w in (net - last).items() if w.is_floating_point()}))
        before, last = now.outputs, net
    for height in (_rise, _drop):
        for _ in range(ROUNDS):
            times = sorted(known)
            worst = _worst(known, height)
            if math.isinf(height(known, worst)):
                break
            at = times.index(worst)
            left, right = times[max(0, at - 1)], times[min(len(times) - 1, at + 1)]
            for t in np.linspace(left, right, 7)[1:-1]:
                if float(t) not in known:
                    known[float(t)] = _evaluate(path, float(t), task, data, keep=False)
    times = sorted(known)
    passes = len(known) * math.ceil(len(data) / FORWARD_BATCH)
    seen = len(known) * len(data) + (0 if path.calibration is None else len(path.calibration) * (len(known) - 2))
    each = forward_multiply_adds(first, data.inputs)
    return Profile(
        len(data),
        tuple(times),
        tuple(known[t].loss for t in times),
        tuple(known[t].score for t in times),
        _barrier(known, _rise, lambda point: point.parts, -1.0),
        _barrier(known, _drop, lambda point: point.each, 1.0),
        _worst(known, _rise),
        _worst(known, _drop),
        length,
        energy,
        distance,
        euclidean,
        tuple(t for t in times if math.isinf(known[t].loss)),
        Cost(seen, len(known) * len(data), passes, 0, seen * each, clock(first.device) - start),
    )


def between_outputs(task: Task, data: Data) -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], str]:
    """Squared distance of two networks' outputs, a mean over examples, as a function of both and of the targets.

    For classes the Jensen-Shannon divergence of the softmax outputs in nats, whose root is a distance; locally it is
    1/8 of the Fisher metric. Else the squared difference of the outputs, summed over outputs. Of the targets only
    their shape counts, and which are ignored.

    Returns:
        The function, and the name of its root.

    Source: Endres and Schindelin, 2003 (the root is a metric); Tan et al., 2023 (as an energy of paths).
    """
    if task.classes is None or data.targets.is_floating_point():

        def squares(one: Tensor, other: Tensor, targets: Tensor) -> Tensor:
            del targets
            return (one - other).flatten(1).square().sum(1).mean()

        return squares, "root mean squared difference of outputs"

    def divergence(one: Tensor, other: Tensor, targets: Tensor) -> Tensor:
        p, q = (class_scores(outputs, targets).log_softmax(1) for outputs in (one, other))
        middle = torch.logaddexp(p, q) - math.log(2.0)
        each = 0.5 * (p.exp() * (p - middle) + q.exp() * (q - middle)).sum(1)
        counted = targets != IGNORED
        return each.mean() if bool(counted.all()) else each[counted].mean()

    return divergence, "root of the mean Jensen-Shannon divergence (nats)"


def _evaluate(path: Path, t: float, task: Task, data: Data, *, keep: bool) -> _Point:
    net = path(t)
    outputs = task.outputs(net, data)
    loss = float(task.loss(outputs, data.targets)) if bool(outputs.isfinite().all()) else math.inf
    if not math.isfinite(loss):
        return _Point(math.inf, np.zeros(0), -math.inf, None, None)
    count = min(BLOCKS, len(data))
    parts = zip(outputs.tensor_split(count), data.targets.tensor_split(count), strict=True)
    losses = np.array([float(task.loss(some, targets)) for some, targets in parts])
    scorer = task.scorer
    score = float(scorer.function(outputs, data.targets))
    each = None if scorer.per_example is None else scorer.per_example(outputs, data.targets).double().cpu().numpy()
    return _Point(loss, losses, -math.inf if math.isnan(score) else score, each, outputs if keep else None)


def _rise(known: dict[float, _Point], t: float) -> float:
    """Loss above the straight line between the ends."""
    one, two = known[0.0].loss, known[1.0].loss
    return known[t].loss - (one + t * (two - one))  # exactly 0 between equal losses, as below


def _drop(known: dict[float, _Point], t: float) -> float:
    """Score below the straight line between the ends; nothing where an end has none."""
    one, two = known[0.0].score, known[1.0].score
    return one + t * (two - one) - known[t].score if math.isfinite(one) and math.isfinite(two) else 0.0


def _worst(known: dict[float, _Point], height: Callable[[dict[float, _Point], float], float]) -> float:
    return max(sorted(known), key=lambda t: height(known, t))


def _barrier(
    known: dict[float, _Point],
    height: Callable[[dict[float, _Point], float], float],
    values: Callable[[_Point], Floats | None],
    sign: float,
) -> Estimate:
    """The greatest height with the interval of its mean over pairs."""
    worst = _worst(known, height)
    best = height(known, worst)
    if math.isinf(best):
        return Estimate(best, best, best)
    one, two, there = (values(known[t]) for t in (0.0, 1.0, worst))
    if one is None or two is None or there is None:
        return Estimate(math.nan, best, math.nan)
    differences = sign * ((1 - worst) * one + worst * two - there)
    if not np.isfinite(differences).all():
        return Estimate(math.nan, best, math.nan)
    spread = mean_interval(differences)
    half = spread.high - spread.best
    return Estimate(best - half, best, best + half)
