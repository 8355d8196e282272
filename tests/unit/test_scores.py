"""Scores: what counts as right, and what does not."""

from __future__ import annotations

import math
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from planaria.cli.inputs import intact
from planaria.core.anatomy import Unit
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits
from planaria.measure.calibration import calibration_error, negative_log_likelihood
from planaria.measure.data import Data, check_labels
from planaria.measure.datasets import task as load
from planaria.measure.labels import IGNORED, class_scores
from planaria.measure.scores import (
    ACCURACY,
    AGREEMENT,
    F1,
    NLL,
    PEARSON,
    PERPLEXITY,
    R2,
    SCORES,
    SIMILARITY,
    SPEARMAN,
    Score,
    score_named,
)
from planaria.measure.task import Task, mse
from planaria.study.respond import respond
from planaria.study.vulnerability import vulnerability
from planaria.sweep.ablate import ablate
from planaria.sweep.lesions import EachUnit, Lesion
from planaria.sweep.replay import edited

OF_LABELS = [score for score in SCORES.values() if score.labels]
OF_NUMBERS = [R2, PEARSON, SPEARMAN, SIMILARITY]
BAD = [math.nan, math.inf, -math.inf]


def logits_for(answers: list[int], classes: int = 3) -> Tensor:
    return nn.functional.one_hot(torch.tensor(answers), classes).float()


def drawn(seed: int, rows: int, classes: int, *positions: int) -> tuple[Tensor, Tensor]:
    """Class scores [rows, classes, ...], some of them equal, and labels; in sequences some labels do not count."""
    rng = stream(seed, "scores")
    outputs = (2 * torch.randn(rows, classes, *positions, generator=rng)).round() / 2
    labels = torch.randint(classes, (rows, *positions), generator=rng)
    if positions:
        labels[:, 1:][torch.rand(labels[:, 1:].shape, generator=rng) < 0.4] = IGNORED
    return outputs, labels


def each_example(outputs: Tensor, labels: Tensor) -> list[list[tuple[list[float], int]]]:
    """Per example the rows of class scores and the labels that count, as plain numbers."""
    found = []
    for row, label in zip(outputs.flatten(2) if outputs.ndim > 2 else outputs[..., None], labels, strict=True):
        pairs = zip(row.T.tolist(), label.reshape(-1).tolist(), strict=True)
        found.append([(numbers, one) for numbers, one in pairs if one != IGNORED])
    return found


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def slowly(name: str, outputs: Tensor, labels: Tensor) -> float:
    """A score by its definition, one position at a time."""

    def said(row: list[float]) -> int:
        return row.index(max(row))

    def log_likelihood(row: list[float], label: int) -> float:
        return row[label] - math.log(math.fsum(math.exp(x) for x in row))

    def in_top(row: list[float], label: int, count: int) -> bool:
        return label in sorted(range(len(row)), key=lambda place: -row[place])[:count]

    examples = each_example(outputs, labels)
    pooled = [pair for example in examples for pair in example]
    if name == "f1":
        by_class = []
        for c in {label for _, label in pooled} | {said(row) for row, _ in pooled}:
            hits = sum(label == c == said(row) for row, label in pooled)
            by_class.append(2 * hits / (sum(y == c for _, y in pooled) + sum(said(row) == c for row, _ in pooled)))
        return mean(by_class)
    if name == "perplexity":
        return -math.exp(-mean([log_likelihood(*pair) for pair in pooled]))
    if name == "nll":
        return mean([mean([log_likelihood(*pair) for pair in example]) for example in examples])
    if name.startswith("top"):
        return mean([mean([in_top(*pair, int(name[3:])) for pair in example]) for example in examples])
    return mean([mean([said(row) == label for row, label in example]) for example in examples])


# --------------------------------------------------------------------------------------------- scores of labels


@given(st.integers(1, 12), st.integers(2, 6), st.sampled_from([(), (7,), (2, 4)]), st.integers(0, 2**31))
@settings(deadline=None, max_examples=25)
def test_scores_of_labels_are_their_definitions(rows: int, classes: int, positions: tuple[int, ...], seed: int) -> None:
    outputs, labels = drawn(seed, rows, classes, *positions)
    for name in ("accuracy", "agreement", "f1", "nll", "perplexity", "top1", "top2"):
        score = score_named(name)
        if positions and classes in positions:  # the shape could mean both
            continue
        for exact in (outputs, outputs.double()):
            found = score.function(exact, labels)
            assert found == pytest.approx(slowly(name, outputs, labels), rel=1e-5, abs=1e-6)
            assert score.bounds is not None and score.bounds[0] <= found <= score.bounds[1]
        if score.per_example is not None:
            values = score.per_example(outputs, labels)
            assert values.shape == (rows,) and values.dtype == torch.float64
            assert float(values.mean()) == pytest.approx(score.function(outputs, labels), abs=1e-12)


@given(st.integers(2, 12), st.integers(0, 2**31))
@settings(deadline=None, max_examples=15)
def test_the_order_of_examples_and_where_the_classes_lie_do_not_matter(rows: int, seed: int) -> None:
    outputs, labels = drawn(seed, rows, 5, 7)
    order = torch.randperm(rows, generator=stream(seed, "order"))
    for score in OF_LABELS:
        if score.name == "top5":
            score = score_named("top3")
        found = score.function(outputs, labels)
        assert score.function(outputs[order], labels[order]) == pytest.approx(found, abs=1e-9)
        assert score.function(outputs.movedim(1, -1), labels) == pytest.approx(found, abs=1e-6)
        assert score.chance(labels[order]) == pytest.approx(score.chance(labels))


@pytest.mark.parametrize("score", [*OF_LABELS, score_named("top2")], ids=lambda score: score.name)
def test_what_stands_at_ignored_positions_does_not_matter(score: Score) -> None:
    outputs, labels = drawn(3, 6, 5, 9)
    # As many left out everywhere, so that the rest is a tensor.
    labels = torch.where(labels == IGNORED, 2, labels)
    labels[:, 4:] = IGNORED
    wild = outputs.clone()
    wild[:, :, 4:] = math.nan
    kept = outputs[:, :, :4], labels[:, :4]
    assert score.function(wild, labels) == pytest.approx(score.function(*kept), abs=1e-6)
    assert score.chance(labels) == pytest.approx(score.chance(kept[1]))
    if score.per_example is not None:
        assert torch.allclose(score.per_example(wild, labels), score.per_example(*kept))


@pytest.mark.parametrize("score", OF_LABELS, ids=lambda score: score.name)
def test_an_example_without_any_label_is_refused_by_name_of_its_row(score: Score) -> None:
    labels = torch.tensor([[1, 0, 2], [IGNORED] * 3])
    with pytest.raises(InputError, match=r"1 of 2 with nothing but -100.*row 1\. Leave these examples out"):
        score.function(torch.zeros(2, 5, 3), labels)
    with pytest.raises(InputError, match=r"Task\.test\.targets: expected examples with at least one label"):
        check_labels(labels, 5, "Task.test.targets")


def test_labels_of_sequences_may_be_ignored_and_single_labels_may_not() -> None:
    check_labels(torch.tensor([[1, IGNORED], [IGNORED, 0]]), 2, "labels")
    with pytest.raises(InputError, match="labels from 0, got -100 at index 1"):
        check_labels(torch.tensor([0, IGNORED]), None, "labels")
    with pytest.raises(InputError, match="got -1 at index 0, 1"):
        check_labels(torch.tensor([[0, -1]]), None, "labels")


@pytest.mark.parametrize("bad", BAD)
def test_a_row_with_a_non_finite_output_is_wrong_whatever_its_argmax_says(bad: float) -> None:
    # The argmax of a row with NaN is the first NaN: an all-NaN network would score the share of class 0.
    outputs = torch.full((10, 3), bad)
    labels = torch.zeros(10, dtype=torch.long)
    for score in (ACCURACY, AGREEMENT, score_named("top2"), score_named("top3"), F1):
        assert score.function(outputs, labels) == 0.0
    for score in (NLL, PERPLEXITY):
        assert score.function(outputs, labels) == -math.inf
    one_bad = logits_for([0, 0])
    one_bad[0, 2] = bad
    assert ACCURACY.function(one_bad, torch.tensor([0, 0])) == score_named("top2").function(one_bad, labels[:2]) == 0.5
    assert F1.function(one_bad, torch.tensor([0, 0])) == pytest.approx(2 / 3)  # one hit, one label without an answer
    assert NLL.per_example is not None
    assert NLL.per_example(one_bad, labels[:2]).isfinite().tolist() == [False, True]


def test_the_perplexity_of_a_network_that_is_sure_and_wrong_is_infinite_and_no_overflow() -> None:
    outputs = torch.tensor([[3000.0, 0.0]])
    assert PERPLEXITY.function(outputs, torch.tensor([1])) == -math.inf
    assert NLL.function(outputs, torch.tensor([1])) == -3000.0
    assert PERPLEXITY.function(outputs, torch.tensor([0])) == -1.0


def test_the_perplexity_of_knowing_nothing_is_the_number_of_classes() -> None:
    labels = torch.arange(8)
    assert PERPLEXITY.function(torch.zeros(8, 8), labels) == pytest.approx(-8.0)
    assert PERPLEXITY.chance(labels) == pytest.approx(-8.0)
    assert NLL.chance(labels) == pytest.approx(-math.log(8))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40))
@settings(deadline=None, max_examples=25)
def test_chance_of_the_likelihood_is_what_answering_with_the_frequencies_scores(labels: list[int]) -> None:
    targets = torch.tensor(labels)
    outputs = (torch.bincount(targets, minlength=6) / len(labels)).clamp(min=1e-30).log().expand(len(labels), 6)
    assert NLL.chance(targets) == pytest.approx(NLL.function(outputs, targets), abs=1e-5)
    assert PERPLEXITY.chance(targets) == pytest.approx(PERPLEXITY.function(outputs, targets), rel=1e-5)


def test_chance_of_f1_is_what_uniform_answers_score_on_many_examples() -> None:
    rng = stream(0, "f1")
    targets = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 60_000, replacement=True, generator=rng)
    guessed = logits_for(torch.randint(3, (60_000,), generator=rng).tolist())
    assert F1.chance(targets) == pytest.approx(F1.function(guessed, targets), abs=0.01)
    assert F1.chance(torch.arange(4)) == pytest.approx(0.25)


def test_chance_counts_the_classes_that_occur() -> None:
    assert ACCURACY.chance(torch.tensor([0, 0, 0, 7])) == 0.5
    assert ACCURACY.chance(torch.tensor([[0, 7], [3, IGNORED]])) == pytest.approx(1 / 3)
    assert score_named("top3").chance(torch.arange(12)) == 0.25
    assert score_named("top3").chance(torch.arange(2)) == 1.0
    assert [score.chance(torch.tensor([0.0, 1.0])) for score in OF_NUMBERS] == [0.0] * 4


def test_accuracy_of_sequences_counts_every_position() -> None:
    outputs = torch.zeros(2, 3, 4)
    outputs[:, 1] = 1.0
    targets = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert ACCURACY.function(outputs, targets) == 0.75
    assert ACCURACY.per_example is not None
    assert ACCURACY.per_example(outputs, targets).tolist() == [1.0, 0.5]


def test_an_example_weighs_the_same_however_many_of_its_positions_count() -> None:
    outputs = torch.zeros(2, 3, 4)
    outputs[:, 1] = 1.0
    targets = torch.tensor([[1, IGNORED, IGNORED, IGNORED], [0, 0, 0, 0]])
    assert ACCURACY.function(outputs, targets) == 0.5


def test_accuracy_is_the_share_of_right_answers() -> None:
    assert ACCURACY.function(logits_for([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0])) == 0.75


def test_outputs_without_a_dimension_of_classes_are_refused() -> None:
    for score in OF_LABELS:
        with pytest.raises(InputError, match="one row of class scores per label"):
            score.function(torch.zeros(4), torch.zeros(4, dtype=torch.long))
        with pytest.raises(InputError, match="one row of class scores per label"):
            score.function(torch.zeros(4, 3, 6), torch.zeros(4, 5, dtype=torch.long))


def test_a_shape_in_which_two_dimensions_may_hold_the_classes_is_refused() -> None:
    with pytest.raises(InputError, match=r"\[2, 4, 4\], where dimension 1 and the last.*than the 4 classes"):
        class_scores(torch.zeros(2, 4, 4), torch.zeros(2, 4))
    assert class_scores(torch.zeros(4, 4), torch.zeros(4)).shape == (4, 4)  # one label each leaves no doubt


def test_more_answers_than_classes_are_refused() -> None:
    with pytest.raises(InputError, match="at most the 3 classes of the network, got 5"):
        SCORES["top5"].function(logits_for([0]), torch.tensor([0]))
    assert score_named("top3").function(logits_for([0]), torch.tensor([2])) == 1.0


def test_a_label_that_the_network_has_no_output_for_is_wrong_and_has_no_likelihood() -> None:
    outputs, labels = logits_for([0, 1]), torch.tensor([0, 9])
    assert ACCURACY.function(outputs, labels) == score_named("top3").function(outputs, labels) == 0.5
    assert F1.function(outputs, labels) == pytest.approx(1 / 3)
    for score in (NLL, PERPLEXITY):
        with pytest.raises(InputError, match=r"labels from 0 to 2.*1 outside, such as 9"):
            score.function(outputs, labels)


# -------------------------------------------------------------------------------------------- scores of numbers


def test_r2_is_one_for_exact_zero_for_the_mean_and_negative_below() -> None:
    targets = torch.tensor([1.0, 2.0, 3.0])
    assert R2.function(targets, targets) == 1.0
    assert R2.function(torch.full((3,), 2.0), targets) == 0.0
    assert R2.function(-targets, targets) < 0.0


def test_numbers_are_never_broadcast_from_a_column_to_a_row() -> None:
    targets = torch.tensor([1.0, 2.0, 3.0])
    for score in OF_NUMBERS:
        assert score.function(targets[:, None], targets) == pytest.approx(1.0)
        with pytest.raises(InputError, match=r"shape of the targets, \[3\], got \[3, 2\]"):
            score.function(torch.zeros(3, 2), targets)


def test_numbers_that_are_not_finite_score_the_least_there_is() -> None:
    targets = torch.tensor([1.0, 2.0])
    for bad in BAD:
        for score in OF_NUMBERS:
            assert score.bounds is not None
            found = score.function(torch.tensor([bad, bad]), targets)
            assert found == score.bounds[0]
        assert SIMILARITY.function(
            torch.tensor([[bad, 1.0], [2.0, 1.0]]), torch.tensor([[1.0, 1], [2, 1]])
        ) == pytest.approx(0)


def test_r2_of_constant_targets_is_one_only_when_exact() -> None:
    targets = torch.ones(3)
    assert R2.function(targets, targets) == 1.0
    assert R2.function(targets + 0.1, targets) == 0.0


numbers = st.floats(-1e6, 1e6).map(lambda x: round(x, 1))


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=30), st.integers(0, 100))
@settings(deadline=None, max_examples=50)
def test_correlations_are_those_of_scipy(pairs: list[tuple[float, float]], seed: int) -> None:
    a, b = np.array(pairs).T
    outputs, targets = torch.from_numpy(a), torch.from_numpy(b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert SPEARMAN.function(outputs, targets) == PEARSON.function(outputs, targets) == 0.0
        return
    assert SPEARMAN.function(outputs, targets) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)
    assert PEARSON.function(outputs, targets) == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-6)
    order = torch.randperm(len(a), generator=stream(seed, "order"))
    assert SPEARMAN.function(outputs[order, None], targets[order]) == pytest.approx(
        SPEARMAN.function(outputs, targets), abs=1e-12
    )


def test_a_rank_correlation_does_not_care_about_any_rising_function() -> None:
    x = torch.linspace(-3, 3, 20)
    assert SPEARMAN.function(x.exp(), x) == pytest.approx(1.0)
    assert SPEARMAN.function(-x.exp(), x) == pytest.approx(-1.0)
    assert PEARSON.function(x.exp(), x) < 0.9
    assert PEARSON.function(x.double() * 1e200, x.double() * 1e-200) == pytest.approx(1.0)
    with pytest.raises(InputError, match="one number per example"):
        SPEARMAN.function(torch.zeros(3, 2), torch.zeros(3, 2))


def test_similarity_is_the_mean_cosine_whatever_the_lengths() -> None:
    rng = stream(0, "similarity")
    outputs, targets = torch.randn(9, 5, generator=rng), torch.randn(9, 5, generator=rng)
    plain = nn.functional.cosine_similarity(outputs, targets)
    assert SIMILARITY.per_example is not None
    assert torch.allclose(SIMILARITY.per_example(outputs, targets).float(), plain, atol=1e-6)
    assert SIMILARITY.function(1e30 * outputs, 1e-30 * targets) == pytest.approx(float(plain.mean()), abs=1e-6)
    assert SIMILARITY.function(outputs, outputs) == pytest.approx(1.0)
    assert SIMILARITY.function(0 * outputs, targets) == 0.0


# ------------------------------------------------------------------------------------------------ names and tasks


def test_the_repr_of_a_known_score_evaluates_back() -> None:
    for score in [*SCORES.values(), score_named("top3")]:
        assert eval(repr(score), {"SCORES": SCORES, "score_named": score_named}) is score
    assert repr(Score("mine", lambda y, t: 0.0)) == "<Score mine>"


def test_every_number_makes_one_score_and_nonsense_none() -> None:
    assert score_named("top7") is score_named("top7") and score_named("top5") is SCORES["top5"]
    for word in ("top0", "top", "top-1", "top05", "topk", "tip5", ""):
        with pytest.raises(InputError, match="a known name or a function"):
            score_named(word)
    with pytest.raises(InputError, match="Did you mean spearman"):
        score_named("spearmen")


@pytest.mark.parametrize("score", [*SCORES.values(), score_named("top2")], ids=lambda score: score.name)
def test_a_score_arrives_whole_in_another_process(score: Score) -> None:
    arrived = pickle.loads(pickle.dumps(score))
    assert arrived.of_answers == score.of_answers == (score.name in {"accuracy", "agreement"})
    assert arrived.bounds == score.bounds


def test_a_task_of_labels_checks_them_and_counts_classes_whatever_the_score() -> None:
    x, y = torch.randn(30, 4, generator=stream(0, "x")), torch.arange(30) % 3
    for score in OF_LABELS:
        assert Task.of("mine", (x, y), (x, y), loss="mse", score=score).classes == 3
        with pytest.raises(InputError, match="integer labels"):
            Task.of("mine", (x, y.float()), (x, y.float()), score=score)
    assert Task.of("mine", (x, y.float()), (x, y.float()), loss="mse", score="spearman").classes is None


def test_scores_and_losses_are_chosen_in_the_text_of_a_task() -> None:
    digits = load("digits?score=top3&train=50")
    assert (digits.scorer, digits.classes) == (score_named("top3"), 10)
    assert digits.chance == pytest.approx(0.3)
    assert load("digits?score=r2&train=50").loss is mse
    assert load("digits?loss=mse&train=50").scorer is R2
    with pytest.raises(InputError, match=r"score: expected a known score \(Did you mean accuracy"):
        load("digits?score=acuracy")
    with pytest.raises(InputError, match=r"loss: expected a known loss \(Did you mean cross_entropy"):
        load("digits?loss=crossentropy")


def test_calibration_ignores_what_scores_ignore() -> None:
    outputs, labels = drawn(5, 8, 4, 6)
    labels = torch.where(labels == IGNORED, 1, labels)
    kept = negative_log_likelihood(outputs, labels), calibration_error(outputs, labels)
    more = torch.cat([outputs, torch.randn(8, 4, 3, generator=stream(1, "more"))], 2)
    padded = torch.cat([labels, torch.full((8, 3), IGNORED)], 1)
    for form in (more, more.movedim(1, -1)):
        found = negative_log_likelihood(form, padded), calibration_error(form, padded)
        assert [one.best for one in found] == pytest.approx([one.best for one in kept])
    assert kept[0].best == pytest.approx(-NLL.function(outputs, labels))


# ------------------------------------------------------------------------------------------------- in the engine


class _Tokens(nn.Module):
    """Scores of 4 classes for each of 6 positions, classes last or in dimension 1."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.hidden, self.said, self.last = nn.Linear(5, 7), nn.Linear(7, 4), last

    def forward(self, x: Tensor) -> Tensor:
        y = self.said(torch.relu(self.hidden(x)))
        return y if self.last else y.transpose(1, 2)


def _subject(positions: int, last: bool = True) -> tuple[Network, Data]:
    rng = stream(7, "subject", positions)
    x = torch.randn(40, *[positions] * (positions > 0), 5, generator=rng)
    model: nn.Module = _Tokens(last) if positions else nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4))
    net = Network.of(model, x)
    weights = {name: torch.randn(w.shape, generator=rng) for name, w in net.weights.items()}
    net = net.with_weights(weights)
    y = net(x).detach().argmax(-1 if last or not positions else 1)
    y[torch.rand(y.shape, generator=rng) < 0.3] = 1
    if positions:
        y[:, 1:][torch.rand(y[:, 1:].shape, generator=rng) < 0.4] = IGNORED
    return net, Data(x, y)


@pytest.mark.parametrize("positions", [0, 6])
@pytest.mark.parametrize("name", ["accuracy", "agreement", "top2", "nll", "f1", "perplexity"])
def test_a_sweep_over_units_scores_as_the_damaged_networks_do(name: str, positions: int) -> None:
    for last in (True, False)[: 1 + (positions > 0)]:
        net, data = _subject(positions, last)
        task = Task.of("mine", data, data, validation=data, score=name)
        effects = ablate(net, EachUnit(), task)
        assert effects.audit.mismatches == 0
        assert effects.intact == pytest.approx(task.score(net), abs=1e-6)
        (layer,) = effects.tallies
        for unit, change in enumerate(effects.tallies[layer].total.tolist()):
            hurt = edited(net, Lesion.of((Unit(layer, unit),), net))
            assert change / len(data) == pytest.approx(task.score(hurt) - effects.intact, abs=2e-5)


def test_a_sweep_of_embeddings_scores_as_the_damaged_networks_do() -> None:
    net, data = _subject(0)
    targets = net(data.inputs).detach()
    task = Task.of("mine", (data.inputs, targets), (data.inputs, targets), loss="cosine", score="similarity")
    effects = ablate(net, EachUnit(), task)
    assert effects.audit.mismatches == 0 and effects.intact == pytest.approx(1.0)
    for unit, change in enumerate(effects.tallies["0"].total.tolist()):
        hurt = edited(net, Lesion.of((Unit("0", unit),), net))
        assert change / len(data) == pytest.approx(task.score(hurt) - 1.0, abs=1e-5)


def test_agreement_is_swept_as_fast_as_accuracy() -> None:
    net, data = _subject(0)
    plans = [
        ablate(net, EachUnit(), Task.of("mine", data, data, validation=data, score=name)).plan.ways
        for name in ("accuracy", "agreement")
    ]
    assert plans[0] == plans[1]


def test_margins_leave_out_what_is_ignored() -> None:
    net, data = _subject(6)
    task = Task.of("mine", data, data, validation=data)
    found = vulnerability(net, task, worst_set=2)
    assert found.margin == "margin" and not [note for note in found.notes if "No direct" in note]
    assert found.layers[0].direct == pytest.approx(found.layers[0].total, abs=1e-3)  # all behind the units is linear


@pytest.mark.parametrize("name", ["nll", "perplexity", "f1", "similarity"])
def test_a_response_curve_of_any_score_starts_intact_and_has_a_half_dose(name: str) -> None:
    net, data = _subject(0)
    loss = "mse" if name == "similarity" else "cross_entropy"
    pair = Data(data.inputs, net(data.inputs).detach()) if name == "similarity" else data
    task = Task.of("mine", pair, pair, validation=pair, loss=loss, score=name)
    curve = respond(net, Damage(Silence(), RandomUnits()), task, doses=[0.3, 0.6, 1.0], draws=3)
    assert curve.intact == pytest.approx(task.score(net))
    assert curve.mean[-1].best < curve.intact
    low, high = task.scorer.bounds or (-math.inf, math.inf)
    assert all(low <= one.low <= one.high <= high for one in curve.mean)
    if curve.intact > curve.chance:
        assert curve.half_dose.best > 0.0
    assert "half-dose" in str(curve)


@pytest.mark.parametrize("name", ["nll", "perplexity", "f1"])
def test_a_network_near_chance_is_reported_on_the_scale_of_its_score(name: str) -> None:
    net, data = _subject(0)
    data = Data(data.inputs, net(data.inputs).detach().argmax(1))
    sure = net.with_weights({**net.weights, "2.weight": 5 * net.weights["2.weight"]})
    blank = net.with_weights({key: torch.zeros_like(w) for key, w in net.weights.items()})
    task = Task.of("mine", data, data, validation=data, score=name)
    prepared: Any = SimpleNamespace(task=task)
    assert intact(sure, prepared, None)[2] == []
    assert "near chance" in intact(blank, prepared, None)[2][0]
