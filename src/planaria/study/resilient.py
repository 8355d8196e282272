"""What a study of resilience found: predictions beside what deletions do, the spectrum, break-down curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from planaria.core.anatomy import Unit
from planaria.measure.shares import is_share
from planaria.measure.statistics import Estimate
from planaria.study.breakdown import Breakdown
from planaria.study.guides import Trials

GREEDY, ALONE, RANDOM = "greedy", "alone", "random"
"""Sets of units: each the worst given those before it, cross terms included; those of the largest c_i; random draws."""


@dataclass(frozen=True)
class Gates:
    """The map of one layer.

    Attributes:
        layer: Name.
        kind: Of its units.
        predicted: c_i of each unit; 0 for one that emits nothing or is read by nothing.
        magnitude: Norm of the entries by which each unit is read.
        activation: Root mean square of what each emits, times that norm.
    """

    layer: str
    kind: str
    predicted: tuple[float, ...]
    magnitude: tuple[float, ...]
    activation: tuple[float, ...]

    @property
    def dead(self) -> int:
        """Units with c_i = 0, which no comparison includes."""
        return sum(value == 0 for value in self.predicted)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        lists = {key: list(getattr(self, key)) for key in ("predicted", "magnitude", "activation")}
        return {"layer": self.layer, "kind": self.kind, "units": len(self.predicted), "dead": self.dead, **lists}


@dataclass(frozen=True)
class Together:
    """A set of units silenced together.

    Attributes:
        how: "greedy", "alone" or "random".
        units: Its units.
        predicted: First-order squared change of the outputs, with cross terms.
        additive: Sum of the c_i, without them.
        actual: What the change is.
        lost: Score lost; None without a task.
    """

    how: str
    units: tuple[Unit, ...]
    predicted: float
    additive: float
    actual: float
    lost: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        keys = ("how", "predicted", "additive", "actual", "lost")
        return {**{key: getattr(self, key) for key in keys}, "units": [[u.layer, u.index] for u in self.units]}


@dataclass(frozen=True)
class Stiffness:
    """The spectrum of the metric: in how many directions of weight space the outputs change.

    Attributes:
        values: Largest eigenvalues, descending.
        inputs: Inputs over which the metric is a mean.
        bound: Largest possible rank: inputs times outputs, or the plastic entries where these are fewer.
        entries: Plastic entries of the weights.
        stiff: Share of the largest eigenvalue -> directions above it; shares for which that is not known are left out.
        dimension: Effective dimension: sum of l / (l + mu), mu one thousandth of the largest.
        resilient: Share of all directions that are nearly free: 1 - effective dimension / entries.
    """

    values: tuple[float, ...]
    inputs: int
    bound: int
    entries: int
    stiff: Mapping[float, int]
    dimension: Estimate
    resilient: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        stiff = [{"above": tau, "directions": count} for tau, count in self.stiff.items()]
        keys = ("inputs", "bound", "entries")
        plain = {key: getattr(self, key) for key in keys} | {"values": list(self.values), "stiff": stiff}
        return plain | {"dimension": self.dimension.to_dict(), "resilient": self.resilient.to_dict()}


@dataclass(frozen=True, eq=False)
class Resilience:
    """What derivatives say that damage costs, and what it does cost.

    Attributes:
        of: How changes of outputs are measured, in words.
        examples: Inputs over which changes are means.
        judged: Inputs on which losses and scores were taken; 0 without a task.
        probes: Random directions that stand for the outputs; 0 where each was taken.
        score: Name of the score; None without a task.
        intact: Score of the intact network; None without a task.
        layers: The map.
        trials: Units that were really silenced.
        sets: Sets that were.
        spectrum: Of the metric; None if it was not asked for.
        breakdowns: How damage grows along a path and by number of units.
        seconds: CPU seconds.
        notes: What was left out.
    """

    of: str
    examples: int
    judged: int
    probes: int
    score: str | None
    intact: float | None
    layers: tuple[Gates, ...]
    trials: Trials
    sets: tuple[Together, ...]
    spectrum: Stiffness | None
    breakdowns: tuple[Breakdown, ...]
    seconds: float
    notes: tuple[str, ...]

    @property
    def units(self) -> int:
        """Units of the map."""
        return sum(len(layer.predicted) for layer in self.layers)

    @property
    def dead(self) -> int:
        """Units with c_i = 0."""
        return sum(layer.dead for layer in self.layers)

    @property
    def percent(self) -> bool:
        """Whether scores are shares, to be said in points."""
        return self.score is not None and is_share(self.score)

    @cached_property
    def ranking(self) -> tuple[tuple[Unit, float], ...]:
        """Units with their c_i, the most vulnerable first."""
        pairs = [(Unit(x.layer, place), value) for x in self.layers for place, value in enumerate(x.predicted)]
        return tuple(sorted(pairs, key=lambda pair: -pair[1]))

    def breakdown(self, along: str) -> Breakdown | None:
        """How damage grows: "path" or "count"."""
        return next((one for one in self.breakdowns if one.along == along), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        keys = ("of", "examples", "judged", "probes", "score", "intact", "units", "dead", "seconds")
        return {
            **{key: getattr(self, key) for key in keys},
            "layers": [layer.to_dict() for layer in self.layers],
            "top": [{"layer": u.layer, "unit": u.index, "predicted": c} for u, c in self.ranking[:20]],
            "trials": self.trials.to_dict(),
            "sets": [one.to_dict() for one in self.sets],
            "spectrum": None if self.spectrum is None else self.spectrum.to_dict(),
            "breakdowns": [one.to_dict() for one in self.breakdowns],
            "notes": list(self.notes),
        }
