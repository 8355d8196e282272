"""Switches that make a forward pass exact and differentiable in every direction.

Torch has fused kernels that hide what they compute: the fast path of `nn.TransformerEncoderLayer` bypasses its own
submodules, and fused attention has neither forward-mode derivatives nor separate heads. `plain_kernels` turns both
off for a while; everything in planaria that runs a network goes through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from planaria.core.devices import without_tf32
from planaria.core.trees import Weights, zip_map


@contextmanager
def plain_kernels(*, attention: bool = False, recurrence: bool = False) -> Iterator[None]:
    """Run in full precision with the encoder fast path off and, if asked, more written out; restores it all afterwards.

    Args:
        attention: Also replace fused attention by its mathematical form (needed for derivatives along directions).
        recurrence: Also replace fused recurrent kernels (oneDNN's, cuDNN's) by their products, step by step.

    Example:
        >>> with plain_kernels(attention=True):
        ...     torch.backends.mha.get_fastpath_enabled()
        False
    """
    mkldnn: Any = torch.backends.mkldnn
    cudnn: Any = torch.backends.cudnn
    fast, fused = torch.backends.mha.get_fastpath_enabled(), (bool(mkldnn.enabled), bool(cudnn.enabled))
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if recurrence:
            mkldnn.enabled = cudnn.enabled = False
        with without_tf32(), sdpa_kernel(SDPBackend.MATH) if attention else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        mkldnn.enabled, cudnn.enabled = fused


_STEPS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def steps_matter(module: nn.Module, device: torch.device) -> bool:
    """Whether a module has recurrent layers that the CPU would run by one kernel for all steps, and is there.

    Their units can be seen, and silenced at every step, only where the steps are written out.

    Args:
        module: Any module; an exported one as well.
        device: Where it runs.
    """
    known = _STEPS.get(module)
    if known is None:
        parts = list(module.modules())
        nodes = [node for part in parts if isinstance(part, torch.fx.GraphModule) for node in part.graph.nodes]
        known = any(isinstance(part, nn.LSTM) for part in parts) or any("lstm" in str(node.target) for node in nodes)
        _STEPS[module] = known
    return known and device.type == "cpu"


def jvp(function: Callable[[Weights], Tensor], weights: Weights, direction: Weights) -> tuple[Tensor, Tensor]:
    """Value of `function` at `weights` and its derivative along `direction`, J v.

    Args:
        function: Weights -> outputs, in eval mode (batch statistics frozen).
        weights: Point.
        direction: Tangent, same names and shapes.

    Returns:
        Outputs and their directional derivative, both of the outputs' shape.

    Example:
        >>> jvp(lambda w: w["a"] ** 2, {"a": torch.tensor(3.0)}, {"a": torch.tensor(1.0)})
        (tensor(9.), tensor(6.))
    """
    with plain_kernels(attention=True):
        pair: tuple[Tensor, Tensor] = torch.func.jvp(function, (weights,), (direction,))  # type: ignore[assignment]
    return pair


def vjp(function: Callable[[Weights], Tensor], weights: Weights, cotangent: Tensor) -> tuple[Tensor, Weights]:
    """Value of `function` at `weights` and the pulled-back cotangent, J^T u.

    Args:
        function: Weights -> outputs, in eval mode.
        weights: Point.
        cotangent: Tensor of the outputs' shape.

    Returns:
        Outputs, and a dictionary with the names and shapes of `weights`.

    Example:
        >>> vjp(lambda w: w["a"] ** 2, {"a": torch.tensor(3.0)}, torch.tensor(1.0))
        (tensor(9.), {'a': tensor(6.)})
    """
    with plain_kernels(attention=True), torch.enable_grad():
        leaves = zip_map(lambda w: w.detach().requires_grad_(w.is_floating_point()), weights)
        value = function(leaves)
        gradients = torch.autograd.grad(value, list(leaves.values()), cotangent, allow_unused=True)
    filled = {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }
    return value.detach(), filled
