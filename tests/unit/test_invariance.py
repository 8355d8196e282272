"""The invariant-set study: lines with their intervals, walks with their controls, resuming, verdicts in words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cases import NETWORKS, trained
from planaria.core.errors import InputError
from planaria.core.motion import Cost, updates
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import norm
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import Dose, RandomUnits
from planaria.geometry.bend import Bezier
from planaria.geometry.normalise import renormalised
from planaria.geometry.straight import Straight
from planaria.measure.scores import Score
from planaria.measure.statistics import wilson
from planaria.measure.task import Task
from planaria.repair.retrain import Adam, Retrain
from planaria.study.invariance import Survey, invariance
from planaria.study.invariant_set import (
    ALIGNED,
    DAMAGED,
    DISPLACED,
    INDEPENDENT,
    INTACT,
    REPAIRED,
    UNDAMAGED,
    UNTRAINED,
    Connection,
    Invariance,
)
from planaria.study.lines import Line, curved_lines, share_of_pairs, straight_lines
from planaria.study.regime import ATTRITION, Mode, Regime, Turnover
from planaria.study.survive import survive
from planaria.study.train import Recipe
from planaria.study.walks import Event, Walk
from purity import fingerprint, world

DEATH = Damage(Silence(), RandomUnits(Dose("units")))
SMALL = Recipe(4, rate=0.05, batch=16)


def survey(mode: Mode = ATTRITION, events: int = 4, **changes: Any) -> Survey:
    net, task = trained("clouds")
    regime = Regime(DEATH, 2, events, mode, updates(10), 0.1)
    settings: dict[str, Any] = {"seeds": (0, 1, 2), "networks": 4, "recipe": SMALL, **changes}
    return Survey.of(net, Retrain(task, Adam(0.01), batch=16), task, regime, **settings)


@cache
def studied(turnover: bool = False) -> tuple[Survey, Invariance]:
    study = survey(Turnover(2) if turnover else ATTRITION)
    return study, study.run()


def found(turnover: bool = False) -> Invariance:
    return studied(turnover)[1]


# --------------------------------------------------------------------------------------------------- pairs


def test_a_share_of_disjoint_pairs_is_wilsons_a_little_wider_because_the_jackknife_counts_twice() -> None:
    pairs = [(2 * at, 2 * at + 1) for at in range(40)]
    holds = [at % 4 > 0 for at in range(40)]
    found, plain = share_of_pairs(holds, pairs), wilson(30, 40)
    assert found is not None and found.best == plain.best
    assert (found.high - found.low) / (plain.high - plain.low) == pytest.approx(math.sqrt(2), abs=0.1)
    assert share_of_pairs([True] * 40, pairs) == wilson(40, 40)


def test_pairs_that_all_agree_count_as_many_as_have_no_member_in_common() -> None:
    pairs = list(combinations(range(9), 2))
    for flag in (True, False):
        assert share_of_pairs([flag] * 36, pairs) == wilson(4 * flag, 4)
    assert share_of_pairs([True], [(3, 8)]) == wilson(1, 1)
    between = [pair for pair in pairs if pair[0] % 4 != pair[1] % 4]  # four walks: two pairs of walks
    assert share_of_pairs([True] * len(between), between, lambda member: member % 4) == wilson(2, 2)
    within = [pair for pair in pairs if pair[0] % 4 == pair[1] % 4]
    assert share_of_pairs([True] * len(within), within, lambda member: member % 4) == wilson(4, 4)
    assert share_of_pairs([], []) is None
    with pytest.raises(InputError, match="one flag for each pair"):
        share_of_pairs([True], [(0, 1), (0, 2)])


def test_a_member_that_spoils_all_its_pairs_widens_the_interval() -> None:
    pairs = list(combinations(range(12), 2))
    spoilt = share_of_pairs([0 not in pair for pair in pairs], pairs)
    rng = np.random.default_rng(0)
    spread = np.ones(66, bool)
    spread[rng.choice(66, 11, replace=False)] = False
    mixed = share_of_pairs(spread.tolist(), pairs)
    assert spoilt is not None and mixed is not None and spoilt.best == mixed.best
    assert spoilt.high - spoilt.low > 1.3 * (mixed.high - mixed.low)


@pytest.mark.parametrize(("walks", "apart"), [(16, 0.0), (5, 1.0)])
def test_the_interval_over_pairs_covers_the_share_of_all_networks_there_could_be(walks: int, apart: float) -> None:
    rng, n = np.random.default_rng(0), 16
    pairs = [pair for pair in combinations(range(n), 2) if pair[0] % walks != pair[1] % walks]
    ends = np.array(pairs)

    def chance(kind: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(1 + kind.sum(-1))))

    truth = chance(rng.normal(0, 0.7, (20_000, 2)) + rng.normal(0, apart, (20_000, 2))).mean()
    covered = 0
    for _ in range(150):
        kind = rng.normal(0, 0.7, n) + rng.normal(0, apart, walks)[np.arange(n) % walks]
        flags = rng.random(len(pairs)) < chance(kind[ends])
        share = share_of_pairs(flags.tolist(), pairs, lambda member: member % walks)
        covered += share is not None and share.low <= truth <= share.high
    assert covered / 150 >= 0.9


# --------------------------------------------------------------------------------------------------- lines


def ends(name: str = "clouds") -> tuple[list[Network], Task]:
    net, task = trained(name)
    rng = stream(1, "ends")
    moved = [
        net.with_weights({n: w + 0.6 * torch.randn(w.shape, generator=rng) for n, w in net.weights.items()})
        for _ in range(2)
    ]
    return [net, *moved], task


@pytest.mark.parametrize("name", ["clouds", "surface"])
def test_lines_are_those_of_the_networks_between(name: str) -> None:
    nets, task = ends(name)
    lines = straight_lines(nets, task, -math.inf, points=5)
    assert [(line.first, line.second) for line in lines] == [(0, 1), (0, 2), (1, 2)]
    for line in lines:
        a, b = nets[line.first], nets[line.second]
        scores = {}
        for split, data in (("validation", task.validation), ("test", task.test)):
            between = [
                a.with_weights({n: torch.lerp(w, b.weights[n], t / 4) for n, w in a.weights.items()}) for t in range(5)
            ]
            scores[split] = np.array([task.score(net, data) for net in between])
        falls = {split: (np.linspace(s[0], s[-1], 5) - s).max() for split, s in scores.items()}
        assert line.least <= scores["validation"].min() + 1e-6 and line.inside
        assert line.barrier >= falls["validation"] - 1e-6
        assert line.test_barrier == pytest.approx(falls["test"], abs=1e-6)


def test_a_line_that_leaves_between_two_points_is_caught_when_it_is_looked_at_again() -> None:
    net = Network.of(nn.Linear(1, 1, bias=False)).with_weights({"weight": torch.zeros(1, 1)})
    other = net.with_weights({"weight": torch.ones(1, 1)})
    dip = Score("dip", lambda y, t: min(1.0, float((y.mean() - 0.45).abs()) / 0.2), bounds=(0, 1))
    one = torch.ones(4, 1)
    task = Task.of("dip", (one, one), (one, one), validation=(one, one), loss="mse", score=dip)
    line = straight_lines([net, other], task, 0.2, points=5)[0]  # on the grid it is 0.25 at the least
    assert line.inside is False and line.at == pytest.approx(0.45) and line.least < 0.01
    assert straight_lines([net, other], task, 0.0, points=5)[0].inside


def test_a_line_whose_end_is_outside_is_no_trial() -> None:
    nets, task = ends()
    scores = [task.score(net, task.validation) for net in nets]
    threshold = (scores[0] + max(scores[1:])) / 2
    assert scores[0] > threshold
    assert [line.inside for line in straight_lines(nets, task, threshold)] == [None, None, None]


def test_chosen_pairs_are_the_same_lines() -> None:
    nets, task = ends()
    every = straight_lines(nets, task, 0.5)
    some = straight_lines(nets, task, 0.5, pairs=[(0, 2), (1, 2)])
    assert some == tuple(line for line in every if line.second == 2)


def test_normalisation_is_estimated_anew_between_the_ends() -> None:
    case = NETWORKS["cnn-batchnorm"]
    net = case.network()
    x = case.inputs(64)
    a, b = net, net.with_weights({n: w.flip(0) for n, w in net.weights.items() if w.ndim == 4})
    task = Task.of("same", (x, a(x).argmax(1)), (x, a(x).argmax(1)), validation=(x, a(x).argmax(1)), classes=3)
    line = straight_lines([a, b], task, 0.0, points=3)[0]
    middle = a.with_weights({n: torch.lerp(w, b.weights[n], 0.5) for n, w in a.weights.items()})
    scores = [task.score(net) for net in (a, renormalised(middle, x), b)]
    assert line.test_barrier == pytest.approx(max(0.0, (scores[0] + scores[2]) / 2 - scores[1]))


def test_a_curve_is_judged_by_the_networks_on_it() -> None:
    nets, task = ends()
    straight = straight_lines(nets, task, 0.5, points=9)[0]
    line = curved_lines(nets, task, 0.5, Straight(), pairs=[(0, 1)], points=9)[0]
    assert (line.first, line.second, line.inside) == (0, 1, straight.inside)
    assert line.test_barrier == pytest.approx(straight.test_barrier) and line.barrier <= straight.barrier + 1e-9


def test_networks_that_cannot_be_joined_are_refused() -> None:
    nets, task = ends()
    with pytest.raises(InputError, match="two networks"):
        straight_lines(nets[:1], task, 0.0)
    with pytest.raises(InputError, match="at least 3"):
        straight_lines(nets, task, 0.0, points=2)
    with pytest.raises(InputError, match="the same weights"):
        straight_lines([nets[0], Network.of(nn.Linear(2, 3))], task, 0.0)


def test_a_line_through_a_network_that_fails_has_an_infinite_barrier_and_survives_json() -> None:
    nets, task = ends("surface")
    broken = replace(task, scorer=Score("odd", lambda y, t: math.nan if abs(float(y.sum())) > 1e9 else 1.0))
    far = nets[0].with_weights({n: w * -1e6 for n, w in nets[0].weights.items()})
    line = straight_lines([nets[0], far], broken, 0.0, points=5)[0]
    assert line.inside is None or line.inside is False
    odd = Line(0, 1, False, -math.inf, 0.5, math.inf, math.inf)
    assert Line.of(json.loads(json.dumps(odd.to_dict(), allow_nan=False))) == odd


# --------------------------------------------------------------------------------------------------- the study


def test_walks_are_those_of_survive_and_the_control_gets_the_same_budget_without_damage() -> None:
    net, task = trained("clouds")
    repair = Retrain(task, Adam(0.01), batch=16)
    life = survive(
        net, DEATH, {"repair": repair}, task, events=4, dose=2, within=updates(10), seeds=(0, 1, 2), tolerance=0.1
    )
    plain = [{k: v for k, v in row.items() if k != "cost"} for row in life.rows]
    assert [{k: v for k, v in row.items() if k != "cost"} for row in found().life.rows] == plain
    walked, rested = found().life.rows[-1], found().undamaged.rows[-1]
    assert rested["cost"]["backward_passes"] == walked["cost"]["backward_passes"] == 40
    assert {row["dead"] for row in found().undamaged.rows} == {0}


def test_every_control_has_as_many_networks_and_all_have_their_scores() -> None:
    result = found()
    count = len(result.connection(REPAIRED).walk_of)  # type: ignore[union-attr]
    assert 2 <= count <= 4
    assert len(result.group(UNDAMAGED)) == len(result.group(DISPLACED)) == count
    assert len(result.group(INDEPENDENT)) == len(result.group(UNTRAINED)) == 4
    assert len(result.group(DAMAGED)) == len(result.group(REPAIRED)) == 12 and len(result.group(INTACT)) == 1
    for one in result.members:
        assert one.inside == (one.score >= result.threshold - 1e-9)
    rows = {(row["seed"], row["event"]): row for row in result.life.rows}
    for one in result.members:
        if one.group in (DAMAGED, REPAIRED):
            row = rows[one.walk, one.event]
            assert one.score == (row["hit"] if one.group == DAMAGED else row["rescued"])


def test_scores_of_members_are_those_of_the_networks_that_are_compared() -> None:
    study, result = studied()
    for member in result.members:
        assert study.company.score(study.company.network(member)) == pytest.approx(member.score)
    fresh = survey()
    for place in (*result.group(DAMAGED)[:2], *result.group(DISPLACED)[:1], *result.group(INDEPENDENT)[:1]):
        again, once = fresh.company.network(result.members[place]), study.company.network(result.members[place])
        assert again.sha256 == once.sha256


def test_damaged_networks_are_those_just_after_the_hit() -> None:
    study, result = studied(True)
    damaged = {(m.walk, m.event): study.company.network(m) for m in result.members if m.group == DAMAGED}
    repaired = {(m.walk, m.event): study.company.network(m) for m in result.members if m.group == REPAIRED}
    for place, net in damaged.items():
        dead = sum(int((p == 0).sum()) for p in net.plasticity.values())
        assert dead and dead == sum(int((p == 0).sum()) for p in repaired[place].plasticity.values())
        assert net.sha256 != repaired[place].sha256


def test_displaced_networks_are_as_far_away_tensor_by_tensor_and_pinned_weights_stay() -> None:
    study, result = studied()
    for place in result.group(DISPLACED):
        member = result.members[place]
        there = study.company.network(member) - study.company.net
        twin = study.company.network(replace(member, group=REPAIRED)) - study.company.net
        for name, step in there.items():
            assert float(step.norm()) == pytest.approx(float(twin[name].norm()), rel=1e-4, abs=1e-7)
        assert float(norm(there)) > 0
    pinned = study.company.net.pin(
        {"0.weight": torch.ones_like(study.company.net.weights["0.weight"], dtype=torch.bool)}
    )
    held = replace(study.company, net=pinned)
    one = held.displaced([(0, 1)])[0]
    assert torch.equal(one.weights["0.weight"], pinned.weights["0.weight"])


def test_matrices_hold_all_members_and_alignment_brings_independent_networks_nearer() -> None:
    result = found()
    for name in ("weights", ALIGNED, "outputs", "answers"):
        matrix = torch.tensor(result.distances[name])
        assert matrix.shape == (len(result.members),) * 2
        assert torch.equal(matrix, matrix.T) and not matrix.diagonal().any()
    places = result.group(INDEPENDENT)
    before, after = (torch.tensor(result.distances[name])[0, places] for name in ("weights", ALIGNED))
    assert (after <= before + 1e-5).all() and after.sum() < before.sum()


def test_untrained_networks_are_not_joined_because_bad_networks_are_connected_anyway() -> None:
    assert found().connection(UNTRAINED) is None
    assert {one.group for one in found().connections} <= {REPAIRED, UNDAMAGED, DISPLACED, INDEPENDENT}


def test_lines_of_one_walk_and_of_different_walks_are_told_apart() -> None:
    one = found().connection(REPAIRED)
    assert one is not None
    assert len(one.within.lines) + len(one.between.lines) == len(one.lines) == math.comb(one.networks, 2)
    for line in one.within.lines:
        assert found().members[line.first].walk == found().members[line.second].walk


@pytest.mark.parametrize("turnover", [False, True])
def test_the_word_attractor_is_kept_for_turnover(turnover: bool) -> None:
    stays, joined, attracts = found(turnover).verdicts
    assert attracts["question"] == "Is the good set an attractor?"
    assert ("Cannot be" in attracts["answer"]) is not turnover
    assert stays["answer"] and joined["answer"]
    assert "attractor" not in json.dumps([stays, joined])


@pytest.mark.parametrize(
    ("gone", "back", "answer"),
    [
        (0, 0, "Invariant; whether it attracts is not tested"),
        (1, 1, "Invariant; whether it attracts is not shown"),  # one return is no test
        (5, 5, "Yes, in this sense"),
        (5, 0, "No: most of what left it did not come back"),
    ],
)
def test_the_word_attractor_needs_returns_enough_to_tell(gone: int, back: int, answer: str) -> None:
    result = found(turnover=True)

    def lived(seed: int) -> Walk:
        out = 20 if seed < back else 200 if seed < gone else 0  # for one event, with or without time to come back
        return Walk("repair", seed, 0.9, 0.9, 2, tuple(Event(n, 2, 0, 0, 0, n != out, Cost()) for n in range(1, 201)))

    regime = replace(result.life.regime, events=200)
    life = replace(result.life, walks=tuple(lived(seed) for seed in range(6)), regime=regime)
    said = replace(result, life=life).verdicts[2]
    assert said["answer"] == answer


def test_the_result_is_plain_values_and_prints() -> None:
    result = found()
    plain = result.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert len(plain["members"]) == len(plain["distances"]["weights"])
    assert set(plain["meanings"]) == {one["group"] for one in plain["members"]}
    for word in (REPAIRED, UNDAMAGED, DISPLACED, INDEPENDENT):
        assert word in str(result)


def test_a_study_that_was_stopped_goes_on_where_it_was_and_ends_the_same() -> None:
    ledger: dict[str, Any] = {}

    def keeping(stop: int) -> Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]:
        def keep(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            if name not in ledger:
                if len(ledger) >= stop:
                    raise KeyboardInterrupt
                ledger[name] = json.loads(json.dumps(make(), allow_nan=False))
            return ledger[name]  # type: ignore[no-any-return]

        return keep

    for stop in (2, 8, 13):
        with pytest.raises(KeyboardInterrupt):
            survey().run(keeping(stop))
    resumed = survey().run(keeping(10**6)).to_dict()
    assert len(ledger) <= survey().steps

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(item) for key, item in value.items() if key != "seconds"}
        return [timeless(item) for item in value] if isinstance(value, list) else value

    assert timeless(resumed) == timeless(found().to_dict())


def test_nothing_is_changed_by_the_study() -> None:
    net, task = trained("clouds")
    before, around = (fingerprint(net), fingerprint(task)), world()
    survey(events=2, networks=2, seeds=(0,), recipe=Recipe(1, batch=16)).run()
    assert (fingerprint(net), fingerprint(task)) == before and world() == around


def test_walks_that_leave_at_once_leave_nothing_to_join_and_that_is_said() -> None:
    net, task = trained("clouds")
    regime = Regime(DEATH, 26, 2, ATTRITION, updates(0), 0.0)
    flow = Retrain(task, Adam(0.01), batch=16)
    result = Survey.of(net, flow, task, regime, seeds=(0, 1), networks=2, recipe=Recipe(1, batch=16)).run()
    assert result.verdicts[1]["answer"] == "Not tested" and result.connection(REPAIRED) is None
    assert any("0 could be joined" in note for note in result.notes)
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_regression_is_studied_in_its_own_score() -> None:
    net, task = trained("surface")
    result = invariance(
        net,
        DEATH,
        Retrain(task, Adam(0.01), batch=16),
        task,
        events=2,
        dose=1,
        within=updates(10),
        seeds=(0, 1),
        tolerance=0.2,
        networks=3,
        recipe=Recipe(2, rate=0.01, batch=16),
    )
    assert "answers" not in result.distances and result.score == task.scorer.name == "r2"
    assert result.to_dict()["connections"]


def test_curves_are_tried_where_straight_lines_leave() -> None:
    study = replace(studied()[0], by=Bezier(updates=5, batch=16))
    result = study.run()
    joined = result.connection(REPAIRED)
    assert joined is not None
    left = {(line.first, line.second) for line in joined.lines if line.inside is False}
    assert (result.curves is not None) is bool(left)
    if result.curves is not None:
        assert {(line.first, line.second) for line in result.curves.lines} <= left
        assert "Bezier" in result.verdicts[1]["words"] and result.to_dict()["curves"]["way"].startswith("Bezier")


def test_settings_that_make_no_study_are_refused() -> None:
    for changes in ({"seeds": ()}, {"seeds": (0, 0)}, {"networks": 1}, {"networks": 2.5}):
        with pytest.raises(InputError):
            survey(**changes)


def connected(flags: list[bool | None], group: str, barrier: float = 0.0) -> Connection:
    pairs = list(combinations(range(6), 2))
    lines = tuple(Line(a, b, flag, 0.9, 0.5, barrier, 0.0) for (a, b), flag in zip(pairs, flags, strict=True))
    return Connection(group, False, lines, {at: at % 3 for at in range(6)}, 0.01, group in (REPAIRED, UNDAMAGED))


YES, NO, NONE = [True] * 15, [False] * 15, [None] * 15


@pytest.mark.parametrize(
    ("repaired", "undamaged", "answer"),
    [
        (connected(YES, REPAIRED), connected(YES, UNDAMAGED), "Yes, every line tested, but trivially: without damage"),
        (connected(NO, REPAIRED, 0.5), connected(NO, UNDAMAGED, 0.5), "No, not told apart from the control"),
        (connected(NO, REPAIRED), connected(YES, UNDAMAGED), "Without barriers, though not every line stays inside, "),
        (connected(NONE, REPAIRED), connected(YES, UNDAMAGED), "Not tested"),
        (
            connected(YES, REPAIRED),  # the control is not as connected: nothing is trivial about it
            connected([True] * 8 + [False] * 7, UNDAMAGED, 0.5),
            "Yes, every line tested, not told apart from the control",
        ),
        (
            connected([True] * 8 + [False] * 7, REPAIRED, 0.5),
            connected(YES, UNDAMAGED),
            "In part, not told apart from the control",
        ),
    ],
)
def test_a_connection_is_called_trivial_where_the_control_without_damage_has_it_too(
    repaired: Connection, undamaged: Connection, answer: str
) -> None:
    said = replace(found(), connections=(repaired, undamaged, connected(NO, INDEPENDENT, 0.5))).verdicts[1]
    assert said["answer"].startswith(answer)
    assert ("Networks few steps from a common start" in said["words"]) is ("trivially" in said["answer"])
