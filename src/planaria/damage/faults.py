"""Faults: what happens to the selected values, and whether it lasts.

A lasting fault pins what it hit, so that no repair can move it. Where it happens is the site's business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from planaria.core.anatomy import Slices, silence
from planaria.core.errors import AnatomyError, InputError
from planaria.core.network import Network
from planaria.core.trees import either


class Fault(Protocol):
    """What a fault must offer: `strike(net, slices, rng) -> net`."""

    def strike(self, net: Network, slices: Slices, rng: Generator, /) -> Network:
        """Network with the selected entries hit."""
        ...


@dataclass(frozen=True)
class Silence:
    """The selected units emit nothing: every entry that belongs to them becomes 0.

    Args:
        lasting: Whether the entries are pinned at 0 (default) or may be moved by a repair.

    Example:
        >>> Silence()
        Silence(lasting=True)
    """

    lasting: bool = True

    def __post_init__(self) -> None:
        _check("Silence", self.lasting)

    def strike(self, net: Network, slices: Slices, rng: Generator, /) -> Network:
        """Network with the entries at 0."""
        del rng
        dead = silence(net, slices.all)
        return dead if self.lasting else net.with_weights(dead.weights)


@dataclass(frozen=True)
class StuckAt:
    """The selected units ignore their inputs and receive a constant; selected single entries take it.

    For a unit with activation function a: incoming entries and scale become 0 and the shift becomes `value`, so that
    the unit emits a(value) at every position. A unit known only by a gain (a tap) emits `value`.

    Args:
        value: The constant, finite.
        lasting: Whether the entries are pinned there.

    Raises:
        InputError: If the value is not finite.

    Example:
        >>> StuckAt(1.0)
        StuckAt(value=1.0, lasting=True)
    """

    value: float
    lasting: bool = True

    def __post_init__(self) -> None:
        _check("StuckAt", self.lasting, value=self.value)

    def strike(self, net: Network, slices: Slices, rng: Generator, /) -> Network:
        """Network with the entries at the constant.

        Raises:
            AnatomyError: If a unit has no bias to hold the constant.
            InputError: If the weights' type cannot hold it.
        """
        del rng
        if slices.unshifted:
            raise AnatomyError(
                f"layer {slices.unshifted[0]!r}",
                "units with a bias that can hold the stuck value",
                "none",
                "Tap the layer, tap(net, [layer]), and damage the tap.",
            )
        for name in slices.shift:
            limit = torch.finfo(net.weights[name].dtype).max
            if abs(self.value) > limit:
                raise InputError("StuckAt.value", f"at most {limit:g}, which is all {name!r} can hold", self.value)
        inert = silence(net, either(slices.incoming, slices.scale))
        stuck = inert.with_weights(
            {
                name: inert.weights[name].masked_fill(hit.to(net.device), self.value)
                for name, hit in slices.shift.items()
            }
        ).pin(slices.shift)
        return stuck if self.lasting else net.with_weights(stuck.weights)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on every selected entry: w <- w + sigma * rms(w) * n, n standard normal.

    rms(w) is the root mean square of the whole tensor that the entry is in.

    Args:
        sigma: Standard deviation in units of the tensor's root mean square, at least 0.
        lasting: Whether the entries are pinned at their noisy value.

    Raises:
        InputError: If sigma is negative or not finite.

    Example:
        >>> Noise(0.1)
        Noise(sigma=0.1, lasting=False)
    """

    sigma: float
    lasting: bool = False

    def __post_init__(self) -> None:
        _check("Noise", self.lasting, sigma=self.sigma)
        if self.sigma < 0:
            raise InputError("Noise.sigma", "a finite number of at least 0", self.sigma)

    def strike(self, net: Network, slices: Slices, rng: Generator, /) -> Network:
        """Network with noise on the entries."""
        entries = slices.all
        noisy: dict[str, Tensor] = {}
        for name, weight in net.weights.items():
            # Drawn on the CPU, for every entry of the network: the same numbers on any device, for any selection.
            normal = torch.randn(weight.shape, generator=rng, dtype=torch.float64)
            if name not in entries:
                continue
            step = self.sigma * weight.double().square().mean().sqrt().to(weight.dtype) * normal.to(weight)
            # What is pinned already (a dead unit) stays.
            free = entries[name].to(weight.device) & (net.plasticity[name] != 0)
            noisy[name] = torch.where(free, weight + step, weight)
        hit = net.with_weights(noisy)
        return hit.pin(entries) if self.lasting else hit


def _check(owner: str, lasting: object, **numbers: object) -> None:
    if not isinstance(lasting, bool):
        raise InputError(f"{owner}.lasting", "True or False", repr(lasting))
    for name, number in numbers.items():
        try:
            real = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
        except OverflowError:  # a whole number beyond the floats
            real = False
        if not real:
            raise InputError(f"{owner}.{name}", "a finite number", repr(number)[:40])
