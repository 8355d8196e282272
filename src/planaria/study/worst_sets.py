"""Worst sets: which few units cost most when they are silent together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from planaria.core.anatomy import Anatomy, Unit
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.data import Data
from planaria.measure.statistics import Estimate, mean_interval
from planaria.measure.task import Task
from planaria.sweep.ablate import ablate
from planaria.sweep.lesions import EachUnit, Nested

GREEDY, FIRST_ORDER, RANDOM = "greedy", "first-order", "random"
"""Each unit the worst given those before it; the units that cost most alone; a random draw."""
DRAWS = 20
"""Random sets that the chosen ones are compared with."""


@dataclass(frozen=True)
class WorstSets:
    """Scores of growing sets of silenced units.

    Attributes:
        units: How they were chosen -> units in the order of the choice; random draws are not listed.
        scores: How -> score with the first 1, 2, ... units silenced. Of chosen sets with an interval over inputs like
            these, of random ones the mean over draws with an interval over draws.
        intact: Score without a lesion.
        draws: Random sets.
    """

    units: Mapping[str, tuple[Unit, ...]]
    scores: Mapping[str, tuple[Estimate, ...]]
    intact: float
    draws: int

    @property
    def size(self) -> int:
        """Units in the whole sets."""
        return len(self.units[GREEDY])

    def lost(self, how: str, size: int | None = None) -> Estimate:
        """Score that a set costs; the whole one where no size is given."""
        return _less(self.intact, self.scores[how][(self.size if size is None else size) - 1])

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the whole sets, and the curve along their growth."""
        whole = [
            {
                "how": how,
                "size": self.size,
                "score": scores[-1].to_dict(),
                "lost": self.lost(how).to_dict(),
                "units": [[unit.layer, unit.index] for unit in self.units.get(how, ())],
            }
            for how, scores in self.scores.items()
        ]
        curve = [
            {"size": at + 1, **{how.replace("-", "_"): row[at].to_dict() for how, row in self.scores.items()}}
            for at in range(self.size)
        ]
        return {"worst_sets": whole, "curve": curve}


def _less(whole: float, part: Estimate) -> Estimate:
    return Estimate(whole - part.high, whole - part.best, whole - part.low)


def random_orders(net: Network, what: EachUnit, size: int, seed: int) -> tuple[tuple[Unit, ...], ...]:
    """Random sets of units, each in an order.

    Args:
        net: The network.
        what: Which units.
        size: Units of a set.
        seed: Draw number n under one seed is always the same.

    Example:
        >>> from torch import nn
        >>> net = Network.of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 4))
        >>> [len(order) for order in random_orders(net, EachUnit(), 2, 0)] == [2] * DRAWS
        True
    """
    units = units_of(net, what)
    chosen = []
    for draw in range(DRAWS):
        order = torch.randperm(len(units), generator=stream(seed, "worst set", draw))[:size]
        chosen.append(tuple(units[place] for place in order.tolist()))
    return tuple(chosen)


def units_of(net: Network, what: EachUnit) -> tuple[Unit, ...]:
    """All units that are meant, layer after layer."""
    groups = Anatomy.of(net).select(what.kinds, what.layers)
    return tuple(Unit(group.layer, number) for group in groups for number in range(group.count))


def measured_sets(
    net: Network,
    task: Task,
    greedy: Sequence[Unit],
    first: Sequence[Unit],
    what: EachUnit,
    *,
    data: Data,
    workers: int = 1,
    seed: int = 0,
) -> tuple[WorstSets, dict[str, Any]]:
    """Score sets of silenced units as they grow, all of them on the same inputs, exactly.

    Args:
        net: The intact network.
        task: What it is for.
        greedy: Units in the order of the greedy choice.
        first: As many units, those that cost most alone first.
        what: Units from which random sets are drawn.
        data: Inputs and targets.
        workers: Processes that share the inputs.
        seed: Of the random sets.

    Returns:
        The sets, and what they cost: seconds, forward, audit.
    """
    orders = (tuple(greedy), tuple(first), *random_orders(net, what, len(greedy), seed))
    counts = tuple(range(1, len(greedy) + 1))
    effects = ablate(net, Nested(orders, counts), task, data=data, audited=8, workers=workers, seed=seed)
    bounds, mean = task.scorer.bounds, task.scorer.per_example is not None
    found: list[tuple[Estimate, ...]] = []
    for number in range(2):
        row = []
        for size in counts:
            at = number * len(counts) + size - 1
            best = float(effects.scores["orders"].view(-1)[at])
            # A score that is no mean over examples has no interval over them.
            row.append(_clipped(_less(effects.intact, effects.estimate("orders", at)), bounds) if mean else _bare(best))
        found.append(tuple(row))
    drawn = effects.scores["orders"][2:]
    random = tuple(mean_interval(column.tolist(), within=bounds) for column in drawn.T)
    sets = WorstSets(
        {GREEDY: tuple(greedy), FIRST_ORDER: tuple(first)},
        {GREEDY: found[0], FIRST_ORDER: found[1], RANDOM: random},
        effects.intact,
        DRAWS,
    )
    return sets, {
        "seconds": effects.seconds,
        "forward": effects.forward,
        "audit": vars(effects.audit) | {"replaced": [*effects.audit.replaced]},
    }


def _bare(value: float) -> Estimate:
    return Estimate(float("nan"), value, float("nan"))


def _clipped(estimate: Estimate, bounds: tuple[float, float] | None) -> Estimate:
    if bounds is None:
        return estimate
    low, high = bounds
    best = min(high, max(low, estimate.best))  # an accuracy of 1 minus rounding
    return Estimate(min(best, max(low, estimate.low)), best, max(best, min(high, estimate.high)))
