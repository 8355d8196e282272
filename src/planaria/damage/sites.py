"""Sites: where a fault happens, and what its dose counts.

Every site draws one order of everything it could hit and takes as much of its beginning as the dose says. With the
same random stream, a smaller lesion is therefore always part of a larger one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from planaria.core.anatomy import Anatomy, Group, Slices, Unit
from planaria.core.errors import InputError
from planaria.core.graph import Watch, run, way
from planaria.core.network import Network
from planaria.core.trees import Entries

DOSES = ("fraction of units", "units", "fraction of entries", "entries")


@dataclass(frozen=True)
class Dose:
    """The axis of a damage: what its amount counts.

    Args:
        unit: "fraction of units", "units", "fraction of entries" or "entries".

    Raises:
        InputError: On another unit.

    Example:
        >>> Dose("fraction of units").count(0.5, of=7)
        4
    """

    unit: str = "fraction of units"

    def __post_init__(self) -> None:
        if self.unit not in DOSES:
            raise InputError("Dose.unit", f"one of {', '.join(DOSES)}", repr(self.unit))

    @property
    def relative(self) -> bool:
        """Whether the dose is a fraction."""
        return self.unit.startswith("fraction")

    def check(self, amount: float) -> float:
        """The amount, if it lies on this axis.

        Raises:
            InputError: If it is negative, NaN, above 1 for a fraction, or not whole for a count.
        """
        if isinstance(amount, bool) or not isinstance(amount, (int, float)):
            raise InputError("dose", f"a number ({self.unit})", repr(amount)[:40])
        if self.relative and not 0 <= amount <= 1:
            raise InputError("dose", f"a {self.unit} from 0 to 1", amount)
        if not self.relative and not (amount >= 0 and math.isfinite(amount) and amount == int(amount)):
            raise InputError("dose", f"a whole number of {self.unit}, at least 0", amount)
        return amount

    def count(self, amount: float, of: int) -> int:
        """How many of `of` things the amount means; halves are rounded up."""
        return math.floor(self.check(amount) * of + 0.5) if self.relative else min(int(self.check(amount)), of)


class Site(Protocol):
    """What a site must offer: the axis of its dose, and `select(net, amount, rng) -> Slices`."""

    @property
    def dose(self) -> Dose:
        """What the amount counts."""
        ...

    def select(self, net: Network, amount: float, rng: Generator, /) -> Slices:
        """Entries hit at this dose."""
        ...


@dataclass(frozen=True)
class RandomUnits:
    """Units drawn at random, without replacement, among those that are alive.

    A fraction refers to all units of the chosen layers, dead or alive; when fewer are alive, all of them are taken.

    Args:
        dose: "fraction of units" or "units".
        per_layer: Whether the dose is taken in every layer (the same fraction of each) or of all units together.
        kinds: Kinds of unit; by default all but branches.
        layers: Layer names; by default all.

    Raises:
        InputError: If the dose counts entries.

    Example:
        >>> RandomUnits(per_layer=True)
        RandomUnits(dose=Dose(unit='fraction of units'), per_layer=True, kinds=None, layers=None)
    """

    dose: Dose = Dose("fraction of units")
    per_layer: bool = False
    kinds: tuple[str, ...] | None = None
    layers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _counts("RandomUnits", self.dose, "units")
        _switch("RandomUnits.per_layer", self.per_layer)
        _words("RandomUnits.kinds", self.kinds)
        _words("RandomUnits.layers", self.layers)

    def units(self, net: Network, amount: float, rng: Generator) -> tuple[Unit, ...]:
        """The units hit at this dose, in the order of the draw.

        Raises:
            AnatomyError: If the network has no such units.
        """
        anatomy = Anatomy.of(net)
        groups = anatomy.select(self.kinds, self.layers)
        pools = [[group] for group in groups] if self.per_layer else [list(groups)]
        chosen: list[Unit] = []
        for pool in pools:
            number = self.dose.count(amount, sum(group.count for group in pool))
            living = anatomy.living(net, pool)
            order = torch.randperm(len(living), generator=rng).tolist()
            chosen += [living[place] for place in order[:number]]
        return tuple(chosen)

    def select(self, net: Network, amount: float, rng: Generator, /) -> Slices:
        """Entries of the drawn units."""
        return Anatomy.of(net).entries(self.units(net, amount, rng))


@dataclass(frozen=True)
class RankedUnits:
    """Units in a given order, the first ones first; a given lesion is this at dose 1.

    Args:
        ranking: Units, for example `rank(net)` or a recorded lesion.
        dose: "fraction of units" (of the ranking) or "units".
        per_layer: Whether the dose is taken in every layer or of the whole ranking.

    Raises:
        InputError: If a unit is listed twice, or the dose counts entries.

    Example:
        >>> RankedUnits((Unit("fc1", 3),))
        RankedUnits(ranking=(Unit(layer='fc1', index=3),), dose=Dose(unit='fraction of units'), per_layer=False)
    """

    ranking: tuple[Unit, ...]
    dose: Dose = Dose("fraction of units")
    per_layer: bool = False

    def __post_init__(self) -> None:
        _counts("RankedUnits", self.dose, "units")
        _switch("RankedUnits.per_layer", self.per_layer)
        if not (isinstance(self.ranking, tuple) and all(isinstance(unit, Unit) for unit in self.ranking)):
            raise InputError("RankedUnits.ranking", "a tuple of Unit(layer, index)", str(self.ranking)[:100])
        if len(set(self.ranking)) < len(self.ranking):
            twice = next(unit for unit in self.ranking if self.ranking.count(unit) > 1)
            raise InputError("RankedUnits.ranking", "every unit once", f"{twice} twice")

    def units(self, net: Network, amount: float, rng: Generator) -> tuple[Unit, ...]:
        """The units hit at this dose, in rank order."""
        del net, rng
        if not self.per_layer:
            return self.ranking[: self.dose.count(amount, len(self.ranking))]
        chosen: list[Unit] = []
        for layer in dict.fromkeys(unit.layer for unit in self.ranking):
            line = [unit for unit in self.ranking if unit.layer == layer]
            chosen += line[: self.dose.count(amount, len(line))]
        return tuple(chosen)

    def select(self, net: Network, amount: float, rng: Generator, /) -> Slices:
        """Entries of these units."""
        return Anatomy.of(net).entries(self.units(net, amount, rng))


@dataclass(frozen=True)
class RandomEntries:
    """Single weights (edges) drawn at random, without replacement, among those that are not pinned.

    Only matrices and kernels have edges; biases, normalisation weights and tables (embeddings) are never drawn. A
    fraction refers to all edges of the chosen layers, pinned or not.

    Args:
        dose: "fraction of entries" or "entries".
        layers: Layer names; by default all.

    Raises:
        InputError: If the dose counts units.

    Example:
        >>> RandomEntries()
        RandomEntries(dose=Dose(unit='fraction of entries'), layers=None)
    """

    dose: Dose = Dose("fraction of entries")
    layers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _counts("RandomEntries", self.dose, "entries")
        _words("RandomEntries.layers", self.layers)

    def select(self, net: Network, amount: float, rng: Generator, /) -> Slices:
        """The drawn entries.

        Raises:
            InputError: If no layer of that name has edges.
        """
        names = list(Anatomy.of(net).matrices)
        if self.layers is not None:
            names = [name for name in names if name in self.layers or name.rpartition(".")[0] in self.layers]
        for layer in self.layers or ():
            if not any(layer in {name, name.rpartition(".")[0]} for name in names):
                raise InputError("RandomEntries.layers", "layers with weight matrices", repr(layer))
        if not names:
            raise InputError("RandomEntries.layers", "layers with weight matrices", self.layers)
        free = torch.cat([(net.plasticity[name] != 0).flatten().cpu() for name in names])
        number = self.dose.count(amount, len(free))
        candidates = free.nonzero().flatten()
        order = torch.randperm(len(candidates), generator=rng)
        picked = torch.zeros(len(free), dtype=torch.bool)
        picked[candidates[order[:number]]] = True
        entries: Entries = {}
        at = 0
        for name in names:
            weight = net.weights[name]
            mine = picked[at : at + weight.numel()].view(weight.shape).to(weight.device)
            at += weight.numel()
            if bool(mine.any()):
                entries[name] = mine
        return Slices(incoming={}, scale={}, shift=entries, outgoing={})


PART = 32
"""Inputs per forward pass when activations are looked at."""


def rank(
    net: Network,
    kinds: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    *,
    inputs: Tensor | None = None,
) -> tuple[Unit, ...]:
    """Units by their size (see `sizes`) relative to the layer's mean, largest first.

    Args:
        net: Any network with example inputs.
        kinds: Kinds of unit; by default all but branches.
        layers: Layer names; by default all.
        inputs: Unlabelled inputs [examples, ...]; with them the order is that of a targeted attack.

    Raises:
        AnatomyError: If the network has no such units, or cannot run on the inputs.

    Source: magnitude criterion of Li et al., 2017 (Pruning filters for efficient ConvNets), on the outgoing side; with
        inputs, the utility of Dohare et al., 2024 (Loss of plasticity in deep continual learning), with a norm for
        the sum of absolute weights.

    Not guaranteed: that a large size means a large influence.
    """
    sized: list[tuple[float, Unit]] = []
    for layer, size in sizes(net, kinds, layers, inputs=inputs).items():
        relative = size / size.mean().clamp_min(1e-30)
        sized += [(-float(s), Unit(layer, index)) for index, s in enumerate(relative)]
    return tuple(unit for _, unit in sorted(sized, key=lambda pair: pair[0]))


def sizes(
    net: Network,
    kinds: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    *,
    inputs: Tensor | None = None,
) -> dict[str, Tensor]:
    """Size of every unit: how loudly it is heard, and with inputs, times how much it says.

    Without inputs: the Euclidean norm of the unit's outgoing entries, or of its incoming ones where its layer has none.
    With inputs: mean |activation| over inputs and positions, times the norm of the outgoing entries where its layer has
    any (the activation of a head, where an attention is written out, is its weights). Units that the inputs do not
    reach have size 0.

    Args:
        net: Any network with example inputs.
        kinds: Kinds of unit; by default all but branches.
        layers: Layer names; by default all.
        inputs: Unlabelled inputs [examples, ...].

    Returns:
        Layer -> sizes [units], double precision, on the CPU.

    Raises:
        AnatomyError: If the network has no such units, or cannot run on the inputs.

    Example:
        >>> net = Network.of(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)),
        ...                  torch.zeros(1, 2))
        >>> sizes(net, inputs=torch.ones(8, 2))["0"].shape
        torch.Size([3])
    """
    groups = Anatomy.of(net).select(kinds, layers)
    spoken = None if inputs is None else _spoken(net, groups, inputs)
    found: dict[str, Tensor] = {}
    for group in groups:
        square = torch.zeros(group.count + 1, dtype=torch.float64)
        for name, owner in (group.owners["outgoing"] or group.owners["incoming"]).items():
            flat = net.weights[name].double().square().flatten().cpu()
            square.index_add_(0, torch.where(owner < 0, group.count, owner).flatten().cpu(), flat)
        heard = square[:-1].sqrt()
        if spoken is None:
            found[group.layer] = heard
        else:
            said = spoken[group.layer]
            found[group.layer] = said * heard if group.owners["outgoing"] else said
    return found


def _spoken(net: Network, groups: Sequence[Group], inputs: Tensor) -> dict[str, Tensor]:
    """Layer -> mean |activation| of its units over the inputs, measured at the units' gates."""
    if not all(group.gates for group in groups):
        net = net.to("cpu")  # where it is, torch computes some of them by an operation that does not show them
    sums = {group.layer: torch.zeros(group.count + 1, dtype=torch.float64) for group in groups}
    counts = {layer: torch.zeros_like(total) for layer, total in sums.items()}
    known: tuple[int, tuple[str, ...]] | None = None
    gates: dict[str, list[tuple[str, Tensor]]] = {}

    def listen(tag: str, args: tuple[Any, ...], output: Any) -> None:
        del args
        for layer, labels in gates.get(tag, ()):
            said = output.double().abs().flatten().cpu()
            unit = torch.where(labels < 0, len(sums[layer]) - 1, labels).broadcast_to(output.shape).flatten()
            sums[layer].index_add_(0, unit, said)
            counts[layer].index_add_(0, unit, torch.ones_like(said))

    for part in inputs.to(net.device).split(PART):
        # Labels are as large as the activations they belong to, so a last, smaller part has labels of its own; and so
        # has one that takes another way through the network.
        if known is None or known != (len(part), way(net, part)):
            anatomy = Anatomy.of(net, part)  # first, because it says in words what these inputs lack
            known, gates = (len(part), way(net, part)), {}
            for group in anatomy.groups:
                for tag, labels in group.gates if group.layer in sums else ():
                    alike = bool((labels == labels[:1]).all())  # packed sequences have any number of rows
                    gates.setdefault(tag, []).append((group.layer, labels[:1] if alike else labels))
        run(net, part, Watch(listen))
    return {layer: total[:-1] / counts[layer][:-1].clamp_min(1) for layer, total in sums.items()}


def _switch(where: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InputError(where, "True or False", repr(value)[:40])


def _words(where: str, words: object) -> None:
    if words is not None and not (isinstance(words, tuple) and all(isinstance(word, str) for word in words)):
        raise InputError(where, "a tuple of names, or None", repr(words)[:100], 'For example ("fc1",).')


def _counts(owner: str, dose: Dose, what: str) -> None:
    if not isinstance(dose, Dose):
        raise InputError(f"{owner}.dose", f'a Dose("fraction of {what}")', repr(dose)[:100])
    if not dose.unit.endswith(what):
        raise InputError(f"{owner}.dose", f"a dose that counts {what}", repr(dose.unit))
