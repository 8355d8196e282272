"""The sentences of a report: headline, verdict, and titles that say what is seen.

No sentence ends with a full stop unless it is part of a longer text, so that each can be a title.
"""

from __future__ import annotations

from collections.abc import Sequence

from planaria.report.reading import (
    CONTROL,
    Document,
    Notation,
    best_row,
    count,
    doses,
    evenly,
    interval,
    last_hit,
    median_to_rescue,
    middle,
    number,
    part,
    records,
    rescues,
    response_of,
    rows_at,
    same_dose,
    treatments,
)


def listing(words: Sequence[str]) -> str:
    """Words joined as in a sentence.

    Example:
        >>> listing(["30%", "50%", "70%"])
        '30%, 50% and 70%'
    """
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def updates(value: float | None) -> str:
    """A number of updates with its noun.

    Example:
        >>> updates(1.0), updates(1200.0)
        ('1 update', '1,200 updates')
    """
    return f"{count(value)} update{'' if value == 1 else 's'}"


def seeds(some: float, all_of_them: float) -> str:
    """How many of the seeds.

    Example:
        >>> seeds(1, 2)
        '1 of 2 seeds'
    """
    return f"{count(some)} of {count(all_of_them)} seed{'' if all_of_them == 1 else 's'}"


def budget(document: Document) -> str:
    """The budget of a trial: as much work as so many updates of plain retraining."""
    most = number((document.get("settings") or {}).get("updates"))
    return "the budget" if most is None else f"the compute of {updates(most)}"


def margin(document: Document) -> str:
    """How far below the undamaged network a rescued one may be, and for how long it must hold."""
    say, settings = Notation.of(document), document.get("settings") or {}
    tolerance = number(part(document, "survival").get("tolerance", settings.get("tolerance")))
    times = number(settings.get("consecutive"))
    if tolerance is None:
        return "within the tolerance of the undamaged network's"
    points = f"{100 * tolerance:.3g} point{'' if tolerance == 0.01 else 's'}" if say.percent else f"{tolerance:.3g}"
    row = f" for {count(times)} evaluations in a row" if times and times > 1 else ""
    return f"within {points} of the undamaged network's{row}"


def name_of(part: object, otherwise: str) -> str:
    """The name in a record, or another word."""
    return str(part.get("name") or otherwise) if isinstance(part, dict) else otherwise


def headline(document: Document) -> str:
    """The result in one line, stated as what was seen."""
    say = Notation.of(document)
    best = {dose: row for dose in doses(document) if (row := best_row(document, dose)) is not None}
    if not best:
        return curve_sentence(document) or "No trial has finished"
    easy = [dose for dose, row in best.items() if rescues(row) and row.get("repair") == CONTROL]
    won = [dose for dose, row in best.items() if rescues(row) and dose not in easy]
    lost = [dose for dose, row in best.items() if not rescues(row)]

    def at(chosen: list[float], partly: str) -> str:
        if len(chosen) > 4:
            return f"{len(chosen)} doses"
        told = []
        for dose in chosen:
            rows = [row for row in records(document.get("summary")) if same_dose(row.get("dose"), dose)]
            row = best[dose] if rescues(best[dose]) else max(rows, key=lambda r: number(r.get("rescued")) or 0)
            done, trials = number(row.get("rescued")) or 0, number(row.get("trials")) or 0
            told.append(say.dose(dose) + (f" ({partly.format(seeds(done, trials))})" if 0 < done < trials else ""))
        return f"dose {listing(told)}"

    parts = []
    if won:
        whole = len(won) == len(best) > 1 and all(best[dose].get("rescued") == best[dose].get("trials") for dose in won)
        where = f"every tested dose up to {say.dose(won[-1])}" if whole else at(won, "{}")
        by: dict[str, list[str]] = {}
        for dose in won:
            by.setdefault(str(best[dose].get("repair")), []).append(say.dose(dose))
        exact = len(by) > 1 and len(won) < 5
        names = [name + (f" ({listing(which)})" if exact else "") for name, which in by.items()]
        rivals = len(treatments(document)) > 1
        parts.append(f"rescued at {where}, {'cheapest ' if rivals else ''}by {listing(names)}")
    if lost:
        nothing = len(lost) == len(best)
        where = "any tested dose" if nothing and len(lost) > 1 else at(lost, "only {}")
        parts.append(f"not rescued at {where}" + (f" within {budget(document)}" if nothing else ""))
    if easy:
        parts.append(f"no repair is needed at {at(easy, '{}')}")
    text = "; ".join(parts)
    return text[0].upper() + text[1:]


def curve_sentence(document: Document) -> str:
    """What the damage-response curve shows; empty without a curve."""
    response, say = response_of(document), Notation.of(document)
    if response is None:
        return ""
    half = interval(response.get("half_dose"))
    if half[1] is not None:
        return f"Half of the {say.score_word} above chance is lost at a dose of {say.dose_estimate(half)}"
    axis, mean = [number(dose) for dose in response["doses"]], [number(score) for score in response["mean"]]
    intact, chance, last = number(response.get("intact")), number(response.get("chance")), mean[-1]
    if intact is not None and chance is not None and last is not None and last > (intact + chance) / 2:
        return f"More than half of the {say.score_word} above chance survives a dose of {say.dose(axis[-1])}"
    first = mean[0] if intact is None else intact
    fall = f"from {say.score(first)} to {say.score(last)}"
    return f"Damage takes the {say.score_word} {fall} at dose {say.dose(axis[-1])}"


def critical_words(document: Document) -> str:
    """The fitted change point of the curve and whether it is one; empty where nothing was fitted."""
    response, say = response_of(document) or {}, Notation.of(document)
    critical, found = interval(response.get("critical_dose")), str(response.get("critical_verdict") or "")
    place = f"critical dose {say.dose_estimate(critical)}" if critical[1] is not None else "critical dose"
    return f"{place}: {found.rstrip('.')}" if found else place if critical[1] is not None else ""


def rescue_title(document: Document, dose: float) -> str:
    """Which repairs rescue at a dose and after how many updates, the best one first."""
    say = Notation.of(document)
    groups = {name: [row for row in rows_at(document, dose) if row["repair"] == name] for name in treatments(document)}
    after = {name: median_to_rescue(rows, "updates", since_last_hit=False) for name, rows in groups.items()}
    best = best_row(document, dose) or {}
    first = best.get("repair")
    if first == CONTROL and rescues(best):
        return f"Dose {say.dose(dose)}: no repair is needed, the damaged network is still within the tolerance"
    reached = {name: value for name, value in after.items() if value is not None}
    order = sorted(reached, key=lambda name: (name != first, reached[name]))
    if not order:
        whom = "the network" if all(len(rows) == 1 for rows in groups.values()) else "half of the seeds"
        return f"Dose {say.dose(dose)}: no repair rescues {whom} within {budget(document)}"
    done = {name: sum(bool(row.get("rescued")) for row in groups[name]) for name in order}
    called = {
        name: name + ("" if done[name] == len(groups[name]) else f" ({seeds(done[name], len(groups[name]))})")
        for name in order
    }
    at_once = [name for name in order if not reached[name]]
    later = [name for name in order if reached[name]]
    parts = []
    if at_once:
        verb = "rescues" if len(at_once) == 1 else "rescue"
        parts.append(f"{listing([called[name] for name in at_once])} {verb} before the first update")
    for name in later[: 3 - len(parts)]:
        time = count(reached[name]) if parts else updates(reached[name])
        parts.append(f"{called[name]} {'' if parts else 'rescues '}after {time}")
    return f"Dose {say.dose(dose)}: " + ", ".join(parts)


def countings(document: Document) -> str:
    """How the verdict on an iterative schedule depends on what is counted; empty where there is none."""
    say = Notation.of(document)
    for dose in reversed(doses(document)):
        groups = {
            name: [row for row in rows_at(document, dose) if row["repair"] == name] for name in treatments(document)
        }
        total = {name: median_to_rescue(rows, "updates", since_last_hit=False) for name, rows in groups.items()}
        hit = {name: middle(last_hit(row, "updates") for row in rows) or 0.0 for name, rows in groups.items()}
        late = [name for name in groups if hit[name] > 0 and total[name] is not None]
        # Its controls are hit late as well.
        iterative = min(late, key=lambda name: name != "iterative", default=None)
        if iterative is None:
            continue
        since = median_to_rescue(groups[iterative], "updates", since_last_hit=True)
        text = (
            f"At dose {say.dose(dose)}, {iterative} is rescued {updates(since)} after the last hit, "
            f"but {count(total[iterative])} in total"
        )
        batch = {name: value for name, value in total.items() if value and hit[name] == 0}
        rival = "retrain" if "retrain" in batch else min(batch, key=lambda name: batch[name], default=None)
        return f"{text}; {rival} needs {count(batch[rival])}" if rival else text
    return ""


def ledger_title(document: Document) -> str:
    """What the costs of the trials show, in both countings."""
    trials = [row for dose in doses(document) for row in rows_at(document, dose) if row["repair"] != CONTROL]
    done = sum(row.get("rescue_cost") is not None for row in trials)
    return countings(document) or f"{done} of {len(trials)} trials are rescued within {budget(document)}"


def verdict(document: Document) -> list[tuple[str, list[str]]]:
    """The whole result in words: question, curve, repair, verdict, each as a list of sentences."""
    say, response, axis = Notation.of(document), response_of(document), doses(document)
    network, task = name_of(document.get("network"), "the network"), name_of(document.get("task"), "its task")
    damage = str((document.get("settings") or {}).get("damage") or "damage")
    question = f"How does {network} fail on {task} under {damage}"
    question += ", and which repair brings it back at the least total cost?" if axis else "?"
    curve, repair, told = [], [], []
    if response is not None:
        curve.append(f"{curve_sentence(document)}.")
        loss = interval(response.get("dose_of_10_point_loss"))
        if loss[1] is not None:
            curve.append(
                f"The first {'10 points are' if say.percent else '0.10 is'} lost at {say.dose_estimate(loss)}."
            )
        if critical_words(document):
            curve.append(f"{critical_words(document).capitalize()}.")
    for dose in evenly(axis, 6):
        best = best_row(document, dose)
        if best is None:
            continue
        damaged, after = interval(best.get("damaged")), interval(best.get("after"))
        start = f"Dose {say.dose(dose)}: {say.score(damaged[1])} damaged"
        if best.get("repair") == CONTROL:
            repair.append(f"{start}; no repair {'is needed' if rescues(best) else 'ends higher'}.")
            continue
        end = f"{say.score(after[1])} {say.spread(after)}".rstrip()
        rescued = f"{count(number(best.get('rescued')))} of {count(number(best.get('trials')))} rescued"
        repair.append(f"{start}, {end} after {best.get('repair')}; {rescued}.")
    if axis:
        told = [f"{sentence}." for sentence in (headline(document), countings(document)) if sentence]
        trials = [row for dose in axis for row in rows_at(document, dose) if row["repair"] != CONTROL]
        lost, within = sum(row.get("rescue_cost") is None for row in trials), budget(document)
        if lost:
            told.append(f"{lost} of {len(trials)} trials were not rescued within {within}: they count as censored.")
        elif trials:
            told.append(f"All {len(trials)} trials were rescued within {within}.")
    parts = [("Question", [question]), ("Curve", curve), ("Repair", repair), ("Verdict", told)]
    return [(label, lines) for label, lines in parts if lines]
