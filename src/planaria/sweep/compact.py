"""Compaction: dead units removed for real, by cutting their slices out of the weights.

A unit that emits nothing, or that nothing reads, can leave the network: its rows, its filter, its normalisation, its
columns in whatever reads it. The smaller network is an ordinary module that computes the same; this is proved each
time, on the example inputs and on random ones. What cannot be cut (the width of a residual stream, a number of heads
that a module has fixed) stays, with the reason.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from planaria.core.anatomy import Anatomy, Group, flat
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import Weights

TOLERANCE = 1e-5
"""Largest difference of any output that still counts as equal, relative to the largest output."""


@dataclass(frozen=True, eq=False)
class Compact:
    """A network without the units that do nothing.

    Attributes:
        network: The smaller network, pinned where the first was; the first itself where nothing could be removed.
        remaining: Layer -> indices, in the first network, of the units that are left, in their order.
        removed: Layer -> indices of the units that were removed; layers that lost none are left out.
        kept: Layer -> why units that do nothing are still there.
        difference: Largest difference of any output to the first network's, relative to its largest output.
        parameters_before: Weight entries of the first network.
        bytes_before: Bytes of its weights and buffers.
        whole: The first network.
        slices: Name of a weight or buffer that was cut -> (axis, indices that are left) for each axis it was cut along.
    """

    network: Network
    remaining: Mapping[str, tuple[int, ...]]
    removed: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, str]
    difference: float
    parameters_before: int
    bytes_before: int
    whole: Network
    slices: Mapping[str, Sequence[tuple[int, Tensor]]]

    @property
    def module(self) -> nn.Module:
        """The smaller network as an ordinary, independent module in eval mode."""
        return self.network.to_module()

    @property
    def units_removed(self) -> int:
        """Number of units removed."""
        return sum(len(units) for units in self.removed.values())

    @property
    def parameters(self) -> int:
        """Weight entries that are left."""
        return self.network.parameters

    @property
    def bytes(self) -> int:
        """Bytes of the weights and buffers that are left."""
        return _bytes(self.network)

    def shrink(self, weights: Weights) -> Weights:
        """Tensors for the first network's weights (other plasticity, say) cut down to the smaller one's.

        Args:
            weights: Weight name -> tensor of the first network's shape.
        """
        return {name: _taken(weight, self.slices.get(name, ())) for name, weight in weights.items()}

    def expand(self, small: Network) -> Network:
        """The first network with the weights and buffers that the smaller one has now; what was cut out is as it was.

        Args:
            small: The smaller network, or one derived from it.

        Example:
            >>> from planaria.core.anatomy import Unit, silence
            >>> net = Network.of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 4))
            >>> small = compact(silence(net, Anatomy.of(net).entries([Unit("0", 1)]).all))
            >>> taught = small.network.with_weights({"0.bias": torch.tensor([1.0, 2.0])})
            >>> small.expand(taught).weights["0.bias"]
            tensor([1., 0., 2.])
        """
        weights, buffers = (
            {name: _put(whole[name], self.slices.get(name, ()), tensor) for name, tensor in changed.items()}
            for whole, changed in ((self.whole.weights, small.weights), (self.whole.buffers, small.buffers))
        )
        return self.whole.with_weights(weights, buffers)

    def to_dict(self) -> dict[str, Any]:
        """Sizes, difference and reasons as plain values."""
        return {
            "parameters": self.parameters,
            "parameters_before": self.parameters_before,
            "bytes": self.bytes,
            "bytes_before": self.bytes_before,
            "units_removed": self.units_removed,
            "difference": self.difference,
            "kept": [{"layer": layer, "reason": reason} for layer, reason in self.kept.items()],
        }


def compact(net: Network, inputs: Tensor | None = None) -> Compact:
    """Remove the units that do nothing, and prove that the outputs stay.

    A unit does nothing when it is dead and emits zero (see `Anatomy.dead`; a unit that is stuck at a value does
    something), or when all weights that read it are zero and pinned. The smaller network must give the same outputs up
    to 1e-5 of the largest one, on the example inputs, on `inputs`, and on the example inputs with noise; layers for
    which it does not are left as they are. Of a layer that is dead as a whole one unit stays, so that the module is
    valid.

    Args:
        net: The network; it is not changed.
        inputs: Further inputs [examples, ...] to prove it on; needed where the network has no example inputs.

    Returns:
        The smaller network with what was removed and what could not be.

    Raises:
        AnatomyError: If there are no example inputs, or the network cannot run on them.
        InputError: If the network does not run on `inputs`.

    Example:
        >>> from planaria.core.anatomy import Unit, silence
        >>> module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> net = Network.of(module, torch.ones(1, 4))
        >>> hurt = silence(net, Anatomy.of(net).entries([Unit("0", 1)]).all)
        >>> small = compact(hurt)
        >>> small.remaining["0"], small.parameters, small.parameters_before
        ((0, 2), 16, 23)
        >>> small.module[0]
        Linear(in_features=4, out_features=2, bias=True)

    Not guaranteed: that the outputs agree where the inputs take another way through the network than the examples.
    """
    net = net if inputs is None else net.with_inputs(inputs)
    anatomy = Anatomy.of(net)
    dead = anatomy.dead(net)
    groups = {group.layer: group for group in anatomy.groups}
    idle: dict[str, Tensor] = {}
    kept: dict[str, str] = {}
    parts: dict[str, list[_Part]] = {}
    for layer, group in groups.items():
        silent = dead[layer] & ~_owning(group, net, "shift", lambda name: net.weights[name] != 0)
        # A unit that is exact by its outgoing entries only emits something even so (a sigmoid of 0).
        idle[layer] = _unread(group, net) | (silent if group.exact_by != "outgoing" else False)
        found = _parts(group)
        if isinstance(found, str):
            if bool((idle[layer] | dead[layer]).any()):
                kept[layer] = found
            idle[layer] = torch.zeros_like(dead[layer])
        else:
            parts[layer] = found
            if bool((dead[layer] & ~idle[layer]).any()):
                kept[layer] = "it has units that are stuck at a value, which the others read"
    trial = _Trial(net, _proofs(net, inputs), parts)
    going, reasons = _accepted(trial, groups, idle)
    cuts = trial.agree(going)
    for layer, units in idle.items():
        left = units & ~going[layer]
        if bool(left.any()):
            whole = bool(units.all()) and layer not in reasons
            kept[layer] = reasons.get(layer, _WHOLE if whole else _SHARED)
    small = trial.cut(cuts)
    return Compact(
        network=small,
        remaining={layer: _indices(~going[layer]) for layer in groups},
        removed={layer: _indices(units) for layer, units in going.items() if bool(units.any())},
        kept={layer: kept[layer] for layer in groups if layer in kept},
        difference=0.0 if small is net else trial.difference(small),
        parameters_before=net.parameters,
        bytes_before=_bytes(net),
        whole=net,
        slices=trial.slices(cuts),
    )


_WHOLE = "all its units do nothing; one stays so that the module is valid"
_SHARED = "some of its units share slices of a weight with units that are needed"


@dataclass(frozen=True, eq=False)
class _Part:
    """Slices of one weight along one axis, with the unit that each belongs to (-1 = none)."""

    weight: str
    axis: int
    owner: Tensor


def _parts(group: Group) -> list[_Part] | str:
    """Where a layer's units can be cut out, or why they cannot."""
    if group.kind == "branch":
        return "its units are added to a residual stream, whose width other layers share"
    if group.kind == "tap":
        return "a tap gates what a module emits; the module itself keeps its width"
    if not group.owners["outgoing"]:
        return "not everything that reads its units is known"
    if not group.owners["incoming"]:
        return "its incoming weights are shared, or a normalisation runs over all of its units"
    parts = []
    for owners in group.owners.values():
        for name, owner in owners.items():
            if not bool((owner >= 0).any()):
                continue
            part = _part(name, owner)
            if part is None:
                return f"its units are no whole slices of {name} (a grouped convolution, or weights that it shares)"
            parts.append(part)
    return parts


def _part(name: str, owner: Tensor) -> _Part | None:
    for axis in range(owner.ndim):
        lines = owner.movedim(axis, -1).reshape(-1, owner.shape[axis])
        if bool((lines == lines[:1]).all()):
            return _Part(name, axis, lines[0])
    return None


def _owning(group: Group, net: Network, role: str, chosen: Any) -> Tensor:
    """Units of a layer that own a chosen entry in some role."""
    owning = torch.zeros(group.count + 1, dtype=torch.bool)  # the last place answers for owner -1
    for name, owner in group.owners[role].items():
        owning[owner[chosen(name).cpu()]] = True
    return owning[:-1]


def _unread(group: Group, net: Network) -> Tensor:
    """Units that nothing reads and nothing ever will: everything outgoing is known, zero and pinned."""
    outgoing = _owning(group, net, "outgoing", lambda name: torch.ones_like(net.weights[name], dtype=torch.bool))
    live = _owning(group, net, "outgoing", lambda name: (net.weights[name] != 0) | (net.plasticity[name] != 0))
    return outgoing & ~live


@dataclass(frozen=True, eq=False)
class _Trial:
    """What a smaller network is made from and compared with."""

    net: Network
    proofs: tuple[tuple[Tensor, Tensor], ...]
    parts: Mapping[str, list[_Part]]

    def agree(self, going: dict[str, Tensor]) -> dict[tuple[str, int], Tensor]:
        """Slices to cut, by weight and axis; units that share a slice with one that stays are taken out of `going`."""
        while True:
            leaving: dict[tuple[str, int], Tensor] = {}
            held: dict[tuple[str, int], Tensor] = {}
            for layer, part in self._all():
                goes, owned = _with_none(going[layer])[part.owner], part.owner >= 0
                key = (part.weight, part.axis)
                leaving[key] = goes | leaving.get(key, torch.zeros_like(owned))
                held[key] = (owned & ~goes) | held.get(key, torch.zeros_like(owned))
            cuts = {key: gone & ~held[key] for key, gone in leaving.items()}
            for cut in cuts.values():
                if bool(cut.all()):
                    cut[0] = False  # a weight without entries would make no module
            settled = True
            for layer, part in self._all():
                blocked = _with_none(going[layer])[part.owner] & ~cuts[part.weight, part.axis]
                if bool(blocked.any()):
                    going[layer][part.owner[blocked]] = False
                    settled = False
            if settled:
                return {key: cut for key, cut in cuts.items() if bool(cut.any())}

    def _all(self) -> Iterable[tuple[str, _Part]]:
        return ((layer, part) for layer, parts in self.parts.items() for part in parts)

    def together(self, layers: Iterable[str]) -> list[set[str]]:
        """Layers in sets that can only be cut together, because units of theirs own the same slices."""
        sets = [{layer} for layer in layers]
        seen: dict[tuple[str, int], list[tuple[str, Tensor]]] = {}
        for layer, part in self._all():
            owned = part.owner >= 0
            for other, theirs in seen.setdefault((part.weight, part.axis), []):
                if bool((owned & theirs).any()):
                    joined = [one for one in sets if layer in one or other in one]
                    sets = [one for one in sets if one not in joined]
                    sets += [set[str]().union(*joined)] if joined else []
            seen[part.weight, part.axis].append((layer, owned))
        return sets

    def cut(self, cuts: Mapping[tuple[str, int], Tensor]) -> Network:
        """The network without these slices; the network itself if there are none."""
        if not cuts:
            return self.net
        net, slices = self.net, self.slices(cuts)
        weights, plasticity, buffers = (
            {name: _taken(tensor, slices.get(name, ())) for name, tensor in tensors.items()}
            for tensors in (net.weights, net.plasticity, net.buffers)
        )
        module = _resized(net.module, weights, buffers)
        return replace(net, module=module, weights=weights, plasticity=plasticity, buffers=buffers)

    def slices(self, cuts: Mapping[tuple[str, int], Tensor]) -> dict[str, list[tuple[int, Tensor]]]:
        """Weights and buffers that are cut -> (axis, indices that are left)."""
        net = self.net
        left: dict[str, list[tuple[int, Tensor]]] = {}
        for (name, axis), gone in cuts.items():
            left.setdefault(name, []).append((axis, (~gone).nonzero().flatten().to(net.device)))
        names = {id(parameter): name for name, parameter in net.module.named_parameters()}
        named = {id(buffer): name for name, buffer in net.module.named_buffers()}
        for module in net.module.modules():
            kept = {}  # length -> what a vector of the module keeps; its statistics keep the same
            for parameter in module.parameters(recurse=False):
                name = names[id(parameter)]
                if parameter.ndim == 1 and name in left:
                    kept[len(parameter)] = left[name]
            for buffer in module.buffers(recurse=False):
                if buffer.ndim == 1 and len(buffer) in kept:
                    left[named[id(buffer)]] = kept[len(buffer)]
        return left

    def difference(self, small: Network) -> float:
        """Largest difference of any output, relative to the largest output; infinite if one is not finite alone."""
        worst = 0.0
        for inputs, outputs in self.proofs:
            theirs = flat(small(inputs))
            if theirs.shape != outputs.shape:
                return float("inf")
            known = outputs.isfinite()
            scale = float(outputs[known].abs().max()) if bool(known.any()) else 0.0
            apart = (theirs - outputs).abs().masked_fill(~known & ~theirs.isfinite(), 0.0)
            worst = max(worst, float(apart.nan_to_num(nan=float("inf")).max()) / (scale or 1.0))
        return worst

    def problem(self, going: dict[str, Tensor]) -> str:
        """Why these units cannot be removed, "" if they can; takes out of `going` what shares slices."""
        try:
            difference = self.difference(self.cut(self.agree(going)))
        except Exception as error:  # a module of any make may answer another width by any error
            first = (str(error).splitlines() or [type(error).__name__])[0]
            return f"the module is made for its number of units: {first[:120]}"
        return "" if difference <= TOLERANCE else f"the outputs would be {difference:.1g} of the largest one apart"


def _accepted(
    trial: _Trial, groups: Mapping[str, Group], idle: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Units that can be removed, and layer -> reason for the others: all at once, else set by set."""
    going = {layer: units.clone() for layer, units in idle.items()}
    if not trial.problem(going):
        return going, {}
    reasons: dict[str, str] = {}
    going = {layer: torch.zeros_like(units) for layer, units in idle.items()}
    for layers in trial.together(layer for layer in groups if bool(idle[layer].any())):
        more = {layer: idle[layer].clone() if layer in layers else units.clone() for layer, units in going.items()}
        problem = trial.problem(more)
        if problem:
            reasons |= dict.fromkeys(layers, problem)
        else:
            going = more
    return going, reasons


def _proofs(net: Network, inputs: Tensor | None) -> tuple[tuple[Tensor, Tensor], ...]:
    """Inputs with the network's outputs for them: the examples, those given, and the examples with noise."""
    assert net.inputs is not None
    tried = [net.inputs]
    if inputs is not None:
        tried.append(inputs)
    if net.inputs.is_floating_point():  # examples may all be zero, which proves little
        noise = torch.randn(net.inputs.shape, generator=stream(0, "compact"), dtype=torch.float64)
        if net.port.layout is not None:
            noise = noise * net.port.layout.real  # no token becomes another
        tried.append(net.inputs + noise.to(net.inputs))
    pairs = []
    for given in tried:
        try:
            pairs.append((given, flat(net(given))))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                "compact(inputs)",
                f"inputs that the network takes, {list(net.inputs.shape[1:])} per example",
                f"shape {list(given.shape)}: {(str(error).splitlines() or [''])[0][:100]}",
                "Give inputs like those the network was trained on.",
            ) from error
    return tuple(pairs)


def _taken(tensor: Tensor, slices: Sequence[tuple[int, Tensor]]) -> Tensor:
    for axis, left in slices:
        tensor = tensor.index_select(axis, left)
    return tensor


def _put(whole: Tensor, slices: Sequence[tuple[int, Tensor]], part: Tensor) -> Tensor:
    """The whole with its `_taken` slices replaced."""
    if not slices:
        return part
    (axis, left), *others = slices
    return whole.index_copy(axis, left, _put(whole.index_select(axis, left), others, part))


def _resized(module: nn.Module, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> nn.Module:
    """Copy of an architecture for weights and buffers of other sizes, the sizes that its modules name set right."""
    empty: dict[int, Any] = {}
    for name, parameter in module.named_parameters():
        shape = weights[name].shape
        empty[id(parameter)] = nn.Parameter(parameter.new_empty(shape), requires_grad=parameter.requires_grad)
    for name, buffer in module.named_buffers():
        empty[id(buffer)] = buffer.new_empty(buffers[name].shape)
    small = copy.deepcopy(module, empty)
    for old, new in zip(module.modules(), small.modules(), strict=True):
        was, now = _sizes(old, old), _sizes(new, old)
        for name, size in now.items():
            if size != was[name] and getattr(old, name, None) == was[name]:
                setattr(new, name, size)
    return small


def _sizes(module: nn.Module, like: nn.Module) -> dict[str, int]:
    """Sizes that a module may name, read off its weight's shape; `like` says what kind of convolution it is."""
    weight = module._parameters.get("weight")
    if weight is None:
        return {}
    first, second = weight.shape[0], weight.shape[1] if weight.ndim > 1 else 0
    sizes = {"num_features": first}
    if weight.ndim == 2:
        sizes |= {"out_features": first, "in_features": second, "nx": first, "nf": second}
    groups, made, original = getattr(like, "groups", None), 1, like._parameters["weight"]
    if weight.ndim > 2 and isinstance(groups, int) and original is not None:
        if groups > 1 and original.shape[1] == 1:  # depthwise: each channel is a group of its own
            made = original.shape[0] // groups
            groups = first // made
        transposed = bool(getattr(like, "transposed", False))
        out, read = (second * groups, first) if transposed else (first, second * groups)
        sizes |= {"groups": groups, "out_channels": out, "in_channels": read}
    return sizes


def _with_none(units: Tensor) -> Tensor:
    """Units with a place at the end that answers for owner -1."""
    return torch.cat([units, torch.zeros(1, dtype=torch.bool)])


def _indices(units: Tensor) -> tuple[int, ...]:
    return tuple(int(index) for index in units.nonzero().flatten())


def _bytes(net: Network) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in [*net.weights.values(), *net.buffers.values()])
