"""A map of vulnerability as a table with a line per unit: CSV, and Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from planaria.study.unit_map import Vulnerability


def columns(found: Vulnerability) -> dict[str, list[Any]]:
    """Name -> values, one per unit, layer after layer; None where something is not known."""
    classes = max((len(row) for layer in found.layers for row in (layer.by_class or ())[:1]), default=0)
    names = ["layer", "unit", "kind", "score", "lost", "low", "high", "rose", "fell"]
    names += ["direct", "total_margin", "compensation", *(f"lost_class_{number}" for number in range(classes))]
    made: dict[str, list[Any]] = {name: [] for name in names}
    for layer in found.layers:
        count = len(layer.lost)
        nothing = [None] * count
        made["layer"] += [layer.layer] * count
        made["unit"] += range(count)
        made["kind"] += [layer.kind] * count
        made["score"] += [_known(found.intact - loss) for loss in layer.lost]
        for name, values in (("lost", layer.lost), ("low", layer.low), ("high", layer.high)):
            made[name] += [_known(value) for value in values]
        for name, counts in (("rose", layer.rose), ("fell", layer.fell)):
            made[name] += counts or nothing
        effects = {"direct": layer.direct, "total_margin": layer.total, "compensation": layer.compensation}
        for name, effect in effects.items():
            made[name] += nothing if effect is None else [_known(value) for value in effect]
        for number in range(classes):
            rows = layer.by_class
            made[f"lost_class_{number}"] += nothing if rows is None else [_known(row[number]) for row in rows]
    return made


def table(found: Vulnerability) -> str:
    """The table as CSV; empty cells where something is not known."""
    made = columns(found)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(made)
    writer.writerows(zip(*made.values(), strict=True))
    return text.getvalue()


def parquet(found: Vulnerability) -> bytes | None:
    """The table as a Parquet file; None without pyarrow."""
    return parquet_of(columns(found))


def parquet_of(columns: Mapping[str, list[Any]]) -> bytes | None:
    """Columns of one length as a Parquet file; None without pyarrow."""
    if find_spec("pyarrow") is None:
        return None
    arrow, writer = import_module("pyarrow"), import_module("pyarrow.parquet")
    content = io.BytesIO()
    writer.write_table(arrow.table(columns), content)
    return content.getvalue()


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
