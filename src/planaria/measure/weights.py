"""Weights on disk: read as data, never as code, and written so that damage is noticed.

Safetensors, or PyTorch files with `weights_only=True`. There is no fallback from the safe reader to another.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from planaria.core.errors import InputError, UnsafeError
from planaria.core.network import Network
from planaria.core.trees import digest

INDEX = ".index.json"
"""End of the names of files that say which file holds which tensor."""

_TENSORS = "planaria.tensors"
_JSON_LIMIT = 2**26
_PROGRAM = "an exported program (.pt2)"
_NAMED = 5  # tensors that an error names


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the weights in a file into a model; the model changes entirely or not at all.

    Takes safetensors, the index (.index.json) of safetensors in several files, and PyTorch files of plain tensors: a
    state dict, or one under the key "state_dict", "model_state_dict" or "model". A prefix "module." or "_orig_mod." of
    all names is dropped. In files that planaria wrote, hashes are checked.

    Args:
        model: Module that has the file's tensors. Values are converted to its dtypes.
        path: The file.

    Raises:
        InputError: No such file, damaged, NaN or Inf, or tensors that do not fit; names the first five.
        UnsafeError: Reading the file would run code.

    Not guaranteed: that a damaged file by others is noticed; safetensors itself carries no checksum.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}", "a file of weights", "a folder" if path.is_dir() else "nothing", "Check the path.")
    own = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    state = _fitted(read_state(path), own, path)
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def pack_weights(source: Network | nn.Module | Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Weights as the bytes of a safetensors file, with a SHA-256 of every tensor in its metadata.

    Args:
        source: Network, module, or name -> tensor. Tied tensors are written under each of their names.
        metadata: Words to keep with the weights.

    Returns:
        The bytes; the same for the same weights and words.

    Example:
        >>> len(pack_weights(nn.Linear(2, 1), {"made by": "example"})) > 100
        True
    """
    import safetensors.torch

    module = source.to_module() if isinstance(source, Network) else source
    state = module.state_dict() if isinstance(module, nn.Module) else module
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }
    hashes = {name: digest({"": tensor}) for name, tensor in tensors.items()}
    hashes["/metadata"] = _hash_of(metadata)
    words = {**metadata, _TENSORS: json.dumps(hashes, sort_keys=True), "format": "pt"}
    content: bytes = safetensors.torch.save(tensors, words)
    # safetensors writes metadata in a random order; equal weights shall give equal files.
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _hash_of(metadata: Mapping[str, str]) -> str:
    kept = {key: word for key, word in metadata.items() if key not in (_TENSORS, "format")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file of weights; of an index, together with the files it names.

    Raises:
        InputError: It cannot be read.
        UnsafeError: The index names files elsewhere.
    """
    path = Path(path)
    try:
        if not path.name.endswith(INDEX):
            return _digest(path)
        return hashlib.sha256("".join(map(_digest, [path, *shards(path)])).encode()).hexdigest()
    except OSError as problem:
        raise InputError(f"{path}", "a readable file", _short(problem), "Check the path.") from problem


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shards(path: Path) -> list[Path]:
    """Files that an index of weights names, each once; all of them in its folder.

    Args:
        path: Ends in `.index.json`; a mapping tensor -> file under "weight_map".

    Raises:
        InputError: No such index, or it names no files, or files that are not there.
        UnsafeError: It names files outside its folder.
    """
    index = read_json(path)
    names = index.get("weight_map")
    if not isinstance(names, Mapping) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{path}", 'names of files under "weight_map"', type(names).__name__, "Get the file again.")
    found = []
    for name in dict.fromkeys(names.values()):
        if Path(name).name != name or "\\" in name or name.endswith(INDEX):
            raise UnsafeError(f"{path}", "names of files beside it", repr(name), "Do not use this file.")
        if not (path.parent / name).is_file():
            raise InputError(f"{path}", f"the file {name} beside it", "nothing", "Get all files of the weights.")
        found.append(path.parent / name)
    return found


def read_json(path: Path, kind: type = dict) -> Any:
    """An object, or a value of another kind, from a JSON file of at most 64 MiB.

    Raises:
        InputError: No such file, too large, damaged, or of another kind.
    """
    if not path.is_file():
        raise InputError(f"{path}", "a JSON file", "a folder" if path.is_dir() else "nothing", "Check the path.")
    if path.stat().st_size > _JSON_LIMIT:
        raise InputError(f"{path}", "a JSON file of at most 64 MiB", f"{path.stat().st_size / 2**20:.0f} MiB")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise InputError(
            f"{path}", "JSON", f"{type(problem).__name__}: {_short(problem)}", "Get it again."
        ) from problem
    if not isinstance(found, kind):
        raise InputError(f"{path}", f"a JSON {kind.__name__}", type(found).__name__, "Get it again.")
    return found


def read_state(path: Path) -> dict[str, Tensor]:
    """Name -> tensor from a file of weights of any kind that `load_weights` takes.

    Raises:
        InputError: Damaged, or of another kind.
        UnsafeError: Reading it would run code.
    """
    if path.name.endswith(INDEX):
        state: dict[str, Tensor] = {}
        for part in shards(path):
            state |= read_state(part)
        return state
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as problem:
        raise InputError(f"{path}", "a readable file", _short(problem), "Check the path.") from problem
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return read_tensors(path)[0]
    if start[:2] == b"PK":
        _refuse_programs(path)
    elif start[:1] != b"\x80" and path.suffix not in (".pt", ".pth", ".ckpt", ".bin", ".pkl"):
        expected = "safetensors, or a PyTorch state dict (.pt, .pth)"
        raise InputError(f"{path}", expected, "another kind of file", "Convert the weights to safetensors.")
    loaded: Any
    try:
        with warnings.catch_warnings():  # about protocols that torch did not write; what counts is whether it reads
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        raise UnsafeError(
            f"{path}",
            "plain tensors",
            f"a pickle that needs more: {_wanted(problem)}",
            "Save only the state dict, torch.save(model.state_dict(), ...), or use safetensors. A whole module that "
            "you trust is a model of its own: --model FILE --trust.",
        ) from problem
    except Exception as problem:  # a damaged archive surfaces as almost any error
        raise InputError(
            f"{path}",
            "safetensors or a PyTorch file",
            f"{type(problem).__name__}: {_short(problem)}",
            "Get it again.",
        ) from problem
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path}", "a state dict, name -> tensor", type(loaded).__name__, "Save a state dict.")
    strange = [name for name, value in loaded.items() if not isinstance(value, Tensor)]
    if strange:
        expected = 'only tensors, or a state dict under "state_dict"'
        got = f"{type(loaded[strange[0]]).__name__} under {strange[0]!r}"
        raise InputError(f"{path}", expected, got, "Save the state dict alone.")
    return {str(name): tensor for name, tensor in loaded.items()}


def _wanted(problem: BaseException) -> str:
    """What a refused pickle would have brought in; torch's own advice, to load it all the same, is left out."""
    found = re.search(r"(?:GLOBAL |global: |class )[`'\"]?([\w.]+)", str(problem))
    return f"unsupported {found[1] if found else 'objects'}"


def _short(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines()]
    telling = [line for line in lines if "WeightsUnpickler error" in line]
    telling = telling or lines or [type(problem).__name__]
    return telling[0][:200]


def _refuse_programs(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [name.partition("/")[2] or name for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # torch's reader complains with more detail
    if "archive_format" in inside or any("serialized_exported_program" in name for name in inside):
        kind = _PROGRAM
    elif any(name.startswith("code/") for name in inside) or "constants.pkl" in inside:
        kind = "a TorchScript program"
    else:
        return
    remedy = "Load it where you trust it, save its state_dict() as safetensors, and name the architecture."
    if kind == _PROGRAM:
        remedy = f"{remedy} A program that you trust is a model of its own: --model {path.name} --trust."
    raise UnsafeError(f"{path}", "plain tensors", f"{kind}, which can run code when loaded", remedy)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and words of a safetensors file; hashes are checked where planaria wrote it.

    Raises:
        InputError: No such file, damaged, or of another kind.
    """
    import safetensors

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}", "a safetensors file", "a folder" if path.is_dir() else "nothing", "Check the path.")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            words: dict[str, str] = file.metadata() or {}
            state: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as problem:  # SafetensorError, but also what an unknown dtype or a giant header leads to
        got = f"{type(problem).__name__}: {_short(problem)}"
        raise InputError(
            f"{path}", "a safetensors file", got, "The file is damaged or cut off; get it again."
        ) from problem
    if _TENSORS in words:
        _check_hashes(state, words, path)
    return state, words


def _check_hashes(state: Mapping[str, Tensor], words: Mapping[str, str], path: Path) -> None:
    try:
        hashes = dict(json.loads(words[_TENSORS]))
    except (ValueError, TypeError):
        hashes = {}
    found = {name: digest({"": tensor}) for name, tensor in state.items()} | {"/metadata": _hash_of(words)}
    if found != hashes:
        first = next((name for name in sorted({*found, *hashes}) if found.get(name) != hashes.get(name)), "")
        raise InputError(
            f"{path}",
            "the tensors it was written with",
            f"another {first!r}",
            "The file is damaged; get it again.",
        )


def _fitted(state: dict[str, Tensor], own: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):
        if state and not own.keys() & state.keys() and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    given = {own[name].data_ptr() for name in state.keys() & own.keys() if own[name].numel()}
    missing = [
        name
        for name, tensor in own.items()
        # A tied tensor comes under one of its names; the batch counter of a norm changes no output.
        if name not in state and tensor.data_ptr() not in given and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in state if name not in own]
    others = [
        f"{words}: {', '.join(names[:_NAMED])}{' ...' if len(names) > _NAMED else ''} ({len(names)})."
        for words, names in (("Missing", missing), ("Not in the model", unexpected))
        if names
    ]
    advice = " ".join([*others, "Name the --model that these weights belong to."])
    for name, tensor in own.items():
        if name in state and state[name].shape != tensor.shape:
            expected = f"{name!r} of shape {list(tensor.shape)} as in the model"
            raise InputError(f"{path}", expected, f"shape {list(state[name].shape)}", advice)
    if missing or unexpected:
        expected = f"a tensor {missing[0]!r} of shape {list(own[missing[0]].shape)}" if missing else "no other tensors"
        raise InputError(f"{path}", expected, repr(unexpected[0]) if unexpected else "none", advice)
    fitted = {}
    for name, tensor in state.items():
        if own[name].is_floating_point() != tensor.is_floating_point() or tensor.is_complex():
            raise InputError(
                f"{path}: {name}",
                f"{own[name].dtype} numbers",
                str(tensor.dtype),
                "Save the weights unquantised.",
            )
        fitted[name] = tensor.to(own[name].dtype)
        if tensor.is_floating_point() and not bool(fitted[name].isfinite().all()):
            count = int((~fitted[name].isfinite()).sum())
            got = f"{count} NaN or Inf among {tensor.numel()}"
            raise InputError(f"{path}: {name}", "finite numbers", got, "Use weights from before training failed.")
    return fitted
