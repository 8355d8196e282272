"""The finite-size test on the command line: networks of several widths, trained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from command_line import Done, everything_in, planaria, without_time
from planaria.cli import widths

SMALL = (
    *("respond", "--task", "digits?train=300", "--model", "mlp:64-12-10", "--train-epochs", "2"),
    *("--doses", "0:1:6", "--draws", "5"),
)
ESTIMATE = {"low", "best", "high"}

pytestmark = pytest.mark.usefixtures("plain_report")


def run(folder: Path, *more: str, widths: str = "4,8,16", json: bool = True) -> Done:
    return planaria(*SMALL, "--widths", widths, *(["--json"] if json else []), "--out", "run", *more, cwd=folder)


def test_a_test_over_widths_leaves_its_numbers_its_curves_and_a_verdict(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.code == 0, done.err
    document = done.document
    scaling: dict[str, Any] = document["scaling"]
    assert scaling["widths"] == [4, 8, 16]
    assert document["settings"]["widths"] == [4, 8, 16] and document["settings"]["networks"] == 2
    for name in ("steepness", "susceptibility", "half_doses"):
        assert len(scaling[name]) == 3 and all(one.keys() == ESTIMATE for one in scaling[name])
    for name in ("exponent", "susceptibility_exponent", "exponent_of_larger", "exponent_by_survivors"):
        assert scaling[name].keys() == ESTIMATE
    assert [curve["width"] for curve in scaling["curves"]] == [4, 8, 16]
    for curve in scaling["curves"]:
        assert curve["doses"] == [0, 0.2, 0.4, 0.6, 0.8, 1]
        assert curve["mean"][0] > curve["mean"][-1]
    assert scaling["verdict"] in {"transition", "crossover", "none"}
    asked = {verdict["question"]: verdict for verdict in document["verdicts"]}
    assert asked["Is there a transition?"]["answer"] == scaling["verdict"]
    assert asked["How much can it lose?"]["answer"]
    assert len(document["rows"]) == 5 * 6  # the rows are those of the network itself
    text = run(tmp_path, json=False)
    for word in ("finite-size test", "steepness", "Is there a transition? " + scaling["verdict"], "run/report.html"):
        assert word in text.out


def test_a_stopped_test_goes_on_and_trains_no_finished_network_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path, "--networks", "1").document
    trained: list[tuple[int, int]] = []
    train = widths._trained

    def counted(prepared: Any, width: int, network: int) -> Any:
        trained.append((width, network))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(prepared, width, network)

    monkeypatch.setattr(widths, "_trained", counted)
    again = tmp_path / "again"
    again.mkdir()
    stopped = run(again, "--networks", "1")
    assert stopped.code == 130
    assert trained == [(4, 0), (8, 0), (16, 0)]
    resumed = run(again, "--networks", "1")
    assert trained == [(4, 0), (8, 0), (16, 0), (16, 0)]
    assert without_time(resumed.document) == without_time(whole)


def test_without_widths_nothing_is_scaled_and_one_width_cannot_tell(tmp_path: Path) -> None:
    document = planaria(*SMALL, "--json", "--out", "run", cwd=tmp_path).document
    assert document["scaling"] is None
    (verdict,) = [v for v in document["verdicts"] if v["question"] == "Is there a transition?"]
    assert "one width cannot tell" in verdict["answer"]


def test_a_dry_run_counts_the_networks_of_every_width(tmp_path: Path) -> None:
    one = planaria(*SMALL, "--dry-run", "--json", "--out", "run", cwd=tmp_path).document
    plan = run(tmp_path, "--networks", "3", "--dry-run").document
    assert plan["updates"] == one["updates"] * (1 + 3 * 3)
    assert plan["evaluations"] == one["evaluations"] * (1 + 3 * 3)
    assert plan["seconds"] > 0
    assert everything_in(tmp_path) == {}


def test_other_widths_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    assert run(tmp_path, "--networks", "1", widths="2,3,4").code == 0
    done = run(tmp_path, "--networks", "1", widths="2,3,5")
    assert done.code == 2 and "widths" in done.err


def test_hidden_layers_of_a_named_mlp_take_the_width_and_keep_their_number_and_activation(tmp_path: Path) -> None:
    from planaria.measure.models import build

    def shapes(text: str) -> list[list[int]]:
        return [list(w.shape) for w in build(text, (64,), 10, 0, width=7).parameters() if w.ndim == 2]

    assert shapes("mlp") == [[7, 64], [7, 7], [10, 7]]
    assert shapes("mlp:64-30-20-10-10") == [[7, 64], [7, 7], [7, 7], [10, 7]]
    assert "Tanh" in str(build("mlp:64-30-10?act=tanh", (64,), 10, 0, width=7))


FACTORIES = """
from torch import nn


def wide(width=16):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def narrow():
    return wide(16)


made = wide(16)
"""


def test_a_factory_with_a_width_is_called_with_it(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(FACTORIES)
    done = run(tmp_path, "--networks", "1", "--model", "nets.py:wide")
    assert done.code == 0, done.err
    assert done.document["scaling"]["widths"] == [4, 8, 16]


@pytest.mark.parametrize("name", ["narrow", "made"])
def test_a_factory_without_a_width_is_told_what_to_add(name: str, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(FACTORIES)
    done = run(tmp_path, "--model", f"nets.py:{name}")
    assert done.code == 2
    assert f"nets.py:{name}" in done.err and f"def {name}(width=64)" in done.err and "width" in done.err
    assert set(everything_in(tmp_path)) == {"nets.py"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--widths", "25,50"), ("--widths", "3 widths", "25,50,100")),
        (("--widths", "25,fifty,100"), ("--widths", "numbers")),
        (("--widths", "0,25,50"), ("--widths", "at least 1")),
        (("--widths", "4,8,16", "--model", "cnn", "--task", "digits?flat=0"), ("cnn", "width")),
        (("--widths", "4,8,16", "--draws", "3"), ("--draws", "5 or more")),
        (("--widths", "4,8,16", "--doses", "0:1:4"), ("--doses", "6 or more")),
        (("--widths", "4,8,16", "--order", "largest"), ("--draws", "Orders must be random")),
        (
            ("--widths", "4,8,16", "--doses", "0:5:6", "--damage", "Damage(Silence(), RandomUnits(Dose('units')))"),
            ("--widths", "a fraction"),
        ),
        (("--networks", "2"), ("--networks", "--widths")),
    ],
)
def test_what_cannot_be_scaled_is_refused_before_anything_is_trained(
    more: tuple[str, ...], words: tuple[str, ...], tmp_path: Path
) -> None:
    done = planaria(*SMALL, *more, "--out", "run", cwd=tmp_path)
    assert done.code == 2, done.err
    for word in words:
        assert word in done.err
    assert everything_in(tmp_path) == {}


def test_given_weights_are_refused_because_widths_differ(tmp_path: Path) -> None:
    assert planaria(*SMALL, "--out", "first", cwd=tmp_path).code == 0
    done = run(tmp_path, "--weights", "first/intact.safetensors")
    assert done.code == 2 and "--weights" in done.err
    assert not (tmp_path / "run").exists()
