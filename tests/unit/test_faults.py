"""Faults: what they do to values, on the activations that result."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import NETWORKS, randomise
from planaria.core.anatomy import Anatomy, Unit
from planaria.core.errors import AnatomyError, InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Noise, Silence, StuckAt
from planaria.damage.sites import RandomEntries, RandomUnits, RankedUnits


def at(net: Network, fault: object, *units: Unit) -> Network:
    return Damage(fault, RankedUnits(units)).at(1.0)(net, stream(0, "x"))  # type: ignore[arg-type]


def output_of(net: Network, layer: str, inputs: Tensor) -> Tensor:
    module, seen = net.to_module(), []
    module.get_submodule(layer).register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        module(inputs)
    return seen[0]


# (network, layer, module that gives the activation, its activation function, unit axis)
STUCK = [
    ("mlp-relu", "0", "1", torch.relu, -1),
    ("mlp-tanh", "2", "3", torch.tanh, -1),
    ("mlp-sigmoid", "0", "1", torch.sigmoid, -1),
    ("mlp-norms", "0", "2", torch.relu, -1),
    ("mlp-norms", "3", "5", torch.relu, -1),
    ("mlp-norms", "6", "8", lambda v: v, -1),
    ("cnn-batchnorm", "0", "2", torch.relu, 1),
    ("cnn-batchnorm", "8", "9", torch.relu, -1),
    ("cnn-depthwise", "2", "3", F.gelu, 1),
    ("conv1d", "3", "4", torch.tanh, 1),
    ("deconv-groupnorm", "3", "5", F.silu, 1),
    ("transformer-pre-norm", "encoder.layers.0.linear1", "encoder.layers.0.dropout", F.gelu, -1),
    ("lstm-tapped", "rnn", "rnn", lambda v: v, -1),
]


@pytest.mark.parametrize("value", [0.7, -0.4, 0.0])
@pytest.mark.parametrize(("name", "layer", "activation", "function", "axis"), STUCK)
def test_a_stuck_unit_emits_its_activation_of_the_value(
    name: str, layer: str, activation: str, function: object, axis: int, value: float
) -> None:
    case = NETWORKS[name]
    hurt = at(case.network(), StuckAt(value), Unit(layer, 1))
    output = output_of(hurt, activation, case.inputs(5, "many"))
    output = output[0] if isinstance(output, tuple) else output
    expected = function(torch.tensor(value))  # type: ignore[operator]
    assert torch.allclose(output.movedim(axis, 0)[1], expected, atol=1e-6)
    assert not torch.allclose(output.movedim(axis, 0)[0], expected, atol=1e-3)


def test_a_stuck_head_emits_the_value() -> None:
    case = NETWORKS["attention-separate"]
    hurt = at(case.network(), StuckAt(0.7), Unit("attention", 1))
    module, seen = hurt.to_module(), []
    module.o.register_forward_pre_hook(lambda m, args: seen.append(args[0]))  # type: ignore[union-attr, operator]
    with torch.no_grad():
        module(case.inputs(4))
    assert torch.allclose(seen[0][..., 2:4], torch.tensor(0.7), atol=1e-6)
    assert not torch.allclose(seen[0][..., :2], torch.tensor(0.7), atol=1e-2)


def test_a_head_whose_values_have_no_bias_cannot_be_stuck() -> None:
    model = NETWORKS["attention-separate"].build()
    model.v = nn.Linear(6, 6, bias=False)
    randomise(model, 0)
    net = Network.of(model, NETWORKS["attention-separate"].inputs(3))
    with pytest.raises(AnatomyError, match="bias that can hold the stuck value"):
        at(net, StuckAt(0.7), Unit("attention", 1))


def test_a_lasting_fault_pins_what_it_hit_and_a_passing_one_does_not() -> None:
    net = NETWORKS["mlp-tanh"].network()
    for lasting in (True, False):
        for fault in (Silence(lasting), StuckAt(0.3, lasting), Noise(0.5, lasting)):
            hurt = at(net, fault, Unit("0", 2))
            pinned = {name for name, p in hurt.plasticity.items() if bool((p == 0).any())}
            assert pinned == ({"0.weight", "0.bias", "2.weight"} if lasting and not isinstance(fault, StuckAt) else
                              {"0.weight", "0.bias"} if lasting else set())  # fmt: skip


def test_a_stuck_unit_is_still_read_as_before() -> None:
    net = NETWORKS["mlp-tanh"].network()
    hurt = at(net, StuckAt(0.3), Unit("0", 2))
    assert torch.equal(hurt.weights["2.weight"], net.weights["2.weight"])


def test_single_entries_stick_at_the_value() -> None:
    net = NETWORKS["mlp-relu"].network()
    hurt = Damage(StuckAt(0.25), RandomEntries(layers=("2",))).at(0.4)(net, stream(0, "x"))
    hit = hurt.plasticity["2.weight"] == 0
    assert int(hit.sum()) == 14
    assert bool((hurt.weights["2.weight"][hit] == 0.25).all())
    assert torch.equal(hurt.weights["2.weight"][~hit], net.weights["2.weight"][~hit])


# --------------------------------------------------------------------------------------------------- noise


def test_noise_has_the_stated_size_relative_to_the_tensor() -> None:
    model = nn.Sequential(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))
    randomise(model, 0)
    net = Network.of(model, torch.zeros(1, 200))
    for sigma in (0.1, 1.0):
        hurt = Damage(Noise(sigma), RandomEntries()).at(1.0)(net, stream(1, "x"))
        for name in ("0.weight", "2.weight"):
            step = (hurt.weights[name] - net.weights[name]).double()
            rms = float(net.weights[name].double().square().mean().sqrt())
            assert float(step.std()) == pytest.approx(sigma * rms, rel=0.05)
            assert abs(float(step.mean())) < 0.05 * sigma * rms


def test_noise_leaves_the_dead_dead() -> None:
    net = NETWORKS["mlp-relu"].network()
    dead = Damage(Silence(), RandomUnits()).at(0.5)(net, stream(0, "x"))
    anatomy = Anatomy.of(net)
    # Living units have edges to dead ones, which are zero for good.
    for site in (RandomEntries(), RandomUnits()):
        noisy = Damage(Noise(2.0), site).at(1.0)(dead, stream(1, "x"))
        assert noisy.sha256 != dead.sha256
        for name, plasticity in dead.plasticity.items():
            assert torch.equal(noisy.weights[name][plasticity == 0], dead.weights[name][plasticity == 0])
        assert anatomy.living(noisy) == anatomy.living(dead)


def test_stronger_noise_is_the_same_noise_scaled() -> None:
    net = NETWORKS["cnn-batchnorm"].network()
    steps = []
    for sigma in (0.1, 0.3):
        hurt = Damage(Noise(sigma), RandomUnits()).at(0.5)(net, stream(1, "x"))
        steps.append(hurt.weights["4.weight"] - net.weights["4.weight"])
    assert torch.allclose(3 * steps[0], steps[1], atol=1e-5)
    assert bool((steps[0] != 0).any())


# -------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", None, 1j])
def test_values_that_are_no_finite_number_are_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"StuckAt\.value"):
        StuckAt(value)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Noise\.sigma"):
        Noise(value)  # type: ignore[arg-type]


def test_negative_noise_is_refused() -> None:
    with pytest.raises(InputError, match=r"Noise\.sigma.*at least 0"):
        Noise(-0.1)


@pytest.mark.parametrize("value", [1e5, -1e5])
def test_a_value_that_half_precision_cannot_hold_is_refused_or_finite(value: float) -> None:
    net = Network.of(NETWORKS["mlp-relu"].build().half(), NETWORKS["mlp-relu"].inputs(3).half())
    try:
        hurt = at(net, StuckAt(value), Unit("0", 1))
    except InputError as error:
        assert "StuckAt" in str(error)
    else:
        assert bool(hurt.weights["0.bias"].isfinite().all())
