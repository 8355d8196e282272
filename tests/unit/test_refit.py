"""Refit: rescue in practice; that it is the least-squares solution is a law."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cases import NETWORKS, randomise, trained
from planaria.core.anatomy import Anatomy, silence
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence, StuckAt
from planaria.damage.sites import RandomEntries, RandomUnits
from planaria.repair.readers import readers
from planaria.repair.refit import Refit, Sidecar, Teacher, refit


def rescued(net: Network, source: Sidecar | Teacher, dose: float, seed: int) -> tuple[Network, Network]:
    damaged = Damage(Silence(), RandomUnits(per_layer=True)).at(dose)(net, stream(seed, "x"))
    return damaged, next(Refit(source)(damaged, stream(0, "x"))).network


@pytest.mark.parametrize("form", ["sidecar", "teacher"])
def test_half_the_units_gone_is_rescued_in_closed_form_on_the_digits(form: str) -> None:
    net, task = trained("digits")
    inputs = task.train.inputs[:512]
    source = Sidecar.of(net, inputs) if form == "sidecar" else Teacher(net, inputs)
    intact = task.score(net)
    before, after = [], []
    for seed in range(3):
        damaged, fixed = rescued(net, source, 0.3, seed)
        before.append(task.score(damaged))
        after.append(task.score(fixed))
    assert intact > 0.7
    assert sum(after) > sum(before) + 0.3
    assert sum(after) / 3 > intact - 0.2


def test_a_regression_is_rescued_too() -> None:
    net, task = trained("surface")
    damaged, fixed = rescued(net, Sidecar.of(net, task.train.inputs), 0.3, 1)
    assert task.score(fixed) > task.score(damaged)


def test_more_inputs_do_not_hurt() -> None:
    net, task = trained("digits")
    scores = [task.score(rescued(net, Sidecar.of(net, task.train.inputs[:n]), 0.5, 0)[1]) for n in (64, 1024)]
    assert scores[1] >= scores[0] - 0.02


def test_readers_are_the_layers_in_order_and_the_rest_has_a_reason() -> None:
    found, refused = readers(NETWORKS["cnn-batchnorm"].network())
    assert list(found) == ["0.weight", "4.weight", "8.weight", "10.weight"]
    assert [reader.bias for reader in found.values()] == ["0.bias", "5.bias", "8.bias", "10.bias"]
    assert refused == {}


def test_a_product_with_too_many_inputs_is_left_out_with_the_reason() -> None:
    model = nn.Sequential(nn.Linear(3, 9000, bias=False), nn.ReLU(), nn.Linear(9000, 2))
    net = Network.of(model, torch.zeros(1, 3))
    sidecar = Sidecar.of(net, torch.randn(4, 3, generator=stream(0, "in")))
    assert "9000 numbers" in sidecar.refused["2.weight"]
    assert list(sidecar.moments) == []


def test_a_sidecar_says_what_it_is_and_how_large() -> None:
    sidecar = Sidecar.of(NETWORKS["mlp-relu"].network(), NETWORKS["mlp-relu"].inputs(10))
    assert repr(sidecar) == "<Sidecar: moments of 2 readers over 10 inputs>"
    assert sidecar.bytes == 4 * (8 * 9 // 2 + 6 * 7 // 2)
    assert sidecar.cost.forward_passes == 1
    for moment in sidecar.moments.values():
        assert torch.allclose(moment, moment.transpose(1, 2))
        assert float(moment[0, -1, -1]) == 1.0


def test_a_sidecar_keeps_what_the_damage_destroys() -> None:
    case = NETWORKS["mlp-relu"]
    net = case.network()
    sidecar = Sidecar.of(net, case.inputs(50))
    units = Anatomy.of(net).units()[::2]
    lost = silence(net, Anatomy.of(net).entries(units).all)
    readable, gone = (refit(known, units, sidecar).network for known in (net, lost))
    assert readable.sha256 == gone.sha256
    assert float((gone(case.inputs(50)) - net(case.inputs(50))).norm()) < float(
        (lost(case.inputs(50)) - net(case.inputs(50))).norm()
    )


def test_stuck_units_are_no_reason_to_change_their_readers_weights_from_them() -> None:
    case = NETWORKS["mlp-tanh"]
    net = case.network()
    stuck = Damage(StuckAt(0.5), RandomUnits(layers=("0",))).at(0.5)(net, stream(0, "x"))
    inputs = case.inputs(200, "moments")
    (moment,) = Refit(Teacher(net, inputs))(stuck, stream(0, "x"))
    error = lambda other: float((other(inputs) - net(inputs)).square().mean())  # noqa: E731 - one formula, twice
    assert error(moment.network) < error(stuck)
    (moment,) = Refit(Sidecar.of(net, inputs))(stuck, stream(0, "x"))
    assert error(moment.network) < error(stuck)


def test_a_refit_after_a_second_hit_starts_from_what_the_first_left() -> None:
    net, task = trained("digits")
    source = Teacher(net, task.train.inputs[:300])
    once, fixed = rescued(net, source, 0.2, 0)
    again = Damage(Silence(), RandomUnits(per_layer=True)).at(0.2)(fixed, stream(5, "x"))
    (moment,) = Refit(source)(again, stream(0, "x"))
    assert task.score(moment.network) > task.score(again) - 0.01
    anatomy = Anatomy.of(net)
    assert len(anatomy.living(moment.network)) == len(anatomy.living(again)) < len(anatomy.living(once))


@pytest.mark.parametrize("bias", [True, False])
def test_a_network_of_two_layers_without_anything_else_is_refitted(bias: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=bias), nn.Tanh(), nn.Linear(6, 2, bias=bias))
    randomise(model, 3)
    inputs = torch.randn(200, 4, generator=stream(0, "in"))
    net = Network.of(model, inputs)
    damaged, fixed = rescued(net, Sidecar.of(net, inputs), 0.3, 0)
    error = [float((n(inputs) - net(inputs)).square().mean()) for n in (damaged, fixed)]
    assert error[1] < error[0]


@pytest.mark.parametrize("form", ["sidecar", "teacher"])
def test_cut_connections_are_made_up_for_by_those_that_are_left(form: str) -> None:
    net, task = trained("digits")
    inputs = task.train.inputs[:1000]
    source = Sidecar.of(net, inputs) if form == "sidecar" else Teacher(net, inputs)
    # The sidecar knows what reads from units; the first layer reads the inputs.
    first, *rest = Anatomy.of(net).matrices
    site = RandomEntries(layers=tuple(rest) if form == "sidecar" else (first, *rest))
    cut = Damage(Silence(), site).at(0.6)(net, stream(0, "x"))
    fixed = next(Refit(source)(cut, stream(0, "x"))).network
    for name, weight in cut.weights.items():
        pinned = cut.plasticity[name] == 0
        assert torch.equal(fixed.weights[name][pinned], weight[pinned])
    before, after = (float((n(inputs) - net(inputs)).square().mean()) for n in (cut, fixed))
    assert after < 0.5 * before
    assert task.score(fixed) > task.score(cut)


def test_the_shift_of_a_product_without_a_bias_goes_into_the_batch_norm_behind_it() -> None:
    case = NETWORKS["cnn-batchnorm"]
    net, inputs = case.network(), case.inputs(200, "moments")
    damaged = Damage(Silence(), RandomUnits(layers=("0",))).at(0.5)(net, stream(0, "x"))
    fixed = next(Refit(Sidecar.of(net, inputs))(damaged, stream(0, "x"))).network
    assert not torch.equal(fixed.weights["5.bias"], damaged.weights["5.bias"])
    without = fixed.with_weights({"5.bias": damaged.weights["5.bias"]})

    def behind(n: Network) -> torch.Tensor:
        return n.to_module()[:6].eval()(inputs)  # type: ignore[index, no-any-return]

    with torch.no_grad():
        errors = [float((behind(n) - behind(net)).square().mean()) for n in (fixed, without, damaged)]
    assert errors[0] < errors[1] < errors[2]


def test_a_refit_of_a_single_input_runs_the_way_torch_runs_single_inputs() -> None:
    case = NETWORKS["transformer-post-norm"]
    net = case.network()
    inputs = case.inputs(5, "odd")
    assert Sidecar.of(net, inputs, batch=4).moments.keys() == Sidecar.of(net, inputs).moments.keys()
