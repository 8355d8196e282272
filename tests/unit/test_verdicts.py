"""Verdicts follow from the numbers: any combination can be said, and no more than is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cases import trained
from planaria.core.motion import updates
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits
from planaria.measure.scaling import Scaling
from planaria.measure.statistics import Estimate
from planaria.repair.retrain import SGD, Retrain
from planaria.report.reading import best_row
from planaria.study.contrast import contrast
from planaria.study.rescue import Criterion, Schedule, leave, rescue
from planaria.study.respond import Response
from planaria.study.summary import summarise
from planaria.study.verdicts import (
    Verdict,
    better_in_bites,
    cheapest,
    explained_by_controls,
    judge,
    redundancy,
    rescuable,
    transition,
)

BUDGET = 400
JITTER = (0.0, 0.002, -0.001, 0.003, -0.002, 0.001)


def row(
    repair: str,
    seed: int = 0,
    score: float = 0.9,
    *,
    at: int | None = None,
    hit: int = 0,
    dose: float = 0.5,
    rise: float = 0.0,
    deleted: int = 8,
    work: int = 1000,
    start: float = 0.2,
) -> dict[str, Any]:
    """A row of a rescue: rescued after `at` updates in total, or not; the last hit, to `start`, after `hit` of 400."""

    def cost(count: int) -> dict[str, Any]:
        return {"backward_passes": count, "multiply_adds": work * count}

    curve = [{"updates": hit, "validation": start, "dead": 0.5}]
    for count in range(hit, BUDGET + 1, 10):
        late = score - rise * (BUDGET - count) / 100
        curve.append({"updates": count, "validation": late, "dead": deleted / 16})
    return {
        "repair": repair,
        "dose": dose,
        "seed": seed,
        "score_after": score,
        "validation_before": 0.95,
        "validation_after": score,
        "rescued": at is not None,
        "units_deleted": deleted,
        "cost": cost(BUDGET),
        "cost_since_last_hit": cost(BUDGET - hit),
        "rescue_cost": None if at is None else cost(at),
        "rescue_cost_since_last_hit": None if at is None else cost(at - hit),
        "curve": curve,
    }


def trials(repair: str, score: float = 0.9, *, at: Sequence[int | None] | int | None = None, **more: Any) -> list[Any]:
    """Five seeds of a repair, scattered a little."""
    times = [at] * 5 if at is None or isinstance(at, int) else list(at)
    return [
        row(repair, seed, score + JITTER[(seed + len(repair)) % 6], at=time, **more) for seed, time in enumerate(times)
    ]


def answer(verdict: Verdict | None) -> str:
    assert verdict is not None
    assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False)) == verdict.to_dict()
    assert verdict.words
    return verdict.answer


# ---------------------------------------------------------------------------------------- iterative or batch

LATE = [362, 364, 366, 363, 365]


@pytest.mark.parametrize(
    ("iterative", "batch", "expected"),
    [
        # As in the paper, and what its own counting leaves out.
        (LATE, [120, 130, 125, 140, 135], "faster since the last hit, slower in total"),
        ([398] * 5, [11, 12, 13, 14, 15], "slower since the last hit, slower in total"),
        (LATE, None, "faster since the last hit, faster in total"),
        (None, [20, 22, 24, 26, 28], "slower since the last hit, slower in total"),
        (None, [200, 210, 220, 230, 240], "slower in total"),  # beyond what both had since the hit
        (None, None, "neither rescued"),
        ([370, None, None, None, None], [None, 20, None, None, None], "no difference shown"),
        (None, [BUDGET] * 5, "no difference shown in time"),  # at the very end
    ],
)
def test_speed_is_said_in_both_countings(iterative: Any, batch: Any, expected: str) -> None:
    found = answer(better_in_bites([*trials("iterative", hit=360, at=iterative), *trials("retrain", at=batch)]))
    assert found.startswith(expected)
    assert found.endswith("no difference shown in score")


@pytest.mark.parametrize(
    ("iterative", "batch", "expected"),
    [(0.93, 0.9, "higher score"), (0.88, 0.9, "lower score"), (0.9, 0.9, "no difference shown in score")],
)
def test_the_score_is_compared_at_equal_total_work(iterative: float, batch: float, expected: str) -> None:
    rows = [*trials("iterative", iterative, hit=360), *trials("retrain", batch)]
    verdict = better_in_bites(rows, percent=True)
    assert answer(verdict) == f"neither rescued, {expected}"
    assert verdict is not None
    difference = verdict.numbers["score difference"]
    assert isinstance(difference, Estimate)
    by_hand = [a["score_after"] - b["score_after"] for a, b in zip(rows[:5], rows[5:], strict=True)]
    assert difference.best == pytest.approx(np.mean(by_hand))
    assert 0 < verdict.numbers["score difference, p"] <= 1  # type: ignore[operator]
    assert f"{100 * abs(difference.best):.2f}" in verdict.words


def test_pairs_are_seeds_and_doses_are_averaged() -> None:
    rows = []
    for dose, gain in ((0.3, 0.01), (0.5, 0.02), (0.7, 0.06)):
        rows += trials("iterative", 0.9 + gain, hit=360, dose=dose) + trials("retrain", 0.9, dose=dose)
    found = contrast(rows, "iterative", "retrain")
    assert found is not None
    assert found.seeds == 5
    scatter = np.mean([JITTER[(seed + 9) % 6] - JITTER[(seed + 7) % 6] for seed in range(5)])
    assert found.score.difference.best == pytest.approx(0.03 + scatter)
    assert {dose: round(one.best - scatter, 6) for dose, one in found.by_dose.items()} == {
        0.3: 0.01,
        0.5: 0.02,
        0.7: 0.06,
    }


def test_a_trial_that_is_not_rescued_counts_with_what_it_was_followed_for() -> None:
    rows = [
        *trials("iterative", at=[370, None, 380, None, 390], hit=360),
        *trials("retrain", at=[100, 200, None, 50, 5]),
    ]
    found = contrast(rows, "iterative", "retrain")
    assert found is not None
    late, total = found.updates["since the last hit"], found.updates["in total"]
    assert late is not None and total is not None
    assert late.difference.best == pytest.approx(np.mean([10, 40, 20, 40, 30]) - np.mean([40, 40, 40, 40, 5]))
    assert total.difference.best == pytest.approx(np.mean([370, 400, 380, 400, 390]) - np.mean([100, 200, 400, 50, 5]))
    assert found.horizons == {"since the last hit": 40, "in total": 400}


def test_a_p_value_that_few_pairs_cannot_undercut_is_said_to_be_so() -> None:
    five = better_in_bites([*trials("iterative", 0.93, hit=360), *trials("retrain", 0.9)])
    assert five is not None and "p 0.062, the least that 5 pairs can give" in five.words


def test_failed_scores_are_counted() -> None:
    rows = [*trials("iterative", 0.93, hit=360), *trials("retrain", 0.9)]
    rows[3]["score_after"] = None
    verdict = better_in_bites(rows)
    assert verdict is not None and "Left out, for want of a finite score: 1 of 5 pairs." in verdict.words


def test_one_seed_decides_nothing_and_failed_scores_are_left_out() -> None:
    one = [row("iterative", score=0.95, hit=360), row("retrain", score=0.5)]
    assert "no difference shown in score" in answer(better_in_bites(one))
    failed = {**row("iterative", hit=360), "score_after": None}
    assert better_in_bites([failed, row("retrain")]) is None
    assert better_in_bites(trials("retrain")) is None


# --------------------------------------------------------------------------------------------------- controls


def test_a_control_that_has_the_gain_too_explains_it() -> None:
    rows = [*trials("iterative", 0.93, hit=360), *trials("retrain", 0.9), *trials("dropout", 0.93, hit=360)]
    assert answer(explained_by_controls(rows)) == "yes: its score by dropout"


def test_controls_that_iterative_repair_beats_do_not() -> None:
    rows = [*trials("iterative", 0.93, hit=360), *trials("retrain", 0.9)]
    rows += [*trials("dropout", 0.9, hit=360), *trials("extra", 0.89, hit=360)]
    assert answer(explained_by_controls(rows)) == "no: iterative repair beats every control in score"


def test_speed_and_score_are_explained_apart() -> None:
    rows = [*trials("iterative", 0.93, at=LATE, hit=360), *trials("retrain", 0.9, at=[120, 130, 125, 140, 135])]
    rows += trials("extra", 0.9, at=LATE, hit=360)
    found = answer(explained_by_controls(rows))
    assert found == "in part: its score by no control; its speed since the last hit by extra"


def test_without_a_gain_there_is_nothing_to_explain_and_the_controls_are_told_all_the_same() -> None:
    rows = [*trials("iterative", 0.88, hit=360), *trials("retrain", 0.9), *trials("faults", 0.91, hit=360)]
    verdict = explained_by_controls(rows, percent=True)
    assert answer(verdict).startswith("nothing to explain")
    assert verdict is not None and "faults ends 0.98" in verdict.words
    assert {"score, faults - retrain", "score, faults - iterative, p"} <= set(verdict.numbers)


def test_without_controls_or_without_both_repairs_the_question_is_not_asked() -> None:
    assert explained_by_controls([*trials("iterative"), *trials("retrain")]) is None
    assert explained_by_controls([*trials("extra"), *trials("retrain")]) is None


def test_controls_that_all_failed_explain_nothing_and_refute_nothing() -> None:
    rows = [*trials("iterative", 0.93, hit=360), *trials("retrain", 0.9)]
    rows += [{**one, "score_after": None} for one in trials("extra", hit=360)]
    assert explained_by_controls(rows) is None


def test_a_control_that_might_do_as_well_leaves_it_open() -> None:
    rows = [*trials("iterative", 0.93, hit=360), *trials("retrain", 0.9)]
    rows += [row("extra", seed, score, hit=360) for seed, score in enumerate((0.85, 0.99, 0.91, 0.96, 0.88))]
    assert answer(explained_by_controls(rows)).startswith("undecided")


# ---------------------------------------------------------------------------------------- can it be rescued


def test_what_a_repair_rescues_in_most_trials_can_be_rescued() -> None:
    rows = [*trials("none"), *trials("retrain", at=[10, 20, 30, None, None]), *trials("scratch")]
    rows += [*trials("retrain", at=[10, None, None, None, None], dose=0.7), *trials("scratch", dose=0.7)]
    assert answer(rescuable(rows, 0.01)) == "yes at 0.5; in some trials at 0.7"


def test_a_repair_at_rest_far_from_the_target_is_limited_by_capacity() -> None:
    rows = [*trials("retrain", 0.8), *trials("scratch", 0.78), *trials("refit", 0.7)]
    verdict = rescuable(rows, 0.01, percent=True)
    assert answer(verdict) == "no, capacity-limited at 0.5"
    assert verdict is not None and "retrain is 13.9" in verdict.words and "at rest" in verdict.words


@pytest.mark.parametrize("rising", ["retrain", "scratch"])
def test_a_repair_that_still_rises_is_short_of_budget_only(rising: str) -> None:
    rows = [
        r
        for name, score in (("retrain", 0.8), ("scratch", 0.78))
        for seed in range(5)
        for r in [row(name, seed, score, rise=0.02 + JITTER[seed] if name == rising else JITTER[seed])]
    ]
    verdict = rescuable(rows, 0.01)
    assert answer(verdict) == "not within this budget at 0.5"
    assert verdict is not None and f"{rising} is" in verdict.words and "still rising" in verdict.words


def test_a_network_that_has_not_begun_to_learn_is_not_limited_by_its_capacity() -> None:
    verdict = rescuable([*trials("retrain", 0.2), *trials("scratch", 0.2)], 0.01)
    assert answer(verdict) == "not within this budget at 0.5"
    assert verdict is not None and "not shown to have learnt yet" in verdict.words


def test_a_score_that_falls_from_the_target_is_no_matter_of_capacity() -> None:
    # Never three evaluations in a row, at the target in the end, and falling.
    rows = [*trials("retrain", 0.945, rise=-0.02), *trials("scratch", 0.94, rise=-0.02)]
    assert answer(rescuable(rows, 0.01)) == "not within this budget at 0.5"


def test_what_a_longer_training_could_reach_is_not_out_of_reach() -> None:
    # Half a point per 100 updates, five points short: not shown to rise, and ten times the budget would do.
    rows = [
        row(name, seed, 0.89, rise=0.005 + 4 * JITTER[seed]) for name in ("retrain", "scratch") for seed in range(5)
    ]
    verdict = rescuable(rows, 0.01)
    assert answer(verdict) == "not within this budget at 0.5"
    assert verdict is not None and "not shown to be at rest" in verdict.words


def test_capacity_is_never_named_without_training_from_scratch() -> None:
    verdict = rescuable(trials("retrain", 0.8), 0.01)
    assert answer(verdict) == "not within this budget at 0.5"
    assert verdict is not None and "scratch" in verdict.words


def test_units_that_are_brought_back_do_not_rescue_what_survives() -> None:
    rows = [*trials("retrain", 0.8), *trials("scratch", 0.78), *trials("regrow", 0.95, at=50, deleted=0)]
    verdict = rescuable(rows, 0.01)
    assert answer(verdict) == "no, capacity-limited at 0.5"
    assert verdict is not None and "With units brought back: regrow 5/5" in verdict.words
    assert answer(cheapest(rows)) == "regrow (brings units back) at 0.5"


def test_one_seed_is_not_enough_to_call_a_limit() -> None:
    assert answer(rescuable([row("retrain", score=0.5), row("scratch", score=0.4)], 0.01)).startswith("not within")


def test_where_nothing_was_repaired_nothing_is_judged() -> None:
    assert rescuable(trials("none"), 0.01) is None
    assert cheapest(trials("none")) is None
    assert judge(trials("none")) == ()


# --------------------------------------------------------------------------------------------------- cheapest


def test_the_cheapest_repair_is_that_of_the_least_median_work_among_those_that_rescue_most_often() -> None:
    rows = [*trials("retrain", at=[100, 110, 120, 130, 140]), *trials("refit", at=[1, 1, 1, 1, 1], work=50)]
    rows += [*trials("retrain", at=200, dose=0.7), *trials("refit", at=[1, 1, 1, None, None], dose=0.7)]
    rows += [*trials("none", dose=0.9), *trials("retrain", at=[9, 9, None, None, None], dose=0.9)]
    verdict = cheapest(rows)
    assert answer(verdict) == "refit at 0.5; retrain at 0.7; no repair rescues most trials at 0.9"
    assert verdict is not None
    best = verdict.numbers["multiply-adds to rescue at dose 0.5, refit"]
    assert isinstance(best, Estimate) and best.best == 50
    assert "retrain 2e+05 (5/5 rescued), then refit 1e+03 (3/5 rescued)" in verdict.words


def test_half_of_the_trials_are_not_most_of_them() -> None:
    rows = [row("retrain", seed, at=at) for seed, at in enumerate([10, 20, None, None])]
    assert answer(cheapest(rows)) == "no repair rescues most trials at 0.5"
    assert answer(rescuable(rows, 0.01)) == "in some trials at 0.5"


def test_the_verdict_names_the_repair_that_the_report_marks() -> None:
    rows = [
        *trials("retrain", at=200),
        *trials("refit", at=[1, 1, 1, None, None]),
        *trials("none", at=[0, 0, 0, None, None]),
    ]
    for one in rows:  # what the summary needs beside
        one |= {"score_before": 0.96, "score_damaged": 0.5}
        for key in ("cost", "cost_since_last_hit", "rescue_cost", "rescue_cost_since_last_hit"):
            one[key] = one[key] and {
                **dict.fromkeys(("examples", "labels", "forward_passes", "seconds"), 0),
                **one[key],
            }
    document = {"rows": rows, "summary": summarise(rows)}
    marked = best_row(document, 0.5)
    assert marked is not None and answer(cheapest(rows)) == f"{marked['repair']} at 0.5"


def test_a_repair_that_brings_units_back_is_known_by_itself() -> None:
    assert answer(cheapest(trials("regrow", at=10, deleted=0))) == "regrow (brings units back) at 0.5"
    assert rescuable(trials("regrow", at=10, deleted=0), 0.01) is None


def test_where_nothing_is_lost_nothing_needs_doing() -> None:
    assert answer(cheapest([*trials("none", at=0), *trials("refit", at=1)])) == "nothing needs doing at 0.5"


# ------------------------------------------------------------------------------------------------- transition


def response(curve: np.ndarray) -> Response:
    rng = np.random.default_rng(0)
    scores = np.clip(curve + rng.normal(0, 0.01, (10, len(curve))) * (np.arange(len(curve)) > 0), 0, 1)
    return Response(
        tuple(np.linspace(0, 1, len(curve))), tuple(map(tuple, scores)), 0.1, "fraction of units", 0, (0, 1)
    )


def test_one_width_never_tells_a_transition() -> None:
    x = np.linspace(0, 1, 21)
    broken = transition(response(np.maximum(0.1, 0.95 - 2 * np.maximum(0, x - 0.5))))
    assert answer(broken) == "break at 0.5, sharper than a smooth curve; one width cannot tell"
    assert "--widths" in broken.words
    assert answer(transition(response(0.95 - 0.85 * x))).startswith("no break")


def test_with_widths_the_finite_size_test_answers() -> None:
    curve = response(0.95 - 0.85 * np.linspace(0, 1, 11))
    sure = Estimate(0.3, 0.5, 0.7)
    scaling = Scaling((25, 50, 100), (0.0,), ((), (), ()), (sure,) * 3, (), (), sure, sure, sure, sure)
    verdict = transition(curve, scaling)
    assert answer(verdict) == "transition"
    assert verdict.numbers["exponent of the steepness"] == sure
    few = Scaling((25, 50), (0.0,), ((), ()), (), (), (), untested="2 widths, 3 needed")
    assert answer(transition(curve, few)) == "not tested: 2 widths, 3 needed"


def test_redundancy_says_where_it_begins_to_show() -> None:
    verdict = redundancy(response(0.95 - 0.85 * np.linspace(0, 1, 21)))
    assert answer(verdict).startswith("0.10 of the score is lost at dose 0.1")
    assert set(verdict.numbers) == {"dose of a loss of 0.10", "half-dose", "area"}
    assert answer(redundancy(response(np.full(21, 0.9)))) == "0.10 of the score is never lost up to dose 1"
    assert "no better than chance" in redundancy(response(np.full(21, 0.1))).words


# ------------------------------------------------------------------------------------------------ real rescues


def test_every_question_of_a_real_rescue_has_an_answer() -> None:
    net, task = trained("clouds")
    flow = Retrain(task, SGD(0.05), batch=16)
    repairs = {"none": leave, "retrain": flow, "iterative": Schedule(flow, 4), "extra": flow, "scratch": flow}
    result = rescue(
        net,
        Damage(Silence(), RandomUnits()),
        repairs,
        task,
        doses=[0.5, 0.8],
        seeds=[0, 1],
        within=updates(24),
        criterion=Criterion(0.05, 1, every=2),
    )
    verdicts = judge(result.rows, tolerance=0.05)
    assert [verdict.question for verdict in verdicts] == [
        "Is iterative repair better than batch?",
        "Do controls explain the gain of iterative repair?",
        "Can it be rescued at all?",
        "Which repair is cheapest?",
    ]
    for verdict in verdicts:
        answer(verdict)
