"""Are the brackets balanced? A published three-layer transformer, rebuilt so that its weights fit, and its strings.

    export BRACKETS=FOLDER   # of brackets_transformer.safetensors and brackets_data.json.gz
    planaria units --model examples/brackets_transformer.py:model --weights $BRACKETS/brackets_transformer.safetensors \
        --task py:examples/brackets_transformer.py:task --verify

Research code often keeps the weights of attention head by head, as here: W_Q [heads, width, width of a head].
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, LENGTH = 56, 2, 42
START, PAD, END, OPEN, CLOSE = range(5)


class Weights(nn.Module):
    """Parameters of the given names and shapes; their values come from the file."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(0.1 * torch.randn(shape)))


class Block(nn.Module):
    """Attention of two heads that leaves out pads, then an MLP; each adds to the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        inner, own = (HEADS, WIDTH, WIDTH // HEADS), (HEADS, WIDTH // HEADS)
        self.ln1, self.ln2 = (Weights(w=(WIDTH,), b=(WIDTH,)) for _ in range(2))
        self.attn = Weights(W_Q=inner, b_Q=own, W_K=inner, b_K=own, W_V=inner, b_V=own, W_O=(*own, WIDTH), b_O=(WIDTH,))
        self.attn.register_buffer("mask", torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())  # in the file, not used
        self.attn.register_buffer("IGNORE", torch.tensor(-1e5))
        self.mlp = Weights(W_in=(WIDTH, WIDTH), b_in=(WIDTH,), W_out=(WIDTH, WIDTH), b_out=(WIDTH,))

    def forward(self, x: Tensor, pads: Tensor) -> Tensor:
        a, m = self.attn, self.mlp
        y = F.layer_norm(x, (WIDTH,), self.ln1.w, self.ln1.b)
        q, k, v = (torch.einsum("npd,hde->nphe", y, w) + b for w, b in ((a.W_Q, a.b_Q), (a.W_K, a.b_K), (a.W_V, a.b_V)))
        scores = torch.einsum("nqhe,nkhe->nhqk", q, k) / (WIDTH // HEADS) ** 0.5
        pattern = torch.where(pads[:, None, None], a.IGNORE, scores).softmax(-1)
        mixed = torch.einsum("nhqk,nkhe->nqhe", pattern, v)
        x = x + (torch.einsum("nqhe,hed->nqd", mixed, a.W_O) + a.b_O)
        y = F.layer_norm(x, (WIDTH,), self.ln2.w, self.ln2.b)
        return x + ((y @ m.W_in + m.b_in).relu() @ m.W_out + m.b_out)


class Brackets(nn.Module):
    """Tokens [N, 42] -> logits [N, 2], read at the first position."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.pos_embed = Weights(W_E=(5, WIDTH)), Weights(W_pos=(LENGTH, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.ln_final, self.unembed = Weights(w=(WIDTH,), b=(WIDTH,)), Weights(W_U=(WIDTH, 2), b_U=(2,))

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.embedding(tokens, self.embed.W_E) + self.pos_embed.W_pos
        for block in self.blocks:
            x = block(x, tokens == PAD)
        x = F.layer_norm(x[:, 0], (WIDTH,), self.ln_final.w, self.ln_final.b)
        return x @ self.unembed.W_U + self.unembed.b_U


def model() -> nn.Module:
    """The network; `--weights` fills it."""
    return Brackets()


def rows() -> list[tuple[str, bool]]:
    """The published list: 100,000 strings, 50,551 of them distinct, and whether each is balanced."""
    with gzip.open(Path(os.environ.get("BRACKETS", ".")) / "brackets_data.json.gz", "rt") as file:
        return [(string, balanced) for string, balanced in json.load(file)]


def data(strings: list[tuple[str, bool]]) -> tuple[Tensor, Tensor]:
    """Tokens [N, 42]: start, the string, end, pads; labels [N]."""
    tokens = torch.full((len(strings), LENGTH), PAD)
    for row, (string, _) in zip(tokens, strings, strict=True):
        row[: len(string) + 2] = torch.tensor([START, *(OPEN if c == "(" else CLOSE for c in string), END])
    return tokens, torch.tensor([int(balanced) for _, balanced in strings])


def task() -> dict[str, object]:
    """Every string once, as many balanced as not, in mixed order: 4,000 to test, 14,040 to learn from."""
    distinct = list(dict.fromkeys(rows()))
    balanced = [row for row in distinct if row[1]]
    both = balanced + [row for row in distinct if not row[1]][: len(balanced)]
    order = torch.randperm(len(both), generator=torch.Generator().manual_seed(0)).tolist()
    mixed = [both[place] for place in order]
    return {"train": data(mixed[4000:]), "test": data(mixed[:4000])}


def published() -> dict[str, object]:
    """The whole list as it is, to compare the intact score with the published one; not to learn from."""
    every = data(rows())
    return {"train": (every[0][:1000], every[1][:1000]), "test": every}
