"""Certified screening: how accuracy changes when each unit of a chain of linear layers is silenced, exactly.

Deleting a unit moves the outputs by no more than its activation times a product of weights that is the same for all
examples. Where that cannot lift any other output above the largest one, the prediction stands and nothing need be
computed; only the (unit, example) pairs that are left are evaluated. So a whole map costs about one forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from planaria.core.errors import InputError
from planaria.sweep.chain import Chain, Stage
from planaria.sweep.rounding import Rounding, lipschitz
from planaria.sweep.tally import Judge, Tally

RIVALS = 64
"""Up to so many classes each rival of the predicted class has its own bound; above, one bound holds for all rivals."""

ROWS = 2048
"""Examples of a chain of linear layers that are run at a time, so that their activations stay in the cache."""

IMAGES = 256
"""The same where there are convolutions."""

ENTRIES = 2**19
"""Numbers in a block of surviving pairs: two mebibytes in single precision."""


def certifiable(chain: Chain, layer: str, judge: Judge) -> str:
    """Why the units of a layer cannot be judged by certificates; "" if they can.

    Args:
        chain: The network.
        layer: Name of the layer that makes the units.
        judge: How outputs are scored.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> from planaria.measure.scores import ACCURACY
        >>> net = Network.of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 4))
        >>> certifiable(Chain.of(net), "0", Judge(ACCURACY))
        ''
    """
    if not judge.counts_predictions:
        return "the score depends on more than the prediction"
    at = _at(chain, layer)
    if at is None:
        return f"{layer!r} makes no units of the chain"
    *hidden, last = chain.stages
    if last.weight.dtype not in {torch.float32, torch.float64}:
        return f"its numbers are {last.weight.dtype}"
    if any(not stage.linear for stage in chain.stages[at + 1 :]) or chain.stages[at].block != 1:
        return "a convolution or a flattened feature map lies behind it"
    if chain.stages[at].silent != chain.stages[at].silent:
        return "a silenced unit is not one number"
    for stage in hidden:
        if lipschitz(stage) == float("inf"):
            return f"the slope of {', '.join(step.name for step in stage.steps)} is not known"
    if any(step.name not in {"_softmax", "_log_softmax"} for step in last.steps):
        return f"{', '.join(step.name for step in last.steps)} is applied to the outputs"
    probe = torch.eye(2, last.made, dtype=last.weight.dtype, device=last.weight.device)
    if last.steps and not torch.equal(last.post(probe)[:1], last.post(probe[:1])):
        return "the softmax of the outputs mixes examples"
    return ""


@dataclass(frozen=True, eq=False)
class Certifier:
    """The certificates of a chain: products of its weights, made once and used for any number of inputs.

    Let the activations of a layer change by e. A logit c then rises over the predicted one, p, by at most

        direct . e + rest |e|,

    backwards through weights W and activations with slopes in [a, b], m = (a + b) / 2, r = (b - a) / 2, s = max(b, -a):
    direct = W[c] - W[p] and rest = 0 for the last hidden layer; direct' = m direct W and
    rest' = |W| (r |direct| + s rest) for the one before, |W| the spectral norm. Where e is a single unit, of weights
    w = W[:, i], rest' |e| is r sum_j |direct_j w_j| + s rest |w|. The prediction stands if for no c the rise reaches
    the margin, less a slack that covers the rounding of both networks.

    Pairs that are not certified are evaluated: the next product changes by rank one, and in deep networks the bound
    is tried again with the true change behind it before the products that follow are computed.

    Attributes:
        chain: The network.
        layers: Layer -> stage that makes its units.
        bounds: Of the units of each stage that is followed by linear layers only; None before.
        columns: Weight of each stage that reads such units, transposed, [read, made].
        rounding: Bound of what rounding does to a margin.

    Source: interval bounds as in Gowal et al., 2018; their use as an exact screen for deletions is this project's.

    Not guaranteed: predictions where two logits are closer than rounding (ties); the bound of rounding itself above a
    width of 16, where errors are taken to grow like 4 sqrt(width), not width (Higham and Mary, 2019).

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> from planaria.measure.scores import ACCURACY
        >>> net = Network.of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 2))
        >>> net = net.with_weights({"0.weight": torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])})
        >>> net = net.with_weights({"0.bias": torch.zeros(3), "2.bias": torch.tensor([0.5, 0.0])})
        >>> net = net.with_weights({"2.weight": torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])})
        >>> count = Certifier.of(Chain.of(net), ["0"])
        >>> tallies, intact = count(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([1, 1]), Judge(ACCURACY))
        >>> tallies["0"].total, intact
        (tensor([-1.,  0.,  0.], dtype=torch.float64), tensor([1., 1.], dtype=torch.float64))
    """

    chain: Chain
    layers: dict[str, int]
    bounds: tuple[_Bounds | None, ...]
    columns: tuple[Tensor | None, ...]
    rounding: Rounding

    @staticmethod
    def of(chain: Chain, layers: Sequence[str]) -> Certifier:
        """Certificates for the units of some layers.

        Args:
            chain: The network.
            layers: Names of layers that are `certifiable`.

        Raises:
            InputError: A layer that is not one of the chain's.
        """
        found = {}
        for layer in layers:
            at = _at(chain, layer)
            if at is None:
                known = [stage.layer for stage in chain.stages if stage.layer]
                raise InputError("certified layers", f"some of {known}", repr(layer))
            found[layer] = at
        first = min(found.values(), default=len(chain.stages) - 1)
        with torch.no_grad():
            columns = [
                stage.weight.T.contiguous() if at - 1 in found.values() else None
                for at, stage in enumerate(chain.stages)
            ]
            rounding = Rounding.of(chain)
            return Certifier(chain, found, _bounds(chain, first, rounding), tuple(columns), rounding)

    def __call__(self, inputs: Tensor, targets: Tensor, judge: Judge) -> tuple[dict[str, Tally], Tensor]:
        """Change of the number of right predictions when each unit is silenced.

        Args:
            inputs: [examples, ...].
            targets: Labels [examples].
            judge: One that counts predictions.

        Returns:
            Layer -> tally over its units [units], where tallies of disjoint inputs add; and the scores of the examples
            by the intact chain, [examples].
        """
        stages = self.chain.stages
        tallies = {
            layer: Tally.zeros((stages[at].made,), judge.classes, stages[at].weight.device)
            for layer, at in self.layers.items()
        }
        intact = [torch.zeros(0, dtype=torch.float64, device=inputs.device)]
        size = ROWS if self.chain.linear else IMAGES
        with torch.no_grad():
            for start in range(0, len(inputs), size):
                rows = slice(start, start + size)
                block = _Block.of(self, inputs[rows], targets[rows], judge)
                intact.append(block.intact)
                for layer, at in self.layers.items():
                    block.count(at, tallies[layer])
        return tallies, torch.cat(intact)


def _at(chain: Chain, layer: str) -> int | None:
    return next((at for at, stage in enumerate(chain.stages[:-1]) if layer and stage.layer == layer), None)


# ----------------------------------------------------------------------------------------------------- bounds


@dataclass(frozen=True, eq=False)
class _Bounds:
    """Largest rise of a rival's logit over the predicted class's, when activations of one stage change.

    Attributes:
        direct: Share that is linear in the change, [classes, rivals, units]; rivals are all classes, or one that
            stands for all.
        rest: The others, per norm of the change, [classes, rivals].
        rise: Both per unit by which a single activation rises, [classes * rivals, units].
        fall: Per unit by which it falls.
        most_rise: The largest for any rival, [classes, units].
        most_fall: The same of `fall`.
    """

    direct: Tensor
    rest: Tensor
    rise: Tensor
    fall: Tensor
    most_rise: Tensor
    most_fall: Tensor


def _bounds(chain: Chain, first: int, rounding: Rounding) -> tuple[_Bounds | None, ...]:
    """Bounds of the stages from `first` on; none for the last, which makes the outputs."""
    stages = chain.stages
    dtype = stages[-1].weight.dtype
    eps = torch.finfo(dtype).eps
    w = stages[-1].weight.double()
    if len(w) <= RIVALS:
        v, own, wide = w[None] - w[:, None], torch.zeros_like(w[0]), torch.zeros_like(w[0, 0])
    else:  # any rival is the middle of all classes and a difference that is bounded
        middle = (w.amax(0) + w.amin(0)) / 2
        v, own, wide = (middle - w)[:, None], (w.amax(0) - w.amin(0)) / 2, (w - middle).norm(dim=1).max()
    own, rest = own.expand_as(v), wide.expand(v.shape[:2])
    result: list[_Bounds | None] = [None] * len(stages)
    for at in range(len(stages) - 2, first - 1, -1):
        # The table's rounding is relative to its parts, that of products with `direct` to norms.
        own = own * (1 + 8 * eps) + 8 * eps * v.abs() + torch.finfo(dtype).tiny
        rest = rest + 4 * rounding.terms[at + 1] * v.norm(dim=2)
        rise, fall = (x.to(dtype).nan_to_num(float("inf"), float("inf")) for x in (v + own, own - v))
        result[at] = _Bounds(
            v.to(dtype), rest.to(dtype), rise.flatten(0, 1), fall.flatten(0, 1), rise.amax(1), fall.amax(1)
        )
        if at > first:
            # The change behind activations is their mean slope times the change before, and up to half the range more.
            low, high = _slopes(stages[at])
            bent, steep = (high - low) / 2, max(high, -low)
            w, size = stages[at].weight.double(), v.norm(dim=2)
            lost = 4 * rounding.terms[at] * size
            own = bent * v.abs() @ w.abs() + (steep * rest + lost)[:, :, None] * w.norm(dim=0)
            rest = rounding.norms[at] * (bent * size + steep * rest) + lost * w.norm()
            v = (high + low) / 2 * v @ w
    return tuple(result)


def _slopes(stage: Stage) -> tuple[float, float]:
    """Least and largest slope of a stage's steps together."""
    if not stage.steps:
        return 1.0, 1.0
    if stage.monotone:
        return 0.0, stage.slope
    # GELU and SiLU are x s(x) with s(x) + s(-x) = 1, so that their slopes at x and -x sum to 1.
    return (1.0 - stage.slope if len(stage.steps) == 1 else -stage.slope), stage.slope


# ----------------------------------------------------------------------------------------------------- counts


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Some (example, unit) pairs and by how much the unit's activation falls."""

    example: Tensor
    unit: Tensor
    fall: Tensor

    @staticmethod
    def joined(parts: Sequence[_Pairs]) -> _Pairs:
        """All of them."""
        return _Pairs(*(torch.cat(x) for x in zip(*(part.columns for part in parts), strict=True)))

    @property
    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three."""
        return self.example, self.unit, self.fall

    def at(self, index: Tensor) -> _Pairs:
        """The pairs at some places."""
        return _Pairs(*(x.index_select(0, index) for x in self.columns))

    def split(self, size: int) -> Iterator[_Pairs]:
        """Blocks of so many pairs."""
        if self.example.numel():
            yield from (_Pairs(*x) for x in zip(*(x.split(size) for x in self.columns), strict=True))


@dataclass(frozen=True, eq=False)
class _Block:
    """Some examples, run intact.

    Attributes:
        by: The certifier.
        judge: How outputs are scored.
        targets: Labels, [examples].
        held: What each stage reads, [examples, ...]; the outputs at the end.
        norms: Norm of each of those, [examples].
        table: Output of each product before the steps, and below it the certifier's columns; None where no unit's
            change is computed.
        predicted: Class of the largest logit, [examples].
        room: Margin to each rival less the slack, [examples, rivals]; infinite for the predicted class itself,
            minus infinite where numbers are not to be trusted.
        answers: Place of the largest output, [examples].
        intact: Scores, [examples].
    """

    by: Certifier
    judge: Judge
    targets: Tensor
    held: list[Tensor]
    norms: list[Tensor]
    table: list[Tensor | None]
    predicted: Tensor
    room: Tensor
    answers: Tensor
    intact: Tensor

    @staticmethod
    def of(certifier: Certifier, inputs: Tensor, targets: Tensor, judge: Judge) -> _Block:
        """Run the examples."""
        stages = certifier.chain.stages
        held, table = [certifier.chain.begin(inputs)], []
        for stage, columns in zip(stages, certifier.columns, strict=True):
            made = stage.pre(held[-1])
            table.append(None if columns is None else torch.cat([made, columns]))
            held.append(_behind(stage, made))
        norms = [_norm(x) for x in held[:-1]]
        slack = certifier.rounding.slack(norms, [x.flatten(2).shape[2] if x.ndim > 2 else 1 for x in held[:-1]])
        predicted = made.argmax(1)
        own = predicted[:, None]
        room = made.gather(1, own) - made
        unsafe = ~(slack < float("inf")) | ~made.isfinite().all(1)
        room.scatter_(1, own, float("inf"))
        if made.shape[1] > RIVALS:
            room = room.amin(1, keepdim=True)
        room = (room - slack[:, None].to(room.dtype)).masked_fill(unsafe[:, None], -float("inf"))
        answers, intact = held[-1].argmax(1), judge.values(held[-1], targets)
        return _Block(certifier, judge, targets, held, norms, table, predicted, room, answers, intact)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Of the chain."""
        return self.by.chain.stages

    def count(self, at: int, tally: Tally) -> None:
        """Note what silencing each unit of a stage changes."""
        pairs = self._survivors(at)
        # After a change of rank one, what is left must not be small against what was: it would be rounding. So units
        # that hold nearly all of the activations or weights are taken away before the product, not after it.
        columns = self.by.columns[at + 1]
        assert columns is not None
        share = columns.norm(dim=1) / columns.norm()
        share, part = share.index_select(0, pairs.unit), self._part(at, pairs)
        kept = (1 - share * share) * (1 - part * part) > 0.01
        kept &= self.room[:, 0].index_select(0, pairs.example) > -float("inf")
        found: list[tuple[_Pairs, Tensor]] = []
        if not bool(kept.all()):
            for some in self._blocks(at, pairs.at((~kept).nonzero()[:, 0])):
                found.append((some, self._anew(at, some)))
            pairs = pairs.at(kept.nonzero()[:, 0])
        for deeper in range(at + 1, len(self.stages) - 2):
            pairs = self._narrowed(at, deeper, pairs)
        for some in self._blocks(at + 1, pairs):
            outputs = self._path(at, len(self.stages) - 1, some)
            # All numbers are in range here, so that only another prediction is another score.
            answers, by_class = self.answers.index_select(0, some.example)[None], outputs.T
            others = by_class.scatter(0, answers, -float("inf")).amax(0)
            moved = (others >= by_class.gather(0, answers)[0]).nonzero()[:, 0]
            found.append((some.at(moved), outputs.index_select(0, moved)))
        if found:
            self._note(tally, _Pairs.joined([some for some, _ in found]), torch.cat([outputs for _, outputs in found]))

    def _survivors(self, at: int) -> _Pairs:
        """Pairs that the bounds do not certify."""
        bounds, held, silent = self.by.bounds[at], self.held[at + 1], self.stages[at].silent
        assert bounds is not None
        size = held - silent if silent else held
        signed = not (self.stages[at].rectifies and not silent) and not bool(size.amin() >= 0)
        rivals, units = self.room.shape[1], held.shape[1]

        def reach(rise: Tensor, fall: Tensor, index: Tensor, size: Tensor) -> Tensor:
            found = fall.index_select(0, index).mul_(size)
            if signed:  # the rise per unit is at least minus the fall per unit, so that the larger is the right one
                found = torch.maximum(found, rise.index_select(0, index).mul_(size).neg_())
            return found

        # One comparison for all, as if every rival were as close as the closest. For the few pairs that are left the
        # closest has its own bound, and the others are taken to be as close as the second.
        room, nearest = self.room.min(1)
        flags = reach(bounds.most_rise, bounds.most_fall, self.predicted, size) >= room[:, None]
        unsafe = room == -float("inf")
        places = _places(flags.index_fill_(0, unsafe.nonzero()[:, 0], True))
        fall = size.reshape(-1).index_select(0, places)
        example = places.div(units, rounding_mode="floor")
        pairs = _Pairs(example, places - example * units, fall)
        others = self.room.scatter(1, nearest[:, None], float("inf")).amin(1)
        left = unsafe.index_select(0, example)
        for rise, falls, row, bar in (
            (bounds.rise, bounds.fall, self.predicted * rivals + nearest, room),
            (bounds.most_rise, bounds.most_fall, self.predicted, others),
        ):
            index = (row * units).index_select(0, example).add_(pairs.unit)
            left |= reach(rise.view(-1), falls.view(-1), index, fall) >= bar.index_select(0, example)
        return pairs.at((left & (fall != 0)).nonzero()[:, 0])

    def _narrowed(self, at: int, deeper: int, pairs: _Pairs) -> _Pairs:
        """Pairs that bounds from the true change behind a deeper stage do not certify."""
        bounds = self.by.bounds[deeper]
        assert bounds is not None
        classes = self.predicted.index_select(0, pairs.example)
        kept = []
        for c in classes.unique().tolist():
            direct, rest = bounds.direct[c], bounds.rest[c]
            for some in self._blocks(at + 1, pairs.at((classes == c).nonzero()[:, 0])):
                change = self._path(at, deeper, some) - self.held[deeper + 1].index_select(0, some.example)
                reach = _narrow(change, direct).addcmul_(_norm(change)[:, None], rest)
                left = ~(reach < self.room.index_select(0, some.example)).all(1)
                kept.append(some.at(left.nonzero()[:, 0]))
        return _Pairs.joined(kept) if kept else pairs

    def _blocks(self, first: int, pairs: _Pairs) -> Iterator[_Pairs]:
        """Blocks whose values behind each stage from `first` on stay in the cache."""
        widest = max(stage.made for stage in self.stages[first:])
        return pairs.split(max(1, ENTRIES // widest))

    def _path(self, at: int, to: int, pairs: _Pairs) -> Tensor:
        """Values behind a later stage with the pair's unit of stage `at` silenced, [pairs, units]."""
        table = self.table[at + 1]
        assert table is not None
        # pre[example] - fall * columns[unit], read and written once
        rows = torch.stack([pairs.example, pairs.unit + len(self.room)], 1)
        amounts = torch.stack([torch.ones_like(pairs.fall), -pairs.fall], 1)
        x = functional.embedding_bag(rows, table, mode="sum", per_sample_weights=amounts)
        for deeper in range(at + 1, to + 1):
            stage = self.stages[deeper]
            if deeper > at + 1:
                x = _narrow(x, stage.weight, stage.shift)
            x = _behind(stage, x)
        return x

    def _anew(self, at: int, pairs: _Pairs) -> Tensor:
        """The outputs with each pair's unit silenced, computed in full from there."""
        x = self.held[at + 1].index_select(0, pairs.example)
        x.scatter_(1, pairs.unit[:, None], self.stages[at].silent)
        for stage in self.stages[at + 1 :]:
            x = stage.post(stage.pre(x))
        return x

    def _part(self, at: int, pairs: _Pairs) -> Tensor:
        """Share of the activations' norm that the pair's unit holds."""
        return (pairs.fall / self.norms[at + 1].index_select(0, pairs.example)).abs()

    def _note(self, tally: Tally, pairs: _Pairs, outputs: Tensor) -> None:
        targets = self.targets.index_select(0, pairs.example)
        change = self.judge.values(outputs, targets) - self.intact.index_select(0, pairs.example)
        changed = change.nonzero()[:, 0]
        tally.note_pairs(*(x.index_select(0, changed) for x in (pairs.unit, change, targets)))


def _behind(stage: Stage, made: Tensor) -> Tensor:
    """The steps, in the memory of the product where they are a ReLU."""
    return made.relu_() if stage.rectifies else stage.post(made)


def _norm(x: Tensor) -> Tensor:
    """Norm of each example, [examples]."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def _narrow(x: Tensor, weight: Tensor, shift: Tensor | None = None) -> Tensor:
    """A product [examples, made]; with few rows of the weight twice as fast when it is the left factor."""
    if len(weight) > 64:
        return functional.linear(x, weight, shift)
    made = weight @ x.T
    return (made if shift is None else made.add_(shift[:, None])).T


def _places(flags: Tensor) -> Tensor:
    """Places of the few that are true, in the flattened tensor; eight are looked at at a time."""
    flat = flags.reshape(-1)
    if flat.numel() % 8:
        return flat.nonzero()[:, 0]
    eights = flat.view(torch.int64).nonzero()
    if 32 * len(eights) > flat.numel():
        return flat.nonzero()[:, 0]
    places = (eights * 8 + torch.arange(8, device=flat.device)).view(-1)
    return places.index_select(0, flat.index_select(0, places).nonzero()[:, 0])
