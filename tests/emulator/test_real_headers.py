"""nvcc and NVRTC compile the emulator's test kernels, except those of races.cuh and registers.cuh.

This shows that the real headers in kernels/cuda/platform have the functions that these kernels call in the emulator's headers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hopper_launches
import pytest
import test_basics
import test_clusters
import test_platform
from emulated import KERNELS

from torch_unroll.engines.nvrtc import OPTIONS, sources
from torch_unroll.kernels import SOURCES
from torch_unroll.kernels.build import build

pytestmark = pytest.mark.compile
HOPPER = ("clusters.cuh", "hopper.cuh")
ROWS = [
    replace(row, architecture="90a") if row.name == "stmatrix_kernel" or row.source in HOPPER else row
    for row in test_basics.ROWS + test_clusters.ROWS + test_platform.MATRICES + test_platform.EXCHANGES + hopper_launches.ROWS
]


def test_every_test_kernel_compiles_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0a")
    build("cuda", ROWS, tmp_path / "kernels.so", directory=tmp_path / "objects", include=[KERNELS])


@pytest.mark.parametrize("source", sorted({row.source for row in ROWS}))
def test_every_test_kernel_compiles_without_an_include_path(source: str) -> None:
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="needs `pip install cuda-bindings nvidia-cuda-nvrtc`")
    headers = {
        name: text for path in (SOURCES / "platform").glob("*.h") for name, text in sources(f"platform/{path.name}").items()
    }
    names = [name.encode() for name in headers]
    text = (KERNELS / source).read_bytes()
    error, program = nvrtc.nvrtcCreateProgram(text, source.encode(), len(headers), list(headers.values()), names)
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS
    for row in ROWS:
        if row.source == source:
            nvrtc.nvrtcAddNameExpression(program, row.expression.encode())
    options = [option.encode() for option in ("--gpu-architecture=sm_90a", *OPTIONS)]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    log = bytearray(nvrtc.nvrtcGetProgramLogSize(program)[1])
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(program)
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
