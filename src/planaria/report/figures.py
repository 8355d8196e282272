"""Figures of a result document: what damage does, what each repair brings back, and what it costs.

Each function is pure: a document in, a Plotly figure out, or None where the document has nothing to show. A
repair has one colour and one marker everywhere, by its name. Titles say what is seen; the subtitle says how
to read it. The two figures with a cost along x are written in `costs.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from planaria.report.costs import ledger_figure as ledger_figure
from planaria.report.costs import rescue_figure as rescue_figure
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
    zoom,
)
from planaria.report.reading import (
    Document,
    Interval,
    Notation,
    doses,
    evenly,
    interval,
    number,
    records,
    response_of,
    same_dose,
    treatments,
)
from planaria.report.words import critical_words, curve_sentence, listing

if TYPE_CHECKING:
    import plotly.graph_objects as go

_DRAWS = 40  # drawn at most: more single draws only darken the band


def response_figure(document: Document) -> go.Figure | None:
    """Damage-response curve: mean with interval, single draws, chance, intact, and the doses that sum it up.

    Args:
        document: A `rescue` or `respond` result.

    Returns:
        The figure, or None without a curve.
    """
    import plotly.graph_objects as go

    response, say = response_of(document), Notation.of(document)
    if response is None:
        return None
    x, mean = [number(dose) for dose in response["doses"]], [number(score) for score in response["mean"]]
    low, high = ([number(v) for v in response.get(key) or []] for key in ("low", "high"))
    draws = [draw for draw in response.get("draws") or [] if isinstance(draw, Sequence)]
    figure = go.Figure()
    if draws:
        figure.add_scatter(
            x=[*x, None] * len(draws[:_DRAWS]),
            y=[short(number(value)) for draw in draws[:_DRAWS] for value in [*draw, None]],
            name="single draws",
            mode="lines",
            line={"color": MUTED, "width": 1},
            opacity=0.4,
            hoverinfo="skip",
        )
    band = ribbon(x, low, high, "#0072B2")
    if band:
        figure.add_scatter(**band, name="95% interval")
    figure.add_scatter(
        x=x,
        y=mean,
        name="mean",
        mode="lines+markers",
        line={"color": "#0072B2", "width": 3},
        marker={"size": 7},
        customdata=[[say.dose(d), say.score(m)] for d, m in zip(x, mean, strict=False)],
        hovertemplate="dose %{customdata[0]}<br>mean %{customdata[1]}<extra></extra>",
    )
    marks = (
        ("10-point loss" if say.percent else "loss of 0.10", "dose_of_10_point_loss", "#009E73", "square"),
        ("fitted break", "critical_dose", "#AA4499", "triangle-down"),
        ("half-dose", "half_dose", "#D55E00", "diamond"),
    )
    for name, key, colour, symbol in marks:
        estimate = interval(response.get(key))
        height = _on_curve(x, mean, estimate[1])
        if height is None:
            continue
        figure.add_scatter(
            x=[estimate[1]],
            y=[height],
            name=f"{name} {say.dose_estimate(estimate)}",
            mode="markers",
            marker={"color": colour, "size": 14, "symbol": symbol, "line": {"color": "white", "width": 1.5}},
            error_x=bars([estimate], colour),
            hovertemplate="%{fullData.name}<extra></extra>",
        )
    notes = ["No repair", f"{len(draws)} random draws of the damaged units" if draws else ""]
    notes += ["band: 95% interval of the mean" if band else "", critical_words(document)]
    dress(figure, curve_sentence(document), "; ".join(note for note in notes if note) + ".")
    dose_axis(figure, say, x)
    score_axis(figure, say, "test")
    level(figure, number(response.get("intact")), "intact", say, above=True)
    level(figure, number(response.get("chance")), "chance", say, above=False)
    return figure


def _on_curve(x: Sequence[float | None], y: Sequence[float | None], at: float | None) -> float | None:
    """Height of the straight-line curve at a place, so that a mark sits on it; None outside."""
    known = [(a, b) for a, b in zip(x, y, strict=False) if a is not None and b is not None]
    if at is None:
        return None
    for (a, b), (c, d) in pairwise(known):
        if a <= at <= c:
            return short(b if a == c else b + (d - b) * (at - a) / (c - a))
    return None


def summary_figure(document: Document) -> go.Figure | None:
    """Score after each repair against dose, with intervals, beside the damaged and the intact network.

    Args:
        document: A `rescue` result.

    Returns:
        The figure, or None without a summary.
    """
    import plotly.graph_objects as go

    say, axis = Notation.of(document), doses(document)
    damaged: dict[float, Interval] = {}
    after: dict[str, dict[float, Interval]] = {name: {} for name in treatments(document)}
    for row in records(document.get("summary")):
        dose = next((d for d in axis if same_dose(row.get("dose"), d)), None)
        if dose is not None and str(row.get("repair")) in after:
            after[str(row["repair"])][dose] = interval(row.get("after"))
            damaged.setdefault(dose, interval(row.get("damaged")))
    after = {name: points for name, points in after.items() if points}
    if not after:
        return None
    figure = go.Figure()
    gap = min((b - a for a, b in pairwise(axis)), default=axis[0] or 1.0)
    lines = [("damaged, not repaired", MUTED, "x", "dot", damaged)]
    lines += [(plain(name), *style(name), points) for name, points in after.items()]
    for place, (name, colour, symbol, dash, points) in enumerate(lines):
        shown = sorted(points)
        # Side by side, so that no interval hides another.
        shift = (place - (len(lines) - 1) / 2) * 0.035 * gap
        figure.add_scatter(
            x=[short(dose + shift) for dose in shown],
            y=[points[dose][1] for dose in shown],
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2.5, "dash": dash},
            marker={"size": 11, "symbol": symbol},
            error_y=bars([points[dose] for dose in shown], colour),
            customdata=[[say.dose(d), f"{say.score(points[d][1])} {say.spread(points[d])}"] for d in shown],
            hovertemplate="%{fullData.name}, dose %{customdata[0]}<br>%{customdata[1]}<extra></extra>",
        )
    highest = {d: max(after, key=lambda name: _height(after[name].get(d))) for d in axis}
    names = list(dict.fromkeys(highest.values()))
    if len(names) == 1:
        where = "every tested dose" if len(axis) > 1 else f"dose {say.dose(axis[0])}"
        title = f"{names[0]} ends highest at {where}"
    elif len(axis) > 6:
        title = f"Which repair ends highest depends on the dose: {listing(names)}"
    else:
        parts = [f"{name} at {listing([say.dose(d) for d in axis if highest[d] == name])}" for name in names]
        title = "Highest after repair: " + "; ".join(parts)
    barred = any(None not in e for points in after.values() for e in points.values())
    note = (
        "bars: 95% interval; where bars overlap, the order is not settled" if barred else "one seed, hence no interval"
    )
    dress(figure, title, f"Mean over seeds; {note}." if barred else f"{note.capitalize()}.")
    dose_axis(figure, say, [axis[0] - gap / 3, axis[-1] + gap / 3])
    figure.update_xaxes(tickvals=evenly(axis, 12), ticktext=[say.dose(dose) for dose in evenly(axis, 12)])
    score_axis(figure, say, "test")
    intact, chance = (
        number((document.get("intact") or {}).get("test")),
        number((document.get("task") or {}).get("chance")),
    )
    level(figure, intact, "intact", say, above=True)
    level(figure, chance, "chance", say, above=False)
    repaired = [e[1] for points in after.values() for e in points.values() if e[1] is not None] or [0.0]
    top = max([*repaired, *([] if intact is None else [intact])])
    bottom = min(
        [
            *repaired,
            *(e[1] for e in damaged.values() if e[1] is not None),
            *([] if chance is None else [chance]),
        ]
    )
    whole, close = (top - bottom) or 0.01, (top - min(repaired)) or 0.01
    spans = {"whole range": [bottom - 0.06 * whole, top + 0.08 * whole]}
    spans["repairs only"] = [min(repaired) - 0.1 * close, top + 0.15 * close]
    figure.update_yaxes(range=spans["whole range"])
    buttons(figure, zoom(spans))
    return figure


def _height(estimate: Interval | None) -> float:
    return -math.inf if estimate is None or estimate[1] is None else estimate[1]
