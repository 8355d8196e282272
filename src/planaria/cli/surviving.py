"""Life under constant damage: event after event of damage and repair, and what it makes of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from planaria.campaign.files import check_folder
from planaria.cli import inputs
from planaria.cli.repairs import CLOSED_FORM, MEANINGS, Settings, build_repairs, checked_names
from planaria.cli.running import Run, announce, begin, files, folder_for, pace
from planaria.cli.screen import Screen, Stopped
from planaria.core.errors import InputError
from planaria.core.motion import After, Flow
from planaria.core.network import Network
from planaria.measure.shares import is_share
from planaria.measure.statistics import Estimate
from planaria.measure.task import Task
from planaria.repair.regrow import Regrow
from planaria.repair.retrain import Retrain
from planaria.study.regime import Attrition, Regime, Turnover
from planaria.study.rescue import Baseline, leave
from planaria.study.survival import Resilience, Survival
from planaria.study.survive import collect, iter_survive, resilience_row, turnover_regimes, walk
from planaria.study.train import usual_batch
from planaria.study.walks import Walk
from planaria.version import version

REPAIRS = ("none", "refit", "sequential", "retrain", "refit+retrain")
RATES = "0,0.01,0.05"
DELAY = 5


@dataclass(frozen=True)
class Options:
    """Options of `planaria survive` beyond the subject; None means the default of the full or quick form."""

    mode: str
    dose: float
    events: int | None
    delay: int | None
    damage: inputs.DamageChoice
    repairs: tuple[str, ...] | None
    updates: int | None
    batch: int | None
    optimiser: str
    rate: float | None
    inputs: int
    tolerance: float
    turnover_rates: str | None
    draws: int | None
    seeds: int | None
    expect: float | None


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that has been decided before anything is trained or written.

    Attributes:
        prepared: Task and model.
        names: Repairs.
        regime: What the networks live under.
        rates: One regime per turnover rate, none where rates are not compared.
        draws: Orders of the response curves of that comparison.
        seeds: Of damage and repair.
        settings: Of the repairs.
        updates: Budget after each event, in updates.
        identity: What decides the results, as plain values.
        folder: For the results.
    """

    prepared: inputs.Prepared
    names: tuple[str, ...]
    regime: Regime
    rates: tuple[Regime, ...]
    draws: int
    seeds: tuple[int, ...]
    settings: Settings
    updates: int
    identity: dict[str, Any]
    folder: Path

    @property
    def retrain(self) -> Retrain:
        """The repair of the comparison of turnover rates: its cost does not depend on the damage."""
        return Retrain(self.prepared.task, self.settings.build(), self.settings.batch)


def run(subject: inputs.Subject, options: Options, screen: Screen) -> int:
    """Do it; returns the exit code."""
    plan = _plan(subject, options, screen)
    if screen.dry_run:
        return _announce(plan, screen)
    try:
        with begin(plan.prepared, plan.identity, plan.folder, screen, options.expect) as current:
            document, result, resilience = _work(current, plan, screen)
    except Stopped as stop:
        return screen.stopped(stop, plan.folder)
    if screen.as_json:
        screen.document(document)
    else:
        _show(document, result, resilience, screen)
    return 0


def _work(current: Run, plan: Plan, screen: Screen) -> tuple[dict[str, Any], Survival, Resilience | None]:
    """Walks, comparison of rates, files; returns the document and what it was made of."""
    repairs, sidecar = build_repairs(plan.names, current.net, current.task, plan.settings)
    flows = flows_of(repairs)
    result = collect(_walks(current, plan, flows, screen), plan.regime, current.net, current.task)
    for note in _overspent(result):
        current.document["warnings"].append(note)
        screen.warn(note)
    rows = _rates(current, plan, screen)
    resilience = Resilience(tuple(rows), current.task.scorer.bounds) if rows else None
    regime = plan.regime
    settings = {
        "mode": "turnover" if isinstance(regime.mode, Turnover) else "attrition",
        "dose_per_event": regime.dose,
        "events": regime.events,
        "delay": regime.mode.delay if isinstance(regime.mode, Turnover) else None,
        "seeds": list(plan.seeds),
        "repairs": list(plan.names),
        "meanings": {name: MEANINGS[name] for name in plan.names},
        "damage": repr(regime.damage),
        "unit": regime.damage.site.dose.unit,
        "updates": plan.updates,
        "multiply_adds": int(regime.within.amount),
        "tolerance": regime.tolerance,
        "turnover_rates": [one.dose for one in plan.rates],
        "turnover_delay": plan.rates[0].rest if plan.rates else None,
        "draws": plan.draws if plan.rates else None,
        **asdict(plan.settings),
        "sidecar": None if sidecar is None else {"examples": sidecar.examples, "cost": asdict(sidecar.cost)},
    }
    document = {
        **current.document,
        "settings": settings,
        "rows": result.rows,
        "survival": result.to_dict(resilience),
        "verdicts": [result.verdict()] + ([resilience.verdict()] if resilience is not None else []),
        "files": files(plan.folder),
    }
    current.finish(document)
    return document, result, resilience


def _walks(current: Run, plan: Plan, flows: Mapping[str, Flow], screen: Screen) -> list[Walk]:
    """All walks, finished ones from the ledger."""
    cells = [(seed, name) for seed in plan.seeds for name in plan.names]
    found = []
    with screen.progress(len(cells), "walks") as steps:
        for seed, name in cells:
            mark = current.id(what="walk", repair=name, seed=seed)
            stored = current.once(mark, partial(_walk, current, plan.regime, name, flows[name], seed))
            found.append(Walk.of(stored["walk"]))
            steps.done(what=f"walks ({name})")
    place = {name: at for at, name in enumerate(plan.names)}
    return sorted(found, key=lambda one: (place[one.repair], one.seed))


def _walk(current: Run, regime: Regime, name: str, flow: Flow, seed: int) -> dict[str, Any]:
    one = walk(current.net, flow, current.task, regime, name=name, seed=seed, baseline=current.baseline)
    return {"what": "walk", "walk": one.record()}


def _rates(current: Run, plan: Plan, screen: Screen) -> list[dict[str, Any]]:
    """The comparison of turnover rates, finished walks from the ledger."""
    cells = [(seed, regime) for seed in plan.seeds for regime in plan.rates]
    rows: list[dict[str, Any]] = []
    with screen.progress(len(cells), "walks at other rates") as steps:
        for seed, regime in cells:
            mark = current.id(what="turnover", rate=regime.dose, seed=seed)
            rows.append(dict(current.once(mark, partial(_rate, current, plan, regime, seed))["row"]))
            steps.done(what=f"walks at other rates ({regime.dose:g})")
    return rows


def _rate(current: Run, plan: Plan, regime: Regime, seed: int) -> dict[str, Any]:
    row = resilience_row(
        current.net, plan.retrain, current.task, regime, seed=seed, draws=plan.draws, baseline=current.baseline
    )
    return {"what": "turnover", "row": row}


def _overspent(result: Survival) -> list[str]:
    """Repairs whose single step is dearer than the budget of an event: a step is not cut."""
    budget, notes = result.regime.within.amount, []
    for name, one in result.repairs.items():
        each = one.cost["multiply_adds"] / (sum(len(walk.events) for walk in one.walks) / len(one.walks))
        if each > 1.1 * budget:
            notes.append(f"{name} spent {each / budget:.1f} times the budget of an event: one step of it is dearer.")
    return notes


def flows_of(repairs: Mapping[str, object], option: str = "--repairs") -> dict[str, Flow]:
    """The repairs, all of them flows that leave dead units dead.

    Args:
        repairs: Name -> repair.
        option: That named them.

    Raises:
        InputError: On a schedule, or on one that regrows.
    """
    found: dict[str, Flow] = {}
    for name, repair in repairs.items():
        if not isinstance(repair, Flow):
            remedy = "A schedule brings damage of its own; here damage is the stream. Use retrain."
            raise InputError(option, "flows, such as retrain", repr(name), remedy)
        if isinstance(repair, After) and isinstance(repair.operator, Regrow):
            remedy = "Use --mode turnover, in which dead units return as embryonic ones, with retrain."
            raise InputError(option, "repairs that leave dead units dead", repr(name), remedy)
        found[name] = repair
    return found


def _plan(subject: inputs.Subject, options: Options, screen: Screen) -> Plan:
    quick = subject.quick
    names = REPAIRS if options.repairs is None else checked_names(options.repairs)
    inputs.finite("--expect-score", options.expect)
    if options.mode not in {"attrition", "turnover"}:
        raise InputError("--mode", "attrition or turnover", repr(options.mode))
    turnover = options.mode == "turnover"
    prepared = inputs.prepare(subject)
    task = prepared.task
    batch = usual_batch(len(task.train)) if options.batch is None else options.batch
    number = options.updates if options.updates is not None else 20
    settings = Settings(options.optimiser, options.rate, batch, 1, options.inputs, number)
    settings.build()
    sketch = inputs.tapped(Network.of(prepared.model, task.train.examples), subject.taps)
    # Those from a sidecar are flows, and making one takes time.
    flows_of(build_repairs(tuple(name for name in names if not name.startswith("refit")), sketch, task, settings)[0])
    damage = options.damage.on(sketch)
    within = settings.budget(sketch, task)
    delay = DELAY if options.delay is None else options.delay
    events = options.events if options.events is not None else (10 if quick else 30 if turnover else 20)
    mode = Turnover(delay) if turnover else Attrition()
    regime = Regime(damage, options.dose, events, mode, within, options.tolerance)
    text = options.turnover_rates if options.turnover_rates is not None else (RATES if turnover else "")
    rates: tuple[Regime, ...] = ()
    if text.strip():
        rates = turnover_regimes(damage, inputs.numbers("--turnover-rates", text, float), events, delay, within)
    elif options.delay is not None and not turnover:
        raise InputError(
            "--delay", "--mode turnover or --turnover-rates beside it", "neither", "In attrition no unit returns."
        )
    for one in (regime, *rates):  # one event, to see whether it does anything
        next(iter_survive(sketch, leave, task, one, baseline=Baseline(0.0, 0.0)))
    count = options.seeds if options.seeds is not None else (2 if quick else 5 if turnover else 10)
    seeds = tuple(range(subject.seed, subject.seed + count))
    draws = options.draws if options.draws is not None else (5 if quick else 10)
    chosen = options.damage.identity()
    identity = {
        **prepared.identity(),
        "command": "survive",
        "version": version(),
        "seeds": list(seeds),
        "repairs": list(names),
        **{key: value for key, value in chosen.items() if key != "order"},
        "mode": repr(mode),
        "dose": options.dose,
        "events": events,
        "updates": number,
        "tolerance": options.tolerance,
        "repair_settings": asdict(settings),
        "turnover_rates": [one.dose for one in rates],
        "turnover_delay": delay if rates else None,
        "draws": draws if rates else None,
    }
    folder = screen.out or folder_for(subject, identity)
    check_folder(folder, identity, fresh=screen.fresh)
    return Plan(prepared, names, regime, rates, draws, seeds, settings, number, identity, folder)


def _announce(plan: Plan, screen: Screen) -> int:
    """What a dry run says."""
    task: Task = plan.prepared.task
    net = inputs.tapped(Network.of(plan.prepared.model, task.train.examples), plan.prepared.subject.taps)
    update, validate, test = pace(net, task, plan.retrain)
    walks, others = len(plan.seeds) * len(plan.names), len(plan.seeds) * len(plan.rates)
    gradient = [name for name in plan.names if name not in CLOSED_FORM]
    events = plan.regime.events
    number = plan.prepared.updates + events * plan.updates * (len(plan.seeds) * len(gradient) + others)
    looks = 2 * events * (walks + others)
    tests = walks + others * (11 * plan.draws + 1)
    document = {
        "command": "survive",
        "walks": walks + others,
        "events": events,
        "evaluations": looks + tests,
        "updates": number,
        "forward_passes": number + looks + tests,
        "backward_passes": number,
        "seconds": round(number * update + looks * validate + tests * test, 1),
        "folder": str(plan.folder),
    }
    return announce(document, net, screen)


def _show(document: dict[str, Any], result: Survival, resilience: Resilience | None, screen: Screen) -> None:
    """The tables and verdicts in the terminal."""
    percent = is_share(document["task"]["score"])
    regime = result.regime
    turnover = isinstance(regime.mode, Turnover)

    def score(estimate: Estimate) -> str:
        return f"{_scaled(estimate, 100):.1f}" if percent else f"{estimate:.3f}"

    name = f"{document['network']['name']} on {document['task']['name']}"
    grid = Table(title=f"{name}: {regime.events} events of {regime.dose:g}", box=SIMPLE_HEAD, pad_edge=False)
    grid.add_column("repair", no_wrap=True)
    for column in ("median horizon", "retention", "% of time inside", "back after", "after", "Gmadd", "s"):
        grid.add_column(column, justify="right", no_wrap=True)
    for repair, one in result.repairs.items():
        horizon, back = one.median_horizon, one.return_time
        grid.add_row(
            repair,
            f"{horizon:.0f}" if math.isfinite(horizon.best) else f"beyond {regime.events}",
            "-" if one.settled is None else f"{one.settled:.3f}",
            f"{_scaled(one.inside, 100):.0f}",
            "-" if back is None or math.isinf(back.best) else f"{back:.0f}",
            score(one.after),
            f"{one.cost['multiply_adds'] / 1e9:.3g}",
            f"{one.cost['seconds']:.2g}",
        )
    screen.table(grid)
    if resilience is not None:
        rates = Table(title="resilience at equal budget", box=SIMPLE_HEAD, pad_edge=False)
        for column in ("turnover rate", "area", "area less control", "score"):
            rates.add_column(column, justify="right", no_wrap=True)
        for rate in resilience.rates:
            gain = f"{resilience.gain(rate):+.4f}" if rate > 0 else "control"
            rates.add_row(f"{rate:g}", f"{resilience.area(rate):.4f}", gain, score(resilience.score(rate)))
        screen.table(rates)
    for verdict in document["verdicts"]:
        screen.results.print(f"{verdict['question']} {verdict['answer']}. {verdict['words']}", markup=False)
    beginning = f", after event {regime.burn_in}" if turnover else ""
    screen.results.print(
        f"inside: validation score within {regime.tolerance:g} of the intact one, after the repair of an event. "
        f"retention: share that an event leaves inside{beginning}. after: test score at the end. Brackets: "
        f"95 % interval over {len(document['settings']['seeds'])} seeds, for this one network.",
        markup=False,
    )
    screen.places(document["files"])


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(*(factor * value for value in (estimate.low, estimate.best, estimate.high)))
