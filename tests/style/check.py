"""Rules of style that ruff and clang-format do not know, checked in the Python and C++ files of the repository.

    python -m tests.style.check [PATH ...]      only files at or below these paths, if any are given

Prints one line for each fault, `file:line: message`, and exits with status 1 if there is any.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

#: Names that say nothing about the value they are bound to.
FORBIDDEN_NAMES = frozenset({"each", "found", "given", "of", "told", "taken", "passed", "open_"})
FUNCTION_LINES = 60
FILE_LINES = 400

PYTHON_SUFFIX = ".py"
CPP_SUFFIXES = frozenset({".cu", ".cuh", ".h", ".cpp"})
CPP_FOLDERS = frozenset({"kernels", "tests", "benchmarks"})

#: Folders whose modules may use only the public names of the project's other modules.
PUBLIC_NAMES_ONLY = frozenset({"tests", "benchmarks"})
PROJECT_PACKAGES = frozenset({"torch_unroll", "kernels", "tests", "benchmarks"})


class Fault(NamedTuple):
    """A broken rule and where it is broken."""

    line: int
    message: str


def bound_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields line and name of what a module binds: variables, parameters, attributes, functions, classes, aliases of imports and
    captures of `match`. The name of an exception has a rule of its own."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                yield node.lineno, name
            case ast.Attribute(attr=name, ctx=ast.Store() | ast.Del()):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.alias(asname=str(alias)):  # without an alias, another library has chosen the name
                yield node.lineno, alias
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                yield node.lineno, name


def forbidden_names(tree: ast.AST) -> Iterator[Fault]:
    """Yields a fault for each name of `FORBIDDEN_NAMES` that Python code binds."""
    for line, name in bound_names(tree):
        if name in FORBIDDEN_NAMES:
            yield Fault(line, f"the name {name!r} does not say what the value is")


def exception_names(tree: ast.AST) -> Iterator[Fault]:
    """Yields a fault for each exception that is not called `error`, `_` or `..._error`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.name and not re.fullmatch(r"_|(\w+_)?error", node.name):
            yield Fault(node.lineno, f"the exception is bound as {node.name!r}: expected 'error' or a name that ends in '_error'")


def _docstring_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1 if ast.get_docstring(function) is not None else 0


def long_functions(tree: ast.AST) -> Iterator[Fault]:
    """Yields a fault for each function of more than `FUNCTION_LINES` lines, not counting its decorators and its docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1 - _docstring_lines(node)
            if lines > FUNCTION_LINES:
                yield Fault(node.lineno, f"function {node.name!r} has {lines} lines, more than {FUNCTION_LINES}")


def _is_private(name: str) -> bool:
    """Whether a name is private; `_fields_` and `__name__` are not."""
    return name.startswith("_") and not name.endswith("_")


def _is_project_module(module: str) -> bool:
    return module.partition(".")[0] in PROJECT_PACKAGES


def private_names(tree: ast.AST) -> Iterator[Fault]:
    """Yields a fault where a module imports a private name of another module of the project, or uses one as an attribute."""
    project_names: set[str] = set()  # bound by imports from the project
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or _is_project_module(node.module or "")):
            for alias in node.names:
                project_names.add(alias.asname or alias.name)
                if _is_private(alias.name):
                    yield Fault(node.lineno, f"imports {alias.name!r}, a private name of another module")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if _is_project_module(alias.name):
                    project_names.add(alias.asname or alias.name.partition(".")[0])
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            *owners, attribute = ast.unparse(node).split(".")
            # Classes are capitalised, so a chain in lower case names a module.
            if owners[0] in project_names and all(re.fullmatch(r"[a-z0-9_]+", owner) for owner in owners):
                yield Fault(node.lineno, f"uses '{'.'.join(owners)}.{attribute}', a private name of another module")


def long_file(text: str) -> Iterator[Fault]:
    """Yields a fault if a file has more than `FILE_LINES` lines."""
    lines = len(text.splitlines())
    if lines > FILE_LINES:
        yield Fault(1, f"the file has {lines} lines, more than {FILE_LINES}")


#: A comment, a string literal or a character literal; the quote in a number such as 1'000 begins no literal.
_COMMENT_OR_LITERAL = re.compile(
    r"""//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])*'""", re.DOTALL
)
_FORBIDDEN = rf"(?P<name>{'|'.join(sorted(FORBIDDEN_NAMES))})\b"
_NOT_TYPES = "return|else|do|case|goto|throw|new|delete|sizeof|and|or|not|typename|undef"
_CPP_DECLARATIONS = (
    # a name after a type, `struct`, `using` or `#define`; clang-format puts & and * next to the type, so `a * b` does not match
    re.compile(rf"(?:\b(?!(?:{_NOT_TYPES})\b)\w+|\w>)(?:[&*]+|\s?\.\.\.)?\s+{_FORBIDDEN}(?!\s*::)"),
    re.compile(rf"\([&*]{_FORBIDDEN}\)\s*[\[(]"),  # a reference to an array, a pointer to a function
    re.compile(rf",\s*[&*]?{_FORBIDDEN}\s*(?:=(?!=)|;|\[\w+\]\s*;)"),  # a further variable of a declaration
    re.compile(rf"auto\s*&*\s*\[[^\]]*\b{_FORBIDDEN}[^\]]*\]"),  # a structured binding
    re.compile(rf"\[[^\]]*\b{_FORBIDDEN}\s*=(?!=)[^\]]*\]"),  # a capture with an initialiser
)


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def cpp_forbidden_names(text: str) -> Iterator[Fault]:
    """Yields a fault for each name of `FORBIDDEN_NAMES` that C++ code declares."""
    code = _COMMENT_OR_LITERAL.sub(_blank, text)
    places = {(match.start("name"), match["name"]) for pattern in _CPP_DECLARATIONS for match in pattern.finditer(code)}
    for start, name in sorted(places):
        yield Fault(code.count("\n", 0, start) + 1, f"the name {name!r} does not say what the value is")


def faults(path: Path, text: str) -> list[Fault]:
    """The faults of one file, in the order of its lines; `path` is relative to the root of the repository."""
    if path.suffix in CPP_SUFFIXES:
        names = cpp_forbidden_names(text) if path.parts[0] in CPP_FOLDERS else ()
        return sorted([*long_file(text), *names])
    tree = ast.parse(text, str(path))
    reported = [*long_file(text), *forbidden_names(tree), *exception_names(tree), *long_functions(tree)]
    if path.parts[0] in PUBLIC_NAMES_ONLY:
        reported += private_names(tree)
    return sorted(reported)


def repository_files() -> list[Path]:
    """The Python and C++ files that git tracks or would add, relative to the root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = sorted({Path(name) for name in names if Path(name).suffix in {PYTHON_SUFFIX, *CPP_SUFFIXES}})
    return [path for path in paths if (ROOT / path).is_file()]


def main(arguments: Iterable[str]) -> int:
    """Reports the faults of every file, or of those at or below the paths in `arguments`; returns the exit status."""
    chosen = [Path(argument).absolute() for argument in arguments] or [ROOT]
    count = 0
    for path in repository_files():
        if any((ROOT / path).is_relative_to(folder) for folder in chosen):
            for fault in faults(path, (ROOT / path).read_text()):
                print(f"{path}:{fault.line}: {fault.message}")
                count += 1
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
