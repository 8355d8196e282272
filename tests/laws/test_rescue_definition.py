"""Law: "rescued" means what the definition says; validation decides, test only reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from cases import trained
from planaria.core.errors import InputError
from planaria.core.motion import Cost, Flow, Moment, updates
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits
from planaria.measure.scores import Score
from planaria.measure.statistics import kaplan_meier
from planaria.measure.task import Data, Task
from planaria.repair.retrain import SGD, Retrain
from planaria.study.rescue import Attempt, Criterion, Schedule, attempt, compare, leave, rescue, summarise
from purity import state

# A network whose validation score is its bias: then a flow can be given any history of scores.
DATA = Data(torch.zeros(4, 2).double(), torch.zeros(4))
DIAL = Score("dial", lambda outputs, targets: float(outputs.mean()), lambda targets: 0.0)
TASK = Task("dial", DATA, DATA, DATA, nn.functional.mse_loss, DIAL, None)


class Dial(nn.Module):
    """Gives its one weight as output, and has a unit that can be deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.unit, self.read = nn.Linear(2, 1), nn.Linear(1, 1)
        self.score = nn.Parameter(torch.tensor(1.0))
        for part in (self.unit, self.read):
            nn.init.zeros_(part.bias)
            nn.init.zeros_(part.weight)

    def forward(self, x: Tensor) -> Tensor:
        return (self.read(torch.relu(self.unit(x))) + self.score).squeeze(1)


with torch.random.fork_rng():
    NET = Network.of(Dial().double(), DATA.inputs)


def history(scores: Sequence[float], endless: bool = False) -> Flow:
    """A flow whose moments have these scores, one update each."""

    def flow(net: Network, rng: Generator, /) -> Iterator[Moment]:
        del rng
        at = 0
        while at < len(scores) or endless:
            score = scores[min(at, len(scores) - 1)]
            at += 1
            yield Moment(scoring(net, score), Cost(backward_passes=at))

    return flow


@dataclass(frozen=True)
class Drop:
    """A fault after which the network scores this."""

    to: float

    def strike(self, net: Network, slices: object, rng: Generator, /) -> Network:
        return scoring(net, self.to)


def scoring(net: Network, score: float) -> Network:
    return net.with_weights({"score": torch.tensor(score, dtype=torch.float64)})


def told(
    scores: Sequence[float],
    damaged: float = 0.0,
    *,
    endless: bool = False,
    within: int = 100,
    net: Network = NET,
    **criterion: Any,
) -> Attempt:
    """The attempt in which the network scores 1, then `damaged`, then these."""
    settings = {"tolerance": 0.1, "consecutive": 3, "every": 1, **criterion}
    return attempt(
        net,
        Damage(Drop(damaged), RandomUnits()),
        1.0,
        history(scores, endless),
        TASK,
        within=updates(within),
        criterion=Criterion(**settings),
    )


def when(one: Attempt) -> int | None:
    return None if one.rescue_cost is None else one.rescue_cost.backward_passes


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.5, 0.95, 0.95, 0.95], 2),  # the first of three in a row
        ([0.95, 0.95, 0.5, 0.95, 0.95, 0.95], 4),  # two in a row are not enough
        ([0.95, 0.5, 0.95, 0.5, 0.95, 0.5], None),
        ([0.9] * 3, 1),  # the tolerance itself counts
        ([0.8999] * 9, None),
        ([1.0] * 3 + [0.0] * 5, 1),  # lost again later: it was rescued
        ([0.5, 0.95], 2),  # a flow that ends by itself is judged by its last ones
        ([0.5, 0.95, 0.95], 2),
        ([0.95, 0.5], None),
        ([float("nan"), 0.95, 0.95, 0.95], 2),
        ([], None),
    ],
)
def test_rescued_means_several_good_evaluations_in_a_row(scores: list[float], expected: int | None) -> None:
    one = told(scores)
    assert when(one) == expected
    assert one.rescued == (expected is not None)


def test_a_loss_of_exactly_the_tolerance_is_within_it() -> None:
    for before in range(2, 101):
        net = scoring(NET, before / 100)
        assert when(told([(before - 1) / 100] * 3, net=net, tolerance=0.01)) == 1, f"{before} %"
        assert when(told([(before - 1.001) / 100] * 3, net=net, tolerance=0.01)) is None, f"{before} %"


def test_a_flow_cut_off_by_the_budget_needs_all_of_them() -> None:
    scores = [0.5, 0.95, 0.95]
    assert when(told(scores, endless=True, within=3)) is None
    assert when(told(scores, endless=True, within=4)) == 2
    assert when(told(scores, endless=False, within=100)) == 2


def test_what_was_good_before_the_last_hit_does_not_count() -> None:
    bites = iter([[1.0] * 10, [0.5] * 10])

    def flow(net: Network, rng: Generator, /) -> Iterator[Moment]:
        return history(next(bites), endless=True)(net, rng)

    one = attempt(
        NET,
        Damage(Drop(0.0), RandomUnits(kinds=("neuron", "branch"))),
        1.0,
        Schedule(flow, 2),
        TASK,
        within=updates(20),
        criterion=Criterion(0.1, 3, 1),
    )
    assert [look.validation for look in one.looks[: one.hit]][1:] == [1.0] * 10
    assert one.last_hit.backward_passes == 10
    assert not one.rescued


def test_a_lesion_that_does_no_harm_is_rescued_at_no_cost() -> None:
    assert when(told([1.0, 1.0, 1.0], damaged=0.95)) == 0
    assert when(told([0.5, 0.5, 0.5, 1.0], damaged=0.95, consecutive=2)) == 4
    assert when(told([], damaged=0.95)) == 0


def test_evaluations_happen_at_the_first_moment_every_so_many_and_at_the_end() -> None:
    one = told([0.1] * 10, every=4)
    assert [look.cost.backward_passes for look in one.looks] == [0, 1, 4, 8, 10]
    cut = told([0.1], endless=True, every=4, within=8)
    assert [look.cost.backward_passes for look in cut.looks] == [0, 1, 4, 8]


def test_the_attempt_reports_before_damaged_after() -> None:
    one = told([0.3, 0.7], damaged=0.2)
    assert [round(x, 6) for x in (one.before, one.damaged, one.after, one.validation_after)] == [1, 0.2, 0.7, 0.7]
    assert one.target == pytest.approx(0.9)


def test_a_repair_that_keeps_no_ledger_is_judged_all_the_same() -> None:
    def free(net: Network, rng: Generator, /) -> Iterator[Moment]:
        yield Moment(scoring(net, 1.0))

    one = attempt(NET, Damage(Drop(0.0), RandomUnits()), 1.0, free, TASK)
    assert (one.rescued, one.validation_after, one.after) == (True, 1.0, 1.0)


def test_doing_nothing_is_a_repair_that_ends_at_once() -> None:
    net, task = trained("clouds")
    one = attempt(net, Damage(Silence(), RandomUnits()), 0.9, leave, task)
    assert one.cost == Cost()
    assert one.after == one.damaged
    assert one.ended
    assert not one.rescued


# --------------------------------------------------------------------------------- validation decides


def other_test(task: Task) -> Task:
    """The same task with a test split of random labels."""
    labels = torch.randint(3, (len(task.test),), generator=stream(0, "labels"))
    return replace(task, test=Data(task.test.inputs, labels))


def test_the_test_split_changes_no_decision() -> None:
    net, task = trained("clouds")
    results = [
        rescue(
            net,
            Damage(Silence(), RandomUnits()),
            {"retrain": Retrain(task, SGD(0.05), batch=16)},
            swapped,
            doses=[0.4, 0.7],
            seeds=[0, 1],
            within=updates(30),
            criterion=Criterion(0.05, 2, 3),
        )
        for swapped in (task, other_test(task))
    ]
    for one, other in zip(results[0].attempts, results[1].attempts, strict=True):
        assert [look.validation for look in one.looks] == [look.validation for look in other.looks]
        assert (one.rescued, when(one)) == (other.rescued, when(other))
        assert state(one.network) == state(other.network)
        assert one.after != other.after


def test_the_validation_split_does() -> None:
    net, task = trained("clouds")
    labels = torch.randint(3, (len(task.validation),), generator=stream(1, "labels"))
    swapped = replace(task, validation=Data(task.validation.inputs, labels))
    flow = Retrain(task, SGD(0.05), batch=16)
    pair = [attempt(net, Damage(Silence(), RandomUnits()), 0.6, flow, t, within=updates(30)) for t in (task, swapped)]
    assert pair[0].validation_before != pair[1].validation_before
    assert pair[0].after == pair[1].after


# ------------------------------------------------------------------------------------------- summaries


def row(seed: int, rescue_at: int | None, total: int = 100, repair: str = "r", hit: int = 0) -> dict[str, Any]:
    def cost(updates_: int | None) -> dict[str, float] | None:
        return None if updates_ is None else {**dict.fromkeys(vars(Cost()), 0), "backward_passes": updates_}

    return {
        "repair": repair,
        "dose": 0.5,
        "seed": seed,
        "score_before": 0.9,
        "score_damaged": 0.5,
        "score_after": 0.8,
        "rescued": rescue_at is not None,
        "cost": cost(total),
        "cost_since_last_hit": cost(total - hit),
        "rescue_cost": cost(rescue_at),
        "rescue_cost_since_last_hit": None if rescue_at is None else cost(rescue_at - hit),
    }


def test_times_to_rescue_are_kaplan_meier_medians_with_censoring() -> None:
    times: list[int | None] = [10, 20, 30, None, None]
    (summary,) = summarise([row(seed, at) for seed, at in enumerate(times)])
    expected = kaplan_meier([10, 20, 30, 100, 100], [True, True, True, False, False]).median
    assert summary["rescue_updates"] == expected.to_dict()
    assert summary["rescue_updates"]["best"] == 30, "the mean over successes would be 20"
    assert (summary["rescued"], summary["trials"]) == (3, 5)


def test_early_censoring_is_not_taken_for_failure() -> None:
    rows = [row(0, 10), row(1, None, total=5), row(2, 30), row(3, 40)]
    (summary,) = summarise(rows)
    expected = kaplan_meier([10, 5, 30, 40], [True, False, True, True]).median
    assert summary["rescue_updates"] == expected.to_dict()


def test_a_median_that_is_never_reached_is_null() -> None:
    (mostly_lost,) = summarise([row(0, 10), row(1, None), row(2, None), row(3, None)])
    (all_lost,) = summarise([row(0, None), row(1, None)])
    assert mostly_lost["rescue_updates"] is None
    assert all_lost["rescue_updates"] is None
    assert all_lost["rescue_updates_since_last_hit"] is None


def test_both_countings_are_summarised() -> None:
    (summary,) = summarise([row(seed, 60, hit=50) for seed in range(3)])
    assert summary["rescue_updates"]["best"] == 60
    assert summary["rescue_updates_since_last_hit"]["best"] == 10


def test_one_summary_per_repair_and_dose_in_order() -> None:
    rows = [row(0, 1, repair="b"), row(0, 1, repair="a"), {**row(1, 1, repair="b"), "dose": 0.7}, row(1, 1, repair="b")]
    assert [(s["repair"], s["dose"], s["trials"]) for s in summarise(rows)] == [
        ("b", 0.5, 2),
        ("a", 0.5, 1),
        ("b", 0.7, 1),
    ]


def test_a_comparison_prints_one_line_per_repair() -> None:
    net, task = trained("clouds")
    result = compare(
        Damage(Silence(), RandomUnits()).at(0.6)(net, stream(0, "x")),
        {"nothing": leave, "retrain": Retrain(task, batch=16)},
        task,
        to=0.9,
        within=updates(5),
        seeds=2,
    )
    lines = str(result).splitlines()
    assert len(lines) == 3
    assert "nothing" in lines[1]
    assert "retrain" in lines[2]
    assert len(result.attempts) == 4
    assert all(a.target == pytest.approx(0.9) for a in result.attempts)


# ---------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repairs": {}}, "repairs"),
        ({"doses": []}, "doses"),
        ({"seeds": []}, "seeds"),
        ({"doses": [1.5]}, "dose"),
        ({"doses": [-0.1]}, "dose"),
        ({"doses": [float("nan")]}, "dose"),
    ],
)
def test_a_study_without_a_question_is_refused(options: dict[str, Any], message: str) -> None:
    net, task = trained("clouds")
    arguments = {"repairs": {"none": leave}, "doses": [0.5], "seeds": [0], **options}
    repairs = arguments.pop("repairs")
    with pytest.raises(InputError, match=message):
        rescue(net, Damage(Silence(), RandomUnits()), repairs, task, **arguments)


@pytest.mark.parametrize(
    "settings",
    [
        {"tolerance": -0.1},
        {"tolerance": float("nan")},
        {"tolerance": "x"},
        {"consecutive": 0},
        {"every": 0},
        {"every": 2.5},
    ],
)
def test_a_criterion_off_its_range_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"Criterion.{next(iter(settings))}"):
        Criterion(**settings)
