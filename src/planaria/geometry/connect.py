"""connect: a path of good networks between two networks, by the simplest way that finds one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from planaria.core.errors import InputError, PlanariaError
from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.geometry.bend import Bezier
from planaria.geometry.geodesic import Geodesic
from planaria.geometry.greedy import Greedy
from planaria.geometry.normalise import normalises
from planaria.geometry.path import Path, check_alike, check_function
from planaria.geometry.profile import Profile, profile
from planaria.geometry.straight import Straight, Way, aligned, positive
from planaria.measure.data import Data
from planaria.measure.statistics import finite
from planaria.measure.task import Task

CALIBRATION = 1000
"""Training inputs, at most, from which normalisation statistics are re-estimated."""

SAMPLE = 5000
"""Training examples, at most, on which the path that is returned is measured."""

TOLERANCE = 0.05
"""Loss barrier that counts as none: nats for classes, else as a share of the loss of a constant answer."""


@dataclass(frozen=True, eq=False, repr=False)
class Attempt:
    """One way that `connect` has tried.

    Attributes:
        way: The way.
        path: What it found; None if it could not.
        profile: Along that path, on validation data.
        tolerance: Loss barrier that was asked for.
        cost: Of finding the path, without measuring it.
        problem: Why it could not.
    """

    way: Way
    path: Path | None
    profile: Profile | None
    tolerance: float
    cost: Cost
    problem: str = ""

    @property
    def connects(self) -> bool:
        """Whether the loss barrier on validation data is at most the tolerance."""
        return self.profile is not None and self.profile.loss_barrier.best <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """All of it but the networks, JSON-able."""
        plain: dict[str, Any] = finite(
            {
                "way": type(self.way).__name__,
                "settings": repr(self.way),
                "connects": self.connects,
                "tolerance": self.tolerance,
                "cost": dict(vars(self.cost)),
                "notes": {} if self.path is None else dict(self.path.notes),
                "problem": self.problem,
            }
        )
        return {**plain, "validation": None if self.profile is None else self.profile.to_dict()}

    def __repr__(self) -> str:
        said = self.problem if self.profile is None else f"loss barrier {self.profile.loss_barrier}"
        return f"<Attempt {self.way!r}: {said}>"


def connect(
    a: Network,
    b: Network,
    task: Task,
    by: Way | Sequence[Way] | None = None,
    *,
    points: int = 25,
    tolerance: float | None = None,
    calibration: int = CALIBRATION,
    seed: int = 0,
) -> Path:
    """Connect two networks by a path along which the loss stays low.

    Without `by`, tries in this order, until the loss barrier on validation data is at most the tolerance: the straight
    line; the straight line after alignment of b's units to a's by weights; a Bezier curve; a geodesic chain; greedy
    walks. Each of the last three connects a with the aligned b. With batch normalisation, statistics between the ends
    are re-estimated on up to 1,000 training inputs.

    Args:
        a: Where the path begins.
        b: Where it ends, with its units permuted if the way aligns. The same architecture as a.
        task: Training data for the ways, validation data for the decision, test data for the report.
        by: One way, or several in order; None for all of them.
        points: Of the grid on which barriers are looked for, before it is refined.
        tolerance: Loss barrier, in the task's loss, that counts as none; 0.05 nats for classes, else 0.05 of the loss
            of the best constant answer, if not given.
        calibration: Training inputs, at most, from which normalisation statistics are re-estimated.
        seed: Of everything random.

    Returns:
        The first path within tolerance, else the one with the least barrier. Its `profiles` are those on "train" (at
        most 5,000 examples), "validation" and "test"; `tried` has every attempt with its barrier and cost; `cost` is
        the sum of all attempts, without measuring. A path that does not connect is a result, not an error.

    Raises:
        InputError: Networks of different weights or architecture, an end with outputs that are not finite, batch
            normalisation without running statistics, no way, or no way that could be tried.

    Example:
        >>> from torch import nn
        >>> from planaria.measure.datasets import task
        >>> digits = task("digits")
        >>> a = Network.of(nn.Linear(64, 10), digits.train.inputs)
        >>> path = connect(a, a.with_weights({"bias": a.weights["bias"] + 1}), digits)
        >>> [type(attempt.way).__name__ for attempt in path.tried], path.tried[0].connects
        (['Straight'], True)

    Source: the ladder follows Raghavan and Thomson, 2021, with the means of the literature before the paper's own.

    Not guaranteed: that two networks between which no path was found are not connected.
    """
    check_alike(a, b)
    example = task.train.examples
    a, b = a.with_inputs(example), b.with_inputs(example)
    check_function(a, b)
    ways = _ways(by)
    for name, net in (("a", a), ("b", b)):
        if not bool(task.outputs(net, task.validation.to(net.device)).isfinite().all()):
            expected = "a network with finite outputs on the validation data"
            raise InputError(f"connect({name})", expected, "NaN or infinity", "Repair or exclude this network.")
    if tolerance is None:
        tolerance = _tolerance(task)
    elif not (isinstance(tolerance, (int, float)) and 0 <= tolerance < math.inf):
        raise InputError("connect(tolerance)", "a finite number of at least 0", repr(tolerance))
    positive("connect(calibration)", calibration, whole=True)
    known = None
    if normalises(a):
        rows = torch.randperm(len(task.train), generator=stream(seed, "connect", "calibration"))[:calibration]
        known = task.train.inputs[rows].to(a.device)
    tried: list[Attempt] = []
    for way in ways:
        attempt = _attempt(way, a, b, task, tried, known, points, tolerance, seed, alone=len(ways) == 1)
        tried.append(attempt)
        if attempt.connects:
            break
    found = [attempt for attempt in tried if attempt.profile is not None]
    if not found:
        raise InputError("connect(by)", "a way that can be tried here", "; ".join(attempt.problem for attempt in tried))
    best = min(found, key=lambda attempt: attempt.profile.loss_barrier.best if attempt.profile else math.inf)
    assert best.path is not None
    assert best.profile is not None
    rows = torch.randperm(len(task.train), generator=stream(seed, "connect", "sample"))[:SAMPLE]
    profiles = {
        "train": profile(best.path, task, task.train.take(rows), points=points),
        "validation": best.profile,
        "test": profile(best.path, task, points=points),
    }
    spent = Cost()
    for attempt in tried:
        spent = spent + attempt.cost
    return replace(best.path, cost=spent, profiles=profiles, tried=tuple(tried))


def _ways(by: Way | Sequence[Way] | None) -> tuple[Way, ...]:
    if by is None:
        return Straight(), aligned(), Bezier(), Geodesic(), Greedy()
    ways = tuple(by) if isinstance(by, Sequence) else (by,)
    if not ways or not all(callable(way) and not isinstance(way, type) for way in ways):
        expected = "one way or more: Straight(), Bezier(), Geodesic(), Greedy()"
        raise InputError("connect(by)", expected, repr(by))
    return ways


def _attempt(
    way: Way,
    a: Network,
    b: Network,
    task: Task,
    tried: Sequence[Attempt],
    calibration: torch.Tensor | None,
    points: int,
    tolerance: float,
    seed: int,
    *,
    alone: bool,
) -> Attempt:
    """Try one way; what stops it is an error only if there is no other."""
    rng = stream(seed, "connect", type(way).__name__)
    acting = way
    if isinstance(way, (Bezier, Geodesic, Greedy)) and way.start is None:  # align once
        lines = [attempt.path for attempt in tried if attempt.way == aligned() and attempt.path is not None]
        acting = replace(way, start=replace(lines[0], cost=Cost())) if lines else way
    try:
        path = acting(a, b, task, rng)
        if calibration is not None:
            path = path.calibrated(calibration)
        measured = profile(path, task, task.validation, points=points)
    except PlanariaError as problem:
        if alone:
            raise
        return Attempt(way, None, None, tolerance, Cost(), str(problem))
    return Attempt(way, path, measured, tolerance, path.cost)


def _tolerance(task: Task) -> float:
    """What counts as no barrier in the task's loss."""
    if task.classes is not None:
        return TOLERANCE
    data: Data = task.validation
    targets = data.targets
    if not targets.is_floating_point():
        return TOLERANCE
    constant = float(task.loss(targets.mean(0, keepdim=True).expand(targets.shape), targets))
    return TOLERANCE * constant if 0 < constant < math.inf else TOLERANCE
