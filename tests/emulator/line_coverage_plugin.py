"""For pytest under line_coverage.py: as each process ends, its counts of lines and the kernels it has launched are written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torch_unroll.engines import cuda


def pytest_sessionfinish(session: pytest.Session) -> None:
    kernels = cuda.kernel_object("cpu")
    launched = [name for name, index in kernels.index.items() if kernels.library.torch_unroll_emulator_launches(index)]
    Path(os.environ["LAUNCHED_KERNELS"], str(os.getpid())).write_text("\n".join(launched))
    kernels.library.torch_unroll_emulator_write_coverage()
