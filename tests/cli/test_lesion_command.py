"""`planaria lesion`: its document and files, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import csv
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from command_line import Finished, everything_in, planaria, without_time
from planaria.campaign.ledger import Ledger
from planaria.cli import lesioning, unit_tables
from planaria.study import lesion_bench as bench
from planaria.study.lesioned import COLUMNS

pytestmark = pytest.mark.usefixtures("plain_report")

SUBJECT = ("lesion", "--task", "digits?train=400", "--model", "mlp:64-16-12-10", "--train-epochs", "6")
COMMAND = (*SUBJECT, "--clusters", "2,3", "--controls", "4", "--share", "0.2", "--json")


@pytest.fixture(scope="module")
def lesioned(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run of all groupings."""
    place = tmp_path_factory.mktemp("lesioned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planaria.cli.running.render", lambda document, folder: "<!doctype html>")
        done = planaria(*COMMAND, "--out", "run", cwd=place)
    assert done.code == 0, done.err
    return Finished(COMMAND, place / "run", done)


def plain(document: dict[str, Any]) -> Any:
    """A document without what takes time."""
    value = without_time(document)
    value["lesion_study"].pop("forwards")
    return value


def test_the_document_has_what_the_report_reads(lesioned: Finished) -> None:
    document = lesioned.done.document
    assert document["command"] == "lesion" and document["schema"] == "planaria.lesion.v1"
    found = document["lesion_study"]
    assert found["examples"] == document["task"]["splits"]["test"] and found["draws"] == 4
    assert found["intact"] == pytest.approx(document["intact"]["test"])
    assert found["classes"] == [str(label) for label in range(10)] and sum(found["counts"]) == found["examples"]
    groupings = [one["grouping"] for one in found["lesions"]]
    assert groupings.count("layer") == 2 and groupings.count("selectivity") == 10 and groupings.count("cluster") >= 4
    for one in found["lesions"]:
        assert len(one["classes"]) == 10 and one["lost"].keys() == {"low", "best", "high"} == one["control"].keys()
        assert one["interaction"] == pytest.approx(one["lost"]["best"] - one["single_units"])
    assert len(found["dissociations"]) == 45 and [guide["layer"] for guide in found["guides"]] == [
        "layers.0",
        "layers.2",
    ]
    assert found["audit"]["mismatches"] == 0 < found["audit"]["lesions"] and found["forwards"] > 0
    assert len(document["verdicts"]) == 5
    assert document["settings"]["clusters"] == [2, 3] and document["settings"]["by"] == [
        "layer",
        "cluster",
        "selectivity",
    ]
    assert json.loads((lesioned.folder / "result.json").read_text()) == document
    assert json.loads((lesioned.folder / "manifest.json").read_text())["complete"]


def test_the_tables_are_tidy(lesioned: Finished) -> None:
    found = lesioned.done.document["lesion_study"]
    with (lesioned.folder / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS and len(lines) == 11 * len(found["lesions"])
    whole = [line for line in lines if line["class"] == "all"]
    assert [float(line["lost"]) for line in whole] == [one["lost"]["best"] for one in found["lesions"]]
    with (lesioned.folder / "dissociations.csv").open(newline="") as file:
        pairs = list(csv.DictReader(file))
    assert [pair["verdict"] for pair in pairs] == [pair["verdict"] for pair in found["dissociations"]]
    first, told = pairs[0], found["dissociations"][0]
    assert (
        float(first["within_1"]) == told["within"][0]["best"]
        and float(first["between_2_low"]) == told["between"][1]["low"]
    )
    assert float(first["within_1"]) == pytest.approx(float(first["lost_1_by_1"]) - float(first["lost_2_by_1"]))
    assert float(first["between_2"]) == pytest.approx(float(first["lost_2_by_2"]) - float(first["lost_2_by_1"]))


def test_people_are_told_the_same_in_words(lesioned: Finished, tmp_path: Path) -> None:
    folder = lesioned.copy(tmp_path / "run")
    done = planaria(*(word for word in lesioned.command if word != "--json"), "--out", folder, cwd=tmp_path)
    assert done.code == 0, done.err
    for words in ("selective for", "own class", "doubly dissociate?", "results.csv", "mismatches 0"):
        assert words in done.out


def test_a_finished_run_given_again_does_no_work_and_says_the_same(
    lesioned: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*args: object, **options: object) -> None:
        raise AssertionError("work that had been done already")

    lesioned.copy(tmp_path / "run")
    monkeypatch.setattr(bench, "ablate", work)
    done = planaria(*lesioned.command, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert plain(done.document) == plain(lesioned.done.document)


def test_a_run_that_was_killed_goes_on_to_the_same_result(
    lesioned: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = bench.ablate, []

    def killed(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(bench, "ablate", killed)
        assert planaria(*lesioned.command, "--out", "run", cwd=tmp_path).code == 130
    with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert len(ledger) == 3
    assert not (tmp_path / "run" / "result.json").exists()
    done = planaria(*lesioned.command, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert plain(done.document) == plain(lesioned.done.document)
    assert (tmp_path / "run" / "results.csv").read_bytes() == (lesioned.folder / "results.csv").read_bytes()


def test_other_settings_are_refused_and_a_fresh_start_leaves_nothing_old(lesioned: Finished, tmp_path: Path) -> None:
    folder = lesioned.copy(tmp_path / "run")
    other = (*SUBJECT, "--by", "layer", "--controls", "4", "--no-single-units", "--json")
    before = everything_in(folder)
    refused = planaria(*other, "--out", "run", cwd=tmp_path)
    assert refused.code == 2 and "by" in refused.err and everything_in(folder) == before
    done = planaria(*other, "--out", "run", "--fresh", cwd=tmp_path)
    assert done.code == 0, done.err
    assert not (folder / "dissociations.csv").exists() and done.document["files"]["dissociations"] is None
    assert {one["grouping"] for one in done.document["lesion_study"]["lesions"]} == {"layer"}


def test_a_dry_run_says_the_price_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesioning, "pace", lambda *unused: (0.001, 0.001, 0.001))
    done = planaria(*COMMAND, "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.err
    document = done.document
    assert document["schema"] == "planaria.plan.v1" and document["lesions"] >= 14 and document["random_lesions"] >= 12
    assert document["prices"].keys() == {"lesions", "random lesions", "single units"}
    assert document["forward_passes"] > document["updates"] > 0
    told = planaria(*COMMAND[:-1], "--dry-run", cwd=tmp_path)
    assert "random lesions: about" in told.out and "folder" in told.out
    assert everything_in(tmp_path) == {}


def test_units_are_clustered_by_their_places_in_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file({"layers.0": torch.rand(16, 2)}, tmp_path / "places.safetensors")
    by = ("--by", "cluster", "--clusters", "3", "--positions", "places.safetensors", "--controls", "3", "--json")
    done = planaria(*SUBJECT, *by, "--no-single-units", "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    made = done.document["lesion_study"]["lesions"]
    assert len(made) == 3 and all(one["layers"] == ["layers.0"] for one in made)
    assert sum(one["size"] for one in made) == 16


@pytest.mark.parametrize("model", ["recurrent", "encoder"])
def test_networks_of_ones_own_have_lesions_too(model: str, own: Path) -> None:
    subject = ("lesion", "--model", f"nets.py:{model}", "--task", "py:data.py:sequences", "--train-epochs", "1")
    done = planaria(*subject, "--controls", "3", "--json", "--out", "run", cwd=own)
    assert done.code == 0, done.err
    found = done.document["lesion_study"]
    assert len(found["dissociations"]) == 3 and found["audit"]["mismatches"] == 0


def test_a_regression_is_lesioned_by_layer_and_cluster(own: Path) -> None:
    subject = ("lesion", "--model", "nets.py:regressor", "--task", "py:data.py:heights", "--train-epochs", "3")
    done = planaria(*subject, "--controls", "3", "--json", "--out", "run", cwd=own)
    assert done.code == 0, done.err
    assert {one["grouping"] for one in done.document["lesion_study"]["lesions"]} == {"layer", "cluster"}
    again = planaria(*subject, "--controls", "3", "--json", "--out", "run", cwd=own)
    assert again.code == 0 and plain(again.document) == plain(done.document)
    refused = planaria(*subject, "--by", "selectivity", "--out", "other", cwd=own)
    assert refused.code == 2 and "one class for each example" in refused.err and not (own / "other").exists()


@pytest.mark.skipif(find_spec("pyarrow") is not None, reason="stands in for pyarrow where it is not installed")
def test_the_table_is_written_for_parquet_readers_too(
    lesioned: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesioned.copy(tmp_path / "run")
    arrow, writer = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    arrow.table = lambda columns: columns  # type: ignore[attr-defined]
    writer.write_table = lambda columns, content: content.write(b"PAR1" + ",".join(columns).encode())  # type: ignore[attr-defined]
    monkeypatch.setattr(unit_tables, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "pyarrow", arrow)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", writer)
    done = planaria(*lesioned.command, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "results.parquet").read_bytes() == b"PAR1" + ",".join(COLUMNS).encode()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--by", "colour"), "--by"),
        (("--by", ","), "--by"),
        (("--share", "0"), "--share"),
        (("--share", "1"), "--share"),
        (("--share", "nan"), "--share"),
        (("--clusters", "1"), "--clusters"),
        (("--clusters", "many"), "--clusters"),
        (("--controls", "1"), "--controls"),
        (("--controls", "0"), "--controls"),
        (("--classes", "0"), "two or more labels"),
        (("--classes", "0,12"), "two or more labels"),
        (("--classes", "zero"), "--classes"),
        (("--positions", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--layers", "nowhere"), "nowhere"),
        (("--kinds", "axon"), "axon"),
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
    done = planaria("lesion", "--help", cwd=tmp_path)
    assert done.code == 0
    for word in ("--by", "--share", "--clusters", "--positions", "--controls", "--classes", "--no-single-units"):
        assert word in done.out


def test_a_report_is_written(lesioned: Finished, tmp_path: Path) -> None:
    lesioned.copy(tmp_path / "run")
    assert planaria(*lesioned.command, "--out", "run", cwd=tmp_path).code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>") and "Double dissociation" in page
