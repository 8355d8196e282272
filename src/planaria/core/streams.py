"""Random streams: the only source of randomness in planaria.

A stream is named, not numbered: `stream(seed, "lesion", 3)` is the same generator in every process and on every
machine, whatever other streams were drawn before it. Nothing here reads or changes torch's global generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator


def stream(seed: int, *name: str | int | float) -> Generator:
    """Generator for the random numbers called `name` under `seed`.

    The state is the first 63 bits of sha256 over seed and name.

    Args:
        seed: Whole number chosen by the user.
        name: What the numbers are for; any words and numbers.

    Returns:
        A fresh CPU `torch.Generator`.

    Example:
        >>> import torch
        >>> a, b = stream(0, "lesion"), stream(0, "lesion")
        >>> bool((torch.rand(3, generator=a) == torch.rand(3, generator=b)).all())
        True
    """
    digest = hashlib.sha256(repr((int(seed), *name)).encode()).digest()
    generator = Generator()
    generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return generator


@contextmanager
def lend(rng: Generator, device: torch.device) -> Iterator[None]:
    """Let modules that draw from torch's global generators (dropout) draw from `rng` instead; restores them after.

    Args:
        rng: Advanced by one number.
        device: Whose global generator is lent beside the CPU's.

    Example:
        >>> with lend(stream(0, "dropout"), torch.device("cpu")):
        ...     a = torch.rand(())
        >>> with lend(stream(0, "dropout"), torch.device("cpu")):
        ...     b = torch.rand(())
        >>> bool(a == b)
        True
    """
    seed = int(torch.randint(2**62, (), generator=rng))
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    # Not torch.manual_seed: it also queues work for every other device, at a hundred times the price.
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
