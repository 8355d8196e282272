"""Retraining: learning, batches, ledger; that pins hold and the twin agrees are laws."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from cases import NETWORKS, TASKS, hurt, model_for, trained
from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import settle, steps
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits
from planaria.measure.task import Data, Task
from planaria.repair.retrain import SGD, Adam, AdamW, Retrain

CASE = NETWORKS["mlp-relu"]


def after(flow: Retrain, net: Network, number: int, seed: int = 0) -> Network:
    return settle(flow, steps(number))(net, stream(seed, "x"))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("optimiser", [SGD(0.05), Adam(0.01), AdamW(0.01)], ids=repr)
def test_a_network_learns(name: str, optimiser: object) -> None:
    task = TASKS[name]()
    net = Network.of(model_for(name), task.train.inputs)
    end = after(Retrain(task, optimiser, batch=32), net, 120)  # type: ignore[arg-type]
    assert task.score(end) > task.score(net) + 0.25
    assert task.score(end, task.train) > 0.8


def test_a_damaged_network_recovers() -> None:
    net, task = trained("clouds")
    damaged = hurt_of(net)
    end = after(Retrain(task, Adam(0.01), batch=32), damaged, 80)
    assert task.score(damaged) < task.score(end)


def hurt_of(net: Network) -> Network:
    return Damage(Silence(), RandomUnits()).at(0.7)(net, stream(0, "x"))


# -------------------------------------------------------------------------------------------------- batches


def watched(inputs: Tensor) -> tuple[Task, list[Tensor]]:
    """A task whose rows are numbered, and the numbers that the loss has seen."""
    numbers = torch.arange(len(inputs)).float()
    seen: list[Tensor] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets.long())
        return outputs.square().mean()

    data = Data(inputs, numbers)
    return Task("watched", data, data, data, loss, TASKS["surface"]().scorer, None), seen


@pytest.mark.parametrize("batch", [1, 5, 7, 24, 100])
def test_every_pass_sees_every_example_once(batch: int) -> None:
    task, seen = watched(CASE.inputs(24))
    size = min(batch, 24)
    number = 24 * 3 // size
    after(Retrain(task, SGD(0.001), batch=batch), CASE.network(), number)
    rows = torch.cat(seen).tolist()
    assert all(len(part) == size for part in seen)
    for start in range(0, len(rows) - 23, 24):
        assert sorted(rows[start : start + 24]) == list(range(24))
    assert max(Counter(rows).values()) - min(Counter(rows).values()) <= 1


def test_passes_are_shuffled_anew() -> None:
    task, seen = watched(CASE.inputs(24))
    after(Retrain(task, SGD(0.001), batch=24), CASE.network(), 3)
    assert len({tuple(part.tolist()) for part in seen}) == 3


def test_one_example_can_be_trained_on() -> None:
    task = CASE.task()
    one = Task("one", task.train.take(1), task.validation, task.test, task.loss, task.scorer, 3)
    end = after(Retrain(one, SGD(0.5), batch=128), CASE.network(), 20)
    assert one.score(end, one.train) == 1.0


def test_a_single_class_can_be_trained_on() -> None:
    task = CASE.task()
    data = Data(task.train.inputs, torch.zeros(24, dtype=torch.long))
    end = after(Retrain(Task.of("one class", data, data, validation=data, classes=3), SGD(0.2)), CASE.network(), 30)
    assert bool((end(task.train.inputs).argmax(1) == 0).all())


def test_batch_normalisation_with_one_example_is_refused_in_words() -> None:
    case = NETWORKS["mlp-norms"]
    with pytest.raises(InputError, match=r"Retrain\.batch"):
        next(Retrain(case.task(), batch=1)(case.network(), stream(0, "x")))


# ---------------------------------------------------------------------------------------------------- modes


def test_training_uses_batch_statistics_and_dropout_and_leaves_the_network_in_eval_mode() -> None:
    case = NETWORKS["mlp-norms"]
    end = after(Retrain(case.task(), SGD(0.01), batch=8), case.network(), 2)
    assert not torch.equal(end.buffers["4.running_mean"], case.network().buffers["4.running_mean"])
    assert int(end.buffers["4.num_batches_tracked"]) == 2
    drop = NETWORKS["dropout"]
    end = after(Retrain(drop.task(), SGD(0.01), batch=8), drop.network(), 2)
    assert torch.equal(end(drop.inputs(3)), end(drop.inputs(3)))
    assert not any(part.training for part in end.to_module().modules())


def test_training_works_inside_no_grad() -> None:
    with torch.no_grad():
        inside = after(Retrain(CASE.task(), SGD(0.1), batch=8), CASE.network(), 3)
    assert inside.sha256 == after(Retrain(CASE.task(), SGD(0.1), batch=8), CASE.network(), 3).sha256


def test_a_network_with_every_entry_pinned_stays_as_it_is_and_pays_all_the_same() -> None:
    net = CASE.network()
    net = net.pin({name: torch.ones_like(w, dtype=torch.bool) for name, w in net.weights.items()})
    moment = settle(Retrain(CASE.task(), SGD(0.5), batch=8), steps(3)).moment(net, stream(0, "x"))
    assert moment.network.sha256 == net.sha256
    assert moment.cost.backward_passes == 3


def test_a_model_that_was_frozen_as_a_whole_for_inference_can_be_retrained() -> None:
    frozen = Network.of(CASE.build().requires_grad_(False), CASE.inputs(3))
    flow = Retrain(CASE.task(), SGD(0.5), batch=8)
    assert after(flow, frozen, 2).sha256 == after(flow, CASE.network(), 2).sha256 != frozen.sha256
    module = after(flow, frozen, 2).to_module()
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_gradients_from_one_step_do_not_leak_into_the_next() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.rare = nn.Linear(6, 3), nn.Linear(6, 3)
            self.calls = [0]

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.calls[0] += 1
            used = self.rare(x) if self.calls[0] == 1 and self.training else 0.0
            return self.main(x) + used

    net = Network.of(Sometimes(), CASE.inputs(3))
    moments = list(islice(Retrain(CASE.task(), SGD(0.1, momentum=0.0), batch=8)(net, stream(0, "x")), 3))
    rare = [m.network.weights["rare.weight"] for m in moments]
    assert not torch.equal(rare[0], net.weights["rare.weight"])
    assert torch.equal(rare[1], rare[0])
    assert torch.equal(rare[2], rare[0])


def test_divergence_is_a_value_and_not_an_exception() -> None:
    task = TASKS["surface"]()
    net = Network.of(model_for("surface"), task.train.inputs)
    end = after(Retrain(task, SGD(1e6, momentum=0.9), batch=8), net, 30)
    assert not all(bool(w.isfinite().all()) for w in end.weights.values())
    assert task.score(end) == -float("inf")


# ------------------------------------------------------------------------------- plasticity on the way


def test_plasticity_may_change_from_update_to_update() -> None:
    net, asked = CASE.network(), list[int]()
    flow = Retrain(CASE.task(), SGD(0.1, momentum=0.0), batch=24)

    def plasticity_at(update: int) -> dict[str, Tensor]:
        asked.append(update)
        return {name: torch.full_like(w, (0.0, 1.0, 0.25)[update]) for name, w in net.weights.items()}

    a, b, c = (m.network for m in islice(flow.under(net, stream(0, "x"), plasticity_at), 3))
    assert asked == [0, 1, 2]
    assert a.sha256 == net.sha256
    assert b.sha256 == after(flow, a, 1).sha256
    full = after(flow, b, 1)
    for name, weight in b.weights.items():
        assert torch.allclose(c.weights[name], weight + 0.25 * (full.weights[name] - weight), atol=1e-6)
    assert c.plasticity is net.plasticity


# --------------------------------------------------------------------------------------------------- ledger


@pytest.mark.parametrize("batch", [8, 100])
def test_the_ledger_counts_examples_labels_passes_and_multiplications(batch: int) -> None:
    size = min(batch, 24)
    moments = list(islice(Retrain(CASE.task(), batch=batch)(CASE.network(), stream(0, "x")), 3))
    each = forward_multiply_adds(CASE.network(), CASE.inputs(2))
    for count, moment in enumerate(moments, start=1):
        cost = moment.cost
        assert (cost.examples, cost.labels) == (count * size, count * size)
        assert (cost.forward_passes, cost.backward_passes) == (count, count)
        assert cost.multiply_adds == 3 * each * size * count
    seconds = [moment.cost.seconds for moment in moments]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


# ------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("batch", [0, -1, 2.5, "8"])
def test_a_batch_is_a_positive_whole_number(batch: object) -> None:
    with pytest.raises(InputError, match=r"Retrain\.batch"):
        Retrain(CASE.task(), batch=batch)  # type: ignore[arg-type]


@pytest.mark.parametrize("horizon", [0, -1])
def test_a_horizon_is_positive(horizon: int) -> None:
    with pytest.raises(InputError, match=r"Retrain\.horizon"):
        Retrain(CASE.task(), horizon=horizon)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SGD(-0.1),
        lambda: SGD(float("nan")),
        lambda: SGD(0.1, momentum=-1.0),
        lambda: SGD(0.1, decay=-1.0),
        lambda: Adam(-0.1),
        lambda: Adam(float("inf")),
        lambda: AdamW(0.1, decay=-0.5),
    ],
)
def test_settings_of_an_optimiser_off_their_range_are_refused(make: object) -> None:
    with pytest.raises(InputError, match=r"(SGD|Adam|AdamW)\.(rate|momentum|decay)"):
        make()  # type: ignore[operator]


def test_a_users_own_optimiser_works() -> None:
    class Sign:
        def build(self, parameters: object, /) -> torch.optim.Optimizer:
            return torch.optim.Rprop(parameters)  # type: ignore[arg-type]

    end = after(Retrain(CASE.task(), Sign(), batch=24), CASE.network(), 20)
    assert CASE.task().score(end, CASE.task().train) > CASE.task().score(CASE.network(), CASE.task().train) - 1e-9


def test_dead_units_are_neither_trained_nor_revived_by_statistics() -> None:
    case = NETWORKS["cnn-batchnorm"]
    damaged = hurt(case, 0.6)
    end = after(Retrain(case.task(), SGD(0.05), batch=8), damaged, 5)
    for name, plasticity in damaged.plasticity.items():
        assert bool((end.weights[name][plasticity == 0] == 0).all())
