"""B12 and B16: small networks trained together, and the lines between trained networks."""

from __future__ import annotations

from itertools import combinations

import torch
from suite.harness import SAME_ROUTE, Row, interleave, one_forward, peak_mib, repetitions, row, same_route
from suite.networks import images, mlp
from torch import Tensor, nn

from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.data import Data
from planaria.measure.scores import ACCURACY
from planaria.measure.task import Task
from planaria.repair.retrain import SGD
from planaria.repair.together import train_together
from planaria.sweep.between import scores_between

COUNT = 32
"""Networks trained together."""


def together(quick: bool) -> list[Row]:
    """B12: 784-64-10, SGD with momentum, batch 128; one after another is a plain in-memory loop."""
    train, test = images(28, 1, True)
    train = Data(train.inputs.flatten(1), train.targets)
    test = Data(test.inputs.flatten(1), test.targets)
    task = Task.of("images", train, test, validation=test)
    updates, count = (8, 16) if quick else (60, COUNT)
    nets = [_small(seed, train.inputs) for seed in range(count)]
    ends: dict[str, list[Tensor]] = {}

    def alone() -> None:
        ends["naive"] = [_plain(net, train, updates) for net in nets]

    def ours() -> None:
        trained = train_together(nets, task, updates=updates, optimiser=SGD(0.05), batch=128, rng=stream(0, "batches"))
        ends["ours"] = [net.weights["0.weight"] for net in trained]

    ways = {"naive": alone, SAME_ROUTE: same_route(alone), "ours": ours}
    times = interleave(ways, repetitions(quick))
    alone()
    apart = max(float((a - b).abs().max()) for a, b in zip(ends["naive"], ends["ours"], strict=True))
    assert apart < 1e-4, f"B12: weights are {apart:.2g} apart"
    return [
        row(
            "B12",
            f"{count} networks 784-64-10, {updates} updates of SGD, batch 128",
            times,
            peer="none",
            difference=apart,
            peak=peak_mib(ours),
            at_least={"ratio_naive": 3.5},
        )
    ]


def _small(seed: int, inputs: Tensor) -> Network:
    rng = stream(seed, "small")
    net = Network.of(nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)), inputs)
    scale = {"0.weight": 784**-0.5, "2.weight": 64**-0.5}
    drawn = {name: torch.randn(w.shape, generator=rng) * scale.get(name, 0.0) for name, w in net.weights.items()}
    return net.with_weights(drawn)


def _plain(net: Network, train: Data, updates: int) -> Tensor:
    """An in-memory loop with torch's fused SGD, on the batches that the others have."""
    module, rng = net.to_module().train(), stream(0, "batches")
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, fused=True)
    waiting = torch.empty(0, dtype=torch.long)
    for _ in range(updates):
        while len(waiting) < 128:
            waiting = torch.cat([waiting, torch.randperm(len(train), generator=rng)])
        rows, waiting = waiting[:128], waiting[128:]
        loss = nn.functional.cross_entropy(module(train.inputs[rows]), train.targets[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return module.get_parameter("0.weight").detach()


def between(quick: bool) -> list[Row]:
    """B16: four networks, eleven points on the line between every two."""
    case = mlp(quick)
    data = case.few(250 if quick else 4000)
    shares = [at / 10 for at in range(11)]
    nets = [case.net, *(_moved(case.net, seed) for seed in range(3))]
    scores: dict[str, list[float]] = {}

    def naive() -> None:
        scores["naive"] = []
        for a, b in combinations(range(4), 2):
            for share in shares:
                joined = {name: torch.lerp(w, nets[b].weights[name], share) for name, w in nets[a].weights.items()}
                outputs = nets[a].with_weights(joined)(data.inputs)
                scores["naive"].append(float((outputs.argmax(1) == data.targets).double().mean()))

    def ours() -> None:
        found = scores_between(nets, shares, data.inputs, data.targets, ACCURACY)
        scores["ours"] = [float(s) for a, b in combinations(range(4), 2) for s in found[a, b]]

    ways = {"naive": naive, SAME_ROUTE: same_route(naive), "ours": same_route(ours)}
    times = interleave(ways, repetitions(quick))
    naive()
    apart = max(abs(a - b) for a, b in zip(scores["naive"], scores["ours"], strict=True))
    assert apart <= 2 / len(data), f"B16: scores are {apart:.2g} apart"
    return [
        row(
            "B16",
            f"lines between 4 {case.name}s, 6 x 11 points, {len(data):,} inputs",
            times,
            forward_s=one_forward(case.model, data.inputs, case.batch),
            peer="none",
            difference=apart,
            peak=peak_mib(ours),
            at_least={"ratio_same_route": 4.0},
        )
    ]


def _moved(net: Network, seed: int) -> Network:
    """Another network of that form: the same with noise of half the weights' size."""
    rng = stream(seed, "moved")
    return net.with_weights(
        {name: w + 0.5 * w.std() * torch.randn(w.shape, generator=rng) for name, w in net.weights.items()}
    )


BENCHMARKS = {"B12": together, "B16": between}
