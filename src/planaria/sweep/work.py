"""Work: what a sweep has to do, and how it does it on one block of inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from planaria.core.anatomy import Anatomy, Unit
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.measure.task import FORWARD_BATCH
from planaria.sweep.certify import Certifier
from planaria.sweep.chain import Chain
from planaria.sweep.curve import curvable, curves
from planaria.sweep.delta import delta_units
from planaria.sweep.edges import Becomes, Flipped, mappable, weight_map
from planaria.sweep.fuse import fuse
from planaria.sweep.plan import (
    BRUTE,
    CERTIFY,
    DELTA,
    EDGES,
    EDIT_NEXT,
    IN_CHAIN,
    JUDGING,
    NESTED,
    REPLAY,
    Plan,
    Way,
    way_of_units,
)
from planaria.sweep.program import Program
from planaria.sweep.replay import (
    Lesion,
    Selection,
    base_of,
    chunk_size,
    chunks,
    edited,
    edited_lesions,
    replayed_lesions,
    replayed_units,
    resumed,
)
from planaria.sweep.tally import Judge, Tally

Lesions = Iterable[Network | Unit | Iterable[Unit]]


@dataclass(frozen=True)
class EachUnit:
    """Every unit of some layers, silenced one at a time.

    Args:
        kinds: Kinds of unit; by default all but branches.
        layers: Layer names; by default all.
    """

    kinds: tuple[str, ...] | None = None
    layers: tuple[str, ...] | None = None


DELETED = Becomes(0.0)


@dataclass(frozen=True)
class EachWeight:
    """Every single weight of some layers, changed one at a time.

    Args:
        new: What a weight becomes: `Becomes(0.0)` deletes it, `Becomes(v)` is stuck, `Flipped(bit)` a bit flip.
        layers: Names of layers or weights; by default every weight that is multiplied with an input.
    """

    new: Becomes | Flipped = DELETED
    layers: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Nested:
    """Units silenced in given orders, and the score wanted after some numbers of them.

    Args:
        orders: Each a sequence of units, none twice.
        counts: Ascending numbers of silenced units.

    Raises:
        InputError: No orders, a unit twice, or counts that do not ascend or go beyond an order.
    """

    orders: tuple[tuple[Unit, ...], ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.orders or not self.counts:
            raise InputError("Nested", "at least one order and one count", "none")
        for order in self.orders:
            if len(set(order)) < len(order):
                raise InputError("Nested.orders", "every unit once in an order", "one twice")
        shortest = min(len(order) for order in self.orders)
        if list(self.counts) != sorted(set(self.counts)) or self.counts[0] < 0 or self.counts[-1] > shortest:
            raise InputError("Nested.counts", f"ascending numbers from 0 to {shortest}", self.counts)


What = EachUnit | EachWeight | Nested | Lesions


@dataclass(frozen=True, eq=False)
class Job:
    """Lesions by key and place.

    Attributes:
        shapes: Key -> shape of its array of lesions.
        units: Key -> units, where a key is a layer whose units are silenced one at a time.
        weights: Key -> new values, where a key is a weight whose entries change one at a time.
        nested: Orders and counts, for the key "orders".
        lesions: For the key "lesions".
    """

    shapes: Mapping[str, tuple[int, ...]]
    units: Mapping[str, Selection] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    new: Becomes | Flipped | None = None
    nested: Nested | None = None
    lesions: tuple[Lesion, ...] = ()

    @staticmethod
    def of(what: What, net: Network) -> Job:
        """Lesions that are asked for, checked against the network.

        Raises:
            AnatomyError: An unknown layer, kind or unit.
            InputError: No lesions, a layer without weights, a network of another shape.
        """
        if isinstance(what, EachUnit):
            groups = Anatomy.of(net).select(what.kinds, what.layers)
            units = {group.layer: Selection(group.layer, tuple(range(group.count))) for group in groups}
            return Job({layer: (len(one.units),) for layer, one in units.items()}, units=units)
        if isinstance(what, EachWeight):
            names = _weights(what.layers, net)
            new = {name: what.new.of(net.weights[name]) for name in names}
            return Job({name: tuple(net.weights[name].shape) for name in names}, weights=new, new=what.new)
        if isinstance(what, Nested):
            Anatomy.of(net).entries({unit for order in what.orders for unit in order})  # raises on unknown ones
            return Job({"orders": (len(what.orders), len(what.counts))}, nested=what)
        lesions = tuple(_lesion(lesion, net, place) for place, lesion in enumerate(what))
        if not lesions:
            raise InputError("ablate(what)", "at least one lesion", "none")
        return Job({"lesions": (len(lesions),)}, lesions=lesions)

    def lesion(self, key: str, place: int, net: Network) -> Lesion:
        """One lesion, by its place in the flattened array of its key."""
        if key in self.units:
            return Lesion({key: (self.units[key].units[place],)}, {})
        if key in self.weights:
            hurt = net.weights[key].clone()
            hurt.view(-1)[place] = self.weights[key].reshape(-1)[place]
            return Lesion({}, {key: hurt})
        if self.nested is not None:
            order, count = divmod(place, len(self.nested.counts))
            return Lesion.of(self.nested.orders[order][: self.nested.counts[count]], net)
        return self.lesions[place]

    def only(self, keys: Iterable[str]) -> Job:
        """The lesions of some keys."""
        keys = set(keys)
        return replace(
            self,
            shapes={key: shape for key, shape in self.shapes.items() if key in keys},
            units={key: units for key, units in self.units.items() if key in keys},
            weights={key: new for key, new in self.weights.items() if key in keys},
        )

    @property
    def count(self) -> int:
        """Number of lesions."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def _weights(layers: tuple[str, ...] | None, net: Network) -> list[str]:
    known = list(Anatomy.of(net).matrices)
    if layers is None:
        if not known:
            raise InputError("EachWeight", "a network with weights that inputs are multiplied with", "none")
        return known
    found: list[str] = []
    for layer in layers:
        names = [name for name in net.weights if name == layer or name.rpartition(".")[0] == layer]
        if not names:
            raise InputError("EachWeight.layers", f"names among {', '.join(net.weights)}", repr(layer))
        matrices = [name for name in names if name in known]
        found += names if layer in names else matrices or names
    return list(dict.fromkeys(found))


def _lesion(lesion: Network | Unit | Iterable[Unit], net: Network, place: int) -> Lesion:
    if isinstance(lesion, Network):
        if lesion.weights.keys() != net.weights.keys():
            raise InputError(f"ablate(lesion {place})", "a damaged version of the network", "another network")
        if any(not torch.equal(tensor, net.buffers[name]) for name, tensor in lesion.buffers.items()):
            raise InputError(
                f"ablate(lesion {place})", "the intact network's buffers", "others", "Damage weights, not statistics."
            )
        return Lesion.of(lesion, net)
    made = Lesion.of(lesion, net)
    Anatomy.of(net).entries(Unit(layer, unit) for layer, units in made.units.items() for unit in units)
    return made


@dataclass(frozen=True, eq=False)
class _OfKey(Sequence[Lesion]):
    """The lesions of one key of a job, made when they are looked at."""

    job: Job
    key: str
    net: Network

    def __len__(self) -> int:
        return math.prod(self.job.shapes[self.key])

    def __getitem__(self, place: Any) -> Any:
        return self.job.lesion(self.key, place, self.net)


@dataclass(frozen=True, eq=False)
class Work:
    """A job with everything that doing it needs; works on one block of inputs at a time.

    Attributes:
        net: The intact network.
        job: Lesions.
        program: Its recorded pass, or why there is none.
        chain: It as a chain, or why it is none.
        judge: How outputs are scored.
        plan: Which way for which key.
    """

    net: Network
    job: Job
    program: Program | str
    chain: Chain | str
    judge: Judge
    plan: Plan
    _certifiers: dict[tuple[str, ...], Certifier] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(net: Network, job: Job, judge: Judge, *, bitwise: bool = False) -> Work:
        """Work with the cheapest way for each key.

        Args:
            net: The network, with example inputs.
            job: Its lesions.
            judge: How outputs are scored.
            bitwise: Whether only bit-identical ways may be taken.

        Raises:
            InputError: A network that answers the same inputs differently each time.
        """
        program, chain = _recorded(net)
        ways = []
        for key, shape in job.shapes.items():
            if key in job.units:
                ways.append(way_of_units(job.units[key], net, program, chain, judge, bitwise))
            else:
                ways.append(_way(job, key, math.prod(shape), net, program, chain, judge, bitwise))
        if isinstance(program, Program) and not bitwise:
            program = fuse(program)
        size = FORWARD_BATCH if isinstance(program, str) else chunk_size(program, net.device)
        return Work(net, job, program, chain, judge, Plan(tuple(ways), "torch default", size))

    @property
    def bytes(self) -> int:
        """Bytes of activations per example that a block holds at once."""
        chained = any(way.way in IN_CHAIN for way in self.plan.ways)
        return sum(self.program.bytes.values()) if chained and isinstance(self.program, Program) else 0

    def only(self, keys: Iterable[str]) -> Work:
        """The same work on some keys."""
        keys = set(keys)
        ways = tuple(way for way in self.plan.ways if way.key in keys)
        return replace(self, job=self.job.only(keys), plan=replace(self.plan, ways=ways))

    def safely(self, keys: Iterable[str]) -> Work:
        """The same work with some keys done by bit-identical replay, or by brute force what was replayed."""
        keys, ways = set(keys), []
        for way in self.plan.ways:
            if way.key in keys:
                simple = BRUTE if way.way == REPLAY or isinstance(self.program, str) else REPLAY
                way = replace(way, way=simple, because=f"{way.way} disagreed with brute force")
            ways.append(way)
        return replace(self, plan=replace(self.plan, ways=tuple(ways)))

    def tally(self, inputs: Tensor, targets: Tensor) -> tuple[dict[str, Tally], Tensor]:
        """Changes by every lesion of the job on a block, and the intact scores [examples].

        Args:
            inputs: [examples, ...].
            targets: [examples, ...].
        """
        found: dict[str, Tally] = {}
        intact: Tensor | None = None
        by_way = {way: [one.key for one in self.plan.ways if one.way == way] for way in _ways(self.plan)}
        if CERTIFY in by_way:
            keys = tuple(by_way.pop(CERTIFY))
            certifier = self._certifiers.get(keys)
            if certifier is None:
                assert isinstance(self.chain, Chain)
                certifier = self._certifiers[keys] = Certifier.of(self.chain, keys)
            tallies, intact = certifier(inputs, targets, self.judge)
            found |= tallies
        if intact is None:
            parts = chunks(inputs, targets, FORWARD_BATCH)
            intact = torch.cat([self.judge.values(self.net(x), t) for x, t in parts])
        for way, keys_of_way in by_way.items():
            found |= self._by(way, keys_of_way, inputs, targets, intact)
        return {key: found[key] for key in self.job.shapes}, intact

    def _by(self, way: str, keys: list[str], inputs: Tensor, targets: Tensor, intact: Tensor) -> dict[str, Tally]:
        """Tallies of some keys, all by one way."""
        job, judge = self.job, self.judge
        if way in IN_CHAIN:
            assert isinstance(self.chain, Chain)
            if way == DELTA:
                return delta_units(self.chain, keys, inputs, targets, judge)
            if way == EDGES:
                assert job.new is not None
                return weight_map(self.chain, keys, job.new, inputs, targets, judge)
            assert job.nested is not None
            return {keys[0]: curves(self.chain, job.nested.orders, job.nested.counts, inputs, targets, judge)}
        if way in {REPLAY, EDIT_NEXT}:
            assert isinstance(self.program, Program)
            units = [job.units[key] for key in keys if key in job.units]
            edit_next = way == EDIT_NEXT
            found = replayed_units(self.program, units, inputs, targets, judge, edit_next=edit_next) if units else {}
            for key in keys:
                if key not in job.units:
                    tally = replayed_lesions(self.program, _OfKey(job, key, self.net), inputs, targets, judge)
                    found[key] = tally.shaped(job.shapes[key])
            return found
        return {
            key: edited_lesions(self.net, _OfKey(job, key, self.net), inputs, targets, judge, intact).shaped(
                job.shapes[key]
            )
            for key in keys
        }

    def outputs(self, inputs: Tensor) -> Iterator[tuple[str, int, Tensor]]:
        """Outputs under every lesion, as (key, place, [examples, ...]), run again or by brute force."""
        for way in self.plan.ways:
            lesions = _OfKey(self.job, way.key, self.net)
            if isinstance(self.program, str) or way.way == BRUTE:
                for place in range(len(lesions)):
                    yield way.key, place, edited(self.net, lesions[place])(inputs)
                continue
            base = self.program.run(inputs, keep=base_of(self.program, lesions))
            for place in range(len(lesions)):
                yield way.key, place, resumed(self.program, base, lesions[place])


def _ways(plan: Plan) -> list[str]:
    return list(dict.fromkeys(way.way for way in plan.ways))


def _alone(net: Network, outputs: Tensor) -> bool:
    """Whether the first of the example inputs gets the same outputs without the others."""
    assert net.inputs is not None
    try:
        alone = net(net.inputs[:1])
    except (RuntimeError, ValueError):  # batch normalisation without statistics refuses single examples
        return False
    scale = float(outputs.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return torch.allclose(alone, outputs[:1], rtol=1e-3, atol=1e-4 * scale, equal_nan=True)


_RECORDED: WeakKeyDictionary[Network, tuple[Program | str, Chain | str]] = WeakKeyDictionary()


def _recorded(net: Network) -> tuple[Program | str, Chain | str]:
    """The network's program and chain, or why there are none; kept for as long as the network is."""
    assert net.inputs is not None
    if net in _RECORDED:
        return _RECORDED[net]
    # Several rows, because chance may do the same to two.
    rows = net.inputs[torch.arange(32, device=net.inputs.device) % len(net.inputs)]
    one, other = net(rows), net(rows)
    if not isinstance(one, Tensor):
        raise InputError(
            "network", "one tensor of outputs", type(one).__name__, "Wrap it so that it returns only that."
        )
    if not torch.equal(one.nan_to_num(), other.nan_to_num()):
        raise InputError(
            "network",
            "the same outputs for the same inputs",
            "others the second time",
            "Turn off what draws random numbers in eval mode (a functional dropout with training=True, noise).",
        )
    if not _alone(net, one):
        reason = "an example's outputs depend on the others of its batch"
        return reason, reason
    _RECORDED[net] = Program.of(net), Chain.of(net)
    return _RECORDED[net]


def _way(
    job: Job,
    key: str,
    count: int,
    net: Network,
    program: Program | str,
    chain: Chain | str,
    judge: Judge,
    bitwise: bool,
) -> Way:
    """The cheapest way for weights, nested orders and given lesions."""
    if isinstance(program, str):
        return Way(key, count, BRUTE, float(count), program)
    lesions = _OfKey(job, key, net)
    if not all(lesions[place].replayable(program) for place in (range(len(lesions)) if job.new is None else ())):
        return Way(key, count, BRUTE, float(count), "an activation lies along several axes")
    reason = "bit-identical ways only"
    if not bitwise and job.new is not None:
        reason = "the score depends on more than the prediction"
        if judge.counts_predictions:
            reason = chain if isinstance(chain, str) else mappable(chain, key) or _laid_out(chain, key, net)
        if not reason:
            return Way(key, count, EDGES, 1.0 + 1e-5 * count)
    if not bitwise and job.nested is not None:
        layers = dict.fromkeys(unit.layer for order in job.nested.orders for unit in order)
        reason = chain if isinstance(chain, str) else curvable(chain, list(layers))
        if not reason:
            return Way(key, count, NESTED, 0.05 * count)
    if job.lesions:
        reason = ""
    tried = range(count) if job.new is None else range(min(1, count))
    work = [program.remaining(_touched(program, lesions[place])) for place in tried]
    price = count * (sum(work) / max(1, len(work)) + JUDGING) / max(1, program.work)
    return Way(key, count, REPLAY, price, reason)


def _laid_out(chain: Chain, name: str, net: Network) -> str:
    """Why a chain's weight does not lie as the network's does; "" if it does."""
    stage = next(stage for stage in chain.stages if name in {stage.name, stage.bias})
    same = name == stage.bias or stage.weight.data_ptr() == net.weights[name].data_ptr()
    return "" if same else "the network holds it transposed, or as a part of another weight"


def _touched(program: Program, lesion: Lesion) -> frozenset[int]:
    if lesion.units:
        return program.first(lesion.units)
    return frozenset(program.weights[name] for name in lesion.weights if name in program.weights)
