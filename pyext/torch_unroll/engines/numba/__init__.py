"""Engine `numba`: the Python kernels in kernels/numba, compiled by Numba on first use. They work on the memory of torch's tensors
and run on torch's stream.

It runs on CUDA tensors, and in Numba's simulator (NUMBA_ENABLE_CUDASIM=1, set before numba is imported) on CPU tensors, where the
kernels are ordinary Python: for tests and for stepping through them with a debugger. fp32 products are IEEE, whatever precision a
call asks for. This module says whether the engine can run here, and does not import numba unless it has to; `engine.py` holds the
engine.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch

from torch_unroll.engines.interface import DTYPES


def _is_simulated() -> bool:
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


@cache
def _missing_requirement() -> str | None:
    """Returns what the machine lacks and, if there is one, the command that adds it; None if it lacks nothing."""
    release = (torch.version.cuda or "13").partition(".")[0]
    install = f"pip install 'numba-cuda[cu{release}]>=0.30'"
    if find_spec("numba_cuda") is None:
        return f"numba-cuda is not installed: {install}"
    try:
        from numba import cuda
    except ImportError as error:
        return f"numba-cuda does not load ({error}): {install}"
    if _is_simulated():
        return None
    if not cuda.is_available():
        return f"numba-cuda finds no driver that it can use: {cuda.cuda_error() or 'no device'}"
    try:
        from numba.cuda.cudadrv.nvvm import NVVM

        NVVM()
    except Exception as error:  # Numba raises errors of its own where the library is missing
        return f"libNVVM does not load ({error}): {install}"
    return None


def refuses(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Returns None if engine `numba` accepts the call; else the reason and, if there is one, the remedy."""
    if device.type == "cpu" and not _is_simulated():
        return "runs on CUDA tensors; on CPU tensors only in Numba's simulator: start with NUMBA_ENABLE_CUDASIM=1"
    if device.type not in ("cpu", "cuda"):
        return f"runs on CUDA tensors, not on {device.type}"
    if device.type == "cuda" and _is_simulated():
        return "Numba's simulator takes CPU tensors only: start without NUMBA_ENABLE_CUDASIM"
    if dtype not in DTYPES:
        return f"has no kernels for {dtype}"
    return _missing_requirement()
