"""Law: dose 0 is the identity, a dose counts what its unit says, smaller lesions lie inside larger ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cases import FAULTS, NETWORKS, SITES, NetworkCase, shifted
from planaria.core.anatomy import Anatomy, Unit
from planaria.core.errors import AnatomyError, InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Noise, Silence, StuckAt
from planaria.damage.sites import DOSES, Dose, RandomEntries, RandomUnits, RankedUnits, rank
from purity import state

CASES = pytest.mark.parametrize("case", NETWORKS.values(), ids=str)
UNIT_SITES = [name for name in SITES if not name.startswith("entries")]


def dead_units(net: Network) -> set[Unit]:
    anatomy = Anatomy.of(net)
    return set(anatomy.units()) - set(anatomy.living(net))


def cut_off(net: Network, unit: Unit, dead: set[Unit]) -> bool:
    """Whether a unit without a shift of its own reads from dead units only, and so is dead with them."""
    anatomy = Anatomy.of(net)
    own, gone = anatomy.entries([unit]), anatomy.entries(dead).all
    return not own.shift and all(bool(gone[name][hit].all()) for name, hit in own.incoming.items())


def amounts(dose: Dose, total: int) -> list[float]:
    return [0.0, 0.2, 0.5, 0.77, 1.0] if dose.relative else [0, 1, 2, total, total + 3]


@CASES
def test_dose_zero_is_the_identity(case: NetworkCase) -> None:
    net = case.network()
    for make in SITES.values():
        for fault in FAULTS.values():
            damage = Damage(fault, make(case))
            assert damage.at(0)(net, stream(0, "x")) is net, damage


@CASES
def test_noise_of_no_strength_is_the_identity_on_the_function(case: NetworkCase) -> None:
    net = case.network()
    assert Damage(Noise(0.0), RandomUnits()).at(1.0)(net, stream(0, "x")).sha256 == net.sha256


@CASES
def test_a_dose_counts_units(case: NetworkCase) -> None:
    net = case.network()
    anatomy = Anatomy.of(net)
    for name in UNIT_SITES:
        site = SITES[name](case)
        kinds = anatomy.kinds if "ranked" in name else getattr(site, "kinds", None)
        groups = anatomy.select(kinds, getattr(site, "layers", None))
        pools = [[g] for g in groups] if getattr(site, "per_layer", False) else [list(groups)]
        for amount in amounts(site.dose, sum(g.count for g in groups)):
            chosen = set(site.units(net, amount, stream(1, "x")))  # type: ignore[attr-defined]
            for pool in pools:
                total = sum(g.count for g in pool)
                expected = math.floor(amount * total + 0.5) if site.dose.relative else min(int(amount), total)
                assert sum(unit.layer in {g.layer for g in pool} for unit in chosen) == expected, name
            dead = dead_units(Damage(Silence(), site).at(amount)(net, stream(1, "x")))
            assert chosen <= dead, name
            assert all(cut_off(net, unit, chosen) for unit in dead - chosen), name


@CASES
def test_a_dose_counts_entries(case: NetworkCase) -> None:
    net = case.network()
    for name in set(SITES) - set(UNIT_SITES):
        site = SITES[name](case)
        everything = site.select(net, 1.0 if site.dose.relative else 10**9, stream(0, "x")).all
        total = sum(int(hit.sum()) for hit in everything.values())
        assert 0 < total <= sum(w.numel() for w in net.weights.values() if w.ndim > 1)
        for amount in amounts(site.dose, total):
            hurt = Damage(Silence(), site).at(amount)(net, stream(1, "x"))
            pinned = {n: p == 0 for n, p in hurt.plasticity.items() if "tap_" not in n}
            expected = math.floor(amount * total + 0.5) if site.dose.relative else min(int(amount), total)
            assert sum(int(hit.sum()) for hit in pinned.values()) == expected, name
            assert all(bool((hurt.weights[n][hit] == 0).all()) for n, hit in pinned.items())


@CASES
def test_smaller_lesions_lie_inside_larger_ones(case: NetworkCase) -> None:
    net = case.network()
    sites = {name: make(case) for name, make in SITES.items()}

    @settings(max_examples=20, deadline=None)
    @given(st.sampled_from(sorted(sites)), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31))
    def check(name: str, a: float, b: float, seed: int) -> None:
        site = sites[name]
        low, high = sorted((a, b) if site.dose.relative else (float(int(a * 12)), float(int(b * 12))))
        small = site.select(net, low, stream(seed, "x")).all
        large = site.select(net, high, stream(seed, "x")).all
        for weight, hit in small.items():
            assert not bool((hit & ~large.get(weight, torch.zeros_like(hit))).any())

    check()


@CASES
def test_a_larger_lesion_does_to_the_smaller_ones_entries_what_the_smaller_did(case: NetworkCase) -> None:
    net = case.network()
    for fault in ("silence", "noise", "noise-lasting"):
        for site in (RandomUnits(kinds=Anatomy.of(net).kinds), RandomEntries()):
            damage = Damage(FAULTS[fault], site)
            small, large = (damage.at(dose)(net, stream(4, "x")) for dose in (0.2, 0.7))
            for name, hit in site.select(net, 0.2, stream(4, "x")).all.items():
                assert torch.equal(small.weights[name][hit], large.weights[name][hit]), (damage, name)


@CASES
def test_a_second_hit_never_hits_the_dead(case: NetworkCase) -> None:
    net = case.network()
    total = sum(group.count for group in Anatomy.of(net).select())
    once = Damage(Silence(), RandomUnits()).at(0.5)
    number = Dose().count(0.5, total)
    first = once(net, stream(1, "x"))
    second = once(first, stream(2, "x"))
    third = once(second, stream(3, "x"))
    counts = [len(dead_units(n) - branches(net)) for n in (first, second, third)]
    assert counts == [number, min(2 * number, total), min(3 * number, total)]
    assert dead_units(first) <= dead_units(second) <= dead_units(third)


def branches(net: Network) -> set[Unit]:
    """Units that no default site draws."""
    anatomy = Anatomy.of(net)
    drawn = {group.layer for group in anatomy.select()}
    return {unit for unit in anatomy.units() if unit.layer not in drawn}


@CASES
def test_edges_are_drawn_without_replacement_too(case: NetworkCase) -> None:
    net = case.network()
    damage = Damage(Silence(), RandomEntries(Dose("entries")))
    total = sum(int(hit.sum()) for hit in damage.site.select(net, 10**9, stream(0, "x")).all.values())

    def pinned(now: Network) -> int:
        return sum(int((p == 0).sum()) for n, p in now.plasticity.items() if "tap_" not in n)

    now = net
    for turn in range(3):
        now = damage.at(total // 2)(now, stream(turn, "x"))
        assert pinned(now) == min((turn + 1) * (total // 2), total)


@CASES
def test_only_weights_that_are_multiplied_with_an_activation_are_edges(case: NetworkCase) -> None:
    net = case.network()
    edges = RandomEntries().select(net, 1.0, stream(0, "x")).all
    for name in edges:
        last = name.rpartition(".")[2]
        assert not last.startswith(("b_", "bias", "tap_")), f"{name} is no matrix of edges"


def test_stuck_units_do_not_count_as_living() -> None:
    case = NETWORKS["mlp-tanh"]
    net = case.network()
    stuck = Damage(StuckAt(0.3), RandomUnits(Dose("units"))).at(5)(net, stream(0, "x"))
    assert len(dead_units(stuck)) == 5
    again = Damage(Silence(), RandomUnits(Dose("units"))).at(4)(stuck, stream(1, "x"))
    assert len(dead_units(again)) == 9


def test_passing_faults_leave_units_alive_and_plastic() -> None:
    case = NETWORKS["mlp-tanh"]
    net = case.network()
    for fault in (FAULTS["silence-passing"], FAULTS["stuck-passing"], FAULTS["noise"]):
        hurt = Damage(fault, shifted(case)).at(1.0)(net, stream(0, "x"))
        assert hurt.sha256 != net.sha256
        assert state(hurt)[1] == state(net)[1]
        assert dead_units(hurt) == set()


def test_a_unit_at_zero_that_may_still_move_is_alive() -> None:
    net = NETWORKS["mlp-gelu-no-bias"].network()
    zeroed = Damage(Silence(lasting=False), RandomUnits()).at(1.0)(net, stream(0, "x"))
    assert bool((zeroed.weights["0.weight"] == 0).all())
    assert dead_units(zeroed) == set()


def test_per_layer_doses_take_the_same_share_of_every_layer() -> None:
    net = NETWORKS["cnn-batchnorm"].network()
    dead = Anatomy.of(net).dead(Damage(Silence(), RandomUnits(per_layer=True)).at(0.5)(net, stream(0, "x")))
    assert {layer: int(d.sum()) for layer, d in dead.items()} == {"0": 2, "4": 3, "8": 3}


def test_units_are_drawn_evenly_over_units_not_over_layers() -> None:
    net = NETWORKS["mlp-relu"].network()
    drawn = [RandomUnits(Dose("units")).units(net, 1, stream(seed, "x"))[0].layer for seed in range(600)]
    share = drawn.count("0") / 600
    assert abs(share - 7 / 12) < 0.06


# ------------------------------------------------------------------------------------------------- the axis


@given(st.sampled_from(DOSES), st.floats(allow_nan=True, allow_infinity=True))
@settings(max_examples=60, deadline=None)
def test_an_amount_off_its_axis_is_an_input_error(unit: str, amount: float) -> None:
    dose = Dose(unit)
    good = 0 <= amount <= 1 if dose.relative else amount >= 0 and math.isfinite(amount) and amount == int(amount)
    if good:
        assert dose.check(amount) == amount
        assert 0 <= dose.count(amount, 7) <= 7
    else:
        with pytest.raises(InputError, match="dose"):
            dose.check(amount)


@given(st.floats(0, 1), st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_a_fraction_is_the_nearest_whole_number_of_units(amount: float, of: int) -> None:
    assume(abs(amount * of % 1 - 0.5) > 1e-9)
    assert Dose().count(amount, of) == round(amount * of)


def test_the_ends_of_a_fraction_are_none_and_all() -> None:
    assert [Dose().count(end, 13) for end in (0.0, 1.0)] == [0, 13]


@pytest.mark.parametrize("amount", ["half", None, [0.5]])
def test_an_amount_that_is_no_number_is_an_input_error(amount: object) -> None:
    with pytest.raises(InputError):
        Damage(Silence(), RandomUnits()).at(amount)  # type: ignore[arg-type]


def test_sites_refuse_doses_of_the_other_sort() -> None:
    for site, unit in ((RandomUnits, "entries"), (RandomEntries, "units")):
        with pytest.raises(InputError, match=r"dose that counts"):
            site(Dose(unit))
    with pytest.raises(InputError, match="dose that counts units"):
        RankedUnits((), Dose("fraction of entries"))
    with pytest.raises(InputError, match="'epsilon'"):
        Dose("epsilon")


def test_a_ranking_lists_every_unit_once_and_only_existing_ones() -> None:
    net = NETWORKS["mlp-relu"].network()
    assert sorted(rank(net)) == sorted(Anatomy.of(net).units())
    with pytest.raises(InputError, match=r"every unit once.*index=1\) twice"):
        RankedUnits((Unit("0", 1), Unit("0", 2), Unit("0", 1)))
    with pytest.raises(AnatomyError, match=r"Unit\('0', 9\)"):
        Damage(Silence(), RankedUnits((Unit("0", 9),))).at(1.0)(net, stream(0, "x"))
