"""Damage a small digit classifier, measure how it fails, and rescue it.

python examples/rescue_mlp.py           # about half a minute on one core
python examples/rescue_mlp.py --quick   # a few seconds
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import planaria as pl


def main(quick: bool, out: Path | None) -> None:
    digits = pl.task("digits")  # 8x8 images that come with the package
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    # A network is a value: the module above is copied and never changed.
    net = pl.Network.of(model, digits.train.inputs)
    training = pl.settle(pl.Retrain(digits, pl.Adam(2e-3), batch=32), pl.updates(300 if quick else 1500))
    net = training(net, pl.stream(0, "train"))
    print(f"intact: {digits.score(net):.3f} on {len(digits.test)} test images, chance {digits.chance:.3f}\n")

    # How does it fail? The same fraction of the neurons of every hidden layer dies, in many random orders.
    damage = pl.Damage(pl.Silence(), pl.RandomUnits(per_layer=True))
    doses = [0.2, 0.4, 0.6, 0.8, 1.0] if quick else [i / 20 for i in range(21)]
    print(pl.respond(net, damage, digits, doses=doses, draws=5 if quick else 20), "\n")

    # What rescues it? The sidecar is made while the network is intact; refitting from it needs no data.
    sidecar = pl.Sidecar.of(net, digits.train.inputs)
    retrain = pl.Retrain(digits, batch=32)
    repairs = {
        "refit": pl.Refit(sidecar),
        "sequential": pl.Refit(pl.Teacher(net, digits.train.inputs[:512])),
        "retrain": retrain,
        "embryonic": pl.after(pl.Regrow(others=0.1), retrain),
        "iterative": pl.Schedule(retrain, bites=10),
        "refit+retrain": pl.after(pl.settle(pl.Refit(sidecar)), retrain),
    }
    result = pl.rescue(
        net,
        damage,
        repairs,
        digits,
        doses=[0.5] if quick else [0.3, 0.5, 0.7],
        seeds=range(2 if quick else 5),
        within=pl.updates(40 if quick else 400),
    )
    print(result)

    # Any network of the study is an ordinary module again when asked.
    best = max(result.attempts, key=lambda attempt: (attempt.dose, attempt.validation_after))
    print(f"\nbest at dose {best.dose:g}: {best.repair}, {best.after:.3f}")
    if out is not None:
        torch.save(best.network.to_module().state_dict(), out)
        print(f"its weights: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer draws, seeds and updates")
    parser.add_argument("--out", type=Path, help="file for the best network's state dict")
    arguments = parser.parse_args()
    main(arguments.quick, arguments.out)
