"""Look things up: published figures again, the units of a network, the installation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from planaria.cli.options import (
    DataDir,
    Device,
    DryRun,
    Fresh,
    Json,
    Model,
    Out,
    Quiet,
    Seed,
    Taps,
    TaskText,
    Trust,
    Weights,
    finish,
    screen_of,
    subject_of,
)


def reproduce(
    figure: Annotated[
        str, typer.Argument(help="rescue-fig1, rescue-fig2, rescue-fig3 or table-hardening.", show_default=False)
    ],
    data_dir: DataDir = None,
    seed: Seed = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="A short form on the embedded digits.", rich_help_panel="How")
    ] = False,
    out: Out = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a published figure or table again with its settings; what each part says, and where its report is."""
    from planaria.cli.reproducing import run

    finish(
        run(figure, quick=quick, data_dir=data_dir, seed=seed, screen=screen_of(out, fresh, dry_run, as_json, quiet))
    )


def units(
    model: Model = "mlp",
    weights: Weights = None,
    trust: Trust = False,
    task: TaskText = "digits",
    data_dir: DataDir = None,
    tap: Taps = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Prove each silencing against gating the activation.", rich_help_panel="How"),
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="Verify 8 units per layer instead of 64.", rich_help_panel="How")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write the JSON document to this file.", rich_help_panel="Output"),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the units of a network: layer, kind, number, how each is silenced, and what has no units and why."""
    from planaria.cli.listing import run

    subject = subject_of(model, weights, task, data_dir, device, 1, seed, None, tap, quick, trust)
    run(subject, verify=verify, out=out, as_json=as_json)


def doctor(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write the JSON document to this file.", rich_help_panel="Output"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the installation: versions, torch build, devices, data folders, optional packages, disk."""
    from planaria.cli.doctor import examine, text

    report = examine()
    if out is not None:
        from planaria.campaign.files import write_atomic

        write_atomic(out, json.dumps(report, indent=2) + "\n")
    typer.echo(json.dumps(report, indent=2) if as_json else text(report))
    if report["status"] == "problem":
        raise typer.Exit(5)
