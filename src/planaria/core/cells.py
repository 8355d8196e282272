"""Cells: units that several products make together, such as gated neurons and the units of recurrent layers.

What lies between the products whose columns meet (`meetings.py`) and the places where the unit is read is the unit's
own; the unit is silent when all that is read of it is zero, at every step if there are several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from planaria.core.follow import Finding, descend, give
from planaria.core.graph import Call, Graph, Value, call_is_active
from planaria.core.heads import name_of
from planaria.core.meetings import Meetings, lean, loops_of, readers_of


def find_cells(graph: Graph, made: Mapping[str, Finding]) -> list[tuple[Finding, tuple[str, ...]]]:
    """Units that several products, or several paths from one product, make together.

    Args:
        graph: The trace.
        made: Layer -> the units that it makes by itself.

    Returns:
        Units with all that belongs to them, and the layers that make them.
    """
    loops = loops_of(graph)
    meetings = Meetings(graph, made, loops)
    cells = []
    for layers in meetings.families():
        cell = _cell(meetings, layers)
        if cell is not None:
            looping = any(made[layer].owners["incoming"].keys() & names for layer in layers for names in loops)
            cell.kind = "recurrent" if looping else cell.kind
            cells.append((cell, layers))
    _name(cells)
    return cells


def idle(graph: Graph, name: str) -> set[int]:
    """Calls that read a weight in vain: products with zeros, such as a recurrence's first state, and what follows."""
    found: set[int] = set()
    vain: set[int] = set()
    for at in sorted(graph.reads[name]):
        call = graph.calls[at]
        x = call.multiplied
        through = {id(value) for value in call.arguments if name in value.sources}
        if through <= vain or (x is not None and not (x.active or x.sources) and not bool(x.tensor.any())):
            found.add(at)
            vain |= {id(out) for out in call.outputs if out is not None and not out.active}
    return found


# -------------------------------------------------------------------------------------------------- what units own


def _cell(meetings: Meetings, layers: tuple[str, ...]) -> Finding | None:
    """The units that some layers make together; None if their columns meet in no regular way."""
    graph, parts = meetings.graph, [meetings.made[layer] for layer in layers]
    columns = torch.cat([meetings.first[part.layer] + torch.arange(part.count) for part in parts])
    firsts, units = meetings.one[columns].unique(return_inverse=True)
    unit_of = torch.full_like(meetings.one, -1)
    unit_of[columns] = units
    region = [
        (trail, unit_of[lean(trail.labels)].expand(trail.labels.shape))
        for trail in meetings.trails.values()
        if trail.layers & set(layers)
    ]
    kinds = {part.kind for part in parts}
    kind = "channel" if "channel" in kinds else "neuron" if "neuron" in kinds else parts[0].kind
    cell = Finding(layers[0], kind, len(firsts), first=min(part.first for part in parts))
    cell.makers = {at for part in parts for at in part.makers}
    alone = len(layers) == 1 and len(firsts) == len(columns)
    for part in parts:
        of_part = torch.cat([unit_of[meetings.first[part.layer] :][: part.count], torch.tensor([-1])])
        for role, owners in part.owners.items():
            for name, owner in owners.items():
                # What several products make has no shift that would be its value.
                give(cell, "incoming" if role == "shift" and not alone else role, name, of_part[owner])
    tops: dict[int, Tensor] = {}
    labels_of = {id(trail.value): labels for trail, labels in region}
    calls: set[int] = set(cell.makers)
    for trail, labels in region:
        value = trail.value
        outside = [at for at in readers_of(graph, value) if at not in meetings.inside]
        calls |= set(value.uses) & meetings.inside
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
    owned = {name for role in ("incoming", "scale", "shift") for name in cell.owners[role]}
    reading = {at for name in owned for at in graph.reads[name]}
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
