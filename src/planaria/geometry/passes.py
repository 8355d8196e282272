"""Passes: one forward pass with its graph, and every use of every weight in it.

Operations are watched below autograd, where views of a weight are known by the memory that they share with it. How
examples lie in what an operation returns is read off gradients, so that nothing is assumed about an architecture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from planaria.core.autodiff import plain_kernels
from planaria.core.errors import InputError
from planaria.core.graph import SHAPED
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import Weights
from planaria.geometry.uses import FORMS, Call, Found, Product, Range, Scale, Use


@dataclass(eq=False)
class Pass:
    """A forward pass with its graph and the uses of every weight."""

    outputs: Tensor
    leaves: Weights
    uses: dict[Range, list[Use]]
    odd: set[str]
    chooses: bool
    rough: bool

    @staticmethod
    def of(net: Network, rows: Tensor, where: str) -> Pass:
        """Run the network with a graph and read it; weights that are wholly pinned are not looked at."""
        # Copies: each in memory of its own, by which its views are known.
        leaves = {
            name: weight.detach()
            .clone(memory_format=torch.contiguous_format)
            .requires_grad_(weight.is_floating_point() and _moves(net.plasticity[name]))
            for name, weight in net.weights.items()
        }
        reader = _Reader({w.untyped_storage().data_ptr(): n for n, w in leaves.items() if w.requires_grad}, leaves)
        with written_out(net), torch.enable_grad():
            with reader:
                outputs = net.evaluate(rows, leaves, {name: b.clone() for name, b in net.buffers.items()})
            reader.connect()
        if not isinstance(outputs, Tensor) or outputs.ndim == 0 or len(outputs) != len(rows) or not outputs.numel():
            got = f"shape {list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InputError(f"{where}(inputs)", f"a network with {len(rows)} rows of outputs", got)
        if not bool(torch.isfinite(outputs).all()):
            raise InputError(f"{where}(inputs)", "finite outputs", "NaN or infinity", "Check the inputs and weights.")
        uses = {found: some for found, some in reader.uses.items() if some}
        return Pass(outputs, leaves, uses, reader.odd, reader.chooses, reader.rough)

    def back(self, cotangent: Tensor, calls: Sequence[Call]) -> list[Tensor]:
        """What comes back to the calls for a cotangent of the outputs [N, m]."""
        found = self.gradients(cotangent, [call.edge for call in calls])
        return [
            self.outputs.new_zeros(call.shape) if gradient is None else gradient
            for call, gradient in zip(calls, found, strict=True)
        ]

    def gradients(self, cotangent: Tensor, wanted: Sequence[Any]) -> Sequence[Tensor | None]:
        """Pull a cotangent of the outputs [N, m] back to weights or calls; None where nothing leads there.

        Raises:
            InputError: Torch cannot differentiate the network.
        """
        if not wanted or not self.outputs.requires_grad:
            return [None] * len(wanted)
        shaped = cotangent.reshape(self.outputs.shape).to(self.outputs)
        with differentiable("gram(net)", "a network that torch can differentiate"):
            return torch.autograd.grad(self.outputs, list(wanted), shaped, retain_graph=True, allow_unused=True)

    @property
    def precise(self) -> float:
        """Relative difference below which two ways to compute outputs agree."""
        return 1e-8 if self.outputs.dtype == torch.float64 and not self.rough else 1e-4

    def place(self, examples: int) -> list[str]:
        """Find how examples lie in every call's output; the weights that must go the general way.

        Gradients of the sum of all outputs, and of that sum with each example multiplied by a number of its own, differ
        by that number at each example's places. Where no arrangement explains it, examples are mixed or picked.
        """
        calls = self.calls()
        flat = self.outputs.detach().reshape(examples, -1)
        rng = stream(0, "gram", "labels")
        labels = torch.randn(examples, generator=rng, dtype=torch.float64).to(flat.device)
        cotangent = torch.randn(flat.shape, generator=rng, dtype=torch.float64).to(flat.device)
        precise = self.precise
        plain = [_projected(g, call) for call, g in zip(calls, self.back(cotangent, calls), strict=True)]
        named = self.back(cotangent * labels[:, None], calls)
        stray: set[int] = set()
        for call, one, gradient in zip(calls, plain, named, strict=True):
            two, best = _projected(gradient, call), math.inf
            for before, behind in _arrangements(len(one), examples):
                expected = labels.view(1, -1, 1).expand(before, examples, behind).reshape(-1) * one
                apart = float((two - expected).norm())
                if apart < best:
                    best, call.before, call.behind = apart, before, behind
            if not best <= precise * float(two.norm()):
                stray.add(id(call))
        odd = set(self.odd)
        for found, uses in self.uses.items():
            changed = any(source._version != version for use in uses for source, version in use.sources)
            if changed or any(id(use.call) in stray for use in uses):
                odd.add(found.weight)
        used = list(self.uses)
        for one_range in used:  # read once as a whole and once in part
            if any(o.weight == one_range.weight and o != one_range and _overlap(o, one_range) for o in used):
                odd.add(one_range.weight)
        for found, uses in self.uses.items():
            kinds = {type(use) for use in uses}
            if len(kinds) > 1 or len({use.groups for use in uses if isinstance(use, Product)}) > 1:
                odd.add(found.weight)
        return [name for name in self.leaves if name in odd]

    def adopt(self, few: Pass, examples: int, less: int) -> bool:
        """Take over how examples lie from a pass of fewer; False where that was not the same pass."""
        if list(self.uses) != list(few.uses) or self.odd != few.odd:
            return False
        pairs = list(zip(self.calls(), few.calls(), strict=False))
        for one, other in pairs:
            places, fewer = math.prod(one.shape[: one.lead]), math.prod(other.shape[: other.lead])
            if one.shape[one.lead :] != other.shape[other.lead :] or places * less != fewer * examples:
                return False
        for one, other in pairs:
            one.before, one.behind = other.before, other.behind
        return len(self.calls()) == len(few.calls())

    def calls(self) -> list[Call]:
        """Every call once, in the order of execution."""
        return list({id(use.call): use.call for uses in self.uses.values() for use in uses}.values())

    def ranges(self, left: Sequence[str]) -> list[Found]:
        """Ranges of all weights but those left, the last used first."""
        return [Found(found, uses) for found, uses in self.uses.items() if found.weight not in left][::-1]


def written_out(net: Network) -> Any:
    """Context in which attention and recurrences run as the products that they are."""
    recurrent = any(isinstance(part, nn.RNNBase) for part in net.module.modules())
    return plain_kernels(attention=True, recurrence=recurrent)


@contextmanager
def differentiable(where: str, expected: str) -> Iterator[None]:
    """Name what torch cannot differentiate; what the memory does not hold stays what it is."""
    try:
        yield
    except RuntimeError as problem:
        if any(said in str(problem) for said in ("out of memory", "DefaultCPUAllocator")):
            raise
        said = (str(problem).splitlines() or [type(problem).__name__])[0]
        remedy = "Write the module without what torch names here (nn.EmbeddingBag as an nn.Embedding and a mean)."
        raise InputError(where, expected, said, remedy) from problem


_HALF = frozenset([torch.float16, torch.bfloat16])


def widened(net: Network, rows: Tensor) -> tuple[Network, Tensor]:
    """A network and its inputs without mixed precision, and half precision as single where its forward allows."""
    net = net.with_autocast(None)
    if not any(tensor.dtype in _HALF for tensor in (*net.weights.values(), *net.buffers.values())):
        return net, rows

    def wide(tensors: Mapping[str, Tensor]) -> Weights:
        return {name: one.float() if one.dtype in _HALF else one for name, one in tensors.items()}

    layout = net.port.layout
    if layout is not None:
        parts = (replace(part, dtype=torch.float32 if part.dtype in _HALF else part.dtype) for part in layout.parts)
        layout = replace(layout, parts=tuple(parts))
    port, plasticity = replace(net.port, layout=layout), wide(net.plasticity)
    made = replace(net, weights=wide(net.weights), buffers=wide(net.buffers), plasticity=plasticity, port=port)
    kind = layout.dtype if layout is not None else torch.float32 if rows.dtype in _HALF else rows.dtype
    inputs = rows.to(kind)
    try:
        made(inputs[:2])
    except RuntimeError:  # something in it insists on half precision
        return net, rows
    return made, inputs


def custom(outputs: Tensor) -> list[str]:
    """Names of the functions of the user's own in a graph."""
    names: dict[str, None] = {}
    seen: set[Any] = set()
    waiting = [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            names[node.name().removesuffix("Backward")] = None
        waiting += [one for one, _ in node.next_functions]
    return list(names)


def _moves(plasticity: Tensor) -> bool:
    """Whether any entry is plastic; one number seen through the weight's shape is read once."""
    return bool((plasticity[(0,) * plasticity.ndim] if _single(plasticity) else plasticity).gt(0).any())


def _single(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and not any(tensor.stride())


def _projected(gradient: Tensor, call: Call) -> Tensor:
    """One number for each leading place."""
    sizes = math.prod(call.shape[: call.lead]), math.prod(call.shape[call.lead :])
    flat = gradient.detach().reshape(sizes).double()
    rng = stream(0, "gram", "projection", flat.shape[1])
    return flat @ torch.randn(flat.shape[1], generator=rng, dtype=torch.float64).to(flat.device)


def _arrangements(places: int, examples: int) -> Iterator[tuple[int, int]]:
    """Ways in which examples may lie in an axis, most usual first."""
    if places % examples:
        return
    each = places // examples
    for before in range(1, each + 1):
        if each % before == 0:
            yield before, each // before


def _overlap(one: Range, other: Range) -> bool:
    return one.start < other.stop and other.start < one.stop


_CHOOSING = frozenset(
    [
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "index",
        "index_put_",
        "index_select",
        "index_add_",
        "gather",
        "scatter",
        "scatter_",
        "scatter_add",
        "scatter_add_",
        "sort",
        "topk",
        "argsort",
        "_unique",
        "_unique2",
        "unique_dim",
        "bincount",
    ]
)
"""Operations by which the data may decide which example goes where."""


_ROUGH = frozenset([torch.float32, torch.bfloat16, torch.float16])
"""Types whose rounding shows in gradients of a network in double precision that computes some of it in them."""


class _Reader(TorchDispatchMode):
    """Sees every operation of a pass below autograd and keeps those that read a weight, in a form known or not."""

    def __init__(self, owners: dict[int, str], leaves: Weights) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owners, self._leaves = owners, leaves
        self._waiting: list[tuple[Call, Tensor]] = []
        self.uses: dict[Range, list[Use]] = {}
        self.odd: set[str] = set()
        self.chooses = self.rough = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        self.connect()
        result = func(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and self._owner(leaf)]
        name = str(func._schema.name).removeprefix("aten::")
        self.chooses |= name in _CHOOSING
        self.rough |= any(isinstance(leaf, Tensor) and leaf.dtype in _ROUGH for leaf in tree_leaves(result))
        if read and name not in SHAPED:
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            if made and all(self._owner(leaf) for leaf in made) and not func._schema.is_mutable:
                return result  # a view; what reads it will be seen
            before = {found: len(uses) for found, uses in self.uses.items()}
            if not self._keep(name, args, kwargs or {}, made, len(read)):
                for found, uses in self.uses.items():
                    del uses[before.get(found, 0) :]
                self.odd |= {self._owner(leaf) for leaf in read}
        return result

    def connect(self) -> None:
        """Note where gradients come back, before the next operation may write over an output."""
        for call, output in self._waiting:
            call.edge = get_gradient_edge(output)
        self._waiting.clear()

    def _owner(self, tensor: Tensor) -> str:
        return self._owners.get(tensor.untyped_storage().data_ptr(), "") if tensor.layout == torch.strided else ""

    def _keep(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], made: list[Tensor], reads: int) -> bool:
        """Whether the operation is of a known form, with all its weights where they belong."""
        read = FORMS.get(name)
        if read is None or not made:
            return False
        call, uses = read(args, kwargs, made)
        uses = [(weight, use) for weight, use in uses if isinstance(weight, Tensor) and self._owner(weight)]
        if len(uses) != reads:
            return False
        for weight, use in uses:
            found = self._range(weight, use)
            if found is None:
                return False
            self.uses.setdefault(found, []).append(use)
        self._waiting.append((call, made[0]))
        return True

    def _range(self, view: Tensor, use: Use) -> Range | None:
        """Which entries of its weight a view shows; None if they are not neighbours."""
        name, start = self._owner(view), int(view.storage_offset())
        if isinstance(use, Scale):
            return Range(name, start, 1, view.numel()) if view.is_contiguous() else None
        if view.ndim != 2 or use.table is not None or use.groups > 1:
            height = view.shape[0]
            return Range(name, start, height, view.numel() // height) if view.is_contiguous() else None
        width = self._leaves[name].shape[-1] if self._leaves[name].ndim > 1 else 0
        if view.is_contiguous() and view.shape[1] == width:
            return Range(name, start, *view.shape)
        if view.t().is_contiguous() and view.shape[0] == width:
            use.rows_known = False  # the matrix that was multiplied by is the weight's transpose
            return Range(name, start, view.shape[1], view.shape[0])
        return None
