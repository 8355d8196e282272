"""`planaria reproduce`: the figures by name, resumable, each part an ordinary command."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from command_line import planaria
from planaria.cli import reproducing
from planaria.cli.app import app

pytestmark = pytest.mark.usefixtures("plain_report")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure of two runs that take no time."""
    small = "respond --model mlp:64-8-10 --train-epochs 1 --doses 0,0.5 --draws 2"
    parts = (reproducing.Part("one", small, small), reproducing.Part("large", small, ""))
    monkeypatch.setitem(reproducing.FIGURES, "tiny", ("Nothing much.", parts))


@pytest.mark.usefixtures("tiny")
def test_every_part_is_run_into_its_own_folder_and_the_same_command_goes_on(tmp_path: Path) -> None:
    done = planaria("reproduce", "tiny", "--out", "f", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert [part["label"] for part in done.document["parts"]] == ["one", "large"]
    assert (tmp_path / "f" / "one" / "result.json").exists()
    assert (tmp_path / "f" / "figure.json").exists()
    ledger = (tmp_path / "f" / "one" / "intact.safetensors").stat().st_mtime_ns
    again = planaria("reproduce", "tiny", "--out", "f", "--json", cwd=tmp_path)
    assert again.document["parts"][0]["result"]["rows"] == done.document["parts"][0]["result"]["rows"]
    assert (tmp_path / "f" / "one" / "intact.safetensors").stat().st_mtime_ns == ledger, "trained again"


@pytest.mark.usefixtures("tiny")
def test_the_short_form_leaves_out_what_has_none(tmp_path: Path) -> None:
    done = planaria("reproduce", "tiny", "--quick", "--out", "q", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "one: planaria respond" in done.out
    assert "large" not in done.out


@pytest.mark.usefixtures("tiny")
def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = planaria("reproduce", "tiny", "--dry-run", "--out", "dry", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.document["parts"][0]["result"]["schema"] == "planaria.plan.v1"
    assert not (tmp_path / "dry").exists()


def test_an_unknown_figure_is_refused_with_the_nearest(tmp_path: Path) -> None:
    done = planaria("reproduce", "rescue-fig9", cwd=tmp_path)
    assert done.code == 2
    assert "rescue-fig1" in done.err


def test_what_a_part_has_found_is_told_in_the_words_of_its_own_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = "--model mlp:64-8-10 --train-epochs 1"
    commands = {
        "map": f"resilience {small} --inputs 32 --sample 4 --set-size 0 --repeats 0 --no-spectrum",
        "path": f"connect {small} --by straight --points 3 --control 0",
    }
    parts = tuple(reproducing.Part(label, command, "") for label, command in commands.items())
    monkeypatch.setitem(reproducing.FIGURES, "told", ("What geometry finds.", parts))
    done = planaria("reproduce", "told", "--out", "t", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "is the most vulnerable unit" in done.out
    assert "along the straight line the test loss" in done.out


@pytest.mark.parametrize("name", reproducing.FIGURES)
def test_every_command_of_a_figure_is_one_that_the_program_knows(name: str) -> None:
    for part in reproducing.FIGURES[name][1]:
        for text in filter(None, (part.command, part.quick)):
            command, *options = shlex.split(text)
            known = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
            assert all(option in known for option in options if option.startswith("--")), text
