"""Precision: effects of lesions known to a wanted half-width, from as few inputs as that takes.

All numbers are about the inputs at hand: N of them are the population, of which some are looked at in random order.
Once all have been looked at, an effect is known exactly and its interval is a point. What the effect would be on other
inputs is another question, which these intervals do not answer.

Every lesion is judged on the same inputs with and without it, so that only inputs whose score changes count. After
fixed numbers of inputs, each half as many again as the one before, an interval is made for every lesion, and those
whose half-width is as wanted are left alone from then on. What a lesion is told by in the end is one interval, that of
the look at which it stopped. It stops by the width of the interval, not by where it lies, so that its level need not be
shared out over the looks: if each interval had 95 %, those reported would have 93 % at worst (one-sided changes), as
found by drawing from populations of 10,000 with 0 to 40 % of changed outcomes. With the 96 % used here the worst is
95 %, and the price is a tenth more inputs; sharing out 5 % evenly over ten looks would cost twice as many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist

import torch
from torch import Tensor

from planaria.core.devices import clock, without_tf32
from planaria.core.errors import InputError
from planaria.core.gemm import route_of
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.data import Data
from planaria.measure.scores import Score
from planaria.measure.statistics import Estimate, student_quantile
from planaria.measure.task import FORWARD_BATCH, Task
from planaria.sweep.audit import Audit, audit
from planaria.sweep.lesions import Job, What
from planaria.sweep.plan import IN_CHAIN, Plan
from planaria.sweep.tally import Judge, Tally
from planaria.sweep.work import Work

FIRST, GROWTH = 250, 1.5
"""Inputs at the first look, and how many times as many at each further one."""

LEVEL = 0.96
"""Level of each look's interval, so that those at which lesions stop cover 95 %."""

ENOUGH = 30
"""Changed examples from which the mean of changes of any size is trusted to be nearly normal."""


@dataclass(frozen=True, eq=False)
class Intervals:
    """Numbers with their intervals, for an array of lesions.

    Attributes:
        low: Lower ends, any shape, double.
        best: The estimates.
        high: Upper ends.
    """

    low: Tensor
    best: Tensor
    high: Tensor

    @property
    def half(self) -> Tensor:
        """Half of the widths."""
        return (self.high - self.low) / 2

    def estimate(self, at: int) -> Estimate:
        """One of them, by its place in the flattened array."""
        return Estimate(*(float(tensor.reshape(-1)[at]) for tensor in (self.low, self.best, self.high)))

    def reversed(self) -> Intervals:
        """The numbers with the other sign: what was gained as what was lost."""
        return Intervals(-self.high, -self.best, -self.low)

    def covers(self, truth: Tensor) -> Tensor:
        """Whether each interval holds the true value, up to rounding."""
        return (self.low <= truth + 1e-12) & (self.high >= truth - 1e-12)


def mean_changes(tally: Tally, seen: int, inputs: int, level: float = 0.95) -> Intervals:
    """Mean change of the score over all inputs, from a random part of them drawn without repetition.

    Where every change is by one whole answer (accuracy), rises and falls are two shares of a trinomial: each has
    Wilson's interval with the variance of drawing without repetition, (N - n) / (N - 1) times the binomial one, and the
    interval of their difference follows from the distances of the four ends,
        low = d - sqrt(a^2 + b^2 - 2 r a b), a and b the distances of the rises' low and the falls' high end,
    with r the correlation of the two shares. It is no point where nothing has changed yet. Changes of other sizes have
    Student's interval with the same factor once 30 of them are known, and an infinite one before.

    Args:
        tally: Sums over the part.
        seen: Examples in the part, n.
        inputs: Examples in all, N.
        level: Coverage of the intervals.

    Returns:
        Intervals in the shape of the tally; points where all inputs were seen.

    Raises:
        InputError: More seen than there are, or none.

    Example:
        >>> tally = Tally.zeros((1,))
        >>> tally.note(0, torch.zeros(500), (torch.arange(500) < 5).double(), torch.zeros(500))
        >>> print(mean_changes(tally, 500, 10_000).estimate(0), mean_changes(tally, 500, 500).estimate(0))
        -0.010 [-0.023, -0.001] -0.010 [-0.010, -0.010]

    Source: Wilson 1927; Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions
    based on paired data"; Zou & Donner 2008, "Construction of confidence limits about effect measures".
    """
    if not 1 <= seen <= inputs:
        raise InputError("mean_changes(seen)", f"from 1 to {inputs} inputs", seen)
    spare = (inputs - seen) / max(1, inputs - 1)
    best = tally.total / seen
    z = NormalDist().inv_cdf((1 + level) / 2)
    rose, fell = tally.rose.double() / seen, tally.fell.double() / seen
    (up_low, up_high), (down_low, down_high) = (_wilson(share, z * z * spare / seen) for share in (rose, fell))
    apart = ((1 - rose) * (1 - fell)).clamp(min=1e-300)
    related = -(rose * fell / apart).sqrt().clamp(max=1.0)

    def reach(a: Tensor, b: Tensor) -> Tensor:
        return (a * a + b * b - 2 * related * a * b).clamp(min=0.0).sqrt()

    below = reach(rose - up_low, down_high - fell)
    above = reach(up_high - rose, fell - down_low)
    changed = tally.rose + tally.fell
    whole = (tally.squares == changed) & (tally.total == tally.rose - tally.fell)
    if not bool(whole.all()):
        variance = (tally.squares - tally.total * best).clamp(min=0.0) / max(1, seen - 1)
        half = student_quantile(level, max(1, seen - 1)) * (variance * spare / seen).sqrt()
        half = torch.where((changed >= ENOUGH) | torch.tensor(spare == 0), half, torch.inf)
        below, above = torch.where(whole, below, half), torch.where(whole, above, half)
    return Intervals(best - below, best, best + above)


def _wilson(share: Tensor, q: float) -> tuple[Tensor, Tensor]:
    """Wilson's interval of shares, q = z^2 / trials."""
    centre = (share + q / 2) / (1 + q)
    half = (q * share * (1 - share) + q * q / 4).sqrt() / (1 + q)
    return torch.minimum(share, centre - half).clamp(min=0.0), torch.maximum(share, centre + half).clamp(max=1.0)


def looks(inputs: int) -> tuple[int, ...]:
    """Numbers of inputs after which intervals are made: 250, each half as many again, and all.

    Args:
        inputs: Examples in all.

    Example:
        >>> looks(2000), looks(100)
        ((250, 375, 562, 844, 1266, 2000), (100,))
    """
    found, number = [], float(FIRST)
    while number < inputs / 1.2:  # one a little below all would save little
        found.append(round(number))
        number *= GROWTH
    return (*found, inputs)


@dataclass(frozen=True, eq=False)
class Precise:
    """Score lost by lesions, each known to a wanted half-width.

    Attributes:
        lost: Key, as in `Effects.tallies` -> score lost, with 95 % intervals for these inputs.
        seen: Key -> inputs that each lesion was judged on.
        examples: Inputs in all.
        precision: Half-width that was wanted.
        plan: How it was computed.
        audit: What brute force said about some lesions on the inputs of the first look.
        seconds: CPU seconds.
    """

    lost: Mapping[str, Intervals]
    seen: Mapping[str, Tensor]
    examples: int
    precision: float
    plan: Plan
    audit: Audit
    seconds: float

    @property
    def share(self) -> float:
        """Share of the pairs of lesion and input that were evaluated."""
        lesions = sum(seen.numel() for seen in self.seen.values())
        return sum(int(seen.sum()) for seen in self.seen.values()) / (lesions * self.examples)


@without_tf32()
def precise(
    net: Network,
    what: What,
    task: Task,
    *,
    precision: float = 0.005,
    data: Data | None = None,
    score: Score | None = None,
    bitwise: bool = False,
    audited: int = 24,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Precise:
    """Score lost by each of many lesions, each judged on as many inputs as a wanted half-width takes.

    Args:
        net: The network; neither it nor the model it came from is touched.
        what: As in `ablate`. The entries of one weight, and nested orders, go on until all of them are precise.
        task: What it is for.
        precision: Half-width wanted of each 95 % interval, in units of the score, at least 0 (every input).
        data: Inputs and targets; by default the task's test split.
        score: By default the task's; a mean over examples.
        bitwise: Only run again what depends on the lesion, with the network's own operations.
        audited: Lesions to run again by brute force on the inputs of the first look.
        seed: Of the order of the inputs and the choice of audited lesions.
        progress: Told the number of inputs done so far.

    Returns:
        Intervals of the score lost over these inputs, and what they cost.

    Raises:
        InputError: A negative precision, a score that is no mean over examples, no lesions.
        AnatomyError: An unknown layer or unit.

    Example:
        >>> from planaria.measure.datasets import task
        >>> from planaria.sweep.lesions import EachUnit
        >>> from torch import nn
        >>> digits = task("digits")
        >>> net = Network.of(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)), digits.test.inputs)
        >>> found = precise(net, EachUnit(), digits, precision=0.02)
        >>> bool((found.lost["0"].half <= 0.02).all())
        True

    Source: fixed-width intervals by sampling until narrow enough: Chow & Robbins 1965.

    Not guaranteed: that all intervals hold at once; 95 % is what each has.
    """
    if not precision >= 0.0:
        raise InputError("precise(precision)", "a half-width of at least 0", precision)
    started = clock(net.device)
    data = task.test if data is None else data
    net = net.with_inputs(task.train.examples)
    job = Job.of(what, net)
    order = torch.randperm(len(data), generator=stream(seed, "precision"))
    upto, *later = looks(len(data))
    rows = order[:upto].to(data.inputs.device)
    sample = data.inputs[rows].to(net.device), data.targets[rows].to(net.device)
    with route_of(net.device, bitwise=bitwise) as route:
        judge, known = Judge(task.scorer if score is None else score), (sample[0], net(sample[0]))
        work = Work.of(net, job, judge, bitwise=bitwise, known=known)
        work = replace(work, plan=replace(work.plan, route=route))
        states = _begun(work, job.shapes, data, rows)
        checked = _audited(work, sample, states, audited, seed)
        wrong = checked.replaced
        while wrong:  # done again by a safer way, and again by brute force if that is wrong too
            work = work.safely(wrong)
            states |= (again := _begun(work, wrong, data, rows))
            wrong = _audited(work.only(wrong), sample, again, audited, seed).replaced
        for after in [*later, 0]:
            for state in states.values():
                state.look(upto, len(data), precision)
            if progress is not None:
                progress(upto)
            left = {key: state.left for key, state in states.items() if len(state.left)}
            if not after or not left:
                break
            for key, more in _tallied(_active(work, left), data, order[upto:after]).items():
                states[key].add(more)
            upto = after
    return Precise(
        lost={key: _shaped(states[key].change, shape).reversed() for key, shape in job.shapes.items()},
        seen={key: states[key].seen.reshape(shape) for key, shape in job.shapes.items()},
        examples=len(data),
        precision=precision,
        plan=work.plan,
        audit=checked,
        seconds=clock(net.device) - started,
    )


@dataclass(eq=False)
class _State:
    """Where the lesions of one key are.

    Attributes:
        tally: Sums over what each was judged on, [lesions].
        left: Places of those that are not precise yet.
        change: Mean changes as of the look at which each stopped.
        seen: Inputs each was judged on.
        alone: Whether lesions can be left out one by one.
    """

    tally: Tally
    left: Tensor
    change: Intervals
    seen: Tensor
    alone: bool

    @staticmethod
    def of(work: Work, key: str) -> _State:
        """Nothing known."""
        count = math.prod(work.job.shapes[key])
        way = next(way.way for way in work.plan.ways if way.key == key)
        nothing = torch.zeros(count, dtype=torch.float64)
        return _State(
            Tally.zeros((count,)),
            torch.arange(count),
            Intervals(nothing.clone(), nothing.clone(), nothing.clone()),
            torch.zeros(count, dtype=torch.int64),
            way not in IN_CHAIN and (key in work.job.units or key == "lesions"),
        )

    def add(self, more: Tally) -> None:
        """Add what the lesions that are left did on some further inputs."""
        for name in ("total", "rose", "fell", "squares"):
            getattr(self.tally, name).index_add_(0, self.left, getattr(more, name).flatten().cpu())

    def look(self, seen: int, inputs: int, precision: float) -> None:
        """Make intervals, and leave those alone that are narrow enough."""
        found = mean_changes(self.tally, seen, inputs, LEVEL)
        for name in ("low", "best", "high"):
            getattr(self.change, name)[self.left] = getattr(found, name)[self.left]
        self.seen[self.left] = seen
        finished = found.half[self.left] <= precision
        if self.alone:
            self.left = self.left[~finished]
        elif bool(finished.all()):
            self.left = self.left[:0]


def _begun(work: Work, keys: Iterable[str], data: Data, rows: Tensor) -> dict[str, _State]:
    """Lesions of some keys after the first inputs."""
    states = {key: _State.of(work, key) for key in keys}
    for key, more in _tallied(work.only(states), data, rows).items():
        states[key].add(more)
    return states


def _audited(work: Work, sample: tuple[Tensor, Tensor], states: Mapping[str, _State], count: int, seed: int) -> Audit:
    """What brute force says after the first look."""
    tallies = {key: state.tally for key, state in states.items()}
    return audit(work, *sample, tallies, count, seed, whole=True)


def _active(work: Work, left: Mapping[str, Tensor]) -> Work:
    """The work on the lesions that are left."""
    one_by_one = {*work.job.units, "lesions"} & left.keys()
    return work.only(left).some({key: left[key].tolist() for key in one_by_one})


def _tallied(work: Work, data: Data, rows: Tensor) -> dict[str, Tally]:
    """Changes by the lesions of a work on some examples."""
    found: dict[str, Tally] = {}
    rows = rows.to(data.inputs.device)
    for some in rows.split(FORWARD_BATCH):
        inputs, targets = data.inputs[some], data.targets[some]
        more, _ = work.tally(inputs.to(work.net.device), targets.to(work.net.device))
        found = {key: found[key] + tally if key in found else tally for key, tally in more.items()}
    return found


def _shaped(intervals: Intervals, shape: tuple[int, ...]) -> Intervals:
    return Intervals(*(tensor.reshape(shape) for tensor in (intervals.low, intervals.best, intervals.high)))


NOISE = 0.15
"""Share that the choice of inputs may add to the variance between orders."""


def planned_inputs(pilot: Tally, seen: int, inputs: int, noise: float = NOISE) -> int:
    """Inputs per order of a response curve, such that more orders are worth more than more inputs.

    The smallest n with s^2 (1/n - 1/N) <= noise * t^2, where s^2 is the variance of the change of an example's score
    within an order and t^2 that of the mean changes of orders (what the pilot's own inputs add to it taken off), both
    summed over the points of the curve. The standard error of a mean over orders then grows by a factor of
    sqrt(1 + noise), 7 %.

    Args:
        pilot: [orders, points], each order on random inputs of its own or all on all inputs; 8 orders will do.
        seen: Inputs of each order of the pilot.
        inputs: Examples in all, N.
        noise: Share of the variance between orders.

    Returns:
        From 1 to N; N where the pilot's orders do not differ by more than its inputs explain.

    Raises:
        InputError: Fewer than two orders or examples.

    Example:
        >>> fell = torch.tensor([[0, 100], [0, 140]])
        >>> zero = torch.zeros_like(fell)
        >>> planned_inputs(Tally(-fell.double(), zero, fell, fell.double()), 1000, 10_000)
        906

    Not guaranteed: precision from few orders; with 8, t^2 is off by half of itself in one case of three.
    """
    if pilot.total.ndim != 2 or len(pilot.total) < 2 or not 2 <= seen <= inputs:
        expected = f"[orders, points] with two orders or more, on 2 to {inputs} examples each"
        raise InputError("planned_inputs(pilot)", expected, f"{list(pilot.total.shape)} on {seen}")
    means = pilot.total / seen
    spread = ((pilot.squares - pilot.total * means) / (seen - 1)).clamp(min=0.0)
    within = float(spread.mean(0).sum())
    between = float(means.var(0).sum()) - within * (1 / seen - 1 / inputs)
    if within == 0.0:
        return 1
    if not between > 0.0:
        return inputs
    return max(1, min(inputs, math.ceil(within / (noise * between + within / inputs))))
