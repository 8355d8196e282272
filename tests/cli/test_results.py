"""What a rescue leaves: one JSON document, a table, a manifest, a report, and a network that loads back."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from command_line import Finished, everything_in, planaria
from planaria.cli.results import gate
from planaria.cli.screen import Screen

CONTROLS = ["extra", "dropout", "scratch"]
REPAIRS = ["none", "refit", "sequential", "retrain", "regrow", "regrow-new", "iterative", "refit+retrain", *CONTROLS]
GRADIENT = {"retrain", "regrow", "regrow-new", "iterative", "refit+retrain", *CONTROLS}
COST = {
    "examples": int,
    "labels": int,
    "forward_passes": int,
    "backward_passes": int,
    "multiply_adds": int,
    "seconds": float,
}
QUESTIONS = [
    "Is iterative repair better than batch?",
    "Do controls explain the gain of iterative repair?",
    "Can it be rescued at all?",
    "Which repair is cheapest?",
    "Is there a transition?",
    "How much can it lose?",
]
ROW = {
    "repair": str,
    "dose": float,
    "seed": int,
    "score_before": float,
    "score_damaged": float,
    "score_after": float,
    "rescued": bool,
    "cost": dict,
    "cost_since_last_hit": dict,
}


def rows_of(finished: Finished, *repairs: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = finished.done.document["rows"]
    return [row for row in rows if not repairs or row["repair"] in repairs]


# --------------------------------------------------------------------------------------------------- stdout


def test_stdout_is_exactly_one_json_document(finished: Finished) -> None:
    document = finished.done.document
    assert finished.done.out.count("\n") == 1 and finished.done.out.endswith("}\n")
    assert document["command"] == "rescue"
    assert document["schema"] == "planaria.rescue.v1"
    assert {
        "network",
        "task",
        "rows",
        "summary",
        "files",
        "settings",
        "intact",
        "response",
    } <= document.keys()


def test_progress_goes_to_stderr(finished: Finished) -> None:
    assert "training mlp:64-16-10" in finished.done.err
    assert "intact score on the test split: 0." in finished.done.err


def test_there_is_one_row_per_repair_dose_and_seed(finished: Finished) -> None:
    cells = [(row["dose"], row["repair"], row["seed"]) for row in rows_of(finished)]
    assert cells == [(dose, repair, seed) for dose in (0.3, 0.6) for repair in REPAIRS for seed in (0, 1)]


def test_every_row_has_the_promised_fields_and_types(finished: Finished) -> None:
    for row in rows_of(finished):
        for name, kind in ROW.items():
            assert type(row[name]) is kind, name
        for costs in (row["cost"], row["cost_since_last_hit"]):
            assert {name: type(value) for name, value in costs.items()} == COST
        assert all(0 <= row[name] <= 1 for name in ("score_before", "score_damaged", "score_after", "dose"))
        assert (row["rescue_cost"] is None) == (not row["rescued"])


def test_scores_are_fractions_of_the_test_split(finished: Finished) -> None:
    assert finished.done.document["task"]["splits"]["test"] == 540
    for row in rows_of(finished):
        hits = row["score_after"] * 540
        assert hits == pytest.approx(round(hits), abs=1e-6)


def test_closed_forms_say_what_they_make_good_in_each_layer(finished: Finished) -> None:
    fits = finished.done.document["fits"]
    assert {(fit["repair"], fit["reader"]) for fit in fits} == {
        (repair, "layers.2.weight") for repair in ("refit", "sequential")
    }
    for fit in fits:
        assert 0 <= fit["after"] < fit["before"] and fit["dead"] > 0 < fit["living"]
        assert fit["held_out"] == (fit["repair"] == "sequential")


def test_some_are_rescued_and_some_are_not(finished: Finished) -> None:
    for row in rows_of(finished):
        reached = [point["validation"] >= row["validation_before"] - 0.1 for point in row["curve"]]
        assert not row["rescued"] or any(reached)
    assert {row["rescued"] for row in rows_of(finished)} == {True, False}


def test_damage_hurts_and_doing_nothing_changes_nothing_and_costs_nothing(finished: Finished) -> None:
    for row in rows_of(finished, "none"):
        assert row["score_damaged"] < row["score_before"]
        assert row["score_after"] == row["score_damaged"]
        assert not any(row["cost"].values())


def test_every_repair_meets_the_same_lesion(finished: Finished) -> None:
    for dose in (0.3, 0.6):
        for seed in (0, 1):
            same = [r for r in rows_of(finished) if (r["dose"], r["seed"]) == (dose, seed)]
            assert len({r["score_damaged"] for r in same}) == 1
            assert len({r["score_before"] for r in same}) == 1


def test_repairs_by_gradient_use_the_same_work_to_within_one_update(finished: Finished) -> None:
    settings = finished.done.document["settings"]
    budget, update = settings["multiply_adds"], settings["multiply_adds"] / settings["updates"]
    for row in rows_of(finished, *GRADIENT):
        assert budget <= row["cost"]["multiply_adds"] < budget + update


def test_refit_from_the_sidecar_uses_neither_data_nor_gradients(finished: Finished) -> None:
    for row in rows_of(finished, "refit"):
        cost = row["cost"]
        assert (cost["examples"], cost["labels"], cost["forward_passes"], cost["backward_passes"]) == (
            0,
            0,
            0,
            0,
        )
        assert cost["multiply_adds"] > 0


def test_the_iterative_repair_is_counted_twice_in_total_and_since_the_last_hit(finished: Finished) -> None:
    for row in rows_of(finished, "iterative"):
        assert 0 < row["cost_since_last_hit"]["backward_passes"] < row["cost"]["backward_passes"]
    for row in rows_of(finished, "retrain"):
        assert row["cost_since_last_hit"] == row["cost"]


def test_controls_spend_as_much_after_the_last_hit_as_the_iterative_repair(finished: Finished) -> None:
    left = {row["cost_since_last_hit"]["backward_passes"] for row in rows_of(finished, "iterative", "extra", "dropout")}
    assert left == {2}  # of 20, in ten bites
    for row in rows_of(finished, "extra", "dropout"):
        assert row["curve"][0]["dead"] == 0 < row["curve"][-1]["dead"]
    for row in rows_of(finished, "scratch"):
        assert row["cost_since_last_hit"] == row["cost"]


def test_the_verdicts_answer_in_words_and_numbers(finished: Finished) -> None:
    verdicts = finished.done.document["verdicts"]
    assert [verdict["question"] for verdict in verdicts] == QUESTIONS
    for verdict in verdicts:
        assert verdict.keys() == {"question", "answer", "words", "numbers"}
        assert verdict["answer"] and verdict["words"].endswith(".")
        for value in verdict["numbers"].values():
            assert value is None or isinstance(value, (int, float, str)) or value.keys() == {"low", "best", "high"}
    difference = verdicts[0]["numbers"]["score difference"]
    iterative, batch = (
        sum(row["score_after"] for row in rows_of(finished, name)) / 4 for name in ("iterative", "retrain")
    )
    assert difference["best"] == pytest.approx(iterative - batch)


def test_the_summary_has_means_with_intervals_per_repair_and_dose(finished: Finished) -> None:
    summary = finished.done.document["summary"]
    assert [(line["dose"], line["repair"]) for line in summary] == [(d, r) for d in (0.3, 0.6) for r in REPAIRS]
    for line in summary:
        rows = [r for r in rows_of(finished, line["repair"]) if r["dose"] == line["dose"]]
        mean = sum(row["score_after"] for row in rows) / len(rows)
        assert line["trials"] == len(rows) == 2
        assert line["after"]["best"] == pytest.approx(mean)
        assert 0 <= line["after"]["low"] <= mean <= line["after"]["high"] <= 1
        assert line["rescued"] == sum(row["rescued"] for row in rows)


def test_the_network_and_the_task_are_identified(finished: Finished) -> None:
    document = finished.done.document
    network, task = document["network"], document["task"]
    assert (network["name"], network["parameters"]) == ("mlp:64-16-10", 64 * 16 + 16 + 16 * 10 + 10)
    assert len(network["sha256"]) == 64 and network["trained"]["epochs"] == 6
    (group,) = network["units"]
    assert (group["layer"], group["kind"], group["count"], group["exact"]) == ("layers.0", "neuron", 16, True)
    assert task["name"] == "digits?train=400" and task["preprocessing"]["divided_by"] == 16.0
    assert len(task["sha256"]) == 6 and "first 400" in task["split_rule"]


def test_the_response_curve_begins_at_the_intact_score_and_ends_at_all_units(finished: Finished) -> None:
    response, intact = finished.done.document["response"], finished.done.document["intact"]
    assert response["doses"][0] == 0 and response["doses"][-1] == 1
    assert response["mean"][0] == pytest.approx(intact["test"])
    assert intact["interval"][0] < intact["test"] < intact["interval"][1]
    assert len(response["draws"]) == 20 and all(len(line) == 11 for line in response["draws"])


# ---------------------------------------------------------------------------------------------------- files


def test_the_files_are_where_the_document_says(finished: Finished) -> None:
    files = finished.done.document["files"]
    assert set(files) == {"report", "results", "compact", "manifest", "network"}
    for path in files.values():
        assert (finished.folder.parent / path).is_file()


def test_the_csv_has_the_same_rows(finished: Finished) -> None:
    with (finished.folder / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    rows = rows_of(finished)
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        for name in ("repair", "dose", "seed", "score_before", "score_damaged", "score_after", "rescued"):
            assert line[name] == str(row[name])
        for name, value in row["cost"].items():
            assert line[f"cost.{name}"] == str(value)
        rescue = row["rescue_cost"]
        assert line["rescue_cost.backward_passes"] == ("" if rescue is None else str(rescue["backward_passes"]))


def test_the_manifest_has_what_is_needed_to_run_it_again(finished: Finished) -> None:
    manifest = json.loads((finished.folder / "manifest.json").read_text())
    document = finished.done.document
    assert manifest["complete"] is True
    assert set(manifest["versions"]) >= {"planaria", "python", "torch", "numpy"}
    assert manifest["threads"] == 1 and manifest["cpu_capability"]
    assert manifest["command_line"][0] == "planaria"
    settings = manifest["settings"]
    assert (settings["seeds"], settings["doses"], settings["updates"]) == ([0, 1], [0.3, 0.6], 20)
    assert settings["repairs"] == REPAIRS
    assert settings["task"]["sha256"] == document["task"]["sha256"]
    assert manifest["network"]["sha256"] == document["network"]["sha256"]


def test_the_best_network_loads_back_and_scores_what_its_row_says(finished: Finished, tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(finished.folder / "best.safetensors", framework="pt") as file:
        words = file.metadata()
    (row,) = [
        row
        for row in rows_of(finished, words["planaria.repair"])
        if str(row["dose"]) == words["planaria.dose"] and str(row["seed"]) == words["planaria.seed"]
    ]
    weights = finished.folder / "best.safetensors"
    subject = ("--model", "mlp:64-16-10", "--task", "digits?train=400", "--weights", weights)
    done = planaria("respond", *subject, "--quick", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.document["intact"]["test"] == row["score_after"]
    assert done.document["network"]["source"] == str(weights)
    repaired = [r for r in rows_of(finished) if r["repair"] != "none"]
    assert row == max(repaired, key=lambda r: (r["rescued"], r["dose"], r["validation_after"]))


class Sources(HTMLParser):
    """Collects what a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            loads = name == "src" or (name == "href" and tag == "link")
            if loads and not (value or "").startswith("data:"):
                self.wanted.append(f"{tag} {name}={value}")


def test_the_report_is_one_file_that_loads_nothing_from_elsewhere(finished: Finished) -> None:
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    parser = Sources()
    parser.feed(page)
    assert parser.wanted == []
    for word in (
        "mlp:64-16-10",
        "digits?train=400",
        "refit+retrain",
        finished.done.document["network"]["sha256"][:8],
    ):
        assert word in page


def test_the_folder_holds_these_files_and_nothing_else(finished: Finished) -> None:
    assert set(everything_in(finished.folder)) == {
        "best.safetensors",
        "compact.safetensors",
        "intact.safetensors",
        "ledger.sqlite",
        "manifest.json",
        "report.html",
        "result.json",
        "results.csv",
    }


# --------------------------------------------------------------- the same finished run, said in other ways


def again(finished: Finished, folder: Path, *more: str, json_too: bool = False, **how: Any) -> Any:
    """The same command on a copy of the finished run: nothing is left to do but to say it."""
    command = finished.command if json_too else finished.command[:-1]
    assert finished.command[-1] == "--json"
    if not (folder / "run").exists():
        finished.copy(folder / "run")
    return planaria(*command, "--out", "run", *more, cwd=folder, **how)


def test_without_json_stdout_has_a_table_and_the_places_of_the_files(finished: Finished, tmp_path: Path) -> None:
    done = again(finished, tmp_path)
    assert done.code == 0
    for word in ("repair", "damaged", "after", "rescued", *REPAIRS, *QUESTIONS, "run/report.html", "run/results.csv"):
        assert word in done.out
    before = 100 * rows_of(finished)[0]["score_before"]
    assert f"{before:.1f}" in done.out
    assert "training" not in done.out and "intact score" not in done.out


def test_quiet_says_nothing_on_stderr(finished: Finished, tmp_path: Path) -> None:
    assert again(finished, tmp_path, "--quiet").err == ""


def test_a_terminal_sees_colours_and_no_color_takes_them_away(finished: Finished, tmp_path: Path) -> None:
    def coloured(text: str) -> bool:
        return re.search(r"\x1b\[(\d+;)*(3[0-8]|9[0-7])[;m]", text) is not None

    plain = again(finished, tmp_path, "--fail-under", "1", terminal=True, environment={"NO_COLOR": "1"})
    bright = again(finished, tmp_path, "--fail-under", "1", terminal=True)
    assert not coloured(plain.out + plain.err)
    assert coloured(bright.err)


def test_json_on_a_terminal_is_still_one_document(finished: Finished, tmp_path: Path) -> None:
    done = again(finished, tmp_path, json_too=True, terminal=True)
    assert done.document["rows"] == rows_of(finished)


@pytest.mark.parametrize(("limit", "code"), [("0.1", 0), ("0.999", 1)])
def test_the_gate_decides_the_exit_code_and_the_results_stay(
    finished: Finished, tmp_path: Path, limit: str, code: int
) -> None:
    done = again(finished, tmp_path, "--fail-under", limit, json_too=True)
    assert done.code == code
    assert done.document["rows"] == rows_of(finished)
    assert ("Gate failed" in done.err and "0.999" in done.err) == bool(code)


def test_a_score_of_nothing_passes_a_gate_below_it() -> None:
    screen = Screen(out=None, fresh=False, dry_run=False, as_json=False, quiet=True)
    row: dict[str, Any] = {"dose": 0.5, "after": {"best": 0.0}}
    assert gate({"summary": [row]}, -0.5, screen) == 0
    assert gate({"summary": [{**row, "after": {"best": None}}]}, -0.5, screen) == 1
