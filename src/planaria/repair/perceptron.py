"""Perceptrons trained by hand, without what modules and automatic differentiation spend beside the products.

A sequence of linear layers with ReLUs between takes two products per layer and direction, and little else. All weights
are one vector, so that the optimiser's step, the law of motion and what is kept of an update are one operation each.
Dead units take no part where that is exact: their entries are left out of the vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

from planaria.core.autodiff import plain_kernels
from planaria.core.network import Network
from planaria.core.streams import lend
from planaria.core.trees import Weights
from planaria.measure.data import Data
from planaria.measure.task import Loss, cross_entropy

Names = list[tuple[str, str | None]]
"""Weight and bias of each layer."""

_behind_relu = torch.ops.aten.threshold_backward.grad_input
"""(gradient, what the ReLU put out, 0) -> gradient before the ReLU."""


@dataclass(frozen=True, eq=False)
class Settings:
    """How a perceptron is trained.

    Attributes:
        loss: Mean loss of outputs and targets.
        batch: Examples per update.
        rng: Advanced by one number per update, and lent to a loss that may draw some.
        momentum: Share of each gradient that is added to the next one.
        decays: Whether weights may move without a gradient.
    """

    loss: Loss
    batch: int
    rng: Generator
    momentum: float
    decays: bool


@dataclass(frozen=True, eq=False)
class _Layer:
    """A linear layer. Its activations are [units, examples], which suits narrow layers, and the softmax.

    Attributes:
        weight: [made, read].
        turned: The same, transposed.
        shift: [made, 1] or None.
        weight_slope: Where the weight's gradient goes.
        shift_slope: The shift's [made].
        read: What it reads [read, examples]: outputs of the layer before, behind their ReLU.
        examples: The same, transposed.
        made: What it makes [made, examples].
        slope: Where the gradient of that goes.
    """

    weight: Tensor
    turned: Tensor
    shift: Tensor | None
    weight_slope: Tensor
    shift_slope: Tensor | None
    read: Tensor
    examples: Tensor
    made: Tensor
    slope: Tensor


class Perceptron:
    """A training of linear layers with ReLUs between them (a `Learner`, see descent.py); made by `of`.

    Gradients are those of automatic differentiation up to rounding.

    Attributes:
        vector: All entries that take part, with their gradients.
        multiply_adds: Of one forward pass, per example.
    """

    def __init__(self, net: Network, names: Names, left: Sequence[Tensor], data: Data, training: Settings) -> None:
        places = _places(net, names, left)
        self._net, self._data, self._training = net, data, training
        self._places = None if len(places) == net.parameters else places.to(net.device)
        self.vector = self._joined(net.weights)
        self.vector.grad = torch.zeros_like(self.vector)
        self._inputs = data.inputs.flatten(1)
        self._batch = self._inputs.new_empty(training.batch, len(left[0]))
        self._layers: list[_Layer] = []
        at, read = 0, self._batch.t()
        for (_, bias), made in zip(names, map(len, left[1:]), strict=True):
            middle = at + made * len(read)
            end = middle + (made if bias else 0)
            (weight, shift), (weight_slope, shift_slope) = (
                (values[at:middle].view(made, len(read)), values[middle:end] if bias else None)
                for values in (self.vector, self.vector.grad)
            )
            column = None if shift is None else shift[:, None]
            out, slope = weight.new_empty(2, made, training.batch)
            self._layers.append(
                _Layer(weight, weight.t(), column, weight_slope, shift_slope, read, read.t(), out, slope)
            )
            at, read = end, out
        self.multiply_adds = sum(layer.weight.numel() for layer in self._layers)
        self._ones = self._inputs.new_ones(training.batch)
        labels = data.targets.ndim == 1 and not data.targets.is_floating_point()
        self._minus = -self._ones[None] if training.loss is cross_entropy and labels else None
        self._share = 1.0 if self._minus is None else 1.0 / training.batch

    @staticmethod
    def of(net: Network, data: Data, training: Settings) -> Perceptron | None:
        """The network in training, or None: it is no perceptron, or a matrix is pinned as a whole.

        Args:
            net: Any network.
            data: What it is trained on, on the network's device.
            training: How.
        """
        names = _names(net, data.inputs)
        if names is None or not all(float(net.plasticity[name].sum()) for name, _ in names):
            return None  # automatic differentiation forms no gradient of what is pinned, which saves more
        read = torch.arange(net.weights[names[0][0]].shape[1])
        return Perceptron(net, names, [read, *_left(net, names, training.decays)], data, training)

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The vector alone."""
        return {"": self.vector}

    def plasticity(self, plasticity: Weights) -> Weights:
        """Plasticity of the vector."""
        return {"": self._joined(plasticity)}

    def gradient(self, rows: Tensor) -> None:
        """Form the gradient for a batch and add the momentum's share of what was there before."""
        outputs, scaled = self._layers[-1], {"beta": self._training.momentum, "alpha": self._share}
        torch.index_select(self._inputs, 0, rows, out=self._batch)
        for layer in self._layers:
            if layer.shift is None:
                torch.mm(layer.weight, layer.read, out=layer.made)
            else:
                torch.addmm(layer.shift, layer.weight, layer.read, out=layer.made)
            if layer is not outputs:
                layer.made.relu_()
        slope = self._slope(outputs.made, self._data.targets.index_select(0, rows))
        for layer, before in zip(self._layers[::-1], [*self._layers[-2::-1], None], strict=True):
            torch.addmm(layer.weight_slope, slope, layer.examples, **scaled, out=layer.weight_slope)
            if layer.shift_slope is not None:
                torch.addmv(layer.shift_slope, slope, self._ones, **scaled, out=layer.shift_slope)
            if before is not None:
                slope = torch.mm(layer.turned, slope, out=before.slope)
                _behind_relu(slope, before.made, 0, grad_input=slope)

    def _slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Gradient of the loss, over `_share`, with respect to outputs [outputs, examples]."""
        if self._minus is not None:
            torch.randint(2**62, (), generator=self._training.rng)  # as if the stream had been lent
            return torch.softmax(outputs, 0).scatter_add_(0, targets[None], self._minus)
        with lend(self._training.rng, outputs.device), plain_kernels(), torch.enable_grad():
            given = outputs.t().clone(memory_format=torch.contiguous_format).requires_grad_()
            (found,) = torch.autograd.grad(self._training.loss(given, targets), given)
        return found.t()

    def now(self) -> Callable[[], Network]:
        """Keep the weights as they are; what is returned makes a network of them."""
        kept = self.vector.clone()
        return lambda: self._network(kept)

    def _network(self, values: Tensor) -> Network:
        if self._places is not None:
            values = _flat(self._net.weights).index_copy(0, self._places, values)
        parts = values.split([weight.numel() for weight in self._net.weights.values()])
        pairs = zip(self._net.weights.items(), parts, strict=True)
        return self._net.with_weights({name: part.view(weight.shape).clone() for (name, weight), part in pairs})

    def _joined(self, tensors: Weights) -> Tensor:
        """Entries that take part, in one vector."""
        flat = _flat(tensors)
        return flat if self._places is None else flat.index_select(0, self._places)


def _flat(tensors: Weights) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors.values()])


def _names(net: Network, inputs: Tensor) -> Names | None:
    """Names of the layers if the network is linear layers with ReLUs between that fit the inputs, else None."""
    names: Names = []
    flat = inputs.ndim == 2
    expected: type[nn.Module] = nn.Linear
    for name, part in _parts(net.module, ""):
        if type(part) is nn.Flatten and not names and (part.start_dim, part.end_dim) == (1, -1):
            flat = inputs.ndim > 1
        elif type(part) is not expected:
            return None
        elif isinstance(part, nn.Linear):
            names.append((f"{name}.weight", None if part.bias is None else f"{name}.bias"))
            expected = nn.ReLU
        else:
            expected = nn.Linear
    # Tied weights have one name; a parameter of another kind has a name of its own.
    if not names or expected is nn.Linear or [n for pair in names for n in pair if n] != list(net.weights):
        return None
    tensors = [inputs, *net.weights.values()]
    kind = tensors[-1].dtype
    fit = flat and inputs.is_contiguous() and len(inputs.flatten(1)[0]) == net.weights[names[0][0]].shape[1]
    alike = kind.is_floating_point and all(tensor.dtype == kind for tensor in tensors)
    device = net.device.type
    mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    mixed = mixed or net.port.autocast is not None
    return names if fit and alike and not mixed else None


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """What sequences inside sequences call, in order; something unknown where somebody has changed how it is called."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hooks) or "forward" in vars(module):
        yield name, nn.Module()
    elif type(module) is nn.Sequential:
        for key, part in module._modules.items():  # named_children would skip a ReLU that comes again
            if part is not None:
                yield from _parts(part, f"{name}.{key}" if name else key)
    else:
        yield name, module


def _left(net: Network, names: Names, decays: bool) -> list[Tensor]:
    """Per layer, the units that cannot be left out; all of the last layer's.

    A unit can be if nothing comes out of it or nothing reads it, ever, and what else belongs to it cannot move: it has
    no gradient, and no decay or is pinned.
    """
    # What is 0 or more adds up to 0 where all of it is 0: sums are quicker than masks.
    kept = {name: weight.abs() + net.plasticity[name] for name, weight in net.weights.items()}
    left = []
    for (weight, bias), (reader, _) in pairwise(names):

        def sums(entries: Weights, weight: str = weight, bias: str | None = bias) -> Tensor:
            return entries[weight].sum(1) + entries[bias] if bias else entries[weight].sum(1)

        gone = (sums(kept) == 0) | (kept[reader].sum(0) == 0)
        if decays:
            gone &= sums(net.plasticity) + net.plasticity[reader].sum(0) == 0
        if bool(gone.all()):
            gone[0] = False
        left.append((~gone).nonzero().flatten().cpu())
    return [*left, torch.arange(len(net.weights[names[-1][0]]))]


def _places(net: Network, names: Names, left: Sequence[Tensor]) -> Tensor:
    """Places, in the vector of all entries, of those between units that are left."""
    places = []
    start = 0
    for (weight, bias), (read, made) in zip(names, pairwise(left), strict=True):
        width = net.weights[weight].shape[1]
        places.append((start + made[:, None] * width + read).flatten())
        start += net.weights[weight].numel()
        if bias:
            places.append(start + made)
            start += net.weights[bias].numel()
    return torch.cat(places)
