"""Surfaces of loss and score: the same as a plain loop over networks, and honest about walks that are elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import NETWORKS, NetworkCase, trained
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import Weights, dot, norm
from planaria.measure.task import Task
from planaria.study import surface as module
from planaria.study.plane import Plane
from planaria.study.surface import Grid, Surface, surface
from purity import fingerprint


def grid(net: Network, task: Task, **settings: Any) -> Grid:
    usual = {"directions": None, "walk": (), "span": 1.0, "points": 3, "inputs": 5000, "data": None}
    return Grid.of(net, task, **{**usual, "calibration": None, "seed": 0, **settings})


def moved(net: Network, seed: int, size: float = 0.3) -> Network:
    """The network with every weight moved at random."""
    rng = stream(seed, "moved")
    return net.with_weights(
        {name: w + size * torch.randn(w.shape, generator=rng).to(w) for name, w in net.weights.items()}
    )


def naive(net: Network, plane: Plane, found: Surface, task: Task) -> tuple[list[list[float]], list[list[float]]]:
    """Losses and scores by a loop over networks."""
    losses, scores = [], []
    for v in found.v:
        nets = [
            net.with_weights({n: w + u * plane.first[n] + v * plane.second[n] for n, w in net.weights.items()})
            for u in found.u
        ]
        outputs = [task.outputs(one, task.test) for one in nets]
        losses.append([float(task.loss(y, task.test.targets)) for y in outputs])
        scores.append([task.score(one) for one in nets])
    return losses, scores


# -------------------------------------------------------------------------------------------------- the grid


@pytest.mark.parametrize("case", NETWORKS.values(), ids=str)
def test_the_surface_is_that_of_a_loop_over_networks(case: NetworkCase) -> None:
    net, task = case.network(), case.task()
    plane = Plane.random(net, seed=3)
    found = surface(net, task, directions=plane, points=3, span=0.7)
    losses, scores = naive(net, plane, found, task)
    for mine, theirs in zip((*found.loss, *found.score), (*losses, *scores), strict=True):
        assert list(mine) == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert found.loss[1][1] == found.centre_loss == float(task.loss(task.outputs(net, task.test), task.test.targets))
    assert found.score[1][1] == found.centre_score == task.score(net)


@pytest.mark.parametrize("name", ["mlp-relu", "mlp-gelu-no-bias", "double", "dropout", "log-softmax"])
def test_chains_take_their_first_product_once(name: str) -> None:
    case = NETWORKS[name]
    found = surface(case.network(), case.task(), points=3)
    assert found.way == "first product taken once"


@pytest.mark.parametrize("name", ["cnn-batchnorm", "residual", "tied", "transformer-pre-norm"])
def test_other_networks_are_run_whole_and_it_is_said_why(name: str) -> None:
    case = NETWORKS[name]
    found = surface(case.network(), case.task(), points=3)
    assert found.way.startswith("each point run whole: ")


@pytest.mark.parametrize("name", ["clouds", "surface", "digits"])
def test_a_trained_network_lies_low_on_its_surface(name: str) -> None:
    net, task = trained(name)
    found = surface(net, task, points=5, span=2.0)
    edge = [row[at] for row in found.loss for at in (0, -1)]
    assert found.centre_loss < min(edge)
    assert found.lowest is not None
    assert found.lowest[2] <= found.centre_loss
    assert found.loss[2][2] == found.centre_loss
    assert found.score[2][2] == found.centre_score


def test_one_linear_layer_is_a_chain_too() -> None:
    task = trained("clouds")[1]
    net = Network.of(nn.Linear(2, 3), task.train.inputs)
    plane = Plane.random(net)
    found = surface(net, task, directions=plane, points=3)
    losses, _ = naive(net, plane, found, task)
    assert found.way == "first product taken once"
    assert [list(row) for row in found.loss] == [pytest.approx(row, abs=1e-5) for row in losses]


def test_a_network_without_example_inputs_gets_the_tasks() -> None:
    net, task = trained("clouds")
    bare = Network.of(net.to_module())
    assert surface(bare, task, points=3).loss == surface(net, task, points=3).loss


def test_scores_that_are_no_means_are_scored_on_all_inputs_at_once() -> None:
    net, clouds = trained("clouds")
    task = Task.of("clouds", clouds.train, clouds.test, score="f1")
    plane = Plane.random(net)
    found = surface(net, task, directions=plane, points=3)
    assert [list(row) for row in found.score] == [pytest.approx(row) for row in naive(net, plane, found, task)[1]]


def test_little_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, task = trained("digits")
    whole = surface(net, task, points=5)
    monkeypatch.setattr(module, "HELD", 1)
    monkeypatch.setattr(module, "CHUNK", 7)
    parts = surface(net, task, points=5)
    for one, other in zip(whole.loss, parts.loss, strict=True):
        assert list(one) == pytest.approx(other, abs=1e-6)
    monkeypatch.setattr(module, "KEPT", 1)
    assert surface(net, task, points=5).centre_loss == pytest.approx(whole.centre_loss, abs=1e-6)
    assert surface(net, task, points=5).centre_score == whole.centre_score


def test_rows_can_be_done_apart_and_are_kept() -> None:
    net, task = trained("clouds")
    plan = grid(net, task, points=5, walk=[moved(net, 1)])
    known: dict[str, Any] = {f"row {number}": plan.row(number) for number in reversed(plan.rows)}
    made: list[str] = []

    def keep(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if name not in known:
            made.append(name)
            known[name] = make()
        return json.loads(json.dumps(known[name], allow_nan=False))  # type: ignore[no-any-return]

    found = plan.run(keep)
    assert made == ["walk"]
    direct = plan.run()
    assert found.loss == direct.loss
    assert found.score == direct.score
    assert found.walk == direct.walk


def test_the_inputs_are_a_stated_sample_the_same_for_the_same_seed() -> None:
    net, task = trained("digits")
    found = surface(net, task, points=3, inputs=50)
    assert found.examples == 50
    assert found.split == f"50 of {len(task.test)}, drawn from test"
    assert surface(net, task, points=3, inputs=50).loss == found.loss
    assert surface(net, task, points=3, inputs=50, seed=1).centre_loss != found.centre_loss
    assert surface(net, task, points=3, data=task.train.take(9)).split == "given data"


def test_an_estimate_says_what_it_will_take() -> None:
    net, task = trained("digits")
    price = grid(net, task, points=51).estimate()
    assert price["points"] == 2601
    assert 0 < price["seconds"] < 600
    first, later = 64 * 16, 16 * 12 + 12 * 10
    assert price["multiply_adds"] == len(task.test) * (3 * first + 2601 * later)
    again = grid(net, task, points=3, calibration=task.train.inputs[:100])
    assert again.estimate()["multiply_adds"] == 9 * (len(task.test) + 100) * (first + later)


def test_points_without_a_finite_loss_become_none() -> None:
    net, task = trained("clouds")
    found = surface(net, task, points=3, span=1e30)
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["loss"][0][0] is None
    assert record["loss"][1][1] == found.centre_loss
    assert found.not_finite == 8
    assert "8 of 9 points have no finite loss" in found.verdicts[0]
    assert found.lowest == (0.0, 0.0, found.centre_loss)


def test_nothing_that_is_given_changes() -> None:
    case = NETWORKS["cnn-batchnorm"]
    net, task, walk = case.network(), case.task(), [moved(case.network(), 1)]
    before = fingerprint(net), fingerprint(task), fingerprint(walk[0])
    surface(net, task, walk=walk, points=3, calibration=task.train.inputs)
    assert (fingerprint(net), fingerprint(task), fingerprint(walk[0])) == before


# -------------------------------------------------------------------------------------------- normalisation


def test_statistics_are_left_or_re_estimated_and_it_is_said() -> None:
    case = NETWORKS["cnn-batchnorm"]
    net, task = case.network(), case.task()
    plane = Plane.random(net)
    frozen = surface(net, task, directions=plane, points=3)
    again = surface(net, task, directions=plane, points=3, calibration=task.train.inputs)
    assert frozen.statistics.startswith("normalisation statistics frozen")
    assert "re-estimated at every point from 24 inputs" in again.statistics
    assert again.centre_loss == frozen.centre_loss == frozen.loss[1][1]
    assert again.loss[0][0] != frozen.loss[0][0]
    assert again.loss[1][1] != frozen.loss[1][1]
    assert surface(*trained("clouds"), points=3).statistics == "no normalisation statistics"


# ---------------------------------------------------------------------------------------------- directions


def test_random_directions_have_the_length_of_the_weights_row_by_row() -> None:
    net = NETWORKS["cnn-batchnorm"].network()
    plane = Plane.random(net, seed=1)
    for direction in (plane.first, plane.second):
        for name, part in direction.items():
            weight = net.weights[name]
            if weight.ndim < 2:
                assert not part.any(), name
            else:
                assert torch.allclose(part.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1), rtol=1e-5), name
    assert float(dot(plane.first, plane.second)) != pytest.approx(float(dot(plane.first, plane.first)), rel=0.1)
    assert all(torch.equal(plane.first[name], Plane.random(net, seed=1).first[name]) for name in net.weights)
    assert not all(torch.equal(plane.first[name], Plane.random(net, seed=2).first[name]) for name in net.weights)


def test_random_directions_leave_pinned_entries_and_dead_units_alone() -> None:
    net = NETWORKS["mlp-relu"].network()
    weight = net.weights["0.weight"]
    dead = torch.zeros_like(weight, dtype=torch.bool)
    dead[2] = True
    hurt = net.with_weights({"0.weight": weight.masked_fill(dead, 0.0)}).pin({"0.weight": dead})
    direction = Plane.random(hurt).first["0.weight"]
    assert not direction[2].any()
    assert direction[1].any()


def test_the_plane_of_two_networks_holds_both() -> None:
    net = NETWORKS["mlp-relu"].network()
    walk = [moved(net, 1), moved(net, 2)]
    plane = Plane.of_walk(net, walk)
    assert plane.shares is not None
    assert sum(plane.shares) == pytest.approx(1.0)
    assert plane.shares[0] >= plane.shares[1]
    assert float(dot(plane.first, plane.second)) == pytest.approx(0.0, abs=1e-4)
    for one in walk:
        u, v, off = plane.project(one)
        assert off < 1e-5
        assert max(abs(u), abs(v)) <= 0.8 + 1e-6
        assert float(norm(plane.at(u, v) - one)) < 1e-5
    assert max(abs(plane.project(one)[0]) for one in walk) == pytest.approx(0.8)


def test_projection_is_onto_the_nearest_point() -> None:
    net = NETWORKS["mlp-relu"].network()
    plane, one = Plane.random(net, seed=1), moved(net, 5)
    u, v, off = plane.project(one)
    for du, dv in ((0.1, 0.0), (-0.1, 0.0), (0.0, 0.1), (0.0, -0.1)):
        assert float(norm(plane.at(u + du, v + dv) - one)) > off
    assert float(norm(plane.at(u, v) - one)) == pytest.approx(off, rel=1e-5)


def test_a_walk_on_a_line_gets_a_random_second_direction_at_right_angles() -> None:
    net = NETWORKS["mlp-relu"].network()
    for walk in ([moved(net, 1)], [moved(net, 1, 0.1), moved(net, 1, 0.3)]):
        plane = Plane.of_walk(net, walk)
        assert "on a line" in plane.chosen or "the line of the walk" in plane.chosen
        assert plane.shares == pytest.approx((1.0, 0.0), abs=1e-6)
        assert float(dot(plane.first, plane.second)) == pytest.approx(0.0, abs=1e-4)
        assert plane.lengths[0] == pytest.approx(plane.lengths[1], rel=1e-4)


def test_a_walk_is_drawn_with_what_the_plane_leaves_out() -> None:
    net, task = trained("clouds")
    walk = [moved(net, seed) for seed in range(6)]
    fitted, other = (
        surface(net, task, walk=walk, points=3),
        surface(net, task, walk=walk, directions=Plane.random(net), points=3),
    )
    assert len(fitted.walk) == 6
    assert fitted.shares is not None
    assert fitted.off == pytest.approx(1 - sum(fitted.shares), abs=1e-5)
    assert other.off is not None
    assert fitted.off is not None
    assert other.off > fitted.off
    assert other.off > 0.8
    assert any("Most of the walk is elsewhere" in told for told in other.verdicts)
    for one, stop in zip(walk, fitted.walk, strict=True):
        assert stop.loss == float(task.loss(task.outputs(one, task.test), task.test.targets))
        assert stop.score == task.score(one)
        assert stop.far == pytest.approx(float(norm(one - net)), rel=1e-6)
        assert stop.off <= stop.far
    below = Plane.of_walk(net, walk).at(fitted.walk[0].u, fitted.walk[0].v)
    assert fitted.walk[0].loss_below == float(task.loss(task.outputs(below, task.test), task.test.targets))


def test_the_centre_may_be_part_of_the_walk() -> None:
    net, task = trained("clouds")
    found = surface(net, task, walk=[moved(net, 1), moved(net, 2), net], points=3)
    last = found.walk[-1]
    assert (last.u, last.v, last.off, last.far) == pytest.approx((0, 0, 0, 0), abs=1e-9)
    assert last.loss == found.centre_loss


# -------------------------------------------------------------------------------------------------- refusals


def test_settings_that_make_no_grid_are_refused() -> None:
    net, task = trained("clouds")
    for points in (1, 2, 50, -3):
        with pytest.raises(InputError, match="an odd number"):
            surface(net, task, points=points)
    for span in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="a number above 0"):
            surface(net, task, span=span)
    with pytest.raises(InputError, match="inputs"):
        surface(net, task, inputs=0)
    with pytest.raises(InputError, match="one through another"):
        surface(net, task, directions=Plane.random(moved(net, 1)))


def test_normalisation_without_statistics_is_refused_before_anything_is_measured() -> None:
    net, task = trained("clouds")
    batch = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(InputError, match="1"):
        grid(Network.of(batch, task.train.inputs), task)
    with pytest.raises(InputError, match="calibration"):
        grid(net, task, calibration=task.train.inputs[:0])


def test_walks_of_other_networks_are_refused() -> None:
    net, task = trained("clouds")
    with pytest.raises(InputError, match=r"Network - Network|with_weights"):
        surface(net, task, walk=[trained("surface")[0]])
    with pytest.raises(InputError, match="that differ from the centre"):
        surface(net, task, walk=[net, net])
    spoilt: Weights = {name: torch.full_like(w, math.nan) for name, w in net.weights.items()}
    with pytest.raises(InputError, match="not finite"):
        surface(net, task, walk=[net.with_weights(spoilt)])


def test_a_network_without_rows_has_no_random_directions() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.by = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.by

    with pytest.raises(InputError, match="a weight matrix"):
        Plane.random(Network.of(Scale()))


def test_a_surface_reads_as_text() -> None:
    net, task = trained("clouds")
    said = str(surface(net, task, points=3))
    assert "3 x 3 points on 64 inputs (test)" in said
    assert "filter-normalised" in said
    assert "Random directions show what is typical" in said
