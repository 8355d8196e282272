"""Law: a network without its dead units computes the same, and what cannot be cut out is named."""

from __future__ import annotations

import pytest

from cases import NETWORKS, NetworkCase, hurt, shifted
from cases import OPERATORS as ROWS
from planaria.core.anatomy import Anatomy, flat
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence, StuckAt
from planaria.damage.sites import RandomUnits
from planaria.sweep.compact import Compact, compact
from purity import untouched

CASES = pytest.mark.parametrize("case", NETWORKS.values(), ids=str)


def checked(net: Network, case: NetworkCase) -> Compact:
    """Compact it, with everything that must hold of any result."""
    with untouched(net):
        small = compact(net)
    inputs = case.inputs(16, "fresh")
    before, after = flat(net(inputs)), flat(small.network(inputs))
    assert float((before - after).abs().max()) <= 1e-5 * float(before.abs().max())
    assert float((flat(small.module(inputs)).detach() - after).abs().max()) <= 1e-5 * float(before.abs().max())
    assert (small.network is net) == (small.units_removed == 0)
    assert small.parameters <= small.parameters_before == net.parameters
    assert (small.parameters < net.parameters) == (small.units_removed > 0)
    assert small.network.plasticity.keys() == small.network.weights.keys()
    for name, weight in small.network.weights.items():
        assert small.network.plasticity[name].shape == weight.shape
    for group in Anatomy.of(net).groups:
        left, gone = small.remaining[group.layer], small.removed.get(group.layer, ())
        assert sorted((*left, *gone)) == list(range(group.count)) and left
    return small


@CASES
def test_compacting_a_damaged_network_keeps_its_outputs(case: NetworkCase) -> None:
    net = hurt(case)
    small = checked(net, case)
    dead = Anatomy.of(net).dead(net)
    for layer, units in dead.items():
        gone = small.removed.get(layer, ())
        assert layer in small.kept or set(units.nonzero().flatten().tolist()) <= set(gone)
    again = compact(small.network)
    assert again.units_removed == 0


@CASES
def test_an_intact_network_stays_what_it_is(case: NetworkCase) -> None:
    small = checked(case.network(), case)
    assert small.network is case.network() and not small.kept and small.difference == 0.0


@CASES
def test_compacting_after_a_repair_keeps_its_outputs(case: NetworkCase) -> None:
    repaired = ROWS["cycle"].make(case)(case.network(), stream(case.seed, "repair"))
    struck = Damage(Silence(), RandomUnits()).at(0.2)(case.network(), stream(case.seed, "repair"))
    assert checked(repaired, case).removed == compact(struck).removed


@CASES
def test_units_that_are_stuck_at_a_value_stay(case: NetworkCase) -> None:
    if not shifted(case).layers:
        pytest.skip("gated and recurrent units have no shift to hold a value")
    net = Damage(StuckAt(0.7), shifted(case)).at(0.5)(case.network(), stream(case.seed, "stuck"))
    small = checked(net, case)
    assert not small.removed and small.kept


@CASES
def test_a_network_of_dead_units_is_still_a_module(case: NetworkCase) -> None:
    everything = RandomUnits(kinds=Anatomy.of(case.network()).kinds)
    net = Damage(Silence(), everything).at(1.0)(case.network(), stream(0, "all"))
    small = checked(net, case)
    assert small.kept.keys() == {group.layer for group in Anatomy.of(net).groups}
