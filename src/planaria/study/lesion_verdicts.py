"""Verdicts on a lesion study, in words: regions, sums of parts, selective lesions, dissociations, selectivity."""

from __future__ import annotations

import math

from planaria.measure.statistics import Estimate
from planaria.study.contrast import said_points
from planaria.study.dissociation import DOUBLE, LEVEL, SINGLE, holm
from planaria.study.groupings import SELECTIVITY
from planaria.study.lesioned import LesionStudy
from planaria.study.verdicts import Verdict

NAMED = 8
"""Most pairs or classes that are named one by one."""


def judge_lesions(found: LesionStudy) -> tuple[Verdict, ...]:
    """Every verdict that a lesion study allows.

    Args:
        found: The study.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> from planaria.measure.datasets import task
        >>> from planaria.study.lesions import BySelectivity, lesion_study
        >>> net = Network.of(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)))
        >>> verdicts = judge_lesions(lesion_study(net, task("digits"), [BySelectivity(0.2)], draws=4))
        >>> [verdict.question for verdict in verdicts][2]
        'Do lesions of two classes doubly dissociate?'

    Not guaranteed: that what holds for this network holds for others.
    """
    made = (region(found), parts(found), specific(found), dissociation(found), guide(found))
    return tuple(verdict for verdict in made if verdict is not None)


def region(found: LesionStudy) -> Verdict | None:
    """Which region costs more than random units of its size; None without regions."""
    regions = [one for one in found.lesions if one.grouping != SELECTIVITY]
    tested = [one for one in regions if one.whole.p_value is not None]
    if not tested:
        return None
    corrected = holm([one.whole.p_value or 0.0 for one in tested])
    beyond = [one for one, p in zip(tested, corrected, strict=True) if p < LEVEL]
    worst = max(tested, key=lambda one: _excess(one.whole.lost, one.whole.control))
    control = worst.whole.control or Estimate(math.nan, math.nan, math.nan)
    percent = found.percent
    answer = f"{len(beyond)} of {len(tested)} regions"
    words = (
        f"Furthest from its controls: {worst.name}. Its {worst.size} units cost "
        f"{said_points(worst.whole.lost, percent)}, as many random ones {said_points(control, percent)} (brackets of "
        "random ones: where one more would lie). "
        "Corrected for the number of regions (Holm)."
    )
    numbers: dict[str, Estimate | float | str | None] = {
        "region": worst.name,
        "score lost": worst.whole.lost,
        "by random units": control,
    }
    return Verdict("Do regions cost more than random units of their number?", answer, words, numbers)


def parts(found: LesionStudy) -> Verdict | None:
    """Whether regions cost more than the sum of their units; None where units were not silenced alone."""
    regions = [one for one in found.lesions if one.interaction is not None and one.size > 1]
    if not regions:
        return None
    more = sum((one.interaction or 0.0) > 0 for one in regions)
    widest = max(regions, key=lambda one: abs(one.interaction or 0.0))
    whole, alone = (said_points(_bare(x), found.percent) for x in (widest.whole.lost.best, widest.single_units or 0.0))
    answer = f"{more} of {len(regions)} do"
    words = (
        f"Largest difference: {widest.name} costs {whole}, its {widest.size} units one at a time {alone} in all. A "
        "surplus means that units stand in for each other while they can. Exact on these inputs."
    )
    numbers = {"regions above the sum": float(more), "largest difference": widest.interaction}
    return Verdict("Does a group cost more than its units one at a time?", answer, words, numbers)


def specific(found: LesionStudy) -> Verdict | None:
    """Whether lesions of selective units hurt their class more than random ones; None without any."""
    chosen = [one for one in found.selective if one.label is not None]
    if not chosen:
        return None
    losses = [(one, one.classes[found.classes.index(one.label or "")]) for one in chosen]
    corrected = holm([1.0 if loss.p_value is None else loss.p_value for _, loss in losses])
    hurt = [one.label or "" for (one, _), p in zip(losses, corrected, strict=True) if p < LEVEL]
    own = sum(loss.lost.best for _, loss in losses) / len(losses)
    rest = sum(other.lost.best for one, loss in losses for other in one.classes if other is not loss) / max(
        1, len(losses) * (len(found.classes) - 1)
    )
    random = sum(loss.control.best for _, loss in losses if loss.control is not None) / len(losses)
    said = {name: said_points(_bare(x), found.percent) for name, x in (("own", own), ("rest", rest), ("any", random))}
    answer = f"yes, for {len(hurt)} of {len(chosen)} classes" if hurt else f"no, for none of {len(chosen)} classes"
    words = (
        f"On average such a lesion of {chosen[0].size} units costs its own class {said['own']} and another class "
        f"{said['rest']}; random units of the same layers cost a class {said['any']}. Corrected over classes (Holm)."
    )
    numbers = {"own class": own, "other classes": rest, "random units": random}
    return Verdict(
        "Do lesions of class-selective units hurt their class more than random ones?", answer, words, numbers
    )


def dissociation(found: LesionStudy) -> Verdict | None:
    """Which pairs of classes doubly dissociate; None without pairs."""
    if not found.dissociations:
        return None
    double, single = found.verdicts(DOUBLE), found.verdicts(SINGLE)
    pairs = len(found.dissociations)
    answer = f"yes, {len(double)} of {pairs} pairs" if double else f"no dissociation is shown for any of {pairs} pairs"
    if single:
        answer += f"; {len(single)} singly" if double else f" both ways; {len(single)} singly"
    words = (
        "Shown both ways, within lesions and within classes, and beyond random lesions of the same size; corrected "
        "over pairs and classes (Holm)."
    )
    kept, verb = (double, "Double") if len(double) <= pairs / 2 else (found.verdicts(SINGLE), "Single")
    if kept and len(kept) <= NAMED:
        words += f" {verb}: {', '.join(' and '.join(one.classes) for one in kept)}."
    numbers = {"double": float(len(double)), "single": float(len(single)), "pairs": float(pairs)}
    return Verdict("Do lesions of two classes doubly dissociate?", answer, words, numbers)


def guide(found: LesionStudy) -> Verdict | None:
    """Whether the selectivity of a unit predicts what its loss costs; None where it is not known."""
    known = [one for one in found.guides if one.total is not None]
    if not known:
        return None
    good = [one for one in known if one.total is not None and one.total.low > 0]
    bad = [one for one in known if one.total is not None and one.total.high < 0]
    apart = [one for one in found.guides if one.apart.low > 0]
    answer = f"no, in none of {len(known)} layers" if not good else f"yes, in {len(good)} of {len(known)} layers"
    if bad:
        answer += f"; in {len(bad)} the other way round"
    told = "; ".join(f"{one.layer} {one.total:.2f}" for one in known[:NAMED])
    words = (
        f"Rank correlation, over units, of the largest d' with the {found.score} lost when the unit alone is silenced: "
        f"{told}. Which class a unit prefers does say which class it hurts more than others in {len(apart)} of "
        f"{len(found.guides)} layers."
    )
    numbers: dict[str, Estimate | float | str | None] = {one.layer: one.total for one in known[:NAMED]}
    return Verdict("Does the selectivity of a unit predict what its loss costs?", answer, words, numbers)


def _excess(lost: Estimate, control: Estimate | None) -> float:
    """Loss above that of controls, in half-widths of their range; the order of interest."""
    if control is None or math.isnan(lost.best) or math.isnan(control.best):
        return -math.inf
    half = control.high - control.best
    return (lost.best - control.best) / half if half > 0 else lost.best - control.best


def _bare(value: float) -> Estimate:
    return Estimate(math.nan, value, math.nan)
