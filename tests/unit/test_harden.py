"""Hardening: what each method's gradient is, its price, and what a contest makes of it; that pins hold is a law."""

from __future__ import annotations

import json
import math
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from cases import HARDENERS, NETWORKS, NetworkCase, hurt, model_for, trained
from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost, Moment, settle, steps
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import equal
from planaria.repair.against import (
    B3,
    SAM,
    DamageRepair,
    Dropout,
    Plain,
    TargetedDropout,
    UnitFaults,
)
from planaria.repair.harden import Harden
from planaria.repair.retrain import SGD, Adam, Retrain
from planaria.repair.training import Against, Training
from planaria.study.harden import Contest, Hardening, examine, harden
from planaria.study.rescue import Criterion
from planaria.study.trials import judge_trials, summarise_trials

CASE = NETWORKS["mlp-relu"]
CASES = pytest.mark.parametrize("case", NETWORKS.values(), ids=str)
METHODS = pytest.mark.parametrize("against", HARDENERS.values(), ids=list(HARDENERS))


def after(case: NetworkCase, against: Against, number: int, optimiser: object = SGD(0.05)) -> Network:
    flow = Harden(case.task(), against, optimiser, batch=8)  # type: ignore[arg-type]
    return settle(flow, steps(number))(case.network(), stream(0, "x"))


def training(case: NetworkCase, *, seed: int = 0) -> Training:
    """A training whose module stays in eval mode, so that it can be compared with networks."""
    net = case.network()
    task = case.task()
    return Training(net, task, task.train, net.to_module(), stream(seed, "faults"), None)


# ------------------------------------------------------------------------------------- what they have in common


@pytest.mark.parametrize("name", ["mlp-relu", "cnn-batchnorm", "dropout", "transformer-pre-norm", "tokens-tied"])
@pytest.mark.parametrize(
    "against",
    [Plain(), UnitFaults(high=0.0), UnitFaults(clean=1.0), Dropout(0.0), TargetedDropout(p=0.0), DamageRepair(0.0)],
    ids=repr,
)
def test_without_faults_it_is_plain_training_bit_for_bit(name: str, against: Against) -> None:
    case = NETWORKS[name]
    plain = settle(Retrain(case.task(), SGD(0.05), batch=8), steps(5))(case.network(), stream(0, "x"))
    end = after(case, against, 5)
    assert equal(plain.weights, end.weights)
    assert equal(plain.buffers, end.buffers)


@CASES
def test_every_method_trains_every_network_and_moves_no_pin(case: NetworkCase) -> None:
    start = hurt(case)
    for name, against in HARDENERS.items():
        flow = Harden(case.task(), against, SGD(0.02, decay=0.1), batch=8)
        *_, last = islice(flow(start, stream(0, name)), 3)
        assert all(bool(weight.isfinite().all()) for weight in last.network.weights.values()), name
        assert not equal(start.weights, last.network.weights), name
        for key, plasticity in start.plasticity.items():
            pinned = plasticity == 0
            assert torch.equal(last.network.weights[key][pinned], start.weights[key][pinned]), (name, key)


@METHODS
def test_an_update_costs_its_gradient_evaluations(against: Against) -> None:
    size, each = 8, forward_multiply_adds(CASE.network(), CASE.inputs(2))
    moments = list(islice(Harden(CASE.task(), against, batch=size)(CASE.network(), stream(0, "x")), 3))
    for count, moment in enumerate(moments, start=1):
        passes, cost = count * against.evaluations, moment.cost
        assert (cost.forward_passes, cost.backward_passes) == (passes, passes)
        assert (cost.examples, cost.labels) == (passes * size, passes * size)
        assert cost.multiply_adds == 3 * each * size * passes


def test_sharp_minima_cost_two_evaluations_and_the_penalty_three() -> None:
    prices = {name: against.evaluations for name, against in HARDENERS.items()}
    assert prices == dict.fromkeys(HARDENERS, 1) | {"sam": 2, "b3": 3}


@METHODS
def test_where_everything_is_pinned_the_work_is_spent_all_the_same(against: Against) -> None:
    net = CASE.network()
    pinned = net.pin({name: torch.ones_like(weight, dtype=torch.bool) for name, weight in net.weights.items()})
    *_, last = islice(Harden(CASE.task(), against)(pinned, stream(0, "x")), 4)
    assert last.network is not None and equal(last.network.weights, net.weights)
    assert last.cost.backward_passes == 4 * against.evaluations


def test_the_batches_do_not_depend_on_the_method() -> None:
    case, seen = CASE, {}

    class Watching:
        evaluations = 1

        def __init__(self, inner: Against) -> None:
            self.inner, self.rows = inner, []

        def begin(self, training: Training, /) -> object:
            gradient = self.inner.begin(training)

            def watched(rows: Tensor) -> Tensor:
                self.rows.append(rows.tolist())
                return gradient(rows)

            return watched

    for name, against in HARDENERS.items():
        watching = Watching(against)
        settle(Harden(case.task(), watching, SGD(0.01), batch=5), steps(9))(case.network(), stream(3, "x"))  # type: ignore[arg-type]
        seen[name] = watching.rows
    assert all(rows == seen["plain"] for rows in seen.values())


def test_a_rate_that_falls_to_nothing_stops() -> None:
    flow = Harden(CASE.task(), UnitFaults(), Adam(0.01), batch=8, horizon=4)
    moments = list(islice(flow(CASE.network(), stream(0, "x")), 6))
    assert not equal(moments[2].network.weights, moments[3].network.weights)
    assert equal(moments[4].network.weights, moments[5].network.weights)


# -------------------------------------------------------------------------------------------------- unit faults


@CASES
def test_silencing_in_a_copy_of_the_weights_is_silencing(case: NetworkCase) -> None:
    one = training(case)
    rows = torch.arange(8)
    rng = stream(case.seed, "silent")
    factors = [(torch.rand(2, organ.group.count, generator=rng) > 0.5).float() for organ in one.organs]
    expected = []
    for part, mine in enumerate(rows.tensor_split(2)):
        units = [
            Unit(organ.group.layer, int(index))
            for organ, factor in zip(one.organs, factors, strict=True)
            for index in (factor[part] == 0).nonzero()
        ]
        silent = silence(one.net, Anatomy.of(one.net).entries(units).all)
        expected.append(float(one.task.loss(silent(one.data.inputs[mine]), one.data.targets[mine])))
    assert float(one.silenced(rows, factors).detach()) == pytest.approx(sum(expected) / 2, rel=1e-4, abs=1e-5)


def test_a_silent_unit_gets_no_gradient_and_the_others_that_of_the_network_without_it() -> None:
    one = training(CASE)
    factors = [torch.ones(1, organ.group.count) for organ in one.organs]
    factors[0][0, 2] = 0
    one.silenced(torch.arange(8), factors).backward()  # type: ignore[no-untyped-call]
    slopes = {name: weight.grad for name, weight in one.weights.items()}
    assert slopes["2.weight"] is not None and slopes["0.weight"] is not None
    assert not slopes["2.weight"][:, 2].any() and not slopes["0.weight"][2].any()
    smaller = silence(CASE.network(), Anatomy.of(CASE.network()).entries([Unit("0", 2)]).all).to_module()
    task = CASE.task()
    task.loss(smaller(task.train.inputs[:8]), task.train.targets[:8]).backward()  # type: ignore[no-untyped-call]
    for name, parameter in smaller.named_parameters():
        assert parameter.grad is not None
        living = parameter.grad != 0
        torch.testing.assert_close(slopes[name][living], parameter.grad[living])  # type: ignore[index]


def drawn(against: Against, case: NetworkCase, rows: int, monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """Factors that the method has drawn for twenty batches."""
    seen: list[list[Tensor]] = []

    def silenced(self: Training, rows: Tensor, factors: list[Tensor]) -> Tensor:
        seen.append(factors)
        return self.loss(rows)

    monkeypatch.setattr(Training, "silenced", silenced)
    one = training(case)
    gradient = against.begin(one)
    for _ in range(20):
        gradient(torch.arange(rows))
    return seen


def test_the_fraction_at_the_drawn_rate_fails_in_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = set()
    for factors in drawn(UnitFaults(0.2, 0.9, groups=4, clean=0.25), CASE, 8, monkeypatch):
        assert [len(factor) for factor in factors] == [4, 4]
        first, second = factors[0].sum(1), factors[1].sum(1)  # of 7 and of 5 units
        assert (first[0], second[0]) == (7, 5), "the clean part"
        for alive, others in zip(first[1:].tolist(), second[1:].tolist(), strict=True):
            assert any(
                alive == 7 - math.floor(7 * r / 1000 + 0.5) and others == 5 - math.floor(5 * r / 1000 + 0.5)
                for r in range(200, 900)
            )
            rates.add(alive)
    assert len(rates) > 3, "every group draws anew"


def test_dead_units_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    net = CASE.network()
    dead = silence(net, Anatomy.of(net).entries([Unit("0", index) for index in range(5)]).all)
    one = Training(dead, CASE.task(), CASE.task().train, dead.to_module(), stream(0, "x"), None)
    seen: list[Tensor] = []
    monkeypatch.setattr(Training, "silenced", lambda self, rows, factors: seen.append(factors[0]))
    UnitFaults(0.5, 0.5, groups=1, clean=0).begin(one)(torch.arange(8))
    assert int((seen[0][0, 5:] == 0).sum()) == 1 and bool((seen[0][0, :5] == 1).all())


@pytest.mark.parametrize(("rows", "parts"), [(1, 1), (2, 1), (3, 1), (5, 2), (8, 4), (100, 4)])
def test_a_part_of_a_batch_has_two_examples_at_least(rows: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Training, "loss", lambda self, rows: rows.sum())
    assert len(drawn(UnitFaults(groups=4), CASE, rows, monkeypatch)[0][0]) == parts


def test_one_example_is_too_few_for_a_batch_normalisation() -> None:
    case = NETWORKS["mlp-norms"]
    with pytest.raises(InputError, match=r"Harden\.batch.*two examples"):
        next(Harden(case.task(), batch=1)(case.network(), stream(0, "x")))


# ------------------------------------------------------------------------------------------------------ dropout


def test_dropout_keeps_the_mean_of_a_linear_network() -> None:
    net = Network.of(nn.Sequential(nn.Linear(6, 40), nn.Identity(), nn.Linear(40, 3)), CASE.inputs(2))
    task = CASE.task()
    one = Training(net, task, task.train, net.to_module(), stream(0, "faults"), None)
    organ = one.organs[0]
    total = torch.zeros(3)
    for _ in range(400):
        kept = (torch.rand(40, generator=one.rng) >= 0.4).float() / 0.6
        total += one.outputs(torch.arange(1), one.multiplied([kept])).detach()[0]
    assert organ.read
    torch.testing.assert_close(total / 400, net(task.train.inputs[:1])[0], atol=0.1, rtol=0.1)


def test_dropout_scales_survivors_that_are_read_and_only_those(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {float(v) for factors in drawn(Dropout(0.5), CASE, 8, monkeypatch) for f in factors for v in f.flatten()}
    assert values == {0.0, 2.0}
    inside = NETWORKS["called-twice"]
    values = {float(v) for factors in drawn(Dropout(0.5), inside, 8, monkeypatch) for f in factors for v in f.flatten()}
    assert values == {0.0, 1.0}


def test_targeted_dropout_hits_the_units_of_smallest_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = drawn(TargetedDropout(share=0.4, p=1.0, groups=2), CASE, 8, monkeypatch)[-1]
    net = CASE.network()
    for factor, (name, count) in zip(factors, (("2.weight", 3), ("4.weight", 2)), strict=True):
        least = set(net.weights[name].norm(dim=0).argsort()[:count].tolist())
        assert all(set((part == 0).nonzero().flatten().tolist()) == least for part in factor)


# ---------------------------------------------------------------------------------------------------------- SAM


@pytest.mark.parametrize("name", ["mlp-relu", "conv1d", "double"])
def test_sam_steps_along_the_gradient_at_the_end_of_the_climb(name: str) -> None:
    case = NETWORKS[name]
    net, task = case.network(), case.task()
    key = next(iter(net.weights))
    pinned = torch.rand(net.weights[key].shape, generator=stream(1, "pin")) < 0.5
    net = net.pin({key: pinned})
    size = len(task.train)
    end = settle(Harden(task, SAM(0.3), SGD(0.1, momentum=0), batch=size), steps(1))(net, stream(0, "x"))

    def slopes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
        loss = task.loss(net(task.train.inputs, leaves), task.train.targets)
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    first = slopes(net.weights)
    first[key] = first[key].masked_fill(pinned, 0)
    length = math.sqrt(sum(float(slope.double().square().sum()) for slope in first.values()))
    second = slopes({n: w + 0.3 / length * first[n] for n, w in net.weights.items()})
    for n, weight in net.weights.items():
        step = torch.where(net.plasticity[n] == 0, 0, -0.1 * second[n])
        torch.testing.assert_close(end.weights[n], weight + step)


def test_statistics_learn_from_the_first_pass_of_sam_only() -> None:
    case = NETWORKS["cnn-batchnorm"]
    size = len(case.task().train)
    ends = [
        settle(Harden(case.task(), against, SGD(0.01), batch=size), steps(1))(case.network(), stream(0, "x"))
        for against in (Plain(), SAM(0.5))
    ]
    assert all(torch.allclose(ends[0].buffers[n], ends[1].buffers[n]) for n in ends[0].buffers)
    assert not equal(ends[0].weights, ends[1].weights)


# ----------------------------------------------------------------------------------------------------------- b3


def variance(net: Network, rows: Tensor, p: float) -> float:
    """The formula by brute force, through a dense Jacobian per layer and example; for two hidden layers."""
    module = net.to_module()
    assert isinstance(module, nn.Sequential)
    total = 0.0
    for cut in (2, 4):
        activation = module[:cut](rows).detach()
        for z in activation:
            jacobian = torch.autograd.functional.jacobian(module[cut:], z)
            total += float((jacobian * z).square().sum())
    return p * (1 - p) * total / len(rows)


@pytest.mark.parametrize("name", ["mlp-relu", "mlp-tanh", "mlp-sigmoid", "double"])
def test_the_penalty_agrees_in_expectation_with_dense_jacobians(name: str) -> None:
    case = NETWORKS[name]
    one, rows = training(case), torch.arange(3)
    draws = torch.stack([B3(p=0.2).penalty(one, rows).detach() for _ in range(500)]).double()
    exact = variance(case.network(), one.data.inputs[rows], 0.2)
    error = float(draws.std()) / math.sqrt(len(draws))
    assert abs(float(draws.mean()) - exact) < 4 * error
    assert error < 0.1 * exact


def test_for_one_output_of_one_example_one_draw_is_exact_also_for_units_with_many_positions() -> None:
    net = Network.of(nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 1)), torch.zeros(1, 2, 8))
    x = torch.randn(1, 2, 8, generator=stream(0, "x"))
    task = CASE.task()
    one = Training(net, task, type(task.train)(x, torch.zeros(1)), net.to_module(), stream(0, "faults"), None)
    module = net.to_module()
    assert isinstance(module, nn.Sequential)
    z = module[:2](x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(module[2:](z).sum(), z)
    exact = 0.1 * 0.9 * (z * slope).sum(2).square().sum()  # a feature map fails as a whole
    torch.testing.assert_close(B3(p=0.1).penalty(one, torch.arange(1)), exact.detach(), rtol=1e-4, atol=1e-6)


def test_the_penalty_falls_when_it_is_trained_against() -> None:
    net, task = trained("clouds")
    rows = torch.arange(32)
    held = {}
    for weight in (0.0, 3.0):
        flow = Harden(task, B3(weight), Adam(0.01), batch=32)
        end = settle(flow, steps(60))(net, stream(0, "x"))
        held[weight] = variance(end, task.train.inputs[rows], 0.1)
    assert held[3.0] < 0.3 * held[0.0]


def test_penalty_and_module_mode_leave_no_trace() -> None:
    case = NETWORKS["cnn-batchnorm"]
    plain, other = (after(case, against, 4) for against in (Plain(), B3(0.0)))
    assert all(torch.allclose(plain.weights[n], other.weights[n]) for n in plain.weights)
    assert all(torch.allclose(plain.buffers[n], other.buffers[n]) for n in plain.buffers)


# ------------------------------------------------------------------------------------------------ damage-repair


def test_units_die_for_a_while_and_come_back() -> None:
    flow = Harden(CASE.task(), DamageRepair(0.4, updates=3), SGD(0.05, decay=0.1), batch=8)
    readers = {"0": "2.weight", "2": "4.weight"}
    dead: dict[str, list[frozenset[int]]] = {layer: [] for layer in readers}
    for moment in islice(flow(CASE.network(), stream(0, "x")), 12):
        for layer, reader in readers.items():
            silent = (moment.network.weights[reader] == 0).all(0) & (
                moment.network.weights[f"{layer}.weight"] == 0
            ).all(1)
            dead[layer].append(frozenset(silent.nonzero().flatten().tolist()))
        assert all(bool((p == 1).all()) for p in moment.network.plasticity.values()), "nobody is pinned"
    for layer, count in (("0", 3), ("2", 2)):
        spells = [set(dead[layer][at : at + 3]) for at in range(0, 12, 3)]
        assert all(len(spell) == 1 for spell in spells), "dead for the whole spell"
        assert all(len(next(iter(spell))) == count for spell in spells)
        assert len({next(iter(spell)) for spell in spells}) > 1, "others each time"


def test_towards_the_end_nothing_dies_any_more() -> None:
    flow = Harden(CASE.task(), DamageRepair(0.5, updates=4, until=0.5), SGD(0.05), batch=8, horizon=20)
    moments = list(islice(flow(CASE.network(), stream(0, "x")), 20))
    silent = [int((moment.network.weights["4.weight"] == 0).all(0).sum()) for moment in moments]
    assert silent[9] == 3 and silent[10:] == [0] * 10


def test_tapped_units_are_spared_since_their_gains_are_pinned() -> None:
    case = NETWORKS["lstm-tapped"]
    start = case.network()
    *_, last = islice(Harden(case.task(), DamageRepair(1.0, updates=1), batch=8)(start, stream(0, "x")), 3)
    assert all(not bool((last.network.weights[n] == 0).any()) for n in start.weights if n.startswith("rnn.weight"))
    assert bool((last.network.weights["fc1.weight"] == 0).all())


# ----------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: UnitFaults(low=-0.1), r"UnitFaults\.low"),
        (lambda: UnitFaults(high=1.5), r"UnitFaults\.high"),
        (lambda: UnitFaults(low=0.6, high=0.5), r"UnitFaults\.high"),
        (lambda: UnitFaults(clean=math.nan), r"UnitFaults\.clean"),
        (lambda: UnitFaults(groups=0), r"UnitFaults\.groups"),
        (lambda: Dropout(1.0), r"Dropout\.p"),
        (lambda: Dropout("0.5"), r"Dropout\.p"),  # type: ignore[arg-type]
        (lambda: TargetedDropout(share=2), r"TargetedDropout\.share"),
        (lambda: SAM(-1), r"SAM\.rho"),
        (lambda: SAM(math.inf), r"SAM\.rho"),
        (lambda: B3(weight=-1), r"B3\.weight"),
        (lambda: B3(p=1.1), r"B3\.p"),
        (lambda: DamageRepair(dose=1.1), r"DamageRepair\.dose"),
        (lambda: DamageRepair(updates=0), r"DamageRepair\.updates"),
        (lambda: Harden(CASE.task(), batch=0), r"Harden\.batch"),
        (lambda: Harden(CASE.task(), horizon=0), r"Harden\.horizon"),
        (lambda: Harden(CASE.task(), 0.5), r"Harden\.against"),  # type: ignore[arg-type]
        (lambda: Contest(0), r"Contest\.evaluations"),
        (lambda: Contest(10, doses=()), r"Contest\.doses"),
        (lambda: Contest(10, doses=(1.5,)), r"dose"),
        (lambda: harden(CASE.network(), CASE.task(), {}, Contest(1)), r"harden: .*method"),
    ],
)
def test_settings_off_their_range_are_refused_by_name(make: object, where: str) -> None:
    with pytest.raises(InputError, match=where):
        make()  # type: ignore[operator]


@METHODS
def test_the_repr_of_a_method_evaluates_back_to_it(against: Against) -> None:
    assert eval(repr(against)) == against


# ------------------------------------------------------------------------------------------------- the contest

SMALL = Contest(
    60, Adam(0.01), batch=32, doses=(0.3, 0.6), draws=2, patience=20, criterion=Criterion(0.02, 1, 10), inputs=64
)


@pytest.fixture(scope="module")
def contest() -> Hardening:
    _, task = trained("clouds")
    methods = {"plain": Plain(), "dropout": Dropout(0.3), "sam": SAM(), "b3": B3(), "damage-repair": DamageRepair()}
    return harden(lambda seed: model_for("clouds", seed), task, methods, SMALL, seeds=2)


def test_every_method_gets_as_many_gradient_evaluations(contest: Hardening) -> None:
    assert {trial.cost.backward_passes for trial in contest.trials} == {60}
    assert len({trial.cost.multiply_adds for trial in contest.trials}) == 1


def test_rows_and_summary_are_plain_values(contest: Hardening) -> None:
    text = json.dumps([contest.rows, contest.summary(), [v.to_dict() for v in contest.verdicts()]], allow_nan=False)
    assert "plain" in text
    assert [(row["method"], row["seed"]) for row in contest.rows][:3] == [("plain", 0), ("plain", 1), ("dropout", 0)]
    for row in contest.summary():
        assert row["trials"] == 2
        assert set(row["curves"]) == {"random", "worst", "rescued"}
        assert row["curves"]["worst"]["doses"] == [0.3, 0.6]
        assert row["area_random"]["best"] == pytest.approx(sum(row["curves"]["random"]["mean"]) / 2)
        assert (row["less_plain"] == {}) == (row["method"] == "plain")


def test_a_start_from_weights_is_the_same_for_every_method_and_is_left_alone() -> None:
    net, task = trained("clouds")
    before = net.sha256
    found = harden(net, task, {"plain": Plain(), "faults": UnitFaults()}, SMALL, seeds=[4])
    assert net.sha256 == before
    assert [trial.seed for trial in found.trials] == [4, 4]
    assert found.trials[0].intact > task.chance + 0.2


def test_two_contests_of_one_seed_are_equal() -> None:
    _, task = trained("clouds")
    rows = [
        harden(lambda seed: model_for("clouds", seed), task, {"faults": UnitFaults()}, SMALL, seeds=1).rows
        for _ in range(2)
    ]
    for one in rows:
        one[0]["cost"].pop("seconds")
    assert rows[0] == rows[1]


def test_a_network_that_training_has_blown_up_is_a_value() -> None:
    net, task = trained("clouds")
    blown = net.with_weights({name: weight * math.nan for name, weight in net.weights.items()})
    trial = examine(Moment(blown, Cost()), task, SMALL, method="sam")
    row = trial.row()
    assert row["score_intact"] is None and row["area_worst"] is None and not row["rescued"]
    rows = [{**row, "method": "plain"}, row]
    assert summarise_trials(rows, (0.0, 1.0))[0]["intact"]["best"] is None
    assert json.dumps([verdict.to_dict() for verdict in judge_trials(rows, percent=True)], allow_nan=False)


def rows_of(**areas: list[float]) -> list[dict[str, object]]:
    return [
        {"method": name.replace("_", "-"), "seed": seed, "score_intact": 0.9, "rescued": True, "updates": 10}
        | {f"area_{curve}": area for curve in ("random", "worst", "rescued")}
        for name, values in areas.items()
        for seed, area in enumerate(values)
    ]


def test_the_verdicts_say_who_is_best_and_whether_it_can_be_told() -> None:
    rows = rows_of(plain=[0.70, 0.71, 0.72], dropout=[0.80, 0.81, 0.82], damage_repair=[0.75, 0.76, 0.77])
    best, iterative = judge_trials(rows, percent=True)
    assert best.answer == "dropout" and "81.0%" in best.words and "+10.00" in best.words
    assert iterative.answer == "no, dropout survives better"
    assert iterative.numbers["random deletion, damage-repair - dropout"].best == pytest.approx(-0.05)  # type: ignore[union-attr]
    rows = rows_of(plain=[0.70, 0.71, 0.72], dropout=[0.80, 0.70, 0.90], damage_repair=[0.79, 0.72, 0.88])
    best, iterative = judge_trials(rows, percent=True)
    assert best.answer == "dropout, not told apart from damage-repair" and iterative.answer == "not told apart"
    rows = rows_of(plain=[0.70, 0.71, 0.72], dropout=[0.70, 0.71, 0.73], damage_repair=[0.81, 0.82, 0.83])
    assert judge_trials(rows)[1].answer == "yes"
    assert [v.question for v in judge_trials(rows_of(plain=[0.7], faults=[0.8]))] == ["Which training survives best?"]
    assert judge_trials(rows_of(plain=[0.7])) == ()


def test_training_with_faults_survives_more_than_plain_training() -> None:
    _, task = trained("clouds")
    long = Contest(300, Adam(0.01), batch=32, draws=4, patience=10, inputs=64)
    found = harden(
        lambda seed: model_for("clouds", seed), task, {"plain": Plain(), "faults": UnitFaults()}, long, seeds=1
    )
    areas = {trial.method: trial.area("random") for trial in found.trials}
    assert areas["faults"] > areas["plain"]
    assert found.best() is next(trial.network for trial in found.trials if trial.method == "faults")
    assert "faults" in str(found)
