"""Surfaces: loss and score on a plane through a network's weights, with a walk drawn on it as far as it lies there.

For chains the first product is linear in its weights, so that three products serve for the whole grid:
z(u, v) = z + u z_1 + v z_2. Other networks are run whole at each point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from planaria.core.devices import clock, without_tf32
from planaria.core.errors import InputError
from planaria.core.gemm import fast_products
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import norm
from planaria.geometry.normalise import normalises, renormalised
from planaria.measure.data import Data
from planaria.measure.labels import IGNORED
from planaria.measure.statistics import finite
from planaria.measure.task import FORWARD_BATCH, KEPT, Task
from planaria.study.keeping import Keep, Step, done_now
from planaria.study.plane import Plane
from planaria.study.surface_map import Stop, Surface
from planaria.sweep.chain import Chain, Stage
from planaria.sweep.program import near

CHUNK = 512
"""Examples at a time: the activations of a hidden layer then stay in cache."""
HELD = 1 << 28
"""Bytes of first products that are kept for all rows of the grid, and of outputs that are held at once."""


def surface(
    net: Network,
    task: Task,
    *,
    directions: Plane | None = None,
    walk: Sequence[Network] = (),
    span: float = 1.0,
    points: int = 51,
    inputs: int = 5000,
    data: Data | None = None,
    calibration: Tensor | None = None,
    seed: int = 0,
) -> Surface:
    """Loss and score on the plane w + u * first + v * second, for u and v from -span to span.

    Args:
        net: The network w, at the centre.
        task: Its loss and score.
        directions: A plane through the network; by default `Plane.of_walk` where there is a walk, else `Plane.random`.
        walk: Networks to draw on the plane, each with how far off it is, its own loss, and that of the point below it.
        span: Largest u and v.
        points: Of each side of the grid; odd, so that the network itself is on it.
        inputs: At most so many, drawn without replacement.
        data: Inputs and targets; by default the task's test split.
        calibration: Unlabelled inputs from which the normalisation statistics are re-estimated at every point but the
            network's own; by default they are left as they are.
        seed: Of random directions and the choice of inputs.

    Returns:
        The surface. Its middle is the network's own loss and score on these inputs; with re-estimated statistics those
        are in `centre_loss` and `centre_score`.

    Raises:
        InputError: A span or number that is none, an even number of points, a plane through another network, a walk of
            other networks, a normalisation that always takes the statistics of the batch.

    Example:
        >>> from planaria.measure.datasets import task
        >>> from torch import nn
        >>> digits = task("digits")
        >>> net = Network.of(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)))
        >>> found = surface(net, digits, points=5)
        >>> len(found.loss), found.loss[2][2] == found.centre_loss
        (5, True)

    Source: Li et al., 2018 (filter-normalised surfaces).

    Not guaranteed: that a plane shows what a space of many dimensions is like; a random one misses the steepest sides.
    """
    return Grid.of(
        net,
        task,
        directions=directions,
        walk=walk,
        span=span,
        points=points,
        inputs=inputs,
        data=data,
        calibration=calibration,
        seed=seed,
    ).run()


@dataclass(frozen=True, eq=False)
class Grid:
    """A surface that has been checked and planned; nothing has been measured yet.

    Attributes:
        plane: Where.
        task: Loss and score.
        data: Inputs and targets.
        split: Which, in words.
        at: Coordinates of the columns, and of the rows.
        walk: Networks to draw.
        calibration: Inputs from which statistics are re-estimated; None to leave them.
    """

    plane: Plane
    task: Task
    data: Data
    split: str
    at: tuple[float, ...]
    walk: tuple[Network, ...]
    calibration: Tensor | None

    @staticmethod
    def of(
        net: Network,
        task: Task,
        *,
        directions: Plane | None,
        walk: Sequence[Network],
        span: float,
        points: int,
        inputs: int,
        data: Data | None,
        calibration: Tensor | None,
        seed: int,
    ) -> Grid:
        """Check and plan; arguments as in `surface`."""
        if not 0 < span < math.inf:
            raise InputError("surface(span)", "a number above 0", span)
        if points < 3 or points % 2 == 0:
            remedy = "The network itself is then the middle one."
            raise InputError("surface(points)", "an odd number of at least 3", points, remedy)
        if inputs < 1:
            raise InputError("surface(inputs)", "a number of at least 1", inputs)
        if directions is not None and directions.centre is not net:
            raise InputError("surface(directions)", "a plane whose centre is the network", "one through another")
        if not isinstance(walk, Sequence):
            remedy = "Those that a walk kept: walk=list(found.networks.values())."
            raise InputError("surface(walk)", "a sequence of networks", type(walk).__name__, remedy)
        given, split = (task.test, "test") if data is None else (data, "given data")
        if inputs < len(given):
            chosen = torch.randperm(len(given), generator=stream(seed, "surface", "inputs"))[:inputs]
            given, split = given.take(chosen.sort().values), f"{inputs:,} of {len(given):,}, drawn from {split}"
        if directions is None:
            directions = Plane.of_walk(net, walk, seed) if walk else Plane.random(net, seed)
        for one in walk:
            _ = one - net  # raises where weights are others
        half = points // 2
        right = [span * step / half for step in range(1, half + 1)]
        at = (*(-u for u in reversed(right)), 0.0, *right)
        if calibration is not None:
            calibration = calibration.to(net.device)
            if not len(calibration):
                raise InputError("surface(calibration)", "one input or more", "none")
        grid = Grid(directions, task, given.to(net.device), split, at, tuple(walk), calibration)
        _ = grid.statistics  # raises where a layer has none of its own
        return grid

    @property
    def net(self) -> Network:
        """The network at the centre."""
        return self.plane.centre

    @property
    def rows(self) -> tuple[int, ...]:
        """Numbers of the rows, each of which can be done by itself, in any order and process."""
        return tuple(range(len(self.at)))

    @cached_property
    def chain(self) -> Chain | str:
        """The network as a chain whose weights are the plane's, or why each point is run whole."""
        if self.calibration is not None:
            return "statistics are re-estimated at every point"
        net = self.net.with_inputs(self.task.train.examples)
        chain = Chain.of(net)
        if isinstance(chain, str):
            return chain
        names = [name for stage in chain.stages for name in (stage.name, stage.bias) if name is not None]
        if any(stage.shift is not None and stage.bias is None for stage in chain.stages):
            return "a bias is no weight of the network"
        elsewhere = [name for name in net.weights if name not in names and self._moves(name)]
        if chain.elsewhere or len(names) != len(set(names)) or elsewhere:
            return "a weight is read in several places"
        if any(stage.folded or not torch.equal(stage.weight, net.weights[stage.name]) for stage in chain.stages):
            return "its products hold normalisations, or weights in another form"
        few = self.data.inputs[:CHUNK]
        with torch.no_grad():
            alike = near(chain(few), net(few))
        return chain if alike else "on these inputs its outputs are not those of the chain of its products"

    def _moves(self, name: str) -> bool:
        return bool(self.plane.first[name].any()) or bool(self.plane.second[name].any())

    @cached_property
    def statistics(self) -> str:
        """What is done about normalisation statistics, in words."""
        if self.calibration is not None:
            return f"normalisation statistics re-estimated at every point from {len(self.calibration):,} inputs"
        frozen = normalises(self.net)
        return "normalisation statistics frozen, those of the centre" if frozen else "no normalisation statistics"

    def estimate(self) -> dict[str, float]:
        """What the grid will take: points, seconds on this machine now (from a few points), multiply-adds."""
        self._scored(0.0, [self.at[0]])  # what is made once
        few, times = [1, 3], []
        for count in few:
            started = clock(self.net.device)
            self._scored(self.at[0], self.at[:count])
            times.append(clock(self.net.device) - started)
        each = max(0.0, (times[1] - times[0]) / 2)
        seconds = len(self.at) * (max(0.0, times[0] - each) + each * len(self.at))
        return {"points": len(self.at) ** 2, "seconds": seconds, "multiply_adds": self._cost(0.0).multiply_adds}

    def _cost(self, seconds: float) -> Cost:
        """Of the grid, without the walk."""
        points, inputs = len(self.at) ** 2, len(self.data)
        again = 0 if self.calibration is None else len(self.calibration)
        each = forward_multiply_adds(self.net, self.data.inputs)
        products = points * (inputs + again) * each
        if isinstance(self.chain, Chain):
            stage, made = self.chain.stages[0], self._begin(self.data.inputs[:1])[0]
            first = stage.weight.numel() * made[0, 0].numel()
            products = inputs * (points * (each - first) + 3 * first * (1 if self._begun else len(self.at)))
        return Cost(
            examples=points * (inputs + again),
            labels=points * inputs,
            forward_passes=points * math.ceil(inputs / FORWARD_BATCH),
            multiply_adds=products,
            seconds=seconds,
        )

    def row(self, number: int) -> Step:
        """Loss and score along one row, as plain values; None where they are not finite."""
        started = clock(self.net.device)
        losses, scores = self._scored(self.at[number], self.at)
        row: Step = finite({"loss": losses, "score": scores, "seconds": clock(self.net.device) - started})
        return row

    def run(self, keep: Keep = done_now) -> Surface:
        """All rows, then the walk.

        Args:
            keep: Remembers steps that are done; by default nothing is remembered.
        """
        rows = [keep(f"row {number}", partial(self.row, number)) for number in self.rows]
        drawn = keep("walk", self._walked)
        stops = tuple(Stop(**{name: _number(value) for name, value in stop.items()}) for stop in drawn["stops"])
        return Surface(
            u=self.at,
            v=self.at,
            loss=tuple(tuple(map(_number, row["loss"])) for row in rows),
            score=tuple(tuple(map(_number, row["score"])) for row in rows),
            centre_loss=_number(drawn["loss"]),
            centre_score=_number(drawn["score"]),
            score_name=self.task.scorer.name,
            examples=len(self.data),
            split=self.split,
            directions=self.plane.chosen,
            lengths=self.plane.lengths,
            shares=self.plane.shares,
            statistics=self.statistics,
            way=f"each point run whole: {self.chain}" if isinstance(self.chain, str) else "first product taken once",
            walk=stops,
            cost=self._cost(sum(row["seconds"] for row in rows)),
        )

    # ------------------------------------------------------------------------------------------------ the steps

    def _walked(self) -> Step:
        """The centre's own loss and score, and each network of the walk with the point below it."""
        loss, score = self._whole(self.net)
        stops = []
        for one in self.walk:
            u, v, off = self.plane.project(one)
            far = float(norm(one - self.net))
            (own_loss, own_score), (below_loss, below_score) = self._whole(one), self._whole(self._at(u, v))
            stops.append(Stop(u, v, off, far, own_loss, own_score, below_loss, below_score))
        row: Step = finite({"loss": loss, "score": score, "stops": [asdict(stop) for stop in stops]})
        return row

    @without_tf32()
    def _scored(self, v: float, columns: Sequence[float]) -> tuple[list[float], list[float]]:
        """Losses and scores at some points of a row."""
        if isinstance(self.chain, str):
            found = [self._whole(self._at(u, v)) for u in columns]
        else:
            with torch.no_grad(), fast_products(self.net.device):
                found = [
                    self._whole(self.net) if u == 0 and v == 0 else self._judged(outputs)
                    for u, outputs in self._by_chain(self.chain, v, columns)
                ]
        return [loss for loss, _ in found], [score for _, score in found]

    def _at(self, u: float, v: float) -> Network:
        net = self.plane.at(u, v)
        return net if self.calibration is None else renormalised(net, self.calibration)

    def _whole(self, net: Network) -> tuple[float, float]:
        """Loss and score of a network."""
        with torch.no_grad():
            each = net(self.data.inputs[:1]).nbytes
        if each * len(self.data) <= KEPT:
            return self._judged(self.task.outputs(net, self.data))
        total, count = 0.0, 0
        for start in range(0, len(self.data), FORWARD_BATCH // 10):
            some = self.data.take(slice(start, start + FORWARD_BATCH // 10))
            number = _counted(some.targets)
            total += number * float(self.task.loss(self.task.outputs(net, some), some.targets))
            count += number
        return total / count, self.task.score(net, self.data)

    def _judged(self, outputs: Tensor) -> tuple[float, float]:
        with torch.no_grad():
            loss = float(self.task.loss(outputs, self.data.targets))
            return loss, float(self.task.scorer.function(outputs, self.data.targets))

    @cached_property
    def _begun(self) -> list[tuple[Tensor, Tensor, Tensor]] | None:
        """First products of all inputs, some at a time; None where they are too many to keep."""
        few = self._begin(self.data.inputs[:1])
        if 3 * few[0].nbytes * len(self.data) > HELD:
            return None
        return [self._begin(some) for some in self.data.inputs.split(CHUNK)]

    def _begin(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First product at the centre, and along each direction."""
        assert isinstance(self.chain, Chain)
        stage, x = self.chain.stages[0], self.chain.begin(inputs)
        along = (
            stage.product(x, way[stage.name], None if stage.bias is None else way[stage.bias].reshape(-1))
            for way in (self.plane.first, self.plane.second)
        )
        return (stage.pre(x), *along)  # type: ignore[return-value]

    def _by_chain(self, chain: Chain, v: float, columns: Sequence[float]) -> Iterator[tuple[float, Tensor]]:
        """Outputs at some points of a row, as many at once as fit."""
        size = max(1, HELD // (chain(self.data.inputs[:1]).nbytes * len(self.data)))
        for start in range(0, len(columns), size):
            some = columns[start : start + size]
            yield from zip(some, self._outputs(chain, v, some), strict=True)

    def _outputs(self, chain: Chain, v: float, columns: Sequence[float]) -> list[Tensor]:
        """Outputs at some points of a row; examples by the chunk, all points for each."""
        later = [[self._product(stage, u, v) for stage in chain.stages[1:]] for u in columns]
        parts: list[list[Tensor]] = [[] for _ in columns]
        for middle, along_u, along_v in self._begun or map(self._begin, self.data.inputs.split(CHUNK)):
            row = torch.add(middle, along_v, alpha=v)
            room = torch.empty_like(row)  # for all points: it stays in cache
            for u, products, found in zip(columns, later, parts, strict=True):
                z = torch.add(row, along_u, alpha=u, out=room if products else None)
                z = _steps(chain.stages[0], z)
                for stage, (weight, shift) in zip(chain.stages[1:], products, strict=True):
                    z = _steps(stage, stage.product(z, weight, shift))
                found.append(z)
        return [torch.cat(found) for found in parts]

    def _product(self, stage: Stage, u: float, v: float) -> tuple[Tensor, Tensor | None]:
        """Weight and shift of a product at a point."""
        shift = None if stage.bias is None else self.plane.entry(stage.bias, u, v).reshape(-1)
        return self.plane.entry(stage.name, u, v), shift


def _steps(stage: Stage, z: Tensor) -> Tensor:
    """What comes behind a product; may write into it."""
    return z.relu_() if stage.rectifies else stage.post(z)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _counted(targets: Tensor) -> int:
    """Numbers that a mean loss is a mean over."""
    return len(targets) if targets.is_floating_point() else int((targets != IGNORED).sum())
