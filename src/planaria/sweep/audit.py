"""Audit: some lesions run again by brute force, and what that showed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from planaria.core.streams import stream
from planaria.measure.labels import class_scores
from planaria.sweep.plan import BRUTE, IN_CHAIN
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
        replaced: Layers or weights that were therefore done again by a safer way.
    """

    lesions: int
    examples: int
    mismatches: int
    ties: int
    replaced: tuple[str, ...] = ()

    def __str__(self) -> str:
        again = f", done again: {', '.join(self.replaced)}" if self.replaced else ""
        return f"audited {self.lesions}, mismatches {self.mismatches}, ties {self.ties}{again}"


def audit(
    work: Work,
    inputs: Tensor,
    targets: Tensor,
    result: Mapping[str, Tally],
    count: int,
    seed: int,
    *,
    whole: bool = False,
) -> Audit:
    """Run some lesions again by brute force, half of them those with the largest effects, half at random.

    Args:
        work: What was done; its ways are used on these inputs, for comparison with brute force on the same.
        inputs: [examples, ...].
        targets: [examples, ...].
        result: Tallies over all inputs, from which the most harmful lesions are known.
        count: Lesions.
        seed: Of the choice.
        whole: Whether these are all inputs, so that the result itself is compared.
    """
    chosen = _chosen(work, result, count, seed)
    if not chosen:
        return Audit(0, 0, 0, 0)
    found = dict(result) if whole else _again(work, chosen, inputs, targets)
    intact = work.judge.values(work.net(inputs), targets)
    mismatches, ties = 0, 0
    replaced: dict[str, None] = {}
    for key, places in chosen.items():
        for place in places:
            outputs = edited(work.net, work.job.lesion(key, place, work.net))(inputs)
            truth = Tally.zeros((1,))
            truth.note(0, work.judge.values(outputs, targets), intact, targets)
            close = _ties(class_scores(outputs, targets)) if work.judge.counts_predictions else 0
            ties += close
            if not _agrees(truth, found[key], place, close, work.judge, intact):
                mismatches += 1
                replaced[key] = None
    return Audit(sum(map(len, chosen.values())), len(inputs), mismatches, ties, tuple(replaced))


def _chosen(work: Work, result: Mapping[str, Tally], count: int, seed: int) -> dict[str, list[int]]:
    """Places of the lesions to audit; those that were brute force anyway are not."""
    keys = [way.key for way in work.plan.ways if way.way != BRUTE]
    sizes = [result[key].total.numel() for key in keys]
    total = sum(sizes)
    count = min(count, total)
    if count <= 0:
        return {}
    effects = torch.cat([result[key].total.flatten().abs().cpu() for key in keys]).nan_to_num(nan=float("inf"))
    harmful = effects.topk(count // 2).indices
    drawn = torch.randint(total, (2 * count,), generator=stream(seed, "audit"))
    found: dict[str, list[int]] = {}
    for place in list(dict.fromkeys([*harmful.tolist(), *drawn.tolist()]))[:count]:
        at = 0
        while place >= sizes[at]:
            place -= sizes[at]
            at += 1
        found.setdefault(keys[at], []).append(place)
    return found


def _again(work: Work, chosen: Mapping[str, list[int]], inputs: Tensor, targets: Tensor) -> dict[str, Tally]:
    """Tallies in which at least the chosen lesions are counted on these inputs, by the ways of the work."""
    part = work.only(chosen)
    ways = {way.key: way.way for way in part.plan.ways}
    alone = {
        key: places
        for key, places in chosen.items()
        if ways[key] not in IN_CHAIN and (key in part.job.units or key == "lesions")
    }
    found, _ = part.some(alone).tally(inputs, targets)
    for key, places in alone.items():  # back to where they are among all
        shape, some = part.job.shapes[key], found[key]
        found[key] = Tally.zeros(shape)
        for name in ("total", "rose", "fell", "squares"):
            getattr(found[key], name)[places] = getattr(some, name).cpu()
    return found


def _ties(outputs: Tensor) -> int:
    """Examples with two largest outputs that are nearly the same; one whose outputs are not finite is just wrong."""
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        return 0
    rows = outputs.movedim(1, -1)
    finite = rows.isfinite().all(-1)
    scale = rows[finite].abs().max() if bool(finite.any()) else outputs.new_zeros(())
    first, second = rows.topk(2, -1).values.unbind(-1)
    close = finite & ~(first - second > TIE * scale)
    return int(close.reshape(len(close), -1).any(1).sum())


def _agrees(truth: Tally, found: Tally, place: int, ties: int, judge: Judge, intact: Tensor) -> bool:
    if judge.counts_predictions:
        apart = abs(int(truth.rose) - int(found.rose.view(-1)[place]))
        apart += abs(int(truth.fell) - int(found.fell.view(-1)[place]))
        return apart <= ties
    one, other = float(truth.total), float(found.total.view(-1)[place])
    if one != one:  # not a number; nor is any change where the intact score is none
        return other != other or bool(intact.isnan().any())
    return one == other or abs(one - other) <= TIE * max(1.0, float(intact.abs().mean())) * len(intact)
