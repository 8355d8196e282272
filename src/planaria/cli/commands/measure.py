"""How a network fails: once, by dose, and event after event."""

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
    TaskText,
    Threads,
    Trust,
    Weights,
    finish,
    screen_of,
    subject_of,
)


def respond(
    model: Model = "mlp",
    weights: Weights = None,
    trust: Trust = False,
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
    plan_inputs: Annotated[
        bool,
        typer.Option(
            "--plan-inputs",
            help="Judge each order on as many test inputs as a pilot of 8 orders plans, instead of all: for many "
            "orders on many inputs.",
            rich_help_panel="Damage",
        ),
    ] = False,
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
    autocast: Autocast = None,
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

    subject = subject_of(
        model, weights, task, data_dir, device, threads, seed, train_epochs, tap, quick, trust, autocast
    )
    choice = DamageChoice(damage, not pooled, order, words(kinds), words(layers))
    options = Options(doses, choice, draws, seeds, expect_score, widths, networks, plan_inputs)
    finish(run(subject, options, screen_of(out, fresh, dry_run, as_json, quiet)))


def survive(
    model: Model = "mlp",
    weights: Weights = None,
    trust: Trust = False,
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
    batch: Batch = None,
    optimiser: Optimiser = "adam",
    rate: Rate = None,
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
    autocast: Autocast = None,
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

    subject = subject_of(
        model, weights, task, data_dir, device, threads, seed, train_epochs, tap, quick, trust, autocast
    )
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
    finish(run(subject, options, screen_of(out, fresh, dry_run, as_json, quiet)))


def vulnerability(
    model: Model = "mlp",
    weights: Weights = None,
    trust: Trust = False,
    task: TaskText = "digits",
    data_dir: DataDir = None,
    expect_score: Expect = None,
    train_epochs: Epochs = None,
    kinds: Kinds = None,
    layers: Layers = None,
    tap: Taps = None,
    worst_set: Annotated[
        int,
        typer.Option("--worst-set", min=0, help="Size of the worst sets of units; 0: none.", rich_help_panel="Damage"),
    ] = 5,
    weights_too: Annotated[
        bool,
        typer.Option("--weights-too", help="Also delete every single weight.", rich_help_panel="Damage"),
    ] = False,
    bits: Annotated[
        str | None,
        typer.Option(
            "--bits",
            help="Also flip these bits of every single weight, one after another: 31 is the sign of a 32-bit number, "
            "30 the highest bit of its exponent.",
            rich_help_panel="Damage",
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Every unit on every test input, exactly; the default.", rich_help_panel="How"),
    ] = False,
    screen: Annotated[
        bool,
        typer.Option(
            "--screen",
            help="Estimate: a first-order screen, what is in doubt evaluated, of the rest a random part.",
            rich_help_panel="How",
        ),
    ] = False,
    precision: Annotated[
        float | None,
        typer.Option(
            "--precision",
            help="Estimate every unit's loss to this half-width, from as few inputs as it takes; for example 0.005.",
            rich_help_panel="How",
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            "--workers", min=1, help="Processes that share the test inputs (not with estimates).", rich_help_panel="How"
        ),
    ] = 1,
    seed: Seed = 0,
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
            help="Exit 1 unless the score stays at least this whichever single unit is silenced.",
            rich_help_panel="Output",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the weak points: what each unit costs when it is silenced, the worst sets, and every single weight.

    Exact for every unit at the price of a few forward passes; leaves a map, a table per unit and a report.
    """
    from planaria.cli.ablating import Options, run
    from planaria.cli.inputs import words

    subject = subject_of(
        model, weights, task, data_dir, device, threads, seed, train_epochs, tap, quick, trust, autocast
    )
    options = Options(
        exact=exact,
        screened=screen,
        precision=precision,
        kinds=words(kinds),
        layers=words(layers),
        worst_set=worst_set,
        weights_too=weights_too,
        bits=bits,
        workers=workers,
        expect=expect_score,
        fail_under=fail_under,
    )
    finish(run(subject, options, screen_of(out, fresh, dry_run, as_json, quiet)))


def lesion(
    model: Model = "mlp",
    weights: Weights = None,
    trust: Trust = False,
    task: TaskText = "digits",
    data_dir: DataDir = None,
    expect_score: Expect = None,
    train_epochs: Epochs = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            help="How units are grouped: layer, cluster (units that respond alike), selectivity (units selective for "
            "a class); by default all that the task allows.",
            rich_help_panel="Damage",
        ),
    ] = None,
    share: Annotated[
        float,
        typer.Option(
            "--share", help="Share of each layer that a lesion by selectivity takes.", rich_help_panel="Damage"
        ),
    ] = 0.1,
    clusters: Annotated[
        str | None,
        typer.Option(
            "--clusters", help="Numbers of clusters that each layer is cut into; 2,4,8.", rich_help_panel="Damage"
        ),
    ] = None,
    positions: Annotated[
        Path | None,
        typer.Option(
            "--positions",
            help="Safetensors file of coordinates, layer -> [units, d]: cluster by place instead of by response.",
            rich_help_panel="Damage",
        ),
    ] = None,
    controls: Annotated[
        int | None,
        typer.Option("--controls", help="Random lesions for each size; 20.", rich_help_panel="Damage"),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            help="Labels that are told apart, for example 0,3,8; all, of more than 20 the most frequent.",
            rich_help_panel="Damage",
        ),
    ] = None,
    single_units: Annotated[
        bool,
        typer.Option(
            "--single-units/--no-single-units",
            help="Also silence every unit alone: is a group more than its parts, does selectivity predict damage?",
            rich_help_panel="Damage",
        ),
    ] = True,
    kinds: Kinds = None,
    layers: Layers = None,
    tap: Taps = None,
    seed: Seed = 0,
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
    """Silence groups of units: what each costs, which class it hurts, and which classes doubly dissociate.

    Every lesion is compared with random ones of the same size in the same layers.
    """
    from planaria.cli.inputs import words
    from planaria.cli.lesioning import Options, run

    subject = subject_of(
        model, weights, task, data_dir, device, threads, seed, train_epochs, tap, quick, trust, autocast
    )
    options = Options(
        by=words(by),
        share=share,
        clusters=clusters,
        positions=positions,
        draws=controls,
        classes=classes,
        single_units=single_units,
        kinds=words(kinds),
        layers=words(layers),
        expect=expect_score,
    )
    finish(run(subject, options, screen_of(out, fresh, dry_run, as_json, quiet)))


def resilience(
    model: Model = "mlp",
    weights: Weights = None,
    trust: Trust = False,
    task: TaskText = "digits",
    data_dir: DataDir = None,
    expect_score: Expect = None,
    train_epochs: Epochs = None,
    metric: Annotated[
        str,
        typer.Option(
            "--metric",
            help="How changes of outputs are measured: logits, as they are; fisher or fisher:TEMPERATURE, after "
            "softmax.",
            rich_help_panel="How",
        ),
    ] = "logits",
    examples: Annotated[
        int | None,
        typer.Option("--inputs", min=2, help="Unlabelled inputs of the map; 512.", rich_help_panel="How"),
    ] = None,
    sample: Annotated[
        int,
        typer.Option(
            "--sample", min=0, help="Units that are really silenced one by one; 0: all.", rich_help_panel="Damage"
        ),
    ] = 50,
    set_size: Annotated[
        int, typer.Option("--set-size", min=0, help="Units of the sets; 0: no sets.", rich_help_panel="Damage")
    ] = 5,
    spectrum: Annotated[
        bool,
        typer.Option("--spectrum/--no-spectrum", help="Count the stiff directions.", rich_help_panel="How"),
    ] = True,
    dose: Annotated[
        float,
        typer.Option("--dose", help="Share of every layer's units that a lesion takes.", rich_help_panel="Damage"),
    ] = 0.5,
    repeats: Annotated[
        int | None,
        typer.Option("--repeats", min=0, help="Random lesions; 10. 0: no break-down.", rich_help_panel="Damage"),
    ] = None,
    points: Annotated[
        int, typer.Option("--points", min=2, help="Places along a path of damage.", rich_help_panel="Damage")
    ] = 21,
    kinds: Kinds = None,
    layers: Layers = None,
    tap: Taps = None,
    seed: Seed = 0,
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
    """Predict what losing each unit does from derivatives, hold it against real deletions, find the break-down point.

    Leaves a map of gate vulnerability, worst sets with cross terms, the spectrum of the metric and speed curves.
    """
    from planaria.cli.inputs import words
    from planaria.cli.resiling import Options, run

    subject = subject_of(
        model, weights, task, data_dir, device, threads, seed, train_epochs, tap, quick, trust, autocast
    )
    options = Options(
        metric=metric,
        inputs=examples,
        sample=sample,
        set_size=set_size,
        spectrum=spectrum,
        dose=dose,
        repeats=repeats,
        points=points,
        kinds=words(kinds),
        layers=words(layers),
        expect=expect_score,
    )
    finish(run(subject, options, screen_of(out, fresh, dry_run, as_json, quiet)))


def landscape(
    model: Model = "mlp",
    weights: Weights = None,
    trust: Trust = False,
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
    damage: DamageText = None,
    pooled: Pooled = False,
    kinds: Kinds = None,
    layers: Layers = None,
    tap: Taps = None,
    repair: Annotated[
        str,
        typer.Option(
            "--repair",
            help="After every event: retrain, refit+retrain, sequential, and others that leave dead units dead.",
            rich_help_panel="Repair",
        ),
    ] = "retrain",
    updates: Annotated[
        int | None,
        typer.Option("--updates", help="Budget of every event, in retraining updates; 20.", rich_help_panel="Repair"),
    ] = None,
    batch: Batch = None,
    optimiser: Optimiser = "adam",
    rate: Rate = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            min=0,
            help="In the good set: validation score within this of the intact one.",
            rich_help_panel="Repair",
        ),
    ] = 0.02,
    pairs: Annotated[
        int | None,
        typer.Option(
            "--pairs",
            min=1,
            help="Pairs of networks that are joined in each group, every two of as many networks as that takes; 105, "
            "those of 15 networks.",
            rich_help_panel="Landscape",
        ),
    ] = None,
    curves: Annotated[
        bool,
        typer.Option(
            "--curves",
            help="Join up to 10 pairs of repaired networks whose straight line leaves the good set by Bezier curves.",
            rich_help_panel="Landscape",
        ),
    ] = False,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="Of the pictures: pca, mds, isomap, tsne, umap; by default all that are installed.",
            rich_help_panel="Landscape",
        ),
    ] = None,
    grid: Annotated[
        int | None,
        typer.Option(
            "--grid",
            min=0,
            help="Points of each side of the surfaces of the loss, odd; 51. 0: no surfaces.",
            rich_help_panel="Landscape",
        ),
    ] = None,
    inputs: Annotated[
        int, typer.Option("--inputs", min=1, help="Test inputs of the surfaces.", rich_help_panel="Landscape")
    ] = 5000,
    span: Annotated[
        float,
        typer.Option(
            "--span",
            help="How far the surface in random directions reaches, in lengths of the weights of each filter.",
            rich_help_panel="Landscape",
        ),
    ] = 1.0,
    seed: Seed = 0,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Walks; 5.", rich_help_panel="How")] = None,
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
    """Do the networks of a damage-repair walk form a connected set? With controls, pictures, and surfaces of the loss.

    The controls are the same training without damage, random displacement, networks trained alike, untrained ones.
    """
    from planaria.cli.inputs import DamageChoice, words
    from planaria.cli.landscape_plan import Options
    from planaria.cli.landscaping import run

    subject = subject_of(
        model, weights, task, data_dir, device, threads, seed, train_epochs, tap, quick, trust, autocast
    )
    options = Options(
        mode=mode,
        dose=dose_per_event,
        events=events,
        delay=delay,
        damage=DamageChoice(damage, not pooled, "random", words(kinds), words(layers)),
        repair=repair,
        updates=updates,
        batch=batch,
        optimiser=optimiser,
        rate=rate,
        tolerance=tolerance,
        pairs=pairs,
        curves=curves,
        methods=words(methods),
        grid=grid,
        inputs=inputs,
        span=span,
        seeds=seeds,
        expect=expect_score,
    )
    finish(run(subject, options, screen_of(out, fresh, dry_run, as_json, quiet)))
