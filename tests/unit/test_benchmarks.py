"""The benchmark suite prints what it promises, times ways in turn, and fails when a way is not exact."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from planaria.core.anatomy import Unit
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.data import Data

FOLDER = Path(__file__).parents[2] / "benchmarks"

PROMISED = {
    "id": str,
    "work": str,
    "naive_s": float,
    "ours_s": float,
    "peer": str,
    "peer_s": float,
    "ratio_naive": float,
    "ratio_same_route": float,
    "ratio_peer": float,
    "forwards_equivalent": float,
    "max_score_difference": float,
    "peak_mib": float,
}


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Importer of the suite's modules, which are not part of the package."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def module(name: str) -> ModuleType:
        return importlib.import_module(f"suite.{name}")

    return module


@pytest.fixture
def sweep(suite: Any) -> ModuleType:
    """The script, as a module."""
    del suite  # its folder is on the path now
    return importlib.import_module("sweep")


def test_quick_json_is_a_list_of_rows_with_the_promised_fields(
    sweep: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main(["--quick", "--json", "--only", "B18"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows] == ["B18", "B18"]
    for row in rows:
        assert list(row)[: len(PROMISED)] == list(PROMISED)
        for name, kind in PROMISED.items():
            assert row[name] is None or isinstance(row[name], kind), name
        assert row["ours_s"] > 0


def test_an_unknown_benchmark_is_refused_with_the_known_ones(
    sweep: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        sweep.main(["--only", "B99"])
    assert refused.value.code == 2
    said = capsys.readouterr().err
    assert "no benchmark 'B99'" in said
    assert "B18" in said


def test_every_benchmark_that_was_asked_for_is_there(sweep: ModuleType) -> None:
    known, failed = sweep.benchmarks()
    assert not failed
    promised = {f"B{number}" for number in (*range(1, 13), 16, 17, 18)}
    assert promised <= known.keys(), sorted(promised - known.keys())


def test_a_benchmark_that_is_not_exact_fails_and_the_others_still_run(
    sweep: ModuleType, suite: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    harness = suite("harness")

    def wrong(quick: bool) -> list[Any]:
        raise AssertionError("3 of 9 predictions differ from brute force")

    def right(quick: bool) -> list[Any]:
        return [harness.row("B2", "something", {"ours": [0.5]})]

    monkeypatch.setattr(sweep, "benchmarks", lambda: ({"B1": wrong, "B2": right}, []))
    assert sweep.main(["--json"]) == 1
    printed = capsys.readouterr()
    assert [row["id"] for row in json.loads(printed.out)] == ["B2"]
    assert "B1: AssertionError: 3 of 9 predictions differ" in printed.err


def test_results_are_saved_beside_those_of_other_benchmarks(
    sweep: ModuleType, suite: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = suite("harness").row
    monkeypatch.setattr(sweep, "RESULTS", tmp_path)
    for name, seconds in (("B10", 3.0), ("B2", 1.0), ("B10", 2.0)):
        monkeypatch.setattr(
            sweep,
            "benchmarks",
            lambda name=name, seconds=seconds: (
                {one: lambda quick, one=one: [row(f"{one} exact", "x", {"ours": [seconds]})] for one in ("B2", "B10")},
                [],
            ),
        )
        assert sweep.main(["--only", name, "--save"]) == 0
    saved = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))
    assert [(row["id"], row["ours_s"]) for row in saved["rows"]] == [("B2 exact", 1.0), ("B10 exact", 2.0)]
    assert saved["machine"]["torch"] == torch.__version__
    assert "| B10 exact | x |" in (tmp_path / "sweep.md").read_text(encoding="utf-8")


def test_ways_run_in_turn_and_the_first_round_does_not_count(suite: Any) -> None:
    order: list[str] = []
    ways = {name: lambda name=name: order.append(name) for name in "ab"}
    times = suite("harness").interleave(ways, 2, warm=True)
    assert order == ["a", "b"] * 3
    assert [len(times[name]) for name in "ab"] == [2, 2]


def test_a_row_scales_the_naive_subset_and_judges_its_goals(suite: Any) -> None:
    harness = suite("harness")
    times = {"naive": [1.0, 2.0, 3.0], "ours": [0.1, 0.1, 0.1], "peer": [4.0, 4.0, 4.0], "hooks": [1.0, 1.0, 1.0]}
    made = harness.row("B1", "x", times, naive_scale=5.0, forward_s=0.05, at_least={"ratio_naive": 90.0})
    assert made.naive_s == pytest.approx(10.0)
    assert (made.ratio_naive, made.ratio_least, made.ratio_most) == pytest.approx((100.0, 50.0, 150.0))
    assert made.ratio_same_route is None
    assert made.forwards_equivalent == pytest.approx(2.0)
    assert made.ratio_others == {"hooks": pytest.approx(10.0)}
    assert made.met
    assert not harness.row("B1", "x", times, at_least={"ratio_naive": 90.0}).met
    assert not harness.row("B1", "x", times, at_most={"forwards_equivalent": 9.0}).met


def test_a_changed_prediction_fails_and_a_tie_does_not(suite: Any) -> None:
    harness = suite("harness")
    brute = torch.tensor([[5.0, 1.0], [1.0, 1.0 + 1e-6]])
    difference, ties = harness.assert_exact(brute, torch.tensor([[5.0, 1.0], [1.0 + 1e-6, 1.0]]), "tie")
    assert ties == 1
    assert difference == pytest.approx(1e-6, rel=0.2)
    with pytest.raises(AssertionError, match="1 of 2 predictions differ"):
        harness.assert_exact(brute, torch.tensor([[1.0, 5.0], [1.0, 1.0]]), "wrong")
    with pytest.raises(AssertionError, match=r"differ by 0\.01 beyond ties"):
        harness.assert_scores(torch.tensor([0.5]), torch.tensor([0.51]), 0.0, "wrong")
    assert harness.assert_scores(torch.tensor([0.5]), torch.tensor([0.51]), 0.02, "tied") == pytest.approx(0.01)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's account of memory")
def test_peak_memory_counts_what_was_taken_and_given_back(suite: Any) -> None:
    peak = suite("harness").peak_mib(lambda: torch.ones(8 << 20))
    assert 30 <= peak <= 60


def small_case(suite: Any) -> Any:
    rng = stream(0, "small case")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    model.requires_grad_(False)
    data = Data(torch.randn(20, 6, generator=rng), torch.arange(20) % 3)
    gates = {"0": "1", "2": "3"}
    return suite("networks").Case("small", model, Network.of(model, data.inputs), data, data, 8, gates)


def test_brute_force_hooks_and_peers_agree_and_leave_the_model_alone(suite: Any) -> None:
    peers, case = suite("peers"), small_case(suite)
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    units = case.units
    brute = peers.brute_force(case, units, case.test)()
    assert brute.shape == (9, 20, 3)
    assert not torch.equal(brute[0], brute[1])
    assert torch.equal(peers.hook_loop(case, units, case.test)(), brute)
    name, ways = peers.peers(case, units, case.test)
    assert name.startswith(("PyTorchFI", "forward-hook loop"))
    for way in ways.values():
        assert torch.equal(way(), brute)
    assert all(torch.equal(tensor, before[key]) for key, tensor in case.model.state_dict().items())


def test_a_subset_of_units_covers_all_layers(suite: Any) -> None:
    case = small_case(suite)
    some = case.some(2)
    assert some == (Unit("0", 1), Unit("0", 3), Unit("2", 1), Unit("2", 3))
    assert case.scale(some) == pytest.approx(9 / 4)
    assert set(case.some(least=9)) == set(case.units)


def test_the_data_are_the_same_every_time_and_as_many_as_promised(suite: Any) -> None:
    networks = suite("networks")
    train, test = networks.images(28, 1, True)
    assert (len(train), len(test)) == (2000, 2000)
    assert test.inputs.shape[1:] == (1, 28, 28)
    again = networks.images.__wrapped__(28, 1, True)[1]
    assert torch.equal(test.inputs, again.inputs)
    assert torch.equal(test.targets, again.targets)
