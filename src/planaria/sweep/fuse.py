"""Fusion: neighbouring operations of a program as one, equal up to rounding and less traffic through memory.

A convolution with the batch normalisation, addition and ReLU behind it, or a linear layer with its activation, becomes
one operation. The program keeps the single ones too: where a value inside a group is wanted or exchanged, they run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from planaria.sweep.chain import fold
from planaria.sweep.program import Fused, Program
from planaria.sweep.record import Op, Slot

_NORMS = {"native_batch_norm", "_native_batch_norm_legit_no_training"}
_VIEWS = {"view", "_unsafe_view"}


def fuse(program: Program) -> Program:
    """The same program with groups of operations fused; no longer bit-identical to the network.

    Args:
        program: As recorded.

    Returns:
        A program with the same values, gates and reads.
    """
    # What is fused lies otherwise in memory, so that a view of it may have to be a copy.
    reshape = torch.ops.aten.reshape.default
    ops = tuple(replace(op, function=reshape) if op.name in _VIEWS else op for op in program.ops)
    program = replace(program, ops=ops)
    build = _Build(program, {}, max([*program.held, *program.bytes, program.input]) + 1)
    taken: set[int] = set()
    found: list[Fused] = []
    for at, op in enumerate(program.ops):
        group = None
        if op.name == "convolution":
            group = build.convolution(at)
        elif op.name == "addmm":
            group = build.linear(at)
        if group is not None and not taken & set(group.members):
            taken |= set(group.members)
            found.append(group)
    return replace(program, held={**program.held, **build.held}, fused=tuple(found))


@dataclass(eq=False)
class _Build:
    """Finds groups, and makes the values that they hold."""

    program: Program
    held: dict[int, Tensor]
    next: int

    def _hold(self, tensor: Tensor) -> Slot:
        self.held[self.next] = tensor
        self.next += 1
        return Slot(self.next - 1)

    def _only_reader(self, at: int) -> int | None:
        """The one operation that reads what operation `at` makes; None if there are several, or it is the output."""
        made = self.program.ops[at].writes[0]
        readers = [place for place, op in enumerate(self.program.ops) if made in op.reads]
        return readers[0] if len(readers) == 1 and made != self.program.output else None

    def _known(self, argument: Any) -> Tensor | None:
        return self.program.held.get(argument.at) if isinstance(argument, Slot) else None

    def convolution(self, at: int) -> Fused | None:
        """A convolution with what follows it."""
        op, ops = self.program.ops[at], self.program.ops
        weight, bias = self._known(op.args[1]), self._known(op.args[2])
        if (
            weight is None
            or weight.ndim != 4
            or op.args[6]
            or not op.plain
            or (bias is None and op.args[2] is not None)
        ):
            return None
        members, last = [at], at
        follower = self._only_reader(at)
        if follower is not None and ops[follower].name in _NORMS and ops[follower].args[0] == Slot(_made(op)):
            folded = fold(weight, bias, ops[follower].args, self._known)
            if folded is not None:
                weight, bias = folded
                members.append(follower)
                last = follower
                follower = self._only_reader(last)
        other: Slot | None = None
        if follower is not None and ops[follower].name == "add":
            other = self._added(ops[follower], _made(ops[last]))
            if other is not None:
                members.append(follower)
                last = follower
                follower = self._only_reader(last)
        rectifies = follower is not None and ops[follower].name == "relu"
        if rectifies and follower is not None:
            members.append(follower)
            last = follower
        if len(members) == 1:
            return None
        weight = weight.contiguous(memory_format=torch.channels_last)
        shift = None if bias is None else self._hold(bias)
        args = (op.args[0], self._hold(weight), shift, other, *op.args[3:6], op.args[8])
        return self._group(members, args, _convolve(weight, rectifies, other is not None))

    def linear(self, at: int) -> Fused | None:
        """A linear layer with its activation, whose own memory traffic costs more than the product."""
        op, ops = self.program.ops[at], self.program.ops
        bias, weight = self._known(op.args[0]), self._known(op.args[2])
        if bias is None or weight is None or bias.ndim != 1 or op.kwargs or not _fuses(weight):
            return None
        members, last = [at], at
        follower = self._only_reader(at)
        size: Any = None
        if follower is not None and ops[follower].name in _VIEWS:
            size = ops[follower].args[1]
            members.append(follower)
            last = follower
            follower = self._only_reader(last)
        if (
            follower is None
            or ops[follower].name not in {"relu", "gelu"}
            or ops[follower].args != (Slot(_made(ops[last])),)
        ):
            return None
        members.append(follower)
        algorithm = ops[follower].kwargs.get("approximate", "none") if ops[follower].name == "gelu" else ""
        rectifies = ops[follower].name == "relu"
        args = (op.args[1], self._hold(weight.T.contiguous()), self._hold(bias), size)

        def function(x: Tensor, w: Tensor, b: Tensor, shape: Any) -> Tensor:
            # Not its own ReLU, which turns NaN into 0.
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, w, b, "none" if rectifies else "gelu", [], algorithm)
            y = y.relu_() if rectifies else y
            return y if shape is None else y.reshape(shape)

        return self._group(members, args, function)

    def _added(self, add: Op, made: int) -> Slot | None:
        """The other term of a sum of two activations of one shape."""
        if add.kwargs or len(add.args) != 2 or not all(isinstance(term, Slot) for term in add.args):
            return None
        others = [term for term in add.args if term.at != made]
        sizes = self.program.bytes
        same = len(others) == 1 and sizes.get(others[0].at) == sizes.get(made) == sizes.get(_made(add))
        return others[0] if same else None

    def _group(self, members: list[int], args: tuple[Any, ...], function: Callable[..., Tensor]) -> Fused:
        ops = [self.program.ops[at] for at in members]
        inner = frozenset(_made(op) for op in ops[:-1])
        op = Op(
            tag=ops[-1].tag,
            name="fused",
            function=function,
            args=args,
            kwargs={},
            live=True,
            reads=tuple(a.at for a in args if isinstance(a, Slot)),
            writes=(_made(ops[-1]),),
            work=sum(one.work for one in ops),
            plain=not any(one.grows for one in ops),
        )
        built = frozenset(read for one in ops for read in one.reads if read in self.program.held)
        return Fused(op, tuple(members), inner, built)


def _made(op: Op) -> int:
    made = op.writes[0]
    return -1 if made is None else made


def _fuses(weight: Tensor) -> bool:
    """Whether torch's fused oneDNN operations can be used for it."""
    usable = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return (
        usable
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _convolve(weight: Tensor, rectifies: bool, adds: bool) -> Callable[..., Tensor]:
    """Convolution, then perhaps a sum, then perhaps a ReLU, as one function."""
    fuses = _fuses(weight)

    def function(
        x: Tensor, w: Tensor, b: Any, other: Any, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:
        y: Tensor
        if not fuses:
            y = torch.convolution(x, w, b, stride, padding, dilation, False, [0, 0], groups)
            y = y.add_(other) if adds else y
        elif adds:
            y = torch.ops.mkldnn._convolution_pointwise.binary(
                x, other, w, b, padding, stride, dilation, groups, "add", 1.0, None, [], ""
            )
        else:
            y = torch.ops.mkldnn._convolution_pointwise(x, w, b, padding, stride, dilation, groups, "none", [], "")
        return y.relu_() if rectifies else y  # not oneDNN's own, which turns NaN into 0

    return function
