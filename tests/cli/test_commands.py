"""The other commands and habits: help, version, completion, dry runs, units, doctor, respond, demo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import TINY, Finished, everything_in, planaria

COMMANDS = ("demo", "rescue", "respond", "units", "doctor")
HEAVY = ("torch", "numpy", "scipy", "plotly", "jinja2", "safetensors", "psutil")


def process(folder: Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", "TERM": "dumb", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# ----------------------------------------------------------------------------------------- before any work


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", (*COMMANDS, "planaria demo", "--weights", "Exit codes", "130 / 143")),
        ("demo", ("handwritten digits", "--quick", "--out", "--json", "--seeds", "--device")),
        (
            "rescue",
            (
                *("--model", "--weights", "--task", "--expect-score", "--doses", "--damage", "--repairs"),
                *("--updates", "--seeds", "--device", "--quick", "--out", "--fresh", "--dry-run", "--fail-under"),
                *("--json", "--quiet", "resnet20", "mnist?mean=0.1307&std=0.3081", "refit+retrain", "adamw"),
            ),
        ),
        ("respond", ("--draws", "--seeds", "--doses", "START:STOP:COUNT", "--quick", "--json", "--device")),
        ("units", ("--verify", "--tap", "--json", "--out", "--seed", "--device")),
        ("doctor", ("--json", "--out", "torch")),
    ],
)
def test_help_says_what_a_command_takes_and_writes_nothing(
    command: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    done = planaria(*command.split(), "--help", cwd=tmp_path)
    assert done.code == 0 and done.err == ""
    assert f"Usage: planaria {command}".rstrip() in done.out
    for word in words:
        assert word in done.out
    assert everything_in(tmp_path) == {}


def test_help_version_and_completion_load_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from planaria.cli.app import app, guarded\n"
        f"asked = [['--help'], ['--version'], *([c, '--help'] for c in {COMMANDS})]\n"
        "codes = [guarded(lambda: app(words, standalone_mode=False)) for words in asked]\n"
        f"print('RESULT', codes, [name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = process(tmp_path, "-c", code)
    assert done.stdout.splitlines()[-1] == f"RESULT {[0] * (2 + len(COMMANDS))} []"
    assert everything_in(tmp_path) == {}


def test_help_works_as_a_process(tmp_path: Path) -> None:
    done = process(tmp_path, "-m", "planaria", "--help")
    assert done.returncode == 0 and "Usage: planaria" in done.stdout


def test_the_version_is_said(tmp_path: Path) -> None:
    from planaria.version import version

    assert planaria("--version", cwd=tmp_path).out == f"planaria {version()}\n"


def test_without_a_command_the_help_is_shown(tmp_path: Path) -> None:
    done = planaria(cwd=tmp_path)
    assert done.code == 2
    assert "Usage: planaria" in done.out + done.err and "respond" in done.out + done.err


def test_shell_completion_prints_a_script_and_completes_without_torch(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['planaria']; from planaria.cli.app import main; main()"
    script = process(tmp_path, "-c", code, _PLANARIA_COMPLETE="source_bash").stdout
    assert "complete -o default -F _planaria_completion planaria" in script
    asking = {"_PLANARIA_COMPLETE": "complete_bash", "COMP_WORDS": "planaria res", "COMP_CWORD": "1"}
    assert process(tmp_path, "-c", code, **asking).stdout.split() == ["rescue", "respond", "resilience"]
    asking |= {"COMP_WORDS": "planaria rescue --fail", "COMP_CWORD": "2"}
    probe = code.replace("import sys;", "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules));")
    assert process(tmp_path, "-c", probe, **asking).stdout.split() == ["--fail-under", "False"]


# ---------------------------------------------------------------------------------------------- as a process


def test_as_a_process_a_bad_word_is_one_line_on_stderr_and_exit_2(tmp_path: Path) -> None:
    done = process(tmp_path, "-m", "planaria", "rescue", "--task", "minst")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("planaria: task: expected a known task, got 'minst'. Did you mean mnist?")
    assert done.stderr.count("\n") == 1
    assert everything_in(tmp_path) == {}


def test_as_a_process_a_run_leaves_its_command_line_in_the_manifest(tmp_path: Path) -> None:
    args = ("rescue", *TINY, "--quick", "--repairs", "refit", "--json", "--out", "run")
    done = process(tmp_path, "-m", "planaria", *args)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["command"] == "rescue"
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["command_line"] == ["planaria", *args]


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "planaria", "rescue", "--help"]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing) as closed:
        done = subprocess.run(
            command, cwd=tmp_path, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_where_stderr_is_no_terminal_progress_is_a_line_now_and_then(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished.copy(tmp_path / "run")
    rescues = f" of {len(finished.done.document['rows'])} rescues"
    assert rescues not in planaria(*finished.command, "--out", "run", cwd=tmp_path).err
    monkeypatch.setattr("planaria.cli.screen.PLAIN_EVERY", 0.0)
    done = planaria(*finished.command, "--out", "run", cwd=tmp_path)
    assert "20 of 20 orders of the response curve\n" in done.err and f"7{rescues}\n" in done.err
    assert done.document["rows"] == finished.done.document["rows"]
    assert rescues not in planaria(*finished.command, "--quiet", "--out", "run", cwd=tmp_path).err


# ------------------------------------------------------------------------------------------------- dry runs


def test_a_dry_run_counts_what_the_run_then_does_and_writes_nothing(finished: Finished, tmp_path: Path) -> None:
    done = planaria(*finished.command, "--dry-run", "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert everything_in(tmp_path) == {}
    plan, real = done.document, finished.done.document
    trials = len(real["rows"])
    assert plan["trials"] == trials
    spent = real["network"]["trained"]["updates"] + sum(row["cost"]["backward_passes"] for row in real["rows"])
    assert plan["backward_passes"] == spent
    assert plan["forward_passes"] > plan["backward_passes"]
    looks = sum(len(row["curve"]) for row in real["rows"] if row["repair"] not in {"none", "refit", "sequential"})
    curve = len(real["response"]["draws"]) * len(real["response"]["doses"])
    assert plan["evaluations"] == pytest.approx(looks + curve + 2 * trials, rel=0.25)
    assert 0 < plan["seconds"] < 600
    assert plan["folder"] == "run"


def test_a_dry_run_refuses_what_the_run_would_refuse(finished: Finished, tmp_path: Path) -> None:
    finished.copy(tmp_path / "run")
    before = everything_in(tmp_path)
    done = planaria(*finished.command, "--updates", "7", "--dry-run", "--out", "run", cwd=tmp_path)
    assert done.code == 2 and "updates: 20 -> 7" in done.err
    assert everything_in(tmp_path) == before


def test_a_dry_run_of_respond_counts_evaluations(tmp_path: Path) -> None:
    more = ("--doses", "0.2,0.4", "--draws", "7", "--seeds", "3", "--dry-run")
    assert planaria("respond", *more, "--json", cwd=tmp_path).document["evaluations"] == 3 * 7 * 3
    assert "63" in planaria("respond", *more, cwd=tmp_path).out
    assert everything_in(tmp_path) == {}


# ---------------------------------------------------------------------------------------------------- units


def test_units_lists_layers_kinds_counts_and_ways(tmp_path: Path) -> None:
    document = planaria("units", "--model", "cnn", "--task", "digits?flat=0", "--json", cwd=tmp_path).document
    assert (document["command"], document["schema"]) == ("units", "planaria.units.v1")
    found = [(group["layer"], group["kind"], group["count"]) for group in document["groups"]]
    assert found == [("conv1", "channel", 16), ("conv2", "channel", 32), ("fc1", "neuron", 128)]
    for group in document["groups"]:
        assert group["method"] in {"slices", "tap"} and group["exact"] is True and group["reason"]
    assert document["unreached"] == [{"layer": "fc2", "reason": "its outputs are the network's outputs"}]
    assert document["verified"] is None
    assert everything_in(tmp_path) == {}


def test_units_verify_proves_every_layer(tmp_path: Path) -> None:
    args = ("units", "--model", "cnn", "--task", "digits?flat=0", "--verify", "--quick")
    done = planaria(*args, "--json", "--out", "units.json", cwd=tmp_path)
    document = done.document
    assert [check["layer"] for check in document["verified"]] == ["conv1", "conv2", "fc1"]
    assert all(check["units"] == 8 and check["difference"] < 1e-4 for check in document["verified"])
    assert json.loads((tmp_path / "units.json").read_text()) == document
    text = planaria(*args, cwd=tmp_path).out
    assert "of 8" in text and "outputs are the network's outputs): fc2" in text


# --------------------------------------------------------------------------------------------------- doctor


def test_doctor_says_what_is_there(tmp_path: Path) -> None:
    done = planaria("doctor", "--json", cwd=tmp_path)
    document = done.document
    assert document["command"] == "doctor" and document["status"] in {"ok", "warning"} and done.code == 0
    names = [check["name"] for check in document["checks"]]
    assert {"python", "torch", "cpu", "gpu", "packages", "memory", "data", "disk", "writing"} <= set(names)
    text = planaria("doctor", cwd=tmp_path).out
    assert all(name in text for name in names)
    assert everything_in(tmp_path) == {}


def test_doctor_with_a_problem_exits_5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from planaria.cli import doctor

    monkeypatch.setattr(doctor, "_REQUIRED", ("a-package-that-is-not-there",))
    done = planaria("doctor", "--json", "--out", "doctor.json", cwd=tmp_path)
    assert done.code == 5 and done.document["status"] == "problem"
    assert "missing: a-package-that-is-not-there" in done.out
    assert json.loads((tmp_path / "doctor.json").read_text()) == done.document


# -------------------------------------------------------------------------------------------------- respond


def test_respond_measures_a_curve_with_intervals(tmp_path: Path) -> None:
    args = ("respond", *TINY[:6], "--doses", "0:1:5", "--draws", "6", "--seeds", "2", "--out", "run")
    done = planaria(*args, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    document = done.document
    assert (document["command"], document["schema"]) == ("respond", "planaria.respond.v1")
    rows, response = document["rows"], document["response"]
    assert [(r["seed"], r["draw"], r["dose"]) for r in rows] == [
        (seed, draw, dose) for seed in (0, 1) for draw in range(6) for dose in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert response["doses"] == [0, 0.25, 0.5, 0.75, 1] and len(response["draws"]) == 12
    at_half = [row["score"] for row in rows if row["dose"] == 0.5]
    assert response["mean"][2] == pytest.approx(sum(at_half) / 12)
    assert response["low"][2] < response["mean"][2] < response["high"][2]
    assert len({row["score"] for row in rows if row["dose"] == 0}) == 1
    half = response["half_dose"]
    assert 0 < half["low"] <= half["best"] <= half["high"] < 1
    assert response["dose_of_10_point_loss"]["best"] < half["best"]
    assert response["critical_verdict"]
    assert "updates" not in document["settings"] and "summary" not in document
    text = planaria(*args, cwd=tmp_path).out
    for word in ("half-dose", "10-point loss", "critical dose", "chance 0.100", "12 orders", "run/report.html"):
        assert word in text
    for name in ("report.html", "results.csv", "manifest.json"):
        assert (tmp_path / "run" / name).is_file()
    assert (tmp_path / "run" / "results.csv").read_text().splitlines()[0] == "seed,draw,dose,score"


# ----------------------------------------------------------------------------------------------------- demo


def test_the_quick_demo_rescues_the_embedded_network_without_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*args: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", connect)
    done = planaria("demo", "--quick", "--json", "--out", "demo", cwd=tmp_path)
    assert done.code == 0, done.err
    document = done.document
    assert (document["command"], document["task"]["name"]) == ("rescue", "digits")
    assert document["intact"]["test"] > 0.85
    assert document["settings"]["seeds"] == [0, 1] and document["settings"]["doses"] == [0.5]
    best = max(line["after"]["best"] for line in document["summary"])
    damaged = document["summary"][0]["damaged"]["best"]
    assert best > damaged + 0.05
    assert (tmp_path / "demo" / "report.html").is_file()
    network = document["files"]["network"]
    assert network == "demo/best.safetensors" and (tmp_path / network).is_file()


def test_quick_keeps_the_number_of_seeds_that_was_asked_for(tmp_path: Path) -> None:
    args = ("rescue", *TINY[:-2], "--quick", "--repairs", "none", "--json")
    assert len(planaria(*args, "--seeds", "3", cwd=tmp_path).document["rows"]) == 3
    assert len(planaria(*args, cwd=tmp_path).document["rows"]) == 2
