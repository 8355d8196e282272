"""Hardening: training so that the network survives what has not happened yet.

One flow, `Harden`, trains on the task; what it trains *against* is a small value (`planaria.repair.against`): units
that fail while it learns, the worst point near by, a penalty on what a failing unit would change. Every gradient
evaluation (one forward and one backward pass over a batch) is in the ledger, so that methods can be compared at equal
cost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Generator

from planaria.core.autodiff import plain_kernels
from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost, Moment
from planaria.core.network import Network, law
from planaria.core.streams import lend, stream
from planaria.measure.task import Task
from planaria.repair.against import B3 as B3
from planaria.repair.against import SAM as SAM
from planaria.repair.against import DamageRepair as DamageRepair
from planaria.repair.against import Dropout as Dropout
from planaria.repair.against import Plain as Plain
from planaria.repair.against import TargetedDropout as TargetedDropout
from planaria.repair.against import UnitFaults as UnitFaults
from planaria.repair.retrain import AdamW, Optimiser, _batches
from planaria.repair.training import Against as Against
from planaria.repair.training import Training


@dataclass(frozen=True)
class Harden:
    """Train the plastic entries on the task's training split, against something.

    Each update: theta' = one optimiser step along the gradient that `against` forms; theta <- theta + plasticity *
    (theta' - theta). Everything else is as in Retrain, and with `Plain()` it is Retrain, bit for bit. In the ledger one
    gradient evaluation is one forward and one backward pass over the batch; an update has `against.evaluations`.

    Args:
        task: What to train on.
        against: Plain, UnitFaults, Dropout, TargetedDropout, SAM, B3, DamageRepair, or anything with their two members.
        optimiser: SGD, Adam, AdamW or anything with `build(parameters)`.
        batch: Examples per update, at least 1; at most the whole training split is used.
        horizon: If given, the rate falls along a half cosine to 0 after this many updates, and stays there.

    Returns (when called with a network and a stream):
        Endless iterator of one moment per update.

    Raises:
        InputError: If batch or horizon is no positive number, or the batch too small for a batch normalisation.
        AnatomyError: If units are to fail and the network has none.

    Not guaranteed: that what survives here survives another kind of damage.

    Example:
        >>> from torch import nn
        >>> from planaria.core.motion import settle, updates
        >>> from planaria.measure.datasets import task
        >>> net = Network.of(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)))
        >>> settle(Harden(task("digits"), SAM()), updates(20)).moment(net, stream(0, "harden")).cost.forward_passes
        20
    """

    task: Task
    against: Against = field(default=UnitFaults())
    optimiser: Optimiser = field(default=AdamW(decay=0.1))
    batch: int = 128
    horizon: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "horizon"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1) and not (name == "horizon" and value is None):
                raise InputError(f"Harden.{name}", "a whole number of at least 1", repr(value))
        if not hasattr(self.against, "begin"):
            raise InputError("Harden.against", "UnitFaults(), SAM() or the like", repr(self.against)[:100])

    def __call__(self, net: Network, rng: Generator, /) -> Iterator[Moment]:
        """Moments of the training, one per update."""
        data = self.task.train.to(net.device)
        net = net.with_inputs(data.inputs)
        size = min(self.batch, len(data))
        passes = self.against.evaluations
        work = 3 * forward_multiply_adds(net, data.inputs) * size * passes
        update = Cost(size * passes, size * passes, passes, passes, work)
        module = net.to_module().train()
        for name, parameter in module.named_parameters():
            plastic = parameter.is_floating_point() and bool((net.plasticity[name] != 0).any())
            parameter.requires_grad_(plastic)
        training = Training(net, self.task, data, module, _apart(rng), self.horizon)
        moving = {name: weight for name, weight in training.weights.items() if weight.requires_grad}
        if not moving:  # nothing is left to train; the work is spent all the same
            spent = Cost()
            while True:
                spent = spent + update
                yield Moment(net, spent)
        gradient = self.against.begin(training)
        slow = {name for name in moving if not bool((net.plasticity[name] == 1).all())}
        optimiser = self.optimiser.build(moving.values())  # type: ignore[arg-type]
        full = [group["lr"] for group in optimiser.param_groups]
        cost = Cost()
        for done, rows in enumerate(_batches(len(data), size, rng)):
            start = time.process_time()
            with lend(rng, net.device), plain_kernels(), torch.inference_mode(False), torch.enable_grad():
                loss = gradient(rows)
                module.zero_grad(set_to_none=True)
                loss.backward()
            if self.horizon is not None:
                share = min(1.0, done / self.horizon)
                for group, rate in zip(optimiser.param_groups, full, strict=True):
                    group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * share))
            before = {name: moving[name].detach().clone() for name in slow | (training.held.keys() & moving.keys())}
            optimiser.step()
            with torch.no_grad():
                for name, old in before.items():
                    plasticity = net.plasticity[name]
                    if name in training.held:
                        plasticity = plasticity.masked_fill(training.held[name], 0.0)
                    moving[name].copy_(law(old, moving[name], plasticity))
            now = net.with_weights(
                {name: weight.detach().clone() for name, weight in moving.items()},
                {name: buffer.detach().clone() for name, buffer in module.named_buffers()},
            )
            cost = cost + update + Cost(seconds=time.process_time() - start)
            yield Moment(now, cost)


def _apart(rng: Generator) -> Generator:
    """A stream of its own that takes nothing from `rng`: with and without faults the batches are the same."""
    copy = Generator(rng.device).set_state(rng.get_state())
    return stream(int(torch.randint(2**62, (), generator=copy)), "faults")
