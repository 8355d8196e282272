"""B3: every single weight of a perceptron's hidden layers deleted, and every bit of one of them flipped."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from suite.harness import SAME_ROUTE, TIE, Row, interleave, one_forward, peak_mib, repetitions, row, same_route
from suite.networks import Case, mlp
from torch import Tensor

from planaria.core.streams import stream
from planaria.measure.scores import ACCURACY
from planaria.sweep.chain import Chain
from planaria.sweep.edges import Becomes, Flipped, NewValue, weight_map
from planaria.sweep.tally import Judge, Tally

FIRST, SECOND = "0.weight", "2.weight"
JUDGE = Judge(ACCURACY)
TIMED = 9
"""Weights that the naive way is timed on; every weight costs it the same."""

NO_PEER = "none that shares work between weights"


class Edge(NamedTuple):
    """One weight of a map, by its place in the flattened weight."""

    name: str
    new: NewValue
    place: int


Maps = dict[tuple[str, NewValue], Tally]


def deletions(quick: bool) -> list[Row]:
    """B3: each weight of both hidden layers becomes 0."""
    case = mlp(quick)
    new = Becomes(0.0)
    wanted = [(name, new) for name in (FIRST, SECOND)]
    goals = {"ratio_naive": 5000.0}
    return [
        _row("B3", "every hidden weight deleted", case, wanted, 8 if quick else 32, repetitions(quick), goals, 15.0)
    ]


def flips(quick: bool) -> list[Row]:
    """B3b: each of the 32 bits of each weight of the second layer."""
    case = mlp(quick)
    if quick:
        some = [(SECOND, Flipped(bit)) for bit in (22, 30)]
        return [_row("B3b", "2 bits of the second layer flipped", case, some, 1, 2, {}, 60.0 * 2 / 32)]
    wanted = [(SECOND, Flipped(bit)) for bit in range(32)]
    return [_row("B3b", "all bit flips of the second layer", case, wanted, 2, 3, {}, 60.0)]


def _row(
    id: str,
    work: str,
    case: Case,
    wanted: Sequence[tuple[str, NewValue]],
    audited: int,
    turns: int,
    at_least: dict[str, float],
    seconds: float,
) -> Row:
    """Maps of all `wanted`; of each, so many weights are run by brute force, half of them those that change most."""
    chain = Chain.of(case.net)
    assert isinstance(chain, Chain), chain
    maps: Maps = {}

    def ours() -> None:
        maps.clear()
        for new in dict.fromkeys(new for _, new in wanted):
            names = [name for name, other in wanted if other == new]
            found = weight_map(chain, names, new, case.test.inputs, case.test.targets, JUDGE)
            maps.update({(name, new): tally for name, tally in found.items()})

    lesions = sum(case.net.weights[name].numel() for name, _ in wanted)
    some = [Edge(*wanted[at % len(wanted)], 31 * at) for at in range(TIMED)]
    naive = partial(_brute, case, some)
    times = interleave({"naive": naive, SAME_ROUTE: same_route(naive), "ours": same_route(ours)}, turns)
    difference, checked = _compared(id, case, maps, audited)
    return row(
        id,
        f"{case.name}, {work}: {lesions:,} lesions on {len(case.test):,} inputs, {checked} audited",
        times,
        naive_scale=lesions / TIMED,
        forward_s=one_forward(case.model, case.test.inputs, case.batch),
        peer=NO_PEER,
        difference=difference,
        peak=peak_mib(same_route(ours)),
        at_least=at_least,
        at_most={"ours_s": seconds},
    )


def _brute(case: Case, edges: Sequence[Edge]) -> list[Tensor]:
    """Outputs [examples, classes] of each: copy the module, change the weight, run it."""
    outputs = []
    for name, new, place in edges:
        damaged = copy.deepcopy(case.model)
        weight = damaged.get_parameter(name)
        weight.view(-1)[place] = new.of(weight.detach()).view(-1)[place]
        with torch.no_grad():
            outputs.append(torch.cat([damaged(part) for part in case.test.inputs.split(case.batch)]))
    return outputs


def _compared(id: str, case: Case, maps: Maps, audited: int) -> tuple[float, int]:
    """Fail unless counts are brute force's up to ties; the largest difference of a score, and how many were run."""
    targets, worst, checked = case.test.targets, 0.0, 0
    with torch.no_grad():
        intact = JUDGE.values(case.model(case.test.inputs), targets)
    for at, ((name, new), tally) in enumerate(maps.items()):
        most = tally.squares.flatten().topk(audited // 2).indices
        drawn = torch.randint(tally.total.numel(), (audited - len(most),), generator=stream(at, "audited weights"))
        for place in torch.cat([most, drawn]).tolist():
            outputs = _brute(case, [Edge(name, new, place)])[0]
            finite = outputs[outputs.isfinite().all(1)]
            top = finite.topk(2, 1).values
            ties = int((top[:, 0] - top[:, 1] <= TIE * float(finite.abs().max())).sum()) if len(finite) else 0
            change = JUDGE.values(outputs, targets) - intact
            for brute, counted in ((change > 0, tally.rose), (change < 0, tally.fell)):
                apart = abs(int(brute.sum()) - int(counted.flatten()[place]))
                assert apart <= ties, f"{id}: {name}[{place}] {new}: {apart} predictions differ, only {ties} are ties"
                worst = max(worst, apart / len(targets))
            checked += 1
    return worst, checked


BENCHMARKS = {"B3": deletions, "B3b": flips}
