"""What attempts add up to: means over seeds, and times to rescue of which some are censored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from planaria.core.motion import Cost
from planaria.measure.statistics import kaplan_meier, mean_interval


def summarise(rows: Sequence[Mapping[str, Any]], bounds: tuple[float, float] | None = None) -> list[dict[str, Any]]:
    """Means over seeds with 95 % intervals, and median times to rescue by Kaplan-Meier, per repair and dose.

    Attempts that were not rescued count as censored at their total cost. Times are updates, counted in total from the
    undamaged network and since the last hit.

    Args:
        rows: As made by `Attempt.row`.
        bounds: Least and greatest possible score, to which intervals are clipped.

    Returns:
        One dictionary per repair and dose, in the order of appearance.
    """
    cells: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["repair"], row["dose"]), []).append(row)
    return [_summary(repair, dose, members, bounds) for (repair, dose), members in cells.items()]


def _summary(
    repair: str, dose: float, rows: Sequence[Mapping[str, Any]], bounds: tuple[float, float] | None
) -> dict[str, Any]:
    def mean(key: str) -> dict[str, float | None]:
        values = [-math.inf if row[key] is None else row[key] for row in rows]
        return mean_interval(values, within=bounds).to_dict()

    def median(key: str, total: str) -> dict[str, float | None] | None:
        seen = [row[key] is not None for row in rows]
        if not any(seen):
            return None
        times = [(row[key] or row[total])["backward_passes"] for row in rows]
        estimate = kaplan_meier(times, seen).median
        return None if estimate.best == float("inf") else estimate.to_dict()

    return {
        "repair": repair,
        "dose": dose,
        "trials": len(rows),
        "before": mean("score_before"),
        "damaged": mean("score_damaged"),
        "after": mean("score_after"),
        "rescued": sum(bool(row["rescued"]) for row in rows),
        "rescue_updates": median("rescue_cost", "cost"),
        "rescue_updates_since_last_hit": median("rescue_cost_since_last_hit", "cost_since_last_hit"),
        "cost": {f.name: sum(row["cost"][f.name] for row in rows) / len(rows) for f in fields(Cost)},
    }
