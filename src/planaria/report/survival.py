"""A network under a stream of damage: how long each repair keeps it in the good set, in words and tables.

All of it is read from `document["survival"]`; the figures are drawn in `survival_figures.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from planaria.report.drawing import style
from planaria.report.reading import (
    CONTROL,
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
    share,
    written,
)
from planaria.report.tables import BILLS, Table, bills, cell, table, trimmed
from planaria.report.words import listing, margin, name_of

Entry = Mapping[str, Any]


def entries(document: Document) -> list[Entry]:
    """One entry per repair, in the document's order."""
    return records(part(document, "survival").get("repairs"))


def name_in(entry: Entry) -> str:
    """Name of an entry's repair."""
    return str(entry.get("repair"))


def in_turnover(document: Document) -> bool:
    """Whether dead units return."""
    return part(document, "survival").get("mode") == "turnover"


def events_of(document: Document) -> float | None:
    """Length of the walks, in events."""
    return number(part(document, "survival").get("events"))


# ------------------------------------------------------------------------------------------------ the words


def horizon_of(entry: Entry) -> float | None:
    """Event by which half of the walks have left the good set; infinite if more than half never did."""
    found = interval(entry.get("median_horizon"))[1]
    if found is not None:
        return found
    last = [interval(point)[1] for point in records(entry.get("survival"))][-1:]
    return math.inf if last and last[0] is not None and last[0] > 0.5 else None


def horizon_words(document: Document, entry: Entry) -> tuple[str, str]:
    """The median horizon and its interval; beyond the last event where more than half of the walks reach it."""
    value, ends = written(entry.get("median_horizon"), count)
    if value == DASH and horizon_of(entry) is not None:
        return f"beyond {count(events_of(document))}", ""
    return value, ends


def headline(document: Document) -> str:
    """Which repair keeps the network in the good set for longest, or for most of the time."""
    found, say = entries(document), Notation.of(document)
    dose, events = number(part(document, "survival").get("dose")), count(events_of(document))
    hits = "of damage" if dose is None else f"of {say.dose(dose)} damage"
    if in_turnover(document):
        inside = {name_in(entry): interval(entry.get("inside"))[1] for entry in found}
        known = {name: value for name, value in inside.items() if value is not None}
        names = [name for name in known if known[name] == max(known.values())]
        if not names:
            return "No walk has finished"
        if not known[names[0]]:
            return f"No repair keeps the network in its good set under turnover with events {hits}"
        keep = "keeps" if len(names) == 1 else "keep"
        best = next(entry for entry in found if name_in(entry) == names[0])
        value = " ".join(written(best.get("inside"), share)).rstrip()
        text = f"{several(names)} {keep} the network in its good set {value} of the time under turnover"
        text += f"; without repair {share(known[CONTROL])}" if CONTROL in known and CONTROL not in names else ""
        return _begun(text)
    horizons = {name_in(entry): horizon for entry in found if (horizon := horizon_of(entry)) is not None}
    names = [name for name in horizons if horizons[name] == max(horizons.values())]
    if not names:
        return "No walk has finished"
    if math.isinf(horizons[names[0]]):
        text = f"More than half of the walks survive all {events} events {hits} with {several(names)}"
    else:
        best = next(entry for entry in found if name_in(entry) == names[0])
        value = " ".join(horizon_words(document, best)).rstrip()
        text = (
            f"{several(names)} {'lasts' if len(names) == 1 else 'last'} longest: half of the walks are lost by event "
        )
        text += f"{value} {hits}"
    if CONTROL in horizons and CONTROL not in names:
        text += f"; without repair by event {count(horizons[CONTROL])}"
    return _begun(text)


def _begun(text: str) -> str:
    """A sentence with a capital, unless it begins with the name of a repair, which is spelt as it is."""
    return text[0].upper() + text[1:] if text.startswith(called(CONTROL)) else text


def several(names: Sequence[str]) -> str:
    """Repairs as in a sentence, three of them by name.

    Example:
        >>> several(["none", "refit"]), several(["a", "b", "c", "d", "e"])
        ('no repair and refit', 'a, b, c and 2 more')
    """
    words = [called(name) for name in names]
    return listing(words if len(words) < 5 else [*words[:3], f"{len(words) - 3} more"])


def grouped(findings: Sequence[tuple[str, str]]) -> str:
    """What was found per repair, repairs with the same finding together.

    Example:
        >>> grouped([("a", "12"), ("b", "9"), ("c", "12")])
        'a and c 12; b 9'
    """
    by: dict[str, list[str]] = {}
    for name, finding in findings:
        by.setdefault(finding, []).append(name)
    told = [f"{several(names)} {finding}" for finding, names in by.items()]
    return "; ".join(told if len(told) < 6 else [*told[:5], "…"])


def called(name: str) -> str:
    """A repair as it stands in a sentence."""
    return "no repair" if name == CONTROL else name


def verdict(document: Document) -> list[tuple[str, list[str]]]:
    """Question, walk, repair and verdict, each as a list of sentences."""
    say, stored = Notation.of(document), part(document, "survival")
    network, task = name_of(document.get("network"), "the network"), name_of(document.get("task"), "its task")
    events, dose, delay = (number(stored.get(key)) for key in ("events", "dose", "delay"))
    walk = f"{count(events)} events" + (f" of {say.dose(dose)} ({say.dose_unit}) each" if dose is not None else "")
    if in_turnover(document):
        after = "" if delay is None else f" after {count(delay)} event{'' if delay == 1 else 's'}"
        walk += f"; turnover: a dead unit returns as an embryonic one{after}."
    else:
        walk += "; attrition: dead units stay dead."
    told = []
    for entry in entries(document)[:8]:
        inside = " ".join(written(entry.get("inside"), share)).rstrip()
        words = [f"inside {inside} of the time" if inside != DASH else ""]
        horizon, ends = horizon_words(document, entry)
        words += [f"median horizon {horizon} {ends}".rstrip() if horizon != DASH else ""]
        back = " ".join(written(entry.get("return_time"), amount)).rstrip()
        words += [f"back inside after {back} events" if back != DASH else ""]
        if any(words):
            told.append(f"{name_in(entry)}: {', '.join(word for word in words if word)}.")
    final = [f"{sentence}." for sentence in (headline(document), turnover_sentence(document)) if sentence]
    question = f"How long does {network} on {task} stay in its good set when damage never ends?"
    walk_lines = [walk, f"Good set: validation score {margin(document)}, looked at after the repair of each event."]
    parts = [("Question", [question]), ("Walk", walk_lines), ("Repair", told), ("Verdict", final)]
    return [(label, lines) for label, lines in parts if lines]


def turnover_sentence(document: Document) -> str:
    """Whether turnover builds resilience; empty where no rates were compared."""
    found, say = rates_of(document), Notation.of(document)
    control = interval((found.get(0.0) or {}).get("area"))
    tried = {rate: interval(entry.get("area")) for rate, entry in found.items() if rate > 0}
    tried = {rate: area for rate, area in tried.items() if area[1] is not None}
    if control[1] is None or not tried:
        return ""
    gains = {rate: interval(found[rate].get("gain")) for rate in tried}
    # Paired over seeds where the document has it; else by the intervals.
    paired = any(gain[1] is not None for gain in gains.values())
    leads = {rate: gains[rate][0] if paired else _apart(area[0], control[2]) for rate, area in tried.items()}
    lags = {rate: gains[rate][2] if paired else _apart(area[2], control[0]) for rate, area in tried.items()}
    up = [rate for rate, lead in leads.items() if lead is not None and lead > 0]
    down = [rate for rate, lag in lags.items() if lag is not None and lag < 0]
    best = max(up or tried, key=lambda rate: tried[rate][1] or 0.0)
    area, gain = tried[best], gains[best]
    pair = f"area {say.score(area[1])} {say.spread(area)}".rstrip()
    pair += f" at a rate of {rate_words(best)}, {say.score(control[1])} {say.spread(control)}".rstrip() + " without"
    if paired and gain[1] is not None:
        pair += f"; paired, {say.gain(gain[1])} {_gain_ends(say, gain)}".rstrip()
    if up:
        return f"Turnover makes the network harder to hurt: {pair}"
    if len(down) == len(tried):
        return f"Turnover makes the network easier to hurt: {pair}"
    return f"Turnover is not shown to make the network harder to hurt: {pair}"


def _gain_ends(say: Notation, gain: Interval) -> str:
    low, _, high = gain
    return "" if low is None or high is None else f"[{say.gain(low)}, {say.gain(high)}]"


def _apart(low: float | None, high: float | None) -> float | None:
    return None if low is None or high is None else low - high


def rates_of(document: Document) -> dict[float, Entry]:
    """What was found at each turnover rate, ascending; rate 0 is the control."""
    found = records(part(part(document, "survival"), "turnover").get("rates"))
    rates = {rate: entry for entry in found if (rate := number(entry.get("rate"))) is not None}
    return dict(sorted(rates.items()))


def rate_words(value: float) -> str:
    """A turnover rate in percent of the units."""
    return f"{100 * value:.3g}%"


# ----------------------------------------------------------------------------------------------- the tables


def survival_table(document: Document) -> Table | None:
    """Every repair's share inside, horizon, return time, score at the end and ledger."""
    say, lines = Notation.of(document), []
    for entry in entries(document):
        lines.append(
            [
                cell(name_in(entry), colour=style(name_in(entry)).colour),
                cell(*written(entry.get("inside"), share)),
                cell(*written(entry.get("settled_retention"), share)),
                cell(*horizon_words(document, entry)),
                cell(*written(entry.get("return_time"), amount)),
                cell(count(number(entry.get("returns")))),
                cell(*written(entry.get("after"), say.score)),
                *bills(entry.get("cost")),
            ]
        )
    heads = ["repair", "inside", "retention", "half left", "back after", "returns", "at the end", *BILLS]
    groups = [("", 1), ("good set", 2), ("events", 2), ("", 1), ("test split", 1), ("mean cost of a walk", len(BILLS))]
    return trimmed(table(heads, [("", lines)], groups=groups)) if lines else None


def rate_table(document: Document) -> Table | None:
    """Area, gain, undamaged score and ledger at every turnover rate: that the budgets are equal can be seen."""
    say, lines = Notation.of(document), []
    for rate, entry in rates_of(document).items():
        lines.append(
            [
                cell(rate_words(rate) + (" (control)" if rate == 0 else "")),
                cell(*written(entry.get("area"), say.score)),
                cell(*written(entry.get("gain"), say.gain)),
                cell(*written(entry.get("score"), say.score)),
                *bills(entry.get("cost")),
            ]
        )
    groups = [("", 1), (f"{say.score_word}, test split", 3), ("mean cost", len(BILLS))]
    heads = ["turnover rate", "area", "gain, points" if say.percent else "gain", "undamaged", *BILLS]
    return trimmed(table(heads, [("", lines)], groups=groups)) if lines else None
