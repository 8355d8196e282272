"""Refit: instant rescue in closed form, without labels or gradients.

Where units have died, whatever read them is refitted so that it gives, from the units that are left, the best linear
prediction of what it gave before. For a reader z = W h + b with dead inputs D and living inputs S (S contains the
constant 1 if the reader has a bias), and second moments G = E[h h^T]:

    W_S <- W_S + W_D G[D,S] (G[S,S] + lambda I)^-1,    lambda = ridge * mean diagonal of G[S,S]

In general, with E the intact weights minus those that are there now, W_S <- W_S + E G[:,S] (G[S,S] + lambda I)^-1: a
network that has been refitted before is hardly moved again. Where single connections are pinned, S is another set for
every output. The moments come from a sidecar that was stored while the network was intact, or from unlabelled inputs,
layer by layer, with the intact network as the teacher.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds, run
from planaria.core.motion import Cost, Moment
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.repair.readers import Reader, readers, rows_of, spread, watch
from planaria.repair.ridge import solve
from planaria.repair.sidecar import Sidecar, agree, checked_importance, moment_of, wide


@dataclass(frozen=True, eq=False, repr=False)
class Teacher:
    """The intact network with unlabelled inputs: the source of a sequential refit.

    Args:
        net: The intact network.
        inputs: Unlabelled inputs [examples, ...]; `dream` makes some where there are none. All are run at once:
            memory holds every product's outputs.
        importance: Weight of each input [examples], at least 0; by default all the same.
    """

    net: Network
    inputs: Tensor
    importance: Tensor | None = None

    def __repr__(self) -> str:
        return f"<Teacher: {len(self.inputs)} unlabelled inputs>"


@dataclass(frozen=True)
class Refit:
    """Closed-form refit of everything that reads from dead units; see the module's text for the formula.

    Args:
        source: A Sidecar (no data at repair time; only readers of units change), or a Teacher (sequential: every
            product behind the damage, input from the repaired network, target from the intact one).
        ridge: lambda relative to the mean diagonal of the moments, above 0. By default 1e-4, and where there are fewer
            than 20 rows per feature, the value of least generalised cross-validation error.

    Returns (when called with a network and a stream):
        Iterator of one moment.

    Raises:
        InputError: If the ridge is not positive, or the source's weights have other names or shapes. (`Sidecar.check`
            tells networks of the same shape apart; a network that is trained on is no longer the sidecar's own.)

    Source: our own; its form is that of least-squares channel pruning (He et al., 2017) and GPTQ (Frantar et al.,
        2023). See docs/equations.md.

    Not guaranteed: an improvement when hardly any units are left, since then the linear span is gone.
    """

    source: Sidecar | Teacher
    ridge: float | None = None

    def __post_init__(self) -> None:
        if self.ridge is not None and not 0 < self.ridge < math.inf:
            raise InputError("Refit.ridge", "a finite number above 0", self.ridge)

    def __call__(self, net: Network, rng: Generator, /) -> Iterator[Moment]:
        """One moment: the refitted network."""
        del rng
        start = time.process_time()
        if isinstance(self.source, Sidecar):
            moved, cost = _from_sidecar(net, self.source, self.ridge)
        else:
            moved, cost = _from_teacher(net, self.source, self.ridge)
        yield Moment(moved, cost + Cost(seconds=time.process_time() - start))


@dataclass(frozen=True, eq=False)
class Refitted:
    """What `refit` has done.

    Attributes:
        network: The repaired network; the units of the lesion are silent and pinned.
        refitted: Names of the weights that were changed.
        unrepaired: Layer with dead units -> why nothing makes up for them.
        cost: Of the refit.
    """

    network: Network
    refitted: tuple[str, ...]
    unrepaired: Mapping[str, str] = field(default_factory=dict)
    cost: Cost = field(default=Cost())


def refit(net: Network, lesion: Iterable[Unit], source: Sidecar | Teacher, *, ridge: float | None = None) -> Refitted:
    """Repair a network whose units have died, in one call.

    Args:
        net: The network as it can still be read; weights of the dead units may be lost, and it may have been refitted
            before, but not trained (the flow `Refit` takes those too).
        lesion: The dead units.
        source: A Sidecar of the intact network, or a Teacher.
        ridge: As in `Refit`.

    Returns:
        The repaired network, what was changed, and what could not be repaired.

    Raises:
        AnatomyError: If a unit of the lesion does not exist.
        InputError: If the sidecar belongs to another network, the teacher to one of another form, or weights are lost
            that the sidecar does not hold.

    Example:
        >>> from torch import nn
        >>> from planaria.core.streams import stream
        >>> inputs = torch.randn(64, 2, generator=stream(0, "inputs"))
        >>> net = Network.of(nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 1)), inputs)
        >>> refit(net, [Unit("0", 4)], Sidecar.of(net, inputs)).refitted
        ('2.weight', '2.bias')
    """
    units = tuple(lesion)
    anatomy = Anatomy.of(net)
    slices = anatomy.entries(units)
    if isinstance(source, Sidecar):
        source.check(net, slices.all, refitted=True)
        source = _completed(source, net, slices.outgoing)
    hurt = silence(net, slices.all) if units else net
    (moment,) = Refit(source, ridge)(hurt, stream(0, "refit"))
    changed = tuple(n for n, w in moment.network.weights.items() if not torch.equal(w, hurt.weights[n]))
    unrepaired = unread(hurt, source, (unit.layer for unit in units))
    return Refitted(moment.network, changed, unrepaired, moment.cost)


def unread(net: Network, source: Sidecar | Teacher, layers: Iterable[str]) -> dict[str, str]:
    """Layers whose dead units a source cannot make up for, with the reason.

    Args:
        net: Any network of the same module.
        source: Of the refit.
        layers: Names of layers with units.
    """
    if isinstance(source, Teacher):
        return {}  # every product behind the damage is refitted
    reasons = {}
    by_name = {group.layer: group for group in Anatomy.of(net).groups}
    for layer in dict.fromkeys(layers):
        outgoing = by_name[layer].owners["outgoing"]
        held = [name for name in outgoing if name in source.moments]
        if not outgoing:
            reasons[layer] = "no weights of their own read its units; a sequential refit or retraining works"
        elif len(held) < len(outgoing):
            name = next(name for name in outgoing if name not in held)
            reasons[layer] = f"{name}: {source.refused.get(name, 'not in the sidecar')}"
    return reasons


def _completed(sidecar: Sidecar, net: Network, lost: Mapping[str, Tensor]) -> Sidecar:
    """The sidecar with the weights it does not hold, read from the network before it is silenced.

    Raises:
        InputError: If they are lost there too.
    """
    missing = [name for name in sidecar.moments if name not in sidecar.weights]
    for name in missing:
        hit = lost.get(name)
        if hit is not None and bool(hit.any()) and not bool((net.weights[name][hit] != 0).any()):
            raise InputError(
                f"weight {name!r}",
                "the weights of the dead units, or a sidecar that holds a copy",
                "zeros, and a sidecar without",
                "Give the weights as they were before, or make the sidecar with a larger --share.",
            )
    if not missing:
        return sidecar
    found, _ = readers(net)
    # With their biases: what an earlier refit has made good is in both.
    read = [name for n in missing if n in found for name in (n, found[n].bias) if name is not None]
    return replace(sidecar, weights={**sidecar.weights, **{name: net.weights[name] for name in read}})


def _from_sidecar(net: Network, sidecar: Sidecar, ridge: float | None) -> tuple[Network, Cost]:
    anatomy = Anatomy.of(net)
    dead = anatomy.dead(net)
    found, _ = readers(net)
    targets: dict[str, Tensor] = {}
    work = 0
    for name, moments in sidecar.moments.items():
        reader = found.get(name)
        if reader is None or moments.shape[:2] != (reader.columns.shape[0], reader.columns.shape[1] + 1):
            raise InputError(
                f"Sidecar.moments[{name!r}]",
                "moments of this network's readers",
                "another network's",
                "Make the sidecar from the intact form of the same network.",
            )
        lost = _dead_features(anatomy, dead, reader).to(net.device)
        free = reader.free(net)
        if not bool(lost.any()) and bool(free.all()):
            continue
        matrix = reader.matrix(net.weights) * ~lost[:, :, None]  # units that are stuck must not be heard
        intact = _intact(reader, sidecar, net)
        missed = reader.shift(net, sidecar.weights) - reader.shift(net, net.weights)
        shift = torch.zeros_like(missed)
        heard = _heard(reader, net, free & ~lost[:, :, None])
        for g in range(len(moments)):
            moment = moments[g].to(net.device)
            alive = heard[g].any(0).nonzero().flatten()  # outputs of dead units stay as they are
            error = torch.cat([(intact[g] - matrix[g])[:, alive], missed[g][None, alive]])
            wrong = (error != 0).any(1).nonzero().flatten()  # mostly what the dead units gave
            across = moment[:, wrong] @ error[wrong]
            energy = (error * across).sum(0)
            change, spent = solve(moment, across, energy, heard[g][:, alive], sidecar.examples, ridge)
            matrix[g][:, alive] += change[:-1]
            shift[g, alive] = change[-1]
            work += spent + len(moment) * len(wrong) * len(alive)
        targets.update(reader.targets(net, matrix, shift))
    return net.move(targets), Cost(multiply_adds=work)


def _intact(reader: Reader, sidecar: Sidecar, net: Network) -> Tensor:
    """The reader's intact weights: the network's own where they agree with the stored ones to their rounding."""
    own = net.weights[reader.weight]
    stored = sidecar.weights.get(reader.weight)
    if stored is None:
        raise InputError(
            f"Sidecar.weights[{reader.weight!r}]",
            "a copy of the reader's weights",
            "none, for want of room",
            "Call refit(net, lesion, sidecar) on a network whose weights can be read, or use a larger share.",
        )
    stored, step = stored.to(own.device), sidecar.steps.get(reader.weight)
    if step is not None:
        stored = torch.where(agree(own, stored, step), wide(own), stored)
    return reader.matrix({reader.weight: stored})


def _heard(reader: Reader, net: Network, free: Tensor) -> Tensor:
    """Which features, and whether the shift, each output may be fitted by: boolean [groups, features + 1, outputs].

    Args:
        reader: The reader.
        net: Its network.
        free: The features' part [groups, features, outputs].
    """
    groups, _, made = free.shape
    loose = torch.zeros(groups * made, dtype=torch.bool, device=net.device)
    if reader.bias is not None:
        loose = (net.plasticity[reader.bias] != 0).flatten()
    return torch.cat([free, loose.view(groups, 1, made)], 1)


def _from_teacher(net: Network, teacher: Teacher, ridge: float | None) -> tuple[Network, Cost]:
    intact, inputs = teacher.net.to(net.device), teacher.inputs.to(net.device)
    if len(inputs) == 0 or (inputs.is_floating_point() and not bool(inputs.isfinite().all())):
        raise InputError("Teacher.inputs", "at least one input, all finite", f"{len(inputs)} inputs")
    if {n: w.shape for n, w in intact.weights.items()} != {n: w.shape for n, w in net.weights.items()}:
        raise InputError("Teacher.net", "the intact form of the same network", "weights of other names or shapes")
    if net.inputs is not None and inputs.shape[1:] != net.inputs.shape[1:]:
        raise InputError(
            "Teacher.inputs",
            f"inputs of the network's shape {list(net.inputs.shape[1:])}",
            f"{list(inputs.shape[1:])}",
            "Bring them into the form that the network was traced with.",
        )
    importance = checked_importance("Teacher.importance", teacher.importance, inputs)
    net = net if net.inputs is not None else net.with_inputs(inputs)
    anatomy = Anatomy.of(net)
    dead = anatomy.dead(net)
    found, _ = readers(net, len(inputs))
    order, looked = ({}, Cost()) if importance is None else rows_of(intact, found, inputs)
    wanted: dict[str, Tensor] = {}
    targets: dict[str, Tensor] = {}
    work = [0]

    def record(reader: Reader, x: Tensor, z: Tensor) -> None:
        del x
        wanted[reader.weight] = z.clone()

    def refit_one(reader: Reader, x: Tensor, z: Tensor) -> Tensor | None:
        target = wanted.pop(reader.weight)
        # What this product gives now, its own repaired bias not included when that is added elsewhere: same for both.
        lost = _dead_features(anatomy, dead, reader).to(net.device)
        if not bool(lost.any()) and torch.equal(z, target):
            return None
        features = wide(reader.features(x))
        error = wide(reader.outputs(target)) - wide(reader.outputs(z))
        # Units that are stuck rather than silent are heard: take what they say away, and stop listening.
        old = reader.matrix(net.weights)
        error = error + torch.bmm(features, (old * lost[:, :, None]).to(features.dtype))
        if not bool(features.isfinite().all()) or not bool(error.isfinite().all()):
            raise InputError(f"Refit: what {reader.weight!r} reads or makes", "finite numbers", "NaN or infinity")
        heard = _heard(reader, net, reader.free(net) & ~lost[:, :, None])
        matrix, shift = old * ~lost[:, :, None], old.new_zeros(features.shape[0], error.shape[2])
        count = features.shape[1]
        each = spread(importance, count, order.get(reader.weight))
        moments = moment_of(features, each) / count
        for g in range(len(features)):
            wrong = error[g] if each is None else error[g] * each[:, None].to(error.dtype)
            across = torch.cat([features[g].T @ wrong, wrong.sum(0, keepdim=True)]).double() / count
            energy = (error[g] * wrong).double().sum(0) / count
            change, spent = solve(moments[g], across, energy, heard[g], count, ridge)
            matrix[g] += change[:-1]
            shift[g] = change[-1]
            size = features.shape[2] + 1
            work[0] += spent + count * size * (size + 3 * error.shape[2])  # with what is taken away and what is made
        proposal = reader.targets(net, matrix, shift)
        moved = net.move(proposal)
        targets.update(proposal)
        # Go on with what the law lets through, so that later readers are fitted to the real thing.
        step = reader.matrix(moved.weights) - old
        out = reader.outputs(z) + torch.bmm(features, step.to(features.dtype))
        out = out + (reader.shift(net, moved.weights) - reader.shift(net, net.weights))[:, None].to(out.dtype)
        return reader.as_output(out, z)

    run(intact, inputs, watch(found, record))
    run(net, inputs, watch(found, refit_one))
    forward = forward_multiply_adds(net, inputs)
    cost = Cost(examples=len(inputs), forward_passes=2, multiply_adds=2 * len(inputs) * forward + work[0])
    return net.move(targets), cost + looked


def _dead_features(anatomy: Anatomy, dead: Mapping[str, Tensor], reader: Reader) -> Tensor:
    """Which features of a reader come from dead units: boolean [groups, features]."""
    lost = torch.zeros(reader.columns.shape[:2], dtype=torch.bool, device=reader.columns.device)
    for group in anatomy.groups:
        owner = group.owners["outgoing"].get(reader.weight)
        if owner is None:
            continue
        unit = owner.to(lost.device).flatten()[reader.columns[..., 0]]
        state = torch.cat([dead[group.layer], torch.zeros(1, dtype=torch.bool)]).to(lost.device)
        lost |= state[unit]
    return lost
