"""Symmetry: which permutations of a network's units leave its function unchanged.

Units of a hidden layer can change places if all weights that make them and all that read them go along. Which these
are is read off a trace: starting from what one product makes, the unit of each entry is carried forwards and backwards
through every operation, into weights and buffers and through everything that shares them, until nothing new is
learnt. Residual streams, recurrent states and tied weights need no rules of their own: an addition has its operands in
one order, and a weight used twice has one order.

Where an operation ties some units together (the channels of one group of a grouped convolution, the queries that share
a key), they become one larger unit, and the search starts again. What reaches the network's inputs or outputs, or an
operation without a rule, is no symmetry; and whatever is found is tried on numbers before it is believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from planaria.core.anatomy import Anatomy, flat
from planaria.core.autodiff import plain_kernels
from planaria.core.errors import AnatomyError, InputError, nearest
from planaria.core.graph import Call, Graph, trace
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.geometry.unit_rules import Stuck, axes_of, positions_of
from planaria.geometry.unit_search import Search, Seed, follow, seeds

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Largest change of the outputs, relative to the largest one, that counts as none; 0.02 for other types."""


@dataclass(frozen=True, eq=False)
class Place:
    """Where the units of a symmetry lie in one tensor.

    Attributes:
        name: Weight or buffer.
        axis: Axis along which they lie; None if they are no slices: positions then count the flattened tensor.
        positions: [units, entries of each] along that axis, the same order within every unit.
    """

    name: str
    axis: int | None
    positions: Tensor = field(repr=False)

    def units(self, tensor: Tensor) -> Tensor:
        """The tensor's entries by unit, [units, entries]."""
        lines = tensor.reshape(-1, 1)
        if self.axis is not None:
            lines = tensor.movedim(self.axis, 0).reshape(tensor.shape[self.axis], -1)
        where = self.positions.to(tensor.device)
        return lines[where.reshape(-1)].reshape(len(where), -1)

    def permuted(self, tensor: Tensor, order: Tensor) -> Tensor:
        """The tensor whose unit u is unit order[u] of this one."""
        axis, shape = (0, tensor.shape) if self.axis is None else (self.axis, None)
        lines = tensor.reshape(-1) if self.axis is None else tensor
        source = torch.arange(lines.shape[axis])
        source[self.positions.reshape(-1)] = self.positions[order.cpu()].reshape(-1)
        moved = lines.index_select(axis, source.to(tensor.device))
        return moved if shape is None else moved.reshape(shape)


@dataclass(frozen=True, eq=False)
class Symmetry:
    """Units that may change places with each other, all of them in any order.

    Attributes:
        name: Layer that makes the units first; for a residual stream, the first that adds to it.
        kind: A kind of unit of the anatomy ("neuron", "channel", "head", "recurrent", "embedding"); "stream" for
            channels of a residual stream, "block" for units that only move together.
        size: Number of units.
        places: Where they lie in each weight and buffer; a recurrent matrix has two places, its rows and columns.
        seen: Calls (`Call.tag`) of a pass on the CPU with attention written out, whose output is what weights make or
            read of the units, with axis and positions there.
    """

    name: str
    kind: str
    size: int
    places: tuple[Place, ...] = field(repr=False)
    seen: tuple[Place, ...] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Symmetries:
    """The permutation symmetries of a network.

    Attributes:
        found: In the order of execution. They commute: each has places of its own.
        left_out: Layer -> why permuting what it makes is none.
    """

    found: tuple[Symmetry, ...]
    left_out: Mapping[str, str]

    def __iter__(self) -> Iterator[Symmetry]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, name: str) -> Symmetry:
        for symmetry in self.found:
            if symmetry.name == name:
                return symmetry
        known = [symmetry.name for symmetry in self.found]
        reason = self.left_out.get(name)
        raise InputError(
            f"symmetry {name!r}",
            "a symmetry of this network",
            "none of that name" if reason is None else f"none, because {reason}",
            nearest(name, known) if known else "",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values: name, kind and size of each, and what was left out."""
        found = [{"name": s.name, "kind": s.kind, "size": s.size} for s in self.found]
        return {"found": found, "left_out": dict(self.left_out)}


_KNOWN: WeakKeyDictionary[nn.Module, Symmetries] = WeakKeyDictionary()


def symmetries(net: Network) -> Symmetries:
    """Permutations of units that leave a network's function unchanged, derived from a trace and tried on numbers.

    Neurons, feature maps with their normalisation statistics, attention heads, recurrent units with all their gates,
    and the channels of residual streams. Kept for all networks derived from `net`.

    Args:
        net: A network with example inputs.

    Raises:
        AnatomyError: If the network has no example inputs, or cannot run on them.

    Example:
        >>> net = Network.of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 4))
        >>> [(symmetry.name, symmetry.kind, symmetry.size) for symmetry in symmetries(net)]
        [('0', 'neuron', 3)]

    Not guaranteed: to be all. Numbers within an attention head, single queries that share a key and channels within
    one group of a grouped operation may have permutations of their own; the scales of ReLU units are a symmetry that
    is no permutation.

    Source: Hecht-Nielsen, 1990 (permutations of hidden units); Ainsworth, Hayase, Srinivasa, 2023 (through residual
    networks).
    """
    if net.module not in _KNOWN:
        anatomy = Anatomy.of(net)  # says what is wrong with a network that cannot be traced
        assert net.inputs is not None
        home = net.to("cpu").with_autocast(None)
        _KNOWN[net.module] = _tried(home, *_found(home, anatomy))
    return _KNOWN[net.module]


def permute(net: Network, orders: Mapping[str, Tensor]) -> Network:
    """The same function by units in another order: unit u becomes what unit order[u] was.

    Weights, buffers and plasticity go along. The result is run on the example inputs and compared.

    Args:
        net: A network with example inputs.
        orders: Name of a symmetry -> its units in their new order, [units]; symmetries left out stay.

    Raises:
        InputError: On an unknown name, or an order that is no permutation.
        AnatomyError: If the outputs on the example inputs change, relative to the largest one, by more than TOLERANCE.

    Example:
        >>> net = Network.of(nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)), torch.ones(1, 1))
        >>> swapped = permute(net, {"0": torch.tensor([1, 0])})
        >>> bool((swapped.weights["0.bias"] == net.weights["0.bias"].flip(0)).all())
        True
    """
    known = symmetries(net)
    for name, order in orders.items():
        size = known[name].size
        if order.shape != (size,) or not torch.equal(order.cpu().sort().values, torch.arange(size)):
            raise InputError(f"permute(orders[{name!r}])", f"a permutation of 0 to {size - 1}", f"{_words(order)}")
    return rearranged(net, known, orders)


def rearranged(net: Network, known: Symmetries, orders: Mapping[str, Tensor]) -> Network:
    """The network by units in another order of known symmetries, compared with itself; see `permute`."""
    moved = reordered(net, known, orders)
    apart, allowed = difference(net, moved), tolerance(net)
    if not apart <= allowed:
        raise AnatomyError(
            "permute(net)",
            "outputs that stay as they are",
            f"a change by {apart:.2g} of the largest one",
            "Give example inputs that take the usual way through the network, or use double precision.",
        )
    return moved


def reordered(net: Network, known: Symmetries, orders: Mapping[str, Tensor]) -> Network:
    """The network with its units in another order, not compared; see `permute`."""
    weights, buffers, plasticity = dict(net.weights), dict(net.buffers), dict(net.plasticity)
    for name, order in orders.items():
        for place in known[name].places:
            for tensors in (weights, buffers, plasticity):
                if place.name in tensors:
                    tensors[place.name] = place.permuted(tensors[place.name], order)
    return replace(net, weights=weights, buffers=buffers, plasticity=plasticity)


def tolerance(net: Network) -> float:
    """Change of a network's outputs that counts as none, by the type of its weights."""
    kinds = {weight.dtype for weight in net.weights.values() if weight.is_floating_point()}
    return max((TOLERANCE.get(kind, 0.02) for kind in kinds), default=1e-5)


def difference(net: Network, other: Network) -> float:
    """Largest difference of two networks' outputs on example inputs, with and without noise, over the largest output.

    NaN where both are not finite counts as equal, where one is alone as infinitely far.
    """
    assert net.inputs is not None
    tried, worst = [net.inputs], 0.0
    if net.inputs.is_floating_point():  # examples may all be zero, which proves little
        noise = torch.randn(net.inputs.shape, generator=stream(0, "symmetry"), dtype=torch.float64)
        if net.port.layout is not None:
            noise = noise * net.port.layout.real  # no token becomes another
        tried.append(net.inputs + noise.to(net.inputs))
    for inputs in tried:
        ours, theirs = flat(net.with_autocast(None)(inputs)), flat(other.with_autocast(None)(inputs))
        known = ours.isfinite()
        scale = float(ours[known].abs().max()) if bool(known.any()) else 0.0
        apart = (theirs - ours).abs().masked_fill(~known & ~theirs.isfinite(), 0.0)
        worst = max(worst, float(apart.nan_to_num(nan=float("inf")).max()) / (scale or 1.0))
    return worst


def _words(order: Tensor) -> str:
    return f"shape {list(order.shape)}" if order.numel() > 8 or order.ndim != 1 else f"{order.tolist()}"


# ------------------------------------------------------------------------------------------------------- search


def _found(net: Network, anatomy: Anatomy) -> tuple[list[Symmetry], dict[str, str]]:
    """Symmetries as the trace has them, and layer -> reason for what is none."""
    assert net.inputs is not None
    # Statistics are followed like weights; copies, since some modules write into theirs even in eval mode.
    stats = {name: buffer.clone() for name, buffer in net.buffers.items() if buffer.is_floating_point()}
    rest = {name: buffer for name, buffer in net.buffers.items() if name not in stats}
    with plain_kernels(attention=True):
        graph = trace(replace(net, weights={**net.weights, **stats}, buffers=rest), net.inputs)
    makers = {id(value): at for at, call in enumerate(graph.calls) for value in call.outputs if value is not None}
    starts = [(at, seed) for at, call in enumerate(graph.calls) for seed in seeds(call)]
    # What is read first: what is made may be parts of several units in a row, such as queries, keys and values.
    starts.sort(key=lambda pair: (pair[1].made, pair[0]))
    found: list[tuple[int, Symmetry]] = []
    failed: dict[tuple[str, bool], str] = {}
    covered: dict[int, list[Tensor]] = {}
    for _, seed in starts:
        known = covered.get(id(seed.value), ())
        if any(axes_of(units) & axes_of(seed.labels) for units in known) or (seed.layer, seed.made) in failed:
            continue
        try:
            search = follow(graph, makers, seed)
            first, symmetry = _symmetry(graph, search, seed, anatomy)
            _check_reach(net, graph, symmetry)
        except Stuck as stuck:
            failed[seed.layer, seed.made] = str(stuck)
            continue
        found.append((first, symmetry))
        for value, tracks in search.labels.values():
            covered.setdefault(id(value), []).extend(tracks)
    ordered = [symmetry for _, symmetry in sorted(found, key=lambda pair: pair[0])]
    for at, symmetry in enumerate(ordered):
        while any(symmetry.name == other.name for other in ordered[:at]):
            symmetry = ordered[at] = replace(symmetry, name=f"{symmetry.name}.units")
    names = {symmetry.name for symmetry in ordered}
    return ordered, {layer: why for (layer, made), why in failed.items() if made and layer not in names}


def _check_reach(net: Network, graph: Graph, symmetry: Symmetry) -> None:
    """Raise if other inputs may take these units another way: through weights that these examples do not reach."""
    unread = {name: set(weight.shape) for name, weight in net.weights.items() if not graph.reads[name]}
    if not unread or not any(_decides(call) for call in graph.calls):
        return
    for place in symmetry.places:
        tensor = {**net.weights, **net.buffers}[place.name]
        wide = {tensor.shape[place.axis]} if place.axis is not None else set(tensor.shape)
        for name, sizes in unread.items():
            if wide & sizes:
                raise Stuck(
                    f"data decide the way, and {name}, which the example inputs do not reach, may have its units"
                )


def _decides(call: Call) -> bool:
    """Whether a call lets the data decide what is computed: a number that leaves the tensors, a choice of entries."""
    leaves = bool(call.outputs) and not any(call.outputs)
    return (leaves or call.name in {"nonzero", "masked_select"}) and any(value.active for value in call.inputs)


def _tried(net: Network, found: list[Symmetry], left_out: dict[str, str]) -> Symmetries:
    """Those that leave the outputs alone when their units are put in a random order: all together, else one by one."""
    known = Symmetries(tuple(found), left_out)
    orders = {symmetry.name: _shuffled(symmetry) for symmetry in found}
    allowed = tolerance(net)
    if difference(net, reordered(net, known, orders)) <= allowed:
        return known
    kept, reasons = [], dict(left_out)
    for symmetry in found:
        apart = difference(net, reordered(net, known, {symmetry.name: orders[symmetry.name]}))
        if apart <= allowed:
            kept.append(symmetry)
        else:
            reasons[symmetry.name] = f"another order of its units changes the outputs by {apart:.1g} of the largest one"
    return Symmetries(tuple(kept), reasons)


def _shuffled(symmetry: Symmetry) -> Tensor:
    order = torch.randperm(symmetry.size, generator=stream(0, "symmetry", symmetry.name))
    return order.roll(1) if torch.equal(order, torch.arange(symmetry.size)) else order


def _symmetry(graph: Graph, search: Search, seed: Seed, anatomy: Anatomy) -> tuple[int, Symmetry]:
    """The call that makes the units first and the finished search; raises where units are not of one size."""
    places: list[Place] = []
    for value, tracks in search.labels.values():
        if value.weight is None or id(value) in search.made:
            continue
        for label in tracks:
            place = _place(value.weight, label, search.count)
            if place is None:
                raise Stuck(f"its units have different numbers of entries in {value.weight}")
            places.append(place)
    makers = [made for value, _ in search.labels.values() if (made := search.made.get(id(value))) is not None]
    firsts = [(at, one) for at in sorted(makers) for one in seeds(graph.calls[at]) if one.made]
    first, maker = firsts[0] if firsts else (0, seed)
    kind = maker.kind if search.count > int(seed.labels.max()) else "block"
    values = search.read + [(one.value, graph.calls[at].tag) for at, one in firsts]
    seen = {tag: _place(tag, search.labels[id(value)][1][0], search.count) for value, tag in values}
    where = tuple(place for place in seen.values() if place is not None and place.axis is not None)
    names = [place.name for place in places]
    if kind == "neuron" and len(set(names)) < len(names):  # a matrix that they both read and are read by
        kind = "recurrent"
    name, kind = _named(anatomy, maker.layer, kind, places)
    return first, Symmetry(name, kind, search.count, tuple(places), where)


def _place(name: str, label: Tensor, count: int) -> Place | None:
    """Where units lie, from the unit of each entry; None if some have more entries than others."""
    for axis in axes_of(label):
        lines = label.movedim(axis, -1).reshape(-1, label.shape[axis])
        if bool((lines == lines[:1]).all()):
            positions = positions_of(lines[0], count)
            return None if positions is None else Place(name, axis, positions)
    positions = positions_of(label.reshape(-1), count)
    return None if positions is None else Place(name, None, positions)


def _named(anatomy: Anatomy, layer: str, kind: str, places: list[Place]) -> tuple[str, str]:
    """Name and kind, from the groups of the anatomy that own the same entries."""
    count = len(places[0].positions) if places else 0
    known = {place.name: place for place in places}
    groups = []
    for group in anatomy.groups:
        owners = {name: owner for role in group.owners.values() for name, owner in role.items() if name in known}
        if group.kind != "tap" and group.count == count and any(_owns(known[n], o) for n, o in owners.items()):
            groups.append(group)
    kinds = [group.kind for group in groups]
    if "branch" in kinds:
        return layer, "stream"
    if not groups:
        return layer, kind
    first = next((group for group in groups if group.layer == layer), groups[0])
    return first.layer, first.kind


def _owns(place: Place, owner: Tensor) -> bool:
    """Whether the entries that an owner's units have are those of the place."""
    for axis in axes_of(owner):
        lines = owner.movedim(axis, -1).reshape(-1, owner.shape[axis])
        mine = positions_of(lines[0], len(place.positions))
        if bool((lines == lines[:1]).all()) and mine is not None:
            return axis == place.axis and mine.shape == place.positions.shape and torch.equal(mine, place.positions)
    return False
