"""A run: its folder, its network, its ledger, and the files it leaves."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from planaria.campaign.files import LEDGER, MANIFEST, check_folder, run_folder, write_atomic
from planaria.campaign.ledger import Ledger, strong_id
from planaria.cli import inputs
from planaria.cli.screen import Screen, surroundings
from planaria.core.motion import Flow
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.measure.statistics import finite
from planaria.measure.task import Task
from planaria.measure.weights import load_weights, pack_weights
from planaria.report.page import render
from planaria.study.rescue import Baseline
from planaria.study.respond import InputPlan, Point, Response, collect, iter_respond, plan_inputs
from planaria.version import version

INTACT, BEST, COMPACT = "intact.safetensors", "best.safetensors", "compact.safetensors"
REPORT_MIB = 7.0
"""Usual size of report, ledger and tables; the report carries the plotting library."""
_LEFT = ("results.csv", "result.json", "report.html", INTACT, BEST, COMPACT)


@dataclass(frozen=True, eq=False)
class Run:
    """A run under way: folder made, network there, ledger open.

    Attributes:
        prepared: Task and options.
        identity: What decides the results, as plain values.
        folder: For the results.
        net: The intact network.
        baseline: Its scores.
        ledger: Of finished cells.
        document: What is known of the result so far.
        manifest: What is needed to run it again.
    """

    prepared: inputs.Prepared
    identity: dict[str, Any]
    folder: Path
    net: Network
    baseline: Baseline
    ledger: Ledger
    document: dict[str, Any] = field(repr=False)
    manifest: dict[str, Any] = field(repr=False)

    @property
    def task(self) -> Task:
        """The task."""
        return self.prepared.task

    @cached_property
    def _root(self) -> dict[str, str]:
        """What every cell has in common; hashes all weights, so once per run."""
        return {"run": strong_id(self.identity), "network": self.net.sha256}

    def id(self, **cell: Any) -> str:
        """Strong id of one cell of this run."""
        return strong_id({**self._root, **cell})

    def once(self, mark: str, make: Callable[[], dict[str, Any]]) -> Any:
        """What the ledger holds under a mark; made and recorded now if it holds nothing."""
        if mark not in self.ledger:
            self.ledger.record(mark, make())
        return self.ledger[mark]

    def plan(self, damage: Damage, curve: tuple[float, ...], seed: int) -> InputPlan:
        """Inputs per order of a response curve, from a pilot; from the ledger if it is there."""
        mark = self.id(what="planned inputs", seed=seed, doses=list(curve))
        return InputPlan(**self.once(mark, lambda: vars(plan_inputs(self.net, damage, self.task, curve, seed=seed))))

    def order(
        self, damage: Damage, curve: tuple[float, ...], draw: int, seed: int, plan: InputPlan | None = None
    ) -> list[Point]:
        """One order of a response curve, from the ledger if it is there."""
        part = {} if plan is None else {"inputs": plan.inputs}
        mark = self.id(what="order", draw=draw, seed=seed, doses=list(curve), **part)

        def measured() -> dict[str, Any]:
            points = iter_respond(self.net, damage, self.task, curve, draw=draw, seed=seed, plan=plan)
            pairs = [[point.dose, point.score] for point in points]
            return {"what": "order", "draw": draw, "seed": seed, "points": pairs}

        return [Point(draw, dose, score) for dose, score in self.once(mark, measured)["points"]]

    def response(
        self,
        damage: Damage,
        curve: tuple[float, ...],
        draws: int,
        seeds: tuple[int, ...],
        screen: Screen,
        plan: InputPlan | None = None,
    ) -> Response:
        """A response curve over all orders of all seeds."""
        points: list[Point] = []
        with screen.progress(draws * len(seeds), "orders of the response curve") as steps:
            for place, seed in enumerate(seeds):
                for draw in range(draws):
                    for point in self.order(damage, curve, draw, seed, plan):
                        points.append(Point(place * draws + draw, point.dose, point.score))
                    steps.done()
        return collect(points, damage, self.task, seeds[0])

    def finish(self, document: dict[str, Any]) -> None:
        """Write table, result, report and manifest; each whole or not at all, the manifest last."""
        safe = finite(document)
        write_atomic(self.folder / "results.csv", table(safe["rows"]))
        write_json(self.folder / "result.json", safe)
        write_atomic(self.folder / "report.html", render(safe, folder=self.folder))
        kept = {key: safe[key] for key in ("network", "task", "intact", "files")}
        write_json(self.folder / MANIFEST, {**self.manifest, "complete": True, **kept})


@contextmanager
def begin(
    prepared: inputs.Prepared, identity: dict[str, Any], folder: Path, screen: Screen, expect: float | None
) -> Iterator[Run]:
    """Get the network, look at its intact score, and only then make the folder and open the ledger.

    Raises:
        PlanariaError: If the score is not what the user expects, or the folder cannot be used.
    """
    subject, task = prepared.subject, prepared.task
    known = folder / INTACT
    resumed = prepared.recipe is not None and known.exists() and not screen.fresh
    trained: dict[str, Any] | None
    if resumed:
        load_weights(prepared.model, known)
        bare = Network.of(prepared.model, task.train.examples)
        trained = json.loads((folder / MANIFEST).read_text()).get("trained")
    else:
        bare, trained = inputs.network(prepared, screen.say)
    net = inputs.tapped(bare, subject.taps).with_autocast(subject.dtype)
    baseline, intact, warnings = inputs.intact(net, prepared, expect)
    low, high = (f"{value:.4f}" if value is not None else "?" for value in intact["interval"])
    screen.say(f"intact score on the test split: {baseline.test:.4f} [{low}, {high}] ({task.scorer.name})")
    for warning in warnings:
        screen.warn(warning)
    check_folder(folder, identity, fresh=screen.fresh)
    if screen.fresh and folder.is_dir():  # or a run that is stopped before its end would leave new beside old
        for name in _LEFT:
            (folder / name).unlink(missing_ok=True)
    run_folder(folder, identity, fresh=screen.fresh)
    facts = surroundings(subject.threads)
    manifest = {"schema": "planaria.manifest.v1", "settings": identity, "trained": trained, **facts}
    write_json(folder / MANIFEST, {**manifest, "complete": False})
    if prepared.recipe is not None and not resumed:  # after the manifest, which says how it was trained
        write_atomic(known, pack_weights(bare, {"planaria.network": subject.model}))
    document = {
        "command": identity["command"],
        "schema": f"planaria.{identity['command']}.v1",
        "version": version(),
        "network": inputs.describe(net, prepared, trained),
        "task": task.record(),
        "intact": intact,
        "warnings": [*prepared.warnings, *warnings],
        "manifest": {**facts, "seeds": identity["seeds"]},
    }
    with Ledger.open(folder / LEDGER) as ledger:
        yield Run(prepared, identity, folder, net, baseline, ledger, document, manifest)


def pace(net: Network, task: Task, flow: Flow, longest: float = 2.0) -> tuple[float, float, float]:
    """Seconds of one update, of scoring the validation split, and of scoring the test split, measured now.

    Args:
        net: The network, trained or not.
        task: The task.
        flow: Retraining.
        longest: Seconds for which it is followed.
    """
    start, ran = time.perf_counter(), 0
    for _ in flow(net, stream(0, "calibration")):
        ran += 1
        if time.perf_counter() - start > longest:
            break
    update = (time.perf_counter() - start) / ran
    marks = [time.perf_counter()]
    for data in (task.validation, task.test):
        task.score(net, data)
        marks.append(time.perf_counter())
    return update, marks[1] - marks[0], marks[2] - marks[1]


def announce(plan: dict[str, Any], net: Network, screen: Screen) -> int:
    """What a dry run says: the plan, and what it takes of memory and disk."""
    now = psutil.Process().memory_info().rss
    weights = net.parameters * 4 / 2**20
    document = {
        **plan,
        "schema": "planaria.plan.v1",
        # Loaded data and libraries are in it already; retraining holds weights, gradients, and the optimiser's state.
        "memory_mib": round(now / 2**20 + 6 * weights),
        "disk_mib": round(REPORT_MIB + 3 * weights, 1),
    }
    if screen.as_json:
        screen.document(document)
    else:
        for key, value in document.items():
            screen.results.print(f"{key:<16} {value}", markup=False)
    return 0


def folder_for(subject: inputs.Subject, identity: dict[str, Any]) -> Path:
    """Default folder of a run: the same for the same settings, so that the same command goes on."""
    words = "".join(c if c.isalnum() else "-" for c in subject.task.partition("?")[0]).strip("-")[:24]
    return Path("planaria-runs") / f"{identity['command']}-{words}-{strong_id(identity)[:10]}"


def files(folder: Path, network: Path | None = None) -> dict[str, str | None]:
    """The files a run leaves, by what they are."""
    return {
        "report": str(folder / "report.html"),
        "results": str(folder / "results.csv"),
        "manifest": str(folder / MANIFEST),
        "network": None if network is None else str(network),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV; nested costs become columns like cost.examples, curves are left out."""
    flat: list[dict[str, Any]] = []
    for row in rows:
        line: dict[str, Any] = {}
        for key, value in row.items():
            if value is None and key.startswith("rescue_cost"):
                value = dict.fromkeys(row["cost"], "")  # censored, and the columns are there all the same
            if isinstance(value, dict):
                line |= {f"{key}.{inner}": item for inner, item in value.items()}
            elif not isinstance(value, list):
                line[key] = value
        flat.append(line)
    columns = list(dict.fromkeys(key for line in flat for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write plain values as indented JSON, atomically."""
    write_atomic(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")
