"""Data and Task: checked when made, recorded in full, never changing what they are given."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from planaria.core.errors import InputError
from planaria.measure.data import Data, hold_out
from planaria.measure.scores import R2, Score
from planaria.measure.task import Task, mse

X = torch.arange(40.0).reshape(20, 2)
Y = torch.arange(20) % 4


def small(**changes: object) -> Task:
    arguments: dict[str, object] = {"name": "small", "train": (X, Y), "test": (X[:8], Y[:8])} | changes
    return Task.of(**arguments)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ Data


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(4), "3 inputs and 4 targets"),
        (torch.zeros(0, 2), torch.zeros(0), "at least one row"),
        (torch.zeros(3, 0), torch.zeros(3), "at least one row"),
        (
            torch.tensor([[1.0, math.nan], [math.inf, 0.0]]),
            torch.zeros(2),
            "Data.inputs.*2 NaN or Inf among 4",
        ),
        (torch.zeros(2, 2), torch.tensor([0.0, math.nan]), "Data.targets.*1 NaN or Inf among 2"),
        (np.zeros((3, 2)), torch.zeros(3), "expected a tensor, got ndarray"),
    ],
)
def test_unusable_data_are_refused_and_named(inputs: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Data(inputs, targets)


def test_finite_data_whose_sum_overflows_are_accepted() -> None:
    big = torch.full((4, 2), 3e38)
    assert not math.isfinite(float(big.sum()))
    assert len(Data(big, torch.zeros(4))) == 4


def test_integer_targets_become_int64_and_inputs_stay_as_they_are() -> None:
    data = Data(torch.zeros(2, 2, dtype=torch.uint8), torch.tensor([1, 2], dtype=torch.uint8))
    assert data.targets.dtype == torch.int64
    assert data.inputs.dtype == torch.uint8


def test_take_gives_the_first_rows_or_the_rows_asked_for() -> None:
    data = Data(X, Y)
    assert torch.equal(data.take(3).inputs, X[:3])
    assert torch.equal(data.take([4, 1]).targets, Y[[4, 1]])
    assert torch.equal(data.take(torch.tensor([4])).targets, Y[[4]])
    assert len(data.take(slice(-5, None))) == 5
    for wrong in (0, 21, -1, [20], [-1]):
        with pytest.raises(InputError, match=r"Data.take"):
            data.take(wrong)


def test_the_hash_follows_content_and_not_storage() -> None:
    data = Data(X, Y)
    assert data.sha256 == Data(X.clone(), Y.clone()).sha256 == data.to("cpu").sha256
    assert data.sha256 != Data(X + 1, Y).sha256
    assert data.sha256 != Data(X, Y.flip(0)).sha256
    assert data.take(5).sha256 != data.take(6).sha256


class Pairs(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index], int(Y[index])


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(X, Y, strict=True))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, 20, 7):  # the last one is smaller
        yield X[start : start + 7], Y[start : start + 7]


@pytest.mark.parametrize(
    "source",
    [
        (X, Y),
        [X, Y],
        (X.numpy(), Y.numpy()),
        (X.double().numpy(), Y.tolist()),
        (X.tolist(), Y.tolist()),
        Pairs(),
        Stream(),
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=7),
        DataLoader(Pairs(), batch_size=20),
        DataLoader(Pairs(), batch_size=None),
        batches(),
        list(batches()),
        [(x, int(y)) for x, y in zip(X, Y, strict=True)],
        [(X[:10], Y[:10]), (X[10:], Y[10:])],
        [(X, Y)],
    ],
    ids=lambda source: type(source).__name__,
)
def test_every_way_of_holding_pairs_gives_the_same_data(source: object) -> None:
    data = Data.of(source)
    assert torch.equal(data.inputs, X)
    assert data.inputs.dtype == torch.float32
    assert torch.equal(data.targets, Y)


@pytest.mark.parametrize(
    "source",
    [None, 3, "digits", X, {"x": X, "y": Y}, [], [(X, Y, Y)], iter([{"x": X}]), (X, "words"), (X, [None])],
)
def test_what_holds_no_pairs_is_refused_with_the_reason(source: object) -> None:
    with pytest.raises(InputError, match="mine"):
        Data.of(source, "mine")


def test_examples_of_different_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="examples of one shape"):
        Data.of([(torch.zeros(2), 0), (torch.zeros(3), 1)])


def test_errors_carry_the_name_the_caller_gave() -> None:
    with pytest.raises(InputError, match=r"^bad.npz: train.inputs: expected finite numbers, got 1 NaN"):
        Data.of((torch.tensor([[math.nan]]), torch.zeros(1)), "bad.npz: train")


# ------------------------------------------------------------------------------------------------ Task


def test_validation_is_the_last_part_of_train_and_test_is_untouched() -> None:
    task = small(validation_share=0.25)
    assert torch.equal(task.train.inputs, X[:15])
    assert torch.equal(task.validation.inputs, X[15:])
    assert torch.equal(task.test.inputs, X[:8])
    assert task.record()["split_rule"] == "validation is the last 5 of train"


def test_given_validation_data_are_used() -> None:
    task = small(validation=(X[:3], Y[:3]))
    assert (len(task.train), len(task.validation)) == (20, 3)


def test_rows_sorted_by_class_are_refused_because_their_end_is_no_sample() -> None:
    with pytest.raises(InputError, match="sorted by class"):
        small(train=(X, torch.arange(20) // 5))
    assert len(small(train=(X, torch.arange(20) // 5), validation=(X, Y)).train) == 20
    regression = small(train=(X, torch.arange(20.0)), test=(X, torch.arange(20.0)), loss="mse", score="r2")
    assert regression.classes is None


@pytest.mark.parametrize("count", [0, 20, 21])
def test_holding_out_everything_or_nothing_is_refused(count: int) -> None:
    with pytest.raises(InputError, match="validation"):
        hold_out(Data(X, Y), count)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, math.nan])
def test_a_validation_share_outside_zero_to_one_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="validation_share"):
        small(validation_share=share)


def test_labels_outside_the_classes_are_refused_with_the_first_index() -> None:
    labels = Y.clone()
    labels[[6, 9]] = 7
    with pytest.raises(InputError, match=r"train.targets: expected labels from 0 to 3, got 7 at index 6 \(2 such"):
        small(train=(X, labels), classes=4)
    labels[2] = -1
    with pytest.raises(InputError, match="got -1 at index 2"):
        small(test=(X, labels))
    with pytest.raises(InputError, match="integer labels"):
        small(test=(X, labels.float()))


def test_splits_of_different_shapes_are_refused() -> None:
    with pytest.raises(InputError, match=r"Task.test.inputs: expected rows of shape \[2\] as in train, got \[1\]"):
        small(test=(X[:, :1], Y))


def test_unknown_losses_and_scores_name_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean cross_entropy"):
        small(loss="crossentropy")
    with pytest.raises(InputError, match="Did you mean accuracy"):
        small(score="acuracy")


def test_the_score_is_the_same_in_one_batch_or_many() -> None:
    x = torch.randn(2500, 3, generator=torch.Generator().manual_seed(0))
    y = x.argmax(1)
    task = Task.of("many", (x, y), (x, y))
    assert task.score(lambda x: x) == 1.0
    sizes = []
    task.outputs(lambda x: sizes.append(len(x)) or x, task.test)  # type: ignore[func-returns-value]
    assert sizes == [1000, 1000, 500]


def test_a_module_is_scored_in_eval_mode_and_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.9))
    model[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    task = small()
    assert task.score(model) == task.score(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def fails(module: nn.Module, inputs: object) -> None:
        raise RuntimeError("no")

    model.register_forward_pre_hook(fails)
    with pytest.raises(InputError, match="no"):
        task.score(model)
    assert [module.training for module in model.modules()] == modes


def test_outputs_carry_no_gradients() -> None:
    assert not small().outputs(nn.Linear(2, 4), small().test).requires_grad


@pytest.mark.parametrize("net", [lambda x: (x, x), lambda x: x[:1], lambda x: x.sum(), lambda x: None])
def test_a_network_that_gives_no_row_per_input_is_refused(net: object) -> None:
    with pytest.raises(InputError, match="a tensor with 8 rows"):
        small().score(net)  # type: ignore[arg-type]


def test_a_score_of_nan_is_reported_as_minus_infinity() -> None:
    assert small(score=Score("odd", lambda y, t: math.nan)).score(lambda x: x) == -math.inf
    assert small().score(lambda x: torch.full((len(x), 4), math.nan)) == 0.0


def test_a_regression_takes_a_column_for_a_row_but_never_broadcasts() -> None:
    t = X.sum(1)
    task = Task.of("sum", (X, t), (X, t), loss="mse", score="r2")
    assert task.score(lambda x: x.sum(1, keepdim=True)) == 1.0
    assert (task.classes, task.output_size, task.chance, task.scorer) == (None, 1, 0.0, R2)
    assert float(task.loss(t[:, None], t)) == 0.0
    with pytest.raises(InputError, match="shape of the targets"):
        mse(torch.zeros(20, 2), t)


def test_the_record_is_json_and_tells_every_array_apart() -> None:
    record = json.loads(json.dumps(small().record(), allow_nan=False))
    assert record["name"] == "small"
    assert record["splits"] == {"train": 18, "validation": 2, "test": 8}
    assert record["classes"] == 4
    assert record["chance"] == 0.25
    assert (record["loss"], record["score"]) == ("cross_entropy", "accuracy")
    assert len(record["sha256"]) == 6
    changed = small(test=(X[:8] + 1, Y[:8])).record()["sha256"]
    assert isinstance(changed, dict)
    assert [name for name in changed if changed[name] != record["sha256"][name]] == ["test.inputs"]


def test_tasks_are_equal_when_name_and_data_are() -> None:
    assert small() == small()
    assert hash(small()) == hash(small())
    assert small() != small(name="other")
    assert small() != small(test=(X[:7], Y[:7]))
    assert small() != "small"


def test_making_and_scoring_a_task_changes_nothing_it_was_given() -> None:
    x, y, state = X.clone(), Y.clone(), torch.get_rng_state()
    small().score(lambda inputs: inputs.repeat(1, 2))
    assert torch.equal(x, X)
    assert torch.equal(y, Y)
    assert torch.equal(state, torch.get_rng_state())


def test_a_task_moves_between_devices_with_its_hash() -> None:
    assert small().to("cpu") == small()


def test_a_list_of_numbers_is_one_input_and_not_several() -> None:
    rows = [([0.0, 1.0], 0), ([2.0, 3.0], 1), ([4.0, 5.0], 0)]
    assert Data.of(rows).inputs.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


def test_a_column_that_holds_no_numbers_is_named() -> None:
    rows = [{"input_ids": [1, 2], "text": "one two", "label": 1}, {"input_ids": [3, 4], "text": "three", "label": 0}]
    with pytest.raises(InputError, match=r"data\.inputs\['text'\].*leave it out"):
        Data.of(rows)
    with pytest.raises(InputError, match=r"data\.inputs\['text'\]"):
        Data.of([{"text": row["text"], "label": row["label"]} for row in rows])
