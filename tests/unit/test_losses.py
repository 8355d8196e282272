"""Losses: means over a batch that training lowers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from planaria.core.errors import InputError
from planaria.core.streams import stream
from planaria.measure.labels import IGNORED
from planaria.measure.losses import LOSSES, cosine, cross_entropy, mse
from planaria.measure.scores import NLL, SIMILARITY
from planaria.measure.task import Task


@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 2**31))
@settings(deadline=None, max_examples=25)
def test_cross_entropy_is_the_mean_over_the_labels_that_count(rows: int, classes: int, seed: int) -> None:
    rng = stream(seed, "losses")
    outputs = torch.randn(rows, classes, 7, generator=rng, dtype=torch.float64)
    labels = torch.randint(classes, (rows, 7), generator=rng)
    labels[:, 1:][torch.rand(rows, 6, generator=rng) < 0.5] = IGNORED
    pairs = [(outputs[i, :, j], int(labels[i, j])) for i in range(rows) for j in range(7) if labels[i, j] != IGNORED]
    slow = sum(float(row.logsumexp(0) - row[label]) for row, label in pairs) / len(pairs)
    assert float(cross_entropy(outputs, labels)) == pytest.approx(slow)
    assert float(cross_entropy(outputs.movedim(1, -1), labels)) == pytest.approx(slow)


def test_cross_entropy_of_one_label_per_example_is_torch_s_and_minus_the_score() -> None:
    rng = stream(1, "losses")
    outputs, labels = torch.randn(8, 5, generator=rng), torch.arange(8) % 5
    assert torch.equal(cross_entropy(outputs, labels), nn.functional.cross_entropy(outputs, labels))
    assert float(cross_entropy(outputs, labels)) == pytest.approx(-NLL.function(outputs, labels), abs=1e-6)
    shares = torch.rand(8, 5, generator=rng)
    assert torch.equal(cross_entropy(outputs, shares), nn.functional.cross_entropy(outputs, shares))


def test_no_gradient_flows_to_what_is_ignored() -> None:
    outputs = torch.randn(3, 6, 4, generator=stream(2, "losses")).requires_grad_()
    labels = torch.zeros(3, 6, dtype=torch.long)
    labels[:, 4:] = IGNORED
    cross_entropy(outputs, labels).backward()
    assert outputs.grad is not None
    assert bool((outputs.grad[:, 4:] == 0).all()) and bool((outputs.grad[:, :4] != 0).any(2).all())


def test_shapes_that_do_not_fit_are_refused() -> None:
    labels = torch.zeros(4, 3, dtype=torch.long)
    with pytest.raises(InputError, match="one row of class scores per label"):
        cross_entropy(torch.zeros(4, 5), labels)
    with pytest.raises(InputError, match="which dimension holds the classes"):
        cross_entropy(torch.zeros(4, 3, 3), labels)
    for loss in (mse, cosine):
        with pytest.raises(InputError, match="shape of the targets"):
            loss(torch.zeros(4, 5), torch.zeros(4, 3))


def test_the_cosine_loss_is_one_minus_the_similarity_and_blind_to_length() -> None:
    rng = stream(3, "losses")
    outputs, targets = torch.randn(6, 5, generator=rng), torch.randn(6, 5, generator=rng)
    assert float(cosine(outputs, targets)) == pytest.approx(1 - SIMILARITY.function(outputs, targets), abs=1e-6)
    assert float(cosine(7 * outputs, targets)) == pytest.approx(float(cosine(outputs, targets)), abs=1e-6)
    assert float(cosine(targets.double(), targets)) == pytest.approx(0.0, abs=1e-6)
    assert float(cosine(-targets, targets)) == pytest.approx(2.0)
    zeros = torch.zeros(6, 5, requires_grad=True)
    cosine(zeros, targets).backward()
    assert zeros.grad is not None and bool(zeros.grad.isfinite().all())


def test_a_step_along_the_gradient_lowers_every_loss() -> None:
    rng = stream(4, "losses")
    for name, loss in LOSSES.items():
        outputs = torch.randn(6, 4, generator=rng).requires_grad_()
        targets = torch.arange(6) % 4 if name == "cross_entropy" else torch.randn(6, 4, generator=rng)
        before = loss(outputs, targets)
        (slope,) = torch.autograd.grad(before, outputs)
        assert before.ndim == 0 and bool(before.isfinite())
        assert bool(loss(outputs - 0.1 * slope, targets) < before)


def test_a_loss_is_found_by_name_and_recorded() -> None:
    x = torch.randn(20, 3, generator=stream(5, "losses"))
    task = Task.of("mine", (x, x), (x, x), loss="cosine", score="similarity")
    assert task.loss is cosine and task.record()["loss"] == "cosine"
    assert task.score(lambda rows: 2 * rows) == pytest.approx(1.0)
    with pytest.raises(InputError, match="Did you mean cosine"):
        Task.of("mine", (x, x), (x, x), loss="cosin")


def test_labels_without_an_output_are_refused_and_not_a_bare_index_error() -> None:
    with pytest.raises(InputError, match=r"labels from 0 to 2.*up to 5"):
        cross_entropy(torch.zeros(2, 3), torch.tensor([1, 5]))
