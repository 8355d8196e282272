"""What a rescue says beside the score: the portrait of its three stages, and the network without dead units."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors

from command_line import TINY, Finished, planaria
from planaria.cli import portraying
from planaria.core.network import Network
from planaria.measure.datasets import task
from planaria.measure.models import build
from planaria.measure.weights import load_weights

pytestmark = pytest.mark.usefixtures("plain_report")

STAGES = ["before damage", "after damage", "after rescue"]


def portrait_of(finished: Finished) -> dict[str, Any]:
    found: dict[str, Any] = finished.done.document["portrait"]
    return found


def test_the_portrait_is_that_of_the_best_rescue(finished: Finished) -> None:
    found = portrait_of(finished)
    assert [stage["stage"] for stage in found["stages"]] == STAGES
    with safetensors.safe_open(finished.folder / "best.safetensors", "pt") as file:
        words = file.metadata()
    assert [str(found[key]) for key in ("repair", "dose", "seed")] == [
        words[f"planaria.{key}"] for key in ("repair", "dose", "seed")
    ]
    row = next(
        row
        for row in finished.done.document["rows"]
        if all(row[key] == found[key] for key in ("repair", "dose", "seed"))
    )
    scores = [row[f"score_{when}"] for when in ("before", "damaged", "after")]
    assert [stage["score"]["best"] for stage in found["stages"]] == pytest.approx(scores)


def test_every_stage_has_calibration_size_corruptions_and_attacks(finished: Finished) -> None:
    pytest.importorskip("foolbox", reason="foolbox is not installed: pip install 'planaria[attacks]'")
    found = portrait_of(finished)
    assert found["adversarial_untested"] is None and found["calibration_untested"] is None
    before, damaged, _ = found["stages"]
    assert damaged["nll"]["best"] > before["nll"]["best"] > 0 and 0 <= before["ece"]["best"] <= 1
    assert damaged["sparsity"] > before["sparsity"] == 0
    assert before["compact"]["units_removed"] == 0 < damaged["compact"]["units_removed"]
    for stage in found["stages"]:
        assert stage["compact"]["difference"] <= 1e-5 and stage["compact"]["kept"] == []
        assert {entry["name"] for entry in stage["corruption"]} == {"gaussian noise", "contrast", "pixel dropout"}
        assert {entry["attack"] for entry in stage["adversarial"]} == {"PGD", "FGSM"}
        for entry in (*stage["corruption"], *stage["adversarial"]):
            assert 0 <= entry["score"]["low"] <= entry["score"]["best"] <= entry["score"]["high"] <= 1


def test_the_compacted_network_loads_into_the_smaller_architecture_and_scores_the_same(finished: Finished) -> None:
    path = finished.folder / "compact.safetensors"
    assert finished.done.document["files"]["compact"] == str(Path("run") / path.name)
    with safetensors.safe_open(path, "pt") as file:
        left = json.loads(file.metadata()["planaria.remaining"])["layers.0"]
    digits = task("digits?train=400")
    model = build(f"mlp:64-{len(left)}-10", (64,), 10, seed=0)
    load_weights(model, path)
    rescued = portrait_of(finished)["stages"][2]
    assert len(left) == 16 - rescued["compact"]["units_removed"] < 16
    assert Network.of(model).parameters == rescued["compact"]["parameters"]
    assert digits.score(Network.of(model)) == pytest.approx(rescued["score"]["best"])


def test_a_finished_portrait_is_not_measured_again(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*args: object, **options: object) -> None:
        raise AssertionError("work that had been done already")

    finished.copy(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(portraying, "portrait", work)
        again = planaria(*finished.command, "--out", "run", cwd=tmp_path)
        assert again.code == 0 and again.document["portrait"] == portrait_of(finished)


def test_a_lost_compacted_network_comes_back_the_same(finished: Finished, tmp_path: Path) -> None:
    folder = finished.copy(tmp_path / "run")
    (folder / "compact.safetensors").unlink()
    again = planaria(*finished.command, "--out", "run", cwd=tmp_path)
    assert again.code == 0 and again.document["portrait"] == portrait_of(finished)
    kept, lost = (place / "compact.safetensors" for place in (folder, finished.folder))
    assert kept.read_bytes() == lost.read_bytes()


def test_where_nothing_was_repaired_there_is_no_portrait(tmp_path: Path) -> None:
    done = planaria("rescue", *TINY, "--quick", "--repairs", "none", "--json", "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.document["portrait"] is None and done.document["files"]["compact"] is None


def test_a_regression_is_portrayed_without_calibration_and_attacks(own: Path) -> None:
    done = planaria(
        *("rescue", "--model", "nets.py:regressor", "--task", "py:data.py:heights", "--train-epochs", "3", "--quick"),
        *("--repairs", "retrain", "--updates", "5", "--seeds", "1", "--json", "--out", "run"),
        cwd=own,
    )
    assert done.code == 0, done.err
    found = done.document["portrait"]
    assert found["calibration_untested"] == "the task is no classification"
    assert "no classification" in found["adversarial_untested"]
    assert all(stage["nll"] is None and stage["adversarial"] == [] for stage in found["stages"])
