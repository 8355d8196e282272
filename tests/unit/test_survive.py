"""Life under a stream of damage: what attrition and turnover do to units, what is spent, and what walks add up to."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import trained
from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.errors import InputError
from planaria.core.motion import Budget, Cost, Flow, after, examples, multiply_adds, settle, steps, updates
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import equal
from planaria.damage.damage import Damage
from planaria.damage.faults import Noise, Silence, StuckAt
from planaria.damage.sites import Dose, RandomEntries, RandomUnits, RankedUnits, rank
from planaria.measure.statistics import wilson
from planaria.measure.task import Task
from planaria.repair.refit import Refit, Sidecar, Teacher
from planaria.repair.regrow import Regrow
from planaria.repair.retrain import SGD, Adam, Retrain
from planaria.study.regime import Attrition, Mode, Regime, Turnover
from planaria.study.rescue import Schedule, leave
from planaria.study.survival import Resilience, Survival
from planaria.study.survive import iter_survive, survive, turnover_study, walk
from planaria.study.walks import Endurance, Event, Walk

COUNT = Damage(Silence(), RandomUnits(Dose("units")))
SHARE = Damage(Silence(), RandomUnits())


def clouds() -> tuple[Network, Task, Retrain]:
    net, task = trained("clouds")
    return net, task, Retrain(task, Adam(0.01), batch=16)


def dead(net: Network) -> set[Unit]:
    return {
        Unit(layer, index)
        for layer, at in Anatomy.of(net).dead(net).items()
        for index in at.nonzero().flatten().tolist()
    }


def events(repair: Flow, task: Task, net: Network, mode: Mode, **settings: object) -> list[Event]:
    regime = Regime(COUNT, 3, 8, mode, updates(4))
    return list(iter_survive(net, repair, task, regime, **settings))  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- modes


def test_in_attrition_the_dead_stay_dead_and_each_event_kills_its_dose() -> None:
    net, task, retrain = clouds()
    before: set[Unit] = set()
    for one in events(retrain, task, net, Attrition()):
        assert one.network is not None
        now = dead(one.network)
        assert before < now and len(now) == one.dead == 3 * one.event
        assert one.returned == 0
        for name, hit in Anatomy.of(net).entries(now).all.items():
            assert not one.network.weights[name][hit].any()
        before = now


@pytest.mark.parametrize("repair", ["retrain", "momentum", "sequential", "none"])
@pytest.mark.parametrize("delay", [1, 3])
def test_in_turnover_a_unit_is_dead_for_exactly_delay_events(delay: int, repair: str) -> None:
    net, task, retrain = clouds()
    flows: dict[str, Flow] = {
        "retrain": retrain,
        "momentum": Retrain(task, SGD(0.05, 0.9, 0.01), batch=16),
        "sequential": Refit(Teacher(net, task.train.inputs)),
        "none": leave,
    }
    regime = Regime(COUNT, 3, 9, Turnover(delay), updates(2))
    states = [dead(one.network) for one in iter_survive(net, flows[repair], task, regime) if one.network is not None]
    assert [len(state) for state in states] == [min(3 * (event + 1), 3 * delay) for event in range(9)]
    for unit in set().union(*states):
        flags = "".join("x" if unit in state else " " for state in states)
        runs = flags.split()
        # A unit that is hit again just after its return is dead for another whole delay.
        complete = runs if flags[-1] == " " else runs[:-1]
        assert all(len(run) % delay == 0 for run in complete), flags


def test_a_unit_that_returns_is_embryonic_and_plastic() -> None:
    net, task, _ = clouds()
    whole = Damage(Silence(), RandomUnits(Dose("units"), layers=("0",)))
    regime = Regime(whole, 2, 3, Turnover(1), steps(0))
    first, second, _ = (one.network for one in iter_survive(net, leave, task, regime))
    assert first is not None and second is not None
    back = dead(first) - dead(second)
    assert back
    slices = Anatomy.of(net).entries(back)
    for name, hit in slices.incoming.items():
        assert bool(second.weights[name][hit].all()) and not equal(
            {"w": net.weights[name]}, {"w": second.weights[name]}
        )
    for name, hit in slices.all.items():
        assert bool((second.plasticity[name][hit] == 1).all())
    for name, hit in slices.outgoing.items():
        assert not second.weights[name][hit].any()


def test_attrition_ends_when_nothing_is_left() -> None:
    net, task, retrain = clouds()
    regime = Regime(Damage(Silence(), RandomUnits(per_layer=True)), 0.3, 20, Attrition(), updates(1))
    done = walk(net, retrain, task, regime)
    assert done.events[-1].dead == 28 and len(done.events) == 4
    assert done.events[-1].network is not None and done.events[0].network is None


def test_turnover_goes_on_when_all_units_are_dead() -> None:
    net, task, _ = clouds()
    regime = Regime(COUNT, 20, 6, Turnover(3), updates(1))
    assert [one.dead for one in iter_survive(net, leave, task, regime)] == [20, 28, 28, 28, 28, 28]


def test_no_damage_leaves_a_network_without_repair_as_it_is_and_survival_at_one() -> None:
    net, task, _ = clouds()
    for mode in (Attrition(), Turnover(2)):
        life = survive(net, COUNT, {"none": leave}, task, events=4, dose=0, mode=mode, seeds=[0, 1], tolerance=0)
        end = life.walks[0].events[-1].network
        assert end is not None and end.sha256 == net.sha256
        assert [point.share.best for point in life.repairs["none"].survival] == [1.0] * 5
        assert math.isinf(life.repairs["none"].median_horizon.best)
        assert life.walks[0].after == life.walks[0].before


# ---------------------------------------------------------------------------------------- seeds and budgets


@pytest.mark.parametrize("mode", [Attrition(), Turnover(2)])
def test_the_seed_decides_the_record_and_the_network_given_is_untouched(mode: Mode) -> None:
    net, task, retrain = clouds()
    before = net.sha256
    regime = Regime(COUNT, 2, 5, mode, updates(3))
    one, two, other = (walk(net, retrain, task, regime, seed=seed) for seed in (1, 1, 2))

    def timeless(given: Walk) -> list[dict[str, object]]:
        return [{**row, "cost": {**row["cost"], "seconds": 0}} for row in given.rows()]

    assert timeless(one) == timeless(two) != timeless(other)
    ends = [w.events[-1].network for w in (one, two, other)]
    assert ends[0] is not None and ends[1] is not None and ends[2] is not None
    assert ends[0].sha256 == ends[1].sha256 != ends[2].sha256
    assert net.sha256 == before


@pytest.mark.parametrize("mode", [Attrition(), Turnover(2)])
def test_every_repair_meets_the_same_hits(mode: Mode) -> None:
    net, task, retrain = clouds()
    regime = Regime(COUNT, 2, 5, mode, updates(3))
    lines = [
        [dead(one.network) for one in iter_survive(net, repair, task, regime, name=name) if one.network is not None]
        for name, repair in {"none": leave, "retrain": retrain, "r": Refit(Teacher(net, task.train.inputs))}.items()
    ]
    assert lines[0] == lines[1] == lines[2]


@pytest.mark.parametrize("within", [updates(3), examples(48), multiply_adds(30_000), steps(0)])
def test_the_budget_is_spent_after_each_event_and_not_exceeded_by_a_step(within: Budget) -> None:
    net, task, retrain = clouds()
    done = walk(net, retrain, task, Regime(COUNT, 2, 5, Attrition(), within))
    step = within.used(next(iter(retrain(net, stream(0, "x")))).cost, 1)
    last = Cost()
    for one in done.events:
        used = within.used(one.cost - last, 0)
        assert used == 0 if within.amount == 0 else within.amount <= used < within.amount + step
        last = one.cost


@pytest.mark.parametrize("repair", ["none", "retrain"])
def test_scores_are_those_of_the_damaged_and_of_the_repaired_network(repair: str) -> None:
    net, task, retrain = clouds()
    intact, last = task.score(net, task.validation), net
    for one in events(retrain if repair == "retrain" else leave, task, net, Attrition(), seed=4):
        assert one.network is not None
        hurt = COUNT.at(3)(last, stream(4, "event", one.event))
        assert one.hit == task.score(hurt, task.validation)
        assert one.rescued == task.score(one.network, task.validation)
        assert one.inside == (one.rescued >= intact - 0.01 - 1e-9)
        last = one.network


# ---------------------------------------------------------------------------------------- refits in a stream


def test_a_sidecar_refit_makes_good_every_loss_once() -> None:
    net, task, _ = clouds()
    refit = Refit(Sidecar.of(net, task.train.inputs))
    for one in events(refit, task, net, Attrition()):
        assert one.network is not None
        lesion = silence(net, Anatomy.of(net).entries(dead(one.network)).all)
        whole = settle(refit)(lesion, stream(0, "x"))
        for name, weight in whole.weights.items():
            torch.testing.assert_close(one.network.weights[name], weight, rtol=1e-4, atol=1e-5)


def test_with_retraining_behind_it_the_refit_comes_first_and_the_budget_is_shared() -> None:
    net, task, retrain = clouds()
    refit = Refit(Sidecar.of(net, task.train.inputs))
    both = after(settle(refit), retrain)
    regime = Regime(COUNT, 2, 3, Attrition(), updates(4))
    alone, done = (walk(net, repair, task, regime).events for repair in (refit, both))
    assert [one.cost.backward_passes for one in done] == [4, 8, 12]
    bare = walk(net, retrain, task, regime).events
    assert all(
        one.cost.multiply_adds == two.cost.multiply_adds + three.cost.multiply_adds
        for one, two, three in zip(done, alone, bare, strict=True)
    )
    assert both.operator == settle(refit), "the repair itself is not changed"


def test_stuck_units_are_no_longer_heard_after_the_refit() -> None:
    net, task, _ = clouds()
    refit = Refit(Sidecar.of(net, task.train.inputs))
    stuck = Damage(StuckAt(3.0), RandomUnits(Dose("units")))
    for one in iter_survive(net, refit, task, Regime(stuck, 2, 4)):
        assert one.network is not None
        for name, hit in Anatomy.of(net).entries(dead(one.network)).outgoing.items():
            assert not one.network.weights[name][hit].any()


# ------------------------------------------------------------------------------------------- the statistics


def made(flags: list[bool], dead: list[int] | None = None, seed: int = 0, start: int = 0) -> Walk:
    counts = dead or list(range(start + 1, start + len(flags) + 1))
    line = [
        Event(at, count, 0, 0.5, 0.9 if inside else 0.1, inside, Cost(examples=at))
        for at, (inside, count) in enumerate(zip(flags, counts, strict=True), start=1)
    ]
    return Walk("r", seed, 0.9, 0.5, start, tuple(line))


def test_the_statistics_of_walks_drawn_by_hand() -> None:
    x, o = True, False
    one = Endurance((made([x, o, o, x, o]), made([x, x, x, x, x], seed=1), made([o, o, x, x, x], seed=2)), 5)
    assert [(r.least, r.share.best, r.trials) for r in one.retention()] == [
        *((0, 2 / 3, 3), (1, 0.5, 2), (2, 1.0, 1), (3, 1.0, 2), (4, 2 / 3, 3)),
    ]
    assert [point.share.best for point in one.survival] == [1, 2 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3]
    assert one.median_horizon.best == 2
    assert one.returns == 2 and one.return_time is not None and one.return_time.best == 2
    assert one.inside.best == pytest.approx(2 / 3)
    assert one.cost["examples"] == 5
    assert Endurance(one.walks, 5, burn_in=4).inside.best == pytest.approx(2 / 3)


def test_a_walk_that_ended_early_stays_where_it_was() -> None:
    one = Endurance((made([True, False]), made([True], seed=1)), 4)
    assert [point.share.best for point in one.survival] == [1, 1, 0.5, 0.5, 0.5]
    assert [point.dead for point in one.survival] == [0, 1, 1.5, 1.5, 1.5]


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=6), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_survival_never_rises_and_every_event_met_inside_is_counted_once(lines: list[list[bool]], burn_in: int) -> None:
    one = Endurance(tuple(made(flags, seed=seed) for seed, flags in enumerate(lines)), 6, burn_in)
    shares = [point.share.best for point in one.survival]
    assert shares[0] == 1 and all(a >= b for a, b in pairwise(shares))
    assert shares[-1] == sum(all(flags) for flags in lines) / len(lines)
    assert sum(r.trials for r in one.retention()) == sum([True, *flags][:-1].count(True) for flags in lines)
    assert all(r.share.low <= r.share.best <= r.share.high for r in one.retention())
    assert all(-1.0000001 <= value <= 1.0000001 for value in one.autocorrelation)
    assert one.autocorrelation[:1] in ((), (1.0,))
    assert json.dumps(one.to_dict(), allow_nan=False)
    again = Endurance(tuple(Walk.of(json.loads(json.dumps(w.record()))) for w in one.walks), 6, burn_in)
    assert again.to_dict() == one.to_dict()


def test_many_numbers_of_dead_units_are_told_apart_in_ranges_that_meet() -> None:
    bins = Endurance((made([True] * 30),), 30).retention()
    assert len(bins) == 8 and bins[0].least == 0 and bins[-1].most == 29
    assert all(a.most + 1 == b.least for a, b in pairwise(bins))


def test_a_score_that_alternates_is_anticorrelated() -> None:
    one = Endurance((made([True, False] * 10),), 20)
    assert one.autocorrelation[0] == 1 and one.autocorrelation[1] < -0.8 < 0.8 < one.autocorrelation[2]


# --------------------------------------------------------------------------------------------- the verdicts


def life(mode: Mode, *flags: list[bool]) -> Survival:
    level = [5] * len(flags[0])
    walks = tuple(made(line, level, seed=seed) for seed, line in enumerate(flags))
    return Survival(walks, Regime(COUNT, 1, len(flags[0]), mode), 28)


def test_an_invariant_set_is_said_only_in_turnover_and_after_a_passed_test() -> None:
    passed = life(Turnover(2), *([True] * 60 for _ in range(3)))
    assert passed.repairs["r"].invariant() is True
    assert passed.verdict()["answer"] == "Yes with r" and "is invariant" in passed.verdict()["words"]
    short = life(Turnover(2), [True] * 40)
    assert short.repairs["r"].invariant() is None and short.verdict()["answer"] == "Undecided with r"
    leaky = life(Turnover(2), *([True, True, False] * 20 for _ in range(3)))
    assert leaky.repairs["r"].invariant() is False and leaky.verdict()["answer"] == "No with r"
    never = life(Turnover(2), [False] * 9)
    assert never.repairs["r"].invariant() is False and never.repairs["r"].settled is None
    lasting = life(Attrition(), *([True] * 60 for _ in range(3)))
    assert "finite horizon" in lasting.verdict()["words"]
    for other in (short, leaky, never, lasting):
        assert "invariant" not in other.verdict()["words"] and "attractor" not in str(other.verdict())
        assert json.dumps(other.verdict(), allow_nan=False)


def test_attrition_is_answered_with_the_median_horizon() -> None:
    found = life(Attrition(), [True, True, False], [True, False, False], [True, True, False]).verdict()
    assert found["answer"] == "For a finite horizon: longest with r, median 3 events"
    assert found["numbers"]["median horizon, r"]["best"] == 3


def test_the_longest_lasting_repair_is_told_apart_only_by_walks_of_the_same_seeds() -> None:
    def walks(name: str, ends: list[int]) -> list[Walk]:
        return [
            replace(made([True] * (end - 1) + [False] * (21 - end), [5] * 20, seed=seed), repair=name)
            for seed, end in enumerate(ends)
        ]

    def said(other: list[int]) -> tuple[str, dict[str, Any]]:
        both = Survival((*walks("a", [9, 10, 11, 12, 13]), *walks("b", other)), Regime(COUNT, 1, 20), 28)
        found = both.verdict()
        return found["answer"], found["numbers"]

    longest = "For a finite horizon: longest with a, median 11 events"
    assert said([8, 9, 10, 11, 12])[0] == longest
    assert said([3, 20, 10, 6, 15])[0] == f"{longest}, not told apart from b"
    numbers = said([7, 8, 8, 10, 11])[1]
    assert numbers["events that a lasts longer than b"]["best"] == pytest.approx(2.2)


def test_events_of_one_walk_do_not_count_as_independent() -> None:
    one = Endurance(tuple(made([True] * 40 if seed else [True, False] * 20, seed=seed) for seed in range(4)), 40)
    share = one.settled
    assert share is not None and share.best == 121 / 141
    assert wilson(121, 141).low > 0.75 > 0.4 > share.low


def resilience(gains: list[float]) -> Resilience:
    cost = {"examples": 1, "labels": 1, "forward_passes": 1, "backward_passes": 1, "multiply_adds": 1, "seconds": 1.0}
    rows = []
    for seed, gain in enumerate(gains):
        for rate, area in ((0.0, 0.5 + 0.1 * seed), (0.1, 0.5 + 0.1 * seed + gain)):
            rows.append({"rate": rate, "seed": seed, "area": area, "score": 0.9, "dead": 0, "cost": cost})
    return Resilience(tuple(rows))


@pytest.mark.parametrize(
    ("gains", "answer"),
    [
        ([0.02, 0.021, 0.019], "Yes, at 0.1 per event"),
        ([-0.02, -0.021, -0.019], "No, it costs resilience at 0.1 per event"),
        ([0.02, -0.021, 0.0], "No difference shown"),
        ([0.02], "Not tested: one seed has no interval"),
    ],
)
def test_turnover_builds_resilience_only_if_the_paired_interval_says_so(gains: list[float], answer: str) -> None:
    found = resilience(gains)
    assert found.verdict()["answer"] == answer
    assert found.gain(0.1).best == pytest.approx(sum(gains) / len(gains))
    assert json.dumps([found.verdict(), found.to_dict()], allow_nan=False)


def test_of_many_rates_one_must_stand_out_by_more() -> None:
    one = resilience([0.02, 0.01, 0.03, 0.002, 0.025])
    more = [{**row, "rate": rate} for rate in (0.2, 0.3, 0.4, 0.5) for row in one.rows if row["rate"] == 0.0]
    many = Resilience((*one.rows, *more))
    assert one.gain(0.1).low > 0 > many.gain(0.1).low
    assert one.gain(0.1).best == many.gain(0.1).best
    assert many.verdict()["answer"] == "No difference shown" and "for all rates together" in many.verdict()["words"]


def test_units_that_were_dead_when_networks_were_judged_are_not_denied() -> None:
    one = resilience([0.02, 0.01])
    assert "No unit was dead" in one.verdict()["words"]
    assert "At most 3 units were dead" in Resilience(tuple({**row, "dead": 3} for row in one.rows)).verdict()["words"]


# -------------------------------------------------------------------------------------------- whole studies


def test_repair_outlasts_no_repair_and_all_of_it_is_plain() -> None:
    net, task, retrain = clouds()
    found = survive(
        net,
        Damage(Silence(), RandomUnits()),
        {"none": leave, "retrain": retrain},
        task,
        events=8,
        dose=0.07,
        within=updates(15),
        seeds=range(3),
        tolerance=0.05,
    )
    assert found.units == 28
    assert found.repairs["retrain"].inside.best > found.repairs["none"].inside.best + 0.2
    assert found.repairs["retrain"].cost["backward_passes"] == 120
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["mode"] == "attrition" and record["unit"] == "fraction of units" and record["delay"] is None
    keys = {"repair", "retention", "survival", "median_horizon", "return_time", "returns", "autocorrelation", "inside"}
    assert keys | {"cost", "trajectories"} <= record["repairs"][0].keys()
    assert len(found.rows) == len(record["repairs"][0]["trajectories"]) + len(record["repairs"][1]["trajectories"])
    assert "finite horizon" in str(found) or "horizon of 8" in str(found)


def test_turnover_rates_get_the_same_budget_and_are_judged_with_nothing_dead() -> None:
    net, task, retrain = clouds()
    found = turnover_study(
        net, SHARE, retrain, task, rates=[0.1], events=6, delay=2, within=updates(5), seeds=[0, 1], draws=3
    )
    assert found.rates == (0.0, 0.1)
    assert {row["dead"] for row in found.rows} == {0}
    assert {row["cost"]["backward_passes"] for row in found.rows} == {30}
    record = found.to_dict()["rates"]
    assert record[0]["gain"] is None and record[1]["gain"]["best"] == pytest.approx(found.gain(0.1).best)
    assert found.gain(0.1).best == pytest.approx(found.area(0.1).best - found.area(0.0).best)
    assert "control" in str(found)


# ------------------------------------------------------------------------------------------------- bad input


def test_values_that_are_out_of_range_are_refused() -> None:
    net, task, _ = clouds()
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(InputError, match=r"Turnover\.delay"):
            Turnover(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="burn_in"):
        Turnover(2, burn_in=-1)
    for bad in ({"events": 0}, {"tolerance": -1}, {"tolerance": math.nan}, {"mode": "attrition"}, {"dose": -1}):
        with pytest.raises(InputError):
            survive(net, COUNT, {"none": leave}, task, **{"events": 3, "dose": 1, **bad})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="more events than the burn-in"):
        Regime(COUNT, 1, 5, Turnover(5))
    with pytest.raises(InputError, match=r"survive\(repairs\)"):
        survive(net, COUNT, {}, task, events=3, dose=1)
    with pytest.raises(InputError, match=r"survive\(seeds\)"):
        survive(net, COUNT, {"none": leave}, task, events=3, dose=1, seeds=[])
    with pytest.raises(InputError, match="rate above 0"):
        turnover_study(net, COUNT, leave, task, rates=[0], events=8)


def test_damage_that_makes_no_stream_is_refused_with_the_reason() -> None:
    net, task, _ = clouds()
    with pytest.raises(InputError, match="draws at random"):
        Regime(Damage(Silence(), RankedUnits(rank(net))), 0.1, 3)
    with pytest.raises(InputError, match="hits at least one"):
        walk(net, leave, task, Regime(SHARE, 0.01, 3))
    for harmless in (Damage(Noise(0.1), RandomUnits()), Damage(Silence(), RandomEntries())):
        with pytest.raises(InputError, match="kills units"):
            walk(net, leave, task, Regime(harmless, 0.1, 8, Turnover(2)))
        assert {one.dead for one in walk(net, leave, task, Regime(harmless, 0.1, 3)).events} == {0}


def test_schedules_and_repairs_that_revive_are_refused() -> None:
    net, task, retrain = clouds()
    with pytest.raises(InputError, match="flow"):
        survive(net, COUNT, {"iterative": Schedule(retrain, 2)}, task, events=3, dose=1)  # type: ignore[dict-item]
    with pytest.raises(InputError, match="Turnover"):
        survive(net, COUNT, {"regrow": after(Regrow(), retrain)}, task, events=3, dose=1)


def test_modes_are_values_that_read_back() -> None:
    for mode in (Attrition(), Turnover(3), Turnover(3, burn_in=4)):
        assert eval(repr(mode), {"Attrition": Attrition, "Turnover": Turnover}) == mode
