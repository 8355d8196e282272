"""Distillation: nearer to the intact network, without labels, and paid for."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
import torch
from torch import Tensor, nn

from cases import NETWORKS, hurt, trained
from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import settle, steps
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits
from planaria.measure.task import Data, Task
from planaria.repair.distil import Distil
from planaria.repair.retrain import SGD, Adam, Retrain

FORMS = pytest.mark.parametrize("temperature", [None, 1.0, 4.0])


def damaged(name: str) -> tuple[Network, Network, Task]:
    net, task = trained(name)
    return Damage(Silence(), RandomUnits()).at(0.5)(net, stream(0, "x")), net, task


def distance(a: Network, b: Network, inputs: Tensor) -> float:
    """Mean squared difference of outputs, relative to the mean over classes where there are some."""
    difference = a(inputs) - b(inputs)
    if difference.shape[1] > 1:
        difference = difference - difference.mean(1, keepdim=True)
    return float(difference.square().mean())


@FORMS
def test_a_classifier_comes_nearer_to_what_it_was(temperature: float | None) -> None:
    lesioned, net, task = damaged("digits")
    end = settle(Distil(net, task.train.inputs[:512], Adam(0.01), 64, temperature), steps(100))(
        lesioned, stream(0, "d")
    )
    assert distance(end, net, task.test.inputs) < 0.5 * distance(lesioned, net, task.test.inputs)
    assert task.score(end) > task.score(lesioned) + 0.2


def test_a_regression_comes_nearer_by_squared_errors_and_has_no_temperature() -> None:
    lesioned, net, task = damaged("surface")
    end = settle(Distil(net, task.train.inputs, Adam(0.01), 32), steps(100))(lesioned, stream(0, "d"))
    assert distance(end, net, task.test.inputs) < 0.5 * distance(lesioned, net, task.test.inputs)
    with pytest.raises(InputError, match=r"Distil\.temperature.*without class scores"):
        next(Distil(net, task.train.inputs, temperature=2.0)(lesioned, stream(0, "d")))


@FORMS
def test_the_intact_network_is_where_distillation_rests(temperature: float | None) -> None:
    case = NETWORKS["mlp-tanh"]
    net = case.network()
    end = settle(Distil(net, case.inputs(24), SGD(0.1), 8, temperature), steps(5))(net, stream(0, "d"))
    assert all(torch.allclose(end.weights[name], weight, atol=1e-6) for name, weight in net.weights.items())


def test_it_is_retraining_on_the_intact_outputs_bit_for_bit() -> None:
    case = NETWORKS["cnn-batchnorm"]
    x = case.inputs(24)
    data = Data(x, case.network()(x))
    twin = Task.of("twin", data, data, validation=data, loss="mse", score="r2")
    ours, theirs = (
        settle(flow, steps(4))(hurt(case), stream(0, "d"))
        for flow in (Distil(case.network(), x, SGD(0.05), 8), Retrain(twin, SGD(0.05), 8))
    )
    assert ours.sha256 == theirs.sha256


def test_the_softened_distance_is_the_divergence_of_torch() -> None:
    y, t = torch.randn(5, 3, 4, generator=stream(0, "y")), torch.randn(5, 3, 4, generator=stream(0, "t"))
    net = NETWORKS["mlp-relu"].network()
    for length, axis in ((4, 1), (3, 2)):  # classes before the positions, as in torch, or behind, as in Hugging Face
        ours = Distil(net, torch.zeros(1, 6), temperature=3.0)._loss(Data(torch.zeros(5, length), t))(y, t)
        logs = (torch.log_softmax(y / 3, axis), torch.log_softmax(t / 3, axis))
        theirs = 9 * nn.functional.kl_div(*logs, reduction="sum", log_target=True) / (5 * length)
        assert torch.allclose(ours, theirs)


def test_where_shapes_do_not_tell_classes_from_positions_there_is_no_temperature() -> None:
    tagger = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 5))
    inputs = torch.randint(7, (12, 5), generator=stream(0, "x"))
    net = Network.of(tagger, inputs)
    with pytest.raises(InputError, match="dimension 1 or the last"):
        next(iter(Distil(net, inputs, temperature=2.0)(net, stream(0, "d"))))
    next(iter(Distil(net, inputs)(net, stream(0, "d"))))


@pytest.mark.parametrize("count", [24, 2500])
def test_the_ledger_counts_the_teacher_once_and_no_labels(count: int) -> None:
    case = NETWORKS["mlp-relu"]
    moments = list(islice(Distil(case.network(), case.inputs(count), batch=10)(hurt(case), stream(0, "d")), 3))
    each = forward_multiply_adds(case.network(), case.inputs(2))
    for number, moment in enumerate(moments, start=1):
        cost = moment.cost
        assert (cost.examples, cost.labels) == (count + 10 * number, 0)
        assert (cost.forward_passes, cost.backward_passes) == (-(-count // 1000) + number, number)
        assert cost.multiply_adds == each * count + 3 * each * 10 * number
    assert all(a.cost.seconds < b.cost.seconds for a, b in pairwise(moments))


@pytest.mark.parametrize(
    ("where", "settings"),
    [
        ("inputs", {"inputs": torch.zeros(0, 6)}),
        ("inputs", {"inputs": torch.tensor(1.0)}),
        ("inputs", {"inputs": torch.full((3, 6), float("nan"))}),
        ("batch", {"batch": 0}),
        ("batch", {"batch": 2.5}),
        ("temperature", {"temperature": 0.0}),
        ("temperature", {"temperature": float("nan")}),
        ("temperature", {"temperature": float("inf")}),
    ],
)
def test_settings_off_their_range_are_refused(where: str, settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=rf"Distil\.{where}"):
        Distil(NETWORKS["mlp-relu"].network(), **{"inputs": torch.zeros(4, 6), **settings})  # type: ignore[arg-type]


def test_a_teacher_that_has_diverged_is_refused() -> None:
    net = NETWORKS["mlp-relu"].network()
    sick = net.with_weights({"4.bias": torch.full((3,), float("inf"))})
    with pytest.raises(InputError, match=r"Distil\.teacher"):
        next(Distil(sick, torch.zeros(4, 6))(net, stream(0, "d")))


def test_a_record_of_it_shows_sizes_and_not_tensors() -> None:
    text = repr(Distil(NETWORKS["mlp-relu"].network(), torch.zeros(4, 6)))
    assert "4 unlabelled inputs" in text
    assert "tensor" not in text
