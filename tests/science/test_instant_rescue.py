"""Instant rescue on real data: the numbers the project stands for, and a short form of each for every run."""

from __future__ import annotations

from pathlib import Path

import pytest
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
from planaria.repair.refit import Refit, Sidecar, Teacher
from planaria.repair.retrain import Retrain
from planaria.study.train import Recipe, train

pytestmark = pytest.mark.timeout(1200)

DEATH = Damage(Silence(), RandomUnits(per_layer=True))


def trained(name: str, task: Task, recipe: Recipe | None = None) -> Network:
    """A named network, trained on the spot."""
    model = build(name, tuple(task.train.inputs.shape[1:]), task.output_size, 0)
    return train(model, task, recipe or Recipe.suited(task, model))[0]


def mean_after(net: Network, task: Task, dose: float, source: Sidecar | Teacher | None, seeds: int) -> float:
    """Mean test score over lesions after a refit; without a source, without repair."""
    scores = []
    for seed in range(seeds):
        hurt = DEATH.at(dose)(net, stream(seed, "lesion"))
        if source is not None:
            hurt = next(Refit(source)(hurt, stream(seed, "refit"))).network
        scores.append(task.score(hurt))
    return sum(scores) / len(scores)


def unlabelled(task: Task, number: int) -> Tensor:
    """Inputs without labels."""
    return task.train.inputs[:number]


def test_short_a_sidecar_brings_back_most_of_what_an_mlp_lost(data_root: Path) -> None:
    task = load_task("mnist?train=10000&test=2000", data_dir=str(data_root))
    net = trained("mlp:784-256-256-10", task, Recipe(10))
    intact, hurt = task.score(net), mean_after(net, task, 0.5, None, 3)
    rescued = mean_after(net, task, 0.5, Sidecar.of(net, unlabelled(task, 10_000)), 3)
    assert intact > 0.93
    assert intact - rescued < 0.25 * (intact - hurt)
    assert rescued > 0.9


def test_short_an_untrained_network_has_nothing_to_bring_back(data_root: Path) -> None:
    task = load_task("mnist?train=2000&test=1000", data_dir=str(data_root))
    net = Network.of(build("mlp:784-64-10", (1, 28, 28), 10, 0), task.train.inputs)
    rescued = mean_after(net, task, 0.5, Sidecar.of(net, unlabelled(task, 2000)), 3)
    assert abs(rescued - task.score(net)) < 0.1


def test_short_the_refit_is_a_better_start_than_the_damage(data_root: Path) -> None:
    task = load_task("mnist?train=10000&test=2000", data_dir=str(data_root))
    net = trained("mlp:784-256-256-10", task, Recipe(10))
    hurt = DEATH.at(0.7)(net, stream(0, "lesion"))
    refit = next(Refit(Sidecar.of(net, unlabelled(task, 10_000)))(hurt, stream(0, "refit"))).network
    few = settle(Retrain(task), updates(10))
    assert task.score(few(refit, stream(0, "r"))) > task.score(few(hurt, stream(0, "r"))) + 0.02


@pytest.mark.slow
@pytest.mark.science
def test_an_mlp_on_mnist_with_half_of_its_units_comes_back_to_97_3_without_data(data_root: Path) -> None:
    task = load_task("mnist", data_dir=str(data_root))
    net = trained("mlp:784-256-256-10", task)
    sidecar = Sidecar.of(net, unlabelled(task, 10_000))
    assert task.score(net) >= 0.98
    assert mean_after(net, task, 0.5, sidecar, 5) >= 0.973
    assert mean_after(net, task, 0.7, sidecar, 5) >= 0.95


@pytest.mark.slow
@pytest.mark.science
def test_a_cnn_on_fashion_mnist_with_half_of_its_units_comes_back_to_86_5(data_root: Path) -> None:
    task = load_task("fashion-mnist?train=20000", data_dir=str(data_root))
    net = trained("cnn", task)
    assert task.score(net) >= 0.89
    assert mean_after(net, task, 0.5, Teacher(net, unlabelled(task, 1024)), 5) >= 0.865
