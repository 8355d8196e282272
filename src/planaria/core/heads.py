"""Heads: the attention heads of a trace, and the queries, keys and values that belong to each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planaria.core.follow import ROLES, Finding, descend, onward
from planaria.core.graph import Graph


def find_heads(graph: Graph) -> list[Finding]:
    """Attention heads: the axis before the last two of an attention's output or weights.

    Where that axis is folded into the one of the examples, heads vary fastest; a wrong guess has no readers.
    """
    heads = []
    for at, call in enumerate(graph.calls):
        out = call.outputs[0] if call.outputs else None
        fused = "scaled_dot_product" in call.name
        if out is None or not out.active or not (fused or call.name == "_softmax"):
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


def join(graph: Graph, head: Finding, made: Finding) -> None:
    """Give a head the rows of the query, key and value products that reach it."""
    places = _places(graph, head)
    call = graph.calls[head.first]
    weighed = {head.first} if call.name != "_softmax" else {at for at, _ in _weighings(graph, head)}
    for end in made.ends:
        if end.what != "attention" or end.labels is None or end.at not in places:
            continue
        by_head = [end.labels[place].unique() for place in places[end.at]]
        head_of = torch.full((made.count + 1,), -1)
        for h, channels in enumerate(by_head):
            head_of[channels[channels >= 0]] = h
        if any(int((head_of[c[c >= 0]] != h).sum()) for h, c in enumerate(by_head)):
            continue  # keys or values that several heads share belong to none of them
        # Only the values' bias comes out of a head as it is.
        value = end.at in weighed and (call.name == "_softmax" or end.value is call.args[2])
        for role in ("incoming", "scale", "shift"):
            into = head.owners[role if value else "incoming"]
            for name, owner in made.owners[role].items():
                known, mine = into.get(name), head_of[owner]
                if bool((mine >= 0).any()):
                    into[name] = mine if known is None else torch.where(mine >= 0, mine, known)
        head.makers |= made.makers


def _places(graph: Graph, head: Finding) -> dict[int, list[Any]]:
    """Products of two activations that make up an attention -> for each head, where it is in their arguments."""
    call = graph.calls[head.first]
    if call.name != "_softmax":
        return {head.first: [(slice(None), h) for h in range(head.count)]}
    places: dict[int, list[Any]] = {}
    for at, labels in _weighings(graph, head):
        places[at] = [(labels[:, 0, 0] == h).nonzero().flatten() for h in range(head.count)]
    # Backwards from the softmax to the product of queries and keys, then forwards again with its stack as labels.
    makers = {id(value): at for at, other in enumerate(graph.calls) for value in other.outputs if value is not None}
    path: list[int] = []
    value = call.args[0]
    while id(value) in makers and graph.calls[makers[id(value)]].name != "bmm":
        path.append(makers[id(value)])
        step = graph.calls[path[-1]]
        active = [other for other in step.inputs if other.active]
        if len(active) != 1 or not (step.pointwise or step.rearranges):
            return places
        value = active[0]
    if id(value) not in makers:
        return places
    labels = torch.arange(value.tensor.shape[0]).view(-1, 1, 1).expand(value.tensor.shape)
    at_scores = makers[id(value)]
    for at in reversed(path):
        step = graph.calls[at]
        labels = step.carry({id(value): labels})[0] if step.rearranges else labels
        first = step.outputs[0]
        if first is None or labels.numel() != first.tensor.numel():
            return places
        labels, value = labels.expand(first.tensor.shape), first
    heads = head.gates[0][1]
    places[at_scores] = [labels[heads == h].unique() for h in range(head.count)]
    return places


def _weighings(graph: Graph, head: Finding) -> list[tuple[int, Tensor]]:
    """Products in which the attention weights of `head` weigh values, with the head of each entry."""
    found: list[tuple[int, Tensor]] = []
    out = graph.calls[head.first].outputs[0]
    assert out is not None
    waiting = [(out, head.gates[0][1])]
    while waiting:
        value, labels = waiting.pop()
        for at in dict.fromkeys(value.uses):
            call = graph.calls[at]
            if call.name == "bmm" and call.product is None:
                found.append((at, labels))
            else:
                waiting.extend(onward(call, value, labels))
    return found


def name_of(head: Finding, feeding: list[str]) -> str:
    """Name of the attention: what the names of its weights have in common."""
    names = [name for role in ROLES for name in head.owners[role]] or feeding
    parts = [name.split(".") for name in names]
    shared = []
    for words in zip(*parts, strict=False):
        if len(set(words)) > 1:
            break
        shared.append(words[0])
    if shared and len(names) == 1:
        shared.pop()
    return ".".join(shared) or "attention"
