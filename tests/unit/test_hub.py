"""Hugging Face folders, sentence encoders, timm and torchvision: loaded offline, without running what they carry."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import shutil
import socket
import sys
import types
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from planaria.core.errors import EnvironmentProblem, InputError, UnsafeError
from planaria.core.network import Network
from planaria.measure import hub
from planaria.measure.models import build, carried_code, carries_weights, load
from planaria.measure.sentences import SentenceEncoder, Similarity

IDS = torch.tensor([[4, 7, 9, 2, 0], [4, 5, 2, 0, 0], [8, 8, 8, 8, 8]])
SEEN = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach another machine fails the test."""

    def refuse(*unused: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="of the extra hf")


@pytest.fixture(scope="session")
def bert(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier of texts, as save_pretrained writes it."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=12,
        num_labels=3,
    )
    folder = tmp_path_factory.mktemp("bert")
    with hub._quiet(transformers):
        transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(bert: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(bert, tmp_path / "model"))


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    table = json.loads(path.read_text()) if path.is_file() else {}
    edit(table)
    path.write_text(json.dumps(table))


class Trap:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


# ------------------------------------------------------------------------------------------------- folders


def test_a_folder_gives_the_model_it_names_with_its_weights(transformers: Any, bert: Path) -> None:
    for text in (f"hf:{bert}", str(bert)):
        made = load(text, (5,), 3, 0)
        assert type(made.module).__name__ == "BertForSequenceClassification"
        assert made.trained and not made.module.training and not made.notes
        assert set(made.files) == {"config.json", "model.safetensors"}
        assert carries_weights(text) and carried_code(text) is None
    stored = load_file(bert / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in made.module.state_dict().items())
    net = Network.of(made.module, {"input_ids": IDS, "attention_mask": SEEN})
    assert net({"input_ids": IDS, "attention_mask": SEEN}).shape == (3, 3)


def test_the_global_generator_and_the_librarys_settings_are_left_alone(transformers: Any, bert: Path) -> None:
    logging = transformers.utils.logging
    before = torch.get_rng_state(), logging.get_verbosity(), logging.is_progress_bar_enabled()
    build(f"hf:{bert}", (5,), 3, 0)
    after = torch.get_rng_state(), logging.get_verbosity(), logging.is_progress_bar_enabled()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


@pytest.mark.parametrize("names", [None, [], ["BertTokenizer"], ["AutoModel"], ["GPT2Model"], ["NoSuchModel"], [3]])
def test_a_class_that_does_not_belong_to_the_settings_gives_the_bare_model(folder: Path, names: object) -> None:
    change(folder / "config.json", lambda config: config.update(architectures=names))
    made = load(f"hf:{folder}", (5,), 3, 0)
    assert type(made.module).__name__ == "BertModel"
    (note,) = made.notes
    assert "no place for: classifier.bias, classifier.weight (2)" in note


def test_weights_in_several_files_and_plain_pickles_of_tensors_are_read_too(folder: Path) -> None:
    expected = build(f"hf:{folder}", (5,), 3, 0).state_dict()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    places = {name: f"part-{at % 2}.safetensors" for at, name in enumerate(names)}
    for part in sorted(set(places.values())):
        save_file({name: state[name] for name in names if places[name] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    made = load(f"hf:{folder}", (5,), 3, 0)
    assert {"part-0.safetensors", "part-1.safetensors", "model.safetensors.index.json"} <= set(made.files)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors.index.json").unlink()
    for module in (made.module, build(f"hf:{folder}", (5,), 3, 0)):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())


def test_half_precision_weights_arrive_in_half_precision(folder: Path) -> None:
    save_file({n: t.half() for n, t in load_file(folder / "model.safetensors").items()}, folder / "model.safetensors")
    change(folder / "config.json", lambda config: config.update(dtype="float16"))
    assert next(build(f"hf:{folder}", (5,), 3, 0).parameters()).dtype == torch.float16


def test_tensors_that_are_missing_or_left_over_are_named_five_at_most(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    some = {name: tensor for name, tensor in state.items() if "attention" not in name}
    save_file({**some, "extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(InputError) as caught:
        load(f"hf:{folder}", (5,), 3, 0)
    message = str(caught.value)
    assert "none for bert.encoder.layer.0.attention.output.LayerNorm.bias, " in message
    assert message.count("bert.encoder.layer.0.attention") == 5 and "... (10)" in message
    assert "Not in the model: extra (1)" in message
    save_file({**state, **{f"extra{at}": torch.zeros(1) for at in range(7)}}, folder / "model.safetensors")
    (note,) = load(f"hf:{folder}", (5,), 3, 0).notes
    assert "extra0, extra1, extra2, extra3, extra4 ... (7)" in note
    save_file({**state, "classifier.weight": torch.zeros(9, 8)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"'classifier\.weight' of shape \[3, 8\].*got shape \[9, 8\]"):
        load(f"hf:{folder}", (5,), 3, 0)
    save_file({name: tensor for name, tensor in state.items() if "pooler" not in name}, folder / "model.safetensors")
    (note,) = load(f"hf:{folder}", (5,), 3, 0).notes
    assert "no weights for bert.pooler.dense.bias, bert.pooler.dense.weight (2)" in note


def test_a_trusted_folder_runs_its_own_code(
    transformers: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dynamic = importlib.import_module("transformers.dynamic_module_utils")
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    canary = tmp_path / "canary"
    (folder / "mine.py").write_text(
        "import os\nfrom transformers import BertForSequenceClassification\n"
        f"os.mkdir({str(canary)!r})\nclass Mine(BertForSequenceClassification): pass\n"
    )
    mapped = {"AutoModelForSequenceClassification": "mine.Mine"}
    change(folder / "config.json", lambda config: config.update(auto_map=mapped))
    with pytest.raises(UnsafeError, match=r"config\.json: mine\.Mine.*--trust") as caught:
        load(f"hf:{folder}", (5,), 3, 0)
    assert caught.value.exit_code == 4 and not canary.exists()
    assert carried_code(f"hf:{folder}") == f"Python code of {folder}: config.json: mine.Mine"
    made = load(f"hf:{folder}", (5,), 3, 0, trust=True)
    assert type(made.module).__name__ == "Mine" and canary.is_dir()
    assert "mine.py" in made.files


AUTO = {"AutoModel": "mine.Mine"}
CODE: dict[str, tuple[str, dict[str, Any]]] = {
    "its own model": ("config.json", {"auto_map": AUTO}),
    "its own model, further in": ("config.json", {"text_config": {"auto_map": AUTO}}),
    "its own tokenizer": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}}),
    "its own processor": ("preprocessor_config.json", {"auto_map": {"AutoProcessor": "mine.Mine"}}),
    "a kernel to download": ("config.json", {"attn_implementation": "someone/kernel"}),
    "a kernel by its inner name": ("config.json", {"_attn_implementation_internal": "someone/kernel@main"}),
    "kernels of its parts": ("config.json", {"attn_implementation": {"text": "someone/kernel"}}),
}


@pytest.mark.parametrize("name", CODE)
def test_code_that_settings_name_is_refused_without_trust(tmp_path: Path, name: str) -> None:
    file, entry = CODE[name]
    canary = tmp_path / "canary"
    (tmp_path / "mine.py").write_text(f"import os\nos.mkdir({str(canary)!r})\nclass Mine: pass\n")
    change(tmp_path / "config.json", lambda config: config.update(model_type="bert"))
    change(tmp_path / file, lambda config: config.update(entry))
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsafeError, match="--trust"):
        load(f"hf:{tmp_path}", (5,), 3, 0)
    assert not canary.exists()
    assert file in str(carried_code(f"hf:{tmp_path}"))


def test_a_pickle_among_the_weights_is_refused_whatever_is_trusted(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    change(tmp_path / "config.json", lambda config: config.update(model_type="bert"))
    torch.save({"w": Trap(canary)}, tmp_path / "pytorch_model.bin")
    for trust in (False, True):
        with pytest.raises(UnsafeError, match=r"pytorch_model\.bin"):
            load(f"hf:{tmp_path}", (5,), 3, 0, trust=trust)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(canary)))
    with pytest.raises(UnsafeError):
        load(f"hf:{tmp_path}", (5,), 3, 0)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Trap(canary)))
    with pytest.raises(InputError):
        load(f"hf:{tmp_path}", (5,), 3, 0)
    (tmp_path / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="damaged"):
        load(f"hf:{tmp_path}", (5,), 3, 0)
    assert not canary.exists()


@pytest.mark.parametrize("place", ["../secret.safetensors", "/secret.safetensors", "a/b.safetensors", "a\\b"])
def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path, place: str) -> None:
    inner = tmp_path / "model"
    inner.mkdir()
    save_file({"w": torch.zeros(1)}, tmp_path / "secret.safetensors")
    change(inner / "config.json", lambda config: config.update(model_type="bert"))
    (inner / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": place}}))
    with pytest.raises(UnsafeError, match="names of files beside it"):
        load(f"hf:{inner}", (5,), 3, 0)


def test_what_a_folder_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def problem(text: str) -> str:
        with pytest.raises(InputError) as caught:
            load(text, (5,), 3, 0)
        return str(caught.value)

    assert "a folder with a model" in problem("hf:nowhere") and "got nothing" in problem("hf:nowhere")
    inner = tmp_path / "model"
    inner.mkdir()
    assert "a file config.json" in problem(f"hf:{inner}") and "save_pretrained" in problem(f"hf:{inner}")
    (inner / "config.json").write_text("[" * 100_000)
    assert "expected JSON" in problem(f"hf:{inner}")
    (inner / "config.json").write_text("[]")
    assert "a JSON dict, got list" in problem(f"hf:{inner}")
    (inner / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "weights in" in problem(f"hf:{inner}") and "model.safetensors" in problem(f"hf:{inner}")
    (inner / "tf_model.h5").write_bytes(b"")
    (inner / "adapter_config.json").write_text("{}")
    assert "got tf_model.h5, an adapter" in problem(f"hf:{inner}")
    (inner / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "one.safetensors"}}))
    assert "the file one.safetensors beside it, got nothing" in problem(f"hf:{inner}")
    (inner / "model.safetensors.index.json").write_text("{}")
    assert "weight_map" in problem(f"hf:{inner}")
    save_file({"w": torch.zeros(1)}, inner / "model.safetensors")
    (inner / "config.json").write_text(json.dumps({"model_type": "bert", "quantization_config": {"bits": 4}}))
    assert "quantised" in problem(f"hf:{inner}")
    assert "?pair=1" in problem(f"hf:{inner}?pairs=1") and "a sentence encoder" in problem(f"hf:{inner}?pair=1")
    (inner / "config.json").write_text(json.dumps({"model_type": "bert"}))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'planaria\[hf\]'") as caught:
        load(f"hf:{inner}", (5,), 3, 0)
    assert caught.value.exit_code == 5


def test_settings_that_no_model_is_built_from_are_an_explained_error(transformers: Any, folder: Path) -> None:
    for entry in ({"model_type": "no-such-type"}, {"hidden_size": "wide"}, {"num_attention_heads": 3}):
        change(folder / "config.json", lambda config, entry=entry: config.update(entry))  # type: ignore[misc]
        with pytest.raises(InputError, match="a model that transformers can build"):
            load(f"hf:{folder}", (5,), 3, 0)


# ---------------------------------------------------------------------------------------- sentence encoders


class Hidden(nn.Module):
    """A stand-in for a transformer: hidden states that depend on the token and its place."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.words, self.places = nn.Embedding(20, 6), nn.Embedding(8, 6)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor]:
        return (self.words(input_ids) + self.places(torch.arange(input_ids.shape[1])),)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalise", [True, False])
def test_pooling_is_over_the_tokens_that_are_there(pooling: str, normalise: bool) -> None:
    torch.manual_seed(0)
    encoder = SentenceEncoder(Hidden(), pooling, normalise)
    vectors = encoder(IDS, SEEN)
    for row, ids, seen in zip(vectors, IDS, SEEN, strict=True):
        (hidden,) = encoder.transformer(ids[seen.bool()][None])
        by_hand = {"mean": hidden[0].mean(0), "cls": hidden[0, 0], "max": hidden[0].amax(0)}[pooling]
        assert torch.allclose(row, by_hand / by_hand.norm() if normalise else by_hand, atol=1e-6)
    others = torch.where(SEEN == 1, IDS, 11)
    assert torch.equal(encoder(others, SEEN), vectors)


def test_the_similarity_of_a_pair_is_the_cosine_of_its_vectors() -> None:
    torch.manual_seed(0)
    encoder = SentenceEncoder(Hidden())
    pair = Similarity(encoder)
    pairs = torch.tensor([[0, 1], [1, 2], [2, 2]])
    ids, seen = IDS[pairs], SEEN[pairs]
    vectors = encoder(IDS, SEEN)
    expected = torch.stack([vectors[0] @ vectors[1], vectors[1] @ vectors[2], vectors[2] @ vectors[2]])
    assert torch.allclose(pair(ids, seen), expected, atol=1e-6)
    assert torch.allclose(pair(ids, seen, torch.zeros_like(ids)), expected, atol=1e-6)
    with pytest.raises(InputError, match="Known: cls, max, mean"):
        SentenceEncoder(Hidden(), "median")


PARTS = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]


@pytest.fixture
def sentences(transformers: Any, folder: Path) -> Path:
    """A folder as sentence-transformers writes it."""
    rows = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (kind, path) in enumerate(PARTS)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def test_a_folder_of_a_sentence_encoder_gives_one_vector_per_text(transformers: Any, sentences: Path) -> None:
    made = load(f"hf:{sentences}", (5,), 8, 0)
    encoder = made.module
    assert isinstance(encoder, SentenceEncoder) and (encoder.pooling, encoder.normalise) == ("mean", True)
    assert {"modules.json", "1_Pooling/config.json", "config.json", "model.safetensors"} == set(made.files)
    with torch.no_grad():
        hidden = encoder.transformer(input_ids=IDS, attention_mask=SEEN).last_hidden_state
        means = torch.stack([row[seen.bool()].mean(0) for row, seen in zip(hidden, SEEN, strict=True)])
        assert torch.allclose(encoder(IDS, SEEN), means / means.norm(dim=1, keepdim=True), atol=1e-6)
        pair = build(f"hf:{sentences}?pair=1", (5,), 1, 0)
        assert torch.allclose(
            pair(IDS[:2][None], SEEN[:2][None]), (encoder(IDS, SEEN)[0] @ encoder(IDS, SEEN)[1])[None]
        )
    net = Network.of(encoder, {"input_ids": IDS, "attention_mask": SEEN, "token_type_ids": torch.zeros_like(IDS)})
    assert net({"input_ids": IDS, "attention_mask": SEEN, "token_type_ids": torch.zeros_like(IDS)}).shape == (3, 8)


def test_modules_that_are_not_those_of_a_sentence_encoder_are_refused(sentences: Path) -> None:
    rows = json.loads((sentences / "modules.json").read_text())

    def refused(kind: type[Exception], *changed: dict[str, object]) -> str:
        (sentences / "modules.json").write_text(json.dumps([*rows[: 3 - len(changed)], *changed]))
        with pytest.raises(kind) as caught:
            load(f"hf:{sentences}", (5,), 8, 0, trust=True)
        return str(caught.value)

    assert "'os.system'" in refused(UnsafeError, {"type": "os.system", "path": ""})
    assert "mine.Mine" in refused(UnsafeError, {"type": "mine.Mine", "path": ""})
    assert "Dense" in refused(InputError, {"type": "sentence_transformers.models.Dense", "path": "3"})
    pooling = "sentence_transformers.models.Pooling"
    assert "'../out'" in refused(UnsafeError, {"type": pooling, "path": "../out"})
    assert "'/out'" in refused(UnsafeError, {"type": pooling, "path": "/out"})
    assert 'a "type"' in refused(InputError, {"path": ""})
    assert "a module Pooling" in refused(InputError, *rows[:1], *rows[:1], *rows[:1])
    (sentences / "modules.json").write_text("{}")
    with pytest.raises(InputError, match="a JSON list"):
        load(f"hf:{sentences}", (5,), 8, 0)
    (sentences / "modules.json").write_text(json.dumps(rows))
    change(sentences / "1_Pooling" / "config.json", lambda config: config.update(pooling_mode_max_tokens=True))
    with pytest.raises(InputError, match="one pooling of mean, cls, max, got mean, max"):
        load(f"hf:{sentences}", (5,), 8, 0)
    (sentences / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    module = build(f"hf:{sentences}", (5,), 8, 0)
    assert isinstance(module, SentenceEncoder) and module.pooling == "cls"


# ---------------------------------------------------------------------------------------- timm, torchvision


def fake_timm(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def create_model(name: str, pretrained: bool, num_classes: int = 1000) -> nn.Module:
        calls.append({"name": name, "pretrained": pretrained, "classes": num_classes})
        if name == "unreachable":
            raise urllib.error.URLError("no route")
        if name == "failing":
            raise RuntimeError("no such luck")
        return nn.Linear(4, num_classes)

    library = types.ModuleType("timm")
    vars(library).update(create_model=create_model, list_models=lambda: ["resnet18", "unreachable", "failing"])
    monkeypatch.setitem(sys.modules, "timm", library)
    return calls


def test_models_of_timm_are_fresh_unless_published_weights_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_timm(monkeypatch)
    fresh = load("timm:resnet18", (3, 8, 8), 7, seed=1)
    assert not fresh.trained and not carries_weights("timm:resnet18")
    assert calls == [{"name": "resnet18", "pretrained": False, "classes": 7}]
    again = load("timm:resnet18", (3, 8, 8), 7, seed=1).module
    assert all(torch.equal(a, b) for a, b in zip(fresh.module.parameters(), again.parameters(), strict=True))
    published = load("timm:resnet18@pretrained", (3, 8, 8), 7, seed=1)
    assert published.trained and calls[-1] == {"name": "resnet18", "pretrained": True, "classes": 1000}
    assert list(published.files) == ["resnet18@pretrained"]
    for text, error, message in (
        ("timm:resnet8", InputError, "Did you mean resnet18?"),
        ("timm:hf-hub:someone/model", InputError, "the name of a model in timm"),
        ("timm:resnet18@in1k", InputError, "Write timm:resnet18@pretrained"),
        ("timm:failing", InputError, "RuntimeError: no such luck"),
        ("timm:unreachable@pretrained", EnvironmentProblem, "--weights"),
    ):
        with pytest.raises(error, match=message):
            load(text, (3, 8, 8), 7, 0)
    with pytest.raises(InputError, match="hidden layers have one width"):
        load("timm:resnet18", (3, 8, 8), 7, 0, width=3)


def test_published_weights_of_torchvision_are_read_as_tensors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = [], []

    def get_model(name: str, weights: object, num_classes: int) -> nn.Module:
        assert weights is None
        made.append((name, num_classes))
        return nn.Linear(4, num_classes)

    def from_url(url: str, weights_only: bool, **unused: object) -> dict[str, Tensor]:
        asked.append((url, weights_only))
        return nn.Linear(4, 3).state_dict()

    class Weights:
        def __init__(self, name: str) -> None:
            self.name, self.url, self.meta = name, f"https://example.org/{name}", {"categories": ["a", "b", "c"]}

    class Table(list[Weights]):
        DEFAULT = Weights("V2")

    library, models = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
    vars(models).update(
        get_model=get_model, list_models=lambda: ["resnet18"], get_model_weights=lambda name: Table([Weights("V1")])
    )
    vars(library).update(models=models)
    monkeypatch.setitem(sys.modules, "torchvision", library)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", from_url)
    assert not load("torchvision:resnet18", (3, 8, 8), 7, 0).trained
    assert load("torchvision:resnet18@V1", (3, 8, 8), 7, 0).trained
    assert load("torchvision:resnet18@DEFAULT", (3, 8, 8), 7, 0).trained
    assert made == [("resnet18", 7), ("resnet18", 3), ("resnet18", 3)]
    assert asked == [("https://example.org/V1", True), ("https://example.org/V2", True)]
    with pytest.raises(InputError, match="Known: DEFAULT, V1"):
        load("torchvision:resnet18@V9", (3, 8, 8), 7, 0)


@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_a_library_that_is_missing_or_broken_names_the_line_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'planaria\[vision\]'") as caught:
        load(f"{name}:resnet18", (3, 8, 8), 7, 0)
    assert caught.value.exit_code == 5

    def broken(wanted: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(hub.importlib, "import_module", broken)
    with pytest.raises(EnvironmentProblem, match=r"torchvision::nms.*built for the torch you have: pip install"):
        load(f"{name}:resnet18", (3, 8, 8), 7, 0)
