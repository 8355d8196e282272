"""Models that take several tensors or return several: one tensor of rows in, the one that counts out."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.port import Layout, Part, Port, chosen
from planaria.measure.data import Data
from planaria.measure.task import Task
from planaria.repair.retrain import Retrain
from planaria.sweep.ablate import ablate
from planaria.sweep.lesions import EachUnit

DTYPES = [torch.int64, torch.int32, torch.bool, torch.float32, torch.float64, torch.float16]


class Reader(nn.Module):
    """Reads tokens where they are marked, beside numbers; returns what Hugging Face models return."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4 + 2, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, extra: Tensor) -> dict[str, Any]:
        marked = attention_mask[..., None].to(extra.dtype)
        mean = (self.embed(input_ids) * marked).sum(1) / marked.sum(1)
        hidden = self.hidden(torch.cat([mean, extra], 1)).relu()
        return OrderedDict(hidden=hidden, logits=self.head(hidden), cache=None)


def _inputs(count: int, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(0, 7, (count, 6), generator=rng),
        "attention_mask": torch.arange(6) < torch.randint(1, 7, (count, 1), generator=rng),
        "extra": torch.randn(count, 2, generator=rng),
    }


def _task(count: int = 60) -> Task:
    labels = torch.arange(count) % 3
    return Task.of("tokens", (_inputs(count), labels), (_inputs(count, 1), labels))


@given(
    st.lists(st.tuples(st.lists(st.integers(1, 3), max_size=2), st.sampled_from(DTYPES)), min_size=1, max_size=4),
    st.booleans(),
    st.integers(1, 4),
)
@settings(deadline=None, max_examples=60)
def test_what_is_packed_comes_out_as_it_was(
    parts: list[tuple[list[int], torch.dtype]], named: bool, count: int
) -> None:
    rng = torch.Generator().manual_seed(0)
    tensors = [torch.randint(0, 2, (count, *shape), generator=rng).to(dtype) for shape, dtype in parts]
    inputs: Any = {f"part{at}": tensor for at, tensor in enumerate(tensors)} if named else tuple(tensors)
    layout = Layout.of(inputs)
    assert layout is not None
    rows = layout.pack(inputs)
    assert rows.shape == (count, layout.width)
    back = layout.unpack(rows)
    for tensor, again in zip(tensors, back.values() if isinstance(back, dict) else back, strict=True):
        assert again.dtype == tensor.dtype and torch.equal(again, tensor)


def test_large_token_numbers_survive_beside_floats() -> None:
    inputs = (torch.tensor([[2**40 + 1]]), torch.tensor([[0.1]]))
    layout = Layout.of(inputs)
    assert layout is not None
    ids, numbers = layout.unpack(layout.pack(inputs))
    assert int(ids) == 2**40 + 1 and torch.equal(numbers, inputs[1])


def test_a_network_takes_keyword_arguments_and_returns_its_logits() -> None:
    model, inputs = Reader().eval(), _inputs(5)
    net = Network.of(model, inputs)
    with torch.no_grad():
        expected = model(**inputs)["logits"]
    assert torch.equal(net(inputs), expected)
    assert torch.equal(net(net.port.rows(inputs)), expected)
    assert torch.equal(net(UserDict(inputs)), expected)


def test_another_output_is_taken_by_name_or_place() -> None:
    inputs = _inputs(3)
    assert Network.of(Reader(), inputs, output="hidden")(inputs).shape == (3, 5)
    lstm, x = nn.LSTM(2, 4, batch_first=True), torch.randn(3, 5, 2)
    assert Network.of(lstm, x)(x).shape == (3, 5, 4)
    assert chosen((None, (torch.zeros(1, dtype=torch.int64), torch.ones(2)))).shape == (2,)
    assert chosen((torch.zeros(1), torch.ones(2)), 1).shape == (2,)
    with pytest.raises(InputError, match=r"a tensor under 'hiden'.*entries hidden, logits, cache.*hidden"):
        Network.of(Reader(), inputs, output="hiden")(inputs)


def test_positional_arguments_work_too() -> None:
    net = Network.of(nn.Bilinear(2, 3, 4), (torch.randn(2, 2), torch.randn(2, 3)))
    x, y = torch.randn(5, 2), torch.randn(5, 3)
    assert torch.equal(net((x, y)), nn.functional.bilinear(x, y, net.weights["weight"], net.weights["bias"]))


def test_labels_and_missing_entries_are_no_inputs() -> None:
    batch = {**_inputs(4), "labels": torch.arange(4), "nothing": None}
    layout = Layout.of(batch)
    assert layout is not None and layout.names == ("attention_mask", "extra", "input_ids")


def test_an_argument_that_the_inputs_do_not_give_is_named() -> None:
    inputs = _inputs(2)
    del inputs["attention_mask"]
    with pytest.raises(InputError, match="attention_mask"):
        Network.of(Reader(), inputs)
    with pytest.raises(InputError, match="attention_mask, extra"):
        Network.of(Reader(), torch.zeros(2, 6, dtype=torch.int64))
    with pytest.raises(InputError, match="at most 1 tensors"):
        Network.of(nn.Linear(2, 1), (torch.zeros(1, 2), torch.zeros(1, 2)))


def test_an_entry_that_the_model_does_not_take_is_left_out() -> None:
    inputs = {**_inputs(3), "token_type_ids": torch.zeros(3, 6, dtype=torch.int64)}
    net = Network.of(Reader(), inputs)
    assert net.port.left_out == ("token_type_ids",)
    assert torch.equal(net(inputs), Network.of(Reader(), inputs).with_weights(net.weights)(inputs))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)}, "as many rows"),
        ({"a": torch.tensor(1.0)}, "at least one example"),
        ({"a": [[1, 2], [3]]}, "pad it to one length"),
        ({}, "at least one tensor"),
        ("text", "a tensor, a tuple of tensors"),
        ([[1.0]], "a tensor, a tuple of tensors"),
    ],
)
def test_what_cannot_be_packed_is_refused(inputs: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Layout.of(inputs)


def test_inputs_of_another_form_are_refused() -> None:
    net = Network.of(Reader(), _inputs(2))
    with pytest.raises(InputError, match=r"input_ids \[6\]"):
        net(torch.zeros(2, 5))
    longer = {**_inputs(2), "input_ids": torch.zeros(2, 9, dtype=torch.int64)}
    with pytest.raises(InputError, match=r"pad them to one length"):
        net(longer)
    with pytest.raises(InputError, match="one tensor"):
        Network.of(nn.Linear(2, 1), torch.zeros(1, 2))({"x": torch.zeros(1, 2)})


def test_data_of_several_tensors_comes_from_pairs_rows_and_batches() -> None:
    inputs, labels = _inputs(6), torch.arange(6) % 3
    whole = Data.of((inputs, labels))
    assert whole.layout == Layout.of(inputs)
    rows = [({name: part[at] for name, part in inputs.items()}, int(labels[at])) for at in range(6)]
    hugging = [{**row, "labels": label} for row, label in rows]
    batches = [({name: part[at : at + 4] for name, part in inputs.items()}, labels[at : at + 4]) for at in (0, 4)]
    together = [{**batch, "labels": y} for batch, y in batches]
    for source in (rows, hugging, batches, together, {**inputs, "label": labels}):
        data = Data.of(source)
        assert torch.equal(data.inputs, whole.inputs) and torch.equal(data.targets, labels)
        assert data.layout == whole.layout
    assert torch.equal(whole.take([1]).examples["extra"], inputs["extra"][1:2])  # type: ignore[index, call-overload]
    assert Data.of(((inputs["extra"], inputs["input_ids"]), labels)).layout == Layout(
        (Part("", (2,), torch.float32), Part("", (6,), torch.int64))
    )


def test_rows_of_different_lengths_are_refused() -> None:
    rows = [({"input_ids": torch.zeros(n, dtype=torch.int64)}, 0) for n in (3, 4)]
    with pytest.raises(InputError, match="examples of one form"):
        Data.of(rows)


def test_everything_works_on_a_network_of_several_inputs() -> None:
    task = _task()
    torch.manual_seed(0)
    model = Reader()
    net = Network.of(model, task.train.examples)
    assert task.score(model) == task.score(net)
    anatomy = Anatomy.of(net)
    assert {"hidden"} <= {group.layer for group in anatomy.groups}
    anatomy.verify(net, task.validation.inputs)
    effects = ablate(net, EachUnit(layers=("hidden",)), task)
    for index in range(5):
        hurt = silence(net, anatomy.entries([Unit("hidden", index)]).all)
        change = float(effects.tallies["hidden"].total[index]) / len(task.test)
        assert change == pytest.approx(task.score(hurt) - task.score(net))
    moments = list(zip(range(40), Retrain(task)(net, torch.Generator().manual_seed(0)), strict=False))
    trained = moments[-1][1].network
    assert float(task.loss(trained(task.train.inputs), task.train.targets)) < float(
        task.loss(net(task.train.inputs), task.train.targets)
    )


def test_a_network_built_for_other_inputs_is_refused_by_the_task() -> None:
    task = _task()
    inputs = {**_inputs(2), "another": torch.zeros(2, 3)}
    with pytest.raises(InputError, match=r"task\.train\.examples"):
        task.score(Network.of(Reader(), inputs))


def test_a_port_says_what_it_is() -> None:
    assert Port() == Port.of(nn.Linear(2, 1), torch.zeros(1, 2))


def test_tensors_come_out_as_contiguous_as_a_model_expects_them() -> None:
    inputs = {"ids": torch.zeros(3, 2, 5, dtype=torch.int64), "mask": torch.ones(3, 2, 5, dtype=torch.int64)}
    layout = Layout.of(inputs)
    assert layout is not None
    unpacked = layout.unpack(layout.pack(inputs))
    assert isinstance(unpacked, dict)
    assert all(part.view(6, 5).shape == (6, 5) for part in unpacked.values())
    assert layout.real.tolist() == [False] * 20


def test_outputs_are_named_by_place_too_where_they_have_names() -> None:
    returned = OrderedDict(loss=torch.zeros(()), logits=torch.ones(2, 3))
    assert chosen(returned, 1).shape == chosen(returned, -1).shape == (2, 3)
    with pytest.raises(InputError, match="under 2"):
        chosen(returned, 2)


def test_numbers_that_no_table_has_rows_for_are_named() -> None:
    task = _task()
    net = Network.of(Reader(), task.train.examples)
    inputs = _inputs(4)
    inputs["input_ids"][2, 0] = 99
    data = (inputs, torch.arange(4) % 3)
    spoilt = Task.of("spoilt", data, data, validation=data)
    for wrong in (
        lambda: net(inputs),
        lambda: spoilt.score(net),
        lambda: ablate(net, EachUnit(), spoilt),
        lambda: list(zip(range(3), Retrain(spoilt, batch=4)(net, torch.Generator().manual_seed(0)), strict=False)),
    ):
        with pytest.raises(InputError, match=r"input_ids from \d to 99.*tokenizer"):
            wrong()


def test_arguments_with_defaults_that_a_model_needs_all_the_same_are_offered() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 3)

        def forward(self, input_ids: Tensor, decoder_input_ids: Tensor | None = None, **more: Any) -> Tensor:
            if decoder_input_ids is None:
                raise ValueError("give one of them")
            return self.embed(input_ids) + self.embed(decoder_input_ids)

    net = Network.of(Decoder(), {"input_ids": torch.zeros(2, 4, dtype=torch.int64)})
    with pytest.raises(InputError, match=r"give one of them.*also takes decoder_input_ids"):
        net({"input_ids": torch.zeros(2, 4, dtype=torch.int64)})


def test_types_are_told_where_only_they_differ() -> None:
    task = _task()
    with pytest.raises(InputError, match=r"extra \[2\] float64.*extra \[2\] float32"):
        inputs = _inputs(3)
        wide = Task.of(
            "wide", ({**inputs, "extra": inputs["extra"].double()}, torch.arange(3)), (inputs, torch.arange(3))
        )
        wide.score(Network.of(Reader(), task.train.examples))
