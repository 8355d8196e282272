"""Files that are either old or new, never half, and output folders that are never mixed up.

Every run owns one folder. Its `manifest.json` says whose it is and with which settings it was started; the
same settings go on where the run stopped, other settings are refused with the difference.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from planaria.core.errors import EnvironmentProblem, InputError

MANIFEST = "manifest.json"
LEDGER = "ledger.sqlite"
_SCHEMA = "planaria.manifest.v1"
_UNFINISHED = ".planaria-tmp"  # what a kill in the middle of a write may leave; never read
_ABSENT = object()


def write_atomic(path: Path | str, content: bytes | str) -> None:
    """Replace a file by new content, or leave it exactly as it was.

    Written beside the target, flushed to the disk, then renamed over it. The mode of an existing file is
    kept, a new one gets the usual mode; a symbolic link stays a link and its target is replaced.

    Args:
        path: The file. Its folder must exist.
        content: Bytes, or text that is written as UTF-8 without translation of line ends.

    Raises:
        EnvironmentProblem: The system refused (full disk, no permission, no such folder); the old file is
            intact.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_atomic(folder / "a.txt", "one")
        >>> (folder / "a.txt").read_text()
        'one'
    """
    data = content.encode() if isinstance(content, str) else content
    target = Path(os.path.realpath(path))
    beside = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}{_UNFINISHED}")
    try:
        try:
            with open(beside, "xb") as file:
                if target.exists():
                    os.chmod(beside, target.stat().st_mode & 0o7777)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        _flush_folder(target.parent)
    except OSError as error:
        raise EnvironmentProblem(
            str(path),
            f"room and permission to write {len(data)} bytes",
            error.strerror or str(error),
            "The file is as it was before. Free space, or give another folder with --out.",
        ) from error


def make_folder(path: Path | str) -> None:
    """Make a folder and its parents, unless it is there.

    Raises:
        EnvironmentProblem: The system refused.

    Example:
        >>> make_folder(".")
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(
            str(path), "a folder to write to", error.strerror or str(error), "Give another place with --out."
        ) from error


def run_folder(path: Path | str, settings: Mapping[str, object], *, fresh: bool = False) -> Path:
    """Open the output folder of a run, or create it.

    A new or empty folder becomes ours: `manifest.json` with the settings is written at once. A folder of ours
    with equal settings is opened as it is, so that a stopped run goes on. With `fresh` its ledger is removed
    first and its settings may differ; other files stay until the run replaces them.

    Args:
        path: The folder. Missing parents are created.
        settings: JSON-able values that decide the results; compared key by key.
        fresh: Start over.

    Returns:
        The folder.

    Raises:
        InputError: The folder is not ours, or was started with other settings. Nothing is written.
        EnvironmentProblem: The system refused to create or write it.

    Example:
        >>> import tempfile
        >>> out = run_folder(Path(tempfile.mkdtemp()) / "run", {"seeds": 5})
        >>> [file.name for file in out.iterdir()]
        ['manifest.json']
        >>> run_folder(out, {"seeds": 5}) == out
        True
    """
    folder = Path(path)
    check_folder(folder, settings, fresh=fresh)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f".*{_UNFINISHED}"):
            left.unlink(missing_ok=True)
        if fresh:
            for name in (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm"):
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentProblem(
            str(folder),
            "a folder to write to",
            error.strerror or str(error),
            "Give another folder with --out.",
        ) from error
    if fresh or not (folder / MANIFEST).exists():
        write_atomic(folder / MANIFEST, json.dumps({"schema": _SCHEMA, "settings": settings}, indent=2) + "\n")
    return folder


def check_folder(path: Path | str, settings: Mapping[str, object], *, fresh: bool = False) -> None:
    """Refuse an output folder that `run_folder` would refuse, and write nothing.

    For the time before the work starts and for dry runs. Not guaranteed: that the folder is still the same
    later.

    Args:
        path: The folder, existing or not.
        settings: As for `run_folder`.
        fresh: As for `run_folder`.

    Raises:
        InputError: The folder is not ours, or was started with other settings.
        EnvironmentProblem: The folder is not there and cannot be made.

    Example:
        >>> check_folder("a-folder-that-does-not-exist", {"seeds": 5})
    """
    folder = Path(path)
    another = "Give another folder with --out."
    if not os.path.lexists(folder):
        above = next(parent for parent in folder.absolute().parents if os.path.lexists(parent))
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise EnvironmentProblem(str(folder), "a folder to write to", f"no way into {above}", another)
        return
    if not folder.is_dir():
        raise InputError(str(folder), "a folder for the results", "a file", another)
    if all(file.name.endswith(_UNFINISHED) for file in folder.iterdir()):
        return
    stored = _manifest(folder)
    if stored is None:
        raise InputError(
            str(folder),
            "a new or empty folder, or one of an earlier run",
            f"a folder that is not ours (it has files, but no {MANIFEST} of planaria)",
            another,
        )
    if fresh:
        return
    changed = differences(stored.get("settings", {}), settings)
    if changed:
        raise InputError(
            str(folder),
            "the settings this folder was started with",
            "; ".join(changed),
            "Give --fresh to start over, or another folder with --out.",
        )


def differences(old: object, new: object) -> list[str]:
    """Say how two plain values differ, one "key: old -> new" per differing leaf, keys dotted.

    Compared as the JSON file would hold them: a tuple equals a list, NaN equals NaN, True is not 1.

    Example:
        >>> differences({"seeds": 5, "task": {"name": "mnist"}}, {"seeds": 3, "task": {"name": "digits"}})
        ['seeds: 5 -> 3', "task.name: 'mnist' -> 'digits'"]
    """
    return _differences("", json.loads(json.dumps(old)), json.loads(json.dumps(new)))


def _differences(key: str, old: object, new: object) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            line
            for name in names
            for line in _differences(f"{key}.{name}" if key else name, old.get(name, _ABSENT), new.get(name, _ABSENT))
        ]
    return [] if _shown(old) == _shown(new) else [f"{key}: {_shown(old)} -> {_shown(new)}"]


def _shown(value: object) -> str:
    return "(not set)" if value is _ABSENT else repr(value)


def _manifest(folder: Path) -> dict[str, object] | None:
    try:
        stored = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    schema = stored.get("schema") if isinstance(stored, dict) else None
    return stored if isinstance(schema, str) and schema.startswith("planaria.") else None


def _flush_folder(folder: Path) -> None:
    # the rename itself reaches the disk only with its folder; systems that cannot open folders flush by
    # themselves
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
