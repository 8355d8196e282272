"""Programs: a network's forward pass as a list of tensor operations that can be resumed anywhere.

The pass is recorded below autograd for two and for three examples; what differs between the two recordings is what
grows with the number of examples, so that one program serves any number. A damaged network shares everything before
the damage with the intact one: only what depends on the damaged values is run again, by the very same operations, and
the result is bit-identical to running the whole damaged network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from planaria.core.anatomy import Anatomy, Group
from planaria.core.follow import descend
from planaria.core.graph import Call, Graph, Value, trace, walk
from planaria.core.network import Network

_FEW, _MORE = 2, 3

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Slot:
    """A value of the program, by number."""

    at: int


@dataclass(frozen=True, slots=True)
class _Sized:
    """A whole number that grows with the examples: `per` for each."""

    per: int


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the examples are in a value: along `axis`, `per` places each, those of one example together or not."""

    axis: int
    per: int = 1
    together: bool = True

    def places(self, rows: Tensor, examples: int) -> Tensor:
        """Places along the axis of the given examples, of `examples` in all."""
        if self.per == 1:
            return rows
        inner = torch.arange(self.per, device=rows.device)
        if self.together:
            return (rows[:, None] * self.per + inner).reshape(-1)
        return (inner[:, None] * examples + rows).reshape(-1)


@dataclass(frozen=True, eq=False)
class Op:
    """One operation: `function(*args, **kwargs)`, values and growing numbers left open.

    Attributes:
        tag: Name among the operations of the pass, as in the anatomy's gates.
        name: Of the operation, for example "convolution".
        live: Whether it must be run for every input; else its results are known.
        reads: Values it reads.
        writes: Values it makes; None for results that are no tensors or that nothing reads.
        work: Multiply-adds per example.
    """

    tag: str
    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    live: bool
    reads: tuple[int, ...]
    writes: tuple[int | None, ...]
    work: int
    flat: bool
    """Whether all open values are arguments by themselves, not parts of lists."""
    sized: bool

    def __call__(self, values: Mapping[int, Tensor], examples: int) -> Any:
        """Run it on the given values."""
        args: Any = self.args
        if self.flat and not self.sized:
            args = [values[a.at] if type(a) is Slot else a for a in args]
            return self.function(*args, **self.kwargs) if self.kwargs else self.function(*args)

        def fill(leaf: Any) -> Any:
            if type(leaf) is Slot:
                return values[leaf.at]
            return leaf.per * examples if type(leaf) is _Sized else leaf

        return self.function(*walk(args, fill), **walk(self.kwargs, fill))


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
            return value.masked_fill(shut.reshape(shape), 0)
        if self.rows.per > 1:
            together = self.rows.together
            shut = shut.repeat_interleave(self.rows.per, 0) if together else shut.repeat(self.rows.per, 1)
        shape[self.rows.axis] = value.shape[self.rows.axis]
        shut = shut if self.rows.axis < self.axis else shut.T
        return value.masked_fill(shut.reshape(shape), 0)

    def silenced(self, value: Tensor, units: Sequence[int]) -> Tensor:
        """The value with the same units silenced in every example."""
        shut = torch.isin(self.owner, torch.tensor(list(units)))
        if self.axis == self.rows.axis:
            times = value.shape[self.axis] // len(shut)
            shut = shut.repeat(times) if self.rows.together else shut.repeat_interleave(times)
        return value.clone().index_fill_(self.axis, shut.nonzero().flatten().to(value.device), 0)


@dataclass(frozen=True, eq=False)
class Read:
    """A product that reads a layer's units and through which alone they act: op, value read, its columns' owners."""

    op: int
    at: int
    axis: int
    owner: Tensor


@dataclass(frozen=True, eq=False)
class Program:
    """A recorded forward pass.

    Attributes:
        ops: In order.
        held: Values that are the same for all inputs: weights, buffers, what is computed from them.
        weights: Name of the weight -> its value.
        input: The inputs' value.
        output: The outputs' value.
        rows: Value -> where the examples are, for values whose rows can be picked.
        gates: Layer -> its gates; empty where the units cannot be gated here.
        reads: Layer -> the products through which alone its units act, if that is so.
        bytes: Value -> bytes per example.
        fused: Groups of operations that may run as one.
        exact: Whether resuming it is bit-identical to the network itself (else equal up to rounding).

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
    exact: bool = True
    fused: tuple[Fused, ...] = ()
    _suffixes: dict[frozenset[int], tuple[tuple[Op, tuple[int, ...]], ...]] = field(default_factory=dict, repr=False)
    _firsts: dict[frozenset[int], frozenset[int]] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(net: Network) -> Program | str:
        """Record a network's pass, or say why it cannot be replayed.

        Args:
            net: A network with example inputs; its weights are shared, not copied.
        """
        assert net.inputs is not None
        try:
            few, more = (trace(net, _examples(net.inputs, count)) for count in (_FEW, _MORE))
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            return f"it could not be recorded: {(str(error).splitlines() or ['no message'])[0][:120]}"
        program = _compile(few, more, net)
        if isinstance(program, str):
            return program
        probe = _examples(net.inputs, 5)
        for inputs in (probe, probe * -1.3 + 0.1) if probe.is_floating_point() else (probe,):
            if not program._repeats(net, inputs):
                return "replaying its recorded pass on other inputs gives other outputs"
        return program

    def _repeats(self, net: Network, inputs: Tensor) -> bool:
        theirs = net(inputs)
        try:
            ours = self.run(inputs)[self.output]
        except (RuntimeError, IndexError, ValueError, TypeError):
            return False  # a number that the recording took for fixed was of the inputs
        return theirs.shape == ours.shape and torch.equal(theirs.nan_to_num(), ours.nan_to_num())

    @property
    def work(self) -> int:
        """Multiply-adds of a whole pass, per example."""
        return sum(op.work for op in self.ops if op.live)

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
            edits: Value -> function that is applied to it as soon as it has been made again; the values are those of
                `later`, or are changed already.

        Returns:
            [examples, ...].
        """
        values = {**base, **changed}
        examples = len(base[self.input])
        with torch.no_grad():
            for op, last in self._suffix(frozenset(changed), {self.output, *(edits or ())}):
                self._step(op, values, examples)
                for write in op.writes if edits else ():
                    if write in edits and write is not None:  # type: ignore[operator]
                        values[write] = edits[write](values[write])  # type: ignore[index]
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
            found = set()
            for op in self.ops:
                after = any(read in dirty for read in op.reads)
                for write in op.writes:
                    if write in gates and not after:
                        found.add(write)
                    if write is not None and (after or write in gates):
                        dirty.add(write)
            known = self._firsts[gates] = frozenset(at for at in found if at is not None)
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

        Args:
            base: From `run`.
            values: Which values; all must have rows.
            rows: Numbers of examples, [n].
        """
        total = len(base[self.input])
        picked = {**self.held, self.input: base[self.input][rows]}
        for at in values:
            if at != self.input:
                place = self.rows[at]
                picked[at] = base[at].index_select(place.axis, place.places(rows, total))
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
                if op.live:
                    self._step(op, values, len(inputs))
                    for write in op.writes:
                        if write in wanted and not values[write].requires_grad:
                            values[write] = values[write].detach().requires_grad_()
            numbers = value_of(values[self.output])
            found = torch.autograd.grad(numbers.sum(), [values[a] for a in at], allow_unused=True)
        pairs = [
            (values[a].detach(), torch.zeros_like(values[a]) if slope is None else slope)
            for a, slope in zip(at, found, strict=True)
        ]
        return numbers.detach(), pairs

    def read(self, read: Read, base: Mapping[int, Tensor], unit: int) -> tuple[int, Tensor]:
        """The output of a product without the contribution of one unit: (value, tensor)."""
        op = self.ops[read.op]
        out = op.writes[0]
        assert out is not None
        columns = (read.owner == unit).nonzero().flatten()
        first, count = int(columns[0]), len(columns)
        x = base[read.at]
        if int(columns[-1]) - first + 1 == count:
            x = x.narrow(read.axis, first, count)
        else:
            x = x.index_select(read.axis, columns.to(x.device))
        if op.name == "convolution":
            weight = base[op.args[1].at].index_select(1, columns.to(x.device))
            return out, base[out] - op.function(x, weight, None, *op.args[3:])
        place = 1 if op.name in {"mm", "linear"} else 2
        weight = base[op.args[place].at]
        weight = weight.T if op.name == "linear" else weight
        part = weight.index_select(0, columns.to(x.device))
        if count == 1:  # rank one: no product needed
            return out, torch.addcmul(base[out], x, part[0], value=-1)
        return out, base[out] - x @ part

    def _step(self, op: Op, values: dict[int, Tensor], examples: int) -> None:
        result = op(values, examples)
        if len(op.writes) == 1 and isinstance(result, Tensor):
            if op.writes[0] is not None:
                values[op.writes[0]] = result
            return
        for write, tensor in zip(op.writes, result, strict=False):
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


def _examples(inputs: Tensor, count: int) -> Tensor:
    """Rows of the example inputs, each another one where they allow it."""
    rows = torch.arange(count, device=inputs.device) % len(inputs)
    return inputs.detach()[rows]


def _compile(few: Graph, more: Graph, net: Network) -> Program | str:
    """A program from recordings of two and of three examples, or why there is none."""
    if [call.tag for call in few.calls] != [call.tag for call in more.calls]:
        return "it takes another way for another number of examples"
    if len(few.outputs) != 1:
        return f"it returns {len(few.outputs)} tensors"
    needed = _needed(more)
    slots: dict[int, int] = {}

    def slot(value: Value) -> int:
        return slots.setdefault(id(value), len(slots))

    pairs: list[tuple[Value, Value]] = []
    ops: list[Op] = []
    made: set[int] = set()
    live: set[int] = set()
    held: dict[int, Tensor] = {}
    weights: dict[str, int] = {}
    inputs: set[int] = set()
    for at in needed:
        small, large = few.calls[at], more.calls[at]
        reason = _obstacle(large, more, at)
        if reason:
            return reason
        args = _template(small.args, large.args, slot)
        kwargs = _template(small.kwargs, large.kwargs, slot)
        if args is None or kwargs is None:
            return f"{large.name} is called with numbers that change with the examples in no simple way"
        reads = tuple(dict.fromkeys(slot(value) for value in large.arguments))
        for value in large.arguments:
            at_value = slot(value)
            if at_value in made:
                continue
            if value.active:
                inputs.add(at_value)
                live.add(at_value)
            else:
                held[at_value] = value.tensor
                if value.weight is not None:
                    weights[value.weight] = at_value
        grows = _holds((args, kwargs), _Sized)
        moves = grows or any(read in live for read in reads)
        results = large.outputs if not large.function._schema.is_mutable else large.outputs[:1]
        writes = tuple(None if value is None or not _kept(value, more) else slot(value) for value in results)
        for result, write in zip(results, writes, strict=True):
            if write is not None and result is not None:
                made.add(write)
                (live.add(write) if moves else held.update({write: result.tensor}))
        pairs += [(s, m) for s, m in zip(small.outputs, large.outputs, strict=True) if s is not None and m is not None]
        flat = all(type(a) in {Slot, _Sized} or not _holds(a, Slot) for a in args) and not _holds(kwargs, Slot)
        ops.append(
            Op(
                large.tag,
                large.name,
                large.functional,
                args,
                kwargs,
                moves,
                reads,
                writes,
                _work(large) // _MORE,
                flat,
                grows,
            )
        )
    output = more.outputs[0]
    if len(inputs) != 1 or slot(output) not in live:
        return "its outputs do not depend on its inputs"
    rows, sizes = _layout(pairs, slots)
    start = inputs.pop()
    rows[start] = Rows(0)
    at_op = {op.tag: place for place, op in enumerate(ops)}
    program = Program(tuple(ops), held, weights, start, slot(output), rows, {}, {}, sizes)
    program = replace(program, rows=_ordered(program, net))
    gates, reading = _gates(program, more, net, slots, at_op)
    return replace(program, gates=gates, reads=reading, _suffixes={}, _firsts={})


def _needed(graph: Graph) -> list[int]:
    """Calls on which the outputs depend, and conditions."""
    makers = {id(value): at for at, call in enumerate(graph.calls) for value in call.outputs if value is not None}
    waiting = [makers[id(value)] for value in graph.outputs if id(value) in makers]
    waiting += [at for at, call in enumerate(graph.calls) if call.outputs and not any(call.outputs)]
    found: set[int] = set()
    while waiting:
        at = waiting.pop()
        if at not in found:
            found.add(at)
            waiting.extend(makers[id(value)] for value in graph.calls[at].inputs if id(value) in makers)
    return sorted(found)


def _kept(value: Value, graph: Graph) -> bool:
    return bool(value.uses) or graph.is_output(value)


def _obstacle(call: Call, graph: Graph, at: int) -> str:
    """Why a call cannot be replayed, "" if it can."""
    if call.functional is None:
        return f"{call.function} changes memory in place in a way that cannot be replayed"
    if any(_kept(value, graph) for value in call.overwritten):
        # What the other views hold now is one of the further outputs; nobody may read it later.
        changed = [value for value in call.outputs[1:] if value is not None]
        later = [graph.calls[use] for value in changed for use in value.uses if use > at]
        if any(value in reader.arguments for value in changed for reader in later) or any(
            graph.is_output(value) for value in changed
        ):
            return f"{call.function} changes memory that is read elsewhere"
    if call.function._schema.is_mutable and len(call.outputs) > 1 + len(call.overwritten):
        return f"{call.function} changes several tensors in place"
    if call.outputs and not any(call.outputs):
        # A number that leaves the tensors decides something in Python.
        return "data decides what it computes" if any(value.active for value in call.inputs) else ""
    active = any(value.active for value in call.inputs)
    shapes = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
    if active and shapes & set(call.function.tags):
        return f"the shape of what {call.name} returns depends on the data"
    return ""


_NONE = object()


def _template(few: Any, more: Any, slot: Any) -> Any:
    """Arguments with values and growing numbers left open; None if a number grows otherwise."""
    failed = False

    def join(one: Any, other: Any) -> Any:
        nonlocal failed
        if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)) and len(one) == len(other):
            joined = [join(a, b) for a, b in zip(one, other, strict=True)]
            return joined if isinstance(other, list) else tuple(joined)
        if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
            return {key: join(one[key], other[key]) for key in other}
        if isinstance(other, Value):
            failed = failed or not isinstance(one, Value)
            return Slot(slot(other))
        if one is other or one == other or (one != one and other != other):
            return other
        grows = isinstance(one, int) and isinstance(other, int) and one * _MORE == other * _FEW and one % _FEW == 0
        failed = failed or not grows
        return _Sized(one // _FEW) if grows else other

    joined = join(few, more)
    return None if failed else joined


def _holds(tree: Any, kind: type) -> bool:
    found = False

    def look(leaf: Any) -> Any:
        nonlocal found
        found = found or type(leaf) is kind
        return leaf

    walk(tree, look)
    return found


def _work(call: Call) -> int:
    """Multiply-adds of a call, for all examples of its trace."""
    formula = flop_registry.get(call.function.overloadpacket)
    if formula is None:
        return 0
    tensors = walk((call.args, call.kwargs), lambda leaf: leaf.tensor if isinstance(leaf, Value) else leaf)
    outs = [value.tensor for value in call.outputs if value is not None]
    try:
        return int(formula(*tensors[0], **tensors[1], out_val=outs[0] if len(outs) == 1 else tuple(outs))) // 2
    except (TypeError, ValueError, IndexError, AttributeError, AssertionError):
        return 0  # an operation of another signature counts as free; only the plan's estimate suffers


def _layout(pairs: list[tuple[Value, Value]], slots: Mapping[int, int]) -> tuple[dict[int, Rows], dict[int, int]]:
    """Value -> axis of its examples, where exactly one axis grows with them; and bytes per example."""
    rows: dict[int, Rows] = {}
    sizes: dict[int, int] = {}
    for small, large in pairs:
        at = slots.get(id(large))
        if at is None or not large.active:
            continue
        sizes[at] = large.tensor.numel() * large.tensor.element_size() // _MORE
        one, other = small.tensor.shape, large.tensor.shape
        grown = [axis for axis in range(len(other)) if len(one) == len(other) and one[axis] != other[axis]]
        if len(grown) == 1 and other[grown[0]] % _MORE == 0:
            rows[at] = Rows(grown[0], other[grown[0]] // _MORE)
    return rows, sizes


def _ordered(program: Program, net: Network) -> dict[int, Rows]:
    """Rows with the order of examples found out by changing one example and looking at what changes."""
    several = [at for at, place in program.rows.items() if place.per > 1]
    if not several:
        return dict(program.rows)
    assert net.inputs is not None
    first = _examples(net.inputs, _MORE)
    second = first.clone()
    if first.is_floating_point():
        second[0] = second[0] * -1.7 + 0.3
    else:
        second[0] = (first[0] + 1) % (int(first.max()) + 1)
    one, other = (program.run(x, keep=several) for x in (first, second))
    result = dict(program.rows)
    for at in several:
        place = program.rows[at]
        apart = (one[at] != other[at]).movedim(place.axis, 0).flatten(1).any(1).nonzero().flatten()
        together = bool((apart < place.per).all())
        apart_too = bool((apart % _MORE == 0).all())
        if not len(apart) or together == apart_too:
            del result[at]  # nothing changed, or both orders would explain it
        else:
            result[at] = replace(place, together=together)
    return result


def _gates(
    program: Program, graph: Graph, net: Network, slots: Mapping[int, int], at_op: Mapping[str, int]
) -> tuple[dict[str, tuple[Gate, ...]], dict[str, tuple[Read, ...]]]:
    """Gates of every layer with units, and the products through which alone they act."""
    known = {id(value): value for call in graph.calls for value in call.outputs if value is not None}
    of_slot = {slots[key]: value for key, value in known.items() if key in slots}
    gates: dict[str, tuple[Gate, ...]] = {}
    reading: dict[str, tuple[Read, ...]] = {}
    for group in Anatomy.of(net).groups:
        found = [_gate(program, tag, labels, group, at_op) for tag, labels in group.gates]
        if not found or any(gate is None for gate in found):
            continue
        gates[group.layer] = tuple(gate for gate in found if gate is not None)
        reads = _reads(program, graph, gates[group.layer], of_slot, slots)
        if reads:
            reading[group.layer] = reads
    return gates, reading


def _gate(program: Program, tag: str, labels: Tensor, group: Group, at_op: Mapping[str, int]) -> Gate | None:
    """A gate from the labels that the anatomy found on its own example inputs."""
    place = at_op.get(tag)
    at = None if place is None else program.ops[place].writes[0]
    rows = None if at is None else program.rows.get(at)
    if at is None or rows is None:
        return None
    varying = [axis for axis in range(labels.ndim) if not bool((labels == labels.narrow(axis, 0, 1)).all())]
    if not varying:
        other = next(axis for axis in range(labels.ndim) if axis != rows.axis)
        varying = [other]
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


def _reads(
    program: Program, graph: Graph, gates: Sequence[Gate], of_slot: Mapping[int, Value], slots: Mapping[int, int]
) -> tuple[Read, ...]:
    """Products through which alone gated units act; empty if they act otherwise too."""
    makers = {write: at for at, op in enumerate(program.ops) for write in op.writes if write is not None}
    found: list[Read] = []
    if len(gates) > 1:
        return ()  # what one gate closes may be read through another
    for gate in gates:
        value = of_slot[gate.at]
        if gate.axis == gate.rows.axis:
            return ()
        shape = [1] * value.tensor.ndim
        shape[gate.axis] = -1
        labels = gate.owner.view(shape).expand(value.tensor.shape)
        for end in descend(graph, value, labels):
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
    return tuple(found) if len({read.op for read in found}) == len(found) else ()
