"""Rescue: on what comes with the package, on a network of your own, on one that is damaged already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planaria.cli.options import (
    Autocast,
    Batch,
    DamageText,
    DataDir,
    Device,
    DryRun,
    Epochs,
    Expect,
    Fresh,
    Json,
    Kinds,
    Layers,
    Model,
    Optimiser,
    Order,
    Out,
    Pooled,
    Quick,
    Quiet,
    Rate,
    Seed,
    Taps,
    Threads,
    Trust,
    Weights,
    finish,
    screen_of,
    subject_of,
)


def demo(
    out: Out = None,
    seed: Seed = 0,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Number of seeds; 5.", rich_help_panel="How")
    ] = None,
    device: Device = "cpu",
    quick: Quick = False,
    fresh: Fresh = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The main job on what comes with the package: handwritten digits and a small network trained on the spot."""
    rescue(out=out, seed=seed, seeds=seeds, device=device, quick=quick, fresh=fresh, as_json=as_json, quiet=quiet)


def rescue(
    model: Model = "mlp",
    weights: Weights = None,
    trust: Trust = False,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="digits (without --lesion the default), mnist, fashion-mnist, cifar10, idx:DIR, cifar:DIR, npz:FILE, "
            "folder:DIR, torchvision:NAME, hf:NAME@rev, py:module:function; with preprocessing, for example "
            "'mnist?mean=0.1307&std=0.3081'.",
            rich_help_panel="What",
        ),
    ] = None,
    data_dir: DataDir = None,
    expect_score: Expect = None,
    train_epochs: Epochs = None,
    lesion: Annotated[
        Path | None,
        typer.Option(
            "--lesion",
            help="The --weights are damaged already; this JSON file names the dead units: "
            '{"units": {"fc1": [0, 7]}}. Needs --sidecar, and no data.',
            rich_help_panel="Already damaged",
        ),
    ] = None,
    sidecar: Annotated[
        Path | None,
        typer.Option(
            "--sidecar",
            help="Sidecar of the intact network, made by `planaria sidecar`.",
            rich_help_panel="Already damaged",
        ),
    ] = None,
    doses: Annotated[
        str | None,
        typer.Option("--doses", help="Fractions of units: 0.3,0.5,0.7 or START:STOP:COUNT.", rich_help_panel="Damage"),
    ] = None,
    damage: DamageText = None,
    pooled: Pooled = False,
    order: Order = "random",
    kinds: Kinds = None,
    layers: Layers = None,
    tap: Taps = None,
    draws: Annotated[
        int | None,
        typer.Option("--draws", min=1, help="Random orders of the response curve; 20.", rich_help_panel="Damage"),
    ] = None,
    repairs: Annotated[
        str | None,
        typer.Option(
            "--repairs",
            help="none, refit, sequential, retrain, regrow, regrow-new, iterative, refit+retrain and the controls "
            "extra, dropout, scratch, which are the default; on request synthetic, sequential+distil, gradmax, ripen, "
            "recycle, faults; or all.",
            rich_help_panel="Repair",
        ),
    ] = None,
    updates: Annotated[
        int | None,
        typer.Option(
            "--updates",
            help="Budget of every repair, in retraining updates from the undamaged network.",
            rich_help_panel="Repair",
        ),
    ] = None,
    batch: Batch = None,
    optimiser: Optimiser = "adam",
    rate: Rate = None,
    bites: Annotated[
        int,
        typer.Option("--bites", min=1, help="Damage events of the iterative repair.", rich_help_panel="Repair"),
    ] = 10,
    ratio: Annotated[
        float,
        typer.Option(
            "--ratio",
            help="How much more plastic embryonic units are than old ones, in regrow and gradmax: 1 to inf.",
            rich_help_panel="Repair",
        ),
    ] = 10.0,
    inputs: Annotated[
        int,
        typer.Option("--inputs", min=1, help="Unlabelled inputs of the sequential refit.", rich_help_panel="Repair"),
    ] = 1024,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            min=0,
            help="Rescued: validation score within this of the intact one ...",
            rich_help_panel="Repair",
        ),
    ] = 0.01,
    consecutive: Annotated[
        int,
        typer.Option("--consecutive", min=1, help="... this many evaluations in a row.", rich_help_panel="Repair"),
    ] = 3,
    every: Annotated[
        int, typer.Option("--every", min=1, help="Updates between evaluations.", rich_help_panel="Repair")
    ] = 10,
    seed: Seed = 0,
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds",
            min=1,
            help="Number of seeds, one lesion and one repair run each; 5.",
            rich_help_panel="How",
        ),
    ] = None,
    device: Device = "cpu",
    autocast: Autocast = None,
    threads: Threads = 1,
    quick: Quick = False,
    out: Out = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    fail_under: Annotated[
        float | None,
        typer.Option(
            "--fail-under",
            help="Exit 1 unless the best repair's mean score reaches this at every dose.",
            rich_help_panel="Output",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Damage a trained network, show how it fails, rescue it with every repair at matched compute, leave a report.

    Without options: the embedded digits and a small network trained on the spot, in under two minutes.
    With --lesion and --sidecar: repair a network that is damaged already, without data.
    """
    screen = screen_of(out, fresh, dry_run, as_json, quiet)
    if lesion is not None or sidecar is not None:
        from planaria.cli import mending

        given = mending.Options(model, weights, lesion, sidecar, task, data_dir, device, threads, trust)
        return finish(mending.run(given, screen))
    from planaria.cli.inputs import DamageChoice, words
    from planaria.cli.rescuing import Options, run

    subject = subject_of(
        model, weights, task or "digits", data_dir, device, threads, seed, train_epochs, tap, quick, trust, autocast
    )
    options = Options(
        doses=doses,
        damage=DamageChoice(damage, not pooled, order, words(kinds), words(layers)),
        repairs=words(repairs),
        updates=updates,
        batch=batch,
        optimiser=optimiser,
        rate=rate,
        bites=bites,
        ratio=ratio,
        inputs=inputs,
        tolerance=tolerance,
        consecutive=consecutive,
        every=every,
        draws=draws,
        seeds=seeds,
        expect=expect_score,
        fail_under=fail_under,
    )
    finish(run(subject, options, screen))
