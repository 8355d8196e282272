"""One self-contained HTML page per result: words, figures, tables; nothing is loaded from anywhere.

All text goes through the template's escaping. The page's own security policy forbids any request, so that the
promise "no network" does not depend on the template being right.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from planaria.report.drawing import style
from planaria.report.figures import ledger_figure, rescue_figure, response_figure, summary_figure
from planaria.report.reading import (
    DASH,
    Document,
    Notation,
    best_row,
    count,
    doses,
    evenly,
    interval,
    number,
    repairs,
    rescues,
    same_dose,
    seconds,
)
from planaria.report.words import headline, name_of, terms, verdict

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Beyond these the page would be unreadable; the complete rows are in results.csv beside it.
_RESCUE_FIGURES, _TABLE_DOSES, _TABLE_REPAIRS, _LAYERS, _WARNINGS = 6, 12, 24, 80, 20


def render(document: Document, *, folder: Path | None = None) -> str:
    """The page as text.

    Args:
        document: A `rescue` or `respond` result as the command line prints it with `--json`.
        folder: Where the page will be; the result's files in the same folder become links.

    Returns:
        HTML.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    source = resources.files("planaria.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    page = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    shown, settings = evenly(doses(document), _RESCUE_FIGURES), document.get("settings") or {}
    figures = {
        "response": [response_figure(document)],
        "summary": [summary_figure(document)],
        "rescue": [rescue_figure(document, dose) for dose in shown],
        "ledger": [ledger_figure(document)],
    }
    context = {
        "command": str(document.get("command") or "result"),
        "headline": headline(document),
        "network": _network(document),
        "task": _task(document),
        "facts": _facts(document),
        "warnings": _warnings(document),
        "verdict": verdict(document),
        "figures": {key: [_figure(f) for f in group if f is not None] for key, group in figures.items()},
        "left_out": len(doses(document)) - len(shown),
        "table": _table(document),
        "meanings": _pairs(settings.get("meanings")),
        "settings": _pairs({key: value for key, value in settings.items() if key != "meanings"}),
        "run": _run(document),
        "files": _files(document, folder),
        "terms": terms(document),
        "version": str(document.get("version") or ""),
        "schema": str(document.get("schema") or ""),
    }
    # The bundle is put in after rendering: five megabytes need no trip through the template engine.
    before, after = page.from_string(source).render(context).rsplit("PLOTLY-BUNDLE", 1)
    return before + str(Markup(get_plotlyjs())) + after


def _figure(figure: go.Figure) -> dict[str, Any]:
    """Title and subtitle, which the page sets as text so that they wrap, and the figure without them."""
    from markupsafe import Markup
    from plotly.io import to_json

    drawn = figure.to_plotly_json()
    title = drawn["layout"].pop("title")
    # Back from Plotly's escaping: the template escapes.
    words = [Markup(str(text).replace("<br>", " ")).unescape() for text in (title["text"], title["subtitle"]["text"])]
    drawn["layout"]["margin"]["t"] -= 70
    drawn["layout"]["height"] -= 70
    return {
        "title": words[0],
        "subtitle": words[1],
        "height": drawn["layout"]["height"],
        "json": Markup(to_json(drawn, validate=False, engine="json")),
    }


def _facts(document: Document) -> list[dict[str, str]]:
    """The numbers at the top: what the intact network scores, before anything else."""
    say, intact = Notation.of(document), document.get("intact") or {}
    low, high = [*(intact.get("interval") or []), None, None][:2]
    network, task = document.get("network") or {}, document.get("task") or {}
    units, parameters = network.get("units") or [], number(network.get("parameters"))
    rows = document.get("rows") or []
    seeds, draws = ({row[key] for row in rows if row.get(key) is not None} for key in ("seed", "draw"))
    runs = ("Draws", count(len(draws)), "") if draws else ("Trials", count(len(rows)), _many(len(seeds), "seed"))
    facts = [
        (
            "Intact, test split",
            say.score(number(intact.get("test"))),
            say.spread((number(low), 0.0, number(high))),
        ),
        ("Intact, validation", say.score(number(intact.get("validation"))), ""),
        ("Chance", say.score(number(task.get("chance"))), ""),
        ("Parameters", DASH if parameters is None else f"{parameters:,.0f}", ""),
        (
            "Units",
            count(sum(number(unit.get("count")) or 0 for unit in units)) if units else DASH,
            _kinds(units),
        ),
        runs,
    ]
    return [{"label": label, "value": value, "note": note} for label, value, note in facts]


def _kinds(units: list[Mapping[str, Any]]) -> str:
    totals: dict[str, float] = {}
    for unit in units:
        totals[str(unit.get("kind"))] = totals.get(str(unit.get("kind")), 0) + (number(unit.get("count")) or 0)
    return ", ".join(_many(total, kind) for kind, total in totals.items())


def _many(amount: float, noun: str) -> str:
    return f"{count(amount)} {noun}{'' if amount == 1 else 'es' if noun.endswith('ch') else 's'}"


def _warnings(document: Document) -> list[str]:
    told = [str(warning) for warning in document.get("warnings") or []]
    more = len(told) - _WARNINGS
    return [*told[:_WARNINGS], f"{more} more warnings are in the JSON result."] if more > 0 else told


def _table(document: Document) -> dict[str, Any]:
    """The comparison: one block per dose, one line per repair, the best one marked."""
    say, summary = Notation.of(document), document.get("summary") or []
    blocks = []

    def score(estimate: object) -> str:
        # The unit stands in the head of the table.
        return say.score(interval(estimate)[1]).removesuffix("%")

    for dose in evenly(doses(document), _TABLE_DOSES):
        rows = [row for row in summary if same_dose(row.get("dose"), dose)]
        best, lines = best_row(document, dose), []
        for row in rows[:_TABLE_REPAIRS]:
            cost = row.get("cost") or {}
            lines.append(
                {
                    "repair": str(row.get("repair")),
                    "colour": style(str(row.get("repair")))[0],
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


def _updates(estimate: object) -> dict[str, str]:
    """A Kaplan-Meier median with its interval, whose upper end may lie beyond the budget."""
    low, best, high = interval(estimate)
    if best is None:
        return {"value": "not reached", "interval": ""}
    if low == high:
        # One trial, or none of the spread that an interval would show.
        return {"value": count(best), "interval": ""}
    return {
        "value": count(best),
        "interval": f"[{count(low)}, ∞)" if high is None else f"[{count(low)}, {count(high)}]",
    }


def _network(document: Document) -> dict[str, Any]:
    network = document.get("network") or {}
    units = network.get("units") or []
    lines = [
        {
            "layer": str(unit.get("layer")),
            "kind": str(unit.get("kind")),
            "count": count(number(unit.get("count"))),
            "method": str(unit.get("method")),
            "exact": "exact" if unit.get("exact") else "not exact",
            "reason": str(unit.get("reason") or ""),
        }
        for unit in units[:_LAYERS]
    ]
    apart = ("units", "unreached", "name", "trained", "parameters")
    return {
        "name": name_of(network, "network"),
        "units": lines,
        "left_out": max(0, len(units) - _LAYERS),
        "unreached": [
            {"layer": str(entry.get("layer")), "reason": str(entry.get("reason") or "")}
            for entry in (network.get("unreached") or [])[:_LAYERS]
        ],
        "pairs": _pairs({key: value for key, value in network.items() if key not in apart} | _trained(network)),
    }


def _trained(network: Mapping[str, Any]) -> dict[str, Any]:
    return {"trained here": network["trained"]} if network.get("trained") else {}


def _task(document: Document) -> dict[str, Any]:
    task = document.get("task") or {}
    preprocessing = task.get("preprocessing")
    return {
        "name": name_of(task, "task"),
        "preprocessing": _text(preprocessing) if preprocessing else "none: the inputs are used as stored",
        "splits": ", ".join(f"{number(size) or 0:,.0f} {split}" for split, size in (task.get("splits") or {}).items()),
        "pairs": _pairs({key: value for key, value in task.items() if key not in ("name", "preprocessing")}),
    }


def _run(document: Document) -> dict[str, Any]:
    manifest = document.get("manifest") or {}
    command = manifest.get("command_line") or ""
    apart = ("command_line", "versions")
    return {
        "command": shlex.join(str(word) for word in command) if isinstance(command, list | tuple) else str(command),
        "versions": _pairs(manifest.get("versions") or {"planaria": document.get("version")}),
        "pairs": _pairs({k: v for k, v in manifest.items() if k not in apart and not isinstance(v, Mapping)}),
    }


def _files(document: Document, folder: Path | None) -> list[dict[str, str]]:
    found = []
    for kind, place in (document.get("files") or {}).items():
        if place and kind != "report":
            path = Path(str(place))
            beside = folder is not None and path.resolve().parent == folder.resolve()
            # "./" keeps a name with a colon from reading as a scheme.
            found.append({"kind": str(kind), "path": str(place), "link": f"./{quote(path.name)}" if beside else ""})
    return found


def _pairs(values: object) -> list[tuple[str, str]]:
    """Keys in words and values as text, in the order they came; a long mapping becomes one line per key."""
    if not isinstance(values, Mapping):
        return []
    pairs = []
    for key, value in values.items():
        word, text = str(key).replace("_", " "), _text(value)
        if isinstance(value, Mapping) and len(text) > 80:
            pairs += [(f"{word} {inner}", told) for inner, told in _pairs(value)]
        else:
            pairs.append((word, text))
    return pairs


def _text(value: object) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} = {_text(inner)}" for key, inner in value.items()) or DASH
    if isinstance(value, list | tuple):
        return ", ".join(_text(inner) for inner in value) or DASH
    return value if isinstance(value, str) else json.dumps(value, default=str)
