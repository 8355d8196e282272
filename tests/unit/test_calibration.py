"""Calibration error and likelihood against loops that follow the definitions to the letter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from planaria.core.errors import InputError
from planaria.core.streams import stream
from planaria.measure.calibration import calibration_error, negative_log_likelihood


def drawn(seed: int, rows: int, classes: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    rng = stream(seed, "calibration")
    logits = scale * torch.randn(rows, classes, generator=rng)
    return logits, torch.randint(classes, (rows,), generator=rng)


def honest(seed: int, rows: int, classes: int) -> tuple[Tensor, Tensor]:
    """Labels drawn from the network's own probabilities: perfectly calibrated."""
    rng = stream(seed, "honest")
    logits = 2 * torch.randn(rows, classes, generator=rng)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=rng)[:, 0]


def error_by_loop(logits: Tensor, labels: Tensor, bins: int) -> float:
    """Guo et al. 2017, equation 3: one bin after the other."""
    chances = logits.double().softmax(1).numpy()
    confidence, right = chances.max(1), chances.argmax(1) == labels.numpy()
    total = 0.0
    for bin in range(bins):
        inside = [i for i, c in enumerate(confidence) if bin / bins < c <= (bin + 1) / bins]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            total += len(inside) / len(labels) * abs(accuracy - sum(confidence[i] for i in inside) / len(inside))
    return total


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 6), st.sampled_from([1, 2, 10, 15]))
def test_the_error_is_that_of_the_definition(seed: int, rows: int, classes: int, bins: int) -> None:
    logits, labels = drawn(seed, rows, classes)
    found = calibration_error(logits, labels, bins=bins)
    assert found.best == pytest.approx(error_by_loop(logits, labels, bins), abs=1e-9)
    assert rows == 1 or 0 <= found.low <= found.best <= found.high <= 1


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(2, 6))
def test_the_likelihood_is_that_of_the_definition(seed: int, rows: int, classes: int) -> None:
    logits, labels = drawn(seed, rows, classes)
    by_loop = [-math.log(logits[i].double().softmax(0)[labels[i]]) for i in range(rows)]
    found = negative_log_likelihood(logits, labels)
    assert found.best == pytest.approx(sum(by_loop) / rows)
    assert 0 <= found.low <= found.best <= found.high
    # Log-probabilities mean the same as the logits that they come from.
    assert negative_log_likelihood(logits.log_softmax(1), labels).best == pytest.approx(found.best, abs=1e-5)


def test_a_calibrated_network_has_next_to_no_error_and_an_overconfident_one_has_much() -> None:
    logits, labels = honest(0, 20_000, 4)
    assert calibration_error(logits, labels).best < 0.015
    too_sure = calibration_error(4 * logits, labels)
    assert too_sure.low > 0.15
    assert negative_log_likelihood(4 * logits, labels).low > negative_log_likelihood(logits, labels).high


def test_the_interval_is_as_wide_as_drawing_the_examples_again_says() -> None:
    logits, labels = honest(1, 1500, 3)
    logits = 3 * logits
    found = calibration_error(logits, labels)
    rng = stream(2, "again")
    again = []
    for _ in range(300):
        rows = torch.randint(len(labels), (len(labels),), generator=rng)
        again.append(calibration_error(logits[rows], labels[rows]).best)
    assert (found.high - found.low) / (2 * 1.96 * np.std(again)) == pytest.approx(1, abs=0.15)


def test_the_truth_lies_inside_the_interval_about_as_often_as_promised() -> None:
    logits, labels = honest(3, 200_000, 3)
    logits = 3 * logits
    truth = calibration_error(logits, labels).best
    parts = [calibration_error(logits[i : i + 1000], labels[i : i + 1000]) for i in range(0, 200_000, 1000)]
    assert sum(part.low <= truth <= part.high for part in parts) / len(parts) > 0.9


def test_outputs_that_are_not_finite_are_wrong_and_sure_of_it() -> None:
    logits, labels = torch.tensor([[5.0, 0.0], [float("nan"), 0.0]]), torch.tensor([0, 0])
    sure = torch.tensor([5.0, 0.0]).softmax(0)[0]
    assert calibration_error(logits, labels).best == pytest.approx(
        float(sure) / 2
    )  # one bin: |(1 - sure) + (0 - 1)| / 2
    lost = negative_log_likelihood(logits, labels)
    assert lost.best == math.inf and lost.to_dict() == {"low": None, "best": None, "high": None}


def test_an_example_with_several_labels_counts_once_in_the_interval() -> None:
    logits, labels = drawn(0, 50, 3)
    repeated, many = logits[:, :, None].expand(-1, -1, 4), labels[:, None].expand(-1, 4)
    for measure in (calibration_error, negative_log_likelihood):
        one, several = measure(logits, labels), measure(repeated, many)
        assert [several.low, several.best, several.high] == pytest.approx([one.low, one.best, one.high])


def test_outputs_that_do_not_fit_the_labels_are_refused() -> None:
    for measure in (calibration_error, negative_log_likelihood):
        with pytest.raises(InputError, match=r"network outputs: expected one row of class scores"):
            measure(torch.zeros(4, 3), torch.zeros(5, dtype=torch.long))
    with pytest.raises(InputError, match="at least one bin"):
        calibration_error(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), bins=0)
