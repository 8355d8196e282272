"""B1 and B4: the accuracy under each silenced unit of a perceptron, through the door that users take."""

from __future__ import annotations

import os

import torch
from suite.harness import (
    SAME_ROUTE,
    TIE,
    Row,
    assert_scores,
    interleave,
    one_forward,
    peak_mib,
    repetitions,
    row,
    same_route,
    threads,
)
from suite.networks import Case, deep_mlp, mlp, untrained_mlp
from suite.peers import brute_force, peers
from torch import Tensor

from planaria.sweep.ablate import ablate
from planaria.sweep.lesions import EachUnit


def perceptron(quick: bool) -> list[Row]:
    """B1: a trained and an untrained network; in the full tier with all threads too."""
    rows = [
        _map("B1", mlp(quick), quick, {"ratio_naive": 600.0}, {"forwards_equivalent": 1.5}),
        _map("B1", untrained_mlp(quick), quick, {}, {"forwards_equivalent": 4.0}, alone=True),
    ]
    if not quick:
        with threads(os.cpu_count() or 1):
            rows.append(_map("B1", mlp(quick), quick, {}, {}, alone=True))
    return rows


def deep(quick: bool) -> list[Row]:
    """B4: three hidden layers."""
    return [_map("B4", deep_mlp(quick), quick, {"ratio_naive": 170.0}, {}, alone=quick)]


def _map(
    id: str, case: Case, quick: bool, at_least: dict[str, float], at_most: dict[str, float], *, alone: bool = False
) -> Row:
    """The map, and brute force on some of its units; `alone` leaves the peers out."""
    units, some, data, task = case.units, case.some(), case.test, case.task
    naive = brute_force(case, some, data)
    outputs: dict[str, Tensor] = {}
    scores: dict[str, Tensor] = {}

    def brute() -> None:
        outputs["naive"] = naive()

    def ours() -> None:
        scores.update(ablate(case.net, EachUnit(), task, audited=0).scores)

    peer, others = ("", {}) if alone else peers(case, some, data)
    ways = {"naive": brute, SAME_ROUTE: same_route(naive), "ours": ours, **others}
    times = interleave(ways, repetitions(quick))
    assert sum(len(found) for found in scores.values()) == len(units)
    top = outputs["naive"].topk(2, -1).values
    ties = ((top[..., 0] - top[..., 1]) <= TIE * outputs["naive"].abs().max()).double().mean(1)
    right = (outputs["naive"].argmax(-1) == data.targets).double().mean(1)
    found = torch.stack([scores[unit.layer][unit.index] for unit in some])
    difference = assert_scores(right, found, ties, f"{id} {case.name}")
    return row(
        id,
        f"{case.name} unit map, exact accuracy, {len(units):,} units, {len(data):,} inputs",
        times,
        naive_scale=case.scale(some),
        forward_s=one_forward(case.model, data.inputs, case.batch),
        peer=peer,
        peer_scale=case.scale(some),
        difference=difference,
        peak=peak_mib(ours),
        at_least=at_least,
        at_most=at_most,
    )


BENCHMARKS = {"B1": perceptron, "B4": deep}
