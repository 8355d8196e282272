"""Ablation of real pretrained networks: every unit as brute force says, on networks that were not made for us."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from architectures import resnet8
from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.network import Network
from planaria.measure.datasets import task as load_task
from planaria.measure.task import Data, Task
from planaria.measure.weights import load_weights
from planaria.sweep.ablate import Effects, ablate
from planaria.sweep.lesions import EachUnit, EachWeight

pytestmark = pytest.mark.timeout(1200)


class Brackets(nn.Module):
    """The published bracket classifier, from its description: 3 blocks, 2 heads, answers at the first position."""

    def __init__(self) -> None:
        super().__init__()
        self.W_E, self.W_pos = nn.Parameter(torch.empty(5, 56)), nn.Parameter(torch.empty(42, 56))
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.ln_final, self.W_U, self.b_U = (
            nn.LayerNorm(56),
            nn.Parameter(torch.empty(56, 2)),
            nn.Parameter(torch.empty(2)),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.W_E[tokens] + self.W_pos[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, tokens == 1)
        out: Tensor = self.ln_final(x)[:, 0] @ self.W_U + self.b_U
        return out


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(56), nn.LayerNorm(56)
        for name in "QKV":
            setattr(self, f"W_{name}", nn.Parameter(torch.empty(2, 56, 28)))
            setattr(self, f"b_{name}", nn.Parameter(torch.empty(2, 28)))
        self.W_O, self.b_O = nn.Parameter(torch.empty(2, 28, 56)), nn.Parameter(torch.empty(56))
        self.W_in, self.b_in = nn.Parameter(torch.empty(56, 56)), nn.Parameter(torch.empty(56))
        self.W_out, self.b_out = nn.Parameter(torch.empty(56, 56)), nn.Parameter(torch.empty(56))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y = self.ln1(x)
        q, k, v = (
            torch.einsum("npd,hde->nhpe", y, getattr(self, f"W_{name}")) + getattr(self, f"b_{name}")[:, None]
            for name in "QKV"
        )
        scores = (q @ k.transpose(-1, -2) / 28**0.5).masked_fill(padding[:, None, None], -1e5)
        z = scores.softmax(-1) @ v
        x = x + torch.einsum("nhpe,hed->npd", z, self.W_O) + self.b_O
        hidden = (self.ln2(x) @ self.W_in + self.b_in).relu()
        return x + hidden @ self.W_out + self.b_out


def _brackets(folder: Path, count: int) -> tuple[Network, Task]:
    with gzip.open(folder / "brackets_data.json.gz", "rt") as file:
        rows = json.load(file)[:count]
    tokens = torch.ones(len(rows), 42, dtype=torch.long)
    for row, (string, _) in zip(tokens, rows, strict=True):
        row[: len(string) + 2] = torch.tensor([0, *(3 if c == "(" else 4 for c in string), 2])
    labels = torch.tensor([int(balanced) for _, balanced in rows])
    model, known = Brackets(), load_file(folder / "brackets_transformer.safetensors")
    state = {}
    for name in model.state_dict():
        for old, new in (
            (".ln1.weight", ".ln1.w"),
            (".ln1.bias", ".ln1.b"),
            (".ln2.weight", ".ln2.w"),
            (".ln2.bias", ".ln2.b"),
            ("ln_final.weight", "ln_final.w"),
            ("ln_final.bias", "ln_final.b"),
        ):
            if name.endswith(old):
                state[name] = known[name.replace(old, new)]
        if name not in state:
            last = name.rpartition(".")[2]
            inner = {"W_E": "embed.", "W_pos": "pos_embed.", "W_U": "unembed.", "b_U": "unembed."}.get(last)
            part = "mlp." if last.partition("_")[2] in {"in", "out"} else "attn."
            state[name] = known[inner + last if inner else name.replace(last, part + last)]
    model.load_state_dict(state)
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
    model = resnet8()
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
    weights = load_file(next(folder.glob("*.safetensors")))
    layers = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    layers.load_state_dict({name.removeprefix("layers."): weight for name, weight in weights.items()})
    model = nn.Sequential(nn.Flatten(), layers)
    net = Network.of(model, mnist.test.inputs)
    effects = ablate(net, EachWeight(), mnist)
    assert effects.audit.mismatches == 0 and effects.audit.lesions == 24
    assert sum(tally.total.numel() for tally in effects.tallies.values()) == 784 * 256 + 256 * 256 + 2560
