"""Operators jump, flows move, and every move is paid for in a ledger.

An operator maps a network to a network; a flow yields the moments of a motion, each with what it has cost so far.
Four combinators build every schedule in planaria out of them: `chain`, `repeat`, `settle`, `after`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from operator import add
from typing import Protocol, runtime_checkable

from torch import Generator

from planaria.core.errors import InputError
from planaria.core.network import Network


@dataclass(frozen=True)
class Cost:
    """What a motion has used up so far; costs add.

    Attributes:
        examples: Input presentations (one input seen three times counts three).
        labels: Label presentations.
        forward_passes: Batches pushed forward.
        backward_passes: Batches pushed backward; for gradient repairs, the number of updates.
        multiply_adds: Multiply-accumulate operations of matrix products and convolutions (a backward pass counts as
            two forward passes) and of linear solves.
        seconds: Process time of the repair itself, without evaluation.

    Example:
        >>> Cost(examples=2) + Cost(examples=3, labels=1)
        Cost(examples=5, labels=1, forward_passes=0, backward_passes=0, multiply_adds=0, seconds=0.0)
    """

    examples: int = 0
    labels: int = 0
    forward_passes: int = 0
    backward_passes: int = 0
    multiply_adds: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*map(add, vars(self).values(), vars(other).values()))  # once or twice per update: quick

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


class Moment:
    """One point of a flow: the network there and the cost of getting there from the start of the flow.

    A value, although its network may be made only when it is first asked for (see `later`).

    Args:
        network: The network.
        cost: What it has cost to get there.

    Example:
        >>> import torch
        >>> moment = Moment(Network.of(torch.nn.Linear(1, 1)), Cost(examples=2))
        >>> moment.at(moment.cost + Cost(examples=3)).cost.examples
        5
    """

    def __init__(self, network: Network, cost: Cost = Cost()) -> None:
        self._network: Network | _Later = network
        self._cost = cost

    @staticmethod
    def later(network: Callable[[], Network], cost: Cost) -> Moment:
        """A moment whose network is made when it is first asked for, and kept.

        Args:
            network: Makes it; the same network whenever it is called.
            cost: As for any moment.
        """
        moment = Moment.__new__(Moment)
        moment._network, moment._cost = _Later(network), cost
        return moment

    @property
    def network(self) -> Network:
        """The network there."""
        if isinstance(self._network, _Later):
            self._network = self._network.make()
        return self._network

    @property
    def cost(self) -> Cost:
        """What it has cost to get there."""
        return self._cost

    def at(self, cost: Cost) -> Moment:
        """The same network at another cost; it is not made for that."""
        return Moment.later(lambda: self.network, cost)

    def __repr__(self) -> str:
        return f"Moment(network={self.network!r}, cost={self.cost!r})"

    def __reduce__(self) -> tuple[type[Moment], tuple[Network, Cost]]:
        return Moment, (self.network, self.cost)


@dataclass(frozen=True, eq=False)
class _Later:
    """A network that has not been made yet."""

    make: Callable[[], Network]


@runtime_checkable
class Operator(Protocol):
    """A jump: `(network, rng) -> network`. Any function of that form is an operator."""

    def __call__(self, net: Network, rng: Generator, /) -> Network:
        """Network after the jump; the argument is left unchanged."""
        ...


@runtime_checkable
class CostlyOperator(Protocol):
    """An operator that can tell what it spent: beside `(net, rng) -> net` it has `moment(net, rng) -> Moment`."""

    def __call__(self, net: Network, rng: Generator, /) -> Network:
        """Network after the jump."""
        ...

    def moment(self, net: Network, rng: Generator, /) -> Moment:
        """Network after the jump, with its cost."""
        ...


@runtime_checkable
class Flow(Protocol):
    """A motion: `(network, rng) -> iterator of moments`. Any generator function of that form is a flow.

    The moments' costs never decrease. A flow may be endless; who reads it decides when to stop.
    """

    def __call__(self, net: Network, rng: Generator, /) -> Iterator[Moment]:
        """Moments of the motion that starts at `net`."""
        ...


def perform(operator: Operator, net: Network, rng: Generator) -> Moment:
    """Apply an operator and keep the bill: its own if it has one, else a cost of zero.

    Example:
        >>> import torch
        >>> from planaria.core.streams import stream
        >>> net = Network.of(torch.nn.Linear(1, 1))
        >>> perform(lambda net, rng: net, net, stream(0, "x")).cost.examples
        0
    """
    if isinstance(operator, CostlyOperator):
        return operator.moment(net, rng)
    return Moment(operator(net, rng))


_MEASURES = tuple(f.name for f in fields(Cost))


@dataclass(frozen=True)
class Budget:
    """How far a flow may go: until `of` reaches `amount`.

    Args:
        amount: At least 0.
        of: A field of Cost, or "moments" (points yielded by the flow).

    Raises:
        InputError: On a negative amount or an unknown measure.

    Example:
        >>> Budget(10, "examples").spent(Cost(examples=10), moments=1)
        True
    """

    amount: float
    of: str

    def __post_init__(self) -> None:
        if self.of != "moments" and self.of not in _MEASURES:
            raise InputError("Budget.of", f"one of moments, {', '.join(_MEASURES)}", repr(self.of))
        if not (isinstance(self.amount, (int, float)) and self.amount >= 0):
            raise InputError("Budget.amount", "a number of at least 0", self.amount)

    def used(self, cost: Cost, moments: int) -> float:
        """Amount used so far, in the budget's own measure."""
        return moments if self.of == "moments" else float(getattr(cost, self.of))

    def spent(self, cost: Cost, moments: int) -> bool:
        """Whether nothing is left."""
        return self.used(cost, moments) >= self.amount


IDLE = 10_000
"""Moments without any cost after which a flow is taken to be endless in the measure of its budget."""


def within(moments: Iterator[Moment], until: Budget | None) -> Iterator[Moment]:
    """Moments up to the one that uses up the budget; none if there is no budget to begin with.

    Args:
        moments: Of a flow; not read further than needed.
        until: The budget; None for all moments.

    Raises:
        InputError: If the flow goes on and on without spending anything of what the budget counts.

    Example:
        >>> import torch
        >>> from planaria.core.streams import stream
        >>> net = Network.of(torch.nn.Linear(1, 1))
        >>> len(list(within(repeat(chain())(net, stream(0, "x")), steps(3))))
        3
    """
    if until is None:
        yield from moments
        return
    spent, idle = 0.0, 0
    if until.spent(Cost(), 0):
        return
    for count, moment in enumerate(moments, start=1):
        yield moment
        if until.spent(moment.cost, count):
            return
        used = until.used(moment.cost, count)
        idle = 0 if used > spent else idle + 1
        spent = used
        if idle >= IDLE:
            raise InputError(
                "the flow", f"moments that spend {until.of}", f"{idle} moments without", "Use a budget of steps(n)."
            )


def steps(n: int) -> Budget:
    """Budget of n moments: one optimiser update each for retraining, one cycle each for `repeat`."""
    return Budget(n, "moments")


def updates(n: int) -> Budget:
    """Budget of n backward passes."""
    return Budget(n, "backward_passes")


def examples(n: int) -> Budget:
    """Budget of n input presentations."""
    return Budget(n, "examples")


def multiply_adds(n: int) -> Budget:
    """Budget of n multiply-accumulate operations."""
    return Budget(n, "multiply_adds")


def seconds(s: float) -> Budget:
    """Budget of s seconds of process time; results then depend on the machine."""
    return Budget(s, "seconds")


@dataclass(frozen=True)
class Chain:
    """Operators one after another; made by `chain`."""

    operators: tuple[Operator, ...]

    def __call__(self, net: Network, rng: Generator, /) -> Network:
        """Network after it; the cost is dropped."""
        return self.moment(net, rng).network

    def moment(self, net: Network, rng: Generator, /) -> Moment:
        """Network after all operators, with the sum of their costs."""
        total = Moment(net)
        for operator in self.operators:
            one = perform(operator, total.network, rng)
            total = Moment(one.network, total.cost + one.cost)
        return total

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.operators))})"


@dataclass(frozen=True)
class Repeat:
    """One operator again and again; made by `repeat`."""

    operator: Operator

    def __call__(self, net: Network, rng: Generator, /) -> Iterator[Moment]:
        """Moments after each application."""
        cost = Cost()
        while True:
            one = perform(self.operator, net, rng)
            net, cost = one.network, cost + one.cost
            yield Moment(net, cost)

    def __repr__(self) -> str:
        return f"repeat({self.operator!r})"


@dataclass(frozen=True)
class Settle:
    """A flow followed until a budget is used up; made by `settle`."""

    flow: Flow
    until: Budget | None = None

    def __call__(self, net: Network, rng: Generator, /) -> Network:
        """Network after it; the cost is dropped."""
        return self.moment(net, rng).network

    def moment(self, net: Network, rng: Generator, /) -> Moment:
        """Last moment of the flow within the budget."""
        last = Moment(net)
        for last in within(self.flow(net, rng), self.until):  # noqa: B007 - the last one is what is wanted
            pass
        return last

    def __repr__(self) -> str:
        return f"settle({self.flow!r}, {self.until!r})"


@dataclass(frozen=True)
class After:
    """A jump, then a motion; made by `after`."""

    operator: Operator
    flow: Flow

    def __call__(self, net: Network, rng: Generator, /) -> Iterator[Moment]:
        """The operator's moment, then the flow's, with the costs added."""
        first = perform(self.operator, net, rng)
        yield first
        for moment in self.flow(first.network, rng):
            yield moment.at(first.cost + moment.cost)

    def __repr__(self) -> str:
        return f"after({self.operator!r}, {self.flow!r})"


def chain(*operators: Operator) -> Chain:
    """Operators one after another, as one operator: the second sees what the first has made.

    Example:
        >>> chain()
        chain()
    """
    return Chain(operators)


def repeat(operator: Operator) -> Repeat:
    """The endless flow net, o(net), o(o(net)), ...; its moments begin after the first application.

    Example:
        >>> repeat(chain())
        repeat(chain())
    """
    return Repeat(operator)


def settle(flow: Flow, until: Budget | None = None) -> Settle:
    """The operator that follows a flow until the budget is used up, or to its end.

    The last step is not cut: the budget may be exceeded by less than one step of the flow.

    Example:
        >>> settle(repeat(chain()), steps(3))
        settle(repeat(chain()), Budget(amount=3, of='moments'))
    """
    return Settle(flow, until)


def after(operator: Operator, flow: Flow) -> After:
    """The flow that starts where `operator` lands: surgery, then therapy. Its first moment is the surgery's result.

    Example:
        >>> after(chain(), repeat(chain()))
        after(chain(), repeat(chain()))
    """
    return After(operator, flow)
