"""The lesion study: a network made of modules, one for each class, whose dissociation is known; and its statistics."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planaria.core.anatomy import Anatomy, Unit
from planaria.core.errors import AnatomyError, InputError
from planaria.core.network import Network
from planaria.core.tap import tap
from planaria.measure.scores import Score
from planaria.measure.task import Data, Task
from planaria.report.lesion_figures import pairs_figure, region_classes_figure, regions_figure, selective_figure
from planaria.report.lesions import Found, guide_table, headline, lesion_table, pair_table, selective_table, verdict
from planaria.report.page import render
from planaria.study import lesion_bench as bench
from planaria.study import lesions as study
from planaria.study.dissociation import (
    DOUBLE,
    NONE,
    SINGLE,
    Change,
    Crossing,
    control_interval,
    dissociations,
    holm,
    p_control,
)
from planaria.study.groupings import ByCluster, ByLayer, BySelectivity, Chosen, controls
from planaria.study.lesion_verdicts import judge_lesions
from planaria.study.lesioned import COLUMNS, LesionStudy, ranges
from planaria.study.lesions import Survey, lesion_study
from planaria.study.selectivity import _replayed, _watched, clusters, profiles, responses, selectivity
from planaria.sweep.lesions import EachUnit
from planaria.sweep.program import Program
from purity import untouched

CLASSES, PER_CLASS = 4, 4


def inputs(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """A pattern of its own for each class, and noise."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    x = torch.zeros(rows, CLASSES * PER_CLASS)
    for label in range(CLASSES):
        x[:, PER_CLASS * label : PER_CLASS * (label + 1)] = (labels == label)[:, None].float()
    return x + 0.2 * torch.randn(x.shape, generator=rng), labels


@pytest.fixture(scope="module")
def task() -> Task:
    return Task.of("modules", inputs(400, 0), inputs(240, 1))


@pytest.fixture(scope="module")
def modular(task: Task) -> Network:
    """Unit 4 c + i of its hidden layer reads the pattern of class c and nothing else, and speaks for c alone."""
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(16))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.eye(4).repeat_interleave(PER_CLASS, 1))
        model[2].bias.copy_(torch.tensor([0.3, 0.2, 0.1, 0.0]))
    return Network.of(model, task.train.inputs)


@pytest.fixture(scope="module")
def found(modular: Network, task: Task) -> LesionStudy:
    return lesion_study(modular, task, [ByCluster((2, 4)), BySelectivity(0.25)])


# ------------------------------------------------------------------------------------------------ what is known


def test_units_made_for_a_class_are_found_on_the_training_split(modular: Network, task: Task) -> None:
    made = selectivity(modular, task.train)
    assert made.preferred("0").tolist() == [label for label in range(4) for _ in range(4)]
    assert sorted(made.top("0", 2, 4)) == [8, 9, 10, 11]


def test_their_lesions_hurt_their_class_only_and_every_pair_dissociates(found: LesionStudy) -> None:
    assert found.intact == 1.0 and found.intact_by_class == (1.0,) * 4 and found.counts == (60,) * 4
    for place, one in enumerate(found.selective):
        losses = [loss.lost.best for loss in one.classes]
        assert one.units == {"0": tuple(range(4 * place, 4 * place + 4))}
        assert losses[place] > 0.5 and sum(losses) == losses[place]
        assert one.classes[place].p_value is not None and one.classes[place].p_value < 0.01
    assert {pair.verdict for pair in found.dissociations} == {DOUBLE} and len(found.dissociations) == 6
    pair = found.dissociations[0]
    assert pair.classes == ("0", "1") and pair.shared == 0.0
    assert all(estimate.low > 0 for estimate in (*pair.within, *pair.between))


def test_clusters_are_the_modules_and_smaller_ones_lie_within_larger(found: LesionStudy) -> None:
    sets = [set(one.units["0"]) for one in found.of("cluster")]
    assert all(set(range(at, at + 4)) in sets for at in range(0, 16, 4))
    assert len({frozenset(one) for one in sets}) == len(sets)  # none is tried twice
    assert all(one <= other or other <= one or not one & other for one in sets for other in sets)


def test_a_group_whose_units_stand_in_for_each_other_costs_more_than_they_do(found: LesionStudy) -> None:
    for one in found.selective:
        assert one.single_units == pytest.approx(0.0, abs=0.02)
        assert one.interaction is not None and one.interaction > 0.1


def test_the_verdicts_say_so(found: LesionStudy) -> None:
    answers = {one.question: one.answer for one in judge_lesions(found)}
    assert answers["Do lesions of two classes doubly dissociate?"] == "yes, 6 of 6 pairs"
    assert answers["Do lesions of class-selective units hurt their class more than random ones?"].startswith(
        "yes, for 4"
    )
    assert answers["Does a group cost more than its units one at a time?"].endswith("do")


def test_losses_are_those_of_the_lesioned_network(modular: Network, task: Task, found: LesionStudy) -> None:
    one = found.selective[1]
    dead = Anatomy.of(modular).entries(Unit("0", unit) for unit in one.units["0"]).outgoing["2.weight"]
    hurt = modular.with_weights({"2.weight": modular.weights["2.weight"].masked_fill(dead, 0.0)})
    for place in range(4):
        of_class = task.test.take((task.test.targets == place).nonzero().flatten())
        lost = task.score(modular, of_class) - task.score(hurt, of_class)
        assert one.classes[place].lost.best == pytest.approx(lost)
    assert one.whole.lost.best == pytest.approx(found.intact - task.score(hurt))


def test_a_network_without_modules_shows_no_dissociation(task: Task) -> None:
    torch.manual_seed(0)
    net = Network.of(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), task.train.inputs)
    made = lesion_study(net, task, [BySelectivity(0.1)], draws=6, single_units=False)
    assert made.verdicts(DOUBLE) == () and made.guides == ()
    assert (
        "no dissociation is shown"
        in {one.question: one.answer for one in judge_lesions(made)}["Do lesions of two classes doubly dissociate?"]
    )


def test_shuffled_labels_of_stimuli_hurt_no_class_of_theirs(modular: Network, task: Task) -> None:
    mixed = [
        task.splits[name].targets[torch.randperm(len(task.splits[name]), generator=torch.Generator().manual_seed(seed))]
        for seed, name in enumerate(("train", "test"))
    ]
    made = lesion_study(modular, task, [BySelectivity(0.25)], stimuli=(mixed[0], mixed[1]), draws=20)
    assert made.verdicts(DOUBLE) == ()


# ------------------------------------------------------------------------------------------------ the table


def test_the_table_is_tidy(found: LesionStudy) -> None:
    rows = found.rows
    assert len(rows) == len(found.lesions) * 5 and all(tuple(row) == COLUMNS for row in rows)
    assert len({(row["lesion"], row["class"]) for row in rows}) == len(rows)
    for row in rows:
        assert row["lost"] == pytest.approx(row["intact"] - row["lesioned"])
        assert row["low"] <= row["lost"] <= row["high"]
        assert row["control_low"] <= row["control"] <= row["control_high"]
        assert (row["interaction"] is None) == (row["class"] != "all")
    assert rows[-1]["units"] == "0:12-15" and rows[-1]["n"] == 60


def test_the_same_seed_gives_the_same_and_nothing_is_changed(modular: Network, task: Task, found: LesionStudy) -> None:
    with untouched(modular, task):
        again = lesion_study(modular, task, [ByCluster((2, 4)), BySelectivity(0.25)])
    assert again.rows == found.rows
    other = lesion_study(modular, task, [BySelectivity(0.25)], seed=1)
    assert other.selective[0].whole.control != again.selective[0].whole.control


def test_steps_that_are_remembered_are_not_done_again(
    modular: Network, task: Task, monkeypatch: pytest.MonkeyPatch, found: LesionStudy
) -> None:
    kept: dict[str, dict[str, object]] = {}
    survey = Survey.of(modular, task, [ByCluster((2, 4)), BySelectivity(0.25)])
    survey.run(lambda name, make: kept.setdefault(name, make()))
    assert len(kept) == survey.steps and set(survey.prices) == {"lesions", "random lesions", "single units"}

    def work(*args: object, **options: object) -> None:
        raise AssertionError("work that had been done already")

    monkeypatch.setattr(bench, "ablate", work)
    again = Survey.of(modular, task, [ByCluster((2, 4)), BySelectivity(0.25)]).run(lambda name, make: kept[name])
    assert again.rows == found.rows


def test_small_rooms_and_other_scores_give_the_same_losses(
    modular: Network, task: Task, found: LesionStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "ROOM", 1)
    whole = Score("share", lambda y, t: float((y.argmax(1) == t).float().mean()))
    made = lesion_study(modular, replace(task, scorer=whole), [BySelectivity(0.25)], single_units=False)
    assert any("no mean over examples" in note for note in made.notes) and made.class_score == "accuracy"
    for one, other in zip(made.selective, found.selective, strict=True):
        assert one.whole.lost.best == pytest.approx(other.whole.lost.best) and not one.whole.lost.has_interval
        assert [loss.lost for loss in one.classes] == [loss.lost for loss in other.classes]
        assert [loss.control for loss in one.classes] == [loss.control for loss in other.classes]


# ------------------------------------------------------------------------------------------------ other networks


def test_layers_clusters_by_place_and_single_layers_have_their_controls(task: Task) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 4))
    net = Network.of(model, task.train.inputs)
    sheet = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
    by = [ByLayer(), ByCluster((3,), {"0": sheet})]
    made = lesion_study(net, task, by, draws=4, single_units=False)
    assert [one.name for one in made.of("layer")] == ["0", "2"]
    assert all(one.whole.control is not None for one in made.lesions)
    places = [sheet[list(one.units["0"])] for one in made.of("cluster")]
    assert len(places) == 3 and all(bool((torch.cdist(some, some) < 2.5).all()) for some in places)
    alone = lesion_study(net, task, [ByLayer()], what=EachUnit(layers=("2",)), draws=4, single_units=False)
    assert alone.lesions[0].whole.control is None and alone.rows[0]["control_p"] is None


def test_a_regression_has_losses_of_the_whole_score_only() -> None:
    x = torch.linspace(-1, 1, 120).reshape(-1, 1).repeat(1, 3)
    line = Task.of("line", (x, x[:, :1].abs()), (x, x[:, :1].abs()), loss="mse", score="r2")
    torch.manual_seed(0)
    net = Network.of(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), x)
    made = lesion_study(net, line, draws=4)
    assert made.classes == () and made.dissociations == () and not made.lesions[0].whole.lost.has_interval
    assert {row["class"] for row in made.rows} == {"all"}
    assert made.lesions[-1].whole.control is not None and math.isfinite(made.lesions[-1].whole.control.high)
    with pytest.raises(InputError, match="stimuli="):
        lesion_study(net, line, [BySelectivity()])


@pytest.mark.parametrize("score", ["accuracy", "minus error"])
def test_stimuli_may_have_classes_of_their_own(score: str, modular: Network, task: Task) -> None:
    if score != "accuracy":
        each = Score("minus error", lambda y, t: float(-y.std()), per_example=lambda y, t: -y.square().mean(1))
        task = replace(task, scorer=each, classes=None)
    halves = tuple(task.splits[name].targets // 2 for name in ("train", "test"))
    made = lesion_study(modular, task, [BySelectivity(0.5)], stimuli=(halves[0], halves[1]), draws=4)
    assert made.classes == ("0", "1") and made.counts == (120, 120)
    assert [one.units["0"] for one in made.selective] == [tuple(range(8)), tuple(range(8, 16))]
    assert made.guides[0].units == 16


def test_responses_are_mean_activations_whether_replayed_or_watched() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(5 * 9, 6), nn.Tanh(), nn.Linear(6, 2)),
    ).eval()
    x = torch.randn(30, 1, 6, 6)
    net = Network.of(model, x)
    data = Data(x, torch.zeros(30, dtype=torch.long))
    made = responses(net, data, ["0", "5"])
    with torch.no_grad():
        assert torch.allclose(made.layers["0"], model[:3](x).mean((2, 3)).double(), atol=1e-6)
        assert torch.allclose(made.layers["5"], model[:7](x).double(), atol=1e-6)
    groups, program = Anatomy.of(net).groups, Program.of(net)
    assert isinstance(program, Program)
    watched, unknown = _watched(net, groups, x)
    replayed = _replayed(program, groups, x)
    assert unknown == {} and all(torch.allclose(watched[layer], replayed[layer]) for layer in ("0", "5"))


def test_a_tapped_recurrent_network_has_responses_too() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    torch.manual_seed(0)
    x, y = torch.randn(40, 5, 3), torch.arange(40) % 2
    net = tap(Network.of(Last(), x), ["rnn"])
    made = responses(net, Data(x, y), ["rnn"])
    with torch.no_grad():
        steps = net.to_module().rnn(x)[0].mean(1).double()
    assert made.unknown == {} and torch.allclose(made.layers["rnn"], steps, atol=1e-6)


def test_a_dead_unit_is_selective_for_nothing_and_clusters_with_the_dead(modular: Network, task: Task) -> None:
    mute = modular.with_weights(
        {"0.weight": modular.weights["0.weight"].clone().index_fill_(0, torch.tensor([3, 9]), 0)}
    )
    made = selectivity(mute, task.train)
    assert bool((made.layers["0"][[3, 9]] == 0).all()) and bool(made.layers["0"].isfinite().all())
    places = profiles(responses(mute, task.train, ["0"]).layers["0"])
    assert float(places[[3, 9]].abs().max()) == 0.0
    assert any({3, 9} <= set(group) for group in clusters(places, [6], "0")[6])


# ------------------------------------------------------------------------------------------------ the statistics


@given(
    sizes=st.lists(st.integers(2, 30), min_size=1, max_size=3),
    draws=st.integers(2, 5),
    seed=st.integers(0, 100),
    data=st.data(),
)
@settings(deadline=None, max_examples=30)
def test_controls_have_the_size_and_the_layers_of_the_lesion(
    sizes: list[int], draws: int, seed: int, data: st.DataObject
) -> None:
    model = nn.Sequential(*(part for n in sizes for part in (nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 4))))
    groups = Anatomy.of(Network.of(model, torch.ones(2, 4))).select(("neuron",))
    taken = {
        group.layer: tuple(range(data.draw(st.integers(1, group.count - 1)))) for group in groups if group.count > 1
    }
    chosen = [Chosen("s", "selectivity", "s", taken, "as the selective lesions", 0)]
    made = controls(chosen, groups, draws, seed)["as the selective lesions"]
    assert len(made.orders) == draws and made.counts == (chosen[0].size,)
    for order in made.orders:
        assert len(set(order)) == len(order) == chosen[0].size
        assert {layer: sum(unit.layer == layer for unit in order) for layer in taken} == {
            layer: len(units) for layer, units in taken.items()
        }


def test_intervals_of_losses_cover_the_truth_and_do_not_close() -> None:
    rng, n, inside = np.random.default_rng(0), 60, 0
    for _ in range(1000):
        change = rng.choice([-1.0, 0.0, 1.0], n, p=[0.15, 0.8, 0.05])
        lost = Change(n, change.sum(), (change**2).sum(), 1.0).lost
        inside += lost.low <= 0.1 <= lost.high
    assert 0.93 < inside / 1000 < 0.985
    still = Change(n, 0.0, 0.0, 1.0).lost
    assert still.low < 0 == still.best < still.high


def test_random_lesions_are_rarely_called_worse_than_random() -> None:
    rng = np.random.default_rng(1)
    wrong = sum(p_control(draws[0], list(draws[1:])) < 0.05 for draws in rng.normal(0.2, 0.1, (2000, 11)))
    assert 0.01 < wrong / 2000 < 0.04  # two-sided, and claimed on one side only
    drawn = rng.normal(0.2, 0.1, (2000, 11))
    inside = [control_interval(list(draws[1:])) for draws in drawn]
    covered = sum(one.low <= draws[0] <= one.high for one, draws in zip(inside, drawn, strict=True))
    assert 0.935 < covered / 2000 < 0.965


def crossing(losses: list[list[float]], draws: list[list[float]], n: int = 80) -> Crossing:
    """Losses of accuracies [lesion][class], lesions independent of each other."""
    changes = [[Change(n, -n * loss, n * abs(loss), 1.0) for loss in row] for row in losses]
    products = [[n * losses[i][i] * losses[j][i] for j in range(len(losses))] for i in range(len(losses))]
    shared = {(i, j): 0.0 for i in range(len(losses)) for j in range(len(losses))}
    return Crossing([str(at) for at in range(len(losses))], changes, products, draws, shared)


QUIET = [[0.05, 0.04], [0.03, 0.05], [0.04, 0.06], [0.05, 0.02], [0.06, 0.05]]


@pytest.mark.parametrize(
    ("losses", "draws", "verdict"),
    [
        ([[0.7, 0.1], [0.1, 0.7]], QUIET, DOUBLE),
        ([[0.7, 0.1], [0.4, 0.4]], QUIET, SINGLE),
        ([[0.7, 0.1], [0.7, 0.1]], QUIET, NONE),  # the first class is merely the weaker one
        ([[0.9, 0.5], [0.2, 0.3]], QUIET, SINGLE),  # the first lesion is merely the larger one
        ([[0.7, 0.1], [0.1, 0.7]], [[0.6, 0.6], [0.8, 0.2], [0.2, 0.8], [0.7, 0.7]], NONE),  # so do random ones
        ([[0.05, 0.04], [0.04, 0.05]], QUIET, NONE),
    ],
)
def test_a_verdict_needs_both_ways_and_the_controls(
    losses: list[list[float]], draws: list[list[float]], verdict: str
) -> None:
    (pair,) = dissociations(crossing(losses, draws))
    assert pair.verdict == verdict
    assert verdict.split()[0] in pair.words and pair.to_dict()["verdict"] == verdict


def test_where_nothing_dissociates_a_pair_is_rarely_said_to() -> None:
    rng, doubles, singles = np.random.default_rng(2), 0, 0
    for _ in range(200):
        losses = (rng.binomial(80, 0.3, (2, 2)) / 80).tolist()
        draws = rng.normal(0.3, 0.05, (20, 2)).tolist()
        (pair,) = dissociations(crossing(losses, draws))
        doubles, singles = doubles + (pair.verdict == DOUBLE), singles + (pair.verdict == SINGLE)
    assert doubles == 0 and singles <= 4


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(deadline=None)
def test_corrected_p_values_keep_their_order_and_are_never_smaller(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, corrected, strict=True))
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    assert [corrected[at] for at in order] == sorted(corrected)
    assert corrected[order[0]] == pytest.approx(min(1.0, len(p_values) * p_values[order[0]]))


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": [BySelectivity()], "draws": 1}, "at least 2"),
        ({"by": []}, "at least one lesion"),
        ({"classes": [0]}, "two or more labels"),
        ({"classes": [0, 9]}, "two or more labels"),
        ({"stimuli": (torch.zeros(3), torch.zeros(240))}, "whole number for each of 240"),
        ({"stimuli": (torch.zeros(3, dtype=torch.long), torch.arange(240) % 2)}, "each of 360"),
        ({"stimuli": (torch.arange(360) // 359, torch.arange(240) % 2)}, "2 stimuli"),
        ({"by": [ByCluster((2,), {"nowhere": torch.zeros(16, 2)})]}, "nowhere"),
        ({"by": [ByCluster((2,), {"0": torch.zeros(15, 2)})]}, "16 units"),
        ({"by": [ByCluster((2,), {"0": torch.full((16, 2), math.nan)})]}, "finite"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], said: str, modular: Network, task: Task) -> None:
    with pytest.raises(InputError, match=said):
        lesion_study(modular, task, **options)  # type: ignore[arg-type]


def test_groupings_refuse_sizes_that_are_none(modular: Network, task: Task) -> None:
    for made in (
        lambda: BySelectivity(0.0),
        lambda: BySelectivity(1.0),
        lambda: ByCluster((1,)),
        lambda: ByCluster(()),
    ):
        with pytest.raises(InputError):
            made()
    with pytest.raises(AnatomyError, match="elsewhere"):
        lesion_study(modular, task, what=EachUnit(layers=("elsewhere",)))
    with pytest.raises(InputError, match="two classes or more"):
        selectivity(modular, task.train, torch.zeros(360, dtype=torch.long))
    assert BySelectivity(0.9).size(2) == 1 and BySelectivity(0.01).size(5) == 1


def test_of_many_classes_the_most_frequent_are_told_apart(
    modular: Network, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "MOST", 3)
    made = lesion_study(modular, task, [ByLayer()], draws=2, single_units=False)
    assert made.classes == ("0", "1", "2") and "3 most frequent of 4" in made.notes[0]
    named = lesion_study(modular, task, [BySelectivity(0.25)], classes=(3, 1), draws=4, single_units=False)
    assert named.classes == ("3", "1") and [one.label for one in named.selective] == ["3", "1"]
    assert named.dissociations[0].verdict == DOUBLE


# ------------------------------------------------------------------------------------------------ the report


def document(found: LesionStudy) -> dict[str, object]:
    verdicts = [one.to_dict() for one in judge_lesions(found)]
    task = {"name": "modules", "score": found.score, "chance": 0.25}
    return {
        "command": "lesion",
        "task": task,
        "network": {"name": "modular"},
        "rows": found.rows,
        "verdicts": verdicts,
        "lesion_study": found.to_dict(),
    }


def test_the_report_has_both_figures_and_all_tables(found: LesionStudy) -> None:
    read = Found.of(document(found))
    assert headline(read) == "Intact 100.0%: lesions of selective units doubly dissociate 6 of 6 pairs of classes"
    heat = selective_figure(read)
    assert heat is not None
    values = heat.data[0].z
    assert [max(range(4), key=lambda at, row=row: row[at]) for row in values[:4]] == [0, 1, 2, 3]  # type: ignore[misc]
    assert heat.data[0].y[-1] == "random units" and len(heat.layout.shapes) == 4
    bars = regions_figure(read)
    assert bars is not None and len(bars.data[0].x) == len(read.regions) and len(bars.data) == 3
    triangle = pairs_figure(read)
    assert triangle is not None and sum(value == 2 for row in triangle.data[0].z for value in row) == 6
    for made in (lesion_table(read), selective_table(read), pair_table(read), guide_table(read)):
        assert made is not None and made["blocks"][0]["lines"]
    page = render(document(found))
    for words in ("Double dissociation", "Region by region", "Does selectivity predict damage?", "Control lesion"):
        assert words in page


def test_a_report_of_nothing_or_of_nonsense_is_still_a_page() -> None:
    empty = Found.of({"lesion_study": {"lesions": [], "classes": None}})
    assert headline(empty) == "No lesion has been measured" and verdict(empty)
    for made in (selective_figure, region_classes_figure, regions_figure, pairs_figure):
        assert made(empty) is None
    odd = {
        "lesion_study": {
            "lesions": [{"name": "<b>x</b>", "lost": {"best": 0.1}, "label": 3, "classes": [{"lost": None}]}, 7],
            "classes": ["a", "b"],
            "dissociations": [{"classes": None, "verdict": "no dissociation"}],
            "guides": [{}],
        }
    }
    page = render(odd)
    assert "<b>x</b>" not in page


def test_the_study_reads_well_in_a_terminal(found: LesionStudy) -> None:
    said = str(found)
    assert "6 doubly dissociated" in said and "selective for 2" in said and "rank correlation" in said
    assert ranges({"a": (1, 2, 3, 9), "b": (0,)}) == "a:1-3,9 b:0"
