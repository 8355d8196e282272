"""Taps: a gain and an offset per unit at a module's output.

Where the anatomy cannot find the weights of a unit, a tap gives any module units that can be silenced:
output <- gain * output + offset, with gain 1 and offset 0, pinned. The tap is part of the weights like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from planaria.core.errors import AnatomyError, nearest
from planaria.core.network import Network

GAIN, OFFSET = "tap_gain", "tap_offset"


def tap(net: Network, layers: Sequence[str], inputs: Tensor | None = None) -> Network:
    """Give the outputs of the named modules units that can be damaged.

    A unit is a channel: axis 1 of outputs [examples, channels, height, width] and higher and of convolutions, the last
    axis of others; of several outputs, the first. What happens inside the module (a recurrence, for example) is not
    gated.

    Args:
        net: Any network.
        layers: Names of modules.
        inputs: Example inputs; by default the network's own.

    Returns:
        The same function with two more weights per layer, `LAYER.tap_gain` and `LAYER.tap_offset` [units], pinned.

    Raises:
        AnatomyError: On an unknown module, one that does not run, or one whose output has no unit axis.

    Example:
        >>> net = tap(Network.of(nn.Sequential(nn.Linear(2, 3)), torch.zeros(1, 2)), ["0"])
        >>> net.weights["0.tap_gain"]
        tensor([1., 1., 1.])
    """
    inputs = net.inputs if inputs is None else inputs
    if inputs is None:
        raise AnatomyError("tap(net)", "a network with example inputs", "none", "Pass inputs.")
    modules = dict(net.module.named_modules())
    for layer in layers:
        if layer not in modules or layer == "":
            raise AnatomyError(
                f"layer {layer!r}", "the name of a module", "none of that name", nearest(layer, filter(None, modules))
            )
    seen = emitted(net, layers, inputs)
    module = copy.deepcopy(net.module)
    modules = dict(module.named_modules())
    weights, plasticity = dict(net.weights), dict(net.plasticity)
    for layer in layers:
        output = seen.get(layer)
        if output is None:
            raise AnatomyError(
                f"layer {layer!r}", "an output tensor [examples, ..., units]", "none", "Tap another module."
            )
        if hasattr(modules[layer], GAIN):
            continue
        units = output.shape[_axis(modules[layer], output)]
        for name, value in ((GAIN, torch.ones(units)), (OFFSET, torch.zeros(units))):
            key = f"{layer}.{name}"
            weights[key] = value.to(output)
            plasticity[key] = torch.zeros_like(weights[key])
            modules[layer].register_parameter(name, nn.Parameter(torch.empty_like(weights[key], device="meta")))
        modules[layer].register_forward_hook(_apply)
    # The order of named_parameters is the order of weights everywhere.
    order = [name for name, _ in module.named_parameters()]
    return replace(
        net,
        module=module,
        weights={name: weights[name] for name in order},
        plasticity={name: plasticity[name] for name in order},
        inputs=inputs[:2],
    )


def emitted(net: Network, layers: Sequence[str], inputs: Tensor) -> dict[str, Tensor]:
    """What the named modules put out, [examples, ..., units]; without those that are never called, or put out others.

    Args:
        net: Any network.
        layers: Names of modules.
        inputs: [examples, ...].
    """
    module = copy.deepcopy(net.module)
    modules = dict(module.named_modules())
    seen: dict[str, Tensor] = {}
    for layer in layers:
        modules[layer].register_forward_hook(_recorder(layer, seen))
    replace(net, module=module)(inputs)
    return {layer: output for layer, output in seen.items() if output.ndim > 1 and output.is_floating_point()}


def _axis(module: nn.Module, output: Tensor) -> int:
    """Axis of the units: 1 for images and for layers that put channels there, else the last."""
    channels_first = isinstance(module, (_ConvNd, _NormBase, nn.GroupNorm))
    return 1 if output.ndim >= 4 or (output.ndim == 3 and channels_first) else output.ndim - 1


def _recorder(layer: str, seen: dict[str, Tensor]) -> Any:
    def record(module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        first = output[0] if isinstance(output, (tuple, list)) else output
        if isinstance(first, Tensor):
            seen[layer] = first

    return record


def _apply(module: nn.Module, args: Any, output: Any) -> Any:
    del args
    first = output[0] if isinstance(output, (tuple, list)) else output
    shape = [1, -1] + [1] * (first.ndim - 2) if _axis(module, first) == 1 else [-1]
    tapped = first * getattr(module, GAIN).view(shape) + getattr(module, OFFSET).view(shape)
    return type(output)([tapped, *output[1:]]) if isinstance(output, (tuple, list)) else tapped
