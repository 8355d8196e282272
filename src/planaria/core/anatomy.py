"""Anatomy: which weights belong to which unit.

A unit is the smallest thing that fails: a neuron, a feature map, an attention head. Deleting it means silencing its
*output*. The anatomy finds the units of any network from a trace (`graph.py`), and for each the entries whose zeroing
silences it exactly:

- following the unit's activation forwards to every product that reads it gives the *outgoing* entries; zeroing them
  is exact whenever nothing else reads the activation and only zero-preserving functions lie in between;
- following it backwards to the product that makes it gives the *incoming* entries and the *shift* (bias, or the
  normalisation's bias); zeroing them is exact whenever everything up to the activation maps zero to zero.

At least one must hold, or the layer is named in `unreached` with the reason; `tap` then makes units of any module's
output. `verify` compares silencing by weights with gating the activation itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from planaria.core.errors import AnatomyError, InputError, nearest
from planaria.core.follow import thin
from planaria.core.graph import Graph, Watch, run, trace
from planaria.core.matching import NEAR, ROUGH, matched
from planaria.core.network import Network
from planaria.core.reasons import needless
from planaria.core.survey import survey
from planaria.core.tap import emitted
from planaria.core.trees import Entries, either, remove

KINDS = ("neuron", "channel", "head", "recurrent", "embedding", "branch", "tap")
"""Kinds of unit: neuron of a matrix product (with its gate, if it has one), feature map of a convolution, attention
head, unit of a recurrent layer with all its gates, dimension of an embedding, channel that a branch adds to a residual
stream, channel of a tapped module's output."""

ASIDE = ("embedding", "branch")
"""Kinds that are chosen only where they are named, or where there is nothing else: parts of a residual stream."""


@dataclass(frozen=True, order=True, slots=True)
class Unit:
    """A unit, addressed by the name of its layer and its index there."""

    layer: str
    index: int

    def __post_init__(self) -> None:
        if not isinstance(self.layer, str) or not isinstance(self.index, int):
            raise InputError("Unit", "a layer name and an index", f"{self.layer!r}, {self.index!r}")
        if self.index < 0:
            raise InputError("Unit.index", "a number of at least 0", self.index)


@dataclass(frozen=True, eq=False)
class Slices:
    """Entries of some units, by role.

    Attributes:
        incoming: Weights that the units read through, and biases that a later shift makes idle.
        scale: What their value is multiplied by: a normalisation's weight, a tap's gain.
        shift: What is added last before the units' activation: bias, or the normalisation's bias.
        outgoing: Weights through which the units are read; empty for units that are silenced from the inside.
        unshifted: Layers of these units that have no shift.
    """

    incoming: Entries
    scale: Entries
    shift: Entries
    outgoing: Entries
    unshifted: tuple[str, ...] = ()

    @property
    def all(self) -> Entries:
        """Entries of every role."""
        return either(either(self.incoming, self.scale), either(self.shift, self.outgoing))

    def without(self, other: Slices) -> Slices:
        """These entries less those of another lesion, role by role (an edge between a unit of each stays)."""
        return Slices(
            remove(self.incoming, other.incoming),
            remove(self.scale, other.scale),
            remove(self.shift, other.shift),
            remove(self.outgoing, other.outgoing),
            self.unshifted,
        )


@dataclass(frozen=True, eq=False)
class Group:
    """The units of one layer.

    Attributes:
        layer: Name of the layer that makes them; of several, what their names have in common.
        kind: One of KINDS.
        count: Number of units.
        method: "slices" of the weights, or "tap".
        exact_by: "outgoing", "incoming" or "both": which zeroing alone silences a unit exactly.
        readers: Names of the weights that read the units' activation.
    """

    layer: str
    kind: str
    count: int
    method: str
    exact_by: str
    readers: tuple[str, ...]
    owners: Mapping[str, Mapping[str, Tensor]] = field(repr=False)
    """Role -> weight name -> unit index of each entry, -1 = none."""
    gates: tuple[tuple[str, Tensor], ...] = field(repr=False)
    """Calls (`Call.tag`) whose output is the units' activation, with the unit index of each of its entries.

    Of passes where the network is: elsewhere torch runs other operations. Empty if none of them has the activation.
    """


@dataclass(frozen=True)
class Check:
    """Result of `Anatomy.verify` for one layer.

    Attributes:
        layer: Its name.
        units: Units tried.
        difference: Largest difference of any output, relative to the largest output.
        exact: Whether it is below the tolerance.
    """

    layer: str
    units: int
    difference: float
    exact: bool = True


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The units of a network and the entries that belong to them.

    Attributes:
        groups: One per layer with units, in the order of execution.
        unreached: Layer -> why it has no units of its own.
        matrices: Names of the weights whose entries are edges: read by products, convolutions, recurrent cells.

    Example:
        >>> net = Network.of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 4))
        >>> Anatomy.of(net).units()
        (Unit(layer='0', index=0), Unit(layer='0', index=1), Unit(layer='0', index=2))
    """

    groups: tuple[Group, ...]
    unreached: Mapping[str, str]
    matrices: tuple[str, ...] = ()

    @staticmethod
    def of(net: Network, inputs: Tensor | None = None) -> Anatomy:
        """Trace a network and find its units; the result is kept and shared by all networks derived from `net`.

        Args:
            net: Any network.
            inputs: Example inputs [examples, ...]; by default the network's own.

        Raises:
            AnatomyError: If the network has no example inputs, or cannot run on them.
        """
        if inputs is None:
            known, place = _KNOWN.setdefault(net.module, {}), _place(net)
            if place in known:
                return known[place]
            if net.inputs is None:
                raise AnatomyError(
                    "Anatomy.of(net)",
                    "a network with example inputs",
                    "none",
                    "Build it by Network.of(model, inputs).",
                )
            known[place] = _found(net, net.inputs)
            return known[place]
        return _found(net, inputs)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of unit that this network has."""
        return tuple(kind for kind in KINDS if any(group.kind == kind for group in self.groups))

    def tappable(self, net: Network) -> tuple[str, ...]:
        """Modules that `tap` can give units, because no rule finds any and they do not make the network's outputs."""
        modules = {name for name, _ in net.module.named_modules()}
        found = []
        for layer, reason in self.unreached.items():
            while layer and layer not in modules:
                layer = layer.rpartition(".")[0]
            if layer and not needless(reason):
                found.append(layer)
        found = list(dict.fromkeys(found))
        # Modules that only hold weights are never called.
        called = found if net.inputs is None else emitted(net, found, net.inputs)
        return tuple(layer for layer in found if layer in called)

    def select(self, kinds: Sequence[str] | None = None, layers: Sequence[str] | None = None) -> tuple[Group, ...]:
        """Groups of the given kinds and layers.

        Args:
            kinds: Some of KINDS; by default all but embeddings and branches (these too where there is nothing else,
                and where layers are named).
            layers: Layer names; by default all.

        Raises:
            AnatomyError: On a layer or kind this network does not have, or if nothing is left.
        """
        by_name = {group.layer: group for group in self.groups}
        for layer in layers or ():
            if layer not in by_name:
                reason = self.unreached.get(layer)
                raise AnatomyError(
                    f"layer {layer!r}",
                    "a layer with units",
                    "none of that name" if reason is None else reason,
                    nearest(layer, by_name) if reason is None else "tap(net, [layer]) makes units of its output.",
                )
        for kind in kinds or ():
            if kind not in KINDS:
                raise AnatomyError(f"kind {kind!r}", "a kind of unit", repr(kind), nearest(kind, KINDS))
        chosen = [group for group in self.groups if layers is None or group.layer in layers]
        if kinds is not None:
            chosen = [group for group in chosen if group.kind in kinds]
        elif layers is None and any(group.kind not in ASIDE for group in chosen):
            chosen = [group for group in chosen if group.kind not in ASIDE]
        if not chosen:
            found = ", ".join(self.kinds) or "no units at all"
            reasons = "; ".join(f"{layer}: {why}" for layer, why in list(self.unreached.items())[:5])
            raise AnatomyError(
                "the network's units",
                f"units of kind {', '.join(kinds)}" if kinds else "at least one unit",
                found,
                f"Not reached: {reasons}. tap(net) makes units of any module's output." if reasons else "",
            )
        return tuple(chosen)

    def units(self, kind: str | None = None) -> tuple[Unit, ...]:
        """All units, or those of one kind, in the order of execution (all: every kind, branches included)."""
        return tuple(
            Unit(group.layer, index)
            for group in self.groups
            if kind is None or group.kind == kind
            for index in range(group.count)
        )

    def entries(self, units: Iterable[Unit]) -> Slices:
        """Entries that belong to the given units.

        Raises:
            AnatomyError: On a unit that does not exist.

        Example:
            >>> net = Network.of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 4))
            >>> Anatomy.of(net).entries([Unit("0", 1)]).outgoing["2.weight"]
            tensor([[False,  True, False],
                    [False,  True, False]])
        """
        chosen: dict[str, list[int]] = {}
        for unit in units:
            chosen.setdefault(unit.layer, []).append(unit.index)
        by_name = {group.layer: group for group in self.groups}
        roles: dict[str, Entries] = {"incoming": {}, "scale": {}, "shift": {}, "outgoing": {}}
        for layer, indices in chosen.items():
            if layer not in by_name:
                self.select(layers=[layer])  # raises with the reason
            group = by_name[layer]
            wrong = [index for index in indices if not 0 <= index < group.count]
            if wrong:
                raise AnatomyError(f"Unit({layer!r}, {wrong[0]})", f"an index below {group.count}", wrong[0])
            picked = torch.zeros(group.count + 1, dtype=torch.bool)  # the last place answers for owner -1
            picked[indices] = True
            for role, owners in group.owners.items():
                hit = {name: picked.to(owner.device)[owner] for name, owner in owners.items()}
                roles[role] = either(roles[role], {name: h for name, h in hit.items() if bool(h.any())})
        return Slices(**roles, unshifted=tuple(n for n in chosen if not by_name[n].owners["shift"]))

    def dead(self, net: Network) -> dict[str, Tensor]:
        """Which units are dead: nothing reaches them any more, and no flow can change that.

        A unit is dead when its incoming entries and scale are zero and these and its shift are pinned, as after
        `Silence` or `StuckAt`. (Units known by their outgoing entries only: when those are zero and pinned.)

        Args:
            net: The traced network or one derived from it.

        Returns:
            Layer -> boolean tensor [units].
        """
        result: dict[str, Tensor] = {}
        for group in self.groups:
            living = torch.zeros(group.count + 1, dtype=torch.uint8)
            inward = {**group.owners["incoming"], **group.owners["scale"]} or group.owners["outgoing"]
            for name, owner in inward.items():
                _mark(living, owner, (net.weights[name] != 0) | (net.plasticity[name] != 0))
            for name, owner in group.owners["shift"].items():
                _mark(living, owner, net.plasticity[name] != 0)
            result[group.layer] = living[:-1] == 0
        return result

    def living(self, net: Network, groups: Iterable[Group] | None = None) -> tuple[Unit, ...]:
        """Units of the given groups (default: all) that are not dead."""
        dead = self.dead(net)
        return tuple(
            Unit(group.layer, index)
            for group in (self.groups if groups is None else groups)
            for index in (~dead[group.layer]).nonzero().flatten().tolist()
        )

    def verify(
        self,
        net: Network,
        inputs: Tensor | None = None,
        *,
        per_layer: int = 64,
        tolerance: float = 1e-5,
        strict: bool = True,
    ) -> tuple[Check, ...]:
        """Prove that silencing units by their weights equals gating their activation.

        For each layer, up to `per_layer` units one by one and half of the layer at once: |f_silenced - f_gated| must
        stay below tolerance * max|f|.

        Args:
            net: The network; it is not changed.
            inputs: [examples, ...]; by default the network's example inputs.
            per_layer: Units tried in each layer, evenly spaced.
            tolerance: Relative to the largest output.
            strict: Whether to raise where the two disagree; else the check of that layer says so.

        Returns:
            One Check per layer.

        Raises:
            AnatomyError: Naming the first layer and unit for which the two disagree, or a layer that these inputs do
                not reach.
        """
        inputs = net.inputs if inputs is None else inputs
        if inputs is None:
            raise AnatomyError("Anatomy.verify", "example inputs", "none", "Pass inputs.")
        net = net.with_autocast(None)  # not a matter of digits
        fresh = {group.layer: group for group in Anatomy.of(net, inputs).groups}
        strange = {group.layer for group in self.groups} ^ fresh.keys()
        if strange:
            raise AnatomyError(
                f"layer {sorted(strange)[0]!r}",
                "the same layers with units on these inputs as on the example inputs",
                "another way through the network",
                "Give example inputs that take the usual way.",
            )
        scale = float(flat(net(inputs)).abs().max()) or 1.0
        checks = []
        for group in self.groups:
            on, given, gates = net, inputs, fresh[group.layer].gates
            if not gates:  # where the network is, no operation has their activation
                on, given = net.to("cpu"), inputs.cpu()
                gates = next(g.gates for g in Anatomy.of(on, given).groups if g.layer == group.layer)
            spaced = sorted({int(i) for i in torch.linspace(0, group.count - 1, per_layer).round()})
            worst = 0.0
            for units in [[index] for index in spaced] + [list(range(0, group.count, 2))]:
                difference = self._disagreement(on, given, group, gates, units)
                if strict and not difference <= tolerance * scale:
                    raise AnatomyError(
                        f"layer {group.layer!r}",
                        f"silencing unit {units[0]} by weights to equal gating its activation",
                        f"outputs {difference:.3g} apart",
                        "Tap the layer instead: tap(net, [layer]).",
                    )
                worst = max(worst, difference / scale) if difference == difference else math.inf
            checks.append(Check(group.layer, len(spaced), worst, worst <= tolerance))
        return tuple(checks)

    def _disagreement(
        self,
        net: Network,
        inputs: Tensor,
        group: Group,
        gates: Iterable[tuple[str, Tensor]],
        units: Sequence[int],
    ) -> float:
        silenced = silence(net, self.entries(Unit(group.layer, index) for index in units).all)
        picked = torch.zeros(group.count + 1, dtype=torch.bool)
        picked[list(units)] = True
        closed = {tag: (~picked[labels]).to(net.device) for tag, labels in gates}

        def close(tag: str, args: tuple[Any, ...], output: Any) -> None:
            del args
            if tag in closed:
                output.mul_(closed[tag])  # in place: whoever holds the tensor sees the gated activation

        gated = run(net, inputs, Watch(close))
        return float((flat(silenced(inputs)) - flat(gated)).abs().max())


Place = tuple[str, torch.dtype | None]
"""Kind of device, and type of mixed precision: what decides which operations torch runs."""

_KNOWN: WeakKeyDictionary[nn.Module, dict[Place, Anatomy]] = WeakKeyDictionary()


def _place(net: Network) -> Place:
    return net.device.type, net.port.autocast


def _mark(units: Tensor, owner: Tensor, state: Tensor) -> None:
    """Set to 1, in place, the units [count + 1] that own an entry for which `state` holds; the last place is nobody's.

    A scatter, because picking entries by a boolean tensor takes twice as long on a large weight.
    """
    for axis in range(owner.ndim):
        if owner.shape[axis] > 1 and owner.stride(axis) == 0:
            owner, state = owner.narrow(axis, 0, 1), state.any(axis, keepdim=True)
    place = owner.flatten()
    place = torch.where(place < 0, len(units) - 1, place)
    units.scatter_reduce_(0, place, state.flatten().to(place.device, torch.uint8), "amax")


def silence(net: Network, entries: Entries) -> Network:
    """Network with the selected entries zero and pinned.

    Example:
        >>> net = silence(Network.of(nn.Linear(1, 1)), {"bias": torch.tensor([True])})
        >>> float(net.weights["bias"].detach()), float(net.plasticity["bias"])
        (0.0, 0.0)
    """
    zeroed = {name: net.weights[name].masked_fill(selected.to(net.device), 0) for name, selected in entries.items()}
    return net.with_weights(zeroed).pin(entries)


def _found(net: Network, inputs: Tensor) -> Anatomy:
    """Units as a pass on the CPU shows them, the same ones wherever the network is; gates of passes where it is."""
    home = net.to("cpu").with_autocast(None)
    graph = _traced(home, inputs.cpu())
    anatomy = _read(graph, home)
    if _place(net) == _place(home):
        return anatomy
    here, near = _traced(net, inputs.to(net.device)), NEAR if net.port.autocast is None else ROUGH
    tags = matched((tag for group in anatomy.groups for tag, _ in group.gates), graph, here, near)
    groups = (
        replace(group, gates=tuple((tags[tag], labels) for tag, labels in group.gates))
        if all(tag in tags for tag, _ in group.gates)
        else replace(group, gates=())
        for group in anatomy.groups
    )
    return replace(anatomy, groups=tuple(groups))


def _traced(net: Network, inputs: Tensor) -> Graph:
    try:
        return trace(net, inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise AnatomyError(
            "Anatomy.of(net)",
            f"a network that runs on inputs of shape {tuple(inputs.shape)}",
            f"{type(error).__name__}: {str(error).splitlines()[0]}",
            "Give example inputs of the shape and type the model was trained on.",
        ) from error


def _read(graph: Graph, net: Network) -> Anatomy:
    findings, unreached = survey(graph, net)
    groups = (
        Group(
            layer=finding.layer,
            kind=finding.kind,
            count=finding.count,
            method="tap" if finding.kind == "tap" else "slices",
            exact_by=finding.exact_by,
            readers=finding.readers,
            owners={
                role: {name: thin(owner) for name, owner in owners.items()} for role, owners in finding.owners.items()
            },
            gates=tuple((graph.calls[at].tag, labels) for at, labels in finding.gates),
        )
        for finding in findings
    )
    return Anatomy(tuple(groups), unreached, tuple(name for name in net.weights if _is_matrix(graph, net, name)))


def _is_matrix(graph: Graph, net: Network, name: str) -> bool:
    """Whether inputs are multiplied by it: read by a product as its weight, or whole by an operation of its own."""
    for at in graph.reads[name]:
        call = graph.calls[at]
        product = call.product
        if product is not None and product.w.weight == name:
            return True
        other = product is None and not call.pointwise and call.name != "embedding"
        if other and call.normalises is None and net.weights[name].ndim >= 2:
            return True
    return False


def flat(outputs: Any) -> Tensor:
    """All tensors that a network returned, nested as they may be, in one row of double precision.

    Example:
        >>> flat({"logits": torch.zeros(2, 3), "hidden": None}).shape
        torch.Size([6])
    """
    if isinstance(outputs, Tensor):
        return outputs.reshape(-1).double()
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs
    return torch.cat([flat(part) for part in parts if part is not None])
