"""Reader: a product of a network as rows of features and outputs, with the bias that belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from planaria.core.network import Network
from planaria.repair.forms import Form


@dataclass(frozen=True)
class Norm:
    """A batch normalisation behind a product without a bias: its own bias takes the product's shift.

    Attributes:
        weight: Name of its scale.
        bias: Name of its bias.
        variance: Name of the buffer of its running variance.
        eps: Added to the variance.
    """

    weight: str
    bias: str
    variance: str
    eps: float

    def factor(self, net: Network) -> Tensor:
        """What a shift of the product becomes behind it, per channel."""
        return net.weights[self.weight].double() / (net.buffers[self.variance].double() + self.eps).sqrt()


@dataclass(frozen=True)
class Junction:
    """Where a reader's output has been added to a stream: what counts is the sum.

    Attributes:
        tag: The operation that makes the sum, the last one if there are several.
        moves: Rearrangements on the way, as (tag, function); none where the order of entries stays.
        norm: A batch normalisation on the way.
    """

    tag: str
    moves: tuple[tuple[str, Callable[..., Tensor]], ...]
    norm: Norm | None

    def places(self, like: Tensor, arguments: Mapping[str, tuple[Any, ...]]) -> Tensor | None:
        """For each entry of the sum, the entry of the reader's output that arrives there; None: the same one.

        Args:
            like: The reader's output.
            arguments: Tag -> what the rearrangement was called with in this pass, its first argument left out.
        """
        if not self.moves:
            return None
        places = torch.arange(like.numel(), device=like.device).view(like.shape)
        for tag, function in self.moves:
            rest = arguments[tag]
            in_order = operation(tag) in {"view", "_unsafe_view", "_reshape_alias"}
            # Places may lie otherwise in memory than what they stand for.
            places = places.reshape(rest[0]) if in_order else function(places, *rest)
        return places.flatten()


@dataclass(frozen=True, eq=False)
class Reader:
    """A product that can be refitted: output rows = features @ matrix (+ shift), in each of `groups` groups.

    Attributes:
        weight: Name of its weight.
        bias: Name of the bias that takes its shift, None if there is none that belongs to it alone.
        norm: The batch normalisation that this bias belongs to, None if it is the product's own.
        columns: Positions in the flattened weight [groups, features, outputs].
        form: How inputs and outputs become rows.
        tags: Which operations of the forward pass it is: several where it is called several times.
        outs: For each, the operation that makes its outputs: itself, but for stacks that are added up.
        inside: Whether these outputs hold the bias already.
        junction: Where they join a stream, None if they do not, or in several calls.
        joined: Whether the bias is among what has been added there.
        each: Rows per example in one call; 0 where examples own no rows.
    """

    weight: str
    bias: str | None
    norm: Norm | None
    columns: Tensor
    form: Form
    tags: tuple[str, ...]
    outs: tuple[str, ...]
    inside: bool = False
    junction: Junction | None = None
    joined: bool = False
    each: int = 0

    def features(self, x: Tensor) -> Tensor:
        """Its inputs as rows [groups, rows, features]; for convolutions, one row per example and position."""
        return self.form.features(x, self.columns.shape[1])

    def outputs(self, z: Tensor) -> Tensor:
        """Its outputs as rows [groups, rows, outputs]."""
        return self.form.outputs(z, self.columns.shape[2])

    def back(self, rows: Tensor, like: Tensor) -> Tensor:
        """Inverse of `outputs`: rows in the form of the output `like`."""
        return self.form.back(rows, like)

    @cached_property
    def plain(self) -> bool:
        """Whether the weight is [outputs, features], as it is in linear layers and ungrouped convolutions."""
        groups, width, made = self.columns.shape
        usual = torch.arange(made * width, device=self.columns.device).view(made, width).T
        return groups == 1 and torch.equal(self.columns[0], usual)

    def arranged(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's form as [groups, features, outputs]."""
        if self.plain:  # a view: picking entries one by one costs more than the algebra
            return weight.reshape(self.columns.shape[2], self.columns.shape[1]).T[None]
        return weight.flatten()[self.columns.to(weight.device)]

    def matrix(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Weights as [groups, features, outputs] in double precision."""
        return self.arranged(weights[self.weight]).double()

    def free(self, net: Network) -> Tensor:
        """Which weights can be moved: boolean [groups, features, outputs]."""
        return self.arranged(net.plasticity[self.weight] != 0)

    def shift(self, net: Network, weights: Mapping[str, Tensor]) -> Tensor:
        """What its bias in `weights` adds to the output rows [groups, outputs]; 0 without a bias."""
        groups, _, made = self.columns.shape
        if self.bias is None:
            return torch.zeros(groups, made, dtype=torch.double, device=net.device)
        bias = weights[self.bias].to(net.device).double().flatten()
        if self.norm is not None:
            factor = self.norm.factor(net)
            bias = torch.where(factor == 0, torch.zeros_like(bias), bias / factor)
        return bias.view(groups, made)

    def targets(self, net: Network, matrix: Tensor, shift: Tensor) -> dict[str, Tensor]:
        """Weights by name, for a new matrix [groups, features, outputs] and an added shift [groups, outputs]."""
        weight = net.weights[self.weight]
        if self.plain:
            changed = {self.weight: matrix[0].T.to(weight.dtype, memory_format=torch.contiguous_format).view_as(weight)}
        else:
            flat = weight.flatten().clone()
            flat[self.columns.to(flat.device)] = matrix.to(flat.dtype)
            changed = {self.weight: flat.view_as(weight)}
        if self.bias is not None:
            bias = net.weights[self.bias]
            added = shift.reshape(bias.shape)
            if self.norm is not None:
                added = added * self.norm.factor(net)
            changed[self.bias] = bias + added.to(bias.dtype)
        return changed


def read_by(tag: str, args: tuple[Any, ...]) -> Tensor:
    """What a product reads, among its arguments."""
    x: Tensor = args[1] if operation(tag) in {"addmm", "baddbmm"} else args[0]
    return x


def operation(tag: str) -> str:
    """Operation of a tag, without the mark of operations in place."""
    return tag.split(" ")[0].partition("::")[2].removesuffix("_")
