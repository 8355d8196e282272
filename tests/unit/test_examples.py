"""The scripts in examples/ run, stay short, and say what they claim to say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import brackets_transformer
import mnist_fc
import planaria as pl
import resnet8_cifar10
from command_line import planaria

FOLDER = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
REBUILT = {
    "mnist_fc": ("mnist-fc-256x2/mnist_fc_256x2.safetensors", 2),
    "resnet8_cifar10": ("resnet8-cifar10/resnet8_cifar10.safetensors", 9),
    "brackets_transformer": ("brackets-transformer/brackets_transformer.safetensors", 12),
}
"""Networks rebuilt for weights that others have trained: where those are, and how many layers of units they have."""


def quick(script: Path, folder: Path, *more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), "--quick", *more],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_known() -> None:
    ours = ["geometry", "lesion_heads", "own_network", "rescue_mlp", "weak_points", "lesion_study", "lstm"]
    assert [script.stem for script in SCRIPTS] == sorted([*ours, *REBUILT, "bert_folder", "sentence_encoder"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_example_fits_on_two_screens(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) < 110


def check_that_the_refit_helped(said: str) -> None:
    intact = re.search(r"intact: (0\.\d+)", said)
    refitted = re.search(r"^refit +[\d.]+ +(0\.\d+) .*?\] +(\d\.\d+)", said, re.MULTILINE)
    assert intact and refitted, said
    damaged, after = float(refitted[1]), float(refitted[2])
    assert damaged < after <= 1.0
    assert damaged < float(intact[1])


@pytest.mark.parametrize("stem", ["lesion_heads", "own_network"])
def test_an_example_damages_and_repairs_and_leaves_no_file(stem: str, tmp_path: Path) -> None:
    check_that_the_refit_helped(quick(FOLDER / f"{stem}.py", tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_map_of_units_finds_sets_and_bits_that_cost_more_than_single_units_and_leaves_no_file(
    tmp_path: Path,
) -> None:
    said = quick(FOLDER / "weak_points.py", tmp_path)
    worst = re.search(r"^  (?:first|second)\[\d+\] +(\d\.\d+)", said, re.MULTILINE)
    greedy = re.search(r"together, greedy: (\d\.\d+)", said)
    flipped = re.search(r"Flipped\(bit=30\).*?loses (\d\.\d+)", said, re.DOTALL)
    assert worst and greedy and flipped, said
    assert 0 < float(worst[1]) <= float(greedy[1]) < float(flipped[1])
    assert said.count("mismatches 0") == 2
    assert sum(len(row) for row in re.findall(r"^  ([.0-9]{3,})$", said, re.MULTILINE)) == 48 + 32
    assert not list(tmp_path.iterdir())


def test_the_first_example_saves_weights_that_an_ordinary_module_takes(tmp_path: Path) -> None:
    check_that_the_refit_helped(quick(FOLDER / "rescue_mlp.py", tmp_path, "--out", "best.pt"))
    state = torch.load(tmp_path / "best.pt", weights_only=True)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model.load_state_dict(state)
    # Half of the first layer's neurons are deleted, and no repair has brought them back.
    assert int((state["2.weight"] == 0).all(0).sum()) == 32


def test_outputs_are_stiff_in_some_directions_a_function_is_recovered_and_two_networks_are_joined(
    tmp_path: Path,
) -> None:
    said = quick(FOLDER / "geometry.py", tmp_path)
    step = re.search(r"stiffest (\d+\.\d+), at random (\d+\.\d+)", said)
    scores = re.search(r"intact (0\.\d+), .*? deleted (0\.\d+)\nsequential +(0\.\d+).*?\nrecover +(0\.\d+)", said)
    barriers = [
        float(found) for found in re.findall(r"^(?:straight|aligned) +loss barrier (\d\.\d+)", said, re.MULTILINE)
    ]
    assert step and scores and len(barriers) == 2, said
    assert float(step[1]) > 5 * float(step[2])
    intact, damaged, sequential, recovered = map(float, scores.groups())
    assert damaged < sequential < recovered <= intact + 0.02
    assert barriers[1] < 0.5 * barriers[0]
    assert not list(tmp_path.iterdir())


def test_an_lstm_loses_to_a_lesion_and_gains_from_repairs(tmp_path: Path) -> None:
    said = quick(FOLDER / "lstm.py", tmp_path)
    intact = re.search(r"intact: (0\.\d+)", said)
    refitted = re.search(r"^sequential +0\.5 +(0\.\d+) .*?\] +(\d\.\d+)", said, re.MULTILINE)
    assert intact and refitted, said
    assert float(intact[1]) > 0.7 and "48 units" in said
    assert float(refitted[1]) < float(intact[1])
    assert float(refitted[2]) > float(refitted[1])
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------- rebuilt pretrained networks


@pytest.mark.parametrize("stem", REBUILT)
def test_a_rebuilt_network_answers_and_every_unit_of_it_is_silenced_exactly(stem: str) -> None:
    model, inputs = _rebuilt(stem)
    net = pl.Network.of(model, inputs)
    assert net(inputs).shape == (len(inputs), 2 if stem == "brackets_transformer" else 10)
    checks = pl.Anatomy.of(net).verify(net, inputs, per_layer=3)  # raises where a silencing is not exact
    assert len(checks) >= REBUILT[stem][1]


@pytest.mark.parametrize("stem", REBUILT)
def test_a_rebuilt_network_takes_the_published_weights_and_every_unit_is_silenced_exactly(
    data_root: Path, stem: str
) -> None:
    model, inputs = _rebuilt(stem)
    pl.load_weights(model, _weights(data_root, stem))
    net = pl.Network.of(model, inputs)
    checks = pl.Anatomy.of(net).verify(net, inputs, per_layer=3)  # raises where a silencing is not exact
    assert len(checks) >= REBUILT[stem][1]


@pytest.mark.parametrize("stem", REBUILT)
def test_the_command_line_proves_every_unit_of_a_rebuilt_network(data_root: Path, stem: str, tmp_path: Path) -> None:
    weights = _weights(data_root, stem)
    tasks = {
        "mnist_fc": "mnist",
        "resnet8_cifar10": "cifar10?scale=raw",
        "brackets_transformer": f"py:{FOLDER}/brackets_transformer.py:task",
    }
    model = f"{FOLDER}/{stem}.py:model"
    done = planaria(
        *("units", "--model", model, "--weights", weights, "--task", tasks[stem], "--verify", "--quick", "--json"),
        cwd=tmp_path,
        environment={"PLANARIA_DATA": str(data_root), "BRACKETS": str(weights.parent)},
    )
    assert done.code == 0, done.err
    groups = done.document["groups"]
    assert len(groups) >= REBUILT[stem][1] and all(group["exact"] for group in groups)
    assert {"layer", "kind", "count", "exact", "method", "reason"} <= groups[0].keys()
    assert {group["method"] for group in groups if group["kind"] != "embedding"} == {"slices"}


def test_the_bracket_transformer_reads_brackets(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = _weights(data_root, "brackets_transformer")
    monkeypatch.setenv("BRACKETS", str(weights.parent))
    model = brackets_transformer.model()
    pl.load_weights(model, weights)
    task = pl.task(f"py:{FOLDER / 'brackets_transformer.py'}:task?test=500")
    assert task.score(model) == 1.0
    assert 0.45 < float(task.test.targets.double().mean()) < 0.55
    strings = [{bytes(row) for row in data.inputs.byte().numpy()} for data in task.splits.values()]
    assert sum(map(len, strings)) == len(set.union(*strings)), "no string is in two splits"


@pytest.mark.science
@pytest.mark.timeout(600)
def test_the_bracket_transformer_is_right_as_often_as_published(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = _weights(data_root, "brackets_transformer")
    monkeypatch.setenv("BRACKETS", str(weights.parent))
    model = brackets_transformer.model()
    pl.load_weights(model, weights)
    every = pl.Data.of(brackets_transformer.data(brackets_transformer.rows()))
    outputs = torch.cat([model(tokens).detach() for tokens in every.inputs.split(1000)])
    assert int((outputs.argmax(1) != every.targets).sum()) == 7


@pytest.mark.parametrize(("stem", "least"), [("mnist_fc", 0.97), ("resnet8_cifar10", 0.85)])
@pytest.mark.science
def test_held_out_images_validate_a_pretrained_network(
    data_root: Path, stem: str, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANARIA_DATA", str(data_root))
    model, _ = _rebuilt(stem)
    pl.load_weights(model, _weights(data_root, stem))
    task = pl.task(f"py:{FOLDER / stem}.py:task?train=100&test=1000&validation=1000")
    assert task.score(model) > least
    assert abs(task.score(model, task.validation) - task.score(model)) < 0.03


def _rebuilt(stem: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    if stem == "brackets_transformer":
        return brackets_transformer.model(), brackets_transformer.data([("(())", True), ("(()", False)])[0]
    if stem == "mnist_fc":
        return mnist_fc.model(), torch.rand(2, 1, 28, 28, generator=rng)
    return resnet8_cifar10.model(), 255 * torch.rand(2, 3, 32, 32, generator=rng)


def _weights(data_root: Path, stem: str) -> Path:
    path = data_root.parent / "models" / REBUILT[stem][0]
    if not path.is_file():
        pytest.skip(f"needs the weights {path}")
    return path


# ------------------------------------------------------------------------------------------ Hugging Face folders

NEEDS = "needs pip install 'planaria[hf]'"


@pytest.mark.slow
def test_a_bert_is_kept_in_a_folder_damaged_and_repaired(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason=NEEDS)
    said = quick(FOLDER / "bert_folder.py", tmp_path, "--folder", "bert")
    intact = re.search(r"intact: (\d\.\d+)", said)
    retrained = re.search(r"^retrain +[\d.]+ +(\d\.\d+) .*?\] +(\d\.\d+)", said, re.MULTILINE)
    assert intact and retrained, said
    assert float(retrained[1]) < float(intact[1]) and float(retrained[1]) < float(retrained[2])
    left = {path.name for path in (tmp_path / "bert").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "train.csv", "test.csv"} <= left


@pytest.mark.slow
def test_any_sentence_encoder_goes_through_the_example_of_one(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason=NEEDS)
    _sentence_encoder(tmp_path / "tiny")
    said = quick(FOLDER / "sentence_encoder.py", tmp_path, "--folder", "tiny")
    assert "4 units of kind head in 2 layers" in said
    assert "mismatches 0" in said
    assert said.count("sequential") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def _sentence_encoder(folder: Path) -> None:
    """A tiny one, of fresh weights, as sentence-transformers lays it out."""
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = [chr(place) for place in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    BertTokenizer(vocab={word: place for place, word in enumerate(words)}).save_pretrained(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    rows = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
