"""Where is my network weak? A map of the units of your own module, and its worst single weights.

    python examples/weak_points.py           # about ten seconds on one core
    python examples/weak_points.py --quick   # a few seconds

The same from a shell (without --weights, the network is trained first):
    planaria vulnerability --model examples/weak_points.py:Digits --weights-too
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import planaria as pl


class Digits(nn.Module):
    """Replace it by your own: one tensor in, one tensor out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(64, 48), nn.Linear(48, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.second(torch.relu(self.first(x)))))


def shade(lost: float, most: float) -> str:
    """One character per unit: a dot costs nothing, 9 as much as the worst."""
    return "." if lost <= 0 or most <= 0 else str(min(9, int(10 * lost / most)))


def main(quick: bool) -> None:
    task = pl.task("digits")
    torch.manual_seed(0)
    net = pl.Network.of(Digits(), task.train.inputs)
    training = pl.Retrain(task, pl.Adam(2e-3), batch=32)
    net = pl.settle(training, pl.updates(200 if quick else 600))(net, pl.stream(0, "train"))

    found = pl.vulnerability(net, task, worst_set=2 if quick else 5)
    print(f"intact: {found.intact:.3f}; every unit silenced in turn on {found.examples} test inputs")
    most = found.top(1)[0].lost.best
    for layer in found.layers:
        _, wide = layer.shape
        cells = "".join(shade(lost, most) for lost in layer.lost)
        print(layer.layer)
        print("\n".join(f"  {cells[start : start + wide]}" for start in range(0, len(cells), wide)))

    print("\nunits that cost most     lost                    direct    total")
    for one in found.top(5):
        print(f"  {one.unit.layer}[{one.unit.index}]".ljust(25), f"{one.lost}  {one.direct:7.3f}  {one.total:7.3f}")
    for how in found.sets.scores:
        print(f"{found.sets.size} units together, {how}: {found.sets.lost(how)} lost")

    for change in (pl.Becomes(0.0), pl.Flipped(30)):
        effects = pl.ablate(net, pl.EachWeight(change), task)
        print(f"\nevery weight, {change}: {effects.audit}")
        for name, place, lost in effects.top(3):
            index = [int(number) for number in torch.unravel_index(torch.tensor(place), net.weights[name].shape)]
            print(f"  {name}{index} loses {lost:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="less training, smaller sets")
    main(parser.parse_args().quick)
