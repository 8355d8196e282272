"""Restart: the same network of the reduced size, from scratch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from planaria.core.anatomy import Anatomy
from planaria.core.network import Network
from planaria.core.streams import lend

SCALES = ("weight", "scale", "gain", "gamma")
"""What a vector is called that its inputs are multiplied by."""


@dataclass(frozen=True)
class Restart:
    """Draw every plastic weight anew, so that what survives of the network starts from scratch.

    Layers of torch draw as they do when they are made, and the weights of products are then widened by
    sqrt(inputs / surviving inputs) row by row: what a layer of the reduced size would draw. Weights outside of such
    layers are uniform in +-1/sqrt(surviving inputs), scales 1 and other vectors 0; normalisation statistics begin anew.
    Pinned entries stay.

    Example:
        >>> Restart()
        Restart()

    Not guaranteed: that a layer which draws otherwise than from torch's own generators gives the same twice, or that
    recurrent layers, which draw by their number of units, are widened exactly.
    """

    def __call__(self, net: Network, rng: Generator, /) -> Network:
        """Network of the same living units that knows nothing."""
        module = net.to_module()
        drawn: set[str] = set()
        with lend(rng, net.device), torch.no_grad():
            for path, part in [*module.named_modules()][::-1]:  # parts before what they are part of
                draw = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
                if callable(draw):
                    draw()
                    drawn |= {f"{path}.{name}".lstrip(".") for name, _ in part.named_parameters()}
        anatomy = Anatomy.of(net)
        scales = {name for group in anatomy.groups for name in group.owners["scale"]}
        scales |= {name for name in net.weights if name.rpartition(".")[2] in SCALES}
        fresh: dict[str, Tensor] = {}
        for name, parameter in module.named_parameters():
            plastic = net.plasticity[name] != 0
            if name in drawn:
                value = parameter.detach().clone()
                if name in anatomy.matrices:
                    value = value * _widening(plastic).to(value)
            else:
                value = _drawn(parameter.detach(), plastic, name in scales, rng)
            fresh[name] = torch.where(plastic, value, net.weights[name])
        return net.with_weights(fresh, {name: buffer.detach().clone() for name, buffer in module.named_buffers()})


def _widening(plastic: Tensor) -> Tensor:
    """sqrt(inputs / surviving inputs) of every row, shaped to be multiplied with the weight; 1 for a dead row."""
    if plastic.ndim < 2:
        return torch.ones(())
    left = plastic.flatten(1).sum(1)
    ratio = torch.where(left > 0, plastic[0].numel() / left.clamp(min=1), 1.0)
    return ratio.sqrt().reshape(-1, *[1] * (plastic.ndim - 1))


def _drawn(weight: Tensor, plastic: Tensor, scale: bool, rng: Generator) -> Tensor:
    """Initial values of a weight whose layer does not say how it draws."""
    if not weight.is_floating_point():
        return weight
    if weight.ndim < 2:
        return torch.full_like(weight, 1.0 if scale else 0.0)
    bound = _widening(plastic) / math.sqrt(weight[0].numel())
    return ((torch.rand(weight.shape, generator=rng) * 2 - 1).to(weight) * bound.to(weight)).to(weight)
