"""Bezier: a curve with one free bend, trained so that all its points have a low loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from planaria.core.devices import clock
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost
from planaria.core.network import Network, law
from planaria.core.trees import Weights
from planaria.geometry.normalise import in_batches
from planaria.geometry.path import Arc, Path
from planaria.geometry.straight import Way, batches, begin, positive
from planaria.measure.task import Task


@dataclass(frozen=True)
class Bezier:
    """A quadratic Bezier curve whose bend c is trained on the task's training loss.

    w(t) = (1 - t)^2 a + 2 t (1 - t) c + t^2 b;   c <- Adam step on loss(w(t)), t ~ U(0, 1), one t per batch

    with the rate falling along a half cosine to 0. The bend starts in the middle, and moves by the law of motion of a:
    entries pinned there stay on the straight line. Batch normalisation uses the statistics of the batch; everything
    else is in eval mode.

    Args:
        updates: Gradient evaluations.
        rate: Of Adam.
        batch: Examples per update.
        start: Way (or path) whose ends are connected; None for the straight line after alignment by weights.

    Raises:
        InputError: A setting that is not positive.

    Example:
        >>> Bezier(updates=100)
        Bezier(updates=100, rate=0.001, batch=128, start=None)

    Source: Garipov et al., 2018; Draxler et al., 2018.
    """

    updates: int = 1000
    rate: float = 1e-3
    batch: int = 128
    start: Way | Path | None = None

    def __post_init__(self) -> None:
        positive("Bezier.updates", self.updates, whole=True)
        positive("Bezier.rate", self.rate)
        positive("Bezier.batch", self.batch, whole=True)

    def __call__(self, a: Network, b: Network, task: Task, rng: Generator, /) -> Path:
        """The trained curve."""
        line = begin(self.start, a, b, task, rng)
        start = clock(a.device)
        data, end = task.train.to(a.device), line.knots[-1]
        middle = Path((a, end))(0.5)
        forward, descent = in_batches(middle), _Descent(middle, self.updates, self.rate)
        bend, curve = descent.weights, Arc()
        size = min(self.batch, len(data))
        for rows in batches(len(data), size, self.updates, rng):
            t = float(torch.rand((), generator=rng))
            rows = rows.to(a.device)
            with torch.enable_grad():
                weights = {
                    name: curve.at([w, bend[name], end.weights[name]], t) if name in bend else middle.weights[name]
                    for name, w in a.weights.items()
                }
                outputs = forward(data.inputs.index_select(0, rows), weights)
                descent.step(task.loss(outputs, data.targets.index_select(0, rows)))
        seen = self.updates * size
        work = 3 * seen * forward_multiply_adds(a, data.inputs)
        cost = Cost(seen, seen, self.updates, self.updates, work, clock(a.device) - start)
        notes = {**line.notes, "gradient evaluations": self.updates}
        return Path((a, descent.network, end), curve, cost=line.cost + cost, notes=notes)


class _Descent:
    """Adam on the weights of a network, which move by its law; the rate falls to 0."""

    def __init__(self, net: Network, updates: int, rate: float) -> None:
        self._net = net
        self.weights: Weights = {
            name: weight.detach().clone().requires_grad_()
            for name, weight in net.weights.items()
            if weight.is_floating_point() and bool((net.plasticity[name] != 0).any())
        }
        self._slow = [name for name in self.weights if bool((net.plasticity[name] != 1).any())]
        self._optimiser = torch.optim.Adam(self.weights.values(), lr=rate, fused=True) if self.weights else None
        self._rate, self._updates, self._done = rate, updates, 0

    def step(self, loss: Tensor) -> None:
        """One update; a loss without gradient leaves everything as it is."""
        self._done += 1
        if self._optimiser is None or not loss.requires_grad:
            return
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        before = {name: self.weights[name].detach().clone() for name in self._slow}
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate * 0.5 * (1.0 + math.cos(math.pi * (self._done - 1) / self._updates))
        self._optimiser.step()
        with torch.no_grad():
            for name, was in before.items():
                self.weights[name].copy_(law(was, self.weights[name], self._net.plasticity[name]))

    @property
    def network(self) -> Network:
        """Where it is now."""
        return self._net.with_weights({name: leaf.detach().clone() for name, leaf in self.weights.items()})
