"""Figures of resilience: the map per layer, predicted against actual change, the spectrum, speed along damage.

Each function is pure: a result in, a Plotly figure out, or None where the document has nothing to show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from planaria.report.drawing import MUTED, dress, level, plain, ribbon, score_axis, shade, short
from planaria.report.reading import evenly, interval, number, part, records
from planaria.report.resilience import Found, headline, spectrum_sentence
from planaria.report.vulnerability import listed

if TYPE_CHECKING:
    import plotly.graph_objects as go

_MAIN, _OTHER, _WORSE = "#0072B2", "#E69F00", "#D55E00"
_LAYERS, _POINTS, _EACH = 40, 4000, 12  # drawn at most


def map_figure(found: Found) -> go.Figure | None:
    """Every unit of every layer at its predicted change, dead ones counted apart.

    Args:
        found: A `resilience` result.

    Returns:
        The figure, or None without a map.
    """
    import plotly.graph_objects as go

    layers = evenly(found.layers, _LAYERS)
    rows = [[(unit, number(v) or 0.0) for unit, v in enumerate(listed(layer.get("predicted")))] for layer in layers]
    living = [[pair for pair in row if pair[1] > 0] for row in rows]
    if not any(living):
        return None
    figure, room = go.Figure(), max(20, _POINTS // len(layers))
    for at, (layer, pairs) in enumerate(zip(layers, living, strict=True)):
        pairs = sorted(pairs, key=lambda pair: -pair[1])
        pairs = pairs[: room // 2] + evenly(pairs[room // 2 :], room // 2)
        # By rank from the left, so that each layer is a falling curve and no two units hide each other.
        places = [at - 0.36 + 0.72 * (rank + 0.5) / len(pairs) for rank in range(len(pairs))]
        dead = len(rows[at]) - len(living[at])
        figure.add_scatter(
            x=places,
            y=[short(value) for _, value in pairs],
            name=plain(layer.get("layer")),
            mode="markers",
            marker={"color": shade(at / max(1, len(layers) - 1)), "size": 7 if len(pairs) < 100 else 5},
            showlegend=False,
            customdata=[unit for unit, _ in pairs],
            hovertemplate="<b>%{fullData.name}[%{customdata}]</b><br>predicted %{y:.4g}<extra></extra>",
        )
        if dead:
            figure.add_annotation(
                x=at, y=0, yref="paper", yanchor="bottom", text=f"{dead} dead", showarrow=False, font={"size": 13}
            )
    left = f" {len(layers)} of {len(found.layers)} layers are drawn." if len(layers) < len(found.layers) else ""
    text = f"Predicted mean squared change of the {found.changed} when a unit alone is silenced, from one backward "
    text += f"pass per output; a marker per unit, the most vulnerable of a layer on the left.{left}"
    dress(figure, _map_title(found), text, height=520)
    figure.update_layout(margin={"r": 24})
    names = [plain(f"{layer.get('layer')} · {len(row)}") for layer, row in zip(layers, rows, strict=True)]
    figure.update_xaxes(tickvals=list(range(len(layers))), ticktext=names, range=[-0.6, len(layers) - 0.4])
    _logarithmic(figure, "y", "predicted squared change", [value for pairs in living for _, value in pairs])
    return figure


def _map_title(found: Found) -> str:
    means = [
        (sum(values) / len(values), str(layer.get("layer")))
        for layer in found.layers
        for values in [[number(value) or 0.0 for value in listed(layer.get("predicted"))]]
    ]
    top, name = max(means)
    if len(means) < 2 or not top > 0:
        return headline(found)
    return f"Units of {name} are the most vulnerable on average: {top:.3g}, least {min(means)[0]:.3g}"


def scatter_figure(found: Found) -> go.Figure | None:
    """Actual against predicted squared change of units and of sets; on the diagonal the first order is all there is.

    Args:
        found: A `resilience` result.

    Returns:
        The figure, or None without silenced units.
    """
    import plotly.graph_objects as go

    trials = [(t, number(t.get("predicted")) or 0.0, number(t.get("actual")) or 0.0) for t in found.trials]
    trials = [one for one in trials if min(one[1:]) > 0]
    sets = [(s, number(s.get("predicted")) or 0.0, number(s.get("actual")) or 0.0) for s in _sets(found)]
    sets = [one for one in sets if min(one[1:]) > 0]
    if not trials:
        return None
    values = [value for one in (*trials, *sets) for value in one[1:]]
    ends = [min(values) / 1.5, 1.5 * max(values)]
    figure = go.Figure()
    line = {"color": MUTED, "width": 1.5, "dash": "dot"}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, name="actual = predicted", hoverinfo="skip")
    low, best, high = interval(part(found.result, "trials").get("slope"))
    if best is not None and best > 0:
        spread = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
        figure.add_scatter(
            x=ends,
            y=[short(best * end) for end in ends],
            mode="lines",
            line={"color": _MAIN, "width": 2},
            name=f"slope {best:.2f}{spread}",
            hoverinfo="skip",
        )
    names = [f"{t.get('layer')}[{t.get('unit')}]" for t, _, _ in trials]
    figure.add_scatter(
        x=[short(x) for _, x, _ in trials],
        y=[short(y) for _, _, y in trials],
        mode="markers",
        name="one unit",
        marker={"color": _MAIN, "size": 9, "opacity": 0.8},
        customdata=[plain(name) for name in names],
        hovertemplate="<b>%{customdata}</b><br>predicted %{x:.4g}<br>actual %{y:.4g}<extra></extra>",
    )
    if sets:
        figure.add_scatter(
            x=[short(x) for _, x, _ in sets],
            y=[short(y) for _, _, y in sets],
            mode="markers",
            name=f"{len(listed(sets[0][0].get('units')))} units",
            marker={"color": _OTHER, "size": 9, "symbol": "square-open", "line": {"width": 2}},
            customdata=[plain(s.get("how")) for s, _, _ in sets],
            hovertemplate="<b>%{customdata} set</b><br>predicted %{x:.4g}<br>actual %{y:.4g}<extra></extra>",
        )
    text = "Mean squared change of the outputs when units are silenced, first-order prediction and truth. Sets: with "
    text += "cross terms. The slope is that of single units, through the origin, with its 95% interval."
    dress(figure, _scatter_title(found), text, height=560)
    figure.update_layout(legend={"x": 0.02, "y": 0.98, "yanchor": "top"}, margin={"r": 24})
    _logarithmic(figure, "x", "predicted squared change", ends)
    _logarithmic(figure, "y", "actual squared change", ends)
    figure.update_xaxes(showgrid=True)
    return figure


def _scatter_title(found: Found) -> str:
    related = interval(found.guide("gate", "change").get("correlation"))[1]
    slope = interval(part(found.result, "trials").get("slope"))[1]
    if related is None or slope is None:
        return "Predicted and actual change"
    return f"Actual change is {slope:.2f} times the predicted one; rank correlation {related:.2f}"


def _sets(found: Found) -> list[Mapping[str, Any]]:
    return records(found.result.get("sets"))


def spectrum_figure(found: Found) -> go.Figure | None:
    """Eigenvalues of the metric as shares of the largest.

    Args:
        found: A `resilience` result.

    Returns:
        The figure, or None without a spectrum.
    """
    import plotly.graph_objects as go

    spectrum = part(found.result, "spectrum")
    values = [value for v in listed(spectrum.get("values")) if (value := number(v)) is not None and value > 0]
    if not values:
        return None
    shares = [value / values[0] for value in values]
    figure = go.Figure()
    figure.add_scatter(
        x=list(range(1, len(shares) + 1)),
        y=[short(value) for value in shares],
        mode="lines+markers",
        line={"color": _MAIN, "width": 2},
        marker={"size": 5},
        showlegend=False,
        hovertemplate="direction %{x}<br>%{y:.4g} of the largest<extra></extra>",
    )
    for one in records(spectrum.get("stiff")):
        above, few = number(one.get("above")), number(one.get("directions"))
        if above is not None and few is not None and above >= shares[-1]:
            figure.add_hline(y=above, line={"color": MUTED, "width": 1, "dash": "dot"})
            figure.add_annotation(
                x=1,
                xref="paper",
                xanchor="right",
                y=math.log10(above),
                yanchor="bottom",
                text=f"{few:,.0f} above {100 * above:g}%",
                showarrow=False,
                font={"size": 13},
            )
    shown = number(spectrum.get("bound")) or 0.0
    text = "Eigenvalues of the metric, the mean of J'J over inputs: squared change of the outputs per squared step of "
    text += "the weights along each direction."
    text += f" The {len(values)} largest of at most {shown:,.0f} are drawn." if len(values) < shown else ""
    dress(figure, spectrum_sentence(found), text, height=460)
    figure.update_layout(margin={"r": 24})
    figure.update_xaxes(title_text="direction, in order of its eigenvalue")
    _logarithmic(figure, "y", "share of the largest eigenvalue", shares)
    return figure


def speed_figure(found: Found, along: str) -> go.Figure | None:
    """Functional speed as damage grows: mean over random lesions, and each of them.

    Args:
        found: A `resilience` result.
        along: "path" or "count".

    Returns:
        The figure, or None without lesions.
    """
    curve = found.breakdown(along)
    path = along == "path"
    text = "Change of the outputs per unit, from one number of deleted units to the next. "
    if path:
        text = "v(t): change of the outputs per step along the straight line w + t u that silences a random lesion. "
    text += "Thick: mean over lesions with its 95% interval; thin: each. Dotted: 3 times the mean speed at the start."
    figure = _grown(found, curve, "speed", "Functional speed", text)
    if figure is None:
        return None
    first = next((interval(one)[1] for one in records(curve.get("speed"))), None)
    if first:
        figure.add_hline(y=3 * first, line={"color": MUTED, "width": 1.5, "dash": "dot"})
    figure.update_yaxes(title_text="functional speed" if path else "change of the outputs per unit", rangemode="tozero")
    return figure


def score_figure(found: Found, along: str) -> go.Figure | None:
    """Score as damage grows.

    Args:
        found: A `resilience` result.
        along: "path" or "count".

    Returns:
        The figure, or None without scores.
    """
    curve = found.breakdown(along)
    text = "Thick: mean over random lesions with its 95% interval; thin: each. Dashed: the allowed loss of score."
    figure = _grown(found, curve, "score", "Score", text)
    intact, allowed = number(found.result.get("intact")), number(curve.get("allowed"))
    if figure is None or intact is None:
        return None
    score_axis(figure, found.notation, "test")
    level(figure, intact, "intact", found.notation, above=True)
    if allowed is not None:
        figure.add_hline(y=intact - allowed, line={"color": MUTED, "width": 1.5, "dash": "dash"}, layer="below")
    figure.update_layout(margin={"r": 150})
    return figure


def _grown(found: Found, curve: Mapping[str, Any], what: str, name: str, text: str) -> go.Figure | None:
    import plotly.graph_objects as go

    at = [number(place) for place in listed(curve.get("at"))]
    means = [interval(one) for one in records(curve.get(what))]
    if not at or len(means) != len(at):
        return None
    figure, path = go.Figure(), curve.get("along") == "path"
    band = ribbon(at, [one[0] for one in means], [one[2] for one in means], _MAIN)
    if band:
        figure.add_scatter(**band, showlegend=False)
    for run in evenly(records(curve.get("runs")), _EACH):
        values = [short(number(value)) for value in listed(run.get(what))]
        figure.add_scatter(
            x=at, y=values, mode="lines", line={"color": MUTED, "width": 1}, showlegend=False, hoverinfo="skip"
        )
    where = "t = %{x:.2f}" if path else "%{x:.0%} of the units"
    figure.add_scatter(
        x=at,
        y=[short(one[1]) for one in means],
        mode="lines+markers",
        line={"color": _MAIN, "width": 3},
        marker={"size": 6},
        showlegend=False,
        name=name,
        hovertemplate=f"{where}<br>%{{y:.4g}}<extra></extra>",
    )
    places = {"speed": "faster", "score": "worse"}[what]
    turn = number(part(part(curve, places), "median").get("best"))
    if turn is not None:
        figure.add_vline(x=turn, line={"color": _WORSE, "width": 2, "dash": "dot"})
    dress(figure, _grown_title(found, curve, what, turn), text, height=440)
    figure.update_layout(margin={"r": 24})
    axis = "t: 0 the intact weights, 1 the lesion" if path else "share of the units that are deleted"
    figure.update_xaxes(title_text=axis, tickformat=None if path else "~%")
    return figure


def _grown_title(found: Found, curve: Mapping[str, Any], what: str, turn: float | None) -> str:
    path = curve.get("along") == "path"
    where = "along the path" if path else "as units are deleted"
    name = "functional speed" if what == "speed" else found.notation.score_word
    if turn is None:
        if what == "speed":
            return f"No break-down of the {name} {where}"
        return f"The {name} does not give way {where}"
    place = f"t = {turn:.2f}" if path else f"{100 * turn:.0f}% of the units"
    does = "passes 3 times its first value" if what == "speed" else "loses what is allowed"
    return f"The {name} {does} {where} by {place} in half of the lesions"


def _logarithmic(figure: go.Figure, axis: str, title: str, values: Sequence[float]) -> None:
    """A logarithmic axis over the range of some positive numbers, with ticks at powers of ten only."""
    low, high = (math.log10(end) for end in (min(values), max(values)))
    pad = 0.04 * (high - low) or 0.2
    update = figure.update_xaxes if axis == "x" else figure.update_yaxes
    steps = max(1, math.ceil((high - low) / 6))
    update(title_text=title, type="log", range=[low - pad, high + pad], dtick=steps, exponentformat="power")
