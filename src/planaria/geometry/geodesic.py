"""Geodesic: a chain of networks whose outputs change as little as possible from one to the next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor

from planaria.core.devices import clock
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost
from planaria.core.network import Network, law
from planaria.core.trees import Weights
from planaria.geometry.normalise import in_batches
from planaria.geometry.path import Path, Polygon
from planaria.geometry.profile import between_outputs
from planaria.geometry.straight import Way, batches, begin, positive
from planaria.measure.task import Task

PROOF = 1000
"""Training inputs, at most, on which the energy of the chain is compared with that of its start."""


@dataclass(frozen=True)
class Geodesic:
    """A discrete geodesic of the functional metric: a chain of networks between fixed ends with the least energy.

        E = sum_i D(f(w_i), f(w_i+1)),   i = 1 ... n - 1, on batches of training inputs

    D is the Jensen-Shannon divergence of softmax outputs for classes, else the squared difference of outputs. Labels
    are not used. The chain starts evenly spaced on the path of `start`. Gradients are smoothed along the chain (by the
    inverse of its second difference, in which the energy is well conditioned); a step is the mean of past gradients,
    scaled so that each weight tensor moves by `rate` per entry (root mean square), with a rate that rises over the
    first tenth and falls along a half cosine to 0. Networks move by the law of motion of a. If the energy has not
    fallen on 1,000 training inputs, the chain is left as it began, and the notes say so.

    Args:
        nets: Networks of the chain, both ends included; 25 in the source, 9 find as low a barrier for a third.
        updates: Steps, each of one gradient evaluation per inner network.
        rate: Largest step per entry.
        batch: Examples per update.
        start: Way (or path) that it starts from; None for the straight line after alignment by weights.

    Raises:
        InputError: A setting that is not positive, or fewer than 3 networks.

    Example:
        >>> Geodesic(nets=25)
        Geodesic(nets=25, updates=300, rate=0.0003, batch=128, start=None)

    Source: Tan, Long, Zhao and Laine, 2023 (the energy); Raghavan and Thomson, 2021 (geodesics of the metric). The
    smoothing is this package's choice: without it, networks of the chain drift apart in directions that do not count.
    """

    nets: int = 9
    updates: int = 300
    rate: float = 3e-4
    batch: int = 128
    start: Way | Path | None = None

    def __post_init__(self) -> None:
        positive("Geodesic.nets", self.nets, whole=True, least=3)
        positive("Geodesic.updates", self.updates, whole=True)
        positive("Geodesic.rate", self.rate)
        positive("Geodesic.batch", self.batch, whole=True)

    def __call__(self, a: Network, b: Network, task: Task, rng: Generator, /) -> Path:
        """The chain."""
        line = begin(self.start, a, b, task, rng)
        start = clock(a.device)
        data, end = task.train.to(a.device), line.knots[-1]
        inner = tuple(line(place / (self.nets - 1)) for place in range(1, self.nets - 1))
        forward, chain = in_batches(line(0.5)), _Chain(inner, self.updates, self.rate)
        apart, _ = between_outputs(task, data)

        def energy(rows: Tensor) -> Tensor:
            x, targets = data.inputs.index_select(0, rows), data.targets.index_select(0, rows)
            said = [forward(x, weights) for weights in chain.weights]
            outputs = [line.knots[0](x), *said, end(x)]
            return torch.stack([apart(one, two, targets) for one, two in pairwise(outputs)]).sum()

        size = min(self.batch, len(data))
        proof = torch.randperm(len(data), generator=rng)[:PROOF].to(a.device)
        with torch.no_grad():
            before = float(energy(proof))
        for rows in batches(len(data), size, self.updates, rng):
            with torch.enable_grad():
                value = energy(rows.to(a.device))
            chain.step(value)
        with torch.no_grad():
            after = float(energy(proof))
        falls = after < before
        count = self.updates * len(inner)
        seen = (count + 2 * self.updates) * size + 2 * self.nets * len(proof)
        work = (3 * count + 2 * self.updates) * size + 2 * self.nets * len(proof)
        cost = Cost(
            seen,
            0,
            count + 2 * self.updates + 2 * self.nets,
            count,
            work * forward_multiply_adds(a, data.inputs),
            clock(a.device) - start,
        )
        notes = {
            **line.notes,
            "gradient evaluations": count,
            "energy before": before,
            "energy after": after,
            "kept": falls,
        }
        knots = (line.knots[0], *(chain.networks() if falls else inner), end)
        return Path(knots, Polygon(), cost=line.cost + cost, notes=notes)


class _Chain:
    """Weights of the inner networks of a chain, and how they descend.

    Args:
        nets: Where it starts.
        updates: Steps that there will be.
        rate: Largest step per entry.
    """

    def __init__(self, nets: tuple[Network, ...], updates: int, rate: float) -> None:
        self._nets, self._updates, self._rate, self._done = nets, updates, rate, 0
        first, count = nets[0], len(nets)
        self._stacks = {  # weight name -> [networks, ...]
            name: torch.stack([net.weights[name] for net in nets]).requires_grad_()
            for name, weight in first.weights.items()
            if weight.is_floating_point() and bool((first.plasticity[name] != 0).any())
        }
        ones = torch.ones(count - 1, dtype=torch.float64)
        bends = 2 * torch.eye(count, dtype=torch.float64) - torch.diag(ones, 1) - torch.diag(ones, -1)
        self._smooth = torch.linalg.inv(bends).to(first.device)
        self._means: Weights = {}
        self._squares: Weights = {}

    @property
    def weights(self) -> list[Weights]:
        """Of each network, those that can move with their gradients."""
        return [
            {**net.weights, **{name: stack[at] for name, stack in self._stacks.items()}}
            for at, net in enumerate(self._nets)
        ]

    def step(self, energy: Tensor) -> None:
        """One update."""
        self._done += 1
        if not energy.requires_grad:
            return
        gradients = torch.autograd.grad(energy, list(self._stacks.values()), allow_unused=True)
        share = min(1.0, 10 * self._done / self._updates) * 0.5
        rate = self._rate * share * (1.0 + math.cos(math.pi * self._done / self._updates))
        for (name, stack), gradient in zip(self._stacks.items(), gradients, strict=True):
            if gradient is None:
                continue
            gradient = torch.tensordot(self._smooth.to(gradient), gradient, 1)
            old, square = self._means.get(name), self._squares.get(name)
            mean = 0.1 * gradient if old is None else 0.9 * old + 0.1 * gradient
            size = gradient.square().mean()
            square = 0.01 * size if square is None else 0.99 * square + 0.01 * size
            self._means[name], self._squares[name] = mean, square
            scale = (square / (1 - 0.99**self._done)).sqrt() * (1 - 0.9**self._done)
            target = stack.detach() - rate * mean / scale.clamp_min(torch.finfo(scale.dtype).tiny)
            plasticity = self._nets[0].plasticity[name].expand(stack.shape)
            self._stacks[name] = law(stack.detach(), target, plasticity).requires_grad_()

    def networks(self) -> tuple[Network, ...]:
        """Where they are now."""
        return tuple(
            net.with_weights({name: stack.detach()[at].clone() for name, stack in self._stacks.items()})
            for at, net in enumerate(self._nets)
        )
