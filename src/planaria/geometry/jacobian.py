"""Jacobian: what a network's outputs for some inputs do when its weights move, J v, and the way back, J^T u.

Both are products with a graph that is built once and kept. J v is the derivative of J^T u in u, backwards twice:
cached like that it costs what forward mode costs, needs no forward-mode formula of any operation, and is there at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from planaria.core.autodiff import plain_kernels, steps_matter
from planaria.core.errors import InputError
from planaria.core.gemm import fast_products
from planaria.core.graph import Watch
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import Weights, dot, norm
from planaria.geometry.factors import Factors
from planaria.geometry.passes import custom, differentiable, widened

KEPT = 1 << 30
"""Bytes of activations that may be kept between products; with more, every product runs the network again."""

PART = 1 << 28
"""Bytes of activations of one part of the inputs where they are not kept."""

COPIES = 4
"""A graph that is differentiated twice holds some four times what one pass saves for its gradients."""

WARM = 12
"""Products after which more is done for the next ones, which costs as much as some ten; of networks with more outputs
for each example, as many as there are outputs. Where the factors of J fit into memory and pay, they are kept: a product
then takes one matrix product per layer instead of two. Else networks with convolutions are linearised by
`torch.func.linearize`, since torch computes the gradients of a convolution's gradient all together, also those that
nobody asks for."""

SAME = 1e-4
"""Difference, relative to the largest entry, below which two ways to compute something agree; a GPU's sums may vary."""

ADJOINT = 0.02
"""Difference between u.(J v) and (J^T u).v, relative to their usual size, that rounding explains."""

_CHECKED: WeakKeyDictionary[nn.Module, set[object]] = WeakKeyDictionary()
"""Modules whose derivatives have been checked, with what their inputs looked like."""


class Jacobian:
    """J = df/dw of a network on some inputs, at its weights, in eval mode and single or double precision throughout.

    Args:
        net: The network. Mixed precision is left out; weights of half precision are computed with in single.
        inputs: [N, ...].
        where: Begins every error message.

    Attributes:
        outputs: [N, m...], detached.

    Raises:
        InputError: A normalisation uses the statistics of the batch, two passes differ, or an output is not finite; of
            products: an operation that torch cannot differentiate (twice, for J v).

    Example:
        >>> net = Network.of(nn.Linear(2, 1, bias=False))
        >>> jacobian = Jacobian(net, torch.tensor([[1.0, 2.0]]))
        >>> jacobian.push({"weight": torch.tensor([[1.0, 1.0]])}), jacobian.pull(torch.ones(1, 1))
        (tensor([[3.]]), {'weight': tensor([[1., 2.]])})
    """

    def __init__(self, net: Network, inputs: Tensor, where: str = "Metric(net, inputs)") -> None:
        net, inputs = widened(net, inputs)
        self._net = net
        self._inputs = inputs
        self._where = where
        recurrent = any(isinstance(part, nn.RNNBase) for part in net.module.modules())
        self._recurrence = recurrent or steps_matter(net.module, net.device)
        self._names = [name for name, weight in net.weights.items() if weight.is_floating_point()]
        self._pushed = 0
        self._factors: Factors | None = None
        self._linear: list[Callable[[Weights], Tensor]] = []
        self._convolves = any(weight.ndim > 2 for weight in net.weights.values())
        with self.exact():
            self._probe()
            size, self.keeps = self._parts()
            rows = inputs.split(size)
            self._graphs = [self._graph(some) for some in rows] if self.keeps else []
            self._rows = rows
            if self.keeps:
                outputs = [graph.outputs.detach() for graph in self._graphs]
            else:
                with torch.no_grad():
                    outputs = [self._run(some, self._net.weights) for some in rows]
        self.outputs = torch.cat(outputs)
        _finite_outputs(self.outputs, where)

    def push(self, v: Mapping[str, Tensor]) -> Tensor:
        """J v, of the outputs' shape.

        Args:
            v: Change of the weights; those left out do not change.
        """
        self._pushed += 1
        if self.keeps and self._pushed == 1 + max(WARM, self.outputs[0].numel()):
            self._prepare(v)
        if self._factors is not None:
            with self.exact():
                return self._factors.push(v)
        return self._along(self._linear, v) if self._linear else self._pushed_back(v)

    def _prepare(self, v: Mapping[str, Tensor]) -> None:
        """Make the next products quicker, if that can be done; see `WARM`."""
        slope = self._pushed_back(v)
        back = self.pull(slope)
        with self.exact():
            self._graphs.clear()  # room for the factors
            made = Factors.of(self._net, self._inputs, KEPT)
            if made is not None:
                found = made.pull(slope, list(back), self._net.weights)
                if _alike([made.push(v)], [slope]) and _alike(list(found.values()), list(back.values())):
                    self._factors = made
                    return
            self._graphs = [self._graph(rows) for rows in self._rows]
        if self._convolves:
            self._linear = self._linearised()

    def _along(self, linear: list[Callable[[Weights], Tensor]], v: Mapping[str, Tensor]) -> Tensor:
        point = {name: self._net.weights[name] for name in self._names}
        whole = {name: v[name].to(w.dtype) if name in v else torch.zeros_like(w) for name, w in point.items()}
        with self.exact(), torch.no_grad():
            return torch.cat([function(whole) for function in linear])

    def _pushed_back(self, v: Mapping[str, Tensor]) -> Tensor:
        self.check()
        with self.exact():
            return torch.cat([graph.push(v) for graph in self._each()])

    def pull(self, u: Tensor, names: Iterable[str] | None = None) -> Weights:
        """J^T u, for the weights called `names` or all.

        Args:
            u: Of the outputs' shape.
            names: Which weights.
        """
        wanted = [name for name in (self._names if names is None else names) if name in self._names]
        with self.exact():
            if self._factors is not None:
                return self._factors.pull(u, wanted, self._net.weights)
            return self._summed(
                graph.pull(part, wanted) for graph, part in zip(self._each(), u.split(self._sizes), strict=True)
            )

    def bend(self, v: Mapping[str, Tensor], u: Tensor, names: Iterable[str]) -> tuple[Tensor, Weights]:
        """J v, and how much J^T u changes along v: sum over outputs of u * (second derivative of the output) v.

        Args:
            v: Change of the weights.
            u: Of the outputs' shape, held fixed.
            names: Of which weights the change is wanted.
        """
        self.check()
        wanted = [name for name in names if name in self._names]
        slopes, bends = [], []
        with self.exact():
            for graph, part in zip(self._each(), u.split(self._sizes), strict=True):
                slope, bend = graph.bend(v, part, wanted)
                slopes.append(slope)
                bends.append(bend)
        return torch.cat(slopes), self._summed(bends)

    def check(self) -> None:
        """Once for each module, on two inputs: u.(J v) = (J^T u).v. Some functions lose second derivatives silently."""
        kind = (self._inputs.shape[1:], self._inputs.dtype, self._inputs.device)
        known = _CHECKED.setdefault(self._net.module, set())
        if kind in known:
            return
        with self.exact():
            graph = self._graph(self._inputs[:2])
            rng = stream(0, "adjoint")
            outputs = graph.outputs.detach()
            v = {name: torch.randn(graph.leaves[name].shape, generator=rng).to(outputs) for name in self._names}
            pushed, gap, size = graph.push(v), 0.0, 0.0
            for _ in range(3 if v else 0):  # one alone may not show it, by chance
                u = torch.randn(outputs.shape, generator=rng).to(outputs)
                pulled = graph.pull(u, self._names)
                gap = max(gap, abs(float(dot({"": u}, {"": pushed})) - float(dot(pulled, v))))
                size = max(size, float(norm({"pushed": pushed, **pulled})))
        noise = SAME * float(norm({"": outputs}))  # gradients may be nothing but rounding
        if gap > ADJOINT * size + noise:
            named = ", ".join(custom(graph.outputs)) or "an operation"
            got = f"{named}, whose derivative torch cannot differentiate"
            remedy = "Let its backward consist of torch's operations, on tensors that it has not detached."
            raise InputError(self._where, "a network that torch can differentiate twice", got, remedy)
        known.add(kind)

    @property
    def _sizes(self) -> list[int]:
        return [len(rows) for rows in self._rows]

    def _each(self) -> Iterator[_Graph]:
        if self._graphs:
            yield from self._graphs
        else:
            yield from (self._graph(rows) for rows in self._rows)

    def _summed(self, parts: Iterable[Weights]) -> Weights:
        total: Weights = {}
        for part in parts:
            total = {name: total[name] + part[name] for name in part} if total else part
        return total

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Modes under which every operation has derivatives of derivatives, in full precision."""
        kernels = plain_kernels(attention=True, recurrence=self._recurrence)
        with kernels, fast_products(self._net.device):
            yield

    def _run(self, rows: Tensor, weights: Weights) -> Tensor:
        buffers = {name: tensor.clone() for name, tensor in self._net.buffers.items()}
        outputs: Tensor = self._net.evaluate(rows, {**self._net.weights, **weights}, buffers)
        return outputs

    def _graph(self, rows: Tensor) -> _Graph:
        with torch.enable_grad():
            leaves = {name: self._net.weights[name].detach().clone().requires_grad_() for name in self._names}
            outputs = self._run(rows, leaves)
        return _Graph(leaves, outputs, self._where)

    def _linearised(self) -> list[Callable[[Weights], Tensor]]:
        """One function J v for each part; none where torch cannot trace the network, or does so wrongly."""
        point = {name: self._net.weights[name].detach() for name in self._names}
        made: list[Callable[[Weights], Tensor]] = []
        try:
            with self.exact(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's tracing warns about itself
                for rows in self._rows:
                    function: Any = torch.func.linearize(lambda w, rows=rows: self._run(rows, w), point)[1]
                    made.append(function)
        except Exception:
            return []
        rng = stream(0, "linearised")
        v = {name: torch.randn(w.shape, generator=rng).to(w) for name, w in point.items()}
        # An operation in place, once traced, changes what the next call begins with; it shows along any direction.
        true, *again = self._pushed_back(v), *(self._along(made, v) for _ in range(3))
        close = float((again[0] - true).abs().max()) <= SAME * float(true.abs().max())
        return made if close and all(torch.equal(one, again[0]) for one in again) else []

    def _probe(self) -> None:
        """Two passes over two inputs: they must agree, and no normalisation may look at both."""
        few = self._inputs[:2] if len(self._inputs) > 1 else self._inputs.repeat(2, *[1] * (self._inputs.ndim - 1))
        for name, part in self._net.module.named_modules():
            if isinstance(part, _BatchNorm) and part.running_mean is None:
                raise _of_batch(f"the layer {name!r}", self._where)
        found: list[str] = []

        def seen(tag: str, args: tuple[Any, ...], output: Any) -> None:
            del output
            if "batch_norm" in tag and _uses_batch(args, len(few)):
                found.append(tag)

        with torch.no_grad():
            with Watch(seen):
                first = self._run(few, self._net.weights)
            second = self._run(few, self._net.weights)
        if found:
            training = [
                n for n, part in self._net.module.named_modules() if isinstance(part, _BatchNorm) and part.training
            ]
            what = f"the layer {training[0]!r}" if training else "a batch normalisation in its forward"
            raise _of_batch(what, self._where)
        if not isinstance(first, Tensor) or not first.is_floating_point() or first.ndim == 0 or len(first) != len(few):
            got = f"shape {list(first.shape)} of {first.dtype} for {len(few)} inputs"
            raise InputError(self._where, "a network with outputs [inputs, ...] of real numbers", got)
        gap = float((first - second).abs().max()) if first.numel() else 0.0
        if gap > SAME * float(first.abs().max()):
            raise InputError(
                self._where,
                "a network that computes the same twice",
                f"outputs that differ by {gap:.2g} between two passes over the same inputs",
                "Take the noise out of its forward pass (dropout that ignores eval mode, random masks).",
            )

    def _parts(self) -> tuple[int, bool]:
        """Inputs per part, and whether all graphs may be kept."""
        count = len(self._inputs)
        if count <= 8:
            return count, True
        two, three = (self._saved(self._inputs[:some]) for some in (2, 3))
        price = COPIES * max(1, three - two)
        if count * price <= KEPT:
            return count, True
        return max(1, min(count, PART // price)), False

    def _saved(self, rows: Tensor) -> int:
        """Bytes that a pass saves for its gradients."""
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            graph = self._graph(rows)
        del graph
        return sum(storages.values())


@dataclass
class _Graph:
    """A pass with what its derivatives need; J^T u as a function of u is added on first use."""

    leaves: Weights
    outputs: Tensor
    where: str

    def __post_init__(self) -> None:
        self._cotangent: Tensor | None = None
        self._pulled: dict[str, Tensor] = {}

    def pull(self, u: Tensor, names: list[str]) -> Weights:
        if not self.outputs.requires_grad or not names:
            return {name: torch.zeros_like(self.leaves[name], requires_grad=False) for name in names}
        leaves = [self.leaves[name] for name in names]
        with differentiable(self.where, "a network that torch can differentiate"):
            u = u.to(self.outputs)
            found = torch.autograd.grad(self.outputs, leaves, u, retain_graph=True, allow_unused=True)
        return {
            name: torch.zeros_like(leaf, requires_grad=False) if one is None else one
            for name, leaf, one in zip(names, leaves, found, strict=True)
        }

    def push(self, v: Mapping[str, Tensor]) -> Tensor:
        if self._cotangent is None:
            self._twice(torch.zeros_like(self.outputs))
        if self._cotangent is None:
            return torch.zeros_like(self.outputs)
        return self._back(v, [self._cotangent])[0]

    def bend(self, v: Mapping[str, Tensor], u: Tensor, names: list[str]) -> tuple[Tensor, Weights]:
        if self._cotangent is None or not torch.equal(self._cotangent.detach(), u):
            self._twice(u)
        leaves = [self.leaves[name] for name in names]
        if self._cotangent is None:
            return torch.zeros_like(u), {name: torch.zeros_like(w) for name, w in zip(names, leaves, strict=True)}
        slope, *bends = self._back(v, [self._cotangent, *leaves])
        return slope, dict(zip(names, bends, strict=True))

    def _twice(self, u: Tensor) -> None:
        """J^T u as a function of u and of the weights; along the weights it counts at this u."""
        if not self.outputs.requires_grad:
            return
        u = u.detach().clone().requires_grad_()
        with torch.enable_grad(), differentiable(self.where, _TWICE):
            found = torch.autograd.grad(
                self.outputs, list(self.leaves.values()), u, create_graph=True, allow_unused=True
            )
        self._pulled = {name: one for name, one in zip(self.leaves, found, strict=True) if one is not None}
        self._cotangent = u

    def _back(self, v: Mapping[str, Tensor], wanted: list[Tensor]) -> list[Tensor]:
        """Derivatives of the inner product of J^T u with v."""
        names = [name for name, one in self._pulled.items() if name in v and one.requires_grad]
        if not names:
            return [torch.zeros_like(one, requires_grad=False) for one in wanted]
        pulled = [self._pulled[name] for name in names]
        along = [v[name].to(one.dtype) for name, one in zip(names, pulled, strict=True)]
        with differentiable(self.where, _TWICE):
            found = torch.autograd.grad(pulled, wanted, along, retain_graph=True, allow_unused=True)
        return [
            torch.zeros_like(one, requires_grad=False) if got is None else got
            for one, got in zip(wanted, found, strict=True)
        ]


_TWICE = "a network that torch can differentiate twice"


def _alike(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether all entries agree, relative to the largest of all (some gradients are nothing but rounding)."""
    scale = max((float(one.abs().max()) for one in others if one.numel()), default=0.0)
    pairs = zip(some, others, strict=True)
    return all(float((one - other).abs().max()) <= SAME * scale for one, other in pairs if one.numel())


def _uses_batch(args: tuple[Any, ...], count: int) -> bool:
    """Whether a batch normalisation was told to take the statistics of several inputs; one image at a time is fine."""
    flags = [value for value in args if isinstance(value, bool)]
    return bool(flags) and flags[0] and isinstance(args[0], Tensor) and args[0].shape[0] >= count


def _of_batch(what: str, where: str) -> InputError:
    return InputError(
        where,
        "a network whose output for one input does not depend on the others",
        f"{what}, which normalises by the statistics of the batch even in eval mode",
        "Give it running statistics (track_running_stats=True, train mode off), or take LayerNorm or GroupNorm.",
    )


def _finite_outputs(outputs: Tensor, where: str) -> None:
    fine = torch.isfinite(outputs).flatten(1).all(1) if outputs.ndim > 1 else torch.isfinite(outputs)
    if not bool(fine.all()):
        at = int((~fine).nonzero()[0])
        got = f"NaN or infinity for {int((~fine).sum())} of {len(fine)} inputs, first for input {at}"
        raise InputError(where, "finite outputs", got, "Leave these inputs out, or mend the weights.")
