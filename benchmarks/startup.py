"""What a user waits for before anything happens, and what a refit costs against retraining; one run, medians.

    python benchmarks/startup.py

Ratios are against a bare interpreter, and against one update of retraining on the same network.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from planaria.core.motion import settle, updates
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits
from planaria.measure.datasets import task
from planaria.measure.models import build
from planaria.repair.refit import Refit, Sidecar
from planaria.repair.retrain import Retrain

REPEATS = 7


def process(*arguments: str) -> float:
    """Median seconds of a Python process."""
    return timed(lambda: subprocess.run([sys.executable, *arguments], capture_output=True, check=True))


def timed(work: Callable[[], object]) -> float:
    """Median seconds of a piece of work."""
    work()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    """Measure and print one JSON document."""
    torch.set_num_threads(1)
    bare, door, shown = process("-c", "pass"), process("-c", "import planaria"), process("-m", "planaria", "--help")
    digits = task("digits")
    net = Network.of(build("mlp:64-256-256-10", (64,), 10, 0), digits.train.inputs)
    sidecar = Sidecar.of(net, digits.train.inputs)
    retrain = Retrain(digits, batch=128)
    update = timed(lambda: settle(retrain, updates(20))(net, stream(0, "update"))) / 20
    rows = {}
    for dose in (0.1, 0.5, 0.9):
        hurt = Damage(Silence(), RandomUnits(per_layer=True)).at(dose)(net, stream(0, "lesion"))
        rows[dose] = timed(lambda hurt=hurt: next(Refit(sidecar)(hurt, stream(0, "refit"))))  # type: ignore[misc]
    document = {
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}",
        "threads": 1,
        "interpreter_s": round(bare, 4),
        "import_planaria_s": round(door, 4),
        "import_over_interpreter": round(door / bare, 2),
        "help_s": round(shown, 4),
        "update_s": round(update, 5),
        "refit_256x256_s": {str(dose): round(seconds, 5) for dose, seconds in rows.items()},
        "refit_in_updates": {str(dose): round(seconds / update, 2) for dose, seconds in rows.items()},
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
