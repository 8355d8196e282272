"""Regrowing: the function stays, the new units are plastic and able to learn."""

from __future__ import annotations

import math

import pytest
import torch

from cases import NETWORKS, NetworkCase, hurt
from planaria.core.anatomy import Anatomy, Unit
from planaria.core.errors import InputError
from planaria.core.motion import settle, steps
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence, StuckAt
from planaria.damage.sites import RandomUnits, RankedUnits
from planaria.repair.regrow import Regrow
from planaria.repair.retrain import SGD, Retrain

CASES = pytest.mark.parametrize("case", NETWORKS.values(), ids=str)


def regrown(net: Network, others: float = 0.1, seed: int = 0) -> Network:
    return Regrow(others)(net, stream(seed, "regrow"))


@CASES
def test_regrowing_leaves_the_function_unchanged(case: NetworkCase) -> None:
    damaged, inputs = hurt(case, 0.5), case.inputs(6, "many")
    outputs = damaged(inputs)
    assert float((regrown(damaged)(inputs) - outputs).abs().max()) <= 1e-5 * float(outputs.abs().max())


@CASES
def test_no_unit_is_dead_afterwards(case: NetworkCase) -> None:
    anatomy = Anatomy.of(case.network())
    assert set(anatomy.living(regrown(hurt(case, 0.5)))) == set(anatomy.units())


@CASES
def test_without_dead_units_nothing_happens(case: NetworkCase) -> None:
    assert regrown(case.network()) is case.network()


@CASES
def test_entries_of_new_units_have_plasticity_one_and_the_rest_the_stated_share(case: NetworkCase) -> None:
    damaged = hurt(case, 0.5)
    anatomy = Anatomy.of(damaged)
    dead = anatomy.dead(damaged)
    new = anatomy.entries(u for u in anatomy.units() if bool(dead[u.layer][u.index])).all
    for others in (0.0, 0.25):
        grown = regrown(damaged, others)
        for name, plasticity in grown.plasticity.items():
            hit = new.get(name, torch.zeros_like(plasticity, dtype=torch.bool))
            assert bool((plasticity[hit] == 1).all())
            assert torch.allclose(plasticity[~hit], others * damaged.plasticity[name][~hit])


@CASES
def test_old_entries_keep_their_values(case: NetworkCase) -> None:
    damaged = hurt(case, 0.5)
    grown = regrown(damaged)
    for name, weight in damaged.weights.items():
        free = damaged.plasticity[name] != 0
        assert torch.equal(grown.weights[name][free], weight[free])


LEARNERS = [
    case for case in NETWORKS.values() if any(g[2] != "incoming" and g[1] != "head" for g in case.units.values())
]


@pytest.mark.parametrize("case", LEARNERS, ids=str)
@pytest.mark.parametrize("others", [0.0, 0.1])
def test_new_units_learn(case: NetworkCase, others: float) -> None:
    inputs = case.inputs(24, "train")
    for layer, (count, kind, exact) in case.units.items():
        if exact == "incoming" or kind == "head":
            continue
        units = tuple(Unit(layer, index) for index in range(0, count, 2))
        damaged = Damage(Silence(), RankedUnits(units)).at(1.0)(case.network(), stream(0, "x"))
        grown = regrown(damaged, others)
        end = settle(Retrain(case.task(), SGD(0.05, momentum=0.9), batch=8), steps(25))(grown, stream(1, "x"))
        learnt = 0
        for unit in units:
            without = Damage(Silence(), RankedUnits((unit,))).at(1.0)(end, stream(0, "x"))
            learnt += float((without(inputs) - end(inputs)).abs().max()) > 1e-4
        assert learnt >= math.ceil(len(units) / 2), f"{layer}: {learnt} of {len(units)} new units do anything"


def test_a_new_unit_starts_as_torch_would_start_it() -> None:
    net = NETWORKS["cnn-batchnorm"].network()
    units = tuple(Unit("4", index) for index in range(5))
    grown = regrown(Damage(Silence(), RankedUnits(units)).at(1.0)(net, stream(0, "x")))
    bound = 1 / math.sqrt(4 * 9)
    fresh = grown.weights["4.weight"]
    assert bool((fresh.abs() <= bound).all())
    assert float(fresh.abs().max()) > 0.8 * bound
    assert float(fresh.std()) == pytest.approx(bound / math.sqrt(3), rel=0.15)
    assert bool((grown.weights["5.weight"] == 1).all()), "the normalisation's scale starts at 1"
    assert bool((grown.weights["5.bias"] == 0).all())
    assert bool((grown.weights["8.weight"] == 0).all()), "nobody listens yet"


def test_layers_that_were_replaced_as_a_whole_can_learn() -> None:
    case = NETWORKS["mlp-tanh"]
    dead = Damage(Silence(), RandomUnits()).at(1.0)(case.network(), stream(0, "x"))
    end = settle(Retrain(case.task(), SGD(0.2), batch=24), steps(60))(regrown(dead), stream(1, "x"))
    assert not torch.allclose(end(case.inputs(5)), end(case.inputs(5, "other")), atol=1e-3), "a constant"


def test_stuck_units_are_replaced_too() -> None:
    net = NETWORKS["mlp-tanh"].network()
    stuck = Damage(StuckAt(0.5), RandomUnits()).at(0.5)(net, stream(0, "x"))
    anatomy = Anatomy.of(net)
    assert len(anatomy.living(stuck)) < len(anatomy.units())
    assert set(anatomy.living(regrown(stuck))) == set(anatomy.units())


def test_regrowing_twice_multiplies_the_plasticity_of_old_units_once_per_growth() -> None:
    net = NETWORKS["mlp-relu"].network()
    once = regrown(Damage(Silence(), RankedUnits((Unit("0", 0),))).at(1.0)(net, stream(0, "x")), 0.5)
    twice = regrown(Damage(Silence(), RankedUnits((Unit("0", 1),))).at(1.0)(once, stream(0, "x")), 0.5)
    assert twice.plasticity["0.bias"].tolist() == [0.5, 1.0, 0.25, 0.25, 0.25, 0.25, 0.25]


def test_units_that_cannot_learn_are_named_in_the_documentation() -> None:
    assert "never learn" in " ".join((Regrow.__doc__ or "").split())


@pytest.mark.parametrize("others", [-0.1, float("nan"), float("inf"), "x"])
def test_the_plasticity_of_old_units_is_a_finite_number_of_at_least_zero(others: object) -> None:
    with pytest.raises(InputError, match=r"Regrow\.others"):
        Regrow(others)  # type: ignore[arg-type]
