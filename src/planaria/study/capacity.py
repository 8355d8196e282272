"""Capacity: whether what survives a lesion is too small for the task, or only short of training.

A repair that is not rescued within the budget is *capacity-limited* only if it has learnt and has come to rest. Learnt:
its score is shown to have risen over the first half of the updates since the last hit. At rest: it is not shown to rise
over the second half, and ten times the budget would not take it to the target if every doubling gave as much as that
half did, at the upper end of its interval. And it takes training from scratch at the reduced size to have come to rest
too: what was left of the old weights could be what holds a network back.

Not guaranteed: that no longer training helps. A network that learns in leaps can rest for longer than that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from planaria.measure.statistics import Estimate, mean_interval
from planaria.study.contrast import Rows, said_points

SCRATCH = "scratch"
"""Name of the control that trains a new network of the reduced size."""


@dataclass(frozen=True)
class Rest:
    """How far a repair is from the target at the end, and whether it still moves.

    Args:
        gap: Validation score missing to the target.
        gain: Validation score gained over the first half of the updates since the last hit.
        slope: Validation score gained per 100 updates over the second half of them.
        half: Updates in that half.
    """

    gap: Estimate
    gain: Estimate
    slope: Estimate
    half: float

    @property
    def rising(self) -> bool:
        """Whether the score is shown to rise."""
        return self.slope.low > 0

    @property
    def still(self) -> bool:
        """Whether ten times the budget would not be enough, were every doubling worth this half."""
        return math.log2(10) * self.slope.high * self.half / 100 < self.gap.low

    @property
    def learnt(self) -> bool:
        """Whether the score is shown to have risen before."""
        return self.gain.low > 0

    @property
    def limited(self) -> bool:
        """Whether more training of this kind does not help, as far as this can be told."""
        return self.gap.low > 0 and self.learnt and self.still and not self.rising

    @property
    def state(self) -> str:
        """The same in words."""
        if self.rising:
            return "still rising"
        if not self.learnt:
            return "not shown to have learnt yet"
        return "at rest" if self.limited else "not shown to be at rest"


def rest_of(rows: Rows, tolerance: float) -> Rest | None:
    """None for repairs that were not followed update by update."""
    slopes, gaps, gains, halves = [], [], [], []
    for row in rows:
        since, end = row["cost_since_last_hit"]["backward_passes"], row["cost"]["backward_passes"]
        known = [p for p in row["curve"] if p["updates"] >= end - since and p["validation"] is not None]
        late = [p for p in known if p["updates"] >= end - since / 2]
        x = np.array([point["updates"] for point in late], dtype=float)
        if len(late) < 3 or x.min() == x.max() or row["validation_after"] is None:
            return None
        centred = x - x.mean()
        slopes.append(100 * float(centred @ np.array([point["validation"] for point in late]) / (centred @ centred)))
        gaps.append(row["validation_before"] - tolerance - row["validation_after"])
        # Before the hit, after it, after a closed form: the lowest of these is where training starts from.
        start = min(point["validation"] for point in known if point["updates"] == known[0]["updates"])
        gains.append(late[0]["validation"] - start)
        halves.append(since / 2)
    return Rest(mean_interval(gaps), mean_interval(gains), mean_interval(slopes), float(np.mean(halves)))


def limited(followed: Mapping[str, Rest], kept: Mapping[str, Rows], percent: bool) -> tuple[bool, str]:
    """Whether it is the capacity that limits, and the evidence."""
    if not followed:
        return False, "Only closed forms were run; training was not tried."
    best = max(followed, key=lambda name: mean_of(kept[name], "validation_after"))
    looked = list(dict.fromkeys([best, *([SCRATCH] if SCRATCH in followed else [])]))
    said = []
    for name in looked:
        rest = followed[name]
        rate = said_points(rest.slope, percent)
        said.append(f"{name} is {said_points(rest.gap, percent)} short and {rest.state} ({rate} per 100 updates)")
    evidence = "; ".join(said) + "."
    if SCRATCH not in followed:
        return False, f"{evidence} Whether the size is the limit takes training from scratch at that size: scratch."
    return all(followed[name].limited for name in looked), evidence


def mean_of(rows: Iterable[Mapping[str, Any]], key: str) -> float:
    """Mean of one column; minus infinity where a score is not finite."""
    return float(np.mean([-math.inf if row[key] is None else row[key] for row in rows]))
