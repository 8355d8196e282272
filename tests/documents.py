"""Result documents made up by hand, with the shape and the rough numbers of real ones, and a reader of pages."""

from __future__ import annotations

import json
import math
import random
from html.parser import HTMLParser
from typing import Any

BUDGET, TOLERANCE, BATCH = 2000, 0.01, 128
# How fast and how far each made-up repair brings the score back: time scale in updates, share left lost per
# dose^4.
REPAIRS = {
    "refit": (0.0, 0.020),
    "refit+retrain": (180.0, 0.005),
    "retrain": (160.0, 0.006),
    "regrow": (230.0, 0.0085),
    "regrow-new": (420.0, 0.09),
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
        "warnings": ["Refit from a sidecar reads the incoming weights of dead units; here they were still readable."],
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


def trial(rng: random.Random, repair: str, dose: float, seed: int, intact: float, *, hopeless: bool) -> dict[str, Any]:
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
            score = best - (best - start) * math.exp(-(((updates - hits) / scale) ** 0.8)) + rng.gauss(0, 0.0007)
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
        "rescue_cost_since_last_hit": None if hit is None else cost(curve[hit]["updates"] - hits, images=images),
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


class Page(HTMLParser):
    """What a browser would load, run and show of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.scripts: list[str] = []
        self.figures: list[dict[str, Any]] = []
        self.words = ""
        self._inside: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.loads += [found[key] or "" for key in ("src", "srcset", "data", "poster") if key in found]
        self.loads += [found["href"] or ""] if tag == "link" and "href" in found else []
        self.links += [found["href"] or ""] if tag == "a" and "href" in found else []
        if tag in ("script", "style"):
            self._inside.append((tag, found))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        tag, found = self._inside[-1] if self._inside else ("", {})
        if tag == "":
            self.words += data
        elif tag == "script" and found.get("class") == "figure":
            self.figures.append(json.loads(data))
        elif tag == "script":
            self.scripts.append(data)


# ------------------------------------------------------------------------- verdicts, portrait, lives, hardening


def estimate(best: float, half: float) -> dict[str, float]:
    return {"low": best - half, "best": best, "high": best + half}


def verdicts(number: int) -> list[dict[str, Any]]:
    """As many verdicts as wanted, from short to wordy."""
    found = [
        {
            "question": "Is there a transition?",
            "answer": "crossover",
            "words": "The steepness of the curve goes as width to the power 0.21 [0.08, 0.35], but -0.02 [-0.20, 0.17] "
            "among the larger widths: the growth is not shown to go on, so this is a crossover.",
            "numbers": {
                "exponent": estimate(0.21, 0.135),
                "widths": 5,
                "exponent, larger widths": estimate(-0.02, 0.18),
            },
        },
        {
            "question": "Is iterative repair better than batch repair?",
            "answer": "no, counted in total",
            "words": "Counted after the last hit iterative needs fewer updates, counted in total it needs more.",
            "numbers": {
                "difference in updates, in total": {"low": 110.0, "best": 250.0, "high": 390.0},
                "since the last hit": {"low": -130.0, "best": -80.0, "high": -30.0},
                "p": 0.0031,
                "pairs": 5,
            },
        },
        {
            "question": "Does dropout in training do as well as repair?",
            "answer": "not tested",
            "words": "",
            "numbers": {"reason": "one seed has no interval", "difference": None},
        },
        {
            "question": "Is the rest capacity-limited?",
            "answer": "yes, at dose 70%",
            "words": "Trained from scratch the surviving units reach 96.9% [96.7, 97.1], no more than the best repair.",
            "numbers": {},
        },
    ]
    return [
        {**found[i % 4], "question": found[i % 4]["question"] + (" Again." if i > 3 else "")} for i in range(number)
    ]


def portrait(*, attacked: bool = True) -> dict[str, Any]:
    """Three stages of one network."""
    stages = []
    for stage, score, nll, ece, dead in (
        ("before damage", 0.983, 0.061, 0.008, 0.0),
        ("after damage", 0.682, 1.24, 0.153, 0.5),
        ("after rescue", 0.971, 0.112, 0.021, 0.5),
    ):
        stages.append(
            {
                "stage": stage,
                "score": estimate(score, 0.003),
                "nll": estimate(nll, 0.01),
                "ece": ece,
                "sparsity": 0.61 * dead,
                "compact": {
                    "parameters": int(269322 * (1 - 1.1 * dead)),
                    "bytes": int(1078000 * (1 - 1.1 * dead)),
                    "units_removed": int(512 * dead),
                    "difference": 3.1e-7 if dead else 0.0,
                    "kept": [{"layer": "4", "reason": "its outputs are the network's outputs"}] if dead else [],
                },
                "corruption": [
                    {"name": name, "strength": strength, "score": estimate(score - 0.4 * strength, 0.008)}
                    for name, strength in (("gaussian noise", 0.1), ("gaussian noise", 0.3), ("blur", 1.0))
                ],
                "adversarial": [
                    {"attack": attack, "epsilon": 0.03137, "score": estimate(score * share, 0.02), "examples": 1000}
                    for attack, share in (("PGD", 0.31), ("FGSM", 0.48))
                ]
                if attacked
                else [],
            }
        )
    untested = None if attacked else "foolbox is not installed: pip install 'planaria[attacks]'"
    return {"dose": 0.5, "repair": "refit+retrain", "seed": 0, "stages": stages, "adversarial_untested": untested}


# Share of the hit that is left after repair, per repair.
LIVES = {"none": 1.0, "retrain": 0.09, "refit": 0.2, "refit+retrain": 0.05, "regrow": 0.12, "iterative": 0.1}


def survive_document(
    mode: str = "attrition", *, events: int = 20, seeds: int = 5, repairs: tuple[str, ...] = tuple(LIVES)
) -> dict[str, Any]:
    """A made-up result of `survive`."""
    rng = random.Random(1)
    base = rescue_document(doses=(0.5,), seeds=1, repairs=("refit",))
    entries = [life(rng, repair, mode, events, seeds) for repair in repairs]
    rates = [
        {
            "rate": rate,
            "area": estimate(0.68 + 0.9 * rate - 3.5 * rate**2, 0.012),
            "gain": estimate(0.9 * rate - 3.5 * rate**2, 0.01) if rate else None,
            "score": estimate(0.983 - 0.06 * rate, 0.001),
            "cost": cost(2000),
        }
        for rate in (0.0, 0.02, 0.05, 0.1, 0.2)
    ]
    survival = {
        "mode": mode,
        "unit": "fraction of units",
        "units": 512,
        "events": events,
        "dose": 0.05,
        "delay": 4 if mode == "turnover" else None,
        "burn_in": 5 if mode == "turnover" else 0,
        "tolerance": TOLERANCE,
        "repairs": entries,
        "turnover": {"rates": rates} if mode == "turnover" else None,
    }
    rows = [
        {"repair": entry["repair"], "dose": 0.05, **point, "score_after": None, "cost": cost(10)}
        for entry in entries
        for point in entry["trajectories"]
    ]
    meanings = {repair: f"what {repair} does" for repair in repairs}
    settings = {"damage": base["settings"]["damage"], "seeds": list(range(seeds)), "updates": 100, "meanings": meanings}
    del base["summary"], base["response"]
    return base | {
        "command": "survive",
        "schema": "planaria.survive.v1",
        "rows": rows,
        "settings": settings,
        "survival": survival,
        "verdicts": verdicts(2),
    }


def life(rng: random.Random, repair: str, mode: str, events: int, seeds: int) -> dict[str, Any]:
    """The walks of one repair and what they add up to."""
    points = []
    for seed in range(seeds):
        lost = 0.0
        for event in range(1, events + 1):
            dead = min(event, 4 if mode == "turnover" else events) * 26
            hit = lost + 0.004 + 0.05 * (dead / 512) ** 2 + abs(rng.gauss(0, 0.004)) + 0.06 * (rng.random() < 0.1)
            lost = min(0.88, LIVES[repair] * hit + abs(rng.gauss(0, 0.0015)) + 0.03 * (dead / 512) ** 4)
            points.append(
                {"seed": seed, "event": event, "dead": dead, "hit": 0.9841 - hit, "rescued": 0.9841 - lost}
                | {"inside": lost <= TOLERANCE}
            )
    share = [
        sum(all(p["inside"] for p in points if p["seed"] == seed and p["event"] <= event) for seed in range(seeds))
        / seeds
        for event in range(events + 1)
    ]
    half = next((event for event, left in enumerate(share) if left <= 0.5), None)
    inside = sum(p["inside"] for p in points) / len(points)
    counts: dict[int, list[bool]] = {}
    for point in points:
        counts.setdefault(point["dead"] - 26, []).append(point["inside"])
    return {
        "repair": repair,
        "retention": [
            {
                "dead": dead,
                "dead_to": dead,
                **bounded(sum(kept) / len(kept), 0.5 / len(kept) ** 0.5),
                "trials": len(kept),
            }
            for dead, kept in list(counts.items())[::3]
        ],
        "survival": [
            {"event": event, "dead": 26.0 * event, **bounded(left, 0.25 if event else 0.0)}
            for event, left in enumerate(share)
        ],
        "median_horizon": None if half is None else {"low": max(1, half - 2), "best": half, "high": None},
        "settled_retention": bounded(inside, 0.04) if mode == "turnover" else None,
        "return_time": estimate(1.0 + 5 * LIVES[repair], 0.7) if mode == "turnover" and inside < 1 else None,
        "returns": sum(not p["inside"] for p in points) // 2 if mode == "turnover" else 0,
        "autocorrelation": [1.0, *((0.4 + 2 * LIVES[repair] % 0.5) ** lag - 0.05 for lag in range(1, 7))]
        if mode == "turnover"
        else [],
        "inside": bounded(inside, 0.03),
        "after": estimate(0.983 - 0.9 * (1 - inside) * LIVES[repair], 0.004),
        "cost": cost(0 if repair in ("none", "refit") else 100 * events, images=1024 if "refit" in repair else 0),
        "trajectories": points,
    }


def bounded(best: float, half: float) -> dict[str, float]:
    return {"low": max(0.0, best - half), "best": best, "high": min(1.0, best + half)}


# Intact score, steepness and middle of the response curve, updates to rescue, per method.
METHODS = {
    "plain": (0.9817, 5.0, 0.62, 260),
    "dropout": (0.9809, 6.0, 0.76, 160),
    "targeted": (0.9801, 6.0, 0.74, 170),
    "faults": (0.9766, 8.0, 0.88, 10),
    "damage-repair": (0.9785, 7.0, 0.83, 40),
    "sam": (0.9718, 5.5, 0.70, 140),
    "b3": (0.9795, 6.0, 0.72, 150),
}


def harden_document(methods: tuple[str, ...] = tuple(METHODS)) -> dict[str, Any]:
    """A made-up result of `harden`."""
    base = rescue_document(doses=(0.5,), seeds=1, repairs=("refit",))
    doses, entries, rows = [round(0.1 * i, 1) for i in range(10)], [], []
    for method in methods:
        intact, sharp, middle, updates = METHODS[method]
        curves = {}
        for kind, shift in (("random", 0.0), ("worst", -0.12), ("rescued", 0.28)):
            mean = [0.1 + (intact - 0.1) / (1 + (dose / (middle + shift)) ** sharp) for dose in doses]
            curves[kind] = {
                "doses": doses,
                "mean": mean,
                "low": [value - 0.02 for value in mean],
                "high": [value + 0.02 for value in mean],
            }
        area = {kind: estimate(sum(curve["mean"][1:]) / 9, 0.006) for kind, curve in curves.items()}
        entries.append(
            {
                "method": method,
                "meaning": f"what {method} does",
                "intact": estimate(intact, 0.001),
                "area_random": area["random"],
                "area_worst": area["worst"],
                "area_rescued": area["rescued"],
                "rescue_updates": {"low": updates - 5, "best": updates, "high": updates + 60},
                "rescued": 3,
                "trials": 3,
                "curves": curves,
                "cost": cost(2110),
                "file": f"out/{method}.safetensors",
            }
        )
        rows += [{"method": method, "seed": seed, "dose": 0.5, "score": 0.9, "repair": "none"} for seed in range(3)]
    del base["summary"], base["response"]
    return base | {
        "command": "harden",
        "schema": "planaria.harden.v1",
        "rows": rows,
        "hardening": {"gradient_evaluations": 2110, "methods": entries},
        "verdicts": verdicts(1),
    }


def scaling_document() -> dict[str, Any]:
    """A made-up result of `respond` over several widths."""
    widths, doses = [16, 32, 64, 128, 256], [round(0.05 * i, 2) for i in range(21)]
    curves = []
    for width in widths:
        mean = [0.1 + 0.88 / (1 + math.exp((dose - 0.55) * 5 * width**0.25)) for dose in doses]
        low, high = ([value + sign * 0.3 / width**0.5 for value in mean] for sign in (-1, 1))
        curves.append({"width": width, "doses": doses, "mean": mean, "low": low, "high": high})
    scaling = {
        "widths": widths,
        "steepness": [estimate(1.1 * w**0.25, 0.2) for w in widths],
        "susceptibility": [estimate(0.4 * w**0.1, 0.15) for w in widths],
        "exponent": estimate(0.25, 0.08),
        "susceptibility_exponent": estimate(0.1, 0.12),
        "exponent_of_larger": estimate(0.11, 0.2),
        "breaks": [128, 256],
        "curves": curves,
        "verdict": "crossover",
        "words": "",
    }
    return respond_document() | {"scaling": scaling, "verdicts": verdicts(1)}
