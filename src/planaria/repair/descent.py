"""Descent: the one loop behind everything that trains: gradient, optimiser's step, law of motion.

Dead units never move and emit nothing, so a training that moves every entry for itself need not know of them: it runs
on the network without them (`compacted`), and each moment's network is put together again when somebody asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from planaria.core.anatomy import Anatomy, flat
from planaria.core.autodiff import plain_kernels
from planaria.core.devices import clock
from planaria.core.errors import AnatomyError, InputError
from planaria.core.gemm import DEFAULT, fast_products, fastest_route
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost, Moment
from planaria.core.network import Network, law
from planaria.core.reasons import UNUSED
from planaria.core.streams import lend, stream
from planaria.core.trees import Weights
from planaria.sweep.compact import TOLERANCE, Compact, compact

Gradient = Callable[[Tensor], Tensor]
"""Row numbers of a batch -> the scalar whose gradient is the update's."""

Train = Callable[[Network, Callable[[Weights], Weights]], Iterator[Moment]]
"""Network to start from, and what cuts plasticity of the whole network down to its size -> moments."""

WORTHWHILE = 10_000_000
"""Multiply-adds of an update (some 0.1 ms) from which it pays to look for dead units, for a perceptron, and for the
route of products. Below, every network trains as its module says, bit for bit."""

PROOF = 64
"""Training examples on which the smaller network must be equal."""


class Learner(Protocol):
    """What moves in a training, and how its gradients are formed."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """What the optimiser steps on; not necessarily the network's own weights."""
        ...

    def gradient(self, rows: Tensor, /) -> None:
        """Form the gradient of each parameter for a batch, given by its row numbers."""
        ...

    def plasticity(self, plasticity: Weights, /) -> Weights:
        """Plasticity of the parameters, from that of the network's weights."""
        ...

    def now(self) -> Callable[[], Network]:
        """Keep everything as it is now; what is returned makes a network of it."""
        ...


@dataclass(frozen=True, eq=False)
class _Module:
    """A learner for any module: its loss is differentiated automatically."""

    net: Network
    parameters: Mapping[str, nn.Parameter]
    buffers: Mapping[str, tuple[dict[str, Any], str]]
    loss: Gradient
    rng: Generator
    scaler: torch.amp.GradScaler

    def gradient(self, rows: Tensor) -> None:
        with lend(self.rng, self.net.device), plain_kernels(), torch.enable_grad():
            value = self.loss(rows)
            if not value.requires_grad:
                remedy = "The network or the loss cuts the graph: no_grad, inference_mode, detach, argmax or item."
                raise InputError("the loss in training", "a gradient with respect to the weights", "none", remedy)
            for parameter in self.parameters.values():
                parameter.grad = None  # only now, so that its memory serves for the gradients of this update
            self.scaler.scale(value).backward()

    def plasticity(self, plasticity: Weights) -> Weights:
        return plasticity

    def now(self) -> Callable[[], Network]:
        weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        buffers = {name: values[key].detach().clone() for name, (values, key) in self.buffers.items()}
        return lambda: self.net.with_weights(weights, buffers)


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
    # Gradients of half precision fall out of its range; scaled up they do not, and steps that overflow are left out.
    scaler = torch.amp.GradScaler(net.device.type, enabled=net.port.autocast is torch.float16)
    learner = _Module(net, moving, _buffers(module), loss, rng, scaler)
    rates = [group["lr"] for group in optimiser.param_groups]

    def step(share: float) -> None:
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * share
        scaler.step(optimiser)
        scaler.update()

    yield from follow(
        learner, step, rng, rows=rows, update=update, horizon=horizon, plasticity_at=plasticity_at, spent=cost
    )


def follow(
    learner: Learner,
    step: Callable[[float], None],
    rng: Generator,
    *,
    rows: tuple[int, int],
    update: Cost,
    horizon: int | None,
    plasticity_at: Callable[[int], Weights],
    spent: Cost,
) -> Iterator[Moment]:
    """Endless moments of a training, one per update.

    Args:
        learner: What moves.
        step: Moves its parameters by their gradients, at a share of the full rate.
        rng: Draws the batches.
        rows: Examples there are, and examples per batch.
        update: Cost of one update, without its seconds.
        horizon: Updates after which the rate has fallen to 0.
        plasticity_at: Number of the update -> plasticity of the network's weights.
        spent: Cost before the first update.
    """
    cost = spent
    counts: tuple[int, int, int, int, int] = astuple(update)[:-1]
    device = next(iter(learner.parameters.values())).device
    dear = device.type == "cpu" and update.multiply_adds >= WORTHWHILE
    products = fast_products if dear and fastest_route().name != DEFAULT else nullcontext
    given: Weights | None = None
    brake = Brake((), ())
    for done, batch in enumerate(batches(*rows, rng)):
        start = clock(device)
        with products(device), torch.inference_mode(False):
            learner.gradient(batch.to(device))
        plasticity = plasticity_at(done)
        if plasticity is not given:
            given, brake = plasticity, Brake.of(learner.parameters, learner.plasticity(plasticity))
        before = brake.before()
        step(1.0 if horizon is None else 0.5 * (1.0 + math.cos(math.pi * min(1.0, done / horizon))))
        if brake.held or brake.slow:
            brake.apply(before)
        now = learner.now()
        cost = cost + Cost(*counts, clock(device) - start)
        yield Moment.later(now, cost)


@dataclass(frozen=True, eq=False)
class Brake:
    """The law of motion after an optimiser's step, for one plasticity.

    Attributes:
        held: Parameters of which some entries are pinned and the others ordinary, with which, and their values.
        slow: Parameters with other plasticity anywhere, that, and which pinned entries are -0, if any are.
    """

    held: tuple[tuple[Tensor, Tensor, Tensor], ...]
    slow: tuple[tuple[Tensor, Tensor, Tensor | None], ...]

    @staticmethod
    def of(moving: Mapping[str, Tensor], plasticity: Weights) -> Brake:
        """The law for these parameters; those whose plasticity is 1 everywhere need none."""
        held: list[tuple[Tensor, Tensor, Tensor]] = []
        slow: list[tuple[Tensor, Tensor, Tensor | None]] = []
        for name, weight in moving.items():
            amount, values = plasticity[name], weight.detach()
            least, most = (float(end) for end in amount.aminmax())
            if least == most == 1:
                continue
            minus = None
            if least == 0:
                pinned = amount == 0
                if float((amount * amount - amount).abs().sum()) == 0:  # 0 or 1 everywhere
                    held.append((weight, pinned, values.clone()))
                    continue
                minus = pinned & (values == 0) & values.signbit()
            slow.append((weight, amount, minus if minus is not None and bool(minus.any()) else None))
        return Brake(tuple(held), tuple(slow))

    def before(self) -> list[Tensor]:
        """Values of the slow parameters, to be taken before the step."""
        return [weight.detach().clone() for weight, _, _ in self.slow]

    @torch.no_grad()
    def apply(self, before: Sequence[Tensor]) -> None:
        """Take back from the parameters what must not have moved so far."""
        for weight, pinned, values in self.held:
            torch.where(pinned, values, weight, out=weight)
        for (weight, plasticity, minus), value in zip(self.slow, before, strict=True):
            # The law without its masks, which take twenty times as long and only matter where there is no number.
            moved = torch.lerp(value, weight, plasticity)
            if minus is not None:
                moved.masked_fill_(minus, -0.0)
            weight.copy_(moved if math.isfinite(float(moved.sum())) else law(value, weight, plasticity))


def _buffers(module: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """Buffer name -> where the module keeps it; a forward pass may put another tensor there."""
    places = {id(buffer): (part._buffers, key) for part in module.modules() for key, buffer in part._buffers.items()}
    return {name: places[id(buffer)] for name, buffer in module.named_buffers()}


def outputs_in_training(forward: Callable[[Tensor], Tensor], inputs: Tensor, where: str) -> Tensor:
    """Outputs in train mode, in which a network may do other things than in eval mode.

    Raises:
        InputError: It fails there: batch normalisation refuses a single value per channel (named by the setting
            `where`), a side branch does not fit.
    """
    try:
        return forward(inputs)
    except (RuntimeError, TypeError, LookupError, ValueError, AttributeError, AssertionError) as error:
        if isinstance(error, InputError) or "memory" in str(error):
            raise
        if "more than 1 value per channel" in str(error):
            expected = "two examples or more for a network with batch normalisation"
            raise InputError(where, expected, len(inputs)) from error
        got = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
        remedy = "model.train()(inputs) must work, or it cannot be trained."
        raise InputError("the network in train mode", "one that takes the task's inputs", got, remedy) from error


def batches(total: int, size: int, rng: Generator) -> Iterator[Tensor]:
    """Endless full batches of row numbers; a pass ends inside a batch when it must."""
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(total, generator=rng)])
        full = len(waiting) // size * size
        yield from waiting[:full].split(size)
        waiting = waiting[full:]


def compacted(net: Network, inputs: Tensor, batch: int, train: Train, *, decays: bool) -> Iterator[Moment]:
    """Moments of a training that runs on the network without its dead units where that is exact, else on all of it.

    It is exact (up to rounding) where nothing that goes could move, and where outputs stay the same in eval and in
    train mode, on examples; see `compact`. All entries of a silenced unit are pinned. What else goes (a unit that is
    multiplied by a silenced one) has gradient 0, so that only weight decay could move it. The training must move each
    entry by its own gradient and decay, and pinned entries never. Where an update is cheap, nothing is looked for.

    The networks of the moments are whole: in what was cut out, weights and normalisation statistics are as they were.
    Where the module draws random numbers (dropout), the smaller one draws others than the whole one would.

    Args:
        net: Where it starts.
        inputs: Training inputs [examples, ...].
        batch: Examples per update.
        train: The training.
        decays: Whether it has weight decay.
    """
    start = clock(net.device)
    small = _smaller(net, inputs[: min(batch, PROOF)]) if costly(net, inputs, batch) else None
    if small is None or (decays and _moving(small.network) < _moving(net)):
        return train(net, lambda weights: weights)
    spent = Cost(seconds=clock(net.device) - start)
    return (_expanded(small, moment, spent) for moment in train(small.network, _once(small.shrink)))


def costly(net: Network, inputs: Tensor, batch: int) -> bool:
    """Whether an update costs enough for looking into how it can be made cheaper."""
    return 3 * batch * forward_multiply_adds(net, inputs) >= WORTHWHILE


def _once(shrink: Callable[[Weights], Weights]) -> Callable[[Weights], Weights]:
    """The same, but not done again for the very object that it was last done for."""
    last: Weights = {}
    cut: Weights = {}

    def shrunk(weights: Weights) -> Weights:
        nonlocal last, cut
        if weights is not last:
            last, cut = weights, shrink(weights)
        return cut

    return shrunk


def _expanded(small: Compact, moment: Moment, spent: Cost) -> Moment:
    return Moment.later(lambda: small.expand(moment.network), spent + moment.cost)


def _smaller(net: Network, inputs: Tensor) -> Compact | None:
    """The network without its dead units if it can be trained in the other's place."""
    if net.inputs is None or not any(bool((plasticity == 0).any()) for plasticity in net.plasticity.values()):
        return None
    try:
        if UNUSED in Anatomy.of(net).unreached.values():
            return None  # other inputs may take another way, to weights that would still have the old size
        small = compact(net, inputs)
    except (AnatomyError, InputError):
        return None
    return small if small.units_removed and _alike_in_training(net, small.network, inputs) else None


def _moving(net: Network) -> int:
    """Entries that are not pinned."""
    return sum(int((plasticity != 0).sum()) for plasticity in net.plasticity.values())


def _alike_in_training(net: Network, small: Network, inputs: Tensor) -> bool:
    """Whether two networks put out the same in train mode; where chance decides about that, whether both run."""

    def outputs(one: Network, name: str) -> Tensor:
        with lend(stream(0, name), one.device), plain_kernels(), torch.no_grad():
            return flat(one.port(one.to_module().train(), inputs))

    try:
        first, again, other = outputs(net, "a"), outputs(net, "b"), outputs(small, "a")
    except Exception:  # a module of any make may refuse by any error; training the whole one will say so
        return False
    if not torch.equal(first, again):
        return first.shape == other.shape
    largest = float(first.abs().max())
    return first.shape == other.shape and bool(((first - other).abs() <= TOLERANCE * largest).all())
