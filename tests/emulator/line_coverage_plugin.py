"""A pytest plugin for line_coverage.py: at its end, each process writes its line counts and the kernels that it launched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torch_unroll.engines import cuda


def pytest_sessionfinish(session: pytest.Session) -> None:
    kernels = cuda.KernelObject(cuda.library_path("cpu"))
    launched = [name for name, index in kernels.index.items() if kernels.library.torch_unroll_emulator_launches(index)]
    Path(os.environ["LAUNCHED_KERNELS"], str(os.getpid())).write_text("\n".join(launched))
    kernels.library.torch_unroll_emulator_write_coverage()
