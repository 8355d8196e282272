"""What this machine offers planaria, and how to mend what is missing.

Looks only: it writes nothing, opens no connection, and imports nothing optional into this process, because a
broken optional package must not break the examination.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from planaria.version import version

_OLDEST_PYTHON = (3, 11)
_OLDEST_TORCH = (2, 10)
_REQUIRED = ("numpy", "scipy", "safetensors", "typer", "rich", "jinja2", "plotly", "psutil")
_EXTRAS = {
    "plot": ("matplotlib",),
    "images": ("pillow",),
    "vision": ("torchvision", "timm"),
    "hf": ("transformers", "datasets"),
    "onnx": ("onnx", "onnxruntime"),
    "attacks": ("foolbox",),
    "embed": ("scikit-learn",),
    "umap": ("scikit-learn", "umap-learn"),
    "parquet": ("pyarrow",),
}
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_GIB = 2**30
_SEVERITY = ("ok", "warning", "problem")

Check = dict[str, str]


def examine() -> dict[str, object]:
    """Examine Python, torch, the hardware, data folders, optional packages and the current folder.

    Returns:
        A JSON-able dict: `command`, `schema`, `version`, `status` (the worst of the checks) and `checks`,
        each with `name`, `status` ("ok", "warning" or "problem"), `found`, and `remedy` ("" where there is
        nothing to do).

    Example:
        >>> report = examine()
        >>> report["command"], sorted(report["checks"][0])
        ('doctor', ['found', 'name', 'remedy', 'status'])
    """
    checks = [
        _python(),
        *_torch(),
        _required(),
        _memory(),
        _data(),
        *_extras(),
        *_torchvision(),
        _disk(),
        _permission(),
    ]
    return {
        "command": "doctor",
        "schema": "planaria.doctor.v1",
        "version": version(),
        "status": max((check["status"] for check in checks), key=_SEVERITY.index),
        "checks": checks,
    }


def text(report: dict[str, object]) -> str:
    """Show a report as aligned lines, with each remedy below the check it belongs to.

    Args:
        report: What `examine` returned.

    Returns:
        Text without a final line end.

    Example:
        >>> check = {"name": "disk", "status": "warning", "found": "0.5 GiB free", "remedy": "Free some."}
        >>> print(text({"version": "0.1.0", "status": "warning", "checks": [check]}))
        planaria 0.1.0
        warning  disk  0.5 GiB free
                       Free some.
        1 warning.
    """
    checks = report["checks"]
    assert isinstance(checks, list)
    width = max(len(check["name"]) for check in checks)
    lines = [f"planaria {report['version']}"]
    for check in checks:
        lines.append(f"{check['status']:<7}  {check['name']:<{width}}  {check['found']}")
        if check["remedy"]:
            lines.append(f"{'':<{width + 11}}{check['remedy']}")
    statuses = [check["status"] for check in checks]
    counts = [(statuses.count(status), status) for status in ("problem", "warning")]
    told = ", ".join(f"{count} {status}{'s' * (count > 1)}" for count, status in counts if count)
    return "\n".join([*lines, f"{told or 'No problems'}."])


def _check(name: str, found: str, status: str = "ok", remedy: str = "") -> Check:
    return {"name": name, "status": status, "found": found, "remedy": remedy}


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    if sys.version_info < _OLDEST_PYTHON:
        return _check("python", found, "problem", "Make the environment with Python 3.11 or newer.")
    return _check("python", found)


def _torch() -> Iterator[Check]:
    try:
        import torch
    except Exception as error:  # a broken build raises OSError, ImportError or RuntimeError
        remedy = "Install it: python -m pip install 'torch>=2.10' (pytorch.org's install page lists the builds)."
        yield _check("torch", f"cannot be imported: {_first_line(error)}", "problem", remedy)
        return
    if torch.version.hip:
        build = f"ROCm {torch.version.hip} build"
    elif torch.version.cuda:
        build = f"CUDA {torch.version.cuda} build"
    else:
        build = "CPU build"
    old = _numbers(torch.__version__) < _OLDEST_TORCH
    yield _check(
        "torch",
        f"{torch.__version__}, {build}",
        "problem" if old else "ok",
        "Older releases read weights unsafely. Install it: python -m pip install 'torch>=2.10'." if old else "",
    )
    capability = torch.backends.cpu.get_cpu_capability()
    yield _check(
        "cpu",
        f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads, capability {capability}"
        " (equal bits only at equal threads and capability)",
    )
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        yield _check("gpu", names)
    elif torch.backends.mps.is_available():
        yield _check("gpu", "Apple GPU (mps)")
    elif shutil.which("nvidia-smi"):
        remedy = "Install the CUDA build of torch that matches the driver, as pytorch.org's install page says."
        yield _check("gpu", f"an NVIDIA driver, but this torch ({build}) cannot use it", "warning", remedy)
    else:
        yield _check("gpu", "none; everything runs on the CPU")


def _required() -> Check:
    missing = [name for name in _REQUIRED if _installed(name) is None]
    if missing:
        return _check(
            "packages",
            f"missing: {', '.join(missing)}",
            "problem",
            f"Install them: python -m pip install {' '.join(missing)}.",
        )
    return _check("packages", ", ".join(f"{name} {_installed(name)}" for name in _REQUIRED))


def _memory() -> Check:
    if importlib.util.find_spec("psutil") is None:
        return _check("memory", "unknown: psutil is missing", "warning", "Install it: python -m pip install psutil.")
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB available"
    if memory.available < 2 * _GIB:
        return _check("memory", found, "warning", "Close other programs; large networks may not fit.")
    return _check("memory", found)


def _data() -> Check:
    root = os.environ.get("PLANARIA_DATA")
    found = [f"Fashion-MNIST in {_DEBIAN_FASHION_MNIST}"] if _DEBIAN_FASHION_MNIST.is_dir() else []
    if root is None:
        found.append("PLANARIA_DATA is not set (only needed for data of your own; digits are built in)")
    elif not Path(root).is_dir():
        remedy = "Point PLANARIA_DATA to the folder that holds mnist/, cifar10/ and so on, or unset it."
        return _check("data", f"PLANARIA_DATA is {root}, which is not a folder", "warning", remedy)
    else:
        folders = sorted(entry.name for entry in Path(root).iterdir() if entry.is_dir())
        found.insert(0, f"PLANARIA_DATA is {root} with {', '.join(folders) or 'no folders'}")
    return _check("data", "; ".join(found))


def _extras() -> Iterator[Check]:
    for extra, packages in _EXTRAS.items():
        versions = {name: _installed(name) for name in packages}
        found = ", ".join(f"{name} {number or 'not installed'}" for name, number in versions.items())
        missing = None in versions.values()
        yield _check(
            f"extra {extra}",
            f"{found} (optional)",
            remedy=f"If you want it: python -m pip install 'planaria[{extra}]'." if missing else "",
        )


def _torchvision() -> Iterator[Check]:
    number = _installed("torchvision")
    if number is None:
        return
    # In a process of its own: a torchvision built for another torch fails on import, and may take torch down
    # with it.
    trial = [sys.executable, "-c", "import torchvision; torchvision.ops.nms"]
    try:
        done = subprocess.run(trial, capture_output=True, text=True, timeout=120, check=False)
        failure = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        broken = bool(done.returncode)
    except (OSError, subprocess.TimeoutExpired) as error:
        failure, broken = [_first_line(error)], True
    if broken:
        torch = _installed("torch") or "none"
        remedy = (
            "The torchvision build does not match the torch build. Install both from one source, or remove "
            "it: python -m pip uninstall torchvision."
        )
        reason = failure[0] if failure else "no message"
        yield _check("torchvision", f"{number} beside torch {torch} cannot be imported: {reason}", "problem", remedy)
    else:
        yield _check("torchvision", f"{number} works with torch {_installed('torch')}")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / _GIB
    found = f"{free:.1f} GiB free in {Path.cwd()}"
    if free < 1:
        status = "problem" if free < 0.1 else "warning"
        return _check("disk", found, status, "Free some space, or write elsewhere with --out.")
    return _check("disk", found)


def _permission() -> Check:
    if os.access(Path.cwd(), os.W_OK):
        return _check("writing", f"{Path.cwd()} can be written")
    return _check("writing", f"{Path.cwd()} cannot be written", "warning", "Give a folder of yours with --out.")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
