"""Double dissociation: whether two lesions hurt two classes the opposite way round, with intervals and controls.

A lesion that hurts class A more than class B may only show that A is the harder class; a second lesion that does the
opposite rules that out. Two classes are called doubly dissociated if all of this is shown:

- within lesions: lesion A costs A more than B, and lesion B costs B more than A;
- within classes, on the same examples: A loses more by lesion A than by lesion B, and B more by lesion B;
- against controls: each lesion costs its own class more than random lesions of the same size and layers do.

The p-value of the four contrasts together is the largest of them (an intersection-union test), corrected over pairs by
Holm. Each class has one test against its controls, corrected over classes.

Source: Teuber 1955, "Physiological psychology"; Shallice 1988, "From neuropsychology to mental structure", for the
comparison both ways; Berger 1982, "Multiparameter hypothesis testing and acceptance sampling", for the largest
p-value; Holm 1979, "A simple sequentially rejective multiple test procedure".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from planaria.core.errors import InputError
from planaria.measure.statistics import Estimate, student_quantile

LEVEL = 0.05
DOUBLE, SINGLE, NONE = "double dissociation", "single dissociation", "no dissociation"
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Change:
    """How the score of some examples changes under a lesion, or between two.

    Attributes:
        examples: How many.
        total: Sum of the changes.
        squares: Sum of the squared changes; NaN where single examples have no score.
        reach: Largest change that an example can have, 1 for an accuracy; 0 where there is no largest.

    Example:
        >>> print(Change(50, -10.0, 10.0, 1.0).lost)
        0.200 [0.079, 0.306]
        >>> print(Change(50, 0.0, 0.0, 1.0).lost)
        0.000 [-0.038, 0.038]
    """

    examples: int
    total: float
    squares: float
    reach: float

    @property
    def moments(self) -> tuple[float, float]:
        """Mean loss and its squared standard error.

        With a largest change, as after two more pairs of examples: half a rise, half a fall, one unchanged. Keeps an
        interval open where nothing has changed.

        Source: Agresti & Min 2005, "Simple improved confidence intervals for comparing matched proportions".
        """
        more = 2.0 if self.reach else 0.0
        n = self.examples + more
        mean = self.total / n
        square = (self.squares + self.reach**2) / n - mean * mean
        return 0.0 - mean, square if math.isnan(square) else max(0.0, square) / n

    @property
    def lost(self) -> Estimate:
        """Mean loss with its 95 % interval over examples like these."""
        mean, variance = self.moments
        found = interval(0.0 - self.total / self.examples, mean, variance)
        most = self.reach or math.inf
        return Estimate(max(found.low, -most), found.best, min(found.high, most)) if found.has_interval else found


def interval(best: float, centre: float, variance: float) -> Estimate:
    """A number with its 95 % interval around a centre that may lie a little nearer to zero."""
    half = _Z * math.sqrt(variance) if variance >= 0 else math.nan
    if math.isnan(half):
        return Estimate(math.nan, best, math.nan)
    return Estimate(min(best, centre - half), best, max(best, centre + half))


def p_above(centre: float, variance: float) -> float:
    """Two-sided p-value of a number that is claimed to be above zero; 1 where it is not."""
    if not centre > 0:
        return 1.0
    return 2 * (1 - NormalDist().cdf(centre / math.sqrt(variance))) if variance > 0 else 0.0


def control_interval(draws: Sequence[float], grain: float = 0.0, reach: float = 0.0) -> Estimate:
    """Mean over random lesions, with the range in which one more random lesion lies in 95 % of cases.

    mean -+ t s sqrt(1 + 1/n), Student's t with n - 1 degrees of freedom, s the standard deviation over draws.

    Args:
        draws: Loss of each random lesion.
        grain: Least standard deviation that is believed: half an example.
        reach: Largest loss there can be, 1 for an accuracy; 0 where there is no largest.

    Example:
        >>> print(control_interval([0.1, 0.2, 0.3, 0.2]))
        0.200 [-0.091, 0.491]
    """
    mean, spread = _spread(draws, grain)
    half = student_quantile(0.95, len(draws) - 1) * spread * math.sqrt(1 + 1 / len(draws))
    most = reach or math.inf
    return Estimate(min(mean, max(mean - half, -most)), mean, max(mean, min(mean + half, most)))


def p_control(loss: float, draws: Sequence[float], grain: float = 0.0) -> float:
    """Two-sided p-value of a loss that is claimed to be above those of random lesions; 1 where it is not above.

    t = (loss - mean) / (s sqrt(1 + 1/n)) with n - 1 degrees of freedom: a single case against few controls.

    Args:
        loss: Of the lesion.
        draws: Loss of each random lesion.
        grain: As for `control_interval`.

    Example:
        >>> round(p_control(0.6, [0.1, 0.2, 0.3, 0.2]), 4), p_control(0.1, [0.1, 0.2, 0.3, 0.2])
        (0.022, 1.0)

    Source: Crawford & Howell 1998, "Comparing an individual's test score against norms derived from small samples".

    Not guaranteed: that losses of random lesions are normal; a test by rank would need hundreds of them.
    """
    from scipy.special import stdtr

    mean, spread = _spread(draws, grain)
    if not loss > mean:
        return 1.0
    if spread == 0:
        return 0.0
    n = len(draws)
    return float(2 * stdtr(n - 1, -(loss - mean) / (spread * math.sqrt(1 + 1 / n))))


def _spread(draws: Sequence[float], grain: float) -> tuple[float, float]:
    if len(draws) < 2:
        raise InputError("controls", "at least 2 random lesions", len(draws), "Draw 20.")
    mean = sum(draws) / len(draws)
    return mean, max(grain, math.sqrt(sum((draw - mean) ** 2 for draw in draws) / (len(draws) - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, step by step from the smallest.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Source: Holm 1979.
    """
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


@dataclass(frozen=True)
class Dissociation:
    """What the lesions of units selective for two classes do to both; pairs of numbers are (first, second class).

    Attributes:
        classes: Names of the two.
        own: Loss of each class by its own lesion.
        crossed: Loss of each class by the other's lesion.
        within: Own lesion: loss of the own class less that of the other.
        between: Own class: loss by the own lesion less that by the other's, on the same examples.
        control: Loss of each class by random lesions, with the range of one more.
        beyond: p-value of each own loss against the controls, corrected over all classes.
        adjusted: p-value of the four contrasts together, corrected over all pairs.
        single: p-value of the two contrasts of each side, corrected over both sides of all pairs.
        shared: Units that both lesions have in common, as a share of one.
    """

    classes: tuple[str, str]
    own: tuple[Estimate, Estimate]
    crossed: tuple[Estimate, Estimate]
    within: tuple[Estimate, Estimate]
    between: tuple[Estimate, Estimate]
    control: tuple[Estimate, Estimate]
    beyond: tuple[float, float]
    adjusted: float
    single: tuple[float, float]
    shared: float

    @property
    def verdict(self) -> str:
        """DOUBLE, SINGLE or NONE."""
        if self.adjusted < LEVEL and max(self.beyond) < LEVEL:
            return DOUBLE
        return SINGLE if self.shown else NONE

    @property
    def shown(self) -> tuple[str, ...]:
        """Classes whose own lesion is shown to hurt them more than the other class, lesion, and random lesions."""
        sides = zip(self.classes, self.single, self.beyond, strict=True)
        return tuple(name for name, contrasts, control in sides if contrasts < LEVEL and control < LEVEL)

    @property
    def words(self) -> str:
        """The verdict as a sentence."""
        one, other = self.classes
        if self.verdict == DOUBLE:
            return f"{one} and {other}: double dissociation, each lesion hurts its own class more than the other does."
        if self.verdict == SINGLE:
            return f"{one} and {other}: single dissociation, shown for the lesion of {self.shown[0]} only."
        return f"{one} and {other}: no dissociation is shown."

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        both = ("own", "crossed", "within", "between", "control")
        return {
            "classes": list(self.classes),
            "verdict": self.verdict,
            "words": self.words,
            "p_value": self.adjusted,
            "p_single": list(self.single),
            "p_control": list(self.beyond),
            "shared": self.shared,
            **{key: [estimate.to_dict() for estimate in getattr(self, key)] for key in both},
        }


@dataclass(frozen=True, eq=False)
class Crossing:
    """What is needed to look for dissociations among the lesions of selective units.

    Attributes:
        names: Of the classes; lesion number i is that of units selective for class i.
        changes: Change of each class [class] under each lesion, [lesion][class].
        products: Sum over the examples of class i of (change under lesion i) x (change under lesion j), [i][j].
        controls: Loss of each class under each random lesion, [draw][class].
        shared: Units that two lesions have in common, as a share of one, [i][j].
    """

    names: Sequence[str]
    changes: Sequence[Sequence[Change]]
    products: Sequence[Sequence[float]]
    controls: Sequence[Sequence[float]]
    shared: Mapping[tuple[int, int], float]

    def against(self, own: int, other: int) -> Change:
        """Change of class `own` under its own lesion less that under another's, on the same examples."""
        one, two = self.changes[own][own], self.changes[other][own]
        squares = one.squares + two.squares - 2 * self.products[own][other]
        return Change(one.examples, one.total - two.total, max(0.0, squares), one.reach)

    def draws(self, place: int) -> tuple[list[float], float]:
        """Losses of a class under random lesions, and the least spread that is believed."""
        cell = self.changes[0][place]
        return [draw[place] for draw in self.controls], cell.reach / (2 * cell.examples)


def dissociations(crossing: Crossing) -> tuple[Dissociation, ...]:
    """Every pair of classes, tested.

    Args:
        crossing: Losses of all classes under all lesions.

    Returns:
        One result per pair, in the order of the classes.
    """
    pairs = [(a, b) for a in range(len(crossing.names)) for b in range(a + 1, len(crossing.names))]
    halves = {(a, b): _half(crossing, a, b) for pair in pairs for a, b in (pair, pair[::-1])}
    double = holm([max(halves[a, b].p_value, halves[b, a].p_value) for a, b in pairs])
    single = dict(zip(halves, holm([half.p_value for half in halves.values()]), strict=True))
    beyond = holm([_beyond(crossing, place)[1] for place in range(len(crossing.names))])
    return tuple(
        Dissociation(
            classes=(crossing.names[a], crossing.names[b]),
            own=(crossing.changes[a][a].lost, crossing.changes[b][b].lost),
            crossed=(crossing.changes[b][a].lost, crossing.changes[a][b].lost),
            within=(halves[a, b].within, halves[b, a].within),
            between=(halves[a, b].between, halves[b, a].between),
            control=(_beyond(crossing, a)[0], _beyond(crossing, b)[0]),
            beyond=(beyond[a], beyond[b]),
            adjusted=adjusted,
            single=(single[a, b], single[b, a]),
            shared=crossing.shared[a, b],
        )
        for (a, b), adjusted in zip(pairs, double, strict=True)
    )


@dataclass(frozen=True)
class _Half:
    """One side of a pair: the contrast within the lesion, that within the class, and the larger p-value of both."""

    within: Estimate
    between: Estimate
    p_value: float


def _half(crossing: Crossing, own: int, other: int) -> _Half:
    mine, theirs = crossing.changes[own][own], crossing.changes[own][other]
    (mean, variance), (less, more) = mine.moments, theirs.moments
    raw = theirs.total / theirs.examples - mine.total / mine.examples
    paired = crossing.against(own, other)
    return _Half(
        within=interval(raw, mean - less, variance + more),
        between=paired.lost,
        p_value=max(p_above(mean - less, variance + more), p_above(*paired.moments)),
    )


def _beyond(crossing: Crossing, place: int) -> tuple[Estimate, float]:
    """Random lesions beside the own lesion of a class."""
    own = crossing.changes[place][place]
    draws, grain = crossing.draws(place)
    return control_interval(draws, grain, own.reach), p_control(own.lost.best, draws, grain)
