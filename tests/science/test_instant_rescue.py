"""Instant rescue on real data: the numbers the project stands for, and a short form of each for every run."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from planaria.core.motion import settle, steps, updates
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits
from planaria.measure.datasets import task as load_task
from planaria.measure.models import build
from planaria.measure.task import Task
from planaria.repair.against import Plain, UnitFaults
from planaria.repair.distil import Distil
from planaria.repair.harden import Harden
from planaria.repair.refit import Refit, Sidecar, Teacher
from planaria.repair.retrain import Adam, AdamW, Retrain
from planaria.repair.sidecar import doubt
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


def test_short_the_file_of_a_sidecar_is_small_and_repairs_nearly_as_well(data_root: Path, tmp_path: Path) -> None:
    task = load_task("mnist?train=10000&test=2000", data_dir=str(data_root))
    net = trained("mlp:784-256-256-10", task, Recipe(10))
    exact = Sidecar.of(net, unlabelled(task, 10_000))
    place = tmp_path / "net.sidecar.safetensors"
    place.write_bytes(exact.pack())
    assert place.stat().st_size <= 0.15 * exact.about["bytes"]
    packed = Sidecar.load(place)
    assert mean_after(net, task, 0.5, packed, 3) > mean_after(net, task, 0.5, exact, 3) - 0.01


def test_short_a_network_that_learnt_with_faults_loses_less(data_root: Path) -> None:
    task = load_task("mnist?train=5000&test=2000", data_dir=str(data_root))
    start = Network.of(build("mlp:784-64-64-10", (1, 28, 28), 10, 0), task.train.inputs)
    areas = {}
    for against in (Plain(), UnitFaults()):
        flow = Harden(task, against, AdamW(2e-3), 128, horizon=400)
        net = settle(flow, steps(400))(start, stream(0, "harden"))
        areas[type(against).__name__] = sum(mean_after(net, task, dose, None, 3) for dose in (0.3, 0.5, 0.7)) / 3
    assert areas["UnitFaults"] > areas["Plain"] + 0.03


def redundant(task: Task, seed: int) -> Network:
    """The MNIST network of benchmarks/instant_rescue.py."""
    number = 10 * len(task.train) // 128
    start = Network.of(build("mlp:784-256-256-10", (1, 28, 28), 10, seed), task.train.inputs)
    flow = Retrain(task, AdamW(1e-3, decay=0.3), 128, horizon=number)
    return settle(flow, updates(number))(start, stream(seed, "train"))


@pytest.mark.slow
@pytest.mark.science
def test_the_closed_form_and_a_hundred_updates_reach_their_marks_on_mnist(data_root: Path, tmp_path: Path) -> None:
    task = load_task("mnist?validation=1000", data_dir=str(data_root))
    found: dict[str, list[float]] = {}
    for seed in range(3):
        net = redundant(task, seed)
        few = task.train.take(20_000)
        importance = doubt(task.outputs(net, few))
        place = tmp_path / f"{seed}.sidecar.safetensors"
        place.write_bytes(Sidecar.of(net, few.inputs, importance).pack())
        packed = Sidecar.load(place)
        for dose in (0.5, 0.7, 0.8, 0.9):
            hurt = DEATH.at(dose)(net, stream(seed, "lesion"))
            fixed = next(Refit(packed)(hurt, stream(seed, "refit"))).network
            found.setdefault(f"sidecar {dose}", []).append(task.score(fixed))
            if dose >= 0.8:
                more = settle(Retrain(task, Adam(2e-3), 128, horizon=100), updates(100))
                found.setdefault(f"100 updates {dose}", []).append(task.score(more(fixed, stream(seed, "r"))))
        teacher = Teacher(net, few.inputs[:1024], importance[:1024])
        fixed = next(Refit(teacher)(hurt, stream(seed, "refit"))).network
        distil = Distil(net, teacher.inputs, Adam(2e-3), temperature=4.0, horizon=100)
        found.setdefault("distilled", []).append(
            task.score(settle(distil, updates(100))(fixed, stream(seed, "distil")))
        )
    mean = {name: sum(scores) / len(scores) for name, scores in found.items()}
    assert mean["sidecar 0.5"] >= 0.973
    assert mean["sidecar 0.7"] >= 0.953
    assert mean["sidecar 0.8"] >= 0.923
    assert mean["100 updates 0.8"] >= 0.956
    assert mean["100 updates 0.9"] >= 0.928
    assert mean["distilled"] >= 0.90


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
