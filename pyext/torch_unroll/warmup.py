"""Compiling and loading kernels ahead of the first call."""

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
    """Compiles and loads kernels, so that later calls that launch them need not wait, and the first call of a process may be
    captured in a CUDA graph.

    Engine `cuda` only has to load its kernels; `cupy` and `numba` compile a kernel when it is first launched, which is not
    possible during a capture. `cupy` caches compiled kernels on disk (`python -m torch_unroll compile` fills the cache ahead of
    time); `numba` does not.

    Args:
        op: "conv2d" (with unfold and fold), "max_pool2d" (with max_over_time) or "rnn" (with rnn_cell); None stands for all.
        dtype: the dtype of the later calls; None stands for every dtype that the kernels support.
        device: by default the current GPU.
        engine: as in the public functions; by default the engine that would serve the calls.

    Raises:
        ValueError: an unknown op or engine.
        RuntimeError: the named engine cannot run here, or no engine supports the dtype; the message says what is missing.
    """
    if op is not None and op not in OPS:
        raise ValueError(f"op: expected one of {', '.join(OPS)}, got {op!r}")
    chosen_device = torch.device("cuda" if device is None else device)
    for chosen_op in OPS if op is None else (op,):
        for chosen_dtype in DTYPES if dtype is None else (dtype,):
            select(resolve(engine), chosen_op, chosen_device, chosen_dtype).warmup(chosen_op, chosen_dtype, chosen_device)
