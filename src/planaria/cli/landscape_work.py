"""The work of `planaria landscape`: walks and controls, pictures, surfaces, and the files they leave."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from planaria.campaign.files import write_atomic
from planaria.cli.landscape_plan import Plan
from planaria.cli.landscape_verdicts import judge_pictures, judge_surfaces
from planaria.cli.repairs import MEANINGS, build_repairs
from planaria.cli.running import Run, files
from planaria.cli.screen import Screen, Steps
from planaria.cli.surviving import flows_of
from planaria.core.errors import InputError
from planaria.geometry.embed import embed
from planaria.study.invariance import Survey
from planaria.study.invariant_set import (
    DAMAGED,
    DISPLACED,
    INDEPENDENT,
    REPAIRED,
    UNDAMAGED,
    UNTRAINED,
    Invariance,
    Member,
)
from planaria.study.plane import Plane
from planaria.study.regime import Turnover
from planaria.study.surface import Grid

PAIRS, SURFACES = "pairs.csv", "surfaces.csv"
ALL, NEAR = "all networks", "walks and what stays near"
RANDOM, WALK = "random directions", "plane of the walk"
WALK_NAME = "weights"
"""Distance by which walks are compared with random ones in the verdict."""


def work(current: Run, plan: Plan, screen: Screen) -> dict[str, Any]:
    """Walks, controls, lines, pictures, surfaces, files; returns the document."""
    if screen.fresh:
        for name in (PAIRS, SURFACES):
            (plan.folder / name).unlink(missing_ok=True)
    repairs, _ = build_repairs((plan.options.repair,), current.net, current.task, plan.settings)
    survey = plan.survey(current.net, flows_of(repairs, "--repair")[plan.options.repair])
    kinds = 4 if current.task.classes is not None else 3
    whiches = (RANDOM, WALK) if plan.grid else ()
    total = survey.steps + 2 * kinds + len(whiches) * (plan.grid + 1)
    with screen.progress(total, "steps") as steps:

        def keep(name: str, make: Callable[[], dict[str, Any]], **more: Any) -> dict[str, Any]:
            known: dict[str, Any] = current.once(current.id(what=name, **more), make)
            steps.done(what=name)
            return known

        found = survey.run(keep)
        pictures = [_pictured(found, plan, keep, *one) for one in _subsets(found)]
        surfaces = [_surveyed(current, plan, survey, found, which, steps) for which in whiches]
    notes = [*found.notes, *plan.missing]
    notes += [
        f"No picture of {one['of']} by {one['distance']}: {one['problem']}" for one in pictures if "problem" in one
    ]
    notes += [f"No surface along the {one['which']}: {one['problem']}" for one in surfaces if "problem" in one]
    for note in notes:
        screen.say(note)
    pictures = [one for one in pictures if "problem" not in one]
    surfaces = [one for one in surfaces if "problem" not in one]
    write_atomic(plan.folder / PAIRS, _pairs(found))
    if surfaces:
        write_atomic(plan.folder / SURFACES, _points(surfaces))
    document = {
        **current.document,
        "settings": _settings(plan, survey),
        "rows": _rows(found),
        "landscape": {**found.to_dict(), "pictures": pictures, "surfaces": surfaces, "notes": notes},
        "verdicts": [*found.verdicts, *judge_pictures(pictures, WALK_NAME), *judge_surfaces(surfaces, RANDOM)],
        "files": {
            **files(plan.folder),
            "pairs": str(plan.folder / PAIRS),
            "surfaces": str(plan.folder / SURFACES) if surfaces else None,
        },
    }
    document["landscape"].pop("verdicts")
    current.finish(document)
    return document


def _subsets(found: Invariance) -> Iterator[tuple[str, str, list[int]]]:
    """Distance, which networks, and their places; networks infinitely far away cannot be placed."""
    for name, matrix in found.distances.items():
        known = [place for place in range(len(found.members)) if math.isfinite(matrix[0][place])]
        yield name, ALL, known
        far = (INDEPENDENT, UNTRAINED)
        yield name, NEAR, [place for place in known if found.members[place].group not in far]


def _pictured(
    found: Invariance, plan: Plan, keep: Callable[..., dict[str, Any]], distance: str, of: str, places: list[int]
) -> dict[str, Any]:
    """Pictures of some networks by one distance, or why there are none."""
    methods = plan.methods(len(places))

    def make() -> dict[str, Any]:
        matrix = torch.tensor(found.distances[distance], dtype=torch.float64)[places][:, places]
        walks = _walks(found, places) if of == NEAR else {}
        groups = [found.members[place].group for place in places]
        record: dict[str, Any] = {"what": "pictures", "distance": distance, "of": of, "places": places}
        try:
            made = embed(matrix, groups=groups, walks=walks, methods=methods, seed=plan.prepared.subject.seed)
        except InputError as problem:
            return record | {"problem": str(problem)}
        return record | made.to_dict()

    return keep(f"pictures, {distance}, {of}", make, methods=[one.name for one in methods])


def _walks(found: Invariance, places: Sequence[int]) -> dict[str, list[int]]:
    """Rows of each walk, in order: the intact network, then what was repaired after each event."""
    row = {place: number for number, place in enumerate(places)}
    walks: dict[str, list[int]] = {}
    for place in places:
        member = found.members[place]
        if member.group == REPAIRED:
            walks.setdefault(f"walk of seed {member.walk}", [row[0]]).append(row[place])
    return walks


def _surveyed(current: Run, plan: Plan, survey: Survey, found: Invariance, which: str, steps: Steps) -> dict[str, Any]:
    """One surface with the first walk and the controls on it, or why there is none; its rows are kept one by one."""
    mark = current.id(what="surface", which=which)
    if mark in current.ledger:
        steps.done(plan.grid + 1, which)
        return dict(current.ledger[mark])

    def keep(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        known: dict[str, Any] = current.once(current.id(what=name, which=which), make)
        steps.done(what=f"surface, {which}")
        return known

    def make() -> dict[str, Any]:
        record: dict[str, Any] = {"what": "surface", "which": which}
        walk, controls = _drawn(found, plan.seeds[0])
        try:
            grid = _grid(plan, survey, which, [found.members[place] for place in walk], [*walk, *controls], found)
            whole = grid.run(keep)
        except InputError as problem:
            return record | {"problem": str(problem)}
        shown = replace(whole, walk=whole.walk[: len(walk)]).to_dict()
        others = replace(whole, walk=whole.walk[len(walk) :]).to_dict()["walk"]
        for stops, places in ((shown["walk"], walk), (others, controls)):
            for stop, place in zip(stops, places, strict=True):
                stop["member"] = place
        return record | shown | {"controls": others}

    return dict(current.once(mark, make))


def _grid(
    plan: Plan, survey: Survey, which: str, walk: Sequence[Member], places: Sequence[int], found: Invariance
) -> Grid:
    company, seed = survey.company, plan.prepared.subject.seed
    net = company.net
    plane = (
        Plane.random(net, seed) if which == RANDOM else Plane.of_walk(net, [company.network(one) for one in walk], seed)
    )
    nets = [company.network(found.members[place]) for place in places]
    return plan.grid_of(net, plane, nets, plan.options.span if which == RANDOM else 1.0)


def _drawn(found: Invariance, seed: int) -> tuple[list[int], list[int]]:
    """Places of the networks of the first walk, hits and repairs by turns, and of the controls."""
    matrix = found.distances["weights"]
    known = [place for place in range(len(found.members)) if math.isfinite(matrix[0][place])]
    walk = [
        place
        for place in known
        if found.members[place].group in (DAMAGED, REPAIRED) and found.members[place].walk == seed
    ]
    return walk, [place for place in known if found.members[place].group in (UNDAMAGED, DISPLACED, INDEPENDENT)]


# ------------------------------------------------------------------------------------------------------ the files


def _rows(found: Invariance) -> list[dict[str, Any]]:
    """A line per network."""
    return [
        {
            "place": place,
            **vars(member),
            **{f"{name.replace(', ', '_')}_from_intact": matrix[0][place] for name, matrix in found.distances.items()},
        }
        for place, member in enumerate(found.members)
    ]


def _pairs(found: Invariance) -> str:
    """A line per pair of networks that was joined, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(found.distances)
    heads = ["group", "aligned", "way", "first", "second", "inside", "least", "at", "barrier", "test_barrier"]
    writer.writerow([*heads, *(name.replace(", ", "_") for name in names)])
    joined = [(one, "straight") for one in found.connections]
    joined += [(found.curves, found.way or "curve")] if found.curves is not None else []
    for one, way in joined:
        for line in one.lines:
            values = [line.first, line.second, line.inside, line.least, line.at, line.barrier, line.test_barrier]
            apart = [found.distances[name][line.first][line.second] for name in names]
            told = ["" if value is None or value in (math.inf, -math.inf) else value for value in (*values, *apart)]
            writer.writerow([one.group, one.aligned, way, *told])
    return text.getvalue()


def _points(surfaces: Sequence[dict[str, Any]]) -> str:
    """A line per point of each surface, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["surface", "u", "v", "loss", "score"])
    for one in surfaces:
        for v, losses, scores in zip(one["v"], one["loss"], one["score"], strict=True):
            for u, loss, score in zip(one["u"], losses, scores, strict=True):
                writer.writerow([one["which"], u, v, "" if loss is None else loss, "" if score is None else score])
    return text.getvalue()


def _settings(plan: Plan, survey: Survey) -> dict[str, Any]:
    regime, options = plan.regime, plan.options
    return {
        "mode": "turnover" if isinstance(regime.mode, Turnover) else "attrition",
        "dose_per_event": regime.dose,
        "events": regime.events,
        "delay": regime.mode.delay if isinstance(regime.mode, Turnover) else None,
        "seeds": list(plan.seeds),
        "repair": options.repair,
        "what_it_does": MEANINGS[options.repair],
        "damage": repr(regime.damage),
        "unit": regime.damage.site.dose.unit,
        "tolerance": regime.tolerance,
        **{key: value for key, value in asdict(plan.settings).items() if key not in ("bites", "ratio", "inputs")},
        "multiply_adds": int(regime.within.amount),
        "networks_per_group": plan.networks,
        "independent_networks": asdict(survey.company.recipe),
        "methods": plan.identity["methods"],
        "grid": plan.grid,
        "inputs": plan.identity["inputs"],
        "span": plan.identity["span"],
    }
