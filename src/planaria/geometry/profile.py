"""Profile: loss and score along a path, its barriers and its lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planaria.core.devices import clock
from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost
from planaria.core.streams import stream
from planaria.core.trees import norm
from planaria.geometry.path import Path, towards
from planaria.measure.data import Data
from planaria.measure.labels import IGNORED, class_scores
from planaria.measure.statistics import Estimate, Floats, finite, numpy_generator, student_quantile
from planaria.measure.task import FORWARD_BATCH, Task

ROUNDS = 2
"""Times that the grid is refined around the worst point."""

PARTS = 100
"""Parts of the data, drawn at random, whose losses and scores tell how sure a barrier is."""

DRAWS = 2000
"""Random draws that the interval of a barrier is made from."""


@dataclass(frozen=True, eq=False, repr=False)
class Profile:
    """What networks along a path do on some data.

    Attributes:
        examples: Data points.
        times: Where the path was evaluated, rising from 0 to 1; denser around the worst points.
        losses: The task's loss at each; infinite where outputs are not finite.
        scores: The task's score at each; minus infinity where outputs are not finite.
        loss_barrier: Largest loss above the straight line between the losses of the ends, 0 or more, with a 95 %
            interval that holds wherever on the grid the worst point truly is; infinite if outputs are not finite
            somewhere.
        score_barrier: Largest score below the straight line between the scores of the ends, the same way; without an
            interval for scores that are no means over examples.
        worst_loss: Time of the loss barrier.
        worst_score: Time of the score barrier.
        length: Length of the path of outputs: sum over the grid of the distances between neighbours.
        energy: Sum over the grid of distance^2 / (difference of times); length^2 for a path at constant speed.
        distance: What the distance is, in words.
        euclidean: Length in weight space.
        broken: Times at which outputs are not finite.
        cost: Of measuring this.

    The interval is a band around the whole curve: max over t of (h(t) - q s(t)) to max over t of (h(t) + q s(t)), with
    h the height above the line, s its standard error over parts of the data that are paired along the path, and q the
    97.5 % quantile of the largest standardised error at any of the points that may be the worst one. Of a barrier of
    0.1 nats or 1 point it held the truth in 95 to 100 % of samples of 60 to 2,000 test images.

    Source: intersection bounds (Chernozhukov, Lee and Rosen, 2013), by a multiplier bootstrap.

    Not guaranteed: that no point between those visited is worse; that the estimate itself is not a little high, as the
    largest of many noisy numbers is (a score barrier of 1 point by 0.4 points with 300 examples, 0.1 with 2,000; a loss
    barrier hardly); anything of a change that no example shows, which has an interval of no width.
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
    losses: Floats
    score: float
    scores: Floats | None
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
        known[t] = replace(now, outputs=None)
        if place:
            whole = before is not None and now.outputs is not None
            square = float(apart(before, now.outputs, data.targets)) if whole else math.inf  # type: ignore[arg-type]
            length, energy = length + math.sqrt(max(0.0, square)), energy + square / (t - grid[place - 1])
            euclidean += float(norm(towards(last, net)))
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
        _barrier(known, _rise, lambda point: point.losses, -1.0),
        _barrier(known, _drop, lambda point: point.scores, 1.0),
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

    Args:
        task: Classes, or none.
        data: Whose targets tell whether these are numbers.

    Returns:
        The function, and the name of its root.

    Source: Endres and Schindelin, 2003 (the root is a distance); Tan et al., 2023 (as an energy of paths).
    """
    if task.classes is None or data.targets.is_floating_point():

        def squares(one: Tensor, other: Tensor, targets: Tensor) -> Tensor:
            del targets
            return (one - other).reshape(len(one), -1).square().sum(1).mean()  # also of outputs [N]

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
    scorer = task.scorer
    score = float(scorer.function(outputs, data.targets))
    each = None if scorer.per_example is None else scorer.per_example(outputs, data.targets).double().cpu()
    order = torch.randperm(len(data), generator=stream(0, "profile", "parts"))  # labels may come sorted
    losses, scores = [], []
    for rows in order.tensor_split(min(PARTS, len(data))):
        there = rows.to(outputs.device)
        losses.append(float(task.loss(outputs[there], data.targets[there])))
        scores += [] if each is None else [float(each[rows].mean())]
    known = -math.inf if math.isnan(score) else score
    return _Point(loss, np.array(losses), known, np.array(scores) if scores else None, outputs if keep else None)


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
    """The greatest height, with the band of all heights as its interval."""
    times = sorted(known)
    heights = np.array([height(known, t) for t in times])
    best = float(heights.max())
    if math.isinf(best):
        return Estimate(best, best, best)
    one, two = values(known[0.0]), values(known[1.0])
    there = [some for t in times if (some := values(known[t])) is not None]
    if one is None or two is None or len(there) < len(times):
        return Estimate(math.nan, best, math.nan)
    table = np.stack([sign * ((1 - t) * one + t * two - some) for t, some in zip(times, there, strict=True)])
    if len(one) < 2 or not np.isfinite(table).all():
        return Estimate(math.nan, best, math.nan)
    low, high = _of_largest(heights, table)
    return Estimate(max(0.0, min(best, low)), best, max(best, high))


def _of_largest(means: Floats, table: Floats) -> tuple[float, float]:
    """Interval of the largest of some true means, of which parts [means, parts] are known."""
    parts = table.shape[1]
    apart = table - table.mean(1, keepdims=True)
    errors = apart.std(1, ddof=1) / math.sqrt(parts)
    draws = numpy_generator(stream(0, "profile", "band")).standard_normal((parts, DRAWS))
    drawn = apart @ draws / math.sqrt(parts * (parts - 1))  # as far from the truth as the means may be
    size = np.divide(drawn, errors[:, None], out=np.zeros_like(drawn), where=errors[:, None] > 0)
    student = student_quantile(0.95, parts - 1)

    def factor(some: NDArray[np.bool_]) -> float:
        largest = float(np.quantile(size[some].max(0), 0.975))
        return max(student, largest * student / NormalDist().inv_cdf(0.975))

    wide = factor(np.ones(len(means), dtype=bool)) * errors
    worst = means + wide >= (means - wide).max()  # those that may be the largest
    half = factor(worst) * errors[worst]
    return float((means[worst] - half).max()), float((means[worst] + half).max())
