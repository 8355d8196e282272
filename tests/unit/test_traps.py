"""Traps that other fault-injection, pruning and attribution tools are known to fall into, each as a regression test.

Two of the known ones have no counterpart here and therefore no test:

- A quantising bit flip that refuses values at the calibrated maximum: there is no fault that quantises.
- Perturbed copies of a batch whose per-example targets are not expanded with it: nothing here expands a batch.
"""

from __future__ import annotations

import copy
import logging
import random
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cases import NETWORKS, hurt, randomise, teacher, trained
from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.errors import AnatomyError, InputError
from planaria.core.motion import settle, steps, updates
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.tap import tap
from planaria.damage.damage import Damage
from planaria.damage.faults import Noise, Silence, StuckAt
from planaria.damage.sites import Dose, RandomEntries, RandomUnits, RankedUnits
from planaria.measure.scores import ACCURACY
from planaria.measure.task import FORWARD_BATCH, Data, Task
from planaria.repair.refit import Refit, Sidecar
from planaria.repair.retrain import SGD, Adam, AdamW, Retrain
from planaria.study.rescue import attempt, rescue
from purity import state, untouched

SILENT = Damage(Silence(), RandomUnits())


def silenced(net: Network, *units: Unit) -> Network:
    return Damage(Silence(), RankedUnits(units)).at(1.0)(net, stream(0, "x"))


# ----------------------------------------------------------------------------------- lifecycle and state


def test_trap_1_damage_lasts_for_one_forward_pass_only() -> None:
    """A corrupted model that works once, and fails or heals at the second batch of a loader."""
    case = NETWORKS["cnn-batchnorm"]
    damaged, inputs = hurt(case), case.inputs(8, "many")
    first = damaged(inputs)
    for _ in range(3):
        assert torch.equal(damaged(inputs), first)
    assert not torch.allclose(first, case.network()(inputs))


def test_trap_2_damage_hits_only_the_first_row_of_a_batch() -> None:
    """A broken neuron is broken for every example, not for the first one of each batch."""
    case = NETWORKS["cnn-batchnorm"]
    intact, damaged, inputs = case.network(), hurt(case), case.inputs(8, "many")
    changed = (damaged(inputs) - intact(inputs)).abs().amax(1) > 1e-4
    assert bool(changed.all())
    single = torch.cat([damaged(row[None]) for row in inputs])
    assert torch.allclose(single, damaged(inputs), atol=1e-5)


def test_trap_3_the_library_configures_logging() -> None:
    """A root log format of the library's own turns later warnings of the host program into tracebacks."""
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.getLoggerClass(), logging.raiseExceptions)
    case = NETWORKS["mlp-relu"]
    attempt(case.network(), SILENT, 0.5, Retrain(case.task(), batch=8), case.task(), within=updates(2))
    assert (root.level, list(root.handlers), logging.getLoggerClass(), logging.raiseExceptions) == before


def test_trap_4_a_fault_that_is_switched_off_leaves_its_damage_behind() -> None:
    """The intact network is still there, bit for bit, whatever was done with damaged ones in the meantime."""
    case = NETWORKS["residual"]
    net, inputs = case.network(), case.inputs(4, "many")
    hash_before, outputs = state(net), net(inputs)
    for fault in (Silence(), Silence(lasting=False), Noise(1.0), Noise(1.0, lasting=True)):
        Damage(fault, RandomUnits(kinds=("channel", "branch"))).at(0.5)(net, stream(0, "x"))(inputs)
    assert state(net) == hash_before
    assert torch.equal(net(inputs), outputs)


def test_trap_5_evaluation_after_a_repair_sees_the_weights_from_before_it() -> None:
    """Damage, repair, evaluate: the private copy of the weights must not come back from before the repair."""
    net, task = trained("clouds")
    damaged = SILENT.at(0.6)(net, stream(0, "x"))
    task.score(damaged)
    repaired = settle(Retrain(task, Adam(0.01), batch=16), steps(60))(damaged, stream(1, "x"))
    assert task.score(repaired) > task.score(damaged)
    by_hand = repaired.to_module()
    with torch.no_grad():
        assert torch.allclose(by_hand(task.test.inputs), repaired(task.test.inputs))
    again = SILENT.at(0.0)(repaired, stream(2, "x"))
    assert state(again) == state(repaired)


def test_trap_6_random_places_are_drawn_layer_first() -> None:
    """Drawing a layer and then a place gives the units of small layers a far larger share than they have."""
    model = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 2), nn.ReLU(), nn.Linear(2, 3))
    net = Network.of(model, torch.zeros(1, 4))
    site = RandomUnits(Dose("units"))
    small = sum(site.units(net, 1, stream(seed, "x"))[0].layer == "2" for seed in range(400))
    assert small / 400 < 0.1, "2 of 50 units, half of the layers"


def test_trap_7_an_exception_switches_later_faults_off() -> None:
    """After a forward pass that raised, damage, tracing and verification work as before."""
    case = NETWORKS["transformer-pre-norm"]
    net, inputs = case.network(), case.inputs(4, "many")
    expected = state(hurt(case))
    for _ in range(2):
        with pytest.raises(RuntimeError):
            net(torch.zeros(2, 4, 99))
        with pytest.raises(AnatomyError):
            Anatomy.of(net, torch.zeros(2, 4, 99))
    assert state(hurt(case)) == expected
    assert not torch.allclose(hurt(case)(inputs), net(inputs))
    Anatomy.of(net).verify(net)


def test_trap_8_the_callers_own_batch_is_written_into() -> None:
    """Gating in place must reach neither the caller's inputs nor the skip path of a residual block."""
    for name in ("residual", "cnn-batchnorm", "lstm-tapped", "transformer-post-norm"):
        case = NETWORKS[name]
        net, inputs = case.network(), case.inputs(4, "many")
        with untouched(inputs, net):
            Anatomy.of(net).verify(net, inputs)
            Sidecar.of(net, inputs)
            next(Refit(teacher(case))(hurt(case), stream(0, "x")))
            hurt(case)(inputs)


def test_trap_8_the_skip_path_is_damaged_with_the_branch() -> None:
    """Silencing a channel of the branch leaves what the skip path carries in that channel."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc((x + self.conv(x)).mean((2, 3)))

    model = Block()
    randomise(model, 0)
    x = torch.randn(4, 3, 2, 2, generator=stream(0, "in"))
    net = Network.of(model, x)
    with torch.no_grad():
        branch = model.conv(x)
        branch[:, 1] = 0
        expected = model.fc((x + branch).mean((2, 3)))
    assert torch.allclose(silenced(net, Unit("conv", 1))(x), expected, atol=1e-6)


def test_trap_9_looking_at_a_model_in_train_mode_changes_its_statistics() -> None:
    """Making a network of a model and tracing it runs nothing in the model's own mode."""
    case = NETWORKS["cnn-batchnorm"]
    model = case.build().train()
    with untouched(model):
        net = Network.of(model, case.inputs(3))
        Anatomy.of(net).verify(net)
        tap(net, ["0"])
        net(case.inputs(4))
    assert all(torch.equal(net.buffers[name], buffer) for name, buffer in model.named_buffers())


def test_trap_10_no_gradients_through_a_faulty_network() -> None:
    """A damaged network can be differentiated with respect to its weights and trained on."""
    case = NETWORKS["cnn-batchnorm"]
    damaged = hurt(case)
    leaves = {name: w.clone().requires_grad_() for name, w in damaged.weights.items()}
    damaged(case.inputs(4), leaves).square().sum().backward()
    reached = [name for name, leaf in leaves.items() if leaf.grad is not None and bool((leaf.grad != 0).any())]
    assert set(reached) == set(leaves)
    module = damaged.to_module()
    module(case.inputs(4)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_trap_11_one_seed_is_not_enough() -> None:
    """Counts from one library's generator and places from another's: here the one seed decides, and is recorded."""
    net, task = trained("clouds")
    rows = []
    for _ in range(2):
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002 - other generators move on
        result = rescue(net, SILENT, {"r": Retrain(task, batch=16)}, task, doses=[0.5], seeds=[7], within=updates(4))
        rows.append(result.rows[0])
    assert rows[0]["seed"] == 7
    for row in rows:
        row.pop("curve")
        for cost in [value for value in row.values() if isinstance(value, dict)]:
            cost.pop("seconds")
    assert rows[0] == rows[1]


def test_trap_12_a_smaller_last_batch_raises() -> None:
    """Networks, scores, moments and retraining take any number of examples."""
    case = NETWORKS["cnn-batchnorm"]
    damaged = hurt(case)
    assert [len(damaged(case.inputs(count))) for count in (1, 3, 7)] == [1, 3, 7]
    many = case.inputs(FORWARD_BATCH + 3, "many")
    labels = torch.zeros(len(many), dtype=torch.long)
    task = Task.of("odd", (many, labels), (many, labels), validation=(many[:5], labels[:5]), classes=3)
    assert 0 <= task.score(damaged) <= 1
    assert Sidecar.of(damaged, many[:11], batch=4).examples == 11
    assert len(list(islice(Retrain(case.task(), batch=7)(damaged, stream(0, "x")), 8))) == 8


# ------------------------------------------------------------------------------------------ what "dead" means


def test_trap_13_a_removed_unit_emits_its_bias() -> None:
    """Zeroing weights alone leaves the bias: the unit then says act(bias) to everyone."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.ones_(model[0].bias)  # type: ignore[arg-type]
    net = Network.of(model, torch.zeros(1, 3))
    dead = silenced(net, Unit("0", 2)).to_module()
    with torch.no_grad():
        hidden = dead[1](dead[0](torch.randn(5, 3, generator=stream(0, "in"))))  # type: ignore[index]
    assert bool((hidden[:, 2] == 0).all())
    assert bool((hidden[:, 0] != 0).any())


@pytest.mark.parametrize("optimiser", [SGD(0.1, 0.9, 0.1), Adam(0.05), AdamW(0.05, 0.5)], ids=repr)
def test_trap_14_batch_normalisation_speaks_for_a_dead_channel(optimiser: SGD | Adam | AdamW) -> None:
    """A channel zeroed before its normalisation still emits a constant, and after retraining the norm's shift."""
    case = NETWORKS["cnn-batchnorm"]
    net = silenced(case.network(), Unit("0", 1), Unit("4", 2))
    for now in (net, settle(Retrain(case.task(), optimiser, batch=8), steps(10))(net, stream(0, "x"))):
        module = now.to_module()
        with torch.no_grad():
            early = module[:3](case.inputs(5))  # type: ignore[index]
            late = module[:7](case.inputs(5))  # type: ignore[index]
        assert bool((early[:, 1] == 0).all())
        assert bool((late[:, 2] == 0).all())
        assert bool((early[:, 0] != 0).any())


def test_trap_15_a_feature_map_is_deleted_before_or_after_its_normalisation() -> None:
    """One meaning: what is silenced is the activation, after normalisation and non-linearity."""
    case = NETWORKS["cnn-batchnorm"]
    net, inputs = case.network(), case.inputs(5, "many")
    outputs = {}
    for point in ("0", "2"):
        model = net.to_module()
        model.get_submodule(point).register_forward_hook(
            lambda m, a, out: out * (torch.arange(4) != 1).float()[:, None, None]
        )
        with torch.no_grad():
            outputs[point] = model(inputs)
    ours = silenced(net, Unit("0", 1))(inputs)
    assert torch.allclose(ours, outputs["2"], atol=1e-5)
    assert not torch.allclose(ours, outputs["0"], atol=1e-3)


def test_trap_16_one_feature_map_of_a_residual_net_drags_the_whole_stream_along() -> None:
    """A branch's channel owns its own layer and norm; the stream and everything else that writes to it stay."""
    case = NETWORKS["residual"]
    net = case.network()
    anatomy = Anatomy.of(net)
    assert set(anatomy.entries([Unit("conv2", 3)]).all) == {"conv2.weight", "bn2.weight", "bn2.bias"}
    assert all(group.kind != "branch" for group in anatomy.select())
    assert {group.layer for group in anatomy.select(["branch"])} == {"stem", "conv2", "conv3", "down"}


@pytest.mark.parametrize("optimiser", [SGD(0.1, 0.9), SGD(0.1, 0.9, 0.1), Adam(0.05), AdamW(0.05, 0.5)], ids=repr)
def test_trap_17_momentum_revives_dead_units(optimiser: SGD | Adam | AdamW) -> None:
    """Masked gradients are not enough: momentum, Adam's state and weight decay move deleted weights."""
    case = NETWORKS["mlp-relu"]
    warm = settle(Retrain(case.task(), optimiser, batch=8), steps(5))(case.network(), stream(0, "x"))
    dead = SILENT.at(0.5)(warm, stream(1, "x"))
    end = settle(Retrain(case.task(), optimiser, batch=8), steps(100))(dead, stream(2, "x"))
    for name, plasticity in dead.plasticity.items():
        assert bool((end.weights[name][plasticity == 0] == 0).all())
    assert not torch.equal(end.weights["0.weight"], dead.weights["0.weight"])


def test_trap_18_damage_breaks_a_tie_between_weights() -> None:
    """A tied weight has one name and one value; what is done to it is done wherever it is used."""
    case = NETWORKS["tokens-tied"]
    net = case.network()
    assert "head.weight" not in net.weights
    damaged = Damage(Silence(), RandomEntries(layers=("embed",))).at(0.5)(net, stream(0, "x"))
    module = damaged.to_module()
    assert module.head.weight is module.embed.weight
    with torch.no_grad():
        assert torch.allclose(module(case.inputs(5)), damaged(case.inputs(5)), atol=1e-6)
    trained_on = settle(Retrain(case.task(), SGD(0.1), batch=8), steps(3))(damaged, stream(1, "x"))
    module = trained_on.to_module()
    assert module.head.weight is module.embed.weight


def test_trap_18_a_repair_of_one_use_of_a_tied_weight_spoils_the_other() -> None:
    """A weight that is read elsewhere too is not refitted for one of its readers."""
    case = NETWORKS["tokens-tied"]
    damaged = silenced(case.network(), Unit("fc2", 0), Unit("fc1", 1))
    (moment,) = Refit(teacher(case))(damaged, stream(0, "x"))
    assert torch.equal(moment.network.weights["embed.weight"], damaged.weights["embed.weight"])
    assert Sidecar.of(case.network(), case.inputs(20)).refused["embed.weight"]


@pytest.mark.parametrize("name", ["transformer-post-norm", "attention-separate", "attention-written-out"])
def test_trap_19_a_head_is_taken_for_a_slice_of_the_output_projections_output(name: str) -> None:
    """A head is a slice of the output projection's input; and a hook on that projection may never fire."""
    case = NETWORKS[name]
    net, inputs = case.network(), case.inputs(5, "many")
    anatomy = Anatomy.of(net)
    (head,) = [g for g in anatomy.groups if g.kind == "head"][:1]
    (reader,) = head.readers
    hit = anatomy.entries([Unit(head.layer, 0)]).outgoing[reader]
    assert bool((hit == hit[:1]).all()), "whole columns"
    assert int(hit[0].sum()) == net.weights[reader].shape[1] // head.count
    assert not torch.allclose(silenced(net, Unit(head.layer, 0))(inputs), net(inputs), atol=1e-4)


def test_trap_20_a_module_called_twice_is_two_layers_or_one_and_a_half() -> None:
    """One layer, one set of units, and a silent unit is silent in both calls."""
    case = NETWORKS["called-twice"]
    net, inputs = case.network(), case.inputs(5, "many")
    assert Anatomy.of(net).units() == tuple(Unit(n, i) for n in ("first", "shared") for i in range(5))
    seen: list[Tensor] = []
    model = silenced(net, Unit("shared", 2)).to_module()
    model.shared.register_forward_hook(lambda m, a, out: seen.append(out))  # type: ignore[union-attr, operator]
    with torch.no_grad():
        model(inputs)
    assert len(seen) == 2
    assert all(bool((out[:, 2] == 0).all()) for out in seen)


# --------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_trap_22_only_single_precision_works(dtype: torch.dtype) -> None:
    """Half, bfloat16 and double networks are damaged, verified, hashed, retrained and refitted."""
    case = NETWORKS["mlp-relu"]
    net = Network.of(case.build().to(dtype), case.inputs(3).to(dtype))
    Anatomy.of(net).verify(net)
    for fault in (Silence(), StuckAt(0.5), Noise(0.1)):
        damaged = Damage(fault, RandomUnits()).at(0.5)(net, stream(0, "x"))
        assert damaged.weights["0.weight"].dtype == dtype
        assert damaged.sha256 != net.sha256
    task, damaged = case.task(), SILENT.at(0.5)(net, stream(0, "x"))
    train = Data(task.train.inputs.to(dtype), task.train.targets)
    half = Task("half", train, train, train, task.loss, task.scorer, 3)
    end = settle(Retrain(half, SGD(0.05), batch=8), steps(3))(damaged, stream(1, "x"))
    assert {w.dtype for w in end.weights.values()} == {dtype}
    (moment,) = Refit(Sidecar.of(net, train.inputs))(damaged, stream(0, "x"))
    assert {w.dtype for w in moment.network.weights.values()} == {dtype}
    assert all(bool(w.isfinite().all()) for w in moment.network.weights.values())


def test_trap_22_a_network_of_whole_numbers_crashes() -> None:
    """A module whose weights are packed or whole numbers is refused in words."""

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.ones(3, 4, dtype=torch.int8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.float().T  # type: ignore[operator, union-attr]

    with pytest.raises(InputError, match="a module with parameters, got Packed"):
        Network.of(Packed())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_trap_23_a_network_of_nan_predicts_the_first_class(bad: float) -> None:
    """The argmax of NaN logits is class 0; a network that outputs NaN must score nothing at all."""
    labels = torch.zeros(6, dtype=torch.long)
    assert ACCURACY.function(torch.full((6, 3), bad), labels) == 0.0
    net, task = trained("clouds")
    broken = net.with_weights({name: torch.full_like(w, bad) for name, w in net.weights.items()})
    zeros = Task("zeros", task.train, task.validation, Data(task.test.inputs[:6], labels), task.loss, ACCURACY, 3)
    assert zeros.score(broken) == 0.0


# ------------------------------------------------------------------------------------------------- machinery


@pytest.mark.parametrize("name", ["cnn-batchnorm", "mlp-norms"])
def test_trap_24_a_compiled_model_ignores_the_damage(name: str) -> None:
    """Hooks added after compilation are ignored: damage lies in the weights, taps are there before."""
    case = NETWORKS[name]
    inputs = case.inputs(4, "many")
    tapped = tap(case.network(), ["0"])
    for net in (hurt(case), Damage(Silence(), RandomUnits(kinds=("tap",))).at(0.5)(tapped, stream(0, "x"))):
        torch._dynamo.reset()  # torch reuses compiled code without looking at hooks
        compiled = torch.compile(net.to_module(), backend="eager")
        with torch.no_grad():
            assert torch.allclose(compiled(inputs), net(inputs), atol=1e-6)
            assert not torch.allclose(compiled(inputs), case.network()(inputs), atol=1e-4)


def test_trap_25_state_dict_keys_change_and_copies_fail_after_a_backward_pass() -> None:
    """The module that comes back has the model's own keys, loads into it, and can be copied at any time."""
    case = NETWORKS["transformer-post-norm"]
    model = case.build()
    model(case.inputs(3)).sum().backward()
    net = Network.of(model, case.inputs(3))
    module = SILENT.at(0.5)(net, stream(0, "x")).to_module()
    assert list(module.state_dict()) == list(model.state_dict())
    model.load_state_dict(module.state_dict())
    module(case.inputs(3)).sum().backward()
    copied = copy.deepcopy(module)
    with torch.no_grad():
        assert torch.equal(copied.eval()(case.inputs(3)), module.eval()(case.inputs(3)))


def test_trap_27_recurrent_units_raise_or_break_the_recurrence() -> None:
    """A tap makes the hidden units of a recurrent layer deletable one by one."""
    for name in ("lstm-tapped", "gru-tapped", "lstm-double"):
        case = NETWORKS[name]
        net, inputs = case.network(), case.inputs(5, "many")
        for index in range(5):
            model = silenced(net, Unit("rnn", index)).to_module()
            with torch.no_grad():
                out, _ = model.rnn(inputs)  # type: ignore[operator, union-attr]
            assert bool((out[..., index] == 0).all())
            assert bool((out[..., index - 1] != 0).any())


def test_trap_27_an_optimiser_keeps_a_stale_parameter_after_a_restore() -> None:
    """Training goes on from the damaged weights; what the optimiser moves is what is evaluated."""
    case = NETWORKS["mlp-relu"]
    flow = Retrain(case.task(), SGD(0.1, momentum=0.9), batch=8)
    first = settle(flow, steps(4))(case.network(), stream(0, "x"))
    damaged = SILENT.at(0.4)(first, stream(1, "x"))
    moments = list(islice(flow(damaged, stream(2, "x")), 3))
    for earlier, later in zip([damaged, *(m.network for m in moments)], [m.network for m in moments], strict=False):
        assert not torch.equal(earlier(case.inputs(3)), later(case.inputs(3)))
    anatomy = Anatomy.of(damaged)
    dead = [u for u in anatomy.units() if bool(anatomy.dead(damaged)[u.layer][u.index])]
    end = moments[-1].network
    assert torch.equal(silence(end, anatomy.entries(dead).all)(case.inputs(3)), end(case.inputs(3)))
