"""Laws on models as their users have them: texts with padding, decoders, tied heads, packed sequences, experts.

Each is compared with the user's own module, run and edited by plain torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.motion import settle, updates
from planaria.core.network import Network
from planaria.core.port import chosen
from planaria.core.streams import stream
from planaria.damage.sites import sizes
from planaria.measure.labels import IGNORED
from planaria.measure.task import Task
from planaria.repair.distil import Distil
from planaria.repair.refit import Teacher, refit
from planaria.repair.retrain import SGD, Retrain
from planaria.repair.sidecar import Sidecar
from planaria.sweep.ablate import ablate
from planaria.sweep.compact import compact
from planaria.sweep.lesions import EachUnit

WORDS, LENGTH, ROWS = 13, 6, 24


# ------------------------------------------------------------------------------------------------- models


class Block(nn.Module):
    """A transformer's layer as Hugging Face writes it: hidden positions are masked by large negative numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(8, 8) for _ in range(4))
        self.norm, self.up, self.down, self.last = nn.LayerNorm(8), nn.Linear(8, 10), nn.Linear(10, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, 2, 4).transpose(1, 2) for layer in (self.query, self.key, self.value))
        pattern = (q @ k.transpose(-1, -2) / 2.0 + hidden).softmax(-1)
        x = self.norm(x + self.output((pattern @ v).transpose(1, 2).reshape(n, t, 8)))
        return self.last(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """Marks of padding become numbers to add, and one block may be applied several times."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(WORDS, 8), nn.Embedding(20, 8)
        self.blocks, self.times = nn.ModuleList([Block(), Block()]), times

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = (1.0 - attention_mask[:, None, None].to(self.embed.weight.dtype)) * -1e4
        x = self.embed(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        for block in self.blocks:
            for _ in range(self.times):
                x = block(x, hidden)
        return x


class Classifier(nn.Module):
    """Reads the first token's state; returns a mapping with more than the logits."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.encoder, self.pool, self.head = Encoder(times), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Any]:
        assert attention_mask is not None
        states = self.encoder(input_ids, attention_mask)
        pooled = torch.tanh(self.pool(states[:, 0]))
        return {"loss": None, "logits": self.head(pooled), "hidden": states}


class Tagger(nn.Module):
    """A class for each token, classes last."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Linear(8, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        return (self.head(self.encoder(input_ids, attention_mask)),)


class Pairs(nn.Module):
    """One number for two texts, [N]; their tokens lie in one tensor that is viewed in another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.out = Encoder(), nn.Linear(8, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        flat = (part.view(-1, part.size(-1)) for part in (input_ids, attention_mask))
        one, other = self.out(self.encoder(*flat)[:, 0]).view(-1, 2, 5).unbind(1)
        return F.cosine_similarity(one, other, dim=1)


class NextToken(nn.Module):
    """A recurrent language model whose head is the table of embeddings."""

    def __init__(self, rnn: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(WORDS, 8), rnn(8, 8, batch_first=True)
        self.head = nn.Linear(8, WORDS)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0])


class Packed(nn.Module):
    """Sequences packed by their lengths, which are the second input."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(WORDS, 5), nn.GRU(5, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(tokens), lengths, batch_first=True, enforce_sorted=False)
        return self.head(torch.cat(list(self.rnn(packed)[1]), -1))


class Translator(nn.Module):
    """Encoder and decoder of torch's own, two texts and the marks of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, WORDS)
        encoder = nn.TransformerEncoderLayer(8, 2, 10, batch_first=True)
        self.encoder = nn.TransformerEncoder(encoder, 1, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 10, batch_first=True), 1)

    def forward(self, source: Tensor, target: Tensor, padding: Tensor) -> Tensor:
        later = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        read = self.encoder(self.embed(source), src_key_padding_mask=padding)
        said = self.decoder(self.embed(target), read, tgt_mask=later, memory_key_padding_mask=padding)
        return self.head(said)


class Experts(nn.Module):
    """Each token goes to one of three small networks, whichever a fourth one chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.router = nn.Embedding(WORDS, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = torch.tanh(self.mix(self.embed(input_ids)))
        weights, chosen_by = self.router(x).softmax(-1).max(-1)
        added = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            taken = chosen_by == number
            added[taken] = expert(x[taken]) * weights[taken][:, None]
        return self.head((x + added).mean(1))


class TwoKinds(nn.Module):
    """Tokens and images side by side, and two outputs of which the second counts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(WORDS, 6), nn.Conv2d(2, 6, 3)
        self.read, self.head, self.other = nn.Linear(12, 7), nn.Linear(7, 3), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        kept = attention_mask[..., None].float()
        seen = torch.relu(self.conv(pixels)).mean((2, 3))
        text = (self.embed(input_ids) * kept).sum(1) / kept.sum(1)
        both = torch.relu(self.read(torch.cat([text, seen], 1)))
        return {"vision": self.other(seen), "both": self.head(both)}


class Counting(nn.Module):
    """Writes into its buffers whenever it is called; its inputs are in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(5, dtype=torch.float64))
        self.hidden, self.head = nn.Linear(5, 6).double(), nn.Linear(6, 1).double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return self.head(torch.tanh(self.hidden(x))), x


# -------------------------------------------------------------------------------------------------- cases


def numbers(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=stream(0, "numbers", *shape))


def texts(*shape: int) -> tuple[Tensor, Tensor]:
    """Tokens and the marks of those that count; the others are 0."""
    kept = (torch.arange(LENGTH) < numbers(2, LENGTH + 1, *shape, 1)).long()
    return numbers(1, WORDS, *shape, LENGTH) * kept, kept


IDS, KEPT = texts(ROWS)
CLASSES = numbers(0, 3, ROWS)
LATER = torch.where(KEPT[:, 1:] == 1, IDS[:, 1:], IGNORED)
NEXT = F.pad(LATER, (0, 1), value=IGNORED)
TEXT = {"input_ids": IDS, "attention_mask": KEPT}
PAIRS = dict(zip(("input_ids", "attention_mask"), texts(ROWS, 2), strict=True))
IMAGES = torch.randn(ROWS, 2, 5, 5, generator=stream(0, "images"))
REAL = torch.randn(ROWS, 5, generator=stream(0, "real"), dtype=torch.float64)


@dataclass(frozen=True)
class User:
    """A model with what it is called with, what it should say, and how that is judged."""

    build: Callable[[], nn.Module]
    inputs: Any
    targets: Tensor
    score: str = "accuracy"
    loss: str = "cross_entropy"
    classes: int | None = None
    output: str | int | None = None
    kind: torch.dtype = torch.float32

    def model(self) -> nn.Module:
        """The model in training mode, with weights large enough that units matter."""
        model, rng = self.build(), stream(0, "weights")
        with torch.no_grad():
            for parameter in model.parameters():
                drawn = torch.randn(parameter.shape, generator=rng)
                small = (parameter == 1) + 0.1 * drawn  # of a normalisation, or a bias
                parameter.copy_(drawn / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else small)
        return model.to(self.kind) if self.kind != torch.float32 else model

    def task(self) -> Task:
        data = (self.inputs, self.targets)
        return Task.of("users", data, data, validation=data, score=self.score, loss=self.loss, classes=self.classes)

    def says(self, model: nn.Module) -> Tensor:
        """Outputs by a loop of plain torch, a few rows at a time."""
        model = copy.deepcopy(model).eval()
        found = []
        with torch.no_grad():
            for at in range(0, ROWS, 5):
                part = slice(at, at + 5)
                if isinstance(self.inputs, Mapping):
                    returned = model(**{name: tensor[part] for name, tensor in self.inputs.items()})
                elif isinstance(self.inputs, tuple):
                    returned = model(*(tensor[part] for tensor in self.inputs))
                else:
                    returned = model(self.inputs[part])
                found.append(chosen(returned, self.output))
        return torch.cat(found)


USERS = {
    "classifier": User(Classifier, TEXT, CLASSES),
    "classifier, bfloat16": User(Classifier, TEXT, CLASSES, kind=torch.bfloat16),
    "classifier, shared layers": User(lambda: Classifier(3), TEXT, CLASSES, "nll"),
    "tagger": User(Tagger, TEXT, torch.where(KEPT == 1, IDS % 4, IGNORED), "f1"),
    "pairs": User(Pairs, PAIRS, torch.rand(ROWS, generator=stream(0, "y")), "spearman", "mse"),
    "lstm language model": User(lambda: NextToken(nn.LSTM), IDS, NEXT, "perplexity", classes=WORDS),
    "gru language model": User(lambda: NextToken(nn.GRU), IDS, NEXT, "nll", classes=WORDS),
    "packed": User(Packed, (IDS, KEPT.sum(1)), CLASSES),
    "translator": User(Translator, (IDS, IDS[:, :4], KEPT == 0), NEXT[:, :4], "nll", classes=WORDS),
    "experts": User(Experts, IDS, CLASSES),
    "two kinds": User(TwoKinds, {**TEXT, "pixels": IMAGES}, CLASSES, output="both"),
    "counting": User(Counting, REAL, REAL[:, 0], "r2", "mse", output=0),
}
ALL = pytest.mark.parametrize("user", USERS.values(), ids=USERS)


def near(one: Tensor, other: Tensor) -> bool:
    kind = other.dtype
    slack = 0.05 if kind == torch.bfloat16 else 1e-4
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=slack * float(other.abs().max()))


def every_third(anatomy: Anatomy) -> list[Unit]:
    return [Unit(group.layer, at) for group in anatomy.select() for at in range(0, group.count, 3)]


# --------------------------------------------------------------------------------------------------- laws


@ALL
def test_outputs_scores_and_units_are_those_of_the_users_module(user: User) -> None:
    model, task = user.model(), user.task()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    net = Network.of(model, task.train.examples, output=user.output)
    said = user.says(model)
    assert near(net(user.inputs), said)
    assert task.score(net) == pytest.approx(float(task.scorer.function(said, task.test.targets)), rel=1e-4, abs=1e-6)
    checks = Anatomy.of(net).verify(net, per_layer=3, strict=False, tolerance=1e-5 if user.kind.itemsize > 2 else 0.05)
    assert checks
    assert [check.layer for check in checks if not check.exact] == []
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@ALL
def test_silencing_a_unit_is_setting_the_users_weights_to_zero(user: User) -> None:
    model, task = user.model(), user.task()
    net = Network.of(model, task.train.examples, output=user.output)
    anatomy = Anatomy.of(net)
    effects = ablate(net, EachUnit(kinds=anatomy.kinds), task)
    assert effects.audit.mismatches == 0
    kept = ablate(net, EachUnit(kinds=anatomy.kinds), task, outputs=True, audited=0).outputs
    assert kept is not None
    for group in anatomy.groups:
        for index in {0, group.count - 1}:
            edited, entries = copy.deepcopy(model), anatomy.entries([Unit(group.layer, index)]).all
            with torch.no_grad():
                for name, parameter in edited.named_parameters():
                    if name in entries:
                        parameter[entries[name]] = 0.0
            said = user.says(edited)
            assert near(kept[group.layer][index], said), group.layer
            if user.kind.itemsize > 2:
                score = float(task.scorer.function(said, task.test.targets))
                assert float(effects.scores[group.layer][index]) == pytest.approx(score, rel=1e-4, abs=1e-6)


@ALL
def test_dead_units_stay_dead_through_every_repair_and_can_be_cut_out(user: User) -> None:
    task = user.task()
    net = Network.of(user.model(), task.train.examples, output=user.output)
    anatomy = Anatomy.of(net)
    lesion = every_third(anatomy)
    hurt = silence(net, anatomy.entries(lesion).all)
    repaired = {
        "sidecar": refit(net, lesion, Sidecar.of(net, user.inputs)).network,
        "teacher": refit(net, lesion, Teacher(net, user.inputs)).network,
        "retrain": settle(Retrain(task, batch=8), updates(2))(hurt, stream(0, "retrain")),
        "distil": settle(Distil(net, user.inputs, batch=8), updates(2))(hurt, stream(0, "distil")),
    }
    for name, network in repaired.items():
        dead = anatomy.dead(network)
        assert all(bool(dead[unit.layer][unit.index]) for unit in lesion), name
        assert bool(network(user.inputs).isfinite().all()), name
    small = compact(hurt)
    assert near(user.says(small.module), user.says(hurt.to_module()))


@pytest.mark.parametrize("name", ["classifier", "tagger", "translator", "gru language model", "packed", "two kinds"])
def test_a_refit_brings_a_network_nearer_to_what_it_said(name: str) -> None:
    user = USERS[name]
    net = Network.of(user.model(), user.task().train.examples, output=user.output)
    anatomy = Anatomy.of(net)
    lesion = every_third(anatomy)
    wanted = net(user.inputs)

    def apart(other: Network) -> float:
        return float((other(user.inputs) - wanted).square().mean())

    hurt = apart(silence(net, anatomy.entries(lesion).all))
    assert apart(refit(net, lesion, Teacher(net, user.inputs)).network) < 0.9 * hurt


def test_longer_padding_changes_nothing() -> None:
    user = USERS["classifier"]
    model, lesion = user.model(), [Unit("encoder.blocks.0.up", at) for at in range(4)]
    said, lost = [], []
    for more in (0, 5):
        inputs = {name: F.pad(tensor, (0, more)) for name, tensor in TEXT.items()}
        task = Task.of("padded", (inputs, CLASSES), (inputs, CLASSES), validation=(inputs, CLASSES))
        net = Network.of(model, task.train.examples)
        lost.append(ablate(net, EachUnit(), task, outputs=True, audited=0).outputs)
        said.append([net(inputs)])
        for source in (Sidecar.of(net, inputs), Teacher(net, inputs)):
            said[-1].append(refit(net, lesion, source).network(inputs))
    assert all(near(one, other) for one, other in zip(*said, strict=True))
    assert lost[0] is not None and lost[1] is not None
    assert all(near(one, lost[1][layer]) for layer, one in lost[0].items())


def test_a_refit_makes_up_for_units_whose_readers_share_their_weight_with_the_embedding() -> None:
    user = USERS["lstm language model"]
    net = Network.of(user.model(), IDS)
    (fit,) = refit(net, [Unit("rnn", 0), Unit("rnn", 1)], Teacher(net, IDS)).layers
    assert fit.reader == "rnn.weight_hh_l0"
    assert fit.after < 0.5 * fit.before


def test_distilling_a_tagger_softens_over_its_classes_and_not_over_the_tokens() -> None:
    net = Network.of(USERS["tagger"].model(), TEXT)
    # What one class gains at every token, a softmax over tokens would not see.
    more = torch.tensor([3.0, 0.0, 0.0, 0.0])
    shifted = net.with_weights({"head.bias": net.weights["head.bias"] + more})
    moment = next(iter(Distil(net, TEXT, SGD(0.1), ROWS, temperature=2.0)(shifted, stream(0, "distil"))))
    assert float(moment.network.weights["head.bias"][0]) < float(shifted.weights["head.bias"][0]) - 0.01


def test_units_of_packed_sequences_are_as_loud_as_what_they_emit() -> None:
    user = USERS["packed"]
    model = user.model().eval()
    tokens, lengths = user.inputs
    with torch.no_grad():
        packed = pack_padded_sequence(model.embed(tokens), lengths, batch_first=True, enforce_sorted=False)
        emitted = model.rnn(packed)[0].data
    # Many parts, each with other lengths.
    many = Network.of(model, user.inputs)
    heard = sizes(many, inputs=many.port.rows((tokens.repeat(3, 1), lengths.repeat(3))))
    assert torch.allclose(heard["rnn.l0"].float(), emitted[:, :6].abs().mean(0), atol=1e-6)
    assert torch.allclose(heard["rnn.l0_reverse"].float(), emitted[:, 6:].abs().mean(0), atol=1e-6)
