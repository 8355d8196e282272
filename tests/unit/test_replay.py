"""Replay: tallies of damaged networks from recorded passes, against the damaged networks themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import NETWORKS, NetworkCase
from planaria.core.anatomy import Anatomy
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.scores import ACCURACY, Score
from planaria.sweep import replay
from planaria.sweep.fuse import fuse
from planaria.sweep.lesions import EachUnit, EachWeight, Job, Nested, Selection
from planaria.sweep.program import Program
from planaria.sweep.replay import chunk_size, edited, edited_lesions, replayed_lesions, replayed_units
from planaria.sweep.tally import Judge, Tally

cases = pytest.mark.parametrize("case", [case for case in NETWORKS.values() if case.name != "choosing"], ids=str)
FIRST = Score("first", lambda y, t: float(y[:, 0].mean()), per_example=lambda y, t: y[:, 0] + 0.0 * t)


def _data(case: NetworkCase, count: int = 21) -> tuple[Tensor, Tensor]:
    x = case.inputs(count, "replay")
    t = torch.randint(case.classes, (count,), generator=stream(case.seed, "replay"))
    return x, torch.where(torch.arange(count) % 3 == 0, t, case.network()(x).argmax(1))


def _brute(net: Network, layer: str, units: tuple[int, ...], x: Tensor, t: Tensor, judge: Judge) -> Tally:
    tally, intact = Tally.zeros((len(units),), judge.classes), judge.values(net(x), t)
    for place, unit in enumerate(units):
        job = Job({layer: (1,)}, units={layer: Selection(layer, (unit,))})
        tally.note(place, judge.values(edited(net, job.lesion(layer, 0, net))(x), t), intact, t)
    return tally


def _same(one: Tally, other: Tally, scale: float) -> None:
    for name in ("total", "rose", "fell", "squares", "by_class"):
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine is not None and (mine.dtype == torch.float64 or not scale):
            assert torch.allclose(mine, theirs, rtol=1e-4, atol=scale), name


@cases
@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_some_units_in_any_order_and_chunks_of_any_size(
    case: NetworkCase, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, (x, t) = case.network(), _data(case)
    monkeypatch.setattr(replay, "chunk_size", lambda *_: chunk)
    program = Program.of(net)
    for layer in list(program.gates)[:3]:
        count = next(group.count for group in Anatomy.of(net).groups if group.layer == layer)
        units = tuple(range(count - 1, -1, -2))
        for judge in (Judge(ACCURACY, case.classes), Judge(FIRST)):
            found = replayed_units(program, [Selection(layer, units)], x, t, judge)[layer]
            scale = 1e-4 * float(net(x).abs().max()) * len(x) if judge.score is FIRST else 0.0
            _same(found, _brute(net, layer, units, x, t, judge), scale)


@cases
def test_taking_contributions_out_is_as_good_as_running_again(case: NetworkCase) -> None:
    net, (x, t) = case.network(), _data(case)
    program = Program.of(net)
    groups = [group for group in Anatomy.of(net).groups if group.layer in program.reads]
    chosen = [Selection(group.layer, tuple(range(group.count))) for group in groups]
    judge = Judge(FIRST, case.classes)
    again = replayed_units(program, chosen, x, t, judge)
    for made in (program, fuse(program)):
        for layer, tally in replayed_units(made, chosen, x, t, judge, edit_next=True).items():
            _same(tally, again[layer], 1e-4 * float(net(x).abs().max()) * len(x))


@pytest.mark.parametrize("judged", [1, 1 << 20])
def test_how_many_lesions_are_judged_at_a_time_does_not_matter(judged: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = NETWORKS["residual"]
    net, (x, t) = case.network(), _data(case)
    judge = Judge(ACCURACY, case.classes)
    layer = "conv1"
    monkeypatch.setattr(replay, "JUDGED", judged)
    found = replayed_units(Program.of(net), [Selection(layer, (0, 1, 2, 3))], x, t, judge)[layer]
    _same(found, _brute(net, layer, (0, 1, 2, 3), x, t, judge), 0.0)


def test_units_that_emit_nothing_are_left_out_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Network.of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(2, 3))
    bias = torch.tensor([-1e9, 1.0, -1e9, 1.0])
    net = net.with_weights({"0.bias": bias})
    program, ran = Program.of(net), []
    real = Program.silence
    monkeypatch.setattr(Program, "silence", lambda self, base, units: ran.append(units) or real(self, base, units))
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    tally = replayed_units(program, [Selection("0", (0, 1, 2, 3))], x, net(x).argmax(1), Judge(FIRST))["0"]
    assert ran == [{"0": [1]}, {"0": [3]}]
    assert tally.squares[[0, 2]].tolist() == [0.0, 0.0] and bool((tally.squares[[1, 3]] > 0).all())


def test_a_unit_beside_which_the_others_are_nothing_is_not_subtracted() -> None:
    rng = torch.Generator().manual_seed(0)
    net = Network.of(
        nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 3, 3), nn.Flatten()), torch.ones(2, 2, 9)
    )
    net = net.with_weights({name: torch.randn(w.shape, generator=rng) for name, w in net.weights.items()})
    loud = net.weights["0.weight"].clone()
    loud[1] *= 1e9
    net = net.with_weights({"0.weight": loud})
    x, t = torch.randn(20, 2, 9, generator=rng), torch.zeros(20)
    program, chosen = Program.of(net), [Selection("0", (0, 1, 2, 3))]
    assert "0" in program.reads
    exact = replayed_units(program, chosen, x, t, Judge(FIRST))["0"]
    found = replayed_units(program, chosen, x, t, Judge(FIRST), edit_next=True)["0"]
    assert abs(float(found.total[1] - exact.total[1])) < 1e-3, "differences are those of the outputs without it"


def test_labels_of_several_positions_are_judged_example_by_example() -> None:
    net = Network.of(nn.Sequential(nn.Conv1d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv1d(5, 3, 1)), torch.ones(2, 2, 4))
    rng = torch.Generator().manual_seed(0)
    net = net.with_weights({n: torch.randn(w.shape, generator=rng) for n, w in net.weights.items()})
    x, t = torch.randn(12, 2, 4, generator=rng), torch.randint(3, (12, 4), generator=rng)
    units = tuple(range(5))
    found = replayed_units(Program.of(net), [Selection("0", units)], x, t, Judge(ACCURACY))["0"]
    _same(found, _brute(net, "0", units, x, t, Judge(ACCURACY)), 1e-12)
    assert bool((found.total % 1 != 0).any())


@pytest.mark.parametrize("name", ["residual", "transformer-pre-norm", "gru-tapped", "tied"])
def test_weights_and_orders_are_replayed_like_any_lesion(name: str) -> None:
    case = NETWORKS[name]
    net, (x, t) = case.network(), _data(case)
    units = Anatomy.of(net).units()
    small = min(Anatomy.of(net).matrices, key=lambda key: net.weights[key].numel())
    for what in (EachWeight(layers=(small,)), Nested((units, units[::-1]), (0, 1, 3)), [units[0], units[:3]]):
        job, program, judge = Job.of(what, net), Program.of(net), Judge(ACCURACY, case.classes)
        (key,) = job.shapes
        lesions = job.of_key(key, net)
        found = replayed_lesions(program, lesions, job.various(key, net), x, t, judge)
        _same(found, edited_lesions(net, lesions, x, t, judge, judge.values(net(x), t)), 0.0)


def test_lesions_of_a_part_of_a_job_are_those_of_the_job() -> None:
    net = NETWORKS["residual"].network()
    job = Job.of(EachUnit(), net).some({"conv1": [3, 1]})
    assert job.shapes == {"conv1": (2,)} and job.units["conv1"].units == (3, 1)
    assert job.lesion("conv1", 0, net).units == {"conv1": (3,)}
    units = Anatomy.of(net).units()
    given = Job.of([units[0], units[1], units[2]], net).some({"lesions": [2]})
    assert given.count == 1 and given.lesion("lesions", 0, net).units == {units[2].layer: (units[2].index,)}


def test_chunks_keep_activations_in_cache() -> None:
    small, large = (Program.of(NETWORKS[name].network()) for name in ("mlp-relu", "cnn-batchnorm"))
    assert chunk_size(small, torch.device("cpu")) == 1024
    assert chunk_size(large, torch.device("cpu")) <= 1024 < chunk_size(large, torch.device("cuda"))
