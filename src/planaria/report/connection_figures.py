"""Figures of a connection: loss and score along every way, on test and training data.

Each function is pure: a result in, a Plotly figure out, or None where the document has nothing to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from planaria.report.connection import COLOURS, Found, barrier, called, profile
from planaria.report.drawing import MUTED, bars, buttons, dress, plain, score_axis, short, zoom
from planaria.report.reading import number
from planaria.report.vulnerability import listed
from planaria.report.words import listing

if TYPE_CHECKING:
    import plotly.graph_objects as go

Points = list[tuple[float, float]]


def loss_figure(found: Found) -> go.Figure | None:
    """Loss along every way.

    Args:
        found: A `connect` result.

    Returns:
        The figure, or None without ways.
    """
    figure, heights = _along(found, "losses", "loss")
    if figure is None:
        return None
    names = [called(way) for way in found.ways if way.get("connects")]
    tolerance = found.tolerance or 0.0
    if not names:
        title = f"Along every way the loss rises more than {tolerance:.3g} above the line between the ends"
    elif len(names) == len(found.ways):
        title = f"Along every way the loss stays within {tolerance:.3g} of the line between the ends"
    else:
        ways = listing([f"the {name}" for name in names])
        title = f"The loss stays within {tolerance:.3g} of the line between the ends along {ways}"
    dress(figure, title, _words("loss"), height=560)
    figure.update_layout(margin={"r": 190})
    figure.update_yaxes(title_text="loss")
    figure.update_xaxes(title_text="t: 0 the first network, 1 the second", range=[-0.02, 1.02])
    _switch(figure, heights)
    return figure


def score_figure(found: Found) -> go.Figure | None:
    """Score along every way.

    Args:
        found: A `connect` result.

    Returns:
        The figure, or None without ways.
    """
    figure, heights = _along(found, "scores", "score")
    if figure is None:
        return None
    ways = sorted(found.ways, key=lambda way: _height(barrier(way, "score")[1]))
    least, most = ways[0], ways[-1]
    say = found.say
    title = f"Least is lost along the {called(least)}, {say.cost(barrier(least, 'score'))} at most"
    if len(ways) > 1 and barrier(most, "score")[1] is not None:
        title += f"; most along the {called(most)}, {say.cost((None, barrier(most, 'score')[1], None))}"
    dress(figure, title, _words(say.notation.score_word), height=560)
    figure.update_layout(margin={"r": 190})
    score_axis(figure, say.notation, "test and train")
    figure.update_yaxes(title_text=say.notation.score_word)
    figure.update_xaxes(title_text="t: 0 the first network, 1 the second", range=[-0.02, 1.02])
    _switch(figure, heights)
    return figure


def _along(found: Found, key: str, kind: str) -> tuple[go.Figure | None, dict[str, list[float]]]:
    """Curves of all ways and of the control; and the values of each way."""
    import plotly.graph_objects as go

    figure, heights = go.Figure(), dict[str, list[float]]()
    curves = [*found.ways, *([found.control] if found.control else [])]
    for way in curves:
        colour, name = COLOURS.get(str(way.get("way")), MUTED), called(way)
        for split, dash, width in (("train", "dash", 1.5), ("test", "solid", 2.5)):
            points = _points(profile(way, split), key)
            if not points:
                continue
            heights.setdefault(name, []).extend(value for _, value in points)
            figure.add_scatter(
                x=[short(t) for t, _ in points],
                y=[short(value) for _, value in points],
                name=plain(name),
                legendgroup=name,
                showlegend=split == "test",
                visible=True if way is not found.control else "legendonly",
                mode="lines+markers",
                line={"color": colour, "width": width, "dash": dash},
                marker={"size": 5 if split == "test" else 3},
                hovertemplate=f"<b>{plain(name)}</b>, {split}<br>t = %{{x:.3f}}<br>{kind} %{{y:.4g}}<extra></extra>",
            )
        if way is not found.control:
            heights.setdefault(name, []).extend(_worst(figure, way, key, kind, colour))
    heights = {name: values for name, values in heights.items() if values}
    if not heights or not found.ways:
        return None, {}
    ends = [point for point in _points(profile(found.ways[0]), key) if point[0] in (0.0, 1.0)]
    if len(ends) == 2:
        figure.add_scatter(
            x=[0, 1],
            y=[short(value) for _, value in ends],
            name="line between the ends",
            mode="lines",
            line={"color": MUTED, "width": 2, "dash": "dot"},
            hoverinfo="skip",
        )
    return figure, heights


def _worst(figure: go.Figure, way: Mapping[str, Any], key: str, kind: str, colour: str) -> list[float]:
    """Draw the worst point on test data, with the interval of its barrier, where there is one; its heights."""
    test, estimate = profile(way), barrier(way, kind)
    at = number(test.get(f"worst_{kind}"))
    value = next((value for t, value in _points(test, key) if t == at), None)
    if value is None or not estimate[1] or at is None:
        return []
    low, best, high = estimate
    sign = 1 if kind == "loss" else -1
    ends = [value, value, value]
    if low is not None and best is not None and high is not None:
        ends = sorted((value + sign * (low - best), value, value + sign * (high - best)))
    figure.add_scatter(
        x=[short(at)],
        y=[short(value)],
        mode="markers",
        marker={"size": 12, "symbol": "diamond-open", "color": colour, "line": {"width": 2}},
        error_y=bars([(ends[0], ends[1], ends[2])], colour),
        legendgroup=called(way),
        showlegend=False,
        hovertemplate=f"<b>{plain(called(way))}</b>, worst<br>t = %{{x:.3f}}<br>{kind} %{{y:.4g}}<extra></extra>",
    )

    return ends


def _points(found: Mapping[str, Any], key: str) -> Points:
    pairs = zip(listed(found.get("times")), listed(found.get(key)), strict=False)
    numbers = [(number(t), number(value)) for t, value in pairs]
    return [(t, value) for t, value in numbers if t is not None and value is not None]


def _words(what: str) -> str:
    return (
        f"Solid: test split; dashed: training split. A dot is a network that was evaluated: a grid, finer around the "
        f"worst {what}. Diamonds: the worst on the test split, with the 95% interval of the barrier. The control is "
        "in the legend."
    )


def _switch(figure: go.Figure, heights: Mapping[str, Sequence[float]]) -> None:
    """Switches between the whole range and that of the ways that stay flat."""
    spans = {name: (min(values), max(values)) for name, values in heights.items()}
    low, high = min(a for a, _ in spans.values()), max(b for _, b in spans.values())
    # Of the control the curves are there only when they are asked for.
    widths = [span for name, span in spans.items() if name != called({"way": "control"})] or [(low, high)]
    widths.sort(key=lambda span: span[1] - span[0])
    flat = widths[: max(1, (len(widths) + 1) // 2)]
    near = (min(a for a, _ in flat), max(b for _, b in flat))

    def padded(a: float, b: float) -> list[float]:
        return [a - 0.06 * ((b - a) or 0.01), b + 0.08 * ((b - a) or 0.01)]

    choices = {"whole range": padded(low, high), "flattest ways": padded(*near)}
    figure.update_yaxes(range=choices["whole range"])
    buttons(figure, zoom(choices))


def _height(value: float | None) -> float:
    return float("inf") if value is None else value
