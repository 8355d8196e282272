"""Retraining: gradient descent on the plastic entries of a network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from planaria.core.autodiff import plain_kernels
from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost, Moment
from planaria.core.network import Network, law
from planaria.core.streams import lend
from planaria.core.trees import Weights
from planaria.measure.task import Task


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
        data = self.task.train.to(net.device)
        size = min(self.batch, len(data))
        each = forward_multiply_adds(net, data.inputs)
        update = Cost(size, size, 1, 1, 3 * each * size)
        module = net.to_module().train()
        moving = {
            name: parameter
            for name, parameter in module.named_parameters()
            if parameter.is_floating_point() and bool((net.plasticity[name] != 0).any())
        }
        if not moving:  # nothing is left to train; the work is spent all the same
            spent = Cost()
            while True:
                spent = spent + update
                yield Moment(net, spent)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in moving)
        plasticity: Weights = {}
        held: set[str] = set()
        optimiser = self.optimiser.build(moving.values())
        full = [group["lr"] for group in optimiser.param_groups]
        cost = Cost()
        for rows in _batches(len(data), size, rng):
            start = time.process_time()
            inputs, targets = data.inputs[rows], data.targets[rows]
            with lend(rng, inputs.device), plain_kernels(), torch.inference_mode(False), torch.enable_grad():
                loss = self.task.loss(_outputs(module, inputs), targets)
                module.zero_grad(set_to_none=True)
                loss.backward()
            if self.horizon is not None:
                done = min(1.0, cost.backward_passes / self.horizon)
                for group, rate in zip(optimiser.param_groups, full, strict=True):
                    group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * done))
            current = plasticity_at(cost.backward_passes)
            if current is not plasticity:
                plasticity = current
                held = {name for name in moving if not bool((plasticity[name] == 1).all())}
            before = {name: moving[name].detach().clone() for name in held}
            optimiser.step()
            with torch.no_grad():
                for name in held:
                    moving[name].copy_(law(before[name], moving[name], plasticity[name]))
            now = net.with_weights(
                {name: parameter.detach().clone() for name, parameter in moving.items()},
                {name: buffer.detach().clone() for name, buffer in module.named_buffers()},
            )
            cost = cost + update + Cost(seconds=time.process_time() - start)
            yield Moment(now, cost)


def _outputs(module: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs in train mode, which batch normalisation refuses for a single value per channel."""
    try:
        outputs: Tensor = module(inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "Retrain.batch", "two examples or more for a network with batch normalisation", len(inputs)
        ) from error
    return outputs


def _batches(total: int, size: int, rng: Generator) -> Iterator[Tensor]:
    """Endless full batches of row numbers; a pass ends inside a batch when it must."""
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(total, generator=rng)])
        yield waiting[:size]
        waiting = waiting[size:]
