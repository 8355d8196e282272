"""Regrowing: units are replaced by embryonic ones, to which the network does not listen yet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from planaria.core.anatomy import Anatomy, Group, Slices, Unit
from planaria.core.devices import clock
from planaria.core.errors import InputError
from planaria.core.follow import ROLES
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost, Moment
from planaria.core.network import Network
from planaria.core.trees import Entries, Weights, either, remove
from planaria.damage.sites import PART, sizes
from planaria.measure.task import Task
from planaria.repair.incoming import Drawn, Incoming
from planaria.repair.retrain import Retrain


def embryonic(net: Network, units: Iterable[Unit], rng: Generator) -> Network:
    """Replace the given units by fresh ones that the network does not listen to yet.

    Incoming weights are drawn anew, uniform in +-1/sqrt(fan-in); scale 1, shift 0, weights into other units 0. A unit
    without outgoing entries of its own starts with scale 0 (or incoming 0). All these entries get plasticity 1. Where
    the given units are dead, the function is unchanged; living ones fall silent.

    Entries that are pinned for another reason stay as they are: those between a given unit and a dead one that is not
    given, and those of a living unit that were pinned one by one.

    Args:
        net: The network.
        units: Dead or living units.
        rng: Draws the incoming weights.

    Raises:
        AnatomyError: On a unit that does not exist.

    Example:
        >>> from torch import nn
        >>> from planaria.core.streams import stream
        >>> net = Network.of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(1, 2))
        >>> embryonic(net, [Unit("0", 1)], stream(0, "x")).weights["2.weight"][0, 1]
        tensor(0.)
    """
    anatomy = Anatomy.of(net)
    given = set(units)
    held = _held(net, given)
    weights = dict(net.weights)
    new: Entries = {}
    zero: Entries = {}
    drawn: Entries = {}
    for group in anatomy.groups:
        mine = [unit for unit in given if unit.layer == group.layer]
        if not mine:
            continue
        slices = _owned(net, mine)
        new, drawn = either(new, slices.all), either(drawn, slices.incoming)
        read = bool(group.owners["outgoing"])
        for name in sorted(slices.incoming):
            hit = slices.incoming[name]
            fresh = _drawn(weights[name], rng) if read or slices.scale else torch.zeros_like(weights[name])
            weights[name] = torch.where(hit, fresh, weights[name])
        for name, hit in slices.scale.items():
            weights[name] = weights[name].masked_fill(hit, 1.0 if read else 0.0)
        for name, hit in slices.shift.items():
            weights[name] = weights[name].masked_fill(hit, 0.0)
        zero = either(zero, slices.outgoing)
    if not new:
        return net
    # The edge between two new units is drawn: nothing listens to the second one, and without it neither could learn.
    for name, hit in zero.items():
        silent = hit & ~drawn[name] if name in drawn else hit
        weights[name] = weights[name].masked_fill(silent, 0.0)
    for name, hit in held.items():
        weights[name] = torch.where(hit, net.weights[name], weights[name])
    plastic = {name: net.plasticity[name].masked_fill(hit, 1.0) for name, hit in remove(new, held).items()}
    return net.with_weights(weights).with_plasticity(plastic)


def _owned(net: Network, units: Iterable[Unit]) -> Slices:
    """Entries of the units, on the network's device."""
    found = Anatomy.of(net).entries(units)
    roles = {role: {name: hit.to(net.device) for name, hit in getattr(found, role).items()} for role in ROLES}
    return Slices(**roles, unshifted=found.unshifted)


def _held(net: Network, given: set[Unit]) -> Entries:
    """Pinned entries that stay so although a given unit owns them."""
    dead = set(dead_units(net))
    revived, gone = _owned(net, given & dead).all, _owned(net, dead - given).all
    held: Entries = {}
    for name in _owned(net, given).all:
        pinned = net.plasticity[name] == 0
        free = revived.get(name, torch.zeros_like(pinned)) & ~gone.get(name, torch.zeros_like(pinned))
        if bool((pinned & ~free).any()):
            held[name] = pinned & ~free
    return held


def dead_units(net: Network) -> tuple[Unit, ...]:
    """Units that are dead, in the order of execution."""
    anatomy = Anatomy.of(net)
    dead = anatomy.dead(net)
    return tuple(unit for unit in anatomy.units() if bool(dead[unit.layer][unit.index]))


def _drawn(weight: Tensor, rng: Generator) -> Tensor:
    """Initial values as torch's own linear and convolution layers draw them; zeros for vectors (idle biases)."""
    if weight.ndim < 2:
        return torch.zeros_like(weight)
    bound = 1.0 / math.sqrt(weight[0].numel())
    return ((torch.rand(weight.shape, generator=rng) * 2 - 1) * bound).to(weight)


@dataclass(frozen=True)
class Regrow:
    """Replace every dead unit by an embryonic one, and make it more plastic than the rest.

    See `embryonic` for what a new unit is; the function is unchanged. Entries of new units get plasticity 1, those of
    old units are multiplied by `others`; entries that are pinned elsewhere stay pinned.

    Args:
        others: Plasticity of old units relative to new ones, at least 0. 0.1 is the paper's text (new units are more
            plastic than the rest), 0 its figure caption (only new units are trained).
        incoming: Choice of the incoming weights: `Drawn()` is the paper's, `GradMax(task)` goes by gradients.

    Raises:
        InputError: If `others` is negative or not finite, or `incoming` cannot choose.

    Example:
        >>> Regrow(others=0)
        Regrow(others=0, incoming=Drawn())

    Source: strategy 2 of the rescue paper (embryonic node replacement).

    Not guaranteed: that it makes sense for hardware whose units stay broken. A unit that starts with incoming 0 behind
    a ReLU has gradient 0 and can never learn; such units (of layers that are called twice, for example) stay silent.
    """

    others: float = 0.1
    incoming: Incoming = field(default=Drawn())

    def __post_init__(self) -> None:
        if not (isinstance(self.others, (int, float)) and 0 <= self.others < math.inf):
            raise InputError("Regrow.others", "a finite number of at least 0", self.others)
        if not hasattr(self.incoming, "choose"):
            raise InputError("Regrow.incoming", "Drawn() or GradMax(task)", repr(self.incoming)[:100])

    def __call__(self, net: Network, rng: Generator, /) -> Network:
        """Network with the dead units replaced; the network itself if none is dead."""
        return self.moment(net, rng).network

    def moment(self, net: Network, rng: Generator, /) -> Moment:
        """The same, with the cost of choosing."""
        start = clock(net.device)
        units = dead_units(net)
        if not units:
            return Moment(net)
        chosen = self.incoming.choose(embryonic(net, units, rng), units, rng)
        new = _owned(net, units).all
        grown = chosen.network.with_plasticity(_slowed(chosen.network.plasticity, new, self.others))
        return Moment(grown, chosen.cost + Cost(seconds=clock(net.device) - start))


def _slowed(plasticity: Weights, new: Entries, others: float) -> Weights:
    """Plasticity times `others`, except where new."""
    return {
        name: torch.where(new[name], old, old * others) if name in new else old * others
        for name, old in plasticity.items()
    }


@dataclass(frozen=True)
class Ripen:
    """Regrow, then retrain while the advantage of the new units fades.

    The surgery is the Regrow's. At update t (from 0) entries of old units have plasticity

        p (1 - (1 - others) max(0, 1 - t / over))

    with p their plasticity before the surgery: new units start 1 / others times as plastic as old ones (others = 0:
    only they are trained), and are ordinary after `over` updates. Pinned entries stay pinned. The networks it yields
    carry p, and 1 for new units. If no unit is dead, it is plain retraining.

    Args:
        regrow: The surgery; its `others` is where the old units start.
        retrain: The training.
        over: Updates until all units are equally plastic, at least 1.

    Returns (when called with a network and a stream):
        Endless iterator: the surgery's result, then one moment per update.

    Raises:
        InputError: If `over` is not a positive whole number.

    Source: strategy 2 of the rescue paper, with the decay of the plasticity ratio to 1.

    Example:
        >>> from planaria.measure.datasets import task
        >>> Ripen(Regrow(others=0), Retrain(task("digits")), over=100).over
        100
    """

    regrow: Regrow
    retrain: Retrain
    over: int

    def __post_init__(self) -> None:
        if not (isinstance(self.over, int) and self.over >= 1):
            raise InputError("Ripen.over", "a number of updates of at least 1", repr(self.over))

    def __call__(self, net: Network, rng: Generator, /) -> Iterator[Moment]:
        """Moments of surgery and training."""
        units = dead_units(net)
        new = _owned(net, units).all
        first = replace(self.regrow, others=1.0).moment(net, rng)
        yield first
        ripe = first.network.plasticity
        old = {
            name: plasticity.masked_fill(new[name], 0.0) if name in new else plasticity
            for name, plasticity in ripe.items()
        }

        def plasticity_at(update: int) -> Weights:
            lost = (1.0 - self.regrow.others) * max(0.0, 1.0 - update / self.over)
            return {name: torch.sub(ripe[name], old[name], alpha=lost) for name in ripe} if units and lost else ripe

        for moment in self.retrain.under(first.network, rng, plasticity_at):
            yield moment.at(first.cost + moment.cost)


@dataclass(frozen=True)
class Recycle:
    """Replace the least useful living units of every layer by embryonic ones.

    Use of a unit: mean |activation| over unlabelled inputs, times the norm of its outgoing weights (`sizes` of
    damage/sites.py). Of a layer of n units, share * n are replaced; what that has beyond a whole number is drawn. Dead
    units stay dead. Left alone are also units that are read through pinned weights, and those without outgoing entries
    of their own, which could not learn from zero.

    Args:
        task: Its training inputs are looked at, without labels.
        share: Share of each layer's units, from 0 to 1.
        examples: Unlabelled inputs that are looked at, at least 1.

    Raises:
        InputError: On a share outside 0 to 1, or examples that are not a positive whole number.

    Source: Dohare et al., 2024 (Loss of plasticity in deep continual learning), with a norm for the sum of absolute
        outgoing weights. Its age limit is here the time between two recyclings: nobody hears a new unit, so that it is
        the next to go unless it has had time, say settle(Retrain(task), updates(100)).

    Example:
        >>> from planaria.measure.datasets import task
        >>> Recycle(task("digits"), share=0.02)
        Recycle(task=task('digits'), share=0.02, examples=256)

    Not guaranteed: that the function stays: what the replaced units said is lost.
    """

    task: Task
    share: float = 0.01
    examples: int = 256

    def __post_init__(self) -> None:
        if not (isinstance(self.share, (int, float)) and 0 <= self.share <= 1):
            raise InputError("Recycle.share", "a number from 0 to 1", repr(self.share))
        if not (isinstance(self.examples, int) and self.examples >= 1):
            raise InputError("Recycle.examples", "a whole number of at least 1", repr(self.examples))

    def __call__(self, net: Network, rng: Generator, /) -> Network:
        """Network with units replaced."""
        return self.moment(net, rng).network

    def moment(self, net: Network, rng: Generator, /) -> Moment:
        """The same, with the cost of looking."""
        start = clock(net.device)
        groups = [group for group in Anatomy.of(net).select() if group.owners["outgoing"]]
        if not groups:
            return Moment(net)
        count = min(self.examples, len(self.task.train))
        rows = torch.randperm(len(self.task.train), generator=rng)[:count]
        inputs = self.task.train.inputs[rows.to(self.task.train.inputs.device)].to(net.device)
        use = sizes(net, layers=[group.layer for group in groups], inputs=inputs)
        least: list[Unit] = []
        for group in groups:
            wanted = self.share * group.count + float(torch.rand((), generator=rng))
            order = use[group.layer].argsort(stable=True).tolist()
            able = _replaceable(net, group)
            least += [Unit(group.layer, index) for index in order if able[index]][: int(wanted)]
        renewed = embryonic(net, least, rng)
        cost = Cost(
            examples=count,
            forward_passes=-(-count // PART),
            multiply_adds=count * forward_multiply_adds(net, inputs),
            seconds=clock(net.device) - start,
        )
        return Moment(renewed, cost)


def _replaceable(net: Network, group: Group) -> list[bool]:
    """Which units are alive and have no outgoing entry that is pinned at anything but 0."""
    able = torch.cat([~Anatomy.of(net).dead(net)[group.layer], torch.ones(1, dtype=torch.bool)])
    for name, owner in group.owners["outgoing"].items():
        able[owner[((net.plasticity[name] == 0) & (net.weights[name] != 0)).cpu()]] = False
    return able[:-1].tolist()
