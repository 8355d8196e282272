"""A map of units: what each costs when it is silenced, with worst sets and single weights, as a result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from planaria.core.anatomy import Unit
from planaria.measure.shares import is_share
from planaria.measure.statistics import Estimate, finite
from planaria.study.weak_weights import WeakWeights
from planaria.study.worst_sets import WorstSets
from planaria.sweep.plan import Plan

EXACT, SCREEN, PRECISION = "exact", "screen", "precision"
"""Ways to make a map."""


@dataclass(frozen=True, eq=False)
class Layer:
    """Vulnerability of the units of one layer; all sequences go by unit.

    Attributes:
        layer: Name.
        kind: Of its units.
        lost: Score lost when the unit is silenced.
        low: Lower end of its 95 % interval, NaN where there is none.
        high: Upper end.
        rose: Examples whose score rises; empty where they were not counted.
        fell: Examples whose score falls.
        direct: Direct effect on the mean margin, or None where it is not known.
        total: Total effect on the mean margin, the same.
        by_class: Score lost per class, [units][classes], NaN for a class without examples; None where not kept.
    """

    layer: str
    kind: str
    lost: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    rose: tuple[int, ...]
    fell: tuple[int, ...]
    direct: tuple[float, ...] | None
    total: tuple[float, ...] | None
    by_class: tuple[tuple[float, ...], ...] | None

    @property
    def compensation(self) -> tuple[float, ...] | None:
        """Total less direct effect: what later layers make up for."""
        if self.direct is None or self.total is None:
            return None
        return tuple(total - direct for total, direct in zip(self.total, self.direct, strict=True))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a near-square map of the units, some cells of which may be empty.

        Example:
            >>> Layer("fc", "neuron", (0.0,) * 512, (), (), (), (), None, None, None).shape
            (16, 32)
        """
        count = len(self.lost)
        least = math.isqrt(max(0, count - 1)) + 1
        whole = [wide for wide in range(least, count + 1) if count % wide == 0 and wide * wide <= 4 * count]
        wide = whole[0] if whole else least
        return -(-count // wide), wide

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        keys = ("layer", "kind", "lost", "low", "high", "direct", "total", "by_class")
        return {"units": len(self.lost), "shape": list(self.shape), **{key: getattr(self, key) for key in keys}}


@dataclass(frozen=True)
class Weakness:
    """One unit: score lost with its interval, direct and total effect on the margin where they are known."""

    unit: Unit
    lost: Estimate
    direct: float | None
    total: float | None

    @property
    def compensation(self) -> float | None:
        """Total less direct effect."""
        return None if self.direct is None or self.total is None else self.total - self.direct

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        lost = self.lost.to_dict()
        return {
            "layer": self.unit.layer,
            "unit": self.unit.index,
            "lost": lost["best"],
            "low": lost["low"],
            "high": lost["high"],
            "direct": self.direct,
            "total": self.total,
            "compensation": self.compensation,
        }


@dataclass(frozen=True, eq=False)
class Vulnerability:
    """What a network loses with each unit.

    Attributes:
        way: "exact"; "screen" or "precision" for estimates.
        score: Name of the score.
        examples: Inputs.
        intact: Score without a lesion.
        layers: The map.
        sets: Worst sets, where they were asked for.
        weights: Single weights, where they were asked for.
        plan: How the map was computed.
        audit: What brute force said about some units: lesions, examples, mismatches, ties, replaced.
        margin: What direct and total are effects on: "margin" or "minus loss".
        seconds: CPU seconds of the map, the audit apart.
        forward: CPU seconds of one forward pass over the same inputs.
        notes: What was done on fewer inputs, or could not be done, in words.
    """

    way: str
    score: str
    examples: int
    intact: float
    layers: tuple[Layer, ...]
    sets: WorstSets | None
    weights: tuple[WeakWeights, ...]
    plan: Plan
    audit: Mapping[str, Any]
    margin: str
    seconds: float
    forward: float
    notes: tuple[str, ...] = ()

    @property
    def units(self) -> int:
        """Number of units."""
        return sum(len(layer.lost) for layer in self.layers)

    @property
    def forwards(self) -> float:
        """Price of the map in forward passes over the same inputs."""
        return self.seconds / self.forward if self.forward > 0 else math.nan

    @property
    def percent(self) -> bool:
        """Whether the score is a share, to be told in points."""
        return is_share(self.score)

    @cached_property
    def ranking(self) -> tuple[Unit, ...]:
        """All units, the one that costs most first."""
        places = [(layer, number) for layer in self.layers for number in range(len(layer.lost))]
        places.sort(key=lambda place: -_number(place[0].lost[place[1]]))
        return tuple(Unit(layer.layer, number) for layer, number in places)

    def top(self, count: int = 10) -> tuple[Weakness, ...]:
        """The units that cost most.

        Args:
            count: How many.
        """
        return tuple(self[unit] for unit in self.ranking[:count])

    def __getitem__(self, unit: Unit) -> Weakness:
        layer = next(layer for layer in self.layers if layer.layer == unit.layer)
        low, best, high = (values[unit.index] for values in (layer.low, layer.lost, layer.high))
        direct, total = (None if values is None else values[unit.index] for values in (layer.direct, layer.total))
        return Weakness(unit, Estimate(low, best, high), direct, total)

    def to_dict(self) -> dict[str, Any]:
        """Everything but single weights, of which there is a summary, as plain values."""
        sets = {"worst_sets": [], "curve": []} if self.sets is None else self.sets.to_dict()
        plain: dict[str, Any] = finite(
            {
                "way": self.way,
                "score": self.score,
                "examples": self.examples,
                "intact": self.intact,
                "unit_total": self.units,
                "intervals": "over inputs like these" if self.way == EXACT else "for these inputs",
                "margin": self.margin,
                "layers": [layer.to_dict() for layer in self.layers],
                "top": [weakness.to_dict() for weakness in self.top(20)],
                **sets,
                "weights": [weights.to_dict() for weights in self.weights] or None,
                "plan": [vars(way) for way in self.plan.ways],
                "plan_text": explained(self.plan, self.way),
                "audit": dict(self.audit),
                "forwards": self.forwards,
                "seconds": self.seconds,
                "route": self.plan.route,
                "notes": list(self.notes),
            }
        )
        return plain

    def __str__(self) -> str:
        lines = [
            f"{self.units:,} units on {self.examples:,} inputs, {self.way}, for {self.forwards:.1f} forward passes; "
            f"intact {self.intact:.4f}",
            f"{'unit':<24}{'score lost':<28}{'direct':>10}{'total':>10}",
        ]
        for weakness in self.top(5):
            name = f"{weakness.unit.layer}[{weakness.unit.index}]"
            effects = "".join(f"{'-' if x is None else f'{x:.4f}':>10}" for x in (weakness.direct, weakness.total))
            lines.append(f"{name:<24}{weakness.lost:.4f}{'':<4}".ljust(52) + effects)
        if self.sets is not None:
            told = (f"{how} {self.sets.lost(how):.4f}" for how in self.sets.scores)
            lines.append(f"{self.sets.size} units together cost: {', '.join(told)}")
        lines += [
            f"{weights.key}: worst {weights.worst(1)[0][1]:.4f}, {weights.costly:.2%} cost anything"
            for weights in self.weights
        ]
        return "\n".join([*lines, *self.notes])


def explained(plan: Plan, way: str) -> str:
    """A plan in words; that of a screen has no table."""
    if way != SCREEN:
        return plan.explain()
    units = sum(one.lesions for one in plan.ways)
    because = next((one.because for one in plan.ways if one.way == SCREEN), "")
    return (
        f"screen: one pass forward and back ranks the pairs of {units:,} units and all inputs by how far they are from "
        "changing the prediction; those in doubt are evaluated, of the others a random part"
        + (f"; {because}" * bool(because))
    )


def _number(value: float) -> float:
    return -math.inf if math.isnan(value) else value
