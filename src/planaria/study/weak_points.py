"""Verdicts on a map of vulnerability, in words: the weakest point, concentration, worst sets, first-order scores."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from planaria.measure.statistics import Estimate
from planaria.study.contrast import said_points
from planaria.study.unit_map import EXACT, Vulnerability
from planaria.study.verdicts import Verdict
from planaria.study.worst_sets import FIRST_ORDER, GREEDY, RANDOM

CONCENTRATED, SPREAD = 0.05, 0.2
"""Shares of the units that hold half of all loss: concentrated up to the one, spread from the other."""
FOUND, MISSED = 0.8, 0.5
"""Shares of the worst units that a first-order ranking finds: found from the one, missed below the other."""


def judge_vulnerability(found: Vulnerability) -> tuple[Verdict, ...]:
    """Every verdict that a map allows.

    Args:
        found: The map.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> from planaria.measure.datasets import task
        >>> from planaria.study.vulnerability import vulnerability
        >>> net = Network.of(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)))
        >>> verdicts = judge_vulnerability(vulnerability(net, task("digits"), worst_set=2))
        >>> [verdict.question for verdict in verdicts][:2]
        ['Which unit is the weakest point?', 'Is the damage concentrated in few units?']

    Not guaranteed: that what holds for this network holds for others.
    """
    made = (weakest(found), concentration(found), together(found), first_order(found), compensation(found))
    return tuple(verdict for verdict in (*made, weights(found)) if verdict is not None)


def weakest(found: Vulnerability) -> Verdict:
    """Which unit costs most, and what."""
    question = "Which unit is the weakest point?"
    first, *rest = found.top(2)
    name = _name(first.unit.layer, first.unit.index)
    if not first.lost.best > 0:
        words = f"None of {found.units:,} units lowers the {found.score} when it alone is silenced."
        return Verdict(question, "none: no single unit costs anything", words, {"score lost": first.lost})
    shown = found.way != EXACT or not first.lost.low <= 0
    words = f"Silencing it takes the {found.score} from {found.intact:.4f} to {found.intact - first.lost.best:.4f}."
    numbers: dict[str, Estimate | float | str | None] = {"unit": name, "score lost": first.lost}
    if rest:
        second = rest[0]
        words += f" Next is {_name(second.unit.layer, second.unit.index)}, {said_points(second.lost, found.percent)}."
        numbers["score lost by the next"] = second.lost
    if found.way == EXACT and first.lost.has_interval:
        words += " The interval is that of one unit on inputs like these; that of a worst of many lies a little lower."
    if not shown:
        words += " Its interval does not leave out zero: on other inputs it may cost nothing."
    return Verdict(question, f"{name}, costs {said_points(first.lost, found.percent)}", words, numbers)


def concentration(found: Vulnerability) -> Verdict | None:
    """What share of all that single units cost is held by the worst of them; None if none costs anything."""
    losses = torch.tensor([loss for layer in found.layers for loss in layer.lost], dtype=torch.float64)
    losses = losses.nan_to_num(nan=0.0, posinf=math.inf).clamp(min=0.0).sort(descending=True).values
    total = float(losses.sum())
    if not 0 < total < math.inf or len(losses) < 2:
        return None
    few = max(1, round(0.01 * len(losses)))
    held = float(losses[:few].sum()) / total
    half = (1 + int((losses.cumsum(0) < (0.5 - 1e-9) * total).sum())) / len(losses)
    idle = float((losses == 0).double().mean())
    answer = "yes" if half <= CONCENTRATED else "no" if half >= SPREAD else "in part"
    who = "the worst unit" if few == 1 else f"the worst {few} units"
    words = (
        f"{_percent(held)} of all that single units cost is held by {who} of {len(losses):,} "
        f"({_percent(few / len(losses))}); half of it by {_percent(half)} of the units. {_percent(idle)} cost nothing."
    )
    numbers = {"held by the top 1 %": held, "units that hold half": half, "units that cost nothing": idle}
    return Verdict(
        "Is the damage concentrated in few units?",
        f"{answer}, half of it lies in {_percent(half)} of the units",
        words,
        numbers,
    )


def together(found: Vulnerability) -> Verdict | None:
    """Whether the units that are worst alone are the worst together; None without sets."""
    if found.sets is None or found.sets.size < 2:
        return None
    sets, percent = found.sets, found.percent
    lost = {how: sets.lost(how) for how in (GREEDY, FIRST_ORDER, RANDOM)}
    greedy, first = lost[GREEDY], lost[FIRST_ORDER]
    alone = sum(found[unit].lost.best for unit in sets.units[FIRST_ORDER])
    if set(sets.units[GREEDY]) == set(sets.units[FIRST_ORDER]):
        answer = "yes: the greedy choice is the same"
    elif not greedy.best > first.best:
        answer = "as far as the greedy choice can tell: it finds no worse set"
    elif greedy.has_interval and first.has_interval and greedy.low > first.high:
        answer = f"no: a greedy choice costs {said_points(greedy, percent)}"
    else:
        answer = f"perhaps not: a greedy choice costs {said_points(greedy, percent)}, not shown to be more"
    words = (
        f"{sets.size} units together: {said_points(greedy, percent)} for the greedy set, "
        f"{said_points(first, percent)} for those that cost most alone (their losses add up to "
        f"{_points(alone, percent)}), {said_points(lost[RANDOM], percent)} for random ones ({sets.draws} draws). "
        "The first two were chosen on the inputs they are scored on."
    )
    numbers = {f"score lost, {how}": estimate for how, estimate in lost.items()}
    return Verdict("Are the units that are worst alone the worst together?", answer, words, numbers)


def first_order(found: Vulnerability) -> Verdict | None:
    """Whether direct effects, known from one backward pass, find the worst units; None without them."""
    layers = [layer for layer in found.layers if layer.direct is not None]
    lost = torch.tensor([x for layer in layers for x in layer.lost], dtype=torch.float64)
    guess = torch.tensor([-x for layer in layers for x in layer.direct or ()], dtype=torch.float64)
    good = lost.isfinite() & guess.isfinite()
    lost, guess = lost[good], guess[good]
    if len(lost) < 4 or not bool((lost > 0).any()):
        return None
    related = rank_correlation(lost, guess)
    if related is None:
        return None
    count = max(1, min(10, len(lost) // 5, int((lost > 0).sum())))
    worst = lost.topk(count).indices
    # Units that cost as much as the last of them count as well.
    hits = int((lost[guess.topk(count).indices] >= lost[worst[-1]]).sum())
    share = hits / count
    answer = "yes" if share >= FOUND and related.low > 0 else "no" if share < MISSED or related.low <= 0 else "in part"
    words = (
        f"The direct effect on the {found.margin}, from one pass forward and back, and the {found.score} lost have a "
        f"rank correlation of {related:.2f} over {len(lost):,} units; of the {count} worst units it finds {hits}."
    )
    numbers: dict[str, Estimate | float | str | None] = {"rank correlation": related}
    numbers[f"found of the {count} worst"] = share
    return Verdict(
        "Do first-order scores find the worst units?", f"{answer}, {hits} of the {count} worst", words, numbers
    )


def compensation(found: Vulnerability) -> Verdict | None:
    """Whether later layers make up for silenced units; None without both effects."""
    layers = [layer for layer in found.layers if layer.compensation is not None]
    direct = torch.tensor([x for layer in layers for x in layer.direct or ()], dtype=torch.float64)
    total = torch.tensor([x for layer in layers for x in layer.total or ()], dtype=torch.float64)
    hurting = (direct < 0) & total.isfinite()  # what does harm, if nothing responds
    if not bool(hurting.any()):
        return None
    at_first, in_the_end = float(-direct[hurting].sum()), float(-total[hurting].sum())
    share = 1 - in_the_end / at_first
    if abs(share) < 0.01:
        answer = "no: what they lose is what the unit gave"
    elif share > 0:
        answer = f"yes, {_percent(share)} of the direct loss"
    else:
        answer = f"no, they add {_percent(-share)} to it"
    words = (
        f"Over the {int(hurting.sum()):,} units that lower the {found.margin} directly, the direct effects add up to "
        f"{-at_first:.4g} and the total ones, with all later layers responding, to {-in_the_end:.4g}."
    )
    numbers = {"direct": -at_first, "total": -in_the_end, "share made up for": share}
    return Verdict("Do later layers make up for silenced units?", answer, words, numbers)


def weights(found: Vulnerability) -> Verdict | None:
    """Which single weight costs most; None where none were tried."""
    tried = [(weak, *weak.worst(1)[0]) for weak in found.weights]
    if not tried:
        return None
    weak, index, most = max(tried, key=lambda one: one[2])
    entries = sum(one.lost.numel() for one in found.weights)
    costly = sum(one.costly * one.lost.numel() for one in found.weights) / entries
    name = f"{weak.weight}{list(index)}"
    question, words = "Which single weight is the weakest?", f"{entries:,} single changes were tried. "
    if not most > 0:
        return Verdict(question, "none: no single one costs anything", words, {"changes": float(entries)})
    words += f"{_percent(costly)} of them cost anything."
    numbers: dict[str, Estimate | float | str | None] = {"score lost": most, "share that costs anything": costly}
    return Verdict(
        question, f"{name} {weak.key[len(weak.weight) + 1 :]}, costs {_points(most, found.percent)}", words, numbers
    )


def rank_correlation(a: Tensor, b: Tensor, level: float = 0.95) -> Estimate | None:
    """Spearman's rank correlation with its interval; None where one side has no order at all.

    Args:
        a: Numbers, at least 4.
        b: As many.
        level: Coverage of the interval.

    Example:
        >>> print(rank_correlation(torch.tensor([1.0, 2, 3, 4, 5, 6]), torch.tensor([1.0, 2, 3, 5, 4, 6])))
        0.943 [0.383, 0.996]

    Source: Bonett & Wright 2000, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations":
    Fisher's z with standard error sqrt((1 + r^2 / 2) / (n - 3)).
    """
    ranks = [_ranks(x) - (len(x) + 1) / 2 for x in (a, b)]
    spread = [float(rank.square().sum()) for rank in ranks]
    if len(a) < 4 or not all(spread):
        return None
    r = float((ranks[0] * ranks[1]).sum()) / math.sqrt(spread[0] * spread[1])
    r = max(-1.0, min(1.0, r))
    if abs(r) == 1.0:
        return Estimate(r, r, r)
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt((1 + r * r / 2) / (len(a) - 3))
    return Estimate(math.tanh(math.atanh(r) - half), r, math.tanh(math.atanh(r) + half))


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1, equal values with their mean rank."""
    _, place, counts = values.double().unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() - 1) / 2)[place]


def _name(layer: str, unit: int) -> str:
    return f"{layer}[{unit}]"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _points(value: float, percent: bool) -> str:
    return f"{100 * value:.2f} points" if percent else f"{value:.4f}"
