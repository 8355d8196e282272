"""Audit: some lesions run again by brute force, and what that showed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from planaria.core.streams import stream
from planaria.sweep.plan import BRUTE
from planaria.sweep.replay import edited
from planaria.sweep.tally import Judge, Tally
from planaria.sweep.work import Work

TIE = 1e-4
"""Share of the largest output below which the two largest of an example are a tie."""


@dataclass(frozen=True)
class Audit:
    """What brute force said about some lesions.

    Attributes:
        lesions: Run again.
        examples: Inputs each was run on.
        mismatches: Lesions whose changes differ by more than ties explain.
        ties: Examples, over all these lesions, whose two largest outputs are closer than 1e-4 of the largest.
        replaced: Layers or weights that were therefore done again by a bit-identical way.
    """

    lesions: int
    examples: int
    mismatches: int
    ties: int
    replaced: tuple[str, ...] = ()

    def __str__(self) -> str:
        again = f", done again: {', '.join(self.replaced)}" if self.replaced else ""
        return f"audited {self.lesions}, mismatches {self.mismatches}, ties {self.ties}{again}"


def audit(work: Work, inputs: Tensor, targets: Tensor, result: Mapping[str, Tally], count: int, seed: int) -> Audit:
    """Run some lesions again by brute force, half of them those with the largest effects, half at random.

    Args:
        work: What was done; its ways are used on these inputs, for comparison with brute force on the same.
        inputs: [examples, ...].
        targets: [examples, ...].
        result: Tallies over all inputs, from which the most harmful lesions are known.
        count: Lesions.
        seed: Of the choice.
    """
    chosen = _chosen(work, result, count, seed)
    if not chosen:
        return Audit(0, 0, 0, 0)
    keys = list(dict.fromkeys(key for key, _ in chosen))
    found, _ = work.only(keys).tally(inputs, targets)
    intact = work.judge.values(work.net(inputs), targets)
    mismatches, ties = 0, 0
    replaced: dict[str, None] = {}
    for key, place in chosen:
        outputs = edited(work.net, work.job.lesion(key, place, work.net))(inputs)
        truth = Tally.zeros((1,))
        truth.note(0, work.judge.values(outputs, targets), intact, targets)
        close = _ties(outputs) if work.judge.counts_predictions else 0
        ties += close
        if not _agrees(truth, found[key], place, close, work.judge, intact):
            mismatches += 1
            replaced[key] = None
    return Audit(len(chosen), len(inputs), mismatches, ties, tuple(replaced))


def _chosen(work: Work, result: Mapping[str, Tally], count: int, seed: int) -> list[tuple[str, int]]:
    """Lesions to audit; those that were brute force anyway are not."""
    keys = [way.key for way in work.plan.ways if way.way != BRUTE]
    sizes = [result[key].total.numel() for key in keys]
    total = sum(sizes)
    if not total:
        return []
    count = min(count, total)
    effects = torch.cat([result[key].total.flatten().abs().cpu() for key in keys]).nan_to_num(nan=float("inf"))
    harmful = effects.topk(count // 2).indices
    drawn = torch.randint(total, (2 * count,), generator=stream(seed, "audit"))
    places = list(dict.fromkeys([*harmful.tolist(), *drawn.tolist()]))[:count]
    starts = [sum(sizes[:at]) for at in range(len(sizes))]
    found = []
    for place in places:
        at = max(number for number, start in enumerate(starts) if start <= place and sizes[number])
        found.append((keys[at], place - starts[at]))
    return found


def _ties(outputs: Tensor) -> int:
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return 0
    first, second = outputs.topk(2, 1).values.unbind(1)
    scale = outputs.abs().amax(1).amax()
    return int((~(first - second > TIE * scale)).sum())


def _agrees(truth: Tally, found: Tally, place: int, ties: int, judge: Judge, intact: Tensor) -> bool:
    if judge.counts_predictions:
        apart = abs(int(truth.rose) - int(found.rose.view(-1)[place]))
        apart += abs(int(truth.fell) - int(found.fell.view(-1)[place]))
        return apart <= ties
    one, other = float(truth.total), float(found.total.view(-1)[place])
    scale = max(1.0, float(intact.abs().mean()))
    return one == other or abs(one - other) <= TIE * scale * len(intact)
