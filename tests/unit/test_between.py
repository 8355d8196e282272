"""Scores on the lines between networks, and networks trained together."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cases import NETWORKS
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.datasets import task
from planaria.measure.scores import ACCURACY, Score
from planaria.measure.task import Task
from planaria.repair.retrain import SGD, Adam, AdamW, Optimiser, Retrain
from planaria.repair.together import train_together
from planaria.sweep.between import scores_between

LARGEST = Score("largest", lambda y, t: float(y.amax(1).mean()), per_example=lambda y, t: y.amax(1))


def _made(seed: int, *sizes: int, bias: bool = True) -> Network:
    rng = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for read, made in pairwise(sizes):
        layers += [nn.Linear(read, made, bias=bias), nn.ReLU()]
    net = Network.of(nn.Sequential(*layers[:-1]), torch.ones(2, sizes[0]))
    return net.with_weights({name: torch.randn(w.shape, generator=rng) * 0.4 for name, w in net.weights.items()})


@pytest.mark.parametrize("name", ["mlp-relu", "mlp-gelu-no-bias", "cnn-batchnorm", "residual", "double", "tied"])
def test_scores_between_networks_are_those_of_the_interpolated_networks(name: str) -> None:
    case = NETWORKS[name]
    net, rng = case.network(), stream(3, "others")
    others = [
        net.with_weights({n: w + 0.3 * torch.randn(w.shape, generator=rng).to(w) for n, w in net.weights.items()})
        for _ in range(2)
    ]
    nets, shares, x = [net, *others], [0.0, 0.3, 0.5, 1.0], case.inputs(30)
    t = net(x).argmax(1)
    found = scores_between(nets, shares, x, t, LARGEST)
    for a, one in enumerate(nets):
        for b, other in enumerate(nets):
            for place, share in enumerate(shares):
                weights = {n: torch.lerp(w, other.weights[n], share) for n, w in one.weights.items()}
                outputs = one.with_weights(weights)(x)
                assert float(found[a, b, place]) == pytest.approx(float(outputs.amax(1).mean()), rel=1e-4, abs=1e-5)


def test_the_ends_of_a_line_are_the_networks_themselves() -> None:
    nets = [_made(seed, 5, 7, 6, 3) for seed in range(3)]
    x = torch.randn(700, 5, generator=torch.Generator().manual_seed(1))
    t = nets[0](x).argmax(1)
    found = scores_between(nets, [0.0, 0.25, 1.0], x, t, ACCURACY)
    own = [float((net(x).argmax(1) == t).double().mean()) for net in nets]
    for a in range(3):
        for b in range(3):
            assert found[a, b, [0, 2]].tolist() == pytest.approx([own[a], own[b]])


def test_networks_that_cannot_be_joined_are_refused() -> None:
    x, t = torch.ones(2, 5), torch.zeros(2, dtype=torch.long)
    with pytest.raises(InputError, match="two networks or more"):
        scores_between([_made(0, 5, 3)], [0.5], x, t, ACCURACY)
    with pytest.raises(InputError, match="the same weights"):
        scores_between([_made(0, 5, 3), _made(0, 5, 4, 3)], [0.5], x, t, ACCURACY)


@pytest.mark.parametrize("optimiser", [SGD(0.05, 0.9, 1e-3), Adam(1e-3), AdamW(1e-3, 0.1)], ids=repr)
@pytest.mark.parametrize("bias", [True, False])
def test_networks_trained_together_are_those_trained_one_after_another(optimiser: Optimiser, bias: bool) -> None:
    digits = task("digits")
    nets = [_made(seed, 64, 12, 9, 10, bias=bias) for seed in range(3)]
    together = train_together(nets, digits, updates=7, optimiser=optimiser, batch=32, rng=stream(0, "batches"))
    for net, found in zip(nets, together, strict=True):
        flow = Retrain(digits, optimiser, 32)(net, stream(0, "batches"))
        alone = [next(flow) for _ in range(7)][-1].network
        for name, weight in alone.weights.items():
            assert torch.allclose(found.weights[name], weight, rtol=1e-3, atol=2e-5), name


def test_pinned_entries_stay_when_networks_are_trained_together() -> None:
    digits = task("digits")
    nets = [_made(seed, 64, 12, 10) for seed in range(2)]
    pinned = {"0.weight": torch.zeros(12, 64, dtype=torch.bool), "2.bias": torch.zeros(10, dtype=torch.bool)}
    pinned["0.weight"][3], pinned["2.bias"][4] = True, True
    nets[1] = nets[1].pin(pinned)
    _, second = train_together(nets, digits, updates=5, optimiser=SGD(0.1), rng=stream(0, "batches"))
    assert torch.equal(second.weights["0.weight"][3], nets[1].weights["0.weight"][3])
    assert torch.equal(second.weights["2.bias"][4], nets[1].weights["2.bias"][4])
    assert not torch.equal(second.weights["0.weight"][2], nets[1].weights["0.weight"][2])


def test_networks_that_cannot_be_trained_together_are_refused() -> None:
    digits, rng = task("digits"), stream(0, "batches")
    for nets in ([], [_made(0, 64, 12, 10), _made(0, 64, 13, 10)], [NETWORKS["residual"].network()]):
        with pytest.raises(InputError, match="train_together"):
            train_together(nets, digits, updates=1, rng=rng)
    with pytest.raises(InputError, match="updates"):
        train_together([_made(0, 64, 12, 10)], digits, updates=-1, rng=rng)


class Sloped(nn.Module):
    """Two layers with a slope that no description shows, the first of them held the other way round if asked for."""

    def __init__(self, slope: float, turned: bool = False) -> None:
        super().__init__()
        self.slope, self.turned = slope, turned
        self.first, self.last = nn.Parameter(torch.empty(6, 6)), nn.Linear(6, 3)
        self.bias = nn.Parameter(torch.empty(6))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.first.T if self.turned else self.first
        return self.last(functional.leaky_relu(functional.linear(x, weight, self.bias), self.slope))


def _sloped(seed: int, slope: float = 0.1, *, turned: bool = False) -> Network:
    rng = torch.Generator().manual_seed(seed)
    module = Sloped(slope, turned)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    return Network.of(module, torch.randn(2, 6, generator=rng))


def _six() -> Task:
    rng = torch.Generator().manual_seed(5)
    x, t = torch.randn(64, 6, generator=rng), torch.randint(3, (64,), generator=rng)
    return Task.of("six", (x, t), (x, t), validation=(x, t))


def test_networks_that_use_their_weights_otherwise_are_neither_joined_nor_trained_together() -> None:
    six, rng = _six(), stream(0, "batches")
    for other in (_sloped(1, 0.4), _sloped(1, turned=True)):
        with pytest.raises(InputError, match="one architecture"):
            scores_between([_sloped(0), other], [0.5], six.test.inputs, six.test.targets, ACCURACY)
        with pytest.raises(InputError, match="apply their weights alike"):
            train_together([_sloped(0), other], six, updates=1, rng=rng)
    with pytest.raises(InputError, match="apply their weights alike"):
        train_together([_sloped(0, turned=True), _sloped(1, turned=True)], six, updates=1, rng=rng)
    with pytest.raises(InputError, match="batch"):
        train_together([_sloped(0)], six, updates=1, batch=0, rng=rng)
    joined = scores_between([_sloped(0, turned=True), _sloped(1, turned=True)], [0.0], *_parts(six), ACCURACY)
    assert float(joined[0, 1, 0]) == pytest.approx(six.score(_sloped(0, turned=True)))


def _parts(task: Task) -> tuple[Tensor, Tensor]:
    return task.test.inputs, task.test.targets


def test_a_weight_that_is_read_twice_is_interpolated_everywhere() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Parameter(torch.empty(5, 6)), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(functional.linear(x, self.first, self.first.norm(dim=1)).relu())

    nets, six = [], _six()
    for seed in range(2):
        rng = torch.Generator().manual_seed(seed)
        net = Network.of(Scaled(), six.test.inputs)
        nets.append(net.with_weights({n: torch.randn(w.shape, generator=rng) for n, w in net.weights.items()}))
    found = scores_between(nets, [0.3], *_parts(six), LARGEST)
    between = {name: torch.lerp(w, nets[1].weights[name], 0.3) for name, w in nets[0].weights.items()}
    assert float(found[0, 1, 0]) == pytest.approx(float(nets[0].with_weights(between)(six.test.inputs).amax(1).mean()))
    with pytest.raises(InputError, match="weights of its own"):
        train_together(nets, six, updates=1, rng=stream(0, "batches"))
