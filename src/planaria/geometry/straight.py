"""Straight lines between two networks, as they are or after alignment; where every other way begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Generator, Tensor

from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.geometry.path import Path, check_alike
from planaria.measure.task import Task

if TYPE_CHECKING:
    from planaria.geometry.align import ByActivations, ByWeights


class Way(Protocol):
    """How two networks are connected: `(a, b, task, rng) -> Path`, with its cost and notes."""

    def __call__(self, a: Network, b: Network, task: Task, rng: Generator, /) -> Path:
        """A path from a to b, or to b with its units permuted."""
        ...


@dataclass(frozen=True)
class Straight:
    """The straight line from a to b.

    Args:
        by: How b's units are first permuted to match a's; None leaves them. The path then ends at the permuted
            network, which computes the same as b.

    Example:
        >>> Straight()
        Straight(by=None)

    Source: Goodfellow, Vinyals and Saxe, 2015; after alignment Entezari et al., 2022, Ainsworth et al., 2023.
    """

    by: ByWeights | ByActivations | None = None

    def __call__(self, a: Network, b: Network, task: Task, rng: Generator, /) -> Path:
        """The line."""
        check_alike(a, b)
        if self.by is None:
            return Path((a, b), notes={"aligned": False})
        from planaria.geometry.align import align

        example = task.train.examples
        seed = int(torch.randint(2**31, (), generator=rng))
        found = align(a.with_inputs(example), b.with_inputs(example), by=self.by, seed=seed)
        moved = sum(int((p != torch.arange(len(p), device=p.device)).sum()) for p in found.permutations.values())
        notes = {"aligned": True, "symmetries": len(found.permutations), "units moved": moved}
        return Path((a, found.network), cost=found.cost, notes=notes)


def aligned() -> Straight:
    """The straight line after alignment by weights, where the other ways begin."""
    from planaria.geometry.align import ByWeights

    return Straight(ByWeights())


def begin(start: Way | Path | None, a: Network, b: Network, task: Task, rng: Generator) -> Path:
    """The path that another way starts from.

    Args:
        start: A way that finds it, or the path itself, from a; None for the straight line after alignment by weights.
        a: Where it starts.
        b: Where it should end.
        task: What the networks are for.
        rng: For the way.
    """
    way = aligned() if start is None else start
    path = way if isinstance(way, Path) else way(a, b, task, rng)
    check_alike(path.knots[0], a)
    return path


def positive(where: str, value: object, whole: bool = False, least: float = 0.0) -> None:
    """Check a setting: a finite number above 0, or of at least `least`.

    Raises:
        InputError: Another.
    """
    right = isinstance(value, int) if whole else isinstance(value, (int, float))
    if isinstance(value, bool) or not right or not (value > 0 and value >= least and value < float("inf")):  # type: ignore[operator]
        kind = "a whole number" if whole else "a finite number"
        raise InputError(where, f"{kind} {f'of at least {least:g}' if least else 'above 0'}", repr(value))


def batches(total: int, size: int, updates: int, rng: Generator) -> list[Tensor]:
    """Row numbers of so many full batches, drawn without replacement within each pass over the rows."""
    size = min(size, total)
    passes = -(-updates * size // total)
    order = torch.cat([torch.randperm(total, generator=rng) for _ in range(passes)])
    return list(order[: updates * size].split(size))
