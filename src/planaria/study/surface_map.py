"""Maps of loss and score on a plane through the weights, as a result."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from planaria.core.motion import Cost
from planaria.measure.statistics import finite


@dataclass(frozen=True)
class Stop:
    """One network of a walk, and the point of the plane below it.

    Attributes:
        u: Coordinate of the nearest point of the plane.
        v: The other.
        off: Distance from the plane, in weights.
        far: Distance from the centre, in weights.
        loss: Of the network itself, with its own statistics.
        score: The same.
        loss_below: At the nearest point of the plane.
        score_below: The same.
    """

    u: float
    v: float
    off: float
    far: float
    loss: float
    score: float
    loss_below: float
    score_below: float


@dataclass(frozen=True, eq=False)
class Surface:
    """Loss and score on a grid of a plane through a network's weights.

    Attributes:
        u: Coordinates of the columns.
        v: Coordinates of the rows.
        loss: One row per v, one number per u; NaN where it is not finite.
        score: The same.
        centre_loss: Loss of the network itself, with its own statistics.
        centre_score: The same.
        score_name: Name of the score.
        examples: Inputs.
        split: Which, in words.
        directions: How they were chosen, in words.
        lengths: Distances in weights that u = 1 and v = 1 stand for.
        shares: Share of the walk's squared distances from the centre along each direction; None for random ones.
        statistics: What was done about normalisation statistics, in words.
        way: "chain" (first product taken once) or "whole" (the network run at each point), with the reason.
        walk: Networks of a walk, in order.
        cost: Of the grid.
    """

    u: tuple[float, ...]
    v: tuple[float, ...]
    loss: tuple[tuple[float, ...], ...]
    score: tuple[tuple[float, ...], ...]
    centre_loss: float
    centre_score: float
    score_name: str
    examples: int
    split: str
    directions: str
    lengths: tuple[float, float]
    shares: tuple[float, float] | None
    statistics: str
    way: str
    walk: tuple[Stop, ...]
    cost: Cost

    @property
    def not_finite(self) -> int:
        """Points of the grid without a finite loss."""
        return sum(not math.isfinite(value) for row in self.loss for value in row)

    @property
    def lowest(self) -> tuple[float, float, float] | None:
        """(u, v, loss) of the grid's lowest point; None if none is finite."""
        points = (
            (value, u, v)
            for v, row in zip(self.v, self.loss, strict=True)
            for u, value in zip(self.u, row, strict=True)
        )
        best = min((point for point in points if math.isfinite(point[0])), default=None)
        return None if best is None else (best[1], best[2], best[0])

    @property
    def off(self) -> float | None:
        """Share of the walk's squared distances from the centre that is off the plane; None without a walk."""
        total = sum(stop.far**2 for stop in self.walk)
        return sum(stop.off**2 for stop in self.walk) / total if total > 0 else None

    @property
    def verdicts(self) -> tuple[str, ...]:
        """What the picture does and does not show, in sentences."""
        told = []
        if self.not_finite:
            told.append(
                f"{self.not_finite} of {len(self.u) * len(self.v)} points have no finite loss and are left open."
            )
        if self.off is not None:
            furthest = max(stop.off for stop in self.walk)
            told.append(
                f"{1 - self.off:.0%} of the walk's squared distance from the centre is in this plane; "
                f"its networks are up to {furthest:.3g} off it."
            )
            if self.off > 0.5:
                told.append(
                    "Most of the walk is elsewhere: between its points the surface is not what the walk crossed."
                )
            gaps = [
                abs(s.loss - s.loss_below) for s in self.walk if math.isfinite(s.loss) and math.isfinite(s.loss_below)
            ]
            if gaps:
                told.append(f"The loss of a network and of the point below it differ by up to {max(gaps):.3g}.")
        elif self.shares is None:
            told.append("Random directions show what is typical around the network, not its steepest sides.")
        return tuple(told)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; what is not finite is None."""
        own = {name: value for name, value in vars(self).items() if name not in ("walk", "cost")}
        plain: dict[str, Any] = finite(
            {
                **own,
                "walk": [asdict(stop) for stop in self.walk],
                "off": self.off,
                "lowest": self.lowest,
                "not_finite": self.not_finite,
                "cost": asdict(self.cost),
                "verdicts": list(self.verdicts),
            }
        )
        return plain

    def __str__(self) -> str:
        at = "none finite" if self.lowest is None else "{2:.4g} at ({0:.3g}, {1:.3g})".format(*self.lowest)
        head = (
            f"{len(self.u)} x {len(self.v)} points on {self.examples:,} inputs ({self.split}); {self.directions}; "
            f"{self.statistics}; {self.way}"
        )
        centre = (
            f"loss {self.centre_loss:.4g}, {self.score_name} {self.centre_score:.4f} at the centre; lowest loss {at}"
        )
        return "\n".join([head, centre, *self.verdicts])
