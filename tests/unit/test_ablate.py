"""Ablation where things go wrong: no memory, no recording, chance, wrong answers, dead workers, bad input."""

from __future__ import annotations

import gc
import importlib
import math
import multiprocessing
import os
import signal
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cases import NETWORKS
from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.errors import AnatomyError, EnvironmentProblem, InputError
from planaria.core.network import Network
from planaria.measure.scores import R2, Score
from planaria.measure.task import Data, Task
from planaria.sweep import replay as replay_module
from planaria.sweep import work as work_module
from planaria.sweep.ablate import ablate
from planaria.sweep.audit import _ties
from planaria.sweep.certify import Certifier
from planaria.sweep.edges import Becomes, Flipped
from planaria.sweep.fuse import fuse
from planaria.sweep.lesions import EachUnit, EachWeight, Lesion, Nested
from planaria.sweep.plan import BRUTE, CERTIFY, EDIT_NEXT, REPLAY
from planaria.sweep.program import Program
from planaria.sweep.replay import edited
from planaria.sweep.tally import Tally
from planaria.sweep.work import Work

ablate_module = importlib.import_module("planaria.sweep.ablate")  # the package offers the function under that name


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


class Deciding(nn.Module):
    """Lets what a layer emits decide the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.last(h) if float(h.mean()) < 1e9 else self.last(-h)


class Padded(nn.Module):
    """Leaves padding out where there is any, as Hugging Face models do; without any it may do something else."""

    def __init__(self, otherwise: float = 1.0) -> None:
        super().__init__()
        self.embed, self.first, self.last = nn.Embedding(9, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        self.otherwise = otherwise

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        h = self.first(self.embed(input_ids)).relu()
        if bool(attention_mask.all()):
            return self.last(h.mean(1) * self.otherwise)
        marked = attention_mask[..., None].to(h)
        return self.last((h * marked).sum(1) / marked.sum(1))


def _padded_task(count: int, whole: slice) -> Task:
    rng = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 9, (count, 7), generator=rng)
    kept = torch.arange(7) < torch.randint(2, 7, (count, 1), generator=rng)
    kept[whole] = True
    pair = ({"input_ids": ids * kept, "attention_mask": kept.long()}, torch.arange(count) % 3)
    return Task.of("padded", pair, pair)


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
    assert "gives other outputs" in effects.plan.explain()


def test_a_way_that_activations_decide_is_run_whole() -> None:
    task = _task()
    effects = ablate(Network.of(Deciding(), task.test.inputs), EachUnit(), task)
    assert _ways(effects) == {BRUTE}
    assert "data decides" in effects.plan.explain()


@pytest.mark.parametrize("otherwise", [1.0, -1.0])
@pytest.mark.parametrize("whole", [slice(0, 0), slice(1500, None), slice(0, 1500), slice(None)])
def test_padding_may_decide_the_way_block_by_block(whole: slice, otherwise: float) -> None:
    task = _padded_task(2500, whole)
    torch.manual_seed(1)
    net = Network.of(Padded(otherwise), task.train.examples)
    effects = ablate(net, EachUnit(layers=("first",)), task, audited=0)
    if otherwise == 1.0:
        assert BRUTE not in _ways(effects)
    # By hand in the same blocks: what the network does depends on its batch.
    for index in range(5):
        hurt = silence(net, Anatomy.of(net).entries([Unit("first", index)]).all)
        lost = torch.stack(
            [
                (hurt(x).argmax(1) == t).sum() - (net(x).argmax(1) == t).sum()
                for x, t in zip(task.test.inputs.split(1000), task.test.targets.split(1000), strict=True)
            ]
        )
        assert int(effects.tallies["first"].total[index]) == int(lost.sum())


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


def test_outputs_that_would_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = _task(count=4000)
    monkeypatch.setattr(ablate_module, "OUTPUTS", 1 << 20)
    net = Network.of(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), task.test.inputs)
    assert ablate(net, [Unit("0", 1)], task, outputs=True).outputs["lesions"].shape == (1, 4000, 3)
    lesions = [Unit("0", 1)] * ((1 << 20) // (4000 * 3 * 4) + 1)
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


# ------------------------------------------------------------------------------------------------------ audits


def test_a_replay_that_lies_too_ends_in_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    case = NETWORKS["residual"]
    data = Data(case.inputs(40), case.network()(case.inputs(40)).argmax(1))
    honest = ablate(case.network(), EachUnit(), case.task(), data=data)
    real = work_module.replayed_units

    def lying(*args: object, **options: object) -> dict[str, Tally]:
        found = real(*args, **options)
        for tally in found.values():
            tally.fell.add_(50)
        return found

    monkeypatch.setattr(work_module, "replayed_units", lying)
    effects = ablate(case.network(), EachUnit(), case.task(), data=data)
    assert effects.audit.mismatches > 0 and effects.audit.replaced == tuple(effects.tallies)
    assert _ways(effects) == {BRUTE}
    for layer, tally in honest.tallies.items():
        assert torch.equal(effects.tallies[layer].fell, tally.fell)


def test_outputs_that_lie_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    real = work_module.resumed
    monkeypatch.setattr(work_module, "resumed", lambda *args: real(*args) + torch.tensor([0.0, 9.0, 0.0]))
    effects = ablate(net, EachUnit(), task, outputs=True)
    assert effects.audit.mismatches > 0 and _ways(effects) == {BRUTE}
    hurt = edited(net, Lesion.of(Unit("2", 1), net))
    assert torch.allclose(effects.outputs["2"][1], hurt(task.test.inputs), atol=1e-6)
    assert float(effects.scores["2"][1]) == pytest.approx(task.score(hurt))


def test_joined_operations_that_give_other_outputs_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    case = NETWORKS["residual"]
    data = Data(case.inputs(40), case.network()(case.inputs(40)).argmax(1))
    honest = ablate(case.network(), EachUnit(), case.task(), data=data, bitwise=True)

    def wrong(program: Program) -> Program:
        joined = fuse(program)
        groups = [replace(g, op=replace(g.op, function=lambda *a, f=g.op.function: f(*a) * 1.01)) for g in joined.fused]
        return replace(joined, fused=tuple(groups))

    monkeypatch.setattr(work_module, "fuse", wrong)
    fresh = Network.of(case.build(), data.inputs)
    effects = ablate(fresh, EachUnit(), case.task(), data=data, audited=0)
    assert "joined operations give other outputs" in effects.plan.explain()
    for layer, tally in honest.tallies.items():
        assert torch.equal(effects.tallies[layer].total, tally.total)


def test_a_small_sweep_is_audited_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    task, calls = _task(), []
    net = Network.of(_mlp(), task.test.inputs)
    real = Work.tally
    monkeypatch.setattr(Work, "tally", lambda self, x, t: calls.append(len(x)) or real(self, x, t))
    assert ablate(net, EachUnit(), task).audit.lesions > 0
    assert calls == [60], "nothing was done twice"
    large = _task(count=1500)
    del calls[:]
    ablate(net, EachUnit(), large, bitwise=True)
    assert calls == [1500, 1000]


def test_ties_are_counted_where_numbers_are_finite_and_for_every_position() -> None:
    inf = float("inf")
    assert _ties(torch.tensor([[1.0, 1.0], [1.0, 2.0], [inf, 1.0], [float("nan"), 0.0]])) == 1
    assert _ties(torch.tensor([[inf, inf], [inf, 0.0]])) == 0
    several = torch.zeros(3, 2, 4)
    several[:, 0] = 1.0
    several[1, :, 2] = 0.5
    assert _ties(several) == 1
    assert _ties(torch.zeros(5)) == _ties(torch.zeros(5, 1)) == 0


def test_scores_without_numbers_agree_with_themselves() -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    net = net.with_weights({"4.bias": torch.tensor([float("nan"), 0.0, 0.0])})
    first = Score("first", lambda y, t: float(y[:, 0].mean()), per_example=lambda y, t: y[:, 0])
    effects = ablate(net, EachUnit(), task, score=first)
    assert effects.audit.mismatches == 0
    assert all(math.isnan(loss) for _, _, loss in effects.top(3)) and len(effects.top(100)) == 13
    assert math.isnan(effects.estimate("0", 1).best)


def test_lesions_of_unknown_cost_come_first() -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    effects = ablate(net, EachUnit(layers=("2",)), task)
    effects.tallies["2"].total[3] = float("nan")
    (_, place, _), (_, second, lost) = effects.top(2)
    assert place == 3 and second != 3 and lost == float(effects.lost["2"][[0, 1, 2, 4]].max())


def test_a_score_that_is_no_mean_has_no_interval_from_examples() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    task = Task.of("line", (x, x[:, :1]), (x, x[:, :1]), loss="mse", score=R2)
    net = Network.of(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)), x)
    effects = ablate(net, EachUnit(), task)
    estimate = effects.estimate("0", 2)
    assert math.isfinite(estimate.best) and math.isnan(estimate.low) and math.isnan(estimate.high)
    assert effects.audit.lesions > 0 and effects.audit.mismatches == 0


def test_an_empty_lesion_changes_no_outputs_and_no_scores() -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    first = Score("first", lambda y, t: float(y[:, 0].mean()), per_example=lambda y, t: y[:, 0])
    for outputs in (False, True):
        tally = ablate(net, [[]], task, score=first, outputs=outputs).tallies["lesions"]
        assert (tally.rose.item(), tally.fell.item(), tally.squares.item()) == (0, 0, 0.0)


# ------------------------------------------------------------------------------------------------------- input


def test_a_score_must_give_one_number_per_example() -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    for per_example in (lambda y, t: y[:, :2], lambda y, t: y[:, :1], lambda y, t: y.mean()):
        for bitwise in (False, True):
            odd = Score("odd", lambda y, t: 0.0, per_example=per_example)
            with pytest.raises(InputError, match=r"per_example of 'odd'.*one number per example"):
                ablate(net, EachUnit(), task, score=odd, bitwise=bitwise)


def test_targets_that_are_no_labels_are_not_counted_by_class() -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    score = Score("product", lambda y, t: float((y[:, 0] * t).mean()), per_example=lambda y, t: y[:, 0] * t)
    for targets in (task.test.inputs[:, 0], task.test.targets + 100, task.test.targets - 5):
        effects = ablate(net, EachUnit(), task, data=Data(task.test.inputs, targets), score=score)
        assert effects.classes is None and effects.tallies["0"].by_class is None
        assert effects.audit.mismatches == 0
    assert ablate(net, EachUnit(), task, score=score).tallies["0"].by_class.shape == (8, 3)


def test_streams_whose_batches_do_not_fit_together_are_refused() -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    x, y = task.test.inputs, task.test.targets
    for second, words in (
        ((torch.ones(4, 7), y[:4]), "batches of inputs"),
        ((x[:4], y[:4, None]), "batches of inputs"),
        ((x[:4], y[:4] + 3), "labels from 0 to 2"),
    ):
        with pytest.raises(InputError, match=words):
            ablate(net, EachUnit(), task, data=lambda second=second: [(x, y), second])


def test_lesions_of_other_networks_are_refused() -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    with torch.random.fork_rng():
        tanh = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
        wide = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3))
    for other, words in ((tanh, "another architecture"), (wide, "other weights")):
        with pytest.raises(InputError, match=words):
            ablate(net, [Network.of(other)], task)
    norm = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    plain = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU(), nn.Linear(4, 3))
    for one, two in ((norm, plain), (plain, norm)):
        with pytest.raises(InputError, match="other weights or buffers"):
            ablate(Network.of(one, task.test.inputs), [Network.of(two)], task)
    moved = Network.of(norm, task.test.inputs)
    with pytest.raises(InputError, match="intact network's buffers"):
        ablate(moved, [moved.with_weights({}, {"1.running_mean": torch.ones(4)})], task)
    same = Network.of(_mlp(), task.test.inputs)
    assert ablate(net, [same.with_weights({"0.bias": torch.ones(8)})], task).audit.mismatches == 0


def test_single_lesions_belong_into_a_list_and_audits_are_not_negative() -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    for what in (Unit("0", 1), net, 3):
        with pytest.raises(InputError, match="Put a single lesion into a list"):
            ablate(net, what, task)
    with pytest.raises(InputError, match="audited"):
        ablate(net, EachUnit(), task, audited=-1)


# ----------------------------------------------------------------------------------------------------- workers


def test_numbers_do_not_depend_on_who_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    case = NETWORKS["residual"]
    x = case.inputs(300)
    data = Data(x, case.network()(x).argmax(1))
    sure = Score("sure", lambda y, t: 0.0, per_example=lambda y, t: y.softmax(1).amax(1))
    monkeypatch.setattr(ablate_module, "SHARE", 1)
    monkeypatch.setattr(replay_module, "CACHE", 1 << 14)
    one, *more = (
        ablate(case.network(), EachUnit(), case.task(), data=data, score=sure, workers=workers) for workers in (1, 2, 3)
    )
    assert one.plan.chunk < 100
    for other in more:
        assert other.intact == one.intact
        for layer, tally in one.tallies.items():
            assert torch.equal(other.tallies[layer].total, tally.total)
            assert torch.equal(other.tallies[layer].squares, tally.squares)


def test_an_error_that_cannot_be_sent_is_met_by_the_caller(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Local(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    task = _task()
    net = Network.of(_mlp(), task.test.inputs)

    def broken(self: Work, inputs: Tensor, targets: Tensor) -> object:
        raise Local(1, 2)

    monkeypatch.setattr(Work, "tally", broken)
    with pytest.raises(Local, match="1 and 2"):
        ablate(net, EachUnit(), task, workers=2)
    assert capfd.readouterr().err == ""


def test_an_interrupt_ends_the_workers_and_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    task = _task(count=40)
    net = Network.of(_mlp(), task.test.inputs)
    begun, ready = os.pipe()

    def waiting(self: Work, inputs: Tensor, targets: Tensor) -> object:
        os.write(ready, b".")
        time.sleep(20)
        raise AssertionError("nobody ended this worker")

    monkeypatch.setattr(Work, "tally", waiting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads
        caller = os.fork()
    if not caller:  # a process with a group of its own, as of a shell's command
        os.setpgrp()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        verdict = 1
        with suppress(BaseException):
            try:
                ablate(net, EachUnit(), task, data=lambda: _halves(task), workers=2)
            except KeyboardInterrupt:
                verdict = 0 if not multiprocessing.active_children() else 2
        os._exit(verdict)
    assert os.read(begun, 1) + os.read(begun, 1) == b".."
    os.killpg(caller, signal.SIGINT)
    _, status = os.waitpid(caller, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert capfd.readouterr().err == ""


def _halves(task: Task) -> list[tuple[Tensor, Tensor]]:
    return list(zip(task.test.inputs.chunk(2), task.test.targets.chunk(2), strict=True))


def test_a_stream_is_read_once_by_every_worker(tmp_path: Path) -> None:
    task = _task(count=40)
    net = Network.of(_mlp(), task.test.inputs)
    log = tmp_path / "reads"

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for number, (x, t) in enumerate(zip(task.test.inputs.split(10), task.test.targets.split(10), strict=True)):
            with log.open("a") as file:
                file.write(f"{number} ")
            yield x, t

    effects = ablate(net, EachUnit(), task, data=batches, workers=2, audited=0)
    reads = log.read_text().split()
    assert effects.examples == 40
    assert sorted(reads) == sorted(["0", *(["0", "1", "2", "3"] * 2)]), "a look at the first batch, then two workers"


def test_what_is_known_of_a_network_goes_with_it() -> None:
    task = _task()
    net = Network.of(_mlp(), task.test.inputs)
    ablate(net, EachUnit(), task, audited=0)
    ablate(net, EachUnit(), task, bitwise=True, audited=0)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_batches_of_a_stream_may_be_as_the_network_takes_them() -> None:
    class Marked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.hidden, self.head = nn.Embedding(9, 4), nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, ids: Tensor, kept: Tensor) -> Tensor:
            return self.head(torch.relu(self.hidden((self.embed(ids) * kept[..., None]).sum(1))))

    torch.manual_seed(0)
    ids, kept, labels = torch.randint(9, (12, 4)), torch.randint(2, (12, 4)), torch.arange(12) % 2
    task = Task.of("marked", ({"ids": ids, "kept": kept}, labels), ({"ids": ids, "kept": kept}, labels))
    net = Network.of(Marked(), task.train.examples)
    whole = ablate(net, EachUnit(), task).tallies["hidden"].total
    dicts = [{"ids": ids[part], "kept": kept[part], "labels": labels[part]} for part in (slice(5), slice(5, 12))]
    pairs = [({"ids": ids[part], "kept": kept[part]}, labels[part]) for part in (slice(5), slice(5, 12))]
    for batches in (dicts, pairs):
        streamed = ablate(net, EachUnit(), task, data=lambda batches=batches: batches)
        assert torch.equal(streamed.tallies["hidden"].total, whole)
