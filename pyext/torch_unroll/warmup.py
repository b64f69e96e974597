"""Everything a first call would compile or load, done before it."""

from __future__ import annotations

import torch

from torch_unroll.engines import resolve, select
from torch_unroll.engines.interface import DTYPES
from torch_unroll.kernels.table import OPS


def warmup(
    op: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    engine: str | None = None,
) -> None:
    """Makes kernels ready, so that no call waits for a compiler, and a process's first call may be inside a CUDA graph's capture.

    Engine `cuda` needs it only where a kernel object was never used in this process; `cupy` and `numba` compile kernels when
    they are first launched, which a capture does not allow. `cupy` keeps what it compiled on disk
    (`python -m torch_unroll compile` fills that ahead of time), `numba` does not.

    Args:
        op: "conv2d" (with unfold and fold), "max_pool2d" (with max_over_time) or "rnn" (with rnn_cell); None: all of them.
        dtype: of the calls to come; None: every one that the kernels take.
        device: by default the current GPU.
        engine: as the ops take it; by default the one that would serve them.

    Raises:
        ValueError: there is no such op or engine.
        RuntimeError: the engine cannot run here; the message says what is missing.
    """
    if op is not None and op not in OPS:
        raise ValueError(f"op: expected one of {', '.join(OPS)}, got {op!r}")
    place = torch.device("cuda" if device is None else device)
    for each in OPS if op is None else (op,):
        for one in DTYPES if dtype is None else (dtype,):
            select(resolve(engine), each, place, one).warmup(each, one, place)
