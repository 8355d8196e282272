"""Gates: where in a recorded pass the units of a layer can be silenced, and what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planaria.core.anatomy import Anatomy
from planaria.core.follow import descend
from planaria.core.network import Network
from planaria.sweep.record import Recording, Rows


@dataclass(frozen=True, eq=False)
class Gate:
    """Where the activation of a layer's units can be silenced.

    Attributes:
        at: The value.
        axis: Axis along which units lie.
        owner: Unit of each place along that axis (of one example, where the axis is also that of the examples).
        rows: Where the examples are.
    """

    at: int
    axis: int
    owner: Tensor
    rows: Rows

    def closed(self, value: Tensor, units: Tensor) -> Tensor:
        """The value with one unit silenced in each example.

        Args:
            value: The activation of as many examples as there are units.
            units: [examples].
        """
        shut = units[:, None] == self.owner.to(units.device)  # [examples, places]
        shape = [1] * value.ndim
        shape[self.axis] = value.shape[self.axis]
        if self.axis == self.rows.axis:
            shut = shut if self.rows.together else shut.T
            return value.clone().masked_fill_(shut.reshape(shape), 0)
        if self.rows.per > 1:
            together = self.rows.together
            shut = shut.repeat_interleave(self.rows.per, 0) if together else shut.repeat(self.rows.per, 1)
        shape[self.rows.axis] = value.shape[self.rows.axis]
        shut = shut if self.rows.axis < self.axis else shut.T
        return value.clone().masked_fill_(shut.reshape(shape), 0)

    def silenced(self, value: Tensor, units: Sequence[int]) -> Tensor:
        """The value with the same units silenced in every example."""
        shut = torch.isin(self.owner, torch.tensor(list(units)))
        if self.axis == self.rows.axis:
            times = value.shape[self.axis] // len(shut)
            shut = shut.repeat(times) if self.rows.together else shut.repeat_interleave(times)
        return value.clone().index_fill_(self.axis, shut.nonzero().flatten().to(value.device), 0)

    def sums(self, value: Tensor, count: int) -> Tensor:
        """Sums over what belongs to each unit, [examples, units].

        Args:
            value: The activation, or something of its shape.
            count: Number of units.
        """
        owner, rows = self.owner.to(value.device), self.rows
        if self.axis == rows.axis:
            line = value.movedim(rows.axis, 0)
            line = line.flatten(1).sum(1) if line.ndim > 1 else line
            places = line.reshape(-1, len(owner)) if rows.together else line.reshape(len(owner), -1).T
        else:
            table = value.movedim((rows.axis, self.axis), (0, 1))
            table = table.flatten(2).sum(2) if table.ndim > 2 else table
            shape = (-1, rows.per) if rows.together else (rows.per, -1)
            places = table.unflatten(0, shape).sum(1 if rows.together else 0)
        if torch.equal(owner, torch.arange(count, device=owner.device)):
            return places
        return places.new_zeros(len(places), count + 1).index_add_(1, owner % (count + 1), places)[:, :count]

    def busy(self, value: Tensor) -> frozenset[int]:
        """Units that emit anything but zeros for some example."""
        lines = (value != 0).movedim(self.axis, 0).reshape(value.shape[self.axis], -1).any(1).cpu()
        if self.axis == self.rows.axis:
            count = len(self.owner)
            lines = lines.view(-1, count).any(0) if self.rows.together else lines.view(count, -1).any(1)
        return frozenset(self.owner[lines].tolist())


@dataclass(frozen=True, eq=False)
class Read:
    """A product that reads a layer's units, one of those through which alone they act.

    Attributes:
        op: Number of the operation.
        at: The value it reads.
        axis: Axis of that value along which units lie.
        owner: Unit of each place along it, -1 for none.
    """

    op: int
    at: int
    axis: int
    owner: Tensor


def gates_of(recording: Recording, net: Network) -> tuple[dict[str, tuple[Gate, ...]], dict[str, tuple[Read, ...]]]:
    """Gates of every layer with units, and the products through which alone they act.

    Args:
        recording: Of the network, with rows that are known to be right.
        net: The network.

    Returns:
        Layer -> its gates, for layers whose units lie along one axis; layer -> products, where units act through
        products only and no product is behind another.
    """
    at_op = {op.tag: place for place, op in enumerate(recording.ops)}
    gates: dict[str, tuple[Gate, ...]] = {}
    reading: dict[str, tuple[Read, ...]] = {}
    for group in Anatomy.of(net).groups:
        found = [_gate(recording, at_op.get(tag), labels) for tag, labels in group.gates]
        if not found or any(gate is None for gate in found):
            continue
        gates[group.layer] = tuple(gate for gate in found if gate is not None)
        reads = _reads(recording, gates[group.layer])
        if reads:
            reading[group.layer] = reads
    return gates, reading


def _gate(recording: Recording, place: int | None, labels: Tensor) -> Gate | None:
    """A gate from the labels that the anatomy found on its own example inputs."""
    at = None if place is None else recording.ops[place].writes[0]
    rows = None if at is None else recording.rows.get(at)
    if at is None or rows is None:
        return None
    shape = recording.values[at].tensor.shape
    if labels.ndim != len(shape) or any(
        axis != rows.axis and labels.shape[axis] != size for axis, size in enumerate(shape)
    ):
        return None  # on other examples something else was computed there
    varying = [axis for axis in range(labels.ndim) if not bool((labels == labels.narrow(axis, 0, 1)).all())]
    if not varying:  # one unit: it is all of any axis
        varying = [next((axis for axis in range(labels.ndim) if axis != rows.axis), rows.axis)]
    if len(varying) != 1:
        return None
    axis = varying[0]
    owner = labels.movedim(axis, -1).reshape(-1, labels.shape[axis])[0]
    if axis == rows.axis:
        blocks = owner.view(-1, rows.per) if rows.together else owner.view(rows.per, -1).T
        if not bool((blocks == blocks[:1]).all()):
            return None
        owner = blocks[0]
    return Gate(at, axis, owner.clone(), rows)


def _reads(recording: Recording, gates: Sequence[Gate]) -> tuple[Read, ...]:
    """Products through which alone gated units act; empty if they act otherwise too."""
    if len(gates) > 1 or gates[0].axis == gates[0].rows.axis:
        return ()  # what one gate closes may be read through another
    slots = {id(value): at for at, value in recording.values.items()}
    makers = {write: at for at, op in enumerate(recording.ops) for write in op.writes if write is not None}
    gate = gates[0]
    value = recording.values[gate.at]
    shape = [1] * value.tensor.ndim
    shape[gate.axis] = -1
    found: list[Read] = []
    for end in descend(recording.graph, value, gate.owner.view(shape).expand(value.tensor.shape)):
        product, seen, read = end.product, end.labels, end.value
        if product is None or seen is None or read is None or product.call.name in {"bmm", "baddbmm"}:
            return ()
        out, at = product.call.outputs[0], slots.get(id(read))
        op = None if out is None or id(out) not in slots else makers.get(slots[id(out)])
        call = product.call
        axis = 1 if product.convolution else seen.ndim - 1
        plain = call.args[8] == 1 and not call.args[6] if product.convolution else not call.kwargs
        line = seen.movedim(axis, -1).reshape(-1, seen.shape[axis])
        if op is None or at is None or not plain or not bool((line == line[:1]).all()):
            return ()
        found.append(Read(op, at, axis, line[0].clone()))
    products = {read.op for read in found}
    behind: set[int] = set()
    for place, operation in enumerate(recording.ops):
        after = any(read in behind for read in operation.reads)
        if after and place in products:
            return ()  # a product behind another one changes otherwise too
        if after or place in products:
            behind |= {write for write in operation.writes if write is not None}
    return tuple(found) if len(products) == len(found) else ()
