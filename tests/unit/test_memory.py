"""Passes that would need gigabytes are taken in parts, and give what they give whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from planaria.core import memory
from planaria.core.network import Network
from planaria.measure import task as tasks
from planaria.measure.task import Task
from planaria.sweep.ablate import ablate
from planaria.sweep.lesions import EachUnit


def _speaker() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 9))


def _texts(score: str, count: int = 200) -> Task:
    ids = torch.randint(0, 9, (count, 8), generator=torch.Generator().manual_seed(0))
    following = torch.cat([ids[:, 1:], torch.full((count, 1), -100)], 1)
    return Task.of("texts", (ids, following), (ids, following), score=score)


def test_a_pass_takes_fewer_examples_where_each_needs_much(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = Network.of(nn.Sequential(nn.Linear(4, 1000), nn.ReLU(), nn.Linear(1000, 2))), torch.randn(500, 4)
    whole = net(x)
    assert net.at_once(x) == 500
    # The largest operation reads and writes 1,000 numbers of 4 bytes each.
    monkeypatch.setattr(memory, "LIMIT", 100 * 8000)
    assert net.at_once(x) == 100
    assert net.at_once(x[:3], 5000) == 100
    assert torch.allclose(net(x), whole, atol=1e-6)


def test_few_examples_are_never_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LIMIT", 1)
    net = Network.of(nn.Linear(4, 2))
    assert net.at_once(torch.zeros(memory.FEW, 4)) == memory.FEW
    assert net.at_once(torch.zeros(memory.FEW + 1, 4)) == memory.FEW // 8


def test_weights_cost_nothing_more_per_example() -> None:
    net = Network.of(nn.Embedding(100_000, 8))
    assert net.at_once(torch.zeros(3, 2, dtype=torch.int64), 10**6) > 10**6 // 2


@pytest.mark.parametrize("score", ["perplexity", "nll", "accuracy", "f1", "top3"])
def test_outputs_too_large_to_keep_are_scored_in_parts(monkeypatch: pytest.MonkeyPatch, score: str) -> None:
    task, net = _texts(score), Network.of(_speaker())
    whole = task.score(net)
    monkeypatch.setattr(memory, "LIMIT", 20 * 8 * 9 * 4)
    monkeypatch.setattr(tasks, "KEPT", 1000)
    assert math.isclose(task.score(net), whole, rel_tol=1e-6)


def test_a_sweep_of_large_outputs_goes_by_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    task, net = _texts("accuracy"), Network.of(_speaker())
    truth = ablate(net, EachUnit(layers=("1",)), task).tallies["1"].total
    monkeypatch.setattr(memory, "LIMIT", 20 * 8 * 9 * 4)
    assert torch.allclose(ablate(net, EachUnit(layers=("1",)), task).tallies["1"].total, truth)
