"""Attention heads of a small transformer: delete some, refit what read them.

    python examples/lesion_heads.py           # about half a minute on one core
    python examples/lesion_heads.py --quick   # a few seconds

The task: which of eight tokens occurs most often in a sequence of eleven? (Of several, the lowest.)
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import planaria as pl

TOKENS, LENGTH = 8, 12


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences [count, 12]; the first token is only the place where the answer is read."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(TOKENS, (count, LENGTH), generator=rng)
    counts = torch.stack([(tokens[:, 1:] == token).sum(1) for token in range(TOKENS)], 1)
    return tokens, counts.argmax(1)


class Reader(nn.Module):
    """Embedding, two encoder layers of eight heads, and a read-out at the first position."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(TOKENS, width), nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, 8, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(width, TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.encoder(self.token(tokens) + self.place.weight)[:, 0])


def main(quick: bool) -> None:
    task = pl.Task.of("commonest token", draw(2000 if quick else 8000, 0), draw(300 if quick else 1000, 1))
    torch.manual_seed(0)
    net = pl.Network.of(Reader(), task.train.inputs)
    training = pl.Retrain(task, pl.Adam(3e-3), batch=64)
    net = pl.settle(training, pl.updates(40 if quick else 300))(net, pl.stream(0, "train"))
    print(f"intact: {task.score(net):.3f}, chance {task.chance:.3f}")

    anatomy = pl.Anatomy.of(net)
    heads = anatomy.units("head")
    anatomy.verify(net)  # zeroing a head's columns of the output projection equals gating its output
    print(f"{len(heads)} heads, the first is {heads[0]}")

    # Which single head matters most? One lesion per head.
    silence = pl.Silence()
    lost = {
        head: task.score(net)
        - task.score(pl.Damage(silence, pl.RankedUnits((head,))).at(1)(net, pl.stream(0, "lesion")))
        for head in heads
    }
    for head in sorted(heads, key=lambda head: -lost[head])[:3]:
        print(f"  without head {head.index} of {head.layer}: -{lost[head]:.3f}")

    damage = pl.Damage(silence, pl.RandomUnits(kinds=("head",)))
    repairs = {
        "refit": pl.Refit(pl.Sidecar.of(net, task.train.inputs[:1024])),
        "sequential": pl.Refit(pl.Teacher(net, task.train.inputs[:1024])),
        "retrain": pl.Retrain(task, batch=64),
    }
    seeds, within = range(2 if quick else 4), pl.updates(10 if quick else 100)
    print(pl.rescue(net, damage, repairs, task, doses=[0.25, 0.5], seeds=seeds, within=within))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer seeds and updates")
    main(parser.parse_args().quick)
