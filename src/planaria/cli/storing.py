"""Make the sidecar of a trained network, and measure what its size costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from planaria.campaign.files import check_folder, make_folder, write_atomic
from planaria.campaign.ledger import strong_id
from planaria.cli import inputs
from planaria.cli.repairs import unlabelled
from planaria.cli.running import folder_for
from planaria.cli.screen import Screen
from planaria.core.anatomy import Anatomy
from planaria.core.errors import InputError, PlanariaError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits
from planaria.measure.statistics import finite, mean_interval
from planaria.measure.task import Task
from planaria.measure.weights import pack_weights, read_tensors
from planaria.repair.refit import Refit, unread
from planaria.repair.sidecar import Sidecar
from planaria.version import version

ENDING = ".sidecar.safetensors"
DEATH = Damage(Silence(), RandomUnits(per_layer=True))
"""At what the price is measured."""


@dataclass(frozen=True)
class Options:
    """Options of `planaria sidecar` beyond the subject."""

    inputs: int
    share: float | None
    doses: str
    seeds: int
    expect: float | None


def run(subject: inputs.Subject, options: Options, screen: Screen) -> int:
    """Do it; returns the exit code."""
    inputs.finite("--expect-score", options.expect)
    if options.share is not None and not options.share > 0:
        raise InputError("--share", "a number above 0", options.share)
    doses = [] if options.doses == "none" else inputs.numbers("--doses", options.doses, float)
    doses = [float(DEATH.site.dose.check(dose)) for dose in doses]
    prepared = inputs.prepare(subject)
    task = prepared.task
    place, checkpoint = _places(prepared, screen)
    if screen.dry_run:
        return _announce(prepared, options, place, screen)
    bare, trained_record = inputs.network(prepared, screen.say)
    net = inputs.tapped(bare, subject.taps)
    _, intact, warnings = inputs.intact(net, prepared, options.expect)
    words = {"planaria.network": subject.model}
    whole = None if subject.weights is not None else pack_weights(net, {**words, "planaria.settings": _mark(prepared)})
    model = checkpoint.stat().st_size if whole is None else len(whole)
    sidecar = Sidecar.of(net, *unlabelled(net, task, options.inputs))
    deaf = unread(net, sidecar, (group.layer for group in Anatomy.of(net).select()))
    if deaf:
        told = "; ".join(f"{layer} ({why})" for layer, why in deaf.items())
        warnings = [*warnings, f"It cannot make up for dead units of {told}."]
    for warning in warnings:
        screen.warn(warning)
    # The limit is a share of the file, which may hold the weights in another precision than they are used in.
    limited = replace(sidecar, about={**sidecar.about, "bytes": min(model, sidecar.about["bytes"])})
    small = limited.packed(options.share)
    content = small.pack(words)
    make_folder(place.parent)
    if whole is not None:
        write_atomic(checkpoint, whole)
    write_atomic(place, content)
    read = Sidecar.load(place)
    document = finite(
        {
            "command": "sidecar",
            "schema": "planaria.sidecar_result.v1",
            "version": version(),
            "network": inputs.describe(net, prepared, trained_record),
            "task": task.record(),
            "intact": intact,
            "warnings": [*prepared.warnings, *warnings],
            "readers": [
                {
                    "weight": name,
                    "features": factor.codes.shape[1] - 1,
                    "rank": factor.rank,
                    "of": factor.codes.shape[1],
                    "explained": factor.explained,
                    "form": "full" if factor.rank == factor.codes.shape[1] else "low rank and diagonal",
                }
                for name, factor in small.factors.items()
            ],
            "weights_kept": bool(small.steps) or not small.moments,
            "refused": dict(sidecar.refused),
            "examples": sidecar.examples,
            "bytes": len(content),
            "model_bytes": model,
            "share": len(content) / model,
            "price": [_price(net, task, sidecar, read, dose, options.seeds) for dose in doses],
            "files": {"sidecar": str(place), "network": str(checkpoint)},
        }
    )
    if screen.as_json:
        screen.document(document)
    else:
        _show(document, screen)
    return 0


def _announce(prepared: inputs.Prepared, options: Options, place: Path, screen: Screen) -> int:
    """What a dry run says."""
    plan: dict[str, Any] = {
        "command": "sidecar",
        "schema": "planaria.plan.v1",
        "inputs": min(options.inputs, len(prepared.task.train)),
        "updates": prepared.updates,
        "file": str(place),
    }
    if screen.as_json:
        screen.document(plan)
    else:
        for key, value in plan.items():
            screen.results.print(f"{key:<9} {value}", markup=False)
    return 0


def _mark(prepared: inputs.Prepared) -> str:
    """Id of what decides the network that is trained here."""
    return strong_id({**prepared.identity(), "command": "sidecar", "version": version()})


def _places(prepared: inputs.Prepared, screen: Screen) -> tuple[Path, Path]:
    """Files of the sidecar and of the checkpoint it belongs to.

    Raises:
        InputError: If something else is there already.
        EnvironmentProblem: If there is no way to the folder.
    """
    weights = prepared.subject.weights
    if screen.out is not None:
        place = screen.out
        if not place.name.endswith(".safetensors"):
            raise InputError("--out", f"a file that ends in {ENDING}", str(place))
    elif weights is not None:
        place = weights.with_name(weights.name.rpartition(".")[0] + ENDING)
    else:
        place = folder_for(prepared.subject, {**prepared.identity(), "command": "sidecar"}) / f"intact{ENDING}"
    name = place.name.removesuffix(ENDING) if place.name.endswith(ENDING) else place.stem + "-network"
    checkpoint = weights or place.with_name(f"{name}.safetensors")
    if place.resolve() == checkpoint.resolve():
        raise InputError("--out", "another file than the checkpoint", str(place))
    if not place.parent.is_dir():
        check_folder(place.parent, {})
    if weights is None and checkpoint.exists() and not screen.fresh and not _ours(checkpoint, _mark(prepared)):
        raise InputError(
            "--out",
            "a place for the network that is trained, too",
            f"another network in {checkpoint}",
            "Name it with --weights to make its sidecar, or use --fresh to replace it.",
        )
    if place.exists() and not screen.fresh:
        try:
            Sidecar.load(place)
        except PlanariaError:
            raise InputError(
                "--out", "a new file, or an old sidecar", str(place), "Use --fresh to replace it."
            ) from None
    return place, checkpoint


def _ours(checkpoint: Path, mark: str) -> bool:
    """Whether a file is what this very command writes."""
    try:
        return read_tensors(checkpoint)[1].get("planaria.settings") == mark
    except PlanariaError:
        return False


def _price(net: Network, task: Task, exact: Sidecar, packed: Sidecar, dose: float, seeds: int) -> dict[str, Any]:
    """Validation scores after a lesion, refitted from exact moments and from the file."""
    scores: dict[str, list[float]] = {"damaged": [], "exact": [], "file": []}
    for seed in range(seeds):
        hurt = DEATH.at(dose)(net, stream(seed, "lesion"))
        scores["damaged"].append(task.score(hurt, task.validation))
        for name, source in (("exact", exact), ("file", packed)):
            if name == "file" and not packed.steps:  # copies of the weights did not fit: they must be readable
                source = replace(packed, weights={**exact.weights, **packed.weights})
            (moment,) = Refit(source)(hurt, stream(seed, "refit"))
            scores[name].append(task.score(moment.network, task.validation))
    lost = [a - b for a, b in zip(scores["exact"], scores["file"], strict=True)]
    return {
        "dose": dose,
        "seeds": seeds,
        **{name: mean_interval(values).to_dict() for name, values in scores.items()},
        "lost": mean_interval(lost).to_dict(),
    }


def _show(document: dict[str, Any], screen: Screen) -> None:
    grid = Table(title=f"Sidecar of {document['network']['name']}: moments of what is read from units")
    for name in ("weight", "features", "rank", "mean square kept", "form"):
        grid.add_column(name, justify="left" if name in {"weight", "form"} else "right")
    for reader in document["readers"]:
        kept = f"{100 * min(1.0, reader['explained']):.2f} %"
        grid.add_row(
            reader["weight"], str(reader["features"]), f"{reader['rank']} of {reader['of']}", kept, reader["form"]
        )
    screen.table(grid)
    say = screen.results.print
    copies = "with" if document["weights_kept"] else "without"
    say(
        f"{document['bytes']:,} bytes, {100 * document['share']:.1f} % of the model's {document['model_bytes']:,}; "
        f"{copies} a copy of the readers' weights in 8 bits; from {document['examples']} inputs",
        markup=False,
    )
    if not document["weights_kept"]:
        say("The weights of dead units must still be readable when it is used.", markup=False)
    for price in document["price"]:
        damaged, exact, packed, lost = (price[key]["best"] for key in ("damaged", "exact", "file", "lost"))
        say(
            f"dose {price['dose']:g}: damaged {damaged:.4f}, refitted from exact moments {exact:.4f}, from the file "
            f"{packed:.4f} (costs {lost:+.4f}; validation split, {price['seeds']} lesions)",
            markup=False,
        )
    for name, why in document["refused"].items():
        say(f"no moments for {name}: {why}", markup=False)
    screen.places(document["files"])
