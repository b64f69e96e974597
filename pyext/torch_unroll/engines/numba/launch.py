"""Puts a kernel on torch's current stream, with torch's tensors as its arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import cuda, types
from torch import Tensor

from torch_unroll.kernels.numba.types import SIMULATED, THREADS, TILE

_DTYPES = {torch.bfloat16: torch.uint16}  # as its bits, see kernels/numba/types.py


def launch(kernel: Any, grid: int | tuple[int, ...], block: int | tuple[int, ...], *arguments: Any) -> None:
    """Launches a kernel; tensors become arrays, sequences of sizes tuples, everything else is passed as it is."""
    device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
    values = [tuple(map(int, each)) if isinstance(each, Sequence) else each for each in arguments]
    if device.type == "cpu":
        kernel[grid, block](*(_host_array(each) if isinstance(each, Tensor) else each for each in values))
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    with cuda.gpus[index]:
        stream = _stream(torch._C._cuda_getCurrentRawStream(index))
        kernel[grid, block, stream](*(_device_array(each) if isinstance(each, Tensor) else each for each in values))


def launch_elements(kernel: Any, count: int, device: torch.device, *arguments: Any) -> None:
    """Launches a kernel whose threads share `count` elements among them."""
    launch(kernel, _blocks(-(-count // THREADS), device), THREADS, *arguments)


def launch_tiles(kernel: Any, count: int, device: torch.device, *arguments: Any) -> None:
    """Launches a kernel whose blocks share `count` tiles among them."""
    launch(kernel, _blocks(count, device), (TILE, TILE), *arguments)


def _blocks(most: int, device: torch.device) -> int:
    """As many blocks as there is work for, up to eight rounds of 256 threads a multiprocessor; they take the rest in turn."""
    return min(most, 2 if SIMULATED else 8 * _multiprocessors(device))


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def splits(tiles: int, device: torch.device) -> int:
    """Into how many parts to cut the sums of so few tiles that two blocks each would not fill the GPU."""
    return max(1, 2 * (4 if SIMULATED else _multiprocessors(device)) // tiles)


def _bits(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.view(_DTYPES[tensor.dtype]) if tensor.dtype in _DTYPES else tensor


def _host_array(tensor: Tensor) -> Any:
    """The tensor's memory as the simulator's kernels see it; a numpy array itself would be copied, and must be contiguous."""
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    return FakeCUDAArray(_bits(tensor).numpy())


def _device_array(tensor: Tensor) -> Any:
    """The tensor's memory, which the caller keeps alive. Its strides are no part of its type, so that a kernel is compiled once a
    dtype and not once for every mixture of layouts."""
    array = cuda.as_cuda_array(_bits(tensor), sync=False)
    array._numba_type_ = types.Array(_numba_dtype(array.dtype), array.ndim, "A")
    return array


@cache
def _numba_dtype(dtype: np.dtype) -> Any:
    from numba.cuda.np.numpy_support import from_dtype

    return from_dtype(dtype)


@cache
def _stream(pointer: int) -> Any:
    return cuda.external_stream(pointer) if pointer else 0
