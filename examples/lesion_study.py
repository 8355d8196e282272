"""Which units does my network need for which class? Lesions of selective units, with controls and dissociations.

    python examples/lesion_study.py           # about ten seconds on one core
    python examples/lesion_study.py --quick   # a few seconds

The same from a shell (without --weights, the network is trained first), with tables and a report:
    planaria lesion --model examples/lesion_study.py:Digits --by selectivity,layer --clusters 4
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import planaria as pl


class Digits(nn.Module):
    """Replace it by your own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.second(torch.relu(self.first(x)))))


def main(quick: bool) -> None:
    task = pl.task("digits")
    torch.manual_seed(0)
    net = pl.Network.of(Digits(), task.train.inputs)
    training = pl.Retrain(task, pl.Adam(2e-3), batch=32)
    net = pl.settle(training, pl.updates(200 if quick else 600))(net, pl.stream(0, "train"))

    by = [pl.ByLayer(), pl.ByCluster((4,)), pl.BySelectivity(0.1)]
    found = pl.lesion_study(net, task, by, draws=8 if quick else 20)
    print(f"intact: {found.intact:.3f}; {len(found.lesions)} lesions on {found.examples} test inputs\n")

    print("accuracy lost, in points; row: units selective for a class are silent; column: class that is tested")
    print(f"{'':>14}" + "".join(f"{name:>5}" for name in found.classes))
    for one in found.selective:
        print(f"{one.name:>14}" + "".join(f"{100 * loss.lost.best:5.0f}" for loss in one.classes))
    random = [loss.control.best for loss in found.selective[0].classes]
    print(f"{'random units':>14}" + "".join(f"{round(100 * lost):5d}" for lost in random))

    pairs = found.dissociations
    double = [one for one in pairs if one.verdict == "double dissociation"]
    print(f"\n{len(double)} of {len(pairs)} pairs of classes doubly dissociate. The first that do not:")
    for pair in [one for one in pairs if one not in double][:3]:
        print(f"  {pair.words} (p {pair.adjusted:.2g})")

    print("\nregion                    units   lost                    random units             one at a time")
    for one in found.of("layer") + found.of("cluster"):
        print(f"{one.name:<26}{one.size:>5}   {one.whole.lost!s:<24}{one.whole.control!s:<25}{one.single_units:.3f}")

    print("\nDoes the selectivity of a unit say what its loss costs? Rank correlation per layer:")
    for guide in found.guides:
        print(f"  {guide.layer}: {guide.total}; its own class loses {guide.apart} more than the others")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="less training, fewer random lesions")
    main(parser.parse_args().quick)
