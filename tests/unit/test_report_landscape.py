from __future__ import annotations

import copy
import json
import math
import random
from typing import Any

import pytest

from documents import Page, estimate, rescue_document, survive_document
from planaria.report import landscape
from planaria.report.landscape import ALL, NEAR, Found, headline
from planaria.report.landscape_figures import barrier_figure, pictures_figure
from planaria.report.landscape_surfaces import surface_figure
from planaria.report.page import _landscape, render

GROUPS = {"damaged": 6, "repaired": 6, "without damage": 3, "displaced": 3, "independent": 3, "untrained": 3}
METHODS = ("PCA", "MDS", "Isomap", "t-SNE (perplexity 5)")
DISTANCES = ("weights", "weights, aligned", "outputs", "answers")
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}PLOTLY-BUNDLE"


def landscape_document(*, points: int = 5) -> dict[str, Any]:
    """A made-up result of `landscape` with the shape and the rough numbers of a real one."""
    rng = random.Random(0)
    members: list[dict[str, Any]] = [{"group": "intact", "walk": None, "event": None, "score": 0.97, "inside": True}]
    for group, count in GROUPS.items():
        for at in range(count):
            walked = group not in ("independent", "untrained")
            own, event = (at // 3, at % 3 + 1) if walked else (at, None)
            members.append({"group": group, "walk": own, "event": event, "score": 0.9 - 0.01 * at, "inside": at < 2})
    places = {group: [at for at, one in enumerate(members) if one["group"] == group] for group in GROUPS}
    connections = [
        connection(rng, group, aligned, places[group])
        for group in ("repaired", "without damage", "displaced", "independent")
        for aligned in ((False, True) if group in ("repaired", "independent") else (False,))
    ]
    count = len(members)
    spots = [(rng.random(), rng.random()) for _ in members]
    matrix = [[math.dist(a, b) for b in spots] for a in spots]
    near = [at for at, one in enumerate(members) if one["group"] not in ("independent", "untrained")]
    pictures = [
        picture(rng, distance, of, kept)
        for distance in DISTANCES
        for of, kept in ((ALL, list(range(count))), (NEAR, near))
    ]
    walk = [at for at, one in enumerate(members) if one["group"] in ("damaged", "repaired") and one["walk"] == 0]
    walk.sort(key=lambda at: (members[at]["event"], members[at]["group"]))
    controls = [at for name in ("without damage", "displaced", "independent") for at in places[name]]
    life = survive_document(events=3, seeds=2, repairs=("retrain",))["survival"]
    document = rescue_document(doses=(0.5,), seeds=2, repairs=("retrain",))
    return {
        **document,
        "command": "landscape",
        "schema": "planaria.landscape.v1",
        "rows": [],
        "summary": [],
        "response": None,
        "settings": {
            **{"mode": "attrition", "dose_per_event": 0.05, "events": 3, "seeds": [0, 1], "repair": "retrain"},
            **{"unit": "fraction of units", "tolerance": 0.02},
        },
        "verdicts": [{"question": "Connected?", "answer": "In part", "words": "", "numbers": {}}],
        "landscape": {
            **{"score": "accuracy", "threshold": 0.95, "tolerance": 0.02, "life": life, "without_damage": life},
            "members": members,
            "meanings": {group: f"what {group} means" for group in GROUPS},
            "connections": connections,
            "curves": None,
            "inside": {group: estimate(0.5, 0.2) for group in ("intact", *GROUPS)},
            "distances": dict.fromkeys(DISTANCES, matrix),
            "training": {"epochs": 3},
            "notes": ["UMAP is left out."],
            "pictures": pictures,
            "surfaces": [
                surface(which, walk, controls, points) for which in ("random directions", "plane of the walk")
            ],
        },
    }


def connection(rng: random.Random, group: str, aligned: bool, places: list[int]) -> dict[str, Any]:
    pairs = [(a, b) for at, a in enumerate(places) for b in places[at + 1 :]]
    lines = [
        {"first": a, "second": b, "inside": True, "least": 0.9, "at": 0.5, "barrier": rng.random() / 9}
        | {"test_barrier": rng.random() / 9}
        for a, b in pairs
    ]
    return {
        **{"group": group, "aligned": aligned, "networks": len(places), "pairs": len(pairs), "lines": lines},
        **{"inside": estimate(0.6, 0.2), "level": estimate(0.7, 0.1), "mean_barrier": 0.05, "mean_test_barrier": 0.04},
        **{"largest_barrier": 0.11, "largest_test_barrier": 0.1},
        **dict.fromkeys(("inside_within_walks", "inside_between_walks"), estimate(0.5, 0.1)),
    }


def picture(rng: random.Random, distance: str, of: str, places: list[int]) -> dict[str, Any]:
    shown = [
        {"method": name, "local": False, "trustworthiness": 0.95, "continuity": 0.9 + at / 100, "stress": 0.2}
        | {"neighbours": 5, "runs": 5, "disparity": 0.1, "overlap": 0.7, "separation": -0.001, "clusters": None}
        | {"points": [[rng.random(), rng.random()] for _ in places], "faithful": True, "stable": at < 2, "settings": {}}
        for at, name in enumerate(METHODS)
    ]
    control = {"walk": "walk of seed 0", "steps": 3, "shares": [0.6, 0.2], "shares_random": [0.6, 0.15], "p": 0.005}
    walks = [control | {"disparity": 0.01, "like_chance": True}] if of == NEAR else []
    return {"distance": distance, "of": of, "places": places, "embeddings": shown, "walks": walks, "separation": 0.1}


def surface(which: str, walk: list[int], controls: list[int], points: int) -> dict[str, Any]:
    at = [-1 + 2 * place / (points - 1) for place in range(points)]
    losses = [[0.1 + 3 * (u * u + v * v) for u in at] for v in at]
    stop = {"off": 3.0, "far": 4.0, "loss": 0.3, "score": 0.9, "loss_below": 0.2, "score_below": 0.95}
    own = which != "random directions"
    return {
        **{"which": which, "u": at, "v": at, "loss": losses, "score": [[1 - z / 10 for z in row] for row in losses]},
        **{"centre_loss": 0.1, "centre_score": 0.97, "examples": 540, "split": "test", "lengths": [4.0, 2.0]},
        **{
            "directions": which,
            "statistics": "none",
            "shares": [0.8, 0.1] if own else None,
            "off": 0.1 if own else 1.0,
        },
        "walk": [{"u": 0.1 * step, "v": 0.05 * step, "member": place, **stop} for step, place in enumerate(walk)],
        "controls": [{"u": -0.1 * step, "v": 0.2, "member": place, **stop} for step, place in enumerate(controls)],
    }


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return landscape_document()


def test_the_page_has_a_figure_for_every_part_and_loads_nothing(document: dict[str, Any]) -> None:
    page = Page(render(document))
    assert (
        page.loads == ["data:,"] and len(page.figures) == 7
    )  # walks, retention, barriers, two of pictures, two surfaces
    for words in ("Are they connected?", "Pictures of the networks", "Surfaces of the loss", "UMAP is left out"):
        assert words in page.words
    assert "60% of the lines between repaired networks stay in the good set" in page.words


def test_all_panels_of_the_pictures_hold_all_networks_and_a_switch_changes_the_distance(
    document: dict[str, Any],
) -> None:
    found = Found.of(document)
    figure = pictures_figure(found, ALL)
    assert figure is not None
    marked = [trace for trace in figure.data if trace.mode == "markers"]
    shown = sum(x is not None for trace in marked for x in trace.x)
    assert shown == len(METHODS) * len(found.members)
    switches = figure.layout.updatemenus[0].buttons
    assert [one.label for one in switches] == ["weights", "weights, aligned", "outputs", "probabilities"]
    for one in switches:
        new, layout = one.args
        assert len(new["x"]) == len(new["y"]) == len(figure.data)
        assert [len(x) for x in new["x"]] == [len(trace.x) for trace in figure.data]
        assert len(layout["annotations"]) == len(METHODS)
    assert list(switches[0].args[0]["x"][1]) == list(figure.data[1].x)
    assert switches[1].args[0]["x"][1] != switches[0].args[0]["x"][1]


def test_every_group_has_its_own_colour_or_marker(document: dict[str, Any]) -> None:
    figure = pictures_figure(Found.of(document), ALL)
    assert figure is not None
    entries = [trace for trace in figure.data if trace.showlegend]
    assert sorted(trace.name for trace in entries) == sorted(("intact", *GROUPS))
    looks = [(str(trace.marker.symbol), str(trace.marker.color)) for trace in entries]
    assert len(set(looks)) == len(looks) and len({symbol for symbol, _ in looks}) == len(looks)


def test_networks_that_could_not_be_placed_leave_gaps(document: dict[str, Any]) -> None:
    broken = copy.deepcopy(document)
    for one in broken["landscape"]["pictures"]:
        one["places"] = one["places"][:-2]
        for shown in one["embeddings"]:
            shown["points"] = shown["points"][:-2]
    figure = pictures_figure(Found.of(broken), ALL)
    assert figure is not None
    untrained = next(trace for trace in figure.data if trace.name == "untrained")
    assert len(untrained.x) == GROUPS["untrained"] - 2


@pytest.mark.parametrize("number", [0, 1])
def test_each_switch_of_a_surface_shows_its_own_traces(document: dict[str, Any], number: int) -> None:
    found = Found.of(document)
    figure = surface_figure(found, found.surfaces[number])
    assert figure is not None
    for switch, kind in zip(figure.layout.updatemenus[0].buttons, ("contour", "contour", "surface"), strict=True):
        seen = switch.args[0]["visible"]
        assert len(seen) == len(figure.data)
        shown = [trace.type for trace, visible in zip(figure.data, seen, strict=True) if visible]
        assert shown.count(kind) == 1 and ("scatter3d" in shown) == (kind == "surface")
        assert switch.args[1]["xaxis.visible"] == (kind == "contour")


def test_what_is_mostly_off_the_plane_is_drawn_open(document: dict[str, Any]) -> None:
    found = Found.of(copy.deepcopy(document))
    one = dict(found.surfaces[1])
    stops = [{**stop, "off": 0.1} for stop in one["walk"]]
    figures = [surface_figure(found, one), surface_figure(found, {**one, "walk": stops})]
    symbols = [
        next(t for t in figure.data if t.name == "repaired" and t.x[0] is not None) for figure in figures if figure
    ]
    assert set(symbols[0].marker.symbol) == {"circle-open"} and set(symbols[1].marker.symbol) == {"circle"}


def test_coordinates_along_the_walk_are_distances_in_weights(document: dict[str, Any]) -> None:
    found = Found.of(document)
    random, own = (surface_figure(found, one) for one in found.surfaces)
    assert random is not None and own is not None
    assert tuple(random.layout.xaxis.range) == (-1, 1) and tuple(own.layout.xaxis.range) == (-4, 4)
    assert tuple(own.layout.yaxis.range) == (-2, 2)


def test_a_surface_with_holes_and_one_without_any_finite_loss(document: dict[str, Any]) -> None:
    broken = copy.deepcopy(document)
    holes, none = broken["landscape"]["surfaces"]
    holes["loss"][0][0] = holes["score"][0][0] = None
    none["loss"] = [[None] * len(row) for row in none["loss"]]
    for stop in (*holes["walk"], *holes["controls"]):
        stop["loss"] = stop["loss_below"] = None
    found = Found.of(broken)
    figure = surface_figure(found, found.surfaces[0])
    assert figure is not None and figure.data[0].z[0][0] is None
    assert surface_figure(found, found.surfaces[1]) is None
    assert len(Page(render(broken)).figures) == 6


def test_losses_below_zero_are_drawn_as_they_are(document: dict[str, Any]) -> None:
    broken = copy.deepcopy(document)
    one = broken["landscape"]["surfaces"][0]
    one["loss"] = [[value - 5 for value in row] for row in one["loss"]]
    figure = surface_figure(Found.of(broken), one)
    assert figure is not None and figure.data[0].z[0][0] == pytest.approx(one["loss"][0][0])


def test_every_line_is_a_point_of_the_barriers(document: dict[str, Any]) -> None:
    found = Found.of(document)
    figure = barrier_figure(found)
    assert figure is not None
    drawn = [trace for trace in figure.data if trace.mode == "markers"]
    assert [len(trace.x) for trace in drawn] == [one["pairs"] for one in found.connections]
    assert figure.layout.title.text.replace("<br>", " ") == (
        "Lines without a barrier: repaired 70%, without damage 70%, independent 70% (aligned 70%)"
    )


def test_the_tables_name_every_group_line_and_picture(document: dict[str, Any]) -> None:
    found = Found.of(document)
    tables = [landscape.group_table(found), landscape.connection_table(found), landscape.picture_table(found)]
    sizes = [[len(block["lines"]) for block in one["blocks"]] for one in tables if one]
    assert sizes == [[1 + len(GROUPS)], [6], [len(METHODS)] * 8]
    pictures = tables[2]
    assert pictures is not None and [line[-1]["value"] for line in pictures["blocks"][0]["lines"]] == [
        "yes",
        "yes",
        "no",
        "no",
    ]
    assert "-0.00" not in json.dumps(pictures)
    plane = landscape.surface_table(found)
    assert plane is not None and [line[0]["value"] for line in plane["blocks"][1]["lines"]] == [
        *("damaged", "repaired", "without damage", "displaced", "independent")
    ]


def test_a_walk_with_nothing_inside_is_said_so(document: dict[str, Any]) -> None:
    poor = copy.deepcopy(document)
    poor["landscape"]["connections"] = []
    assert headline(Found.of(poor)) == "Too few repaired networks are in the good set to join any two"
    page = Page(render(poor))
    assert "No two networks were joined." in page.words


@pytest.mark.parametrize("part", ["members", "connections", "inside", "distances", "pictures", "surfaces", "life"])
def test_a_result_that_lacks_a_part_still_makes_a_page(document: dict[str, Any], part: str) -> None:
    broken = copy.deepcopy(document)
    del broken["landscape"][part]
    told, sections = _landscape(broken)
    assert told[0] and "Surfaces of the loss" in [section["title"] for section in sections]


def test_text_of_a_user_stays_text() -> None:
    evil = landscape_document()
    evil["settings"]["repair"] = evil["network"]["name"] = evil["task"]["score"] = EVIL
    evil["landscape"]["notes"] = [EVIL]
    for one in (*evil["landscape"]["surfaces"], *evil["landscape"]["pictures"]):
        one.update(which=EVIL, split=EVIL) if "which" in one else one["embeddings"][0].update(method=EVIL)
    for one in evil["landscape"]["connections"]:
        one["group"] = EVIL
    page = Page(render(evil))
    assert page.loads == ["data:,"] and len(page.scripts) == 2 and not any("alert(1)" in s for s in page.scripts)
    assert "{{ 7 * 7 }}" in page.words
