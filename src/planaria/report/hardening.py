"""Methods that harden a network, at equal gradient evaluations: what each saves and what it costs intact.

All of it is read from `document["hardening"]`; a figure is None where the document has nothing to show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from planaria.report.drawing import (
    MUTED,
    bars,
    buttons,
    dose_axis,
    dress,
    level,
    plain,
    ribbon,
    score_axis,
    short,
    style,
)
from planaria.report.reading import (
    CONTROL,
    DASH,
    Document,
    Interval,
    Notation,
    count,
    interval,
    number,
    part,
    records,
)
from planaria.report.tables import BILLS, Cell, Table, bills, cell, table, time_to_rescue, trimmed
from planaria.report.words import name_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

Method = Mapping[str, Any]

# Kinds of damage curves: key of the area, title of its figure, name of the switch, what is done after the damage.
KINDS = {
    "random": ("area_random", "Random damage", "random", "Nothing is repaired"),
    "worst": ("area_worst", "Worst-first damage", "worst-first", "Nothing is repaired"),
    "rescued": (
        "area_rescued",
        "Random damage with instant rescue",
        "with rescue",
        "Every damaged network is repaired",
    ),
}


def methods(document: Document) -> list[Method]:
    """The methods in the document's order."""
    return records(part(document, "hardening").get("methods"))


def _name(method: Method) -> str:
    return str(method.get("method"))


def _baseline(document: Document) -> Method | None:
    """Training without hardening: the method called so, else the first."""
    found = methods(document)
    return next((m for m in found if _name(m) in ("plain", CONTROL)), found[0] if found else None)


def _area(method: Method, kind: str) -> Interval:
    return interval(method.get(KINDS[kind][0]))


def _best(document: Document, kind: str) -> Method | None:
    known = [method for method in methods(document) if _area(method, kind)[1] is not None]
    return max(known, key=lambda method: _area(method, kind)[1] or 0.0, default=None)


# ------------------------------------------------------------------------------------------------ the words


def headline(document: Document) -> str:
    """Which method keeps the most under random damage, against training without hardening, and what it costs."""
    say, best, base = Notation.of(document), _best(document, "random"), _baseline(document)
    if best is None or base is None:
        return "No method has finished"
    area = f"{say.score(_area(best, 'random')[1])} {say.spread(_area(best, 'random'))}".rstrip()
    if best is base:
        return f"No method hardens against random damage more than {_name(base)}: area {area}"
    other = _area(base, "random")
    against = "" if other[1] is None else f" against {say.score(other[1])} for {_name(base)}"
    # Paired over seeds where the document has it; else by the intervals.
    lead, low = interval(part(best, "less_plain").get("area_random"))[0], _area(best, "random")[0]
    if lead is None and low is not None and other[2] is not None:
        lead = low - other[2]
    if lead is not None and lead <= 0:
        return f"No method is shown to harden against random damage; highest is {_name(best)}, area {area}{against}"
    return f"{_name(best)} hardens most against random damage: area {area}{against}"


def verdict(document: Document) -> list[tuple[str, list[str]]]:
    """Question, damage, rescue and verdict, each as a list of sentences."""
    say, base = Notation.of(document), _baseline(document)
    network, task = name_of(document.get("network"), "the network"), name_of(document.get("task"), "its task")
    evaluations = number(part(document, "hardening").get("gradient_evaluations"))
    question = f"Which way of training makes {network} on {task} hard to hurt, and at what cost?"
    if evaluations is not None:
        question += f" Every method gets {count(evaluations)} gradient evaluations."
    told = []
    for kind, (_, title, *_) in KINDS.items():
        best = _best(document, kind)
        if best is None or base is None:
            continue
        line = (
            f"{title}: {_name(best)} is highest, area {say.score(_area(best, kind)[1])} {say.spread(_area(best, kind))}"
        )
        other = _area(base, kind)[1]
        told.append(line.rstrip() + ("." if best is base or other is None else f"; {_name(base)} {say.score(other)}."))
    ends = [f"{sentence}." for sentence in (headline(document), cost_sentence(document)) if sentence]
    parts = [("Question", [question]), ("Areas", told), ("Verdict", ends)]
    return [(label, lines) for label, lines in parts if lines]


def cost_sentence(document: Document) -> str:
    """What the method that keeps the most costs in intact score; empty where that is not known."""
    say, best, base = Notation.of(document), _best(document, "random"), _baseline(document)
    if best is None or base is None or best is base:
        return ""
    now, before = interval(best.get("intact"))[1], interval(base.get("intact"))[1]
    area, other = _area(best, "random")[1], _area(base, "random")[1]
    if None in (now, before, area, other):
        return ""

    def points(value: float) -> str:
        return f"{100 * value:.1f} points" if say.percent else f"{value:.3f}"

    gain, loss = (area or 0.0) - (other or 0.0), (before or 0.0) - (now or 0.0)
    price = f"costs {points(loss)} of intact {say.score_word}" if loss > 0 else f"costs no intact {say.score_word}"
    return f"{_name(best)} gains {points(gain)} of area and {price}"


def hardening_table(document: Document) -> Table | None:
    """Every method: intact, areas, updates to rescue, ledger; the highest of each column is bold."""
    say, lines = Notation.of(document), []
    found = methods(document)
    columns = ("intact", *(key for key, *_ in KINDS.values()))
    top = {c: max((v for m in found if (v := interval(m.get(c))[1]) is not None), default=None) for c in columns}

    def score(method: Method, column: str) -> Cell:
        estimate = interval(method.get(column))
        best = len(found) > 1 and estimate[1] is not None and estimate[1] == top[column]
        return cell(say.score(estimate[1]), say.spread(estimate), best=best)

    for method in found:
        rescued, trials = (count(number(method.get(key))) for key in ("rescued", "trials"))
        value, ends = time_to_rescue(method.get("rescue_updates")) if rescued != DASH else (DASH, "")
        lines.append(
            [
                cell(_name(method), colour=style(_name(method)).colour),
                *(score(method, column) for column in columns),
                cell(value, ends),
                cell(DASH if rescued == DASH else f"{rescued} of {trials}"),
                *bills(method.get("cost")),
            ]
        )
    heads = ["method", "intact", "random", "worst-first", "with rescue", "median", "rescued", *BILLS]
    groups = [
        ("", 1),
        ("", 1),
        (f"area, {say.score_word}", 3),
        ("updates to rescue", 2),
        ("cost of training", len(BILLS)),
    ]
    return trimmed(table(heads, [("", lines)], groups=groups)) if lines else None


def meanings(document: Document) -> list[tuple[str, str]]:
    """Each method's name with what it does, and the file of its network."""
    found = []
    for method in methods(document):
        text = str(method.get("meaning") or "")
        place = f"{'; ' if text else ''}{method['file']}" if method.get("file") else ""
        if text or place:
            found.append((_name(method), text + place))
    return found


# ---------------------------------------------------------------------------------------------- the figures


def hardening_figure(document: Document, kind: str) -> go.Figure | None:
    """Response curves of all methods under one kind of damage.

    Args:
        document: A `harden` result.
        kind: "random", "worst" or "rescued".

    Returns:
        The figure, or None without curves.
    """
    import plotly.graph_objects as go

    say, curves = Notation.of(document), []
    for method in methods(document):
        curve = part(part(method, "curves"), kind)
        columns = {k: [number(value) for value in curve.get(k) or []] for k in ("doses", "mean", "low", "high")}
        if any(value is not None for value in columns["mean"]):
            curves.append((_name(method), columns, _area(method, kind)))
    if not curves:
        return None
    figure = go.Figure()
    for name, columns, _ in curves:
        band = ribbon(
            columns["doses"], columns["low"], columns["high"], style(name).colour, max(0.04, 0.3 / len(curves))
        )
        if band:
            figure.add_scatter(**band, name=plain(name), legendgroup=plain(name), showlegend=False)
    for name, columns, area in curves:
        colour, symbol, dash = style(name)
        pairs = list(zip(columns["doses"], columns["mean"], strict=False))
        figure.add_scatter(
            x=[dose for dose, _ in pairs],
            y=[short(mean) for _, mean in pairs],
            name=plain(name) + ("" if area[1] is None else f" · area {say.score(area[1])}"),
            legendgroup=plain(name),
            mode="lines+markers",
            line={"color": colour, "width": 2.5, "dash": dash},
            marker={"size": 8, "symbol": symbol},
            customdata=[[say.dose(dose), say.score(mean)] for dose, mean in pairs],
            hovertemplate=f"{plain(name)}, dose %{{customdata[0]}}<br>%{{customdata[1]}}<extra></extra>",
        )
    order = sorted((c for c in curves if c[2][1] is not None), key=lambda c: -(c[2][1] or 0.0))
    title = KINDS[kind][1]
    if order:
        title += f": {order[0][0]} keeps the most, area {say.score(order[0][2][1])} {say.spread(order[0][2])}".rstrip()
    dress(figure, title, f"Means with 95% intervals (bands); area: mean height of the curve. {KINDS[kind][3]}.")
    dose_axis(figure, say, [dose for _, columns, _ in curves for dose in columns["doses"]])
    score_axis(figure, say, "test")
    level(figure, number((document.get("task") or {}).get("chance")), "chance", say, above=False)
    return figure


def tradeoff_figure(document: Document) -> go.Figure | None:
    """Intact score against area, one marker per method; switches choose the kind of damage.

    Args:
        document: A `harden` result.

    Returns:
        The figure, or None without areas.
    """
    import plotly.graph_objects as go

    say = Notation.of(document)
    found = [method for method in methods(document) if interval(method.get("intact"))[1] is not None]
    kinds = [kind for kind in KINDS if any(_area(method, kind)[1] is not None for method in found)]
    if not kinds:
        return None
    figure = go.Figure()
    for method in found:
        name, intact = _name(method), interval(method.get("intact"))
        colour, symbol, _ = style(name)
        figure.add_scatter(
            x=[short(intact[1])],
            y=[short(_area(method, kinds[0])[1])],
            name=plain(name),
            mode="markers",
            marker={"color": colour, "size": 14, "symbol": symbol, "line": {"color": "white", "width": 1}},
            error_x=bars([intact], colour),
            error_y=bars([_area(method, kinds[0])], colour),
            hovertemplate=f"{plain(name)}<br>intact %{{x}}, area %{{y}}<extra></extra>",
        )
    percent = ".1~%" if say.percent else None
    title = cost_sentence(document) or "What hardening costs the intact network"
    dress(figure, title, "Up: harder to hurt; right: better intact. Bars: 95% intervals over seeds.")
    figure.update_xaxes(title_text=f"intact {say.score_word}, test split", tickformat=percent, showgrid=True)
    figure.update_yaxes(title_text=f"area, {KINDS[kinds[0]][2]}", tickformat=percent)
    base = _baseline(document)
    if base is not None:
        start = interval(base.get("intact"))[1]
        if start is not None:
            figure.add_vline(x=start, line={"color": MUTED, "width": 1.5, "dash": "dot"}, layer="below")
    choices = [
        {"label": KINDS[kind][2], "method": "update"}
        | {
            "args": [
                {
                    "y": [[short(_area(method, kind)[1])] for method in found],
                    "error_y": [bars([_area(method, kind)], style(_name(method)).colour) for method in found],
                },
                {"yaxis.title.text": f"area, {KINDS[kind][2]}", "yaxis.autorange": True},
            ]
        }
        for kind in kinds
    ]
    buttons(figure, choices)
    return figure
