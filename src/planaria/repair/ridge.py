"""Ridge regression from second moments, with outputs that may read different features."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RIDGE = 1e-4
"""Usual ridge, where there are rows enough."""
FEW_ROWS = 20
"""Rows per feature below which the ridge is cross-validated."""
GRID = tuple(10.0 ** (power / 4) for power in range(-20, 9))
"""Ridges that cross-validation chooses from."""
_FACTOR, _SPECTRUM = 1 / 3, 4.5
"""Multiply-adds over n^3 of a Cholesky factor, and of eigenvalues with their vectors (Golub and Van Loan, 2013)."""
_CHUNK = 2**24
"""Numbers in a batch of matrices that are factorised at once."""


def solve(
    moment: Tensor, across: Tensor, energy: Tensor, free: Tensor, rows: int, ridge: float | None
) -> tuple[Tensor, int, float]:
    """Coefficients c of the ridge regression: least mean |error - features c|^2 + lambda |c|^2, output by output.

    Args:
        moment: Mean of features^T features [features, features], double precision.
        across: Mean of features^T error [features, outputs].
        energy: Mean square of the error [outputs].
        free: Which coefficients may differ from 0 [features, outputs].
        rows: Rows that the means were taken over.
        ridge: lambda over the mean diagonal of the moments of an output's own features; None: RIDGE, or the value of
            least generalised cross-validation error where rows are few.

    Returns:
        [features, outputs], the multiply-adds spent, and the ridge.
    """
    solution = torch.zeros_like(across)
    chosen = free.any(0).nonzero().flatten()
    if not len(chosen):
        return solution, 0, RIDGE if ridge is None else ridge
    first = free[:, chosen[0]]
    if bool((free[:, chosen] == first[:, None]).all()):
        kept = first.nonzero().flatten()
        part, right = moment[kept][:, kept], across[kept][:, chosen]
        solution[kept[:, None], chosen], used = _one(part, right, float(energy[chosen].sum()), rows, ridge)
        cubes = _SPECTRUM if ridge is None and rows < FEW_ROWS * len(kept) else _FACTOR
        return solution, int(cubes * len(kept) ** 3) + 2 * len(kept) ** 2 * len(chosen), used
    patterns, which = torch.unique(free[:, chosen], dim=1, return_inverse=True)
    spent = int(patterns.shape[1] * _FACTOR * len(moment) ** 3) + 2 * len(moment) ** 2 * len(chosen)
    if ridge is None and rows < FEW_ROWS * len(moment):
        # One ridge for all patterns, from the regression on every feature that any output may read.
        union = free.any(1).nonzero().flatten()
        values, vectors = torch.linalg.eigh(moment[union][:, union])
        squares = (vectors.T @ across[union][:, chosen]).square().sum(1)
        spent += int(_SPECTRUM * len(union) ** 3) + len(union) ** 2 * len(chosen)
        ridge = _cross_validated(values.clamp_min(0.0), squares, float(energy[chosen].sum()), rows)
    ridge = RIDGE if ridge is None else ridge
    size = max(1, _CHUNK // len(moment) ** 2)
    for start in range(0, patterns.shape[1], size):
        living = patterns[:, start : start + size].T.to(moment.dtype)
        # Features that are not read are left in as ones on the diagonal, so that all systems have one size.
        damped = moment * living[:, :, None] * living[:, None, :]
        scale = (moment.diagonal() * living).sum(1) / living.sum(1).clamp_min(1.0)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        lifted = living * ridge * scale[:, None] + (1.0 - living)
        damped = damped + torch.diag_embed(lifted)
        factors, failed = torch.linalg.cholesky_ex(damped)
        for place in range(len(living)):
            mine = chosen[which == start + place]
            right = across[:, mine] * living[place][:, None]
            solution[:, mine] = _finish(damped[place], factors[place], int(failed[place]), right)
    return solution, spent, ridge


def _one(moment: Tensor, across: Tensor, energy: float, rows: int, ridge: float | None) -> tuple[Tensor, float]:
    """The solution, and its ridge, where all outputs read the same features."""
    # A moment of nothing but zeros (all units dead) must still be solvable.
    scale = float(moment.diagonal().mean()) or 1.0
    if ridge is None and rows < FEW_ROWS * len(moment):
        values, vectors = torch.linalg.eigh(moment)
        values = values.clamp_min(0.0)
        rotated = vectors.T @ across
        ridge = _cross_validated(values, rotated.square().sum(1), energy, rows)
        shrunk = 1.0 / (values + ridge * scale)
        return vectors @ (rotated * shrunk[:, None]), ridge
    ridge = RIDGE if ridge is None else ridge
    damped = moment.clone()
    damped.diagonal().add_(ridge * scale)
    factor, failed = torch.linalg.cholesky_ex(damped)
    return _finish(damped, factor, int(failed), across), ridge


def _finish(damped: Tensor, factor: Tensor, failed: int, across: Tensor) -> Tensor:
    """Solution from a Cholesky factor, or by least squares where rounding has made the moments indefinite."""
    if not failed:
        return torch.cholesky_solve(across, factor)
    # On the CPU: elsewhere torch takes every matrix for one of full rank.
    found: Tensor = torch.linalg.lstsq(damped.cpu(), across.cpu(), driver="gelsd").solution
    return found.to(across.device)


def _cross_validated(values: Tensor, squares: Tensor, energy: float, rows: int) -> float:
    """Ridge with the least generalised cross-validation error: residual / (1 - degrees of freedom / rows)^2.

    Args:
        values: Eigenvalues of the moment.
        squares: Squared norm of the cross-moment along each eigenvector.
        energy: Mean square of what is to be explained.
        rows: Number of rows.

    Source: Golub, Heath and Wahba, 1979.
    """
    scale = float(values.mean()) or 1.0
    best, least = GRID[-1], math.inf
    for ridge in GRID:
        shrunk = 1.0 / (values + ridge * scale)
        residual = energy - float((squares * shrunk * (2 - values * shrunk)).sum())
        freedom = 1.0 - float((values * shrunk).sum()) / rows
        if freedom > 0.01 and residual / freedom**2 < least:
            best, least = ridge, residual / freedom**2
    return best
