"""Random streams: the only source of randomness in planaria.

A stream is named, not numbered: `stream(seed, "lesion", 3)` is the same generator in every process and on every
machine, whatever other streams were drawn before it. Nothing here reads or changes torch's global generator.
"""

from __future__ import annotations

import hashlib

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
