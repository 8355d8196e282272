"""What `planaria landscape` will do: its options, checked, and what they add up to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from planaria.campaign.files import check_folder
from planaria.cli import inputs
from planaria.cli.repairs import Settings, build_repairs, checked_names
from planaria.cli.running import folder_for
from planaria.cli.screen import Screen
from planaria.cli.surviving import DELAY, flows_of
from planaria.core.errors import InputError, nearest
from planaria.core.motion import Flow
from planaria.core.network import Network
from planaria.geometry.bend import Bezier
from planaria.geometry.normalise import normalises
from planaria.geometry.placing import TSNE, Method, usual
from planaria.study.invariance import Survey
from planaria.study.lines import known_inputs
from planaria.study.plane import Plane
from planaria.study.regime import Attrition, Regime, Turnover
from planaria.study.rescue import Baseline, leave
from planaria.study.surface import Grid
from planaria.study.survive import iter_survive
from planaria.study.train import usual_batch
from planaria.version import version

METHODS = {"pca": "PCA", "mds": "MDS", "isomap": "Isomap", "tsne": "t-SNE", "umap": "UMAP"}
"""Word of an option -> how the names of its methods begin."""
UNLABELLED = 256
"""Inputs of the sequential refit."""


@dataclass(frozen=True)
class Options:
    """Options of `planaria landscape` beyond the subject; None means the default of the full or quick form."""

    mode: str
    dose: float
    events: int | None
    delay: int | None
    damage: inputs.DamageChoice
    repair: str
    updates: int | None
    batch: int | None
    optimiser: str
    rate: float | None
    tolerance: float
    pairs: int | None
    curves: bool
    methods: tuple[str, ...] | None
    grid: int | None
    inputs: int
    span: float
    seeds: int | None
    expect: float | None


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that has been decided before anything is trained or written.

    Attributes:
        prepared: Task and model.
        options: As they were given.
        regime: What the networks live under.
        seeds: One walk each.
        settings: Of the repair.
        networks: Of each group, that are joined two by two.
        grid: Points of each side of a surface; 0 for no surfaces.
        missing: Ways to make pictures that are not installed, in words.
        identity: What decides the results, as plain values.
        folder: For the results.
    """

    prepared: inputs.Prepared
    options: Options
    regime: Regime
    seeds: tuple[int, ...]
    settings: Settings
    networks: int
    grid: int
    missing: tuple[str, ...]
    identity: dict[str, Any]
    folder: Path

    def survey(self, net: Network, repair: Flow) -> Survey:
        """The study of a network."""
        return Survey.of(
            net,
            repair,
            self.prepared.task,
            self.regime,
            seeds=self.seeds,
            networks=self.networks,
            recipe=self.prepared.recipe,
            by=Bezier() if self.options.curves else None,
        )

    def grid_of(self, net: Network, plane: Plane | None, walk: Sequence[Network], span: float = 1.0) -> Grid:
        """A surface around a network, planned."""
        task = self.prepared.task
        return Grid.of(
            net,
            task,
            directions=plane,
            walk=walk,
            span=span,
            points=self.grid,
            inputs=self.options.inputs,
            data=None,
            calibration=known_inputs(task) if normalises(net) else None,
            seed=self.prepared.subject.seed,
        )

    def methods(self, count: int) -> tuple[Method, ...]:
        """Ways to make a picture of so many points, those that are installed."""
        names = tuple(METHODS[word] for word in self.identity["methods"])
        found = [one for one in usual(count)[0] if one.name.startswith(names)]
        if self.prepared.subject.quick:  # t-SNE takes most of the time
            local = [one for one in found if isinstance(one, TSNE)]
            found = [one for one in found if one not in local] + [replace(one, runs=2) for one in local[1:2]]
        return tuple(found)


def planned(subject: inputs.Subject, options: Options, screen: Screen) -> Plan:
    """Check everything; nothing has been trained or written yet."""
    quick = subject.quick
    inputs.finite("--expect-score", options.expect)
    if options.mode not in {"attrition", "turnover"}:
        raise InputError("--mode", "attrition or turnover", repr(options.mode))
    turnover = options.mode == "turnover"
    if options.delay is not None and not turnover:
        raise InputError("--delay", "--mode turnover beside it", options.mode, "In attrition no unit returns.")
    if options.dose == 0:
        raise InputError("--dose-per-event", "a dose above 0", 0, "The control without damage is run in any case.")
    names = checked_names((options.repair,))
    grid = options.grid if options.grid is not None else (15 if quick else 51)
    if grid and (grid < 3 or grid % 2 == 0):
        remedy = "The network itself is then the middle one."
        raise InputError("--grid", "an odd number of at least 3, or 0 for no surfaces", grid, remedy)
    if not 0 < options.span < math.inf:
        raise InputError("--span", "a number above 0", options.span)
    pairs = options.pairs if options.pairs is not None else (15 if quick else 105)
    methods, missing = _checked_methods(options.methods)
    prepared = inputs.prepare(subject)
    task = prepared.task
    batch = usual_batch(len(task.train)) if options.batch is None else options.batch
    updates = options.updates if options.updates is not None else 20
    settings = Settings(options.optimiser, options.rate, batch, 1, UNLABELLED, updates)
    settings.build()
    sketch = inputs.tapped(Network.of(prepared.model, task.train.examples), subject.taps)
    if not options.repair.startswith("refit"):  # those are flows, and making their sidecar takes time
        flows_of(build_repairs(names, sketch, task, settings)[0], "--repair")
    damage = options.damage.on(sketch)
    events = options.events if options.events is not None else (6 if quick else 30 if turnover else 20)
    mode = Turnover(_delay(options, quick)) if turnover else Attrition()
    regime = Regime(damage, options.dose, events, mode, settings.budget(sketch, task), options.tolerance)
    # One event, to see whether it does anything.
    next(iter_survive(sketch, leave, task, regime, baseline=Baseline(0.0, 0.0)))
    count = options.seeds if options.seeds is not None else (2 if quick else 5)
    seeds = tuple(range(subject.seed, subject.seed + count))
    identity = {
        **prepared.identity(),
        "command": "landscape",
        "version": version(),
        "seeds": list(seeds),
        "repair": options.repair,
        **{key: value for key, value in options.damage.identity().items() if key != "order"},
        "mode": repr(mode),
        "dose": options.dose,
        "events": events,
        "updates": updates,
        "tolerance": options.tolerance,
        "repair_settings": asdict(settings),
        "pairs": pairs,
        "curves": options.curves,
        "methods": list(methods),
        "grid": grid,
        "inputs": options.inputs if grid else None,
        "span": options.span if grid else None,
    }
    folder = screen.out or folder_for(subject, identity)
    check_folder(folder, identity, fresh=screen.fresh)
    return Plan(prepared, options, regime, seeds, settings, networks_of(pairs), grid, missing, identity, folder)


def networks_of(pairs: int) -> int:
    """Networks that, joined two by two, make at most so many pairs.

    Example:
        >>> networks_of(190)
        20
    """
    return max(2, (1 + math.isqrt(1 + 8 * pairs)) // 2)


def _delay(options: Options, quick: bool) -> int:
    return (2 if quick else DELAY) if options.delay is None else options.delay


def _checked_methods(words: tuple[str, ...] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words of the methods, and what of them is not installed."""
    if words == ():
        raise InputError("--methods", f"some of {', '.join(METHODS)}", "none")
    for word in words or ():
        if word not in METHODS:
            raise InputError("--methods", f"some of {', '.join(METHODS)}", repr(word), nearest(word, METHODS))
    chosen = tuple(METHODS) if words is None else tuple(word for word in METHODS if word in words)
    told = usual(100)[1]
    return chosen, tuple(note for note in told if note.startswith(tuple(METHODS[word] for word in chosen)))
