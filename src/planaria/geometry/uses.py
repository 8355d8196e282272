"""Uses: how an operation that reads a weight makes its output, so that each example's gradient can be put together.

An example's gradient follows from what came into the operation and from what comes back to it. Below autograd, every
architecture consists of a few such operations: matrix products, convolutions, normalisations, tables, sums and
element-wise products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import functional as F


@dataclass(eq=False)
class Call:
    """An operation that read a weight: where gradients come back to it, and how examples lie in its output.

    The first `lead` axes of the output, seen as one, hold `before` x examples x `behind` places.
    """

    shape: torch.Size
    lead: int
    edge: GradientEdge | None = None
    before: int = 1
    behind: int = 1

    def by_example(self, tensor: Tensor, examples: int) -> Tensor:
        """[..., places, *rest] of k leading places -> [examples, before * behind, *rest]."""
        rest = tensor.shape[1:]
        parted = tensor.reshape(self.before, examples, self.behind, *rest).movedim(1, 0)
        return parted.reshape(examples, self.before * self.behind, *rest)


@dataclass(frozen=True)
class Range:
    """Neighbouring entries of a weight seen as a matrix: what one operation read."""

    weight: str
    start: int
    height: int
    width: int

    @property
    def stop(self) -> int:
        """Behind the last entry."""
        return self.start + self.height * self.width

    def of(self, tensor: Tensor) -> Tensor:
        """The range's entries of a tensor of the weight's shape, [height, width]."""
        return tensor.reshape(-1)[self.start : self.stop].view(self.height, self.width)


@dataclass(eq=False)
class Product:
    """A use by which an example's gradient is sum over places of outer(row factor, column factor), for each group.

    `known(examples)` gives the factor that came in, [places, ..., groups, k]; `made(gradient)` the one that comes back.
    `rows_known`: whether the factor that came in runs along the matrix's rows.
    """

    call: Call
    known: Callable[[], Tensor]
    made: Callable[[Tensor], Tensor]
    rows_known: bool
    groups: int
    places: int
    table: Tensor | None = None
    sources: tuple[tuple[Tensor, int], ...] = ()


@dataclass(eq=False)
class Scale:
    """A use entry by entry: an example's gradient is the sum over places of factor * what comes back."""

    call: Call
    shape: tuple[int, ...]
    factor: Callable[[], Tensor] | float
    sources: tuple[tuple[Tensor, int], ...] = ()


Use = Product | Scale


@dataclass(eq=False)
class Found:
    """A range and all its uses."""

    range: Range
    uses: list[Use]


_Read = tuple[Call, list[tuple[Any, Use]]]


def _source(*tensors: Tensor) -> tuple[tuple[Tensor, int], ...]:
    """Tensors that are read later, with the version that must not change."""
    return tuple((tensor, tensor._version) for tensor in tensors)


def _read_product(args: tuple[Any, ...], kwargs: dict[str, Any], made: list[Tensor]) -> _Read:
    """addmm(bias, x, weight) and mm(x, weight)."""
    shift = args[0] if len(args) > 2 else None
    given, weight = args[-2:]
    call, given = Call(made[0].shape, 1), given.detach()
    use = Product(
        call,
        lambda: given.unsqueeze(1).unsqueeze(1),
        lambda back: back.unsqueeze(1).unsqueeze(1),
        True,
        1,
        1,
        sources=_source(given),
    )
    uses: list[tuple[Any, Use]] = [(weight, use)]
    if shift is not None:
        uses.append((shift, _scale(call, shift, float(kwargs.get("beta", 1)))))
    if kwargs.get("alpha", 1) != 1:
        return call, []
    return call, uses


def _read_convolution(args: tuple[Any, ...], kwargs: dict[str, Any], made: list[Tensor]) -> _Read:
    """convolution(x, weight, bias, stride, padding, dilation, transposed, output padding, groups)."""
    del kwargs
    given, weight, shift, stride, padding, dilation, transposed, _, groups = args
    call, given, kernel = Call(made[0].shape, 1), given.detach(), weight.shape[2:]

    def unfolded(tensor: Tensor) -> Tensor:
        return _unfolded(tensor, kernel, stride, padding, dilation, groups)

    def spread(tensor: Tensor) -> Tensor:
        places = tensor.flatten(2).transpose(1, 2)
        return places.reshape(*places.shape[:2], groups, -1)

    places = math.prod(given.shape[2:] if transposed else made[0].shape[2:])
    if transposed:  # what comes back is unfolded: the layer is a convolution read backwards
        use = Product(call, lambda: spread(given), unfolded, True, groups, places, sources=_source(given))
    else:
        use = Product(call, lambda: unfolded(given), spread, False, groups, places, sources=_source(given))
    whole = tuple(size if axis == 0 else 1 for axis, size in enumerate(made[0].shape[1:]))
    return call, [(weight, use), (shift, Scale(call, whole, 1.0))]


def _unfolded(
    given: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], g: int
) -> Tensor:
    """[n, channels, *space] -> what the kernel sees at every place, [n, places, groups, channels of one * kernel]."""
    given = F.pad(given, [amount for size in reversed(padding) for amount in (size, size)])
    for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True)):
        given = given.unfold(2 + axis, (size - 1) * gap + 1, step)[..., ::gap]
    space = len(kernel)
    order = [0, *range(2, 2 + space), 1, *range(2 + space, 2 + 2 * space)]
    seen = given.permute(order)
    return seen.reshape(len(seen), math.prod(seen.shape[1 : 1 + space]), g, -1)


def _read_table(args: tuple[Any, ...], kwargs: dict[str, Any], made: list[Tensor]) -> _Read:
    """embedding(weight, indices, padding, by frequency, sparse)."""
    del kwargs
    weight, tokens, padding, by_frequency, *_ = (*args, -1, False)[:4]
    call, flat, height = Call(made[0].shape, tokens.ndim), tokens.detach().reshape(-1), len(weight)
    if padding >= 0:
        flat = torch.where(flat == padding, height, flat)  # its row does not move
    if by_frequency:
        return call, []

    def known() -> Tensor:
        return F.one_hot(flat, height + 1)[:, None, None, :-1].to(made[0].dtype)

    use = Product(
        call, known, lambda back: back.flatten(0, -2)[:, None, None], True, 1, 1, table=flat, sources=_source(tokens)
    )
    return call, [(weight, use)]


def _read_norm(args: tuple[Any, ...], kwargs: dict[str, Any], made: list[Tensor], name: str) -> _Read:
    """Normalisations: scale times what is normalised, plus shift."""
    del kwargs
    output, given = made[0], args[0].detach()
    scale, shift, lead, normal = _NORMS[name](args, made, given)
    call = Call(output.shape, lead)
    shape = tuple(output.shape[lead:]) if lead > 1 or name in _WHOLE else _channels(output.shape)
    uses: list[tuple[Any, Use]] = [(scale, Scale(call, shape, normal, _source(given)))]
    return call, [*uses, (shift, Scale(call, shape, 1.0))]


def _channels(shape: Sequence[int]) -> tuple[int, ...]:
    return (shape[1], *(1 for _ in shape[2:]))


def _layer_norm(args: tuple[Any, ...], made: list[Tensor], given: Tensor) -> tuple[Any, Any, int, Callable[[], Tensor]]:
    middle, rate = made[1].detach(), made[2].detach()
    return args[2], args[3], given.ndim - len(args[1]), lambda: (given - middle) * rate


def _rms_norm(args: tuple[Any, ...], made: list[Tensor], given: Tensor) -> tuple[Any, Any, int, Callable[[], Tensor]]:
    rate = made[1].detach()
    return args[2], None, given.ndim - len(args[1]), lambda: given * rate


def _group_norm(args: tuple[Any, ...], made: list[Tensor], given: Tensor) -> tuple[Any, Any, int, Callable[[], Tensor]]:
    groups = args[6]
    middle, rate = (part.detach().reshape(len(given), groups, 1) for part in made[1:3])
    return args[1], args[2], 1, lambda: ((given.reshape(len(given), groups, -1) - middle) * rate).view(given.shape)


def _batch_norm(args: tuple[Any, ...], made: list[Tensor], given: Tensor) -> tuple[Any, Any, int, Callable[[], Tensor]]:
    _, scale, shift, mean, variance, *rest = args
    epsilon = rest[-1] if isinstance(rest[-1], float) else rest[-2]
    shape = (1, *_channels(given.shape))
    middle, rate = mean.detach().clone().view(shape), (variance.detach() + epsilon).rsqrt().view(shape)
    return scale, shift, 1, lambda: (given - middle) * rate


_NORMS: dict[str, Callable[[Any, list[Tensor], Tensor], tuple[Any, Any, int, Callable[[], Tensor]]]] = {
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _rms_norm,
    "native_group_norm": _group_norm,
    "native_batch_norm": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
}
_WHOLE = {"native_layer_norm", "_fused_rms_norm"}


def _read_sum(args: tuple[Any, ...], kwargs: dict[str, Any], made: list[Tensor]) -> _Read:
    """X + weight, weight + alpha * x."""
    one, other = args[:2]
    call = Call(made[0].shape, 0)
    return call, [
        (weight, _scale(call, weight, factor))
        for weight, factor in ((one, 1.0), (other, float(kwargs.get("alpha", 1))))
        if isinstance(weight, Tensor)
    ]


def _read_scaling(args: tuple[Any, ...], kwargs: dict[str, Any], made: list[Tensor]) -> _Read:
    """X * weight."""
    del kwargs
    one, other = args[:2]
    call = Call(made[0].shape, 0)
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return call, []
    uses: list[tuple[Any, Use]] = []
    for weight, by in ((one, other.detach()), (other, one.detach())):
        use = _scale(call, weight, 1.0)
        use.factor, use.sources = (lambda by=by: by.expand(call.shape)), _source(by)
        uses.append((weight, use))
    return call, uses


def _scale(call: Call, weight: Tensor, factor: float) -> Scale:
    """Use of a weight that is added; its leading axes of size 1 say where examples may lie."""
    shape = list(weight.shape)
    while shape and shape[0] == 1 and len(shape) > 1:
        shape.pop(0)
    if call.lead == 0:
        call.lead = max(len(call.shape) - len(shape), 0)
    shape = [1] * (len(call.shape) - call.lead - len(shape)) + shape
    return Scale(call, tuple(shape), factor)


FORMS: dict[str, Callable[[Any, dict[str, Any], list[Tensor]], _Read]] = {
    "addmm": _read_product,
    "mm": _read_product,
    "convolution": _read_convolution,
    "embedding": _read_table,
    "add": _read_sum,
    "add_": _read_sum,
    "mul": _read_scaling,
    **{name: partial(_read_norm, name=name) for name in _NORMS},
}
