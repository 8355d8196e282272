"""Sequential estimates: their intervals cover what they say, they stop when told to, and looking at all is exact."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import NETWORKS
from planaria.core.anatomy import Unit
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.data import Data
from planaria.measure.scores import Score
from planaria.measure.statistics import numpy_generator, wilson
from planaria.measure.task import Task
from planaria.sweep.ablate import ablate
from planaria.sweep.certify import Certifier
from planaria.sweep.edges import Becomes
from planaria.sweep.lesions import EachUnit, EachWeight, Nested
from planaria.sweep.precision import LEVEL, Intervals, looks, mean_changes, planned_inputs, precise
from planaria.sweep.tally import Tally

POPULATION = 10_000


def trinomial(rose: Tensor, fell: Tensor) -> Tally:
    return Tally((rose - fell).double(), rose, fell, (rose + fell).double())


def stopped(rises: int, falls: int, precision: float, repeats: int) -> tuple[Tensor, Tensor]:
    """Whether the interval at the stop covers, and inputs seen, for many orders of one population."""
    rng = numpy_generator(stream(0, "population", rises, falls))
    rose, fell, seen = (np.zeros(repeats, dtype=np.int64) for _ in range(3))
    covered, used = torch.zeros(repeats, dtype=torch.bool), torch.zeros(repeats, dtype=torch.int64)
    left = torch.ones(repeats, dtype=torch.bool)
    for before, upto in pairwise([0, *looks(POPULATION)]):
        more, unseen = upto - before, POPULATION - before
        up = rng.hypergeometric(rises - rose, unseen - (rises - rose), more)
        others = unseen - (rises - rose) - (falls - fell)
        down = rng.hypergeometric(falls - fell, others, more - up)
        rose, fell, seen = rose + up, fell + down, seen + more
        found = mean_changes(trinomial(torch.tensor(rose), torch.tensor(fell)), upto, POPULATION, LEVEL)
        now = left & (found.half <= precision)
        covered[now] = found.covers(torch.tensor((rises - falls) / POPULATION, dtype=torch.float64))[now]
        used[now], left = upto, left & ~now
    return covered, used


POPULATIONS = [
    (0, 20),
    (0, 50),
    (10, 100),
    (0, 150),
    (30, 150),
    (0, 300),
    (100, 200),
    (100, 500),
    (0, 1000),
    (500, 900),
]


def test_intervals_at_the_stop_cover_95_percent_of_orders() -> None:
    shares = {}
    for rises, falls in POPULATIONS:
        covered, _ = stopped(rises, falls, 0.005, 1500)
        shares[rises, falls] = float(covered.double().mean())
    assert min(shares.values()) >= 0.935, shares  # 95 % less 2.6 standard errors of 1,500 draws
    often = [share for (rises, falls), share in shares.items() if rises + falls >= 100]
    assert 0.945 <= sum(often) / len(often) <= 0.975, shares
    # Where hardly anything changes counts are too small to cover no more than asked.
    assert max(shares.values()) == pytest.approx(1.0, abs=0.03)


def test_rare_changes_need_few_inputs_and_frequent_ones_more() -> None:
    used = [float(stopped(0, falls, 0.005, 300)[1].double().mean()) for falls in (0, 30, 150, 1000)]
    assert used == sorted(used)
    assert used[0] <= 1000 and used[1] <= 1500 and used[-1] < POPULATION


def test_half_widths_are_as_wanted_at_the_stop() -> None:
    net, task = NETWORKS["mlp-relu"].network(), many("mlp-relu", 1500)
    found = precise(net, EachUnit(), task, precision=0.02)
    for key, lost in found.lost.items():
        assert bool((lost.half <= 0.02).all()), key
        assert bool((lost.low <= lost.best).all()) and bool((lost.best <= lost.high).all())


def many(name: str, count: int) -> Task:
    """The case's task with more test inputs, labelled by the network itself with some noise."""
    case = NETWORKS[name]
    net, inputs = case.network(), 3 * case.inputs(count, "many")  # large, so that units matter
    outputs = net(inputs)
    noise = torch.randn(outputs.shape, generator=stream(0, "labels")).to(outputs) * outputs.std() / 2
    data = Data(inputs, (outputs + noise).argmax(1))
    return Task.of(name, data, data, validation=data, classes=case.classes)


@pytest.mark.parametrize("name", ["mlp-relu", "cnn-batchnorm", "residual", "transformer-pre-norm"])
def test_looking_at_every_input_is_exact(name: str) -> None:
    net, task = NETWORKS[name].network(), many(name, 300)
    truth = ablate(net, EachUnit(), task, bitwise=True, audited=0).lost
    found = precise(net, EachUnit(), task, precision=0.0)
    assert found.share == 1.0 and found.lost.keys() == truth.keys()
    for key, lost in found.lost.items():
        assert torch.allclose(lost.best, truth[key], atol=1e-12), key
        assert torch.equal(lost.low, lost.high) and bool((found.seen[key] == 300).all())


def test_intervals_of_a_network_cover_its_units() -> None:
    net, task = NETWORKS["cnn-batchnorm"].network(), many("cnn-batchnorm", 1200)
    truth = ablate(net, EachUnit(), task, audited=0).lost
    covered, shares = [], []
    for seed in range(4):
        found = precise(net, EachUnit(), task, precision=0.02, seed=seed, bitwise=True)
        covered += [found.lost[key].covers(truth[key]).double().mean() for key in truth]
        shares.append(found.share)
    assert float(torch.stack(covered).mean()) >= 0.9 and max(shares) < 1.0


def test_precise_lesions_are_left_alone() -> None:
    net, task = NETWORKS["mlp-relu"].network(), many("mlp-relu", 1200)
    truth = ablate(net, EachUnit(layers=("0",)), task, audited=0).lost["0"]
    weak = int(truth.abs().argmin())
    lesions = [Unit("0", weak), [Unit("0", index) for index in range(7)]]
    found = precise(net, lesions, task, precision=0.02)
    seen = found.seen["lesions"]
    assert int(seen[0]) < int(seen[1]) <= 1200
    again = precise(net, lesions, task, precision=0.02)
    assert torch.equal(found.lost["lesions"].best, again.lost["lesions"].best)
    both = precise(net, lesions, task, precision=0.0)
    assert float(both.lost["lesions"].best[0]) == pytest.approx(float(truth[weak]))


def test_a_way_that_brute_force_contradicts_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    net, task = NETWORKS["mlp-relu"].network(), many("mlp-relu", 600)
    honest, real = precise(net, EachUnit(), task, precision=0.0), Certifier.__call__

    def lying(self: Certifier, *args: Tensor) -> tuple[dict[str, Tally], Tensor]:
        found, intact = real(self, *args)
        if "2" in found:
            found["2"].fell[3] += 100
        return found, intact

    monkeypatch.setattr(Certifier, "__call__", lying)
    found = precise(net, EachUnit(), task, precision=0.0)
    assert found.audit.mismatches > 0 and found.audit.replaced == ("2",)
    assert all(torch.equal(found.lost[layer].best, lost.best) for layer, lost in honest.lost.items())


def test_a_unit_that_overflows_is_better_dead() -> None:
    net, task = overflowing()
    found = precise(net, EachUnit(), task, precision=0.0)
    assert found.audit.mismatches == 0
    assert found.lost["0"].best.tolist() == [-1.0, 0.0]


def overflowing() -> tuple[Network, Task]:
    """A network whose first unit makes every output infinite, and a task that the second unit alone would solve."""
    broken = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    broken[0].weight.data.copy_(torch.tensor([[1e30, 0.0], [0.0, 1.0]]))
    broken[2].weight.data.copy_(torch.tensor([[1e30, 1.0], [0.0, 2.0]]))
    inputs = torch.rand(300, 2, generator=stream(0, "x")) + 0.1
    data = Data(inputs, torch.ones(300, dtype=torch.int64))
    return Network.of(broken, inputs), Task.of("overflowing", data, data, validation=data)


def test_weights_and_orders_go_on_together() -> None:
    net, task = NETWORKS["mlp-relu"].network(), many("mlp-relu", 600)
    order = tuple(Unit("0", index) for index in range(7))
    for what in (EachWeight(Becomes(0.0), ("2",)), Nested((order,), (0, 3, 7))):
        truth = ablate(net, what, task, audited=0).lost
        found = precise(net, what, task, precision=0.0)
        for key in truth:
            assert found.lost[key].best.shape == truth[key].shape
            assert torch.allclose(found.lost[key].best, truth[key], atol=1e-12)
        rough = precise(net, what, task, precision=0.2)
        assert all(len(seen.unique()) == 1 for seen in rough.seen.values()) and rough.share < 1.0


def closeness(outputs: Tensor, targets: Tensor) -> Tensor:
    return -(outputs.softmax(1).gather(1, targets[:, None])[:, 0] - 1).abs()


CLOSENESS = Score("closeness", lambda y, t: float(closeness(y, t).mean()), per_example=closeness)


def test_other_scores_have_intervals_too() -> None:
    net, task = NETWORKS["mlp-tanh"].network(), many("mlp-tanh", 2000)
    truth = ablate(net, EachUnit(), task, score=CLOSENESS, audited=0).lost
    found = precise(net, EachUnit(), task, score=CLOSENESS, precision=0.01)
    assert found.share < 0.9
    covered = torch.cat([found.lost[key].covers(truth[key]) for key in truth])
    assert float(covered.double().mean()) >= 0.8
    exact = precise(net, EachUnit(), task, score=CLOSENESS, precision=0.0)
    assert all(torch.allclose(exact.lost[key].best, truth[key], atol=1e-6) for key in truth)


def test_few_changes_of_any_size_have_no_interval_yet() -> None:
    tally = Tally.zeros((2,))
    for lesion, changed in enumerate((29, 31)):
        tally.note(lesion, 0.3 * (torch.arange(500) < changed).double(), torch.zeros(500), torch.zeros(500))
    found = mean_changes(tally, 500, 1000)
    assert math.isinf(float(found.half[0])) and 0 < float(found.half[1]) < 0.02
    assert float(mean_changes(tally, 500, 500).half.max()) == 0.0


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_intervals_are_in_order_and_mirrored(inputs: int, part: float, up: float, down: float) -> None:
    seen = max(1, round(part * inputs))
    rose = torch.tensor([round(up * seen)])
    fell = torch.tensor([round(down * (seen - int(rose)))])
    found, other = mean_changes(trinomial(rose, fell), seen, inputs), mean_changes(trinomial(fell, rose), seen, inputs)
    assert float(found.low) <= float(found.best) <= float(found.high)
    assert found.low.allclose(-other.high, atol=1e-12) and found.high.allclose(-other.low, atol=1e-12)
    if seen == inputs:
        assert float(found.half) == 0.0
    elif inputs > 1:
        assert float(found.half) > 0.0


def test_falls_alone_in_a_large_population_have_wilsons_interval() -> None:
    found = mean_changes(trinomial(torch.tensor([0]), torch.tensor([40])), 400, 10**9).estimate(0)
    known = wilson(40, 400)
    assert found.low == pytest.approx(-known.high, abs=2e-3)
    assert found.high == pytest.approx(-known.low, abs=2e-3)


def test_looks_are_few_ascending_and_end_with_all_inputs() -> None:
    for inputs in (1, 249, 251, 1000, 10_000, 1_000_000):
        found = looks(inputs)
        assert found[-1] == inputs and list(found) == sorted(set(found)) and len(found) <= 24


def test_nonsense_is_refused() -> None:
    net, task = NETWORKS["mlp-relu"].network(), NETWORKS["mlp-relu"].task()
    with pytest.raises(InputError, match="half-width"):
        precise(net, EachUnit(), task, precision=-0.1)
    with pytest.raises(InputError, match="half-width"):
        precise(net, EachUnit(), task, precision=math.nan)
    with pytest.raises(InputError, match="inputs"):
        mean_changes(Tally.zeros((1,)), 11, 10)


def counted(changes: Tensor) -> Tally:
    """Tally of changes [orders, points, examples]."""
    found = Tally.zeros(changes.shape[:2])
    none = torch.zeros(changes.shape[2])
    found.note(0, changes.flatten(0, 1), none, none)
    return found


def test_planned_inputs_follow_the_two_variances() -> None:
    rng = stream(0, "pilot")
    pilot = 0.5 + 0.05 * torch.randn(400, 1, 1, generator=rng) + 0.3 * torch.randn(400, 1, 300, generator=rng)
    exact = 0.09 / (0.15 * 0.0025 + 0.09 / 10_000)
    assert planned_inputs(counted(pilot), 300, 10_000) == pytest.approx(exact, rel=0.15)
    # A point without any difference between orders asks for more, one without noise for less.
    flat = torch.cat([pilot, 0.3 * torch.randn(400, 1, 300, generator=rng)], 1)
    assert planned_inputs(counted(flat), 300, 10_000) > 1.5 * planned_inputs(counted(pilot), 300, 10_000)
    assert planned_inputs(counted(pilot), 300, 10_000, noise=0.5) < planned_inputs(counted(pilot), 300, 10_000)


def test_orders_that_do_not_differ_need_all_inputs_and_sure_ones_a_single_one() -> None:
    rng = stream(1, "pilot")
    same = (torch.rand(1, 3, 500, generator=rng) < 0.5).double().expand(8, 3, 500)
    assert planned_inputs(counted(same), 500, 2000) == 2000
    assert planned_inputs(counted(torch.rand(8, 1, 1, generator=rng).double().expand(8, 1, 64)), 64, 2000) <= 2
    with pytest.raises(InputError, match="two orders"):
        planned_inputs(Tally.zeros((1, 2)), 10, 100)


def test_intervals_turn_round() -> None:
    some = Intervals(torch.tensor([-0.3]), torch.tensor([-0.1]), torch.tensor([0.2]))
    assert some.reversed().estimate(0).low == pytest.approx(-0.2) and float(some.half) == pytest.approx(0.25)
