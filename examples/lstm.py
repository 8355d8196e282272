"""An LSTM that reads digits row by row: train it, lesion it, rescue it.

    python examples/lstm.py           # about half a minute on one core
    python examples/lstm.py --quick   # a few seconds

The same from a shell (without --weights, the network is trained first):
    planaria rescue --model examples/lstm.py:Rows --repairs none,sequential,retrain
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import planaria as pl


class Rows(nn.Module):
    """Images [N, 64] as eight steps of eight pixels; the last hidden state answers."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(8, width, batch_first=True), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.lstm(images.reshape(-1, 8, 8))
        return self.out(states[:, -1])


def main(quick: bool) -> None:
    task = pl.task("digits")
    torch.manual_seed(0)
    net = pl.Network.of(Rows(), task.train.inputs)
    training = pl.Retrain(task, pl.Adam(5e-3), batch=32)
    net = pl.settle(training, pl.updates(300 if quick else 1500))(net, pl.stream(0, "train"))

    # Where no rule finds the units of a layer, its output is tapped: the state inside then goes on unharmed.
    anatomy = pl.Anatomy.of(net)
    net = pl.tap(net, anatomy.tappable(net)) if anatomy.tappable(net) else net
    for group in pl.Anatomy.of(net).groups:
        print(f"{group.layer:<8}{group.count:>4} units of kind {group.kind}, by {group.method}")
    pl.Anatomy.of(net).verify(net, task.validation.inputs[:4])

    damage = pl.Damage(pl.Silence(), pl.RandomUnits())
    doses = [i / 4 for i in range(5)] if quick else [i / 10 for i in range(11)]
    print(f"\nintact: {task.score(net):.3f}")
    print(pl.respond(net, damage, task, doses=doses, draws=4 if quick else 20), "\n")
    found = pl.vulnerability(net, task, worst_set=0)
    print("units that cost most:", ", ".join(f"{one.unit.layer}[{one.unit.index}] {one.lost}" for one in found.top(3)))

    repairs = {
        "refit": pl.Refit(pl.Sidecar.of(net, task.train.inputs)),
        "sequential": pl.Refit(pl.Teacher(net, task.train.inputs[:512])),
        "retrain": pl.Retrain(task, batch=32),
    }
    seeds, within = range(2 if quick else 5), pl.updates(40 if quick else 200)
    print(pl.rescue(net, damage, repairs, task, doses=[0.5] if quick else [0.3, 0.5, 0.7], seeds=seeds, within=within))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer updates, draws and seeds")
    main(parser.parse_args().quick)
