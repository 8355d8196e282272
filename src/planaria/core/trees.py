"""Arithmetic on dictionaries of tensors.

A network's weights, a set of entries, a direction of motion: all are `dict[str, Tensor]` keyed by parameter name.
These functions treat such dictionaries as vectors. None changes its arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Weights = dict[str, Tensor]
"""Parameter name -> tensor."""
Entries = dict[str, Tensor]
"""Parameter name -> boolean tensor of the parameter's shape, True = selected; a name left out has none selected."""


def zip_map(function: Callable[..., Tensor], *trees: Mapping[str, Tensor]) -> Weights:
    """Apply `function` to the tensors of equal name.

    Args:
        function: Takes one tensor per tree.
        trees: Dictionaries with the same names as the first.

    Returns:
        Name -> function(tensors of that name).

    Example:
        >>> zip_map(torch.add, {"w": torch.ones(1)}, {"w": torch.ones(1)})
        {'w': tensor([2.])}
    """
    first = trees[0]
    return {name: function(*(tree[name] for tree in trees)) for name in first}


def subtract(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Weights:
    """Difference a - b, name by name.

    Example:
        >>> subtract({"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])})
        {'w': tensor([2.])}
    """
    return zip_map(torch.sub, a, b)


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Inner product: sum over names and entries of a * b, accumulated in double precision.

    Example:
        >>> float(dot({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])}))
        11.0
    """
    return torch.stack([(a[name].double() * b[name].double()).sum() for name in a]).sum()


def norm(a: Mapping[str, Tensor]) -> Tensor:
    """Euclidean length sqrt(dot(a, a)).

    Example:
        >>> float(norm({"w": torch.tensor([3.0, 4.0])}))
        5.0
    """
    return dot(a, a).sqrt()


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether both have the same names and bit-identical tensors (NaN equals NaN).

    Example:
        >>> equal({"w": torch.zeros(1)}, {"w": torch.zeros(1)})
        True
    """
    return a.keys() == b.keys() and all(
        a[name].shape == b[name].shape
        and a[name].dtype == b[name].dtype
        and bool(((a[name] == b[name]) | (a[name].isnan() & b[name].isnan())).all())
        for name in a
    )


def either(a: Entries, b: Entries) -> Entries:
    """Entries selected in a or in b.

    Example:
        >>> either({"w": torch.tensor([True, False])}, {"b": torch.tensor([True])})
        {'w': tensor([ True, False]), 'b': tensor([True])}
    """
    joined = dict(a)
    for name, selected in b.items():
        joined[name] = joined[name] | selected if name in joined else selected
    return joined


def remove(a: Entries, b: Entries) -> Entries:
    """Entries selected in a and not in b; names with none left are dropped.

    Example:
        >>> remove({"w": torch.tensor([True, True])}, {"w": torch.tensor([True, False])})
        {'w': tensor([False,  True])}
    """
    left = {name: selected & ~b[name] if name in b else selected for name, selected in a.items()}
    return {name: selected for name, selected in left.items() if bool(selected.any())}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes, types and bytes of all tensors, in the order of their names.

    Example:
        >>> digest({"w": torch.zeros(2)})[:8] == digest({"w": torch.zeros(2)})[:8]
        True
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        total.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        # Copied, since a number seen through a larger shape counts as contiguous and still has no bytes of its own.
        flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1))
        total.update(flat.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
