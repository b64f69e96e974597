"""The limit on the memory that one convolution may allocate, and that memory's allocation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_unroll.engines.compiled.recording import note_workspace
from torch_unroll.kernels import changes
from torch_unroll.kernels.cuda.conv2d.problem import WORKSPACE_LIMIT

_limit = WORKSPACE_LIMIT


def workspace_limit() -> int:
    """Returns the limit in bytes, which counts neither inputs and outputs nor a packed filter."""
    return _limit


def set_workspace_limit(limit: int) -> None:
    """Sets the limit for every later call of the process, on behalf of `tu.conv2d_workspace`."""
    global _limit
    _limit = limit
    changes.note()


def allocate_workspace(
    size: Sequence[int],
    like: Tensor,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Returns uninitialised memory and records its size for `explain`."""
    workspace = torch.empty(tuple(size), dtype=dtype or like.dtype, device=like.device, memory_format=memory_format)
    note_workspace(workspace)
    return workspace
