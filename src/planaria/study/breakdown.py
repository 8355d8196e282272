"""Break-down: how fast outputs change while damage grows, and where that speed or the score gives way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from planaria.core.anatomy import Anatomy, Unit
from planaria.core.autodiff import jvp, plain_kernels
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import Weights, zip_map
from planaria.geometry.jacobian import Jacobian
from planaria.geometry.metric import Geometry
from planaria.measure.data import Data
from planaria.measure.statistics import Estimate, kaplan_meier, mean_interval, wilson
from planaria.measure.task import Task
from planaria.study.gating import displacement
from planaria.sweep.lesions import EachUnit, Lesion
from planaria.sweep.replay import edited

PATH, COUNT = "path", "count"
"""Along the straight line from the intact to the damaged weights; along growing numbers of deleted units."""
EXHAUSTED = ("out of memory", "DefaultCPUAllocator")
"""What torch says where memory is too small."""
FASTER = 3.0
"""Times the first speed at which a path is said to break down."""
LOSS = 0.05
"""Loss of score at which it is: of a share, or as a share of what the intact network has above chance."""
ROWS = 128
"""Inputs of one pass with tangents."""
FARTHEST = 0.9
"""Share of the units up to which their number grows."""


@dataclass(frozen=True)
class Walked:
    """One random lesion as it grows.

    Attributes:
        speed: Change of the outputs per unit of path or per deleted unit, at each place.
        distance: Root mean square change of the outputs from the intact ones.
        score: Of the network there; empty where there is no task.
    """

    speed: tuple[float, ...]
    distance: tuple[float, ...]
    score: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"speed": list(self.speed), "distance": list(self.distance), "score": list(self.score)}


@dataclass(frozen=True)
class Breakdown:
    """How damage grows, over several random lesions.

    Attributes:
        along: "path" or "count".
        at: Places: t from 0 to 1, or shares of the units.
        units: Deleted units, at the end of the path or at each place.
        runs: Random lesions.
        allowed: Loss of score that counts as a break-down; None without a score.
        bounds: Of the score.
    """

    along: str
    at: tuple[float, ...]
    units: tuple[int, ...]
    runs: tuple[Walked, ...]
    allowed: float | None
    bounds: tuple[float, float] | None = None

    def curve(self, what: str) -> tuple[Estimate, ...]:
        """Mean over lesions at each place, with an interval over lesions.

        Args:
            what: "speed", "distance" or "score".
        """
        columns = list(zip(*(getattr(run, what) for run in self.runs), strict=True))
        within = self.bounds if what == "score" else (0.0, math.inf)
        return tuple(mean_interval(column, within=within) for column in columns)

    @property
    def faster(self) -> tuple[float | None, ...]:
        """First place of each lesion at which the speed is over 3 times that at the start; None where it never is."""
        return tuple(
            _first(self.at, [run.speed[0] > 0 and v > FASTER * run.speed[0] for v in run.speed]) for run in self.runs
        )

    @property
    def worse(self) -> tuple[float | None, ...]:
        """First place of each lesion at which the score has lost what is allowed; None where it never has."""
        if self.allowed is None:
            return (None,) * len(self.runs)
        limit = self.allowed * (1 - 1e-9)
        return tuple(_first(self.at, [not run.score[0] - s < limit for s in run.score]) for run in self.runs)

    def broken(self, places: Sequence[float | None]) -> Estimate:
        """Share of lesions that break down before the end, with Wilson's interval.

        Args:
            places: `faster` or `worse`.
        """
        return wilson(sum(place is not None for place in places), len(places))

    def median(self, places: Sequence[float | None]) -> Estimate:
        """Place by which half of the lesions have broken down; infinite where less than half do.

        Args:
            places: `faster` or `worse`.
        """
        ends = [self.at[-1] if place is None else place for place in places]
        return kaplan_meier(ends, [place is not None for place in places]).median

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        kinds = {"faster": self.faster, **({} if self.allowed is None else {"worse": self.worse})}
        return {
            "along": self.along,
            "at": list(self.at),
            "units": list(self.units),
            "allowed": self.allowed,
            "runs": [run.to_dict() for run in self.runs],
            **{
                what: [estimate.to_dict() for estimate in self.curve(what)]
                for what in ("speed", "distance", *(["score"] if self.allowed is not None else []))
            },
            **{
                kind: {
                    "each": list(places),
                    "median": self.median(places).to_dict(),
                    "broken": self.broken(places).to_dict(),
                }
                for kind, places in kinds.items()
            },
        }


def _first(places: Sequence[float], reached: Sequence[bool]) -> float | None:
    return next((place for place, there in zip(places, reached, strict=True) if there), None)


def allowed_loss(task: Task, intact: float, share: bool) -> float:
    """Loss of score that counts as a break-down: 5 points of a share, else 5 % of what is above chance."""
    above = abs(intact - task.chance)
    return LOSS if share or not 0 < above < math.inf else LOSS * above


def random_lesion(net: Network, what: EachUnit, dose: float, seed: int, number: int) -> tuple[Unit, ...]:
    """The share `dose` of the units of every layer, at least one, drawn without replacement.

    Args:
        net: The network.
        what: Which units.
        dose: Above 0, up to 1.
        seed: Lesion `number` under one seed is always the same.
        number: Of the lesion.
    """
    rng, found = stream(seed, "lesion", number), []
    for group in Anatomy.of(net).select(what.kinds, what.layers):
        order = torch.randperm(group.count, generator=rng)[: max(1, round(dose * group.count))]
        found += [Unit(group.layer, place) for place in sorted(order.tolist())]
    return tuple(found)


def along_path(
    net: Network, units: Sequence[Unit], inputs: Tensor, of: Geometry, points: int, task: Task | None, data: Data | None
) -> Walked:
    """Speed, distance and score along w + t u, where u silences some units by the entries by which they are read.

    v(t) = sqrt(u^T g(w + t u) u) = sqrt(mean over inputs of |J(w + t u) u|^2), measured by derivatives, not by
    differences.

    Args:
        net: The intact network.
        units: The lesion.
        inputs: [examples, ...].
        of: How changes of outputs are measured.
        points: Places from t = 0 to t = 1.
        task: For the score; None for none.
        data: On which it is taken.

    Source: functional speed along damage paths: Raghavan, Li and Thomson 2020.
    """
    u, intact = displacement(net, units), net(inputs)
    speed, distance, score = [], [], []
    for t in torch.linspace(0, 1, points, dtype=torch.float64).tolist():
        here = net.with_weights(zip_map(lambda w, d, t=t: w + t * d, net.weights, u))
        outputs, slope = _pushed(here, u, inputs)
        speed.append(_distance(of, outputs, slope))
        distance.append(_distance(of, intact, outputs - intact))
        score += [] if task is None or data is None else [task.score(here, data)]
    return Walked(tuple(speed), tuple(distance), tuple(score))


def _pushed(net: Network, u: Weights, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and J u: one pass with tangents, at a third of the price of a `Metric`, which is for many products."""

    def outputs(weights: Weights, rows: Tensor) -> Tensor:
        flat: Tensor = net.evaluate(rows, weights, {name: tensor.clone() for name, tensor in net.buffers.items()})
        return flat

    try:
        with plain_kernels(recurrence=True):
            pairs = [jvp(partial(outputs, rows=rows), net.weights, u) for rows in inputs.split(ROWS)]
    except RuntimeError as problem:  # an operation that torch can only differentiate backwards
        if any(said in str(problem) for said in EXHAUSTED):
            raise
        return _pushed_back(net, u, inputs)
    return torch.cat([value for value, _ in pairs]), torch.cat([slope for _, slope in pairs])


def _pushed_back(net: Network, u: Weights, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The same by differentiating backwards twice."""
    try:
        jacobian = Jacobian(net, inputs, "resilience(net)")
        return jacobian.outputs, jacobian.push(u)
    except InputError as problem:
        remedy = f"{problem.remedy} Or leave the break-down out: repeats=0.".strip()
        raise InputError(problem.where, problem.expected, problem.got, remedy) from problem


def by_count(
    net: Network,
    order: Sequence[Unit],
    counts: Sequence[int],
    inputs: Tensor,
    of: Geometry,
    task: Task | None,
    data: Data | None,
) -> Walked:
    """Speed, distance and score as units are deleted in an order; the speed is that of the step before, per unit.

    Args:
        net: The intact network.
        order: Units.
        counts: Numbers of units at each place, ascending from 0.
        inputs: [examples, ...].
        of: How changes of outputs are measured.
        task: For the score; None for none.
        data: On which it is taken.
    """
    intact = before = net(inputs)
    speed, distance, score = [], [], []
    for number, count in enumerate(counts):
        here = edited(net, Lesion.of(order[:count], net)) if count else net
        now = here(inputs)
        if number:
            speed.append(_distance(of, intact, now - before) / max(1, count - counts[number - 1]))
        distance.append(_distance(of, intact, now - intact))
        score += [] if task is None or data is None else [task.score(here, data)]
        before = now
    return Walked((speed[0], *speed), tuple(distance), tuple(score))


def breakdown_of(known: Mapping[str, Any], allowed: float | None, bounds: tuple[float, float] | None) -> Breakdown:
    """A result from plain values: along, at, units and runs."""
    runs = tuple(Walked(*(tuple(run[what]) for what in ("speed", "distance", "score"))) for run in known["runs"])
    return Breakdown(known["along"], tuple(known["at"]), tuple(known["units"]), runs, allowed, bounds)


def _distance(of: Geometry, intact: Tensor, change: Tensor) -> float:
    square = of.half(intact, change).double().square().reshape(len(intact), -1).sum(1)
    return math.sqrt(float(square.mean()))
