"""Recover on real data: what a path along the intact function brings back that a refit of the readers cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from planaria.core.motion import settle, updates
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
from planaria.repair.retrain import SGD, Retrain
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


def digits_apart(split: int, seed: int) -> tuple[Task, Tensor]:
    """1,300 digits to learn from and the rest to test on, drawn at random; and 100 of the former without labels."""
    whole = load_task("digits")
    parts = (whole.train, whole.validation, whole.test)
    inputs, targets = torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts])
    order = torch.randperm(len(inputs), generator=stream(split, "split"))
    seen, unseen = order[:1300], order[1300:]
    check = (inputs[seen[:100]], targets[seen[:100]])
    task = Task.of("digits", (inputs[seen], targets[seen]), (inputs[unseen], targets[unseen]), validation=check)
    return task, inputs[seen[torch.randperm(1300, generator=stream(seed, "calibration"))[:100]]]


def hundred(split: int, seed: int) -> tuple[float, float, float]:
    """Test accuracy of a network as the paper's file trains it, and after 80 % of its units were deleted: by the path
    along 100 inputs without labels, and by a refit from the same inputs."""
    task, inputs = digits_apart(split, seed)
    start = Network.of(build("mlp:64-60-10", (64,), 10, seed), inputs)
    training = settle(Retrain(task, SGD(0.05, momentum=0.9), batch=100), updates(520))
    net = training(start, stream(seed, "train"))
    lesioned = DEATH.at(0.8)(net, stream(seed, "lesion"))
    *_, last = Recover(Teacher(net, inputs))(lesioned, stream(seed, "recover"))
    assert last.cost.labels == 0
    refit = next(Refit(Teacher(net, inputs))(lesioned, stream(seed, "refit"))).network
    return task.score(net), task.score(last.network), task.score(refit)


def test_on_a_split_where_networks_reach_97_percent_a_hundred_digits_without_labels_regain_96() -> None:
    scores = [hundred(1, seed) for seed in range(5)]
    assert all(intact >= 0.97 for intact, _, _ in scores)
    assert all(recovered >= 0.96 for _, recovered, _ in scores), scores


def test_on_any_split_a_hundred_digits_without_labels_regain_what_the_network_had() -> None:
    scores = [hundred(seed, seed) for seed in range(10)]
    lost = [intact - recovered for intact, recovered, _ in scores]
    assert max(lost) <= 0.03
    assert sum(lost) <= 10 * 0.012
    assert sum(recovered - refitted for _, recovered, refitted in scores) >= 10 * 0.03
