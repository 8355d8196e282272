from __future__ import annotations

import copy
import json
import math
import random
import re
import shutil
import stat
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from planaria.report.figures import ledger_figure, rescue_figure, response_figure, summary_figure
from planaria.report.page import render, write_page

BUDGET, TOLERANCE, BATCH = 2000, 0.01, 128
# How fast and how far each made-up repair brings the score back: time scale in updates, share left lost per
# dose^4.
REPAIRS = {
    "refit": (0.0, 0.020),
    "refit+retrain": (180.0, 0.005),
    "retrain": (160.0, 0.006),
    "regrow": (230.0, 0.0085),
    "regrow-only": (420.0, 0.09),
    "iterative": (120.0, 0.0065),
}


def rescue_document(
    doses: tuple[float, ...] = (0.3, 0.5, 0.7),
    seeds: int = 5,
    repairs: tuple[str, ...] = tuple(REPAIRS),
    *,
    hopeless: bool = False,
) -> dict[str, Any]:
    """A made-up rescue result with the shape and the rough numbers of a real one."""
    rng = random.Random(0)
    intact = 0.9832
    rows = []
    for dose in doses:
        for repair in repairs:
            for seed in range(seeds):
                rows.append(trial(rng, repair, dose, seed, intact, hopeless=hopeless))
    summary = [
        summarise(repair, dose, [r for r in rows if r["repair"] == repair and r["dose"] == dose])
        for dose in doses
        for repair in repairs
    ]
    return {
        "command": "rescue",
        "schema": "planaria.rescue.v1",
        "version": "0.1.0",
        "network": {
            "name": "mlp:784-256-256-10",
            "source": "named",
            "sha256": "9f2c" * 16,
            "parameters": 269322,
            "units": [
                {
                    "layer": "0",
                    "kind": "neuron",
                    "count": 256,
                    "method": "slices",
                    "exact": True,
                    "reason": "",
                },
                {
                    "layer": "2",
                    "kind": "neuron",
                    "count": 256,
                    "method": "slices",
                    "exact": True,
                    "reason": "",
                },
            ],
            "unreached": [{"layer": "4", "reason": "its outputs are the network's outputs"}],
            "trained": {"epochs": 10, "optimiser": "Adam(rate=0.001)", "seed": 0},
        },
        "task": {
            "name": "mnist?mean=0.1307&std=0.3081",
            "score": "accuracy",
            "loss": "cross_entropy",
            "chance": 0.1,
            "classes": 10,
            "input_shape": [1, 28, 28],
            "splits": {"train": 54000, "validation": 6000, "test": 10000},
            "split_rule": "validation = last 10 % of train",
            "sha256": {"train.inputs": "ab" * 32, "test.inputs": "cd" * 32},
            "preprocessing": {"mean": 0.1307, "std": 0.3081},
        },
        "settings": {
            "doses": list(doses),
            "seeds": list(range(seeds)),
            "repairs": list(repairs),
            "damage": "Damage(Silence(), RandomUnits(Dose('fraction of units')))",
            "tolerance": TOLERANCE,
            "consecutive": 3,
            "updates": BUDGET,
            "batch": BATCH,
            "optimiser": "Adam(rate=0.001)",
        },
        "intact": {"test": intact, "validation": 0.9841, "interval": [0.9805, 0.9855]},
        "rows": rows,
        "summary": summary,
        "response": response(rng, intact),
        "warnings": [
            "Refit from a sidecar reads the incoming weights of dead units; here they were still readable."
        ],
        "files": {"report": "out/report.html", "results": "out/results.csv", "manifest": "out/manifest.json"},
        "manifest": {
            "command_line": [
                "planaria",
                "rescue",
                "--model",
                "mlp:784-256-256-10",
                "--task",
                "mnist",
                "--seeds",
                str(seeds),
            ],
            "versions": {"planaria": "0.1.0", "python": "3.11.9", "torch": "2.13.0+cpu", "numpy": "2.3.1"},
            "threads": 1,
            "seeds": list(range(seeds)),
            "cpu_capability": "AVX512",
        },
    }


def cost(updates: float, *, images: int = 0) -> dict[str, Any]:
    examples = int(updates) * BATCH + images
    return {
        "examples": examples,
        "labels": int(updates) * BATCH,
        "forward_passes": int(updates),
        "backward_passes": int(updates),
        "multiply_adds": int(examples * 3 * 268_800 + 1.4e8 * bool(images)),
        "seconds": 0.0039 * updates + 0.009 * bool(images),
    }


def trial(
    rng: random.Random, repair: str, dose: float, seed: int, intact: float, *, hopeless: bool
) -> dict[str, Any]:
    scale, left = REPAIRS[repair]
    # Every repair gets the same lesion.
    damaged = max(0.1, intact - 0.9 * dose**1.8 + random.Random(f"{dose} {seed}").gauss(0, 0.03))
    best = intact + 0.001 - left * (dose / 0.5) ** 3 - 0.2 * hopeless
    best += rng.gauss(0, 0.001)
    images = 1024 if repair.startswith("refit") else 0
    hits = 0 if repair != "iterative" else int(600 * dose)
    curve = []

    def moment(updates: int, score: float, dead: float, images: int) -> None:
        bill = cost(updates, images=images)
        curve.append(
            {"updates": updates, "validation": round(score, 4), "dead": dead}
            | {key: bill[key] for key in ("examples", "multiply_adds", "seconds")}
        )

    if hits:
        for updates in range(0, hits, 20):
            share = (updates + 20) / hits
            moment(updates, intact - 0.25 * dose * share**2 + rng.gauss(0, 0.004), dose * min(1.0, share), 0)
        start = intact - 0.3 * dose
    else:
        moment(0, damaged, dose, 0)
        start = damaged
        if images:
            start = min(best, intact - 0.03 * (dose / 0.5) ** 3)
            moment(0, start, dose, images)
    if scale:
        for updates in range(hits + 20, BUDGET + 1, 20):
            score = (
                best - (best - start) * math.exp(-(((updates - hits) / scale) ** 0.8)) + rng.gauss(0, 0.0007)
            )
            moment(updates, score, dose, images)
    target = 0.9841 - TOLERANCE
    run = [point["validation"] >= target and point["updates"] >= hits for point in curve]
    hit = next((i for i in range(len(run)) if run[i] and all(run[i : i + 3])), None)
    final = curve[-1]["updates"]
    return {
        "repair": repair,
        "dose": dose,
        "seed": seed,
        "score_before": intact,
        "score_damaged": damaged,
        "score_after": curve[-1]["validation"] - 0.001,
        "rescued": hit is not None,
        "cost": cost(final, images=images),
        "cost_since_last_hit": cost(final - hits, images=images),
        "rescue_cost": None if hit is None else cost(curve[hit]["updates"], images=images),
        "rescue_cost_since_last_hit": None
        if hit is None
        else cost(curve[hit]["updates"] - hits, images=images),
        "validation_before": 0.9841,
        "units_deleted": int(512 * dose),
        "curve": curve,
    }


def summarise(repair: str, dose: float, rows: list[dict[str, Any]]) -> dict[str, Any]:
    def mean(key: str) -> dict[str, float | None]:
        values = [row[key] for row in rows]
        best = sum(values) / len(values)
        if len(values) < 2:
            return {"low": None, "best": best, "high": None}
        half = 1.96 * math.sqrt(sum((v - best) ** 2 for v in values) / (len(values) - 1) / len(values))
        return {"low": best - half, "best": best, "high": best + half}

    def median(key: str) -> dict[str, float | None] | None:
        events = sorted(row[key]["backward_passes"] for row in rows if row[key] is not None)
        needed = (len(rows) + 1) // 2
        if len(events) < needed:
            return None
        return {
            "low": events[0],
            "best": events[needed - 1],
            "high": events[-1] if len(events) == len(rows) else None,
        }

    return {
        "repair": repair,
        "dose": dose,
        "trials": len(rows),
        "before": mean("score_before"),
        "damaged": mean("score_damaged"),
        "after": mean("score_after"),
        "rescued": sum(row["rescued"] for row in rows),
        "rescue_updates": median("rescue_cost"),
        "rescue_updates_since_last_hit": median("rescue_cost_since_last_hit"),
        "cost": {key: sum(row["cost"][key] for row in rows) / len(rows) for key in rows[0]["cost"]},
    }


def response(rng: random.Random, intact: float) -> dict[str, Any]:
    doses = [round(0.05 * i, 2) for i in range(20)]
    draws = []
    for _ in range(20):
        middle, sharp = rng.gauss(0.68, 0.05), rng.gauss(6.5, 0.8)
        draws.append([0.1 + (intact - 0.1) / (1 + (dose / middle) ** sharp) for dose in doses])
    mean = [sum(column) / 20 for column in zip(*draws, strict=True)]
    half = [
        1.96 * math.sqrt(sum((v - m) ** 2 for v in c) / 380)
        for m, c in zip(mean, zip(*draws, strict=True), strict=True)
    ]
    return {
        "doses": doses,
        "mean": mean,
        "low": [m - h for m, h in zip(mean, half, strict=True)],
        "high": [m + h for m, h in zip(mean, half, strict=True)],
        "draws": draws,
        "chance": 0.1,
        "intact": intact,
        "half_dose": {"low": 0.655, "best": 0.678, "high": 0.702},
        "dose_of_10_point_loss": {"low": 0.462, "best": 0.487, "high": 0.511},
        "critical_dose": {"low": 0.47, "best": 0.531, "high": 0.58},
        "critical_verdict": "break at 0.53, a smooth curve fits as well",
        "unit": "fraction of units",
    }


def respond_document() -> dict[str, Any]:
    document = rescue_document(seeds=1)
    curve = document["response"]
    rows = [
        {"draw": draw, "dose": dose, "score": score, "seed": 0}
        for draw, scores in enumerate(curve["draws"])
        for dose, score in zip(curve["doses"], scores, strict=True)
    ]
    del document["summary"], document["settings"]["repairs"]
    return document | {"command": "respond", "schema": "planaria.respond.v1", "rows": rows}
