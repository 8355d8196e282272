"""Pictures of results for the docs: one PNG per figure of a run, drawn by the report's own code in headless Chromium.

    python benchmarks/pictures.py RUN_FOLDER PREFIX [figure ...]

RUN_FOLDER holds the result.json of `planaria rescue`, `respond`, `survive` or `harden`. Figures are response, widths,
exponents, summary, ledger, rescue:DOSE; trajectories, survival, retention, returns, turnover; random, worst, rescued,
tradeoff. Without names, all that the run has, but for rescue:DOSE. Writes docs/images/PREFIX-FIGURE.png.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from planaria.report import survival_figures
from planaria.report.figures import ledger_figure, rescue_figure, response_figure, summary_figure
from planaria.report.hardening import KINDS, hardening_figure, tradeoff_figure
from planaria.report.scaling import exponent_figure, widths_figure

IMAGES = Path(__file__).parent.parent / "docs" / "images"
WIDTH = 1100
RESULTS = {
    "response": response_figure,
    "widths": widths_figure,
    "exponents": exponent_figure,
    "summary": summary_figure,
    "ledger": ledger_figure,
}
WALKS = {
    "trajectories": survival_figures.trajectory_figure,
    "survival": survival_figures.survival_figure,
    "retention": survival_figures.retention_figure,
    "returns": survival_figures.return_figure,
    "turnover": survival_figures.turnover_figure,
}
METHODS = {**{kind: partial(hardening_figure, kind=kind) for kind in KINDS}, "tradeoff": tradeoff_figure}
BY_COMMAND = {"survive": WALKS, "harden": METHODS}


def figure(document: dict[str, Any], name: str) -> Any:
    """A figure of the report by name; None where the run has nothing to show for it."""
    if name.startswith("rescue:"):
        return rescue_figure(document, float(name.partition(":")[2]))
    known = BY_COMMAND.get(document["command"], RESULTS)
    if name not in known:
        sys.exit(f"{name!r} is no figure of `planaria {document['command']}`: {', '.join(known)}.")
    return known[name](document)


def draw(made: Any, path: Path) -> None:
    """Draw a figure to a PNG."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("pictures.py needs Chromium on the PATH.")
    made.layout.updatemenus = ()  # buttons are for the page
    made.update_layout(width=WIDTH, template="plotly_white", paper_bgcolor="white", plot_bgcolor="white")
    title = made.layout.title
    more = 22 * str(title.text).count("<br>") + 18 * str(title.subtitle.text).count(
        "<br>"
    )  # the page sets them as text
    made.update_layout(height=made.layout.height + more, margin={"t": made.layout.margin.t + more})
    height = int(made.layout.height)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        html = made.to_html(include_plotlyjs=True, full_html=False, config={"displayModeBar": False})
        page.write_text(f'<body style="margin:0;background:white">{html}</body>', encoding="utf-8")
        flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
        subprocess.run(
            [
                *(browser, *flags.split(), "--hide-scrollbars", "--virtual-time-budget=8000"),
                *(f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{height}", f"--screenshot={path}"),
                page.as_uri(),
            ],
            check=True,
            capture_output=True,
        )


def main(folder: str, prefix: str, *names: str) -> None:
    """Draw the named figures, or those that the run has."""
    document = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in names or BY_COMMAND.get(document["command"], RESULTS):
        made = figure(document, name)
        if made is None:
            if names:
                sys.exit(f"The run in {folder} has nothing to show for {name!r}.")
            continue
        path = IMAGES / f"{prefix}-{name.replace(':', '-').replace('.', '')}.png"
        draw(made, path)
        print(path.relative_to(IMAGES.parent.parent))


if __name__ == "__main__":
    main(*sys.argv[1:])
