"""Damage: a fault at a site at a dose."""

from __future__ import annotations

import pytest
import torch

from cases import FAULTS, NETWORKS
from planaria.core.errors import AnatomyError, InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage, parse_damage
from planaria.damage.faults import Silence
from planaria.damage.sites import Dose, RandomEntries, RandomUnits


def test_every_fault_goes_with_every_site() -> None:
    net = NETWORKS["mlp-tanh"].network()
    for fault in FAULTS.values():
        for site in (RandomUnits(), RandomUnits(per_layer=True), RandomEntries()):
            assert Damage(fault, site).at(0.5)(net, stream(0, "x")).sha256 != net.sha256


def test_a_dose_off_its_axis_is_refused_before_anything_is_done() -> None:
    with pytest.raises(InputError, match=r"fraction of units from 0 to 1, got 1\.5"):
        Damage(Silence(), RandomUnits()).at(1.5)
    with pytest.raises(InputError, match="whole number of units"):
        Damage(Silence(), RandomUnits(Dose("units"))).at(2.5)


def test_full_dose_leaves_a_constant() -> None:
    case = NETWORKS["mlp-sigmoid"]
    dead = Damage(Silence(), RandomUnits()).at(1.0)(case.network(), stream(0, "x"))
    assert torch.allclose(dead(case.inputs(5)), dead.weights["4.bias"].expand(5, 3))


def test_a_network_on_another_device_is_damaged_there() -> None:
    net = NETWORKS["cnn-batchnorm"].network()
    hurt = Damage(Silence(), RandomUnits()).at(0.5)(net.to("cpu"), stream(0, "x"))
    assert {w.device.type for w in (*hurt.weights.values(), *hurt.plasticity.values())} == {"cpu"}


def test_damage_without_example_inputs_is_refused() -> None:
    net = Network.of(NETWORKS["mlp-relu"].build())
    for site in (RandomUnits(), RandomEntries()):
        with pytest.raises(AnatomyError, match=r"Network\.of\(model, inputs\)"):
            Damage(Silence(), site).at(0.5)(net, stream(0, "x"))


def test_a_damage_may_be_written_with_few_words() -> None:
    assert parse_damage("Damage(Silence(), RandomUnits())") == Damage(Silence(), RandomUnits())
    assert parse_damage("Damage(site=RandomUnits(layers=['a']), fault=Silence(False))") == Damage(
        Silence(False), RandomUnits(layers=("a",))
    )
