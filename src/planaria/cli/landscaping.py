"""Landscapes: networks of damage-repair walks and their controls, as a set, in pictures, on surfaces of the loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from planaria.cli import inputs
from planaria.cli.landscape_plan import Options, Plan, planned
from planaria.cli.landscape_work import work
from planaria.cli.repairs import CLOSED_FORM
from planaria.cli.results import verdicts
from planaria.cli.running import announce, begin, pace
from planaria.cli.screen import Screen, Stopped
from planaria.core.network import Network
from planaria.repair.retrain import Retrain
from planaria.study.invariant_set import INTACT
from planaria.study.lines import straight_lines
from planaria.study.rescue import leave


def run(subject: inputs.Subject, options: Options, screen: Screen) -> int:
    """Do it; returns the exit code."""
    plan = planned(subject, options, screen)
    if screen.dry_run:
        return _announce(plan, screen)
    for note in plan.missing:
        screen.say(note)
    try:
        with begin(plan.prepared, plan.identity, plan.folder, screen, options.expect) as current:
            document = work(current, plan, screen)
    except Stopped as stop:
        return screen.stopped(stop, plan.folder)
    if screen.as_json:
        screen.document(document)
    else:
        _show(document, screen)
    return 0


# --------------------------------------------------------------------------------------------------- the terminal


def _announce(plan: Plan, screen: Screen) -> int:
    """What a dry run says."""
    task = plan.prepared.task
    net = inputs.tapped(Network.of(plan.prepared.model, task.train.examples), plan.prepared.subject.taps)
    retrain = Retrain(task, plan.settings.build(), plan.settings.batch)
    update, validate, test = pace(net, task, retrain)
    events, walks = plan.regime.events, 2 * len(plan.seeds)
    survey = plan.survey(net, leave)
    trainings = plan.networks * survey.company.recipe.updates(len(task.train))
    gradient = plan.options.repair not in CLOSED_FORM
    updates = plan.prepared.updates + trainings + (walks * events * plan.settings.updates if gradient else 0)
    looks = walks * 2 * events + 3 * plan.networks
    each = plan.networks * (plan.networks - 1) // 2
    pairs = 6 * each  # four groups, two of them also aligned
    lines = _seconds(lambda: straight_lines([net, *(survey.company.untrained(n) for n in range(3))], task, -math.inf))
    prices = {
        "walks and trainings": updates * update + looks * validate + walks * test,
        "lines": pairs * lines / 6,
        "pictures": 8 * sum(0.02 if one.runs == 1 else 0.2 * one.runs for one in plan.methods(100)),
    }
    points = 0
    if plan.grid:
        estimate = plan.grid_of(net, None, (), plan.options.span).estimate()
        prices["surfaces"], points = 2 * estimate["seconds"], 2 * int(estimate["points"])
    document: dict[str, Any] = {
        "command": "landscape",
        "walks": walks,
        "events": events,
        "trainings": plan.networks,
        "pairs": pairs,
        "surface_points": points,
        "updates": updates,
        "forward_passes": updates + looks + walks + 25 * pairs + points,
        "backward_passes": updates,
        "seconds": round(sum(prices.values()), 1),
        "folder": str(plan.folder),
    }
    if screen.as_json:
        document["prices"] = {name: round(price, 2) for name, price in prices.items()}
    else:
        for part, price in prices.items():
            screen.results.print(f"{part}: about {price:.3g} s", markup=False)
        for note in plan.missing:
            screen.results.print(note, markup=False)
    return announce(document, net, screen)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _show(document: dict[str, Any], screen: Screen) -> None:
    """What lines stay inside, in the terminal."""
    found = document["landscape"]

    def told(estimate: dict[str, float | None] | None) -> str:
        if estimate is None or estimate["best"] is None:
            return "-"
        ends = "" if estimate["low"] is None else f" [{estimate['low']:.2f} {estimate['high']:.2f}]"
        return f"{estimate['best']:.2f}{ends}"

    name = f"{document['network']['name']} on {document['task']['name']}"
    grid = Table(title=f"{name}: networks and the lines between them", box=SIMPLE_HEAD, pad_edge=False)
    grid.add_column("networks", no_wrap=True)
    for column in ("in the good set", "pairs", "lines inside", "lines level", "mean barrier"):
        grid.add_column(column, justify="right", no_wrap=True)
    joined = {one["group"] for one in found["connections"]}
    for one in found["connections"]:
        barrier = one["mean_barrier"]
        grid.add_row(
            one["group"] + (", aligned" if one["aligned"] else ""),
            told(found["inside"].get(one["group"])),
            str(one["pairs"]),
            told(one["inside"]),
            told(one["level"]),
            "-" if barrier is None else f"{barrier:.3f}",
        )
    for group, inside in found["inside"].items():
        if group not in joined and group != INTACT:
            grid.add_row(group, told(inside), "-", "-", "-", "-")
    screen.table(grid)
    screen.results.print(
        f"good set: validation score within {found['tolerance']:g} of the intact one. inside: of the lines between two "
        "networks of the good set, those that stay in it. level: of all lines, those that never fall below their ends "
        "by more. Brackets: 95 % interval.",
        markup=False,
        soft_wrap=True,
    )
    verdicts(document, screen)
    screen.places(document["files"])
