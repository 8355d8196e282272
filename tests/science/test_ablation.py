"""Ablation of real pretrained networks: every unit as brute force says, on networks that were not made for us."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import brackets_transformer
import mnist_fc
import resnet8_cifar10
from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.network import Network
from planaria.measure.datasets import task as load_task
from planaria.measure.task import Data, Task
from planaria.measure.weights import load_weights
from planaria.sweep.ablate import Effects, ablate
from planaria.sweep.lesions import EachUnit, EachWeight

pytestmark = pytest.mark.timeout(1200)


def _brackets(folder: Path, count: int) -> tuple[Network, Task]:
    model = brackets_transformer.model()
    load_weights(model, folder / "brackets_transformer.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRACKETS", str(folder))
        tokens, labels = brackets_transformer.data(brackets_transformer.rows()[:count])
    task = Task.of("brackets", (tokens, labels), (tokens, labels), validation=(tokens, labels))
    return Network.of(model, tokens), task


def _agree(net: Network, task: Task, data: Data, effects: Effects, units: list[Unit]) -> None:
    anatomy = Anatomy.of(net)
    for unit in units:
        outputs = task.outputs(silence(net, anatomy.entries([unit]).all), data)
        first, second = outputs.topk(2, 1).values.unbind(1)
        ties = int((first - second <= 1e-4 * outputs.abs().max()).sum())
        right = int((outputs.argmax(1) == data.targets).sum())
        found = round(float(effects.scores[unit.layer][unit.index]) * len(data))
        assert abs(found - right) <= ties, unit


def _models(data_root: Path, name: str) -> Path:
    folder = data_root.parent / "models" / name
    if not folder.is_dir():
        pytest.skip(f"needs the network in {folder}")
    return folder


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.science)])
def test_every_head_and_neuron_of_the_bracket_transformer_is_mapped(data_root: Path, count: int) -> None:
    net, task = _brackets(_models(data_root, "brackets-transformer"), count)
    assert task.score(net) > 0.99
    effects = ablate(net, EachUnit(), task, audited=6)
    counts = {layer: len(tally.total) for layer, tally in effects.tallies.items()}
    assert sum(counts.values()) == 3 * 2 + 3 * 56
    assert effects.audit.mismatches == 0
    _agree(net, task, task.test, effects, [Unit(layer, count // 2) for layer, count in counts.items()])
    heads = [layer for layer, count in counts.items() if count == 2]
    worst = max(float(effects.lost[layer].max()) for layer in heads)
    assert worst > 0.2, "some head does the counting"


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.science)])
def test_every_map_of_the_published_cifar_network_is_mapped(data_root: Path, tmp_path: Path, count: int) -> None:
    folder = _models(data_root, "resnet8-cifar10")
    (tmp_path / "test_batch.bin.xz").symlink_to(data_root / "cifar10" / "test_batch.bin.xz")
    rows = np.zeros((30, 3073), np.uint8)
    rows[:, 0] = np.arange(30) % 10
    (tmp_path / "data_batch_1.bin").write_bytes(rows.tobytes())
    cifar = load_task(f"cifar:{tmp_path}?scale=raw&test={count}")
    model = resnet8_cifar10.model()
    load_weights(model, folder / "resnet8_cifar10.safetensors")
    net = Network.of(model, cifar.test.inputs)
    effects = ablate(net, EachUnit(), cifar, audited=6)
    assert effects.intact > 0.8 and effects.audit.mismatches == 0
    exact = ablate(net, EachUnit(), cifar, bitwise=True, audited=0)
    units = [Unit(layer, len(tally.total) - 1) for layer, tally in effects.tallies.items()]
    _agree(net, cifar, cifar.test, effects, units)
    _agree(net, cifar, cifar.test, exact, units)


def test_every_weight_of_a_real_perceptron_is_mapped_exactly(data_root: Path) -> None:
    folder = _models(data_root, "mnist-fc-256x2")
    mnist = load_task("mnist?test=1000", data_dir=str(data_root))
    model = mnist_fc.model()
    load_weights(model, folder / "mnist_fc_256x2.safetensors")
    net = Network.of(model, mnist.test.inputs)
    effects = ablate(net, EachWeight(), mnist)
    assert effects.audit.mismatches == 0 and effects.audit.lesions == 24
    assert sum(tally.total.numel() for tally in effects.tallies.values()) == 784 * 256 + 256 * 256 + 2560
