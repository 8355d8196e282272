"""Options that several commands share, and what is made of them: the subject of a study, the screen, the exit code.

Nothing here imports torch: `planaria --help` must come at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from planaria.cli.inputs import Subject
    from planaria.cli.screen import Screen

Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="mlp, mlp:784-256-256-10, cnn, cnn2, resnet20; your own: package.module:factory, file.py:factory; a "
        "Hugging Face folder: hf:FOLDER, of sentence-transformers also hf:FOLDER?pair=1; timm:NAME, torchvision:NAME, "
        "with published weights timm:NAME@pretrained, torchvision:NAME@DEFAULT; FILE.onnx; with --trust FILE.pt2, or a "
        "pickled module FILE.pt.",
        rich_help_panel="What",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="Trained weights: .safetensors, their .index.json, or .pt / .pth of plain tensors. Without them the model "
        "is trained now, unless it brings its own.",
        rich_help_panel="What",
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run code that the model's file or folder carries; says which, and records it.",
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
    typer.Option(
        "--train-epochs",
        help="Passes over the data where weights are trained now; 0: the factory hands out trained ones.",
        rich_help_panel="What",
    ),
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
Autocast = Annotated[
    str | None,
    typer.Option(
        "--autocast", help="Mixed precision: bfloat16 or float16; weights stay as they are.", rich_help_panel="How"
    ),
]
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
Batch = Annotated[int | None, typer.Option("--batch", help="Examples per update.", rich_help_panel="Repair")]
Optimiser = Annotated[str, typer.Option("--optimiser", help="adam, adamw or sgd.", rich_help_panel="Repair")]
Rate = Annotated[float | None, typer.Option("--rate", help="Learning rate of retraining.", rich_help_panel="Repair")]


def subject_of(
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
    trust: bool = False,
    autocast: str | None = None,
) -> Subject:
    """What is studied."""
    from planaria.cli.inputs import Subject, words

    return Subject(
        model, weights, task, data_dir, device, threads, seed, epochs, words(taps) or (), quick, trust, autocast
    )


def screen_of(out: Path | None, fresh: bool, dry_run: bool, as_json: bool, quiet: bool) -> Screen:
    """Where results and messages go."""
    from planaria.cli.screen import Screen

    return Screen(out=out, fresh=fresh, dry_run=dry_run, as_json=as_json, quiet=quiet)


def finish(code: int) -> None:
    """Leave with the exit code of a command, if it is not 0."""
    if code:
        raise typer.Exit(code)
