"""Law: a symmetry is one, whatever the architecture; and alignment finds a permuted copy back, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cases import NETWORKS, NetworkCase, hurt
from planaria.core.anatomy import Anatomy, flat
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.geometry.align import ByActivations, align
from planaria.geometry.symmetry import Symmetry, permute, symmetries
from purity import state, untouched

CASES = pytest.mark.parametrize("case", NETWORKS.values(), ids=str)


def order(symmetry: Symmetry, seed: int) -> Tensor:
    """A random order of its units that is not the one they have."""
    drawn = torch.randperm(symmetry.size, generator=stream(seed, "order", symmetry.name))
    return drawn.roll(1) if torch.equal(drawn, torch.arange(symmetry.size)) else drawn


def shuffled(net: Network, seed: int) -> Network:
    return permute(net, {symmetry.name: order(symmetry, seed) for symmetry in symmetries(net)})


def apart(net: Network, other: Network, inputs: Tensor) -> float:
    ours, theirs = flat(net(inputs)), flat(other(inputs))
    return float((ours - theirs).abs().max() / ours.abs().max())


@CASES
def test_units_in_another_order_compute_the_same_on_inputs_never_seen(case: NetworkCase) -> None:
    net, inputs = case.network(), case.inputs(16, "fresh")
    ways = [inputs, *inputs[:2].split(1), inputs if case.tokens else -inputs]
    with untouched(net):
        known = symmetries(net)
        for symmetry in known:
            other = permute(net, {symmetry.name: order(symmetry, 1)})
            assert state(other) != state(net)
            assert all(apart(net, other, way) <= (1e-10 if case.double else 1e-5) for way in ways)
            assert {n for n, w in other.weights.items() if not torch.equal(w, net.weights[n])} <= {
                place.name for place in symmetry.places
            }


@CASES
def test_the_order_turned_back_is_the_network_bit_for_bit(case: NetworkCase) -> None:
    net = hurt(case)  # pins move with the entries that they pin
    orders = {symmetry.name: order(symmetry, 2) for symmetry in symmetries(net)}
    back = {name: drawn.argsort() for name, drawn in orders.items()}
    other = permute(net, orders)
    assert state(permute(other, back)) == state(net)
    for name, weight in other.weights.items():
        pinned, before = other.plasticity[name] == 0, net.plasticity[name] == 0
        assert torch.equal(weight[pinned].sort().values, net.weights[name][before].sort().values)


@CASES
def test_alignment_by_weights_finds_a_permuted_copy_back(case: NetworkCase) -> None:
    net = case.network()
    found = align(net, shuffled(net, 3))
    assert found.distance_after == 0.0 and state(found.network) == state(net)
    assert (found.distance_before > 0) == (len(found.symmetries) > 0)
    assert found.permutations.keys() == {symmetry.name for symmetry in symmetries(net)}


@CASES
def test_alignment_by_activations_finds_a_permuted_copy_back(case: NetworkCase) -> None:
    net = case.network()
    found = align(net, shuffled(net, 4), ByActivations(case.inputs(64, "unlabelled")))
    assert state(found.network) == state(net)
    assert all(value == pytest.approx(1.0, abs=1e-4) for value in found.correlation.values())


@CASES
def test_every_unit_of_the_anatomy_is_permuted_or_its_layer_is_named(case: NetworkCase) -> None:
    net = case.network()
    known = symmetries(net)
    places = {place.name for symmetry in known for place in symmetry.places}
    for group in Anatomy.of(net).groups:
        if group.count > 1:
            owned = {name for owners in group.owners.values() for name in owners}
            named = any(group.layer in layer or layer in group.layer for layer in known.left_out)
            assert owned & places or named, group.layer


@CASES
def test_symmetries_commute(case: NetworkCase) -> None:
    net = case.network()
    orders = {symmetry.name: order(symmetry, 5) for symmetry in symmetries(net)}
    together, one_by_one, turned = permute(net, orders), net, net
    for name in orders:
        one_by_one = permute(one_by_one, {name: orders[name]})
    for name in reversed(orders):
        turned = permute(turned, {name: orders[name]})
    assert state(together) == state(one_by_one) == state(turned)
