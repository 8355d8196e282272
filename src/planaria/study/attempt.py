"""Attempt: one repair of one lesion, followed evaluation by evaluation, and whether the function came back.

"Rescued" means: on the validation split, the score is within a tolerance of what it was before the damage, for
several evaluations in a row, before the budget is used up; otherwise the time to rescue is censored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from planaria.core.errors import InputError
from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.measure.statistics import finite
from planaria.measure.task import Task

ROUNDING = 1e-9
"""Far below one example, far above the rounding of a difference of scores."""


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


CRITERION = Criterion()
"""Usual criterion."""


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
