"""Retraining: gradient descent on the plastic entries of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Generator, Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from planaria.core.devices import clock
from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost, Moment
from planaria.core.network import Network
from planaria.core.trees import Weights
from planaria.measure.task import Task
from planaria.repair.descent import compacted, costly, descend, follow, outputs_in_training, plastic
from planaria.repair.perceptron import Perceptron, Settings


class Optimiser(Protocol):
    """What an optimiser setting must offer: `build(parameters) -> torch.optim.Optimizer`."""

    def build(self, parameters: Iterable[nn.Parameter], /) -> torch.optim.Optimizer:
        """A fresh optimiser, without state."""
        ...


def _check(setting: object, *names: str) -> None:
    """Numbers of an optimiser: finite and at least 0."""
    for name in names:
        value = getattr(setting, name)
        if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
            raise InputError(f"{type(setting).__name__}.{name}", "a finite number of at least 0", repr(value))


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum and weight decay; `rate` is per update.

    Example:
        >>> SGD(0.05, momentum=0.9)
        SGD(rate=0.05, momentum=0.9, decay=0.0)
    """

    rate: float = 0.05
    momentum: float = 0.9
    decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self, "rate", "momentum", "decay")

    def build(self, parameters: Iterable[nn.Parameter], /) -> torch.optim.Optimizer:
        """A fresh optimiser."""
        return torch.optim.SGD(parameters, lr=self.rate, momentum=self.momentum, weight_decay=self.decay, fused=True)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba, 2015); `rate` is per update, `decay` is added to the gradient.

    Example:
        >>> Adam()
        Adam(rate=0.001, decay=0.0)
    """

    rate: float = 1e-3
    decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self, "rate", "decay")

    def build(self, parameters: Iterable[nn.Parameter], /) -> torch.optim.Optimizer:
        """A fresh optimiser."""
        return torch.optim.Adam(parameters, lr=self.rate, weight_decay=self.decay, fused=True)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019).

    Example:
        >>> AdamW()
        AdamW(rate=0.001, decay=0.01)
    """

    rate: float = 1e-3
    decay: float = 0.01

    def __post_init__(self) -> None:
        _check(self, "rate", "decay")

    def build(self, parameters: Iterable[nn.Parameter], /) -> torch.optim.Optimizer:
        """A fresh optimiser."""
        return torch.optim.AdamW(parameters, lr=self.rate, weight_decay=self.decay, fused=True)


@dataclass(frozen=True)
class Retrain:
    """Train the plastic entries on the task's training split; dead units stay dead by the law of motion.

    Each update: theta' = one optimiser step on the mean loss of a batch; theta <- theta + plasticity * (theta' -
    theta). The optimiser starts without state. Batches are full, drawn without replacement within each pass over the
    data. The module runs in train mode: dropout is active and normalisation statistics are re-estimated.

    Where that is exact, what is trained is the network without its dead units (see `compacted` in descent.py; large
    perceptrons go their own way, see perceptron.py): results are those of training the whole network up to rounding,
    the ledger counts the multiplications that were made, and what was left out (statistics of dead channels, too)
    comes back as it was.

    Args:
        task: What to train on.
        optimiser: SGD, Adam, AdamW or anything with `build(parameters)`.
        batch: Examples per update, at least 1; at most the whole training split is used.
        horizon: If given, the rate falls along a half cosine from its full value to 0 after this many updates, and
            stays there. For training from scratch; repairs use a constant rate, so that they can be cut anywhere.

    Returns (when called with a network and a stream):
        Endless iterator of one moment per update.

    Raises:
        InputError: If the batch is not a positive number, or too small for a batch normalisation.

    Source: strategy 1 of the rescue paper (retraining of the surviving sub-network).

    Not guaranteed: that the loss falls; a diverged network is yielded as it is and scores as chance or worse.
    """

    task: Task
    optimiser: Optimiser = Adam()
    batch: int = 128
    horizon: int | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.batch, int) and self.batch >= 1):
            raise InputError("Retrain.batch", "a number of examples of at least 1", self.batch)
        if self.horizon is not None and self.horizon < 1:
            raise InputError("Retrain.horizon", "a number of updates of at least 1", self.horizon)

    def __call__(self, net: Network, rng: Generator, /) -> Iterator[Moment]:
        """Moments of the training, one per update."""
        return self.under(net, rng, lambda update: net.plasticity)

    def under(self, net: Network, rng: Generator, plasticity_at: Callable[[int], Weights]) -> Iterator[Moment]:
        """Moments of the training when plasticity changes on the way; the networks yielded keep their own.

        Args:
            net: The network; entries that it has pinned must be pinned at every update.
            rng: Draws the batches.
            plasticity_at: Number of the update, from 0 -> plasticity that its step is multiplied by. May return the
                same object again while nothing changes.
        """
        start = clock(net.device)
        data = self.task.train.to(net.device)
        size = min(self.batch, len(data))
        rows = (len(data), size)

        def price(multiply_adds: int) -> Cost:
            return Cost(size, size, 1, 1, 3 * multiply_adds * size)

        def train(net: Network, shrink: Callable[[Weights], Weights]) -> Iterator[Moment]:
            module = net.to_module().train()
            moving = plastic(net, module)

            def loss(rows: Tensor) -> Tensor:
                inputs, targets = data.inputs.index_select(0, rows), data.targets.index_select(0, rows)
                return self.task.loss(outputs_in_training(partial(net.port, module), inputs, "Retrain.batch"), targets)

            return descend(
                net,
                module,
                moving,
                loss,
                self.optimiser.build(moving.values()) if moving else None,
                rng,
                rows=rows,
                update=price(forward_multiply_adds(net, data.inputs)),
                horizon=self.horizon,
                plasticity_at=lambda update: shrink(plasticity_at(update)),
            )

        optimiser = self.optimiser
        if not isinstance(optimiser, SGD | Adam | AdamW):  # it may look at a weight's shape, or at all weights at once
            return train(net, lambda weights: weights)
        decays = optimiser.decay > 0
        learner = None
        if costly(net, data.inputs, size):
            momentum = optimiser.momentum if isinstance(optimiser, SGD) else 0.0
            learner = Perceptron.of(net, data, Settings(self.task.loss, size, rng, momentum, decays))
        if learner is None:
            return compacted(net, data.inputs, size, train, decays=decays)
        return follow(
            learner,
            _step(optimiser, learner.vector),
            rng,
            rows=rows,
            update=price(learner.multiply_adds),
            horizon=self.horizon,
            plasticity_at=plasticity_at,
            spent=Cost(seconds=clock(net.device) - start),
        )


def _step(optimiser: SGD | Adam | AdamW, vector: Tensor) -> Callable[[float], None]:
    """What the optimiser does to a vector, at a share of its rate, without torch's book-keeping.

    For SGD the vector's gradient is taken to include the momentum.
    """
    gradient = vector.grad
    assert gradient is not None
    if isinstance(optimiser, SGD):
        rate, decay = optimiser.rate, optimiser.decay

        def fall(share: float) -> None:
            if decay:
                gradient.add_(vector, alpha=decay)
            vector.add_(gradient, alpha=-rate * share)

        return fall
    settings = optimiser.build([nn.Parameter(vector, requires_grad=False)]).param_groups[0]
    move = adamw if isinstance(optimiser, AdamW) else adam
    means, squares = torch.zeros_like(vector), torch.zeros_like(vector)
    count = vector.new_zeros((), dtype=torch.float32)

    def adapt(share: float) -> None:
        move(
            [vector],
            [gradient],
            [means],
            [squares],
            [],
            [count],
            fused=True,
            amsgrad=False,
            beta1=settings["betas"][0],
            beta2=settings["betas"][1],
            lr=settings["lr"] * share,
            weight_decay=settings["weight_decay"],
            eps=settings["eps"],
            maximize=False,
        )

    return adapt
