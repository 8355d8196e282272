"""Figures of a network under a stream of damage: event by event, survival, retention, return, turnover.

Each function is pure: a `survive` document in, a Plotly figure out, or None where there is nothing to show.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from planaria.report.drawing import (
    MUTED,
    bars,
    buttons,
    dress,
    level,
    plain,
    reach,
    ribbon,
    score_axis,
    share_axis,
    short,
    style,
    zoom,
)
from planaria.report.reading import (
    CONTROL,
    DASH,
    Document,
    Interval,
    Notation,
    amount,
    count,
    evenly,
    interval,
    middle,
    number,
    part,
    records,
    share,
    written,
)
from planaria.report.survival import (
    Entry,
    entries,
    events_of,
    grouped,
    horizon_of,
    horizon_words,
    in_turnover,
    name_in,
    rate_words,
    rates_of,
    turnover_sentence,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

_LINES = 40  # drawn at most: more single walks only darken the figure


def trajectory_figure(document: Document) -> go.Figure | None:
    """Validation score after each hit and after each repair: a thin line per walk, the bold one is the median.

    Args:
        document: A `survive` result.

    Returns:
        The figure, or None without trajectories.
    """
    import plotly.graph_objects as go

    say, stored = Notation.of(document), part(document, "survival")
    before = number((document.get("intact") or {}).get("validation"))
    tolerance = number(stored.get("tolerance"))
    target = None if before is None or tolerance is None else before - tolerance
    groups = {name_in(entry): _walks(entry) for entry in entries(document)}
    groups = {name: walks for name, walks in groups.items() if walks}
    if not groups:
        return None
    figure = go.Figure()
    for name, walks in groups.items():
        points = [point for walk in walks[:_LINES] for point in [*walk, {}]]
        figure.add_scatter(
            x=[number(point.get("event")) for point in points],
            y=[short(number(point.get("rescued"))) for point in points],
            name=plain(name),
            legendgroup=plain(name),
            showlegend=False,
            mode="lines",
            line={"color": style(name).colour, "width": 1},
            opacity=0.3,
            hoverinfo="skip",
        )
    for name, walks in groups.items():
        colour, symbol, dash = style(name)
        grid = sorted({event for walk in walks for point in walk if (event := number(point.get("event"))) is not None})
        at = {event: [p for walk in walks for p in walk if number(p.get("event")) == event] for event in grid}
        start = [] if before is None or 0.0 in at else [0.0]
        for key in ("hit", "rescued"):
            hit = key == "hit"
            middles = [middle(number(point.get(key)) for point in at[event]) for event in grid]
            inside = [sum(bool(point.get("inside")) for point in at[event]) for event in grid]
            figure.add_scatter(
                x=[*([] if hit else start), *grid],
                y=[*([] if hit or not start else [before]), *(short(value) for value in middles)],
                name=plain(name),
                legendgroup=plain(name),
                showlegend=not hit,
                mode="lines" if hit else "lines+markers",
                line={"color": colour, "width": 1.8 if hit else 3, "dash": "dot" if hit else dash},
                marker={"size": 7, "symbol": symbol},
                customdata=[["before the first event", ""]] * (0 if hit else len(start))
                + [
                    [
                        f"{say.score(value)} {'after the hit' if hit else 'after repair'}",
                        f"{n} of {len(at[event])} inside",
                    ]
                    for event, value, n in zip(grid, middles, inside, strict=True)
                ],
                hovertemplate=f"{plain(name)}, event %{{x}}<br>%{{customdata[0]}}<br>%{{customdata[1]}}<extra></extra>",
            )
    marker = {"color": MUTED, "width": 1.8, "dash": "dot"}
    figure.add_scatter(x=[None], y=[None], name="after the hit, not yet repaired", mode="lines", line=marker)
    ends = {name: sum(bool(walk[-1].get("inside")) for walk in walks) for name, walks in groups.items()}
    order = sorted(ends, key=lambda name: -ends[name])
    told = grouped([(name, f"{ends[name]} of {len(groups[name])}") for name in order])
    dress(
        figure,
        f"Walks in the good set after their last event: {told}"
        if any(ends.values())
        else "No walk is in the good set after its last event",
        "Thin lines: walks, after repair; bold: their median; dotted: their median after the hit, before repair.",
        height=540,
    )
    events = events_of(document)
    last = max([events or 0.0, *(number(p.get("event")) or 0.0 for s in groups.values() for t in s for p in t)])
    figure.update_xaxes(title_text="damage event", range=reach([last]))
    score_axis(figure, say, "validation")
    level(figure, before, "before damage", say, above=True)
    level(figure, target, "good set", say, above=False, dash="dash")
    seen = [value for trace in figure.data for value in trace.y if value is not None] or [0.0]
    top, bottom = max([*seen, seen[0] if before is None else before]), min(seen)
    height = (top - bottom) or 0.01
    near = max(3 * (tolerance or 0.0), 0.1 * height)
    spans = {"whole range": [bottom - 0.05 * height, top + 0.08 * height]}
    spans["good set"] = [(top if target is None else target) - near, top + 0.3 * near]
    if CONTROL in groups and len(groups) > 1:
        # Without repair the score falls so far that all else would be one line.
        hits = [number(p.get("hit")) for name, walks in groups.items() if name != CONTROL for w in walks for p in w]
        lowest = min((hit for hit in hits if hit is not None), default=bottom)
        height = (top - lowest) or 0.01
        spans = {"repairs only": [lowest - 0.05 * height, top + 0.08 * height], **spans}
    figure.update_layout(legend={"y": 0, "yanchor": "bottom"})
    figure.update_yaxes(range=next(iter(spans.values())))
    buttons(figure, zoom(spans))
    return figure


def _walks(entry: Entry) -> list[list[Entry]]:
    """The trajectory of every seed, by event."""
    walks: dict[str, list[Entry]] = {}
    for point in records(entry.get("trajectories")):
        if number(point.get("event")) is not None:
            walks.setdefault(str(point.get("seed")), []).append(point)
    return [sorted(walk, key=lambda point: number(point.get("event")) or 0.0) for walk in walks.values()]


def survival_figure(document: Document) -> go.Figure | None:
    """Share of walks that never left the good set, as steps over events with their bands.

    Args:
        document: A `survive` result.

    Returns:
        The figure, or None without a survival curve.
    """
    import plotly.graph_objects as go

    curves: list[tuple[Entry, list[float], list[Interval]]] = []
    for entry in entries(document):
        points = [(number(p.get("event")), interval(p)) for p in records(entry.get("survival"))]
        known = sorted((event, ends) for event, ends in points if event is not None and ends[1] is not None)
        if known and known[0][0] > 0:
            known.insert(0, (0.0, (1.0, 1.0, 1.0)))
        if known:
            curves.append((entry, [event for event, _ in known], [ends for _, ends in known]))
    if not curves:
        return None
    figure = go.Figure()
    # Apart by less than a line's width at full height: curves that agree would hide each other.
    shift = {name_in(entry): -0.006 * (place - (len(curves) - 1) / 2) for place, (entry, _, _) in enumerate(curves)}
    for entry, x, ends in curves:
        # Steps are drawn by hand: a filled band knows no steps.
        steps = [x[0], *(at for event in x[1:] for at in (event, event))]
        low, high = ([ends[i // 2][side] for i in range(len(steps))] for side in (0, 2))
        band = ribbon(steps, low, high, style(name_in(entry)).colour, max(0.04, 0.24 / len(curves)))
        if band:
            figure.add_scatter(**band, name=plain(name_in(entry)), legendgroup=plain(name_in(entry)), showlegend=False)
    for entry, x, ends in curves:
        name, (colour, symbol, dash) = name_in(entry), style(name_in(entry))
        horizon, spread = horizon_words(document, entry)
        label = plain(name) + ("" if horizon == DASH else f" · {horizon} {spread}".rstrip())
        figure.add_scatter(
            x=x,
            y=[short((e[1] or 0.0) + shift[name]) for e in ends],
            name=label,
            legendgroup=plain(name),
            mode="lines",
            line={"color": colour, "width": 3, "dash": dash, "shape": "hv"},
            customdata=[[share(e[1]), _ends(e)] for e in ends],
            hovertemplate=f"{plain(name)}, event %{{x}}<br>%{{customdata[0]}} %{{customdata[1]}}<extra></extra>",
        )
        estimate = interval(entry.get("median_horizon"))
        if estimate[1] is not None:
            figure.add_scatter(
                x=[estimate[1]],
                y=[0.5],
                name=f"{plain(name)}: median horizon",
                legendgroup=plain(name),
                showlegend=False,
                mode="markers",
                marker={"color": colour, "size": 14, "symbol": symbol, "line": {"color": "white", "width": 1.5}},
                hovertemplate=f"{plain(name)}: half have left by event {horizon} {spread}<extra></extra>",
            )
    dress(
        figure,
        _survival_title(document),
        "Share of walks that have been in the good set after every event so far; band: 95% interval; markers and "
        "legend: median horizon. Curves are drawn slightly apart.",
    )
    figure.update_xaxes(title_text="damage event", range=reach([events_of(document), *(x[-1] for _, x, _ in curves)]))
    share_axis(figure, "survival Q")
    figure.add_hline(y=0.5, line={"color": MUTED, "width": 1.5, "dash": "dot"}, layer="below")
    return figure


def _ends(estimate: Interval) -> str:
    low, _, high = estimate
    return "" if low is None or high is None or low == high else f"[{100 * low:.1f}, {100 * high:.1f}]"


def _survival_title(document: Document) -> str:
    horizons = {name_in(entry): horizon for entry in entries(document) if (horizon := horizon_of(entry)) is not None}
    order = sorted(horizons, key=lambda name: -horizons[name])
    told = [
        (name, f"beyond {count(events_of(document))}" if math.isinf(horizons[name]) else count(horizons[name]))
        for name in order
    ]
    return (
        f"Events until half of the walks have left the good set: {grouped(told)}" if told else "Walks in the good set"
    )


def retention_figure(document: Document) -> go.Figure | None:
    """One-step retention against dead units, with Wilson intervals.

    Args:
        document: A `survive` result.

    Returns:
        The figure, or None without retention.
    """
    import plotly.graph_objects as go

    say = Notation.of(document)
    groups: dict[str, list[tuple[float, float, Entry]]] = {}
    for entry in entries(document):
        known = [(*dead, point) for point in records(entry.get("retention")) if (dead := _dead(point)) is not None]
        if known:
            groups[name_in(entry)] = sorted(known, key=lambda one: one[0])
    if not groups:
        return None
    axis = sorted({(least + most) / 2 for points in groups.values() for least, most, _ in points})
    percent = say.dose_percent and axis[-1] <= 1

    def dead_words(least: float, most: float) -> str:
        ends = [say.dose(end) if percent else count(end) for end in (least, most)]
        return ends[0] if least == most else f"{ends[0]} to {ends[1]}"

    figure = go.Figure()
    for place, (name, points) in enumerate(groups.items()):
        colour, symbol, dash = style(name)
        ends = [interval(point) for _, _, point in points]
        # Side by side, so that no interval hides another.
        shift = (place - (len(groups) - 1) / 2) * min(0.009, 0.05 / len(groups)) * (axis[-1] - axis[0] or 1.0)
        figure.add_scatter(
            x=[short((least + most) / 2 + shift) for least, most, _ in points],
            y=[short(e[1]) for e in ends],
            name=plain(name),
            mode="lines+markers",
            line={"color": colour, "width": 1.8, "dash": dash},
            marker={"size": 9, "symbol": symbol},
            error_y=bars(ends, colour),
            customdata=[
                [dead_words(least, most), share(e[1]), _ends(e), count(number(point.get("trials")))]
                for (least, most, point), e in zip(points, ends, strict=True)
            ],
            hovertemplate=f"{plain(name)}, %{{customdata[0]}} dead<br>%{{customdata[1]}} %{{customdata[2]}} of "
            "%{customdata[3]} events<extra></extra>",
        )
    falls = {
        name: next((one for one in points if (interval(one[2])[1] or 0.0) < 0.5), None)
        for name, points in groups.items()
    }
    order = sorted(falls, key=lambda name: -(math.inf if (one := falls[name]) is None else one[0]))
    told = [(n, "never" if (one := falls[n]) is None else dead_words(*one[:2])) for n in order]
    title = f"Dead units from which a repair fails more often than not: {grouped(told)}"
    dress(
        figure,
        title,
        "Of the walks in the good set before an event, the share in it after repair; bars: Wilson's 95% interval over "
        "events.",
    )
    figure.update_xaxes(title_text="units dead before the event (%)" if percent else "units dead before the event")
    if percent:
        figure.update_xaxes(tickformat="~%", hoverformat="~%")
    share_axis(figure, "retention R")
    return figure


def _dead(point: Entry) -> tuple[float, float] | None:
    """Least and most dead units that a retention stands for; None where it says nothing."""
    least = number(point.get("dead"))
    if least is None or interval(point)[1] is None:
        return None
    most = number(point.get("dead_to"))
    return least, least if most is None else most


def return_figure(document: Document) -> go.Figure | None:
    """Autocorrelation of the score after repair, with the return times in the legend.

    Args:
        document: A `survive` result in turnover mode.

    Returns:
        The figure, or None without autocorrelations.
    """
    import plotly.graph_objects as go

    groups = {}
    for entry in entries(document):
        stored = entry.get("autocorrelation")
        values = [number(value) for value in stored] if isinstance(stored, list | tuple) else []
        if any(value is not None for value in values):
            groups[name_in(entry)] = (entry, values)
    if not groups or not in_turnover(document):
        return None
    figure = go.Figure()
    told: list[tuple[str, str]] = []
    for name, (entry, values) in groups.items():
        colour, symbol, dash = style(name)
        back, ends = written(entry.get("return_time"), amount)
        if back != DASH:
            told.append((name, back))
        figure.add_scatter(
            # A series that starts with its own 1 starts at lag 0.
            x=list(range(len(values))) if values[0] == 1 else list(range(1, len(values) + 1)),
            y=[short(value) for value in values],
            name=plain(name) + ("" if back == DASH else f" · back after {back} {ends}".rstrip()),
            mode="lines+markers",
            line={"color": colour, "width": 2.5, "dash": dash},
            marker={"size": 8, "symbol": symbol},
            hovertemplate=f"{plain(name)}, %{{x}} events later<br>%{{y:.2f}}<extra></extra>",
        )
    dress(
        figure,
        f"Events until a walk is back in the good set: {grouped(told)}"
        if told
        else "No walk that left the good set came back",
        "Correlation of the score after repair with itself so many events later; legend: median return time in events.",
    )
    figure.update_xaxes(title_text="events later", dtick=1 if max(len(v) for _, v in groups.values()) < 16 else None)
    figure.update_yaxes(title_text="autocorrelation")
    figure.add_hline(y=0, line={"color": MUTED, "width": 1.5, "dash": "dot"}, layer="below")
    return figure


def turnover_figure(document: Document) -> go.Figure | None:
    """Area under the response curve against the turnover rate, beside the control without turnover.

    Args:
        document: A `survive` result in turnover mode.

    Returns:
        The figure, or None where no rates were compared.
    """
    import plotly.graph_objects as go

    say = Notation.of(document)
    rates = {rate: interval(entry.get("area")) for rate, entry in rates_of(document).items()}
    rates = {rate: area for rate, area in rates.items() if area[1] is not None}
    if not rates:
        return None
    figure, control = go.Figure(), rates.get(0.0)
    span = [min(rates), max(rates)]
    pad = 0.05 * (span[1] - span[0]) or 0.05
    if control is not None:
        edges = [span[0] - pad, span[1] + pad]
        band = ribbon(edges, [control[0]] * 2, [control[2]] * 2, MUTED, 0.18)
        if band:
            figure.add_scatter(**band, name="control: 95% interval")
    for name, chosen, colour, symbol in (
        ("control: no turnover", [r for r in rates if r == 0], MUTED, "square"),
        ("with turnover", [r for r in rates if r != 0], "#0072B2", "circle"),
    ):
        if chosen:
            figure.add_scatter(
                x=chosen,
                y=[short(rates[rate][1]) for rate in chosen],
                name=name,
                mode="lines+markers",
                line={"color": colour, "width": 2.5},
                marker={"size": 11, "symbol": symbol},
                error_y=bars([rates[rate] for rate in chosen], colour),
                customdata=[[rate_words(r), f"{say.score(rates[r][1])} {say.spread(rates[r])}"] for r in chosen],
                hovertemplate="turnover rate %{customdata[0]}<br>area %{customdata[1]}<extra></extra>",
            )
    dress(
        figure,
        turnover_sentence(document) or "How hard the network is to hurt after a life of turnover",
        "Mean over seeds at equal budget; bars and band: 95% interval.",
    )
    marks = evenly(list(rates), 12)
    figure.update_xaxes(title_text="turnover rate (% of units per event)", range=[span[0] - pad, span[1] + pad])
    figure.update_xaxes(tickvals=marks, ticktext=[rate_words(rate) for rate in marks])
    figure.update_yaxes(
        title_text=f"area under the response curve, {say.score_word}", tickformat="~%" if say.percent else None
    )
    if control is not None:
        level(figure, control[1], "control", say, above=True)
    return figure
