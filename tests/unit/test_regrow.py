"""Regrowing: the function stays, the new units are plastic and able to learn; choosing, ripening, recycling."""

from __future__ import annotations

import math
from itertools import islice, pairwise

import pytest
import torch
from torch import nn

from cases import NETWORKS, NetworkCase, hurt
from planaria.core.anatomy import Anatomy, Unit
from planaria.core.autodiff import plain_kernels
from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import after, chain, repeat, settle, steps
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import equal
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence, StuckAt
from planaria.damage.sites import RandomUnits, RankedUnits, sizes
from planaria.measure.task import Task
from planaria.repair.incoming import Drawn, GradMax
from planaria.repair.regrow import Recycle, Regrow, Ripen, dead_units, embryonic
from planaria.repair.retrain import SGD, Retrain

CASES = pytest.mark.parametrize("case", NETWORKS.values(), ids=str)


def regrown(net: Network, others: float = 0.1, seed: int = 0) -> Network:
    return Regrow(others)(net, stream(seed, "regrow"))


@CASES
def test_regrowing_leaves_the_function_unchanged(case: NetworkCase) -> None:
    damaged, inputs = hurt(case, 0.5), case.inputs(6, "many")
    outputs = damaged(inputs)
    assert float((regrown(damaged)(inputs) - outputs).abs().max()) <= 1e-5 * float(outputs.abs().max())


@CASES
def test_no_unit_is_dead_afterwards(case: NetworkCase) -> None:
    anatomy = Anatomy.of(case.network())
    assert set(anatomy.living(regrown(hurt(case, 0.5)))) == set(anatomy.units())


@CASES
def test_without_dead_units_nothing_happens(case: NetworkCase) -> None:
    assert regrown(case.network()) is case.network()


@CASES
def test_entries_of_new_units_have_plasticity_one_and_the_rest_the_stated_share(case: NetworkCase) -> None:
    damaged = hurt(case, 0.5)
    anatomy = Anatomy.of(damaged)
    dead = anatomy.dead(damaged)
    new = anatomy.entries(u for u in anatomy.units() if bool(dead[u.layer][u.index])).all
    for others in (0.0, 0.25):
        grown = regrown(damaged, others)
        for name, plasticity in grown.plasticity.items():
            hit = new.get(name, torch.zeros_like(plasticity, dtype=torch.bool))
            assert bool((plasticity[hit] == 1).all())
            assert torch.allclose(plasticity[~hit], others * damaged.plasticity[name][~hit])


@CASES
def test_old_entries_keep_their_values(case: NetworkCase) -> None:
    damaged = hurt(case, 0.5)
    grown = regrown(damaged)
    for name, weight in damaged.weights.items():
        free = damaged.plasticity[name] != 0
        assert torch.equal(grown.weights[name][free], weight[free])


LEARNERS = [
    case for case in NETWORKS.values() if any(g[2] != "incoming" and g[1] != "head" for g in case.units.values())
]


@pytest.mark.parametrize("case", LEARNERS, ids=str)
@pytest.mark.parametrize("others", [0.0, 0.1])
def test_new_units_learn(case: NetworkCase, others: float) -> None:
    inputs = case.inputs(24, "train")
    for layer, (count, kind, exact) in case.units.items():
        if exact == "incoming" or kind == "head":
            continue
        units = tuple(Unit(layer, index) for index in range(0, count, 2))
        damaged = Damage(Silence(), RankedUnits(units)).at(1.0)(case.network(), stream(0, "x"))
        grown = regrown(damaged, others)
        end = settle(Retrain(case.task(), SGD(0.05, momentum=0.9), batch=8), steps(25))(grown, stream(1, "x"))
        learnt = 0
        for unit in units:
            without = Damage(Silence(), RankedUnits((unit,))).at(1.0)(end, stream(0, "x"))
            learnt += float((without(inputs) - end(inputs)).abs().max()) > 1e-4
        assert learnt >= math.ceil(len(units) / 2), f"{layer}: {learnt} of {len(units)} new units do anything"


def test_a_new_unit_starts_as_torch_would_start_it() -> None:
    net = NETWORKS["cnn-batchnorm"].network()
    units = tuple(Unit("4", index) for index in range(5))
    grown = regrown(Damage(Silence(), RankedUnits(units)).at(1.0)(net, stream(0, "x")))
    bound = 1 / math.sqrt(4 * 9)
    fresh = grown.weights["4.weight"]
    assert bool((fresh.abs() <= bound).all())
    assert float(fresh.abs().max()) > 0.8 * bound
    assert float(fresh.std()) == pytest.approx(bound / math.sqrt(3), rel=0.15)
    assert bool((grown.weights["5.weight"] == 1).all()), "the normalisation's scale starts at 1"
    assert bool((grown.weights["5.bias"] == 0).all())
    assert bool((grown.weights["8.weight"] == 0).all()), "nobody listens yet"


def test_layers_that_were_replaced_as_a_whole_can_learn() -> None:
    case = NETWORKS["mlp-tanh"]
    dead = Damage(Silence(), RandomUnits()).at(1.0)(case.network(), stream(0, "x"))
    end = settle(Retrain(case.task(), SGD(0.2), batch=24), steps(60))(regrown(dead), stream(1, "x"))
    assert not torch.allclose(end(case.inputs(5)), end(case.inputs(5, "other")), atol=1e-3), "a constant"


def test_stuck_units_are_replaced_too() -> None:
    net = NETWORKS["mlp-tanh"].network()
    stuck = Damage(StuckAt(0.5), RandomUnits()).at(0.5)(net, stream(0, "x"))
    anatomy = Anatomy.of(net)
    assert len(anatomy.living(stuck)) < len(anatomy.units())
    assert set(anatomy.living(regrown(stuck))) == set(anatomy.units())


def test_regrowing_twice_multiplies_the_plasticity_of_old_units_once_per_growth() -> None:
    net = NETWORKS["mlp-relu"].network()
    once = regrown(Damage(Silence(), RankedUnits((Unit("0", 0),))).at(1.0)(net, stream(0, "x")), 0.5)
    twice = regrown(Damage(Silence(), RankedUnits((Unit("0", 1),))).at(1.0)(once, stream(0, "x")), 0.5)
    assert twice.plasticity["0.bias"].tolist() == [0.5, 1.0, 0.25, 0.25, 0.25, 0.25, 0.25]


def test_units_that_cannot_learn_are_named_in_the_documentation() -> None:
    assert "never learn" in " ".join((Regrow.__doc__ or "").split())


@pytest.mark.parametrize("others", [-0.1, float("nan"), float("inf"), "x"])
def test_the_plasticity_of_old_units_is_a_finite_number_of_at_least_zero(others: object) -> None:
    with pytest.raises(InputError, match=r"Regrow\.others"):
        Regrow(others)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ some of the dead


@CASES
def test_embryonic_units_leave_the_function_unchanged_and_the_other_dead_dead(case: NetworkCase) -> None:
    damaged, inputs = hurt(case, 0.6), case.inputs(6, "many")
    dead = dead_units(damaged)
    given, rest = dead[::2], set(dead[1::2])
    grown = embryonic(damaged, given, stream(0, "x"))
    outputs = damaged(inputs)
    assert float((grown(inputs) - outputs).abs().max()) <= 1e-5 * float(outputs.abs().max())
    assert rest <= set(dead_units(grown))
    for name, hit in Anatomy.of(damaged).entries(rest).all.items():
        assert bool((grown.weights[name][hit] == 0).all()), "the edge from or to a dead unit has come back"
        assert bool((grown.plasticity[name][hit] == 0).all()), "the edge from or to a dead unit is no longer pinned"


@CASES
def test_only_entries_of_the_given_units_change(case: NetworkCase) -> None:
    damaged = hurt(case, 0.6)
    given = dead_units(damaged)[::2]
    grown = embryonic(damaged, given, stream(0, "x"))
    mine = Anatomy.of(damaged).entries(given).all
    for name, weight in damaged.weights.items():
        other = ~mine.get(name, torch.zeros_like(weight, dtype=torch.bool))
        assert torch.equal(grown.weights[name][other], weight[other])
        assert torch.equal(grown.plasticity[name][other], damaged.plasticity[name][other])


def test_dead_units_may_return_one_after_the_other() -> None:
    net = NETWORKS["mlp-tanh"].network()
    damaged = Damage(Silence(), RandomUnits()).at(1.0)(net, stream(0, "x"))
    for unit in dead_units(damaged):
        assert unit in dead_units(damaged)
        damaged = embryonic(damaged, [unit], stream(0, str(unit)))
        assert unit not in dead_units(damaged)
    assert dead_units(damaged) == ()
    assert all(bool((p == 1).all()) for p in damaged.plasticity.values()), "the last to return frees its edges"


def test_a_living_unit_falls_silent_and_keeps_what_was_pinned_one_by_one() -> None:
    net = NETWORKS["mlp-relu"].network()
    edge = torch.zeros(7, 6, dtype=torch.bool)
    edge[2, 4] = True
    grown = embryonic(net.pin({"0.weight": edge}), [Unit("0", 2)], stream(0, "x"))
    assert float(grown.weights["0.weight"][2, 4]) == float(net.weights["0.weight"][2, 4])
    assert float(grown.plasticity["0.weight"][2, 4]) == 0
    assert not bool((grown.weights["0.weight"][2, :4] == net.weights["0.weight"][2, :4]).any())
    assert bool((grown.weights["2.weight"][:, 2] == 0).all())


def test_replacing_nothing_is_the_identity() -> None:
    net = NETWORKS["mlp-relu"].network()
    assert embryonic(net, [], stream(0, "x")) is net


# ------------------------------------------------------------------------------------------ incoming weights


def learnable(net: Network, units: tuple[Unit, ...], task: Task) -> float:
    """Sum of the squared gradients through which the units will be heard, by plain autograd."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in net.weights.items()}
    with plain_kernels(), torch.enable_grad():
        loss = task.loss(net(task.train.inputs, leaves), task.train.targets)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True))
    slices = Anatomy.of(net).entries(units)
    total = 0.0
    for name, hit in slices.outgoing.items():
        heard = hit & ~slices.incoming.get(name, torch.zeros_like(hit))
        total += float(gradients[name][heard].square().sum())  # type: ignore[index]
    return total


@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize("name", ["mlp-relu", "mlp-tanh", "cnn-batchnorm", "conv1d", "double"])
def test_chosen_units_can_learn_more_than_drawn_ones(name: str, rounds: int) -> None:
    case = NETWORKS[name]
    damaged = hurt(case, 0.6)
    units = dead_units(damaged)
    drawn, chosen = (
        learnable(Regrow(1.0, how)(damaged, stream(0, "x")), units, case.task())
        for how in (Drawn(), GradMax(case.task(), examples=24, rounds=rounds))
    )
    assert chosen > 1.5 * drawn > 0


@CASES
def test_chosen_units_can_never_learn_less_and_change_no_output(case: NetworkCase) -> None:
    damaged, inputs = hurt(case, 0.6), case.inputs(6, "many")
    units = dead_units(damaged)
    drawn = regrown(damaged, 1.0)
    chosen = Regrow(1.0, GradMax(case.task(), examples=24, rounds=3))(damaged, stream(0, "regrow"))
    assert learnable(chosen, units, case.task()) >= learnable(drawn, units, case.task()) * (1 - 1e-4)
    outputs = damaged(inputs)
    assert float((chosen(inputs) - outputs).abs().max()) <= 1e-5 * float(outputs.abs().max())
    own = Anatomy.of(damaged).entries(units).incoming
    for name, weight in drawn.weights.items():
        other = ~own.get(name, torch.zeros_like(weight, dtype=torch.bool))
        assert torch.equal(chosen.weights[name][other], weight[other])


@pytest.mark.parametrize("seed", range(6))
def test_a_draw_that_orthogonal_rows_cannot_beat_is_kept(seed: int) -> None:
    case = NETWORKS["two-views"]
    damaged = hurt(case, 0.6)
    drawn, chosen = (
        learnable(Regrow(1.0, how)(damaged, stream(seed, "x")), dead_units(damaged), case.task())
        for how in (Drawn(), GradMax(case.task(), examples=24))
    )
    assert chosen >= drawn * (1 - 1e-4)
    assert (chosen > 1.01 * drawn) != (seed in {2, 4}), "one of the two branches is never tried"


def test_edges_from_units_that_stay_dead_are_left_out_of_the_choice() -> None:
    case = NETWORKS["mlp-tanh"]
    dead, new = tuple(Unit("0", index) for index in range(4)), (Unit("2", 1), Unit("2", 3))
    loud = Damage(StuckAt(0.5), RankedUnits(dead)).at(1.0)(case.network(), stream(0, "x"))
    damaged = Damage(Silence(), RankedUnits(new)).at(1.0)(loud, stream(0, "x"))
    drawn = embryonic(damaged, new, stream(2, "x"))
    chosen = GradMax(case.task(), examples=24, rounds=2).choose(drawn, new, stream(0, "y")).network
    rows = chosen.weights["2.weight"][[1, 3]]
    assert bool((rows[:, :4] == 0).all())
    assert abs(float(rows[0] @ rows[1])) < 1e-6
    assert torch.allclose(rows.norm(dim=1), drawn.weights["2.weight"][[1, 3]].norm(dim=1))
    assert set(dead_units(chosen)) == set(dead)


def test_chosen_weights_are_as_long_as_drawn_ones_and_orthogonal() -> None:
    case = NETWORKS["mlp-tanh"]
    units = (Unit("0", 1), Unit("0", 3), Unit("0", 4))
    damaged = Damage(Silence(), RankedUnits(units)).at(1.0)(case.network(), stream(0, "x"))
    drawn, chosen = (
        Regrow(1.0, how)(damaged, stream(0, "x")).weights["0.weight"][[1, 3, 4]]
        for how in (Drawn(), GradMax(case.task()))
    )
    assert torch.allclose(chosen.norm(dim=1), drawn.norm(dim=1))
    gram = chosen @ chosen.T
    assert torch.allclose(gram, gram.diagonal().diag(), atol=1e-6)
    assert not torch.allclose(drawn @ drawn.T, (drawn @ drawn.T).diagonal().diag(), atol=1e-2)


@pytest.mark.parametrize("new", [1, 2, 3])
def test_without_nonlinearity_the_choice_is_the_top_singular_subspace(new: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 4)).double()
    x = torch.randn(40, 6, generator=stream(0, "in"), dtype=torch.float64)
    y = torch.randn(40, 4, generator=stream(0, "out"), dtype=torch.float64)
    task = Task.of("linear", (x, y), (x, y), validation=(x, y), loss="mse", score="r2")
    units = tuple(Unit("0", index) for index in range(new))
    damaged = Damage(Silence(), RankedUnits(units)).at(1.0)(Network.of(model, x), stream(0, "x"))
    chosen = Regrow(1.0, GradMax(task, examples=40, rounds=60))(damaged, stream(0, "x")).weights["0.weight"][:new]
    errors = 2 * (damaged(x) - y) / y.numel()
    singular = torch.linalg.svd(errors.T @ x).Vh[:new]
    ours = chosen / chosen.norm(dim=1, keepdim=True)
    assert torch.allclose(ours.T @ ours, singular.T @ singular, atol=1e-4)


def test_attention_heads_and_units_without_readers_of_their_own_keep_what_was_drawn() -> None:
    for name in ("attention-separate", "transformer-pre-norm", "tied"):
        case = NETWORKS[name]
        kinds = tuple({kind for _, kind, exact in case.units.values() if kind == "head" or exact == "incoming"})
        damaged = Damage(Silence(), RandomUnits(kinds=kinds)).at(0.6)(case.network(), stream(0, "x"))
        drawn, chosen = (Regrow(1.0, how)(damaged, stream(0, "x")) for how in (Drawn(), GradMax(case.task())))
        assert equal(drawn.weights, chosen.weights)


@pytest.mark.parametrize("name", ["mlp-relu", "cnn-batchnorm", "transformer-pre-norm"])
def test_choosing_is_paid_for(name: str) -> None:
    case = NETWORKS[name]
    damaged, rng = hurt(case, 0.6), stream(0, "x")
    cost = Regrow(incoming=GradMax(case.task(), examples=10, rounds=3)).moment(damaged, rng).cost
    assert (cost.examples, cost.labels, cost.forward_passes, cost.backward_passes) == (40, 40, 4, 7)
    forward = 10 * forward_multiply_adds(damaged, case.inputs(2))
    assert 4 * forward < cost.multiply_adds <= (3 * 9 + 3) * forward, "three double backwards at most, and a last look"
    assert cost.seconds > 0
    assert Regrow().moment(damaged, rng).cost.multiply_adds == 0


def test_statistics_that_are_not_finite_leave_what_was_drawn() -> None:
    case = NETWORKS["mlp-relu"]
    damaged = hurt(case, 0.4)
    sick = damaged.with_weights({"4.bias": torch.full((3,), float("inf"))})
    drawn, chosen = (Regrow(1.0, how)(sick, stream(0, "x")) for how in (Drawn(), GradMax(case.task())))
    assert equal(drawn.weights, chosen.weights)


@pytest.mark.parametrize("field", ["examples", "rounds"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "x"])
def test_settings_of_the_choice_are_positive_whole_numbers(field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"GradMax\.{field}"):
        GradMax(NETWORKS["mlp-relu"].task(), **{field: value})  # type: ignore[arg-type]


def test_what_cannot_choose_is_refused() -> None:
    with pytest.raises(InputError, match=r"Regrow\.incoming"):
        Regrow(0.1, "gradmax")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- ripening


def moments_of(flow: object, net: Network, number: int) -> list[Network]:
    return [m.network for m in islice(flow(net, stream(1, "x")), number)]  # type: ignore[operator]


@pytest.mark.parametrize("name", ["mlp-relu", "cnn-batchnorm", "dropout"])
def test_ripening_from_ratio_one_is_plain_retraining_bit_for_bit(name: str) -> None:
    case = NETWORKS[name]
    damaged, retrain = hurt(case, 0.5), Retrain(case.task(), SGD(0.1), batch=8)
    plain = moments_of(after(Regrow(1.0), retrain), damaged, 5)
    ripe = moments_of(Ripen(Regrow(1.0), retrain, over=3), damaged, 5)
    assert [net.sha256 for net in ripe] == [net.sha256 for net in plain]


def test_ripening_from_ratio_infinity_moves_only_new_units_at_first_and_all_in_the_end() -> None:
    case = NETWORKS["mlp-relu"]
    damaged = hurt(case, 0.5)
    new = Anatomy.of(damaged).entries(dead_units(damaged)).all
    surgery, first, *_, before, last = moments_of(
        Ripen(Regrow(0.0), Retrain(case.task(), SGD(0.1), batch=8), 4), damaged, 8
    )
    for name, weight in surgery.weights.items():
        old = ~new.get(name, torch.zeros_like(weight, dtype=torch.bool))
        assert torch.equal(first.weights[name][old], weight[old])
        assert not torch.equal(last.weights[name][old], before.weights[name][old])
    assert not equal(first.weights, surgery.weights)
    assert all(bool((p == 1).all()) for p in last.plasticity.values())


@pytest.mark.parametrize("others", [0.0, 0.2, 3.0])
def test_old_units_ripen_linearly(others: float) -> None:
    case = NETWORKS["mlp-tanh"]
    damaged = hurt(case, 0.4).pin({"4.bias": torch.tensor([True, False, False])})
    new = Anatomy.of(damaged).entries(dead_units(damaged)).all
    task = case.task()
    whole = Retrain(task, SGD(0.1, momentum=0.0), batch=24)
    nets = moments_of(Ripen(Regrow(others), whole, over=4), damaged, 7)
    for update, (net, after_it) in enumerate(pairwise(nets)):
        full = next(whole(net, stream(0, "whatever"))).network
        share = 1 - (1 - others) * max(0.0, 1 - update / 4)
        for name, weight in net.weights.items():
            wanted = torch.where(new.get(name, torch.zeros_like(weight, dtype=torch.bool)), 1.0, share)
            step = full.weights[name] - weight
            assert torch.allclose(after_it.weights[name], weight + wanted * step, atol=1e-6), (update, name)
        assert float(after_it.weights["4.bias"][0]) == float(damaged.weights["4.bias"][0])


def test_ripening_without_dead_units_is_plain_retraining() -> None:
    case = NETWORKS["mlp-relu"]
    retrain = Retrain(case.task(), SGD(0.1), batch=8)
    ripe = moments_of(Ripen(Regrow(0.0), retrain, over=3), case.network(), 3)
    assert [n.sha256 for n in ripe[1:]] == [n.sha256 for n in moments_of(retrain, case.network(), 2)]


@pytest.mark.parametrize("over", [0, -1, 2.5, "x"])
def test_ripening_takes_a_positive_number_of_updates(over: object) -> None:
    with pytest.raises(InputError, match=r"Ripen\.over"):
        Ripen(Regrow(), Retrain(NETWORKS["mlp-relu"].task()), over)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ recycling


def replaced(net: Network, before: Network) -> set[Unit]:
    """Units of the small networks that read otherwise, in the first layer, or are not read, in the second."""
    first = (net.weights["0.weight"] != before.weights["0.weight"]).any(1)
    second = (net.weights["4.weight"] == 0).all(0)
    pairs = (("0", first), ("2", second))
    return {Unit(layer, index) for layer, hit in pairs for index in hit.nonzero().flatten().tolist()}


def test_the_least_useful_of_every_layer_are_replaced() -> None:
    case = NETWORKS["mlp-tanh"]
    net, task = case.network(), case.task()
    end = Recycle(task, share=3 / 7, examples=24)(net, stream(0, "x"))
    use = sizes(net, inputs=task.train.inputs)
    gone = replaced(end, net)
    assert {u.index for u in gone if u.layer == "0"} == set(use["0"].argsort()[:3].tolist())
    assert {u.index for u in gone if u.layer == "2"} in (
        set(use["2"].argsort()[:2].tolist()),
        set(use["2"].argsort()[:3].tolist()),
    )
    kept = torch.tensor([i for i in range(7) if Unit("0", i) not in gone])
    assert torch.equal(end.weights["0.weight"][kept], net.weights["0.weight"][kept])
    assert dead_units(end) == ()


def test_the_share_holds_on_average() -> None:
    case = NETWORKS["mlp-tanh"]
    net = case.network()
    counts = [len(replaced(Recycle(case.task(), 0.1, 4)(net, stream(s, "x")), net)) for s in range(60)]
    assert sum(counts) / 60 == pytest.approx(0.1 * 12, abs=0.25)
    assert Recycle(case.task(), 0.0)(net, stream(0, "x")) is net


@CASES
def test_recycling_leaves_the_dead_dead_and_pins_as_they_were(case: NetworkCase) -> None:
    damaged = hurt(case, 0.4)
    end = Recycle(case.task(), 1.0, 8)(damaged, stream(0, "x"))
    assert set(dead_units(end)) == set(dead_units(damaged))
    for name, plasticity in damaged.plasticity.items():
        assert torch.equal(end.plasticity[name] == 0, plasticity == 0)
        assert torch.equal(end.weights[name][plasticity == 0], damaged.weights[name][plasticity == 0])


def test_units_that_are_heard_through_a_pinned_weight_are_left() -> None:
    case = NETWORKS["mlp-relu"]
    edge = torch.zeros(5, 7, dtype=torch.bool)
    edge[1, 3] = True
    net = case.network().pin({"2.weight": edge})
    end = Recycle(case.task(), 1.0, 8)(net, stream(0, "x"))
    assert bool((end.weights["2.weight"][:, 3] != 0).any())
    assert torch.equal(end.weights["0.weight"][3], net.weights["0.weight"][3])


def test_recycling_is_paid_for_without_labels_and_rides_along_in_a_flow() -> None:
    case = NETWORKS["cnn-batchnorm"]
    cost = Recycle(case.task(), 0.1, 24).moment(case.network(), stream(0, "x")).cost
    assert (cost.examples, cost.labels, cost.forward_passes, cost.backward_passes) == (24, 0, 1, 0)
    assert cost.multiply_adds == 24 * forward_multiply_adds(case.network(), case.inputs(2))
    cycle = chain(settle(Retrain(case.task(), SGD(0.05), batch=8), steps(3)), Recycle(case.task(), 0.3, 24))
    *_, last = islice(repeat(cycle)(case.network(), stream(0, "x")), 2)
    assert (last.cost.examples, last.cost.labels, last.cost.backward_passes) == (2 * (24 + 24), 2 * 24, 6)


def test_a_network_without_readable_units_is_left_as_it_is() -> None:
    case = NETWORKS["tied"]
    assert Recycle(case.task(), 1.0)(case.network(), stream(0, "x")) is case.network()


@pytest.mark.parametrize(
    ("share", "examples"), [(-0.1, 8), (1.1, 8), (float("nan"), 8), ("x", 8), (0.1, 0), (0.1, 1.5)]
)
def test_settings_of_recycling_off_their_range_are_refused(share: object, examples: object) -> None:
    with pytest.raises(InputError, match=r"Recycle\.(share|examples)"):
        Recycle(NETWORKS["mlp-relu"].task(), share, examples)  # type: ignore[arg-type]
