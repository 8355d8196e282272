"""Surfaces of the loss, from above and in space, with a walk and its controls drawn on them.

Each function is pure: a result in, a Plotly figure out, or None where the document has nothing to show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from planaria.report.drawing import MUTED, buttons, dress, plain, short
from planaria.report.landscape import COLOURS, DAMAGED, INTACT, REPAIRED, Found, grouped
from planaria.report.landscape_figures import event_axis, four, marker_of, proxy, told
from planaria.report.reading import number, part, records
from planaria.report.vulnerability import listed

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Pale is good: what is drawn on it is seen on light and on dark paper.
_GROUND = [[0.0, "rgb(238,241,244)"], [0.35, "rgb(190,200,210)"], [0.7, "rgb(120,135,150)"], [1.0, "rgb(60,74,90)"]]
_GROUND_3D = [[0.0, "rgb(214,222,230)"], [0.5, "rgb(140,170,196)"], [1.0, "rgb(52,84,120)"]]
_PALE_LAST = [[0.0, "rgb(60,74,90)"], [0.3, "rgb(120,135,150)"], [0.65, "rgb(190,200,210)"], [1.0, "rgb(238,241,244)"]]


def surface_figure(found: Found, surface: Mapping[str, Any]) -> go.Figure | None:
    """Loss and score on a plane, from above and in space, with the walk and the controls.

    Args:
        found: A `landscape` result.
        surface: One of its surfaces.

    Returns:
        The figure, or None without a finite loss.
    """
    import plotly.graph_objects as go

    losses = [[number(value) for value in listed(row)] for row in listed(surface.get("loss"))]
    scores = [[number(value) for value in listed(row)] for row in listed(surface.get("score"))]
    known = [value for row in losses for value in row if value is not None]
    if not known:
        return None
    scale = _Scale.of(known)
    lengths = [number(value) or 1.0 for value in listed(surface.get("lengths"))] or [1.0, 1.0]
    walked = surface.get("shares") is not None
    factors = lengths if walked else [1.0, 1.0]
    x, y = (
        [short(f * (number(at) or 0.0)) for at in listed(surface.get(key))]
        for key, f in zip("uv", factors, strict=True)
    )
    figure, say = go.Figure(), found.notation
    texts = [
        [
            f"loss {_three(loss)}<br>{plain(say.score_word)} {say.score(score)}"
            for loss, score in zip(*rows, strict=True)
        ]
        for rows in zip(losses, scores, strict=True)
    ]
    heights = [[None if v is None else short(scale.height(v)) for v in row] for row in losses]
    common = {"x": x, "y": y, "text": texts, "hovertemplate": "%{text}<extra></extra>"}
    level = {"line": {"width": 0.6, "color": "rgba(40,52,66,0.55)"}, "ncontours": 24}
    bar = {"len": 0.5, "y": 0.02, "yanchor": "bottom", "x": 1.14, "xanchor": "left", "thickness": 14, "outlinewidth": 0}
    ticks = {"tickvals": [scale.height(v) for v in scale.ticks], "ticktext": [_three(v) for v in scale.ticks]}
    title = {"side": "top", "font": {"size": 14}}
    figure.add_contour(
        z=heights, colorscale=_GROUND, colorbar={**bar, **ticks, "title": {"text": "loss", **title}}, **common, **level
    )
    percent = {"tickformat": "~%"} if say.percent else {}
    figure.add_contour(
        z=[[four(v) for v in row] for row in scores],
        colorscale=_PALE_LAST,
        colorbar={**bar, **percent, "title": {"text": plain(say.score_word), **title}},
        visible=False,
        **common,
        **level,
    )
    flat = _drawn(found, surface, factors)
    for name, options in flat:
        shown = bool(name) and "coloraxis" not in options.get("marker", {})
        figure.add_scatter(name=name, showlegend=shown, legendgroup=name or "walk", **options)
    space = _in_space(found, surface, factors, scale)
    figure.add_surface(
        z=heights,
        colorscale=_GROUND_3D,
        showscale=False,
        visible=False,
        opacity=0.85,
        contours={"z": {"show": True, "color": "rgba(40,52,66,0.35)", "width": 1}},
        **common,
    )
    for name, options in space:
        shown = bool(name) and "coloraxis" not in options.get("marker", {})
        figure.add_scatter3d(name=name, showlegend=shown, legendgroup=name or "walk", visible=False, **options)
    text = _surface_words(found, surface)
    dress(figure, _surface_title(surface), text, height=700)
    words = ("first component", "second component") if walked else ("first direction", "second direction")
    unit = "distance in weights" if walked else "1: as long as the weights of each filter"
    names = [f"{word} ({unit})" for word in words]
    events = number(part(found.document, "settings").get("events")) or 1.0
    figure.update_layout(
        margin={"r": 230, "t": 150},
        coloraxis={**event_axis(events, 0.02)},
        legend={"y": 1.0, "yanchor": "top", "itemsizing": "constant"},
        scene={
            "xaxis": _space_axis(words[0]),
            "yaxis": _space_axis(words[1]),
            "zaxis": {**_space_axis("loss"), **ticks},
            "aspectratio": {"x": 1.25, "y": 1.25, "z": 0.75},
            "camera": {"eye": {"x": 0.85, "y": -1.4, "z": 1.75}},
            "domain": {"x": [0, 1], "y": [0, 1]},
        },
    )
    figure.layout.coloraxis.colorbar.update({"len": 0.5, "yanchor": "bottom"})
    figure.update_xaxes(title_text=names[0], range=[x[0], x[-1]], constrain="domain")
    figure.update_yaxes(title_text=names[1], range=[y[0], y[-1]], showgrid=False)
    counts = (2 + len(flat), 1 + len(space))

    def switch(label: str, above: Sequence[bool] | None) -> dict[str, Any]:
        planar = [False, False] if above is None else list(above)
        seen = [*planar, *[above is not None] * (counts[0] - 2), *[above is None] * counts[1]]
        axes = {"xaxis.visible": above is not None, "yaxis.visible": above is not None}
        return {"label": label, "method": "update", "args": [{"visible": seen}, axes]}

    buttons(
        figure,
        [switch("loss", [True, False]), switch(plain(say.score_word), [False, True]), switch("loss in space", None)],
    )
    return figure


class _Scale:
    """Loss -> height: its logarithm where it spans much, else the loss itself; with ticks."""

    def __init__(self, logarithmic: bool, low: float, high: float) -> None:
        self.logarithmic, self.low, self.high = logarithmic, low, high

    @staticmethod
    def of(values: Sequence[float]) -> _Scale:
        low, high = min(values), max(values)
        return _Scale(low > 0 and high > 10 * low, low, high)

    def height(self, value: float) -> float:
        if not self.logarithmic:
            return value
        return math.log10(max(value, self.low / 100))

    @property
    def ticks(self) -> list[float]:
        if not self.logarithmic:
            return [self.low + (self.high - self.low) * k / 4 for k in range(5)]
        powers = range(math.floor(math.log10(self.low)) - 1, math.ceil(math.log10(self.high)) + 1)
        wide = self.high > 1e4 * self.low
        found = [digit * 10.0**power for power in powers for digit in ((1,) if wide else (1, 2, 5))]
        return [value for value in found if self.low <= value <= self.high]


def _three(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _space_axis(title: str) -> dict[str, Any]:
    """What WebGL draws is not recoloured by the page: grey stands on light and on dark paper."""
    return {
        "title": {"text": title, "font": {"color": MUTED, "size": 13}},
        "tickfont": {"color": MUTED, "size": 11},
        "gridcolor": "rgba(122,134,148,0.35)",
        "showbackground": False,
        "zeroline": False,
    }


def _walk_of(surface: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [stop for stop in records(surface.get("walk")) if number(stop.get("u")) is not None]


def _drawn(found: Found, surface: Mapping[str, Any], factors: Sequence[float]) -> list[tuple[str, dict[str, Any]]]:
    """The walk and the controls from above; open markers are mostly off the plane."""
    walk = _walk_of(surface)
    x, y = (
        [0.0, *(short(f * (number(stop.get(key)) or 0.0)) for stop in walk)]
        for key, f in zip("uv", factors, strict=True)
    )
    line = {"mode": "lines", "line": {"color": "rgba(29,39,51,0.8)", "width": 1}, "hoverinfo": "skip"}
    drawn: list[tuple[str, dict[str, Any]]] = [("", {"x": x, "y": y, **line})] if walk else []
    for group, stops in _ordered(found, surface):
        marker = marker_of(group, [number(stop["network"].get("event")) for stop in stops])
        symbols = [_open(marker["symbol"], stop) for stop in stops]
        ring = {} if group == DAMAGED else {"line": {"width": 1.2, "color": COLOURS[INTACT]}}
        if group not in (DAMAGED, REPAIRED):
            ring = {"line": {"width": 1.5, "color": COLOURS.get(group, MUTED)}}
        drawn.append(
            (
                group,
                {
                    "x": [short(factors[0] * (number(stop.get("u")) or 0.0)) for stop in stops],
                    "y": [short(factors[1] * (number(stop.get("v")) or 0.0)) for stop in stops],
                    "mode": "markers",
                    "marker": {**marker, "size": 9 if group != DAMAGED else 6, "symbol": symbols, **ring},
                    "customdata": [_stop_words(found, stop) for stop in stops],
                    "hovertemplate": "%{customdata}<extra></extra>",
                },
            )
        )
        if "coloraxis" in marker:
            drawn.append((group, {"x": [None], "y": [None], **proxy(group)}))
    centre = {"x": [0.0], "y": [0.0], "mode": "markers", "marker": marker_of(INTACT, [None])}
    centre |= {"hovertemplate": f"intact · loss {_three(number(surface.get('centre_loss')))}<extra></extra>"}
    return [*drawn, (INTACT, centre)]


def _ordered(found: Found, surface: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    stops = grouped(found, surface)
    order = ["independent", "without damage", "displaced", DAMAGED, REPAIRED]
    return [(group, stops[group]) for group in order if stops.get(group)]


def _open(symbol: str, stop: Mapping[str, Any]) -> str:
    off, far = number(stop.get("off")) or 0.0, number(stop.get("far")) or 0.0
    return symbol if symbol.endswith("open") or off**2 <= 0.5 * far**2 else f"{symbol}-open"


def _stop_words(found: Found, stop: Mapping[str, Any]) -> str:
    off, far = number(stop.get("off")), number(stop.get("far"))
    words = [plain(told(found, stop["network"]))]
    words.append(
        f"loss {_three(number(stop.get('loss')))}, of the point below it {_three(number(stop.get('loss_below')))}"
    )
    if off is not None and far:
        words.append(f"{off:.3g} off the plane, {far:.3g} from the intact network")
    return "<br>".join(words)


def _in_space(
    found: Found, surface: Mapping[str, Any], factors: Sequence[float], scale: _Scale
) -> list[tuple[str, dict[str, Any]]]:
    """The walk at the losses that its networks have, with a stem to the surface below each."""
    walk = [
        stop for stop in _walk_of(surface) if None not in (number(stop.get("loss")), number(stop.get("loss_below")))
    ]
    drawn: list[tuple[str, dict[str, Any]]] = []

    def at(stop: Mapping[str, Any], loss: str) -> tuple[float, float, float]:
        u, v = (factor * (number(stop.get(key)) or 0.0) for key, factor in zip("uv", factors, strict=True))
        return u, v, scale.height(number(stop.get(loss)) or scale.low)

    centre = number(surface.get("centre_loss"))
    start = [] if centre is None else [(0.0, 0.0, scale.height(centre))]
    way = [*start, *(at(stop, "loss") for stop in walk)]
    stems = [point for stop in walk for point in (at(stop, "loss"), at(stop, "loss_below"), (None, None, None))]
    for points, options in (
        (way, {"line": {"color": COLOURS[INTACT], "width": 3}}),
        (stems, {"line": {"color": MUTED, "width": 2}}),
    ):
        x, y, z = ([None if p[axis] is None else short(p[axis]) for p in points] for axis in range(3))
        drawn.append(("", {"x": x, "y": y, "z": z, "mode": "lines", "hoverinfo": "skip", **options}))
    for group, stops in _ordered(found, surface):
        known = [(stop, at(stop, "loss")) for stop in stops if number(stop.get("loss")) is not None]
        marker = marker_of(group, [number(stop["network"].get("event")) for stop, _ in known])
        marker = {key: value for key, value in marker.items() if key in ("color", "coloraxis")}
        if "coloraxis" in marker:
            colour = proxy(group)["marker"]["color"]
            nowhere = {"x": [None], "y": [None], "z": [None], "mode": "markers"}
            drawn.append(
                (group, {**nowhere, "marker": {"color": colour, "symbol": "x" if group == DAMAGED else "circle"}})
            )
        symbol = {"independent": "diamond", "without damage": "square", DAMAGED: "x"}.get(group, "circle")
        x, y, z = ([short(place[axis]) for _, place in known] for axis in range(3))
        drawn.append(
            (
                group,
                {
                    "x": x,
                    "y": y,
                    "z": z,
                    "mode": "markers",
                    "marker": {**marker, "symbol": symbol, "size": 3 if group == DAMAGED else 5},
                    "customdata": [_stop_words(found, stop) for stop, _ in known],
                    "hovertemplate": "%{customdata}<extra></extra>",
                },
            )
        )
    return drawn


def _surface_title(surface: Mapping[str, Any]) -> str:
    off = number(surface.get("off"))
    name = "The plane of the walk" if surface.get("shares") is not None else "Two random directions"
    if off is None:
        return name
    return f"{name}: {100 * (1 - off):.0f}% of the walk's squared distance lies in it"


def _surface_words(found: Found, surface: Mapping[str, Any]) -> str:
    sides = len(listed(surface.get("u")))
    examples = number(surface.get("examples")) or 0
    text = f"{sides} x {sides} points on {examples:,.0f} inputs ({surface.get('split')}); {surface.get('directions')}; "
    text += (
        f"{surface.get('statistics')}. Pale is good. The line joins hits (crosses) and repairs of the first walk by "
    )
    text += "turns; each network is drawn at the nearest point of the plane, open where most of it is elsewhere."
    edges = {key: number((listed(surface.get(key)) or [1.0])[-1]) or 1.0 for key in "uv"}
    outside = sum(
        any(abs(number(stop.get(key)) or 0.0) > edge for key, edge in edges.items())
        for stops in grouped(found, surface).values()
        for stop in stops
    )
    return text + (f" {outside} lie outside of the frame." if outside else "")
