"""Retraining runs on the network without its dead units, and ends where the whole one would have ended."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import FLOWS, NETWORKS, NetworkCase, hurt, shifted
from planaria.core.anatomy import Anatomy, Unit
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost, Moment, after, chain, settle, steps
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import equal
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence, StuckAt
from planaria.damage.sites import RandomEntries, RandomUnits, RankedUnits
from planaria.measure.task import Task
from planaria.repair import descent
from planaria.repair.distil import Distil
from planaria.repair.perceptron import Perceptron
from planaria.repair.regrow import Regrow, Ripen
from planaria.repair.retrain import SGD, Adam, AdamW, Optimiser, Retrain
from planaria.study.rescue import Criterion, attempt
from planaria.sweep.compact import Compact, compact
from purity import state, untouched

CASES = pytest.mark.parametrize("case", NETWORKS.values(), ids=str)
RANDOM = {"dropout", "transformer-post-norm", "transformer-pre-norm", "decoder"}
"""Networks with dropout, which draws other numbers for a smaller network."""

WHOLE = {
    "deconv-groupnorm": "its normalisation runs over its units",
    "attention-written-out": "heads are a number in its code",
    "attention-grouped": "the same",
    "called-twice": "its weights are shared",
    "tied": "the same",
    "one-unit-per-layer": "one unit must stay",
    "choosing": "other inputs may take another way",
    "inverted-residual": "what only dead channels read can still move, by weight decay",
    **dict.fromkeys(
        ("lstm-stacked", "rnn-no-bias", "gru-steps", "lstm-steps", "lstm-written-out"),
        "recurrent units are a number in their module",
    ),
}
"""Networks that are trained whole, and why."""

BY_HAND = {"mlp-relu", "double"}
"""Perceptrons, which are trained by hand: equal up to rounding only. More about them in test_perceptron."""

Run = Callable[[Network, int], list[Moment]]


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks of these tests are so small that it would not be worth while."""
    monkeypatch.setattr(descent, "WORTHWHILE", 0)


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, Network, int], list[Moment]]:
    """Runs a flow without leaving anything out."""

    def run(flow: Any, net: Network, number: int = 4) -> list[Moment]:
        with monkeypatch.context() as patch:
            patch.setattr(descent, "WORTHWHILE", float("inf"))
            return run_of(flow, net, number)

    return run


def run_of(flow: Any, net: Network, number: int = 4) -> list[Moment]:
    return list(islice(flow(net, stream(0, "x")), number))


def retrain(case: NetworkCase, optimiser: Optimiser | None = None) -> Retrain:
    return Retrain(case.task(), optimiser or SGD(0.05, momentum=0.9, decay=0.01), batch=8)


def assert_near(a: Network, b: Network, start: Network, tolerance: float = 1e-4) -> None:
    """Equal up to rounding in what can move, and bit-identical in what cannot."""
    for name, plasticity in start.plasticity.items():
        pinned = plasticity == 0
        assert torch.equal(a.weights[name][pinned], start.weights[name][pinned]), f"{name} has moved"
        moved = (b.weights[name] - start.weights[name]).abs().max()
        apart = (a.weights[name] - b.weights[name]).abs().max()
        assert float(apart) <= tolerance * float(moved) + 1e-6, f"{name}: {float(apart)} apart of {float(moved)}"


def smaller(moment: Moment, net: Network, inputs: Tensor) -> bool:
    """Whether less was multiplied than the whole network would have needed."""
    return moment.cost.multiply_adds < 3 * moment.cost.examples * forward_multiply_adds(net, inputs)


# ----------------------------------------------------------------------------------------------------- laws


@CASES
def test_it_ends_where_training_the_whole_network_ends(case: NetworkCase, whole: Any) -> None:
    net = hurt(case)
    with untouched(net, case.task()):
        ours, theirs = run_of(retrain(case), net), whole(retrain(case), net)
    assert smaller(ours[-1], net, case.inputs(2)) == (case.name not in WHOLE)
    assert not smaller(theirs[-1], net, case.inputs(2))
    for one, other in zip(ours, theirs, strict=True):
        assert one.network.module is net.module
        assert one.network.plasticity is net.plasticity and one.network.inputs is net.inputs
        if case.name not in RANDOM:
            assert_near(one.network, other.network, net)
    if case.name in WHOLE:
        assert state(ours[-1].network) == state(theirs[-1].network)


@CASES
def test_dead_units_stay_as_they_are_and_statistics_of_the_living_move(case: NetworkCase) -> None:
    net = hurt(case, 0.6)
    end = run_of(retrain(case), net)[-1].network
    dead = Anatomy.of(net).dead(net)
    for layer, units in Anatomy.of(net).dead(end).items():
        assert torch.equal(units, dead[layer])
    for name, plasticity in net.plasticity.items():
        assert torch.equal(end.weights[name][plasticity == 0], net.weights[name][plasticity == 0])
    assert any(not torch.equal(end.weights[name], net.weights[name]) for name in net.weights)


@CASES
def test_a_network_without_dead_units_trains_as_ever_bit_for_bit(case: NetworkCase, whole: Any) -> None:
    net = case.network()
    ours, theirs = run_of(retrain(case), net), whole(retrain(case), net)
    assert [m.cost.multiply_adds for m in ours] == [m.cost.multiply_adds for m in theirs]
    if case.name in BY_HAND:
        assert_near(ours[-1].network, theirs[-1].network, net)
    else:
        assert [state(m.network) for m in ours] == [state(m.network) for m in theirs]


@pytest.mark.parametrize("name", ["mlp-relu", "cnn-batchnorm", "dropout", "transformer-pre-norm"])
def test_the_same_stream_gives_the_same_bytes(name: str) -> None:
    case = NETWORKS[name]
    net = hurt(case)
    first, second = (run_of(retrain(case), net) for _ in range(2))
    assert [state(m.network) for m in first] == [state(m.network) for m in second]


@pytest.mark.parametrize("name", ["mlp-relu", "conv1d", "double", "tokens-wise"])
@pytest.mark.parametrize("optimiser", [SGD(0.05), Adam(0.01), AdamW(0.01, decay=0.1)], ids=repr)
def test_every_optimiser_of_ours_forgets_nothing(name: str, optimiser: Optimiser, whole: Any) -> None:
    case = NETWORKS[name]
    net = hurt(case)
    ours, theirs = run_of(retrain(case, optimiser), net, 6), whole(retrain(case, optimiser), net, 6)
    assert_near(ours[-1].network, theirs[-1].network, net, tolerance=2e-3 if isinstance(optimiser, Adam) else 1e-3)


@pytest.mark.parametrize("name", ["mlp-relu", "cnn-batchnorm", "residual"])
def test_a_moment_stays_what_it_was_when_the_training_goes_on(name: str) -> None:
    case = NETWORKS[name]
    net = hurt(case)
    at_once = [state(moment.network) for moment in islice(retrain(case)(net, stream(0, "x")), 5)]
    kept = list(islice(retrain(case)(net, stream(0, "x")), 5))
    assert [state(moment.network) for moment in reversed(kept)] == at_once[::-1]
    assert len(set(at_once)) == 5


def test_normalisation_statistics_of_removed_channels_keep_their_values() -> None:
    case = NETWORKS["cnn-batchnorm"]
    net = Damage(Silence(), RankedUnits((Unit("0", 1), Unit("0", 2)))).at(1.0)(case.network(), stream(0, "x"))
    end = run_of(retrain(case), net)[-1].network
    for name in ("1.running_mean", "1.running_var"):
        same = end.buffers[name] == net.buffers[name]
        assert same.tolist() == [False, True, True, False]
    assert int(end.buffers["1.num_batches_tracked"]) == int(net.buffers["1.num_batches_tracked"]) + 4


def test_plasticity_may_change_on_the_way(whole: Any) -> None:
    case = NETWORKS["mlp-tanh"]
    net = hurt(case)
    flow = retrain(case)

    def fading(start: Network, rng: torch.Generator) -> Any:
        young = {name: p * 0.25 for name, p in start.plasticity.items()}
        return flow.under(start, rng, lambda update: young if update < 2 else start.plasticity)

    ours = run_of(fading, net)
    assert smaller(ours[-1], net, case.inputs(2))
    assert_near(ours[-1].network, whole(fading, net)[-1].network, net)


@pytest.mark.parametrize("name", ["mlp-relu", "cnn-batchnorm"])
def test_other_flows_train_the_smaller_network_too(name: str, whole: Any) -> None:
    case = NETWORKS[name]
    net = hurt(case)
    few = chain(Damage(Silence(), RandomUnits()).at(0.2))
    flows = {
        "distil": Distil(case.network(), case.inputs(24, "train"), SGD(0.02), batch=8),
        "after": after(few, retrain(case)),
        "ripen": Ripen(Regrow(others=0), retrain(case), over=2),
    }
    for flow in flows.values():
        ours, theirs = run_of(flow, net, 4), whole(flow, net, 4)
        for one, other in zip(ours, theirs, strict=True):
            assert_near(one.network, other.network, ours[0].network if flow is flows["ripen"] else one.network)
            assert one.cost.examples == other.cost.examples


# -------------------------------------------------------------------------------------- only where it is exact


def test_entries_of_a_dead_unit_that_can_still_move_are_moved() -> None:
    """Its columns are zero and pinned, its row is not: weight decay goes on there."""
    case = NETWORKS["mlp-relu"]
    column = torch.zeros(5, 7, dtype=torch.bool)
    column[:, 2] = True
    net = case.network()
    net = net.with_weights({"2.weight": net.weights["2.weight"].masked_fill(column, 0.0)}).pin({"2.weight": column})
    assert compact(net).units_removed == 1
    end = run_of(retrain(case, SGD(0.1, decay=0.5)), net)[-1]
    assert not smaller(end, net, case.inputs(2))
    assert float(end.network.weights["0.weight"][2].abs().sum()) < float(net.weights["0.weight"][2].abs().sum())


def test_what_only_dead_channels_read_goes_too_where_no_decay_moves_it(whole: Any) -> None:
    case = NETWORKS["inverted-residual"]
    net = hurt(case)
    ours, theirs = (run(retrain(case, SGD(0.05)), net) for run in (run_of, whole))
    assert smaller(ours[-1], net, case.inputs(2))
    assert_near(ours[-1].network, theirs[-1].network, net)
    unread = Anatomy.of(net).dead(net)["gated"] & ~Anatomy.of(net).dead(net)["expand"]
    assert bool(unread.any())
    one, other = (moments[-1].network.weights["expand.weight"][unread] for moments in (ours, theirs))
    assert torch.equal(one, other)


def test_units_that_are_stuck_and_edges_that_are_cut_leave_the_network_whole(whole: Any) -> None:
    case = NETWORKS["mlp-tanh"]
    for damage in (Damage(StuckAt(0.7), shifted(case)).at(0.5), Damage(Silence(), RandomEntries()).at(0.5)):
        net = damage(case.network(), stream(0, "x"))
        ours, theirs = run_of(retrain(case), net), whole(retrain(case), net)
        assert [state(m.network) for m in ours] == [state(m.network) for m in theirs]


def test_an_optimiser_of_the_users_own_sees_the_whole_network() -> None:
    shapes: list[list[int]] = []

    class Own:
        def build(self, parameters: Any, /) -> torch.optim.Optimizer:
            kept = list(parameters)
            shapes.extend(list(parameter.shape) for parameter in kept)
            return torch.optim.SGD(kept, lr=0.1)

    case = NETWORKS["mlp-relu"]
    run_of(retrain(case, Own()), hurt(case))
    assert shapes == [[7, 6], [7], [5, 7], [5], [3, 5], [3]]


def test_a_network_without_example_inputs_is_trained_whole() -> None:
    case = NETWORKS["mlp-tanh"]
    net = hurt(case)
    bare = Network(net.module, net.weights, net.buffers, net.plasticity)
    end = run_of(retrain(case), bare)[-1]
    assert end.network.inputs is None and not smaller(end, bare, case.inputs(2))


class InTraining(nn.Module):
    """Counts its units, or has a second head, in train mode only."""

    def __init__(self, how: str) -> None:
        nn.Module.__init__(self)
        self.first, self.head, self.how = nn.Linear(6, 8), nn.Linear(8, 3), how
        self.fixed = torch.ones(8)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        hidden = torch.relu(self.first(x))
        if self.training and self.how == "counts":
            hidden = hidden / hidden.shape[1]
        if self.training and self.how == "breaks":
            hidden = hidden * self.fixed
        logits: Tensor = self.head(hidden)
        return logits


@pytest.mark.parametrize("how", ["counts", "breaks"])
def test_a_module_that_uses_its_width_in_train_mode_only_is_trained_whole(how: str, whole: Any) -> None:
    case = NETWORKS["mlp-relu"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Network.of(InTraining(how), case.inputs(3))
    net = Damage(Silence(), RandomUnits()).at(0.5)(net, stream(0, "x"))
    assert compact(net).units_removed == 4
    assert state(run_of(retrain(case), net)[-1].network) == state(whole(retrain(case), net)[-1].network)


def test_where_everything_is_pinned_nothing_moves_and_the_work_is_paid() -> None:
    case = NETWORKS["mlp-relu"]
    net = hurt(case)
    net = net.pin({name: torch.ones_like(w, dtype=torch.bool) for name, w in net.weights.items()})
    end = run_of(retrain(case), net)[-1]
    assert end.network.sha256 == net.sha256 and end.cost.backward_passes == 4


def test_nothing_is_looked_for_where_an_update_is_cheap_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    case = NETWORKS["mlp-relu"]
    net = hurt(case)
    work = 3 * 8 * forward_multiply_adds(net, case.inputs(2))
    for bound, less in ((work, True), (work + 1, False)):
        monkeypatch.setattr(descent, "WORTHWHILE", bound)
        assert smaller(run_of(retrain(case), net)[-1], net, case.inputs(2)) == less


# ------------------------------------------------------------------------------------------------------ cost


def test_the_ledger_counts_the_multiplications_that_were_made() -> None:
    case = NETWORKS["mlp-relu"]
    net = hurt(case)
    small = forward_multiply_adds(compact(net).network, case.inputs(2))
    moments = run_of(retrain(case), net, 3)
    assert [m.cost.multiply_adds for m in moments] == [3 * small * 8 * count for count in (1, 2, 3)]
    assert [m.cost.examples for m in moments] == [8, 16, 24]
    seconds = [m.cost.seconds for m in moments]
    assert seconds[0] > 0 and seconds == sorted(seconds)


@pytest.mark.parametrize("name", ["mlp-relu", "mlp-tanh"])
def test_a_network_that_nobody_asks_for_is_not_put_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    expand, network = Compact.expand, Perceptron._network

    def counted(self: Compact, small: Network) -> Network:
        made.append(1)
        return expand(self, small)

    def counted_too(self: Perceptron, values: Tensor) -> Network:
        made.append(1)
        return network(self, values)

    monkeypatch.setattr(Compact, "expand", counted)
    monkeypatch.setattr(Perceptron, "_network", counted_too)
    case = NETWORKS[name]
    net = hurt(case)
    more = Damage(Silence(), RandomUnits()).at(0.1)
    for flow in (retrain(case), after(more, retrain(case)), Distil(case.network(), case.inputs(24), batch=8)):
        made.clear()
        end = settle(flow, steps(6)).moment(net, stream(0, "x"))
        assert made == []
        assert end.network is end.network and made == [1]


def test_a_rescue_asks_for_networks_only_where_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    later = Moment.later

    def counted(network: Callable[[], Network], cost: Cost) -> Moment:
        return later(lambda: made.append(1) or network(), cost)  # type: ignore[func-returns-value]

    monkeypatch.setattr(Moment, "later", staticmethod(counted))
    case = NETWORKS["mlp-tanh"]
    end = attempt(
        case.network(),
        Damage(Silence(), RandomUnits()),
        0.4,
        retrain(case),
        case.task(),
        within=steps(25),
        criterion=Criterion(every=10),
    )
    assert [look.cost.backward_passes for look in end.looks] == [0, 1, 10, 20, 25]
    assert len(made) == 2 * 4  # the smaller network and the whole one, at all looks but the one before the repair
    assert end.network.sha256 != case.network().sha256


# ---------------------------------------------------------------------------------------- moments, expansion


def test_a_moment_is_a_value() -> None:
    net, cost = NETWORKS["mlp-relu"].network(), Cost(examples=3)
    calls: list[int] = []

    def make() -> Network:
        calls.append(1)
        return net

    now, later = Moment(net, cost), Moment.later(make, cost)
    moved = later.at(Cost(examples=5))
    assert not calls
    assert moved.network is later.network is net and calls == [1]
    assert moved.cost == Cost(examples=5) and later.cost == cost
    assert repr(later) == repr(now) == f"Moment(network={net!r}, cost={cost!r})"
    assert Moment(network=net).cost == Cost()
    for name in ("network", "cost"):
        with pytest.raises(AttributeError):
            setattr(now, name, None)


def test_a_moment_travels_between_processes_whether_made_or_not() -> None:
    net = NETWORKS["mlp-relu"].network()
    for moment in (Moment(net, Cost(labels=2)), Moment.later(lambda: net, Cost(labels=2))):
        copy = pickle.loads(pickle.dumps(moment))
        assert copy.cost == moment.cost and copy.network.sha256 == net.sha256


@CASES
def test_what_was_cut_out_comes_back_in_its_place(case: NetworkCase) -> None:
    net = hurt(case, 0.5)
    small = compact(net)
    assert state(small.expand(small.network)) == state(net)
    assert equal(small.shrink(net.weights), small.network.weights)
    assert equal(small.shrink(net.plasticity), small.network.plasticity)
    marked = small.network.with_weights({name: torch.full_like(w, 7.0) for name, w in small.network.weights.items()})
    back = small.expand(marked)
    assert sum(int((w == 7.0).sum()) for w in back.weights.values()) == small.parameters
    for name, weight in back.weights.items():
        assert torch.equal(weight[weight != 7.0], net.weights[name][weight != 7.0])


def test_all_flows_of_the_table_still_run_when_everything_is_compacted() -> None:
    case = NETWORKS["cnn-batchnorm"]
    net = hurt(case)
    for row in FLOWS.values():
        for moment in islice(row.make(case)(net, stream(0, "x")), 2):
            assert moment.network.weights.keys() == net.weights.keys()


def test_a_task_of_one_class_and_one_example_is_trained_on() -> None:
    case = NETWORKS["mlp-relu"]
    task = case.task()
    one = Task("one", task.train.take(1), task.validation, task.test, task.loss, task.scorer, 3)
    net = hurt(case)
    end = run_of(Retrain(one, SGD(0.5), batch=128), net, 20)[-1]
    assert smaller(end, net, case.inputs(2)) and one.score(end.network, one.train) == 1.0
