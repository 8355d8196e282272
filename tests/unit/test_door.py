"""The front door: what `import planaria` offers, and that it costs nothing until it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import planaria
from planaria.version import version

SOURCE = Path(planaria.__file__)


def fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("name", sorted(planaria.__all__))
def test_every_public_name_opens(name: str) -> None:
    assert getattr(planaria, name) is not None


def test_importing_the_package_loads_no_heavy_package() -> None:
    heavy = ("torch", "numpy", "scipy", "typer", "rich")
    code = f"import sys, planaria; print([m for m in {heavy} if m in sys.modules])"
    assert fresh_python(code) == "[]"


def test_listing_the_names_imports_nothing() -> None:
    code = "import sys, planaria; dir(planaria); print('Network' in dir(planaria), 'torch' in sys.modules)"
    assert fresh_python(code) == "True False"


def test_an_opened_name_is_the_object_of_its_module_and_stays_open() -> None:
    assert planaria.stream is import_module("planaria.core.streams").stream
    assert "stream" in vars(planaria)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Metwork'"):
        _ = planaria.Metwork


def test_type_checkers_and_the_running_door_see_the_same_names() -> None:
    typed = {
        alias.asname: (statement.module or "")
        for block in ast.parse(SOURCE.read_text(encoding="utf-8")).body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    running = {name: f"planaria.{module}" for name, module in planaria._DOOR.items()}
    modules = {name: f"planaria.{module}".rpartition(".")[0] for name, module in planaria._MODULES.items()}
    assert typed == running | modules


def test_no_public_name_is_hidden_by_a_folder_or_module_of_the_package() -> None:
    inside = {path.stem for path in SOURCE.parent.iterdir()}
    assert not inside & set(planaria.__all__)


def test_the_version_is_the_one_of_the_project_file() -> None:
    project = SOURCE.parents[2] / "pyproject.toml"
    if not project.exists():
        pytest.skip("the package is installed apart from its sources")
    declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    assert planaria.__version__ == version()
    assert version() in (declared, "0+source")


def test_help_comes_without_torch() -> None:
    code = (
        "import sys, contextlib, io\n"
        "sys.argv = ['planaria', '--help']\n"
        "from planaria.cli.app import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    main()\n"
        "print([m for m in ('torch', 'scipy', 'plotly') if m in sys.modules])\n"
    )
    assert fresh_python(code) == "[]"
