"""Graph: what a network really computed, call by call.

A trace runs the network once on a few examples and records every tensor operation below autograd. Nothing about the
architecture needs to be known: layers, functional calls, fused modules and models from other libraries all come out
as matrix products, convolutions, element-wise functions and rearrangements of the named weights. Where data decides
the control flow, the trace holds for inputs that take the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from planaria.core.autodiff import plain_kernels, steps_matter
from planaria.core.network import Network

_REARRANGE = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "t",
        "transpose",
        "permute",
        "expand",
        "unsqueeze",
        "squeeze",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "unbind",
        "chunk",
        "unsafe_split",
        "unsafe_split_with_sizes",
        "unsafe_chunk",
        "cat",
        "stack",
        "clone",
        "alias",
        "detach",
        "lift_fresh",
        "contiguous",
        "constant_pad_nd",
        "repeat",
        "flip",
        "roll",
        "_to_copy",
        "narrow",
        "unfold",
        "diagonal",
        "as_strided",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "native_channel_shuffle",
    ]
)
_PICK = frozenset(["index", "index_select", "gather"])  # entries of the first argument, at places given by the others
SHAPED = frozenset(  # only the shape of what they read matters
    ["zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"]
)
_POOL = frozenset(
    [
        "max_pool1d",
        "max_pool2d_with_indices",
        "max_pool3d_with_indices",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool3d",
        "adaptive_avg_pool1d",
        "adaptive_max_pool2d",
        "mean",
        "sum",
        "amax",
        "upsample_nearest2d",
        "upsample_bilinear2d",
    ]
)
_NORM = {  # name -> whether statistics run over each unit alone
    "native_batch_norm": True,
    "_native_batch_norm_legit_no_training": True,
    "cudnn_batch_norm": True,
    "miopen_batch_norm": True,
    "native_layer_norm": False,
    "native_group_norm": False,
    "_fused_rms_norm": False,
    "rms_norm": False,
}
_LOOKUP = frozenset(["embedding", "_embedding_bag", "_embedding_bag_forward_only", "index", "index_select"])

_POINTWISE_TOO = frozenset(["hardswish", "_prelu_kernel", "prelu", "rrelu_with_noise", "silu", "mish", "hardtanh"])
_PRODUCT = {
    "addmm": (1, 2, 0),
    "mm": (0, 1, None),
    "bmm": (0, 1, None),
    "baddbmm": (1, 2, 0),
    "linear": (0, 1, 2),
}


@dataclass(eq=False)
class Value:
    """One tensor of a trace.

    Attributes:
        tensor: As computed on the example inputs.
        weight: Name of the weight it is a rearrangement of, or None.
        index: For such a value, the position in the flattened weight of each of its entries; on the CPU, as all labels.
        size: Entries of that weight.
        sources: Names of all weights it was computed from without the inputs.
        active: Whether it depends on the inputs.
        uses: Indices of the calls that read it.
    """

    tensor: Tensor
    weight: str | None = None
    index: Tensor | None = None
    size: int = 0
    sources: frozenset[str] = frozenset()
    active: bool = False
    uses: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Call:
    """One tensor operation of a trace: `function(*args, **kwargs) -> outputs`, tensors replaced by values.

    `tag` names it among all operations of the pass, see Tags. `overwritten` are the values of other tensors that share
    memory with one that was changed in place; what they have become are further outputs.
    """

    function: Any
    tag: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Value | None]
    overwritten: list[Value] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Operation, for example "addmm"; in-place forms lose their underscore."""
        name: str = self.function._schema.name.removeprefix("aten::")
        return name[:-1] if name.endswith("_") else name

    @property
    def inputs(self) -> list[Value]:
        """Values that the outputs depend on: the arguments, and what was overwritten beside them."""
        return [*self.arguments, *self.overwritten]

    @property
    def arguments(self) -> list[Value]:
        """Values among the arguments, lists included."""
        found: list[Value] = []
        walk((self.args, self.kwargs), lambda leaf: found.append(leaf) if isinstance(leaf, Value) else None)
        return found

    @property
    def rearranges(self) -> bool:
        """Whether every output entry is an input entry (or a constant filling), the same ones for all inputs."""
        if self.name in _PICK:
            return not any(value.active for value in self.arguments if value is not self.args[0])
        return self.name in _REARRANGE

    @property
    def pools(self) -> bool:
        """Whether it reduces or resizes over positions, each channel by itself, zeros to zeros."""
        return self.name in _POOL

    @property
    def positions(self) -> int | None:
        """Axes of positions that it works on: 2 for "max_pool2d"; None for operations without a number of them."""
        number = re.search(r"(\d)d", self.name)
        return None if number is None else int(number[1])

    @property
    def pointwise(self) -> bool:
        """Whether each output entry depends on the input entries at its place only."""
        return torch.Tag.pointwise in self.function.tags or self.name in _POINTWISE_TOO

    @property
    def normalises(self) -> bool | None:
        """None unless a normalisation; then whether its statistics run over each channel alone (batch norm)."""
        return _NORM.get(self.name)

    @property
    def product(self) -> Product | None:
        """The call as matrix product or convolution of an activation with a rearranged weight, if it is one."""
        if self.name == "convolution":
            x, w, b = self.args[:3]
        elif self.name in _PRODUCT:
            at_x, at_w, at_b = _PRODUCT[self.name]
            x, w = self.args[at_x], self.args[at_w]
            b = self.args[at_b] if at_b is not None and len(self.args) > at_b else None
        else:
            return None
        if not (isinstance(w, Value) and isinstance(x, Value) and x.active and w.weight is not None):
            return None
        return Product(self, x, w, b)

    @property
    def multiplied(self) -> Value | None:
        """What a matrix product multiplies by a weight or by something else; None for other operations."""
        if self.name not in _PRODUCT:
            return None
        x = self.args[_PRODUCT[self.name][0]]
        return x if isinstance(x, Value) else None

    @property
    def lookup(self) -> Value | None:
        """The table of which it picks rows by numbers that depend on the inputs, if it does: an embedding."""
        if self.name not in _LOOKUP or not (self.args and isinstance(self.args[0], Value)):
            return None
        table, active = self.args[0], any(value.active for value in self.arguments)
        if not active or table.active or table.weight is None or table.tensor.ndim != 2:
            return None
        if self.name == "index":
            picked = len([place for place in self.args[1] if place is not None])
            return table if picked == 1 and self.args[1][0] is not None and len(self.args[1]) == 1 else None
        return table if self.name != "index_select" or self.args[1] == 0 else None

    @property
    def functional(self) -> Any:
        """The operation in a form that writes to none of its arguments ("relu_" as "relu"); None if there is none."""
        schema = self.function._schema
        if not schema.is_mutable:
            return self.function
        packet = getattr(torch.ops.aten, self.name, None)
        forms = [] if packet is None else [getattr(packet, name) for name in packet.overloads()]
        wanted = [(argument.name, str(argument.type)) for argument in schema.arguments]
        for form in forms:
            offered = [(argument.name, str(argument.type)) for argument in form._schema.arguments]
            if offered == wanted and not form._schema.is_mutable:
                return form
        return None

    def evaluate(self, replace: Mapping[int, Tensor]) -> Any:
        """Call the operation again with some values exchanged.

        Args:
            replace: id(value) -> tensor; all other values are taken as recorded.
        """

        def tensor_of(leaf: Any) -> Any:
            return replace.get(id(leaf), leaf.tensor) if isinstance(leaf, Value) else leaf

        function = self.functional
        if function is None:  # it writes into its arguments, which must stay as they were recorded

            def copy_of(leaf: Any) -> Any:
                return tensor_of(leaf).clone() if isinstance(leaf, Value) else leaf

            return self.function(*walk(self.args, copy_of), **walk(self.kwargs, copy_of))
        return function(*walk(self.args, tensor_of), **walk(self.kwargs, tensor_of))

    def carry(self, labels: Mapping[int, Tensor]) -> list[Tensor]:
        """Where labels attached to input entries arrive; -1 where no labelled entry does. Rearrangements only.

        Args:
            labels: id(value) -> integer tensor of the value's shape; on the CPU, wherever the value is.
        """
        return [carried.cpu() for carried in self._carried(labels)]

    def _carried(self, labels: Mapping[int, Tensor]) -> list[Tensor]:
        """The same, on the values' device: places that are picked are there too."""
        exchanged: dict[int, Tensor] = {}
        for value in [self.args[0]] if self.name in _PICK else self.arguments:
            known = labels.get(id(value))
            label = torch.full(value.tensor.shape, -1) if known is None else known
            exchanged[id(value)] = label.to(value.tensor.device)
        if self.name in {
            "view",
            "_unsafe_view",
            "_reshape_alias",
        }:  # labels may be laid out otherwise in memory
            return [exchanged[id(self.args[0])].reshape(self.args[1])]
        if self.name == "constant_pad_nd":
            return [torch.constant_pad_nd(exchanged[id(self.args[0])], self.args[1], -1)]
        if self.name in {"clone", "_to_copy", "lift_fresh", "alias", "detach", "contiguous"}:
            return [exchanged[id(self.args[0])]]
        if self.name == "as_strided":  # its strides are those of the value's memory
            value = self.args[0].tensor
            alike = torch.empty_strided(value.shape, value.stride(), dtype=torch.long, device=value.device)
            start = self.args[3] - value.storage_offset() if len(self.args) > 3 and self.args[3] is not None else 0
            label = alike.copy_(exchanged[id(self.args[0])])
            return [torch.as_strided(label, self.args[1], self.args[2], start)]
        moved = self.evaluate(exchanged)
        return list(moved) if isinstance(moved, (list, tuple)) else [moved]


@dataclass(eq=False)
class Product:
    """A matrix product or convolution of an activation with a weight.

    For matrix products the last two axes of `w.index` are (contracted, output).
    """

    call: Call
    x: Value
    w: Value
    b: Any

    @property
    def convolution(self) -> bool:
        """Whether it is a convolution."""
        return self.call.name == "convolution"

    @property
    def columns(self) -> Tensor:
        """Positions in the flattened weight, arranged [groups, channels read, numbers per channel, channels made].

        For a matrix product with stacked weights, `groups` runs over the stack.
        """
        index = self.w.index
        assert index is not None
        if self.call.name == "linear":
            return index.T[None, :, None, :]
        if not self.convolution:
            return index.reshape(-1, *index.shape[-2:])[:, :, None, :]
        transposed, groups = self.call.args[6], self.call.args[8]
        if transposed:  # weight is [read, made / groups, *kernel]
            grouped = index.reshape(groups, index.shape[0] // groups, index.shape[1], -1)
            return grouped.permute(0, 1, 3, 2)
        grouped = index.reshape(groups, index.shape[0] // groups, index.shape[1], -1)
        return grouped.permute(0, 2, 3, 1)


@dataclass(eq=False)
class Graph:
    """A recorded forward pass.

    Attributes:
        calls: In order of execution.
        outputs: Values the network returned.
        reads: Weight name -> indices of the calls that read it, rearrangements of the weight itself left out.
        examples: Rows of the inputs.
    """

    calls: list[Call]
    outputs: list[Value]
    reads: dict[str, set[int]]
    examples: int

    def is_output(self, value: Value) -> bool:
        """Whether the network returned this value."""
        return any(value is output for output in self.outputs)


def trace(net: Network, inputs: Tensor) -> Graph:
    """Run the network on `inputs` and record every operation.

    Args:
        net: Any network.
        inputs: [examples, ...]; two examples are enough.

    Returns:
        Graph of the pass. Its tensors are those of this pass; keep `inputs` small.

    Example:
        >>> net = Network.of(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
        >>> [call.name for call in trace(net, torch.zeros(1, 2)).calls]
        ['t', 'addmm', 'relu']
    """
    recorder = _Recorder(net.weights, inputs)
    outputs = run(net, inputs, recorder)
    found: list[Value] = []
    walk(outputs, lambda leaf: found.append(recorder.value(leaf)) if isinstance(leaf, Tensor) else None)
    needed = needed_calls(recorder.calls, found)
    reads: dict[str, set[int]] = {name: set() for name in net.weights}
    for at, call in enumerate(recorder.calls):
        for value in call.inputs:
            value.uses = [use for use in value.uses if use in needed]
            if at not in needed:
                continue
            if not (value.weight is not None and call.rearranges and not call_is_active(call)):
                for name in value.sources:
                    reads[name].add(at)
    return Graph(recorder.calls, found, reads, len(inputs))


def needed_calls(calls: list[Call], outputs: list[Value]) -> set[int]:
    """Places of the calls on which the outputs depend; what is computed and thrown away says nothing about units."""
    makers = {id(value): at for at, call in enumerate(calls) for value in call.outputs if value is not None}
    waiting = [makers[id(value)] for value in outputs if id(value) in makers]
    # A number that leaves the tensors (item, a condition) may come back in any way.
    waiting += [at for at, call in enumerate(calls) if call.outputs and not any(call.outputs)]
    needed: set[int] = set()
    while waiting:
        at = waiting.pop()
        if at not in needed:
            needed.add(at)
            waiting.extend(makers[id(value)] for value in calls[at].inputs if id(value) in makers)
    return needed


def call_is_active(call: Call) -> bool:
    """Whether any output of the call depends on the network's inputs."""
    return any(value is not None and value.active for value in call.outputs)


def run(net: Network, inputs: Tensor, mode: TorchDispatchMode) -> Any:
    """Forward pass in eval mode, without a gradient graph, under a dispatch mode that watches or edits it.

    Recurrent layers run step by step, so that their units can be seen at every step.
    """
    buffers = {name: tensor.clone() for name, tensor in net.buffers.items()}
    with plain_kernels(recurrence=steps_matter(net.module, net.device)), torch.no_grad(), mode:
        return net.evaluate(inputs, net.weights, buffers)


_COUNTED: WeakKeyDictionary[nn.Module, dict[torch.Size, int]] = WeakKeyDictionary()


def forward_multiply_adds(net: Network, inputs: Tensor) -> int:
    """Multiply-accumulate operations of one forward pass, per example.

    Counts matrix products, convolutions and attention; element-wise work is left out.

    Args:
        net: Any network.
        inputs: [examples, ...]; only the shape matters.

    Example:
        >>> forward_multiply_adds(Network.of(nn.Linear(4, 3)), torch.zeros(2, 4))
        12
    """
    known = _COUNTED.setdefault(net.module, {})
    shape = inputs.shape[1:]
    if shape not in known:
        few = inputs[:2]
        # Written out, because fused attention and recurrent kernels are opaque to the counter.
        with plain_kernels(attention=True, recurrence=True), FlopCounterMode(display=False) as counter:
            net(few)
        known[shape] = counter.get_total_flops() // 2 // len(few)
    return known[shape]


class Tags:
    """Names the operations of a pass by kind and count ("addmm 3"), so that another pass finds the same ones.

    Counted per kind, because torch may insert copies and aliases in one pass and not in another.
    """

    def __init__(self) -> None:
        self._count: dict[str, int] = {}

    def next(self, function: Any) -> str:
        """Tag of the operation that is about to run."""
        name = str(function._schema.name)
        self._count[name] = self._count.get(name, -1) + 1
        return f"{name} {self._count[name]}"


class Watch(TorchDispatchMode):
    """Calls `seen(tag, args, output)` after every operation of a pass; `seen` may change the output in place.

    Of operations with several outputs, the first is shown.
    """

    def __init__(self, seen: Callable[[str, tuple[Any, ...], Any], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen
        self._tags = Tags()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, (tuple, list)) and result else result
        self._seen(self._tags.next(func), args, first)
        return result


def way(net: Network, inputs: Tensor) -> tuple[str, ...]:
    """The products of a pass in order, each with the weight that it reads, where that can be seen.

    Tags of one pass name the same operations in another pass of the same way, and only there: data that decide which
    layers run, or how often, send different inputs different ways.

    Args:
        net: Any network.
        inputs: [examples, ...].

    Example:
        >>> way(Network.of(nn.Sequential(nn.Linear(2, 3), nn.ReLU())), torch.zeros(1, 2))
        ('addmm 0.weight',)
    """
    names = {weight.untyped_storage().data_ptr(): name for name, weight in net.weights.items()}
    steps: list[str] = []

    def seen(tag: str, args: tuple[Any, ...], output: Any) -> None:
        del output
        kind = tag.split(" ")[0].removeprefix("aten::")
        if kind in _PRODUCT or kind == "convolution":
            tensors = [argument for argument in args if isinstance(argument, Tensor)]
            read = [names.get(tensor.untyped_storage().data_ptr(), "") for tensor in tensors]
            at = 1 if kind == "convolution" else _PRODUCT[kind][1]
            steps.append(f"{kind} {read[at]}")

    run(net, inputs, Watch(seen))
    return tuple(steps)


def strays(net: Network, inputs: Tensor) -> bool:
    """Whether these inputs take another way through a network than its example inputs do, see `way`."""
    assert net.inputs is not None
    like = torch.cat([net.inputs, net.inputs])[: min(2, len(inputs))]
    return way(net, inputs) != way(net, like)


class _Recorder(TorchDispatchMode):
    def __init__(self, weights: Mapping[str, Tensor], inputs: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self._tags = Tags()
        self._current: dict[int, Value] = {}  # id(tensor) -> its latest value
        self._sharing: dict[int, list[Tensor]] = {}  # storage -> tensors seen on it, which keeps them and their ids
        for name, tensor in weights.items():
            index = torch.arange(tensor.numel()).reshape(tensor.shape)
            self._adopt(tensor, Value(tensor, name, index, tensor.numel(), frozenset([name])))
        self._adopt(inputs, Value(inputs, active=True))

    def _adopt(self, tensor: Tensor, value: Value) -> Value:
        self._current[id(tensor)] = value
        self._sharing.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        return value

    def value(self, tensor: Tensor) -> Value:
        known = self._current.get(id(tensor))
        return known if known is not None else self._adopt(tensor, Value(tensor))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}

        def value_of(leaf: Any) -> Any:
            return self.value(leaf) if isinstance(leaf, Tensor) else leaf

        call = Call(func, self._tags.next(func), walk(args, value_of), walk(kwargs, value_of), [])
        at = len(self.calls)
        inputs = call.inputs
        self._keep(call)
        results = func(*args, **kwargs)
        for value in inputs:
            value.uses.append(at)
        active = any(value.active for value in inputs) and call.name not in SHAPED
        sources = frozenset[str]() if active else frozenset().union(*(value.sources for value in inputs))
        self.calls.append(call)
        for place, tensor in enumerate(results if isinstance(results, (tuple, list)) else [results]):
            if not isinstance(tensor, Tensor):
                call.outputs.append(None)
                continue
            value = Value(tensor, active=active, sources=sources)
            if not active and call.rearranges and len(sources) == 1:
                value.weight, value.index, value.size = _follow(call, place)
            call.outputs.append(self._adopt(tensor, value))
            if func._schema.is_mutable:
                self._overwrite(call, at, tensor, active)
        return results

    def _keep(self, call: Call) -> None:
        """Copy what the call is about to overwrite, so that its values stay as they were."""
        for argument, given in zip(call.function._schema.arguments, call.args, strict=False):
            if argument.is_write and isinstance(given, Value):
                for tensor in self._sharing.get(given.tensor.untyped_storage().data_ptr(), []):
                    value = self._current.get(id(tensor))
                    if value is not None and value.tensor is tensor:
                        value.tensor = tensor.clone()

    def _overwrite(self, call: Call, at: int, tensor: Tensor, active: bool) -> None:
        """Other tensors on the same memory have changed too: what they hold now comes from this call as well."""
        for other in self._sharing.get(tensor.untyped_storage().data_ptr(), []):
            old = self._current.get(id(other))
            if other is tensor or old is None or old in call.arguments or old in call.overwritten:
                continue
            if not _overlap(tensor, other):
                continue
            old.uses.append(at)
            call.overwritten.append(old)
            new = Value(other, active=active or old.active)
            self._current[id(other)] = new
            call.outputs.append(new)


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two views of one memory share a place; large ones that lie between each other are taken to."""
    if one.dtype != other.dtype:
        return True
    spans = []
    for view in (one, other):
        first = view.storage_offset()
        reach = 1 + sum((size - 1) * step for size, step in zip(view.shape, view.stride(), strict=True))
        spans.append((first, first + reach if view.numel() else first))
    start, end = max(first for first, _ in spans), min(end for _, end in spans)
    if start >= end:
        return False
    if one.numel() + other.numel() > 1 << 20:
        return True
    origin = min(first for first, _ in spans)
    hit = torch.zeros(max(end for _, end in spans) - origin, dtype=torch.bool)
    hit.as_strided(one.shape, one.stride(), one.storage_offset() - origin).fill_(True)
    return bool(hit.as_strided(other.shape, other.stride(), other.storage_offset() - origin).any())


def _follow(call: Call, place: int) -> tuple[str | None, Tensor | None, int]:
    """Weight, positions in it and its size, for an output of a rearrangement of one weight."""
    values = call.inputs
    known = {id(value): value.index for value in values if value.index is not None}
    names = {value.weight for value in values}
    if len(names) != 1 or len(known) != len({id(value) for value in values}):
        return None, None, 0
    return names.pop(), call.carry(known)[place], values[0].size


def walk(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to the leaves of nested tuples, lists, dictionaries and dictionary-like model outputs."""
    if isinstance(tree, (tuple, list)):
        walked = [walk(branch, function) for branch in tree]
        return walked if isinstance(tree, list) else tuple(walked)
    if isinstance(tree, Mapping):
        return {key: walk(branch, function) for key, branch in tree.items()}
    return function(tree)
