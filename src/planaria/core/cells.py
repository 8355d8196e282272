"""Cells: units that several products make together, such as gated neurons and the units of recurrent layers.

Labels flow forwards from every product. Where two activations are multiplied, or added within one recurrent loop,
the columns whose labels meet are parts of one unit: its gate and its value, or all the gates of an LSTM unit. What
lies between those products and the places where the unit is read is the unit's own; it is silent when all that is
read of it is zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planaria.core.follow import Finding, carried, descend, give
from planaria.core.graph import Call, Graph, Value, call_is_active
from planaria.core.heads import name_of
from planaria.core.tap import GAIN, OFFSET

UNKNOWN = -2
"""Label of entries that depend on the inputs in a way that is not followed; -1 is that of constants."""


def find_cells(graph: Graph, made: Mapping[str, Finding]) -> list[tuple[Finding, tuple[str, ...]]]:
    """Units that several products, or several paths from one product, make together.

    Args:
        graph: The trace.
        made: Layer -> the units that it makes by itself.

    Returns:
        Units with all that belongs to them, and the layers that make them.
    """
    loops = _loops(graph)
    flow = _Flow(graph, made, loops)
    cells = []
    for layers in flow.families():
        cell = _cell(flow, layers)
        if cell is not None:
            looping = any(made[layer].owners["incoming"].keys() & names for layer in layers for names in loops)
            cell.kind = "recurrent" if looping else cell.kind
            cells.append((cell, layers))
    _name(cells)
    return cells


def idle(graph: Graph, name: str) -> set[int]:
    """Calls that read a weight in vain: products with zeros, such as a recurrence's first state, and what follows."""
    found, vain = set(), set()
    for at in sorted(graph.reads[name]):
        call = graph.calls[at]
        x = call.multiplied
        through = {id(value) for value in call.arguments if name in value.sources}
        if through <= vain or (x is not None and not (x.active or x.sources) and not bool(x.tensor.any())):
            found.add(at)
            vain |= {id(out) for out in call.outputs if out is not None and not out.active}
    return found


# ------------------------------------------------------------------------------------------------------------ loops


def _loops(graph: Graph) -> list[frozenset[str]]:
    """Sets of weights that make the units of one recurrent loop: what a weight reads again and helped to make."""
    again = {name for name, calls in graph.reads.items() if len(calls) > 1}
    behind: dict[int, frozenset[str]] = {}
    reading: dict[str, list[frozenset[str]]] = {}
    for call in graph.calls:
        product = call.product
        if product is not None:
            name = product.w.weight or ""
            names = frozenset([name])
            if name in again:
                reading.setdefault(name, []).append(behind.get(id(product.x), frozenset()))
        elif call.rearranges or call.pointwise or call.normalises or call.name == "glu":
            names = frozenset[str]().union(*(behind.get(id(v), v.sources) for v in call.arguments))
        else:
            continue
        behind.update({id(out): names for out in call.outputs if out is not None})
    steps = {name: frozenset[str]().union(*sets) & reading.keys() for name, sets in reading.items()}
    return [names for name, sets in reading.items() for names in sets if names & _around(name, steps)]


def _around(name: str, steps: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Weights on a way from `name` back to itself."""

    def behind(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = steps.get(waiting.pop(), frozenset()) - seen
            seen |= new
            waiting.extend(new)
        return seen

    return frozenset(other for other in behind(name) if name in behind(other))


# ------------------------------------------------------------------------------------------------- where labels meet


@dataclass(eq=False)
class _Trail:
    """A labelled value: the column of each of its entries, the layers of those, and the calls that made it."""

    value: Value
    labels: Tensor
    layers: frozenset[str]
    origins: tuple[int, ...]


class _Flow:
    """Labels of everything that products make, and which columns belong together.

    A label is the number of a column among those of all layers: `first[layer]` + its number in the layer.
    """

    def __init__(self, graph: Graph, made: Mapping[str, Finding], loops: Iterable[frozenset[str]]) -> None:
        self.graph, self.made = graph, made
        self.first: dict[str, int] = {}
        self.trails: dict[int, _Trail] = {}
        self.inside: set[int] = set()  # calls within units
        count = 0
        for layer, finding in made.items():
            self.first[layer], count = count, count + finding.count
        self.one = torch.arange(count + 2)  # column -> the first of those that make one unit with it
        self.one[-2:] = torch.tensor([UNKNOWN, -1])
        self._family = {layer: layer for layer in made}
        self._tied: set[str] = set()  # layers whose columns may be added to each other
        self._met: set[str] = set()  # layers of which columns have met
        for names in loops:
            self._tie([layer for layer, finding in made.items() if finding.owners["incoming"].keys() & names])
        making = {at: finding for finding in made.values() for at in finding.made}
        for at, call in enumerate(graph.calls):
            finding, out = making.get(at), call.outputs[0] if call.outputs else None
            if finding is None:
                self._pass(at, call)
            elif out is not None:
                labels = finding.made[at] + self.first[finding.layer]
                self.trails[id(out)] = _Trail(out, labels, frozenset([finding.layer]), (at,))

    def families(self) -> list[tuple[str, ...]]:
        """Layers that make units together."""
        found: dict[str, list[str]] = {}
        for layer in self.made:
            if layer in self._tied:
                found.setdefault(self._root(layer), []).append(layer)
        return [tuple(layers) for layers in found.values() if self._met & set(layers)]

    def _root(self, layer: str) -> str:
        while self._family[layer] != layer:
            layer = self._family[layer]
        return layer

    def _tie(self, layers: Iterable[str]) -> None:
        layers = list(layers)
        self._tied |= set(layers)
        for layer in layers:
            self._family[self._root(layer)] = self._root(layers[0])

    def _pass(self, at: int, call: Call) -> None:
        """Carry labels over a call that works on each unit by itself."""
        known = [self.trails[id(v)] for v in dict.fromkeys(call.arguments) if id(v) in self.trails]
        results = call.outputs[: len(call.outputs) - len(call.overwritten)]
        changed = [value for value in call.outputs[len(results) :] if value is not None]
        if any((value.weight or "").endswith((GAIN, OFFSET)) for value in call.arguments):
            return  # a tap makes units of its own
        if not known or any(_reads(self.graph, v) or self.graph.is_output(v) for v in changed):
            return  # what shares memory with a unit's value is read after it was changed in place
        layers = frozenset[str]().union(*(trail.layers for trail in known))
        if call.rearranges:
            labels = {id(v): torch.tensor(UNKNOWN).expand(v.tensor.shape) for v in call.arguments if v.active}
            labels |= {id(trail.value): trail.labels for trail in known}
            origins = tuple(dict.fromkeys(origin for trail in known for origin in trail.origins))
            for value, label in zip(results, carried(call, labels), strict=True):
                if value is not None and bool((label >= 0).any()):
                    self.trails[id(value)] = _Trail(value, label, layers, origins)
        else:
            out = results[0] if results else None
            joined = None if out is None else self._joined(at, call, out, known)
            if joined is None or out is None:
                return
            self.trails[id(out)] = _Trail(out, joined, layers, (at,))
        self.inside.add(at)

    def _joined(self, at: int, call: Call, out: Value, known: Sequence[_Trail]) -> Tensor | None:
        """Labels of what a call other than a rearrangement makes; None if it mixes units, or units with others."""
        first = known[0]
        if call.name == "glu":
            halves = first.labels.chunk(2, call.args[1] if len(call.args) > 1 else -1)
            return halves[0] if self._meet(first.layers, *halves) else None
        if call.normalises and call.args[0] is first.value:
            return first.labels if _per_channel(first.labels) else None
        if not call.pointwise or call.product is not None:
            return None
        others = [v for v in dict.fromkeys(call.arguments) if v.active and id(v) not in self.trails]
        scales = call.name == "mul" or (call.name == "where" and others == [call.args[0]])
        if others and not scales:
            return None
        labels = first.labels.expand(out.tensor.shape)
        for trail in known[1:]:
            more = trail.labels.expand(out.tensor.shape)
            layers = first.layers | trail.layers
            alone = any(
                _reads(self.graph, t.value) == [at] and not self.graph.is_output(t.value) for t in (first, trail)
            )
            together = len({self._root(layer) for layer in layers}) == 1 and layers <= self._tied
            # Where both sides are read elsewhere too, each is a unit of its own.
            if not (together or (alone and call.name == "mul") or self._same(labels, more)):
                return None
            if not self._meet(layers, labels, more):
                return None
            if bool((_lean(labels) < 0).any()) or bool((_lean(more) < 0).any()):
                lost = ((labels == UNKNOWN) | (more == UNKNOWN)) & (call.name != "mul")
                labels = torch.where(lost, UNKNOWN, torch.maximum(labels, more))
        return labels

    def _same(self, one: Tensor, other: Tensor) -> bool:
        one, other = _leaner(one, other)
        return bool((self.one[one] == self.one[other]).all())

    def _meet(self, layers: Iterable[str], one: Tensor, other: Tensor) -> bool:
        """Make one unit of the columns that meet at every place; False if a column meets several others."""
        one, other = _leaner(one, other)
        both = (one >= 0) & (other >= 0)
        together = (one[both] * len(self.one) + other[both]).unique()
        pairs = torch.stack([together // len(self.one), together % len(self.one)])
        if any(len(side.unique()) != len(side) for side in pairs):
            return False
        self._tie(layers)
        self._met |= set(layers)
        if bool((self.one[pairs[0]] == self.one[pairs[1]]).all()):
            return True
        one_of: list[int] = self.one.tolist()
        for pair in pairs.T.tolist():
            a, b = (_first(one_of, column) for column in pair)
            one_of[max(a, b)] = min(a, b)
        self.one = torch.tensor(one_of)
        while not torch.equal(self.one[self.one], self.one):
            self.one = self.one[self.one]
        return True


def _first(one_of: Sequence[int], column: int) -> int:
    while one_of[column] != column:
        column = one_of[column]
    return column


def _reads(graph: Graph, value: Value) -> list[int]:
    """Calls that read a value, those left out that only change the memory it was in."""
    return [at for at in dict.fromkeys(value.uses) if any(value is other for other in graph.calls[at].arguments)]


def _lean(labels: Tensor) -> Tensor:
    """Labels without the axes along which one entry is repeated in memory."""
    for axis in range(labels.ndim):
        if labels.stride(axis) == 0:
            labels = labels.narrow(axis, 0, min(1, labels.shape[axis]))
    return labels


def _leaner(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two labellings of one value, broadcast to each other but no further."""
    first, second = torch.broadcast_tensors(_lean(one), _lean(other))
    return first, second


def _per_channel(labels: Tensor) -> bool:
    """Whether all positions of a channel, along axis 1, have one label."""
    flat = labels[:1].flatten(2) if labels.ndim > 2 else labels[:1, :, None]
    return bool((flat == flat[..., :1]).all()) and bool((labels == labels[:1]).all())


# -------------------------------------------------------------------------------------------------- what units own


def _cell(flow: _Flow, layers: tuple[str, ...]) -> Finding | None:
    """The units that some layers make together; None if their columns meet in no regular way."""
    graph, parts = flow.graph, [flow.made[layer] for layer in layers]
    columns = torch.cat([flow.first[part.layer] + torch.arange(part.count) for part in parts])
    firsts, units = flow.one[columns].unique(return_inverse=True)
    unit_of = torch.full_like(flow.one, -1)
    unit_of[columns] = units
    region = [
        (trail, unit_of[_lean(trail.labels)].expand(trail.labels.shape))
        for trail in flow.trails.values()
        if trail.layers & set(layers)
    ]
    kinds = {part.kind for part in parts}
    kind = "channel" if "channel" in kinds else "neuron" if "neuron" in kinds else parts[0].kind
    cell = Finding(layers[0], kind, len(firsts), first=min(part.first for part in parts))
    cell.makers = {at for part in parts for at in part.makers}
    alone = len(layers) == 1 and len(firsts) == len(columns)
    for part in parts:
        of_part = torch.cat([unit_of[flow.first[part.layer] :][: part.count], torch.tensor([-1])])
        for role, owners in part.owners.items():
            for name, owner in owners.items():
                # What several products make has no shift that would be its value.
                give(cell, "incoming" if role == "shift" and not alone else role, name, of_part[owner])
    tops: dict[int, Tensor] = {}
    labels_of = {id(trail.value): labels for trail, labels in region}
    calls: set[int] = set(cell.makers)
    for trail, labels in region:
        value = trail.value
        outside = [at for at in _reads(graph, value) if at not in flow.inside]
        calls |= set(value.uses) & flow.inside
        if outside or graph.is_output(value):
            for at in trail.origins:
                out = graph.calls[at].outputs[0]
                if out is not None and id(out) in labels_of:
                    tops[at] = labels_of[id(out)]
            cell.ends.extend(descend(graph, value, labels, outside))
    if not tops or not all(_distinct(labels) for labels in tops.values()):
        return None
    for at in sorted(calls):
        _own_operands(cell, graph.calls[at], labels_of)
    cell.gates = sorted(tops.items())
    # A first state is multiplied by the same weights; what comes of that is within the units too.
    reading = {at for part in parts for name in part.owners["incoming"] for at in graph.reads[name]}
    cell.makers |= {at for at in reading if at in calls or not call_is_active(graph.calls[at])}
    cell.quiet = _silent(graph, cell, sorted(calls))
    return cell


def _distinct(labels: Tensor) -> bool:
    """Whether every place of an example and position is another unit's."""
    varying = [a for a in range(labels.ndim) if not bool((labels == labels.narrow(a, 0, 1)).all())]
    places = 1
    for axis in varying:
        places *= labels.shape[axis]
    return places == 1 or len(labels.unique()) == places


def _own_operands(cell: Finding, call: Call, labels_of: Mapping[int, Tensor]) -> None:
    """Weights that a call within the units adds to them or multiplies them by."""
    out = call.outputs[0]
    labels = None if out is None else labels_of.get(id(out))
    if labels is None or call.product is not None or call.rearranges:
        return
    for value in call.arguments:
        if value.active or value.weight is None or value.index is None:
            continue
        if call.normalises:
            index, units = value.index, labels[0].flatten(1)[:, 0] if labels.ndim > 2 else labels[0]
        else:
            index, units = torch.broadcast_tensors(value.index, labels)
        owner = torch.full((value.size,), -1)
        owner[index.reshape(-1)] = units.reshape(-1)
        if bool((owner[index] == units).all()) and not any(value.weight in owners for owners in cell.owners.values()):
            scales = call.name == "mul" or (call.normalises is not None and value is call.args[1])
            give(cell, "scale" if scales else "incoming", value.weight, owner)


def _silent(graph: Graph, cell: Finding, calls: Sequence[int]) -> bool:
    """Whether what is read of the units is zero when everything that they own is; by running their calls again."""
    owned: dict[str, Tensor] = {}
    for role in ("incoming", "scale", "shift"):
        for name, owner in cell.owners[role].items():
            owned[name] = owned.get(name, torch.tensor(False)) | (owner.reshape(-1) >= 0)
    makers = {id(out): at for at, call in enumerate(graph.calls) for out in call.outputs if out is not None}
    new: dict[int, Tensor] = {}

    def tensor(value: Value) -> Tensor:
        if id(value) not in new and not value.active and value.sources & owned.keys():
            if id(value) in makers:
                again(graph.calls[makers[id(value)]])
            elif value.weight is not None:
                new[id(value)] = value.tensor.masked_fill(owned[value.weight].view(value.tensor.shape), 0)
        return new.get(id(value), value.tensor)

    def again(call: Call) -> None:
        results = call.evaluate({id(value): tensor(value) for value in call.arguments})
        results = results if isinstance(results, (tuple, list)) else [results]
        new.update({id(out): result for out, result in zip(call.outputs, results, strict=False) if out is not None})

    for at in calls:
        again(graph.calls[at])
    for at, labels in cell.gates:
        out = graph.calls[at].outputs[0]
        if out is None or bool(((tensor(out) != 0) & (labels >= 0)).any()):
            return False
    return True


# ------------------------------------------------------------------------------------------------------------ names


def _name(cells: Sequence[tuple[Finding, tuple[str, ...]]]) -> None:
    """Name units by what the names of their weights have in common; where several have the same, by their ends too."""
    stems = []
    for cell, layers in cells:
        word = "recurrent" if cell.kind == "recurrent" else "gated"
        stems.append(layers[0] if len(layers) == 1 else name_of(layers, word))
    for (cell, layers), stem in zip(cells, stems, strict=True):
        cell.layer = stem
        if stems.count(stem) > 1 and len(layers) > 1:
            cell.layer = f"{stem}.{_end(layers) or layers[-1].rpartition('.')[2]}"


def _end(layers: Sequence[str]) -> str:
    """The last words that layers have in common: "l0_reverse" of "weight_ih_l0_reverse" and "weight_hh_l0_reverse"."""
    words = [layer.rpartition(".")[2].split("_")[::-1] for layer in layers]
    shared: list[str] = []
    for place in zip(*words, strict=False):
        if len(set(place)) > 1:
            break
        shared.append(place[0])
    return "_".join(shared[::-1])
