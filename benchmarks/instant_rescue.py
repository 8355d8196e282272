"""The numbers of instant rescue on full data, over several trained networks; appends to a JSON file, so it resumes.

    PLANARIA_DATA=... python benchmarks/instant_rescue.py [mlp|cnn] [networks]

mlp: 784-256-256-10 on MNIST, 59,000 images, AdamW 0.001 with decay 0.3, falling along a half cosine, batch 128, 10
epochs. cnn: conv16-BN-pool-conv32-BN-pool-fc128-fc10 on 20,000 images of Fashion-MNIST, Adam 0.001, likewise, 5 epochs.
One lesion per network and dose: the same fraction of units in every hidden layer, at random. Test accuracy in %. All
retraining and distillation: Adam falling along a half cosine over its budget, from 0.002 where that is about 100
updates, else from 0.001; batch 128.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import planaria as pl
from planaria.measure.models import build
from planaria.measure.weights import pack_weights

RESULTS = Path(__file__).parent / "results"
DEATH = pl.Damage(pl.Silence(), pl.RandomUnits(per_layer=True))
DOSES = {"mlp": (0.1, 0.3, 0.5, 0.7, 0.8, 0.9), "cnn": (0.3, 0.5, 0.7)}


def network(kind: str, task: pl.Task, seed: int, keep: Path) -> pl.Network:
    """A trained network; kept for the next run of the benchmark."""
    text = "mlp:784-256-256-10" if kind == "mlp" else "cnn"
    model = build(text, tuple(task.train.inputs.shape[1:]), 10, seed)
    place = keep / f"{kind}-{seed}.safetensors"
    if place.exists():
        pl.load_weights(model, place)
        return pl.Network.of(model, task.train.inputs)
    number = (10 if kind == "mlp" else 5) * len(task.train) // 128
    optimiser = pl.AdamW(1e-3, decay=0.3) if kind == "mlp" else pl.Adam(1e-3)
    flow = pl.Retrain(task, optimiser, 128, horizon=number)
    start = pl.Network.of(model, task.train.inputs)
    net = pl.settle(flow, pl.updates(number))(start, pl.stream(seed, "train"))
    keep.mkdir(parents=True, exist_ok=True)
    place.write_bytes(pack_weights(net, {}))
    return net


def least(repeat: Callable[[], Any], times: int = 20) -> float:
    """Least CPU time in ms."""
    spent = []
    for _ in range(times):
        start = time.process_time()
        repeat()
        spent.append(1000 * (time.process_time() - start))
    return min(spent)


def measure(kind: str, task: pl.Task, net: pl.Network, seed: int) -> dict[str, Any]:
    """Every repair of one network, dose by dose."""
    inputs = task.train.inputs
    importance = pl.doubt(task.outputs(net, pl.Data(inputs[:20_000], task.train.targets[:20_000])))
    exact = pl.Sidecar.of(net, inputs[:20_000], importance=importance)
    content = exact.pack()
    packed = exact.packed()
    teacher = pl.Teacher(net, inputs[:1024], importance[:1024])
    noise = pl.Teacher(net, pl.dream(net.inputs, 4096 if kind == "mlp" else 1024, pl.stream(seed, "dream")))
    row: dict[str, Any] = {
        "seed": seed,
        "intact": 100 * task.score(net),
        "sidecar_share": len(content) / exact.about["bytes"],
    }

    def once(source: Any, hurt: pl.Network) -> pl.Network:
        return next(pl.Refit(source)(hurt, pl.stream(seed, "refit"))).network

    for dose in DOSES[kind]:
        hurt = DEATH.at(dose)(net, pl.stream(seed, "lesion"))
        scores: dict[str, Any] = {"none": task.score(hurt)}
        for name, source in (
            ("sidecar", exact),
            ("sidecar file", packed),
            ("sequential 1024", teacher),
            ("synthetic", noise),
        ):
            scores[name] = task.score(once(source, hurt))
        if dose in (0.5, 0.9) and kind == "mlp":
            distil = pl.Distil(net, inputs[:1024], pl.Adam(2e-3), temperature=4.0)
            after = pl.settle(distil, pl.updates(100))(once(teacher, hurt), pl.stream(seed, "distil"))
            scores["sequential 1024, 100 distillation updates"] = task.score(after)
        if kind == "mlp" and dose >= 0.5:
            for number in (100, 469, 1407) if dose != 0.7 else (100, 469):
                flow = pl.Retrain(task, pl.Adam(2e-3 if number == 100 else 1e-3), 128, horizon=number)
                for name, start in (("batch", hurt), ("sidecar + batch", once(exact, hurt))):
                    end = pl.settle(flow, pl.updates(number))(start, pl.stream(seed, "repair"))
                    scores[f"{name}, {number} updates"] = task.score(end)
        if kind == "cnn" and dose in (0.5, 0.7):
            number = len(task.train) // 128
            flow = pl.Retrain(task, pl.Adam(2e-3), 128, horizon=number)
            for name, start in (("batch", hurt), ("sequential + batch", once(teacher, hurt))):
                end = pl.settle(flow, pl.updates(number))(start, pl.stream(seed, "repair"))
                scores[f"{name}, {number} updates"] = task.score(end)
        row[f"{dose:g}"] = {name: 100 * score for name, score in scores.items()}
    half = DEATH.at(0.5)(net, pl.stream(seed, "lesion"))
    target = task.score(net, task.validation) - 0.01
    flow, updates = pl.Retrain(task, pl.Adam(1e-3), 128), None
    for name, start in (("masked Adam", half), ("after the sidecar", once(exact, half))) if kind == "mlp" else ():
        updates = 0 if task.score(start, task.validation) >= target else None
        for number, moment in enumerate(flow(start, pl.stream(seed, "repair")), 1) if updates is None else ():
            if number % 10 == 0 and task.score(moment.network, task.validation) >= target:
                updates = number
                break
            if number >= 800:
                break
        row[f"updates to within 1 point at 50 %: {name}"] = updates
    row["ms of CPU: sidecar refit at 50 %"] = least(lambda: once(exact, half))
    row["ms of CPU: sequential refit at 50 %"] = least(lambda: once(teacher, half), 3)
    return row


def main() -> None:
    """Run what is missing."""
    torch.set_num_threads(1)
    kind = sys.argv[1] if len(sys.argv) > 1 else "mlp"
    number = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    place = RESULTS / f"instant-rescue-{kind}.json"
    rows = json.loads(place.read_text()) if place.exists() else []
    task = pl.task("mnist?validation=1000" if kind == "mlp" else "fashion-mnist?train=20000&validation=1000")
    for seed in range(number):
        if any(row["seed"] == seed for row in rows):
            continue
        net = network(kind, task, seed, Path("planaria-runs") / "networks")
        rows.append(measure(kind, task, net, seed))
        place.write_text(json.dumps(rows, indent=1) + "\n")
        print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
