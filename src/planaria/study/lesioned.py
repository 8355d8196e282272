"""What a lesion study found: a line per lesion and class, dissociations, and whether selectivity predicts damage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from planaria.measure.shares import is_share
from planaria.measure.statistics import Estimate, finite
from planaria.study.dissociation import DOUBLE, SINGLE, Dissociation
from planaria.study.groupings import SELECTIVITY

ALL = "all"
"""Name of all examples together, beside the classes."""
COLUMNS = (
    *("lesion", "grouping", "layer", "units", "size", "class", "intact", "lesioned", "lost", "low", "high"),
    *("control", "control_low", "control_high", "control_p", "n", "single_units", "interaction"),
)
"""Columns of the tidy table."""


@dataclass(frozen=True)
class Loss:
    """What a lesion costs on some examples.

    Attributes:
        lost: Score lost, with its 95 % interval over examples like these.
        control: The same by random lesions: mean, and the range in which one more lies in 95 % of cases; None where
            there are no controls.
        p_value: Of the claim that the lesion costs more than random ones; None without controls.
    """

    lost: Estimate
    control: Estimate | None
    p_value: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        control = None if self.control is None else self.control.to_dict()
        return {"lost": self.lost.to_dict(), "control": control, "p_value": self.p_value}


@dataclass(frozen=True, eq=False)
class Lesioned:
    """One lesion and what it costs.

    Attributes:
        key: Short name.
        grouping: "layer", "cluster" or "selectivity".
        name: For people.
        units: Layer -> numbers of the silenced units.
        label: Name of the class that the units are selective for, or None.
        whole: On all examples.
        classes: On the examples of each class.
        single_units: Sum of what its units cost one at a time; None where that was not measured.
    """

    key: str
    grouping: str
    name: str
    units: Mapping[str, tuple[int, ...]]
    label: str | None
    whole: Loss
    classes: tuple[Loss, ...]
    single_units: float | None

    @property
    def size(self) -> int:
        """Number of units."""
        return sum(map(len, self.units.values()))

    @property
    def interaction(self) -> float | None:
        """Loss of the whole less the sum of its units': above zero, units stand in for each other."""
        return None if self.single_units is None else self.whole.lost.best - self.single_units

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "lesion": self.key,
            "grouping": self.grouping,
            "name": self.name,
            "layers": list(self.units),
            "units": ranges(self.units),
            "size": self.size,
            "label": self.label,
            **self.whole.to_dict(),
            "classes": [loss.to_dict() for loss in self.classes],
            "single_units": self.single_units,
            "interaction": self.interaction,
        }


@dataclass(frozen=True)
class Guide:
    """Whether the selectivity of the units of a layer tells what their loss costs.

    Attributes:
        layer: Name.
        units: How many.
        total: Rank correlation of a unit's largest d' with the score lost when it alone is silenced; None where one
            of them has no order.
        own: Rank correlation of that d' with the loss of the class it is for.
        apart: Loss of that class less the mean loss of the other classes, averaged over units, with an interval over
            units.
    """

    layer: str
    units: int
    total: Estimate | None
    own: Estimate | None
    apart: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        both = {key: None if (one := getattr(self, key)) is None else one.to_dict() for key in ("total", "own")}
        return {"layer": self.layer, "units": self.units, **both, "apart": self.apart.to_dict()}


@dataclass(frozen=True, eq=False)
class LesionStudy:
    """What lesions of groups of units cost.

    Attributes:
        score: Name of the score.
        class_score: Name of the score of single classes; "" without classes.
        intact: Score without a lesion.
        examples: Inputs that lesions are judged on.
        classes: Names of the classes.
        counts: Examples of each.
        intact_by_class: Score of each without a lesion.
        lesions: In the order of the groupings.
        dissociations: One per pair of classes; empty without lesions by selectivity.
        guides: One per layer; empty without selectivity or single units.
        draws: Random lesions for each lesion.
        audit: What brute force said about some lesions: lesions, examples, mismatches, ties, replaced.
        seconds: CPU seconds of all lesions, audits apart.
        forward: CPU seconds of one forward pass over the same inputs.
        notes: What was left out, in words.
    """

    score: str
    class_score: str
    intact: float
    examples: int
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    intact_by_class: tuple[float, ...]
    lesions: tuple[Lesioned, ...]
    dissociations: tuple[Dissociation, ...]
    guides: tuple[Guide, ...]
    draws: int
    audit: Mapping[str, Any]
    seconds: float
    forward: float
    notes: tuple[str, ...] = ()

    @property
    def forwards(self) -> float:
        """Price of all lesions in forward passes over the same inputs, audits apart."""
        return self.seconds / self.forward if self.forward > 0 else math.nan

    @property
    def percent(self) -> bool:
        """Whether the score is a share, to be told in points."""
        return is_share(self.score)

    def of(self, grouping: str) -> tuple[Lesioned, ...]:
        """The lesions of one grouping.

        Args:
            grouping: "layer", "cluster" or "selectivity".
        """
        return tuple(one for one in self.lesions if one.grouping == grouping)

    def verdicts(self, verdict: str) -> tuple[Dissociation, ...]:
        """Pairs of classes with a verdict.

        Args:
            verdict: "double dissociation", "single dissociation" or "no dissociation".
        """
        return tuple(one for one in self.dissociations if one.verdict == verdict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The tidy table: a row per lesion and class, and one for all examples; columns as in COLUMNS."""
        made = []
        for one in self.lesions:
            head = {
                "lesion": one.key,
                "grouping": one.grouping,
                "layer": " ".join(one.units),
                "units": ranges(one.units),
                "size": one.size,
            }
            parts = [(ALL, self.intact, self.examples, one.whole)]
            parts += zip(self.classes, self.intact_by_class, self.counts, one.classes, strict=True)
            for name, intact, count, loss in parts:
                whole = name == ALL and loss is one.whole
                control = loss.control or Estimate(math.nan, math.nan, math.nan)
                row = {
                    **head,
                    "class": name,
                    "intact": intact,
                    "lesioned": intact - loss.lost.best,
                    "lost": loss.lost.best,
                    "low": loss.lost.low,
                    "high": loss.lost.high,
                    "control": control.best,
                    "control_low": control.low,
                    "control_high": control.high,
                    "control_p": loss.p_value,
                    "n": count,
                    "single_units": one.single_units if whole else None,
                    "interaction": one.interaction if whole else None,
                }
                made.append(finite({column: row[column] for column in COLUMNS}))
        return made

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        plain: dict[str, Any] = finite(
            {
                "score": self.score,
                "class_score": self.class_score,
                "intact": self.intact,
                "examples": self.examples,
                "classes": list(self.classes),
                "counts": list(self.counts),
                "intact_by_class": list(self.intact_by_class),
                "lesions": [one.to_dict() for one in self.lesions],
                "dissociations": [one.to_dict() for one in self.dissociations],
                "guides": [one.to_dict() for one in self.guides],
                "draws": self.draws,
                "audit": dict(self.audit),
                "seconds": self.seconds,
                "forwards": self.forwards,
                "notes": list(self.notes),
            }
        )
        return plain

    def __str__(self) -> str:
        lines = [
            f"{len(self.lesions)} lesions on {self.examples:,} inputs, {self.draws} random ones for each size; intact "
            f"{self.intact:.4f}",
            f"{'lesion':<34}{'units':>6}  {'score lost':<28}{'random ones':<24}",
        ]
        worst = sorted(self.lesions, key=lambda one: -_known(one.whole.lost.best))[:8]
        for one in worst:
            control = "-" if one.whole.control is None else f"{one.whole.control:.3f}"
            lines.append(f"{one.name:<34}{one.size:>6}  {one.whole.lost:.3f}".ljust(70) + control)
        if self.dissociations:
            double, single = (len(self.verdicts(verdict)) for verdict in (DOUBLE, SINGLE))
            lines.append(f"{len(self.dissociations)} pairs of classes: {double} doubly dissociated, {single} singly")
        for guide in self.guides:
            told = "-" if guide.total is None else f"{guide.total:.2f}"
            lines.append(f"{guide.layer}: selectivity and score lost have a rank correlation of {told}")
        return "\n".join([*lines, *self.notes])

    @property
    def selective(self) -> tuple[Lesioned, ...]:
        """Lesions of selective units, in the order of the classes."""
        return self.of(SELECTIVITY)


def ranges(units: Mapping[str, tuple[int, ...]]) -> str:
    """Units in few characters.

    Example:
        >>> ranges({"fc1": (0, 1, 2, 7), "fc2": (3,)})
        'fc1:0-2,7 fc2:3'
    """
    told = []
    for layer, numbers in units.items():
        runs = []
        for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
            span = [number for _, number in run]
            runs.append(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}")
        told.append(f"{layer}:{','.join(runs)}")
    return " ".join(told)


def _known(value: float) -> float:
    return -math.inf if math.isnan(value) else value
