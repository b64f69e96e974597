"""The private functions of torch that prepared calls use for speed, each with a slower public way to do the same.

Guards have no public equivalent: without them, no call is prepared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

try:
    from torch._C._dynamo import guards as _guards
except ImportError:
    _guards = None  # type: ignore[assignment]

Allocate = Callable[[Sequence[int], Sequence[int], torch.dtype], Tensor]


def guard(tensors: Sequence[Tensor]) -> Callable[..., bool] | None:
    """Returns a predicate that is true for tensors of the same kind as these; None if torch offers no reliable one.

    A kind is all that host code and torch's dispatcher see of tensors but their addresses: types, dtypes, devices, sizes, strides
    and requires_grad, and the dispatch keys of each tensor and of the thread, which tell of autocast, transforms, modes and
    inference mode.
    """
    kind = getattr(_guards, "TensorGuards", None)
    if kind is None or any(tensor.layout is not torch.strided or tensor.is_nested for tensor in tensors):
        return None
    check: Callable[..., bool] = kind(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
    return check if check(*tensors) else None  # it always fails if one tensor is passed twice


def allocator(device: torch.device) -> Allocate:
    """Returns a function (size, stride, dtype) -> uninitialised memory on a device, which has to be current if it is a GPU."""
    fast: Allocate | None = getattr(_guards, f"_empty_strided_{device.type}", None)
    if fast is not None:
        return fast
    return lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype, device=device)


def raw_stream(index: int) -> Any:
    """Returns the handle of torch's current stream on a GPU."""
    fast = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return torch.cuda.current_stream(index).cuda_stream if fast is None else fast(index)


def exchange_device(index: int) -> int:
    """Makes a GPU current and returns the index of the one that was; an index below 0 changes nothing."""
    fast = getattr(torch.cuda, "_exchange_device", None)
    if fast is not None:
        return int(fast(index))
    previous = torch.cuda.current_device()
    if index >= 0:
        torch.cuda.set_device(index)
    return previous


def applier(function: type[Function]) -> Callable[..., Any]:
    """Returns `function.apply` for calls outside torch.func's transforms, without what it does for these."""
    base = getattr(torch._C, "_FunctionBase", None)
    return function.apply if base is None else super(Function, function).apply  # type: ignore[misc]
