"""Lesion files: which units are dead, as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from planaria.core.anatomy import Unit
from planaria.core.errors import InputError

EXAMPLE = '{"units": {"fc1": [0, 7], "fc2": [3]}}'


def read_lesion(path: Path) -> tuple[Unit, ...]:
    """Units named in a file: layer -> indices, as they are or under the key "units".

    Raises:
        InputError: No such file, not JSON of this form, or no unit in it.
    """
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}", "a lesion file", error.strerror or type(error).__name__, "Check the path."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}", "JSON", str(error)[:80], f"For example {EXAMPLE}.") from error
    layers = value.get("units", value) if isinstance(value, dict) else None
    if not isinstance(layers, dict):
        raise InputError(
            f"{path}", "layer names with lists of indices", type(value).__name__, f"For example {EXAMPLE}."
        )
    units: list[Unit] = []
    for layer, indices in layers.items():
        good = isinstance(indices, list) and all(type(index) is int and index >= 0 for index in indices)
        if not good:
            came = json.dumps(indices)[:60]
            raise InputError(
                f"{path}: units[{layer!r}]", "a list of indices of at least 0", came, f"For example {EXAMPLE}."
            )
        units += [Unit(layer, index) for index in indices]
    if not units:
        raise InputError(f"{path}", "at least one dead unit", "none", f"For example {EXAMPLE}.")
    return tuple(dict.fromkeys(units))
