"""Gram matrix of a network's gradients, K = J P J^T, layer by layer and without ever forming J.

J has a row for every example and output and a column for every weight: too large to hold. But where a layer multiplies
by a weight, its part of a row is the product of what came into the layer and of the gradient that came back to it, so
that its part of K follows from these two alone. They are read below autograd, where every architecture consists of a
few operations: matrix products, convolutions, normalisations, tables, sums and element-wise products. Weights used in
any other way go a slower way, example by example.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.core.port import Inputs
from planaria.geometry.passes import Pass, written_out
from planaria.geometry.uses import Found, Product, Range, Scale

ROWS = 4000
"""Examples times outputs up to which a Gram matrix is worth its memory and its factorisation."""

_BYTES = 1 << 26
"""Of one block of gradients, or of what comes back to the layers that are taken at a time."""

_WORTH = 200
"""Products of the metric that may be spent instead: about what conjugate gradients take for one precise solve."""

_FEW = 3
"""Examples that show how examples lie in what every operation returns."""

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
    rows = net.port.rows(inputs).to(net.device)
    passed = Pass.of(net, rows, "gram")
    outputs = passed.outputs.reshape(len(rows), -1)
    if root is not None and root.shape != (*outputs.shape, outputs.shape[1]):
        raise InputError("gram(root)", f"shape {[*outputs.shape, outputs.shape[1]]}", f"shape {list(root.shape)}")
    total = _Total(outputs.shape[1], len(rows), outputs.new_zeros((), dtype=dtype), root)
    left = _placed(net, rows, passed)
    for some in _bunches(passed.ranges(left), total.classes):
        _add_ranges(passed, some, total, net)
    for name in left:
        _add_generally(passed, name, total, net, rows)
    return total.finished()


def _placed(net: Network, rows: Tensor, passed: Pass) -> list[str]:
    """Place the examples in every call, by a pass of a few where the data choose nothing; see `Pass.place`."""
    if not passed.chooses and len(rows) > 2 * _FEW:
        few = Pass.of(net, rows[:_FEW], "gram")
        left = few.place(_FEW)
        if passed.adopt(few, len(rows), _FEW):
            return left
    return passed.place(len(rows))


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
    few = rows[:1]
    classes = net(few).numel()
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
        if self.root is not None:
            return self.root[:, at]
        return F.one_hot(torch.tensor(at, device=self.like.device), self.classes).expand(self.examples, -1)

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


def _bunches(ranges: Sequence[Found], classes: int) -> Iterator[list[Found]]:
    """Ranges whose gradients are held at a time."""
    some: list[Found] = []
    held: dict[int, int] = {}
    for found in ranges:
        more = {id(use.call): math.prod(use.call.shape) * classes * 4 for use in found.uses}
        if some and sum((held | more).values()) > 4 * _BYTES:
            yield some
            some, held = [], {}
        some.append(found)
        held |= more
    if some:
        yield some


def _add_ranges(passed: Pass, some: Sequence[Found], total: _Total, net: Network) -> None:
    """Add what some ranges contribute."""
    calls = list({id(use.call): use.call for found in some for use in found.uses}.values())
    rounds = [passed.back(total.cotangent(at), calls) for at in range(total.classes)]
    back = {id(call): torch.stack([one[at] for one in rounds]) for at, call in enumerate(calls)}
    del rounds
    done: set[Range] = set()
    for found in some:
        if isinstance(found.uses[0], Product) and _plain(found, found.uses[0]):
            done |= _add_plain(found, found.uses[0], some, back, total, net)
    for found in some:
        if found.range in done:
            continue
        plastic = found.range.of(net.plasticity[found.range.weight]).to(total.like)
        if isinstance(found.uses[0], Scale):
            gradients = [_scaled(use, back[id(use.call)], total) for use in found.uses if isinstance(use, Scale)]
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
    for rows in torch.arange(len(plastic), device=known.device).split(max(1, _BYTES // each)):
        between = (known * plastic[rows, None]) @ known.T  # [rows, i, j]
        factor = made[:, :, rows]
        for at in range(m):
            left = between * factor[at].T[:, :, None]
            block = torch.bmm(left.permute(2, 1, 0), factor[at:].permute(1, 2, 0))  # [j, i, classes]
            total.sum.view(m, n, m, n)[at, :, at:] += block.permute(1, 2, 0)


def _scaled(use: Scale, back: Tensor, total: _Total) -> Tensor:
    """Gradients [classes, examples, entries] of a weight that is used entry by entry."""
    call, rest = use.call, use.call.shape[use.call.lead :]
    factor = use.factor if isinstance(use.factor, float) else use.factor()
    parts = []
    for one in back:
        product = (one * factor).reshape(-1, *rest).to(total.like)
        parts.append(_narrowed(call.by_example(product, total.examples).sum(1), use.shape).reshape(total.examples, -1))
    return torch.stack(parts)


def _narrowed(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Summed over the axes along which a weight of this shape was repeated."""
    axes = [1 + at for at, (size, wide) in enumerate(zip(shape, tensor.shape[1:], strict=True)) if size == 1 < wide]
    return tensor.sum(axes, keepdim=True) if axes else tensor


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
    factors = []
    for use in uses:
        known = _together(use, use.known(), total)[:, :, None]  # [N, places, 1 or classes, groups, k]
        made = torch.stack([_together(use, use.made(one), total) for one in back[id(use.call)]], 2)
        factors.append((known, made) if use.rows_known else (made, known))
    if len(columns) < plastic.shape[1]:
        factors = [(high, wide[..., columns]) for high, wide in factors]
    height, width = len(plastic) // groups, len(columns)
    size = max(1, _BYTES // (m * n * width * total.like.element_size()))
    for group in range(groups):
        inside = alive[group * height : (group + 1) * height].nonzero()[:, 0]
        for rows in inside.split(size):
            gradient = None
            for high, wide in factors:
                left, right = high[:, :, :, group][..., _neighbours(rows)], wide[:, :, :, group]
                product = torch.bmm(left.flatten(2).transpose(1, 2), right.flatten(2))
                if left.shape[2] == 1:  # what comes back lies along the columns: [N, rows, classes * width]
                    product = product.view(n, len(rows), m, width).transpose(1, 2)
                product = product.reshape(n, m, len(rows), width)
                gradient = product if gradient is None else gradient + product
            assert gradient is not None
            some = plastic[group * height + rows][:, columns]
            if not bool((some == 1).all()):
                gradient = gradient * some.sqrt()
            total.add(gradient.transpose(0, 1))


def _neighbours(rows: Tensor) -> Tensor | slice:
    """The same rows as a slice where they are neighbours, for which nothing need be copied."""
    first, last = int(rows[0]), int(rows[-1]) + 1
    return slice(first, last) if last - first == len(rows) else rows


def _together(use: Product, factor: Tensor, total: _Total) -> Tensor:
    """[leading places, places, groups, k] -> [N, all places, groups, k]."""
    return use.call.by_example(factor, total.examples).flatten(1, 2).to(total.like)


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
    for some in (plastic > 0).nonzero()[:, 0].split(max(1, _BYTES // each)):
        jacobian = _by_example(passed, name, some, total, net, rows)
        if jacobian is None:
            jacobian = _row_by_row(passed, name, some, total)
        total.add(jacobian.to(total.like).transpose(0, 1) * plastic[some].sqrt())


def _by_example(passed: Pass, name: str, some: Tensor, total: _Total, net: Network, rows: Tensor) -> Tensor | None:
    """Jacobian [N, m, entries], one example at a time seen by the network; None where it cannot be taken so."""
    weights = {key: leaf.detach() for key, leaf in passed.leaves.items()}
    whole = weights[name].reshape(-1)

    def one(part: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        moved = whole.index_copy(0, some, part).view(weights[name].shape)
        buffers = {key: buffer.clone() for key, buffer in net.buffers.items()}
        outputs = net.evaluate(row[None], {**weights, name: moved}, buffers).reshape(-1)
        return outputs, outputs

    step = max(1, _BYTES // (8 * total.classes * max(1, whole.numel())))
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
    if not apart <= 1e-4 * float(expected.double().norm()) + 1e-12:
        return None
    return jacobian if total.root is None else total.root.to(jacobian) @ jacobian


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
