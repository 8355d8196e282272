"""Devices: what must be asked for where tensors do not live on the CPU, and what mixed precision is.

A GPU works on while Python goes on, and rounds the factors of convolutions to ten bits unless told otherwise. Whoever
takes the time asks `clock`; whatever calls itself exact runs in `without_tf32`; whoever wants speed instead asks for
`mixed_precision`, by name.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from planaria.core.errors import EnvironmentProblem, InputError

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types that products can be computed in instead of single precision, by name."""


def clock(device: torch.device) -> float:
    """Seconds, of which differences count: process time on the CPU; elsewhere time passed, with all work done.

    Args:
        device: Where the work is done; what was queued there is waited for.

    Example:
        >>> clock(torch.device("cpu")) >= 0
        True
    """
    if device.type in {"cpu", "meta"}:
        return time.process_time()
    torch.get_device_module(device).synchronize()
    return time.perf_counter()


@contextmanager
def without_tf32() -> Iterator[None]:
    """Let single precision be single precision on NVIDIA GPUs for a while: no TF32 in convolutions and recurrences.

    By default torch lets these round their factors to 10 bits there, so that outputs depend in the third digit on how
    examples are put into batches. Nothing happens before CUDA is used, nor where somebody has chosen for each operation
    himself; the precision of matrix products is full by default and stays as it is.

    Example:
        >>> with without_tf32():
        ...     torch.ones(2) + 1
        tensor([2., 2.])

    Source: torch's notes on numerical accuracy (TensorFloat-32).
    """
    if not torch.cuda.is_initialized():
        yield
        return
    switch = torch.backends.cudnn
    try:
        allowed = bool(switch.allow_tf32)
    except RuntimeError:  # set operation by operation; then there is no one answer
        allowed = False
    if not allowed:
        yield
        return
    switch.allow_tf32 = False
    try:
        yield
    finally:
        switch.allow_tf32 = True


@contextmanager
def mixed_precision(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Mixed precision for a while: products and convolutions in `dtype`, weights and delicate sums as they are.

    Args:
        device: Where it is computed.
        dtype: One of HALVES; None changes nothing.

    Example:
        >>> with mixed_precision(torch.device("cpu"), torch.bfloat16):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """
    if dtype is None:
        yield
        return
    with torch.autocast(device.type, dtype):
        yield


def half(name: str | None, where: str) -> torch.dtype | None:
    """The type called `name`; None for None or "float32", which is how everything is computed anyway.

    Raises:
        InputError: On another name.

    Example:
        >>> half("bfloat16", "--autocast"), half("float32", "--autocast")
        (torch.bfloat16, None)
    """
    if name is None or name == "float32":
        return None
    if name not in HALVES:
        raise InputError(where, f"float32, {' or '.join(HALVES)}", repr(name))
    return HALVES[name]


def check_autocast(device: torch.device, dtype: torch.dtype, where: str) -> None:
    """Try whether a device computes products in a type.

    Raises:
        EnvironmentProblem: It does not; names the device.
        InputError: If it is no type for mixed precision.
    """
    if dtype not in HALVES.values():
        raise InputError(where, f"torch.{' or torch.'.join(HALVES)}, or None", repr(dtype))
    name = str(dtype).removeprefix("torch.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch only warns, and then computes in single precision
            ones = torch.ones(2, 2, device=device)
            with torch.autocast(device.type, dtype):
                made = ones @ ones
        why = "" if made.dtype == dtype else f"it computed in {str(made.dtype).removeprefix('torch.')}"
    except (RuntimeError, UserWarning) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
    if why:
        remedy = "Leave it out (single precision), or try bfloat16."
        raise EnvironmentProblem(where, f"a type that {device} can compute products in", f"{name}: {why}", remedy)
