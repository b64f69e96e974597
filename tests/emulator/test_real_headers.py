"""The emulator's own test kernels through nvcc: what is emulated is what the real headers of kernels/cuda/platform offer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hopper_launches
import pytest
import test_basics
import test_clusters
import test_platform
from emulated import KERNELS

from torch_unroll.kernels.build import build

pytestmark = pytest.mark.compile
HOPPER = ("clusters.cuh", "hopper.cuh")


def test_every_test_kernel_compiles_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0a")
    rows = [
        replace(row, architecture="90a") if row.name == "stmatrix_kernel" or row.source in HOPPER else row
        for row in test_basics.ROWS + test_clusters.ROWS + test_platform.MATRICES + test_platform.EXCHANGES + hopper_launches.ROWS
    ]
    build("cuda", rows, tmp_path / "kernels.so", directory=tmp_path / "objects", include=[KERNELS])
