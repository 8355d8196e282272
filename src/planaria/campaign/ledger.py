"""The ledger: one row per finished trial, in an SQLite file that survives whatever happens to the process.

A row that `record` has returned from is on the disk. Several processes may write at once. Rows are named by
the hash of everything that affects them (`strong_id`), so that a resumed run knows what is done and never
mixes two things.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from planaria.campaign.files import differences
from planaria.core.errors import EnvironmentProblem, InputError, PlanariaError

_APPLICATION = 0x706C616E  # "plan", SQLite's field for whose file this is
_BUSY_SECONDS = 60.0
# What the machine, and not the file's content, is to blame for.
_ENVIRONMENT = tuple(f"SQLITE_{name}" for name in ("BUSY", "LOCKED", "FULL", "IOERR", "CANTOPEN", "READONLY", "PERM"))
_TABLE = (
    "CREATE TABLE trials (position INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
    " payload TEXT NOT NULL, sha256 TEXT NOT NULL)"
)


class RecordConflict(PlanariaError):
    """Two results claim to be the same trial and differ (exit code 2)."""


def strong_id(value: Mapping[str, object]) -> str:
    """Name of a trial: SHA-256 of everything that affects its result.

    The hash is taken over canonical JSON (keys sorted, tuples as lists), so it is the same in every process
    and version of Python. Not guaranteed: that 1 and 1.0 give one name; they do not.

    Args:
        value: Names and plain values (text, numbers, booleans, None, lists, dicts with text keys).

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: A value is not plain; names its key.

    Example:
        >>> strong_id({"dose": 0.5, "seed": 1}) == strong_id({"seed": 1, "dose": 0.5})
        True
    """
    _require_plain("strong_id", dict(value))
    canonical = json.dumps(dict(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


class Ledger:
    """Rows of finished trials in one SQLite file, in the order they were recorded.

    Open it with `Ledger.open`, close it or use it as a context manager. One object belongs to one thread; for
    more threads or processes open the file again.

    Example:
        >>> import tempfile
        >>> with Ledger.open(Path(tempfile.mkdtemp()) / "ledger.sqlite") as ledger:
        ...     ledger.record(strong_id({"seed": 0}), {"seed": 0, "score": 0.97})
        ...     strong_id({"seed": 0}) in ledger, ledger.rows()
        (True, [{'seed': 0, 'score': 0.97}])
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, volatile: frozenset[str]) -> None:
        self.path, self.volatile = path, volatile
        self._connection = connection

    @classmethod
    def open(cls, path: Path | str, *, volatile: tuple[str, ...] = ("seconds",)) -> Ledger:
        """Open the ledger, or create it. Its folder must exist.

        Args:
            path: The SQLite file.
            volatile: Field names, at any depth of a row, that may differ between two runs of the same trial.

        Returns:
            The open ledger.

        Raises:
            InputError: The file is damaged, or is not a ledger. It is left as it is.
            EnvironmentProblem: The system refused to open or write it.
        """
        path = Path(path)
        with _explained(path):
            connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
            try:
                _prepare(path, connection)
            except BaseException:
                connection.close()
                raise
        return cls(path, connection, frozenset(volatile))

    def record(self, id: str, payload: Mapping[str, object]) -> None:
        """Put a finished trial on the disk; recording the same result again changes nothing.

        Args:
            id: The trial's `strong_id`.
            payload: Its row, of plain values.

        Raises:
            RecordConflict: The ledger has another result under this id.
            InputError: A value is not plain; names its key.
        """
        _require_plain(f"row {id[:12]}", dict(payload))
        text = json.dumps(dict(payload))  # field order is kept: a row reads as its author wrote it
        with _explained(self.path):
            done = self._connection.execute(
                "INSERT INTO trials (id, payload, sha256) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING",
                (id, text, _seal(id, text)),
            )
        if done.rowcount == 0:
            self._require_equal(id, payload)

    def __contains__(self, id: object) -> bool:
        with _explained(self.path):
            found = self._connection.execute("SELECT 1 FROM trials WHERE id = ?", (id,)).fetchone()
        return found is not None

    def __len__(self) -> int:
        with _explained(self.path):
            (count,) = self._connection.execute("SELECT count(*) FROM trials").fetchone()
        return int(count)

    def __getitem__(self, id: str) -> dict[str, object]:
        with _explained(self.path):
            found = self._connection.execute("SELECT id, payload, sha256 FROM trials WHERE id = ?", (id,)).fetchone()
        if found is None:
            raise KeyError(id)
        return self._unsealed(*found)

    def rows(self) -> list[dict[str, object]]:
        """All rows in the order they were recorded.

        Returns:
            Equal copies of the recorded payloads (tuples come back as lists).

        Raises:
            InputError: A row does not match its checksum: the file was damaged.
        """
        with _explained(self.path):
            found = self._connection.execute("SELECT id, payload, sha256 FROM trials ORDER BY position").fetchall()
        return [self._unsealed(*row) for row in found]

    def close(self) -> None:
        """Close the file; further use raises."""
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace
        self.close()

    def _unsealed(self, id: str, text: str, seal: str) -> dict[str, object]:
        if _seal(id, text) != seal:
            raise _damaged(self.path, f"a row that does not match its checksum ({str(id)[:12]})")
        row: dict[str, object] = json.loads(text)
        return row

    def _require_equal(self, id: str, payload: Mapping[str, object]) -> None:
        changed = differences(self._lasting(self[id]), self._lasting(dict(payload)))
        if changed:
            raise RecordConflict(
                f"trial {id[:12]} in {self.path}",
                "the result recorded before",
                "; ".join(changed),
                "Equal id with different content happens when code, library versions, threads or data "
                "changed without being part of the id, or when the trial is not deterministic. Start over "
                "with --fresh or another --out, or make what changed a part of the id.",
            )

    def _lasting(self, value: object) -> object:
        if isinstance(value, dict):
            return {key: self._lasting(part) for key, part in value.items() if key not in self.volatile}
        if isinstance(value, list | tuple):
            return [self._lasting(part) for part in value]
        return value


def _prepare(path: Path, connection: sqlite3.Connection) -> None:
    # SQLite waits for other writers by itself, but not for another process that opens, creates or recovers
    # the file
    patience = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return _open_or_create(path, connection)
        except sqlite3.OperationalError as error:
            if not _name(error).startswith("SQLITE_BUSY") or time.monotonic() > patience:
                raise
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        time.sleep(0.01)


def _open_or_create(path: Path, connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA synchronous = FULL")  # acknowledged means on the disk, not in its cache
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables:
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        if owner != _APPLICATION:
            raise InputError(
                str(path),
                "a planaria ledger",
                "an SQLite file of another program",
                "Give another folder with --out.",
            )
        (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise _damaged(path, " ".join(verdict.split()))
    else:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")  # of several processes that create it, one does and the others see it
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute("COMMIT")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # use after close: the caller's mistake, not the file's
    except sqlite3.DatabaseError as error:
        if _name(error).startswith(_ENVIRONMENT):
            raise EnvironmentProblem(
                str(path),
                "a ledger that can be read and written",
                str(error),
                "Check that the folder exists, is writable and has free space. Recorded rows are safe.",
            ) from error
        raise _damaged(path, str(error)) from error
    except UnicodeDecodeError as error:  # a message of SQLite that quotes damaged bytes
        raise _damaged(path, "text that is not UTF-8") from error


def _name(error: sqlite3.Error) -> str:
    # errors that Python's own module raises have no name of SQLite's
    return getattr(error, "sqlite_errorname", "")


def _damaged(path: Path, what: str) -> InputError:
    return InputError(
        str(path),
        "an undamaged ledger",
        what,
        "The file was changed by something else; it is left as it is. Restore it from a copy, or start over "
        "with --fresh or another --out.",
    )


def _seal(id: str, text: str) -> str:
    return hashlib.sha256(f"{id}\n{text}".encode()).hexdigest()


def _require_plain(where: str, value: object) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise InputError(where, "text keys", repr(key), "Write the key as text.")
            _require_plain(f"{where}.{key}", part)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            _require_plain(f"{where}[{index}]", part)
    elif value is not None and not isinstance(value, str | int | float):
        raise InputError(
            where,
            "text, a number, a boolean, None, a list or a dict",
            type(value).__name__,
            "Convert it first.",
        )
