"""B17: the fallback for networks that cannot be recorded is no dearer than brute force. B18: overheads."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from suite.harness import Row, assert_scores, interleave, one_forward, repetitions, row
from suite.networks import images
from torch import Tensor, nn

from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.data import Data
from planaria.measure.task import Task
from planaria.sweep.ablate import ablate
from planaria.sweep.lesions import EachUnit
from planaria.sweep.program import Program


class Undecided(nn.Module):
    """784-512-96-10 whose way through its layers depends on the data, so that no recording of it can be replayed."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.first, self.second, self.last = nn.Linear(784, 512), nn.Linear(512, 96), nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 10]."""
        x = self.first(x).relu()
        x = self.second(x).relu() if bool(torch.isfinite(x).all()) else self.second(x).abs()
        logits: Tensor = self.last(x)
        return logits


def fallback(quick: bool) -> list[Row]:
    """B17."""
    train, test = (Data(data.inputs.flatten(1), data.targets) for data in images(28, 1, quick))
    data = test.take(250 if quick else 1000)
    model = _made(Undecided).requires_grad_(False)
    net, task = Network.of(model, data.inputs), Task.of("undecided", train, data, validation=data)
    scores: dict[str, Tensor] = {}

    def naive() -> None:
        found = []
        for unit in range(-1, 96):  # the intact network too: without it nothing is known to be lost
            damaged = copy.deepcopy(model)
            if unit >= 0:
                damaged.get_parameter("last.weight")[:, unit] = 0.0
            with torch.no_grad():
                outputs = damaged(data.inputs)
            found.append((outputs.argmax(1) == data.targets).double().mean())
        scores["naive"] = torch.stack(found[1:])

    def ours() -> None:
        effects = ablate(net, EachUnit(layers=("second",)), task, audited=0)
        scores["ours"] = effects.scores["second"]

    times = interleave({"naive": naive, "ours": ours}, repetitions(quick))
    difference = assert_scores(scores["naive"], scores["ours"], 0.0, "B17")
    return [
        row(
            "B17",
            "network whose way depends on the data, 96 units",
            times,
            forward_s=one_forward(model, data.inputs, 1000),
            difference=difference,
            at_least={"ratio_naive": 1 / 1.05},
        )
    ]


def overheads(quick: bool) -> list[Row]:
    """B18: what replaying costs per operation beyond the operation, and what a sweep costs before it begins."""
    nodes, rounds = 200, 20
    net = Network.of(nn.Sequential(nn.Linear(4, 4), *[nn.Tanh() for _ in range(nodes)]), torch.ones(2, 4))
    program = Program.of(net)
    assert isinstance(program, Program)
    x = torch.randn(4, 4, generator=stream(0, "overhead"))
    tanh = torch.ops.aten.tanh.default
    outputs: dict[str, Tensor] = {}

    def bare() -> None:
        for _ in range(rounds):
            y = net.weights["0.bias"] + x @ net.weights["0.weight"].T
            for _ in range(nodes):
                y = tanh(y)
        outputs["bare"] = y

    def replayed() -> None:
        for _ in range(rounds):
            outputs["ours"] = program.run(x)[program.output]

    with torch.no_grad():
        times = interleave({"bare": bare, "ours": replayed}, repetitions(quick) + 2)
    spare = [(a - b) / nodes / rounds for a, b in zip(times["ours"], times["bare"], strict=True)]
    assert torch.equal(outputs["ours"], net(x)), "B18: the replayed outputs differ from the network's"

    tiny = _made(lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)))
    data = Data(torch.randn(16, 8, generator=stream(0, "tiny")), torch.arange(16) % 3)
    task = Task.of("tiny", data, data, validation=data)
    setting_up = []
    for _ in range(repetitions(quick) + 2):
        fresh = Network.of(tiny, data.inputs)  # nothing known about it
        start = time.process_time()
        ablate(fresh, EachUnit(), task, audited=0)
        setting_up.append(time.process_time() - start)
    first = {"ours": spare}
    second = {"ours": setting_up[1:]}
    return [
        row("B18", "replay, seconds per operation beyond it", first, at_most={"ours_s": 6e-6}),
        row("B18", f"whole sweep of a tiny network, median of {len(setting_up) - 1}", second, at_most={"ours_s": 0.05}),
    ]


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make().eval()


BENCHMARKS = {"B17": fallback, "B18": overheads}
