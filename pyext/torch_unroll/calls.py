"""What the public functions have in common: which engine serves a call, and inputs without a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_unroll.engines import claims, resolve
from torch_unroll.programs import is_transformed
from torch_unroll.shapes import require_tensors
from torch_unroll.tracing import is_tracing


def serving_engine(engine: str | None, **tensors: Tensor | None) -> str | None:
    """The engine's name as operators take it, or None if the call goes to torch's own operator.

    Args:
        engine: the argument `engine` of the call.
        tensors: the tensors of the call by argument name, its input first.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: an unknown engine.
        RuntimeError: an engine is named for a tensor that has no strides, or is nested or quantized.
    """
    require_tensors(**tensors)
    resolved = resolve(engine)
    input, *others = tensors.values()
    assert input is not None
    return resolved if claims(resolved, input, others, tuple(tensors)[1:]) else None


def with_batch(input: Tensor, rank: int = 4) -> Tensor:
    """The input as a batch; `rank` is its number of dimensions if it has one."""
    return input if input.dim() == rank else input.unsqueeze(0)


def without_batch(result: Tensor, input: Tensor, rank: int = 4) -> Tensor:
    """Undoes `with_batch` for a result.

    The batch is removed in place, because torch's results are not views of other tensors; a call that is recorded or transformed
    gets a view, since graphs do not allow a shape to change in place.
    """
    if input.dim() == rank:
        return result
    if is_transformed() or is_tracing() or torch._C._len_torch_dispatch_stack() > 0:
        return result.squeeze(0)
    return result.squeeze_(0)
