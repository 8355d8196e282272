"""Losses of many lesions on the same inputs, as plain numbers that can be kept: in all, and for each class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from planaria.core.network import Network
from planaria.measure.data import Data
from planaria.measure.scores import Score
from planaria.measure.task import Task
from planaria.study.dissociation import Change
from planaria.study.groupings import Chosen, Controls
from planaria.sweep.ablate import Effects, ablate
from planaria.sweep.lesions import EachUnit, Nested, What
from planaria.sweep.tally import Judge

ROOM = 1 << 28
"""Bytes of outputs that are kept at a time."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What lesions are judged on, and by what.

    Attributes:
        net: The network.
        task: What it is for.
        data: Inputs that lesions are judged on, on the network's device.
        labels: Class of each input, on the CPU; None without classes.
        classes: Labels of the classes that are told apart.
        judge: Score of single examples by which classes are judged; None without classes.
        seed: Of audits.
    """

    net: Network
    task: Task
    data: Data
    labels: Tensor | None
    classes: tuple[int, ...]
    judge: Score | None
    seed: int

    @cached_property
    def rows(self) -> tuple[Tensor, ...]:
        """Examples of each class."""
        if self.labels is None:
            return ()
        return tuple(torch.eq(self.labels, label).nonzero().flatten() for label in self.classes)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of examples of each class."""
        return tuple(len(rows) for rows in self.rows)

    @cached_property
    def intact(self) -> Tensor | None:
        """Score of each example without a lesion; None without classes."""
        return None if self.judge is None else self._values(self.task.outputs(self.net, self.data))

    @property
    def intact_by_class(self) -> tuple[float, ...]:
        """Score of each class without a lesion."""
        before = self.intact
        return () if before is None else tuple(float(before[rows].mean()) for rows in self.rows)

    def _values(self, outputs: Tensor) -> Tensor:
        assert self.judge is not None
        return Judge(self.judge).values(outputs, self.data.targets).cpu()

    def measured(self, leg: Sequence[Chosen]) -> dict[str, Any]:
        """What some lesions cost: sums over all examples and over each class's, and products of pairs of lesions."""
        lesions = [one.lesion for one in leg]
        before = self.intact
        if before is None:
            effects = ablate(self.net, lesions, self.task, data=self.data, audited=8, seed=self.seed)
            return {"moments": [[_whole(effects, at)] for at in range(len(leg))], **_facts([effects])}
        size = self.task.outputs(self.net, self.data.take(1)).nbytes * len(self.data)
        room = max(1, ROOM // max(1, size))
        made, moments, changes = [], [], []
        for at in range(0, len(lesions), room):
            some = lesions[at : at + room]
            effects = ablate(
                self.net, some, self.task, data=self.data, outputs=True, audited=min(4, len(some)), seed=self.seed
            )
            assert effects.outputs is not None
            made.append(effects)
            for place, outputs in enumerate(effects.outputs["lesions"]):
                change = self._values(outputs) - before
                changes.append(change)
                whole = [float(change.sum()), float(change.square().sum())]
                if self.judge is not self.task.scorer:
                    whole = _whole(effects, place)
                moments.append(
                    [*([float(part.sum()), float(part.square().sum())] for part in self._split(change)), whole]
                )
        selective = leg[0].place is not None
        products = [
            [float((changes[own][rows] * other[rows]).sum()) for other in changes]
            for own, rows in enumerate(self.rows)
            if selective
        ]
        return {"moments": moments, "products": products, **_facts(made)}

    def _split(self, change: Tensor) -> list[Tensor]:
        return [change[rows] for rows in self.rows]

    def changes(self, numbers: Sequence[Sequence[float]]) -> list[Change]:
        """Changes of every class, and at the end of all examples."""
        scores = [*[self.judge] * len(self.classes), self.task.scorer]
        counts = [*self.counts, len(self.data)]
        return [
            Change(count, total, squares, _reach(score))
            for (total, squares), score, count in zip(numbers, scores, counts, strict=True)
        ]

    def drawn(self, random: Controls) -> dict[str, Any]:
        """What random lesions cost."""
        lost, by_class, facts = self._swept(Nested(random.orders, random.counts))
        classes = None if by_class is None else by_class["orders"].tolist()
        return {"counts": list(random.counts), "lost": lost["orders"].tolist(), "by_class": classes, **facts}

    def alone(self, layers: tuple[str, ...]) -> dict[str, Any]:
        """What single units of some layers cost."""
        lost, by_class, facts = self._swept(EachUnit(layers=layers))
        classes = None if by_class is None else {layer: values.tolist() for layer, values in by_class.items()}
        return {"lost": {layer: values.tolist() for layer, values in lost.items()}, "by_class": classes, **facts}

    def _swept(self, what: What) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, dict[str, Any]]:
        """Losses of many lesions, on all examples and on each class's, by the cheapest exact way."""
        effects = ablate(self.net, what, self.task, data=self.data, audited=8, seed=self.seed)
        if self.judge is None:
            return effects.lost, None, _facts([effects])
        own = self.labels is not None and torch.equal(self.labels, self.data.targets.cpu())
        if own and effects.classes is not None and self.judge is self.task.scorer:
            found, places = {}, list(self.classes)
            for key, tally in effects.tallies.items():
                assert tally.by_class is not None and effects.classes is not None
                found[key] = 0.0 - (tally.by_class[..., places] / effects.classes[places]).cpu()
            return effects.lost, found, _facts([effects])
        made = [effects]
        for rows in self.rows:
            part = self.data.take(rows)
            made.append(ablate(self.net, what, self.task, data=part, score=self.judge, audited=2, seed=self.seed))
        stacked = {key: torch.stack([one.lost[key] for one in made[1:]], -1) for key in effects.tallies}
        return effects.lost, stacked, _facts(made)


def _whole(effects: Effects, place: int) -> list[float]:
    tally = effects.tallies["lesions"]
    return [float(tally.total[place]), float(tally.squares[place])]


def _reach(score: Score | None) -> float:
    """Largest change of an example's score; 0 where there is no largest."""
    reach = 0.0 if score is None or score.bounds is None else score.bounds[1] - score.bounds[0]
    return reach if math.isfinite(reach) else 0.0


def _facts(effects: Sequence[Effects]) -> dict[str, Any]:
    """How effects were computed, as plain values; the first is over all examples."""
    return {
        "intact": effects[0].intact,
        "audit": together([{**vars(one.audit), "replaced": list(one.audit.replaced)} for one in effects]),
        "seconds": sum(one.seconds for one in effects),
        "forward": effects[0].forward,
    }


def together(audits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Audits added up."""
    added = {key: sum(audit[key] for audit in audits) for key in ("lesions", "mismatches", "ties")}
    replaced = [layer for audit in audits for layer in audit["replaced"]]
    return {**added, "examples": max(audit["examples"] for audit in audits), "replaced": replaced}
