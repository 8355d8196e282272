"""Training several small networks together: one product for all their first layers, one step for all their weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from planaria.core.devices import without_tf32
from planaria.core.errors import InputError
from planaria.core.gemm import fast_products
from planaria.core.network import Network
from planaria.measure.task import Task
from planaria.repair.descent import Brake, batches
from planaria.repair.retrain import Adam, Optimiser
from planaria.sweep.chain import Chain
from planaria.sweep.program import near


@without_tf32()
def train_together(
    nets: Sequence[Network],
    task: Task,
    *,
    updates: int,
    optimiser: Optimiser | None = None,
    batch: int = 128,
    rng: Generator,
) -> tuple[Network, ...]:
    """Train several networks of one form on the same batches, equal up to rounding to training each by itself.

    All networks see the same batch at the same time, so that their first layers are one matrix product; the later
    layers are stacked. The optimiser steps on all of them at once, which is the same because it works entry by entry.

    Args:
        nets: At least one; all perceptrons of the same sizes, with whatever weights.
        task: Trained on its training split; its loss must be a mean over the batch.
        updates: Number of updates, at least 0.
        optimiser: SGD, Adam, AdamW, or anything with `build(parameters)` that works entry by entry; Adam by default.
        batch: Examples per update; at most the whole training split is used.
        rng: Draws the batches, in passes over the data without replacement.

    Returns:
        The trained networks, in the order given; pinned entries are bit-identical.

    Raises:
        InputError: Networks of different forms, or ones that are no perceptrons.

    Example:
        >>> from planaria.core.streams import stream
        >>> from planaria.measure.datasets import task
        >>> digits = task("digits")
        >>> def made(seed: int) -> Network:
        ...     torch.manual_seed(seed)
        ...     return Network.of(nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)), digits.train.inputs)
        >>> trained = train_together([made(0), made(1)], digits, updates=3, rng=stream(0, "train"))
        >>> [net.weights["0.weight"].shape for net in trained]
        [torch.Size([8, 64]), torch.Size([8, 64])]

    Not guaranteed: independence. The networks share the order of their batches; what differs is where they begin.
    """
    chains = [_chain(net) for net in nets]
    if not chains or any(_form(chain) != _form(chains[0]) for chain in chains):
        raise InputError("train_together(nets)", "one network or more, all of one form", "none, or different forms")
    if updates < 0:
        raise InputError("train_together(updates)", "a number of at least 0", updates)
    if batch < 1:
        raise InputError("train_together(batch)", "a number of at least 1", batch)
    stages = chains[0].stages
    names = [(stage.name, stage.bias) for stage in stages]
    weights = [_stacked(nets, name, at == 0) for at, (name, _) in enumerate(names)]
    shifts = [None if bias is None else _stacked(nets, bias, at == 0) for at, (_, bias) in enumerate(names)]
    moving = {
        name: parameter
        for pair, parameters in zip(names, zip(weights, shifts, strict=True), strict=True)
        for name, parameter in zip(pair, parameters, strict=True)
        if name is not None and parameter is not None
    }
    first_names = set(names[0])
    brake = Brake.of(moving, {name: _multipliers(nets, name, name in first_names) for name in moving})
    step = (Adam() if optimiser is None else optimiser).build(moving.values())
    data = task.train.to(nets[0].device)
    size, count = min(batch, len(data)), len(nets)

    def behind(z: Tensor) -> Tensor:
        """Outputs [networks * batch, outputs] from the first product [batch, networks * made]."""
        z = z.view(len(z), count, -1).transpose(0, 1)
        for at, stage in enumerate(stages):
            if at:
                shift = shifts[at]
                product = z @ weights[at].transpose(1, 2)
                z = product if shift is None else product + shift[:, None]
            z = stage.post(z)
        return z.flatten(0, 1)

    def first(x: Tensor) -> Tensor:
        """The first product by hand: its gradient is by far the largest tensor, and is kept to be written anew."""
        return functional.linear(x, weights[0].detach(), None if shifts[0] is None else shifts[0].detach())

    def begun(x: Tensor) -> Tensor:
        for entry in chains[0].entry:
            x = entry.function(x)
        return x

    few = data.inputs[:2]
    with torch.no_grad():
        if not near(behind(first(begun(few))), torch.cat([net(few) for net in nets])):
            raise InputError(
                "train_together(nets)",
                "networks that apply their weights alike",
                "ones that compute other things with them",
                "Train the networks one after another.",
            )
    gradient = torch.empty_like(weights[0].detach())
    weights[0].grad = gradient
    later = [parameter for parameter in moving.values() if parameter is not weights[0]]
    with fast_products(nets[0].device), torch.enable_grad():
        for rows in islice(batches(len(data), size, rng), updates):
            rows = rows.to(data.inputs.device)
            targets = data.targets[rows]
            # The loss is a mean over all rows, so times the number of networks it is the sum of their means.
            x = begun(data.inputs[rows])
            z = first(x).requires_grad_()
            loss = task.loss(behind(z), targets.repeat(count, *[1] * (targets.ndim - 1))) * count
            for parameter in later:
                parameter.grad = None
            loss.backward()
            assert z.grad is not None
            torch.mm(z.grad.T, x, out=gradient)
            if shifts[0] is not None:
                shifts[0].grad = z.grad.sum(0)
            before = brake.before()
            step.step()
            brake.apply(before)
    return tuple(_unstacked(net, number, count, names, weights, shifts) for number, net in enumerate(nets))


def _chain(net: Network) -> Chain:
    found = Chain.of(net) if net.inputs is not None else "it has no example inputs"
    if isinstance(found, str):
        raise InputError("train_together(nets)", "perceptrons", found, "Train the networks one after another.")
    plain = found.linear and not any(stage.folded for stage in found.stages)
    names = [stage.name for stage in found.stages]
    known = {name for stage in found.stages for name in (stage.name, stage.bias) if name is not None}
    pointwise = all(step.pointwise for stage in found.stages for step in stage.steps)
    whole = all(stage.weight.shape == net.weights[stage.name].shape for stage in found.stages)
    whole = whole and len(set(names)) == len(names) and not found.elsewhere
    if not (plain and pointwise and whole and known == net.weights.keys()):
        raise InputError(
            "train_together(nets)",
            "linear layers with element-wise functions between them, each with weights of its own",
            ", ".join(f"{name} {list(weight.shape)}" for name, weight in net.weights.items()),
            "Train the networks one after another.",
        )
    return found


def _form(chain: Chain) -> list[tuple[object, ...]]:
    return [
        (stage.name, stage.bias, stage.weight.shape, stage.weight.dtype, tuple(step.name for step in stage.steps))
        for stage in chain.stages
    ]


def _stacked(nets: Sequence[Network], name: str, first: bool) -> nn.Parameter:
    """A weight of all networks: one below the other for the first layer, else [networks, ...]."""
    tensors = [net.weights[name].detach() for net in nets]
    return nn.Parameter(torch.cat(tensors) if first else torch.stack(tensors))


def _multipliers(nets: Sequence[Network], name: str, first: bool) -> Tensor:
    """The plasticity of a stacked weight."""
    tensors = [net.plasticity[name] for net in nets]
    return torch.cat(tensors) if first else torch.stack(tensors)


def _unstacked(
    net: Network,
    number: int,
    count: int,
    names: Sequence[tuple[str, str | None]],
    weights: Sequence[Tensor],
    shifts: Sequence[Tensor | None],
) -> Network:
    found: dict[str, Tensor] = {}
    for at, (pair, tensors) in enumerate(zip(names, zip(weights, shifts, strict=True), strict=True)):
        for name, tensor in zip(pair, tensors, strict=True):
            if name is not None and tensor is not None:
                own = tensor.detach().chunk(count)[number] if at == 0 else tensor.detach()[number]
                found[name] = own.clone()
    return net.with_weights(found)
