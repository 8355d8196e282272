"""Figures with a cost along x: how each repair gets there, and what rescue costs, counted both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from planaria.report.drawing import (
    MUTED,
    buttons,
    dress,
    level,
    plain,
    reach,
    score_axis,
    short,
    style,
    zoom,
)
from planaria.report.reading import (
    MEASURES,
    Document,
    Notation,
    doses,
    evenly,
    last_hit,
    median_curve,
    median_to_rescue,
    middle,
    number,
    rows_at,
    spent,
    treatments,
)
from planaria.report.words import ledger_title, margin, rescue_title

if TYPE_CHECKING:
    import plotly.graph_objects as go

Row = Mapping[str, Any]
Ledger = dict[str, list[float | None]]

# What is drawn at most: more lines or points cost page weight and show nothing more. Medians use every trial.
_LINES, _POINTS, _GROUPS = 40, 4000, 8
_COST = "%{x:,.4~r}"


def rescue_figure(document: Document, dose: float) -> go.Figure | None:
    """Validation score against the ledger at one dose: one thin line per seed, the bold one is their median.

    The ledger counts from the undamaged network, so an iterative schedule pays for its early repairs. Buttons
    switch the ledger to multiply-adds, examples and seconds.

    Args:
        document: A `rescue` result.
        dose: Which dose.

    Returns:
        The figure, or None if no trial at this dose has a curve.
    """
    import plotly.graph_objects as go

    say = Notation.of(document)
    rows = [row for row in rows_at(document, dose) if row.get("curve")]
    if not rows:
        return None
    groups = {name: [row for row in rows if row["repair"] == name] for name in treatments(document)}
    groups = {name: group for name, group in groups.items() if group}
    before = middle(number(row.get("validation_before")) for row in rows)
    tolerance = number((document.get("settings") or {}).get("tolerance"))
    target = None if before is None or tolerance is None else before - tolerance
    limit = max(40, _POINTS // len(rows))
    figure = go.Figure()
    # Beside each trace, its x in every measure of the ledger: a button swaps the x of all traces at once.
    ledger: list[Ledger] = []
    for name, group in groups.items():
        points = [point for row in group[:_LINES] for point in [*evenly(row["curve"], limit), {}]]
        ledger.append({m: [short(number(point.get(m))) for point in points] for m in MEASURES})
        figure.add_scatter(
            y=[short(number(point.get("validation"))) for point in points],
            name=plain(name),
            legendgroup=plain(name),
            showlegend=False,
            mode="lines",
            line={"color": style(name).colour, "width": 1},
            opacity=0.4,
            hoverinfo="skip",
        )
    for name, group in groups.items():
        colour, symbol, dash = style(name)
        xs, median, dead = median_curve([evenly(row["curve"], limit) for row in group])
        ledger.append({m: [short(value) for value in column] for m, column in xs.items()})
        figure.add_scatter(
            y=[short(value) for value in median],
            name=f"{plain(name)} · {sum(bool(row.get('rescued')) for row in group)} of {len(group)} rescued",
            legendgroup=plain(name),
            # The few points of a closed form need markers to be seen.
            mode="lines+markers" if len(median) < 4 else "lines",
            line={"color": colour, "width": 3.5, "dash": dash},
            marker={"size": 11, "symbol": symbol, "line": {"color": "white", "width": 1}},
            customdata=[[say.score(v), say.dose(d)] for v, d in zip(median, dead, strict=True)],
            hovertemplate=f"{plain(name)}, median of seeds<br>{_COST}: %{{customdata[0]}}<br>"
            "%{customdata[1]} of units dead<extra></extra>",
        )
    damaged = middle(number(row["curve"][0].get("validation")) for row in rows if not last_hit(row, "updates"))
    if damaged is not None:
        ledger.append({m: [0.0] for m in MEASURES})
        figure.add_scatter(
            y=[short(damaged)],
            name="damaged, not repaired",
            mode="markers",
            marker={"color": MUTED, "size": 13, "symbol": "x"},
            hovertemplate=f"damaged: {say.score(damaged)}<extra></extra>",
        )
    for name, group in groups.items():
        colour, symbol, _ = style(name)
        medians = {m: median_to_rescue(group, m, since_last_hit=False) for m in MEASURES}
        if target is None or medians["updates"] is None:
            continue
        ledger.append({m: [short(value)] for m, value in medians.items()})
        figure.add_scatter(
            y=[short(target)],
            name=f"{plain(name)}: median time to rescue",
            legendgroup=plain(name),
            showlegend=False,
            mode="markers",
            marker={"color": colour, "size": 15, "symbol": symbol, "line": {"color": "white", "width": 2}},
            hovertemplate=f"%{{fullData.name}}<br>{_COST}<extra></extra>",
        )
    for trace, xs in zip(figure.data, ledger, strict=True):
        trace.x = xs["updates"]
    rule = f"Rescued: validation score {margin(document)}. " if target is not None else ""
    marks = "Thin lines: seeds; bold: their median; large markers: median time to rescue."
    dress(figure, rescue_title(document, dose), rule + marks, height=540)
    score_axis(figure, say, "validation")
    level(figure, before, "before damage", say, above=True)
    level(figure, target, "rescued", say, above=False, dash="dash")
    seen = [value for trace in figure.data for value in trace.y if value is not None] or [0.0]
    top, bottom = max([*seen, seen[0] if before is None else before]), min(seen)
    height = (top - bottom) or 0.01
    near = max(3 * (tolerance or 0.0), 0.1 * height)
    spans = {"whole range": [bottom - 0.05 * height, top + 0.08 * height]}
    spans["near the target"] = [(top if target is None else target) - near, top + 0.3 * near]
    figure.update_yaxes(range=spans["whole range"])
    hits = {n: {m: middle(last_hit(row, m) for row in group) or 0.0 for m in MEASURES} for n, group in groups.items()}
    choices = _measures(figure, ledger, {name: hit for name, hit in hits.items() if hit["updates"] > 0})
    figure.update_layout(choices[0]["args"][1], legend={"y": 0, "yanchor": "bottom"})
    buttons(figure, choices, zoom(spans))
    return figure


def _measures(figure: go.Figure, ledger: list[Ledger], hits: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Switches of the ledger's measure; the vertical lines of the last hits move along."""
    levels = [shape.to_plotly_json() for shape in figure.layout.shapes]
    labels = [note.to_plotly_json() for note in figure.layout.annotations]
    choices = []
    for measure, word in MEASURES.items():
        span = reach(value for xs in ledger for value in xs[measure])
        # The label stands on the side of the line where there is room.
        sides = {name: ("right", -3) if hit[measure] > 0.5 * span[1] else ("left", 3) for name, hit in hits.items()}
        lines = [
            {
                "type": "line",
                "x0": hit[measure],
                "x1": hit[measure],
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "layer": "below",
            }
            | {"line": {"color": style(name).colour, "width": 1.5, "dash": "dashdot"}}
            for name, hit in hits.items()
        ]
        notes = [
            {
                "x": hit[measure],
                "y": 0.01,
                "yref": "paper",
                "yanchor": "bottom",
                "xanchor": sides[name][0],
                "xshift": sides[name][1],
            }
            | {"text": f"{plain(name)}: last hit", "showarrow": False, "font": {"size": 13}, "yshift": 17 * row}
            for row, (name, hit) in enumerate(hits.items())
        ]
        change = {
            "shapes": levels + lines,
            "annotations": labels + notes,
            "xaxis.title.text": f"{word}, counted from the undamaged network",
            "xaxis.range": span,
        }
        choices.append({"label": word, "method": "update", "args": [{"x": [xs[measure] for xs in ledger]}, change]})
    return choices


def ledger_figure(document: Document) -> go.Figure | None:
    """Cost to rescue of every trial in both countings: in total, and since the last hit.

    A filled marker is a rescued trial, an open one was censored: it spent its budget without rescue.

    Args:
        document: A `rescue` result.

    Returns:
        The figure, or None without trials.
    """
    from plotly.subplots import make_subplots

    say, names, axis = Notation.of(document), treatments(document), evenly(doses(document), _GROUPS)
    if not axis or not names:
        return None
    sides = {"": "in total, from the undamaged network", "_since_last_hit": "since the last hit"}
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.05, subplot_titles=[*sides.values()])
    ledger: list[Ledger] = []
    # Line by line from the top: a heading per dose, below it one line per repair with its trials.
    ticks: dict[float, str] = {}
    lines: list[tuple[str, list[Row], float]] = []
    place = 0.0
    for dose in axis:
        place -= 1.0
        ticks[place] = f"<b>dose {say.dose(dose)}</b>"
        for name in names:
            rows = [row for row in rows_at(document, dose) if row["repair"] == name]
            if rows:
                place -= 1.0
                ticks[place] = plain(name)
                lines.append((name, rows, place))
        place -= 0.3
    for column, suffix in enumerate(sides, start=1):
        medians = {
            y: {m: short(median_to_rescue(rows, m, since_last_hit=bool(suffix))) for m in MEASURES}
            for _, rows, y in lines
        }
        known = [y for y, median in medians.items() if median["updates"] is not None]
        ledger.append({m: [medians[y][m] for y in known] for m in MEASURES})
        figure.add_scatter(
            y=known,
            row=1,
            col=column,
            name="median time to rescue",
            showlegend=column == 1 and bool(known),
            mode="markers",
            marker={"color": MUTED, "size": 24, "symbol": "line-ns", "line": {"width": 3, "color": MUTED}},
            hovertemplate=f"median {_COST}<extra></extra>",
        )
        for name, rescued in ((name, rescued) for name in names for rescued in (True, False)):
            colour, symbol, _ = style(name)
            # Trials side by side: many seeds are rescued at the same evaluation.
            chosen = [
                (row, y + 0.3 - 0.6 * (index + 0.5) / len(rows))
                for own, rows, y in lines
                for index, row in enumerate(rows)
                if own == name and (row.get("rescue_cost") is not None) == rescued
            ]
            if not chosen:
                continue
            key = f"{'rescue_cost' if rescued else 'cost'}{suffix}"
            ledger.append({m: [short(spent(row.get(key), m)) for row, _ in chosen] for m in MEASURES})
            figure.add_scatter(
                y=[short(y) for _, y in chosen],
                row=1,
                col=column,
                name=plain(name),
                showlegend=False,
                mode="markers",
                marker={"color": colour, "size": 10, "symbol": symbol if rescued else f"{symbol}-open"}
                | ({"opacity": 0.8} if rescued else {"line": {"width": 1.8}}),
                customdata=[[say.dose(number(row.get("dose"))), plain(row.get("seed"))] for row, _ in chosen],
                hovertemplate=f"{plain(name)}, dose %{{customdata[0]}}, seed %{{customdata[1]}}<br>"
                f"{'rescued at' if rescued else 'censored at'} {_COST}<extra></extra>",
            )
    for label, symbol in (
        ("rescued", "circle"),
        ("not rescued: censored where the trial ended", "circle-open"),
    ):
        ledger.append({m: [None] for m in MEASURES})
        marker = {"color": MUTED, "size": 10, "symbol": symbol, "line": {"width": 1.8}}
        figure.add_scatter(y=[None], row=1, col=1, name=label, mode="markers", marker=marker)
    for trace, xs in zip(figure.data, ledger, strict=True):
        trace.x = xs["updates"]
    body = 30 * -place
    dress(
        figure,
        ledger_title(document),
        "One marker per seed. Batch repairs are hit once, so both countings agree for them.",
        height=int(body + 280),
    )
    figure.update_layout(
        margin={"t": 150, "b": 130, "r": 20},
        legend={"orientation": "h", "x": 0, "y": -75 / body, "yanchor": "top"},
    )
    figure.update_annotations(font={"size": 15})
    figure.update_yaxes(
        tickvals=[*ticks],
        ticktext=[*ticks.values()],
        range=[place - 0.2, -0.4],
        showgrid=False,
        ticks="",
        automargin=True,
    )
    choices = [
        {"label": word, "method": "update"}
        | {
            "args": [
                {"x": [xs[m] for xs in ledger]},
                {f"{x}.title.text": word for x in ("xaxis", "xaxis2")}
                | {f"{x}.range": reach(value for xs in ledger for value in xs[m]) for x in ("xaxis", "xaxis2")},
            ]
        }
        for m, word in MEASURES.items()
    ]
    figure.update_layout(choices[0]["args"][1])
    figure.update_xaxes(showgrid=True)
    buttons(figure, choices, room=38)
    return figure
