"""What the public functions have in common: which engine serves a call, and inputs without a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_unroll.engines import claims, resolve
from torch_unroll.programs import is_transformed
from torch_unroll.shapes import require_tensors
from torch_unroll.tracing import is_tracing


def serving_engine(engine: str | None, **tensors: Tensor | None) -> str | None:
    """The argument `engine` for the operators (a name, or "auto"), or None if the call goes to torch's own operator.

    Args:
        engine: the argument `engine` of the call.
        tensors: the tensors of the call by argument name, its input first.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: an unknown engine.
        RuntimeError: an engine is named for a tensor that has no strides, or is nested or quantized.
    """
    require_tensors(**tensors)
    resolved = resolve(engine)
    input, *others = tensors.values()
    assert input is not None
    return resolved if claims(resolved, input, others, tuple(tensors)[1:]) else None


def with_batch(input: Tensor, rank: int = 4) -> Tensor:
    """The input with a batch dimension, which is added if it is missing; `rank` is the number of dimensions including it."""
    return input if input.dim() == rank else input.unsqueeze(0)


def without_batch(result: Tensor, input: Tensor, rank: int = 4) -> Tensor:
    """The result without the batch dimension if `with_batch` added one to the input.

    The dimension is removed in place, so that the result, like torch's, is not a view. A call that is recorded or transformed, or
    that a dispatch mode sees, gets a view, since graphs do not allow a shape to change in place.
    """
    if input.dim() == rank:
        return result
    if is_transformed() or is_tracing() or torch._C._len_torch_dispatch_stack() > 0:
        return result.squeeze(0)
    return result.squeeze_(0)
