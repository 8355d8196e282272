"""Schedules: when the damage comes, and what the budget is spent on before and after.

A flow alone is batch repair: the whole lesion, then the flow. `Schedule` brings the lesion in bites; `Beforehand` is
its control: the same share of the budget before the last hit, spent on something else than repair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Generator

from planaria.core.errors import InputError
from planaria.core.motion import Flow, Moment
from planaria.core.network import Network


@dataclass(frozen=True)
class Stage:
    """One stage of a repair: the first `bite` of `bites` parts of the lesion are there, then a flow runs.

    Args:
        bite: Parts of the lesion that have arrived when the flow starts; 0 for none.
        bites: Parts in all.
        flow: What is done then.
        share: Part of the whole budget that is used up when the stage ends.
    """

    bite: int
    bites: int
    flow: Flow
    share: float


@dataclass(frozen=True)
class Schedule:
    """Damage in bites with a repair after each: (repair o damage)^bites, total lesion and total budget fixed.

    One bite is batch repair; as many bites as units is the paper's iterative damage-repair, one unit per event. Entries
    are hit once. (Noise is relative to the weights at the time of the hit, so in bites it is not quite the same noise.)

    Args:
        flow: The repair.
        bites: Number of damage events, at least 1; each adds dose / bites, and budget / bites is spent after each.

    Raises:
        InputError: If there is no bite.

    Source: strategy 3 of the rescue paper.

    Not guaranteed: a repair after every bite. A step of the flow is not cut; where one is dearer than a share, the next
        ones are left out until it is paid for, so that the total is what it is for every other repair.
    """

    flow: Flow
    bites: int = 1

    def __post_init__(self) -> None:
        if self.bites < 1:
            raise InputError("Schedule.bites", "a number of damage events of at least 1", self.bites)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage per bite."""
        return tuple(Stage(bite, self.bites, self.flow, bite / self.bites) for bite in range(1, self.bites + 1))


@dataclass(frozen=True)
class Beforehand:
    """A part of the budget is spent before any damage, then the whole lesion arrives and is repaired with the rest.

    The control of a Schedule: with share (bites - 1) / bites, as much work lies before the last hit and after it. The
    lesion is the one that the undamaged network would get, whatever the training has made of it.

    Args:
        training: What is done to the undamaged network.
        share: Part of the budget that goes to it, from 0 to 1.
        flow: The repair.

    Raises:
        InputError: If the share lies outside 0 to 1.

    Example:
        >>> Beforehand(leave, 0.9, leave).share
        0.9
    """

    training: Flow
    share: float
    flow: Flow

    def __post_init__(self) -> None:
        if not (isinstance(self.share, (int, float)) and 0 <= self.share <= 1):
            raise InputError("Beforehand.share", "a part of the budget from 0 to 1", self.share)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The training, then the repair of the whole lesion."""
        return Stage(0, 1, self.training, self.share), Stage(1, 1, self.flow, 1.0)


def leave(net: Network, rng: Generator, /) -> Iterator[Moment]:
    """The repair that does nothing: the control."""
    del rng
    yield Moment(net)
