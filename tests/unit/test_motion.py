"""Budgets and protocols, beside what the laws of the combinators say."""

from __future__ import annotations

import pytest

from cases import NETWORKS
from planaria.core.errors import InputError
from planaria.core.motion import Budget, Cost, chain, perform, repeat, settle, steps
from planaria.core.streams import stream


@pytest.mark.parametrize("amount", [-1, float("nan"), "ten", None])
def test_a_budget_needs_an_amount(amount: object) -> None:
    with pytest.raises(InputError, match=r"Budget\.amount.*at least 0"):
        Budget(amount, "examples")  # type: ignore[arg-type]


def test_a_budget_names_a_measure_of_the_ledger() -> None:
    with pytest.raises(InputError, match=r"Budget\.of.*moments, examples.*'epochs'"):
        Budget(1, "epochs")


def test_a_budget_is_spent_when_it_is_reached() -> None:
    budget = Budget(10, "examples")
    assert not budget.spent(Cost(examples=9, labels=99), moments=99)
    assert budget.spent(Cost(examples=10), moments=0)
    assert budget.used(Cost(examples=7), moments=3) == 7
    assert steps(3).used(Cost(examples=7), moments=3) == 3
    assert Budget(0, "seconds").spent(Cost(), 0)


def test_an_operator_without_a_ledger_costs_nothing() -> None:
    net = NETWORKS["mlp-relu"].network()
    moment = perform(lambda n, rng: n, net, stream(0, "x"))
    assert moment.network is net
    assert moment.cost == Cost()


def test_combinators_show_what_they_are_made_of() -> None:
    assert repr(settle(repeat(chain()), None)) == "settle(repeat(chain()), None)"
    assert chain(chain()) == chain(chain())
    assert chain() != chain(chain())
