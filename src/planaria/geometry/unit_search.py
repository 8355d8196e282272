"""Search: follow units from one value of a trace to all that has the same units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from planaria.core.graph import Call, Graph, Value
from planaria.geometry.unit_rules import PRODUCTS, Stuck, Tied, axes_of, implied, positions_of, reads, united


@dataclass(eq=False)
class Search:
    """What is known of one symmetry: value id -> the value, and the unit of each entry (-1 = none or not known yet).

    A value may have units along two of its axes, a recurrent matrix for one: two tracks. `made` names the calls that
    make values; `read` are values whose units are read by weights, with the tag of the call that makes each.
    """

    count: int
    made: Mapping[int, int]
    labels: dict[int, tuple[Value, list[Tensor]]] = field(default_factory=dict)
    read: list[tuple[Value, str]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Seed:
    """Where a search starts: what a weight reads or makes, with the unit of each entry."""

    layer: str
    kind: str
    made: bool
    value: Value
    labels: Tensor


def seeds(call: Call) -> Iterator[Seed]:
    """The activation that a product with a weight reads, and what it makes; what a table of embeddings gives."""
    out = call.outputs[0] if call.outputs else None
    if out is None or not out.active:
        return
    if call.lookup is not None and call.lookup.weight is not None:
        yield Seed(_layer(call.lookup.weight), "embedding", True, out, _numbered(out, out.tensor.ndim - 1))
        return
    if call.name != "convolution" and call.name not in PRODUCTS:
        return
    operands = call.args[:2] if call.name == "convolution" else [call.args[at] for at in PRODUCTS[call.name][:2]]
    weights = [v for v in operands if isinstance(v, Value) and not v.active and v.sources]
    read = [v for v in operands if isinstance(v, Value) and v.active]
    if len(weights) == len(read) == 1:
        kind = "channel" if call.name == "convolution" else "neuron"
        layer = _layer(min(weights[0].sources))
        for value, made in ((read[0], False), (out, True)):
            axis = 1 if call.name == "convolution" else value.tensor.ndim - 1
            if value.tensor.shape[axis] > 1:
                stacks = made and call.name in {"bmm", "baddbmm"}  # each matrix makes units of its own
                yield Seed(layer, kind, made, value, _numbered(value, axis, stacks))


def _layer(weight: str) -> str:
    return weight.removesuffix(".weight")


def _numbered(value: Value, axis: int, stacks: bool = False) -> Tensor:
    """Every place along an axis as a unit, in every matrix of a stack again."""
    shape = [1] * value.tensor.ndim
    shape[axis] = value.tensor.shape[axis]
    labels = torch.arange(shape[axis]).view(shape)
    if stacks:
        labels = labels + torch.arange(value.tensor.shape[0]).view(-1, *[1] * (len(shape) - 1)) * shape[axis]
    return labels.expand(value.tensor.shape)


def follow(graph: Graph, makers: Mapping[int, int], seed: Seed) -> Search:
    """Follow labels everywhere they go; units that are tied together become one, and it starts again."""
    labels = seed.labels
    while True:
        search = Search(int(labels.max()) + 1, makers)
        if search.count < 2:
            raise Stuck("its units only move together")
        try:
            _spread(graph, search, seed.value, labels)
        except Tied as tied:
            labels = tied.units[labels]
            continue
        return search


def _spread(graph: Graph, search: Search, out: Value, labels: Tensor) -> None:
    waiting = [(out, labels)]
    stuck: Stuck | None = None  # raised last: units that turn out to be tied may not be stuck together
    while waiting:
        value, given = waiting.pop()
        label = _learn(search, value, given)
        if label is None:
            continue
        try:
            for near in _around(graph, search, value):
                call = graph.calls[near]
                if near != search.made.get(id(value)) and reads(call, value, label):
                    search.read.append((value, graph.calls[search.made[id(value)]].tag))
                for other, theirs in implied(call, value, label, search.count):
                    if other is not value and bool((theirs >= 0).any()):
                        waiting.append((other, theirs))
        except Stuck as why:
            stuck = stuck or why
    if stuck is not None:
        raise stuck
    for value, tracks in search.labels.values():
        constant = not value.active and not value.sources
        if constant and not all(_uniform(value.tensor, label, search.count) for label in tracks):
            raise Stuck("a constant tells its units apart")


def _around(graph: Graph, search: Search, value: Value) -> list[int]:
    """The calls that read or make a labelled value; none for constants."""
    if graph.is_output(value):
        raise Stuck("its units are the network's outputs")
    at = search.made.get(id(value))
    if at is None and value.active:
        raise Stuck("its units are the network's inputs")
    if not value.tensor.numel():
        raise Stuck("no example input comes this way")
    if not value.active and not value.sources:
        return []
    around = []
    for near in dict.fromkeys([*value.uses, *([] if at is None else [at])]):
        call = graph.calls[near]
        if any(value is one for one in (*call.arguments, *call.outputs)):
            around.append(near)
        changed = call.outputs[len(call.outputs) - len(call.overwritten) :]
        if any(new in graph.calls[use].arguments for new in changed if new is not None for use in new.uses):
            raise Stuck("its units are overwritten in place")
    return around


def _learn(search: Search, value: Value, label: Tensor) -> Tensor | None:
    """Add to what is known of a value; the track as it is now, or None if nothing is new."""
    _, tracks = search.labels.setdefault(id(value), (value, []))
    axes = axes_of(label)
    for place, known in enumerate(tracks):
        if not value.active and not (axes <= axes_of(known) or axes_of(known) <= axes):
            continue  # units along another axis
        both = (known >= 0) & (label >= 0) & (known != label)
        if bool(both.any()):
            pairs = torch.stack([known[both], label[both]], 1).unique(dim=0)
            raise Tied(united(search.count, pairs), "")
        if not bool(((known < 0) & (label >= 0)).any()):
            return None
        tracks[place] = torch.where(known >= 0, known, label)
        return tracks[place]
    tracks.append(label)
    return label


def _uniform(constant: Tensor, label: Tensor, count: int) -> bool:
    """Whether a constant has the same entries in every unit."""
    label, constant = label.reshape(-1), constant.reshape(-1)
    lines = positions_of(label, count)
    if lines is None:
        return False
    rows = constant[lines]
    return bool(((rows == rows[:1]) | (rows.isnan() & rows[:1].isnan())).all())
