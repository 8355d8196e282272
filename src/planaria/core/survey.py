"""Survey: find the units in a trace, layer by layer, and what silences each exactly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from planaria.core.cells import find_cells, idle
from planaria.core.follow import ROLES, End, Finding, descend, give, keeps_zero
from planaria.core.graph import Call, Graph, Product, Value, call_is_active
from planaria.core.heads import find_heads, join, name_of
from planaria.core.network import Network
from planaria.core.tap import GAIN, OFFSET

OUTPUTS = "its outputs are the network's outputs"
HEADS = "its outputs are queries, keys or values: its units are the attention heads"
UNUSED = "its weights are not used on the example inputs"
PARTS = "its outputs are parts of the units of "
NORMAL = "a normalisation: it rescales the units of other layers"
FIXED = "what is computed from it is the same for every input (positions, first states, scaled weights)"
BESIDE = "it scales, shifts or stands beside the activations of other layers"
TIED = "its weights are used elsewhere in the network too (tied weights)"

_WORDS = {
    "native_layer_norm": "a layer normalisation",
    "_fused_rms_norm": "a root-mean-square normalisation",
    "native_group_norm": "a group normalisation",
    "_softmax": "a softmax",
    "_log_softmax": "a softmax",
    "_safe_softmax": "a softmax",
    "residual": "an addition to other activations",
    "output": "the network's outputs",
    "add": "an addition",
    "sub": "a subtraction",
    "copy": "an assignment into another tensor",
    "mm": "a product with its weight on the left",
    "bmm": "a product of two activations",
    "attention": "an attention",
    "pow": "a power",
}
"""What users call an operation of torch's."""


def needless(reason: str) -> bool:
    """Whether a layer that has no units for this reason needs no tap, because others stand for it."""
    return reason in {OUTPUTS, HEADS, UNUSED, NORMAL, FIXED, BESIDE} or reason.startswith(PARTS)


def survey(graph: Graph, net: Network) -> tuple[list[Finding], dict[str, str]]:
    """Units of a recorded network.

    Returns:
        Findings in the order of execution, and layer -> reason for the layers whose outputs are no units.
    """
    unreached: dict[str, str] = {}
    made = _made(graph)
    found: dict[str, Finding] = {}
    for cell, layers in find_cells(graph, made):
        _close(graph, cell)
        if not cell.exact_by or not cell.ends:
            continue  # each part by itself may still be exact
        for layer in layers:
            del made[layer]
        while cell.layer in found or cell.layer in made:
            cell.layer += ".units"
        found[cell.layer] = cell
        unreached.update({layer: f"{PARTS}{cell.layer!r}" for layer in layers if layer != cell.layer})
    attended: set[str] = set()
    for head, reached in _heads(graph, made):
        _close(graph, head)
        if not (head.readers and head.exact_by):
            continue
        attended.update(reached)
        near = [*(name for owners in head.owners.values() for name in owners), *reached]
        head.layer = name_of(near, "") if len(near) > 1 else ""
        head.layer = name_of([*near, *head.readers], head.layer or "attention")
        while head.layer in found or head.layer in made:
            head.layer += ".heads"
        found[head.layer] = head
    for finding in made.values():
        reason = _close(graph, finding)
        if finding.layer in attended:
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


def _heads(graph: Graph, made: Mapping[str, Finding]) -> list[tuple[Finding, list[str]]]:
    """Attention heads and the layers of their queries, keys and values; an attention that is called again is one."""
    makers = [finding for finding in made.values() if finding.kind != "embedding"]
    found: dict[object, tuple[Finding, list[str]]] = {}
    for head in find_heads(graph):
        reached = join(graph, head, makers)
        key = (head.count, *reached) if reached else head.first
        earlier = found.get(key)
        if earlier is not None:
            earlier[0].gates += head.gates
            earlier[0].ends += head.ends
            earlier[0].makers |= head.makers
        else:
            found[key] = (head, reached)
    return list(found.values())


def _made(graph: Graph) -> dict[str, Finding]:
    """Layer -> the units that its product or its table of embeddings makes."""
    made: dict[str, Finding] = {}
    known: dict[object, tuple[Tensor, Tensor]] = {}
    for at, call in enumerate(graph.calls):
        product, table = call.product, call.lookup
        weight = table if product is None else product.w
        if weight is not None and at not in graph.reads[weight.weight or ""]:
            continue  # the outputs do not depend on it
        if product is not None:
            finding = _from_product(graph, at, product, known)
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


def _from_product(graph: Graph, at: int, product: Product, known: dict[object, tuple[Tensor, Tensor]]) -> Finding:
    """Units made by one product, followed to where they are read; `known` keeps what its weight says."""
    weight, index, out = product.w.weight, product.w.index, product.call.outputs[0]
    assert weight is not None and index is not None and out is not None
    key = _layout(product)
    if key not in known:
        known[key] = _columns_made(product, out)
    of_column, owner = known[key]
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


def _columns_made(product: Product, out: Value) -> tuple[Tensor, Tensor]:
    """The unit of each column [groups, 1, 1, made], and of each entry of the weight."""
    columns = product.columns  # [groups, read, per channel, made]
    if product.convolution:
        of_column = torch.arange(out.tensor.shape[1]).view(columns.shape[0], 1, 1, -1)
    else:
        # Stacked weights that repeat (an expanded matrix) make the same units again.
        _, of_pair = columns[:, 0, 0, :].unique(return_inverse=True)
        of_column = of_pair[:, None, None, :]
    owner = torch.full((product.w.size,), -1)
    owner[columns.reshape(-1)] = of_column.expand(columns.shape).reshape(-1)
    return of_column, owner


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


def _close(graph: Graph, finding: Finding) -> str:
    """Settle what silences a layer's units exactly; returns the reason if nothing does, else ""."""
    outgoing: dict[str, Tensor] = {}
    reads: dict[str, set[int]] = {}
    known: dict[object, Tensor] = {}
    complete = bool(finding.ends)
    for end in finding.ends:
        product = end.product
        units = None if product is None or end.labels is None else _units_read(product, end.labels)
        if units is None or product is None or product.w.weight is None:
            complete = False
            continue
        name = product.w.weight
        key = _layout(product)
        if key in known and torch.equal(known[key], units):  # the same columns again, at another step
            reads[name].add(end.at)
            continue
        known[key] = units
        owner = _columns_read(product, units)
        if owner is None:
            complete = False
            continue
        earlier = outgoing.get(name)
        if earlier is not None:
            both = (earlier >= 0) & (owner >= 0)
            complete = complete and bool((earlier[both] == owner[both]).all())
            owner = torch.where(owner >= 0, owner, earlier)
        outgoing[name] = owner
        reads.setdefault(name, set()).add(end.at)
    # A weight that is also read elsewhere (tied, or called again) does more than read these units.
    complete = complete and all(graph.reads[name] <= at | idle(graph, name) for name, at in reads.items())
    own = finding.owners["incoming"]
    tied = any(not graph.reads[name] <= finding.makers for name in own if _is_made_with(graph, name))
    if tied:
        finding.owners.update(incoming={}, scale={}, shift={})
        finding.quiet = False
    finding.readers = tuple(reads)
    ends = {end.what for end in finding.ends}
    if finding.kind in {"neuron", "channel"} and any(_joins_stream(graph, end) for end in finding.ends):
        finding.kind = "branch"
    quiet = finding.quiet and bool(finding.owners["incoming"] or finding.owners["scale"])
    finding.exact_by = {(True, True): "both", (True, False): "outgoing", (False, True): "incoming"}.get(
        (complete, quiet), ""
    )
    if complete:
        finding.owners["outgoing"] = outgoing
    if not ends:
        return "its activation is overwritten in place"
    if not _is_read(graph, finding):
        return OUTPUTS
    words = [_words(word) for word in sorted(ends - {"read"})]
    if finding.exact_by == "incoming" and not any(_is_units_end(graph, finding, end) for end in finding.ends):
        return f"its activation goes into {', '.join(words)}, for which there is no rule"
    if not finding.exact_by:
        if tied:
            return TIED
        through = ", ".join(words) or "a weight that is used elsewhere too"
        return f"its activation goes through {through}, and zero weights do not make it zero"
    return ""


def _words(name: str) -> str:
    return _WORDS.get(name, name.strip("_"))


def _joins_stream(graph: Graph, end: End) -> bool:
    """Whether units are added to a residual stream, after positions have been added to them maybe."""
    waiting = [end.at] if end.what == "add" else []
    while waiting:
        call = graph.calls[waiting.pop()]
        active = {id(value) for value in call.arguments if value.active}
        if call.name == "add" and len(active) > 1:
            return True
        if len(active) == 1 and (call.rearranges or call.pointwise):
            waiting.extend(use for value in call.outputs if value is not None for use in value.uses)
    return end.what == "residual"


def _is_units_end(graph: Graph, finding: Finding, end: End) -> bool:
    """Whether units may well end there: each is still one entry, not rearranged in a way that no rule follows."""
    if end.what == "read" or finding.kind in {"embedding", "recurrent"}:
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


def _is_made_with(graph: Graph, name: str) -> bool:
    """Whether a weight is one that products or tables make units with, not a bias or scale."""
    return any(graph.calls[at].product is not None or graph.calls[at].lookup is not None for at in graph.reads[name])


def _layout(product: Product) -> object:
    """Same for products that read a weight in the same arrangement."""
    index = product.w.index
    assert index is not None
    return product.w.weight, product.call.name, index.data_ptr(), index.shape, index.stride()


def _units_read(product: Product, labels: Tensor) -> Tensor | None:
    """Unit that each column of a product reads [groups, read], -1 for none; None if a column reads several units."""
    groups, read = product.columns.shape[:2]
    if product.convolution:
        flat = labels.flatten(2)
        same = bool((flat == flat[:1, :, :1]).all())
        return flat[0, :, 0].reshape(groups, read) if same else None
    rows = labels.reshape(groups, -1, read) if groups > 1 else labels.reshape(1, -1, read)
    return rows[:, 0] if bool((rows == rows[:, :1]).all()) else None


def _columns_read(product: Product, units: Tensor) -> Tensor | None:
    """Unit that each entry of a product's weight reads, -1 for none; None if an entry reads several units."""
    columns = product.columns
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
        if any(name.startswith(f"{other}.") and PARTS in why for other, why in unreached.items()):
            continue
        unreached[layer] = _reason(graph, [graph.calls[at] for at in sorted(graph.reads[name])])


def _reason(graph: Graph, calls: list[Call]) -> str:
    """Why a weight that is read by these calls belongs to no unit."""
    if not calls:
        return UNUSED
    if any(call.normalises is not None for call in calls):
        return NORMAL
    first = calls[0]
    if not call_is_active(first):
        return FIXED
    if first.product is None and (first.pointwise or first.name in {"cat", "stack"}):
        return BESIDE
    return f"its weights are used by {_words(first.name)}, for which there is no rule"
