"""Paths of networks: exact ends, statistics between them, barriers that are found and told honestly."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import NETWORKS, NetworkCase
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import equal
from planaria.geometry.normalise import in_batches, normalises, renormalised
from planaria.geometry.path import Arc, Path, Polygon
from planaria.geometry.profile import _of_largest, between_outputs, profile
from planaria.measure.statistics import mean_interval
from planaria.measure.task import Data, Task


def shaken(net: Network, size: float = 0.1) -> Network:
    """The network with other weights and statistics."""
    rng = stream(0, "shaken")

    def other(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.rand(tensor.shape, generator=rng, dtype=torch.float64).to(tensor)
        return tensor + size * noise * tensor.abs()

    return net.with_weights(
        {name: other(t) for name, t in net.weights.items()}, {name: other(t) for name, t in net.buffers.items()}
    )


def same(a: Network, b: Network) -> bool:
    return equal(a.weights, b.weights) and equal(a.buffers, b.buffers)


def line_task(count: int = 200) -> Task:
    """y = x for normal x, in three splits."""
    parts = [torch.randn(count, 1, generator=stream(0, "line", split)) for split in ("train", "validation", "test")]
    (train, validation, test) = ((x, x) for x in parts)
    return Task.of("line", train, test, validation=validation, loss="mse", score="r2")


def folded(sign: float) -> Network:
    """x -> x as a product of two weights, both 1 or both -1; halfway between the two it is 0."""
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    net = Network.of(module, torch.zeros(2, 1))
    return net.with_weights({name: torch.full_like(w, sign) for name, w in net.weights.items()})


@pytest.mark.parametrize("case", NETWORKS.values(), ids=str)
def test_the_ends_of_a_path_are_its_first_and_last_network_bit_for_bit(case: NetworkCase) -> None:
    a = case.network()
    b = shaken(a)
    before = a.sha256, b.sha256
    for path in (Path((a, b)), Path((a, shaken(a, 0.3), b), Arc()), Path((a, b)).calibrated(case.inputs(4))):
        assert same(path(0.0), a)
        assert same(path(1.0), b)
        middle = path(0.5)
        assert set(middle.weights) == set(a.weights)
        assert all(not w.is_floating_point() or bool(w.isfinite().all()) for w in middle.weights.values())
        assert middle(case.inputs(3)).shape == a(case.inputs(3)).shape
    assert (a.sha256, b.sha256) == before


def test_networks_of_a_path_have_the_plasticity_of_its_first() -> None:
    a = NETWORKS["mlp-relu"].network().pin({"0.bias": torch.ones(7, dtype=torch.bool)})
    b = shaken(NETWORKS["mlp-relu"].network())
    for t in (0.0, 0.3, 1.0):
        assert equal(Path((a, b))(t).plasticity, a.plasticity)


@given(t=st.floats(0.0, 1.0))
@settings(deadline=None, max_examples=50)
def test_entries_that_agree_in_all_knots_never_change_on_the_way(t: float) -> None:
    one = torch.tensor([0.1, -3.7, 1e-30, -0.0])
    points = [one, one.clone(), one.clone(), one.clone()]
    assert torch.equal(Arc().at(points, t), one)
    assert torch.equal(Polygon().at(points, t), one)


@given(t=st.floats(0.0, 1.0))
@settings(deadline=None, max_examples=50)
def test_an_arc_is_the_bezier_curve_of_its_knots(t: float) -> None:
    a, c, b = torch.randn(3, 5, generator=stream(0, "knots"), dtype=torch.float64)
    wanted = (1 - t) ** 2 * a + 2 * t * (1 - t) * c + t**2 * b
    assert torch.allclose(Arc().at([a, c, b], t), wanted, rtol=0, atol=1e-12)


def test_a_polygon_goes_through_its_knots_at_their_times() -> None:
    knots = tuple(folded(sign) for sign in (1.0, 5.0, -2.0))
    path = Path(knots, Polygon((0.0, 0.2, 1.0)))
    assert same(path(0.2), knots[1])
    assert float(path(0.1).weights["0.weight"]) == pytest.approx(3.0)
    assert float(path(0.6).weights["0.weight"]) == pytest.approx(1.5)
    back = path.reversed()
    assert same(back(0.8), knots[1])
    assert same(back(0.0), knots[2])


@pytest.mark.parametrize("times", [(0.0, 1.0), (0.0, 0.5, 0.5, 1.0), (0.1, 0.5, 1.0), (0.0, 0.9, 0.8)])
def test_times_that_do_not_fit_the_knots_are_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="rising times from 0 to 1"):
        Path((folded(1.0), folded(1.0), folded(-1.0)), Polygon(times))


@pytest.mark.parametrize("t", [-0.01, 1.01, math.nan, "0.5", None])
def test_a_time_outside_the_path_is_refused(t: float) -> None:
    with pytest.raises(InputError, match="a time from 0 to 1"):
        Path((folded(1.0), folded(-1.0)))(t)


def test_networks_that_cannot_be_joined_are_refused_by_the_name_of_the_weight() -> None:
    def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU, bias: bool = True) -> Network:
        module = nn.Sequential(nn.Linear(sizes[0], sizes[1], bias=bias), act(), nn.Linear(sizes[1], sizes[2]))
        return Network.of(module, torch.randn(4, sizes[0], generator=stream(0, "x")))

    a = mlp(3, 4, 2)
    with pytest.raises(InputError, match=r"weight '0.weight' of one shape, got \[4, 3\] and \[5, 3\]"):
        Path((a, mlp(3, 5, 2)))
    with pytest.raises(InputError, match=r"weight '0.bias' in the first alone"):
        Path((a, mlp(3, 4, 2, bias=False)))
    with pytest.raises(InputError, match=r"weight '0.bias' in the second alone"):
        Path((mlp(3, 4, 2, bias=False), a))
    with pytest.raises(InputError, match="one architecture"):
        Path((a, mlp(3, 4, 2, act=nn.Tanh)))
    with pytest.raises(InputError, match=r"of one type, got torch.float32 and torch.float64"):
        Path((a, Network.of(a.to_module().double())))
    with pytest.raises(InputError, match="buffer 'running_mean' in the second alone"):
        plain = nn.GroupNorm(1, 3)
        Path((Network.of(plain), Network.of(nn.BatchNorm1d(3))))
    with pytest.raises(InputError, match="two networks or more"):
        Path((a,))


# ---------------------------------------------------------------------------------------------- normalisation

WITH_STATISTICS = [case for case in NETWORKS.values() if any("running_mean" in name for name in case.network().buffers)]


@pytest.mark.parametrize("case", WITH_STATISTICS, ids=str)
def test_re_estimated_statistics_are_those_of_what_reaches_each_layer(case: NetworkCase) -> None:
    net, inputs = case.network(), case.inputs(16)
    assert set(normalises(net)) == {name.rpartition(".")[0] for name in net.buffers if "running_mean" in name}
    again = renormalised(net, inputs)
    assert not equal(again.buffers, net.buffers)
    assert equal(again.weights, net.weights)
    module = again.to_module()
    seen: dict[str, Tensor] = {}
    for name in normalises(net):
        part = module.get_submodule(name)
        part.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
    module(inputs)
    for name, values in seen.items():
        over = [axis for axis in range(values.ndim) if axis != 1]
        assert torch.allclose(again.buffers[f"{name}.running_mean"], values.mean(over), rtol=1e-4, atol=1e-5)
        assert torch.allclose(again.buffers[f"{name}.running_var"], values.var(over), rtol=1e-4, atol=1e-5)


def test_re_estimation_is_torchs_own_cumulative_average_over_one_large_batch() -> None:
    net = NETWORKS["cnn-batchnorm"].network()
    inputs = NETWORKS["cnn-batchnorm"].inputs(300)
    module = net.to_module().train()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
            part.reset_running_stats()
    module(inputs)
    ours = renormalised(net, inputs)
    for name, buffer in module.named_buffers():
        if "running" in name:
            assert torch.allclose(ours.buffers[name], buffer, rtol=1e-3, atol=1e-4)


def test_statistics_of_several_passes_are_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Network.of(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3))
    inputs = torch.randn(103, 3, generator=stream(0, "x"))
    whole = renormalised(net, inputs)
    monkeypatch.setattr(Network, "at_once", lambda self, rows, count=None: 10)
    parts = renormalised(net, inputs)
    for name in ("1.running_mean", "1.running_var"):
        assert torch.allclose(parts.buffers[name], whole.buffers[name], rtol=1e-5, atol=1e-6)


def test_a_normalisation_that_is_called_as_a_function_is_found_and_re_estimated() -> None:
    class Own(nn.Module):
        mean: Tensor
        variance: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("variance", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.batch_norm(self.linear(x), self.mean, self.variance)

    inputs = torch.randn(50, 3, generator=stream(0, "x"))
    net = Network.of(Own(), inputs)
    outputs = renormalised(net, inputs)(inputs)
    assert len(normalises(net)) == 1
    assert torch.allclose(outputs.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(outputs.var(0), torch.ones(4), atol=1e-3)


def test_the_shared_module_keeps_its_mode_even_where_re_estimation_fails() -> None:
    net = NETWORKS["cnn-batchnorm"].network()
    with pytest.raises(InputError):
        renormalised(net, torch.zeros(0, 2, 6, 6))
    with pytest.raises(RuntimeError):
        renormalised(net, torch.zeros(4, 3, 6, 6))
    in_batches(net)(NETWORKS["cnn-batchnorm"].inputs(4), net.weights)
    renormalised(net, NETWORKS["cnn-batchnorm"].inputs(4))
    assert not any(part.training for part in net.module.modules())


def test_a_normalisation_without_statistics_is_refused_by_name() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))
    net = Network.of(module)
    for call in (lambda: normalises(net), lambda: renormalised(net, torch.zeros(4, 3))):
        with pytest.raises(InputError, match="layer '1': expected batch normalisation with running statistics"):
            call()


def test_normalisation_within_each_example_is_left_alone() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2), nn.Flatten(), nn.LayerNorm(32))
    net = Network.of(module, torch.randn(2, 1, 6, 6))
    assert normalises(net) == ()
    assert renormalised(net, torch.randn(4, 1, 6, 6)) is net


def test_one_input_is_too_few_for_statistics() -> None:
    net = Network.of(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    with pytest.raises(InputError, match="layer '1' two values per channel or more, got 1 inputs"):
        renormalised(net, torch.zeros(1, 2))


def test_in_batches_outputs_are_normalised_by_the_batch_and_differentiable() -> None:
    net = Network.of(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    weights = {name: w.clone().requires_grad_() for name, w in net.weights.items()}
    outputs = in_batches(net)(torch.randn(64, 3, generator=stream(0, "x")), weights)
    assert torch.allclose(outputs.mean(0), net.weights["1.bias"], atol=1e-5)
    outputs.square().sum().backward()
    assert weights["0.weight"].grad is not None


# ---------------------------------------------------------------------------------------------------- profiles


def test_the_barrier_of_a_known_path_is_found_between_the_points_of_the_grid() -> None:
    task = line_task()
    x = task.test.inputs.double()
    found = profile(Path((folded(1.0), folded(-1.0))), task, points=4)
    # f(x) = (1 - 2 t)^2 x: the loss at 1/2, which the grid of four points leaves out, is E[x^2].
    assert found.worst_loss == pytest.approx(0.5, abs=0.01)
    assert found.loss_barrier.best == pytest.approx(float((x**2).mean()), rel=1e-4)
    assert found.score_barrier.best == pytest.approx(float((x**2).mean() / x.var(correction=0)), rel=1e-3)
    assert found.loss_barrier.low < found.loss_barrier.best < found.loss_barrier.high
    assert not found.score_barrier.has_interval  # r2 is no mean over examples
    assert found.cost.examples >= len(found.times) * len(task.test)
    assert list(found.times) == sorted(set(found.times))


def test_a_valley_between_two_ends_is_no_barrier() -> None:
    task = line_task()
    module = nn.Linear(1, 1, bias=False)
    a, b = (Network.of(module).with_weights({"weight": torch.tensor([[w]])}) for w in (0.0, 2.0))
    found = profile(Path((a, b)), task)
    assert found.loss_barrier.best == 0.0
    assert found.score_barrier.best == 0.0
    # Outputs move by 2 x, at constant speed: energy is the square of the length.
    rms = float((2 * task.test.inputs).square().mean().sqrt())
    assert found.length == pytest.approx(rms, rel=1e-5)
    assert found.energy == pytest.approx(rms**2, rel=1e-5)
    assert found.euclidean == pytest.approx(2.0, rel=1e-6)


def test_a_path_through_nan_is_told_and_not_raised() -> None:
    task = line_task()
    broken = folded(1.0).with_weights({"0.weight": torch.full((1, 1), math.nan)})
    found = profile(Path((folded(1.0), broken, folded(-1.0))), task, points=5)
    assert found.loss_barrier.best == found.score_barrier.best == math.inf
    assert 0.5 in found.broken
    assert 0.0 not in found.broken
    assert math.isinf(found.length)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["loss_barrier"]["best"] is None


@pytest.mark.parametrize("end", [0, 1])
def test_an_end_that_is_not_finite_is_refused(end: int) -> None:
    knots = [folded(1.0), folded(-1.0)]
    knots[end] = knots[end].with_weights({"0.weight": torch.full((1, 1), math.nan)})
    with pytest.raises(InputError, match=rf"path\({end}\): expected a network with finite outputs"):
        profile(Path((knots[0], knots[1])), line_task())


def test_the_interval_of_a_barrier_allows_for_the_choice_of_the_worst_point() -> None:
    # 25 curves that are level in truth: their largest height is noise, and 0 lies in 97.5 % of the intervals.
    rng, missed, naive = np.random.default_rng(0), 0, 0
    for _ in range(200):
        table = rng.normal(size=(25, 100))
        means = table.mean(1)
        low, high = _of_largest(means, table)
        assert low < means.max() < high
        missed += low > 0
        naive += mean_interval(table[means.argmax()]).low > 0
    assert naive > 60
    assert missed <= 12


def test_the_interval_of_a_barrier_is_that_of_paired_examples() -> None:
    x = torch.randn(400, 2, generator=stream(0, "pairs"))
    y = (x[:, 0] > 0).long()
    task = Task.of("signs", (x, y), (x, y))
    rows = {"weight": torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), "bias": torch.zeros(2)}
    turned = {"weight": torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), "bias": torch.zeros(2)}
    net = Network.of(nn.Linear(2, 2))
    right, wrong = net.with_weights(rows), net.with_weights(turned)
    found = profile(Path((right, wrong, right), Polygon()), task)
    assert found.score_barrier.best == pytest.approx(1.0)
    assert found.score_barrier.low == pytest.approx(1.0)
    noisy = profile(Path((right, wrong)), task, task.test.take(slice(0, 50)))
    assert noisy.loss_barrier.high - noisy.loss_barrier.low >= 0


def test_outputs_of_classifiers_are_compared_by_the_jensen_shannon_divergence() -> None:
    x, y = torch.zeros(4, 2), torch.tensor([0, 1, 2, 0])
    task = Task.of("three", (x, y), (x, y))
    apart, name = between_outputs(task, task.test)
    assert "Jensen-Shannon" in name
    rng = stream(0, "scores")
    p, q = (torch.randn(4, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    one, two = p.softmax(1), q.softmax(1)
    middle = (one + two) / 2
    wanted = (0.5 * one * (one / middle).log() + 0.5 * two * (two / middle).log()).sum(1).mean()
    assert float(apart(p, q, y)) == pytest.approx(float(wanted), rel=1e-9)
    assert float(apart(p, q, y)) == pytest.approx(float(apart(q, p, y)), rel=1e-12)
    step = 1e-3 * torch.randn(4, 3, generator=rng, dtype=torch.float64)
    fisher = ((one * step**2).sum(1) - (one * step).sum(1) ** 2).mean()  # u^T (diag p - p p^T) u
    assert float(apart(p, p + step, y)) == pytest.approx(float(fisher) / 8, rel=1e-2)
    same_sides = 50.0 * torch.eye(4, 3, dtype=torch.float64)
    assert float(apart(same_sides, -same_sides, y)) <= math.log(2.0) + 1e-9


def test_ignored_positions_of_sequences_do_not_count_in_distances() -> None:
    x, y = torch.zeros(2, 3, dtype=torch.long), torch.tensor([[0, 1, -100], [2, -100, -100]])
    task = Task.of("tagging", (x, y), (x, y), classes=4)
    apart, _ = between_outputs(task, task.test)
    p, q = (torch.randn(2, 3, 4, generator=stream(0, "tags", at)) for at in range(2))
    other = q.clone()
    other[0, 2] += 5.0
    assert float(apart(p, q, y)) == float(apart(p, other, y))


@pytest.mark.parametrize("points", [2, 0, 3.5, None])
def test_too_few_points_are_refused(points: int) -> None:
    with pytest.raises(InputError, match="at least 3"):
        profile(Path((folded(1.0), folded(-1.0))), line_task(), points=points)


def test_a_path_and_its_profile_are_told_in_plain_values() -> None:
    path = Path((folded(1.0), folded(-1.0)))
    found = path.profile(line_task(), line_task().validation, points=5)
    told = json.loads(json.dumps({"path": path.to_dict(), "profile": found.to_dict()}, allow_nan=False))
    assert told["path"]["times"] == [0.0, 1.0]
    assert len(told["profile"]["losses"]) == len(told["profile"]["times"])
    assert "polygon of 2 networks" in repr(path)
    assert "loss barrier" in repr(found)


def test_measuring_changes_no_network() -> None:
    task = line_task()
    a, b = folded(1.0), folded(-1.0)
    before = copy.deepcopy((a.weights, b.weights))
    profile(Path((a, b)), task, Data.of((task.test.inputs, task.test.targets)), points=3)
    assert equal(a.weights, before[0])
    assert equal(b.weights, before[1])
