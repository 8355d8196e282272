"""Connecting two networks by every way: what a study of it keeps, and its verdicts."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.geometry.symmetry import permute
from planaria.measure.datasets import task
from planaria.study import connection as study
from planaria.study.connection import LOSS, WAYS, Connection, Survey, Tried
from planaria.study.connection_verdicts import judge_connection

DIGITS = task("digits?train=300")
SHORT: dict[str, Any] = {"points": 3, "nets": 3, "updates": 2, "steps": 1, "control": 2}


def network(seed: int, wide: int = 8) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Network.of(nn.Sequential(nn.Linear(64, wide), nn.ReLU(), nn.Linear(wide, 10)), DIGITS.train.examples)


def estimate(best: float | None, half: float = 0.01) -> dict[str, float | None]:
    return (
        {"low": None, "best": None, "high": None}
        if best is None
        else {"low": best - half, "best": best, "high": best + half}
    )


def way(name: str, height: float | None, *, adds: int = 0, **notes: Any) -> Tried:
    profile = {"loss_barrier": estimate(height), "score_barrier": estimate(height), "worst_loss": 0.5}
    record = {
        "problem": "",
        "connects": height is not None and height <= 0.05,
        "cost": {"multiply_adds": adds},
        "notes": {"units moved": 0 if name == "straight" else 7, **notes},
        "profiles": dict.fromkeys(("train", "validation", "test"), profile),
        "apart": 1.0,
        "updates": 5,
    }
    return Tried(name, record)


def found(*tried: Tried, distance: float = 4.0, control: Tried | None = None, **alignment: Any) -> Connection:
    known = {
        "distance_before": 4.0,
        "distance_after": 3.0,
        "permutations": {"0": [0]},
        "verdict": "7 units",
        **alignment,
    }
    return Connection(tried, control, known, distance, 5.0, 0.05, (), 0, 10, "accuracy", None)


def answers(result: Connection) -> list[str]:
    return [verdict.answer for verdict in judge_connection(result)]


def test_every_part_is_kept_once_and_every_way_from_the_aligned_network_pays_for_it() -> None:
    kept: dict[str, str] = {}

    def keep(name: str, make: Any) -> dict[str, Any]:
        if name not in kept:
            kept[name] = json.dumps(make(), allow_nan=False)
        return dict(json.loads(kept[name]))

    survey = Survey(network(0), network(1), DIGITS, **SHORT)
    result = survey.run(keep)
    assert list(kept) == ["alignment", *WAYS, "control"] and survey.parts == len(kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "connect", None)
        patch.setattr(study, "align", None)
        again = survey.run(keep)
    assert again.to_dict() == result.to_dict()
    assert result.aligned is not None and again.aligned is not None and result.aligned.sha256 == again.aligned.sha256
    json.dumps(result.to_dict(), allow_nan=False)
    straight, line, *others = result.tried
    assert straight.cost.multiply_adds == 0 < line.cost.multiply_adds
    assert all(way.cost.multiply_adds > line.cost.multiply_adds for way in others)
    assert straight.record["apart"] == pytest.approx(result.distance)
    for one in (line, *others):
        assert one.record["apart"] == pytest.approx(result.alignment["distance_after"])
        assert one.record["notes"]["units moved"] == result.alignment["moved"]


def test_a_network_that_cannot_be_traced_is_connected_without_alignment() -> None:
    class Forking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.layer(x))

    a, b = (Network.of(Forking(), DIGITS.train.examples) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*args: object, **options: object) -> None:
            raise InputError("align", "a trace", "none")

        patch.setattr(study, "align", refuse)
        result = Survey(a, b, DIGITS, ("aligned", "chain"), **{**SHORT, "control": 0}).run()
    assert result.aligned is None and "a trace" in result.tried[0].problem
    assert not result.tried[1].problem and result.tried[1].record["apart"] == pytest.approx(result.distance)
    assert any(verdict.answer == "cannot be told" for verdict in judge_connection(result))


def test_a_permuted_network_is_the_same_but_for_the_order() -> None:
    a = network(0)
    b = permute(a, {"0": torch.randperm(8, generator=stream(0, "order"))})
    result = Survey(a, b, DIGITS, ("straight", "aligned"), points=3, control=0).run()
    assert result.alignment["distance_after"] == 0 < result.distance
    assert "yes, the order is all that differs" in answers(result)


@pytest.mark.parametrize(
    ("ways", "answer"),
    [
        ((way("straight", 0.0),), "yes, the straight line"),
        ((way("straight", 1.0), way("aligned", 0.02)), "yes, the straight line after alignment"),
        ((way("straight", 1.0), way("bezier", 0.03)), "yes, a trained curve"),
        ((way("straight", 1.0), way("chain", 0.045)), "not settled: the barrier along a chain of networks is"),
        ((way("straight", 1.0), way("greedy", 0.9)), "none found: the least barrier is 0.900 [0.890, 0.910]"),
        ((way("straight", None),), "none found: outputs are not finite along the straight line"),
    ],
)
def test_the_first_verdict_goes_by_the_interval_on_test_data(ways: tuple[Tried, ...], answer: str) -> None:
    if "greedy" in [one.name for one in ways]:
        ways = (ways[0], way("greedy", 0.9, **{"gap before": 3.0, "final gap": 2.0, "steps taken": 9}))
    assert answers(found(*ways))[0].startswith(answer)


def test_the_cheapest_connecting_way_and_the_walks_are_named() -> None:
    walks = way("greedy", 0.01, adds=90, **{"gap before": 3.0, "final gap": 2.0, "steps taken": 9})
    said = answers(found(way("straight", 1.0), way("bezier", 0.01, adds=70), walks))
    assert "a trained curve" in said and "no, 67 % of the distance is left" in said
    near = way("greedy", 0.01, adds=90, **{"gap before": 3.0, "final gap": 0.1, "steps taken": 9})
    assert "nearly, 3 % of the distance is left" in answers(found(near))


def test_what_alignment_does_is_told_by_barriers() -> None:
    assert "nearly: alignment takes away the barrier" in answers(found(way("straight", 1.0), way("aligned", 0.02)))
    assert "in part: alignment takes away 70 % of the barrier" in answers(
        found(way("straight", 1.0), way("aligned", 0.3))
    )
    assert "no, alignment takes away 25 % of their distance" in answers(
        found(way("straight", 1.0), way("aligned", 1.0))
    )
    assert "no units can change places" in answers(found(way("straight", 1.0), permutations={}))


def test_a_control_that_is_not_found_connected_is_said() -> None:
    good, bad = (judge_connection(found(way("straight", 1.0), control=way("control", h)))[-1] for h in (0.0, 0.4))
    assert good.answer == "yes" and bad.answer == "no" and "says little" in bad.words


def test_without_any_way_there_is_no_answer_and_no_error() -> None:
    refused = Tried("straight", {"settings": "", "problem": "no"})
    assert found(refused).best is None and found(refused).found == []
    json.dumps(found(refused).to_dict(), allow_nan=False)
    assert Tried("x", way("x", None).record).barrier(LOSS).best == float("inf")


@pytest.mark.parametrize(
    ("other", "options", "said"),
    [
        (lambda: network(1, 9), {}, "'0.weight'"),
        (lambda: network(1).with_weights({"2.bias": torch.full((10,), torch.nan)}), {}, "'2.bias'"),
        (lambda: network(1), {"ways": ("curved",)}, "curved"),
        (lambda: network(1), {"ways": ()}, "none"),
        (lambda: network(1), {"nets": 2}, "nets"),
        (lambda: network(1), {"updates": -1}, "updates"),
        (lambda: network(1), {"steps": -1}, "steps"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_done(other: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Survey(network(0), other(), DIGITS, **options)


def test_prices_are_about_what_is_paid() -> None:
    settings = {"points": 3, "nets": 4, "updates": 20, "steps": 2, "control": 0}
    survey = Survey(network(0), network(1), DIGITS, ("bezier", "greedy"), **settings)
    prices, result = survey.prices(), survey.run()
    for one in result.tried:
        paid = (one.cost.multiply_adds + one.record["measuring"]["multiply_adds"]) / result.forward
        assert 0.3 * paid <= prices[one.name] <= 4 * paid, one.name
