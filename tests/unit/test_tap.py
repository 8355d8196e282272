"""Taps: units at the output of any module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import NETWORKS, NetworkCase
from planaria.core.anatomy import Anatomy, Unit
from planaria.core.errors import AnatomyError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.tap import tap
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence, StuckAt
from planaria.damage.sites import RankedUnits
from purity import state

# `functional` has no modules to tap.
UNTAPPED = [case for case in NETWORKS.values() if not case.taps and case.name != "functional"]


def outputs_of(net: Network, layer: str, inputs: Tensor) -> list[Tensor]:
    """What a module gives at each of its calls."""
    module, seen = net.to_module(), []
    module.get_submodule(layer).register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        module(inputs)
    return seen


def first_module(net: Network) -> str:
    return next(name for name, part in net.module.named_modules() if name and not list(part.children()))


@pytest.mark.parametrize("case", UNTAPPED, ids=str)
def test_a_tapped_network_is_the_same_function_with_units_that_verify(case: NetworkCase) -> None:
    net, inputs = case.network(), case.inputs(5, "many")
    layer = first_module(net)
    tapped = tap(net, [layer])
    assert torch.equal(tapped(inputs), net(inputs))
    anatomy = Anatomy.of(tapped)
    (group,) = [g for g in anatomy.groups if g.kind == "tap"]
    assert (group.layer, group.method) == (layer, "tap")
    anatomy.verify(tapped)
    with torch.no_grad():
        assert torch.allclose(tapped.to_module()(inputs), net(inputs), atol=1e-6)


def test_taps_are_pinned_and_tapping_twice_is_tapping_once() -> None:
    net = NETWORKS["cnn-batchnorm"].network()
    once = tap(net, ["2"])
    assert bool((once.plasticity["2.tap_gain"] == 0).all())
    assert bool((once.plasticity["2.tap_offset"] == 0).all())
    twice = tap(once, ["2"])
    assert state(twice) == state(once)
    assert torch.equal(twice(NETWORKS["cnn-batchnorm"].inputs(3)), net(NETWORKS["cnn-batchnorm"].inputs(3)))


def test_a_tap_leaves_damage_and_plasticity_of_the_network_in_place() -> None:
    case = NETWORKS["mlp-relu"]
    damaged = Damage(Silence(), RankedUnits((Unit("0", 1),))).at(1.0)(case.network(), stream(0, "x"))
    tapped = tap(damaged, ["3"])
    for name in damaged.weights:
        assert torch.equal(tapped.plasticity[name], damaged.plasticity[name])
        assert torch.equal(tapped.weights[name], damaged.weights[name])
    assert Unit("0", 1) not in Anatomy.of(tapped).living(tapped)


@pytest.mark.parametrize(
    ("name", "layer", "units"),
    [
        ("cnn-batchnorm", "2", 4),
        ("conv1d", "0", 4),
        ("mlp-relu", "1", 7),
        ("transformer-post-norm", "encoder.layers.0", 8),
        ("lstm-tapped", "fc1", 4),
    ],
)
def test_a_unit_is_a_channel_of_the_output(name: str, layer: str, units: int) -> None:
    net = tap(NETWORKS[name].network(), [layer])
    assert len(net.weights[f"{layer}.tap_gain"]) == units


def test_silencing_and_sticking_a_tap_gates_the_modules_output() -> None:
    case = NETWORKS["transformer-pre-norm"]
    net = tap(case.network(), ["encoder.layers.0"])
    for fault, value in ((Silence(), 0.0), (StuckAt(0.7), 0.7)):
        hurt = Damage(fault, RankedUnits((Unit("encoder.layers.0", 3),))).at(1.0)(net, stream(0, "x"))
        output = outputs_of(hurt, "encoder.layers.0", case.inputs(3))[0]
        assert torch.allclose(output[..., 3], torch.tensor(value))
        assert bool((output[..., 2] != value).any())


def test_a_module_called_twice_is_tapped_in_both_calls() -> None:
    case = NETWORKS["called-twice"]
    net = tap(case.network(), ["shared"])
    hurt = Damage(Silence(), RankedUnits((Unit("shared", 0),))).at(1.0)(net, stream(0, "x"))
    seen = outputs_of(hurt, "shared", case.inputs(3))
    assert len(seen) == 2
    assert all(bool((out[:, 0] == 0).all()) for out in seen)
    Anatomy.of(net).verify(net)


def test_what_cannot_be_tapped_is_refused_with_the_reason() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.unused, self.count = nn.Linear(3, 2), nn.Linear(3, 2), Counter()

        def forward(self, x: Tensor) -> Tensor:
            self.count(x)
            return self.fc(x)

    class Counter(nn.Module):
        def forward(self, x: Tensor) -> int:
            return len(x)

    net = Network.of(Odd(), torch.zeros(2, 3))
    with pytest.raises(AnatomyError, match=r"layer 'fcc'.*Did you mean fc"):
        tap(net, ["fcc"])
    for layer in ("unused", "count"):
        with pytest.raises(AnatomyError, match=f"layer '{layer}'.*output tensor"):
            tap(net, [layer])
    with pytest.raises(AnatomyError, match=r"layer ''"):
        tap(net, [""])
    with pytest.raises(AnatomyError, match="example inputs, got none"):
        tap(Network.of(Odd()), ["fc"])


def test_a_layer_that_is_tapped_twice_in_one_call_is_tapped_once() -> None:
    net = tap(NETWORKS["mlp-relu"].network(), ["0", "0"])
    assert sum(name.startswith("0.tap") for name in net.weights) == 2
    assert torch.equal(
        net(NETWORKS["mlp-relu"].inputs(3)), NETWORKS["mlp-relu"].network()(NETWORKS["mlp-relu"].inputs(3))
    )
