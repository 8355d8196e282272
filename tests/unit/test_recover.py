"""Recover: along a path of small steps the survivors hold the outputs; without labels, and paid for."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import NETWORKS, hurt, trained
from planaria.core.autodiff import jvp
from planaria.core.errors import InputError
from planaria.core.motion import Cost, Flow, after, settle, steps
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Noise, Silence, StuckAt
from planaria.damage.sites import RandomEntries, RandomUnits
from planaria.measure.task import Task
from planaria.repair.recover import Recorded, Recover
from planaria.repair.refit import Refit, Teacher

RNG = stream(0, "recover")


def damaged(dose: float = 0.6) -> tuple[Network, Network, Task]:
    net, task = trained("digits")
    return Damage(Silence(), RandomUnits()).at(dose)(net, stream(0, "x")), net, task


def distance(a: Network, b: Network, inputs: Tensor) -> float:
    return float((a(inputs) - b(inputs)).double().square().sum()) / len(inputs)


def last(flow: Flow, net: Network) -> Network:
    *_, moment = flow(net, RNG)
    return moment.network


def test_most_of_the_function_comes_back_without_labels() -> None:
    lesioned, net, task = damaged()
    *_, moment = Recover(Teacher(net, task.train.inputs[:100]), steps=6, limit=8)(lesioned, RNG)
    assert distance(moment.network, net, task.test.inputs) < 0.2 * distance(lesioned, net, task.test.inputs)
    assert task.score(moment.network) > task.score(lesioned) + 0.2
    assert moment.cost.labels == 0


def test_the_path_ends_nearer_than_one_step_and_than_the_refit() -> None:
    lesioned, net, task = damaged(0.7)
    source = Teacher(net, task.train.inputs[:100])
    path, step = last(Recover(source, steps=6, limit=8), lesioned), last(Recover(source, steps=1, limit=1), lesioned)
    found = [distance(end, net, task.test.inputs) for end in (path, step, last(Refit(source), lesioned))]
    assert found[0] == min(found)


def test_what_was_recorded_is_enough_and_the_intact_weights_help() -> None:
    lesioned, net, task = damaged()
    inputs = task.train.inputs[:100]
    recorded = last(Recover(Recorded(inputs, net(inputs)), limit=10), lesioned)
    assert distance(recorded, net, task.test.inputs) < 0.3 * distance(lesioned, net, task.test.inputs)
    refitted = settle(Refit(Teacher(net, inputs)))
    both = settle(after(refitted, Recover(Recorded(inputs, net(inputs)), limit=3)))(lesioned, RNG)
    assert distance(both, net, inputs) < distance(refitted(lesioned, RNG), net, inputs)


@pytest.mark.parametrize(
    "damage",
    [
        Damage(Silence(), RandomUnits()),
        Damage(Silence(), RandomEntries()),
        Damage(StuckAt(0.7), RandomUnits()),
        Damage(Noise(0.5, lasting=True), RandomUnits()),
    ],
    ids=repr,
)
def test_any_damage_that_is_pinned_stays_and_is_made_good(damage: Damage) -> None:
    net, task = trained("digits")
    lesioned = damage.at(0.4)(net, stream(1, "x"))
    pinned = {name: p == 0 for name, p in lesioned.plasticity.items()}
    for moment in Recover(Teacher(net, task.train.inputs[:64]), steps=4)(lesioned, RNG):
        for name, hit in pinned.items():
            assert torch.equal(moment.network.weights[name][hit], lesioned.weights[name][hit]), name
    inputs = task.test.inputs
    assert distance(moment.network, net, inputs) < 0.5 * distance(lesioned, net, inputs)


def test_moments_only_get_better_and_dearer() -> None:
    lesioned, net, task = damaged(0.8)
    inputs = task.train.inputs[:60]
    moments = list(Recover(Teacher(net, inputs), steps=6)(lesioned, RNG))
    distances = [distance(moment.network, net, inputs) for moment in moments]
    assert distances[0] <= distance(lesioned, net, inputs)
    assert all(late <= soon for soon, late in pairwise(distances))
    for soon, late in pairwise(moments):
        spent = late.cost - soon.cost
        assert all(value >= 0 for value in vars(spent).values())
    assert moments[-1].cost.multiply_adds > 100 * 60 * net.parameters / 2


def test_a_plan_leads_from_the_intact_network_to_the_recovered_one_and_stays_near() -> None:
    lesioned, net, task = damaged(0.6)
    inputs, flow = task.train.inputs[:100], Recover(Teacher(net, task.train.inputs[:100]), steps=6, limit=8)
    way = [moment.network for moment in flow.plan(lesioned, RNG)]
    dead = lesioned.plasticity["0.weight"] == 0
    left = [float(point.weights["0.weight"][dead].norm() / net.weights["0.weight"][dead].norm()) for point in way]
    assert left[0] > 0.8
    assert left[-1] == 0
    assert all(late <= soon for soon, late in pairwise(left))
    assert max(distance(point, net, inputs) for point in way) < 0.2 * distance(lesioned, net, inputs)
    assert torch.equal(way[-1](inputs), last(flow, lesioned)(inputs))


def test_one_step_is_the_closed_form_of_the_optimal_brain_surgeon() -> None:
    case = NETWORKS["double"]
    net, lesioned, inputs = case.network(), hurt(case, 0.2), case.inputs(5, "few")
    flow, kappa = Recover(Teacher(net, inputs), steps=1, damping=0.3, limit=1), 0.3

    def row(index: int) -> dict[str, Tensor]:
        leaves = {name: w.detach().clone().requires_grad_() for name, w in net.weights.items()}
        made = net(inputs, leaves).flatten()[index]
        found = torch.autograd.grad(made, list(leaves.values()), allow_unused=True)
        pairs = zip(leaves.items(), found, strict=True)
        return {name: torch.zeros_like(leaf) if one is None else one for (name, leaf), one in pairs}

    rows = [row(index) for index in range(net(inputs).numel())]
    free = {name: p != 0 for name, p in lesioned.plasticity.items()}
    jacobian = torch.stack([torch.cat([one[name][hit] for name, hit in free.items()]) for one in rows])
    gone = lesioned - net
    _, ahead = jvp(lambda w: net(inputs, w), net.weights, gone)
    kernel = jacobian @ jacobian.T / len(inputs)
    mu = kappa * float(torch.linalg.eigvalsh(kernel)[-1])
    solved = torch.linalg.solve(kernel + mu * torch.eye(len(kernel), dtype=kernel.dtype), ahead.flatten())
    wanted = -jacobian.T @ solved / len(inputs)
    end = next(flow.plan(lesioned, RNG)).network
    moved = torch.cat([(end - lesioned)[name][hit] for name, hit in free.items()])
    assert float((moved - wanted).norm()) < 0.1 * float(wanted.norm())


def test_more_plastic_entries_move_more_and_important_inputs_count_more() -> None:
    lesioned, net, task = damaged(0.5)
    inputs = task.train.inputs[:40]
    slow = lesioned.with_plasticity({"2.weight": 0.01 * lesioned.plasticity["2.weight"]})
    moves = [(last(Recover(Teacher(net, inputs), steps=4, limit=5), one) - net)["2.weight"] for one in (lesioned, slow)]
    alive = lesioned.plasticity["2.weight"] != 0
    assert float(moves[1][alive].norm()) < 0.5 * float(moves[0][alive].norm())
    importance = torch.where(torch.arange(40) < 4, 100.0, 0.01)
    ends = [last(Recover(Teacher(net, inputs, each), steps=4, limit=6), lesioned) for each in (None, importance)]
    assert distance(ends[1], net, inputs[:4]) < 0.5 * distance(ends[0], net, inputs[:4])


def test_an_intact_network_is_left_as_it_is() -> None:
    net, task = trained("digits")
    inputs = task.train.inputs[:32]
    for source in (Teacher(net, inputs), Recorded(inputs, net(inputs))):
        end = last(Recover(source, steps=2), net)
        assert all(torch.equal(weight, net.weights[name]) for name, weight in end.weights.items())


def test_what_does_not_help_is_not_kept() -> None:
    lesioned, net, task = damaged(0.5)
    inputs = task.train.inputs[:32]
    stiff = last(Recover(Recorded(inputs, net(inputs)), damping=1e12), lesioned)
    assert distance(stiff, net, inputs) <= distance(lesioned, net, inputs)
    everything = lesioned.pin({name: torch.ones_like(w, dtype=torch.bool) for name, w in lesioned.weights.items()})
    end = last(Recover(Teacher(net, inputs), steps=3), everything)
    assert all(torch.equal(weight, lesioned.weights[name]) for name, weight in end.weights.items())


def test_a_step_into_nan_is_refused() -> None:
    class Root(nn.Module):
        """Not a number below zero, which a long step soon reaches."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(self.second(self.first(x)) - 0.05)

    model = Root()
    with torch.no_grad():
        model.first.weight.fill_(0.5)
        model.second.weight.fill_(0.5)
    inputs = 1.0 + torch.rand(20, 3, generator=stream(0, "roots"))
    net = Network.of(model, inputs)
    lost = {"second.weight": torch.tensor([[True, True, True, False]])}
    lesioned = net.with_weights({"second.weight": torch.tensor([[0.0, 0.0, 0.0, 0.5]])}).pin(lost)
    assert bool(lesioned(inputs).isfinite().all())
    end = last(Recover(Teacher(net, inputs), steps=2), lesioned)
    assert bool(end(inputs).isfinite().all())
    assert distance(end, net, inputs) < 0.2 * distance(lesioned, net, inputs)


def test_inputs_that_are_held_out_decide_where_there_are_many() -> None:
    lesioned, net, task = damaged(0.8)
    inputs = task.train.inputs[:256]
    held = torch.arange(256) % 8 == 7
    moments = list(Recover(Teacher(net, inputs), steps=3)(lesioned, RNG))
    distances = [distance(moment.network, net, inputs[held]) for moment in moments]
    assert all(late <= soon for soon, late in pairwise(distances))


def test_a_budget_ends_it_wherever_it_is() -> None:
    lesioned, net, task = damaged(0.5)
    moment = settle(Recover(Teacher(net, task.train.inputs[:32]), steps=10), steps(2)).moment(lesioned, RNG)
    dead = lesioned.plasticity["2.weight"] == 0
    assert not bool(moment.network.weights["2.weight"][dead].any())
    assert isinstance(moment.cost, Cost)


def test_it_says_what_it_was_made_with() -> None:
    inputs = torch.zeros(3, 2)
    shown = repr(Recover(Recorded(inputs, torch.zeros(3, 1)), steps=5))
    assert shown == ("Recover(source=<Recorded: outputs for 3 unlabelled inputs>, steps=5, damping=0.001, limit=None)")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"limit": 0}, "limit"),
        ({"damping": 0.0}, "damping"),
        ({"damping": math.nan}, "damping"),
        ({"damping": "a"}, "damping"),
        ({"steps": True}, "steps"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=rf"Recover\.{name}"):
        Recover(Recorded(torch.zeros(1, 2), torch.zeros(1, 1)), **settings)


def test_a_network_is_no_source() -> None:
    with pytest.raises(InputError, match=r"Recover\.source.*Teacher\(intact network, inputs\).*got Network"):
        Recover(NETWORKS["mlp-relu"].network())  # type: ignore[arg-type]


def test_what_cannot_be_recovered_is_said_by_recover() -> None:
    case = NETWORKS["mlp-relu"]
    net, inputs = case.network(), case.inputs(4, "x")
    name = next(iter(net.weights))
    broken = net.with_weights({name: torch.full_like(net.weights[name], math.nan)})
    with pytest.raises(InputError, match=r"^Recover\(net\): expected finite outputs.*4 of 4"):
        next(Recover(Recorded(inputs, net(inputs)))(broken, RNG))
    bag = Network.of(nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 2)))
    tokens = torch.arange(12).view(4, 3) % 9
    with pytest.raises(InputError, match=r"^Recover\(net\).*differentiate twice.*_embedding_bag_backward"):
        next(Recover(Recorded(tokens, bag(tokens) + 1))(bag, RNG))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_recovers_in_its_own_type(dtype: torch.dtype) -> None:
    case = NETWORKS["mlp-tanh"]
    net, inputs = Network.of(case.network().to_module().to(dtype)), case.inputs(40, "x").to(dtype)
    name = next(n for n, w in net.weights.items() if w.ndim == 2)
    lost = {name: torch.zeros_like(net.weights[name], dtype=torch.bool)}
    lost[name][:2] = True
    lesioned = net.with_weights({name: net.weights[name] * ~lost[name]}).pin(lost)
    end = last(Recover(Teacher(net, inputs), steps=4), lesioned)
    assert all(w.dtype == dtype for w in end.weights.values())
    assert distance(end, net, inputs) < 0.5 * distance(lesioned, net, inputs)


@pytest.mark.parametrize(
    "outputs", [torch.full((3, 1), math.nan), torch.zeros(0, 1), torch.zeros(3, 1, dtype=torch.long), None]
)
def test_outputs_that_are_no_numbers_are_refused(outputs: Tensor) -> None:
    with pytest.raises(InputError, match=r"Recorded\.outputs"):
        Recorded(torch.zeros(3, 2), outputs)


def test_a_source_of_another_network_is_refused() -> None:
    net, other = NETWORKS["mlp-relu"].network(), NETWORKS["mlp-norms"].network()
    inputs = NETWORKS["mlp-relu"].inputs(4, "x")
    outputs = net(inputs)
    for source, where in (
        (Teacher(other, inputs), r"Teacher\.net"),
        (Teacher(net, inputs[:0]), r"Teacher\.inputs"),
        (Teacher(net, inputs * math.inf), r"Teacher\.inputs"),
        (Teacher(net, inputs, torch.zeros(4)), r"Teacher\.importance"),
        (Recorded(inputs, outputs[:3]), r"Recorded\.outputs"),
        (Recorded(inputs, outputs[:, :1].clone()), r"Recorded\.outputs"),
    ):
        with pytest.raises(InputError, match=where):
            next(Recover(source)(net, RNG))
