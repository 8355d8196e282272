"""What every command begins with: a task, a network, and the facts about both."""

from __future__ import annotations

import ctypes
import hashlib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from planaria.core import trees
from planaria.core.anatomy import Anatomy
from planaria.core.devices import check_autocast, half
from planaria.core.errors import EnvironmentProblem, InputError
from planaria.core.network import Network
from planaria.core.port import Inputs, Port
from planaria.core.streams import stream
from planaria.core.tap import GAIN, OFFSET, tap
from planaria.damage.damage import Damage, parse_damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits, RankedUnits, rank
from planaria.measure.data import Data
from planaria.measure.datasets import load as load_task
from planaria.measure.loaded import full_precision
from planaria.measure.models import NAMES, carried_code, carries_weights, check_fit, fast_path
from planaria.measure.models import load as load_model
from planaria.measure.statistics import Estimate, mean_interval, wilson
from planaria.measure.task import Task
from planaria.measure.unlabelled import Unlabelled
from planaria.measure.weights import fingerprint, load_weights
from planaria.study.rescue import Baseline
from planaria.study.respond import checked_doses
from planaria.study.train import Recipe, train

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # names of glibc's malloc.h
NEAR_CHANCE = 0.1
"""A network that has less than this share of the way from chance to a perfect score is called near chance."""


@dataclass(frozen=True)
class Subject:
    """Options that say what is studied.

    Attributes:
        model: Named network or factory.
        weights: File of trained weights; None to train on the spot.
        task: Task text.
        data_dir: Folder with data sets.
        device: Torch device.
        threads: Torch threads.
        seed: First seed.
        train_epochs: Passes over the training split, where weights are trained on the spot; None: suited.
        taps: Modules to tap.
        quick: Short form.
        trust: Whether code that the model's file or folder carries may run.
        autocast: Type of mixed precision; None for none.
    """

    model: str
    weights: Path | None
    task: str
    data_dir: str | None
    device: str
    threads: int
    seed: int
    train_epochs: int | None
    taps: tuple[str, ...]
    quick: bool
    trust: bool = False
    autocast: str | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of mixed precision; None for none."""
        return half(self.autocast, "--autocast")

    @property
    def given(self) -> bool:
        """Whether the network comes with trained weights, so that none are trained now."""
        # A factory may hand out trained weights; --train-epochs 0 says that it does.
        as_made = self.train_epochs == 0 and self.model.partition(":")[0].partition("?")[0] not in NAMES
        return self.weights is not None or carries_weights(self.model) or as_made


@dataclass(frozen=True, eq=False)
class Prepared:
    """A subject that has been loaded and checked; nothing has been trained or written yet.

    Attributes:
        subject: The options.
        task: The task, on the device.
        model: Module with the user's weights, or with initial ones.
        recipe: How the weights will be trained; None if they were given.
        weights_sha256: Of the weights file, or of the weights that a factory handed out; None without either.
        warnings: For the user; said already.
        files: Name -> SHA-256 of the files that the model was read from.
        trusted: Code that they carry, in words; None if there is none.
    """

    subject: Subject
    task: Task
    model: nn.Module
    recipe: Recipe | None
    weights_sha256: str | None
    warnings: list[str] = field(default_factory=list)
    files: Mapping[str, str] = field(default_factory=dict)
    trusted: str | None = None

    @property
    def updates(self) -> int:
        """Updates that training the weights will take; 0 if they were given."""
        return 0 if self.recipe is None else self.recipe.updates(len(self.task.train))

    def identity(self) -> dict[str, Any]:
        """Everything about the subject that decides the results, as plain values."""
        record = self.task.record()
        subject = self.subject
        texts = {"--model": subject.model, "--task": subject.task.partition("?")[0].removeprefix("py:")}
        code = {option: digest for option, text in texts.items() if (digest := _code(text)) is not None}
        return {
            **({"code": code} if code else {}),
            **({"files": dict(self.files)} if self.files else {}),
            **({"trusted": self.trusted} if self.trusted else {}),
            **({"autocast": subject.autocast} if subject.dtype is not None else {}),
            "model": self.subject.model,
            "weights_sha256": self.weights_sha256,
            "training": None if self.recipe is None else repr(self.recipe),
            "task": {key: record[key] for key in ("name", "sha256", "preprocessing", "splits") if key in record},
            "seed": self.subject.seed,
            "taps": list(self.subject.taps),
            "device": self.subject.device,
            "threads": self.subject.threads,
        }


def prepare(subject: Subject) -> Prepared:
    """Load the task and the model and check that they fit each other.

    Raises:
        PlanariaError: With what is wrong; nothing has been written.
    """
    device = device_of(subject.device)
    if subject.dtype is not None:
        check_autocast(device, subject.dtype, "--autocast")
    if subject.threads < 1:
        raise InputError("--threads", "a number of at least 1", subject.threads)
    torch.set_num_threads(subject.threads)
    _keep_memory()
    task = load_task(subject.task, data_dir=subject.data_dir)
    rows = task.splits["train"]
    shape = tuple(rows.inputs.shape[1:])
    carried = carried_code(subject.model)
    if carried is not None and subject.trust:
        warn(f"--trust: loading {subject.model} runs {carried}.")
    loaded = load_model(subject.model, shape, _outputs(task, subject), subject.seed, trust=subject.trust)
    model, warnings = loaded.module, list(loaded.notes)
    if device.type == "cpu":
        model, note = full_precision(model, floats=_float32(rows))
        warnings += [] if note is None else [note]
    if isinstance(task, Task):
        check_fit(model, task)
    if (note := fast_path(model, rows)) is not None:
        warnings.append(note)
    if rows.layout is not None and (left := Port.of(model, rows.examples).left_out):
        warnings.append(f"{type(model).__name__} does not take {', '.join(left)}: left out.")
    for warning in warnings:
        warn(warning)
    digest = None
    if subject.weights is not None:
        model = as_saved(model, subject.weights, rows.examples)
        load_weights(model, subject.weights)
        digest = fingerprint(subject.weights)
    elif subject.given and not loaded.trained:
        digest = trees.digest(dict(model.state_dict()))
    if isinstance(task, Unlabelled):  # now that the network is there, its answers are the targets
        task = task.to(device).answered(Network.of(model.to(device), rows.to(device).examples))
        check_fit(model, task)
    recipe = None
    if not subject.given:
        recipe = Recipe.suited(task, model, subject.quick)
        if subject.train_epochs is not None:
            if subject.train_epochs < 1:
                raise InputError("--train-epochs", "a number of at least 1", subject.train_epochs)
            recipe = replace(recipe, epochs=subject.train_epochs)
    on_device = task.to(device) if device.type != "cpu" else task
    trusted = carried if subject.trust else None
    return Prepared(subject, on_device, model.to(device), recipe, digest, warnings, loaded.files, trusted)


def warn(text: str) -> None:
    """Say something that the user should know, on stderr."""
    Console(stderr=True, highlight=False).print(f"Warning: {text}", style="yellow", markup=False, soft_wrap=True)


def _float32(rows: Data) -> bool:
    """Whether a model is given float32 numbers."""
    kinds = [rows.inputs.dtype] if rows.layout is None else [part.dtype for part in rows.layout.parts]
    return torch.float32 in kinds


def _outputs(task: Task | Unlabelled, subject: Subject) -> int:
    """Outputs that the network must have; complains where there are no labels and nothing else that says it."""
    if isinstance(task, Unlabelled):
        why = "data without labels" if task.by is None else f"answers to compare (score={task.by})"
        if not subject.given:
            remedy = "Give --weights: the targets are that network's answers. Or give labels to train from."
            raise InputError("--weights", "the weights of the intact network", f"none, and {why}", remedy)
        if not task.output_size and subject.model.partition(":")[0].partition("?")[0] in NAMES:
            expected = f"classes=N among its keys, the outputs of {subject.model}"
            raise InputError("--task", expected, why, f"Write {task.name}{'&' if '?' in task.name else '?'}classes=10.")
    return task.output_size


def _code(text: str) -> str | None:
    """SHA-256 of the user's file that a text like `file.py:name` or `package.module:name` names; None without one."""
    place, colon, _ = text.rpartition(":")
    if not colon:
        return None
    file = place if place.endswith(".py") else getattr(sys.modules.get(place), "__file__", None)
    path = Path(file or "").expanduser()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def as_saved(model: nn.Module, weights: Path, examples: Inputs) -> nn.Module:
    """The model with the taps that its weights were saved with.

    Args:
        model: The module.
        weights: File of its weights.
        examples: A few inputs, as the model takes them.
    """
    import safetensors

    try:
        with safetensors.safe_open(weights, framework="pt") as file:
            names = list(file.keys())
    except Exception:
        return model  # another format, or damaged: whoever reads the weights says so
    ours = [name.removesuffix(f".{GAIN}") for name in names if name.endswith(f".{GAIN}")]
    layers = [layer for layer in ours if layer in dict(model.named_modules())]
    return tap(Network.of(model, examples), layers).to_module() if layers else model


def _keep_memory() -> None:
    """Ask glibc to keep freed memory: otherwise every large activation is mapped and cleared anew, half of the time."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    for option, value in ((_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, 2**30), (_TOP_PAD, 64 * 2**20)):
        mallopt(option, value)


def device_of(name: str) -> torch.device:
    """The device of that name, tried out.

    Raises:
        EnvironmentProblem: If this machine has none, or it cannot compute in double precision.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()  # there is also a device that computes nothing
        torch.zeros(1, device=device, dtype=torch.float64).sum().item()
    except TypeError as error:
        expected = "a device that computes in double precision too"
        raise EnvironmentProblem("--device", expected, repr(name), "Use cpu.") from error
    except (RuntimeError, AssertionError) as error:
        gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
        expected = f"a device of this machine: {', '.join(['cpu', *gpus])}"
        raise EnvironmentProblem(
            "--device", expected, repr(name), "Use cpu, or one that planaria doctor names."
        ) from error
    return device


def network(prepared: Prepared, say: Callable[[str], None]) -> tuple[Network, dict[str, Any] | None]:
    """The network, not tapped yet: with the given weights, or trained now.

    Args:
        prepared: Loaded subject.
        say: Told what takes time.

    Returns:
        The network, and how it was trained (None if it was given).
    """
    record = None
    if prepared.recipe is None:
        net = Network.of(prepared.model, prepared.task.train.examples)
    else:
        say(f"training {prepared.subject.model} on {prepared.task.name}: {prepared.recipe}")
        net, record = train(prepared.model, prepared.task, prepared.recipe, seed=prepared.subject.seed)
    return net, record


def tapped(net: Network, layers: tuple[str, ...] = ()) -> Network:
    """The network with the named layers tapped, and those whose units no rule can find."""
    wanted = list(layers) + [layer for layer in Anatomy.of(net).tappable(net) if layer not in layers]
    net = tap(net, wanted) if wanted else net
    # Those that came with the weights too.
    taps = {
        name: torch.ones_like(w, dtype=torch.bool) for name, w in net.weights.items() if name.endswith((GAIN, OFFSET))
    }
    return net.pin(taps) if taps else net


def units(net: Network) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Groups of units, and layers without, as plain values."""
    anatomy = Anatomy.of(net)
    groups = [
        {
            "layer": group.layer,
            "kind": group.kind,
            "count": group.count,
            "method": group.method,
            "exact": True,
            "reason": _reason(group.method, group.exact_by),
        }
        for group in anatomy.groups
    ]
    return groups, [{"layer": layer, "reason": reason} for layer, reason in anatomy.unreached.items()]


def _reason(method: str, exact_by: str) -> str:
    if method == "tap":
        return "gain and offset at the module's output"
    return {
        "both": "zero outgoing or incoming weights",
        "outgoing": "zero outgoing weights",
        "incoming": "zero incoming weights and shift",
    }[exact_by]


def describe(net: Network, prepared: Prepared, trained: dict[str, Any] | None) -> dict[str, Any]:
    """The network as plain values, for the result."""
    groups, unreached = units(net)
    subject = prepared.subject
    return {
        "name": subject.model,
        "source": "trained on the spot" if prepared.recipe is not None else str(subject.weights or subject.model),
        "sha256": net.sha256,
        "parameters": net.parameters,
        "units": groups,
        "unreached": unreached,
        "trained": trained,
    }


def intact(net: Network, prepared: Prepared, expect: float | None) -> tuple[Baseline, dict[str, Any], list[str]]:
    """Score of the undamaged network, compared with what the user expects and with chance.

    Raises:
        InputError: If the expected score is missed by more than a point.
    """
    task = prepared.task
    baseline = Baseline.of(net, task)
    if not math.isfinite(baseline.test):
        raise InputError("the intact network", "finite outputs", "NaN or infinite outputs on the test split")
    per_example = task.scorer.per_example
    interval = Estimate(float("nan"), baseline.test, float("nan"))
    if per_example is not None:
        values = per_example(task.outputs(net, task.test), task.test.targets).double()
        binary = bool(((values == 0) | (values == 1)).all())
        interval = (
            wilson(int(values.sum()), len(values))
            if binary
            else mean_interval(values.cpu().numpy(), within=task.scorer.bounds)
        )
    if expect is not None and abs(baseline.test - expect) > 0.01:
        raise InputError(
            "--expect-score",
            f"an intact score within 0.01 of {expect:g}",
            f"{baseline.test:.4f}",
            f"Check the preprocessing of the task: {_short(task.preprocessing)}.",
        )
    warnings = []
    best = 1.0 if task.scorer.bounds is None else task.scorer.bounds[1]
    if math.isfinite(best) and baseline.test < task.chance + NEAR_CHANCE * (best - task.chance):
        warnings.append(
            f"The intact network scores {baseline.test:.3f}, near chance ({task.chance:.3f}): check weights and "
            f"preprocessing ({_short(task.preprocessing)}) before believing anything below."
        )
    facts = {
        "test": baseline.test,
        "validation": baseline.validation,
        "interval": [interval.to_dict()["low"], interval.to_dict()["high"]],
    }
    return baseline, facts, warnings


def _short(record: Mapping[str, object]) -> str:
    """A record for one line: a vocabulary is left out."""
    long = 100
    parts = {key: value if len(repr(value)) <= long else "..." for key, value in record.items()}
    return f"{parts or 'none'}"


@dataclass(frozen=True)
class DamageChoice:
    """Options that say what is damaged.

    Attributes:
        text: A whole damage as Python writes it; None for the silencing of units that the others describe.
        per_layer: Whether the dose is taken in every layer.
        order: random, largest or smallest.
        kinds: Kinds of unit; None for the usual ones.
        layers: Layer names; None for all.
    """

    text: str | None
    per_layer: bool
    order: str
    kinds: tuple[str, ...] | None
    layers: tuple[str, ...] | None

    def identity(self) -> dict[str, Any]:
        """The choice as plain values."""
        return {
            "damage": self.text or f"{self.order}, {'per layer' if self.per_layer else 'pooled'}",
            "kinds": self.kinds and list(self.kinds),
            "layers": self.layers and list(self.layers),
        }

    def draws(self, wanted: int | None, quick: bool) -> int:
        """Orders of a response curve: a fixed order has one curve, however often it is drawn."""
        return 1 if self.order != "random" else wanted or (5 if quick else 20)

    def on(self, net: Network) -> Damage:
        """The damage, for this network; by default units die at random, the same fraction in every layer.

        Raises:
            PlanariaError: If the network has no such units or the text is no damage.
        """
        if self.text is not None:
            if (self.per_layer, self.order, self.kinds, self.layers) != (True, "random", None, None):
                raise InputError(
                    "--damage",
                    "the whole damage in one text",
                    "--pooled, --order, --kinds or --layers beside it",
                    "Write them into the text, for example RandomUnits(per_layer=True, kinds=('head',)).",
                )
            damage = parse_damage(self.text)
            damage.at(1)(net, stream(0, "trial"))  # whether this network has what it names
        elif self.order == "random":
            Anatomy.of(net).select(self.kinds, self.layers)
            damage = Damage(Silence(), RandomUnits(per_layer=self.per_layer, kinds=self.kinds, layers=self.layers))
        elif self.order in {"largest", "smallest"}:
            ranking = rank(net, self.kinds, self.layers)
            ranking = ranking if self.order == "largest" else ranking[::-1]
            damage = Damage(Silence(), RankedUnits(ranking, per_layer=self.per_layer))
        else:
            raise InputError("--order", "random, largest or smallest", repr(self.order))
        return damage


def curve_doses(damage: Damage, doses: list[float]) -> tuple[float, ...]:
    """Doses of a response curve: checked, ascending from 0.

    Raises:
        InputError: If one lies outside the damage's axis, or there is none but 0.
    """
    checked = checked_doses(damage, [round(dose, 10) for dose in doses])
    if len(checked) < 2:
        raise InputError("--doses", "at least one dose above 0", "0 alone", "Nothing would be damaged; add a dose.")
    return checked


def numbers(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """Comma-separated numbers; START:STOP:COUNT stands for evenly spaced ones.

    Raises:
        InputError: If one of them is no number, or there is none.
    """
    if text.count(":") == 2:
        try:
            start, stop, count = text.split(":")
            low, high, n = float(start), float(stop), int(count)
            if n < 1:
                raise ValueError
        except ValueError:
            raise InputError(option, "START:STOP:COUNT", repr(text)) from None
        return [kind(str(low + (high - low) * i / max(1, n - 1))) for i in range(n)]
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        values = [kind(part) for part in parts]
    except ValueError:
        raise InputError(option, "numbers separated by commas", repr(text), "For example 0.3,0.5,0.7.") from None
    if not values:
        raise InputError(option, "at least one number", repr(text))
    return values


def finite(option: str, value: float | None) -> None:
    """Complain about NaN and infinity, which no comparison notices.

    Raises:
        InputError: With the option's name.
    """
    if value is not None and not math.isfinite(value):
        raise InputError(option, "a finite number", value, "Correct it.")


def words(text: str | None) -> tuple[str, ...] | None:
    """Comma-separated words; None stays None."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())
