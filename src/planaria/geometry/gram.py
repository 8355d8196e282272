"""Gram matrix of a network's gradients, K = J P J^T, layer by layer and without ever forming J.

J has a row for every example and output and a column for every weight: too large to hold. But where a layer multiplies
by a weight, its part of a row is the product of what came into the layer and of the gradient that came back to it, so
that its part of K follows from these two alone. They are read below autograd, where every architecture consists of a
few operations: matrix products, convolutions, normalisations, tables, sums and element-wise products. Weights used in
any other way go a slower way, example by example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from planaria.core.errors import InputError
from planaria.core.gemm import fast_products
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.core.port import Inputs
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
)
from planaria.geometry.passes import Pass
from planaria.geometry.uses import Found, Product, Range, Scale

ROWS = 4000
"""Examples times outputs up to which a Gram matrix is worth its memory and its factorisation."""

_WORTH = 200
"""Products of the metric that may be spent instead: about what conjugate gradients take for one precise solve."""

_PARTS = 10
"""Row blocks of K, of which only those on and above the diagonal are computed."""


def gram(net: Network, inputs: Inputs, root: Tensor | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
    """Gram matrix K = J P J^T of the gradients of all outputs, weighted by plasticity.

    J = d outputs / d weights, P = diag(plasticity); with `root` R (block-diagonal), K = R J P J^T R^T. Its non-zero
    eigenvalues, divided by the number of examples, are those of the metric E[J^T R^T R J] in the coordinates in which
    plastic entries move.

    Args:
        net: Any network whose outputs [N, ...] for one example do not depend on the others.
        inputs: [N, ...].
        root: [N, m, m] factor of each example's output metric (for m outputs); Euclidean if None.
        dtype: Precision of the products between gradients; by default that of the outputs.

    Returns:
        [N * m, N * m], symmetric and positive semi-definite; row i * m + c belongs to output c of example i.

    Raises:
        InputError: Outputs that are not one row of finite numbers per example, or a root of another shape.

    Not guaranteed: speed for networks whose data decide their way through it, and for weights that enter by other
        operations than products, convolutions, normalisations, tables and sums. They are exact, and slow.

    Example:
        >>> net = Network.of(torch.nn.Linear(2, 1))
        >>> gram(net, torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([[2., 1.],
                [1., 5.]])
    """
    with fast_products(net.device):
        return _summed(net, net.port.rows(inputs).to(net.device), root, dtype)


def _summed(net: Network, rows: Tensor, root: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    passed = Pass.of(net, rows, "gram")
    outputs = passed.outputs.reshape(len(rows), -1)
    if root is not None and root.shape != (*outputs.shape, outputs.shape[1]):
        raise InputError("gram(root)", f"shape {[*outputs.shape, outputs.shape[1]]}", f"shape {list(root.shape)}")
    total = _Total(outputs.shape[1], len(rows), outputs.new_zeros((), dtype=dtype), root)
    left = placed(net, rows, passed)
    for some in bunches(passed.ranges(left), total.classes):
        _add_ranges(passed, some, total, net)
    for name in left:
        _add_generally(passed, name, total, net, rows)
    return total.finished()


def gram_cost(net: Network, inputs: Inputs) -> Cost:
    """What `gram` of these inputs costs, without computing it; seconds are left out.

    Example:
        >>> gram_cost(Network.of(torch.nn.Linear(2, 1)), torch.zeros(3, 2)).examples
        3
    """
    rows = net.port.rows(inputs).to(net.device)
    passed = Pass.of(net, rows[:2], "gram_cost")
    few, count = len(rows[:2]), len(rows)
    classes = passed.outputs.numel() // few
    left = passed.place(few)
    products = sum(_price(found, net, count, classes) for found in passed.ranges(left))
    # A weight in which the general way is needed enters by its Jacobian.
    entries = sum(int((net.plasticity[name] > 0).sum()) for name in left)
    products += entries * (count * classes) ** 2 // 2
    backward = classes + 2
    # Backward, only what leads to earlier layers is computed: as much as forward.
    passes = forward_multiply_adds(net, rows) * count * (1 + backward * (1 + len(left)))
    return Cost(count, 0, 1, backward, passes + products)


def fits(net: Network, inputs: Inputs) -> bool:
    """Whether the Gram matrix is worth computing: at most `ROWS` rows, and cheaper than the products it saves.

    Example:
        >>> net = Network.of(torch.nn.Linear(2, 1))
        >>> fits(net, torch.zeros(3, 2)), fits(net, torch.zeros(5000, 2))
        (True, False)
    """
    rows = net.port.rows(inputs).to(net.device)
    few = rows[:2]
    classes = net(few).numel() // len(few)
    if len(rows) * classes > ROWS:
        return False
    forward = forward_multiply_adds(net, rows) * len(rows)
    # What any network of this size can afford is not compared.
    return gram_cost(net, rows).multiply_adds <= max(1 << 31, 4 * _WORTH * forward)


# ------------------------------------------------------------------------------------------------- the sum


@dataclass(eq=False)
class _Total:
    """K while it is added up: rows c * N + i, only the blocks on and above the diagonal."""

    classes: int
    examples: int
    like: Tensor
    root: Tensor | None
    sum: Tensor = field(init=False)

    def __post_init__(self) -> None:
        size = self.classes * self.examples
        self.sum = self.like.new_zeros(size, size)

    def cotangent(self, at: int) -> Tensor:
        """Of the outputs [N, m], for rows of class `at`."""
        return cotangent(at, self.classes, self.examples, self.root, self.like)

    def add(self, gradients: Tensor) -> None:
        """Gradients [classes, examples, entries], already scaled by the root of plasticity."""
        flat = gradients.reshape(len(self.sum), -1).to(self.like.dtype)
        for begin, end in _cuts(len(flat), 64):
            self.sum[begin:end, begin:].addmm_(flat[begin:end], flat[begin:].T)

    def add_product(self, made: Tensor, between: Tensor) -> None:
        """(made made^T) * between: made [classes, examples, k], between [examples, examples]."""
        m, n = self.classes, self.examples
        view, flat = self.sum.view(m, n, m, n), made.reshape(m * n, -1)
        for begin, end in _cuts(m, -(-64 // n)):
            block = flat[begin * n : end * n] @ flat[begin * n :].T
            view[begin:end, :, begin:].addcmul_(block.view(end - begin, n, m - begin, n), between[None, :, None, :])

    def finished(self) -> Tensor:
        """[N * m, N * m] with rows i * m + c."""
        m, n = self.classes, self.examples
        for begin, end in _cuts(m * n, 64):  # below the diagonal, also of each block, there may be anything
            corner = self.sum[begin:end, begin:end]
            corner.copy_(corner.triu() + corner.triu(1).T)
            self.sum[end:, begin:end] = self.sum[begin:end, end:].T
        return self.sum.view(m, n, m, n).permute(1, 0, 3, 2).reshape(m * n, m * n)


def _cuts(size: int, least: int) -> list[tuple[int, int]]:
    step = max(least, -(-size // _PARTS))
    return [(begin, min(begin + step, size)) for begin in range(0, size, step)]


def _add_ranges(passed: Pass, some: Sequence[Found], total: _Total, net: Network) -> None:
    """Add what some ranges contribute."""
    back = returned(passed, some, [total.cotangent(at) for at in range(total.classes)])
    done: set[Range] = set()
    for found in some:
        if isinstance(found.uses[0], Product) and _plain(found, found.uses[0]):
            done |= _add_plain(found, found.uses[0], some, back, total, net)
    for found in some:
        if found.range in done:
            continue
        plastic = found.range.of(net.plasticity[found.range.weight]).to(total.like)
        if isinstance(found.uses[0], Scale):
            gradients = [
                scaled(use, back[id(use.call)], total.examples, total.like)
                for use in found.uses
                if isinstance(use, Scale)
            ]
            total.add(torch.stack(gradients).sum(0) * plastic.reshape(-1).sqrt())
        elif found.uses[0].table is not None and len(found.uses) == 1:
            _add_table(found.uses[0], back[id(found.uses[0].call)], plastic, total)
        else:
            _add_formed(found.uses, back, plastic, total)  # type: ignore[arg-type]


def _plain(found: Found, use: Product) -> bool:
    """Whether the range is used once, at one place of each example."""
    alone = len(found.uses) == 1 and use.groups == 1 and use.table is None
    return alone and use.places * use.call.before * use.call.behind == 1


def _add_plain(
    found: Found, use: Product, some: Sequence[Found], back: dict[int, Tensor], total: _Total, net: Network
) -> set[Range]:
    """One place per example: the Gram matrix of outer products is the product of the factors' Gram matrices."""
    known = use.known().flatten(1).to(total.like)
    made = back[id(use.call)].flatten(2).to(total.like)
    plastic = found.range.of(net.plasticity[found.range.weight]).to(total.like)
    plastic = plastic.T if use.rows_known else plastic  # [made, known]
    done = {found.range}
    outer = _separated(plastic)
    if outer is None:
        _add_patchwork(known, made, plastic, total)
        return done
    by_made, by_known = outer
    between = (known * by_known) @ known.T
    for other in some:
        shift = other.uses[0]
        beside = isinstance(shift, Scale) and shift.call is use.call and shift.factor == 1.0
        if beside and len(other.uses) == 1 and other.range.width == len(by_made):
            also = net.plasticity[other.range.weight].reshape(-1)[other.range.start : other.range.stop].to(by_made)
            if torch.equal(also, by_made):  # the shift is the weight of an input that is always 1
                between = between + 1
                done.add(other.range)
    total.add_product(made if bool((by_made == 1).all()) else made * by_made.sqrt(), between)
    return done


def _separated(plastic: Tensor) -> tuple[Tensor, Tensor] | None:
    """Vectors whose outer product a matrix of multipliers is: all plastic, or whole units pinned."""
    if not any(plastic.stride()):  # one number seen through the weight's shape
        return plastic[:, 0], torch.ones_like(plastic[0])
    top = plastic.max()
    if float(top) == 0:
        return plastic.new_zeros(len(plastic)), plastic.new_zeros(plastic.shape[1])
    rows, columns = plastic.amax(1), plastic.amax(0) / top
    return (rows, columns) if bool((rows[:, None] * columns == plastic).all()) else None


def _add_patchwork(known: Tensor, made: Tensor, plastic: Tensor, total: _Total) -> None:
    """As for separate factors, with multipliers that follow no pattern: one Gram matrix of inputs for each row."""
    m, n = total.classes, total.examples
    each = n * (known.shape[1] + n * m) * known.element_size()
    for rows in torch.arange(len(plastic), device=known.device).split(max(1, BYTES // each)):
        between = (known * plastic[rows, None]) @ known.T  # [rows, i, j]
        factor = made[:, :, rows]
        for at in range(m):
            left = between * factor[at].T[:, :, None]
            block = torch.bmm(left.permute(2, 1, 0), factor[at:].permute(1, 2, 0))  # [j, i, classes]
            total.sum.view(m, n, m, n)[at, :, at:] += block.permute(1, 2, 0)


def _add_table(use: Product, back: Tensor, plastic: Tensor, total: _Total) -> None:
    """Rows of a table: only those that were looked up, each between the examples that did."""
    assert use.table is not None
    m, n = total.classes, total.examples
    tokens = use.call.by_example(use.table, n)  # [N, places]
    width = back.shape[-1]
    made = torch.stack([use.call.by_example(one.reshape(-1, width), n) for one in back]).to(total.like)
    view = total.sum.view(m, n, m, n)
    for token in use.table.unique().tolist():
        if token == len(plastic):  # the padding
            continue
        here = tokens == token
        who = here.any(1).nonzero()[:, 0]
        summed = (made[:, who] * here[who, :, None].to(made)).sum(2) * plastic[token].sqrt()
        flat = summed.reshape(-1, width)
        block = (flat @ flat.T).view(m, len(who), m, len(who))
        view[:, who[:, None], :, who] += block.permute(1, 3, 0, 2)


def _add_formed(uses: Sequence[Product], back: dict[int, Tensor], plastic: Tensor, total: _Total) -> None:
    """Form gradients for some rows of the weight at a time, summed over all uses, and multiply them."""
    m, n, groups = total.classes, total.examples, uses[0].groups
    alive = plastic.amax(1) > 0
    columns = (plastic.amax(0) > 0).nonzero()[:, 0]
    factors = [factors_of(use, back[id(use.call)], n, total.like) for use in uses]
    if len(columns) < plastic.shape[1]:
        factors = [(high, wide[..., columns]) for high, wide in factors]
    height, width = len(plastic) // groups, len(columns)
    size = max(1, BYTES // (m * n * width * total.like.element_size()))
    for group in range(groups):
        inside = alive[group * height : (group + 1) * height].nonzero()[:, 0]
        for rows in inside.split(size):
            gradient = formed(factors, group, rows)
            some = plastic[group * height + rows][:, columns]
            if not bool((some == 1).all()):
                gradient = gradient * some.sqrt()
            total.add(gradient.transpose(0, 1))


def _price(found: Found, net: Network, examples: int, classes: int) -> int:
    """Multiply-adds of the products between gradients."""
    rows, use, shape = examples * classes, found.uses[0], found.range
    plastic = net.plasticity[shape.weight]
    if isinstance(use, Product) and _plain(found, use):
        plain = found.range.of(plastic)
        made, known = (shape.width, shape.height) if use.rows_known else (shape.height, shape.width)
        if _separated(plain) is not None:
            return rows**2 * made // 2 + examples**2 * known
        return made * (examples**2 * known + rows**2)
    if isinstance(use, Product) and use.table is not None and len(found.uses) == 1:
        return rows**2 * shape.width * use.call.before * use.call.behind
    entries = int((found.range.of(plastic) > 0).sum())
    places = sum(u.places * u.call.before * u.call.behind for u in found.uses if isinstance(u, Product))
    return entries * (rows**2 // 2 + rows * places)


# ---------------------------------------------------------------------------------------- the general way


def _add_generally(passed: Pass, name: str, total: _Total, net: Network, rows: Tensor) -> None:
    """Add what one weight contributes by its Jacobian, some entries at a time."""
    plastic = net.plasticity[name].reshape(-1).to(total.like)
    each = total.classes * total.examples * total.like.element_size()
    for some in (plastic > 0).nonzero()[:, 0].split(max(1, BYTES // each)):
        jacobian = by_example(passed, name, some, total.classes, net, rows)
        if jacobian is None:
            jacobian = _row_by_row(passed, name, some, total)
        elif total.root is not None:
            jacobian = total.root.to(jacobian) @ jacobian
        total.add(jacobian.to(total.like).transpose(0, 1) * plastic[some].sqrt())


def _row_by_row(passed: Pass, name: str, some: Tensor, total: _Total) -> Tensor:
    """The same by one backward pass for every output of every example: exact for whatever ran."""
    jacobian = passed.outputs.new_zeros(total.examples, total.classes, len(some))
    for at in range(total.classes):
        cotangents = total.cotangent(at).to(passed.outputs)
        for example in range(total.examples):
            one = torch.zeros_like(cotangents)
            one[example] = cotangents[example]
            (found,) = passed.gradients(one, [passed.leaves[name]])
            if found is not None:
                jacobian[example, at] = found.reshape(-1)[some]
    return jacobian
