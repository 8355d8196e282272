"""Readers: the products of a network that can be refitted, as rows of features and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from planaria.core.errors import InputError
from planaria.core.graph import Call, Graph, Product, Watch, forward_multiply_adds, run, trace
from planaria.core.motion import Cost
from planaria.core.network import Network

WIDEST = 8192
"""Largest number of inputs of a reader whose moments are kept (512 MiB in double precision)."""


@dataclass(frozen=True)
class Norm:
    """A batch normalisation behind a product without a bias: its own bias takes the product's shift.

    Attributes:
        weight: Name of its scale.
        bias: Name of its bias.
        variance: Name of the buffer of its running variance.
        eps: Added to the variance.
    """

    weight: str
    bias: str
    variance: str
    eps: float

    def factor(self, net: Network) -> Tensor:
        """What a shift of the product becomes behind it, per channel."""
        return net.weights[self.weight].double() / (net.buffers[self.variance].double() + self.eps).sqrt()


@dataclass(frozen=True, eq=False)
class Reader:
    """A product that can be refitted: output rows = features @ matrix (+ shift), in each of `groups` groups.

    Attributes:
        weight: Name of its weight.
        bias: Name of the bias that takes its shift, None if there is none that belongs to it alone.
        norm: The batch normalisation that this bias belongs to, None if it is the product's own.
        columns: Positions in the flattened weight [groups, features, outputs].
        tag: Which operation of the forward pass it is.
        convolution: (kernel, stride, padding, dilation), None for matrix products.
    """

    weight: str
    bias: str | None
    norm: Norm | None
    columns: Tensor
    tag: str
    convolution: tuple[Any, ...] | None

    def features(self, x: Tensor) -> Tensor:
        """Its inputs as rows [groups, rows, features]; for convolutions, one row per example and position."""
        groups, width = self.columns.shape[:2]
        if self.convolution is None:
            return x.reshape(1, -1, width)
        kernel, stride, padding, dilation = self.convolution
        if x.ndim == 3:
            x = x.unsqueeze(2)
        patches = torch.nn.functional.unfold(x, kernel, dilation, padding, stride)
        return patches.view(len(x), groups, width, -1).permute(1, 0, 3, 2).reshape(groups, -1, width)

    def outputs(self, z: Tensor) -> Tensor:
        """Its outputs as rows [groups, rows, outputs]."""
        groups, _, made = self.columns.shape
        if self.convolution is None:
            return z.reshape(1, -1, made)
        return z.flatten(2).view(len(z), groups, made, -1).permute(1, 0, 3, 2).reshape(groups, -1, made)

    def as_output(self, rows: Tensor, like: Tensor) -> Tensor:
        """Inverse of `outputs`: rows in the form of the output `like`."""
        if self.convolution is None:
            return rows.reshape(like.shape)
        groups, _, made = rows.shape
        positions = like.flatten(2).shape[2]
        return rows.view(groups, len(like), positions, made).permute(1, 0, 3, 2).reshape(like.shape)

    @cached_property
    def plain(self) -> bool:
        """Whether the weight is [outputs, features], as it is in linear layers and ungrouped convolutions."""
        groups, width, made = self.columns.shape
        usual = torch.arange(made * width, device=self.columns.device).view(made, width).T
        return groups == 1 and torch.equal(self.columns[0], usual)

    def arranged(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's form as [groups, features, outputs]."""
        if self.plain:  # a view: picking entries one by one costs more than the algebra
            return weight.reshape(self.columns.shape[2], self.columns.shape[1]).T[None]
        return weight.flatten()[self.columns.to(weight.device)]

    def matrix(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Weights as [groups, features, outputs] in double precision."""
        return self.arranged(weights[self.weight]).double()

    def free(self, net: Network) -> Tensor:
        """Which weights can be moved: boolean [groups, features, outputs]."""
        return self.arranged(net.plasticity[self.weight] != 0)

    def shift(self, net: Network, weights: Mapping[str, Tensor]) -> Tensor:
        """What its bias in `weights` adds to the output rows [groups, outputs]; 0 without a bias."""
        groups, _, made = self.columns.shape
        if self.bias is None:
            return torch.zeros(groups, made, dtype=torch.double, device=net.device)
        bias = weights[self.bias].to(net.device).double().flatten()
        if self.norm is not None:
            factor = self.norm.factor(net)
            bias = torch.where(factor == 0, torch.zeros_like(bias), bias / factor)
        return bias.view(groups, made)

    def targets(self, net: Network, matrix: Tensor, shift: Tensor) -> dict[str, Tensor]:
        """Weights by name, for a new matrix [groups, features, outputs] and an added shift [groups, outputs]."""
        weight = net.weights[self.weight]
        if self.plain:
            changed = {self.weight: matrix[0].T.to(weight.dtype, memory_format=torch.contiguous_format).view_as(weight)}
        else:
            flat = weight.flatten().clone()
            flat[self.columns.to(flat.device)] = matrix.to(flat.dtype)
            changed = {self.weight: flat.view_as(weight)}
        if self.bias is not None:
            bias = net.weights[self.bias]
            added = shift.reshape(bias.shape)
            if self.norm is not None:
                added = added * self.norm.factor(net)
            changed[self.bias] = bias + added.to(bias.dtype)
        return changed


Found = tuple[Mapping[str, Reader], Mapping[str, str]]
_KNOWN: WeakKeyDictionary[nn.Module, dict[int, Found]] = WeakKeyDictionary()


def readers(net: Network, examples: int = 2) -> Found:
    """Products of a network that can be refitted; traced once and shared by all networks derived from it.

    Args:
        net: Any network with example inputs.
        examples: Inputs in the passes that will be watched: torch computes a single one by other operations.

    Returns:
        Weight name -> reader, in the order of execution; and weight name -> reason for those that cannot.

    Raises:
        InputError: If the network has no example inputs.
    """
    if net.inputs is None:
        raise InputError(
            "readers(net)", "a network with example inputs", "none", "Build it by Network.of(model, inputs)."
        )
    count = min(examples, 2)
    known = _KNOWN.setdefault(net.module, {})
    if count not in known:
        like = torch.cat([net.inputs, net.inputs])[:count]
        known[count] = find(trace(net, like), frozenset(net.buffers))
    return known[count]


def find(graph: Graph, buffers: frozenset[str] = frozenset()) -> Found:
    """The same, from a trace; `buffers` are the names of the network's buffers."""
    found: dict[str, Reader] = {}
    refused: dict[str, str] = {}
    for at, call in enumerate(graph.calls):
        product = call.product
        if product is None or product.w.weight is None or at not in graph.reads[product.w.weight]:
            continue
        name = product.w.weight
        reader = _reader(graph, product, buffers)
        if isinstance(reader, str):
            refused[name] = reader
        elif graph.reads[name] != {at}:
            refused[name] = "its weight is used several times"
        else:
            found[name] = reader
    return found, refused


def watch(found: Mapping[str, Reader], seen: Callable[[Reader, Tensor, Tensor], Tensor | None]) -> Watch:
    """Calls `seen(reader, x, z)` at every reader; what it returns, if anything, replaces the output z in place."""
    by_tag = {reader.tag: reader for reader in found.values()}

    def at_reader(tag: str, args: tuple[Any, ...], output: Any) -> None:
        reader = by_tag.get(tag)
        if reader is None:
            return
        x = args[1] if tag.startswith(("aten::addmm ", "aten::baddbmm ")) else args[0]
        replaced = seen(reader, x, output)
        if replaced is not None:
            output.copy_(replaced)

    return Watch(at_reader)


def rows_of(net: Network, found: Mapping[str, Reader], inputs: Tensor) -> tuple[dict[str, str], Cost]:
    """In which order the rows of readers belong to examples; seen from where they go when examples change places.

    Attention, for one, puts time before examples.

    Args:
        net: The network.
        found: Readers.
        inputs: Some inputs, of which three at most are looked at.

    Returns:
        Weight name -> "together" (an example's rows lie one after another) or "apart" (the examples' first rows, then
        their second ones ...); left out where no example owns a row. And the cost of looking.
    """
    few = inputs[:3]
    seen: dict[str, list[Tensor]] = {}
    at_work, _ = readers(net, len(few))
    watched = {n: at_work[n] for n, reader in found.items() if n in at_work and reader.convolution is None}
    order = dict.fromkeys(found.keys() - watched.keys(), "together")
    if not watched:
        return order, Cost()

    def look(reader: Reader, x: Tensor, z: Tensor) -> None:
        del z
        seen.setdefault(reader.weight, []).append(reader.features(x).float())

    for shift in (0, 1):
        run(net, few.roll(shift, 0), watch(watched, look))
    for name, (first, second) in seen.items():
        groups, rows, width = first.shape
        slack = 1e-3 * float(first.abs().max())
        for word, shape, axis in (("together", (len(few), -1), 1), ("apart", (-1, len(few)), 2)):
            if rows % len(few) == 0 and name not in order:
                moved = first.view(groups, *shape, width).roll(1, axis).view(first.shape)
                order |= {name: word} if bool(((moved - second).abs() <= slack).all()) else {}
    work = 2 * len(few) * forward_multiply_adds(net, inputs)
    return order, Cost(examples=2 * len(few), forward_passes=2, multiply_adds=work)


def spread(importance: Tensor | None, rows: int, order: str | None) -> Tensor | None:
    """Importance of examples as that of rows; 1 for rows that no example owns."""
    if importance is None:
        return None
    if order is None:
        return torch.ones(rows, dtype=importance.dtype, device=importance.device)
    each = rows // len(importance)
    return importance.repeat_interleave(each) if order == "together" else importance.repeat(each)


def _reader(graph: Graph, product: Product, buffers: frozenset[str]) -> Reader | str:
    assert product.w.weight is not None
    columns, convolution = product.columns.flatten(1, 2), None
    if product.convolution:
        _, _, _, stride, padding, dilation, transposed, _, _ = product.call.args
        kernel = list(product.w.tensor.shape[2:])
        if transposed or len(kernel) > 2:
            return "it is a transposed or three-dimensional convolution"
        if len(kernel) == 1:
            kernel, stride, padding, dilation = [1, *kernel], [1, *stride], [0, *padding], [1, *dilation]
        convolution = (tuple(kernel), tuple(stride), tuple(padding), tuple(dilation))
    elif len(columns) > 1:
        if not bool((columns == columns[:1]).all()):
            return "its weights are stacked matrices"
        columns = columns[:1]
    if columns.shape[1] > WIDEST:
        return f"it reads {columns.shape[1]} numbers, more than {WIDEST}"
    norm = None
    bias = getattr(product.b, "weight", None)
    if bias is None and product.b is None:
        bias = _added(graph, product)
        if bias is None and (norm := _normed(graph, product, buffers)) is not None:
            bias = norm.bias
    if bias is not None and len(graph.reads[bias]) > 1:
        bias = norm = None
    return Reader(product.w.weight, bias, norm, columns, product.call.tag, convolution)


def _added(graph: Graph, product: Product) -> str | None:
    """Bias that is added to the product's output by an operation of its own."""
    value = product.call.outputs[0]
    while value is not None and len(value.uses) == 1:
        call = graph.calls[value.uses[0]]
        if call.name == "add":
            names = [other.weight for other in call.inputs if other is not value and other.weight is not None]
            return names[0] if len(names) == 1 and len(call.inputs) == 2 else None
        if not call.rearranges:
            return None
        value = call.outputs[0]
    return None


def _normed(graph: Graph, product: Product, buffers: frozenset[str]) -> Norm | None:
    """Batch normalisation that alone reads the product's output."""
    value = product.call.outputs[0]
    if value is None or len(value.uses) != 1:
        return None
    call: Call = graph.calls[value.uses[0]]
    if call.normalises is not True or call.args[0] is not value:
        return None
    weight, bias = (getattr(argument, "weight", None) for argument in call.args[1:3])
    if weight is None or bias is None:
        return None
    variance = f"{weight.rpartition('.')[0]}.running_var".lstrip(".")
    return Norm(weight, bias, variance, float(call.args[-1])) if variance in buffers else None
