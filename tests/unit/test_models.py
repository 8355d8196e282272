"""Models and weights: deterministic, fitting the task, and read without running anything."""

from __future__ import annotations

import json
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planaria.core.errors import InputError, PlanariaError, UnsafeError
from planaria.core.network import Network
from planaria.measure.datasets import task
from planaria.measure.models import build, check_fit, fast_path
from planaria.measure.task import Data, Task
from planaria.measure.weights import fingerprint, load_weights, pack_weights
from resnet8_cifar10 import model as resnet8

IMAGE = (3, 12, 12)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# ------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize(
    ("text", "shape", "hidden"),
    [
        ("mlp", (64,), [64, 64]),
        ("mlp", (1, 8, 8), [64, 64]),
        ("mlp:64-256-10", (64,), [256]),
        ("mlp:64-32-32-10?act=tanh", (64,), [32, 32]),
        ("mlp:64-10", (64,), []),
    ],
)
def test_an_mlp_has_the_sizes_named_or_those_of_the_task(text: str, shape: tuple[int, ...], hidden: list[int]) -> None:
    model = build(text, shape, 10, seed=0)
    assert [layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)] == [*hidden, 10]
    assert model(torch.zeros(2, *shape)).shape == (2, 10)
    assert any(isinstance(layer, nn.Tanh) for layer in model.modules()) == ("tanh" in text)


@pytest.mark.parametrize(
    ("text", "shape", "weights"),
    [
        ("cnn", (1, 28, 28), 207_018),
        ("cnn:8-16-32", IMAGE, None),
        ("cnn2", (3, 32, 32), None),
        ("cnn2:4-8-16", IMAGE, None),
        # He et al. 2016: 0.27 million, to which the two projections of option B add 2,752.
        ("resnet20", (3, 32, 32), 272_474),
        ("resnet20:4", IMAGE, None),
        ("resnet20:4", (1, 1, 1), None),
    ],
)
def test_image_networks_take_the_shape_of_the_task(text: str, shape: tuple[int, ...], weights: int | None) -> None:
    model = build(text, shape, 7 if weights is None else 10, seed=0).eval()
    assert model(torch.zeros(2, *shape)).shape == (2, 7 if weights is None else 10)
    if weights is not None:
        assert sum(parameter.numel() for parameter in model.parameters()) == weights


def test_no_module_of_a_named_network_is_used_twice() -> None:
    for text in ("mlp", "cnn", "cnn2", "resnet20:4"):
        model = build(text, IMAGE, 10, seed=0).eval()
        calls: list[nn.Module] = []

        def called(module: nn.Module, *_: object, calls: list[nn.Module] = calls) -> None:
            calls.append(module)

        leaves = [module for module in model.modules() if not list(module.children())]
        for module in leaves:
            module.register_forward_hook(called)
        model(torch.zeros(1, *IMAGE))
        assert len(calls) == len(leaves)
        assert set(calls) == set(leaves)


def test_the_seed_fixes_the_weights_and_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    for text in ("mlp", "cnn:4-4-8", "torch.nn:Identity"):
        assert same(build(text, IMAGE, 10, seed=3), build(text, IMAGE, 10, seed=3))
    assert not same(build("mlp", IMAGE, 10, seed=3), build("mlp", IMAGE, 10, seed=4))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mpl", "Did you mean mlp"),
        ("mpl:64-10", "Did you mean mlp"),
        ("resnet18", "Did you mean resnet20"),
        ("", "a known network or a factory"),
        (
            "mlp:784-10",
            "sizes from 432 (inputs of the task) to 10 (its outputs), got 784-10. For example mlp:432-64-10",
        ),
        ("mlp:432-64-9", "got 432-64-9"),
        ("mlp:432", "got 432"),
        ("mlp:", "whole numbers above 0"),
        ("mlp:432-0-10", "whole numbers above 0"),
        ("mlp:432-64.5-10", "whole numbers above 0"),
        ("mlp:432--10", "whole numbers above 0"),
        ("mlp?act=rely", "Did you mean relu"),
        ("mlp?activation=relu", "act after '?'"),
        ("mlp?", "act after '?'"),
        ("cnn?act=relu", "nothing after '?'"),
        ("cnn:8", "3 sizes like cnn:16-32-128"),
        ("resnet20:8-16", "1 sizes like resnet20:16"),
    ],
)
def test_a_wrong_text_is_refused_with_what_is_right(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        build(text, IMAGE, 10, seed=0)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@given(st.text(alphabet="mlpcnresut20:-?=act.py/", max_size=20))
@settings(deadline=None, max_examples=100)
def test_any_text_gives_a_network_or_an_explained_error(text: str) -> None:
    try:
        assert isinstance(build(text, (1, 10, 10), 3, seed=0), nn.Module)
    except PlanariaError as problem:
        assert "expected" in str(problem)


def test_image_networks_refuse_vectors_and_images_that_are_too_small() -> None:
    with pytest.raises(InputError, match=r"add \?flat=0|Add \?flat=0"):
        build("cnn", (64,), 10, seed=0)
    with pytest.raises(InputError, match="10 x 10 or more"):
        build("cnn2", (1, 8, 8), 10, seed=0)


USER = """
import torch
from torch import nn

def factory(): return nn.Linear(64, 10)
class Net(nn.Linear):
    def __init__(self): super().__init__(64, 10)
ready = nn.Linear(64, 10)
def nothing(): return None
def fails(): raise ValueError("no such width")
def needs(width): return nn.Linear(width, 10)
"""


def test_user_factories_classes_and_modules_are_networks(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(USER)
    for name in ("factory", "Net", "ready"):
        made = build(f"{tmp_path / 'nets.py'}:{name}", (64,), 10, seed=1)
        assert isinstance(made, nn.Linear)
        assert same(made, build(f"{tmp_path / 'nets.py'}:{name}", (64,), 10, seed=1))
        with torch.no_grad():
            made.weight.zero_()
        assert not same(made, build(f"{tmp_path / 'nets.py'}:{name}", (64,), 10, seed=1))
    for name, message in (
        ("nothing", "a function that returns an nn.Module, got NoneType"),
        ("fails", "ValueError: no such width"),
        ("needs", "missing 1 required positional argument"),
        ("Nett", "Did you mean Net"),
    ):
        with pytest.raises(InputError) as caught:
            build(f"{tmp_path / 'nets.py'}:{name}", (64,), 10, seed=1)
        assert message in str(caught.value)


def test_a_model_that_does_not_fit_the_task_is_refused_with_the_key_that_helps(tmp_path: Path) -> None:
    images, vectors = task("digits?flat=0"), task("digits")
    for model, where, message in (
        (nn.Linear(64, 10), images, "Add ?flat=1"),
        (nn.Conv2d(1, 10, 3), vectors, "?flat=0"),
        (nn.Linear(64, 9), vectors, "10 outputs, one per class, got outputs of shape [9]"),
        (nn.LSTM(64, 9), vectors, "10 outputs, one per class, got outputs of shape [9]"),
        (nn.Linear(64, 10).double(), vectors, "torch.float32 inputs"),
        (nn.Sequential(nn.Linear(64, 10), nn.Unflatten(1, (10, 1))), vectors, "one row of class scores per label"),
    ):
        with pytest.raises(InputError) as caught:
            check_fit(model, where)
        assert message in str(caught.value)
    check_fit(nn.LSTM(64, 10), vectors)  # of several tensors that a network returns, the first one counts
    x = vectors.train.inputs
    regression = Task.of("mean", (x, x.mean(1)), (x, x.mean(1)), loss="mse", score="r2")
    check_fit(nn.Linear(64, 1), regression)
    with pytest.raises(InputError, match="shape of the targets"):
        check_fit(nn.Linear(64, 2), regression)
    per_row = Task.of("rows", (x, x), (x, x), loss=lambda y, t: (y - t).abs().mean(1), score="r2")
    with pytest.raises(InputError, match="one number, the mean of the batch"):
        check_fit(nn.Linear(64, 64), per_row)


def test_trying_a_model_leaves_it_as_it_was() -> None:
    model = build("cnn:4-4-8", (1, 8, 8), 10, seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_fit(model, task("digits?flat=0"))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ------------------------------------------------------------------------------------------------- weights


def save_weights(source: Network | nn.Module | dict[str, Tensor], path: Path, words: dict[str, str]) -> None:
    path.write_bytes(pack_weights(source, words))


def small(seed: int = 0) -> nn.Module:
    return build("cnn:2-3-4", (1, 8, 8), 5, seed=seed)


class Tied(nn.Module):
    """One tensor under two names."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out


def test_weights_come_back_bit_by_bit_in_every_container(tmp_path: Path) -> None:
    source = small()
    state = source.state_dict()
    save_weights(source, tmp_path / "a.safetensors", {})
    safetensors.torch.save_file(dict(state), tmp_path / "b.safetensors")
    torch.save(state, tmp_path / "c.pt")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "d.pth")
    torch.save({"model_state_dict": state, "loss": 0.1}, tmp_path / "e.ckpt")
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "f.pt")
    torch.save({f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}, tmp_path / "g.pt")
    torch.save(state, tmp_path / "h.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(dict(state), tmp_path / "without_suffix")
    for path in sorted(tmp_path.iterdir()):
        target = small(seed=1)
        assert not same(source, target)
        load_weights(target, path)
        assert same(source, target), path.name


def test_weights_in_several_files_come_by_their_index_and_never_from_elsewhere(tmp_path: Path) -> None:
    state = small().state_dict()
    places = {name: f"part-{at % 3}.safetensors" for at, name in enumerate(state)}
    for part in sorted(set(places.values())):
        save_weights({name: state[name] for name in state if places[name] == part}, tmp_path / part, {})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    target = small(seed=1)
    load_weights(target, index)
    assert same(small(), target)
    before = fingerprint(index)
    save_weights({"other": torch.zeros(1)}, tmp_path / "part-0.safetensors", {})
    assert fingerprint(index) != before
    for name in ("../part-0.safetensors", str(tmp_path / "part-0.safetensors"), index.name):
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(UnsafeError, match="names of files beside it") as caught:
            load_weights(target, index)
        assert caught.value.exit_code == 4
    for text in ("{}", "[]", "no json", '{"weight_map": {"w": 3}}', '{"weight_map": {"w": "gone.safetensors"}}'):
        index.write_text(text)
        with pytest.raises(InputError, match="expected"):
            load_weights(target, index)


def test_a_prefix_is_kept_where_the_model_has_it(tmp_path: Path) -> None:
    source = nn.Sequential(OrderedDict(module=nn.Linear(2, 2)))
    save_weights(source, tmp_path / "a.safetensors", {})
    target = nn.Sequential(OrderedDict(module=nn.Linear(2, 2)))
    load_weights(target, tmp_path / "a.safetensors")
    assert same(source, target)


def test_tied_tensors_are_saved_and_loaded_under_any_of_their_names(tmp_path: Path) -> None:
    source, target, third = Tied(), Tied(), Tied()
    save_weights(source, tmp_path / "a.safetensors", {})
    load_weights(target, tmp_path / "a.safetensors")
    assert same(source, target)
    assert target.first.weight is target.second.weight
    save_weights(Network.of(source), tmp_path / "b.safetensors", {})
    state = source.state_dict()
    del state["second.weight"]
    save_weights(state, tmp_path / "c.safetensors", {})
    for name in ("b", "c"):
        load_weights(third, tmp_path / f"{name}.safetensors")
        assert same(source, third)


def test_views_and_transposed_tensors_can_be_saved(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    save_weights({"a": whole.T, "b": whole[1], "c": whole}, tmp_path / "a.safetensors", {})
    back = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert torch.equal(back["a"], whole.T)
    assert torch.equal(back["b"], whole[1])


def test_a_batch_counter_may_be_missing_because_it_changes_no_output(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in small().state_dict().items() if "num_batches" not in name}
    save_weights(state, tmp_path / "a.safetensors", {})
    load_weights(small(seed=1), tmp_path / "a.safetensors")


def test_the_first_tensor_that_does_not_fit_is_named_with_both_shapes(tmp_path: Path) -> None:
    def problem(state: dict[str, Tensor]) -> str:
        save_weights(state, tmp_path / "a.safetensors", {})
        model = small()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(InputError) as caught:
            load_weights(model, tmp_path / "a.safetensors")
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        return str(caught.value)

    state = small(seed=1).state_dict()
    message = problem(dict(build("cnn:2-3-9", (1, 8, 8), 5, seed=0).state_dict()))
    assert "'fc1.weight' of shape [4, 12] as in the model, got shape [9, 12]" in message
    message = problem({name: tensor for name, tensor in state.items() if not name.startswith("fc")})
    assert "a tensor 'fc1.weight' of shape [4, 12], got none" in message
    assert "Missing: fc1.weight, fc1.bias, fc2.weight, fc2.bias (4)." in message
    message = problem({f"extra{at}": torch.zeros(1) for at in range(8)})
    assert "Missing: conv1.weight, conv1.bias, bn1.weight, bn1.bias, bn1.running_mean ... (" in message
    assert "Not in the model: extra0, extra1, extra2, extra3, extra4 ... (8)." in message
    message = problem({**state, "extra": torch.zeros(1)})
    assert "no other tensors, got 'extra'" in message
    renamed = {name.replace("fc1", "hidden"): tensor for name, tensor in state.items()}
    message = problem(renamed)
    assert "Missing: fc1.weight, fc1.bias (2). Not in the model: hidden.bias, hidden.weight (2)." in message
    assert problem({}).startswith(str(tmp_path))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, bad: float) -> None:
    state = small().state_dict()
    state["conv2.weight"][0, 1, 2, 2] = bad
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt: conv2\.weight: expected finite numbers, got 1 NaN or Inf among 54"):
        load_weights(small(), tmp_path / "a.pt")
    state["conv2.weight"][0, 1, 2, 2] = 0
    wide = {name: tensor.double() if "num" not in name else tensor for name, tensor in state.items()}
    wide["fc2.bias"][0] = 1e300  # infinite once it is float32
    torch.save(wide, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"fc2\.bias: expected finite numbers"):
        load_weights(small(), tmp_path / "a.pt")


def test_half_precision_weights_are_converted_and_integers_refused(tmp_path: Path) -> None:
    source = small().half()
    save_weights(source, tmp_path / "a.safetensors", {})
    target = small(seed=1)
    load_weights(target, tmp_path / "a.safetensors")
    assert target.fc1.weight.dtype == torch.float32  # type: ignore[union-attr]
    assert torch.equal(target.fc1.weight, source.fc1.weight.float())  # type: ignore[arg-type, union-attr]
    state = {**source.state_dict(), "fc1.weight": torch.zeros(4, 12, dtype=torch.int8)}
    save_weights(state, tmp_path / "b.safetensors", {})
    with pytest.raises(InputError, match=r"fc1\.weight: expected torch\.float32 numbers, got torch\.int8"):
        load_weights(target, tmp_path / "b.safetensors")


class Trap:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_pickles_that_are_not_plain_tensors_are_refused_unrun(tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    torch.save({"weight": trap}, tmp_path / "a.pt")
    torch.save(small(), tmp_path / "module.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(trap))
    (tmp_path / "c.pt").write_bytes(pickle.dumps(trap, protocol=0))
    (tmp_path / "d.anything").write_bytes(pickle.dumps({"weight": trap}))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(UnsafeError, match="plain tensors") as caught:
            load_weights(small(), path)
        assert caught.value.exit_code == 4
        assert "state_dict" in str(caught.value)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::FutureWarning")
def test_programs_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    torch.jit.save(torch.jit.trace(model, torch.zeros(1, 2)), tmp_path / "script.pt")
    torch.export.save(torch.export.export(model, (torch.zeros(1, 2),)), tmp_path / "exported.pt2")
    for name, kind in (("script.pt", "TorchScript"), ("exported.pt2", "exported program")):
        with pytest.raises(UnsafeError, match=kind):
            load_weights(nn.Linear(2, 2), tmp_path / name)


def test_files_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    save_weights(small(), tmp_path / "good.safetensors", {})
    torch.save(small().state_dict(), tmp_path / "good.pt")
    good, packed = (tmp_path / "good.safetensors").read_bytes(), (tmp_path / "good.pt").read_bytes()
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save({"epoch": 3, "weights": [torch.zeros(2)]}, tmp_path / "list.pt")
    for name, content in (
        ("cut.safetensors", good[:-4]),
        ("head.safetensors", good[:20]),
        ("empty.safetensors", b""),
        ("giant.safetensors", struct.pack("<Q", 2**62) + b"{}"),
        ("words.safetensors", struct.pack("<Q", 5) + b"{nope"),
        (
            "type.safetensors",
            _header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}) + b"\0" * 4,
        ),
        (
            "range.safetensors",
            _header({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}) + b"\0" * 4,
        ),
        ("cut.pt", packed[: len(packed) // 2]),
        ("empty.pt", b""),
        ("words.txt", b"these are no weights"),
        ("model.onnx", b"\x08\x04\x12\x07pytorch"),
    ):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "good.safetensors").unlink()
    (tmp_path / "good.pt").unlink()
    for path in [*sorted(tmp_path.iterdir()), tmp_path, tmp_path / "missing.pt"]:
        with pytest.raises(PlanariaError) as caught:
            load_weights(small(), path)
        assert str(caught.value).startswith(str(path))
        assert caught.value.exit_code in (2, 4)


def _header(entries: dict[str, object]) -> bytes:
    words = json.dumps(entries).encode()
    return struct.pack("<Q", len(words)) + words


def test_any_flipped_bit_in_a_file_of_ours_is_noticed(tmp_path: Path) -> None:
    source = nn.Linear(3, 2)
    save_weights(source, tmp_path / "a.safetensors", {"planaria.version": "1"})
    content = bytearray((tmp_path / "a.safetensors").read_bytes())
    unnoticed = []
    for bit in range(0, 8 * len(content), 7):
        content[bit // 8] ^= 1 << bit % 8
        (tmp_path / "b.safetensors").write_bytes(content)
        content[bit // 8] ^= 1 << bit % 8
        target = nn.Linear(3, 2)
        try:
            load_weights(target, tmp_path / "b.safetensors")
        except PlanariaError:
            continue
        # Only the name of a word of metadata can change without changing the network.
        assert same(source, target)
        unnoticed.append(bit)
    assert len(unnoticed) <= 25


def test_the_file_carries_the_hash_of_every_tensor_and_the_words_given(tmp_path: Path) -> None:
    save_weights(small(), tmp_path / "a.safetensors", {"network": "cnn"})
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        words = file.metadata()
        assert words["network"] == "cnn"
        assert set(json.loads(words["planaria.tensors"])) == {*file.keys(), "/metadata"}


def test_the_same_weights_and_words_give_the_same_bytes() -> None:
    words = {"x": "1", "y": "2", "a": "3"}
    assert pack_weights(small(), words) == pack_weights(small(), dict(reversed(words.items())))
    assert pack_weights(small(), words) != pack_weights(small(seed=1), words)


# ------------------------------------------------------------------------------------ real networks and data


def test_the_published_mnist_network_scores_as_published_and_fails_on_wrong_preprocessing(
    data_root: Path,
) -> None:
    path = data_root.parent / "models" / "mnist-fc-256x2" / "mnist_fc_256x2.safetensors"
    if not path.is_file():
        pytest.skip(f"needs the network {path}")
    mnist = task("mnist?flat=1", data_dir=str(data_root))
    model = build("mlp:784-256-256-10", (784,), 10, seed=0)
    load_weights(model, path)
    check_fit(model, mnist)
    assert mnist.score(model) == pytest.approx(0.9808, abs=2e-4)
    assert mnist.score(Network.of(model)) == mnist.score(model)
    wrong = task("mnist?mean=0.1307&std=0.3081", data_dir=str(data_root))
    assert wrong.score(model) == pytest.approx(0.336, abs=5e-3)


def test_the_published_cifar10_network_scores_as_published_on_raw_pixels(data_root: Path, tmp_path: Path) -> None:
    folder = data_root.parent / "models" / "resnet8-cifar10"
    if not folder.is_dir():
        pytest.skip(f"needs the network in {folder}")
    # Only the test images are needed, and unpacking the training images takes seconds.
    (tmp_path / "test_batch.bin.xz").symlink_to(data_root / "cifar10" / "test_batch.bin.xz")
    rows = np.zeros((30, 3073), np.uint8)
    rows[:, 0] = np.arange(30) % 10
    (tmp_path / "data_batch_1.bin").write_bytes(rows.tobytes())
    cifar = task(f"cifar:{tmp_path}?scale=raw&test=2000")
    assert cifar.test.targets[:6].tolist() == [3, 8, 8, 0, 6, 6]
    model, other = resnet8(), resnet8()
    load_weights(model, folder / "resnet8_cifar10.safetensors")
    load_weights(other, folder / "resnet8_cifar10.pt")
    assert same(model, other)
    assert cifar.score(model) == pytest.approx(0.8719, abs=0.02)
    scaled = Data(cifar.test.inputs[:500] / 255, cifar.test.targets[:500])
    assert cifar.score(model, scaled) < 0.3


class Pooled(nn.Module):
    """An encoder whose padded positions are read, or not."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.embed, self.encoder, self.reads = nn.Embedding(9, 8), nn.TransformerEncoder(layer, 1), reads

    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        states = self.encoder(self.embed(ids), src_key_padding_mask=padding)
        kept = torch.ones_like(padding) if self.reads else ~padding
        return (states * kept[..., None]).sum(1)


def test_an_encoder_that_gives_something_else_on_torchs_fast_path_is_told() -> None:
    padding = torch.arange(5) >= torch.tensor([[5], [2]])
    rows = Data.of(((torch.arange(10).view(2, 5) % 9, padding), torch.zeros(2)))
    assert "fast path" in str(fast_path(Pooled(reads=True), rows))
    assert fast_path(Pooled(reads=False), rows) is None
    assert fast_path(nn.Linear(2, 1), rows) is None
