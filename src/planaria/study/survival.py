"""Results of life under constant damage, and what they say about the claims, in words and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from planaria.core.motion import Cost
from planaria.measure.statistics import Estimate, finite, mean_interval, paired_difference
from planaria.study.regime import Regime, Turnover
from planaria.study.walks import LEVEL, Endurance, Walk, known, mean_cost


@dataclass(frozen=True, eq=False)
class Survival:
    """All walks of a study.

    Attributes:
        walks: One per repair and seed.
        regime: What the networks lived under.
        units: Number of units that the damage can hit.
        bounds: Least and greatest possible score, if there are any.
    """

    walks: tuple[Walk, ...]
    regime: Regime
    units: int
    bounds: tuple[float, float] | None = None

    @cached_property
    def repairs(self) -> dict[str, Endurance]:
        """Repair -> what its walks add up to, in the order of appearance."""
        found: dict[str, list[Walk]] = {}
        for walk in self.walks:
            found.setdefault(walk.repair, []).append(walk)
        regime = self.regime
        return {n: Endurance(tuple(w), regime.events, regime.burn_in, self.bounds) for n, w in found.items()}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One plain row per event."""
        return [row for walk in self.walks for row in walk.rows()]

    def verdict(self, level: float = LEVEL) -> dict[str, Any]:
        """Whether the walk stays in the good set: a horizon in attrition, a test of invariance in turnover.

        Args:
            level: One-step retention that an invariant set must exceed at every number of dead units visited after the
                burn-in, with the lower end of its interval.

        Returns:
            "question", "answer", "words", "numbers" as plain values.
        """
        turnover = isinstance(self.regime.mode, Turnover)
        answer, words, numbers = self._turnover(level) if turnover else self._attrition()
        return {"question": "Does the walk stay in the good set?", "answer": answer, "words": words, "numbers": numbers}

    def _attrition(self) -> tuple[str, str, dict[str, Any]]:
        told, numbers = [], {}
        for name, one in self.repairs.items():
            median = one.median_horizon
            numbers[f"median horizon, {name}"] = known(median)
            told.append(f"{name} {median.best:.0f}" if math.isfinite(median.best) else f"{name} beyond the horizon")
        words = (
            f"Dead units stay dead, so there is only a finite horizon, of at most {self.regime.events} events here. "
            f"Event by which half of the {self._seeds} walks have left: {', '.join(told)}."
        )
        best = max(one.median_horizon.best for one in self.repairs.values())
        lasting = [name for name, one in self.repairs.items() if one.median_horizon.best == best]
        if math.isinf(best):
            answer = f"In most walks up to the horizon of {self.regime.events} events, with {', '.join(lasting)}"
            return answer, words, numbers
        answer = f"For a finite horizon: longest with {', '.join(lasting)}, median {best:.0f} events"
        top = max(lasting, key=lambda name: sum(self.repairs[name].lasted.values()))
        alike = []
        for name in self.repairs.keys() - lasting:
            longer = self._longer(top, name)
            numbers[f"events that {top} lasts longer than {name}"] = known(longer)
            if longer is None or not longer.low > 0:
                alike.append(name)
        if alike:
            answer += f", not told apart from {', '.join(name for name in self.repairs if name in alike)}"
            words += " Two repairs are told apart by the interval of what their walks of the same seeds differ in."
        return answer, words, numbers

    def _longer(self, one: str, other: str) -> Estimate | None:
        """Events that walks of one repair last longer than those of another, paired by seed; None without a pair."""
        first, second = self.repairs[one].lasted, self.repairs[other].lasted
        seeds = [seed for seed in first if seed in second]
        return paired_difference([first[s] for s in seeds], [second[s] for s in seeds]) if seeds else None

    def _turnover(self, level: float) -> tuple[str, str, dict[str, Any]]:
        groups: dict[bool | None, list[str]] = {True: [], None: [], False: []}
        told, numbers = [], {}
        for name, one in self.repairs.items():
            verdict, settled = one.invariant(level), one.settled
            groups[verdict].append(name)
            numbers[f"retention, {name}"] = known(settled)
            numbers[f"share of time inside, {name}"] = one.inside.to_dict()
            events = sum(bin.trials for bin in one.retention(self.regime.burn_in))
            told.append(f"{name} {settled:.3f} over {events} events" if settled else f"{name} never inside")
        parts = [
            f"{word} with {', '.join(groups[key])}"
            for key, word in ((True, "yes"), (None, "undecided"), (False, "no"))
            if groups[key]
        ]
        passed = (
            f"With {', '.join(groups[True])} the good set is invariant in this sense."
            if groups[True]
            else "No repair passed, so nothing is said beyond the horizon."
        )
        words = (
            f"Tested after event {self.regime.burn_in}: one-step retention above {level:g}, lower end of the interval, "
            f"at every number of dead units visited. Retention: {', '.join(told)}. {passed}"
        )
        answer = "; ".join(parts)
        return answer[:1].upper() + answer[1:], words, numbers

    @property
    def _seeds(self) -> int:
        return len({walk.seed for walk in self.walks})

    def to_dict(self, turnover: Resilience | None = None) -> dict[str, Any]:
        """Everything as plain values.

        Args:
            turnover: Result of a turnover study, to stand beside it.
        """
        mode = self.regime.mode
        return {
            "mode": "turnover" if isinstance(mode, Turnover) else "attrition",
            "unit": self.regime.damage.site.dose.unit,
            "units": self.units,
            "events": self.regime.events,
            "dose": self.regime.dose,
            "delay": mode.delay if isinstance(mode, Turnover) else None,
            "burn_in": self.regime.burn_in,
            "tolerance": self.regime.tolerance,
            "repairs": [one.to_dict() for one in self.repairs.values()],
            "turnover": None if turnover is None else turnover.to_dict(),
        }

    def __str__(self) -> str:
        lines = [f"{'repair':<16}{'median horizon':<20}{'retention':<24}{'time inside':<24}test score at the end"]
        for name, one in self.repairs.items():
            horizon = one.median_horizon
            text = f"{horizon:.0f}" if math.isfinite(horizon.best) else f"beyond {self.regime.events}"
            settled = "never inside" if one.settled is None else f"{one.settled:.3f}"
            lines.append(f"{name:<16}{text:<20}{settled:<24}{f'{one.inside:.3f}':<24}{one.after:.3f}")
        return "\n".join([*lines, self.verdict()["answer"]])


@dataclass(frozen=True, eq=False)
class Resilience:
    """Resilience against the rate of turnover, at equal budget.

    Attributes:
        rows: One per rate and seed: "rate", "seed", "area" under the response curve, "score" on the test split, "dead"
            at the end, "cost".
        bounds: Least and greatest possible score, if there are any.
    """

    rows: tuple[Mapping[str, Any], ...]
    bounds: tuple[float, float] | None = None

    @property
    def rates(self) -> tuple[float, ...]:
        """All rates, ascending; the first is 0, the control."""
        return tuple(sorted({row["rate"] for row in self.rows}))

    def _values(self, rate: float, key: str) -> list[float]:
        rows = sorted((row for row in self.rows if row["rate"] == rate), key=lambda row: row["seed"])
        return [-math.inf if row[key] is None else row[key] for row in rows]

    def area(self, rate: float) -> Estimate:
        """Mean area under the response curve, with the interval over seeds."""
        return mean_interval(self._values(rate, "area"), within=self.bounds)

    def score(self, rate: float) -> Estimate:
        """Mean test score before the fresh damage, with the interval over seeds."""
        return mean_interval(self._values(rate, "score"), within=self.bounds)

    def gain(self, rate: float) -> Estimate:
        """Area at this rate less that of the control, paired over seeds; all intervals hold together (Bonferroni)."""
        level = 1 - 0.05 / max(1, len(self.rates) - 1)
        return paired_difference(self._values(rate, "area"), self._values(0.0, "area"), level)

    def verdict(self) -> dict[str, Any]:
        """Whether turnover builds resilience: "question", "answer", "words", "numbers" as plain values."""
        gains = {rate: self.gain(rate) for rate in self.rates if rate > 0}
        up = [rate for rate, gain in gains.items() if gain.low > 0]
        down = [rate for rate, gain in gains.items() if gain.high < 0]
        if not any(gain.has_interval for gain in gains.values()):
            answer = "Not tested: one seed has no interval"
        elif up:
            answer = f"Yes, at {_listed(up)} per event" + (
                f"; no, it costs resilience at {_listed(down)}" if down else ""
            )
        else:
            answer = f"No, it costs resilience at {_listed(down)} per event" if down else "No difference shown"
        told = ", ".join(f"{gain:+.4f} at {rate:g}" for rate, gain in gains.items())
        words = (
            f"Area under the response curve to fresh damage, less that of the same training without damage "
            f"({self.area(0.0):.4f}), paired over {len(self._values(0.0, 'area'))} seeds: {told}. "
        )
        if len(gains) > 1:
            words += "The intervals hold for all rates together. "
        dead = max(row["dead"] for row in self.rows)
        words += f"{f'At most {dead} units were' if dead else 'No unit was'} dead when the networks were judged."
        numbers = {f"area gained at {rate:g}": gain.to_dict() for rate, gain in gains.items()}
        return {"question": "Does turnover build resilience?", "answer": answer, "words": words, "numbers": numbers}

    def to_dict(self) -> dict[str, Any]:
        """One entry per rate as plain values."""
        rates = [
            {
                "rate": rate,
                "area": self.area(rate).to_dict(),
                "score": self.score(rate).to_dict(),
                "gain": self.gain(rate).to_dict() if rate > 0 else None,
                "cost": mean_cost([Cost(**row["cost"]) for row in self.rows if row["rate"] == rate]),
            }
            for rate in self.rates
        ]
        plain: dict[str, Any] = finite({"rates": rates})
        return plain

    def __str__(self) -> str:
        lines = [f"{'rate':<8}{'area':<28}{'score':<28}area less control"]
        for rate in self.rates:
            gain = f"{self.gain(rate):+.4f}" if rate > 0 else "control"
            lines.append(f"{rate:<8g}{f'{self.area(rate):.4f}':<28}{f'{self.score(rate):.4f}':<28}{gain}")
        return "\n".join([*lines, self.verdict()["answer"]])


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)
