"""ResNet-8 on CIFAR-10, the image classifier of MLPerf Tiny: a pretrained network rebuilt so that its weights fit.

    planaria units --model examples/resnet8_cifar10.py:model --weights resnet8_cifar10.safetensors \
        --task 'cifar10?scale=raw' --verify

It was trained on pixels from 0 to 255 (`scale=raw`). All that is needed is a function without arguments that builds the
module; the names of its tensors are those of the weights file. docs/pretrained.md has what it does when it is hurt.

To rescue it takes a task of its own: the training images are those that it has learnt, so that its score on a part of
them says nothing about how well it does. Here the validation images come from the test images.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import planaria as pl


class Block(nn.Module):
    """Two convolutions and what goes past them; where it halves the image, it is padded on the right and below only."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.halves = inward != outward
        stride, padding = (2, 0) if self.halves else (1, 1)
        self.conv1 = nn.Conv2d(inward, outward, 3, stride, padding)
        self.bn1 = nn.BatchNorm2d(outward, eps=1e-3)
        self.conv2 = nn.Conv2d(outward, outward, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outward, eps=1e-3)
        if self.halves:
            self.short = nn.Conv2d(inward, outward, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 1, 0, 1)) if self.halves else x
        branch = self.bn2(self.conv2(self.bn1(self.conv1(padded)).relu()))
        out: Tensor = (branch + (self.short(x) if self.halves else x)).relu()
        return out


def model() -> nn.Module:
    """Images [N, 3, 32, 32] with values 0..255 -> logits [N, 10]."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 3, padding=1),
            bn1=nn.BatchNorm2d(16, eps=1e-3),
            relu=nn.ReLU(),
            block1=Block(16, 16),
            block2=Block(16, 32),
            block3=Block(32, 64),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(64, 10),
        )
    )


def task() -> dict[str, object]:
    """Training images as published; every fifth test image validates, the other 8,000 test."""
    cifar = pl.task("cifar10?scale=raw")
    held_out = torch.arange(len(cifar.test)) % 5 == 4
    parts = {"validation": held_out, "test": ~held_out}
    return {"train": cifar.train} | {name: cifar.test.take(rows.nonzero().flatten()) for name, rows in parts.items()}
