"""The repairs by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from planaria.core.errors import InputError, nearest
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Budget, Flow, after, chain, multiply_adds, repeat, settle, updates
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.task import Task
from planaria.repair.against import Dropout, UnitFaults
from planaria.repair.distil import Distil
from planaria.repair.dream import dream
from planaria.repair.harden import Harden
from planaria.repair.incoming import GradMax
from planaria.repair.recover import Recover, affordable
from planaria.repair.refit import Refit, Teacher
from planaria.repair.regrow import Recycle, Regrow, Ripen
from planaria.repair.restart import Restart
from planaria.repair.retrain import SGD, Adam, AdamW, Optimiser, Retrain
from planaria.repair.sidecar import Sidecar, doubt
from planaria.study.rescue import Repair
from planaria.study.schedule import Beforehand, Schedule, leave

MEANINGS = {
    "none": "control: nothing is done",
    "refit": "closed form from a sidecar stored before the damage; no data at repair time",
    "sequential": "closed form, layer by layer, from unlabelled inputs and the intact network",
    "synthetic": "the same, from pink noise instead of inputs; no data at all",
    "sequential+distil": "sequential, then training towards the intact network's outputs on the same unlabelled inputs",
    "recover": "in 20 small steps the survivors hold the outputs, on as many --inputs as the budget allows",
    "obs": "the same in a single step (Optimal Brain Surgeon)",
    "distil": "training towards the intact network's outputs on unlabelled inputs",
    "retrain": "strategy 1: gradient descent on the surviving sub-network",
    "regrow": "strategy 2 (text of the paper): embryonic units, --ratio times as plastic as the rest (10)",
    "regrow-new": "strategy 2 (caption of the paper): embryonic units, only these are trained",
    "gradmax": "strategy 2 with incoming weights chosen by gradients (GradMax-like)",
    "ripen": "strategy 2 in which only the embryonic units are trained at first, all alike after half of the budget",
    "recycle": "strategy 1, and every 100 updates the least useful 2 % of the units are replaced by embryonic ones",
    "iterative": "strategy 3: the lesion in equal bites, retraining after each",
    "refit+retrain": "refit from the sidecar, then strategy 1 at half the rate with what is left of the budget",
    "extra": "control of iterative: as much training before its last hit, without damage, then strategy 1",
    "dropout": "control of iterative: as much training with dropout of units beforehand, then strategy 1",
    "faults": "control of iterative: as much training with faults drawn anew at every update, then strategy 1",
    "scratch": "control: what survives drawn anew and trained, a new network of the reduced size",
}
ALL = "all"
"""Word for every repair there is."""
ON_REQUEST = ("synthetic", "sequential+distil", "recover", "obs", "distil", "gradmax", "ripen", "recycle", "faults")
"""Repairs that are run only when they are named: relatives of those that are run by default."""
CLOSED_FORM = ("none", "refit", "sequential", "synthetic")
"""Repairs without gradients."""
SIDECAR_INPUTS = 10_000
RECYCLED_EVERY = 100
"""Updates between two recyclings: what a new unit needs before it can be told from a useless one."""
_OPTIMISERS: Mapping[str, Callable[[float], Optimiser]] = {
    "adam": Adam,
    "adamw": AdamW,
    "sgd": SGD,
}
_RATES = {"adam": 2e-3, "adamw": 2e-3, "sgd": 0.1}
"""Where learning rates begin: twice what is usual for a constant one, so that the mean over the budget is that."""


@dataclass(frozen=True)
class Settings:
    """How the repairs run.

    Attributes:
        optimiser: Name of the optimiser.
        rate: Learning rate; None for the optimiser's usual one.
        batch: Examples per update.
        bites: Damage events of the iterative schedule.
        inputs: Unlabelled inputs of the sequential refit.
        updates: Budget; learning rates fall along a half cosine from their full value to 0 within it.
        ratio: How much more plastic embryonic units are than old ones, from 1 to infinity.
    """

    optimiser: str
    rate: float | None
    batch: int
    bites: int
    inputs: int
    updates: int
    ratio: float = 10.0

    def build(self, part: float = 1.0) -> Optimiser:
        """The optimiser, at a part of its rate.

        Raises:
            InputError: On an unknown name or a rate that is not positive.
        """
        if self.optimiser not in _OPTIMISERS:
            raise InputError("--optimiser", "a known optimiser", self.optimiser, nearest(self.optimiser, _OPTIMISERS))
        rate = _RATES[self.optimiser] if self.rate is None else self.rate
        if not (rate > 0 and math.isfinite(rate)):
            raise InputError("--rate", "a finite number above 0", rate)
        for option, value in (("--batch", self.batch), ("--updates", self.updates)):
            if value < 1:
                raise InputError(option, "a number of at least 1", value)
        if not self.ratio >= 1:
            raise InputError("--ratio", "a number of at least 1, or inf", self.ratio)
        return _OPTIMISERS[self.optimiser](part * rate)

    def budget(self, net: Network, task: Task) -> Budget:
        """The budget as work: so many updates of plain retraining."""
        each = forward_multiply_adds(net, task.train.inputs)
        return multiply_adds(3 * each * min(self.batch, len(task.train)) * self.updates)


def checked_names(names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Names of repairs, each once; by default all but those that are run on request only.

    Raises:
        InputError: On an unknown name, or none.
    """
    if names is None:
        return tuple(name for name in MEANINGS if name not in ON_REQUEST)
    if names == (ALL,):
        return tuple(MEANINGS)
    if not names:
        raise InputError("--repairs", "at least one repair", "none", nearest("", MEANINGS))
    for name in names:
        if name not in MEANINGS:
            raise InputError("--repairs", "a known repair", repr(name), nearest(name, MEANINGS))
    return tuple(dict.fromkeys(names))


def build_repairs(
    names: tuple[str, ...], net: Network, task: Task, settings: Settings
) -> tuple[dict[str, Repair], Sidecar | None]:
    """The repairs, ready to run; the sidecar is made now, from the intact network, if one is needed.

    Args:
        names: Of MEANINGS.
        net: The intact network.
        task: Its training split gives labelled examples to retraining, and unlabelled inputs to the refits.
        settings: How.

    Returns:
        Name -> flow, schedule or control, and the sidecar.
    """
    sidecar = None
    if any(name.startswith("refit") for name in names):
        sidecar = Sidecar.of(net, *unlabelled(net, task, SIDECAR_INPUTS))
    inputs, importance = task.train.inputs[: settings.inputs], None
    if any(name.startswith("sequential") for name in names):
        inputs, importance = unlabelled(net, task, settings.inputs)
    teacher, known = Teacher(net, inputs, importance), len(inputs)

    def retrain(share: float = 1.0) -> Retrain:
        """Retraining over a share of the budget."""
        return Retrain(task, settings.build(), settings.batch, horizon=max(1, round(share * settings.updates)))

    def made(name: str) -> Repair:
        bites = settings.bites
        if name in {"extra", "dropout", "faults"}:
            # What iterative repair has spent when its last bite comes.
            return Beforehand(_training(name, task, settings, bites), (bites - 1) / bites, retrain(1 / bites))
        if name.startswith("refit"):
            assert sidecar is not None
            if name == "refit":
                return Refit(sidecar)
            # Half the rate: from a good start large steps lead away first.
            return after(settle(Refit(sidecar)), replace(retrain(), optimiser=settings.build(0.5)))
        if name == "none":
            return leave
        if name == "sequential":
            return Refit(teacher)
        if name == "synthetic":
            assert net.inputs is not None
            return Refit(Teacher(net, dream(net.inputs, known, stream(0, "dream"), layout=net.port.layout)))
        if name in {"recover", "obs"}:
            # A walk that the budget cuts short is worth little: rather one with fewer inputs.
            number = 20 if name == "recover" else 1
            few = inputs[: affordable(net, inputs, settings.budget(net, task).amount, number)]
            return Recover(Teacher(net, few), steps=number, limit=None if name == "recover" else 1)
        if name.endswith("distil"):
            temperature = 4.0 if task.classes is not None else None
            batch, number = min(settings.batch, known), settings.updates
            distil = Distil(net, inputs, settings.build(), batch, temperature, horizon=number)
            return distil if name == "distil" else after(settle(Refit(teacher)), distil)
        if name == "ripen":
            return Ripen(Regrow(others=0.0), retrain(), over=max(1, settings.updates // 2))
        if name == "recycle":
            cycle = min(RECYCLED_EVERY, settings.updates)
            return repeat(chain(settle(retrain(cycle / settings.updates), updates(cycle)), Recycle(task, share=0.02)))
        if name == "iterative":
            return Schedule(retrain(1 / bites), bites)
        if name == "scratch":
            return after(Restart(), retrain())
        if name == "gradmax":
            return after(Regrow(others=1.0 / settings.ratio, incoming=GradMax(task)), retrain())
        if name.startswith("regrow"):
            return after(Regrow(others=0.0 if name == "regrow-new" else 1.0 / settings.ratio), retrain())
        return retrain()

    return {name: made(name) for name in names}, sidecar


def unlabelled(net: Network, task: Task, count: int) -> tuple[Tensor, Tensor | None]:
    """Inputs of the training split, and for a classifier how undecided it is about each: those count more."""
    few = task.train.take(min(count, len(task.train)))
    return few.inputs, None if task.classes is None else doubt(task.outputs(net, few))


def _training(name: str, task: Task, settings: Settings, bites: int) -> Flow:
    """Training of the undamaged network, as a control of repair in bites."""
    number = max(1, round(settings.updates * (bites - 1) / bites))
    if name == "extra":
        return Retrain(task, settings.build(), settings.batch, horizon=number)
    against = Dropout(0.5) if name == "dropout" else UnitFaults()
    return Harden(task, against, settings.build(), settings.batch, horizon=number)
