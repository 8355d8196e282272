"""Repair a network that is already damaged, from its sidecar: no data, no intact copy."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from planaria.campaign.files import check_folder, make_folder, write_atomic
from planaria.campaign.ledger import strong_id
from planaria.cli import inputs
from planaria.cli.lesions import read_lesion
from planaria.cli.running import write_json
from planaria.cli.screen import Screen, surroundings
from planaria.core.anatomy import Anatomy, silence
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.measure.datasets import load as load_task
from planaria.measure.models import build, check_fit
from planaria.measure.statistics import finite
from planaria.measure.unlabelled import Unlabelled
from planaria.measure.weights import load_weights, pack_weights
from planaria.repair.refit import refit
from planaria.repair.sidecar import Sidecar
from planaria.version import version

RESCUED, RESULT, SCHEMA = "rescued.safetensors", "result.json", "planaria.mend.v1"


@dataclass(frozen=True)
class Options:
    """What is repaired with what.

    Attributes:
        model: Named network or factory.
        weights: The damaged weights.
        lesion: File that names the dead units.
        sidecar: The sidecar.
        task: For scores before and after; None for none.
        data_dir: Folder with data sets.
        device: Torch device.
        threads: Torch threads.
        trust: Whether code that the model's file or folder carries may run.
    """

    model: str
    weights: Path | None
    lesion: Path | None
    sidecar: Path | None
    task: str | None
    data_dir: str | None
    device: str
    threads: int
    trust: bool = False


def run(options: Options, screen: Screen) -> int:
    """Do it; returns the exit code."""
    weights, lesion, sidecar_path = (
        _given(option, path)
        for option, path in (
            ("--weights", options.weights),
            ("--lesion", options.lesion),
            ("--sidecar", options.sidecar),
        )
    )
    device = inputs.device_of(options.device)
    torch.set_num_threads(options.threads)
    units = read_lesion(lesion)
    sidecar = Sidecar.load(sidecar_path)
    about = sidecar.about
    shape = tuple(int(size) for size in about["shape"])
    model = build(options.model, shape, int(about["outputs"] or 1), 0, trust=options.trust)
    like = sidecar.example()
    model = inputs.as_saved(model, weights, like)
    load_weights(model, weights)
    net = inputs.tapped(Network.of(model, like)).to(device)
    slices = Anatomy.of(net).entries(units)
    sidecar.check(net, slices.all)
    task = None if options.task is None else load_task(options.task, data_dir=options.data_dir)
    if isinstance(task, Unlabelled):
        remedy = "The intact network, with which answers would be compared, is not there. Leave --task out."
        raise InputError("--task", "data with labels", f"{task.name}, without", remedy)
    if task is not None:
        task = task.to(device)
        check_fit(model, task)
    identity = {
        "command": "mend",
        "version": version(),
        "model": options.model,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (weights, lesion, sidecar_path)},
        "device": options.device,
        "threads": options.threads,
    }
    folder = screen.out or Path("planaria-runs") / f"mend-{strong_id(identity)[:10]}"
    place = folder / RESCUED
    _check_place(folder, (weights, lesion, sidecar_path), identity, screen)
    repaired = refit(net, units, sidecar)
    document: dict[str, Any] = {
        "command": "rescue",
        "schema": SCHEMA,
        "version": version(),
        "network": {"name": options.model, "sha256": net.sha256, "parameters": net.parameters},
        "lesion": {"units": len(units), "layers": _counts(units)},
        "sidecar": {"intact_sha256": sidecar.sha256, "examples": sidecar.examples},
        "refitted": list(repaired.refitted),
        "unrepaired": dict(repaired.unrepaired),
        "layers": [asdict(fit) for fit in repaired.layers],
        "cost": {"multiply_adds": repaired.cost.multiply_adds, "seconds": repaired.cost.seconds, "examples": 0},
        "scores": None,
        "files": {"network": str(place), "result": str(folder / RESULT)},
        "manifest": {**surroundings(options.threads), **identity},
    }
    if task is not None:
        damaged = silence(net, slices.all)
        document["task"] = task.record()
        document["scores"] = {"damaged": task.score(damaged), "rescued": task.score(repaired.network)}
    if screen.dry_run:
        document["files"] = {}
    else:
        make_folder(folder)
        words = {"planaria.network": options.model, "planaria.rescued_from": net.sha256}
        write_atomic(place, pack_weights(repaired.network, words))
        write_json(folder / RESULT, document)
    for layer, why in repaired.unrepaired.items():
        screen.warn(f"layer {layer!r} is not repaired: {why}")
    if screen.as_json:
        screen.document(finite(document))
    else:
        _show(document, screen)
    return 0


def _check_place(folder: Path, given: tuple[Path, ...], identity: dict[str, Any], screen: Screen) -> None:
    """Refuse to write over what was given, or what another command has left.

    Raises:
        InputError: Naming the file.
        EnvironmentProblem: If there is no way to the folder.
    """
    if not folder.is_dir():
        check_folder(folder, {})
    if {(folder / name).resolve() for name in (RESCUED, RESULT)} & {path.resolve() for path in given}:
        raise InputError(
            "--out", "another folder than that of the files it reads", str(folder), "The damaged network is kept."
        )
    there = [name for name in (RESCUED, RESULT) if (folder / name).exists()]
    if not there or screen.fresh:
        return
    try:
        stored = json.loads((folder / RESULT).read_text(encoding="utf-8"))["manifest"]
        ours = {key: stored[key] for key in identity} == identity
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise InputError(
            "--out", "a folder without results of another command", str(folder / there[0]), "Use --fresh to replace it."
        )


def _given(option: str, path: Path | None) -> Path:
    if path is None:
        raise InputError(
            option,
            "a damaged network, its lesion and its sidecar",
            "nothing",
            "--weights damaged.safetensors --lesion lesion.json --sidecar intact.sidecar.safetensors go together.",
        )
    return path


def _counts(units: tuple[Any, ...]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for unit in units:
        counts[unit.layer] = counts.get(unit.layer, 0) + 1
    return counts


def _show(document: dict[str, Any], screen: Screen) -> None:
    say = screen.results.print
    dead = ", ".join(f"{count} of {layer}" for layer, count in document["lesion"]["layers"].items())
    say(f"dead units {dead}", markup=False, soft_wrap=True)
    say(f"refitted   {', '.join(document['refitted']) or 'nothing'}", markup=False, soft_wrap=True)
    for fit in document["layers"]:
        # Of what the reader computed for the inputs of the sidecar.
        say(f"error      {fit['before']:.1%} -> {fit['after']:.1%} of {fit['reader']}", markup=False, soft_wrap=True)
    if document["scores"]:
        damaged, rescued = document["scores"]["damaged"], document["scores"]["rescued"]
        say(
            f"score      {damaged:.4f} damaged, {rescued:.4f} rescued ({document['task']['score']}, test split)",
            markup=False,
        )
    cost = document["cost"]
    say(
        f"cost       {cost['multiply_adds'] / 1e6:.3g} million multiply-adds, {1000 * cost['seconds']:.1f} ms, no data",
        markup=False,
    )
    screen.places(document["files"])
