"""What a machine lacks that was set up for torch and the GPU alone costs the tests that need it, and nothing else."""

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
#: What is there on such a machine, beside what these require.
THERE = ("torch", "cupy-cuda13x", "numba-cuda", "triton", "pytest", "hypothesis", "tqdm", "matplotlib", "ninja")

#: A site customization: what looks for packages on the path does not see some.
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
    """Distributions, and what they require without extras, as far as it is installed."""
    left, known = list(names), set[str]()
    while left:
        name = left.pop().lower().replace("_", "-")
        if name not in known:
            known.add(name)
            try:
                wanted = [Requirement(text) for text in requires(name) or []]
            except PackageNotFoundError:
                continue
            left += [
                requirement.name
                for requirement in wanted
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            ]
    return known


def _beyond(names: tuple[str, ...]) -> tuple[str, ...]:
    """Installed top-level packages that none of these distributions brings along."""
    there = _closure(names)
    return tuple(
        package
        for package, distributions in packages_distributions().items()
        if package.isidentifier() and not there & {name.lower().replace("_", "-") for name in distributions}
    )


BLOCKED = {"the optional ones": OPTIONAL, "all but what a GPU machine has": _beyond(THERE)}
COMMANDS = {
    "import": ["-c", "import torch_unroll"],
    "doctor": ["-m", "torch_unroll", "doctor"],
    "benchmarks": ["-m", "benchmarks", "--help"],
    "list": ["-m", "benchmarks", "list"],
    "first_light": ["-m", "benchmarks.first_light", "--help"],
    "choices": ["-c", "import benchmarks.tuning.search, benchmarks.runner, benchmarks.report, benchmarks.isolation"],
}


@pytest.fixture(params=[pytest.param("the optional ones", marks=pytest.mark.slow), "all but what a GPU machine has"])
def python(request: pytest.FixtureRequest, tmp_path: Path):
    """Runs Python where some packages are missing, and pytest without plugins."""
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
    done = python(*COMMANDS[command])
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_on_a_gpu_is_rehearsed_without(python, tmp_path: Path) -> None:
    arguments = ("--device", "cpu", "--only", "rnn_cell forward float32", "--out", str(tmp_path / "out"))
    done = python("-m", "benchmarks", "gpu", *arguments)
    assert "cuda: jobs: 1 right" in done.stdout, done.stdout + done.stderr
    assert "never launched" in done.stdout


def test_all_tests_are_collected_without(python) -> None:
    done = python("-m", "pytest", "tests", "--collect-only", "-q", "-p", "no:cacheprovider", "-rs")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "error" not in done.stdout.splitlines()[-1]
    assert "pip install expecttest" in done.stdout


def test_tests_that_lack_a_package_are_skipped_with_the_remedy(python) -> None:
    chosen = [
        "tests/models/test_search.py::test_the_command",
        "tests/programs/test_nn.py::test_module_db_errors",
        "tests/models/test_depth.py",
    ]
    done = python("-m", "pytest", *chosen, "-q", "-p", "no:cacheprovider", "-rs")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" not in done.stdout
    for name in ("expecttest", "scikit-learn"):
        assert f"pip install {name}" in done.stdout
