"""What a command says of its results on the terminal: tables, verdicts, the gate."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from planaria.cli.screen import Screen
from planaria.measure.shares import is_share


def show(document: dict[str, Any], screen: Screen) -> None:
    """The table in the terminal."""
    percent = is_share(document["task"]["score"])
    score = partial(score_text, percent=percent)

    def times(row: dict[str, Any]) -> str:
        both = [row["rescue_updates"], row["rescue_updates_since_last_hit"]]
        return " / ".join("-" if one is None or one["best"] is None else f"{one['best']:.0f}" for one in both)

    unit = f"{document['task']['score']} in %" if percent else document["task"]["score"]
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
            score({**row["before"], "low": None}),
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
    verdicts(document, screen)
    screen.places(document["files"])


def score_text(estimate: dict[str, float | None], *, percent: bool) -> str:
    """An estimated score with its interval, if it has one; in percent where it is a share."""
    factor, digits = (100, 1) if percent else (1, 3)
    best, low, high = (estimate[key] for key in ("best", "low", "high"))
    if best is None:
        return "-"
    text = f"{best * factor:.{digits}f}"
    return text if low is None or high is None else f"{text} [{low * factor:.{digits}f} {high * factor:.{digits}f}]"


def verdicts(document: dict[str, Any], screen: Screen) -> None:
    """Questions and answers, a line each."""
    for verdict in document["verdicts"]:
        screen.results.print(f"{verdict['question']} [bold]{escape(verdict['answer'])}[/bold]", soft_wrap=True)


def gate(document: dict[str, Any], fail_under: float | None, screen: Screen) -> int:
    """Exit code 1 if the best repair misses the declared score at some dose."""
    if fail_under is None:
        return 0
    reached: dict[float, float] = {}
    for row in document["summary"]:
        best = row["after"]["best"]
        reached[row["dose"]] = max(reached.get(row["dose"], -math.inf), -math.inf if best is None else best)
    missed = {dose: score for dose, score in reached.items() if score < fail_under}
    for dose, score in missed.items():
        screen.errors.print(f"Gate failed: {score:.4f} at dose {dose:g} is under {fail_under:g}.", style="red")
    return 1 if missed else 0
