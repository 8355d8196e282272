"""What a change of a network's outputs counts: the geometry of the space that a metric is pulled back from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from planaria.core.errors import InputError
from planaria.measure.losses import Loss, cross_entropy


@runtime_checkable
class Geometry(Protocol):
    """What a change of the outputs counts: H = R^T R for each input, at the network's outputs."""

    def check(self, outputs: Tensor) -> None:
        """Complain about outputs that it is not defined for."""
        ...

    def half(self, outputs: Tensor, change: Tensor) -> Tensor:
        """R u, of the outputs' shape."""
        ...

    def half_back(self, outputs: Tensor, change: Tensor) -> Tensor:
        """R^T s, of the outputs' shape."""
        ...

    def root(self, outputs: Tensor) -> Tensor | None:
        """R of each input [N, m, m], the outputs of an input in one row; None for the identity."""
        ...

    def rank(self, outputs: Tensor) -> int:
        """Largest rank of all H together."""
        ...


@dataclass(frozen=True)
class Euclidean:
    """Every output counts alike, H = 1: g = E[J^T J] on logits, embeddings, predictions.

    Source: Raghavan, Li and Thomson, 2020.
    """

    def check(self, outputs: Tensor) -> None:
        """Any outputs will do."""

    def half(self, outputs: Tensor, change: Tensor) -> Tensor:
        """The change itself."""
        del outputs
        return change

    def half_back(self, outputs: Tensor, change: Tensor) -> Tensor:
        """The change itself."""
        del outputs
        return change

    def root(self, outputs: Tensor) -> Tensor | None:
        """The identity."""
        del outputs
        return None

    def rank(self, outputs: Tensor) -> int:
        """Inputs times outputs."""
        return outputs.numel()


@dataclass(frozen=True)
class Fisher:
    """Fisher information of p = softmax(logits / T): H = (diag p - p p^T) / T^2, classes in the last dimension.

    Half the squared length of a small change is the Kullback-Leibler divergence of the predictions.

    Args:
        temperature: T, above 0. On confident predictions the metric vanishes; 2 makes it better conditioned.

    Raises:
        InputError: Another temperature.

    Source: Amari, Natural gradient works efficiently in learning, 1998.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.temperature, (int, float)) and 0 < self.temperature < math.inf):
            raise InputError("Fisher(temperature)", "a number above 0", self.temperature)

    def check(self, outputs: Tensor) -> None:
        """At least two classes are needed."""
        if outputs.ndim < 2 or outputs.shape[-1] < 2:
            expected = "outputs [N, ..., classes] with at least two classes"
            remedy = "Take Euclidean() for networks that do not classify."
            raise InputError("Metric(of=Fisher())", expected, f"shape {list(outputs.shape)}", remedy)

    def half(self, outputs: Tensor, change: Tensor) -> Tensor:
        """sqrt(p) * (u - p.u) / T."""
        p = self._shares(outputs)
        return p.sqrt() * (change - (p * change).sum(-1, keepdim=True)) / self.temperature

    def half_back(self, outputs: Tensor, change: Tensor) -> Tensor:
        """(sqrt(p) * s - p * (sqrt(p).s)) / T."""
        p = self._shares(outputs)
        weighed = p.sqrt() * change
        return (weighed - p * weighed.sum(-1, keepdim=True)) / self.temperature

    def root(self, outputs: Tensor) -> Tensor | None:
        """R of each input; positions of one input stand in blocks on the diagonal."""
        p = self._shares(outputs).reshape(len(outputs), -1, outputs.shape[-1])
        count, places, classes = p.shape
        blocks = p.sqrt()[..., None] * (torch.eye(classes).to(p) - p[..., None, :]) / self.temperature
        if places == 1:
            return blocks[:, 0]
        whole = blocks.new_zeros(count, places, classes, places, classes)
        at = torch.arange(places, device=p.device)
        whole[:, at, :, at, :] = blocks.transpose(0, 1)
        return whole.reshape(count, places * classes, places * classes)

    def rank(self, outputs: Tensor) -> int:
        """One class less than there are, since the shares add to one."""
        return outputs.numel() // outputs.shape[-1] * (outputs.shape[-1] - 1)

    def _shares(self, outputs: Tensor) -> Tensor:
        return torch.softmax(outputs / self.temperature, -1)


@dataclass(frozen=True, eq=False)
class LossHessian:
    """The full Hessian of the mean loss, with the curvature of the network itself; not positive in general.

    Args:
        targets: As many as inputs.
        loss: `(outputs, targets) -> scalar`, mean over the examples.
    """

    targets: Tensor
    loss: Loss = cross_entropy
