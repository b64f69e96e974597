"""Tests that importing the package is quick and loads no optional package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch_unroll as tu

PACKAGE = Path(__file__).parents[2] / "pyext"


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(PACKAGE), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, check=False)


def test_import_loads_no_optional_package() -> None:
    optional = ("cupy", "numba", "matplotlib", "sklearn")
    code = f"import sys, torch_unroll; print(*(name for name in {optional} if name in sys.modules))"
    assert _python(code).stdout.split() == []


def test_import_adds_little_to_torchs_own() -> None:
    code = "import time, torch; start = time.perf_counter(); import torch_unroll; print(time.perf_counter() - start)"
    assert min(float(_python(code).stdout) for _ in range(3)) < 0.5


def test_the_environment_names_the_default_engine() -> None:
    code = "import torch_unroll; print(torch_unroll.engines.default)"
    assert _python(code, TORCH_UNROLL_ENGINE="torch").stdout.split() == ["torch"]


def test_an_unknown_default_engine_is_refused_at_once() -> None:
    result = _python("import torch_unroll", TORCH_UNROLL_ENGINE="cudnn")
    assert result.returncode != 0
    assert "expected one of cuda, cupy, numba, torch or auto, got 'cudnn'" in result.stderr


def test_public_names_are_functions_and_subpackages_keep_theirs() -> None:
    subpackages = [path.parent.name for path in (PACKAGE / "torch_unroll").glob("*/__init__.py")]
    imported = [f"import torch_unroll.{name} as imported; print(imported.__name__)" for name in subpackages]
    assert _python("\n".join(imported)).stdout.split() == [f"torch_unroll.{name}" for name in subpackages]
    assert [name for name in set(tu.__all__) - set(subpackages) if not callable(getattr(tu, name))] == []
