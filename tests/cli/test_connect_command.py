"""`planaria connect`: its document and files, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from command_line import Finished, everything_in, planaria, without_time
from planaria.campaign.ledger import Ledger
from planaria.cli import connecting
from planaria.study import connection as study

pytestmark = pytest.mark.usefixtures("plain_report")

SUBJECT = ("connect", "--task", "digits?train=400", "--model", "mlp:64-16-12-10", "--train-epochs", "4")
SHORT = ("--points", "3", "--nets", "3", "--updates", "4", "--steps", "2", "--control", "3")
COMMAND = (*SUBJECT, *SHORT, "--json")
WAYS = ["straight", "aligned", "bezier", "chain", "greedy"]

NORMALISED = """
from torch import nn


def kept():
    return nn.Sequential(nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10))


def batchwise():
    norm = nn.BatchNorm1d(12, track_running_stats=False)
    return nn.Sequential(nn.Linear(64, 12), norm, nn.ReLU(), nn.Linear(12, 10))
"""


@pytest.fixture(scope="module")
def connected(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run of every way between two networks that were trained now."""
    place = tmp_path_factory.mktemp("connected")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planaria.cli.running.render", lambda document, folder: "<!doctype html>")
        done = planaria(*COMMAND, "--out", "run", cwd=place)
    assert done.code == 0, done.err
    return Finished(COMMAND, place / "run", done)


def saved(place: Path, name: str, state: dict[str, torch.Tensor]) -> str:
    safetensors.torch.save_file(state, place / name)
    return name


@pytest.fixture
def files(connected: Finished, tmp_path: Path) -> tuple[Path, str, str]:
    """A folder with the weights of both networks of the finished run."""
    for name in ("intact", "second"):
        content = (connected.folder / f"{name}.safetensors").read_bytes()
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    return tmp_path, "intact.safetensors", "second.safetensors"


GIVEN = ("connect", "--task", "digits?train=400", "--model", "mlp:64-16-12-10", *SHORT)


def test_the_document_has_what_the_report_reads(connected: Finished) -> None:
    document = connected.done.document
    assert document["command"] == "connect" and document["schema"] == "planaria.connect.v1"
    found = document["connection"]
    assert [way["way"] for way in found["ways"]] == WAYS and all(way["words"] for way in found["ways"])
    assert found["same"] is False and found["distance"] > 0 and found["tolerance"] == 0.05
    assert (
        found["alignment"]["distance_after"] < found["alignment"]["distance_before"] == pytest.approx(found["distance"])
    )
    assert [one["size"] for one in found["alignment"]["symmetries"]["found"]] == [16, 12]
    for way in [*found["ways"], found["control"]]:
        assert not way["problem"] and way["profiles"].keys() == {"train", "validation", "test"}
        assert way["profiles"]["test"]["losses"][0] == found["ways"][0]["profiles"]["test"]["losses"][0]
        assert way["cost"].keys() >= {"backward_passes", "multiply_adds", "seconds", "forward_equivalents"}
    greedy = found["ways"][-1]["notes"]
    assert 0 < greedy["final gap"] < greedy["gap before"] and greedy["steps taken"] == 4
    assert found["ways"][2]["cost"]["backward_passes"] == 4
    assert found["control"]["updates"] == 3 and found["control"]["apart"] < 0.2 * found["distance"]
    assert found["control"]["connects"]
    assert document["settings"]["by"] == WAYS and document["settings"]["seeds"] == [0, 1]
    assert document["second"]["sha256"] != document["network"]["sha256"]
    assert document["second"]["trained"]["seed"] == 1
    assert len(document["verdicts"]) >= 4
    assert json.loads((connected.folder / "result.json").read_text()) == document
    assert json.loads((connected.folder / "manifest.json").read_text())["complete"]


def test_the_table_has_a_line_for_every_way_and_point(connected: Finished) -> None:
    with (connected.folder / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(dict.fromkeys(line["way"] for line in lines)) == [*WAYS, "control"]
    found = connected.done.document["connection"]["ways"]
    for way in found:
        for split, profile in way["profiles"].items():
            mine = [line for line in lines if (line["way"], line["split"]) == (way["way"], split)]
            assert [float(line["t"]) for line in mine] == profile["times"]
            assert [float(line["loss"]) for line in mine] == profile["losses"]


def test_the_aligned_network_computes_what_the_second_does_and_lies_closer(connected: Finished) -> None:
    first, second, aligned = (
        safetensors.torch.load_file(connected.folder / f"{name}.safetensors")
        for name in ("intact", "second", "aligned")
    )
    inputs = torch.rand(20, 64)

    def outputs(state: dict[str, torch.Tensor]) -> torch.Tensor:
        x = inputs
        for layer in ("layers.0", "layers.1", "layers.2"):
            x = nn.functional.linear(x, state[f"{layer}.weight"], state[f"{layer}.bias"])
            x = x if layer == "layers.2" else x.relu()
        return x

    names = sorted({name.rpartition(".")[0] for name in first})
    assert len(names) == 3

    def computed(state: dict[str, torch.Tensor]) -> torch.Tensor:
        return outputs(
            {f"layers.{at}.{key}": state[f"{n}.{key}"] for at, n in enumerate(names) for key in ("weight", "bias")}
        )

    assert torch.allclose(computed(second), computed(aligned), atol=1e-4)
    far, near = (
        math.sqrt(sum(float((first[name] - other[name]).square().sum()) for name in first))
        for other in (second, aligned)
    )
    assert near < far == pytest.approx(connected.done.document["connection"]["distance"], rel=1e-5)


def test_people_are_told_the_same_in_words(connected: Finished, tmp_path: Path) -> None:
    folder = connected.copy(tmp_path / "run")
    done = planaria(*(word for word in connected.command if word != "--json"), "--out", folder, cwd=tmp_path)
    assert done.code == 0, done.err
    for words in ("barriers between two networks", "path of good networks", "bezier", "control", "aligned.safetensors"):
        assert words in done.out


def test_a_finished_run_given_again_does_no_work_and_says_the_same(
    connected: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*args: object, **options: object) -> None:
        raise AssertionError("work that had been done already")

    connected.copy(tmp_path / "run")
    for name in ("connect", "align", "Retrain"):
        monkeypatch.setattr(study, name, work)
    done = planaria(*connected.command, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert without_time(done.document) == without_time(connected.done.document)
    for name in ("second", "aligned"):
        file = f"{name}.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (connected.folder / file).read_bytes()


def test_a_run_that_was_killed_goes_on_to_the_same_result(
    connected: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = study.connect, []

    def killed(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(study, "connect", killed)
        assert planaria(*connected.command, "--out", "run", cwd=tmp_path).code == 130
    with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert len(ledger) == 3  # alignment, straight, aligned
    assert not (tmp_path / "run" / "result.json").exists()
    done = planaria(*connected.command, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert without_time(done.document) == without_time(connected.done.document)


def test_other_settings_are_refused_and_a_fresh_start_takes_them(connected: Finished, tmp_path: Path) -> None:
    folder = connected.copy(tmp_path / "run")
    other = (*SUBJECT, "--by", "straight", "--points", "3", "--control", "0", "--to-seed", "5", "--json")
    before = everything_in(folder)
    refused = planaria(*other, "--out", "run", cwd=tmp_path)
    assert refused.code == 2 and "settings" in refused.err and everything_in(folder) == before
    done = planaria(*other, "--out", "run", "--fresh", cwd=tmp_path)
    assert done.code == 0, done.err
    found = done.document["connection"]
    assert [way["way"] for way in found["ways"]] == ["straight"] and found["control"] is None
    assert found["alignment"] == {} and not (folder / "aligned.safetensors").exists()
    assert done.document["settings"]["seeds"] == [0, 5]
    assert (folder / "second.safetensors").exists()


def test_a_dry_run_says_the_price_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "pace", lambda *unused: (0.001, 0.001, 0.001))
    done = planaria(*COMMAND, "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.err
    document = done.document
    assert document["schema"] == "planaria.plan.v1" and document["by"] == WAYS
    assert document["prices"].keys() == {*WAYS, "control"}
    assert document["prices"]["greedy"] > document["prices"]["straight"] > 0
    told = planaria(*COMMAND[:-1], "--dry-run", cwd=tmp_path)
    assert "chain: about" in told.out and "folder" in told.out
    assert everything_in(tmp_path) == {}


def test_two_checkpoints_of_ones_own_are_connected_as_if_they_had_been_trained_here(
    files: tuple[Path, str, str], connected: Finished
) -> None:
    place, first, second = files
    only = ("--by", "straight,aligned,chain", "--control", "0")
    done = planaria(*GIVEN, "--weights", first, "--to", second, *only, "--json", "--out", "run", cwd=place)
    assert done.code == 0, done.err
    ours, theirs = (one["connection"]["ways"] for one in (done.document, connected.done.document))
    assert [way["way"] for way in ours] == ["straight", "aligned", "chain"]
    assert without_time(ours) == without_time([way for way in theirs if way["way"] not in ("bezier", "greedy")])
    assert done.document["files"]["second"] is None and (place / "run" / "aligned.safetensors").exists()
    assert done.document["second"]["source"] == second


def test_the_same_network_twice_is_said_to_be_one(files: tuple[Path, str, str]) -> None:
    place, first, _ = files
    done = planaria(*GIVEN, "--weights", first, "--to", first, "--json", "--out", "run", cwd=place)
    assert done.code == 0, done.err
    found = done.document["connection"]
    assert found["same"] and found["distance"] == 0 and found["alignment"]["distance_after"] == 0
    straight = found["ways"][0]["profiles"]["test"]
    assert straight["loss_barrier"]["best"] == 0 and straight["length"] < 1e-3
    assert [way["problem"] for way in found["ways"]] == ["", *["the two are the same network"] * 4]
    assert found["best"] == "straight"
    assert done.document["verdicts"][0]["answer"] == "they are the same network"


def test_a_network_with_its_units_in_another_order_is_recognised(files: tuple[Path, str, str]) -> None:
    place, first, _ = files
    state = safetensors.torch.load_file(place / first)
    names = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    for key in (f"{names[0]}.weight", f"{names[0]}.bias"):
        state[key] = state[key][order].contiguous()
    state[f"{names[1]}.weight"] = state[f"{names[1]}.weight"][:, order].contiguous()
    saved(place, "moved.safetensors", state)
    only = ("--by", "straight,aligned", "--json", "--out", "run")
    done = planaria(*GIVEN, "--weights", first, "--to", "moved.safetensors", *only, cwd=place)
    assert done.code == 0, done.err
    found = done.document["connection"]
    assert found["distance"] > 1 and found["alignment"]["distance_after"] < 1e-5
    answers = [one["answer"] for one in done.document["verdicts"]]
    assert "yes, the order is all that differs" in answers
    assert found["ways"][1]["profiles"]["test"]["loss_barrier"]["best"] < 1e-6


@pytest.mark.parametrize("model", ["recurrent", "encoder"])
def test_networks_of_ones_own_are_connected_too(model: str, own: Path) -> None:
    subject = ("connect", "--model", f"nets.py:{model}", "--task", "py:data.py:sequences", "--train-epochs", "1")
    only = ("--by", "aligned,chain")
    done = planaria(*subject, *SHORT, *only, "--json", "--out", "run", cwd=own)
    assert done.code == 0, done.err
    found = done.document["connection"]
    assert [way["problem"] for way in found["ways"]] == ["", ""] and found["alignment"]["symmetries"]["found"]


def test_a_regression_has_a_tolerance_of_its_own(own: Path) -> None:
    subject = ("connect", "--model", "nets.py:regressor", "--task", "py:data.py:heights", "--train-epochs", "3")
    done = planaria(*subject, *SHORT, "--json", "--out", "run", cwd=own)
    assert done.code == 0, done.err
    found = done.document["connection"]
    assert 0 < found["tolerance"] < 0.05 and not any(way["problem"] for way in found["ways"])


def test_statistics_of_batch_normalisation_are_re_estimated(tmp_path: Path) -> None:
    (tmp_path / "bn.py").write_text(NORMALISED)
    subject = ("connect", "--model", "bn.py:kept", "--task", "digits?train=400", "--train-epochs", "2")
    done = planaria(
        *subject, *SHORT, "--by", "straight,chain", "--calibration", "64", "--json", "--out", "run", cwd=tmp_path
    )
    assert done.code == 0, done.err
    assert done.document["connection"]["normalisation"] == {"layers": ["1"], "inputs": 64}


def test_batch_normalisation_in_train_mode_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bn.py").write_text(NORMALISED)
    subject = ("connect", "--model", "bn.py:batchwise", "--task", "digits?train=400", "--train-epochs", "2")
    before = everything_in(tmp_path)
    done = planaria(*subject, *SHORT, "--out", "run", cwd=tmp_path)
    assert done.code == 2 and "running statistics" in done.err and everything_in(tmp_path) == before


def test_a_second_network_of_another_shape_is_named_by_its_first_weight(files: tuple[Path, str, str]) -> None:
    place, first, _ = files
    state = {
        name: tensor.repeat(2, 1) if tensor.ndim == 2 else tensor
        for name, tensor in safetensors.torch.load_file(place / first).items()
    }
    saved(place, "other.safetensors", state)
    before = everything_in(place)
    done = planaria(*GIVEN, "--weights", first, "--to", "other.safetensors", "--out", "run", cwd=place)
    assert done.code == 2 and "other.safetensors" in done.err and "weight" in done.err and "[32, 64]" in done.err
    assert everything_in(place) == before


def test_a_second_network_with_nan_is_refused(files: tuple[Path, str, str]) -> None:
    place, first, second = files
    state = safetensors.torch.load_file(place / second)
    name = next(iter(state))
    state[name] = torch.full_like(state[name], math.nan)
    saved(place, "nan.safetensors", state)
    before = everything_in(place)
    done = planaria(*GIVEN, "--weights", first, "--to", "nan.safetensors", "--out", "run", cwd=place)
    assert done.code == 2 and "nan.safetensors" in done.err and name in done.err and everything_in(place) == before


def test_a_path_through_infinity_is_a_result_and_no_error(files: tuple[Path, str, str]) -> None:
    place, first, _ = files
    state = safetensors.torch.load_file(place / first)
    one, two = [name.removesuffix(".weight") for name in state if name.endswith(".weight")][:2]
    for name, factor in (("large", 1e30), ("small", 1e-30)):  # both compute the same; midway 1e60 is too much
        scaled = {f"{one}.weight": factor, f"{one}.bias": factor, f"{two}.weight": 1 / factor}
        saved(place, f"{name}.safetensors", {key: tensor * scaled.get(key, 1.0) for key, tensor in state.items()})
    ends = ("--weights", "large.safetensors", "--to", "small.safetensors")
    done = planaria(*GIVEN, *ends, "--by", "straight", "--control", "0", "--json", "--out", "run", cwd=place)
    assert done.code == 0, done.err
    (way,) = done.document["connection"]["ways"]
    assert way["profiles"]["test"]["broken"] and way["profiles"]["test"]["loss_barrier"]["best"] is None
    assert way["connects"] is False and "not finite" in done.document["verdicts"][0]["answer"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--by", "curved"), "--by"),
        (("--by", ""), "--by"),
        (("--points", "2"), "--points"),
        (("--nets", "2"), "--nets"),
        (("--updates", "0"), "--updates"),
        (("--steps", "0"), "--steps"),
        (("--calibration", "1"), "--calibration"),
        (("--tolerance", "-1"), "--tolerance"),
        (("--tolerance", "nan"), "--tolerance"),
        (("--control", "-1"), "--control"),
        (("--to", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--weights", "nowhere.safetensors"), "--to"),
        (("--weights", "nowhere.safetensors", "--to", "there.safetensors"), "nowhere.safetensors"),
        (("--to", "nowhere.safetensors", "--to-seed", "2"), "--to-seed"),
        (("--to-seed", "0"), "--to-seed"),
        (("--expect-score", "nan"), "--expect-score"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line_and_nothing_is_written(
    options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    done = planaria(*SUBJECT, *options, cwd=tmp_path)
    assert done.code == 2 and said in done.err and "Traceback" not in done.err
    assert done.out == "" and everything_in(tmp_path) == {}


def test_help_says_what_it_takes(tmp_path: Path) -> None:
    done = planaria("connect", "--help", cwd=tmp_path)
    assert done.code == 0
    for word in ("--to", "--to-seed", "--by", "--points", "--nets", "--updates", "--steps", "--calibration"):
        assert word in done.out


def test_a_report_is_written(connected: Finished, tmp_path: Path) -> None:
    connected.copy(tmp_path / "run")
    assert planaria(*connected.command, "--out", "run", cwd=tmp_path).code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>") and "Along the way" in page
