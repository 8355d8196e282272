"""Connect: is there a path of good networks between two, along which ways, and what does finding it cost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from planaria.campaign.files import check_folder, write_atomic
from planaria.campaign.ledger import strong_id
from planaria.cli import inputs
from planaria.cli.results import verdicts
from planaria.cli.running import Run, announce, begin, files, folder_for, pace
from planaria.cli.screen import Screen, Stopped
from planaria.core.errors import InputError, PlanariaError, nearest
from planaria.core.network import Network
from planaria.measure.shares import is_share
from planaria.measure.task import Task
from planaria.measure.weights import load_weights, pack_weights, read_tensors
from planaria.repair.retrain import Retrain
from planaria.study.connection import CONTROL, WAYS, Connection, Survey
from planaria.study.connection_verdicts import judge_connection
from planaria.version import version

SECOND, ALIGNED = "second.safetensors", "aligned.safetensors"
ALL = "all"
QUICK = {"points": 11, "nets": 7, "updates": 100, "steps": 20}
"""Settings of the short form."""


@dataclass(frozen=True)
class Options:
    """Options of `planaria connect` beyond the subject; None for what is usual."""

    to: Path | None
    to_seed: int | None
    by: tuple[str, ...]
    points: int | None
    nets: int | None
    updates: int | None
    steps: int | None
    calibration: int
    tolerance: float | None
    control: int
    expect: float | None


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that has been decided before anything is trained or written.

    Attributes:
        prepared: Task and first model.
        other: Second model; with the same task.
        options: As they were given.
        by: Names of the ways.
        settings: points, nets, updates and steps; None for what is usual.
        identity: What decides the results, as plain values.
        folder: For the results.
    """

    prepared: inputs.Prepared
    other: inputs.Prepared
    options: Options
    by: tuple[str, ...]
    settings: dict[str, Any]
    identity: dict[str, Any]
    folder: Path

    def survey(self, a: Network, b: Network, task: Task) -> Survey:
        """The study of two networks."""
        return Survey(
            a,
            b,
            task,
            self.by,
            **self.settings,
            calibration=self.options.calibration,
            tolerance=self.options.tolerance,
            control=self.options.control,
            seed=self.prepared.subject.seed,
        )

    def bare(self, of: inputs.Prepared) -> Network:
        """A network as the study takes it, from its module as it is now."""
        subject = self.prepared.subject
        net = Network.of(of.model, self.prepared.task.train.examples)
        return inputs.tapped(net, subject.taps).with_autocast(subject.dtype)


def run(subject: inputs.Subject, options: Options, screen: Screen) -> int:
    """Do it; returns the exit code."""
    plan = _plan(subject, options, screen)
    # Most of what may be wrong does not depend on the weights: it shows before anything is trained.
    survey = plan.survey(plan.bare(plan.prepared), plan.bare(plan.other), plan.prepared.task)
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
    inputs.finite("--tolerance", options.tolerance)
    if options.tolerance is not None and options.tolerance < 0:
        raise InputError("--tolerance", "a number of at least 0", options.tolerance)
    for word in options.by:
        if word not in (*WAYS, ALL):
            raise InputError("--by", f"some of {', '.join((*WAYS, ALL))}", repr(word), nearest(word, (*WAYS, ALL)))
    if not options.by:
        raise InputError("--by", f"some of {', '.join((*WAYS, ALL))}", "none")
    if options.nets is not None and options.nets < 3:
        raise InputError("--nets", "at least 3 networks, both ends among them", options.nets)
    if options.to is not None and options.to_seed is not None:
        raise InputError("--to", "a file, or --to-seed for a network that is trained now", "both")
    if subject.given and options.to is None:
        remedy = "Name the second network's weights with --to, or leave out --weights to train both now."
        raise InputError("--to", "the weights of the second network", "none", remedy)
    seed = subject.seed + 1 if options.to_seed is None else options.to_seed
    if not subject.given and options.to is None and seed == subject.seed:
        raise InputError("--to-seed", f"another seed than --seed {subject.seed}", seed, "The two would be one network.")
    prepared = inputs.prepare(subject)
    other = replace(inputs.prepare(replace(subject, weights=options.to, seed=seed)), task=prepared.task)
    settings: dict[str, Any] = {
        name: QUICK[name] if subject.quick and getattr(options, name) is None else getattr(options, name)
        for name in QUICK
    }
    settings["points"] = settings["points"] or 25
    by = tuple(name for name in WAYS if name in options.by or ALL in options.by)
    identity = {
        **prepared.identity(),
        "command": "connect",
        "version": version(),
        "seeds": [subject.seed, *([] if options.to is not None else [seed])],
        "to_weights_sha256": other.weights_sha256,
        "by": list(by),
        **settings,
        "calibration": options.calibration,
        "tolerance": options.tolerance,
        "control": options.control,
    }
    folder = screen.out or folder_for(subject, identity)
    check_folder(folder, identity, fresh=screen.fresh)
    return Plan(prepared, other, options, by, settings, identity, folder)


def _work(current: Run, plan: Plan, screen: Screen) -> dict[str, Any]:
    """Second network, ways, control, files; returns the document."""
    if screen.fresh:
        for name in (SECOND, ALIGNED):
            (plan.folder / name).unlink(missing_ok=True)
    second, trained = _second(plan, screen)
    _, facts, warnings = _intact(second, plan)
    for warning in warnings:
        screen.warn(f"The second network: {warning}")
    survey = plan.survey(current.net, second, current.task)
    with screen.progress(survey.parts, "ways") as steps:

        def keep(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            known: dict[str, Any] = current.once(current.id(what=name, to=second.sha256), make)
            steps.done(what=name)
            return known

        found = survey.run(keep)
    for way in found.tried:
        if way.problem:
            screen.say(f"{way.name} left out: {way.problem}")
    if found.aligned is not None:
        content = pack_weights(found.aligned, {"planaria.network": plan.prepared.subject.model})
        write_atomic(plan.folder / ALIGNED, content)
    document = {
        **current.document,
        "second": {**inputs.describe(second, plan.other, trained), "intact": facts},
        "warnings": [*current.document["warnings"], *(f"The second network: {warning}" for warning in warnings)],
        "settings": _settings(plan, found),
        "rows": _rows(found),
        "connection": found.to_dict(),
        "verdicts": [verdict.to_dict() for verdict in judge_connection(found)],
        "files": {
            **files(plan.folder),
            "second": None if plan.other.recipe is None else str(plan.folder / SECOND),
            "aligned": None if found.aligned is None else str(plan.folder / ALIGNED),
        },
    }
    current.finish(document)
    return document


def _second(plan: Plan, screen: Screen) -> tuple[Network, dict[str, Any] | None]:
    """The second network: from its file, from an earlier run of this command, or trained now."""
    place, mark = plan.folder / SECOND, strong_id(plan.identity)
    trained: dict[str, Any] | None = None
    if plan.other.recipe is not None:
        words = _words(place) if place.exists() else {}
        if words.get("planaria.settings") == mark:
            load_weights(plan.other.model, place)
            trained = json.loads(words["planaria.trained"])
        else:
            net, trained = inputs.network(plan.other, screen.say)
            words = {"planaria.settings": mark, "planaria.trained": json.dumps(trained)}
            write_atomic(place, pack_weights(net, words))
            load_weights(plan.other.model, place)
    return plan.bare(plan.other), trained


def _words(place: Path) -> dict[str, str]:
    try:
        return dict(read_tensors(place)[1])
    except PlanariaError:
        return {}  # damaged: it is trained again


def _intact(net: Network, plan: Plan) -> tuple[Any, dict[str, Any], list[str]]:
    try:
        return inputs.intact(net, plan.other, None)
    except InputError as problem:
        raise InputError("the second network", problem.expected, problem.got, problem.remedy) from problem


def _rows(found: Connection) -> list[dict[str, Any]]:
    """A line per way, split and point of its path."""
    rows = []
    for way in (*found.found, *([] if found.control is None else [found.control])):
        for split, profile in way.record["profiles"].items():
            for t, loss, score in zip(profile["times"], profile["losses"], profile["scores"], strict=True):
                rows.append({"way": way.name, "split": split, "t": t, "loss": loss, "score": score})
    return rows


def _settings(plan: Plan, found: Connection) -> dict[str, Any]:
    kept = ("by", "points", "nets", "updates", "steps", "calibration", "control", "seeds")
    return {
        **{key: "as usual for each way" if plan.identity[key] is None else plan.identity[key] for key in kept},
        "tolerance": found.tolerance,
        "ways chosen on": "the validation split",
        "judged on": "the test split",
    }


def _announce(plan: Plan, survey: Survey, screen: Screen) -> int:
    """What a dry run says."""
    task, recipe, update = plan.prepared.task, plan.prepared.recipe, 0.0
    if recipe is not None:
        update, _, _ = pace(survey.a, task, Retrain(task, batch=recipe.batch))
    some = task.train.take(min(len(task.train), 2000))
    started = time.perf_counter()
    task.outputs(survey.a, some)
    forward = (time.perf_counter() - started) * len(task.train) / len(some)
    prices = survey.prices()
    updates = plan.prepared.updates + plan.other.updates
    document: dict[str, Any] = {
        "command": "connect",
        "by": plan.identity["by"],
        "points": plan.settings["points"],
        "updates": updates,
        "forward_passes": round(sum(prices.values()), 1),
        "seconds": round(updates * update + sum(prices.values()) * forward, 1),
        "folder": str(plan.folder),
    }
    if screen.as_json:
        document["prices"] = prices
    else:
        for part, price in prices.items():
            screen.results.print(f"{part}: about {price:.3g} forward passes over the training split", markup=False)
    return announce(document, survey.a, screen)


def _show(document: dict[str, Any], screen: Screen) -> None:
    """Barriers and costs, in the terminal."""
    found = document["connection"]
    percent = is_share(document["task"]["score"])
    factor, digits = (100, 2) if percent else (1, 4)

    def told(estimate: dict[str, float | None], factor: float, digits: int) -> str:
        low, best, high = (estimate[key] for key in ("low", "best", "high"))
        if best is None:
            return "not finite"
        ends = "" if low is None or high is None else f" [{factor * low:.{digits}f}, {factor * high:.{digits}f}]"
        return f"{factor * best + 0.0:.{digits}f}{ends}"

    title = f"{document['network']['name']} on {document['task']['name']}: barriers between two networks, test split"
    grid = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    grid.add_column("way", no_wrap=True)
    unit = f"{document['task']['score']}{', points' if percent else ''}"
    for column in ("loss", "at t", unit, "at t", "train loss", "length", "passes", "s", "connects"):
        grid.add_column(column, justify="right", no_wrap=True)
    for way in [*found["ways"], *([] if found["control"] is None else [found["control"]])]:
        if way["problem"]:
            grid.add_row(way["way"], "left out", *[""] * 8)
            continue
        if way["way"] == CONTROL:
            grid.add_section()
        test, train = way["profiles"]["test"], way["profiles"]["train"]
        grid.add_row(
            way["way"],
            told(test["loss_barrier"], 1, 3),
            f"{test['worst_loss']:.2f}",
            told(test["score_barrier"], factor, digits),
            f"{test['worst_score']:.2f}",
            told({**train["loss_barrier"], "low": None}, 1, 3),
            "-" if test["length"] is None else f"{test['length']:.2f}",
            f"{way['cost']['forward_equivalents']:.3g}",
            f"{way['cost']['seconds']:.2g}",
            "yes" if way["connects"] else "no",
        )
    screen.table(grid)
    screen.results.print(
        f"Barrier: highest above the straight line between the ends, with its 95 % interval at that point. Length: of "
        f"the path of outputs, {distance_words(found)}. passes: work of finding the path in forward passes over the "
        f"training split. connects: validation loss barrier of at most {found['tolerance']:.3g}. Control: the straight "
        "line to the first network after a little more training.",
        markup=False,
        soft_wrap=True,
    )
    verdicts(document, screen)
    screen.places(document["files"])


def distance_words(found: dict[str, Any]) -> str:
    """What distances between outputs are, in words."""
    done = next((way for way in found["ways"] if not way["problem"]), None)
    return "" if done is None else f"{done['profiles']['test']['distance']}"
