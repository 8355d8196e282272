"""Errors that say what was wrong, with what, and what to do about it.

Every error names the object and the field, what was expected, what came, and the remedy. The command line prints
the message without a traceback and exits with `exit_code`. A scientific negative (not rescued, no transition) is a
value in a result and never an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PlanariaError(Exception):
    """Any error raised on purpose by planaria.

    Message: "`where`: expected `expected`, got `got`. `remedy`".

    Args:
        where: Object and field, for example "Task.test.targets" or "--doses".
        expected: What is right, as a noun phrase.
        got: What came.
        remedy: A sentence that says what to do. May be empty.

    Example:
        >>> print(PlanariaError("Dose", "a number from 0 to 1", 1.5, "Give a fraction."))
        Dose: expected a number from 0 to 1, got 1.5. Give a fraction.
    """

    exit_code = 2

    def __init__(self, where: str, expected: str, got: object, remedy: str = "") -> None:
        self.where, self.expected, self.got, self.remedy = where, expected, got, remedy
        super().__init__(f"{where}: expected {expected}, got {got}. {remedy}".rstrip())

    def __reduce__(self) -> tuple[type[PlanariaError], tuple[object, ...]]:
        """Errors of worker processes arrive whole."""
        return type(self), (self.where, self.expected, self.got, self.remedy)


class InputError(PlanariaError, ValueError):
    """A value from the user is unusable (exit code 2)."""


class AnatomyError(PlanariaError):
    """A unit cannot be addressed or cannot be silenced exactly; names layer and reason (exit code 2)."""


class UnsafeError(PlanariaError):
    """A file was refused because loading it could execute code (exit code 4)."""

    exit_code = 4


class EnvironmentProblem(PlanariaError):
    """The machine lacks something: an extra, a device, disk space (exit code 5)."""

    exit_code = 5


def nearest(word: str, known: Iterable[str]) -> str:
    """Sentence that offers the known names closest to a mistyped word, or lists them all.

    Example:
        >>> nearest("retrian", ["refit", "retrain"])
        'Did you mean retrain? Known: refit, retrain.'
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return f"{hint}Known: {', '.join(names)}."
