"""The tables of a report: verdicts, the comparison of repairs, and what else changed between the stages.

A table is plain text in cells; the template escapes it. Numbers and their intervals are kept apart, so that the
page can set the interval smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from planaria.report.drawing import style
from planaria.report.reading import (
    DASH,
    Document,
    Notation,
    amount,
    best_row,
    count,
    doses,
    evenly,
    interval,
    number,
    part,
    records,
    repairs,
    rescues,
    same_dose,
    seconds,
    share,
    spent,
    written,
)

Cell = dict[str, Any]
Table = dict[str, Any]

# Beyond these the page would be unreadable; the complete rows are in results.csv beside it.
_DOSES, _REPAIRS, _KEPT, _FITS = 12, 24, 20, 400


def cell(value: str, interval: str = "", *, colour: str = "", best: bool = False, span: int = 1) -> Cell:
    """One cell of a table; a colour puts the dot of a repair before it."""
    return {"value": value, "interval": interval, "colour": colour, "best": best, "span": span}


def table(
    heads: Sequence[str], blocks: Sequence[tuple[str, list[list[Cell]]]], *, groups: Sequence[tuple[str, int]] = ()
) -> Table:
    """A table of named blocks of lines; groups of columns may have a common head above them."""
    return {
        "heads": list(heads),
        "groups": list(groups),
        "blocks": [{"title": t, "lines": lines} for t, lines in blocks],
    }


def trimmed(whole: Table) -> Table:
    """The table without the columns in which no line says anything; the first column stays."""
    lines = [line for block in whole["blocks"] for line in block["lines"]]
    kept = [at == 0 or any(line[at]["value"] != DASH for line in lines) for at in range(len(whole["heads"]))]

    def chosen(values: list[Any]) -> list[Any]:
        return [value for value, keep in zip(values, kept, strict=True) if keep]

    groups, at = [], 0
    for text, span in whole["groups"]:
        left = sum(kept[at : at + span])
        groups += [(text, left)] if left else []
        at += span
    blocks = [{**block, "lines": [chosen(line) for line in block["lines"]]} for block in whole["blocks"]]
    return {"heads": chosen(whole["heads"]), "groups": groups, "blocks": blocks}


def bills(cost: object) -> list[Cell]:
    """The ledger in the columns `BILLS`."""
    kinds = ("updates", "examples", "labels", "multiply_adds")
    return [*(cell(count(spent(cost, kind))) for kind in kinds), cell(seconds(spent(cost, "seconds")))]


BILLS = ("updates", "examples", "labels", "mult.-adds", "time")


def cards(document: Document) -> list[dict[str, Any]]:
    """The verdicts: question, answer, words, and numbers with their intervals."""
    found = []
    for verdict in records(document.get("verdicts")):
        numbers = verdict.get("numbers")
        found.append(
            {
                "question": str(verdict.get("question") or ""),
                "answer": str(verdict.get("answer") or DASH),
                "words": str(verdict.get("words") or ""),
                "numbers": [
                    {"name": str(name), "value": value, "interval": ends}
                    for name, entry in (numbers.items() if isinstance(numbers, Mapping) else ())
                    for value, ends in [_number(entry)]
                ],
            }
        )
    return found


def _number(value: object) -> tuple[str, str]:
    if isinstance(value, bool):
        return "yes" if value else "no", ""
    return (value, "") if isinstance(value, str) else written(value, amount)


def comparison(document: Document) -> dict[str, Any]:
    """One block per dose, one line per repair, the best one marked."""
    say, summary = Notation.of(document), records(document.get("summary"))
    blocks = []

    def score(estimate: object) -> str:
        # The unit stands in the head of the table.
        return say.score(interval(estimate)[1]).removesuffix("%")

    for dose in evenly(doses(document), _DOSES):
        rows = [row for row in summary if same_dose(row.get("dose"), dose)]
        best, lines = best_row(document, dose), []
        for row in rows[:_REPAIRS]:
            cost = row.get("cost") or {}
            lines.append(
                {
                    "repair": str(row.get("repair")),
                    "colour": style(str(row.get("repair"))).colour,
                    "mark": ("cheapest" if rescues(best) else "closest") if row is best else "",
                    "before": score(row.get("before")),
                    "damaged": score(row.get("damaged")),
                    "after": score(row.get("after")),
                    "interval": say.spread(interval(row.get("after"))),
                    "rescued": f"{count(number(row.get('rescued')))} of {count(number(row.get('trials')))}",
                    "total": _updates(row.get("rescue_updates")),
                    "since": _updates(row.get("rescue_updates_since_last_hit")),
                    "examples": count(number(cost.get("examples"))),
                    "labels": count(number(cost.get("labels"))),
                    "multiply_adds": count(number(cost.get("multiply_adds"))),
                    "seconds": seconds(number(cost.get("seconds"))),
                }
            )
        if lines:
            blocks.append({"dose": say.dose(dose), "lines": lines})
    shown = sum(len(block["lines"]) for block in blocks)
    return {
        "blocks": blocks,
        "left_out": max(0, len(summary) - shown),
        "many": len(repairs(document)) > 1,
        "score": f"{say.score_word} on the test split{', %' if say.percent else ''}",
    }


def fits(document: Document) -> Table | None:
    """What the closed forms make good in each layer; None where none was measured.

    Args:
        document: A `rescue` result.
    """
    blocks: dict[str, list[list[Cell]]] = {}
    for fit in records(document.get("fits"))[:_FITS]:
        line = [cell(str(fit.get("reader")))]
        line += [cell(count(number(fit.get(key)))) for key in ("dead", "living")]
        line += [cell(share(number(fit.get(key)))) for key in ("before", "after")]
        line += [
            cell("held-out inputs" if fit.get("held_out") else "its own inputs"),
            cell(count(number(fit.get("rows")))),
        ]
        blocks.setdefault(f"{fit.get('repair')}, dose {fit.get('dose')}", []).append(line)
    heads = ["weights that read the units", "dead", "living", "error before", "after", "on", "rows"]
    return table(heads, list(blocks.items())) if blocks else None


def _updates(estimate: object) -> dict[str, str]:
    value, ends = time_to_rescue(estimate)
    return {"value": value, "interval": ends}


def time_to_rescue(estimate: object) -> tuple[str, str]:
    """A Kaplan-Meier median with its interval, whose upper end may lie beyond the budget."""
    value, ends = written(estimate, count)
    return ("not reached", "") if value == DASH else (value, ends)


def portrait(document: Document) -> dict[str, Any] | None:
    """What else changed: one column per stage, from calibration to size to disturbed inputs.

    Args:
        document: A `rescue` result.

    Returns:
        The words above the table, the table and the notes below it, or None where nothing was measured.
    """
    say, found = Notation.of(document), part(document, "portrait")
    stages = records(found.get("stages"))
    untested = found.get("adversarial_untested") or next(
        (reason for stage in stages if (reason := stage.get("adversarial_untested"))), None
    )
    if not stages:
        return None

    def line(
        label: str, read: Callable[[Mapping[str, Any]], object], write: Callable[[float | None], str]
    ) -> list[Cell]:
        return [cell(label), *(cell(*written(read(stage), write)) for stage in stages)]

    def disturbed(key: str, named: Callable[[Mapping[str, Any]], str]) -> list[list[Cell]]:
        by = [{named(entry): entry.get("score") for entry in records(stage.get(key))} for stage in stages]
        names = dict.fromkeys(name for scores in by for name in scores)
        return [[cell(name), *(cell(*written(scores.get(name), say.score)) for scores in by)] for name in names]

    def size(key: str) -> Callable[[Mapping[str, Any]], object]:
        return lambda stage: part(stage, "compact").get(key)

    answers = [
        line(say.score_word, lambda stage: stage.get("score"), say.score),
        line("NLL", lambda stage: stage.get("nll"), _digits),
        line("ECE", lambda stage: stage.get("ece"), _digits),
    ]
    sizes = [
        line("sparsity", lambda stage: stage.get("sparsity"), share),
        line("parameters after compaction", size("parameters"), _whole),
        line("bytes after compaction", size("bytes"), _bytes),
        line("units cut out", size("units_removed"), _whole),
        line("largest change of an output", size("difference"), amount),
    ]
    attacks = disturbed("adversarial", _attack)
    if untested:
        attacks.append(
            [cell("not tested" if not attacks else "further attacks"), cell(str(untested), span=len(stages))]
        )
    uncalibrated = next((reason for stage in stages if (reason := stage.get("calibration_untested"))), None)
    if uncalibrated:
        answers.append([cell("calibration not tested"), cell(str(uncalibrated), span=len(stages))])
    blocks = [
        ("Answers on the test split", [row for row in answers if _says(row)]),
        ("Size", [row for row in sizes if _says(row)]),
        (f"Corrupted inputs, {say.score_word}", disturbed("corruption", _corruption)),
        (f"Attacked inputs, {say.score_word}", attacks),
    ]
    kept = {
        (str(entry.get("layer")), str(entry.get("reason") or ""))
        for stage in stages
        for entry in records(part(stage, "compact").get("kept"))
    }
    place = [f"Dose {say.dose(number(found.get('dose')))}"] if number(found.get("dose")) is not None else []
    place += [f"repair {found['repair']}"] if found.get("repair") else []
    place += [f"seed {amount(number(found['seed']))}"] if number(found.get("seed")) is not None else []
    return {
        "words": ", ".join(place),
        "table": table(["", *(str(stage.get("stage") or DASH) for stage in stages)], [b for b in blocks if b[1]]),
        "kept": sorted(kept)[:_KEPT],
    }


def _says(row: list[Cell]) -> bool:
    return any(entry["value"] != DASH for entry in row[1:])


def _digits(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"


def _whole(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f}"


def _bytes(value: float | None) -> str:
    if value is None:
        return DASH
    size, unit = next(((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if value >= s), (1.0, "bytes"))
    return f"{value / size:.3g} {unit}" if value < 999.5 * size else f"{value / size:,.0f} {unit}"


def _corruption(entry: Mapping[str, Any]) -> str:
    strength = number(entry.get("strength"))
    return str(entry.get("name") or DASH) + ("" if strength is None else f", strength {amount(strength)}")


def _attack(entry: Mapping[str, Any]) -> str:
    epsilon, examples = number(entry.get("epsilon")), number(entry.get("examples"))
    name = str(entry.get("attack") or DASH) + ("" if epsilon is None else f", ε = {amount(epsilon)}")
    return name + ("" if examples is None else f" ({count(examples)} examples)")
