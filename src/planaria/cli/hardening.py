"""Hardening: every way of training at equal gradient evaluations, and which of the networks survives."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from planaria.campaign.files import check_folder, write_atomic
from planaria.campaign.ledger import strong_id
from planaria.cli import inputs
from planaria.cli.methods import MEANINGS, build_methods, build_optimiser, meaning
from planaria.cli.repairs import SIDECAR_INPUTS
from planaria.cli.results import score_text, verdicts
from planaria.cli.running import Run, announce, begin, files, folder_for, pace
from planaria.cli.screen import Screen, Stopped
from planaria.core.anatomy import Anatomy
from planaria.core.errors import InputError
from planaria.core.motion import Moment
from planaria.core.network import Network
from planaria.measure.models import build
from planaria.measure.shares import is_share
from planaria.measure.weights import pack_weights, read_tensors
from planaria.repair.harden import Harden
from planaria.repair.training import Against
from planaria.study.harden import Contest, examine, train_against
from planaria.study.rescue import Criterion
from planaria.study.train import usual_batch
from planaria.study.trials import CURVES, PLAIN, judge_trials, summarise_trials
from planaria.version import version

_TOGETHER = math.lcm(1, 2, 3)
"""Evaluations come in such numbers, so that every method uses all of them: SAM takes two per update, b3 three."""


@dataclass(frozen=True)
class Options:
    """Options of `planaria harden` beyond the subject; None means the default of the full or quick form."""

    methods: tuple[str, ...] | None
    epochs: int | None
    batch: int | None
    optimiser: str
    rate: float | None
    decay: float | None
    doses: str | None
    draws: int | None
    lesion: float
    updates: int | None
    tolerance: float
    seeds: int | None
    expect: float | None


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that has been decided before anything is trained or written.

    Attributes:
        prepared: Task and model.
        methods: Name -> what is trained against; the control first.
        contest: What all methods have in common.
        epochs: Passes over the training split that the evaluations amount to.
        seeds: Of weights, batches and lesions.
        identity: What decides the results, as plain values.
        folder: For the results.
    """

    prepared: inputs.Prepared
    methods: dict[str, Against]
    contest: Contest
    epochs: int
    seeds: tuple[int, ...]
    identity: dict[str, Any]
    folder: Path

    @property
    def mark(self) -> str:
        """Id of everything that decides the results."""
        return strong_id(self.identity)

    def start(self, seed: int) -> Network:
        """The network that training begins with: the given weights, or initial ones."""
        subject, task = self.prepared.subject, self.prepared.task
        model = self.prepared.model
        if not subject.given:
            shape = tuple(task.train.inputs.shape[1:])
            model = build(subject.model, shape, task.output_size, seed).to(task.train.inputs.device)
        net = inputs.tapped(Network.of(model, task.train.examples), subject.taps)
        return net.with_autocast(subject.dtype)

    def train(self, name: str, seed: int) -> Moment:
        """One training."""
        return train_against(self.start(seed), self.prepared.task, self.methods[name], self.contest, seed=seed)

    def file(self, name: str, seed: int) -> Path:
        """Where its network is saved."""
        return self.folder / f"{name.replace(':', '-')}-seed{seed}.safetensors"


def run(subject: inputs.Subject, options: Options, screen: Screen) -> int:
    """Do it; returns the exit code."""
    plan = _plan(subject, options, screen)
    if screen.dry_run:
        return _announce(plan, screen)
    prepared, first = plan.prepared, None
    if not subject.given:
        # The network that nothing is trained against is the intact one.
        intact = _saved(plan, PLAIN, plan.seeds[0], screen)
        if intact is None:
            screen.say(f"training {subject.model} on {prepared.task.name}: {plan.contest.evaluations} updates")
            first = plan.train(PLAIN, plan.seeds[0])
            intact = first.network
        prepared = replace(prepared, model=_filled(prepared.model, intact))
    try:
        with begin(prepared, plan.identity, plan.folder, screen, options.expect) as current:
            document = _work(current, plan, first, screen)
    except Stopped as stop:
        return screen.stopped(stop, plan.folder)
    if screen.as_json:
        screen.document(document)
    else:
        _show(document, screen)
    return 0


def _work(current: Run, plan: Plan, first: Moment | None, screen: Screen) -> dict[str, Any]:
    """Trials, files; returns the document."""
    if screen.fresh:
        for name in MEANINGS:
            for old in plan.folder.glob(f"{name}*-seed*.safetensors"):
                old.unlink()
    rows = _trials(current, plan, first, screen)
    if not plan.prepared.subject.given:
        trained = _record(plan, rows[0]["cost"]["seconds"])
        current.document["network"]["trained"] = current.manifest["trained"] = trained
    bounds = current.task.scorer.bounds
    settings = {
        "methods": list(plan.methods),
        "meanings": {name: meaning(name, against) for name, against in plan.methods.items()},
        "start": "the given weights" if plan.prepared.subject.given else "initial weights",
        "epochs": plan.epochs,
        "seeds": list(plan.seeds),
        **{key: value for key, value in _common(plan.contest).items() if key != "criterion"},
        **asdict(plan.contest.criterion),
        "unit": "fraction of units",
    }
    found = [
        {
            **summary,
            "meaning": settings["meanings"][summary["method"]],
            "file": str(path) if (path := plan.file(summary["method"], plan.seeds[0])).exists() else None,
        }
        for summary in summarise_trials(rows, bounds)
    ]
    document = {
        **current.document,
        "settings": settings,
        "rows": rows,
        "hardening": {"gradient_evaluations": plan.contest.evaluations, "methods": found},
        "verdicts": [v.to_dict() for v in judge_trials(rows, percent=is_share(current.task.scorer.name))],
        "files": files(plan.folder),
    }
    current.finish(document)
    return document


def _trials(current: Run, plan: Plan, first: Moment | None, screen: Screen) -> list[dict[str, Any]]:
    """All trials, finished ones from the ledger; ordered by method and seed, the intact network's first.

    Args:
        current: The run.
        plan: What is done.
        first: The intact network's training, if it has just been done.
        screen: For progress.
    """
    cells = [(seed, name) for seed in plan.seeds for name in plan.methods]
    rows = []
    with screen.progress(len(cells), "trainings") as steps:
        for seed, name in cells:
            mark = current.id(what="training", method=name, seed=seed)
            if mark not in current.ledger or not plan.file(name, seed).exists():
                trained = (first if (seed, name) == (plan.seeds[0], PLAIN) else None) or plan.train(name, seed)
                if mark not in current.ledger:
                    row = examine(trained, current.task, plan.contest, method=name, seed=seed).row()
                    current.ledger.record(mark, {"what": "training", "row": row})
                _save(plan, name, seed, trained.network)
            stored: Any = current.ledger[mark]["row"]
            rows.append(dict(stored))
            steps.done(what=f"trainings ({name}, seed {seed})")
    place = {name: at for at, name in enumerate(plan.methods)}
    return sorted(rows, key=lambda row: (place[row["method"]], row["seed"]))


def _saved(plan: Plan, name: str, seed: int, screen: Screen) -> Network | None:
    """A network that this run has trained and tested already."""
    path = plan.file(name, seed)
    if screen.fresh or not path.exists():
        return None
    state, words = read_tensors(path)
    if words.get("planaria.settings") != plan.mark:  # left by a run that was started over
        return None
    net = plan.start(seed)
    # Buffers that are no part of the state are the model's own.
    weights, buffers = ({n: state[n].to(net.device) for n in of if n in state} for of in (net.weights, net.buffers))
    return net.with_weights(weights, buffers)


def _save(plan: Plan, name: str, seed: int, net: Network) -> None:
    """Save a network, unless training has blown it up."""
    if not all(bool(weight.isfinite().all()) for weight in net.weights.values()):
        return
    words = {
        "planaria.method": name,
        "planaria.against": repr(plan.methods[name]),
        "planaria.seed": str(seed),
        "planaria.settings": plan.mark,
    }
    write_atomic(plan.file(name, seed), pack_weights(net, words))


def _filled(model: nn.Module, net: Network) -> nn.Module:
    """The module with a network's weights, without its taps."""
    filled = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in filled.named_parameters():
            parameter.copy_(net.weights[name])
        for name, buffer in filled.named_buffers():
            buffer.copy_(net.buffers[name])
    return filled


def _record(plan: Plan, seconds: float) -> dict[str, Any]:
    """How the intact network was trained."""
    return {
        "epochs": plan.epochs,
        "updates": plan.contest.evaluations,
        "batch": plan.contest.batch,
        "optimiser": repr(plan.contest.optimiser),
        "rate_schedule": "half cosine to 0",
        "seed": plan.seeds[0],
        "seconds": seconds,
    }


# --------------------------------------------------------------------------------------------------- the plan


def _plan(subject: inputs.Subject, options: Options, screen: Screen) -> Plan:
    quick = subject.quick
    methods = build_methods(options.methods)
    inputs.finite("--expect-score", options.expect)
    # The contest says how long anything is trained, the network that all begin with included.
    prepared = replace(inputs.prepare(subject), recipe=None)
    task = prepared.task
    large = len(task.train) >= 5000
    batch = usual_batch(len(task.train)) if options.batch is None else options.batch
    epochs = (20 if large else 40) // (4 if quick else 1) if options.epochs is None else options.epochs
    patience = (100 if quick else 400) if options.updates is None else options.updates
    draws = (2 if quick else 5) if options.draws is None else options.draws
    for option, value in (("--batch", batch), ("--epochs", epochs), ("--updates", patience), ("--draws", draws)):
        if value < 1:
            raise InputError(option, "a number of at least 1", value)
    doses = inputs.numbers("--doses", options.doses or "0.1:0.9:9", float)
    for option, dose in [("--doses", dose) for dose in doses] + [("--lesion", options.lesion)]:
        if not 0 < dose <= 1:
            raise InputError(option, "fractions of the units above 0 and up to 1", dose)
    passes = max(1, epochs * len(task.train) // min(batch, len(task.train)))
    contest = Contest(
        evaluations=-(-passes // _TOGETHER) * _TOGETHER,
        optimiser=build_optimiser(options.optimiser, options.rate, options.decay, large=large),
        batch=batch,
        doses=tuple(sorted({round(dose, 10) for dose in doses})),
        draws=draws,
        lesion=options.lesion,
        patience=patience,
        criterion=Criterion(options.tolerance),
        inputs=SIDECAR_INPUTS,
    )
    sketch = inputs.tapped(Network.of(prepared.model, task.train.examples), subject.taps)
    Anatomy.of(sketch).select()  # what is wrong shows before anything is trained
    count = (2 if quick else 5) if options.seeds is None else options.seeds
    seeds = tuple(range(subject.seed, subject.seed + count))
    identity: dict[str, Any] = {
        **prepared.identity(),
        "command": "harden",
        "version": version(),
        "seeds": list(seeds),
        "methods": {name: repr(against) for name, against in methods.items()},
        **_common(contest),
    }
    folder = screen.out or folder_for(subject, identity)
    check_folder(folder, identity, fresh=screen.fresh)
    return Plan(prepared, methods, contest, epochs, seeds, identity, folder)


def _common(contest: Contest) -> dict[str, Any]:
    """The contest as plain values."""
    return {**asdict(contest), "optimiser": repr(contest.optimiser), "criterion": repr(contest.criterion)}


def _announce(plan: Plan, screen: Screen) -> int:
    """What a dry run says."""
    task, contest = plan.prepared.task, plan.contest
    net = plan.start(plan.seeds[0])
    update, validate, test = pace(net, task, Harden(task, batch=contest.batch))
    trials = len(plan.methods) * len(plan.seeds)
    number = trials * contest.evaluations
    looks = trials * (contest.patience // contest.criterion.every)
    tests = trials * (len(contest.doses) * (2 * contest.draws + 1) + 2)
    spent = trials * contest.patience + number
    document = {
        "command": "harden",
        "trainings": trials,
        "gradient_evaluations": number,
        "evaluations": looks + tests,
        "updates": spent,
        "forward_passes": spent + looks + tests,
        "backward_passes": spent,
        "seconds": round(spent * update + looks * validate + tests * test, 1),
        "folder": str(plan.folder),
    }
    return announce(document, net, screen)


def _show(document: dict[str, Any], screen: Screen) -> None:
    """The table in the terminal."""
    percent = is_share(document["task"]["score"])
    score = partial(score_text, percent=percent)
    unit = f"{document['task']['score']} in %" if percent else document["task"]["score"]
    name = f"{document['network']['name']} on {document['task']['name']}"
    evaluations = document["hardening"]["gradient_evaluations"]
    grid = Table(
        title=f"{name}: {unit} on the test split, {evaluations} gradient evaluations each",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    grid.add_column("method", no_wrap=True)
    for column in ("intact", "random", "worst first", "with rescue", "rescued", "updates", "Gmadd", "s"):
        grid.add_column(column, justify="right", no_wrap=True)
    for row in document["hardening"]["methods"]:
        time, cost = row["rescue_updates"], row["cost"]
        grid.add_row(
            row["method"],
            score(row["intact"]),
            *(score(row[f"area_{curve}"]) for curve in CURVES),
            f"{row['rescued']}/{row['trials']}",
            "-" if time is None else f"{time['best']:.0f}",
            f"{cost['multiply_adds'] / 1e9:.3g}",
            f"{cost['seconds']:.2g}",
        )
    screen.table(grid)
    settings = document["settings"]
    screen.results.print(
        f"random, worst first, with rescue: mean score over doses {settings['doses'][0]:g} to "
        f"{settings['doses'][-1]:g} of every layer's units. updates: median of retraining until the validation score "
        f"is within {settings['tolerance']:g} of the method's own intact one, after {settings['lesion']:g} has gone. "
        f"Brackets: 95 % interval over {len(settings['seeds'])} seeds.",
        markup=False,
    )
    verdicts(document, screen)
    screen.places(document["files"])
