"""Every single weight: what the accuracy becomes when one weight takes a new value, for each weight and exactly.

A weight (j <- i) moves one unit only: the pre-activation of unit j by t = (new - old) * x_i. For each example and unit
there is an interval of t in which the prediction cannot change; most weights of most examples stay inside it, which a
bound on the largest t proves for whole rows at once. What is left is compared one by one, and what then still leaves
its interval is computed. For units that feed the outputs, and for the outputs themselves, the interval is exact and
nothing has to be computed at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from planaria.core.errors import InputError
from planaria.measure.scores import ACCURACY
from planaria.sweep.chain import Chain, Stage
from planaria.sweep.tally import Judge, Tally

_WHOLE = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
_ROWS = 2048
"""Examples whose intervals are held at a time."""
_CELLS = 65536
"""Changes compared at a time: with the flags they fit into a processor's second cache."""
_FEW = 6
"""Changes of one example and unit that are rather computed than proven: a proof costs as much as so many of them."""
_HEAP = 2048
"""Changes of one unit that are computed at once rather than proven."""
_PAIRWISE = 128
"""Classes up to which rises are bounded for each pair of them."""


class NewValue(Protocol):
    """What a weight becomes: `of(weights) -> new values`."""

    def of(self, weight: Tensor, /) -> Tensor:
        """New values, entry by entry."""
        ...


@dataclass(frozen=True)
class Becomes:
    """A weight takes a value: 0 deletes it, any other is a weight that is stuck.

    Args:
        value: The value; infinities and NaN are possible.

    Raises:
        InputError: If it is no number.

    Example:
        >>> Becomes(0.0).of(torch.tensor([3.0, -1.0]))
        tensor([0., 0.])
    """

    value: float

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise InputError("Becomes.value", "a number", repr(self.value)[:40])

    def of(self, weight: Tensor, /) -> Tensor:
        """The value in the place of every weight.

        Raises:
            InputError: If the weights' type cannot hold it.
        """
        limit = torch.finfo(weight.dtype).max
        if math.isfinite(self.value) and abs(self.value) > limit:
            raise InputError("Becomes.value", f"at most {limit:g}, all that {weight.dtype} can hold", self.value)
        return torch.full_like(weight, self.value)


@dataclass(frozen=True)
class Flipped:
    """One bit of a weight's storage is flipped.

    Args:
        bit: 0 = lowest of the mantissa; the highest (15, 31 or 63) is the sign.

    Raises:
        InputError: If the bit is no whole number of at least 0.

    Example:
        >>> Flipped(31).of(torch.tensor([3.0])), Flipped(30).of(torch.tensor([1.0]))
        (tensor([-3.]), tensor([inf]))
    """

    bit: int

    def __post_init__(self) -> None:
        if isinstance(self.bit, bool) or not isinstance(self.bit, int) or self.bit < 0:
            raise InputError("Flipped.bit", "a whole number of at least 0", repr(self.bit)[:40])

    def of(self, weight: Tensor, /) -> Tensor:
        """The weights with the bit flipped.

        Raises:
            InputError: If the weights' type has no such bit, or no known layout.
        """
        whole = _WHOLE.get(weight.dtype)
        if whole is None:
            raise InputError("Flipped", "weights of 16, 32 or 64 bits", weight.dtype)
        bits = torch.iinfo(whole).bits
        if self.bit >= bits:
            raise InputError("Flipped.bit", f"a bit from 0 to {bits - 1} of {weight.dtype}", self.bit)
        value = 1 << self.bit if self.bit < bits - 1 else -(1 << self.bit)
        return (weight.view(whole) ^ torch.tensor(value, dtype=whole, device=weight.device)).view(weight.dtype)


def mappable(chain: Chain, name: str) -> str:
    """Why a weight or bias has no map of its single entries; "" if it has one.

    Its product and all behind it must be linear layers with pointwise functions between them and at most a softmax at
    the end; a convolutional part in front of it does not matter.

    Args:
        chain: The network.
        name: Of a weight or a bias.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> net = Network.of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 4))
        >>> chain = Chain.of(net)
        >>> mappable(chain, "0.weight"), mappable(chain, "0.gain")
        ('', "no product of the chain has a weight or bias '0.gain'")
    """
    found = [at for at, stage in enumerate(chain.stages) if name and name in {stage.name, stage.bias}]
    if not found:
        return f"no product of the chain has a weight or bias {name!r}"
    uses = [use for stage in chain.stages for use in (stage.name, stage.bias)]
    if uses.count(name) > 1:
        return "it is used by several products"
    stage, last = chain.stages[found[0]], chain.stages[-1]
    if stage.folded:
        return "a normalisation is folded into it"
    if name == stage.bias and (stage.shift is None or len(stage.shift) != stage.made):
        return "it is not one bias per unit"
    if stage.weight.dtype not in {torch.float32, torch.float64}:
        return f"{stage.weight.dtype} rounds too coarsely for certain predictions"
    for later in chain.stages[found[0] :]:
        if not later.linear:
            return "it is a convolution" if later is stage else f"{later.name} behind it is a convolution"
        if later is not last and not all(step.pointwise for step in later.steps):
            return f"the steps behind {later.name} are not pointwise"
    if not all(step.name in {"_softmax", "_log_softmax"} for step in last.steps):
        return "the outputs are not those of the last product"
    probe = torch.eye(2, last.made, dtype=last.weight.dtype, device=last.weight.device)
    if last.steps and not torch.equal(last.post(probe)[:1], last.post(probe[:1])):
        return "the outputs of one example depend on the others"
    return ""


def weight_map(
    chain: Chain, names: Iterable[str], new: NewValue, inputs: Tensor, targets: Tensor, judge: Judge
) -> dict[str, Tally]:
    """What each single weight costs when it alone takes its new value, judged on all inputs.

    For weight (j <- i): sum over examples of (right with the new value - right without), as counts of the examples
    that rose and fell. A row of outputs with NaN or infinity is wrong.

    Args:
        chain: The network.
        names: Of weights and biases; each must be `mappable`.
        new: What a weight becomes.
        inputs: [examples, ...], all in memory.
        targets: Labels [examples].
        judge: Of the accuracy.

    Returns:
        Name -> counts in the shape of the product's weight [made, read], or of the bias [made]; never by class.

    Raises:
        InputError: If a weight is not mappable, or the score is not the accuracy.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> layer = nn.Linear(1, 2, bias=False)
        >>> layer.weight.data = torch.tensor([[1.0], [0.5]])
        >>> chain = Chain.of(Network.of(layer, torch.ones(1, 1)))
        >>> inputs, targets = torch.ones(3, 1), torch.tensor([0, 0, 1])
        >>> weight_map(chain, ["weight"], Becomes(0.0), inputs, targets, Judge(ACCURACY))["weight"].total
        tensor([[-1.],
                [ 0.]], dtype=torch.float64)

    Source: vulnerability intervals of single neurons as in DeepVigor (Ahmadilivani and others, 2023), here exact and
    for every weight.

    Not guaranteed: the prediction where the two largest outputs differ by less than rounding.
    """
    if not judge.counts_predictions:
        raise InputError("weight_map(judge)", f"the score {ACCURACY.name!r}", judge.score.name, "Re-run each weight.")
    names = list(names)
    for name in names:
        reason = mappable(chain, name)
        if reason:
            raise InputError(f"weight_map({name!r})", "a weight whose entries can be mapped", reason)
    with torch.no_grad():
        intact = _Intact.of(chain, inputs, targets)
        return {name: _map(intact, name, new) for name in names}


# ------------------------------------------------------------------------------------------------ intact pass


@dataclass(frozen=True, eq=False)
class _Intact:
    """The undamaged pass over some examples.

    Attributes:
        chain: The network.
        read: What each stage reads, then nothing.
        made: What each stage's product makes, before its steps; the last are the logits.
        targets: Labels [examples].
    """

    chain: Chain
    read: list[Tensor]
    made: list[Tensor]
    targets: Tensor

    @staticmethod
    def of(chain: Chain, inputs: Tensor, targets: Tensor) -> _Intact:
        x = chain.begin(inputs)
        read, made = [], []
        for stage in chain.stages:
            read.append(x)
            made.append(stage.pre(x))
            x = stage.post(made[-1])
        return _Intact(chain, read, made, targets.to(x.device))

    def some(self, rows: Tensor) -> _Intact:
        """The same for some examples."""
        return _Intact(self.chain, [x[rows] for x in self.read], [z[rows] for z in self.made], self.targets[rows])

    def from_stage(self, at: int) -> _Intact:
        """Without the stages in front."""
        return _Intact(Chain((), self.chain.stages[at:]), self.read[at:], self.made[at:], self.targets)

    @property
    def logits(self) -> Tensor:
        return self.made[-1]

    @property
    def right(self) -> Tensor:
        return _right(self.logits, self.targets)

    def tame(self) -> Tensor:
        """Examples none of whose numbers is NaN, infinite or close to it."""
        bound = torch.finfo(self.logits.dtype).max / 4
        result = torch.ones_like(self.targets, dtype=torch.bool)
        for values in (*self.read, *self.made):
            result &= values.abs().amax(1) <= bound
        return result


def _right(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(1) == targets) & logits.isfinite().all(1)


def _map(intact: _Intact, name: str, new: NewValue) -> Tally:
    at = next(at for at, stage in enumerate(intact.chain.stages) if name in {stage.name, stage.bias})
    intact = intact.from_stage(at)
    stage = intact.chain.stages[0]
    bias = name == stage.bias
    old = stage.weight
    if bias:
        assert stage.shift is not None
        old = stage.shift
    values = new.of(old).reshape(stage.made, -1)
    delta = torch.where(values == old.view_as(values), 0.0, values - old.view_as(values))
    rose, fell = (torch.zeros(delta.shape, dtype=torch.int64, device=delta.device) for _ in range(2))
    tame = intact.tame()
    for row in (~tame).nonzero().flatten().tolist():
        _one_by_one(intact, row, values, bias, rose, fell)
    if bias:
        intact.read[0] = torch.ones_like(intact.read[0][:, :1])
    possible = tame & (intact.targets >= 0) & (intact.targets < intact.logits.shape[1])
    rise = _Rise.of(intact.chain) if len(intact.chain.stages) > 2 else None
    for was_right, counts in ((True, fell), (False, rose)):
        for part in _parts(intact, possible, was_right):
            if rise is None:
                _Exact.of(part, was_right).count(delta, counts)
            else:
                _Certified.of(part, was_right, rise).count(delta, counts)
    total = (rose - fell).double().view(old.shape)
    return Tally(total, rose.view(old.shape), fell.view(old.shape), (rose + fell).double().view(old.shape))


def _one_by_one(intact: _Intact, row: int, values: Tensor, bias: bool, rose: Tensor, fell: Tensor) -> None:
    """Counts of one example whose numbers are not tame: every weight put in its place, nothing subtracted."""
    stage, x, target = intact.chain.stages[0], intact.read[0][row], intact.targets[row]
    was = bool(intact.right[row])
    for j in range(stage.made):
        made = intact.made[0][row].repeat(values.shape[1], 1)
        if bias:
            made[:, j] = stage.weight[j] @ x + values[j]
        else:
            weights = stage.weight[j].repeat(len(x), 1)
            weights.diagonal().copy_(values[j])
            made[:, j] = weights @ x + (0.0 if stage.shift is None else stage.shift[j])
        now = _right(_finish(intact.chain, 0, made), target)
        rose[j] += now & (not was)
        fell[j] += ~now & was


def _finish(chain: Chain, at: int, made: Tensor) -> Tensor:
    """Logits from what the product of stage `at` makes."""
    for before, stage in zip(chain.stages[at:], chain.stages[at + 1 :], strict=False):
        made = stage.pre(before.post(made))
    return made


# ----------------------------------------------------------------------------------------- rows of changes


def _parts(intact: _Intact, possible: Tensor, was_right: bool) -> Iterator[_Intact]:
    """Some examples at a time, sorted by label."""
    rows = (possible & (intact.right == was_right)).nonzero().flatten()
    rows = rows[intact.targets[rows].argsort(stable=True)]
    for part in rows.split(_ROWS):
        if len(part):
            yield intact.some(part)


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
class _Exact:
    """Where the label wins, for the outputs and the units that feed them: an interval of the change of each.

    Attributes:
        intact: The examples.
        was_right: Whether the predictions are right, or all wrong.
        lo: [examples, made], least change at which the label wins.
        hi: Largest one; no change wins where it is less than `lo`.
        direct: Whether the change is that of the pre-activation, not of the activation.
    """

    intact: _Intact
    was_right: bool
    lo: Tensor
    hi: Tensor
    direct: bool

    @staticmethod
    def of(intact: _Intact, was_right: bool) -> _Exact:
        stages, logits = intact.chain.stages, intact.logits
        if len(stages) == 1:
            weight = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
        else:
            weight = stages[1].weight
        lo, hi = _winning(logits, intact.targets, weight)
        if not was_right:  # a tie does not win
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
        return _Exact(intact, was_right, lo, hi, direct)

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

    def count(self, delta: Tensor, counts: Tensor) -> None:
        """Add, for every weight, the examples that are no longer right or no longer wrong."""
        x, z, stage = self.intact.read[0], self.intact.made[0], self.intact.chain.stages[0]
        room = _Compare.of(x, _CELLS)
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
        lead = logits[rows, label : label + 1] - logits[rows]
        lead[:, label] = math.inf
        size = max(1, 4 * _CELLS // slope.numel())
        for start in range(0, len(lead), size):
            some = lead[start : start + size].unsqueeze(2)
            at = slice(rows.start + start, rows.start + start + len(some))
            ends = some / slope
            hi[at] = torch.maximum(ends, upper).amin(1)
            lo[at] = torch.minimum(ends, lower).amax(1)
            if tied:
                lo[at] = lo[at].masked_fill(((some < 0) & level).any(1), math.inf)
    return lo, hi


# ------------------------------------------------------------------------------------------ units further down


@dataclass(frozen=True, eq=False)
class _Rise:
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
    def of(chain: Chain) -> _Rise:
        inner, last = chain.stages[1:-1], chain.stages[-1].weight
        weight = chain.stages[0].weight
        if any(math.isinf(stage.slope) for stage in inner):  # nothing can be proven
            endless = torch.full_like(last[:, :1], math.inf).expand(len(last), len(weight))
            return _Rise(None, endless, endless, torch.zeros_like(weight[:, 0]))
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
        if len(last) <= _PAIRWISE:
            apart = last.unsqueeze(0) - last.unsqueeze(1)
            pairs = apart.relu() @ up + (-apart).relu() @ down
        rises, falls = last.relu(), (-last).relu()
        up, down = rises @ up + falls @ down, rises @ down + falls @ up
        gain = torch.maximum(gain, torch.maximum(up.amax(0), down.amax(0)))
        return _Rise(pairs, up, down, torch.finfo(gain.dtype).max / 4 / gain)

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
class _Certified:
    """Changes that provably leave the prediction as it is, for units further down; the others are computed.

    Attributes:
        intact: The examples.
        was_right: Whether the predictions are right, or all wrong.
        rise: Of the chain.
        hidden: Activations of the first stage [examples, made].
        columns: What each of them is multiplied by, [made, made by the next stage].
        lo: [examples, made], least harmless change of the pre-activation, at most 0.
        hi: Largest one.
    """

    intact: _Intact
    was_right: bool
    rise: _Rise
    hidden: Tensor
    columns: Tensor
    lo: Tensor
    hi: Tensor

    @staticmethod
    def of(intact: _Intact, was_right: bool, rise: _Rise) -> _Certified:
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
                size = max(1, 4 * _CELLS // sides[0].numel())
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
        return _Certified(intact, was_right, rise, hidden, intact.chain.stages[1].weight.T.contiguous(), lo, hi)

    def open(self, delta: Tensor) -> Tensor:
        """[examples, made], whether the change by any weight of a unit may matter."""
        least, most = _spread(self.intact.read[0], delta)
        return ~((least >= self.lo) & (most <= self.hi))

    def count(self, delta: Tensor, counts: Tensor) -> None:
        """Add, for every weight, the examples that are no longer right or no longer wrong."""
        x = self.intact.read[0]
        room = _Compare.of(x, 8 * _CELLS)
        lo, hi = self.lo.T.contiguous(), self.hi.T.contiguous()
        numbers = torch.arange(len(x), device=x.device)
        loose = _Loose(self, counts, [])
        for j, rows, some in _bands(x, self.open(delta), len(room.change)):
            inside = room.within(room.changes(some, delta[j]), lo[j, rows], hi[j, rows])
            hot = (inside.amin(1) == 0).nonzero().flatten()
            if len(hot):
                loose.settle(j, numbers[rows][hot], some[hot] * delta[j], 1.0 - inside[hot])
        loose.flush()

    def after(self, rows: Tensor, units: Tensor, change: Tensor) -> Tensor:
        """Logits [changes, classes] after changes of pre-activations of examples."""
        chain = self.intact.chain
        made = self.intact.made[0][rows, units] + change
        moved = chain.stages[0].post(made.unsqueeze(1)) - self.hidden[rows, units].unsqueeze(1)
        return _finish(chain, 1, torch.addcmul(self.intact.made[1][rows], moved, self.columns[units]))

    def around(self, j: int, rows: Tensor, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether a change of unit j's pre-activation turns each example, and the ends of where that is so too."""
        intact, stage, later = self.intact, self.intact.chain.stages[0], self.intact.chain.stages[1:]
        z, hidden = intact.made[0][rows, j], self.hidden[rows, j]
        moved = stage.post((z + change).unsqueeze(1)).squeeze(1) - hidden
        speed = self.columns[j].expand(len(rows), -1)
        made = torch.addcmul(intact.made[1][rows], moved.unsqueeze(1), speed)
        down, up = (torch.full_like(change, math.inf) for _ in range(2))
        straight = all(between.rectifies for between in later[:-1])
        for before, after in pairwise(later):
            if straight:  # as far as no ReLU switches, all is linear
                active = torch.gt(made, 0, out=torch.empty_like(made))
                away = made.abs().clamp_(min=torch.finfo(made.dtype).tiny)
                towards = (speed / away).mul_(1.0 - 2.0 * active)
                up = torch.minimum(up, 1.0 / towards.amax(1).clamp(min=0))
                down = torch.minimum(down, -1.0 / towards.amin(1).clamp(max=-0.0))
                speed = after.product(speed * active)
            made = after.pre(before.post(made))
        right = _right(made, intact.targets[rows])
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
            further[0] = torch.maximum(further[0], torch.minimum(up, (lead / (blur + gains).clamp(min=0)).amin(1)))
            further[1] = torch.maximum(further[1], torch.minimum(down, (lead / (blur - gains).clamp(min=0)).amin(1)))
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

    of: _Certified
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
            if total <= max(_FEW * len(keep), _HEAP) or progress <= _FEW * len(keep):
                row, i = change.nonzero(as_tuple=True)
                self.waiting.append((rows[row], torch.full_like(i, j), i, change[row, i]))
                if sum(part[0].numel() for part in self.waiting) > _CELLS // 4 or len(self.waiting) > 256:
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
                turned = _right(logits, self.of.intact.targets[rows[some]]) != self.of.was_right
                self.counts[j] += (hit[some] & turned.unsqueeze(1)).sum(0)
        return change.nan_to_num(0.0, 0.0, 0.0), open.masked_fill(wild, 0.0)

    def flush(self) -> None:
        """Compute what waits."""
        if not self.waiting:
            return
        rows, units, weights, changes = (torch.cat(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting.clear()
        for part in torch.arange(len(rows), device=rows.device).split(_CELLS // 16):
            logits = self.of.after(rows[part], units[part], changes[part])
            turned = _right(logits, self.of.intact.targets[rows[part]]) != self.of.was_right
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
