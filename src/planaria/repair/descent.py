"""Descent: the one loop behind everything that trains: gradient, optimiser's step, law of motion."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Generator, Tensor, nn

from planaria.core.autodiff import plain_kernels
from planaria.core.errors import InputError
from planaria.core.motion import Cost, Moment
from planaria.core.network import Network, law
from planaria.core.streams import lend
from planaria.core.trees import Weights

Gradient = Callable[[Tensor], Tensor]
"""Row numbers of a batch -> the scalar whose gradient is the update's."""


def plastic(net: Network, module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of the module that can move at all; only these will require gradients."""
    moving = {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.is_floating_point() and bool((net.plasticity[name] != 0).any())
    }
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in moving)
    return moving


def descend(
    net: Network,
    module: nn.Module,
    moving: Mapping[str, nn.Parameter],
    loss: Gradient,
    optimiser: torch.optim.Optimizer | None,
    rng: Generator,
    *,
    rows: tuple[int, int],
    update: Cost,
    horizon: int | None,
    plasticity_at: Callable[[int], Weights],
) -> Iterator[Moment]:
    """Endless moments of a training, one per update; the networks keep the plasticity of the first.

    Args:
        net: Where it starts.
        module: Its module, in train mode.
        moving: Parameters that can move, from `plastic`; with none, the work is spent all the same.
        loss: Formed once per update, before anything moves.
        optimiser: Of these parameters; None where there are none.
        rng: Draws the batches, and what the module draws.
        rows: Examples there are, and examples per batch.
        update: Cost of one update, without its seconds.
        horizon: Updates after which the rate has fallen to 0 along a half cosine; None for a constant rate.
        plasticity_at: Number of the update, from 0 -> plasticity that its step is multiplied by; asked after the loss
            has been formed. May return the same object again while nothing changes.
    """
    cost = Cost()
    while optimiser is None:
        cost = cost + update
        yield Moment(net, cost)
    full = [group["lr"] for group in optimiser.param_groups]
    plasticity: Weights = {}
    slow: set[str] = set()
    for done, batch in enumerate(_batches(*rows, rng)):
        start = time.process_time()
        with lend(rng, net.device), plain_kernels(), torch.inference_mode(False), torch.enable_grad():
            value = loss(batch)
            module.zero_grad(set_to_none=True)
            value.backward()
        if horizon is not None:
            share = min(1.0, done / horizon)
            for group, rate in zip(optimiser.param_groups, full, strict=True):
                group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * share))
        current = plasticity_at(done)
        if current is not plasticity:
            plasticity = current
            slow = {name for name in moving if not bool((plasticity[name] == 1).all())}
        before = {name: moving[name].detach().clone() for name in slow}
        optimiser.step()
        with torch.no_grad():
            for name in slow:
                moving[name].copy_(law(before[name], moving[name], plasticity[name]))
        now = net.with_weights(
            {name: parameter.detach().clone() for name, parameter in moving.items()},
            {name: buffer.detach().clone() for name, buffer in module.named_buffers()},
        )
        cost = cost + update + Cost(seconds=time.process_time() - start)
        yield Moment(now, cost)


def outputs_in_training(forward: Callable[[Tensor], Tensor], inputs: Tensor, where: str) -> Tensor:
    """Outputs in train mode, which batch normalisation refuses for a single value per channel.

    Raises:
        InputError: Naming the setting `where` if it does.
    """
    try:
        return forward(inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        expected = "two examples or more for a network with batch normalisation"
        raise InputError(where, expected, len(inputs)) from error


def _batches(total: int, size: int, rng: Generator) -> Iterator[Tensor]:
    """Endless full batches of row numbers; a pass ends inside a batch when it must."""
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(total, generator=rng)])
        yield waiting[:size]
        waiting = waiting[size:]
