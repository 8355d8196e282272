"""Curves: the exact score of a chain at many points along nested orders of deletion.

Lesions along an order are nested, so each point is little more than the point before. Units are laid out by their
death, the last to die in front: the living are always a prefix, and no point gathers anything. A product whose input
has changed by deletions alone loses the contributions of the newly dead; where its input has changed otherwise it is
computed on living rows and columns only; what has not changed is left alone. Everything before the first layer that
loses units is computed once for all orders.

Activations are held units first and examples last, [units, *positions, examples]: then a prefix of units is one piece
of memory, a convolution is a matrix product behind shifted copies, and flattening costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from planaria.core.anatomy import Unit
from planaria.core.errors import InputError
from planaria.core.gemm import fast_products
from planaria.sweep.chain import Chain, Stage
from planaria.sweep.tally import Judge, Tally

WORK = 6 * 2**20
"""Bytes of activations that are worked on at a time: some of them wait in the second cache (measured: 2 to 8 MiB)."""

SHARED = 2**28
"""Bytes of activations that are kept for all orders."""

SHRINKING = 4.0
"""A product is made anew once it can only be this many times smaller than what it was last made of, so that rounding
errors that the dead have left behind stay of the size of those that the living make."""

_MIXES = frozenset(["_softmax", "_log_softmax"])
"""Steps by which one unit's activation depends on another's."""


def curvable(chain: Chain, layers: Iterable[str]) -> str:
    """Why `curves` cannot follow deletions in these layers; "" if it can.

    Args:
        chain: Of the network.
        layers: Names of the layers that lose units.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> net = Network.of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 4))
        >>> curvable(Chain.of(net), ["0"]), curvable(Chain.of(net), ["2"])
        ('', "layer '2' makes no units of the chain")
    """
    known = {stage.layer: at for at, stage in enumerate(chain.stages[:-1]) if stage.layer}
    wanted = list(dict.fromkeys(layers))
    for layer in wanted:
        if layer not in known:
            return f"layer {layer!r} makes no units of the chain"
        at = known[layer]
        stage, reader = chain.stages[at], chain.stages[at + 1]
        plain = stage.linear and reader.linear
        if math.isnan(stage.silent) or (stage.silent != 0 and not plain):
            return f"a silenced unit of layer {layer!r} is not the same at every position"
    for stage in chain.stages[min((known[layer] for layer in wanted), default=len(chain.stages)) : -1]:
        if any(step.name in _MIXES for step in stage.steps):
            return f"{stage.name}: each unit's activation depends on the others'"
    return ""


def curves(
    chain: Chain,
    orders: Sequence[Sequence[Unit]],
    counts: Sequence[int],
    inputs: Tensor,
    targets: Tensor,
    judge: Judge,
    *,
    rows: Sequence[Tensor] | None = None,
) -> Tally:
    """Changes of the score at each count of deletions along each order, exact.

    At point p of order o the first `counts[p]` units of `orders[o]` are silent: they say nothing to their readers.
    Units that are in no order stay as they are.

    Args:
        chain: Of the network; `curvable` for the layers of the orders.
        orders: Units in the order of their deletion, each order for itself; of some layers or all.
        counts: Numbers of deleted units, the same for all orders; usually ascending, from 0.
        inputs: [examples, ...], a block in memory.
        targets: [examples, ...].
        judge: How outputs are scored.
        rows: For each order the examples it is judged on, [number]; by default all of them.

    Returns:
        Tally [orders, counts] of the changes against the intact network, over the examples of the order.

    Raises:
        InputError: A unit does not exist or comes twice, a count is below 0 or beyond an order, rows do not fit, or
            the chain is not `curvable`.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> from planaria.measure.scores import ACCURACY
        >>> first, last = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = first.weight.copy_(torch.eye(2)), first.bias.zero_(), last.weight.copy_(torch.eye(2))
        >>> net = Network.of(nn.Sequential(first, nn.ReLU(), last), torch.ones(1, 2))
        >>> order, x, y = [Unit("0", 1), Unit("0", 0)], torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([0, 1])
        >>> curves(Chain.of(net), [order], [0, 1, 2], x, y, Judge(ACCURACY)).total
        tensor([[ 0., -1., -1.]], dtype=torch.float64)

    Source: nested lesions (removal curves) are common; the layout with examples last is that of Krizhevsky, 2014
        (cuda-convnet2).

    Not guaranteed: predictions where the two largest outputs lie within rounding of each other.
    """
    if len(inputs) != len(targets) or (rows is not None and len(rows) != len(orders)):
        raise InputError("curves(targets, rows)", "one target per example, rows for each order", "other numbers")
    if rows:
        used, places = torch.unique(torch.cat([own.to(inputs.device) for own in rows]), return_inverse=True)
        inputs, targets, rows = inputs[used], targets[used.to(targets.device)], places.split([len(own) for own in rows])
    plan = _Plan.of(chain, orders, counts)
    sums = Tally.zeros((len(orders), len(plan.points)), judge.classes, plan.device)
    with torch.inference_mode():
        for number, scenes in _scenes(plan, inputs, targets, judge, rows) if plan.points and len(inputs) else ():
            levels = plan.levels(number)
            for scene in scenes:
                for points, outputs in _follow(plan.orders[number], levels, scene):
                    _note(sums, number, points, chain.stages[-1], outputs, scene, judge)
    columns = [plan.points.index(count) if count else -1 for count in counts]  # the last one: nothing changes

    def asked(sum: Tensor) -> Tensor:
        return torch.cat([sum, sum.new_zeros(len(sum), 1, *sum.shape[2:])], 1)[:, columns]

    by_class = None if sums.by_class is None else asked(sums.by_class)
    return Tally(asked(sums.total), asked(sums.rose), asked(sums.fell), asked(sums.squares), by_class)


# -------------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True, eq=False)
class _Order:
    """Where an order leads: the first stage that loses units, each stage's units (last to die first), who lives."""

    first: int
    units: Mapping[int, Tensor]
    living: list[list[int]]


@dataclass(frozen=True, eq=False)
class _Plan:
    chain: Chain
    orders: list[_Order]
    points: list[int]  # the different counts above 0, ascending

    @staticmethod
    def of(chain: Chain, orders: Sequence[Sequence[Unit]], counts: Sequence[int]) -> _Plan:
        reason = curvable(chain, (unit.layer for order in orders for unit in order))
        if reason:
            raise InputError("curves(chain)", "a chain whose deletions can be followed", reason)
        most = min((len(order) for order in orders), default=0)
        if any(not 0 <= count <= most for count in counts):
            raise InputError("curves(counts)", f"numbers from 0 to {most}, the length of the orders", list(counts))
        points = sorted(set(counts) - {0})
        return _Plan(chain, [_read(chain, order, points) for order in orders], points)

    @property
    def device(self) -> torch.device:
        return self.chain.stages[0].weight.device

    def levels(self, number: int) -> list[_Level]:
        """The stages behind the first that loses units, with their weights in the order of death."""
        order, levels = self.orders[number], []
        for at in range(order.first + 1, len(self.chain.stages)):
            stage, before = self.chain.stages[at], self.chain.stages[at - 1]
            silent = before.silent if at - 1 in order.units else 0.0
            weight = stage.weight.reshape(stage.made, before.made, -1)
            shift = stage.shift if stage.shift is not None else weight.new_zeros(stage.made)
            if silent:
                shift = shift + silent * weight.sum((1, 2))
            rows, columns = order.units.get(at), order.units.get(at - 1)
            if columns is not None:
                weight = weight.index_select(1, columns)
            if rows is not None:
                weight, shift = weight.index_select(0, rows), shift.index_select(0, rows)
            own = stage.silent if at in order.units else 0.0
            heaviest = _largest(weight.movedim(1, 0).flatten(1))
            levels.append(_Level(stage, weight.flatten(1), shift[:, None], weight.shape[2], own, heaviest))
        return levels


def _read(chain: Chain, order: Sequence[Unit], points: Sequence[int]) -> _Order:
    known = {stage.layer: at for at, stage in enumerate(chain.stages)}
    deaths: dict[int, list[int]] = {}
    times: dict[int, list[int]] = {}
    for time, unit in enumerate(order):
        at = known[unit.layer]
        if unit.index >= chain.stages[at].made:
            raise InputError(
                f"Unit({unit.layer!r}, {unit.index})", f"an index below {chain.stages[at].made}", unit.index
            )
        deaths.setdefault(at, []).append(unit.index)
        times.setdefault(at, []).append(time)
    first = min(deaths, default=len(chain.stages) - 1)
    units: dict[int, Tensor] = {}
    living = []
    for at in range(first, len(chain.stages)):
        dying, stage = deaths.get(at, []), chain.stages[at]
        if len(set(dying)) < len(dying):
            twice = next(index for index in dying if dying.count(index) > 1)
            raise InputError("curves(orders)", "every unit once", f"{Unit(stage.layer, twice)} twice")
        if dying:
            gone = set(dying)
            stay = [index for index in range(stage.made) if index not in gone]
            units[at] = torch.tensor(stay + dying[::-1], device=stage.weight.device)
        dead = torch.searchsorted(torch.tensor(times.get(at, []), dtype=torch.long), torch.tensor(points))
        living.append((stage.made - dead).tolist())
    return _Order(first, units, [list(row) for row in zip(*living, strict=True)])


# ------------------------------------------------------------------------------------------------------ scenes


@dataclass(frozen=True, eq=False)
class _Scene:
    """Some examples as the intact network sees them; units are in their own order."""

    read: Mapping[int, Tensor]  # stage that loses units first -> what it says, [units, *positions, examples]
    pre: Mapping[int, Tensor]  # and the product behind it, with its shift
    loudest: Mapping[int, Tensor]  # largest size of anything each unit says
    intact: Tensor
    targets: Tensor


def _scenes(
    plan: _Plan, inputs: Tensor, targets: Tensor, judge: Judge, rows: Sequence[Tensor] | None
) -> Iterator[tuple[int, Iterable[_Scene]]]:
    """Every order with what it is followed on; orders may come several times, with other examples."""
    chunk, block = _sizes(plan, inputs)
    for part in _slices(len(inputs), block):
        whole = _see(plan, inputs[part], targets[part], judge, chunk)
        shared = [_facing(whole, at, whole.read) for at in _slices(len(whole.intact), chunk)] if rows is None else []
        for number, order in enumerate(plan.orders):
            scenes = shared
            if rows is not None:
                own = rows[number].to(plan.device) - part.start
                own = own[(own >= 0) & (own < len(whole.intact))]
                scenes = [_facing(whole, at, [order.first]) for at in own.split(chunk) if len(at)]
            yield number, scenes


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(at, at + size) for at in range(0, length, size))


def _sizes(plan: _Plan, inputs: Tensor) -> tuple[int, int]:
    """Examples that are worked on at a time, and that are kept for all orders."""
    x = plan.chain.begin(inputs[:1].to(plan.device))
    firsts = {order.first for order in plan.orders}
    worked = kept = 1
    for at, stage in enumerate(plan.chain.stages):
        pre = stage.pre(x)
        both = (x.numel() + pre.numel()) * pre.element_size()
        worked += both if at > min(firsts) else 0
        kept += both if at - 1 in firsts else 0
        x = stage.post(pre)
    work = WORK if plan.device.type == "cpu" else SHARED
    chunk = max(16, work // worked // 16 * 16)  # whole registers
    return chunk, max(1, SHARED // kept // chunk) * chunk


def _see(plan: _Plan, inputs: Tensor, targets: Tensor, judge: Judge, chunk: int) -> _Scene:
    """What the intact network says to some examples, as far as the orders need it; examples first as yet."""
    chain, device = plan.chain, plan.device
    reads: dict[int, list[Tensor]] = {order.first: [] for order in plan.orders}
    pres: dict[int, list[Tensor]] = {at: [] for at in reads}
    values = []
    targets = targets.to(device)
    for at in range(0, len(inputs), chunk):
        x = chain.begin(inputs[at : at + chunk].to(device))
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)  # pooling is several times as quick
        for number, stage in enumerate(chain.stages):
            with fast_products(device):
                pre = stage.pre(x)
            if number - 1 in reads:
                before = chain.stages[number - 1]
                said = x - before.silent if before.silent else x
                reads[number - 1].append(said.unflatten(1, (before.made, -1)) if said.ndim == 2 else said)
                pres[number - 1].append(pre)
            x = stage.post(pre)
        values.append(judge.values(x, targets[at : at + chunk]))
    return _Scene(
        {at: torch.cat(parts) for at, parts in reads.items()},
        {at: torch.cat(parts) for at, parts in pres.items()},
        {},
        torch.cat(values),
        targets,
    )


def _facing(whole: _Scene, part: slice | Tensor, firsts: Iterable[int]) -> _Scene:
    """Some of the examples, units first, for orders that begin at these stages."""

    def turned(tensor: Tensor) -> Tensor:
        return tensor[part].movedim(0, -1).contiguous()

    read = {at: turned(whole.read[at]) for at in firsts}
    return _Scene(
        read,
        {at: turned(whole.pre[at]) for at in read},
        {at: _largest(said.flatten(1)) for at, said in read.items()},
        whole.intact[part],
        whole.targets[part],
    )


# ------------------------------------------------------------------------------------------------------- steps


@dataclass(eq=False)
class _Level:
    """A stage in the course of an order: its product as it is now, the living in front."""

    stage: Stage
    weight: Tensor  # [units, units read * entries], both sorted by death
    shift: Tensor  # [units, 1]
    entries: int  # of the weight, per unit made and unit read
    silent: float  # what a silenced unit says here; its readers' shift holds it already
    heaviest: Tensor  # [units read], the largest weight that reads each
    units: Tensor | None = None  # order in which it reads what is not sorted
    product: Tensor | None = None  # [units, *positions, examples]
    holds: int = -1  # units read that the product is made of; -1 before it is made
    base: int = 0  # units read when it was made last
    scale: list[float] | None = None  # bound of the product by the number of units it holds, since then
    said: Tensor | None = None  # memory for what the units say

    def start(self) -> None:
        """Forget the examples before."""
        self.product, self.holds, self.base, self.scale, self.said = None, -1, 0, None, None

    def begin(self, product: Tensor, units: Tensor, loudest: Tensor) -> None:
        """Take over a product that holds all units of what is read, in another order and so loud at most."""
        self.product, self.units, self.holds, self.base = product, units, len(units), len(units)
        self.scale = self._scale(loudest[units])

    def advance(self, read: Tensor, moved: bool, reads: int, lives: int) -> bool:
        """Bring the product of the living up to date; whether it has changed.

        `read` is what the stage reads, of which the first `reads` units live and have `moved` or not since the last
        time; `lives` is the number of its own units that live, at least 1.
        """
        if self.holds < 0 or self.product is None or (moved and self.holds > 0):
            self._make(read, reads, lives)
        elif reads == self.holds:
            return False
        elif self._may_subtract(read, reads):
            columns, _ = self._columns(read, reads, self.holds)
            weight = self.weight[:lives, reads * self.entries : self.holds * self.entries]
            self.product[:lives].view(lives, -1).addmm_(weight, columns, alpha=-1)
        else:
            self._make(read, reads, lives)
        self.holds = reads
        return True

    def post(self, lives: int) -> Tensor:
        """What the living say, less what silence says: [lives, *positions, examples]."""
        assert self.product is not None
        x = self.product[:lives]
        if self.stage.rectifies:
            if self.said is None:
                self.said = torch.empty_like(self.product)
            torch.clamp_min(x, 0, out=self.said[:lives])
            return self.said[:lives]
        # Positions and examples change places in name only: pooling runs over the maps of any two leading axes.
        x = x.movedim(-1, 1)
        for step in self.stage.steps:
            if step.name != "flatten":
                x = step.function(x)
        x = x.movedim(1, -1)
        return x - self.silent if self.silent else x

    def _make(self, read: Tensor, reads: int, lives: int) -> None:
        columns, positions = self._columns(read, 0, reads)
        if self.product is None:
            self.product = columns.new_empty(len(self.weight), *positions, read.shape[-1])
        weight, product = self.weight[:lives, : reads * self.entries], self.product[:lives].view(lives, -1)
        torch.addmm(self.shift[:lives], weight, columns, out=product)
        self.scale, self.base = None, reads

    def _columns(self, read: Tensor, start: int, stop: int) -> tuple[Tensor, tuple[int, ...]]:
        """What some units add to the product, [units * entries, positions * examples], and the positions it makes."""
        read = read[start:stop] if self.units is None else read.index_select(0, self.units[start:stop])
        if self.stage.geometry is None:
            return read.reshape(len(read) * self.entries, read.shape[-1]), ()
        stride, padding, dilation = self.stage.geometry
        if any(padding):
            read = functional.pad(read, [0, 0, *(p for pad in reversed(padding) for p in (pad, pad))])
        read = read.contiguous()
        kernel = self.stage.weight.shape[2:]
        sizes = zip(read.shape[1:-1], kernel, stride, dilation, strict=True)
        made = tuple((size - gap * (taps - 1) - 1) // step + 1 for size, taps, step, gap in sizes)
        unit, *along, example = read.stride()
        taps_along = [gap * jump for gap, jump in zip(dilation, along, strict=True)]
        made_along = [step * jump for step, jump in zip(stride, along, strict=True)]
        shape = (len(read), *kernel, *made, read.shape[-1])
        windows = read.as_strided(shape, (unit, *taps_along, *made_along, example))
        return windows.reshape(len(read) * self.entries, math.prod(made) * read.shape[-1]), made

    def _may_subtract(self, read: Tensor, reads: int) -> bool:
        """Whether subtracting is cheaper than making the product anew, and as exact."""
        if reads <= self.holds - reads:
            return False
        if self.scale is None:
            self.scale = self._scale(_largest(read[: self.holds].flatten(1)))
        left, were = self.scale[reads], self.scale[self.base]
        return math.isfinite(were) and were <= SHRINKING * left

    def _scale(self, loudest: Tensor) -> list[float]:
        """Largest size that the product of so many units in front can have."""
        return [0.0, *(loudest * self.heaviest[: len(loudest)]).cumsum(0).tolist()]


def _largest(rows: Tensor) -> Tensor:
    """Largest size of any entry of each row; twice as quick as by way of the absolute values."""
    return torch.maximum(rows.amax(1), -rows.amin(1))


def _follow(order: _Order, levels: list[_Level], scene: _Scene) -> Iterator[tuple[slice, Tensor]]:
    """Go along one order with some examples: points, and their last products [points, outputs, ..., examples]."""
    read, pre = scene.read[order.first], scene.pre[order.first]
    units, rows = order.units[order.first], order.units.get(order.first + 1)
    pre = pre.clone() if rows is None else pre.index_select(0, rows)
    for level in levels:
        level.start()
    levels[0].begin(pre, units, scene.loudest[order.first])
    said: list[Tensor | None] = [read, *[None] * len(levels)]  # what each level reads
    outputs = pre
    for point, living in enumerate(order.living):
        moved = False
        for at, level in enumerate(levels):
            reads, lives = living[at], max(living[at + 1], 1)  # at least one, so that nothing meets an empty tensor
            heard = said[at]
            assert heard is not None
            moved = level.advance(heard, moved, reads, lives)
            if level is not levels[-1] and (moved or said[at + 1] is None):
                said[at + 1] = level.post(lives)
        last = levels[-1].product
        assert last is not None
        slab = max(1, min(len(order.living), WORK // (last.numel() * last.element_size())))
        if point % slab == 0:
            outputs = last.new_empty(slab, *last.shape)
        outputs[point % slab].copy_(last)
        if point % slab == slab - 1 or point == len(order.living) - 1:
            yield slice(point - point % slab, point + 1), outputs[: point % slab + 1]


# ---------------------------------------------------------------------------------------------------- counting


def _note(sums: Tally, number: int, points: slice, last: Stage, outputs: Tensor, scene: _Scene, judge: Judge) -> None:
    """Count the changes at some points of an order; outputs are products of the last stage."""
    intact, targets = scene.intact, scene.targets
    right = None
    if judge.counts_predictions and outputs.ndim == 3 and targets.ndim == 1 and not last.steps:
        right = _right(outputs, targets, judge)
    if right is not None:
        rose, fell = (right > (intact > 0)).sum(1), (right < (intact > 0)).sum(1)
        change, total, squares = right, rose - fell, rose + fell
    else:
        said = last.post(outputs.movedim(-1, 1).flatten(0, 1))
        values = judge.values(said, targets.repeat(len(outputs), *[1] * (targets.ndim - 1)))
        change = values.view(len(outputs), -1) - intact
        rose, fell = (change > 0).sum(1), (change < 0).sum(1)
        total, squares = change.sum(1), change.square().sum(1)
    sums.total[number, points] += total
    sums.rose[number, points] += rose
    sums.fell[number, points] += fell
    sums.squares[number, points] += squares
    if sums.by_class is not None:
        change = change if right is None else right.double() - intact
        sums.by_class[number, points].index_add_(1, targets, change)


def _right(outputs: Tensor, targets: Tensor, judge: Judge) -> Tensor | None:
    """Whether the largest of the outputs [points, classes, examples] is the label's; None where that needs more care.

    Overwrites the outputs unless the answer is None.
    """
    known = bool(((targets >= 0) & (targets < outputs.shape[1])).all())
    if not known or not bool(outputs.sum().isfinite()):
        return None
    label = targets.long().expand(len(outputs), 1, -1)
    own = outputs.gather(1, label)
    rival = outputs.scatter_(1, label, -math.inf).amax(1, keepdim=True)
    right, tied = (own > rival).squeeze(1), (own == rival).squeeze(1)
    if bool(tied.any()):
        rows = outputs.scatter_(1, label, own).movedim(1, -1)[tied]
        right[tied] = judge.values(rows, targets.expand_as(tied)[tied]) > 0
    return right
