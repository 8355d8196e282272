"""Estimates with intervals: proportions, means, survival times, and numbers read off a response curve.

Every function returns an `Estimate` (low, best, high) with a 95 % interval, because a bare number does not
say how far to trust it. Random numbers come only from a generator that is passed in. The fitted change point
of a response curve is in `planaria.measure.transition`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from planaria.core.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    """A number with its 95 % interval.

    A bound is nan where the data give no interval at all (a mean of one value), and infinite where the
    interval is open to that side. Two estimates are equal if they print the same `repr`, so nan equals nan.

    Args:
        low: Lower end of the interval.
        best: The estimate.
        high: Upper end of the interval.

    Raises:
        InputError: The three are not in order.

    Example:
        >>> print(Estimate(0.69, 0.732, 0.801))
        0.732 [0.690, 0.801]
        >>> f"{Estimate(0.69, 0.732, 0.801):.0%}"
        '73% [69%, 80%]'
        >>> print(Estimate(120, 183, math.inf))
        183 [120, inf]
        >>> eval(repr(Estimate(120, 183, math.inf)))
        Estimate(low=120.0, best=183.0, high=float('inf'))
    """

    low: float
    best: float
    high: float

    def __post_init__(self) -> None:
        for name in ("low", "best", "high"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.low > self.best or self.best > self.high or self.low > self.high:
            raise InputError("Estimate", "low <= best <= high", repr(self), "Give the bounds in order.")

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other) if isinstance(other, Estimate) else NotImplemented

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        fields = {"low": self.low, "best": self.best, "high": self.high}
        said = (f"{k}={v!r}" if math.isfinite(v) else f"{k}=float('{v}')" for k, v in fields.items())
        return f"Estimate({', '.join(said)})"

    def __format__(self, spec: str) -> str:
        if not spec:
            return str(self)
        best = format(self.best, spec)
        return f"{best} [{self.low:{spec}}, {self.high:{spec}}]" if self.has_interval else best

    def __str__(self) -> str:
        size = max((abs(v) for v in (self.low, self.best, self.high) if math.isfinite(v)), default=0.0)
        return format(self, ".3f" if size < 10 else ".1f" if size < 100 else ".0f")

    @property
    def has_interval(self) -> bool:
        """Whether both bounds are known (an infinite bound is known, nan is not)."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    def to_dict(self) -> dict[str, float | None]:
        """Low, best and high for JSON, which has neither infinity nor nan: both become None.

        Example:
            >>> Estimate(120, 183, math.inf).to_dict()
            {'low': 120.0, 'best': 183.0, 'high': None}
        """
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}


def finite(value: Any) -> Any:
    """Nested plain values with every float that is not finite replaced by None, as JSON needs it.

    Example:
        >>> finite({"score": [1.0, -math.inf]})
        {'score': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def numpy_generator(rng: torch.Generator) -> np.random.Generator:
    """Generator for numpy seeded with one 63-bit draw from a torch generator.

    Args:
        rng: A stream of `planaria.core.streams`; it moves on by one draw.

    Returns:
        A fresh numpy generator: the same stream gives the same one.

    Example:
        >>> from planaria.core.streams import stream
        >>> rng = numpy_generator(stream(0, "bootstrap"))
        >>> bool(rng.random() == numpy_generator(stream(0, "bootstrap")).random())
        True
    """
    return np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=rng, device=rng.device)))


def student_quantile(level: float, degrees: int) -> float:
    """Factor of the standard error in a two-sided Student interval.

    Args:
        level: Coverage wanted, between 0 and 1.
        degrees: Degrees of freedom, at least 1.

    Returns:
        The quantile of Student's distribution at (1 + level) / 2.

    Example:
        >>> round(student_quantile(0.95, 9), 4)
        2.2622
    """
    # Not at the top of the file: the import costs 70 ms and most commands never ask.
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + level) / 2))


def wilson(successes: int, trials: int, level: float = 0.95) -> Estimate:
    """Share of successes with Wilson's score interval.

    Stays inside [0, 1] and does not collapse to a point at 0 or `trials` successes.

    Args:
        successes: Number of successes.
        trials: Number of independent trials, at least 1.
        level: Coverage of the interval.

    Returns:
        The share.

    Raises:
        InputError: No trial, or successes outside 0 .. trials.

    Example:
        >>> print(wilson(8, 10))
        0.800 [0.490, 0.943]

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference". Trials that
    are not independent (test images written by one hand) have a wider interval than this one says.
    """
    if trials < 1 or not 0 <= successes <= trials:
        got = f"{successes} of {trials}"
        raise InputError("wilson", "0 <= successes <= trials with at least one trial", got, "Count again.")
    return _wilson(successes / trials, trials, level)


def wilson_of_groups(successes: ArrayLike, trials: ArrayLike, level: float = 0.95) -> Estimate:
    """Share of successes where trials come in groups (the events of one walk), alike within a group.

    Wilson's interval for the number of independent trials that would be as sure: n / max(1, d (t / z)^2), with d the
    variance of the share between groups over that of independent trials, and t, z the quantiles of Student's and the
    normal distribution. One group, or no failure or success at all, tells nothing of d; then it is Wilson's own.

    Args:
        successes: Per group, number of successes.
        trials: Per group, number of trials; groups without any are left out.
        level: Coverage of the interval.

    Returns:
        The share of all trials.

    Raises:
        InputError: No trial, or successes outside 0 .. trials.

    Example:
        >>> print(wilson_of_groups([10, 10, 1], [10, 10, 10]), wilson_of_groups([7, 7, 7], [10, 10, 10]))
        0.700 [0.055, 0.989] 0.700 [0.521, 0.833]

    Source: Korn & Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data", with Wilson's interval as in Dean & Pagano 2015.
    """
    right, tried = _vector("wilson_of_groups.successes", successes), _vector("wilson_of_groups.trials", trials)
    n, groups = float(tried.sum()), int((tried > 0).sum())
    if len(right) != len(tried) or n < 1 or (right < 0).any() or (right > tried).any():
        got = f"{right.tolist()} of {tried.tolist()}"
        raise InputError("wilson_of_groups", "0 <= successes <= trials with at least one trial", got, "Count again.")
    share = float(right.sum()) / n
    if groups < 2 or share in (0.0, 1.0):
        return _wilson(share, n, level)
    between = groups / (groups - 1) * float(((right - share * tried) ** 2).sum()) / n**2
    factor = student_quantile(level, groups - 1) / NormalDist().inv_cdf((1 + level) / 2)
    return _wilson(share, n / max(1.0, between / (share * (1 - share) / n) * factor**2), level)


def _wilson(share: float, trials: float, level: float) -> Estimate:
    z = NormalDist().inv_cdf((1 + level) / 2)
    shrink = 1 / (1 + z * z / trials)
    centre = shrink * (share + z * z / (2 * trials))
    half = shrink * z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # Rounding must not push an end past the share at 0 or at `trials` successes.
    return Estimate(max(0.0, min(share, centre - half)), share, min(1.0, max(share, centre + half)))


def mean_interval(values: ArrayLike, level: float = 0.95, *, within: tuple[float, float] | None = None) -> Estimate:
    """Mean with Student's interval.

    One value has no interval: both bounds are nan, and the estimate prints without brackets. A mean that is
    infinite (a score of minus infinity among the values) has the interval (-inf, inf).

    Args:
        values: Independent values, at least one.
        level: Coverage of the interval.
        within: Range in which the mean must lie, (0, 1) for an accuracy; clips the interval.

    Returns:
        The mean.

    Raises:
        InputError: No values, or nan among them.

    Example:
        >>> print(mean_interval([0.92, 0.95, 0.91, 0.94]))
        0.930 [0.901, 0.959]
        >>> print(mean_interval([0.92]))
        0.920

    Source: Student 1908. Exact for normal values; close for means of ten or more values without heavy tails.
    """
    numbers = _vector("mean_interval", values)
    best = float(numbers.mean())
    if math.isnan(best):
        raise InputError("mean_interval", "values that have a mean", "inf and -inf", "Leave one kind out.")
    if math.isinf(best):
        return Estimate(-math.inf, best, math.inf)
    if len(numbers) == 1:
        return Estimate(math.nan, best, math.nan)
    error = float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    half = student_quantile(level, len(numbers) - 1) * error
    low, high = within or (-math.inf, math.inf)
    return Estimate(min(best, max(low, best - half)), best, max(best, min(high, best + half)))


def paired_difference(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Estimate:
    """Mean of `a - b` with Student's interval on the differences of the pairs.

    Args:
        a: One value per pair, for example per seed.
        b: As many values, in the same order.
        level: Coverage of the interval.

    Returns:
        The difference; zero outside the interval means that `a` and `b` differ.

    Raises:
        InputError: The lengths differ, there are no pairs, or a difference is nan.

    Example:
        >>> print(paired_difference([0.97, 0.96, 0.98], [0.95, 0.93, 0.95]))
        0.027 [0.012, 0.041]
    """
    first, second = _vector("paired_difference.a", a), _vector("paired_difference.b", b)
    if len(first) != len(second):
        got = f"{len(first)} and {len(second)}"
        raise InputError("paired_difference", "as many values in a as in b", got, "Pair them by seed.")
    with np.errstate(invalid="ignore"):
        return mean_interval(first - second, level)


@dataclass(frozen=True, eq=False)
class Survival:
    """Kaplan-Meier curve: the share of trials whose event has not yet come.

    Arrays have one entry per distinct time at which anything happened, in ascending order.

    Args:
        times: Event and censoring times.
        survival: Share still without the event just after each time.
        at_risk: Trials under observation just before each time.
        events: Events at each time; 0 where trials were only censored.
    """

    times: Floats
    survival: Floats
    at_risk: NDArray[np.int64]
    events: NDArray[np.int64]

    @property
    def _greenwood(self) -> Floats:
        """Terms d / (n (n - d)) of Greenwood's variance, left out where the curve reaches 0."""
        left = self.at_risk - self.events
        return np.divide(self.events, self.at_risk * left, where=left > 0, out=np.zeros(len(left)))

    @property
    def median(self) -> Estimate:
        """Time by which half of the trials had their event, with the Brookmeyer-Crowley interval.

        The interval holds the times at which the curve does not differ from 1/2, by the log(-log)
        transformation of the curve. Infinite where the curve, or the band around it, stays above 1/2.

        Example:
            >>> print(kaplan_meier([10, 20, 30, 40], [True, True, True, False]).median)
            20.0 [10.0, inf]

        Source: Brookmeyer & Crowley 1982, "A confidence interval for the median survival time".
        """
        z = NormalDist().inv_cdf(0.975)
        inside = (self.survival > 0) & (self.survival < 1)
        curve = np.where(inside, self.survival, 0.5)
        error = np.sqrt(np.where(inside, np.cumsum(self._greenwood), 0.0)) / -np.log(curve)
        # At 0 the band has no upper side, and the curve is its lower; at 1 nothing has happened yet.
        lower = np.where(inside, curve ** np.exp(z * error), self.survival)
        upper = np.where(inside, curve ** np.exp(-z * error), 1.0)
        low, best, high = (self._first(band <= 0.5 + 1e-12) for band in (lower, self.survival, upper))
        return Estimate(low, best, high)

    def restricted_mean(self, horizon: float) -> Estimate:
        """Mean time without the event up to `horizon`: the area under the curve, with a normal interval.

        Args:
            horizon: End of the area, in the unit of the times, above 0.

        Returns:
            The area, between 0 and `horizon`.

        Raises:
            InputError: The horizon is not above 0, or trials were still without event when observation ended
                before it.

        Example:
            >>> kaplan_meier([10, 20, 30, 40], [True, True, True, False]).restricted_mean(40).best
            25.0
        """
        last = float(self.times[-1])
        if not horizon > 0 or (horizon > last and self.survival[-1] > 0):
            expected = f"a horizon above 0 and up to the last observation, {last:g}"
            raise InputError("Survival.restricted_mean", expected, horizon, "Nothing is known beyond it.")
        edges = np.concatenate(([0.0], np.minimum(self.times, horizon), [horizon]))
        heights = np.concatenate(([1.0], self.survival))
        areas = np.diff(np.maximum.accumulate(edges)) * heights
        after = areas.sum() - np.cumsum(areas)[:-1]  # area to the right of each time
        half = NormalDist().inv_cdf(0.975) * math.sqrt(float((after**2 * self._greenwood).sum()))
        best = min(float(areas.sum()), horizon)
        return Estimate(max(0.0, best - half), best, min(horizon, best + half))

    def _first(self, reached: NDArray[np.bool_]) -> float:
        return float(self.times[np.argmax(reached)]) if reached.any() else math.inf


def kaplan_meier(times: ArrayLike, observed: ArrayLike) -> Survival:
    """Survival curve from times of which some are censored.

    S(t) = product over event times s <= t of (1 - d_s / n_s), d_s = events at s, n_s = trials still observed
    before s. A trial censored at s counts as observed at s.

    Args:
        times: Per trial the time of the event, or of the end of observation; at least one, none negative.
        observed: Per trial, whether the event came.

    Returns:
        The curve.

    Raises:
        InputError: No trials, lengths differ, or a time is negative, nan or infinite.

    Example:
        >>> kaplan_meier([10, 20, 30, 40], [True, True, True, False]).survival
        array([0.75, 0.5 , 0.25, 0.25])

    Source: Kaplan & Meier 1958. Holds where censoring does not depend on how the trial was going; a budget
    fixed beforehand satisfies that, stopping a run because it looks bad does not.
    """
    numbers = _vector("kaplan_meier.times", times)
    came = np.asarray(observed)
    if came.dtype != np.bool_ or came.shape != numbers.shape:
        got = f"{came.dtype} of shape {came.shape}"
        raise InputError("kaplan_meier.observed", f"{len(numbers)} booleans", got, "Give one per time.")
    if not np.isfinite(numbers).all() or (numbers < 0).any():
        raise InputError("kaplan_meier.times", "finite times of at least 0", numbers, "Censor at the budget.")
    distinct, index = np.unique(numbers, return_inverse=True)
    leaving = np.bincount(index, minlength=len(distinct))
    events = np.bincount(index, weights=came, minlength=len(distinct)).astype(np.int64)
    at_risk = len(numbers) - np.cumsum(leaving) + leaving
    return Survival(distinct, np.cumprod(1 - events / at_risk), at_risk.astype(np.int64), events)


def half_dose(
    doses: ArrayLike, scores: ArrayLike, chance: float, rng: np.random.Generator, *, replicas: int = 2000
) -> Estimate:
    """Dose at which half of the score above chance is lost. Infinite if the curve never falls that far.

    First dose at which the mean curve, linear between doses, is at or below chance + (intact - chance) / 2,
    where intact is the mean score at dose 0. The interval is the percentile bootstrap over draws
    (`resampled_means`).

    Args:
        doses: Ascending doses [doses], the first of them 0.
        scores: Score per draw (row) and dose (column) [draws, doses]; draws are independent orders of damage.
        chance: Score of guessing.
        rng: Source of the resampled draws.
        replicas: Number of bootstrap curves.

    Returns:
        The dose; bounds are nan for a single draw. A score below the mirror image of the intact score on the
        other side of chance (an R2 of -1000) counts as that image, so that one exploding draw does not decide
        the mean.

    Raises:
        InputError: Shapes do not fit, doses do not ascend from 0, a score is nan.

    Example:
        >>> from planaria.core.streams import stream
        >>> scores = [[1.0, 0.9, 0.5, 0.1], [1.0, 0.8, 0.6, 0.1], [1.0, 0.9, 0.4, 0.1]]
        >>> print(half_dose([0, 0.2, 0.4, 0.6], scores, 0.1, numpy_generator(stream(0, "half"))))
        0.373 [0.312, 0.465]
    """
    x, curves = response_curves(doses, scores)
    intact = float(curves[:, 0].mean())
    if intact <= chance:
        return Estimate(math.inf, math.inf, math.inf)
    curves = np.maximum(curves, 2 * chance - intact)
    means = _with_replicas(curves, rng, replicas)
    return _interval_of_replicas(_first_crossing(x, means, (chance + means[:, 0]) / 2), len(curves))


def dose_of_loss(
    doses: ArrayLike,
    scores: ArrayLike,
    rng: np.random.Generator,
    *,
    points: float = 0.10,
    replicas: int = 2000,
) -> Estimate:
    """Dose at which `points` of the intact score are lost. Infinite if the curve never falls that far.

    First dose at which the mean curve, linear between doses, is at or below intact - points. The interval is
    the percentile bootstrap over draws (`resampled_means`).

    Args:
        doses: Ascending doses [doses], the first of them 0.
        scores: Score per draw (row) and dose (column) [draws, doses].
        rng: Source of the resampled draws.
        points: Loss as a difference of scores: 0.10 is ten points of accuracy.
        replicas: Number of bootstrap curves.

    Returns:
        The dose; bounds are nan for a single draw. A draw counts as losing at most ten times `points`.

    Raises:
        InputError: Shapes do not fit, doses do not ascend from 0, a score is nan, `points` is not above 0.

    Example:
        >>> from planaria.core.streams import stream
        >>> scores = [[1.0, 0.95, 0.5, 0.1], [1.0, 0.90, 0.6, 0.1], [1.0, 0.95, 0.4, 0.1]]
        >>> print(dose_of_loss([0, 0.2, 0.4, 0.6], scores, numpy_generator(stream(0, "loss"))))
        0.215 [0.128, 0.233]
    """
    if not points > 0:
        raise InputError("dose_of_loss.points", "a number above 0", points, "Give the loss as a difference of scores.")
    x, curves = response_curves(doses, scores)
    curves = np.maximum(curves, curves[:, 0].mean() - 10 * points)
    means = _with_replicas(curves, rng, replicas)
    return _interval_of_replicas(_first_crossing(x, means, means[:, 0] - points), len(curves))


def area(doses: ArrayLike, scores: ArrayLike, level: float = 0.95) -> Estimate:
    """Area under the response curve (AUDC) by the trapezoid rule, with Student's interval over draws.

    Args:
        doses: Ascending doses [doses], the first of them 0.
        scores: Score per draw (row) and dose (column) [draws, doses].
        level: Coverage of the interval.

    Returns:
        The area in units of score times dose: the mean score over all doses where these run from 0 to 1.

    Raises:
        InputError: Shapes do not fit, doses do not ascend from 0, a score is nan.

    Example:
        >>> print(area([0, 0.5, 1], [[1.0, 0.5, 0.0], [1.0, 0.7, 0.0]]))
        0.550 [-0.085, 1.185]
    """
    x, curves = response_curves(doses, scores)
    return mean_interval(((curves[:, 1:] + curves[:, :-1]) / 2 * np.diff(x)).sum(axis=1), level)


def response_curves(doses: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Doses [doses] and scores [draws, doses] as checked arrays, draws sorted by their scores.

    The sorting makes every estimate, bootstrapped or not, independent of the order in which draws were made.

    Args:
        doses: Ascending doses, the first of them 0.
        scores: One row per draw.

    Returns:
        Doses and scores as float64 copies.

    Raises:
        InputError: Shapes do not fit, doses do not ascend from 0, a score is nan or plus infinity.

    Example:
        >>> response_curves([0, 1], [[0.9, 0.5], [0.9, 0.4]])[1]
        array([[0.9, 0.4],
               [0.9, 0.5]])
    """
    x = _vector("doses", doses)
    y = _numbers("scores", scores)
    if y.ndim != 2 or y.shape[0] == 0 or y.shape[1] != len(x):
        raise InputError("scores", f"shape [draws, {len(x)}], one column per dose", f"shape {list(y.shape)}")
    if len(x) < 2 or x[0] != 0 or not (np.diff(x) > 0).all() or not math.isfinite(x[-1]):
        raise InputError("doses", "at least two, ascending from 0", x.tolist(), "Include the undamaged network.")
    if np.isnan(y).any() or (y == np.inf).any() or not np.isfinite(y[:, 0]).all():
        raise InputError("scores", "numbers, finite at dose 0", "nan or infinity", "A failed score is -inf.")
    return x, y[np.lexsort(y.T[::-1])]


def resampled_means(curves: Floats, rng: np.random.Generator, replicas: int) -> Floats:
    """Mean curves of draws sampled with replacement, spread so that their percentiles hold for few draws too.

    mean + f * (mean of the resampled deviations), f = sqrt(n / (n - 1)) * t / z with n draws: the plain
    bootstrap (f = 1) is too narrow by that factor, 1.10 at 20 draws and 1.58 at 5.

    Args:
        curves: Finite scores [draws, doses], at least two draws.
        rng: Source of the resampled draws.
        replicas: Number of mean curves.

    Returns:
        Mean curves [replicas, doses].

    Example:
        >>> from planaria.core.streams import stream
        >>> resampled_means(np.ones((5, 3)), numpy_generator(stream(0, "resample")), 2)
        array([[1., 1., 1.],
               [1., 1., 1.]])

    Source: Hesterberg 2015, "What teachers should know about the bootstrap", expanded percentile interval.
    """
    draws, mean = len(curves), curves.mean(axis=0)
    counts = rng.multinomial(draws, np.full(draws, 1 / draws), size=replicas)
    spread = math.sqrt(draws / (draws - 1)) * student_quantile(0.95, draws - 1) / NormalDist().inv_cdf(0.975)
    return np.asarray(mean + spread * (counts @ (curves - mean) / draws))


def _with_replicas(curves: Floats, rng: np.random.Generator, replicas: int) -> Floats:
    """The mean curve, and below it the resampled ones (none for a single draw)."""
    mean = curves.mean(axis=0, keepdims=True)
    return mean if len(curves) == 1 else np.concatenate((mean, resampled_means(curves, rng, replicas)))


def _first_crossing(x: Floats, curves: Floats, targets: Floats) -> Floats:
    """First dose at which each curve is at or below its target, linear between doses; inf if nowhere."""
    below = curves <= targets[:, None]
    after = np.maximum(np.argmax(below, axis=1), 1)
    rows = np.arange(len(curves))
    upper, lower = curves[rows, after - 1], curves[rows, after]
    fall = np.where(upper > lower, upper - lower, 1.0)
    part = np.clip((upper - targets) / fall, 0.0, 1.0)
    crossing = x[after - 1] + part * (x[after] - x[after - 1])
    return np.where(below.any(axis=1), np.where(below[:, 0], x[0], crossing), np.inf)


def _interval_of_replicas(values: Floats, draws: int) -> Estimate:
    """Estimate from the value of the mean curve (first) and those of its replicas (the rest)."""
    best = float(values[0])
    if draws == 1:
        return Estimate(math.nan, best, math.nan)
    # "inverted_cdf" returns values that occur: interpolating between a number and infinity would give nan.
    low, high = np.quantile(values[1:], [0.025, 0.975], method="inverted_cdf")
    return Estimate(min(best, float(low)), best, max(best, float(high)))


def _vector(where: str, values: ArrayLike) -> Floats:
    numbers = _numbers(where, values)
    if numbers.ndim != 1 or len(numbers) == 0 or np.isnan(numbers).any():
        got = f"shape {list(numbers.shape)}" + (" with nan" if np.isnan(numbers).any() else "")
        raise InputError(where, "a list of at least one number", got, "Give numbers in one row.")
    return numbers


def _numbers(where: str, values: ArrayLike) -> Floats:
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(where, "numbers in rows of equal length", error, "Check how they were read.") from None


@dataclass(frozen=True)
class Paired:
    """A comparison of pairs.

    Args:
        difference: Mean of the differences, with Student's interval.
        effect: The mean in units of the standard deviation of the differences (Cohen's d_z), with its interval.
        p_value: Share of all ways to exchange the two of some pairs after which the mean difference is at least as
            large, in either direction; no smaller than 2 / 2^pairs, 0.06 for five pairs.
        pairs: Number of pairs.
    """

    difference: Estimate
    effect: Estimate
    p_value: float
    pairs: int


def paired_test(a: ArrayLike, b: ArrayLike, rng: np.random.Generator, *, flips: int = 10_000) -> Paired:
    """Mean of `a - b`, how large it is beside its scatter, and how seldom exchanged pairs differ as much.

    d_z = mean / standard deviation of the differences; its interval holds the effects under which the observed
    t = d_z sqrt(n) is not in either tail of the noncentral t distribution. The p-value is that of the sign-flip
    permutation test: exact over all 2^n signs up to 12 pairs, over sampled signs above.

    Args:
        a: One finite value per pair, for example per seed.
        b: As many values, in the same order.
        rng: Source of sampled signs; not used up to 12 pairs.
        flips: Number of sampled signs.

    Returns:
        The comparison. One pair has neither effect nor interval, and a p-value of 1.

    Raises:
        InputError: The lengths differ, there are no pairs, or a difference is nan.

    Example:
        >>> pairs = paired_test([0.97, 0.96, 0.98], [0.95, 0.93, 0.95], np.random.default_rng(0))
        >>> print(pairs.difference, "d_z", pairs.effect, "p", pairs.p_value)
        0.027 [0.012, 0.041] d_z 4.619 [0.503, 8.990] p 0.25

    Source: Fisher 1935, "The design of experiments", section 21; Cohen 1988, "Statistical power analysis". The
    permutation test presumes that under no difference each pair could as well have come the other way round.
    """
    difference = paired_difference(a, b)
    values = _vector("paired_test.a", a) - _vector("paired_test.b", b)
    n = len(values)
    signs = np.where((np.arange(2**n)[:, None] >> np.arange(n)) & 1, -1.0, 1.0) if n <= 12 else None
    if signs is None:
        signs = np.concatenate((np.ones((1, n)), rng.choice([-1.0, 1.0], size=(flips, n))))
    sums = np.abs(signs @ values)
    p_value = float((sums >= sums[0] * (1 - 1e-9)).mean())
    return Paired(difference, _effect(values), p_value, n)


def _effect(values: Floats) -> Estimate:
    """Cohen's d_z of differences, nan where they do not scatter."""
    # Not at the top of the file, as in `student_quantile`.
    from scipy.special import nctdtrinc

    n = len(values)
    spread = float(values.std(ddof=1)) if n > 1 and np.isfinite(values).all() else 0.0
    if not spread > 1e-12 * float(np.abs(values).max()):
        return Estimate(math.nan, math.nan, math.nan)
    best = float(values.mean()) / spread
    # For the size of the effect, and turned round after: the inverse is less exact on the other side.
    low, high = (float(nctdtrinc(n - 1, p, abs(best) * math.sqrt(n))) / math.sqrt(n) for p in (0.975, 0.025))
    return Estimate(low, best, high) if best >= 0 else Estimate(-high, best, -low)
