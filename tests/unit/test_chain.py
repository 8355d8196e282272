"""Chains: what is one, and that it computes what the network computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cases import NETWORKS, NetworkCase
from planaria.core.anatomy import Anatomy, Unit
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.sweep.chain import Chain
from planaria.sweep.lesions import Lesion
from planaria.sweep.program import near
from planaria.sweep.replay import edited

CHAINS = {
    "mlp-relu",
    "mlp-tanh",
    "mlp-sigmoid",
    "mlp-gelu-no-bias",
    "cnn-batchnorm",
    "called-twice",
    "tied",
    "dropout",
    "double",
    "one-unit-per-layer",
    "log-softmax",
}
ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.ReLU6, lambda: nn.LeakyReLU(0.2)]


def _random(net: Network, seed: int) -> Network:
    rng = stream(seed, "chain")
    weights = {name: torch.randn(w.shape, generator=rng).to(w) * 0.5 for name, w in net.weights.items()}
    return net.with_weights(weights)


@pytest.mark.parametrize("case", NETWORKS.values(), ids=str)
def test_which_networks_are_chains_and_that_they_compute_the_same(case: NetworkCase) -> None:
    net, chain = case.network(), Chain.of(case.network())
    assert isinstance(chain, Chain) == (case.name in CHAINS), chain
    if isinstance(chain, Chain):
        for count in (1, 2, 9):
            x = case.inputs(count, "chain")
            assert near(chain(x), net(x))
            held = chain.run(x)
            assert len(held) == len(chain.stages) + 1 and torch.equal(held[-1], chain(x))


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    activation=st.sampled_from(ACTIVATIONS),
    bias=st.booleans(),
    norm=st.booleans(),
    softmax=st.booleans(),
    double=st.booleans(),
    seed=st.integers(0, 99),
)
def test_random_perceptrons_are_chains(
    widths: list[int],
    activation: Callable[[], nn.Module],
    bias: bool,
    norm: bool,
    softmax: bool,
    double: bool,
    seed: int,
) -> None:
    layers: list[nn.Module] = []
    for read, made in pairwise(widths):
        layers += [nn.Linear(read, made, bias=bias), *([nn.BatchNorm1d(made)] if norm else []), activation()]
    layers = layers[:-1] + ([nn.Softmax(1)] if softmax else [])
    module = nn.Sequential(*layers).to(torch.float64 if double else torch.float32)
    x = torch.randn(7, widths[0], generator=stream(seed, "x"), dtype=torch.float64 if double else torch.float32)
    net = _random(Network.of(module, x[:1]), seed)
    chain = Chain.of(net)
    assert isinstance(chain, Chain), chain
    assert near(chain(x), net(x))
    assert chain.linear and len(chain.stages) == len(widths) - 1 and not chain.elsewhere
    assert [stage.folded for stage in chain.stages] == [norm] * len(chain.stages)


@settings(max_examples=25, deadline=None)
@given(
    channels=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    activation=st.sampled_from(ACTIVATIONS[:5]),
    pool=st.sampled_from([lambda: nn.MaxPool2d(2), lambda: nn.AvgPool2d(2, padding=1), nn.Identity]),
    norm=st.booleans(),
    head=st.booleans(),
    seed=st.integers(0, 99),
)
def test_random_convolutional_networks_are_chains_whose_units_fall_silent(
    channels: list[int],
    activation: Callable[[], nn.Module],
    pool: Callable[[], nn.Module],
    norm: bool,
    head: bool,
    seed: int,
) -> None:
    layers, read = [], 2
    for made in channels:
        layers += [nn.Conv2d(read, made, 3, padding=1), *([nn.BatchNorm2d(made)] if norm else []), activation(), pool()]
        read = made
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if head else [nn.Flatten()]
    x = torch.randn(3, 2, 8, 8, generator=stream(seed, "x"))
    body = nn.Sequential(*layers)
    module = nn.Sequential(*layers, nn.Linear(body(x).shape[1], 3))
    net = _random(Network.of(module, x[:2]), seed)
    chain = Chain.of(net)
    assert isinstance(chain, Chain), chain
    assert near(chain(x), net(x))
    units = {group.layer: group.count for group in Anatomy.of(net).groups}
    assert [stage.layer for stage in chain.stages if stage.layer] == list(units)
    for at, stage in enumerate(chain.stages[:-1]):
        assert stage.block * stage.made == chain.stages[at + 1].weight[0].numel() or not chain.stages[at + 1].linear
        if math.isnan(stage.silent):
            continue
        held = chain.run(x)[at + 1].clone()
        held.view(3, stage.made, -1)[:, 0] = stage.silent
        for later in chain.stages[at + 1 :]:
            held = later.post(later.pre(held))
        assert near(held, edited(net, Lesion.of(Unit(stage.layer, 0), net))(x))


class Odd(nn.Module):
    """Two linear layers with something between."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(6, 5), nn.Linear(5, 3), between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "mul reads an activation twice, or something else beside it": lambda h: h * h,
    "add reads an activation twice, or something else beside it": lambda h: h + torch.arange(5.0),
    "flip reorders an activation": lambda h: h.flip(1),
    "an activation of shape [5] is read more than once": lambda h: h.relu() + h,
    "an activation is cast to torch.float16": lambda h: h.half().float(),
    "unsqueeze reorders an activation": lambda h: F.softmax(h.unsqueeze(1), 2).squeeze(1),
    "cumsum is no simple step between two products": lambda h: h.cumsum(1),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_chain_says_why(reason: str) -> None:
    assert Chain.of(Network.of(Odd(REFUSED[reason]), torch.ones(2, 6))) == reason


class Convolving(nn.Module):
    """A convolution over six positions, something, and a linear layer."""

    def __init__(self, behind: Callable[[Tensor], Tensor], made: int) -> None:
        super().__init__()
        self.a, self.b, self.behind = nn.Conv1d(2, 6, 3, padding=1), nn.Linear(made, 3), behind

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.behind(self.a(x).relu()))


def test_only_what_works_on_positions_pools() -> None:
    x = torch.randn(4, 2, 6, generator=stream(0, "x"))
    for behind, made, pools in (
        (lambda h: h.mean(2), 6, True),
        (lambda h: h.sum(-1), 6, True),
        (lambda h: h.sum(1), 6, False),
        (lambda h: h.amax(-2), 6, False),
        (lambda h: F.max_pool2d(h, 3, 1, 1).flatten(1), 36, False),
    ):
        assert isinstance(Chain.of(Network.of(Convolving(behind, made), x)), Chain) == pools


def test_weights_that_are_read_elsewhere_too_are_named() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.linear(x, self.a.weight, self.a.weight.norm(dim=1)).relu(), self.b.weight, self.b.bias)

    chain = Chain.of(Network.of(Reading(), torch.ones(2, 6)))
    assert isinstance(chain, Chain) and chain.elsewhere == {"a.weight"}
    tied = Chain.of(NETWORKS["called-twice"].network())
    assert isinstance(tied, Chain) and "shared.weight" in tied.elsewhere


def test_bytes_are_cast_before_the_first_product() -> None:
    class Bytes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 5).double(), nn.Linear(5, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x.double() / 255).relu())

    x = torch.arange(24, dtype=torch.uint8).view(4, 6)
    net = Network.of(Bytes(), x)
    chain = Chain.of(net)
    assert isinstance(chain, Chain) and [step.name for step in chain.entry] == ["cast", "div"]
    assert near(chain(x), net(x))


def test_a_normalisation_with_the_statistics_of_the_batch_is_not_folded() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten())
    reason = Chain.of(Network.of(nn.Sequential(module, nn.Linear(48, 2)), torch.ones(1, 2, 6, 6)))
    assert reason == "native_batch_norm takes the statistics of the batch"
