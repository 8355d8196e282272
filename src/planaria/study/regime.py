"""Regimes: what a network lives under while damage arrives as a stream.

Two modes make life under lasting damage well posed. In *attrition* dead units stay dead: in the end nothing is left,
and the question is for how long the network stays in the good set. In *turnover* a dead unit returns after a delay as
an embryonic one: the number of dead units is bounded, and the question is whether the network stays for good.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from planaria.core.errors import InputError
from planaria.core.motion import Budget, updates
from planaria.damage.damage import Damage
from planaria.damage.sites import RankedUnits

EACH = updates(20)
"""Usual budget of the repair after one event."""


@dataclass(frozen=True)
class Attrition:
    """Dead units stay dead; a walk ends at its horizon, or when nothing is left to damage.

    Example:
        >>> Attrition()
        Attrition()
    """


@dataclass(frozen=True)
class Turnover:
    """A unit that has been dead for `delay` events returns as an embryonic one, just before the next hit.

    Its incoming weights are drawn anew, its outgoing weights are 0, its plasticity is 1 (see `Regrow`).

    Args:
        delay: Events for which a unit is dead, at least 1.
        burn_in: First events that stationary statistics leave out; None: `delay`, after which as many units return as
            die.

    Raises:
        InputError: On a delay below 1 or a negative burn-in.

    Example:
        >>> Turnover(delay=3)
        Turnover(delay=3, burn_in=None)

    Source: turnover is our reading of "constant rewiring" in the rescue paper, where dead units never return, so that
        no set of networks can be invariant.
    """

    delay: int = 5
    burn_in: int | None = None

    def __post_init__(self) -> None:
        _whole("Turnover.delay", self.delay, 1)
        if self.burn_in is not None:
            _whole("Turnover.burn_in", self.burn_in, 0)


Mode = Attrition | Turnover
ATTRITION = Attrition()
"""Usual mode."""


@dataclass(frozen=True)
class Regime:
    """What a network lives under: the stream of damage, and what may be spent after each event.

    Args:
        damage: Fault and site. The site must draw at random.
        dose: Per event, on the damage's axis.
        events: Number of events, at least 1.
        mode: Attrition or Turnover.
        within: Budget of the repair after each event.
        tolerance: Largest loss of validation score inside the good set, in the score's own unit.
        rest: Last events that bring no damage.

    Raises:
        InputError: If one of them is out of range.
    """

    damage: Damage
    dose: float
    events: int
    mode: Mode = ATTRITION
    within: Budget = EACH
    tolerance: float = 0.01
    rest: int = 0

    def __post_init__(self) -> None:
        self.damage.site.dose.check(self.dose)
        if isinstance(self.damage.site, RankedUnits):
            raise InputError(
                "survive(damage)",
                "a site that draws at random, such as RandomUnits()",
                "RankedUnits, which hits the same units at every event",
            )
        if not isinstance(self.mode, (Attrition, Turnover)):
            raise InputError("survive(mode)", "Attrition() or Turnover()", repr(self.mode)[:60])
        _whole("survive(events)", self.events, 1)
        _whole("survive(rest)", self.rest, 0)
        if not (isinstance(self.tolerance, (int, float)) and 0 <= self.tolerance < math.inf):
            raise InputError("survive(tolerance)", "a finite number of at least 0", self.tolerance)
        if self.burn_in >= self.events:
            raise InputError(
                "survive(events)",
                f"more events than the burn-in, {self.burn_in}",
                self.events,
                "Use more events or a shorter delay.",
            )

    @property
    def burn_in(self) -> int:
        """First events that stationary statistics leave out."""
        if isinstance(self.mode, Attrition):
            return 0
        return self.mode.delay if self.mode.burn_in is None else self.mode.burn_in


def _whole(where: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(where, f"a whole number of at least {least}", repr(value))
