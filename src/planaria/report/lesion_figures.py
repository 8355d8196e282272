"""Figures of a lesion study: what each lesion does to each class, and what regions cost beside random units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planaria.report.drawing import MUTED, bars, dress, plain, short
from planaria.report.lesions import DOUBLE, LEVEL, NONE, SINGLE, Cost, Found, Lesion
from planaria.report.reading import number
from planaria.report.vulnerability import listed

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Gain, nothing, loss: told apart under all common colour blindness; the middle stands on light and on dark paper.
_SCALE = [[0.0, "rgb(0,98,160)"], [0.5, "rgb(214,219,225)"], [0.75, "rgb(240,160,80)"], [1.0, "rgb(190,70,8)"]]
_LOSS, _RANDOM, _PARTS = "#D55E00", MUTED, "#0072B2"
_ROWS, _LABELS = 40, 400


def selective_figure(found: Found) -> go.Figure | None:
    """Loss of every class under the lesion of units selective for each; the diagonal is framed.

    Args:
        found: A `lesion` result.

    Returns:
        The figure, or None without lesions of selective units.
    """
    lesions = found.selective[:_ROWS]
    if not lesions or len(found.classes) < 2:
        return None
    size = lesions[0].size
    own = [one.classes[found.classes.index(one.label)] for one in lesions if one.label in found.classes]
    rest = [cost for one in lesions for cost in one.classes if not any(cost is other for other in own)]
    means = [sum(cost.lost[1] or 0.0 for cost in costs) / max(1, len(costs)) for costs in (own, rest)]
    title = "Lesions of selective units cost their own class "
    title += f"{found.say.mean(means[0])} on average, another class {found.say.mean(means[1])}"
    text = f"Rows: the {size} units most selective for a class, silenced; below, random units of the same layers. "
    text += "Columns: the class that is tested. On the frame a lesion meets its own class. * costs more than random "
    text += "lesions do (p < 0.05, uncorrected)."
    return _heat(found, [*lesions, _random(lesions)], title, text, "selective for")


def pairs_figure(found: Found) -> go.Figure | None:
    """Which pairs of classes dissociate, as a triangle.

    Args:
        found: A `lesion` result.

    Returns:
        The figure, or None without pairs.
    """
    import plotly.graph_objects as go

    if not found.pairs:
        return None
    places = {name: at for at, name in enumerate(found.classes)}
    grades = {NONE: 0, SINGLE: 1, DOUBLE: 2}
    grid: list[list[int | None]] = [[None] * len(places) for _ in places]
    words = [[""] * len(places) for _ in places]
    for pair in found.pairs:
        one, other = sorted(places.get(str(name), 0) for name in [*listed(pair.get("classes")), "", ""][:2])
        grid[other][one] = grades.get(str(pair.get("verdict")), 0)
        p_value = number(pair.get("p_value"))
        words[other][one] = plain(pair.get("words")) + ("" if p_value is None else f"<br>p {p_value:.2g}")
    names = [plain(name) for name in places]
    colours = ["rgb(214,219,225)", "rgb(240,160,80)", "rgb(190,70,8)"]
    steps = [[edge / 3, colours[at]] for at in range(3) for edge in (at, at + 1)]
    figure = go.Figure()
    figure.add_heatmap(
        x=names[:-1],
        y=names[1:],
        z=[row[:-1] for row in grid[1:]],
        customdata=[row[:-1] for row in words[1:]],
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        colorscale=steps,
        zmin=-0.5,
        zmax=2.5,
        xgap=1,
        ygap=1,
        colorbar={"tickvals": [0, 1, 2], "ticktext": ["none", "single", "double"], "thickness": 14, "outlinewidth": 0},
    )
    double, pairs = len(found.verdicts(DOUBLE)), len(found.pairs)
    text = (
        "Double: each lesion hurts its own class more than the other class, and more than the other lesion does, and "
    )
    text += "more than random lesions do. Single: that holds for one of the two lesions."
    dress(figure, f"{double} of {pairs} pairs of classes dissociate doubly", text, height=210 + 28 * len(names))
    figure.update_layout(margin={"l": 90, "r": 420})
    figure.update_xaxes(type="category", showline=False, ticks="", title_text="class")
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, ticks="", ticklabelstandoff=6)
    return figure


def region_classes_figure(found: Found) -> go.Figure | None:
    """Loss of every class under the lesion of each region.

    Args:
        found: A `lesion` result.

    Returns:
        The figure, or None without regions or classes.
    """
    lesions = _regions(found)
    if not lesions or len(found.classes) < 2:
        return None
    text = "Rows: regions, silenced whole. Columns: the class that is tested. * costs more than random lesions do "
    text += "(p < 0.05, uncorrected)."
    return _heat(found, lesions, "Which class a region hurts", text, "region")


def _random(lesions: Sequence[Lesion]) -> Lesion:
    """What random lesions of the same size cost, as a row of its own."""

    def only(cost: Cost) -> Cost:
        return Cost(cost.control, (None, None, None), None)

    one = lesions[0]
    return Lesion("random units", "", one.size, None, only(one.whole), [only(cost) for cost in one.classes], None)


def _heat(found: Found, lesions: Sequence[Lesion], title: str, text: str, rows: str) -> go.Figure:
    import plotly.graph_objects as go

    say, points = found.say, " points" if found.say.notation.percent else ""
    names = [plain(one.name if one.label is None else one.label) for one in lesions]
    values = [[short(say.scaled(cost.lost[1])) for cost in one.classes] for one in lesions]
    most = max((abs(value) for row in values for value in row if value is not None), default=1.0) or 1.0
    # The lower classes lie left, the first lesion on top.
    few = len(lesions) * len(found.classes) <= _LABELS
    digits = 0 if say.notation.percent else say.digits
    texts = [
        [
            "" if value is None else f"{round(value, digits) + 0.0:.{digits}f}{_star(cost)}"
            for value, cost in zip(row, one.classes, strict=True)
        ]
        for row, one in zip(values, lesions, strict=True)
    ]
    hover = [
        [
            f"{say.cost(cost.lost)}"
            + ("" if cost.control[1] is None else f"<br>random units: {say.cost(cost.control)}")
            + ("" if cost.p_value is None else f"<br>p {cost.p_value:.2g}")
            for cost in one.classes
        ]
        for one in lesions
    ]
    figure = go.Figure()
    figure.add_heatmap(
        x=[plain(name) for name in found.classes],
        y=names,
        z=values,
        text=texts,
        texttemplate="%{text}" if few else "",
        textfont={"size": 13},
        customdata=hover,
        hovertemplate="<b>%{y}</b>, class %{x}<br>lost %{customdata}<extra></extra>",
        colorscale=_SCALE,
        zmin=short(-most),
        zmax=short(most),
        xgap=1,
        ygap=1,
        colorbar={
            "title": {"text": f"{points.strip()} lost".strip(), "side": "top", "font": {"size": 13}},
            "thickness": 14,
            "outlinewidth": 0,
            "tickfont": {"size": 13},
        },
    )
    for at, one in enumerate(lesions):
        if one.label in found.classes:
            column = found.classes.index(one.label)
            frame = {"x0": column - 0.5, "x1": column + 0.5, "y0": at - 0.5, "y1": at + 0.5}
            figure.add_shape(type="rect", **frame, line={"color": "#1d2733", "width": 2})
    dress(figure, title, text, height=210 + 30 * len(lesions))
    widest = max(len(name) for name in names)
    figure.update_layout(margin={"l": min(320, 76 + 7 * widest), "r": 110})
    figure.update_xaxes(title_text="class that is tested", type="category", showline=False, ticks="")
    figure.update_yaxes(title_text=rows, type="category", autorange="reversed", showgrid=False, ticks="")
    figure.update_yaxes(ticklabelstandoff=6)
    return figure


def _star(cost: Cost) -> str:
    return "*" if cost.p_value is not None and cost.p_value < LEVEL else ""


def regions_figure(found: Found) -> go.Figure | None:
    """What each region costs, beside random units of its number and the sum of its units one at a time.

    Args:
        found: A `lesion` result.

    Returns:
        The figure, or None without regions.
    """
    import plotly.graph_objects as go

    say, lesions = found.say, _regions(found)
    if not lesions:
        return None
    names = [plain(f"{one.name} · {one.size}") for one in lesions]
    wholes = [_scaled(one.whole.lost, found) for one in lesions]
    randoms = [_scaled(one.whole.control, found) for one in lesions]
    figure = go.Figure()
    figure.add_bar(
        y=names,
        x=[short(lost[1]) for lost in wholes],
        orientation="h",
        name="region",
        marker={"color": _LOSS, "opacity": 0.75},
        error_x=bars(wholes, _LOSS),
        customdata=[say.cost(one.whole.lost) for one in lesions],
        hovertemplate="<b>%{y}</b><br>%{customdata}<extra>region</extra>",
    )
    if any(random[1] is not None for random in randoms):
        figure.add_scatter(
            y=names,
            x=[short(random[1]) for random in randoms],
            mode="markers",
            name="random units",
            marker={"color": _RANDOM, "size": 9, "symbol": "line-ns", "line": {"width": 3, "color": _RANDOM}},
            error_x={**bars(randoms, _RANDOM), "thickness": 1.5},
            customdata=[say.cost(one.whole.control) for one in lesions],
            hovertemplate="<b>%{y}</b><br>%{customdata}<extra>random units</extra>",
        )
    if any(one.single_units is not None for one in lesions):
        figure.add_scatter(
            y=names,
            x=[short(say.scaled(one.single_units)) for one in lesions],
            mode="markers",
            name="its units one at a time, summed",
            marker={"color": _PARTS, "size": 9, "symbol": "diamond-open", "line": {"width": 2}},
            customdata=[say.loss(one.single_units) for one in lesions],
            hovertemplate="<b>%{y}</b><br>%{customdata}<extra>one at a time</extra>",
        )
    beyond = sum(one.whole.p_value is not None and one.whole.p_value < LEVEL for one in lesions)
    title = f"{beyond} of {len(lesions)} regions cost more than random units of their number"
    text = (
        "Bars: the whole region silenced, with 95% intervals over inputs. Grey: as many random units of the same layer "
    )
    text += (
        "(for whole layers, of all layers): mean, and the range in which one more would lie. After the name: units. "
    )
    text += "Not corrected for the number of regions."
    dress(figure, title, text, height=200 + 24 * len(lesions))
    widest = max(len(name) for name in names)
    figure.update_layout(
        margin={"l": min(360, 40 + 7.4 * widest), "r": 40},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        bargap=0.35,
    )
    figure.update_xaxes(title_text=say.axis, showgrid=True)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, ticks="", ticklabelstandoff=6)
    figure.add_vline(x=0, line={"color": MUTED, "width": 1.5}, layer="below")
    return figure


def _regions(found: Found) -> list[Lesion]:
    """Regions in their order; where there are too many, whole layers and those that cost most."""
    regions = found.regions
    if len(regions) > _ROWS:
        order = sorted(regions, key=lambda one: (one.grouping != "layer", -(one.whole.lost[1] or 0.0)))
        chosen = {one.name for one in order[:_ROWS]}
        regions = [one for one in regions if one.name in chosen]
    return regions


def _scaled(
    estimate: tuple[float | None, float | None, float | None], found: Found
) -> tuple[float | None, float | None, float | None]:
    low, best, high = (found.say.scaled(value) for value in estimate)
    return low, best, high
