"""Gradients of single examples with respect to the entries of a weight, put together from its uses or the slow way."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from planaria.core.network import Network
from planaria.geometry.passes import Pass, written_out
from planaria.geometry.uses import Found, Product, Scale, Use

BYTES = 1 << 26
"""Of one block of gradients, or of what comes back to the layers that are taken at a time."""


FEW = 3
"""Examples that show how examples lie in what every operation returns."""


def placed(net: Network, rows: Tensor, passed: Pass) -> list[str]:
    """Place the examples in every call, by a pass of a few where the data choose nothing; see `Pass.place`."""
    if not passed.chooses and len(rows) > 2 * FEW:
        few = Pass.of(net, rows[:FEW], "gram")
        left = few.place(FEW)
        if passed.adopt(few, len(rows), FEW):
            return left
    return passed.place(len(rows))


def bunches(ranges: Sequence[Found], classes: int, room: int = 4 * BYTES) -> Iterator[list[Found]]:
    """Ranges whose gradients are held at a time, in so many bytes."""
    some: list[Found] = []
    held: dict[int, int] = {}
    for found in ranges:
        more = {id(use.call): math.prod(use.call.shape) * classes * 4 for use in found.uses}
        if some and sum((held | more).values()) > room:
            yield some
            some, held = [], {}
        some.append(found)
        held |= more
    if some:
        yield some


def returned(passed: Pass, some: Sequence[Found], cotangents: Sequence[Tensor]) -> dict[int, Tensor]:
    """What comes back to the calls of some ranges for each cotangent, stacked, by the identity of the call."""
    calls = list({id(use.call): use.call for found in some for use in found.uses}.values())
    rounds = [passed.back(one, calls) for one in cotangents]
    return {id(call): torch.stack([one[at] for one in rounds]) for at, call in enumerate(calls)}


def cotangent(at: int, classes: int, examples: int, root: Tensor | None, like: Tensor) -> Tensor:
    """Cotangent of the outputs [N, m] that asks every example for row `at` of the root, or for output `at`."""
    if root is not None:
        return root[:, at]
    return F.one_hot(torch.tensor(at, device=like.device), classes).expand(examples, -1)


def together(use: Use, factor: Tensor, examples: int, like: Tensor) -> Tensor:
    """[leading places, places, groups, k] -> [N, all places, groups, k]."""
    return use.call.by_example(factor, examples).flatten(1, 2).to(like)


def scaled(use: Scale, back: Tensor, examples: int, like: Tensor) -> Tensor:
    """Gradients [classes, examples, entries] of a weight that is used entry by entry."""
    call, rest = use.call, use.call.shape[use.call.lead :]
    factor = use.factor if isinstance(use.factor, float) else use.factor()
    parts = []
    for one in back.unbind(0):
        product = (one * factor).reshape(-1, *rest).to(like)
        parts.append(_narrowed(call.by_example(product, examples).sum(1), use.shape).reshape(examples, -1))
    return torch.stack(parts)


def _narrowed(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Summed over the axes along which a weight of this shape was repeated."""
    axes = [1 + at for at, (size, wide) in enumerate(zip(shape, tensor.shape[1:], strict=True)) if size == 1 < wide]
    return tensor.sum(axes, keepdim=True) if axes else tensor


def formed(factors: Sequence[tuple[Tensor, Tensor]], group: int, rows: Tensor) -> Tensor:
    """Gradients [N, classes, rows, width] for some rows of a matrix, summed over its uses.

    Args:
        factors: Of each use, what runs along the rows and along the columns [N, places, 1 or classes, groups, k]; that
            with 1 came in, that with classes came back.
        group: Of a layer that consists of several.
        rows: Which rows of the group's matrix.
    """
    gradient: Tensor | None = None
    for high, wide in factors:
        n, m = len(high), max(high.shape[2], wide.shape[2])
        left, right = high[:, :, :, group][..., _neighbours(rows)], wide[:, :, :, group]
        product = torch.bmm(left.flatten(2).transpose(1, 2), right.flatten(2))
        if left.shape[2] == 1:  # what comes back lies along the columns: [N, rows, classes * width]
            product = product.view(n, len(rows), m, -1).transpose(1, 2)
        product = product.reshape(n, m, len(rows), -1)
        gradient = product if gradient is None else gradient + product
    assert gradient is not None
    return gradient


def factors_of(use: Product, back: Tensor, examples: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """What runs along the rows of a use's matrix and along its columns, for `formed`."""
    known = together(use, use.known(), examples, like)[:, :, None]
    made = torch.stack([together(use, use.made(one), examples, like) for one in back], 2)
    return (known, made) if use.rows_known else (made, known)


def _neighbours(rows: Tensor) -> Tensor | slice:
    """The same rows as a slice where they are neighbours, for which nothing need be copied."""
    first, last = int(rows[0]), int(rows[-1]) + 1
    return slice(first, last) if last - first == len(rows) else rows


def by_example(passed: Pass, name: str, some: Tensor, classes: int, net: Network, rows: Tensor) -> Tensor | None:
    """Jacobian [N, m, entries] in some entries of a weight, however they are used.

    One example at a time seen by the network; None where it cannot be taken so.
    """
    weights = {key: leaf.detach() for key, leaf in passed.leaves.items()}
    whole = weights[name].reshape(-1)

    def one(part: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        moved = whole.index_copy(0, some, part).view(weights[name].shape)
        buffers = {key: buffer.clone() for key, buffer in net.buffers.items()}
        outputs = net.evaluate(row[None], {**weights, name: moved}, buffers).reshape(-1)
        return outputs, outputs

    step = max(1, BYTES // (8 * classes * max(1, whole.numel())))
    try:
        with written_out(net), torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # for operations without a rule
            derivative = torch.func.jacrev(one, has_aux=True)
            pair: tuple[Tensor, Tensor] = torch.func.vmap(derivative, (None, 0), chunk_size=step)(whole[some], rows)
    except (RuntimeError, TypeError, ValueError, IndexError):  # data decide, or torch has no rule for an operation
        return None
    jacobian, outputs = (part.detach() for part in pair)
    expected = passed.outputs.detach().reshape(outputs.shape)
    apart = float((outputs - expected).double().norm())
    return jacobian if apart <= passed.precise * float(expected.double().norm()) + 1e-12 else None
