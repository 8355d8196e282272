"""`planaria resilience`: its document and files, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from command_line import Finished, everything_in, planaria, without_time
from planaria.campaign.ledger import Ledger
from planaria.cli import resiling
from planaria.study import resilience as study

pytestmark = pytest.mark.usefixtures("plain_report")

SUBJECT = ("resilience", "--task", "digits?train=400", "--model", "mlp:64-16-12-10", "--train-epochs", "6")
SHORT = ("--inputs", "48", "--sample", "10", "--repeats", "2", "--points", "4")
COMMAND = (*SUBJECT, *SHORT, "--json")


@pytest.fixture(scope="module")
def resilient(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run of all parts."""
    place = tmp_path_factory.mktemp("resilient")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planaria.cli.running.render", lambda document, folder: "<!doctype html>")
        done = planaria(*COMMAND, "--out", "run", cwd=place)
    assert done.code == 0, done.err
    return Finished(COMMAND, place / "run", done)


def plain(document: dict[str, Any]) -> Any:
    """A document without what takes time."""
    return without_time(document)


def test_the_document_has_what_the_report_reads(resilient: Finished) -> None:
    document = resilient.done.document
    assert document["command"] == "resilience" and document["schema"] == "planaria.resilience.v1"
    found = document["resilience"]
    assert found["units"] == 28 and found["examples"] == 48 and found["of"] == "outputs"
    assert found["judged"] == document["task"]["splits"]["test"]
    assert found["intact"] == pytest.approx(document["intact"]["test"])
    assert len(found["trials"]["units"]) == 10 and len(found["trials"]["guides"]) == 6
    assert len(found["sets"]) == 22 and all(len(one["units"]) == 5 for one in found["sets"])
    assert [one["along"] for one in found["breakdowns"]] == ["path", "count"]
    assert len(document["verdicts"]) == 6 and len(document["rows"]) == 2
    assert document["settings"]["metric"] == "outputs" and document["settings"]["repeats"] == 2
    assert json.loads((resilient.folder / "result.json").read_text()) == document
    assert json.loads((resilient.folder / "manifest.json").read_text())["complete"]


def test_the_table_has_a_line_for_every_unit(resilient: Finished) -> None:
    found = resilient.done.document["resilience"]
    with (resilient.folder / "units.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == found["units"] and sum(line["actual"] != "" for line in lines) == 10
    assert [float(line["predicted"]) for line in lines] == [x for layer in found["layers"] for x in layer["predicted"]]


def test_people_are_told_the_same_in_words(resilient: Finished, tmp_path: Path) -> None:
    folder = resilient.copy(tmp_path / "run")
    done = planaria(*(word for word in resilient.command if word != "--json"), "--out", folder, cwd=tmp_path)
    assert done.code == 0, done.err
    for words in ("most vulnerable", "better guide than magnitude?", "break-down point along the path?", "units.csv"):
        assert words in done.out


def test_a_finished_run_given_again_does_no_work_and_says_the_same(
    resilient: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*args: object, **options: object) -> None:
        raise AssertionError("work that had been done already")

    resilient.copy(tmp_path / "run")
    for name in ("gated", "changes", "loss_rises", "ablate", "along_path", "by_count", "Metric"):
        monkeypatch.setattr(study, name, work)
    done = planaria(*resilient.command, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert plain(done.document) == plain(resilient.done.document)


def test_a_run_that_was_killed_goes_on_to_the_same_result(
    resilient: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = study.along_path, []

    def killed(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(study, "along_path", killed)
        assert planaria(*resilient.command, "--out", "run", cwd=tmp_path).code == 130
    with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert len(ledger) == 5  # map, single units, sets, spectrum, one lesion
    assert not (tmp_path / "run" / "result.json").exists()
    done = planaria(*resilient.command, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert plain(done.document) == plain(resilient.done.document)
    assert (tmp_path / "run" / "units.csv").read_bytes() == (resilient.folder / "units.csv").read_bytes()


def test_other_settings_are_refused_and_a_fresh_start_takes_them(resilient: Finished, tmp_path: Path) -> None:
    folder = resilient.copy(tmp_path / "run")
    other = (*SUBJECT, *SHORT, "--metric", "fisher:2", "--set-size", "0", "--no-spectrum", "--json")
    before = everything_in(folder)
    refused = planaria(*other, "--out", "run", cwd=tmp_path)
    assert refused.code == 2 and "metric" in refused.err and everything_in(folder) == before
    done = planaria(*other, "--out", "run", "--fresh", cwd=tmp_path)
    assert done.code == 0, done.err
    found = done.document["resilience"]
    assert found["of"] == "Fisher, temperature 2" and found["sets"] == [] and found["spectrum"] is None


def test_a_dry_run_says_the_price_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resiling, "pace", lambda *unused: (0.001, 0.001, 0.001))
    done = planaria(*COMMAND, "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.err
    document = done.document
    assert document["schema"] == "planaria.plan.v1" and document["units"] == 28
    assert document["prices"].keys() == {"map", "single units", "sets", "spectrum", "lesions"}
    assert document["forward_passes"] > document["updates"] > 0
    told = planaria(*COMMAND[:-1], "--dry-run", cwd=tmp_path)
    assert "single units: about" in told.out and "folder" in told.out
    assert everything_in(tmp_path) == {}


@pytest.mark.parametrize("model", ["recurrent", "encoder"])
def test_networks_of_ones_own_are_studied_too(model: str, own: Path) -> None:
    subject = ("resilience", "--model", f"nets.py:{model}", "--task", "py:data.py:sequences", "--train-epochs", "1")
    done = planaria(*subject, *SHORT, "--set-size", "2", "--json", "--out", "run", cwd=own)
    assert done.code == 0, done.err
    assert done.document["resilience"]["units"] > 0 and done.document["resilience"]["spectrum"]["values"]


def test_a_regression_is_studied_on_its_outputs_and_not_by_fisher(own: Path) -> None:
    subject = ("resilience", "--model", "nets.py:regressor", "--task", "py:data.py:heights", "--train-epochs", "3")
    done = planaria(*subject, *SHORT, "--json", "--out", "run", cwd=own)
    assert done.code == 0, done.err
    refused = planaria(*subject, *SHORT, "--metric", "fisher", "--out", "other", cwd=own)
    assert refused.code == 2 and "two classes" in refused.err and not (own / "other").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--metric", "fischer"), "--metric"),
        (("--metric", "fisher:"), "--metric"),
        (("--metric", "fisher:-1"), "temperature"),
        (("--metric", "fisher:1,2"), "--metric"),
        (("--metric", "logits:2"), "--metric"),
        (("--dose", "0"), "--dose"),
        (("--dose", "1.5"), "--dose"),
        (("--dose", "nan"), "--dose"),
        (("--sample", "3"), "--sample"),
        (("--inputs", "1"), "--inputs"),
        (("--points", "1"), "--points"),
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
    done = planaria("resilience", "--help", cwd=tmp_path)
    assert done.code == 0
    for word in ("--metric", "--inputs", "--sample", "--set-size", "--dose", "--repeats", "--points"):
        assert word in done.out


def test_a_report_is_written(resilient: Finished, tmp_path: Path) -> None:
    resilient.copy(tmp_path / "run")
    assert planaria(*resilient.command, "--out", "run", cwd=tmp_path).code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>") and "Predicted against actual" in page
