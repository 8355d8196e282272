"""The benchmarks of the metric run without curvlinops, assert agreement, and keep what was saved."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def metric(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("metric")


def test_quick_json_is_a_list_of_rows(metric: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert metric.main(["--quick", "--json", "--only", "B15"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["id"] == "B15"
    assert row["ours_s"] > 0
    assert row["max_score_difference"] <= 1e-5


def test_disagreement_fails_and_the_others_still_run(
    metric: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = importlib.import_module("suite.curvature")
    harness = importlib.import_module("suite.harness")

    def wrong(quick: bool, count: int) -> list[object]:
        suite.apart(torch.ones(3), 1.1 * torch.ones(3), "mlp")
        return []

    right = harness.row("B14", "x", {"ours": [0.5], "peer": [5.0]}, at_least={"ratio_peer": 7.0})
    monkeypatch.setattr(metric, "METRIC", {"B13": wrong, "B14": lambda quick, count: [right]})
    assert metric.main([]) == 1
    printed = capsys.readouterr()
    assert "| B14 | x |" in printed.out
    assert "ratio_peer at least 7: met" in printed.out
    assert "B13: AssertionError: mlp: relative difference 0.09" in printed.err


def test_results_are_saved_beside_those_of_other_benchmarks(
    metric: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = importlib.import_module("suite.harness").row
    monkeypatch.setattr(metric, "RESULTS", tmp_path)
    for name, seconds in (("B15", 3.0), ("B13", 1.0), ("B15", 2.0)):
        made = row(name, "x", {"ours": [seconds]})
        monkeypatch.setattr(metric, "METRIC", {name: lambda quick, count, made=made: [made]})
        assert metric.main(["--save"]) == 0
    saved = json.loads((tmp_path / "metric.json").read_text(encoding="utf-8"))
    assert [(row["id"], row["ours_s"]) for row in saved["rows"]] == [("B13", 1.0), ("B15", 2.0)]
    assert "| B15 | x |" in (tmp_path / "metric.md").read_text(encoding="utf-8")


def test_an_unknown_benchmark_is_refused_with_the_known_ones(
    metric: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        metric.main(["--only", "B1"])
    assert "there are B13, B14, B15" in capsys.readouterr().err
