"""Finite-size test: does a response curve become steeper without limit as networks grow, as a phase transition would?

One network cannot tell a transition from a crossover: a curve of any steepness may be smooth. What tells them apart is
how steepness and fluctuations change with the width n of the network. At a transition both grow as a power of n, at a
dose that stays where it is; at a crossover they settle. A curve that only moves, because a wide network fails when as
few units are left as in a narrow one, becomes steeper too, and is no transition: counted by the share of units left it
keeps its shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from planaria.core.errors import InputError
from planaria.measure.statistics import (
    Estimate,
    Floats,
    half_dose,
    mean_interval,
    response_curves,
    student_quantile,
)
from planaria.measure.transition import FEWEST_DOSES, FEWEST_DRAWS, critical_dose

FEWEST_WIDTHS = 3
_WINDOW = 3  # doses through which a slope is fitted
_SPLITS = 64  # ways to halve the orders that an estimate is averaged over
_ROUNDING = 1e-9
_PLAIN = 0.5  # a power that would be plain to see; that of a sharpening by the law of large numbers
_UNKNOWN = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Scaling:
    """How response curves change with the width of the network.

    Args:
        widths: Ascending.
        doses: Common to all widths.
        curves: Per width the mean score at each dose, over all orders and networks.
        half_doses: Per width the dose at which half of the score above chance is lost.
        steepness: Per width s(n) = max |dA/df|.
        susceptibility: Per width chi(n) = n max_f Var_orders(A(f)).
        exponent: Of n in s(n).
        susceptibility_exponent: Of n in chi(n).
        exponent_by_survivors: Of n in max |dA/d ln(1 - f)|, the steepness against the share of units left.
        exponent_of_larger: Of n in s(n) among the larger half of the widths, three of them at least.
        breaks: Widths at which the curve breaks or bends, rather than declining steadily.
        untested: Why there is no verdict; empty where there is one.
    """

    widths: tuple[int, ...]
    doses: tuple[float, ...]
    curves: tuple[tuple[Estimate, ...], ...]
    half_doses: tuple[Estimate, ...]
    steepness: tuple[Estimate, ...]
    susceptibility: tuple[Estimate, ...]
    exponent: Estimate = _UNKNOWN
    susceptibility_exponent: Estimate = _UNKNOWN
    exponent_by_survivors: Estimate = _UNKNOWN
    exponent_of_larger: Estimate = _UNKNOWN
    breaks: tuple[int, ...] = ()
    untested: str = ""

    @property
    def verdict(self) -> str:
        """Transition, crossover or none; or "not tested" and why."""
        if self.untested:
            return f"not tested: {self.untested}"
        if all(one.low > 0 for one in (self.exponent, self.exponent_of_larger, self.exponent_by_survivors)):
            return "transition"
        return "crossover" if self.exponent.low > 0 or 2 * len(self.breaks) > len(self.widths) else "none"

    @property
    def words(self) -> str:
        """The verdict in a few sentences, with its numbers."""
        if self.untested:
            return f"The finite-size test was not made: {self.untested}."
        said = [
            f"The steepness of the curve goes as width to the power {self.exponent:.2f}, its half-dose from "
            f"{self.half_doses[0].best:.2f} to {self.half_doses[-1].best:.2f}."
        ]
        larger = f"among the larger widths alone the power is {self.exponent_of_larger:.2f}"
        left = f"counted by the share of units left it is {self.exponent_by_survivors:.2f}"
        if self.verdict == "transition":
            said.append(f"The curve sharpens as at a phase transition: {larger}, and {left}.")
        elif self.exponent.low > 0:
            if self.exponent_of_larger.low <= 0:
                said.append(f"The growth is not shown to go on: {larger}.")
            if not self.exponent_by_survivors.low > 0:
                said.append(f"Wide networks fail later, but are not shown to fail more abruptly: {left}.")
        else:
            shape = "The curve bends" if self.verdict == "crossover" else "A steady decline is not refuted"
            said.append(f"{shape}, and the power is not shown to be above 0.")
            if self.exponent.high >= _PLAIN:
                said.append("Nor is a large power ruled out: more orders, networks or widths decide.")
        return " ".join(said)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "widths": list(self.widths),
            "half_doses": [estimate.to_dict() for estimate in self.half_doses],
            "steepness": [estimate.to_dict() for estimate in self.steepness],
            "susceptibility": [estimate.to_dict() for estimate in self.susceptibility],
            "exponent": self.exponent.to_dict(),
            "susceptibility_exponent": self.susceptibility_exponent.to_dict(),
            "exponent_by_survivors": self.exponent_by_survivors.to_dict(),
            "exponent_of_larger": self.exponent_of_larger.to_dict(),
            "breaks": list(self.breaks),
            "curves": [
                {
                    "width": width,
                    "doses": list(self.doses),
                    "mean": [estimate.best for estimate in curve],
                    "low": [estimate.to_dict()["low"] for estimate in curve],
                    "high": [estimate.to_dict()["high"] for estimate in curve],
                }
                for width, curve in zip(self.widths, self.curves, strict=True)
            ],
            "verdict": self.verdict,
            "words": self.words,
        }


def finite_size(
    widths: Sequence[int],
    doses: ArrayLike,
    scores: Sequence[Sequence[ArrayLike]],
    chance: float,
    rng: np.random.Generator,
    *,
    bounds: tuple[float, float] | None = None,
    replicas: int = 400,
) -> Scaling:
    """Test whether the response curve sharpens without limit as the network grows.

    Per network: s = max over doses of |dA/df| of the mean curve, the slope being that of a line through three
    neighbouring doses, and chi = n * max over doses of the variance of the score over orders. A maximum over noisy
    values is too large, the more so the noisier, and narrow networks are noisier. Therefore the dose of the maximum is
    found on one half of the orders and the value read from the other half, both ways, averaged over many halvings.
    Several networks of a width are averaged in log s and log chi.

    Then log s = a + b log n by least squares, and the same for chi. The interval of b is the wider of two: the
    bootstrap over orders (within the halves) and networks, and Student's from the scatter of the networks about the
    line, which also holds what differs between trained networks and is not in their orders.

    The verdict is "transition" only if the interval of b lies above 0, and also that of the larger half of the widths
    (orders that fail at different doses flatten the mean curve of narrow networks, and that wears off), and that of the
    steepness against ln(1 - f) (a curve that moves towards dose 1 becomes steeper without becoming more abrupt). It is
    "crossover" if b is above 0 and the others are not, or if the curve bends at most widths (`critical_dose` refutes a
    steady decline); else "none".

    Args:
        widths: Units per hidden layer, ascending.
        doses: Ascending fractions of units [doses] common to all widths, from 0 to at most 1. Doses that are whole
            numbers of units at every width keep rounding out of the slopes.
        scores: Per width, per network of that width: score per order (row) and dose (column).
        chance: Score of guessing.
        rng: Source of halvings and resampled orders.
        bounds: Least and greatest possible score, to which intervals of the curves are clipped.
        replicas: Number of bootstrap samples.

    Returns:
        The test. It says so if it could not be made: fewer than 3 widths, 6 doses or 5 orders, a curve that never
        falls.

    Raises:
        InputError: Widths do not ascend, shapes do not fit, a score is nan.

    Example:
        >>> from planaria.core.streams import stream
        >>> from planaria.measure.statistics import numpy_generator
        >>> rng, doses = numpy_generator(stream(0, "scaling")), np.linspace(0, 1, 26)
        >>> def network(n):
        ...     middles = 0.5 + rng.normal(0, 0.3 / n**0.5, (12, 1))
        ...     return 0.1 + 0.85 / (1 + np.exp((doses - middles) / 0.08))
        >>> finite_size([25, 50, 100, 200], doses, [[network(n)] for n in (25, 50, 100, 200)], 0.1, rng).verdict
        'crossover'

    Source: finite-size scaling as in Binder & Heermann 1988, "Monte Carlo simulation in statistical physics", for
    steepness and susceptibility of a curve of mean scores.

    Not guaranteed: that a sharpening finer than the spacing of the doses is seen; then a transition is called a
    crossover. A steepness that falls with width is no transition either, whatever its reason.
    """
    sizes = tuple(int(width) for width in widths)
    if not sizes or sizes[0] < 1 or any(b <= a for a, b in pairwise(sizes)):
        raise InputError("finite_size(widths)", "ascending whole numbers of at least 1", list(widths))
    if len(scores) != len(sizes) or not all(len(networks) for networks in scores):
        got = [len(networks) for networks in scores]
        raise InputError("finite_size(scores)", f"at least one network for each of {len(sizes)} widths", got)
    x, _ = response_curves(doses, scores[0][0])
    if x[-1] > 1 + _ROUNDING:
        raise InputError("finite_size(doses)", "fractions of units, at most 1", float(x[-1]))
    curves = [[response_curves(x, one)[1] for one in networks] for networks in scores]
    fewest = min(len(one) for networks in curves for one in networks)
    means = tuple(
        tuple(mean_interval(column, within=bounds) for column in np.concatenate(networks).T) for networks in curves
    )
    if len(x) < FEWEST_DOSES or fewest < FEWEST_DRAWS:
        untested = (
            f"{len(x)} doses, {FEWEST_DOSES} needed"
            if len(x) < FEWEST_DOSES
            else f"{fewest} orders, {FEWEST_DRAWS} needed"
        )
        return Scaling(sizes, tuple(x.tolist()), means, (), (), (), untested=untested)
    # A network that explodes counts as one that is as bad as guessing, as in half_dose.
    floored = [
        [np.maximum(one, 2 * chance - max(chance, float(one[:, 0].mean()))) for one in networks] for networks in curves
    ]
    samples = [
        [_sample(one, x, width, rng, replicas) for one in networks]
        for width, networks in zip(sizes, floored, strict=True)
    ]
    steep, left, loud = (
        _Powers([[one[which] for one in networks] for networks in samples], sizes, fewest, rng) for which in range(3)
    )
    halves = tuple(half_dose(x, np.concatenate(networks), chance, rng, replicas=replicas) for networks in floored)
    untested = ""
    if len(sizes) < FEWEST_WIDTHS:
        untested = f"{len(sizes)} {'width' if len(sizes) == 1 else 'widths'}, {FEWEST_WIDTHS} needed"
    elif not steep.defined:
        untested = "there is a width at which the curve never falls"
    if untested:
        return Scaling(sizes, tuple(x.tolist()), means, halves, steep.values, loud.values, untested=untested)
    broken = [
        critical_dose(x, np.concatenate(networks), chance, rng, replicas=200).estimate is not None
        for networks in curves
    ]
    return Scaling(
        widths=sizes,
        doses=tuple(x.tolist()),
        curves=means,
        half_doses=halves,
        steepness=steep.values,
        susceptibility=loud.values,
        exponent=steep.exponent(),
        susceptibility_exponent=loud.exponent() if loud.defined else _UNKNOWN,
        exponent_by_survivors=left.exponent() if left.defined else _UNKNOWN,
        exponent_of_larger=steep.exponent(min(len(sizes) // 2, len(sizes) - FEWEST_WIDTHS)),
        breaks=tuple(width for width, bends in zip(sizes, broken, strict=True) if bends),
    )


def _sample(
    curves: Floats, x: Floats, width: int, rng: np.random.Generator, replicas: int
) -> tuple[Floats, Floats, Floats]:
    """Steepness, steepness by survivors, susceptibility of one network: the estimate, then its bootstrap samples."""
    draws = len(curves)
    order = rng.random((_SPLITS + replicas, draws)).argsort(axis=1)
    halves = [order[:, : draws // 2], order[:, draws // 2 :]]
    for place, rows in enumerate(halves):  # the first splits are the estimate, the others are resampled as well
        picks = rng.integers(0, rows.shape[1], (replicas, rows.shape[1]))
        halves[place] = np.concatenate((rows[:_SPLITS], np.take_along_axis(rows[_SPLITS:], picks, axis=1)))
    one, other = (curves[rows] for rows in halves)  # [samples, draws, doses]
    slopes, middles = _slopes(x)
    falls = [-part.mean(axis=1) @ slopes.T for part in (one, other)]
    values = (
        _crossed(*falls),
        _crossed(*(fall * (1 - middles) for fall in falls)),
        width * _crossed(*(part.var(axis=1, ddof=1) for part in (one, other))),
    )
    steep, left, loud = (np.concatenate((value[:_SPLITS].mean(keepdims=True), value[_SPLITS:])) for value in values)
    return steep, left, loud


def _slopes(x: Floats) -> tuple[Floats, Floats]:
    """Matrix that takes a curve [doses] to the slopes of lines through neighbouring doses, and their middles."""
    rows, middles = np.zeros((len(x) - _WINDOW + 1, len(x))), np.zeros(len(x) - _WINDOW + 1)
    for place, row in enumerate(rows):
        window = slice(place, place + _WINDOW)
        middles[place] = x[window].mean()
        centred = x[window] - middles[place]
        row[window] = centred / (centred**2).sum()
    return rows, middles


def _crossed(one: Floats, other: Floats) -> Floats:
    """Value of each half at the place of the other half's maximum, averaged."""
    rows = np.arange(len(one))
    return np.asarray((other[rows, one.argmax(axis=1)] + one[rows, other.argmax(axis=1)]) / 2)


class _Powers:
    """A positive number per network, for every width: its logarithm with bootstrap samples, and the law of powers."""

    def __init__(
        self, samples: list[list[Floats]], widths: tuple[int, ...], draws: int, rng: np.random.Generator
    ) -> None:
        self._x = np.log(np.array(widths, dtype=float))
        self._points = [[float(one[0]) for one in networks] for networks in samples]
        self.defined = all(value > _ROUNDING for networks in self._points for value in networks)
        # The plain bootstrap is too narrow for few draws; see `resampled_means`. Each half is resampled by itself.
        half = draws // 2
        self._spread = math.sqrt(half / max(1, half - 1)) * student_quantile(0.95, draws - 1) / 1.959964
        self._values, self._replicas = [], []
        for networks in samples:
            table = np.stack(networks)  # [networks, 1 + replicas]
            count, replicas = len(table), table.shape[1] - 1
            least = 1e-3 * np.abs(table[:, :1]) + 1e-12
            logs = np.log(np.maximum(table, least))
            picks = rng.integers(0, count, (count, replicas))
            drawn = np.take_along_axis(logs[:, 1:], picks, axis=0).mean(axis=0)
            self._values.append(float(logs[:, 0].mean()))
            self._replicas.append(drawn - drawn.mean())

    @property
    def values(self) -> tuple[Estimate, ...]:
        """The number at each width, the geometric mean over networks."""
        found = []
        for points, value, replicas in zip(self._points, self._values, self._replicas, strict=True):
            if not all(point > _ROUNDING for point in points):
                found.append(Estimate(math.nan, float(np.mean(points)), math.nan))
                continue
            best = math.exp(value)
            low, high = np.quantile(best * (np.exp(replicas) - 1) * self._spread, [0.025, 0.975])
            found.append(Estimate(max(0.0, best + min(0.0, float(low))), best, best + max(0.0, float(high))))
        return tuple(found)

    def exponent(self, first: int = 0) -> Estimate:
        """Power of the width, from the given width on; the wider of two intervals."""
        x = self._x[first:] - self._x[first:].mean()
        weights = x / (x @ x)
        best = float(weights @ np.array(self._values[first:]))
        low, high = self._spread * np.quantile(weights @ np.stack(self._replicas[first:]), [0.025, 0.975])
        used = float(sum(len(points) * at**2 for at, points in zip(x, self._points[first:], strict=True)))
        scatter, degrees = self._scatter()
        half = student_quantile(0.95, degrees) * scatter / math.sqrt(used)
        return Estimate(best + min(float(low), -half), best, best + max(float(high), half))

    def _scatter(self) -> tuple[float, int]:
        """Standard deviation of single networks about the line through all widths, and its degrees of freedom."""
        x = np.concatenate([[at] * len(points) for at, points in zip(self._x, self._points, strict=True)])
        y = np.log(np.concatenate(self._points))
        x, y = x - x.mean(), y - y.mean()
        rest = y - x * (x @ y) / (x @ x)
        degrees = len(x) - 2
        return math.sqrt(float(rest @ rest) / degrees), degrees
