"""Hardening: training so that the network survives what has not happened yet.

One flow, `Harden`, trains on the task; what it trains *against* is a small value (`planaria.repair.against`): units
that fail while it learns, the worst point near by, a penalty on what a failing unit would change. Every gradient
evaluation (one forward and one backward pass over a batch) is in the ledger, so that methods can be compared at equal
cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Generator

from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost, Moment
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.task import Task
from planaria.repair.against import UnitFaults
from planaria.repair.descent import descend, plastic
from planaria.repair.retrain import AdamW, Optimiser
from planaria.repair.training import Against, Training


@dataclass(frozen=True)
class Harden:
    """Train the plastic entries on the task's training split, against something.

    Each update: theta' = one optimiser step along the gradient that `against` forms; theta <- theta + plasticity *
    (theta' - theta). Everything else is as in Retrain. With `Plain()` it ends where Retrain ends: bit for bit where an
    update is cheap, else up to rounding, because Retrain takes short cuts there that hardening has to do without. In
    the ledger one gradient evaluation is one forward and one backward pass over the batch; an update has
    `against.evaluations`.

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
        >>> from planaria.repair.against import SAM
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
        net = net.with_inputs(data.examples)
        size = min(self.batch, len(data))
        passes = self.against.evaluations
        work = 3 * forward_multiply_adds(net, data.inputs) * size * passes
        module = net.to_module().train()
        moving = plastic(net, module)
        training = Training(net, self.task, data, module, _apart(rng), self.horizon)
        return descend(
            net,
            module,
            moving,
            self.against.begin(training) if moving else training.loss,
            self.optimiser.build(moving.values()) if moving else None,
            rng,
            rows=(len(data), size),
            update=Cost(size * passes, size * passes, passes, passes, work),
            horizon=self.horizon,
            plasticity_at=lambda update: training.plasticity,
        )


def _apart(rng: Generator) -> Generator:
    """A stream of its own that takes nothing from `rng`: with and without faults the batches are the same."""
    copy = Generator(rng.device).set_state(rng.get_state())
    return stream(int(torch.randint(2**62, (), generator=copy)), "faults")
