"""Models of the libraries that people take them from: Hugging Face folders on disk, timm and torchvision by name.

A folder is read as data: its tensors by our own readers, its settings as JSON. Settings that name code are refused
unless the caller trusts them, and nothing is downloaded unless the text asks for it.
"""

from __future__ import annotations

import importlib
import urllib.error
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from planaria.core.errors import EnvironmentProblem, InputError, UnsafeError, nearest
from planaria.core.trees import digest
from planaria.measure.loaded import Loaded, hashes
from planaria.measure.sentences import POOLINGS, SentenceEncoder, Similarity
from planaria.measure.weights import INDEX, read_json, read_state, shards

CONFIG, MODULES = "config.json", "modules.json"
"""Files that make a folder one of Hugging Face, and one of its sentence encoders."""

WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
"""Files of weights in such a folder; the first one found is read."""

LIBRARIES = ("timm", "torchvision")
"""Libraries whose models have names."""

_NAMED = 5  # tensors that a message names


# ------------------------------------------------------------------------------------ Hugging Face folders


def is_hub_folder(folder: Path) -> bool:
    """Whether a folder holds a model as Hugging Face saves it."""
    return folder.is_dir() and ((folder / CONFIG).is_file() or (folder / MODULES).is_file())


def from_folder(folder: Path, where: str, *, pair: bool = False, trust: bool = False) -> Loaded:
    """The model in a Hugging Face folder, with its weights; nothing is downloaded.

    The class is that under "architectures" in `config.json`. Where `modules.json` says that the folder holds a sentence
    encoder (Transformer, Pooling, Normalize), a `SentenceEncoder` is built.

    Args:
        folder: With `config.json` and `model.safetensors`, perhaps in several files with an index; or
            `pytorch_model.bin` of plain tensors.
        where: Begins error messages.
        pair: Make a `Similarity` of the sentence encoder.
        trust: Whether Python code in the folder may run.

    Raises:
        InputError: Something is missing, damaged or does not fit together; names the first five tensors.
        UnsafeError: The folder brings code, or weights that are a pickle of more than tensors.
        EnvironmentProblem: transformers is not installed.

    Not guaranteed: the class of a model under another version of transformers.
    """
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise InputError(where, "a folder with a model as save_pretrained writes it", got, "Check the path.")
    if (folder / MODULES).is_file():
        return _encoder(folder, where, pair=pair, trust=trust)
    if pair:
        remedy = f"A folder of sentence-transformers has a {MODULES}; leave ?pair=1 out for other models."
        raise InputError(where, "a sentence encoder for ?pair=1", "another model", remedy)
    return _transformer(folder, where, trust=trust)


def _encoder(folder: Path, where: str, *, pair: bool, trust: bool) -> Loaded:
    """Transformer, pooling and normalisation of a folder of sentence-transformers."""
    place, pooling, normalise = folder, None, False
    for row in _modules(folder / MODULES):
        kind, part = row["type"].rpartition(".")[2], folder / row["path"]
        if kind == "Transformer":
            place = part
        elif kind == "Pooling":
            pooling = _pooling(part / CONFIG)
        else:
            normalise = True
    if pooling is None:
        raise InputError(f"{folder / MODULES}", "a module Pooling", "none", "Save the sentence encoder again.")
    inner = _transformer(place, where, trust=trust, bare=True)
    encoder = SentenceEncoder(inner.module, pooling, normalise)
    more = {
        f"{path.parent.name}/{path.name}": sha for path in folder.glob(f"*/{CONFIG}") for sha in hashes([path]).values()
    }
    files = {**inner.files, **hashes([folder / MODULES]), **more}
    return Loaded(Similarity(encoder) if pair else encoder, True, files, inner.notes)


def _modules(path: Path) -> list[dict[str, str]]:
    """Rows of modules.json: type and path of each module, all of them ones that we build ourselves."""
    rows = read_json(path, list)
    found = []
    for row in rows:
        kind, part = (row.get("type"), row.get("path", "")) if isinstance(row, dict) else (None, "")
        if not isinstance(kind, str) or not isinstance(part, str):
            raise InputError(f"{path}", 'a "type" and a "path" for each module', repr(row)[:80], "Get the file again.")
        if not kind.startswith("sentence_transformers."):
            remedy = "Build the encoder in a factory of yours: path/file.py:function."
            raise UnsafeError(f"{path}", "modules of sentence-transformers", f"the code {kind!r}", remedy)
        if kind.rpartition(".")[2] not in ("Transformer", "Pooling", "Normalize"):
            remedy = "Build the encoder in a factory of yours: path/file.py:function."
            raise InputError(f"{path}", "Transformer, Pooling and Normalize", repr(kind), remedy)
        if Path(part).is_absolute() or ".." in Path(part).parts:
            raise UnsafeError(f"{path}", "paths inside the folder", repr(part), "Do not use this folder.")
        found.append({"type": kind, "path": part})
    return found


def _pooling(path: Path) -> str:
    config = read_json(path)
    named = config.get("pooling_mode")
    modes = (
        [named]
        if isinstance(named, str)
        else [
            key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
            for key, on in config.items()
            if key.startswith("pooling_mode_") and on is True
        ]
    )
    if len(modes) != 1 or modes[0] not in POOLINGS:
        remedy = "Build the encoder in a factory of yours: path/file.py:function."
        raise InputError(f"{path}", f"one pooling of {', '.join(POOLINGS)}", ", ".join(modes) or "none", remedy)
    return modes[0]


def _transformer(folder: Path, where: str, *, trust: bool, bare: bool = False) -> Loaded:
    """The model whose settings and weights lie in a folder; `bare` without the head for a task."""
    if not (folder / CONFIG).is_file():
        remedy = "Save the model with model.save_pretrained(FOLDER)."
        raise InputError(where, f"a file {CONFIG} in {folder}", "none", remedy)
    settings = _checked(folder, trust)
    state, read = _weights(folder, where)
    library = _library("transformers", where, "hf")
    code = code_in_folder(folder)
    with _quiet(library):
        try:
            config = library.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust)
            kind = _class(library, config, settings, folder, trust=trust, bare=bare)
            module, report = kind.from_pretrained(
                None,
                config=config,
                state_dict=dict(state),
                attn_implementation="eager",  # settings might name an implementation to download
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that the report names them
                local_files_only=True,
            )
        except Exception as problem:  # from the library, of many kinds
            remedy = "Save it again with model.save_pretrained(FOLDER), or install what it needs."
            raise InputError(where, "a model that transformers can build", _said(problem), remedy) from problem
    notes = _judged(module, report, state, f"{folder}")
    files = hashes([folder / CONFIG, *read, *(sorted(folder.glob("*.py")) if trust and code else [])])
    return Loaded(module.eval(), True, files, notes)


def code_in_folder(folder: Path) -> list[str]:
    """What the settings in a Hugging Face folder would run, as "FILE: CODE"; empty where they are data alone.

    Raises:
        InputError: A file of settings is damaged.
    """
    found = []
    for name in (CONFIG, "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            found += [f"{name}: {code}" for code in _named_code(read_json(folder / name))]
    return found


def _checked(folder: Path, trust: bool) -> dict[str, Any]:
    """Settings of a folder, once nothing in it is code that is not trusted, or needs what is not there."""
    code = code_in_folder(folder)
    if code and not trust:
        remedy = "Read that code; where you trust it, add --trust."
        raise UnsafeError(f"{folder}", "a model of data alone", f"code to run ({'; '.join(code)})", remedy)
    settings: dict[str, Any] = read_json(folder / CONFIG)
    if "quantization_config" in settings:
        remedy = "Save the model unquantised: its units cannot be silenced in packed weights."
        raise InputError(f"{folder / CONFIG}", "weights as numbers", "quantised ones", remedy)
    return settings


def _named_code(settings: Any) -> list[str]:
    """Classes in files of the folder, or kernels to download, that settings name anywhere."""
    found: list[str] = []
    stack = [settings]
    while stack:
        value = stack.pop()
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if key == "auto_map" and inner:
                    words = list(inner.values()) if isinstance(inner, Mapping) else [inner]
                    found += [f"{word}" for word in words]
                elif str(key).rstrip("_").endswith(("_implementation", "_implementation_internal")) and "/" in str(
                    inner
                ):
                    found.append(f"{inner}")
            stack += value.values()
        elif isinstance(value, list):
            stack += value
    return found


def _weights(folder: Path, where: str) -> tuple[dict[str, Tensor], list[Path]]:
    """Tensors in a folder, and the files they are from."""
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        others = sorted(file.name for file in folder.iterdir() if file.suffix in (".h5", ".msgpack", ".gguf", ".onnx"))
        if (folder / "adapter_config.json").is_file():
            others.append("an adapter")
        got = ", ".join(others) or "none of them"
        remedy = "Save the whole model with model.save_pretrained(FOLDER); an adapter must be merged into it first."
        raise InputError(where, f"weights in {folder}: {' or '.join(WEIGHTS[:3])}", got, remedy)
    return read_state(path), [path, *(shards(path) if path.name.endswith(INDEX) else [])]


def _class(library: Any, config: Any, settings: Mapping[str, Any], folder: Path, *, trust: bool, bare: bool) -> Any:
    """The class of a model: from the folder where that is trusted, else the library's own."""
    names = settings.get("architectures") or []
    mapped = settings.get("auto_map") or {}
    autos = [key for key in mapped if key.startswith("AutoModel")]
    if trust and autos:
        wanted = next((key for key in autos if mapped[key].rpartition(".")[2] in names), autos[0])
        read = importlib.import_module("transformers.dynamic_module_utils").get_class_from_dynamic_module
        return read(mapped[wanted], str(folder), local_files_only=True)
    named: Any = getattr(library, str(names[0]), None) if names and not bare else None
    # Only a model for these very settings: a name alone may stand for anything in the library.
    fits = isinstance(named, type) and issubclass(named, library.PreTrainedModel)
    if fits and getattr(named, "config_class", None) is type(config):
        return named
    with torch.device("meta"):
        return type(library.AutoModel.from_config(config))


def _judged(module: nn.Module, report: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> tuple[str, ...]:
    """Notes on tensors that were left over; complains about those that were not there or do not fit."""
    own = module.state_dict()
    for entry in sorted(report["mismatched_keys"], key=str):
        name = entry if isinstance(entry, str) else entry[0]
        given = state.get(name)
        expected = (
            f"{name!r} of shape {list(own[name].shape)} as in its settings" if name in own else f"{name!r} to fit"
        )
        got = "another shape" if given is None else f"shape {list(given.shape)}"
        raise InputError(where, expected, got, f"{CONFIG} and the weights belong to different models.")
    # A pooler that was saved without weights feeds no hidden state; its output would be noise all the same.
    missing = sorted(name for name in report["missing_keys"] if "pooler." not in name)
    unexpected = sorted(report["unexpected_keys"])
    if missing:
        extra = f" Not in the model: {_first(unexpected)}." if unexpected else ""
        remedy = f"{CONFIG} names another architecture than the weights are of, or they were not saved whole."
        raise InputError(where, "all tensors of the model", f"none for {_first(missing)}.{extra}", remedy)
    notes = []
    if unexpected:
        notes.append(f"{where} has tensors that the model has no place for: {_first(unexpected)}.")
    if poolers := sorted(report["missing_keys"]):
        notes.append(f"{where} has no weights for {_first(poolers)}: what the pooler returns means nothing.")
    return tuple(notes)


def _first(names: list[str]) -> str:
    return f"{', '.join(names[:_NAMED])}{' ...' if len(names) > _NAMED else ''} ({len(names)})"


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Without the library's warnings and progress bars: what matters is said by us."""
    logging = library.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(100)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


# ------------------------------------------------------------------------------------- timm and torchvision


def from_library(library: str, text: str, classes: int, where: str) -> Loaded:
    """A model of timm or torchvision by name.

    Args:
        library: "timm" or "torchvision".
        text: `resnet18` with fresh weights and as many outputs as the task has classes; `resnet18@pretrained` (timm) or
            `resnet18@DEFAULT` (torchvision: any name of its weights) with published ones, downloaded if need be.
        classes: Outputs of a model with fresh weights.
        where: Begins error messages.

    Raises:
        InputError: No such model or weights.
        EnvironmentProblem: The library is not installed or does not fit the torch that is, or no way to the download.
    """
    name, mark, wanted = text.partition("@")
    found = _library(library, where, "vision")
    names: list[str] = list((found.models if library == "torchvision" else found).list_models())
    if name not in names:
        close = nearest(name, names).partition(" Known: ")[0]
        advice = close if close.startswith("Did") else f"{library}.list_models() lists them."
        raise InputError(where, f"the name of a model in {library}", repr(name), advice)
    with _as_input_error(where, found):
        if library == "torchvision":
            return _torchvision(found, name, wanted if mark else None, classes, where)
        if mark and wanted != "pretrained":
            raise InputError(where, "pretrained after '@'", repr(wanted), f"Write timm:{name}@pretrained.")
        if mark:
            return _published(found.create_model(name, pretrained=True), text)
        return Loaded(found.create_model(name, pretrained=False, num_classes=classes))


def _torchvision(library: Any, name: str, wanted: str | None, classes: int, where: str) -> Loaded:
    models = library.models
    if wanted is None:
        return Loaded(models.get_model(name, weights=None, num_classes=classes))
    known = {str(entry.name): entry for entry in models.get_model_weights(name)}
    if wanted != "DEFAULT" and wanted not in known:
        raise InputError(where, f"weights of {name} after '@'", repr(wanted), nearest(wanted, ["DEFAULT", *known]))
    weights = models.get_model_weights(name).DEFAULT if wanted == "DEFAULT" else known[wanted]
    model = models.get_model(name, weights=None, num_classes=len(weights.meta["categories"]))
    # The library's own way would unpickle whatever the file holds.
    model.load_state_dict(
        torch.hub.load_state_dict_from_url(
            weights.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    )
    return _published(model, f"{name}@{wanted}")


def _published(model: nn.Module, text: str) -> Loaded:
    return Loaded(model, True, {text: digest(dict(model.state_dict()))})


@contextmanager
def _as_input_error(where: str, library: Any) -> Iterator[None]:
    try:
        yield
    except (InputError, EnvironmentProblem):
        raise
    except (urllib.error.URLError, ConnectionError, TimeoutError) as problem:
        remedy = "Download the weights elsewhere, and name them with --weights."
        raise EnvironmentProblem(where, "a way to the published weights", _said(problem), remedy) from problem
    except Exception as problem:  # from the library, of many kinds
        if type(problem).__module__.startswith(("huggingface_hub", "httpx", "requests", "urllib3")):
            remedy = "Download the weights elsewhere, and name them with --weights."
            raise EnvironmentProblem(where, "a way to the published weights", _said(problem), remedy) from problem
        expected = f"a model that {library.__name__} can build"
        raise InputError(where, expected, _said(problem), "Build it in a factory: path/file.py:function.") from problem


def _library(name: str, where: str, extra: str) -> Any:
    """The library of that name; it may be missing, or made for another torch."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as problem:
        if getattr(problem, "name", name) in (name, None):
            remedy = f"Install it: pip install 'planaria[{extra}]'."
        else:
            remedy = f"Mend the installation: pip install --upgrade 'planaria[{extra}]'."
        raise EnvironmentProblem(where, f"the library {name}", _said(problem), remedy) from problem
    except (RuntimeError, OSError, AttributeError) as problem:  # a torchvision built for another torch
        remedy = (
            "Install a torchvision that was built for the torch you have: pip install torch torchvision "
            "--index-url https://download.pytorch.org/whl/cpu (or the index of your CUDA version)."
        )
        raise EnvironmentProblem(where, f"the library {name} in working order", _said(problem), remedy) from problem


def _said(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {(lines or ['no message'])[0][:300]}"
