"""Heads: the attention heads of a trace, and the queries, keys and values that belong to each."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from planaria.core.follow import CONFLICT, Finding, ascend, descend, onward
from planaria.core.graph import Graph, Value

SOFTMAX = ("_softmax", "_safe_softmax")


def find_heads(graph: Graph) -> list[Finding]:
    """Attention heads: the axis before the last two of an attention's output or weights.

    Where that axis is folded into the one of the examples, heads vary fastest; a wrong guess has no readers.
    """
    heads = []
    for at, call in enumerate(graph.calls):
        out = call.outputs[0] if call.outputs else None
        fused = "scaled_dot_product" in call.name
        if out is None or not out.active or not (fused or call.name in SOFTMAX):
            continue
        shape = out.tensor.shape
        if len(shape) == 4:
            labels = torch.arange(shape[1]).view(1, -1, 1, 1).expand(shape)
        elif len(shape) == 3 and shape[0] % graph.examples == 0:
            labels = (torch.arange(shape[0]) % (shape[0] // graph.examples)).view(-1, 1, 1).expand(shape)
        else:
            continue
        head = Finding("attention", "head", int(labels.max()) + 1, first=at)
        head.gates.append((at, labels))
        head.ends = descend(graph, out, labels)
        head.quiet = False
        head.makers = {at}
        heads.append(head)
    return heads


def join(graph: Graph, head: Finding, made: Iterable[Finding]) -> list[str]:
    """Give the heads of an attention the rows of the query, key and value products that they alone use.

    Returns:
        Layers whose outputs are its queries, keys or values.
    """
    # Labels below the number of heads are for queries and keys, the further ones for values.
    found, _ = ascend(graph, _starts(graph, head))
    reached = []
    for finding in made:
        low, high = torch.full((finding.count,), 2 * head.count), torch.full((finding.count,), -1)
        shared = False
        for at in finding.made.keys() & found.keys():
            units, labels = finding.made[at].reshape(-1), found[at].reshape(-1)
            shared = shared or bool((labels == CONFLICT).any())
            known = (labels >= 0) & (units >= 0)
            low.scatter_reduce_(0, units[known], labels[known], "amin")
            high.scatter_reduce_(0, units[known], labels[known], "amax")
        if not shared and not bool((high >= 0).any()):
            continue
        reached.append(finding.layer)
        if shared or bool(((high >= 0) & (low != high)).any()):
            continue  # keys or values that several heads share belong to none of them
        labels = torch.cat([high, torch.tensor([-1])])
        head_of = torch.where(labels >= 0, labels % head.count, -1)
        for role in ("incoming", "scale", "shift"):
            for name, owner in finding.owners[role].items():
                # Only the values' bias comes out of a head as it is.
                value = labels[owner] >= head.count
                _add(head.owners["incoming"], name, torch.where(value, -1, head_of[owner]))
                _add(head.owners[role], name, torch.where(value, head_of[owner], -1))
        head.makers |= finding.makers
    return reached


def _add(owners: dict[str, Tensor], name: str, owner: Tensor) -> None:
    if bool((owner >= 0).any()):
        owners[name] = torch.where(owner >= 0, owner, owners.get(name, owner))


def _starts(graph: Graph, head: Finding) -> list[tuple[int, Value, Tensor]]:
    """What an attention reads, with the head that each entry is for: (call, value, labels)."""
    call, count = graph.calls[head.first], head.count
    starts = []
    if call.name in SOFTMAX:
        starts.append((head.first, call.args[0], head.gates[0][1]))
        for at, weights, labels in _weighings(graph, head):
            weighing = graph.calls[at]
            stacks = labels[:, :1, :1] + count
            values = weighing.args[1] if weighing.args[0] is weights else weighing.args[0]
            starts.append((at, values, stacks.expand(values.tensor.shape)))
        return starts
    for place, read in enumerate(call.args[:3]):
        shape, first = read.tensor.shape, count if place == 2 else 0
        labels = torch.full(shape, CONFLICT)  # fewer keys than heads: every one is shared
        if shape[1] == count:
            labels = torch.arange(first, first + count).view(1, -1, 1, 1).expand(shape)
        elif count == 1 or len(shape) == 3:
            labels = torch.full(shape, first)
        starts.append((head.first, read, labels))
    return starts


def _weighings(graph: Graph, head: Finding) -> list[tuple[int, Value, Tensor]]:
    """Products in which the attention weights of `head` weigh values: (call, the weights, head of each entry)."""
    found: list[tuple[int, Value, Tensor]] = []
    out = graph.calls[head.first].outputs[0]
    assert out is not None
    waiting = [(out, head.gates[0][1])]
    while waiting:
        value, labels = waiting.pop()
        for at in dict.fromkeys(value.uses):
            call = graph.calls[at]
            if call.name == "bmm" and call.product is None:
                found.append((at, value, labels))
            else:
                waiting.extend(onward(call, value, labels))
    return found


def name_of(names: Iterable[str], otherwise: str) -> str:
    """What the names of weights have in common, up to a dot; a single one's without its last part."""
    parts = [name.split(".") for name in dict.fromkeys(names)]
    shared: list[str] = []
    for words in zip(*parts, strict=False):
        if len(set(words)) > 1:
            break
        shared.append(words[0])
    if shared and len(parts) == 1:
        shared.pop()
    return ".".join(shared) or otherwise
