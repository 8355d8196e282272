"""Between networks: scores along the straight lines that join several networks of one architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from planaria.core.devices import without_tf32
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.measure.scores import Score
from planaria.sweep.chain import Chain, Stage
from planaria.sweep.program import near
from planaria.sweep.replay import chunks
from planaria.sweep.tally import Judge

OnTheLine = Callable[[int, int, float], Tensor]
"""From network, to network, share -> outputs of the network there."""

CHUNK = 512
"""Examples at a time: the activations of a hidden layer then stay in cache."""


@without_tf32()
def scores_between(
    nets: Sequence[Network], shares: Sequence[float], inputs: Tensor, targets: Tensor, score: Score
) -> Tensor:
    """Mean score of (1 - share) * a + share * b for every two of some networks.

    For chains the first product is linear in its weights, so it is taken once for each network and interpolated,
    instead of once for each pair and share: z(share) = (1 - share) z_a + share z_b. Networks with buffers (statistics)
    are interpolated in their weights and buffers; where normalisation is folded, or for other architectures, each
    network on the line is run whole.

    Args:
        nets: At least two, of one architecture.
        shares: From 0 (the first network of a pair) to 1 (the second), in any order.
        inputs: [examples, ...].
        targets: [examples, ...].
        score: A score that is a mean over examples.

    Returns:
        [networks, networks, shares], double; at [a, b] along the line from a to b. [a, a] is the score of a.

    Raises:
        InputError: Fewer than two networks, networks with different weights, or a score that is no mean.

    Example:
        >>> from torch import nn
        >>> from planaria.measure.scores import ACCURACY
        >>> nets = [Network.of(nn.Linear(2, 2), torch.ones(1, 2)) for _ in range(3)]
        >>> x, y = torch.randn(20, 2), torch.zeros(20, dtype=torch.int64)
        >>> scores_between(nets, [0.0, 0.5, 1.0], x, y, ACCURACY).shape
        torch.Size([3, 3, 3])

    Source: linear interpolation of weights (Goodfellow, Vinyals and Saxe, 2015).

    Not guaranteed: last bits; predictions where the two largest outputs lie within rounding of each other.
    """
    judge = Judge(score)
    nets, shares = list(nets), [float(share) for share in shares]
    shapes = [{name: weight.shape for name, weight in net.weights.items()} for net in nets]
    if len(nets) < 2:
        raise InputError("scores_between(nets)", "two networks or more with the same weights", len(nets))
    if any(shape != shapes[0] for shape in shapes):
        raise InputError("scores_between(nets)", "networks with the same weights", "weights of other names or shapes")
    few = inputs[:4]
    if not all(near(nets[0].with_weights(net.weights, net.buffers)(few), net(few)) for net in nets[1:]):
        raise InputError(
            "scores_between(nets)", "networks of one architecture", "ones that compute other things with their weights"
        )
    chains = [Chain.of(net) if net.inputs is not None else "no example inputs" for net in nets]
    fit = [chain for chain in chains if isinstance(chain, Chain)]
    plain = len(fit) == len(nets) and all(_interpolates(chain, net) for chain, net in zip(fit, nets, strict=True))
    sums = torch.zeros(len(nets), len(nets), len(shares), dtype=torch.float64)
    with torch.no_grad():
        for x, t in chunks(inputs, targets, CHUNK if plain else 4 * CHUNK):
            outputs = _by_chain(fit, x) if plain else _whole(nets, x)
            sums += _lines(len(nets), shares, outputs, t, judge)
    return sums / len(inputs)


def _interpolates(chain: Chain, net: Network) -> bool:
    """Whether the chain's weights are the network's own, each used once."""
    names = [name for stage in chain.stages for name in (stage.name, stage.bias) if name is not None]
    kept = len(names) == len(set(names)) == len(net.weights) and not net.buffers
    return kept and not chain.elsewhere and not any(stage.folded for stage in chain.stages)


def _lines(count: int, shares: Sequence[float], outputs: OnTheLine, t: Tensor, judge: Judge) -> Tensor:
    """Sums of scores over a chunk, [networks, networks, shares]; every point of a line is visited once."""

    def score(a: int, b: int, share: float) -> float:
        return float(judge.values(outputs(a, b, share), t).sum())

    sums = torch.zeros(count, count, len(shares), dtype=torch.float64)
    own = [score(a, a, 0.0) for a in range(count)]
    for a in range(count):
        sums[a, a] = own[a]
    for a, b in combinations(range(count), 2):
        for place, share in enumerate(shares):
            ends = {0.0: own[a], 1.0: own[b]}
            sums[a, b, place] = ends[share] if share in ends else score(a, b, share)
        for place, share in enumerate(shares):  # the other way: the same points where the shares are symmetric
            twin = next((at for at, other in enumerate(shares) if abs(other - (1.0 - share)) < 1e-12), None)
            sums[b, a, place] = score(b, a, share) if twin is None else sums[a, b, twin]
    return sums


def _by_chain(chains: Sequence[Chain], x: Tensor) -> OnTheLine:
    """Outputs by interpolation of the first products."""
    begun = [chain.stages[0].pre(chain.begin(x)) for chain in chains]
    room = torch.empty_like(begun[0])  # one buffer for all: it stays in cache, and no memory is asked for anew

    def outputs(a: int, b: int, share: float) -> Tensor:
        z = torch.lerp(begun[a], begun[b], share, out=room) if share else room.copy_(begun[a])
        return _rest(chains[a].stages, chains[b].stages, share, z)

    return outputs


def _rest(one: Sequence[Stage], other: Sequence[Stage], share: float, z: Tensor) -> Tensor:
    """Outputs from the first product on, with later weights on the line between two chains; writes into `z`."""
    for at, (first, second) in enumerate(zip(one, other, strict=True)):
        if at:
            weight = torch.lerp(first.weight, second.weight, share) if share else first.weight
            shift = first.shift
            if shift is not None and second.shift is not None and share:
                shift = torch.lerp(shift, second.shift, share)
            z = first.product(z, weight, shift)
        z = z.relu_() if first.rectifies else first.post(z)
    return z


def _whole(nets: Sequence[Network], x: Tensor) -> OnTheLine:
    """Outputs of each network on a line, run whole."""
    return lambda a, b, share: (_on_the_line(nets[a], nets[b], share) if share else nets[a])(x)


def _on_the_line(one: Network, other: Network, share: float) -> Network:
    weights = {name: torch.lerp(weight, other.weights[name], share) for name, weight in one.weights.items()}
    buffers = {
        name: torch.lerp(buffer, other.buffers[name], share)
        for name, buffer in one.buffers.items()
        if buffer.is_floating_point()
    }
    return one.with_weights(weights, buffers)
