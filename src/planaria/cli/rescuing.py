"""The main job: damage, response curve, every repair at matched compute, report."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from planaria.campaign.files import check_folder, write_atomic
from planaria.cli import inputs
from planaria.cli.repairs import MEANINGS, Settings, build_repairs, checked_names
from planaria.cli.running import BEST, Run, announce, begin, files, folder_for, pace
from planaria.cli.screen import Screen, Stopped
from planaria.core.anatomy import Anatomy
from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Budget, Flow, multiply_adds
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.measure.task import Task
from planaria.measure.weights import pack_weights
from planaria.repair.retrain import Retrain
from planaria.study.rescue import Attempt, Criterion, Schedule, attempt, summarise
from planaria.version import version

CURVE = "0:1:11"


@dataclass(frozen=True)
class Options:
    """Options of `planaria rescue` beyond the subject; None means the default of the full or quick form."""

    doses: str | None
    damage: inputs.DamageChoice
    repairs: tuple[str, ...] | None
    updates: int | None
    batch: int | None
    optimiser: str
    rate: float | None
    bites: int
    inputs: int
    tolerance: float
    consecutive: int
    every: int
    draws: int | None
    seeds: int | None
    expect: float | None
    fail_under: float | None


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that has been decided before anything is trained or written.

    Attributes:
        prepared: Task and model.
        names: Repairs.
        doses: Of the rescue.
        curve: Doses of the response curve.
        draws: Orders of the response curve.
        seeds: Of lesions and repairs.
        settings: Of the repairs.
        criterion: When a network counts as rescued.
        updates: Budget in updates.
        identity: What decides the results, as plain values.
        folder: For the results.
    """

    prepared: inputs.Prepared
    names: tuple[str, ...]
    doses: tuple[float, ...]
    curve: tuple[float, ...]
    draws: int
    seeds: tuple[int, ...]
    settings: Settings
    criterion: Criterion
    updates: int
    identity: dict[str, Any]
    folder: Path


def run(subject: inputs.Subject, options: Options, screen: Screen) -> int:
    """Do it; returns the exit code."""
    plan = _plan(subject, options, screen)
    if screen.dry_run:
        return _announce(plan, screen)
    try:
        with begin(plan.prepared, plan.identity, plan.folder, screen, options.expect) as current:
            document = _work(current, plan, options, screen)
    except Stopped as stop:
        return screen.stopped(stop, plan.folder)
    if screen.as_json:
        screen.document(document)
    else:
        _show(document, screen)
    return _gate(document, options.fail_under, screen)


def _work(current: Run, plan: Plan, options: Options, screen: Screen) -> dict[str, Any]:
    """Curve, rescues, best network, files; returns the document."""
    net, task = current.net, current.task
    damage = options.damage.on(net)
    repairs, sidecar = build_repairs(plan.names, net, task, plan.settings)
    deaf = _unread(net, damage) if any(name.startswith("refit") for name in plan.names) else ()
    if deaf:
        note = (
            f"The sidecar refit cannot repair units that no weights of their own are read by: {', '.join(deaf)}. "
            "There it leaves the network as it is; sequential and retrain work."
        )
        current.document["warnings"].append(note)
        screen.warn(note)
    rescues = _Rescues(current, plan, damage, repairs, _budget(net, task, plan))
    response = current.response(damage, plan.curve, plan.draws, (plan.prepared.subject.seed,), screen)
    rows = rescues.rows(screen)
    best = rescues.best(rows)
    settings = {
        "doses": list(plan.doses),
        "seeds": list(plan.seeds),
        "repairs": list(plan.names),
        "meanings": {name: MEANINGS[name] for name in plan.names},
        "damage": repr(damage),
        "unit": damage.site.dose.unit,
        "updates": plan.updates,
        "multiply_adds": int(rescues.budget.amount),
        **asdict(plan.criterion),
        **asdict(plan.settings),
        "sidecar": None
        if sidecar is None
        else {
            "examples": sidecar.examples,
            "bytes": sidecar.bytes,
            "cost": asdict(sidecar.cost),
            "refused": dict(sidecar.refused),
        },
    }
    document = {
        **current.document,
        "settings": settings,
        "rows": rows,
        "summary": summarise(rows, task.scorer.bounds),
        "response": response.to_dict(),
        "files": files(plan.folder, best),
    }
    current.finish(document)
    return document


def _plan(subject: inputs.Subject, options: Options, screen: Screen) -> Plan:
    quick = subject.quick
    names = checked_names(options.repairs)
    inputs.finite("--expect-score", options.expect)
    inputs.finite("--fail-under", options.fail_under)
    prepared = inputs.prepare(subject)
    task = prepared.task
    batch = (128 if len(task.train) >= 5000 else 32) if options.batch is None else options.batch
    if batch < 1:
        raise InputError("--batch", "a number of at least 1", batch)
    settings = Settings(options.optimiser, options.rate, batch, options.bites, options.inputs)
    settings.build()
    number = options.updates if options.updates is not None else (100 if quick else 400)
    if number < 1:
        raise InputError("--updates", "a number of at least 1", number)
    # The anatomy does not depend on the weights: what is wrong shows before anything is trained.
    sketch = inputs.tapped(Network.of(prepared.model, task.train.inputs), subject.taps)
    damage = options.damage.on(sketch)
    text = ("0.5" if quick else "0.3,0.5,0.7") if options.doses is None else options.doses
    doses = [float(damage.site.dose.check(dose)) for dose in inputs.numbers("--doses", text, float)]
    relative = damage.site.dose.relative
    spread = inputs.numbers("--doses", CURVE, float) if relative else doses
    count = (2 if quick else 5) if options.seeds is None else options.seeds
    seeds = tuple(range(subject.seed, subject.seed + count))
    draws = options.damage.draws(options.draws, subject.quick)
    criterion = Criterion(options.tolerance, options.consecutive, options.every)
    identity = {
        **prepared.identity(),
        "command": "rescue",
        "version": version(),
        "doses": sorted(set(doses)),
        "seeds": list(seeds),
        "repairs": list(names),
        **options.damage.identity(),
        "repair_settings": asdict(settings),
        "criterion": asdict(criterion),
        "updates": number,
        "draws": draws,
    }
    folder = screen.out or folder_for(subject, identity)
    check_folder(folder, identity, fresh=screen.fresh)
    return Plan(
        prepared=prepared,
        names=names,
        doses=tuple(sorted(set(doses))),
        curve=inputs.curve_doses(damage, spread),
        draws=draws,
        seeds=seeds,
        settings=settings,
        criterion=criterion,
        updates=number,
        identity=identity,
        folder=folder,
    )


def _budget(net: Network, task: Task, plan: Plan) -> Budget:
    """The budget as work: so many updates of plain retraining."""
    each = forward_multiply_adds(net, task.train.inputs)
    return multiply_adds(3 * each * min(plan.settings.batch, len(task.train)) * plan.updates)


def _announce(plan: Plan, screen: Screen) -> int:
    """What a dry run says."""
    task = plan.prepared.task
    net = inputs.tapped(Network.of(plan.prepared.model, task.train.inputs), plan.prepared.subject.taps)
    update, validate, test = pace(net, task, Retrain(task, plan.settings.build(), plan.settings.batch))
    gradient = [n for n in plan.names if n not in {"none", "refit", "sequential"}]
    cells = len(plan.doses) * len(plan.seeds)
    trials = cells * len(plan.names)
    recipe = plan.prepared.recipe
    training = 0 if recipe is None else recipe.epochs * len(task.train) // recipe.batch
    number = training + cells * len(gradient) * plan.updates
    hits = sum(2 * plan.settings.bites if name == "iterative" else 1 for name in gradient)
    looks = cells * (len(gradient) * (plan.updates // plan.criterion.every) + hits)
    curve = plan.draws * len(plan.curve)
    estimate = number * update + looks * validate + (curve + 2 * trials) * test
    document = {
        "command": "rescue",
        "trials": trials,
        "evaluations": looks + curve + 2 * trials,
        "updates": number,
        "forward_passes": number + looks + curve + 2 * trials,
        "backward_passes": number,
        "seconds": round(estimate, 1),
        "folder": str(plan.folder),
    }
    return announce(document, net, screen)


@dataclass(frozen=True, eq=False)
class _Rescues:
    """The rescues of a run."""

    run: Run
    plan: Plan
    damage: Damage
    repairs: dict[str, Flow | Schedule]
    budget: Budget

    def rows(self, screen: Screen) -> list[dict[str, Any]]:
        """All of them, finished ones from the ledger; ordered by dose, repair, seed."""
        plan = self.plan
        cells = [(seed, dose, name) for seed in plan.seeds for dose in plan.doses for name in plan.names]
        rows = []
        damaged: dict[tuple[float, int], float] = {}
        with screen.progress(len(cells), "rescues") as steps:
            for seed, dose, name in cells:
                mark = self._mark(name, dose, seed)
                if mark not in self.run.ledger:
                    row = self._attempt(name, dose, seed, damaged.get((dose, seed))).row()
                    self.run.ledger.record(mark, {"what": "attempt", "row": row})
                stored: Any = self.run.ledger[mark]["row"]
                rows.append(dict(stored))
                damaged[dose, seed] = stored["score_damaged"]  # the same lesion for every repair: measured once
                steps.done(what=f"rescues (dose {dose:g}, {name})")
        place = {name: at for at, name in enumerate(plan.names)}
        return sorted(rows, key=lambda row: (row["dose"], place[row["repair"]], row["seed"]))

    def best(self, rows: list[dict[str, Any]]) -> Path | None:
        """Save the best network, unless it is there already; None if nothing was repaired, or only to NaN.

        Best: rescued before not rescued, then the largest dose, then the validation score.
        """
        repaired = [row for row in rows if row["repair"] != "none"]
        if not repaired:
            return None
        row = max(repaired, key=lambda r: (r["rescued"], r["dose"], _order(r["validation_after"])))
        path = self.run.folder / BEST
        mark = self.run.id(what="best", of=self._mark(row["repair"], row["dose"], row["seed"]))
        if not (path.exists() and mark in self.run.ledger):
            # Run again rather than kept: the same seed gives the same network.
            done = self._attempt(row["repair"], row["dose"], row["seed"])
            if not all(bool(weight.isfinite().all()) for weight in done.network.weights.values()):
                return None
            words = {f"planaria.{key}": str(row[key]) for key in ("repair", "dose", "seed")}
            write_atomic(path, pack_weights(done.network, words))
            self.run.ledger.record(mark, {"what": "best", "repair": row["repair"], "dose": row["dose"]})
        return path

    def _mark(self, name: str, dose: float, seed: int) -> str:
        return self.run.id(what="attempt", repair=name, dose=dose, seed=seed)

    def _attempt(self, name: str, dose: float, seed: int, damaged: float | None = None) -> Attempt:
        return attempt(
            self.run.net,
            self.damage,
            dose,
            self.repairs[name],
            self.run.task,
            name=name,
            seed=seed,
            within=self.budget,
            criterion=self.plan.criterion,
            baseline=self.run.baseline,
            damaged=damaged,
        )


def _unread(net: Network, damage: Damage) -> tuple[str, ...]:
    """Layers that the damage hits and whose units have no outgoing entries."""
    hit = damage.at(1.0)(net, stream(0, "reach")) if damage.site.dose.relative else net
    anatomy = Anatomy.of(net)
    dead = anatomy.dead(hit)
    return tuple(g.layer for g in anatomy.groups if bool(dead[g.layer].any()) and not g.owners["outgoing"])


def _order(score: float | None) -> float:
    return -math.inf if score is None else score


def _show(document: dict[str, Any], screen: Screen) -> None:
    """The table in the terminal."""
    percent = document["task"]["score"] == "accuracy"
    factor, digits = (100, 1) if percent else (1, 3)

    def score(estimate: dict[str, float | None]) -> str:
        best, low, high = (estimate[key] for key in ("best", "low", "high"))
        if best is None:
            return "-"
        text = f"{best * factor:.{digits}f}"
        return text if low is None or high is None else f"{text} [{low * factor:.{digits}f} {high * factor:.{digits}f}]"

    def times(row: dict[str, Any]) -> str:
        both = [row["rescue_updates"], row["rescue_updates_since_last_hit"]]
        return " / ".join("-" if one is None or one["best"] is None else f"{one['best']:.0f}" for one in both)

    unit = "accuracy in %" if percent else document["task"]["score"]
    name = f"{document['network']['name']} on {document['task']['name']}"
    grid = Table(title=f"{name}: {unit} on the test split", box=SIMPLE_HEAD, pad_edge=False)
    grid.add_column("repair", no_wrap=True)
    for column in ("dose", "before", "damaged", "after", "rescued", "updates", "Gmadd", "s"):
        grid.add_column(column, justify="right", no_wrap=True)
    previous = None
    for row in document["summary"]:
        if previous not in (None, row["dose"]):
            grid.add_section()
        previous = row["dose"]
        cost = row["cost"]
        grid.add_row(
            row["repair"],
            f"{row['dose']:g}",
            f"{row['before']['best'] * factor:.{digits}f}",
            score(row["damaged"]),
            score(row["after"]),
            f"{row['rescued']}/{row['trials']}",
            times(row),
            f"{cost['multiply_adds'] / 1e9:.3g}",
            f"{cost['seconds']:.2g}",
        )
    screen.table(grid)
    settings = document["settings"]
    screen.results.print(
        f"rescued: validation score within {settings['tolerance']:g} of the intact one, {settings['consecutive']} "
        f"evaluations in a row, in the work of {settings['updates']} updates. updates: median to rescue, total / "
        f"since the last hit (- more than half not rescued). Brackets: 95 % interval over {len(settings['seeds'])} "
        "seeds, for this one network.",
        markup=False,
    )
    screen.places(document["files"])


def _gate(document: dict[str, Any], fail_under: float | None, screen: Screen) -> int:
    """Exit code 1 if the best repair misses the declared score at some dose."""
    if fail_under is None:
        return 0
    reached: dict[float, float] = {}
    for row in document["summary"]:
        reached[row["dose"]] = max(reached.get(row["dose"], -math.inf), row["after"]["best"] or -math.inf)
    missed = {dose: score for dose, score in reached.items() if score < fail_under}
    for dose, score in missed.items():
        screen.errors.print(f"Gate failed: {score:.4f} at dose {dose:g} is under {fail_under:g}.", style="red")
    return 1 if missed else 0
