"""How torch.autocast lowers the inputs of convolution and recurrence: as for torch's corresponding operators, it converts them
to the dtype that autocast is set to. The other ops of this package are not affected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: The device types for which the operators of convolution and recurrence have a rule for autocast.
DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")


def _is_lowered(tensor: Tensor, device_type: str) -> bool:
    """Whether autocast lowers a tensor; it leaves fp64, dtypes that are not floating-point, and tensors on other devices
    unchanged."""
    return tensor.device.type == device_type and tensor.is_floating_point() and tensor.dtype != torch.float64


def lower(inputs: tuple[Any, ...], device_type: str) -> tuple[Any, ...]:
    """The inputs of an op after autocast."""
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(value.to(dtype) if isinstance(value, Tensor) and _is_lowered(value, device_type) else value for value in inputs)


def lowered_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that a tensor has inside an op whose inputs autocast lowers: the tensor's own if autocast does not
    change it."""
    if torch._C._is_any_autocast_enabled():
        device_type = tensor.device.type
        if device_type in DEVICE_TYPES and torch.is_autocast_enabled(device_type) and _is_lowered(tensor, device_type):
            return torch.get_autocast_dtype(device_type)
    return tensor.dtype


def lowered(tensor: Tensor) -> Tensor:
    """The tensor converted to its `lowered_dtype`. Tensors that torch's own operators process outside the op need this: under
    autocast, `cat` and `stack`, which autograd also calls for the backward of `split` and `unbind`, reject a 16-bit dtype
    other than autocast's."""
    dtype = lowered_dtype(tensor)
    return tensor if tensor.dtype == dtype else tensor.to(dtype)  # a trace would record an unnecessary conversion
