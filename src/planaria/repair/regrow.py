"""Regrowing: dead units are replaced by embryonic ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from planaria.core.anatomy import Anatomy
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.trees import Entries, either


@dataclass(frozen=True)
class Regrow:
    """Replace every dead unit by a fresh one that the network does not listen to yet, and make it more plastic.

    Incoming weights are drawn anew, uniform in +-1/sqrt(fan-in); scale 1, shift 0, weights into living readers 0, so
    the function is unchanged. A unit without outgoing entries of its own starts with scale 0 (or incoming 0). Entries
    of new units get plasticity 1, those of old units are multiplied by `others`; entries that are pinned elsewhere stay
    pinned.

    Args:
        others: Plasticity of old units relative to new ones, at least 0. 0.1 is the paper's text (new units are more
            plastic than the rest), 0 its figure caption (only new units are trained).

    Raises:
        InputError: If `others` is negative or not finite.

    Example:
        >>> Regrow(others=0)
        Regrow(others=0)

    Source: strategy 2 of the rescue paper (embryonic node replacement).

    Not guaranteed: that it makes sense for hardware whose units stay broken. A unit that starts with incoming 0 behind
    a ReLU has gradient 0 and can never learn; such units (of layers that are called twice, for example) stay silent.
    """

    others: float = 0.1

    def __post_init__(self) -> None:
        if not (isinstance(self.others, (int, float)) and 0 <= self.others < math.inf):
            raise InputError("Regrow.others", "a finite number of at least 0", self.others)

    def __call__(self, net: Network, rng: Generator, /) -> Network:
        """Network with the dead units replaced; the network itself if none is dead."""
        anatomy = Anatomy.of(net)
        dead = anatomy.dead(net)
        weights = dict(net.weights)
        new: Entries = {}
        zero: Entries = {}
        drawn: Entries = {}
        for group in anatomy.groups:
            units = [unit for unit in anatomy.units() if unit.layer == group.layer and dead[unit.layer][unit.index]]
            if not units:
                continue
            slices = anatomy.entries(units)
            new, drawn = either(new, slices.all), either(drawn, slices.incoming)
            read = bool(group.owners["outgoing"])
            for name in sorted(slices.incoming):
                hit = slices.incoming[name]
                fresh = _drawn(weights[name], rng) if read or slices.scale else torch.zeros_like(weights[name])
                weights[name] = torch.where(hit, fresh, weights[name])
            for name, hit in slices.scale.items():
                weights[name] = weights[name].masked_fill(hit, 1.0 if read else 0.0)
            for name, hit in slices.shift.items():
                weights[name] = weights[name].masked_fill(hit, 0.0)
            zero = either(zero, slices.outgoing)
        if not new:
            return net
        # The edge between two new units is drawn: nothing listens to the second one, and without it neither could
        # learn.
        for name, hit in zero.items():
            silent = hit & ~drawn[name] if name in drawn else hit
            weights[name] = weights[name].masked_fill(silent, 0.0)
        plasticity: dict[str, Tensor] = {}
        for name, old in net.plasticity.items():
            scaled = old * self.others
            plasticity[name] = torch.where(new[name], torch.ones_like(old), scaled) if name in new else scaled
        return net.with_weights(weights).with_plasticity(plasticity)


def _drawn(weight: Tensor, rng: Generator) -> Tensor:
    """Initial values as torch's own linear and convolution layers draw them; zeros for vectors (idle biases)."""
    if weight.ndim < 2:
        return torch.zeros_like(weight)
    bound = 1.0 / math.sqrt(weight[0].numel())
    return ((torch.rand(weight.shape, generator=rng) * 2 - 1) * bound).to(weight)
