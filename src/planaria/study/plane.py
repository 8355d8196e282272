"""Planes in the space of weights, to draw a loss on: random directions of fair lengths, or those of a walk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import Weights, dot, norm

ROOM = 1.25
"""How much further than the furthest network of a walk its plane reaches."""
NARROW = 0.2
"""Least width of one side of a walk's plane, as a share of the other."""


@dataclass(frozen=True, eq=False)
class Plane:
    """The networks w + u * first + v * second; buffers and plasticity are those of the centre.

    Attributes:
        centre: The network w.
        first: Displacement by u = 1.
        second: Displacement by v = 1.
        chosen: How the directions were chosen, in words.
        shares: Share of the squared distances of a walk from the centre along each of them; None for random ones.

    Example:
        >>> from torch import nn
        >>> net = Network.of(nn.Linear(3, 2))
        >>> plane = Plane.random(net, seed=0)
        >>> plane.at(0.0, 0.0) is net, [round(x, 4) for x in plane.project(plane.at(0.5, -1.0))[:2]]
        (True, [0.5, -1.0])
    """

    centre: Network
    first: Weights
    second: Weights
    chosen: str
    shares: tuple[float, float] | None = None

    @staticmethod
    def random(net: Network, seed: int = 0) -> Plane:
        """Two random directions, normalised filter by filter.

        Each row (the weights that read for one unit) is as long as the network's own row there. Biases and
        normalisations stay, and so do pinned entries.

        Args:
            net: The centre.
            seed: Of the directions.

        Raises:
            InputError: Nothing but biases, zeros and pinned entries.

        Source: Li et al., 2018.

        Not guaranteed: that rows are what reads for one unit in transposed convolutions; there they are what is read.
        """
        first, second = (_by_filter(net, seed, axis) for axis in ("first", "second"))
        if float(norm(first)) == 0:
            raise InputError("Plane.random(net)", "a weight matrix with entries that may move", "none")
        return Plane(
            net, first, second, "random directions, each row as long as that of the weights (filter-normalised)"
        )

    @staticmethod
    def of_walk(net: Network, walk: Sequence[Network], seed: int = 0) -> Plane:
        """The plane through a network that lies nearest to some others, by the sum of squared distances.

        Directions are the first two principal components of the displacements from the centre (not from the mean, so
        that the centre lies in the plane), at right angles, and as long as it takes to show all networks of the walk.
        Where the walk is on a line, the second direction is random.

        Args:
            net: The centre.
            walk: Networks with the same weights.
            seed: Of a random second direction.

        Raises:
            InputError: No networks, ones with other weights, not finite, or none that differs from the centre.

        Source: Li et al., 2018 (principal components of a trajectory).
        """
        moves = [one - net for one in walk]
        products = torch.zeros(len(moves), len(moves), dtype=torch.float64)
        for name in net.weights:
            rows = torch.stack([move[name].double().flatten() for move in moves]) if moves else torch.zeros(0, 1)
            products += (rows @ rows.T).cpu()
        if not moves or not bool(torch.isfinite(products).all()) or float(products.trace()) == 0:
            got = f"{len(moves)} that do not differ, or are not finite" if moves else "none"
            raise InputError("Plane.of_walk(walk)", "networks that differ from the centre by finite weights", got)
        values, vectors = torch.linalg.eigh(products)
        total = float(products.trace())
        axes: list[Weights] = []
        reach, shares = [], []
        for rank in range(1, min(2, len(moves)) + 1):
            value, vector = float(values[-rank]), vectors[:, -rank]
            if value <= 1e-10 * total:
                break
            along = products @ vector / math.sqrt(value)  # coordinate of each network
            sign = math.copysign(1.0, float(along[along.abs().argmax()]))
            axes.append(_sum(sign * vector / math.sqrt(value), moves))
            reach.append(ROOM * float(along.abs().max()))
            shares.append(value / total)
        chosen = "the two principal components of the walk's displacements from the centre"
        if len(axes) < 2:
            chosen = "the line of the walk, and a random direction, since the walk has no other"
            axes.append(_upright(_by_filter(net, seed, "second"), axes[0]))
            reach.append(reach[0])
            shares.append(0.0)
        reach[1] = max(reach[1], NARROW * reach[0])
        reach[0] = max(reach[0], NARROW * reach[1])
        first, second = ({name: r * part for name, part in axis.items()} for r, axis in zip(reach, axes, strict=True))
        return Plane(net, first, second, chosen, (shares[0], shares[1]))

    def at(self, u: float, v: float) -> Network:
        """The network at a point; the centre itself at (0, 0)."""
        if u == 0 and v == 0:
            return self.centre
        return self.centre.with_weights({name: self.entry(name, u, v) for name in self.centre.weights})

    def entry(self, name: str, u: float, v: float) -> Tensor:
        """One weight at a point."""
        weight = self.centre.weights[name]
        if (u == 0 and v == 0) or not weight.is_floating_point():
            return weight
        return weight + u * self.first[name] + v * self.second[name]

    def project(self, net: Network) -> tuple[float, float, float]:
        """Coordinates (u, v) of the nearest point of the plane, and the distance to it."""
        move = net - self.centre
        a, b, c = (float(dot(x, y)) for x, y in ((self.first,) * 2, (self.first, self.second), (self.second,) * 2))
        p, q = float(dot(self.first, move)), float(dot(self.second, move))
        determinant = a * c - b * b
        u, v = (c * p - b * q) / determinant, (a * q - b * p) / determinant
        rest = {name: m.double() - u * self.first[name] - v * self.second[name] for name, m in move.items()}
        return u, v, float(norm(rest))

    @property
    def lengths(self) -> tuple[float, float]:
        """Distances in weights that u = 1 and v = 1 stand for."""
        return float(norm(self.first)), float(norm(self.second))


def _by_filter(net: Network, seed: int, axis: str) -> Weights:
    rng = stream(seed, "plane", axis)
    direction = {}
    for name, weight in net.weights.items():
        drawn = torch.zeros_like(weight)
        if weight.ndim > 1 and weight.is_floating_point():
            drawn = torch.randn(weight.shape, generator=rng).to(weight) * (net.plasticity[name] > 0)
            rows, own = drawn.flatten(1), weight.detach().flatten(1)
            long = rows.norm(dim=1, keepdim=True)
            drawn = (rows * torch.where(long > 0, own.norm(dim=1, keepdim=True) / long, 0.0)).view_as(weight)
        direction[name] = drawn
    return direction


def _sum(shares: Tensor, moves: Sequence[Weights]) -> Weights:
    """Weighted sum of displacements."""
    total = {name: torch.zeros_like(part, dtype=torch.float64) for name, part in moves[0].items()}
    for share, move in zip(shares.tolist(), moves, strict=True):
        for name, part in move.items():
            total[name] += share * part.double()
    return {name: part.to(moves[0][name].dtype) for name, part in total.items()}


def _upright(direction: Weights, other: Weights) -> Weights:
    """A direction made orthogonal to another one of length 1, and of length 1."""
    along = float(dot(direction, other))
    rest = {name: part - along * other[name] for name, part in direction.items()}
    length = float(norm(rest))
    if length == 0:
        raise InputError(
            "Plane.of_walk(walk)", "networks that span a plane", "ones on a line, of a network without rows"
        )
    return {name: part / length for name, part in rest.items()}
