"""B6 and B8: every unit of networks with skip connections, exact (B6: also bit-identical)."""

from __future__ import annotations

from suite.harness import (
    SAME_ROUTE,
    Row,
    assert_exact,
    assert_scores,
    interleave,
    one_forward,
    peak_mib,
    repetitions,
    row,
    same_route,
)
from suite.networks import Case, resnet20, vit
from suite.peers import brute_force, peers
from torch import Tensor

from planaria.measure.data import Data
from planaria.measure.scores import ACCURACY
from planaria.sweep.fuse import fuse
from planaria.sweep.lesions import Selection
from planaria.sweep.program import Program
from planaria.sweep.replay import replayed_units
from planaria.sweep.tally import Judge


def residual(quick: bool) -> list[Row]:
    """B6: ResNet-20, by replay with the network's own operations and with fused ones."""
    case, data = resnet20(quick), 8 if quick else 64
    few = case.few(data)
    return [
        _map("B6", f"{case.name} unit map, exact", case, few, quick, False, {"ratio_naive": 7.0}),
        _map("B6", f"{case.name} unit map, bit-identical", case, few, quick, True, {"ratio_naive": 3.0}),
    ]


def transformer(quick: bool) -> list[Row]:
    """B8, exact."""
    case = vit(quick)
    few = case.few(8 if quick else 48)
    return [_map("B8", f"{case.name} neurons, exact", case, few, quick, False, {"ratio_naive": 5.0})]


def _map(id: str, work: str, case: Case, data: Data, quick: bool, bitwise: bool, at_least: dict[str, float]) -> Row:
    """Accuracy under each of a stratified part of the units; brute force on a smaller part."""
    recorded = Program.of(case.net)
    assert isinstance(recorded, Program), recorded
    program = recorded if bitwise else fuse(recorded)
    judge = Judge(ACCURACY)
    some = case.some(per_layer=1)
    chosen: dict[str, list[int]] = {}
    for unit in case.some(per_layer=1 if quick else 16):
        chosen.setdefault(unit.layer, []).append(unit.index)
    count = sum(len(units) for units in chosen.values())
    every = [Selection(layer, tuple(units)) for layer, units in chosen.items()]
    naive = brute_force(case, some, data)

    def ours() -> object:
        return replayed_units(program, every, data.inputs, data.targets, judge, edit_next=not bitwise)

    # Both are parts of the whole: what a unit costs is compared with what a unit costs.
    ways = {"naive": naive, SAME_ROUTE: same_route(naive), "ours": ours if bitwise else same_route(ours)}
    peer, others = peers(case, some, data)
    ways |= {"peer": others["peer"]} if quick else others
    times = interleave(ways, repetitions(quick))
    outputs = naive()
    mine = replayed_units(
        program,
        [Selection(unit.layer, (unit.index,)) for unit in some],
        data.inputs,
        data.targets,
        judge,
        edit_next=not bitwise,
    )
    # Programs hold one selection per layer; with one unit of each layer the order is that of `some`.
    intact = float((case.net(data.inputs).argmax(1) == data.targets).double().mean())
    right = (outputs.argmax(2) == data.targets).double().mean(1)
    top = outputs.topk(2, -1).values
    ties = ((top[..., 0] - top[..., 1]) <= 1e-4 * outputs.abs().max()).double().mean(1)
    found = [intact + float(mine[unit.layer].total[0]) / len(data) for unit in some]
    difference = assert_scores(right, right.new_tensor(found), 0.0 if bitwise else ties, id)
    whole = len(case.units) / len(some)
    times["ours"] = [seconds * len(case.units) / count for seconds in times["ours"]]
    return row(
        id,
        f"{work}, {len(case.units):,} units, {len(data):,} inputs (scaled from {count} units)",
        times,
        naive_scale=whole,
        forward_s=one_forward(case.model, data.inputs, case.batch),
        peer=peer,
        peer_scale=whole,
        difference=max(difference, _apart(case, program, data)),
        peak=peak_mib(ways["ours"]),
        at_least=at_least,
    )


def _apart(case: Case, program: Program, data: Data) -> float:
    """Largest difference of the intact outputs, asserted to predict the same."""
    brute: Tensor = case.net(data.inputs)
    return assert_exact(brute, program.run(data.inputs)[program.output], case.name)[0]


BENCHMARKS = {"B6": residual, "B8": transformer}
