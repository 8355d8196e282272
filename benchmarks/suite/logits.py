"""B2 and B5: all outputs with each unit silenced, by the delta rules, of a perceptron and of a convolutional net."""

from __future__ import annotations

import torch
from suite.harness import SAME_ROUTE, Row, assert_exact, interleave, one_forward, peak_mib, repetitions, row, same_route
from suite.networks import Case, lenet, mlp
from suite.peers import HOOKS, brute_force, hook_loop
from torch import Tensor

from planaria.measure.data import Data
from planaria.sweep.chain import Chain
from planaria.sweep.delta import silenced


def perceptron(quick: bool) -> list[Row]:
    """B2."""
    case = mlp(quick)
    return [_outputs("B2", case, case.test, quick, {"ratio_naive": 100.0}, {"forwards_equivalent": 9.0})]


def convolutional(quick: bool) -> list[Row]:
    """B5."""
    case = lenet(quick)
    return [_outputs("B5", case, case.few(64 if quick else 1000), quick, {"ratio_naive": 100.0}, {})]


def _outputs(
    id: str, case: Case, data: Data, quick: bool, at_least: dict[str, float], at_most: dict[str, float]
) -> Row:
    """All outputs of all units; those of the units that brute force runs are compared with it."""
    chain = Chain.of(case.net)
    assert isinstance(chain, Chain), chain
    units, some = case.units, case.some()
    layers = list(dict.fromkeys(unit.layer for unit in units))
    counts = {layer: sum(unit.layer == layer for unit in units) for layer in layers}
    naive = brute_force(case, some, data)
    outputs: dict[str, Tensor] = {}

    def brute() -> None:
        outputs["naive"] = naive()

    def ours() -> None:
        found = torch.full((len(some), len(data), 10), torch.nan)
        seen = dict.fromkeys(layers, 0)
        for block in silenced(chain, layers, data.inputs):
            every, first = block.outputs, int(block.units[0])
            seen[block.layer] += every.shape[0] * every.shape[1]
            for place, unit in enumerate(some):
                if unit.layer == block.layer and 0 <= unit.index - first < len(every):
                    found[place, block.examples] = every[unit.index - first]
        assert seen == {layer: count * len(data) for layer, count in counts.items()}, f"{id}: outputs are missing"
        outputs["ours"] = found

    ways = {
        "naive": brute,
        SAME_ROUTE: same_route(brute),
        "ours": same_route(ours),
        "peer": hook_loop(case, some, data),
    }
    times = interleave(ways, repetitions(quick))
    brute()
    difference, _ = assert_exact(outputs["naive"], outputs["ours"], id)
    return row(
        id,
        f"{case.name} unit map, all outputs, {len(units)} units, {len(data):,} inputs",
        times,
        naive_scale=case.scale(some),
        forward_s=one_forward(case.model, data.inputs, case.batch),
        peer=HOOKS,
        peer_scale=case.scale(some),
        difference=difference,
        peak=peak_mib(ways["ours"]),
        at_least=at_least,
        at_most=at_most,
    )


BENCHMARKS = {"B2": perceptron, "B5": convolutional}
