"""Law: the algebra of chain, repeat, settle and after; costs add; budgets overshoot by less than a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from cases import NETWORKS, OPERATORS, NetworkCase
from planaria.core.motion import (
    Budget,
    Cost,
    CostlyOperator,
    Flow,
    Moment,
    Operator,
    after,
    chain,
    examples,
    multiply_adds,
    perform,
    repeat,
    seconds,
    settle,
    steps,
    updates,
)
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.repair.retrain import SGD, Retrain
from purity import state

CASES = pytest.mark.parametrize("case", [NETWORKS[n] for n in ("mlp-relu", "cnn-batchnorm", "dropout")], ids=str)
costs = st.builds(Cost, *[st.integers(0, 10**9)] * 5, st.floats(0, 1e6))


@dataclass(frozen=True)
class Add:
    """Adds a number to every weight; costs that many examples."""

    number: float
    price: int = 1

    def __call__(self, net: Network, rng: Generator, /) -> Network:
        return self.moment(net, rng).network

    def moment(self, net: Network, rng: Generator, /) -> Moment:
        noise = self.number * torch.rand((), generator=rng)
        moved = net.with_weights({name: w + noise.to(w) for name, w in net.weights.items()})
        return Moment(moved, Cost(examples=self.price, forward_passes=1))


def end(operator: Operator, case: NetworkCase, seed: int = 0) -> tuple[tuple[str, str], Cost]:
    moment = perform(operator, case.network(), stream(seed, "x"))
    return state(moment.network), timeless(moment.cost)


def timeless(cost: Cost) -> Cost:
    return cost - Cost(seconds=cost.seconds)


@given(costs, costs, costs)
@settings(max_examples=50, deadline=None)
def test_costs_add_field_by_field(a: Cost, b: Cost, c: Cost) -> None:
    for field in fields(Cost):
        assert getattr(a + b, field.name) == getattr(a, field.name) + getattr(b, field.name)
    assert timeless(a + b + c) == timeless(a + (b + c))
    assert a + Cost() == a
    assert timeless(a + b - b) == timeless(a)


@CASES
def test_chain_is_associative_and_chain_of_nothing_does_nothing(case: NetworkCase) -> None:
    a, b, c = OPERATORS["silence"].make(case), OPERATORS["noise"].make(case), OPERATORS["settled"].make(case)
    flat = end(chain(a, b, c), case)
    assert end(chain(chain(a, b), c), case) == end(chain(a, chain(b, c)), case) == flat
    assert end(chain(chain(), a, chain(), b, c), case) == flat
    net = case.network()
    assert chain()(net, stream(0, "x")) is net


@CASES
def test_chain_means_first_a_then_b(case: NetworkCase) -> None:
    net, rng = case.network(), stream(0, "x")
    a, b = Add(1.0), Add(2.0)
    assert state(chain(a, b)(net, stream(0, "x"))) == state(b(a(net, rng), rng))


@CASES
@pytest.mark.parametrize("n", [0, 1, 3])
def test_settling_a_repetition_is_that_many_applications(case: NetworkCase, n: int) -> None:
    operator = OPERATORS["cycle"].make(case)
    assert end(settle(repeat(operator), steps(n)), case) == end(chain(*[operator] * n), case)


@CASES
def test_settling_to_zero_steps_does_nothing_and_costs_nothing(case: NetworkCase) -> None:
    moment = settle(Retrain(case.task()), updates(0)).moment(case.network(), stream(0, "x"))
    assert moment.network is case.network()
    assert moment.cost == Cost()


@CASES
def test_after_is_surgery_first_and_its_first_moment_is_the_surgerys(case: NetworkCase) -> None:
    surgery, therapy = chain(Add(1.0, price=7)), Retrain(case.task(), SGD(0.01), batch=8)
    moments = list(islice(after(surgery, therapy)(case.network(), stream(0, "x")), 4))
    rng = stream(0, "x")
    first = perform(surgery, case.network(), rng)
    expected = [first, *islice(therapy(first.network, rng), 3)]
    assert [state(m.network) for m in moments] == [state(m.network) for m in expected]
    base = moments[0].cost
    assert base == Cost(examples=7, forward_passes=1)
    assert [timeless(m.cost - base) for m in moments[1:]] == [timeless(m.cost) for m in expected[1:]]


@CASES
def test_costs_add_through_every_combinator(case: NetworkCase) -> None:
    flow = Retrain(case.task(), SGD(0.01), batch=8)
    one = timeless(next(iter(flow(case.network(), stream(0, "x")))).cost)
    inner = chain(Add(1.0, price=5), settle(flow, steps(2)))
    expected = Cost(examples=5, forward_passes=1) + one + one
    assert end(inner, case)[1] == expected
    assert end(settle(repeat(inner), steps(3)), case)[1] == expected + expected + expected
    assert end(settle(after(inner, repeat(inner)), steps(3)), case)[1] == expected + expected + expected


@CASES
def test_moments_of_a_flow_never_get_cheaper(case: NetworkCase) -> None:
    flow = after(Add(1.0), repeat(chain(Add(1.0), settle(Retrain(case.task(), batch=8), steps(1)))))
    bills = [m.cost for m in islice(flow(case.network(), stream(0, "x")), 5)]
    for earlier, later in pairwise(bills):
        assert all(getattr(later, f.name) >= getattr(earlier, f.name) for f in fields(Cost))


@pytest.mark.parametrize("of", ["moments", "examples", "labels", "forward_passes", "backward_passes", "multiply_adds"])
@given(amount=st.integers(1, 60))
@settings(max_examples=8, deadline=None)
def test_a_budget_is_overshot_by_less_than_one_step(of: str, amount: int) -> None:
    case = NETWORKS["mlp-relu"]
    flow = Retrain(case.task(), SGD(0.01), batch=3)
    step = next(iter(flow(case.network(), stream(0, "x")))).cost
    price = 1 if of == "moments" else getattr(step, of)
    budget = Budget(amount * max(1, price // 4), of)
    total = settle(flow, budget).moment(case.network(), stream(0, "x")).cost
    used = total.backward_passes if of == "moments" else getattr(total, of)
    assert budget.amount <= used < budget.amount + price


def test_a_flow_that_ends_by_itself_settles_at_its_end() -> None:
    case = NETWORKS["mlp-relu"]

    def three(net: Network, rng: Generator, /) -> Iterator[Moment]:
        return islice(repeat(Add(1.0))(net, rng), 3)

    assert end(settle(three), case) == end(settle(three, steps(99)), case) == end(chain(*[Add(1.0)] * 3), case)


def test_a_flow_without_moments_leaves_the_network() -> None:
    net = NETWORKS["mlp-relu"].network()
    assert settle(lambda net, rng: iter(()), steps(3))(net, stream(0, "x")) is net


def test_settling_reads_no_moment_beyond_the_budget() -> None:
    seen = []

    def watched(net: Network, rng: Generator, /) -> Iterator[Moment]:
        for moment in repeat(Add(1.0))(net, rng):
            seen.append(moment)
            yield moment

    settle(watched, steps(4))(NETWORKS["mlp-relu"].network(), stream(0, "x"))
    assert len(seen) == 4


def test_the_words_for_budgets_name_their_measures() -> None:
    made = [steps(2), updates(2), examples(2), multiply_adds(2), seconds(2.0)]
    assert [budget.of for budget in made] == [
        "moments",
        "backward_passes",
        "examples",
        "multiply_adds",
        "seconds",
    ]


def test_functions_and_generators_are_operators_and_flows() -> None:
    assert isinstance(lambda net, rng: net, Operator)
    assert isinstance(repeat(chain()), Flow)
    assert isinstance(settle(repeat(chain())), CostlyOperator)
    assert not isinstance(lambda net, rng: net, CostlyOperator)
