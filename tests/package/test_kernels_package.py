"""The kernels are one package with one name, torch_unroll.kernels, which the build uses without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

WITHOUT_TORCH = "import runpy, sys; sys.modules['torch'] = None; "


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "pyext"), str(ROOT)))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT, check=False)


@pytest.mark.parametrize("module", ["kernels", "kernels.table", "pyext.torch_unroll.kernels.cuda.conv2d.variants"])
def test_no_other_name_can_be_imported(module: str) -> None:
    process = run_python(f"import {module}")
    assert process.returncode != 0
    assert "ImportError: kernels is a part of torch_unroll: import torch_unroll.kernels, not " in process.stderr


def test_the_build_script_needs_no_torch() -> None:
    code = f"{WITHOUT_TORCH}sys.argv = ['build.py', '--help']; runpy.run_path('kernels/build.py', run_name='__main__')"
    process = run_python(code)
    assert process.returncode == 0, process.stderr
    assert "python kernels/build.py cuda|emulated" in process.stdout


def test_the_build_script_has_the_packages_modules() -> None:
    code = f"{WITHOUT_TORCH}names = runpy.run_path('kernels/build.py'); print(names['Kernel'].__module__, *sorted(sys.modules))"
    kernel_module, *modules = run_python(code).stdout.split()
    assert kernel_module == "torch_unroll.kernels.table"
    assert "kernels" not in modules


def test_setup_needs_no_torch() -> None:
    pytest.importorskip("setuptools", minversion="77", reason="building the package needs setuptools 77")
    code = f"{WITHOUT_TORCH}sys.argv = ['setup.py', '--name']; runpy.run_path('setup.py', run_name='__main__')"
    process = run_python(code)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split()[-1] == "torch-unroll"
