"""Screen: progress and words on stderr, results on stdout, and a stop that loses nothing."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from planaria.measure.statistics import finite
from planaria.version import version

PLAIN_EVERY = 30.0
"""Seconds between progress lines where stderr is no terminal."""


class Stopped(Exception):
    """The user asked to stop; what was running has been finished and recorded."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Screen:
    """Where a command talks to.

    Attributes:
        out: Folder for results, None for a new one.
        fresh: Start over.
        dry_run: Write nothing.
        as_json: One JSON document on stdout.
        quiet: No progress.
        asked: Signal that asked to stop; 0 for none.
    """

    out: Path | None
    fresh: bool
    dry_run: bool
    as_json: bool
    quiet: bool
    asked: int = 0
    errors: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    results: Console = field(default_factory=lambda: Console(highlight=False))

    def say(self, text: str) -> None:
        """One line on stderr, unless quiet."""
        if not self.quiet:
            self.errors.print(text, style="dim", markup=False)

    def stopped(self, stop: Stopped, folder: Path) -> int:
        """Say where the finished part is; returns the exit code."""
        self.errors.print(f"Stopped; what is finished is kept in {folder}. The same command goes on.")
        return stop.code

    def warn(self, text: str) -> None:
        """A warning on stderr."""
        self.errors.print(f"Warning: {text}", style="yellow", markup=False)

    def table(self, grid: Table) -> None:
        """A table on stdout; wide enough for itself where stdout is no terminal."""
        if not self.results.is_terminal:
            wide = self.results.measure(grid, options=self.results.options.update(max_width=400)).maximum
            self.results.width = max(self.results.width, wide)
        self.results.print(grid)

    def places(self, files: dict[str, str | None]) -> None:
        """Where the files are, on stdout."""
        for name, path in files.items():
            if path is not None:
                self.results.print(f"{name:<9} {path}", markup=False, soft_wrap=True)

    def document(self, document: dict[str, Any]) -> None:
        """Print the document, if asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(finite(document), allow_nan=False) + "\n")

    @contextmanager
    def progress(self, total: int, what: str) -> Iterator[Steps]:
        """A bar on a terminal, a plain line every half minute elsewhere; stops between steps when asked to."""
        steps = Steps(self, total, what)
        with steps:
            yield steps


class Steps:
    """Progress through a known number of steps. First Ctrl-C: stop after the running step. Second: at once."""

    def __init__(self, screen: Screen, total: int, what: str) -> None:
        self._screen, self._total, self._what, self._done = screen, total, what, 0
        self._last = time.monotonic()
        self._bar: Progress | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Steps:
        if self._screen.asked:  # in the last step of what came before
            raise Stopped(128 + self._screen.asked)
        if not self._screen.quiet and self._screen.errors.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._screen.errors,
                transient=True,
            )
            self._bar.start()
            self._bar.add_task(self._what, total=self._total)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self._bar is not None:
            self._bar.stop()

    def _asked(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._screen.asked:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self._screen.asked = number
        self._screen.errors.print("Stopping after what is running now; once more to stop at once.", style="yellow")

    def done(self, count: int = 1, what: str | None = None) -> None:
        """Some steps are finished and recorded.

        Raises:
            Stopped: If the user has asked to stop and steps are left.
        """
        self._done += count
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, description=what or self._what)
        elif not self._screen.quiet and time.monotonic() - self._last >= PLAIN_EVERY:
            self._last = time.monotonic()
            self._screen.say(f"{self._done} of {self._total} {self._what}")
        if self._screen.asked and self._done < self._total:
            raise Stopped(128 + self._screen.asked)


def surroundings(threads: int) -> dict[str, Any]:
    """What the run happened on and with: versions, machine, command line."""
    import numpy
    import torch

    return {
        "command_line": ["planaria", *sys.argv[1:]],
        "versions": {
            "planaria": version(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
        "platform": platform.platform(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
