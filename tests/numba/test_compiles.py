"""Every Numba kernel compiles to PTX for every dtype, without local memory. Unlike the simulator, the compiler infers types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="needs `pip install 'numba-cuda[cu13]'`")
pytestmark = pytest.mark.slow

#: Runs in a separate process, because a process uses either the simulator or the compiler, and because the script replaces the
#: function by which numba's dispatcher reads the GPU's compute capability.
SCRIPT = """
import json
from types import SimpleNamespace
import numba, numba.cuda.dispatcher as dispatcher, torch
from numba import cuda, types
from torch_unroll.engines.numba import conv2d, launch, max_pool2d, rnn

dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=(8, 0))
NUMBERS = {torch.uint16: types.uint16, torch.float16: types.float16, torch.float32: types.float32, torch.float64: types.float64,
           torch.uint8: types.uint8, torch.int16: types.int16, torch.int32: types.int32, torch.int64: types.int64}
compiled = {}

def compile_instead(kernel, grid, block, *arguments):
    def argument_type(value):
        if isinstance(value, torch.Tensor):
            return types.Array(NUMBERS[launch.as_stored(value).dtype], value.ndim, "A")
        if isinstance(value, bool):
            return types.boolean
        return types.int64 if isinstance(value, int) else types.UniTuple(types.int64, len(value))
    signature = tuple(map(argument_type, arguments))
    if (kernel, signature) not in seen:
        seen.add((kernel, signature))
        ptx, _ = cuda.compile_ptx(kernel, signature, cc=(8, 0))
        compiled.setdefault(kernel.py_func.__name__, []).append(".local " in ptx)

seen = set()
launch.launch = rnn.launch = compile_instead
launch.multiprocessors = lambda device: 132
for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
    for module in (conv2d, max_pool2d, rnn):
        module.warmup(dtype, torch.device("cpu"))
print(json.dumps(compiled))
"""


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[bool]]:
    """Returns, for each kernel, whether each of its specialisations uses local memory."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, timeout=600)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def _kernels() -> list[str]:
    folder = Path(__file__).resolve().parents[2] / "kernels" / "numba"
    lines = [line for path in folder.glob("*.py") for line in path.read_text().splitlines()]
    return [line[4 : line.index("(")] for before, line in pairwise(lines) if before == "@cuda.jit"]


@pytest.mark.parametrize("kernel", _kernels())
def test_every_kernel_compiles_for_every_dtype(kernel: str, compiled: dict[str, list[bool]]) -> None:
    offset_dtypes = 3 if kernel.startswith("max_pool2d_") else 1
    dtypes = {"max_pool2d_indices_kernel": 1, "conv2d_sum_splits_kernel": 4}.get(kernel, 4)
    assert len(compiled[kernel]) == dtypes * offset_dtypes
    assert not any(compiled[kernel])
