"""The user's own networks, weights, data and damage, named on the command line."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import planaria as pl
from command_line import TINY, Done, Finished, everything_in, planaria, without_time
from planaria.cli.rescuing import _hit_layers
from planaria.damage.damage import parse_damage

pytestmark = pytest.mark.usefixtures("plain_report")

BUDGET = ("--train-epochs", "4", "--updates", "20", "--seeds", "1", "--doses", "0.5", "--quick", "--json")


def succeed(folder: Path, *args: str | Path) -> dict[str, Any]:
    done = planaria(*args, cwd=folder)
    assert done.code == 0, done.err
    return done.document


def kinds(document: dict[str, Any]) -> dict[str, tuple[str, int, str]]:
    groups = document["groups"] if "groups" in document else document["network"]["units"]
    return {group["layer"]: (group["kind"], group["count"], group["method"]) for group in groups}


# -------------------------------------------------------------------------------------- networks and weights


def test_a_factory_in_a_file_with_weights_of_either_format_gives_the_same_results(own: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    state = model.state_dict()
    torch.save(state, own / "net.pt")
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, own / "run.pth")
    from safetensors.torch import save_file

    save_file(state, own / "net.safetensors")
    subject = ("rescue", "--model", "nets.py:small", "--task", "digits?train=400")
    results = [
        succeed(own, *subject, "--weights", name, *BUDGET, "--repairs", "none,refit,retrain")
        for name in ("net.safetensors", "net.pt", "run.pth")
    ]
    for result in results:
        assert result["network"]["trained"] is None and result["network"]["source"].startswith(("net.", "run."))
        assert without_time(result["rows"]) == without_time(results[0]["rows"])
        assert result["network"]["sha256"] == results[0]["network"]["sha256"]
    assert results[0]["network"]["units"][0]["layer"] == "0"


def test_a_factory_in_a_package_is_found_from_the_folder_of_the_command(own: Path) -> None:
    assert kinds(succeed(own, "units", "--model", "nets:small", "--json")) == {"0": ("neuron", 16, "slices")}
    assert kinds(succeed(own, "units", "--model", "./nets.py:small", "--json")) == {"0": ("neuron", 16, "slices")}


def test_an_exported_program_runs_with_trust_which_is_said_and_recorded(own: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, (torch.randn(3, 64),), dynamic_shapes=shapes), own / "net.pt2")
    torch.save(model, own / "net.pt")
    from safetensors.torch import save_file

    save_file(model.state_dict(), own / "net.safetensors")
    command = ("respond", "--task", "digits?train=400", "--quick", "--json")
    plain = succeed(own, *command, "--model", "nets.py:small", "--weights", "net.safetensors")
    for name in ("net.pt2", "net.pt"):
        done = planaria(*command, "--model", name, "--trust", "--out", f"{name}-run", cwd=own)
        assert done.code == 0, done.err
        assert f"Warning: --trust: loading {name} runs whatever code is in {name}, SHA-256 " in done.err
        assert done.document["network"]["source"] == name and done.document["network"]["trained"] is None
        assert done.document["intact"] == plain["intact"]
        assert done.document["rows"] == plain["rows"]
        settings = json.loads((own / f"{name}-run" / "manifest.json").read_text())["settings"]
        assert settings["files"][name] in settings["trusted"] and settings["training"] is None


def test_a_factory_that_hands_out_trained_weights_is_not_trained_again(own: Path) -> None:
    command = ("respond", "--model", "nets.py:small", "--task", "digits?train=400", "--quick", "--json")
    as_made = succeed(own, *command, "--train-epochs", "0")
    assert as_made["network"]["trained"] is None and as_made["intact"]["test"] < 0.4
    assert as_made["network"]["source"] == "nets.py:small"
    with (own / "nets.py").open("a") as file:
        file.write("\n\ndef halved():\n    return small().half()\n")
    halved = planaria("units", "--model", "nets.py:halved", "--task", "digits?train=400", cwd=own)
    assert halved.code == 0
    assert "Warning: Weights in half precision (float16) were converted to float32" in halved.err


def test_a_hugging_face_folder_is_a_network_with_its_weights(own: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="of the extra hf")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        num_labels=3,
    )
    transformers.utils.logging.disable_progress_bar()
    transformers.BertForSequenceClassification(config).save_pretrained(own / "bert")
    (own / "texts.py").write_text(
        "import torch\n"
        "def part(rows):\n"
        "    ids = torch.randint(0, 20, (rows, 6), generator=torch.Generator().manual_seed(rows))\n"
        "    return {'input_ids': ids, 'attention_mask': (ids > 3).long(), 'labels': torch.arange(rows) % 3}\n"
        "def load(): return {'train': part(60), 'test': part(40)}\n"
    )
    subject = ("--model", "hf:bert", "--task", "py:texts.py:load")
    document = succeed(own, "units", *subject, "--verify", "--json")
    assert {("head", 2), ("neuron", 12)} <= {(group["kind"], group["count"]) for group in document["groups"]}
    assert all(check["difference"] < 1e-4 for check in document["verified"])
    result = succeed(own, "respond", *subject, "--quick", "--json", "--out", "run")
    assert result["network"]["source"] == "hf:bert" and result["network"]["trained"] is None
    settings = json.loads((own / "run" / "manifest.json").read_text())["settings"]
    assert set(settings["files"]) == {"config.json", "model.safetensors"}


SEQUENCES = ("--task", "py:data.py:sequences")


ODD = """

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.products = nn.Bilinear(4, 4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.products(x[:, 0], x[:, 1])))
"""


@pytest.fixture
def odd(own: Path) -> Path:
    """A network with a layer that no rule knows."""
    with (own / "nets.py").open("a") as file:
        file.write(ODD)
    return own


def test_a_recurrent_network_has_units_of_its_own(own: Path) -> None:
    document = succeed(own, "units", "--model", "nets.py:recurrent", *SEQUENCES, "--verify", "--json")
    assert kinds(document) == {"rnn": ("recurrent", 6, "slices")}
    assert [check["layer"] for check in document["verified"]] == ["rnn"]


def test_a_network_of_unknown_layers_is_tapped_by_itself_and_says_so(odd: Path) -> None:
    own, subject = odd, ("--model", "nets.py:Odd", *SEQUENCES)
    document = succeed(own, "units", *subject, "--verify", "--json")
    assert kinds(document) == {"products": ("tap", 6, "tap")}
    (group,) = document["groups"]
    assert group["reason"] == "gain and offset at the module's output"
    assert [check["layer"] for check in document["verified"]] == ["products"]
    table = planaria("units", *subject, cwd=own).out
    assert "tap" in table and "gain and offset" in table


def test_a_tapped_network_is_rescued_goes_on_and_loads_back(odd: Path) -> None:
    own = odd
    command = ("rescue", "--model", "nets.py:Odd", *SEQUENCES, *BUDGET, "--out", "run")
    first = succeed(own, *command)
    assert without_time(succeed(own, *command)) == without_time(first)
    (own / "run" / "ledger.sqlite").unlink()
    assert without_time(succeed(own, *command)) == without_time(first)
    best = json.loads((own / "run" / "manifest.json").read_text())["files"]["network"]
    loaded = ("respond", "--model", "nets.py:Odd", *SEQUENCES, "--weights", best, "--quick", "--json")
    scores = {row["score_after"] for row in first["rows"] if row["repair"] != "none"}
    assert succeed(own, *loaded)["intact"]["test"] in scores


def test_a_tap_that_is_named_is_damaged_and_loads_back(own: Path) -> None:
    subject = ("--model", "nets.py:small", "--task", "digits?train=400", "--tap", "1")
    document = succeed(own, "rescue", *subject, "--kinds", "tap", *BUDGET, "--out", "run")
    assert kinds(document)["1"] == ("tap", 16, "tap")
    assert all(row["score_damaged"] < row["score_before"] for row in document["rows"])
    assert {row["units_deleted"] for row in document["rows"] if row["repair"] == "retrain"} == {8}
    weights = ("--weights", "run/best.safetensors", "--quick", "--json")
    again = succeed(own, "respond", *subject[:4], *weights)
    assert kinds(again)["1"] == ("tap", 16, "tap")


def test_a_transformer_encoder_has_heads_and_neurons_and_its_heads_can_be_chosen(own: Path) -> None:
    subject = ("--model", "nets.py:encoder", *SEQUENCES)
    document = succeed(own, "units", *subject, "--verify", "--json")
    found = kinds(document)
    assert found["encoder.layers.0.self_attn"] == ("head", 2, "slices")
    assert found["encoder.layers.0.linear1"] == ("neuron", 6, "slices")
    assert all(check["difference"] < 1e-4 for check in document["verified"])
    result = succeed(own, "rescue", *subject, "--kinds", "head", *BUDGET)
    assert {row["units_deleted"] for row in result["rows"] if row["repair"] in {"none", "refit", "retrain"}} == {1}


def test_a_network_with_dropout_is_retrained_the_same_way_twice(own: Path) -> None:
    command = ("rescue", "--model", "nets.py:dropping", "--task", "digits?train=400", *BUDGET)
    torch.manual_seed(1)
    one = succeed(own, *command, "--out", "one")
    torch.manual_seed(2)
    two = succeed(own, *command, "--out", "two")
    assert without_time(one) == without_time(two)


def test_torch_s_own_generator_is_left_as_it_was(own: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    succeed(own, "rescue", "--model", "nets.py:dropping", "--task", "digits?train=400", *BUDGET)
    assert torch.equal(torch.get_rng_state(), before)


# ----------------------------------------------------------------------------------------------------- data


def save_set(path: Path, regression: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 5)).astype("f")
    y = (x @ rng.normal(size=(5, 1))).astype("f") if regression else (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
    np.savez(path, x_train=x[:180], y_train=y[:180], x_test=x[180:], y_test=y[180:])


def test_arrays_with_labels_are_classified(own: Path) -> None:
    save_set(own / "set.npz", regression=False)
    document = succeed(own, "rescue", "--model", "nets.py:classifier", "--task", "npz:set.npz", *BUDGET)
    task = document["task"]
    assert (task["score"], task["classes"], task["input_shape"]) == ("accuracy", 3, [5])
    assert task["splits"] == {"train": 162, "validation": 18, "test": 60}
    assert {row["repair"] for row in document["rows"]} >= {"none", "refit", "retrain", "iterative", "scratch"}


def test_arrays_with_numbers_are_a_regression_scored_by_r2_in_table_and_report_too(own: Path) -> None:
    save_set(own / "set.npz", regression=True)
    command = ("rescue", "--model", "nets.py:regressor", "--task", "npz:set.npz", "--train-epochs", "60")
    done = planaria(*command, *BUDGET[2:], "--out", "run", cwd=own)
    assert done.code == 0, done.err
    document = done.document
    assert (document["task"]["score"], document["task"]["loss"], document["task"]["chance"]) == ("r2", "mse", 0)
    assert 0.5 < document["intact"]["test"] <= 1 and document["intact"]["interval"] == [None, None]
    after = {row["repair"]: row["score_after"] for row in document["rows"]}
    assert after["refit"] > after["none"]
    shown = planaria(*command, *BUDGET[2:-1], "--out", "run", cwd=own).out
    assert "r2 on the test split" in shown and f"{document['rows'][0]['score_before']:.3f}" in shown
    report = (own / "run" / "report.html").read_text(encoding="utf-8")
    assert "r2" in report.lower() and "nets.py:regressor" in report


def test_a_folder_of_images_is_a_task(own: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for part, count in (("train", 30), ("test", 10)):
        for label, shade in (("dark", 40), ("light", 200)):
            (own / "images" / part / label).mkdir(parents=True)
            for index in range(count):
                pixels = (shade + rng.integers(-30, 30, (6, 6))).astype("uint8")
                image.fromarray(pixels).save(own / "images" / part / label / f"{index}.png")
    document = succeed(own, "rescue", "--model", "nets.py:pictures", "--task", "folder:images", *BUDGET)
    task = document["task"]
    assert (task["classes"], task["input_shape"], task["splits"]["test"]) == (2, [1, 6, 6], 20)
    assert task["preprocessing"]["classes"] == ["dark", "light"]
    assert document["intact"]["test"] > 0.9


def test_a_function_of_loaders_is_a_task(own: Path) -> None:
    document = succeed(own, "rescue", "--model", "nets.py:recurrent", *SEQUENCES, *BUDGET, "--repairs", "none")
    task = document["task"]
    assert (task["classes"], task["input_shape"]) == (3, [7, 4])
    assert task["splits"] == {"train": 108, "validation": 12, "test": 60}


def test_a_shuffling_loader_is_read_in_the_same_order_every_time(own: Path) -> None:
    command = ("rescue", "--model", "nets.py:recurrent", "--task", "py:data.py:shuffled", *BUDGET, "--repairs", "none")
    torch.manual_seed(1)
    first = succeed(own, *command, "--out", "run")
    torch.manual_seed(2)
    again = planaria(*command, "--out", "run", cwd=own)
    assert again.code == 0, again.err
    assert again.document["task"]["sha256"] == first["task"]["sha256"]


def test_a_task_may_bring_its_own_loss_and_score(own: Path) -> None:
    subject = ("--model", "nets.py:regressor", "--task", "py:data.py:heights")
    document = succeed(own, "rescue", *subject, *BUDGET, "--repairs", "none,retrain")
    assert (document["task"]["score"], document["task"]["loss"]) == ("close", "smooth_l1_loss")
    assert all(0 <= row["score_after"] <= 1 for row in document["rows"])


# --------------------------------------------------------------------------------------------------- damage


def rescued(folder: Path, *more: str) -> dict[str, Any]:
    return succeed(folder, "rescue", *TINY, "--quick", "--repairs", "none,refit,retrain", "--json", *more)


def test_damage_of_edges_by_noise_is_written_as_in_python(tmp_path: Path) -> None:
    text = "Damage(Noise(0.2), RandomEntries())"
    document = rescued(tmp_path, "--damage", text)
    assert parse_damage(document["settings"]["damage"]) == parse_damage(text)
    assert document["settings"]["unit"] == document["response"]["unit"] == "fraction of entries"
    assert all(row["units_deleted"] == 0 for row in document["rows"])


def test_a_dose_may_be_a_number_of_units(tmp_path: Path) -> None:
    text = "Damage(Silence(), RandomUnits(Dose('units')))"
    document = rescued(tmp_path, "--damage", text, "--doses", "3,5")
    assert document["settings"]["unit"] == "units"
    assert {(r["dose"], r["units_deleted"]) for r in document["rows"]} == {(3.0, 3), (5.0, 5)}
    wrong = planaria("rescue", "--damage", text, "--doses", "0.5", cwd=tmp_path)
    assert wrong.code == 2 and "a whole number of units" in wrong.err


def test_stuck_units_are_a_damage_too(tmp_path: Path) -> None:
    text = "Damage(StuckAt(1.0), RandomUnits(per_layer=True))"
    document = rescued(tmp_path, "--damage", text)
    assert parse_damage(document["settings"]["damage"]) == parse_damage(text)
    assert any(row["score_damaged"] != row["score_before"] for row in document["rows"])


def test_the_largest_units_first_is_the_same_lesion_under_every_seed(tmp_path: Path) -> None:
    document = rescued(tmp_path, "--order", "largest", "--seeds", "2")
    assert len({row["score_damaged"] for row in document["rows"]}) == 1
    assert "RankedUnits" in document["settings"]["damage"]
    smallest = rescued(tmp_path, "--order", "smallest")
    assert smallest["rows"][0]["score_damaged"] > document["rows"][0]["score_damaged"]


def test_pooled_and_per_layer_are_different_lesions_of_the_same_size(tmp_path: Path) -> None:
    model = ("--model", "mlp:64-16-8-10", "--repairs", "none")
    pooled, layered = rescued(tmp_path, *model, "--pooled"), rescued(tmp_path, *model)
    assert "per_layer=False" in pooled["settings"]["damage"] and "per_layer=True" in layered["settings"]["damage"]
    assert pooled["rows"][0]["units_deleted"] == layered["rows"][0]["units_deleted"] == 12
    assert pooled["files"]["report"] != layered["files"]["report"]


def test_only_the_named_layer_is_damaged(tmp_path: Path) -> None:
    document = rescued(tmp_path, "--model", "mlp:64-16-8-10", "--layers", "layers.2", "--doses", "1")
    assert {row["units_deleted"] for row in document["rows"]} == {8}
    assert "layers=('layers.2',)" in document["settings"]["damage"]


def test_one_seed_and_one_dose_give_no_interval_and_no_crash(tmp_path: Path) -> None:
    done = planaria("rescue", *TINY, "--quick", "--doses", "0.5", "--out", "run", cwd=tmp_path)
    assert done.code == 0 and "nan" not in done.out.lower()
    summary = json.loads((tmp_path / "run" / "result.json").read_text())["summary"]
    assert all(line["trials"] == 1 and line["after"]["low"] is None for line in summary)


def test_dose_0_is_the_intact_network_and_dose_1_takes_every_unit(tmp_path: Path) -> None:
    document = rescued(tmp_path, "--doses", "0,1")
    for row in document["rows"]:
        if row["dose"] == 0:
            assert row["units_deleted"] == 0 and row["score_damaged"] == row["score_before"]
        else:
            assert row["units_deleted"] == 16 and row["score_damaged"] < 0.2
    untouched = next(row for row in document["rows"] if (row["repair"], row["dose"]) == ("refit", 0))
    assert untouched["score_after"] == untouched["score_before"] and untouched["rescued"]


def test_the_control_alone_leaves_no_network(tmp_path: Path) -> None:
    document = rescued(tmp_path, "--repairs", "none", "--out", "run")
    assert document["files"]["network"] is None
    assert {row["repair"] for row in document["rows"]} == {"none"}
    assert "best.safetensors" not in everything_in(tmp_path / "run")


def test_a_repair_that_diverges_is_a_result_and_leaves_no_network_that_cannot_be_loaded(own: Path) -> None:
    save_set(own / "set.npz", regression=True)
    subject = ("rescue", "--model", "nets.py:regressor", "--task", "npz:set.npz", "--out", "run")
    command = (*subject, *BUDGET[:-1], "--repairs", "retrain", "--optimiser", "sgd", "--rate", "1e9")
    document = succeed(own, *command, "--json")
    (row,) = document["rows"]
    assert row["score_after"] is None and row["rescued"] is False and row["rescue_cost"] is None
    assert document["summary"][0]["after"]["best"] is None
    assert document["files"]["network"] is None and not (own / "run" / "best.safetensors").exists()
    shown = planaria(*command, cwd=own)
    assert shown.code == 0 and "nan" not in shown.out.lower()


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_every_optimiser_retrains(tmp_path: Path, optimiser: str) -> None:
    document = rescued(tmp_path, "--optimiser", optimiser, "--repairs", "retrain")
    (row,) = document["rows"]
    assert document["settings"]["optimiser"] == optimiser
    assert row["score_after"] > row["score_damaged"]


def test_bites_of_the_iterative_repair_are_counted(tmp_path: Path) -> None:
    document = rescued(tmp_path, "--repairs", "iterative", "--bites", "4", "--updates", "40")
    (row,) = document["rows"]
    assert row["cost"]["backward_passes"] == 40 and row["cost_since_last_hit"]["backward_passes"] == 10
    assert sorted({point["dead"] for point in row["curve"]}) == [0.125, 0.25, 0.375, 0.5]


def test_the_sequential_refit_reads_as_many_inputs_as_were_given(tmp_path: Path) -> None:
    document = rescued(tmp_path, "--repairs", "sequential", "--inputs", "128")
    (row,) = document["rows"]
    # A few more are looked at to learn how the network arranges its inputs.
    assert 128 <= row["cost"]["examples"] <= 134
    assert row["cost"]["labels"] == 0


# ------------------------------------------------------------------------------------------- preprocessing


@pytest.fixture
def weights(data_root: Path) -> Path:
    path = data_root.parent / "models" / "mnist-fc-256x2" / "mnist_fc_256x2.safetensors"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    return path


def looked_at(folder: Path, weights: Path, task: str) -> Done:
    subject = ("--model", "nets.py:digits", "--weights", weights, "--task", task, "--expect-score", "0.98")
    return planaria("rescue", *subject, "--repairs", "none", "--quick", "--json", "--out", "run", cwd=folder)


def test_real_weights_with_their_own_preprocessing_have_the_expected_score(own: Path, weights: Path) -> None:
    done = looked_at(own, weights, "mnist?flat=1&test=2000")
    assert done.code == 0, done.err
    assert abs(done.document["intact"]["test"] - 0.98) <= 0.01
    assert "intact score on the test split: 0.97" in done.err or "intact score on the test split: 0.98" in done.err


def test_wrong_preprocessing_is_noticed_before_anything_is_written(own: Path, weights: Path) -> None:
    before = everything_in(own)
    done = looked_at(own, weights, "mnist?flat=1&test=2000&mean=0.1307&std=0.3081")
    assert done.code == 2 and done.out == ""
    assert "--expect-score: expected an intact score within 0.01 of 0.98, got 0." in done.err
    assert "preprocessing" in done.err and "0.1307" in done.err and "0.3081" in done.err
    assert everything_in(own) == before


def test_an_expected_score_that_is_met_changes_nothing(finished: Finished, tmp_path: Path) -> None:
    finished.copy(tmp_path / "run")
    intact = finished.done.document["intact"]["test"]
    done = planaria(*finished.command, "--expect-score", str(intact), "--out", "run", cwd=tmp_path)
    assert done.code == 0 and done.document["rows"] == finished.done.document["rows"]


def test_a_branch_whose_readers_all_die_is_not_said_to_be_damaged() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False)
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x + self.down(torch.relu(self.up(x))))

    net = pl.Network.of(Residual(), torch.ones(2, 4))
    assert _hit_layers(net, pl.Damage(pl.Silence(), pl.RandomUnits(per_layer=True))) == ("up",)
