"""Loaded: a model as it came from outside, and what is known of where it came from."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from planaria.measure.weights import fingerprint

_SHORT = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model, and what is known of where it came from.

    Attributes:
        module: The model, on the CPU.
        trained: Whether trained weights came with it.
        files: Name -> SHA-256 of every file that decides what it computes.
        notes: Sentences that the user should read.
    """

    module: nn.Module
    trained: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """Name -> SHA-256 of files; those that are not there are left out."""
    return {path.name: fingerprint(path) for path in paths if path.is_file()}


def full_precision(model: nn.Module, floats: bool = False) -> tuple[nn.Module, str | None]:
    """A model in float32 where its half-precision weights could not be used on this CPU.

    Args:
        model: Any module; it stays as it is.
        floats: Whether its inputs are float32 numbers, which half-precision weights do not take.

    Returns:
        The model, or a copy in float32, and what to tell the user (None where nothing was done).

    Example:
        >>> model, note = full_precision(nn.Linear(2, 1).half(), floats=True)
        >>> model.weight.dtype, note.partition(":")[0]
        (torch.float32, 'Weights in half precision (float16) were converted to float32')

    Not guaranteed: scores to the last digit of those that a GPU gives in half precision.
    """
    kinds = sorted({p.dtype for p in model.parameters() if p.dtype in _SHORT}, key=str)
    if not kinds or not (floats or any(not computes(kind) for kind in kinds)):
        return model, None
    names = ", ".join(str(kind).removeprefix("torch.") for kind in kinds)
    why = "the inputs are float32" if floats else "this CPU does not compute with them"
    note = f"Weights in half precision ({names}) were converted to float32: {why}."
    return copy.deepcopy(model).float(), note


def computes(kind: torch.dtype) -> bool:
    """Whether this CPU multiplies, convolves and normalises in a precision.

    Example:
        >>> computes(torch.float32)
        True
    """
    try:
        x = torch.zeros(1, 1, 2, 2).to(kind)
        y = nn.functional.linear(nn.functional.conv2d(x, x), x[0, 0, :, :1])
        nn.functional.layer_norm(y.softmax(-1), (2,))
    except (RuntimeError, NotImplementedError):
        return False
    return True
