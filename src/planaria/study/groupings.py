"""Groupings: which units are silenced together, and which random lesions each group is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from planaria.core.anatomy import Group, Unit
from planaria.core.errors import InputError, nearest
from planaria.core.streams import stream
from planaria.study.selectivity import Responses, Selectivity, clusters, profiles

LAYER, CLUSTER, SELECTIVITY = "layer", "cluster", "selectivity"
ANYWHERE, SELECTIVE = "anywhere", "as the selective lesions"
"""Control lesions of whole layers; of units chosen in every layer. Those of clusters go by the name of the layer."""


@dataclass(frozen=True)
class ByLayer:
    """Every layer as a whole. Its controls are as many units drawn from all layers."""


@dataclass(frozen=True)
class ByCluster:
    """Units of a layer that respond alike, or lie near each other. Controls are as many units of the same layer.

    Args:
        counts: Numbers of clusters that each layer is cut into; clusters of a larger number lie within others.
        positions: Layer -> coordinates of its units [units, dimensions], where units have places (a sheet). Without
            them units are near each other whose responses correlate over stimuli.

    Raises:
        InputError: No number of at least 2.
    """

    counts: tuple[int, ...] = (2, 4, 8)
    positions: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 2:
            raise InputError("ByCluster.counts", "numbers of clusters of at least 2", self.counts)


@dataclass(frozen=True)
class BySelectivity:
    """For every class the units of each layer that are most selective for it. Controls are as many of each layer.

    Args:
        share: Of the units of each layer; at least one is taken.

    Raises:
        InputError: A share that is not above 0 and below 1.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError("BySelectivity.share", "a share above 0 and below 1", self.share)

    def size(self, units: int) -> int:
        """How many units of a layer are taken."""
        return max(1, min(units - 1, round(self.share * units)))


By = ByLayer | ByCluster | BySelectivity


@dataclass(frozen=True, eq=False)
class Chosen:
    """Units that are silenced together.

    Attributes:
        key: Short name, different for each.
        grouping: LAYER, CLUSTER or SELECTIVITY.
        name: For people.
        units: Layer -> numbers.
        control: Which random lesions it is compared with; None where there are no other units.
        place: Place of the class that they are selective for.
    """

    key: str
    grouping: str
    name: str
    units: Mapping[str, tuple[int, ...]]
    control: str | None
    place: int | None = None

    @property
    def size(self) -> int:
        """Number of units."""
        return sum(map(len, self.units.values()))

    @property
    def lesion(self) -> list[Unit]:
        """The units one by one."""
        return [Unit(layer, number) for layer, numbers in self.units.items() for number in numbers]


def grouped(
    by: Sequence[By],
    groups: Sequence[Group],
    responses: Responses | None,
    selective: Selectivity | None,
    names: Sequence[str],
) -> tuple[list[Chosen], list[str]]:
    """The lesions of all groupings.

    Args:
        by: The groupings.
        groups: Layers with their units.
        responses: Of units to stimuli; needed for clusters without positions.
        selective: Selectivity of units; needed for lesions by selectivity.
        names: Of the classes.

    Returns:
        The lesions, and what had to be left out, in words.
    """
    found: list[Chosen] = []
    notes: list[str] = []
    sizes = {group.layer: group.count for group in groups}
    for one in by:
        if isinstance(one, ByLayer):
            control = ANYWHERE if len(sizes) > 1 else None
            whole = {layer: tuple(range(count)) for layer, count in sizes.items()}
            found += [Chosen(f"layer:{layer}", LAYER, layer, {layer: all_}, control) for layer, all_ in whole.items()]
        elif isinstance(one, ByCluster):
            found += _clustered(one, sizes, responses, notes)
        elif selective is not None:
            layers = [layer for layer in sizes if layer in selective.layers and sizes[layer] > 1]
            for place, label in enumerate(selective.classes):
                units = {layer: tuple(sorted(selective.top(layer, label, one.size(sizes[layer])))) for layer in layers}
                name = f"selective for {names[place]}"
                found.append(Chosen(f"selective:{names[place]}", SELECTIVITY, name, units, SELECTIVE, place))
            notes += [f"{layer} has no selective units: {why}." for layer, why in selective.unknown.items()]
    return [one for one in found if one.size], notes


def _clustered(one: ByCluster, sizes: Mapping[str, int], responses: Responses | None, notes: list[str]) -> list[Chosen]:
    positions = one.positions or {}
    for layer, places in positions.items():
        if layer not in sizes:
            raise InputError("positions", f"layers among {', '.join(sizes)}", repr(layer), nearest(layer, sizes))
        if places.ndim != 2 or len(places) != sizes[layer]:
            raise InputError(
                f"positions[{layer!r}]", f"coordinates of {sizes[layer]} units, [units, d]", list(places.shape)
            )
    found: list[Chosen] = []
    for layer, count in sizes.items():
        if positions and layer not in positions:
            continue
        if layer in positions:
            places = positions[layer].double()
        elif responses is not None and layer in responses.layers:
            places = profiles(responses.layers[layer])
        else:
            why = "" if responses is None else responses.unknown.get(layer, "")
            notes.append(f"{layer} has no clusters: {why or 'its responses are not known'}.")
            continue
        counts = sorted({number for number in one.counts if number < count})
        seen = {tuple(range(count))}
        for number, members in clusters(places, counts, layer).items():
            for at, units in enumerate(members):
                if units not in seen:
                    name = f"{layer}, cluster {at + 1} of {number}"
                    found.append(Chosen(f"cluster:{layer}:{at + 1}/{number}", CLUSTER, name, {layer: units}, layer))
                seen.add(units)
    return found


@dataclass(frozen=True, eq=False)
class Controls:
    """Random lesions: orders of units, and how many of each order are silenced.

    Attributes:
        orders: Units, one order per draw.
        counts: Ascending numbers of units.
    """

    orders: tuple[tuple[Unit, ...], ...]
    counts: tuple[int, ...]


def controls(chosen: Sequence[Chosen], groups: Sequence[Group], draws: int, seed: int) -> dict[str, Controls]:
    """Random lesions for every lesion that has any: drawn from all units of the same layers, as many from each.

    Args:
        chosen: The lesions.
        groups: Layers with their units.
        draws: How many for each size.
        seed: Of the draws.
    """
    sizes = {group.layer: group.count for group in groups}
    wanted: dict[str, set[int]] = {}
    for one in chosen:
        if one.control is not None:
            wanted.setdefault(one.control, set()).add(one.size)
    found = {}
    for key, counts in wanted.items():
        orders = []
        for draw in range(draws):
            rng = stream(seed, "control lesion", key, draw)
            if key == SELECTIVE:  # all lesions by selectivity take the same number of units of each layer
                like = next(one for one in chosen if one.control == SELECTIVE)
                order = [
                    Unit(layer, number)
                    for layer, numbers in like.units.items()
                    for number in torch.randperm(sizes[layer], generator=rng)[: len(numbers)].tolist()
                ]
            else:
                layers = list(sizes) if key == ANYWHERE else [key]
                pool = [Unit(layer, number) for layer in layers for number in range(sizes[layer])]
                order = [pool[at] for at in torch.randperm(len(pool), generator=rng).tolist()]
            orders.append(tuple(order[: max(counts)]))
        found[key] = Controls(tuple(orders), tuple(sorted(counts)))
    return found
