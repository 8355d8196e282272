"""Greedy: walks from both ends towards each other that change the function as little as they can."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

import torch
from torch import Generator, Tensor

from planaria.core.devices import clock
from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.core.trees import dot, norm
from planaria.geometry.geodesic import Geodesic
from planaria.geometry.metric import Metric
from planaria.geometry.normalise import normalises, renormalised
from planaria.geometry.path import Path, Polygon, towards
from planaria.geometry.straight import Way, begin, positive
from planaria.measure.task import Task

KEPT = 16
"""Networks of each walk that become knots, at most; those between are left out evenly."""


@dataclass(frozen=True)
class Greedy:
    """Greedy walks on the functional metric g, from both ends in turn, each towards where the other is.

        theta = argmin theta^T g theta - beta theta^T d,   |theta| = step,   d = (other - w) / |other - w|

    which is the direction (g + mu)^-1 d, mu = damping times the largest eigenvalue of g, at the length `step`. The
    walks end when they are one step apart, come no closer, or have used up their steps. What is then left between them
    is noted as the final gap and closed by a chain.

    Args:
        step: Length of a step in weight space, |theta|; 0.1 bounds theta^T theta by 0.01.
        steps: Of each walk, at most.
        inputs: Training inputs that the metric is taken on; labels are not used.
        damping: See `Metric.solve`.
        close: Closes the gap; its start is the straight line over it.
        start: Way (or path) whose ends are connected; None for the straight line after alignment by weights.

    Raises:
        InputError: A setting that is not positive.

    Example:
        >>> Greedy(steps=50).step
        0.1

    Source: Raghavan and Thomson, 2021 (the tangent rule and its bound); that both walks meet on the way, and the
    chain, are this package's choice.

    Not guaranteed: that the walks meet; greedy walks rarely do in few steps.
    """

    step: float = 0.1
    steps: int = 100
    inputs: int = 100
    damping: float = 1e-3
    close: Geodesic = field(default=Geodesic(nets=9, updates=200))
    start: Way | Path | None = None

    def __post_init__(self) -> None:
        positive("Greedy.step", self.step)
        positive("Greedy.steps", self.steps, whole=True)
        positive("Greedy.inputs", self.inputs, whole=True)
        positive("Greedy.damping", self.damping)

    def __call__(self, a: Network, b: Network, task: Task, rng: Generator, /) -> Path:
        """The walks and the chain between them."""
        line = begin(self.start, a, b, task, rng)
        start = clock(a.device)
        rows = torch.randperm(len(task.train), generator=rng)[: self.inputs]
        inputs = task.train.inputs[rows].to(a.device)
        first, last = line.knots[0], line(1.0)
        walks, spent, taken, gap = [_Walk(first), _Walk(last)], Cost(), 0, float(norm(towards(first, last)))
        whole = gap
        for count in range(2 * self.steps):
            if gap <= self.step:
                break
            one, other = walks[count % 2], walks[1 - count % 2]
            cost = self._advance(one, other.now, inputs)
            spent, taken = spent + cost, taken + 1
            left = float(norm(towards(one.now, other.now)))
            if left >= gap:
                break
            gap = left
        spent = replace(spent, seconds=clock(a.device) - start)
        left_over = Path((walks[0].now, walks[1].now))
        knots = [*walks[0].knots, *reversed(walks[1].knots)]
        if gap > self.step:
            closed = replace(self.close, start=left_over)(walks[0].now, walks[1].now, task, rng)
            spent = spent + closed.cost
            knots = [*walks[0].knots, *closed.knots[1:-1], *reversed(walks[1].knots)]
        knots = [*knots[:-1], line.knots[-1]]
        notes = {**line.notes, "steps taken": taken, "gap before": whole, "final gap": gap}
        return Path(tuple(knots), _even(knots), cost=line.cost + spent, notes=notes)

    def _advance(self, walk: _Walk, target: Network, inputs: Tensor) -> Cost:
        """One step of a walk towards a network."""
        net = walk.now
        way = towards(net, target)
        length = float(norm(way))
        solution = Metric(net, inputs).solve({name: v / length for name, v in way.items()}, damping=self.damping)
        theta = solution.direction
        size = float(norm(theta))
        if size > 0 and float(dot(theta, way)) > 0:
            scale = min(self.step, length) / size
            weights = {name: w + scale * theta[name] for name, w in net.weights.items() if w.is_floating_point()}
            net = net.with_weights(weights)
        walk.add(renormalised(net, inputs) if normalises(net) else net)
        return solution.cost


class _Walk:
    """Where a walk is, and every so many of the networks that it went through."""

    def __init__(self, start: Network) -> None:
        self.now, self._kept, self._every, self._count = start, [start], 1, 0

    def add(self, net: Network) -> None:
        self.now = net
        self._count += 1
        if self._count % self._every == 0:
            self._kept.append(net)
        if len(self._kept) > KEPT:
            self._kept, self._every = self._kept[::2], 2 * self._every

    @property
    def knots(self) -> list[Network]:
        """From its start to where it is."""
        return self._kept if self._kept[-1] is self.now else [*self._kept, self.now]


def _even(knots: list[Network]) -> Polygon:
    """Polygon through knots at constant speed in weight space."""
    lengths = [float(norm(towards(one, two))) for one, two in pairwise(knots)]
    total = sum(lengths)
    if not total > 0 or min(lengths) <= 1e-9 * total:
        return Polygon()
    times = list(accumulate(lengths, initial=0.0))
    return Polygon((0.0, *(time / times[-1] for time in times[1:-1]), 1.0))
