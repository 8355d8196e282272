"""The geometry of your own network: which changes hurt, the function back without labels, a path to another network.

    python examples/geometry.py           # about half a minute on one core
    python examples/geometry.py --quick   # a few seconds

The same questions from a shell, about networks that are trained on the spot:
    planaria resilience --model cnn --task 'digits?flat=0'
    planaria rescue --model cnn --task 'digits?flat=0' --repairs refit,sequential,recover --inputs 100 --updates 2000
    planaria connect --model cnn --task 'digits?flat=0' --by straight,aligned,bezier
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import planaria as pl


class Small(nn.Module):
    """A convolution with batch normalisation, then a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.hidden, self.out = nn.Linear(16 * 16, 48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.out(torch.relu(self.hidden(x.flatten(1))))


def trained(task: pl.Task, seed: int, updates: int) -> pl.Network:
    torch.manual_seed(seed)
    net = pl.Network.of(Small(), task.train.inputs)
    return pl.settle(pl.Retrain(task, batch=32), pl.updates(updates))(net, pl.stream(seed, "train"))


def hurts(net: pl.Network, inputs: Tensor) -> None:
    """Functional length: how far a change of the weights moves the outputs."""
    g = pl.Metric(net, inputs)
    spectrum = g.eigh(1)
    print(spectrum)
    mu = 1e-3 * float(spectrum.values[0])
    seen, free = spectrum.effective_dimension(mu), spectrum.resilient_fraction(mu)
    print(f"directions that these {len(inputs)} inputs see: {seen.best:.0f}; nearly free: {free.best:.1%}")
    drawn = {name: torch.randn(w.shape, generator=pl.stream(0, name)) for name, w in net.weights.items()}
    size = sum(float(part.square().sum()) for part in drawn.values()) ** 0.5
    random = {name: part / size for name, part in drawn.items()}
    print(f"a step of length 1: along the stiffest {g.norm(spectrum.vectors[0]):.2f}, at random {g.norm(random):.2f}")


def recovers(net: pl.Network, inputs: Tensor, task: pl.Task, dose: float, steps: int) -> None:
    """Repairs from the intact network and unlabelled inputs."""
    damage = pl.Damage(pl.Silence(), pl.RandomUnits(per_layer=True))
    hurt = damage.at(dose)(net, pl.stream(0, "lesion"))
    print(f"\nintact {task.score(net):.3f}, {dose:.0%} of the units deleted {task.score(hurt):.3f}")
    teacher = pl.Teacher(net, inputs)
    flows: dict[str, pl.Refit | pl.Recover] = {"sequential": pl.Refit(teacher), "recover": pl.Recover(teacher, steps)}
    for name, flow in flows.items():
        moment = pl.settle(flow).moment(hurt, pl.stream(0, name))
        print(f"{name:<11}{task.score(moment.network):.3f}, {moment.cost.multiply_adds / 1e9:.2f} G multiply-adds")


def connects(net: pl.Network, other: pl.Network, task: pl.Task, updates: int, points: int) -> None:
    """Ways between two networks that were trained apart; statistics of the normalisation are re-estimated."""
    print(f"\nthe other network {task.score(other):.3f}; {pl.align(net, other).verdict}")
    names, ways = ("straight", "aligned", "bezier"), (pl.Straight(), pl.Straight(pl.ByWeights()), pl.Bezier(updates))
    path = pl.connect(net, other, task, by=ways, points=points, calibration=300)  # up to the first that connects
    for name, attempt in zip(names, path.tried, strict=False):
        words = "connects" if attempt.connects else "does not connect"
        print(f"{name:<11}loss barrier {attempt.profile.loss_barrier:.3f}, {words}")
    print(f"on test data: {path.profiles['test']}")


def main(quick: bool) -> None:
    task = pl.task("digits?flat=0")
    net, other = (trained(task, seed, 300 if quick else 1000) for seed in (0, 1))
    inputs = task.train.inputs[: 50 if quick else 200]  # no labels
    hurts(net, inputs)
    recovers(net, inputs, task, dose=0.7, steps=5 if quick else 20)
    connects(net, other, task, updates=100 if quick else 1000, points=7 if quick else 25)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="less training and fewer inputs")
    main(parser.parse_args().quick)
