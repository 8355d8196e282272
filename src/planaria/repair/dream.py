"""Dreams: inputs made of noise, for repairing a network where there is no data at all."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from planaria.core.errors import InputError
from planaria.core.port import Layout


def dream(
    like: Tensor, count: int, rng: Generator, *, vocabulary: int | None = None, layout: Layout | None = None
) -> Tensor:
    """Synthetic inputs: pink noise with the values of a few real inputs.

    Amplitudes fall as 1 / frequency over height and width (a flat input whose length is a square counts as an
    image), or over time; each channel's values are then exchanged by rank for values of `like`, so that range,
    background and contrast are those of real inputs while nothing else of them is used. Where `like` is constant,
    the noise itself is returned, with mean 0 and variance 1. Whole numbers (tokens) are drawn at random.

    Args:
        like: A few inputs [examples, ...], for example a network's own two.
        count: How many to make.
        rng: Source of the noise.
        vocabulary: Number of tokens; by default one more than the largest in `like`.
        layout: Of packed rows, for a network that takes several tensors: each is dreamt by itself, and those of zeros
            and ones, such as a Hugging Face attention mask, are those of some of `like`.

    Returns:
        Inputs [count, ...] of the type of `like`.

    Raises:
        InputError: If there is nothing to be like, nothing to make, or no token to draw.

    Example:
        >>> from planaria.core.streams import stream
        >>> dream(torch.rand(2, 1, 8, 8), 5, stream(0, "dream")).shape
        torch.Size([5, 1, 8, 8])

    Source: synthetic calibration by noise images with the 1/f spectrum of natural scenes (Field, 1987; Baradad et al.,
        2021).

    Not guaranteed: that the noise reaches the units that real inputs reach; a sidecar or real inputs repair better.
    """
    if len(like) == 0 or count < 1:
        raise InputError("dream", "an input to be like, and a count of at least 1", f"{len(like)} and {count}")
    if layout is not None:
        return _packed(like, count, rng, vocabulary, layout)
    shape = tuple(like.shape[1:])
    if not like.numel():
        raise InputError("dream(like)", "inputs with something in them", f"shape {list(like.shape)}")
    if not like.is_floating_point():
        number = int(like.max()) + 1 if vocabulary is None else vocabulary
        if number < 1:
            raise InputError("dream(vocabulary)", "a number of tokens of at least 1", number, "Give vocabulary=.")
        return torch.randint(number, (count, *shape), generator=rng).to(like)
    channels, plane = _planes(shape)
    noise = torch.randn(count, channels, *plane, generator=rng, dtype=torch.double)
    frequencies = torch.zeros(plane, dtype=torch.double)
    for axis, size in enumerate(plane):
        along = torch.fft.fftfreq(size, dtype=torch.double).square()
        frequencies += along.view([-1 if place == axis else 1 for place in range(len(plane))])
    # The constant part is given the amplitude of the lowest frequency.
    amplitude = 1.0 / frequencies.sqrt().clamp_min(1.0 / max(*plane, 2))
    axes = tuple(range(2, 2 + len(plane)))
    pink = torch.fft.ifftn(torch.fft.fftn(noise, dim=axes) * amplitude, dim=axes).real.reshape(count, channels, -1)
    pink = (pink - pink.mean()) / pink.std(correction=0).clamp_min(1e-12)
    known = like.detach().cpu().double()
    values = (known.transpose(1, 2) if len(shape) == 2 else known).reshape(len(like), channels, -1)
    made = torch.empty_like(pink)
    for channel in range(channels):
        palette = values[:, channel].flatten().sort().values
        flat = pink[:, channel].flatten()
        if float(palette[0]) == float(palette[-1]):
            made[:, channel] = pink[:, channel]
            continue
        rank = flat.argsort().argsort().double() / max(1, len(flat) - 1)
        made[:, channel] = palette[(rank * (len(palette) - 1)).round().long()].view(count, -1)
    if len(shape) == 2:
        made = made.transpose(1, 2)
    return made.reshape(count, *shape).to(like)


def _packed(like: Tensor, count: int, rng: Generator, vocabulary: int | None, layout: Layout) -> Tensor:
    """Dreams of every part of packed rows."""
    known = layout.unpack(like)
    chosen = torch.randint(len(like), (count,), generator=rng).to(like.device)

    def one(part: Tensor) -> Tensor:
        marks = not part.is_floating_point() and bool(((part == 0) | (part == 1)).all())
        return part[chosen] if marks else dream(part, count, rng, vocabulary=vocabulary)

    if isinstance(known, dict):
        return layout.pack({name: one(part) for name, part in known.items()})
    return layout.pack(tuple(one(part) for part in known))


def _planes(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Channels, and the axes over which the noise is pink."""
    if len(shape) >= 3:
        return math.prod(shape[:-2]), shape[-2:]
    if len(shape) == 2:
        return shape[1], (shape[0],)  # a sequence of features
    size = math.prod(shape)
    side = math.isqrt(size)
    return (1, (side, side)) if side * side == size and side > 2 else (1, (size,))
