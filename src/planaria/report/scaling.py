"""Response curves of networks of several widths: does the break sharpen as networks grow?

All of it is read from `document["scaling"]`; a figure is None where the document has nothing to show.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from planaria.report.drawing import (
    bars,
    dose_axis,
    dress,
    level,
    ribbon,
    score_axis,
    shade,
    short,
)
from planaria.report.reading import (
    Document,
    Interval,
    Notation,
    amount,
    count,
    interval,
    number,
    part,
    records,
    written,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

# What is fitted against the width: its key, the key of its exponent, colour, marker, dash.
_LAWS = {
    "steepness": ("steepness", "exponent", "#0072B2", "circle", "solid"),
    "susceptibility": ("susceptibility", "susceptibility_exponent", "#D55E00", "diamond", "dash"),
}


def verdict_sentence(document: Document) -> str:
    """The verdict with the exponent of the steepness; empty where neither is known."""
    scaling = part(document, "scaling")
    found = str(scaling.get("verdict") or "").rstrip(".")
    found = "no transition shown" if found == "none" else found
    if interval(scaling.get("exponent"))[1] is None:
        return found[:1].upper() + found[1:]
    law = f"steepness goes as width to the power {' '.join(written(scaling.get('exponent'), amount)).rstrip()}"
    text = f"{found}: {law}" if found else law
    return text[0].upper() + text[1:]


def widths_figure(document: Document) -> go.Figure | None:
    """Response curves by width, from the narrowest to the widest in one scale of colours.

    Args:
        document: A `respond` result with several widths.

    Returns:
        The figure, or None without curves.
    """
    import plotly.graph_objects as go

    say, curves = Notation.of(document), []
    for entry in records(part(document, "scaling").get("curves")):
        width = number(entry.get("width"))
        columns = {k: [number(value) for value in entry.get(k) or []] for k in ("doses", "mean", "low", "high")}
        if width is not None and any(value is not None for value in columns["mean"]):
            curves.append((width, columns))
    if not curves:
        return None
    curves.sort(key=lambda curve: curve[0])
    figure = go.Figure()
    colours = [shade(place / max(1, len(curves) - 1)) for place in range(len(curves))]
    for (width, columns), colour in zip(curves, colours, strict=True):
        band = ribbon(columns["doses"], columns["low"], columns["high"], colour, 0.12)
        if band:
            figure.add_scatter(**band, name=f"width {count(width)}", legendgroup=f"{width:g}", showlegend=False)
    for (width, columns), colour in zip(curves, colours, strict=True):
        pairs = list(zip(columns["doses"], columns["mean"], strict=False))
        figure.add_scatter(
            x=[dose for dose, _ in pairs],
            y=[short(mean) for _, mean in pairs],
            name=f"width {count(width)}",
            legendgroup=f"{width:g}",
            mode="lines+markers",
            line={"color": colour, "width": 2.5},
            marker={"size": 6},
            customdata=[[say.dose(dose), say.score(mean)] for dose, mean in pairs],
            hovertemplate=f"width {count(width)}, dose %{{customdata[0]}}<br>%{{customdata[1]}}<extra></extra>",
        )
    title = f"Response curves of {len(curves)} widths, from {count(curves[0][0])} to {count(curves[-1][0])}"
    dress(
        figure,
        title if len(curves) > 1 else f"Response curve of width {count(curves[0][0])}",
        "Mean over draws and seeds; bands: 95% intervals. At a transition the curves cross and steepen without bound.",
    )
    dose_axis(figure, say, [dose for _, columns in curves for dose in columns["doses"]])
    score_axis(figure, say, "test")
    level(figure, number((document.get("task") or {}).get("chance")), "chance", say, above=False)
    return figure


def exponent_figure(document: Document) -> go.Figure | None:
    """Steepness and susceptibility against width in logarithms, with the fitted power laws.

    Args:
        document: A `respond` result with several widths.

    Returns:
        The figure, or None without a positive value.
    """
    import plotly.graph_objects as go

    scaling = part(document, "scaling")
    widths = [number(width) for width in scaling.get("widths") or []]
    figure, drawn = go.Figure(), list[tuple[float, Interval]]()
    for name, (key, law, colour, symbol, dash) in _LAWS.items():
        pairs = zip(widths, (interval(value) for value in scaling.get(key) or []), strict=False)
        # A logarithm knows positive numbers only.
        points = sorted((w, e) for w, e in pairs if w is not None and w > 0 and e[1] is not None and e[1] > 0)
        if not points:
            continue
        drawn += points
        exponent = interval(scaling.get(law))
        figure.add_scatter(
            x=[width for width, _ in points],
            y=[short(e[1]) for _, e in points],
            name=name,
            legendgroup=name,
            mode="markers",
            marker={"color": colour, "size": 11, "symbol": symbol},
            error_y=bars([_positive(e) for _, e in points], colour),
            customdata=[[" ".join(_told(e))] for _, e in points],
            hovertemplate=f"width %{{x}}<br>{name} %{{customdata[0]}}<extra></extra>",
        )
        if exponent[1] is None or len(points) < 2:
            continue
        ends = [points[0][0], points[-1][0]]
        low, best, high = (_line(points, slope, ends) for slope in exponent)
        if low and high:
            # The lines of both slopes cross in the middle: two wedges, not one strip.
            x, y = _centre(points)
            edges = [[pick(pair) for pair in zip(low, high, strict=True)] for pick in (min, max)]
            under, over = ([edge[0], y, edge[1]] for edge in edges)
            wedges = ribbon([ends[0], x, ends[1]], under, over, colour, 0.12)
            if wedges:
                figure.add_scatter(**wedges, name=name, legendgroup=name, showlegend=False)
        figure.add_scatter(
            x=ends,
            y=best,
            name=f"width to the power {' '.join(_told(exponent)).rstrip()}",
            legendgroup=name,
            mode="lines",
            line={"color": colour, "width": 2.5, "dash": dash},
            hoverinfo="skip",
        )
    if not figure.data:
        return None
    larger = interval(scaling.get("exponent_of_larger"))
    note = f" Exponent of the steepness among the larger widths: {' '.join(_told(larger)).rstrip()}."
    dress(
        figure,
        verdict_sentence(document) or "How steepness and susceptibility change with the width",
        "Both axes logarithmic, so that a power law is a straight line; bars and bands: 95% intervals."
        + (note if larger[1] is not None else ""),
    )
    known = sorted({width for width in widths if width is not None and width > 0})
    figure.update_xaxes(type="log", title_text="width (units of a hidden layer)")
    figure.update_xaxes(tickvals=known, ticktext=[count(width) for width in known])
    # Plotly's own ticks between the powers of ten leave the zeros away: "5" for 0.5.
    # The bands of wild exponents would leave the points in one line: they are cut.
    bottom, top = min(min(_span(e)) for _, e in drawn) / 1.3, max(max(_span(e)) for _, e in drawn) * 1.3
    ticks = _ticks(bottom, top)
    figure.update_yaxes(type="log", title_text="steepness, susceptibility", tickvals=ticks)
    figure.update_yaxes(range=[short(math.log10(bottom)), short(math.log10(top))])
    figure.update_yaxes(ticktext=[f"{tick:g}" for tick in ticks])
    return figure


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis, at most about ten of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) < 5 else (1,)
    return [float(f"{step}e{power}") for power in powers for step in steps][:: max(1, len(powers) // 10)]


def _told(estimate: Interval) -> tuple[str, str]:
    return written(dict(zip(("low", "best", "high"), estimate, strict=True)), amount)


def _positive(estimate: Interval) -> Interval:
    """The estimate as a logarithmic axis can draw it: a lower end of 0 lies far below."""
    low, best, high = estimate
    return estimate if low is None or low > 0 or best is None else (best / 1000, best, high)


def _span(estimate: Interval) -> list[float]:
    """What is seen of an estimate on a logarithmic axis, no more than a factor of 30 to either side."""
    low, best, high = estimate
    middle = best or 1.0
    ends = [min(max(end, middle / 30), 30 * middle) for end in (low, high) if end is not None]
    return [middle, *ends]


def _centre(points: list[tuple[float, Interval]]) -> tuple[float, float]:
    """Geometric means of widths and values, where the fitted line passes."""
    logs = [(math.log(width), math.log(e[1] or 1.0)) for width, e in points]
    return math.exp(sum(x for x, _ in logs) / len(logs)), math.exp(sum(y for _, y in logs) / len(logs))


def _line(points: list[tuple[float, Interval]], slope: float | None, ends: list[float]) -> list[float]:
    """Heights at both ends of the power law with this exponent; empty without one."""
    if slope is None:
        return []
    x, y = _centre(points)
    return [float(f"{y * (end / x) ** slope:.6g}") for end in ends]
