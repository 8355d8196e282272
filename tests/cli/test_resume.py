"""The same command goes on where it stopped; another one is refused with the difference; --fresh starts over."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import TINY, Finished, everything_in, planaria, without_time
from planaria.campaign.ledger import Ledger
from planaria.cli import inputs, rescuing, running

pytestmark = pytest.mark.usefixtures("plain_report")

BRIEF = ("rescue", *TINY, "--quick", "--repairs", "none,refit,retrain")


def ledger_rows(folder: Path) -> list[dict[str, object]]:
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        return ledger.rows()


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return [without_time(line) for line in csv.DictReader(file)]


def result(folder: Path) -> Any:
    return without_time(json.loads((folder / "result.json").read_text()))


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, any work is an error."""

    def work(*args: object, **options: object) -> None:
        raise AssertionError("work that had been done already")

    monkeypatch.setattr(rescuing, "attempt", work)
    monkeypatch.setattr(running, "iter_respond", work)
    monkeypatch.setattr(inputs, "train", work)


@pytest.mark.usefixtures("idle")
def test_a_finished_run_given_again_does_no_work_and_says_the_same(finished: Finished, tmp_path: Path) -> None:
    folder = finished.copy(tmp_path / "run")
    before = ledger_rows(folder)
    done = planaria(*finished.command, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert ledger_rows(folder) == before
    assert done.document["rows"] == finished.done.document["rows"]
    assert done.document["summary"] == finished.done.document["summary"]
    for name in ("results.csv", "best.safetensors", "intact.safetensors"):
        assert (folder / name).read_bytes() == (finished.folder / name).read_bytes()


def test_two_runs_of_one_command_are_equal_apart_from_the_time_they_took(tmp_path: Path) -> None:
    for name in ("one", "two"):
        done = planaria(*BRIEF, "--json", "--fresh", "--out", name, cwd=tmp_path)
        assert done.code == 0, done.err
    one, two = tmp_path / "one", tmp_path / "two"
    assert table(one) == table(two)
    assert result(one) == result(two)
    for name in ("best.safetensors", "intact.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert [without_time(row) for row in ledger_rows(one)] == [without_time(row) for row in ledger_rows(two)]


def test_without_out_the_same_command_finds_its_folder_and_another_gets_another(tmp_path: Path) -> None:
    first = planaria(*BRIEF, "--json", cwd=tmp_path).document["files"]["report"]
    again = planaria(*BRIEF, "--json", cwd=tmp_path).document["files"]["report"]
    other = planaria(*BRIEF, "--json", "--seed", "1", cwd=tmp_path).document["files"]["report"]
    assert first == again != other
    assert len(list((tmp_path / "planaria-runs").iterdir())) == 2
    assert "rescue-digits-" in first


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (("--updates", "25"), "updates: 20 -> 25"),
        (("--seeds", "3"), "seeds: [0, 1] -> [0, 1, 2]"),
        (("--doses", "0.3"), "doses: [0.3, 0.6] -> [0.3]"),
        (("--model", "mlp:64-12-10"), "model: 'mlp:64-16-10' -> 'mlp:64-12-10'"),
        (("--task", "digits?train=300"), "task.name: 'digits?train=400' -> 'digits?train=300'"),
        (("--repairs", "refit"), "'retrain'"),
        (("--optimiser", "sgd"), "repair_settings.optimiser: 'adam' -> 'sgd'"),
        (("--tolerance", "0.2"), "criterion.tolerance: 0.1 -> 0.2"),
        (("--pooled",), "pooled"),
        (("--threads", "2"), "threads: 1 -> 2"),
    ],
)
def test_changed_settings_are_refused_with_the_difference_and_nothing_changes(
    finished: Finished, tmp_path: Path, changed: tuple[str, ...], difference: str
) -> None:
    finished.copy(tmp_path / "run")
    before = everything_in(tmp_path)
    done = planaria(*finished.command, *changed, "--out", "run", cwd=tmp_path)
    assert done.code == 2 and done.out == ""
    assert difference in done.err and "--fresh" in done.err
    assert everything_in(tmp_path) == before


def test_another_command_is_refused_in_the_folder_of_a_rescue(finished: Finished, tmp_path: Path) -> None:
    finished.copy(tmp_path / "run")
    before = everything_in(tmp_path)
    done = planaria("respond", *TINY[:4], "--out", "run", cwd=tmp_path)
    assert done.code == 2
    assert "command: 'rescue' -> 'respond'" in done.err
    assert everything_in(tmp_path) == before


def test_fresh_starts_over_with_other_settings(finished: Finished, tmp_path: Path) -> None:
    folder = finished.copy(tmp_path / "run")
    done = planaria(*BRIEF, "--doses", "0.4", "--json", "--fresh", "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert {row["dose"] for row in done.document["rows"]} == {0.4}
    assert {line["dose"] for line in table(folder)} == {"0.4"}
    attempts = [row for row in ledger_rows(folder) if row["what"] == "attempt"]
    assert len(attempts) == 3
    assert result(folder)["settings"]["doses"] == [0.4]


def test_a_changed_factory_is_refused_and_not_mixed_with_old_results(own: Path) -> None:
    command = (*BRIEF, "--model", "nets.py:small", "--out", "run")
    assert planaria(*command, cwd=own).code == 0
    assert planaria(*command, cwd=own).code == 0
    nets = own / "nets.py"
    nets.write_text(nets.read_text().replace("nn.ReLU()", "nn.Tanh()"))
    done = planaria(*command, cwd=own)
    assert done.code == 2
    assert "code" in done.err and "--fresh" in done.err


def test_changed_data_under_the_same_name_are_refused(own: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(150, 5)), np.arange(150) % 3

    def save() -> None:
        np.savez(own / "set.npz", x_train=x[:90], y_train=y[:90], x_test=x[90:], y_test=y[90:])

    save()
    command = (*BRIEF, "--model", "nets.py:classifier", "--task", "npz:set.npz", "--out", "run")
    assert planaria(*command, cwd=own).code == 0
    x[90, 0] += 1
    save()
    done = planaria(*command, cwd=own)
    assert done.code == 2
    assert "task.sha256.test.inputs" in done.err and "train.inputs" not in done.err


def test_changed_weights_under_the_same_name_are_refused(finished: Finished, tmp_path: Path) -> None:
    weights = tmp_path / "net.safetensors"
    weights.write_bytes((finished.folder / "intact.safetensors").read_bytes())
    command = (*BRIEF, "--weights", "net.safetensors", "--out", "run")
    assert planaria(*command, cwd=tmp_path).code == 0
    weights.write_bytes((finished.folder / "best.safetensors").read_bytes())
    done = planaria(*command, cwd=tmp_path)
    assert done.code == 2
    assert "weights_sha256" in done.err


def test_a_damaged_ledger_is_refused_and_left_as_it_is(finished: Finished, tmp_path: Path) -> None:
    folder = finished.copy(tmp_path / "run")
    content = bytearray((folder / "ledger.sqlite").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4000] = b"\0" * 4000
    (folder / "ledger.sqlite").write_bytes(content)
    done = planaria(*finished.command, "--out", "run", cwd=tmp_path)
    assert done.code == 2
    assert "ledger" in done.err and "--fresh" in done.err
    assert (folder / "ledger.sqlite").read_bytes() == content


def test_a_lost_table_report_and_best_network_are_made_again(finished: Finished, tmp_path: Path) -> None:
    folder = finished.copy(tmp_path / "run")
    for name in ("results.csv", "report.html", "best.safetensors"):
        (folder / name).unlink()
    done = planaria(*finished.command, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert (folder / "report.html").is_file()
    for name in ("results.csv", "best.safetensors"):
        assert (folder / name).read_bytes() == (finished.folder / name).read_bytes()


def test_a_run_without_repairs_leaves_no_network_of_an_earlier_one(finished: Finished, tmp_path: Path) -> None:
    folder = finished.copy(tmp_path / "run")
    done = planaria(*BRIEF, "--repairs", "none", "--fresh", "--json", "--out", "run", cwd=tmp_path)
    assert done.code == 0 and done.document["files"]["network"] is None
    assert not (folder / "best.safetensors").exists()


def test_respond_goes_on_too(tmp_path: Path) -> None:
    command = ("respond", *TINY[:6], "--quick", "--json", "--out", "run")
    first = planaria(*command, cwd=tmp_path)
    before = ledger_rows(tmp_path / "run")
    again = planaria(*command, cwd=tmp_path)
    assert first.code == again.code == 0
    assert ledger_rows(tmp_path / "run") == before
    assert without_time(again.document) == without_time(first.document)
