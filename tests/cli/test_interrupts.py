"""A run that is stopped or killed loses nothing that it had finished, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from command_line import Done, planaria, without_time
from planaria.campaign.ledger import Ledger
from planaria.cli.screen import Screen, Stopped

COMMAND = (
    *("rescue", "--task", "digits?train=400", "--model", "mlp:64-16-10", "--train-epochs", "4", "--quick"),
    *("--repairs", "none,refit,retrain,iterative", "--updates", "40", "--seeds", "4", "--doses", "0.3,0.6"),
)
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """What starts in the background of a shell inherits a SIGINT that is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Done:
    done = planaria(*COMMAND, "--json", "--out", "run", cwd=tmp_path_factory.mktemp("uninterrupted"))
    assert done.code == 0, done.err
    return done


@contextmanager
def started(folder: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "planaria", *args, "--json", "--out", "run"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def attempts(folder: Path) -> list[dict[str, object]]:
    """The rows that have been acknowledged, read beside the running command."""
    path = folder / "run" / "ledger.sqlite"
    if not path.exists():
        return []
    with Ledger.open(path) as ledger:
        return [row for row in ledger.rows() if row["what"] == "attempt"]


def same_result_as(uninterrupted: Done, folder: Path) -> None:
    """Finish the run; all in all it must be as if it had never been stopped."""
    kept = attempts(folder)
    assert 0 < len(kept) < len(uninterrupted.document["rows"])
    done = planaria(*COMMAND, "--json", "--out", "run", cwd=folder)
    assert done.code == 0, done.err
    assert attempts(folder)[: len(kept)] == kept
    assert without_time(done.document) == without_time(uninterrupted.document)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_flushes_and_goes_on_as_if_nothing_had_happened(
    number: signal.Signals, code: int, uninterrupted: Done, tmp_path: Path
) -> None:
    with started(tmp_path, *COMMAND) as process:
        wait_until(lambda: len(attempts(tmp_path)) >= 3)
        start = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    assert time.monotonic() - start < 5
    assert out == ""
    assert "once more to stop at once" in err and "The same command goes on." in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "results.csv").exists()
    same_result_as(uninterrupted, tmp_path)


def test_a_killed_run_loses_no_acknowledged_row_and_goes_on(uninterrupted: Done, tmp_path: Path) -> None:
    with started(tmp_path, *COMMAND) as process:
        wait_until(lambda: len(attempts(tmp_path)) >= 3)
        acknowledged = attempts(tmp_path)
        process.kill()
        process.communicate()
    assert attempts(tmp_path)[: len(acknowledged)] == acknowledged
    same_result_as(uninterrupted, tmp_path)


def interrupted(folder: Path, args: tuple[str, ...], *moments: Callable[[], None]) -> tuple[Done, list[bool]]:
    """Run an endless command in this process and press Ctrl-C after each of the moments; was it running then?"""
    running: list[bool] = []
    ended = threading.Event()

    def press() -> None:
        for moment in moments:
            moment()
            running.append(not ended.is_set())
            if running[-1]:
                os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    try:
        done = planaria(*args, "--json", "--out", "run", cwd=folder)
    finally:
        ended.set()
        presser.join()
    return done, running


ENDLESS = ("--repairs", "none,retrain", "--updates", "1000000", "--seeds", "1", "--doses", "0.3")


def test_the_first_ctrl_c_lets_the_running_rescue_go_on_and_the_second_stops_it(tmp_path: Path) -> None:
    done, running = interrupted(
        tmp_path,
        (*COMMAND[:8], *ENDLESS),
        lambda: wait_until(lambda: len(attempts(tmp_path)) == 1),
        lambda: time.sleep(0.3),
    )
    assert running == [True, True]
    assert done.code == 130 and done.out == ""
    assert "once more to stop at once" in done.err and "Traceback" not in done.err
    assert len(attempts(tmp_path)) == 1


def test_ctrl_c_while_the_network_is_being_trained_writes_nothing(tmp_path: Path) -> None:
    args = (*COMMAND[:5], "--train-epochs", "1000000")
    done, running = interrupted(tmp_path, args, lambda: time.sleep(0.5))
    assert running == [True]
    assert done.code == 130 and done.out == ""
    assert "training mlp:64-16-10" in done.err and "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_in_the_last_step_of_one_phase_stops_before_the_next(number: signal.Signals, code: int) -> None:
    screen = Screen(out=None, fresh=False, dry_run=False, as_json=False, quiet=True)
    with screen.progress(2, "first phase") as steps:
        steps.done()
        os.kill(os.getpid(), number)
        steps.done()
    with pytest.raises(Stopped) as stop, screen.progress(2, "second phase"):
        pytest.fail("the second phase began")
    assert stop.value.code == code
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_stop_interrupts_the_running_step(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    screen = Screen(out=None, fresh=False, dry_run=False, as_json=False, quiet=True)
    with pytest.raises(SystemExit) as leave, screen.progress(2, "phase"):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
        pytest.fail("the step went on")
    assert leave.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert "once more" in capfd.readouterr().err
