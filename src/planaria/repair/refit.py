"""Refit: instant rescue in closed form, without labels or training.

Where units have died, whatever read them is refitted so that it gives, from the units that are left, the best linear
prediction of what it gave before. For a reader z = W h + b with dead inputs D and living inputs S (S contains the
constant 1 if the reader has a bias), and second moments G = E[h h^T]:

    W_S <- W_S + W_D G[D,S] (G[S,S] + lambda I)^-1,    lambda = ridge * mean diagonal of G[S,S]

In general, with E the intact weights minus those that are there now, W_S <- W_S + E G[:,S] (G[S,S] + lambda I)^-1: a
network that has been refitted before is hardly moved again. Where single connections are pinned, S is another set for
every output. The moments come from a sidecar that was stored while the network was intact, or from unlabelled inputs,
layer by layer, with the intact network as the teacher.

Readers are output projections of attention, down-projections of (gated) MLPs, convolutions of every kind, stacks of
matrices, and the recurrent weights of LSTMs and GRUs, which are read at every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.devices import clock
from planaria.core.errors import InputError
from planaria.core.motion import Cost, Moment
from planaria.core.network import Network
from planaria.repair.fits import LayerFit, heard_by, table
from planaria.repair.reader import Reader
from planaria.repair.readers import STRAYS, readers
from planaria.repair.ridge import solve
from planaria.repair.sequential import Teacher as Teacher
from planaria.repair.sequential import astray, dead_features, from_teacher, units_read
from planaria.repair.sidecar import Sidecar, agree, wide


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

    Not guaranteed: an improvement when hardly any units are left, since then the linear span is gone; nor, from a
        sidecar, in a recurrent layer that amplifies small errors (a teacher's fits are tried out there).
    """

    source: Sidecar | Teacher
    ridge: float | None = None

    def __post_init__(self) -> None:
        if self.ridge is not None and not 0 < self.ridge < math.inf:
            raise InputError("Refit.ridge", "a finite number above 0", self.ridge)

    def __call__(self, net: Network, rng: Generator, /) -> Iterator[Moment]:
        """One moment: the refitted network."""
        del rng
        start = clock(net.device)
        if isinstance(self.source, Sidecar):
            moved, _, cost = _from_sidecar(net, self.source, self.ridge)
        else:
            moved, _, cost = from_teacher(net, self.source, self.ridge)
        yield Moment(moved, cost + Cost(seconds=clock(net.device) - start))

    def fits(self, net: Network) -> tuple[LayerFit, ...]:
        """What the refit makes good in each layer, in the order in which it goes through them.

        Args:
            net: The damaged network.
        """
        if isinstance(self.source, Sidecar):
            return _from_sidecar(net, self.source, self.ridge)[1]
        return from_teacher(net, self.source, self.ridge, report=True)[1]


@dataclass(frozen=True, eq=False)
class Refitted:
    """What `refit` has done; printed, it is a table of the layers with their errors before and after.

    Attributes:
        network: The repaired network; the units of the lesion are silent and pinned.
        refitted: Names of the weights that were changed.
        unrepaired: Layer with dead units -> why nothing makes up for them.
        layers: For each refitted reader, the error of the function it computes before and after.
        cost: Of the refit.
    """

    network: Network
    refitted: tuple[str, ...]
    unrepaired: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[LayerFit, ...] = ()
    cost: Cost = field(default=Cost())

    def __str__(self) -> str:
        lines = [table(self.layers)] if self.layers else ["nothing to refit"]
        return "\n".join([*lines, *(f"not repaired: {layer}: {why}" for layer, why in self.unrepaired.items())])

    def __repr__(self) -> str:
        return f"{self}"


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
    ridge = Refit(source, ridge).ridge  # which checks it
    start = clock(net.device)
    if isinstance(source, Sidecar):
        moved, fits, cost = _from_sidecar(hurt, source, ridge)
    else:
        moved, fits, cost = from_teacher(hurt, source, ridge, report=True)
    cost = cost + Cost(seconds=clock(net.device) - start)
    changed = tuple(n for n, w in moved.weights.items() if not torch.equal(w, hurt.weights[n]))
    unrepaired = unread(hurt, source, (unit.layer for unit in units))
    return Refitted(moved, changed, unrepaired, fits, cost)


def unread(net: Network, source: Sidecar | Teacher, layers: Iterable[str]) -> dict[str, str]:
    """Layers whose dead units a source cannot make up for, with the reason.

    Args:
        net: Any network of the same module.
        source: Of the refit.
        layers: Names of layers with units.
    """
    by_name = {group.layer: group for group in Anatomy.of(net).groups}
    if isinstance(source, Teacher):
        if astray(net, source):
            return dict.fromkeys(layers, STRAYS)
        # Every product behind the damage is refitted: what the one cannot make up for, the next may.
        _, refused = readers(net)
        known = {layer: [name for name in by_name[layer].readers if name in refused] for layer in layers}
        deaf = {layer: names for layer, names in known.items() if len(names) == len(by_name[layer].readers) > 0}
        return {layer: f"{names[0]}: {refused[names[0]]}" for layer, names in deaf.items()}
    reasons = {}
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


def _from_sidecar(net: Network, sidecar: Sidecar, ridge: float | None) -> tuple[Network, tuple[LayerFit, ...], Cost]:
    anatomy = Anatomy.of(net)
    dead = anatomy.dead(net)
    found, _ = readers(net)
    targets: dict[str, Tensor] = {}
    fits: list[LayerFit] = []
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
        lost = dead_features(anatomy, dead, reader).to(net.device)
        free = reader.free(net)
        if not bool(lost.any()) and bool(free.all()):
            continue
        matrix = reader.matrix(net.weights) * ~lost[:, :, None]  # units that are stuck must not be heard
        intact = _intact(reader, sidecar, net)
        missed = reader.shift(net, sidecar.weights) - reader.shift(net, net.weights)
        shift = torch.zeros_like(missed)
        heard = heard_by(reader, net, free & ~lost[:, :, None])
        before = after = variance = used = 0.0
        for g in range(len(moments)):
            moment = moments[g].to(net.device)
            alive = heard[g].any(0).nonzero().flatten()  # outputs of dead units stay as they are
            error = torch.cat([(intact[g] - matrix[g])[:, alive], missed[g][None, alive]])
            wrong = (error != 0).any(1).nonzero().flatten()  # mostly what the dead units gave
            across = moment[:, wrong] @ error[wrong]
            energy = (error * across).sum(0)
            change, spent, used = solve(moment, across, energy, heard[g][:, alive], sidecar.examples, ridge)
            matrix[g][:, alive] += change[:-1]
            shift[g, alive] = change[-1]
            work += spent + len(moment) * len(wrong) * len(alive)
            before, variance = before + float(energy.sum()), variance + _variance(moment, intact[g][:, alive])
            after += float((energy + (change * (moment @ change - 2 * across)).sum(0)).sum())
        if not before and not bool(lost.any()):
            continue  # only what dead units would make is missing
        gone, living = units_read(anatomy, dead, reader)
        first, last = (max(0.0, e) / variance if variance > 0 else float(e > 0) for e in (before, after))
        fits.append(LayerFit(name, gone, living, sidecar.examples, used, first, last, held_out=False))
        targets.update(reader.targets(net, matrix, shift))
    return net.move(targets), tuple(fits), Cost(multiply_adds=work)


def _variance(moment: Tensor, matrix: Tensor) -> float:
    """Variance of a reader's outputs, all together, by the moments of what it reads."""
    spread = moment[:-1, :-1] - moment[:-1, -1:] * moment[-1:, :-1]
    return float((matrix * (spread @ matrix)).sum())


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
