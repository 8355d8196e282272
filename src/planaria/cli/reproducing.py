"""Run the published figures again, each with its settings: the commands that anybody could type, one after another."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planaria.campaign.files import write_atomic
from planaria.cli.screen import Screen
from planaria.core.errors import InputError, nearest
from planaria.report import connection, hardening, landscape, resilience, survival
from planaria.report.words import headline
from planaria.version import version

STRATEGIES = "none,refit,retrain,regrow,regrow-new,gradmax,ripen"
COUNTED = "none,refit,retrain,iterative,extra,dropout,scratch"
UNLABELLED = "none,refit,sequential,obs,recover,distil,retrain"


@dataclass(frozen=True)
class Part:
    """One run of a figure: what it shows, the command, and its short form on the embedded digits."""

    label: str
    command: str
    quick: str


_HEADLINES: dict[str, Callable[[dict[str, Any]], str]] = {
    "harden": hardening.headline,
    "survive": survival.headline,
    "resilience": lambda document: resilience.headline(resilience.Found.of(document)),
    "connect": lambda document: connection.headline(connection.Found.of(document)),
    "landscape": lambda document: landscape.headline(landscape.Found.of(document)),
}
"""Command -> its result in a sentence, where that is told in its own way."""
FIGURES: dict[str, tuple[str, tuple[Part, ...]]] = {
    "rescue-fig1": (
        "How networks fail as units are deleted, and whether there is a transition.",
        (
            Part(
                "mlp-1",
                "respond --model mlp:784-400-10 --task mnist --pooled",
                "respond --model mlp:64-100-10 --pooled --quick",
            ),
            Part(
                "mlp-2",
                "respond --model mlp:784-300-100-10 --task mnist --pooled",
                "respond --model mlp:64-60-30-10 --pooled --quick",
            ),
            Part("cnn", "respond --model cnn2:16-32-128 --task cifar10?test=2000 --pooled --doses 0:1:11", ""),
            Part(
                "widths",
                "respond --model mlp:784-100-10 --task mnist?train=10000&test=5000 --pooled --draws 10 "
                "--widths 25,50,100,200,400,800",
                "respond --model mlp:64-16-10 --pooled --quick --widths 8,16,32,64",
            ),
        ),
    ),
    "rescue-fig2": (
        "Strategies 1 and 2: retraining of the surviving sub-network, and embryonic units.",
        (
            Part(
                "mlp-1",
                "rescue --model mlp:784-400-10 --task mnist?validation=1000 --pooled --doses 0.3,0.6,0.9 --draws 5 "
                f"--repairs {STRATEGIES}",
                f"rescue --model mlp:64-100-10 --pooled --quick --repairs {STRATEGIES}",
            ),
            Part(
                "mlp-2",
                "rescue --model mlp:784-300-100-10 --task mnist?validation=1000 --pooled --doses 0.3,0.6,0.9 --draws 5 "
                f"--repairs {STRATEGIES}",
                "",
            ),
            Part(
                "cnn",
                "rescue --model cnn2:16-32-128 --task cifar10?test=2000&validation=500 --pooled --doses 0.3,0.6 "
                "--seeds 3 --updates 100 --batch 100 --every 20 --draws 5 --repairs none,refit,retrain,regrow",
                "",
            ),
        ),
    ),
    "rescue-fig3": (
        "Iterative damage-repair against batch repair, in both countings, with controls.",
        (
            Part(
                "mlp-1",
                "rescue --model mlp:784-400-10 --task mnist?validation=1000 --pooled --doses 0.1,0.3,0.5,0.7,0.9 "
                f"--draws 5 --repairs {COUNTED}",
                f"rescue --model mlp:64-100-10 --pooled --quick --repairs {COUNTED}",
            ),
        ),
    ),
    "rescue-fig4": (
        "Networks of damage-repair walks as a set: retention, lines between them, pictures, surfaces; with controls.",
        (
            Part(
                "attrition",
                "landscape --model mlp:784-400-10 --task mnist?validation=1000",
                "landscape --model mlp:64-100-10 --quick",
            ),
            Part(
                "turnover",
                "landscape --model mlp:784-400-10 --task mnist?validation=1000 --mode turnover",
                "landscape --model mlp:64-100-10 --quick --mode turnover",
            ),
        ),
    ),
    "resilience-map": (
        "What derivatives say that losing each unit costs, beside real deletions; where damage breaks down.",
        (
            Part(
                "mlp-1",
                "resilience --model mlp:784-400-10 --task mnist --sample 200",
                "resilience --model mlp:64-100-10 --quick",
            ),
            Part("mlp-2", "resilience --model mlp:784-300-100-10 --task mnist --sample 200", ""),
            Part("fisher", "resilience --model mlp:784-300-100-10 --task mnist --sample 200 --metric fisher", ""),
            Part("cnn", "resilience --model cnn2:16-32-128 --task cifar10?test=2000 --sample 100", ""),
        ),
    ),
    "recovery-table": (
        "Repairs without labels, a path of small steps among them, beside retraining, at matched work.",
        (
            Part(
                "digits",
                f"rescue --model mlp:64-60-10 --doses 0.7,0.8,0.9 --repairs {UNLABELLED} --inputs 100 --updates 5000 "
                "--every 100 --draws 5",
                f"rescue --model mlp:64-60-10 --doses 0.8 --repairs {UNLABELLED} --inputs 100 --updates 1000 "
                "--every 100 --quick",
            ),
            Part(
                "mlp-2",
                f"rescue --model mlp:784-300-100-10 --task mnist?validation=1000 --doses 0.7,0.8,0.9 --repairs "
                f"{UNLABELLED} --inputs 1024 --updates 8000 --every 400 --draws 5",
                "",
            ),
        ),
    ),
    "mode-connection": (
        "Whether two networks trained apart are connected, along which ways, and what finding the path costs.",
        (
            Part(
                "mlp",
                "connect --model mlp:784-256-256-256-10 --task mnist?validation=1000",
                "connect --model mlp:64-100-10 --quick",
            ),
            Part("cnn", "connect --model cnn --task digits?flat=0", ""),
        ),
    ),
    "table-hardening": (
        "Training that makes networks survive, at equal gradient evaluations.",
        (
            Part(
                "mnist",
                "harden --model mlp:784-256-256-10 --task mnist?validation=1000",
                "harden --model mlp:64-64-64-10 --quick",
            ),
        ),
    ),
}


def run(name: str, *, quick: bool, data_dir: str | None, seed: int, screen: Screen) -> int:
    """Do it; returns the exit code.

    Raises:
        InputError: On an unknown figure.
    """
    if name not in FIGURES:
        known = ", ".join(FIGURES)
        raise InputError("reproduce", f"one of {known}", repr(name), nearest(name, FIGURES))
    meaning, parts = FIGURES[name]
    folder = screen.out or Path("planaria-runs") / f"reproduce-{name}{'-quick' if quick else ''}"
    screen.say(f"{name}: {meaning}")
    results: list[dict[str, Any]] = []
    for part in parts:
        text = part.quick if quick else part.command
        if not text:
            continue
        words = [*shlex.split(text), "--out", str(folder / part.label), "--seed", str(seed)]
        words += ["--data-dir", data_dir] if data_dir is not None else []
        words += [flag for flag, on in (("--fresh", screen.fresh), ("--dry-run", screen.dry_run)) if on]
        screen.say(f"planaria {shlex.join(words)}")
        code, document = _one([*words, "--json", *(["--quiet"] if screen.quiet else [])])
        if code:
            return code
        results.append({"label": part.label, "command": ["planaria", *words], "result": document})
    record = {
        "command": "reproduce",
        "schema": "planaria.reproduce.v1",
        "version": version(),
        "figure": name,
        "meaning": meaning,
        "quick": quick,
        "parts": results,
        "files": {made["label"]: (made["result"].get("files") or {}).get("report") for made in results},
    }
    if not screen.dry_run:
        write_atomic(folder / "figure.json", json.dumps(record, indent=2, allow_nan=False) + "\n")
    if screen.as_json:
        screen.document(record)
        return 0
    for made in results:
        document = made["result"]
        say = screen.results.print
        say(f"\n{made['label']}: {shlex.join(made['command'])}", markup=False, soft_wrap=True)
        if screen.dry_run:
            say(f"  about {document.get('seconds')} s", markup=False)
            continue
        say(f"  {_HEADLINES.get(document['command'], headline)(document)}", markup=False, soft_wrap=True)
        for verdict in document.get("verdicts") or []:
            say(f"  {verdict['question']} {verdict['answer']}. {verdict['words']}", markup=False, soft_wrap=True)
        say(f"  {document['files']['report']}", markup=False, soft_wrap=True)
    return 0


def _one(words: list[str]) -> tuple[int, dict[str, Any]]:
    """Exit code and document of one command; only the figure itself speaks on stdout."""
    from planaria.cli.app import app

    heard = io.StringIO()
    with redirect_stdout(heard):
        code = app(words, prog_name="planaria", standalone_mode=False)
    number = code if isinstance(code, int) else 0
    return number, {} if number else json.loads(heard.getvalue())
