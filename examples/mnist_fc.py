"""MLP 784-256-256-10 on MNIST (VNN-COMP 2021, "mnistfc"): a pretrained network rebuilt so that its weights fit.

    planaria units --model examples/mnist_fc.py:model --weights mnist_fc_256x2.safetensors --task mnist --verify

It takes pixels divided by 255 and nothing more: with MNIST's usual mean and standard deviation it reads noise, which
`--expect-score 0.98` notices. (`--model mlp:784-256-256-10` is the same network; this file shows how to name your own.)

To rescue it takes a task of its own: the training images are those that it has learnt, so that its score on a part of
them says nothing about how well it does. Here the validation images come from the test images.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

import planaria as pl


def model() -> nn.Module:
    """Images [N, 1, 28, 28] or rows [N, 784] with values 0..1 -> logits [N, 10]."""
    layers = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), layers=layers))


def task() -> dict[str, object]:
    """Training images as published; every fifth test image validates, the other 8,000 test."""
    mnist = pl.task("mnist")
    held_out = torch.arange(len(mnist.test)) % 5 == 4
    parts = {"validation": held_out, "test": ~held_out}
    return {"train": mnist.train} | {name: mnist.test.take(rows.nonzero().flatten()) for name, rows in parts.items()}
