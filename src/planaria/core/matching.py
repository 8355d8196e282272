"""Matching: the same activation in passes of one network on two devices.

Torch computes some layers by other operations on other devices: attention, batch normalisation and recurrences, for
example, have kernels of their own on each. What they compute is the same up to rounding, and that is how an activation
known from a pass on the CPU is found in a pass elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from planaria.core.graph import Call, Graph

NEAR = 1e-3
"""Largest difference between devices, relative to the largest entry; two activations differ by about that entry."""

ROUGH = 5e-2
"""The same where one pass is in mixed precision."""


def matched(tags: Iterable[str], home: Graph, away: Graph, near: float = NEAR) -> dict[str, str]:
    """Operations of another pass that compute what these operations compute.

    Args:
        tags: Of operations of `home`, see `Call.tag`; an operation's first output counts.
        home: A pass on the CPU.
        away: A pass of the same network on the same inputs, on another device or in another precision.
        near: Largest difference, relative to the largest entry.

    Returns:
        Tag at home -> tag away: the operation of the same tag where it computes the same, else the first that does;
        what nothing computes there is left out.

    Example:
        >>> import torch
        >>> from planaria.core.graph import trace
        >>> from planaria.core.network import Network
        >>> net = Network.of(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()), torch.ones(1, 2))
        >>> pass_of_net = trace(net, net.inputs)
        >>> matched(["aten::tanh 0"], pass_of_net, pass_of_net)
        {'aten::tanh 0': 'aten::tanh 0'}

    Not guaranteed: anything for an activation that is zero everywhere on these inputs, unless its tag is the same.
    """
    wanted = set(tags)
    shapes: dict[tuple[int, ...], list[tuple[Call, Tensor]]] = {}
    for call in away.calls:
        made = _made(call)
        if made is not None:
            shapes.setdefault(tuple(made.shape), []).append((call, made.cpu()))
    found: dict[str, str] = {}
    for call in home.calls:
        made = _made(call)
        if call.tag not in wanted or made is None:
            continue
        largest = float(made.abs().max()) if made.numel() else 0.0
        same = [
            other.tag
            for other, tensor in shapes.get(tuple(made.shape), ())
            if float((tensor.to(made.dtype) - made).abs().max()) <= near * largest
        ]
        if call.tag in same:
            found[call.tag] = call.tag
        elif same and largest > 0:
            found[call.tag] = same[0]
    return found


def _made(call: Call) -> Tensor | None:
    """The activation that a call computes, if it is one."""
    value = call.outputs[0] if call.outputs else None
    if value is None or not value.active or not value.tensor.is_floating_point() or not value.tensor.numel():
        return None
    return value.tensor.detach()
