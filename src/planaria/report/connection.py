"""A connection in words and tables: ways between two networks, their barriers, what it took to find them.

All of it is read from `document["connection"]`; the figures are made in `connection_figures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planaria.report.reading import (
    DASH,
    Document,
    Interval,
    Notation,
    amount,
    count,
    interval,
    number,
    part,
    records,
    seconds,
)
from planaria.report.tables import Cell, Table, cell, table, trimmed
from planaria.report.vulnerability import Say, quantity
from planaria.report.words import listing, name_of

COLOURS = {
    "straight": "#D55E00",
    "aligned": "#0072B2",
    "bezier": "#009E73",
    "chain": "#E69F00",
    "greedy": "#AA4499",
}
NAMES = {
    "straight": "straight line",
    "aligned": "aligned line",
    "bezier": "curve",
    "chain": "chain",
    "greedy": "greedy walks",
    "control": "control",
}
# Beyond these the page would be unreadable; the JSON result has all.
_SYMMETRIES, _LEFT_OUT = 40, 20


@dataclass(frozen=True)
class Found:
    """A result, read once.

    Attributes:
        document: The whole of it.
        result: Its connection; empty where there is none.
        say: How scores are written.
    """

    document: Document
    result: Mapping[str, Any]
    say: Say

    @staticmethod
    def of(document: Document) -> Found:
        """Read a document."""
        notation = Notation.of(document)
        return Found(document, part(document, "connection"), Say(notation, 2 if notation.percent else 4, 3))

    @property
    def ways(self) -> list[Mapping[str, Any]]:
        """Ways that could be tried."""
        return [way for way in records(self.result.get("ways")) if profile(way)]

    @property
    def refused(self) -> list[Mapping[str, Any]]:
        """Ways that could not."""
        return [way for way in records(self.result.get("ways")) if way.get("problem")]

    @property
    def control(self) -> Mapping[str, Any]:
        """The pair that surely is connected; empty where it was not measured."""
        way = part(self.result, "control")
        return way if profile(way) else {}

    @property
    def best(self) -> Mapping[str, Any]:
        """The way that was chosen on validation data; empty where there is none."""
        return next((way for way in self.ways if way.get("way") == self.result.get("best")), {})

    @property
    def tolerance(self) -> float | None:
        """Loss barrier that counts as none."""
        return number(self.result.get("tolerance"))


def profile(way: Mapping[str, Any], split: str = "test") -> Mapping[str, Any]:
    """What was measured along a way; empty where nothing was."""
    return part(part(way, "profiles"), split)


def called(way: Mapping[str, Any]) -> str:
    """Name of a way as it stands in tables and legends."""
    return NAMES.get(str(way.get("way")), str(way.get("way")))


def barrier(way: Mapping[str, Any], kind: str, split: str = "test") -> Interval:
    """Barrier of a way; without a value where outputs are not finite."""
    return interval(profile(way, split).get(f"{kind}_barrier"))


def told_loss(estimate: Interval) -> tuple[str, str]:
    """A barrier in loss, and its interval in brackets."""
    low, best, high = estimate
    if best is None:
        return "not finite", ""
    return f"{best:.3f}", "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def headline(found: Found) -> str:
    """Whether the two are connected, and by what."""
    best = found.best
    if found.result.get("same"):
        return "The two are the same network: their distance is 0"
    if not best:
        return "No way between the two could be tried"
    loss, score = barrier(best, "loss"), barrier(best, "score")
    if loss[1] is None:
        return f"No path of good networks found: outputs are not finite along the {called(best)}"
    rises = f"rises by {' '.join(told_loss(loss)).strip()}" if loss[1] >= 0.0005 else "does not rise"
    falls = f"{found.say.notation.score_word} falls by {found.say.cost(score)}" if score[1] else "the score holds"
    words = f"along the {called(best)} the test loss {rises} at most, and {falls}"
    words = words if loss[1] >= 0.0005 else words.replace(" at most,", "") + (" at most" if score[1] else "")
    tolerance = found.tolerance
    if tolerance is None:
        return words[0].upper() + words[1:]
    if (loss[1] if loss[2] is None else loss[2]) <= tolerance:
        return f"The two are connected: {words}"
    if (loss[1] if loss[0] is None else loss[0]) > tolerance:
        return f"No path of good networks found: {words}"
    return f"Whether the two are connected is not settled: {words}"


def fact(found: Found) -> tuple[str, str, str]:
    """How many ways, as one of the numbers at the top."""
    connecting = [way for way in found.ways if way.get("connects")]
    return "Ways", count(len(found.ways)), f"{len(connecting)} connect{'s' if len(connecting) == 1 else ''}"


def verdict(found: Found) -> list[tuple[str, list[str]]]:
    """Question, answer, certainty and price, each as a list of sentences."""
    network = name_of(found.document.get("network"), "the network")
    task = name_of(found.document.get("task"), "its task")
    question = f"Is there a path of good networks between two of {network} on {task}, and what does it cost to find?"
    answer = [f"{headline(found)}."]
    for one in records(found.document.get("verdicts"))[1:]:
        answer.append(f"{one.get('question')} {str(one.get('answer')).capitalize()}.")
    sure = [
        "A barrier is the highest point above the straight line between the ends, sought on a grid that is refined "
        "around the worst; what lies between its points is not known. Intervals are 95%, over inputs, at that point.",
        "The way was chosen on the validation split; numbers are of the test split.",
    ]
    if found.control:
        held = "is found connected" if found.control.get("connects") else "is not found connected"
        sure.append(f"A pair that surely is connected, the first network and itself trained on, {held}.")
    spent = [number(part(way, key).get("seconds")) for way in found.ways for key in ("cost", "measuring")]
    known = sum(value for value in spent if value is not None)
    done = [f"{quantity(len(found.ways), 'way')}, {seconds(known)}, measuring included."] if found.ways else []
    return [("Question", [question]), ("Answer", answer), ("Certainty", sure), *([("Computed", done)] if done else [])]


# ------------------------------------------------------------------------------------------------ tables


def barrier_table(found: Found) -> Table | None:
    """Barriers of every way in loss and score, on test and training data."""
    lines = [(way, _barriers(found, way)) for way in found.ways]
    blocks = [("", [line for _, line in lines])] if lines else []
    if found.control:
        line = _barriers(found, found.control)
        blocks.append(("Control: the first network and itself trained on, straight line", [line]))
    heads = ["way", "connects", "test", "at t", "train", "test", "at t", "train"]
    notation = found.say.notation
    score = f"{notation.score_word}{', points' if notation.percent else ''}"
    return table(heads, blocks, groups=[("", 2), ("loss barrier", 3), (f"barrier in {score}", 3)]) if blocks else None


def _barriers(found: Found, way: Mapping[str, Any]) -> list[Cell]:
    test = profile(way)
    line = [_name(found, way), cell("yes" if way.get("connects") else "no")]
    line += [cell(*told_loss(barrier(way, "loss"))), cell(_at(test.get("worst_loss")))]
    line.append(cell(*told_loss(barrier(way, "loss", "train"))))
    for split in ("test", "train"):
        estimate = barrier(way, "score", split)
        line.append(
            cell("not finite" if estimate[1] is None else found.say.loss(estimate[1]), found.say.ends(estimate))
        )
        line += [cell(_at(test.get("worst_score")))] if split == "test" else []
    return line


def cost_table(found: Found) -> Table | None:
    """How long each path is, and what it took to find it."""
    lines = [_costs(found, way) for way in found.ways]
    heads = ["way", "outputs", "energy", "weights", "ends apart"]
    heads += ["gradients", "labels", "passes", "mult.-adds", "time", "time to measure"]
    groups = [("", 1), ("length of the path", 4), ("finding it", 5), ("", 1)]
    return trimmed(table(heads, [("", lines)], groups=groups)) if lines else None


def _costs(found: Found, way: Mapping[str, Any]) -> list[Cell]:
    test, cost = profile(way), part(way, "cost")
    values = [number(test.get("length")), number(test.get("energy")), number(test.get("euclidean"))]
    line = [_name(found, way), *(cell(amount(value)) for value in (*values, number(way.get("apart"))))]
    line += [cell(count(number(cost.get(key)))) for key in ("backward_passes", "labels")]
    line.append(cell(amount(number(cost.get("forward_equivalents")))))
    line += [cell(count(number(cost.get("multiply_adds")))), cell(seconds(number(cost.get("seconds"))))]
    return [*line, cell(seconds(number(part(way, "measuring").get("seconds"))))]


def _name(found: Found, way: Mapping[str, Any]) -> Cell:
    chosen = bool(found.best) and way is found.best
    return cell(called(way), colour=COLOURS.get(str(way.get("way")), "#7a8694"), best=chosen)


def _at(time: object) -> str:
    value = number(time)
    return DASH if value is None else f"{value:.2f}"


def distance(found: Found) -> str:
    """What distances between outputs are, in words."""
    return next((str(profile(way).get("distance")) for way in found.ways), "")


def ends_table(found: Found) -> Table | None:
    """Loss and score of the two networks on every split."""
    if not found.ways:
        return None
    lines = []
    for end, name in ((0, "first"), (-1, "second")):
        line = [cell(name)]
        for kind in ("losses", "scores"):
            for split in ("train", "validation", "test"):
                values = profile(found.ways[0], split).get(kind)
                value = number(values[end]) if isinstance(values, list | tuple) and values else None
                said = found.say.score(value) if kind == "scores" else DASH if value is None else f"{value:.4f}"
                line.append(cell(said))
        lines.append(line)
    splits = ["train", "validation", "test"]
    groups = [("", 1), ("loss", 3), (found.say.notation.score_word, 3)]
    return table(["network", *splits, *splits], [("", lines)], groups=groups)


def pairs(found: Found) -> list[tuple[str, str]]:
    """Where the two lie: distances, normalisation, walks, ways that could not be tried."""
    alignment, layers = part(found.result, "alignment"), part(found.result, "normalisation")
    told = [
        ("distance in weights", amount(number(found.result.get("distance")))),
        ("norm of the first", amount(number(found.result.get("size")))),
    ]
    if number(alignment.get("distance_after")) is not None:
        told.append(("distance after alignment", amount(number(alignment.get("distance_after")))))
    names = [str(name) for name in layers.get("layers") or ()]
    if names:
        inputs = count(number(layers.get("inputs")))
        told.append(("statistics re-estimated", f"{listing(names[:8])} on {inputs} training inputs, between the ends"))
    for way in found.ways:
        notes = part(way, "notes")
        if number(notes.get("final gap")) is not None:
            gap, before = amount(number(notes["final gap"])), amount(number(notes.get("gap before")))
            told.append(("greedy walks", f"{notes.get('steps taken')} steps; {gap} of {before} are left between them"))
        if notes.get("kept") is False:
            told.append((called(way), "its energy did not fall: the chain is left as it began"))
    return [*told, *((called(way), f"left out: {way.get('problem')}") for way in found.refused)]


def symmetry_table(found: Found) -> Table | None:
    """Units that can change places."""
    known = records(part(part(found.result, "alignment"), "symmetries").get("found"))
    lines = [
        [cell(str(one.get("name"))), cell(str(one.get("kind"))), cell(count(number(one.get("size"))))]
        for one in known[:_SYMMETRIES]
    ]
    return table(["symmetry", "kind", "units"], [("", lines)]) if lines else None


def left_out(found: Found) -> list[tuple[str, str]]:
    """Layers whose units cannot change places, and why."""
    alignment = part(found.result, "alignment")
    reasons = part(part(alignment, "symmetries"), "left_out")
    told = [(str(layer), f"left out: {why}") for layer, why in list(reasons.items())[:_LEFT_OUT]]
    problem = alignment.get("problem")
    return [("alignment", str(problem)), *told] if problem else told


def alignment_sentence(found: Found) -> str:
    """What alignment did."""
    said = str(part(found.result, "alignment").get("verdict") or "")
    return f"{said[0].upper()}{said[1:]}. The order is found by weights alone." if said else ""
