"""Rescue: damage, repair, and the question whether the function came back, at what cost.

What counts as rescued is said in `planaria.study.attempt`. Every repair gets the same budget, counted from the
undamaged network, and reported scores come from the test split, which no decision has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Generator

from planaria.core.anatomy import Anatomy, Slices
from planaria.core.errors import InputError
from planaria.core.motion import Budget, Cost, Flow, Moment, updates, within
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.measure.statistics import Estimate
from planaria.measure.task import Task
from planaria.study.attempt import CRITERION, Look
from planaria.study.attempt import Attempt as Attempt
from planaria.study.attempt import Baseline as Baseline
from planaria.study.attempt import Criterion as Criterion
from planaria.study.schedule import Beforehand, Schedule, Stage
from planaria.study.schedule import leave as leave
from planaria.study.summary import summarise

BUDGET = updates(400)
"""Usual budget of a repair."""
EXACTLY = Criterion(tolerance=0.0)
"""The criterion of a comparison whose target is given as a score."""

Repair = Flow | Schedule | Beforehand
"""What can be tried on a lesion: a flow (the whole lesion at once, then the flow), or a schedule of both."""


def attempt(
    net: Network,
    damage: Damage,
    dose: float,
    repair: Repair,
    task: Task,
    *,
    name: str = "repair",
    seed: int = 0,
    within: Budget = BUDGET,
    criterion: Criterion = CRITERION,
    baseline: Baseline | None = None,
    damaged: float | None = None,
) -> Attempt:
    """Damage a network and follow one repair until the budget is used up.

    The lesion depends on the seed and the dose only: every repair meets the same one, and a schedule reaches it in
    nested parts. The budget is counted from the undamaged network.

    Args:
        net: The undamaged network.
        damage: Fault and site.
        dose: On the damage's axis.
        repair: A flow (batch repair), a Schedule, or a Beforehand.
        task: Validation split decides, test split reports.
        name: For the record.
        seed: Of lesion and repair.
        within: Budget.
        criterion: When it counts as rescued.
        baseline: Scores of `net`, if known.
        damaged: Test score after the lesion, if known.

    Returns:
        The attempt, rescued or not.
    """
    net = net.with_inputs(task.train.examples)
    stages = repair.stages if isinstance(repair, (Schedule, Beforehand)) else Schedule(repair).stages

    def struck(stage: Stage) -> Slices:
        # Nested parts of the lesion that the undamaged network would get, whatever was done to it in between.
        return damage.site.select(net, _part(damage, dose, stage), stream(seed, "lesion"))

    def strike(now: Network, slices: Slices) -> Network:
        return damage.fault.strike(now, slices, stream(seed, "fault")) if slices.all else now

    whole = strike(net, struck(stages[-1]))
    known = task.score(whole) if damaged is None else damaged
    run = _Run(net, whole, task, criterion, within)
    earlier: Slices | None = None
    for stage in stages:
        part = struck(stage)
        # A fault that passes must not hit again what has been repaired since.
        hit = strike(run.now, part if earlier is None else part.without(earlier))
        run.follow(hit, stage.flow, stream(seed, "repair", name, stage.bite), stage.share)
        earlier = part
    return run.result(name, dose, seed, baseline or Baseline.of(net, task), known)


class _Run:
    """One attempt while it runs: where the network is, what it has cost, how it was evaluated."""

    def __init__(self, net: Network, whole: Network, task: Task, criterion: Criterion, within: Budget) -> None:
        self.now, self.cost, self._moments = net, Cost(), 0
        self._looks: list[Look] = []
        self._hit, self._ended = 0, True
        self._task, self._criterion, self._within = task, criterion, within
        self._before, self._anatomy = net, Anatomy.of(net)
        dead, was = self._anatomy.dead(whole), self._anatomy.dead(net)
        self._layers = [layer for layer in dead if int(dead[layer].sum()) > int(was[layer].sum())]

    def follow(self, struck: Network, flow: Flow, rng: Generator, share: float) -> None:
        """Repair the network after a hit, until this share of the whole budget is used up."""
        start, self.now = self.cost, struck
        self._hit = len(self._looks)
        self._look()
        left = share * self._within.amount - self._within.used(start, self._moments)
        budget = Budget(max(0.0, left), self._within.of)
        count, looked = 0, 0
        last = Moment(struck)
        for last in within(flow(struck, rng), budget):
            count += 1
            self.cost = start + last.cost
            if count == 1 or count % self._criterion.every == 0:
                self.now = last.network  # only here: a network may be made when it is first asked for
                self._look()
                looked = count
        if looked < count:
            self.now = last.network
            self._look()
        self._moments += count
        self._ended = not budget.spent(self.cost - start, count)

    def result(self, name: str, dose: float, seed: int, baseline: Baseline, damaged: float) -> Attempt:
        """The finished attempt."""
        deleted, _ = self._dead(self.now)
        existing, _ = self._dead(self._before)
        return Attempt(
            repair=name,
            dose=dose,
            seed=seed,
            before=baseline.test,
            damaged=damaged,
            after=self._task.score(self.now),
            validation_before=baseline.validation,
            criterion=self._criterion,
            looks=tuple(self._looks),
            hit=self._hit,
            cost=self.cost,
            ended=self._ended,
            units_deleted=deleted - existing,
            network=self.now,
        )

    def _look(self) -> None:
        dead, units = self._dead(self.now)
        score = self._task.score(self.now, self._task.validation)
        self._looks.append(Look(self.cost, score, dead / units if units else 0.0))

    def _dead(self, net: Network) -> tuple[int, int]:
        """Dead and all units of the layers that the lesion hits."""
        if not self._layers:
            return 0, 0
        states = self._anatomy.dead(net)
        return sum(int(states[n].sum()) for n in self._layers), sum(len(states[n]) for n in self._layers)


def _part(damage: Damage, dose: float, stage: Stage) -> float:
    """Dose that has been reached when a stage begins."""
    if stage.bite == stage.bites:
        return dose
    part = dose * stage.bite / stage.bites
    return part if damage.site.dose.relative else float(round(part))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Attempts of several repairs, with what they add up to.

    Attributes:
        attempts: All of them.
        bounds: Least and greatest possible score, if there are any.
    """

    attempts: tuple[Attempt, ...]
    bounds: tuple[float, float] | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One plain row per attempt."""
        return [attempt.row() for attempt in self.attempts]

    def summary(self) -> list[dict[str, Any]]:
        """One plain row per repair and dose; see `summarise`."""
        return summarise(self.rows, self.bounds)

    def __str__(self) -> str:
        lines = [f"{'repair':<20}{'dose':>6}  {'damaged':<24}{'after':<24}{'rescued':<9}updates to rescue"]
        for row in self.summary():
            median = row["rescue_updates"]
            time = "not within the budget" if median is None else f"{median['best']:g}"
            damaged, after = (Estimate(**_floats(row[key])) for key in ("damaged", "after"))
            rescued = f"{row['rescued']}/{row['trials']}"
            lines.append(
                f"{row['repair']:<20}{row['dose']:>6g}  {f'{damaged:.3f}':<24}{f'{after:.3f}':<24}{rescued:<9}{time}"
            )
        return "\n".join(lines)


def _floats(estimate: Mapping[str, float | None]) -> dict[str, float]:
    return {key: float("nan") if value is None else value for key, value in estimate.items()}


def rescue(
    net: Network,
    damage: Damage,
    repairs: Mapping[str, Repair],
    task: Task,
    *,
    doses: Sequence[float] = (0.3, 0.5, 0.7),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    within: Budget = BUDGET,
    criterion: Criterion = CRITERION,
) -> Comparison:
    """Damage a network and rescue it with every repair, at the same budget and from the same lesions.

    Args:
        net: The undamaged network.
        damage: Fault and site.
        repairs: Name -> flow, Schedule or Beforehand.
        task: Validation split decides, test split reports.
        doses: On the damage's axis.
        seeds: One lesion and one repair run each.
        within: Budget, counted from the undamaged network.
        criterion: When a network counts as rescued.

    Returns:
        All attempts, repairs within doses within seeds.

    Raises:
        InputError: If there is no repair, dose or seed.

    Example:
        >>> from torch import nn
        >>> from planaria.damage.damage import RandomUnits, Silence
        >>> from planaria.measure.datasets import task
        >>> net = Network.of(nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)))
        >>> death = Damage(Silence(), RandomUnits())
        >>> result = rescue(net, death, {"none": leave}, task("digits"), doses=[0.5], seeds=[0])
        >>> len(result.attempts)
        1
    """
    for what, given in (("repairs", repairs), ("doses", doses), ("seeds", seeds)):
        if not given:
            raise InputError(f"rescue({what})", "at least one", "none")
    net = net.with_inputs(task.train.examples)
    baseline = Baseline.of(net, task)
    attempts: list[Attempt] = []
    for seed in seeds:
        for dose in doses:
            damaged: float | None = None  # the same lesion for every repair: measured once
            for name, repair in repairs.items():
                one = attempt(
                    net,
                    damage,
                    dose,
                    repair,
                    task,
                    name=name,
                    seed=seed,
                    within=within,
                    criterion=criterion,
                    baseline=baseline,
                    damaged=damaged,
                )
                damaged = one.damaged
                attempts.append(one)
    return Comparison(tuple(attempts), task.scorer.bounds)


def compare(
    hurt: Network,
    repairs: Mapping[str, Flow],
    task: Task,
    *,
    to: float,
    within: Budget = BUDGET,
    seeds: int = 5,
    criterion: Criterion = EXACTLY,
) -> Comparison:
    """Compare repairs of one network that is already damaged.

    Args:
        hurt: The damaged network.
        repairs: Name -> flow.
        task: Validation split decides, test split reports.
        to: Validation score to reach.
        within: Budget.
        seeds: Repair runs per repair, at least 1.
        criterion: Its tolerance is subtracted from `to`.

    Returns:
        All attempts; their "before" is the damaged network's own score.

    Raises:
        InputError: If there is no repair or no seed.
    """
    if not repairs or seeds < 1:
        raise InputError("compare", "at least one repair and one seed", f"{len(repairs)} and {seeds}")
    hurt = hurt.with_inputs(task.train.examples)
    test = task.score(hurt)
    attempts = []
    for seed in range(seeds):
        for name, flow in repairs.items():
            run = _Run(hurt, hurt, task, criterion, within)
            run.follow(hurt, flow, stream(seed, "repair", name, 1), 1.0)
            attempts.append(run.result(name, 0.0, seed, Baseline(to, test), test))
    return Comparison(tuple(attempts), task.scorer.bounds)
