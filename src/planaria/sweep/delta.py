"""Delta rules: outputs of a chain with each unit of a layer silenced, without running the chain once per unit.

A unit that falls silent takes its own contribution out of the next product and nothing else: out of the next linear
layer h w (rank one), out of the next convolution its map alone convolved with its slice of the kernel. So the next
product is computed once for all units, each unit's contribution is subtracted, and only what lies behind is run
again, many units at a time. Inputs on which a unit is zero anyway are left out. Equal to brute force up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce

import torch
from torch import Tensor
from torch.nn import functional

from planaria.core.errors import InputError
from planaria.core.streams import stream
from planaria.sweep.chain import Chain, Stage, Step
from planaria.sweep.tally import Judge, Tally

_Pairs = tuple[Tensor, ...]

# Sizes of blocks, in numbers; measured on a CPU with 1 MiB of cache per core and 32 MiB shared.
_EXAMPLES = 512
_READ = 2**19  # activations that are read again for every unit
_MADE = 2**18  # edited activations at a time
_HELD = 2**22  # outputs at a time
_LANES = 16  # outputs are filled up to a multiple of it

_FEW = 0.8
"""Share of the examples below which copying them out costs less than computing all."""

_OUTWEIGHS = 64.0
"""A unit with so many times the contribution of all others together is cut out anew: the difference has no digits."""


@dataclass(frozen=True, eq=False)
class Silenced:
    """Outputs for some examples with each of some units silenced, one unit at a time.

    Attributes:
        layer: Of the units.
        units: Their numbers in the layer, [k], one after another.
        examples: Place of the n examples in the inputs.
        intact: Outputs without lesion, [n, ...].
        pairs: Places in the flattened [k, n] where outputs may differ from the intact ones, rising; None: all.
        changed: The outputs there, [pairs, ...].
    """

    layer: str
    units: Tensor
    examples: slice
    intact: Tensor
    pairs: Tensor | None
    changed: Tensor

    @property
    def outputs(self) -> Tensor:
        """Outputs of all pairs, [k, n, ...]."""
        shape = (len(self.units), *self.intact.shape)
        if self.pairs is None:
            return self.changed.view(shape)
        outputs = self.intact.new_empty(shape)
        outputs.copy_(self.intact)
        outputs.flatten(0, 1).index_copy_(0, self.pairs, self.changed)
        return outputs


def deltable(chain: Chain, layer: str) -> str:
    """Why there is no delta rule for the units of a layer; "" if there is one.

    Args:
        chain: The network.
        layer: Name of a layer.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> chain = Chain.of(Network.of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 4)))
        >>> deltable(chain, "0"), deltable(chain, "2")
        ('', 'its units are made by no product before another one')
    """
    places = [at for at, stage in enumerate(chain.stages) if stage.layer == layer and layer]
    if not places or places[-1] == len(chain.stages) - 1:
        return "its units are made by no product before another one"
    if len(places) > 1:
        return "its units are made by several products"
    stage = chain.stages[places[0]]
    if stage.silent != 0.0:
        return "a silenced unit is not 0 where the next product reads it"
    if any(step.name in {"_softmax", "_log_softmax"} for step in stage.steps):
        return "a softmax joins its units"
    return ""


def delta_cost(chain: Chain, layer: str, inputs: Tensor) -> int:
    """Multiply-adds per example of silencing each unit of a layer by the delta rule, if no unit is zero on it.

    Args:
        chain: The network.
        layer: A layer with a delta rule.
        inputs: Examples, for their shape; the first is run.

    Returns:
        Without the forward pass itself.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> chain = Chain.of(Network.of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 4)))
        >>> delta_cost(chain, "0", torch.ones(1, 4))
        6
    """
    at = _place(chain, layer)
    made = [pre[0].numel() for pre in _walk(chain, inputs[:1]).pres]
    stage, following = chain.stages[at], chain.stages[at + 1]
    edit = made[at + 1] * following.weight[0].numel()  # the contributions of all units are one whole product
    rest = sum(
        size * behind.weight[0].numel() for size, behind in zip(made[at + 2 :], chain.stages[at + 2 :], strict=True)
    )
    return edit + stage.made * rest


def silenced(chain: Chain, layers: Sequence[str], inputs: Tensor) -> Iterator[Silenced]:
    """Outputs with each unit of some layers silenced, in blocks that stay in the processor's cache.

    For the unit i with activation h and the next product z: steps(z - h w_i), then the rest of the chain.

    Args:
        chain: The network.
        layers: Names of layers that are `deltable`.
        inputs: [examples, ...] in memory, on the network's device.

    Yields:
        Blocks; each pair of unit and example is in exactly one of them.

    Raises:
        InputError: A layer has no delta rule.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> net = Network.of(nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)), torch.ones(1, 1))
        >>> chain = Chain.of(net)
        >>> weights = {**net.weights, "2.weight": net.weights["2.weight"] * torch.tensor([[0.0, 1.0]])}
        >>> block = next(silenced(chain, ["0"], torch.ones(1, 1)))
        >>> bool(torch.allclose(block.outputs[0], net.with_weights(weights)(torch.ones(1, 1)), atol=1e-6))
        True

    Not guaranteed: bits. Differences from brute force are of the size of rounding errors.
    """
    places = [_place(chain, layer) for layer in dict.fromkeys(layers)]
    if not places or not len(inputs):
        return
    inputs = inputs.detach()
    sizes = [pre[0].numel() for pre in _walk(chain, inputs[:1]).pres]
    chunk = max(1, min(_EXAMPLES, _READ // max(1, *(sizes[at + 1] for at in places)), _HELD // max(1, *sizes)))
    chunk = math.ceil(len(inputs) / math.ceil(len(inputs) / chunk))  # all alike
    readers = [_Reader.of(chain, at) for at in places]
    for start in range(0, len(inputs), chunk):
        walk = _walk(chain, inputs[start : start + chunk])
        examples = slice(start, start + len(walk.outputs))
        for reader in readers:
            for units, pairs, changed in reader.edit(walk):
                yield Silenced(reader.layer, units, examples, walk.outputs, pairs, changed)


def delta_units(chain: Chain, layers: Sequence[str], inputs: Tensor, targets: Tensor, judge: Judge) -> dict[str, Tally]:
    """Change of any per-example score when each unit of some layers is silenced.

    Args:
        chain: The network.
        layers: Names of layers that are `deltable`.
        inputs: [examples, ...] in memory, on the network's device.
        targets: [examples, ...].
        judge: The score.

    Returns:
        Layer -> tally over its units, [units].

    Raises:
        InputError: A layer has no delta rule.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> from planaria.measure.scores import ACCURACY
        >>> net = Network.of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 4))
        >>> counts = delta_units(Chain.of(net), ["0"], torch.ones(5, 4), torch.zeros(5).long(), Judge(ACCURACY))
        >>> counts["0"].total.shape
        torch.Size([3])
    """
    made = {stage.layer: stage.made for stage in chain.stages}
    device = inputs.device
    tallies = {layer: Tally.zeros((made[layer],), judge.classes, device) for layer in layers if layer in made}
    intact, at = inputs.new_empty(0), slice(0, 0)
    for block in silenced(chain, layers, inputs):
        labels = targets[block.examples].to(device)
        if block.examples != at:
            intact, at = judge.values(block.intact, labels), block.examples
        values = intact.repeat(len(block.units))
        if block.pairs is None:
            values = judge.values(block.changed, labels.repeat(len(block.units), *[1] * (labels.ndim - 1)))
        else:
            values[block.pairs] = judge.values(block.changed, labels[block.pairs % len(intact)])
        tallies[block.layer].note(int(block.units[0]), values.view(len(block.units), -1), intact, labels)
    return tallies


@dataclass(frozen=True, eq=False)
class _Walk:
    """One forward pass: what each stage reads, its product before the steps, and the outputs."""

    reads: list[Tensor]
    pres: list[Tensor]
    outputs: Tensor


def _walk(chain: Chain, inputs: Tensor) -> _Walk:
    x = chain.begin(inputs)
    reads, pres = [], []
    for stage in chain.stages:
        if x.ndim == 4:
            x = _channels_last(x)
        reads.append(x)
        pres.append(stage.pre(x))
        x = _post(stage, pres[-1], lost=False)
    return _Walk(reads, pres, x)


def _channels_last(x: Tensor) -> Tensor:
    """[examples, channels, height, width] with the channels of a place side by side, also if there is one channel."""
    _, channels, height, width = x.shape
    strides = (channels * height * width, 1, channels * width, channels)
    if x.stride() == strides:
        return x
    if channels == 1 and x.is_contiguous():
        return x.as_strided(x.shape, strides)
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


def _post(stage: Stage, x: Tensor, *, lost: bool = True) -> Tensor:
    """The steps, in place where that is possible; the argument is only kept if it must not be lost."""
    for step in stage.steps:
        before = x.data_ptr()
        windows = _windows(step, *x.shape[2:]) if x.ndim == 4 and x.device.type == "cpu" else None
        if step.name == "relu":
            x = x.relu_() if lost else x.relu()
        else:
            x = step.function(x) if windows is None else _largest(x, windows)
        lost = lost or x.data_ptr() != before
    return x


@lru_cache(maxsize=256)
def _windows(step: Step, height: int, width: int) -> tuple[int, int] | None:
    """Sides of the windows if a step takes the largest number of windows side by side that fill the image exactly."""
    if not step.name.startswith("max_pool2d"):
        return None
    probe = torch.rand(1, 64, height, width, generator=stream(0, "windows"), device="cpu", dtype=torch.float32)
    found = step.function(probe)
    windows = height // found.shape[2], width // found.shape[3]
    fills = (windows[0] * found.shape[2], windows[1] * found.shape[3]) == (height, width)
    return windows if fills and torch.equal(_largest(probe, windows), found) else None


def _largest(x: Tensor, windows: tuple[int, int]) -> Tensor:
    """Max-pooling without the places of the maxima, which torch writes too; channels last, twice as fast."""
    x = x.movedim(1, -1)
    for axis, side in enumerate(windows, start=1):
        x = reduce(torch.maximum, x.unflatten(axis, (-1, side)).unbind(axis + 1))
    return x.movedim(-1, 1)


def _place(chain: Chain, layer: str) -> int:
    problem = deltable(chain, layer)
    if problem:
        raise InputError(f"layer {layer!r}", "one with a delta rule", problem, "Sweep it by replay.")
    return next(at for at, stage in enumerate(chain.stages) if stage.layer == layer)


def _behind(chain: Chain, at: int) -> tuple[tuple[Stage, ...], bool]:
    """The stages behind stage `at` in the form that runs fastest, and whether places come before channels in between.

    Flattening channels-last activations is free if the next weight has its columns in that order. Outputs are filled
    up with zeros to a multiple of 16, since some libraries compute 10 outputs more slowly than 16.
    """
    stage, behind = chain.stages[at], list(chain.stages[at + 1 :])
    flattens = stage.weight.ndim == 4 and bool(stage.steps) and stage.steps[-1].name == "flatten"
    places_first = flattens and len(behind) > 0
    if places_first:
        columns = behind[0].weight.unflatten(1, (stage.made, -1)).transpose(1, 2).flatten(1)
        behind[0] = replace(behind[0], weight=columns)
    if behind and behind[-1].linear:
        last = behind[-1]
        more = -last.made % _LANES
        shift = None if last.shift is None else functional.pad(last.shift, (0, more))
        behind[-1] = replace(last, weight=functional.pad(last.weight, (0, 0, 0, more)), shift=shift)
    return tuple(behind), places_first


@dataclass(frozen=True, eq=False)
class _Reader:
    """The stage that reads a layer's units, with what each unit contributes to it.

    `slices` holds the unit's part of the weight: [units, places, made] of a linear layer, [units, made, ...] of a
    convolution; `reach` the largest absolute number in it, [units]; `behind` and `places_first` come from `_behind`.
    """

    chain: Chain
    layer: str
    at: int
    slices: Tensor
    reach: Tensor
    behind: tuple[Stage, ...]
    places_first: bool

    @staticmethod
    def of(chain: Chain, place: int) -> _Reader:
        stage, read = chain.stages[place + 1], chain.stages[place].made
        slices = stage.weight.unflatten(1, (read, -1)).movedim(0, -1) if stage.linear else stage.weight.transpose(0, 1)
        reach = slices.flatten(1).abs().amax(1)
        layer = chain.stages[place].layer
        return _Reader(chain, layer, place + 1, slices.contiguous(), reach, *_behind(chain, place + 1))

    @property
    def stage(self) -> Stage:
        return self.chain.stages[self.at]

    def edit(self, walk: _Walk) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """Units, pairs and changed outputs of `Silenced`, block by block.

        Ways take maps [units, examples, ...] and slices of some units, and (unit, example) of the pairs, None for all.
        """
        read, z, intact = walk.reads[self.at], walk.pres[self.at], walk.outputs
        n, count = len(read), len(self.slices)
        maps = (read.unflatten(1, (count, -1)) if read.ndim == 2 else read).transpose(0, 1).contiguous()
        peak = maps.flatten(2).abs().amax(2)
        size = peak * self.reach[:, None]
        others = size.sum(0) - size
        if self.stage.shift is not None:
            others += self.stage.shift.abs().max()
        active, outweighs = peak != 0, ~(size <= _OUTWEIGHS * others)
        held = n * max(_LANES, intact[0].numel())
        if not self.stage.linear:
            way, held = self._convolved, 4 * n * (walk.reads[self.at + 1] if self.behind else intact)[0].numel()
        elif self.slices.shape[1] > 1:
            way, held = self._blockwise, n * z.shape[1] * (_HELD // _MADE)
        else:
            way = self._rank_one if self.behind else self._dense
        outweighs &= active
        for units in torch.arange(count, device=z.device).split(max(1, _HELD // held)):
            chosen = slice(int(units[0]), int(units[-1]) + 1)
            whole = not self.behind or bool(active[chosen].all())
            pairs = None if whole else active[chosen].nonzero(as_tuple=True)
            places = None if pairs is None else pairs[0] * n + pairs[1]
            changed = way(maps[chosen], self.slices[chosen], pairs, z)
            if bool(outweighs[chosen].any()):
                unit, example = outweighs[chosen].nonzero(as_tuple=True)
                at = unit * n + example
                at = at if places is None else torch.searchsorted(places, at)
                for some in torch.arange(len(at), device=z.device).split(max(1, _MADE // read[0].numel())):
                    changed[at[some]] = self._anew(units[unit[some]], example[some], read)
            yield units, places, changed

    def _rank_one(self, maps: Tensor, slices: Tensor, pairs: _Pairs | None, z: Tensor) -> Tensor:
        """Linear layer that reads one number per unit: rows z - h w, fused with the choice of the rows."""
        if pairs is None:
            return self._dense(maps, slices, pairs, z)
        unit, example = pairs
        h = maps[unit, example, 0]
        table = torch.cat([z, slices[:, 0]])
        index = torch.stack([example, unit + len(z)], 1).view(-1)
        factor = torch.stack([torch.ones_like(h), -h], 1).view(-1)
        rows = max(1, _MADE // z.shape[1])
        starts = torch.arange(0, 2 * min(rows, len(unit)), 2, device=z.device)
        changed = z.new_empty(len(unit), self.chain.stages[-1].made)
        parts = zip(index.split(2 * rows), factor.split(2 * rows), changed.split(rows), strict=True)
        for some, by, into in parts if len(unit) else ():
            edited = functional.embedding_bag(some, table, starts[: len(into)], per_sample_weights=by, mode="sum")
            into.copy_(self._rest(edited))  # nothing new is kept, so that each round finds the memory of the last one
        return changed

    def _dense(self, maps: Tensor, slices: Tensor, pairs: _Pairs | None, z: Tensor) -> Tensor:
        """The same for all pairs."""
        many = max(1, _MADE // z.numel())
        changed = z.new_empty(len(maps) * len(z), self.chain.stages[-1].made)
        parts = maps.split(many), slices.split(many), changed.split(many * len(z))
        for h, w, into in zip(*parts, strict=True):
            into.copy_(self._rest(torch.addcmul(z, h, w, value=-1).flatten(0, 1)))
        return changed

    def _blockwise(self, maps: Tensor, slices: Tensor, pairs: _Pairs | None, z: Tensor) -> Tensor:
        """Linear layer that reads several numbers per unit: z minus the product of its block of columns."""
        rows = torch.baddbmm(z.expand(len(slices), *z.shape), maps, slices, alpha=-1)
        return self._rest(rows.flatten(0, 1) if pairs is None else rows[pairs])

    def _convolved(self, maps: Tensor, slices: Tensor, pairs: _Pairs | None, z: Tensor) -> Tensor:
        """Convolution: z minus the convolution of the unit's map alone."""
        everything = torch.arange(len(z), device=z.device)
        examples: Sequence[Tensor] = [everything] * len(maps)
        if pairs is not None:
            examples = pairs[1].split(torch.bincount(pairs[0], minlength=len(maps)).tolist())
        total, filled, held = sum(len(some) for some in examples), 0, z
        for alone, weight, some in zip(maps, slices, examples, strict=True):
            if not len(some):
                continue
            kept, part = z, len(some) < len(z)
            if part and len(some) < _FEW * len(z):
                alone, kept, part = alone[some], z.movedim(1, -1)[some].movedim(-1, 1), False
            alone = alone.unsqueeze(1)
            taken = self.stage.product(_channels_last(alone) if alone.ndim == 4 else alone, weight.unsqueeze(1))
            made = self._stepped(torch.sub(kept, taken, out=taken)).movedim(1, -1)
            if not filled:
                held = made.new_empty(total, *made.shape[1:])
            into = held[filled : filled + len(some)]
            torch.index_select(made, 0, some, out=into) if part else into.copy_(made)
            filled += len(some)
        return self._finished(held.movedim(-1, 1)) if total else self._rest(z[:0].clone())

    def _anew(self, units: Tensor, examples: Tensor, read: Tensor) -> Tensor:
        """Outputs without any delta rule: the unit set to zero before the product."""
        rows = read[examples]
        cells = rows.unflatten(1, (len(self.slices), -1)) if rows.ndim == 2 else rows
        cells[torch.arange(len(rows), device=rows.device), units] = 0
        return self._rest(self.stage.pre(rows))

    def _rest(self, own: Tensor) -> Tensor:
        """Outputs from the product before its steps; the argument is lost."""
        return self._finished(self._stepped(own))

    def _stepped(self, own: Tensor) -> Tensor:
        """The steps behind the product; the argument is lost."""
        if not self.places_first:
            return _post(self.stage, own)
        return _post(replace(self.stage, steps=self.stage.steps[:-1]), own).movedim(1, -1).flatten(1)

    def _finished(self, x: Tensor) -> Tensor:
        """Outputs from what the next stage reads."""
        for stage, true in zip(self.behind, self.chain.stages[self.at + 1 :], strict=True):
            x = _post(stage, stage.pre(x)[:, : true.made])
        return x
