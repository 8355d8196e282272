"""Rules: what the units of one value in a trace say about those of the others, operation by operation.

Labels give the unit of each entry of a value, -1 where there is none or none is known yet. A rule is asked with the
labels of one argument or result of a call and answers with those of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planaria.core.follow import carried
from planaria.core.graph import SHAPED, Call, Value

PRODUCTS = {"mm": (0, 1, None), "bmm": (0, 1, None), "addmm": (1, 2, 0), "baddbmm": (1, 2, 0), "linear": (0, 1, 2)}
_ALONG = frozenset(["_softmax", "_log_softmax", "_safe_softmax"])
_REDUCE = frozenset(
    ["mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "linalg_vector_norm", "norm", "logsumexp"]
)
_FAR = torch.iinfo(torch.long).max


class Stuck(Exception):
    """There is no symmetry, because of what the message says."""


class Tied(Exception):
    """Some units only move together: carries the new unit of each."""

    def __init__(self, units: Tensor, by: str = "") -> None:
        super().__init__(by)
        self.units = units


def axes_of(label: Tensor) -> frozenset[int]:
    """Axes along which the unit changes; entries without one do not count."""
    for axis in range(label.ndim):
        if label.stride(axis) == 0:
            label = label.narrow(axis, 0, min(1, label.shape[axis]))
    if not label.numel():
        return frozenset()
    low = torch.where(label >= 0, label, _FAR)
    return frozenset(
        axis for axis in range(label.ndim) if label.shape[axis] > 1 and bool((low.amin(axis) < label.amax(axis)).any())
    )


def united(count: int, pairs: Tensor) -> Tensor:
    """The new number of each unit when those of every pair become one."""
    root = list(range(count))

    def top(unit: int) -> int:
        while root[unit] != unit:
            root[unit] = root[root[unit]]
            unit = root[unit]
        return unit

    for one, other in pairs.tolist():
        one, other = top(one), top(other)
        root[max(one, other)] = min(one, other)
    renumbered: Tensor = torch.tensor([top(unit) for unit in range(count)]).unique(return_inverse=True)[1]
    return renumbered


def gather(place: Tensor, label: Tensor, size: int, count: int) -> Tensor:
    """The unit of each of `size` things, from entries that belong to them: -1 where all units have a part in it.

    Raises:
        Tied: If some units, and not all, have a part in one thing.
    """
    place, label = place.reshape(-1), label.reshape(-1)
    known = (place >= 0) & (label >= 0)
    place, label = place[known], label[known]
    low = torch.full((size,), _FAR).scatter_reduce_(0, place, label, "amin")
    high = torch.full((size,), -1).scatter_reduce_(0, place, label, "amax")
    several = (low != high) & (high >= 0)
    if bool(several.any()):
        mixed = several[place]
        pairs = (place[mixed] * count + label[mixed]).unique()
        things, units = pairs // count, pairs % count
        parts = torch.bincount(things, minlength=size)
        some = parts[things] < count
        if bool(some.any()):
            raise Tied(united(count, torch.stack([units[some], low[things[some]]], 1).unique(dim=0)))
    return torch.where(several, -1, high)


def positions_of(label: Tensor, count: int) -> Tensor | None:
    """Places of each unit's entries [units, entries], in order; None if some unit has more than another."""
    sizes = torch.bincount(label[label >= 0], minlength=count)
    if not bool((sizes == sizes[0]).all()):
        return None
    order = torch.argsort(label, stable=True)
    return order[label[order] >= 0].reshape(count, -1)


def reads(call: Call, value: Value, label: Tensor) -> bool:
    """Whether a call is a product of a labelled activation with a weight that reads its units."""
    if call.name == "convolution":
        x, w = call.args[:2]
    elif call.name in PRODUCTS:
        x, w = (call.args[at] for at in PRODUCTS[call.name][:2])
    else:
        return False
    contracted = 1 if call.name == "convolution" else value.tensor.ndim - 1
    return x is value and isinstance(w, Value) and not w.active and contracted in axes_of(label)


def implied(call: Call, value: Value, label: Tensor, count: int) -> Iterator[tuple[Value, Tensor]]:
    """What the units of one of its arguments or results say about those of the others."""
    if call.name in SHAPED:
        return
    out = call.outputs[0]
    if out is None:
        raise Stuck(f"a number that {call.name} takes out of them decides what is computed")
    if call.name in PRODUCTS or call.name == "convolution":
        yield from _product(call, out, value, label, count)
    elif call.lookup is not None or call.name == "embedding":
        table = call.args[0]
        last = torch.arange(table.tensor.shape[-1])
        units = gather(last.expand(label.shape), label, len(last), count)
        if not bool((units >= 0).any()):
            raise Stuck("its units are rows of a table")
        yield out, units.expand(out.tensor.shape)
        yield table, units.expand(table.tensor.shape)
    elif call.rearranges:
        yield from _rearranged(call, value, label, count)
    elif call.normalises is not None:
        yield from _normalised(call, out, value, label, count)
    elif call.name in _REDUCE:
        yield from _reduced(call, value, label, count)
    elif call.name == "glu":
        yield from _halves(call, out, value, label)
    elif call.pools and call.positions is not None:
        first = call.args[0]
        lead = out.tensor.ndim - call.positions
        units = _constant(label, list(range(lead, label.ndim)))
        yield out, units.expand(out.tensor.shape)
        yield first, units.expand(first.tensor.shape)
    elif call.pointwise or call.name in _ALONG:
        label = label.expand(out.tensor.shape)
        yield out, label
        for other in call.arguments:
            if other is not value and other.tensor.numel() > 1:
                yield other, _narrowed(other.tensor, label, count)
    else:
        raise Stuck(f"its units go through {call.name}, for which there is no rule")


def _narrowed(tensor: Tensor, label: Tensor, count: int) -> Tensor:
    """Units of an operand that was broadcast to a result's shape."""
    place = torch.arange(tensor.numel()).view(tensor.shape)
    if tensor.shape == label.shape:
        return label
    return gather(place.expand(label.shape), label, tensor.numel(), count).view(tensor.shape)


def _halves(call: Call, out: Value, value: Value, label: Tensor) -> Iterator[tuple[Value, Tensor]]:
    """A gated linear unit: the first half of its argument times the sigmoid of the second."""
    axis = call.args[1] if len(call.args) > 1 else -1
    if value is out:
        yield call.args[0], torch.cat([label, label], axis)
    else:
        for half in label.chunk(2, axis):
            yield out, half


def _constant(label: Tensor, axes: list[int]) -> Tensor:
    """Labels that do not change along some axes, kept with length 1."""
    if not axes:
        return label
    low, high = torch.where(label >= 0, label, _FAR).amin(axes, True), label.amax(axes, True)
    if bool(((low != high) & (high >= 0)).any()):
        raise Stuck("its units lie at several positions of one feature map")
    return high


def _rearranged(call: Call, value: Value, label: Tensor, count: int) -> Iterator[tuple[Value, Tensor]]:
    places = [at for at, out in enumerate(call.outputs) if out is value]
    if not places:
        for out, moved in zip(call.outputs, carried(call, {id(value): label}), strict=False):
            if out is not None:
                yield out, moved
        return
    picks = call.name in {"index", "index_select", "gather"}
    for source in dict.fromkeys([call.args[0]] if picks else call.arguments):
        size = source.tensor.numel()
        number = call.carry({id(source): torch.arange(size).view(source.tensor.shape)})[places[0]]
        yield source, gather(number, label, size, count).view(source.tensor.shape)


def _normalised(call: Call, out: Value, value: Value, label: Tensor, count: int) -> Iterator[tuple[Value, Tensor]]:
    """Batch, layer, group or root-mean-square normalisation."""
    x = call.args[0]
    shape = x.tensor.shape
    if call.name in {"native_layer_norm", "_fused_rms_norm", "rms_norm"}:
        last = len(call.args[1])
        vectors = [v for v in call.args[2:] if isinstance(v, Value)]
        within, over = shape[len(shape) - last :], shape[: len(shape) - last]
        place = torch.arange(within.numel()).view(within).expand(shape)
        row = torch.arange(over.numel()).view(*over, *[1] * last).expand(shape)
    else:
        vectors = [v for v in call.args[1:] if isinstance(v, Value)]
        channel = torch.arange(shape[1]).view(1, -1, *[1] * (len(shape) - 2))
        place = channel.expand(shape)
        groups = 1 if call.normalises else call.args[6]
        row = (torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1)) * groups + channel * groups // shape[1]).expand(
            shape
        )
    if value is not x and value is not out:
        label = label.reshape(-1)[place]
    if not call.normalises:
        rows = int(row.max()) + 1
        alone = gather(row, label, rows, count) >= 0  # units of one row of statistics: one of them, or all
        filled = torch.zeros(rows, dtype=torch.bool).index_fill_(0, row[label >= 0], True)
        if bool(alone.any()) and bool((filled & ~alone).any()):
            raise Stuck(f"{call.name} takes some of its units together")
    yield x, label
    yield out, label
    units = gather(place, label, int(place.max()) + 1, count)
    for vector in vectors:
        yield vector, units.view(vector.tensor.shape)


def _reduced(call: Call, value: Value, label: Tensor, count: int) -> Iterator[tuple[Value, Tensor]]:
    x = call.args[0]
    if any(isinstance(argument, Value) for argument in call.args[1:]):  # the larger of two, entry by entry
        raise Stuck(f"its units go through {call.name} of two activations")
    names = [argument.name for argument in call.function._schema.arguments]
    dims = next((call.args[at] for at, name in enumerate(names[: len(call.args)]) if name in {"dim", "dims"}), None)
    dims = [dims] if isinstance(dims, int) else list(dims or range(x.tensor.ndim))
    kept = [1 if axis in {dim % x.tensor.ndim for dim in dims} else size for axis, size in enumerate(x.tensor.shape)]
    size = torch.Size(kept).numel()
    if value is not x:
        label = label.reshape(kept).expand(x.tensor.shape)
        yield x, label
    units = gather(torch.arange(size).view(kept).expand(x.tensor.shape), label, size, count)
    for out in call.outputs:
        if out is not None:
            yield out, units.view(out.tensor.shape)


def _product(call: Call, out: Value, value: Value, label: Tensor, count: int) -> Iterator[tuple[Value, Tensor]]:
    """Products as stacks of matrices: x [stack, rows, read] times w [stack, read, made]; groups of a convolution."""
    form = _Convolution(call, count) if call.name == "convolution" else _Matrices(call)
    if value is form.b:
        at = [1] * out.tensor.ndim
        if call.name == "convolution":
            at[1] = len(label)
            label = label.view(at)
        yield out, label.expand(out.tensor.shape)
        return
    parts = {"x": form.x, "w": form.w, "out": out}
    role = next(name for name, part in parts.items() if part is value)
    for other, theirs in _stacked(role, form.taken(role, label), count):
        part = parts[other]
        yield part, form.put(other, theirs, part.tensor.shape)
    if role == "out" and isinstance(form.b, Value):
        if call.name == "convolution":
            label = form.taken("out", label).reshape(-1)
        yield form.b, _narrowed(form.b.tensor, label, count)


_SHARED = {
    ("x", 1): ("out", 1),
    ("x", 2): ("w", 1),
    ("w", 1): ("x", 2),
    ("w", 2): ("out", 2),
    ("out", 1): ("x", 1),
    ("out", 2): ("w", 2),
}
"""Operand of a product and an axis of it -> the operand that shares the axis, and which it is there."""


def _stacked(role: str, label: Tensor, count: int) -> Iterator[tuple[str, Tensor]]:
    """What units along an axis of one operand [stack, ., .] say about the others."""
    axes = axes_of(label) & {1, 2}
    stack = torch.arange(len(label)).view(-1, 1, 1).expand(label.shape)
    units = gather(stack, label, len(label), count)
    if not axes:  # whole matrices of the stack
        if len(label) == 1:
            raise Stuck("its units only move together")
        for other in {"x", "w", "out"} - {role}:
            yield other, units.view(-1, 1, 1)
        return
    if len(axes) > 1 or bool((units >= 0).any()):
        raise Stuck("a product mixes them")
    (axis,) = axes
    line = label.amax(3 - axis)
    other, there = _SHARED[role, axis]
    yield other, line[:, :, None] if there == 1 else line[:, None, :]


@dataclass(frozen=True, eq=False)
class _Matrices:
    """A matrix product's operands as stacks of matrices."""

    call: Call

    @property
    def x(self) -> Value:
        value: Value = self.call.args[PRODUCTS[self.call.name][0]]
        return value

    @property
    def w(self) -> Value:
        value: Value = self.call.args[PRODUCTS[self.call.name][1]]
        return value

    @property
    def b(self) -> Any:
        at = PRODUCTS[self.call.name][2]
        return self.call.args[at] if at is not None and len(self.call.args) > at else None

    def taken(self, role: str, label: Tensor) -> Tensor:
        if self.call.name == "linear":
            return label.T[None] if role == "w" else label.reshape(1, -1, label.shape[-1])
        return label if label.ndim == 3 else label[None]

    def put(self, role: str, label: Tensor, shape: torch.Size) -> Tensor:
        if self.call.name == "linear":
            if role == "w":
                return label[0].T.expand(shape)
            rows = shape[:-1].numel()
            return label.expand(1, rows, shape[-1]).reshape(shape)
        return label.expand(shape) if len(shape) == 3 else label[0].expand(shape)


@dataclass(frozen=True, eq=False)
class _Convolution:
    """A convolution's operands as stacks of matrices: one per group, one row, each kernel as one number."""

    call: Call
    count: int

    @property
    def x(self) -> Value:
        value: Value = self.call.args[0]
        return value

    @property
    def w(self) -> Value:
        value: Value = self.call.args[1]
        return value

    @property
    def b(self) -> Any:
        return self.call.args[2]

    def taken(self, role: str, label: Tensor) -> Tensor:
        groups, transposed = self.call.args[8], self.call.args[6]
        if role != "w":
            return _constant(label, [0, *range(2, label.ndim)]).reshape(groups, 1, -1)
        label = _constant(label, list(range(2, label.ndim))).reshape(groups, -1, label.shape[1])
        return label if transposed else label.transpose(1, 2)

    def put(self, role: str, label: Tensor, shape: torch.Size) -> Tensor:
        groups, transposed = self.call.args[8], self.call.args[6]
        spread = [1] * (len(shape) - 2)
        if role != "w":
            return label.expand(groups, 1, shape[1] // groups).reshape(1, -1, *spread).expand(shape)
        if not transposed:
            label = label.transpose(1, 2)
        return label.expand(groups, shape[0] // groups, shape[1]).reshape(*shape[:2], *spread).expand(shape)
