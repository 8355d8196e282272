"""The scripts in examples/ run, stay short, and say what they claim to say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def quick(script: Path, folder: Path, *more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), "--quick", *more],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_four_examples_are_there() -> None:
    assert [script.stem for script in SCRIPTS] == ["lesion_heads", "own_network", "rescue_mlp", "weak_points"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_example_has_fewer_than_eighty_lines(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) < 80


def check_that_the_refit_helped(said: str) -> None:
    intact = re.search(r"intact: (0\.\d+)", said)
    refitted = re.search(r"^refit +[\d.]+ +(0\.\d+) .*?\] +(\d\.\d+)", said, re.MULTILINE)
    assert intact and refitted, said
    damaged, after = float(refitted[1]), float(refitted[2])
    assert damaged < after <= 1.0
    assert damaged < float(intact[1])


@pytest.mark.parametrize("stem", ["lesion_heads", "own_network"])
def test_an_example_damages_and_repairs_and_leaves_no_file(stem: str, tmp_path: Path) -> None:
    check_that_the_refit_helped(quick(FOLDER / f"{stem}.py", tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_map_of_units_finds_sets_and_bits_that_cost_more_than_single_units_and_leaves_no_file(
    tmp_path: Path,
) -> None:
    said = quick(FOLDER / "weak_points.py", tmp_path)
    worst = re.search(r"^  (?:first|second)\[\d+\] +(\d\.\d+)", said, re.MULTILINE)
    greedy = re.search(r"together, greedy: (\d\.\d+)", said)
    flipped = re.search(r"Flipped\(bit=30\).*?loses (\d\.\d+)", said, re.DOTALL)
    assert worst and greedy and flipped, said
    assert 0 < float(worst[1]) <= float(greedy[1]) < float(flipped[1])
    assert said.count("mismatches 0") == 2
    assert sum(len(row) for row in re.findall(r"^  ([.0-9]{3,})$", said, re.MULTILINE)) == 48 + 32
    assert not list(tmp_path.iterdir())


def test_the_first_example_saves_weights_that_an_ordinary_module_takes(tmp_path: Path) -> None:
    check_that_the_refit_helped(quick(FOLDER / "rescue_mlp.py", tmp_path, "--out", "best.pt"))
    state = torch.load(tmp_path / "best.pt", weights_only=True)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model.load_state_dict(state)
    # Half of the first layer's neurons are deleted, and no repair has brought them back.
    assert int((state["2.weight"] == 0).all(0).sum()) == 32
