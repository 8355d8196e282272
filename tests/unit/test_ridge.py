"""Ridge regression from moments against dense least squares, output by output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from planaria.core.streams import stream
from planaria.repair.ridge import RIDGE, solve


def problem(seed: int, rows: int = 200, features: int = 6, outputs: int = 4) -> tuple[Tensor, Tensor]:
    rng = stream(seed, "ridge")
    x = torch.randn(rows, features, generator=rng, dtype=torch.double)
    return x, torch.randn(rows, outputs, generator=rng, dtype=torch.double)


def solved(x: Tensor, error: Tensor, free: Tensor, ridge: float | None) -> Tensor:
    rows = len(x)
    return solve(x.T @ x / rows, x.T @ error / rows, error.square().mean(0), free, rows, ridge)[0]


def twin(x: Tensor, error: Tensor, free: Tensor, ridge: float) -> np.ndarray:
    """Every output by itself, by ordinary least squares with extra rows."""
    answer = np.zeros((x.shape[1], error.shape[1]))
    for j in range(error.shape[1]):
        mine = free[:, j].numpy()
        if not mine.any():
            continue
        a = x.numpy()[:, mine]
        level = ridge * float((a**2).mean())
        a = np.vstack([a, np.sqrt(level * len(x)) * np.eye(a.shape[1])])
        b = np.concatenate([error.numpy()[:, j], np.zeros(int(mine.sum()))])
        answer[mine, j] = np.linalg.lstsq(a, b, rcond=None)[0]
    return answer


@given(st.integers(0, 1000), st.lists(st.booleans(), min_size=24, max_size=24), st.sampled_from([1e-6, 1e-3, 0.3]))
def test_outputs_that_read_different_features_are_each_solved_on_their_own(
    seed: int, free: list[bool], ridge: float
) -> None:
    x, error = problem(seed)
    chosen = torch.tensor(free).view(6, 4)
    assert np.allclose(solved(x, error, chosen, ridge).numpy(), twin(x, error, chosen, ridge), atol=1e-9)


def test_pinned_coefficients_stay_exactly_zero() -> None:
    x, error = problem(1)
    free = torch.rand(6, 4, generator=stream(0, "free")) < 0.5
    assert bool((solved(x, error, free, 1e-4)[~free] == 0).all())


def test_the_usual_ridge_is_taken_where_rows_are_many() -> None:
    x, error = problem(2, rows=400)
    free = torch.ones(6, 4, dtype=torch.bool)
    assert torch.equal(solved(x, error, free, None), solved(x, error, free, RIDGE))


@pytest.mark.parametrize("mixed", [False, True])
def test_few_rows_are_shrunk_more_than_many(mixed: bool) -> None:
    x, error = problem(3, rows=8)
    free = torch.ones(6, 4, dtype=torch.bool)
    free[0, 0] = not mixed
    # Noise has nothing to teach: cross-validation must shrink it away rather than fit it.
    assert float(solved(x, error, free, None).norm()) < float(solved(x, error, free, RIDGE).norm())


def test_a_singular_moment_has_a_finite_solution() -> None:
    x = torch.ones(50, 3, dtype=torch.double)
    error = torch.ones(50, 2, dtype=torch.double)
    for free in (torch.ones(3, 2, dtype=torch.bool), torch.tensor([[True, False], [True, True], [False, True]])):
        answer = solved(x, error, free, 1e-12)
        assert bool(answer.isfinite().all())
        assert torch.allclose(x @ answer, error, atol=1e-3)
    dark = solved(torch.zeros(50, 3, dtype=torch.double), error, torch.ones(3, 2, dtype=torch.bool), None)
    assert bool((dark == 0).all())


@pytest.mark.parametrize(("mixed", "rows", "cubes"), [(False, 400, 1 / 3), (False, 8, 4.5), (True, 400, 4 / 3)])
def test_the_bill_names_what_was_factorised(mixed: bool, rows: int, cubes: float) -> None:
    x, error = problem(5, rows)
    free = torch.ones(6, 4, dtype=torch.bool)
    if mixed:
        free[torch.arange(4), torch.arange(4)] = False
    spent = solve(x.T @ x / rows, x.T @ error / rows, error.square().mean(0), free, rows, None)[1]
    assert spent == int(cubes * 6**3) + 2 * 6**2 * 4
