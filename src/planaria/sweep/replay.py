"""Replay: scores of damaged networks from a recorded pass, of which only what the damage reaches is run again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planaria.core.anatomy import Anatomy, Unit
from planaria.core.network import Network
from planaria.measure.task import FORWARD_BATCH
from planaria.sweep.program import Program
from planaria.sweep.tally import Judge, Tally

CACHE = 4 << 20
"""Bytes that an operation may read and write at a time on the CPU, so that they stay in its cache."""

DEVICE_CACHE = 1 << 28
"""The same on other devices, where large operations are the fast ones."""


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


@dataclass(frozen=True, eq=False)
class Selection:
    """Some units of one layer: layer, and their numbers (ascending)."""

    layer: str
    units: tuple[int, ...]


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
        if edit_next:
            outs = _outs(program, one.layer)
            keep |= {read.at for read in program.reads[one.layer]} | outs | program.needs(outs)
        else:
            keep |= program.needs(program.first([one.layer]))
    for x, t in chunks(inputs, targets, chunk_size(program, inputs.device)):
        base = program.run(x, keep=keep)
        intact = judge.values(base[program.output], t)
        for one in chosen:
            idle = _idle(program, one.layer, base)
            for place, unit in enumerate(one.units):
                if idle[unit]:
                    continue
                if edit_next:
                    reads = program.reads[one.layer]
                    outputs = program.resume(base, dict(program.read(read, base, unit) for read in reads))
                else:
                    outputs = program.silence(base, {one.layer: [unit]})
                tallies[one.layer].note(place, judge.values(outputs, t), intact, t)
    return tallies


def _outs(program: Program, layer: str) -> set[int]:
    outs = (program.ops[read.op].writes[0] for read in program.reads[layer])
    return {out for out in outs if out is not None}


def _idle(program: Program, layer: str, base: Mapping[int, Tensor]) -> list[bool]:
    """Units that emit zeros for all of these examples: silencing them changes nothing."""
    gates = program.gates[layer]
    count = max(int(gate.owner.max()) for gate in gates) + 1
    if len(gates) > 1:
        return [False] * count
    busy = torch.zeros(count, dtype=torch.bool)
    gate, value = gates[0], base[gates[0].at]
    lines = (value != 0).movedim(gate.axis, 0).flatten(1).any(1).cpu()
    if gate.axis == gate.rows.axis:
        blocks = lines.view(-1, len(gate.owner)) if gate.rows.together else lines.view(len(gate.owner), -1).T
        lines = blocks.any(0)
    busy[gate.owner[lines & (gate.owner >= 0)]] = True
    return (~busy).tolist()


@dataclass(frozen=True, eq=False)
class Lesion:
    """What is wrong with one version of a network: units that are silent, or weights that are others.

    Attributes:
        units: Layer -> numbers of silenced units.
        weights: Name -> damaged weight; weights left out are intact.
    """

    units: Mapping[str, tuple[int, ...]]
    weights: Mapping[str, Tensor]

    @staticmethod
    def of(lesion: Network | Unit | Iterable[Unit], net: Network) -> Lesion:
        """From a unit, units, or a damaged version of the network (what it shares with the intact one is found)."""
        if isinstance(lesion, Network):
            changed = {
                name: weight
                for name, weight in lesion.weights.items()
                if weight is not net.weights[name] and not torch.equal(weight, net.weights[name])
            }
            return Lesion({}, changed)
        units: dict[str, list[int]] = {}
        for unit in [lesion] if isinstance(lesion, Unit) else lesion:
            units.setdefault(unit.layer, []).append(unit.index)
        return Lesion({layer: tuple(sorted(set(numbers))) for layer, numbers in units.items()}, {})

    def replayable(self, program: Program) -> bool:
        """Whether a program can be resumed with it."""
        return all(layer in program.gates for layer in self.units)


def replayed_lesions(
    program: Program, lesions: Sequence[Lesion], inputs: Tensor, targets: Tensor, judge: Judge
) -> Tally:
    """Tally of lesions, one after another, by running again what each reaches.

    Args:
        program: Of the intact network.
        lesions: Replayable ones.
        inputs: [examples, ...].
        targets: [examples, ...].
        judge: How outputs are scored.
    """
    tally = Tally.zeros((len(lesions),), judge.classes)
    keep = base_of(program, lesions)
    for x, t in chunks(inputs, targets, chunk_size(program, inputs.device)):
        base = program.run(x, keep=keep)
        intact = judge.values(base[program.output], t)
        for place in range(len(lesions)):
            tally.note(place, judge.values(resumed(program, base, lesions[place]), t), intact, t)
    return tally


def base_of(program: Program, lesions: Sequence[Lesion]) -> set[int]:
    """Values that must be kept of an intact pass, so that it can be resumed with any of these lesions."""
    keep: set[int] = set()
    for place in range(len(lesions)):
        lesion = lesions[place]
        first = program.first(lesion.units) if lesion.units else frozenset(_weights(program, lesion))
        keep |= program.needs(first) | (first - program.held.keys())
    return keep


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

    Nothing is pinned, and of what belongs to a unit only as much is zeroed as silences it.
    """
    net = net.with_weights(lesion.weights) if lesion.weights else net
    units = [Unit(layer, number) for layer, numbers in lesion.units.items() for number in numbers]
    if not units:
        return net
    anatomy = Anatomy.of(net)
    slices = anatomy.entries(units)
    outwards = all(group.exact_by != "incoming" for group in anatomy.groups if group.layer in lesion.units)
    entries = slices.outgoing if outwards else slices.all
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
    for place in range(len(lesions)):
        hurt = edited(net, lesions[place])
        parts = [judge.values(hurt(x), t) for x, t in chunks(inputs, targets, FORWARD_BATCH)]
        tally.note(place, torch.cat(parts), intact, targets)
    return tally
