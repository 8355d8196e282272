"""The benchmark suite of the sweep engine: exact maps, curves, screens and retraining against brute force and peers.

    python benchmarks/sweep.py [--quick] [--json] [--only B1,B3] [--save]

Every row times all ways in turn within one run (A B A B), asserts in that run that ours is exact, and gives medians
of paired ratios with the least and the most. Naive ways are timed on a stratified subset of the units and scaled. One
thread where nothing else is said. Networks and data are made on the spot, without downloads, and cached in the folder
for temporary files. `--quick` takes fewer examples and repetitions and ends within 40 seconds; the whole takes up to
15 minutes. `--json` prints a list of rows. `--save` writes results/sweep.json and results/sweep.md beside this file,
with the machine's description; with `--only`, rows of other benchmarks stay as they were.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from suite.harness import Row, machine

RESULTS = Path(__file__).parent / "results"

Benchmark = Callable[[bool], list[Row]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 if any benchmark failed, most of all its exactness."""
    parser = argparse.ArgumentParser(description="Benchmarks of the sweep engine.")
    parser.add_argument("--quick", action="store_true", help="fewer examples and repetitions, within 40 seconds")
    parser.add_argument("--json", action="store_true", help="print a list of rows instead of a table")
    parser.add_argument("--only", metavar="B1,B3", default="", help="these benchmarks; all if not given")
    parser.add_argument("--save", action="store_true", help="write results/sweep.json and results/sweep.md")
    options = parser.parse_args(arguments)
    known, failed = benchmarks()
    wanted = [name for name in options.only.split(",") if name] or list(known)
    for name in wanted:
        if name not in known:
            parser.error(f"no benchmark {name!r}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    here: dict[str, Any] = machine()
    rows: list[Row] = []
    begun = time.perf_counter()
    for name in wanted:
        start, cpu = time.perf_counter(), time.process_time()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows += known[name](options.quick)
        except Exception as problem:  # the others still run
            failed.append(f"{name}: {type(problem).__name__}: {problem}")
        spent = time.perf_counter() - start
        print(f"{spent:.1f} s, {time.process_time() - cpu:.1f} s of CPU", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - begun
    print(json.dumps([asdict(row) for row in rows], indent=1) if options.json else text(here, rows, seconds))
    for line in failed:
        print(f"FAILED {line}", file=sys.stderr)
    if options.save and not failed:
        save(here, rows, options.quick)
    return 1 if failed else 0


def benchmarks() -> tuple[dict[str, Benchmark], list[str]]:
    """Id -> benchmark, of all modules of the suite, B1 before B10; and which modules could not be imported, and why."""
    found: dict[str, Benchmark] = {}
    failed = []
    for name in sorted(path.stem for path in (Path(__file__).parent / "suite").glob("*.py")):
        try:
            found |= getattr(import_module(f"suite.{name}"), "BENCHMARKS", {})
        except ImportError as problem:
            failed.append(f"suite.{name}: {problem}")
    return {name: found[name] for name in sorted(found, key=rank)}, failed


def save(here: dict[str, Any], rows: list[Row], quick: bool) -> None:
    """Write the results, rows of benchmarks that were not run kept."""
    place = RESULTS / "sweep.json"
    kept = json.loads(place.read_text(encoding="utf-8"))["rows"] if place.exists() else []
    new = {benchmark(row) for row in rows}
    rows = [row for row in (Row(**fields) for fields in kept) if benchmark(row) not in new] + rows
    rows.sort(key=lambda row: rank(benchmark(row)))  # stable: the rows of one benchmark stay in its order
    document = {"machine": here, "quick": quick, "rows": [asdict(row) for row in rows]}
    place.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "sweep.md").write_text(text(here, rows, None), encoding="utf-8")


def benchmark(row: Row) -> str:
    """Id of the benchmark that a row is from; the row's may say more, as in "B6 bitwise"."""
    return row.id.split()[0]


def rank(name: str) -> tuple[int, str]:
    """B1 before B3b before B10."""
    return int("".join(filter(str.isdigit, name))), name


# ------------------------------------------------------------------------------------------------------ table

COLUMNS = (
    "id",
    "work",
    "naive s",
    "ours s",
    "ratio (least - most)",
    "same route",
    "forwards",
    "peer",
    "x peer",
    "max difference",
    "peak MiB",
    "goal",
)


def text(here: dict[str, Any], rows: list[Row], seconds: float | None) -> str:
    """The machine and the rows as Markdown."""
    lines = ["# Benchmarks of the sweep engine", ""]
    lines += [f"- {key}: {value}" for key, value in here.items()]
    lines += [] if seconds is None else [f"- all benchmarks took {seconds:.0f} s"]
    lines += ["", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    lines += [
        "",
        "Seconds of CPU with one thread, of the wall with more; naive seconds are scaled up from a stratified subset.",
        "Ratio: theirs over ours, median of paired runs. Same route: the naive way on the matrix library that ours",
        "uses. Forwards: ours over one eager in-memory forward pass over the same inputs. Exactness against brute",
        "force is asserted in every run.",
        "",
    ]
    return "\n".join(lines)


def cells(row: Row) -> list[str]:
    """The row's cells as text."""
    ratio = number(row.ratio_naive)
    if row.ratio_least is not None:
        ratio += f" ({number(row.ratio_least)} - {number(row.ratio_most)})"
    peer = "; ".join([row.peer, *(f"{name}: {number(value)}x" for name, value in row.ratio_others.items())])
    return [
        row.id,
        row.work + (f", {row.threads} threads" if row.threads > 1 else ""),
        number(row.naive_s),
        number(row.ours_s),
        ratio,
        number(row.ratio_same_route),
        number(row.forwards_equivalent),
        peer,
        number(row.ratio_peer),
        number(row.max_score_difference),
        number(row.peak_mib),
        row.goal and f"{row.goal}: {'met' if row.met else 'not met'}",
    ]


def number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
