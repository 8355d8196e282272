"""B7 and B8b: unit maps screened by first order, with intervals, against brute force; how often the intervals cover.

Times are of a block of inputs with the chances that 10,000 inputs allow; all work is linear in the inputs. Errors and
coverage are of screens of some units of every layer, whose changes are all known by replaying every pair: the same
chances on fewer inputs, which is harder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from suite.harness import SAME_ROUTE, Row, interleave, one_forward, peak_mib, repetitions, row, same_route
from suite.networks import Case, resnet20, vit
from suite.peers import HOOKS, brute_force, hook_loop
from torch import Tensor

from planaria.core.anatomy import Anatomy
from planaria.core.gemm import fast_products
from planaria.core.streams import stream
from planaria.measure.data import Data
from planaria.sweep.screen import FirstOrder, Screener
from planaria.sweep.strata import Choice, Design, Screened

INPUTS = 10_000
"""Inputs that the chances are made for."""


@dataclass(frozen=True)
class Setting:
    """What is screened.

    Attributes:
        id: Number in the suite.
        case: Makes the network.
        budget: Share of pairs that is evaluated.
        timed: Inputs per timed run; quick, and full.
        units: Every so manyth unit is in the truth.
        known: Inputs of the truth, which the quick tier leaves out.
        faster: Goal for the ratio to brute force.
        covered: Most units that intervals should cover; all where no unit matters enough to be uncertain about.
    """

    id: str
    case: Callable[[bool], Case]
    budget: float
    timed: tuple[int, int]
    units: int
    known: int
    faster: float
    covered: float


RESNET = Setting("B7", resnet20, 0.03, (21, 252), 4, 1500, 45.0, 0.97)
VIT = Setting("B8b", vit, 0.0205, (8, 64), 32, 500, 100.0, 1.0)


def _rows(setting: Setting, quick: bool) -> list[Row]:
    case = setting.case(quick)
    data = case.few(setting.timed[not quick])
    layers = {group.layer: group.count for group in Anatomy.of(case.net).groups if group.layer in case.gates}
    screener = Screener.of(case.net, layers)
    design = Design.of(INPUTS, setting.budget, 0.02)
    units = case.some()
    naive, hooks = brute_force(case, units, data), hook_loop(case, units, data)
    outputs: list[Tensor] = []

    def ours() -> None:
        with fast_products():
            for number, (x, t) in enumerate(_blocks(data, screener.block)):
                screener.screened(x, t, design, stream(0, "screen", number))

    def brute() -> None:
        outputs[:] = [naive()]

    ways = {"naive": brute, SAME_ROUTE: same_route(naive), "ours": ours, HOOKS: hooks}
    if quick:
        ways = {name: ways[name] for name in ("naive", "ours")}
    times = interleave(ways, repetitions(quick))
    _assert_pairs(screener, units, data, outputs[0])
    error, most, covered, screens = _quality(setting, quick, case, screener, design)
    told = f"mean error {error:.5f}, 95 % intervals cover {covered:.1%} of units, {screens} screens" if screens else ""
    found = row(
        setting.id,
        f"{case.name} unit map screened, {len(case.units):,} units, {design.mean:.1%} of pairs{told and ': '}{told}",
        times,
        naive_scale=case.scale(units),
        peer_scale=case.scale(units),
        forward_s=one_forward(case.model, data.inputs, case.batch),
        difference=most,
        peak=None if quick else peak_mib(ours),
        at_least={"ratio_naive": setting.faster},
    )
    if not screens:
        return [found]
    assert error <= 0.01 and covered >= 0.9, f"{setting.id}: {told}"
    goal = f"{found.goal}, mean error at most 0.002, 93-{setting.covered:.0%} covered"
    return [replace(found, goal=goal, met=bool(found.met) and error <= 0.002 and 0.93 <= covered <= setting.covered)]


def _blocks(data: Data, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(data.inputs.split(size), data.targets.split(size), strict=True))


def _assert_pairs(screener: Screener, units: tuple[object, ...], data: Data, outputs: Tensor) -> None:
    """Fail unless pairs of these units and the first inputs get the outputs of brute force."""
    count = screener.chunk
    first = screener.first_order(data.inputs[:count], data.targets[:count])
    rows = torch.arange(len(first.margin))
    for unit, brute in zip(units, outputs, strict=True):
        layer, index = unit.layer, unit.index  # type: ignore[attr-defined]
        found = screener.outputs(first.base, layer, torch.full_like(rows, index), rows)
        apart = float((found - brute[: len(rows)]).abs().max() / brute.abs().max())
        assert apart < 1e-4, f"{unit}: outputs differ by {apart:.2g} of the largest"


def _quality(
    setting: Setting, quick: bool, case: Case, screener: Screener, design: Design
) -> tuple[float, float, float, int]:
    """Mean and largest error, share of intervals that cover, and number of screens they are from."""
    if quick:
        return 0.0, 0.0, 0.0, 0
    data = case.few(setting.known)
    firsts, truths = [], []
    with fast_products():
        for x, t in _blocks(data, screener.chunk):
            first, truth = _truth(screener, x, t, setting.units)
            firsts.append(first)
            truths.append(truth)
    margin, slope, idle, right = (
        torch.cat([getattr(first, name) for first in firsts]) for name in ("margin", "slope", "idle", "right")
    )
    truth = torch.cat(truths)
    counts = torch.tensor([len(range(0, count, setting.units)) for count in screener.layers.values()])
    groups = torch.arange(len(counts)).repeat_interleave(counts)
    errors, covered = [], []
    effects = truth.double().mean(0)
    for seed in range(20):
        change = torch.where(right, -1, 1)
        choice = design.choose(margin, slope, change, idle, groups, stream(seed, "quality"))
        found = _counted(choice, truth).intervals()
        errors.append((found.best - effects).abs())
        covered.append(found.covers(effects))
    error = torch.stack(errors)
    return float(error.mean()), float(error.max()), float(torch.stack(covered).double().mean()), len(errors)


def _counted(choice: Choice, truth: Tensor) -> Screened:
    units, rows = choice.pairs
    return choice.counted(truth[rows, units])


def _truth(screener: Screener, inputs: Tensor, targets: Tensor, step: int) -> tuple[FirstOrder, Tensor]:
    """First order and true changes of every step-th unit of each layer on some examples."""
    first = screener.first_order(inputs, targets)
    changes, chosen, start = [], [], 0
    for layer, count in screener.layers.items():
        for unit in range(0, count, step):
            outputs = screener.program.silence(first.base, {layer: [unit]})
            after = (outputs.argmax(1) == targets) & outputs.isfinite().all(1)
            changes.append(after.to(torch.int8) - first.right.to(torch.int8))
            chosen.append(start + unit)
        start += count
    kept = replace(first, slope=first.slope[:, chosen], idle=first.idle[:, chosen], base={})
    return kept, torch.stack(changes, 1)


def resnet(quick: bool) -> list[Row]:
    """B7: ResNet-20, feature maps inside its blocks."""
    return _rows(RESNET, quick)


def transformer(quick: bool) -> list[Row]:
    """B8b: vision transformer, neurons of its feed-forward layers."""
    return _rows(VIT, quick)


BENCHMARKS = {"B7": resnet, "B8b": transformer}
