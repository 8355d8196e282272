"""Spectrum of a metric: how many directions of weight space the outputs can see, and how many are free."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from planaria.core.errors import InputError
from planaria.core.trees import Weights
from planaria.measure.statistics import Estimate, finite, mean_interval

BASIS = 1 << 31
"""Bytes that the vectors of a Lanczos run may take."""

PAIRS = 1e-4
"""Residual of an eigenpair, relative to the largest eigenvalue, at which Lanczos stops."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of a metric on its plastic entries, largest first.

    Args:
        values: [k], in double precision on the CPU.
        vectors: Directions of the first of them: orthonormal, zero at pinned entries.
        entries: n, number of plastic entries.
        complete: Whether all other eigenvalues are below what is resolved; they need not be zero.
        rank: Most eigenvalues that can differ from zero.
        residuals: |g v - lambda v| / lambda_max of each vector.
        trace: Sum of all eigenvalues.
        resolved: Size below which rounding hides eigenvalues; to about this the others are known.

    Example:
        >>> spectrum = Spectrum(torch.tensor([4.0, 1.0, 0.01]), (), entries=10, complete=True, rank=3)
        >>> spectrum.stiff(0.05), round(spectrum.effective_dimension(1.0).best, 2)
        (2, 1.31)
    """

    values: Tensor
    vectors: tuple[Weights, ...]
    entries: int
    complete: bool
    rank: int
    residuals: tuple[float, ...] = ()
    trace: Estimate | None = None
    resolved: float = 0.0

    def stiff(self, tau: float) -> int:
        """Number of eigenvalues above tau * lambda_max.

        Args:
            tau: Above 0, below 1.

        Raises:
            InputError: So many that not all of them are known, or so small that rounding hides some.
        """
        if not 0 < tau < 1:
            raise InputError("Spectrum.stiff(tau)", "a number above 0 and below 1", tau)
        if not len(self.values):
            return 0
        count = int((self.values > tau * float(self.values[0])).sum())
        if count == len(self.values) and not self.complete:
            raise InputError(
                "Spectrum.stiff(tau)",
                f"more than {count} known eigenvalues",
                f"the {count}th still {float(self.values[-1] / self.values[0]):.2g} of the largest",
                "Ask eigh for more.",
            )
        if tau * float(self.values[0]) < self.resolved and len(self.values) < self.rank:
            least = self.resolved / float(self.values[0])
            remedy = "Below that, rounding hides them: take the network and inputs in double precision."
            raise InputError("Spectrum.stiff(tau)", f"at least {least:.2g}", tau, remedy)
        return count

    def effective_dimension(self, mu: float) -> Estimate:
        """Sum over the eigenvalues of lambda / (lambda + mu): directions that the outputs see beyond mu.

        Where only the largest eigenvalues are known, the interval holds whatever the others are: each is at most the
        smallest that is known, or what is resolved, and together they make the rest of the trace (the estimate of it,
        where that is one). For a mu far below what is resolved, the interval is wide.

        Args:
            mu: In the units of the eigenvalues, above 0.

        Source: effective dimension of ridge regression: Zhang, 2005.
        """
        if not (isinstance(mu, (int, float)) and mu > 0 and math.isfinite(mu)):
            raise InputError("Spectrum.effective_dimension(mu)", "a number above 0", mu)
        values = self.values.clamp(min=0)
        known = float((values / (values + mu)).sum())
        others = max(0, self.rank - len(values))
        last = self.resolved if self.complete else float(values[-1]) if len(values) else math.inf
        if not others or last == 0:
            return Estimate(known, known, known)
        most = others * (last / (last + mu) if math.isfinite(last) else 1.0)
        least = 0.0
        if self.trace is not None:
            so_far = float(values.sum())
            # Concave in each eigenvalue: most if all others are alike, least if few are as large as they can be.
            share = (max(0.0, self.trace.high - so_far) + self.resolved) / others
            if math.isfinite(share):
                most = min(most, others * share / (share + mu))
            below = max(0.0, self.trace.low - so_far - self.resolved) if math.isfinite(self.trace.low) else 0.0
            least = min(most, below / (last + mu)) if math.isfinite(last) else 0.0
        return Estimate(known + least, known + (least + most) / 2, known + most)

    def resilient_fraction(self, mu: float) -> Estimate:
        """Share of the plastic directions that the outputs do not see beyond mu: 1 - effective_dimension(mu) / n.

        Args:
            mu: As for `effective_dimension`.
        """
        seen = self.effective_dimension(mu)
        low, best, high = (1.0 - d / max(1, self.entries) for d in (seen.high, seen.best, seen.low))
        return Estimate(low, best, high)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the vectors."""
        said = {
            "values": self.values.tolist(),
            "vectors": len(self.vectors),
            "entries": self.entries,
            "complete": self.complete,
            "rank": self.rank,
            "residuals": list(self.residuals),
            "trace": None if self.trace is None else self.trace.to_dict(),
            "resolved": self.resolved,
        }
        plain: dict[str, Any] = finite(said)
        return plain

    def __str__(self) -> str:
        if not len(self.values):
            return f"a metric of {self.entries:,} entries that is zero"
        kind = f"of at most {self.rank:,} that are not zero"
        if self.complete:
            kind = f"all above {self.resolved:.2g}" if self.resolved else "all that are not zero"
        largest, least = float(self.values[0]), float(self.values[-1])
        return f"{len(self.values)} eigenvalues from {largest:.3g} to {least:.3g}, {kind}, of {self.entries:,} entries"


def eigenvalues(matrix: Tensor) -> Tensor:
    """All eigenvalues of a symmetric matrix, descending; on the CPU by LAPACK's evr, which is quicker than torch's."""
    if matrix.device.type != "cpu":
        found: Tensor = torch.linalg.eigvalsh(matrix)
        return found.flip(0)
    from scipy.linalg import eigh

    values = eigh(matrix.numpy(), eigvals_only=True, driver="evr", check_finite=False)
    return torch.from_numpy(values).flip(0)


def lanczos(
    apply: Callable[[Tensor], Tensor], start: Callable[[], Tensor], k: int, limit: int, tolerance: float = PAIRS
) -> tuple[Tensor, Tensor, Tensor]:
    """The k eigenvalues of largest size of a symmetric map, by Lanczos with full re-orthogonalisation.

    Args:
        apply: y -> B y.
        start: Draws a vector [n], zero where no vector may be.
        k: How many.
        limit: Dimension of the space; no more products than this.
        tolerance: Stop when every residual is below this share of the largest eigenvalue.

    Returns:
        Values [k] descending, in double precision; vectors [k, n]; residuals [k], relative to the largest value. Fewer
        where the map has fewer that are not zero.

    Raises:
        InputError: The vectors would take too much memory.

    Source: Lanczos, 1950; Paige, 1972.

    Not guaranteed: how often an eigenvalue occurs that occurs several times.
    """
    vector = start()
    vector = vector / vector.norm()
    room = BASIS // (vector.numel() * vector.element_size())
    most = min(limit, 10 * k + 100)
    if room < min(limit, k + 10):
        raise InputError(
            "Metric.eigh(k)",
            f"at most {max(0, room - 10)} eigenvectors of {vector.numel():,} weights in memory",
            k,
            "Ask for fewer, or take fewer inputs, so that the Gram matrix is small.",
        )
    most = min(most, room)
    basis = torch.empty(min(most, 2 * k + 20), vector.numel(), dtype=vector.dtype, device=vector.device)
    diagonal: list[float] = []
    beside: list[float] = []
    epsilon = torch.finfo(vector.dtype).eps
    values, corner = torch.zeros(0, dtype=torch.float64), torch.zeros(0, 0, dtype=torch.float64)
    count = 0
    while count < most:
        if count == len(basis):
            basis = torch.cat([basis, torch.empty_like(basis[: most - count])])
        basis[count] = vector
        image = apply(vector)
        diagonal.append(float((image.double() * vector).sum()))
        count += 1
        known = basis[:count]
        for _ in range(2):
            image = image - known.T @ (known @ image)
        length = float(image.norm())
        tri = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        if beside:
            off = torch.tensor(beside, dtype=torch.float64)
            tri = tri + torch.diag(off, 1) + torch.diag(off, -1)
        scale = max(map(abs, diagonal)) + max(beside, default=0.0)
        broken = length <= 10 * epsilon * max(scale, 1e-300) * count**0.5
        check = broken or count == most or (count >= k and (count < 40 or count % 5 == 0))
        if check:
            values, corner = torch.linalg.eigh(tri)
            order = values.abs().argsort(descending=True)[:k]
            values, corner = values[order], corner[:, order]
            off_by = length * corner[-1].abs()
            if count >= k and not broken and float(off_by.max()) <= tolerance * float(values.abs().max()):
                beside.append(length)
                break
        if broken:
            vector = start()  # the space so far is closed: go on in what is left of the others
            for _ in range(2):
                vector = vector - known.T @ (known @ vector)
            if scale <= 0 or count == most or count >= limit or float(vector.norm()) <= 100 * epsilon:
                break
            beside.append(0.0)
            vector = vector / vector.norm()
        else:
            beside.append(length)
            vector = image / length
    scale = float(values.abs().max()) if len(values) else 0.0
    keep = values.abs() > 10 * epsilon * scale
    values, corner = values[keep], corner[:, keep]
    order = values.argsort(descending=True)
    values, corner = values[order], corner[:, order]
    vectors = corner.T.to(basis) @ basis[: len(corner)]
    left = beside[len(corner) - 1] if len(beside) >= len(corner) else 0.0
    residuals = left * corner[-1].abs() / scale if len(values) else values
    return values, vectors, residuals


def hutchpp(
    apply: Callable[[Tensor], Tensor], draw: Callable[[], Tensor], queries: int, *, positive: bool = False
) -> Estimate:
    """Trace of a symmetric map from products: exact on the range of a sketch, by random probes on the rest.

    Args:
        apply: y -> B y.
        draw: Draws a vector of independent signs, zero where no vector may be.
        queries: Products, at least 6; a third for the sketch, a third on its range, a third for the rest.
        positive: No eigenvalue is negative: the interval begins at what is known.

    Source: Meyer, Musco, Musco and Woodruff, Hutch++, 2021.
    """
    if not (isinstance(queries, int) and queries >= 6):
        raise InputError("Metric.trace(queries)", "a whole number of at least 6", queries)
    third = queries // 3
    images = torch.stack([apply(draw()) for _ in range(third)], 1)
    if not bool(images.any()):
        return Estimate(0.0, 0.0, 0.0)
    basis, upper = torch.linalg.qr(images)
    sizes = upper.diagonal().abs()
    basis = basis[:, sizes > 10 * torch.finfo(images.dtype).eps * float(sizes.max())]
    caught = sum(float((column.double() * apply(column)).sum()) for column in basis.unbind(1))
    return rest_of_trace(apply, draw, basis, caught, queries - 2 * third, positive=positive)


def rest_of_trace(
    apply: Callable[[Tensor], Tensor],
    draw: Callable[[], Tensor],
    basis: Tensor,
    caught: float,
    probes: int,
    *,
    positive: bool = False,
) -> Estimate:
    """Trace of a map of which the part on an orthonormal basis [n, k] is known: random probes see the rest."""
    found = []
    for _ in range(probes):
        probe = draw()
        probe = probe - basis @ (basis.T @ probe)
        found.append(float((probe.double() * apply(probe)).sum()))
    rest = mean_interval(found)
    known, least = (max(caught, 0.0), 0.0) if positive else (caught, -math.inf)
    return Estimate(*(known + max(part, least) for part in (rest.low, rest.best, rest.high)))


def signs(like: Tensor, rng: Generator) -> Tensor:
    """Independent signs where `like` is not zero."""
    drawn = torch.randint(2, (like.numel(),), generator=rng).to(like) * 2 - 1
    return drawn * (like != 0)
