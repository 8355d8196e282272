"""Every single weight: what the accuracy becomes when one weight takes a new value, for each weight and exactly.

A weight (j <- i) moves one unit only: the pre-activation of unit j by t = (new - old) * x_i. For each example and unit
there is an interval of t in which the prediction cannot change; most weights of most examples stay inside it, which a
bound on the largest t proves for whole rows at once. What is left is compared one by one, and what then still leaves
its interval is computed. For units that feed the outputs, and for the outputs themselves, the interval is exact and
nothing has to be computed at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from planaria.core.errors import InputError
from planaria.measure.scores import ACCURACY
from planaria.sweep.chain import Chain
from planaria.sweep.intervals import Certified, Exact, Intact, Rise, finish, is_right
from planaria.sweep.tally import Judge, Tally

_WHOLE = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
_ROWS = 2048
"""Examples whose intervals are held at a time."""

_SAMPLE = 128
"""Examples that a price is estimated on."""


class NewValue(Protocol):
    """What a weight becomes: `of(weights) -> new values`."""

    def of(self, weight: Tensor, /) -> Tensor:
        """New values, entry by entry."""
        ...


@dataclass(frozen=True)
class Becomes:
    """A weight takes a value: 0 deletes it, any other is a weight that is stuck.

    Args:
        value: The value; infinities and NaN are possible.

    Raises:
        InputError: If it is no number.

    Example:
        >>> Becomes(0.0).of(torch.tensor([3.0, -1.0]))
        tensor([0., 0.])
    """

    value: float

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise InputError("Becomes.value", "a number", repr(self.value)[:40])

    def of(self, weight: Tensor, /) -> Tensor:
        """The value in the place of every weight.

        Raises:
            InputError: If the weights' type cannot hold it.
        """
        limit = torch.finfo(weight.dtype).max
        if math.isfinite(self.value) and abs(self.value) > limit:
            raise InputError("Becomes.value", f"at most {limit:g}, all that {weight.dtype} can hold", self.value)
        return torch.full_like(weight, self.value)


@dataclass(frozen=True)
class Flipped:
    """One bit of a weight's storage is flipped.

    Args:
        bit: 0 = lowest of the mantissa; the highest (15, 31 or 63) is the sign.

    Raises:
        InputError: If the bit is no whole number of at least 0.

    Example:
        >>> Flipped(31).of(torch.tensor([3.0])), Flipped(30).of(torch.tensor([1.0]))
        (tensor([-3.]), tensor([inf]))
    """

    bit: int

    def __post_init__(self) -> None:
        if isinstance(self.bit, bool) or not isinstance(self.bit, int) or self.bit < 0:
            raise InputError("Flipped.bit", "a whole number of at least 0", repr(self.bit)[:40])

    def of(self, weight: Tensor, /) -> Tensor:
        """The weights with the bit flipped.

        Raises:
            InputError: If the weights' type has no such bit, or no known layout.
        """
        whole = _WHOLE.get(weight.dtype)
        if whole is None:
            raise InputError("Flipped", "weights of 16, 32 or 64 bits", weight.dtype)
        bits = torch.iinfo(whole).bits
        if self.bit >= bits:
            raise InputError("Flipped.bit", f"a bit from 0 to {bits - 1} of {weight.dtype}", self.bit)
        value = 1 << self.bit if self.bit < bits - 1 else -(1 << self.bit)
        return (weight.view(whole) ^ torch.tensor(value, dtype=whole, device=weight.device)).view(weight.dtype)


def mappable(chain: Chain, name: str) -> str:
    """Why a weight or bias has no map of its single entries; "" if it has one.

    Its product and all behind it must be linear layers with pointwise functions between them and at most a softmax at
    the end; a convolutional part in front of it does not matter.

    Args:
        chain: The network.
        name: Of a weight or a bias.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> net = Network.of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 4))
        >>> chain = Chain.of(net)
        >>> mappable(chain, "0.weight"), mappable(chain, "0.gain")
        ('', "no product of the chain has a weight or bias '0.gain'")
    """
    found = [at for at, stage in enumerate(chain.stages) if name and name in {stage.name, stage.bias}]
    if not found:
        return f"no product of the chain has a weight or bias {name!r}"
    uses = [use for stage in chain.stages for use in (stage.name, stage.bias)]
    if uses.count(name) > 1:
        return "it is used by several products"
    stage, last = chain.stages[found[0]], chain.stages[-1]
    if stage.folded:
        return "a normalisation is folded into it"
    if name == stage.bias and (stage.shift is None or len(stage.shift) != stage.made):
        return "it is not one bias per unit"
    if stage.weight.dtype not in {torch.float32, torch.float64}:
        return f"{stage.weight.dtype} rounds too coarsely for certain predictions"
    for later in chain.stages[found[0] :]:
        if not later.linear:
            return "it is a convolution" if later is stage else f"{later.name} behind it is a convolution"
        if later is not last and not all(step.pointwise for step in later.steps):
            return f"the steps behind {later.name} are not pointwise"
    if not all(step.name in {"_softmax", "_log_softmax"} for step in last.steps):
        return "the outputs are not those of the last product"
    probe = torch.eye(2, last.made, dtype=last.weight.dtype, device=last.weight.device)
    if last.steps and not torch.equal(last.post(probe)[:1], last.post(probe[:1])):
        return "the outputs of one example depend on the others"
    return ""


def weight_map(
    chain: Chain, names: Iterable[str], new: NewValue, inputs: Tensor, targets: Tensor, judge: Judge
) -> dict[str, Tally]:
    """What each single weight costs when it alone takes its new value, judged on all inputs.

    For weight (j <- i): sum over examples of (right with the new value - right without), as counts of the examples
    that rose and fell. A row of outputs with NaN or infinity is wrong.

    Args:
        chain: The network.
        names: Of weights and biases; each must be `mappable`.
        new: What a weight becomes.
        inputs: [examples, ...], all in memory.
        targets: Labels [examples].
        judge: Of the accuracy.

    Returns:
        Name -> counts in the shape of the product's weight [made, read], or of the bias [made]; never by class.

    Raises:
        InputError: If a weight is not mappable, or the score is not the accuracy.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> layer = nn.Linear(1, 2, bias=False)
        >>> layer.weight.data = torch.tensor([[1.0], [0.5]])
        >>> chain = Chain.of(Network.of(layer, torch.ones(1, 1)))
        >>> inputs, targets = torch.ones(3, 1), torch.tensor([0, 0, 1])
        >>> weight_map(chain, ["weight"], Becomes(0.0), inputs, targets, Judge(ACCURACY))["weight"].total
        tensor([[-1.],
                [ 0.]], dtype=torch.float64)

    Source: vulnerability intervals of single neurons as in DeepVigor (Ahmadilivani and others, 2023), here exact and
    for every weight.

    Not guaranteed: the prediction where the two largest outputs differ by less than rounding.
    """
    names = _mappable(chain, names, judge)
    with torch.no_grad():
        intact = _intact(chain, inputs, targets, judge)
        return {name: _map(intact, name, new) for name in names}


def weight_cost(
    chain: Chain, names: Iterable[str], new: NewValue, inputs: Tensor, targets: Tensor, judge: Judge
) -> dict[str, float]:
    """Estimated price of each weight's map, in forward passes over the same inputs.

    On up to 128 evenly spaced examples it is counted what bounds leave open: most for values that are far from the old
    ones in layers far from the outputs. Right within a factor of some three, to tell seconds from hours.

    Args:
        chain: The network.
        names: Of weights and biases; each must be `mappable`.
        new: What a weight becomes.
        inputs: [examples, ...].
        targets: Labels [examples].
        judge: Of the accuracy.

    Returns:
        Name -> forwards-equivalent.

    Raises:
        InputError: As `weight_map`.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> chain = Chain.of(Network.of(nn.Linear(4, 3), torch.ones(1, 4)))
        >>> cost = weight_cost(chain, ["bias"], Becomes(0.0), torch.ones(5, 4), torch.zeros(5).long(), Judge(ACCURACY))
        >>> cost["bias"] >= 2
        True
    """
    names = _mappable(chain, names, judge)
    few = torch.linspace(0, len(inputs) - 1, min(_SAMPLE, len(inputs)), device=inputs.device).long()
    with torch.no_grad():
        intact = _intact(chain, inputs[few], targets[few.to(targets.device)], judge)
        places = [max(1, z[0, 0].numel()) if len(z) else 1 for z in intact.made]
        forward = sum(stage.weight.numel() * number for stage, number in zip(chain.stages, places, strict=True))
        result = {}
        for name in names:
            change = _Change.of(intact, name, new)
            work = sum(part.work(change.delta) for part in change.parts())
            wild = int((~change.intact.tame).sum()) * change.delta.numel() * change.delta.shape[1]
            result[name] = 2.0 + (work + wild) / max(1, len(few)) / forward
        return result


def _mappable(chain: Chain, names: Iterable[str], judge: Judge) -> list[str]:
    if not judge.counts_predictions:
        raise InputError("score of a weight map", ACCURACY.name, judge.score.name, "Run each damaged network.")
    names = list(names)
    for name in names:
        reason = mappable(chain, name)
        if reason:
            raise InputError(f"weight {name!r}", "one whose entries can be mapped", reason, "Run each damaged network.")
    return names


def _intact(chain: Chain, inputs: Tensor, targets: Tensor, judge: Judge) -> Intact:
    x, read, made = chain.begin(inputs), [], []
    for stage in chain.stages:
        read.append(x)
        made.append(stage.pre(x))
        x = stage.post(made[-1])
    return Intact(chain, read, made, targets.to(x.device), judge.values(made[-1], targets) > 0)


@dataclass(frozen=True, eq=False)
class _Change:
    """A weight or bias of the first stage of a pass, with new values.

    Attributes:
        intact: The pass, from the weight's product on.
        old: The weight or bias.
        values: New values [made, read]; a bias reads one.
        delta: New values less the old ones.
        bias: Whether it is a bias.
    """

    intact: Intact
    old: Tensor
    values: Tensor
    delta: Tensor
    bias: bool

    @staticmethod
    def of(intact: Intact, name: str, new: NewValue) -> _Change:
        stages = intact.chain.stages
        at = next(at for at, stage in enumerate(stages) if name in {stage.name, stage.bias})
        stage, bias = stages[at], name == stages[at].bias
        old = stage.shift if bias and stage.shift is not None else stage.weight
        values = new.of(old).reshape(stage.made, -1)
        delta = torch.where(values == old.view_as(values), 0.0, values - old.view_as(values))
        here = replace(intact, chain=Chain((), stages[at:]), read=intact.read[at:], made=intact.made[at:])
        return _Change(here, old, values, delta, bias)

    def parts(self) -> Iterator[Exact | Certified]:
        """Intervals of some examples at a time, sorted by label: first of those that are right."""
        intact = self.intact
        x = intact.read[0]
        possible = intact.tame & (intact.targets >= 0) & (intact.targets < intact.logits.shape[1])
        if self.bias:
            intact = replace(intact, read=[torch.ones_like(x[:, :1]), *intact.read[1:]])
        rise = Rise.of(intact.chain) if len(intact.chain.stages) > 2 else None
        for was_right in (True, False):
            rows = (possible & (intact.right == was_right)).nonzero().flatten()
            for some in rows[intact.targets[rows].argsort(stable=True)].split(_ROWS):
                if len(some):
                    part = intact.some(some)
                    yield Exact.of(part, was_right) if rise is None else Certified.of(part, was_right, rise)

    def turned(self, row: int) -> Tensor:
        """Weights [made, read] that turn an example whose numbers are not tame: each is put in, none subtracted."""
        intact, stage = self.intact, self.intact.chain.stages[0]
        x, turned = intact.read[0][row], []
        for j, values in enumerate(self.values):
            weights = stage.weight[j].repeat(len(values), 1)
            shift = torch.zeros_like(values) if stage.shift is None else stage.shift[j].repeat(len(values))
            if self.bias:
                shift = values
            else:
                weights.diagonal().copy_(values)
            made = intact.made[0][row].repeat(len(values), 1)
            made[:, j] = weights @ x + shift
            turned.append(is_right(finish(intact.chain, 0, made), intact.targets[row]) != intact.right[row])
        return torch.stack(turned)


def _map(intact: Intact, name: str, new: NewValue) -> Tally:
    change = _Change.of(intact, name, new)
    rose, fell = (torch.zeros_like(change.delta, dtype=torch.int64) for _ in range(2))
    for part in change.parts():
        part.count(change.delta, fell if part.was_right else rose)
    for row in (~change.intact.tame).nonzero().flatten().tolist():
        counts = fell if intact.right[row] else rose
        counts += change.turned(row)
    rose, fell = rose.view(change.old.shape), fell.view(change.old.shape)
    return Tally((rose - fell).double(), rose, fell, (rose + fell).double())
