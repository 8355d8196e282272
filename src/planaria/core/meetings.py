"""Meetings: where the activations of several products come together in one unit.

Labels go forwards from every product. Where two activations are multiplied, or added within one recurrent loop, the
columns whose labels meet are parts of one unit: a gate and the value that it gates, or all the gates of an LSTM unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planaria.core.follow import Finding, carried
from planaria.core.graph import Call, Graph, Value
from planaria.core.tap import GAIN, OFFSET

UNKNOWN = -2
"""Label of entries that depend on the inputs in a way that is not followed; -1 is that of constants."""


def loops_of(graph: Graph) -> list[frozenset[str]]:
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


@dataclass(eq=False)
class Trail:
    """A labelled value: the column of each of its entries, the layers of those, and the calls that made it."""

    value: Value
    labels: Tensor
    layers: frozenset[str]
    origins: tuple[int, ...]


class Meetings:
    """Labels of everything that products make, and which columns belong together.

    A label is the number of a column among those of all layers: `first[layer]` + its number in the layer.
    """

    def __init__(self, graph: Graph, made: Mapping[str, Finding], loops: Iterable[frozenset[str]]) -> None:
        self.graph, self.made = graph, made
        self.first: dict[str, int] = {}
        self.trails: dict[int, Trail] = {}
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
            maker, out = making.get(at), call.outputs[0] if call.outputs else None
            if maker is None:
                self._pass(at, call)
            elif out is not None:
                labels = maker.made[at] + self.first[maker.layer]
                self.trails[id(out)] = Trail(out, labels, frozenset([maker.layer]), (at,))

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
        if not known or any(readers_of(self.graph, v) or self.graph.is_output(v) for v in changed):
            return  # what shares memory with a unit's value is read after it was changed in place
        layers = frozenset[str]().union(*(trail.layers for trail in known))
        if call.rearranges:
            labels = {id(v): torch.tensor(UNKNOWN).expand(v.tensor.shape) for v in call.arguments if v.active}
            labels |= {id(trail.value): trail.labels for trail in known}
            origins = tuple(dict.fromkeys(origin for trail in known for origin in trail.origins))
            for value, label in zip(results, carried(call, labels), strict=True):
                if value is not None and bool((label >= 0).any()):
                    self.trails[id(value)] = Trail(value, label, layers, origins)
        else:
            out = results[0] if results else None
            joined = None if out is None else self._joined(at, call, out, known)
            if joined is None or out is None:
                return
            self.trails[id(out)] = Trail(out, joined, layers, (at,))
        self.inside.add(at)

    def _joined(self, at: int, call: Call, out: Value, known: Sequence[Trail]) -> Tensor | None:
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
                readers_of(self.graph, t.value) == [at] and not self.graph.is_output(t.value) for t in (first, trail)
            )
            together = len({self._root(layer) for layer in layers}) == 1 and layers <= self._tied
            # Where both sides are read elsewhere too, each is a unit of its own.
            if not (together or (alone and call.name == "mul") or self._same(labels, more)):
                return None
            if not self._meet(layers, labels, more):
                return None
            if bool((lean(labels) < 0).any()) or bool((lean(more) < 0).any()):
                lost = ((labels == UNKNOWN) | (more == UNKNOWN)) & (call.name != "mul")
                labels = torch.where(lost, UNKNOWN, torch.maximum(labels, more))
        return labels

    def _same(self, one: Tensor, other: Tensor) -> bool:
        one, other = _leaner(one, other)
        return bool((self.one[one] == self.one[other]).all())

    def _meet(self, layers: Iterable[str], one: Tensor, other: Tensor) -> bool:
        """Make one unit of the columns that meet at every place; False if a column meets several, or one of its own."""
        one, other = _leaner(one, other)
        both = (one >= 0) & (other >= 0)
        together = (one[both] * len(self.one) + other[both]).unique()
        pairs = torch.stack([together // len(self.one), together % len(self.one)])
        if any(len(side.unique()) != len(side) for side in pairs):
            return False
        merged = self._merged(pairs)
        if all(len(merged[side].unique()) < len(self.one[side].unique()) for side in pairs):
            return False  # places that were different units on both sides would be one
        self.one = merged
        self._tie(layers)
        self._met |= set(layers)
        return True

    def _merged(self, pairs: Tensor) -> Tensor:
        """Column -> the first of those that make one unit with it, when these pairs do."""
        if bool((self.one[pairs[0]] == self.one[pairs[1]]).all()):
            return self.one
        one_of: list[int] = self.one.tolist()
        for pair in pairs.T.tolist():
            a, b = (_first(one_of, column) for column in pair)
            one_of[max(a, b)] = min(a, b)
        merged = torch.tensor(one_of)
        while not torch.equal(merged[merged], merged):
            merged = merged[merged]
        return merged


def _first(one_of: Sequence[int], column: int) -> int:
    while one_of[column] != column:
        column = one_of[column]
    return column


def readers_of(graph: Graph, value: Value) -> list[int]:
    """Calls that read a value, those left out that only change the memory it was in."""
    return [at for at in dict.fromkeys(value.uses) if any(value is other for other in graph.calls[at].arguments)]


def lean(labels: Tensor) -> Tensor:
    """Labels without the axes along which one entry is repeated in memory."""
    for axis in range(labels.ndim):
        if labels.stride(axis) == 0:
            labels = labels.narrow(axis, 0, min(1, labels.shape[axis]))
    return labels


def _leaner(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two labellings of one value, broadcast to each other but no further."""
    first, second = torch.broadcast_tensors(lean(one), lean(other))
    return first, second


def _per_channel(labels: Tensor) -> bool:
    """Whether all positions of a channel, along axis 1, have one label."""
    flat = labels[:1].flatten(2) if labels.ndim > 2 else labels[:1, :, None]
    return bool((flat == flat[..., :1]).all()) and bool((labels == labels[:1]).all())
