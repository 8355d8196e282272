"""Verdicts: what the numbers of a study say about the questions it was made for, in words.

Every comparison is paired: two repairs of the same lesion, averaged over the doses, one pair per seed. A difference is
called one only where its 95 % interval leaves out zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planaria.measure.scaling import Scaling
from planaria.measure.statistics import Estimate, Paired, finite, kaplan_meier
from planaria.study.capacity import SCRATCH, limited, mean_of, rest_of
from planaria.study.contrast import COUNTINGS, Rows, better, contrast, said_p, said_points, side
from planaria.study.respond import Response

BATCH, ITERATIVE, NOTHING = "retrain", "iterative", "none"
CONTROLS = ("extra", "dropout", "faults", SCRATCH)
"""Repairs that do for a network what iterative repair does, less the damage in bites."""


@dataclass(frozen=True)
class Verdict:
    """A question, what the numbers say to it, and the numbers.

    Args:
        question: The question.
        answer: A few words.
        words: One sentence or two.
        numbers: Name -> estimate, number, text or None.
    """

    question: str
    answer: str
    words: str
    numbers: Mapping[str, Estimate | float | str | None]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        numbers = {
            name: value.to_dict() if isinstance(value, Estimate) else value for name, value in self.numbers.items()
        }
        plain: dict[str, Any] = finite(
            {"question": self.question, "answer": self.answer, "words": self.words, "numbers": numbers}
        )
        return plain


def judge(
    rows: Rows = (),
    *,
    tolerance: float = 0.01,
    response: Response | None = None,
    scaling: Scaling | None = None,
    percent: bool = False,
) -> tuple[Verdict, ...]:
    """Every verdict that the results allow.

    Args:
        rows: Of a rescue, as made by `Attempt.row`; the repairs are known by their names on the command line.
        tolerance: That of the criterion of the rescue.
        response: Response curve.
        scaling: Finite-size test.
        percent: Whether scores are shares, to be said in points.

    Returns:
        The verdicts; questions whose repairs were not run are left out.

    Example:
        >>> costs = {key: {"backward_passes": 0, "multiply_adds": 7} for key in ("cost", "rescue_cost")}
        >>> row = {"repair": "refit", "dose": 0.5, "seed": 0, "rescued": True, "curve": [{"dead": 0.5}], **costs}
        >>> [verdict.answer for verdict in judge([row | {"validation_after": 0.9}])]
        ['yes at 0.5', 'refit at 0.5']

    Not guaranteed: that what holds for this network holds for others; seeds are lesions, not networks.
    """
    found = [
        better_in_bites(rows, percent=percent),
        explained_by_controls(rows, percent=percent),
        rescuable(rows, tolerance, percent=percent),
        cheapest(rows),
    ]
    if response is not None:
        found += [transition(response, scaling), redundancy(response)]
    return tuple(verdict for verdict in found if verdict is not None)


def better_in_bites(rows: Rows, *, percent: bool = False) -> Verdict | None:
    """Whether iterative repair is better than batch repair, in both countings and in score; None if not both ran."""
    found = contrast(rows, ITERATIVE, BATCH)
    if found is None:
        return None
    answers, words = [], []
    numbers: dict[str, Estimate | float | str | None] = {
        "seeds": found.seeds,
        "score difference": found.score.difference,
        "score difference, d_z": found.score.effect,
        "score difference, p": found.score.p_value,
    }
    numbers |= {f"score difference at dose {dose:g}": one for dose, one in found.by_dose.items()}
    for counting, key in COUNTINGS.items():
        paired = found.updates[counting]
        if paired is None:
            continue
        answers.append(side(paired, f"faster {counting}", f"slower {counting}", f"no difference shown {counting}"))
        words.append(
            f"Counted {counting}, it takes {_more(paired.difference)} updates to rescue, of the "
            f"{found.horizons[counting]:.0f} that both have ({_strength(paired)})."
        )
        numbers[f"updates {counting}, difference"] = paired.difference
        numbers[f"updates {counting}, d_z"] = paired.effect
        numbers[f"updates {counting}, p"] = paired.p_value
        for name in (ITERATIVE, BATCH):
            numbers[f"median updates {counting}, {name}"] = _median([r for r in rows if r["repair"] == name], key)
    if not answers:
        rescued = any(row["rescued"] for row in rows if row["repair"] in (ITERATIVE, BATCH))
        answers.append("no difference shown in time" if rescued else "neither rescued")
    answers.append(side(found.score, "lower score", "higher score", "no difference shown in score"))
    ends = _apart(found.score.difference, percent)
    words.insert(
        0,
        f"At equal total work, iterative repair ends {ends} batch retraining ({_strength(found.score)}, "
        f"{found.seeds} {'seed' if found.seeds == 1 else 'seeds'}).",
    )
    if found.failed:
        words.append(f"Left out, for want of a finite score: {found.failed} of {found.lesions} pairs.")
    answer = ", ".join(answers)
    return Verdict("Is iterative repair better than batch?", answer, " ".join(words), numbers)


def explained_by_controls(rows: Rows, *, percent: bool = False) -> Verdict | None:
    """Whether controls do as well as iterative repair does; None if there are none, or nothing to compare with.

    A control explains an advantage of iterative over batch repair if it has the advantage too and iterative repair is
    not shown to be better than it.
    """
    names = [name for name in CONTROLS if any(row["repair"] == name for row in rows)]
    main = contrast(rows, ITERATIVE, BATCH)
    if main is None or not names:
        return None
    counting = next(iter(COUNTINGS))  # in total, a control that trains beforehand cannot be fast
    ahead = {"score": better(main.score, higher=True), "time": better(main.updates[counting], higher=False)}
    numbers: dict[str, Estimate | float | str | None] = {}
    words: list[str] = []
    explaining: dict[str, list[str]] = {kind: [] for kind, so in ahead.items() if so}
    beaten, compared = dict.fromkeys(explaining, True), False
    for name in names:
        batch, bites = contrast(rows, name, BATCH), contrast(rows, name, ITERATIVE)
        if batch is None or bites is None:
            continue
        compared = True
        for other, found in ((BATCH, batch), (ITERATIVE, bites)):
            numbers[f"score, {name} - {other}"] = found.score.difference
            numbers[f"score, {name} - {other}, d_z"] = found.score.effect
            numbers[f"score, {name} - {other}, p"] = found.score.p_value
            late = found.updates[counting]
            numbers[f"updates {counting}, {name} - {other}"] = None if late is None else late.difference
        words.append(
            f"{name} ends {_apart(batch.score.difference, percent)} batch and "
            f"{_apart(bites.score.difference, percent)} iterative repair."
        )
        for kind in explaining:
            of = (batch.score, bites.score) if kind == "score" else (batch.updates[counting], bites.updates[counting])
            behind = better(of[1], higher=kind != "score")  # iterative better than the control
            beaten[kind] &= behind
            if better(of[0], higher=kind == "score") and not behind:
                explaining[kind].append(name)
    if not compared:
        return None
    said = {"score": "score", "time": f"speed {counting}"}
    if not explaining:
        answer = "nothing to explain: iterative repair is not shown to be ahead of batch"
    elif all(explaining.values()):
        answer = "yes: " + "; ".join(f"its {said[kind]} by {', '.join(by)}" for kind, by in explaining.items())
    elif any(explaining.values()):
        answer = "in part: " + "; ".join(
            f"its {said[kind]} by {', '.join(by) or 'no control'}" for kind, by in explaining.items()
        )
    elif all(beaten.values()):
        answer = f"no: iterative repair beats every control in {' and '.join(said[kind] for kind in explaining)}"
    else:
        answer = "undecided: no control is shown to do as well, nor shown not to"
    return Verdict("Do controls explain the gain of iterative repair?", answer, " ".join(words), numbers)


def rescuable(rows: Rows, tolerance: float, *, percent: bool = False) -> Verdict | None:
    """Whether what survives can be rescued at all, dose by dose; None if nothing but `none` was run.

    Only repairs that bring no units back count. Where none of them is rescued in any trial, the best of those that were
    followed to the end of the budget is looked at, and training from scratch at the reduced size; what makes them
    "capacity-limited" is said in `planaria.study.capacity`.
    """
    answers: list[tuple[float, str]] = []
    words: list[str] = []
    numbers: dict[str, Estimate | float | str | None] = {}
    for dose in sorted({row["dose"] for row in rows}):
        cell = [row for row in rows if row["dose"] == dose and row["repair"] != NOTHING]
        by_name: dict[str, Rows] = {}
        for row in cell:
            by_name[row["repair"]] = [*by_name.get(row["repair"], []), row]
        renewing = _renewing(cell)
        kept = {name: own for name, own in by_name.items() if name not in renewing}
        if not kept:
            continue
        best = max(kept, key=lambda name: (_rescued(kept[name]), mean_of(kept[name], "validation_after")))
        share = f"{_rescued(kept[best])}/{len(kept[best])}"
        numbers[f"rescued at dose {dose:g}"] = f"{best} {share}"
        if _rescued(kept[best]):
            often = 2 * _rescued(kept[best]) > len(kept[best])
            answers.append((dose, "yes" if often else "in some trials"))
            continue
        followed = {name: rest for name, own in kept.items() if (rest := rest_of(own, tolerance)) is not None}
        at_rest, why = limited(followed, kept, percent)
        answers.append((dose, "no, capacity-limited" if at_rest else "not within this budget"))
        grown = [f"{n} {_rescued(own)}/{len(own)}" for n, own in by_name.items() if n in renewing and _rescued(own)]
        more = f" With units brought back: {', '.join(grown)} rescued." if grown else ""
        words.append(f"At dose {dose:g} none of {len(kept)} repairs rescues it in any trial: {why}{more}")
        for name, rest in followed.items():
            if name in (SCRATCH, best):
                numbers[f"short of the target at dose {dose:g}, {name}"] = rest.gap
                numbers[f"slope per 100 updates at dose {dose:g}, {name}"] = rest.slope
    if not answers:
        return None
    return Verdict(
        "Can it be rescued at all?",
        _by_dose(answers),
        " ".join(words) or "Counted are repairs that bring no units back, and the best of them at each dose.",
        numbers,
    )


def cheapest(rows: Rows) -> Verdict | None:
    """The repair with the least median work to rescue, dose by dose, among those that rescue most often; None if none.

    A repair must rescue more than half of its trials to be named; the table of a report marks the same one.
    """
    answers: list[tuple[float, str]] = []
    words: list[str] = []
    numbers: dict[str, Estimate | float | str | None] = {}
    for dose in sorted({row["dose"] for row in rows if row["repair"] != NOTHING}):
        cell = [row for row in rows if row["dose"] == dose]
        by_name = {name: [r for r in cell if r["repair"] == name] for name in dict.fromkeys(r["repair"] for r in cell)}
        work = {name: median for name, own in by_name.items() if (median := _median(own, "", "multiply_adds"))}
        often = [name for name in work if 2 * _rescued(by_name[name]) > len(by_name[name])]
        ranked = sorted(often, key=lambda name: (-_rescued(by_name[name]), work[name].best))
        if not ranked:
            answers.append((dose, "no repair rescues most trials"))
        elif ranked[0] == NOTHING:
            answers.append((dose, "nothing needs doing"))
        else:
            answers.append((dose, ranked[0] + (" (brings units back)" if ranked[0] in _renewing(cell) else "")))
        known = [name for name in ranked if name != NOTHING][:2]
        for name in known:
            numbers[f"multiply-adds to rescue at dose {dose:g}, {name}"] = work[name]
        if len(known) > 1 and ranked[0] != NOTHING:
            told = (f"{n} {work[n].best:.3g} ({_rescued(by_name[n])}/{len(by_name[n])} rescued)" for n in known)
            words.append(f"At dose {dose:g}, in multiply-adds: {', then '.join(told)}.")
    if not answers:
        return None
    note = (
        "Median over seeds, counted from the undamaged network, of the repairs that rescue most often; work before the "
        "study (a sidecar) is not in it."
    )
    return Verdict("Which repair is cheapest?", _by_dose(answers), " ".join([*words, note]), numbers)


def transition(response: Response, scaling: Scaling | None = None) -> Verdict:
    """Whether there is a transition: by the finite-size test, or else what one width can say."""
    critical = response.critical
    numbers: dict[str, Estimate | float | str | None] = {
        "critical dose": critical.estimate,
        "p of a steady decline": critical.p_value,
    }
    question = "Is there a transition?"
    if scaling is not None:
        numbers |= {
            "exponent of the steepness": scaling.exponent,
            "exponent of the steepness, larger widths": scaling.exponent_of_larger,
            "exponent of the steepness, by share of units left": scaling.exponent_by_survivors,
            "exponent of the susceptibility": scaling.susceptibility_exponent,
        }
        return Verdict(question, scaling.verdict, scaling.words, numbers)
    found = critical.verdict
    words = (
        f"The curve of this network: {found}. One width cannot tell a transition from a crossover; "
        "`planaria respond --widths 25,50,100,200,400,800` can."
    )
    return Verdict(question, f"{found}; one width cannot tell", words, numbers)


def redundancy(response: Response) -> Verdict:
    """How much the network can lose before it shows."""
    loss, half, area = response.dose_of_loss(), response.half_dose, response.area

    def at(what: str, dose: Estimate) -> str:
        if math.isinf(dose.best):
            return f"{what} is never lost up to dose {response.doses[-1]:g}"
        return f"{what} is lost at dose {dose:.2f}"

    ten, halves = at("0.10 of the score", loss), at("half of the score above chance", half)
    if response.intact <= response.chance:
        halves = "the intact network is no better than chance"
    words = (
        f"{ten}, {halves}; the area under the curve is {area:.3f}, of "
        f"{response.intact * response.doses[-1]:.3f} without any loss. Doses: {response.unit}."
    )
    numbers = {"dose of a loss of 0.10": loss, "half-dose": half, "area": area}
    return Verdict("How much can it lose?", ten, words, numbers)


def _median(rows: Rows, key: str, of: str = "backward_passes") -> Estimate | None:
    """Kaplan-Meier median of what it takes to rescue; None where half of the trials are not."""
    seen = [row[f"rescue_cost{key}"] is not None for row in rows]
    if not any(seen):
        return None
    estimate = kaplan_meier([(row[f"rescue_cost{key}"] or row[f"cost{key}"])[of] for row in rows], seen).median
    return None if math.isinf(estimate.best) else estimate


def _strength(paired: Paired) -> str:
    chance = said_p(paired)
    return f"d_z {paired.effect:.1f}, {chance}" if paired.effect.has_interval else chance


def _more(estimate: Estimate) -> str:
    """A difference of updates: "12 [5, 19] fewer"."""
    size, word = (-1, "fewer") if estimate.best < 0 else (1, "more")
    if not estimate.has_interval:
        return f"{abs(estimate.best):.0f} {word}"
    low, high = sorted((size * estimate.low, size * estimate.high))
    return f"{abs(estimate.best):.0f} [{low:.0f}, {high:.0f}] {word}"


def _apart(estimate: Estimate, percent: bool) -> str:
    """Which side a score is on, and how far: "1.86 [0.75, 2.98] points below"."""
    if estimate.best < 0:
        return f"{said_points(Estimate(-estimate.high, -estimate.best, -estimate.low), percent)} below"
    return f"{said_points(estimate, percent)} above"


def _renewing(cell: Rows) -> set[str]:
    """Repairs that bring units back: fewer are dead at the end than were before."""
    return {row["repair"] for row in cell if row["curve"][-1]["dead"] < max(look["dead"] for look in row["curve"])}


def _rescued(rows: Rows) -> int:
    return sum(bool(row["rescued"]) for row in rows)


def _by_dose(answers: Sequence[tuple[float, str]]) -> str:
    """Answers with the doses they hold for: "yes at 0.3, 0.5; capacity-limited at 0.7"."""
    grouped: dict[str, list[str]] = {}
    for dose, answer in answers:
        grouped.setdefault(answer, []).append(f"{dose:g}")
    return "; ".join(f"{answer} at {', '.join(doses)}" for answer, doses in grouped.items())
