"""Recover on real data: what a path along the intact function brings back that a refit of the readers cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits
from planaria.measure.datasets import task as load_task
from planaria.measure.models import build
from planaria.measure.task import Task
from planaria.repair.recover import Recover
from planaria.repair.refit import Refit, Sidecar, Teacher
from planaria.study.train import Recipe, train

pytestmark = [pytest.mark.timeout(1200), pytest.mark.science, pytest.mark.slow]

DEATH = Damage(Silence(), RandomUnits(per_layer=True))


def trained(task: Task, seed: int) -> Network:
    model = build("mlp:784-300-100-10", (1, 28, 28), 10, seed)
    return train(model, task, Recipe.suited(task, model), seed=seed)[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_path_beats_every_refit_from_the_same_inputs_on_mnist(data_root: Path, seed: int) -> None:
    task = load_task("mnist", data_dir=str(data_root))
    net = trained(task, seed)
    inputs = task.train.inputs[:1024]
    for dose, ahead in ((0.7, 0.0), (0.8, 0.0), (0.9, 0.01)):
        lesioned = DEATH.at(dose)(net, stream(seed, "lesion"))
        scores = []
        for source in (Sidecar.of(net, inputs), Teacher(net, inputs)):
            scores.append(task.score(next(Refit(source)(lesioned, stream(seed, "refit"))).network))
        *_, last = Recover(Teacher(net, inputs))(lesioned, stream(seed, "recover"))
        assert last.cost.labels == 0
        assert task.score(last.network) >= max(scores) + ahead, dose
