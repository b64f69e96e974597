"""The imports among the modules of benchmarks have no cycle, and only heavy packages are imported within functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Packages that take long to import or may be missing. A module may import them within the functions that need them.
HEAVY = {"cupy", "matplotlib", "numba", "sklearn", "torch", "tqdm"}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_name(path): path for path in sorted((ROOT / "benchmarks").rglob("*.py"))}


def _imports(tree: ast.AST) -> Iterator[str]:
    """The dotted names that the statements of a tree import, including statements within functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "benchmarks uses absolute imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module_of(name: str) -> str | None:
    """The module of benchmarks that a dotted name is, or is defined in; None if it is not in benchmarks."""
    while name not in MODULES:
        name, _, last = name.rpartition(".")
        if not last:
            return None
    return name


def _dependencies(module: str, path: Path) -> set[str]:
    """The modules of benchmarks that a module imports, and the packages that contain them, without the module's own packages."""
    imported = {name for name in map(_module_of, _imports(ast.parse(path.read_text()))) if name}
    packages = {package for name in imported for package in _packages(name)}
    return (imported | packages) - {module, *_packages(module)}


def _packages(module: str) -> Iterator[str]:
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


def test_the_imports_have_no_cycle() -> None:
    graph = {module: _dependencies(module, path) for module, path in MODULES.items()}
    assert len(graph["benchmarks.cli"]) > 10
    assert "benchmarks.ops" in graph["benchmarks.suites"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("module", MODULES)
def test_only_heavy_packages_are_imported_within_functions(module: str) -> None:
    functions = [
        node
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert {name.partition(".")[0] for function in functions for name in _imports(function)} <= HEAVY
