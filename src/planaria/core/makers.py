"""Makers: the units that one product, or one table of embeddings, makes, and what is their own on the way up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from planaria.core.follow import ROLES, Finding, descend, give, keeps_zero, thin
from planaria.core.graph import Call, Graph, Product, Value
from planaria.core.tap import GAIN, OFFSET


def find_made(graph: Graph, shapes: Mapping[str, torch.Size]) -> dict[str, Finding]:
    """Layer -> the units that its product or its table of embeddings makes."""
    made: dict[str, Finding] = {}
    known: dict[object, tuple[Tensor, Tensor]] = {}
    for at, call in enumerate(graph.calls):
        product, table = call.product, call.lookup
        weight = table if product is None else product.w
        if weight is not None and at not in graph.reads[weight.weight or ""]:
            continue  # the outputs do not depend on it
        if product is not None:
            key = layout(product)
            if key not in known:
                known[key] = _columns_made(product, shapes)
            finding = _from_product(graph, at, product, *known[key])
        elif table is not None:
            finding = _from_lookup(graph, at, call, table)
        else:
            continue
        earlier = made.get(finding.layer)
        if earlier is None:
            made[finding.layer] = finding
        elif "embedding" not in {earlier.kind, finding.kind} or earlier.kind == finding.kind:
            made[finding.layer] = _merge(earlier, finding)
        else:  # a table that is a product's weight too: its columns are the units, its rows are outputs
            made[finding.layer] = finding if finding.kind == "embedding" else earlier
    return made


def _layer(name: str) -> str:
    """Name of the layer that a product's or a table's weight belongs to."""
    return name.rpartition(".")[0] if name.endswith(".weight") else name


def _from_product(graph: Graph, at: int, product: Product, of_column: Tensor, owner: Tensor) -> Finding:
    """Units made by one product, followed to where they are read; for the rest see `_columns_made`."""
    weight, out = product.w.weight, product.call.outputs[0]
    assert weight is not None and out is not None
    if product.convolution:
        labels = torch.arange(out.tensor.shape[1]).view(1, -1, *[1] * (out.tensor.ndim - 2))
    else:
        of_pair = of_column[:, 0, 0, :]
        labels = of_pair[:, None, :] if out.tensor.ndim == 3 and product.call.name != "linear" else of_pair[0]
    labels = labels.expand(out.tensor.shape)
    kind = "channel" if product.convolution else "neuron"
    finding = Finding(_layer(weight), kind, int(of_column.max()) + 1, first=at)
    finding.makers.add(at)
    finding.made[at] = labels
    finding.owners["incoming"][weight] = owner
    if isinstance(product.b, Value) and not _own(finding, "shift", product.b, _at_shape(product, labels)):
        finding.quiet = False
    _climb(graph, finding, at, out, labels)
    return finding


def _columns_made(product: Product, shapes: Mapping[str, torch.Size]) -> tuple[Tensor, Tensor]:
    """The unit of each column [groups, 1, 1, made], and of each entry of the weight."""
    columns = product.columns  # [groups, read, per channel, made]
    if product.convolution:
        of_column = torch.arange(columns.shape[0] * columns.shape[3]).view(columns.shape[0], 1, 1, -1)
    else:
        # Stacked weights that repeat (an expanded matrix) make the same units again.
        _, of_pair = columns[:, 0, 0, :].unique(return_inverse=True)
        of_column = of_pair[:, None, None, :]
    owner = torch.full((product.w.size,), -1)
    units = of_column.expand(columns.shape)
    for axis in range(columns.ndim):  # an expanded weight has each entry once in memory, and once is enough
        if columns.stride(axis) == 0:
            columns, units = columns.narrow(axis, 0, 1), units.narrow(axis, 0, 1)
    owner[columns.reshape(-1)] = units.reshape(-1)
    return of_column, thin(owner.view(shapes[product.w.weight or ""]))


def _from_lookup(graph: Graph, at: int, call: Call, table: Value) -> Finding:
    """Units of an embedding: its columns."""
    out = call.outputs[0]
    assert table.weight is not None and table.index is not None and out is not None
    width = table.tensor.shape[1]
    units = torch.arange(width)
    finding = Finding(_layer(table.weight), "embedding", width, first=at)
    owner = units.expand(table.tensor.shape)
    if not table.index.is_contiguous() or table.tensor.numel() != table.size:
        owner = torch.full((table.size,), -1).scatter(0, table.index.reshape(-1), owner.reshape(-1))
    finding.owners["incoming"][table.weight] = owner
    labels = units.expand(out.tensor.shape)
    finding.makers.add(at)
    finding.made[at] = labels
    finding.gates.append((at, labels))
    finding.ends = descend(graph, out, labels)
    return finding


def _at_shape(product: Product, labels: Tensor) -> Tensor:
    """Labels as a bias is laid out: one per channel for convolutions."""
    return labels[0].flatten(1)[:, 0] if product.convolution else labels


def _own(finding: Finding, role: str, value: Value, labels: Tensor) -> bool:
    """Give the entries of a broadcast weight to units; False if an entry would belong to several."""
    if value.weight is None or value.index is None:
        return bool((value.tensor == 0).all()) and not value.active
    index, units = torch.broadcast_tensors(value.index, labels)
    owner = torch.full((value.size,), -1)
    owner[index.reshape(-1)] = units.reshape(-1)
    if not bool((owner[index] == units).all()):
        return False
    finding.owners[role][value.weight] = owner
    return True


def _climb(graph: Graph, finding: Finding, at: int, value: Value, labels: Tensor) -> None:
    """Follow a unit's value through what acts on it alone, up to its activation; then to where that is read."""
    gate = (at, labels)
    while len(value.uses) == 1 and not graph.is_output(value):
        call = graph.calls[value.uses[0]]
        step = _step(finding, call, value, labels)
        if step is None:
            break
        at, (value, labels) = value.uses[0], step
        finding.makers.add(at)
        if not call.rearranges:
            gate = (at, labels)
    finding.gates.append(gate)
    finding.ends.extend(descend(graph, value, labels))


def _step(finding: Finding, call: Call, value: Value, labels: Tensor) -> tuple[Value, Tensor] | None:
    """One operation further up, or None where the unit's own part ends."""
    out = call.outputs[0]
    if out is None or call.overwritten:
        return None
    if call.rearranges and len(call.outputs) == 1 and call.inputs == [value]:
        carried = call.carry({id(value): labels})[0]
        return None if carried.numel() != labels.numel() else (out, carried)
    if call.normalises is not None and call.args[0] is value:
        return _normalise(finding, call, out, labels)
    others = [other for other in call.inputs if other is not value]
    if not call.pointwise or out.tensor.shape != labels.shape or any(other.active for other in others):
        return None
    weights = [other for other in others if other.sources]
    if len(weights) == 1 and len(others) == 1 and call.name in {"add", "mul"} and weights[0].weight is not None:
        role = "shift" if call.name == "add" else "scale"
        before = dict(finding.owners["shift"])
        if weights[0].weight.endswith((GAIN, OFFSET)):
            return None
        if _own(finding, role, weights[0], labels):
            if call.name == "add":  # an earlier bias is now an ordinary incoming weight
                finding.owners["incoming"].update(before)
                finding.owners["shift"] = {weights[0].weight: finding.owners["shift"][weights[0].weight]}
            return out, labels
    finding.quiet = finding.quiet and keeps_zero(call, value)
    return out, labels


def _normalise(finding: Finding, call: Call, out: Value, labels: Tensor) -> tuple[Value, Tensor] | None:
    """Through batch, layer or group normalisation: the unit's value is then scale * normalised + shift."""
    if call.name == "native_layer_norm":
        scale, shift = call.args[2], call.args[3]
        spread = labels
    else:
        scale, shift = call.args[1:3]
        spread = labels[0].flatten(1) if labels.ndim > 2 else labels
        if labels.ndim > 2:
            if not bool((spread == spread[:, :1]).all()):
                return None
            spread = spread[:, 0]
    if call.normalises:
        finding.owners["incoming"].update(finding.owners["shift"])
    else:  # its statistics run over other units too: what is read by it must not be touched
        finding.owners["incoming"], finding.owners["scale"] = {}, {}
    finding.owners["shift"] = {}
    finding.quiet = isinstance(scale, Value) and _own(finding, "scale", scale, spread)
    finding.quiet = finding.quiet and (shift is None or _own(finding, "shift", shift, spread))
    return out, labels


def layout(product: Product) -> object:
    """Same for products that read a weight in the same arrangement."""
    index = product.w.index
    assert index is not None
    return product.w.weight, product.call.name, index.data_ptr(), index.shape, index.stride()


def _merge(a: Finding, b: Finding) -> Finding:
    """A layer that is called twice: the same units again, silent only if every call's are; or further units."""
    pairs = [
        (a.owners[role][name], b.owners[role][name])
        for role in ROLES
        for name in a.owners[role].keys() & b.owners[role]
    ]
    if not any(one is two or bool(((one >= 0) & (two >= 0)).any()) for one, two in pairs):
        _renumber(b, a.count)
        a.count += b.count
    elif a.count != b.count or any(one is not two and bool((one != two).any()) for one, two in pairs):
        a.quiet = False
    a.gates += b.gates
    a.ends += b.ends
    a.makers |= b.makers
    a.made |= b.made
    a.quiet = a.quiet and b.quiet
    for role in ROLES:
        for name, owner in b.owners[role].items():
            if a.owners[role].get(name) is not owner:
                give(a, role, name, owner)
    a.count = max(a.count, b.count)
    return a


def _renumber(finding: Finding, by: int) -> None:
    """Count its units from `by` on."""
    for owners in finding.owners.values():
        for name, owner in owners.items():
            owners[name] = torch.where(owner >= 0, owner + by, owner)
    finding.gates = [(at, torch.where(labels >= 0, labels + by, labels)) for at, labels in finding.gates]
    finding.made = {at: torch.where(labels >= 0, labels + by, labels) for at, labels in finding.made.items()}
    for end in finding.ends:
        if end.labels is not None:
            end.labels = torch.where(end.labels >= 0, end.labels + by, end.labels)
