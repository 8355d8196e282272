"""The one table of cases: networks, tasks, faults, sites, operators and flows that every law is tried on.

Each row builds what it names by a function and carries its seed; a new network, operator or flow is one row
here and inherits all laws. Networks are tiny and have random weights of trained-like size and random
normalisation statistics, so that nothing is zero, one or symmetric by accident.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from architectures import (
    GPT2,
    Bert,
    CalledTwice,
    Choosing,
    Concatenating,
    ConvNext,
    Decoder,
    Encoder,
    Functional,
    Gated,
    GatedHalves,
    GroupedQueries,
    InvertedResidual,
    Layers,
    Llama,
    LongShort,
    Recurrent,
    Residual,
    SeparateProjections,
    StackedHeads,
    Steps,
    Tables,
    Tied,
    Tokens,
    TwoViews,
    VisionTransformer,
    WrittenOut,
)
from planaria.core.anatomy import Anatomy
from planaria.core.motion import after, chain, repeat, settle, steps
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.tap import tap
from planaria.damage.damage import Damage
from planaria.damage.faults import Fault, Noise, Silence, StuckAt
from planaria.damage.sites import Dose, RandomEntries, RandomUnits, RankedUnits, Site
from planaria.measure.datasets import task
from planaria.measure.task import Task
from planaria.repair.against import B3, SAM, DamageRepair, Dropout, Plain, TargetedDropout, UnitFaults
from planaria.repair.distil import Distil
from planaria.repair.harden import Harden
from planaria.repair.incoming import GradMax
from planaria.repair.recover import Recorded, Recover
from planaria.repair.refit import Refit, Sidecar, Teacher
from planaria.repair.regrow import Recycle, Regrow, Ripen
from planaria.repair.restart import Restart
from planaria.repair.retrain import SGD, Adam, AdamW, Retrain

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


@cache
def _network(name: str) -> Network:
    case = NETWORKS[name]
    net = Network.of(case.build(), case.inputs(3))
    return tap(net, case.taps) if case.taps else net


@cache
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
    """Weights of trained-like size; normalisations with scales, shifts, statistics far from 1 and 0."""
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


def _cells(*pairs: tuple[str, int]) -> Units:
    return _both(*pairs, kind="recurrent")


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
        "attention-written-out",
        29,
        WrittenOut,
        (4, 6),
        {"attention": (2, "head", "outgoing"), "out": (6, "branch", "incoming")},
        ("qkv", "head"),
    ),
    NetworkCase(
        "attention-grouped",
        30,
        GroupedQueries,
        (4, 6),
        {"attention": (4, "head", "outgoing"), "o": (6, "branch", "incoming")},
        ("q", "k", "v", "head"),
    ),
    NetworkCase(
        "decoder",
        31,
        Decoder,
        (4, 6),
        {
            "memory": (6, "neuron", "incoming"),  # its readers share a weight with the queries
            "layer.self_attn": (2, "head", "outgoing"),
            "layer.multihead_attn": (2, "head", "outgoing"),
            "layer.linear1": (5, "neuron", "both"),
            **_branches(("layer.self_attn.out_proj", 6), ("layer.multihead_attn.out_proj", 6), ("layer.linear2", 6)),
        },
        ("layer.self_attn.in_proj_weight", "layer.multihead_attn.in_proj_weight", "head"),
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
        ("fc2",),
        taps=("rnn",),
    ),
    NetworkCase("called-twice", 17, CalledTwice, (6,), _incoming(("first", 5), ("shared", 5)), ("head",)),
    NetworkCase("two-views", 18, TwoViews, (6,), _both(("shared", 5)), ("left", "right")),
    NetworkCase("tied", 19, Tied, (6,), _incoming(("middle", 6)), ("encode", "head")),
    NetworkCase(
        "tokens-tied",
        20,
        Tokens,
        (4,),
        {**_outgoing(("embed", 6), kind="embedding"), **_both(("fc1", 5)), **_incoming(("fc2", 6))},
        tokens=7,
        classes=7,
    ),
    NetworkCase(
        "dropout",
        21,
        lambda: nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)),
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
    NetworkCase("gated", 25, Gated, (6,), _both(("gated", 5)), ("gate", "up", "down")),
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
        "log-softmax",
        32,
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.LogSoftmax(-1)),
        (6,),
        _both(("0", 5)),
        ("2",),
    ),
    NetworkCase(
        "lstm-double",
        33,
        lambda: Recurrent(nn.LSTM),
        (4, 4),
        {"rnn": (5, "tap", "incoming"), "fc1": (4, "neuron", "both")},
        ("fc2",),
        taps=("rnn",),
        double=True,
    ),
    NetworkCase(
        "tokens-wise",
        28,
        lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)),
        (4, 5),
        _both(("0", 6)),
        ("3",),
    ),
    NetworkCase("lstm", 34, lambda: Recurrent(nn.LSTM), (4, 4), {**_cells(("rnn", 5)), **_both(("fc1", 4))}, ("fc2",)),
    NetworkCase("gru", 35, lambda: Recurrent(nn.GRU), (4, 4), {**_cells(("rnn", 5)), **_both(("fc1", 4))}, ("fc2",)),
    NetworkCase(
        "lstm-stacked",
        36,
        lambda: Layers(nn.LSTM(4, 3, 2, bidirectional=True, batch_first=True), 6),
        (3, 4),
        _cells(("rnn.l0", 3), ("rnn.l0_reverse", 3), ("rnn.l1", 3), ("rnn.l1_reverse", 3)),
        ("head",),
    ),
    NetworkCase(
        "rnn-no-bias",
        37,
        lambda: Layers(nn.RNN(4, 5, bias=False, batch_first=True), 5),
        (3, 4),
        _cells(("rnn", 5)),
        ("head",),
    ),
    NetworkCase(
        "gru-steps",
        38,
        lambda: Steps(nn.GRUCell(4, 5)),
        (3, 4),
        {**_incoming(("cell", 5), kind="recurrent"), **_branches(("skip", 5))},
        ("cell.weight_ih", "cell.weight_hh", "head"),
    ),
    NetworkCase(
        "lstm-steps",
        39,
        lambda: Steps(nn.LSTMCell(4, 5)),
        (3, 4),
        {**_incoming(("cell", 5), kind="recurrent"), **_branches(("skip", 5))},
        ("cell.weight_ih", "cell.weight_hh", "head"),
    ),
    NetworkCase(
        "lstm-written-out",
        40,
        LongShort,
        (3, 4),
        _incoming(("gates", 5), kind="recurrent"),  # its first state is a weight that the same columns read
        ("start", "head"),
    ),
    NetworkCase(
        "gated-halves",
        41,
        GatedHalves,
        (2, 5, 5),
        {**_both(("conv", 4), ("down", 6), kind="channel"), **_both(("both", 5))},
        ("head",),
    ),
    NetworkCase(
        "inverted-residual",
        42,
        InvertedResidual,
        (2, 5, 5),
        {
            # A channel is made by its depthwise filter and weighed by the excitation.
            **_both(("expand", 6), ("gated", 6), ("excite.fc1", 3), kind="channel"),
            **_branches(("stem", 4), ("project", 4)),
        },
        ("depthwise", "excite.fc2", "head"),
    ),
    NetworkCase(
        "convnext",
        43,
        ConvNext,
        (2, 6, 6),
        {
            **_both(("depthwise", 4), kind="channel"),
            **_both(("up", 6)),
            **_branches(("stem", 4), ("down", 4)),
        },
        ("last", "head"),
    ),
    NetworkCase(
        "llama",
        44,
        Llama,
        (4,),
        {
            **_incoming(("embed_tokens", 8), kind="embedding"),
            **_outgoing(("self_attn", 4), kind="head"),
            **_both(("mlp", 6)),
            **_branches(("self_attn.o_proj", 8), ("mlp.down_proj", 8)),
        },
        (
            *(f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "q_norm")),
            *("mlp.gate_proj", "mlp.up_proj", "input_norm", "post_norm", "norm", "lm_head"),
        ),
        tokens=7,
        classes=7,
    ),
    NetworkCase(
        "gpt2",
        45,
        GPT2,
        (4,),
        {
            **_outgoing(("attention", 3), kind="head"),
            **_both(("c_fc", 5)),
            **_branches(("c_proj", 6), ("c_out", 6)),
        },
        ("wte", "wpe", "c_attn", "ln_1", "ln_2", "ln_f"),
        tokens=7,
        classes=7,
    ),
    NetworkCase(
        "bert",
        46,
        Bert,
        (4,),
        {
            **_incoming(("words", 6), ("types", 6), kind="embedding"),
            **_outgoing(("attention", 2), kind="head"),
            **_both(("intermediate", 5), ("pooler", 4)),
            **_branches(("attention.output", 6), ("output", 6)),
        },
        ("positions", "norm0", "norm1", "norm2", *(f"attention.{part}" for part in ("query", "key", "value"))),
        tokens=7,
    ),
    NetworkCase(
        "vision-transformer",
        47,
        VisionTransformer,
        (2, 6, 6),
        {
            **_outgoing(("attention", 2), kind="head"),
            **_both(("fc1", 5)),
            **_branches(("patches", 6), ("proj", 6), ("fc2", 6)),
        },
        ("qkv", "token", "positions", "norm1", "norm2", "norm", "head"),
    ),
    NetworkCase(
        "embeddings",
        48,
        Tables,
        (4,),
        {**_both(("words", 5), ("table", 4), kind="embedding"), **_both(("fc", 6))},
        ("head",),
        tokens=7,
    ),
)
NETWORKS: dict[str, NetworkCase] = {case.name: case for case in _ROWS}

# ------------------------------------------------------------------------------------------- faults and sites

FAULTS: dict[str, Fault] = {
    "silence": Silence(),
    "silence-passing": Silence(lasting=False),
    "stuck": StuckAt(0.7),
    "stuck-passing": StuckAt(-0.3, lasting=False),
    "noise": Noise(0.5),
    "noise-lasting": Noise(0.2, lasting=True),
}

SITES: dict[str, Callable[[NetworkCase], Site]] = {
    "random": lambda case: RandomUnits(),
    "random-every-kind": lambda case: RandomUnits(kinds=Anatomy.of(case.network()).kinds),
    "random-count": lambda case: RandomUnits(Dose("units")),
    "random-per-layer": lambda case: RandomUnits(per_layer=True),
    "random-one-layer": lambda case: RandomUnits(Dose("units"), layers=(next(iter(case.units)),)),
    "ranked": lambda case: RankedUnits(Anatomy.of(case.network()).units()[::-1]),
    "ranked-per-layer": lambda case: RankedUnits(Anatomy.of(case.network()).units(), per_layer=True),
    "entries": lambda case: RandomEntries(),
    "entries-count": lambda case: RandomEntries(Dose("entries")),
}


def shifted(case: NetworkCase) -> RandomUnits:
    """Units that have a shift, which is what StuckAt needs."""
    groups = Anatomy.of(case.network()).groups
    return RandomUnits(layers=tuple(group.layer for group in groups if group.owners["shift"]))


def stuck(case: NetworkCase) -> Damage:
    """Units stuck at a value; silent ones where no unit has a shift that could hold it, such as gated ones."""
    return Damage(StuckAt(0.7), shifted(case)) if shifted(case).layers else Damage(Silence(), RandomUnits())


# --------------------------------------------------------------------------------------- operators and flows


@dataclass(frozen=True)
class Row:
    """An operator or a flow, made for a network.

    Attributes:
        name: For the test's name.
        make: Builds it for a network of the table.
        draws: Whether its result depends on the stream.
    """

    name: str
    make: Callable[[NetworkCase], Any]
    draws: bool = True

    def __str__(self) -> str:
        return self.name


def hurt(case: NetworkCase, dose: float = 0.4) -> Network:
    """The network with some units silenced."""
    return Damage(Silence(), RandomUnits()).at(dose)(case.network(), stream(case.seed, "hurt"))


@cache
def sidecar(name: str) -> Sidecar:
    """Moments of the intact network."""
    return Sidecar.of(NETWORKS[name].network(), NETWORKS[name].inputs(32, "moments"))


def teacher(case: NetworkCase) -> Teacher:
    """The intact network with unlabelled inputs."""
    return Teacher(case.network(), case.inputs(32, "moments"))


def recorded(case: NetworkCase) -> Recorded:
    """What the intact network said to unlabelled inputs."""
    inputs = case.inputs(6, "moments")
    return Recorded(inputs, case.network()(inputs))


def _retrain(case: NetworkCase) -> Retrain:
    return Retrain(case.task(), SGD(0.05, momentum=0.9, decay=0.01), batch=8)


HARDENERS = {
    "plain": Plain(),
    "faults": UnitFaults(groups=2),
    "dropout": Dropout(0.3, groups=2),
    "targeted": TargetedDropout(groups=3),
    "sam": SAM(),
    "b3": B3(),
    "damage-repair": DamageRepair(0.3, updates=2),
}


_OPERATOR_ROWS = (
    Row("silence", lambda case: Damage(Silence(), RandomUnits()).at(0.5)),
    Row("silence-per-layer", lambda case: Damage(Silence(), RandomUnits(per_layer=True)).at(0.3)),
    Row("silence-ranked", lambda case: Damage(Silence(), SITES["ranked"](case)).at(0.4), draws=False),
    Row("stuck", lambda case: stuck(case).at(0.5)),
    Row("noise", lambda case: Damage(Noise(0.5), RandomUnits()).at(0.5)),
    Row("edges", lambda case: Damage(Silence(), RandomEntries()).at(0.3)),
    Row("noisy-edges", lambda case: Damage(Noise(0.3, lasting=True), RandomEntries()).at(0.3)),
    Row("regrow", lambda case: chain(Damage(Silence(), RandomUnits()).at(0.6), Regrow())),
    Row(
        "regrow-gradmax",
        lambda case: chain(Damage(Silence(), RandomUnits()).at(0.6), Regrow(incoming=GradMax(case.task(), 8, 2))),
    ),
    Row("recycle", lambda case: chain(Damage(Silence(), RandomUnits()).at(0.3), Recycle(case.task(), 0.4, 8))),
    Row("restart", lambda case: chain(Damage(Silence(), RandomUnits()).at(0.4), Restart())),
    Row("settled", lambda case: settle(_retrain(case), steps(2))),
    Row(
        "cycle",
        lambda case: chain(Damage(Silence(), RandomUnits()).at(0.2), settle(_retrain(case), steps(2))),
    ),
)
OPERATORS: dict[str, Row] = {row.name: row for row in _OPERATOR_ROWS}

_FLOW_ROWS = (
    Row("retrain-sgd", _retrain),
    Row("retrain-adam", lambda case: Retrain(case.task(), Adam(0.01, decay=0.01), batch=8)),
    Row("retrain-adamw", lambda case: Retrain(case.task(), AdamW(0.01, decay=0.1), batch=8, horizon=3)),
    Row("regrow-retrain", lambda case: after(Regrow(), _retrain(case))),
    Row("regrow-only-new", lambda case: after(Regrow(others=0), _retrain(case))),
    Row("regrow-gradmax", lambda case: after(Regrow(incoming=GradMax(case.task(), 8)), _retrain(case))),
    Row("regrow-ripen", lambda case: Ripen(Regrow(others=0), _retrain(case), over=2)),
    Row("recycle", lambda case: repeat(chain(settle(_retrain(case), steps(1)), Recycle(case.task(), 0.3, 8)))),
    Row("distil", lambda case: Distil(case.network(), case.inputs(24, "train"), SGD(0.02, momentum=0.9), batch=8)),
    *(
        Row(f"harden-{name}", lambda case, against=against: Harden(case.task(), against, SGD(0.02, decay=0.01), 8))
        for name, against in HARDENERS.items()
    ),
    Row("restart-retrain", lambda case: after(Restart(), _retrain(case))),
    Row("refit-sidecar", lambda case: Refit(sidecar(case.name)), draws=False),
    Row("refit-teacher", lambda case: Refit(teacher(case)), draws=False),
    Row("recover", lambda case: Recover(Teacher(case.network(), case.inputs(6, "moments")), 2, limit=3), draws=False),
    Row("recover-recorded", lambda case: Recover(recorded(case), limit=3), draws=False),
    Row("refit-retrain", lambda case: after(settle(Refit(sidecar(case.name))), _retrain(case))),
    Row(
        "turnover",
        lambda case: repeat(
            chain(Damage(Silence(), RandomUnits()).at(0.1), Regrow(), settle(_retrain(case), steps(1)))
        ),
    ),
)
FLOWS: dict[str, Row] = {row.name: row for row in _FLOW_ROWS}

# The four flows that everything else is built from run on every network, all flows on a few very different ones.
_EVERYWHERE = ("retrain-sgd", "regrow-retrain", "refit-sidecar", "refit-teacher", "recover")
_VARIED = ("mlp-relu", "cnn-batchnorm", "dropout", "transformer-pre-norm", "tokens-tied")
FLOWS_ON_NETWORKS: list[tuple[NetworkCase, Row]] = [
    (case, row)
    for case in NETWORKS.values()
    for row in FLOWS.values()
    if row.name in _EVERYWHERE or case.name in _VARIED
]


# ------------------------------------------------------------------------------------------------------ tasks


def _plane(name: str, target: Callable[[Tensor], Tensor], loss: str, score: str) -> Task:
    parts = []
    for split, count in (("train", 96), ("validation", 32), ("test", 64)):
        x = torch.randn(count, 2, generator=stream(0, name, split))
        parts.append((x, target(x)))
    return Task.of(name, parts[0], parts[2], validation=parts[1], loss=loss, score=score)


TASKS: dict[str, Callable[[], Task]] = {
    "clouds": lambda: _plane(
        "clouds",
        lambda x: (x @ torch.tensor([[1.0, -1.0, 0.5], [0.2, 0.7, -1.0]])).argmax(1),
        "cross_entropy",
        "accuracy",
    ),
    "surface": lambda: _plane("surface", lambda x: torch.sin(x[:, :1]) * x[:, 1:], "mse", "r2"),
    "digits": lambda: task("digits"),
}


def model_for(name: str, seed: int = 0) -> nn.Module:
    """A small untrained module for one of TASKS."""
    wide, out = {"clouds": (2, 3), "surface": (2, 1), "digits": (64, 10)}[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(wide, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, out))


@cache
def trained(name: str) -> tuple[Network, Task]:
    """A network that has learnt one of TASKS, and the task."""
    learnt = TASKS[name]()
    net = Network.of(model_for(name), learnt.train.inputs)
    flow = Retrain(learnt, Adam(0.01), batch=32)
    return settle(flow, steps(150))(net, stream(0, "train", name)), learnt
