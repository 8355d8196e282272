"""Forms: how the inputs and outputs of a product are laid out as rows of features and rows of outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F


class Form(Protocol):
    """Inputs and outputs of a product as rows [groups, rows, numbers], and rows back as outputs."""

    def features(self, x: Tensor, width: int) -> Tensor:
        """What each row of outputs is computed from [groups, rows, width]."""

    def outputs(self, z: Tensor, made: int) -> Tensor:
        """Outputs as rows [groups, rows, made]."""

    def back(self, rows: Tensor, like: Tensor) -> Tensor:
        """Inverse of `outputs`: rows in the shape of the output `like`."""


@dataclass(frozen=True)
class Flat:
    """A matrix product: all but the last axis are rows."""

    def features(self, x: Tensor, width: int) -> Tensor:
        """[1, rows, width]."""
        return x.reshape(1, -1, width)

    def outputs(self, z: Tensor, made: int) -> Tensor:
        """[1, rows, made]."""
        return z.reshape(1, -1, made)

    def back(self, rows: Tensor, like: Tensor) -> Tensor:
        """In the shape of `like`."""
        return rows.reshape(like.shape)


@dataclass(frozen=True)
class Stacked:
    """A product with a stack of matrices, as where each attention head has its own.

    Attributes:
        count: Matrices in the stack.
        turns: Whether along the stacked axis they take turns, or each has a block of its own.
        summed: Whether what they make is added up: then they are one matrix that reads from all at once, and outputs
            are those of the sum.
    """

    count: int
    turns: bool
    summed: bool

    def features(self, x: Tensor, width: int) -> Tensor:
        """[count, rows, width], or [1, rows, width] where they are added up."""
        apart = self._apart(x)
        if not self.summed:
            return apart.reshape(self.count, -1, width)
        return apart.movedim(0, -2).reshape(1, -1, width)

    def outputs(self, z: Tensor, made: int) -> Tensor:
        """[count, rows, made], or [1, rows, made] of the sum."""
        return z.reshape(1, -1, made) if self.summed else self._apart(z).reshape(self.count, -1, made)

    def back(self, rows: Tensor, like: Tensor) -> Tensor:
        """In the shape of `like`."""
        if self.summed:
            return rows.reshape(like.shape)
        if not self.turns:
            return rows.reshape(like.shape)
        return rows.reshape(self.count, -1, *like.shape[1:]).transpose(0, 1).reshape(like.shape)

    def _apart(self, x: Tensor) -> Tensor:
        """[count, of each, ...]."""
        if self.turns:
            return x.reshape(-1, self.count, *x.shape[1:]).transpose(0, 1)
        return x.reshape(self.count, -1, *x.shape[1:])


@dataclass(frozen=True)
class Patches:
    """A convolution over any number of axes: one row per example and position.

    Attributes:
        groups: Of channels.
        kernel: Its size along each axis.
        stride: Step along each axis.
        padding: Zeros at the beginning and end of each axis.
        dilation: Distance of neighbours in the kernel.
        spread: Distance at which the inputs are laid out first, with zeros between: above 1 for transposed ones.
    """

    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    spread: tuple[int, ...]

    def features(self, x: Tensor, width: int) -> Tensor:
        """[groups, rows, width]; features run over channels, then over the kernel."""
        x = F.pad(self._spread(x), [size for pair in reversed(self.padding) for size in pair])
        for at, (kernel, stride, dilation) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            x = x.unfold(2 + at, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        axes = len(self.kernel)
        x = x.unflatten(1, (self.groups, -1))
        positions, places = range(3, 3 + axes), range(3 + axes, 3 + 2 * axes)
        return x.permute(1, 0, *positions, 2, *places).reshape(self.groups, -1, width)

    def outputs(self, z: Tensor, made: int) -> Tensor:
        """[groups, rows, made]."""
        return z.flatten(2).unflatten(1, (self.groups, made)).permute(1, 0, 3, 2).reshape(self.groups, -1, made)

    def back(self, rows: Tensor, like: Tensor) -> Tensor:
        """In the shape of `like`."""
        positions = like.flatten(2).shape[2]
        apart = rows.view(self.groups, len(like), positions, rows.shape[2])
        return apart.permute(1, 0, 3, 2).reshape(like.shape)

    def _spread(self, x: Tensor) -> Tensor:
        if all(step == 1 for step in self.spread):
            return x
        sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], self.spread, strict=True)]
        wide = x.new_zeros(*x.shape[:2], *sizes)
        places = wide
        for axis, step in enumerate(self.spread):
            places = places.movedim(2 + axis, 0)[::step].movedim(0, 2 + axis)
        places.copy_(x)
        return wide


def patches_of(kernel: tuple[int, ...], arguments: tuple[object, ...]) -> Patches:
    """The form of a convolution.

    Args:
        kernel: Size along each axis.
        arguments: Of the operation, from the stride on: stride, padding, dilation, transposed, output padding, groups.

    Example:
        >>> import torch
        >>> form = patches_of((2,), ([1], [0], [1], False, [0], 1))
        >>> form.features(torch.arange(3.0).view(1, 1, 3), 2)
        tensor([[[0., 1.],
                 [1., 2.]]])
    """
    stride, padding, dilation, transposed, more, groups = arguments
    assert isinstance(groups, int)
    steps, pads, gaps, extra = (_each(sizes, len(kernel)) for sizes in (stride, padding, dilation, more))
    once = (1,) * len(kernel)
    if not transposed:
        return Patches(groups, kernel, steps, tuple((pad, pad) for pad in pads), gaps, once)
    # Every output is a sum over the kernel turned round, of inputs laid out a stride apart.
    sides = [gap * (size - 1) - pad for size, gap, pad in zip(kernel, gaps, pads, strict=True)]
    around = tuple((side, side + last) for side, last in zip(sides, extra, strict=True))
    return Patches(groups, kernel, once, around, gaps, steps)


def _each(sizes: object, axes: int) -> tuple[int, ...]:
    """One size per axis; torch also takes one for all."""
    assert isinstance(sizes, (list, tuple))
    found = tuple(int(size) for size in sizes)
    return found * axes if len(found) == 1 else found
