"""Files are old or new, never half; an output folder is ours with equal settings, or refused."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from planaria.campaign.files import LEDGER, MANIFEST, check_folder, differences, run_folder, write_atomic
from planaria.core.errors import EnvironmentProblem, InputError


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_writing_replaces_the_content_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", "one\r\nünï")
    write_atomic(tmp_path / "a.txt", b"two")
    assert everything_in(tmp_path) == {"a.txt": b"two"}


def test_text_is_written_byte_for_byte(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", "one\r\nünï")
    assert (tmp_path / "a.txt").read_bytes() == "one\r\nünï".encode()


def test_writing_keeps_the_mode_of_an_old_file_and_gives_new_ones_the_usual_mode(tmp_path: Path) -> None:
    old, new, usual = tmp_path / "old", tmp_path / "new", tmp_path / "usual"
    old.write_text("old")
    old.chmod(0o640)
    usual.write_text("made by open()")
    write_atomic(old, "new")
    write_atomic(new, "new")
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert new.stat().st_mode == usual.stat().st_mode


def test_writing_through_a_link_replaces_its_target(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "a")
    write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "a").read_text() == "new"


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    write_atomic(tmp_path / "a", "old")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, moment, full)
        with pytest.raises(EnvironmentProblem, match="No space left on device"):
            write_atomic(tmp_path / "a", "new")
    assert everything_in(tmp_path) == {"a": b"old"}


def test_writing_into_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="No such file or directory") as caught:
        write_atomic(tmp_path / "missing" / "a", "new")
    assert caught.value.exit_code == 5
    assert everything_in(tmp_path) == {}


def test_a_killed_writer_leaves_an_old_or_a_new_file_never_a_part(tmp_path: Path) -> None:
    target = tmp_path / "a"
    size = 300_000
    code = (
        "import sys\n"
        "from planaria.campaign.files import write_atomic\n"
        "for i in range(100_000):\n"
        f"    write_atomic({str(target)!r}, bytes([65 + i % 26]) * {size})\n"
        "    print(i, flush=True)\n"
    )
    for seconds in (0.0, 0.01, 0.03):
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        with writer.stdout:
            writer.stdout.readline()
            time.sleep(seconds)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        content = target.read_bytes()
        assert len(content) == size
        assert len(set(content)) == 1


def test_a_new_folder_is_made_with_its_parents_and_marked_as_ours(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a" / "b", {"seeds": 5, "doses": (0.3, 0.5)})
    stored = json.loads((folder / MANIFEST).read_text())
    assert stored["schema"].startswith("planaria.")
    assert stored["settings"] == {"seeds": 5, "doses": [0.3, 0.5]}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert (run_folder(tmp_path, {}) / MANIFEST).exists()


def test_equal_settings_open_the_folder_and_change_nothing(tmp_path: Path) -> None:
    run_folder(tmp_path, {"doses": (0.3, 0.5), "nothing": float("nan")})
    (tmp_path / "results.csv").write_text("rows")
    before = everything_in(tmp_path)
    run_folder(tmp_path, {"nothing": float("nan"), "doses": [0.3, 0.5]})
    assert everything_in(tmp_path) == before


def test_a_manifest_written_anew_by_the_run_still_opens_the_folder(tmp_path: Path) -> None:
    run_folder(tmp_path, {"seeds": 5})
    write_atomic(
        tmp_path / MANIFEST,
        json.dumps({"schema": "planaria.manifest.v1", "settings": {"seeds": 5}, "machine": "elsewhere"}),
    )
    run_folder(tmp_path, {"seeds": 5})
    assert json.loads((tmp_path / MANIFEST).read_text())["machine"] == "elsewhere"


@pytest.mark.parametrize("manifest", [None, "{}", "not json", '["planaria."]', '{"schema": "other.v1"}'])
def test_a_folder_that_is_not_ours_is_refused_and_untouched(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    before = everything_in(tmp_path)
    for fresh in (False, True):
        with pytest.raises(InputError, match="not ours") as caught:
            run_folder(tmp_path, {"seeds": 5}, fresh=fresh)
        assert caught.value.exit_code == 2
    assert everything_in(tmp_path) == before


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("dear")
    with pytest.raises(InputError, match="got a file"):
        run_folder(tmp_path / "out", {})
    assert (tmp_path / "out").read_text() == "dear"


def test_other_settings_are_refused_with_a_readable_difference(tmp_path: Path) -> None:
    run_folder(tmp_path, {"seeds": 5, "task": {"name": "mnist", "mean": 0.13}, "old": 1})
    before = everything_in(tmp_path)
    with pytest.raises(InputError) as caught:
        run_folder(tmp_path, {"seeds": 5, "task": {"name": "digits", "mean": 0.13}, "new": True})
    message = str(caught.value)
    assert "task.name: 'mnist' -> 'digits'; old: 1 -> (not set); new: (not set) -> True" in message
    assert "--fresh" in message
    assert "--out" in message
    assert "seeds" not in message
    assert everything_in(tmp_path) == before


def test_fresh_starts_over_in_a_folder_of_ours(tmp_path: Path) -> None:
    run_folder(tmp_path, {"seeds": 5})
    for name in (LEDGER, f"{LEDGER}-wal", "report.html"):
        (tmp_path / name).write_text("old")
    run_folder(tmp_path, {"seeds": 3}, fresh=True)
    assert json.loads((tmp_path / MANIFEST).read_text())["settings"] == {"seeds": 3}
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, "report.html"}


def test_a_kill_during_the_first_write_does_not_lock_the_user_out(tmp_path: Path) -> None:
    (tmp_path / f".{MANIFEST}.17.abcd.planaria-tmp").write_text('{"sch')
    run_folder(tmp_path, {"seeds": 5})
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST}


def test_checking_a_folder_writes_nothing(tmp_path: Path) -> None:
    check_folder(tmp_path / "new", {"seeds": 5})
    check_folder(tmp_path, {"seeds": 5})
    assert list(tmp_path.iterdir()) == []


def test_differences_tell_true_from_one_and_a_missing_key_from_null() -> None:
    assert differences({"a": 1, "b": None}, {"a": True}) == ["a: 1 -> True", "b: None -> (not set)"]
    assert differences({"a": {"b": 1}}, {"a": 2}) == ["a: {'b': 1} -> 2"]
    assert differences({"a": (1, 2)}, {"a": [1, 2]}) == []
