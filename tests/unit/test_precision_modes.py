"""Mixed precision, and networks whose own numbers are not single precision."""

from __future__ import annotations

import copy
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cases import NETWORKS, NetworkCase, hurt
from command_line import TINY, planaria
from planaria.core.anatomy import Anatomy
from planaria.core.devices import HALVES, check_autocast, half
from planaria.core.errors import EnvironmentProblem, InputError
from planaria.core.motion import settle, steps, updates
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Noise, Silence
from planaria.damage.sites import RandomUnits
from planaria.measure.data import Data
from planaria.measure.losses import mse
from planaria.measure.task import Task
from planaria.repair import descent
from planaria.repair.distil import Distil
from planaria.repair.harden import Harden
from planaria.repair.perceptron import Perceptron
from planaria.repair.refit import Refit, Sidecar, Teacher
from planaria.repair.retrain import SGD, Adam, Retrain
from planaria.study.rescue import rescue
from planaria.study.respond import respond
from planaria.sweep.ablate import ablate
from planaria.sweep.lesions import EachUnit
from planaria.sweep.plan import BRUTE, REPLAY

TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Largest difference of outputs from single precision, relative to the largest output: a few of the type's steps."""

VARIED = ("mlp-norms", "cnn-batchnorm", "residual", "transformer-pre-norm", "attention-grouped", "tokens-tied")
dtypes = pytest.mark.parametrize("dtype", list(HALVES.values()), ids=list(HALVES))
cases = pytest.mark.parametrize("case", [NETWORKS[name] for name in VARIED], ids=str)


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest entry."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def classes(case: NetworkCase, count: int) -> Data:
    inputs = case.inputs(count, "precision")
    return Data(inputs, case.network()(inputs).argmax(1))


# --------------------------------------------------------------------------------------------------- mixed precision


@dtypes
@cases
def test_outputs_are_near_those_of_single_precision_and_not_the_same(case: NetworkCase, dtype: torch.dtype) -> None:
    net, inputs = case.network(), case.inputs(16, "many")
    mixed = net.with_autocast(dtype)
    assert mixed(inputs).dtype == torch.float32
    assert 0 < apart(mixed(inputs), net(inputs)) < TOLERANCE[dtype]
    assert torch.equal(mixed.with_autocast(None)(inputs), net(inputs))


@dtypes
@cases
def test_weights_and_lesions_stay_what_they_are(case: NetworkCase, dtype: torch.dtype) -> None:
    net, mixed = case.network(), case.network().with_autocast(dtype)
    assert mixed.sha256 == net.sha256
    assert Anatomy.of(mixed).units() == Anatomy.of(net).units()
    for damage in (Damage(Silence(), RandomUnits()), Damage(Noise(0.3), RandomUnits())):
        one, other = (damage.at(0.5)(n, stream(0, "lesion")) for n in (net, mixed))
        assert other.sha256 == one.sha256 and other.port.autocast == dtype
    Anatomy.of(mixed).verify(mixed, per_layer=1)


def test_it_stays_with_the_network_whatever_is_changed() -> None:
    case = NETWORKS["mlp-relu"]
    net = Network.of(case.build()).with_autocast(torch.bfloat16)
    for other in (net.with_inputs(case.inputs(2)), net.with_weights({}), net.pin({}), net.to("cpu"), net.move({})):
        assert other.port.autocast == torch.bfloat16


@dtypes
@pytest.mark.parametrize("name", ["mlp-norms", "cnn-batchnorm", "attention-grouped"])
def test_sweeps_take_no_certificates_and_only_run_the_same_operations_again(name: str, dtype: torch.dtype) -> None:
    case = NETWORKS[name]
    net, data = case.network().with_autocast(dtype), classes(case, 40)
    effects = ablate(net, EachUnit(), case.task(), data=data)
    assert {way.way for way in effects.plan.ways} <= {REPLAY, BRUTE}
    assert effects.audit.mismatches == 0
    exact = ablate(case.network(), EachUnit(), case.task(), data=data)
    for layer, lost in exact.lost.items():
        assert float((effects.lost[layer] - lost).abs().max()) <= 0.15


@dtypes
@pytest.mark.parametrize("repair", ["retrain", "distil", "harden"])
def test_training_lowers_the_loss_and_leaves_what_is_pinned(
    repair: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descent, "WORTHWHILE", 0)
    case = NETWORKS["cnn-batchnorm"]
    task = case.task()
    start = hurt(case).with_autocast(dtype)
    flow = {
        "retrain": Retrain(task, Adam(0.01), 8),
        "distil": Distil(case.network(), task.train.inputs, Adam(0.01), 8),
        "harden": Harden(task, optimiser=Adam(0.01), batch=8),
    }[repair]
    end = settle(flow, steps(20))(start, stream(0, "mixed"))
    x, y = task.train.inputs, task.train.targets
    before, after = (
        mse(net(x), case.network()(x)) if repair == "distil" else task.loss(net(x), y) for net in (start, end)
    )
    assert float(after) < float(before)
    for name, weight in start.weights.items():
        pinned = start.plasticity[name] == 0
        assert end.weights[name].dtype == torch.float32
        assert torch.equal(end.weights[name][pinned], weight[pinned])


def test_perceptrons_written_out_by_hand_are_left_to_single_precision() -> None:
    case = NETWORKS["mlp-relu"]
    from planaria.repair.perceptron import Settings

    settings = Settings(case.task().loss, 8, stream(0, "x"), 0.0, False)
    assert Perceptron.of(case.network(), case.task().train, settings) is not None
    assert Perceptron.of(case.network().with_autocast(torch.bfloat16), case.task().train, settings) is None


def test_a_step_whose_gradients_overflow_is_left_out() -> None:
    case = NETWORKS["mlp-relu"]
    task = Task.of("large", case.task().train, case.task().test, loss=lambda y, t: (y.float() ** 2).mean() * 1e36)
    start = case.network().with_autocast(torch.float16)
    first = next(iter(Retrain(task, SGD(1e-3), 8)(start, stream(0, "overflow"))))
    assert first.network.sha256 == start.sha256 and first.cost.backward_passes == 1


@dtypes
def test_small_gradients_do_not_vanish(dtype: torch.dtype) -> None:
    case = NETWORKS["mlp-relu"]
    task = Task.of("small", case.task().train, case.task().test, loss=lambda y, t: (y**2).mean() * 1e-7)
    moved = [
        next(iter(Retrain(task, SGD(1e5), 8)(net, stream(0, "small")))).network.weights["0.weight"]
        for net in (case.network(), case.network().with_autocast(dtype))
    ]
    assert apart(moved[1] - case.network().weights["0.weight"], moved[0] - case.network().weights["0.weight"]) < 0.05


@dtypes
@pytest.mark.parametrize("lesson", ["sidecar", "teacher"])
def test_refits_restore_the_outputs_as_well_as_the_type_allows(lesson: str, dtype: torch.dtype) -> None:
    case = NETWORKS["cnn-batchnorm"]
    net, inputs = case.network().with_autocast(dtype), case.inputs(64, "moments")
    source = Sidecar.of(net, inputs) if lesson == "sidecar" else Teacher(net, inputs)
    start = hurt(case).with_autocast(dtype)
    end = next(iter(Refit(source)(start, stream(0, "refit")))).network
    assert apart(end(inputs), net(inputs)) < apart(start(inputs), net(inputs))


def test_studies_run_in_mixed_precision() -> None:
    case = NETWORKS["mlp-relu"]
    net, task, damage = case.network().with_autocast(torch.bfloat16), case.task(), Damage(Silence(), RandomUnits())
    curve = respond(net, damage, task, doses=(0.0, 0.5), draws=2)
    assert curve.intact == pytest.approx(task.score(net))
    repairs = {"retraining": Retrain(task, SGD(0.05), 8), "refit": Refit(Teacher(net, task.train.inputs))}
    assert len(rescue(net, damage, repairs, task, doses=(0.4,), seeds=(0,), within=updates(3)).attempts) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int8])
def test_other_types_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=r"with_autocast.*bfloat16"):
        NETWORKS["mlp-relu"].network().with_autocast(dtype)


@pytest.mark.parametrize("other", [torch.float64, torch.bfloat16])
def test_weights_of_other_types_are_refused(other: torch.dtype) -> None:
    net = Network.of(nn.Linear(2, 1).to(other))
    with pytest.raises(InputError, match=r"with_autocast.*single precision"):
        net.with_autocast(torch.bfloat16)


def test_a_device_without_the_type_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentProblem, match=r"--autocast.*meta.*bfloat16"):
        check_autocast(torch.device("meta"), torch.bfloat16, "--autocast")

    def refused(*given: object) -> None:
        raise RuntimeError("Current device does not support bfloat16")

    monkeypatch.setattr(torch, "autocast", refused)
    with pytest.raises(EnvironmentProblem, match=r"cpu.*bfloat16: Current device does not support"):
        NETWORKS["mlp-relu"].network().with_autocast(torch.bfloat16)


def test_names_of_types() -> None:
    assert half(None, "x") is None and half("float32", "x") is None and half("float16", "x") is torch.float16
    with pytest.raises(InputError, match=r"--autocast.*bfloat16.*'half'"):
        half("half", "--autocast")


# --------------------------------------------------------------------------------------------------- the command line


def test_the_command_line_takes_it_and_records_it(tmp_path: Path) -> None:
    words = ("respond", *TINY[:4], "--train-epochs", "1", "--draws", "2", "--doses", "0:1:3")
    one = planaria(*words, "--autocast", "bfloat16", "--out", "mixed", cwd=tmp_path)
    assert one.code == 0, one.err
    assert '"autocast": "bfloat16"' in (tmp_path / "mixed" / "manifest.json").read_text()
    again = planaria(*words, "--out", "mixed", cwd=tmp_path)  # other settings: not the same run
    assert again.code == 2 and "autocast" in again.err
    plain = planaria(*words, "--autocast", "float32", "--out", "plain", cwd=tmp_path)
    assert plain.code == 0 and "autocast" not in (tmp_path / "plain" / "manifest.json").read_text()


def test_the_command_line_refuses_what_it_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = planaria("respond", "--autocast", "int8", cwd=tmp_path)
    assert wrong.code == 2 and "--autocast" in wrong.err and "bfloat16" in wrong.err

    def refused(*given: object) -> None:
        raise RuntimeError("no such type here")

    monkeypatch.setattr(torch, "autocast", refused)
    unable = planaria("respond", "--autocast", "float16", cwd=tmp_path)
    assert unable.code == 5 and "cpu" in unable.err and "float16" in unable.err
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------- the network's own numbers


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["mlp-norms", "cnn-batchnorm", "transformer-pre-norm"])
def test_networks_of_other_numbers_work(name: str, kind: torch.dtype) -> None:
    case = NETWORKS[name]
    model = copy.deepcopy(case.build()).to(kind)
    inputs = case.inputs(24, "train").to(kind)
    net = Network.of(model, inputs)
    task = Task.of("own", (inputs, case.task().train.targets), (inputs, case.task().train.targets), classes=3)
    assert Anatomy.of(net).units() == Anatomy.of(case.network()).units()
    damage = Damage(Silence(), RandomUnits())
    assert 0.0 <= respond(net, damage, task, doses=(0.5,), draws=1).intact <= 1.0
    assert ablate(net, EachUnit(), task, audited=2).audit.mismatches == 0
    start = damage.at(0.4)(net, stream(0, "own"))
    for flow in (Retrain(task, SGD(0.01), 8), Refit(Sidecar.of(net, inputs)), Refit(Teacher(net, inputs))):
        for moment in islice(flow(start, stream(0, "own")), 2):
            assert all(weight.dtype == kind for weight in moment.network.weights.values())
            assert all(bool(weight.isfinite().all()) for weight in moment.network.weights.values())
