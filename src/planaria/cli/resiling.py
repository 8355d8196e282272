"""Resilience: gate vulnerability beside real deletions, stiff directions, break-down along damage paths."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from planaria.campaign.files import check_folder, write_atomic
from planaria.cli import inputs
from planaria.cli.results import verdicts
from planaria.cli.running import Run, announce, begin, files, folder_for, pace
from planaria.cli.screen import Screen, Stopped
from planaria.core.errors import InputError, nearest
from planaria.core.network import Network
from planaria.geometry.metric import Euclidean, Fisher, Geometry
from planaria.measure.task import Task
from planaria.repair.retrain import Retrain
from planaria.study.resilience import Survey, said
from planaria.study.resilience_verdicts import judge_resilience
from planaria.study.resilient import Resilience
from planaria.sweep.lesions import EachUnit
from planaria.version import version

UNITS = "units.csv"
INPUTS, QUICK_INPUTS = 512, 128
REPEATS, QUICK_REPEATS = 10, 3
SHOWN = 10
"""Units in the terminal's table."""


@dataclass(frozen=True)
class Options:
    """Options of `planaria resilience` beyond the subject."""

    metric: str
    inputs: int | None
    sample: int
    set_size: int
    spectrum: bool
    dose: float
    repeats: int | None
    points: int
    kinds: tuple[str, ...] | None
    layers: tuple[str, ...] | None
    expect: float | None


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that has been decided before anything is trained or written.

    Attributes:
        prepared: Task and model.
        options: As they were given.
        geometry: How changes of outputs are measured.
        examples: Inputs over which they are means.
        repeats: Random lesions.
        identity: What decides the results, as plain values.
        folder: For the results.
    """

    prepared: inputs.Prepared
    options: Options
    geometry: Geometry
    examples: int
    repeats: int
    identity: dict[str, Any]
    folder: Path

    def survey(self, net: Network, task: Task) -> Survey:
        """The study of a network."""
        options = self.options
        return Survey.of(
            net,
            task,
            geometry=self.geometry,
            what=EachUnit(options.kinds, options.layers),
            examples=self.examples,
            sample=options.sample or None,
            set_size=options.set_size,
            spectrum=options.spectrum,
            dose=options.dose,
            repeats=self.repeats,
            points=options.points,
            seed=self.prepared.subject.seed,
        )


def run(subject: inputs.Subject, options: Options, screen: Screen) -> int:
    """Do it; returns the exit code."""
    plan = _plan(subject, options, screen)
    task = plan.prepared.task
    # Layers and units do not depend on the weights: what is wrong shows before anything is trained.
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
    geometry = geometry_of(options.metric)
    if not 0 < options.dose <= 1:
        raise InputError("--dose", "a share of the units above 0 and up to 1", options.dose)
    if options.sample and options.sample < 4:
        raise InputError("--sample", "at least 4 units, or 0 for all", options.sample)
    prepared = inputs.prepare(subject)
    examples = options.inputs or (QUICK_INPUTS if subject.quick else INPUTS)
    repeats = (QUICK_REPEATS if subject.quick else REPEATS) if options.repeats is None else options.repeats
    identity = {
        **prepared.identity(),
        "command": "resilience",
        "version": version(),
        "seeds": [subject.seed],
        "inputs": examples,
        "metric": said(geometry),
        "sample": options.sample or None,
        "set_size": options.set_size,
        "spectrum": options.spectrum,
        "dose": options.dose,
        "repeats": repeats,
        "points": options.points,
        "kinds": options.kinds and list(options.kinds),
        "layers": options.layers and list(options.layers),
    }
    folder = screen.out or folder_for(subject, identity)
    check_folder(folder, identity, fresh=screen.fresh)
    return Plan(prepared, options, geometry, examples, repeats, identity, folder)


def geometry_of(text: str) -> Geometry:
    """How changes of outputs are measured, from the word of an option.

    Example:
        >>> geometry_of("fisher:2")
        Fisher(temperature=2.0)
    """
    word, colon, rest = text.partition(":")
    if word == "logits" and not colon:
        return Euclidean()
    if word != "fisher":
        raise InputError(
            "--metric", "logits, fisher or fisher:TEMPERATURE", repr(text), nearest(word, ("logits", "fisher"))
        )
    if not colon:
        return Fisher()
    numbers = inputs.numbers("--metric", rest, float)
    if len(numbers) != 1:
        raise InputError("--metric", "fisher:TEMPERATURE with one temperature", repr(text))
    return Fisher(numbers[0])


def _work(current: Run, plan: Plan, screen: Screen) -> dict[str, Any]:
    """Map, single units, sets, spectrum, lesions, files; returns the document."""
    if screen.fresh:
        (plan.folder / UNITS).unlink(missing_ok=True)
    survey = plan.survey(current.net, current.task)
    with screen.progress(survey.steps, "steps") as steps:

        def keep(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            known: dict[str, Any] = current.once(current.id(what=name), make)
            steps.done(what=name)
            return known

        found = survey.run(keep)
    for note in found.notes:
        screen.say(note)
    write_atomic(plan.folder / UNITS, _units(found))
    document = {
        **current.document,
        "settings": _settings(plan),
        "rows": _rows(found),
        "resilience": found.to_dict(),
        "verdicts": [verdict.to_dict() for verdict in judge_resilience(found)],
        "files": {**files(plan.folder), "units": str(plan.folder / UNITS)},
    }
    current.finish(document)
    return document


def _units(found: Resilience) -> str:
    """A line per unit as CSV; what was not measured is empty."""
    measured = {(trial.layer, trial.unit): trial for trial in found.trials.trials}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", "unit", "kind", "predicted", "magnitude", "activation", "actual", "loss_rise"])
    for layer in found.layers:
        columns = zip(layer.predicted, layer.magnitude, layer.activation, strict=True)
        for unit, values in enumerate(columns):
            trial = measured.get((layer.layer, unit))
            real = ["", ""] if trial is None else [trial.actual, "" if trial.loss is None else trial.loss]
            writer.writerow([layer.layer, unit, layer.kind, *values, *real])
    return text.getvalue()


def _rows(found: Resilience) -> list[dict[str, Any]]:
    """A line per layer; the units are in a table of their own."""
    rows = []
    for layer in found.layers:
        worst = max(range(len(layer.predicted)), key=lambda unit: layer.predicted[unit])
        rows.append(
            {
                "layer": layer.layer,
                "kind": layer.kind,
                "units": len(layer.predicted),
                "dead": layer.dead,
                "mean_predicted": sum(layer.predicted) / len(layer.predicted),
                "worst_unit": worst,
                "worst_predicted": layer.predicted[worst],
            }
        )
    return rows


def _settings(plan: Plan) -> dict[str, Any]:
    kept = ("inputs", "metric", "sample", "set_size", "spectrum", "dose", "repeats", "points", "kinds", "layers")
    return {
        **{key: plan.identity[key] for key in (*kept, "seeds")},
        "changes of outputs": "on inputs of the training split, without labels",
        "losses and scores": "on the test split, 2,000 inputs at most",
    }


def _announce(plan: Plan, survey: Survey, screen: Screen) -> int:
    """What a dry run says."""
    task, recipe, update = plan.prepared.task, plan.prepared.recipe, 0.0
    if recipe is not None:
        update, _, _ = pace(survey.net, task, Retrain(task, batch=recipe.batch))
    started = time.perf_counter()
    survey.net(survey.inputs)
    forward = time.perf_counter() - started
    prices = survey.prices
    passes = sum(prices.values())
    document: dict[str, Any] = {
        "command": "resilience",
        "units": len(survey.units),
        "inputs": len(survey.inputs),
        "metric": plan.identity["metric"],
        "lesions": plan.repeats,
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
    return announce(document, survey.net, screen)


def _show(document: dict[str, Any], screen: Screen) -> None:
    """The most vulnerable units, in the terminal."""
    found = document["resilience"]
    measured = {(one["layer"], one["unit"]): one for one in found["trials"]["units"]}
    grid = Table(
        title=f"{document['network']['name']} on {document['task']['name']}: the most vulnerable units, squared change "
        f"of the {found['of']}",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    grid.add_column("unit", no_wrap=True)
    for column in ("predicted", "actual", "rise of the test loss"):
        grid.add_column(column, justify="right", no_wrap=True)
    for row in found["top"][:SHOWN]:
        trial = measured.get((row["layer"], row["unit"]), {})
        told = ["-" if trial.get(key) is None else f"{trial[key]:.4g}" for key in ("actual", "loss")]
        grid.add_row(f"{row['layer']}[{row['unit']}]", f"{row['predicted']:.4g}", *told)
    screen.table(grid)
    dead = f", {found['dead']} of them dead" if found["dead"] else ""
    screen.results.print(
        f"{found['units']:,} units{dead}, on {found['examples']:,} training inputs without labels; "
        f"{len(measured)} units were really silenced (-: not this one), losses and scores on {found['judged']:,} test "
        "inputs.",
        markup=False,
        soft_wrap=True,
    )
    verdicts(document, screen)
    screen.places(document["files"])
