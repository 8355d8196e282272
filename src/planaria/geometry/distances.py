"""Distances between many networks of one architecture: in weights, in outputs, in answers.

Each gives a matrix [networks, networks] in double precision, symmetric, with an exact zero diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from planaria.core.errors import InputError
from planaria.core.network import Network

ROOM = 1 << 26
"""Bytes of numbers of all networks that are looked at together."""
NEAR = 1e-6
"""Squared distance, as a share of the squared lengths, below which a pair is measured by itself."""


def weight_distances(nets: Sequence[Network]) -> Tensor:
    """Euclidean distance of the weights of every two networks.

    d(a, b) = norm(w_a - w_b), over all weights, those of dead units too; buffers do not count. Taken from the Gram
    matrix of the displacements from the first network; pairs so near that this loses digits are measured one by one.

    Args:
        nets: At least one network, all with weights of the same names and shapes.

    Returns:
        [networks, networks]. A network with weights that are not finite is infinitely far from every other one.

    Raises:
        InputError: No network, or networks with different weights.

    Example:
        >>> net = Network.of(torch.nn.Linear(1, 1))
        >>> there = net.with_weights({name: weight + 1 for name, weight in net.weights.items()})
        >>> weight_distances([net, there, net])[0].round(decimals=4).tolist()
        [0.0, 1.4142, 0.0]

    Not guaranteed: that networks far apart compute different things. Most of the distance between two networks that
    were trained from different starts is a matter of the order of their units; align them first.
    """
    nets = _alike(nets, "weight_distances(nets)")

    def parts() -> Iterator[Tensor]:
        for name, weight in nets[0].weights.items():
            size = max(1, ROOM // (8 * len(nets)))
            for at in range(0, weight.numel(), size):
                yield torch.stack([net.weights[name].reshape(-1)[at : at + size].double() for net in nets])

    return _euclidean(parts, len(nets))


def output_distances(nets: Sequence[Network], inputs: Tensor) -> Tensor:
    """Root mean squared distance of the outputs of every two networks.

    d(a, b) = sqrt(mean over inputs of norm(f_a(x) - f_b(x))^2): how differently two networks compute.

    Args:
        nets: At least one network, all with outputs of one shape.
        inputs: [examples, ...], as the networks take them.

    Returns:
        [networks, networks], in units of the outputs. A network whose outputs are not finite is infinitely far from
        every other one.

    Raises:
        InputError: No network, no inputs, or outputs of different shapes.

    Example:
        >>> net = Network.of(torch.nn.Linear(1, 1))
        >>> there = net.with_weights({"bias": net.weights["bias"] + 2})
        >>> output_distances([net, there], torch.randn(5, 1))[0].round(decimals=4).tolist()
        [0.0, 2.0]

    Not guaranteed: that networks at distance 0 agree on other inputs.
    """
    nets = _some(nets, inputs, "output_distances")

    def parts() -> Iterator[Tensor]:
        for outputs in _outputs(nets, inputs, "output_distances(nets)"):
            yield outputs.flatten(1).double()

    return _euclidean(parts, len(nets)) / math.sqrt(len(inputs))


def answer_distances(nets: Sequence[Network], inputs: Tensor) -> Tensor:
    """Jensen-Shannon distance of the answers of every two classifiers.

    d(a, b) = sqrt(mean over inputs and positions of JS(p_a, p_b)), JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2 in
    nats, with p the softmax of the outputs and H the entropy. It is at most sqrt(log 2) = 0.833.

    Args:
        nets: At least one network, all with outputs [examples, ..., classes] of one shape.
        inputs: [examples, ...], as the networks take them.

    Returns:
        [networks, networks]. A network whose outputs are not finite is infinitely far from every other one.

    Raises:
        InputError: No network, no inputs, or outputs of different shapes.

    Example:
        >>> net = Network.of(torch.nn.Linear(1, 2))
        >>> sure = net.with_weights({"bias": torch.tensor([100.0, 0.0])})
        >>> other = net.with_weights({"bias": torch.tensor([0.0, 100.0])})
        >>> answer_distances([sure, other], torch.zeros(3, 1))[0].round(decimals=4).tolist()
        [0.0, 0.8326]

    Source: Lin 1991, "Divergence measures based on the Shannon entropy"; its root is a distance (Endres & Schindelin
    2003).
    """
    nets = _some(nets, inputs, "answer_distances")
    sums = torch.zeros(len(nets), len(nets), dtype=torch.float64)
    answers = 0
    for outputs in _outputs(nets, inputs, "answer_distances(nets)"):
        p = outputs.double().softmax(-1).reshape(len(nets), -1, outputs.shape[-1])
        answers += p.shape[1]
        own = torch.special.entr(p).sum((1, 2))
        for a in range(len(nets) - 1):
            mixed = torch.special.entr((p[a] + p[a + 1 :]) / 2).sum((1, 2))
            sums[a, a + 1 :] += (mixed - (own[a] + own[a + 1 :]) / 2).cpu()
    return _symmetric((sums / answers).clamp(min=0).sqrt())


def _alike(nets: Sequence[Network], where: str) -> list[Network]:
    """The networks, all of which have weights of the same names and shapes."""
    nets = list(nets)
    if not nets:
        raise InputError(where, "at least one network", "none")
    shapes = {name: weight.shape for name, weight in nets[0].weights.items()}
    for place, net in enumerate(nets):
        other = {name: weight.shape for name, weight in net.weights.items()}
        if other != shapes:
            strange = next(name for name in shapes | other if shapes.get(name) != other.get(name))
            got = f"network {place} with {list(other[strange]) if strange in other else 'no'} {strange!r}"
            raise InputError(where, "networks with weights of the same names and shapes", got)
    return nets


def _some(nets: Sequence[Network], inputs: Tensor, where: str) -> list[Network]:
    if not len(nets):
        raise InputError(f"{where}(nets)", "at least one network", "none")
    if not isinstance(inputs, Tensor) or inputs.ndim == 0 or len(inputs) == 0:
        got = f"shape {list(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise InputError(f"{where}(inputs)", "a tensor of at least one example", got)
    return list(nets)


def _outputs(nets: Sequence[Network], inputs: Tensor, where: str) -> Iterator[Tensor]:
    """Outputs of all networks, [networks, some examples, ...], as many examples at a time as fit."""
    inputs = inputs.to(nets[0].device)
    numbers = nets[0](inputs[:1]).numel()
    for some in inputs.split(max(1, ROOM // (8 * len(nets) * max(1, numbers)))):
        outputs = [net(some) for net in nets]
        if any(one.shape != outputs[0].shape for one in outputs):
            shapes = sorted({str(list(one.shape[1:])) for one in outputs})
            raise InputError(where, "networks with outputs of one shape", " and ".join(shapes))
        yield torch.stack(outputs)


def _euclidean(parts: Callable[[], Iterator[Tensor]], count: int) -> Tensor:
    """Distances between the rows of a wide matrix that comes in parts [count, some columns]."""
    gram = torch.zeros(count, count, dtype=torch.float64)
    lost = torch.zeros(count, dtype=torch.bool)
    for part in parts():
        lost |= ~part.isfinite().all(1).cpu()
        base = part[0].nan_to_num(0.0, 0.0, 0.0)
        away = torch.where(part.isfinite(), part - base, 0.0)
        gram += (away @ away.T).cpu()
    length = gram.diagonal()
    squares = length[:, None] + length - gram - gram.T
    # A difference of large numbers: where little is left of them, the pair is measured by itself.
    near = torch.ones_like(squares, dtype=torch.bool).triu(1) & (squares <= NEAR * (length[:, None] + length))
    first, second = near.nonzero(as_tuple=True)
    if len(first):
        again = torch.zeros(len(first), dtype=torch.float64)
        for part in parts():
            for at, (a, b) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
                again[at] += float((part[a] - part[b]).square().sum())
        squares[first, second] = again
    found = squares.clamp(min=0).sqrt()
    found[lost] = math.inf
    found[:, lost] = math.inf
    return _symmetric(found)


def _symmetric(upper: Tensor) -> Tensor:
    """The matrix whose upper half this is; NaN stands for infinity."""
    half = upper.nan_to_num(math.inf, math.inf).triu(1)
    return half + half.T
