"""NVRTC, without an include path or host headers, compiles every row of the kernel table, as engine `cupy` needs.

Each row is compiled to machine code for each of TARGETS that it runs on, as for a call on a GPU. test_nvcc.py checks the remarks
of ptxas.
"""

from __future__ import annotations

from collections import defaultdict

import pytest

from torch_unroll.engines.nvrtc import OPTIONS, sources
from torch_unroll.kernels.table import Kernel, checked_source, kernels

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="needs `pip install cuda-bindings nvidia-cuda-nvrtc`")
pytestmark = pytest.mark.compile

GROUPS: defaultdict[tuple[str, str], list[Kernel]] = defaultdict(list)
for row in kernels():
    GROUPS[row.source, row.architecture].append(row)
TARGETS = ("80", "90a", "100")
CASES = [
    pytest.param(rows, target, id=f"{source}-{architecture}-sm_{target}")
    for (source, architecture), rows in GROUPS.items()
    for target in TARGETS
    if architecture == target or (architecture.isdigit() and int(architecture) <= int(target.rstrip("a")))
]


def check(status: tuple) -> tuple:
    error, *results = status
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, nvrtc.nvrtcGetErrorString(error)[1].decode()
    return results


@pytest.mark.parametrize(("rows", "architecture"), CASES)
def test_nvrtc_compiles(rows: list[Kernel], architecture: str) -> None:
    text, files = checked_source(rows), {**sources(rows[0].source), **sources("platform/layout.h")}
    names = [name.encode() for name in files]
    (program,) = check(nvrtc.nvrtcCreateProgram(text.encode(), b"kernels.cu", len(files), list(files.values()), names))
    try:
        for row in rows:
            check(nvrtc.nvrtcAddNameExpression(program, row.expression.encode()))
        options = [option.encode() for option in (f"--gpu-architecture=sm_{architecture}", *OPTIONS)]
        (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        (size,) = check(nvrtc.nvrtcGetProgramLogSize(program))
        log = bytearray(size)
        check(nvrtc.nvrtcGetProgramLog(program, log))
        assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
        assert not log.decode().strip("\0\n"), log.decode()
        symbols = [check(nvrtc.nvrtcGetLoweredName(program, row.expression.encode()))[0] for row in rows]
        assert len(set(symbols)) == len(rows)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
