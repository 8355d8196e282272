"""Straight lines between networks: whether they stay in a good set, and what share of them does.

The good set is U = {networks whose validation score is at least a threshold}. A line is looked at on a grid of points
and once more around its worst one; batch normalisation is re-estimated at every point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.geometry.normalise import normalises
from planaria.geometry.path import Path
from planaria.geometry.straight import Way
from planaria.measure.data import Data
from planaria.measure.statistics import Estimate, finite, student_quantile, wilson_of_groups
from planaria.measure.task import Task
from planaria.study.attempt import ROUNDING
from planaria.study.vulnerability import evenly
from planaria.sweep.between import scores_between

POINTS = 25
"""Points of a line, both ends included."""
AGAIN = 9
"""Points around the worst one of a line that stays inside so far."""
TESTED = 5000
"""Most test examples, evenly spaced, on which barriers are given."""
CALIBRATION = 1000
"""Training inputs from which normalisation statistics are re-estimated."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Line:
    """The straight line between two networks.

    Attributes:
        first: Place of the network that it begins with.
        second: Place of the one that it ends with.
        inside: Whether all of it is in the good set; None where an end is not.
        least: Least validation score on it.
        at: Where that is, from 0 to 1.
        barrier: Largest drop of the validation score below the straight line between the scores of its ends.
        test_barrier: The same of the test score, which chose neither the networks nor the set. Both are the largest of
            many noisy drops, and so a little high.
    """

    first: int
    second: int
    inside: bool | None
    least: float
    at: float
    barrier: float
    test_barrier: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain

    @staticmethod
    def of(record: Mapping[str, Any]) -> Line:
        """The line that `record` describes; None stands for a network that fails."""
        least = -math.inf if record["least"] is None else record["least"]
        drops = (math.inf if record[name] is None else record[name] for name in ("barrier", "test_barrier"))
        return Line(record["first"], record["second"], record["inside"], least, record["at"], *drops)


def straight_lines(
    nets: Sequence[Network],
    task: Task,
    threshold: float,
    *,
    pairs: Iterable[Pair] | None = None,
    points: int = POINTS,
) -> tuple[Line, ...]:
    """Look at the straight lines between networks of one architecture.

    Weights and buffers are interpolated: w(t) = (1 - t) w_a + t w_b.

    Args:
        nets: Two or more.
        task: Its validation split decides what is inside; its test split is scored beside it, at most 5,000 examples.
        threshold: Least validation score inside.
        pairs: Places of the ends of each line; by default every two.
        points: Of the grid, at least 3, both ends included. Lines that stay inside on it are looked at again at 9
            points around the worst.

    Returns:
        One line per pair.

    Raises:
        InputError: Fewer than two networks or three points, or networks with different weights.

    Example:
        >>> from planaria.measure.datasets import task
        >>> digits, w = task("digits"), torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
        >>> net = Network.of(torch.nn.Linear(64, 10), digits.train.inputs)
        >>> ends = [net.with_weights({"weight": w}), net.with_weights({"weight": -w})]
        >>> straight_lines(ends, digits, threshold=0.0)[0].inside
        True

    Source: linear interpolation of weights (Goodfellow, Vinyals & Saxe 2015), with re-estimated statistics (Jordan et
    al. 2023).

    Not guaranteed: that nothing lies between the points.
    """
    nets = list(nets)
    if len(nets) < 2:
        raise InputError("straight_lines(nets)", "two networks or more", len(nets))
    if points < 3:
        raise InputError("straight_lines(points)", "at least 3", points)
    every = list(combinations(range(len(nets)), 2))
    wanted = every if pairs is None else list(pairs)
    if not wanted:
        return ()
    shares = [place / (points - 1) for place in range(points)]
    whole = wanted == every
    both = [task.validation, evenly(task.test, TESTED)]
    validated, tested = _scored(nets, wanted, shares, task, both, whole)

    def look(place: int, a: int, b: int) -> Line:
        def closer(times: Sequence[float]) -> Tensor:
            return _scored([nets[a], nets[b]], [(0, 1)], times, task, [task.validation], True)[0][0]

        return _line((a, b), shares, validated[place], tested[place], threshold, closer)

    return tuple(look(place, a, b) for place, (a, b) in enumerate(wanted))


def curved_lines(
    nets: Sequence[Network], task: Task, threshold: float, by: Way, *, pairs: Iterable[Pair], points: int = POINTS
) -> tuple[Line, ...]:
    """Join pairs of networks by curves, and look at these as at straight lines.

    Args:
        nets: Of one architecture.
        task: A way may learn from its training split; validation and test splits as for `straight_lines`.
        threshold: Least validation score inside.
        by: Makes the curves: Bezier(), Geodesic().
        pairs: Places of the ends of each.
        points: Evenly spaced in the curve's own time, at least 3; then more around the worst, as on lines.

    Returns:
        One line per pair; `at` is the time of the worst point.
    """
    test = evenly(task.test, TESTED)
    times = [place / (points - 1) for place in range(points)]

    def look(a: int, b: int) -> Line:
        path = by(nets[a], nets[b], task, stream(a, "curve", b)).calibrated(known_inputs(task))
        line, tested = _along(path, times, task, [task.validation, test])
        return _line(
            (a, b), times, line, tested, threshold, lambda closer: _along(path, closer, task, [task.validation])[0]
        )

    return tuple(look(a, b) for a, b in pairs)


def known_inputs(task: Task) -> Tensor:
    """Training inputs, evenly spaced, from which normalisation statistics are re-estimated: data may come sorted.

    Args:
        task: Whose training split.
    """
    return evenly(task.train, CALIBRATION).inputs


def _line(
    ends: Pair,
    times: Sequence[float],
    line: Tensor,
    tested: Tensor,
    threshold: float,
    closer: Callable[[Sequence[float]], Tensor],
) -> Line:
    """What scores along a line say; where it is inside so far, with more of them around the worst."""
    worst = int(line.argmin())
    least, at, barrier = float(line[worst]), times[worst], _barrier(line, times)
    good = float(min(line[0], line[-1])) >= threshold - ROUNDING
    if good and least >= threshold - ROUNDING:
        low, high = times[max(0, worst - 1)], times[min(len(times) - 1, worst + 1)]
        between = [low + (high - low) * (k + 1) / (AGAIN + 1) for k in range(AGAIN)]
        more = closer(between)
        barrier = max(barrier, _barrier(torch.cat([line[:1], more, line[-1:]]), [0.0, *between, 1.0]))
        if float(more.min()) < least:
            least, at = float(more.min()), between[int(more.argmin())]
    inside = least >= threshold - ROUNDING if good else None
    return Line(*ends, inside, least, at, barrier, _barrier(tested, times))


def _along(path: Path, times: Sequence[float], task: Task, splits: Sequence[Data]) -> Tensor:
    """Score at each time, [splits, times]."""
    there = [[task.score(net, data) for data in splits] for net in map(path, times)]
    return torch.tensor(there, dtype=torch.float64).T


def _barrier(line: Tensor, shares: Sequence[float]) -> float:
    """Largest drop below the straight line between the ends."""
    t = torch.tensor(shares, dtype=line.dtype)
    drop = (1 - t) * line[0] + t * line[-1] - line
    return max(0.0, float(drop.nan_to_num(0.0, posinf=math.inf).max()))


def _scored(
    nets: Sequence[Network],
    pairs: Sequence[Pair],
    shares: Sequence[float],
    task: Task,
    splits: Sequence[Data],
    every: bool,
) -> Tensor:
    """Score of each line at each share, [splits, pairs, shares]."""
    score = task.scorer
    if score.per_example is None or normalises(nets[0]):
        known = known_inputs(task)
        paths = (Path((nets[a], nets[b])).calibrated(known) for a, b in pairs)
        return torch.stack([_along(path, shares, task, splits) for path in paths], 1)

    def joined(some: Sequence[Network], data: Data) -> Tensor:
        return scores_between(some, shares, data.inputs, data.targets, score)

    tables = []
    for data in splits:
        if every:
            table = joined(nets, data)
            lines = torch.stack([table[a, b] for a, b in pairs])
        else:
            lines = torch.stack([joined([nets[a], nets[b]], data)[0, 1] for a, b in pairs])
        tables.append([[score.of_mean(value) for value in line] for line in lines.tolist()])
    return torch.tensor(tables, dtype=torch.float64)


def share_of_pairs(
    holds: Sequence[bool], pairs: Sequence[Pair], cluster_of: Callable[[int], object] | None = None
) -> Estimate | None:
    """Share of pairs for which something holds, where pairs share their members.

    Wilson's interval for the number of independent pairs that would be as sure, n = p (1 - p) / (v (t / z)^2), with v
    the variance of the share p by the jackknife that leaves out all pairs of one cluster after another, and t, z the
    quantiles of Student's and the normal distribution. With fewer than three clusters each member is one. Where all
    pairs agree that tells nothing of v; then n is the number of pairs that have no cluster in common: 2 for pairs
    between 5 walks, however many networks each gives. The jackknife counts twice what differs from pair to pair
    whatever the members: the interval is rather too wide than too narrow. In simulations of 3 to 10 walks, alike within
    a walk to a half or nearly wholly, it held the truth in 92 to 100 % of studies.

    Args:
        holds: One flag per pair.
        pairs: The two members of each.
        cluster_of: Member -> what it is alike with, such as the walk that it is from; by default every member is for
            itself.

    Returns:
        The share; None without any pair.

    Raises:
        InputError: If there are not as many flags as pairs.

    Example:
        >>> print(share_of_pairs([True] * 6, [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]))
        1.000 [0.342, 1.000]

    Source: Arvesen 1969, "Jackknifing U-statistics"; Korn & Graubard 1998 for the number of independent trials.

    Not guaranteed: exact coverage for few clusters.
    """
    flags = np.array(list(holds), dtype=bool)
    ends = np.array(list(pairs), dtype=int).reshape(-1, 2)
    if len(flags) != len(ends):
        raise InputError("share_of_pairs", "one flag for each pair", f"{len(flags)} and {len(ends)}")
    if not len(flags):
        return None
    share, members = float(flags.mean()), np.unique(ends)
    keys = [member if cluster_of is None else cluster_of(int(member)) for member in members]
    if len(set(keys)) < 3:
        keys = list(members)
    of = dict(zip(members.tolist(), keys, strict=True))
    touching = [{of[a], of[b]} for a, b in ends.tolist()]
    trials = float(_apart(touching))
    if 0 < share < 1:
        touched = np.array([[key in both for both in touching] for key in dict.fromkeys(keys)])
        left = np.array([flags[~gone].mean() for gone in touched if not gone.all()])
        if len(left) > 2:
            variance = (len(left) - 1) / len(left) * float(((left - left.mean()) ** 2).sum())
            wider = student_quantile(0.95, len(left) - 1) / NormalDist().inv_cdf(0.975)
            if variance > 0:
                trials = min(max(1.0, share * (1 - share) / (variance * wider**2)), float(len(flags)))
    return wilson_of_groups([share * trials], [trials])


def _apart(touching: Sequence[set[Any]]) -> int:
    """How many pairs can be chosen, one after another, of which no two touch the same cluster."""
    taken: set[Any] = set()
    count = 0
    for both in sorted(touching, key=len):  # first those within a cluster
        if not taken & both:
            taken |= both
            count += 1
    return count
