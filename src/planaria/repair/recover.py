"""Recover: back to the intact function along a path of small steps, without labels.

The weights that the damage took are walked from their intact values to their damaged ones in small steps. At each of
them the surviving weights make good, to first order, what this step and those before it have done to the outputs. With
outputs f for N inputs, their intact values f*, r = f - f*, J the derivatives of the outputs by the weights, P the
plasticity (0 for pinned weights), dS the next displacement of the lost weights, and K = J P J^T / N:

    dF = -P J^T (K + mu I)^-1 (J dS + r) / N,    mu = damping * largest eigenvalue of K

J is taken anew at every step. One step with dS = the whole damage is Optimal Brain Surgeon with the Gauss-Newton
metric; many steps follow the function all the way. Where the lost weights have arrived, steps with dS = 0 go on as long
as they bring the outputs closer.

Equations are solved by conjugate gradients on the side of the outputs, where a product with K is one J and one J^T.
Few products suffice, and so many outputs fit in that a factor of K would take longer at every size that was tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from planaria.core.devices import clock
from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost, Moment
from planaria.core.network import Network
from planaria.core.port import Inputs
from planaria.core.trees import Weights
from planaria.geometry.jacobian import Jacobian
from planaria.geometry.solve import conjugate_gradients
from planaria.repair.sequential import Teacher
from planaria.repair.sidecar import checked_importance

TRIES = 10
"""Steps at most, refused ones included, for each planned one."""
TRUST = 2.0
"""How many times further from the intact outputs a step may lead than its linear prediction."""
RAISED, MOST = 10.0, 1e3
"""What the damping is multiplied by after a refused step and divided by after another, and where the walk gives up."""
STALE, GAIN = 3, 0.01
"""So many corrections in a row that do not bring the squared distance down by this part of it are the last."""
HELD, FOLD = 256, 8
"""From so many inputs on, one in so many is held out: it decides which network is best, and when to stop."""
TOLERANCE, PRODUCTS = 0.03, 20
"""Where conjugate gradients stop: residual relative to the right-hand side, and products."""
POWER = (8, 2)
"""Power iterations for the largest eigenvalue: at first, and from the vector of the step before."""
PRICE = 120
"""Forward passes over an input that a step comes to (measured: 100 on digits, 115 on MNIST, corrections included)."""


@dataclass(frozen=True, eq=False, repr=False)
class Recorded:
    """What an intact network said to unlabelled inputs, recorded before the damage; its weights are not needed.

    Args:
        inputs: Unlabelled inputs [examples, ...], or as the network takes them.
        outputs: What the intact network put out for them [examples, ...].

    Raises:
        InputError: If there are no outputs, or one of them is not finite.

    Example:
        >>> Recorded(torch.zeros(3, 2), torch.zeros(3, 1))
        <Recorded: outputs for 3 unlabelled inputs>
    """

    inputs: Inputs
    outputs: Tensor

    def __post_init__(self) -> None:
        _check_outputs("Recorded.outputs", self.outputs)

    def __repr__(self) -> str:
        return f"<Recorded: outputs for {len(self.outputs)} unlabelled inputs>"


@dataclass(frozen=True, eq=False)
class Recover:
    """Walk the lost weights away and let the others follow, so that the outputs stay; see the module's text.

    With a Teacher the walk starts at the intact weights, and what is lost are the pinned entries that differ from
    them: any damage, of units or single weights. With recorded outputs the damage has happened, and only its
    corrections are left. A step is accepted if it ends within twice the distance that it predicted, or halves what it
    found; if not it is tried again, half as long and with ten times the damping.

    The flow has one moment per accepted step, and its network is the best so far in which all that is lost is lost:
    the damaged network itself, one on the way with the rest of the damage at once, or one from the end. "Best" is the
    least mean squared distance of outputs, on inputs held out where there are 256 or more.

    Before a damage that is planned (pruning, a chip about to be switched off), `plan` gives the way itself.

    Args:
        source: Teacher (the intact network with unlabelled inputs), or Recorded.
        steps: Steps of the path, at least 1, and at most so many corrections after it.
        damping: mu relative to the largest eigenvalue of K, above 0.
        limit: Steps at most, refused ones and corrections included; the last goes the whole rest of the way. By default
            10 times `steps`. Recover(teacher, steps=1, limit=1) is Optimal Brain Surgeon.

    Raises:
        InputError: On other numbers; when called, if the source does not fit the network.

    Source: Raghavan, Li and Thomson, 2020 (recovery along geodesics of the functional metric); the discrete form with
        corrections is our own. One step: Hassibi and Stork, 1993. Note for users: the patent US 12,399,952 B2 may bear
        on recovering damaged networks along geodesic paths; judge for yourself whether it concerns your use. `Refit` is
        the usual repair, and works otherwise.

    Not guaranteed: an improvement. What does not bring the outputs closer is not kept, and the last moment is then the
        damaged network. Statistics of batch normalisation stay as they were in the intact network.

    Example:
        >>> from torch import nn
        >>> from planaria.core.streams import stream
        >>> inputs = torch.randn(50, 2, generator=stream(0, "inputs"))
        >>> net = Network.of(nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 1)), inputs)
        >>> lost = {"2.weight": torch.arange(9)[None] < 4}
        >>> hurt = net.with_weights({"2.weight": net.weights["2.weight"] * ~lost["2.weight"]}).pin(lost)
        >>> *_, last = Recover(Teacher(net, inputs), steps=5)(hurt, stream(0, "recover"))
        >>> gap, left = (float((one(inputs) - net(inputs)).square().mean()) for one in (hurt, last.network))
        >>> left <= gap
        True
    """

    source: Teacher | Recorded
    steps: int = 20
    damping: float = 1e-3
    limit: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, (Teacher, Recorded)):
            expected = "Teacher(intact network, inputs) or Recorded(inputs, outputs)"
            raise InputError("Recover.source", expected, type(self.source).__name__)
        for name, number in (("steps", self.steps), ("limit", self.limit)):
            whole = isinstance(number, int) and not isinstance(number, bool) and number >= 1
            if not whole and not (number is None and name == "limit"):
                raise InputError(f"Recover.{name}", "a whole number of at least 1", repr(number))
        if not (isinstance(self.damping, (int, float)) and 0 < self.damping < math.inf):
            raise InputError("Recover.damping", "a finite number above 0", repr(self.damping))

    def __call__(self, net: Network, rng: Generator, /) -> Iterator[Moment]:
        """Moments of the recovery of a damaged network; each is the best so far."""
        del rng
        walk = _Walk(net, self)
        for _ in walk:
            yield Moment(walk.best, walk.cost)
        yield Moment(walk.best, walk.cost)

    def plan(self, net: Network, rng: Generator, /) -> Iterator[Moment]:
        """Moments of the walk itself: networks on the way from the intact one to the recovered one.

        To follow it, put their weights into the living network one after another and drop the lost ones at the end:
        its outputs stay near the intact ones all the way. The last network has lost everything.

        Args:
            net: The network as the damage will leave it, lost entries pinned: `damage.at(dose)(intact, rng)`.
            rng: Not used; so that `plan` is a flow.
        """
        del rng
        for there in (walk := _Walk(net, self)):
            yield Moment(there, walk.cost)
        yield Moment(walk.best, walk.cost)


def affordable(net: Network, inputs: Inputs, work: float, steps: int = 20) -> int:
    """With how many inputs a walk of so many steps ends within an amount of work; at least 1.

    Args:
        net: The network.
        inputs: Some of the inputs.
        work: Multiply-adds.
        steps: Of the path.

    Example:
        >>> affordable(Network.of(torch.nn.Linear(10, 10)), torch.zeros(2, 10), 24_000_000)
        100
    """
    return max(1, int(work / (PRICE * steps * forward_multiply_adds(net, net.port.rows(inputs)))))


class _Walk:
    """The walk of one network: where it is, what was best, and what it has cost; iterating goes on to the end."""

    def __init__(self, hurt: Network, recover: Recover) -> None:
        start = clock(hurt.device)
        self.hurt, self.recover, self.best = hurt, recover, hurt
        source = recover.source
        where = f"{type(source).__name__}.inputs"
        rows = hurt.port.rows(source.inputs).to(hurt.device)
        if len(rows) == 0 or (rows.is_floating_point() and not bool(rows.isfinite().all())):
            raise InputError(where, "at least one input, all finite", f"{len(rows)} inputs")
        self.plain = hurt.with_autocast(None)
        self.alive: Weights = {}
        self.lost: Weights = {}
        importance = None
        if isinstance(source, Teacher):
            intact = source.net.to(hurt.device).with_autocast(None)
            if {n: w.shape for n, w in intact.weights.items()} != {n: w.shape for n, w in hurt.weights.items()}:
                raise InputError(
                    "Teacher.net", "the intact form of the same network", "weights of other names or shapes"
                )
            importance = checked_importance("Teacher.importance", source.importance, rows)
            wanted = intact(rows)
            _check_outputs("outputs of Teacher.net", wanted)
            lost = {n: (p == 0) & (hurt.weights[n] != intact.weights[n]) for n, p in hurt.plasticity.items()}
            self.lost = {name: hit for name, hit in lost.items() if bool(hit.any())}
            self.alive = {name: intact.weights[name] for name in self.lost}
            self.start = self.placed(self.plain.with_weights({}, intact.buffers).move(intact.weights), 0.0)
        else:
            wanted, self.start = source.outputs.to(hurt.device), self.plain
            if len(wanted) != len(rows):
                raise InputError("Recorded.outputs", f"one for each of the {len(rows)} inputs", f"{len(wanted)}")
        self.each = forward_multiply_adds(hurt, rows)
        self.cost = Cost(len(rows), 0, 1, 0, len(rows) * self.each)
        held = torch.arange(len(rows), device=rows.device) % FOLD == FOLD - 1
        if len(rows) < HELD:
            held[:] = False
        self.known = _Known.of(rows, wanted, importance, ~held)
        self.judge = _Known.of(rows, wanted, importance, held) if bool(held.any()) else self.known
        said = self.plain(rows[:2])
        if not isinstance(said, Tensor) or said.shape[1:] != wanted.shape[1:]:
            expected = f"shape {list(said.shape[1:])} for one input" if isinstance(said, Tensor) else "one tensor"
            raise InputError("Recorded.outputs", expected, f"shape {list(wanted.shape[1:])}")
        self.least = self.judged(self.plain)
        self.cost = self.cost + Cost(seconds=clock(hurt.device) - start)
        self.top: Tensor | None = None

    def __iter__(self) -> Iterator[Network]:
        """Networks after each accepted step."""
        steps, damping = self.recover.steps, self.recover.damping
        limit = TRIES * steps if self.recover.limit is None else self.recover.limit
        net, share, stride = self.start, 0.0 if self.lost else 1.0, 1.0 / steps
        jacobian, now = None, math.inf
        mark, stale, corrections = math.inf, 0, 0
        for left in range(limit, 0, -1):
            start = clock(net.device)
            if jacobian is None:
                jacobian = Jacobian(net, self.known.rows, "Recover(net)")
                self.spend(1, 1, 3)
                now = self.known.distance(jacobian.outputs)
            # In steps that are whole parts of the way, rounding must not leave a last, tiny one.
            to = 1.0 if left == 1 or share + stride > 1 - 1e-6 else share + stride
            moved, found, predicted = self.step(net, jacobian, share, to, damping)
            reached = self.known.distance(self.outputs(moved))
            trusted = reached < now if share == 1.0 else reached <= max(TRUST**2 * predicted, found / 2)
            accepted = math.isfinite(reached) and (trusted or (left == 1 and share < 1.0))
            if accepted:
                net, jacobian = moved, None
                damping, stride = max(self.recover.damping, damping / RAISED), min(1.0 / steps, 2 * stride)
                arrived = share == 1.0
                corrections += arrived
                share = to
                self.look(net, share)
                if arrived and not self.least < (1 - GAIN) * mark:
                    stale += 1
                else:
                    mark, stale = self.least, 0
            else:
                damping, stride = damping * RAISED, stride / 2
            self.cost = self.cost + Cost(seconds=clock(net.device) - start)
            if accepted:
                yield self.given(net)
            if stale == STALE or corrections == steps or damping > MOST:
                return

    def step(
        self, net: Network, jacobian: Jacobian, share: float, to: float, damping: float
    ) -> tuple[Network, float, float]:
        """The network after a step, and by the linear model the squared distance without and with its correction."""
        error = jacobian.outputs - self.known.wanted
        if to > share:
            there = self.placed(net, to)
            error = error + jacobian.push({name: there.weights[name] - net.weights[name] for name in self.lost})
            self.spend(1, 0, 2)
        kernel = _Kernel(jacobian, self.known, net.plasticity)
        wrong = self.known.weighed(error).flatten()
        top, calls = (torch.ones_like(wrong), POWER[0]) if self.top is None else (self.top, POWER[1])
        for _ in range(calls):
            top = kernel(top / top.norm().clamp_min(torch.finfo(top.dtype).tiny))
        largest = float(top.norm())
        if not (largest > 0 and bool(wrong.any())) or not math.isfinite(largest):  # nothing to be moved, or to be done
            return self.placed(net, to), self.known.size(error), self.known.size(error)
        self.top = top
        solved = conjugate_gradients(kernel, wrong, damping * largest, TOLERANCE, PRODUCTS)
        back = jacobian.pull(self.known.weighed(solved.vector.view(error.shape)))
        ahead = {n: (net.weights[n] - change / len(error)).to(net.weights[n].dtype) for n, change in back.items()}
        moved = net.move(ahead)
        follows = jacobian.push({name: moved.weights[name] - net.weights[name] for name in back})
        count = calls + solved.products
        self.spend(count + 1, count + 1, 4 * (count + 1))
        return self.placed(moved, to), self.known.size(error), self.known.size(error + follows)

    def look(self, net: Network, share: float) -> None:
        """Keep a network, with all of the damage done to it, if it is the best so far."""
        there = self.placed(net, 1.0) if share < 1.0 else net
        distance = self.judged(there)
        if distance < self.least:
            self.best, self.least = self.given(there), distance

    def placed(self, net: Network, share: float) -> Network:
        """The network with the lost weights at this share of their way."""
        ends = {name: self.hurt.weights[name] for name in self.lost}
        if share < 1.0:
            ends = {name: torch.lerp(self.alive[name], end, share) for name, end in ends.items()}
        return net.with_weights(
            {name: torch.where(self.lost[name], end, net.weights[name]) for name, end in ends.items()}
        )

    def given(self, net: Network) -> Network:
        """A network of the walk as the user's: in its own precision."""
        return replace(net, port=self.hurt.port)

    def outputs(self, net: Network) -> Tensor:
        """What a network says to the inputs that steps are made from."""
        self.spend(1, 0, 1)
        outputs: Tensor = net(self.known.rows)
        return outputs

    def judged(self, net: Network) -> float:
        """Squared distance on the inputs that decide; infinite where an output is not finite."""
        self.cost = self.cost + Cost(len(self.judge.rows), 0, 1, 0, len(self.judge.rows) * self.each)
        distance = self.judge.distance(net(self.judge.rows))
        return distance if math.isfinite(distance) else math.inf

    def spend(self, forward: int, backward: int, times: int) -> None:
        """Enter passes over the inputs of the steps into the ledger, with their work in forward passes."""
        count = len(self.known.rows)
        work = times * count * self.each
        self.cost = self.cost + Cost(max(forward, backward) * count, 0, forward, backward, work)


@dataclass(frozen=True, eq=False)
class _Known:
    """Inputs with what the intact network says to them.

    Attributes:
        rows: [N, ...].
        wanted: Intact outputs [N, ...].
        roots: Square root of how much each input counts, as wide as the outputs; None where all count the same.
    """

    rows: Tensor
    wanted: Tensor
    roots: Tensor | None

    @staticmethod
    def of(rows: Tensor, wanted: Tensor, importance: Tensor | None, chosen: Tensor) -> _Known:
        """The chosen ones."""
        roots = None
        if importance is not None:
            roots = importance[chosen].sqrt().to(wanted.dtype).view(-1, *[1] * (wanted.ndim - 1))
        return _Known(rows[chosen], wanted[chosen], roots)

    def weighed(self, outputs: Tensor) -> Tensor:
        """Outputs or their differences, times the roots."""
        return outputs if self.roots is None else outputs * self.roots

    def distance(self, outputs: Tensor) -> float:
        """Mean squared distance from the intact outputs."""
        return self.size(outputs - self.wanted)

    def size(self, error: Tensor) -> float:
        """Mean squared length over the inputs."""
        return float(self.weighed(error).double().square().sum()) / len(self.rows)


@dataclass(frozen=True, eq=False)
class _Kernel:
    """u -> K u; outputs of important inputs count more."""

    jacobian: Jacobian
    known: _Known
    plasticity: Mapping[str, Tensor]

    def __call__(self, u: Tensor) -> Tensor:
        back = self.jacobian.pull(self.known.weighed(u.view(self.known.wanted.shape)))
        along = self.jacobian.push({name: self.plasticity[name] * change for name, change in back.items()})
        return self.known.weighed(along).flatten() / len(self.known.rows)


def _check_outputs(where: str, outputs: object) -> None:
    real = isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.ndim > 0 and len(outputs) > 0
    if not real or not bool(torch.as_tensor(outputs).isfinite().all()):
        got = f"{list(outputs.shape)} of {outputs.dtype}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputError(where, "real numbers [examples, ...], all finite, at least one example", got)
