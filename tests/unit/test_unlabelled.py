"""Data without labels: the answers of the intact network become the targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.data import Data
from planaria.measure.datasets import load, task
from planaria.measure.unlabelled import Unlabelled, class_axis

RNG = np.random.default_rng(0)


class Encoder(nn.Module):
    """Class scores per token, [N, T, 5], or one vector per text."""

    def __init__(self, pooled: bool = False) -> None:
        nn.Module.__init__(self)
        rng = stream(0, "weights")
        self.embed = nn.Parameter(torch.randn(20, 5, generator=rng))
        self.pooled = pooled

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        hidden = self.embed[input_ids] * attention_mask[..., None]
        return {"logits": hidden.mean(1) if self.pooled else hidden}


def texts(rows: int) -> dict[str, Tensor]:
    rng = stream(rows, "texts")
    shown = (torch.arange(7) < torch.randint(2, 8, (rows, 1), generator=rng)).long()
    return {"input_ids": torch.randint(0, 20, (rows, 7), generator=rng), "attention_mask": shown}


def waiting(by: str | None = None, loss: str | None = None) -> Unlabelled:
    splits = {part: Data.of((texts(n), torch.zeros(n))) for part, n in (("train", 30), ("validation", 6), ("test", 9))}
    return Unlabelled("mine", splits, by, loss)


def test_by_agreement_the_answers_are_the_labels_and_the_network_itself_is_right_everywhere() -> None:
    data = waiting()
    net = Network.of(Encoder(pooled=True), data.splits["train"].examples)
    made = data.answered(net)
    assert (made.scorer.name, made.classes, made.record()["loss"]) == ("agreement", 5, "cross_entropy")
    assert torch.equal(made.test.targets, net(made.test.inputs).argmax(1))
    assert made.score(net) == 1.0
    assert made.score(net.with_weights({"embed": -net.weights["embed"]})) < 0.5
    assert made.preprocessing["targets"] == f"the answers of network {net.sha256[:12]}, by agreement"
    assert made.train.layout == data.splits["train"].layout


def test_of_tokens_only_those_that_are_shown_are_asked() -> None:
    data = waiting()
    net = Network.of(Encoder(), data.splits["train"].examples)
    made = data.answered(net)
    shown = texts(9)["attention_mask"].bool()
    assert torch.equal(made.test.targets != -100, shown)
    assert torch.equal(made.test.targets[shown], net(made.test.inputs).argmax(2)[shown])
    assert made.score(net) == 1.0


def test_by_similarity_the_outputs_are_the_targets() -> None:
    data = waiting(by="similarity")
    net = Network.of(Encoder(pooled=True), data.splits["train"].examples)
    made = data.answered(net)
    assert (made.scorer.name, made.classes, made.record()["loss"]) == ("similarity", None, "cosine")
    assert made.score(net) == pytest.approx(1.0)
    assert float(made.loss(made.outputs(net, made.test), made.test.targets)) == pytest.approx(0.0, abs=1e-6)
    assert data.answered(net, "agreement").scorer.name == "agreement"
    assert waiting(by="similarity", loss="mse").answered(net).record()["loss"] == "mse"


def test_one_number_per_input_is_compared_as_a_number() -> None:
    rows = {part: Data(torch.randn(12, 3, generator=stream(0, part)), torch.zeros(12)) for part in waiting().splits}
    net = Network.of(nn.Linear(3, 1), torch.zeros(1, 3))
    made = Unlabelled("mine", rows).answered(net)
    assert (made.scorer.name, made.record()["loss"], made.score(net)) == ("r2", "mse", 1.0)


def test_positions_without_a_label_stay_without() -> None:
    labels = torch.tensor([[1, -100, 2, 0, 0, -100, 3]])
    splits = {part: Data.of((texts(8), labels.repeat(8, 1))) for part in ("train", "validation", "test")}
    made = Unlabelled("mine", splits).answered(Network.of(Encoder(), splits["train"].examples))
    assert bool((made.test.targets[:, [1, 5]] == -100).all())


def test_class_scores_are_found_where_the_shapes_of_the_inputs_say() -> None:
    def answered(shape: tuple[int, ...], inputs: tuple[int, ...]) -> tuple[int, ...]:
        rows = {part: Data(torch.randn(4, *inputs), torch.zeros(4)) for part in ("train", "validation", "test")}
        outputs = torch.randn(4, *shape, generator=stream(0, "outputs"))
        return tuple(Unlabelled("mine", rows).answered(lambda x: outputs[: len(x)]).test.targets.shape[1:])

    assert answered((6,), (3, 8, 8)) == ()
    assert answered((6, 9), (9,)) == (9,)  # classes in dimension 1, as torch has them
    assert answered((9, 6), (9,)) == (9,)  # classes last, as Hugging Face has them
    assert answered((6, 8, 8), (3, 8, 8)) == (8, 8)  # a class per pixel
    for shape in ((9, 9), (5, 6), (1,)):
        with pytest.raises(InputError, match=r"score=similarity|similarity"):
            Unlabelled(
                "mine", {part: Data(torch.randn(4, 9), torch.zeros(4)) for part in ("train", "validation", "test")}
            ).answered(lambda x, shape=shape: torch.randn(len(x), *shape), "agreement")


def test_answers_that_are_no_numbers_and_unknown_ways_are_refused() -> None:
    data = waiting()
    with pytest.raises(InputError, match="the network's answers to train: expected finite numbers"):
        data.answered(lambda input_ids, attention_mask: torch.full((len(input_ids), 3), float("nan")))
    with pytest.raises(InputError, match="Did you mean agreement"):
        data.answered(Encoder(), "agrement")


# --------------------------------------------------------------------------------------------- from texts


def save(path: Path, **arrays: object) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return f"npz:{path}"


def test_npz_without_labels_waits_for_the_network(tmp_path: Path) -> None:
    text = save(tmp_path / "a.npz", x_train=RNG.normal(size=(40, 3)), x_test=RNG.normal(size=(8, 3)))
    found = load(text)
    assert isinstance(found, Unlabelled)
    assert repr(found) == f"<Unlabelled {text!r}: 36 train, 4 validation, 8 test>"
    with pytest.raises(InputError, match=r"net=network\). On the command line, give --weights"):
        task(text)
    net = Network.of(nn.Linear(3, 4), torch.zeros(1, 3))
    made = task(text, net=net)
    assert (made.name, made.score(net), len(made.validation)) == (text, 1.0, 4)
    assert made.split == "validation is the last 4 of 40 training rows"
    assert not made.loadable
    assert task(text, net=net) == made
    assert task(text, net=Network.of(nn.Linear(3, 4), torch.zeros(1, 3))) != made


def test_labels_are_replaced_where_the_score_asks_for_it(tmp_path: Path) -> None:
    found = load("digits?score=agreement&train=50")
    assert isinstance(found, Unlabelled)
    assert (found.by, found.output_size, len(found.splits["train"])) == ("agreement", 10, 50)
    net = Network.of(nn.Linear(64, 7), torch.zeros(1, 64))
    assert found.answered(net).classes == 7
    alike = task("digits?score=similarity&loss=mse", net=net)
    assert (alike.scorer.name, alike.record()["loss"], alike.train.targets.shape[1]) == ("similarity", "mse", 7)
    text = save(tmp_path / "a.npz", x_train=np.ones((9, 3)), x_test=np.ones((9, 3)))
    with pytest.raises(InputError, match="score=agreement or score=similarity for data without labels, got accuracy"):
        task(f"{text}?score=accuracy", net=net)


def test_functions_of_the_user_may_return_inputs_alone(tmp_path: Path) -> None:
    code = """
import torch
def plain(): return {"train": torch.ones(20, 3), "test": torch.ones(5, 3)}
def named(): return {"train": {"a": torch.ones(20, 3)}, "test": {"a": torch.ones(5, 3)}}
def mixed(): return {"train": (torch.ones(20, 3), torch.ones(20, 1)), "test": torch.ones(5, 3)}
"""
    (tmp_path / "inputs_alone.py").write_text(code)
    for name in ("plain", "named"):
        assert isinstance(load(f"py:{tmp_path / 'inputs_alone.py'}:{name}"), Unlabelled)
    with pytest.raises(InputError, match="test"):
        load(f"py:{tmp_path / 'inputs_alone.py'}:mixed")


def test_the_command_line_takes_data_without_labels(tmp_path: Path) -> None:
    from planaria.cli import inputs

    text = save(tmp_path / "a.npz", x_train=RNG.normal(size=(40, 3)), x_test=RNG.normal(size=(8, 3)))
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))
    torch.save(
        {f"layers.{name}": tensor for name, tensor in model.state_dict().items()},
        tmp_path / "w.pt",
    )

    def prepared(task_text: str, weights: Path | None) -> inputs.Prepared:
        return inputs.prepare(
            inputs.Subject(
                model="mlp:3-6-4",
                weights=weights,
                task=task_text,
                data_dir=None,
                device="cpu",
                threads=1,
                seed=0,
                train_epochs=None,
                taps=(),
                quick=True,
            )
        )

    ready = prepared(f"{text}?classes=4", tmp_path / "w.pt")
    assert ready.task.scorer.name == "agreement"
    assert ready.task.score(ready.model) == 1.0
    with pytest.raises(InputError, match="--weights: expected the weights of the intact network"):
        prepared(f"{text}?classes=4", None)
    with pytest.raises(InputError, match=r"classes=N among its keys, the outputs of mlp:3-6-4"):
        prepared(text, tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("inputs", "outputs", "axis"),
    [((5,), (5, 9), 2), ((5,), (9, 5), 1), ((3, 8, 8), (4, 8, 8), 1), ((3, 8, 8), (4, 2, 2), 1), ((7,), (9,), 1)],
)
def test_classes_are_where_the_shape_of_the_inputs_leaves_them(
    inputs: tuple[int, ...], outputs: tuple[int, ...], axis: int
) -> None:
    assert class_axis(torch.zeros(2, *outputs), Data(torch.zeros(2, *inputs), torch.zeros(2))) == axis


def test_a_decoder_is_asked_where_its_own_inputs_count() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 4)

        def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
            return self.head(
                self.embed(decoder_input_ids) + (self.embed(input_ids) * attention_mask[..., None]).sum(1)[:, None]
            )

    ids = torch.ones(12, 3, dtype=torch.int64)
    inputs = {"input_ids": ids, "attention_mask": ids * torch.tensor([1, 0, 0]), "decoder_input_ids": ids}
    made = Unlabelled.of("decoder", inputs, inputs).answered(Network.of(Decoder(), inputs))
    assert not bool((made.test.targets == -100).any())
