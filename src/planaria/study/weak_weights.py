"""Weak weights: what every single weight costs when it takes another value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from planaria.core.anatomy import Anatomy
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.measure.data import Data
from planaria.measure.task import Task
from planaria.sweep.ablate import ablate
from planaria.sweep.edges import Becomes, Flipped
from planaria.sweep.lesions import EachWeight

New = Becomes | Flipped

QUANTILES = (0.5, 0.9, 0.99, 0.999)
"""Shares of the weights below each of which a loss is told."""


@dataclass(frozen=True, eq=False)
class WeakWeights:
    """Score lost by each entry of one weight when it alone is changed.

    Attributes:
        weight: Its name.
        new: What each entry becomes.
        lost: Score lost, in the shape of the weight.
        changed: Share of the entries that change the score of any input.
        facts: Plan, audit, seconds, forward, as plain values.
    """

    weight: str
    new: New
    lost: Tensor = field(repr=False)
    changed: float
    facts: dict[str, Any] = field(repr=False)

    @property
    def key(self) -> str:
        """Name among the arrays of a run: "fc1.weight = 0", "fc1.weight bit 31"."""
        return f"{self.weight} {said(self.new)}"

    @property
    def costly(self) -> float:
        """Share of the entries that cost anything."""
        return float((self.lost > 0).double().mean())

    @property
    def by_unit(self) -> Tensor:
        """Most that one entry of each row (the incoming weights of a unit) costs."""
        return self.lost.reshape(len(self.lost), -1).amax(1) if self.lost.ndim else self.lost.reshape(1)

    def worst(self, count: int = 20) -> list[tuple[tuple[int, ...], float]]:
        """Entries that cost most, worst first: (index, score lost)."""
        flat = self.lost.flatten()
        found = flat.nan_to_num(nan=-torch.inf).sort(descending=True, stable=True).indices[:count]
        index = torch.stack(torch.unravel_index(found, self.lost.shape), 1) if self.lost.ndim else found[:, None]
        return [(tuple(place), float(flat[at])) for place, at in zip(index.tolist(), found.tolist(), strict=True)]

    def quantiles(self) -> dict[str, float]:
        """Losses that given shares of the entries do not exceed."""
        ranked = self.lost.double().flatten().sort().values
        last = len(ranked) - 1
        return {f"{share:g}": float(ranked[min(last, int(share * len(ranked)))]) for share in QUANTILES}

    def to_dict(self) -> dict[str, Any]:
        """A summary as plain values; never all entries."""
        worst = self.worst()
        return {
            "weight": self.weight,
            "shape": list(self.lost.shape),
            "new": said(self.new),
            "changed_share": self.changed,
            "costly_share": self.costly,
            "lost_max": worst[0][1] if worst else None,
            "quantiles": self.quantiles(),
            "worst": [{"index": list(index), "lost": lost} for index, lost in worst],
            "by_unit_lost_max": self.by_unit.tolist(),
            **self.facts,
        }


def said(new: New) -> str:
    """What an entry becomes, in words.

    Example:
        >>> said(Becomes(0.0)), said(Flipped(31))
        ('= 0', 'bit 31')
    """
    return f"= {new.value:g}" if isinstance(new, Becomes) else f"bit {new.bit}"


def weights_of(net: Network, layers: tuple[str, ...] | None) -> tuple[str, ...]:
    """Names of the weights that inputs are multiplied with, of some layers or of all.

    Raises:
        InputError: If there is none.
    """
    known = Anatomy.of(net).matrices
    names = tuple(name for name in known if layers is None or name.rpartition(".")[0] in layers)
    if not names:
        owners = dict.fromkeys(name.rpartition(".")[0] for name in known)
        raise InputError("weights", "layers with weights of their own", layers, f"Known: {', '.join(owners)}.")
    return names


def weigh(net: Network, name: str, new: New, task: Task, *, data: Data, workers: int = 1, seed: int = 0) -> WeakWeights:
    """Score lost by each entry of one weight, exactly.

    Args:
        net: The network.
        name: Of the weight.
        new: What an entry becomes.
        task: What it is for.
        data: Inputs and targets.
        workers: Processes that share the inputs.
        seed: Of the audit.

    Example:
        >>> from planaria.measure.datasets import task
        >>> from torch import nn
        >>> digits = task("digits")
        >>> net = Network.of(nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)), digits.test.inputs)
        >>> found = weigh(net, "2.weight", Becomes(0.0), digits, data=digits.test)
        >>> found.lost.shape, found.facts["audit"]["mismatches"]
        (torch.Size([10, 8]), 0)
    """
    effects = ablate(net, EachWeight(new, (name,)), task, data=data, audited=16, workers=workers, seed=seed)
    tally = effects.tallies[name]
    changed = (tally.rose + tally.fell > 0) if task.scorer.per_example is not None else tally.total != 0
    facts = {
        "plan": [vars(way) for way in effects.plan.ways],
        "audit": {**vars(effects.audit), "replaced": list(effects.audit.replaced)},
        "seconds": effects.seconds,
        "forward": effects.forward,
    }
    return WeakWeights(name, new, effects.lost[name].cpu() + 0.0, float(changed.double().mean()), facts)
