"""Rounding: how far the logits of a chain, as computed, may be from those of exact arithmetic.

What is proven about a network in real numbers holds for the computed one where margins are larger than the error of
both computations, the intact and the damaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from planaria.sweep.chain import Chain, Stage

SPREAD = 4.0
"""Standard deviations of rounding: errors of a sum of n terms grow like this times sqrt(n), and never beyond n."""

_MOVES = frozenset(["flatten", "view", "same", "mean"])


@dataclass(frozen=True)
class Rounding:
    """Bound of what rounding may do to the difference of two logits, intact and damaged together.

    A product over n terms errs by at most k u |w| |h| per entry: u the unit roundoff, k = min(n, 4 sqrt(n)) (n holds
    for any order of summation; the root for errors that do not conspire, Higham and Mary 2019), |w| and |h| norms of
    the row and of what it reads. So its output errs by k u |W| |h| in norm, |W| of Frobenius, and along any one
    direction by k u min(|W|, 4 max |w|) |h|, again for errors that do not conspire. Behind it, an error grows by no
    more than the spectral norms of the weights and the slopes, and in the end by |W[c] - W[p]|. Eight terms more stand
    for bias, activation, and the update of rank one. The sum over products is what one network errs by; there are two,
    the intact and the damaged; the activations of the damaged are at most |h| plus what the deletion of a unit carries
    there. Activations that are computed enter the bounds of units as they are: their errors are of earlier products,
    in the sum already. Overflow is kept away by not trusting numbers above the root of the largest.

    Attributes:
        terms: k u of each product.
        shares: Of the error's norm, what can lie along one direction.
        norms: Bound of the spectral norm of each product but the first.
        reach: (|W|, |shift|) of each product.
        gain: Bound of the gain of each product with its steps.
        tail: Gain from each product, before its steps, to a difference of logits.
        silent: Size of the values that silenced units have.
        extra: Error of a softmax.
        limit: Numbers that are trusted.
        floor: Added to norms, whose squares may underflow.

    Source: Higham and Mary, 2019, A new approach to probabilistic rounding error analysis.

    Not guaranteed: that errors of sums with more than 16 terms do not conspire. It covers what was seen a thousandfold.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> net = Network.of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 4))
        >>> rounding = Rounding.of(Chain.of(net))
        >>> slack = rounding.slack([torch.ones(1), torch.ones(1)], [1, 1])
        >>> bool(0 < slack < 1e-3)
        True
    """

    terms: tuple[float, ...]
    shares: tuple[float, ...]
    norms: tuple[float, ...]
    reach: tuple[tuple[float, float], ...]
    gain: tuple[float, ...]
    tail: tuple[float, ...]
    silent: tuple[float, ...]
    extra: float
    limit: float
    floor: float

    @staticmethod
    def of(chain: Chain) -> Rounding:
        """From the weights.

        Args:
            chain: Whose stages but the last have a known `lipschitz`.
        """
        info = torch.finfo(chain.stages[-1].weight.dtype)
        terms, shares, norms, reach, gain, tail = [], [], [], [], [], [1.0]
        for stage in chain.stages:
            w = stage.weight.flatten(1).double()
            n = w.shape[1] + 8
            # Batch normalisation that was folded in was in the module two more operations.
            terms.append(min(n, SPREAD * n**0.5) * info.eps / 2 * (2 if stage.folded else 1))
            # In a convolution each number is read at up to so many places.
            places = stage.weight[0, 0].numel() ** 0.5
            shift = torch.zeros_like(w[:, 0]) if stage.shift is None else stage.shift.double()
            reach.append((float(w.norm()) * places, float(shift.norm())))
            largest = max(_largest_share(w.norm(dim=1)), _largest_share(shift))
            shares.append(min(1.0, SPREAD * largest))
            norms.append(spectral_bound(w) * places if terms[1:] else 0.0)
            gain.append(norms[-1] * lipschitz(stage))
        last = chain.stages[-1].weight.double()
        reach[-1], shares[-1] = (2 * float(last.norm(dim=1).max()), 2 * reach[-1][1]), 1.0
        row = float(torch.cdist(last, last).max())
        for at in range(len(terms) - 2, -1, -1):
            tail.append(row * lipschitz(chain.stages[at]))
            row *= gain[at]
        silent = [abs(stage.silent) if stage.silent == stage.silent else 0.0 for stage in chain.stages]
        extra = 16 * info.eps * len(last) ** 0.5 if chain.stages[-1].steps else 0.0
        sizes = (extra, info.max**0.5, info.tiny**0.5)
        return Rounding(
            tuple(terms),
            tuple(shares),
            tuple(norms),
            tuple(reach),
            tuple(gain),
            tuple(tail[::-1]),
            tuple(silent),
            *sizes,
        )

    def slack(self, norms: Sequence[Tensor], places: Sequence[int]) -> Tensor:
        """Margins must be larger than this, [examples]; infinite where nothing can be trusted.

        Args:
            norms: Of what each stage reads, [examples].
            places: Positions of what it reads.
        """
        total = torch.zeros_like(norms[0], dtype=torch.float64)
        carried, unsafe = torch.zeros_like(total), torch.isnan(total)
        for at, norm in enumerate(norms):
            norm = norm.double() + self.floor
            size, shift = self.reach[at]
            reach = size * (norm + carried) + shift * 2 * places[at] ** 0.5 + self.floor
            unsafe |= ~(reach < self.limit)
            total += 2 * self.terms[at] * self.shares[at] * self.tail[at] * reach
            carried = (self.gain[at] * (carried + norm) if at else carried) + self.silent[at]
        return (total + self.extra).masked_fill(unsafe | total.isnan(), float("inf"))


def _largest_share(x: Tensor) -> float:
    """The largest entry over the norm of all."""
    norm = float(x.norm())
    return float(x.abs().max()) / norm if norm > 0.0 else 0.0


def spectral_bound(w: Tensor) -> float:
    """Upper bound of a matrix's spectral norm: the Schatten norm of order 16 where that is quick, else of order 2.

    Args:
        w: A matrix.

    Example:
        >>> 2.0 <= spectral_bound(torch.diag(torch.tensor([2.0, 1.0]))) <= 2.1
        True
    """
    if w.shape[0] > w.shape[1]:
        w = w.T
    scale = float(w.norm())
    if not 0.0 < scale < float("inf") or w.shape[0] ** 2 * w.shape[1] > 2**30:
        return scale
    w = (w / scale).float()
    power = w @ w.T
    for _ in range(2):
        power = power @ power
    return scale * 1.01 * float(power.double().norm()) ** 0.125  # a hundredth more for the rounding of the powers


def lipschitz(stage: Stage) -> float:
    """Largest gain of a stage's steps, in norm; infinite where it is not known.

    Args:
        stage: With steps that are pointwise, poolings or views.

    Example:
        >>> lipschitz(Stage("w", None, torch.ones(1, 1), None, None))
        1.0
    """
    steps = [step for step in stage.steps if step.name not in _MOVES]
    # Windows that overlap repeat a number, up to 16 times at most.
    pools = sum("pool" in step.name for step in steps)
    return replace(stage, steps=tuple(step for step in steps if "pool" not in step.name)).slope * 4.0**pools
