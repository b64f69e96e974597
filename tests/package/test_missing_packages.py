"""Tests that a missing optional package disables only the tests and tools that need it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]

#: Packages that only some tests and tools need.
OPTIONAL = ("expecttest", "sklearn", "optuna", "ruff", "mypy", "clang_format")
#: The packages of a machine that was set up for torch and a GPU only. The packages that they require are present too.
PRESENT = ("torch", "cupy-cuda13x", "numba-cuda", "triton", "pytest", "hypothesis", "tqdm", "matplotlib", "ninja")

#: A sitecustomize module that hides the packages named in the variable BLOCKED from imports.
BLOCKER = """
import os
from importlib.machinery import PathFinder


class Finder:
    find, blocked = PathFinder.find_spec, os.environ["BLOCKED"].split()

    def __call__(self, name, *rest):
        return None if name.partition(".")[0] in self.blocked else self.find(name, *rest)


PathFinder.find_spec = Finder()
"""


def _closure(names: tuple[str, ...]) -> set[str]:
    """Returns these distributions and all that they require without extras; those not installed add no requirements."""
    pending, known = list(names), set[str]()
    while pending:
        name = pending.pop().lower().replace("_", "-")
        if name not in known:
            known.add(name)
            try:
                requirements = [Requirement(text) for text in requires(name) or []]
            except PackageNotFoundError:
                continue
            pending += [
                requirement.name
                for requirement in requirements
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            ]
    return known


def _beyond(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the installed top-level packages that belong to none of these distributions or their requirements."""
    kept = _closure(names)
    return tuple(
        package
        for package, distributions in packages_distributions().items()
        if package.isidentifier() and not kept & {name.lower().replace("_", "-") for name in distributions}
    )


BLOCKED = {"the optional ones": OPTIONAL, "all but what a GPU machine has": _beyond(PRESENT)}
COMMANDS = {
    "import": ["-c", "import torch_unroll"],
    "doctor": ["-m", "torch_unroll", "doctor"],
    "benchmarks": ["-m", "benchmarks", "--help"],
    "list": ["-m", "benchmarks", "list"],
    "first_light": ["-m", "benchmarks.first_light", "--help"],
    "overhead": ["-m", "benchmarks", "overhead", "--rounds", "1", "--only", "max_pool2d/fprop"],
    "choices": ["-c", "import benchmarks.tuning.search, benchmarks.runner, benchmarks.report, benchmarks.isolation"],
}


@pytest.fixture(params=[pytest.param("the optional ones", marks=pytest.mark.slow), "all but what a GPU machine has"])
def python(request: pytest.FixtureRequest, tmp_path: Path):
    """Returns a function that runs Python without some packages, and pytest without plugins."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    blocked = BLOCKED[request.param]
    path = os.pathsep.join(map(str, (tmp_path, ROOT / "pyext", ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "BLOCKED": " ".join(blocked), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)

    missing = run("-c", "import expecttest")
    assert "No module named 'expecttest'" in missing.stderr
    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_work_without(command: str, python) -> None:
    process = python(*COMMANDS[command])
    assert process.returncode == 0, process.stdout + process.stderr


def test_a_run_on_a_gpu_is_rehearsed_without(python, tmp_path: Path) -> None:
    arguments = ("--device", "cpu", "--only", "rnn_cell forward float32", "--out", str(tmp_path / "out"))
    process = python("-m", "benchmarks", "gpu", *arguments)
    assert "cuda: jobs: 1 right" in process.stdout, process.stdout + process.stderr
    assert "never launched" in process.stdout


def test_all_tests_are_collected_without(python) -> None:
    process = python("-m", "pytest", "tests", "--collect-only", "-q", "-p", "no:cacheprovider", "-rs")
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    assert "error" not in process.stdout.splitlines()[-1]
    assert "pip install expecttest" in process.stdout


def test_tests_without_their_package_are_skipped_with_the_remedy(python) -> None:
    tests = [
        "tests/models/test_search.py::test_the_command",
        "tests/programs/test_nn.py::test_module_db_errors",
        "tests/models/test_depth.py",
    ]
    process = python("-m", "pytest", *tests, "-q", "-p", "no:cacheprovider", "-rs")
    assert process.returncode == 0, process.stdout[-3000:]
    assert "passed" not in process.stdout
    for name in ("expecttest", "scikit-learn"):
        assert f"pip install {name}" in process.stdout
