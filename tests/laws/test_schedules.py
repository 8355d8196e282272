"""Law: batch and iterative repair are two ends of one schedule, with one lesion and one budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch
from torch import Generator

from cases import FAULTS, trained
from planaria.core.anatomy import Anatomy
from planaria.core.errors import InputError
from planaria.core.motion import Budget, Cost, Moment, after, examples, multiply_adds, settle, steps, updates
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Noise, Silence
from planaria.damage.sites import Dose, RandomEntries, RandomUnits
from planaria.repair.refit import Refit, Sidecar
from planaria.repair.regrow import Regrow
from planaria.repair.retrain import SGD, Retrain
from planaria.study.rescue import Attempt, Criterion, attempt, rescue
from planaria.study.schedule import Beforehand, Schedule, leave
from purity import state

SILENT = Damage(Silence(), RandomUnits())
LOOKS = Criterion(every=4)


def tried(repair: object, damage: Damage = SILENT, dose: float = 0.6, **options: object) -> Attempt:
    net, task = trained("clouds")
    return attempt(net, damage, dose, repair, task, **{"criterion": LOOKS, **options})  # type: ignore[arg-type]


def retrain(rate: float = 0.05) -> Retrain:
    return Retrain(trained("clouds")[1], SGD(rate), batch=16)


def timeless(cost: Cost) -> Cost:
    return replace(cost, seconds=0.0)


def story(one: Attempt) -> object:
    looks = [(timeless(look.cost), look.validation, look.dead) for look in one.looks]
    return (state(one.network), timeless(one.cost), looks, one.hit, one.damaged, one.after, one.rescued)


def test_a_schedule_of_one_bite_is_batch_repair() -> None:
    assert story(tried(Schedule(retrain(), 1), within=updates(12))) == story(tried(retrain(), within=updates(12)))


def test_the_same_seed_is_the_same_attempt_and_another_is_not() -> None:
    one = tried(retrain(), within=updates(12), seed=1)
    assert story(tried(retrain(), within=updates(12), seed=1)) == story(one)
    assert story(tried(retrain(), within=updates(12), seed=2)) != story(one)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
@pytest.mark.parametrize("bites", [2, 3, 7])
def test_the_lesion_of_a_schedule_is_the_batch_lesion(fault: object, bites: int) -> None:
    damage = Damage(fault, RandomUnits())  # type: ignore[arg-type]
    whole, bitten = tried(leave, damage).network, tried(Schedule(leave, bites), damage).network
    if not isinstance(fault, Noise):
        assert state(bitten) == state(whole)
    # Noise is relative to the size of the weights at the time of the hit: the place is the same, the size is not.
    assert state(bitten)[1] == state(whole)[1]
    for name, weight in trained("clouds")[0].weights.items():
        assert torch.equal(bitten.weights[name] != weight, whole.weights[name] != weight)


@pytest.mark.parametrize("site", [RandomUnits(Dose("units")), RandomUnits(per_layer=True), RandomEntries()], ids=repr)
@pytest.mark.parametrize("bites", [1, 2, 5])
def test_the_lesion_ends_the_same_after_repairs_in_between(site: object, bites: int) -> None:
    damage = Damage(Silence(), site)  # type: ignore[arg-type]
    dose = 9 if isinstance(site, RandomUnits) and not site.dose.relative else 0.4
    one = tried(Schedule(retrain(), bites), damage, dose, within=updates(10))
    whole = damage.at(dose)(trained("clouds")[0], stream(0, "lesion"))
    assert state(one.network)[1] == state(whole)[1]
    for name, plasticity in whole.plasticity.items():
        assert bool((one.network.weights[name][plasticity == 0] == 0).all())


def test_every_repair_meets_the_same_lesion() -> None:
    net, task = trained("clouds")
    repairs = {"a": leave, "b": retrain(), "c": Schedule(retrain(), 3)}
    result = rescue(net, SILENT, repairs, task, doses=[0.3, 0.6], seeds=[0, 1], within=updates(6), criterion=LOOKS)
    for dose in (0.3, 0.6):
        for seed in (0, 1):
            cell = [a for a in result.attempts if (a.dose, a.seed) == (dose, seed)]
            assert len(cell) == 3
            assert len({a.damaged for a in cell}) == 1
            assert len({state(a.network)[1] for a in cell}) == 1
            assert len({a.units_deleted for a in cell}) == 1


@pytest.mark.parametrize("bites", [3, 10])
@pytest.mark.parametrize("of", ["backward_passes", "examples", "multiply_adds", "moments"])
def test_batch_and_iterative_repair_spend_the_same(bites: int, of: str) -> None:
    step = next(iter(retrain()(trained("clouds")[0], stream(0, "x")))).cost
    amount = 200 * (1 if of == "moments" else getattr(step, of))
    one, other = (tried(repair, within=Budget(amount, of)).cost for repair in (retrain(), Schedule(retrain(), bites)))
    for field in fields(Cost):
        if field.name != "seconds":
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert abs(a - b) <= 0.01 * max(a, b)


@pytest.mark.parametrize("bites", [1, 4, 10])
@pytest.mark.parametrize("budget", [updates(0), updates(5), examples(33), multiply_adds(7000)])
def test_no_schedule_spends_more_than_its_budget_and_one_step(bites: int, budget: Budget) -> None:
    step = next(iter(retrain()(trained("clouds")[0], stream(0, "x")))).cost
    cost = tried(Schedule(retrain(), bites), within=budget).cost
    assert getattr(cost, budget.of) < budget.amount + getattr(step, budget.of)


def test_surgery_counts_for_nothing_and_retraining_after_it_gets_the_whole_budget() -> None:
    for repair in (retrain(), after(Regrow(), retrain())):
        assert tried(repair, within=updates(10)).cost.backward_passes == 10


def test_a_refit_before_retraining_is_paid_for() -> None:
    net, task = trained("clouds")
    flow = Refit(Sidecar.of(net, task.train.inputs))
    plain, both = tried(retrain(), within=updates(10)), tried(after(settle(flow), retrain()), within=updates(10))
    refit = tried(flow)
    assert refit.cost.backward_passes == 0
    assert refit.cost.multiply_adds > 0
    assert both.cost.multiply_adds == plain.cost.multiply_adds + refit.cost.multiply_adds


def test_both_countings_are_in_the_record() -> None:
    row = tried(Schedule(retrain(), 4), within=updates(40), criterion=Criterion(0.5, 1, every=2)).row()
    assert row["cost"]["backward_passes"] == 40
    assert row["cost_since_last_hit"]["backward_passes"] == 10
    assert row["rescue_cost"]["backward_passes"] - row["rescue_cost_since_last_hit"]["backward_passes"] == 30


def test_damage_grows_bite_by_bite_while_the_repair_goes_on() -> None:
    one = tried(Schedule(retrain(), 3), within=updates(12), dose=0.6)
    shares = [look.dead for look in one.looks]
    assert shares == sorted(shares)
    assert len(set(shares)) == 3
    total = len(Anatomy.of(trained("clouds")[0]).units())
    assert shares[-1] == Dose().count(0.6, total) / total
    assert one.units_deleted == Dose().count(0.6, total)


def test_what_was_dead_before_the_study_is_not_counted_as_deleted() -> None:
    net, task = trained("clouds")
    older = SILENT.at(0.25)(net, stream(9, "older"))
    one = attempt(older, SILENT, 0.25, leave, task, criterion=LOOKS)
    total = len(Anatomy.of(net).units())
    assert one.units_deleted == Dose().count(0.25, total)


def test_a_schedule_without_bites_is_refused() -> None:
    with pytest.raises(InputError, match=r"Schedule\.bites.*at least 1"):
        Schedule(leave, 0)


def test_a_budget_of_steps_is_shared_out_evenly_over_the_bites() -> None:
    spent: list[int] = []

    def counting(net: Network, rng: Generator, /) -> Iterator[Moment]:
        spent.append(0)
        for moment in retrain()(net, rng):
            spent[-1] += 1
            yield moment

    tried(Schedule(counting, 4), within=steps(40))
    assert spent == [10, 10, 10, 10]


def test_repairs_may_not_disturb_the_lesion() -> None:
    def vandal(net: Network, rng: Generator, /) -> Iterator[Moment]:
        torch.rand(5, generator=rng)
        yield Moment(net.with_weights({n: w + 1 for n, w in net.weights.items() if "weight" in n}), Cost(1))

    one = tried(Schedule(vandal, 3), within=examples(10))
    whole = SILENT.at(0.6)(trained("clouds")[0], stream(0, "lesion"))
    assert state(one.network)[1] == state(whole)[1]


def test_a_passing_fault_hits_once() -> None:
    def lift(net: Network, rng: Generator, /) -> Iterator[Moment]:
        yield Moment(net.with_weights({name: w + 1.0 for name, w in net.weights.items()}), Cost(examples=1))

    net = trained("clouds")[0]
    damage = Damage(Silence(lasting=False), RandomUnits())
    one = tried(Schedule(lift, 2), damage, 0.6)
    early, whole = (damage.site.units(net, dose, stream(0, "lesion")) for dose in (0.3, 0.6))  # type: ignore[attr-defined]
    anatomy = Anatomy.of(net)
    late = anatomy.entries(set(whole) - set(early)).all
    for name, hit in anatomy.entries(early).all.items():
        alone = hit & ~late.get(name, torch.zeros_like(hit))
        assert bool((one.network.weights[name][alone] == 2.0).all()), "hit, lifted twice"
    for name, hit in late.items():
        assert bool((one.network.weights[name][hit] == 1.0).all()), "hit last, lifted once"


# ------------------------------------------------------------------------- controls: the budget spent beforehand


def endless(net: Network, rng: Generator, /) -> Iterator[Moment]:
    """Spends updates and does nothing."""
    del rng
    count = 0
    while True:
        count += 1
        yield Moment(net, Cost(backward_passes=count))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_the_lesion_after_training_beforehand_is_the_batch_lesion(fault: object) -> None:
    damage = Damage(fault, RandomUnits())  # type: ignore[arg-type]
    whole = tried(leave, damage)
    idle, taught = (tried(Beforehand(flow, 0.5, leave), damage, within=updates(10)) for flow in (endless, retrain()))
    assert state(idle.network) == state(whole.network)
    assert state(taught.network)[1] == state(whole.network)[1]
    assert taught.damaged == whole.damaged
    assert taught.units_deleted == whole.units_deleted


@pytest.mark.parametrize("site", [RandomUnits(Dose("units")), RandomUnits(per_layer=True), RandomEntries()], ids=repr)
def test_training_beforehand_does_not_move_the_lesion(site: object) -> None:
    damage = Damage(Silence(), site)  # type: ignore[arg-type]
    dose = 9 if isinstance(site, RandomUnits) and not site.dose.relative else 0.4
    one = tried(Beforehand(retrain(), 0.7, retrain()), damage, dose, within=updates(10))
    whole = damage.at(dose)(trained("clouds")[0], stream(0, "lesion"))
    assert state(one.network)[1] == state(whole)[1]
    for name, plasticity in whole.plasticity.items():
        assert bool((one.network.weights[name][plasticity == 0] == 0).all())


@pytest.mark.parametrize("bites", [1, 2, 5, 10])
def test_a_control_spends_as_much_before_and_after_the_last_hit_as_the_schedule(bites: int) -> None:
    schedule = tried(Schedule(retrain(), bites), within=updates(40))
    control = tried(Beforehand(retrain(), (bites - 1) / bites, retrain()), within=updates(40))
    assert control.cost.backward_passes == schedule.cost.backward_passes == 40
    assert control.last_hit.backward_passes == schedule.last_hit.backward_passes == 40 - 40 // bites


def test_before_the_lesion_nothing_is_dead_and_after_it_all_of_it_is() -> None:
    one = tried(Beforehand(retrain(), 0.5, retrain()), within=updates(24))
    assert {look.dead for look in one.looks[: one.hit]} == {0.0}
    assert len({look.dead for look in one.looks[one.hit :]}) == 1
    assert one.looks[one.hit].dead > 0
    assert one.looks[0].validation == one.validation_before


def test_training_beforehand_is_no_rescue() -> None:
    one = tried(Beforehand(endless, 0.5, endless), dose=0.9, within=updates(40), criterion=Criterion(0.05, 1, 2))
    assert one.looks[0].validation >= one.target
    assert not one.rescued
    free = tried(Beforehand(endless, 0.5, endless), dose=0.0, within=updates(40), criterion=Criterion(0.05, 1, 2))
    assert free.rescue_cost is not None
    assert free.rescue_cost.backward_passes == 20  # counted in total, and the training was part of it
    assert free.row()["rescue_cost_since_last_hit"]["backward_passes"] == 0


def test_what_training_that_ends_early_leaves_over_goes_to_the_repair() -> None:
    one = tried(Beforehand(leave, 0.9, retrain()), within=updates(20))
    assert one.cost.backward_passes == 20
    assert one.last_hit.backward_passes == 0


def test_a_repair_that_is_dearer_than_its_share_waits_until_it_is_paid_for() -> None:
    runs: list[int] = []

    def dear(net: Network, rng: Generator, /) -> Iterator[Moment]:
        runs.append(1)
        yield Moment(net, Cost(backward_passes=100))

    one = tried(Schedule(dear, 4), within=updates(200))  # shares of 50
    assert one.cost.backward_passes == 200 == 100 * len(runs)
    assert tried(dear, within=updates(200)).cost.backward_passes == 100  # it ends by itself


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_the_budget_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=r"Beforehand\.share.*from 0 to 1"):
        Beforehand(leave, share, leave)
