"""Survey: find the units in a trace, layer by layer, and what silences each exactly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from planaria.core.cells import find_cells, idle
from planaria.core.follow import ROLES, End, Finding, thin
from planaria.core.graph import Graph, Product
from planaria.core.heads import find_heads, join, name_of
from planaria.core.makers import find_made, layout
from planaria.core.network import Network
from planaria.core.reasons import HEADS, OUTPUTS, PARTS, TIED, reason_of, words
from planaria.core.tap import GAIN, OFFSET


def survey(graph: Graph, net: Network) -> tuple[list[Finding], dict[str, str]]:
    """Units of a recorded network.

    Returns:
        Findings in the order of execution, and layer -> reason for the layers whose outputs are no units.
    """
    unreached: dict[str, str] = {}
    shapes = {name: weight.shape for name, weight in net.weights.items()}
    made = find_made(graph, shapes)
    found: dict[str, Finding] = {}
    for cell, layers in find_cells(graph, made):
        _close(graph, cell, shapes)
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
        _close(graph, head, shapes)
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
        reason = _close(graph, finding, shapes)
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


def _close(graph: Graph, finding: Finding, shapes: Mapping[str, torch.Size]) -> str:
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
        key = layout(product)
        if key in known and torch.equal(known[key], units):  # the same columns again, at another step
            reads[name].add(end.at)
            continue
        known[key] = units
        owner = _columns_read(product, units)
        if owner is None:
            complete = False
            continue
        owner = thin(owner.view(shapes[name]))
        earlier = outgoing.get(name)
        if earlier is not None:
            both = (earlier >= 0) & (owner >= 0)
            complete = complete and bool((earlier[both] == owner[both]).all())
            owner = torch.where(owner >= 0, owner, earlier)
        outgoing[name] = owner
        reads.setdefault(name, set()).add(end.at)
    # A weight that is also read elsewhere (tied, or called again) does more than read these units.
    complete = complete and all(graph.reads[name] <= at | idle(graph, name) for name, at in reads.items())
    own = {name for role in ("incoming", "scale", "shift") for name in finding.owners[role]}
    tied = any(not graph.reads[name] <= finding.makers for name in own)
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
    through = ", ".join(words(end) for end in sorted(ends - {"read"}))
    if finding.exact_by == "incoming" and not any(_is_units_end(graph, finding, end) for end in finding.ends):
        return f"its activation goes into {through}, for which there is no rule"
    if not finding.exact_by:
        if tied:
            return TIED
        through = through or "a weight that is used elsewhere too"
        return f"its activation goes through {through}, and zero weights do not make it zero"
    return ""


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


def _units_read(product: Product, labels: Tensor) -> Tensor | None:
    """Unit that each column of a product reads [groups, read], -1 for none; None if a column reads several units."""
    groups, read = product.columns.shape[:2]
    if product.convolution:
        flat = labels.flatten(2)
        same = bool((flat == flat[:1, :, :1]).all())
        return flat[0, :, 0].reshape(groups, read) if same else None
    if not labels.numel():
        return None  # no row comes this way on the example inputs
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
        # A weight without a module of its own is a layer by its whole name.
        known = {name, layer} & (unreached.keys() | found.keys())
        if name in owned or known or name.endswith((GAIN, OFFSET)):
            continue
        unreached[layer] = reason_of(graph, name)
