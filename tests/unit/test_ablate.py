"""Ablation where things go wrong: no memory, no recording, chance, wrong answers, dead workers, bad input."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cases import NETWORKS
from planaria.core.anatomy import Unit
from planaria.core.errors import AnatomyError, EnvironmentProblem, InputError
from planaria.core.network import Network
from planaria.measure.scores import R2, Score
from planaria.measure.task import Data, Task
from planaria.sweep.ablate import OUTPUTS, ablate
from planaria.sweep.certify import Certifier
from planaria.sweep.edges import Becomes, Flipped
from planaria.sweep.lesions import EachUnit, EachWeight, Nested
from planaria.sweep.plan import BRUTE, CERTIFY, EDIT_NEXT, REPLAY
from planaria.sweep.tally import Tally
from planaria.sweep.work import Work


def _task(shape: tuple[int, ...] = (6,), count: int = 60, classes: int = 3) -> Task:
    rng = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(count, *shape, generator=rng), torch.randint(classes, (count,), generator=rng)
    return Task.of("drawn", (inputs, targets), (inputs, targets), validation=(inputs, targets), classes=classes)


def _mlp(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


def _ways(effects: object) -> set[str]:
    return {way.way for way in effects.plan.ways}


class Numpy(nn.Module):
    """Leaves the tensors on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.from_numpy(self.first(x).relu().detach().numpy() * 2.0))


class Chance(nn.Module):
    """Draws random numbers in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.dropout(self.first(x).relu(), 0.5, training=True))


class Branching(nn.Module):
    """Goes another way for inputs of another mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.last(h) if float(x.mean()) > 0 else self.last(-h)


def test_a_forward_pass_that_leaves_the_tensors_is_run_whole() -> None:
    task = _task()
    net = Network.of(Numpy(), task.test.inputs)
    effects = ablate(net, EachWeight(layers=("last.weight",)), task)
    assert _ways(effects) == {BRUTE}
    hurt = net.weights["last.weight"].clone()
    hurt[1, 2] = 0
    damaged = net.with_weights({"last.weight": hurt})
    assert float(effects.scores["last.weight"][1, 2]) == pytest.approx(task.score(damaged))


def test_control_flow_that_depends_on_data_is_run_whole() -> None:
    task = _task()
    net = Network.of(Branching(), task.test.inputs)
    effects = ablate(net, EachUnit(), task)
    assert _ways(effects) == {BRUTE}
    assert "data decides" in effects.plan.explain()


def test_a_stochastic_network_is_refused_with_the_remedy() -> None:
    task = _task()
    with pytest.raises(InputError, match=r"the same outputs for the same inputs.*training=True"):
        ablate(Network.of(Chance(), task.test.inputs), EachUnit(), task)


def test_a_module_left_in_train_mode_is_judged_in_eval_mode_and_stays_in_train_mode() -> None:
    task = _task()
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one, other = (ablate(Network.of(model, task.test.inputs), EachUnit(), task) for _ in range(2))
    assert torch.equal(one.tallies["0"].total, other.tallies["0"].total)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_statistics_of_the_batch_make_a_network_run_whole() -> None:
    task = _task()
    net = Network.of(
        nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU(), nn.Linear(8, 3)),
        task.test.inputs,
    )
    effects = ablate(net, EachUnit(), task)
    assert _ways(effects) == {BRUTE}
    assert "others of its batch" in effects.plan.explain()
    assert effects.intact == task.score(net)


def test_a_block_that_does_not_fit_in_memory_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    whole = ablate(net, EachUnit(), task)
    sizes, tally = [], Work.tally

    def small(self: Work, inputs: Tensor, targets: Tensor) -> object:
        sizes.append(len(inputs))
        if len(inputs) > 16:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return tally(self, inputs, targets)

    monkeypatch.setattr(Work, "tally", small)
    split = ablate(net, EachUnit(), task, audited=0)
    assert max(sizes) == 60 and 15 in sizes
    assert all(torch.equal(split.tallies[key].total, tally.total) for key, tally in whole.tallies.items())
    assert split.intact == whole.intact

    def none(self: Work, inputs: Tensor, targets: Tensor) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Work, "tally", none)
    with pytest.raises(EnvironmentProblem, match="memory for one example"):
        ablate(net, EachUnit(), task, audited=0)


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)

    def broken(self: Work, inputs: Tensor, targets: Tensor) -> object:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Work, "tally", broken)
    before = net.sha256
    with pytest.raises(RuntimeError, match="shapes do not match"):
        ablate(net, EachUnit(), task)
    assert net.sha256 == before


def test_a_fast_way_that_lies_is_caught_and_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    honest = ablate(net, EachUnit(), task)
    real = Certifier.__call__

    def lying(self: Certifier, *args: Tensor) -> tuple[dict[str, Tally], Tensor]:
        found, intact = real(self, *args)
        if "2" in found:
            found["2"].fell[3] += 1
        return found, intact

    monkeypatch.setattr(Certifier, "__call__", lying)
    effects = ablate(net, EachUnit(), task)
    assert effects.audit.mismatches == 1 and effects.audit.replaced == ("2",)
    assert "mismatches 1" in str(effects) and "done again: 2" in str(effects)
    assert {way.key: way.way for way in effects.plan.ways} == {"0": CERTIFY, "2": REPLAY}
    assert "disagreed with brute force" in effects.plan.explain()
    assert torch.equal(effects.tallies["2"].fell, honest.tallies["2"].fell)


def test_the_work_of_a_killed_worker_is_done_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    whole, here, tally = ablate(net, EachUnit(), task), os.getpid(), Work.tally

    def dying(self: Work, inputs: Tensor, targets: Tensor) -> object:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return tally(self, inputs, targets)

    monkeypatch.setattr(Work, "tally", dying)
    done: list[int] = []
    effects = ablate(net, EachUnit(), task, workers=2, progress=done.append)
    assert torch.equal(effects.tallies["0"].total, whole.tallies["0"].total)
    assert done[-1] == 60 and done == sorted(done)


def test_an_error_in_a_worker_is_the_caller_s_error(monkeypatch: pytest.MonkeyPatch) -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)

    def broken(self: Work, inputs: Tensor, targets: Tensor) -> object:
        raise ValueError("from the worker")

    monkeypatch.setattr(Work, "tally", broken)
    with pytest.raises(ValueError, match="from the worker"):
        ablate(net, EachUnit(), task, workers=2)


def test_a_stream_is_read_batch_by_batch_and_never_whole() -> None:
    task = _task(count=90)
    net = Network.of(_mlp(), task.test.inputs)
    alive, most = 0, 0

    class Batch:
        """Counts how many batches are held."""

        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, targets in zip(task.test.inputs.split(10), task.test.targets.split(10), strict=True):
            held = Batch()
            yield inputs, targets
            del held

    effects = ablate(net, EachUnit(), task, data=batches)
    assert effects.examples == 90 and most == 1
    assert torch.equal(effects.tallies["0"].total, ablate(net, EachUnit(), task).tallies["0"].total)
    with pytest.raises(InputError, match="at least one batch"):
        ablate(net, EachUnit(), task, data=lambda: [])


def test_a_score_that_is_no_mean_is_taken_from_whole_outputs() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    y = x[:, :1] * 2 + x[:, 1:2]
    task = Task.of("line", (x, y), (x, y), loss="mse", score=R2)
    net = Network.of(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)), x)
    effects = ablate(net, EachUnit(), task)
    weight = net.weights["2.weight"].clone()
    weight[:, 4] = 0
    assert effects.intact == pytest.approx(task.score(net))
    assert float(effects.scores["0"][4]) == pytest.approx(task.score(net.with_weights({"2.weight": weight})), abs=1e-6)


def test_outputs_that_would_not_fit_are_refused() -> None:
    task = _task(count=4000)
    net = Network.of(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), task.test.inputs)
    assert ablate(net, [Unit("0", 1)], task, outputs=True).outputs["lesions"].shape == (1, 4000, 3)
    lesions = [Unit("0", 1)] * (OUTPUTS // (4000 * 3 * 4) + 1)
    with pytest.raises(InputError, match="outputs that fit"):
        ablate(net, lesions, task, outputs=True)


def test_bad_input_names_what_was_wrong() -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    for what, error, words in (
        (EachUnit(layers=("fc9",)), AnatomyError, "fc9"),
        (EachWeight(layers=("fc9",)), InputError, "EachWeight.layers.*fc9"),
        ([], InputError, "at least one lesion"),
        ([Unit("0", 99)], AnatomyError, "below 8"),
        ([Network.of(nn.Linear(6, 3))], InputError, "damaged version of the network"),
    ):
        with pytest.raises(error, match=words):
            ablate(net, what, task)
    with pytest.raises(InputError, match="workers"):
        ablate(net, EachUnit(), task, workers=0)
    with pytest.raises(InputError, match="every unit once"):
        Nested(((Unit("0", 1), Unit("0", 1)),), (1,))
    with pytest.raises(InputError, match=r"Nested\.counts"):
        Nested(((Unit("0", 1),),), (0, 2))
    with pytest.raises(InputError, match="bit"):
        ablate(net, EachWeight(Flipped(40)), task)
    with pytest.raises(InputError, match="takes"):
        ablate(net, EachUnit(), _task((5,)))


def test_a_plan_says_which_way_for_which_layer_and_why_not_faster() -> None:
    case = NETWORKS["residual"]
    data = Data(case.inputs(10), torch.zeros(10, dtype=torch.long))
    text = ablate(case.network(), EachUnit(), case.task(), data=data).plan.explain()
    assert "conv1" in text and "not a chain of products" in text and "matrix products by" in text
    assert any(way in text for way in (REPLAY, EDIT_NEXT))


def test_intervals_and_the_worst_lesions_follow_from_the_counts() -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    effects = ablate(net, EachUnit(), task)
    key, at, lost = effects.top(1)[0]
    assert lost == max(float(values.max()) for values in effects.lost.values())
    estimate = effects.estimate(key, at)
    assert estimate.best == pytest.approx(lost)
    assert estimate.low <= lost <= estimate.high
    assert len(effects.top(100)) == 13


def test_a_weight_stuck_at_a_value_that_destroys_the_outputs_counts_as_wrong() -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    effects = ablate(net, EachWeight(Becomes(float("inf")), ("4.weight",)), task)
    right = (net(task.test.inputs).argmax(1) == task.test.targets).sum()
    assert int(effects.tallies["4.weight"].fell.max()) == int(right)


def test_scores_per_example_of_one_s_own_are_followed() -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    smooth = Score(
        "confidence", lambda y, t: float(y.softmax(1).amax(1).mean()), per_example=lambda y, t: y.softmax(1).amax(1)
    )
    effects = ablate(net, EachUnit(), task, score=smooth)
    assert CERTIFY not in _ways(effects) and effects.audit.mismatches == 0
    assert effects.intact == pytest.approx(float(smooth.function(net(task.test.inputs), task.test.targets)), abs=1e-6)


class Transposed(nn.Module):
    """Holds a square weight the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Parameter(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)))
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((x @ self.inward).relu())


def test_a_weight_that_is_held_transposed_is_mapped_in_its_own_orientation() -> None:
    task = _task()
    net = Network.of(Transposed(), task.test.inputs)
    effects = ablate(net, EachWeight(layers=("inward",)), task)
    hurt = net.weights["inward"].clone()
    hurt[1, 4] = 0
    assert float(effects.scores["inward"][1, 4]) == pytest.approx(task.score(net.with_weights({"inward": hurt})))
    assert "transposed" in effects.plan.explain()


def test_a_network_whose_outputs_are_no_numbers_has_no_effects() -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    broken = net.with_weights({"4.bias": torch.tensor([float("nan"), 0.0, 0.0])})
    effects = ablate(broken, EachUnit(), task)
    assert effects.intact == 0.0
    assert not bool(effects.tallies["0"].total.any())
