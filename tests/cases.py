"""The one table of cases: networks, tasks, faults, sites, operators and flows that every law is tried on.

Each row builds what it names by a function and carries its seed; a new network, operator or flow is one row here and
inherits all laws. Networks are tiny, have random weights of trained-like size, and random normalisation statistics, so
that nothing is zero, one or symmetric by accident.
"""

from __future__ import annotations

import hashlib
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from planaria.core.anatomy import Anatomy, Unit
from planaria.core.motion import After, Chain, Flow, Operator, after, chain, repeat, settle, steps
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.tap import tap
from planaria.damage.damage import Damage
from planaria.damage.faults import Fault, Noise, Silence, StuckAt
from planaria.damage.sites import Dose, RandomEntries, RandomUnits, RankedUnits, Site
from planaria.measure.task import Task
from planaria.repair.refit import Refit, Sidecar, Teacher
from planaria.repair.regrow import Regrow
from planaria.repair.retrain import SGD, Adam, AdamW, Retrain

# --------------------------------------------------------------------------------------------------- modules


class Residual(nn.Module):
    """Stem, two blocks with an addition in place, mean over positions: the form of small image networks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.down = nn.Conv2d(4, 6, 1, stride=2, bias=False)
        self.bn3 = nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)), inplace=True)
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        branch += x
        x = F.relu(branch, inplace=True)
        out = self.bn4(self.conv3(x))
        out += self.bn3(self.down(x))
        return self.fc(F.relu(out).mean((2, 3)))


class Encoder(nn.Module):
    """A classifier on `nn.TransformerEncoder`, post-norm with ReLU or pre-norm with GELU."""

    def __init__(self, pre: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            8, 2, 6, dropout=0.1, batch_first=True, norm_first=pre, activation="gelu" if pre else "relu"
        )
        self.embed = nn.Linear(5, 8)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.encoder(self.embed(x)).mean(1)))


class StackedHeads(nn.Module):
    """Attention by hand with one weight per head, stacked [head, width, head width]: research code's form."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.W_Q, self.W_K, self.W_V = (nn.Parameter(torch.randn(2, 8, 4)) for _ in range(3))
        self.b_Q, self.b_K, self.b_V = (nn.Parameter(torch.randn(2, 4)) for _ in range(3))
        self.W_O = nn.Parameter(torch.randn(2, 4, 8))
        self.b_O = nn.Parameter(torch.randn(8))
        self.norm = nn.LayerNorm(8)
        self.W_in, self.b_in = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6))
        self.W_out, self.b_out = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        q = torch.einsum("bpd,hde->bphe", y, self.W_Q) + self.b_Q
        k = torch.einsum("bpd,hde->bphe", y, self.W_K) + self.b_K
        v = torch.einsum("bpd,hde->bphe", y, self.W_V) + self.b_V
        pattern = (torch.einsum("bqhe,bkhe->bhqk", q, k) / 2.0).softmax(-1)
        z = torch.einsum("bkhe,bhqk->bqhe", v, pattern)
        x = x + torch.einsum("bqhe,hed->bqd", z, self.W_O) + self.b_O
        x = x + F.gelu(x @ self.W_in + self.b_in) @ self.W_out + self.b_out
        return self.head(x.mean(1))


class SeparateProjections(nn.Module):
    """Attention with q, k, v and o as layers and the fused attention function: the form of large language models."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
        self.o = nn.Linear(6, 6)
        self.up, self.down = nn.Linear(6, 5), nn.Linear(5, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (layer(x).view(n, t, 3, d // 3).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(n, t, d))
        x = x + self.down(F.silu(self.up(x)))
        return self.head(x[:, -1])


class Recurrent(nn.Module):
    """A recurrent layer and a readout of its last state."""

    def __init__(self, rnn: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.rnn = rnn(4, 5, batch_first=True)
        self.fc1 = nn.Linear(5, 4)
        self.fc2 = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.fc2(torch.relu(self.fc1(out[:, -1])))


class CalledTwice(nn.Module):
    """One layer called twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.shared = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.head(torch.relu(self.shared(torch.relu(self.shared(x)))))


class TwoViews(nn.Module):
    """One layer called on two parts of the input, its outputs read by two other layers: a siamese network."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(3, 5)
        self.left, self.right = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x[:, :3], x[:, 3:]
        return self.left(torch.relu(self.shared(a))) + self.right(torch.relu(self.shared(b)))


class Tied(nn.Module):
    """Two layers with one weight, read the one way and the other: an autoencoder with a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 4)
        self.decode = nn.Linear(4, 6)
        self.decode.weight = nn.Parameter(torch.empty(0))
        self.middle = nn.Linear(6, 6)
        self.output = nn.Linear(6, 6)
        self.output.weight = self.middle.weight
        self.head = nn.Linear(6, 3)
        del self.decode

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.encode(x)) @ self.encode.weight
        return self.head(torch.relu(self.output(torch.relu(self.middle(x)))))


class Tokens(nn.Module):
    """Whole-number inputs: an embedding whose weight is also the output head's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.fc1, self.fc2 = nn.Linear(6, 5), nn.Linear(5, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc2(torch.relu(self.fc1(self.embed(x).mean(1)))))


class Choosing(nn.Module):
    """The data decide which of two layers is used, and a number read off the activation rescales it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.positive, self.negative = nn.Linear(5, 4), nn.Linear(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.positive if float(x.mean()) > -2.0 else self.negative
        x = torch.relu(self.first(x))
        x = x / (1.0 + float(x.sum()))
        return self.head(torch.relu(branch(x)))


class Functional(nn.Module):
    """No layers at all: bare parameters and functions."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5))
        self.w2, self.b2 = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x @ self.w1 + self.b1) @ self.w2 + self.b2


class Concatenating(nn.Module):
    """Two branches joined by concatenation, one of them read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.norm = nn.BatchNorm2d(5)
        self.mix = nn.Conv2d(5, 4, 3)
        self.fc = nn.Linear(4 * 4 + 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        joined = torch.relu(self.norm(torch.cat([a, torch.relu(self.b(x))], 1)))
        mixed = F.max_pool2d(torch.relu(self.mix(joined)), 2)
        return self.fc(torch.cat([mixed.flatten(1), a.amax((2, 3))], 1))


class Gated(nn.Module):
    """A gated linear unit: two layers whose outputs are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(6, 5), nn.Linear(6, 5)
        self.down = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


# -------------------------------------------------------------------------------------------------- networks


@dataclass(frozen=True)
class NetworkCase:
    """A network with what its anatomy must be.

    Attributes:
        name: For the test's name.
        seed: Of weights, statistics and example inputs.
        model: Makes the module.
        shape: Of one example.
        units: Layer -> (count, kind, exact_by) of every group, taps included.
        unreached: Layers that must be named as not reached.
        taps: Layers that are tapped.
        tokens: Inputs are whole numbers below this; 0 = they are real.
        classes: Outputs.
        double: Whether all is in double precision.
    """

    name: str
    seed: int
    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    units: Mapping[str, tuple[int, str, str]]
    unreached: tuple[str, ...] = ()
    taps: tuple[str, ...] = ()
    tokens: int = 0
    classes: int = 3
    double: bool = False

    def __str__(self) -> str:
        return self.name

    def build(self) -> nn.Module:
        """The module with random weights, in train mode, as a user would hold it."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            module = self.model()
        randomise(module, self.seed)
        return module.double() if self.double else module

    def inputs(self, count: int, name: str = "inputs") -> Tensor:
        """Inputs [count, ...]."""
        rng = stream(self.seed, name)
        if self.tokens:
            return torch.randint(self.tokens, (count, *self.shape), generator=rng)
        return torch.randn(count, *self.shape, generator=rng, dtype=torch.float64 if self.double else None)

    def network(self) -> Network:
        """The network, made once; networks are values."""
        return _network(self.name)

    def task(self) -> Task:
        """A small classification with this network's inputs: labels from another network's outputs."""
        return _task(self.name)


@lru_cache(maxsize=None)
def _network(name: str) -> Network:
    case = NETWORKS[name]
    net = Network.of(case.build(), case.inputs(3))
    return tap(net, case.taps) if case.taps else net


@lru_cache(maxsize=None)
def _task(name: str) -> Task:
    case = NETWORKS[name]
    parts = []
    for split, count in (("train", 24), ("validation", 8), ("test", 12)):
        inputs = case.inputs(count, split)
        summed = inputs.double().flatten(1)
        direction = torch.randn(
            summed.shape[1], case.classes, generator=stream(case.seed, "labels"), dtype=torch.float64
        )
        parts.append((inputs, (summed @ direction).argmax(1)))
    return Task.of(name, parts[0], parts[2], validation=parts[1], classes=case.classes)


def randomise(module: nn.Module, seed: int) -> None:
    """Weights of trained-like size everywhere; normalisations with scales, shifts and statistics far from 1 and 0."""
    rng = stream(seed, "weights")
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, norms) and part.weight is not None:
                part.weight.copy_(torch.rand(part.weight.shape, generator=rng) + 0.5)
                part.bias.copy_(torch.randn(part.bias.shape, generator=rng) * 0.5)
                for name, buffer in part.named_buffers():
                    if name == "running_mean":
                        buffer.copy_(torch.randn(buffer.shape, generator=rng) * 0.5)
                    elif name == "running_var":
                        buffer.copy_(torch.rand(buffer.shape, generator=rng) + 0.5)
            else:
                for parameter in part.parameters(recurse=False):
                    fan = parameter[0].numel() if parameter.ndim > 1 else 4
                    parameter.copy_(torch.randn(parameter.shape, generator=rng) * 1.2 / fan**0.5)


def _mlp(activation: Callable[[], nn.Module], bias: bool = True) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Linear(6, 7, bias=bias), activation(), nn.Linear(7, 5), activation(), nn.Linear(5, 3)
    )


Units = dict[str, tuple[int, str, str]]


def _both(*pairs: tuple[str, int], kind: str = "neuron") -> Units:
    return {layer: (count, kind, "both") for layer, count in pairs}


def _outgoing(*pairs: tuple[str, int], kind: str = "neuron") -> Units:
    return {layer: (count, kind, "outgoing") for layer, count in pairs}


def _incoming(*pairs: tuple[str, int], kind: str = "neuron") -> Units:
    return {layer: (count, kind, "incoming") for layer, count in pairs}


def _branches(*pairs: tuple[str, int]) -> Units:
    return _incoming(*pairs, kind="branch")


_ENCODER: Units = {"embed": (8, "branch", "incoming")} | {
    f"encoder.layers.{i}.{layer}": entry
    for i in (0, 1)
    for layer, entry in (
        ("self_attn", (2, "head", "outgoing")),
        ("self_attn.out_proj", (8, "branch", "incoming")),
        ("linear1", (6, "neuron", "both")),
        ("linear2", (8, "branch", "incoming")),
    )
}

_ROWS = (
    NetworkCase("mlp-relu", 1, _mlp(nn.ReLU), (6,), _both(("0", 7), ("2", 5)), ("4",)),
    NetworkCase("mlp-tanh", 2, _mlp(nn.Tanh), (6,), _both(("0", 7), ("2", 5)), ("4",)),
    NetworkCase("mlp-sigmoid", 3, _mlp(nn.Sigmoid), (6,), _outgoing(("0", 7), ("2", 5)), ("4",)),
    NetworkCase("mlp-gelu-no-bias", 4, _mlp(nn.GELU, bias=False), (6,), _both(("0", 7), ("2", 5)), ("4",)),
    NetworkCase(
        "mlp-norms",
        5,
        lambda: nn.Sequential(
            nn.Linear(6, 7),
            nn.LayerNorm(7),
            nn.ReLU(),
            nn.Linear(7, 5),
            nn.BatchNorm1d(5),
            nn.ReLU(),
            nn.Linear(5, 4),
            nn.ReLU(),
            nn.BatchNorm1d(4),
            nn.Linear(4, 3),
        ),
        (6,),
        _both(("0", 7), ("3", 5), ("6", 4)),
        ("9",),
    ),
    NetworkCase(
        "cnn-batchnorm",
        6,
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 5, 3, padding=1, bias=False),
            nn.BatchNorm2d(5),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(45, 6),
            nn.ReLU(inplace=True),
            nn.Linear(6, 3),
        ),
        (2, 6, 6),
        {**_both(("0", 4), ("4", 5), kind="channel"), **_both(("8", 6))},
        ("10",),
    ),
    NetworkCase(
        "cnn-depthwise",
        7,
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(4, 4, 3, padding=1, groups=4),
            nn.GELU(),
            nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=2, groups=2),
            nn.GELU(),
            nn.AvgPool2d(3),
            nn.Flatten(),
            nn.Linear(6, 3),
        ),
        (2, 6, 6),
        _both(("0", 4), ("2", 4), ("4", 6), kind="channel"),
        ("8",),
    ),
    NetworkCase(
        "residual",
        8,
        Residual,
        (2, 6, 6),
        {
            "conv1": (4, "channel", "both"),
            **_branches(("stem", 4), ("conv2", 4), ("conv3", 6), ("down", 6)),
        },
        ("fc",),
    ),
    NetworkCase(
        "conv1d",
        9,
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3),
            nn.ReLU(),
            nn.AvgPool1d(2),
            nn.Conv1d(4, 5, 3, stride=2, padding=1, dilation=2),
            nn.Tanh(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(5, 3),
        ),
        (2, 12),
        _both(("0", 4), ("3", 5), kind="channel"),
        ("7",),
    ),
    NetworkCase(
        "deconv-groupnorm",
        10,
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
            nn.GroupNorm(3, 6),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 3),
        ),
        (2, 5, 5),
        _both(("0", 4), ("3", 6), kind="channel"),
        ("8",),
    ),
    NetworkCase(
        "transformer-post-norm",
        11,
        lambda: Encoder(pre=False),
        (4, 5),
        _ENCODER,
        ("encoder.layers.0.self_attn.in_proj_weight", "encoder.layers.1.self_attn.in_proj_weight", "head"),
    ),
    NetworkCase(
        "transformer-pre-norm",
        12,
        lambda: Encoder(pre=True),
        (4, 5),
        _ENCODER,
        ("encoder.layers.0.self_attn.in_proj_weight", "encoder.layers.1.self_attn.in_proj_weight", "head"),
    ),
    NetworkCase(
        "attention-stacked",
        13,
        StackedHeads,
        (4, 5),
        {
            "attention": (2, "head", "outgoing"),
            "W_in": (6, "neuron", "both"),
            **_branches(("embed", 8), ("W_O", 8), ("W_out", 8)),
        },
        ("W_Q", "W_K", "W_V", "head"),
    ),
    NetworkCase(
        "attention-separate",
        14,
        SeparateProjections,
        (4, 6),
        {
            "attention": (3, "head", "outgoing"),
            "up": (5, "neuron", "both"),
            **_branches(("o", 6), ("down", 6)),
        },
        ("q", "k", "v", "head"),
    ),
    NetworkCase(
        "lstm-tapped",
        15,
        lambda: Recurrent(nn.LSTM),
        (4, 4),
        {"rnn": (5, "tap", "incoming"), "fc1": (4, "neuron", "both")},
        ("fc2",),
        taps=("rnn",),
    ),
    NetworkCase(
        "gru-tapped",
        16,
        lambda: Recurrent(nn.GRU),
        (4, 4),
        {"rnn": (5, "tap", "incoming"), "fc1": (4, "neuron", "both")},
        ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "fc2"),
        taps=("rnn",),
    ),
    NetworkCase("called-twice", 17, CalledTwice, (6,), _incoming(("first", 5), ("shared", 5)), ("head",)),
    NetworkCase(
        "two-views", 18, TwoViews, (6,), {**_both(("shared", 5)), **_branches(("left", 3), ("right", 3))}
    ),
    NetworkCase("tied", 19, Tied, (6,), _incoming(("middle", 6)), ("encode", "head")),
    NetworkCase(
        "tokens-tied",
        20,
        Tokens,
        (4,),
        {**_both(("fc1", 5)), **_incoming(("fc2", 6))},
        ("embed",),
        tokens=7,
        classes=7,
    ),
    NetworkCase(
        "dropout",
        21,
        lambda: nn.Sequential(
            nn.Linear(6, 7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)
        ),
        (6,),
        _both(("0", 7), ("3", 5)),
        ("5",),
    ),
    NetworkCase(
        "choosing",
        22,
        Choosing,
        (6,),
        {**_incoming(("first", 5)), **_both(("positive", 4))},
        ("negative", "head"),
    ),
    NetworkCase("functional", 23, Functional, (6,), _both(("w1", 5)), ("w2",)),
    NetworkCase(
        "concatenating",
        24,
        Concatenating,
        (2, 6, 6),
        {**_incoming(("a", 3), ("b", 2), kind="channel"), **_both(("mix", 4), kind="channel")},
        ("fc",),
    ),
    NetworkCase("gated", 25, Gated, (6,), _both(("gate", 5), ("up", 5)), ("down",)),
    NetworkCase("double", 26, _mlp(nn.ReLU), (6,), _both(("0", 7), ("2", 5)), ("4",), double=True),
    NetworkCase(
        "one-unit-per-layer",
        27,
        lambda: nn.Sequential(nn.Linear(6, 1), nn.Tanh(), nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 3)),
        (6,),
        _both(("0", 1), ("2", 1)),
        ("4",),
    ),
    NetworkCase(
        "tokens-wise",
        28,
        lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)),
        (4, 5),
        _both(("0", 6)),
        ("3",),
    ),
)
NETWORKS: dict[str, NetworkCase] = {case.name: case for case in _ROWS}
