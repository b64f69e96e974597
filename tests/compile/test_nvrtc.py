"""NVRTC, which has no include path and no host headers, compiles every row of the kernel table: what engine `cupy` relies on."""

from __future__ import annotations

from collections import defaultdict

import pytest

from torch_unroll.kernels import SOURCES
from torch_unroll.kernels.table import Kernel, kernels

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="needs `pip install cuda-bindings nvidia-cuda-nvrtc`")
pytestmark = pytest.mark.compile

GROUPS: defaultdict[tuple[str, str], list[Kernel]] = defaultdict(list)
for row in kernels():
    GROUPS[row.source, row.architecture].append(row)
CASES = [
    pytest.param(rows, target, id=f"{source}-{target}")
    for (source, architecture), rows in GROUPS.items()
    for target in (("compute_80", "compute_90a") if architecture == "80" else (f"compute_{architecture}",))
]


def check(status: tuple) -> tuple:
    error, *results = status
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, nvrtc.nvrtcGetErrorString(error)[1].decode()
    return results


@pytest.mark.parametrize(("rows", "target"), CASES)
def test_nvrtc_compiles(rows: list[Kernel], target: str) -> None:
    (program,) = check(nvrtc.nvrtcCreateProgram(f'#include "{rows[0].source}"\n'.encode(), b"kernels.cu", 0, None, None))
    try:
        for row in rows:
            check(nvrtc.nvrtcAddNameExpression(program, row.expression.encode()))
        options = [f"--gpu-architecture={target}".encode(), b"-std=c++20", b"-ftz=true", f"-I{SOURCES}".encode()]
        (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        (size,) = check(nvrtc.nvrtcGetProgramLogSize(program))
        log = bytearray(size)
        check(nvrtc.nvrtcGetProgramLog(program, log))
        assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
        assert not log.decode().strip("\0\n"), log.decode()
        names = [check(nvrtc.nvrtcGetLoweredName(program, row.expression.encode()))[0] for row in rows]
        assert len(set(names)) == len(rows)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
