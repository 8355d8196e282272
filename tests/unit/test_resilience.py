"""Resilience: gate vulnerability against its definitions, predictions against deletions, break-down, verdicts."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import NETWORKS, NetworkCase, trained
from planaria.core.anatomy import Anatomy, Unit
from planaria.core.errors import AnatomyError, InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import Weights, equal
from planaria.geometry.metric import Euclidean, Fisher, LossHessian, Metric
from planaria.measure.data import Data
from planaria.measure.statistics import Estimate
from planaria.measure.task import Task
from planaria.repair.against import B3
from planaria.repair.training import Training
from planaria.report.page import render
from planaria.study import gating
from planaria.study.breakdown import COUNT, PATH, Breakdown, Walked, along_path, random_lesion
from planaria.study.gating import changes, displacement, gated, magnitudes
from planaria.study.guides import ACTIVATION, CHANGE, GATE, LOSS, MAGNITUDE, Trial, Trials
from planaria.study.resilience import resilience
from planaria.study.resilience_verdicts import judge_resilience
from planaria.study.resilient import ALONE, GREEDY, RANDOM, Resilience
from planaria.sweep.lesions import EachUnit, Lesion
from planaria.sweep.program import Program

LOGITS = Euclidean()
GATED = ["mlp-relu", "cnn-batchnorm", "transformer-pre-norm", "lstm"]


def mlp(*sizes: int, seed: int = 0, activation: Callable[[], nn.Module] = nn.ReLU) -> tuple[Network, Tensor]:
    """A random network of double precision without dead units worth mentioning, and inputs."""
    layers: list[nn.Module] = []
    for one, other in itertools.pairwise(sizes):
        layers += [nn.Linear(one, other), activation()]
    module = nn.Sequential(*layers[:-1]).double()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=rng, dtype=torch.float64) / weight.shape[-1] ** 0.5)
    x = torch.randn(12, sizes[0], generator=rng, dtype=torch.float64)
    return Network.of(module, x[:2]), x


def map_of(net: Network, x: Tensor, of: Any = LOGITS) -> tuple[dict[str, int], Tensor]:
    program = Program.of(net)
    assert isinstance(program, Program)
    layers = {g.layer: g.count for g in Anatomy.of(net).groups if g.layer in program.gates and g.kind != "branch"}
    return layers, gated(program, layers, x, of).predicted


# ------------------------------------------------------------------------------------------- what the map is


@pytest.mark.parametrize("name", GATED)
def test_the_map_of_one_input_and_output_is_the_b3_variance_divided_by_p_times_1_less_p(name: str) -> None:
    case = NETWORKS[name]
    net, task = case.network(), case.task()

    class First(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            first: Tensor = self.inner(x).flatten(1)[:, :1]
            return first

    one = Network.of(First(net.to_module()), task.train.inputs)
    rows = torch.arange(1)
    training = Training(one, task, task.train, one.to_module(), stream(0, "b3"), None)
    variance = float(B3(p=0.2).penalty(training, rows).detach()) / (0.2 * 0.8)
    program = Program.of(one)
    assert isinstance(program, Program)
    groups = [organ.group for organ in training.organs if organ.read]
    assert groups and all(group.layer in program.gates for group in groups)
    found = gated(program, {group.layer: group.count for group in groups}, task.train.inputs[:1], Euclidean())
    assert float(found.predicted.sum()) == pytest.approx(variance, rel=1e-4) and variance > 0


def test_over_random_signs_b3_is_the_map_of_all_outputs() -> None:
    case = NETWORKS["mlp-relu"]
    net, task = case.network(), case.task()
    rows = torch.arange(8)
    training = Training(net, task, task.train, net.to_module(), stream(0, "b3"), None)
    draws = torch.tensor([float(B3(p=0.5).penalty(training, rows).detach()) / 0.25 for _ in range(300)])
    _, predicted = map_of(net, task.train.inputs[:8])
    error = float(draws.std() / math.sqrt(len(draws)))
    assert abs(float(draws.mean()) - float(predicted.sum())) < 4 * error < 0.3 * float(predicted.sum())


@pytest.mark.parametrize("of", [Euclidean(), Fisher(), Fisher(2.5)], ids=repr)
@pytest.mark.parametrize("sizes", [(5, 6, 3), (5, 6, 4, 3)], ids=str)
def test_it_is_the_length_of_the_displacement_of_outgoing_weights(sizes: tuple[int, ...], of: Any) -> None:
    net, x = mlp(*sizes)
    layers, predicted = map_of(net, x, of)
    metric = Metric(net, x, of)
    units = [Unit(layer, unit) for layer, count in layers.items() for unit in range(count)]
    lengths = [metric.norm(displacement(net, [unit])) ** 2 for unit in units]
    assert predicted.tolist() == pytest.approx(lengths, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["cnn-batchnorm", "transformer-pre-norm"])
def test_maps_and_heads_sum_over_their_positions_before_squaring(name: str) -> None:
    case = NETWORKS[name]
    net, x = case.network(), case.task().train.inputs[:6]
    layers, predicted = map_of(net, x)
    groups = {group.layer: group for group in Anatomy.of(net).groups}
    metric = Metric(net, x)
    at, tried = 0, 0
    for layer, count in layers.items():
        if groups[layer].exact_by != "incoming":
            lengths = [metric.norm(displacement(net, [Unit(layer, unit)])) ** 2 for unit in range(count)]
            assert predicted[at : at + count].tolist() == pytest.approx(lengths, rel=1e-3, abs=1e-9)
            tried += count
        at += count
    assert tried > 4


def test_moving_incoming_and_outgoing_weights_counts_each_unit_twice_and_its_cost_four_times() -> None:
    net, x = mlp(5, 8, 3)
    net = net.with_weights({"0.bias": torch.zeros_like(net.weights["0.bias"])})
    metric = Metric(net, x)
    program = Program.of(net)
    assert isinstance(program, Program)
    tried = 0
    for number in range(8):
        unit = Unit("0", number)
        entries = Anatomy.of(net).entries([unit]).all
        both: Weights = {name: -net.weights[name] * hit for name, hit in entries.items()}
        actual = changes(program, [Lesion.of(unit, net)], x, Euclidean())[0]
        if actual > 0:
            assert metric.norm(both) ** 2 / actual == pytest.approx(4.0, rel=1e-9)
            assert metric.norm(displacement(net, [unit])) ** 2 / actual == pytest.approx(1.0, rel=1e-9)
            tried += 1
    assert tried > 4


def test_the_fisher_map_is_the_quadratic_form_of_the_softmax() -> None:
    net, x = mlp(5, 6, 3)
    _, predicted = map_of(net, x, Fisher())
    hidden = torch.relu(x @ net.weights["0.weight"].T + net.weights["0.bias"])
    p = net(x).softmax(-1)
    form = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    d = hidden[:, None, :] * net.weights["2.weight"][None]  # [examples, outputs, units]
    expected = torch.einsum("ncu,nck,nku->u", d, form, d) / len(x)
    assert predicted.tolist() == pytest.approx(expected.tolist(), rel=1e-9)


def test_random_directions_stand_for_many_outputs_without_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = mlp(5, 6, 12)
    layers, exact = map_of(net, x)
    program = Program.of(net)
    assert isinstance(program, Program)
    monkeypatch.setattr(gating, "BASIS", 11)
    found = [gated(program, layers, x, Euclidean(), seed=seed) for seed in range(12)]
    assert {one.probes for one in found} == {gating.PROBES} and not torch.equal(found[0].predicted, exact)
    mean = torch.stack([one.predicted for one in found]).mean(0)
    assert torch.allclose(mean, exact, rtol=0.1)
    assert torch.equal(found[3].predicted, gated(program, layers, x, Euclidean(), seed=3).predicted)


def test_cross_terms_make_sets_exact_where_outputs_are_linear_in_the_units() -> None:
    net, x = mlp(5, 9, 3)
    program = Program.of(net)
    assert isinstance(program, Program)
    found = gated(program, {"0": 9}, x, Euclidean())
    for places in ([0, 1], [2, 5, 7], list(range(9))):
        lesion = Lesion.of([Unit("0", place) for place in places], net)
        assert found.together(places) == pytest.approx(changes(program, [lesion], x, Euclidean())[0], rel=1e-9)
    greedy = found.greedy(3)
    assert len(set(greedy)) == 3 and greedy[0] == int(found.predicted.argmax())
    by_hand = max((found.together([greedy[0], other]), other) for other in range(9) if other != greedy[0])
    assert greedy[1] == by_hand[1]


def test_cross_terms_of_a_few_units_are_those_of_all() -> None:
    net, x = mlp(5, 9, 4, 3)
    program = Program.of(net)
    assert isinstance(program, Program)
    layers = {"0": 9, "2": 4}
    whole = gated(program, layers, x, Euclidean())
    part = gated(program, layers, x, Euclidean(), pool=torch.tensor([1, 4, 11]))
    assert part.together([1, 11]) == pytest.approx(whole.together([1, 11]), rel=1e-9)
    assert part.greedy(9) and set(part.greedy(9)) == {1, 4, 11}


def test_magnitudes_are_norms_of_outgoing_weights() -> None:
    net, _ = mlp(5, 6, 3)
    assert torch.allclose(magnitudes(net, Anatomy.of(net).groups[0]), net.weights["2.weight"].norm(dim=0))


# ------------------------------------------------------------------------------------------- the whole study


@pytest.fixture(scope="module")
def found() -> Resilience:
    net, task = trained("digits")
    return resilience(net, task, examples=64, sample=12, repeats=3, points=5)


def test_predictions_and_deletions_of_a_one_hidden_layer_network_are_the_same_number() -> None:
    net, x = mlp(5, 9, 3)
    found = resilience(net, x, sample=None, repeats=0, spectrum=False).trials
    assert [trial.actual for trial in found.trials] == pytest.approx([trial.predicted for trial in found.trials])
    slope, related = found.slope, found.correlation(GATE, CHANGE)
    assert slope is not None and (slope.low, slope.high) == pytest.approx((1.0, 1.0))
    assert related is not None and related.best == 1.0


def test_a_result_is_plain_values_with_everything_in_it(found: Resilience) -> None:
    told = found.to_dict()
    plain = json.loads(json.dumps(told))
    assert plain["units"] == found.units == sum(layer["units"] for layer in plain["layers"])
    assert len(plain["trials"]["units"]) == 12 and {one["how"] for one in plain["sets"]} == {GREEDY, ALONE, RANDOM}
    assert [one["along"] for one in plain["breakdowns"]] == [PATH, COUNT]
    assert len(plain["breakdowns"][0]["speed"]) == 5 and plain["breakdowns"][1]["units"][0] == 0
    assert plain["spectrum"]["values"] == sorted(plain["spectrum"]["values"], reverse=True)
    assert 0 < plain["spectrum"]["resilient"]["best"] < 1
    assert plain["top"][0]["predicted"] == max(max(layer["predicted"]) for layer in plain["layers"])


def test_the_study_is_the_same_again_and_leaves_the_network_alone() -> None:
    net, task = trained("digits")
    before = {name: weight.clone() for name, weight in net.weights.items()}
    one, other = (resilience(net, task, examples=32, sample=6, repeats=2, points=3).to_dict() for _ in range(2))
    assert {**one, "seconds": 0} == {**other, "seconds": 0} and equal(before, dict(net.weights))


def test_inputs_alone_give_everything_but_losses_and_scores() -> None:
    net, x = mlp(5, 9, 3)
    found = resilience(net, x, repeats=2, points=3)
    assert (found.score, found.intact, found.judged) == (None, None, 0)
    assert found.trials.told == (CHANGE,) and all(one.lost is None for one in found.sets)
    path = found.breakdown(PATH)
    assert path is not None and path.allowed is None and path.worse == (None, None) and "score" not in path.to_dict()
    assert [verdict.question for verdict in judge_resilience(found)][-1].startswith("Is there a break-down")


def test_dead_units_are_kept_apart() -> None:
    net, x = mlp(5, 12, 3)
    dead = net.weights["0.bias"].clone()
    dead[:4] = -100.0
    found = resilience(net.with_weights({"0.bias": dead}), x, sample=None, repeats=0, spectrum=False)
    assert found.dead == found.layers[0].dead == 4
    assert {trial.unit for trial in found.trials.trials} == set(range(4, 12)) and found.breakdowns == ()


def test_only_the_units_that_are_asked_for_are_studied() -> None:
    net, x = mlp(5, 9, 8, 3)
    found = resilience(net, x, what=EachUnit(layers=("2",)), repeats=2, points=3, spectrum=False)
    assert [layer.layer for layer in found.layers] == ["2"] and found.units == 8
    assert all(unit.layer == "2" for one in found.sets for unit in one.units)


@pytest.mark.parametrize("name", GATED)
def test_every_kind_of_unit_is_studied(name: str) -> None:
    case: NetworkCase = NETWORKS[name]
    found = resilience(case.network(), case.task(), examples=16, sample=6, set_size=2, repeats=1, points=3)
    assert found.units > 0 and any(value > 0 for layer in found.layers for value in layer.predicted)
    assert judge_resilience(found) and json.dumps(found.to_dict())


def test_numbers_without_an_end_do_not_stop_it() -> None:
    net, x = mlp(5, 9, 3)
    task = Task.of("odd", Data(x, x[:, :3].clone()), Data(x, x[:, :3].clone()), loss="mse", score="r2")
    found = resilience(net, task, repeats=2, points=3)
    assert found.score == "r2" and not found.percent and LOSS in found.trials.told


# ------------------------------------------------------------------------------------------- break-down


def test_there_is_no_break_down_where_outputs_are_linear_in_the_lesion() -> None:
    net, x = mlp(5, 9, 3)
    found = resilience(net, x, repeats=3, points=5)
    path = found.breakdown(PATH)
    assert path is not None and path.faster == (None, None, None) and path.median(path.faster).best == math.inf
    for run in path.runs:
        assert run.speed == pytest.approx([run.speed[0]] * 5, rel=1e-9)
        assert run.distance == pytest.approx([run.speed[0] * t for t in path.at], rel=1e-9, abs=1e-12)
    answer = next(v.answer for v in judge_resilience(found) if "along the path" in v.question)
    assert answer.startswith("none")


def test_a_saturated_unit_breaks_down_where_it_leaves_saturation() -> None:
    net = Network.of(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.Tanh()), torch.ones(1, 1))
    ones = {name: torch.ones_like(weight) for name, weight in net.weights.items()}
    net = net.with_weights(
        {**ones, "0.bias": torch.zeros(1), "2.weight": torch.full((1, 1), 8.0), "2.bias": torch.zeros(1)}
    )
    walked = along_path(net, [Unit("0", 0)], torch.ones(4, 1), Euclidean(), 21, None, None)
    found = Breakdown(PATH, tuple(t / 20 for t in range(21)), (1,), (walked, walked), None)
    expected = [8 * (1 - math.tanh(8 * (1 - t)) ** 2) for t in found.at]
    assert walked.speed == pytest.approx(expected, rel=1e-3, abs=1e-5)
    first = next(t for t, v in zip(found.at, expected, strict=True) if v > 3 * expected[0])
    assert found.faster == (first, first) and found.median(found.faster).best == first
    assert found.broken(found.faster).best == 1.0 and walked.distance[-1] == pytest.approx(math.tanh(8.0))


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("of", [LOGITS, Fisher()], ids=repr)
def test_the_speed_is_the_length_of_the_displacement_where_the_path_is(name: str, of: Any) -> None:
    case = NETWORKS[name]
    net, x = case.network(), case.task().train.inputs[:8]
    units = random_lesion(net, EachUnit(), 0.5, 0, 0)
    u = displacement(net, units)
    walked = along_path(net, units, x, of, 3, None, None)
    for t, speed in zip((0.0, 0.5, 1.0), walked.speed, strict=True):
        here = net.with_weights({name: weight + t * u[name] for name, weight in net.weights.items()})
        assert speed == pytest.approx(Metric(here, x, of).norm(u), rel=1e-4, abs=1e-6)


def test_places_of_a_break_down_are_counted_over_lesions_and_late_ones_are_later() -> None:
    at = (0.0, 0.5, 1.0)
    runs = (
        Walked((1.0, 2.0, 3.5), (0.0, 1.0, 2.0), (0.9, 0.9, 0.86)),
        Walked((1.0, 4.0, 1.0), (0.0, 1.0, 2.0), (0.9, 0.85, 0.2)),
        Walked((1.0, 1.0, 3.0), (0.0, 1.0, 2.0), (0.9, 0.9, -math.inf)),
    )
    found = Breakdown(PATH, at, (4,), runs, 0.05, (0.0, 1.0))
    assert found.faster == (1.0, 0.5, None) and found.worse == (None, 0.5, 1.0)
    assert found.median(found.faster).best == 1.0 and found.broken(found.faster).best == pytest.approx(2 / 3)
    assert found.curve("score")[0].best == pytest.approx(0.9)
    assert json.dumps(found.to_dict()["faster"]["each"]) == "[1.0, 0.5, null]"


def test_a_lesion_without_speed_at_the_start_has_no_break_down() -> None:
    still = Walked((0.0, 0.0, 5.0), (0.0, 0.0, 1.0), ())
    assert Breakdown(PATH, (0.0, 0.5, 1.0), (1,), (still,), None).faster == (None,)


def test_random_lesions_take_their_share_of_every_layer() -> None:
    net, _ = mlp(5, 10, 4, 3)
    units = random_lesion(net, EachUnit(), 0.5, 0, 0)
    assert [sum(unit.layer == layer for unit in units) for layer in ("0", "2")] == [5, 2]
    assert units == random_lesion(net, EachUnit(), 0.5, 0, 0) != random_lesion(net, EachUnit(), 0.5, 0, 1)


# ------------------------------------------------------------------------------------------- guides and words


def trials(count: int, noise: float) -> Trials:
    rng = torch.Generator().manual_seed(0)
    truth = torch.rand(count, generator=rng).tolist()
    other = torch.rand(count, generator=rng).tolist()
    mixed = [t + noise * o for t, o in zip(truth, other, strict=True)]
    rows = zip(truth, mixed, other, strict=True)
    return Trials(tuple(Trial("0", n, t, m, o, 2 * t, t) for n, (t, m, o) in enumerate(rows)))


def test_a_better_guide_is_shown_to_be_one_and_an_equal_one_is_not() -> None:
    found = trials(40, 1.0)
    apart = found.better(MAGNITUDE, LOSS)
    assert apart is not None and apart[0].low > 0 and apart[1] < 0.01
    same = trials(40, 0.0).better(MAGNITUDE, LOSS)
    assert same is not None and (same[0].low, same[0].high) == (0.0, 0.0) and same[1] == 1.0
    assert found.slope is not None and found.slope.best == pytest.approx(2.0)
    worse = Trials(tuple(replace(t, predicted=t.activation, activation=t.predicted) for t in found.trials))
    turned = worse.better(ACTIVATION, LOSS)
    assert turned is not None and turned[0].high < 0


def test_a_perfect_rank_correlation_of_few_units_is_not_sure() -> None:
    for count, low, high in ((4, -1.0, 0.0), (50, 0.99, 1.0)):
        found = trials(count, 0.0).correlation(GATE, CHANGE)
        assert found is not None and found.best == found.high == 1.0
        assert low < found.low < high
    up = trials(12, 0.0)
    down = Trials(tuple(replace(t, actual=-t.actual) for t in up.trials)).correlation(GATE, CHANGE)
    one = up.correlation(GATE, CHANGE)
    assert one is not None and down == Estimate(-1.0, -1.0, -one.low)


@pytest.mark.parametrize(
    ("factor", "last", "answer"),
    [(1.0, 1.0, "yes"), (0.5, 0.5, "the order, not the size"), (1.0, 1.7, "the order, the size is not settled")],
)
def test_the_size_of_a_prediction_is_judged_by_its_interval(
    found: Resilience, factor: float, last: float, answer: str
) -> None:
    sizes = [*(float(n + 1) for n in range(59)), 300.0]  # the last change decides the slope
    actual = [factor * size for size in sizes[:-1]] + [last * sizes[-1]]
    rows = [Trial("0", n, x, 1.0, 1.0, y, None) for n, (x, y) in enumerate(zip(sizes, actual, strict=True))]
    said = judge_resilience(replace(found, trials=Trials(tuple(rows))))[0]
    assert said.answer.startswith(answer)


def test_a_break_down_of_few_lesions_is_not_said_to_be_none(found: Resilience) -> None:
    fast, slow = ((1.0, 1.0, 5.0), (1.0, 1.0, 1.0))
    runs = tuple(Walked(fast if n == 0 else slow, (0.0, 1.0, 2.0), ()) for n in range(4))
    curve = Breakdown(PATH, (0.0, 0.5, 1.0), (3,), runs, None)
    answers = {verdict.question: verdict.answer for verdict in judge_resilience(replace(found, breakdowns=(curve,)))}
    assert answers["Is there a break-down point along the path?"] == "in speed for less than half of the lesions"


def test_too_few_or_endless_numbers_tell_nothing() -> None:
    few = trials(3, 0.5)
    assert (
        few.told == () and few.slope is None and few.better(MAGNITUDE, LOSS) is None and few.to_dict()["guides"] == []
    )
    endless = Trials(tuple(replace(t, loss=math.inf if t.unit == 0 else t.loss) for t in trials(9, 0.5).trials))
    assert endless.told == (CHANGE,)
    alike = Trials(tuple(replace(t, predicted=0.0) for t in trials(9, 0.5).trials))
    assert alike.slope is None and alike.correlation(GATE, CHANGE) is None


def test_verdicts_say_whether_the_map_beats_magnitude(found: Resilience) -> None:
    questions = [verdict.question for verdict in judge_resilience(found)]
    assert questions == [
        "Does the map predict what a deletion does?",
        "Is the map a better guide than magnitude?",
        "Do the costs of units add up?",
        "How many directions are stiff?",
        "Is there a break-down point along the path?",
        "Is there a break-down point as units are deleted?",
    ]
    better = replace(found, trials=trials(40, 1.0))
    assert judge_resilience(better)[1].answer.startswith("yes")
    same = replace(found, trials=trials(40, 0.0))
    assert judge_resilience(same)[1].answer.startswith("not shown")


@pytest.mark.parametrize(
    ("changes_", "said"),
    [
        ({"examples": 1}, "examples"),
        ({"sample": 2}, "sample"),
        ({"set_size": -1}, "set_size"),
        ({"repeats": -1}, "repeats"),
        ({"points": 1}, "points"),
        ({"dose": 0.0}, "dose"),
        ({"dose": math.nan}, "dose"),
    ],
)
def test_numbers_off_their_range_are_refused(changes_: dict[str, Any], said: str) -> None:
    net, x = mlp(5, 9, 3)
    with pytest.raises(InputError, match=said):
        resilience(net, x, **changes_)


def test_what_cannot_be_studied_is_refused() -> None:
    net, x = mlp(5, 9, 3)
    with pytest.raises(AnatomyError, match="nowhere"):
        resilience(net, x, what=EachUnit(layers=("nowhere",)))
    with pytest.raises(InputError, match="2 inputs"):
        resilience(net, x[:1])
    single, x = mlp(5, 4, 1)
    with pytest.raises(InputError, match="two classes"):
        resilience(single, x, of=Fisher())
    for wrong in (Fisher, "logits", LossHessian(x)):
        with pytest.raises(InputError, match="Euclidean"):
            resilience(single, x, of=wrong)  # type: ignore[arg-type]
    net = NETWORKS["choosing"].network()
    with pytest.raises(InputError, match="vulnerability"):
        resilience(net, NETWORKS["choosing"].task())


# ------------------------------------------------------------------------------------------- the report


def test_a_page_is_drawn_from_plain_values_alone(found: Resilience) -> None:
    document = {
        "command": "resilience",
        "network": {"name": "mlp"},
        "task": {"name": "digits", "score": "accuracy"},
        "resilience": json.loads(json.dumps(found.to_dict())),
        "verdicts": [verdict.to_dict() for verdict in judge_resilience(found)],
    }
    page = render(document)
    for words in ("The map", "Predicted against actual", "Stiff directions", "Break-down", "outgoing norm", "greedy"):
        assert words in page
    assert page.count('class="figure"') >= 7


@pytest.mark.parametrize(
    "result", [{"layers": []}, {"layers": [{"layer": "<b>", "predicted": [None, 0.0]}], "trials": None, "sets": [{}]}]
)
def test_a_result_with_nothing_in_it_still_makes_a_page(result: dict[str, Any]) -> None:
    page = render({"command": "resilience", "resilience": {"of": "outputs", **result}})
    assert "<b>[" not in page
