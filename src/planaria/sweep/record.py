"""Recording: two passes over a few examples become one list of operations for any number of examples.

The pass is recorded below autograd for two and for three examples; what differs between the two recordings is what
grows with the number of examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from planaria.core.graph import SHAPED, Call, Graph, Value, needed_calls, trace, walk
from planaria.core.network import Network
from planaria.core.port import Layout

FEW, MORE = 2, 3
"""Examples of the two recordings."""

COARSE = 1e-6
"""Relative spacing of numbers above which rounding decides predictions: that of half precision is 1e-3."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A value of the program, by number."""

    at: int


@dataclass(frozen=True, slots=True)
class Sized:
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
        plain: Whether all that is open are values that are arguments by themselves, not parts of lists.
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
    plain: bool

    @staticmethod
    def of(
        call: Call, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], writes: tuple[int | None, ...]
    ) -> Op:
        """An operation as recorded, not known to be live."""
        reads = tuple(dict.fromkeys(slot.at for slot in leaves((args, kwargs), Slot)))
        plain = not leaves((kwargs, [a for a in args if type(a) is not Slot]), Slot, Sized)
        return Op(call.tag, call.name, function, args, kwargs, False, reads, writes, _work(call) // MORE, plain)

    @property
    def grows(self) -> bool:
        """Whether it is called with a number that grows with the examples."""
        return bool(leaves((self.args, self.kwargs), Sized))

    def __call__(self, values: Mapping[int, Tensor], examples: int) -> Any:
        """Run it on the given values."""
        if self.plain:
            args = [values[a.at] if type(a) is Slot else a for a in self.args]
            return self.function(*args, **self.kwargs) if self.kwargs else self.function(*args)
        args = [_filled(argument, values, examples) for argument in self.args]
        named = {name: _filled(argument, values, examples) for name, argument in self.kwargs.items()}
        return self.function(*args, **named)


def _filled(leaf: Any, values: Mapping[int, Tensor], examples: int) -> Any:
    """An argument with what was left open."""
    kind = type(leaf)
    if kind is Slot:
        return values[leaf.at]
    if kind is Sized:
        return leaf.per * examples
    if kind is list or kind is tuple:
        return kind([_filled(branch, values, examples) for branch in leaf])
    return leaf


@dataclass(frozen=True, eq=False)
class Recording:
    """What a network computes, as a program without knowledge of its units.

    Attributes:
        ops: In order.
        held: Values that are the same for all inputs.
        weights: Name of the weight -> its value.
        input: The inputs' value.
        output: The outputs' value.
        rows: Value -> where its examples are, taken to be together and in order.
        bytes: Value -> bytes per example.
        coarse: Whether some numbers have so few digits that rounding decides predictions.
        decided: Whether the inputs decided the way, so that others may take another one.
        graph: The larger recording, for following units.
        values: Value -> what it is there.
    """

    ops: tuple[Op, ...]
    held: Mapping[int, Tensor]
    weights: Mapping[str, int]
    input: int
    output: int
    rows: Mapping[int, Rows]
    bytes: Mapping[int, int]
    coarse: bool
    decided: bool
    graph: Graph
    values: Mapping[int, Value]


def record(net: Network) -> Recording | str:
    """Record a network's pass, or say why it cannot be replayed.

    Args:
        net: A network with example inputs; its weights are shared, not copied.
    """
    assert net.inputs is not None
    try:
        few, more = (trace(net, examples_of(net.inputs, count)) for count in (FEW, MORE))
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        return f"it could not be recorded: {(str(error).splitlines() or ['no message'])[0][:120]}"
    if [call.tag for call in few.calls] != [call.tag for call in more.calls]:
        return "it takes another way for another number of examples"
    if len(more.outputs) != 1:
        return f"it returns {len(more.outputs)} tensors"
    joining = _Joining(few, more)
    needed = sorted(needed_calls(more.calls, more.outputs))
    for at in needed:
        reason = joining.add(at)
        if reason:
            return reason
    return joining.recording()


def examples_of(inputs: Tensor, count: int) -> Tensor:
    """So many of the example inputs, each another one where they allow it."""
    rows = torch.arange(count, device=inputs.device) % len(inputs)
    return inputs.detach()[rows]


def other_than(inputs: Tensor, layout: Layout | None = None) -> Tensor:
    """Inputs of another kind than these, which a network that takes these should take."""
    mixed = inputs.roll(1, 0)  # whole numbers that are known at their place
    if inputs.ndim > 1:
        mixed[:, ::2] = inputs[:, ::2]
    if not inputs.is_floating_point():
        return mixed
    # Numbers that are never negative may be places in a table.
    moved = inputs * (0.7 if bool((inputs >= 0).all()) else -1.3) + 0.1
    return moved if layout is None else torch.where(layout.real.to(inputs.device), moved, mixed)


def leaves(tree: Any, *kinds: type) -> list[Any]:
    """Leaves of some types in a nested structure, in order."""
    found: list[Any] = []
    walk(tree, lambda leaf: found.append(leaf) if type(leaf) in kinds else None)
    return found


class _Joining:
    """Two recordings on their way to one."""

    def __init__(self, few: Graph, more: Graph) -> None:
        self._few, self._more = few, more
        self._slots: dict[int, int] = {}
        self._ops: list[Op] = []
        self._made: set[int] = set()
        self._live: set[int] = set()
        self._held: dict[int, Tensor] = {}
        self._weights: dict[str, int] = {}
        self._inputs: set[int] = set()
        self._pairs: list[tuple[Value, Value]] = []
        self._weighed: set[int] = set()
        self._decided = False

    def _slot(self, value: Value) -> int:
        return self._slots.setdefault(id(value), len(self._slots))

    def add(self, at: int) -> str:
        """The next call; the reason if it cannot be replayed, else ""."""
        small, large = self._few.calls[at], self._more.calls[at]
        if self._is_constant(small, large):
            for value in large.outputs:
                if value is not None:
                    self._made.add(self._slot(value))
                    self._held[self._slot(value)] = value.tensor
            return ""
        reason = _obstacle(large, self._more, at)
        if reason:
            return reason
        if any(value.sources or id(value) in self._weighed for value in large.inputs):
            self._weighed |= {id(value) for value in large.outputs if value is not None}
        if large.outputs and not any(large.outputs) and any(value.active for value in large.inputs):
            # A number that leaves the tensors decides something in Python. What only the inputs decide holds for every
            # lesion: whether it holds for other inputs can be seen from the intact network.
            if any(id(value) in self._weighed for value in large.inputs):
                return "data decides what it computes"
            self._decided = True
        args, kwargs = (self._template(*both) for both in ((small.args, large.args), (small.kwargs, large.kwargs)))
        if args is None or kwargs is None:
            return f"{large.name} is called with numbers that change with the examples in no simple way"
        for value in large.arguments:
            self._enter(value)
        # What an operation in place does to other views of the same memory is read by nobody, see `_obstacle`.
        results = large.outputs if not large.function._schema.is_mutable else large.outputs[:1]
        writes = tuple(
            None if value is None or not _kept(value, self._more) else self._slot(value) for value in results
        )
        op = Op.of(large, large.functional, args, kwargs, writes)
        op = replace(op, live=op.grows or any(read in self._live for read in op.reads))
        self._ops.append(op)
        for result, write in zip(results, writes, strict=True):
            if write is not None and result is not None:
                self._made.add(write)
                (self._live.add(write) if op.live else self._held.update({write: result.tensor}))
        self._pairs += [
            (s, m) for s, m in zip(small.outputs, large.outputs, strict=True) if s is not None and m is not None
        ]
        return ""

    def _is_constant(self, small: Call, large: Call) -> bool:
        """Whether neither inputs nor weights nor the number of examples have a part in what a call makes."""
        made = [value for value in large.outputs if value is not None]
        if not made or any(value.active or value.sources for value in made):
            return False
        if large.name not in SHAPED and any(self._slots.get(id(value)) in self._live for value in large.inputs):
            return False
        pairs = zip(small.outputs, large.outputs, strict=True)
        return all(m is None or (s is not None and _equal(s.tensor, m.tensor)) for s, m in pairs)

    def _enter(self, value: Value) -> None:
        """Note an argument that no earlier call has made: a weight, a constant, the inputs."""
        at = self._slot(value)
        if at in self._made:
            return
        if value.active:
            self._inputs.add(at)
            self._live.add(at)
        else:
            self._held[at] = value.tensor
            if value.weight is not None:
                self._weights[value.weight] = at

    def _template(self, few: Any, more: Any) -> Any:
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
                return Slot(self._slot(other))
            if one is other or one == other or (one != one and other != other):
                return other
            grows = isinstance(one, int) and isinstance(other, int) and one * MORE == other * FEW and one % FEW == 0
            failed = failed or not grows
            return Sized(one // FEW) if grows else other

        joined = join(few, more)
        return None if failed else joined

    def recording(self) -> Recording | str:
        """The whole, or why there is none."""
        output = self._slot(self._more.outputs[0])
        if len(self._inputs) != 1 or output not in self._live:
            return "its outputs do not depend on its inputs"
        start = self._inputs.pop()
        rows, sizes, coarse = {start: Rows(0)}, {}, False
        for small, large in self._pairs:
            at = self._slots.get(id(large))
            if at is None or not (large.active or at in self._live):
                continue
            tensor = large.tensor
            axis = _grown(small.tensor.shape, tensor.shape)
            if not large.active and (axis is None or not bool((tensor == tensor.narrow(axis, 0, 1)).all())):
                continue  # only the count of examples decides these numbers: whose they are cannot be said
            sizes[at] = tensor.numel() * tensor.element_size() // MORE
            coarse = coarse or (tensor.is_floating_point() and torch.finfo(tensor.dtype).eps > COARSE)
            if axis is not None:
                rows[at] = Rows(axis, tensor.shape[axis] // MORE)
        known = {id(value): value for call in self._more.calls for value in call.outputs if value is not None}
        return Recording(
            ops=tuple(self._ops),
            held=self._held,
            weights=self._weights,
            input=start,
            output=output,
            rows=rows,
            bytes=sizes,
            coarse=coarse,
            decided=self._decided,
            graph=self._more,
            values={at: known[key] for key, at in self._slots.items() if key in known},
        )


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(((one == other) | (one != one)).all())


def _grown(few: torch.Size, more: torch.Size) -> int | None:
    """The axis of the examples: the one that is longer with more of them, if exactly one is, by as much."""
    if len(few) != len(more):
        return None
    grown = [axis for axis in range(len(more)) if few[axis] != more[axis]]
    return grown[0] if len(grown) == 1 and few[grown[0]] * MORE == more[grown[0]] * FEW else None


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
    active = any(value.active for value in call.inputs) and any(call.outputs)
    shapes = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
    if call.name == "index" and all(value.tensor.dtype is not torch.bool for value in call.arguments[1:]):
        shapes = set()  # picked by number, not by condition
    if active and shapes & set(call.function.tags):
        return f"the shape of what {call.name} returns depends on the data"
    return ""


def _work(call: Call) -> int:
    """Multiply-adds of a call, for all examples of its trace."""
    formula = flop_registry.get(call.function.overloadpacket)
    if formula is None:
        return _work_of_weights(call)
    tensors = walk((call.args, call.kwargs), lambda leaf: leaf.tensor if isinstance(leaf, Value) else leaf)
    outs = [value.tensor for value in call.outputs if value is not None]
    try:
        return int(formula(*tensors[0], **tensors[1], out_val=outs[0] if len(outs) == 1 else tuple(outs))) // 2
    except (TypeError, ValueError, IndexError, AttributeError, AssertionError):
        return 0  # an operation of another signature counts as free; only the plan's estimate suffers


def _work_of_weights(call: Call) -> int:
    """Multiply-adds of an operation without a formula, a recurrence for example: each weight once per position."""
    made = call.outputs[0]
    if call.pointwise or call.rearranges or call.name == "embedding" or made is None or made.tensor.ndim == 0:
        return 0
    matrices = [value for value in call.arguments if value.sources and not value.active and value.tensor.ndim > 1]
    positions = made.tensor.numel() // max(1, made.tensor.shape[-1])
    return positions * sum(value.tensor.numel() for value in matrices)
