"""Models in one file: exported programs (.pt2), ONNX graphs, whole pickled modules.

Reading an exported program or a pickled module can run code that is hidden in the file, so both need trust. An ONNX
file is data; what it was converted to is compared with what onnxruntime makes of it before it is believed.
"""

from __future__ import annotations

import math
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from planaria.core.errors import InputError, UnsafeError
from planaria.measure.loaded import Loaded, hashes
from planaria.measure.onnx_files import from_onnx
from planaria.measure.usercode import importing_from
from planaria.measure.weights import read_state

PROGRAM, GRAPH = ".pt2", ".onnx"
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
SUFFIXES = (PROGRAM, GRAPH, *PICKLES)
"""Ends of the names of files that hold a whole model."""

_EXPORT = (
    "torch.export.export(model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), "
    "with two rows or more in x"
)


def from_file(path: Path, example_shape: tuple[int, ...], where: str, *, trust: bool = False) -> Loaded:
    """The model in a file.

    Args:
        path: A .pt2 program, an .onnx graph, or a pickled `nn.Module`.
        example_shape: Shape of one input, where an ONNX file leaves it open.
        where: Begins error messages.
        trust: Whether code that hides in the file may run.

    Raises:
        InputError: No such file, damaged, no whole model, or one that cannot be used; says what to do.
        UnsafeError: Reading it can run code, and it is not trusted; or it is TorchScript.
        EnvironmentProblem: What reads it is not installed.
    """
    if not path.is_file():
        raise InputError(where, "a file with a model", "a folder" if path.is_dir() else "nothing", "Check the path.")
    if path.suffix == GRAPH:
        return from_onnx(path, example_shape, where)
    kind = "an exported program" if path.suffix == PROGRAM or _is_program(path) else "a pickled module"
    if kind == "a pickled module" and _is_tensors(path, where):
        remedy = f"Name the architecture with --model, and this file with --weights {path.name}."
        raise InputError(where, "a whole model", "weights alone", remedy)
    if not trust:
        remedy = (
            "If you know where it is from, add --trust: whatever code it holds then runs. Otherwise let its owner save "
            "safetensors, and name a factory: path/file.py:function."
        )
        raise UnsafeError(where, "a model of data alone", f"{kind}, which can run code when it is read", remedy)
    module = _program(path, where) if kind == "an exported program" else _pickled(path, where)
    return Loaded(module, True, hashes([path]))


def is_code(path: Path) -> bool:
    """Whether reading the model in this file can run code that it holds."""
    return path.is_file() and path.suffix != GRAPH


# ---------------------------------------------------------------------------------------------- PyTorch files


def _is_program(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition("/")[2] == "archive_format" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _is_tensors(path: Path, where: str) -> bool:
    """Whether a file holds tensors alone; complains about TorchScript and what is damaged."""
    try:
        read_state(path)
    except UnsafeError as problem:
        if "TorchScript" not in str(problem):
            return False
        remedy = "Save its state_dict() as safetensors and name a factory, or export it: torch.export.save(FILE.pt2)."
        got = "a TorchScript program: it can run code when it is read, and its modules take no hooks, so no units"
        raise UnsafeError(where, "a model whose units can be silenced", got, remedy) from problem
    return True


def _pickled(path: Path, where: str) -> nn.Module:
    """The module in a trusted pickle."""
    try:
        with warnings.catch_warnings(), importing_from(Path.cwd()):
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as problem:  # it runs whatever the file says
        remedy = "Run planaria in the folder from which its classes are imported, with the versions it was saved with."
        raise InputError(where, "a pickled module that loads here", _said(problem), remedy) from problem
    if not isinstance(found, nn.Module):
        remedy = "Save the module itself: torch.save(model, FILE)."
        raise InputError(where, "a pickled nn.Module", type(found).__name__, remedy)
    if isinstance(found, torch.jit.ScriptModule):
        raise InputError(where, "a module that takes hooks", "TorchScript", "Name a factory: path/file.py:function.")
    return found.eval()


def _program(path: Path, where: str) -> nn.Module:
    """The module of a trusted exported program, as an ordinary graph with its weights."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
            lifted = program.module(check_guards=False)
    except Exception as problem:  # a damaged archive surfaces as almost any error
        remedy = (
            "Export it again with the torch that is installed here: torch.export.save(torch.export.export(...), FILE)."
        )
        raise InputError(where, "an exported program", _said(problem), remedy) from problem
    _check_batch(program, where)
    for node in lifted.graph.nodes:
        if _in_training(node):
            raise InputError(where, "a program exported in eval mode", f"{node.target} in training", f"Use {_EXPORT}.")
    return _plain(lifted)


def _check_batch(program: Any, where: str) -> None:
    """Complain unless the program takes any number of rows."""
    wanted = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in wanted or not isinstance(node.meta.get("val"), Tensor):
            continue
        shape = node.meta["val"].shape
        rows = shape[0] if len(shape) else 0
        if isinstance(rows, int):
            got = f"{rows} rows in {node.name}, no more and no fewer"
            raise InputError(where, "a program that takes any number of rows", got, f"Export it with {_EXPORT}.")
        limits = program.range_constraints.get(rows.node.expr)
        if limits is not None and math.isfinite(float(limits.upper)) and int(limits.upper) < sys.maxsize - 1:
            got = f"at most {int(limits.upper)} rows in {node.name}"
            raise InputError(where, "a program that takes any number of rows", got, f"Export it with {_EXPORT}.")


def _in_training(node: fx.Node) -> bool:
    """Whether an operation does what it does in training: drops units, or uses the statistics of its batch."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None:
        return False
    values = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return any(values.get(name) is True for name in ("train", "training", "use_input_stats"))


def _plain(lifted: fx.GraphModule) -> nn.Module:
    """A lifted program without its own calling convention, which neither changes mode nor copies quietly."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    outputs: list[Any] = []
    for node in lifted.graph.nodes:
        if node.op == "output":
            outputs = [copies.get(value, value) for value in node.args[0] if isinstance(value, fx.Node)]
        elif node.op == "placeholder" and not node.users and not isinstance(node.meta.get("val"), Tensor):
            continue  # an argument that was not a tensor
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].meta = {}
    graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
    _tidy(graph)
    module = fx.GraphModule(lifted, graph, "ExportedProgram")
    module.train(False)
    return module


def _tidy(graph: fx.Graph) -> None:
    """Take out what nothing uses."""
    for node in reversed(list(graph.nodes)):
        if node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)


def _said(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {(lines or ['no message'])[0][:300]}"
