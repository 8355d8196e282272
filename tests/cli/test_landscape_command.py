"""`planaria landscape`: its document and files, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from command_line import Finished, everything_in, planaria, without_time
from planaria.campaign.ledger import Ledger
from planaria.cli import landscape_plan, landscape_work, landscaping
from planaria.geometry import placing
from planaria.study import company, surface

pytestmark = pytest.mark.usefixtures("plain_report")

SUBJECT = ("landscape", "--task", "digits?train=400", "--model", "mlp:64-16-12-10", "--train-epochs", "6")
SHORT = (
    *("--events", "4", "--seeds", "2", "--updates", "5", "--dose-per-event", "0.1", "--tolerance", "0.5"),
    *("--pairs", "3", "--grid", "5", "--methods", "pca,mds"),
)
LEAST = (
    *("--events", "2", "--seeds", "1", "--updates", "3", "--dose-per-event", "0.1", "--tolerance", "0.5"),
    *("--pairs", "1", "--grid", "3", "--methods", "pca", "--json"),
)
COMMAND = (*SUBJECT, *SHORT, "--json")
BATCH_NORM = """
from torch import nn
def normalised():
    return nn.Sequential(nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10))
"""
TWO_INPUTS = """
import torch
from torch import nn
from torch.utils.data import DataLoader


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 8), nn.Linear(2, 8), nn.Linear(8, 2)

    def forward(self, left, right):
        return self.head(torch.relu(self.a(left) + self.b(right)))


def both():
    def rows(count, seed):
        rng = torch.Generator().manual_seed(seed)
        pairs = [(torch.randn(3, generator=rng), torch.randn(2, generator=rng)) for _ in range(count)]
        return [({"left": a, "right": b}, int(a.sum() + b.sum() > 0)) for a, b in pairs]

    return DataLoader(rows(120, 0), batch_size=20), DataLoader(rows(60, 1), batch_size=20)
"""


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run of all parts."""
    place = tmp_path_factory.mktemp("walked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planaria.cli.running.render", lambda document, folder: "<!doctype html>")
        done = planaria(*COMMAND, "--out", "run", cwd=place)
    assert done.code == 0, done.err
    return Finished(COMMAND, place / "run", done)


def test_the_document_has_what_the_report_reads(walked: Finished) -> None:
    document = walked.done.document
    assert document["command"] == "landscape" and document["schema"] == "planaria.landscape.v1"
    found = document["landscape"]
    groups = [one["group"] for one in found["members"]]
    assert {name: groups.count(name) for name in dict.fromkeys(groups)} == {
        **{"intact": 1, "damaged": 8, "repaired": 8, "without damage": 3},
        **{"displaced": 3, "independent": 3, "untrained": 3},
    }
    lines = {(one["group"], one["aligned"]): one["pairs"] for one in found["connections"]}
    assert len(lines) == 6 and set(lines.values()) == {3}
    assert list(found["distances"]) == ["weights", "weights, aligned", "outputs", "answers"]
    assert len(found["pictures"]) == 8 and all(len(one["embeddings"]) == 2 for one in found["pictures"])
    assert len(document["verdicts"]) == 6 and "verdicts" not in found
    assert document["settings"]["repair"] == "retrain" and document["settings"]["networks_per_group"] == 3
    assert json.loads((walked.folder / "result.json").read_text()) == document
    assert json.loads((walked.folder / "manifest.json").read_text())["complete"]


def test_pictures_of_what_stays_near_leave_other_trainings_out(walked: Finished) -> None:
    found = walked.done.document["landscape"]
    for picture in found["pictures"]:
        groups = {found["members"][place]["group"] for place in picture["places"]}
        assert ({"independent", "untrained"} <= groups) == (picture["of"] == "all networks")
        assert all(len(one["points"]) == len(picture["places"]) for one in picture["embeddings"])
        assert len(picture["walks"]) == (2 if picture["of"] != "all networks" else 0)


def test_both_surfaces_hold_the_first_walk_and_the_controls(walked: Finished) -> None:
    document = walked.done.document
    found = document["landscape"]
    random, plane = found["surfaces"]
    assert (random["which"], plane["which"]) == ("random directions", "plane of the walk")
    for one in (random, plane):
        walk = [found["members"][stop["member"]] for stop in one["walk"]]
        assert [member["group"] for member in walk] == ["damaged", "repaired"] * 4
        assert {member["walk"] for member in walk} == {0} and [m["event"] for m in walk] == [1, 1, 2, 2, 3, 3, 4, 4]
        controls = [found["members"][stop["member"]]["group"] for stop in one["controls"]]
        assert sorted(set(controls)) == ["displaced", "independent", "without damage"] and len(controls) == 9
        assert len(one["loss"]) == 5 and one["examples"] == document["task"]["splits"]["test"]
        assert one["score"][2][2] == pytest.approx(document["intact"]["test"])
        for stop in (*one["walk"], *one["controls"]):
            member = found["distances"]["weights"][0][stop["member"]]
            assert stop["far"] == pytest.approx(member, rel=1e-4) and stop["off"] <= stop["far"] * 1.0001
    assert plane["off"] < random["off"]


def test_the_tables_have_a_line_for_every_network_pair_and_point(walked: Finished) -> None:
    found = walked.done.document["landscape"]
    tables = {}
    for name in ("results.csv", "pairs.csv", "surfaces.csv"):
        with (walked.folder / name).open(newline="") as file:
            tables[name] = list(csv.DictReader(file))
    assert [line["group"] for line in tables["results.csv"]] == [one["group"] for one in found["members"]]
    assert len(tables["pairs.csv"]) == sum(one["pairs"] for one in found["connections"]) == 18
    for line in tables["pairs.csv"]:
        apart = found["distances"]["weights"][int(line["first"])][int(line["second"])]
        assert float(line["weights"]) == pytest.approx(apart)
    assert len(tables["surfaces.csv"]) == 2 * 25
    assert [float(line["loss"]) for line in tables["surfaces.csv"]] == [
        loss for one in found["surfaces"] for row in one["loss"] for loss in row
    ]


def test_people_are_told_the_same_in_words(walked: Finished, tmp_path: Path) -> None:
    folder = walked.copy(tmp_path / "run")
    done = planaria(*(word for word in walked.command if word != "--json"), "--out", folder, cwd=tmp_path)
    assert done.code == 0, done.err
    for words in ("independent, aligned", "good set", "say where it goes?", "pairs.csv", "surfaces.csv"):
        assert words in done.out


def test_a_finished_run_given_again_does_no_work_and_says_the_same(
    walked: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*args: object, **options: object) -> None:
        raise AssertionError("work that had been done already")

    walked.copy(tmp_path / "run")
    monkeypatch.setattr(company, "iter_survive", work)
    monkeypatch.setattr(company, "train", work)
    monkeypatch.setattr(surface.Grid, "of", work)
    monkeypatch.setattr(landscape_work, "embed", work)
    done = planaria(*walked.command, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert without_time(done.document) == without_time(walked.done.document)


def test_a_run_that_was_killed_goes_on_to_the_same_result(
    walked: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = surface.Grid.row, []

    def killed(grid: Any, number: int) -> Any:
        calls.append(number)
        if len(calls) == 8:  # in the second surface
            raise KeyboardInterrupt
        return real(grid, number)

    with monkeypatch.context() as patch:
        patch.setattr(surface.Grid, "row", killed)
        assert planaria(*walked.command, "--out", "run", cwd=tmp_path).code == 130
    with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
        kept = len(ledger)
    assert not (tmp_path / "run" / "result.json").exists()
    done = planaria(*walked.command, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert without_time(done.document) == without_time(walked.done.document)
    for name in ("results.csv", "pairs.csv", "surfaces.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (walked.folder / name).read_bytes()
    with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert len(ledger) - kept == 5  # three rows, what is drawn, and the second surface as a whole


def test_other_settings_are_refused_and_a_fresh_start_takes_them(walked: Finished, tmp_path: Path) -> None:
    folder = walked.copy(tmp_path / "run")
    other = (*SUBJECT, *SHORT, "--grid", "0", "--methods", "pca", "--json")
    before = everything_in(folder)
    refused = planaria(*other, "--out", "run", cwd=tmp_path)
    assert refused.code == 2 and "grid" in refused.err and everything_in(folder) == before
    done = planaria(*other, "--out", "run", "--fresh", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.document["landscape"]["surfaces"] == [] and done.document["files"]["surfaces"] is None
    assert not (folder / "surfaces.csv").exists() and len(done.document["verdicts"]) == 5


def test_a_dry_run_says_the_price_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landscaping, "pace", lambda *unused: (0.001, 0.001, 0.001))
    done = planaria(*COMMAND, "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.err
    document = done.document
    assert document["schema"] == "planaria.plan.v1" and document["pairs"] == 18 and document["surface_points"] == 50
    assert document["prices"].keys() == {"walks and trainings", "lines", "pictures", "surfaces"}
    assert document["updates"] >= 4 * 4 * 5 and document["seconds"] > 0
    told = planaria(*COMMAND[:-1], "--dry-run", cwd=tmp_path)
    assert "surfaces: about" in told.out and "folder" in told.out
    assert everything_in(tmp_path) == {}


def test_without_scikit_learn_the_run_goes_on_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "find_spec", lambda name: None)
    done = planaria(*SUBJECT, *LEAST, "--grid", "0", "--methods", "pca,tsne", "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    found = done.document["landscape"]
    assert "pip install 'planaria[embed]'" in done.err and any("t-SNE is left out" in note for note in found["notes"])
    assert all([shown["method"] for shown in one["embeddings"]] == ["PCA"] for one in found["pictures"])
    done = planaria(*SUBJECT, *LEAST, "--grid", "0", "--methods", "tsne", "--out", "alone", cwd=tmp_path)
    assert done.code == 0 and done.document["landscape"]["pictures"] == [], done.err


@pytest.mark.parametrize("way", ["turnover", "none", "sequential", "curves"])
def test_walks_of_other_kinds_are_drawn_too(way: str, tmp_path: Path) -> None:
    more = {
        "turnover": ("--mode", "turnover", "--delay", "1", "--events", "3"),
        "none": ("--repair", "none"),
        "sequential": ("--repair", "sequential"),
        "curves": ("--curves", "--tolerance", "0.01"),
    }[way]
    done = planaria(*SUBJECT, *LEAST, *more, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert len(done.document["landscape"]["surfaces"]) == 2


def test_a_regression_has_no_distance_of_probabilities(own: Path) -> None:
    subject = ("landscape", "--model", "nets.py:regressor", "--task", "py:data.py:heights", "--train-epochs", "3")
    done = planaria(*subject, *LEAST, "--out", "run", cwd=own)
    assert done.code == 0, done.err
    assert list(done.document["landscape"]["distances"]) == ["weights", "weights, aligned", "outputs"]
    assert len(done.document["landscape"]["surfaces"]) == 2


def test_normalisation_statistics_are_estimated_again_at_every_point(own: Path) -> None:
    (own / "norm.py").write_text(BATCH_NORM)
    subject = ("landscape", "--model", "norm.py:normalised", "--task", "digits?train=400", "--train-epochs", "2")
    done = planaria(*subject, *LEAST, "--out", "run", cwd=own)
    assert done.code == 0, done.err
    assert all("re-estimated" in one["statistics"] for one in done.document["landscape"]["surfaces"])


def test_a_network_of_several_inputs_is_walked_and_drawn(own: Path) -> None:
    (own / "two.py").write_text(TWO_INPUTS)
    subject = ("landscape", "--model", "two.py:Two", "--task", "py:two.py:both", "--train-epochs", "2")
    done = planaria(*subject, *LEAST, "--out", "run", cwd=own)
    assert done.code == 0, done.err
    assert len(done.document["landscape"]["surfaces"]) == 2 and len(done.document["landscape"]["pictures"]) == 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--mode", "atrition"), "--mode"),
        (("--delay", "2"), "--delay"),
        (("--repair", "rerain"), "retrain"),
        (("--repair", "iterative"), "--repair"),
        (("--repair", "regrow"), "turnover"),
        (("--methods", "pca,tsen"), "tsne"),
        (("--methods", ","), "--methods"),
        (("--grid", "4"), "odd"),
        (("--grid", "1"), "--grid"),
        (("--span", "0"), "--span"),
        (("--span", "nan"), "--span"),
        (("--pairs", "0"), "--pairs"),
        (("--inputs", "0"), "--inputs"),
        (("--events", "0"), "--events"),
        (("--updates", "0"), "--updates"),
        (("--dose-per-event", "0"), "dose"),
        (("--dose-per-event", "nan"), "dose"),
        (("--tolerance", "nan"), "tolerance"),
        (("--layers", "nowhere"), "nowhere"),
        (("--expect-score", "nan"), "--expect-score"),
        (("--mode", "turnover", "--events", "2"), "burn-in"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line_and_nothing_is_written(
    options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    done = planaria(*SUBJECT, *options, cwd=tmp_path)
    assert done.code == 2 and said in done.err and "Traceback" not in done.err
    assert done.out == "" and everything_in(tmp_path) == {}


def test_as_many_networks_are_joined_as_the_pairs_allow(tmp_path: Path) -> None:
    networks = {pairs: landscape_plan.networks_of(pairs) for pairs in (1, 2, 3, 5, 6, 189, 190)}
    assert networks == {1: 2, 2: 2, 3: 3, 5: 3, 6: 4, 189: 19, 190: 20}


def test_help_says_what_it_takes(tmp_path: Path) -> None:
    done = planaria("landscape", "--help", cwd=tmp_path)
    assert done.code == 0
    for word in ("--mode", "--repair", "--pairs", "--curves", "--methods", "--grid", "--inputs", "--span"):
        assert word in done.out


def test_a_report_is_written(walked: Finished, tmp_path: Path) -> None:
    walked.copy(tmp_path / "run")
    assert planaria(*walked.command, "--out", "run", cwd=tmp_path).code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>") and "Surfaces of the loss" in page
