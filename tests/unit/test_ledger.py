"""The ledger keeps what it acknowledged, refuses contradictions, and notices damage."""

from __future__ import annotations

import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planaria.campaign.ledger import Ledger, RecordConflict, strong_id
from planaria.core.errors import EnvironmentProblem, InputError, PlanariaError

WRITER = """
import sys
from planaria.campaign.ledger import Ledger, strong_id
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Ledger.open(path) as ledger:
    for i in range(count):
        row = {"writer": name, "i": i}
        ledger.record(strong_id(row), row)
        print(name, i, flush=True)
"""

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_rows_come_back_equal_and_in_the_order_of_recording(tmp_path: Path) -> None:
    rows = [{"seed": seed, "cost": {"seconds": 0.1 * seed}, "nothing": None} for seed in (3, 1, 2)]
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        for row in rows:
            ledger.record(strong_id(row), row)
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        assert ledger.rows() == rows
        assert len(ledger) == 3
        assert ledger[strong_id(rows[1])] == rows[1]
        assert strong_id(rows[2]) in ledger
        assert "another" not in ledger


@settings(deadline=None, max_examples=50)
@given(row=st.dictionaries(st.text(), plain, max_size=4))
def test_any_plain_row_survives_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, row: dict[str, object]
) -> None:
    with Ledger.open(tmp_path_factory.mktemp("ledger") / "l.sqlite") as ledger:
        ledger.record(strong_id(row), row)
        assert repr(ledger.rows()) == repr([row])
        ledger.record(strong_id(row), row)
        assert len(ledger) == 1


def test_a_strong_id_is_the_same_in_every_process_and_for_every_order_of_keys() -> None:
    value = {"dose": 0.1, "seed": 3, "repair": "Retrain(steps=10)", "doses": (0.1, 0.2), "ü": None}
    code = f"from planaria.campaign.ledger import strong_id; print(strong_id({value!r}))"
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert other.stdout.strip() == strong_id(value) == strong_id(dict(reversed(value.items())))
    # written down once: a change would orphan every ledger in the world
    assert strong_id({"dose": 0.5, "seed": 1}) == ("b590deed218608bf3022d6591c3e594f00ba698b570d99c74b089d0037debdea")


@pytest.mark.parametrize(("key", "other"), [("dose", 0.2), ("seed", 4), ("repair", "refit"), ("extra", None)])
def test_a_strong_id_changes_with_every_field(key: str, other: object) -> None:
    value = {"dose": 0.1, "seed": 3, "repair": "retrain"}
    assert strong_id(value | {key: other}) != strong_id(value)


@pytest.mark.parametrize(
    ("value", "where"), [({"a": {"b": object()}}, "a.b"), ({"a": [1, {2}]}, r"a\[1\]"), ({"a": {1: 2}}, "a")]
)
def test_a_value_that_is_not_plain_is_refused_by_its_key(tmp_path: Path, value: dict[str, object], where: str) -> None:
    with pytest.raises(InputError, match=where):
        strong_id(value)
    with Ledger.open(tmp_path / "l.sqlite") as ledger, pytest.raises(InputError, match=where):
        ledger.record("id", value)


def test_the_same_result_may_be_recorded_twice_and_counts_once(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        ledger.record("id", {"score": math.nan, "cost": {"examples": (1, 2), "seconds": 1.0}})
        ledger.record("id", {"cost": {"seconds": 2.0, "examples": [1, 2]}, "score": math.nan})
        assert ledger.rows()[0]["cost"] == {"examples": [1, 2], "seconds": 1.0}
        assert len(ledger) == 1


def test_a_different_result_under_the_same_id_is_a_conflict_that_explains_itself(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l.sqlite", volatile=("seconds", "host")) as ledger:
        ledger.record("0123456789abcdef", {"score": 0.91, "host": "a", "curve": [{"seconds": 1, "dead": 0.5}]})
        ledger.record("0123456789abcdef", {"score": 0.91, "host": "b", "curve": [{"seconds": 2, "dead": 0.5}]})
        with pytest.raises(RecordConflict) as caught:
            ledger.record("0123456789abcdef", {"score": 0.92, "host": "a", "curve": [{"seconds": 1, "dead": 0.5}]})
        assert ledger.rows()[0]["score"] == 0.91
    message = str(caught.value)
    assert "0123456789ab" in message
    assert "score: 0.91 -> 0.92" in message
    assert "not deterministic" in message
    assert "host" not in message


def test_every_acknowledged_row_survives_kill_minus_nine(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    acknowledged: list[tuple[str, int]] = []
    draw = random.Random(0)
    for round_ in range(6):
        process = writer(path, str(round_), 1_000_000)
        assert process.stdout is not None
        with process.stdout:
            lines = [process.stdout.readline()]
            time.sleep(draw.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            process.wait()
            lines += process.stdout.readlines()
        # the last line may have been cut by the kill; it was then not acknowledged
        acknowledged += [(name, int(i)) for name, i in (line.split() for line in lines if line.endswith("\n"))]
        with Ledger.open(path) as ledger:
            kept = [(row["writer"], row["i"]) for row in ledger.rows()]
        assert len(kept) == len(set(kept))
        assert set(acknowledged) <= set(kept)
    assert len(acknowledged) >= 6


def test_writers_at_the_same_time_lose_nothing_and_record_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    processes = [writer(path, name, 40) for name in ("a", "b", "same", "same")]
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    with Ledger.open(path) as ledger:
        kept = [(row["writer"], row["i"]) for row in ledger.rows()]
    assert sorted(kept) == sorted((name, i) for name in ("a", "b", "same") for i in range(40))


def filled(path: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [{"seed": seed, "text": "x" * 100} for seed in range(40)]
    with Ledger.open(path) as ledger:
        for row in rows:
            ledger.record(strong_id(row), row)
    return rows


def test_a_changed_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    rows = filled(path)
    whole = path.read_bytes()
    draw = random.Random(0)
    noticed = 0
    for _ in range(150):
        place = draw.randrange(len(whole))
        changed = bytes([whole[place] ^ (1 << draw.randrange(8))])
        path.write_bytes(whole[:place] + changed + whole[place + 1 :])
        try:
            with Ledger.open(path) as ledger:
                assert ledger.rows() == rows
                assert all(strong_id(row) in ledger for row in rows)
        except PlanariaError:
            noticed += 1
        for left in (f"{path}-wal", f"{path}-shm", f"{path}-journal"):
            Path(left).unlink(missing_ok=True)
    assert noticed > 30


@pytest.mark.parametrize("content", [b"seeds,score\n5,0.97\n" * 100, b"SQLite format 3\0" + b"\0" * 4000])
def test_a_file_that_is_no_ledger_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "l.sqlite"
    path.write_bytes(content)
    with pytest.raises(InputError, match="an undamaged ledger") as caught:
        Ledger.open(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_a_cut_off_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    filled(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="undamaged"):
        Ledger.open(path)


def test_a_row_edited_by_hand_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    filled(path)
    editor = sqlite3.connect(path)
    editor.execute("UPDATE trials SET payload = replace(payload, '7', '8')")
    editor.commit()
    editor.close()
    with Ledger.open(path) as ledger, pytest.raises(InputError, match="does not match its checksum"):
        ledger.rows()


def test_the_database_of_another_program_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "photos.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE photos (name TEXT)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="another program"):
        Ledger.open(path)
    assert path.read_bytes() == before


def test_a_missing_folder_is_an_environment_problem(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="unable to open"):
        Ledger.open(tmp_path / "missing" / "l.sqlite")
