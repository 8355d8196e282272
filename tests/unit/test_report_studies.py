from __future__ import annotations

import copy
import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from documents import (
    LIVES,
    METHODS,
    TOLERANCE,
    Page,
    harden_document,
    portrait,
    rescue_document,
    scaling_document,
    survive_document,
    verdicts,
)
from planaria.report import hardening, survival
from planaria.report.hardening import hardening_figure, tradeoff_figure
from planaria.report.page import render
from planaria.report.scaling import exponent_figure, widths_figure
from planaria.report.survival_figures import (
    retention_figure,
    return_figure,
    survival_figure,
    trajectory_figure,
    turnover_figure,
)

STUDIES: dict[str, Callable[[], dict[str, Any]]] = {
    "attrition": survive_document,
    "turnover": lambda: survive_document("turnover"),
    "harden": harden_document,
    "widths": scaling_document,
}
SMALL: dict[str, Callable[[], dict[str, Any]]] = {
    "attrition": lambda: survive_document(events=4, seeds=2, repairs=("none", "retrain")),
    "turnover": lambda: survive_document("turnover", events=6, seeds=2, repairs=("none", "refit")),
    "harden": lambda: harden_document(("plain", "faults")),
    "widths": scaling_document,
}
FIGURES = {"attrition": 3, "turnover": 5, "harden": 4, "widths": 3}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}PLOTLY-BUNDLE"


@pytest.fixture(scope="module")
def attrition() -> dict[str, Any]:
    return survive_document()


@pytest.fixture(scope="module")
def turnover() -> dict[str, Any]:
    return survive_document("turnover")


@pytest.fixture(scope="module")
def harden() -> dict[str, Any]:
    return harden_document()


@pytest.fixture(scope="module")
def scaling() -> dict[str, Any]:
    return scaling_document()


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without the plotting library: five megabytes less to put together."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly */")


def trace(figure: Any, name: str) -> Any:
    return next(one for one in figure.data if (one.name or "").startswith(name) and "lines" in one.mode)


def entry(document: dict[str, Any], repair: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in document["survival"]["repairs"] if one["repair"] == repair)
    return found


def words_of(document: dict[str, Any]) -> str:
    return " ".join(Page(render(document)).words.split())


# ------------------------------------------------------------------------------------------------- survival


def test_a_page_of_attrition_says_how_long_each_repair_lasts(attrition: dict[str, Any], light: None) -> None:
    words = words_of(attrition)
    first = max(attrition["survival"]["repairs"], key=lambda one: one["median_horizon"]["best"])
    last = first["median_horizon"]["best"]
    assert f"{first['repair']} lasts longest: half of the walks are lost by event {last}" in words
    assert "20 events of 5% (fraction of units) each; attrition: dead units stay dead." in words
    assert "Good set: validation score within 1 point of the undamaged network's" in words
    assert "What each repair brings back" not in words
    assert "How it comes back" not in words
    for term in ("Walk", "Retention R", "Survival Q", "Attrition"):
        assert term in words


def test_a_page_of_turnover_says_the_share_of_time_inside_and_whether_turnover_helps(
    turnover: dict[str, Any], light: None
) -> None:
    words = words_of(turnover)
    assert "the network in its good set 100.0% [97.0, 100.0] of the time under turnover; without repair" in words
    assert "turnover: a dead unit returns as an embryonic one after 4 events." in words
    assert "Turnover makes the network harder to hurt: area 73.5% [72.3, 74.7] at a rate of 10%, 68.0%" in words
    assert "0% (control)" in words
    assert "+5.5 [+4.5, +6.5]" in words


def test_repairs_that_outlast_the_horizon_have_no_median_but_are_named() -> None:
    document = survive_document(repairs=("none", "retrain"))
    for point in entry(document, "retrain")["survival"]:
        point |= {"low": 0.8, "best": 1.0, "high": 1.0}
    entry(document, "retrain")["median_horizon"] = None
    assert survival.headline(document).startswith("More than half of the walks survive all 20 events of 5% damage with")
    figure = survival_figure(document)
    assert figure is not None
    assert trace(figure, "retrain · beyond 20").line.shape == "hv"


def test_the_trajectories_show_medians_after_hit_and_repair_and_the_good_set(attrition: dict[str, Any]) -> None:
    figure = trajectory_figure(attrition)
    assert figure is not None
    thin, bold = (one for one in figure.data if one.name == "refit" and one.line.dash != "dot")
    points = entry(attrition, "refit")["trajectories"]
    assert [value for value in thin.y if value is not None] == pytest.approx([p["rescued"] for p in points], rel=1e-5)
    fifth = sorted(p["rescued"] for p in points if p["event"] == 5)
    assert bold.x[5] == 5
    assert bold.y[5] == pytest.approx(fifth[2], rel=1e-5)
    assert (bold.x[0], bold.y[0]) == (0, 0.9841)
    hit = next(one for one in figure.data if one.name == "refit" and one.line.dash == "dot")
    assert list(hit.x) == list(range(1, 21))
    levels = [shape.y0 for shape in figure.layout.shapes]
    assert levels == pytest.approx([0.9841, 0.9841 - TOLERANCE])
    colours = {one.line.color for one in figure.data if one.name == "refit"}
    assert len(colours) == 1


def test_the_axis_of_the_trajectories_starts_with_the_repairs_and_not_with_the_control(
    attrition: dict[str, Any],
) -> None:
    figure = trajectory_figure(attrition)
    assert figure is not None
    low, _ = figure.layout.yaxis.range
    hits = [p["hit"] for repair in LIVES if repair != "none" for p in entry(attrition, repair)["trajectories"]]
    assert low <= min(hits)
    assert low > min(p["rescued"] for p in entry(attrition, "none")["trajectories"])


def test_the_survival_curve_is_drawn_in_steps_with_a_band_of_steps(attrition: dict[str, Any]) -> None:
    figure = survival_figure(attrition)
    assert figure is not None
    stored = entry(attrition, "refit")["survival"]
    line = trace(figure, "refit · ")
    assert line.line.shape == "hv"
    assert list(line.x) == [point["event"] for point in stored]
    assert list(line.y) == pytest.approx([point["best"] for point in stored], abs=0.02)
    band = next(one for one in figure.data if one.name == "refit" and one.fill == "toself")
    half = len(band.x) // 2
    upper = dict(zip(band.x[:half], band.y[:half], strict=True))  # the later of the two values at a corner
    assert [upper[point["event"]] for point in stored] == [point["high"] for point in stored]
    assert max(b - a for a, b in zip(band.x[: half - 1], band.x[1:half], strict=True)) == 1


def test_retention_is_drawn_with_its_intervals_against_dead_units(attrition: dict[str, Any]) -> None:
    document = copy.deepcopy(attrition)
    stored = entry(document, "retrain")["retention"]
    stored[-1]["dead_to"] = stored[-1]["dead"] + 20
    figure = retention_figure(document)
    assert figure is not None
    line = trace(figure, "retrain")
    assert list(line.y) == pytest.approx([point["best"] for point in stored])
    assert list(line.error_y.array) == pytest.approx([p["high"] - p["best"] for p in stored], rel=1e-4, abs=1e-9)
    assert list(line.x[:-1]) == pytest.approx([point["dead"] for point in stored[:-1]], abs=12)
    assert line.x[-1] == pytest.approx(stored[-1]["dead"] + 10, abs=12)
    assert line.customdata[-1][0] == f"{stored[-1]['dead']} to {stored[-1]['dead_to']}"
    assert figure.layout.xaxis.title.text == "units dead before the event"


def test_autocorrelation_is_a_matter_of_turnover_and_starts_at_lag_0(
    attrition: dict[str, Any], turnover: dict[str, Any]
) -> None:
    assert return_figure(attrition) is None
    figure = return_figure(turnover)
    assert figure is not None
    line = trace(figure, "none · back after 6 [5.3, 6.7]")
    assert list(line.x) == list(range(7))
    assert line.y[0] == 1


def test_the_area_is_drawn_against_the_rate_beside_its_control(turnover: dict[str, Any]) -> None:
    figure = turnover_figure(turnover)
    assert figure is not None
    rates = turnover["survival"]["turnover"]["rates"]
    assert list(trace(figure, "control: no turnover").y) == [rates[0]["area"]["best"]]
    assert list(trace(figure, "with turnover").x) == [0.02, 0.05, 0.1, 0.2]
    assert list(trace(figure, "with turnover").y) == pytest.approx([one["area"]["best"] for one in rates[1:]])
    assert [shape.y0 for shape in figure.layout.shapes] == [rates[0]["area"]["best"]]


@pytest.mark.parametrize(
    ("areas", "gain", "told"),
    [
        ((0.70, 0.68), -0.02, "Turnover makes the network easier to hurt"),
        ((0.70, 0.69), -0.005, "Turnover is not shown to make the network harder to hurt"),
        ((0.68, 0.70), None, "Turnover is not shown to make the network harder to hurt"),
        ((0.68, 0.70), 0.02, "Turnover makes the network harder to hurt"),
    ],
)
def test_turnover_helps_only_where_the_gain_is_shown(
    turnover: dict[str, Any], areas: tuple[float, float], gain: float | None, told: str
) -> None:
    document = copy.deepcopy(turnover)
    rates = document["survival"]["turnover"]["rates"][:2]
    for rate, area in zip(rates, areas, strict=True):
        rate["area"] = {"low": area - 0.03, "best": area, "high": area + 0.03}
    rates[1]["gain"] = None if gain is None else {"low": gain - 0.01, "best": gain, "high": gain + 0.01}
    document["survival"]["turnover"]["rates"] = rates
    assert survival.turnover_sentence(document).startswith(told)


def test_the_rate_that_is_named_is_one_whose_gain_is_shown(turnover: dict[str, Any]) -> None:
    document = copy.deepcopy(turnover)
    rates = document["survival"]["turnover"]["rates"]
    rates[1]["gain"] = {"low": 0.01, "best": 0.02, "high": 0.03}
    for rate in rates[2:]:  # higher, and not shown to be
        rate["gain"] = {"low": -0.1, "best": 0.05, "high": 0.2}
    told = survival.turnover_sentence(document)
    assert told.startswith("Turnover makes the network harder to hurt") and "at a rate of 2%" in told
    assert told.endswith("paired, +2.0 [+1.0, +3.0]")


# ------------------------------------------------------------------------------------------------ hardening


def test_a_page_of_hardening_names_the_method_its_gain_and_its_price(harden: dict[str, Any], light: None) -> None:
    text = render(harden)
    words = " ".join(Page(text).words.split())
    assert "faults hardens most against random damage: area 87.4% [86.8, 88.0] against 67.4% for plain" in words
    assert "faults gains 19.9 points of area and costs 0.5 points of intact accuracy" in words
    assert "Every method gets 2,110 gradient evaluations." in words
    assert "out/sam.safetensors" in words
    assert "The comparison" not in words
    assert text.count("<b>") >= 4  # the highest of each column
    for method in METHODS:
        assert f"what {method} does" in words


def test_a_method_that_gains_within_its_interval_is_not_called_settled(harden: dict[str, Any]) -> None:
    document = copy.deepcopy(harden)
    for method in document["hardening"]["methods"]:
        best = method["area_random"]["best"]
        method["area_random"] |= {"low": best - 0.2, "high": best + 0.2}
    assert hardening.headline(document).startswith(
        "No method is shown to harden against random damage; highest is faults"
    )
    faults = next(one for one in document["hardening"]["methods"] if one["method"] == "faults")
    faults["less_plain"] = {"area_random": {"low": 0.1, "best": 0.2, "high": 0.3}}
    assert hardening.headline(document).startswith("faults hardens most")
    plain = [one for one in document["hardening"]["methods"] if one["method"] == "plain"]
    document["hardening"]["methods"] = plain
    assert hardening.headline(document).startswith("No method hardens against random damage more than plain")


@pytest.mark.parametrize("kind", ["random", "worst", "rescued"])
def test_the_curves_of_every_method_are_drawn(harden: dict[str, Any], kind: str) -> None:
    figure = hardening_figure(harden, kind)
    assert figure is not None
    for method in harden["hardening"]["methods"]:
        line = trace(figure, f"{method['method']} · area ")
        assert list(line.y) == pytest.approx(method["curves"][kind]["mean"], rel=1e-5)
    assert sum(one.fill == "toself" for one in figure.data) == len(METHODS)


def test_the_switches_of_the_trade_off_change_area_bars_and_axis(harden: dict[str, Any]) -> None:
    figure = tradeoff_figure(harden)
    assert figure is not None
    methods = harden["hardening"]["methods"]
    assert [one.x[0] for one in figure.data] == [method["intact"]["best"] for method in methods]
    for button, key in zip(
        figure.layout.updatemenus[0].buttons, ("area_random", "area_worst", "area_rescued"), strict=True
    ):
        change, layout = button.args
        assert [y[0] for y in change["y"]] == pytest.approx([method[key]["best"] for method in methods], rel=1e-5)
        assert len(change["error_y"]) == len(methods)
        assert layout["yaxis.title.text"].startswith("area, ")


# -------------------------------------------------------------------------------------------------- scaling


def test_widths_are_drawn_from_narrow_to_wide_in_one_scale(scaling: dict[str, Any]) -> None:
    document = copy.deepcopy(scaling)
    document["scaling"]["curves"].reverse()
    figure = widths_figure(document)
    assert figure is not None
    lines = [one for one in figure.data if one.fill is None]
    assert [one.name for one in lines] == [f"width {width}" for width in scaling["scaling"]["widths"]]
    assert len({one.line.color for one in lines}) == len(lines)
    assert list(lines[0].y) == pytest.approx(scaling["scaling"]["curves"][0]["mean"], rel=1e-5)


def test_the_fitted_power_law_is_a_line_of_that_slope_in_logarithms(scaling: dict[str, Any]) -> None:
    figure = exponent_figure(scaling)
    assert figure is not None
    for name, exponent in (("width to the power 0.25 [0.17, 0.33]", 0.25), ("width to the power 0.1 [", 0.1)):
        line = trace(figure, name)
        slope = math.log(line.y[1] / line.y[0]) / math.log(line.x[1] / line.x[0])
        assert slope == pytest.approx(exponent, abs=1e-4)
    marks = next(one for one in figure.data if one.name == "steepness" and one.mode == "markers")
    assert list(marks.y) == pytest.approx([one["best"] for one in scaling["scaling"]["steepness"]], rel=1e-5)
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert figure.layout.title.text.startswith("Crossover: steepness goes as width to the power 0.25")


def test_wild_intervals_do_not_squeeze_the_points_of_a_power_law(scaling: dict[str, Any]) -> None:
    document = copy.deepcopy(scaling)
    document["scaling"]["exponent"] = {"low": -9.9, "best": 0.25, "high": 9.9}
    for value in document["scaling"]["susceptibility"]:
        value |= {"low": 0.0, "high": 400.0}
    figure = exponent_figure(document)
    assert figure is not None
    low, high = figure.layout.yaxis.range
    assert high - low < 4
    assert low < math.log10(0.4)
    assert high > math.log10(4)


def test_a_test_that_was_not_made_has_curves_and_no_exponent(scaling: dict[str, Any]) -> None:
    document = copy.deepcopy(scaling)
    nothing = {"low": None, "best": None, "high": None}
    document["scaling"] |= {"verdict": "not tested: 2 widths, 3 needed", "exponent": nothing, "steepness": []}
    document["scaling"] |= {"susceptibility_exponent": nothing, "susceptibility": [nothing, {"best": -1.0}]}
    assert widths_figure(document) is not None
    assert exponent_figure(document) is None


# --------------------------------------------------------------------------------- what all pages must stand


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_has_its_figures_and_loads_nothing(study: str) -> None:
    page = Page(render(json.loads(json.dumps(STUDIES[study]()))))
    assert len(page.figures) == FIGURES[study]
    assert page.loads == ["data:,"]
    assert sum("plotly.js v" in script for script in page.scripts) == 1


def without(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values of a document, the first two entries of lists standing for the others."""
    pairs = document.items() if isinstance(document, dict) else enumerate(document[:2])
    for key, value in pairs:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from without(value, (*path, key))


KEYS = {"attrition": "survival", "turnover": "survival", "harden": "hardening", "widths": "scaling"}


@pytest.mark.parametrize("study", STUDIES)
def test_every_value_of_a_study_may_be_null(study: str) -> None:
    document, key = SMALL[study](), KEYS[study]
    drawn: list[Callable[[dict[str, Any]], Any]] = {
        "survival": [trajectory_figure, survival_figure, retention_figure, return_figure, turnover_figure],
        "hardening": [*(partial(hardening_figure, kind=kind) for kind in hardening.KINDS), tradeoff_figure],
        "scaling": [widths_figure, exponent_figure],
    }[key]
    paths = list(without(document[key]))
    for path in paths[:: max(1, len(paths) // 8)]:
        damaged = copy.deepcopy(document[key])
        place = damaged
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = None
        for draw in drawn:
            draw(document | {key: damaged})


@pytest.mark.parametrize("study", STUDIES)
def test_every_number_and_every_part_of_a_study_may_be_missing(study: str, light: None) -> None:
    def nulled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: nulled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [nulled(inner) for inner in value]
        return None if isinstance(value, int | float) else value

    document, key = SMALL[study](), KEYS[study]
    assert "Terms" in Page(render(nulled(document))).words
    for left in ({}, {"repairs": [{}], "turnover": {"rates": [{}]}}, {"methods": [{}]}, {"curves": [{}]}):
        assert "Terms" in Page(render(document | {key: left})).words
    bare = {"command": document["command"], **{k: document[k] for k in ("survival", "hardening") if k in document}}
    assert "Terms" in Page(render(bare)).words


@pytest.mark.parametrize("study", STUDIES)
def test_text_of_users_is_shown_and_never_run(study: str, light: None) -> None:
    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poisoned(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [poisoned(inner) for inner in value]
        return EVIL if isinstance(value, str) and value not in ("turnover", "attrition") else value

    page = Page(render(poisoned(SMALL[study]()) | {"files": {EVIL: f"javascript:{EVIL}"}}))
    assert EVIL in page.words
    assert len(page.scripts) == 2
    assert page.loads == ["data:,"]
    assert page.links == []
    for figure in page.figures:
        labels = json.dumps([trace.get("name", "") for trace in figure["data"]])
        assert "<img" not in labels + json.dumps(figure["layout"].get("annotations", []))
        assert "<img" not in json.dumps([trace.get("hovertemplate", "") for trace in figure["data"]])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium on PATH")
@pytest.mark.parametrize("study", [*STUDIES, "rescue"])
def test_a_browser_draws_every_figure_of_a_study_without_an_error(tmp_path: Path, study: str) -> None:
    small = rescue_document(doses=(0.5,), seeds=2, repairs=("refit", "retrain"))
    document = STUDIES[study]() if study in STUDIES else small | {"verdicts": verdicts(8), "portrait": portrait()}
    (tmp_path / "report.html").write_text(render(document), encoding="utf-8")
    command = [
        *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000"),
        *("--enable-logging=stderr", "--v=0", "--dump-dom", (tmp_path / "report.html").as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.count('class="modebar-container"') == FIGURES.get(study, 4)
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
