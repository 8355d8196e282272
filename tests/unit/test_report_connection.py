"""The page of a connection: what it says, what it draws, and that nothing in a document breaks it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from documents import Page
from planaria.report import connection
from planaria.report.connection import Found
from planaria.report.connection_figures import loss_figure, score_figure
from planaria.report.page import render

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}PLOTLY-BUNDLE"
TIMES = [0.0, 0.25, 0.5, 0.75, 1.0]
HEIGHTS = {"straight": 1.3, "aligned": 0.01, "bezier": 0.0, "chain": 0.002, "greedy": 0.03}


def around(best: float, half: float) -> dict[str, float]:
    return {"low": best - half, "best": best, "high": best + half}


def made_up_profile(height: float, examples: int, shift: float) -> dict[str, Any]:
    """A hump of some height over ends at 0.05 and 0.06."""
    hump = [0.0, 0.6, 1.0, 0.6, 0.0]
    losses = [0.05 + 0.01 * t + shift + height * h for t, h in zip(TIMES, hump, strict=True)]
    scores = [0.984 - 0.3 * height * h for h in hump]
    return {
        "examples": examples,
        "times": TIMES,
        "losses": losses,
        "scores": scores,
        "loss_barrier": around(height, 0.004),
        "score_barrier": around(0.3 * height, 0.002),
        "worst_loss": 0.5 if height else 0.0,
        "worst_score": 0.5 if height else 0.0,
        "length": 0.2 + height,
        "energy": 0.04 + height,
        "distance": "root of the mean Jensen-Shannon divergence (nats)",
        "euclidean": 30.0,
        "broken": [],
        "cost": {"examples": examples, "seconds": 1.0},
    }


def made_up_way(name: str, height: float) -> dict[str, Any]:
    return {
        "way": name,
        "words": f"way {name}",
        "settings": "",
        "problem": "",
        "connects": height <= 0.05,
        "tolerance": 0.05,
        "knots": 2,
        "apart": 26.4,
        "cost": {
            "examples": 0,
            "labels": 0,
            "forward_passes": 0,
            "backward_passes": 1000,
            "multiply_adds": 10**9,
            "seconds": 7.3,
            "forward_equivalents": 7.16,
        },
        "measuring": {"seconds": 8.0, "multiply_adds": 10**9},
        "notes": {"steps taken": 200, "gap before": 26.4, "final gap": 6.58} if name == "greedy" else {},
        "profiles": {
            split: made_up_profile(height, examples, shift)
            for split, examples, shift in (("train", 5000, -0.04), ("validation", 5000, 0.0), ("test", 10000, 0.0))
        },
    }


def connection_document(ways: dict[str, float] | None = None) -> dict[str, Any]:
    """A made-up result of `connect` with the shape and the rough numbers of a real one."""
    ways = HEIGHTS if ways is None else ways
    found = [made_up_way(name, height) for name, height in ways.items()]
    best = next((name for name, height in ways.items() if height <= 0.05), next(iter(ways), None))
    return {
        "command": "connect",
        "schema": "planaria.connect.v1",
        "version": "0.1.0",
        "network": {"name": "mlp:784-256-10", "parameters": 203530, "units": []},
        "task": {"name": "mnist", "score": "accuracy", "chance": 0.1, "splits": {"train": 55000, "test": 10000}},
        "intact": {"test": 0.984, "validation": 0.985, "interval": [0.981, 0.986]},
        "warnings": [],
        "settings": {"by": list(ways), "points": 25},
        "rows": [{"way": "straight", "split": "test", "t": 0.0, "loss": 0.05, "score": 0.984}],
        "connection": {
            "distance": 35.4,
            "size": 25.0,
            "same": False,
            "tolerance": 0.05,
            "normalisation": {"layers": ["bn1"], "inputs": 1000},
            "forward": 10**10,
            "best": best,
            "alignment": {
                "distance_before": 35.4,
                "distance_after": 26.4,
                "moved": 256,
                "verdict": "256 of 256 units in 1 symmetries changed places: distance 35.4 before, 26.4 after",
                "symmetries": {
                    "found": [{"name": "layers.0", "kind": "neuron", "size": 256}],
                    "left_out": {"attention": "its queries are shared"},
                },
            },
            "ways": found,
            "control": {**made_up_way("control", 0.0), "updates": 50},
        },
        "verdicts": [
            {"question": "Is there a path?", "answer": "yes, the aligned line", "words": "Words.", "numbers": {}},
            {"question": "Do walks meet?", "answer": "no, 25 % is left", "words": "Words.", "numbers": {"gap": 6.58}},
        ],
        "files": {"report": "run/report.html", "results": "run/results.csv"},
        "manifest": {"command_line": ["planaria", "connect"], "versions": {"torch": "2.13"}, "seeds": [0, 1]},
    }


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without the plotting library: five megabytes less to put together."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly */")


def told(document: dict[str, Any]) -> str:
    return connection.headline(Found.of(document))


@pytest.mark.usefixtures("light")
def test_the_page_says_what_was_found_and_is_whole() -> None:
    page = Page(render(connection_document()))
    text = page.words
    assert len(page.figures) == 2 and page.loads == ["data:,"]
    for words in (
        "The two are connected",
        "aligned line",
        "barrier in accuracy, points",
        "200 steps; 6.58 of 26.4 are left between them",
        "bn1 on 1,000 training inputs",
        "its queries are shared",
        "Jensen-Shannon",
        "7.16",
        "4 connect",
    ):
        assert words in text, words


def test_the_headline_tells_connected_from_not_connected_and_from_not_settled() -> None:
    assert told(connection_document()) == (
        "The two are connected: along the aligned line the test loss rises by 0.010 [0.006, 0.014] at most, and "
        "accuracy falls by 0.30 points [0.10, 0.50]"
    )
    assert told(connection_document({"straight": 1.3})).startswith("No path of good networks found: along the straight")
    assert told(connection_document({"straight": 0.048})).startswith("Whether the two are connected is not settled")
    flat = told(connection_document({"bezier": 0.0}))
    assert flat == "The two are connected: along the curve the test loss does not rise and the score holds"
    same = connection_document()
    same["connection"]["same"] = True
    assert told(same) == "The two are the same network: their distance is 0"
    assert told(connection_document({})) == "No way between the two could be tried"
    broken = connection_document({"straight": 1.3})
    test = broken["connection"]["ways"][0]["profiles"]["test"]
    test["loss_barrier"] = {"low": None, "best": None, "high": None}
    assert told(broken) == "No path of good networks found: outputs are not finite along the straight line"


def test_every_way_is_drawn_on_both_splits_with_its_worst_point_and_the_control_waits() -> None:
    found = Found.of(connection_document())
    figure = loss_figure(found)
    assert figure is not None
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert len(lines) == 2 * 6 and {trace.line.dash for trace in lines} == {"dash", "solid"}
    assert sum(trace.visible == "legendonly" for trace in lines) == 2
    test = {trace.name: trace for trace in lines if trace.line.dash == "solid"}
    assert list(test["chain"].y) == pytest.approx(found.ways[3]["profiles"]["test"]["losses"])
    worst = [trace for trace in figure.data if trace.mode == "markers"]
    assert len(worst) == 4  # a barrier of 0 has no worst point
    assert worst[0].error_y.array[0] == pytest.approx(0.004)
    (line,) = [trace for trace in figure.data if trace.mode == "lines"]
    assert list(line.y) == pytest.approx([0.05, 0.06])
    low, high = figure.layout.yaxis.range
    assert low < 0.01 and high > 1.355 + 0.004
    near = figure.layout.updatemenus[0].buttons[1].args[0]["yaxis.range"]
    assert near[1] < 0.2
    title = figure.layout.title.text.replace("<br>", " ")
    assert title.endswith("along the aligned line, the curve, the chain and the greedy walks")


def test_scores_are_drawn_with_what_is_lost_least_and_most() -> None:
    figure = score_figure(Found.of(connection_document()))
    assert figure is not None
    title = figure.layout.title.text.replace("<br>", " ")
    assert "Least is lost along the curve" in title and "most along the straight line, 39.00 points" in title


def test_points_without_a_number_are_left_out_of_the_figures() -> None:
    document = connection_document({"straight": 1.3, "chain": 0.01})
    for split in ("train", "test"):
        document["connection"]["ways"][0]["profiles"][split]["losses"] = [0.05, None, None, None, 0.06]
    figure = loss_figure(Found.of(document))
    assert figure is not None
    line = next(trace for trace in figure.data if trace.name == "straight line" and trace.line.dash == "solid")
    assert list(line.x) == [0.0, 1.0]
    document["connection"]["ways"] = []
    document["connection"]["control"] = None
    assert loss_figure(Found.of(document)) is None and score_figure(Found.of(document)) is None


def test_tables_have_a_line_per_way_and_the_control_in_a_block_of_its_own() -> None:
    found = Found.of(connection_document())
    whole = connection.barrier_table(found)
    assert whole is not None
    assert [len(block["lines"]) for block in whole["blocks"]] == [5, 1]
    assert all(len(line) == len(whole["heads"]) for block in whole["blocks"] for line in block["lines"])
    assert [line[0]["best"] for line in whole["blocks"][0]["lines"]] == [False, True, False, False, False]
    straight = whole["blocks"][0]["lines"][0]
    assert (straight[2]["value"], straight[2]["interval"]) == ("1.300", "[1.296, 1.304]")
    assert straight[5]["value"] == "39.00"
    costs = connection.cost_table(found)
    assert costs is not None and sum(span for _, span in costs["groups"]) == len(costs["heads"])
    ends = connection.ends_table(found)
    assert ends is not None and ends["blocks"][0]["lines"][0][6]["value"] == "98.40%"


def test_ways_that_were_left_out_are_named_with_their_reason() -> None:
    document = connection_document({"straight": 1.3})
    document["connection"]["ways"].append({"way": "aligned", "problem": "no trace", "settings": ""})
    assert ("aligned line", "left out: no trace") in connection.pairs(Found.of(document))


@pytest.mark.usefixtures("light")
def test_text_of_a_user_is_only_text() -> None:
    document = connection_document({"straight": 1.3, "chain": 0.01})
    document["connection"]["ways"][0]["way"] = EVIL
    document["connection"]["ways"].append({"way": EVIL, "problem": EVIL})
    document["connection"]["alignment"]["verdict"] = EVIL
    document["connection"]["alignment"]["symmetries"]["left_out"] = {EVIL: EVIL}
    document["connection"]["normalisation"]["layers"] = [EVIL]
    text = render(document)
    assert "<script>alert" not in text and "<img" not in text and "<b>49" not in text


@pytest.mark.usefixtures("light")
def test_no_missing_part_of_a_document_breaks_the_page() -> None:
    whole = connection_document({"greedy": 1.3})
    whole["connection"]["control"] = None
    places: list[tuple[str | int, ...]] = []

    def walk(value: Any, place: tuple[str | int, ...]) -> None:
        if place and len(place) <= 4:
            places.append(place)
        inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
        for key, item in inner:
            walk(item, (*place, key))

    walk(whole["connection"], ("connection",))
    assert len(places) > 25
    for place in places:
        document = copy.deepcopy(whole)
        part: Any = document
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = None
        found = Found.of(document)
        connection.verdict(found), connection.fact(found), connection.pairs(found), connection.left_out(found)
        for draw in (loss_figure, score_figure):
            draw(found)
        for make in (connection.barrier_table, connection.cost_table, connection.ends_table, connection.symmetry_table):
            make(found)
    document = copy.deepcopy(whole)
    document["connection"] = {"distance": 1.0}
    assert "No way between the two could be tried" in render(json.loads(json.dumps(document)))
