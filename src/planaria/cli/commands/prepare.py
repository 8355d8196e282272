"""Before any damage: train a network so that it survives, store what repairs it later."""

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
    Seed,
    Taps,
    TaskText,
    Threads,
    Trust,
    Weights,
    finish,
    screen_of,
    subject_of,
)


def harden(
    model: Model = "mlp",
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            help="Trained weights that every method goes on from; without them, initial weights, new for every seed.",
            rich_help_panel="What",
        ),
    ] = None,
    trust: Trust = False,
    task: TaskText = "digits",
    data_dir: DataDir = None,
    expect_score: Expect = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="plain (always run), dropout, targeted, faults, sam, b3, damage-repair; by default all. With a "
            "strength: dropout:0.2, faults:0.8, sam:0.05, b3:1, damage-repair:0.2.",
            rich_help_panel="Training",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            help="Passes over the training split that the gradient evaluations of a method amount to; 20, few data 40.",
            rich_help_panel="Training",
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", help="Examples per update.", rich_help_panel="Training")
    ] = None,
    optimiser: Annotated[
        str, typer.Option("--optimiser", help="adamw, adam or sgd.", rich_help_panel="Training")
    ] = "adamw",
    rate: Annotated[
        float | None, typer.Option("--rate", help="Learning rate, falling to 0.", rich_help_panel="Training")
    ] = None,
    decay: Annotated[
        float | None, typer.Option("--decay", min=0, help="Weight decay.", rich_help_panel="Training")
    ] = None,
    doses: Annotated[
        str | None,
        typer.Option("--doses", help="Fractions of the units of every layer; 0.1:0.9:9.", rich_help_panel="Damage"),
    ] = None,
    draws: Annotated[
        int | None, typer.Option("--draws", min=1, help="Lesions per network and dose; 5.", rich_help_panel="Damage")
    ] = None,
    tap: Taps = None,
    lesion: Annotated[
        float,
        typer.Option("--lesion", help="Fraction after whose loss networks are retrained.", rich_help_panel="Repair"),
    ] = 0.5,
    updates: Annotated[
        int | None,
        typer.Option("--updates", help="Budget of that retraining, in updates; 400.", rich_help_panel="Repair"),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            min=0,
            help="Rescued: validation score within this of the network's own intact one.",
            rich_help_panel="Repair",
        ),
    ] = 0.01,
    seed: Seed = 0,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, help="Networks per method; 5.", rich_help_panel="How"),
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
    """Train a network so that it survives: every method at equal gradient evaluations, and what each is worth.

    Tested intact, with units deleted at random and worst first, with instant rescue, and by the updates to rescue.
    """
    from planaria.cli.hardening import Options, run
    from planaria.cli.inputs import words

    subject = subject_of(model, weights, task, data_dir, device, threads, seed, None, tap, quick, trust, autocast)
    options = Options(
        methods=words(methods),
        epochs=epochs,
        batch=batch,
        optimiser=optimiser,
        rate=rate,
        decay=decay,
        doses=doses,
        draws=draws,
        lesion=lesion,
        updates=updates,
        tolerance=tolerance,
        seeds=seeds,
        expect=expect_score,
    )
    finish(run(subject, options, screen_of(out, fresh, dry_run, as_json, quiet)))


def sidecar(
    model: Model = "mlp",
    weights: Weights = None,
    trust: Trust = False,
    task: TaskText = "digits",
    data_dir: DataDir = None,
    expect_score: Expect = None,
    train_epochs: Epochs = None,
    tap: Taps = None,
    inputs: Annotated[
        int,
        typer.Option("--inputs", min=1, help="Unlabelled inputs to take the moments of.", rich_help_panel="How"),
    ] = 10_000,
    share: Annotated[
        float | None,
        typer.Option(
            "--share",
            help="Largest size, as a share of the model file; 0.15, with convolutions 0.5.",
            rich_help_panel="How",
        ),
    ] = None,
    doses: Annotated[
        str,
        typer.Option(
            "--doses", help="Fractions of dead units at which its price is measured; or none.", rich_help_panel="How"
        ),
    ] = "0.3,0.5,0.7",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Lesions per dose.", rich_help_panel="How")] = 5,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
    quick: Quick = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The file; by default beside the weights.", rich_help_panel="Output"),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Replace whatever is there.", rich_help_panel="Output")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Store beside a checkpoint what it takes to repair it later without data: second moments, in a small file."""
    from planaria.cli.storing import Options, run

    subject = subject_of(model, weights, task, data_dir, device, threads, seed, train_epochs, tap, quick, trust)
    options = Options(inputs, share, doses, seeds, expect_score)
    finish(run(subject, options, screen_of(out, fresh, dry_run, as_json, quiet)))
