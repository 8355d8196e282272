"""Choices of the incoming weights of new units, to which the network does not listen yet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.utils.flop_counter import FlopCounterMode

from planaria.core.anatomy import Anatomy, Unit
from planaria.core.autodiff import plain_kernels
from planaria.core.errors import InputError
from planaria.core.motion import Cost, Moment
from planaria.core.network import Network
from planaria.core.trees import Entries, Weights, remove
from planaria.measure.task import Data, Loss, Task


class Incoming(Protocol):
    """What a choice of incoming weights must offer: `choose(net, units, rng) -> Moment`."""

    def choose(self, net: Network, units: Sequence[Unit], rng: Generator, /) -> Moment:
        """Network with other incoming weights for these units, which are embryonic in `net`, and what that cost."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Incoming weights as they were drawn.

    Example:
        >>> Drawn()
        Drawn()
    """

    def choose(self, net: Network, units: Sequence[Unit], rng: Generator, /) -> Moment:
        """The network as it is."""
        del units, rng
        return Moment(net)


@dataclass(frozen=True)
class GradMax:
    """Incoming weights from which the new units can learn fastest, by the gradient of their outgoing weights.

    Outgoing weights V of new units are 0, so the first step of a repair moves them by their gradient alone, which
    depends on the incoming weights W. Those are chosen to make J = sum |dL/dV|^2 large, over all new units:

        W <- orth(dJ/dW)    `rounds` times, all layers at once; of all W met, the one with the largest J stays

    Each row of W keeps the length it was drawn with. orth is the nearest matrix with orthogonal rows; no more units at
    a time are made orthogonal than a unit has incoming, or outgoing, weights, since there are no more directions.
    Without nonlinearity this is orthogonal iteration towards the singular vectors of GradMax's closed form. Units whose
    dJ/dW is 0 (nobody reads them, or they never fire), attention heads and units without weights of their own keep
    what was drawn.

    Args:
        task: Its training split gives the examples.
        examples: Labelled examples that the gradient is taken over, at least 1.
        rounds: Iterations, at least 1; each costs a forward pass, a backward pass, and one backward through both. One
            gives most of the gain in J, and more do not earn what they cost.

    Raises:
        InputError: If `examples` or `rounds` is not a positive whole number.

    Source: Evci et al., 2022 (GradMax: growing neural networks using gradient information). Iteration, blocks and
        keeping the best are our own.

    Not guaranteed: a better network after many updates: what is learnt first need not be what is needed last.
    """

    task: Task
    examples: int = 128
    rounds: int = 1

    def __post_init__(self) -> None:
        for name in ("examples", "rounds"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise InputError(f"GradMax.{name}", "a whole number of at least 1", repr(value))

    def choose(self, net: Network, units: Sequence[Unit], rng: Generator, /) -> Moment:
        """Network with chosen incoming weights, and the cost of choosing."""
        layers, heard = _layers(net, units), _heard(net, units)
        if not (layers and heard):
            return Moment(net)
        size = min(self.examples, len(self.task.train))
        rows = torch.randperm(len(self.task.train), generator=rng)[:size]
        data = self.task.train.to(net.device).take(rows)
        best, most = net, -math.inf
        with FlopCounterMode(display=False) as counter:
            for left in reversed(range(self.rounds + 1)):
                value, slopes = _learnable(net, layers if left else {}, heard, self.task.loss, data)
                if value > most:
                    best, most = net, value
                net = net.with_weights({name: layers[name].step(net.weights[name], to) for name, to in slopes.items()})
        looks = self.rounds + 1
        cost = Cost(
            examples=looks * size,
            labels=looks * size,
            forward_passes=looks,
            backward_passes=looks + self.rounds,
            multiply_adds=counter.get_total_flops() // 2,
        )
        return Moment(best, cost)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Incoming weights of a layer's new units as rows: positions in the flattened weight [units, incoming]."""

    positions: Tensor
    free: Tensor
    block: int

    def step(self, weight: Tensor, slope: Tensor) -> Tensor:
        """The weight with the rows at orth(slope), each as long as it was."""
        old = weight.flatten()[self.positions].double()
        to = slope.flatten()[self.positions].double() * self.free
        steep = to.norm(dim=1)
        rows = (steep.isfinite() & (steep > 0)).nonzero().flatten()
        for part in rows.split(self.block) if len(rows) else ():
            left, values, right = torch.linalg.svd(to[part], full_matrices=False)
            real = values > 1e-6 * values.max()
            rotated = left[:, real] @ right[real]
            length = (old[part] * self.free[part]).norm(dim=1, keepdim=True)
            new = rotated * length / rotated.norm(dim=1, keepdim=True).clamp_min(1e-30)
            old[part] = torch.where(self.free[part], new, old[part])
        flat = weight.flatten().clone()
        flat[self.positions] = old.to(weight)
        return flat.view_as(weight)


def _layers(net: Network, units: Sequence[Unit]) -> dict[str, _Rows]:
    """Weight name -> rows, for the layers whose units are made by one product and read by others."""
    found: dict[str, _Rows] = {}
    for group in Anatomy.of(net).groups:
        mine = [unit.index for unit in units if unit.layer == group.layer]
        names = [name for name in group.owners["incoming"] if net.weights[name].ndim >= 2]
        outgoing = sum(int((owner == 0).sum()) for owner in group.owners["outgoing"].values())
        if not mine or group.kind == "head" or len(names) != 1 or not outgoing:
            continue
        owner = group.owners["incoming"][names[0]].flatten().cpu()
        # Sorted by unit, and within a unit by position, which is the same order of inputs for every unit.
        positions = owner.argsort(stable=True)[int((owner < 0).sum()) :].view(group.count, -1)[mine].to(net.device)
        free = net.plasticity[names[0]].flatten()[positions] != 0
        found[names[0]] = _Rows(positions, free, min(outgoing, positions.shape[1]))
    return found


def _heard(net: Network, units: Sequence[Unit]) -> Entries:
    """Entries through which new units will be heard: outgoing, free, and not the drawn edges between new units."""
    slices = Anatomy.of(net).entries(units)
    between = remove(slices.outgoing, slices.incoming)
    return {name: hit.to(net.device) & (net.plasticity[name] != 0) for name, hit in between.items()}


def _learnable(
    net: Network, layers: Mapping[str, object], heard: Entries, loss: Loss, data: Data
) -> tuple[float, Weights]:
    """J = sum |dL/dV|^2 over the entries V that are heard, and its gradient for the weights named in `layers`."""
    leaves = {name: net.weights[name].detach().requires_grad_() for name in {*layers, *heard}}
    # Written out, because fused attention and recurrent kernels have no second derivatives.
    with plain_kernels(attention=True, recurrence=True), torch.inference_mode(False), torch.enable_grad():
        value = loss(net(data.inputs, {**net.weights, **leaves}), data.targets)
        gradients = torch.autograd.grad(
            value, [leaves[name] for name in heard], create_graph=bool(layers), materialize_grads=True
        )
        total = torch.stack([(g * hit).square().sum() for g, hit in zip(gradients, heard.values(), strict=True)]).sum()
        if not (layers and total.requires_grad):  # the last look, or nothing that is new was used at all
            return float(total), {}
        slopes = torch.autograd.grad(total, [leaves[name] for name in layers], materialize_grads=True)
    return float(total.detach()), dict(zip(layers, slopes, strict=True))
