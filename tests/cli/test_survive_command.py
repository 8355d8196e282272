"""`planaria survive`: its document and files, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from command_line import TINY, Finished, everything_in, planaria, without_time
from planaria.campaign.ledger import Ledger
from planaria.cli import inputs, surviving

pytestmark = pytest.mark.usefixtures("plain_report")

SMALL = ("survive", *TINY[:6], "--updates", "3", "--seeds", "2", "--events", "6")
TURNOVER = (*SMALL, "--mode", "turnover", "--delay", "2", "--turnover-rates", "0.1", "--draws", "2", "--json")
ESTIMATE = {"low", "best", "high"}


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run in turnover mode, with a comparison of rates."""
    place = tmp_path_factory.mktemp("walked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planaria.cli.running.render", lambda document, folder: "<!doctype html>")
        done = planaria(*TURNOVER, "--out", "run", cwd=place)
    assert done.code == 0, done.err
    return Finished(TURNOVER, place / "run", done)


def test_the_document_has_what_the_report_reads(walked: Finished) -> None:
    document = walked.done.document
    survival = document["survival"]
    assert document["command"] == "survive" and document["schema"] == "planaria.survive.v1"
    assert (survival["mode"], survival["unit"], survival["delay"]) == ("turnover", "fraction of units", 2)
    assert (survival["events"], survival["dose"], survival["tolerance"]) == (6, 0.05, 0.02)
    assert [one["repair"] for one in survival["repairs"]] == list(surviving.REPAIRS)
    for one in survival["repairs"]:
        assert {"dead", "trials"} | ESTIMATE <= one["retention"][0].keys()
        assert [point["event"] for point in one["survival"]] == list(range(7))
        assert one["inside"].keys() == ESTIMATE and isinstance(one["returns"], int)
        assert {(p["seed"], p["event"]) for p in one["trajectories"]} == {(s, e) for s in (0, 1) for e in range(1, 7)}
        assert {"hit", "rescued", "inside", "dead"} <= one["trajectories"][0].keys()
    assert [one["rate"] for one in survival["turnover"]["rates"]] == [0, 0.1]
    assert {one["cost"]["backward_passes"] for one in survival["turnover"]["rates"]} == {18}
    questions = [verdict["question"] for verdict in document["verdicts"]]
    assert questions == ["Does the walk stay in the good set?", "Does turnover build resilience?"]
    assert all({"question", "answer", "words", "numbers"} == verdict.keys() for verdict in document["verdicts"])
    assert json.loads((walked.folder / "result.json").read_text()) == document


def test_the_table_has_one_line_per_event(walked: Finished) -> None:
    with (walked.folder / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(surviving.REPAIRS) * 2 * 6
    retrained = [line for line in lines if line["repair"] == "retrain" and line["seed"] == "1"]
    assert [line["cost.backward_passes"] for line in retrained] == ["3", "6", "9", "12", "15", "18"]
    assert [line["score_after"] != "" for line in retrained] == [False] * 5 + [True]
    assert [int(line["returned"]) for line in retrained] == [0, 0, 1, 1, 1, 1]


def test_a_finished_run_given_again_does_no_work_and_says_the_same(
    walked: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*args: object, **options: object) -> None:
        raise AssertionError("work that had been done already")

    walked.copy(tmp_path / "run")
    monkeypatch.setattr(surviving, "walk", work)
    monkeypatch.setattr(surviving, "resilience_row", work)
    monkeypatch.setattr(inputs, "train", work)
    done = planaria(*walked.command, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.document["survival"] == walked.done.document["survival"]
    assert done.document["rows"] == walked.done.document["rows"]


@pytest.mark.parametrize("place", ["walk", "resilience_row"])
def test_a_stopped_run_goes_on_to_the_same_result(
    walked: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    true = getattr(surviving, place)
    calls: list[int] = []

    def stopping(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return true(*args, **options)

    monkeypatch.setattr(surviving, place, stopping)
    assert planaria(*walked.command, "--out", "run", cwd=tmp_path).code == 130
    with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
        kept = [row for row in ledger.rows() if row["what"] == ("walk" if place == "walk" else "turnover")]
    assert len(kept) == 2
    done = planaria(*walked.command, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    for key in ("survival", "verdicts", "rows"):
        assert without_time(done.document[key]) == without_time(walked.done.document[key])


def test_attrition_shows_a_table_and_a_report(tmp_path: Path) -> None:
    done = planaria(*SMALL, "--repairs", "none,retrain", "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    for words in ("median horizon", "none", "retrain", "finite horizon", "report"):
        assert words in done.out
    assert "<html" in (tmp_path / "run" / "report.html").read_text()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["survival"]["turnover"] is None


def test_a_dry_run_writes_nothing_and_says_how_much_there_is_to_do(tmp_path: Path) -> None:
    done = planaria(*TURNOVER, "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.document["command"] == "survive" and done.document["schema"] == "planaria.plan.v1"
    assert done.document["walks"] == 10 + 4 and done.document["events"] == 6 and done.document["seconds"] > 0
    assert everything_in(tmp_path) == {}


def test_a_closed_form_step_dearer_than_the_budget_is_pointed_out(tmp_path: Path) -> None:
    command = (*SMALL[:-6], "--updates", "1", "--seeds", "1", "--events", "2", "--repairs", "sequential", "--json")
    done = planaria(*command, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert any("sequential spent" in warning for warning in done.document["warnings"])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("--mode", "atrition"), "--mode: expected attrition or turnover"),
        (("--repairs", "iterative"), "damage is the stream"),
        (("--repairs", "regrow"), "--mode turnover"),
        (("--repairs", "retrian"), "Did you mean retrain?"),
        (("--dose-per-event", "1.5"), "from 0 to 1"),
        (("--dose-per-event", "0.001"), "at least one unit"),
        (("--delay", "3"), "--delay"),
        (("--mode", "turnover", "--delay", "6"), "more events than the burn-in"),
        (("--mode", "turnover", "--damage", "Damage(Noise(0.1), RandomUnits())"), "kills units"),
        (("--damage", "Damage(Silence(), RankedUnits((Unit('layers.0', 1),)))"), "draws at random"),
        (("--turnover-rates", "0.001", "--delay", "2"), "at least one unit"),
        (("--turnover-rates", "0"), "rate above 0"),
        (("--turnover-rates", "x"), "numbers"),
        (("--updates", "0"), "--updates"),
        (("--tolerance", "nan"), "tolerance"),
        (("--optimiser", "lion"), "--optimiser"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(tmp_path: Path, wrong: tuple[str, ...], words: str) -> None:
    done = planaria(*SMALL, *wrong, "--out", "run", cwd=tmp_path)
    assert done.code == 2 and done.out == ""
    assert words in done.err
    assert everything_in(tmp_path) == {}


def test_changed_settings_are_refused_with_the_difference(walked: Finished, tmp_path: Path) -> None:
    walked.copy(tmp_path / "run")
    before = everything_in(tmp_path)
    done = planaria(*walked.command, "--delay", "3", "--out", "run", cwd=tmp_path)
    assert done.code == 2
    assert "mode: 'Turnover(delay=2" in done.err and "--fresh" in done.err
    assert everything_in(tmp_path) == before
