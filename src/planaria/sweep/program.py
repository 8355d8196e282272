"""Programs: a network's forward pass as a list of tensor operations that can be resumed anywhere.

A damaged network shares everything before the damage with the intact one: only what depends on the damaged values is
run again, by the very same operations on the same numbers. The result is bit-identical to running the whole damaged
network, except where a kernel of torch's gives other last bits for numbers that lie otherwise in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from planaria.core.devices import without_tf32
from planaria.core.network import Network
from planaria.core.port import Layout
from planaria.core.streams import stream
from planaria.sweep.gates import Gate, Read, gates_of
from planaria.sweep.record import MORE, Op, Rows, examples_of, other_than, record

Edit = Callable[[Tensor], Tensor]

NEAR = 1e-4
"""Share of the largest output by which rounding may move outputs."""

OUTWEIGHS = 64.0
"""A unit with so many times the contribution of all others together cannot be subtracted: no digits would be left."""


@dataclass(frozen=True, eq=False)
class Fused:
    """Some operations as one.

    Attributes:
        op: What is run instead of them, where the last of them would be.
        members: Their numbers, ascending.
        inner: Values that are then never made.
        built: Held values, weights among them, that went into it.
    """

    op: Op
    members: tuple[int, ...]
    inner: frozenset[int]
    built: frozenset[int]


@dataclass(frozen=True, eq=False)
class Program:
    """A recorded forward pass.

    Attributes:
        ops: In order.
        held: Values that are the same for all inputs: weights, buffers, what is computed from them.
        weights: Name of the weight -> its value; weights that nothing reads are not among them.
        input: The inputs' value.
        output: The outputs' value.
        rows: Value -> where the examples are, for values whose rows can be picked.
        gates: Layer -> its gates; layers whose units cannot be gated here are not among them.
        reads: Layer -> the products through which alone its units act, if that is so.
        bytes: Value -> bytes per example.
        coarse: Whether some numbers have so few digits that rounding decides predictions.
        decided: Whether the inputs decided the way, as where padding is looked for: see `holds`.
        fused: Groups of operations that may run as one; if there are none, resuming is bit-identical.

    Example:
        >>> from torch import nn
        >>> net = Network.of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 4))
        >>> program = Program.of(net)
        >>> x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
        >>> gate = program.gates["0"][0]
        >>> base = program.run(x, keep=[gate.at])
        >>> dead = program.resume(base, {gate.at: gate.silenced(base[gate.at], [1])})
        >>> silenced = net.with_weights({"2.weight": net.weights["2.weight"] * torch.tensor([1.0, 0.0, 1.0])})
        >>> bool((dead == silenced(x)).all())
        True
    """

    ops: tuple[Op, ...]
    held: Mapping[int, Tensor]
    weights: Mapping[str, int]
    input: int
    output: int
    rows: Mapping[int, Rows]
    gates: Mapping[str, tuple[Gate, ...]]
    reads: Mapping[str, tuple[Read, ...]]
    bytes: Mapping[int, int]
    coarse: bool
    decided: bool = False
    fused: tuple[Fused, ...] = ()
    _suffixes: dict[frozenset[int], tuple[tuple[Op, tuple[int, ...]], ...]] = field(
        default_factory=dict, init=False, repr=False
    )
    _firsts: dict[frozenset[int], frozenset[int]] = field(default_factory=dict, init=False, repr=False)

    @staticmethod
    def of(net: Network) -> Program | str:
        """Record a network's pass, or say why it cannot be replayed.

        Args:
            net: A network with example inputs; its weights are shared, not copied.
        """
        recording = record(net)
        if isinstance(recording, str):
            return recording
        program = Program(
            ops=recording.ops,
            held=recording.held,
            weights=recording.weights,
            input=recording.input,
            output=recording.output,
            rows={},
            gates={},
            reads={},
            bytes=recording.bytes,
            coarse=recording.coarse,
            decided=recording.decided,
        )
        assert net.inputs is not None
        few = examples_of(net.inputs, 5)
        for inputs in (few, other_than(few, net.port.layout)):
            if not program._repeats(net, inputs, {}):
                return "replaying its recorded pass on other inputs gives other outputs"
        rows = program._ordered(recording.rows, net.inputs, net.port.layout)
        gates, reads = gates_of(replace(recording, rows=rows), net)
        return replace(program, rows=rows, gates=gates, reads=reads)

    def _repeats(self, net: Network, inputs: Tensor, changed: Mapping[str, Tensor]) -> bool:
        """Whether it gives the outputs that the network gives with some other weights."""
        try:
            theirs = net.with_weights(changed)(inputs)
        except (RuntimeError, IndexError, ValueError, TypeError):
            return True  # these inputs are none that the network takes; nothing is learned
        values = {self.weights[name]: weight for name, weight in changed.items() if name in self.weights}
        try:
            base = self.run(inputs, keep=self.needs(values))
            ours = self.resume(base, values)
        except (RuntimeError, IndexError, ValueError, TypeError):
            return False  # a number that the recording took for fixed was of the inputs
        return same(theirs, ours)

    def holds(self, inputs: Tensor, outputs: Tensor) -> bool:
        """Whether it gives the network's outputs for these inputs; only a program whose way was decided is tried.

        What decides does not depend on weights: where it holds for the intact network, it does for damaged ones.

        Args:
            inputs: [examples, ...].
            outputs: Of the network that was recorded.
        """
        if not self.decided:
            return True
        try:
            return near(self.run(inputs)[self.output], outputs)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            if "memory" in str(error):
                raise
            return False  # a number that was taken for fixed depends on the inputs

    def exchanges(self, net: Network, names: Iterable[str]) -> bool:
        """Whether some weights can be exchanged: nothing computed from them has left the tensors on the way.

        Args:
            net: The network that was recorded.
            names: Of weights, which are tried with noise on them.
        """
        assert net.inputs is not None
        changed = {}
        for name in names:
            weight = net.weights[name]
            noise = torch.randn(weight.shape, generator=stream(0, "exchanged", name)).to(weight)
            changed[name] = weight + 0.3 * noise * weight.abs().mean()
        return self._repeats(net, examples_of(net.inputs, MORE), changed)

    def _ordered(self, rows: Mapping[int, Rows], inputs: Tensor, layout: Layout | None) -> dict[int, Rows]:
        """Rows with the order of examples found out by changing one example and looking at what changes."""
        first = examples_of(inputs, MORE)
        second = first.clone()
        second[0] = other_than(first, layout)[0]
        if torch.equal(first, second) and not first.is_floating_point():
            second[0] = (first[0] + 1) % (int(first.max()) + 1)
        try:
            one, other = (self.run(x, keep=rows) for x in (first, second))
        except (RuntimeError, IndexError):
            one = other = self.run(first, keep=rows)
        found = {self.input: Rows(0)}
        for at, place in rows.items():
            apart = ~_alike(one[at], other[at]).movedim(place.axis, 0).reshape(one[at].shape[place.axis], -1).all(1)
            changed = apart.nonzero().flatten()
            together, turns = bool((changed < place.per).all()), bool((changed % MORE == 0).all())
            if place.per == 1 and together:
                found[at] = place
            elif place.per > 1 and together != turns:  # else nothing changed, or more than one example
                found[at] = replace(place, together=together)
        return found

    @property
    def work(self) -> int:
        """Multiply-adds of a whole pass, per example."""
        return sum(op.work for op in self.ops if op.live)

    @without_tf32()
    def run(self, inputs: Tensor, keep: Iterable[int] = ()) -> dict[int, Tensor]:
        """The whole pass.

        Args:
            inputs: [examples, ...].
            keep: Values to be kept beside the outputs, for example what `needs` names.

        Returns:
            Value -> tensor, for what is kept, held, and the outputs.
        """
        kept = {self.output, self.input, *keep}
        values = {**self.held, self.input: inputs}
        with torch.no_grad():
            for op, last in self._suffix(frozenset([self.input]), kept):
                self._step(op, values, len(inputs))
                for dead in last:
                    del values[dead]
        return values

    def resume(
        self, base: Mapping[int, Tensor], changed: Mapping[int, Tensor], edits: Mapping[int, Edit] | None = None
    ) -> Tensor:
        """Outputs when some values are exchanged: what depends on them is run again, nothing else.

        Args:
            base: From `run`, with what `needs` names kept.
            changed: Value -> other tensor.
            edits: Value -> function that is applied to it as soon as it has been made again; those that are not made
                again, because nothing before them has changed, must be in `changed`.

        Returns:
            [examples, ...].
        """
        values = {**base, **changed}
        examples = len(base[self.input])
        with torch.no_grad():
            for op, last in self._suffix(frozenset(changed), {self.output, *(edits or ())}):
                self._step(op, values, examples)
                if edits:
                    for write in op.writes:
                        if write is not None and write in edits:
                            values[write] = edits[write](values[write])
                for dead in last:
                    del values[dead]
        return values[self.output]

    def silence(self, base: Mapping[int, Tensor], units: Mapping[str, Sequence[int]]) -> Tensor:
        """Outputs with some units silenced, bit-identical to zeroing what they emit.

        Args:
            base: From `run`, with what `needs(self.first(units))` names and `first` itself kept.
            units: Layer -> numbers of units; all layers must have gates.
        """
        edits: dict[int, Edit] = {}
        for layer, numbers in units.items():
            for gate in self.gates[layer]:
                before = edits.get(gate.at)
                edits[gate.at] = _closing(gate, numbers, before)
        first = self.first(units)
        return self.resume(base, {at: edits[at](base[at]) for at in first}, edits)

    def first(self, layers: Iterable[str]) -> frozenset[int]:
        """Gates of some layers that depend on no other gate of theirs: where a resumed pass begins."""
        gates = frozenset(gate.at for layer in layers for gate in self.gates[layer])
        if len(gates) < 2:
            return gates
        known = self._firsts.get(gates)
        if known is None:
            dirty: set[int] = set()
            found: set[int] = set()
            for op in self.ops:
                after = any(read in dirty for read in op.reads)
                made = {write for write in op.writes if write is not None}
                found |= set() if after else made & gates
                dirty |= made if after else made & gates
            known = self._firsts[gates] = frozenset(found)
        return known

    def needs(self, changed: Iterable[int]) -> set[int]:
        """Values that `resume` reads when these are exchanged, apart from them and from held ones."""
        changed = frozenset(changed)
        made = set(changed)
        needed: set[int] = set() if self._suffix(changed, {self.output}) else {self.output}
        for op, _ in self._suffix(changed, {self.output}):
            needed |= set(op.reads) - made
            made |= {write for write in op.writes if write is not None}
        return needed - self.held.keys()

    def remaining(self, changed: Iterable[int]) -> int:
        """Multiply-adds per example that `resume` spends when these values are exchanged."""
        return sum(op.work for op, _ in self._suffix(frozenset(changed), {self.output}))

    def pick(self, base: Mapping[int, Tensor], values: Iterable[int], rows: Tensor) -> dict[int, Tensor]:
        """Values of some examples, in any order and number, as a base to resume from.

        They lie in memory as the whole values do: recorded operations may count on that.

        Args:
            base: From `run`.
            values: Which values; all must have rows.
            rows: Numbers of examples, [n].
        """
        total = len(base[self.input])
        picked = dict(self.held)
        for at in {self.input, *values}:
            value, place = base[at], self.rows[at]
            order = sorted(range(value.ndim), key=value.stride, reverse=True)
            some = value.permute(order).index_select(order.index(place.axis), place.places(rows, total))
            picked[at] = some.permute([order.index(axis) for axis in range(value.ndim)])
        return picked

    def slopes(self, inputs: Tensor, at: Sequence[int], value_of: Any) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Derivatives of a number per example with respect to some values.

        Args:
            inputs: [examples, ...].
            at: Values.
            value_of: Outputs -> [examples].

        Returns:
            The numbers, and for each value the pair (value, derivative).
        """
        values = {**self.held, self.input: inputs}
        wanted = set(at)
        with torch.inference_mode(False), torch.enable_grad():
            for op in self.ops:
                if op.live and any(write is not None for write in op.writes):
                    self._step(op, values, len(inputs))
                    for write in op.writes:
                        if write in wanted and not values[write].requires_grad:
                            values[write] = values[write].detach().requires_grad_()
            numbers = value_of(values[self.output])
            moving = [a for a in at if values[a].requires_grad]  # the inputs may be among `at`
            found = torch.autograd.grad(numbers.sum(), [values[a] for a in moving], allow_unused=True)
        slopes = dict(zip(moving, found, strict=True))
        pairs = [(values[a].detach(), torch.zeros_like(values[a]) if slopes.get(a) is None else slopes[a]) for a in at]
        return numbers.detach(), pairs

    def products(self, layer: str) -> frozenset[int]:
        """What the products make that read a layer of `reads`."""
        made = (self.ops[read.op].writes[0] for read in self.reads[layer])
        return frozenset(out for out in made if out is not None)

    def without(self, layer: str, base: Mapping[int, Tensor], unit: int) -> dict[int, Tensor]:
        """Products that read a unit, less its contribution: what is to be exchanged to silence it.

        Args:
            layer: One of `reads`.
            base: From `run`, with what is read and made kept.
            unit: Number in the layer.
        """
        found = {}
        for read in self.reads[layer]:
            op, columns = self.ops[read.op], (read.owner == unit).nonzero().flatten()
            out = op.writes[0]
            if out is None or not len(columns):
                continue  # another part of the layer is read here
            x, first, count = base[read.at], int(columns[0]), len(columns)
            columns = columns.to(x.device)
            together = int(columns[-1]) - first + 1 == count
            x = x.narrow(read.axis, first, count) if together else x.index_select(read.axis, columns)
            part = self._weight(read, base).index_select(0, columns)
            if op.name == "convolution":
                found[out] = base[out] - op.function(x, part.transpose(0, 1), None, *op.args[3:])
            elif count == 1:  # rank one: no product needed
                found[out] = torch.addcmul(base[out], x, part[0], value=-1)
            else:
                found[out] = base[out] - x @ part
        return found

    def outweighing(self, layer: str, base: Mapping[int, Tensor]) -> frozenset[int]:
        """Units of which so much hangs, in some product for some example, that `without` would leave only rounding.

        Args:
            layer: One of `reads`.
            base: As for `without`.
        """
        found: set[int] = set()
        for read in self.reads[layer]:
            x, weight = base[read.at], self._weight(read, base)
            place = self.rows.get(read.at)
            lines = x.abs().movedim(read.axis, -1)
            if place is None or place.axis == read.axis:
                peaks = lines.reshape(1, -1, x.shape[read.axis]).amax(1)
            else:
                at = place.axis - (place.axis > read.axis)
                peaks = lines.movedim(at, 0).reshape(x.shape[place.axis], -1, x.shape[read.axis]).amax(1)
            size = peaks * weight.abs().flatten(1).amax(1)
            owner = read.owner.to(size.device) + 1
            size = size.new_zeros(len(size), int(owner.max()) + 1).index_add_(1, owner, size)
            others = size.sum(1, keepdim=True) - size
            heavy = (size != 0) & ~(size <= OUTWEIGHS * others)
            found |= set((heavy.any(0).nonzero().flatten() - 1).tolist())
        return frozenset(found)

    def _weight(self, read: Read, base: Mapping[int, Tensor]) -> Tensor:
        """The weight of a product, what it reads along the first axis."""
        op = self.ops[read.op]
        weight = base[op.args[2 if op.name == "addmm" else 1].at]
        return weight if op.name in {"mm", "addmm"} else weight.transpose(0, 1)

    def _step(self, op: Op, values: dict[int, Tensor], examples: int) -> None:
        result = op(values, examples)
        if len(op.writes) == 1 and isinstance(result, Tensor):
            if op.writes[0] is not None:
                values[op.writes[0]] = result
            return
        for write, tensor in zip(op.writes, result, strict=True):
            if write is not None:
                values[write] = tensor

    def _suffix(self, changed: frozenset[int], kept: set[int]) -> tuple[tuple[Op, tuple[int, ...]], ...]:
        """Operations to run again, each with the values that nothing reads afterwards."""
        whole = self.input in changed
        key = changed | {-1 - at for at in kept}
        known = self._suffixes.get(key)
        if known is not None:
            return known
        dirty, order = set(changed), []
        for at, op in enumerate(self.ops):
            if (whole and op.live) or any(read in dirty for read in op.reads):
                if all(write is None or write in changed for write in op.writes):
                    continue  # its result has been exchanged
                order.append(at)
                dirty |= {write for write in op.writes if write is not None}
        # Backwards: what the outputs do not depend on need not be run.
        needed, useful = set(kept), []
        for at in reversed(order):
            if any(write in needed for write in self.ops[at].writes):
                useful.append(at)
                needed |= set(self.ops[at].reads)
        useful.reverse()
        running = self._fused(useful, {*changed, *kept}, dirty)
        last: dict[int, int] = {}
        made: set[int] = set()
        for at, op in enumerate(running):
            made |= {write for write in op.writes if write is not None}
            last |= dict.fromkeys([*op.reads, *(w for w in op.writes if w is not None)], at)
        ends: dict[int, list[int]] = {}
        for value, at in last.items():
            if value in made and value not in kept:
                ends.setdefault(at, []).append(value)
        found = tuple((op, tuple(ends.get(at, ()))) for at, op in enumerate(running))
        if len(self._suffixes) > 4096:  # lesions of many sites at once
            self._suffixes.clear()
        self._suffixes[key] = found
        return found

    def _fused(self, order: list[int], wanted: set[int], dirty: set[int]) -> list[Op]:
        """These operations, with groups as one where nothing inside them is wanted and their weights are intact."""
        ops = {at: self.ops[at] for at in order}
        for group in self.fused:
            if all(at in ops for at in group.members) and not group.inner & wanted and not group.built & dirty:
                for at in group.members[:-1]:
                    del ops[at]
                ops[group.members[-1]] = group.op
        return list(ops.values())


def _closing(gate: Gate, units: Sequence[int], before: Edit | None) -> Edit:
    """Edit that silences units, after another edit of the same value."""
    return lambda value: gate.silenced(value if before is None else before(value), units)


def near(found: Tensor, truth: Tensor) -> bool:
    """Whether outputs are the same up to rounding: where they are finite, within 1e-4 of the largest (coarse: 16 ulp).

    Args:
        found: Any shape.
        truth: Outputs to compare with.
    """
    if found.shape != truth.shape or found.dtype != truth.dtype:
        return False
    finite = truth.isfinite()
    if not torch.equal(found.isfinite(), finite):
        return False
    spacing = torch.finfo(truth.dtype).eps if truth.is_floating_point() else 0.0
    found, truth = found[finite].double(), truth[finite].double()
    return not len(truth) or bool((found - truth).abs().amax() <= max(NEAR, 16 * spacing) * truth.abs().amax())


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal bit by bit (NaN equals NaN)."""
    return one.shape == other.shape and one.dtype == other.dtype and bool(_alike(one, other).all())


def _alike(one: Tensor, other: Tensor) -> Tensor:
    return (one == other) | ((one != one) & (other != other))
