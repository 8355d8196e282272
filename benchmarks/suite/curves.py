"""B9: response curves along nested random orders, exact, and with planned inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from suite.harness import SAME_ROUTE, TIE, Row, interleave, one_forward, peak_mib, repetitions, row, same_route
from suite.networks import Case, lenet, mlp
from suite.peers import HOOKS
from torch import Tensor

from planaria.core.anatomy import Anatomy, Unit
from planaria.core.streams import stream
from planaria.measure.data import Data
from planaria.measure.scores import ACCURACY
from planaria.sweep.chain import Chain
from planaria.sweep.curve import curves
from planaria.sweep.precision import planned_inputs
from planaria.sweep.tally import Judge, Tally

POINTS = 51
TIMED = (10, 25, 40)
"""Points at which the naive ways are timed; every point costs them the same."""

PILOT, PILOT_INPUTS = 8, 1000
JUDGE = Judge(ACCURACY)


def curve_rows(quick: bool) -> list[Row]:
    """B9: of a perceptron, of a convolutional network, and with planned inputs (not quick: few leave none to plan)."""
    perceptron, convolutional = mlp(quick), lenet(quick)
    if quick:
        return [
            _exact(perceptron, perceptron.test, 10, 10, 54.0, quick),
            _exact(convolutional, convolutional.few(64), 2, 10, 12.0, quick),
        ]
    return [
        _exact(perceptron, perceptron.test, 20, 1, 54.0, quick),
        _exact(convolutional, convolutional.few(1000), 4, 5, 12.0, quick),
        _planned(perceptron, 100),
    ]


def _exact(case: Case, data: Data, number: int, every: int, goal: float, quick: bool) -> Row:
    """All points of some orders; every so many points of the first are compared with brute force."""
    chain, orders, counts = _chain(case), _orders(case, number), _counts(case)
    found: dict[str, Tally] = {}

    def ours() -> None:
        found["ours"] = curves(chain, orders, counts, data.inputs, data.targets, JUDGE)

    lesions = [orders[0][: counts[point]] for point in TIMED]
    scale = number * POINTS / len(TIMED)
    naive = partial(_brute, case, lesions, data)
    ways: dict[str, Callable[[], object]] = {"naive": naive, SAME_ROUTE: same_route(naive), "ours": ours}
    ways["peer"] = partial(_hooked, case, lesions, data)
    times = interleave(ways, repetitions(quick))
    difference = _compared(case, data, orders[0], counts, found["ours"], range(0, POINTS, every))
    return row(
        "B9",
        f"{case.name} response curves, {number} orders x {POINTS} points, {len(data):,} inputs",
        times,
        naive_scale=scale,
        forward_s=one_forward(case.model, data.inputs, case.batch),
        peer=HOOKS,
        peer_scale=scale,
        difference=difference,
        peak=peak_mib(ours),
        at_least={"ratio_naive": goal},
    )


def _planned(case: Case, number: int) -> Row:
    """The mean curve of many orders, each on inputs of its own as a pilot plans them, the pilot included."""
    data, chain, counts = case.test, _chain(case), _counts(case)
    orders, pilot = _orders(case, number), _orders(case, PILOT, "pilot")
    found: dict[str, Tally] = {}
    lengths: list[int] = []

    def rows(name: str, orders: int, length: int) -> list[Tensor]:
        return [torch.randperm(len(data), generator=stream(0, name, at))[:length] for at in range(orders)]

    def ours() -> None:
        length = min(PILOT_INPUTS, len(data) // 2)
        tried = curves(chain, pilot, counts, data.inputs, data.targets, JUDGE, rows=rows("pilot inputs", PILOT, length))
        lengths[:] = [planned_inputs(tried, length, len(data))]
        own = rows("inputs", number, lengths[0])
        found["ours"] = curves(chain, orders, counts, data.inputs, data.targets, JUDGE, rows=own)

    naive = partial(_brute, case, [orders[0][: counts[point]] for point in TIMED], data)
    times = interleave({"naive": naive, SAME_ROUTE: same_route(naive), "ours": ours}, repetitions(quick=False))
    whole = curves(chain, orders, counts, data.inputs, data.targets, JUDGE).total / len(data)
    part = found["ours"].total / lengths[0]
    wider = float((part.var(0).sum() / whole.var(0).sum()).sqrt())
    assert wider <= 1.2, f"planned inputs widen the standard error {wider:.2f} times"
    own = rows("inputs", 1, lengths[0])[0]
    mine = Data(data.inputs[own], data.targets[own])
    _compared(case, mine, orders[0], counts, found["ours"], TIMED)
    return row(
        "B9",
        f"{case.name} mean response curve, {number} orders x {POINTS} points, {lengths[0]:,} planned of {len(data):,} "
        f"inputs per order (pilot included), standard error x {wider:.2f}",
        times,
        naive_scale=number * POINTS / len(TIMED),
        forward_s=one_forward(case.model, data.inputs, case.batch),
        difference=float((part.mean(0) - whole.mean(0)).abs().max()),
        peak=peak_mib(ours),
        at_least={"ratio_naive": 400.0},
    )


def _chain(case: Case) -> Chain:
    chain = Chain.of(case.net)
    assert isinstance(chain, Chain), chain
    return chain


def _orders(case: Case, number: int, name: str = "order") -> list[list[Unit]]:
    units = case.units
    draws = [torch.randperm(len(units), generator=stream(0, name, at)).tolist() for at in range(number)]
    return [[units[place] for place in draw] for draw in draws]


def _counts(case: Case) -> list[int]:
    return [round(len(case.units) * point / (POINTS - 1)) for point in range(POINTS)]


def _brute(case: Case, lesions: Sequence[Sequence[Unit]], data: Data) -> Tensor:
    """Outputs [lesions, examples, classes]: copy the module, zero the units' weights, run it."""
    anatomy, outputs = Anatomy.of(case.net), []
    for units in lesions:
        damaged = copy.deepcopy(case.model)
        for name, selected in anatomy.entries(units).outgoing.items() if units else ():
            damaged.get_parameter(name).masked_fill_(selected, 0)
        with torch.no_grad():
            outputs.append(torch.cat([damaged(part) for part in data.inputs.split(case.batch)]))
    return torch.stack(outputs)


def _hooked(case: Case, lesions: Sequence[Sequence[Unit]], data: Data) -> Tensor:
    """The same by forward hooks that zero the units in the outputs of their activations."""
    modules, outputs = dict(case.model.named_modules()), []
    for units in lesions:
        by_layer: dict[str, list[int]] = {}
        for unit in units:
            by_layer.setdefault(unit.layer, []).append(unit.index)
        handles = [
            modules[case.gates[layer]].register_forward_hook(partial(_closed, indices))
            for layer, indices in by_layer.items()
        ]
        with torch.no_grad():
            outputs.append(torch.cat([case.model(part) for part in data.inputs.split(case.batch)]))
        for handle in handles:
            handle.remove()
    return torch.stack(outputs)


def _closed(indices: list[int], module: object, given: object, output: Tensor) -> Tensor:
    return output.index_fill(1, torch.tensor(indices), 0.0)


def _compared(
    case: Case, data: Data, order: Sequence[Unit], counts: Sequence[int], tally: Tally, points: Sequence[int]
) -> float:
    """Fail unless the first order's counts are brute force's up to ties; the largest difference of a score."""
    intact, worst = _brute(case, [[]], data)[0].argmax(1) == data.targets, 0.0
    for point in points:
        outputs = _brute(case, [order[: counts[point]]], data)[0]
        top = outputs.topk(2, 1).values
        ties = int((top[:, 0] - top[:, 1] <= TIE * float(outputs.abs().max())).sum())
        right = outputs.argmax(1) == data.targets
        for brute, ours in ((right & ~intact, tally.rose), (intact & ~right, tally.fell)):
            apart = abs(int(brute.sum()) - int(ours[0, point]))
            assert apart <= ties, f"B9: {apart} predictions differ at point {point}, and only {ties} are ties"
            worst = max(worst, apart / len(data))
    return worst


BENCHMARKS = {"B9": curve_rows}
