"""Models: named networks, freshly initialised, and user-supplied ones."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from planaria.core.autodiff import plain_kernels
from planaria.core.errors import InputError, nearest
from planaria.core.network import unwrapped
from planaria.core.port import Port
from planaria.core.streams import stream
from planaria.measure.hub import LIBRARIES, code_in_folder, from_folder, from_library, is_hub_folder
from planaria.measure.labels import IGNORED, class_scores
from planaria.measure.loaded import Loaded
from planaria.measure.programs import SUFFIXES, from_file, is_code
from planaria.measure.task import Data, Task
from planaria.measure.usercode import called, user_callable
from planaria.measure.weights import fingerprint

Shape = tuple[int, ...]

# ---------------------------------------------------------------------------------------- named networks

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
}


def mlp(sizes: list[int], activation: str = "relu") -> nn.Module:
    """Fully connected network that flattens its inputs; its layers are named layers.0, layers.2, and so on.

    Example:
        >>> [name for name, _ in mlp([4, 3, 2]).named_parameters()]
        ['layers.0.weight', 'layers.0.bias', 'layers.2.weight', 'layers.2.bias']
    """
    layers: list[nn.Module] = []
    for n, m in pairwise(sizes):
        layers += [nn.Linear(n, m), ACTIVATIONS[activation]()]
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), layers=nn.Sequential(*layers[:-1])))


def cnn(shape: Shape, classes: int, widths: list[int]) -> nn.Module:
    """Two blocks of convolution 3x3 - BatchNorm - ReLU - pooling, a hidden and an output layer."""
    first, second, hidden = widths
    channels, height, width = shape
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, first, 3, padding=1),
            bn1=nn.BatchNorm2d(first),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(first, second, 3, padding=1),
            bn2=nn.BatchNorm2d(second),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(second * (height // 4) * (width // 4), hidden),
            relu3=nn.ReLU(),
            fc2=nn.Linear(hidden, classes),
        )
    )


def cnn2(shape: Shape, classes: int, widths: list[int]) -> nn.Module:
    """Two convolutions 5x5 without padding, one pooling, a hidden and an output layer.

    Source: the kind of CNN in "Efficient rescue of damaged neural networks" (2019), which leaves the widths
    open.
    """
    first, second, hidden = widths
    channels, height, width = shape
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, first, 5),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(first, second, 5),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(second * ((height - 8) // 2) * ((width - 8) // 2), hidden),
            relu3=nn.ReLU(),
            fc2=nn.Linear(hidden, classes),
        )
    )


class ResidualBlock(nn.Module):
    """Two convolutions 3x3 with BatchNorm beside a shortcut; the shortcut is 1x1 where the shape changes."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        nn.Module.__init__(self)
        self.conv1 = nn.Conv2d(inward, outward, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outward)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outward, outward, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outward)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inward != outward:
            conv = nn.Conv2d(inward, outward, 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outward)))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Block output, [N, outward, height / stride, width / stride]."""
        branch: Tensor = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(branch + self.shortcut(x))
        return out


def resnet20(shape: Shape, classes: int, widths: list[int]) -> nn.Module:
    """ResNet-20 for small images: three stages of three blocks, the width doubles as the image halves.

    Source: He, Zhang, Ren, Sun 2016, "Deep residual learning for image recognition", section 4.2, with
    projection shortcuts (option B).
    """
    (base,) = widths
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(shape[0], base, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(base), relu1=nn.ReLU()
    )
    inward = base
    for stage in range(3):
        outward = base * 2**stage
        blocks = [ResidualBlock(inward if i == 0 else outward, outward, 2 if stage and i == 0 else 1) for i in range(3)]
        parts[f"stage{stage + 1}"] = nn.Sequential(*blocks)
        inward = outward
    parts |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(inward, classes)}
    return nn.Sequential(parts)


# name -> (maker, default widths, smallest image side)
_IMAGE_NETWORKS: dict[str, tuple[Callable[[Shape, int, list[int]], nn.Module], list[int], int]] = {
    "cnn": (cnn, [16, 32, 128], 4),
    "cnn2": (cnn2, [32, 64, 256], 10),
    "resnet20": (resnet20, [16], 1),
}
NAMES = ("mlp", *_IMAGE_NETWORKS)
"""Names of networks that `build` knows."""


def build(
    text: str, example_shape: Shape, classes: int, seed: int, *, width: int | None = None, trust: bool = False
) -> nn.Module:
    """The network a text stands for: fresh weights for a name or a factory, its own for a file or a folder.

    `mlp` (64-64 hidden), `mlp:784-256-256-10`, `mlp:784-256-10?act=tanh` (relu, tanh, sigmoid, gelu); `cnn`,
    `cnn:32-64-256` (maps, maps, hidden); `cnn2`, the same with 5x5 convolutions and one pooling; `resnet20`,
    `resnet20:8` (width); the user's own, `package.module:factory` or `path/file.py:factory`, a function without
    arguments; a Hugging Face folder on disk, `hf:FOLDER` or `FOLDER`, of sentence-transformers also
    `hf:FOLDER?pair=1`; `timm:NAME`, `torchvision:NAME`, `timm:NAME@pretrained`, `torchvision:NAME@DEFAULT`; an exported
    program `FILE.pt2`, a graph `FILE.onnx`, or a pickled module `FILE.pt`.

    Args:
        text: The text.
        example_shape: Shape of one input, without the batch.
        classes: Outputs per input, `Task.output_size`.
        seed: Fixes the initial weights; torch's global generator is left as it was.
        width: Units of every hidden layer, instead of those in the text: for `mlp`, and for factories with an argument
            `width`.
        trust: Whether code that a file or folder carries may run; see `carried_code`.

    Returns:
        A module on the CPU; with fresh weights in train mode.

    Raises:
        InputError: Unknown name, sizes that do not fit the task, a factory that fails or returns no module, a width
            for something that has none, a file or folder that is damaged, incomplete or of no use.
        UnsafeError: A file or folder carries code, and it is not trusted.
        EnvironmentProblem: A library that reads it is missing.

    Example:
        >>> build("mlp:64-32-10", (64,), 10, seed=0).layers[0]
        Linear(in_features=64, out_features=32, bias=True)

    Not guaranteed: that the seed fixes the weights of a factory that draws numbers elsewhere than from torch.
    """
    return load(text, example_shape, classes, seed, width=width, trust=trust).module


def load(
    text: str, example_shape: Shape, classes: int, seed: int, *, width: int | None = None, trust: bool = False
) -> Loaded:
    """What `build` makes, with where it came from.

    Args:
        text: As for `build`, and so are the others.
        example_shape: The same.
        classes: The same.
        seed: The same.
        width: The same.
        trust: The same.

    Example:
        >>> load("mlp", (64,), 10, seed=0).trained
        False
    """
    source, rest = _source(text)
    where = f"--model {text}"
    if source in _LOADED and width is not None:
        remedy = "Use mlp, or a factory of yours with an argument `width`."
        raise InputError(where, "a network whose hidden layers have one width", text, remedy)
    generator = stream(seed, "model", text)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed every GPU too.
        torch.default_generator.manual_seed(generator.initial_seed())
        if source == "name":
            wanted = text if width is None else _widened(text, example_shape, classes, width)
            return Loaded(_named(wanted, example_shape, classes))
        if source == "folder":
            folder, pair = _folder(rest, where)
            return from_folder(folder, where, pair=pair, trust=trust)
        if source == "file":
            return from_file(Path(rest).expanduser(), example_shape, where, trust=trust)
        if source in LIBRARIES:
            return from_library(source, rest, classes, where)
        if source != "factory":
            name = text.partition(":")[0]
            remedy = (
                f"{nearest(name, NAMES)} Or name a factory: path/file.py:function; a Hugging Face folder: hf:FOLDER."
            )
            raise InputError("--model", "a known network or a factory", repr(text), remedy)
        return Loaded(unwrapped(_users(text, width)))


_LOADED = ("folder", "file", *LIBRARIES)


def _source(text: str) -> tuple[str, str]:
    """Where a text says that a network comes from, and the text after that word."""
    name, colon, tail = text.partition(":")
    if name.partition("?")[0] in NAMES:
        return "name", text
    if colon and name == "hf":
        return "folder", tail
    if colon and name in LIBRARIES:
        return name, tail
    if text.endswith(SUFFIXES):
        return "file", text
    if text and is_hub_folder(Path(text.partition("?")[0]).expanduser()):
        return "folder", text
    return ("factory", text) if colon and tail.replace(".", "_").isidentifier() else ("", text)


def _folder(text: str, where: str) -> tuple[Path, bool]:
    """Folder, and whether `?pair=1` follows it."""
    path, mark, query = text.partition("?")
    if mark and query not in ("pair=1", "pair=0"):
        raise InputError(where, "nothing but ?pair=1 after the folder", repr(query), "Correct it.")
    return Path(path).expanduser(), query == "pair=1"


def carries_weights(text: str) -> bool:
    """Whether the network a text stands for comes with trained weights.

    Example:
        >>> carries_weights("mlp"), carries_weights("net.onnx"), carries_weights("timm:resnet18@pretrained")
        (False, True, True)
    """
    source, rest = _source(text)
    return source in ("folder", "file") or (source in LIBRARIES and "@" in rest)


def carried_code(text: str) -> str | None:
    """What would run, beyond installed libraries, if what a text stands for was loaded with trust; None: nothing.

    A factory is not meant: naming it is consent to run it.

    Example:
        >>> carried_code("mlp") is None
        True
    """
    source, rest = _source(text)
    if source == "folder":
        folder, _ = _folder(rest, f"--model {text}")
        code = code_in_folder(folder) if folder.is_dir() else []
        return f"Python code of {folder}: {', '.join(code)}" if code else None
    path = Path(rest).expanduser()
    if source == "file" and is_code(path):
        return f"whatever code is in {path}, SHA-256 {fingerprint(path)}"
    return None


def _widened(text: str, shape: Shape, classes: int, width: int) -> str:
    """The text of an mlp with other hidden sizes."""
    plain, mark, query = text.partition("?")
    name, _, tail = plain.partition(":")
    if name != "mlp":
        remedy = "Use mlp, or a factory of yours with an argument `width`."
        raise InputError(f"--model {text}", "a network whose hidden layers have one width", name, remedy)
    hidden = len(_sizes(tail, f"--model {text}")) - 2 if tail else 2
    sizes = [math.prod(shape), *[width] * hidden, classes]
    return f"mlp:{'-'.join(map(str, sizes))}{mark}{query}"


def _named(text: str, shape: Shape, classes: int) -> nn.Module:
    where = f"--model {text}"
    plain, mark, query = text.partition("?")
    name, colon, tail = plain.partition(":")
    activation = "relu"
    if mark:
        key, _, activation = query.partition("=")
        if name != "mlp" or key != "act":
            known = ["act"] if name == "mlp" else []
            raise InputError(where, f"{' '.join(known) or 'nothing'} after '?'", repr(query), "Remove it.")
        if activation not in ACTIVATIONS:
            raise InputError(where, "a known activation", repr(activation), nearest(activation, ACTIVATIONS))
    sizes = _sizes(tail, where) if colon else []
    if name == "mlp":
        ends = math.prod(shape), classes
        sizes = sizes or [ends[0], 64, 64, ends[1]]
        if len(sizes) < 2 or (sizes[0], sizes[-1]) != ends:
            expected = f"sizes from {ends[0]} (inputs of the task) to {ends[1]} (its outputs)"
            remedy = f"For example mlp:{ends[0]}-64-{ends[1]}."
            raise InputError(where, expected, "-".join(map(str, sizes)), remedy)
        return mlp(sizes, activation)
    make, widths, side = _IMAGE_NETWORKS[name]
    if len(sizes or widths) != len(widths):
        expected = f"{len(widths)} sizes like {name}:{'-'.join(map(str, widths))}"
        raise InputError(where, expected, tail, "The sizes of the first and last layer come from the task.")
    if len(shape) != 3 or min(shape[1:]) < side:
        expected = f"a task with images [channels, height, width] of {side} x {side} or more"
        remedy = "Add ?flat=0 to the task, or use mlp."
        raise InputError(where, expected, f"inputs of shape {list(shape)}", remedy)
    return make(shape, classes, sizes or widths)


def _sizes(tail: str, where: str) -> list[int]:
    parts = tail.split("-")
    if not all(part.isascii() and part.isdigit() and 0 < int(part) < 10**7 for part in parts):
        raise InputError(where, "whole numbers above 0 with '-' between them", repr(tail), "For example 784-256-10.")
    return [int(part) for part in parts]


def _users(text: str, width: int | None = None) -> nn.Module:
    where = f"--model {text}"
    factory = user_callable(text, where)
    if width is not None:
        factory = _of_width(factory, width, where)
    # A module is callable too, but calling it is no way to make one.
    made = copy.deepcopy(factory) if isinstance(factory, nn.Module) else called(factory, where)
    if not isinstance(made, nn.Module):
        raise InputError(where, "a function that returns an nn.Module", type(made).__name__, "Return the module.")
    return made


def _of_width(factory: Callable[..., object], width: int, where: str) -> Callable[[], object]:
    """The factory, called with its argument `width`."""
    try:
        if isinstance(factory, nn.Module):  # made already
            raise TypeError
        inspect.signature(factory).bind(width=width)
    except (TypeError, ValueError):
        name = where.rpartition(":")[2]
        raise InputError(
            where,
            "a factory that takes the width of its hidden layers",
            f"{name} without an argument `width`",
            f"Write it as def {name}(width=64): ... and make every hidden layer that wide.",
        ) from None
    return lambda: factory(width=width)


def check_fit(model: nn.Module, task: Task) -> None:
    """Complain unless the model takes the task's inputs and gives outputs its loss can use.

    The model stays as it was: a copy is tried.

    Args:
        model: Any module.
        task: The task.

    Raises:
        InputError: The forward pass fails on two inputs, or outputs are too few or of another shape.

    Example:
        >>> from planaria.measure.datasets import task
        >>> check_fit(mlp([64, 8, 10]), task("digits"))
    """
    data = task.train.take(min(2, len(task.train))).to("cpu")
    where = f"{type(model).__name__} on task {task.name!r}"
    with _as_input_error(
        where,
        f"a network that takes {data.inputs.dtype} inputs of shape {data.layout or list(data.inputs.shape[1:])}",
        "Add ?flat=1 to the task for a network of vectors, ?flat=0 for one of images, ?scale=raw for floats.",
    ):
        tried = copy.deepcopy(model).cpu().eval()
        with torch.no_grad(), plain_kernels():  # for its own error; what it returns is judged below
            once = Port.of(tried, data.examples)(tried, data.inputs)
    with plain_kernels():
        outputs = task.outputs(tried, data)
    size = outputs.abs().nan_to_num(0.0, 0.0).max()
    if not torch.allclose(once, outputs, rtol=1e-3, atol=1e-3 * float(size), equal_nan=True):
        remedy = "Turn off what draws random numbers in eval mode: F.dropout(x, training=self.training), noise."
        raise InputError(where, "the same outputs for the same inputs in eval mode", "others the second time", remedy)
    if len(task.train) > 2:
        three = task.train.take(3).to("cpu")
        with (
            _as_input_error(where, "a network that takes any number of inputs at a time", "Let its forward take 3."),
            torch.no_grad(),
            plain_kernels(),
        ):
            Port.of(tried, three.examples)(tried, three.inputs)
    has_scores = outputs.ndim > max(1, data.targets.ndim)
    if task.classes is not None and (not has_scores or class_scores(outputs, data.targets).shape[1] < task.classes):
        got = f"outputs of shape {list(outputs.shape[1:])}"
        remedy = "Change the last layer, or the task."
        if data.targets.ndim > 1:
            remedy += f" Where a number such as {task.classes - 1} stands for no label, make it {IGNORED}."
        raise InputError(where, f"{task.classes} outputs, one per class", got, remedy)
    with _as_input_error(where, "outputs the loss accepts", "Change the network or the loss."):
        loss = task.loss(outputs, data.targets)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError(f"loss of task {task.name!r}", "one number, the mean of the batch", got, "Take the mean.")


def fast_path(model: nn.Module, rows: Data) -> str | None:
    """What to say where torch's fast path of encoders gives other outputs than the model's layers; None: the same.

    In eval mode `nn.TransformerEncoder` answers zeros at positions that a padding mask hides, in train mode it does
    not; a model that reads these positions is two models. Measured is the one that was trained.

    Args:
        model: Any module; a copy is tried.
        rows: Some of its inputs.

    Example:
        >>> fast_path(mlp([2, 1]), Data(torch.zeros(3, 2), torch.zeros(3)))
    """
    if not any(isinstance(part, nn.TransformerEncoder | nn.TransformerEncoderLayer) for part in model.modules()):
        return None
    tried, rows = copy.deepcopy(model).cpu().eval(), rows.to("cpu")
    port = Port.of(tried, rows.examples)
    inputs = port.rows(rows.examples)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's nested tensors are a prototype
        fast = port(tried, inputs)
        with plain_kernels():
            layers = port(tried, inputs)
    if torch.allclose(fast, layers, rtol=1e-3, atol=1e-3 * float(layers.abs().max()), equal_nan=True):
        return None
    return (
        f"{type(model).__name__} answers otherwise on torch's fast path: in eval mode nn.TransformerEncoder gives "
        "zeros at padded positions, and something reads them. Measured are its layers as in training; with "
        "enable_nested_tensor=False, or if nothing reads padded positions, both are the same."
    )


@contextmanager
def _as_input_error(where: str, expected: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, TypeError, LookupError, ValueError, AttributeError, AssertionError) as problem:
        got = f"{type(problem).__name__}: {(str(problem).splitlines() or ['no message'])[0]}"
        raise InputError(where, expected, got, remedy) from problem
