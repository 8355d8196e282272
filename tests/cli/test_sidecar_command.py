"""`planaria sidecar`, and `planaria rescue` of a network that is damaged already: no data, nothing overwritten."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch

import planaria as pl
from command_line import planaria
from planaria.measure.models import build
from planaria.measure.weights import pack_weights

MODEL = "mlp:64-64-64-10"


@dataclass(frozen=True)
class Kit:
    """A folder with an intact network, its sidecar, a lesion and the damaged weights."""

    folder: Path
    document: dict[str, object]
    intact: pl.Network
    damaged: pl.Network


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    folder = tmp_path_factory.mktemp("kit")
    made = planaria(
        "sidecar", "--model", MODEL, "--train-epochs", "8", "--share", "0.9", "--doses", "0.5", "--seeds", "2",
        "--out", "net.sidecar.safetensors", "--json", cwd=folder,
    )  # fmt: skip
    assert made.code == 0, made.err
    model = build(MODEL, (64,), 10, 0)
    pl.load_weights(model, folder / "net.safetensors")
    net = pl.Network.of(model, pl.task("digits").train.inputs)
    site = pl.RandomUnits(per_layer=True)
    units = site.units(net, 0.5, pl.stream(1, "lesion"))
    named: dict[str, list[int]] = {}
    for unit in units:
        named.setdefault(unit.layer, []).append(unit.index)
    (folder / "lesion.json").write_text(json.dumps({"units": named}))
    damaged = pl.Damage(pl.Silence(), site).at(0.5)(net, pl.stream(1, "lesion"))
    (folder / "damaged.safetensors").write_bytes(pack_weights(damaged, {}))
    return Kit(folder, made.document, net, damaged)


def rescue(kit: Kit, *more: str, weights: str = "damaged.safetensors", lesion: str = "lesion.json") -> list[str]:
    return [
        "rescue", "--model", MODEL, "--weights", weights, "--lesion", lesion, "--sidecar", "net.sidecar.safetensors",
        *more,
    ]  # fmt: skip


def test_the_sidecar_says_what_it_keeps_and_what_that_costs(kit: Kit) -> None:
    document = kit.document
    assert document["schema"] == "planaria.sidecar_result.v1"
    readers = document["readers"]
    assert [reader["weight"] for reader in readers] == ["layers.2.weight", "layers.4.weight"]  # type: ignore[index, attr-defined]
    file = kit.folder / "net.sidecar.safetensors"
    assert document["bytes"] == file.stat().st_size
    assert document["share"] == pytest.approx(file.stat().st_size / (kit.folder / "net.safetensors").stat().st_size)
    assert document["share"] <= 0.9  # type: ignore[operator]
    (price,) = document["price"]  # type: ignore[misc]
    assert price["exact"]["best"] > price["damaged"]["best"] + 0.1
    assert abs(price["lost"]["best"]) < 0.02


def test_a_damaged_network_is_repaired_without_data(kit: Kit) -> None:
    before = (kit.folder / "damaged.safetensors").read_bytes()
    done = planaria(*rescue(kit, "--out", "fixed", "--json"), cwd=kit.folder)
    assert done.code == 0, done.err
    assert done.document["scores"] is None
    assert done.document["cost"]["examples"] == 0
    assert done.document["refitted"] == ["layers.2.weight", "layers.2.bias", "layers.4.weight", "layers.4.bias"]
    model = build(MODEL, (64,), 10, 0)
    pl.load_weights(model, kit.folder / "fixed" / "rescued.safetensors")
    task = pl.task("digits")
    fixed = pl.Network.of(model, task.train.inputs)
    assert task.score(fixed) > task.score(kit.damaged) + 0.1
    assert (kit.folder / "damaged.safetensors").read_bytes() == before


def test_with_a_task_the_scores_before_and_after_are_told(kit: Kit) -> None:
    done = planaria(*rescue(kit, "--out", "scored", "--task", "digits", "--json"), cwd=kit.folder)
    task = pl.task("digits")
    assert done.document["scores"]["damaged"] == pytest.approx(task.score(kit.damaged))
    assert done.document["scores"]["rescued"] > done.document["scores"]["damaged"] + 0.1


def test_weights_that_can_still_be_read_are_repaired_the_same_way(kit: Kit) -> None:
    done = planaria(*rescue(kit, "--out", "read", "--task", "digits", weights="net.safetensors"), cwd=kit.folder)
    assert done.code == 0, done.err
    assert "rescued" in done.out and "no data" in done.out


def test_a_dry_run_writes_nothing(kit: Kit) -> None:
    done = planaria(*rescue(kit, "--out", "dry", "--dry-run"), cwd=kit.folder)
    assert done.code == 0
    assert not (kit.folder / "dry").exists()
    done = planaria("sidecar", "--model", MODEL, "--out", "x.sidecar.safetensors", "--dry-run", cwd=kit.folder)
    assert done.code == 0
    assert not (kit.folder / "x.sidecar.safetensors").exists()


@pytest.mark.parametrize(
    ("lesion", "words"),
    [
        ('{"units": {"layers.7": [0]}}', "layer 'layers.7'"),
        ('{"units": {"layers.0": [64]}}', "an index below 64"),
        ('{"units": {"layers.0": [-1]}}', "indices of at least 0"),
        ('{"units": {"layers.0": "all"}}', "a list of indices"),
        ('{"units": {}}', "at least one dead unit"),
        ("[1, 2]", "layer names with lists"),
        ("{", "JSON"),
    ],
)
def test_a_wrong_lesion_is_refused_in_words(kit: Kit, lesion: str, words: str) -> None:
    (kit.folder / "wrong.json").write_text(lesion)
    done = planaria(*rescue(kit, lesion="wrong.json"), cwd=kit.folder)
    assert done.code == 2
    assert words in done.err.replace("\n", " ")
    assert "Traceback" not in done.err


def test_a_lesion_that_leaves_dead_units_out_is_noticed(kit: Kit) -> None:
    (kit.folder / "short.json").write_text('{"units": {"layers.0": [0]}}')
    done = planaria(*rescue(kit, lesion="short.json"), cwd=kit.folder)
    assert done.code == 2
    assert "a lesion that names all dead units" in done.err.replace("\n", " ")


def test_the_sidecar_of_another_network_is_refused(kit: Kit) -> None:
    other = pl.Network.of(build(MODEL, (64,), 10, 9), pl.task("digits").train.inputs)
    (kit.folder / "other.safetensors").write_bytes(pack_weights(other, {}))
    done = planaria(*rescue(kit, weights="other.safetensors"), cwd=kit.folder)
    assert done.code == 2
    assert "the weights it was made from" in done.err.replace("\n", " ")


def test_what_is_missing_is_named(kit: Kit) -> None:
    for arguments in (rescue(kit)[:-2], [*rescue(kit)[:3], *rescue(kit)[5:]]):
        done = planaria(*arguments, cwd=kit.folder)
        assert done.code == 2
        assert "go together" in done.err.replace("\n", " ")


def test_nothing_that_is_no_sidecar_is_overwritten(kit: Kit) -> None:
    precious = kit.folder / "precious.safetensors"
    precious.write_bytes(pack_weights(kit.intact, {}))
    before = precious.read_bytes()
    done = planaria(
        "sidecar", "--model", MODEL, "--weights", "net.safetensors", "--out", "precious.safetensors", cwd=kit.folder
    )
    assert done.code == 2
    assert precious.read_bytes() == before
    done = planaria(*rescue(kit, "--out", "."), cwd=kit.folder)
    assert done.code == 0
    done = planaria(*rescue(kit, "--out", ".", weights="rescued.safetensors"), cwd=kit.folder)
    assert done.code == 2


def test_beside_given_weights_lies_their_sidecar(kit: Kit) -> None:
    done = planaria(
        "sidecar", "--model", MODEL, "--weights", "net.safetensors", "--share", "0.9", "--doses", "none", cwd=kit.folder
    )
    assert done.code == 0, done.err
    assert (kit.folder / "net.sidecar.safetensors").exists()
    assert "a copy of the readers' weights" in done.out.replace("\n", " ")


def test_a_share_too_small_for_the_network_is_refused(kit: Kit) -> None:
    done = planaria("sidecar", "--model", MODEL, "--weights", "net.safetensors", "--share", "0.01", cwd=kit.folder)
    assert done.code == 2
    assert "Use a larger share" in done.err.replace("\n", " ")


def test_another_checkpoint_in_the_way_is_not_trained_over(kit: Kit) -> None:
    mine = kit.folder / "mine.safetensors"
    mine.write_bytes(pack_weights(kit.intact, {}))
    before = mine.read_bytes()
    command = ("sidecar", "--model", MODEL, "--train-epochs", "1", "--share", "0.9", "--doses", "none")
    done = planaria(*command, "--out", "mine.sidecar.safetensors", cwd=kit.folder)
    assert done.code == 2
    assert "Name it with --weights" in done.err.replace("\n", " ")
    assert mine.read_bytes() == before
    assert not (kit.folder / "mine.sidecar.safetensors").exists()
    done = planaria(*command, "--out", "mine.sidecar.safetensors", "--fresh", cwd=kit.folder)
    assert done.code == 0, done.err
    assert mine.read_bytes() != before


def test_the_same_command_makes_the_same_two_files_again(tmp_path: Path) -> None:
    command = (
        "sidecar", "--model", MODEL, "--train-epochs", "1", "--share", "0.9", "--doses", "none",
        "--out", "a.sidecar.safetensors",
    )  # fmt: skip
    assert planaria(*command, cwd=tmp_path).code == 0
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {*first} == {"a.safetensors", "a.sidecar.safetensors"}
    assert planaria(*command, cwd=tmp_path).code == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_neither_what_is_read_nor_what_others_left_is_written_over(kit: Kit) -> None:
    folder = kit.folder / "crowded"
    folder.mkdir()
    (folder / "result.json").write_text((kit.folder / "lesion.json").read_text())
    before = (folder / "result.json").read_bytes()
    for lesion in ("crowded/result.json", "lesion.json"):
        done = planaria(*rescue(kit, "--out", "crowded", lesion=lesion), cwd=kit.folder)
        assert done.code == 2
        assert (folder / "result.json").read_bytes() == before
    assert planaria(*rescue(kit, "--out", "crowded", "--fresh"), cwd=kit.folder).code == 0
    again = planaria(*rescue(kit, "--out", "crowded"), cwd=kit.folder)
    assert again.code == 0, again.err
    rescued = (folder / "rescued.safetensors").read_bytes()
    other = planaria(*rescue(kit, "--out", "crowded", weights="net.safetensors"), cwd=kit.folder)
    assert other.code == 2
    assert "--fresh" in other.err
    assert (folder / "rescued.safetensors").read_bytes() == rescued


def test_a_place_that_cannot_be_is_refused_in_words(kit: Kit) -> None:
    sidecar = ("sidecar", "--model", MODEL, "--weights", "net.safetensors", "--share", "0.9", "--doses", "none")
    for command in (rescue(kit, "--out", "lesion.json/deep"), [*sidecar, "--out", "lesion.json/s.safetensors"]):
        done = planaria(*command, cwd=kit.folder)
        assert done.code in {2, 5}
        assert "another folder" in done.err.replace("\n", " ")
        assert "bug" not in done.err


def test_a_dose_off_its_axis_is_refused_before_anything_is_written(kit: Kit) -> None:
    done = planaria(
        "sidecar", "--model", MODEL, "--weights", "net.safetensors", "--share", "0.9", "--doses", "1.5",
        "--out", "late.sidecar.safetensors", cwd=kit.folder,
    )  # fmt: skip
    assert done.code == 2
    assert not (kit.folder / "late.sidecar.safetensors").exists()


def test_the_limit_is_a_share_of_the_file_whatever_precision_it_is_in(kit: Kit) -> None:
    state = safetensors.torch.load_file(kit.folder / "net.safetensors")
    safetensors.torch.save_file({name: w.half() for name, w in state.items()}, kit.folder / "half.safetensors")
    done = planaria(
        "sidecar", "--model", MODEL, "--weights", "half.safetensors", "--share", "0.5", "--doses", "none", "--json",
        cwd=kit.folder,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.document["share"] <= 0.5


def test_a_lesion_nested_beyond_reason_is_refused(kit: Kit) -> None:
    (kit.folder / "deep.json").write_text("[" * 200_000)
    done = planaria(*rescue(kit, lesion="deep.json"), cwd=kit.folder)
    assert done.code == 2
    assert "JSON" in done.err


def test_a_task_without_labels_says_nothing_about_a_network_that_is_damaged_already(kit: Kit) -> None:
    result = planaria(*rescue(kit, "--task", "digits?score=agreement", "--out", "answers"), cwd=kit.folder)
    assert result.code == 2
    assert "intact network" in result.err
    assert not (kit.folder / "answers").exists()


def test_what_a_sidecar_cannot_make_up_for_is_said_when_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "tied.py").write_text(TIED)
    result = planaria(
        "sidecar", "--model", "tied.py:model", "--task", "py:tied.py:task", "--train-epochs", "1", "--share", "9",
        "--doses", "none", "--out", "tied.sidecar.safetensors", cwd=tmp_path,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "cannot make up for dead units of rnn" in " ".join(result.err.split())


TIED = """
import torch
from torch import nn


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(9, 6), nn.GRU(6, 6, batch_first=True), nn.Linear(6, 9)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.rnn(self.embed(x))[0])


def model():
    return Tied()


def task():
    x = torch.arange(400).view(100, 4) % 9
    return {"train": (x[:80], (x[:80] + 1) % 9), "test": (x[80:], (x[80:] + 1) % 9)}
"""
