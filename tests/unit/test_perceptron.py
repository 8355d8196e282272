"""Perceptrons are trained by hand, and end where automatic differentiation ends; anything else is left to it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import NETWORKS, hurt
from planaria.core.motion import Moment, settle, steps
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomEntries, RandomUnits
from planaria.measure.data import Data
from planaria.measure.task import LOSSES, Loss, Task
from planaria.repair import descent
from planaria.repair.distil import Distil
from planaria.repair.perceptron import Perceptron, Settings
from planaria.repair.regrow import Regrow
from planaria.repair.retrain import SGD, Adam, AdamW, Optimiser, Retrain
from purity import state, untouched

OPTIMISERS: tuple[Optimiser, ...] = (
    SGD(0.05),
    SGD(0.05, momentum=0.0),
    SGD(0.02, momentum=0.5, decay=0.1),
    Adam(0.003),
    Adam(0.003, decay=0.1),
    AdamW(0.003, decay=0.1),
)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks of these tests are so small that it would not be worth while."""
    monkeypatch.setattr(descent, "WORTHWHILE", 0)


def perceptron(widths: list[int], *, bias: bool = True, seed: int = 0, double: bool = False) -> Network:
    rng = stream(seed, "perceptron")
    parts: list[nn.Module] = []
    for read, made in pairwise(widths):
        parts += [nn.Linear(read, made, bias=bias), nn.ReLU()]
    model = nn.Sequential(*parts[:-1])
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=rng) / weight[0].numel() ** 0.5)
    return Network.of(model.double() if double else model)


def task_for(net: Network, *, examples: int = 24, loss: str | Loss = "cross_entropy", seed: int = 0) -> Task:
    rng = stream(seed, "data")
    weights = list(net.weights.values())
    first, last = weights[0], weights[-1]
    inputs = torch.randn(examples, first.shape[1], generator=rng).to(first)
    labels = torch.randint(len(last), (examples,), generator=rng)
    targets = torch.randn(examples, len(last), generator=rng).to(first) if loss == "mse" else labels
    data = Data(inputs, targets)
    function = LOSSES[loss] if isinstance(loss, str) else loss
    return Task("some", data, data, data, function, NETWORKS["mlp-relu"].task().scorer, None)


def moments(flow: Any, net: Network, number: int = 5) -> list[Moment]:
    return list(islice(flow(net, stream(0, "x")), number))


def plainly(flow: Any, net: Network, number: int = 5) -> list[Moment]:
    """The same by modules and automatic differentiation, dead units and all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(descent, "WORTHWHILE", float("inf"))
        return moments(flow, net, number)


def assert_same(ours: list[Moment], theirs: list[Moment], start: Network, tolerance: float = 2e-4) -> None:
    """Equal up to rounding at every update, and bit-identical where pinned."""
    for one, other in zip(ours, theirs, strict=True):
        for name, plasticity in start.plasticity.items():
            a, b, pinned = one.network.weights[name], other.network.weights[name], plasticity == 0
            assert torch.equal(a[pinned], start.weights[name][pinned]), f"{name} has moved"
            moved = float((b - start.weights[name]).abs().max())
            assert float((a - b).abs().max()) <= tolerance * moved + 1e-6, name
        assert one.cost.examples == other.cost.examples and one.cost.multiply_adds <= other.cost.multiply_adds


def by_hand(net: Network, task: Task) -> bool:
    return Perceptron.of(net, task.train, Settings(task.loss, 4, stream(0, "x"), 0.9, False)) is not None


# --------------------------------------------------------------------------------------- as automatic differentiation


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    bias=st.booleans(),
    double=st.booleans(),
    dose=st.sampled_from([0.0, 0.3, 0.6]),
    cut=st.sampled_from([0.0, 0.2]),
    batch=st.integers(1, 30),
    optimiser=st.sampled_from(OPTIMISERS),
    loss=st.sampled_from(["cross_entropy", "mse"]),
    horizon=st.sampled_from([None, 3]),
    seed=st.integers(0, 9),
)
def test_it_ends_where_automatic_differentiation_ends(
    widths: list[int],
    bias: bool,
    double: bool,
    dose: float,
    cut: float,
    batch: int,
    optimiser: Optimiser,
    loss: str,
    horizon: int | None,
    seed: int,
) -> None:
    net = perceptron(widths, bias=bias, seed=seed, double=double)
    task = task_for(net, loss=loss, seed=seed)
    net = net.with_inputs(task.train.inputs)
    if len(widths) > 2:
        net = Damage(Silence(), RandomUnits()).at(dose)(net, stream(seed, "units"))
    net = Damage(Silence(), RandomEntries()).at(cut)(net, stream(seed, "entries"))
    flow = Retrain(task, optimiser, batch, horizon)
    with untouched(net, task):
        ours = moments(flow, net)
    # Adam divides by the size of a gradient: where that is rounding, so is the step.
    loose = 0.02 if isinstance(optimiser, Adam | AdamW) and not double else 2e-4
    assert_same(ours, plainly(flow, net), net, loose)


def test_the_perceptron_of_the_table_is_one_and_loses_its_dead_units() -> None:
    net, task = hurt(NETWORKS["mlp-relu"]), NETWORKS["mlp-relu"].task()
    found = Perceptron.of(net, task.train, Settings(task.loss, 8, stream(0, "x"), 0.9, True))
    assert found is not None
    alive = [7 - int((net.weights["0.weight"] == 0).all(1).sum()), 5 - int((net.weights["2.weight"] == 0).all(1).sum())]
    assert found.multiply_adds == 6 * alive[0] + alive[0] * alive[1] + alive[1] * 3 < 6 * 7 + 7 * 5 + 5 * 3
    assert len(found.vector) == found.multiply_adds + sum(alive) + 3


def test_a_layer_that_is_dead_as_a_whole_keeps_one_unit_and_the_biases_behind_it_learn() -> None:
    net = perceptron([4, 3, 3, 2])
    dead = {"0.weight": torch.ones(3, 4, dtype=torch.bool), "0.bias": torch.ones(3, dtype=torch.bool)}
    zero = net.with_weights({name: torch.zeros_like(net.weights[name]) for name in dead}).pin(dead)
    # Automatic differentiation forms no gradient of a matrix that is pinned as a whole.
    assert not by_hand(zero, task_for(zero))
    read = {"2.weight": torch.ones(3, 3, dtype=torch.bool)}
    unread = net.with_weights({"2.weight": torch.zeros(3, 3)}).pin(read)
    for start in (zero, unread):
        flow = Retrain(task_for(start), SGD(0.1), 8)
        ours = moments(flow, start)
        assert_same(ours, plainly(flow, start), start)
        assert not torch.equal(ours[-1].network.weights["4.bias"], start.weights["4.bias"])


@pytest.mark.parametrize("others", [0.0, 0.1, 1.0])
def test_plasticity_between_pinned_and_ordinary_slows_the_vector(others: float) -> None:
    case = NETWORKS["mlp-relu"]
    net = Regrow(others=others)(hurt(case), stream(0, "regrow"))
    assert by_hand(net, case.task())
    flow = Retrain(case.task(), SGD(0.05, decay=0.01), 8)
    assert_same(moments(flow, net), plainly(flow, net), net)


def test_pinned_zeros_keep_their_sign_beside_slow_entries() -> None:
    net = perceptron([4, 3, 2])
    pinned = {"0.weight": torch.zeros(3, 4, dtype=torch.bool).index_fill(1, torch.tensor([1]), True)}
    net = net.with_weights({"0.weight": net.weights["0.weight"].masked_fill(pinned["0.weight"], -0.0)}).pin(pinned)
    net = net.with_plasticity({"2.weight": torch.full((2, 3), 0.5)})
    for run in (moments, plainly):
        end = run(Retrain(task_for(net), SGD(0.1), 8), net)[-1].network.weights["0.weight"]
        assert bool((end[:, 1] == 0).all()) and bool(end[:, 1].signbit().all())


def test_a_training_that_diverges_diverges_alike_and_leaves_the_pinned_alone() -> None:
    net = hurt(NETWORKS["mlp-relu"], 0.3)
    for plasticity in (None, 0.5):
        start = net if plasticity is None else net.with_plasticity({"4.bias": torch.full((3,), plasticity)})
        flow = Retrain(NETWORKS["mlp-relu"].task(), SGD(1e30), 8)
        for run in (moments, plainly):
            end = run(flow, start, 8)[-1].network
            assert not all(bool(weight.isfinite().all()) for weight in end.weights.values())
            for name, weight in end.weights.items():
                pinned = start.plasticity[name] == 0
                assert torch.equal(weight[pinned], start.weights[name][pinned])


def test_images_are_flattened() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3)))
    rng = stream(0, "images")
    data = Data(torch.randn(20, 3, 2, 2, generator=rng), torch.randint(3, (20,), generator=rng))
    task = Task("images", data, data, data, LOSSES["cross_entropy"], NETWORKS["mlp-relu"].task().scorer, 3)
    net = Network.of(model, data.inputs)
    assert by_hand(net, task)
    assert_same(moments(Retrain(task, SGD(0.1), 8), net), plainly(Retrain(task, SGD(0.1), 8), net), net)


def test_distillation_goes_by_hand_too() -> None:
    case = NETWORKS["mlp-relu"]
    net = hurt(case)
    for temperature in (None, 4.0):
        flow = Distil(case.network(), case.inputs(24, "train"), SGD(0.02), batch=8, temperature=temperature)
        assert_same(moments(flow, net), plainly(flow, net), net)


# ----------------------------------------------------------------------------------------------- losses, streams


def test_a_loss_may_draw_random_numbers_and_keep_what_it_is_given() -> None:
    seen: list[Tensor] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(outputs.detach())
        return nn.functional.cross_entropy(outputs + torch.randn_like(outputs), targets)

    net = perceptron([4, 3, 3])
    flow = Retrain(task_for(net, loss=loss), SGD(0.1), 8)
    before = torch.default_generator.get_state()
    ours = moments(flow, net)
    mine = [outputs.clone() for outputs in seen]
    assert torch.equal(torch.default_generator.get_state(), before)
    assert_same(ours, plainly(flow, net), net)
    assert len(mine) == 5 and len({float(outputs.sum()) for outputs in mine}) == 5
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(mine, seen[5:], strict=True))


def test_the_same_stream_gives_the_same_bytes_and_moments_stay_what_they_were() -> None:
    net = hurt(NETWORKS["mlp-relu"])
    for optimiser in OPTIMISERS:
        flow = Retrain(NETWORKS["mlp-relu"].task(), optimiser, 8)
        at_once = [state(moment.network) for moment in islice(flow(net, stream(0, "x")), 5)]
        kept = [state(moment.network) for moment in reversed(moments(flow, net))]
        assert kept[::-1] == at_once and len(set(at_once)) == 5


def test_weights_of_a_result_have_memory_of_their_own() -> None:
    weights = moments(Retrain(NETWORKS["mlp-relu"].task()), NETWORKS["mlp-relu"].network())[-1].network.weights
    assert len({weight.untyped_storage().data_ptr() for weight in weights.values()}) == len(weights)
    assert not any(weight.requires_grad for weight in weights.values())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_it_works_in_every_mode_of_differentiation(mode: Callable[[], Any]) -> None:
    net = hurt(NETWORKS["mlp-relu"])
    for flow in (
        Retrain(NETWORKS["mlp-relu"].task(), SGD(0.1), 8),
        Distil(net, NETWORKS["mlp-relu"].inputs(24), SGD(0.1), 8),
    ):
        expected = settle(flow, steps(3))(net, stream(0, "x")).sha256
        with mode():
            assert settle(flow, steps(3))(net, stream(0, "x")).sha256 == expected


def test_what_was_set_up_is_in_the_ledger() -> None:
    first, second = (
        moment.cost for moment in moments(Retrain(NETWORKS["mlp-relu"].task()), hurt(NETWORKS["mlp-relu"]), 2)
    )
    assert 0 < first.seconds <= second.seconds
    assert second.multiply_adds == 2 * first.multiply_adds and second.backward_passes == 2


# -------------------------------------------------------------------------------------------- only what it can do


class Twice(nn.Sequential):
    """Goes through its layers in a way of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice what its layers put out."""
        outputs: Tensor = nn.Sequential.forward(self, x)
        return 2 * outputs


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    model[1].register_forward_hook(lambda module, inputs, output: 3 * output)
    return model


def replaced() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    model[1].forward = torch.tanh
    return model


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    return model


def again() -> nn.Module:
    shared = nn.Linear(6, 6)
    return nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(6, 3))


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 3)),
    "normalised": lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)),
    "two products in a row": lambda: nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)),
    "a ReLU at the end": lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU()),
    "a ReLU first": lambda: nn.Sequential(nn.ReLU(), nn.Linear(6, 3)),
    "a bare layer": lambda: nn.Linear(6, 3),
    "of its own make": lambda: Twice(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)),
    "hooked": hooked,
    "replaced": replaced,
    "tied": tied,
    "again": again,
    "frozen": lambda: nn.Sequential(nn.Linear(6, 4).requires_grad_(False), nn.ReLU(), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_is_left_to_automatic_differentiation(name: str) -> None:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net = Network.of(OTHERS[name](), NETWORKS["mlp-relu"].inputs(3))
    task = NETWORKS["mlp-relu"].task()
    assert not by_hand(net, task)
    flow = Retrain(task, SGD(0.1), 8)
    assert [state(m.network) for m in moments(flow, net)] == [state(m.network) for m in plainly(flow, net)]


def test_a_relu_that_comes_again_is_no_obstacle() -> None:
    relu = nn.ReLU()
    net = Network.of(nn.Sequential(nn.Linear(6, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 3)))
    assert by_hand(net, NETWORKS["mlp-relu"].task())


def test_inputs_of_another_kind_or_shape_are_left_to_the_module() -> None:
    net, task = NETWORKS["mlp-relu"].network(), NETWORKS["mlp-relu"].task()
    for inputs in (task.train.inputs.double(), task.train.inputs[:, None], task.train.inputs[:, :5]):
        other = Data(inputs, task.train.targets)
        assert Perceptron.of(net, other, Settings(task.loss, 4, stream(0, "x"), 0.9, False)) is None
    with torch.autocast("cpu"):
        assert not by_hand(net, task)
