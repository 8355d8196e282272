"""The critical dose: a fitted break in a response curve, tested against curves without one.

Three descriptions of the mean curve compete, all fitted by least squares and all ending at the score of
guessing: a steady decline, a break (two straight pieces, the second falling faster), and a smooth bend with
as many parameters as the break. Bootstrap tests over draws decide between them, never the eye.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from planaria.measure.statistics import Estimate, Floats, resampled_means, response_curves

FEWEST_DOSES = 6
FEWEST_DRAWS = 5
MOST_DOSES = 32  # more are averaged in neighbouring groups: the cost of a fit grows with their cube
LEVEL = 0.05
NARROWEST_SIGMOID = 0.02  # these two say what counts as smooth, in parts of the dose range
ROUNDED_CORNERS = (0.05, 0.1)


@dataclass(frozen=True)
class CriticalDose:
    """Where a response curve breaks, if it does.

    The numbers are None where the question did not arise.

    Args:
        estimate: Dose of the break with its 95 % interval; None where there is no break, or nothing was
            tested.
        p_value: Probability that a steady decline looks this much like a break. Above 0.05 there is no break.
        p_value_smooth: Probability that the fitted smooth curve looks this much like a break.
        p_value_break: Probability that the fitted break looks this much like a smooth curve.
        bic_difference: BIC of the smooth curve minus BIC of the break on the mean curve: positive where the
            break describes it better. Equal to the difference in AIC, as both have four parameters.
        untested: Why nothing was fitted; empty where something was.

    Example:
        >>> CriticalDose(Estimate(0.60, 0.62, 0.64), 0.002, 0.004, 0.7, 21.3).verdict
        'break at 0.62, sharper than a smooth curve'
    """

    estimate: Estimate | None = None
    p_value: float | None = None
    p_value_smooth: float | None = None
    p_value_break: float | None = None
    bic_difference: float | None = None
    untested: str = ""

    @property
    def verdict(self) -> str:
        """What was found, in words."""
        if self.untested:
            return f"not tested: {self.untested}"
        if self.estimate is None:
            return "no break"
        best, difference = self.estimate.best, self.bic_difference or 0.0
        place = f"break at {best:{'.2g' if best < 100 else '.0f'}}"
        if difference > 0 and self.p_value_smooth is not None and self.p_value_smooth <= LEVEL:
            return f"{place}, sharper than a smooth curve"
        if difference < 0 and self.p_value_break is not None and self.p_value_break <= LEVEL:
            return f"{place}, a smooth curve fits better"
        return f"{place}, a smooth curve fits as well"


def critical_dose(
    doses: ArrayLike, scores: ArrayLike, chance: float, rng: np.random.Generator, *, replicas: int = 500
) -> CriticalDose:
    """Dose at which the response curve breaks, with an interval, and whether a smooth curve would do as well.

    Fits to the mean curve over draws, by least squares:
    break: max(chance, a + b1 x + b2 max(0, x - c)) with b2 < 0 and b1 + b2 < 0; c is the critical dose;
    steady: max(chance, a + b x), or chance + a exp(-x / t);
    smooth: the best of max(chance, cubic), of a sigmoid from a sloping plateau to chance (logistic or
    Gompertz either way round, scale at least 0.02 of the dose range), and of the break with its corner
    rounded (10 to 90 % of the change of slope take 0.2 or 0.4 of the dose range).

    Each p-value is a parametric bootstrap: draws are simulated as one fitted curve plus whole rows of
    residuals, resampled, and the gain in squares over the variance of the mean curve is compared with the
    observed gain. The interval is the percentile bootstrap of c over draws. If the curve falls from the first
    straight piece to chance within one step of the doses, c is the middle of that step and the interval holds
    the whole step.

    Args:
        doses: Ascending doses [doses], the first of them 0.
        scores: Score per draw (row) and dose (column) [draws, doses]; draws are independent orders of damage.
        chance: Score of guessing, the floor of the curve.
        rng: Source of the resampled draws.
        replicas: Number of bootstrap curves per test.

    Returns:
        The critical dose. It says so if it was not tested: fewer than 6 doses or 5 draws, or an intact
        network not better than chance.

    Raises:
        InputError: Shapes do not fit, doses do not ascend from 0, a score is nan.

    Example:
        >>> from planaria.core.streams import stream
        >>> from planaria.measure.statistics import numpy_generator
        >>> rng = numpy_generator(stream(0, "break"))
        >>> doses = np.linspace(0, 1, 21)
        >>> curve = np.maximum(0.1, 0.95 - 2 * np.maximum(0, doses - 0.5))
        >>> critical_dose(doses, curve + rng.normal(0, 0.02, (20, 21)), 0.1, rng).verdict
        'break at 0.5, sharper than a smooth curve'

    Source: Hudson 1966, "Fitting segmented curves whose join points have to be estimated"; Davison & Hinkley
    1997, "Bootstrap methods and their application", chapter 4. Holds for this network and these test data:
    only the order of damage varies between draws. The mean over draws that break at different doses is itself
    smooth.
    """
    x, curves = response_curves(doses, scores)
    intact = float(curves[:, 0].mean())
    if untested := _why_untested(len(x), len(curves), intact > chance):
        return CriticalDose(untested=untested)
    # As in half_dose, a score far below chance counts as the mirror image of the intact score.
    heights = np.maximum(curves, 2 * chance - intact) - chance
    span = float(x[-1])
    x, heights = _thinned(x / span, heights)
    broken, steady, smooth = _fitters(tuple(x.tolist()))

    p_value = _p_value(heights, steady, broken, rng, replicas)
    if p_value > LEVEL:
        return CriticalDose(p_value=p_value)
    mean = heights.mean(axis=0, keepdims=True)
    fit = broken(mean)
    best = span * float(fit.corner[0].mean())
    corners = broken(resampled_means(heights, rng, replicas)).corner
    low, high = span * np.quantile(corners[:, 0], 0.025), span * np.quantile(corners[:, 1], 0.975)
    negligible = _negligible(mean)
    ratio = (smooth(mean).squares[0] + negligible) / (fit.squares[0] + negligible)
    return CriticalDose(
        Estimate(min(best, float(low)), best, max(best, float(high))),
        p_value,
        _p_value(heights, smooth, broken, rng, replicas),
        _p_value(heights, broken, smooth, rng, replicas),
        len(x) * math.log(ratio),
    )


class _Fit(NamedTuple):
    """Least-squares fits to several curves; `corner` is the range of equally good breaks, or nan."""

    squares: Floats  # [curves]
    fitted: Floats  # [curves, doses]
    corner: Floats  # [curves, 2]


_Fitter = Callable[[Floats], _Fit]  # from heights above chance [curves, doses]


def _why_untested(doses: int, draws: int, above_chance: bool) -> str:
    if doses < FEWEST_DOSES:
        return f"{doses} doses, {FEWEST_DOSES} needed"
    if draws < FEWEST_DRAWS:
        return f"{draws} {'draw' if draws == 1 else 'draws'}, {FEWEST_DRAWS} needed"
    return "" if above_chance else "the intact network is not better than chance"


def _thinned(x: Floats, heights: Floats) -> tuple[Floats, Floats]:
    if len(x) <= MOST_DOSES:
        return x, heights
    groups = np.array_split(np.arange(len(x)), MOST_DOSES)
    thin = np.stack([heights[:, g].mean(axis=1) for g in groups], axis=1)
    return np.array([x[g].mean() for g in groups]), thin


def _negligible(curves: Floats) -> float:
    """Squares that are rounding error of the fits."""
    return 1e-9 * float((curves**2).sum(axis=1).max())


def _p_value(heights: Floats, null: _Fitter, other: _Fitter, rng: np.random.Generator, replicas: int) -> float:
    """Share of data sets simulated from the fitted `null` in which `other` gains as much on it as here."""
    draws, mean = len(heights), heights.mean(axis=0, keepdims=True)
    residuals = heights - mean
    fit = null(mean)
    gain = float(fit.squares[0] - other(mean).squares[0])
    negligible = _negligible(mean)
    if gain <= negligible:
        return 1.0
    counts = rng.multinomial(draws, np.full(draws, 1 / draws), size=replicas)
    shifts = counts @ residuals / draws
    noise = (residuals**2).mean(axis=0).sum() + negligible
    noises = (counts @ residuals**2 / draws - shifts**2).sum(axis=1) + negligible
    simulated = fit.fitted + shifts
    gains = null(simulated).squares - other(simulated).squares
    return float((1 + np.count_nonzero(gains / noises >= gain / noise)) / (1 + replicas))


@lru_cache(maxsize=4)
def _fitters(doses: tuple[float, ...]) -> tuple[_Fitter, _Fitter, _Fitter]:
    """Break, steady and smooth; preparing them takes as long as using them, and a study keeps its doses."""
    x = np.array(doses)
    return _broken(x), _steady(x), _smooth(x)


def _steady(x: Floats) -> _Fitter:
    line = np.stack((np.ones_like(x), x), axis=1)
    decay = np.exp(-x / np.geomspace(0.05, 20, 60)[:, None])
    return _best_of(_floored([line]), _spanned(decay[:, :, None]))


def _smooth(x: Floats) -> _Fitter:
    cubic = np.stack((np.ones_like(x), x, x**2, x**3), axis=1)
    corners = np.linspace(0.05, 0.95, 37)
    rounded = [
        np.stack((np.ones_like(x), x, np.logaddexp(0, (x - c) / w)), axis=1) for w in ROUNDED_CORNERS for c in corners
    ]
    middle = np.linspace(0.02, 1.3, 65)[:, None, None]
    scale = np.geomspace(NARROWEST_SIGMOID, 0.6, 22)[:, None]
    z = np.clip((x - middle) / scale, -50, 50).reshape(-1, len(x))
    falls = np.concatenate((1 / (1 + np.exp(z)), np.exp(-np.exp(z)), 1 - np.exp(-np.exp(-z))))
    sigmoids = np.stack((falls, falls * x), axis=2)
    return _best_of(_floored([cubic, *rounded]), _spanned(sigmoids))


def _best_of(first: _Fitter, second: _Fitter) -> _Fitter:
    def fit(curves: Floats) -> _Fit:
        one, two = first(curves), second(curves)
        better = one.squares <= two.squares
        fitted = np.where(better[:, None], one.fitted, two.fitted)
        return _Fit(np.minimum(one.squares, two.squares), fitted, one.corner)

    return fit


def _floored(bases: list[Floats]) -> _Fitter:
    """Fit of max(0, combination of the columns of a basis), the best over all bases [doses, columns].

    Which doses lie above the floor is unknown: every leading run of doses is tried, the curve is fitted to
    it, and the squares are counted over all doses with the floor in place.
    """
    doses = len(bases[0])
    hats = []
    for basis in bases:
        for run in range(basis.shape[1], doses + 1):
            hat = np.zeros((doses, doses))
            hat[:, :run] = basis @ np.linalg.pinv(basis[:run])
            hats.append(hat)
    by_dose = np.stack(hats, axis=1)  # [doses, candidates, doses]

    def fit(curves: Floats) -> _Fit:
        squares = np.zeros((len(hats), len(curves)))
        for hat, height in zip(by_dose, curves.T, strict=True):
            squares += (np.maximum(hat @ curves.T, 0) - height) ** 2
        best = squares.argmin(axis=0)
        fitted = np.maximum(np.einsum("icj,cj->ci", by_dose[:, best], curves), 0)
        return _Fit(squares.min(axis=0), fitted, np.full((len(curves), 2), np.nan))

    return fit


def _spanned(bases: Floats) -> _Fitter:
    """Fit of a combination of the columns of a basis that has the floor built in, the best over `bases`."""
    q, r = np.linalg.qr(bases)
    diagonal = np.abs(np.diagonal(r, axis1=1, axis2=2))
    q = q[diagonal.min(axis=1) > 1e-6 * diagonal.max(axis=1)]  # columns that underflow span nothing

    def fit(curves: Floats) -> _Fit:
        parts = np.tensordot(q, curves, axes=(1, 1))  # [candidates, columns, curves]
        explained = (parts**2).sum(axis=1)
        best = explained.argmax(axis=0)
        each = np.arange(len(curves))
        fitted = np.einsum("cjp,cp->cj", q[best], parts[best, :, each])
        return _Fit(((curves - fitted) ** 2).sum(axis=1), fitted, np.full((len(curves), 2), np.nan))

    return fit


def _broken(x: Floats) -> _Fitter:
    """Exact fit of a break over the floor.

    For every leading run of doses above the floor and every dose i in it, the best corner between i and i + 1
    is where two separately fitted lines meet, if they meet there; otherwise it is at a dose, and a hinge is
    fitted.
    """
    doses = len(x)
    rows: list[Floats] = []
    split: list[int] = []
    corner: list[tuple[float, float]] = []  # nan where the lines decide
    for run in range(4, doses + 1):
        for i in range(1, run - 1):
            hinge = np.linalg.pinv(np.stack((np.ones(run), x[:run], np.maximum(0, x[:run] - x[i])), axis=1))
            lines = np.zeros((4, doses))  # intercept and slope before the corner, intercept and slope after
            lines[:, :run] = hinge[0], hinge[1], hinge[0] - x[i] * hinge[2], hinge[1] + hinge[2]
            rows.append(lines)
            split.append(i)
            # A last piece of one dose could start anywhere since the dose before.
            corner.append((x[i], x[i] if i < run - 2 else x[run - 1]))
            if i < run - 2:
                lines = np.zeros((4, doses))
                lines[:2, : i + 1] = np.linalg.pinv(np.stack((np.ones(i + 1), x[: i + 1]), axis=1))
                lines[2:, i + 1 : run] = np.linalg.pinv(np.stack((np.ones(run - i - 1), x[i + 1 : run]), axis=1))
                rows.append(lines)
                split.append(i)
                corner.append((math.nan, math.nan))
    maps = np.stack(rows, axis=1)  # [4, candidates, doses]
    last = np.array(split)[:, None]
    given = np.array(corner)[:, None, :]
    steady = _floored([np.stack((np.ones_like(x), x), axis=1)])

    def fit(curves: Floats) -> _Fit:
        a, b, a_after, b_after = maps @ curves.T
        falls = (b_after < b) & (b_after < 0)
        meeting = (a_after - a) / np.where(falls, b - b_after, 1.0)
        meets = (meeting >= x[last]) & (meeting <= x[np.minimum(last + 1, doses - 1)])
        squares = np.zeros_like(a)
        for j, height in enumerate(curves.T):
            line = np.where(j <= last, a + b * x[j], a_after + b_after * x[j])
            squares += (np.maximum(line, 0) - height) ** 2
        squares[~(falls & (meets | ~np.isnan(given[:, :, 0])))] = np.inf
        best, each = squares.argmin(axis=0), np.arange(len(curves))
        before = np.arange(doses) <= last[best]
        first = a[best, each, None] + b[best, each, None] * x
        second = a_after[best, each, None] + b_after[best, each, None] * x
        found = np.where(np.isnan(given[best, 0]), meeting[best, each, None], given[best, 0])
        # Without any falling break the fit is the line it then equals, and the corner may be anywhere.
        line_fit, none = steady(curves), np.isinf(squares.min(axis=0))
        return _Fit(
            np.where(none, line_fit.squares, squares.min(axis=0)),
            np.where(none[:, None], line_fit.fitted, np.maximum(np.where(before, first, second), 0)),
            np.where(none[:, None], (x[0], x[-1]), found),
        )

    return fit
