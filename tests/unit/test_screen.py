"""Screens: without bias whatever is predicted, intervals that cover, and with all pairs evaluated exact."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import NETWORKS
from planaria.core.errors import AnatomyError, InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.data import Data
from planaria.measure.scores import Score
from planaria.measure.task import Task
from planaria.sweep.ablate import ablate
from planaria.sweep.lesions import EachUnit
from planaria.sweep.screen import screen
from planaria.sweep.strata import Choice, Design, Screened


@dataclass(frozen=True, eq=False)
class Population:
    """Inputs and units with what first order says and what is true.

    Attributes:
        margin: [examples].
        slope: First-order change of the margin, [examples, units].
        change: Of the score if the answer changes, [examples].
        truth: Changes of the score, [examples, units].
        idle: Pairs known to change nothing.
    """

    margin: Tensor
    slope: Tensor
    change: Tensor
    truth: Tensor
    idle: Tensor

    @staticmethod
    def drawn(examples: int, units: int, seed: int, *, scale: float = 0.06, correlation: float = 0.9) -> Population:
        """Margins of a trained classifier and units of different weight; predictions correlate with the truth."""
        rng = stream(seed, "population", examples, units)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng)

        margin = normal(examples).abs() * 3
        size = scale * (0.8 * normal(units)).exp() * (0.5 * normal(examples, 1)).exp()
        slope = size * normal(examples, units)
        own = correlation + 0.3 * (1 - correlation) * normal(units)  # a unit may be predicted better than another
        error = size * normal(examples, units) * (0.5 * normal(units)).exp()
        true = own * slope + math.sqrt(1 - correlation**2) * error
        change = torch.where(torch.rand(examples, generator=rng) < 0.95, -1, 1)
        idle = torch.zeros(examples, units, dtype=torch.bool)
        return Population(margin, slope, change, change[:, None] * (margin[:, None] + true < 0), idle)

    def rows(self, start: int, stop: int) -> Population:
        return Population(*(tensor[start:stop] for tensor in vars(self).values()))

    def choice(self, design: Design, seed: int, groups: Tensor) -> Choice:
        return design.choose(self.margin, self.slope, self.change, self.idle, groups, stream(seed, "screen"))

    def screened(self, design: Design, seed: int, *, block: int = 2500, layers: int = 3) -> Screened:
        units = self.truth.shape[1]
        groups = torch.arange(units) * layers // units
        found: Screened | None = None
        for start in range(0, len(self.margin), block):
            part = self.rows(start, start + block)
            more = part.told(part.choice(design, 1000 * seed + start, groups))
            found = more if found is None else found + more
        assert found is not None
        return found

    def told(self, choice: Choice) -> Screened:
        units, rows = choice.pairs
        return choice.counted(self.truth[rows, units])

    @property
    def effects(self) -> Tensor:
        return self.truth.double().mean(0)


# ---------------------------------------------------------------------------------------------------- the estimate


def test_intervals_cover_95_percent_of_units_where_flips_are_rare() -> None:
    covered, flips, errors, unbiased = [], [], [], []
    for seed in range(4):
        population = Population.drawn(10_000, 64, seed, scale=0.05 * 2**seed)
        found = population.screened(Design.of(10_000, 0.05, 0.02), seed)
        intervals = found.intervals()
        covered.append(intervals.covers(population.effects))
        flips.append(population.truth.abs().double().mean(0))
        errors.append((intervals.best - population.effects).abs())
        unbiased.append((found.unbiased - population.effects).abs())
    shares = torch.cat(flips)
    assert 5e-4 < float(shares.quantile(0.1)) < 5e-3 and 0.01 < float(shares.quantile(0.9)) < 0.1
    share = float(torch.cat(covered).double().mean())
    assert 0.93 <= share <= 0.985, share  # of 256 units, which makes 97 % uncertain by 1.1 %
    assert float(torch.cat(errors).mean()) < 0.002
    assert float(torch.cat(errors).mean()) < float(torch.cat(unbiased).mean())  # pooling helps a single unit


def test_intervals_cover_where_next_to_nothing_is_left_to_chance() -> None:
    population = Population.drawn(10_000, 64, 9, scale=0.004)
    assert float(population.truth.abs().double().mean()) < 2e-3
    intervals = population.screened(Design.of(10_000, 0.05, 0.02), 0).intervals()
    assert float(intervals.covers(population.effects).double().mean()) >= 0.93  # counts too small to cover less
    assert float(intervals.half.max()) < 0.01


@pytest.mark.parametrize("correlation", [0.9, 0.0])
def test_estimates_have_no_bias_however_wrong_the_predictions_are(correlation: float) -> None:
    population = Population.drawn(400, 12, 5, scale=1.0, correlation=correlation)
    design = Design((0.05, 0.2), (1.0, 0.5, 0.1))
    found = torch.stack([population.screened(design, seed, block=200).unbiased for seed in range(200)])
    error = found.std(0) / math.sqrt(len(found))
    assert float(error.mean()) > 1e-4
    off = (found.mean(0) - population.effects).abs()
    assert bool((off <= 4 * error + 1e-12).all()), off / error
    # Twice as many evaluations, less noise.
    more = torch.stack(
        [population.screened(Design((0.2, 0.5), (1.0, 0.5, 0.2)), seed, block=200).unbiased for seed in range(60)]
    )
    assert float(more.std(0).mean()) < 0.8 * float(found.std(0).mean())


def test_evaluating_by_doubt_beats_an_even_share() -> None:
    population = Population.drawn(5_000, 30, 3, scale=0.1)
    even, graded = Design((0.0,), (1.0, 0.1)), Design.of(10_000, 0.1, 0.02)
    assert even.mean == pytest.approx(graded.mean, abs=1e-3)
    errors = [
        torch.stack([population.screened(design, seed).unbiased for seed in range(5)]) - population.effects
        for design in (even, graded)
    ]
    assert float(errors[1].square().mean()) < 0.1 * float(errors[0].square().mean())


def test_all_pairs_evaluated_leave_nothing_open() -> None:
    population = Population.drawn(500, 7, 1, scale=1.0)
    found = population.screened(Design.of(500, 1.0, 0.5), 0, block=500)
    assert torch.equal(found.taken, found.pairs)
    intervals = found.intervals()
    for name in ("low", "best", "high"):
        assert torch.allclose(getattr(intervals, name), population.effects, atol=1e-12)
    assert torch.allclose(found.unbiased, population.effects, atol=1e-12)


def test_numbers_of_disjoint_inputs_add() -> None:
    population = Population.drawn(600, 9, 2, scale=1.0)
    design, groups = Design((0.1,), (1.0, 0.3)), torch.arange(9) % 3
    parts = []
    for start in (0, 200, 400):
        part = population.rows(start, start + 200)
        parts.append(part.told(part.choice(design, start, groups)))
    one, other = parts[0] + parts[1] + parts[2], parts[2] + (parts[0] + parts[1])
    for name in ("predicted", "pairs", "taken", "rose", "fell"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert one.examples == 600 and int(one.pairs.sum()) == 600 * 9


@settings(deadline=None, max_examples=40)
@given(st.floats(0.02, 1.0), st.floats(0.0, 1.0))
def test_designs_spend_their_budget_and_leave_no_pair_out(share: float, part: float) -> None:
    budget = share + part * (1 - share)
    design = Design.of(10_000, budget, share)
    assert design.mean == pytest.approx(budget, abs=1e-6)
    assert min(design.chances) == share and list(design.chances) == sorted(design.chances, reverse=True)
    assert list(design.ends) == sorted(design.ends) and design.ends[-1] <= 1.0
    assert len(design.ends) == len(design.chances) - 1


def test_pairs_are_taken_as_often_as_the_design_says_and_the_doubtful_first() -> None:
    population = Population.drawn(2000, 40, 4)
    design = Design.of(10_000, 0.1, 0.02)
    choice = population.choice(design, 0, torch.zeros(40, dtype=torch.int64))
    assert float(choice.taken.double().mean()) == pytest.approx(0.1, abs=0.005)
    doubt = (population.margin[:, None] + population.slope).abs() / (
        population.slope.abs() + population.slope.square().mean(0).sqrt()
    )
    certain = choice.taken[doubt <= doubt.flatten().kthvalue(int(0.9 * design.ends[0] * 80_000)).values]
    assert bool(certain.all())
    assert float(doubt[choice.taken].median()) < float(doubt.median())


@pytest.mark.parametrize("inputs", [1, 100, 500, 9_999])
def test_too_few_inputs_for_the_random_part_are_refused(inputs: int) -> None:
    with pytest.raises(InputError, match="exact way" if inputs <= 200 else "at least 0.0?[24]"):
        Design.of(inputs, 0.05, 0.02)


def test_budgets_below_the_share_or_above_all_are_refused() -> None:
    for budget in (0.01, 1.1, math.nan):
        with pytest.raises(InputError, match="budget"):
            Design.of(10_000, budget, 0.02)


def test_pairs_without_a_finite_prediction_are_evaluated() -> None:
    population = Population.drawn(300, 5, 6, scale=1.0)
    margin, slope = population.margin.clone(), population.slope.clone()
    margin[:3], slope[7, 2], slope[8, 1] = math.nan, math.inf, math.nan
    odd = replace(population, margin=margin, slope=slope)
    choice = odd.choice(Design((0.2,), (1.0, 0.1)), 0, torch.zeros(5, dtype=torch.int64))
    assert bool(choice.taken[:3].all()) and bool(choice.taken[7, 2]) and bool(choice.taken[8, 1])
    assert not bool(choice.predicted[:3].any())
    assert odd.told(choice).intervals().best.isfinite().all()


def test_idle_pairs_are_never_evaluated_and_change_nothing() -> None:
    population = Population.drawn(300, 5, 7, scale=1.0)
    idle = torch.zeros(300, 5, dtype=torch.bool)
    idle[:, 2] = True
    still = replace(population, idle=idle, truth=population.truth.masked_fill(idle, 0))
    found = still.screened(Design((0.1,), (1.0, 0.2)), 0, block=300)
    assert int(found.pairs[2].sum()) == 0 and int(found.taken[2].sum()) == 0
    intervals = found.intervals()
    assert float(intervals.low[2]) == float(intervals.high[2]) == 0.0


@pytest.mark.parametrize(("examples", "units"), [(1, 1), (1, 5), (50, 1)])
def test_one_unit_or_one_example_will_do(examples: int, units: int) -> None:
    population = Population.drawn(examples, units, 8, scale=1.0)
    found = population.screened(Design((0.3,), (1.0, 0.3)), 0, block=examples, layers=1)
    intervals = found.intervals()
    assert intervals.best.shape == (units,) and bool((intervals.low <= intervals.high).all())
    assert bool(intervals.best.isfinite().all())


# -------------------------------------------------------------------------------------------------------- the door


def labelled(net: Network, inputs: Tensor, classes: int) -> Task:
    """A task the network nearly solves."""
    outputs = net(inputs)
    noise = torch.randn(outputs.shape, generator=stream(0, "labels")).to(outputs) * outputs.nan_to_num().std() / 2
    data = Data(inputs, (outputs + noise).nan_to_num(nan=0.0).argmax(1))
    return Task.of("labelled", data, data, validation=data, classes=classes)


SCREENED = [
    "mlp-relu",
    "mlp-sigmoid",
    "cnn-batchnorm",
    "cnn-depthwise",
    "residual",
    "conv1d",
    "transformer-post-norm",
    "attention-stacked",
]


@pytest.mark.parametrize("name", SCREENED)
def test_screening_all_pairs_is_brute_force(name: str) -> None:
    case = NETWORKS[name]
    net = case.network()
    task = labelled(net, case.inputs(200, "many") * (1 if case.tokens else 3), case.classes)
    before = net.sha256
    found = screen(net, EachUnit(), task, budget=1.0, share=1.0)
    effects = ablate(net, EachUnit(), task, bitwise=True, audited=4)
    assert effects.audit.mismatches == 0 and net.sha256 == before
    assert found.intact == effects.intact and found.lost.keys() == effects.lost.keys()
    for layer, lost in found.lost.items():
        apart = (lost.best - effects.lost[layer]).abs()
        assert float(apart.max()) < 1.01 / 200, layer  # rows run in other batches: a tie may fall otherwise
        assert float(apart.mean()) < 0.3 / 200, layer
        assert float(lost.half.max()) < 1e-12


def test_screens_of_a_network_cover_its_units() -> None:
    case = NETWORKS["cnn-batchnorm"]
    net = case.network()
    task = labelled(net, 3 * case.inputs(4000, "many"), case.classes)
    truth = ablate(net, EachUnit(), task, audited=0).lost
    covered, errors = [], []
    for seed in range(3):
        found = screen(net, EachUnit(), task, budget=0.12, share=0.05, seed=seed)
        assert found.share <= 0.125
        for layer, lost in found.lost.items():
            covered.append(lost.covers(truth[layer]))
            errors.append((lost.best - truth[layer]).abs())
            assert found.unbiased[layer].shape == truth[layer].shape
    assert float(torch.cat(covered).double().mean()) >= 0.85  # 15 units of three layers, three times
    assert float(torch.cat(errors).mean()) < 0.005


def test_the_same_seed_gives_the_same_screen() -> None:
    case = NETWORKS["mlp-tanh"]
    net, told = case.network(), []
    task = labelled(net, 3 * case.inputs(1000, "many"), case.classes)
    one = screen(net, EachUnit(layers=("2",)), task, budget=0.3, share=0.2, progress=told.append)
    two = screen(net, EachUnit(layers=("2",)), task, budget=0.3, share=0.2)
    other = screen(net, EachUnit(layers=("2",)), task, budget=0.3, share=0.2, seed=1)
    assert one.lost.keys() == {"2"} and told[-1] == 1000
    assert torch.equal(one.counts.taken, two.counts.taken) and torch.equal(one.lost["2"].best, two.lost["2"].best)
    assert not torch.equal(one.counts.taken, other.counts.taken)


def test_dead_units_lose_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=stream(0, "w", parameter.numel())))
    model[0].weight.data[2], model[0].bias.data[2] = 0.0, -1.0
    inputs = torch.randn(500, 4, generator=stream(0, "x"))
    net = Network.of(model, inputs)
    found = screen(net, EachUnit(), labelled(net, inputs, 3), budget=0.5, share=0.4)
    assert float(found.lost["0"].half[2]) == 0.0 and float(found.lost["0"].best[2]) == 0.0


def test_double_precision_one_class_and_outputs_that_are_not_finite() -> None:
    inputs = torch.randn(300, 3, generator=stream(0, "x"), dtype=torch.float64)
    for outputs in (1, 2):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, outputs)).double()
        for parameter in model.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=stream(1, "w"), dtype=torch.float64))
        net = Network.of(model, inputs)
        found = screen(net, EachUnit(), labelled(net, inputs, outputs), budget=1.0, share=0.7)
        truth = ablate(net, EachUnit(), labelled(net, inputs, outputs), bitwise=True, audited=0).lost["0"]
        assert torch.allclose(found.lost["0"].best, truth, atol=1e-12)
    broken = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    broken[0].weight.data.copy_(torch.tensor([[1e30, 0.0], [0.0, 1.0]]))
    broken[2].weight.data.copy_(torch.tensor([[1e30, 1.0], [0.0, 2.0]]))
    data = Data(torch.rand(300, 2, generator=stream(0, "x")) + 0.1, torch.ones(300, dtype=torch.int64))
    task = Task.of("overflowing", data, data, validation=data)
    found = screen(Network.of(broken, data.inputs), EachUnit(), task, budget=1.0, share=0.7)
    assert found.lost["0"].best.tolist() == [-1.0, 0.0]  # the unit that overflows is better dead


class Deciding(nn.Module):
    """Takes a way through its layers that their activations decide."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        outputs: Tensor = self.last(x.relu() if float(x.sum()) < 1e9 else x)
        return outputs


def test_what_cannot_be_screened_is_refused_in_words() -> None:
    case = NETWORKS["mlp-relu"]
    net = case.network()
    task = labelled(net, case.inputs(250, "many"), case.classes)
    with pytest.raises(InputError, match="exact way"):
        screen(net, EachUnit(), task, data=task.test.take(100))
    with pytest.raises(InputError, match="accuracy"):
        other = Score("other", lambda y, t: 0.0, per_example=lambda y, t: y[:, 0])
        screen(net, EachUnit(), task, score=other, budget=1.0, share=1.0)
    with pytest.raises(AnatomyError):
        screen(net, EachUnit(layers=("nowhere",)), task, budget=1.0, share=1.0)
    inputs = torch.randn(250, 4, generator=stream(0, "x"))
    deciding = Network.of(Deciding().eval(), inputs)
    with pytest.raises(InputError, match="recorded"):
        screen(deciding, EachUnit(), labelled(deciding, inputs, 2), budget=1.0, share=1.0)


def test_residual_streams_that_begin_with_the_inputs_are_screened() -> None:
    case = NETWORKS["attention-grouped"]
    inputs = case.inputs(600, "stream")
    data = Data(inputs, case.network()(inputs).argmax(1))
    found = screen(case.network(), EachUnit(), case.task(), data=data, budget=0.6, share=0.4)
    assert set(found.lost) == {"attention"} and found.share <= 0.7
