"""Selectivity: which class, or which kind of stimulus, each unit responds to, and which units respond alike.

The response of a unit to an example is the mean of its activation over its places there (positions of a feature map,
steps of a sequence); of an attention head, which has many numbers per place, their root mean square. Selectivity is
measured on inputs apart from those on which lesions are judged: units that are chosen because they respond to some
examples of a class must not be tested on the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planaria.core.anatomy import Anatomy, Group
from planaria.core.errors import InputError
from planaria.core.graph import Watch, run, strays
from planaria.core.network import Network
from planaria.measure.data import Data
from planaria.measure.task import FORWARD_BATCH
from planaria.sweep.program import Program
from planaria.sweep.replay import chunk_size

HEAD = "head"
LARGEST = 8192
"""Most units of a layer that are clustered: the distances of all pairs are held in memory."""


@dataclass(frozen=True, eq=False)
class Responses:
    """How units respond to stimuli.

    Attributes:
        layers: Layer -> response of each unit to each example, [examples, units], double, on the CPU.
        unknown: Layer -> why the activation of its units cannot be read.
    """

    layers: Mapping[str, Tensor]
    unknown: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Selectivity:
    """Selectivity of units for classes.

    Attributes:
        classes: Labels.
        counts: Examples of each class among the stimuli.
        layers: Layer -> d' of each unit for each class, [units, classes]; positive where the unit responds more to
            the class than to the others.
        unknown: Layer -> why it is not known.
    """

    classes: tuple[int, ...]
    counts: tuple[int, ...]
    layers: Mapping[str, Tensor]
    unknown: Mapping[str, str]

    def top(self, layer: str, label: int, count: int) -> tuple[int, ...]:
        """The units of a layer that are most selective for a class, the most selective first.

        Args:
            layer: Its name.
            label: Of the class.
            count: How many.
        """
        column = self.layers[layer][:, self.classes.index(label)]
        return tuple(column.argsort(descending=True, stable=True)[:count].tolist())

    def preferred(self, layer: str) -> Tensor:
        """Place of the class that each unit of a layer is most selective for, [units]."""
        return self.layers[layer].argmax(1)


def responses(net: Network, data: Data, layers: Sequence[str]) -> Responses:
    """Response of units to every example.

    Args:
        net: A network with example inputs.
        data: Stimuli; targets are not looked at.
        layers: Names of layers with units.

    Returns:
        The responses; layers whose activation cannot be read are named with the reason.

    Example:
        >>> from torch import nn
        >>> net = Network.of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 2))
        >>> responses(net, Data(torch.ones(5, 2), torch.zeros(5)), ["0"]).layers["0"].shape
        torch.Size([5, 3])
    """
    groups = {group.layer: group for group in Anatomy.of(net).groups}
    program = Program.of(net)
    known: dict[str, Tensor] = {}
    if not isinstance(program, str) and _holds(program, net, data.inputs.to(net.device)):
        gated = [groups[layer] for layer in layers if layer in program.gates]
        known = _replayed(program, gated, data.inputs.to(net.device))
    missing = [groups[layer] for layer in layers if layer not in known]
    watched, unknown = _watched(net, missing, data.inputs.to(net.device)) if missing else ({}, {})
    return Responses({layer: (known | watched)[layer] for layer in layers if layer not in unknown}, unknown)


def _holds(program: Program, net: Network, inputs: Tensor) -> bool:
    """Whether a recorded pass is that of all these inputs."""
    parts = inputs.split(chunk_size(program, inputs.device)) if program.decided else ()
    return all(program.holds(some, net(some)) for some in parts)


def _replayed(program: Program, groups: Sequence[Group], inputs: Tensor) -> dict[str, Tensor]:
    """Responses read from the values of a recorded pass."""
    places = {gate.at for group in groups for gate in program.gates[group.layer]}
    found: dict[str, list[Tensor]] = {group.layer: [] for group in groups}
    for some in torch.split(inputs, chunk_size(program, inputs.device)) if groups else ():
        values = program.run(some, keep=places)
        for group in groups:
            total = torch.zeros(len(some), group.count, dtype=torch.float64)
            entries = torch.zeros(group.count, dtype=torch.float64)
            for gate in program.gates[group.layer]:
                value = values[gate.at].double()
                total += gate.sums(value.square() if group.kind == HEAD else value, group.count).cpu()
                entries += gate.sums(torch.ones_like(value), group.count)[0].cpu()
            found[group.layer].append(_mean(total, entries, group.kind))
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def _watched(net: Network, groups: Sequence[Group], inputs: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Responses seen while the network runs, for what cannot be replayed; and layers for which that fails, with why.

    Examples lie along the one axis that grows with their number.
    """
    if any(strays(net, some) for some in inputs.split(FORWARD_BATCH)):
        reason = "the data decide which layers run, or how often, so that its units cannot be followed"
        return {}, {group.layer: reason for group in groups}
    sizes = (2, 3)
    cycled = inputs[torch.arange(max(sizes), device=inputs.device) % len(inputs)]
    fresh = [{group.layer: group for group in Anatomy.of(net, cycled[:size]).groups} for size in sizes]
    owners: dict[str, dict[str, tuple[int, Tensor]]] = {}
    unknown: dict[str, str] = {}
    for group in groups:
        pairs = [one[group.layer].gates if group.layer in one else () for one in fresh]
        seen: dict[str, tuple[int, Tensor]] = {}
        for (tag, few), (other, more) in zip(*pairs, strict=False):
            axes = [axis for axis, size in enumerate(few.shape) if more.shape[axis : axis + 1] != (size,)]
            if tag == other and len(axes) == 1 and (few.shape[axes[0]], more.shape[axes[0]]) == sizes:
                seen[tag] = (axes[0], few.select(axes[0], 0).flatten())
        if seen and len(seen) == len(pairs[0]) == len(pairs[1]):
            owners[group.layer] = seen
        else:
            unknown[group.layer] = "examples do not lie along one axis of what its units emit"
    known = [group for group in groups if group.layer in owners]
    found: dict[str, list[Tensor]] = {group.layer: [] for group in known}
    for some in torch.split(inputs, FORWARD_BATCH) if known else ():
        emitted: dict[str, Tensor] = {}
        wanted = {tag for seen in owners.values() for tag in seen}

        def keep(tag: str, args: tuple[Any, ...], output: Any, emitted: Any = emitted, wanted: Any = wanted) -> None:
            del args
            if tag in wanted:
                emitted[tag] = output.detach().clone()

        run(net, some, Watch(keep))
        for group in known:
            total = torch.zeros(len(some), group.count + 1, dtype=torch.float64)
            entries = torch.zeros(group.count + 1, dtype=torch.float64)
            for tag, (axis, owner) in owners[group.layer].items():
                value = emitted[tag].movedim(axis, 0).flatten(1).double().cpu()
                place = owner % (group.count + 1)  # what belongs to no unit goes to the last
                total.index_add_(1, place, value.square() if group.kind == HEAD else value)
                entries.index_add_(0, place, torch.ones(len(place), dtype=torch.float64))
            found[group.layer].append(_mean(total[:, :-1], entries[:-1], group.kind))
    return {layer: torch.cat(parts) for layer, parts in found.items()}, unknown


def _mean(total: Tensor, entries: Tensor, kind: str) -> Tensor:
    mean = total / entries.clamp(min=1.0)
    return mean.sqrt() if kind == HEAD else mean


def selectivity(
    net: Network,
    data: Data,
    labels: Tensor | None = None,
    *,
    kinds: tuple[str, ...] | None = None,
    layers: tuple[str, ...] | None = None,
) -> Selectivity:
    """How much more each unit responds to a class than to the others, in standard deviations.

    d' = (mean response to the class - mean response to all others) / sqrt((variance within the class + variance of
    the others) / 2); 0 for a unit that always responds the same.

    Args:
        net: Any network; it is not changed.
        data: Stimuli. Take none on which lesions are judged later.
        labels: Class of each, whole numbers [examples]; by default the targets.
        kinds: Kinds of unit; by default all but branches.
        layers: Layer names; by default all.

    Returns:
        d' of every unit for every class.

    Raises:
        InputError: Labels that are none, fewer than two classes, or a class of fewer than two examples.
        AnatomyError: An unknown layer or kind.

    Example:
        >>> from torch import nn
        >>> from planaria.measure.datasets import task
        >>> digits = task("digits")
        >>> net = Network.of(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)))
        >>> found = selectivity(net, digits.train)
        >>> found.layers["0"].shape, len(found.top("0", 3, 2))
        (torch.Size([16, 10]), 2)

    Source: d' as in signal detection (Green & Swets, 1966, "Signal detection theory and psychophysics").

    Not guaranteed: that a selective unit matters for its class. Morcos et al. 2018, "On the importance of single
    directions for generalization", find it a poor guide; `lesion_study` tests it.
    """
    net = net.with_inputs(data.examples)
    names = tuple(group.layer for group in Anatomy.of(net).select(kinds, layers))
    labels = checked_labels(data.targets if labels is None else labels, len(data), "selectivity(labels)")
    return selectivity_of(responses(net, data, names), labels, tuple(labels.unique().tolist()))


def checked_labels(labels: object, rows: int, where: str) -> Tensor:
    """Labels as whole numbers on the CPU, one for each example.

    Raises:
        InputError: If they are none.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != (rows,):
        got = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(where, f"a whole number for each of {rows} examples", got, "Give one label per example.")
    return labels.long().cpu()


def selectivity_of(responses: Responses, labels: Tensor, classes: tuple[int, ...]) -> Selectivity:
    """Selectivity from responses; see `selectivity`.

    Args:
        responses: Of units to stimuli.
        labels: Class of each stimulus.
        classes: For which it is wanted; stimuli of other classes count among the others.

    Raises:
        InputError: Fewer than two classes, or one with too few stimuli.
    """
    counts = tuple(int((labels == label).sum()) for label in classes)
    few = [(label, count) for label, count in zip(classes, counts, strict=True) if not 2 <= count <= len(labels) - 2]
    if few or len(classes) < 2:
        got = f"{few[0][1]} of {len(labels)} of class {few[0][0]}" if few else f"{len(classes)} class"
        raise InputError(
            "selectivity", "two classes or more, each with 2 stimuli and 2 of others", got, "Give more stimuli."
        )
    found = {}
    for layer, values in responses.layers.items():
        columns = []
        for label in classes:
            own, rest = values[labels == label], values[labels != label]
            apart = own.mean(0) - rest.mean(0)
            spread = ((own.var(0) + rest.var(0)) / 2).sqrt()
            columns.append(torch.where(apart == 0, 0.0, apart / spread))
        found[layer] = torch.stack(columns, 1)
    return Selectivity(classes, counts, found, responses.unknown)


def clusters(places: Tensor, counts: Sequence[int], where: str) -> dict[int, list[tuple[int, ...]]]:
    """Units in groups of neighbours, by Ward's hierarchical clustering; groups of a larger number lie within others.

    Args:
        places: Where each unit is, [units, dimensions].
        counts: Numbers of groups that are wanted.
        where: Name of the layer, for messages.

    Returns:
        Number of groups -> groups, by their first unit. Fewer where there are no more different places.

    Raises:
        InputError: Too many units, or places that are not finite.

    Example:
        >>> clusters(torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0]]), [2, 3], "fc")
        {2: [(0, 1), (2, 3, 4)], 3: [(0, 1), (2, 3), (4,)]}

    Source: Ward, 1963, "Hierarchical grouping to optimize an objective function", as in scipy.
    """
    units = len(places)
    if units > LARGEST:
        raise InputError(f"layer {where!r}", f"at most {LARGEST} units to cluster", units, "Leave it out: --layers.")
    if not bool(places.isfinite().all()):
        raise InputError(f"layer {where!r}", "finite responses", "NaN or infinite ones")
    if units < 2:
        return {count: [tuple(range(units))] for count in counts}
    from scipy.cluster.hierarchy import fcluster, linkage  # slow to import

    tree = linkage(places.double().cpu().numpy(), "ward")
    found = {}
    for count in counts:
        groups: dict[int, list[int]] = {}
        for unit, number in enumerate(fcluster(tree, count, "maxclust").tolist()):
            groups.setdefault(number, []).append(unit)
        found[count] = [tuple(group) for group in groups.values()]
    return found


def profiles(values: Tensor) -> Tensor:
    """Responses as points whose squared distance is 2 (1 - r), r the correlation of two units over stimuli.

    Args:
        values: [examples, units].

    Returns:
        [units, examples]; zero for a unit that always responds the same.
    """
    centred = (values - values.mean(0)).T
    length = centred.norm(dim=1, keepdim=True)
    flat = length <= 1e-12 * values.abs().amax(0)[:, None] * math.sqrt(len(values))
    return torch.where(flat, 0.0, centred / length.clamp(min=torch.finfo(torch.float64).tiny))
