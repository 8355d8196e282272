"""Gates: what silencing units would change, from derivatives alone, and what it does change.

With a gain g on all that unit i emits, g = 1 intact and 0 silent, d_i(x) = df(x) / dg at g = 1 is the first-order
change of the outputs: the sum over positions of J_z(x)[:, i] z_i(x), z_i the unit's activation. Its gate vulnerability
is c_i = mean over x of |d_i(x)|^2, and of a set S silenced together it is mean over x of |sum over S of d_i(x)|^2,
which has the cross terms mean of <d_i, d_j> that a sum of the c_i leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from planaria.core.anatomy import Anatomy, Group, Unit
from planaria.core.devices import without_tf32
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.geometry.metric import Geometry
from planaria.measure.data import Data
from planaria.measure.task import Task
from planaria.sweep.lesions import Lesion
from planaria.sweep.program import Program
from planaria.sweep.replay import base_of, chunk_size, chunks, resumed

BASIS = 100
"""Outputs up to which each has a backward pass of its own."""
PROBES = 64
"""Random directions in their place where there are more."""
POOL = 1500
"""Units up to which all cross terms are kept."""


@dataclass(frozen=True, eq=False)
class Gated:
    """First-order changes of the outputs by units, layer after layer.

    Attributes:
        predicted: c_i, mean squared length of the change per input, [units], double.
        activation: Root mean square of what a unit emits, all positions together, [units], double.
        pool: Units whose cross terms are known, [pool].
        cross: Mean inner products of their changes, [pool, pool], double.
        probes: Random directions that stand for the outputs; 0 where each output was taken.
    """

    predicted: Tensor
    activation: Tensor
    pool: Tensor
    cross: Tensor
    probes: int

    def together(self, units: Sequence[int]) -> float:
        """First-order change of a set with its cross terms; units of the pool only.

        Args:
            units: Numbers of units, counted through all layers.
        """
        places = torch.searchsorted(self.pool, torch.tensor(list(units)))
        return max(0.0, float(self.cross[places][:, places].sum()))

    def greedy(self, size: int) -> list[int]:
        """Units that change most together to first order, each chosen as the worst given those before it."""
        chosen: list[int] = []
        own, shared = self.cross.diagonal(), torch.zeros(len(self.pool), dtype=torch.float64)
        while len(chosen) < min(size, len(self.pool)):
            gain = own + 2 * shared
            gain[chosen] = -math.inf
            chosen.append(int(gain.argmax()))
            shared += self.cross[chosen[-1]]
        return self.pool[chosen].tolist()


@without_tf32()
def gated(
    program: Program,
    layers: Mapping[str, int],
    inputs: Tensor,
    of: Geometry,
    *,
    pool: Tensor | None = None,
    seed: int = 0,
) -> Gated:
    """First-order changes of the outputs by each unit, all units from one backward pass per output.

    Args:
        program: Of the network.
        layers: Layer -> number of units; all must have gates.
        inputs: [examples, ...].
        of: How changes of outputs are measured.
        pool: Units whose cross terms are wanted, counted through all layers, ascending; by default all, or none where
            there are more than 1,500.
        seed: Of random directions, which stand for the outputs where there are more than 100.

    Raises:
        InputError: A pass that cannot be differentiated.

    Example:
        >>> from torch import nn
        >>> from planaria.geometry.metric import Euclidean
        >>> net = Network.of(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)), torch.ones(1, 2))
        >>> ones = {"0.weight": torch.ones(2, 2), "0.bias": torch.zeros(2), "2.weight": torch.tensor([[3.0, -1.0]])}
        >>> found = gated(Program.of(net.with_weights(ones)), {"0": 2}, torch.ones(4, 2), Euclidean())
        >>> found.predicted.tolist(), found.together([0, 1])
        ([36.0, 4.0], 16.0)

    Source: Raghavan, Li and Thomson 2020 (Geometric algorithms for predicting resilience and recovering damage in
        neural networks), with gates in place of weights; divided by p it is the variance b3 of Volodin et al. 2019.

    Not guaranteed: that it is what happens: it is of first order, see `changes`.
    """
    total = sum(layers.values())
    if pool is None:
        pool = torch.arange(total if total <= POOL else 0)
    places = sorted({gate.at for layer in layers for gate in program.gates[layer]})
    predicted, squares = (torch.zeros(total, dtype=torch.float64) for _ in range(2))
    cross = torch.zeros(len(pool), len(pool), dtype=torch.float64)
    rng, probes = stream(seed, "gates"), 0
    for x in inputs.split(min(chunk_size(program, inputs.device), 256)):
        size = program.run(x[:1])[program.output].numel()
        probes = 0 if size <= BASIS else PROBES
        for number in range(probes or size):
            pairs = _slopes(program, x, places, _read(of, number, probes, rng))
            change = torch.cat([_sums(program, layer, count, pairs) for layer, count in layers.items()], 1)
            change = (change / math.sqrt(probes or 1)).double().cpu()
            predicted += change.square().sum(0)
            cross += change[:, pool].T @ change[:, pool]
            if number == 0:
                own = {at: (value.square(), torch.ones_like(value)) for at, (value, _) in pairs.items()}
                busy = torch.cat([_sums(program, layer, count, own) for layer, count in layers.items()], 1)
                squares += busy.double().sum(0).cpu()
    examples = max(1, len(inputs))
    return Gated(predicted / examples, (squares / examples).sqrt(), pool, cross / examples, probes)


def _slopes(
    program: Program, x: Tensor, places: list[int], numbers: Callable[[Tensor], Tensor]
) -> dict[int, tuple[Tensor, Tensor]]:
    try:
        return dict(zip(places, program.slopes(x, places, numbers)[1], strict=True))
    except (RuntimeError, NotImplementedError) as problem:
        if "memory" in str(problem):
            raise
        said = (str(problem).splitlines() or ["no message"])[0][:120]
        raise InputError("resilience(net)", "a pass that can be differentiated", said) from None


def _read(of: Geometry, number: int, probes: int, rng: Generator) -> Callable[[Tensor], Tensor]:
    """One number per example whose derivative is one row of the factor R of the geometry R^T R, or a random sum."""

    def read(outputs: Tensor) -> Tensor:
        rows = of.half(outputs.detach(), outputs).reshape(len(outputs), -1)
        if not probes:
            return rows[:, number]
        signs = torch.randint(2, rows.shape, generator=rng).to(rows) * 2 - 1
        return (signs * rows).sum(1)

    return read


def _sums(program: Program, layer: str, count: int, pairs: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
    """Sums of value times slope over all that each unit emits, [examples, units]."""
    parts = [gate.sums(pairs[gate.at][0] * pairs[gate.at][1], count) for gate in program.gates[layer]]
    return torch.stack(parts).sum(0)


@without_tf32()
def changes(program: Program, lesions: Sequence[Lesion], inputs: Tensor, of: Geometry) -> list[float]:
    """What silencing units really changes: the mean squared length of the change of outputs, for each lesion.

    Args:
        program: Of the network.
        lesions: Of units.
        inputs: [examples, ...].
        of: How changes of outputs are measured, at the intact network.
    """
    found = [0.0] * len(lesions)
    for place, outputs, intact, _ in _silenced(program, lesions, inputs, inputs):
        found[place] += float(of.half(intact, outputs - intact).double().square().sum())
    return [value / max(1, len(inputs)) for value in found]


@without_tf32()
def loss_rises(program: Program, lesions: Sequence[Lesion], data: Data, task: Task) -> list[float]:
    """How much the mean loss rises with each lesion.

    Args:
        program: Of the network.
        lesions: Of units.
        data: Inputs and targets.
        task: For its loss.
    """
    found = [0.0] * len(lesions)
    for place, outputs, intact, targets in _silenced(program, lesions, data.inputs, data.targets):
        found[place] += len(outputs) * float(task.loss(outputs, targets) - task.loss(intact, targets))
    return [value / max(1, len(data)) for value in found]


def _silenced(
    program: Program, lesions: Sequence[Lesion], inputs: Tensor, targets: Tensor
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Place of a lesion, outputs with and without it, targets; some inputs at a time."""
    keep = base_of(program, lesions)
    for x, t in chunks(inputs, targets, chunk_size(program, inputs.device)):
        base = program.run(x, keep=keep)
        for place, lesion in enumerate(lesions):
            yield place, resumed(program, base, lesion), base[program.output], t


def magnitudes(net: Network, group: Group) -> Tensor:
    """Euclidean norm of the entries by which each unit of a layer is read, or else made; [units], double.

    Example:
        >>> from torch import nn
        >>> net = Network.of(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), torch.ones(1, 2))
        >>> bool(torch.allclose(magnitudes(net, Anatomy.of(net).groups[0]).float(), net.weights["2.weight"][0].abs()))
        True
    """
    total = torch.zeros(group.count + 1, dtype=torch.float64)
    for name, owner in displaced(group).items():
        square = net.weights[name].detach().double().cpu().square()
        total.index_add_(0, owner.cpu().expand_as(square).flatten() % (group.count + 1), square.flatten())
    return total[:-1].sqrt()


def displaced(group: Group) -> Mapping[str, Tensor]:
    """Weights by which units of a layer are silenced, with the unit of each entry: outgoing ones, else the inner."""
    owners = group.owners
    if group.exact_by != "incoming":
        return owners["outgoing"]
    return {**owners["incoming"], **owners["scale"], **owners["shift"]}


def displacement(net: Network, units: Sequence[Unit]) -> dict[str, Tensor]:
    """The displacement that silences units: minus their outgoing entries (or inner ones), 0 elsewhere.

    Moving incoming and outgoing entries at once would count a unit twice: the output is their product, and its
    derivative along both is twice that along one.

    Args:
        net: The network.
        units: Of it.
    """
    chosen: dict[str, list[int]] = {}
    for unit in units:
        chosen.setdefault(unit.layer, []).append(unit.index)
    found = {name: torch.zeros_like(weight) for name, weight in net.weights.items()}
    for group in Anatomy.of(net).groups:
        if group.layer in chosen:
            picked = torch.zeros(group.count + 1, dtype=torch.bool)
            picked[chosen[group.layer]] = True
            for name, owner in displaced(group).items():
                hit = picked[owner.cpu()].expand_as(found[name]).to(net.device)
                found[name] = torch.where(hit, -net.weights[name], found[name])
    return found
