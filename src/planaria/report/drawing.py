"""The drawing vocabulary of all figures: fixed colours and markers, levels, bars, axes, switches.

Neutral colours are mid-grey so that they stand on light and on dark paper; the page recolours text and grid
by CSS.
"""

from __future__ import annotations

import html
import textwrap
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from planaria.report.reading import Interval, Notation

if TYPE_CHECKING:
    import plotly.graph_objects as go

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK, MUTED, GRID = "#1d2733", "#7a8694", "#e3e7ec"


class Style(NamedTuple):
    """How one repair or method is drawn.

    Attributes:
        colour: Hexadecimal colour, readable on light and on dark paper.
        symbol: Plotly's name of a marker that also exists open.
        dash: Plotly's name of a line pattern.
    """

    colour: str
    symbol: str
    dash: str = "solid"


# Repairs and ways of hardening. Okabe & Ito's colours for those of the paper, told apart under all common colour
# blindness. Hues do not last for all names: relatives are neighbours in hue, and marker and dash tell them apart,
# in print as well.
_KNOWN = {
    "refit": Style("#E69F00", "diamond"),
    "refit+retrain": Style("#D55E00", "star"),
    "refit+distil": Style("#B5485A", "star-diamond", "dash"),
    "synthetic": Style("#999933", "pentagon", "dash"),
    "sequential": Style("#8C6B4A", "hexagon"),
    "distil": Style("#E0798C", "hexagram", "dash"),
    "retrain": Style("#0072B2", "circle"),
    "extra": Style("#7A6FD0", "circle-cross", "dash"),
    "scratch": Style("#8A93C9", "x", "dot"),
    "regrow": Style("#009E73", "square"),
    "regrow-new": Style("#56B4E9", "triangle-up"),
    "gradmax": Style("#44AA99", "triangle-left", "dash"),
    "recycle": Style("#6FB52C", "triangle-right", "dash"),
    "ripen": Style("#3D9140", "square-cross", "dashdot"),
    "iterative": Style("#AA4499", "triangle-down"),
    "dropout": Style("#C77CC0", "hourglass", "dash"),
    "faults": Style("#D9822B", "bowtie", "dash"),
    "targeted": Style("#7C5BA6", "pentagon", "dashdot"),
    "sam": Style("#2F8FA8", "square", "dashdot"),
    "b3": Style("#6B8E23", "diamond", "dash"),
    "damage-repair": Style("#AA4499", "triangle-down"),
    "without damage": Style("#009E73", "square", "dash"),
    "none": Style(MUTED, "cross"),
    "plain": Style(MUTED, "cross"),
}
_OTHERS = (
    Style("#999933", "pentagon"),
    Style("#CC6677", "hexagram"),
    Style("#7A6FD0", "cross"),
    Style("#44AA99", "bowtie"),
    Style("#B07AA1", "hourglass"),
)
# A sequential scale in one order of lightness, none so light or so dark that it is lost on its paper.
_SCALE = ((236, 168, 52), (217, 95, 78), (160, 62, 140), (92, 72, 190))


def style(repair: str) -> Style:
    """Colour, marker and dash of a repair or method, the same in every figure and document.

    Example:
        >>> style("refit")
        Style(colour='#E69F00', symbol='diamond', dash='solid')
    """
    other = _OTHERS[zlib.crc32(repair.encode()) % len(_OTHERS)]
    base = _KNOWN.get(repair.partition(":")[0])  # "dropout:0.3" is of dropout's colour
    return _KNOWN.get(repair) or (other if base is None else Style(base.colour, other.symbol, "dot"))


def shade(place: float) -> str:
    """Colour of the sequential scale at a place from 0 to 1.

    Example:
        >>> shade(0.0), shade(1.0)
        ('#eca834', '#5c48be')
    """
    at = min(max(place, 0.0), 1.0) * (len(_SCALE) - 1)
    index = min(int(at), len(_SCALE) - 2)
    pairs = zip(_SCALE[index], _SCALE[index + 1], strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (at - index)):02x}" for a, b in pairs)


def tint(colour: str, opacity: float) -> str:
    """A hexadecimal colour that lets through what is below it.

    Example:
        >>> tint("#0072B2", 0.25)
        'rgba(0,114,178,0.25)'
    """
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def ribbon(
    x: Sequence[float | None],
    low: Sequence[float | None],
    high: Sequence[float | None],
    colour: str,
    opacity: float = 0.25,
) -> dict[str, Any] | None:
    """Arguments of the filled trace between two lines; None where no place has both."""
    band = [(d, a, b) for d, a, b in zip(x, low, high, strict=False) if None not in (d, a, b)]
    if not band:
        return None
    return {
        "x": [d for d, _, _ in band] + [d for d, _, _ in reversed(band)],
        "y": [b for _, _, b in band] + [a for _, a, _ in reversed(band)],
        "fill": "toself",
        "fillcolor": tint(colour, opacity),
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
    }


def plain(text: object) -> str:
    """Text of a user as Plotly shows it literally: Plotly reads a part of HTML in labels."""
    return html.escape(str(text), quote=False)


def short(value: float | None) -> float | None:
    """A number with six digits: what a screen can show, at a third of the page weight."""
    return None if value is None else float(f"{value:.6g}")


def bars(estimates: Sequence[Interval], colour: str) -> dict[str, Any]:
    """Error bars of estimates, invisible where there is no interval."""
    ends = [(0.0, 0.0) if None in e else (e[1] - e[0], e[2] - e[1]) for e in estimates]  # type: ignore[operator]
    return {
        "type": "data",
        "symmetric": False,
        "arrayminus": [short(max(0.0, down)) for down, _ in ends],
        "array": [short(max(0.0, up)) for _, up in ends],
        "visible": any(up or down for up, down in ends),
        "color": colour,
        "thickness": 2,
        "width": 5,
    }


def level(figure: go.Figure, value: float | None, label: str, say: Notation, *, above: bool, dash: str = "dot") -> None:
    """A labelled horizontal line across the figure; nothing where the value is unknown."""
    if value is None:
        return
    figure.add_hline(
        y=value,
        line={"color": MUTED, "width": 1.5, "dash": dash},
        layer="below",
        annotation={
            "text": f"{label} {say.score(value)}",
            "font": {"size": 14},
            "x": 1,
            "xanchor": "left",
            "xshift": 6,
            "yanchor": "bottom" if above else "top",
        },
    )


def dress(figure: go.Figure, title: str, subtitle: str, *, height: int = 500) -> None:
    """Give a figure its title, its fonts and its transparent ground."""
    figure.update_layout(
        title={
            "text": "<br>".join(plain(line) for line in textwrap.wrap(title, 84)),
            "subtitle": {"text": "<br>".join(plain(line) for line in textwrap.wrap(subtitle, 120))},
            "x": 0,
            "xref": "paper",
        },
        template="none",
        height=height,
        font={"family": FONT, "size": 15, "color": INK},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "rgba(122,134,148,0.6)", "activecolor": MUTED},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 76, "r": 150, "t": 110, "b": 64},
        # Between the labels of the levels, which are near the top and the bottom.
        legend={"x": 1.02, "y": 0.5, "yanchor": "middle", "font": {"size": 15}, "tracegroupgap": 2},
        hovermode="closest",
        hoverlabel={"font": {"size": 14}},
    )
    axis = {"gridcolor": GRID, "linecolor": MUTED, "zeroline": False, "ticks": "outside", "tickcolor": MUTED}
    axis |= {"exponentformat": "SI", "separatethousands": True}
    figure.update_xaxes(**axis, showline=True, showgrid=False, title={"standoff": 12, "font": {"size": 15}})
    figure.update_yaxes(**axis, showline=False, showgrid=True, title={"standoff": 14, "font": {"size": 15}})


def dose_axis(figure: go.Figure, say: Notation, doses: Sequence[float | None]) -> None:
    """Doses along x, a little more than the range of `doses`."""
    known = [dose for dose in doses if dose is not None]
    pad = 0.02 * (max(known) - min(known)) if known else 0.0
    figure.update_xaxes(title_text=say.dose_axis, range=[min(known) - pad, max(known) + pad] if pad else None)
    if say.dose_percent:
        # "%" alone would print 12.5% as 13%.
        figure.update_xaxes(tickformat="~%", hoverformat="~%")


def score_axis(figure: go.Figure, say: Notation, split: str) -> None:
    """Scores along y."""
    figure.update_yaxes(title_text=f"{say.score_word}, {split} split", tickformat="~%" if say.percent else None)


def share_axis(figure: go.Figure, title: str) -> None:
    """Shares from 0 to 1 along y."""
    figure.update_yaxes(title_text=title, tickformat="~%", range=[-0.03, 1.06], dtick=0.25)


def reach(values: Iterable[float | None]) -> list[float]:
    """Range of a cost axis: from 0 to the largest value, with room for the markers at both ends."""
    top = max((value for value in values if value is not None), default=0.0) or 1.0
    return [-0.025 * top, 1.025 * top]


def zoom(spans: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Switches of the score axis between named ranges."""
    return [
        {"label": name, "method": "relayout", "args": [{"yaxis.range": [short(value) for value in span]}]}
        for name, span in spans.items()
    ]


def buttons(figure: go.Figure, *rows: Sequence[dict[str, Any]], room: int = 8) -> None:
    """Rows of switches between title and plot, `room` pixels above it; the first of each row is on."""
    figure.update_layout(
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "buttons": list(row),
                "x": place,
                "xanchor": "left" if place == 0 else "right",
                "y": 1,
                "yanchor": "bottom",
                "pad": {"t": 0, "b": room},
                "bgcolor": "rgba(128,138,150,0.10)",
                "bordercolor": "rgba(128,138,150,0.35)",
                "font": {"size": 13},
            }
            for place, row in zip((0, 1), rows, strict=False)
        ]
    )
