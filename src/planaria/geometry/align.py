"""Align: put the units of one network in the order of another's, so that the two can be compared and connected.

Two networks that were trained apart may compute nearly the same with their units in another order; the straight line
between them then says nothing. Alignment is a choice of permutations (see `symmetry`), made from the weights alone or
from activations on inputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from planaria.core.autodiff import plain_kernels
from planaria.core.errors import InputError
from planaria.core.graph import Watch, forward_multiply_adds, run
from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.core.port import Inputs
from planaria.core.streams import stream
from planaria.core.trees import norm
from planaria.geometry.symmetry import Place, Symmetries, Symmetry, rearranged, symmetries

_AT_ONCE = 256


@dataclass(frozen=True)
class ByWeights:
    """Match units by their weights: shortest distance |a - b|, one symmetry after another, each solved exactly.

    Rounds over all symmetries in random order until none improves. The result is a local optimum (the joint problem is
    NP-hard); of several starts the closest is kept.

    Args:
        rounds: At most so many per start.
        starts: How many: the first from a match layer by layer, in which a weight counts only when all its other units
            are matched; the second from the order in which the units are; further ones from random orders.

    Source: Ainsworth, Hayase, Srinivasa, 2023, "Git Re-Basin", algorithm 1.
    """

    rounds: int = 100
    starts: int = 2

    def __post_init__(self) -> None:
        for name, value in (("rounds", self.rounds), ("starts", self.starts)):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"ByWeights.{name}", "a whole number of at least 1", repr(value))


@dataclass(frozen=True, eq=False)
class ByActivations:
    """Match units by the correlation of their activations, as weights make them and as weights read them.

    A unit that is silent on all inputs can still be told by what goes into it. Passes run on the CPU.

    Args:
        inputs: Unlabelled [examples, ...], like those the networks were trained on.

    Source: Li, Yosinski, Clune, Lipson, Hopcroft, 2016 (convergent learning); Tatro et al., 2020.
    """

    inputs: Inputs = field(repr=False)


@dataclass(frozen=True, eq=False)
class Aligned:
    """Result of `align`.

    Attributes:
        network: The function of b by units in the order of a's.
        permutations: Name of a symmetry -> for every unit of `network` the unit of b that it is; see `permute`.
        distance_before: |a - b| over all weights.
        distance_after: |a - network|.
        correlation: Symmetry -> mean correlation of matched units' activations; empty for `ByWeights`.
        rounds: Rounds over all symmetries that were made.
        symmetries: What could be permuted, and what could not and why.
        cost: Passes, linear algebra (assignments count units^3) and time.
    """

    network: Network
    permutations: Mapping[str, Tensor] = field(repr=False)
    distance_before: float
    distance_after: float
    correlation: Mapping[str, float] = field(repr=False)
    rounds: int
    symmetries: Symmetries = field(repr=False)
    cost: Cost

    @property
    def moved(self) -> int:
        """Units that changed their place."""
        return sum(int((order != torch.arange(len(order))).sum()) for order in self.permutations.values())

    @property
    def verdict(self) -> str:
        """What came of it, in words."""
        if not self.permutations:
            reasons = "; ".join(f"{layer}: {why}" for layer, why in list(self.symmetries.left_out.items())[:3])
            return (
                f"no units of this network can change places, and it stays as it was{f' ({reasons})' * bool(reasons)}"
            )
        units = sum(len(order) for order in self.permutations.values())
        change = f"distance {self.distance_before:.4g} before, {self.distance_after:.4g} after"
        return f"{self.moved} of {units} units in {len(self.permutations)} symmetries changed places: {change}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the permutations as lists."""
        return {
            "distance_before": self.distance_before,
            "distance_after": self.distance_after,
            "correlation": dict(self.correlation),
            "rounds": self.rounds,
            "moved": self.moved,
            "verdict": self.verdict,
            "permutations": {name: order.tolist() for name, order in self.permutations.items()},
            "symmetries": self.symmetries.to_dict(),
            "cost": vars(self.cost),
        }


def align(a: Network, b: Network, by: ByWeights | ByActivations = ByWeights(), seed: int = 0) -> Aligned:
    """Permute b's units so that b is close to a; its function stays, which is checked on the example inputs.

    Args:
        a: The network that stays, with example inputs.
        b: One of the same architecture.
        by: How units are matched.
        seed: Of the order in which `ByWeights` goes through the symmetries.

    Returns:
        Aligned; of a network without symmetries b itself, which `verdict` says.

    Raises:
        InputError: On a weight that the two do not share, of which the shapes differ, or with NaN.
        AnatomyError: If a has no example inputs, or cannot run on them.

    Example:
        >>> from planaria.geometry.symmetry import permute
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> net = Network.of(model, torch.ones(1, 1))
        >>> align(net, permute(net, {"0": torch.tensor([2, 0, 1])})).distance_after
        0.0

    Not guaranteed: the shortest distance of all; nor that the straight line to the result has no barrier. Scales of
    ReLU units, a symmetry as well, are left as they are.

    Source: Ainsworth, Hayase, Srinivasa, 2023, "Git Re-Basin: Merging Models modulo Permutation Symmetries".
    """
    began = time.process_time()
    _comparable(a, b)
    known = symmetries(a)
    if b.inputs is None:
        b = replace(b, inputs=a.inputs, port=replace(a.port, autocast=b.port.autocast))
    correlation: dict[str, float] = {}
    if isinstance(by, ByWeights):
        orders, rounds, cost = _by_weights(a, b, known, by, seed)
    else:
        orders, correlation, cost = _by_activations(a, b, known, by)
        rounds = 1
    network = rearranged(b, known, orders) if orders else b
    before, after = float(norm(a - b)), float(norm(a - network))
    seconds = time.process_time() - began
    return Aligned(network, orders, before, after, correlation, rounds, known, cost + Cost(seconds=seconds))


def _comparable(a: Network, b: Network) -> None:
    for name in [*a.weights, *(name for name in b.weights if name not in a.weights)]:
        ours, theirs = a.weights.get(name), b.weights.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            shapes = ["none of that name" if w is None else f"{list(w.shape)}" for w in (ours, theirs)]
            raise InputError(
                f"align(a, b): weight {name!r}",
                "networks of one architecture",
                f"shape {shapes[0]} in a, {shapes[1]} in b",
                "Only networks with the same weights can be aligned.",
            )
        for which, weight in (("a", ours), ("b", theirs)):
            if not bool(weight.isfinite().all()):
                raise InputError(f"align(a, b): weight {name!r} of {which}", "finite numbers", "NaN or infinity")
        if ours.device != theirs.device:
            raise InputError(f"align(a, b): weight {name!r}", "both on one device", f"{ours.device}, {theirs.device}")


# ------------------------------------------------------------------------------------------------------ weights


def _by_weights(
    a: Network, b: Network, known: Symmetries, by: ByWeights, seed: int
) -> tuple[dict[str, Tensor], int, Cost]:
    best: tuple[float, dict[str, Tensor]] | None = None
    rounds, work = 0, 0
    target = {name: weight.double() for name, weight in a.weights.items()}
    for start in range(by.starts):
        rng = stream(seed, "align", start)
        weights = {name: weight.double() for name, weight in b.weights.items()}
        orders = {s.name: torch.arange(s.size) for s in known}
        for symmetry, places in _layer_by_layer(known) if start == 0 else ():
            order, spent = _matched(target, weights, symmetry, places)
            work += spent
            _move(weights, symmetry, order, orders)
        for symmetry in known if start > 1 else ():
            _move(weights, symmetry, torch.randperm(symmetry.size, generator=rng), orders)
        for _ in range(by.rounds):
            improved = False
            for at in torch.randperm(len(known), generator=rng).tolist():
                better, spent = _improve(target, weights, known.found[at], orders)
                improved, work = improved or better, work + spent
            rounds += 1
            if not improved:
                break
        reached = _likeness(target, weights)
        if best is None or reached > best[0]:
            best = (reached, orders)
    assert best is not None
    return best[1], rounds, Cost(multiply_adds=work)


def _layer_by_layer(known: Symmetries) -> Iterator[tuple[Symmetry, Sequence[Place]]]:
    """Symmetries in the order of execution, each with its places in weights all other units of which are matched."""
    matched: set[str] = set()
    for symmetry in known:
        waiting = [place.name for other in known if other.name not in matched for place in other.places]
        ready = [place for place in symmetry.places if waiting.count(place.name) == 1]
        yield symmetry, ready or symmetry.places
        matched.add(symmetry.name)


def _likeness(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Inner product of two networks' weights: the larger, the closer, since permutations keep lengths."""
    return sum(float((a[name] * b[name]).sum()) for name in a)


def _matched(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], symmetry: Symmetry, places: Sequence[Place]
) -> tuple[Tensor, int]:
    """The best order of one symmetry's units by some of their places, all else as it is; and the work."""
    score = torch.zeros(symmetry.size, symmetry.size, dtype=torch.float64)
    work = symmetry.size**3
    for place in places:
        if place.name in a:  # statistics follow, they do not choose
            ours, theirs = place.units(a[place.name]), place.units(b[place.name])
            score += (ours @ theirs.T).cpu()
            work += symmetry.size * ours.numel()
    return _assigned(score), work


def _improve(
    a: Mapping[str, Tensor], b: dict[str, Tensor], symmetry: Symmetry, orders: dict[str, Tensor]
) -> tuple[bool, int]:
    """Put one symmetry's units in the best order, the others as they are; returns whether it helped, and the work.

    A matrix with two places counts both as if the other stood still; where that misleads, nothing is changed.
    """
    order, work = _matched(a, b, symmetry, symmetry.places)
    names = {place.name for place in symmetry.places} & a.keys()
    ours = {name: a[name] for name in names}
    moved, turned = {name: b[name] for name in names}, dict(orders)
    before = _likeness(ours, moved)
    _move(moved, symmetry, order, turned)
    lengths = [sum(float(w.square().sum()) for w in weights.values()) for weights in (ours, moved)]
    if _likeness(ours, moved) - before <= 1e-12 * math.sqrt(lengths[0] * lengths[1]):
        return False, work
    b.update(moved)
    orders.update(turned)
    return True, work


def _move(weights: dict[str, Tensor], symmetry: Symmetry, order: Tensor, orders: dict[str, Tensor]) -> None:
    """Put a symmetry's units in another order, and note it."""
    for place in symmetry.places:
        if place.name in weights:
            weights[place.name] = place.permuted(weights[place.name], order)
    orders[symmetry.name] = orders[symmetry.name][order]


def _assigned(score: Tensor) -> Tensor:
    """Which column each row gets so that the sum is largest."""
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(score.numpy(), maximize=True)[1]).long()


# -------------------------------------------------------------------------------------------------- activations


@dataclass(eq=False)
class _Moments:
    """Sums over activations of a's and b's units, from which correlations come."""

    count: int = 0
    sums: list[Tensor] = field(default_factory=list)
    cross: Tensor | None = None

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """Activations [units, numbers] of both networks on the same inputs."""
        sums = [ours.sum(1), theirs.sum(1), ours.square().sum(1), theirs.square().sum(1)]
        cross = ours @ theirs.T
        self.count += ours.shape[1]
        self.sums = sums if self.cross is None else [old + new for old, new in zip(self.sums, sums, strict=True)]
        self.cross = cross if self.cross is None else self.cross + cross

    def correlation(self) -> Tensor:
        """[a's units, b's units]; NaN for units whose activation does not change."""
        assert self.cross is not None
        means = [self.sums[i] / self.count for i in (0, 1)]
        spreads = [(self.sums[2 + i] / self.count - means[i].square()).clamp(min=0).sqrt() for i in (0, 1)]
        covariance = self.cross / self.count - means[0][:, None] * means[1]
        steady = [spread <= 1e-6 * mean.abs() for spread, mean in zip(spreads, means, strict=True)]
        ratio = covariance / (spreads[0][:, None] * spreads[1])
        return ratio.masked_fill(steady[0][:, None] | steady[1], math.nan).clamp(-1, 1)


def _by_activations(
    a: Network, b: Network, known: Symmetries, by: ByActivations
) -> tuple[dict[str, Tensor], dict[str, float], Cost]:
    rows = a.port.rows(by.inputs)
    if len(rows) < 2:
        raise InputError("ByActivations.inputs", "at least 2 examples", len(rows))
    # Which operation has a unit's activation is known for passes on the CPU.
    pair, rows = [net.to("cpu").with_autocast(None) for net in (a, b)], rows.cpu()
    moments: dict[tuple[str, str], _Moments] = {}
    for some in rows.split(_AT_ONCE):
        ours, theirs = (_activations(net, some, known) for net in pair)
        for key in ours.keys() & theirs.keys():
            if ours[key].shape == theirs[key].shape:
                moments.setdefault(key, _Moments()).add(ours[key], theirs[key])
    orders, correlation, work = {}, {}, 2 * len(rows) * forward_multiply_adds(pair[0], rows)
    for symmetry in known:
        read = [moments[symmetry.name, place.name] for place in symmetry.seen if (symmetry.name, place.name) in moments]
        if not read:
            continue
        score = torch.stack([moment.correlation() for moment in read]).nanmean(0).nan_to_num(0.0)
        work += symmetry.size**3 + sum(moment.count for moment in read) * symmetry.size**2
        orders[symmetry.name] = _assigned(score)
        correlation[symmetry.name] = float(score[torch.arange(symmetry.size), orders[symmetry.name]].mean())
    passes = 2 * math.ceil(len(rows) / _AT_ONCE)
    return orders, correlation, Cost(examples=2 * len(rows), forward_passes=passes, multiply_adds=work)


def _activations(net: Network, rows: Tensor, known: Symmetries) -> dict[tuple[str, str], Tensor]:
    """(symmetry, call) -> activations of its units there, [units, numbers]."""
    wanted: dict[str, list[tuple[str, Place]]] = {}
    for symmetry in known:
        for place in symmetry.seen:
            wanted.setdefault(place.name, []).append((symmetry.name, place))
    found: dict[tuple[str, str], Tensor] = {}

    def seen(tag: str, args: tuple[Any, ...], output: Any) -> None:
        del args
        for name, place in wanted.get(tag, ()):
            assert place.axis is not None
            fits = isinstance(output, Tensor) and output.ndim > place.axis
            if fits and output.shape[place.axis] > int(place.positions.max()):
                found[name, tag] = place.units(output.double())

    with plain_kernels(attention=True):
        run(net, rows, Watch(seen))
    return found
