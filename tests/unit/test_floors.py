"""What the modules of each floor may import at their top; import-linter holds the order of the floors."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import planaria

PACKAGE = Path(planaria.__file__).parent
LOW_FLOORS = ("core", "measure", "damage", "repair")
ALLOWED = {"torch", "numpy", "planaria"}


def modules(*floors: str) -> list[Path]:
    return sorted(path for floor in floors for path in (PACKAGE / floor).rglob("*.py"))


def imported_at_the_top(path: Path) -> set[str]:
    """Full names of what a module imports when it is imported, imports for type checkers apart."""
    names: set[str] = set()
    waiting: list[ast.AST] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return names


@pytest.mark.parametrize("path", modules(*LOW_FLOORS), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_floors_below_study_import_only_torch_numpy_and_scipy_special(path: Path) -> None:
    foreign = {
        name
        for name in imported_at_the_top(path)
        if name.split(".")[0] not in ALLOWED | sys.stdlib_module_names and not name.startswith("scipy.special")
    }
    assert not foreign


@pytest.mark.parametrize("path", modules("."), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_a_heavy_optional_package_at_its_top(path: Path) -> None:
    heavy = {"torchvision", "timm", "transformers", "datasets", "matplotlib", "PIL", "scipy.stats"}
    found = {name for name in imported_at_the_top(path) for word in heavy if f"{name}.".startswith(f"{word}.")}
    assert not found


def calls_outside_a_loan(node: ast.AST) -> set[str]:
    """What is called in a syntax tree, apart from what stands under `with fork_rng()`, which gives back
    after."""
    if isinstance(node, ast.With) and any("fork_rng" in ast.unparse(item) for item in node.items):
        return set()
    found = {ast.unparse(node.func)} if isinstance(node, ast.Call) else set()
    return found.union(*(calls_outside_a_loan(child) for child in ast.iter_child_nodes(node)))


@pytest.mark.parametrize("path", modules(*LOW_FLOORS, "study"), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_floors_up_to_study_leave_global_random_state_alone(path: Path) -> None:
    calls = calls_outside_a_loan(ast.parse(path.read_text(encoding="utf-8")))
    assert not calls & {
        "torch.manual_seed",
        "torch.seed",
        "np.random.seed",
        "numpy.random.seed",
        "random.seed",
    }
