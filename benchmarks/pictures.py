"""Pictures of results for the docs: one PNG per figure of a run, drawn by the report's own code in headless Chromium.

    python benchmarks/pictures.py RUN_FOLDER PREFIX [figure ...]

RUN_FOLDER holds the result.json of `planaria rescue` or `planaria respond`; figures are response, summary, ledger and
rescue:DOSE. Writes docs/images/PREFIX-FIGURE.png.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from planaria.report.figures import ledger_figure, rescue_figure, response_figure, summary_figure

IMAGES = Path(__file__).parent.parent / "docs" / "images"
WIDTH = 1100


def figure(document: dict[str, Any], name: str) -> Any:
    """A figure of the report by name."""
    if name.startswith("rescue:"):
        return rescue_figure(document, float(name.partition(":")[2]))
    return {"response": response_figure, "summary": summary_figure, "ledger": ledger_figure}[name](document)


def draw(made: Any, path: Path) -> None:
    """Draw a figure to a PNG."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("pictures.py needs Chromium on the PATH.")
    made.layout.updatemenus = ()  # buttons are for the page
    made.update_layout(width=WIDTH, template="plotly_white", paper_bgcolor="white", plot_bgcolor="white")
    height = int(made.layout.height or 500)
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
    usual = ("response", "summary", "ledger") if document["command"] == "rescue" else ("response",)
    for name in names or usual:
        path = IMAGES / f"{prefix}-{name.replace(':', '-').replace('.', '')}.png"
        draw(figure(document, name), path)
        print(path.relative_to(IMAGES.parent.parent))


if __name__ == "__main__":
    main(*sys.argv[1:])
