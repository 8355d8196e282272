"""What else changed: portraits of the best rescue's three stages, and its network without dead units as a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from planaria.campaign.files import write_atomic
from planaria.cli.running import COMPACT, Run
from planaria.cli.screen import Screen
from planaria.core.network import Network
from planaria.damage.damage import Damage
from planaria.measure.adversarial import untested
from planaria.measure.statistics import finite
from planaria.measure.weights import pack_weights
from planaria.study.portrait import ATTACKED, BEFORE, CORRUPTED, DAMAGED, RESCUED, Portrait, portrait, stages


def sizes(quick: bool) -> dict[str, int]:
    """Numbers of test examples to corrupt and to attack."""
    return {"corrupted": 200, "attacked": 50} if quick else {"corrupted": CORRUPTED, "attacked": ATTACKED}


def portray(
    run: Run, damage: Damage, row: Mapping[str, Any], rescued: Callable[[], Network], screen: Screen
) -> dict[str, Any]:
    """Portraits before damage, after damage, after rescue; finished ones from the ledger.

    Args:
        run: The run under way.
        damage: What was done.
        row: The attempt that is portrayed.
        rescued: Makes the rescued network, if it is needed.
        screen: For the progress.

    Returns:
        The document's "portrait". A smaller network beside the best one is a file of the run.
    """
    what = {"repair": row["repair"], "dose": row["dose"], "seed": row["seed"]}
    counts = sizes(run.prepared.subject.quick)
    # With foolbox installed since, the same command measures what was left out.
    settings = {**counts, "unattacked": untested(run.task)}
    marks = {
        stage: run.id(what="portrait", stage=stage, settings=settings, **what) for stage in (BEFORE, DAMAGED, RESCUED)
    }
    stored: dict[str, dict[str, Any]] = {}
    networks: dict[str, Network] = {}
    path = run.folder / COMPACT
    with screen.progress(len(marks), "portraits") as steps:
        for stage, mark in marks.items():
            known: Any = run.ledger[mark]["portrait"] if mark in run.ledger else None
            lost = stage == RESCUED and known is not None and known["compact"]["units_removed"] and not path.exists()
            if known is None or lost:
                networks = networks or stages(run.net, damage, row["dose"], rescued(), seed=row["seed"])
                found = portrait(networks[stage], run.task, stage=stage, seed=row["seed"], **counts)
                if stage == RESCUED and found.compact.units_removed:
                    write_atomic(path, _packed(found, what))
                known = finite(found.to_dict())
                if mark not in run.ledger:
                    run.ledger.record(mark, {"what": "portrait", "stage": stage, "portrait": known})
            stored[stage] = known
            steps.done()
    reasons = {key: stored[RESCUED][key] for key in ("adversarial_untested", "calibration_untested")}
    return {**what, "stages": list(stored.values()), **reasons}


def _packed(found: Portrait, what: Mapping[str, Any]) -> bytes:
    """The compacted weights, with the units that remain of each layer that lost some."""
    remaining = {layer: found.compact.remaining[layer] for layer in found.compact.removed}
    words = {f"planaria.{key}": str(value) for key, value in what.items()}
    return pack_weights(found.compact.network, {**words, "planaria.remaining": json.dumps(remaining)})
