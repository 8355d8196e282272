"""What the networks of damage-repair walks and of their controls say about an invariant, path-connected set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from statistics import fmean
from typing import Any

from planaria.measure.statistics import Estimate, finite, wilson, wilson_of_groups
from planaria.study.attempt import ROUNDING
from planaria.study.lines import Line, share_of_pairs
from planaria.study.regime import Turnover
from planaria.study.survival import Survival
from planaria.study.verdicts import Verdict
from planaria.study.walks import LEVEL, Endurance

INTACT = "intact"
DAMAGED = "damaged"
REPAIRED = "repaired"
UNDAMAGED = "without damage"
DISPLACED = "displaced"
INDEPENDENT = "independent"
UNTRAINED = "untrained"
MEANINGS = {
    INTACT: "the network that all walks begin with",
    DAMAGED: "on a walk, just after a damage",
    REPAIRED: "on a walk, after the repair",
    UNDAMAGED: "after the same training without damage, as many events from the same start",
    DISPLACED: "the intact network, moved at random as far as a repaired one is, weight tensor by weight tensor",
    INDEPENDENT: "trained alike from a start of its own",
    UNTRAINED: "the start of an independent network",
}
"""Groups of networks."""
ALIGNED = "weights, aligned"
"""Distance of the weights after every network was aligned to the intact one."""


@dataclass(frozen=True)
class Member:
    """One network.

    Attributes:
        group: Which of MEANINGS it is.
        walk: Seed of its walk, or number of its training; None for the intact network.
        event: Event of its walk; None off walks.
        score: Validation score.
        inside: Whether it is in the good set.
    """

    group: str
    walk: int | None
    event: int | None
    score: float
    inside: bool


@dataclass(frozen=True, eq=False)
class Connection:
    """Straight lines between the networks of one group.

    Attributes:
        group: Which.
        aligned: Whether the networks were aligned to the intact one before.
        lines: One per pair; their ends are places among the members.
        walk_of: Place -> walk that the network is from.
        tolerance: Drop of score that still counts as none.
        on_walks: Whether networks of one walk are alike.
    """

    group: str
    aligned: bool
    lines: tuple[Line, ...]
    walk_of: Mapping[int, int | None]
    tolerance: float
    on_walks: bool

    @property
    def networks(self) -> int:
        """How many networks take part."""
        return len({place for line in self.lines for place in (line.first, line.second)})

    @property
    def within(self) -> Connection:
        """Lines between networks of one walk."""
        return self._only(lambda line: self.walk_of[line.first] == self.walk_of[line.second])

    @property
    def between(self) -> Connection:
        """Lines between networks of different walks."""
        return self._only(lambda line: self.walk_of[line.first] != self.walk_of[line.second])

    def _only(self, wanted: Callable[[Line], bool]) -> Connection:
        return replace(self, lines=tuple(line for line in self.lines if wanted(line)))

    @cached_property
    def inside(self) -> Estimate | None:
        """Share of the lines between networks of the good set that stay in it; None where there are none.

        The interval allows for the networks and walks that lines share; see `share_of_pairs`.
        """
        return self._share([line for line in self.lines if line.inside is not None], lambda line: bool(line.inside))

    @cached_property
    def level(self) -> Estimate | None:
        """Share of all lines whose validation score never falls by more than the tolerance below that of their ends.

        It is known for networks outside of the good set, too.
        """
        return self._share(self.lines, lambda line: line.barrier <= self.tolerance + ROUNDING)

    def _share(self, lines: Sequence[Line], holds: Callable[[Line], bool]) -> Estimate | None:
        cluster = self.walk_of.__getitem__ if self.on_walks else None
        return share_of_pairs([holds(line) for line in lines], [(line.first, line.second) for line in lines], cluster)

    def to_dict(self) -> dict[str, Any]:
        """Shares, barriers and every line as plain values."""
        plain: dict[str, Any] = finite(
            {
                "group": self.group,
                "aligned": self.aligned,
                "networks": self.networks,
                "pairs": len(self.lines),
                **{name: _plain(share) for name, share in (("inside", self.inside), ("level", self.level))},
                "inside_within_walks": _plain(self.within.inside) if self.on_walks else None,
                "inside_between_walks": _plain(self.between.inside) if self.on_walks else None,
                "mean_barrier": fmean(line.barrier for line in self.lines) if self.lines else None,
                "largest_barrier": max((line.barrier for line in self.lines), default=None),
                "mean_test_barrier": fmean(line.test_barrier for line in self.lines) if self.lines else None,
                "largest_test_barrier": max((line.test_barrier for line in self.lines), default=None),
                "lines": [line.to_dict() for line in self.lines],
            }
        )
        return plain


@dataclass(frozen=True, eq=False)
class Invariance:
    """Whether rescued networks form an invariant, path-connected set, beside what else would.

    Attributes:
        life: The walks: retention, survival, return times.
        undamaged: The same training without damage.
        members: All networks that were compared.
        connections: Straight lines, group by group.
        curves: Curves between repaired networks whose straight line leaves the good set; None where none were made.
        distances: Name -> matrix between the members: "weights", ALIGNED, "outputs", and for classifiers "answers".
        threshold: Least validation score in the good set.
        score: Name of the score.
        training: How the independent networks were trained.
        way: What made the curves.
        notes: What was left out or sampled.
    """

    life: Survival
    undamaged: Survival
    members: tuple[Member, ...]
    connections: tuple[Connection, ...]
    curves: Connection | None
    distances: Mapping[str, tuple[tuple[float, ...], ...]]
    threshold: float
    score: str
    training: Mapping[str, Any]
    way: str | None = None
    notes: tuple[str, ...] = ()

    def group(self, name: str) -> list[int]:
        """Places of a group's networks among the members."""
        return [place for place, one in enumerate(self.members) if one.group == name]

    def connection(self, group: str, *, aligned: bool = False) -> Connection | None:
        """Straight lines of a group; None where it has none."""
        return next((one for one in self.connections if (one.group, one.aligned) == (group, aligned)), None)

    def inside(self, group: str) -> Estimate | None:
        """Share of a group's networks that are in the good set; None without any. Those of one walk are alike.

        Args:
            group: One of MEANINGS.
        """
        members = [self.members[place] for place in self.group(group)]
        walks = [
            [one.inside for one in members if one.walk == walk] for walk in dict.fromkeys(one.walk for one in members)
        ]
        if not members:
            return None
        if group in (INDEPENDENT, UNTRAINED):
            return wilson(sum(one.inside for one in members), len(members))
        return wilson_of_groups([sum(flags) for flags in walks], [len(flags) for flags in walks])

    def spread(self, group: str, distance: str = "weights") -> float | None:
        """Mean distance of two networks of a group, of those that lines join; None for fewer than two."""
        found, matrix = self.connection(group), self.distances[distance]
        places = self.group(group) if found is None else sorted(found.walk_of)
        apart = [matrix[a][b] for at, a in enumerate(places) for b in places[at + 1 :]]
        return fmean(apart) if apart else None

    @property
    def endurance(self) -> Endurance:
        """What the walks add up to."""
        return next(iter(self.life.repairs.values()))

    @cached_property
    def returned(self) -> Estimate | None:
        """Share of the times a walk left the good set after which it came back before the end; None if none left.

        One that had no time left to come back counts as one that did not.
        """
        left, back = [], []
        for walk in self.endurance.walks:
            flags = [True, *(one.inside for one in walk.events)]
            left.append(sum(before and not after for before, after in pairwise(flags)))
            back.append(left[-1] - (not flags[-1]))
        return wilson_of_groups(back, left) if sum(left) else None

    # ------------------------------------------------------------------------------------------------ the verdicts

    @cached_property
    def verdicts(self) -> tuple[dict[str, Any], ...]:
        """Does the walk stay, is the set connected, is it an attractor: question, answer, words and numbers."""
        return (self.life.verdict(), self._connected().to_dict(), self._attracts().to_dict())

    def _lines(self, group: str) -> Connection | None:
        """Lines between walks, where there are several; else all."""
        found = self.connection(group)
        return found.between if found is not None and found.on_walks and found.between.lines else found

    def _connected(self) -> Verdict:
        question = "Is the set of repaired networks connected by straight lines?"
        main = self._lines(REPAIRED)
        share = None if main is None else main.inside
        numbers: dict[str, Estimate | float | str | None] = {}
        for one in self.connections:
            name = f"{one.group}{', aligned' if one.aligned else ''}"
            numbers[f"lines inside, {name}"] = one.inside
            numbers[f"level lines, {name}"] = one.level
        for group in (REPAIRED, UNDAMAGED, DISPLACED, INDEPENDENT, UNTRAINED):
            numbers[f"networks inside, {group}"] = self.inside(group)
            numbers[f"mean distance of two, {group}"] = self.spread(group)
        if share is None or main is None:
            words = "Fewer than two of the repaired networks that were looked at are in the good set."
            return Verdict(question, "Not tested", words, numbers)
        control, alone = self._lines(UNDAMAGED), self._lines(INDEPENDENT)
        level = main.level
        assert level is not None
        edge = share.best < LEVEL <= level.best
        answer, beside = _said(share), None if control is None else control.level if edge else control.inside
        if edge:
            answer = "Without barriers, though not every line stays inside"
        if beside is not None:
            answer += _beside(level if edge else share, beside)
        of = "different walks" if main.between.lines else "one walk"
        words = (
            f"Of the lines between repaired networks of {of}, {share:.3f} stay in the good set, and {level:.3f} never "
            f"fall below their ends by more than the tolerance. After the same training without damage: "
            f"{_known(control)}. Displaced at random as far: {_known(self.connection(DISPLACED))}. "
            f"Between independent networks: {_known(alone)}; aligned: "
            f"{_known(self.connection(INDEPENDENT, aligned=True))}."
        )
        near, far = self.spread(REPAIRED), self.spread(INDEPENDENT)
        if near is not None and far:
            words += f" Two repaired networks lie {near / far:.2f} times as far apart as two independent ones."
        if self.curves is not None and self.curves.inside is not None:
            numbers["curves inside, repaired"] = self.curves.inside
            words += (
                f" Where the straight line leaves the good set, {self.way} stays in it for {self.curves.inside:.3f} of "
                f"{len(self.curves.lines)} pairs."
            )
        if "trivially" in answer:
            words += " Networks few steps from a common start are connected whatever happens to them."
        return Verdict(question, answer, words, numbers)

    def _attracts(self) -> Verdict:
        """Whether the word attractor is earned: turnover, retention tested, and that most of what left came back."""
        question, one = "Is the good set an attractor?", self.endurance
        numbers: dict[str, Estimate | float | str | None] = {
            "one-step retention": one.settled,
            "returns": float(one.returns),
            "share that returned": self.returned,
            "median return time": one.return_time,
        }
        if not isinstance(self.life.regime.mode, Turnover):
            words = "Dead units stay dead, so that every walk ends with nothing: there is no long run to be drawn into."
            return Verdict(question, "Cannot be, in attrition", words, numbers)
        kept, back, returned = one.invariant(LEVEL), one.return_time, self.returned
        if kept is not True:
            answer = "Not shown: retention does not pass" if kept is None else "No: the walk does not stay in it"
            words = f"One-step retention must be above {LEVEL:g}, lower end of the interval."
        elif back is None or returned is None:
            answer = "Invariant; whether it attracts is not tested"
            words = "No walk ever left the good set, so that none could come back to it."
        elif returned.high < 0.5:
            answer, words = "No: most of what left it did not come back", f"Retention passes; {returned:.2f} came back."
        elif not returned.low > 0.5:
            answer = "Invariant; whether it attracts is not shown"
            words = (
                f"One-step retention passes. {returned:.2f} of what left the good set came back, {one.returns} times "
                f"in all: that most do is not shown by these."
            )
        else:
            answer = "Yes, in this sense"
            words = (
                f"One-step retention passes, and {returned:.2f} of what left the good set came back, {one.returns} "
                f"times in all, after {back:.0f} events (median)."
            )
        return Verdict(question, answer, words, numbers)

    # ------------------------------------------------------------------------------------------------ plain values

    def to_dict(self) -> dict[str, Any]:
        """Everything a report needs, as plain values."""
        rows = [vars(one) for one in self.members]
        names = {one.group for one in self.members}
        record = {
            "score": self.score,
            "threshold": self.threshold,
            "tolerance": self.life.regime.tolerance,
            "life": self.life.to_dict(),
            "without_damage": self.undamaged.to_dict(),
            "meanings": {name: told for name, told in MEANINGS.items() if name in names},
            "members": rows,
            "connections": [one.to_dict() for one in self.connections],
            "curves": None if self.curves is None else {"way": self.way, **self.curves.to_dict()},
            "inside": {name: _plain(self.inside(name)) for name in MEANINGS if name in names},
            "distances": {name: [list(row) for row in matrix] for name, matrix in self.distances.items()},
            "training": dict(self.training),
            "verdicts": list(self.verdicts),
            "notes": list(self.notes),
        }
        plain: dict[str, Any] = finite(record)
        return plain

    def __str__(self) -> str:
        lines = [f"{'networks':<26}{'inside':<24}{'lines inside':<24}{'level lines':<24}mean distance"]
        for group in (REPAIRED, UNDAMAGED, DISPLACED, INDEPENDENT, UNTRAINED):
            found = [one for one in self.connections if one.group == group]
            rows = [
                (f"{group}{', aligned' if one.aligned else ''}", one.inside, one.level, one.aligned) for one in found
            ]
            for name, inside, level, aligned in rows or [(group, None, None, False)]:
                own, apart = self.inside(group), self.spread(group, ALIGNED if aligned else "weights")
                cells = ["none" if one is None else f"{one:.3f}" for one in (own, inside, level)]
                lines.append(f"{name:<26}{cells[0]:<24}{cells[1]:<24}{cells[2]:<24}{apart or 0:.3g}")
        return "\n".join([*lines, *(f"{one['question']} {one['answer']}" for one in self.verdicts)])


def _said(share: Estimate) -> str:
    if share.best == 1:
        return "Yes, every line tested"
    return "For the most part" if share.best >= LEVEL else "In part" if share.best >= 0.5 else "No"


def _beside(share: Estimate, control: Estimate) -> str:
    """How a share compares with that of the control without damage."""
    if control.low > share.high:
        return ", less than without damage" if share.best >= 0.5 else ", although without damage they are"
    if control.high < share.low:
        return ", more than without damage"
    if min(share.best, control.best) >= LEVEL:
        return ", but trivially: without damage they are as connected"
    return ", not told apart from the control without damage"


def _known(connection: Connection | None) -> str:
    """Shares of a control's lines that stay inside and that are level."""
    if connection is None or connection.level is None:
        return "none was tested"
    inside = "no two networks in it" if connection.inside is None else f"{connection.inside:.3f}"
    return f"{inside}, and {connection.level:.3f}"


def _plain(estimate: Estimate | None) -> dict[str, float | None] | None:
    return None if estimate is None else estimate.to_dict()
