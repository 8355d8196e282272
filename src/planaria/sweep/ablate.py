"""Ablate: the effect of every one of many lesions on the score, exactly, by the cheapest exact way.

Weights are never edited: the network is a value, and damaged versions share with it everything the damage does not
reach. What is computed how is a plan that can be printed; some lesions are run again by brute force, and the result
says what that showed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from planaria.core.devices import clock, without_tf32
from planaria.core.errors import InputError
from planaria.core.gemm import route_of
from planaria.core.network import Network
from planaria.measure.data import Data, check_labels
from planaria.measure.scores import Score
from planaria.measure.statistics import Estimate, finite
from planaria.measure.task import FORWARD_BATCH, Task
from planaria.sweep.audit import Audit, audit
from planaria.sweep.lesions import Job, What
from planaria.sweep.plan import BRUTE, Plan
from planaria.sweep.replay import chunks
from planaria.sweep.shards import worked
from planaria.sweep.tally import Judge, Tally
from planaria.sweep.work import Work

Stream = Callable[[], Iterable[tuple[Tensor, Tensor]]]

BLOCK = 2 * FORWARD_BATCH
"""Most examples that are worked on at a time."""

SHARE = 1 << 32
"""Multiply-adds of a block, of which one process does no less: some tenths of a second."""

MEMORY = 1 << 28
"""Bytes of activations that a block may have."""

SAMPLE = 1000
"""Inputs of the audit."""

PRICED = 250
"""Inputs on which the price of a forward pass is measured, and recorded passes must give the network's outputs."""

OUTPUTS = 1 << 32
"""Most bytes of outputs that are kept on request."""


@dataclass(frozen=True, eq=False)
class Effects:
    """Effects of lesions on the score over the same inputs.

    Attributes:
        tallies: Layer -> changes of its units; weight name -> changes of its entries; "orders" -> [orders, counts];
            "lesions" -> in the order given.
        examples: Inputs that each lesion was judged on.
        intact: Score without a lesion.
        classes: Examples of each class, where changes are counted per class.
        plan: How it was computed.
        audit: What brute force said about some of them.
        seconds: CPU seconds, the audit apart.
        forward: CPU seconds of one forward pass over the same inputs.
        bounds: Least and greatest possible score, if there are any.
        outputs: Like tallies, [lesions, examples, ...], where they were wanted.
    """

    tallies: Mapping[str, Tally]
    examples: int
    intact: float
    classes: Tensor | None
    plan: Plan
    audit: Audit
    seconds: float
    forward: float
    bounds: tuple[float, float] | None = None
    outputs: Mapping[str, Tensor] | None = field(default=None, repr=False)

    @property
    def forwards(self) -> float:
        """Price in forward passes over the same inputs, the audit apart."""
        return self.seconds / self.forward if self.forward > 0 else math.nan

    @cached_property
    def scores(self) -> dict[str, Tensor]:
        """Score with each lesion, in the shape of the tallies, double."""
        return {key: self.intact + tally.total / self.examples for key, tally in self.tallies.items()}

    @cached_property
    def lost(self) -> dict[str, Tensor]:
        """Score lost by each lesion: the vulnerability of units."""
        return {key: (0.0 - tally.total) / self.examples for key, tally in self.tallies.items()}  # never -0

    def estimate(self, key: str, at: int) -> Estimate:
        """Score lost by one lesion, with a 95 % interval over inputs like these; NaN where the score is no mean.

        Args:
            key: Of the tallies.
            at: Place in the flattened array of lesions.

        Source: paired difference of means, normal quantile; the change of an example is the difference of its scores.

        Not guaranteed: coverage where fewer than about ten examples change.
        """
        tally, n = self.tallies[key], self.examples
        lost = 0.0 - float(tally.total.view(-1)[at]) / n
        variance = float(tally.squares.view(-1)[at]) / n - lost * lost
        half = variance if math.isnan(variance) else 1.959964 * math.sqrt(max(0.0, variance) / n)
        return Estimate(lost - half, lost, lost + half)

    def top(self, count: int = 10) -> list[tuple[str, int, float]]:
        """Lesions that cost most: (key, place in the flattened array, score lost), worst first, NaN the worst."""
        ranked = [
            (-worst, order, place, key)
            for order, (key, lost) in enumerate(self.lost.items())
            for values in [lost.flatten().nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)]
            for worst, place in zip(*(found.tolist() for found in values.topk(min(count, len(values)))), strict=True)
        ]
        return [(key, place, float(self.lost[key].view(-1)[place])) for _, _, place, key in sorted(ranked)[:count]]

    def to_dict(self) -> dict[str, Any]:
        """Plan, audit and price as plain numbers."""
        plain: dict[str, Any] = finite(
            {
                "examples": self.examples,
                "intact": self.intact,
                "plan": [vars(way) for way in self.plan.ways],
                "route": self.plan.route,
                "chunk": self.plan.chunk,
                "audit": vars(self.audit),
                "seconds": self.seconds,
                "forwards": self.forwards,
            }
        )
        return plain

    def __str__(self) -> str:
        lesions = sum(tally.total.numel() for tally in self.tallies.values())
        return (
            f"{lesions:,} lesions on {self.examples:,} inputs for {self.forwards:.1f} forward passes; intact "
            f"{self.intact:.4f}; {self.audit}"
        )


@without_tf32()
def ablate(
    net: Network,
    what: What,
    task: Task,
    *,
    data: Data | Stream | None = None,
    score: Score | None = None,
    bitwise: bool = False,
    outputs: bool = False,
    audited: int = 24,
    workers: int = 1,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Effects:
    """Score of a network under each of many lesions, as exact as running each damaged network.

    Exact means: the same prediction wherever the two largest outputs of brute force differ by more than 1e-4 of the
    largest; with `bitwise` the same operations on the same numbers.

    Args:
        net: The network; neither it nor the model it came from is touched.
        what: EachUnit(), EachWeight(), Nested(), or lesions: units, sets of units, damaged versions of the network.
        task: What it is for.
        data: Inputs and targets; by default the task's test split. A function that returns batches (inputs, targets)
            is read batch by batch and may be larger than memory.
        score: By default the task's.
        bitwise: Only run again what depends on the lesion, with the network's own operations.
        outputs: Also keep the outputs under each lesion.
        audited: Lesions to run again by brute force on up to 1,000 inputs, half of them the most harmful ones. What
            disagrees is done again by a safer way.
        workers: Processes that share the inputs; any number gives the same result.
        seed: Of the choice of audited lesions.
        progress: Told the number of inputs done so far.

    Returns:
        The effects, with plan, audit and price.

    Raises:
        InputError: No lesions, no data, outputs that would not fit, a network that answers the same inputs
            differently each time (a stochastic operation is on).
        AnatomyError: An unknown layer or unit.

    Example:
        >>> from planaria.measure.datasets import task
        >>> from planaria.sweep.lesions import EachUnit
        >>> from torch import nn
        >>> digits = task("digits")
        >>> net = Network.of(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)), digits.test.inputs)
        >>> effects = ablate(net, EachUnit(), digits)
        >>> effects.tallies["0"].total.shape, effects.audit.mismatches
        (torch.Size([16]), 0)

    Source: sign-split interval bounds follow interval bound propagation (Gowal et al., 2018); exhaustive fault
        injection by closed forms is related to DeepVigor (Ahmadilivani et al., 2023), which estimates.

    Not guaranteed: that lesions act on other inputs as on these; `Effects.estimate` has intervals for that.
    """
    if workers < 1:
        raise InputError("ablate(workers)", "a number of at least 1", workers)
    if audited < 0:
        raise InputError("ablate(audited)", "a number of at least 0", audited)
    data = task.test if data is None else data
    sample = _sample(data, net.device)
    few = Data(sample[0][:2], sample[1][:2])
    task.outputs(net, few)  # raises with a reason if they do not fit
    some = net.at_once(sample[0])
    sample = _evenly(sample[0], some), _evenly(sample[1], some)
    if net.inputs is None or net.inputs.shape[1:] != few.inputs.shape[1:] or net.inputs.dtype != few.inputs.dtype:
        net = replace(net, inputs=few.inputs)
    scorer = task.scorer if score is None else score
    job = Job.of(what, net)
    if outputs or scorer.per_example is None:
        return _by_outputs(net, job, scorer, task, data, sample, audited, seed)
    started = clock(net.device)
    judge = Judge(scorer, None if job.new is not None else _classes(task, data, sample[1]))
    forward, known = _priced(net, sample[0])
    work = Work.of(net, job, judge, bitwise=bitwise, known=known)
    blocks = _blocks(data, work, sample)
    with route_of(net.device, bitwise=bitwise) as route:
        work = replace(work, plan=replace(work.plan, route=route))
        prepared = clock(net.device) - started
        whole = worked(work, blocks, workers, progress)
        checked = audit(work, *sample, whole.tallies, audited, seed, whole=_is_all(sample, data))
        spent, wrong = prepared + whole.seconds, checked.replaced
        while wrong:  # done again by a safer way, and again by brute force if that is wrong too
            work = work.safely(wrong)
            again = worked(work.only(wrong), blocks, workers, None)
            whole = replace(whole, tallies=whole.tallies | again.tallies)
            wrong = audit(work.only(wrong), *sample, again.tallies, audited, seed).replaced
    return Effects(
        tallies=whole.tallies,
        examples=whole.examples,
        intact=whole.intact / whole.examples,
        classes=whole.classes,
        plan=work.plan,
        audit=checked,
        seconds=spent,
        forward=forward * whole.examples,
        bounds=scorer.bounds,
    )


def _priced(net: Network, inputs: Tensor) -> tuple[float, tuple[Tensor, Tensor]]:
    """Seconds of an eager forward pass per example, see `clock`; and some of the inputs with the outputs."""
    inputs, spent = _evenly(inputs, min(PRICED, net.at_once(inputs))), []
    for _ in range(2):
        started = clock(net.device)
        outputs = net(inputs)
        spent.append(clock(net.device) - started)
    return min(spent) / len(inputs), (inputs, outputs)


def _sample(data: Data | Stream, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets for the audit: evenly spaced, of a stream from the first batch."""
    inputs, targets = (data.inputs, data.targets) if isinstance(data, Data) else next(_batches(data))
    return _evenly(inputs, SAMPLE).to(device), _evenly(targets, SAMPLE).to(device)


def _evenly(rows: Tensor, count: int) -> Tensor:
    """So many of some rows, all over them; at most all."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count, dtype=torch.float64).long().to(rows.device)]


def _is_all(sample: tuple[Tensor, Tensor], data: Data | Stream) -> bool:
    return isinstance(data, Data) and len(sample[0]) == len(data)


def _classes(task: Task, data: Data | Stream, sample: Tensor) -> int | None:
    """Number of classes, where the targets are labels, one for each example."""
    targets = data.targets if isinstance(data, Data) else sample
    if task.classes is None or targets.ndim != 1 or targets.is_floating_point():
        return None
    return task.classes if int(targets.min()) >= 0 and int(targets.max()) < task.classes else None


def _batches(data: Stream) -> Iterator[tuple[Tensor, Tensor]]:
    """Checked batches of a stream."""
    found = False
    for given in data():
        batch = Data.of(given, "ablate(data)")
        found = True
        yield batch.inputs, batch.targets
    if not found:
        raise InputError("ablate(data)", "at least one batch", "none", "Give a function that starts anew each time.")


def _blocks(
    data: Data | Stream, work: Work, sample: tuple[Tensor, Tensor]
) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """Blocks of inputs that fit in memory, as often as wanted; the same whoever works on them."""
    most = _block_size(work, work.net.at_once(sample[0], FORWARD_BATCH))

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        if isinstance(data, Data):
            yield from chunks(data.inputs, data.targets, most)
            return
        for inputs, targets in _batches(data):
            if inputs.shape[1:] != sample[0].shape[1:] or targets.shape[1:] != sample[1].shape[1:]:
                raise InputError(
                    "ablate(data)",
                    f"batches of inputs {list(sample[0].shape[1:])} and targets {list(sample[1].shape[1:])} each",
                    f"{list(inputs.shape[1:])} and {list(targets.shape[1:])}",
                    "Bring all batches to one shape.",
                )
            if work.judge.classes is not None:
                check_labels(targets, work.judge.classes, "ablate(data).targets")
            yield from chunks(inputs, targets, most)

    return blocks


def _block_size(work: Work, at_once: int) -> int:
    """Examples of a block: so few that several processes can share the work, so many that each has enough to do.

    What is run whole is run in the batches in which scores are taken elsewhere.

    Args:
        work: What is done to a block.
        at_once: Examples that one pass may take.
    """
    most = max(1, min(BLOCK, MEMORY // max(1, work.bytes)))
    if at_once < FORWARD_BATCH:
        return min(most, at_once)
    if work.takes([BRUTE]) or isinstance(work.program, str):
        return math.ceil(most / FORWARD_BATCH) * FORWARD_BATCH
    price = sum(way.forwards for way in work.plan.ways) * work.program.work
    return min(most, max(work.plan.chunk, int(SHARE / max(1.0, price))))


def _by_outputs(
    net: Network,
    job: Job,
    scorer: Score,
    task: Task,
    data: Data | Stream,
    sample: tuple[Tensor, Tensor],
    audited: int,
    seed: int,
) -> Effects:
    """Effects from the outputs under each lesion, all kept: on request, and for scores that are no mean."""
    started = clock(net.device)
    if not isinstance(data, Data):
        batches = list(_batches(data))
        data = Data(torch.cat([inputs for inputs, _ in batches]), torch.cat([targets for _, targets in batches]))
    data = data.to(net.device)
    intact = task.outputs(net, data)
    size = job.count * intact.numel() * intact.element_size()
    if size > OUTPUTS:
        raise InputError(
            "ablate(outputs)",
            f"outputs that fit in {OUTPUTS >> 30} GiB",
            f"{job.count:,} lesions x {len(data):,} inputs, {size / (1 << 30):.0f} GiB",
            "Take fewer lesions or inputs at a time"
            + ("." if scorer.per_example is not None else ", or a score that is a mean over examples."),
        )
    mean = scorer.per_example is not None
    forward, known = _priced(net, sample[0])
    work = Work.of(net, job, Judge(scorer if mean else _whole(scorer)), bitwise=True, known=known)
    kept = {key: intact.new_empty(*shape, *intact.shape) for key, shape in job.shapes.items()}
    tallies = _kept(work, data, scorer, kept)
    spent = clock(net.device) - started
    checked = audit(work, *sample, tallies, audited, seed, whole=mean and _is_all(sample, data))
    if checked.replaced:  # by brute force, because it was replayed
        work = work.safely(checked.replaced)
        tallies |= _kept(work.only(checked.replaced), data, scorer, kept)
    return Effects(
        tallies,
        len(data),
        float(scorer.function(intact, data.targets)),
        None,
        work.plan,
        checked,
        spent,
        forward * len(data),
        scorer.bounds,
        kept,
    )


def _kept(work: Work, data: Data, scorer: Score, kept: Mapping[str, Tensor]) -> dict[str, Tally]:
    """Fill in the outputs under the lesions of a work, and count what they change."""
    whole, at = [], 0
    for inputs, _ in chunks(data.inputs, data.targets, work.plan.chunk):
        intact, damaged = work.outputs(inputs)
        whole.append(intact)
        for key, place, outputs in damaged:
            kept[key].view(-1, len(data), *outputs.shape[1:])[place, at : at + len(inputs)] = outputs
        at += len(inputs)
    before, tallies = torch.cat(whole), {}
    for key, shape in work.job.shapes.items():
        tallies[key] = tally = Tally.zeros(shape)
        outputs_of = kept[key].view(-1, *before.shape)
        if scorer.per_example is None:  # nothing is known of single examples
            score = scorer.function(before, data.targets)
            scores = torch.tensor([scorer.function(one, data.targets) for one in outputs_of], dtype=torch.float64)
            tally.total.view(-1).copy_((scores - score) * len(data))
            tally.squares.fill_(math.nan)
            continue
        values = work.judge.values(before, data.targets)
        for place, one in enumerate(outputs_of):
            tally.note(place, work.judge.values(one, data.targets), values, data.targets)
    return tallies


def _whole(scorer: Score) -> Score:
    """A stand-in for scores that are no mean over examples, where only outputs are asked for."""
    return replace(scorer, per_example=lambda outputs, targets: outputs.reshape(len(outputs), -1)[:, 0])
