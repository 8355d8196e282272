"""Factors of the Jacobian, kept: what came into every layer, and what comes back to it for every output.

J has a row for every example and output. Where a layer multiplies by a weight, its part of a row is a sum of outer
products of these two factors; so J v takes one matrix product per layer, and J^T u one more: half of what passes
through the network take, forward or backward, and nothing of all that lies between the layers. Weights with few entries
are kept as the columns of J that they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds
from planaria.core.network import Network
from planaria.core.trees import Weights
from planaria.geometry.gradients import (
    BYTES,
    bunches,
    by_example,
    cotangent,
    factors_of,
    formed,
    placed,
    returned,
    scaled,
    together,
)
from planaria.geometry.passes import Pass
from planaria.geometry.uses import Found, Product, Range, Scale

RATE = 3
"""Multiply-adds of a matrix product that take the time of reading one byte (measured: 50 GMAC/s, 16 GB/s)."""

ALONE, PLACES = 0.66, 1.6
"""What factors may take, relative to the multiply-adds of passes through a network, where every layer acts once for
each example, and where layers act at many places: there, passes do as much beside the products as in them."""


@dataclass(frozen=True, eq=False)
class Factors:
    """J of some inputs as factors.

    Attributes:
        shape: Of the outputs.
        columns: Ranges that are kept as columns of J, and from where to where they lie.
        kept: J on these columns [N * m, entries], rows example by example.
        outer: All other ranges, once for each use.
    """

    shape: torch.Size
    columns: tuple[tuple[Range, int], ...]
    kept: Tensor
    outer: tuple[_Outer, ...]

    @staticmethod
    def of(net: Network, rows: Tensor, most: int) -> Factors | None:
        """Factors of a network's Jacobian by one backward pass for each output of an example.

        Args:
            net: The network; all its weights count, also pinned ones.
            rows: Inputs [N, ...].
            most: Bytes that may be kept.

        Returns:
            None where they take too much memory, or products with them about as long as passes through the network, or
            torch cannot tell what each example does.
        """
        net = net.with_plasticity({name: torch.ones_like(w) for name, w in net.weights.items()})
        try:
            passed = Pass.of(net, rows, "Metric")
            left = placed(net, rows, passed)
        except InputError:
            return None
        shape, n = passed.outputs.shape, len(rows)
        m = passed.outputs.numel() // n
        whole = [Range(name, 0, 1, net.weights[name].numel()) for name in left]
        ranges = passed.ranges(left)
        others = n * m * sum(one.width for one in whole) * passed.outputs.element_size()
        dear = 4 * n * forward_multiply_adds(net, rows)
        wide = _choose(ranges, (n, m), passed.outputs.element_size(), others, most, dear)
        if wide is None:
            return None
        columns, at = [], 0
        for one in (*(found.range for found in ranges if found.range not in wide), *whole):
            columns.append((one, at))
            at += one.stop - one.start
        kept, outer = passed.outputs.new_zeros(n * m, at), []
        places = dict(columns)
        cotangents = [cotangent(c, m, n, None, passed.outputs) for c in range(m)]
        for some in bunches(ranges, m, most // 2):
            back = returned(passed, some, cotangents)
            for found in some:
                if found.range in wide:
                    outer += [_Outer.of(found.range, use, back[id(use.call)], n) for use in _products(found)]
                else:
                    here = slice(places[found.range], places[found.range] + found.range.stop - found.range.start)
                    _fill(found, back, kept.view(n, m, -1)[..., here])
        for one in whole:
            entries = torch.arange(one.width, device=kept.device)
            jacobian = by_example(passed, one.weight, entries, m, net, rows)
            if jacobian is None:
                return None
            kept.view(n, m, -1)[..., places[one] : places[one] + one.width] = jacobian
        return Factors(shape, tuple(columns), kept.detach(), tuple(outer))

    def push(self, v: Mapping[str, Tensor]) -> Tensor:
        """J v, of the outputs' shape; weights left out of v do not change."""
        parts = [
            v[one.weight].reshape(-1)[one.start : one.stop]
            if one.weight in v
            else self.kept.new_zeros(one.stop - one.start)
            for one, _ in self.columns
        ]
        moved = self.kept @ torch.cat(parts).to(self.kept) if parts else self.kept.new_zeros(len(self.kept))
        moved = moved.view(self.shape[0], -1)
        for outer in self.outer:
            if outer.range.weight in v:
                moved = moved + outer.push(outer.range.of(v[outer.range.weight]).to(moved))
        return moved.view(self.shape)

    def pull(self, u: Tensor, names: Sequence[str], weights: Weights) -> Weights:
        """J^T u on the weights called `names`, which are as large as these weights."""
        flat, wanted = u.reshape(len(u), -1).to(self.kept), set(names)
        parts = [(outer.range, outer.pull(flat).reshape(-1)) for outer in self.outer if outer.range.weight in wanted]
        along = flat.reshape(-1) @ self.kept
        parts += [(one, along[at : at + one.stop - one.start]) for one, at in self.columns if one.weight in wanted]
        found: Weights = {}
        for one, part in parts:
            size = weights[one.weight].numel()
            if one.weight not in found and len(part) == size:
                found[one.weight] = part
            else:
                whole = found.get(one.weight, part.new_zeros(size))
                whole[one.start : one.stop] += part
                found[one.weight] = whole
        empty = {name: torch.zeros_like(weights[name]) for name in names if name not in found}
        return {name: empty[name] if name in empty else found[name].view(weights[name].shape) for name in names}


@dataclass(frozen=True, eq=False)
class _Outer:
    """One use of a range: gradients are sums over places of outer(known, made).

    `known` [N * places, k], or the rows of a table that were looked up [N * places]; `made` [N, m, places * o].
    """

    range: Range
    rows_known: bool
    known: Tensor
    made: Tensor

    @staticmethod
    def of(found: Range, use: Product, back: Tensor, n: int) -> _Outer:
        made = torch.stack([together(use, use.made(one), n, back).flatten(1) for one in back], 1)
        if use.table is None:
            known = together(use, use.known(), n, back).flatten(0, 2)
        else:
            known = use.call.by_example(use.table, n).flatten()
        return _Outer(found, use.rows_known, known.contiguous(), made)

    def push(self, v: Tensor) -> Tensor:
        if self.known.ndim == 1:
            moved = torch.cat([v, v.new_zeros(1, v.shape[1])])[self.known]
        else:
            moved = self.known @ (v if self.rows_known else v.T)
        # The other way round, torch takes five times as long.
        return torch.bmm(moved.view(len(self.made), 1, -1), self.made.transpose(1, 2))[:, 0]

    def pull(self, u: Tensor) -> Tensor:
        back = torch.bmm(u[:, None], self.made).view(len(self.known), -1)
        if self.known.ndim == 1:
            return back.new_zeros(self.range.height + 1, self.range.width).index_add_(0, self.known, back)[:-1]
        return self.known.T @ back if self.rows_known else back.T @ self.known


def _products(found: Found) -> list[Product]:
    return [use for use in found.uses if isinstance(use, Product)]


def _choose(
    ranges: Sequence[Found], rows: tuple[int, int], size: int, others: int, most: int, dear: int
) -> frozenset[Range] | None:
    """Ranges to keep as factors instead of columns: those for which it is quicker, or else takes less memory.

    None if all take more memory than `most`, `others` included, or a product more work than passes with so many
    multiply-adds, which are `dear`.
    """
    n, m = rows
    prices: list[tuple[Range, bool, int, int, int]] = []
    alone = True
    for found in ranges:
        one, products = found.range, _products(found)
        entries = one.stop - one.start
        factors, multiplied, table = 0, 0, any(use.table is not None for use in products)
        for use in products:
            places = n * use.places * use.call.before * use.call.behind
            known, made = (one.height, one.width) if use.rows_known else (one.width, one.height)
            factors += places * (m * made * size + (8 if table else known * size))
            multiplied += 0 if table else places * entries
            alone = alone and places == n
        possible = bool(products) and products[0].groups == 1
        prices.append((one, possible, factors, multiplied, 0 if table else n * m * entries * size))
    for rate in (RATE, math.inf):
        wide, held, work = set(), others, 0
        for one, possible, factors, multiplied, columns in prices:
            quicker = columns == 0 or factors + multiplied / rate < columns
            if possible and quicker:
                wide.add(one)
            held += factors if possible and quicker else columns
            work += 2 * (RATE * factors + multiplied if possible and quicker else RATE * columns)
        if held <= most:
            return frozenset(wide) if work < dear * (ALONE if alone else PLACES) else None
    return None


def _fill(found: Found, back: Mapping[int, Tensor], columns: Tensor) -> None:
    """Write the gradients in a range's entries to its columns [N, m, entries]."""
    n = len(columns)
    products = _products(found)
    if not products:
        for use in found.uses:
            assert isinstance(use, Scale)
            columns += scaled(use, back[id(use.call)], n, columns).transpose(0, 1)
        return
    factors = [factors_of(use, back[id(use.call)], n, columns) for use in products]
    groups, width = products[0].groups, found.range.width
    height = found.range.height // groups
    size = max(1, BYTES // (math.prod(columns.shape[:2]) * width * columns.element_size()))
    for group in range(groups):
        for rows in torch.arange(height, device=columns.device).split(size):
            begin = (group * height + int(rows[0])) * width
            columns[..., begin : begin + len(rows) * width] = formed(factors, group, rows).flatten(2)
