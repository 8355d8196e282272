"""Laws of the geometry on models and mistakes as users bring them.

Each number is compared with torch's own gradients and plain sums; each mistake ends in an error that says what to do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import foreign
from planaria.core.anatomy import Unit
from planaria.core.errors import InputError
from planaria.core.motion import Moment
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits
from planaria.geometry.align import ByWeights, align
from planaria.geometry.bend import Bezier
from planaria.geometry.connect import connect
from planaria.geometry.distances import answer_distances, output_distances, weight_distances
from planaria.geometry.embed import embed
from planaria.geometry.geodesic import Geodesic
from planaria.geometry.greedy import Greedy
from planaria.geometry.metric import Metric
from planaria.geometry.normalise import renormalised
from planaria.geometry.outputs import Euclidean
from planaria.geometry.path import Path
from planaria.geometry.placing import PCA
from planaria.geometry.profile import profile
from planaria.geometry.straight import Straight, Way
from planaria.geometry.symmetry import permute, symmetries
from planaria.measure.task import Task
from planaria.repair.recover import Recorded, Recover
from planaria.repair.refit import Teacher
from planaria.study.breakdown import along_path
from planaria.study.plane import Plane
from planaria.study.resilience import resilience
from planaria.study.surface import surface
from planaria.study.walk import walk

ROWS = 30
QUICK: list[Way] = [
    Straight(),
    Straight(ByWeights()),
    Bezier(updates=4),
    Geodesic(nets=4, updates=4),
    Greedy(steps=2, inputs=10, close=Geodesic(nets=3, updates=2)),
]
WAYS = pytest.mark.parametrize("way", QUICK, ids=["straight", "aligned", "bezier", "geodesic", "greedy"])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(build: Callable[[], nn.Module], seed: int, inputs: Any) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network.of(build(), inputs)


def perceptron(outputs: int = 3, *after: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, outputs), *after)


def classes() -> Task:
    inputs, labels = drawn(ROWS, 4), torch.arange(ROWS) % 3
    return Task.of("classes", (inputs, labels), (inputs, labels), validation=(inputs, labels))


def numbers() -> Task:
    """A regression whose targets and outputs are [N], without an axis of outputs."""
    inputs, targets = drawn(ROWS, 4), drawn(ROWS, seed=1)
    data = (inputs, targets)
    return Task.of("numbers", data, data, validation=data, loss="mse", score="r2")


def one_number() -> nn.Module:
    return perceptron(1, nn.Flatten(0))


def jacobian(net: Network, inputs: Any) -> Tensor:
    """Of the user's own module, one output after another by torch's gradients; [outputs, weights]."""
    module = net.to_module().eval()
    named = dict(module.named_parameters())
    leaves = [named[name].requires_grad_() for name in net.weights]
    outputs = net.port(module, net.port.rows(inputs)).reshape(-1)
    rows = [torch.autograd.grad(o, leaves, retain_graph=True, materialize_grads=True) for o in outputs]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in weights.values()])


def last(moments: Any) -> Moment:
    *_, moment = moments
    found: Moment = moment
    return found


# ---------------------------------------------------------------------------------------- outputs without an axis


@WAYS
def test_networks_that_return_one_number_per_example_are_connected(way: Way) -> None:
    task = numbers()
    a, b = (made(one_number, seed, task.train.examples) for seed in (1, 2))
    path = connect(a, b, task, by=way, points=3)
    found = path.profiles["test"]
    outputs = [path(t)(task.test.inputs) for t in found.times]
    lengths = [float((two - one).square().mean().sqrt()) for one, two in pairwise(outputs)]
    assert found.length <= sum(lengths) * (1 + 1e-5)
    assert found.length >= float((outputs[-1] - outputs[0]).square().mean().sqrt()) * (1 - 1e-5)
    json.dumps(path.to_dict(), allow_nan=False)


def test_one_number_per_example_has_the_geometry_of_one_output_per_example() -> None:
    task = numbers()
    bare, column = (made(build, 1, task.train.examples) for build in (one_number, lambda: perceptron(1)))
    inputs = task.test.inputs
    found, wanted = (resilience(net, inputs, examples=12, repeats=1, points=3, sample=4) for net in (bare, column))
    assert found.layers == wanted.layers and found.breakdowns == wanted.breakdowns
    assert Metric(bare, inputs).largest == pytest.approx(Metric(column, inputs).largest, rel=1e-5)
    assert output_distances([bare, bare], inputs)[0, 1] == 0.0
    inside = surface(bare, task, points=3)
    assert inside.loss[1][1] == pytest.approx(float(F.mse_loss(bare(inputs), task.test.targets)))


# --------------------------------------------------------------------------------- operations torch knows one way


class Backwards(torch.autograd.Function):
    """Sums an example's rows of a table; has no derivative forwards."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.height = len(table)
        return table[places].sum(1)

    @staticmethod
    def backward(ctx: Any, back: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        spread = back[:, None].expand(-1, places.shape[1], -1).reshape(-1, back.shape[1])
        return back.new_zeros(ctx.height, back.shape[1]).index_add(0, places.reshape(-1), spread), None


class Bags(nn.Module):
    """An embedding by an operation of its own."""

    def __init__(self, bag: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.up, self.out, self.bag = nn.Embedding(9, 4), nn.Linear(4, 5), nn.Linear(5, 2), bag

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.up(self.bag(self.table.weight, tokens))))


def test_a_network_that_torch_differentiates_backwards_only_has_a_speed_along_its_damage() -> None:
    tokens = torch.arange(24).reshape(8, 3) % 9

    def plain(table: Tensor, places: Tensor) -> Tensor:
        return table[places].sum(1)

    own = made(lambda: Bags(Backwards.apply), 0, tokens)
    twin = made(lambda: Bags(plain), 0, tokens)
    lesion = [Unit("up", 1), Unit("up", 4)]
    found, wanted = (along_path(net, lesion, tokens, Euclidean(), 3, None, None) for net in (own, twin))
    assert found.speed == pytest.approx(wanted.speed, rel=1e-4) and min(found.speed) > 0


# ------------------------------------------------------------------------------------------------ another device


def test_inputs_that_are_not_on_the_device_of_the_networks_are_brought_there() -> None:
    inputs = drawn(8, 4)

    def normal() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))

    a, b = (made(normal, seed, inputs) for seed in (1, 2))
    wanted = renormalised(a, inputs).buffers["1.running_mean"]
    with foreign.Foreign():
        there = [net.to(foreign.AWAY) for net in (a, b)]
        assert torch.allclose(renormalised(there[0], inputs).buffers["1.running_mean"].to("cpu"), wanted)
        for measure in (output_distances, answer_distances):
            assert torch.allclose(measure(there, inputs), measure([a, b], inputs))
        between = Path((there[0], there[1]), calibration=inputs)(0.5)(inputs.to(foreign.AWAY)).to("cpu")
    assert torch.allclose(between, Path((a, b), calibration=inputs)(0.5)(inputs), atol=1e-6)


def test_a_map_of_resilience_is_the_same_on_another_device() -> None:
    inputs = drawn(8, 4)
    net = made(perceptron, 1, inputs)

    def mapped(net: Network) -> Any:
        found = resilience(net, inputs, examples=8, sample=4, repeats=1, points=2, spectrum=False)
        return replace(found, seconds=0.0).to_dict()

    with foreign.Foreign():
        found = mapped(net.to(foreign.AWAY))
    wanted = mapped(net)
    assert found["layers"] == wanted["layers"]
    speeds = [one["breakdowns"][0]["runs"][0]["speed"] for one in (found, wanted)]
    assert speeds[0] == pytest.approx(speeds[1], rel=1e-5) and speeds[0][0] > 0


# ------------------------------------------------------------------------------------------------------- mistakes


def test_a_way_that_was_not_made_yet_is_an_error_that_shows_one() -> None:
    task = classes()
    net = made(perceptron, 1, task.train.examples)
    for wrong in (Straight, "straight", [], [Straight(), Bezier]):
        with pytest.raises(InputError, match=r"one way or more: Straight\(\)"):
            connect(net, net, task, by=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("calibration", [0, -3, 2.5])
def test_a_calibration_set_of_no_inputs_is_an_error(calibration: float) -> None:
    task = classes()
    net = made(perceptron, 1, task.train.examples)
    with pytest.raises(InputError, match=r"connect\(calibration\)"):
        connect(net, net, task, by=Straight(), calibration=calibration)  # type: ignore[arg-type]


def test_recovery_refuses_a_normalisation_that_looks_at_the_whole_batch() -> None:
    net = made(lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False)), 1, drawn(8, 4))
    with pytest.raises(InputError, match="statistics of the batch"):
        last(Recover(Teacher(net, drawn(8, 4)))(net, stream(0, "recover")))


def test_statistics_are_not_estimated_on_inputs_that_are_not_finite() -> None:
    net = Network.of(nn.BatchNorm1d(4))
    inputs = drawn(6, 4)
    inputs[2, 1] = torch.nan
    with pytest.raises(InputError, match="finite inputs"):
        renormalised(net, inputs)
    same = renormalised(net, drawn(1, 4).repeat(6, 1))
    assert bool(same(drawn(6, 4)).isfinite().all()) and float(same.buffers["running_var"].max()) < 1e-12


def test_a_trajectory_is_no_walk_to_draw_and_the_error_says_what_is() -> None:
    task = classes()
    net = made(perceptron, 1, task.train.examples)

    def drift(net: Network, rng: torch.Generator) -> Any:
        while True:
            net = net.move({name: w + 0.1 * torch.randn(w.shape, generator=rng) for name, w in net.weights.items()})
            yield Moment(net)

    life = walk(net, drift, 3)
    with pytest.raises(InputError, match=r"networks\.values"):
        surface(net, task, points=3, walk=life)  # type: ignore[arg-type]
    assert len(surface(net, task, points=3, walk=list(life.networks.values())).to_dict()["walk"]) == 4


def test_distances_that_cannot_be_squared_and_methods_that_are_none_are_errors() -> None:
    points = drawn(8, 3)
    apart = torch.cdist(points, points)
    for wrong in (apart.double() * 1e200, apart.double() * 1e-200):
        with pytest.raises(InputError, match="squares"):
            embed(wrong, methods=[PCA()])
    for methods in (["pca"], [PCA], []):
        with pytest.raises(InputError, match=r"PCA\(\)"):
            embed(apart, methods=methods)  # type: ignore[arg-type]
    for rows in (["a"], [0, 99], [0.5, 1.5]):
        with pytest.raises(InputError, match="rows from 0 to 7"):
            embed(apart, methods=[PCA()], walks={"one": rows})  # type: ignore[dict-item]
    shares = embed(apart.numpy().astype(np.float32), methods=[PCA()], walks={"all": list(np.arange(8))})
    json.dumps(shares.to_dict(), allow_nan=False)


# ----------------------------------------------------------------------------------------------- broken networks


def test_a_path_through_nan_says_where_it_breaks_and_is_plain_json() -> None:
    task = classes()
    a, b = (made(perceptron, seed, task.train.examples) for seed in (1, 2))
    broken = b.with_weights({"0.weight": torch.full((6, 4), torch.nan)})
    found = profile(Path((a, broken, b)), task, points=5)
    assert found.broken == (0.25, 0.5, 0.75) and found.loss_barrier.best == float("inf")
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["losses"][2] is None
    for way in QUICK:
        with pytest.raises(InputError, match=r"connect\(b\): expected a network with finite outputs"):
            connect(a, broken, task, by=way)
    with pytest.raises(InputError, match=r"0\.weight"):
        align(a, broken)


def test_what_cannot_move_stays_on_every_path() -> None:
    task = classes()
    a = made(perceptron, 1, task.train.examples).pin({"0.weight": torch.ones(6, 4, dtype=torch.bool)})
    b = a.with_weights({name: w + 1 for name, w in a.weights.items() if name != "0.weight"})
    for way in QUICK:
        way = way if isinstance(way, Straight) else replace(way, start=Straight())  # type: ignore[type-var]
        path = connect(a, b, task, by=way, points=3) if way != Straight(ByWeights()) else Path((a, b))
        assert all(torch.equal(path(t).weights["0.weight"], a.weights["0.weight"]) for t in (0.0, 0.3, 0.5, 0.9, 1.0))


def test_a_surface_is_what_the_module_computes_at_each_point_and_leaves_pins() -> None:
    task = classes()
    net = made(perceptron, 1, task.train.examples)
    net = net.pin({"0.weight": torch.rand(6, 4, generator=stream(0, "pins")) < 0.4})
    plane = Plane.random(net, seed=3)
    found = surface(net, task, directions=plane, points=3, span=0.7)
    pinned = net.plasticity["0.weight"] == 0
    for row, v in enumerate((-0.7, 0.0, 0.7)):
        for column, u in enumerate((-0.7, 0.0, 0.7)):
            there = {n: w + (u * plane.first[n] + v * plane.second[n]).to(w) for n, w in net.weights.items()}
            assert torch.equal(there["0.weight"][pinned], net.weights["0.weight"][pinned])
            outputs = net.with_weights(there).to_module()(task.test.inputs)
            assert found.loss[row][column] == pytest.approx(float(F.cross_entropy(outputs.detach(), task.test.targets)))


# ------------------------------------------------------------------------------------- transformers, as published


def _bert() -> tuple[Callable[[], nn.Module], dict[str, Tensor]]:
    library = pytest.importorskip("transformers", reason="models of Hugging Face")
    setting = library.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=10,
        max_position_embeddings=8,
        num_labels=3,
    )
    marks = torch.ones(ROWS, 5, dtype=torch.int64)
    marks[1::3, 3:] = 0
    tokens = torch.arange(ROWS * 5).reshape(ROWS, 5) * 7 % 20
    return lambda: library.BertForTokenClassification(setting), {"input_ids": tokens, "attention_mask": marks}


class Tagger(nn.Module):
    """The stand-in: two inputs by name, one of them a mark of padding; a class for every token; logits in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.norm = nn.Embedding(20, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 10), nn.Linear(10, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.embed(input_ids)
        pattern = (x @ self.mix(x).transpose(1, 2) + (attention_mask[:, None] - 1) * 1e4).softmax(-1)
        x = self.norm(x + pattern @ x)
        return {"hidden": x, "logits": self.head(x + self.down(F.gelu(self.up(x))))}


def _stand_in() -> tuple[Callable[[], nn.Module], dict[str, Tensor]]:
    tokens = torch.arange(ROWS * 5).reshape(ROWS, 5) * 7 % 20
    marks = (torch.arange(5) < torch.tensor([[5], [3]]).repeat(ROWS // 2, 1)).long()
    return Tagger, {"input_ids": tokens, "attention_mask": marks}


TAGGERS = pytest.mark.parametrize("maker", [_stand_in, _bert], ids=["stand-in", "hugging-face"])


@TAGGERS
def test_the_metric_of_a_tagger_with_padding_is_that_of_its_own_gradients(maker: Any) -> None:
    build, inputs = maker()
    few = {name: part[:3] for name, part in inputs.items()}
    net = made(lambda: build().double(), 1, inputs)
    v = {name: torch.randn(w.shape, generator=stream(0, name), dtype=w.dtype) for name, w in net.weights.items()}
    rows = jacobian(net, few)
    metric = Metric(net, few)
    assert torch.allclose(metric.push(v).reshape(-1), rows @ flat(v), rtol=1e-8, atol=1e-10)
    wanted = rows.T @ (rows @ flat(v)) / 3
    assert torch.allclose(flat(metric @ v), wanted, rtol=1e-7, atol=1e-9 * float(wanted.abs().max()))
    assert metric.trace().best == pytest.approx(float(rows.square().sum()) / 3)
    solved = metric.solve(v)
    left = rows.T @ (rows @ flat(solved.direction)) / 3 + solved.mu * flat(solved.direction) - flat(v)
    assert solved.converged and float(left.norm()) <= 1e-4 * float(flat(v).norm())


@TAGGERS
def test_a_tagger_is_permuted_aligned_connected_drawn_and_recovered(maker: Any) -> None:
    build, inputs = maker()
    labels = torch.arange(ROWS * 5).reshape(ROWS, 5) % 3
    labels[inputs["attention_mask"] == 0] = -100
    task = Task.of("tags", (inputs, labels), (inputs, labels), validation=(inputs, labels))
    a, b = (made(build, seed, inputs) for seed in (1, 2))
    rows = task.test.inputs
    found = symmetries(a)
    orders = {one.name: torch.randperm(one.size, generator=stream(0, one.name)) for one in found}
    other = permute(a, orders)
    assert len(found) >= 1 and torch.allclose(other(rows), a(rows), atol=1e-5)
    assert align(a, other).distance_after <= 1e-5 < float(weight_distances([a, other])[0, 1])
    assert answer_distances([a, other], rows)[0, 1] < 1e-3
    path = connect(a, b, task, by=Straight(ByWeights()), points=3)
    assert torch.allclose(path(1.0)(rows), b(rows), atol=1e-5)
    picture = surface(a, task, points=3, walk=[a, b])
    assert picture.loss[1][1] == pytest.approx(float(task.loss(a(rows), task.test.targets)), rel=1e-5)
    hurt = Damage(Silence(), RandomUnits()).at(0.3)(a, stream(0, "hurt"))

    def gap(net: Network) -> float:
        return float((net(rows) - a(rows)).square().mean())

    for source in (Teacher(a, inputs), Recorded(inputs, a(rows))):
        mended = last(Recover(source, steps=3)(hurt, stream(0, "recover"))).network
        assert gap(mended) < 0.5 * gap(hurt)
        for name, weight in hurt.weights.items():
            dead = hurt.plasticity[name] == 0
            assert torch.equal(mended.weights[name][dead], weight[dead])
