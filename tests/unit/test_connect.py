"""Connecting two networks: the ways, what each does to the barrier, and what is refused."""

from __future__ import annotations

import json
import math
from functools import cache

import pytest
import torch
from torch import nn

from cases import NETWORKS, TASKS, model_for
from planaria.core.errors import InputError
from planaria.core.motion import settle, steps
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import equal, norm
from planaria.geometry.bend import Bezier
from planaria.geometry.connect import connect
from planaria.geometry.geodesic import Geodesic
from planaria.geometry.greedy import Greedy
from planaria.geometry.path import Arc, Path
from planaria.geometry.profile import profile
from planaria.geometry.straight import Straight, Way
from planaria.measure.task import Task
from planaria.repair.retrain import Adam, Retrain

PLAIN = Straight()
QUICK: dict[str, Way] = {
    "straight": PLAIN,
    "bezier": Bezier(updates=6, batch=8, start=PLAIN),
    "geodesic": Geodesic(nets=4, updates=3, batch=8, start=PLAIN),
    "greedy": Greedy(step=0.2, steps=2, inputs=8, close=Geodesic(nets=3, updates=2, batch=8), start=PLAIN),
}


@cache
def pair(name: str) -> tuple[Network, Network, Task]:
    """Two networks that have learnt one task from different starts."""
    learnt = TASKS[name]()
    flow = settle(Retrain(learnt, Adam(0.01), batch=32), steps(150))
    a, b = (
        flow(Network.of(model_for(name, seed), learnt.train.inputs), stream(seed, "train", name)) for seed in (0, 1)
    )
    return a, b, learnt


@cache
def convolutions() -> tuple[Network, Network, Task]:
    """Two small networks with batch normalisation, trained from different starts on images of stripes."""

    def split(name: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = stream(0, "stripes", name)
        labels = torch.randint(3, (count,), generator=rng)
        wave = torch.linspace(0, 9, 8)
        pictures = torch.stack([wave.sin()[None].expand(8, 8), wave.sin()[:, None].expand(8, 8), torch.zeros(8, 8)])
        return pictures[labels][:, None] + 1.2 * torch.randn(count, 1, 8, 8, generator=rng), labels

    task = Task.of("stripes", split("train", 400), split("test", 400), validation=split("validation", 200))

    def model(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(
                *(nn.Conv2d(1, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
                *(nn.Conv2d(12, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
                *(nn.Conv2d(12, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
                *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)),
            )

    flow = settle(Retrain(task, Adam(0.01), batch=50), steps(60))
    a, b = (flow(Network.of(model(seed), task.train.inputs), stream(seed, "stripes")) for seed in (0, 1))
    return a, b, task


# ------------------------------------------------------------------------------------------------- every way


@pytest.mark.parametrize("way", QUICK.values(), ids=QUICK)
@pytest.mark.parametrize("name", ["cnn-batchnorm", "transformer-pre-norm", "tokens-tied", "double"])
def test_every_way_gives_a_path_with_exact_ends_and_a_ledger(name: str, way: Way) -> None:
    case = NETWORKS[name]
    a, task = case.network(), case.task()
    rng = stream(0, "other")
    b = a.with_weights({n: w + 0.3 * torch.randn(w.shape, generator=rng, dtype=w.dtype) for n, w in a.weights.items()})
    before = a.sha256, b.sha256
    path = way(a, b, task, stream(0, "way"))
    assert path(0.0) is a
    assert equal(path(1.0).weights, b.weights)
    assert equal(path(1.0).buffers, b.buffers)
    assert (a.sha256, b.sha256) == before
    assert math.isfinite(profile(path, task, points=3).loss_barrier.best)
    again = way(a, b, task, stream(0, "way"))
    assert equal(again(0.4).weights, path(0.4).weights)
    if way != PLAIN:
        assert path.cost.backward_passes > 0
        assert path.cost.multiply_adds > 0
        assert path.cost.seconds > 0
        assert not equal(path(0.5).weights, Path((a, b))(0.5).weights)
    json.dumps(path.to_dict(), allow_nan=False)


@pytest.mark.parametrize("way", [QUICK["bezier"], QUICK["geodesic"], QUICK["greedy"]], ids=["b", "c", "g"])
def test_pinned_entries_stay_on_the_straight_line(way: Way) -> None:
    a, b, task = pair("clouds")
    pinned = torch.zeros_like(a.weights["2.weight"], dtype=torch.bool)
    pinned[3] = True
    dead = torch.where(pinned, 0.0, a.weights["2.weight"]), torch.where(pinned, 0.0, b.weights["2.weight"])
    a = a.with_weights({"2.weight": dead[0]}).pin({"2.weight": pinned})
    b = b.with_weights({"2.weight": dead[1]})
    path = way(a, b, task, stream(0, "way"))
    for t in (0.1, 0.5, 0.77):
        assert bool((path(t).weights["2.weight"][pinned] == 0).all())
        assert not torch.equal(path(t).weights["2.weight"], Path((a, b))(t).weights["2.weight"])


def test_a_bezier_curve_avoids_the_barrier_of_the_straight_line() -> None:
    a, b, task = pair("digits")
    line = profile(PLAIN(a, b, task, stream(0, "x")), task)
    curve = profile(Bezier(updates=200, rate=0.01, start=PLAIN)(a, b, task, stream(0, "x")), task)
    assert line.loss_barrier.low > 0.5
    assert curve.loss_barrier.best < 0.3 * line.loss_barrier.best
    assert curve.score_barrier.best < line.score_barrier.best


def test_a_chain_of_networks_lowers_energy_length_and_barrier() -> None:
    a, b, task = pair("digits")
    path = Geodesic(nets=7, updates=40, rate=0.003, start=PLAIN)(a, b, task, stream(0, "x"))
    assert path.notes["energy after"] < 0.5 * path.notes["energy before"]
    line, chain = profile(PLAIN(a, b, task, stream(0, "x")), task), profile(path, task)
    assert chain.loss_barrier.best < 0.5 * line.loss_barrier.best
    assert chain.length < line.length
    assert path.cost.labels == 0
    assert path.cost.backward_passes == 40 * 5


def test_a_chain_can_start_on_any_path() -> None:
    a, b, task = pair("clouds")
    bent = Bezier(updates=5, start=PLAIN)(a, b, task, stream(0, "x"))
    path = Geodesic(nets=3, updates=1, rate=1e-9, start=bent)(a, b, task, stream(0, "y"))
    assert torch.allclose(path(0.5).weights["0.weight"], bent(0.5).weights["0.weight"], atol=1e-6)
    assert path.cost.backward_passes == bent.cost.backward_passes + 1


def test_greedy_walks_come_closer_and_tell_what_is_left() -> None:
    a, b, task = pair("digits")
    way = Greedy(step=0.4, steps=6, inputs=30, close=Geodesic(nets=5, updates=30, rate=0.003), start=PLAIN)
    path = way(a, b, task, stream(0, "x"))
    assert path.notes["steps taken"] == 12
    assert 0.4 < path.notes["final gap"] < path.notes["gap before"]
    first = norm(path.knots[1] - path.knots[0])
    assert float(first) <= 0.4 + 1e-5
    assert profile(path, task).loss_barrier.best < profile(Path((a, b)), task).loss_barrier.best


def test_greedy_walks_between_near_networks_meet() -> None:
    a, _, task = pair("clouds")
    b = a.with_weights({"0.bias": a.weights["0.bias"] + 0.05})
    path = Greedy(step=0.1, steps=50, inputs=20, start=PLAIN)(a, b, task, stream(0, "x"))
    assert path.notes["final gap"] <= 0.1
    assert equal(path(1.0).weights, b.weights)


def test_regressions_are_connected_in_their_own_loss_and_score() -> None:
    a, b, task = pair("surface")
    line = connect(a, b, task, PLAIN, points=7)
    path = connect(a, b, task, Bezier(updates=120, rate=0.01, start=PLAIN), points=7)
    chain = connect(a, b, task, Geodesic(nets=5, updates=30, rate=0.003, start=PLAIN), points=7)
    assert line.profiles["test"].distance == "root mean squared difference of outputs"
    assert path.profiles["test"].loss_barrier.best < line.profiles["test"].loss_barrier.best
    assert chain.notes["energy after"] < chain.notes["energy before"]
    # 0.05 of the loss of the best constant answer
    assert path.tried[0].tolerance == pytest.approx(0.05 * float(task.validation.targets.var(correction=0)), rel=1e-4)


# ---------------------------------------------------------------------------------------------- normalisation


def test_re_estimated_statistics_lower_the_barrier_between_networks_with_batch_normalisation() -> None:
    a, b, task = convolutions()
    assert min(task.score(a), task.score(b)) > 0.8
    path = connect(a, b, task, PLAIN, points=9)
    assert path.calibration is not None
    assert path.profiles["test"].loss_barrier.best < 0.8 * profile(Path((a, b)), task).loss_barrier.best
    assert equal(path(1.0).buffers, b.buffers)


def test_a_curve_between_networks_with_batch_normalisation_is_trained_with_statistics_of_the_batch() -> None:
    a, b, task = convolutions()
    path = connect(a, b, task, Bezier(updates=40, rate=0.01, batch=50, start=PLAIN), points=5)
    assert path.profiles["test"].loss_barrier.best < 0.1
    assert path.profiles["test"].score_barrier.best < 0.05


# ----------------------------------------------------------------------------------------------------- connect


def test_connect_stops_at_the_first_way_that_reaches_the_tolerance() -> None:
    a, b, task = pair("digits")
    ways = (PLAIN, Bezier(updates=200, rate=0.01, start=PLAIN), Greedy(start=PLAIN))
    path = connect(a, b, task, ways, tolerance=0.5, points=9)
    assert [type(attempt.way).__name__ for attempt in path.tried] == ["Straight", "Bezier"]
    assert [attempt.connects for attempt in path.tried] == [False, True]
    assert isinstance(path.curve, Arc)
    assert path.cost.backward_passes == 200
    assert set(path.profiles) == {"train", "validation", "test"}
    told = json.loads(json.dumps(path.to_dict(), allow_nan=False))
    assert told["tried"][0]["way"] == "Straight"
    assert told["tried"][0]["validation"]["loss_barrier"]["best"] > 0.5
    assert "Bezier" in repr(path.tried[1])


def test_connect_without_a_way_climbs_the_ladder_from_the_straight_line() -> None:
    a, b, task = pair("digits")
    path = connect(a, b, task, points=9, tolerance=0.4)
    names = [type(attempt.way).__name__ for attempt in path.tried]
    assert names == ["Straight", "Straight", "Bezier", "Geodesic", "Greedy"][: len(names)]
    assert len(names) >= 2
    assert not path.tried[0].connects
    assert path.tried[1].path is not None
    assert path.tried[1].path.notes["aligned"]
    aligned = path.tried[1].profile
    assert aligned is not None
    assert path.tried[0].profile is not None
    assert aligned.loss_barrier.best < path.tried[0].profile.loss_barrier.best
    outputs = b(task.test.inputs[:20])
    assert torch.allclose(path(1.0)(task.test.inputs[:20]), outputs, atol=1e-4)


def test_where_no_way_reaches_the_tolerance_the_best_path_is_the_result() -> None:
    a, b, task = pair("digits")
    ways = (PLAIN, Bezier(updates=20, rate=0.003, start=PLAIN), Bezier(updates=1, rate=1e-6, start=PLAIN))
    path = connect(a, b, task, ways, points=5, tolerance=0.0)
    assert not any(attempt.connects for attempt in path.tried)
    assert len(path.tried) == 3
    assert path.tried[1].path is not None
    assert equal(path(0.5).weights, path.tried[1].path(0.5).weights)


def test_a_way_that_cannot_be_tried_is_told_and_the_next_one_taken() -> None:
    a, b, task = pair("clouds")

    def never(a: Network, b: Network, task: Task, rng: torch.Generator) -> Path:
        raise InputError("a way", "another pair", "this one")

    path = connect(a, b, task, (never, PLAIN), points=3)
    assert path.tried[0].problem.startswith("a way: expected another pair")
    assert path.tried[0].to_dict()["validation"] is None
    assert not path.tried[0].connects
    with pytest.raises(InputError, match="another pair"):
        connect(a, b, task, never)


def test_the_same_seed_gives_the_same_path_and_another_seed_another() -> None:
    a, b, task = pair("clouds")
    one, two, other = (connect(a, b, task, QUICK["bezier"], points=3, seed=seed) for seed in (3, 3, 4))
    assert equal(one(0.5).weights, two(0.5).weights)
    assert not equal(one(0.5).weights, other(0.5).weights)
    assert one.profiles["test"].losses == two.profiles["test"].losses


def test_a_network_is_connected_with_itself() -> None:
    a, _, task = pair("clouds")
    path = connect(a, a, task, points=3)
    assert len(path.tried) == 1
    assert path.profiles["test"].loss_barrier.best == 0.0
    assert path.profiles["test"].length < 1e-3  # the divergence of equal outputs is 0 up to rounding


def test_networks_without_example_inputs_are_connected_by_those_of_the_task() -> None:
    a, b, task = pair("clouds")
    bare = [Network.of(net.to_module()) for net in (a, b)]
    assert connect(bare[0], bare[1], task, PLAIN, points=3).profiles["test"].loss_barrier.best >= 0


def test_networks_that_do_not_fit_are_refused() -> None:
    a, b, task = pair("clouds")
    with pytest.raises(InputError, match=r"got weight '0\.weight' in the first alone"):
        connect(a, Network.of(nn.Linear(2, 3)), task)
    named = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    with pytest.raises(InputError, match="one architecture"):
        connect(a, Network.of(named), task)
    broken = b.with_weights({"0.bias": torch.full((16,), math.nan)})
    for one, two, end in ((a, broken, "b"), (broken, a, "a")):
        with pytest.raises(InputError, match=rf"connect\({end}\): expected a network with finite outputs"):
            connect(one, two, task)
    module = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    with pytest.raises(InputError, match="layer '1': expected batch normalisation with running statistics"):
        connect(Network.of(module), Network.of(module), task)


@pytest.mark.parametrize("by", [(), "straight", [PLAIN, 3]])
def test_what_is_no_way_is_refused(by: object) -> None:
    a, b, task = pair("clouds")
    with pytest.raises(InputError, match=r"connect\(by\)"):
        connect(a, b, task, by)  # type: ignore[arg-type]


@pytest.mark.parametrize("tolerance", [-0.1, math.nan, math.inf, "0.1"])
def test_a_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    a, b, task = pair("clouds")
    with pytest.raises(InputError, match=r"connect\(tolerance\)"):
        connect(a, b, task, tolerance=tolerance)


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: Bezier(updates=0), "Bezier.updates"),
        (lambda: Bezier(updates=2.5), "Bezier.updates"),  # type: ignore[arg-type]
        (lambda: Bezier(rate=math.nan), "Bezier.rate"),
        (lambda: Bezier(batch=-1), "Bezier.batch"),
        (lambda: Geodesic(nets=2), "Geodesic.nets"),
        (lambda: Geodesic(rate=math.inf), "Geodesic.rate"),
        (lambda: Greedy(step=0), "Greedy.step"),
        (lambda: Greedy(steps=True), "Greedy.steps"),
        (lambda: Greedy(damping=-1.0), "Greedy.damping"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(make: object, where: str) -> None:
    with pytest.raises(InputError, match=where):
        make()  # type: ignore[operator]
