"""The repairs by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from planaria.core.errors import InputError, nearest
from planaria.core.motion import Flow, after, settle
from planaria.core.network import Network
from planaria.measure.task import Task
from planaria.repair.refit import Refit, Sidecar, Teacher
from planaria.repair.regrow import Regrow
from planaria.repair.retrain import SGD, Adam, AdamW, Optimiser, Retrain
from planaria.study.rescue import Schedule, leave

MEANINGS = {
    "none": "control: nothing is done",
    "refit": "closed form from a sidecar stored before the damage; no data at repair time",
    "sequential": "closed form, layer by layer, from unlabelled inputs and the intact network",
    "retrain": "strategy 1: gradient descent on the surviving sub-network",
    "regrow": "strategy 2 (text of the paper): embryonic units, ten times as plastic as the rest",
    "regrow-new": "strategy 2 (caption of the paper): embryonic units, only these are trained",
    "iterative": "strategy 3: the lesion in equal bites, retraining after each",
    "refit+retrain": "refit from the sidecar, then strategy 1 with what is left of the budget",
}
SIDECAR_INPUTS = 10_000
_OPTIMISERS: Mapping[str, Callable[[float], Optimiser]] = {
    "adam": Adam,
    "adamw": AdamW,
    "sgd": SGD,
}
_RATES = {"adam": 1e-3, "adamw": 1e-3, "sgd": 0.05}


@dataclass(frozen=True)
class Settings:
    """How the repairs run.

    Attributes:
        optimiser: Name of the optimiser.
        rate: Learning rate; None for the optimiser's usual one.
        batch: Examples per update.
        bites: Damage events of the iterative schedule.
        inputs: Unlabelled inputs of the sequential refit.
    """

    optimiser: str
    rate: float | None
    batch: int
    bites: int
    inputs: int

    def build(self) -> Optimiser:
        """The optimiser.

        Raises:
            InputError: On an unknown name or a rate that is not positive.
        """
        if self.optimiser not in _OPTIMISERS:
            raise InputError("--optimiser", "a known optimiser", self.optimiser, nearest(self.optimiser, _OPTIMISERS))
        rate = _RATES[self.optimiser] if self.rate is None else self.rate
        if not (rate > 0 and math.isfinite(rate)):
            raise InputError("--rate", "a finite number above 0", rate)
        return _OPTIMISERS[self.optimiser](rate)


def checked_names(names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Names of repairs, each once; all of them by default.

    Raises:
        InputError: On an unknown name, or none.
    """
    if names is None:
        return tuple(MEANINGS)
    if not names:
        raise InputError("--repairs", "at least one repair", "none", nearest("", MEANINGS))
    for name in names:
        if name not in MEANINGS:
            raise InputError("--repairs", "a known repair", repr(name), nearest(name, MEANINGS))
    return tuple(dict.fromkeys(names))


def build_repairs(
    names: tuple[str, ...], net: Network, task: Task, settings: Settings
) -> tuple[dict[str, Flow | Schedule], Sidecar | None]:
    """The repairs, ready to run; the sidecar is made now, from the intact network, if one is needed.

    Args:
        names: Of MEANINGS.
        net: The intact network.
        task: Its training split gives labelled examples to retraining, and unlabelled inputs to the refits.
        settings: How.

    Returns:
        Name -> flow or schedule, and the sidecar.
    """
    retrain = Retrain(task, settings.build(), settings.batch)
    unlabelled = task.train.inputs
    sidecar = None
    if any(name.startswith("refit") for name in names):
        sidecar = Sidecar.of(net, unlabelled[:SIDECAR_INPUTS])
    made: dict[str, Flow | Schedule] = {}
    for name in names:
        if name == "none":
            made[name] = leave
        elif name == "refit" and sidecar is not None:
            made[name] = Refit(sidecar)
        elif name == "refit+retrain" and sidecar is not None:
            made[name] = after(settle(Refit(sidecar)), retrain)
        elif name == "sequential":
            made[name] = Refit(Teacher(net, unlabelled[: settings.inputs]))
        elif name == "retrain":
            made[name] = retrain
        elif name == "regrow":
            made[name] = after(Regrow(others=0.1), retrain)
        elif name == "regrow-new":
            made[name] = after(Regrow(others=0.0), retrain)
        elif name == "iterative":
            made[name] = Schedule(retrain, settings.bites)
    return made, sidecar
