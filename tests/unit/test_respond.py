"""Response curves: nested orders, and a record that says what was measured."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from cases import NETWORKS, trained
from planaria.core.errors import AnatomyError, InputError
from planaria.core.motion import settle, updates
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Noise, Silence
from planaria.damage.sites import Dose, RandomEntries, RandomUnits
from planaria.measure.scores import Score
from planaria.measure.task import Data, Task
from planaria.repair.retrain import Adam, Retrain
from planaria.study.respond import checked_doses, collect, iter_respond, plan_inputs, respond

SILENT = Damage(Silence(), RandomUnits())


def test_the_curve_begins_intact_and_ends_at_chance() -> None:
    net, task = trained("clouds")
    curve = respond(net, SILENT, task, doses=[0.5, 1.0], draws=4, seed=1)
    assert curve.doses == (0.0, 0.5, 1.0)
    assert curve.intact == task.score(net)
    assert {row[0] for row in curve.scores} == {curve.intact}
    assert len({row[-1] for row in curve.scores}) == 1, "with nothing left, the order does not matter"
    assert curve.mean[0].best == curve.intact
    assert curve.chance == task.chance
    assert curve.unit == "fraction of units"


def test_more_damage_is_worse_on_average() -> None:
    net, task = trained("clouds")
    means = [e.best for e in respond(net, SILENT, task, doses=[0.25, 0.75], draws=8).mean]
    assert means[0] > means[1] > means[2]


def test_a_curve_is_decided_by_its_seed_and_draws_are_independent_of_their_number() -> None:
    net, task = trained("clouds")
    few, many = (respond(net, SILENT, task, doses=[0.4], draws=n, seed=3) for n in (2, 5))
    assert many.scores[:2] == few.scores
    assert respond(net, SILENT, task, doses=[0.4], draws=5, seed=4).scores != many.scores


def test_adding_doses_does_not_change_the_others() -> None:
    net, task = trained("clouds")
    one = respond(net, SILENT, task, doses=[0.4], draws=3)
    two = respond(net, SILENT, task, doses=[0.2, 0.4, 0.6], draws=3)
    assert [row[1] for row in one.scores] == [row[2] for row in two.scores]


def test_lesions_of_one_order_are_nested() -> None:
    model = nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
        model[2].weight.copy_(2.0 ** torch.arange(6))
    # The score is then a binary number whose digits say which units are alive.
    data = Data(torch.ones(4, 1), torch.zeros(4))
    living = Score("living", lambda outputs, targets: float(outputs.mean()), lambda targets: 0.0)
    task = Task("binary", data, data, data, nn.functional.mse_loss, living, None)
    damage = Damage(Silence(), RandomUnits(Dose("units")))
    curve = respond(Network.of(model, data.inputs), damage, task, doses=range(7), draws=5)
    for row in curve.scores:
        alive = [{i for i in range(6) if int(score) >> i & 1} for score in row]
        assert [len(units) for units in alive] == [6, 5, 4, 3, 2, 1, 0]
        assert all(later < earlier for earlier, later in pairwise(alive))
    assert len(set(curve.scores)) > 1


def test_points_come_one_by_one_and_collect_to_the_same_curve() -> None:
    net, task = trained("clouds")
    points = [p for draw in (1, 0) for p in iter_respond(net, SILENT, task, [0.3, 0.6], draw=draw, seed=2)]
    whole = respond(net, SILENT, task, doses=[0.3, 0.6], draws=2, seed=2)
    assert collect(points, SILENT, task, 2).scores == whole.scores
    assert [p.dose for p in points[:3]] == [0.0, 0.3, 0.6]


def test_doses_are_sorted_checked_and_named_once() -> None:
    assert checked_doses(SILENT, [0.5, 0.1, 0.5]) == (0.0, 0.1, 0.5)
    assert checked_doses(Damage(Silence(), RandomUnits(Dose("units"))), [3, 1]) == (0.0, 1.0, 3.0)
    for doses in ([], [1.1], [-0.1], [math.nan]):
        with pytest.raises(InputError, match="dose"):
            checked_doses(SILENT, doses)


@pytest.mark.parametrize("draws", [0, -1])
def test_a_curve_needs_a_draw(draws: int) -> None:
    net, task = trained("clouds")
    with pytest.raises(InputError, match=r"respond\(draws\)"):
        respond(net, SILENT, task, draws=draws)


def test_one_draw_and_one_dose_are_enough() -> None:
    net, task = trained("clouds")
    curve = respond(net, SILENT, task, doses=[0.5], draws=1)
    assert len(curve.mean) == 2
    assert json.dumps(curve.to_dict(), allow_nan=False)
    assert "half-dose" in str(curve)


@pytest.mark.parametrize("name", ["clouds", "surface"])
def test_the_record_is_plain_json_even_when_a_score_is_infinite(name: str) -> None:
    net, task = trained(name)
    curve = respond(net, Damage(Noise(1e30), RandomEntries()), task, doses=[0.5, 1.0], draws=2)
    record = curve.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert len(record["draws"]) == 2
    assert record["unit"] == "fraction of entries"


def test_a_network_without_units_is_refused() -> None:
    _, task = trained("clouds")
    with pytest.raises(AnatomyError, match="no units at all"):
        respond(Network.of(nn.Linear(2, 3)), SILENT, task, doses=[0.5], draws=1)


def test_a_network_and_a_task_that_do_not_fit_are_refused() -> None:
    _, task = trained("clouds")
    with pytest.raises((AnatomyError, InputError)):
        respond(NETWORKS["cnn-batchnorm"].network(), SILENT, task, doses=[0.5], draws=1)


def test_planned_inputs_give_the_same_curve_for_a_part_of_the_inputs() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(6000, 20, generator=rng)
    y = (x[:, :3] @ torch.randn(3, 4, generator=rng) + 0.4 * torch.randn(6000, 4, generator=rng)).argmax(1)
    blobs = Task.of("blobs", (x[:2000], y[:2000]), (x[2000:], y[2000:]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = Network.of(nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 4)), x)
    net = settle(Retrain(blobs, Adam(5e-3)), updates(150))(start, stream(0, "train"))
    damage, doses = Damage(Silence(), RandomUnits()), [0.2, 0.5, 0.8, 1.0]
    plan = plan_inputs(net, damage, blobs, doses)
    assert 20 <= plan.inputs < 2000
    assert plan.intact == pytest.approx(blobs.score(net))
    whole = respond(net, damage, blobs, doses=doses, draws=40)
    part = respond(net, damage, blobs, doses=doses, draws=40, planned=True)
    assert part.intact == whole.intact
    for one, other in zip(whole.mean, part.mean, strict=True):
        assert abs(one.best - other.best) < 0.03
        assert other.high - other.low < 1.5 * (one.high - one.low) + 0.03


def test_inputs_are_not_planned_for_scores_that_are_no_mean() -> None:
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    line = Task.of("line", (x, x[:, :1]), (x, x[:, :1]), loss="mse", score="r2")
    net = Network.of(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)), x)
    with pytest.raises(InputError, match="mean over examples"):
        respond(net, Damage(Silence(), RandomUnits()), line, doses=[0.5], draws=2, planned=True)
