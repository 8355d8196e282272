"""User code: the function that a text like `package.module:name` or `path/file.py:name` stands for.

Naming it on the command line is consent to run it; whether a name from a file is, the caller decides.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from planaria.core.errors import InputError, PlanariaError, nearest


def user_callable(spec: str, where: str) -> Callable[[], object]:
    """The object that `package.module:name` or `path/file.py:name` names. Imports, so runs, that module.

    Args:
        spec: The text.
        where: What it is for; begins every error message.

    Raises:
        InputError: Nothing callable there, or its module fails on import.

    Example:
        >>> user_callable("torch.nn:Identity", "--model").__name__
        'Identity'
    """
    place, colon, name = spec.rpartition(":")
    if not (colon and place and name):
        raise InputError(where, "package.module:name or path/file.py:name", repr(spec), "Name the function.")
    is_file = place.endswith(".py")
    path = Path(place).expanduser().resolve()
    if is_file and not path.is_file():
        raise InputError(where, "a Python file", f"no file {place}", "Check the path.")
    try:
        with importing_from(path.parent if is_file else Path.cwd()):
            module = _file_module(path) if is_file else importlib.import_module(place)
    except PlanariaError:
        raise
    except ModuleNotFoundError as problem:
        if is_file or not f"{place}.".startswith(f"{problem.name}."):
            raise InputError(where, "an importable module", _said(problem), f"Install what {place} needs.") from problem
        raise InputError(
            where,
            "a module",
            f"no module {problem.name!r}",
            "Check the name, or give a file: path/file.py:name.",
        ) from problem
    except (Exception, SystemExit) as problem:
        raise InputError(
            where, f"{place} to import", _said(problem), "Correct it there; `planaria --debug ...` shows the traceback."
        ) from problem
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            names = [word for word in dir(found) if not word.startswith("_") and callable(getattr(found, word))]
            raise InputError(where, f"a name in {place}", repr(name), nearest(part, names))
        found = getattr(found, part)
    if not callable(found):
        raise InputError(where, "a function", f"{name} of type {type(found).__name__}", "Name a function.")
    made: Callable[[], object] = found
    return made


def called(function: Callable[[], object], where: str) -> object:
    """Result of the user's function, called without arguments.

    Raises:
        InputError: It raised.
    """
    try:
        return function()
    except PlanariaError:
        raise
    except (Exception, SystemExit) as problem:
        raise InputError(
            where,
            "a function that runs without arguments",
            _said(problem),
            "`planaria --debug ...` shows the traceback.",
        ) from problem


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Import from a folder first, for a while: a script finds its neighbours, so does a file that a command names."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _file_module(path: Path) -> Any:
    # Under a name of its own, so that a model.py never collides with an installed `model`.
    name = f"planaria_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _said(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {(str(problem).splitlines() or ['no message'])[0]}"
