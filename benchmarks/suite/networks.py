"""The networks and data of the suite, made here from the embedded digits: quick, without downloads, always the same.

Images are the digits (8 x 8) enlarged to 28 x 28 or 32 x 32 x 3, each test image many times with its own shift, turn,
size and noise, until there are 10,000 of them (quick: 2,000). Networks are trained by a few updates of Adam, which
takes seconds; in the quick tier those for which it takes longer have random features and a last layer fitted to them
by ridge regression. Cached in the system's folder for temporary files under a key of everything that decides.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from planaria.core.anatomy import Anatomy, Unit
from planaria.core.gemm import fast_products
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.data import Data
from planaria.measure.datasets import task
from planaria.measure.models import build
from planaria.measure.task import Task


@dataclass(frozen=True, eq=False)
class Case:
    """A trained network with its data.

    Attributes:
        name: For the table.
        model: The module, in eval mode.
        net: The same as a Network.
        test: What maps are measured on; 10,000 examples, quick 2,000 (networks of images: see `few`).
        train: What it was trained on.
        batch: Examples at a time of a brute-force forward, the quickest of those tried.
        gates: Layer with units -> name of the module whose output is the units' activation (for hooks).
    """

    name: str
    model: nn.Module
    net: Network
    test: Data
    train: Data
    batch: int
    gates: Mapping[str, str]

    @property
    def task(self) -> Task:
        """Its data as a task with cross-entropy and accuracy."""
        return Task.of(self.name, self.train, self.test, validation=self.test)

    @property
    def units(self) -> tuple[Unit, ...]:
        """Every unit of the layers in `gates`, in the order of execution."""
        return tuple(unit for unit in Anatomy.of(self.net).units() if unit.layer in self.gates)

    def some(self, per_layer: int = 0, least: int = 9) -> tuple[Unit, ...]:
        """A stratified subset: units evenly spaced in every layer, `per_layer` of each, or `least` in all."""
        by_layer: dict[str, list[Unit]] = {}
        for unit in self.units:
            by_layer.setdefault(unit.layer, []).append(unit)
        wanted = per_layer or -(-least // len(by_layer))
        chosen: list[Unit] = []
        for units in by_layer.values():
            number = min(wanted, len(units))
            chosen += [units[(2 * at + 1) * len(units) // (2 * number)] for at in range(number)]
        return tuple(chosen)

    def scale(self, some: tuple[Unit, ...]) -> float:
        """All units over those in a subset: what time for the subset is multiplied by (a forward costs the same)."""
        return len(self.units) / len(some)

    def few(self, examples: int) -> Data:
        """The first test examples."""
        return self.test.take(min(examples, len(self.test)))


# ------------------------------------------------------------------------------------------------------- data


@cache
def images(side: int, channels: int, quick: bool) -> tuple[Data, Data]:
    """Training and test images [N, channels, side, side], enlarged, moved and noisy."""
    digits = task("digits")
    train = Data(
        torch.cat([digits.train.inputs, digits.validation.inputs]),
        torch.cat([digits.train.targets, digits.validation.targets]),
    )
    return (
        _varied(train, 2_000 if quick else 10_000, side, channels, "train"),
        _varied(digits.test, 2_000 if quick else 10_000, side, channels, "test"),
    )


def _varied(data: Data, count: int, side: int, channels: int, name: str) -> Data:
    rng = stream(0, "benchmark images", name, side, channels)
    rows = torch.arange(count) % len(data)
    rows = rows[torch.randperm(count, generator=rng)]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng) * 2 - 1

    turn, size, shift = 0.1 * uniform(count), 1.0 + 0.1 * uniform(count), 0.07 * uniform(count, 2)
    cosine, sine = turn.cos() * size, turn.sin() * size
    moves = torch.stack([cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]], 1).reshape(-1, 2, 3)
    parts = []
    for chunk in torch.arange(count).split(1000):
        grid = nn.functional.affine_grid(moves[chunk], [len(chunk), 1, side, side], align_corners=False)
        small = data.inputs[rows[chunk]].reshape(-1, 1, 8, 8)
        large = nn.functional.grid_sample(small, grid, align_corners=False)
        if channels > 1:
            large = large * (0.85 + 0.15 * uniform(len(chunk), channels, 1, 1))
        parts.append((large + 0.06 * torch.randn(large.shape, generator=rng)).clamp(0, 1))
    return Data(torch.cat(parts), data.targets[rows])


# --------------------------------------------------------------------------------------------------- networks


class Patches(nn.Module):
    """Image [N, 3, 32, 32] -> tokens [N, 64, width] with positions added."""

    def __init__(self, width: int) -> None:
        nn.Module.__init__(self)
        self.project = nn.Conv2d(3, width, 4, 4)
        self.positions = nn.Parameter(0.5 * torch.randn(64, width))

    def forward(self, images: Tensor) -> Tensor:
        """The tokens."""
        tokens: Tensor = self.project(images).flatten(2).transpose(1, 2) + self.positions
        return tokens


class Block(nn.Module):
    """Transformer block, normalised before: attention, then linear1 - GELU - linear2."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        nn.Module.__init__(self)
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.linear1, self.gelu, self.linear2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, tokens, width] -> the same shape."""
        count, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(count, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).reshape(count, tokens, width))
        changed: Tensor = x + self.linear2(self.gelu(self.linear1(self.norm2(x))))
        return changed


class ViT(nn.Module):
    """Small vision transformer: patches of 4, width 128, 4 blocks, 512 hidden each, mean over the tokens."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.patches = Patches(128)
        self.blocks = nn.Sequential(*[Block(128, 4, 512) for _ in range(4)])
        self.norm, self.fc = nn.LayerNorm(128), nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, 10]."""
        logits: Tensor = self.fc(self.norm(self.blocks(self.patches(images))).mean(1))
        return logits


def _perceptron(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for n, m in pairwise(sizes):
        layers += [nn.Linear(n, m), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


@dataclass(frozen=True)
class Training:
    """Updates of Adam, along a short rise and a half cosine, with so many examples each."""

    updates: int
    batch: int
    rate: float


RIDGE = Training(0, 0, 0.0)
"""Not by gradients: see `_fit_last`."""

QUICK_MLP = Training(80, 64, 3e-3)


@cache
def mlp(quick: bool = False) -> Case:
    """784-512-256-10, ReLU; 768 units."""
    make = lambda: _perceptron(784, 512, 256, 10)  # noqa: E731
    return _case("mlp", quick, make, flat=True, batch=1_000, training=(Training(500, 128, 1e-3), QUICK_MLP))


@cache
def deep_mlp(quick: bool = False) -> Case:
    """784-512-512-512-10, ReLU; 1,536 units."""
    make = lambda: _perceptron(784, 512, 512, 512, 10)  # noqa: E731
    return _case("deep mlp", quick, make, flat=True, batch=1_000, training=(Training(500, 128, 1e-3), QUICK_MLP))


@cache
def untrained_mlp(quick: bool = False) -> Case:
    """784-512-256-10 with fresh weights."""
    make = lambda: _perceptron(784, 512, 256, 10)  # noqa: E731
    return _case("untrained mlp", quick, make, flat=True, batch=1_000, training=(None, None))


@cache
def lenet(quick: bool = False) -> Case:
    """32c5 - pool - 64c5 - pool - fc256 - fc10, ReLU; 352 units."""
    return _case("lenet", quick, _lenet, batch=125, training=(Training(150, 64, 2e-3), RIDGE))


@cache
def resnet20(quick: bool = False) -> Case:
    """ResNet-20 for 32 x 32 x 3 with batch normalisation; 336 feature maps inside its blocks."""
    make = lambda: build("resnet20", (3, 32, 32), 10, 0)  # noqa: E731
    return _case("resnet20", quick, make, side=32, channels=3, batch=64, training=(Training(120, 32, 2e-3), RIDGE))


@cache
def vit(quick: bool = False) -> Case:
    """Vision transformer, width 128, 4 blocks of 512 hidden neurons; 2,048 units."""
    return _case("vit", quick, ViT, side=32, channels=3, batch=32, training=(Training(200, 16, 1e-3), RIDGE))


# --------------------------------------------------------------------------------------------------- training


def _case(
    name: str,
    quick: bool,
    make: Callable[[], nn.Module],
    *,
    side: int = 28,
    channels: int = 1,
    flat: bool = False,
    batch: int,
    training: tuple[Training | None, Training | None],
) -> Case:
    train, test = images(side, channels, quick)
    if flat:
        train, test = (Data(data.inputs.flatten(1), data.targets) for data in (train, test))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(0, "benchmark network", name).initial_seed())
        model, how = make(), training[quick]
        key = f"{Path(__file__).read_text(encoding='utf-8')}{name}{quick}{torch.__version__}"
        place = Path(tempfile.gettempdir()) / f"planaria-benchmark-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
        if place.exists():
            model.load_state_dict(torch.load(place, weights_only=True))
        elif how is not None:
            with fast_products():
                _fit_last(model, train) if how is RIDGE else _descend(model, train, how)
            unfinished = place.with_suffix(f".{os.getpid()}")
            torch.save(model.state_dict(), unfinished)
            unfinished.replace(place)  # another process may be doing the same
    model.eval().requires_grad_(False)
    return Case(name, model, Network.of(model, test.inputs), test, train, batch, _gates(model))


def _gates(model: nn.Module) -> dict[str, str]:
    """Layer with units -> module that makes their activation, for the layouts above."""
    names = [name for name, _ in model.named_modules()]
    if isinstance(model, ViT):
        return {f"blocks.{at}.linear1": f"blocks.{at}.gelu" for at in range(4)}
    inner = {name: name.replace("conv1", "relu1") for name in names if name.endswith(".conv1")}
    if inner:  # feature maps inside the blocks of a residual network
        return inner
    makers = [(name, part) for name, part in model.named_children() if isinstance(part, nn.Linear | nn.Conv2d)]
    return {name: str(int(name) + 1) for name, _ in makers[:-1]}


def _fit_last(model: nn.Module, train: Data, examples: int = 512) -> None:
    """Normalisation statistics from one pass in train mode, then the last layer by ridge regression."""
    last = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    few = train.take(examples)
    with torch.no_grad():
        for part in norms:
            part.momentum = 1.0
        if norms:
            model.train()(few.inputs[:128])
        for part in norms:
            part.momentum = 0.1
        model.eval()
        features: list[Tensor] = []
        handle = last.register_forward_hook(lambda module, given, output: features.append(given[0]))
        for chunk in few.inputs.split(64):
            model(chunk)
        handle.remove()
        x = torch.cat([torch.cat(features), torch.ones(len(few), 1)], 1).double()
        wanted = 4.0 * nn.functional.one_hot(few.targets, 10).double() - 0.4  # spread like logits of a trained network
        dual = x @ x.T
        dual.diagonal().add_(1e-4 * dual.diagonal().mean())
        solved = (x.T @ torch.linalg.solve(dual, wanted)).float()
        last.weight.copy_(solved[:-1].T)
        last.bias.copy_(solved[-1])


def _descend(model: nn.Module, train: Data, training: Training) -> None:
    """Adam with cross-entropy."""
    number = training.updates
    optimiser = torch.optim.Adam(model.parameters(), lr=training.rate, fused=True)
    model.train()
    for at in range(number):
        for group in optimiser.param_groups:
            group["lr"] = training.rate * min(1.0, (at + 1) / 11) * 0.5 * (1 + math.cos(math.pi * at / number))
        rows = torch.randint(len(train), (training.batch,))  # from the forked generator
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(train.inputs[rows]), train.targets[rows]).backward()
        optimiser.step()
