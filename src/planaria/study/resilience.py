"""Resilience: what derivatives say that damage costs, held against what it does cost.

The map gives for every unit its gate vulnerability c_i, the first-order squared change of the outputs when it is
silenced (see `planaria.study.gating`). Units, sets of units and whole lesions are then really silenced: the report of
a prediction is the prediction beside the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from planaria.core.anatomy import Anatomy, Group, Unit
from planaria.core.devices import clock
from planaria.core.errors import InputError
from planaria.core.gemm import fast_products
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.geometry.metric import Euclidean, Fisher, Geometry, Metric
from planaria.geometry.spectrum import Spectrum
from planaria.measure.data import Data
from planaria.measure.shares import is_share
from planaria.measure.statistics import Estimate
from planaria.measure.task import Task
from planaria.study.breakdown import (
    COUNT,
    FARTHEST,
    PATH,
    allowed_loss,
    along_path,
    breakdown_of,
    by_count,
    random_lesion,
)
from planaria.study.gating import BASIS, POOL, Gated, changes, gated, loss_rises, magnitudes
from planaria.study.guides import Trial, Trials
from planaria.study.keeping import Keep, done_now
from planaria.study.resilient import ALONE, GREEDY, RANDOM, Gates, Resilience, Stiffness, Together
from planaria.study.vulnerability import evenly
from planaria.sweep.ablate import ablate
from planaria.sweep.lesions import EachUnit, Lesion
from planaria.sweep.program import Program

DRAWS = 20
"""Random sets."""
TOP = 1200
"""Units with the largest c_i, among which cross terms are known where there are too many units."""
JUDGED = 2000
"""Test inputs on which losses and scores are taken, at most."""
DIRECTIONS = 1000
"""Directions of the output space (inputs times outputs) of which the spectrum is taken."""
EIGENVALUES = 30
"""Eigenvalues where not all can be had."""
KEPT = 1000
"""Eigenvalues that a result keeps."""
STIFF = (0.1, 0.01, 0.001)
"""Shares of the largest eigenvalue above which a direction counts as stiff."""
DAMPING = 1e-3
"""mu of the effective dimension, as a share of the largest eigenvalue."""

ALL = EachUnit()


def resilience(
    net: Network,
    task: Task | Tensor,
    *,
    of: Geometry = Euclidean(),  # noqa: B008 - a frozen value
    what: EachUnit = ALL,
    examples: int = 512,
    sample: int | None = 50,
    set_size: int = 5,
    spectrum: bool = True,
    dose: float = 0.5,
    repeats: int = 10,
    points: int = 21,
    seed: int = 0,
) -> Resilience:
    """Map of gate vulnerability, held against real deletions; cross terms of sets; stiff directions; break-down.

    c_i = (1/N) sum over inputs x of |J_z(x)[:, i] z_i(x)|^2, z_i the activation of unit i (all its positions), J_z the
    derivative of the outputs by it; in the Fisher geometry |sqrt(p) (d - <p, d>)|^2 in place of |d|^2.

    Args:
        net: The network; it is not changed.
        task: What it is for: changes of outputs are measured on inputs of its training split, without labels, losses
            and scores on its test split. Or inputs [examples, ...]: then there are no losses and scores.
        of: How changes of outputs are measured: `Euclidean()` on the outputs as they are, `Fisher(temperature)` after
            softmax.
        what: Which units.
        examples: Inputs over which changes are means, at most.
        sample: Units that are really silenced one by one, drawn at random from those that are not dead; None for all.
        set_size: Units of the sets; 0 for none.
        spectrum: Whether the spectrum of the metric is wanted.
        dose: Share of every layer's units that a lesion takes away along a path.
        repeats: Random lesions; 0 for none.
        points: Places along a path.
        seed: Of samples, sets and lesions.

    Returns:
        Predictions beside what really happens; `judge_resilience` says in words what they show.

    Raises:
        InputError: A number off its range, a network whose pass cannot be recorded or has no units to gate.
        AnatomyError: An unknown layer or kind of unit.

    Example:
        >>> from planaria.measure.datasets import task
        >>> from torch import nn
        >>> net = Network.of(nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)))
        >>> found = resilience(net, task("digits"), examples=64, repeats=2, points=3)
        >>> found.units, len(found.trials.trials), len(found.breakdowns)
        (16, 16, 2)

    Source: Raghavan, Li and Thomson 2020 (Geometric algorithms for predicting resilience and recovering damage in
        neural networks), with gates in place of weights.

    Not guaranteed: that the first-order cost of a large lesion is near its cost, which is why both are given; that
    what holds on these inputs holds on others.
    """
    survey = Survey.of(
        net,
        task,
        geometry=of,
        what=what,
        examples=examples,
        sample=sample,
        set_size=set_size,
        spectrum=spectrum,
        dose=dose,
        repeats=repeats,
        points=points,
        seed=seed,
    )
    return survey.run()


@dataclass(frozen=True, eq=False)
class Survey:
    """A study of resilience that has been checked; nothing has been measured yet.

    Attributes:
        net: The network.
        program: Its recorded pass.
        groups: Layers whose units can be gated.
        inputs: Over which changes are means.
        task: What it is for, or None.
        data: Inputs and targets on which losses and scores are taken, or None.
        geometry: How changes of outputs are measured.
        sample: Units that are silenced one by one; None for all.
        set_size: Units of the sets.
        spectrum: Whether the spectrum is wanted.
        dose: Share of the units of a lesion.
        repeats: Lesions.
        points: Places along a path.
        seed: Of all that is drawn.
        notes: What is left out.
    """

    net: Network
    program: Program
    groups: tuple[Group, ...]
    inputs: Tensor
    task: Task | None
    data: Data | None
    geometry: Geometry
    sample: int | None
    set_size: int
    spectrum: bool
    dose: float
    repeats: int
    points: int
    seed: int
    notes: tuple[str, ...]

    @staticmethod
    def of(
        net: Network,
        task: Task | Tensor,
        *,
        geometry: Geometry,
        what: EachUnit,
        examples: int,
        sample: int | None,
        set_size: int,
        spectrum: bool,
        dose: float,
        repeats: int,
        points: int,
        seed: int,
    ) -> Survey:
        """Check; arguments as in `resilience`."""
        least = {"examples": (examples, 2), "set_size": (set_size, 0), "repeats": (repeats, 0), "points": (points, 2)}
        least |= {} if sample is None else {"sample": (sample, 4)}
        for name, (value, lowest) in least.items():
            if value < lowest:
                raise InputError(f"resilience({name})", f"a number of at least {lowest}", value)
        if not 0 < dose <= 1:
            raise InputError("resilience(dose)", "a share of the units above 0 and up to 1", dose)
        whole = task if isinstance(task, Tensor) else task.train.inputs
        if len(whole) < 2:
            raise InputError("resilience(task)", "at least 2 inputs", len(whole))
        inputs = whole[_spaced(len(whole), examples).to(whole.device)].to(net.device)
        net = net.with_inputs(inputs if isinstance(task, Tensor) else task.train.examples)
        if isinstance(geometry, type) or not isinstance(geometry, Geometry):
            raise InputError("resilience(of)", "Euclidean() or Fisher(temperature)", repr(geometry))
        geometry.check(net(inputs[:2]))
        program = Program.of(net)
        if isinstance(program, str):
            raise InputError("resilience(net)", "a network whose pass can be recorded", program, "Use `vulnerability`.")
        if program.decided and not program.holds(inputs, net(inputs)):
            raise InputError("resilience(inputs)", "inputs that take the way of the example inputs", "others")
        chosen = Anatomy.of(net).select(what.kinds, what.layers)
        groups = tuple(group for group in chosen if group.layer in program.gates)
        if not groups:
            raise InputError("resilience(net)", "layers whose units lie along one axis", "none", "Tap a layer.")
        lost = [group.layer for group in chosen if group.layer not in program.gates]
        notes = [f"Left out, because their activations do not lie along one axis: {', '.join(lost)}."] if lost else []
        data = None if isinstance(task, Tensor) else evenly(task.test, JUDGED).to(net.device)
        if data is not None and program.decided and not program.holds(data.inputs, net(data.inputs)):
            raise InputError("resilience(task)", "inputs that take the way of the example inputs", "others")
        return Survey(
            net=net,
            program=program,
            groups=groups,
            inputs=inputs,
            task=None if isinstance(task, Tensor) else task,
            data=data,
            geometry=geometry,
            sample=sample,
            set_size=min(set_size, sum(group.count for group in groups)),
            spectrum=spectrum,
            dose=dose,
            repeats=repeats,
            points=points,
            seed=seed,
            notes=tuple(notes),
        )

    @property
    def steps(self) -> int:
        """Steps of `run` that are kept one by one."""
        return 2 + (self.set_size > 0) + self.spectrum + 2 * self.repeats

    @cached_property
    def prices(self) -> dict[str, float]:
        """Estimated forward passes by part, each over the inputs that the part takes."""
        size = self.net(self.inputs[:1]).numel()
        total, backward = sum(self.layers.values()), 3.0 * min(size, BASIS)
        single = total if self.sample is None else min(total, self.sample)
        judged = 0.0 if self.data is None else len(self.data) / len(self.inputs)
        prices = {"map": backward, "single units": single * (1 + judged)}
        if self.set_size:
            prices["sets"] = backward * (total > POOL) + (DRAWS + 2) * (1 + judged)
        if self.spectrum:
            rows = min(len(self.inputs), max(2, DIRECTIONS // size)) / len(self.inputs)
            prices["spectrum"] = rows * (3.0 * size if size <= DIRECTIONS else 8.0 * EIGENVALUES)
        if self.repeats:
            prices["lesions"] = self.repeats * self.points * (5 + 2 * judged)
        return prices

    @cached_property
    def layers(self) -> dict[str, int]:
        """Layer -> number of units."""
        return {group.layer: group.count for group in self.groups}

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """All units, layer after layer."""
        return tuple(Unit(layer, place) for layer, count in self.layers.items() for place in range(count))

    @property
    def what(self) -> EachUnit:
        """The units that are studied."""
        return EachUnit(layers=tuple(self.layers))

    def run(self, keep: Keep = done_now) -> Resilience:
        """Map, single units, sets, spectrum, lesions.

        Args:
            keep: Remembers steps that are done; by default nothing is remembered.
        """
        started = clock(self.net.device)
        known = keep("map", self._map)
        layers = tuple(
            Gates(group.layer, group.kind, *(tuple(known[key][at]) for key in ("predicted", "magnitude", "activation")))
            for at, group in enumerate(self.groups)
        )
        trials = keep("single units", partial(self._single, known))
        sets = keep("sets", partial(self._sets, known))["sets"] if self.set_size else []
        spectrum = keep("spectrum", self._spectrum) if self.spectrum else None
        bounds = None if self.task is None else self.task.scorer.bounds
        share = self.task is not None and is_share(self.task.scorer.name)
        allowed = None if self.task is None else allowed_loss(self.task, known["intact"], share)
        breakdowns = []
        for along in (PATH, COUNT) if self.repeats else ():
            runs = [keep(f"{along}, lesion {n + 1}", partial(self._lesion, along, n)) for n in range(self.repeats)]
            facts = {"along": along, "at": runs[0]["at"], "units": runs[0]["units"], "runs": runs}
            breakdowns.append(breakdown_of(facts, allowed, bounds))
        return Resilience(
            of=said(self.geometry),
            examples=len(self.inputs),
            judged=0 if self.data is None else len(self.data),
            probes=known["probes"],
            score=None if self.task is None else self.task.scorer.name,
            intact=known["intact"],
            layers=layers,
            trials=Trials(tuple(Trial.of(row) for row in trials["rows"]), seed=self.seed),
            sets=tuple(
                Together(one["how"], tuple(Unit(*unit) for unit in one["units"]), *one["numbers"]) for one in sets
            ),
            spectrum=None if spectrum is None or not spectrum["values"] else _stiffness(spectrum),
            breakdowns=tuple(breakdowns),
            seconds=clock(self.net.device) - started,
            notes=(*self.notes, *([] if spectrum is None or spectrum["values"] else [spectrum["problem"]])),
        )

    # ------------------------------------------------------------------------------------------------ the steps

    def _gated(self, pool: Tensor | None = None) -> Gated:
        with fast_products(self.net.device):
            return gated(self.program, self.layers, self.inputs, self.geometry, pool=pool, seed=self.seed)

    @cached_property
    def _whole(self) -> Gated:
        return self._gated()

    def _map(self) -> dict[str, Any]:
        found, parts = self._whole, list(self.layers.values())
        sizes = [magnitudes(self.net, group) for group in self.groups]
        activation = [a * m for a, m in zip(found.activation.split(parts), sizes, strict=True)]
        return {
            "predicted": [part.tolist() for part in found.predicted.split(parts)],
            "magnitude": [part.tolist() for part in sizes],
            "activation": [part.tolist() for part in activation],
            "probes": found.probes,
            "intact": None if self.task is None or self.data is None else self.task.score(self.net, self.data),
        }

    def _single(self, known: dict[str, Any]) -> dict[str, Any]:
        """Units that are really silenced, one by one."""
        columns = [[x for part in known[key] for x in part] for key in ("predicted", "magnitude", "activation")]
        living = torch.tensor(columns[0]).nonzero().flatten()
        if self.sample is not None:
            order = torch.randperm(len(living), generator=stream(self.seed, "sample"))
            living = living[order[: self.sample]].sort().values
        places = living.tolist()
        actual, loss = self._silenced([[place] for place in places])
        rows = [
            [self.units[place].layer, self.units[place].index, *(column[place] for column in columns), change, rise]
            for place, change, rise in zip(places, actual, loss, strict=True)
        ]
        return {"rows": rows}

    def _silenced(self, sets: Sequence[Sequence[int]]) -> tuple[list[float], list[float | None]]:
        """What sets of units really change: outputs, and the loss where there is one."""
        lesions = [Lesion.of([self.units[place] for place in places], self.net) for places in sets]
        actual = changes(self.program, lesions, self.inputs, self.geometry)
        if self.task is None or self.data is None:
            return actual, [None] * len(sets)
        return actual, list(loss_rises(self.program, lesions, self.data, self.task))

    def _sets(self, known: dict[str, Any]) -> dict[str, Any]:
        """Sets chosen by cross terms, by c_i alone, and at random: predicted and silenced."""
        alone = torch.tensor([x for part in known["predicted"] for x in part], dtype=torch.float64)
        size, order = self.set_size, alone.argsort(descending=True, stable=True)
        drawn = [
            torch.randperm(len(alone), generator=stream(self.seed, "set", draw))[:size].sort().values
            for draw in range(DRAWS)
        ]
        found = self._whole
        if not len(found.pool):
            found = self._gated(torch.cat([order[:TOP], *drawn]).unique())
        ways = [(GREEDY, found.greedy(size)), (ALONE, order[:size].tolist()), *((RANDOM, d.tolist()) for d in drawn)]
        actual, _ = self._silenced([places for _, places in ways])
        lost: list[float | None] = [None] * len(ways)
        if self.task is not None and self.data is not None:
            lesions = [[self.units[place] for place in places] for _, places in ways]
            if self.task.scorer.per_example is not None:
                effects = ablate(self.net, lesions, self.task, data=self.data, audited=2, seed=self.seed)
                lost = (effects.lost["lesions"] + 0.0).tolist()
        made = [
            {
                "how": how,
                "units": [[self.units[place].layer, self.units[place].index] for place in places],
                "numbers": [found.together(places), float(alone[places].sum()), actual[at], lost[at]],
            }
            for at, (how, places) in enumerate(ways)
        ]
        return {"sets": made}

    def _spectrum(self) -> dict[str, Any]:
        """Eigenvalues of the metric, all of them where its Gram matrix is small."""
        size = self.net(self.inputs[:1]).numel()
        some = self.inputs[_spaced(len(self.inputs), max(2, DIRECTIONS // size)).to(self.inputs.device)]
        found = _eigenvalues(Metric(self.net, some, self.geometry), self.geometry)
        if not len(found.values) or not float(found.values[0]) > 0:
            return {"values": [], "problem": "No spectrum: no direction of weight space changes the outputs."}
        largest, known = float(found.values[0]), len(found.values)
        stiff = [[tau, int((found.values > tau * largest).sum())] for tau in STIFF]
        return {
            "values": found.values[:KEPT].tolist(),
            "inputs": len(some),
            "bound": min(found.rank, found.entries),
            "entries": found.entries,
            "stiff": [[tau, few] for tau, few in stiff if found.complete or few < known],
            "dimension": list(vars(found.effective_dimension(DAMPING * largest)).values()),
            "resilient": list(vars(found.resilient_fraction(DAMPING * largest)).values()),
        }

    def _lesion(self, along: str, number: int) -> dict[str, Any]:
        """One random lesion as it grows."""
        if along == PATH:
            units = random_lesion(self.net, self.what, self.dose, self.seed, number)
            walked = along_path(self.net, units, self.inputs, self.geometry, self.points, self.task, self.data)
            at = torch.linspace(0, 1, self.points, dtype=torch.float64).tolist()
            return {"at": at, "units": [len(units)], **walked.to_dict()}
        total = len(self.units)
        shares = torch.linspace(0, FARTHEST, self.points, dtype=torch.float64)
        counts = sorted({round(share * total) for share in shares.tolist()})
        counts = counts if len(counts) > 1 else [0, total]
        drawn = torch.randperm(total, generator=stream(self.seed, "order", number)).tolist()
        order = [self.units[place] for place in drawn]
        walked = by_count(self.net, order, counts, self.inputs, self.geometry, self.task, self.data)
        return {"at": [count / total for count in counts], "units": counts, **walked.to_dict()}


def _eigenvalues(metric: Metric, geometry: Geometry) -> Spectrum:
    """All that are not zero where the Gram matrix is small, else the largest."""
    try:
        return metric.eigh()
    except InputError:
        return metric.eigh(min(EIGENVALUES, metric.entries, geometry.rank(metric.outputs)))


def said(of: Geometry) -> str:
    """How changes of outputs are measured, in words.

    Example:
        >>> said(Euclidean())
        'outputs'
    """
    if isinstance(of, Euclidean):
        return "outputs"
    return f"Fisher, temperature {of.temperature:g}" if isinstance(of, Fisher) else type(of).__name__


def _spaced(many: int, wanted: int) -> Tensor:
    """At most so many rows of many, evenly spaced."""
    return torch.linspace(0, many - 1, min(many, wanted)).long()


def _stiffness(known: dict[str, Any]) -> Stiffness:
    dimension, resilient = Estimate(*known["dimension"]), Estimate(*known["resilient"])
    stiff = {float(tau): int(count) for tau, count in known["stiff"]}
    inputs, bound, entries = (int(known[key]) for key in ("inputs", "bound", "entries"))
    return Stiffness(tuple(known["values"]), inputs, bound, entries, stiff, dimension, resilient)
