"""Shards: blocks of inputs worked through by one process or several, with one result."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import Tensor

from planaria.core.devices import clock
from planaria.core.errors import EnvironmentProblem
from planaria.sweep.tally import Tally
from planaria.sweep.work import Work

Blocks = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True, eq=False)
class Part:
    """Result of some blocks; parts of disjoint inputs add.

    Attributes:
        tallies: By key.
        examples: Inputs.
        intact: Sum of the intact scores.
        classes: Examples of each class, or None.
        seconds: See `clock`; CPU seconds of whichever process.
    """

    tallies: dict[str, Tally]
    examples: int
    intact: float
    classes: Tensor | None
    seconds: float

    def __add__(self, other: Part) -> Part:
        """The result over both sets of inputs."""
        both = None
        if self.classes is not None and other.classes is not None:
            both = self.classes + other.classes
        return Part(
            {key: tally + other.tallies[key] for key, tally in self.tallies.items()},
            self.examples + other.examples,
            self.intact + other.intact,
            both,
            self.seconds + other.seconds,
        )


def worked(work: Work, blocks: Blocks, workers: int, progress: Callable[[int], None] | None) -> Part:
    """All blocks, shared by some processes; the result does not depend on their number.

    Args:
        work: What to do on each block.
        blocks: Makes an iterator of (inputs, targets), the same each time; every process reads all of it.
        workers: Processes, each with one thread. Only the CPU is shared; elsewhere one process does all.
        progress: Told the number of examples done so far.

    Raises:
        EnvironmentProblem: Not even one example fits into memory.
    """
    numbered: dict[int, Part] = {}
    done = 0

    def finish(number: int, part: Part) -> None:
        nonlocal done
        numbered[number] = part
        done += part.examples
        if progress is not None:
            progress(done)

    total = None
    if workers > 1 and work.net.device.type == "cpu" and "fork" in multiprocessing.get_all_start_methods():
        total = _share(work, blocks, workers, finish)
    if len(numbered) != total:  # there are no workers, or one died
        for number, (inputs, targets) in enumerate(blocks()):
            if number not in numbered:
                finish(number, _block(work, inputs, targets))
    whole = numbered[0]
    for number in range(1, len(numbered)):
        whole = whole + numbered[number]
    return whole


def _block(work: Work, inputs: Tensor, targets: Tensor) -> Part:
    """One block; split where memory runs out."""
    started = clock(work.net.device)
    done: tuple[dict[str, Tally], Tensor] | None = None
    try:
        done = work.tally(inputs.to(work.net.device), targets.to(work.net.device))
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
    if done is None:  # only now: while the error is at hand, so is the memory of the pass that it ended
        if len(inputs) == 1:
            raise EnvironmentProblem(
                "ablate", "memory for one example", "none left", "Use a machine with more memory, or fewer lesions."
            )
        half = len(inputs) // 2
        return _block(work, inputs[:half], targets[:half]) + _block(work, inputs[half:], targets[half:])
    tallies, intact = done
    classes = work.judge.classes
    counted = None if classes is None else torch.bincount(targets.cpu(), minlength=classes)
    return Part(
        {key: tally.to("cpu") for key, tally in tallies.items()},
        len(inputs),
        float(intact.sum()),
        counted,
        clock(work.net.device) - started,
    )


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _share(work: Work, blocks: Blocks, workers: int, finish: Callable[[int, Part], None]) -> int | None:
    """Let forked processes do every workers-th block each; what they do not deliver stays undone.

    Returns:
        Number of blocks, if a worker has read to the end.
    """
    context: Any = multiprocessing.get_context("fork")
    pipes: dict[Connection, Any] = {}
    total: int | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads; the children start none
            for worker in range(workers):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_serve, args=(theirs, work, blocks, worker, workers), daemon=True)
                process.start()
                theirs.close()
                pipes[ours] = process
        while pipes:
            for pipe in wait(list(pipes)):
                assert isinstance(pipe, Connection)
                try:
                    message = pickle.loads(pipe.recv_bytes())  # from our own child
                except EOFError:
                    pipes.pop(pipe).join()
                    continue
                if isinstance(message, Exception):
                    raise message
                if isinstance(message, int):
                    total = message
                else:
                    finish(*message)
    finally:
        for process in pipes.values():
            process.terminate()
        for process in pipes.values():
            process.join()
    return total


def _serve(pipe: Connection, work: Work, blocks: Blocks, worker: int, workers: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the caller's, who ends its workers
    torch.set_num_threads(1)  # a forked process must not start threads of its own
    number = 0
    try:
        for inputs, targets in blocks():
            if number % workers == worker:
                pipe.send_bytes(pickle.dumps((number, _block(work, inputs, targets))))
            number += 1
        pipe.send_bytes(pickle.dumps(number))
    except Exception as error:
        # One that cannot be told is met again by the caller, who does what is left undone.
        with suppress(Exception):
            told = pickle.dumps(error)
            pickle.loads(told)
            pipe.send_bytes(told)
    finally:
        pipe.close()
