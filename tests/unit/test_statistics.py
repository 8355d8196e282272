"""Estimates and their intervals: published values, slow twins, laws, and coverage over simulated curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from planaria.core.errors import InputError
from planaria.core.streams import stream
from planaria.measure.statistics import (
    Estimate,
    Floats,
    area,
    dose_of_loss,
    half_dose,
    kaplan_meier,
    mean_interval,
    numpy_generator,
    paired_difference,
    paired_test,
    student_quantile,
    wilson,
    wilson_of_groups,
)
from planaria.measure.transition import CriticalDose, _broken, critical_dose

DOSES = np.linspace(0, 1, 21)
CHANCE = 0.1

# Freireich et al. 1963, weeks of remission of 21 + 21 children with leukaemia; a minus sign marks censoring.
SIX_MP = [6, 6, 6, -6, 7, -9, 10, -10, -11, 13, 16, -17, -19, -20, 22, 23, -25, -32, -32, -34, -35]
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]

any_number = st.floats(-1e6, 1e6) | st.just(math.inf) | st.just(-math.inf)
few_curves = st.lists(st.lists(st.floats(0, 1), min_size=8, max_size=8), min_size=1, max_size=7)


def generator(*name: str | int) -> np.random.Generator:
    return numpy_generator(stream(0, *name))


def remission(weeks: list[int]) -> tuple[list[int], list[bool]]:
    return [abs(week) for week in weeks], [week > 0 for week in weeks]


def broken_curve(c: float, before: float = -0.05, bend: float = -1.8, top: float = 0.98) -> Floats:
    return np.maximum(CHANCE, top + before * DOSES + bend * np.maximum(0, DOSES - c))


SMOOTH = {
    "logistic": CHANCE + 0.88 / (1 + np.exp((DOSES - 0.6) / 0.1)),
    "parabola": np.maximum(CHANCE, 0.98 - 0.85 * DOSES**2),
    "Weibull": CHANCE + 0.88 * np.exp(-((DOSES / 0.6) ** 3)),
    "half a cosine": CHANCE + 0.44 * (1 + np.cos(np.pi * DOSES)),
}
STEADY = {
    "line": 0.98 - 0.7 * DOSES,
    "line to the floor": np.maximum(CHANCE, 0.98 - 1.3 * DOSES),
    "exponential": CHANCE + 0.88 * np.exp(-3 * DOSES),
}


def draws_around(mean: Floats, spread: float, rng: np.random.Generator, draws: int = 20) -> Floats:
    """Draws as damage makes them: equal at dose 0, alike at neighbouring doses, widest half way down."""
    alike = np.exp(-0.5 * ((DOSES[:, None] - DOSES) / 0.12) ** 2) + 1e-6 * np.eye(len(DOSES))
    noise = 0.9 * rng.standard_normal((draws, len(DOSES))) @ np.linalg.cholesky(alike).T
    noise += 0.43 * rng.standard_normal((draws, len(DOSES)))
    height = np.clip((mean - CHANCE) / (mean[0] - CHANCE), 0, 1)
    width = spread * (0.15 + 1.7 * np.sqrt(height * (1 - height)))
    width[0] = 0
    return mean + noise * width


def found_in(mean: Floats, spread: float, trials: int, name: str, replicas: int = 500) -> list[CriticalDose]:
    results = []
    for trial in range(trials):
        rng = generator(name, trial)
        curves = draws_around(mean, spread, rng)
        results.append(critical_dose(DOSES, curves, CHANCE, rng, replicas=replicas))
    return results


def coverage(found: list[CriticalDose], truth: float) -> float:
    ranges = [result.estimate for result in found if result.estimate is not None]
    assert len(ranges) >= 0.95 * len(found)
    return sum(each.low <= truth <= each.high for each in ranges) / len(ranges)


# ------------------------------------------------------------------------------------------------ estimates


@given(st.lists(any_number, min_size=3, max_size=3).map(sorted))
def test_the_repr_of_an_estimate_evaluates_back(numbers: list[float]) -> None:
    estimate = Estimate(*numbers)
    assert eval(repr(estimate)) == estimate
    assert hash(eval(repr(estimate))) == hash(estimate)


def test_an_estimate_without_interval_equals_its_repr_and_prints_no_brackets() -> None:
    alone = mean_interval([0.5])
    assert math.isnan(alone.low) and math.isnan(alone.high) and not alone.has_interval
    assert eval(repr(alone)) == alone
    assert f"{alone}" == "0.500"
    assert f"{alone:.0%}" == "50%"
    assert alone.to_dict() == {"low": None, "best": 0.5, "high": None}


def test_an_estimate_prints_as_many_digits_as_its_size_needs() -> None:
    assert str(Estimate(0.69, 0.732, 0.801)) == f"{Estimate(0.69, 0.732, 0.801)}" == "0.732 [0.690, 0.801]"
    assert str(Estimate(12, 18.25, 22)) == "18.2 [12.0, 22.0]"
    assert str(Estimate(120, 183, math.inf)) == "183 [120, inf]"
    assert str(Estimate(math.inf, math.inf, math.inf)) == "inf [inf, inf]"


@pytest.mark.parametrize("numbers", [(1, 0, 2), (0, 3, 2), (2, math.nan, 1)])
def test_an_estimate_out_of_order_is_refused(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="low <= best <= high"):
        Estimate(*numbers)


def test_estimates_and_other_things_are_unequal() -> None:
    assert Estimate(0, 1, 2) != Estimate(0, 1, 3)
    assert Estimate(0, 1, 2) != (0, 1, 2)


def test_the_same_stream_seeds_the_same_numpy_generator_and_another_stream_another() -> None:
    assert (generator("a").random(4) == generator("a").random(4)).all()
    assert (generator("a").random(4) != generator("b").random(4)).any()


# ----------------------------------------------------------------------------------- proportions and means


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.706), (2, 4.303), (5, 2.571), (9, 2.262), (30, 2.042), (120, 1.980)]
)
def test_student_quantiles_are_those_of_the_printed_tables(degrees: int, quantile: float) -> None:
    assert student_quantile(0.95, degrees) == pytest.approx(quantile, abs=5e-4)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_agrees_with_the_published_table_of_newcombe(
    successes: int, trials: int, low: float, high: float
) -> None:
    share = wilson(successes, trials)
    assert (share.low, share.high) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(trials - successes, trials)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((share.low, share.high))


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_wilson_interval_holds_its_share_and_stays_a_share(case: tuple[int, int]) -> None:
    share = wilson(*case)
    assert 0 <= share.low <= share.best <= share.high <= 1
    assert share.low < share.high


@pytest.mark.parametrize("case", [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(case: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="successes"):
        wilson(*case)


def test_the_mean_interval_is_that_of_the_textbook() -> None:
    # Student 1908, hours of sleep gained with the second drug minus the first, ten patients.
    gains = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    mean = mean_interval(gains)
    assert (mean.low, mean.best, mean.high) == pytest.approx((0.7001, 1.58, 2.4599), abs=1e-4)
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    pairs = paired_difference(second, first)
    assert (pairs.low, pairs.best, pairs.high) == pytest.approx((mean.low, mean.best, mean.high))


def test_the_mean_interval_can_be_clipped_to_the_range_of_the_score() -> None:
    clipped = mean_interval([0.9, 1.0, 1.0], within=(0, 1))
    assert clipped.high == 1 and clipped.low == mean_interval([0.9, 1.0, 1.0]).low


def test_a_mean_with_a_failed_run_is_minus_infinity_and_says_nothing_else() -> None:
    assert mean_interval([0.9, -math.inf]) == Estimate(-math.inf, -math.inf, math.inf)


@pytest.mark.parametrize("values", [[], [0.1, math.nan], [[0.1]], 0.3, ["a"], [math.inf, -math.inf]])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_values_without_a_mean_are_refused(values: ArrayLike) -> None:
    with pytest.raises(InputError, match="mean_interval"):
        mean_interval(values)


def test_pairs_of_unequal_number_are_refused() -> None:
    with pytest.raises(InputError, match="2 and 3"):
        paired_difference([1, 2], [1, 2, 3])


# --------------------------------------------------------------------------------------------- survival times


def test_kaplan_meier_gives_the_textbook_curve_of_the_remission_data() -> None:
    curve = kaplan_meier(*remission(SIX_MP))
    events = curve.events > 0
    assert curve.times[events].tolist() == [6, 7, 10, 13, 16, 22, 23]
    assert curve.at_risk[events].tolist() == [21, 17, 15, 12, 11, 7, 6]
    assert curve.events[events].tolist() == [3, 1, 1, 1, 1, 1, 1]
    expected = [0.8571, 0.8067, 0.7529, 0.6902, 0.6275, 0.5378, 0.4482]
    assert curve.survival[events] == pytest.approx(expected, abs=5e-5)


def test_median_remissions_are_the_published_ones() -> None:
    assert kaplan_meier(*remission(SIX_MP)).median == Estimate(13, 23, math.inf)
    assert kaplan_meier(*remission(PLACEBO)).median == Estimate(4, 8, 11)


def test_a_median_that_is_not_reached_is_infinite() -> None:
    assert kaplan_meier([5, 240, 240], [True, False, False]).median.best == math.inf
    assert kaplan_meier([240, 240], [False, False]).median == Estimate(math.inf, math.inf, math.inf)


def test_few_trials_leave_the_median_open_above() -> None:
    # The two extremes of five values hold the median with 93.75 %, less than 95 %.
    assert kaplan_meier([10, 20, 30, 40, 50], [True] * 5).median.high == math.inf
    assert kaplan_meier(range(1, 21), [True] * 20).median.high < 20


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=25))
def test_kaplan_meier_agrees_with_its_slow_twin(trials: list[tuple[int, bool]]) -> None:
    times, observed = zip(*trials, strict=True)
    curve = kaplan_meier(times, observed)
    share = 1.0
    for i, now in enumerate(sorted(set(times))):
        at_risk = sum(time >= now for time in times)
        share *= 1 - sum(time == now and came for time, came in trials) / at_risk
        assert curve.survival[i] == pytest.approx(share)
    median = curve.median
    assert median.low <= median.best <= median.high


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers(1, 60))
def test_without_censoring_the_restricted_mean_is_the_mean_of_the_capped_times(times: list[int], cap: int) -> None:
    mean = kaplan_meier(times, [True] * len(times)).restricted_mean(cap)
    assert mean.best == pytest.approx(np.minimum(times, cap).mean())
    assert 0 <= mean.low <= mean.best <= mean.high <= cap


def test_without_censoring_greenwood_is_the_variance_of_the_mean() -> None:
    times = np.array([3.0, 8.0, 9.0, 15.0, 40.0])
    mean = kaplan_meier(times, [True] * 5).restricted_mean(40)
    assert mean.best - mean.low == pytest.approx(1.959964 * times.std() / math.sqrt(5))


@pytest.mark.parametrize("horizon", [0, -1, 36, math.nan])
def test_a_restricted_mean_beyond_the_observations_is_refused(horizon: float) -> None:
    with pytest.raises(InputError, match="last observation, 35"):
        kaplan_meier(*remission(SIX_MP)).restricted_mean(horizon)


@pytest.mark.parametrize(
    ("times", "observed"),
    [([], []), ([1.0], [True, False]), ([1.0, -1.0], [True, True]), ([math.inf], [False]), ([1.0], [0.7])],
)
def test_unusable_survival_times_are_refused(times: list[float], observed: list[bool]) -> None:
    with pytest.raises(InputError, match="kaplan_meier"):
        kaplan_meier(times, observed)


# --------------------------------------------------------------------------------- numbers read off a curve


def test_half_dose_and_dose_of_loss_are_where_the_mean_curve_crosses() -> None:
    curves = np.array([[0.9, 0.9, 0.7, 0.3, 0.1], [0.9, 0.7, 0.7, 0.1, 0.1]])  # mean .9 .8 .7 .2 .1
    doses = [0, 0.1, 0.2, 0.4, 0.8]
    assert half_dose(doses, curves, 0.1, generator()).best == pytest.approx(0.2 + 0.2 * 0.2 / 0.5)
    assert dose_of_loss(doses, curves, generator()).best == pytest.approx(0.1)
    assert dose_of_loss(doses, curves, generator(), points=0.15).best == pytest.approx(0.15)
    assert dose_of_loss(doses, curves, generator(), points=0.9).best == math.inf
    assert half_dose(doses, curves, 0.0, generator()).best == pytest.approx(0.2 + 0.2 * 0.25 / 0.5)


def test_area_is_the_trapezoid_of_every_draw() -> None:
    curves = draws_around(broken_curve(0.5), 0.05, generator("area"), draws=6)
    steps = [(row[1:] + row[:-1]) / 2 @ np.diff(DOSES) for row in curves]
    found, expected = area(DOSES, curves), mean_interval(steps)
    assert (found.low, found.best, found.high) == pytest.approx((expected.low, expected.best, expected.high))
    assert area([0, 0.3], [[1.0, 0.0]]).best == pytest.approx(0.15)


def test_a_network_that_is_not_better_than_chance_has_nothing_to_lose() -> None:
    assert half_dose([0, 1], [[0.1, 0.1]] * 3, 0.1, generator()).best == math.inf


def test_one_draw_gives_a_dose_without_interval() -> None:
    found = half_dose(DOSES, broken_curve(0.5)[None], CHANCE, generator())
    assert math.isfinite(found.best) and not found.has_interval


def test_a_dose_reached_in_part_of_the_replicas_is_open_above() -> None:
    curves = [[0.9, 0.9, 0.60], [0.9, 0.9, 0.45], [0.9, 0.9, 0.40], [0.9, 0.9, 0.50]]
    found = half_dose([0, 0.5, 1], curves, 0.1, generator("open"))
    assert found.best < 1 and found.high == math.inf


@settings(deadline=None, max_examples=25)
@given(few_curves, st.randoms(use_true_random=False))
def test_estimates_do_not_depend_on_the_order_of_the_draws(curves: list[list[float]], shuffler) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(curves)
    shuffler.shuffle(shuffled)
    doses = np.linspace(0, 1, 8)
    readings: list[Callable[[list[list[float]]], object]] = [
        lambda rows: half_dose(doses, rows, 0.1, generator(), replicas=50),
        lambda rows: dose_of_loss(doses, rows, generator(), replicas=50),
        lambda rows: area(doses, rows),
        lambda rows: critical_dose(doses, rows, 0.1, generator(), replicas=20),
    ]
    for reading in readings:
        assert reading(shuffled) == reading(curves)


def test_the_interval_of_a_half_dose_covers_the_truth_with_few_draws_and_with_many() -> None:
    mean = SMOOTH["logistic"]
    for draws in (4, 20):
        held = 0
        for trial in range(200):
            rng = generator("half", draws, trial)
            found = half_dose(DOSES, draws_around(mean, 0.05, rng, draws), CHANCE, rng, replicas=400)
            held += found.low <= np.interp(-(CHANCE + mean[0]) / 2, -mean, DOSES) <= found.high
        assert 0.90 <= held / 200 <= 0.99


def test_a_draw_that_explodes_counts_once() -> None:
    curves = np.tile(np.linspace(0.9, 0.0, 21), (10, 1))
    exploded = curves.copy()
    exploded[0, 10:] = -math.inf
    calm, wild = (half_dose(DOSES, rows, 0.0, generator()).best for rows in (curves, exploded))
    assert calm == pytest.approx(0.5) and 0.4 < wild < calm
    assert math.isfinite(dose_of_loss(DOSES, exploded, generator()).best)
    assert area(DOSES, exploded).best == -math.inf
    assert critical_dose(DOSES, exploded, 0.0, generator(), replicas=50).p_value is not None


@pytest.mark.parametrize(
    ("doses", "scores", "named"),
    [
        ([0, 1], [[0.9, 0.5, 0.1]], "scores"),
        ([0, 1], [0.9, 0.5], "scores"),
        ([0, 1], np.zeros((0, 2)), "scores"),
        ([0, 1], [[0.9, math.nan]], "scores"),
        ([0, 1], [[0.9, math.inf]], "scores"),
        ([0, 1], [[-math.inf, 0.1]], "scores"),
        ([0, 1], [[0.9, 0.1], [0.9]], "scores"),
        ([0.1, 1], [[0.9, 0.5]], "doses"),
        ([0, 0.5, 0.5], [[0.9, 0.5, 0.1]], "doses"),
        ([0], [[0.9]], "doses"),
        (["a", "b"], [[0.9, 0.5]], "doses"),
    ],
)
def test_unusable_curves_are_refused_by_every_reading(doses: ArrayLike, scores: ArrayLike, named: str) -> None:
    readings: list[Callable[[], object]] = [
        lambda: half_dose(doses, scores, 0.1, generator()),
        lambda: dose_of_loss(doses, scores, generator()),
        lambda: area(doses, scores),
        lambda: critical_dose(doses, scores, 0.1, generator()),
    ]
    for reading in readings:
        with pytest.raises(InputError, match=named):
            reading()


def test_a_loss_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="points"):
        dose_of_loss([0, 1], [[0.9, 0.5]], generator(), points=0)


# ------------------------------------------------------------------------------------------- critical dose


def test_the_fitted_break_is_at_least_as_good_as_a_search_over_a_fine_grid() -> None:
    rng = generator("twin")
    for c in (0.3, 0.62):
        mean = draws_around(broken_curve(c), 0.1, rng).mean(axis=0) - CHANCE
        best = math.inf
        for corner in np.linspace(0.05, 0.95, 181):
            for run in range(4, 22):
                basis = np.stack((np.ones(21), DOSES, np.maximum(0, DOSES - corner)), axis=1)
                if corner < DOSES[run - 2]:
                    weights = np.linalg.lstsq(basis[:run], mean[:run], rcond=None)[0]
                    if weights[2] < 0 and weights[1] + weights[2] < 0:
                        best = min(best, float(((np.maximum(0, basis @ weights) - mean) ** 2).sum()))
        fit = _broken(DOSES)(mean[None])
        assert 0.98 * best < fit.squares[0] <= best
        assert ((fit.fitted[0] - mean) ** 2).sum() == pytest.approx(fit.squares[0])


def test_a_break_without_noise_is_found_exactly() -> None:
    found = critical_dose(DOSES, np.tile(broken_curve(0.62), (5, 1)), CHANCE, generator())
    assert found.estimate is not None
    assert found.estimate.best == pytest.approx(0.62)
    assert found.verdict == "break at 0.62, sharper than a smooth curve"


def test_the_break_scales_with_the_unit_of_the_dose() -> None:
    curves = draws_around(broken_curve(0.6), 0.05, generator("units"))
    share = critical_dose(DOSES, curves, CHANCE, generator(), replicas=50)
    units = critical_dose(DOSES * 500, curves, CHANCE, generator(), replicas=50)
    assert share.estimate is not None and units.estimate is not None
    assert units.estimate.best == pytest.approx(500 * share.estimate.best)
    assert units.verdict.startswith(f"break at {units.estimate.best:.0f},")


def test_a_curve_of_many_doses_is_thinned_and_keeps_its_break() -> None:
    doses = np.linspace(0, 1, 129)
    curve = np.interp(doses, DOSES, broken_curve(0.6))
    found = critical_dose(doses, curve + generator().normal(0, 0.03, (10, 129)), CHANCE, generator(), replicas=50)
    assert found.estimate is not None and found.estimate.best == pytest.approx(0.6, abs=0.02)


def test_a_fall_within_one_step_of_the_doses_is_no_better_known_than_the_step() -> None:
    curves = draws_around(np.where(DOSES < 0.62, 0.95, CHANCE), 0.02, generator("step"))
    found = critical_dose(DOSES, curves, CHANCE, generator(), replicas=100).estimate
    assert found is not None
    assert found.low <= 0.6001 and found.high >= 0.6499


@pytest.mark.parametrize("mean", [*STEADY.values(), np.full(21, 0.9)])
def test_a_steady_decline_without_noise_has_no_break(mean: Floats) -> None:
    found = critical_dose(DOSES, np.tile(mean, (5, 1)), CHANCE, generator(), replicas=50)
    assert found.estimate is None and found.verdict == "no break"


def test_what_cannot_be_tested_says_why() -> None:
    curve = broken_curve(0.6)
    verdicts = [
        critical_dose(DOSES[:4], np.tile(curve[:4], (9, 1)), CHANCE, generator()).verdict,
        critical_dose(DOSES, curve[None], CHANCE, generator()).verdict,
        critical_dose(DOSES, np.full((9, 21), 0.1), CHANCE, generator()).verdict,
    ]
    assert verdicts == [
        "not tested: 4 doses, 6 needed",
        "not tested: 1 draw, 5 needed",
        "not tested: the intact network is not better than chance",
    ]


def test_the_sign_flip_test_counts_every_exchange_of_pairs() -> None:
    a, b = [3.0, 5.0, 4.0, 7.0, 6.0], [1.0, 4.0, 4.5, 3.0, 5.0]
    differences = np.subtract(a, b)
    signs = itertools.product([1, -1], repeat=5)
    by_hand = np.mean([abs(np.dot(sign, differences)) >= abs(differences.sum()) - 1e-12 for sign in signs])
    assert paired_test(a, b, generator("unused")).p_value == by_hand
    one_sided = paired_test([1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5, generator("unused"))
    assert one_sided.p_value == 2 / 2**5  # no five pairs say more


def test_above_twelve_pairs_the_signs_are_sampled_and_agree() -> None:
    rng = generator("pairs")
    a = rng.normal(0.4, 1, 13)
    sampled = paired_test(a, np.zeros(13), generator("signs")).p_value
    signs = np.array(list(itertools.product([1, -1], repeat=13)))
    exact = float((np.abs(signs @ a) >= abs(a.sum()) - 1e-12).mean())
    assert sampled == pytest.approx(exact, abs=0.02)
    assert paired_test(np.ones(40), np.zeros(40), generator("signs")).p_value == pytest.approx(1 / 10_001)


def test_the_effect_is_the_mean_over_the_scatter_and_its_interval_covers() -> None:
    found = paired_test([2.0, 3.0, 1.0, 4.0], [1.0, 1.0, 1.0, 1.0], generator("unused"))
    assert found.effect.best == pytest.approx(1.5 / np.std([1, 2, 0, 3], ddof=1))
    assert found.difference == paired_difference([2.0, 3.0, 1.0, 4.0], [1.0] * 4)
    turned = paired_test([1.0] * 4, [2.0, 3.0, 1.0, 4.0], generator("unused"))
    assert turned.effect == Estimate(-found.effect.high, -found.effect.best, -found.effect.low)
    rng = generator("effects")
    held = [paired_test(rng.normal(0.7, 1, 8), np.zeros(8), rng).effect for _ in range(400)]
    assert 0.92 <= np.mean([one.low <= 0.7 <= one.high for one in held]) <= 0.98


def test_one_pair_or_pairs_without_scatter_have_no_effect() -> None:
    for a in ([2.0], [2.0, 2.0, 2.0]):
        assert math.isnan(paired_test(a, [1.0] * len(a), generator("unused")).effect.best)
    assert paired_test([2.0], [1.0], generator("unused")).p_value == 1
    with pytest.raises(InputError, match="Pair them by seed"):
        paired_test([1.0, 2.0], [1.0], generator("unused"))


def test_the_words_follow_the_tests() -> None:
    at = Estimate(0.5, 0.62, 0.7)
    assert CriticalDose(at, 0.01, 0.01, 0.9, 5.0).verdict == "break at 0.62, sharper than a smooth curve"
    assert CriticalDose(at, 0.01, 0.30, 0.9, 5.0).verdict == "break at 0.62, a smooth curve fits as well"
    assert CriticalDose(at, 0.01, 0.90, 0.4, -5.0).verdict == "break at 0.62, a smooth curve fits as well"
    assert CriticalDose(at, 0.01, 0.90, 0.01, -5.0).verdict == "break at 0.62, a smooth curve fits better"
    assert CriticalDose(p_value=0.4).verdict == "no break"
    assert eval(repr(CriticalDose(at, 0.01, 0.30, 0.9, 5.0))) == CriticalDose(at, 0.01, 0.30, 0.9, 5.0)


def test_the_interval_of_the_critical_dose_covers_a_known_break() -> None:
    found = found_in(broken_curve(0.6), 0.1, 60, "cover", replicas=200)
    assert coverage(found, 0.6) >= 0.85
    assert sum("sharper" in each.verdict for each in found) >= 40


def test_a_share_of_trials_in_groups_is_covered_where_that_of_single_trials_is_not() -> None:
    rng = np.random.default_rng(0)
    groups, naive = [], []
    for _ in range(400):
        right = rng.binomial(30, rng.beta(9, 1, 8))  # 8 walks of 30 events, each walk with a retention of its own
        groups.append(wilson_of_groups(right, [30] * 8))
        naive.append(wilson(int(right.sum()), 240))
    covered = [sum(one.low <= 0.9 <= one.high for one in found) / 400 for found in (groups, naive)]
    assert covered[0] >= 0.9 and covered[1] <= 0.8


def test_a_share_in_groups_is_wilsons_where_groups_tell_nothing() -> None:
    assert wilson_of_groups([7], [10]) == wilson(7, 10)
    assert wilson_of_groups([10, 10, 0], [10, 10, 0]) == wilson(20, 20)
    assert wilson_of_groups([5, 5, 5], [10, 10, 10]) == wilson(15, 30)
    for right, tried in (([1, 1], [1]), ([0], [0]), ([2], [1]), ([-1], [1])):
        with pytest.raises(InputError, match="wilson_of_groups"):
            wilson_of_groups(right, tried)


def test_steady_declines_seldom_show_a_break() -> None:
    found = [each for name, mean in STEADY.items() for each in found_in(mean, 0.06, 40, name, replicas=200)]
    assert sum(each.estimate is not None for each in found) <= 0.1 * len(found)


def test_smooth_curves_are_seldom_called_sharp() -> None:
    found = [each for name, mean in SMOOTH.items() for each in found_in(mean, 0.1, 10, name, replicas=100)]
    assert sum("sharper" in each.verdict for each in found) <= 2
    assert sum("better" in each.verdict for each in found) >= 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("c", "before", "bend", "spread"),
    [(0.6, -0.05, -1.8, 0.03), (0.6, -0.05, -1.8, 0.1), (0.4, -0.2, -1.2, 0.05), (0.75, -0.05, -4.0, 0.06)],
)
def test_coverage_of_the_critical_dose_over_300_curves(c: float, before: float, bend: float, spread: float) -> None:
    found = found_in(broken_curve(c, before, bend), spread, 300, "long")
    assert 0.93 <= coverage(found, c) <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize("name", STEADY)
def test_false_breaks_over_300_steady_declines(name: str) -> None:
    found = found_in(STEADY[name], 0.06, 300, f"long {name}")
    assert sum(each.estimate is not None for each in found) <= 0.075 * 300


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
def test_false_sharpness_over_300_smooth_curves(name: str) -> None:
    found = found_in(SMOOTH[name], 0.1, 300, f"long {name}")
    assert sum("sharper" in each.verdict for each in found) <= 0.05 * 300
