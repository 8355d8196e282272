"""Bad input ends in one message that says what was wrong with what, the right exit code, and nothing written."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from command_line import TINY, Done, everything_in, planaria
from planaria.measure.models import build


class Harmful:
    """Unpickling it runs a command."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("harmed",)


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of unusable weights and data."""
    folder = tmp_path_factory.mktemp("broken")
    good = build("mlp:64-16-10", (64,), 10, 0)
    state = {name: tensor.clone() for name, tensor in good.state_dict().items()}
    save_file(build("mlp:64-12-10", (64,), 10, 0).state_dict(), folder / "narrow.safetensors")
    save_file({f"other.{name}": tensor for name, tensor in state.items()}, folder / "other.safetensors")
    state["layers.2.bias"][3] = float("nan")
    save_file(state, folder / "nan.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "nan.safetensors").read_bytes()[:500])
    (folder / "text.weights").write_text("no weights")
    torch.save({"epoch": 3, "optimizer": {}}, folder / "no-tensors.pt")
    torch.save(good, folder / "whole.pt")
    torch.save({"layers.0.weight": Harmful()}, folder / "harmful.pt")
    (folder / "harmful.pkl").write_bytes(pickle.dumps({"layers.0.weight": Harmful()}))
    torch.jit.trace(nn.Linear(64, 10), torch.zeros(1, 64)).save(folder / "script.pt")
    torch.export.save(torch.export.export(nn.Linear(64, 10), (torch.zeros(1, 64),)), folder / "program.pt2")

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)).astype("f"), np.arange(60) % 3
    hole = x.copy()
    hole[3, 2] = np.nan
    sets = {
        "good": (x, y, x, y),
        "nan": (hole, y, x, y),
        "empty": (x[:0], y[:0], x, y),
        "short": (x, y[:50], x, y),
        "shapes": (x, y, x[:, :4], y),
        "negative": (x, y - 1, x, y),
        "objects": (np.array([object()] * 60), y, x, y),
    }
    for name, arrays in sets.items():
        x_train, y_train, x_test, y_test = arrays
        np.savez(folder / f"{name}.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    (folder / "nets.py").write_text(
        "from torch import nn\n"
        "def lone(): return nn.Linear(64, 10)\n"
        "def failing(): raise RuntimeError('no such luck')\n"
        "def number(): return 3\n"
        "class Two(nn.Linear):\n"
        "    def forward(self, x): return x.long(), 'scores'\n"
        "def two(): return Two(64, 10)\n"
        "class Scaled(nn.Linear):\n"
        "    def forward(self, x, scale, shift): return super().forward(x) * scale + shift\n"
        "def scaled(): return Scaled(64, 10)\n"
        "def narrow(): return nn.Sequential(nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 7))\n"
    )
    (folder / "unfinished.py").write_text("def build(:\n")
    (folder / "coded").mkdir()
    settings = {"model_type": "bert", "auto_map": {"AutoModel": "mine.Mine"}}
    (folder / "coded" / "config.json").write_text(json.dumps(settings))
    (folder / "coded" / "mine.py").write_text("import os\nos.mkdir('harmed')\n")
    save_file(good.state_dict(), folder / "coded" / "model.safetensors")
    (folder / "foreign").mkdir()
    (folder / "foreign" / "modules.json").write_text(json.dumps([{"type": "os.system", "path": ""}]))
    (folder / "elsewhere.index.json").write_text(json.dumps({"weight_map": {"w": "../nan.safetensors"}}))
    return folder


def refused(folder: Path, args: tuple[str, ...], code: int, *words: str) -> Done:
    """Run a command that must be refused, and check the form of the refusal."""
    before = everything_in(folder)
    done = planaria(*args, cwd=folder)
    assert done.code == code, done.err
    assert done.out == ""
    assert "Traceback" not in done.err and "This is a bug" not in done.err
    for word in words:
        assert word in done.err
    assert everything_in(folder) == before
    return done


WEIGHTS = ("rescue", "--model", "mlp:64-16-10", "--weights")
WRONG: dict[str, tuple[int, tuple[str, ...], tuple[str, ...]]] = {
    # name: exit code, command, words of the message (BROKEN stands for the folder of unusable files)
    "unknown model": (2, ("rescue", "--model", "mpl"), ("--model", "'mpl'", "Did you mean mlp?")),
    "sizes that do not fit the task": (
        2,
        ("rescue", "--model", "mlp:64-16-11"),
        ("mlp:64-16-11", "from 64", "to 10", "For example mlp:64-64-10"),
    ),
    "sizes that are no numbers": (2, ("rescue", "--model", "mlp:64-x-10"), ("'64-x-10'", "whole numbers")),
    "an image network for vectors": (2, ("rescue", "--model", "cnn"), ("--model cnn", "[64]", "?flat=0")),
    "unknown task": (2, ("rescue", "--task", "minst"), ("task", "'minst'", "Did you mean mnist?")),
    "unknown key of a task": (2, ("rescue", "--task", "digits?trian=9"), ("'trian'", "Did you mean train?")),
    "more rows than there are": (2, ("rescue", "--task", "digits?train=9999"), ("at most 1069", "9999")),
    "unknown repair": (2, ("rescue", "--repairs", "none,refti"), ("--repairs", "'refti'", "mean refit?")),
    "no repair": (2, ("rescue", "--repairs", ","), ("--repairs", "at least one", "retrain")),
    "unknown optimiser": (2, ("rescue", "--optimiser", "adma"), ("--optimiser", "adma", "mean adam?")),
    "a rate of zero": (2, ("rescue", "--rate", "0"), ("--rate", "above 0")),
    "an infinite rate": (2, ("rescue", "--rate", "inf"), ("--rate", "finite", "inf")),
    "unknown order": (2, ("rescue", "--order", "biggest"), ("--order", "largest", "'biggest'")),
    "unknown kind": (2, ("rescue", "--kinds", "haed"), ("'haed'", "Did you mean head?")),
    "a kind this network has not": (2, ("rescue", "--kinds", "head"), ("units of kind head", "neuron")),
    "unknown layer": (2, ("rescue", "--layers", "layers.1"), ("'layers.1'", "layers.0, layers.2")),
    "unknown module to tap": (2, ("rescue", "--tap", "layer.0"), ("'layer.0'", "Did you mean layers.0?")),
    "unknown command": (2, ("rescu",), ("'rescu'", "'rescue'")),
    "unknown option": (2, ("rescue", "--dose", "0.5"), ("--dose", "--doses")),
    "an argument too many": (2, ("rescue", "digits"), ("(digits)", "Usage: planaria")),
    # weights
    "weights of another width": (
        2,
        (*WEIGHTS, "BROKEN/narrow.safetensors"),
        ("narrow.safetensors", "'layers.0.weight'", "[16, 64]", "[12, 64]", "--model"),
    ),
    "weights of another network": (
        2,
        (*WEIGHTS, "BROKEN/other.safetensors"),
        ("other.safetensors", "'layers.0.weight'", "'other.layers.", "--model"),
    ),
    "NaN in the weights": (
        2,
        (*WEIGHTS, "BROKEN/nan.safetensors"),
        ("layers.2.bias", "finite", "1 NaN or Inf among 10"),
    ),
    "a cut-off weights file": (2, (*WEIGHTS, "BROKEN/cut.safetensors"), ("cut.safetensors", "damaged")),
    "weights that are text": (2, (*WEIGHTS, "BROKEN/text.weights"), ("text.weights", "another kind")),
    "a missing weights file": (2, (*WEIGHTS, "nowhere.pt"), ("nowhere.pt", "got nothing", "Check the path")),
    "a folder for weights": (2, (*WEIGHTS, "BROKEN"), ("a file of weights", "got a folder")),
    "a checkpoint without tensors": (2, (*WEIGHTS, "BROKEN/no-tensors.pt"), ("no-tensors.pt", "'epoch'")),
    "a whole pickled module": (4, (*WEIGHTS, "BROKEN/whole.pt"), ("whole.pt", "plain tensors", "state_dict")),
    "a harmful pickle": (
        4,
        (*WEIGHTS, "BROKEN/harmful.pkl"),
        ("harmful.pkl", "plain tensors", "safetensors"),
    ),
    "a harmful archive": (4, (*WEIGHTS, "BROKEN/harmful.pt"), ("harmful.pt", "plain tensors", "safetensors")),
    "TorchScript": (4, (*WEIGHTS, "BROKEN/script.pt"), ("script.pt", "TorchScript", "safetensors")),
    "an exported program": (4, (*WEIGHTS, "BROKEN/program.pt2"), ("program.pt2", ".pt2", "safetensors")),
    "an index that leads elsewhere": (
        4,
        (*WEIGHTS, "BROKEN/elsewhere.index.json"),
        ("'../nan.safetensors'", "beside it"),
    ),
    # models from files
    "a pickled module": (4, ("rescue", "--model", "BROKEN/whole.pt"), ("a pickled module", "--trust", "safetensors")),
    "a harmful model": (4, ("rescue", "--model", "BROKEN/harmful.pt"), ("a pickled module", "--trust")),
    "a program that is not trusted": (
        4,
        ("units", "--model", "BROKEN/program.pt2"),
        ("an exported program", "--trust"),
    ),
    "a program for one row": (
        2,
        ("units", "--model", "BROKEN/program.pt2", "--trust"),
        ("runs whatever code is in", "any number of rows", "1 rows", "dynamic_shapes"),
    ),
    "a TorchScript model": (4, ("units", "--model", "BROKEN/script.pt", "--trust"), ("TorchScript", "no hooks")),
    "weights for a model": (2, ("units", "--model", "BROKEN/no-tensors.pt"), ("no-tensors.pt", "'epoch'")),
    "no model file": (2, ("units", "--model", "nowhere.onnx"), ("nowhere.onnx", "got nothing")),
    "no model folder": (2, ("units", "--model", "hf:nowhere"), ("hf:nowhere", "a folder with a model")),
    "a folder without settings": (2, ("units", "--model", "hf:BROKEN"), ("config.json", "save_pretrained")),
    "a folder that brings code": (
        4,
        ("units", "--model", "BROKEN/coded"),
        ("config.json: mine.Mine", "--trust"),
    ),
    "a folder of foreign modules": (4, ("units", "--model", "hf:BROKEN/foreign"), ("'os.system'", "modules.json")),
    "a model that needs more than the task gives": (
        2,
        ("units", "--model", "BROKEN/nets.py:scaled"),
        ("scale, shift",),
    ),
    # data
    "NaN in the data": (2, ("rescue", "--task", "npz:BROKEN/nan.npz"), ("train.inputs", "1 NaN or Inf")),
    "empty data": (
        2,
        ("rescue", "--task", "npz:BROKEN/empty.npz"),
        ("empty.npz", "at least one row", "[0, 5]"),
    ),
    "fewer labels than inputs": (
        2,
        ("rescue", "--task", "npz:BROKEN/short.npz"),
        ("60 inputs and 50 targets",),
    ),
    "splits of two shapes": (2, ("rescue", "--task", "npz:BROKEN/shapes.npz"), ("test.inputs", "[5]", "[4]")),
    "labels below the classes": (
        2,
        ("rescue", "--task", "npz:BROKEN/negative.npz"),
        ("labels from 0", "-1 at"),
    ),
    "labels above the classes": (
        2,
        ("rescue", "--task", "npz:BROKEN/good.npz?classes=2"),
        ("train.targets", "from 0 to 1", "2 at index 2"),
    ),
    "pickled objects in the data": (4, ("rescue", "--task", "npz:BROKEN/objects.npz"), ("run code",)),
    "missing data": (2, ("rescue", "--task", "npz:nowhere.npz"), ("nowhere.npz", "got nothing")),
    "a data folder that is none": (
        2,
        ("rescue", "--task", "mnist", "--data-dir", "no"),
        ("--data-dir", "'no'"),
    ),
    "a repository without revision": (2, ("rescue", "--task", "hf:ylecun/mnist"), ("hf:NAME@REVISION",)),
    "a network for other inputs": (
        2,
        ("rescue", "--task", "npz:BROKEN/good.npz", "--model", "BROKEN/nets.py:lone"),
        ("Linear on task", "[5]", "?flat"),
    ),
    "a network with too few outputs": (
        2,
        ("rescue", "--model", "BROKEN/nets.py:narrow"),
        ("10 outputs, one per class", "[7]"),
    ),
    "a network that returns no numbers": (
        2,
        ("rescue", "--model", "BROKEN/nets.py:two"),
        ("a tensor of floating-point numbers", "tuple"),
    ),
    # numbers
    "a dose above 1": (2, ("rescue", "--doses", "0.5,1.5"), ("dose", "from 0 to 1", "1.5")),
    "a dose below 0": (2, ("rescue", "--doses", "-0.1"), ("dose", "from 0 to 1", "-0.1")),
    "a dose of NaN": (2, ("rescue", "--doses", "nan"), ("dose", "from 0 to 1", "nan")),
    "a dose of the curve above 1": (2, ("respond", "--doses", "0:2:5"), ("dose", "from 0 to 1", "1.5")),
    "doses that are no numbers": (2, ("rescue", "--doses", "half"), ("--doses", "'half'", "0.3,0.5,0.7")),
    "a half-written range": (2, ("rescue", "--doses", "0:1:"), ("--doses", "START:STOP:COUNT")),
    "no doses": (2, ("rescue", "--doses", ""), ("--doses", "at least one number")),
    "a curve of the undamaged network": (2, ("respond", "--doses", "0"), ("--doses", "above 0")),
    "a rescue from 0 units": (
        2,
        ("rescue", "--damage", "Damage(Silence(), RandomUnits(Dose('units')))", "--doses", "0"),
        ("--doses", "above 0"),
    ),
    "no seeds": (2, ("rescue", "--seeds", "0"), ("--seeds", "1")),
    "seeds that are no number": (2, ("rescue", "--seeds", "some"), ("--seeds", "integer")),
    "no updates": (2, ("rescue", "--updates", "0"), ("--updates", "at least 1")),
    "a batch of nothing": (2, ("rescue", "--batch", "0"), ("--batch", "at least 1")),
    "no bites": (2, ("rescue", "--bites", "0"), ("--bites",)),
    "embryos less plastic than the rest": (2, ("rescue", "--ratio", "0.5"), ("--ratio", "at least 1")),
    "no epochs": (2, ("rescue", "--train-epochs", "0"), ("--train-epochs", "at least 1")),
    "no threads": (2, ("rescue", "--threads", "0"), ("--threads",)),
    "no draws": (2, ("respond", "--draws", "0"), ("--draws",)),
    "a negative tolerance": (2, ("rescue", "--tolerance", "-1"), ("--tolerance",)),
    "a tolerance of NaN": (2, ("rescue", "--tolerance", "nan"), ("olerance",)),
    "an expected score of NaN": (2, ("rescue", "--expect-score", "nan"), ("--expect-score", "finite")),
    "a gate of NaN": (2, ("rescue", "--fail-under", "nan"), ("--fail-under", "finite")),
    # devices
    "a GPU that is not there": (5, ("rescue", "--device", "cuda:99"), ("--device", "'cuda:99'", "cpu")),
    "a device that is none": (5, ("rescue", "--device", "toaster"), ("--device", "'toaster'", "cpu")),
    "a device that does not compute": (5, ("rescue", "--device", "meta"), ("--device", "'meta'", "cpu")),
    # damage
    "a damage that is rubbish": (2, ("rescue", "--damage", "rubbish"), ("damage", "known names", "rubbish")),
    "a damage that is code": (
        2,
        ("rescue", "--damage", "__import__('os').mkdir('harmed')"),
        ("known names",),
    ),
    "a damage misspelt": (2, ("rescue", "--damage", "Damage(Silnce(), RandomUnits())"), ("mean Silence?",)),
    "a damage without site": (2, ("rescue", "--damage", "Damage(Silence())"), ("damage", "site")),
    "a damage of numbers": (2, ("rescue", "--damage", "Damage(1, 2)"), ("Damage.fault", "got 1")),
    "a dose of text": (
        2,
        ("rescue", "--damage", "Damage(Silence(), RandomUnits('x'))"),
        ("RandomUnits", "'x'"),
    ),
    "a fault alone": (2, ("rescue", "--damage", "Silence()"), ("Damage(fault, site)", "Silence()")),
    "a damage of units that are not there": (
        2,
        ("rescue", "--damage", "Damage(Silence(), RandomUnits(kinds=('head',)))"),
        ("units of kind head", "neuron"),
    ),
    "a lesion of units that are not there": (
        2,
        ("rescue", "--damage", "Damage(Silence(), RankedUnits((Unit('layers.0', 99),)))"),
        ("layers.0", "99"),
    ),
    "a damage said twice": (
        2,
        ("rescue", "--damage", "Damage(Silence(), RandomUnits())", "--kinds", "neuron"),
        ("--damage", "--kinds"),
    ),
    # the user's own code
    "no such file": (2, ("rescue", "--model", "nofile.py:build"), ("nofile.py", "Check the path")),
    "no such function": (2, ("rescue", "--model", "BROKEN/nets.py:long"), ("'long'", "Did you mean lone?")),
    "no such module": (2, ("rescue", "--model", "no_module:build"), ("'no_module'", "file.py:name")),
    "a file that does not parse": (2, ("rescue", "--model", "BROKEN/unfinished.py:build"), ("SyntaxError",)),
    "a factory that fails": (2, ("rescue", "--model", "BROKEN/nets.py:failing"), ("no such luck", "--debug")),
    "a factory of something else": (2, ("rescue", "--model", "BROKEN/nets.py:number"), ("nn.Module", "int")),
    "a task that is none": (2, ("rescue", "--task", "py:BROKEN/nets.py:number"), ("a Task", "int")),
    "a model without units": (
        2,
        ("rescue", "--model", "BROKEN/nets.py:lone"),
        ("at least one unit", "no units at all", "its outputs are the network's outputs"),
    ),
    "a list of no units": (
        2,
        ("units", "--model", "BROKEN/nets.py:lone"),
        ("at least one layer with units", "its outputs are the network's outputs"),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_explained_and_nothing_is_written(case: str, broken: Path, tmp_path: Path) -> None:
    code, args, words = WRONG[case]
    refused(tmp_path, tuple(arg.replace("BROKEN", str(broken)) for arg in args), code, *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_where_there_is_none_is_an_environment_problem(tmp_path: Path) -> None:
    refused(tmp_path, ("rescue", "--device", "cuda"), 5, "--device", "'cuda'", "Use cpu")


def test_data_that_are_not_there_are_an_environment_problem_with_a_way_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    before = everything_in(tmp_path)
    done = planaria("rescue", "--task", "mnist", cwd=tmp_path, environment={"PLANARIA_DATA": "data"})
    assert done.code == 5 and done.out == ""
    for word in ("task mnist", "data/mnist", "train-images-idx3-ubyte.gz", "--data-dir", "torchvision:MNIST"):
        assert word in done.err
    assert everything_in(tmp_path) == before


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed here")
def test_a_library_that_is_missing_is_named_with_its_install_line(tmp_path: Path) -> None:
    refused(tmp_path, ("rescue", "--task", "torchvision:MNIST"), 5, "not installed", "pip install torchvision")


@pytest.mark.parametrize("case", ["a known task", "rescue", "respond"])
def test_messages_say_what_was_expected_what_came_and_what_to_do(case: str, tmp_path: Path) -> None:
    args, message = {
        "a known task": (
            ("units", "--task", "digit"),
            "planaria: task: expected a known task, got 'digit'. Did you mean digits? Known: ",
        ),
        "rescue": (
            ("rescue", "--repairs", "rerain"),
            "planaria: --repairs: expected a known repair, got 'rerain'. Did you mean retrain? Known: ",
        ),
        "respond": (
            ("respond", "--doses", "a,b"),
            "planaria: --doses: expected numbers separated by commas, got 'a,b'. For example 0.3,0.5,0.7.",
        ),
    }[case]
    assert refused(tmp_path, args, 2).err.startswith(message)


@pytest.mark.parametrize("file", ["harmful.pkl", "harmful.pt"])
def test_a_refused_pickle_is_explained_by_what_it_holds_and_not_by_torchs_own_advice(
    file: str, broken: Path, tmp_path: Path
) -> None:
    message = refused(tmp_path, (*WEIGHTS, str(broken / file)), 4).err
    assert "Please file an issue" not in message and "In PyTorch 2.6" not in message
    assert "nsupported" in message


# ------------------------------------------------------------------------------------------- output folders


def small_run(*more: str) -> tuple[str, ...]:
    return ("rescue", *TINY, "--repairs", "none", "--quick", *more)


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    refused(tmp_path, small_run("--out", "thesis"), 2, "thesis", "not ours", "--out")
    refused(tmp_path, small_run("--out", "thesis", "--fresh"), 2, "thesis", "not ours", "--out")


def test_a_folder_with_a_manifest_of_another_program_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "an app"}')
    refused(tmp_path, small_run("--out", "web", "--fresh"), 2, "web", "not ours")


def test_a_file_is_no_output_folder(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    refused(tmp_path, small_run("--out", "notes"), 2, "notes", "a folder for the results", "a file")


def test_a_folder_that_cannot_be_made_is_an_environment_problem(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    for more in ((), ("--fresh",)):
        refused(tmp_path, small_run("--out", "notes/run", *more), 5, "notes/run", "a folder to write to", "--out")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_environment_problem(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(stat.S_IRUSR | stat.S_IXUSR)
    refused(tmp_path, small_run("--out", "locked/run"), 5, "locked/run", "--out")


def test_an_expected_score_that_is_missed_stops_before_anything_is_written(tmp_path: Path) -> None:
    done = refused(tmp_path, small_run("--expect-score", "0.99"), 2, "--expect-score", "0.99", "preprocessing")
    assert "'divided_by': 16.0" in done.err


def test_a_network_near_chance_is_warned_about_even_when_quiet(tmp_path: Path) -> None:
    task = "digits?train=32&scale=raw&mean=500"
    done = planaria(*small_run("--task", task, "--train-epochs", "1", "--quiet"), cwd=tmp_path)
    assert done.code == 0
    assert "Warning: The intact network scores" in done.err and "near chance (0.100)" in done.err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="'mpl'"):
        planaria("--debug", "rescue", "--model", "mpl", cwd=tmp_path)


@pytest.mark.parametrize("colourless", [True, False])
def test_messages_on_a_terminal_are_coloured_unless_no_color_is_set(tmp_path: Path, colourless: bool) -> None:
    environment = {"NO_COLOR": "1"} if colourless else {}
    done = planaria("rescue", "--model", "mpl", cwd=tmp_path, terminal=True, environment=environment)
    assert ("\x1b[31m" in done.err) == (not colourless)
    assert "Did you mean mlp?" in done.err
