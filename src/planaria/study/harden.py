"""Harden: which way of training makes a network that survives, at equal gradient evaluations.

Every method starts from the same weights, sees the same batches and may evaluate as many gradients. What comes out is
tested alike: intact, with units deleted at random and worst first, with instant rescue after the deletion, and by the
updates that retraining takes after half of it has gone. Nothing but the validation split decides, the test split
reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import nn

from planaria.core.errors import InputError
from planaria.core.motion import Cost, Moment, settle, updates
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits, RankedUnits, rank
from planaria.measure.statistics import Estimate, finite
from planaria.measure.task import Task
from planaria.repair.harden import Harden
from planaria.repair.refit import Refit, Sidecar
from planaria.repair.retrain import AdamW, Optimiser, Retrain
from planaria.repair.training import Against
from planaria.study.rescue import Criterion, attempt
from planaria.study.trials import CURVES, judge_trials, summarise_trials
from planaria.study.verdicts import Verdict

RANKED = 1000
"""Unlabelled inputs from which the order of the worst is read."""

Start = Network | Callable[[int], Network | nn.Module]
"""A network to be trained further, or seed -> a network with initial weights."""


@dataclass(frozen=True)
class Contest:
    """What all methods have in common: how much they train, and how the results are tested.

    Args:
        evaluations: Gradient evaluations of every training; an update of SAM takes two of them.
        optimiser: Of every training; its rate falls along a half cosine to 0.
        batch: Examples per update.
        doses: Fractions of the units of every layer that are deleted; the area is the mean score over these.
        draws: Random lesions per network and dose.
        lesion: Fraction of the units after whose deletion the network is retrained (with Adam).
        patience: Budget of that retraining, in updates.
        criterion: When a network counts as rescued by it.
        inputs: Unlabelled training inputs that the sidecar of the instant rescue is made of.

    Raises:
        InputError: If a number is not positive, or a dose no fraction.

    Example:
        >>> Contest(evaluations=1000, doses=(0.5,)).draws
        5
    """

    evaluations: int
    optimiser: Optimiser = field(default=AdamW(decay=0.1))
    batch: int = 128
    doses: tuple[float, ...] = tuple(i / 10 for i in range(1, 10))
    draws: int = 5
    lesion: float = 0.5
    patience: int = 400
    criterion: Criterion = field(default=Criterion())
    inputs: int = 10_000

    def __post_init__(self) -> None:
        for name in ("evaluations", "batch", "draws", "patience", "inputs"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise InputError(f"Contest.{name}", "a whole number of at least 1", repr(getattr(self, name)))
        if not self.doses:
            raise InputError("Contest.doses", "at least one dose", "none")
        for dose in (*self.doses, self.lesion):
            RandomUnits().dose.check(dose)


@dataclass(frozen=True, eq=False)
class Trial:
    """One network that has been trained in one way, and what became of it.

    Attributes:
        method: Name of the method.
        seed: Of initial weights, batches, faults and lesions.
        network: The network.
        cost: Of its training.
        doses: Of the curves.
        intact: Test score.
        curves: One of CURVES -> mean test score at each dose.
        rescued: Whether retraining brought it back within the budget.
        updates: Updates until then; all that were done if it did not.
    """

    method: str
    seed: int
    network: Network
    cost: Cost
    doses: tuple[float, ...]
    intact: float
    curves: Mapping[str, tuple[float, ...]]
    rescued: bool
    updates: int

    def area(self, curve: str) -> float:
        """Mean score over the doses."""
        return sum(self.curves[curve]) / len(self.doses)

    def row(self) -> dict[str, Any]:
        """The trial as plain values, without the network; scores that are not finite become None."""
        row: dict[str, Any] = {
            "method": self.method,
            "seed": self.seed,
            "score_intact": self.intact,
            **{f"area_{curve}": self.area(curve) for curve in self.curves},
            "rescued": self.rescued,
            "updates": self.updates,
            "cost": asdict(self.cost),
            "doses": list(self.doses),
            **{f"curve_{curve}": list(scores) for curve, scores in self.curves.items()},
        }
        plain: dict[str, Any] = finite(row)
        return plain


def train_against(start: Network, task: Task, against: Against, contest: Contest, *, seed: int = 0) -> Moment:
    """Train one network in one way, for as many gradient evaluations as the contest allows.

    Args:
        start: Initial or trained weights.
        task: Trained on its training split.
        against: The method.
        contest: What all methods have in common.
        seed: Of batches and faults; the batches are the same for every method.

    Returns:
        The network, and what its training has cost.
    """
    number = max(1, contest.evaluations // against.evaluations)
    flow = Harden(task, against, contest.optimiser, contest.batch, number)
    return settle(flow, updates(number * against.evaluations)).moment(start, stream(seed, "harden"))


def examine(trained: Moment, task: Task, contest: Contest, *, method: str, seed: int = 0) -> Trial:
    """Test one network: intact, damaged, rescued, retrained.

    Lesions depend on the seed alone: every method meets the same ones. A network that training has blown up scores as
    low as can be.

    Args:
        trained: The network, and what its training has cost.
        task: Validation split decides, test split reports.
        contest: What all methods have in common.
        method: Name of the method.
        seed: Of lesions and retraining.
    """
    net = trained.network.with_inputs(task.train.examples)

    def result(intact: float, curves: dict[str, tuple[float, ...]], rescued: bool, done: int) -> Trial:
        return Trial(method, seed, net, trained.cost, contest.doses, intact, curves, rescued, done)

    if not all(bool(weight.isfinite().all()) for weight in net.weights.values()):
        lost = (-math.inf,) * len(contest.doses)
        return result(-math.inf, dict.fromkeys(CURVES, lost), False, contest.patience)
    random = Damage(Silence(), RandomUnits(per_layer=True))
    worst = Damage(Silence(), RankedUnits(rank(net, inputs=task.train.inputs[:RANKED]), per_layer=True))
    instant = settle(Refit(Sidecar.of(net, task.train.inputs[: contest.inputs])))
    scores: dict[str, list[float]] = {curve: [] for curve in CURVES}
    for dose in contest.doses:
        hurt = [random.at(dose)(net, stream(seed, "order", draw)) for draw in range(contest.draws)]
        scores["random"].append(float(np.mean([task.score(one) for one in hurt])))
        scores["rescued"].append(float(np.mean([task.score(instant(one, stream(seed, "rescue"))) for one in hurt])))
        scores["worst"].append(task.score(worst.at(dose)(net, stream(seed, "worst"))))
    done = attempt(
        net,
        random,
        contest.lesion,
        Retrain(task, batch=contest.batch),
        task,
        seed=seed,
        within=updates(contest.patience),
        criterion=contest.criterion,
    )
    at = done.rescue_cost or done.cost
    return result(done.before, {c: tuple(s) for c, s in scores.items()}, done.rescued, at.backward_passes)


@dataclass(frozen=True, eq=False)
class Hardening:
    """The trials of several methods, with what they add up to.

    Attributes:
        trials: All of them.
        bounds: Least and greatest possible score, if there are any.
    """

    trials: tuple[Trial, ...]
    bounds: tuple[float, float] | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One plain row per trial."""
        return [trial.row() for trial in self.trials]

    def summary(self) -> list[dict[str, Any]]:
        """One plain row per method; see `summarise_trials`."""
        return summarise_trials(self.rows, self.bounds)

    def verdicts(self) -> tuple[Verdict, ...]:
        """What the trials say in words; see `judge_trials`."""
        return judge_trials(self.rows, percent=self.bounds == (0.0, 1.0))

    def best(self) -> Network:
        """The network of the first seed of the method that keeps the most under random deletion."""
        known = [row for row in self.summary() if row["area_random"]["best"] is not None]
        top = max(known or self.summary(), key=lambda row: row["area_random"]["best"] or 0.0)["method"]
        return next(trial.network for trial in self.trials if trial.method == top)

    def __str__(self) -> str:
        heads = ("intact", *(f"area {curve}" for curve in CURVES))
        lines = [f"{'method':<16}" + "".join(f"{head:<22}" for head in heads) + "updates to rescue"]
        for row in self.summary():
            keys = ("intact", *(f"area_{curve}" for curve in CURVES))
            cells = "".join(f"{f'{_estimate(row[key]):.3f}':<22}" for key in keys)
            time = row["rescue_updates"]
            lines.append(
                f"{row['method']:<16}{cells}{'not within the budget' if time is None else format(time['best'], 'g')}"
            )
        return "\n".join(lines)


def harden(
    start: Start, task: Task, methods: Mapping[str, Against], contest: Contest, *, seeds: int | Sequence[int] = 5
) -> Hardening:
    """Train a network in several ways at equal gradient evaluations, and see which survives.

    Args:
        start: A trained network (fine-tuning), or a function from a seed to one with initial weights.
        task: Trained on its training split, tested on its test split.
        methods: Name -> what is trained against; "plain" is the control.
        contest: What all methods have in common.
        seeds: Number of seeds, or the seeds.

    Returns:
        The trials, with areas, times to rescue and verdicts.

    Raises:
        InputError: If there are no methods or seeds.

    Example:
        >>> from planaria.measure.datasets import task
        >>> from planaria.repair.against import Plain, UnitFaults
        >>> made = lambda seed: nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        >>> contest = Contest(evaluations=30, doses=(0.5,), draws=1, patience=10, inputs=100)
        >>> found = harden(made, task("digits"), {"plain": Plain(), "faults": UnitFaults()}, contest, seeds=1)
        >>> [trial.cost.backward_passes for trial in found.trials]
        [30, 30]

    Not guaranteed: that the order of methods holds for other networks, damages or lengths of training.
    """
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not methods or not numbers:
        raise InputError("harden", "at least one method and one seed", f"{len(methods)} and {len(numbers)}")
    trials = []
    for name, against in methods.items():
        for seed in numbers:
            trained = train_against(beginning(start, task, seed), task, against, contest, seed=seed)
            trials.append(examine(trained, task, contest, method=name, seed=seed))
    return Hardening(tuple(trials), task.scorer.bounds)


def beginning(start: Start, task: Task, seed: int) -> Network:
    """The network that training begins with under a seed."""
    made = start if isinstance(start, Network) else start(seed)
    net = made if isinstance(made, Network) else Network.of(made, task.train.examples)
    return net.with_inputs(task.train.examples)


def _estimate(estimate: Mapping[str, float | None]) -> Estimate:
    return Estimate(**{key: math.nan if value is None else value for key, value in estimate.items()})
