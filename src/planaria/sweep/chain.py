"""Chains: networks that are one product after another, with simple operations in between.

Multilayer perceptrons and plain convolutional networks are chains: each linear layer or convolution (a batch
normalisation right behind it is folded into it), then activations, pooling, flattening, then the next product. For
chains there are closed forms: the change of one unit is a change of rank one of the next product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from planaria.core.anatomy import Anatomy
from planaria.core.graph import Call, Graph, Product, Value, trace
from planaria.core.network import Network
from planaria.sweep.record import examples_of, leaves

_LIPSCHITZ = {"relu": 1.0, "tanh": 1.0, "hardtanh": 1.0, "sigmoid": 0.25, "gelu": 1.13, "silu": 1.1, "leaky_relu": 1.0}
"""Largest slope; of the monotone ones and of two that are not."""
_MONOTONE = frozenset(["relu", "tanh", "hardtanh", "sigmoid", "leaky_relu"])


@dataclass(frozen=True, eq=False)
class Step:
    """One operation between two products, the same for every channel.

    Attributes:
        name: Of the operation, for example "relu"; "flatten" joins channels and positions.
        function: Tensor [examples, channels, ...] -> tensor; works for any number of examples and channels.
        pointwise: Whether each output depends on the input at its place only.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    pointwise: bool


@dataclass(frozen=True, eq=False)
class Stage:
    """A product and the steps between it and the next one.

    Attributes:
        name: Name of the weight.
        bias: Name of the bias in the network, or None (a bias that comes from folding has no name).
        weight: [made, read] of a linear layer, [made, read, *kernel] of a convolution; batch norm folded in.
        shift: [made] or None.
        geometry: (stride, padding, dilation) of a convolution; None for a linear layer.
        folded: Whether a normalisation was folded into weight and shift, so that weight is not the network's tensor.
        steps: In order.
        layer: Name of the layer whose units this stage makes; "" if they are no units (the outputs).
        silent: Value that a silenced unit of this stage has behind the steps; NaN where it is not one number.
        block: Columns of the *next* product's weight per channel of this stage (positions that were flattened).
    """

    name: str
    bias: str | None
    weight: Tensor
    shift: Tensor | None
    geometry: tuple[Any, Any, Any] | None
    folded: bool = False
    steps: tuple[Step, ...] = ()
    layer: str = ""
    silent: float = 0.0
    block: int = 1

    @property
    def made(self) -> int:
        """Number of channels made."""
        return len(self.weight)

    @property
    def linear(self) -> bool:
        """Whether the product is a linear layer."""
        return self.geometry is None

    @property
    def monotone(self) -> bool:
        """Whether every step is pointwise and never falls."""
        return all(step.name in _MONOTONE for step in self.steps)

    @property
    def slope(self) -> float:
        """Largest slope of the steps together; infinite where it is not known."""
        result = 1.0
        for step in self.steps:
            result *= _LIPSCHITZ.get(step.name, float("inf"))
        return result

    @property
    def rectifies(self) -> bool:
        """Whether the steps are a ReLU and nothing else."""
        return [step.name for step in self.steps] == ["relu"]

    def product(self, x: Tensor, weight: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """The product alone, without its shift unless one is given.

        Args:
            x: [examples, read, ...].
            weight: Used instead of the stage's own, for example some of its columns or rows.
            shift: [made].
        """
        weight = self.weight if weight is None else weight
        if self.geometry is None:
            return functional.linear(x, weight, shift)
        stride, padding, dilation = self.geometry
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[weight.ndim - 3]
        return convolve(x, weight, shift, stride, padding, dilation)

    def pre(self, x: Tensor) -> Tensor:
        """The product with its shift: what the steps are applied to."""
        return self.product(x, self.weight, self.shift)

    def post(self, pre: Tensor) -> Tensor:
        """The steps, applied to the product."""
        for step in self.steps:
            pre = step.function(pre)
        return pre


@dataclass(frozen=True, eq=False)
class Chain:
    """A network as a chain of stages: `outputs = stages(... entry(inputs))`, equal up to rounding.

    Attributes:
        entry: Steps before the first product.
        stages: At least one; the last makes the outputs (its steps may hold a softmax).
        elsewhere: Names of weights and biases of stages that do more than the stage says: another product or operation
            reads them too.

    Example:
        >>> from torch import nn
        >>> net = Network.of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 4))
        >>> chain = Chain.of(net)
        >>> [(stage.name, stage.layer, [step.name for step in stage.steps]) for stage in chain.stages]
        [('0.weight', '0', ['relu']), ('2.weight', '', [])]
        >>> bool(torch.allclose(chain(torch.ones(1, 4)), net(torch.ones(1, 4))))
        True
    """

    entry: tuple[Step, ...]
    stages: tuple[Stage, ...]
    elsewhere: frozenset[str] = frozenset()

    @staticmethod
    def of(net: Network) -> Chain | str:
        """The chain that a network is, or why it is none.

        Args:
            net: A network with example inputs.
        """
        assert net.inputs is not None
        inputs = examples_of(net.inputs, 2)
        found = _read(trace(net, inputs), net)
        if isinstance(found, str):
            return found
        outputs, ours = net(inputs), found(inputs)
        scale = float(outputs.abs().max()) or 1.0
        if not bool(((outputs - ours).abs() <= 1e-4 * scale).all()):
            return "its outputs are not those of the chain of its products"
        return found

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs [examples, outputs]."""
        return self.run(inputs)[-1]

    def begin(self, inputs: Tensor) -> Tensor:
        """What the first product reads."""
        for step in self.entry:
            inputs = step.function(inputs)
        return inputs

    def run(self, inputs: Tensor) -> list[Tensor]:
        """What each stage reads, and the outputs at the end: stages + 1 tensors [examples, channels, ...]."""
        held = [self.begin(inputs)]
        for stage in self.stages:
            held.append(stage.post(stage.pre(held[-1])))
        return held

    @property
    def linear(self) -> bool:
        """Whether every product is a linear layer."""
        return all(stage.linear for stage in self.stages)


def _read(graph: Graph, net: Network) -> Chain | str:
    makers = {id(value) for call in graph.calls for value in call.outputs if value is not None}
    starts = {
        id(value): value
        for call in graph.calls
        for value in call.arguments
        if value.active and id(value) not in makers and value.uses
    }
    if len(starts) != 1 or len(graph.outputs) != 1:
        return "it has several inputs or outputs"
    layers = {group.gates[0][0]: group for group in Anatomy.of(net).groups if len(group.gates) == 1}
    value = next(iter(starts.values()))
    entry: list[Step] = []
    stages: list[Stage] = []
    elsewhere: set[str] = set()
    gated_at = -1  # steps that come before the gate of the current stage's units
    while not (graph.is_output(value) and not value.uses):
        uses = list(dict.fromkeys(value.uses))
        if len(uses) != 1 or graph.is_output(value):
            return f"{_said(value)} is read more than once"
        call = graph.calls[uses[0]]
        out = call.outputs[0]
        if out is None or call.overwritten or sum(o is not None and bool(o.uses) for o in call.outputs) > 1:
            return f"{call.name} has several outputs that are read"
        product = call.product
        steps = entry if not stages else list(stages[-1].steps)
        if product is not None and product.x is value:
            if stages:
                stages[-1] = _closed(stages[-1], value, gated_at, net)
            stage = _stage(product, net)
            if isinstance(stage, str):
                return stage
            stages.append(stage)
            elsewhere |= {name for name in (stage.name, stage.bias) if name and graph.reads[name] != {uses[0]}}
            gated_at = 0
        elif call.normalises and stages and not steps and call.args[0] is value:
            folded = _folded(stages[-1], call)
            if isinstance(folded, str):
                return folded
            stages[-1] = folded
        else:
            step = _step(call, value, out, after=bool(stages))
            if isinstance(step, str):
                return step
            steps += [] if step.name == "same" else [step]
            if stages:
                stages[-1] = replace(stages[-1], steps=tuple(steps))
        group = layers.get(call.tag)
        if group is not None and stages and group.count == stages[-1].made:
            stages[-1] = replace(stages[-1], layer=group.layer)
            gated_at = len(stages[-1].steps)
        value = out
    if not stages:
        return "it has no products"
    return Chain(tuple(entry), _aligned(stages), frozenset(elsewhere))


def _said(value: Value) -> str:
    return f"an activation of shape {list(value.tensor.shape[1:])}"


def _stage(product: Product, net: Network) -> Stage | str:
    name = product.w.weight or ""
    bias = product.b
    shift = bias.tensor.detach() if isinstance(bias, Value) else None
    if isinstance(bias, Value) and (bias.active or shift is None or shift.numel() != shift.shape[-1]):
        return f"{name}: its bias is not one number per channel"
    bias_name = bias.weight if isinstance(bias, Value) else None
    if product.convolution:
        _, _, _, stride, padding, dilation, transposed, _, groups = product.call.args
        if transposed or groups != 1 or product.w.tensor.shape != net.weights[name].shape:
            return f"{name}: a transposed or grouped convolution"
        geometry = (tuple(stride), tuple(padding), tuple(dilation))
        return Stage(name, bias_name, net.weights[name].detach(), shift, geometry)
    if product.x.tensor.ndim != 2 or product.call.name == "bmm" or product.call.kwargs:
        return f"{name}: a product over several positions"
    index = product.columns[0, :, 0, :].T
    weight = net.weights[name].detach().reshape(-1)[index.to(net.device)]
    same = weight.shape == net.weights[name].shape and bool((weight == net.weights[name]).all())
    return Stage(name, bias_name, net.weights[name].detach() if same else weight, shift, None)


def _folded(stage: Stage, call: Call) -> Stage | str:
    """Batch normalisation behind a product: scale and shift of its channels."""

    def tensor(argument: Any) -> Tensor | None:
        return argument.tensor.detach() if isinstance(argument, Value) else None

    found = fold(stage.weight, stage.shift, call.args, tensor)
    if found is None:
        return f"{call.name} takes the statistics of the batch"
    weight, shift = found
    return replace(stage, weight=weight, shift=shift, bias=None, folded=True)


def fold(
    weight: Tensor, shift: Tensor | None, norm: Sequence[Any], tensor: Callable[[Any], Tensor | None]
) -> tuple[Tensor, Tensor] | None:
    """Weight and shift of a product with the batch normalisation behind it.

    Args:
        weight: Of the product, [made, ...].
        shift: [made] or None.
        norm: Arguments of the normalisation: what it reads, scale, shift, mean, variance, ..., epsilon.
        tensor: What an argument is; None if it is none, or not the same for all inputs.

    Returns:
        None if the normalisation takes the statistics of the batch.
    """
    scale, offset, mean, variance = (tensor(argument) for argument in norm[1:5])
    if mean is None or variance is None or any(argument is True for argument in norm):
        return None
    epsilon = next(a for a in reversed(norm) if isinstance(a, float))
    # In double precision, rounded once.
    factor = (variance.double() + epsilon).rsqrt()
    if scale is not None:
        factor = factor * scale.double()
    after = ((0.0 if shift is None else shift.double()) - mean.double()) * factor
    if offset is not None:
        after = after + offset.double()
    return (weight.double() * factor.view(-1, *[1] * (weight.ndim - 1))).to(weight), after.to(weight)


def _step(call: Call, value: Value, out: Value, *, after: bool) -> Step | str:
    """One operation between products as a function of any number of examples and channels, or why it is none."""
    before, behind = value.tensor.shape, out.tensor.shape
    if out.tensor.dtype != value.tensor.dtype:
        kind = out.tensor.dtype
        if call.name == "_to_copy" and not after:
            return Step("cast", lambda x: x.to(kind), True)
        if call.name == "_to_copy":
            return f"an activation is cast to {kind}"
    if call.rearranges:
        if before == behind and call.name != "flip" and call.name != "roll":
            return Step("same", lambda x: x, True) if _in_order(call, value) else f"{call.name} reorders an activation"
        if behind == (before[0], before[1:].numel()) and _in_order(call, value):
            return Step("flatten", lambda x: x.flatten(1), False)
        if not after and behind[0] == before[0] and _in_order(call, value):
            shape = behind[1:]
            return Step("view", lambda x: x.reshape(len(x), *shape), False)
        return f"{call.name} reorders an activation"
    function, rest, named = call.functional, call.args[1:], call.kwargs
    if leaves((rest, named), Value):
        return f"{call.name} reads an activation twice, or something else beside it"
    if call.pointwise and call.args[0] is value and function is not None and before == behind:
        name = call.name
        if name == "leaky_relu" and rest and not 0 <= rest[0] <= 1:
            name = "leaky_relu above 1"
        return Step(name, lambda x: function(x, *rest, **named), True)
    softmax = call.name in {"_log_softmax", "_softmax"} and value.tensor.ndim == 2
    pools = call.pools and len(before) > 2 and before[:2] == behind[:2] and _pools(call, len(before))
    if function is not None and (softmax or pools) and call.args[0] is value:

        def first(x: Tensor) -> Tensor:
            result = function(x, *rest, **named)
            return result[0] if isinstance(result, tuple) else result

        return Step(call.name, first, False)
    return f"{call.name} is no simple step between two products"


def _pools(call: Call, axes: int) -> bool:
    """Whether a pooling call on [examples, channels, positions ...] reduces positions only."""
    if call.positions is not None:
        return call.positions == axes - 2
    dims = (call.args[1] if len(call.args) > 1 else None) or ()
    return bool(dims) and not {0, 1} & {dim % axes for dim in dims}


def _in_order(call: Call, value: Value) -> bool:
    labels = torch.arange(value.tensor.numel()).view(value.tensor.shape)
    carried = call.carry({id(value): labels})[0]
    return torch.equal(carried.reshape(-1), labels.reshape(-1))


def _closed(stage: Stage, read: Value, gated_at: int, net: Network) -> Stage:
    """A stage whose reader is known: its silent value, and its columns per channel."""
    shape = read.tensor.shape
    block = shape[1] // stage.made if len(shape) == 2 else 1
    positions = [1] * 0 if stage.linear else [4] * (stage.weight.ndim - 2)
    zero = torch.zeros(1, 1, *positions, dtype=stage.weight.dtype, device=net.device)
    behind = stage.steps[gated_at:]
    silent = 0.0
    if any(step.pointwise for step in behind):
        for step in behind:
            zero = step.function(zero) if step.pointwise else zero
        silent = float(zero.flatten()[0]) if bool((zero == zero.flatten()[0]).all()) else float("nan")
    return replace(stage, silent=silent, block=block)


def _aligned(stages: list[Stage]) -> tuple[Stage, ...]:
    """Stages with each ReLU behind the max-pooling that follows it: the same numbers from fewer operations."""
    result = []
    for stage in stages:
        steps = list(stage.steps)
        for at in range(len(steps) - 1):
            if steps[at].name == "relu" and steps[at + 1].name.startswith("max_pool"):
                steps[at], steps[at + 1] = steps[at + 1], steps[at]
        result.append(replace(stage, steps=tuple(steps)))
    return tuple(result)
