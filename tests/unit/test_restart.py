"""Restart: what survives begins from scratch, and what is dead stays dead."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cases import NETWORKS, NetworkCase, hurt, trained
from planaria.core.anatomy import Anatomy
from planaria.core.motion import after, settle, updates
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits
from planaria.repair.restart import Restart
from planaria.repair.retrain import Adam, Retrain

SILENT = Damage(Silence(), RandomUnits())


@pytest.mark.parametrize("case", NETWORKS.values(), ids=str)
def test_pinned_entries_stay_and_the_others_are_drawn_anew(case: NetworkCase) -> None:
    net = hurt(case)
    fresh = Restart()(net, stream(0, "restart"))
    for name, plasticity in net.plasticity.items():
        pinned = plasticity == 0
        assert torch.equal(fresh.weights[name][pinned], net.weights[name][pinned])
        if net.weights[name].ndim > 1:
            assert bool((fresh.weights[name] != net.weights[name])[~pinned].all())
    assert {name: dead.tolist() for name, dead in Anatomy.of(net).dead(fresh).items()} == {
        name: dead.tolist() for name, dead in Anatomy.of(net).dead(net).items()
    }
    assert all(bool(weight.isfinite().all()) for weight in fresh.weights.values())
    assert bool(torch.as_tensor(fresh(case.inputs(4))).isfinite().all())


def test_an_undamaged_network_is_drawn_as_torch_draws_it() -> None:
    torch_own = nn.Sequential(nn.Linear(400, 300), nn.ReLU(), nn.Linear(300, 200))
    net = Restart()(Network.of(torch_own, torch.zeros(1, 400)), stream(0, "restart"))
    for name, fan in (("0", 400), ("2", 300)):
        for part in ("weight", "bias"):
            drawn = net.weights[f"{name}.{part}"]
            assert float(drawn.abs().max()) <= 1 / math.sqrt(fan)
            assert float(drawn.std()) == pytest.approx(1 / math.sqrt(3 * fan), rel=0.1)


def test_a_damaged_network_is_drawn_as_one_of_the_reduced_size() -> None:
    model = nn.Sequential(nn.Linear(50, 400), nn.ReLU(), nn.Linear(400, 300), nn.ReLU(), nn.Linear(300, 10))
    net = Network.of(model, torch.zeros(1, 50))
    half = Damage(Silence(), RandomUnits(per_layer=True)).at(0.5)(net, stream(0, "lesion"))
    fresh = Restart()(half, stream(0, "restart"))
    living = fresh.weights["2.weight"][half.plasticity["2.weight"] != 0]
    assert float(living.std()) == pytest.approx(1 / math.sqrt(3 * 200), rel=0.05)
    assert float(living.abs().max()) <= 1 / math.sqrt(200) * (1 + 1e-6)
    first = fresh.weights["0.weight"][half.plasticity["0.weight"] != 0]
    assert float(first.std()) == pytest.approx(1 / math.sqrt(3 * 50), rel=0.05)


def test_normalisations_begin_anew() -> None:
    net = NETWORKS["cnn-batchnorm"].network()
    fresh = Restart()(net, stream(0, "restart"))
    assert torch.equal(fresh.weights["1.weight"], torch.ones(4))
    assert torch.equal(fresh.weights["1.bias"], torch.zeros(4))
    assert torch.equal(fresh.buffers["1.running_mean"], torch.zeros(4))
    assert torch.equal(fresh.buffers["1.running_var"], torch.ones(4))


class Own(nn.Module):
    """Parameters that no layer draws."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.gain, self.offset = (
            nn.Linear(6, 8),
            nn.Parameter(torch.full((8,), 3.0)),
            nn.Parameter(torch.ones(8)),
        )
        self.outward = nn.Parameter(torch.zeros(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inward(x) * self.gain + self.offset) @ self.outward


def test_weights_whose_layer_does_not_say_how_are_drawn_by_their_inputs_and_scales_are_one() -> None:
    fresh = Restart()(Network.of(Own(), torch.zeros(1, 6)), stream(0, "restart"))
    assert bool((fresh.weights["gain"] == 1).all()) and bool((fresh.weights["offset"] == 0).all())
    assert 0 < float(fresh.weights["outward"].abs().max()) <= 1 / math.sqrt(3)


def test_the_stream_decides_and_the_global_generator_does_not() -> None:
    net = SILENT.at(0.3)(trained("clouds")[0], stream(0, "lesion"))
    state = torch.random.get_rng_state()
    one, same = Restart()(net, stream(1, "x")), Restart()(net, stream(1, "x"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.sha256 == same.sha256 != Restart()(net, stream(2, "x")).sha256


def test_a_restarted_network_knows_nothing_and_learns() -> None:
    net, task = trained("clouds")
    lesioned = SILENT.at(0.3)(net, stream(0, "lesion"))
    fresh = Restart()(lesioned, stream(0, "restart"))
    assert task.score(fresh) < task.score(net) - 0.2
    flow = after(Restart(), Retrain(task, Adam(0.02), batch=32))
    assert task.score(settle(flow, updates(150))(lesioned, stream(0, "restart"))) > 0.85
