"""The drawing vocabulary of all figures: fixed colours and markers, levels, bars, axes, switches.

Neutral colours are mid-grey so that they stand on light and on dark paper; the page recolours text and grid
by CSS.
"""

from __future__ import annotations

import html
import textwrap
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from planaria.report.reading import Interval, Notation

if TYPE_CHECKING:
    import plotly.graph_objects as go

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK, MUTED, GRID = "#1d2733", "#7a8694", "#e3e7ec"

# Okabe & Ito's colours, told apart under all common colour blindness; the marker repeats the difference in
# print.
_KNOWN = {
    "refit": ("#E69F00", "diamond"),
    "refit+retrain": ("#D55E00", "star"),
    "retrain": ("#0072B2", "circle"),
    "regrow": ("#009E73", "square"),
    "regrow-new": ("#56B4E9", "triangle-up"),
    "iterative": ("#AA4499", "triangle-down"),
    "sequential": ("#8C6B4A", "hexagon"),
    "none": (MUTED, "cross"),
}
_OTHERS = (
    ("#999933", "pentagon"),
    ("#CC6677", "hexagram"),
    ("#7A6FD0", "cross"),
    ("#44AA99", "bowtie"),
    ("#B07AA1", "hourglass"),
)


def style(repair: str) -> tuple[str, str]:
    """Colour and marker of a repair, the same in every figure and document.

    Example:
        >>> style("refit")
        ('#E69F00', 'diamond')
    """
    return _KNOWN.get(repair) or _OTHERS[zlib.crc32(repair.encode()) % len(_OTHERS)]


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
