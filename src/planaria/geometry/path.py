"""Path: an evaluable curve of networks between two networks, with exact ends."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from planaria.core.errors import InputError
from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.core.trees import Weights
from planaria.geometry.normalise import normalises, renormalised

if TYPE_CHECKING:
    from planaria.geometry.profile import Profile
    from planaria.measure.data import Data
    from planaria.measure.task import Task


class Curve(Protocol):
    """How knots make a curve: points [...] of one shape and a time from 0 to 1 -> the point there."""

    def at(self, points: Sequence[Tensor], t: float, /) -> Tensor:
        """The point at time t; where all points agree in an entry, it has exactly their value."""
        ...

    def marks(self, count: int, /) -> tuple[float, ...]:
        """Times at which the curve may have corners, 0 and 1 among them."""
        ...


@dataclass(frozen=True)
class Polygon:
    """Straight lines from knot to knot.

    Args:
        times: When each knot is reached, rising from 0 to 1; even if not given.

    Example:
        >>> Polygon().at([torch.tensor(0.0), torch.tensor(1.0), torch.tensor(5.0)], 0.75)
        tensor(3.)
    """

    times: tuple[float, ...] = ()

    def at(self, points: Sequence[Tensor], t: float, /) -> Tensor:
        """The point at time t."""
        times = self.marks(len(points))
        before = min(bisect_right(times, t) - 1, len(times) - 2)
        share = (t - times[before]) / (times[before + 1] - times[before])
        if share in (0.0, 1.0):
            return points[before + int(share)]
        return torch.lerp(points[before], points[before + 1], share)

    def marks(self, count: int, /) -> tuple[float, ...]:
        """Times of the knots."""
        times = self.times or tuple(place / (count - 1) for place in range(count))
        rising = len(times) == count and all(one < two for one, two in pairwise(times))
        if not rising or (times[0], times[-1]) != (0.0, 1.0):
            raise InputError("Polygon.times", f"{count} rising times from 0 to 1", times)
        return times


@dataclass(frozen=True)
class Arc:
    """The Bezier curve of the knots: it begins at the first, ends at the last and is drawn towards those between.

    Example:
        >>> Arc().at([torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.0)], 0.5)
        tensor(0.5000)

    Source: de Casteljau's scheme.
    """

    def at(self, points: Sequence[Tensor], t: float, /) -> Tensor:
        """The point at time t."""
        while len(points) > 1:
            points = [torch.lerp(one, two, t) for one, two in pairwise(points)]
        return points[0]

    def marks(self, count: int, /) -> tuple[float, ...]:
        """The ends."""
        del count
        return (0.0, 1.0)


@dataclass(frozen=True, eq=False, repr=False)
class Path:
    """A curve of networks: `path(t)` is the network at t, from 0 (exactly the first knot) to 1 (exactly the last).

    Between the ends, weights and buffers are those of the curve through the knots; running statistics of batch
    normalisation are re-estimated there on the calibration inputs, if there are any. Every network of the path has
    module, plasticity and example inputs of the first knot.

    Args:
        knots: Networks of one architecture, at least two.
        curve: Polygon or Arc.
        calibration: Unlabelled inputs [examples, ...] for normalisation statistics; None leaves interpolated ones.
        cost: What it took to find the path.
        notes: What whoever found it has to say, JSON-able.
        profiles: What was measured along it, by name of the split; see `connect`.
        tried: Attempts of `connect`, the one that led here among them.

    Raises:
        InputError: Fewer than two knots, or knots whose weights have other names, shapes, types or devices, or that
            compute something else with the same weights.

    Example:
        >>> from torch import nn
        >>> a, b = (Network.of(nn.Linear(2, 1)) for _ in range(2))
        >>> path = Path((a, b))
        >>> path(0.0) is a, bool((path(1.0).weights["weight"] == b.weights["weight"]).all())
        (True, True)

    Not guaranteed: that two networks which agree on the first one's example inputs are of one architecture; without
    example inputs nothing but names and shapes is compared.
    """

    knots: tuple[Network, ...]
    curve: Curve = Polygon()
    calibration: Tensor | None = None
    cost: Cost = field(default=Cost())
    notes: Mapping[str, Any] = field(default_factory=dict)
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    tried: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if len(self.knots) < 2:
            raise InputError("Path.knots", "two networks or more", len(self.knots))
        for knot in self.knots[1:]:
            check_alike(self.knots[0], knot)
        check_function(self.knots[0], self.knots[-1])
        self.curve.marks(len(self.knots))

    def __call__(self, t: float) -> Network:
        """The network at time t.

        Args:
            t: From 0 to 1.

        Raises:
            InputError: Another time.
        """
        if not (isinstance(t, (int, float)) and 0 <= t <= 1):
            raise InputError("Path(t)", "a time from 0 to 1", repr(t))
        first, last = self.knots[0], self.knots[-1]
        if t == 0:
            return first
        if t == 1:
            return first.with_weights(last.weights, last.buffers)
        nearest = self.knots[round(t * (len(self.knots) - 1))]

        def there(kept: Callable[[Network], Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return {
                name: self.curve.at([kept(knot)[name] for knot in self.knots], float(t))
                if tensor.is_floating_point()
                else kept(nearest)[name]
                for name, tensor in kept(first).items()
            }

        net = first.with_weights(there(lambda knot: knot.weights), there(lambda knot: knot.buffers))
        return net if self.calibration is None else renormalised(net, self.calibration)

    def calibrated(self, inputs: Tensor) -> Path:
        """The same path with statistics re-estimated between its ends on these inputs, if it has any.

        Args:
            inputs: Unlabelled, [examples, ...].
        """
        return replace(self, calibration=inputs if normalises(self.knots[0]) else None)

    def reversed(self) -> Path:
        """The same path from its end to its beginning; what was measured along it is dropped.

        Example:
            >>> from torch import nn
            >>> a, b = (Network.of(nn.Linear(2, 1)) for _ in range(2))
            >>> Path((a, b)).reversed()(0.0) is b
            True
        """
        curve = self.curve
        if isinstance(curve, Polygon) and curve.times:
            curve = Polygon(tuple(1.0 - time for time in reversed(curve.times)))
        return replace(self, knots=self.knots[::-1], curve=curve, profiles={}, tried=())

    def profile(self, task: Task, data: Data | None = None, *, points: int = 25) -> Profile:
        """Loss, score, barriers and lengths along the path; see `planaria.geometry.profile.profile`.

        Args:
            task: Its loss and score.
            data: Labelled; the task's test split if not given.
            points: Of the grid before it is refined.
        """
        from planaria.geometry.profile import profile

        return profile(self, task, data, points=points)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the weights, JSON-able."""
        return {
            "knots": len(self.knots),
            "curve": type(self.curve).__name__.lower(),
            "times": list(self.curve.marks(len(self.knots))),
            "normalisation": None if self.calibration is None else len(self.calibration),
            "cost": dict(vars(self.cost)),
            "notes": dict(self.notes),
            "profiles": {name: profile.to_dict() for name, profile in self.profiles.items()},
            "tried": [attempt.to_dict() for attempt in self.tried],
        }

    def __repr__(self) -> str:
        again = "" if self.calibration is None else f", statistics from {len(self.calibration)} inputs"
        return f"<Path: {type(self.curve).__name__.lower()} of {len(self.knots)} networks{again}>"


def towards(a: Network, b: Network) -> Weights:
    """Displacement of the weights from one network to another, zero where they are no floating-point numbers.

    Args:
        a: From here.
        b: To there; the same names and shapes.

    Example:
        >>> from torch import nn
        >>> net = Network.of(nn.Linear(1, 1)).with_weights({"bias": torch.tensor([1.0])})
        >>> towards(net, net.with_weights({"bias": torch.tensor([3.0])}))["bias"]
        tensor([2.])
    """
    return {name: w if w.is_floating_point() else torch.zeros(w.shape, device=w.device) for name, w in (b - a).items()}


def check_alike(a: Network, b: Network) -> None:
    """Check that two networks have the same weights and buffers by name, shape, type and device.

    Args:
        a: One.
        b: The other.

    Raises:
        InputError: Names the first that differs.
    """
    for where, one, other in (("weight", a.weights, b.weights), ("buffer", a.buffers, b.buffers)):
        for name in [*one, *(name for name in other if name not in one)]:
            if name not in one or name not in other:
                got = f"{where} {name!r} in the {'second' if name in other else 'first'} alone"
                raise InputError("two networks of one path", "the same weights and buffers", got)
            x, y = one[name], other[name]
            for what, mine, theirs in (
                ("shape", list(x.shape), list(y.shape)),
                ("type", x.dtype, y.dtype),
                ("device", x.device, y.device),
            ):
                if mine != theirs:
                    expected = f"{where} {name!r} of one {what}"
                    raise InputError("two networks of one path", expected, f"{mine} and {theirs}")


def check_function(a: Network, b: Network) -> None:
    """Check on the example inputs of the first, if it has any, that both compute the same with the same weights.

    Args:
        a: The first; its module is run with the weights of both.
        b: The other.

    Raises:
        InputError: They do not.
    """
    if a.inputs is None or a.module is b.module:
        return
    mine = a.with_weights(b.weights, b.buffers)(a.inputs)
    try:
        theirs = b(a.inputs)
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as problem:
        raise InputError("two networks of one path", "networks that take the same inputs", str(problem)) from problem
    # Loosely: other kernels round differently, another activation function differs by far more.
    if mine.shape != theirs.shape or not torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4, equal_nan=True):
        got = "two that compute other things with the same weights"
        raise InputError("two networks of one path", "networks of one architecture", got)
