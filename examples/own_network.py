"""Your own module, your own data: a small CNN on drawn shapes, damaged and rescued.

    python examples/own_network.py           # about a quarter of a minute on one core
    python examples/own_network.py --quick   # a few seconds

The same from a shell (without --weights, the network is trained first):
    planaria rescue --model examples/own_network.py:Shapes --task py:examples/own_network.py:data
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import planaria as pl


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images [count, 1, 16, 16] of a horizontal (0) or vertical bar (1) or a cross (2); classes."""
    rng = torch.Generator().manual_seed(seed)
    images = 0.4 * torch.randn(count, 1, 16, 16, generator=rng)
    labels = torch.randint(3, (count,), generator=rng)
    corners = torch.randint(1, 8, (count, 2), generator=rng).tolist()
    for image, label, (top, left) in zip(images[:, 0], labels.tolist(), corners, strict=True):
        if label != 1:
            image[top + 3, left : left + 7] += 1
        if label != 0:
            image[top : top + 7, left + 3] += 1
    return images, labels


def data() -> dict[str, object]:
    """The splits. No validation split is given, so the last tenth of train becomes it."""
    return {"train": draw(4000, 0), "test": draw(1000, 1)}


class Shapes(nn.Module):
    """Two convolutions with normalisation, then a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.hidden, self.out = nn.Linear(24 * 16, 48), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.max_pool2d(torch.relu(self.bn2(self.conv2(x))), 2)
        return self.out(torch.relu(self.hidden(x.flatten(1))))


def main(quick: bool) -> None:
    task = pl.Task.of("shapes", data()["train"], data()["test"])
    torch.manual_seed(0)
    net = pl.Network.of(Shapes(), task.train.inputs)
    training = pl.Retrain(task, batch=64)
    net = pl.settle(training, pl.updates(60 if quick else 400))(net, pl.stream(0, "train"))

    anatomy = pl.Anatomy.of(net)
    for group in anatomy.groups:
        print(f"{group.layer:<8}{group.count:>4} {group.kind}s, silenced exactly by: {group.exact_by}")
    print("no units:", dict(anatomy.unreached))
    anatomy.verify(net, task.validation.inputs[:4])  # raises if a silencing is not exact

    damage = pl.Damage(pl.Silence(), pl.RandomUnits(per_layer=True))
    refit = pl.Refit(pl.Sidecar.of(net, task.train.inputs[:1024]))
    sequential = pl.Refit(pl.Teacher(net, task.train.inputs[:1024]))
    repairs = {"refit": refit, "sequential": sequential, "retrain": training}
    print(f"\nintact: {task.score(net):.3f}")
    seeds, within = range(2 if quick else 5), pl.updates(20 if quick else 100)
    print(pl.rescue(net, damage, repairs, task, doses=[0.5], seeds=seeds, within=within))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer seeds and updates")
    main(parser.parse_args().quick)
