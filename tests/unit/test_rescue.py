"""Rescue and compare on small real tasks; what "rescued" means and what schedules spend are laws."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import torch

from cases import NETWORKS, trained
from planaria.core.motion import Cost, after, settle, updates
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import Dose, RandomUnits
from planaria.measure.task import Task
from planaria.repair.refit import Refit, Sidecar
from planaria.repair.regrow import Regrow
from planaria.repair.retrain import SGD, Adam, Retrain
from planaria.study.rescue import Criterion, Schedule, attempt, compare, leave, rescue

SILENT = Damage(Silence(), RandomUnits())


def test_every_repair_beside_every_other_on_the_digits() -> None:
    net, task = trained("digits")
    retrain = Retrain(task, Adam(0.01), batch=64)
    refit = Refit(Sidecar.of(net, task.train.inputs[:400]))
    result = rescue(
        net,
        SILENT,
        {
            "none": leave,
            "retrain": retrain,
            "regrow": after(Regrow(0.1), retrain),
            "iterative": Schedule(retrain, bites=4),
            "refit": refit,
            "refit+retrain": after(settle(refit), retrain),
        },
        task,
        doses=[0.5],
        seeds=[0],
        within=updates(60),
        criterion=Criterion(0.05, 2, 10),
    )
    after_scores = {row["repair"]: row["score_after"] for row in result.rows}
    assert after_scores["none"] < min(score for name, score in after_scores.items() if name != "none")
    assert after_scores["refit+retrain"] >= after_scores["none"] + 0.1
    assert len({row["score_damaged"] for row in result.rows}) == 1
    costs = {row["repair"]: row["cost"]["backward_passes"] for row in result.rows}
    assert costs == {"none": 0, "retrain": 60, "regrow": 60, "iterative": 60, "refit": 0, "refit+retrain": 60}
    assert json.loads(json.dumps(result.rows, allow_nan=False)) == result.rows
    assert json.dumps(result.summary(), allow_nan=False)


def test_a_row_has_everything_that_a_table_needs() -> None:
    net, task = trained("clouds")
    row = attempt(net, SILENT, 0.5, Retrain(task, batch=16), task, name="r", within=updates(12)).row()
    assert {"repair", "dose", "seed", "score_before", "score_damaged", "score_after", "rescued", "cost",
            "cost_since_last_hit", "rescue_cost", "rescue_cost_since_last_hit", "validation_before", "units_deleted",
            "curve"} <= set(row)  # fmt: skip
    assert set(row["cost"]) == {field.name for field in fields(Cost)}
    assert {"updates", "examples", "multiply_adds", "seconds", "validation", "dead"} <= set(row["curve"][0])
    assert row["curve"][0]["updates"] == 0
    assert row["curve"][-1]["updates"] == 12


def test_regression_tasks_are_rescued_by_their_own_score() -> None:
    net, task = trained("surface")
    flow = Retrain(task, Adam(0.01), batch=32)
    one = attempt(net, SILENT, 0.4, flow, task, within=updates(150), criterion=Criterion(0.1, 2, 10))
    assert one.before > 0.8
    assert one.after > one.damaged


def test_attempts_come_repairs_within_doses_within_seeds() -> None:
    net, task = trained("clouds")
    result = rescue(net, SILENT, {"a": leave, "b": leave}, task, doses=[0.2, 0.6], seeds=[3, 1])
    assert [(a.seed, a.dose, a.repair) for a in result.attempts] == [
        (seed, dose, repair) for seed in (3, 1) for dose in (0.2, 0.6) for repair in "ab"
    ]


def test_dose_zero_is_rescued_before_anything_is_done() -> None:
    net, task = trained("clouds")
    one = attempt(net, SILENT, 0.0, Retrain(task, SGD(1e-5), batch=16), task, within=updates(40))
    assert one.damaged == one.before
    assert one.units_deleted == 0
    assert one.rescued
    assert one.rescue_cost == Cost()


@pytest.mark.parametrize("dose", [1, 3])
def test_doses_in_units_work_in_bites(dose: int) -> None:
    net, task = trained("clouds")
    damage = Damage(Silence(), RandomUnits(Dose("units")))
    one = attempt(net, damage, dose, Schedule(Retrain(task, batch=16), bites=2), task, within=updates(4))
    assert one.units_deleted == dose


def test_comparing_repairs_of_one_damaged_network() -> None:
    net, task = trained("clouds")
    damaged = SILENT.at(0.7)(net, stream(0, "x"))
    verdict = compare(
        damaged,
        {"nothing": leave, "retrain": Retrain(task, Adam(0.02), batch=32)},
        task,
        to=0.9,
        within=updates(150),
        seeds=2,
        criterion=Criterion(0.0, 2, 5),
    )
    by_name = {name: [a for a in verdict.attempts if a.repair == name] for name in ("nothing", "retrain")}
    assert all(a.before == task.score(damaged) for a in verdict.attempts)
    assert not any(a.rescued for a in by_name["nothing"])
    assert all(a.rescued for a in by_name["retrain"])
    assert by_name["retrain"][0].network.sha256 != by_name["retrain"][1].network.sha256
    assert {a.units_deleted for a in verdict.attempts} == {0}


def test_a_network_that_diverges_is_not_rescued_and_the_record_is_plain() -> None:
    net, task = trained("surface")
    one = attempt(net, SILENT, 0.3, Retrain(task, SGD(1e9), batch=16), task, within=updates(20))
    assert not one.rescued
    assert json.dumps(one.row(), allow_nan=False)


OTHERS = ["cnn-batchnorm", "transformer-pre-norm", "lstm-tapped", "conv1d", "tokens-tied", "double"]


@pytest.mark.parametrize("name", OTHERS)
def test_networks_of_other_forms_go_through_a_whole_study(name: str) -> None:
    case = NETWORKS[name]
    net, task = case.network(), case.task()
    flow = Retrain(task, SGD(0.02), batch=8)
    refit = Refit(Sidecar.of(net, task.train.inputs))
    result = rescue(
        net,
        SILENT,
        {"retrain": flow, "iterative": Schedule(flow, 2), "regrow": after(Regrow(), flow), "refit": refit},
        task,
        doses=[0.5],
        seeds=[0],
        within=updates(6),
        criterion=Criterion(every=3),
    )
    assert len({a.damaged for a in result.attempts}) == 1
    assert all(torch.isfinite(torch.tensor(a.after)) for a in result.attempts)


def test_tiny_splits_work() -> None:
    net, task = trained("clouds")
    tiny = Task("tiny", task.train.take(2), task.validation.take(1), task.test.take(1), task.loss, task.scorer, 3)
    one = attempt(net, SILENT, 0.5, Retrain(tiny), tiny, within=updates(3))
    assert one.after in (0.0, 1.0)
