"""Law: nothing changes what it is given, least of all the user's model, even when something raises."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import FLOWS, FLOWS_ON_NETWORKS, NETWORKS, OPERATORS, NetworkCase, Row, hurt, sidecar, teacher, trained
from planaria.core.anatomy import Anatomy
from planaria.core.errors import AnatomyError, InputError
from planaria.core.graph import trace
from planaria.core.motion import steps
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.tap import tap
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence, StuckAt
from planaria.damage.sites import RandomUnits
from planaria.measure.task import Task
from planaria.repair.refit import Refit, Sidecar
from planaria.repair.retrain import Retrain
from planaria.study.rescue import Criterion, Schedule, compare, rescue
from planaria.study.respond import respond
from planaria.study.train import Recipe, train
from purity import fingerprint, state, untouched

CASES = pytest.mark.parametrize("case", NETWORKS.values(), ids=str)
PAIRS = pytest.mark.parametrize(("case", "row"), FLOWS_ON_NETWORKS, ids=str)
FLOW = pytest.mark.parametrize("row", FLOWS.values(), ids=str)


def used_model(case: NetworkCase) -> nn.Module:
    """A module in the middle of its life: mixed modes, gradients, hooks, a frozen weight."""
    model = case.build().train()
    first = next(iter(model.parameters()))
    next(iter(model.modules())).eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    first.requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    return model


@CASES
def test_making_a_network_of_a_model_leaves_the_model_as_it_was(case: NetworkCase) -> None:
    model, inputs = used_model(case), case.inputs(3)
    with untouched(model, inputs):
        net = Network.of(model, inputs)
        net = tap(net, case.taps)
        Anatomy.of(net).verify(net)
        net.to_module()
        Sidecar.of(net, case.inputs(8))
        net(inputs)


@CASES
def test_a_network_shares_no_memory_with_the_model(case: NetworkCase) -> None:
    model = case.build()
    net = Network.of(model, case.inputs(3))
    before = net.sha256
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    assert net.sha256 == before
    module = net.to_module()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()
    assert net.sha256 == before


@CASES
def test_an_operator_leaves_its_network_as_it_was(case: NetworkCase) -> None:
    for row in OPERATORS.values():
        net, operator = case.network(), row.make(case)
        with untouched(net, case.task()):
            operator(net, stream(3, "law"))


@PAIRS
def test_a_flow_leaves_its_network_as_it_was(case: NetworkCase, row: Row) -> None:
    net, flow = hurt(case), row.make(case)
    with untouched(net, case.network(), case.task()):
        moments = flow(net, stream(3, "law"))
        for _ in islice(moments, 2):
            pass
        getattr(moments, "close", lambda: None)()


@FLOW
def test_earlier_moments_keep_their_weights(row: Row) -> None:
    case = NETWORKS["cnn-batchnorm"]
    moments, prints = [], []
    for moment in islice(row.make(case)(hurt(case), stream(3, "law")), 4):
        moments.append(moment)
        prints.append(fingerprint(moment.network))
    assert [fingerprint(moment.network) for moment in moments] == prints


# ----------------------------------------------------------------------------------------- after exceptions


class Accident(Exception):
    """What the tests below throw in the middle of things."""


class Lives:
    """A number that all copies of a module share."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __deepcopy__(self, memo: dict[int, Any]) -> Lives:
        return self


class Fragile(nn.Module):
    """Works a given number of times, then raises in the middle of its forward pass."""

    def __init__(self, lives: int) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.lives = Lives(lives)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        self.lives.left -= 1
        if self.lives.left < 0:
            raise Accident
        return self.second(x)


def raising_calls(net: Network) -> list[Callable[[], Any]]:
    """Everything that runs the network."""
    inputs = torch.zeros(2, 6)
    return [
        lambda: net(inputs),
        lambda: Anatomy.of(net, inputs),
        lambda: trace(net, inputs),
        lambda: tap(net, ["first"]),
        lambda: Sidecar.of(net, inputs),
        lambda: NETWORKS["mlp-relu"].task().score(net),
        lambda: next(Retrain(NETWORKS["mlp-relu"].task())(net, stream(0, "x"))),
    ]


@pytest.mark.parametrize("number", range(7))
def test_a_module_that_raises_in_the_middle_leaves_everything_as_it_was(number: int) -> None:
    model = Fragile(lives=0)
    net = Network.of(model, torch.zeros(2, 6))
    with untouched(net, model), pytest.raises(Accident):
        raising_calls(net)[number]()


def raising_loss(after: int) -> Task:
    """A task whose loss raises after some calls."""
    task, calls = NETWORKS["cnn-batchnorm"].task(), [after]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls[0] -= 1
        if calls[0] < 0:
            raise Accident
        return nn.functional.cross_entropy(outputs, targets)

    return Task(task.name, task.train, task.validation, task.test, loss, task.scorer, task.classes)


@pytest.mark.parametrize(
    "act",
    [
        lambda net: net(torch.zeros(2, 5)),
        lambda net: Anatomy.of(net, torch.zeros(2, 5)),
        lambda net: Anatomy.of(net).verify(net, torch.zeros(2, 5)),
        lambda net: tap(net, ["nowhere"]),
        lambda net: tap(net, ["0"], torch.zeros(2, 5)),
        lambda net: Sidecar.of(net, torch.zeros(2, 5)),
        lambda net: trace(net, torch.zeros(2, 5)),
        lambda net: Damage(Silence(), RandomUnits(layers=("nowhere",))).at(0.5)(net, stream(0, "x")),
    ],
)
def test_an_exception_in_the_middle_leaves_everything_as_it_was(act: Callable[[Network], Any]) -> None:
    net = NETWORKS["mlp-norms"].network()
    with untouched(net), pytest.raises((RuntimeError, AnatomyError, InputError)):
        act(net)
    Anatomy.of(net).verify(net)


def test_a_refused_fault_leaves_everything_as_it_was() -> None:
    net = NETWORKS["mlp-gelu-no-bias"].network()
    with untouched(net), pytest.raises(AnatomyError, match="bias that can hold the stuck value"):
        Damage(StuckAt(1.0), RandomUnits()).at(1.0)(net, stream(0, "x"))


def test_a_loss_that_raises_leaves_everything_as_it_was() -> None:
    net, task = NETWORKS["cnn-batchnorm"].network(), raising_loss(after=2)
    with untouched(net, task):
        moments = Retrain(task, batch=8)(net, stream(0, "x"))
        for _ in range(2):
            next(moments)
        with pytest.raises(Accident):
            next(moments)


def test_an_exception_thrown_into_a_flow_leaves_everything_as_it_was() -> None:
    case = NETWORKS["dropout"]
    net = case.network()
    with untouched(net, case.task()):
        moments = FLOWS["retrain-sgd"].make(case)(net, stream(0, "x"))
        next(moments)
        with pytest.raises(Accident):
            moments.throw(Accident())


def test_an_operator_that_raises_inside_a_study_leaves_everything_as_it_was() -> None:
    net, task = trained("clouds")
    with untouched(net, task), pytest.raises(Accident):

        def broken(net: Network, rng: torch.Generator, /) -> Any:
            yield from islice(Retrain(task, batch=8)(net, rng), 2)
            raise Accident

        rescue(net, Damage(Silence(), RandomUnits()), {"broken": broken}, task, doses=[0.5], seeds=[0])


# ---------------------------------------------------------------------------------------------- studies


@pytest.mark.parametrize("name", ["clouds", "surface"])
def test_a_study_leaves_network_and_task_as_they_were(name: str) -> None:
    net, task = trained(name)
    damage = Damage(Silence(), RandomUnits())
    flows = {"retrain": Retrain(task, batch=16), "iterative": Schedule(Retrain(task, batch=16), bites=2)}
    with untouched(net, task):
        respond(net, damage, task, doses=[0.5], draws=2)
        rescue(net, damage, flows, task, doses=[0.5], seeds=[0], within=steps(4), criterion=Criterion(every=2))
        hurt_net = damage.at(0.5)(net, stream(0, "x"))
        compare(hurt_net, {"retrain": flows["retrain"]}, task, to=1.0, within=steps(2), seeds=1)  # type: ignore[dict-item]


def test_training_leaves_the_model_as_it_was() -> None:
    case = NETWORKS["cnn-batchnorm"]
    model = used_model(case)
    with untouched(model, case.task()):
        train(model, case.task(), Recipe(1, batch=8))


def test_a_repair_source_is_left_as_it_was() -> None:
    case = NETWORKS["cnn-depthwise"]
    for source in (sidecar(case.name), teacher(case)):
        tensors = [*getattr(source, "moments", {}).values(), *getattr(source, "weights", {}).values()]
        nets = [source.net] if hasattr(source, "net") else []
        with untouched(*tensors, *nets):
            next(Refit(source)(hurt(case), stream(0, "x")))


def test_writing_into_a_returned_module_or_output_does_not_reach_the_network() -> None:
    net = NETWORKS["residual"].network()
    before = state(net)
    with torch.no_grad():
        net(NETWORKS["residual"].inputs(2)).zero_()
        for parameter in net.to_module().parameters():
            parameter.zero_()
    assert state(net) == before
