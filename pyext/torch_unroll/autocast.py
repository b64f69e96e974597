"""What torch.autocast makes of the inputs of an op that it lowers, as it does for torch's operators of the same kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: The kinds of device whose autocast is known to the operators.
DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")


def _is_lowered(tensor: Tensor, device_type: str) -> bool:
    """autocast leaves integers, fp64 and tensors on other devices alone."""
    return tensor.device.type == device_type and tensor.is_floating_point() and tensor.dtype != torch.float64


def lower(inputs: tuple[Any, ...], device_type: str) -> tuple[Any, ...]:
    """The inputs of an op as autocast hands them on."""
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(value.to(dtype) if isinstance(value, Tensor) and _is_lowered(value, device_type) else value for value in inputs)


def lowered_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which an op that autocast lowers will see a tensor: its own, outside of autocast."""
    if torch._C._is_any_autocast_enabled():
        device_type = tensor.device.type
        if device_type in DEVICE_TYPES and torch.is_autocast_enabled(device_type) and _is_lowered(tensor, device_type):
            return torch.get_autocast_dtype(device_type)
    return tensor.dtype


def lowered(tensor: Tensor) -> Tensor:
    """A tensor in the dtype in which such an op will see it; for what is joined or cut around the op: autocast lets `cat` and
    `stack`, in a backward too, see no 16-bit dtype but its own."""
    dtype = lowered_dtype(tensor)
    return tensor if tensor.dtype == dtype else tensor.to(dtype)  # a trace would record that it converts whatever comes
