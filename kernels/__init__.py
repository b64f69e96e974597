"""The CUDA and Numba kernels and the functions that plan their launches. They do not need torch."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

if __name__ != "torch_unroll.kernels":  # two copies of a module would have two copies of each class
    raise ImportError(f"kernels is a part of torch_unroll: import torch_unroll.kernels, not {__name__}")

SOURCES = Path(__file__).resolve().parent / "cuda"


@cache
def digest(*suffixes: str) -> str:
    """Returns sixteen hex digits that identify the contents of `kernels/cuda`. Measurements record them.

    Args:
        suffixes: the suffixes of the files to include, such as ".cuh"; by default, every source and table.
    """
    total = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in (suffixes or (".h", ".cuh", ".cu", ".py", ".json")):
            total.update(path.relative_to(SOURCES).as_posix().encode())
            total.update(path.read_bytes())
    return total.hexdigest()[:16]


def device_digest() -> str:
    """Returns the digest of the C++ sources alone. A built object contains the digest of its sources."""
    return digest(".h", ".cuh", ".cu")
