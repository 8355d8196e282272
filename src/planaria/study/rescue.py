"""Rescue: damage, repair, and the question whether the function came back, at what cost.

"Rescued" means: on the validation split, the score is within a tolerance of what it was before the damage, for
several evaluations in a row, before the budget is used up; otherwise the time to rescue is censored. Every repair gets
the same budget, counted from the undamaged network, and reported scores come from the test split, which no decision
has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from torch import Generator

from planaria.core.anatomy import Anatomy, Slices
from planaria.core.errors import InputError
from planaria.core.motion import Budget, Cost, Flow, updates, within
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.measure.statistics import Estimate, finite
from planaria.measure.task import Task
from planaria.study.schedule import Beforehand, Schedule, Stage
from planaria.study.schedule import leave as leave
from planaria.study.summary import summarise

ROUNDING = 1e-9
"""Far below one example, far above the rounding of a difference of scores."""
BUDGET = updates(400)
"""Usual budget of a repair."""

Repair = Flow | Schedule | Beforehand
"""What can be tried on a lesion: a flow (the whole lesion at once, then the flow), or a schedule of both."""


@dataclass(frozen=True)
class Criterion:
    """When a network counts as rescued.

    Args:
        tolerance: Largest loss of validation score against the undamaged network, in the score's own unit (0.01 is one
            point of accuracy).
        consecutive: Evaluations in a row that must hold; a repair that ends by itself is judged by its last ones.
        every: Moments (for retraining: updates) between evaluations.

    Raises:
        InputError: On a negative tolerance, or counts below 1.

    Example:
        >>> Criterion()
        Criterion(tolerance=0.01, consecutive=3, every=10)
    """

    tolerance: float = 0.01
    consecutive: int = 3
    every: int = 10

    def __post_init__(self) -> None:
        if not (isinstance(self.tolerance, (int, float)) and self.tolerance >= 0):
            raise InputError("Criterion.tolerance", "a number of at least 0", self.tolerance)
        for name in ("consecutive", "every"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise InputError(f"Criterion.{name}", "a number of at least 1", getattr(self, name))


@dataclass(frozen=True)
class Look:
    """One evaluation: cost so far, score on the validation split, fraction of the units dead."""

    cost: Cost
    validation: float
    dead: float


@dataclass(frozen=True, eq=False)
class Attempt:
    """One repair of one lesion.

    Attributes:
        repair: Name of the repair.
        dose: Amount of damage.
        seed: Seed of lesion and repair.
        before: Test score of the undamaged network.
        damaged: Test score after the whole lesion, before any repair.
        after: Test score at the end of the budget.
        validation_before: Validation score of the undamaged network.
        criterion: When it counts as rescued.
        looks: Evaluations in order of cost.
        hit: Index of the look just after the last part of the lesion was done.
        cost: Total cost at the end.
        ended: Whether the repair ended by itself, before the budget.
        units_deleted: Units dead at the end that were not dead before.
        network: The network at the end.
    """

    repair: str
    dose: float
    seed: int
    before: float
    damaged: float
    after: float
    validation_before: float
    criterion: Criterion
    looks: tuple[Look, ...]
    hit: int
    cost: Cost
    ended: bool
    units_deleted: int
    network: Network

    @property
    def target(self) -> float:
        """Validation score that counts as rescued; a loss of exactly the tolerance does."""
        return self.validation_before - self.criterion.tolerance - ROUNDING

    @cached_property
    def rescue_cost(self) -> Cost | None:
        """Total cost at the first of the evaluations that held, counted from the undamaged network; None: censored."""
        held: list[Look] = []
        for look in self.looks[self.hit :]:
            held = [*held, look] if look.validation >= self.target else []
            if len(held) >= self.criterion.consecutive:
                return held[0].cost
        return held[0].cost if held and self.ended else None

    @property
    def last_hit(self) -> Cost:
        """Cost that had been spent when the last part of the lesion was done."""
        return self.looks[self.hit].cost

    @property
    def rescued(self) -> bool:
        """Whether the network was rescued within the budget."""
        return self.rescue_cost is not None

    @property
    def validation_after(self) -> float:
        """Validation score at the end."""
        return self.looks[-1].validation

    def row(self) -> dict[str, Any]:
        """The attempt as plain values, without the network; scores that are not finite become None."""
        rescue = self.rescue_cost
        row: dict[str, Any] = {
            "repair": self.repair,
            "dose": self.dose,
            "seed": self.seed,
            "score_before": self.before,
            "score_damaged": self.damaged,
            "score_after": self.after,
            "rescued": self.rescued,
            "cost": asdict(self.cost),
            "cost_since_last_hit": asdict(self.cost - self.last_hit),
            "rescue_cost": None if rescue is None else asdict(rescue),
            "rescue_cost_since_last_hit": None if rescue is None else asdict(rescue - self.last_hit),
            "validation_before": self.validation_before,
            "validation_after": self.validation_after,
            "units_deleted": self.units_deleted,
            "curve": [
                {
                    "updates": look.cost.backward_passes,
                    "examples": look.cost.examples,
                    "multiply_adds": look.cost.multiply_adds,
                    "seconds": look.cost.seconds,
                    "validation": look.validation,
                    "dead": look.dead,
                }
                for look in self.looks
            ],
        }
        return finite(row)


@dataclass(frozen=True)
class Baseline:
    """Scores of the undamaged network; measured once per study."""

    validation: float
    test: float

    @staticmethod
    def of(net: Network, task: Task) -> Baseline:
        """Measure them."""
        return Baseline(task.score(net, task.validation), task.score(net))


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
    criterion: Criterion = Criterion(),
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
    net = net.with_inputs(task.train.inputs)
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
        for moment in within(flow(struck, rng), budget):
            count += 1
            self.now, self.cost = moment.network, start + moment.cost
            if count == 1 or count % self._criterion.every == 0:
                self._look()
                looked = count
        if looked < count:
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
    criterion: Criterion = Criterion(),
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
    net = net.with_inputs(task.train.inputs)
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
    criterion: Criterion = Criterion(tolerance=0.0),
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
    hurt = hurt.with_inputs(task.train.inputs)
    test = task.score(hurt)
    attempts = []
    for seed in range(seeds):
        for name, flow in repairs.items():
            run = _Run(hurt, hurt, task, criterion, within)
            run.follow(hurt, flow, stream(seed, "repair", name, 1), 1.0)
            attempts.append(run.result(name, 0.0, seed, Baseline(to, test), test))
    return Comparison(tuple(attempts), task.scorer.bounds)
