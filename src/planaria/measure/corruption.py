"""Corruptions: how the inputs can be worse than those the network was trained on, made without further data.

Every strength is relative to the data at hand: to its standard deviation, its range, or the side of its images. The
random ones draw from a generator that is passed in, so that every network meets the same corrupted inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from planaria.core.errors import InputError, nearest


@dataclass(frozen=True)
class Corruption:
    """One way to spoil inputs, at one strength.

    Args:
        name: One of KINDS.
        strength: Above 0 and at most 1; what it means is said with the kind.

    Raises:
        InputError: On an unknown name, or a strength out of range.

    Example:
        >>> from planaria.core.streams import stream
        >>> Corruption("contrast", 0.5)(torch.tensor([[0.0, 1.0]]), stream(0, "corruption"))
        tensor([[0.2500, 0.7500]])

    Source: a selection after Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common
    corruptions and perturbations"; the strengths are our own, since they must suit any data.
    """

    name: str
    strength: float

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise InputError("Corruption.name", "a known corruption", repr(self.name), nearest(str(self.name), KINDS))
        if not 0 < self.strength <= 1:
            raise InputError("Corruption.strength", "a number above 0 and at most 1", self.strength)

    def suits(self, inputs: Tensor) -> bool:
        """Whether it can be done to such inputs [examples, ...]."""
        return KINDS[self.name].suits(inputs)

    def __call__(self, inputs: Tensor, rng: Generator) -> Tensor:
        """Corrupted copy of `inputs` [examples, ...]; real inputs stay within the range they have.

        Raises:
            InputError: If it cannot be done to such inputs.
        """
        if not self.suits(inputs):
            got = f"{inputs.dtype}, {list(inputs.shape[1:])} per example"
            raise InputError(f"Corruption({self.name!r})", f"inputs of {KINDS[self.name].inputs}", got)
        spoilt = KINDS[self.name].function(inputs, self.strength, rng)
        if not inputs.is_floating_point():
            return spoilt
        return spoilt.clamp(float(inputs.min()), float(inputs.max())).to(inputs.dtype)


@dataclass(frozen=True)
class Kind:
    """A kind of corruption: what it does to which inputs.

    Attributes:
        function: (inputs, strength, generator) -> corrupted inputs.
        suits: Whether it can be done to such inputs.
        inputs: The same in words.
        meaning: What the strength is.
    """

    function: Callable[[Tensor, float, Generator], Tensor]
    suits: Callable[[Tensor], bool]
    inputs: str
    meaning: str


def _noise(inputs: Tensor, strength: float, rng: Generator) -> Tensor:
    drawn = torch.randn(inputs.shape, generator=rng, dtype=torch.float64).to(inputs)
    return inputs + strength * inputs.double().std(correction=0).to(inputs) * drawn


def _blur(inputs: Tensor, strength: float, rng: Generator) -> Tensor:
    del rng
    images = inputs.reshape(-1, 1, *inputs.shape[-2:])
    reach = max(1, round(strength * min(inputs.shape[-2:]) / 2))
    padded = nn.functional.pad(images, (reach,) * 4, mode="replicate")
    return nn.functional.avg_pool2d(padded, 2 * reach + 1, 1).reshape(inputs.shape)


def _contrast(inputs: Tensor, strength: float, rng: Generator) -> Tensor:
    del rng
    grey = inputs.flatten(1).mean(1).view(-1, *[1] * (inputs.ndim - 1))
    return grey + (1 - strength) * (inputs - grey)


def _dropout(inputs: Tensor, strength: float, rng: Generator) -> Tensor:
    # The channels of a pixel go together.
    shape = (len(inputs), 1, *inputs.shape[2:]) if _is_image(inputs) else inputs.shape
    lost = torch.rand(shape, generator=rng, dtype=torch.float64).to(inputs.device) < strength
    return torch.where(lost, inputs.double().mean().to(inputs), inputs)


def _replacement(inputs: Tensor, strength: float, rng: Generator) -> Tensor:
    lost = torch.rand(inputs.shape, generator=rng, dtype=torch.float64).to(inputs.device) < strength
    drawn = torch.randint(inputs.numel(), inputs.shape, generator=rng).to(inputs.device)
    return torch.where(lost, inputs.flatten()[drawn], inputs)


def _is_real(inputs: Tensor) -> bool:
    return inputs.is_floating_point() and inputs.ndim > 1


def _is_image(inputs: Tensor) -> bool:
    return inputs.is_floating_point() and inputs.ndim == 4 and min(inputs.shape[-2:]) >= 3


def _is_tokens(inputs: Tensor) -> bool:
    return not (inputs.is_floating_point() or inputs.is_complex()) and inputs.ndim > 1


_REAL, _IMAGES = "real numbers", "images [examples, channels, height, width]"
KINDS: dict[str, Kind] = {
    "gaussian noise": Kind(_noise, _is_real, _REAL, "standard deviation, in standard deviations of the data"),
    "box blur": Kind(_blur, _is_image, _IMAGES, "width of the box, as a share of the image's shorter side"),
    "contrast": Kind(_contrast, _is_real, _REAL, "share of the contrast around each example's mean that is lost"),
    "pixel dropout": Kind(_dropout, _is_real, _REAL, "share of the pixels that are replaced by the mean of the data"),
    "token replacement": Kind(
        _replacement, _is_tokens, "tokens", "share of the tokens that are replaced by others drawn from the data"
    ),
}
"""Kinds of corruption by name."""

CORRUPTIONS: tuple[Corruption, ...] = tuple(
    Corruption(name, strength)
    for name, strengths in (
        ("gaussian noise", (0.25, 0.5)),
        ("box blur", (0.1, 0.2)),
        ("contrast", (0.5, 0.75)),
        ("pixel dropout", (0.1, 0.3)),
        ("token replacement", (0.05, 0.2)),
    )
    for strength in strengths
)
"""The usual ones; those that do not suit the inputs are left out."""
