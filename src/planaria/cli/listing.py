"""The units of a network."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from planaria.campaign.files import write_atomic
from planaria.cli import inputs
from planaria.core.anatomy import Anatomy
from planaria.core.errors import AnatomyError
from planaria.core.graph import strays
from planaria.core.network import Network
from planaria.version import version


def run(subject: inputs.Subject, *, verify: bool, out: Path | None, as_json: bool) -> None:
    """List them, on stdout."""
    prepared = inputs.prepare(subject)
    task = prepared.task
    net = inputs.tapped(Network.of(prepared.model, task.train.examples), subject.taps)
    groups, unreached = inputs.units(net)
    checks: list[dict[str, Any]] = []
    if verify:
        rows = task.validation.inputs[:8]
        if strays(net, rows):
            inputs.warn("The data decide which layers run; units are those of two training examples, and proved there.")
            rows = net.port.rows(task.train.examples)
        for check in Anatomy.of(net).verify(net, rows, per_layer=8 if subject.quick else 64, strict=False):
            difference = check.difference if math.isfinite(check.difference) else None
            checks.append({"layer": check.layer, "units": check.units, "difference": difference, "exact": check.exact})
        _mark_verified(groups, checks)
    if not groups:
        raise AnatomyError(
            f"{subject.model}",
            "at least one layer with units",
            "; ".join(f"{item['layer']}: {item['reason']}" for item in unreached) or "no layers",
            "Name modules to tap: --tap LAYER.",
        )
    document = {
        "command": "units",
        "schema": "planaria.units.v1",
        "version": version(),
        "network": {"name": subject.model, "sha256": net.sha256, "parameters": net.parameters},
        "task": task.record(),
        "groups": groups,
        "unreached": unreached,
        "verified": checks if verify else None,
    }
    text = json.dumps(document, indent=2)
    if out is not None:
        write_atomic(out, text + "\n")
    if as_json:
        print(text)
        return
    _show(document)


def _show(document: dict[str, Any]) -> None:
    """The document as a table, and the layers without units by reason."""
    name, parameters = document["network"]["name"], document["network"]["parameters"]
    grid = Table(
        title=f"Units of {name} ({parameters:,} weights)", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0)
    )
    # Names of layers are long and alike at their beginnings: they are never cut.
    grid.add_column("layer", overflow="fold", min_width=max(len(group["layer"]) for group in document["groups"]))
    for head in ("kind", "units", "silenced by weights"):
        grid.add_column(head, justify="right" if head == "units" else "left")
    verified = document["verified"]
    if verified is not None:
        grid.add_column("largest difference", justify="right")
    by_layer = {check["layer"]: check for check in verified or ()}
    for group in document["groups"]:
        line = [
            group["layer"],
            group["kind"],
            f"{group['count']:,}",
            group["reason"].removeprefix("zero ").replace(" weights", ""),
        ]
        if verified is not None:
            tried = by_layer[group["layer"]]
            apart = "not finite" if tried["difference"] is None else f"{tried['difference']:.1g}"
            line.append(f"{apart} of {tried['units']}" if tried["exact"] else f"{apart}: NOT EXACT")
        grid.add_row(*line)
    console = Console(highlight=False)
    console.print(grid)
    reasons: dict[str, list[str]] = {}
    for item in document["unreached"]:
        reasons.setdefault(item["reason"], []).append(item["layer"] or "the whole module")
    for reason, layers in reasons.items():
        console.print(f"No units of their own ({reason}): {', '.join(layers)}", markup=False)


def _mark_verified(groups: list[dict[str, Any]], checks: list[dict[str, Any]]) -> None:
    by_layer = {check["layer"]: check for check in checks}
    for group in groups:
        check = by_layer[group["layer"]]
        group["exact"], group["difference"] = check["exact"], check["difference"]
        if not check["exact"]:
            group["reason"] = "on these inputs the network takes another way than on the example inputs"
