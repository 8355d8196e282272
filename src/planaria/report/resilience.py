"""Resilience in words and tables: what derivatives predict beside what deletions do.

All of it is read from `document["resilience"]`; the figures are made in `resilience_figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planaria.report.reading import (
    DASH,
    Document,
    Notation,
    amount,
    count,
    interval,
    number,
    part,
    records,
    seconds,
    written,
)
from planaria.report.tables import Table, cell, table, trimmed
from planaria.report.vulnerability import listed, quantity
from planaria.report.words import listing, name_of

GUIDES = {"gate": "map", "magnitude": "outgoing norm", "activation": "norm times activation"}
TOLD = {"change": "change of the outputs", "loss": "rise of the test loss"}
SETS = {"greedy": "greedy, with cross terms", "alone": "the largest alone", "random": "random"}
# Beyond these the page would be unreadable; units.csv beside it has all.
_LAYERS, _UNITS = 60, 20


@dataclass(frozen=True)
class Found:
    """A result, read once.

    Attributes:
        document: The whole of it.
        result: Its resilience; empty where there is none.
        notation: How scores are written.
    """

    document: Document
    result: Mapping[str, Any]
    notation: Notation

    @staticmethod
    def of(document: Document) -> Found:
        """Read a document."""
        return Found(document, part(document, "resilience"), Notation.of(document))

    @property
    def layers(self) -> list[Mapping[str, Any]]:
        """Layers of the map."""
        return [layer for layer in records(self.result.get("layers")) if listed(layer.get("predicted"))]

    @property
    def trials(self) -> list[Mapping[str, Any]]:
        """Units that were really silenced."""
        return records(part(self.result, "trials").get("units"))

    @property
    def changed(self) -> str:
        """What is changed, in words."""
        of = str(self.result.get("of") or "outputs")
        return of if of == "outputs" else f"outputs ({of})"

    def guide(self, name: str, told: str) -> Mapping[str, Any]:
        """What is said of a guide; empty where nothing is."""
        rows = records(part(self.result, "trials").get("guides"))
        return next((row for row in rows if (row.get("guide"), row.get("told")) == (name, told)), {})

    def breakdown(self, along: str) -> Mapping[str, Any]:
        """How damage grows along a path or by count; empty where it is not known."""
        rows = records(self.result.get("breakdowns"))
        return next((row for row in rows if row.get("along") == along), {})


def headline(found: Found) -> str:
    """How well the map predicts deletions, and the most vulnerable unit."""
    top, related = records(found.result.get("top")), interval(found.guide("gate", "change").get("correlation"))
    slope = interval(part(found.result, "trials").get("slope"))
    if not top:
        return "No unit has been measured"
    first = f"{top[0].get('layer')}[{top[0].get('unit')}] is the most vulnerable unit"
    if related[1] is None or slope[1] is None:
        return first
    return (
        f"{first}; predicted and actual change of the outputs agree with a rank correlation of {related[1]:.2f} and a "
        f"slope of {slope[1]:.2f}"
    )


def fact(found: Found) -> tuple[str, str, str]:
    """Units silenced, as one of the numbers at the top."""
    return "Units silenced", count(len(found.trials)), f"of {count(number(found.result.get('units')))} on the map"


def verdict(found: Found) -> list[tuple[str, list[str]]]:
    """Question, answer, certainty and price, each as a list of sentences."""
    network = name_of(found.document.get("network"), "the network")
    task = name_of(found.document.get("task"), "its task")
    question = f"What would {network} lose on {task} with each unit, told from derivatives alone, and is that true?"
    answer = [f"{headline(found)}."]
    for one in records(found.document.get("verdicts"))[1:]:
        answer.append(f"{one.get('question')} {one.get('answer')}.")
    examples, judged = (number(found.result.get(key)) for key in ("examples", "judged"))
    sure = ["Predictions are of first order: exact where the outputs are linear in what a unit emits."]
    if examples is not None:
        sure.append(
            f"Changes are means over {quantity(examples, 'training input')}, without labels"
            + (f"; losses and scores over {quantity(judged, 'test input')}." if judged else ".")
        )
    spent = number(found.result.get("seconds"))
    done = [f"{count(number(found.result.get('units')))} units, {seconds(spent)}."] if spent is not None else []
    return [("Question", [question]), ("Answer", answer), ("Certainty", sure), *([("Computed", done)] if done else [])]


def layer_table(found: Found) -> Table | None:
    """Per layer: units, dead ones, mean and largest predicted change."""
    lines = []
    for layer in found.layers[:_LAYERS]:
        values = [number(value) or 0.0 for value in listed(layer.get("predicted"))]
        worst = max(range(len(values)), key=lambda unit, values=values: values[unit])  # type: ignore[misc]
        lines.append(
            [
                cell(str(layer.get("layer"))),
                cell(count(len(values))),
                cell(count(number(layer.get("dead")))),
                cell(amount(sum(values) / len(values))),
                cell(amount(values[worst])),
                cell(str(worst)),
            ]
        )
    heads = ["layer", "units", "dead", "mean", "largest", "of unit"]
    return table(heads, [("", lines)], groups=[("", 3), ("predicted squared change", 3)]) if lines else None


def guide_table(found: Found) -> Table | None:
    """How well each guide tells what a deletion does."""
    lines = []
    for name, word in GUIDES.items():
        line = [cell(word)]
        for told in TOLD:
            row = found.guide(name, told)
            line += [cell(*written(row.get("correlation"), _two)), cell(*written(row.get("gate_better_by"), _two))]
            line += [cell(_p(number(row.get("p_value"))))]
        lines.append(line)
    heads = ["guide", *["rank correlation", "map better by", "p"] * 2]
    if not any(entry["value"] != DASH for line in lines for entry in line[1:]):
        return None
    return trimmed(table(heads, [("", lines)], groups=[("", 1), *((told, 3) for told in TOLD.values())]))


def set_table(found: Found) -> Table | None:
    """Sets of units: predicted with and without cross terms, actual, score lost."""
    rows, blocks = records(found.result.get("sets")), []
    for how, word in SETS.items():
        some = [row for row in rows if row.get("how") == how]
        if not some:
            continue
        means = [_mean([number(row.get(key)) for row in some]) for key in ("predicted", "additive", "actual", "lost")]
        units = ", ".join(f"{layer}[{unit}]" for layer, unit in listed(some[0].get("units"))[:_UNITS])
        blocks.append(
            [
                cell(word if how != "random" else f"random, mean of {len(some)}"),
                *(cell(amount(value)) for value in means[:3]),
                cell(DASH if means[3] is None else found.notation.gain(means[3]).replace("+", "")),
                cell(units if how != "random" else DASH),
            ]
        )
    heads = ["set", "with cross terms", "as a sum", "actual", "score lost", "units"]
    groups = [("", 1), ("predicted squared change", 2), ("", 3)]
    return trimmed(table(heads, [("", blocks)], groups=groups)) if blocks else None


def break_table(found: Found) -> Table | None:
    """Where damage breaks down: how many lesions, and the place by which half of them do."""
    lines = []
    for along, where in (("path", "along the path, t"), ("count", "by number, share of the units")):
        curve = found.breakdown(along)
        for kind, word in (("faster", "speed over 3 times the first"), ("worse", "score lost")):
            known = part(curve, kind)
            if not known:
                continue
            allowed = number(curve.get("allowed"))
            told = f"{word} ({found.notation.gain(allowed).replace('+', '')})" if kind == "worse" else word
            median = written(known.get("median"), _two)
            reached = sum(place is not None for place in listed(known.get("each")))
            lines.append(
                [
                    cell(where),
                    cell(told),
                    cell(f"{reached} of {len(listed(known.get('each')))}"),
                    cell(*(("not reached", "") if median[0] == DASH else median)),
                ]
            )
    heads = ["", "break-down", "lesions", "half of them by"]
    return table(heads, [("", lines)]) if lines else None


def spectrum_sentence(found: Found) -> str:
    """Stiff directions, effective dimension; empty without a spectrum."""
    spectrum = part(found.result, "spectrum")
    stiff = [
        f"{count(number(one.get('directions')))} above {100 * (number(one.get('above')) or 0.0):g}%"
        for one in records(spectrum.get("stiff"))
    ]
    if not stiff:
        return ""
    text = f"Of {count(number(spectrum.get('bound')))} directions {listing(stiff)} of the largest eigenvalue"
    dimension = interval(spectrum.get("dimension"))[1]
    return text if dimension is None else f"{text}; effective dimension {dimension:.1f}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _two(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"


def _p(value: float | None) -> str:
    return DASH if value is None else "< 0.001" if value < 0.001 else f"{value:.2g}"
