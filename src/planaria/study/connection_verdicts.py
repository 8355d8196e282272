"""Verdicts on a connection, in words: is there a path of good networks, what did alignment do, what does it cost."""

from __future__ import annotations

import math

from planaria.measure.statistics import Estimate
from planaria.study.connection import (
    ALIGNED,
    BEZIER,
    CHAIN,
    GREEDY,
    LOSS,
    SCORE,
    STRAIGHT,
    TEST,
    TRAIN,
    VALIDATION,
    Connection,
)
from planaria.study.verdicts import Verdict

Numbers = dict[str, Estimate | float | str | None]
THROUGH = {
    STRAIGHT: "the straight line",
    ALIGNED: "the straight line after alignment",
    BEZIER: "a trained curve",
    CHAIN: "a chain of networks",
    GREEDY: "greedy walks",
}
"""Ways in a few words."""


def judge_connection(found: Connection) -> tuple[Verdict, ...]:
    """Every verdict that a result allows.

    Args:
        found: The result.

    Example:
        >>> from torch import nn
        >>> from planaria.core.network import Network
        >>> from planaria.measure.datasets import task
        >>> from planaria.study.connection import Survey
        >>> digits = task("digits")
        >>> net = Network.of(nn.Linear(64, 10), digits.train.inputs)
        >>> found = Survey(net, net, digits, ("straight",), points=3, control=0).run()
        >>> [verdict.answer for verdict in judge_connection(found)][:1]
        ['they are the same network']

    Not guaranteed: that two networks between which no path was found are not connected.
    """
    made = [connected(found), alignment(found), cheapest(found), walks(found), control(found)]
    return tuple(verdict for verdict in made if verdict is not None)


def connected(found: Connection) -> Verdict | None:
    """Whether there is a path of good networks; chosen on validation data, judged on test data."""
    best, question = found.best, "Is there a path of good networks between the two?"
    if best is None:
        return None
    if found.distance == 0:
        words = "Every weight of the second network is that of the first: the distance is 0, and so is every barrier."
        return Verdict(question, "they are the same network", words, {"distance": 0.0})
    loss, score = best.barrier(LOSS), best.barrier(SCORE)
    sure = _sure(loss, found.tolerance)
    if math.isinf(loss.best):
        answer = f"none found: outputs are not finite along {THROUGH[best.name]}"
    elif sure == "above":
        answer = f"none found: the least barrier is {said_loss(loss)}"
    elif sure == "about":
        answer = f"not settled: the barrier along {THROUGH[best.name]} is {said_loss(loss)}"
    else:
        answer = f"yes, {THROUGH[best.name]}"
    names = [THROUGH[way.name] for way in found.found if way.connects]
    worst = best.record["profiles"][TEST]["worst_loss"]
    words = (
        f"Along {THROUGH[best.name]}, chosen on validation data, the test loss rises at most {said_loss(loss)} above "
        f"the line between the ends (at t = {worst:.2f}) and the score falls at most {points(found, score)} below it; "
        f"{found.tolerance:.3g} in loss counts as none."
    )
    words += f" {len(names)} of {len(found.found)} ways connect on validation data."
    if best.name != STRAIGHT and best.record["notes"].get("units moved"):
        words += " The path ends at the second network with its units in another order, which computes the same."
    numbers: Numbers = {
        "loss barrier, test": loss,
        "loss barrier, train": best.barrier(LOSS, TRAIN),
        "score barrier, test": score,
        "score barrier, train": best.barrier(SCORE, TRAIN),
    }
    return Verdict(question, answer, words, numbers)


def alignment(found: Connection) -> Verdict | None:
    """Whether putting units in order brings the two together."""
    if not found.alignment or found.distance == 0:
        return None
    question = "Are the two the same but for the order of their units?"
    if "problem" in found.alignment:
        return Verdict(question, "cannot be told", f"Units could not be matched: {found.alignment['problem']}", {})
    before, after = found.alignment["distance_before"], found.alignment["distance_after"]
    numbers: Numbers = {"distance before": before, "distance after": after}
    words = f"{found.alignment['verdict'].capitalize()}."
    line, other = found.way(STRAIGHT), found.way(ALIGNED)
    if not found.alignment["permutations"]:
        return Verdict(question, "no units can change places", words, numbers)
    if after <= 1e-6 * max(found.size, 1e-300):
        return Verdict(question, "yes, the order is all that differs", words, numbers)
    answer = f"no, alignment takes away {_share(1 - after / before)} of their distance"
    if line is not None and other is not None:
        one, two = line.barrier(LOSS), other.barrier(LOSS)
        words += f" Loss barrier of the straight line: {said_loss(one)} before, {said_loss(two)} after."
        numbers |= {"loss barrier before": one, "loss barrier after": two}
        if one.low > found.tolerance and _sure(two, found.tolerance) == "within":
            answer = "nearly: alignment takes away the barrier"
        elif two.high < one.low:
            share = 1 - max(0.0, two.best) / one.best if math.isfinite(one.best) else 1.0
            answer = f"in part: alignment takes away {_share(share)} of the barrier"
    return Verdict(question, answer, words, numbers)


def cheapest(found: Connection) -> Verdict | None:
    """Which way connects for the least work."""
    ways = sorted(
        (way for way in found.found if way.connects), key=lambda way: (way.cost.multiply_adds, way.cost.seconds)
    )
    if not ways or found.distance == 0 or len(found.found) < 2:
        return None
    told = [f"{THROUGH[way.name]}, {way.cost.multiply_adds / max(1, found.forward):.3g}" for way in ways]
    words = "Ways that connect on validation data, with their work in forward passes over the training split: "
    words += f"{'; '.join(told)}."
    numbers: Numbers = {f"{way.name}, passes": way.cost.multiply_adds / max(1, found.forward) for way in ways}
    return Verdict("Which path is the cheapest to find?", f"{THROUGH[ways[0].name]}", words, numbers)


def walks(found: Connection) -> Verdict | None:
    """Whether greedy walks meet."""
    way = found.way(GREEDY)
    if way is None or found.distance == 0:
        return None
    notes = way.record["notes"]
    before, gap = notes["gap before"], notes["final gap"]
    answer = f"no, {_share(gap / before) if before else '0 %'} of the distance is left"
    if gap <= 0.1 * before:
        answer = f"nearly, {_share(gap / before) if before else '0 %'} of the distance is left"
    words = (
        f"{notes['steps taken']} steps bring the ends from {before:.3g} to {gap:.3g} apart; the chain does the rest."
    )
    return Verdict("Do greedy walks from both ends meet?", answer, words, {"gap before": before, "final gap": gap})


def control(found: Connection) -> Verdict | None:
    """What a pair looks like that is connected for certain."""
    way = found.control
    if way is None or way.problem:
        return None
    loss, score = way.barrier(LOSS), way.barrier(SCORE)
    held = _sure(loss, found.tolerance) == "within"
    words = (
        f"Straight line from the first network to itself after {way.record['updates']} more updates, "
        f"{way.record['apart']:.3g} away (the second network: {found.distance:.3g}): loss barrier {said_loss(loss)}, "
        f"score barrier {points(found, score)}."
    )
    if not held:
        words += " A measurement that finds a barrier here says little about the pair."
    numbers: Numbers = {
        "loss barrier": loss,
        "score barrier": score,
        "validation, loss": way.barrier(LOSS, VALIDATION),
    }
    return Verdict("Is a pair found connected that surely is?", "yes" if held else "no", words, numbers)


def points(found: Connection, value: Estimate) -> str:
    """A barrier in score with its interval; in points where the score is a share."""
    factor, unit = (100.0, " points") if found.percent else (1.0, "")
    if math.isinf(value.best):
        return "without bound"
    digits = 2 if found.percent else 4
    told = f"{factor * value.best + 0.0:.{digits}f}"
    if not (math.isnan(value.low) or math.isnan(value.high)):
        told += f" [{factor * value.low:.{digits}f}, {factor * value.high:.{digits}f}]"
    return told + unit


def said_loss(value: Estimate) -> str:
    """A barrier in loss with its interval."""
    if math.isinf(value.best):
        return "without bound"
    told = f"{value.best:.3f}"
    return told if math.isnan(value.low) else f"{told} [{value.low:.3f}, {value.high:.3f}]"


def _sure(value: Estimate, tolerance: float) -> str:
    """Where a barrier lies: "within" the tolerance, "above" it, or "about" there by its interval."""
    low, high = (value.best if math.isnan(end) else end for end in (value.low, value.high))
    return "within" if high <= tolerance else "above" if low > tolerance else "about"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"
