"""Chance: what a walk through weights looks like in the plane if it is a random walk, or has no order at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from planaria.core.streams import stream
from planaria.geometry.faithfulness import classical, disparity, distinct
from planaria.measure.statistics import Floats, numpy_generator

LEAST = 5
"""Fewest distinct points that make a picture."""
ALIKE = 0.1
"""Procrustes disparity up to which a walk is drawn like a random walk. Measured: 95 % of random walks of 6 to 100 steps
come to at most 0.02 in 100 dimensions and mostly 0.1 in 20; walks that are pulled back by a tenth per step, to 0.13 and
more from 30 steps on."""
SHUFFLES = 199
"""Orders that a walk's order is compared with."""


@dataclass(frozen=True)
class WalkControl:
    """A walk against chance: a random walk of the same steps, and its own points in other orders.

    Attributes:
        walk: Name.
        steps: Number of steps.
        shares: Shares of the variance in the first two principal components of the walk.
        shares_random: The same of a random walk of the same step lengths in unboundedly many dimensions.
        disparity: Procrustes disparity between the two pictures; 0 is the same shape, 1 nothing in common.
        order: Mean step over the mean step in shuffled orders; 1 is no order.
        order_random: The same of the random walk.
        p: Share of the orders, this one included, with steps as short.
    """

    walk: str
    steps: int
    shares: tuple[float, float]
    shares_random: tuple[float, float]
    disparity: float
    order: float
    order_random: float
    p: float

    @property
    def like_chance(self) -> bool:
        """Whether the picture of the walk is that of a random walk."""
        return self.disparity <= ALIKE

    @property
    def said(self) -> str:
        """In a sentence."""
        own, chance = (sum(shares) for shares in (self.shares, self.shares_random))
        numbers = (
            f"two components hold {own:.0%} of it, {chance:.0%} of a random walk of the same steps; "
            f"disparity {self.disparity:.2f}"
        )
        if self.p > 0.05:
            return f"{self.walk}: its points have no order, shuffled ones step as far (p = {self.p:.2f})."
        if self.like_chance:
            return f"{self.walk}: its curve is that of a random walk and says nothing of where it goes ({numbers})."
        return f"{self.walk}: its curve is not that of a random walk ({numbers})."


def random_walk(steps: Floats) -> Floats:
    """Distances [n + 1, n + 1] of a random walk with these steps [n] in unboundedly many dimensions.

    There steps are at right angles to each other, so that squared lengths add: nothing need be drawn. Its first two
    principal components hold 61 % and 15 % of the variance where steps are equal and many.

    Example:
        >>> random_walk(np.array([3.0, 4.0]))[0, 2].item()
        5.0

    Source: Antognini and Sohl-Dickstein, 2018.
    """
    at = np.concatenate([[0.0], np.cumsum(steps**2)])
    return cast(Floats, np.sqrt(np.abs(at[:, None] - at)))


def walk_control(name: str, rows: list[int], distances: Floats, seed: int) -> WalkControl | None:
    """A walk against a random walk of the same steps and against other orders; None for fewer than 5 distinct points.

    Args:
        name: Of the walk.
        rows: Its points, in order.
        distances: [n, n].
        seed: Of the orders.
    """
    if len(rows) < LEAST or len(distinct(distances[np.ix_(rows, rows)])[0]) < LEAST:
        return None
    own = distances[np.ix_(rows, rows)]
    chance = random_walk(np.diag(own, 1))
    rng = numpy_generator(stream(seed, "embed", "orders", name))
    orders = [rng.permutation(len(rows)) for _ in range(SHUFFLES)]
    (points, shares, _), (points_random, shares_random, _) = classical(own), classical(chance)
    length = float(np.diag(own, 1).mean())
    shuffled, shuffled_random = (
        [float(apart[order[:-1], order[1:]].mean()) for order in orders] for apart in (own, chance)
    )
    return WalkControl(
        walk=name,
        steps=len(rows) - 1,
        shares=(float(shares[0]), float(shares[1])),
        shares_random=(float(shares_random[0]), float(shares_random[1])),
        disparity=disparity(points, points_random),
        order=length / float(np.mean(shuffled)),
        order_random=length / float(np.mean(shuffled_random)),
        p=(1 + sum(other <= length for other in shuffled)) / (1 + SHUFFLES),
    )
