"""Distillation: training without labels, towards what the intact network says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import log_softmax

from planaria.core.devices import clock
from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost, Moment
from planaria.core.network import Network
from planaria.core.port import Inputs
from planaria.measure.task import FORWARD_BATCH, Data, Loss, Task, mse
from planaria.measure.unlabelled import class_axis
from planaria.repair.retrain import Adam, Optimiser, Retrain


@dataclass(frozen=True, eq=False, repr=False)
class Distil:
    """Train the plastic entries so that the outputs match those of the intact network, without labels.

    Retraining (see `Retrain`) on a distance between outputs f(x) and intact outputs f*(x), mean over inputs:

        mean (f - f*)^2                                     without a temperature, for any network
        T^2 sum_c s(f*/T) (log s(f*/T) - log s(f/T))        with one, for class scores; s is the softmax over classes

    of sequences the mean over all positions.

    The intact outputs are computed once, in eval mode, and are in the first moment's ledger. Labels are never read.

    Args:
        teacher: The intact network.
        inputs: Unlabelled inputs [examples, ...], or as the network takes them.
        optimiser: As for Retrain.
        batch: Examples per update, at least 1; at most all inputs are used.
        temperature: T of the second distance, above 0. For classifiers 4 is better than none: 100 updates after a refit
            of MLPs with 90 % of their units deleted end 0.5 points (MNIST) to 1.2 points (digits) higher.
        horizon: As for Retrain: updates after which the rate has fallen to 0.

    Returns (when called with a network and a stream):
        Endless iterator of one moment per update.

    Raises:
        InputError: If there are no inputs, one of them or an output is not finite, batch or temperature is no positive
            number, or there is a temperature and the outputs are no class scores [examples, classes, ...] or
            [examples, ..., classes].

    Source: Hinton, Vinyals and Dean, 2015; with squared errors of the outputs as in Ba and Caruana, 2014.

    Not guaranteed: a better score: the teacher's mistakes are learnt too.

    Example:
        >>> import torch
        >>> from planaria.core.streams import stream
        >>> net = Network.of(torch.nn.Linear(2, 1))
        >>> next(Distil(net, torch.ones(8, 2))(net, stream(0, "x"))).cost.labels
        0
    """

    teacher: Network
    inputs: Inputs
    optimiser: Optimiser = field(default=Adam())
    batch: int = 128
    temperature: float | None = None
    horizon: int | None = None

    def __post_init__(self) -> None:
        rows = self.teacher.port.rows(self.inputs)
        finite = not rows.is_floating_point() or bool(rows.isfinite().all())
        if rows.ndim == 0 or len(rows) == 0 or not finite:
            raise InputError("Distil.inputs", "inputs [examples, ...], at least one, all finite", "others")
        if not (isinstance(self.batch, int) and self.batch >= 1):
            raise InputError("Distil.batch", "a number of examples of at least 1", self.batch)
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise InputError("Distil.temperature", "a finite number above 0, or None", self.temperature)

    def __call__(self, net: Network, rng: Generator, /) -> Iterator[Moment]:
        """Moments of the training, one per update."""
        start = clock(net.device)
        inputs = self.teacher.port.rows(self.inputs).to(net.device)
        with torch.no_grad():
            outputs = [self.teacher.to(net.device)(part) for part in inputs.split(FORWARD_BATCH)]
        if not all(isinstance(part, Tensor) and bool(part.isfinite().all()) for part in outputs):
            raise InputError("Distil.teacher", "a network whose outputs are one tensor, all finite", "another")
        data = Data(inputs, torch.cat(outputs), self.teacher.port.layout)
        task = Task.of("distillation", data, data, validation=data, loss=self._loss(data), score="r2")
        asked = Cost(
            examples=len(inputs),
            forward_passes=len(outputs),
            multiply_adds=len(inputs) * forward_multiply_adds(net, inputs),
            seconds=clock(net.device) - start,
        )
        for moment in Retrain(task, self.optimiser, self.batch, self.horizon)(net, rng):
            yield moment.at(asked + replace(moment.cost, labels=0))

    def _loss(self, data: Data) -> Loss:
        temperature = self.temperature
        if temperature is None:
            return mse
        try:
            axis = class_axis(data.targets, data)
        except InputError as problem:
            expected = f"None for a network without class scores ({problem.expected})"
            raise InputError("Distil.temperature", expected, temperature, "Leave it out.") from None

        def softened(outputs: Tensor, targets: Tensor) -> Tensor:
            said, meant = (log_softmax(scores / temperature, axis) for scores in (outputs, targets))
            return temperature**2 * (meant.exp() * (meant - said)).sum(axis).mean()

        return softened

    def __repr__(self) -> str:
        settings = f"{self.optimiser!r}, batch={self.batch}, temperature={self.temperature}"
        return f"<Distil: {len(self.teacher.port.rows(self.inputs))} unlabelled inputs, {settings}>"
