"""Port: how one tensor of rows becomes what a model takes, and which tensor of what it returns is its output.

Everything above a network handles one tensor [examples, ...] in and one tensor out. Models that take several tensors,
positional or by keyword, are fed through a layout: their tensors lie side by side in the rows of one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from planaria.core.devices import mixed_precision
from planaria.core.errors import InputError, PlanariaError, nearest

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a model is called with: one tensor, a tuple of positional ones, or a mapping of keyword arguments."""

LABELS = frozenset(["labels", "label", "label_ids"])
"""Entries of a batch that are no inputs: targets, by the names that Hugging Face gives them."""

_NAMED = 12
"""Arguments that a message names."""

PREFERRED = "logits"
"""Entry of a model's outputs that is taken where it is there and none is named."""


@dataclass(frozen=True)
class Part:
    """One of several tensors that a model takes.

    Attributes:
        name: Of the keyword argument; "" for a positional one.
        shape: Of one example.
        dtype: Of its numbers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Numbers per example."""
        return math.prod(self.shape)


def _kind(part: Part) -> str:
    """A type that goes without saying is not said: whole numbers."""
    return "" if part.dtype == torch.int64 else f" {str(part.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Layout:
    """How the tensors that a model takes lie side by side in the rows of one tensor.

    Attributes:
        parts: In order.
    """

    parts: tuple[Part, ...]

    @staticmethod
    def of(inputs: Inputs, where: str = "inputs") -> Layout | None:
        """Layout of some inputs; None for a plain tensor, which needs none.

        Args:
            inputs: A tensor, a tuple of tensors, or a mapping name -> tensor (a BatchEncoding, for example), all with
                as many rows. Entries that are None, and labels, are no inputs.
            where: Begins every error message.

        Raises:
            InputError: Something else, no rows, or parts with different numbers of rows.

        Example:
            >>> ids = torch.zeros(2, 5, dtype=torch.int64)
            >>> Layout.of({"input_ids": ids, "attention_mask": ids == 0}).width
            10
        """
        if isinstance(inputs, Tensor):
            return None
        parts = _parts(inputs, where)
        rows = {len(tensor) for _, tensor in parts}
        if len(rows) > 1:
            got = ", ".join(f"{name or at}: {len(tensor)}" for at, (name, tensor) in enumerate(parts))
            raise InputError(where, "tensors with as many rows", got, "Give each of them one row per example.")
        return Layout(tuple(Part(name, tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in parts))

    @property
    def width(self) -> int:
        """Numbers per example, all parts together."""
        return sum(part.size for part in self.parts)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the keyword arguments; none if the parts are positional."""
        return tuple(part.name for part in self.parts if part.name)

    @property
    def dtype(self) -> torch.dtype:
        """Of the packed rows: one that holds every part's numbers exactly."""
        kinds = {part.dtype for part in self.parts}
        floats = [kind for kind in kinds if kind.is_floating_point]
        if not floats:
            return torch.int64
        if len(floats) < len(kinds):
            return torch.float64  # whole numbers up to 2^53
        widest = floats[0]
        for kind in floats[1:]:
            widest = torch.promote_types(widest, kind)
        return widest

    @property
    def real(self) -> Tensor:
        """Which numbers of a row are of a floating-point part, boolean [width]; the others are whole, tokens say."""
        return torch.cat([torch.full((part.size,), part.dtype.is_floating_point) for part in self.parts])

    def pack(self, inputs: Inputs, where: str = "inputs") -> Tensor:
        """Inputs of this layout as one tensor [examples, width].

        Raises:
            InputError: Inputs of another layout.
        """
        given = Layout.of(inputs, where)
        if given != self:
            got = "a plain tensor" if given is None else f"{given}"
            raise InputError(where, f"{self}", got, "Bring all inputs to one form, for example pad them to one length.")
        parts = [tensor.reshape(len(tensor), -1).to(self.dtype) for _, tensor in _parts(inputs, where)]
        return torch.cat(parts, 1)

    def unpack(self, rows: Tensor) -> dict[str, Tensor] | tuple[Tensor, ...]:
        """Packed rows as the model takes them: keyword arguments, or positional ones.

        Args:
            rows: [examples, width].
        """
        found, start = [], 0
        for part in self.parts:
            piece = rows[:, start : start + part.size].reshape(len(rows), *part.shape)
            found.append(piece.to(part.dtype).contiguous())  # as it was: models may view it in another shape
            start += part.size
        return dict(zip(self.names, found, strict=True)) if self.names else tuple(found)

    def __str__(self) -> str:
        return ", ".join(f"{part.name or at} {list(part.shape)}{_kind(part)}" for at, part in enumerate(self.parts))


@dataclass(frozen=True)
class Port:
    """The way into a model and out of it.

    Attributes:
        layout: Of the rows; None for a model that takes one tensor.
        output: Name or place of the output that counts; None: "logits" where it is there, else the first tensor of
            floating-point numbers.
        left_out: Names in the layout that the model's forward does not take.
        autocast: Type that products are computed in instead of the weights' own; see `Network.with_autocast`.
        open: Names that the model's forward also takes, and the layout does not give.
    """

    layout: Layout | None = None
    output: str | int | None = None
    left_out: tuple[str, ...] = ()
    autocast: torch.dtype | None = None
    open: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @staticmethod
    def of(model: Callable[..., Any], inputs: Inputs, output: str | int | None = None, where: str = "inputs") -> Port:
        """Port of a model for inputs like these.

        Args:
            model: A module or function.
            inputs: What it is called with; see `Layout.of`.
            output: Name or place of the output that counts.
            where: Begins the error messages about the inputs.

        Raises:
            InputError: The model's forward needs arguments that the inputs do not give; names them.

        Example:
            >>> Port.of(torch.nn.Linear(2, 1), torch.zeros(1, 2))
            Port(layout=None, output=None, left_out=(), autocast=None)
        """
        layout = Layout.of(inputs, where)
        left_out, not_given = _fitted(model, layout)
        return Port(layout, output, left_out, open=not_given)

    def rows(self, inputs: Inputs) -> Tensor:
        """Inputs as one tensor of rows; rows stay as they are.

        Raises:
            InputError: Inputs of another layout than the model's.
        """
        if isinstance(inputs, Tensor):
            width = None if self.layout is None else self.layout.width
            if width is not None and (inputs.ndim != 2 or inputs.shape[1] != width):
                raise InputError("inputs", f"{self.layout}", f"one tensor of shape {list(inputs.shape)}")
            return inputs
        if self.layout is None:
            raise InputError(
                "inputs",
                "one tensor [examples, ...]",
                type(inputs).__name__,
                "Build the network with such inputs: Network.of(model, inputs).",
            )
        return self.layout.pack(inputs)

    def __call__(self, model: Callable[..., Any], rows: Tensor) -> Any:
        """Call the model with rows, and take the output that counts.

        Raises:
            InputError: The model needs arguments that are not given, or numbers (of tokens, say) of which it has fewer.
        """
        given = rows if self.layout is None else self.layout.unpack(rows)
        if isinstance(given, dict):
            given = {name: part for name, part in given.items() if name not in self.left_out}
        try:
            with mixed_precision(rows.device, self.autocast):
                if isinstance(given, Tensor):
                    returned = model(given)
                else:
                    returned = model(**given) if isinstance(given, dict) else model(*given)
        except (IndexError, TypeError, ValueError) as problem:
            complaint = _out_of_range(problem, given) or _lacking(problem, given, self.open)
            if complaint is None:
                raise
            raise complaint from problem
        # One tensor is the one that counts; some models return others beside it in train mode only.
        found = returned if isinstance(returned, Tensor) else chosen(returned, self.output)
        return found if self.autocast is None else found.float()  # losses and scores take single precision


PLAIN = Port()
"""Port of a model that takes one tensor and returns one."""


def chosen(returned: Any, output: str | int | None = None) -> Tensor:
    """The one tensor that counts among what a model returned.

    Args:
        returned: A tensor, tuple, mapping or model output.
        output: Name or place; None: "logits" where it is there, else the first tensor of floating-point numbers.

    Raises:
        InputError: There is none.

    Example:
        >>> chosen((torch.zeros(3, 2), None)).shape
        torch.Size([3, 2])
    """
    if output is None:
        if isinstance(returned, Mapping) and isinstance(returned.get(PREFERRED), Tensor):
            found: Tensor = returned[PREFERRED]
            return found
        floats = [tensor for tensor in _tensors(returned) if tensor.is_floating_point()]
        if floats:
            return floats[0]
    else:
        value = _at(returned, output)
        if isinstance(value, Tensor):
            return value
    names = [str(key) for key in returned] if isinstance(returned, Mapping) else []
    got = f"entries {', '.join(names)}" if names else type(returned).__name__
    expected = "a tensor of floating-point numbers" if output is None else f"a tensor under {output!r}"
    remedy = "Let the model return its outputs as a tensor." if output is None else nearest(str(output), names)
    raise InputError("the model's outputs", expected, got, remedy)


_Given = Tensor | dict[str, Tensor] | tuple[Tensor, ...]


def _out_of_range(problem: Exception, given: _Given) -> InputError | None:
    """The complaint about whole numbers for which a model has no rows, where its error may be about these."""
    named = given.items() if isinstance(given, dict) else enumerate([given] if isinstance(given, Tensor) else given)
    whole = [(name, part) for name, part in named if part.numel() and not part.is_floating_point()]
    if not isinstance(problem, IndexError) or not whole:
        return None
    spans = ", ".join(f"{name} from {int(part.min())} to {int(part.max())}" for name, part in whole)
    expected = "numbers that the model has rows for in its tables"
    remedy = "Take the tokenizer that the model was trained with, and texts no longer than it allows."
    return InputError("the model's inputs", expected, f"{spans} ({_said(problem)})", remedy)


def _lacking(problem: Exception, given: _Given, others: tuple[str, ...]) -> InputError | None:
    """The complaint about arguments that have defaults, so that only the model knows that it needs them."""
    if isinstance(problem, PlanariaError | IndexError) or not others or not isinstance(given, dict):
        return None
    more = ", ".join([*others[:_NAMED], *(["..."] if len(others) > _NAMED else [])])
    remedy = f"Its forward also takes {more}: give what it needs by name."
    return InputError("the model's inputs", "all that it needs", f"{', '.join(given)} ({_said(problem)})", remedy)


def _said(problem: Exception) -> str:
    return f"{type(problem).__name__}: {(str(problem).splitlines() or ['no message'])[0]}"


def _at(returned: Any, output: str | int) -> Any:
    if isinstance(returned, Mapping):
        if not isinstance(output, int) or output in returned:
            return returned.get(output)
        returned = tuple(returned.values())
    if isinstance(output, int):
        inside = isinstance(returned, (tuple, list)) and -len(returned) <= output < len(returned)
        return returned[output] if inside else None
    return getattr(returned, output, None)


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        tree = tree.values()
    elif not isinstance(tree, (tuple, list)):
        return []
    return [tensor for branch in tree for tensor in _tensors(branch)]


def _parts(inputs: Any, where: str) -> list[tuple[str, Tensor]]:
    if isinstance(inputs, Mapping):
        # By name, whatever the order: a tokenizer's batch and a file's columns are then the same.
        named = [(str(name), inputs[name]) for name in sorted(inputs) if name not in LABELS]
        named = [(name, part) for name, part in named if part is not None]
    elif isinstance(inputs, (tuple, list)) and all(hasattr(part, "shape") for part in inputs):
        named = [("", part) for part in inputs]
    else:
        expected = "a tensor, a tuple of tensors, or a mapping name -> tensor"
        raise InputError(where, expected, type(inputs).__name__, "Convert the inputs to tensors.")
    if not named:
        raise InputError(where, "at least one tensor", "none", "Give the model's inputs.")
    found = []
    for at, (name, part) in enumerate(named):
        tensor = _tensor(part, f"{where}[{(name or at)!r}]")
        if tensor.ndim == 0 or len(tensor) == 0:
            got = f"shape {list(tensor.shape)}"
            raise InputError(f"{where}[{(name or at)!r}]", "[examples, ...] with at least one example", got)
        found.append((name, tensor))
    return found


def _tensor(part: Any, where: str) -> Tensor:
    if isinstance(part, Tensor):
        return part
    try:
        return torch.as_tensor(part)
    except (TypeError, ValueError, RuntimeError) as problem:
        got = f"{type(part).__name__} ({(str(problem).splitlines() or ['no message'])[0]})"
        raise InputError(where, "a tensor [examples, ...]", got, "Convert it, and pad it to one length.") from problem


def _fitted(model: Callable[..., Any], layout: Layout | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that the model's forward does not take, and those it could take besides; complains about what it needs."""
    try:
        parameters = inspect.signature(getattr(model, "forward", model)).parameters
    except (TypeError, ValueError):
        return (), ()  # builtins have none
    kinds = inspect.Parameter
    plain = [p for p in parameters.values() if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)]
    by_place = [p.name for p in plain if p.kind is not kinds.KEYWORD_ONLY]
    names = () if layout is None else layout.names
    positional = 1 if layout is None else 0 if names else len(layout.parts)
    given = {*names, *by_place[:positional]}
    missing = [p.name for p in plain if p.default is kinds.empty and p.name not in given]
    where = f"the inputs of {type(model).__name__}"
    if missing:
        got = ", ".join(names) or (f"{positional} positional" if layout is not None else "one tensor")
        remedy = "Give them: inputs may be a tuple (by place) or a mapping (by name)."
        raise InputError(where, f"the arguments {', '.join(missing)} too", got, remedy)
    if positional > len(by_place) and not any(p.kind is kinds.VAR_POSITIONAL for p in parameters.values()):
        raise InputError(where, f"at most {len(by_place)} tensors", positional, "Leave out the others.")
    besides = tuple(p.name for p in plain if p.name not in given and p.name not in LABELS)
    if any(p.kind is kinds.VAR_KEYWORD for p in parameters.values()):
        return (), besides
    return tuple(name for name in names if name not in {p.name for p in plain}), besides
