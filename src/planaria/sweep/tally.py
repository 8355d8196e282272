"""Tallies: what many damaged versions of one network have cost, as sums over examples that add up in any order.

For each lesion: the sum over examples of (score of the example with the lesion - without it), how many examples rose
and fell, and the sum of the squared changes, from which paired intervals follow. Tallies of disjoint inputs add, so
that a sweep may be split over inputs, processes and machines without changing its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planaria.core.errors import InputError
from planaria.measure.scores import Score


@dataclass(frozen=True, eq=False)
class Judge:
    """How outputs are scored, example by example.

    Args:
        score: A score that is a mean over examples (`per_example` is given).
        classes: Number of classes where targets are labels and changes are also counted per class; else None.

    Raises:
        InputError: The score is no mean over examples.
    """

    score: Score
    classes: int | None = None

    def __post_init__(self) -> None:
        if self.score.per_example is None:
            raise InputError(
                f"score {self.score.name!r}",
                "a score that is a mean over examples",
                "one without `per_example`",
                "Give Score(per_example=...), or ask for the outputs.",
            )

    @property
    def counts_predictions(self) -> bool:
        """Whether only the place of the largest output matters, so that a prediction proven unchanged is enough."""
        return self.score.of_answers

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Score of each example.

        Args:
            outputs: [examples, ...].
            targets: [examples, ...].

        Returns:
            [examples], double precision.

        Raises:
            InputError: The score gives other than one number per example.
        """
        assert self.score.per_example is not None
        values = self.score.per_example(outputs, targets).double()
        if values.shape != outputs.shape[:1]:
            raise InputError(
                f"Score.per_example of {self.score.name!r}",
                f"one number per example, {list(outputs.shape[:1])}",
                list(values.shape),
                "Take the mean over everything but the examples.",
            )
        return values


@dataclass(frozen=True, eq=False)
class Tally:
    """Changes of the score, summed over examples, for an array of lesions.

    Attributes:
        total: Sum of the changes, any shape, double.
        rose: Examples whose score rose, whole numbers of that shape.
        fell: Examples whose score fell.
        squares: Sum of the squared changes.
        by_class: [..., classes], the sum of the changes of each class's examples; None where not wanted.

    Example:
        >>> tally = Tally.zeros((2,))
        >>> tally.note(1, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([0, 1]))
        >>> (tally + tally).total, (tally + tally).fell
        (tensor([ 0., -2.], dtype=torch.float64), tensor([0, 2]))
    """

    total: Tensor
    rose: Tensor
    fell: Tensor
    squares: Tensor
    by_class: Tensor | None = None

    @staticmethod
    def zeros(shape: Sequence[int], classes: int | None = None, device: torch.device | str = "cpu") -> Tally:
        """Nothing counted yet.

        Args:
            shape: Of the array of lesions.
            classes: Number of classes to count apart; None for no such counts.
            device: Where the counts are kept.
        """
        real = {"dtype": torch.float64, "device": device}
        whole = {"dtype": torch.int64, "device": device}
        return Tally(
            torch.zeros(*shape, **real),  # type: ignore[call-overload]
            torch.zeros(*shape, **whole),  # type: ignore[call-overload]
            torch.zeros(*shape, **whole),  # type: ignore[call-overload]
            torch.zeros(*shape, **real),  # type: ignore[call-overload]
            None if classes is None else torch.zeros(*shape, classes, **real),  # type: ignore[call-overload]
        )

    def note(self, places: int | Sequence[int], values: Tensor, intact: Tensor, targets: Tensor) -> None:
        """Count the scores of one or several lesions on some examples, in place.

        Args:
            places: Of the lesions in the flattened array of lesions; a number: of the first, the others follow.
            values: Scores with each lesion, [examples] or [lesions, examples].
            intact: Scores without, [examples].
            targets: Labels [examples]; read only where changes are counted per class.
        """
        change = (values.to(torch.float64) - intact).reshape(-1, len(intact)).to(self.total.device)
        here: Any = places
        if isinstance(places, int):
            here = slice(places, places + len(change))
        self.total.view(-1)[here] += change.sum(1)
        self.rose.view(-1)[here] += (change > 0).sum(1)
        self.fell.view(-1)[here] += (change < 0).sum(1)
        self.squares.view(-1)[here] += change.square().sum(1)
        if self.by_class is not None:
            by_class = self.by_class.view(-1, self.by_class.shape[-1])
            sums = change.new_zeros(len(change), by_class.shape[1])
            by_class[here] += sums.index_add_(1, targets.to(sums.device), change)

    def note_pairs(self, lesions: Tensor, change: Tensor, targets: Tensor) -> None:
        """Count changes of many (lesion, example) pairs, in place; pairs that did not change may be left out.

        Args:
            lesions: Place in the flattened array of lesions, [pairs].
            change: Change of the example's score, [pairs].
            targets: Label of the pair's example, [pairs]; read only where changes are counted per class.
        """
        where = self.total.device
        lesions, change = lesions.to(where), change.to(where, torch.float64)
        self.total.view(-1).index_add_(0, lesions, change)
        self.rose.view(-1).index_add_(0, lesions, (change > 0).long())
        self.fell.view(-1).index_add_(0, lesions, (change < 0).long())
        self.squares.view(-1).index_add_(0, lesions, change * change)
        if self.by_class is not None:
            classes = self.by_class.shape[-1]
            self.by_class.view(-1).index_add_(0, lesions * classes + targets.to(where), change)

    def __add__(self, other: Tally) -> Tally:
        """Counts over both sets of examples."""
        both = None
        if self.by_class is not None and other.by_class is not None:
            both = self.by_class + other.by_class
        return Tally(
            self.total + other.total,
            self.rose + other.rose,
            self.fell + other.fell,
            self.squares + other.squares,
            both,
        )

    def shaped(self, shape: Sequence[int]) -> Tally:
        """The same counts for an array of lesions of another shape."""
        by_class = None if self.by_class is None else self.by_class.view(*shape, self.by_class.shape[-1])
        shape = tuple(shape)
        return Tally(
            self.total.view(shape), self.rose.view(shape), self.fell.view(shape), self.squares.view(shape), by_class
        )

    def to(self, device: torch.device | str) -> Tally:
        """The same counts on a device."""
        by_class = None if self.by_class is None else self.by_class.to(device)
        return Tally(
            self.total.to(device), self.rose.to(device), self.fell.to(device), self.squares.to(device), by_class
        )
