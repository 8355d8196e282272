"""Readers: which products of a network can be refitted, where their outputs go, and whose rows they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from planaria.core.cells import idle
from planaria.core.errors import InputError
from planaria.core.graph import Call, Graph, Product, Value, Watch, forward_multiply_adds, run, strays, trace
from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.repair.forms import Flat, Form, Patches, Stacked, patches_of
from planaria.repair.reader import Junction, Norm, Reader, read_by

WIDEST = 8192
"""Largest number of inputs of a reader whose moments are kept (512 MiB in double precision)."""

STRAYS = "the data decide which layers run, or how often, so that what it reads cannot be followed"
"""Why nothing is refitted where inputs take another way through the network than its example inputs."""

_IN_ORDER = frozenset(["view", "_unsafe_view", "_reshape_alias", "unsqueeze", "squeeze", "clone", "alias", "_to_copy"])
"""Rearrangements that leave all entries in their order."""


Found = tuple[Mapping[str, Reader], Mapping[str, str]]
_KNOWN: WeakKeyDictionary[nn.Module, dict[tuple[int, str, torch.dtype | None], Found]] = WeakKeyDictionary()


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
    known, place = _KNOWN.setdefault(net.module, {}), (count, net.device.type, net.port.autocast)
    if place not in known:  # elsewhere torch runs other operations
        like = torch.cat([net.inputs, net.inputs])[:count]
        known[place] = find(trace(net, like), frozenset(net.buffers))
    return known[place]


def find(graph: Graph, buffers: frozenset[str] = frozenset()) -> Found:
    """The same, from a trace; `buffers` are the names of the network's buffers."""
    calls: dict[str, list[Product]] = {}
    for at, call in enumerate(graph.calls):
        product = call.product
        if product is not None and product.w.weight is not None and at in graph.reads[product.w.weight]:
            calls.setdefault(product.w.weight, []).append(product)
    for name, products in calls.items():
        # A recurrent layer begins by reading a state of zeros: to a refit that is a call as any other.
        calls[name] = [*_of_zeros(graph, name), *products]
    found: dict[str, Reader] = {}
    refused: dict[str, str] = {}
    taken: set[str] = set()
    for name, products in calls.items():
        reader = _reader(graph, products, buffers, taken)
        if isinstance(reader, str):
            refused[name] = reader
            continue
        found[name] = reader
        taken |= set() if reader.bias is None else {reader.bias}
    return found, refused


def watch(found: Mapping[str, Reader], seen: Callable[[Reader, Tensor], None]) -> Watch:
    """Calls `seen(reader, x)` at every reader, several times for those that are called several times."""
    by_tag = {tag: reader for reader in found.values() for tag in reader.tags}

    def at_reader(tag: str, args: tuple[Any, ...], output: Any) -> None:
        del output
        reader = by_tag.get(tag)
        if reader is not None:
            seen(reader, read_by(tag, args))

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
    flat = [name for name, reader in found.items() if not isinstance(reader.form, Patches)]
    watched = {name: at_work[name] for name in flat if name in at_work}
    order = dict.fromkeys(found.keys() - watched.keys(), "together")
    if not watched or strays(net, few):
        return order, Cost()

    def look(reader: Reader, x: Tensor) -> None:
        seen.setdefault(reader.weight, []).append(reader.features(x).float())

    for shift in (0, 1):
        run(net, few.roll(shift, 0), watch(watched, look))
    for name, views in seen.items():
        # Of several calls the last tells: at first, a recurrent layer reads nothing but zeros.
        first, second = views[len(views) // 2 - 1], views[-1]
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


# ------------------------------------------------------------------------------------------- from a trace to readers


@dataclass(frozen=True, eq=False)
class _Shape:
    """One call as rows: the form, the columns, and the value that holds the outputs."""

    form: Form
    columns: Tensor
    out: Value
    tag: str


def _reader(graph: Graph, products: list[Product], buffers: frozenset[str], taken: set[str]) -> Reader | str:
    """The reader that some products with the same weight are, or why they are none."""
    name = products[0].w.weight
    assert name is not None
    shapes = []
    for product in products:
        shape = _shape(graph, product)
        if isinstance(shape, str):
            return shape
        shapes.append(shape)
    columns, form = shapes[0].columns, shapes[0].form
    if columns.shape[1] > WIDEST:
        return f"it reads {columns.shape[1]} numbers, more than {WIDEST}"
    others = graph.reads[name] - {graph.calls.index(product.call) for product in products} - idle(graph, name)
    if others:
        return f"its weight is also read by {graph.calls[min(others)].name}, where a change would do harm"
    if any(shape.form != form or not torch.equal(shape.columns, columns) for shape in shapes):
        return "its weight is read by several products in different ways, and what suits one would harm the other"
    paths = [_Path.of(graph, product, shape, buffers) for product, shape in zip(products, shapes, strict=True)]
    bias, norm = paths[0].bias, paths[0].norm
    beside = set() if bias is None else graph.reads[bias] - {path.bias_at for path in paths}
    alone = bias is not None and bias not in taken and beside <= idle(graph, name)
    if not alone or any(path.bias != bias for path in paths) or (norm is not None and len(paths) > 1):
        bias = norm = None
    one = paths[0] if len(paths) == 1 else None
    rows = shapes[0].form.outputs(shapes[0].out.tensor, columns.shape[2]).shape[1]
    return Reader(
        weight=name,
        bias=bias,
        norm=norm,
        columns=columns,
        form=form,
        tags=tuple(product.call.tag for product in products),
        outs=tuple(shape.tag for shape in shapes),
        inside=bias is not None and products[0].b is not None,
        junction=None if one is None else one.junction,
        joined=one is not None and one.bias_at <= one.junction_at,
        each=rows // graph.examples if rows % graph.examples == 0 else 0,
    )


def _of_zeros(graph: Graph, name: str) -> list[Product]:
    """Products of a weight with zeros."""
    found = []
    for at in sorted(idle(graph, name)):
        call = graph.calls[at]
        x, w = call.multiplied, next((value for value in call.arguments if value.weight == name), None)
        if x is not None and w is not None and call.name != "convolution":
            added = [value for value in call.arguments if value is not x and value is not w]
            found.append(Product(call, x, w, added[0] if added else None))
    return found


def _shape(graph: Graph, product: Product) -> _Shape | str:
    """How one call becomes rows, or why it cannot."""
    columns, call = product.columns, product.call
    out = call.outputs[0]
    assert out is not None
    if product.convolution:
        kernel = tuple(product.w.tensor.shape[2:])
        form = patches_of(kernel, call.args[3:9])
        if call.args[6]:  # transposed: the kernel is turned round
            turned = columns.unflatten(2, kernel).flip(*range(2, 2 + len(kernel)))
            columns = turned.flatten(2, -2)
        return _Shape(form, columns.flatten(1, 2), out, call.tag)
    columns = columns.flatten(1, 2)
    firsts = columns[:, 0, 0] if columns.shape[1] else columns.new_zeros(len(columns))
    if len(columns) == 1 or columns.stride(0) == 0 or bool((columns == columns[:1]).all()):
        return _Shape(Flat(), columns[:1], out, call.tag)
    stack = list(dict.fromkeys(firsts.tolist()))
    count, of = len(stack), torch.tensor([stack.index(first) for first in firsts.tolist()])
    place = torch.arange(len(columns))
    for turns, expected in ((True, place % count), (False, place // max(1, len(columns) // count))):
        if len(columns) % count == 0 and torch.equal(of, expected):
            chosen = columns[[firsts.tolist().index(first) for first in stack]]
            if not torch.equal(chosen[of], columns):
                break
            added = _added_up(graph, out, count, turns)
            if added is None:
                return _Shape(Stacked(count, turns, False), chosen, out, call.tag)
            return _Shape(Stacked(count, turns, True), chosen.flatten(0, 1)[None], *added)
    return "its weights are stacked matrices in no simple order"


def _added_up(graph: Graph, value: Value, count: int, turns: bool) -> tuple[Value, str] | None:
    """The sum over a stack of products, if that is all that is done with them, and the operation that makes it."""
    batch, rows, made = value.tensor.shape
    entry = torch.arange(batch // count * rows * made).view(-1, rows, made)
    labels = entry[:, None].expand(-1, count, -1, -1) if turns else entry[None].expand(count, -1, -1, -1)
    labels = labels.reshape(value.tensor.shape)
    while len(value.uses) == 1 and not graph.is_output(value):
        call = graph.calls[value.uses[0]]
        out = call.outputs[0]
        if out is None or call.overwritten:
            return None
        if call.rearranges and len(call.outputs) == 1 and call.inputs == [value]:
            labels = call.carry({id(value): labels})[0]
        elif call.name == "sum" and len(call.args) > 1 and call.args[1]:
            dims, kept = call.args[1], call.args[2] if len(call.args) > 2 else False
            low, high = labels.amin(dims, kept), labels.amax(dims, kept)
            whole = out.tensor.numel() * count == labels.numel()
            in_order = torch.equal(high.flatten(), torch.arange(high.numel()))
            return (out, call.tag) if whole and torch.equal(low, high) and in_order else None
        else:
            return None
        value = out
    return None


@dataclass(frozen=True, eq=False)
class _Path:
    """What is done with a product's outputs alone, until something else is: where its bias is, and where it joins."""

    bias: str | None
    bias_at: int
    norm: Norm | None
    junction: Junction | None
    junction_at: int

    @staticmethod
    def of(graph: Graph, product: Product, shape: _Shape, buffers: frozenset[str]) -> _Path:
        """Follow the outputs of one call."""
        value, labels = shape.out, _outputs(shape)
        bias, bias_at, own, passed = None, -1, None, None
        if isinstance(product.b, Value) and _fits(product.b, labels, product.convolution):
            bias, bias_at = product.b.weight, graph.calls.index(product.call)
        moves: list[Call] = []
        junction, junction_at = None, -1
        first = True
        while len(value.uses) == 1 and not graph.is_output(value):
            at = value.uses[0]
            call = graph.calls[at]
            out = call.outputs[0] if call.outputs else None
            if out is None or call.overwritten or out.tensor.numel() != value.tensor.numel():
                break
            if call.rearranges and len(call.outputs) == 1 and call.inputs == [value]:
                moves.append(call)
                labels = call.carry({id(value): labels})[0]
            elif call.name == "add" and not call.kwargs and len(call.arguments) == 2 and len(call.inputs) == 2:
                other = next((other for other in call.inputs if other is not value), value)
                if other is value or out.tensor.shape != value.tensor.shape:
                    break
                if not other.active and product.b is None and bias is None and _fits(other, labels, False):
                    bias, bias_at = other.weight, at
                if other.active or junction is not None:
                    junction_at = at
                    junction = Junction(call.tag, _order(moves), passed)
            elif first and call.normalises is True and call.args[0] is value:
                passed = _normed(call, labels, buffers)
                if passed is None:
                    break
                if product.b is None:
                    bias, bias_at, own = passed.bias, at, passed
            else:
                break
            value, first = out, False
        return _Path(bias, bias_at, own, junction, junction_at)


def _outputs(shape: _Shape) -> Tensor:
    """Which output each entry of a reader's outputs belongs to."""
    groups, _, made = shape.columns.shape
    rows = shape.form.outputs(shape.out.tensor, made).shape[1]
    numbers = torch.arange(groups * made).view(groups, 1, made)
    return shape.form.back(numbers.expand(-1, rows, -1), shape.out.tensor)


def _order(moves: list[Call]) -> tuple[tuple[str, Callable[..., Tensor]], ...]:
    """Rearrangements as they must be repeated; none where all of them leave the order as it is."""
    if all(call.name in _IN_ORDER for call in moves):
        return ()
    return tuple((call.tag, call.function) for call in moves)


def _fits(bias: Value, labels: Tensor, channels: bool) -> bool:
    """Whether a weight holds one number for each output, in the order of the outputs.

    Args:
        bias: The weight as it is added.
        labels: Output that each entry belongs to.
        channels: Whether it runs along axis 1, rather than along the last ones.
    """
    if bias.weight is None or bias.index is None or bias.size != int(labels.max()) + 1:
        return False
    index = bias.index.view(1, -1, *[1] * (labels.ndim - 2)) if channels else bias.index
    fitting = index.ndim <= labels.ndim and all(
        size in {1, of} for size, of in zip(index.shape[::-1], labels.shape[::-1], strict=False)
    )
    return fitting and bool((index.to(labels.device) == labels).all())


def _normed(call: Call, labels: Tensor, buffers: frozenset[str]) -> Norm | None:
    """A batch normalisation with weights of its own, and statistics that have a name."""
    weight, bias = (getattr(argument, "weight", None) for argument in call.args[1:3])
    if weight is None or bias is None or not _fits(call.args[2], labels, True):
        return None
    variance = f"{weight.rpartition('.')[0]}.running_var".lstrip(".")
    return Norm(weight, bias, variance, float(call.args[-1])) if variance in buffers else None
