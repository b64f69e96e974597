"""Puts a kernel on torch's current stream, with torch's tensors as its arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import cuda, types
from torch import Tensor

from torch_unroll.kernels.arithmetic import ceil_divide
from torch_unroll.kernels.numba.types import SIMULATED, THREADS, TILE

_STORED = {torch.bfloat16: torch.uint16}  # see kernels/numba/types.py


def launch(kernel: Any, grid: int | tuple[int, ...], block: int | tuple[int, ...], *arguments: Any) -> None:
    """Launches a kernel on the device of its tensors, which become arrays. Sequences of sizes become tuples of int;
    other arguments are passed unchanged."""
    device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
    values = [tuple(map(int, value)) if isinstance(value, Sequence) else value for value in arguments]
    if device.type == "cpu":
        kernel[grid, block](*(_host_array(value) if isinstance(value, Tensor) else value for value in values))
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    with cuda.gpus[index]:
        stream = _stream(torch._C._cuda_getCurrentRawStream(index))
        kernel[grid, block, stream](*(_device_array(value) if isinstance(value, Tensor) else value for value in values))


def launch_elements(kernel: Any, count: int, device: torch.device, *arguments: Any) -> None:
    """Launches a kernel whose threads share `count` elements."""
    launch(kernel, _blocks(ceil_divide(count, THREADS), device), THREADS, *arguments)


def launch_tiles(kernel: Any, count: int, device: torch.device, *arguments: Any) -> None:
    """Launches a kernel whose blocks share `count` tiles."""
    launch(kernel, _blocks(count, device), (TILE, TILE), *arguments)


def _blocks(most: int, device: torch.device) -> int:
    """Returns how many blocks to launch for `most` units of work: one for each, but at most eight for each multiprocessor
    (two in all in the simulator). If there are more units than blocks, each block loops over several units."""
    return min(most, 2 if SIMULATED else 8 * multiprocessors(device))


@cache
def multiprocessors(device: torch.device) -> int:
    """Returns the number of multiprocessors of a CUDA device."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def splits(tiles: int, device: torch.device) -> int:
    """Returns the number of splits of each tile: the largest for which all `tiles` tiles together have at most two splits for
    each multiprocessor, but at least 1."""
    return max(1, 2 * (4 if SIMULATED else multiprocessors(device)) // tiles)


def as_stored(tensor: Tensor) -> Tensor:
    """Returns a view of a tensor in the dtype that the kernels' arrays have, which is uint16 for bfloat16."""
    tensor = tensor.detach()
    return tensor.view(_STORED[tensor.dtype]) if tensor.dtype in _STORED else tensor


def _host_array(tensor: Tensor) -> Any:
    """Returns the tensor's memory as an array of the simulator's own type. The simulator would require a NumPy array to
    be contiguous, and would copy it."""
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    return FakeCUDAArray(as_stored(tensor).numpy())


def _device_array(tensor: Tensor) -> Any:
    """Returns the tensor's memory, which the caller keeps alive, as a device array. Its type says nothing of its strides, so a
    kernel is compiled once for each dtype and not for every combination of layouts."""
    array = cuda.as_cuda_array(as_stored(tensor), sync=False)
    array._numba_type_ = types.Array(_numba_dtype(array.dtype), array.ndim, "A")
    return array


@cache
def _numba_dtype(dtype: np.dtype) -> Any:
    from numba.cuda.np.numpy_support import from_dtype

    return from_dtype(dtype)


@cache
def _stream(pointer: int) -> Any:
    return cuda.external_stream(pointer) if pointer else 0
