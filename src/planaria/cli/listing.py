"""The units of a network."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from planaria.campaign.files import write_atomic
from planaria.cli import inputs
from planaria.core.anatomy import Anatomy
from planaria.core.errors import AnatomyError
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
        for check in Anatomy.of(net).verify(net, rows, per_layer=8 if subject.quick else 64, strict=False):
            difference = check.difference if math.isfinite(check.difference) else None
            checks.append(
                {"layer": check.layer, "units": check.units, "difference": difference, "exact": check.exact}
            )
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
    grid = Table(title=f"Units of {subject.model} ({net.parameters:,} weights)")
    for name in ("layer", "kind", "units", "method", "silenced exactly by"):
        grid.add_column(name, justify="right" if name == "units" else "left")
    if verify:
        grid.add_column("verified", justify="right")
    by_layer = {check["layer"]: check for check in checks}
    for group in groups:
        line = [group["layer"], group["kind"], f"{group['count']:,}", group["method"], group["reason"]]
        if verify:
            tried = by_layer[group["layer"]]
            apart = "not finite" if tried["difference"] is None else f"{tried['difference']:.1g}"
            line.append(f"{tried['units']} units, {apart}" + ("" if tried["exact"] else ": NOT exact"))
        grid.add_row(*line)
    console = Console(highlight=False)
    console.print(grid)
    for item in unreached:
        console.print(f"no units: {item['layer'] or 'the whole module'}: {item['reason']}", markup=False)


def _mark_verified(groups: list[dict[str, Any]], checks: list[dict[str, Any]]) -> None:
    by_layer = {check["layer"]: check for check in checks}
    for group in groups:
        check = by_layer[group["layer"]]
        group["exact"], group["difference"] = check["exact"], check["difference"]
        if not check["exact"]:
            group["reason"] = "on these inputs the network takes another way than on the example inputs"
