"""Figures of a landscape: barriers, pictures of all networks.

Each function is pure: a result in, a Plotly figure out, or None where the document has nothing to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from planaria.report.drawing import MUTED, buttons, dress, plain, shade, short
from planaria.report.landscape import (
    ALL,
    COLOURS,
    DAMAGED,
    DISTANCES,
    INTACT,
    REPAIRED,
    Found,
    said,
)
from planaria.report.reading import evenly, interval, number, part, records
from planaria.report.vulnerability import listed

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SYMBOLS = {
    INTACT: "star",
    DAMAGED: "x-thin-open",
    REPAIRED: "circle",
    "without damage": "square",
    "displaced": "triangle-up",
    "independent": "diamond",
    "untrained": "cross",
}
_EVENTS = [[place / 8, shade(place / 8)] for place in range(9)]
_PAIRS = 600  # drawn at most in each row


def barrier_figure(found: Found) -> go.Figure | None:
    """Every line's barrier, a row per group of networks.

    Args:
        found: A `landscape` result.

    Returns:
        The figure, or None without lines.
    """
    import plotly.graph_objects as go

    rows = [one for one in found.connections if records(one.get("lines"))]
    if not rows:
        return None
    say = found.notation
    factor = 100.0 if say.percent else 1.0
    figure = go.Figure()
    for at, one in enumerate(rows):
        lines = evenly(records(one.get("lines")), _PAIRS)
        values = [number(line.get("barrier")) for line in lines]
        colour = COLOURS.get(str(one.get("group")), MUTED)
        # Spread evenly over the height of the row, so that lines with one barrier are seen to be many.
        heights = [at + 0.3 * (2 * ((place * 0.618034) % 1) - 1) for place in range(len(lines))]
        figure.add_scatter(
            x=[None if value is None else short(factor * value) for value in values],
            y=[short(height) for height in heights],
            mode="markers",
            name=plain(said(one)),
            showlegend=False,
            marker={"color": colour, "size": 6, "opacity": 0.55},
            customdata=[
                f"{plain(_named(found, line.get('first')))}<br>{plain(_named(found, line.get('second')))}"
                for line in lines
            ],
            hovertemplate="barrier %{x:.3g}<br>%{customdata}<extra>%{fullData.name}</extra>",
        )
        mean = number(one.get("mean_barrier"))
        if mean is not None:
            figure.add_scatter(
                x=[short(factor * mean)] * 2,
                y=[at - 0.38, at + 0.38],
                mode="lines",
                line={"color": colour, "width": 4},
                showlegend=False,
                hovertemplate=f"mean barrier {factor * mean:.3g}<extra>{plain(said(one))}</extra>",
            )
    tolerance = number(found.result.get("tolerance"))
    if tolerance is not None:
        figure.add_vline(x=factor * tolerance, line={"color": MUTED, "width": 1.5, "dash": "dash"}, layer="below")
        figure.add_annotation(
            x=factor * tolerance, y=1, yref="paper", yanchor="bottom", xanchor="left", text="tolerance", showarrow=False
        )
    text = "Largest drop of the validation score below the straight line between the scores of the ends, a point per "
    text += "pair of networks; thick: mean. On the right: lines without a drop beyond the tolerance, with 95% interval."
    dress(figure, _barrier_title(rows), text, height=210 + 46 * len(rows))
    for at, one in enumerate(rows):
        low, best, high = interval(one.get("level"))
        if best is not None:
            ends = "" if low is None or high is None else f" [{100 * low:.0f}, {100 * high:.0f}]"
            figure.add_annotation(
                x=1, xref="paper", xanchor="left", xshift=10, y=at, text=f"{100 * best:.0f}%{ends}", showarrow=False
            )
    names = [plain(said(one).partition(", by ")[0] + (", curves" if one.get("way") else "")) for one in rows]
    figure.update_layout(margin={"l": 190, "r": 130})
    unit = "points" if say.percent else say.score_word
    figure.update_xaxes(title_text=f"barrier, {unit}", showgrid=True, rangemode="tozero")
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=names, range=[len(rows) - 0.5, -0.5], showgrid=False, ticks=""
    )
    figure.update_yaxes(ticklabelstandoff=8)
    return figure


def _barrier_title(rows: Sequence[Mapping[str, Any]]) -> str:
    means = {said(one): value for one in rows if (value := interval(one.get("level"))[1]) is not None}
    own = means.get(REPAIRED)
    if own is None:
        return "Barriers between networks"
    text = f"Lines without a barrier: repaired {100 * own:.0f}%"
    for name in ("without damage", "independent"):
        if name in means:
            aligned = means.get(f"{name}, aligned")
            text += f", {name} {100 * means[name]:.0f}%"
            text += "" if aligned is None else f" (aligned {100 * aligned:.0f}%)"
    return text


def _named(found: Found, place: object) -> str:
    at = number(place)
    if at is None or not 0 <= at < len(found.members):
        return "a network"
    return told(found, found.members[int(at)])


def told(found: Found, member: Mapping[str, Any]) -> str:
    """A network in words, with its score."""
    walk, event = number(member.get("walk")), number(member.get("event"))
    name = str(member.get("group"))
    if event is not None:
        name += f", walk {walk:.0f}, event {event:.0f}"
    elif walk is not None:
        name += f" {walk:.0f}"
    return f"{name} · {found.notation.score(number(member.get('score')))}"


# ---------------------------------------------------------------------------------------------------- the pictures


def pictures_figure(found: Found, of: str) -> go.Figure | None:
    """Networks in the plane by every method, with a switch between distances.

    Args:
        found: A `landscape` result.
        of: Which networks, ALL or NEAR.

    Returns:
        The figure, or None without pictures.
    """
    import plotly.graph_objects as go

    pictures = [one for one in found.pictures(of) if records(one.get("embeddings"))]
    if not pictures:
        return None
    panels = min(len(records(one.get("embeddings"))) for one in pictures)
    across = min(3, panels)
    down = -(-panels // across)
    traces = _traces(found, pictures)
    figure = go.Figure()
    for panel in range(panels):
        for name, places, options in traces:
            x, y = _coordinates(pictures[0], panel, places)
            axes = {} if panel == 0 else {"xaxis": f"x{panel + 1}", "yaxis": f"y{panel + 1}"}
            shown = {"showlegend": panel == 0 and bool(name) and "coloraxis" not in options.get("marker", {})}
            figure.add_scatter(x=x, y=y, name=name, legendgroup=name or "walk", **options, **axes, **shown)
    first = part(found.document, "settings")
    title = f"{'All networks' if of == ALL else 'Walks and what stays near'} in the plane: {_believed_words(pictures)}"
    text = "Every method draws the same distances; axes have no unit. Lines join the repaired networks of a walk, "
    text += "colour is the event. Under each method: trustworthiness, continuity, share of neighbours that other seeds "
    text += "draw alike; * neighbours may be believed."
    dress(figure, title, text, height=160 + 330 * down)
    events = number(first.get("events")) or 1.0
    figure.update_layout(
        margin={"l": 8, "r": 170, "b": 16, "t": 140},
        coloraxis=event_axis(events, 0.22),
        legend={"y": 1.0, "yanchor": "top", "itemsizing": "constant"},
    )
    gap, tall = 0.02, 44 / (330 * down)
    for panel in range(panels):
        row, column = divmod(panel, across)
        left, top = column / across, 1 - row / down
        suffix = "" if panel == 0 else str(panel + 1)
        plainly = {"showticklabels": False, "ticks": "", "showgrid": False, "zeroline": False, "showline": True}
        plainly |= {"linecolor": "rgba(122,134,148,0.5)", "mirror": True}
        sides = {
            "x": [left + (gap / 2 if column else 0), left + 1 / across - gap / 2],
            "y": [top - 1 / down, top - tall],
        }
        figure.update_layout(
            {
                f"xaxis{suffix}": {**plainly, "domain": sides["x"], "anchor": f"y{suffix}"},
                f"yaxis{suffix}": {
                    **plainly,
                    "domain": [max(0.0, sides["y"][0] + 0.01), sides["y"][1]],
                    "anchor": f"x{suffix}",
                    "scaleanchor": f"x{suffix}",
                },
            }
        )
    notes = [[_panel_title(one, panel) for panel in range(panels)] for one in pictures]
    figure.update_layout(annotations=notes[0])
    switches = []
    for at, one in enumerate(pictures):
        pairs = [_coordinates(one, panel, places) for panel in range(panels) for _, places, _ in traces]
        new = {"x": [pair[0] for pair in pairs], "y": [pair[1] for pair in pairs]}
        name = DISTANCES.get(str(one.get("distance")), str(one.get("distance")))
        switches.append({"label": plain(name), "method": "update", "args": [new, {"annotations": notes[at]}]})
    if len(switches) > 1:
        buttons(figure, switches)
    return figure


def _believed_words(pictures: Sequence[Mapping[str, Any]]) -> str:
    every = [shown for one in pictures for shown in records(one.get("embeddings"))]
    good = sum(bool(shown.get("faithful") and shown.get("stable")) for shown in every)
    return f"neighbours may be believed in {good} of {len(every)} pictures"


def event_axis(events: float, y: float) -> dict[str, Any]:
    """The colours of events, with their bar at a height of the figure."""
    return {
        "colorscale": _EVENTS,
        "cmin": 1,
        "cmax": max(2.0, events),
        "colorbar": {
            "title": {"text": "event", "side": "top", "font": {"size": 14}},
            "len": 0.36,
            "y": y,
            "thickness": 14,
            "x": 1.02,
            "xanchor": "left",
            "outlinewidth": 0,
            "tickfont": {"size": 13},
        },
    }


def _traces(found: Found, pictures: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[int | None], dict[str, Any]]]:
    """What every panel holds: name, places of the networks (None for a gap), and how they are drawn."""
    known = {int(place) for one in pictures for place in listed(one.get("places"))}
    by: dict[str, list[int]] = {}
    for place, member in enumerate(found.members):
        if place in known:
            by.setdefault(str(member.get("group")), []).append(place)
    way: list[int | None] = []
    start = by.get(INTACT, [])[:1]
    for walk in dict.fromkeys(found.members[place].get("walk") for place in by.get(REPAIRED, [])):
        way += [*start, *(place for place in by[REPAIRED] if found.members[place].get("walk") == walk), None]
    line = {"mode": "lines", "line": {"color": MUTED, "width": 1}, "opacity": 0.5, "hoverinfo": "skip"}
    drawn: list[tuple[str, list[int | None], dict[str, Any]]] = [("", way, line)]
    order = ["untrained", "independent", "without damage", "displaced", DAMAGED, REPAIRED, INTACT]
    for group in order:
        if by.get(group):
            places = by[group]
            marker = marker_of(group, [number(found.members[place].get("event")) for place in places])
            texts = [plain(told(found, found.members[place])) for place in places]
            hover = "%{customdata}<extra></extra>"
            options = {"mode": "markers", "marker": marker, "customdata": texts, "hovertemplate": hover}
            drawn.append((group, list(places), options))
            if "coloraxis" in marker:
                drawn.append((group, [None], proxy(group)))
    return drawn


def proxy(group: str) -> dict[str, Any]:
    """What the legend shows of a group whose colour is the event."""
    colour = shade(0.5)
    line = {"width": 1.5, "color": colour}
    return {"mode": "markers", "marker": {"symbol": _SYMBOLS[group], "size": 7, "color": colour, "line": line}}


def marker_of(group: str, events: Sequence[float | None]) -> dict[str, Any]:
    """How a group is drawn; networks of a walk are coloured by their event."""
    marker: dict[str, Any] = {"symbol": _SYMBOLS.get(group, "circle"), "size": 7}
    if group in (DAMAGED, REPAIRED):
        marker |= {"color": [event or 0.0 for event in events], "coloraxis": "coloraxis"}
    else:
        marker |= {"color": COLOURS.get(group, MUTED), "opacity": 0.85}
    if group == DAMAGED:
        marker |= {"size": 5, "line": {"width": 1.5, "color": COLOURS[DAMAGED]}, "opacity": 0.6}
    if group == INTACT:
        marker |= {"size": 14, "opacity": 1.0, "line": {"width": 1.2, "color": "white"}}
    return marker


def _coordinates(
    picture: Mapping[str, Any], panel: int, places: Sequence[int | None]
) -> tuple[list[float | None], list[float | None]]:
    """Where networks are drawn; None for gaps and for those that could not be placed."""
    shown = records(picture.get("embeddings"))[panel]
    at = dict(zip(listed(picture.get("places")), listed(shown.get("points")), strict=False))
    points = [at.get(place, (None, None)) if place is not None else (None, None) for place in places]
    x, y = ([four(number(point[axis])) for point in points] for axis in (0, 1))
    return x, y


def four(value: float | None) -> float | None:
    """A number with four digits: what a picture of this size can show."""
    return None if value is None else float(f"{value:.4g}")


def _panel_title(picture: Mapping[str, Any], panel: int) -> dict[str, Any]:
    shown = records(picture.get("embeddings"))[panel]
    trust, kept, overlap = (number(shown.get(key)) for key in ("trustworthiness", "continuity", "overlap"))
    star = " *" if shown.get("faithful") and shown.get("stable") else ""
    words = f"{trust:.2f} · {kept:.2f}" if trust is not None and kept is not None else ""
    words += f" · {overlap:.2f}" if overlap is not None else ""
    axis = "" if panel == 0 else str(panel + 1)
    return {
        "text": f"<b>{plain(shown.get('method'))}</b>{star}<br>{words}",
        "xref": f"x{axis} domain",
        "yref": f"y{axis} domain",
        "x": 0,
        "y": 1,
        "xanchor": "left",
        "yanchor": "bottom",
        "align": "left",
        "showarrow": False,
        "font": {"size": 13},
    }
