"""The doctor finds what is wrong with this machine, says how to mend it, and breaks on nothing."""

from __future__ import annotations

import builtins
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from planaria.cli import doctor


def check(name: str) -> dict[str, str]:
    checks = doctor.examine()["checks"]
    assert isinstance(checks, list)
    (found,) = [check for check in checks if check["name"] == name]
    return found


@pytest.fixture
def torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a stand-in torchvision importable, here and in subprocesses; returns its source file."""
    about = tmp_path / "torchvision-0.99.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99.0\n")
    (tmp_path / "torchvision").mkdir()
    source = tmp_path / "torchvision" / "__init__.py"
    source.write_text("class ops:\n    nms = None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return source


def test_the_report_is_json_and_every_finding_has_a_remedy() -> None:
    report = doctor.examine()
    assert json.loads(json.dumps(report)) == report
    assert report["schema"] == "planaria.doctor.v1"
    checks = report["checks"]
    assert isinstance(checks, list)
    assert {"python", "torch", "cpu", "gpu", "packages", "memory", "data", "disk", "writing"} <= {
        check["name"] for check in checks
    }
    assert all(check["remedy"] for check in checks if check["status"] != "ok")
    assert all("\n" not in check["found"] for check in checks)


def test_this_machine_has_no_problem() -> None:
    assert doctor.examine()["status"] != "problem"


def test_the_status_is_the_worst_of_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=2**40, used=2**40, free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert check("disk")["status"] == "problem"
    assert doctor.examine()["status"] == "problem"
    usage.free = 2**29
    assert check("disk")["status"] == "warning"


def test_the_text_shows_every_check_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANARIA_DATA", "/no/such/folder")
    report = doctor.examine()
    shown = doctor.text(report)
    checks = report["checks"]
    assert isinstance(checks, list)
    assert all(check["found"] in shown and check["remedy"] in shown for check in checks)
    assert shown.endswith("1 warning.")


def test_the_examination_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    doctor.examine()
    assert list(tmp_path.iterdir()) == []


def test_a_torch_that_cannot_be_imported_is_a_problem_with_an_install_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = builtins.__import__

    def broken(name: str, *arguments: object) -> object:
        if name == "torch":
            raise OSError("libcudart.so.13: cannot open shared object file\nmore")
        return honest(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", broken)
    found = check("torch")
    assert found["status"] == "problem"
    assert "libcudart.so.13" in found["found"]
    assert "pip install" in found["remedy"]


def test_an_old_torch_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "__version__", "2.9.1+cu130")
    assert check("torch")["status"] == "problem"


def test_a_missing_package_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_REQUIRED", ("numpy", "no-such-package"))
    found = check("packages")
    assert found["status"] == "problem"
    assert found["remedy"] == "Install them: python -m pip install no-such-package."


def test_a_missing_extra_is_no_fault_but_names_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_EXTRAS", {"plot": ("no-such-package",)})
    found = check("extra plot")
    assert found["status"] == "ok"
    assert "not installed" in found["found"]
    assert "python -m pip install 'planaria[plot]'" in found["remedy"]


def test_every_extra_of_the_project_file_is_examined() -> None:
    import tomllib

    project = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    declared = {name: tuple(line.split(">=")[0] for line in lines) for name, lines in extras.items()}
    assert {name: packages for name, packages in declared.items() if name != "test"} == doctor._EXTRAS


def test_every_requirement_of_the_project_file_is_examined() -> None:
    import tomllib

    project = Path(__file__).parents[2] / "pyproject.toml"
    lines = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    assert {"torch", *doctor._REQUIRED} == {line.split(">=")[0] for line in lines}


@pytest.mark.usefixtures("torchvision")
def test_a_working_torchvision_is_told_and_not_imported_here() -> None:
    assert check("torchvision")["status"] == "ok"
    assert "torchvision" not in sys.modules


def test_a_torchvision_built_for_another_torch_is_a_problem_with_a_remedy(torchvision: Path) -> None:
    torchvision.write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    found = check("torchvision")
    assert found["status"] == "problem"
    assert "operator torchvision::nms does not exist" in found["found"]
    assert "does not match the torch build" in found["remedy"]


def test_a_torchvision_that_kills_its_process_is_a_problem(torchvision: Path) -> None:
    torchvision.write_text("import os\nos.abort()")
    assert check("torchvision")["status"] == "problem"


def test_a_data_folder_that_does_not_exist_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANARIA_DATA", "/no/such/folder")
    found = check("data")
    assert found["status"] == "warning"
    assert "/no/such/folder" in found["found"]


def test_the_data_folders_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mnist", "cifar10"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PLANARIA_DATA", str(tmp_path))
    assert f"{tmp_path} with cifar10, mnist" in check("data")["found"]


def test_a_folder_that_cannot_be_written_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert check("writing")["status"] == "warning"
