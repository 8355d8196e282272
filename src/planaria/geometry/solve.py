"""Solving (B + mu) y = b for a symmetric matrix B of which only products are known, and saying how well it went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from planaria.core.motion import Cost
from planaria.core.streams import stream
from planaria.core.trees import Weights

Apply = Callable[[Tensor], Tensor]
"""A linear map of vectors [n]."""

SKETCH = 1 << 29
"""Bytes that a preconditioner may keep."""


@dataclass(frozen=True)
class Gram:
    """Solve through the Gram matrix of the outputs, as large as inputs times outputs, and refine.

    Args:
        passes: Refinements at most; each costs two products.

    Source: the identity of Woodbury, 1950; iterative refinement: Wilkinson, 1963.
    """

    passes: int = 6


@dataclass(frozen=True)
class ConjugateGradients:
    """Solve by products alone.

    Args:
        steps: Products at most.
        rank: Of the randomised preconditioner, which costs as many products once per metric; 0 for none.

    Source: Hestenes and Stiefel, 1952; the preconditioner: Frangella, Tropp and Udell, 2023.
    """

    steps: int = 500
    rank: int = 0


@dataclass(frozen=True, eq=False)
class Solution:
    """Solution x of (g + mu P^-1) x = b, P = plasticity.

    Attributes:
        direction: x, zero at pinned entries.
        mu: Damping, in the units of g.
        residual: Length of what is left of b, relative to b, each entry weighed by the root of its plasticity; computed
            afresh at the end.
        steps: Refinements, or steps of conjugate gradients.
        by: How it was found: "gram", "gram, eigenvalues" (a Gram matrix too singular for a Cholesky factor),
            "gram, then conjugate gradients", or "conjugate gradients".
        converged: Whether the residual is within the tolerance.
        reason: If not, why; else "".
        cost: What it took.
    """

    direction: Weights
    mu: float
    residual: float
    steps: int
    by: str
    converged: bool
    reason: str
    cost: Cost

    def to_dict(self) -> dict[str, Any]:
        """All but the direction, as plain values."""
        said = {name: value for name, value in vars(self).items() if name not in {"direction", "cost"}}
        return {**said, "cost": dict(vars(self.cost))}

    def __str__(self) -> str:
        end = "" if self.converged else f"; not converged: {self.reason}"
        return f"solved by {self.by} in {self.steps} steps, residual {self.residual:.1e}, mu {self.mu:.3g}{end}"


@dataclass(frozen=True, eq=False)
class Found:
    """A vector with how it was found.

    Attributes:
        vector: y [n].
        residual: |b - (B + mu) y| / |b|.
        steps: Taken.
        products: With B.
        reason: Why it did not get to the tolerance, "" if it did.
    """

    vector: Tensor
    residual: float
    steps: int
    products: int
    reason: str


NEGATIVE = "negative curvature: along some direction g + mu is not positive; take more damping"
PRECISION = "rounding: it stopped shrinking; take more damping, or a network in double precision"


def refined(apply: Apply, inverse: Apply, b: Tensor, mu: float, tolerance: float, passes: int) -> Found:
    """Solve by an inverse that is exact up to rounding, and again for what is left.

    Args:
        apply: y -> B y.
        inverse: Nearly b -> (B + mu)^-1 b.
        b: [n], not zero.
        mu: Damping.
        tolerance: Residual that is small enough.
        passes: Refinements at most.
    """
    size = _length(b)
    y, left = torch.zeros_like(b), b
    best, shrunk, steps = y, 1.0, 0
    while steps <= passes:
        steps += 1
        y = y + inverse(left)
        left = b - apply(y) - mu * y
        residual = _length(left) / size
        if not residual < 0.7 * shrunk:
            if residual < shrunk:
                best, shrunk = y, residual
            break
        best, shrunk = y, residual
        if shrunk <= tolerance:
            break
    return Found(best, shrunk, steps, 2 * steps, "" if shrunk <= tolerance else PRECISION)


def conjugate_gradients(
    apply: Apply,
    b: Tensor,
    mu: float,
    tolerance: float,
    steps: int,
    *,
    start: Tensor | None = None,
    inverse: Apply | None = None,
) -> Found:
    """Preconditioned conjugate gradients, which notice negative curvature and check their residual at the end.

    Args:
        apply: y -> B y.
        b: [n], not zero.
        mu: Damping.
        tolerance: Residual that is small enough.
        steps: At most.
        start: Where to begin; by default at zero.
        inverse: The preconditioner, a positive map near (B + mu)^-1.

    Source: Hestenes and Stiefel, 1952.
    """
    size = _length(b)
    y = torch.zeros_like(b) if start is None else start
    products, done, reason = 0, 0, ""
    left = b
    if start is not None:
        left, products = b - apply(y) - mu * y, 1
    best, least = y, _length(left) / size
    while least > tolerance and done < steps and not reason:
        before = least
        y, left, taken, reason = _run(apply, inverse, best, left, mu, tolerance * size, steps - done)
        done += taken
        # What the recurrence believes to be left drifts from what is left.
        left = b - apply(y) - mu * y
        products += taken + 1
        residual = _length(left) / size
        if residual < least:
            best, least = y, residual
        else:
            left = b - apply(best) - mu * best
            products += 1
        if not reason and least > tolerance and done < steps and not least < 0.5 * before:
            reason = PRECISION
    if least <= tolerance:
        reason = ""
    elif not reason:
        reason = f"{done} steps were not enough; allow more, or take more damping"
    return Found(best, least, done, products, reason)


def _run(
    apply: Apply, inverse: Apply | None, y: Tensor, left: Tensor, mu: float, enough: float, steps: int
) -> tuple[Tensor, Tensor, int, str]:
    ahead = left if inverse is None else inverse(left)
    direction, power = ahead, _inner(left, ahead)
    if not power > 0:
        return y, left, 0, PRECISION
    for step in range(1, steps + 1):
        image = apply(direction) + mu * direction
        curvature = _inner(direction, image)
        if not curvature > 0:
            return y, left, step, NEGATIVE
        y = y + (power / curvature) * direction
        left = left - (power / curvature) * image
        if _length(left) <= enough:
            return y, left, step, ""
        ahead = left if inverse is None else inverse(left)
        now = _inner(left, ahead)
        if not now > 0:
            return y, left, step, ""
        direction, power = ahead + (now / power) * direction, now
    return y, left, steps, ""


@dataclass(frozen=True, eq=False)
class Nystrom:
    """B by its largest eigenvalues, from products with random vectors.

    Attributes:
        vectors: [n, rank], orthonormal.
        values: [rank], descending.

    Source: Frangella, Tropp and Udell, Randomized Nystrom preconditioning, 2023, algorithms 2.1 and 5.1.
    """

    vectors: Tensor
    values: Tensor

    @staticmethod
    def of(apply: Apply, like: Tensor, rank: int) -> Nystrom:
        """Sketch of a positive B.

        Args:
            apply: y -> B y; vectors like the second argument.
            like: [n], of the vectors' kind; zero where B is.
            rank: Products to spend; fewer where they would take too much memory.
        """
        rank = max(1, min(rank, like.numel() // 2, SKETCH // (like.numel() * like.element_size())))
        drawn = torch.randn(like.numel(), rank, generator=stream(0, "Nystrom"), dtype=torch.float32)
        basis = torch.linalg.qr(drawn.to(like)).Q
        images = torch.stack([apply(column) for column in basis.unbind(1)], 1)
        shift = torch.finfo(like.dtype).eps * float(images.norm())
        images = images + shift * basis
        small = basis.T @ images
        values, vectors = torch.linalg.eigh((small + small.T) / 2)
        halves = images @ (vectors / values.clamp(min=shift or 1.0).sqrt())
        left, sizes, _ = torch.linalg.svd(halves, full_matrices=False)
        return Nystrom(left, (sizes**2 - shift).clamp(min=0))

    def inverse(self, mu: float) -> Apply:
        """The preconditioner at this damping."""
        least = self.values[-1] + mu

        def applied(r: Tensor) -> Tensor:
            along = self.vectors.T @ r
            return r + self.vectors @ (along * (least / (self.values + mu) - 1.0))

        return applied


def dual_inverse(kernel: Tensor, mu: float) -> tuple[Apply, str]:
    """(K + mu)^-1 as a map of output vectors, and how: by a Cholesky factor, in double precision or by eigenvalues.

    Args:
        kernel: K [r, r], symmetric and positive up to rounding.
        mu: Damping, positive.
    """
    for dtype in dict.fromkeys((kernel.dtype, torch.float64)):
        damped = kernel.to(dtype, copy=True)
        damped.diagonal().add_(mu)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if int(failed) == 0 and bool(torch.isfinite(factor.diagonal()).all()):
            return partial(_by_factor, factor), "gram"
    values, vectors = torch.linalg.eigh(kernel.double())
    shrunk = 1.0 / (values.clamp(min=0) + mu)
    return lambda s: (vectors @ (shrunk * (vectors.T @ s.double()))).to(s.dtype), "gram, eigenvalues"


def _by_factor(factor: Tensor, s: Tensor) -> Tensor:
    return torch.cholesky_solve(s[:, None].to(factor), factor)[:, 0].to(s)


def _inner(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a, b)) if a.dtype == torch.float64 else float((a.double() * b).sum())


def _length(a: Tensor) -> float:
    return float(torch.linalg.vector_norm(a, dtype=torch.float64))
