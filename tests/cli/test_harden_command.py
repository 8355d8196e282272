"""`planaria harden`: its document and files, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from command_line import Finished, everything_in, planaria, without_time
from planaria.campaign.ledger import Ledger
from planaria.cli import hardening, methods
from planaria.measure.weights import read_tensors
from planaria.repair.against import Dropout, UnitFaults

pytestmark = pytest.mark.usefixtures("plain_report")

SUBJECT = ("harden", "--task", "digits?train=400", "--model", "mlp:64-16-10", "--epochs", "3")
SMALL = (*SUBJECT, "--doses", "0.3,0.6", "--draws", "1", "--updates", "10", "--seeds", "2")
METHODS = ("plain", "dropout:0.2", "sam", "b3", "damage-repair")
COMMAND = (*SMALL, "--methods", "dropout:0.2,sam,b3,damage-repair", "--json")
ESTIMATE = {"low", "best", "high"}


@pytest.fixture(scope="module")
def hardened(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run of several methods from scratch."""
    place = tmp_path_factory.mktemp("hardened")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planaria.cli.running.render", lambda document, folder: "<!doctype html>")
        done = planaria(*COMMAND, "--out", "run", cwd=place)
    assert done.code == 0, done.err
    return Finished(COMMAND, place / "run", done)


def test_the_document_has_what_the_report_reads(hardened: Finished) -> None:
    document = hardened.done.document
    found = document["hardening"]
    assert document["command"] == "harden" and document["schema"] == "planaria.harden.v1"
    assert [one["method"] for one in found["methods"]] == list(METHODS)
    for one in found["methods"]:
        for key in ("intact", "area_random", "area_worst", "area_rescued"):
            assert one[key].keys() == ESTIMATE
        assert one["rescue_updates"] is None or one["rescue_updates"].keys() == ESTIMATE
        assert one["trials"] == 2 and one["rescued"] <= 2
        assert set(one["curves"]) == {"random", "worst", "rescued"}
        assert all(curve["doses"] == [0.3, 0.6] and len(curve["low"]) == 2 for curve in one["curves"].values())
        assert one["cost"]["backward_passes"] == found["gradient_evaluations"]
        assert Path(one["file"]).name == f"{one['method'].replace(':', '-')}-seed0.safetensors"
    assert found["gradient_evaluations"] % 6 == 0
    assert "Dropout(p=0.2" in found["methods"][1]["meaning"]
    questions = [verdict["question"] for verdict in document["verdicts"]]
    assert questions == [
        "Which training survives best?",
        "Does iterative damage-repair beat dropout at equal gradient evaluations?",
    ]
    assert json.loads((hardened.folder / "result.json").read_text()) == document


def test_the_intact_network_is_the_plain_one(hardened: Finished) -> None:
    document = hardened.done.document
    plain = document["rows"][0]
    assert (plain["method"], plain["seed"]) == ("plain", 0)
    assert plain["score_intact"] == document["intact"]["test"]
    trained = document["network"]["trained"]
    assert trained["updates"] == document["hardening"]["gradient_evaluations"]
    assert trained["seconds"] == plain["cost"]["seconds"]
    assert not (hardened.folder / "intact.safetensors").exists()


def test_every_network_is_saved_with_how_it_was_made(hardened: Finished) -> None:
    files = sorted(path.name for path in hardened.folder.glob("*.safetensors"))
    assert files == sorted(f"{name.replace(':', '-')}-seed{seed}.safetensors" for name in METHODS for seed in (0, 1))
    state, words = read_tensors(hardened.folder / "dropout-0.2-seed1.safetensors")
    assert words["planaria.against"] == "Dropout(p=0.2, groups=4)" and words["planaria.seed"] == "1"
    other, _ = read_tensors(hardened.folder / "plain-seed1.safetensors")
    assert state.keys() == other.keys() and not torch.equal(state["layers.0.weight"], other["layers.0.weight"])


def test_the_table_has_one_line_per_training(hardened: Finished) -> None:
    with (hardened.folder / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["method"], line["seed"]) for line in lines] == [(name, seed) for name in METHODS for seed in "01"]
    assert {"score_intact", "area_random", "area_worst", "area_rescued", "rescued", "updates"} <= lines[0].keys()


def test_a_finished_run_given_again_does_no_work_and_says_the_same(
    hardened: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*args: object, **options: object) -> None:
        raise AssertionError("work that had been done already")

    folder = hardened.copy(tmp_path / "run")
    before = {name: mark for name, mark in everything_in(folder).items() if name.endswith(".safetensors")}
    monkeypatch.setattr(hardening, "train_against", work)
    monkeypatch.setattr(hardening, "examine", work)
    done = planaria(*hardened.command, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert (
        done.document["hardening"]["methods"][0]["curves"]
        == hardened.done.document["hardening"]["methods"][0]["curves"]
    )
    assert done.document["rows"] == hardened.done.document["rows"]
    assert before == {name: mark for name, mark in everything_in(folder).items() if name.endswith(".safetensors")}


def test_a_run_that_was_killed_goes_on_to_the_same_result(
    hardened: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = hardening.examine, []

    def killed(*args: object, **options: object) -> object:
        calls.append(options)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(hardening, "examine", killed)
    assert planaria(*hardened.command, "--out", "run", cwd=tmp_path).code == 130
    with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert len(ledger) == 3
    done = planaria(*hardened.command, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert len(calls) == 4 + len(METHODS) * 2 - 3
    assert without_time(done.document["rows"]) == without_time(hardened.done.document["rows"])
    for path in hardened.folder.glob("*.safetensors"):
        assert (tmp_path / "run" / path.name).read_bytes() == path.read_bytes()


def test_other_settings_are_refused_and_a_fresh_start_leaves_nothing_old(hardened: Finished, tmp_path: Path) -> None:
    folder = hardened.copy(tmp_path / "run")
    other = (*SMALL[:-2], "--seeds", "1", "--methods", "plain", "--rate", "0.02", "--json")
    before = everything_in(folder)
    refused = planaria(*other, "--out", "run", cwd=tmp_path)
    assert refused.code == 2 and "methods" in refused.err
    assert everything_in(folder) == before
    done = planaria(*other, "--out", "run", "--fresh", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.document["rows"][0]["score_intact"] != hardened.done.document["rows"][0]["score_intact"]
    assert [path.name for path in folder.glob("*.safetensors")] == ["plain-seed0.safetensors"]


def test_given_weights_are_where_every_method_goes_on_from(hardened: Finished, tmp_path: Path) -> None:
    weights = hardened.folder / "plain-seed0.safetensors"
    done = planaria(*SMALL, "--methods", "faults", "--weights", weights, "--json", "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    document = done.document
    assert document["intact"]["test"] == hardened.done.document["intact"]["test"]
    assert document["settings"]["start"] == "the given weights"
    assert [one["method"] for one in document["hardening"]["methods"]] == ["plain", "faults"]
    assert document["network"]["trained"] is None


def test_taps_are_trained_around_and_kept(own: Path) -> None:
    command = ("harden", "--model", "nets.py:recurrent", "--task", "py:data.py:sequences", "--epochs", "2")
    command = (*command, "--tap", "rnn")
    rest = ("--doses", "0.5", "--draws", "1", "--updates", "10", "--seeds", "1", "--methods", "faults", "--json")
    for _ in range(2):  # the second time from the saved network
        done = planaria(*command, *rest, "--out", "run", cwd=own)
        assert done.code == 0, done.err
    state, _ = read_tensors(own / "run" / "faults-seed0.safetensors")
    assert bool((state["rnn.tap_gain"] == 1).all())


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = planaria(*SMALL, "--dry-run", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.document["trainings"] == 14 and done.document["seconds"] > 0
    assert everything_in(tmp_path) == {}


def test_the_terminal_shows_a_table_and_the_verdicts(tmp_path: Path) -> None:
    done = planaria(*SMALL, "--methods", "faults", "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "worst first" in done.out and "faults" in done.out
    assert "Which training survives best?" in done.out


def test_strengths_are_the_methods_own_numbers() -> None:
    made = methods.build_methods(("faults:0.8", "dropout", "dropout:0.2"))
    assert list(made) == ["plain", "faults:0.8", "dropout", "dropout:0.2"]
    assert made["faults:0.8"] == UnitFaults(high=0.8)
    assert (made["dropout"], made["dropout:0.2"]) == (Dropout(0.5), Dropout(0.2))
    assert list(methods.build_methods(None)) == list(methods.MEANINGS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--methods", "dropuot"), ("--methods", "Did you mean dropout?")),
        (("--methods", ""), ("--methods", "at least one method")),
        (("--methods", "dropout:1.5"), ("--methods", "Dropout.p")),
        (("--methods", "dropout:much"), ("--methods", "dropout:much")),
        (("--methods", "plain:2"), ("--methods", "plain:2")),
        (("--optimiser", "adm"), ("--optimiser", "Did you mean")),
        (("--rate", "0"), ("--rate", "above 0")),
        (("--rate", "nan"), ("--rate", "finite")),
        (("--epochs", "0"), ("--epochs", "at least 1")),
        (("--batch", "0"), ("--batch", "at least 1")),
        (("--doses", "0,0.5"), ("--doses", "above 0")),
        (("--doses", "1.5"), ("--doses", "up to 1")),
        (("--lesion", "0"), ("--lesion", "above 0")),
        (("--updates", "0"), ("--updates", "at least 1")),
        (("--model", "mlp:64-10"), ("units",)),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    options: tuple[str, ...], words: tuple[str, ...], tmp_path: Path
) -> None:
    done = planaria(*SMALL, *options, "--out", "run", cwd=tmp_path)
    assert done.code == 2
    assert all(word in done.err for word in words), done.err
    assert everything_in(tmp_path) == {}


MODEL = """
import torch
from torch import nn

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 12), nn.Linear(12, 10)
        self.register_buffer("table", torch.ones(12), persistent=False)

    def forward(self, x):
        return self.last(self.first(x).relu() * self.table)
"""


def test_a_run_goes_on_with_buffers_that_are_not_saved(tmp_path: Path) -> None:
    (tmp_path / "scaled.py").write_text(MODEL)
    command = (
        "harden", "--task", "digits?train=200", "--model", "scaled.py:Scaled", "--epochs", "1", "--doses", "0.5",
        "--draws", "1", "--updates", "2", "--seeds", "1", "--methods", "plain", "--out", "run", "--json",
    )  # fmt: skip
    first, again = (planaria(*command, cwd=tmp_path) for _ in range(2))
    assert first.code == 0, first.err
    assert again.code == 0, again.err
    assert again.document["rows"] == first.document["rows"]
