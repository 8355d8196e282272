"""Verdicts on pictures and surfaces of a landscape: what they show, and what they would show of anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planaria.measure.statistics import Estimate, wilson
from planaria.study.verdicts import Verdict

Numbers = dict[str, Estimate | float | str | None]


def judge_pictures(pictures: Sequence[dict[str, Any]], distance: str) -> list[dict[str, Any]]:
    """Does the picture of a walk say where it goes; which pictures may be believed.

    Args:
        pictures: Of networks, by several distances.
        distance: By which walks are compared with random ones.

    Returns:
        Two verdicts; none without pictures.
    """
    if not pictures:
        return []
    walks = [walk for one in pictures if one["distance"] == distance for walk in one["walks"]]
    return [_walked(walks, distance).to_dict(), _believed(pictures).to_dict()]


def _walked(walks: Sequence[dict[str, Any]], distance: str) -> Verdict:
    question = "Does the curve of a walk in the plane say where it goes?"
    if not walks:
        return Verdict(question, "Not tested", "No walk has five networks whose distances are known.", {})
    ordered = [walk for walk in walks if walk["p"] <= 0.05]
    like = sum(walk["like_chance"] for walk in ordered)
    numbers: Numbers = {
        "walks drawn like a random walk": wilson(like, len(walks)),
        "share in two components": _mean([sum(walk["shares"]) for walk in walks]),
        "the same of a random walk": _mean([sum(walk["shares_random"]) for walk in walks]),
        "disparity from a random walk": _mean([walk["disparity"] for walk in walks]),
    }
    if not ordered:
        answer = "No: its points have no order"
    elif like == len(walks):
        answer = "No: a random walk is drawn alike"
    elif like == 0:
        answer = "It is not that of a random walk"
    else:
        answer = f"In part: {like} of {len(walks)} are drawn like a random walk"
    words = (
        f"By distance of {distance}, two principal components hold {numbers['share in two components']:.0%} of a walk, "
        f"and {numbers['the same of a random walk']:.0%} of a random walk of the same steps in very many dimensions, "
        "which is a smooth curve in the plane as well."
    )
    return Verdict(question, answer, words, numbers)


def _believed(pictures: Sequence[dict[str, Any]]) -> Verdict:
    every = [(one, shown) for one in pictures for shown in one["embeddings"]]
    good = [pair for pair in every if pair[1]["faithful"] and pair[1]["stable"]]
    numbers: Numbers = {"share of the pictures whose neighbours may be believed": len(good) / max(1, len(every))}
    for one in pictures:
        if one["of"] == pictures[0]["of"]:
            numbers[f"separation of the groups by {_named(one)}"] = one["separation"]
    answer = "None" if not good else "All of them" if len(good) == len(every) else f"{len(good)} of {len(every)}"
    parts = []
    for one in pictures:
        names = [shown["method"] for shown in one["embeddings"] if shown["faithful"] and shown["stable"]]
        kinds = dict.fromkeys(name.partition(" (")[0] for name in names)
        whom = " and ".join(kinds) if 0 < len(names) < len(one["embeddings"]) else "all" if names else "none"
        parts.append(f"{one['of']} by {_named(one)}: {whom}")
    words = (
        "Believed are those that keep neighbours (trustworthiness and continuity at least 0.9) and show the same for "
        f"other seeds. {_begun('; '.join(parts))}."
    )
    return Verdict("In which pictures may neighbours be believed?", answer, words, numbers)


def judge_surfaces(surfaces: Sequence[dict[str, Any]], random: str) -> list[dict[str, Any]]:
    """Does a surface show what the walk crosses?

    Args:
        surfaces: Of the loss, with a walk.
        random: Name of the one in random directions.

    Returns:
        One verdict; none without surfaces.
    """
    drawn = {one["which"]: one for one in surfaces if one["off"] is not None}
    if not drawn:
        return []
    numbers: Numbers = {f"share of the walk in the plane, {which}": 1 - one["off"] for which, one in drawn.items()}
    answer = "Not tested on its own plane"
    for which, one in drawn.items():
        missed = _missed(one)
        numbers[f"loss missed, as a share of its change, {which}"] = missed
        if which == random:
            continue
        if one["off"] > 0.5:
            answer = "No: most of the walk is off its own plane"
        elif missed is None or missed > 0.5:
            answer = "No: even its own plane misses the loss of its networks"
        else:
            answer = "Roughly, in its own plane" if missed > 0.2 else "Nearly, in its own plane"
    told = [f"{which}: {share:.0%}" for which, share in ((w, 1 - one["off"]) for w, one in drawn.items())]
    words = (
        f"Share of the walk's squared distance from the intact network that lies in the plane: {'; '.join(told)}. What "
        "is off the plane is drawn at the nearest point of it, where the loss is another one. A plane of its own holds "
        "most of any short walk."
    )
    return [Verdict("Does the surface show what the walk crosses?", answer, words, numbers).to_dict()]


def _named(picture: dict[str, Any]) -> str:
    """A distance as the report calls it."""
    return "probabilities" if picture["distance"] == "answers" else str(picture["distance"])


def _missed(surface: dict[str, Any]) -> float | None:
    """Mean error of the loss at the points below a walk, as a share of its mean change; None where none changes."""
    stops = [stop for stop in surface["walk"] if None not in (stop["loss"], stop["loss_below"])]
    if not stops or surface["centre_loss"] is None:
        return None
    change = sum(abs(stop["loss"] - surface["centre_loss"]) for stop in stops)
    return sum(abs(stop["loss"] - stop["loss_below"]) for stop in stops) / change if change else None


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
