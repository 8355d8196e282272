"""What walks under constant damage add up to: retention, survival, return times, share of time in the good set.

A walk is x_t = r(D(x_{t-1})): damage D, then repair r, event after event. The good set is
U = {networks whose validation score is at least the intact one's minus a tolerance}. Every statistic here is about the
networks after the repair of each event.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from planaria.core.errors import InputError
from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.measure.statistics import Estimate, finite, kaplan_meier, mean_interval, wilson, wilson_of_groups

BINS = 8
"""Most numbers of dead units that retention is told apart for."""
LAGS = 10
"""Largest lag of the autocorrelation, in events."""
LEVEL = 0.95
"""One-step retention above which a good set counts as invariant."""


@dataclass(frozen=True, eq=False)
class Event:
    """One damage of a walk, and the repair after it.

    Attributes:
        event: Its number, from 1.
        dead: Units dead after the hit, among those that the damage can hit.
        returned: Units that have come back just before the hit, as embryonic ones.
        hit: Validation score just after the hit.
        rescued: Validation score after the repair.
        inside: Whether the repaired network is in the good set.
        cost: Of all repairs so far.
        network: After the repair; None where it was not kept.
    """

    event: int
    dead: int
    returned: int
    hit: float
    rescued: float
    inside: bool
    cost: Cost
    network: Network | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Walk:
    """One repair, one seed, event after event.

    Attributes:
        repair: Name of the repair.
        seed: Of damage and repair.
        before: Test score of the intact network.
        after: Test score at the end of the walk.
        dead_before: Units that were dead before the first event.
        events: In order; fewer than asked for where nothing was left to damage. Only the last one keeps its network.
    """

    repair: str
    seed: int
    before: float
    after: float
    dead_before: int
    events: tuple[Event, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One plain row per event; the test score stands in the last one."""
        last = self.events[-1].event
        rows = [
            {
                "repair": self.repair,
                "seed": self.seed,
                "event": one.event,
                "dead": one.dead,
                "returned": one.returned,
                "hit": one.hit,
                "rescued": one.rescued,
                "inside": one.inside,
                "score_after": self.after if one.event == last else None,
                "cost": asdict(one.cost),
            }
            for one in self.events
        ]
        plain: list[dict[str, Any]] = finite(rows)
        return plain

    def record(self) -> dict[str, Any]:
        """The walk as plain values, without networks; scores that are not finite become None."""
        head = {key: getattr(self, key) for key in ("repair", "seed", "before", "after", "dead_before")}
        plain: dict[str, Any] = finite(head)
        return {**plain, "events": self.rows()}

    @staticmethod
    def of(record: Mapping[str, Any]) -> Walk:
        """The walk that `record` describes; None stands for a score of minus infinity."""

        def score(value: float | None) -> float:
            return -math.inf if value is None else value

        events = tuple(
            Event(
                event=row["event"],
                dead=row["dead"],
                returned=row["returned"],
                hit=score(row["hit"]),
                rescued=score(row["rescued"]),
                inside=row["inside"],
                cost=Cost(**row["cost"]),
            )
            for row in record["events"]
        )
        head = (record["repair"], record["seed"], score(record["before"]), score(record["after"]))
        return Walk(*head, record["dead_before"], events)


@dataclass(frozen=True)
class Retention:
    """One-step retention R(k) = P(r(D(x)) in U | x in U, k units dead), for k from `least` to `most`."""

    least: int
    most: int
    share: Estimate
    trials: int


@dataclass(frozen=True)
class Survived:
    """Survival Q(t): share of the walks inside after every event up to this one, and mean number of dead units."""

    event: int
    dead: float
    share: Estimate


@dataclass(frozen=True, eq=False)
class Endurance:
    """The walks of one repair, one per seed, and what they add up to.

    A walk that ended early, because nothing was left to damage, stays where it was.

    Attributes:
        walks: At least one.
        events: Horizon.
        burn_in: First events that stationary statistics leave out.
        bounds: Least and greatest possible score, if there are any.

    The events of one walk are not independent of each other; the intervals of retention are as wide as the differences
    between walks make them (`wilson_of_groups`).

    Not guaranteed: that walks which all stayed inside tell how alike their events were; then events count one by one.
    """

    walks: tuple[Walk, ...]
    events: int
    burn_in: int = 0
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.walks or any(not walk.events for walk in self.walks):
            raise InputError("Endurance.walks", "at least one walk, each of at least one event", len(self.walks))
        if not 0 <= self.burn_in < self.events:
            raise InputError("Endurance.burn_in", f"a number from 0 to {self.events - 1}", self.burn_in)

    def _at(self, walk: Walk, event: int) -> Event:
        return walk.events[min(event, len(walk.events)) - 1]

    @cached_property
    def _inside(self) -> list[list[bool]]:
        return [[self._at(walk, event).inside for event in range(1, self.events + 1)] for walk in self.walks]

    def _steps(self, after: int) -> list[tuple[int, int, bool]]:
        """Per event that a walk met inside: which walk, units dead before it, and whether it is inside after it."""
        steps = []
        for place, walk in enumerate(self.walks):
            dead, inside = walk.dead_before, True
            for one in walk.events:
                if inside and one.event > after:
                    steps.append((place, dead, one.inside))
                dead, inside = one.dead, one.inside
        return steps

    def _share(self, steps: Sequence[tuple[int, int, bool]]) -> Estimate:
        """Share of the steps that stay inside."""
        of_walk = [[inside for place, _, inside in steps if place == at] for at in range(len(self.walks))]
        return wilson_of_groups([sum(kept) for kept in of_walk], [len(kept) for kept in of_walk])

    def retention(self, after: int = 0) -> tuple[Retention, ...]:
        """One-step retention against the number of units dead before the event.

        Args:
            after: Leaves out the first events.

        Returns:
            One value per number of dead units, or per range where there are more than 8; none if no walk was inside.
        """
        steps = self._steps(after)
        levels = sorted({dead for _, dead, _ in steps})
        found = []
        for part in np.array_split(np.array(levels, dtype=int), min(BINS, len(levels))) if levels else []:
            kept = [step for step in steps if part[0] <= step[1] <= part[-1]]
            found.append(Retention(int(part[0]), int(part[-1]), self._share(kept), len(kept)))
        return tuple(found)

    @cached_property
    def settled(self) -> Estimate | None:
        """One-step retention over all events after the burn-in; None if no walk was inside then."""
        steps = self._steps(self.burn_in)
        return self._share(steps) if steps else None

    def invariant(self, level: float = LEVEL) -> bool | None:
        """Whether the good set is invariant in this sense: after the burn-in, R(k) is above `level` at every k visited.

        Returns:
            True if the lower ends of all intervals are above the level, False if an upper end is not, or no walk was
            inside; None if the events do not suffice to tell (a retention of 1 needs 73 events for 0.95).
        """
        shares = [one.share for one in self.retention(self.burn_in)]
        if not shares or any(share.high <= level for share in shares):
            return False
        return True if all(share.low > level for share in shares) else None

    @cached_property
    def _left(self) -> list[int | None]:
        """Per walk the first event after which it was outside."""
        return [flags.index(False) + 1 if False in flags else None for flags in self._inside]

    @cached_property
    def lasted(self) -> dict[int, int]:
        """Seed -> first event after which its walk was outside; the horizon if it never was."""
        times = (self.events if left is None else left for left in self._left)
        return {walk.seed: time for walk, time in zip(self.walks, times, strict=True)}

    @cached_property
    def survival(self) -> tuple[Survived, ...]:
        """Survival Q(t) at every event, 0 included. All walks are censored at the horizon, so Q is a plain share."""
        before = sum(walk.dead_before for walk in self.walks) / len(self.walks)
        found = [Survived(0, before, Estimate(1, 1, 1))]
        for event in range(1, self.events + 1):
            still = sum(left is None or left > event for left in self._left)
            dead = sum(self._at(walk, event).dead for walk in self.walks) / len(self.walks)
            found.append(Survived(event, dead, wilson(still, len(self.walks))))
        return tuple(found)

    @cached_property
    def median_horizon(self) -> Estimate:
        """Event by which half of the walks have left the good set; infinite if they have not. Kaplan-Meier."""
        return kaplan_meier(
            [self.events if left is None else left for left in self._left], [left is not None for left in self._left]
        ).median

    @cached_property
    def _excursions(self) -> list[tuple[int, bool]]:
        """Events from leaving the good set to being inside again, and whether that came before the horizon."""
        found = []
        for flags in self._inside:
            gone: int | None = None
            for event, inside in enumerate(flags, start=1):
                if gone is None and not inside:
                    gone = event
                elif gone is not None and inside:
                    found.append((event - gone, True))
                    gone = None
            if gone is not None:
                found.append((self.events - gone, False))
        return found

    @property
    def returns(self) -> int:
        """How often a walk came back into the good set."""
        return sum(back for _, back in self._excursions)

    @cached_property
    def return_time(self) -> Estimate | None:
        """Median events from leaving the good set to being inside again, by Kaplan-Meier; None if no walk ever left."""
        if not self._excursions:
            return None
        times, back = zip(*self._excursions, strict=True)
        return kaplan_meier(times, list(back)).median

    @cached_property
    def inside(self) -> Estimate:
        """Share of the events after the burn-in at which a walk is inside, with the interval over seeds."""
        return mean_interval([float(np.mean(flags[self.burn_in :])) for flags in self._inside], within=(0, 1))

    @cached_property
    def autocorrelation(self) -> tuple[float, ...]:
        """Autocorrelation of the repaired score after the burn-in, at lags 0, 1, ...; empty if it never changes.

        r(l) = sum (s_t - m)(s_{t+l} - m) / sum (s_t - m)^2, both sums over events and walks, m each walk's own mean.
        Few events bias it towards -1 / events.
        """
        lines = [[self._at(w, e).rescued for e in range(self.burn_in + 1, self.events + 1)] for w in self.walks]
        apart = [np.array(line) - np.mean(line) for line in lines if np.isfinite(line).all()]
        total = sum(float((line**2).sum()) for line in apart)
        length = self.events - self.burn_in
        if total < 1e-18 or length < 4:
            return ()
        lags = range(min(LAGS, length // 3) + 1)
        return tuple(sum(float((line[: length - lag] * line[lag:]).sum()) for line in apart) / total for lag in lags)

    @cached_property
    def after(self) -> Estimate:
        """Mean test score at the end, with its interval over seeds."""
        return mean_interval([walk.after for walk in self.walks], within=self.bounds)

    @cached_property
    def cost(self) -> dict[str, float]:
        """Mean cost of a whole walk."""
        return mean_cost([walk.events[-1].cost for walk in self.walks])

    def to_dict(self) -> dict[str, Any]:
        """The statistics and every event as plain values."""
        record = {
            "repair": self.walks[0].repair,
            "retention": [
                {"dead": one.least, "dead_to": one.most, **one.share.to_dict(), "trials": one.trials}
                for one in self.retention()
            ],
            "survival": [{"event": s.event, "dead": s.dead, **s.share.to_dict()} for s in self.survival],
            "median_horizon": known(self.median_horizon),
            "settled_retention": known(self.settled),
            "return_time": known(self.return_time),
            "returns": self.returns,
            "autocorrelation": list(self.autocorrelation),
            "inside": self.inside.to_dict(),
            "after": self.after.to_dict(),
            "cost": self.cost,
            "trajectories": [
                {key: row[key] for key in ("seed", "event", "dead", "hit", "rescued", "inside")}
                for walk in self.walks
                for row in walk.rows()
            ],
        }
        plain: dict[str, Any] = finite(record)
        return plain


def known(estimate: Estimate | None) -> dict[str, float | None] | None:
    """An estimate for JSON; None if there is none, or it is infinite."""
    return None if estimate is None or math.isinf(estimate.best) else estimate.to_dict()


def mean_cost(costs: Sequence[Cost]) -> dict[str, float]:
    """Mean of costs, field by field.

    Example:
        >>> mean_cost([Cost(examples=1), Cost(examples=2)])["examples"]
        1.5
    """
    return {f.name: sum(getattr(cost, f.name) for cost in costs) / len(costs) for f in fields(Cost)}
