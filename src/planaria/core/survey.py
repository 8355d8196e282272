"""Survey: find the units in a trace, layer by layer, and what silences each exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planaria.core.follow import ROLES, End, Finding, descend, keeps_zero
from planaria.core.graph import Call, Graph, Product, Value
from planaria.core.heads import find_heads, join, name_of
from planaria.core.network import Network
from planaria.core.tap import GAIN, OFFSET

OUTPUTS = "its outputs are the network's outputs"
HEADS = "its outputs are queries, keys or values: its units are the attention heads"
UNUSED = "its weights are not used on the example inputs"


def survey(graph: Graph, net: Network) -> tuple[list[Finding], dict[str, str]]:
    """Units of a recorded network.

    Returns:
        Findings in the order of execution, and layer -> reason for the layers whose outputs are no units.
    """
    unreached: dict[str, str] = {}
    heads = find_heads(graph)
    made: dict[str, Finding] = {}
    for at, call in enumerate(graph.calls):
        product = call.product
        if product is None:
            continue
        finding = _from_product(graph, at, product)
        if finding is None:
            unreached[_layer(product)] = "its units share weights"
            continue
        earlier = made.get(finding.layer)
        made[finding.layer] = finding if earlier is None else _merge(earlier, finding)
    for finding in made.values():
        if any(end.what == "attention" for end in finding.ends):
            for head in heads:
                join(graph, head, finding)
    found: dict[str, Finding] = {}
    for head in heads:
        _close(graph, head)
        if not (head.readers and head.exact_by):
            continue
        head.layer = name_of(head, [f.layer for f in made.values() if any(e.what == "attention" for e in f.ends)])
        while head.layer in found or head.layer in made:
            head.layer += ".heads"
        found[head.layer] = head
    for finding in made.values():
        reason = _close(graph, finding)
        if any(end.what == "attention" for end in finding.ends):
            unreached[finding.layer] = HEADS
        elif reason:
            unreached[finding.layer] = reason
        else:
            found[finding.layer] = finding
    for finding in _taps(graph):
        found[finding.layer] = finding
        unreached.pop(finding.layer, None)
    _name_the_rest(graph, net, found, unreached)
    for finding in found.values():
        for role in ROLES:
            owners = finding.owners[role]
            finding.owners[role] = {name: owner.reshape(net.weights[name].shape) for name, owner in owners.items()}
    return sorted(found.values(), key=lambda finding: finding.first), unreached


def _layer(product: Product) -> str:
    """Name of the layer a product's weight belongs to."""
    name = product.w.weight or ""
    return name.rpartition(".")[0] if name.endswith(".weight") else name


def _from_product(graph: Graph, at: int, product: Product) -> Finding | None:
    """Units made by one product, followed to where they are read."""
    columns = product.columns  # [groups, read, per channel, made]
    weight = product.w.weight
    assert weight is not None
    out = product.call.outputs[0]
    assert out is not None
    if product.convolution:
        labels = torch.arange(out.tensor.shape[1]).view(1, -1, *[1] * (out.tensor.ndim - 2))
        labels = labels.expand(out.tensor.shape)
        of_column = torch.arange(out.tensor.shape[1]).view(columns.shape[0], 1, 1, -1)
    else:
        # Stacked weights that repeat (an expanded matrix) make the same units again.
        first = columns[:, 0, 0, :]
        _, of_pair = first.unique(return_inverse=True)
        of_column = of_pair[:, None, None, :]
        labels = of_pair[:, None, :] if out.tensor.ndim == 3 and product.call.name != "linear" else of_pair[0]
        labels = labels.expand(out.tensor.shape)
    count = int(of_column.max()) + 1
    finding = Finding(_layer(product), "channel" if product.convolution else "neuron", count, first=at)
    finding.makers.add(at)
    owner = torch.full((product.w.size,), -1)
    owner[columns.reshape(-1)] = of_column.expand(columns.shape).reshape(-1)
    finding.owners["incoming"][weight] = owner
    if isinstance(product.b, Value) and not _own(finding, "shift", product.b, _at_shape(product, labels)):
        finding.quiet = False
    _climb(graph, finding, at, out, labels)
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
    owned = isinstance(scale, Value) and isinstance(shift, Value)
    finding.quiet = owned and _own(finding, "scale", scale, spread) and _own(finding, "shift", shift, spread)
    return out, labels


def _close(graph: Graph, finding: Finding) -> str:
    """Settle what silences a layer's units exactly; returns the reason if nothing does, else ""."""
    outgoing: dict[str, Tensor] = {}
    reads: dict[str, set[int]] = {}
    complete = bool(finding.ends)
    for end in finding.ends:
        owner = None if end.product is None or end.labels is None else _columns_read(end.product, end.labels)
        if owner is None or end.product is None or end.product.w.weight is None:
            complete = False
            continue
        name = end.product.w.weight
        earlier = outgoing.get(name)
        if earlier is not None:
            both = (earlier >= 0) & (owner >= 0)
            complete = complete and bool((earlier[both] == owner[both]).all())
            owner = torch.where(owner >= 0, owner, earlier)
        outgoing[name] = owner
        reads.setdefault(name, set()).add(end.at)
    # A weight that is also read elsewhere (tied, or called again) does more than read these units.
    complete = complete and all(graph.reads[name] <= at for name, at in reads.items())
    own = finding.owners["incoming"]
    shared = [name for name in own if name in graph.reads and _is_product_weight(graph, name)]
    if any(not graph.reads[name] <= finding.makers for name in shared):
        finding.owners.update(incoming={}, scale={}, shift={})
        finding.quiet = False
    finding.readers = tuple(reads)
    ends = {end.what for end in finding.ends}
    if "residual" in ends and finding.kind in {"neuron", "channel"}:
        finding.kind = "branch"
    quiet = finding.quiet and bool(finding.owners["incoming"] or finding.owners["scale"])
    finding.exact_by = {(True, True): "both", (True, False): "outgoing", (False, True): "incoming"}.get(
        (complete, quiet), ""
    )
    if complete:
        finding.owners["outgoing"] = outgoing
    if not ends:
        return "its activation is overwritten in place, or nothing reads it"
    if not _is_read(graph, finding):
        return OUTPUTS
    if finding.exact_by == "incoming" and not any(_is_units_end(graph, end) for end in finding.ends):
        return f"its activation goes into {', '.join(sorted(ends))}, for which there is no rule"
    if not finding.exact_by:
        others = sorted(ends - {"read"}) or ["a weight that is used elsewhere too"]
        return f"its activation goes through {', '.join(others)}, and zero weights do not make it zero"
    return ""


def _is_units_end(graph: Graph, end: End) -> bool:
    """Whether units may well end there: each is still one entry, not rearranged in a way that no rule follows."""
    if end.what == "read":
        return True
    call = graph.calls[end.at] if end.at < len(graph.calls) else None
    if call is None:
        return False
    # Recurrent cells add up their gates and take them apart: parts of a unit, not units.
    after = [graph.calls[at].name for value in call.outputs if value is not None for at in value.uses]
    if any(name.startswith("unsafe_") for name in after):
        return False
    return (
        end.what == "residual"
        or call.pointwise
        or call.pools
        or call.normalises is not None
        or call.name in {"max", "min"}
    )


def _is_read(graph: Graph, finding: Finding) -> bool:
    """Whether anything with weights comes after the units, on any way."""
    waiting = list({at for end in finding.ends for at in [end.at] if at < len(graph.calls)})
    seen: set[int] = set()
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        call = graph.calls[at]
        if any(value.sources for value in call.inputs):
            return True
        waiting.extend(use for value in call.outputs if value is not None for use in value.uses)
    return False


def _is_product_weight(graph: Graph, name: str) -> bool:
    return any(graph.calls[at].product is not None for at in graph.reads[name])


def _columns_read(product: Product, labels: Tensor) -> Tensor | None:
    """Unit that each entry of a product's weight reads, -1 for none; None if a column reads several units."""
    columns = product.columns
    groups, read = columns.shape[:2]
    if product.convolution:
        flat = labels.flatten(2)
        if not bool((flat == flat[:1, :, :1]).all()):
            return None
        units = flat[0, :, 0].reshape(groups, read)
    else:
        rows = labels.reshape(groups, -1, read) if groups > 1 else labels.reshape(1, -1, read)
        if not bool((rows == rows[:, :1]).all()):
            return None
        units = rows[:, 0]
    owner = torch.full((product.w.size,), -1)
    spread = units[:, :, None, None].expand(columns.shape)
    owner[columns.reshape(-1)] = spread.reshape(-1)
    if not bool((owner[columns] == spread).all()):
        return None
    return owner


def _merge(a: Finding, b: Finding) -> Finding:
    """A layer that is called twice: the same units again, silent only if every call's are; or further units."""
    pairs = [
        (a.owners[role][name], b.owners[role][name])
        for role in ROLES
        for name in a.owners[role].keys() & b.owners[role]
    ]
    if not any(bool(((one >= 0) & (two >= 0)).any()) for one, two in pairs):
        _renumber(b, a.count)
        a.count += b.count
    elif a.count != b.count or any(bool((one != two).any()) for one, two in pairs):
        a.quiet = False
    a.gates += b.gates
    a.ends += b.ends
    a.makers |= b.makers
    a.quiet = a.quiet and b.quiet
    for role in ROLES:
        for name, owner in b.owners[role].items():
            known = a.owners[role].get(name)
            a.owners[role][name] = owner if known is None else torch.where(owner >= 0, owner, known)
    a.count = max(a.count, b.count)
    return a


def _renumber(finding: Finding, by: int) -> None:
    """Count its units from `by` on."""
    for owners in finding.owners.values():
        for name, owner in owners.items():
            owners[name] = torch.where(owner >= 0, owner + by, owner)
    finding.gates = [(at, torch.where(labels >= 0, labels + by, labels)) for at, labels in finding.gates]
    for end in finding.ends:
        if end.labels is not None:
            end.labels = torch.where(end.labels >= 0, end.labels + by, end.labels)


def _taps(graph: Graph) -> list[Finding]:
    """Units of tapped modules."""
    taps: dict[str, Finding] = {}
    for at, call in enumerate(graph.calls):
        for value in call.inputs:
            if value.weight is None or not value.weight.endswith("." + OFFSET) or call.name != "add":
                continue
            layer, out = value.weight.rpartition(".")[0], call.outputs[0]
            assert out is not None and value.index is not None
            finding = taps.setdefault(layer, Finding(layer, "tap", value.tensor.numel(), first=at))
            units = torch.arange(finding.count)
            finding.owners["scale"][f"{layer}.{GAIN}"] = units
            finding.owners["shift"][value.weight] = units
            finding.gates.append((at, value.index.expand(out.tensor.shape)))
            finding.exact_by = "incoming"
    return list(taps.values())


def _name_the_rest(graph: Graph, net: Network, found: dict[str, Finding], unreached: dict[str, str]) -> None:
    """Name the layers with weights that no unit owns and no reason covers."""
    owned = {name for finding in found.values() for role in ROLES for name in finding.owners[role]}
    for name in net.weights:
        layer = name.rpartition(".")[0] or name
        if name in owned or layer in unreached or layer in found or name.endswith((GAIN, OFFSET)):
            continue
        calls: list[Any] = [graph.calls[at].name for at in sorted(graph.reads[name])]
        if not calls:
            unreached[layer] = UNUSED
        elif not any(call in {"native_layer_norm", "native_group_norm", "native_batch_norm"} for call in calls):
            unreached.setdefault(layer, f"its weights are used by {calls[0]}, for which there is no rule")
