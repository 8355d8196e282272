"""Screen: every unit's effect on the accuracy, estimated from the few pairs of unit and input that can matter.

One backward pass of the margin between the prediction and its rival gives, for all units at once, to first order the
change d = -<h, dm/dh> of the margin m when a unit's activation h is silenced. Where the sign of m + d is in doubt the
pair is evaluated by replaying what depends on the unit, elsewhere a random part of the pairs is; see
`planaria.sweep.strata` for the estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from planaria.core.anatomy import Anatomy
from planaria.core.devices import clock, without_tf32
from planaria.core.errors import InputError
from planaria.core.gemm import fast_products
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.data import Data
from planaria.measure.scores import ACCURACY, Score
from planaria.measure.task import Task
from planaria.sweep.gates import Gate
from planaria.sweep.lesions import EachUnit
from planaria.sweep.precision import Intervals
from planaria.sweep.program import Edit, Program
from planaria.sweep.replay import chunk_size, chunks
from planaria.sweep.strata import Design, Screened
from planaria.sweep.tally import Judge

RIGHT = Judge(ACCURACY)
"""What is screened: whether answers are right."""

MEMORY = 1 << 28
"""Bytes of activations that a block may hold."""


@dataclass(frozen=True, eq=False)
class Screen:
    """Estimated score lost by every unit of some layers.

    Attributes:
        counts: The numbers from which all else follows, units of all layers one after another.
        layers: Layer -> number of its units, in that order.
        intact: Accuracy of the intact network.
        seconds: CPU seconds.
    """

    counts: Screened
    layers: Mapping[str, int]
    intact: float
    seconds: float

    @cached_property
    def lost(self) -> dict[str, Intervals]:
        """Layer -> score lost by each unit, with 95 % intervals for these inputs."""
        found = self.counts.intervals().reversed()
        parts = zip(*(x.split(list(self.layers.values())) for x in (found.low, found.best, found.high)), strict=True)
        return {layer: Intervals(*part) for layer, part in zip(self.layers, parts, strict=True)}

    @cached_property
    def unbiased(self) -> dict[str, Tensor]:
        """Layer -> score lost by each unit without bias: noisier for a unit, right for sums and means over units."""
        parts = (-self.counts.unbiased).split(list(self.layers.values()))
        return dict(zip(self.layers, parts, strict=True))

    @property
    def share(self) -> float:
        """Share of the pairs of unit and input that were evaluated."""
        return int(self.counts.taken.sum()) / (self.counts.examples * sum(self.layers.values()))


@without_tf32()
def screen(
    net: Network,
    what: EachUnit,
    task: Task,
    *,
    data: Data | None = None,
    score: Score | None = None,
    budget: float = 0.05,
    share: float = 0.02,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Screen:
    """Score lost by each unit when it is silenced, estimated from a small part of all pairs of unit and input.

    Args:
        net: The network; neither it nor the model it came from is touched.
        what: Which units.
        task: What it is for; a classification.
        data: Inputs and targets; by default the task's test split.
        score: By default the task's; the accuracy.
        budget: Share of the pairs that is evaluated on average.
        share: Least chance of any pair, of which 200 inputs must be left.
        seed: Of the random part.
        progress: Told the number of inputs done so far.

    Returns:
        Estimates with intervals for these inputs, and what they cost.

    Raises:
        InputError: Too few inputs for the share, a score other than accuracy, a network whose pass cannot be recorded.
        AnatomyError: An unknown layer.

    Example:
        >>> from planaria.measure.datasets import task
        >>> from torch import nn
        >>> digits = task("digits")
        >>> net = Network.of(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)), digits.test.inputs)
        >>> found = screen(net, EachUnit(), digits, data=digits.train, budget=0.3, share=0.2)
        >>> found.lost["0"].best.shape, found.share < 0.3
        (torch.Size([16]), True)

    Source: first-order (Taylor) effects of units: Molchanov et al. 2017, "Pruning convolutional neural networks for
    resource efficient inference"; difference estimator: Cassel, Sarndal & Wretman 1976.

    Not guaranteed: the intervals of single units, see `Screened.intervals`. An answer that changes away from the rival,
    to a third class, is found by chance or by evaluation only.
    """
    started = clock(net.device)
    data = task.test if data is None else data
    judge = Judge(task.scorer if score is None else score)
    if not judge.counts_predictions or data.targets.ndim != 1 or data.targets.is_floating_point():
        raise InputError(
            "screen(score)", "accuracy on one label per input", judge.score.name, "Ask for a precision instead."
        )
    design = Design.of(len(data), budget, share)
    net = net.with_inputs(task.train.examples)
    layers = {group.layer: group.count for group in Anatomy.of(net).select(what.kinds, what.layers)}
    with fast_products(net.device):
        screener = Screener.of(net, layers)
        found, intact, done = None, 0, 0
        for number, rows in enumerate(torch.arange(len(data)).split(screener.block)):
            x, t = (part[rows.to(part.device)].to(net.device) for part in (data.inputs, data.targets))
            if screener.program.decided and not screener.program.holds(x, net(x)):
                expected = "inputs that take the same way through the network as its example inputs"
                raise InputError("screen(data)", expected, "others", "Ask for a precision instead.")
            block, right = screener.screened(x, t, design, stream(seed, "screen", number))
            found = block if found is None else found + block
            intact, done = intact + right, done + len(rows)
            if progress is not None:
                progress(done)
    assert found is not None
    return Screen(found, layers, intact / len(data), clock(net.device) - started)


@dataclass(frozen=True, eq=False)
class FirstOrder:
    """What one pass forward and back says of some examples.

    Attributes:
        margin: Of the answer over its rival: the runner-up, or the truth where the answer is wrong. [examples]
        slope: First-order change of it by each unit, [examples, units].
        idle: Pairs in which the unit emits nothing.
        right: Whether the answer is right, [examples].
        base: Values that evaluating pairs reads.
    """

    margin: Tensor
    slope: Tensor
    idle: Tensor
    right: Tensor
    base: Mapping[int, Tensor]


@dataclass(frozen=True, eq=False)
class Screener:
    """First-order effects of units, and true ones of pairs, by a recorded pass; what `screen` does on a block.

    Attributes:
        program: The pass.
        layers: Layer -> number of units.
        kept: Values of the intact pass that evaluating pairs reads.
        products: Layer -> the one linear product that reads its units, where that is all they do.
        chunk: Examples, and pairs, at a time.
        block: Examples among which pairs are ranked.
    """

    program: Program
    layers: Mapping[str, int]
    kept: tuple[int, ...]
    products: Mapping[str, _Product]
    chunk: int
    block: int

    @staticmethod
    def of(net: Network, layers: Mapping[str, int]) -> Screener:
        """Screener for some layers.

        Args:
            net: A network with example inputs.
            layers: Layer -> number of units.

        Raises:
            InputError: The pass cannot be recorded, or a layer's units lie along several axes.
        """
        program = Program.of(net)
        if isinstance(program, str):
            raise InputError("screen(net)", "a network whose pass can be recorded", program, "Ask for a precision.")
        for layer in layers:
            if layer not in program.gates:
                raise InputError(
                    f"screen(layer {layer!r})",
                    "activations whose units lie along one axis",
                    "others",
                    "Leave the layer out, or ask for a precision.",
                )
        kept: set[int] = set()
        products: dict[str, _Product] = {}
        for layer, count in layers.items():
            kept |= {gate.at for gate in program.gates[layer]}
            product = _Product.of(program, layer, count)
            if product is not None:
                products[layer] = product
                kept |= {product.at, product.out} | program.needs([product.out])
            first = program.first([layer])
            kept |= program.needs(first) | first
        size = sum(program.bytes.get(at, 0) for at in kept)
        chunk = chunk_size(program, net.device)
        block = max(1, min(4000, MEMORY // max(1, size)) // chunk) * chunk
        return Screener(program, layers, tuple(sorted(kept)), products, chunk, block)

    def screened(self, inputs: Tensor, targets: Tensor, design: Design, rng: torch.Generator) -> tuple[Screened, int]:
        """What a block of inputs tells, and how many of them the intact network gets right.

        Args:
            inputs: [examples, ...].
            targets: Labels, [examples].
            design: Chances of pairs.
            rng: Advanced by one number per pair.
        """
        parts = [self.first_order(x, t) for x, t in chunks(inputs, targets, self.chunk)]
        margin, slope = torch.cat([part.margin for part in parts]), torch.cat([part.slope for part in parts])
        idle, right = torch.cat([part.idle for part in parts]), torch.cat([part.right for part in parts])
        change = torch.where(right, -1, 1)
        counts = torch.tensor(list(self.layers.values()))
        groups = torch.arange(len(counts)).repeat_interleave(counts)
        choice = design.choose(margin, slope, change, idle, groups, rng)
        units, rows = choice.pairs
        changes = torch.empty(len(units), dtype=torch.int8, device=units.device)
        start = 0
        for layer, count in self.layers.items():
            own = (units >= start) & (units < start + count)
            places = own.nonzero().flatten()
            # By example, so that those of one chunk of the base are together.
            places = places[rows[places].argsort(stable=True)]
            of_chunk = torch.bincount(rows[places] // self.chunk, minlength=len(parts)).tolist()
            for number, here in enumerate(places.split(of_chunk)):
                for some in here.split(self.chunk):
                    local = rows[some] - number * self.chunk
                    outputs = self.outputs(parts[number].base, layer, units[some] - start, local)
                    after = RIGHT.values(outputs, targets[rows[some]])
                    changes[some] = after.to(torch.int8) - right[rows[some]].to(torch.int8)
            start += count
        return choice.counted(changes), int(right.sum())

    def first_order(self, inputs: Tensor, targets: Tensor) -> FirstOrder:
        """One pass forward and back.

        Args:
            inputs: [examples, ...].
            targets: Labels, [examples].
        """
        right = torch.zeros(len(inputs), dtype=torch.bool)

        def margin(outputs: Tensor) -> Tensor:
            nonlocal right
            given = outputs.detach()
            answer = given.argmax(1)
            right = RIGHT.values(given, targets) > 0
            second = given.scatter(1, answer[:, None], -torch.inf).argmax(1)
            rival = torch.where(right, second, targets)
            return (outputs.gather(1, answer[:, None]) - outputs.gather(1, rival[:, None]))[:, 0]

        numbers, pairs = self.program.slopes(inputs, self.kept, margin)
        values = {at: value for at, (value, _) in zip(self.kept, pairs, strict=True)}
        slopes = {at: slope for at, (_, slope) in zip(self.kept, pairs, strict=True)}
        change, idle = [], []
        for layer, count in self.layers.items():
            total = numbers.new_zeros(len(inputs), count)
            busy = torch.zeros(len(inputs), count, dtype=torch.bool, device=numbers.device)
            for gate in self.program.gates[layer]:
                value = values[gate.at]
                total -= gate.sums(value * slopes[gate.at], count)
                busy |= gate.sums((value != 0).to(value.dtype), count) > 0
            change.append(total)
            idle.append(~busy)
        return FirstOrder(
            numbers,
            torch.cat(change, 1),
            torch.cat(idle, 1),
            right,
            {**self.program.held, **values, self.program.input: inputs},
        )

    def outputs(self, base: Mapping[int, Tensor], layer: str, units: Tensor, rows: Tensor) -> Tensor:
        """Outputs for some examples, in each of which one unit of a layer is silent.

        Args:
            base: Of their first order.
            layer: Name.
            units: Number of the unit, [pairs].
            rows: Number of the example, [pairs].
        """
        program = self.program
        product = self.products.get(layer)
        edited = None if product is None else product.without(base, program, units, rows)
        if product is not None and edited is not None:
            return program.resume(program.pick(base, program.needs([product.out]), rows), {product.out: edited})
        gates = {gate.at: gate for gate in program.gates[layer]}
        first = program.first([layer])
        wanted = program.needs(first) | first
        if wanted <= program.rows.keys():
            picked = program.pick(base, wanted, rows)
        else:
            picked = program.run(base[program.input][rows], keep=wanted)
        edits: dict[int, Edit] = {at: _closing(gate, units) for at, gate in gates.items()}
        return program.resume(picked, {at: edits[at](picked[at]) for at in first}, edits)


@dataclass(frozen=True, eq=False)
class _Product:
    """A linear product through which alone the units of a layer act, one column each.

    Attributes:
        at: The value it reads, [examples x places, columns] or [examples, ..., columns].
        out: What it makes.
        columns: Column of each unit.
        weight: [columns, outputs].
    """

    at: int
    out: int
    columns: Tensor
    weight: Tensor

    @staticmethod
    def of(program: Program, layer: str, count: int) -> _Product | None:
        reads = program.reads.get(layer, ())
        op = program.ops[reads[0].op] if len(reads) == 1 else None
        place = {"mm": 1, "linear": 1, "addmm": 2}.get(op.name) if op is not None else None
        if op is None or place is None or op.writes[0] is None:
            return None
        at, out, owner = reads[0].at, op.writes[0], reads[0].owner
        weight = program.held.get(getattr(op.args[place], "at", -1))
        one_each = torch.equal(owner[owner >= 0].sort().values, torch.arange(count))
        lies = [program.rows.get(value) for value in (at, out)]
        if weight is None or not one_each or any(row is None or row.axis or not row.together for row in lies):
            return None
        if not {program.input, *program.needs([out])} <= program.rows.keys():
            return None
        columns = torch.empty(count, dtype=torch.int64)
        columns[owner[owner >= 0]] = (owner >= 0).nonzero().flatten()
        return _Product(at, out, columns.to(weight.device), weight.T if op.name == "linear" else weight)

    def without(self, base: Mapping[int, Tensor], program: Program, units: Tensor, rows: Tensor) -> Tensor | None:
        """What it makes for some examples without one unit each; None if something is infinite."""
        examples, columns = len(base[program.input]), self.columns[units]
        before, whole = base[self.at], base[self.out]
        emitted = before.reshape(examples, -1, before.shape[-1])[rows, :, columns]
        made = whole.reshape(examples, -1, whole.shape[-1])[rows]
        edited = torch.addcmul(made, emitted[:, :, None], self.weight[columns][:, None], value=-1)
        if not bool(edited.sum().isfinite()):
            return None  # infinity less infinity says nothing of the rest
        return edited.reshape(-1, *whole.shape[1:])


def _closing(gate: Gate, units: Tensor) -> Edit:
    return lambda value: gate.closed(value, units)
