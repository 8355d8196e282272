"""Following: where a unit's activation goes in a trace, and what is collected about a unit on the way.

Labels (the unit that each entry of a tensor belongs to) are carried through the recorded operations: rearrangements
are run on the labels themselves, so reshapes, permutations and concatenations need no rules of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
    made: dict[int, Tensor] = field(default_factory=dict)
    """Calls that make its units -> the unit of each entry of what they make."""


@dataclass(eq=False)
class End:
    """Where an activation's labels stop: a product that reads it, or an operation that mixes units."""

    at: int
    what: str  # "read", "output", "residual", "attention" or the operation's name
    product: Product | None = None
    labels: Tensor | None = None
    value: Value | None = None


def give(finding: Finding, role: str, name: str, owner: Tensor) -> None:
    """Add owners of a weight's entries to what is known of them."""
    known = finding.owners[role].get(name)
    finding.owners[role][name] = owner if known is None else torch.where(owner >= 0, owner, known)


def thin(owner: Tensor) -> Tensor:
    """The same owners, as a view that repeats itself along the axes on which they do not change.

    Saves memory on large weights, and tells which axes belong to one unit as a whole.
    """
    shape = owner.shape
    for axis in range(owner.ndim):
        first = owner.narrow(axis, 0, 1)
        if owner.shape[axis] > 1 and (owner.stride(axis) == 0 or bool((owner == first).all())):
            owner = first
    return owner.clone(memory_format=torch.contiguous_format).expand(shape)


def descend(graph: Graph, value: Value, labels: Tensor, uses: Iterable[int] | None = None) -> list[End]:
    """Everything that reads a labelled activation, through whatever keeps units apart and zeros zero.

    Args:
        graph: The trace.
        value: The activation.
        labels: Unit of each of its entries, -1 for none.
        uses: The calls that read the activation itself, as far as they count; by default all.
    """
    ends: list[End] = []
    waiting: list[tuple[Value, Tensor]] = [(value, labels)]
    while waiting:
        value, labels = waiting.pop()
        if graph.is_output(value):
            ends.append(End(len(graph.calls), "output"))
        reading, uses = value.uses if uses is None else uses, None
        for at in dict.fromkeys(reading):
            call = graph.calls[at]
            further = list(onward(call, value, labels))
            lost = call.rearranges and not call.overwritten  # taken apart, and this part is not used
            if not further and not lost:
                ends.append(_end(at, call, value, labels))
            waiting.extend(further)
    return ends


def onward(call: Call, value: Value, labels: Tensor) -> Iterator[tuple[Value, Tensor]]:
    """Values that carry the labels on, silent where the labelled value is silent; none where they stop."""
    outputs = [out for out in call.outputs if out is not None]
    if call.overwritten or not any(argument is value for argument in call.arguments):
        return
    if call.rearranges:
        for out, label in zip(outputs, carried(call, {id(value): labels}), strict=True):
            if bool((label >= 0).any()):
                yield out, label
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


def carried(call: Call, labels: Mapping[int, Tensor]) -> list[Tensor]:
    """Labels behind a rearrangement; zeros that are put around units count as theirs, because they are silent."""
    if call.name != "constant_pad_nd" or (len(call.args) > 2 and call.args[2] != 0):
        return call.carry(labels)
    label = labels[id(call.args[0])]
    for place in range(0, len(call.args[1]), 2):
        axis, widths = label.ndim - 1 - place // 2, call.args[1][place : place + 2]
        first = label.narrow(axis, 0, 1)
        if bool((label == first).all()):
            shape = list(label.shape)
            shape[axis] += sum(widths)
            label = first.expand(shape)
        else:
            label = torch.constant_pad_nd(label, [0, 0] * (place // 2) + list(widths), -1)
    return [label]


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


CONFLICT = -2
"""Label of what several units have a part in."""


def ascend(graph: Graph, starts: Iterable[tuple[int, Value, Tensor]]) -> tuple[dict[int, Tensor], set[int]]:
    """The products that labelled values are made by, through whatever acts on each unit alone.

    Args:
        graph: The trace.
        starts: (call, value that it reads, label of each of its entries); those calls may use the values as they like.

    Returns:
        Call -> label of each entry of what it makes (-1 for none, CONFLICT for several), for products all of whose
        labelled output goes nowhere else; and all calls on the way.
    """
    labels: dict[int, Tensor] = {}
    passed: set[int] = set()
    for at, value, label in starts:
        passed.add(at)
        _note(labels, value, label)
    found: dict[int, Tensor] = {}
    for at in reversed(range(max(passed, default=0))):
        call = graph.calls[at]
        out = next((out for out in call.outputs if out is not None and id(out) in labels), None)
        if out is None or call.overwritten or any(use not in passed for use in _uses(call)):
            continue
        if call.product is not None or call.lookup is not None:
            found[at] = labels[id(out)]
        elif call.rearranges:
            passed.add(at)
            for value, label in _before(call, labels):
                _note(labels, value, label)
        else:
            shared = _spread(call, out, labels[id(out)])
            passed |= {at} if shared else set()
            for value, label in shared:
                _note(labels, value, label)
    return found, passed


def _uses(call: Call) -> list[int]:
    return [use for out in call.outputs if out is not None for use in out.uses]


def _note(labels: dict[int, Tensor], value: Value, label: Tensor) -> None:
    """Add what is known of a value's labels."""
    known = labels.get(id(value))
    if known is not None:
        agreed = torch.where((known == -1) | (label == -1), torch.maximum(known, label), CONFLICT)
        label = torch.where(known == label, known, agreed)
        label = torch.where((known == CONFLICT) | (label == CONFLICT), CONFLICT, label)
    labels[id(value)] = label


def _before(call: Call, labels: dict[int, Tensor]) -> Iterator[tuple[Value, Tensor]]:
    """Labels of what a rearrangement was made from: its entries are followed by number."""
    inputs = [value for value in dict.fromkeys(call.arguments) if value.active]
    for value in inputs:
        size = value.tensor.numel()
        low = torch.full((size,), torch.iinfo(torch.long).max)
        high = torch.full((size,), -1)
        conflict = torch.zeros(size, dtype=torch.bool)
        numbers = call.carry({id(value): torch.arange(size).view(value.tensor.shape)})
        for out, number in zip(call.outputs, numbers, strict=True):
            label = None if out is None else labels.get(id(out))
            if label is None:
                continue
            place, label = number.reshape(-1), label.reshape(-1)
            conflict[place[(place >= 0) & (label == CONFLICT)]] = True
            known = (place >= 0) & (label >= 0)
            low.scatter_reduce_(0, place[known], label[known], "amin")
            high.scatter_reduce_(0, place[known], label[known], "amax")
        conflict |= (high >= 0) & (low != high)
        yield value, torch.where(conflict, CONFLICT, high).view(value.tensor.shape)


def _spread(call: Call, out: Value, label: Tensor) -> list[tuple[Value, Tensor]]:
    """Labels of what another operation reads, if it works on each label by itself; empty if there is no rule."""
    active = [value for value in dict.fromkeys(call.arguments) if value.active]
    if call.pointwise or call.normalises:
        return [(value, _narrowed(label, value.tensor.shape)) for value in active]
    first = call.args[0]
    shape = first.tensor.shape if isinstance(first, Value) else torch.Size()
    if call.normalises is False:
        axes = _normalised(call, len(shape))
        return [(first, _constant(label, axes).expand(shape))]
    if call.name in {"mean", "sum"} and label.numel() <= first.tensor.numel():
        dims = call.args[1] if len(call.args) > 1 and call.args[1] else list(range(len(shape)))
        if label.ndim < len(shape):
            for dim in sorted(dim % len(shape) for dim in dims):
                label = label.unsqueeze(dim)
        return [(first, label.expand(shape))]
    if call.name in {"bmm", "baddbmm"} and call.product is None:
        stacks = _constant(label, [1, 2])
        return [(value, stacks.expand(value.tensor.shape)) for value in active if value.tensor.ndim == 3]
    return []


def _normalised(call: Call, ndim: int) -> list[int]:
    """Axes over which layer or group normalisation takes its statistics; of groups, all but the examples."""
    if call.name == "native_group_norm":
        return list(range(1, ndim))
    return list(range(ndim - len(call.args[1]), ndim))


def _constant(label: Tensor, axes: list[int]) -> Tensor:
    """Labels that are the same along some axes, kept with length 1; CONFLICT where they are not."""
    if not axes:
        return label
    low, high = label.amin(axes, True), label.amax(axes, True)
    return torch.where(low == high, high, CONFLICT)


def _narrowed(label: Tensor, shape: torch.Size) -> Tensor:
    """Labels of a result as those of an operand that was broadcast to it."""
    extra = label.ndim - len(shape)
    label = _constant(label, list(range(extra))).reshape(label.shape[extra:])
    return _constant(label, [axis for axis, size in enumerate(shape) if size == 1 < label.shape[axis]])
