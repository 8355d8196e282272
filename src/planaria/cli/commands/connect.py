"""Whether two networks are connected."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planaria.cli.options import (
    Autocast,
    DataDir,
    Device,
    DryRun,
    Epochs,
    Expect,
    Fresh,
    Json,
    Model,
    Out,
    Quick,
    Quiet,
    Taps,
    TaskText,
    Threads,
    Trust,
    Weights,
    finish,
    screen_of,
    subject_of,
)


def connect(
    model: Model = "mlp",
    weights: Weights = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Trained weights of the second network, of the same model.", rich_help_panel="What"),
    ] = None,
    trust: Trust = False,
    task: TaskText = "digits",
    data_dir: DataDir = None,
    expect_score: Expect = None,
    train_epochs: Epochs = None,
    by: Annotated[
        str,
        typer.Option("--by", help="straight, aligned, bezier, chain, greedy; all.", rich_help_panel="How"),
    ] = "all",
    points: Annotated[
        int | None,
        typer.Option(
            "--points", min=3, help="Places along a path, refined around the worst; 25.", rich_help_panel="How"
        ),
    ] = None,
    nets: Annotated[
        int | None,
        typer.Option("--nets", min=3, help="Networks of a chain, both ends included; 9.", rich_help_panel="How"),
    ] = None,
    updates: Annotated[
        int | None,
        typer.Option("--updates", min=1, help="Of a curve (1000), of a chain (300).", rich_help_panel="How"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Of each greedy walk, at most; 100.", rich_help_panel="How"),
    ] = None,
    calibration: Annotated[
        int,
        typer.Option(
            "--calibration",
            min=2,
            help="Training inputs from which statistics of batch normalisation are re-estimated along a path.",
            rich_help_panel="How",
        ),
    ] = 1000,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            help="Loss barrier that counts as none; 0.05 nats, or 0.05 of the loss of a constant answer.",
            rich_help_panel="How",
        ),
    ] = None,
    control: Annotated[
        int,
        typer.Option(
            "--control",
            min=0,
            help="Updates after which the first network is surely still connected to itself; 0: no control.",
            rich_help_panel="How",
        ),
    ] = 50,
    tap: Taps = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Of the first network and of all else.", rich_help_panel="How")
    ] = 0,
    to_seed: Annotated[
        int | None,
        typer.Option(
            "--to-seed", help="Of the second network, where it is trained now; --seed + 1.", rich_help_panel="How"
        ),
    ] = None,
    device: Device = "cpu",
    autocast: Autocast = None,
    threads: Threads = 1,
    quick: Quick = False,
    out: Out = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Is there a path of good networks between two, and what does it cost to find?

    Compares the straight line, the same after alignment, a trained curve, a chain, greedy walks, and a control.
    """
    from planaria.cli.connecting import Options, run
    from planaria.cli.inputs import words

    subject = subject_of(
        model, weights, task, data_dir, device, threads, seed, train_epochs, tap, quick, trust, autocast
    )
    options = Options(
        to=to,
        to_seed=to_seed,
        by=words(by) or (),
        points=points,
        nets=nets,
        updates=updates,
        steps=steps,
        calibration=calibration,
        tolerance=tolerance,
        control=control,
        expect=expect_score,
    )
    finish(run(subject, options, screen_of(out, fresh, dry_run, as_json, quiet)))
