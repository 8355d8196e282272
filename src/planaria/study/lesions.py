"""The lesion study: silence groups of units, and see what each costs, which class it hurts, and what random ones do.

A lesion silences several units together. Groups are layers, clusters of units that respond alike or lie near each
other, and the units that are most selective for a class. Each is compared with random lesions of the same size in the
same layers. Units are chosen on the training split; what their loss costs is measured on the test split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from planaria.core.anatomy import Anatomy
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.measure.data import Data
from planaria.measure.scores import ACCURACY
from planaria.measure.statistics import Estimate, mean_interval
from planaria.measure.task import Task
from planaria.study.dissociation import Change, Crossing, Dissociation, control_interval, dissociations, p_control
from planaria.study.groupings import By, ByCluster, ByLayer, BySelectivity, Chosen, Controls, controls, grouped
from planaria.study.keeping import Keep, done_now
from planaria.study.lesion_bench import Bench, together
from planaria.study.lesioned import Guide, Lesioned, LesionStudy, Loss
from planaria.study.selectivity import Responses, Selectivity, checked_labels, responses, selectivity_of
from planaria.study.weak_points import rank_correlation
from planaria.sweep.lesions import EachUnit, Job, Nested, What
from planaria.sweep.tally import Judge
from planaria.sweep.work import Work

STIMULI = 2000
"""Most inputs on which responses of units are measured."""
LIKENESS = 512
"""Most of them by which units are clustered."""
MOST = 20
"""Most classes that are told apart unless they are named."""
LEG = 16
"""Lesions that are measured in one go: what a stop in between loses."""

ALL_UNITS = EachUnit()


def lesion_study(
    net: Network,
    task: Task,
    by: Sequence[By] | None = None,
    *,
    what: EachUnit = ALL_UNITS,
    draws: int = 20,
    classes: Sequence[int] | None = None,
    stimuli: tuple[Tensor, Tensor] | None = None,
    single_units: bool = True,
    data: Data | None = None,
    seed: int = 0,
) -> LesionStudy:
    """Score and score of each class with groups of units silenced, against random lesions; and what dissociates.

    Args:
        net: Any network; it is not changed.
        task: What it is for.
        by: How units are grouped; by default by layer, by cluster and, where inputs have classes, by selectivity.
        what: Units that take part.
        draws: Random lesions for each size.
        classes: Labels of the classes that are told apart; by default all, of more than 20 the most frequent.
        stimuli: Other classes than the task's: whole numbers for the training split and for the data, one for each
            example.
        single_units: Also silence every unit alone: whether a group costs more than its units, and whether
            selectivity predicts damage.
        data: Inputs that lesions are judged on; by default the task's test split.
        seed: Of random lesions and audits.

    Returns:
        Losses with intervals, controls, dissociations, and whether selectivity is a guide.

    Raises:
        InputError: No lesions, too few classes or stimuli, fewer than 2 draws.
        AnatomyError: An unknown layer or kind of unit.

    Example:
        >>> from planaria.measure.datasets import task
        >>> from torch import nn
        >>> net = Network.of(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)))
        >>> found = lesion_study(net, task("digits"), [BySelectivity(0.2)], draws=5)
        >>> len(found.lesions), len(found.dissociations), found.lesions[3].label
        (10, 45, '3')

    Source: Teuber 1955 and Shallice 1988 for double dissociation; Crawford & Howell 1998 for a single case against few
    controls; Morcos et al. 2018 for the question whether selectivity predicts damage.

    Not guaranteed: that what is lost with a group is computed there, or that another training run has such groups.
    """
    return Survey.of(
        net,
        task,
        by,
        what=what,
        draws=draws,
        classes=classes,
        stimuli=stimuli,
        single_units=single_units,
        data=data,
        seed=seed,
    ).run()


@dataclass(frozen=True, eq=False)
class Survey:
    """A lesion study whose lesions have been chosen; nothing has been silenced yet.

    Attributes:
        bench: What lesions are judged on.
        layers: Layers that take part.
        selective: Selectivity of units; None if it is not asked for.
        chosen: The lesions.
        controls: Random lesions by name.
        draws: How many for each size.
        single_units: Whether units are silenced one at a time too.
        notes: What was left out.
    """

    bench: Bench
    layers: tuple[str, ...]
    selective: Selectivity | None
    chosen: tuple[Chosen, ...]
    controls: Mapping[str, Controls]
    draws: int
    single_units: bool
    notes: tuple[str, ...] = field(default=())

    @staticmethod
    def of(
        net: Network,
        task: Task,
        by: Sequence[By] | None = None,
        *,
        what: EachUnit = ALL_UNITS,
        draws: int = 20,
        classes: Sequence[int] | None = None,
        stimuli: tuple[Tensor, Tensor] | None = None,
        single_units: bool = True,
        data: Data | None = None,
        seed: int = 0,
    ) -> Survey:
        """Measure responses and choose the lesions; arguments as in `lesion_study`."""
        if draws < 2:
            raise InputError("lesion_study(draws)", "at least 2 random lesions", draws, "Draw 20.")
        data = task.test if data is None else data
        net = net.with_inputs(task.train.examples)
        groups = Anatomy.of(net).select(what.kinds, what.layers)
        judge = task.scorer if task.scorer.per_example is not None else ACCURACY if task.classes else None
        given = stimuli or (task.train.targets, data.targets)
        labelled = judge is not None and (stimuli is not None or (task.classes is not None and given[1].ndim == 1))
        if by is None:
            by = [ByLayer(), ByCluster(), *([BySelectivity()] if labelled else [])]
        wants_selectivity = any(isinstance(one, BySelectivity) for one in by)
        if wants_selectivity and not labelled:
            raise InputError(
                "lesion_study(by selectivity)",
                "one class for each example, and a score that is a mean over examples",
                f"score {task.scorer.name!r}, targets {list(given[1].shape)}",
                "Give stimuli=(labels of the training split, labels of the data), or group otherwise.",
            )
        notes: list[str] = []
        labels, shown = None, task.train
        told: tuple[int, ...] = ()
        if labelled:
            labels = checked_labels(given[1], len(data), "lesion_study(labels of the data)")
            told, note = _classes(labels, classes)
            notes += note
            if judge is not task.scorer:
                notes.append(f"Classes are judged by accuracy, because {task.scorer.name} is no mean over examples.")
        wants_likeness = any(isinstance(one, ByCluster) and one.positions is None for one in by)
        known, selective = None, None
        if wants_likeness or wants_selectivity:
            rows = _evenly(len(shown), STIMULI)
            known = responses(net, shown.take(rows), tuple(group.layer for group in groups))
            if wants_selectivity:
                seen = checked_labels(given[0], len(shown), "lesion_study(labels of the training split)")
                selective = selectivity_of(known, seen[rows], told)
            few = _evenly(len(rows), LIKENESS)
            known = Responses({layer: values[few] for layer, values in known.layers.items()}, known.unknown)
        chosen, left = grouped(by, groups, known, selective, [str(label) for label in told])
        if not chosen:
            raise InputError("lesion_study", "at least one lesion", "none", " ".join(left) or "Name a grouping.")
        return Survey(
            bench=Bench(net, task, data.to(net.device), labels, told, judge if labelled else None, seed),
            layers=tuple(group.layer for group in groups),
            selective=selective,
            chosen=tuple(chosen),
            controls=controls(chosen, groups, draws, seed),
            draws=draws,
            single_units=single_units,
            notes=(*notes, *left),
        )

    # ------------------------------------------------------------------------------------------------ the price

    @property
    def steps(self) -> int:
        """Steps of `run` that are kept one by one."""
        return len(self._legs) + len(self.controls) + self.single_units

    @cached_property
    def prices(self) -> dict[str, float]:
        """Estimated forward passes over all inputs, by part; at most."""
        net, scorer = self.bench.net, self.bench.task.scorer
        mean = scorer.per_example is not None
        score = scorer if mean else ACCURACY
        found = {"lesions": 1.0 + len(self.chosen)}

        def price(what: What) -> float:
            plan = Work.of(net, Job.of(what, net), Judge(score), bitwise=not mean).plan
            return sum(way.forwards for way in plan.ways)

        if self.controls:
            found["random lesions"] = sum(price(Nested(one.orders, one.counts)) for one in self.controls.values())
        if self.single_units:
            found["single units"] = price(EachUnit(layers=self.layers))
        return found

    # ------------------------------------------------------------------------------------------------ the work

    def run(self, keep: Keep = done_now) -> LesionStudy:
        """Silence everything and compare.

        Args:
            keep: Remembers steps that are done; by default nothing is remembered.
        """
        parts = []
        for leg in self._legs:
            name = f"lesions {leg[0].key} to {leg[-1].key}"
            parts.append(keep(name, partial(self.bench.measured, leg)))
        drawn = {
            key: keep(f"random lesions of {key}", partial(self.bench.drawn, one)) for key, one in self.controls.items()
        }
        alone = keep("single units", partial(self.bench.alone, self.layers)) if self.single_units else None
        facts = [*parts, *drawn.values(), *([] if alone is None else [alone])]
        changes = {
            one.key: self.bench.changes(numbers)
            for leg, part in zip(self._legs, parts, strict=True)
            for one, numbers in zip(leg, part["moments"], strict=True)
        }
        lesions = tuple(self._lesioned(one, changes[one.key], drawn, alone) for one in self.chosen)
        bench = self.bench
        return LesionStudy(
            score=bench.task.scorer.name,
            class_score="" if bench.judge is None else bench.judge.name,
            intact=parts[0]["intact"],
            examples=len(bench.data),
            classes=self._names,
            counts=bench.counts,
            intact_by_class=bench.intact_by_class,
            lesions=lesions,
            dissociations=self._pairs(changes, parts, drawn),
            guides=self._guides(alone),
            draws=self.draws,
            audit=together([fact["audit"] for fact in facts]),
            seconds=sum(fact["seconds"] for fact in facts),
            forward=max(fact["forward"] for fact in facts),
            notes=self.notes,
        )

    @cached_property
    def _legs(self) -> tuple[tuple[Chosen, ...], ...]:
        """Lesions some at a time; all of selective units together, because they are compared example by example."""
        selective = tuple(one for one in self.chosen if one.place is not None)
        others = [one for one in self.chosen if one.place is None]
        cut = [tuple(others[at : at + LEG]) for at in range(0, len(others), LEG)]
        return (*([selective] if selective else []), *cut)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(str(label) for label in self.bench.classes)

    # ------------------------------------------------------------------------------------------------ the comparison

    def _lesioned(
        self,
        one: Chosen,
        changes: Sequence[Change],
        drawn: Mapping[str, Mapping[str, Any]],
        alone: Mapping[str, Any] | None,
    ) -> Lesioned:
        random = None if one.control is None else drawn[one.control]
        *by_class, whole = changes

        def loss(change: Change, place: int | None) -> Loss:
            if random is None:
                return Loss(change.lost, None, None)
            draws, grain = _losses(random, one.size, place), change.reach / (2 * change.examples)
            return Loss(
                change.lost, control_interval(draws, grain, change.reach), p_control(change.lost.best, draws, grain)
            )

        total = None
        if alone is not None:
            total = math.fsum(alone["lost"][layer][number] for layer, some in one.units.items() for number in some)
        return Lesioned(
            key=one.key,
            grouping=one.grouping,
            name=one.name,
            units=one.units,
            label=None if one.place is None else self._names[one.place],
            whole=loss(whole, None),
            classes=tuple(loss(change, place) for place, change in enumerate(by_class)),
            single_units=total,
        )

    def _pairs(
        self,
        changes: Mapping[str, list[Change]],
        parts: Sequence[Mapping[str, Any]],
        drawn: Mapping[str, Mapping[str, Any]],
    ) -> tuple[Dissociation, ...]:
        selective = [one for one in self.chosen if one.place is not None]
        if not selective:
            return ()
        assert selective[0].control is not None
        random = drawn[selective[0].control]
        sets = [{(layer, unit) for layer, some in one.units.items() for unit in some} for one in selective]
        shared = {
            (a, b): len(sets[a] & sets[b]) / max(1, len(sets[a])) for a in range(len(sets)) for b in range(len(sets))
        }
        at = random["counts"].index(selective[0].size)
        return dissociations(
            Crossing(
                names=self._names,
                changes=[changes[one.key][:-1] for one in selective],
                products=parts[0]["products"],
                controls=[draw[at] for draw in random["by_class"]],
                shared=shared,
            )
        )

    def _guides(self, alone: Mapping[str, Any] | None) -> tuple[Guide, ...]:
        """Per layer, whether selectivity goes with what a unit costs."""
        if alone is None or self.selective is None:
            return ()
        return tuple(self._guide(layer, values, alone) for layer, values in self.selective.layers.items())

    def _guide(self, layer: str, values: Tensor, alone: Mapping[str, Any]) -> Guide:
        lost = torch.tensor(alone["lost"][layer], dtype=torch.float64)
        by_class = torch.tensor(alone["by_class"][layer], dtype=torch.float64)
        prefers, most = values.argmax(1), values.amax(1)
        own = by_class.gather(1, prefers[:, None])[:, 0]
        others = (by_class.sum(1) - own) / (by_class.shape[1] - 1)
        live = most.isfinite() & (most != 0) & lost.isfinite() & own.isfinite()  # the others never respond
        apart = (own - others)[live].tolist()

        def related(loss: Tensor) -> Estimate | None:
            return rank_correlation(most[live], loss[live]) if int(live.sum()) >= 4 else None

        return Guide(
            layer=layer,
            units=int(live.sum()),
            total=related(lost),
            own=related(own),
            apart=mean_interval(apart) if apart else Estimate(math.nan, math.nan, math.nan),
        )


def _classes(labels: Tensor, wanted: Sequence[int] | None) -> tuple[tuple[int, ...], list[str]]:
    """Labels of the classes that are told apart, and what is to be said of it."""
    known, counts = labels[labels >= 0].unique(return_counts=True)
    if wanted is not None:
        told = tuple(dict.fromkeys(wanted))
        strange = [label for label in told if label not in known.tolist()]
        if strange or len(told) < 2:
            raise InputError(
                "lesion_study(classes)",
                f"two or more labels that occur in the data, from {int(known.min())} to {int(known.max())}",
                list(wanted),
            )
        return told, []
    if len(known) <= MOST:
        return tuple(known.tolist()), []
    often = known[counts.argsort(descending=True, stable=True)[:MOST]].sort().values
    note = f"The {MOST} most frequent of {len(known)} classes are told apart; name others to see them."
    return tuple(often.tolist()), [note]


def _evenly(rows: int, most: int) -> Tensor:
    """Numbers of at most so many rows, evenly spaced."""
    if rows <= most:
        return torch.arange(rows)
    return torch.linspace(0, rows - 1, most, dtype=torch.float64).long()


def _losses(random: Mapping[str, Any], size: int, place: int | None) -> list[float]:
    """Losses of random lesions of a size, on all examples or on those of a class."""
    at = random["counts"].index(size)
    return [draw[at] if place is None else draw[at][place] for draw in random["lost" if place is None else "by_class"]]
