"""A landscape in words and tables: what stays, what is connected, what pictures and surfaces may be believed for.

All of it is read from `document["landscape"]`; the figures are made in `landscape_figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planaria.report.drawing import MUTED
from planaria.report.reading import (
    DASH,
    Document,
    Notation,
    amount,
    count,
    interval,
    number,
    part,
    records,
    share,
    written,
)
from planaria.report.tables import Table, cell, table, trimmed
from planaria.report.vulnerability import listed
from planaria.report.words import name_of

INTACT, DAMAGED, REPAIRED, UNDAMAGED = "intact", "damaged", "repaired", "without damage"
COLOURS = {
    INTACT: "#1d2733",
    DAMAGED: "#C8763C",
    REPAIRED: "#AA4499",
    UNDAMAGED: "#009E73",
    "displaced": "#56B4E9",
    "independent": "#0072B2",
    "untrained": MUTED,
}
"""Groups of networks; those of a walk are coloured by their event where it is drawn."""
ALL, NEAR = "all networks", "walks and what stays near"
DISTANCES = {
    "weights": "weights",
    "weights, aligned": "weights, aligned",
    "outputs": "outputs",
    "answers": "probabilities",
}
"""Distance -> how a switch calls it."""


@dataclass(frozen=True)
class Found:
    """A result, read once.

    Attributes:
        document: The whole of it.
        result: Its landscape; empty where there is none.
        notation: How scores are written.
    """

    document: Document
    result: Mapping[str, Any]
    notation: Notation

    @staticmethod
    def of(document: Document) -> Found:
        """Read a document."""
        return Found(document, part(document, "landscape"), Notation.of(document))

    @property
    def members(self) -> list[Mapping[str, Any]]:
        """All networks."""
        return records(self.result.get("members"))

    @property
    def connections(self) -> list[Mapping[str, Any]]:
        """Lines, group by group; curves are the last."""
        found = records(self.result.get("connections"))
        curves = part(self.result, "curves")
        return [*found, *([curves] if curves else [])]

    @property
    def surfaces(self) -> list[Mapping[str, Any]]:
        """Surfaces of the loss."""
        return [one for one in records(self.result.get("surfaces")) if listed(one.get("loss"))]

    def pictures(self, of: str) -> list[Mapping[str, Any]]:
        """Pictures of some networks, one entry per distance."""
        return [one for one in records(self.result.get("pictures")) if one.get("of") == of]

    def connection(self, group: str) -> Mapping[str, Any]:
        """Straight lines of a group, not aligned; empty where there are none."""
        found = records(self.result.get("connections"))
        return next((one for one in found if one.get("group") == group and not one.get("aligned")), {})

    @property
    def walks(self) -> Document:
        """Walks and their control as a document of survival, for its figures."""
        settings = part(self.document, "settings")
        life, rest = part(self.result, "life"), part(self.result, "without_damage")
        names = (str(settings.get("repair") or "repaired"), UNDAMAGED)
        lives = [
            {**one, "repair": name}
            for name, of in zip(names, (life, rest), strict=True)
            for one in records(of.get("repairs"))
        ]
        return {**self.document, "survival": {**life, "repairs": lives, "turnover": None}}


def said(one: Mapping[str, Any]) -> str:
    """A group of lines in words."""
    name = f"{one.get('group')}{', aligned' if one.get('aligned') else ''}"
    return f"{name}, by {one['way']}" if one.get("way") else name


def headline(found: Found) -> str:
    """What lines between repaired networks do, beside the controls."""
    own = found.connection(REPAIRED)
    inside = interval(own.get("inside"))[1]
    if inside is None:
        return "Too few repaired networks are in the good set to join any two"
    text = f"{_whole(inside)} of the lines between repaired networks stay in the good set"
    controls = [
        f"{_whole(value)} {words}"
        for group, words in ((UNDAMAGED, "without damage"), ("independent", "between independent networks"))
        if (value := interval(found.connection(group).get("inside"))[1]) is not None
    ]
    return f"{text}; {', '.join(controls)}" if controls else text


def _whole(value: float) -> str:
    return f"{100 * value:.0f}%"


def fact(found: Found) -> tuple[str, str, str]:
    """Networks, as one of the numbers at the top."""
    lines = sum(number(one.get("pairs")) or 0.0 for one in found.connections)
    return "Networks", count(len(found.members)), f"{count(lines)} lines between them"


def verdict(found: Found) -> list[tuple[str, list[str]]]:
    """Question, walk, answer and certainty, each as a list of sentences."""
    network, task = (
        name_of(found.document.get("network"), "the network"),
        name_of(found.document.get("task"), "its task"),
    )
    say, settings = found.notation, part(found.document, "settings")
    question = (
        f"Do the networks that damage and repair make of {network} on {task} form one connected set of good ones?"
    )
    dose, events, seeds = number(settings.get("dose_per_event")), settings.get("events"), listed(settings.get("seeds"))
    walk = f"{count(len(seeds))} walks of {count(number(events))} events"
    walk += (
        f" of {say.dose(dose)} ({say.dose_unit}) each, {settings.get('mode')}, repaired by {settings.get('repair')}."
    )
    tolerance = number(found.result.get("tolerance"))
    good = f"Good: validation score at least {say.score(number(found.result.get('threshold')))}"
    good += (
        "."
        if tolerance is None
        else f", {say.gain(tolerance).replace('+', '')}{' points' if say.percent else ''} below the intact one."
    )
    answer = [f"{one.get('question')} {one.get('answer')}." for one in records(found.document.get("verdicts"))]
    sure = ["Intervals allow for the networks and walks that pairs share; lines are looked at at 25 points and more."]
    return [("Question", [question]), ("Walk", [walk, good]), ("Answer", answer), ("Certainty", sure)]


# ----------------------------------------------------------------------------------------------------- the tables


def group_table(found: Found) -> Table | None:
    """Every group of networks: how many, how many are good, how far from the intact one."""
    lines, matrices = [], part(found.result, "distances")
    for group, colour in COLOURS.items():
        places = [place for place, one in enumerate(found.members) if one.get("group") == group]
        if not places:
            continue
        scores = [number(found.members[place].get("score")) for place in places]
        line = [
            cell(group, colour=colour),
            cell(count(len(places))),
            cell(*(written(part(found.result, "inside").get(group), share) if group != INTACT else (DASH, ""))),
            cell(found.notation.score(_mean(scores))),
        ]
        for name in DISTANCES:
            row = (listed(matrices.get(name)) or [[]])[0]
            far = [number(row[place]) for place in places if place < len(row)]
            line.append(cell(amount(_mean(far)) if group != INTACT else DASH))
        lines.append(line)
    heads = ["networks", "number", "in the good set", "validation score", *DISTANCES.values()]
    groups = [("", 4), ("mean distance from the intact network", len(DISTANCES))]
    return trimmed(table(heads, [("", lines)], groups=groups)) if lines else None


def connection_table(found: Found) -> Table | None:
    """Lines between networks, group by group, with intervals."""
    say, lines = found.notation, []

    def drop(value: object) -> str:
        return say.gain(number(value)).replace("+", "")

    for one in found.connections:
        lines.append(
            [
                cell(said(one), colour=COLOURS.get(str(one.get("group")), "")),
                cell(count(number(one.get("networks")))),
                cell(count(number(one.get("pairs")))),
                cell(*written(one.get("inside"), share)),
                cell(*written(one.get("inside_within_walks"), share)),
                cell(*written(one.get("inside_between_walks"), share)),
                cell(*written(one.get("level"), share)),
                cell(drop(one.get("mean_test_barrier"))),
                cell(drop(one.get("largest_test_barrier"))),
            ]
        )
    heads = ["networks", "number", "pairs", "all", "of one walk", "of two walks", "level", "mean", "largest"]
    unit = "points" if say.percent else say.score_word
    groups = [("", 3), ("lines inside the good set", 3), ("", 1), (f"barrier, test split, {unit}", 2)]
    return trimmed(table(heads, [("", lines)], groups=groups)) if lines else None


def picture_table(found: Found) -> Table | None:
    """What each picture keeps."""
    blocks = []
    for of in (NEAR, ALL):
        for one in found.pictures(of):
            lines = []
            for shown in records(one.get("embeddings")):
                believed = shown.get("faithful") and shown.get("stable")
                lines.append(
                    [
                        cell(str(shown.get("method"))),
                        *(cell(_two(number(shown.get(key)))) for key in ("trustworthiness", "continuity", "stress")),
                        cell(count(number(shown.get("runs")))),
                        *(cell(_two(number(shown.get(key)))) for key in ("overlap", "disparity")),
                        cell(_two(number(shown.get("separation")))),
                        cell(str(part(shown, "clusters").get("count") or DASH)),
                        cell("yes" if believed else "no"),
                    ]
                )
            blocks.append((f"{_begun(of)}, distance of {DISTANCES.get(str(one.get('distance')))}", lines))
    heads = ["picture", "trustw.", "continuity", "stress", "seeds", "overlap", "disparity"]
    heads += ["separation", "clusters", "believed"]
    groups = [("", 1), ("what it keeps", 3), ("between seeds", 3), ("what it shows", 2), ("", 1)]
    return trimmed(table(heads, blocks, groups=groups)) if any(lines for _, lines in blocks) else None


def walk_table(found: Found) -> Table | None:
    """Every walk against a random walk of the same steps."""
    blocks = []
    for one in found.pictures(NEAR):
        lines = []
        for walk in records(one.get("walks")):
            own, chance = (sum(listed(walk.get(key))) for key in ("shares", "shares_random"))
            p_value = number(walk.get("p"))
            lines.append(
                [
                    cell(str(walk.get("walk"))),
                    cell(count(number(walk.get("steps")))),
                    cell(share(own)),
                    cell(share(chance)),
                    cell(amount(number(walk.get("disparity")))),
                    cell("yes" if walk.get("like_chance") else "no"),
                    cell(DASH if p_value is None else f"{p_value:.3f}"),
                ]
            )
        if lines:
            blocks.append((f"Distance of {DISTANCES.get(str(one.get('distance')))}", lines))
    heads = ["walk", "steps", "two components hold", "of a random walk", "disparity", "drawn alike", "p of its order"]
    return table(heads, blocks) if blocks else None


def surface_table(found: Found) -> Table | None:
    """How far from each surface the networks are that are drawn on it."""
    blocks = []
    for one in found.surfaces:
        lines = []
        for group, stops in grouped(found, one).items():
            square = (
                [(number(s.get("off")) or 0.0) ** 2 for s in stops],
                [(number(s.get("far")) or 0.0) ** 2 for s in stops],
            )
            within = 1 - sum(square[0]) / sum(square[1]) if sum(square[1]) else None
            means = [_mean([number(stop.get(key)) for stop in stops]) for key in ("far", "off", "loss", "loss_below")]
            lines.append(
                [
                    cell(group, colour=COLOURS.get(group, "")),
                    cell(count(len(stops))),
                    *(cell(amount(value)) for value in means[:2]),
                    cell(share(within)),
                    *(cell(amount(value)) for value in means[2:]),
                ]
            )
        if lines:
            blocks.append((_begun(str(one.get("which"))), lines))
    heads = ["networks", "number", "from the intact one", "from the plane", "in the plane", "its own", "below it"]
    groups = [("", 2), ("mean distance in weights", 2), ("", 1), ("mean loss", 2)]
    return table(heads, blocks, groups=groups) if blocks else None


def grouped(found: Found, surface: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """What is drawn on a surface, by group; each stop with its network under "network"."""
    stops: dict[str, list[Mapping[str, Any]]] = {}
    for stop in (*records(surface.get("walk")), *records(surface.get("controls"))):
        place = number(stop.get("member"))
        if place is None or not 0 <= place < len(found.members) or number(stop.get("u")) is None:
            continue
        member = found.members[int(place)]
        stops.setdefault(str(member.get("group")), []).append({**stop, "network": member})
    return stops


def notes(found: Found) -> str:
    """What was left out or done instead."""
    return " ".join(str(note) for note in listed(found.result.get("notes")))


def meanings(found: Found) -> list[tuple[str, str]]:
    """What each group of networks is."""
    return [(str(name), str(text)) for name, text in part(found.result, "meanings").items()]


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _two(value: float | None) -> str:
    return DASH if value is None else f"{round(value, 2) + 0.0:.2f}"
