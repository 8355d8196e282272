"""The main job: damage, response curve, every repair at matched compute, report."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from planaria.campaign.files import check_folder, write_atomic
from planaria.cli import inputs
from planaria.cli.portraying import portray, sizes
from planaria.cli.repairs import CLOSED_FORM, MEANINGS, Settings, build_repairs, checked_names
from planaria.cli.results import gate, show
from planaria.cli.running import BEST, COMPACT, Run, announce, begin, files, folder_for, pace
from planaria.cli.screen import Screen, Stopped
from planaria.core.anatomy import Anatomy
from planaria.core.motion import Budget
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.sites import RandomUnits, RankedUnits
from planaria.measure.shares import is_share
from planaria.measure.weights import pack_weights
from planaria.repair.refit import Refit, unread
from planaria.repair.retrain import Retrain
from planaria.study.portrait import passes
from planaria.study.rescue import Attempt, Criterion, Repair, attempt
from planaria.study.summary import summarise
from planaria.study.train import usual_batch
from planaria.study.verdicts import judge
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
    ratio: float
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
        show(document, screen)
    return gate(document, options.fail_under, screen)


def _work(current: Run, plan: Plan, options: Options, screen: Screen) -> dict[str, Any]:
    """Curve, rescues, best network, files; returns the document."""
    net, task = current.net, current.task
    damage = options.damage.on(net)
    repairs, sidecar = build_repairs(plan.names, net, task, plan.settings)
    deaf = {} if sidecar is None else unread(net, sidecar, _hit_layers(net, damage))
    if deaf:
        told = "; ".join(f"{layer} ({why})" for layer, why in deaf.items())
        note = f"The sidecar refit cannot make up for dead units of {told}. There it leaves the network as it is."
        current.document["warnings"].append(note)
        screen.warn(note)
    rescues = _Rescues(current, plan, damage, repairs, plan.settings.budget(net, task))
    response = current.response(damage, plan.curve, plan.draws, (plan.prepared.subject.seed,), screen)
    rows = rescues.rows(screen)
    best = rescues.best(rows)
    portrait = None
    if best is not None:
        chosen = rescues.chosen(rows)
        portrait = portray(current, damage, chosen, lambda: rescues.network(chosen), screen)
    compacted = plan.folder / COMPACT
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
    verdicts = judge(
        rows,
        tolerance=plan.criterion.tolerance,
        response=response,
        percent=is_share(task.scorer.name),
    )
    document = {
        **current.document,
        "settings": settings,
        "rows": rows,
        "summary": summarise(rows, task.scorer.bounds),
        "response": response.to_dict(),
        "verdicts": [verdict.to_dict() for verdict in verdicts],
        "portrait": portrait,
        "fits": rescues.fits(),
        "files": {**files(plan.folder, best), "compact": str(compacted) if compacted.exists() else None},
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
    batch = usual_batch(len(task.train)) if options.batch is None else options.batch
    number = options.updates if options.updates is not None else (100 if quick else 400)
    settings = Settings(options.optimiser, options.rate, batch, options.bites, options.inputs, number, options.ratio)
    settings.build()
    # The anatomy does not depend on the weights: what is wrong shows before anything is trained.
    sketch = inputs.tapped(Network.of(prepared.model, task.train.examples), subject.taps)
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


def _announce(plan: Plan, screen: Screen) -> int:
    """What a dry run says."""
    task = plan.prepared.task
    net = inputs.tapped(Network.of(plan.prepared.model, task.train.examples), plan.prepared.subject.taps)
    update, validate, test = pace(net, task, Retrain(task, plan.settings.build(), plan.settings.batch))
    gradient = [n for n in plan.names if n not in CLOSED_FORM]
    cells = len(plan.doses) * len(plan.seeds)
    trials = cells * len(plan.names)
    number = plan.prepared.updates + cells * len(gradient) * plan.updates
    stages = {"iterative": 2 * plan.settings.bites, "extra": 4, "dropout": 4, "faults": 4}
    hits = sum(stages.get(name, 1) for name in gradient)
    looks = cells * (len(gradient) * (plan.updates // plan.criterion.every) + hits)
    curve = plan.draws * len(plan.curve)
    portraits = 3 * passes(net, task, **sizes(plan.prepared.subject.quick))
    estimate = number * update + looks * validate + (curve + 2 * trials + portraits) * test
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
    repairs: dict[str, Repair]
    budget: Budget
    _kept: dict[str, Network] = field(default_factory=dict)

    def rows(self, screen: Screen) -> list[dict[str, Any]]:
        """All of them, finished ones from the ledger; ordered by dose, repair, seed."""
        plan = self.plan
        cells = [(seed, dose, name) for seed in plan.seeds for dose in plan.doses for name in plan.names]
        rows = []
        damaged: dict[tuple[float, int], float] = {}
        with screen.progress(len(cells), "rescues") as steps:
            for seed, dose, name in cells:
                mark = self._mark(name, dose, seed)
                stored = self.run.once(mark, partial(self._cell, name, dose, seed, damaged.get((dose, seed))))["row"]
                rows.append(dict(stored))
                damaged[dose, seed] = stored["score_damaged"]  # the same lesion for every repair: measured once
                steps.done(what=f"rescues (dose {dose:g}, {name})")
        place = {name: at for at, name in enumerate(plan.names)}
        return sorted(rows, key=lambda row: (row["dose"], place[row["repair"]], row["seed"]))

    def fits(self) -> list[dict[str, Any]]:
        """What each closed form makes good in each layer: errors of the first lesion of every dose."""
        seed = self.plan.seeds[0]
        found = []
        closed = {name: repair for name, repair in self.repairs.items() if isinstance(repair, Refit)}
        for name, repair in closed.items():
            for dose in self.plan.doses:
                made = partial(self._fits, repair, dose, seed)
                stored = self.run.once(self.run.id(what="fits", repair=name, dose=dose, seed=seed), made)
                found += [{"repair": name, "dose": dose, "seed": seed, **fit} for fit in stored["fits"]]
        return found

    def _fits(self, repair: Refit, dose: float, seed: int) -> dict[str, Any]:
        net = self.run.net
        slices = self.damage.site.select(net, dose, stream(seed, "lesion"))
        hurt = self.damage.fault.strike(net, slices, stream(seed, "fault")) if slices.all else net
        return {"what": "fits", "fits": [asdict(fit) for fit in repair.fits(hurt)]}

    def best(self, rows: list[dict[str, Any]]) -> Path | None:
        """Save the best network, unless it is there already; None if nothing was repaired, or only to NaN."""
        if not any(row["repair"] != "none" for row in rows):
            return None
        row, path = self.chosen(rows), self.run.folder / BEST
        mark = self.run.id(what="best", of=self._mark(row["repair"], row["dose"], row["seed"]))
        if not (path.exists() and mark in self.run.ledger):
            net = self.network(row)
            if not all(bool(weight.isfinite().all()) for weight in net.weights.values()):
                return None
            words = {f"planaria.{key}": str(row[key]) for key in ("repair", "dose", "seed")}
            write_atomic(path, pack_weights(net, words))
            self.run.ledger.record(mark, {"what": "best", "repair": row["repair"], "dose": row["dose"]})
        return path

    @staticmethod
    def chosen(rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The best repair: rescued before not rescued, then the largest dose, then the validation score."""
        repaired = [row for row in rows if row["repair"] != "none"]
        return max(repaired, key=lambda r: (r["rescued"], r["dose"], _order(r["validation_after"])))

    def network(self, row: dict[str, Any]) -> Network:
        """The network at the end of an attempt: run again once, since the same seed gives the same network."""
        mark = self._mark(row["repair"], row["dose"], row["seed"])
        if mark not in self._kept:
            self._kept[mark] = self._attempt(row["repair"], row["dose"], row["seed"]).network
        return self._kept[mark]

    def _mark(self, name: str, dose: float, seed: int) -> str:
        return self.run.id(what="attempt", repair=name, dose=dose, seed=seed)

    def _cell(self, name: str, dose: float, seed: int, damaged: float | None) -> dict[str, Any]:
        return {"what": "attempt", "row": self._attempt(name, dose, seed, damaged).row()}

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


def _hit_layers(net: Network, damage: Damage) -> tuple[str, ...]:
    """Layers whose units the damage kills at its full dose."""
    site, rng = damage.site, stream(0, "reach")
    if site.dose.relative and isinstance(site, RandomUnits | RankedUnits):
        # By name: where all units of a layer die, all weights of what reads them are zero, and it seems dead too.
        named = {unit.layer for unit in site.units(net, 1.0, rng)}
        return tuple(group.layer for group in Anatomy.of(net).groups if group.layer in named)
    hit = damage.at(1.0)(net, rng) if site.dose.relative else net
    return tuple(layer for layer, dead in Anatomy.of(net).dead(hit).items() if bool(dead.any()))


def _order(score: float | None) -> float:
    return -math.inf if score is None else score
