"""Invariance: do the networks of a damage-repair walk form an invariant, path-connected set, and would others as well?

U = {networks with validation score >= intact - tolerance}. Networks are collected along walks x_t = r(D(x_{t-1})); one
asks how often a step stays in U, and whether straight lines between members of U stay in it. Networks few steps apart
are connected whatever happens to them, so that nothing is said without controls: the same training without damage,
displacements of equal length at random, networks trained from other starts, and untrained ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from planaria.core.errors import InputError
from planaria.core.motion import Budget, Flow
from planaria.core.network import Network
from planaria.damage.damage import Damage
from planaria.geometry.align import align
from planaria.geometry.distances import answer_distances, output_distances, weight_distances
from planaria.geometry.normalise import normalises
from planaria.geometry.straight import Way
from planaria.measure.task import Task
from planaria.study.attempt import ROUNDING, Baseline
from planaria.study.company import Company, evenly_of, known_score
from planaria.study.invariant_set import (
    ALIGNED,
    DAMAGED,
    DISPLACED,
    INDEPENDENT,
    INTACT,
    REPAIRED,
    UNDAMAGED,
    UNTRAINED,
    Connection,
    Invariance,
    Member,
)
from planaria.study.keeping import Keep, done_now
from planaria.study.lines import Line, Pair, curved_lines, straight_lines
from planaria.study.regime import ATTRITION, EACH, Mode, Regime
from planaria.study.survival import Survival
from planaria.study.survive import collect
from planaria.study.train import Recipe
from planaria.study.walks import Walk

SEEN = 100
"""Most networks of walks whose distances are taken; of longer walks, evenly spaced events."""
MEMORY = 1 << 30
"""Most bytes of them that are kept."""
INPUTS = 500
"""Validation inputs on which functional distances are taken."""
BENT = 10
"""Most pairs that are joined by a curve."""
WHERE = "invariance"


def invariance(
    net: Network,
    damage: Damage,
    repair: Flow,
    task: Task,
    *,
    events: int,
    dose: float,
    mode: Mode = ATTRITION,
    within: Budget = EACH,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    tolerance: float = 0.01,
    networks: int = 20,
    recipe: Recipe | None = None,
    by: Way | None = None,
) -> Invariance:
    """Whether the networks of damage-repair walks form an invariant, path-connected set, with controls.

    Args:
        net: The intact network; it is not changed.
        damage: Fault and site; the site draws at random.
        repair: A flow that leaves dead units dead.
        task: Validation split decides what is in the good set; barriers are also given on the test split.
        events: Of each walk.
        dose: Per event, on the damage's axis.
        mode: Attrition() or Turnover(delay=...).
        within: Budget of the repair after each event; the control without damage gets it, too.
        seeds: One walk each.
        tolerance: Of the good set, in the score's own unit.
        networks: How many are joined by lines, two by two, in each group.
        recipe: How independent networks are trained; by default as suits the task.
        by: What joins up to 10 pairs of repaired networks whose straight line leaves the good set, such as Bezier();
            None for nothing.

    Returns:
        Retention, lines, distances, and verdicts in words.

    Raises:
        InputError: No seed, fewer than two networks, or a number out of range.

    Example:
        >>> from torch import nn
        >>> from planaria.damage.faults import Silence
        >>> from planaria.damage.sites import RandomUnits
        >>> from planaria.measure.datasets import task
        >>> from planaria.repair.retrain import Retrain
        >>> digits = task("digits")
        >>> small = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
        >>> from planaria.study.train import train
        >>> net, _ = train(small, digits, Recipe(2))
        >>> death = Damage(Silence(), RandomUnits())
        >>> found = invariance(net, death, Retrain(digits), digits, events=2, dose=0.13, seeds=[0, 1], networks=4,
        ...                    tolerance=0.2, recipe=Recipe(1))
        >>> len(found.members), found.verdicts[2]["answer"]
        (25, 'Cannot be, in attrition')

    Source: the claim is that of the rescue paper, which tested neither against a control.

    Not guaranteed: that networks which straight lines do not join are not connected; curves may join them.
    """
    regime = Regime(damage, dose, events, mode, within, tolerance)
    return Survey.of(net, repair, task, regime, seeds=seeds, networks=networks, recipe=recipe, by=by).run()


@dataclass(frozen=True, eq=False)
class Survey:
    """A study of invariance that has been planned; nothing has been damaged yet.

    Attributes:
        company: Makes the networks.
        networks: How many are joined, two by two, in each group.
        by: What joins repaired networks whose straight line leaves the good set; None for nothing.
    """

    company: Company
    networks: int
    by: Way | None = None

    @staticmethod
    def of(
        net: Network,
        repair: Flow,
        task: Task,
        regime: Regime,
        *,
        seeds: Sequence[int] = (0, 1, 2, 3, 4),
        networks: int = 20,
        recipe: Recipe | None = None,
        by: Way | None = None,
    ) -> Survey:
        """Check everything and score the intact network; arguments as in `invariance`."""
        if not seeds or len(set(seeds)) < len(seeds):
            raise InputError(f"{WHERE}(seeds)", "at least one seed, each once", list(seeds))
        if isinstance(networks, bool) or not isinstance(networks, int) or networks < 2:
            raise InputError(f"{WHERE}(networks)", "a whole number of at least 2", repr(networks))
        if regime.rest:
            raise InputError(f"{WHERE}(regime.rest)", "0: damage at every event", regime.rest)
        net = net.with_inputs(task.train.examples)
        recipe = Recipe.suited(task, net.module) if recipe is None else recipe
        company = Company(net, repair, task, regime, tuple(seeds), recipe, Baseline.of(net, task))
        return Survey(company, networks, by)

    @property
    def steps(self) -> int:
        """Steps of `run` that are kept one by one; at most."""
        return 2 * len(self.company.seeds) + self.networks + 1 + 6 + 1 + (self.by is not None)

    # ------------------------------------------------------------------------------------------------ the work

    def run(self, keep: Keep = done_now) -> Invariance:
        """Walk, train the controls, join and compare.

        Args:
            keep: Remembers steps that are done; by default nothing is remembered. Networks are not kept: where a later
                step needs those of one that is done, they are made again.
        """
        lives = {name: self._lived(name, keep) for name in (REPAIRED, UNDAMAGED)}
        places = self._sample(lives[REPAIRED])
        members = [Member(INTACT, None, None, self.company.baseline.validation, True)]
        members += self._seen(lives[REPAIRED])
        members += [self._member(UNDAMAGED, lives[UNDAMAGED], *place) for place in places]
        displaced = keep(
            "displaced",
            lambda: {"scores": [known_score(self.company.score(net)) for net in self.company.displaced(places)]},
        )
        members += [
            self._of_score(DISPLACED, score, *place) for place, score in zip(places, displaced["scores"], strict=True)
        ]
        trained = [
            keep(f"independent {number}", partial(self.company.independent, number)) for number in range(self.networks)
        ]
        for group, key in ((INDEPENDENT, "score"), (UNTRAINED, "untrained")):
            members += [self._of_score(group, one[key], number, None) for number, one in enumerate(trained)]
        connections = [
            self._connection(group, aligned, members, places, keep)
            for group in (REPAIRED, UNDAMAGED, DISPLACED, INDEPENDENT)
            for aligned in ([False, True] if group in (REPAIRED, INDEPENDENT) else [False])
        ]
        curves = self._curves(next(iter(connections)), members, keep)
        matrices = keep("distances", partial(self._distances, members))
        return Invariance(
            life=self._survival(lives[REPAIRED], self.company.regime),
            undamaged=self._survival(lives[UNDAMAGED], self.company.rest),
            members=tuple(members),
            connections=tuple(one for one in connections if one is not None),
            curves=curves,
            way=repr(self.by) if self.by is not None else None,
            distances={name: _matrix(rows) for name, rows in matrices.items()},
            threshold=self.company.threshold,
            score=self.company.task.scorer.name,
            training={
                **asdict(self.company.recipe),
                "updates": self.company.recipe.updates(len(self.company.task.train)),
            },
            notes=self._notes(places),
        )

    def _notes(self, places: Sequence[Pair]) -> tuple[str, ...]:
        notes = []
        if len(self.company.events) < self.company.regime.events:
            seen = f"{len(self.company.events)} of {self.company.regime.events} events of a walk"
            notes.append(f"Networks were looked at after {seen}.")
        if len(places) < self.networks:
            notes.append(f"Of the repaired networks looked at, {len(places)} could be joined, not {self.networks}.")
        if normalises(self.company.net):
            notes.append("Normalisation statistics were re-estimated at every point of a line.")
        return tuple(notes)

    def _survival(self, walks: Sequence[Walk], regime: Regime) -> Survival:
        return collect(walks, regime, self.company.net, self.company.task)

    # ------------------------------------------------------------------------------------------------ walks

    def _lived(self, group: str, keep: Keep) -> list[Walk]:
        name = "walk" if group == REPAIRED else "walk without damage"
        return [
            Walk.of(keep(f"{name}, seed {seed}", partial(self.company.walk, group, seed))["walk"])
            for seed in self.company.seeds
        ]

    def _sample(self, walks: Sequence[Walk]) -> list[Pair]:
        """Walk and event of the repaired networks that are joined: inside, as many of each walk, evenly spaced."""
        found: list[Pair] = []
        inside = {
            walk.seed: [one.event for one in walk.events if one.inside and one.event in self.company.events]
            for walk in walks
        }
        left, walks_left = self.networks, len(inside)
        for seed, events in sorted(inside.items(), key=lambda pair: (len(pair[1]), pair[0])):
            chosen = [events[at] for at in evenly_of(len(events), -(-left // walks_left))]
            found += [(seed, event) for event in chosen]
            left, walks_left = left - len(chosen), walks_left - 1
        return sorted(found)

    # ------------------------------------------------------------------------------------------------ members

    def _of_score(self, group: str, score: float | None, walk: int, event: int | None) -> Member:
        value = -float("inf") if score is None else score
        return Member(group, walk, event, value, value >= self.company.threshold - ROUNDING)

    def _member(self, group: str, walks: Sequence[Walk], seed: int, event: int) -> Member:
        walk = next(one for one in walks if one.seed == seed)
        one = walk.events[event - 1]
        return self._of_score(group, one.hit if group == DAMAGED else one.rescued, seed, event)

    def _seen(self, walks: Sequence[Walk]) -> list[Member]:
        return [
            self._member(group, walks, walk.seed, event)
            for walk in walks
            for event in self.company.events
            if event <= len(walk.events)
            for group in (DAMAGED, REPAIRED)
        ]

    # ------------------------------------------------------------------------------------------------ comparison

    def _connection(
        self, group: str, aligned: bool, members: Sequence[Member], places: Sequence[Pair], keep: Keep
    ) -> Connection | None:
        """Lines between all networks of a group, of the walk those that were chosen."""
        chosen = [
            at
            for at, one in enumerate(members)
            if one.group == group and (group != REPAIRED or (one.walk, one.event) in places)
        ]
        if len(chosen) < 2:
            return None
        name = f"lines, {group}{', aligned' if aligned else ''}"
        found = keep(name, partial(self._lines, [members[at] for at in chosen], aligned))
        lines = [Line.of(record) for record in found["lines"]]
        return Connection(
            group,
            aligned,
            tuple(replace(line, first=chosen[line.first], second=chosen[line.second]) for line in lines),
            {at: members[at].walk for at in chosen},
            self.company.regime.tolerance,
            group in (REPAIRED, UNDAMAGED),
        )

    def _lines(self, members: Sequence[Member], aligned: bool) -> dict[str, Any]:
        nets = [self.company.network(one) for one in members]
        if aligned:
            nets = self._aligned(nets)
        lines = straight_lines(nets, self.company.task, self.company.threshold)
        return {"what": "lines", "lines": [line.to_dict() for line in lines]}

    def _curves(self, joined: Connection | None, members: Sequence[Member], keep: Keep) -> Connection | None:
        """Curves between repaired networks whose straight line leaves the good set, some of them; None without any."""
        left = [] if joined is None else [line for line in joined.lines if line.inside is False]
        if self.by is None or joined is None or not left:
            return None
        pairs = [(left[at].first, left[at].second) for at in evenly_of(len(left), BENT)]
        found = keep("curves", partial(self._bent, members, pairs))
        return replace(joined, lines=tuple(Line.of(record) for record in found["lines"]))

    def _bent(self, members: Sequence[Member], pairs: Sequence[Pair]) -> dict[str, Any]:
        assert self.by is not None
        places = sorted({place for pair in pairs for place in pair})
        nets = [self.company.network(members[place]) for place in places]
        ends = [(places.index(a), places.index(b)) for a, b in pairs]
        lines = curved_lines(nets, self.company.task, self.company.threshold, self.by, pairs=ends)
        named = [replace(line, first=places[line.first], second=places[line.second]) for line in lines]
        return {"what": "curves", "lines": [line.to_dict() for line in named]}

    def _aligned(self, nets: Sequence[Network]) -> list[Network]:
        """Every network with its units in the order of the intact one's; as it is where its weights are not finite."""
        return [
            align(self.company.net, net).network if net is not self.company.net and _sound(net) else net for net in nets
        ]

    def _distances(self, members: Sequence[Member]) -> dict[str, Any]:
        nets, x = [self.company.network(one) for one in members], self.company.task.validation.inputs[:INPUTS]
        found = {
            "weights": weight_distances(nets),
            ALIGNED: weight_distances(self._aligned(nets)),
            "outputs": output_distances(nets, x),
        }
        if self.company.task.classes is not None:
            found["answers"] = answer_distances(nets, x)
        return {name: _rows(matrix) for name, matrix in found.items()}


def _sound(net: Network) -> bool:
    return all(bool(weight.isfinite().all()) for weight in net.weights.values())


def _rows(matrix: Tensor) -> list[list[float | None]]:
    """Six digits of each number; None where it is infinite."""
    return [[float(f"{x:.6g}") if x < float("inf") else None for x in row] for row in matrix.tolist()]


def _matrix(rows: Sequence[Sequence[float | None]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float("inf") if x is None else x for x in row) for row in rows)
