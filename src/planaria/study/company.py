"""The networks of damage-repair walks, and those that they are compared with, made on demand.

What a study keeps is plain values. A network that is asked for and is not at hand is made again, the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Generator, Tensor

from planaria.core.anatomy import Slices
from planaria.core.motion import Flow
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import zip_map
from planaria.damage.damage import Damage
from planaria.damage.faults import Fault
from planaria.geometry.normalise import normalises, renormalised
from planaria.measure.task import Task
from planaria.repair.restart import Restart
from planaria.study.attempt import Baseline
from planaria.study.invariant_set import DAMAGED, DISPLACED, INDEPENDENT, INTACT, REPAIRED, UNDAMAGED, UNTRAINED, Member
from planaria.study.lines import Pair, known_inputs
from planaria.study.regime import ATTRITION, Regime
from planaria.study.schedule import leave
from planaria.study.survive import iter_survive
from planaria.study.train import Recipe, train
from planaria.study.walks import Event, Walk

SEEN = 100
"""Most networks of walks that are looked at; of longer walks, evenly spaced events."""
MEMORY = 1 << 30
"""Most bytes of them."""


@dataclass(frozen=True, eq=False)
class Company:
    """An intact network, its damage-repair walks, and its controls.

    Attributes:
        net: The intact network.
        repair: The flow.
        task: What it is for.
        regime: What it lives under.
        seeds: One walk each.
        recipe: How independent networks are trained.
        baseline: Scores of the intact network.
    """

    net: Network
    repair: Flow
    task: Task
    regime: Regime
    seeds: tuple[int, ...]
    recipe: Recipe
    baseline: Baseline
    _made: dict[tuple[str, int], dict[int, tuple[Network, Network]]] = field(default_factory=dict, repr=False)

    @property
    def threshold(self) -> float:
        """Least validation score in the good set."""
        return self.baseline.validation - self.regime.tolerance

    @cached_property
    def rest(self) -> Regime:
        """The control: as many repairs, and no damage."""
        return replace(self.regime, dose=0.0, mode=ATTRITION)

    @cached_property
    def events(self) -> tuple[int, ...]:
        """Events of a walk whose networks are looked at, evenly spaced up to the last."""
        size = sum(tensor.nbytes for tensor in (self.net.weights | self.net.buffers).values())
        room = min(SEEN, MEMORY // max(1, size)) // (2 * len(self.seeds))
        return tuple(one + 1 for one in evenly_of(self.regime.events, max(1, room)))

    def walk(self, group: str, seed: int) -> dict[str, Any]:
        """One walk as plain values; its networks stay at hand."""
        events, kept = [], {}
        before = next(self.followed(leave, replace(self.rest, events=1), seed)).dead
        hits: list[Network] = []
        regime = self.rest
        if group == REPAIRED:
            noted = Damage(_Noting(self.regime.damage.fault, hits), self.regime.damage.site)
            regime = replace(self.regime, damage=noted)
        previous = end = self.net
        for one in self.followed(self.repair, regime, seed):
            assert one.network is not None
            end = one.network
            if one.event in self.events:
                kept[one.event] = (hits[-1] if hits else previous, end)
            hits.clear()
            previous = end
            events.append(replace(one, network=None))
        self._made[group, seed] = kept
        walk = Walk("repair", seed, self.baseline.test, self.task.score(end), before, tuple(events))
        return {"what": "walk", "walk": walk.record()}

    def followed(self, flow: Flow, regime: Regime, seed: int) -> Iterator[Event]:
        """Events of one walk, one after another."""
        return iter_survive(self.net, flow, self.task, regime, seed=seed, baseline=self.baseline)

    def on_walk(self, group: str, seed: int, event: int) -> Network:
        """Damaged, repaired, or of the control without damage."""
        walked = UNDAMAGED if group == UNDAMAGED else REPAIRED
        if (walked, seed) not in self._made:
            self.walk(walked, seed)
        return self._made[walked, seed][event][group != DAMAGED]

    def score(self, net: Network) -> float:
        """Validation score."""
        return self.task.score(net, self.task.validation)

    def displaced(self, places: Sequence[Pair]) -> list[Network]:
        """Per repaired network one as far from the intact one, in each weight tensor, in a random direction."""
        found = []
        for seed, event in places:
            rng = stream(seed, "displaced", event)
            away = self.on_walk(REPAIRED, seed, event) - self.net
            step = zip_map(partial(_as_long, rng=rng), away, self.net.plasticity)
            moved = self.net.with_weights(zip_map(torch.add, self.net.weights, step))
            again = normalises(self.net)
            found.append(renormalised(moved, known_inputs(self.task)) if again else moved)
        return found

    def untrained(self, number: int) -> Network:
        """The same architecture with weights drawn anew."""
        return Restart()(self.net, stream(number, "independent"))

    def independent(self, number: int) -> dict[str, Any]:
        """A network trained from a start of its own: its score and that of the start, as plain values."""
        start = self.untrained(number)
        trained, _ = train(start.to_module(), self.task, self.recipe, seed=number)
        net = self.net.with_weights(trained.weights, trained.buffers)
        self._made[INDEPENDENT, number] = {0: (start, net)}
        return {
            "what": "independent",
            "score": known_score(self.score(net)),
            "untrained": known_score(self.score(start)),
        }

    def network(self, member: Member) -> Network:
        """The network that a member describes."""
        if member.group == INTACT:
            return self.net
        assert member.walk is not None
        if member.group == UNTRAINED:
            return self.untrained(member.walk)
        if member.group == INDEPENDENT:
            if (INDEPENDENT, member.walk) not in self._made:
                self.independent(member.walk)
            return self._made[INDEPENDENT, member.walk][0][1]
        assert member.event is not None
        if member.group == DISPLACED:
            return self.displaced([(member.walk, member.event)])[0]
        return self.on_walk(member.group, member.walk, member.event)


class _Noting:
    """A fault that notes the networks it has struck."""

    def __init__(self, fault: Fault, struck: list[Network]) -> None:
        self._fault, self._struck = fault, struck

    def strike(self, net: Network, slices: Slices, rng: Generator, /) -> Network:
        self._struck.append(self._fault.strike(net, slices, rng))
        return self._struck[-1]

    def __repr__(self) -> str:
        return repr(self._fault)


def _as_long(away: Tensor, plasticity: Tensor, *, rng: Generator) -> Tensor:
    """A random direction among what is plastic, as long as a displacement."""
    noise = torch.randn(away.shape, generator=rng, dtype=torch.float64).to(away.device) * (plasticity != 0)
    size = noise.norm()
    return (noise * (away.double().norm() / size)).to(away) if size > 0 else torch.zeros_like(away)


def evenly_of(count: int, most: int) -> list[int]:
    """At most so many of the numbers 0 to count - 1, evenly spaced, the last among them."""
    take = min(count, most)
    return [(at + 1) * count // take - 1 for at in range(take)]


def known_score(score: float) -> float | None:
    """A score for JSON: None stands for minus infinity."""
    return score if score > -float("inf") else None
