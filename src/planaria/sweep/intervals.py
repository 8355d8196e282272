"""Intervals: by how much a unit's pre-activation may move before a prediction turns, and the counts that follow.

Changing one weight (j <- i) moves the pre-activation of unit j by t = (new - old) * x_i and nothing else in its layer.
For units that feed the outputs, and for the outputs, the t at which the label wins are an interval, which `Exact`
computes. For units further down `Certified` bounds what follows of a move, in the intact network and around moves that
it has computed, so that few have to be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from planaria.sweep.chain import Chain, Stage

CELLS = 2**16
"""Changes compared at a time: with the flags they fit into a processor's second cache."""

PAIRWISE = 128
"""Classes up to which rises are bounded for each pair of them."""

FEW = 6
"""Changes of one example and unit that are rather computed than proven: a proof costs as much as so many of them."""

HEAP = 2048
"""Changes of one unit that are computed at once rather than proven."""

COMPARED, COMPUTED, PROVEN = 25.0, 400.0, 12.0
"""Price in multiply-adds of a comparison, and of a computed change per unit of the next layer; the most that are
computed of one example and unit, the others being proven by them. All measured."""


@dataclass(frozen=True, eq=False)
class Intact:
    """The undamaged pass over some examples; a weight of the first stage is what changes.

    Attributes:
        chain: Stages from the one that changes to the outputs.
        read: What each stage reads.
        made: What each stage's product makes, before its steps; the last are the logits.
        targets: Labels [examples].
        right: Whether the predictions are right [examples].
    """

    chain: Chain
    read: list[Tensor]
    made: list[Tensor]
    targets: Tensor
    right: Tensor

    def some(self, rows: Tensor) -> Intact:
        """The same for some examples."""
        read, made = [x[rows] for x in self.read], [z[rows] for z in self.made]
        return Intact(self.chain, read, made, self.targets[rows], self.right[rows])

    @property
    def logits(self) -> Tensor:
        """[examples, classes]."""
        return self.made[-1]

    @property
    def tame(self) -> Tensor:
        """Whether none of an example's numbers is NaN, infinite or close to it [examples]."""
        bound = torch.finfo(self.logits.dtype).max / 4
        result = torch.ones_like(self.right)
        for values in (*self.read, *self.made):
            result &= values.abs().amax(1) <= bound
        return result


def is_right(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether each row of finite logits is largest at its target."""
    return (logits.argmax(1) == targets) & logits.isfinite().all(1)


def finish(chain: Chain, at: int, made: Tensor) -> Tensor:
    """Logits from what the product of stage `at` makes."""
    for before, stage in zip(chain.stages[at:], chain.stages[at + 1 :], strict=False):
        made = stage.pre(before.post(made))
    return made


# ----------------------------------------------------------------------------------------- rows of changes


def _by_label(targets: Tensor) -> Iterator[tuple[int, slice]]:
    """Each label with its examples, which are sorted by label."""
    labels, counts = targets.unique_consecutive(return_counts=True)
    end = 0
    for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
        yield label, slice(end, end + count)
        end += count


def _spread(x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds [examples, made] of x_i * delta_ji over i; NaN where a change of weight is not finite."""
    up, down = x.amax(1).clamp(min=0).unsqueeze(1), x.amin(1).clamp(max=0).unsqueeze(1)
    wild = ~delta.isfinite().all(1)
    high = delta.amax(1).clamp(min=0).masked_fill(wild, math.nan)
    low = delta.amin(1).clamp(max=0).masked_fill(wild, math.nan)
    if not bool(down.any()):
        return up * low, up * high
    return torch.minimum(up * low, down * high), torch.maximum(up * high, down * low)


def _bands(x: Tensor, open: Tensor, size: int) -> Iterator[tuple[int, Tensor | slice, Tensor]]:
    """Unit, examples that are open there, and what they read, so many examples at a time as stay in the cache."""
    counts = open.sum(0).tolist()
    rows = open.T.nonzero()[:, 1].split(counts)
    for j, count in enumerate(counts):
        if count > 0.7 * len(x):  # closed ones among them do no harm, and need not be copied
            for start in range(0, len(x), size):
                band = slice(start, start + size)
                yield j, band, x[band]
        elif count:
            for part in rows[j].split(size):
                yield j, part, x[part]


@dataclass(frozen=True, eq=False)
class _Compare:
    """Room to compare the changes of some rows in; flags are numbers, for torch compares into them fivefold faster."""

    change: Tensor
    inside: Tensor

    @staticmethod
    def of(x: Tensor, cells: int) -> _Compare:
        size = max(1, min(len(x), cells // x.shape[1]))
        return _Compare(x.new_empty(size, x.shape[1]), x.new_empty(size, x.shape[1]))

    def changes(self, x: Tensor, delta: Tensor) -> Tensor:
        """x_i * delta_i."""
        return torch.mul(x, delta, out=self.change[: len(x)])

    def within(self, change: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        """1 where a change is from lo to hi, else 0 (also for NaN); the changes are overwritten."""
        inside = torch.le(change, hi.unsqueeze(1), out=self.inside[: len(change)])
        return inside.mul_(change.ge_(lo.unsqueeze(1)))


# ------------------------------------------------------------------------------ units that feed the outputs


@dataclass(frozen=True, eq=False)
class Exact:
    """Where the label wins, for the outputs and the units that feed them: an interval of the change of each.

    Attributes:
        intact: The examples.
        was_right: Whether the predictions are right, or all wrong.
        lo: [examples, made], least change at which the label wins.
        hi: Largest one; no change wins where it is less than `lo`.
        direct: Whether the change is that of the pre-activation, not of the activation.
    """

    intact: Intact
    was_right: bool
    lo: Tensor
    hi: Tensor
    direct: bool

    @staticmethod
    def of(intact: Intact, was_right: bool) -> Exact:
        """The intervals of some examples, sorted by label, that are all right or all wrong."""
        stages, logits = intact.chain.stages, intact.logits
        if len(stages) == 1:
            weight = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
        else:
            weight = stages[1].weight
        lo, hi = _winning(logits, intact.targets, weight)
        if not was_right:  # where a change levels two logits, the other wins
            lo, hi = lo.nextafter(torch.full_like(lo, math.inf)), hi.nextafter(torch.full_like(hi, -math.inf))
        # Beyond this the outputs overflow.
        most = torch.finfo(logits.dtype).max
        room = ((most - logits.abs().amax(1, keepdim=True)) / weight.abs().amax(0)).clamp(max=most)
        lo, hi = torch.maximum(lo, -room), torch.minimum(hi, room)
        if len(stages) == 2 and stages[0].rectifies:
            hidden = intact.made[0].relu()
            off = hidden - intact.made[0]  # what a silent unit lacks
            never, always = hi < -hidden, lo <= -hidden
            lo = (lo + off).masked_fill(always, -math.inf).masked_fill(never, math.inf)
            hi = (hi + off).clamp(max=most).masked_fill(never, -math.inf)
        direct = len(stages) == 1 or not stages[0].steps or stages[0].rectifies
        return Exact(intact, was_right, lo, hi, direct)

    def open(self, delta: Tensor) -> Tensor:
        """[examples, made], whether any weight of a unit can change the prediction."""
        least, most = _spread(self.intact.read[0], delta)
        stage = self.intact.chain.stages[0]
        if not self.direct and stage.monotone:
            least, most = least * stage.slope, most * stage.slope
        elif not self.direct:
            most = torch.maximum(-least, most) * stage.slope
            least = -most
        if self.was_right:
            return ~((least >= self.lo) & (most <= self.hi))
        return ~((most < self.lo) | (least > self.hi) | (self.lo > self.hi))

    def work(self, delta: Tensor) -> float:
        """Estimated multiply-adds of `count`."""
        steps = 0 if self.direct else 4
        return COMPARED * (1 + steps) * int(self.open(delta).sum()) * delta.shape[1]

    def count(self, delta: Tensor, counts: Tensor) -> None:
        """Add, for every weight, the examples that are no longer right or no longer wrong."""
        x, z, stage = self.intact.read[0], self.intact.made[0], self.intact.chain.stages[0]
        room = _Compare.of(x, CELLS)
        ones = x.new_ones(1, len(room.change))
        lo, hi = self.lo.T.contiguous(), self.hi.T.contiguous()
        for j, rows, some in _bands(x, self.open(delta), len(room.change)):
            change = room.changes(some, delta[j])
            if not self.direct:
                before = z[rows, j].unsqueeze(1)
                change = stage.post(before + change) - stage.post(before)
            inside = (ones[:, : len(some)] @ room.within(change, lo[j, rows], hi[j, rows]))[0].long()
            counts[j] += len(some) - inside if self.was_right else inside


def _winning(logits: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest change of each unit at which the label's logit is at least all others [examples, units].

    The least is infinite where a logit that no change of the unit reaches is above.

    Args:
        logits: [examples, classes].
        targets: [examples], sorted.
        weight: [classes, units].
    """
    lo, hi = (logits.new_empty(len(logits), weight.shape[1]) for _ in range(2))
    for label, rows in _by_label(targets):
        slope = weight - weight[label]
        level = slope == 0
        slope = slope.masked_fill(level, 1.0)
        # What is no upper end (or no lower one) is moved out of the way.
        upper = torch.where((slope > 0) & ~level, -math.inf, math.inf).to(slope)
        lower = torch.where((slope < 0) & ~level, math.inf, -math.inf).to(slope)
        level[label] = False
        tied = bool(level.any())
        earlier = torch.arange(len(weight), device=weight.device).unsqueeze(1) < label
        lead = logits[rows, label : label + 1] - logits[rows]
        lead[:, label] = math.inf
        size = max(1, 4 * CELLS // slope.numel())
        for start in range(0, len(lead), size):
            some = lead[start : start + size].unsqueeze(2)
            at = slice(rows.start + start, rows.start + start + len(some))
            ends = some / slope
            hi[at] = torch.maximum(ends, upper).amin(1)
            lo[at] = torch.minimum(ends, lower).amax(1)
            if tied:
                # Of equal logits the first wins.
                behind = torch.where(earlier, some <= 0, some < 0)
                lo[at] = lo[at].masked_fill((behind & level).any(1), math.inf)
    return lo, hi


# ------------------------------------------------------------------------------------------ units further down


@dataclass(frozen=True, eq=False)
class Rise:
    """How far one logit can rise over another per unit of change of an activation of the first stage.

    Signs are kept apart: a change upwards moves the next pre-activations inside [-w-, w+], and so on.

    Attributes:
        pairs: [classes, classes, units], rise of the second over the first for a change upwards; for one downwards
            the classes change places. None for many classes.
        up: [classes, units], rise of a logit.
        down: Its fall.
        room: [units], change up to which nothing overflows.
    """

    pairs: Tensor | None
    up: Tensor
    down: Tensor
    room: Tensor

    @staticmethod
    def of(chain: Chain) -> Rise:
        """The rises behind the first stage of a chain of three or more."""
        inner, last = chain.stages[1:-1], chain.stages[-1].weight
        weight = chain.stages[0].weight
        if any(math.isinf(stage.slope) for stage in inner):  # nothing can be proven
            endless = torch.full_like(last[:, :1], math.inf).expand(len(last), len(weight))
            return Rise(None, endless, endless, torch.zeros_like(weight[:, 0]))
        up = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        down, gain = torch.zeros_like(up), weight.new_ones(len(weight))
        for stage in inner:
            rises, falls = stage.weight.relu(), (-stage.weight).relu()
            up, down = rises @ up + falls @ down, rises @ down + falls @ up
            gain = torch.maximum(gain, torch.maximum(up.amax(0), down.amax(0)))
            if not stage.monotone:
                up = down = torch.maximum(up, down)
            up, down = up * stage.slope, down * stage.slope
        pairs = None
        if len(last) <= PAIRWISE:
            apart = last.unsqueeze(0) - last.unsqueeze(1)
            pairs = apart.relu() @ up + (-apart).relu() @ down
        rises, falls = last.relu(), (-last).relu()
        up, down = rises @ up + falls @ down, rises @ down + falls @ up
        gain = torch.maximum(gain, torch.maximum(up.amax(0), down.amax(0)))
        return Rise(pairs, up, down, torch.finfo(gain.dtype).max / 4 / gain)

    def over(self, first: Tensor, second: Tensor, unit: Tensor | int) -> tuple[Tensor, Tensor]:
        """Rise of the second class over the first for changes upwards and downwards; indices are broadcast."""
        least = torch.finfo(self.up.dtype).tiny  # so that nothing is divided by zero
        if self.pairs is not None:
            pair = self.pairs[first, second, unit], self.pairs[second, first, unit]
        else:
            up, down = self.up, self.down
            pair = up[second, unit] + down[first, unit], down[second, unit] + up[first, unit]
        return pair[0].clamp(min=least), pair[1].clamp(min=least)


@dataclass(frozen=True, eq=False)
class Certified:
    """Changes that provably leave the prediction as it is, for units further down; the others are computed.

    Not guaranteed: the prediction where two logits are closer than rounding, which is taken to grow like the root of
    the number of terms.

    Attributes:
        intact: The examples.
        was_right: Whether the predictions are right, or all wrong.
        rise: Of the chain.
        hidden: Activations of the first stage [examples, made].
        columns: What each of them is multiplied by, [made, made by the next stage].
        lo: [examples, made], least harmless change of the pre-activation, at most 0.
        hi: Largest one.
    """

    intact: Intact
    was_right: bool
    rise: Rise
    hidden: Tensor
    columns: Tensor
    lo: Tensor
    hi: Tensor

    @staticmethod
    def of(intact: Intact, was_right: bool, rise: Rise) -> Certified:
        """The bounds of some examples, sorted by label, that are all right or all wrong."""
        stage, z = intact.chain.stages[0], intact.made[0]
        hidden = stage.post(z)
        up, down = (torch.empty_like(hidden) for _ in range(2))
        slack = _rounding(intact.chain, intact.logits) * intact.logits.abs().amax(1)
        lead, first = _lead(intact.logits, slack)
        units = torch.arange(stage.made, device=z.device)
        if was_right:
            classes = torch.arange(lead.shape[1], device=z.device).unsqueeze(1)
            for _, rows in _by_label(intact.targets):
                sides = rise.over(first[rows][:1], classes, units)
                size = max(1, 4 * CELLS // sides[0].numel())
                for start in range(rows.start, rows.stop, size):
                    at = slice(start, min(start + size, rows.stop))
                    for side, most in zip((up, down), sides, strict=True):
                        torch.amin(lead[at].unsqueeze(2) / most, 1, out=side[at])
        else:
            lead = lead.gather(1, intact.targets.unsqueeze(1))
            sides = rise.over(first.unsqueeze(1), intact.targets.unsqueeze(1), units)
            up, down = lead / sides[0], lead / sides[1]
        nought = torch.zeros_like(z)
        lo, hi = _reach(stage, z, hidden, nought, _least(down, rise.room), _least(up, rise.room))
        return Certified(intact, was_right, rise, hidden, intact.chain.stages[1].weight.T.contiguous(), lo, hi)

    def open(self, delta: Tensor) -> Tensor:
        """[examples, made], whether the change by any weight of a unit may matter."""
        least, most = _spread(self.intact.read[0], delta)
        return ~((least >= self.lo) & (most <= self.hi))

    def work(self, delta: Tensor) -> float:
        """Estimated multiply-adds of `count`."""
        each = COMPUTED * self.columns.shape[1] + sum(stage.weight.numel() for stage in self.intact.chain.stages[2:])
        open = computed = 0.0
        for _, _, _, inside in self._flagged(delta):
            open += inside.numel()
            computed += float((inside.shape[1] - inside.sum(1)).clamp(max=PROVEN).sum())
        return COMPARED * open + each * computed

    def count(self, delta: Tensor, counts: Tensor) -> None:
        """Add, for every weight, the examples that are no longer right or no longer wrong."""
        numbers = torch.arange(len(self.hidden), device=delta.device)
        loose = _Loose(self, counts, [])
        for j, rows, some, inside in self._flagged(delta):
            hot = (inside.amin(1) == 0).nonzero().flatten()
            if len(hot):
                loose.settle(j, numbers[rows][hot], some[hot] * delta[j], 1.0 - inside[hot])
        loose.flush()

    def _flagged(self, delta: Tensor) -> Iterator[tuple[int, Tensor | slice, Tensor, Tensor]]:
        """Bands, and a 1 for each change that is harmless; overwritten by the next."""
        x = self.intact.read[0]
        room = _Compare.of(x, 8 * CELLS)  # more rows than fit the cache, for each band costs some fixed time
        lo, hi = self.lo.T.contiguous(), self.hi.T.contiguous()
        for j, rows, some in _bands(x, self.open(delta), len(room.change)):
            yield j, rows, some, room.within(room.changes(some, delta[j]), lo[j, rows], hi[j, rows])

    def after(self, rows: Tensor, units: Tensor, change: Tensor) -> Tensor:
        """Logits [changes, classes] after changes of pre-activations of examples."""
        chain = self.intact.chain
        made = self.intact.made[0][rows, units] + change
        moved = chain.stages[0].post(made.unsqueeze(1)) - self.hidden[rows, units].unsqueeze(1)
        return finish(chain, 1, torch.addcmul(self.intact.made[1][rows], moved, self.columns[units]))

    def around(self, j: int, rows: Tensor, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether a change of unit j's pre-activation turns each example, and the ends of where that is so too."""
        intact, stage, later = self.intact, self.intact.chain.stages[0], self.intact.chain.stages[1:]
        z, hidden = intact.made[0][rows, j], self.hidden[rows, j]
        moved = stage.post((z + change).unsqueeze(1)).squeeze(1) - hidden
        speed = self.columns[j].expand(len(rows), -1)
        made = torch.addcmul(intact.made[1][rows], moved.unsqueeze(1), speed)
        down, up = (torch.full_like(change, math.inf) for _ in range(2))
        straight, tiny = all(between.rectifies for between in later[:-1]), torch.finfo(made.dtype).tiny
        for before, after in pairwise(later):
            if straight:  # as far as no ReLU switches, all is linear
                active = torch.gt(made, 0, out=torch.empty_like(made))
                towards = (speed / made.abs().clamp_(min=tiny)).mul_(1.0 - 2.0 * active)
                up = torch.minimum(up, 1.0 / towards.amax(1).clamp(min=tiny))
                down = torch.minimum(down, 1.0 / (-towards.amin(1)).clamp(min=tiny))
                speed = after.product(speed * active)
            made = after.pre(before.post(made))
        right = is_right(made, intact.targets[rows])
        rounding = _rounding(intact.chain, made)
        lead, first = _lead(made, rounding * made.abs().amax(1))
        classes = torch.arange(made.shape[1], device=made.device)
        # A prediction that is wrong may become another wrong one.
        lead = lead.masked_fill(~(right.unsqueeze(1) | (classes == intact.targets[rows, None])), math.inf)
        rise, fall = self.rise.over(first.unsqueeze(1), classes, j)
        further = [(lead / rise).amin(1), (lead / fall).amin(1)]
        if straight:
            gains = speed - speed.gather(1, first.unsqueeze(1))
            blur = rounding * speed.abs().amax(1, keepdim=True)
            further[0] = torch.maximum(further[0], torch.minimum(up, (lead / (blur + gains).clamp(min=tiny)).amin(1)))
            further[1] = torch.maximum(further[1], torch.minimum(down, (lead / (blur - gains).clamp(min=tiny)).amin(1)))
        room = self.rise.room[j]
        up, down = _least(further[0], room - moved), _least(further[1], room + moved)
        lo, hi = _reach(stage, z, hidden + moved, change, down, up)
        return right != self.was_right, torch.minimum(lo, change), torch.maximum(hi, change)


@dataclass(frozen=True, eq=False)
class _Loose:
    """Changes that no bound holds: computed, or proven by the side of others that were.

    Attributes:
        of: What they are changes of.
        counts: [made, read], examples that turned, added to.
        waiting: (examples, units, weights, changes) to be computed.
    """

    of: Certified
    counts: Tensor
    waiting: list[tuple[Tensor, Tensor, Tensor, Tensor]]

    def settle(self, j: int, rows: Tensor, change: Tensor, open: Tensor) -> None:
        """Count what changes of unit j turn.

        Args:
            j: The unit.
            rows: Examples.
            change: [examples, read].
            open: 1 where a change may matter, else 0; of the changes' type.
        """
        if not bool((change.amax() - change.amin()).isfinite()):
            change, open = self._endless(j, rows, change, open)
        change = change * open  # so that what is closed is 0, which is never open
        inside, other = torch.empty_like(change), torch.empty_like(change)
        progress = math.inf
        while True:
            most, least = change.amax(1), change.amin(1)
            at = torch.where(most > -least, most, least)
            keep = at.nonzero().flatten()
            if not len(keep):
                return
            if len(keep) < 0.8 * len(rows):
                rows, change, at = rows[keep], change[keep], at[keep]
            inside, other = inside[: len(rows)], other[: len(rows)]
            torch.ne(change, 0, out=other)
            total = float(other.sum())
            if total <= max(FEW * len(keep), HEAP) or progress <= FEW * len(keep):
                row, i = change.nonzero(as_tuple=True)
                self.waiting.append((rows[row], torch.full_like(i, j), i, change[row, i]))
                if sum(part[0].numel() for part in self.waiting) > CELLS // 4 or len(self.waiting) > 256:
                    self.flush()
                return
            # The largest change proves those next to it, and so on inwards.
            turned, lo, hi = self.of.around(j, rows, at)
            torch.le(change, hi.unsqueeze(1), out=inside).mul_(other)
            inside.mul_(torch.ge(change, lo.unsqueeze(1), out=other))
            self.counts[j] += (turned.to(inside).unsqueeze(0) @ inside)[0].long()
            progress = float(inside.sum())
            change.mul_(inside.neg_().add_(1.0))

    def _endless(self, j: int, rows: Tensor, change: Tensor, open: Tensor) -> tuple[Tensor, Tensor]:
        """The same without changes that are NaN, which are wrong, or infinite, one of which stands for all."""
        wild = ~change.isfinite() & (open != 0)
        for value in (math.nan, math.inf, -math.inf):
            hit = wild & (change.isnan() if math.isnan(value) else change == value)
            some = hit.any(1).nonzero().flatten()
            if len(some):
                logits = self.of.after(rows[some], torch.full_like(some, j), change.new_full((len(some),), value))
                turned = is_right(logits, self.of.intact.targets[rows[some]]) != self.of.was_right
                self.counts[j] += (hit[some] & turned.unsqueeze(1)).sum(0)
        return change.nan_to_num(0.0, 0.0, 0.0), open.masked_fill(wild, 0.0)

    def flush(self) -> None:
        """Compute what waits."""
        if not self.waiting:
            return
        rows, units, weights, changes = (torch.cat(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting.clear()
        for part in torch.arange(len(rows), device=rows.device).split(CELLS // 16):
            logits = self.of.after(rows[part], units[part], changes[part])
            turned = is_right(logits, self.of.intact.targets[rows[part]]) != self.of.was_right
            place = units[part][turned] * self.counts.shape[1] + weights[part][turned]
            self.counts.view(-1).index_add_(0, place, torch.ones_like(place))


def _lead(logits: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """By how much each logit is below the largest, less the slack; infinite for the largest itself. And which it is.

    Nothing is provable (0) in a row that is not finite.
    """
    top, first = logits.max(1, keepdim=True)
    lead = (top - logits - slack.unsqueeze(1)).nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
    return lead.scatter(1, first, math.inf).masked_fill(~logits.isfinite().all(1, keepdim=True), 0.0), first.squeeze(1)


def _rounding(chain: Chain, logits: Tensor) -> float:
    """What rounding may do to a margin, relative to the largest logit."""
    terms = len(chain.stages) * max(stage.weight.shape[1] for stage in chain.stages)
    return 32 * torch.finfo(logits.dtype).eps * math.sqrt(terms)


def _least(side: Tensor, room: Tensor) -> Tensor:
    """What is proven of one side, at least 0."""
    return torch.minimum(side, room).nan_to_num(0.0, math.inf).clamp(min=0)


def _reach(stage: Stage, z: Tensor, hidden: Tensor, at: Tensor, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Changes of the pre-activation from z that keep the activation within [hidden - down, hidden + up].

    Args:
        stage: Whose steps lie between.
        z: Intact pre-activation.
        hidden: Activation at z + at.
        at: A change.
        down: How far the activation may fall, at least 0.
        up: How far it may rise.
    """
    if not stage.steps:
        return at - down, at + up
    floor, ceiling = hidden - down, hidden + up
    if stage.rectifies:
        return torch.where(floor <= 0, -math.inf, floor - z), ceiling - z
    if not stage.monotone:
        way = torch.minimum(down, up) / stage.slope
        return at - way, at + way
    ends = torch.tensor([[-math.inf, math.inf]], dtype=z.dtype, device=z.device)
    bottom, top = stage.post(ends).squeeze(0).tolist()
    lo = torch.where(floor <= bottom, -math.inf, at - down / stage.slope)
    return lo, torch.where(ceiling >= top, math.inf, at + up / stage.slope)
