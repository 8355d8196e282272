"""What every benchmark of the suite shares: rows, interleaved timing, exactness, memory, the machine.

A suite module exports `BENCHMARKS`, a dictionary from id ("B1") to a function `(quick) -> list[Row]`. Such a function

    times = interleave({"naive": ..., SAME_ROUTE: ..., "ours": ..., "peer": ...}, repetitions(quick))
    return [row("B1", "MLP unit map, accuracy", times, naive_scale=768 / 12, forward_s=one_forward(...), ...)]

times all ways in turn (A B A B), naive ones on a stratified subset that `naive_scale` scales up to the whole, asserts
exactness (`assert_exact`) on what the timed ways returned, and never compares times from different runs. In the quick
tier each benchmark has about 2 seconds.
"""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from planaria.core.gemm import DEFAULT, fast_products, fastest_route

T = TypeVar("T")

SAME_ROUTE = "naive, same route"
"""Name of the naive way when it runs under the matrix route that ours takes."""

TIE = 1e-4
"""Predictions count where brute force's two largest outputs differ by more than this times the largest |output|."""


@dataclass(frozen=True)
class Row:
    """One line of the table; seconds are of one thread's CPU, or of the wall where `threads` is above 1.

    `ratio_*` are times of the other way over ours, medians over paired runs, with the least and the most of the first;
    None where there is no such way. `goal` says in words what was asked for, `met` whether this run reached it.
    """

    id: str
    work: str
    naive_s: float | None
    ours_s: float
    peer: str
    peer_s: float | None
    ratio_naive: float | None
    ratio_same_route: float | None
    ratio_peer: float | None
    forwards_equivalent: float | None
    max_score_difference: float
    peak_mib: float | None
    ratio_least: float | None = None
    ratio_most: float | None = None
    threads: int = 1
    goal: str = ""
    met: bool | None = None
    ratio_others: dict[str, float] = field(default_factory=dict)
    """Further ways -> time of theirs over ours."""


class Ratio(NamedTuple):
    """Median, least and most of paired ratios."""

    median: float
    least: float
    most: float


# ------------------------------------------------------------------------------------------------------- time


def repetitions(quick: bool) -> int:
    """How often each way is run."""
    return 2 if quick else 7


def interleave(
    ways: Mapping[str, Callable[[], Any]], repetitions: int, *, warm: bool | None = None
) -> dict[str, list[float]]:
    """Seconds of each way, run in turn (A B A B) so that noise of the machine falls on all of them.

    CPU seconds of this process with one thread, else wall seconds. Where torch's own matrix route is the fastest, the
    naive way on the same route is the naive way, and is not run again.

    Args:
        ways: Name -> work.
        repetitions: Runs of each that count.
        warm: Whether each is run once before, uncounted; by default all in the full tier, in the quick one only ours.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    if {"naive", SAME_ROUTE} <= ways.keys() and fastest_route().name == DEFAULT:
        times = interleave({name: way for name, way in ways.items() if name != SAME_ROUTE}, repetitions, warm=warm)
        return {**times, SAME_ROUTE: times["naive"]}
    times = {name: [] for name in ways}
    for name, work in ways.items():
        if warm or (warm is None and (repetitions > 3 or name == "ours")):
            work()
    for _ in range(repetitions):
        for name, work in ways.items():
            start = clock()
            work()
            times[name].append(clock() - start)
    return times


def median_ratio(times: Mapping[str, Sequence[float]], naive: str, ours: str, scale: float = 1.0) -> Ratio:
    """Time of one way over that of another, turn by turn; `scale` is what the first was a subset of."""
    ratios = [scale * a / max(b, 1e-9) for a, b in zip(times[naive], times[ours], strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def one_forward(net: Callable[[Tensor], Any], inputs: Tensor, batch: int | None = None) -> float:
    """Seconds of one eager in-memory forward pass over the inputs: the machine-independent unit of cost.

    Args:
        net: A module in eval mode or a Network.
        inputs: [examples, ...].
        batch: Examples at a time; all at once if None.
    """

    def forward() -> None:
        with torch.no_grad():
            for part in inputs.split(batch or len(inputs)):
                net(part)

    return statistics.median(interleave({"forward": forward}, 5)["forward"])


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many torch threads, and the former number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same_route(work: Callable[[], T]) -> Callable[[], T]:
    """The work, run by the matrix route that the engine takes; for the column that shows the algorithm alone."""

    def routed() -> T:
        with fast_products():
            return work()

    return routed


# ------------------------------------------------------------------------------------------ exactness, memory


def assert_exact(brute: Tensor, ours: Tensor, what: str) -> tuple[float, int]:
    """Fail unless two sets of outputs predict the same wherever brute force's top-2 margin is no tie.

    Args:
        brute: Outputs by brute force [..., classes].
        ours: The same by the way under test.
        what: Name for the message.

    Returns:
        Largest difference of any finite output, and the number of ties.
    """
    scale = float(brute.abs().nan_to_num(0.0, 0.0).max())
    top = brute.topk(2, -1).values
    clear = (top[..., 0] - top[..., 1]) > TIE * scale
    wrong = int(((brute.argmax(-1) != ours.argmax(-1)) & clear).sum())
    assert not wrong, f"{what}: {wrong} of {clear.numel()} predictions differ from brute force"
    return float((brute - ours).abs().nan_to_num(0.0, 0.0).max()), int((~clear).sum())


def assert_scores(brute: Tensor, ours: Tensor, ties: Tensor | float, what: str) -> float:
    """Fail unless scores agree up to the share of examples that are ties; the largest difference.

    Args:
        brute: Scores by brute force [lesions].
        ours: The same by the way under test.
        ties: Share of tied examples per lesion, or one number for all.
        what: Name for the message.
    """
    difference = (brute.double() - ours.double()).abs()
    allowed = torch.as_tensor(ties, dtype=torch.float64) + 1e-9
    assert bool((difference <= allowed).all()), f"{what}: scores differ by {float(difference.max()):.3g} beyond ties"
    return float(difference.max())


def peak_mib(work: Callable[[], Any]) -> float | None:
    """Most memory that the work holds beyond what the process held before, in MiB; None where Linux is not there."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else memory that malloc kept would hide what is taken now
        reset.write_text("5")  # the high-water mark falls to what is held
    except (OSError, AttributeError):
        return None

    def read(key: str) -> float:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key)) / 1024

    before = read("VmRSS:")
    work()
    return max(0.0, read("VmHWM:") - before)


# ------------------------------------------------------------------------------------------------------- rows


def row(
    id: str,
    work: str,
    times: Mapping[str, Sequence[float]],
    *,
    naive_scale: float = 1.0,
    forward_s: float | None = None,
    peer: str = "",
    peer_scale: float = 1.0,
    difference: float = 0.0,
    peak: float | None = None,
    at_least: Mapping[str, float] | None = None,
    at_most: Mapping[str, float] | None = None,
) -> Row:
    """A row from interleaved times: ways "ours", and where there are such "naive", `SAME_ROUTE` and "peer".

    Args:
        id: Number in the suite.
        work: What was done, in words.
        times: From `interleave`. Ways of other names count as further peers.
        naive_scale: Whole work over what the naive ways did of it.
        forward_s: Seconds of one forward over the same inputs, from `one_forward`.
        peer: What "peer" is; without a way "peer", why there is none.
        peer_scale: Whole work over what the peers did of it.
        difference: Largest difference of score (or output) from brute force.
        peak: From `peak_mib`.
        at_least: Field of the row -> goal that it must reach.
        at_most: Field of the row -> goal that it must not exceed.
    """

    def ratio(way: str, scale: float) -> Ratio | None:
        return median_ratio(times, way, "ours", scale) if way in times else None

    def seconds(way: str, scale: float = 1.0) -> float | None:
        return scale * statistics.median(times[way]) if way in times else None

    ours_s = statistics.median(times["ours"])
    naive, same, by_peer = ratio("naive", naive_scale), ratio(SAME_ROUTE, naive_scale), ratio("peer", peer_scale)
    values: dict[str, Any] = {
        "naive_s": seconds("naive", naive_scale),
        "ours_s": ours_s,
        "peer_s": seconds("peer", peer_scale),
        "ratio_naive": naive and naive.median,
        "ratio_same_route": same and same.median,
        "ratio_peer": by_peer and by_peer.median,
        "forwards_equivalent": ours_s / forward_s if forward_s else None,
        "max_score_difference": difference,
        "peak_mib": peak,
    }
    others = {way: ratio(way, peer_scale) for way in times if way not in {"naive", SAME_ROUTE, "ours", "peer"}}
    goals = [(key, "at least", bound) for key, bound in (at_least or {}).items()]
    goals += [(key, "at most", bound) for key, bound in (at_most or {}).items()]
    met = all(
        values[key] is not None and (values[key] >= bound if sense == "at least" else values[key] <= bound)
        for key, sense, bound in goals
    )
    return Row(
        id,
        work,
        **values,
        peer=peer,
        ratio_least=naive and naive.least,
        ratio_most=naive and naive.most,
        threads=torch.get_num_threads(),
        goal=", ".join(f"{key} {sense} {bound:g}" for key, sense, bound in goals),
        met=met if goals else None,
        ratio_others={way: found.median for way, found in others.items() if found},
    )


def machine() -> dict[str, Any]:
    """The machine as it is now: processor, cores, memory, load, torch, route of float32 products, allocator."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        model = f"{fields.get('model name', model)}, family {fields.get('cpu family')} model {fields.get('model')}"
    route = fastest_route()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return {
        "processor": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_gib": memory and round(memory, 1),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "matrix_route": route.name,
        "gflops": {name: round(speed) for name, speed in route.speeds.items()},
        "malloc": {key: value for key, value in os.environ.items() if key.startswith("MALLOC_")},
    }
