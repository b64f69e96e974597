"""A module of the package imports only its own layer and lower ones, from commands and networks down to kernels. Lazy imports
count, too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import torch_unroll

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(torch_unroll.__file__).parent

#: From the lowest layer to the highest; a module belongs to the longest prefix that names it. A layer imports itself and lower
#: ones.
LAYERS = {
    "kernels": ("kernels",),
    "foundation": (
        "autocast",
        "checks",
        "history",
        "nonlinearity",
        "programs",
        "settings",
        "shapes",
        "signatures",
        "torch_function",
        "tracing",
    ),
    "engines": ("engines",),
    "prepared calls": ("plain", "prepared"),
    "operators": ("ops",),
    "functions": (
        "calls",
        "conv2d",
        "max_pool2d",
        "rnn",
        "rnn_checks",
        "rnn_torch_function",
        "unfold",
        "warmup",
        "workspace",
    ),
    "modules": ("explain", "nn", "override", "quantization", "replace", "testing"),
    "models": ("models",),
    "package": ("", "__main__", "search", "tools", "training"),
}
RANKS = {prefix: rank for rank, prefixes in enumerate(LAYERS.values()) for prefix in prefixes}
#: Engine -> the modules of `engines` that belong to it alone. `cuda` and `cupy` share `compiled`.
ENGINES = {"cuda": ("cuda",), "cupy": ("cupy", "nvrtc", "nvrtc_cache"), "numba": ("numba",), "torch": ("reference",)}


def _modules() -> dict[str, Path]:
    """Every module of the package by its name below `torch_unroll`; the package itself is the empty name."""
    modules = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    # kernels/ is reached through a link, which rglob does not follow in every version of Python.
    kernels = PACKAGE / "kernels"
    for path in kernels.resolve().rglob("*.py"):
        parts = ("kernels", *path.relative_to(kernels.resolve()).with_suffix("").parts)
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = _modules()


def _absolute(node: ast.ImportFrom, module: str) -> str:
    """The full name that a `from` import names; relative imports start at the package of `module`."""
    if node.level == 0:
        return node.module or ""
    is_package = MODULES[module].name == "__init__.py"
    parts = ["torch_unroll", *module.split(".")]
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, *([node.module] if node.module else [])])


def _imported(module: str) -> Iterator[str]:
    """Full names of everything that a module imports, at its top or within functions, and by `import_module` with a literal."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module)
            for alias in node.names:
                submodule = f"{base}.{alias.name}".removeprefix("torch_unroll").removeprefix(".")
                is_module = base.split(".")[0] == "torch_unroll" and submodule in MODULES
                # `from torch_unroll import conv2d` imports a function, but counts as an import of the module that holds it.
                yield f"{base}.{alias.name}" if is_module else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name == "import_module" and isinstance(node.args[0].value, str):
                yield node.args[0].value


def _own_imports(module: str) -> set[str]:
    """The modules of the package that a module imports, by their names below `torch_unroll`."""
    names = set()
    for name in _imported(module):
        if name.split(".")[0] == "torch_unroll":
            own = name.removeprefix("torch_unroll").removeprefix(".")
            assert own in MODULES, f"{module} imports {name}, which is not a module of the package"
            names.add(own)
    return names


def _rank(module: str) -> int:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:length])) in RANKS:
            return RANKS[prefix]
    raise AssertionError(f"{module}: expected every module of the package to have a layer; name it in LAYERS")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_its_own_layer_and_lower_ones(module: str) -> None:
    names = list(LAYERS)
    for other in _own_imports(module):
        assert _rank(other) <= _rank(module), f"{module} ({names[_rank(module)]}) imports {other} ({names[_rank(other)]})"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """A package counts as its `__init__` alone. The test ignores that importing a submodule runs its package's `__init__`."""
    graph = {module: _own_imports(module) - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import each other: {' → '.join(error.args[1])}")


def test_kernels_import_nothing_of_torch_or_the_package() -> None:
    for module in MODULES:
        if _rank(module) == RANKS["kernels"]:
            assert not {name.split(".")[0] for name in _imported(module)} & {"torch", "tests", "benchmarks"}, module
            assert all(_rank(other) == RANKS["kernels"] for other in _own_imports(module)), module


def test_engines_do_not_import_each_other() -> None:
    owners = {f"engines.{part}": engine for engine, parts in ENGINES.items() for part in parts}

    def owner(module: str) -> str | None:
        return owners.get(".".join(module.split(".")[:2]))

    for module in MODULES:
        if module.startswith("engines."):  # `engines` itself may import every engine: it loads them on demand
            others = {name for name in map(owner, _own_imports(module)) if name is not None}
            assert others <= {owner(module)}, f"{module} belongs to engine {owner(module)} and imports engines {others}"


def _top_levels(folder: str, *, without: str = "") -> Iterator[tuple[Path, set[str]]]:
    """Each file below a folder of the repository, and the first parts of the names that it imports."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        if without and path.is_relative_to(ROOT / without):
            continue
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add((node.module or "").split(".")[0])
        yield path, names


def test_the_package_the_tests_and_the_benchmarks_do_not_import_each_other() -> None:
    """Only the tests of the benchmarks import the benchmarks."""
    for module in MODULES:
        assert not {name.split(".")[0] for name in _imported(module)} & {"tests", "benchmarks"}, module
    for path, names in _top_levels("benchmarks"):
        assert "tests" not in names, path
    for path, names in _top_levels("tests", without="tests/benchmarks"):
        assert "benchmarks" not in names, path
