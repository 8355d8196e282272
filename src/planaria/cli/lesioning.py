"""Lesions of groups of units: layers, clusters, units selective for a class; what each costs, and what dissociates."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from planaria.campaign.files import check_folder, write_atomic
from planaria.cli import inputs
from planaria.cli.results import verdicts
from planaria.cli.running import Run, announce, begin, files, folder_for, pace
from planaria.cli.screen import Screen, Stopped
from planaria.cli.unit_tables import parquet_of
from planaria.core.errors import InputError, nearest
from planaria.core.network import Network
from planaria.core.trees import digest
from planaria.measure.data import Data
from planaria.measure.shares import is_share
from planaria.measure.task import Task
from planaria.measure.weights import read_tensors
from planaria.repair.retrain import Retrain
from planaria.study.groupings import CLUSTER, LAYER, SELECTIVITY, By, ByCluster, ByLayer, BySelectivity
from planaria.study.lesion_verdicts import judge_lesions
from planaria.study.lesioned import LesionStudy
from planaria.study.lesions import Survey
from planaria.study.vulnerability import evenly
from planaria.sweep.lesions import EachUnit
from planaria.version import version

PARQUET, PAIRS = "results.parquet", "dissociations.csv"
CLUSTERS, QUICK_CLUSTERS = (2, 4, 8), (4,)
DRAWS, QUICK_DRAWS = 20, 10
QUICK = 1000
"""Test inputs of the short form."""
SHOWN = 12
"""Lesions in the terminal's table."""


@dataclass(frozen=True)
class Options:
    """Options of `planaria lesion` beyond the subject."""

    by: tuple[str, ...] | None
    share: float
    clusters: str | None
    positions: Path | None
    draws: int | None
    classes: str | None
    single_units: bool
    kinds: tuple[str, ...] | None
    layers: tuple[str, ...] | None
    expect: float | None


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that has been decided before anything is trained or written.

    Attributes:
        prepared: Task and model.
        options: As they were given.
        by: Groupings; None for all that the task allows.
        classes: Labels that are told apart; None for all.
        draws: Random lesions for each size.
        data: Inputs that lesions are judged on.
        identity: What decides the results, as plain values.
        folder: For the results.
    """

    prepared: inputs.Prepared
    options: Options
    by: tuple[By, ...] | None
    classes: tuple[int, ...] | None
    draws: int
    data: Data
    identity: dict[str, Any]
    folder: Path

    def survey(self, net: Network, task: Task) -> Survey:
        """The study of a network."""
        return Survey.of(
            net,
            task,
            self.by,
            what=EachUnit(self.options.kinds, self.options.layers),
            draws=self.draws,
            classes=self.classes,
            single_units=self.options.single_units,
            data=self.data,
            seed=self.prepared.subject.seed,
        )


def run(subject: inputs.Subject, options: Options, screen: Screen) -> int:
    """Do it; returns the exit code."""
    plan = _plan(subject, options, screen)
    task = plan.prepared.task
    # Layers, classes and sizes do not depend on the weights: what is wrong shows before anything is trained.
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
    return 0


def _plan(subject: inputs.Subject, options: Options, screen: Screen) -> Plan:
    inputs.finite("--expect-score", options.expect)
    known = (LAYER, CLUSTER, SELECTIVITY)
    for word in options.by or ():
        if word not in known:
            raise InputError("--by", f"some of {', '.join(known)}", repr(word), nearest(word, known))
    if options.by == ():
        raise InputError("--by", f"some of {', '.join(known)}", "none")
    if options.draws is not None and options.draws < 2:
        raise InputError("--controls", "at least 2 random lesions", options.draws, "20 are usual.")
    if not 0 < options.share < 1:
        raise InputError("--share", "a share of the units above 0 and below 1", options.share)
    counts = QUICK_CLUSTERS if subject.quick else CLUSTERS
    if options.clusters is not None:
        counts = tuple(dict.fromkeys(inputs.numbers("--clusters", options.clusters, int)))
    if min(counts) < 2:
        raise InputError("--clusters", "numbers of clusters of at least 2", options.clusters)
    classes = None if options.classes is None else tuple(inputs.numbers("--classes", options.classes, int))
    places = None if options.positions is None else _positions(options.positions)
    prepared = inputs.prepare(subject)
    groupings: dict[str, By] = {
        LAYER: ByLayer(),
        CLUSTER: ByCluster(counts, places),
        SELECTIVITY: BySelectivity(options.share),
    }
    words = options.by
    if words is None:
        labelled = prepared.task.classes is not None and prepared.task.test.targets.ndim == 1
        words = known if labelled else known[:2]
    draws = options.draws or (QUICK_DRAWS if subject.quick else DRAWS)
    data = evenly(prepared.task.test, QUICK) if subject.quick else prepared.task.test
    identity = {
        **prepared.identity(),
        "command": "lesion",
        "version": version(),
        "seeds": [subject.seed],
        "inputs": len(data),
        "by": [word for word in known if word in words],
        "share": options.share if SELECTIVITY in words else None,
        "clusters": list(counts) if CLUSTER in words else None,
        "positions": None if places is None else digest(places),
        "controls": draws,
        "classes": None if classes is None else list(classes),
        "single_units": options.single_units,
        "kinds": options.kinds and list(options.kinds),
        "layers": options.layers and list(options.layers),
    }
    folder = screen.out or folder_for(subject, identity)
    check_folder(folder, identity, fresh=screen.fresh)
    by = tuple(groupings[word] for word in known if word in words)
    return Plan(prepared, options, by, classes, draws, data, identity, folder)


def _positions(path: Path) -> dict[str, Tensor]:
    """Coordinates of units from a file: layer -> [units, dimensions]."""
    return {name: tensor.double() for name, tensor in read_tensors(path)[0].items()}


def _work(current: Run, plan: Plan, screen: Screen) -> dict[str, Any]:
    """Lesions, controls, single units, files; returns the document."""
    if screen.fresh:
        for name in (PARQUET, PAIRS):
            (plan.folder / name).unlink(missing_ok=True)
    survey = plan.survey(current.net, current.task)
    with screen.progress(survey.steps, "steps") as steps:

        def keep(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            known: dict[str, Any] = current.once(current.id(what=name), make)
            steps.done(what=name)
            return known

        found = survey.run(keep)
    for note in found.notes:
        screen.say(note)
    rows = found.rows
    columns = parquet_of({name: [row[name] for row in rows] for name in rows[0]})
    if columns is not None:
        write_atomic(plan.folder / PARQUET, columns)
    if found.dissociations:
        write_atomic(plan.folder / PAIRS, _pairs(found))
    document = {
        **current.document,
        "settings": _settings(plan, survey),
        "rows": rows,
        "lesion_study": found.to_dict(),
        "verdicts": [verdict.to_dict() for verdict in judge_lesions(found)],
        "files": {
            **files(plan.folder),
            "parquet": None if columns is None else str(plan.folder / PARQUET),
            "dissociations": str(plan.folder / PAIRS) if found.dissociations else None,
        },
    }
    current.finish(document)
    return document


def _pairs(found: LesionStudy) -> str:
    """Pairs of classes as CSV: losses own and crossed, contrasts with their intervals, verdict."""
    text = io.StringIO()
    contrasts = [
        f"{key}_{side}_{end}" for key in ("within", "between") for side in (1, 2) for end in ("low", "", "high")
    ]
    heads = [
        "class_1",
        "class_2",
        "verdict",
        "p_value",
        "p_control_1",
        "p_control_2",
        "lost_1_by_1",
        "lost_2_by_1",
        "lost_1_by_2",
        "lost_2_by_2",
    ]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*heads, *(name.removesuffix("_").replace("__", "_") for name in contrasts), "shared"])
    for one in found.dissociations:
        losses = [one.own[0].best, one.crossed[1].best, one.crossed[0].best, one.own[1].best]
        ends = [end for pair in (one.within, one.between) for side in pair for end in (side.low, side.best, side.high)]
        writer.writerow([*one.classes, one.verdict, one.adjusted, *one.beyond, *losses, *ends, one.shared])
    return text.getvalue()


def _settings(plan: Plan, survey: Survey) -> dict[str, Any]:
    kept = ("inputs", "by", "share", "clusters", "controls", "classes", "single_units", "kinds", "layers", "seeds")
    return {
        **{key: plan.identity[key] for key in kept},
        "lesions": len(survey.chosen),
        "damage": "groups of units silenced together",
        "chosen on": "the training split",
        "judged on": "the test split",
    }


def _announce(plan: Plan, survey: Survey, screen: Screen) -> int:
    """What a dry run says."""
    task, recipe, update = plan.prepared.task, plan.prepared.recipe, 0.0
    if recipe is not None:
        update, _, _ = pace(survey.bench.net, task, Retrain(task, batch=recipe.batch))
    started = time.perf_counter()
    task.score(survey.bench.net, plan.data)
    forward = time.perf_counter() - started
    prices = survey.prices
    passes = sum(prices.values())
    document: dict[str, Any] = {
        "command": "lesion",
        "by": plan.identity["by"],
        "lesions": len(survey.chosen),
        "random_lesions": plan.draws * sum(len(one.counts) for one in survey.controls.values()),
        "inputs": len(plan.data),
        "updates": plan.prepared.updates,
        "forward_passes": round(plan.prepared.updates + passes, 1),
        "backward_passes": plan.prepared.updates,
        "seconds": round(plan.prepared.updates * update + passes * forward, 1),
        "folder": str(plan.folder),
    }
    if screen.as_json:
        document["prices"] = prices
    else:
        for part, price in prices.items():
            screen.results.print(f"{part}: about {price:.3g} forward passes", markup=False)
    return announce(document, survey.bench.net, screen)


def _show(document: dict[str, Any], screen: Screen) -> None:
    """Lesions that cost most, in the terminal."""
    found = document["lesion_study"]
    percent = is_share(found["score"])
    factor, digits = (100, 1) if percent else (1, 4)

    def said(value: float | None) -> str:
        return "-" if value is None else f"{round(factor * value, digits) + 0.0:.{digits}f}"

    def told(estimate: dict[str, float | None] | None) -> Sequence[str]:
        if estimate is None:
            return "-", "-"
        ends = "-" if estimate["low"] is None else f"{said(estimate['low'])} .. {said(estimate['high'])}"
        return said(estimate["best"]), ends

    unit = f"points of {found['score']}" if percent else document["task"]["score"]
    grid = Table(
        title=f"{document['network']['name']} on {document['task']['name']}: lesions that cost most, in {unit}",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    grid.add_column("lesion", no_wrap=True)
    for column in ("units", "lost", "95 % interval", "random", "one more random", "own class", "other classes"):
        grid.add_column(column, justify="right", no_wrap=True)
    order = sorted(found["lesions"], key=lambda one: -(one["lost"]["best"] or 0.0))
    for one in order[:SHOWN]:
        own, others = "-", "-"
        if one["label"] is not None:
            place = found["classes"].index(one["label"])
            losses = [loss["lost"]["best"] or 0.0 for loss in one["classes"]]
            own = said(losses[place])
            others = said((sum(losses) - losses[place]) / max(1, len(losses) - 1))
        grid.add_row(one["name"], str(one["size"]), *told(one["lost"]), *told(one["control"]), own, others)
    screen.table(grid)
    checked = found["audit"]
    screen.results.print(
        f"{len(found['lesions'])} lesions on {found['examples']:,} inputs, {found['draws']} random ones for each size, "
        f"drawn from the same layers; one more random: the range in which one more would lie in 95 % of cases. Units "
        f"were chosen on the training split. Audited {checked['lesions']}, mismatches {checked['mismatches']}, ties "
        f"{checked['ties']}.",
        markup=False,
        soft_wrap=True,
    )
    verdicts(document, screen)
    screen.places(document["files"])
