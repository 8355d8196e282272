"""Scores: what counts as right, and what does not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planaria.core.errors import InputError
from planaria.measure.scores import ACCURACY, R2, SCORES, Score


def logits_for(answers: list[int], classes: int = 3) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(answers), classes).float()


def test_accuracy_is_the_share_of_right_answers() -> None:
    assert ACCURACY.function(logits_for([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0])) == 0.75


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_with_a_non_finite_output_is_wrong_whatever_its_argmax_says(bad: float) -> None:
    # The argmax of a row with NaN is the first NaN: an all-NaN network would score the share of class 0.
    outputs = torch.full((10, 3), bad)
    assert ACCURACY.function(outputs, torch.zeros(10, dtype=torch.long)) == 0.0
    one_bad = logits_for([0, 0])
    one_bad[0, 2] = bad
    assert ACCURACY.function(one_bad, torch.tensor([0, 0])) == 0.5


def test_chance_counts_the_classes_that_occur() -> None:
    assert ACCURACY.chance(torch.tensor([0, 0, 0, 7])) == 0.5
    assert R2.chance(torch.tensor([0.0, 1.0])) == 0.0


def test_accuracy_of_sequences_counts_every_position() -> None:
    outputs = torch.zeros(2, 3, 4)
    outputs[:, 1] = 1.0
    targets = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert ACCURACY.function(outputs, targets) == 0.75
    assert ACCURACY.per_example is not None
    assert ACCURACY.per_example(outputs, targets).tolist() == [1.0, 0.5]


@given(st.integers(1, 30), st.integers(2, 5), st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_the_mean_of_the_examples_is_the_accuracy(rows: int, classes: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    outputs = torch.randn(rows, classes, generator=rng)
    targets = torch.randint(classes, (rows,), generator=rng)
    assert ACCURACY.per_example is not None
    mean = float(ACCURACY.per_example(outputs, targets).mean())
    assert mean == ACCURACY.function(outputs, targets)
    assert 0.0 <= mean <= 1.0


def test_outputs_without_a_dimension_of_classes_are_refused() -> None:
    with pytest.raises(InputError, match="one row of class scores per label"):
        ACCURACY.function(torch.zeros(4), torch.zeros(4, dtype=torch.long))


def test_r2_is_one_for_exact_zero_for_the_mean_and_negative_below() -> None:
    targets = torch.tensor([1.0, 2.0, 3.0])
    assert R2.function(targets, targets) == 1.0
    assert R2.function(torch.full((3,), 2.0), targets) == 0.0
    assert R2.function(-targets, targets) < 0.0


def test_r2_never_broadcasts_a_column_against_a_row() -> None:
    targets = torch.tensor([1.0, 2.0, 3.0])
    assert R2.function(targets[:, None], targets) == 1.0
    with pytest.raises(InputError, match=r"shape of the targets, \[3\], got \[3, 2\]"):
        R2.function(torch.zeros(3, 2), targets)


def test_r2_of_non_finite_outputs_is_minus_infinity() -> None:
    targets = torch.tensor([1.0, 2.0])
    for bad in (math.nan, math.inf, -math.inf):
        assert R2.function(torch.tensor([1.0, bad]), targets) == -math.inf


def test_r2_of_constant_targets_is_one_only_when_exact() -> None:
    targets = torch.ones(3)
    assert R2.function(targets, targets) == 1.0
    assert R2.function(targets + 0.1, targets) == 0.0


def test_the_repr_of_a_known_score_evaluates_back() -> None:
    for score in SCORES.values():
        assert eval(repr(score), {"SCORES": SCORES}) is score
    assert repr(Score("mine", lambda y, t: 0.0)) == "<Score mine>"
