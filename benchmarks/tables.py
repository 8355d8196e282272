"""Tables of results for the docs, in Markdown, from the result.json of a run.

    python benchmarks/tables.py RUN_FOLDER [KEEP]

RUN_FOLDER holds the result.json of `planaria rescue`, `respond`, `survive` or `harden`. With KEEP, the folder's
results.csv and manifest.json are copied to benchmarks/results/KEEP as well.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def score(estimate: dict[str, Any] | None, factor: float = 100.0, digits: int = 1) -> str:
    """An estimate with its interval."""
    if estimate is None or estimate["best"] is None:
        return "-"
    text = f"{estimate['best'] * factor:.{digits}f}"
    low, high = estimate["low"], estimate["high"]
    return text if low is None or high is None else f"{text} [{low * factor:.{digits}f}, {high * factor:.{digits}f}]"


def updates(estimate: dict[str, Any] | None) -> str:
    """A median time, `-` where it was not reached."""
    return "-" if estimate is None or estimate["best"] is None else f"{estimate['best']:.0f}"


def rescue(document: dict[str, Any]) -> list[list[str]]:
    """One line per dose and repair."""
    lines = [["dose", "repair", "damaged", "after", "rescued", "updates, total", "since the last hit", "Gmadd", "s"]]
    for row in document["summary"]:
        cost = row["cost"]
        lines.append(
            [
                f"{row['dose']:g}",
                f"`{row['repair']}`",
                score(row["damaged"]),
                score(row["after"]),
                f"{row['rescued']}/{row['trials']}",
                updates(row["rescue_updates"]),
                updates(row["rescue_updates_since_last_hit"]),
                f"{cost['multiply_adds'] / 1e9:.3g}",
                f"{cost['seconds']:.2g}",
            ]
        )
    return lines


def harden(document: dict[str, Any]) -> list[list[str]]:
    """One line per method."""
    lines = [["method", "intact", "area, random", "area, worst first", "area, rescued", "updates to rescue", "s"]]
    for row in document["hardening"]["methods"]:
        scores = [score(row[key]) for key in ("intact", "area_random", "area_worst", "area_rescued")]
        lines.append([f"`{row['method']}`", *scores, updates(row["rescue_updates"]), f"{row['cost']['seconds']:.0f}"])
    return lines


def survive(document: dict[str, Any]) -> list[list[str]]:
    """One line per repair."""
    lines = [["repair", "median horizon, events", "inside, %", "after", "Gmadd", "s"]]
    for row in document["survival"]["repairs"]:
        cost = row["cost"]
        horizon = row["median_horizon"]
        lines.append(
            [
                f"`{row['repair']}`",
                "beyond the end" if horizon is None or horizon["best"] is None else score(horizon, 1.0, 0),
                score(row["inside"], 100.0, 0),
                score(row["after"]),
                f"{cost['multiply_adds'] / 1e9:.3g}",
                f"{cost['seconds']:.2g}",
            ]
        )
    return lines


def widths(document: dict[str, Any]) -> list[list[str]]:
    """One line per width."""
    scaling = document["scaling"]
    lines = [["width", "steepness", "susceptibility"]]
    for at, width in enumerate(scaling["widths"]):
        lines.append([f"{width}", *(score(scaling[key][at], 1.0, 2) for key in ("steepness", "susceptibility"))])
    return lines


def main() -> None:
    """Print what the run has."""
    folder = Path(sys.argv[1])
    document = json.loads((folder / "result.json").read_text())
    intact = document["intact"]
    low, high = intact["interval"]
    command = document["manifest"]["command_line"]
    print(f"```bash\n{shlex.join(map(str, command))}\n```\n")
    print(f"Intact {score({'best': intact['test'], 'low': low, 'high': high})} %.\n")
    kinds = {"rescue": rescue, "harden": harden, "survive": survive}
    lines = kinds[document["command"]](document) if document["command"] in kinds else []
    if document.get("scaling"):
        lines = widths(document)
    if lines:
        lines.insert(1, ["---"] * len(lines[0]))
        print("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    for verdict in document.get("verdicts") or []:
        print(f"- **{verdict['question']}** {verdict['answer']}. {verdict['words']}")
    if len(sys.argv) > 2:
        kept = RESULTS / sys.argv[2]
        kept.mkdir(parents=True, exist_ok=True)
        for name in ("results.csv", "manifest.json"):
            shutil.copyfile(folder / name, kept / name)


if __name__ == "__main__":
    main()
