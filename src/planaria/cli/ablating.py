"""Where a network is vulnerable: every unit silenced, the worst sets, every single weight."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from planaria.campaign.files import check_folder, write_atomic
from planaria.cli import inputs
from planaria.cli.results import verdicts
from planaria.cli.running import Run, announce, begin, files, folder_for, pace
from planaria.cli.screen import Screen, Steps, Stopped
from planaria.cli.unit_tables import parquet, table
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.measure.data import Data
from planaria.measure.shares import is_share
from planaria.measure.task import Task
from planaria.measure.weights import pack_weights, read_tensors
from planaria.repair.retrain import Retrain
from planaria.study.unit_map import EXACT, Vulnerability
from planaria.study.vulnerability import Survey, evenly
from planaria.study.weak_points import judge_vulnerability
from planaria.study.weak_weights import New, WeakWeights
from planaria.sweep.edges import Becomes, Flipped
from planaria.sweep.lesions import EachUnit
from planaria.version import version

UNITS, PARQUET, WEIGHTS = "units.csv", "units.parquet", "weights.safetensors"
QUICK = 1000
"""Test inputs of the short form."""
SHOWN = 10
"""Units in the terminal's table."""


@dataclass(frozen=True)
class Options:
    """Options of `planaria vulnerability` beyond the subject."""

    exact: bool
    screened: bool
    precision: float | None
    kinds: tuple[str, ...] | None
    layers: tuple[str, ...] | None
    worst_set: int
    weights_too: bool
    bits: str | None
    workers: int
    expect: float | None
    fail_under: float | None

    @property
    def new(self) -> tuple[New, ...]:
        """What single weights become."""
        bits = [] if self.bits is None else inputs.numbers("--bits", self.bits, int)
        deleted: tuple[New, ...] = (Becomes(0.0),) if self.weights_too else ()
        return (*deleted, *(Flipped(bit) for bit in dict.fromkeys(bits)))


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that has been decided before anything is trained or written.

    Attributes:
        prepared: Task and model.
        options: As they were given.
        data: Inputs that units are judged on.
        identity: What decides the results, as plain values.
        folder: For the results.
    """

    prepared: inputs.Prepared
    options: Options
    data: Data
    identity: dict[str, Any]
    folder: Path

    def survey(self, net: Network, task: Task) -> Survey:
        """The study of a network."""
        options = self.options
        return Survey.of(
            net,
            task,
            what=EachUnit(options.kinds, options.layers),
            data=self.data,
            screened=options.screened,
            precision=options.precision,
            worst_set=options.worst_set,
            weights=options.new,
            workers=options.workers,
            seed=self.prepared.subject.seed,
        )


def run(subject: inputs.Subject, options: Options, screen: Screen) -> int:
    """Do it; returns the exit code."""
    plan = _plan(subject, options, screen)
    task = plan.prepared.task
    # The anatomy does not depend on the weights: what is wrong shows before anything is trained.
    sketch = inputs.tapped(Network.of(plan.prepared.model, task.train.examples), subject.taps)
    survey = plan.survey(sketch, task)
    if screen.dry_run:
        return _announce(plan, survey, screen)
    try:
        with begin(plan.prepared, plan.identity, plan.folder, screen, options.expect) as current:
            document = _work(current, plan, screen)
    except Stopped as stop:
        return screen.stopped(stop, plan.folder)
    if screen.as_json:
        screen.document(document)
    else:
        _show(document, screen)
    return _gate(document, options.fail_under, screen)


def _plan(subject: inputs.Subject, options: Options, screen: Screen) -> Plan:
    for option, value in (("--expect-score", options.expect), ("--fail-under", options.fail_under)):
        inputs.finite(option, value)
    asked = [("--exact", options.exact), ("--screen", options.screened), ("--precision", options.precision is not None)]
    given = [name for name, so in asked if so]
    if len(given) > 1:
        raise InputError(given[0], "one way", " and ".join(given), "Leave the others out.")
    if options.precision is not None and not 0 < options.precision < 1:
        raise InputError("--precision", "a half-width above 0 and below 1, in units of the score", options.precision)
    new = options.new
    prepared = inputs.prepare(subject)
    data = prepared.task.test
    if subject.quick:
        data = evenly(data, QUICK)
    identity = {
        **prepared.identity(),
        "command": "vulnerability",
        "version": version(),
        "seeds": [subject.seed],
        "inputs": len(data),
        "way": given[0] if given else "--exact",
        "precision": options.precision,
        "kinds": options.kinds and list(options.kinds),
        "layers": options.layers and list(options.layers),
        "worst_set": options.worst_set,
        "weights": [repr(one) for one in new],
    }
    folder = screen.out or folder_for(subject, identity)
    check_folder(folder, identity, fresh=screen.fresh)
    return Plan(prepared, options, data, identity, folder)


def _work(current: Run, plan: Plan, screen: Screen) -> dict[str, Any]:
    """Map, sets, weights, files; returns the document."""
    if screen.fresh:
        for name in (UNITS, PARQUET, WEIGHTS):
            (plan.folder / name).unlink(missing_ok=True)
    survey = plan.survey(current.net, current.task)
    with screen.progress(survey.steps + len(survey.weights), "steps") as steps:

        def keep(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            known: dict[str, Any] = current.once(current.id(what=name), make)
            steps.done(what=name)
            return known

        found = survey.run(keep)
        weights = _weights(current, survey, plan.folder / WEIGHTS, steps)
    found = replace(found, weights=weights)
    for note in found.notes:
        screen.say(note)
    write_atomic(plan.folder / UNITS, table(found))
    columns = parquet(found)
    if columns is not None:
        write_atomic(plan.folder / PARQUET, columns)
    document = {
        **current.document,
        "settings": _settings(plan, survey),
        "rows": _rows(found),
        "vulnerability": found.to_dict(),
        "verdicts": [verdict.to_dict() for verdict in judge_vulnerability(found)],
        "files": {
            **files(plan.folder),
            "units": str(plan.folder / UNITS),
            "parquet": None if columns is None else str(plan.folder / PARQUET),
            "weights": str(plan.folder / WEIGHTS) if weights else None,
        },
    }
    current.finish(document)
    return document


def _weights(current: Run, survey: Survey, path: Path, steps: Steps) -> tuple[WeakWeights, ...]:
    """Single weights, those that are done already from the file of losses and the ledger."""
    arrays: dict[str, torch.Tensor] = {}
    if path.exists() and survey.weights:
        arrays = read_tensors(path)[0]
    found = []
    for name, new in survey.weights:
        blank = WeakWeights(name, new, torch.empty(0), 0.0, {})
        mark = current.id(what="single weights", weight=name, new=repr(new))
        if mark not in current.ledger or blank.key not in arrays:
            made = survey.weigh(name, new)
            arrays[made.key] = made.lost.float()
            write_atomic(path, pack_weights(arrays, {"planaria.content": "score lost by each single weight"}))
            if mark not in current.ledger:
                current.ledger.record(mark, {"what": "single weights", "changed": made.changed, "facts": made.facts})
        row: Any = current.ledger[mark]
        found.append(replace(blank, lost=arrays[blank.key], changed=row["changed"], facts=row["facts"]))
        steps.done(what=blank.key)
    return tuple(found)


def _settings(plan: Plan, survey: Survey) -> dict[str, Any]:
    return {
        "way": survey.way,
        "precision": plan.options.precision,
        "inputs": len(plan.data),
        "kinds": plan.identity["kinds"],
        "layers": plan.identity["layers"],
        "worst_set": survey.worst_set,
        "weights": plan.identity["weights"],
        "seeds": plan.identity["seeds"],
        "damage": "every unit silenced, one at a time",
        "unit": "units",
    }


def _rows(found: Vulnerability) -> list[dict[str, Any]]:
    """A line per layer; the units are in a table of their own."""
    rows = []
    for layer in found.layers:
        worst = max(range(len(layer.lost)), key=lambda unit: (layer.lost[unit] == layer.lost[unit], layer.lost[unit]))
        rows.append(
            {
                "layer": layer.layer,
                "kind": layer.kind,
                "units": len(layer.lost),
                "mean_lost": sum(layer.lost) / len(layer.lost),
                "worst_unit": worst,
                "worst_lost": layer.lost[worst],
                "costly_share": sum(loss > 0 for loss in layer.lost) / len(layer.lost),
            }
        )
    return rows


def _announce(plan: Plan, survey: Survey, screen: Screen) -> int:
    """What a dry run says."""
    task, recipe, update = plan.prepared.task, plan.prepared.recipe, 0.0
    if recipe is not None:
        update, _, _ = pace(survey.net, task, Retrain(task, batch=recipe.batch))
    started = time.perf_counter()
    task.score(survey.net, plan.data)
    forward = time.perf_counter() - started
    prices = survey.prices
    text = survey.explain()
    if not screen.as_json:
        screen.results.print(text, markup=False, soft_wrap=True)
    document: dict[str, Any] = {
        "command": "vulnerability",
        "way": survey.way,
        "units": sum(way.lesions for way in survey.plan.ways),
        "inputs": len(plan.data),
        "updates": plan.prepared.updates,
        "forward_passes": round(plan.prepared.updates + sum(prices.values()), 1),
        "backward_passes": plan.prepared.updates + 1,
        "seconds": round(plan.prepared.updates * update + sum(prices.values()) * forward / plan.options.workers, 1),
        "folder": str(plan.folder),
    }
    if screen.as_json:
        document |= {"prices": prices, "plan": [vars(way) for way in survey.plan.ways], "plan_text": text}
    return announce(document, survey.net, screen)


def _gate(document: dict[str, Any], fail_under: float | None, screen: Screen) -> int:
    """Exit code 1 if the worst single unit takes the score below the declared one."""
    found = document["vulnerability"]
    if fail_under is None:
        return 0
    worst = found["top"][0]
    if worst["lost"] is not None and found["intact"] - worst["lost"] >= fail_under:
        return 0
    score = "no finite score" if worst["lost"] is None else f"{found['intact'] - worst['lost']:.4f}"
    screen.errors.print(
        f"Gate failed: {score} without unit {worst['layer']}[{worst['unit']}] is under {fail_under:g}.",
        style="red",
        markup=False,
    )
    return 1


def _show(document: dict[str, Any], screen: Screen) -> None:
    """Worst units and sets in the terminal."""
    found = document["vulnerability"]
    percent = is_share(found["score"])
    factor, digits = (100, 2) if percent else (1, 4)

    def said(value: float | None, scale: float = factor, places: int = digits) -> str:
        # No minus before a zero.
        return "-" if value is None else f"{round(scale * value, places) + 0.0:.{places}f}"

    unit = f"points of {found['score']}" if percent else document["task"]["score"]
    grid = Table(
        title=f"{document['network']['name']} on {document['task']['name']}: the units that cost most, in {unit}",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    grid.add_column("unit", no_wrap=True)
    for column in ("lost", "95 % interval", "direct", "total", "compensated"):
        grid.add_column(column, justify="right", no_wrap=True)
    for row in found["top"][:SHOWN]:
        span = "-" if row["low"] is None else f"{said(row['low'])} .. {said(row['high'])}"
        effects = [said(row[key], 1, 4) for key in ("direct", "total", "compensation")]
        grid.add_row(f"{row['layer']}[{row['unit']}]", said(row["lost"]), span, *effects)
    screen.table(grid)
    say = screen.results.print
    for chosen in found["worst_sets"]:
        units = ", ".join(f"{layer}[{number}]" for layer, number in chosen["units"])
        lost = chosen["lost"]
        span = "" if lost["low"] is None else f" [{said(lost['low'])}, {said(lost['high'])}]"
        told = f"{chosen['size']} units, {chosen['how']}: {said(lost['best'])}{span} lost"
        say(told + (f": {units}" if units else ""), markup=False, soft_wrap=True)
    for weights in found["weights"] or ():
        say(
            f"{weights['weight']} {weights['new']}: worst {said(weights['lost_max'])} lost; "
            f"{100 * weights['costly_share']:.3g} % of its entries cost anything",
            markup=False,
            soft_wrap=True,
        )
    checked = found["audit"]
    price = "" if found["forwards"] is None else f" for {found['forwards']:.1f} forward passes"
    alone = ", of one unit" if found["way"] == EXACT else ""
    say(
        f"{found['unit_total']:,} units on {found['examples']:,} inputs{price} ({found['way']}); "
        f"audited {checked['lesions']}, mismatches {checked['mismatches']}, ties {checked['ties']}. direct, total: "
        f"change of the mean {found['margin']}, before and after later layers respond; compensated: the difference. "
        f"Intervals {found['intervals']}{alone}.",
        markup=False,
        soft_wrap=True,
    )
    verdicts(document, screen)
    screen.places(document["files"])
