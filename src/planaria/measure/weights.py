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

_TENSORS = "planaria.tensors"


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the weights in a file into a model; the model changes entirely or not at all.

    Takes safetensors and PyTorch files of plain tensors: a state dict, or one under the key "state_dict",
    "model_state_dict" or "model". A prefix "module." or "_orig_mod." of all names is dropped. In files that
    planaria wrote, hashes are checked.

    Args:
        model: Module that has the file's tensors. Values are converted to its dtypes.
        path: The file.

    Raises:
        InputError: No such file, damaged, NaN or Inf, or tensors that do not fit; names the first of them.
        UnsafeError: Reading the file would run code.

    Not guaranteed: that a damaged file by others is noticed; safetensors itself carries no checksum.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}", "a file of weights", "a folder" if path.is_dir() else "nothing", "Check the path.")
    own = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    state = _fitted(_read_state(path), own, path)
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


def _read_state(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        start = file.read(9)
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
            "Save only the state dict, torch.save(model.state_dict(), ...), or use safetensors.",
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
        kind = "an exported program (.pt2)"
    elif any(name.startswith("code/") for name in inside) or "constants.pkl" in inside:
        kind = "a TorchScript program"
    else:
        return
    remedy = "Load it where you trust it, save its state_dict() as safetensors, and name the architecture."
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
        f"{words}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''} ({len(names)})."
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
