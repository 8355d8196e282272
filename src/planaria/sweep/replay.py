"""Replay: scores of damaged networks from a recorded pass, of which only what the damage reaches is run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from planaria.core.anatomy import Anatomy, Unit
from planaria.core.network import Network
from planaria.measure.task import FORWARD_BATCH
from planaria.sweep.lesions import Lesion, Selection
from planaria.sweep.program import Program
from planaria.sweep.tally import Judge, Tally

CACHE = 8 << 20
"""Bytes that an operation may read and write at a time on the CPU, so that they stay in its cache."""

DEVICE_CACHE = 1 << 28
"""The same on other devices, where large operations are the fast ones."""

JUDGED = 1 << 16
"""Numbers of outputs that are scored at a time."""


def chunk_size(program: Program, device: torch.device) -> int:
    """Examples per pass for which the activations stay in cache.

    Args:
        program: Of any network.
        device: Where it runs.

    Returns:
        From 8 to 1,024 on the CPU, to 16,384 elsewhere.
    """
    live = max(
        sum(program.bytes.get(at, 0) for at in [*op.reads, *(op.writes)] if at is not None) for op in program.ops
    )
    room, most = (CACHE, 1024) if device.type == "cpu" else (DEVICE_CACHE, 16384)
    return max(8, min(most, room // max(1, live)))


def chunks(inputs: Tensor, targets: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets, some rows at a time."""
    return zip(torch.split(inputs, size), torch.split(targets, size), strict=True)


def replayed_units(
    program: Program,
    chosen: Sequence[Selection],
    inputs: Tensor,
    targets: Tensor,
    judge: Judge,
    *,
    edit_next: bool = False,
) -> dict[str, Tally]:
    """Tallies of units silenced one at a time, by running again what depends on them.

    Args:
        program: Of the network.
        chosen: Layers that have gates, and which of their units.
        inputs: [examples, ...].
        targets: [examples, ...].
        judge: How outputs are scored.
        edit_next: Take the unit's contribution out of the products that read it, instead of running them again
            (exact up to rounding; for layers in `program.reads`).

    Returns:
        Layer -> tally of the chosen units. Without `edit_next` bit-identical to silencing the unit in the network.
    """
    tallies = {one.layer: Tally.zeros((len(one.units),), judge.classes) for one in chosen}
    keep: set[int] = set()
    for one in chosen:
        keep |= {gate.at for gate in program.gates[one.layer]}
        keep |= program.needs(program.first([one.layer]))
        if edit_next:
            outs = program.products(one.layer)
            keep |= {read.at for read in program.reads[one.layer]} | outs | program.needs(outs)
    for x, t in chunks(inputs, targets, chunk_size(program, inputs.device)):
        base = program.run(x, keep=keep)
        intact = judge.values(base[program.output], t)
        for one in chosen:
            outputs = _silencing(program, one, base, edit_next=edit_next)
            _note(tallies[one.layer], _active(program, one, base), outputs, intact, t, judge)
    return tallies


def _silencing(
    program: Program, chosen: Selection, base: Mapping[int, Tensor], *, edit_next: bool
) -> Callable[[int], Tensor]:
    """Place among the chosen units -> outputs with that unit silenced."""
    layer = chosen.layer
    heavy = program.outweighing(layer, base) if edit_next else frozenset()

    def outputs(place: int) -> Tensor:
        unit = chosen.units[place]
        if edit_next and unit not in heavy:
            return program.resume(base, program.without(layer, base, unit))
        return program.silence(base, {layer: [unit]})

    return outputs


def _active(program: Program, chosen: Selection, base: Mapping[int, Tensor]) -> list[int]:
    """Places of the units that do not emit zeros for all of these examples: silencing the others changes nothing."""
    busy = frozenset().union(*(gate.busy(base[gate.at]) for gate in program.gates[chosen.layer]))
    return [place for place, unit in enumerate(chosen.units) if unit in busy]


def _note(
    tally: Tally, places: Sequence[int], outputs: Callable[[int], Tensor], intact: Tensor, targets: Tensor, judge: Judge
) -> None:
    """Count what some lesions do to some examples: their outputs are scored many lesions at a time."""
    at = 0
    while at < len(places):
        made = [outputs(places[at])]
        while len(made) < len(places) - at and (len(made) + 1) * made[0].numel() <= JUDGED:
            made.append(outputs(places[at + len(made)]))
        repeated = targets.repeat(len(made), *[1] * (targets.ndim - 1))
        values = judge.values(torch.cat(made), repeated).view(len(made), -1)
        tally.note(places[at : at + len(made)], values, intact, targets)
        at += len(made)


def replayed_lesions(
    program: Program,
    lesions: Sequence[Lesion],
    various: Iterable[Lesion],
    inputs: Tensor,
    targets: Tensor,
    judge: Judge,
) -> Tally:
    """Tally of lesions, one after another, by running again what each reaches.

    Args:
        program: Of the intact network.
        lesions: Replayable ones.
        various: Some of them that together reach everything that any reaches.
        inputs: [examples, ...].
        targets: [examples, ...].
        judge: How outputs are scored.
    """
    tally = Tally.zeros((len(lesions),), judge.classes)
    keep = base_of(program, various)
    for x, t in chunks(inputs, targets, chunk_size(program, inputs.device)):
        base = program.run(x, keep=keep)
        intact = judge.values(base[program.output], t)
        outputs = _damaging(program, lesions, base)
        _note(tally, range(len(lesions)), outputs, intact, t, judge)
    return tally


def _damaging(program: Program, lesions: Sequence[Lesion], base: Mapping[int, Tensor]) -> Callable[[int], Tensor]:
    """Place of a lesion -> outputs with it."""
    return lambda place: resumed(program, base, lesions[place])


def base_of(program: Program, lesions: Iterable[Lesion]) -> set[int]:
    """Values that must be kept of an intact pass, so that it can be resumed with any of these lesions."""
    keep: set[int] = set()
    for first in {reached(program, lesion) for lesion in lesions}:
        keep |= program.needs(first) | (first - program.held.keys())
    return keep


def reached(program: Program, lesion: Lesion) -> frozenset[int]:
    """Values that a lesion changes at first."""
    return program.first(lesion.units) if lesion.units else frozenset(_weights(program, lesion))


def _weights(program: Program, lesion: Lesion) -> dict[int, Tensor]:
    # A weight that the program does not hold is read by nothing.
    return {program.weights[name]: weight for name, weight in lesion.weights.items() if name in program.weights}


def resumed(program: Program, base: Mapping[int, Tensor], lesion: Lesion) -> Tensor:
    """Outputs with a lesion, from a base that holds what it needs."""
    if lesion.units:
        return program.silence(base, lesion.units)
    return program.resume(base, _weights(program, lesion))


def edited(net: Network, lesion: Lesion) -> Network:
    """The damaged network as a value of its own: brute force, for networks that cannot be replayed, and for audits.

    Of silenced units every entry is zero, so that even one that would overflow is silent; nothing is pinned.
    """
    net = net.with_weights(lesion.weights) if lesion.weights else net
    units = [Unit(layer, number) for layer, numbers in lesion.units.items() for number in numbers]
    entries = Anatomy.of(net).entries(units).all if units else {}
    return net.with_weights(
        {name: net.weights[name].masked_fill(hit.to(net.device), 0) for name, hit in entries.items()}
    )


def edited_lesions(
    net: Network, lesions: Sequence[Lesion], inputs: Tensor, targets: Tensor, judge: Judge, intact: Tensor
) -> Tally:
    """Tally of lesions by brute force: the whole damaged network, once for each, as scores are taken elsewhere.

    Args:
        net: The intact network.
        lesions: Any.
        inputs: [examples, ...].
        targets: [examples, ...].
        judge: How outputs are scored.
        intact: Scores without a lesion, [examples].
    """
    tally = Tally.zeros((len(lesions),), judge.classes)

    def outputs(place: int) -> Tensor:
        hurt = edited(net, lesions[place])
        return torch.cat([hurt(x) for x in inputs.split(FORWARD_BATCH)])

    _note(tally, range(len(lesions)), outputs, intact, targets, judge)
    return tally
