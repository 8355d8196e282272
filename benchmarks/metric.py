"""The benchmarks of the functional metric: products, damped solves and spectra against curvlinops and torch.func.

    python benchmarks/metric.py [--quick] [--json] [--only B13,B14] [--repetitions 5] [--save]

Rows, timing and memory as in sweep.py: all ways in turn within one run (A B A B), agreement asserted in that run,
medians of paired ratios, one thread. curvlinops takes part where it can be imported (`pip install
curvlinops-for-pytorch`). `--quick` takes fewer inputs and repetitions and ends within 40 seconds; the whole takes up to
5 minutes. `--save` writes results/metric.json and results/metric.md beside this file, with the machine's description;
with `--only`, rows of other benchmarks stay as they were.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from suite.curvature import METRIC
from suite.harness import Row, machine, repetitions
from sweep import benchmark, number, rank

RESULTS = Path(__file__).parent / "results"

COLUMNS = ("id", "work", "torch.func s", "ours s", "x torch.func", "peer", "peer s", "x peer", "difference")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 if any benchmark failed, most of all its agreement."""
    parser = argparse.ArgumentParser(description="Benchmarks of the functional metric.")
    parser.add_argument("--quick", action="store_true", help="fewer inputs and repetitions, within 40 seconds")
    parser.add_argument("--json", action="store_true", help="print a list of rows instead of a table")
    parser.add_argument("--only", metavar="B13,B14", default="", help="these benchmarks; all if not given")
    parser.add_argument("--repetitions", type=int, default=0, help="of products; solves and spectra at most 3")
    parser.add_argument("--save", action="store_true", help="write results/metric.json and results/metric.md")
    options = parser.parse_args(arguments)
    wanted = [name for name in options.only.split(",") if name] or list(METRIC)
    for name in wanted:
        if name not in METRIC:
            parser.error(f"no benchmark {name!r}; there are {', '.join(METRIC)}")
    torch.set_num_threads(1)
    here, rows, failed = machine(), [], []
    for name in wanted:
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows += METRIC[name](options.quick, options.repetitions or repetitions(options.quick))
        except Exception as problem:  # the others still run
            failed.append(f"{name}: {type(problem).__name__}: {problem}")
        print(f"{name} {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    print(json.dumps([asdict(row) for row in rows], indent=1) if options.json else text(here, rows))
    for line in failed:
        print(f"FAILED {line}", file=sys.stderr)
    if options.save and not failed:
        save(here, rows, options.quick)
    return 1 if failed else 0


def save(here: dict[str, Any], rows: list[Row], quick: bool) -> None:
    """Write the results, rows of benchmarks that were not run kept."""
    place = RESULTS / "metric.json"
    kept = json.loads(place.read_text(encoding="utf-8"))["rows"] if place.exists() else []
    new = {benchmark(row) for row in rows}
    rows = [row for row in (Row(**fields) for fields in kept) if benchmark(row) not in new] + rows
    rows.sort(key=lambda row: rank(benchmark(row)))  # stable: the rows of one benchmark stay in its order
    document = {"machine": here, "quick": quick, "rows": [asdict(row) for row in rows]}
    place.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "metric.md").write_text(text(here, rows), encoding="utf-8")


def text(here: dict[str, Any], rows: list[Row]) -> str:
    """The machine and the rows as Markdown."""
    columns = (*COLUMNS, "peak MiB", "goal")
    lines = ["# Benchmarks of the functional metric", "", *(f"- {key}: {value}" for key, value in here.items()), ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    lines += [
        "",
        "Seconds of CPU with one thread; ratios are times of the other way over ours, medians of paired runs.",
        "Difference: of products and eigenvalues, relative; of solves, our residual under the peer's product.",
        "All are asserted in every run. Solves and spectra begin with nothing kept.",
        "Products are timed after 14 products by every way; set-up is what these took ours beyond 14 timed products.",
        "By passes a product takes four matrix products per layer; curvlinops repeats the forward pass and takes six:",
        "1.5x is what caching the graph gives where these decide. Ours then keeps factors of J, where memory allows:",
        "one backward pass per output of an example once, and two matrix products per layer in every product.",
        "",
    ]
    return "\n".join(lines)


def cells(row: Row) -> list[str]:
    """The row's cells as text."""
    others = "".join(f"; {name}: {number(value)}x" for name, value in row.ratio_others.items())
    return [
        row.id,
        row.work,
        number(row.naive_s),
        number(row.ours_s),
        number(row.ratio_naive),
        row.peer + others,
        number(row.peer_s),
        number(row.ratio_peer),
        number(row.max_score_difference),
        number(row.peak_mib),
        row.goal and f"{row.goal}: {'met' if row.met else 'not met'}",
    ]


if __name__ == "__main__":
    sys.exit(main())
