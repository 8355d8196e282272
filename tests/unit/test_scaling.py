"""The finite-size test: on families of curves whose law is known, it says what they are, and seldom too much."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from planaria.core.errors import InputError
from planaria.core.streams import stream
from planaria.measure.scaling import Scaling, finite_size
from planaria.measure.statistics import Estimate, Floats, numpy_generator

CHANCE = 0.1
WIDTHS = (25, 50, 100, 200, 400, 800)
DOSES, FINE = np.linspace(0, 1, 26), np.linspace(0, 1, 51)

Family = Callable[[np.random.Generator, int], Floats]


def falling(middle: Floats | float, scale: float, doses: Floats = DOSES) -> Floats:
    return np.asarray(CHANCE + 0.85 / (1 + np.exp(np.clip((doses - middle) / scale, -60, 60))))


def same_sigmoid(rng: np.random.Generator, n: int, orders: int = 20) -> Floats:
    """A sigmoid of the same width at every n; orders scatter about it as 1 / sqrt(n), networks by 5 %."""
    noise = rng.normal(0, 0.5 / math.sqrt(n), (orders, 26)) * np.minimum(1, 4 * DOSES * (1 - DOSES))
    return falling(0.6 + rng.normal(0, 0.02), 0.08 * math.exp(rng.normal(0, 0.05))) + noise


def settling_sigmoid(rng: np.random.Generator, n: int, orders: int = 20) -> Floats:
    """Orders fail at different doses, which flattens the mean curve of narrow networks only."""
    middles = 0.6 + rng.normal(0, 0.3 / math.sqrt(n), (orders, 1))
    return falling(middles, 0.08 * math.exp(rng.normal(0, 0.05))) + rng.normal(0, 0.005, (orders, 26))


def straight(rng: np.random.Generator, n: int, orders: int = 20) -> Floats:
    """A steady decline."""
    slope = 0.85 * math.exp(rng.normal(0, 0.05))
    curved = rng.normal(0, 0.5 / math.sqrt(n), (orders, 1)) * DOSES * (1 - DOSES)
    return 0.95 - slope * DOSES + curved + rng.normal(0, 0.1 / math.sqrt(n), (orders, 26)) * DOSES


def sharpening(rng: np.random.Generator, n: int, orders: int = 20) -> Floats:
    """A sigmoid as narrow as n to the power -1/2, whose middle scatters as much: a transition."""
    scale = 0.2 * (n / 25) ** -0.5 * math.exp(rng.normal(0, 0.03))
    noise = rng.normal(0, 0.003, (orders, len(FINE)))
    return falling(0.5 + 0.3 * scale * rng.normal(size=(orders, 1)), scale, FINE) + noise


def outlasting(rng: np.random.Generator, n: int, orders: int = 20) -> Floats:
    """A network that fails when so many units are left, however many it had: the curve moves towards dose 1."""
    left = np.maximum(n * (1 - DOSES), 1e-9)
    middles = np.log(8) + rng.normal(0, 0.15, (orders, 1)) + rng.normal(0, 0.03)
    return np.asarray(CHANCE + 0.85 / (1 + np.exp((middles - np.log(left)) / 0.4))) + rng.normal(0, 0.005, (orders, 26))


def scaled(family: Family, name: str | int, networks: int = 1) -> Scaling:
    rng = numpy_generator(stream(0, "families", family.__name__, name))
    scores = [[family(rng, n) for _ in range(networks)] for n in WIDTHS]
    doses = np.linspace(0, 1, scores[0][0].shape[1])
    return finite_size(WIDTHS, doses, scores, CHANCE, rng, replicas=200)


@pytest.mark.parametrize(
    ("family", "verdict"), [(same_sigmoid, "crossover"), (settling_sigmoid, "crossover"), (straight, "none")]
)
def test_curves_that_do_not_sharpen_without_limit_are_no_transition(family: Family, verdict: str) -> None:
    found = scaled(family, "one")
    assert found.verdict == verdict
    assert found.exponent.low < 0.1
    assert (len(found.breaks) == 0) == (verdict == "none")


@pytest.mark.parametrize("networks", [1, 2])
def test_a_sigmoid_that_sharpens_as_the_root_of_the_width_is_a_transition(networks: int) -> None:
    found = scaled(sharpening, "one", networks)
    assert found.verdict == "transition"
    assert found.exponent.low <= 0.5 <= found.exponent.high
    assert found.exponent.low > 0.3
    assert found.susceptibility_exponent.low > 0.5
    assert "phase transition" in found.words
    assert [s.best for s in found.steepness] == sorted(s.best for s in found.steepness)


def test_a_curve_that_moves_towards_dose_one_sharpens_and_is_no_transition() -> None:
    rng = np.random.default_rng(2)
    widths = WIDTHS[:4]  # then the middle of the curve is still resolved
    found = finite_size(widths, DOSES, [[outlasting(rng, n)] for n in widths], CHANCE, rng, replicas=200)
    assert found.exponent.low > 0.3
    assert found.exponent_by_survivors.low <= 0 <= found.exponent_by_survivors.high
    assert found.half_doses[0].best < 0.75 < 0.9 < found.half_doses[-1].best
    assert found.verdict == "crossover"
    assert "fail later" in found.words


def test_steepness_and_susceptibility_are_those_of_the_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_breaks(monkeypatch)
    rng = np.random.default_rng(0)
    scores = [[falling(0.5 + 0.05 * rng.normal(size=(400, 1)), 0.15)] for _ in WIDTHS]
    found = finite_size(WIDTHS, DOSES, scores, CHANCE, rng, replicas=50)
    mean = np.mean([one[0].mean(axis=0) for one in scores], axis=0)
    steepest = np.abs(np.gradient(mean, DOSES)).max()
    variance = np.mean([one[0].var(axis=0).max() for one in scores])
    for width, steep, loud in zip(WIDTHS, found.steepness, found.susceptibility, strict=True):
        assert steep.best == pytest.approx(steepest, rel=0.03)
        assert steep.low < steep.best < steep.high
        assert loud.best == pytest.approx(width * variance, rel=0.3)
    assert found.susceptibility_exponent.best == pytest.approx(1, abs=0.1)  # the variance does not fall with n


def test_noise_does_not_make_narrow_networks_look_steep(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_breaks(monkeypatch)
    # A maximum over noisy slopes is too large by as much as they are noisy; found on one half and read from the other
    # it is not. Naively these six would have an exponent far below 0.
    rng = np.random.default_rng(1)
    naive, honest = [], []
    for _ in range(6):
        scores = [[0.95 - 0.85 * DOSES + rng.normal(0, 1 / math.sqrt(n), (20, 26)) * 0.3] for n in WIDTHS]
        steep = finite_size(WIDTHS, DOSES, scores, CHANCE, rng, replicas=30).steepness
        honest.append(steep[0].best)
        naive.append(np.abs(np.gradient(scores[0][0].mean(axis=0), DOSES)).max())
    assert np.mean(naive) > 1.3 * 0.85
    assert np.mean(honest) == pytest.approx(0.85, rel=0.15)


@pytest.mark.parametrize("family", [same_sigmoid, settling_sigmoid, straight])
def test_false_transitions_are_rare(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_breaks(monkeypatch)  # they decide between crossover and none only, and take most of the time
    found = [scaled(family, at, 1).verdict for at in range(12)]
    assert found.count("transition") <= 1


@pytest.mark.science
@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("family", [same_sigmoid, settling_sigmoid, straight])
def test_false_transitions_over_150_families(family: Family, networks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_breaks(monkeypatch)
    found = [scaled(family, f"long {at}", networks).verdict for at in range(150)]
    assert found.count("transition") <= 0.05 * len(found)


@pytest.mark.science
def test_the_exponent_of_a_transition_is_covered_over_100_families(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_breaks(monkeypatch)
    found = [scaled(sharpening, f"long {at}") for at in range(100)]
    assert sum(one.verdict == "transition" for one in found) >= 90
    # The spacing of the doses blunts the sharpest curves, so the exponent is a little too small.
    assert 0.45 <= np.mean([one.exponent.best for one in found]) <= 0.5


def _without_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unbroken:
        estimate = None

    monkeypatch.setattr("planaria.measure.scaling.critical_dose", lambda *args, **options: Unbroken())


def test_the_order_of_draws_does_not_matter_and_the_same_stream_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_breaks(monkeypatch)
    rng = np.random.default_rng(3)
    scores = [[same_sigmoid(rng, n)] for n in WIDTHS[:3]]
    turned = [[one[0][::-1]] for one in scores]
    found = [
        finite_size(WIDTHS[:3], DOSES, given, CHANCE, np.random.default_rng(0), replicas=50).to_dict()
        for given in (scores, scores, turned)
    ]
    assert found[0] == found[1] == found[2]


def test_what_cannot_be_tested_says_so() -> None:
    rng = np.random.default_rng(0)
    scores = [[same_sigmoid(rng, n)] for n in WIDTHS]
    two = finite_size(WIDTHS[:2], DOSES, scores[:2], CHANCE, rng, replicas=20)
    few_orders = finite_size(WIDTHS, DOSES, [[one[0][:4]] for one in scores], CHANCE, rng)
    few_doses = finite_size(WIDTHS, DOSES[:5], [[one[0][:, :5]] for one in scores], CHANCE, rng)
    flat = finite_size(WIDTHS, DOSES, [[np.full((20, 26), 0.9)] for _ in scores], CHANCE, rng, replicas=20)
    assert [one.verdict for one in (two, few_orders, few_doses, flat)] == [
        "not tested: 2 widths, 3 needed",
        "not tested: 4 orders, 5 needed",
        "not tested: 5 doses, 6 needed",
        "not tested: there is a width at which the curve never falls",
    ]
    for one in (two, few_orders, few_doses, flat):
        assert json.loads(json.dumps(one.to_dict(), allow_nan=False))["exponent"]["best"] is None
        assert one.words.startswith("The finite-size test was not made")


def test_a_network_that_explodes_counts_as_one_that_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_breaks(monkeypatch)
    rng = np.random.default_rng(5)
    scores = [[same_sigmoid(rng, n)] for n in WIDTHS]
    scores[0][0][3, 20:] = -np.inf
    scores[1][0][7, 22:] = -1e9
    found = finite_size(WIDTHS, DOSES, scores, CHANCE, rng, replicas=50)
    assert found.verdict in {"crossover", "none"}
    assert all(s.best < 10 for s in found.steepness)


def test_the_document_has_what_a_report_needs() -> None:
    document = scaled(straight, "document").to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["widths"] == list(WIDTHS)
    assert len(document["steepness"]) == len(document["susceptibility"]) == len(document["curves"]) == 6
    for width, curve in zip(WIDTHS, document["curves"], strict=True):
        assert curve["width"] == width
        assert len(curve["doses"]) == len(curve["mean"]) == len(curve["low"]) == len(curve["high"]) == 26
    assert document["verdict"] == "none"
    assert set(document["exponent"]) == {"low", "best", "high"}


def test_the_verdict_follows_the_exponents_and_the_breaks() -> None:
    sure, unsure = Estimate(0.2, 0.4, 0.6), Estimate(-0.1, 0.2, 0.6)

    def said(exponent: Estimate, larger: Estimate, breaks: int, left: Estimate = sure) -> Scaling:
        return Scaling(
            widths=(1, 2, 3),
            doses=(0.0, 1.0),
            curves=((), (), ()),
            half_doses=(sure, sure, sure),
            steepness=(),
            susceptibility=(),
            exponent=exponent,
            exponent_of_larger=larger,
            exponent_by_survivors=left,
            breaks=(1, 2, 3)[:breaks],
        )

    assert said(sure, sure, 3).verdict == "transition"
    assert said(sure, sure, 3, unsure).verdict == "crossover"
    unknown = said(sure, sure, 3, Estimate(math.nan, math.nan, math.nan))
    assert unknown.verdict == "crossover" and "not shown to fail more abruptly" in unknown.words
    assert said(sure, unsure, 3).verdict == said(sure, unsure, 0).verdict == "crossover"
    assert said(unsure, sure, 2).verdict == "crossover"
    assert said(unsure, unsure, 1).verdict == "none"
    assert "ruled out" in said(unsure, unsure, 0).words


@pytest.mark.parametrize(
    ("widths", "keep", "word"),
    [((50, 25, 100), 3, "ascending"), ((0, 25, 50), 3, "ascending"), ((25, 50, 100), 2, "at least one network")],
)
def test_wrong_shapes_are_refused(widths: tuple[int, ...], keep: int, word: str) -> None:
    rng = np.random.default_rng(0)
    scores = [[same_sigmoid(rng, 25)] for _ in range(keep)]
    with pytest.raises(InputError, match=word):
        finite_size(widths, DOSES, scores, CHANCE, rng)
