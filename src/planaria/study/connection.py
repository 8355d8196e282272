"""Whether two networks are connected: every way between them, alignment, and a pair that surely is connected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from planaria.core.errors import InputError, PlanariaError, nearest
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost, settle, updates
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import norm
from planaria.geometry.align import align
from planaria.geometry.bend import Bezier
from planaria.geometry.connect import CALIBRATION, SAMPLE, connect
from planaria.geometry.geodesic import Geodesic
from planaria.geometry.greedy import Greedy
from planaria.geometry.metric import Metric
from planaria.geometry.normalise import normalises
from planaria.geometry.path import Path, check_alike, check_function, towards
from planaria.geometry.profile import ROUNDS
from planaria.geometry.straight import Straight, Way
from planaria.geometry.symmetry import permute
from planaria.measure.shares import is_share
from planaria.measure.statistics import Estimate, finite
from planaria.measure.task import Task
from planaria.repair.retrain import Retrain
from planaria.study.keeping import Keep, done_now
from planaria.study.train import usual_batch

STRAIGHT, ALIGNED, BEZIER, CHAIN, GREEDY = "straight", "aligned", "bezier", "chain", "greedy"
WAYS = {
    STRAIGHT: "the straight line",
    ALIGNED: "the straight line after alignment: the second network's units are permuted to match the first's",
    BEZIER: "a curve with one bend that is trained on the training loss, after alignment",
    CHAIN: "a chain of networks whose outputs change as little as possible from one to the next, after alignment; "
    "without labels",
    GREEDY: "walks from both ends towards each other that change the outputs as little as they can, after alignment; "
    "the gap that is left is closed by a chain",
}
"""Ways that are compared, the simplest first, and what each is."""
CONTROL = "control"
TRAIN, VALIDATION, TEST = "train", "validation", "test"
LOSS, SCORE = "loss", "score"


@dataclass(frozen=True, eq=False)
class Tried:
    """One way between two networks.

    Attributes:
        name: The way, one of WAYS, or CONTROL.
        record: What was found, JSON-able: settings, cost, notes, profiles by split; or the problem.
    """

    name: str
    record: Mapping[str, Any] = field(repr=False)

    @property
    def problem(self) -> str:
        """Why it could not be tried; empty if it was."""
        return str(self.record["problem"])

    @property
    def connects(self) -> bool:
        """Whether the loss barrier on validation data is at most the tolerance."""
        return not self.problem and bool(self.record["connects"])

    @property
    def cost(self) -> Cost:
        """Of finding the path, alignment included, measuring not."""
        return Cost(**self.record["cost"])

    def barrier(self, kind: str, split: str = TEST) -> Estimate:
        """Barrier in loss or score on a split; infinite where outputs along the path are not finite."""
        found = self.record["profiles"][split][f"{kind}_barrier"]
        best = math.inf if found["best"] is None else found["best"]
        low, high = (best if end is None and math.isinf(best) else end for end in (found["low"], found["high"]))
        return Estimate(math.nan if low is None else low, best, math.nan if high is None else high)


@dataclass(frozen=True, eq=False)
class Connection:
    """What lies between two networks.

    Attributes:
        tried: Ways, the simplest first, those that could not be tried among them.
        control: The straight line to the first network after some more training: connected by all that is known.
        alignment: Distances before and after, symmetries found and left out; or the problem; empty if none was wanted.
        distance: Between the two in weight space.
        size: Norm of the first network's weights.
        tolerance: Loss barrier that counts as none.
        layers: With batch normalisation, whose statistics are re-estimated along the paths.
        calibration: Inputs from which they are.
        forward: Multiply-adds of one forward pass over the training split.
        score: Name of the score.
        aligned: The second network with its units in the order of the first's; None without alignment.
    """

    tried: tuple[Tried, ...]
    control: Tried | None
    alignment: Mapping[str, Any]
    distance: float
    size: float
    tolerance: float
    layers: tuple[str, ...]
    calibration: int
    forward: int
    score: str
    aligned: Network | None = field(repr=False)

    @property
    def found(self) -> list[Tried]:
        """Ways that could be tried."""
        return [way for way in self.tried if not way.problem]

    @property
    def best(self) -> Tried | None:
        """The simplest way that connects on validation data, else the one with the least loss barrier there."""
        connecting = next((way for way in self.found if way.connects), None)
        return connecting or min(self.found, key=lambda way: way.barrier(LOSS, VALIDATION).best, default=None)

    @property
    def percent(self) -> bool:
        """Whether the score is a share, to be told in points."""
        return is_share(self.score)

    def way(self, name: str) -> Tried | None:
        """A way that was tried, by its name."""
        return next((way for way in self.found if way.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """All of it but the networks, JSON-able."""
        best = self.best
        plain: dict[str, Any] = finite(
            {
                "distance": self.distance,
                "size": self.size,
                "same": self.distance == 0,
                "tolerance": self.tolerance,
                "normalisation": {"layers": list(self.layers), "inputs": self.calibration if self.layers else 0},
                "forward": self.forward,
                "best": None if best is None else best.name,
                "alignment": {key: value for key, value in self.alignment.items() if key != "permutations"},
                "ways": [self._told(way) for way in self.tried],
                "control": None if self.control is None else self._told(self.control),
            }
        )
        return plain

    def _told(self, way: Tried) -> dict[str, Any]:
        words = WAYS.get(way.name, "the straight line to the first network after some more training")
        told = {"way": way.name, "words": words, **way.record}
        if not way.problem:
            told["cost"] = {**told["cost"], "forward_equivalents": way.cost.multiply_adds / max(1, self.forward)}
        return told


@dataclass(frozen=True, eq=False)
class Survey:
    """The study of two networks: what will be done, and what it will cost.

    Args:
        a: The first network.
        b: The second, of the same architecture.
        task: Training data for the ways; validation data choose, test data judge.
        ways: Names from WAYS.
        points: Of the grid along each path, before it is refined.
        nets: Networks of a chain; None for the usual number.
        updates: Of a curve or a chain; None for the usual number of each.
        steps: Of each greedy walk, at most; None for the usual number.
        calibration: Training inputs, at most, for statistics of batch normalisation.
        tolerance: Loss barrier that counts as none; None: see `connect`.
        control: Updates by which the control is trained further; 0 for no control.
        seed: Of everything random.

    Raises:
        InputError: An unknown way, networks of different weights or architecture, weights that are not finite, or
            batch normalisation without running statistics.
    """

    a: Network
    b: Network
    task: Task
    ways: tuple[str, ...] = tuple(WAYS)
    points: int = 25
    nets: int | None = None
    updates: int | None = None
    steps: int | None = None
    calibration: int = CALIBRATION
    tolerance: float | None = None
    control: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.ways:
            if name not in WAYS:
                raise InputError("Survey.ways", f"some of {', '.join(WAYS)}", repr(name), nearest(name, list(WAYS)))
        if not self.ways:
            raise InputError("Survey.ways", f"some of {', '.join(WAYS)}", "none")
        check_alike(self.a, self.b)
        for which, net in (("first", self.a), ("second", self.b)):
            for name, weight in net.weights.items():
                if not bool(weight.isfinite().all()):
                    got, remedy = f"NaN or infinity in {name!r}", "Repair or exclude this network."
                    raise InputError(f"the {which} network", "finite weights", got, remedy)
        example = self.task.train.examples
        check_function(self.a.with_inputs(example), self.b.with_inputs(example))
        for name in WAYS:
            self._way(name, Straight())  # complains about wrong settings
        normalises(self.a)  # complains where outputs depend on which inputs come together

    @property
    def parts(self) -> int:
        """How many parts of the study are kept one by one."""
        return len(self.ways) + self._aligns + (self.control > 0)

    @property
    def _aligns(self) -> bool:
        return any(name != STRAIGHT for name in self.ways)

    @property
    def forward(self) -> int:
        """Multiply-adds of one forward pass over the training split."""
        return forward_multiply_adds(self.a, self.task.train.inputs) * len(self.task.train)

    def prices(self) -> dict[str, float]:
        """About what each part costs, in forward passes over the training split."""
        rows, priced = len(self.task.train), dict[str, float]()
        visited = 2 * (self.points + 2 * ROUNDS * 5)  # with the distances between neighbours
        seen = min(rows, SAMPLE) + len(self.task.validation) + len(self.task.test)
        measured = visited * seen / rows
        for name in self.ways:
            way, found = self._way(name, Straight()), 0.0
            if isinstance(way, Bezier):
                found = 3 * way.updates * way.batch / rows
            if isinstance(way, Geodesic):
                found = _chained(way) / rows
            if isinstance(way, Greedy):
                inputs = self.task.train.inputs[: way.inputs]
                solved = Metric(self.a, inputs).solve(self.b - self.a, damping=way.damping).cost.multiply_adds
                found = 2 * way.steps * solved / max(1, self.forward) + _chained(way.close) / rows
            priced[name] = found + measured
        if self.control:
            priced[CONTROL] = 3 * self.control * usual_batch(rows) / rows + measured
        return priced

    def run(self, keep: Keep = done_now) -> Connection:
        """Try every way.

        Args:
            keep: Remembers parts that are done.
        """
        distance = float(norm(towards(self.a, self.b)))
        ways = self.ways if distance else tuple(dict.fromkeys((STRAIGHT, *self.ways)))
        alignment: dict[str, Any] = keep("alignment", self._align) if self._aligns else {}
        aligned = None
        if "permutations" in alignment:
            orders = {name: torch.tensor(order) for name, order in alignment["permutations"].items()}
            b = self.b if self.b.inputs is not None else self.b.with_inputs(self.task.train.examples)
            aligned = permute(b, orders)
        tried = []
        for name in ways:
            if not distance and name != STRAIGHT:
                tried.append(Tried(name, {"settings": "", "problem": "the two are the same network"}))
                continue
            tried.append(Tried(name, keep(name, partial(self._try, name, aligned, alignment))))
        control = Tried(CONTROL, keep(CONTROL, self._certain)) if self.control else None
        return Connection(
            tolerance=next((way.record["tolerance"] for way in (*tried, control) if way and not way.problem), math.nan),
            tried=tuple(tried),
            control=control,
            alignment=alignment,
            distance=distance,
            size=float(norm({name: w for name, w in self.a.weights.items() if w.is_floating_point()})),
            layers=normalises(self.a),
            calibration=min(self.calibration, len(self.task.train)),
            forward=self.forward,
            score=self.task.scorer.name,
            aligned=aligned,
        )

    def _align(self) -> dict[str, Any]:
        """The second network in the order of the first; a network that cannot be traced is left as it is."""
        example = self.task.train.examples
        try:
            return align(self.a.with_inputs(example), self.b.with_inputs(example), seed=self.seed).to_dict()
        except PlanariaError as problem:
            return {"problem": str(problem)}

    def _try(self, name: str, aligned: Network | None, alignment: Mapping[str, Any]) -> dict[str, Any]:
        """One way, from the aligned network where that is known."""
        start: Path | Straight = Straight()
        if aligned is not None:
            notes = {"aligned": True, "symmetries": len(alignment["permutations"]), "units moved": alignment["moved"]}
            start = Path((self.a, aligned), cost=Cost(**alignment["cost"]), notes=notes)
        if name == ALIGNED and aligned is None:
            return {"settings": "", "problem": alignment["problem"]}
        way = self._way(name, start)
        said = repr(replace(way, start=None)) if isinstance(way, (Bezier, Geodesic, Greedy)) else ""
        try:
            return self._measured(self.b, way, said)
        except PlanariaError as problem:
            return {"settings": said, "problem": str(problem)}

    def _way(self, name: str, start: Path | Straight) -> Way:
        """A way by its name; those that begin somewhere begin on `start`."""
        if name == BEZIER:
            bent = Bezier(start=start)
            return bent if self.updates is None else replace(bent, updates=self.updates)
        if name == CHAIN:
            return self._chain(Geodesic(start=start))
        if name == GREEDY:
            walks = Greedy(start=start)
            walks = replace(walks, close=self._chain(walks.close))
            return walks if self.steps is None else replace(walks, steps=self.steps)
        return Straight() if name == STRAIGHT or isinstance(start, Straight) else _Known(start)

    def _chain(self, usual: Geodesic) -> Geodesic:
        chain = usual if self.nets is None else replace(usual, nets=self.nets)
        return chain if self.updates is None else replace(chain, updates=self.updates)

    def _certain(self) -> dict[str, Any]:
        """The straight line to the first network, trained on."""
        flow = Retrain(self.task, batch=usual_batch(len(self.task.train)))
        further = settle(flow, updates(self.control)).moment(self.a, stream(self.seed, CONTROL)).network
        record = self._measured(further, Straight(), f"{self.control} updates of {flow.optimiser!r}")
        return {**record, "updates": self.control}

    def _measured(self, end: Network, way: Way, said: str) -> dict[str, Any]:
        """The path of a way and its profiles, JSON-able."""
        path = connect(
            self.a,
            end,
            self.task,
            way,
            points=self.points,
            tolerance=self.tolerance,
            calibration=self.calibration,
            seed=self.seed,
        )
        (attempt,) = path.tried
        measuring = Cost()
        for profile in path.profiles.values():
            measuring = measuring + profile.cost
        plain: dict[str, Any] = finite(
            {
                "settings": said,
                "problem": "",
                "connects": attempt.connects,
                "tolerance": attempt.tolerance,
                "knots": len(path.knots),
                "apart": float(norm(towards(path(0.0), path(1.0)))),
                "cost": dict(vars(path.cost)),
                "measuring": dict(vars(measuring)),
                "notes": dict(path.notes),
                "profiles": {split: profile.to_dict() for split, profile in path.profiles.items()},
            }
        )
        return plain


@dataclass(frozen=True, eq=False)
class _Known:
    """The way along a path that has been found."""

    path: Path

    def __call__(self, a: Network, b: Network, task: Task, rng: torch.Generator, /) -> Path:
        return self.path


def _chained(way: Geodesic) -> float:
    """Examples pushed forward by a chain, a backward pass counted twice."""
    return (3 * (way.nets - 2) + 2) * way.updates * way.batch
