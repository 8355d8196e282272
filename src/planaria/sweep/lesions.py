"""Lesions: what is wrong with the damaged versions of a network, and the ways to ask for many of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from planaria.core.anatomy import Anatomy, Unit
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.sweep.edges import Becomes, Flipped


@dataclass(frozen=True)
class EachUnit:
    """Every unit of some layers, silenced one at a time.

    Args:
        kinds: Kinds of unit; by default all but branches.
        layers: Layer names; by default all.
    """

    kinds: tuple[str, ...] | None = None
    layers: tuple[str, ...] | None = None


DELETED = Becomes(0.0)


@dataclass(frozen=True)
class EachWeight:
    """Every single weight of some layers, changed one at a time.

    Args:
        new: What a weight becomes: `Becomes(0.0)` deletes it, `Becomes(v)` is stuck, `Flipped(bit)` a bit flip.
        layers: Names of layers or weights; by default every weight that is multiplied with an input.
    """

    new: Becomes | Flipped = DELETED
    layers: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Nested:
    """Units silenced in given orders, and the score wanted after some numbers of them.

    Args:
        orders: Each a sequence of units, none twice.
        counts: Ascending numbers of silenced units.

    Raises:
        InputError: No orders, a unit twice, or counts that do not ascend or go beyond an order.
    """

    orders: tuple[tuple[Unit, ...], ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.orders or not self.counts:
            raise InputError("Nested", "at least one order and one count", "none")
        for order in self.orders:
            if len(set(order)) < len(order):
                raise InputError("Nested.orders", "every unit once in an order", "one twice")
        shortest = min(len(order) for order in self.orders)
        if list(self.counts) != sorted(set(self.counts)) or self.counts[0] < 0 or self.counts[-1] > shortest:
            raise InputError("Nested.counts", f"ascending numbers from 0 to {shortest}", self.counts)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Layers that lose units."""
        return tuple(dict.fromkeys(unit.layer for order in self.orders for unit in order))


What = EachUnit | EachWeight | Nested | Iterable[Network | Unit | Iterable[Unit]]


@dataclass(frozen=True, eq=False)
class Lesion:
    """What is wrong with one version of a network: either units that are silent, or weights that are others.

    Attributes:
        units: Layer -> numbers of silenced units.
        weights: Name -> damaged weight; weights left out are intact.
    """

    units: Mapping[str, tuple[int, ...]]
    weights: Mapping[str, Tensor]

    @staticmethod
    def of(lesion: Network | Unit | Iterable[Unit], net: Network) -> Lesion:
        """From a unit, units, or a damaged version of the network (what it shares with the intact one is found)."""
        if isinstance(lesion, Network):
            changed = {
                name: weight
                for name, weight in lesion.weights.items()
                if weight is not net.weights[name] and not torch.equal(weight, net.weights[name])
            }
            return Lesion({}, changed)
        units: dict[str, list[int]] = {}
        for unit in [lesion] if isinstance(lesion, Unit) else lesion:
            units.setdefault(unit.layer, []).append(unit.index)
        return Lesion({layer: tuple(sorted(set(numbers))) for layer, numbers in units.items()}, {})


@dataclass(frozen=True, eq=False)
class Selection:
    """Some units of one layer: layer, and their numbers."""

    layer: str
    units: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Job:
    """Lesions by key and place.

    Attributes:
        shapes: Key -> shape of its array of lesions.
        units: Key -> units, where a key is a layer whose units are silenced one at a time.
        weights: Key -> new values, where a key is a weight whose entries change one at a time.
        new: What those entries become.
        nested: Orders and counts, for the key "orders".
        lesions: For the key "lesions".
    """

    shapes: Mapping[str, tuple[int, ...]]
    units: Mapping[str, Selection] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    new: Becomes | Flipped | None = None
    nested: Nested | None = None
    lesions: tuple[Lesion, ...] = ()

    @staticmethod
    def of(what: What, net: Network) -> Job:
        """Lesions that are asked for, checked against the network.

        Raises:
            AnatomyError: An unknown layer, kind or unit.
            InputError: No lesions, a layer without weights, a network of another form.
        """
        if isinstance(what, EachUnit):
            groups = Anatomy.of(net).select(what.kinds, what.layers)
            units = {group.layer: Selection(group.layer, tuple(range(group.count))) for group in groups}
            return Job({layer: (len(one.units),) for layer, one in units.items()}, units=units)
        if isinstance(what, EachWeight):
            names = _weights(what.layers, net)
            new = {name: what.new.of(net.weights[name]) for name in names}
            return Job({name: tuple(net.weights[name].shape) for name in names}, weights=new, new=what.new)
        if isinstance(what, Nested):
            _check(Lesion.of({unit for order in what.orders for unit in order}, net).units, net)
            return Job({"orders": (len(what.orders), len(what.counts))}, nested=what)
        if isinstance(what, Network | Unit) or not isinstance(what, Iterable):
            raise InputError(
                "ablate(what)",
                "EachUnit(), EachWeight(), Nested(...), or lesions",
                type(what).__name__,
                "Put a single lesion into a list.",
            )
        lesions = tuple(_lesion(lesion, net, place) for place, lesion in enumerate(what))
        if not lesions:
            raise InputError("ablate(what)", "at least one lesion", "none")
        return Job({"lesions": (len(lesions),)}, lesions=lesions)

    def lesion(self, key: str, place: int, net: Network) -> Lesion:
        """One lesion, by its place in the flattened array of its key."""
        if key in self.units:
            return Lesion({key: (self.units[key].units[place],)}, {})
        if key in self.weights:
            hurt = net.weights[key].clone()
            at = tuple(int(index) for index in torch.unravel_index(torch.tensor(place), hurt.shape))
            hurt[at] = self.weights[key][at]
            return Lesion({}, {key: hurt})
        return (self._nested if self.nested is not None else self.lesions)[place]

    def of_key(self, key: str, net: Network) -> Sequence[Lesion]:
        """All lesions of a key, made when they are looked at."""
        return _OfKey(self, key, net)

    def various(self, key: str, net: Network) -> Sequence[Lesion]:
        """Of the lesions of a key that reach the same values, at least one."""
        every = self.of_key(key, net)
        return [every[0]] if key in self.weights and len(every) else every

    @cached_property
    def _nested(self) -> tuple[Lesion, ...]:
        assert self.nested is not None
        made: list[Lesion] = []
        for order in self.nested.orders:
            silent: dict[str, tuple[int, ...]] = {}
            before = 0
            for count in self.nested.counts:
                for unit in order[before:count]:
                    silent = {**silent, unit.layer: (*silent.get(unit.layer, ()), unit.index)}
                made.append(Lesion(silent, {}))
                before = count
        return tuple(made)

    def only(self, keys: Iterable[str]) -> Job:
        """The lesions of some keys."""
        keys = set(keys)
        return replace(
            self,
            shapes={key: shape for key, shape in self.shapes.items() if key in keys},
            units={key: units for key, units in self.units.items() if key in keys},
            weights={key: new for key, new in self.weights.items() if key in keys},
        )

    def some(self, places: Mapping[str, Sequence[int]]) -> Job:
        """Of some keys only the lesions at some places.

        Args:
            places: Key -> places; keys are layers whose units are silenced, or "lesions". Other keys keep all theirs.
        """
        units = {
            key: Selection(key, tuple(one.units[at] for at in places[key])) if key in places else one
            for key, one in self.units.items()
        }
        lesions = tuple(self.lesions[at] for at in places["lesions"]) if "lesions" in places else self.lesions
        shapes = {key: (len(places[key]),) if key in places else shape for key, shape in self.shapes.items()}
        return replace(self, shapes=shapes, units=units, lesions=lesions)

    @property
    def count(self) -> int:
        """Number of lesions."""
        return sum(math.prod(shape) for shape in self.shapes.values())


@dataclass(frozen=True, eq=False)
class _OfKey(Sequence[Lesion]):
    job: Job
    key: str
    net: Network

    def __len__(self) -> int:
        return math.prod(self.job.shapes[self.key])

    def __getitem__(self, place: Any) -> Any:
        return self.job.lesion(self.key, place, self.net)


def _weights(layers: tuple[str, ...] | None, net: Network) -> list[str]:
    known = list(Anatomy.of(net).matrices)
    if layers is None:
        if not known:
            raise InputError("EachWeight", "a network with weights that inputs are multiplied with", "none")
        return known
    found: list[str] = []
    for layer in layers:
        names = [name for name in net.weights if name == layer or name.rpartition(".")[0] == layer]
        if not names:
            raise InputError("EachWeight.layers", f"names among {', '.join(net.weights)}", repr(layer))
        matrices = [name for name in names if name in known]
        found += names if layer in names else matrices or names
    return list(dict.fromkeys(found))


def _lesion(lesion: Network | Unit | Iterable[Unit], net: Network, place: int) -> Lesion:
    where = f"ablate(lesion {place})"
    if isinstance(lesion, Network):
        lesion = lesion.to(net.device)
        wrong = _difference(lesion, net)
        if wrong:
            raise InputError(where, "a damaged version of the network", wrong)
        if any(not torch.equal(tensor, net.buffers[name]) for name, tensor in lesion.buffers.items()):
            raise InputError(where, "the intact network's buffers", "others", "Damage weights, not statistics.")
        return Lesion.of(lesion, net)
    made = Lesion.of(lesion, net)
    _check(made.units, net)
    return made


def _check(units: Mapping[str, Iterable[int]], net: Network) -> None:
    anatomy = Anatomy.of(net)
    counts = {group.layer: group.count for group in anatomy.groups}
    wrong = [Unit(layer, unit) for layer, some in units.items() for unit in some if unit >= counts.get(layer, 0)]
    anatomy.entries(wrong)  # raises with the reason


def _difference(lesion: Network, net: Network) -> str:
    """What keeps a network from being a version of another, "" if nothing does."""

    def form(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

    if form(lesion.weights) != form(net.weights) or form(lesion.buffers) != form(net.buffers):
        return "one with other weights or buffers"
    same = lesion.module is net.module or repr(lesion.module) == repr(net.module)
    return "" if same else "one of another architecture"
