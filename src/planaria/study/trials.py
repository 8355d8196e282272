"""What trainings add up to: means over seeds, differences from the control, and verdicts in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from planaria.core.motion import Cost
from planaria.core.streams import stream
from planaria.measure.statistics import (
    Estimate,
    Paired,
    kaplan_meier,
    mean_interval,
    numpy_generator,
    paired_test,
)
from planaria.study.contrast import said_p
from planaria.study.verdicts import Verdict

PLAIN = "plain"
"""Name of the control, which the other methods are compared with."""
CURVES = ("random", "worst", "rescued")
"""Units deleted at random, the largest first, and at random with instant rescue afterwards."""

Rows = Sequence[Mapping[str, Any]]


def summarise_trials(rows: Rows, bounds: tuple[float, float] | None = None) -> list[dict[str, Any]]:
    """Means over seeds with 95 % intervals, median times to rescue by Kaplan-Meier, differences from the control.

    Args:
        rows: As made by `Trial.row`.
        bounds: Least and greatest possible score, to which intervals are clipped.

    Returns:
        One dictionary per method, in the order of appearance.
    """
    return [_summary(method, _of(rows, method), rows, bounds) for method in dict.fromkeys(r["method"] for r in rows)]


def _summary(method: str, own: Rows, rows: Rows, bounds: tuple[float, float] | None) -> dict[str, Any]:
    def mean(values: Sequence[float | None]) -> Estimate:
        return mean_interval([-math.inf if value is None else value for value in values], within=bounds)

    def curve(name: str) -> dict[str, Any]:
        found = [mean(column).to_dict() for column in zip(*(row[f"curve_{name}"] for row in own), strict=True)]
        ends = {"mean": "best", "low": "low", "high": "high"}
        return {"doses": own[0]["doses"]} | {key: [one[end] for one in found] for key, end in ends.items()}

    median = kaplan_meier([row["updates"] for row in own], [bool(row["rescued"]) for row in own]).median
    columns = ("score_intact", *(f"area_{name}" for name in CURVES))
    differences = {} if method == PLAIN else {c: difference(rows, method, PLAIN, c) for c in columns}
    return {
        "method": method,
        "intact": mean([row["score_intact"] for row in own]).to_dict(),
        **{f"area_{name}": mean([row[f"area_{name}"] for row in own]).to_dict() for name in CURVES},
        "rescue_updates": median.to_dict() if math.isfinite(median.best) else None,
        "rescued": sum(bool(row["rescued"]) for row in own),
        "trials": len(own),
        "curves": {name: curve(name) for name in CURVES},
        "cost": {f.name: sum(row["cost"][f.name] for row in own) / len(own) for f in fields(Cost)},
        "less_plain": {c: None if d is None else d.difference.to_dict() for c, d in differences.items()},
    }


def difference(rows: Rows, one: str, other: str, column: str) -> Paired | None:
    """One method less another, paired by seed; None without a pair of finite scores.

    Args:
        rows: As made by `Trial.row`.
        one: Name of a method.
        other: Name of another.
        column: score_intact, or area_ and one of CURVES.
    """
    first, second = ({row["seed"]: row[column] for row in _of(rows, name)} for name in (one, other))
    both = [seed for seed in first if first[seed] is not None and second.get(seed) is not None]
    if not both:
        return None
    rng = numpy_generator(stream(0, "harden", one, other, column))
    return paired_test([first[seed] for seed in both], [second[seed] for seed in both], rng)


def judge_trials(rows: Rows, *, percent: bool = False) -> tuple[Verdict, ...]:
    """What the trials say: which training survives best, and whether damage-repair beats dropout.

    A difference is called one only where its 95 % interval over seeds leaves out zero.

    Args:
        rows: As made by `Trial.row`.
        percent: Whether scores are shares, to be said in points.

    Returns:
        The verdicts; a question whose methods were not run is left out.
    """
    verdicts = [_survives_best(rows, percent), _damage_repair(rows, percent)]
    return tuple(verdict for verdict in verdicts if verdict is not None)


def _survives_best(rows: Rows, percent: bool) -> Verdict | None:
    means = _means(rows, "area_random")
    if len(means) < 2:
        return None
    order = sorted(means, key=lambda name: -means[name])
    top, second = order[:2]
    numbers: dict[str, Estimate | float | str | None] = {}
    for name in means:
        found = difference(rows, name, PLAIN, "area_random") if name != PLAIN else None
        numbers[f"area, {name}"] = mean_interval([_number(row["area_random"]) for row in _of(rows, name)])
        if found is not None:
            numbers[f"area, {name} - {PLAIN}"] = found.difference
    ahead = difference(rows, top, second, "area_random")
    answer = top if _sign(ahead) > 0 else f"{top}, not told apart from {second}"
    words = [f"With units deleted at random, {top} keeps {_score(means[top], percent)} on average over the doses."]
    control = difference(rows, top, PLAIN, "area_random") if top != PLAIN else None
    price = difference(rows, top, PLAIN, "score_intact") if top != PLAIN else None
    if control is not None and price is not None:
        numbers["intact, best - plain"] = price.difference
        words[0] = words[0][:-1] + f", {_points(control, percent)} from {PLAIN}; intact, {_points(price, percent)}."
    for column, said in (("area_worst", "With the worst units deleted first"), ("area_rescued", "With instant rescue")):
        others = _means(rows, column)
        best = max(others, key=lambda name: others[name])
        words.append(f"{said}, {best} is highest at {_score(others[best], percent)}.")
        numbers[f"{column.replace('_', ', ')}, best"] = best
    return Verdict("Which training survives best?", answer, " ".join(words), numbers)


def _damage_repair(rows: Rows, percent: bool) -> Verdict | None:
    means = _means(rows, "area_random")
    families = [[name for name in means if name.partition(":")[0] == word] for word in ("damage-repair", "dropout")]
    if not all(families):
        return None
    one, other = (max(family, key=lambda name: means[name]) for family in families)
    numbers: dict[str, Estimate | float | str | None] = {}
    words = []
    for column, said in (("area_random", "random deletion"), ("area_worst", "worst first"), ("score_intact", "intact")):
        found = difference(rows, one, other, column)
        if found is not None:
            numbers[f"{said}, {one} - {other}"] = found.difference
            numbers[f"{said}, p"] = found.p_value
            words.append(f"{said} {_points(found, percent)}")
    sign = _sign(difference(rows, one, other, "area_random"))
    answer = "yes" if sign > 0 else "no, dropout survives better" if sign < 0 else "not told apart"
    return Verdict(
        "Does iterative damage-repair beat dropout at equal gradient evaluations?",
        answer,
        f"{one} less {other}: {', '.join(words)}." if words else "Not tested.",
        numbers,
    )


def _of(rows: Rows, method: str) -> Rows:
    return [row for row in rows if row["method"] == method]


def _number(value: float | None) -> float:
    return -math.inf if value is None else value


def _means(rows: Rows, column: str) -> dict[str, float]:
    names = dict.fromkeys(row["method"] for row in rows)
    return {name: float(np.mean([_number(row[column]) for row in _of(rows, name)])) for name in names}


def _sign(paired: Paired | None) -> int:
    """1 or -1 where the interval of a difference leaves out zero, else 0."""
    if paired is None or not paired.difference.has_interval:
        return 0
    return int(paired.difference.low > 0) - int(paired.difference.high < 0)


def _score(value: float, percent: bool) -> str:
    return f"{value:.1%}" if percent else f"{value:.3f}"


def _points(paired: Paired, percent: bool) -> str:
    """A difference of scores with its sign, in points where scores are shares."""
    factor, form, unit = (100, "+.2f", " points") if percent else (1, "+.4f", "")
    low, best, high = (factor * value for value in vars(paired.difference).values())
    return f"{Estimate(low, best, high):{form}}{unit} ({said_p(paired)})"
