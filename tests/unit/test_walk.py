"""Following a flow: rows, kept networks, and shares whose intervals allow for moments that are alike."""

from __future__ import annotations

import copy
import json
import math
import pickle
import sys
import types
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, nn

from cases import trained
from planaria.core.errors import EnvironmentProblem, InputError
from planaria.core.motion import Cost, Moment, chain, repeat
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.statistics import wilson
from planaria.repair.retrain import SGD, Retrain
from planaria.study import walk as module
from planaria.study.rescue import Schedule, leave
from planaria.study.walk import Row, Trajectory, autocorrelation_time, walk
from purity import fingerprint, world


def flat() -> Network:
    return Network.of(nn.Linear(1, 1)).with_weights({"weight": torch.ones(1, 1), "bias": torch.zeros(1)})


def drift(net: Network, rng: Generator, /) -> Iterator[Moment]:
    """The bias is a random walk that is drawn back to 0."""
    cost = Cost()
    while True:
        bias = 0.9 * net.weights["bias"] + torch.randn(1, generator=rng)
        net, cost = net.with_weights({"bias": bias}), cost + Cost(examples=2)
        yield Moment(net, cost)


def bias(net: Network) -> float:
    return float(net.weights["bias"])


def line(values: list[float]) -> Trajectory:
    rows = tuple(Row(step, Cost(), {"score": value}) for step, value in enumerate(values))
    return Trajectory(rows, {0: flat(), len(values) - 1: flat()}, 0, False)


def test_a_walk_has_the_moments_of_its_flow_after_the_start_itself() -> None:
    net, task = trained("clouds")
    flow = Retrain(task, SGD(0.05), batch=16)
    found = walk(net, flow, 6, seed=3, score=task.score)
    by_hand = list(islice(flow(net, stream(3, "walk")), 6))
    assert found.start is net and len(found.rows) == 7 and not found.ended
    assert [row.cost.backward_passes for row in found.rows] == list(range(7))
    for step, moment in enumerate(by_hand, start=1):
        assert found.networks[step].sha256 == moment.network.sha256
        assert found.rows[step].score == found.measures["score"][step] == task.score(moment.network)
    assert found.end is found.networks[6]


def test_the_same_seed_walks_the_same_way_and_changes_nothing() -> None:
    net = flat()
    before, around = fingerprint(net), world()
    first, again, other = (walk(net, drift, 5, seed=seed, bias=bias) for seed in (0, 0, 1))
    assert first.rows == again.rows and first.measures != other.measures
    assert fingerprint(net) == before and world() == around


def test_a_flow_that_ends_by_itself_ends_the_walk() -> None:
    found = walk(flat(), leave, 9, bias=bias)
    assert found.ended and [row.step for row in found.rows] == [0, 1]
    nothing = walk(flat(), lambda net, rng: iter(()), 2, bias=bias)
    assert nothing.ended and nothing.end is nothing.start
    with pytest.raises(InputError, match="leaves at least one moment"):
        nothing.inside(lambda row: True)


@pytest.mark.parametrize(("keep", "kept"), [(1, list(range(8))), (3, [0, 3, 6, 7]), (0, [0, 7]), (50, [0, 7])])
def test_every_kth_network_is_kept_beside_both_ends(keep: int, kept: list[int]) -> None:
    found = walk(flat(), drift, 7, keep=keep, bias=bias)
    assert sorted(found.networks) == kept
    for step, net in found.networks.items():
        assert bias(net) == found.rows[step].bias


def test_networks_that_would_need_too_much_memory_are_thinned_by_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMORY", 10 * 8)  # ten networks of two single-precision weights
    found = walk(flat(), drift, 101, bias=bias)
    assert len(found.networks) <= 11 and {0, 101} <= found.networks.keys()
    gaps = np.diff(sorted(found.networks))
    assert len(set(gaps[:-1].tolist())) == 1 and len(found.rows) == 102


def test_rows_read_measures_by_name_survive_copies_and_say_what_they_have() -> None:
    row = walk(flat(), drift, 1, bias=bias).rows[1]
    for twin in (copy.deepcopy(row), pickle.loads(pickle.dumps(row))):
        assert twin == row and twin.bias == row.bias
    with pytest.raises(AttributeError, match="no measure 'score'; it has bias"):
        _ = row.score


def test_walks_that_cannot_be_are_refused() -> None:
    net = flat()
    for steps in (0, -1, 2.5, True):
        with pytest.raises(InputError, match="steps"):
            walk(net, drift, steps)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="keep"):
        walk(net, drift, 2, keep=-1)
    for flow in (Schedule(drift, 2), "retrain"):
        with pytest.raises(InputError, match="a flow"):
            walk(net, flow, 2)  # type: ignore[arg-type]
    for name in ("step", "cost", "measures", "seconds"):
        with pytest.raises(InputError, match="another name"):
            walk(net, drift, 2, **{name: bias})
    with pytest.raises(InputError, match="network -> number"):
        walk(net, drift, 2, bias=1.0)  # type: ignore[arg-type]


def test_the_share_inside_is_wilsons_where_moments_are_independent() -> None:
    rng = np.random.default_rng(0)
    values = [0.0, *rng.random(400).tolist()]
    found = line(values).inside(lambda row: row.score > 0.3)
    right = sum(value > 0.3 for value in values[1:])
    plain = wilson(right, 400)
    assert found.best == pytest.approx(plain.best)
    assert 0.8 < (found.high - found.low) / (plain.high - plain.low) < 1.6


def test_moments_in_a_row_that_are_alike_count_as_few() -> None:
    values = [0.0] + [float(block % 2) for block in range(8) for _ in range(25)]
    found = line(values).inside(lambda row: row.score > 0.5)
    plain = wilson(100, 200)
    assert found.best == 0.5 and found.high - found.low > 3 * (plain.high - plain.low)


def test_a_walk_that_never_leaves_is_judged_by_how_slowly_its_measures_move() -> None:
    still = line([0.0] + [0.5] * 60).inside(lambda row: True)
    assert still == wilson(60, 60)
    slow = line([0.0, *np.linspace(0.9, 1.0, 60).tolist()]).inside(lambda row: row.score > 0.5)
    assert slow.best == 1.0 and slow.low < still.low - 0.2


@pytest.mark.parametrize("moments", [100, 300])
def test_the_interval_covers_the_true_share_as_often_as_it_says(moments: int) -> None:
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        values, now = [0.0], float(rng.standard_normal()) / math.sqrt(1 - 0.81)
        for _ in range(moments):
            now = 0.9 * now + float(rng.standard_normal())
            values.append(now)
        found = line(values).inside(lambda row: row.score > 0)
        covered += found.low <= 0.5 <= found.high
    assert 0.92 <= covered / 200 <= 1.0


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=60), st.floats(-3, 3))
def test_any_walk_has_a_share_inside(values: list[float], least: float) -> None:
    found = line([0.0, *values]).inside(lambda row: row.score > least)
    assert 0 <= found.low <= found.best <= found.high <= 1


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.floats(allow_nan=True), st.booleans()), min_size=1, max_size=50))
def test_the_autocorrelation_time_is_between_one_and_the_number_of_values(values: list[float]) -> None:
    with np.errstate(all="ignore"):
        assert 1.0 <= autocorrelation_time(values) <= len(values)


def test_the_autocorrelation_time_of_an_autoregression_is_the_known_one() -> None:
    rng, now, values = np.random.default_rng(1), 0.0, []
    for _ in range(20_000):
        now = 0.8 * now + float(rng.standard_normal())
        values.append(now)
    assert autocorrelation_time(values) == pytest.approx(1.8 / 0.2, rel=0.25)


def test_a_trajectory_is_plain_values_even_where_a_measure_fails() -> None:
    found = walk(flat(), drift, 2, bias=bias, failed=lambda net: math.nan)
    plain = found.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["rows"][1]["failed"] is None and plain["rows"][2]["cost"]["examples"] == 4
    assert plain["measures"] == ["bias", "failed"] and plain["kept"] == [0, 1, 2]


def test_rows_become_a_data_frame_where_pandas_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = walk(flat(), drift, 2, bias=bias)
    pandas = types.ModuleType("pandas")
    pandas.DataFrame = lambda rows: rows  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    rows = found.to_dataframe()
    assert [row["step"] for row in rows] == [0, 1, 2] and rows[2]["examples"] == 4


def test_without_pandas_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(EnvironmentProblem, match="pip install pandas"):
        walk(flat(), drift, 1).to_dataframe()


def test_a_cycle_of_damage_and_repair_is_a_flow_like_any_other() -> None:
    shrink = repeat(chain(lambda net, rng: net.move({"bias": net.weights["bias"] / 2}), lambda net, rng: net))
    found = walk(flat().with_weights({"bias": torch.ones(1)}), shrink, 3, bias=bias)
    assert found.measures["bias"] == (1.0, 0.5, 0.25, 0.125)
    assert "3 steps, measures bias" in repr(found)
