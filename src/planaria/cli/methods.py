"""The ways of training by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from planaria.core.errors import InputError, nearest
from planaria.repair.against import (
    B3,
    SAM,
    DamageRepair,
    Dropout,
    Plain,
    TargetedDropout,
    UnitFaults,
)
from planaria.repair.retrain import SGD, Adam, AdamW, Optimiser
from planaria.repair.training import Against
from planaria.study.trials import PLAIN

MEANINGS = {
    PLAIN: "control: as much training, against nothing",
    "dropout": "dropout of units",
    "targeted": "dropout of the least important units",
    "faults": "units fail while it learns, at a rate drawn anew for every group of examples",
    "sam": "sharpness-aware minimisation: the gradient at the worst point near by",
    "b3": "penalty on the first-order variance of the outputs under crashes",
    "damage-repair": "strategy 3 with units that return: again and again a share of the units dies",
}
_MADE: Mapping[str, Callable[[float], Against]] = {
    "dropout": Dropout,
    "targeted": lambda p: TargetedDropout(p=p),
    "faults": lambda rate: UnitFaults(high=rate),
    "sam": SAM,
    "b3": B3,
    "damage-repair": DamageRepair,
}
_USUAL: Mapping[str, Against] = {
    PLAIN: Plain(),
    "dropout": Dropout(),
    "targeted": TargetedDropout(),
    "faults": UnitFaults(),
    "sam": SAM(),
    "b3": B3(),
    "damage-repair": DamageRepair(),
}
_OPTIMISERS: Mapping[str, tuple[Callable[[float, float], Optimiser], float, float, float]] = {
    # name -> how it is made, usual rate, the same where data, and so updates, are few, usual weight decay
    "adamw": (AdamW, 1e-3, 5e-3, 0.1),
    "adam": (Adam, 1e-3, 5e-3, 0.0),
    "sgd": (lambda rate, decay: SGD(rate, decay=decay), 0.1, 0.1, 1e-4),
}


def build_methods(names: tuple[str, ...] | None) -> dict[str, Against]:
    """Name, or name:strength, -> what is trained against; the control is always there, and first.

    Raises:
        InputError: On an unknown name or a strength off its range.
    """
    if names is not None and not names:
        raise InputError("--methods", "at least one method", "none", nearest("", MEANINGS))
    found: dict[str, Against] = {PLAIN: Plain()}
    for text in MEANINGS if names is None else names:
        name, colon, strength = text.partition(":")
        if name not in MEANINGS:
            raise InputError("--methods", "a known method", repr(name), nearest(name, MEANINGS))
        if not colon:
            found[text] = _USUAL[name]
            continue
        try:
            found[text] = _MADE[name](float(strength))
        except (KeyError, ValueError) as error:
            came = str(error) if isinstance(error, InputError) else repr(text)
            raise InputError("--methods", "NAME or NAME:STRENGTH", came, "For example dropout:0.2.") from None
    return found


def meaning(name: str, against: Against) -> str:
    """What a method does, with its settings."""
    return f"{MEANINGS[name.partition(':')[0]]}; {against!r}"


def build_optimiser(name: str, rate: float | None, decay: float | None, *, large: bool) -> Optimiser:
    """The optimiser of every training.

    Args:
        name: adamw, adam or sgd.
        rate: Learning rate; None for the usual one.
        decay: Weight decay; None for the usual one.
        large: Whether data, and so updates, are many.

    Raises:
        InputError: On an unknown name, or a rate that is not positive.
    """
    if name not in _OPTIMISERS:
        raise InputError("--optimiser", "a known optimiser", name, nearest(name, _OPTIMISERS))
    make, usual, few, usual_decay = _OPTIMISERS[name]
    rate = (usual if large else few) if rate is None else rate
    if not (rate > 0 and math.isfinite(rate)):
        raise InputError("--rate", "a finite number above 0", rate)
    return make(rate, usual_decay if decay is None else decay)
