"""Memory: how many examples a pass may take at once.

A thousand images or sentences through a large network would hold many gigabytes of activations. What an example needs
is measured on one, below autograd; small networks never notice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LIMIT = 1 << 28
"""Bytes that the largest operation of a pass may read and write."""

FEW = 64
"""Examples that any network may take at once."""

_PRICES: WeakKeyDictionary[nn.Module, dict[tuple[torch.Size, torch.dtype], int]] = WeakKeyDictionary()


def at_once(module: nn.Module, rows: Tensor, run: Callable[[Tensor], Any], count: int | None = None) -> int:
    """Examples that a pass without gradients may take at once; the same for the same module and shape.

    Args:
        module: What is run.
        rows: Inputs [examples, ...].
        run: Runs it on such inputs.
        count: How many examples there are, if more than these rows.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> at_once(layer, torch.zeros(5000, 2), layer)
        5000
    """
    total = len(rows) if count is None else count
    if total <= FEW:
        return total
    known = _PRICES.setdefault(module, {})
    key = rows.shape[1:], rows.dtype
    if key not in known:
        # Two examples and three: what does not grow with them, the weights, costs nothing more.
        sizes = []
        for few in (2, 3):
            with torch.no_grad(), _Sizes() as seen:
                run(rows[:1].repeat(few, *[1] * (rows.ndim - 1)))
            sizes.append(seen.bytes)
        known[key] = max((three - two for two, three in zip(*sizes, strict=False)), default=0)
    return max(FEW // 8, min(total, LIMIT // max(1, known[key])))


class _Sizes(TorchDispatchMode):
    """Notes the bytes of the arguments and results of each operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
        self.bytes.append(sum(leaf.numel() * leaf.element_size() for leaf in tensors.values()))
        return result
