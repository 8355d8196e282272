"""ONNX files: read as data, converted by onnx2pytorch, and compared with onnxruntime before they are believed."""

from __future__ import annotations

import copy
import importlib
import math
import operator
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from planaria.core.errors import EnvironmentProblem, InputError, UnsafeError
from planaria.core.streams import stream
from planaria.measure.loaded import Loaded, hashes

AGREEMENT = 1e-4
"""Largest difference between a converted graph and onnxruntime; relative to the largest output where it is above 1."""

_ONNX = "pip install 'planaria[onnx]', then pip install --no-deps onnx2pytorch (which asks for torchvision needlessly)"


def from_onnx(path: Path, example_shape: tuple[int, ...], where: str) -> Loaded:
    """The module that an ONNX file converts to, once it agrees with onnxruntime.

    Operations that are one of torch's layers become that layer, with the name that its weight had in PyTorch where the
    file still has it.

    Args:
        path: The file.
        example_shape: Shape of one input, where the file leaves it open.
        where: Begins error messages.

    Raises:
        InputError: Damaged, not convertible, for one number of rows only, or converted to something else.
        UnsafeError: Tensors in files elsewhere, or operations that are none of ONNX.
        EnvironmentProblem: onnx, onnxruntime or onnx2pytorch is not installed.

    Not guaranteed: that outputs agree on inputs other than the random ones that were tried.
    """
    onnx, runtime = _needed("onnx", where), _needed("onnxruntime", where)
    model, others = _read_graph(onnx, path, where)
    convert = _converter(where)
    inputs, expected = _examples(model, onnx, runtime, path, example_shape, where)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            module = _traced(convert(model, experimental=True).eval(), model, inputs)
            given = module(*inputs.values())
    except Exception as problem:  # of many kinds: what is not implemented, what takes one number of rows only
        remedy = f"Let it take any number of rows (dynamic_axes, dynamic_shapes). {_REBUILD}"
        raise InputError(where, "a graph that onnx2pytorch converts", _said(problem), remedy) from problem
    _compare([given] if isinstance(given, Tensor) else list(given), expected, where)
    return Loaded(module, True, hashes([path, *others]))


_REBUILD = (
    "Export from PyTorch instead, torch.export.save(torch.export.export(...), FILE.pt2), or rebuild the network in a "
    "factory, path/file.py:function, and give it the weights."
)


def _read_graph(onnx: Any, path: Path, where: str) -> tuple[Any, list[Path]]:
    """An ONNX model, checked, and the files beside it that hold some of its tensors."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as problem:  # protobuf has errors of its own
        raise InputError(where, "an ONNX file", _said(problem), "Get the file again.") from problem
    _check_operations(model, onnx, where)
    others: dict[str, Path] = {}
    size = path.stat().st_size
    tensors = list(_tensors(model.graph, onnx))
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            name = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            if not name or Path(name).name != name or "\\" in name:
                raise UnsafeError(where, "tensors in files beside it", f"one in {name!r}", "Do not use this file.")
            if not (path.parent / name).is_file():
                raise InputError(where, f"the file {name} beside it", "nothing", "Get all files of the model.")
            others[name] = path.parent / name
    size += sum(other.stat().st_size for other in others.values())
    # Every number takes at least half a byte of the files; more is a bomb, or damage.
    numbers = sum(math.prod(max(0, side) for side in tensor.dims) for tensor in tensors)
    if numbers > 2 * size or any(side < 0 for tensor in tensors for side in tensor.dims):
        raise InputError(
            where, "the numbers of its tensors", f"{numbers:,} numbers in {size:,} bytes", "Do not use it."
        )
    if others:
        try:
            onnx.load_external_data_for_model(model, str(path.parent))
        except Exception as problem:  # offsets beyond the file, links to elsewhere
            raise InputError(where, "tensors in files beside it", _said(problem), "Get all files again.") from problem
    _simplify(model.graph)
    return model, [others[name] for name in sorted(others)]


def _check_operations(model: Any, onnx: Any, where: str) -> None:
    """Complain about operations that are none of ONNX: the converter takes any function of torch by its name."""
    strange = [f"{function.domain}.{function.name}" for function in model.functions]
    graphs = [model.graph]
    while graphs:
        for node in graphs.pop().node:
            if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
                strange.append(f"{node.domain or 'ai.onnx'}.{node.op_type}")
            for attribute in node.attribute:
                graphs += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
    if strange:
        raise UnsafeError(where, "operations of ONNX alone", ", ".join(strange[:5]), _REBUILD)


def _simplify(graph: Any) -> None:
    """Take out what exporters write and the converter does not read; the graph computes the same."""
    held = {tensor.name for tensor in graph.initializer}
    ends = {value.name for value in graph.output}
    names: dict[str, str] = {}  # of equal tensors, all but one are written as copies of it
    for node in list(graph.node):
        node.input[:] = [names.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.input[0] in held and node.output[0] not in ends:
            names[node.output[0]] = node.input[0]
            graph.node.remove(node)
        elif node.op_type == "BatchNormalization":  # what it says by default: that it uses what it has learned
            kept = [attribute for attribute in node.attribute if attribute.name != "training_mode" or attribute.i]
            del node.attribute[:]
            node.attribute.extend(kept)


def _tensors(graph: Any, onnx: Any) -> Iterator[Any]:
    """Tensors in a graph, those in its nodes and their graphs included."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _tensors(inner, onnx)


class _Called(nn.Module):
    """A converted graph, called with a fixed number of inputs, as tracing wants it."""

    def __init__(self, converted: nn.Module, count: int) -> None:
        nn.Module.__init__(self)
        self.converted, self.count = converted, count

    def forward(self, a: Tensor, b: Any = None, c: Any = None, d: Any = None, e: Any = None, f: Any = None) -> Any:
        """What the graph returns for the first `count` of its inputs."""
        return self.converted(*(a, b, c, d, e, f)[: self.count])


class _Tracer(fx.Tracer):
    """Follows a converted graph; into its operations where `through` is set, but never into layers."""

    through = True

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Layers, and what stands for one."""
        inner = name.count(".") > 0
        return inner and (
            not self.through or type(module).__name__ in _LAYERS or fx.Tracer.is_leaf_module(self, module, name)
        )

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Outputs of an operation, as many as are asked for."""
        proxy: Any = obj
        return (proxy[at] for at in range(_MOST_OUTPUTS))


class _Ranks(fx.Interpreter):
    """Runs a graph, and keeps the number of dimensions of what each of its modules is given."""

    def run_node(self, node: fx.Node) -> Any:
        """The same, with the rank in the node's meta."""
        if node.op == "call_module":
            args, _ = self.fetch_args_kwargs_from_env(node)
            node.meta["rank"] = args[0].ndim if args and isinstance(args[0], Tensor) else 0
        return fx.Interpreter.run_node(self, node)


_LAYERS = ("Flatten", "GlobalAveragePool", "BatchNormWrapper", "MaxPool")
_MOST_OUTPUTS = 64


def _traced(converted: Any, model: Any, inputs: Mapping[str, Tensor]) -> nn.Module:
    """A converted graph as a graph of torch's own modules, without the file and the tensors they have taken."""
    called = _Called(converted, len(inputs))
    tracer = _Tracer()
    try:
        graph = tracer.trace(called)
    except Exception:  # an operation that looks at its numbers
        tracer = _Tracer()
        tracer.through = False
        graph = tracer.trace(called)
    places = [node for node in graph.nodes if node.op == "placeholder"]
    for node in places[len(inputs) :]:
        graph.erase_node(node)
    for at, (node, name) in enumerate(zip(places, inputs, strict=False)):
        node.target, node.args = re.sub(r"\W", "_", name).lstrip("_0123456789") or f"input_{at}", ()
    for node in reversed(list(graph.nodes)):  # what nothing uses
        if node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)
    parts: dict[str, Any] = {}
    layers = _layer_names(model)
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            value = _at(called, str(node.target))
            node.target = _fresh(_name(str(node.target), converted.mapping, layers), value, parts)
            parts[node.target] = value
    _Ranks(fx.GraphModule(parts, graph)).run(*inputs.values())
    for node in list(graph.nodes):
        if node.op == "call_module":
            parts[str(node.target)] = _layer(parts[str(node.target)], node)
    graph.lint()
    module = fx.GraphModule(parts, graph, "OnnxGraph")
    module.train(False)
    return module


def _layer(operation: nn.Module, node: fx.Node) -> nn.Module:
    """Torch's own layer for a converted operation that is one; else the operation."""
    kind, rank = type(operation).__name__, node.meta["rank"]
    values: Any = operation
    if kind == "Flatten" and values.start_dim == 1:
        return nn.Flatten()
    found: Any = operation
    if kind == "GlobalAveragePool" and 3 <= rank <= 5:
        found = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[rank - 3](1)
    elif kind == "BatchNormWrapper" and len(node.args) == 1 and not values.has_lazy and 2 <= rank <= 5:
        old = values.bnu
        norms = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        found = norms[rank - 2](old.num_features, old.eps)
        found.load_state_dict(old.state_dict(), strict=False)
        found.train(False)
    pool: Any = values.pool if kind == "MaxPool" and values.pad is None else values
    if getattr(pool, "return_indices", False) and all(_is_first(user, node) for user in node.users):
        for user in list(node.users):  # the places of the maxima are not used
            user.replace_all_uses_with(node)
            node.graph.erase_node(user)
        found = copy.copy(pool)
        found.return_indices = False
    made: nn.Module = found
    return made


def _is_first(user: fx.Node, node: fx.Node) -> bool:
    return user.target is operator.getitem and user.args == (node, 0)


def _layer_names(model: Any) -> dict[str, str]:
    """First output of a node -> name of the layer that its weight had in PyTorch, where it still has one."""
    found = {}
    for node in model.graph.node:
        stems = [name.removesuffix(".weight") for name in node.input[1:2] if name.endswith(".weight")]
        if stems and re.fullmatch(r"\w+(\.\w+)*", stems[0]):
            found[node.output[0]] = stems[0]
    return found


def _name(target: str, mapping: Mapping[str, str], layers: Mapping[str, str]) -> str:
    """A name for a part of the graph: that of its layer, or its own without the marks that names may not have."""
    own = target.removeprefix("converted.")
    output = next((output for output, name in mapping.items() if name == own), None)
    if output in layers:
        return layers[str(output)]
    return re.sub(r"\W+", "_", own).strip("_") or "part"


def _fresh(name: str, value: Any, parts: Mapping[str, Any]) -> str:
    """The name, or one made from it that nothing else has, not even as a folder of names."""

    def taken(word: str) -> bool:
        other = any(key.startswith(f"{word}.") or word.startswith(f"{key}.") for key in parts)
        return other or (word in parts and parts[word] is not value)

    if not taken(name):
        return name
    flat = name.replace(".", "_")
    return next(word for at in range(len(parts) + 2) if not taken(word := f"{flat}_{at}" if at else flat))


def _at(called: nn.Module, target: str) -> Any:
    """Part of a traced module; names in converted graphs may have dots in them."""
    mark, inner = target.startswith("converted."), target.removeprefix("converted.")
    place: Any = called.converted if mark else called
    return getattr(place, inner) if hasattr(place, inner) else operator.attrgetter(inner)(place)


def _examples(
    model: Any, onnx: Any, runtime: Any, path: Path, example_shape: tuple[int, ...], where: str
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Random inputs for a graph, and what onnxruntime returns for them, in as many calls as it needs."""
    held = {tensor.name for tensor in model.graph.initializer}
    places = [value for value in model.graph.input if value.name not in held]
    if not 0 < len(places) <= 6:
        raise InputError(where, "a graph of 1 to 6 inputs", len(places), _REBUILD)
    first = places[0].type.tensor_type.shape.dim
    fixed = first[0].dim_value if len(first) and first[0].dim_value > 0 else 0
    generator = stream(0, "onnx")
    rows = 2 * fixed if fixed > 2 else 4
    inputs = {value.name: _random(value, onnx, rows, example_shape, generator) for value in places}
    try:
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        calls = []
        for start in range(0, rows, fixed or rows):
            given = {name: tensor[start : start + (fixed or rows)].numpy() for name, tensor in inputs.items()}
            calls.append([torch.as_tensor(array) for array in session.run(None, given)])
        return inputs, [torch.cat(parts) for parts in zip(*calls, strict=True)]
    except Exception as problem:  # of onnxruntime's own kinds
        remedy = "Check the file, and that the task's inputs are of the shape it takes."
        raise InputError(where, "a graph that onnxruntime runs", _said(problem), remedy) from problem


def _random(value: Any, onnx: Any, rows: int, example_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random rows for an input of a graph; sides that it leaves open are those of the task's inputs."""
    kind = value.type.tensor_type
    sides = [side.dim_value if side.dim_value > 0 else None for side in kind.shape.dim]
    others = example_shape if len(sides) == 1 + len(example_shape) else (2,) * max(0, len(sides) - 1)
    shape = [rows, *(side or other for side, other in zip(sides[1:], others, strict=False))]
    dtype = torch.from_numpy(np.zeros(1, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))).dtype
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def _compare(given: list[Tensor], expected: list[Tensor], where: str) -> None:
    """Complain unless a converted graph and onnxruntime give the same outputs."""
    for at, (ours, theirs) in enumerate(zip(given, expected, strict=True)):
        got = ""
        if ours.shape != theirs.shape:
            got = f"output {at} of shape {list(ours.shape)} instead of {list(theirs.shape)}"
        elif ours.numel():
            difference = float((ours.double() - theirs.double()).abs().max())
            if not difference <= AGREEMENT * max(1.0, float(theirs.double().abs().max())):
                got = f"outputs that differ by {difference:.2g}"
        if got:
            raise InputError(where, "a conversion that agrees with onnxruntime", got, _REBUILD)


def _converter(where: str) -> Any:
    """onnx2pytorch's converter, whether or not torchvision is there."""
    # Five of its operations (on boxes and image files) import torchvision, which a CPU build of torch often cannot.
    missing = [] if _works("torchvision") else ["torchvision", "torchvision.ops", "torchvision.io"]
    replaced = {name: sys.modules.get(name) for name in missing}
    for name in missing:
        sys.modules[name] = _StandIn(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _needed("onnx2pytorch", where).ConvertModel
    finally:
        for name, module in replaced.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


class _StandIn(ModuleType):
    """A module whose names can be imported, and fail when they are used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent


class _Absent:
    """Something of torchvision."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError("an operation that needs torchvision")


def _works(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # of many kinds: not there, or built for another torch
        return False
    return True


def _needed(name: str, where: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        raise EnvironmentProblem(where, f"the library {name}", _said(problem), f"Install it: {_ONNX}.") from problem


def _said(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {(lines or ['no message'])[0][:300]}"
