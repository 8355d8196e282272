"""Law: silencing twice is silencing once, and disjoint silences commute, to the last bit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import NETWORKS, NetworkCase
from planaria.core.anatomy import Anatomy, Unit
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RankedUnits
from purity import state

CASES = pytest.mark.parametrize("case", NETWORKS.values(), ids=str)


def silenced(net: Network, units: list[Unit]) -> Network:
    return Damage(Silence(), RankedUnits(tuple(units))).at(1.0)(net, stream(0, "x"))


@CASES
def test_silence_is_idempotent_and_disjoint_silences_commute(case: NetworkCase) -> None:
    net = case.network()
    units = list(Anatomy.of(net).units())

    @settings(max_examples=8, deadline=None)
    @given(st.permutations(units), st.integers(0, len(units)), st.integers(0, len(units)))
    def check(order: list[Unit], one: int, two: int) -> None:
        cut, end = sorted((one, two))
        a, b = order[:cut], order[cut:end]
        once = silenced(net, a)
        assert state(silenced(once, a)) == state(once)
        forth, back = silenced(once, b), silenced(silenced(net, b), a)
        assert state(forth) == state(back) == state(silenced(net, a + b))

    check()
