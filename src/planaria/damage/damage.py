"""Damage = fault x site: n + m small values instead of n x m classes."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from torch import Generator

from planaria.core.anatomy import Unit
from planaria.core.errors import InputError, nearest
from planaria.core.network import Network
from planaria.damage.faults import Fault, Noise, Silence, StuckAt
from planaria.damage.sites import Dose, RandomEntries, RandomUnits, RankedUnits, Site


@dataclass(frozen=True)
class Damage:
    """A fault at a site; `at(dose)` makes it an operator.

    Args:
        fault: What happens to the selected values.
        site: Which values, and what the dose counts.

    Example:
        >>> import torch
        >>> from planaria.core.streams import stream
        >>> net = Network.of(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)),
        ...                  torch.zeros(1, 2))
        >>> hurt = Damage(Silence(), RandomUnits()).at(0.5)(net, stream(0, "lesion"))
        >>> int((hurt.weights["2.weight"] == 0).sum())
        2
    """

    fault: Fault
    site: Site

    def __post_init__(self) -> None:
        for part, method in (("fault", "strike"), ("site", "select")):
            if not hasattr(getattr(self, part), method):
                raise InputError(
                    f"Damage.{part}", f"a {part}, something with .{method}", repr(getattr(self, part))[:100]
                )

    def at(self, amount: float) -> Strike:
        """The operator that does this damage at the given dose.

        Raises:
            InputError: If the dose lies outside its axis.
        """
        return Strike(self, self.site.dose.check(amount))


@dataclass(frozen=True)
class Strike:
    """Damage at a dose; made by `Damage.at`. At dose 0 it returns the network it was given."""

    damage: Damage
    amount: float

    def __call__(self, net: Network, rng: Generator, /) -> Network:
        """The damaged network."""
        slices = self.damage.site.select(net, self.amount, rng)
        return self.damage.fault.strike(net, slices, rng) if slices.all else net

    def __repr__(self) -> str:
        return f"{self.damage!r}.at({self.amount!r})"


_NAMES: dict[str, Any] = {
    made.__name__: made
    for made in (Damage, Silence, StuckAt, Noise, RandomUnits, RankedUnits, RandomEntries, Dose, Unit)
}


def parse_damage(text: str) -> Damage:
    """Read a damage from its `repr`; names outside the closed list are refused, nothing is evaluated.

    Args:
        text: For example "Damage(Silence(), RandomUnits(per_layer=True))".

    Raises:
        InputError: On anything that is not a damage written with the known names and plain values.

    Example:
        >>> parse_damage("Damage(StuckAt(1), RandomUnits())").fault
        StuckAt(value=1, lasting=True)
    """
    try:
        value = _build(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("damage", "an expression like Damage(Silence(), RandomUnits())", repr(text[:100])) from error
    if not isinstance(value, Damage):
        raise InputError("damage", "a Damage(fault, site)", repr(text[:100]))
    return value


def _build(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        made = _NAMES.get(node.func.id)
        if made is None:
            raise InputError("damage", "a known name", node.func.id, nearest(node.func.id, _NAMES))
        if any(keyword.arg is None for keyword in node.keywords):
            raise InputError("damage", "arguments by name", "**")
        positional = [_build(argument) for argument in node.args]
        named = {str(keyword.arg): _build(keyword.value) for keyword in node.keywords}
        try:
            return made(*positional, **named)
        except TypeError as error:
            raise InputError(f"damage: {node.func.id}", "its own arguments", str(error)) from error
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_build(element) for element in node.elts)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise InputError("damage", "plain values and known names", ast.unparse(node)[:100]) from error
