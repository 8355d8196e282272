"""Relevance: how much a network's outputs depend on each row of what its readers make.

An example may have many rows, tokens or positions, and some of them count for nothing: padding, or every token but
the first where a classifier reads only that. A refit that fits them all alike spends its freedom on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.repair.reader import Reader
from planaria.sweep.program import Program

DRAWS = 2
"""Random directions in which the outputs are looked at."""
_BATCH = 64
"""Examples per backward pass."""

Weights = Mapping[tuple[str, int], Tensor]
"""Reader's weight and number of the call -> weight of each row [rows]; left out where all weigh the same."""


def needed(found: Mapping[str, Reader]) -> bool:
    """Whether some examples have several rows in a reader."""
    return any(reader.each * len(reader.outs) > 1 for reader in found.values())


def program_for(net: Network, found: Mapping[str, Reader], inputs: Tensor) -> Program | None:
    """The network as a program that gives its outputs on these inputs; None where there is none, or no need of it."""
    if not needed(found):
        return None
    program = Program.of(net)
    if isinstance(program, str) or not program.holds(inputs[:_BATCH], net(inputs[:_BATCH])):
        return None
    return program


def relevance(
    program: Program | None, found: Mapping[str, Reader], inputs: Tensor, order: Mapping[str, str]
) -> tuple[Weights, Cost]:
    """Weight of the rows of readers: the size of the outputs' derivative, relative to the example's other rows.

    w_r = |d(u . f) / dz_r|, root mean square over random directions u, the same for all examples, divided by its mean
    over the rows of the example. Needs no labels. How much an example counts as a whole is not decided here.

    Args:
        program: Of the intact network; without one all rows weigh the same.
        found: Readers of passes of several inputs.
        inputs: [examples, ...].
        order: Of the rows, from `rows_of`.

    Returns:
        Weights of the readers of which examples have several rows, and the cost.
    """
    made = {} if program is None else {op.tag: op.writes[0] for op in program.ops if op.live}
    asked: list[_Asked] = []
    for name, reader in found.items():
        if name in order and reader.each * len(reader.outs) > 1:
            calls = {call: value for call, tag in enumerate(reader.outs) if (value := made.get(tag)) is not None}
            asked += [_Asked(reader, call, value) for call, value in calls.items()]
    if program is None or not asked:
        return {}, Cost()
    parts = [_sizes(program, asked, inputs[at : at + _BATCH], order) for at in range(0, len(inputs), _BATCH)]
    sizes = [torch.cat(some) for some in zip(*parts, strict=True)]
    weights: dict[tuple[str, int], Tensor] = {}
    for name in dict.fromkeys(one.reader.weight for one in asked):
        mine = [(one.call, size) for one, size in zip(asked, sizes, strict=True) if one.reader.weight == name]
        mean = torch.stack([size for _, size in mine]).mean((0, 2))[:, None]
        for call, size in mine:
            share = torch.where(mean > 0, size / mean.clamp_min(1e-30), torch.ones_like(size))
            weights[name, call] = (share if order[name] == "together" else share.T).flatten()
    passes = -(-len(inputs) // _BATCH) * DRAWS
    cost = Cost(
        examples=DRAWS * len(inputs),
        forward_passes=passes,
        backward_passes=passes,
        multiply_adds=3 * DRAWS * len(inputs) * program.work,
    )
    return weights, cost


@dataclass(frozen=True, eq=False)
class _Asked:
    """A call of a reader whose rows are weighed, and the value of the program that it makes."""

    reader: Reader
    call: int
    value: int


def _sizes(program: Program, asked: list[_Asked], part: Tensor, order: Mapping[str, str]) -> list[Tensor]:
    """For each call, how large the derivatives of its rows are [examples, rows of each]."""
    total: list[Tensor] = []
    for draw in range(DRAWS):
        rng = stream(draw, "relevance")

        def along(outputs: Tensor, rng: torch.Generator = rng) -> Tensor:
            direction = torch.randn(outputs.shape[1:], generator=rng, dtype=torch.double).to(outputs)
            return (outputs * direction).reshape(len(part), -1).sum(1)

        _, pairs = program.slopes(part, [one.value for one in asked], along)
        squares = [slope.double().square() for _, slope in pairs]
        total = squares if not total else [a + b for a, b in zip(total, squares, strict=True)]
    found = []
    for one, square in zip(asked, total, strict=True):
        rows = one.reader.outputs(square).sum((0, 2)).sqrt()
        together = order[one.reader.weight] == "together"
        found.append(rows.view(len(part), -1) if together else rows.view(-1, len(part)).T)
    return found
