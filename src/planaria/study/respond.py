"""How a network fails: its score against the dose of a damage."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from planaria.core.anatomy import Unit
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits, RankedUnits
from planaria.measure.statistics import (
    Estimate,
    area,
    dose_of_loss,
    finite,
    half_dose,
    mean_interval,
    numpy_generator,
)
from planaria.measure.task import Data, Task
from planaria.measure.transition import CriticalDose, critical_dose
from planaria.sweep.ablate import ablate
from planaria.sweep.lesions import Nested
from planaria.sweep.precision import planned_inputs
from planaria.sweep.tally import Tally


@dataclass(frozen=True)
class Point:
    """Score of one network damaged at one dose in one random order."""

    draw: int
    dose: float
    score: float


@dataclass(frozen=True, eq=False)
class Response:
    """A response curve: scores over doses, each row one random order with nested lesions.

    Intervals are over orders, for this one network and this test split.

    Attributes:
        doses: Ascending, beginning with 0.
        scores: [draws][doses], on the test split.
        chance: Score of guessing.
        unit: What the dose counts.
        seed: Seed of the orders.
        bounds: Least and greatest possible score, if there are any.
    """

    doses: tuple[float, ...]
    scores: tuple[tuple[float, ...], ...]
    chance: float
    unit: str
    seed: int
    bounds: tuple[float, float] | None = None

    @property
    def intact(self) -> float:
        """Score at dose 0."""
        return self.scores[0][0]

    @cached_property
    def mean(self) -> tuple[Estimate, ...]:
        """Mean score at each dose, with its 95 % interval."""
        return tuple(mean_interval(column, within=self.bounds) for column in zip(*self.scores, strict=True))

    @cached_property
    def half_dose(self) -> Estimate:
        """Dose at which half of the score above chance is lost; infinite if the curve never falls that far."""
        return half_dose(self.doses, self.scores, self.chance, self._rng("half"))

    def dose_of_loss(self, points: float = 0.10) -> Estimate:
        """Dose at which the score has fallen by `points`; infinite if it never does."""
        return dose_of_loss(self.doses, self.scores, self._rng("loss"), points=points)

    @cached_property
    def critical(self) -> CriticalDose:
        """Fitted break point of the curve, and whether a smooth curve describes it as well."""
        return critical_dose(self.doses, self.scores, self.chance, self._rng("critical"))

    @cached_property
    def area(self) -> Estimate:
        """Area under the curve, in score times dose: the mean score where doses run from 0 to 1."""
        return area(self.doses, self.scores)

    def _rng(self, what: str) -> np.random.Generator:
        return numpy_generator(stream(self.seed, "bootstrap", what))

    def to_dict(self) -> dict[str, Any]:
        """The curve and its summary as plain numbers."""
        critical = self.critical
        record = {
            "doses": list(self.doses),
            "mean": [estimate.best for estimate in self.mean],
            "low": [estimate.to_dict()["low"] for estimate in self.mean],
            "high": [estimate.to_dict()["high"] for estimate in self.mean],
            "draws": [list(row) for row in self.scores],
            "chance": self.chance,
            "intact": self.intact,
            "unit": self.unit,
            "half_dose": self.half_dose.to_dict(),
            "dose_of_10_point_loss": self.dose_of_loss(0.10).to_dict(),
            "area": self.area.to_dict(),
            "critical_dose": None if critical.estimate is None else critical.estimate.to_dict(),
            "critical_verdict": critical.verdict,
        }
        plain: dict[str, Any] = finite(record)
        return plain

    def __str__(self) -> str:
        lines = [f"dose ({self.unit})  score"]
        lines += [f"{dose:<20g}{score:.3f}" for dose, score in zip(self.doses, self.mean, strict=True)]
        lines.append(
            f"half-dose {self.half_dose:.3f}; 10-point loss at {self.dose_of_loss():.3f}; "
            f"critical dose: {self.critical.verdict}"
        )
        return "\n".join(lines)


def checked_doses(damage: Damage, doses: Sequence[float]) -> tuple[float, ...]:
    """Doses in ascending order, with 0 in front, each once.

    Raises:
        InputError: If there is none, or one lies outside the damage's axis.
    """
    if not doses:
        raise InputError("doses", "at least one dose", "none")
    return tuple(sorted({0.0, *(float(damage.site.dose.check(dose)) for dose in doses)}))


@dataclass(frozen=True)
class InputPlan:
    """How many test inputs each order of a response curve is judged on.

    Attributes:
        inputs: Drawn anew for each order, without repetition.
        intact: Score without damage on all of them, to which the changes on the drawn ones are added.
    """

    inputs: int
    intact: float


PILOT = 8
"""Orders from which the number of inputs is planned."""


def plan_inputs(net: Network, damage: Damage, task: Task, doses: Sequence[float], *, seed: int = 0) -> InputPlan:
    """Plan how many inputs to spend on each order of a response curve, from a pilot of 8 orders on all inputs.

    Where orders differ more than inputs do, more orders on fewer inputs each give a more precise mean at the same
    price. See `planned_inputs` for the rule: the standard error grows by 7 % at most.

    Args:
        net: The network.
        damage: What is done to it.
        task: Its test split is what inputs are drawn from.
        doses: On the damage's axis; 0 is added.
        seed: Of the pilot's orders.

    Raises:
        InputError: The score is no mean over examples, so that it cannot be taken from a part of them.
    """
    if task.scorer.per_example is None:
        raise InputError("plan_inputs(task)", "a score that is a mean over examples", task.scorer.name)
    net = net.with_inputs(task.train.examples)
    doses = checked_doses(damage, doses)
    orders = [_changes(net, damage, task, doses, ("pilot", number), seed, task.test) for number in range(PILOT)]
    tallies = [tally for tally, _ in orders]
    pilot = Tally(*(torch.stack([getattr(t, name) for t in tallies]) for name in ("total", "rose", "fell", "squares")))
    return InputPlan(planned_inputs(pilot, len(task.test), len(task.test)), orders[0][1])


def iter_respond(
    net: Network,
    damage: Damage,
    task: Task,
    doses: Sequence[float],
    *,
    draw: int,
    seed: int = 0,
    plan: InputPlan | None = None,
) -> Iterator[Point]:
    """Points of one order, dose after dose; lesions are nested and evaluated together by the sweep engine.

    Args:
        net: The network.
        damage: What is done to it.
        task: Scored on its test split.
        doses: On the damage's axis; 0 is added.
        draw: Number of the order.
        seed: Order number n under one seed is always the same.
        plan: Judge it on so many inputs; by default on all.
    """
    net = net.with_inputs(task.train.examples)
    doses = checked_doses(damage, doses)
    for dose, score in zip(doses, _scores(net, damage, task, doses, draw, seed, plan), strict=True):
        yield Point(draw, dose, score)


AUDITED = 2
"""Lesions of each order that are run again by brute force."""


def _scores(
    net: Network,
    damage: Damage,
    task: Task,
    doses: Sequence[float],
    draw: int,
    seed: int,
    plan: InputPlan | None,
) -> Iterator[float]:
    """Score at each dose of one order."""
    if task.scorer.per_example is None:  # no sum over examples: the damaged networks are run whole
        for dose in doses:
            yield task.score(damage.at(dose)(net, stream(seed, "order", draw)))
        return
    data = task.test
    if plan is not None and plan.inputs < len(data):
        data = data.take(torch.randperm(len(data), generator=stream(seed, "inputs", draw))[: plan.inputs].tolist())
    tally, intact = _changes(net, damage, task, doses, ("order", draw), seed, data)
    for change in (tally.total / len(data)).tolist():
        score = (intact if plan is None else plan.intact) + change
        yield -math.inf if math.isnan(score) else score


def _changes(
    net: Network,
    damage: Damage,
    task: Task,
    doses: Sequence[float],
    name: tuple[str, int],
    seed: int,
    data: Data,
) -> tuple[Tally, float]:
    """Changes of the score at each dose of one order, and the intact score, on some inputs."""
    order = _order(net, damage, doses, name, seed)
    if order is None:
        hurt = [damage.at(dose)(net, stream(seed, *name)) for dose in doses]
        effects = ablate(net, hurt, task, data=data, audited=AUDITED, seed=seed)
        return effects.tallies["lesions"], effects.intact
    units, counts = order
    points = tuple(sorted(set(counts)))
    effects = ablate(net, Nested((units,), points), task, data=data, audited=AUDITED, seed=seed)
    found, places = effects.tallies["orders"], [points.index(count) for count in counts]
    kept = Tally(*(getattr(found, part)[0, places] for part in ("total", "rose", "fell", "squares")))
    return kept, effects.intact


def _order(
    net: Network, damage: Damage, doses: Sequence[float], name: tuple[str, int], seed: int
) -> tuple[tuple[Unit, ...], list[int]] | None:
    """Units in the order of their deletion and how many are deleted at each dose; None for other damage."""
    if not isinstance(damage.fault, Silence) or not isinstance(damage.site, (RandomUnits, RankedUnits)):
        return None
    order: dict[Unit, None] = {}
    counts = []
    for dose in doses:
        units = damage.site.units(net, dose, stream(seed, *name))
        order |= dict.fromkeys(units)
        counts.append(len(units))
        if len(order) != len(units):
            return None  # not nested
    return tuple(order), counts


def collect(points: Sequence[Point], damage: Damage, task: Task, seed: int) -> Response:
    """Response curve from the points of complete orders."""
    doses = tuple(sorted({point.dose for point in points}))
    known = {(point.draw, point.dose): point.score for point in points}
    rows = tuple(tuple(known[draw, dose] for dose in doses) for draw in sorted({p.draw for p in points}))
    return Response(doses, rows, task.chance, damage.site.dose.unit, seed, task.scorer.bounds)


def respond(
    net: Network,
    damage: Damage,
    task: Task,
    *,
    doses: Sequence[float] = tuple(np.linspace(0, 1, 11).tolist()),
    draws: int = 20,
    seed: int = 0,
    planned: bool = False,
) -> Response:
    """Damage a network in many random orders and follow its score down.

    Args:
        net: The network; it is not changed.
        damage: Fault and site.
        task: Scored on its test split.
        doses: On the damage's axis; 0 is added.
        draws: Number of random orders, at least 1. Twenty are a good number: orders differ a lot.
        seed: Same seed, same orders.
        planned: Judge each order on as many inputs as a pilot plans (`plan_inputs`) instead of all: worth it for many
            orders on many inputs.

    Returns:
        The response curve with intervals over orders.

    Raises:
        InputError: If a dose lies outside its axis or there are no draws.

    Example:
        >>> from planaria.measure.datasets import task
        >>> from planaria.damage.damage import RandomUnits, Silence
        >>> from torch import nn
        >>> digits = task("digits")
        >>> net = Network.of(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)))
        >>> respond(net, Damage(Silence(), RandomUnits()), digits, doses=[0.5, 1], draws=2).doses
        (0.0, 0.5, 1.0)

    Not guaranteed: that intervals over orders say anything about other trained networks of the same form.
    """
    if draws < 1:
        raise InputError("respond(draws)", "a number of at least 1", draws)
    net = net.with_inputs(task.train.examples)  # once, so that what is known of the network is found again
    plan = plan_inputs(net, damage, task, doses, seed=seed) if planned else None
    points = [
        point
        for draw in range(draws)
        for point in iter_respond(net, damage, task, doses, draw=draw, seed=seed, plan=plan)
    ]
    return collect(points, damage, task, seed)
