"""Portraits: what is measured, on what, and what is said where it cannot be."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from cases import NETWORKS, trained
from planaria.core.errors import EnvironmentProblem, InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits
from planaria.measure import adversarial
from planaria.measure.adversarial import attack, untested
from planaria.measure.data import Data
from planaria.measure.statistics import wilson
from planaria.measure.task import Task
from planaria.repair.retrain import Retrain
from planaria.study.portrait import BEFORE, DAMAGED, RESCUED, WORK, Portrait, portrait, stages
from planaria.study.rescue import attempt
from purity import untouched

DEATH = Damage(Silence(), RandomUnits(per_layer=True))


def foolbox() -> None:
    pytest.importorskip("foolbox", reason="foolbox is not installed: pip install 'planaria[attacks]'")


@cache
def digits() -> dict[str, Portrait]:
    """The three stages of one rescue."""
    net, task = trained("digits")
    done = attempt(net, DEATH, 0.5, Retrain(task), task, seed=3)
    found = stages(net, DEATH, 0.5, done.network, seed=3)
    assert task.score(found[DAMAGED]) == done.damaged
    return {stage: portrait(one, task, stage=stage, attacked=100) for stage, one in found.items()}


def images(rows: int = 60) -> Task:
    """Which half of a picture is brighter."""
    x = torch.rand(3 * rows, 1, 6, 6, generator=stream(0, "pictures"))
    y = (x[..., 3:].mean((1, 2, 3)) > x[..., :3].mean((1, 2, 3))).long()
    return Task.of("halves", (x[: 2 * rows], y[: 2 * rows]), (x[2 * rows :], y[2 * rows :]))


def comparing() -> Network:
    """A linear network that tells them apart."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with torch.no_grad():
        side = torch.tensor([1.0] * 3 + [-1.0] * 3).repeat(6)
        model[1].weight.copy_(torch.stack([side, -side]))
        model[1].bias.zero_()
    return Network.of(model)


def test_damage_and_rescue_show_in_the_portrait() -> None:
    before, damaged, rescued = (digits()[stage] for stage in (BEFORE, DAMAGED, RESCUED))
    assert damaged.score.high < before.score.low and damaged.score.high < rescued.score.low
    assert before.nll is not None and damaged.nll is not None and damaged.nll.best > before.nll.best
    assert before.sparsity == 0 and damaged.sparsity == rescued.sparsity > 0.4
    assert before.compact.units_removed == 0
    # 64-16-12-10 with half of each hidden layer dead.
    assert damaged.compact.parameters == rescued.compact.parameters == 64 * 8 + 8 + 8 * 6 + 6 + 6 * 10 + 10
    assert rescued.compact.difference < 1e-5


def test_corrupted_inputs_are_the_same_for_every_stage_and_cost_score() -> None:
    before, damaged, _ = digits().values()
    assert [entry.corruption for entry in before.corruption] == [entry.corruption for entry in damaged.corruption]
    worst = min(entry.score.best for entry in before.corruption)
    assert worst < before.score.best
    net, task = trained("digits")
    assert portrait(net, task, attacked=0).to_dict()["corruption"] == before.to_dict()["corruption"]
    other = portrait(net, task, seed=1, corrupted=100, attacked=0)
    assert [entry.examples for entry in other.corruption] == [100] * len(other.corruption)


def test_the_portrait_is_plain_and_keeps_its_hands_off() -> None:
    net, task = trained("digits")
    with untouched(net, task):
        record = portrait(net, task, stage="x", corrupted=20, attacked=20).to_dict()
    assert json.loads(json.dumps(record)) == record
    assert record["stage"] == "x" and record["calibration_untested"] is None
    assert record["score"].keys() == record["nll"].keys() == record["ece"].keys() == {"low", "best", "high"}


def test_a_regression_has_no_calibration_and_no_attacks_and_says_why() -> None:
    net, task = trained("surface")
    found = portrait(net, task)
    assert found.nll is None and found.ece is None and found.uncalibrated == "the task is no classification"
    assert not found.adversarial and "no classification" in str(found.unattacked)
    assert not found.score.has_interval and {c.corruption.name for c in found.corruption} >= {"gaussian noise"}


def test_tokens_are_replaced_and_not_attacked() -> None:
    case = NETWORKS["tokens-tied"]
    found = portrait(case.network(), case.task())
    assert {entry.corruption.name for entry in found.corruption} == {"token replacement"}
    assert "tokens" in str(found.unattacked)


def test_tables_of_numbers_are_not_attacked() -> None:
    net, task = trained("clouds")
    assert "no images" in str(portrait(net, task).unattacked)


def test_without_foolbox_the_portrait_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversarial.importlib.util, "find_spec", lambda name: None)
    found = portrait(comparing(), images())
    assert found.unattacked == "foolbox is not installed; pip install 'planaria[attacks]'" and not found.adversarial
    with pytest.raises(EnvironmentProblem, match="foolbox is not installed"):
        attack(comparing(), images(), images().test, stream(0, "x"))


def test_attacks_find_the_worst_case_of_a_linear_network() -> None:
    foolbox()
    net, task = comparing(), images()
    inputs, labels = task.test.inputs, task.test.targets
    low, high = float(inputs.min()), float(inputs.max())
    side = torch.tensor([1.0] * 3 + [-1.0] * 3).repeat(6).reshape(1, 1, 6, 6)
    for epsilon in (2 / 255, 8 / 255):
        # The worst picture is known: every pixel of the brighter half darker, every other brighter.
        against = torch.where(labels == 0, -1.0, 1.0).view(-1, 1, 1, 1) * side
        worst = (inputs + epsilon * (high - low) * against).clamp(low, high)
        right = int((net(worst).argmax(1) == labels).sum())
        found = {a.attack: a for a in attack(net, task, task.test, stream(0, "x"), epsilons=[epsilon])}
        assert found["FGSM"].score == found["PGD"].score == wilson(right, len(labels))
        assert found["FGSM"].examples == len(labels) and found["PGD"].epsilon == epsilon
    assert right < len(labels)


def test_attacks_start_from_the_stream_and_leave_everything_alone() -> None:
    foolbox()
    net, task = trained("digits")
    few = task.test.take(40)
    with untouched(net, task):
        one, two = (attack(net, task, few, stream(7, "x")) for _ in range(2))
    assert one == two and {a.attack for a in one} == {"PGD", "FGSM"}
    assert all(a.score.best <= wilson(int(40 * task.score(net, few) + 0.5), 40).best for a in one)


def test_outputs_that_are_not_finite_are_not_right_under_attack() -> None:
    foolbox()

    class Broken(nn.Module):
        """Overflows to the first class, which is then the largest."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(36, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1)) + torch.tensor([torch.inf, 0.0])

    assert all(a.score.best == 0 for a in attack(Network.of(Broken()), images(), images().test, stream(0, "x")))


def test_a_network_that_hides_its_gradient_is_not_attacked_and_says_so() -> None:
    foolbox()

    class Hiding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(36, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1).detach())

    found = portrait(Network.of(Hiding()), images(), corrupted=0)
    assert found.adversarial == () and str(found.unattacked).startswith("the attack failed: ")


def test_large_networks_are_measured_on_fewer_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    foolbox()
    monkeypatch.setattr("planaria.study.portrait.WORK", 20 * 72 * 2 * 41 * 2)
    found = portrait(comparing(), images())
    assert WORK == 3e11 and {a.examples for a in found.adversarial} == {20}
    assert {c.examples for c in found.corruption} == {60}


def test_images_of_one_value_have_no_range() -> None:
    flat = Data(torch.ones(6, 1, 6, 6), torch.tensor([0, 1] * 3))
    assert "no range" in str(untested(Task.of("grey", flat, flat)))


def test_negative_numbers_of_examples_are_refused() -> None:
    with pytest.raises(InputError, match=r"portrait\(attacked\)"):
        portrait(comparing(), images(), attacked=-1)
