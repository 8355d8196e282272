"""Following: where a unit's activation goes in a trace, and what is collected about a unit on the way.

Labels (the unit that each entry of a tensor belongs to) are carried through the recorded operations: rearrangements
are run on the labels themselves, so reshapes, permutations and concatenations need no rules of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from planaria.core.graph import Call, Graph, Product, Value

ROLES = ("incoming", "scale", "shift", "outgoing")


@dataclass(eq=False)
class Finding:
    """A layer's units under construction; see `anatomy.Group` for the fields."""

    layer: str
    kind: str
    count: int
    owners: dict[str, dict[str, Tensor]] = field(default_factory=lambda: {role: {} for role in ROLES})
    gates: list[tuple[int, Tensor]] = field(default_factory=list)
    first: int = 0
    readers: tuple[str, ...] = ()
    quiet: bool = True  # zero incoming entries and shift make the activation zero
    ends: list[End] = field(default_factory=list)
    exact_by: str = ""
    makers: set[int] = field(default_factory=set)


@dataclass(eq=False)
class End:
    """Where an activation's labels stop: a product that reads it, or an operation that mixes units."""

    at: int
    what: str  # "read", "output", "residual", "attention" or the operation's name
    product: Product | None = None
    labels: Tensor | None = None
    value: Value | None = None


def descend(graph: Graph, value: Value, labels: Tensor) -> list[End]:
    """Everything that reads a labelled activation, through whatever keeps units apart and zeros zero."""
    ends: list[End] = []
    waiting: list[tuple[Value, Tensor]] = [(value, labels)]
    while waiting:
        value, labels = waiting.pop()
        if graph.is_output(value):
            ends.append(End(len(graph.calls), "output"))
        for at in dict.fromkeys(value.uses):
            call = graph.calls[at]
            further = list(onward(call, value, labels))
            if not further:
                ends.append(_end(at, call, value, labels))
            waiting.extend(further)
    return ends


def onward(call: Call, value: Value, labels: Tensor) -> Iterator[tuple[Value, Tensor]]:
    """Values that carry the labels on, silent where the labelled value is silent; none where they stop."""
    outputs = [out for out in call.outputs if out is not None]
    if call.overwritten or not any(argument is value for argument in call.arguments):
        return
    if call.rearranges:
        for out, carried in zip(outputs, call.carry({id(value): labels}), strict=True):
            if bool((carried >= 0).any()):
                yield out, carried
    elif call.pools and call.args[0] is value:
        yield from _pooled(call, outputs[0], labels)
    elif call.name == "bmm" and call.product is None:
        # Attention weights times values: rows of zeros stay rows of zeros. (Values are followed by their heads.)
        if call.args[0] is value and bool((labels == labels[..., :1]).all()):
            yield outputs[0], labels[..., :1].expand(outputs[0].tensor.shape)
    elif call.pointwise and call.product is None:
        others = [other for other in call.inputs if other is not value]
        if any(other.active for other in others) and call.name not in {"mul", "div"}:
            return
        if call.name == "div" and call.args[0] is not value:
            return
        if keeps_zero(call, value):
            yield outputs[0], labels.expand(outputs[0].tensor.shape)


def _pooled(call: Call, out: Value, labels: Tensor) -> Iterator[tuple[Value, Tensor]]:
    """Labels behind an operation that reduces or resizes over positions, if each result comes from one unit."""
    shape = out.tensor.shape
    if call.name in {"mean", "sum", "amax"}:
        dims = call.args[1] if len(call.args) > 1 else None
        kept = call.args[2] if len(call.args) > 2 else False
        if dims:
            low, high = labels.amin(dims, kept), labels.amax(dims, kept)
            if bool((low == high).all()):
                yield out, high
    elif labels.ndim - 2 == call.positions and labels.shape[:2] == shape[:2]:
        flat = labels.flatten(2)
        if bool((flat == flat[..., :1]).all()):
            yield out, flat[..., 0].view(*shape[:2], *[1] * (len(shape) - 2)).expand(shape)


def _end(at: int, call: Call, value: Value, labels: Tensor) -> End:
    product = call.product
    if product is not None and product.x is value:
        return End(at, "read", product, labels, value)
    if call.pointwise and call.name in {"add", "sub", "rsub"} and all(other.active for other in call.arguments):
        return End(at, "residual")
    if "scaled_dot_product" in call.name or (call.name == "bmm" and product is None):
        return End(at, "attention", labels=labels, value=value)
    return End(at, call.name)


def keeps_zero(call: Call, value: Value) -> bool:
    """Whether an element-wise operation maps zeros of `value` to zeros, the other arguments as recorded."""
    if call.name == "mul" or (call.name == "div" and call.args[0] is value):
        return True
    result = call.evaluate({id(value): torch.zeros_like(value.tensor)})
    return bool((result == 0).all())
