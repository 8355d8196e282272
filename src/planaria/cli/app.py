"""The command line. Results go to stdout, everything else to stderr; bad input never ends in a traceback."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

app = typer.Typer(
    name="planaria",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Damage a trained PyTorch network, measure exactly how it fails, and rescue it.\n\n"
    "Start with `planaria demo`. For your own network: "
    "`planaria rescue --model mynet.py:build --weights mynet.safetensors --task mnist`.",
    epilog="Exit codes: 0 done, 1 a --fail-under gate failed, 2 usage or input error, 4 refused as unsafe, "
    "5 environment problem, 130 / 143 stopped (the same command goes on).",
)

Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="mlp, mlp:784-256-256-10, cnn, cnn2, resnet20, or your own: package.module:factory, file.py:factory.",
        rich_help_panel="What",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="Trained weights: .safetensors, or .pt / .pth of plain tensors. Without them the model is trained now.",
        rich_help_panel="What",
    ),
]
TaskText = Annotated[
    str,
    typer.Option(
        "--task",
        help="digits, mnist, fashion-mnist, cifar10, idx:DIR, cifar:DIR, npz:FILE, folder:DIR, torchvision:NAME, "
        "hf:NAME@rev, py:module:function; with preprocessing, for example 'mnist?mean=0.1307&std=0.3081'.",
        rich_help_panel="What",
    ),
]
DataDir = Annotated[
    str | None,
    typer.Option("--data-dir", help="Folder searched first for data sets.", rich_help_panel="What"),
]
Expect = Annotated[
    float | None,
    typer.Option(
        "--expect-score",
        help="Score the intact network should have; exit 2 when it is missed by more than 0.01.",
        rich_help_panel="What",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option("--train-epochs", help="Passes over the data where weights are trained now.", rich_help_panel="What"),
]
Taps = Annotated[
    str | None,
    typer.Option("--tap", help="Modules whose outputs are tapped: LAYER,LAYER.", rich_help_panel="Damage"),
]
DamageText = Annotated[
    str | None,
    typer.Option(
        "--damage",
        help="Any damage, written as in Python: 'Damage(Noise(0.2), RandomUnits(per_layer=True))'.",
        rich_help_panel="Damage",
    ),
]
Pooled = Annotated[
    bool,
    typer.Option(
        "--pooled/--per-layer",
        help="Dose as a fraction of all units together, or of the units of every layer.",
        rich_help_panel="Damage",
    ),
]
Order = Annotated[
    str,
    typer.Option("--order", help="random, or by size of the weights: largest, smallest.", rich_help_panel="Damage"),
]
Kinds = Annotated[
    str | None,
    typer.Option("--kinds", help="neuron, channel, head, branch, tap.", rich_help_panel="Damage"),
]
Layers = Annotated[str | None, typer.Option("--layers", help="LAYER,LAYER; by default all.", rich_help_panel="Damage")]
Seed = Annotated[int, typer.Option("--seed", help="First seed.", rich_help_panel="How")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1.", rich_help_panel="How")]
Threads = Annotated[
    int,
    typer.Option("--threads", min=1, help="Torch threads; part of what decides the bits.", rich_help_panel="How"),
]
Quick = Annotated[bool, typer.Option("--quick", help="A short form, in seconds.", rich_help_panel="How")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Folder for the results; by default a new one named after the run.",
        rich_help_panel="Output",
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over instead of going on.", rich_help_panel="Output")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Say what would be done and how long it takes; write nothing.",
        rich_help_panel="Output",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print exactly one JSON document on stdout.", rich_help_panel="Output")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel="Output")]


def _version(wanted: bool) -> None:
    if wanted:
        from planaria.version import version

        typer.echo(f"planaria {version()}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    del version
    if debug:
        os.environ["PLANARIA_DEBUG"] = "1"


def _subject(
    model: str,
    weights: Path | None,
    task: str,
    data_dir: str | None,
    device: str,
    threads: int,
    seed: int,
    epochs: int | None,
    taps: str | None,
    quick: bool,
) -> Any:
    from planaria.cli.inputs import Subject, words

    return Subject(model, weights, task, data_dir, device, threads, seed, epochs, words(taps) or (), quick)


@app.command()
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


@app.command()
def rescue(
    model: Model = "mlp",
    weights: Weights = None,
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
    batch: Annotated[int | None, typer.Option("--batch", help="Examples per update.", rich_help_panel="Repair")] = None,
    optimiser: Annotated[
        str, typer.Option("--optimiser", help="adam, adamw or sgd.", rich_help_panel="Repair")
    ] = "adam",
    rate: Annotated[
        float | None, typer.Option("--rate", help="Learning rate of retraining.", rich_help_panel="Repair")
    ] = None,
    bites: Annotated[
        int,
        typer.Option("--bites", min=1, help="Damage events of the iterative repair.", rich_help_panel="Repair"),
    ] = 10,
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
    screen = _screen(out, fresh, dry_run, as_json, quiet)
    if lesion is not None or sidecar is not None:
        from planaria.cli import mending

        given = mending.Options(model, weights, lesion, sidecar, task, data_dir, device, threads)
        return _finish(mending.run(given, screen))
    from planaria.cli.inputs import DamageChoice, words
    from planaria.cli.rescuing import Options, run

    subject = _subject(model, weights, task or "digits", data_dir, device, threads, seed, train_epochs, tap, quick)
    options = Options(
        doses=doses,
        damage=DamageChoice(damage, not pooled, order, words(kinds), words(layers)),
        repairs=words(repairs),
        updates=updates,
        batch=batch,
        optimiser=optimiser,
        rate=rate,
        bites=bites,
        inputs=inputs,
        tolerance=tolerance,
        consecutive=consecutive,
        every=every,
        draws=draws,
        seeds=seeds,
        expect=expect_score,
        fail_under=fail_under,
    )
    _finish(run(subject, options, screen))


@app.command()
def respond(
    model: Model = "mlp",
    weights: Weights = None,
    task: TaskText = "digits",
    data_dir: DataDir = None,
    expect_score: Expect = None,
    train_epochs: Epochs = None,
    doses: Annotated[
        str | None,
        typer.Option("--doses", help="Fractions of units: 0.1,0.5 or START:STOP:COUNT.", rich_help_panel="Damage"),
    ] = None,
    damage: DamageText = None,
    pooled: Pooled = False,
    order: Order = "random",
    kinds: Kinds = None,
    layers: Layers = None,
    tap: Taps = None,
    draws: Annotated[
        int | None, typer.Option("--draws", min=1, help="Random orders; 20.", rich_help_panel="Damage")
    ] = None,
    widths: Annotated[
        str | None,
        typer.Option(
            "--widths",
            help="Finite-size test: train networks of these widths alike and compare their curves, for example "
            "25,50,100,200,400,800. For mlp, and for factories with an argument `width`.",
            rich_help_panel="Transition",
        ),
    ] = None,
    networks: Annotated[
        int | None,
        typer.Option("--networks", min=1, help="Networks of every width; 2.", rich_help_panel="Transition"),
    ] = None,
    seed: Seed = 0,
    seeds: Annotated[
        int,
        typer.Option("--seeds", min=1, help="Seeds; each gives the full number of orders.", rich_help_panel="How"),
    ] = 1,
    device: Device = "cpu",
    threads: Threads = 1,
    quick: Quick = False,
    out: Out = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the response curve: score against dose, with half-dose, 10-point loss and fitted critical dose."""
    from planaria.cli.inputs import DamageChoice, words
    from planaria.cli.responding import Options, run

    subject = _subject(model, weights, task, data_dir, device, threads, seed, train_epochs, tap, quick)
    choice = DamageChoice(damage, not pooled, order, words(kinds), words(layers))
    options = Options(doses, choice, draws, seeds, expect_score, widths, networks)
    _finish(run(subject, options, _screen(out, fresh, dry_run, as_json, quiet)))


@app.command()
def survive(
    model: Model = "mlp",
    weights: Weights = None,
    task: TaskText = "digits",
    data_dir: DataDir = None,
    expect_score: Expect = None,
    train_epochs: Epochs = None,
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            help="attrition: dead units stay dead; turnover: they return as embryonic ones after --delay events.",
            rich_help_panel="Damage",
        ),
    ] = "attrition",
    dose_per_event: Annotated[
        float,
        typer.Option("--dose-per-event", help="Fraction of units hit by each event.", rich_help_panel="Damage"),
    ] = 0.05,
    events: Annotated[
        int | None,
        typer.Option("--events", min=1, help="Damage events; 20, turnover 30.", rich_help_panel="Damage"),
    ] = None,
    delay: Annotated[
        int | None,
        typer.Option("--delay", min=1, help="Events a unit is dead for in turnover; 5.", rich_help_panel="Damage"),
    ] = None,
    turnover_rates: Annotated[
        str | None,
        typer.Option(
            "--turnover-rates",
            help="Compare resilience at these doses per event, at equal budget, with the control 0; "
            "in turnover 0,0.01,0.05, in attrition none.",
            rich_help_panel="Damage",
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option("--draws", min=1, help="Random orders of its response curves; 10.", rich_help_panel="Damage"),
    ] = None,
    damage: DamageText = None,
    pooled: Pooled = False,
    kinds: Kinds = None,
    layers: Layers = None,
    tap: Taps = None,
    repairs: Annotated[
        str | None,
        typer.Option(
            "--repairs",
            help="After every event; by default none, refit, sequential, retrain, refit+retrain.",
            rich_help_panel="Repair",
        ),
    ] = None,
    updates: Annotated[
        int | None,
        typer.Option("--updates", help="Budget of every event, in retraining updates; 20.", rich_help_panel="Repair"),
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Examples per update.", rich_help_panel="Repair")] = None,
    optimiser: Annotated[
        str, typer.Option("--optimiser", help="adam, adamw or sgd.", rich_help_panel="Repair")
    ] = "adam",
    rate: Annotated[
        float | None, typer.Option("--rate", help="Learning rate of retraining.", rich_help_panel="Repair")
    ] = None,
    inputs: Annotated[
        int,
        typer.Option("--inputs", min=1, help="Unlabelled inputs of the sequential refit.", rich_help_panel="Repair"),
    ] = 256,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            min=0,
            help="Inside the good set: validation score within this of the intact one.",
            rich_help_panel="Repair",
        ),
    ] = 0.02,
    seed: Seed = 0,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, help="Walks per repair; 10, turnover 5.", rich_help_panel="How"),
    ] = None,
    device: Device = "cpu",
    threads: Threads = 1,
    quick: Quick = False,
    out: Out = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Let damage arrive event after event, repair after each within a budget, and see how long the network lasts.

    Attrition gives survival and its median horizon; turnover tests whether the network stays good for good.
    """
    from planaria.cli.inputs import DamageChoice, words
    from planaria.cli.surviving import Options, run

    subject = _subject(model, weights, task, data_dir, device, threads, seed, train_epochs, tap, quick)
    options = Options(
        mode=mode,
        dose=dose_per_event,
        events=events,
        delay=delay,
        damage=DamageChoice(damage, not pooled, "random", words(kinds), words(layers)),
        repairs=words(repairs),
        updates=updates,
        batch=batch,
        optimiser=optimiser,
        rate=rate,
        inputs=inputs,
        tolerance=tolerance,
        turnover_rates=turnover_rates,
        draws=draws,
        seeds=seeds,
        expect=expect_score,
    )
    _finish(run(subject, options, _screen(out, fresh, dry_run, as_json, quiet)))


@app.command()
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

    subject = _subject(model, weights, task, data_dir, device, threads, seed, None, tap, quick)
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
    _finish(run(subject, options, _screen(out, fresh, dry_run, as_json, quiet)))


@app.command()
def sidecar(
    model: Model = "mlp",
    weights: Weights = None,
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

    subject = _subject(model, weights, task, data_dir, device, threads, seed, train_epochs, tap, quick)
    options = Options(inputs, share, doses, seeds, expect_score)
    _finish(run(subject, options, _screen(out, fresh, dry_run, as_json, quiet)))


@app.command()
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

    _finish(run(figure, quick=quick, data_dir=data_dir, seed=seed, screen=_screen(out, fresh, dry_run, as_json, quiet)))


@app.command()
def units(
    model: Model = "mlp",
    weights: Weights = None,
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

    subject = _subject(model, weights, task, data_dir, device, 1, seed, None, tap, quick)
    run(subject, verify=verify, out=out, as_json=as_json)


@app.command()
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


def _screen(out: Path | None, fresh: bool, dry_run: bool, as_json: bool, quiet: bool) -> Any:
    from planaria.cli.screen import Screen

    return Screen(out=out, fresh=fresh, dry_run=dry_run, as_json=as_json, quiet=quiet)


def _finish(code: int) -> None:
    if code:
        raise typer.Exit(code)


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    sys.exit(guarded(lambda: app(prog_name="planaria", standalone_mode=False)))


def guarded(command: Callable[[], Any]) -> int:
    """Run a command and turn what goes wrong into a message on stderr and an exit code."""
    try:
        result = command()
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except typer.Exit as leave:
        return leave.exit_code
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("Stopped.", err=True)
        return 130
    except SystemExit as leave:
        if isinstance(leave.__context__, BrokenPipeError):  # typer's own answer to it is exit code 1
            return _unread()
        raise
    except BrokenPipeError:
        return _unread()
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "format_message"):
            # A usage error; told by its form, because typer brings click's classes along under another name.
            error.show()
            return 2
        if os.environ.get("PLANARIA_DEBUG"):
            raise
        return _explain(error)


def _unread() -> int:
    """Whoever read us has gone; say nothing more, not even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _explain(error: Exception) -> int:
    from planaria.core.errors import PlanariaError

    if isinstance(error, PlanariaError):
        return _complain(str(error), error.exit_code)
    kind = type(error).__name__
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return _complain(f"out of memory ({kind}). Use smaller --batch or --inputs, or train=N in the task.", 5)
    return _complain(
        f"unexpected {kind}: {error}\nThis is a bug: please report it with the traceback that --debug shows.",
        5,
    )


def _complain(text: str, code: int) -> int:
    from rich.console import Console  # unlike typer's, its colours respect NO_COLOR

    Console(stderr=True).print(f"planaria: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
    return code
