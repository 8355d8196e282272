"""Law: the same stream gives the same bytes, another one another result, and no other randomness exists."""

from __future__ import annotations

import random
from itertools import islice

import numpy as np
import pytest
import torch

from cases import FLOWS, FLOWS_ON_NETWORKS, NETWORKS, OPERATORS, NetworkCase, Row, hurt
from planaria.core.network import Network
from planaria.core.streams import stream
from purity import state, world

CASES = pytest.mark.parametrize("case", NETWORKS.values(), ids=str)
PAIRS = pytest.mark.parametrize(("case", "row"), FLOWS_ON_NETWORKS, ids=str)
FLOW = pytest.mark.parametrize("row", FLOWS.values(), ids=str)


def jumped(case: NetworkCase, row: Row, seed: int) -> Network:
    return row.make(case)(case.network(), stream(seed, "law"))


def moved(case: NetworkCase, row: Row, seed: int) -> Network:
    *_, last = islice(row.make(case)(hurt(case), stream(seed, "law")), 3)
    return last.network


def disturb_everything() -> None:
    torch.rand(3)
    np.random.rand(3)  # noqa: NPY002 - this is what must not matter
    random.random()


@CASES
def test_an_operator_is_decided_by_its_stream(case: NetworkCase) -> None:
    for row in OPERATORS.values():
        before = world()
        first = state(jumped(case, row, 1))
        assert world() == before, f"{row}: a global generator was used"
        disturb_everything()
        assert state(jumped(case, row, 1)) == first, row
        if not row.draws:
            assert state(jumped(case, row, 2)) == first, row
        elif not (row.name == "silence-per-layer" and case.name == "one-unit-per-layer"):
            assert any(state(jumped(case, row, seed)) != first for seed in range(2, 8)), row


@PAIRS
def test_a_flow_is_decided_by_its_stream(case: NetworkCase, row: Row) -> None:
    before = world()
    first = state(moved(case, row, 1))
    assert world() == before, "a global generator was used"
    disturb_everything()
    assert state(moved(case, row, 1)) == first
    if row.name == "regrow-only-new" and all(exact == "incoming" for _, _, exact in case.units.values()):
        return  # such units start at zero and nothing else may move
    if row.draws:
        assert any(state(moved(case, row, seed)) != first for seed in (2, 3))
    else:
        assert state(moved(case, row, 2)) == first


@FLOW
def test_what_others_do_between_two_moments_changes_nothing(row: Row) -> None:
    case = NETWORKS["dropout"]
    expected = [state(moment.network) for moment in islice(row.make(case)(hurt(case), stream(1, "law")), 3)]
    seen = []
    for moment in islice(row.make(case)(hurt(case), stream(1, "law")), 3):
        seen.append(state(moment.network))
        disturb_everything()
        torch.manual_seed(len(seen))
    assert seen == expected


def test_two_flows_read_in_turns_do_not_disturb_each_other() -> None:
    case = NETWORKS["dropout"]
    flow = FLOWS["retrain-sgd"].make(case)
    alone = [state(moment.network) for moment in islice(flow(case.network(), stream(1, "a")), 3)]
    pairs = zip(flow(case.network(), stream(1, "a")), flow(case.network(), stream(2, "b")), strict=True)
    assert [state(one.network) for one, _ in islice(pairs, 3)] == alone
