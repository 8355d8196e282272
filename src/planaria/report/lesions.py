"""A lesion study in words and tables: groups of units silenced, against random ones, class by class.

All of it is read from `document["lesion_study"]`; the figures are made in `lesion_figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from planaria.report.reading import DASH, Document, Interval, Notation, count, interval, number, part, records, seconds
from planaria.report.tables import Cell, Table, cell, table, trimmed
from planaria.report.vulnerability import Say, decimals, listed, passes, quantity
from planaria.report.words import listing, name_of

DOUBLE, SINGLE, NONE = "double dissociation", "single dissociation", "no dissociation"
LEVEL = 0.05
# Beyond these the page would be unreadable; results.csv and dissociations.csv beside it have all.
_LESIONS, _PAIRS, _GUIDES = 40, 12, 40


class Cost(NamedTuple):
    """What a lesion costs on some examples: its loss, that of random lesions, p-value against them."""

    lost: Interval
    control: Interval
    p_value: float | None

    @staticmethod
    def of(value: Mapping[str, Any]) -> Cost:
        """Read an entry of the document."""
        return Cost(interval(value.get("lost")), interval(value.get("control")), number(value.get("p_value")))


class Lesion(NamedTuple):
    """One lesion: name, grouping, layers, number of units, class it is selective for, costs, sum of its units."""

    name: str
    grouping: str
    size: int
    label: str | None
    whole: Cost
    classes: Sequence[Cost]
    single_units: float | None


@dataclass(frozen=True)
class Found:
    """A result, read once.

    Attributes:
        document: The whole of it.
        result: Its lesion study; empty where there is none.
        classes: Names of the classes.
        lesions: Those whose loss is known.
        say: How its numbers are written.
    """

    document: Document
    result: Mapping[str, Any]
    classes: Sequence[str]
    lesions: list[Lesion]
    say: Say

    @staticmethod
    def of(document: Document) -> Found:
        """Read a document."""
        result, notation = part(document, "lesion_study"), Notation.of(document)
        classes = [str(name) for name in listed(result.get("classes"))]
        lesions = [
            Lesion(
                str(one.get("name")),
                str(one.get("grouping")),
                int(number(one.get("size")) or 0),
                None if one.get("label") is None else str(one.get("label")),
                Cost.of(one),
                [Cost.of(loss) for loss in records(one.get("classes"))],
                number(one.get("single_units")),
            )
            for one in records(result.get("lesions"))
        ]
        lesions = [one for one in lesions if one.whole.lost[1] is not None]
        most = max((abs(one.whole.lost[1] or 0.0) for one in lesions), default=1.0)
        digits = 1 if notation.percent else decimals(most)
        return Found(document, result, classes, lesions, Say(notation, digits, 3))

    @property
    def selective(self) -> list[Lesion]:
        """Lesions of units selective for a class."""
        return [one for one in self.lesions if one.label is not None]

    @property
    def regions(self) -> list[Lesion]:
        """The others."""
        return [one for one in self.lesions if one.label is None]

    @property
    def pairs(self) -> list[Mapping[str, Any]]:
        """Pairs of classes that were tested for dissociation."""
        return records(self.result.get("dissociations"))

    def verdicts(self, verdict: str) -> list[Mapping[str, Any]]:
        """Pairs with a verdict."""
        return [pair for pair in self.pairs if pair.get("verdict") == verdict]


def headline(found: Found) -> str:
    """Intact score, and the most that was found: dissociations, or else the worst lesion."""
    say, intact = found.say, number(found.result.get("intact"))
    start = "" if intact is None else f"Intact {say.notation.score(intact)}: "
    if found.pairs:
        double, pairs = len(found.verdicts(DOUBLE)), quantity(len(found.pairs), "pair")
        text = f"lesions of selective units doubly dissociate {double} of {pairs} of classes"
        return start + text if double else start + f"no double dissociation among {pairs} of classes"
    worst = max(found.lesions, key=lambda one: one.whole.lost[1] or 0.0, default=None)
    if worst is None:
        return "No lesion has been measured"
    return f"{start}the lesion that costs most, {worst.name}, costs {say.cost(worst.whole.lost)}"


def fact(found: Found) -> tuple[str, str, str]:
    """How many lesions, as one of the numbers at the top."""
    draws = number(found.result.get("draws"))
    return "Lesions", count(len(found.lesions)), "" if draws is None else f"{count(draws)} random ones per size"


def verdict(found: Found) -> list[tuple[str, list[str]]]:
    """Question, answer, certainty and price, each as a list of sentences."""
    network = name_of(found.document.get("network"), "the network")
    task = name_of(found.document.get("task"), "its task")
    question = f"What does {network} lose on {task} when groups of its units are silenced, and which class is hurt?"
    say, answer = found.say, []
    if found.pairs:
        double, single = len(found.verdicts(DOUBLE)), len(found.verdicts(SINGLE))
        rest = len(found.pairs) - double - single
        answer.append(
            f"Of {quantity(len(found.pairs), 'pair')} of classes {double} dissociate doubly, {single} singly; {rest} "
            f"{'is' if rest == 1 else 'are'} not shown to dissociate."
        )
    worst = sorted(found.regions, key=lambda one: -(one.whole.lost[1] or 0.0))[:2]
    if worst:
        told = [f"{one.name} ({quantity(one.size, 'unit')}), {say.cost(one.whole.lost)}" for one in worst]
        answer.append(f"The regions that cost most: {listing(told)}.")
    sure = [
        "Losses are exact on these inputs; intervals are 95%, over inputs like these. Units were chosen on the "
        "training split and lesions judged on the test split.",
    ]
    if number(found.result.get("draws")) is not None:
        sure.append("Random lesions have as many units in the same layers; those of a whole layer, in all layers.")
    sections = [("Question", [question]), ("Answer", answer or [f"{headline(found)}."]), ("Certainty", sure)]
    return [*sections, *([("Computed", [computed(found)])] if found.result else [])]


def computed(found: Found) -> str:
    """How many lesions, at what price, and what the audit said."""
    result = found.result
    audit = part(result, "audit")
    told = quantity(len(found.lesions), "lesion")
    examples, forwards, spent = (number(result.get(key)) for key in ("examples", "forwards", "seconds"))
    told += "" if examples is None else f" on {quantity(examples, 'input')}"
    if forwards is not None:
        told += f", with random lesions and single units for {passes(forwards)}"
    told += f" ({seconds(spent)})" if spent is not None else ""
    checked = [
        f"{key} {count(number(audit[key]))}" for key in ("mismatches", "ties") if number(audit.get(key)) is not None
    ]
    if checked and number(audit.get("lesions")):
        told += f"; audited {count(number(audit['lesions']))}, {', '.join(checked)}"
    return f"{told}."


# ------------------------------------------------------------------------------------------------ tables


def lesion_table(found: Found) -> Table | None:
    """Regions that cost most: units, loss, random lesions, p, sum of single units, interaction."""
    say, lines = found.say, []
    for one in sorted(found.regions, key=lambda one: -(one.whole.lost[1] or 0.0))[:_LESIONS]:
        alone, lost = one.single_units, one.whole.lost[1]
        lines.append(
            [
                cell(one.name),
                cell(count(one.size)),
                cell(say.loss(lost), say.ends(one.whole.lost)),
                cell(say.loss(one.whole.control[1]), say.ends(one.whole.control)),
                cell(_p(one.whole.p_value)),
                cell(say.loss(alone)),
                cell(DASH if alone is None or lost is None else say.loss(lost - alone)),
            ]
        )
    heads = ["region", "units", "whole", "random", "p", "one at a time", "difference"]
    groups = [("", 2), (say.axis, 2), ("", 1), ("its units", 2)]
    return trimmed(table(heads, [("", lines)], groups=groups)) if lines else None


def selective_table(found: Found) -> Table | None:
    """Lesions of selective units: loss of the own class, of the others, random lesions."""
    say, lines = found.say, []
    for one in found.selective[:_LESIONS]:
        if one.label not in found.classes or len(one.classes) != len(found.classes):
            continue
        own = one.classes[found.classes.index(one.label)]
        others = [cost.lost[1] or 0.0 for cost in one.classes if cost is not own]
        lines.append(
            [
                cell(str(one.label)),
                cell(count(one.size)),
                cell(say.loss(own.lost[1]), say.ends(own.lost)),
                cell(say.loss(sum(others) / len(others)) if others else DASH),
                cell(say.loss(own.control[1]), say.ends(own.control)),
                cell(_p(own.p_value)),
                cell(say.loss(one.whole.lost[1]), say.ends(one.whole.lost)),
            ]
        )
    heads = ["selective for", "units", "own class", "other classes", "own, random units", "p", "all inputs"]
    return trimmed(table(heads, [("", lines)], groups=[("", 2), (say.axis, 5)])) if lines else None


def pair_table(found: Found) -> Table | None:
    """Pairs of classes: verdict, p, and the four contrasts with their intervals."""
    say, blocks = found.say, []
    for words in (NONE, SINGLE, DOUBLE):
        pairs = found.verdicts(words)
        lines = [
            [
                cell(" and ".join(str(name) for name in listed(pair.get("classes")))),
                *_contrasts(pair, say),
                cell(_p(number(pair.get("p_value")))),
                cell(_p(max((number(p) or 0.0 for p in listed(pair.get("p_control"))), default=None))),
                cell(DASH if number(pair.get("shared")) is None else f"{number(pair.get('shared')) or 0.0:.0%}"),
            ]
            for pair in pairs[:_PAIRS]
        ]
        if lines:
            first = f", the first {_PAIRS}" if len(pairs) > _PAIRS else ""
            blocks.append((f"{words}: {len(pairs)}{first}", lines))
    heads = ["classes", "1st", "2nd", "1st", "2nd", "contrasts", "controls", "shared units"]
    groups = [
        ("", 1),
        ("own lesion: own less other class", 2),
        ("own class: own less other lesion", 2),
        ("p", 2),
        ("", 1),
    ]
    return table(heads, blocks, groups=groups) if blocks else None


def _contrasts(pair: Mapping[str, Any], say: Say) -> list[Cell]:
    ends = [interval(one) for key in ("within", "between") for one in [*records(pair.get(key)), {}, {}][:2]]
    return [cell(say.loss(one[1]), say.ends(one)) for one in ends]


def guide_table(found: Found) -> Table | None:
    """Per layer: whether selectivity goes with what a unit costs."""
    lines = []
    for guide in records(found.result.get("guides"))[:_GUIDES]:
        total, own, apart = (interval(guide.get(key)) for key in ("total", "own", "apart"))
        lines.append(
            [
                cell(str(guide.get("layer"))),
                cell(count(number(guide.get("units")))),
                *(cell(DASH if one[1] is None else f"{one[1]:.2f}", _ends(one)) for one in (total, own)),
                cell(found.say.loss(apart[1]), found.say.ends(apart)),
            ]
        )
    heads = ["layer", "units", "with the loss of all", "with that of its class", "its class less others"]
    groups = [("", 2), ("rank correlation of selectivity", 2), (found.say.axis, 1)]
    return table(heads, [("", lines)], groups=groups) if lines else None


def _ends(estimate: Interval) -> str:
    low, _, high = estimate
    return "" if low is None or high is None else f"[{low:.2f}, {high:.2f}]"


def _p(value: float | None) -> str:
    return DASH if value is None else "< 0.0001" if value < 0.0001 else f"{value:.2g}"
