"""Models in one file: exported programs and pickles only with trust, ONNX only where it agrees with onnxruntime."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planaria.core.anatomy import Anatomy
from planaria.core.errors import EnvironmentProblem, InputError, UnsafeError
from planaria.core.network import Network
from planaria.measure import loaded, onnx_files
from planaria.measure.loaded import full_precision
from planaria.measure.models import build, carried_code, carries_weights, load
from planaria.measure.programs import from_file

IMAGE = (1, 6, 6)
ANY = {0: torch.export.Dim.DYNAMIC}


def small_cnn() -> nn.Module:
    """A network with statistics and a layer that does something else in training."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(36, 5),
    )
    nn.init.normal_(model[1].running_mean)  # type: ignore[arg-type]
    nn.init.uniform_(model[1].running_var, 0.5, 2)  # type: ignore[arg-type]
    return model.eval()


class Joined(nn.Module):
    """Two inputs with names, one of them optional."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, left: Tensor, right: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.first(left + right))
        return self.last(hidden if scale is None else hidden * scale), hidden


def export(model: nn.Module, inputs: tuple[Any, ...], path: Path, shapes: Any = ({**ANY},)) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, inputs, dynamic_shapes=shapes), path)
    return path


def rows(count: int) -> Tensor:
    return torch.randn(count, *IMAGE, generator=torch.Generator().manual_seed(count))


class Trap:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


# ------------------------------------------------------------------------------------------ exported programs


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(small_cnn(), (rows(3),), tmp_path_factory.mktemp("program") / "net.pt2")


def test_an_exported_program_computes_what_it_was_made_from_for_any_number_of_rows(program: Path) -> None:
    made = load(str(program), IMAGE, 5, 0, trust=True)
    assert made.trained and list(made.files) == ["net.pt2"]
    net = Network.of(made.module, rows(2))
    again = copy.deepcopy(made.module).train().eval()
    for count in (1, 2, 7, 50):
        expected = small_cnn()(rows(count))
        assert torch.allclose(made.module(rows(count)), expected, atol=1e-6)
        assert torch.allclose(net(rows(count)), expected, atol=1e-6)
        assert torch.allclose(again(rows(count)), expected, atol=1e-6)
    assert set(net.weights) == set(dict(small_cnn().named_parameters()))
    assert set(net.buffers) == {"1.running_mean", "1.running_var"}


def test_units_of_an_exported_program_are_silenced_exactly(program: Path) -> None:
    net = Network.of(build(str(program), IMAGE, 5, 0, trust=True), rows(2))
    anatomy = Anatomy.of(net)
    assert [(group.kind, group.count, group.method) for group in anatomy.groups] == [("channel", 4, "slices")]
    assert all(check.difference < 1e-5 for check in anatomy.verify(net, rows(8)))


def test_a_program_of_several_inputs_keeps_their_names_and_all_outputs(tmp_path: Path) -> None:
    model = Joined().eval()
    inputs = (torch.randn(3, 3), torch.randn(3, 3))
    path = export(model, inputs, tmp_path / "joined.pt2", (ANY, ANY))
    made = build(str(path), (3,), 2, 0, trust=True)
    left, right = torch.randn(5, 3), torch.randn(5, 3)
    for given in (made(left, right), made(right=right, left=left)):
        assert [tensor.shape for tensor in given] == [(5, 2), (5, 4)]
        assert torch.allclose(given[0], model(left, right)[0], atol=1e-6)
    net = Network.of(made, {"left": left, "right": right})
    assert torch.allclose(net({"left": left, "right": right}), model(left, right)[0], atol=1e-6)


def test_a_program_for_one_number_of_rows_or_of_a_training_network_is_refused_with_the_way_out(tmp_path: Path) -> None:
    at_most = ({0: torch.export.Dim("rows", max=64)},)
    fixed = export(small_cnn(), (rows(3),), tmp_path / "fixed.pt2", None)
    bounded = export(small_cnn(), (rows(3),), tmp_path / "bounded.pt2", at_most)
    training = export(small_cnn().train(), (rows(3),), tmp_path / "training.pt2")
    for path, message in ((fixed, "3 rows in"), (bounded, "at most 64 rows"), (training, "in training")):
        with pytest.raises(InputError) as caught:
            from_file(path, IMAGE, "--model", trust=True)
        assert message in str(caught.value)
        assert "torch.export.export(model.eval(), (x,), dynamic_shapes=" in str(caught.value)


def with_member(source: Path, target: Path, end: str, content: bytes | Callable[[bytes], bytes]) -> Path:
    """A copy of an archive with other content in the member whose name ends so."""
    replaced = 0
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith(end):
                data, replaced = content(data) if callable(content) else content, replaced + 1
            new.writestr(name, data)
    assert replaced == 1
    return target


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def hostile_files(folder: Path, program: Path, canary: Path) -> list[Path]:
    """Files that would run a command if they were read without care."""

    def flagged(config: bytes) -> bytes:
        table = json.loads(config)
        for entry in table["config"].values():
            entry["use_pickle"] = True
        return json.dumps(table).encode()

    trap = Trap(canary)
    inputs = with_member(program, folder / "inputs.pt2", "sample_inputs/model.pt", pickled(trap))
    config = with_member(program, folder / "config.pt2", "model_weights_config.json", flagged)
    weights = with_member(config, folder / "weights.pt2", "weight_0", pickled(trap))
    torch.save({"a": trap}, folder / "dict.pt")
    torch.save({"a": trap}, folder / "old.ckpt", _use_new_zipfile_serialization=False)
    (folder / "plain.pkl").write_bytes(pickle.dumps(trap))
    (folder / "renamed.pt").write_bytes(inputs.read_bytes())
    torch.save(nn.Sequential(nn.Linear(2, 2)), folder / "module.pth")
    (folder / "plain.pt2").write_bytes(pickle.dumps(trap))
    config.unlink()
    return [inputs, weights, *(path for path in sorted(folder.iterdir()) if path not in (inputs, weights))]


def test_nothing_that_can_run_code_is_read_without_trust(tmp_path: Path, program: Path) -> None:
    folder, canary = tmp_path / "files", tmp_path / "canary"
    folder.mkdir()
    files = hostile_files(folder, program, canary)
    assert len(files) == 8
    for path in files:
        assert carried_code(str(path)) is not None
        assert carries_weights(str(path))
        with pytest.raises(UnsafeError, match="--trust") as caught:
            load(str(path), IMAGE, 5, 0)
        assert caught.value.exit_code == 4
        assert not canary.exists(), path.name
    with pytest.raises(InputError):  # and with trust it runs, as the message says
        load(str(folder / "dict.pt"), IMAGE, 5, 0, trust=True)
    assert canary.is_dir()


def test_a_pickled_module_loads_with_trust_and_what_is_none_is_told_apart(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    torch.save(model, tmp_path / "net.pt")
    made = load(str(tmp_path / "net.pt"), (4,), 2, 0, trust=True)
    assert made.trained and torch.equal(made.module(torch.ones(1, 4)), model(torch.ones(1, 4)))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    with pytest.raises(InputError, match=r"weights alone.*--weights state\.pt"):
        load(str(tmp_path / "state.pt"), (4,), 2, 0, trust=True)
    torch.save([nn.Linear(2, 2)], tmp_path / "list.pt")
    with pytest.raises(InputError, match=r"a pickled nn\.Module, got list"):
        load(str(tmp_path / "list.pt"), (4,), 2, 0, trust=True)
    with pytest.raises(InputError, match="a file with a model, got nothing"):
        load(str(tmp_path / "nowhere.pt2"), (4,), 2, 0, trust=True)
    with pytest.raises(InputError, match="hidden layers have one width"):
        load(str(tmp_path / "net.pt"), (4,), 2, 0, width=8, trust=True)
    (tmp_path / "cut.pt2").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(InputError, match="an exported program"):
        load(str(tmp_path / "cut.pt2"), (4,), 2, 0, trust=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_with_its_reason_even_with_trust(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(4, 2), torch.zeros(1, 4)).save(str(tmp_path / "net.pt"))
    for trust in (False, True):
        with pytest.raises(UnsafeError, match=r"TorchScript.*take no hooks"):
            load(str(tmp_path / "net.pt"), (4,), 2, 0, trust=trust)


# --------------------------------------------------------------------------------------------- half precision


def test_half_precision_is_converted_where_it_could_not_be_used_and_the_note_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Linear(2, 1).to(torch.bfloat16)
    same, note = full_precision(model)
    assert same is model and note is None
    monkeypatch.setattr(loaded, "computes", lambda kind: kind != torch.bfloat16)
    converted, note = full_precision(model)
    assert converted.weight.dtype == torch.float32 and model.weight.dtype == torch.bfloat16
    assert torch.equal(converted.weight, model.weight.float())  # type: ignore[operator, arg-type]
    assert note is not None and "bfloat16" in note and "this CPU" in note
    whole = nn.Linear(2, 1)
    assert full_precision(whole, floats=True) == (whole, None)


# ------------------------------------------------------------------------------------------------------- ONNX


def onnx_parts() -> tuple[Any, Any]:
    onnx = pytest.importorskip("onnx", reason="of the extra onnx")
    pytest.importorskip("onnxruntime", reason="of the extra onnx")
    return onnx, pytest.importorskip("onnx.helper")


def to_onnx(
    model: nn.Module, inputs: tuple[Tensor, ...], path: Path, names: list[str] | None = None, **axes: Any
) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, inputs, str(path), dynamo=False, input_names=names, dynamic_axes=axes or None)
    return path


def converter() -> None:
    onnx_parts()
    if not onnx_files._works("onnx2pytorch"):
        try:
            onnx_files._converter("test")
        except EnvironmentProblem:
            pytest.skip("onnx2pytorch is not installed")


def test_a_graph_with_batchnorm_converts_to_torchs_own_layers_and_agrees(tmp_path: Path) -> None:
    converter()
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    ).eval()
    nn.init.normal_(model[2].running_mean)  # type: ignore[arg-type]
    path = to_onnx(model, (rows(2),), tmp_path / "net.onnx", ["x"], x={0: "rows"})
    made = load(str(path), IMAGE, 5, 0)
    assert made.trained and list(made.files) == ["net.onnx"]
    assert not {"torchvision", "torchvision.ops"} & sys.modules.keys() or onnx_files._works("torchvision")
    kinds = {type(module).__name__ for module in made.module.modules()}
    assert {"Conv2d", "BatchNorm2d", "MaxPool2d", "AdaptiveAvgPool2d", "Flatten", "Linear"} <= kinds
    net = Network.of(made.module, rows(2))
    assert set(net.weights) == set(dict(model.named_parameters()))  # layers keep the names they had
    for count in (1, 5):
        assert torch.allclose(net(rows(count)), model(rows(count)), atol=1e-5)
    anatomy = Anatomy.of(net)
    assert [(group.kind, group.count) for group in anatomy.groups] == [("channel", 4), ("channel", 6)]
    assert all(check.difference < 1e-5 for check in anatomy.verify(net, rows(8)))


def test_a_graph_for_one_row_takes_more_where_its_operations_do_and_is_refused_where_not(tmp_path: Path) -> None:
    converter()

    class Shaped(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.Linear.forward(self, x.reshape(1, 6))

    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    made = build(str(to_onnx(model, (torch.randn(1, 6, 1),), tmp_path / "one.onnx")), (6,), 2, 0)
    x = torch.randn(7, 6)
    assert torch.allclose(made(x), model(x[:, :, None]), atol=1e-6)
    path = to_onnx(nn.Sequential(Shaped(6, 2)).eval(), (torch.randn(1, 6),), tmp_path / "shaped.onnx")
    with pytest.raises(InputError, match="any number of rows"):
        build(str(path), (6,), 2, 0)


def test_a_conversion_that_disagrees_with_onnxruntime_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converter()
    path = to_onnx(nn.Linear(6, 2).eval(), (torch.randn(1, 6),), tmp_path / "net.onnx")
    build(str(path), (6,), 2, 0)
    convert = onnx_files._converter("test")

    def wrong(model: Any, experimental: bool) -> nn.Module:
        made: nn.Module = convert(model, experimental=experimental)
        with torch.no_grad():
            next(made.parameters()).add_(0.01)
        return made

    monkeypatch.setattr(onnx_files, "_converter", lambda where: wrong)
    with pytest.raises(InputError, match=r"agrees with onnxruntime, got outputs that differ by 0\.0.*factory"):
        build(str(path), (6,), 2, 0)


def test_hostile_and_damaged_graphs_are_refused(tmp_path: Path) -> None:
    onnx, helper = onnx_parts()
    proto = onnx.TensorProto

    def saved(name: str, tensor: Any, kind: str = "Identity") -> Path:
        node = helper.make_node("Add", ["x", "w"], ["y"])
        ends = [helper.make_tensor_value_info(word, proto.FLOAT, ["rows", 2]) for word in "xy"]
        graph = helper.make_graph([node], "g", ends[:1], ends[1:], [tensor])
        (tmp_path / name).write_bytes(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
        )
        return tmp_path / name

    def elsewhere(location: str) -> Any:
        tensor = proto(name="w", data_type=proto.FLOAT, dims=[2], data_location=proto.EXTERNAL)
        tensor.external_data.add(key="location", value=location)
        return tensor

    for at, location in enumerate(("../secret", "/etc/passwd", "a/b", "..\\secret", "")):
        with pytest.raises(UnsafeError, match="in files beside it") as caught:
            from_file(saved(f"out{at}.onnx", elsewhere(location)), (2,), "--model")
        assert caught.value.exit_code == 4
    with pytest.raises(InputError, match=r"the file weights\.bin beside it, got nothing"):
        from_file(saved("gone.onnx", elsewhere("weights.bin")), (2,), "--model")
    bomb = proto(name="w", data_type=proto.FLOAT, dims=[10**6, 10**6])
    with pytest.raises(InputError, match="1,000,000,000,000 numbers"):
        from_file(saved("bomb.onnx", bomb), (2,), "--model")
    negative = proto(name="w", data_type=proto.FLOAT, dims=[-2])
    with pytest.raises(InputError, match="numbers of its tensors"):
        from_file(saved("negative.onnx", negative), (2,), "--model")
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(InputError, match="--model"):
        from_file(tmp_path / "text.onnx", (2,), "--model")


def test_operations_and_names_in_a_graph_never_become_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converter()
    onnx, helper = onnx_parts()
    monkeypatch.chdir(tmp_path)
    proto, opset = onnx.TensorProto, helper.make_opsetid

    def ends(*names: str) -> list[Any]:
        return [helper.make_tensor_value_info(name, proto.FLOAT, ["rows", 2]) for name in names]

    def saved(model: Any) -> str:
        (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
        return "net.onnx"

    path = helper.make_tensor("path", proto.STRING, [], [b"canary"])
    for domain, kind in (("", "Save"), ("mine", "Save"), ("com.microsoft", "Gelu"), ("", "__import__")):
        nodes = [helper.make_node(kind, ["x", "path"], ["y"], domain=domain)]
        graph = helper.make_graph(nodes, "g", ends("x"), ends("y"), [path])
        model = helper.make_model(graph, opset_imports=[opset("", 17), opset("mine", 1)])
        with pytest.raises(UnsafeError, match="operations of ONNX alone"):
            build(saved(model), (2,), 2, 0)
    call = helper.make_node("Save", ["x", "path"], ["y"], domain="mine")
    inner = helper.make_node("Identity", ["a"], ["b"])
    function = helper.make_function("mine", "Save", ["a", "p"], ["b"], [inner], [opset("", 17)])
    graph = helper.make_graph([call], "g", ends("x"), ends("y"), [path])
    model = helper.make_model(graph, opset_imports=[opset("", 17), opset("mine", 1)], functions=[function])
    with pytest.raises(UnsafeError, match=r"mine\.Save"):
        build(saved(model), (2,), 2, 0)

    evil = "x'); __import__('os').mkdir('canary')#"
    words = [f"{evil}{at}" for at in range(6)]
    weight = helper.make_tensor(f"{words[3]}.weight", proto.FLOAT, [2, 2], [1.0, 2.0, 3.0, 4.0])
    shift = helper.make_tensor(words[4], proto.FLOAT, [2], [1.0, 2.0])
    nodes = [
        helper.make_node("Gemm", [words[0], f"{words[3]}.weight"], [words[1]], name=words[5]),
        helper.make_node("Add", [words[1], words[4]], [words[2]]),
    ]
    graph = helper.make_graph(nodes, evil, ends(words[0]), ends(words[2]), [weight, shift])
    model = helper.make_model(graph, opset_imports=[opset("", 17)], ir_version=8)
    made = build(saved(model), (2,), 2, 0)
    assert made(torch.ones(1, 2)).tolist() == [[5.0, 8.0]]
    Network.of(made, torch.ones(1, 2)).to_module()
    assert not (tmp_path / "canary").exists()


def test_a_missing_converter_names_the_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'planaria\[onnx\]'") as caught:
        build(str(tmp_path / "net.onnx"), (2,), 2, 0)
    assert caught.value.exit_code == 5
