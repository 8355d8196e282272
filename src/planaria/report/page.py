"""One self-contained HTML page per result: words, figures, tables; nothing is loaded from anywhere.

All text goes through the template's escaping. The page's own security policy forbids any request, so that the
promise "no network" does not depend on the template being right.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from planaria.report import (
    connection,
    connection_figures,
    hardening,
    landscape,
    landscape_figures,
    landscape_surfaces,
    lesion_figures,
    lesions,
    resilience,
    resilience_figures,
    scaling,
    survival,
    survival_figures,
    vulnerability,
    vulnerability_figures,
    vulnerability_map,
    vulnerability_tables,
)
from planaria.report.figures import ledger_figure, rescue_figure, response_figure, summary_figure
from planaria.report.reading import DASH, Document, Notation, count, doses, evenly, number, part, records
from planaria.report.tables import Table, cards, comparison, fits, portrait
from planaria.report.terms import terms
from planaria.report.words import headline, name_of, verdict

if TYPE_CHECKING:
    import plotly.graph_objects as go

Words = tuple[str, list[tuple[str, list[str]]]]
Apart = tuple[Words, list[dict[str, Any]]]

# Beyond these the page would be unreadable; the complete rows are in results.csv beside it.
_RESCUE_FIGURES, _LAYERS, _WARNINGS = 6, 80, 20


def render(document: Document, *, folder: Path | None = None) -> str:
    """The page as text.

    Args:
        document: A result of `rescue`, `respond`, `survive`, `harden`, `vulnerability`, `lesion`, `resilience`,
            `landscape` or `connect` as the command line prints it with `--json`.
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
    settings = document.get("settings") or {}
    # What walks and methods have in rows is another kind of trial: no comparison of repairs at a dose.
    apart = next((key for key in _APART if part(document, key)), None)
    compared = {**document, "rows": [], "summary": [], "response": None} if apart else document
    shown = evenly(doses(compared), _RESCUE_FIGURES)
    figures = {
        "response": [response_figure(compared)],
        "widths": [scaling.widths_figure(document), scaling.exponent_figure(document)],
        "summary": [summary_figure(compared)],
        "rescue": [rescue_figure(compared, dose) for dose in shown],
        "ledger": [ledger_figure(compared)],
    }
    told, sections = _APART[apart](document) if apart else ((headline(document), verdict(document)), [])
    context = {
        "command": str(document.get("command") or "result"),
        "headline": told[0],
        "network": _network(document),
        "task": _task(document),
        "facts": _facts(document),
        "warnings": _warnings(document),
        "verdict": told[1],
        "cards": cards(document),
        "figures": {key: [_figure(f) for f in group if f is not None] for key, group in figures.items()},
        "sections": sections,
        "left_out": len(doses(compared)) - len(shown),
        "table": comparison(compared),
        "portrait": portrait(document),
        "fits": fits(document),
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


def _section(
    title: str,
    *figures: go.Figure | None,
    table: Table | None = None,
    note: str = "",
    pairs: Sequence[tuple[str, str]] = (),
    otherwise: str = "",
) -> list[dict[str, Any]]:
    """A part of the page; where it has neither figure nor table, the sentence that says why, or nothing."""
    drawn = [_figure(figure) for figure in figures if figure is not None]
    if not drawn and not table:
        note, pairs = otherwise, ()
    section = {"title": title, "figures": drawn, "table": table, "note": note, "pairs": list(pairs)}
    return [section] if drawn or table or note else []


def _survival(document: Document) -> Apart:
    settings = document.get("settings") or {}
    sections = [
        *_section("Event by event", survival_figures.trajectory_figure(document)),
        *_section(
            "How long the network lasts",
            survival_figures.survival_figure(document),
            survival_figures.retention_figure(document),
        ),
        *_section("How it comes back", survival_figures.return_figure(document)),
        *_section(
            "The repairs compared",
            table=survival.survival_table(document),
            note="Means over walks with 95% intervals over seeds; medians count walks that have not left as later.",
            pairs=_pairs(settings.get("meanings")),
        ),
        *_section(
            "Does turnover build resilience?",
            survival_figures.turnover_figure(document),
            table=survival.rate_table(document),
        ),
    ]
    return (survival.headline(document), survival.verdict(document)), sections


def _hardening(document: Document) -> Apart:
    sections = [
        *_section(
            "The methods compared",
            table=hardening.hardening_table(document),
            note="Means over seeds with 95% intervals. Bold: highest of its column; where intervals overlap, the order "
            "is not settled.",
            pairs=hardening.meanings(document),
        ),
        *_section("What damage does", *(hardening.hardening_figure(document, kind) for kind in hardening.KINDS)),
        *_section("What hardening costs", hardening.tradeoff_figure(document)),
    ]
    return (hardening.headline(document), hardening.verdict(document)), sections


def _vulnerability(document: Document) -> Apart:
    found = vulnerability.Found.of(document)
    sections = [
        *_section(
            "Where the network is weak",
            vulnerability_map.map_figure(found),
            table=vulnerability_tables.layer_table(found),
            otherwise="No unit has been measured, so there is no map.",
        ),
        *_section("Does the damage concentrate?", vulnerability_figures.ranked_figure(found)),
        *_section(
            "The units that cost most",
            table=vulnerability_tables.top_table(found),
            note="Brackets: 95% interval of the unit alone. Class: the one that loses most of its own score.",
            otherwise="No single unit costs anything.",
        ),
        *_section(
            "Direct and total effects",
            vulnerability_figures.effects_figure(found),
            otherwise="The result does not hold both effects of any unit, so they are not compared.",
        ),
        *_section(
            "Units that are silent together",
            vulnerability_figures.sets_figure(found),
            table=vulnerability_tables.sets_table(found),
            otherwise="No sets of units were tried.",
        ),
        *_section(
            "Single weights",
            table=vulnerability_tables.weights_table(found),
            note="Every entry of a weight changed alone. 99%, 99.9%: the loss that so many entries do not exceed.",
            otherwise="Single weights were not tried.",
        ),
        *_section(
            "How it was computed",
            table=vulnerability_tables.plan_table(found),
            pairs=vulnerability_tables.computation(found),
            note=f"{vulnerability.computed(found)}. Prices are in forward passes over the same inputs.",
            otherwise="The result does not say how it was computed.",
        ),
    ]
    return (vulnerability.headline(found), vulnerability.verdict(found)), sections


def _lesions(document: Document) -> Apart:
    found = lesions.Found.of(document)
    sections = [
        *_section(
            "Which lesion hurts which class",
            lesion_figures.selective_figure(found),
            table=lesions.selective_table(found),
            note="Brackets of random units: the range in which one more random lesion would lie.",
        ),
        *_section(
            "Double dissociation",
            lesion_figures.pairs_figure(found),
            table=lesions.pair_table(found),
            note="Double: all four contrasts are above zero and both own losses beyond random lesions. p: the largest "
            "of the contrasts, corrected over pairs, and the larger of the controls, over classes (Holm). The complete "
            "table is dissociations.csv.",
        ),
        *_section(
            "Region by region",
            lesion_figures.regions_figure(found),
            lesion_figures.region_classes_figure(found),
            table=lesions.lesion_table(found),
        ),
        *_section(
            "Does selectivity predict damage?",
            table=lesions.guide_table(found),
            note="Over the units of a layer: largest d' of a unit, and what its loss alone costs. Its class: the one "
            "with that d'.",
        ),
        *_section("Notes", otherwise=" ".join(map(str, found.result.get("notes") or ()))),
    ]
    return (lesions.headline(found), lesions.verdict(found)), sections


def _resilience(document: Document) -> Apart:
    found = resilience.Found.of(document)
    sections = [
        *_section(
            "The map",
            resilience_figures.map_figure(found),
            table=resilience.layer_table(found),
            otherwise="No unit has been measured, so there is no map.",
        ),
        *_section(
            "Predicted against actual",
            resilience_figures.scatter_figure(found),
            table=resilience.guide_table(found),
            note="Spearman's rank correlation of what is known beforehand with what silencing a unit does, with 95% "
            "intervals. Map better by: difference from the map, units resampled, the same for both.",
        ),
        *_section(
            "Units that are silent together",
            table=resilience.set_table(found),
            note="With cross terms: the change of the sum; as a sum: the sum of the changes of single units.",
        ),
        *_section("Stiff directions", resilience_figures.spectrum_figure(found)),
        *_section(
            "Break-down",
            *(
                draw(found, along)
                for along in ("path", "count")
                for draw in (resilience_figures.speed_figure, resilience_figures.score_figure)
            ),
            table=resilience.break_table(found),
        ),
        *_section("Notes", otherwise=" ".join(map(str, found.result.get("notes") or ()))),
    ]
    return (resilience.headline(found), resilience.verdict(found)), sections


def _connection(document: Document) -> Apart:
    found = connection.Found.of(document)
    alignment = connection.alignment_sentence(found)
    sections = [
        *_section(
            "Along the way",
            connection_figures.loss_figure(found),
            connection_figures.score_figure(found),
            otherwise="No way could be tried.",
        ),
        *_section(
            "Barriers",
            table=connection.barrier_table(found),
            note="Bold: the simplest way whose loss barrier on validation data is within the tolerance, else the one "
            "with the least.",
        ),
        *_section(
            "What it takes",
            table=connection.cost_table(found),
            note=f"Lengths are of the path of outputs on the test split ({connection.distance(found)}) and of the path "
            "in weights. Passes: multiply-adds as forward passes over the training split, alignment included.",
        ),
        *_section("The two networks", table=connection.ends_table(found), pairs=connection.pairs(found)),
        *_section(
            "Alignment",
            table=connection.symmetry_table(found),
            note=alignment,
            pairs=connection.left_out(found),
            otherwise=alignment,
        ),
    ]
    return (connection.headline(found), connection.verdict(found)), sections


def _landscape(document: Document) -> Apart:
    found = landscape.Found.of(document)
    sections = [
        *_section(
            "The networks",
            table=landscape.group_table(found),
            pairs=landscape.meanings(found),
            otherwise="The result holds no networks.",
        ),
        *_section(
            "Do the walks stay?",
            survival_figures.trajectory_figure(found.walks),
            survival_figures.retention_figure(found.walks),
        ),
        *_section(
            "Are they connected?",
            landscape_figures.barrier_figure(found),
            table=landscape.connection_table(found),
            note="Inside: of the lines between two networks of the good set, those that stay in it. Level: of all "
            "lines, those whose validation score never falls by more than the tolerance below that of their ends. "
            "Brackets: 95% interval.",
            otherwise="No two networks were joined.",
        ),
        *_section(
            "Pictures of the networks",
            *(landscape_figures.pictures_figure(found, of) for of in (landscape.NEAR, landscape.ALL)),
            table=landscape.walk_table(found),
            note="A picture of points in the plane always shows something. The table holds every walk against a random "
            "walk of the same steps, and its order against shuffled ones.",
            otherwise="No pictures were made.",
        ),
        *_section("What each picture keeps", table=landscape.picture_table(found)),
        *_section(
            "Surfaces of the loss",
            *(landscape_surfaces.surface_figure(found, surface) for surface in found.surfaces),
            table=landscape.surface_table(found),
            otherwise="No surfaces were measured.",
        ),
        *_section("Notes", otherwise=landscape.notes(found)),
    ]
    return (landscape.headline(found), landscape.verdict(found)), sections


_APART = {
    "connection": _connection,
    "survival": _survival,
    "hardening": _hardening,
    "vulnerability": _vulnerability,
    "lesion_study": _lesions,
    "resilience": _resilience,
    "landscape": _landscape,
}


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
    units, parameters = records(network.get("units")), number(network.get("parameters"))
    rows = records(document.get("rows"))
    seeds, draws = ({row[key] for row in rows if row.get(key) is not None} for key in ("seed", "draw"))
    runs = ("Draws", count(len(draws)), "") if draws else ("Trials", count(len(rows)), _many(len(seeds), "seed"))
    lives, methods = (records(part(document, a).get(b)) for a, b in (("survival", "repairs"), ("hardening", "methods")))
    if lives:
        runs = ("Events", count(number(part(document, "survival").get("events"))), _many(len(lives), "repair"))
    if methods:
        runs = ("Methods", count(len(methods)), "")
    if part(document, "vulnerability"):
        runs = vulnerability.fact(vulnerability.Found.of(document))
    if part(document, "lesion_study"):
        runs = lesions.fact(lesions.Found.of(document))
    if part(document, "connection"):
        runs = connection.fact(connection.Found.of(document))
    if part(document, "resilience"):
        runs = resilience.fact(resilience.Found.of(document))
    if part(document, "landscape"):
        runs = landscape.fact(landscape.Found.of(document))
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


def _network(document: Document) -> dict[str, Any]:
    network = document.get("network") or {}
    units = records(network.get("units"))
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
            for entry in records(network.get("unreached"))[:_LAYERS]
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
