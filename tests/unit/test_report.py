from __future__ import annotations

import copy
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from documents import BATCH, REPAIRS, TOLERANCE, Page, cost, rescue_document, respond_document, summarise
from planaria.report.figures import ledger_figure, rescue_figure, response_figure, summary_figure
from planaria.report.page import render
from planaria.report.words import headline


@pytest.fixture(scope="module")
def rescue() -> dict[str, Any]:
    return rescue_document()


@pytest.fixture(scope="module")
def page(rescue: dict[str, Any]) -> Page:
    return Page(render(rescue))


def numbers(values: Any) -> list[float]:
    return [value for value in values if value is not None]


# ------------------------------------------------------------------------------------------------ the page


def test_the_page_holds_the_plotting_library_once_and_loads_nothing(page: Page) -> None:
    assert sum("plotly.js v" in script for script in page.scripts) == 1
    assert page.loads == ["data:,"]


def test_the_page_forbids_itself_every_request(rescue: dict[str, Any]) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', render(rescue))
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "http" not in policy[1]


def test_the_intact_score_and_its_preprocessing_come_before_every_other_result(page: Page) -> None:
    order = [page.words.index(word) for word in ("98.3%", "mean = 0.1307", "Question", "What damage does")]
    assert order == sorted(order)


def test_the_page_tells_question_curve_repair_and_verdict_in_words(page: Page) -> None:
    words = " ".join(page.words.split())
    assert "How does mlp:784-256-256-10 fail on mnist?mean=0.1307&std=0.3081 under Damage(Silence()" in words
    assert "Half of the accuracy above chance is lost at a dose of 67.8% [65.5, 70.2]." in words
    assert "Critical dose 53.1% [47.0, 58.0]: break at 0.53, a smooth curve fits as well." in words
    assert "not rescued at dose 70%." in words
    assert "trials were not rescued within the compute of 2,000 updates: they count as censored." in words


def test_the_table_has_every_repair_at_every_dose_and_marks_one_per_dose(page: Page, rescue: dict[str, Any]) -> None:
    text = render(rescue)
    table = text[text.index('<table class="comparison">') :]
    table = table[: table.index("</table>")]
    assert table.count("<tr") == 2 + len(rescue["summary"])
    assert table.count('class="best"') == 3
    assert table.count(">cheapest<") == 2
    assert table.count(">closest<") == 1
    cells = re.sub(r"<[^>]+>", " ", table)
    for row in rescue["summary"]:
        assert f"{100 * row['after']['best']:.1f}" in cells
        assert f"{row['rescued']} of 5" in cells


def test_the_page_says_how_to_run_it_again(page: Page) -> None:
    assert "planaria rescue --model mlp:784-256-256-10 --task mnist --seeds 5" in page.words
    for word in ("2.13.0+cpu", "AVX512", "Damage(Silence(), RandomUnits(Dose('fraction of units')))"):
        assert word in page.words


def test_the_terms_are_defined_with_the_numbers_of_this_run(page: Page) -> None:
    words = " ".join(page.words.split())
    assert "within 1 point of the undamaged network's for 3 evaluations in a row, within the compute of 2,000" in words
    for term in ("Dose", "Rescued", "Censored", "In total", "Since the last hit", "Interval"):
        assert term in words


def test_text_from_users_is_shown_and_never_run(rescue: dict[str, Any]) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}PLOTLY-BUNDLE"
    document = copy.deepcopy(rescue)
    for row in [*document["rows"], *document["summary"]]:
        row["repair"] = evil if row["repair"] == "retrain" else row["repair"]
    for row in document["rows"]:
        row["seed"] = f"{evil}{row['seed']}"
    document["settings"] |= {"repairs": [evil, "refit"], "damage": evil, evil: evil, "unit": evil}
    document["response"] |= {"critical_verdict": evil, "unit": evil}
    document["network"] |= {"name": evil, "source": evil, "sha256": evil, "trained": {evil: evil}}
    document["network"]["units"][0] |= {"layer": evil, "kind": evil, "method": evil, "reason": evil}
    document["network"]["unreached"] = [{"layer": evil, "reason": evil}]
    document["task"] |= {"name": evil, "preprocessing": {evil: evil}, "split_rule": evil}
    document["manifest"] |= {"command_line": ["planaria", evil], "versions": {evil: evil}, "host": evil}
    document |= {"warnings": [evil], "files": {evil: f"javascript:{evil}"}, "version": evil, "schema": evil}
    document["command"] = evil
    text = render(document)
    page = Page(text)
    assert evil in page.words
    assert len(page.scripts) == 2
    assert page.loads == ["data:,"]
    assert page.links == []
    for figure in page.figures:
        names = [trace.get("name", "") for trace in figure["data"]]
        # Plotly reads some HTML in labels: there, too, it must be text.
        assert not any("<script>" in name or "<img" in name for name in names)
        assert "<img" not in json.dumps(figure["layout"].get("annotations", []))


def test_a_file_beside_the_page_is_a_link_and_another_is_only_named(rescue: dict[str, Any], tmp_path: Path) -> None:
    files = {"results": str(tmp_path / "a b.csv"), "network": "/elsewhere/net.safetensors"}
    page = Page(render(rescue | {"files": files}, folder=tmp_path))
    assert page.links == ["./a%20b.csv"]
    assert "/elsewhere/net.safetensors" in page.words


def test_hundreds_of_rows_make_a_page_of_bounded_size() -> None:
    document = rescue_document(doses=tuple(round(0.03 * i, 2) for i in range(1, 31)), seeds=8)
    assert len(document["rows"]) > 1400
    text = render(document)
    page = Page(text)
    weight = len(text) - max(len(script) for script in page.scripts)
    assert weight < 2_500_000
    assert "24 more doses are left out here" in page.words


# -------------------------------------------------------------------------------------- what may be missing


def shown(document: dict[str, Any]) -> Page:
    # What the command line prints: numbers that JSON has no word for are null.
    return Page(render(json.loads(json.dumps(document))))


def test_a_respond_result_shows_its_curve_and_no_repair() -> None:
    page = shown(respond_document())
    assert len(page.figures) == 1
    assert "Half of the accuracy above chance is lost" in page.words
    assert "Rescued" not in page.words
    assert "The comparison" not in page.words


def test_a_respond_result_without_a_stored_curve_is_drawn_from_its_rows() -> None:
    document = respond_document()
    stored = document.pop("response")
    (figure,) = shown(document).figures
    mean = next(trace for trace in figure["data"] if trace["name"] == "mean")
    assert mean["y"] == pytest.approx(stored["mean"], rel=1e-5)


def test_one_seed_shows_values_and_no_interval() -> None:
    document = rescue_document(seeds=1)
    text = render(json.loads(json.dumps(document)))
    table = text[text.index('<table class="comparison">') : text.index("How each repair gets there")]
    assert "[" not in re.sub(r"<[^>]+>", "", table)
    figure = summary_figure(document)
    assert figure is not None
    assert not any(trace.error_y.visible for trace in figure.data)


def test_no_rescue_at_all_is_a_result_and_not_an_error() -> None:
    document = rescue_document(hopeless=True)
    assert not any(row["rescued"] for row in document["rows"])
    page = shown(document)
    assert "Not rescued at any tested dose within the compute of 2,000 updates" in page.words
    assert "90 of 90 trials were not rescued" in page.words
    assert "cheapest" not in page.words
    assert "no repair rescues half of the seeds" in page.words


def with_control(document: dict[str, Any], *, rescued: bool) -> dict[str, Any]:
    """The document with the repair that does nothing, as the first one."""
    document = copy.deepcopy(document)
    nothing = dict.fromkeys(cost(0), 0)
    rows = [copy.deepcopy(row) for row in document["rows"] if row["repair"] == "refit"]
    for row in rows:
        row |= {"repair": "none", "score_after": row["score_damaged"], "rescued": rescued}
        row |= {"cost": nothing, "cost_since_last_hit": nothing, "curve": row["curve"][:1]}
        row |= dict.fromkeys(("rescue_cost", "rescue_cost_since_last_hit"), nothing if rescued else None)
    found = [summarise("none", d, [r for r in rows if r["dose"] == d]) for d in document["settings"]["doses"]]
    document["settings"]["repairs"].insert(0, "none")
    return document | {"rows": rows + document["rows"], "summary": found + document["summary"]}


def test_the_control_is_in_the_table_and_is_the_damaged_network_in_the_figures(
    rescue: dict[str, Any],
) -> None:
    document = with_control(rescue, rescued=False)
    text = render(document)
    assert text.count("</span>none") == 3
    assert headline(document) == headline(rescue)
    for figure in Page(text).figures:
        assert not any((trace.get("name") or "").startswith("none") for trace in figure["data"])


def test_a_rescue_of_half_of_the_seeds_is_not_called_a_rescue() -> None:
    document = rescue_document(doses=(0.5,), seeds=2, repairs=("retrain", "iterative"))
    for row in document["rows"]:
        if row["seed"] == 1:
            row |= {"rescued": False, "rescue_cost": None, "rescue_cost_since_last_hit": None}
    for row in document["summary"]:
        row["rescued"] = 1
    assert headline(document).startswith("Not rescued at dose 50% (only 1 of 2 seeds) within the compute")
    words = Page(render(document)).words
    assert "retrain (1 of 2 seeds) " in words
    assert "closest" in words
    assert "cheapest" not in words


def test_a_dose_that_does_no_harm_needs_no_repair(rescue: dict[str, Any]) -> None:
    document = with_control(rescue, rescued=True)
    assert headline(document) == "No repair is needed at dose 30%, 50% and 70%"
    assert "Dose 30%: no repair is needed" in Page(render(document)).words


def test_a_quick_run_without_a_response_curve_has_the_other_figures(rescue: dict[str, Any]) -> None:
    for missing in ({}, {"response": None}):
        document = {key: value for key, value in rescue.items() if key != "response"} | missing
        assert response_figure(document) is None
        assert len(shown(document).figures) == 5


def test_a_curve_that_never_falls_far_enough_says_so(rescue: dict[str, Any]) -> None:
    document = copy.deepcopy(rescue)
    response = document["response"]
    doses, falls = response["doses"][:8], {"half_dose", "dose_of_10_point_loss", "critical_dose"}
    cut = {key: response[key][:8] for key in ("mean", "low", "high")}
    never = {key: {"low": None, "best": None, "high": None} for key in falls}
    response |= {"doses": doses, "draws": [], "critical_verdict": "no break"} | cut | never
    page = shown(document)
    assert "More than half of the accuracy above chance survives a dose of 35%" in page.words
    names = [trace.get("name") for trace in page.figures[0]["data"]]
    assert names == ["95% interval", "mean"]


def test_a_regression_is_not_written_in_percent(rescue: dict[str, Any]) -> None:
    document = copy.deepcopy(rescue)
    document["task"] |= {"score": "r2", "chance": 0.0, "classes": None}
    for row in document["rows"]:
        row["score_damaged"] = -math.inf if row["seed"] == 0 else -3.2
    for row in document["summary"]:
        row["damaged"] = {"low": None, "best": None, "high": None}
        row["after"] = {"low": 0.91, "best": 0.925, "high": 0.94}
    document["intact"] = {"test": 0.957, "validation": 0.961, "interval": None}
    text = render(document)
    words = " ".join(Page(text).words.split())
    assert "R² above chance" in words
    assert "0.957" in words
    assert "0.925 [0.910, 0.940]" in words
    assert "95.7%" not in words
    assert "within 0.01 of the undamaged network" in words
    for figure in Page(text).figures:
        assert figure["layout"]["yaxis"].get("tickformat") is None


def test_doses_in_another_unit_are_not_written_in_percent(rescue: dict[str, Any]) -> None:
    document = copy.deepcopy(rescue)
    document["response"]["unit"] = "sigma of the layer"
    figure = summary_figure(document)
    assert figure is not None
    assert figure.layout.xaxis.title.text == "dose (sigma of the layer)"
    assert list(figure.layout.xaxis.ticktext) == ["0.3", "0.5", "0.7"]


def test_empty_warnings_make_no_box_and_many_are_counted(rescue: dict[str, Any]) -> None:
    assert 'class="warnings"' not in render(rescue | {"warnings": []})
    words = Page(render(rescue | {"warnings": [f"w{i}" for i in range(100)]})).words
    assert "w19" in words
    assert "w20" not in words
    assert "80 more warnings" in words


@pytest.mark.parametrize("gone", ["null", "absent"])
def test_every_part_of_a_result_may_be_missing(gone: str) -> None:
    small = rescue_document(doses=(0.5,), seeds=2, repairs=("refit", "iterative"))
    for part in small:
        document = {key: value for key, value in small.items() if key != part}
        page = Page(render(document | ({part: None} if gone == "null" else {})))
        assert "Terms" in page.words, part
    assert "No trial has finished" in Page(render({})).words


@pytest.mark.parametrize("place", [("rows",), ("summary",), ("network", "units"), ("response", "draws")])
def test_entries_of_lists_may_be_null_and_columns_of_unequal_length(place: tuple[str, ...]) -> None:
    document = rescue_document(doses=(0.5,), seeds=2, repairs=("refit", "iterative"))
    found: Any = document
    for key in place:
        found = found[key]
    found.insert(1, None)
    document["response"]["doses"].pop()
    assert "Terms" in Page(render(document)).words


def test_every_number_of_a_result_may_be_null() -> None:
    def nulled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: nulled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [nulled(inner) for inner in value]
        return None if isinstance(value, int | float) else value

    small = rescue_document(doses=(0.5,), seeds=2, repairs=("refit", "iterative"))
    assert "Terms" in Page(render(nulled(small))).words
    keep_doses = copy.deepcopy(small)
    for row in keep_doses["rows"] + keep_doses["summary"]:
        row |= nulled({key: value for key, value in row.items() if key != "dose"})
    page = Page(render(keep_doses))
    assert "Not rescued at dose 50%" in page.words
    assert "nan" not in page.words.lower().replace("planaria", "")


# --------------------------------------------------------------------------------------------- the figures


def trace_named(figure: Any, name: str) -> Any:
    return next(trace for trace in figure.data if (trace.name or "").startswith(name))


def test_the_response_figure_draws_the_numbers_of_the_curve(rescue: dict[str, Any]) -> None:
    response, figure = rescue["response"], response_figure(rescue)
    assert figure is not None
    assert list(trace_named(figure, "mean").x) == response["doses"]
    assert list(trace_named(figure, "mean").y) == response["mean"]
    band = trace_named(figure, "95% interval")
    assert list(band.y) == response["high"] + response["low"][::-1]
    draws = numbers(trace_named(figure, "single draws").y)
    assert draws == pytest.approx([score for draw in response["draws"] for score in draw], rel=1e-5)
    levels = {shape.y0 for shape in figure.layout.shapes}
    assert levels == {response["chance"], response["intact"]}
    for name, key in (
        ("half-dose 67.8% [65.5, 70.2]", "half_dose"),
        ("10-point loss", "dose_of_10_point_loss"),
        ("fitted break", "critical_dose"),
    ):
        mark, estimate = trace_named(figure, name), response[key]
        assert mark.x == (estimate["best"],)
        assert mark.error_x.array[0] == pytest.approx(estimate["high"] - estimate["best"], rel=1e-4)
        assert mark.error_x.arrayminus[0] == pytest.approx(estimate["best"] - estimate["low"], rel=1e-4)
        assert min(response["mean"]) <= mark.y[0] <= max(response["mean"])


def test_the_summary_figure_draws_every_mean_with_its_interval(rescue: dict[str, Any]) -> None:
    figure = summary_figure(rescue)
    assert figure is not None
    for repair in REPAIRS:
        rows = [row["after"] for row in rescue["summary"] if row["repair"] == repair]
        trace = next(trace for trace in figure.data if trace.name == repair)
        assert list(trace.y) == [after["best"] for after in rows]
        assert list(trace.error_y.array) == pytest.approx([a["high"] - a["best"] for a in rows], rel=1e-4)
        assert [abs(x - dose) < 0.05 for x, dose in zip(trace.x, (0.3, 0.5, 0.7), strict=True)]
    damaged = [row["damaged"]["best"] for row in rescue["summary"] if row["repair"] == "refit"]
    assert list(trace_named(figure, "damaged").y) == damaged


def test_a_rescue_figure_draws_every_trial_and_the_median_of_the_seeds(rescue: dict[str, Any]) -> None:
    figure = rescue_figure(rescue, 0.5)
    assert figure is not None
    rows = [row for row in rescue["rows"] if row["repair"] == "retrain" and row["dose"] == 0.5]
    thin = next(trace for trace in figure.data if trace.name == "retrain")
    assert numbers(thin.y) == [point["validation"] for row in rows for point in row["curve"]]
    assert numbers(thin.x) == [point["updates"] for row in rows for point in row["curve"]]
    bold = trace_named(figure, "retrain · 5 of 5 rescued")
    columns = zip(*[[point["validation"] for point in row["curve"]] for row in rows], strict=True)
    assert list(bold.y) == pytest.approx([sorted(column)[2] for column in columns], rel=1e-5)


def test_a_rescue_figure_marks_the_target_the_last_hit_and_the_median_rescue(rescue: dict[str, Any]) -> None:
    figure = rescue_figure(rescue, 0.5)
    assert figure is not None
    target = pytest.approx(0.9841 - TOLERANCE)
    assert any(shape.y0 == target and shape.y1 == target for shape in figure.layout.shapes)
    hits = [shape for shape in figure.layout.shapes if shape.x0 == shape.x1]
    assert [hit.x0 for hit in hits] == [300]
    row = next(r for r in rescue["summary"] if (r["repair"], r["dose"]) == ("retrain", 0.5))
    mark = trace_named(figure, "retrain: median time to rescue")
    assert mark.x == (row["rescue_updates"]["best"],)
    assert list(mark.y) == [target]
    assert trace_named(figure, "damaged").x == (0.0,)


def test_the_switch_of_the_ledger_moves_every_trace_and_the_last_hit(rescue: dict[str, Any]) -> None:
    figure = rescue_figure(rescue, 0.5)
    assert figure is not None
    switch = {button.label: button.args for button in figure.layout.updatemenus[0].buttons}
    assert list(switch) == ["updates", "multiply-adds", "examples", "seconds"]
    for data, layout in switch.values():
        assert [len(x) for x in data["x"]] == [len(trace.y) for trace in figure.data]
        assert {"shapes", "annotations", "xaxis.title.text", "xaxis.range"} == set(layout)
    data, layout = switch["examples"]
    place = [trace.name for trace in figure.data].index("retrain")
    rows = [row for row in rescue["rows"] if row["repair"] == "retrain" and row["dose"] == 0.5]
    assert numbers(data["x"][place]) == [point["examples"] for row in rows for point in row["curve"]]
    assert [shape["x0"] for shape in layout["shapes"] if shape["x0"] == shape["x1"]] == [300 * BATCH]


def test_the_ledger_figure_shows_both_countings_and_opens_the_markers_of_censored_trials(
    rescue: dict[str, Any],
) -> None:
    figure = ledger_figure(rescue)
    assert figure is not None
    for axis, suffix in (("x", ""), ("x2", "_since_last_hit")):
        found: dict[bool, list[float]] = {True: [], False: []}
        for trace in figure.data:
            if trace.name == "iterative" and (trace.xaxis or "x") == axis:
                found[not trace.marker.symbol.endswith("-open")] += trace.x
        rows = [row for row in rescue["rows"] if row["repair"] == "iterative"]
        done = [row for row in rows if row["rescued"]]
        lost = [row for row in rows if not row["rescued"]]
        assert found[True] == [row[f"rescue_cost{suffix}"]["backward_passes"] for row in done]
        assert found[False] == [row[f"cost{suffix}"]["backward_passes"] for row in lost]
        assert done
        assert lost
    title = figure.layout.title.text.replace("<br>", " ")
    row = next(r for r in rescue["summary"] if (r["repair"], r["dose"]) == ("iterative", 0.5))
    total, since = row["rescue_updates"]["best"], row["rescue_updates_since_last_hit"]["best"]
    assert f"iterative is rescued {since:,} updates after the last hit, but {total:,} in total" in title


def test_a_repair_has_one_colour_and_marker_everywhere(rescue: dict[str, Any], page: Page) -> None:
    alone = rescue_document(doses=(0.7,), seeds=2, repairs=("iterative", "refit"))
    seen: dict[str, set[str]] = {repair: set() for repair in ("iterative", "refit")}
    for document in (rescue, alone):
        for figure in (summary_figure(document), rescue_figure(document, 0.7), ledger_figure(document)):
            assert figure is not None
            for trace in figure.data:
                if trace.name in seen:
                    seen[trace.name].add(trace.line.color or trace.marker.color)
    assert all(len(colours) == 1 for colours in seen.values())
    assert len(set.union(*seen.values())) == 2
    for (colour,) in seen.values():
        assert f"background: {colour}" in render(alone)


def test_a_closed_form_repair_without_updates_is_visible(rescue: dict[str, Any]) -> None:
    figure = rescue_figure(rescue, 0.5)
    assert figure is not None
    line = trace_named(figure, "refit · ")
    assert list(line.x) == [0, 0]
    assert line.y[1] > line.y[0] + 0.1
    assert "markers" in line.mode


def test_figures_do_not_change_the_document_and_are_repeatable(rescue: dict[str, Any]) -> None:
    before = json.dumps(rescue)
    assert render(rescue) == render(rescue)
    assert json.dumps(rescue) == before


# --------------------------------------------------------------------------------------------- the browser


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium on PATH")
@pytest.mark.parametrize("kind", ["rescue", "respond"])
def test_a_browser_draws_every_figure_without_an_error(rescue: dict[str, Any], tmp_path: Path, kind: str) -> None:
    document = rescue if kind == "rescue" else respond_document()
    (tmp_path / "report.html").write_text(render(document), encoding="utf-8")
    command = [
        *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000"),
        *("--enable-logging=stderr", "--v=0", "--dump-dom", (tmp_path / "report.html").as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    figures = 6 if kind == "rescue" else 1
    assert done.stdout.count('class="modebar-container"') == figures
    assert done.stdout.count('class="main-svg"') >= figures
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
