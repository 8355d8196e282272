"""Fits: the least-squares problem of one reader, and how well it was solved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from planaria.core.network import Network
from planaria.repair.reader import Reader
from planaria.repair.ridge import solve


@dataclass(frozen=True)
class LayerFit:
    """What a refit has made good in one layer.

    Errors are relative: the mean square of what is wrong, over the variance of what is right. What is looked at is
    where the reader's outputs go: the sum, where they are added to a stream.

    Attributes:
        reader: Name of the weight that was refitted.
        dead: Dead units that it reads.
        living: Living ones.
        rows: Rows that it was fitted to; of a sidecar, inputs.
        ridge: Of the regression, relative to the mean diagonal of the moments.
        before: Error with the weights as they were, inputs as they are after the repair of what comes before.
        after: Error with the refitted weights.
        held_out: Whether the errors are of inputs that the weights they belong to were not fitted to (of those that
            were fitted to the other seven eighths).
    """

    reader: str
    dead: int
    living: int
    rows: int
    ridge: float
    before: float
    after: float
    held_out: bool


def table(fits: tuple[LayerFit, ...]) -> str:
    """The fits as lines of text."""
    width = max([6, *(len(fit.reader) for fit in fits)])
    lines = [f"{'reader':<{width}}  {'dead units':>12}  {'rows':>9}  {'ridge':>7}  error before  after"]
    for fit in fits:
        units = f"{fit.dead} of {fit.dead + fit.living}" if fit.dead + fit.living else "-"
        told = "" if fit.held_out else "  (of the inputs it was fitted to)"
        lines.append(
            f"{fit.reader:<{width}}  {units:>12}  {fit.rows:>9,}  {fit.ridge:>7.0e}  "
            f"{fit.before:>12.2%}  {fit.after:.2%}{told}"
        )
    return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Sums:
    """What a least-squares problem needs to know about its rows: weighted sums, double precision.

    Attributes:
        moment: Of h h^T with h = (features, 1) [groups, features + 1, features + 1].
        across: Of h error^T [groups, features + 1, outputs].
        energy: Of the squared error [groups, outputs].
        total: Of what is wanted [groups, outputs].
        squares: Of its square.
        weight: Of the rows' weights.
        weights: Of their squares.
    """

    moment: Tensor
    across: Tensor
    energy: Tensor
    total: Tensor
    squares: Tensor
    weight: float
    weights: float

    @staticmethod
    def of(features: Tensor, error: Tensor, wanted: Tensor, each: Tensor | None) -> Sums:
        """From rows.

        Args:
            features: [groups, rows, features].
            error: What is missing from the outputs [groups, rows, outputs].
            wanted: What they should be.
            each: Weight of each row [rows].
        """
        h = torch.cat([features, torch.ones_like(features[..., :1])], -1)
        count = float(h.shape[1])
        left, wrong = h.transpose(1, 2), error
        if each is not None:
            left = left * each.to(h.dtype)
            wrong = error * each.to(error.dtype)[:, None]
        shares = torch.ones(h.shape[1], dtype=torch.double, device=h.device) if each is None else each.double()
        return Sums(
            moment=torch.bmm(left, h).double(),
            across=torch.bmm(left, error).double(),
            energy=(error * wrong).double().sum(1),
            total=torch.einsum("r,gro->go", shares.to(wanted.dtype), wanted).double(),
            squares=torch.einsum("r,gro->go", shares.to(wanted.dtype), wanted.square()).double(),
            weight=count if each is None else float(shares.sum()),
            weights=count if each is None else float(shares.square().sum()),
        )

    def __add__(self, other: Sums) -> Sums:
        return self._with(other, 1.0)

    def __sub__(self, other: Sums) -> Sums:
        return self._with(other, -1.0)

    def _with(self, other: Sums, sign: float) -> Sums:
        return Sums(
            self.moment + sign * other.moment,
            self.across + sign * other.across,
            self.energy + sign * other.energy,
            self.total + sign * other.total,
            self.squares + sign * other.squares,
            self.weight + sign * other.weight,
            self.weights + sign * other.weights,
        )

    def solution(self, heard: Tensor, ridge: float | None) -> tuple[Tensor, int, float]:
        """Change of weights and shift [groups, features + 1, outputs], multiply-adds spent, and the ridge.

        Args:
            heard: Which of them may change.
            ridge: As in `Refit`.
        """
        change = torch.zeros_like(self.across)
        rows = int(self.weight**2 / self.weights) if self.weights else 0  # so many that count fully
        spent, used = 0, 0.0
        count = self.weight or 1.0
        for g in range(len(change)):
            moment, across, energy = self.moment[g] / count, self.across[g] / count, self.energy[g] / count
            change[g], more, ridge_here = solve(moment, across, energy, heard[g], rows, ridge)
            spent, used = spent + more, max(used, ridge_here)
        return change, spent, used

    def error(self, heard: Tensor, change: Tensor | None = None) -> float:
        """Relative error of the outputs that may change, after a change."""
        energy = self.energy
        if change is not None:
            energy = energy + (change * (torch.bmm(self.moment, change) - 2 * self.across)).sum(1)
        variance = self.squares - self.total.square() / (self.weight or 1.0)
        movable = heard.any(1)
        size = float(variance[movable].sum())
        left = max(0.0, float(energy[movable].sum()))
        return left / size if size > 0 else float(left > 0)


def heard_by(reader: Reader, net: Network, free: Tensor) -> Tensor:
    """Which features, and whether the shift, each output may be fitted by: boolean [groups, features + 1, outputs].

    Args:
        reader: The reader.
        net: Its network.
        free: The features' part [groups, features, outputs].
    """
    groups, _, made = free.shape
    loose = torch.zeros(groups * made, dtype=torch.bool, device=net.device)
    if reader.bias is not None:
        loose = (net.plasticity[reader.bias] != 0).flatten()
    return torch.cat([free, loose.view(groups, 1, made)], 1)
