"""Reads a result document: finite numbers, how they are written, and which repair came out best.

Figures, sentences and tables all take their numbers from here, so that they cannot disagree. Nothing in a
document is trusted to be there: a missing, null or non-finite number reads as None and is written as a dash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planaria.measure.shares import is_share

Document = Mapping[str, Any]
Interval = tuple[float | None, float | None, float | None]

DASH = "–"  # noqa: RUF001 - a dash is meant
CONTROL = "none"  # the repair that does nothing
MEASURES = {
    "updates": "updates",
    "multiply_adds": "multiply-adds",
    "examples": "examples",
    "seconds": "seconds",
}


def number(value: object) -> float | None:
    """Finite float, or None for null, NaN, infinities, booleans and anything that is not a number.

    Example:
        >>> number(2), number(float("nan")), number("2")
        (2.0, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def interval(estimate: object) -> Interval:
    """Low, best and high of an estimate `{"low", "best", "high"}`; None where it says nothing."""
    values = estimate if isinstance(estimate, Mapping) else {}
    return number(values.get("low")), number(values.get("best")), number(values.get("high"))


def count(value: float | None) -> str:
    """A count as people write it.

    Example:
        >>> count(1234), count(256_000), count(2.5e9)
        ('1,234', '256 k', '2.50 G')
    """
    if value is None:
        return DASH
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e5):
            return f"{value / size:.3g} {letter}" if abs(value) >= 100 * size else f"{value / size:#.3g} {letter}"
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 100 else f"{value:.1f}"


def seconds(value: float | None) -> str:
    """A time in seconds, or milliseconds where it is short.

    Example:
        >>> seconds(0.0034), seconds(12.0), seconds(0.0)
        ('3.4 ms', '12.0 s', '0 s')
    """
    if value is None:
        return DASH
    if value == 0:
        return "0 s"
    return f"{1000 * value:.2g} ms" if value < 0.0995 else f"{value:.3g} s" if value < 10 else f"{value:,.1f} s"


def share(value: float | None) -> str:
    """A share in percent.

    Example:
        >>> share(0.9312), share(None) == DASH
        ('93.1%', True)
    """
    return DASH if value is None else f"{100 * value:.1f}%"


def amount(value: float | None) -> str:
    """A number of unknown kind: a count whole, everything else with three digits.

    Example:
        >>> amount(1200.0), amount(0.04312), amount(250.4), amount(3.2e-7)
        ('1,200', '0.0431', '250', '3.2e-07')
    """
    if value is None:
        return DASH
    return count(value) if value == round(value) or abs(value) >= 100 else f"{value:.3g}"


def written(value: object, write: Callable[[float | None], str]) -> tuple[str, str]:
    """A number or an estimate as text: its value, and its interval in brackets where it has one.

    An estimate without an upper end is a time whose upper end lies beyond what was observed.

    Example:
        >>> written({"low": 0.1, "best": 0.2, "high": 0.3}, share), written(0.2, share)
        (('20.0%', '[10.0, 30.0]'), ('20.0%', ''))
    """
    low, best, high = interval(value) if isinstance(value, Mapping) else (None, number(value), None)
    if best is None or low is None or low == high:
        return write(best), ""
    ends = [write(end).removesuffix("%") for end in (low, high) if end is not None]
    return write(best), f"[{', '.join(ends)}]" if high is not None else f"[{ends[0]}, ∞)"


def records(value: object) -> list[Mapping[str, Any]]:
    """The mappings of a list; empty where there is no list."""
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list | tuple) else []


def part(document: Document, key: str) -> Mapping[str, Any]:
    """A mapping in a document; empty where there is none."""
    found = document.get(key)
    return found if isinstance(found, Mapping) else {}


@dataclass(frozen=True)
class Notation:
    """How one document writes scores and doses: shares of right answers in percent, all else as numbers.

    Args:
        score_name: Name of the score.
        percent: Scores are written in percent.
        dose_unit: Unit of the doses.

    Example:
        >>> Notation.of({"task": {"score": "accuracy"}}).score(0.9731)
        '97.3%'
    """

    score_name: str
    percent: bool
    dose_unit: str

    @staticmethod
    def of(document: Document) -> Notation:
        """Notation of a document."""
        name = str((document.get("task") or {}).get("score") or "score")
        stored = (part(document, key).get("unit") for key in ("response", "settings", "survival"))
        unit = next((unit for unit in stored if unit), "fraction of units")
        return Notation(name, is_share(name), str(unit))

    @property
    def dose_percent(self) -> bool:
        """Doses are shares of something."""
        return self.dose_unit.startswith("fraction")

    @property
    def dose_axis(self) -> str:
        """Title of a dose axis."""
        return (
            f"dose (% {self.dose_unit.removeprefix('fraction ')})" if self.dose_percent else f"dose ({self.dose_unit})"
        )

    @property
    def score_word(self) -> str:
        """The score's name as it stands in a sentence."""
        return "R²" if self.score_name.lower() == "r2" else self.score_name

    def score(self, value: float | None) -> str:
        """A score, with its percent sign."""
        if value is None:
            return DASH
        return f"{100 * value:.1f}%" if self.percent else f"{value:.3f}"

    def gain(self, value: float | None) -> str:
        """A difference of scores, in points where scores are written in percent."""
        if value is None:
            return DASH
        return f"{100 * value:+.1f}" if self.percent else f"{value:+.3f}"

    def spread(self, estimate: Interval) -> str:
        """The interval of a score in brackets, or nothing where there is none."""
        low, _, high = estimate
        if low is None or high is None:
            return ""
        return f"[{100 * low:.1f}, {100 * high:.1f}]" if self.percent else f"[{low:.3f}, {high:.3f}]"

    def dose(self, value: float | None) -> str:
        """A dose, with its percent sign where it is a share."""
        if value is None:
            return DASH
        return f"{100 * value:.3g}%" if self.dose_percent else f"{value:.3g}"

    def dose_estimate(self, estimate: Interval) -> str:
        """A dose with its interval in brackets, where there is one."""
        low, best, high = estimate
        if best is None:
            return DASH
        known = () if low is None or high is None else (low, high)
        if self.dose_percent:
            ends = ", ".join(f"{100 * end:.1f}" for end in known)
            return f"{100 * best:.1f}%" + (f" [{ends}]" if known else "")
        ends = ", ".join(f"{end:.3g}" for end in known)
        return f"{best:.3g}" + (f" [{ends}]" if known else "")


def rows_at(document: Document, dose: float) -> list[Mapping[str, Any]]:
    """Rows of repairs at one dose."""
    rows = records(document.get("rows"))
    return [row for row in rows if row.get("repair") is not None and same_dose(row.get("dose"), dose)]


def same_dose(value: object, dose: float) -> bool:
    """Whether a recorded dose is this dose."""
    found = number(value)
    return found is not None and math.isclose(found, dose, rel_tol=1e-9, abs_tol=1e-12)


def doses(document: Document) -> list[float]:
    """Doses of the repair rows, ascending."""
    found = [number(row.get("dose")) for row in records(document.get("rows")) if row.get("repair") is not None]
    return sorted({dose for dose in found if dose is not None})


def repairs(document: Document) -> list[str]:
    """Names of the repairs, in the order of the settings and then of the rows."""
    rows = records(document.get("rows"))
    present = dict.fromkeys(str(row["repair"]) for row in rows if row.get("repair") is not None)
    wanted = [str(name) for name in (document.get("settings") or {}).get("repairs") or [] if str(name) in present]
    return list(dict.fromkeys([*wanted, *present]))


def treatments(document: Document) -> list[str]:
    """Names of the repairs that do something, all but the control."""
    return [name for name in repairs(document) if name != CONTROL]


def spent(cost: object, measure: str) -> float | None:
    """What a cost says in one measure; an update is one backward pass."""
    if not isinstance(cost, Mapping):
        return None
    return number(cost.get("backward_passes", cost.get("updates")) if measure == "updates" else cost.get(measure))


def last_hit(row: Mapping[str, Any], measure: str) -> float:
    """What a trial had spent when the last damage fell; 0 for a batch repair."""
    total, since = spent(row.get("cost"), measure), spent(row.get("cost_since_last_hit"), measure)
    return max(0.0, total - since) if total is not None and since is not None else 0.0


def middle(values: Iterable[float | None]) -> float | None:
    """Median of the numbers that are there, or None.

    Example:
        >>> middle([3.0, None, 1.0]), middle([])
        (2.0, None)
    """
    known = sorted(value for value in values if value is not None)
    half = len(known) // 2
    return None if not known else known[half] if len(known) % 2 else (known[half - 1] + known[half]) / 2


def median_to_rescue(rows: Sequence[Mapping[str, Any]], measure: str, *, since_last_hit: bool) -> float | None:
    """Median cost of rescue over trials, or None if not reached; a censored trial is later than any rescue.

    This is the Kaplan-Meier median wherever all trials are censored at the same budget.
    """
    key = "rescue_cost_since_last_hit" if since_last_hit else "rescue_cost"
    events = sorted(value for row in rows if (value := spent(row.get(key), measure)) is not None)
    needed = (len(rows) + 1) // 2
    return events[needed - 1] if rows and len(events) >= needed else None


def best_row(document: Document, dose: float) -> Mapping[str, Any] | None:
    """Summary row of the cheapest rescue at a dose; where nothing rescues, of the repair that ends highest.

    Cheapest: most trials rescued, then fewest multiply-adds to rescue (median, in total), then fewest in a
    whole trial.
    """

    def rank(row: Mapping[str, Any]) -> tuple[float, ...]:
        after = interval(row.get("after"))[1]
        score = -math.inf if after is None else after
        if not rescues(row):
            # Rescues in a minority of trials are no basis for a comparison of costs: the score decides.
            return (0.0, score)
        trials = [trial for trial in rows_at(document, dose) if trial["repair"] == row.get("repair")]
        costs = (
            median_to_rescue(trials, "multiply_adds", since_last_hit=False),
            spent(row.get("cost"), "multiply_adds"),
        )
        return (
            number(row.get("rescued")) or 0.0,
            *(-math.inf if cost is None else -cost for cost in costs),
            score,
        )

    rows = [row for row in records(document.get("summary")) if same_dose(row.get("dose"), dose)]
    return max(rows, key=rank, default=None)


def rescues(row: Mapping[str, Any] | None) -> bool:
    """Whether a summary row rescued more than half of its trials."""
    rescued, trials = (number((row or {}).get(key)) or 0.0 for key in ("rescued", "trials"))
    return 2 * rescued > trials


def response_of(document: Document) -> dict[str, Any] | None:
    """The damage-response curve, rebuilt from the rows of a `respond` document where it is not stored."""
    stored = document.get("response")
    if isinstance(stored, Mapping) and stored.get("doses") and stored.get("mean"):
        return dict(stored)
    by_dose: dict[float, list[float]] = {}
    for row in records(document.get("rows")):
        dose, score = number(row.get("dose")), number(row.get("score"))
        if dose is not None and score is not None:
            by_dose.setdefault(dose, []).append(score)
    if not by_dose:
        return None
    axis = sorted(by_dose)
    return {
        "doses": axis,
        "mean": [sum(by_dose[dose]) / len(by_dose[dose]) for dose in axis],
        "chance": (document.get("task") or {}).get("chance"),
        "intact": (document.get("intact") or {}).get("test"),
    }


def median_curve(
    curves: Sequence[Sequence[Mapping[str, Any]]],
) -> tuple[dict[str, list[float | None]], list[float | None], list[float | None]]:
    """Median over trials of their curves: the ledger per measure, the validation score, the dead fraction.

    Trials are aligned by their updates. A trial that has ended keeps its last score, and no longer moves the
    ledger.

    Example:
        >>> a = [{"updates": 0, "validation": 0.2}, {"updates": 5, "validation": 0.8}]
        >>> median_curve([a, a[:1]])[1]
        [0.2, 0.5]
    """
    # Several points may share a number of updates (a refit has none): the second number keeps them apart.
    keyed: list[dict[tuple[float, int], Mapping[str, Any]]] = []
    for curve in curves:
        points: dict[tuple[float, int], Mapping[str, Any]] = {}
        for point in curve:
            at = number(point.get("updates")) or 0.0
            points[(at, sum(key[0] == at for key in points))] = point
        keyed.append(points)
    grid = sorted({key for points in keyed for key in points})
    ledger: dict[str, list[float | None]] = {measure: [] for measure in MEASURES}
    scores: list[float | None] = []
    dead: list[float | None] = []
    latest: list[Mapping[str, Any]] = [{} for _ in keyed]
    ends = [max(points, default=(0.0, 0)) for points in keyed]
    for key in grid:
        latest = [points.get(key, before) for points, before in zip(keyed, latest, strict=True)]
        scores.append(middle(number(point.get("validation")) for point in latest))
        dead.append(middle(number(point.get("dead")) for point in latest))
        running = [point for point, end in zip(latest, ends, strict=True) if end >= key]
        for measure, column in ledger.items():
            now = middle(number(point.get(measure)) for point in running)
            past = column[-1] if column else None
            column.append(now if now is None or past is None else max(now, past))
    return ledger, scores, dead


def evenly(values: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` of the values, first and last among them.

    Example:
        >>> evenly([1, 2, 3, 4, 5], 3)
        [1, 3, 5]
    """
    if len(values) <= limit:
        return list(values)
    return [values[round(i * (len(values) - 1) / (limit - 1))] for i in range(limit)]
