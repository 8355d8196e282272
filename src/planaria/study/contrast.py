"""Contrast of two repairs: paired by lesion, at equal total work, with times to rescue in both countings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planaria.core.streams import stream
from planaria.measure.statistics import Estimate, Paired, mean_interval, numpy_generator, paired_test

COUNTINGS = {"since the last hit": "_since_last_hit", "in total": ""}
"""How time can be counted, with what it adds to the name of a cost in a row."""

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Contrast:
    """Two repairs of the same lesions: one less the other.

    Args:
        seeds: Number of pairs.
        score: Final test score, at equal total work.
        by_dose: The same, dose by dose.
        updates: Counting -> updates to rescue, at most those that both had; None where neither was rescued.
        horizons: Counting -> updates that both had, averaged over the doses.
        lesions: Lesions that both repairs met.
        failed: Of these, those left out because a score is not finite.
    """

    seeds: int
    score: Paired
    by_dose: Mapping[float, Estimate]
    updates: Mapping[str, Paired | None]
    horizons: Mapping[str, float]
    lesions: int
    failed: int


def contrast(rows: Rows, one: str, other: str) -> Contrast | None:
    """Compare two repairs that meet the same lesions; None if there is no pair with finite scores.

    Times to rescue are restricted: a trial that is not rescued counts with all the updates that both repairs were
    followed for (the horizon), which is what is known of it. Since both are followed as far, nothing else is censored.

    Args:
        rows: As made by `Attempt.row`.
        one: Name of a repair.
        other: Name of another.
    """
    pairs: dict[tuple[int, float], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["repair"] in (one, other):
            pairs.setdefault((row["seed"], row["dose"]), {})[row["repair"]] = row
    pairs = {cell: pair for cell, pair in pairs.items() if len(pair) == 2}
    lesions = len(pairs)
    pairs = {c: pair for c, pair in pairs.items() if all(row["score_after"] is not None for row in pair.values())}
    if not pairs:
        return None
    seeds = sorted({seed for seed, _ in pairs})
    doses = sorted({dose for _, dose in pairs})
    rng = numpy_generator(stream(0, "verdict", one, other))

    def test(value: Mapping[tuple[int, float], tuple[float, float]]) -> Paired:
        means = [np.mean([value[cell] for cell in value if cell[0] == seed], axis=0) for seed in seeds]
        return paired_test([mean[0] for mean in means], [mean[1] for mean in means], rng)

    scores = {cell: (pair[one]["score_after"], pair[other]["score_after"]) for cell, pair in pairs.items()}
    updates: dict[str, Paired | None] = {}
    horizons: dict[str, float] = {}
    for counting, key in COUNTINGS.items():
        horizon = {
            dose: min(
                row[f"cost{key}"]["backward_passes"]
                for cell, pair in pairs.items()
                if cell[1] == dose
                for row in pair.values()
            )
            for dose in doses
        }
        times = {
            cell: tuple(min(_when(pair[name], key), horizon[cell[1]]) for name in (one, other))
            for cell, pair in pairs.items()
        }
        rescued = any(time < horizon[cell[1]] for cell, both in times.items() for time in both)
        updates[counting] = test(times) if rescued else None
        horizons[counting] = float(np.mean(list(horizon.values())))
    by_dose = {dose: mean_interval([a - b for (_, at), (a, b) in scores.items() if at == dose]) for dose in doses}
    return Contrast(len(seeds), test(scores), by_dose, updates, horizons, lesions, lesions - len(pairs))


def said_p(paired: Paired) -> str:
    """The p-value in words: few pairs cannot give a small one, however clear the difference.

    Example:
        >>> said_p(paired_test([2, 3, 4], [1, 1, 1], np.random.default_rng(0)))
        'p 0.25, the least that 3 pairs can give'
    """
    n, p_value = paired.pairs, paired.p_value
    least = 1 < n <= 12 and p_value <= 2.0 ** (1 - n)
    return f"p {p_value:.2g}" + (f", the least that {n} pairs can give" if least else "")


def said_points(estimate: Estimate, percent: bool) -> str:
    """A difference of scores, in points where scores are shares."""
    factor, form, unit = (100, ".2f", " points") if percent else (1, ".4f", "")
    return f"{Estimate(factor * estimate.low, factor * estimate.best, factor * estimate.high):{form}}{unit}"


def side(paired: Paired, below: str, above: str, neither: str) -> str:
    """What an interval says about zero."""
    return below if paired.difference.high < 0 else above if paired.difference.low > 0 else neither


def better(paired: Paired | None, *, higher: bool) -> bool:
    """Whether a difference is shown to be on the good side."""
    if paired is None:
        return False
    return paired.difference.low > 0 if higher else paired.difference.high < 0


def _when(row: Mapping[str, Any], key: str) -> float:
    """Updates to rescue; infinite if it was not rescued."""
    cost = row[f"rescue_cost{key}"]
    return math.inf if cost is None else float(cost["backward_passes"])
