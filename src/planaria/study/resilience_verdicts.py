"""Verdicts on resilience, in words: is the map right, is it a better guide than magnitude, where does damage turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from planaria.measure.statistics import Estimate
from planaria.study.breakdown import COUNT, FASTER, PATH, Breakdown
from planaria.study.guides import ACTIVATION, CHANGE, GATE, LOSS, MAGNITUDE
from planaria.study.resilient import ALONE, GREEDY, RANDOM, Resilience
from planaria.study.verdicts import Verdict

NEGLIGIBLE = 0.05
"""Share by which sums over units may be off and still count as right."""
CLOSE = (0.8, 1.25)
"""Actual by predicted change within which a prediction counts as right in size, interval and all."""


def judge_resilience(found: Resilience) -> tuple[Verdict, ...]:
    """Every verdict that a result allows.

    Args:
        found: The result.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> from planaria.measure.datasets import task
        >>> from planaria.study.resilience import resilience
        >>> net = Network.of(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)))
        >>> found = resilience(net, task("digits"), examples=64, repeats=2, points=3)
        >>> [verdict.answer for verdict in judge_resilience(found)][:1]
        ['yes, rank correlation 1.00, slope 1.00']

    Not guaranteed: that what holds for this network holds for others.
    """
    made = [predicts(found), guide(found), sets(found), stiff(found), broken(found, PATH), broken(found, COUNT)]
    return tuple(verdict for verdict in made if verdict is not None)


def predicts(found: Resilience) -> Verdict | None:
    """Whether the map tells what silencing a unit does to the outputs."""
    related, slope = found.trials.correlation(GATE, CHANGE), found.trials.slope
    if related is None or slope is None:
        return None
    ordered, sized = related.low >= 0.8, CLOSE[0] <= slope.low and slope.high <= CLOSE[1]
    wrong = slope.high < CLOSE[0] or slope.low > CLOSE[1]
    order = "the order, not the size" if wrong else "the order, the size is not settled"
    answer = "yes" if ordered and sized else order if ordered else "in part"
    answer = "no" if related.low <= 0 else answer
    words = (
        f"Over {len(found.trials.trials)} units silenced one by one, predicted and actual squared change of the "
        f"outputs have a rank correlation of {related:.2f}; the actual one is {slope:.2f} times the predicted one."
    )
    return Verdict(
        "Does the map predict what a deletion does?",
        f"{answer}, rank correlation {related.best:.2f}, slope {slope.best:.2f}",
        words,
        {"rank correlation": related, "slope": slope},
    )


def guide(found: Resilience) -> Verdict | None:
    """Whether the map is a better guide to the test loss than the size of the weights; the outputs without a task."""
    told = LOSS if LOSS in found.trials.told else CHANGE
    own, other = (found.trials.correlation(name, told) for name in (GATE, MAGNITUDE))
    apart, third = (found.trials.better(name, told) for name in (MAGNITUDE, ACTIVATION))
    if own is None or other is None or apart is None:
        return None
    difference, p_value = apart
    shown = "yes" if difference.low > 0 else "no, magnitude is better" if difference.high < 0 else "not shown"
    if own.low <= 0 and other.low <= 0:
        shown = "neither is shown to be one"
    what = "rise of the test loss" if told == LOSS else "change of the outputs"
    words = (
        f"Rank correlation with the {what}: map {own:.2f}, norm of the outgoing weights {other:.2f}; difference "
        f"{difference:.2f}, p {p_value:.2g} (units resampled, the same for both)."
    )
    numbers: dict[str, Estimate | float | str | None] = {"map": own, "magnitude": other, "difference": difference}
    if third is not None:
        related = found.trials.correlation(ACTIVATION, told)
        words += f" Norm times activation: {related:.2f}; difference {third[0]:.2f}, p {third[1]:.2g}."
        numbers |= {"activation times magnitude": related, "difference from it": third[0]}
    numbers["p"] = p_value
    return Verdict(
        "Is the map a better guide than magnitude?",
        f"{shown}, {own.best:.2f} against {other.best:.2f}",
        words,
        numbers,
    )


def sets(found: Resilience) -> Verdict | None:
    """Whether what units change adds up, and how large first-order costs of sets are beside the real ones."""
    drawn = [one for one in found.sets if one.how == RANDOM and one.actual > 0]
    if not drawn or len(drawn[0].units) < 2:
        return None
    size = len(drawn[0].units)
    plain, crossed = (_off([(getattr(one, key), one.actual) for one in drawn]) for key in ("additive", "predicted"))
    if crossed < 0.8 * plain and plain > NEGLIGIBLE:
        answer = f"no, the sum is off by {_share(plain)}, with cross terms by {_share(crossed)}"
    else:
        answer = f"{'yes' if plain <= NEGLIGIBLE else 'roughly'}, the sum is off by {_share(plain)}"
    chosen = {one.how: one for one in found.sets if one.how != RANDOM}
    words = (
        f"Squared change by {len(drawn)} random sets of {size} units: the prediction with cross terms is off by "
        f"{_share(crossed)} in the median, the sum over units by {_share(plain)}."
    )
    if GREEDY in chosen and ALONE in chosen:
        greedy, alone = chosen[GREEDY], chosen[ALONE]
        same = set(greedy.units) == set(alone.units)
        rest = "they are those worst alone" if same else f"those worst alone {alone.actual:.3g}"
        words += (
            f" The {size} units that are worst together by cross terms change {greedy.actual:.3g} (predicted "
            f"{greedy.predicted:.3g}); {rest}."
        )
    numbers: dict[str, Estimate | float | str | None] = {"off by, cross terms": crossed, "off by, sum": plain}
    return Verdict("Do the costs of units add up?", answer, words, numbers)


def _off(pairs: Sequence[tuple[float, float]]) -> float:
    """Median factor between prediction and truth, less 1."""
    return math.expm1(min(700.0, median(abs(math.log(max(told, 1e-300) / actual)) for told, actual in pairs)))


def _share(value: float) -> str:
    return f"{100 * value:.2g} %" if value < 1 else f"a factor of {1 + value:.2g}"


def stiff(found: Resilience) -> Verdict | None:
    """In how many directions of weight space the outputs change."""
    spectrum = found.spectrum
    if spectrum is None or not spectrum.stiff:
        return None
    tau, few = min(spectrum.stiff.items(), key=lambda pair: abs(math.log(pair[0] / 0.01)))
    words = (
        f"{few:,} of at most {spectrum.bound:,} directions ({spectrum.inputs:,} inputs) exceed {100 * tau:g} % of the "
        f"largest eigenvalue of the metric; {spectrum.entries:,} weights can move. Effective dimension "
        f"{spectrum.dimension:.1f}; {100 * spectrum.resilient.best:.2f} % of all directions are nearly free."
    )
    numbers: dict[str, Estimate | float | str | None] = {
        "stiff directions": float(few),
        "effective dimension": spectrum.dimension,
        "resilient fraction": spectrum.resilient,
    }
    answer = f"{few:,} of {spectrum.bound:,} above {100 * tau:g} % of the largest"
    return Verdict("How many directions are stiff?", answer, words, numbers)


def broken(found: Resilience, along: str) -> Verdict | None:
    """Whether there is a break-down point before the end."""
    curve = found.breakdown(along)
    if curve is None:
        return None
    many = len(curve.runs)
    where = "along the path" if along == PATH else "as units are deleted"
    fast = curve.median(curve.faster)
    told = [_told("the functional speed", f"passes {FASTER:g} times its first value", curve, curve.faster)]
    numbers: dict[str, Estimate | float | str | None] = {"speed, median place": fast}
    worst = False
    if curve.allowed is not None:
        lost = f"{100 * curve.allowed:g} points" if found.percent else f"{curve.allowed:.3g}"
        told.append(_told("the score", f"loses {lost}", curve, curve.worse))
        slow = curve.median(curve.worse)
        numbers["score, median place"] = slow
        worst = math.isfinite(slow.best)
    of = f"{curve.units[-1]:,} units" if along == PATH else f"up to {100 * curve.at[-1]:.0f} % of the units"
    words = f"{many} random lesions of {of}: {'; '.join(told)}."
    if math.isfinite(fast.best):
        answer = f"yes, the speed at {_place(along, fast)}"
        answer += f", the score at {_place(along, slow)}" if worst else ""
    else:
        some = any(place is not None for place in curve.faster)
        answer = "in speed for less than half of the lesions" if some else "none in speed"
        answer += f"; the score gives way at {_place(along, slow)}" if worst else ""
    return Verdict(f"Is there a break-down point {where}?", answer, words, numbers)


def _told(what: str, does: str, curve: Breakdown, places: tuple[float | None, ...]) -> str:
    known = [place for place in places if place is not None]
    if not known:
        return f"{what} never {does}"
    first = _place(curve.along, curve.median(places)) if len(known) * 2 >= len(places) else ""
    return f"{what} {does} in {len(known)} of {len(places)}" + (f", by {first} in half of them" if first else "")


def _place(along: str, place: Estimate) -> str:
    if along == PATH:
        return f"t = {place.best:.2f}"
    return f"{100 * place.best:.0f} % of the units"
