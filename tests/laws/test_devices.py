"""Law: everything runs where the network is, and finds there what it finds on the CPU.

`away` is a device that is not there, with a GPU's rules (see foreign.py). Where there is a GPU, every law is tried on
it too: `python -m pytest tests/laws/test_devices.py` on that machine is the check of an installation.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import foreign
from cases import FAULTS, FLOWS, NETWORKS, OPERATORS, SITES, NetworkCase, Row, hurt, shifted
from command_line import planaria
from planaria.core.anatomy import Anatomy
from planaria.core.devices import clock, without_tf32
from planaria.core.errors import EnvironmentProblem
from planaria.core.motion import updates
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits, sizes
from planaria.measure.data import Data
from planaria.repair import descent
from planaria.repair.against import Plain, UnitFaults
from planaria.repair.perceptron import Perceptron
from planaria.repair.refit import Refit, Sidecar, Teacher
from planaria.repair.retrain import SGD, Adam, Retrain
from planaria.repair.together import train_together
from planaria.study.harden import Contest, harden
from planaria.study.portrait import portrait
from planaria.study.rescue import rescue
from planaria.study.respond import respond
from planaria.study.survive import survive
from planaria.study.vulnerability import vulnerability
from planaria.sweep import shards
from planaria.sweep.ablate import Effects, ablate
from planaria.sweep.between import scores_between
from planaria.sweep.compact import compact
from planaria.sweep.edges import Becomes
from planaria.sweep.lesions import EachUnit, EachWeight, Nested
from planaria.sweep.precision import precise
from planaria.sweep.screen import screen
from planaria.sweep.work import Work

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["away", pytest.param("cuda", marks=GPU)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    if request.param == "cuda":
        yield torch.device("cuda", 0)
    else:
        with foreign.Foreign():
            yield foreign.AWAY


def some(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [NETWORKS[name] for name in names], ids=str)


DIFFERENT = ("mlp-norms", "cnn-batchnorm", "residual", "attention-grouped", "tokens-tied", "lstm-tapped", "double")


def near(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return bool(((a - b).abs() <= tolerance * max(1.0, float(b.abs().max()))).all())


def answered(case: NetworkCase, count: int) -> Data:
    """Inputs with the network's own answers, a part of them wrong."""
    inputs = case.inputs(count, "devices")
    targets = case.network()(inputs).argmax(1)
    wrong = torch.rand(targets.shape, generator=stream(case.seed, "wrong")) < 0.3
    return Data(inputs, torch.where(wrong, (targets + 1) % case.classes, targets))


def alike(found: Effects, wanted: Effects) -> None:
    assert found.audit.mismatches == 0
    for key, tally in wanted.tallies.items():
        assert tally.total.sub(found.tallies[key].total.cpu()).abs().max() <= 1, key  # one prediction may round over


# ------------------------------------------------------------------------------------------------------ the device


def test_the_foreign_device_refuses_what_a_gpu_refuses() -> None:
    with foreign.Foreign():
        there, here = torch.ones(3, device=foreign.AWAY), torch.ones(3)
        assert there.device == foreign.AWAY and there.tolist() == [1.0, 1.0, 1.0] and bool((there == 1).all())
        assert (there + torch.tensor(1.0)).cpu().tolist() == [2.0, 2.0, 2.0]
        assert there[torch.tensor([0])].cpu().tolist() == [1.0]
        for mixes in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: torch.where(there > 0, there, here),
            lambda: here[torch.tensor([0], device=foreign.AWAY)],
            lambda: here.masked_fill(there > 0, 0.0),
            lambda: here.index_add_(0, torch.tensor([0], device=foreign.AWAY), there[:1]),
            lambda: torch.randn(3, generator=torch.Generator(), device=foreign.AWAY),
            lambda: there.uniform_(generator=torch.Generator()),
        ):
            with pytest.raises(foreign.WrongDeviceError):
                mixes()
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()


def test_time_is_taken_when_the_device_has_done_its_work(device: torch.device) -> None:
    waited = getattr(torch.get_device_module(device), "waited", None)
    start = clock(device)
    assert clock(device) >= start
    assert waited is None or torch.get_device_module(device).waited == waited + 2


def test_convolutions_round_nothing_while_anything_exact_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    switch = torch.backends.cudnn
    before = switch.allow_tf32
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    seen = []

    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            seen.append(switch.allow_tf32)
            return x * self.weight

    Network.of(Looking())(torch.ones(1))
    with pytest.raises(ZeroDivisionError), without_tf32():
        raise ZeroDivisionError
    assert seen == [False] and switch.allow_tf32 == before


def test_example_inputs_follow_the_weights(device: torch.device) -> None:
    case = NETWORKS["cnn-batchnorm"]
    for net in (
        Network.of(case.build().to(device), case.inputs(3)),
        Network.of(case.build().to(device)).with_inputs(case.inputs(3)),
        Network.of(case.build(), case.inputs(3).to(device)).to(device),
    ):
        assert net.inputs is not None and net.inputs.device == device
        assert Anatomy.of(net).units() == Anatomy.of(case.network()).units()


# ------------------------------------------------------------------------------------------------- units and lesions


@some(*DIFFERENT)
def test_units_are_those_of_the_cpu_and_can_be_gated(case: NetworkCase, device: torch.device) -> None:
    home, net = case.network(), case.network().to(device)
    wanted, found = Anatomy.of(home), Anatomy.of(net)
    assert found.units() == wanted.units() and found.unreached == wanted.unreached
    for one, other in zip(wanted.groups, found.groups, strict=True):
        assert len(one.gates) == len(other.gates), f"{one.layer} has no gates there"
    checks = found.verify(net, per_layer=1)
    assert [check.layer for check in checks] == [group.layer for group in wanted.groups]


@pytest.mark.parametrize("fault", FAULTS)
@some("cnn-batchnorm", "attention-separate")
def test_lesions_are_those_of_the_cpu(case: NetworkCase, fault: str, device: torch.device) -> None:
    for site in ("random", "ranked-per-layer", "entries"):
        damage = Damage(FAULTS[fault], shifted(case) if fault.startswith("stuck") else SITES[site](case)).at(0.4)
        wanted, found = (damage(net, stream(3, "lesion")) for net in (case.network(), case.network().to(device)))
        for name, weight in wanted.weights.items():
            assert found.weights[name].device == device
            assert torch.equal(found.plasticity[name].cpu(), wanted.plasticity[name])
            assert torch.equal(found.weights[name].cpu() == 0, weight == 0) and near(found.weights[name], weight, 1e-6)


@some("cnn-batchnorm", "attention-grouped")
def test_units_rank_as_on_the_cpu(case: NetworkCase, device: torch.device) -> None:
    inputs = case.inputs(6, "rank")
    for given in (None, inputs):
        wanted, found = (sizes(net, inputs=given) for net in (case.network(), case.network().to(device)))
        assert all(near(found[layer], size) for layer, size in wanted.items())


@some(*DIFFERENT)
def test_scores_are_those_of_the_cpu(case: NetworkCase, device: torch.device) -> None:
    task = case.task()
    assert near(case.network().to(device)(task.test.inputs.to(device)), case.network()(task.test.inputs))
    assert task.to(device).score(case.network().to(device)) == pytest.approx(task.score(case.network()), abs=0.1)


# ------------------------------------------------------------------------------------------------ operators and flows


@pytest.mark.parametrize("row", OPERATORS.values(), ids=str)
@some("cnn-batchnorm")
def test_operators_do_there_what_they_do_here(case: NetworkCase, row: Row, device: torch.device) -> None:
    operator = row.make(case)
    wanted, found = (operator(net, stream(1, "there")) for net in (case.network(), case.network().to(device)))
    for name, weight in wanted.weights.items():
        assert found.weights[name].device == device and near(found.weights[name], weight, 1e-3), name


FLOWS_THERE = [(name, "mlp-norms") for name in FLOWS] + [
    ("retrain-adam", "cnn-batchnorm"),
    ("distil", "attention-separate"),
]


@pytest.mark.parametrize(("name", "network"), FLOWS_THERE)
def test_flows_go_there_where_they_go_here(name: str, network: str, device: torch.device) -> None:
    case = NETWORKS[network]
    flow, start = FLOWS[name].make(case), hurt(case)
    pairs = zip(flow(start, stream(1, "flow")), flow(start.to(device), stream(1, "flow")), strict=False)
    for wanted, found in islice(pairs, 2):
        assert found.cost.examples == wanted.cost.examples
        for entry, weight in wanted.network.weights.items():
            assert found.network.weights[entry].device == device
            assert near(found.network.weights[entry], weight, 1e-3), entry


@pytest.mark.parametrize("optimiser", [SGD(0.05, momentum=0.9), Adam(0.01)], ids=["sgd", "adam"])
def test_perceptrons_written_out_and_smaller_networks_train_there_too(
    optimiser: SGD | Adam, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descent, "WORTHWHILE", 0)
    taken = []
    perceptron = Perceptron.of
    monkeypatch.setattr(Perceptron, "of", lambda *given: taken.append(perceptron(*given)) or taken[-1])
    for case in (NETWORKS["mlp-relu"], NETWORKS["cnn-batchnorm"]):
        flow = Retrain(case.task(), optimiser, batch=8)
        start = hurt(case)
        pairs = zip(flow(start, stream(1, "flow")), flow(start.to(device), stream(1, "flow")), strict=False)
        for wanted, found in islice(pairs, 3):
            assert all(near(found.network.weights[name], w, 1e-3) for name, w in wanted.network.weights.items())
        assert (taken[-1] is not None) == (case.name == "mlp-relu")


@some("cnn-batchnorm", "attention-separate")
def test_sidecars_and_teachers_repair_wherever_they_were_made(case: NetworkCase, device: torch.device) -> None:
    net, inputs = case.network(), case.inputs(32, "moments")
    start = hurt(case)
    for lesson in (
        lambda there: Sidecar.of(net.to(there), inputs),
        lambda there: Teacher(net.to(there), inputs),
    ):
        wanted = next(iter(Refit(lesson("cpu"))(start, stream(0, "refit")))).network
        for made, used in ((device, "cpu"), ("cpu", device)):
            found = next(iter(Refit(lesson(made))(start.to(used), stream(0, "refit")))).network
            assert found.device.type == torch.device(used).type
            assert near(found(inputs.to(used)), wanted(inputs), 1e-2)


def test_networks_train_together_there(device: torch.device) -> None:
    case = NETWORKS["mlp-relu"]
    nets = [case.network(), hurt(case)]
    wanted = train_together(nets, case.task(), updates=3, rng=stream(0, "together"))
    found = train_together([net.to(device) for net in nets], case.task(), updates=3, rng=stream(0, "together"))
    for one, other in zip(wanted, found, strict=True):
        assert all(near(other.weights[name], weight, 1e-3) for name, weight in one.weights.items())


# ------------------------------------------------------------------------------------------------------------- sweeps


@some("mlp-norms", "cnn-batchnorm", "attention-grouped", "tokens-tied", "lstm-tapped", "double")
def test_every_unit_costs_there_what_it_costs_here(case: NetworkCase, device: torch.device) -> None:
    data = answered(case, 48)
    net = case.network().to(device)
    wanted = ablate(case.network(), EachUnit(), case.task(), data=data, audited=4)
    for bitwise in (False, True):
        alike(ablate(net, EachUnit(), case.task(), data=data, bitwise=bitwise, audited=4), wanted)


@some("mlp-relu", "concatenating")
def test_weights_sets_and_outputs_are_swept_there(case: NetworkCase, device: torch.device) -> None:
    data, home, net = answered(case, 32), case.network(), case.network().to(device)
    units = Anatomy.of(home).units()
    name = Anatomy.of(home).matrices[-1]
    for what in (EachWeight(Becomes(0.0), (name,)), Nested((units, units[::-1]), (0, 1, 3)), [units[:2], units[3]]):
        wanted = ablate(home, what, case.task(), data=data, audited=4)
        alike(ablate(net, what, case.task(), data=data.to(device), audited=4), wanted)
    alike(
        ablate(net, EachUnit(), case.task(), data=data, outputs=True, audited=2),
        ablate(home, EachUnit(), case.task(), data=data, outputs=True, audited=2),
    )


@some("cnn-batchnorm")
def test_estimates_are_those_of_the_cpu(case: NetworkCase, device: torch.device) -> None:
    data, home, net = answered(case, 600), case.network(), case.network().to(device)
    one, other = (screen(n, EachUnit(), case.task(), data=data, budget=0.5, share=0.4) for n in (home, net))
    assert all(near(other.lost[layer].best, lost.best, 0.02) for layer, lost in one.lost.items())
    one, other = (precise(n, EachUnit(), case.task(), data=data, precision=0.1) for n in (home, net))
    assert all(near(other.lost[layer].best, lost.best, 0.02) for layer, lost in one.lost.items())


@some("cnn-batchnorm")
def test_smaller_networks_and_lines_between_networks(case: NetworkCase, device: torch.device) -> None:
    start, data = hurt(case), answered(case, 24)
    one, other = compact(start), compact(start.to(device))
    assert other.parameters == one.parameters and other.network.device == device
    shares = [0.0, 0.5, 1.0]
    lines = [
        scores_between([case.network().to(d), start.to(d)], shares, *both, case.task().scorer)
        for d, both in (
            ("cpu", (data.inputs, data.targets)),
            (device, (data.inputs.to(device), data.targets.to(device))),
        )
    ]
    assert near(lines[1], lines[0], 0.05)


def test_devices_are_not_shared_by_forked_processes(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: object) -> None:
        raise AssertionError("a process was forked beside a device")

    monkeypatch.setattr(shards, "_share", never)
    case = NETWORKS["mlp-relu"]
    assert ablate(case.network().to(device), EachUnit(), case.task(), workers=2).audit.mismatches == 0


def test_blocks_are_halved_where_memory_runs_out_and_nothing_of_the_failed_pass_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = NETWORKS["mlp-relu"]
    wanted = ablate(case.network(), EachUnit(), case.task(), audited=0)
    tally, held, most = Work.tally, [], 3

    def short(self: Work, inputs: Tensor, targets: Tensor) -> object:
        if len(held) == 1:
            gc.collect()
        assert not any(kept() is not None for kept in held), "the failed pass still holds its memory"
        if len(inputs) > most:
            large = torch.ones(100)
            held.append(weakref.ref(large))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tally(self, inputs, targets)

    monkeypatch.setattr(Work, "tally", short)
    alike(ablate(case.network(), EachUnit(), case.task(), audited=0), wanted)
    assert held
    most = 0
    with pytest.raises(EnvironmentProblem, match="memory for one example"):
        ablate(case.network(), EachUnit(), case.task(), audited=0)


# ------------------------------------------------------------------------------------------------------------ studies


def test_studies_run_there(device: torch.device) -> None:
    case = NETWORKS["mlp-relu"]
    net, task, damage = case.network().to(device), case.task(), Damage(Silence(), RandomUnits())
    at_home = respond(case.network(), damage, task, doses=(0.0, 0.5), draws=2)
    there = respond(net, damage, task.to(device), doses=(0.0, 0.5), draws=2)
    assert there.intact == pytest.approx(at_home.intact, abs=0.1)
    task = task.to(device)
    retrain = Retrain(task, SGD(0.05), 8)
    repairs = {"retraining": retrain, "refit": Refit(Teacher(net, task.train.inputs))}
    assert len(rescue(net, damage, repairs, task, doses=(0.4,), seeds=(0,), within=updates(3)).attempts) == 2
    assert survive(net, damage, {"retraining": retrain}, task, events=2, dose=0.1, within=updates(2), seeds=(0,))
    contest = Contest(3, SGD(0.02), batch=8, doses=(0.3,), draws=1, patience=2)
    assert harden(net, task, {"plain": Plain(), "faults": UnitFaults(groups=2)}, contest, seeds=1).rows
    assert portrait(net, task, corrupted=4, attacked=0).stage == ""
    assert vulnerability(net, task, worst_set=2).ranking


@pytest.mark.parametrize("words", ["units --verify", "respond --draws 2 --doses 0:1:3 --train-epochs 1 --out done"])
def test_commands_take_the_device(words: str, device: torch.device, tmp_path: Path) -> None:
    tiny = ("--task", "digits?train=200", "--model", "mlp:64-8-10", "--device", str(device))
    done = planaria(*words.split(), *tiny, cwd=tmp_path)
    assert done.code == 0, done.err
