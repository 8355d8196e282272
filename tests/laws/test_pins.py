"""Law: pinned entries never move, whatever flow and optimiser; other entries move by w + p (target - w)."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import FLOWS_ON_NETWORKS, NETWORKS, NetworkCase, Row, hurt
from planaria.core.anatomy import Anatomy, silence
from planaria.core.motion import settle, steps
from planaria.core.network import Network, law
from planaria.core.streams import stream
from planaria.core.trees import Entries
from planaria.repair.regrow import Regrow
from planaria.repair.retrain import SGD, Adam, AdamW, Optimiser, Retrain

CASES = pytest.mark.parametrize("case", NETWORKS.values(), ids=str)
PAIRS = pytest.mark.parametrize(("case", "row"), FLOWS_ON_NETWORKS, ids=str)
OPTIMISERS = {
    "sgd-momentum-decay": SGD(0.05, momentum=0.9, decay=0.1),
    "adam-decay": Adam(0.02, decay=0.1),
    "adamw-decay": AdamW(0.02, decay=0.5),
}
OPTIMISER = pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=list(OPTIMISERS))
PLAIN = [
    "mlp-relu",
    "mlp-norms",
    "cnn-batchnorm",
    "residual",
    "attention-stacked",
    "tied",
    "double",
    "conv1d",
]


def scattered(net: Network, seed: int, share: float = 0.4) -> Entries:
    """A random part of all entries."""
    rng = stream(seed, "pins")
    return {name: torch.rand(w.shape, generator=rng) < share for name, w in net.weights.items()}


def moved_ones(before: Network, after: Network) -> Entries:
    return {name: before.weights[name] != after.weights[name] for name in before.weights}


def assert_held(before: Network, after: Network, pinned: Entries) -> None:
    for name, hit in pinned.items():
        assert torch.equal(before.weights[name][hit], after.weights[name][hit]), f"{name} has moved"
        assert bool((after.plasticity[name][hit] == 0).all()), f"{name} is no longer pinned"


@CASES
@OPTIMISER
def test_pinned_entries_do_not_move_under_retraining(case: NetworkCase, optimiser: Optimiser) -> None:
    net = case.network()
    pinned = scattered(net, case.seed)
    start = net.pin(pinned)
    flow = Retrain(case.task(), optimiser, batch=8)
    end = settle(flow, steps(8))(start, stream(0, "x"))
    assert_held(start, end, pinned)
    free = sum(int((~hit).sum()) for name, hit in pinned.items() if "tap_" not in name)
    moved = sum(int(hit.sum()) for hit in moved_ones(start, end).values())
    assert moved > 0.3 * free, "hardly anything was trained at all"


@PAIRS
def test_pinned_entries_do_not_move_under_any_flow(case: NetworkCase, row: Row) -> None:
    damaged = hurt(case)
    dead = {name: p == 0 for name, p in damaged.plasticity.items()}
    scatter = scattered(damaged, case.seed + 1)
    start = damaged.pin(scatter)
    # Regrowing replaces what belongs to dead units; pins elsewhere stay.
    anatomy = Anatomy.of(damaged)
    units = [u for u in anatomy.units() if bool(anatomy.dead(start)[u.layer][u.index])]
    regrown = anatomy.entries(units).all if row.name.startswith(("regrow", "turnover")) else {}
    held = {
        name: (scatter[name] | dead[name]) & ~regrown.get(name, torch.zeros_like(hit)) for name, hit in scatter.items()
    }
    if row.name == "turnover":
        return  # its own damage and regrowing may replace any unit
    *_, last = islice(row.make(case)(start, stream(0, "x")), 4)
    assert_held(start, last.network, held)


@CASES
@OPTIMISER
def test_dead_units_stay_dead_under_retraining(case: NetworkCase, optimiser: Optimiser) -> None:
    damaged, anatomy = hurt(case, 0.6), Anatomy.of(case.network())
    end = settle(Retrain(case.task(), optimiser, batch=8), steps(6))(damaged, stream(0, "x"))
    for layer, dead in anatomy.dead(damaged).items():
        assert torch.equal(anatomy.dead(end)[layer], dead)
    inputs = case.inputs(6, "many")
    units = [u for u in anatomy.units() if bool(anatomy.dead(damaged)[u.layer][u.index])]
    silenced = silence(end, anatomy.entries(units).all)
    assert torch.equal(end(inputs), silenced(inputs)), "a dead unit speaks"


# ------------------------------------------------------------------------------------------------- the law


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4),
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4),
    st.lists(st.floats(0, 2, width=32), min_size=4, max_size=4),
)
def test_the_law_of_motion(weight: list[float], target: list[float], plasticity: list[float]) -> None:
    w, to, p = torch.tensor(weight), torch.tensor(target), torch.tensor(plasticity)
    moved = law(w, to, p)
    exact = w.double() + p.double() * (to.double() - w.double())
    scale = w.abs().max().double() + to.abs().max().double() + 1e-6
    assert bool(((moved.double() - exact).abs() <= 1e-6 * scale * 4).all())
    assert torch.equal(moved[p == 0], w[p == 0])
    assert torch.equal(moved[p == 1], to[p == 1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_pinned_entry_stays_even_when_its_target_is_not_finite(bad: float) -> None:
    w, to = torch.tensor([1.0, 2.0]), torch.tensor([bad, bad])
    moved = law(w, to, torch.tensor([0.0, 1.0]))
    assert float(moved[0]) == 1.0
    assert not bool(moved[1].isfinite())


def test_an_entry_that_is_not_finite_reaches_a_finite_target() -> None:
    moved = law(torch.tensor([float("nan"), float("inf")]), torch.zeros(2), torch.tensor([1.0, 1.0]))
    assert torch.equal(moved, torch.zeros(2))
    mixed = law(torch.tensor([float("inf"), 1.0]), torch.zeros(2), torch.tensor([1.0, 0.5]))
    assert torch.equal(mixed, torch.tensor([0.0, 0.5]))


def test_names_left_out_of_a_move_stay() -> None:
    net = NETWORKS["mlp-relu"].network()
    moved = net.move({"0.bias": torch.zeros(7)})
    assert torch.equal(moved.weights["0.bias"], torch.zeros(7))
    assert all(moved.weights[name] is net.weights[name] for name in net.weights if name != "0.bias")


# ---------------------------------------------------------------------------------------------- twin loops


def plain_training(
    case: NetworkCase, net: Network, optimiser: Optimiser, seed: int, number: int, plasticity: float = 1.0
) -> nn.Module:
    """Training as anyone would write it, with the batches that the stream gives."""
    rng = stream(seed, "x")
    task, size = case.task(), 8
    module = net.to_module().train()
    stepper = optimiser.build(module.parameters())
    order: list[int] = []
    for _ in range(number):
        while len(order) < size:
            order += torch.randperm(len(task.train), generator=rng).tolist()
        rows, order = order[:size], order[size:]
        seed_of_dropout = int(torch.randint(2**62, (), generator=rng))
        with torch.random.fork_rng():
            torch.manual_seed(seed_of_dropout)
            loss = nn.functional.cross_entropy(module(task.train.inputs[rows]), task.train.targets[rows])
        stepper.zero_grad()
        loss.backward()
        before = [parameter.detach().clone() for parameter in module.parameters()]
        stepper.step()
        if plasticity != 1.0:
            with torch.no_grad():
                for parameter, old in zip(module.parameters(), before, strict=True):
                    parameter.copy_(old + plasticity * (parameter - old))
    return module.eval()


@OPTIMISER
@pytest.mark.parametrize("name", [*PLAIN, "dropout", "transformer-post-norm"])
def test_plasticity_one_is_plain_torch_training_bit_for_bit(name: str, optimiser: Optimiser) -> None:
    case = NETWORKS[name]
    net = case.network()
    twin = plain_training(case, net, optimiser, seed=5, number=6)
    ours = settle(Retrain(case.task(), optimiser, batch=8), steps(6))(net, stream(5, "x"))
    for parameter_name, parameter in twin.named_parameters():
        assert torch.equal(ours.weights[parameter_name], parameter.detach()), parameter_name
    for buffer_name, buffer in twin.named_buffers():
        assert torch.equal(ours.buffers[buffer_name], buffer), buffer_name
    inputs = case.inputs(4, "many")
    with torch.no_grad():
        assert torch.allclose(ours(inputs), twin(inputs), atol=1e-6)


@OPTIMISER
@pytest.mark.parametrize("plasticity", [0.1, 0.5, 1.5, 2.0])
def test_other_plasticities_scale_every_step(optimiser: Optimiser, plasticity: float) -> None:
    case = NETWORKS["mlp-gelu-no-bias"]
    net = case.network()
    slow = net.with_plasticity({name: torch.full_like(w, plasticity) for name, w in net.weights.items()})
    twin = plain_training(case, net, optimiser, seed=6, number=5, plasticity=plasticity)
    ours = settle(Retrain(case.task(), optimiser, batch=8), steps(5))(slow, stream(6, "x"))
    for name, parameter in twin.named_parameters():
        assert torch.allclose(ours.weights[name], parameter.detach(), rtol=1e-4, atol=1e-6), name


@OPTIMISER
def test_the_fused_optimiser_is_the_ordinary_one(optimiser: Optimiser) -> None:
    def stepped(fused: bool) -> Tensor:
        parameter = nn.Parameter(torch.linspace(-1, 1, 20))
        built = optimiser.build([parameter])
        for group in built.param_groups:
            group["fused"], group["foreach"] = fused, False
        for turn in range(5):
            parameter.grad = torch.sin(parameter.detach() * (turn + 1))
            built.step()
        return parameter.detach()

    assert torch.allclose(stepped(True), stepped(False), rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------------------ learning rate 0


@CASES
@pytest.mark.parametrize("optimiser", [SGD(0.0, decay=0.1), Adam(0.0, decay=0.1), AdamW(0.0, decay=0.1)], ids=repr)
def test_learning_rate_zero_is_the_identity_on_weights(case: NetworkCase, optimiser: Optimiser) -> None:
    net = hurt(case)
    end = settle(Retrain(case.task(), optimiser, batch=8), steps(3))(net, stream(0, "x"))
    for name, weight in net.weights.items():
        assert torch.equal(weight, end.weights[name]), name


def test_the_cosine_ends_at_rate_zero() -> None:
    case = NETWORKS["mlp-relu"]
    flow = Retrain(case.task(), SGD(0.1), batch=8, horizon=4)
    moments = list(islice(flow(case.network(), stream(0, "x")), 7))
    moves = [
        float((b.network.weights["0.weight"] - a.network.weights["0.weight"]).abs().max()) for a, b in pairwise(moments)
    ]
    assert all(move > 0 for move in moves[:3])
    assert moves[3:] == [0.0, 0.0, 0.0]


def test_frozen_parameters_of_the_users_model_stay_frozen() -> None:
    case = NETWORKS["mlp-relu"]
    model = case.build()
    model[0].weight.requires_grad_(False)  # type: ignore[index,union-attr]
    net = Network.of(model, case.inputs(3))
    end = settle(Retrain(case.task(), AdamW(0.1, decay=0.5), batch=8), steps(3))(net, stream(0, "x"))
    assert torch.equal(end.weights["0.weight"], net.weights["0.weight"])
    assert not torch.equal(end.weights["2.weight"], net.weights["2.weight"])


def test_regrowing_leaves_pins_elsewhere_and_scales_the_plasticity_of_the_rest() -> None:
    case = NETWORKS["mlp-relu"]
    damaged = hurt(case)
    pin = {"4.bias": torch.tensor([True, False, False])}
    grown = Regrow(others=0.25)(damaged.pin(pin), stream(0, "x"))
    assert grown.plasticity["4.bias"].tolist() == [0.0, 0.25, 0.25]
