"""Host code of kernels/cuda/max_pool2d."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from torch_unroll.engines.compiled import Launcher
from torch_unroll.engines.compiled.recording import note_choice
from torch_unroll.engines.interface import Pair, Pool2dGeometry
from torch_unroll.kernels.cuda.max_pool2d import variants
from torch_unroll.kernels.cuda.max_pool2d.pooling import Device, Pooling, Strides
from torch_unroll.kernels.cuda.max_pool2d.variants import Planned
from torch_unroll.shapes import is_channels_last, pooled_size, pooling_offset_dtype

_NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}


def _device(launcher: Launcher, tensor: Tensor) -> Device:
    properties = launcher.properties(tensor.device)
    return Device(properties.multiprocessors, properties.shared_bytes_per_block)


def _aligned(*tensors: Tensor) -> bool:
    """Whether all start at a multiple of 16 bytes, as what torch allocates does."""
    return all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


def _pooling(x_size: Any, y_size: Any, geometry: Pool2dGeometry, channels_last: bool) -> Pooling:
    """Sizes are (N, C, height, width)."""
    kernel_size, stride, padding, dilation = ((int(pair[0]), int(pair[1])) for pair in geometry)
    (N, C, H, W), (P, Q) = x_size, y_size[2:]
    return Pooling(N, C, H, W, P, Q, kernel_size, stride, padding, dilation, channels_last)


def _pooling_of_input(x: Tensor, geometry: Pool2dGeometry, ceil_mode: bool) -> Pooling:
    y_size = (*x.shape[:2], *pooled_size(x.shape[2:], *geometry, ceil_mode))
    return _pooling(x.shape, y_size, geometry, is_channels_last(x))


def _pooling_of_offsets(offsets: Tensor, x_size: Pair, geometry: Pool2dGeometry) -> Pooling:
    x_shape = (*offsets.shape[:2], *x_size)
    return _pooling(x_shape, offsets.shape, geometry, is_channels_last(offsets))


def _pooling_of_time(steps: int, N: int, C: int) -> Pooling:
    """Pooling seen sideways: a plane `steps` rows high and one column wide for each (n, c), in one window, channels fastest."""
    return _pooling((N, C, steps, 1), (N, C, 1, 1), Pool2dGeometry((steps, 1), (1, 1), (0, 0), (1, 1)), channels_last=True)


def _memory_format(pooling: Pooling) -> torch.memory_format:
    return torch.channels_last if pooling.channels_last else torch.contiguous_format


def _empty(pooling: Pooling, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty((pooling.N, pooling.C, height, width), dtype=dtype, device=device, memory_format=_memory_format(pooling))


def _launch(
    launcher: Launcher, planned: Planned, parameters: type[ctypes.Structure], device: torch.device, *tensors: Tensor | None
) -> None:
    """`tensors` in the order of the parameter struct; None is a null pointer."""
    pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
    launcher.launch(planned.plan, parameters(*pointers, planned.shape, planned.dense), device)


def _forward(
    launcher: Launcher, pooling: Pooling, x: Tensor, x_strides: Strides, y: Tensor, offsets: Tensor | None, lengths: Tensor | None
) -> None:
    """Fills y, and offsets where there are any."""
    if y.numel():
        device, with_lengths = _device(launcher, x), lengths is not None
        planned = variants.forward_plan(pooling, _NAMES[x.dtype], x_strides, _aligned(x), device, with_lengths)
        note_choice("max_pool2d_forward", planned.passed_over)
        _launch(launcher, planned, variants.ForwardParameters, x.device, x, y, offsets, lengths)


def _strides(x: Tensor) -> Strides:
    n, c, h, w = x.stride()
    return (n, c, h, w)


def max_pool2d_forward(
    launcher: Launcher,
    x: Tensor,
    geometry: Pool2dGeometry,
    ceil_mode: bool,
    with_offsets: bool,
) -> tuple[Tensor, Tensor]:
    pooling = _pooling_of_input(x, geometry, ceil_mode)
    offset_dtype = pooling_offset_dtype(geometry.kernel_size[0] * geometry.kernel_size[1])
    y = _empty(pooling, pooling.P, pooling.Q, x.dtype, x.device)
    offsets = _empty(pooling, pooling.P, pooling.Q, offset_dtype, x.device) if with_offsets else None
    _forward(launcher, pooling, x, _strides(x), y, offsets, None)
    return y, x.new_empty(0, dtype=offset_dtype) if offsets is None else offsets


def _backward(launcher: Launcher, pooling: Pooling, dy: Tensor, offsets: Tensor, dx: Tensor) -> None:
    """Fills dx; all three are dense in the pooling's memory format."""
    if dx.numel():
        planned = variants.backward_plan(pooling, _NAMES[dy.dtype], _aligned(dy, offsets), _device(launcher, dy))
        note_choice("max_pool2d_backward", planned.passed_over)
        _launch(launcher, planned, variants.BackwardParameters, dy.device, dy, offsets, dx)


def max_pool2d_backward(
    launcher: Launcher,
    dy: Tensor,
    offsets: Tensor,
    x_size: Pair,
    geometry: Pool2dGeometry,
) -> Tensor:
    pooling = _pooling_of_offsets(offsets, x_size, geometry)
    memory_format = _memory_format(pooling)
    dx = _empty(pooling, pooling.H, pooling.W, dy.dtype, dy.device)
    _backward(launcher, pooling, dy.contiguous(memory_format=memory_format), offsets.contiguous(memory_format=memory_format), dx)
    return dx


def _aligned_copy(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """The tensor dense in a memory format and at a multiple of 16 bytes; itself where it already is."""
    dense = tensor.contiguous(memory_format=memory_format)
    return dense if _aligned(dense) else dense.clone(memory_format=memory_format)


def max_pool2d_gather(launcher: Launcher, x: Tensor, offsets: Tensor, geometry: Pool2dGeometry) -> Tensor:
    pooling = _pooling_of_offsets(offsets, (x.shape[2], x.shape[3]), geometry)
    memory_format = _memory_format(pooling)
    gathered = _empty(pooling, pooling.P, pooling.Q, x.dtype, x.device)
    if gathered.numel():
        planned = variants.gather_plan(pooling, _NAMES[x.dtype])
        source, choice = x.contiguous(memory_format=memory_format), _aligned_copy(offsets, memory_format)
        _launch(launcher, planned, variants.GatherParameters, x.device, source, choice, gathered)
    return gathered


def max_pool2d_indices(launcher: Launcher, offsets: Tensor, x_size: Pair, geometry: Pool2dGeometry) -> Tensor:
    pooling = _pooling_of_offsets(offsets, x_size, geometry)
    indices = _empty(pooling, pooling.P, pooling.Q, torch.int64, offsets.device)
    if indices.numel():
        choice = offsets.contiguous(memory_format=_memory_format(pooling))
        _launch(launcher, variants.indices_plan(pooling), variants.IndicesParameters, offsets.device, choice, indices)
    return indices


def max_over_time_forward(launcher: Launcher, x: Tensor, lengths: Tensor | None, with_offsets: bool) -> tuple[Tensor, Tensor]:
    T, N, C = x.shape
    y = torch.empty((N, C), dtype=x.dtype, device=x.device)
    offset_dtype = pooling_offset_dtype(T)
    offsets = torch.empty((N, C), dtype=offset_dtype, device=x.device) if with_offsets else None
    step, image, channel = x.stride()
    if lengths is None and image == C * channel:  # no row of time ends early: more often whole pieces of channels
        N, C, image = 1, N * C, 0
    rows = None if lengths is None else lengths.to(torch.int64).contiguous()
    _forward(launcher, _pooling_of_time(T, N, C), x, (image, channel, step, 0), y, offsets, rows)
    return y, x.new_empty(0, dtype=offset_dtype) if offsets is None else offsets


def max_over_time_backward(launcher: Launcher, dy: Tensor, offsets: Tensor, steps: int) -> Tensor:
    N, C = dy.shape
    dx = torch.empty((steps, N, C), dtype=dy.dtype, device=dy.device)
    _backward(launcher, _pooling_of_time(steps, 1, N * C), dy.contiguous(), offsets.contiguous(), dx)
    return dx


def max_over_time_gather(launcher: Launcher, x: Tensor, offsets: Tensor) -> Tensor:
    T, N, C = x.shape
    gathered = torch.empty((N, C), dtype=x.dtype, device=x.device)
    if gathered.numel():
        planned = variants.gather_plan(_pooling_of_time(T, 1, N * C), _NAMES[x.dtype])
        choice = _aligned_copy(offsets, torch.contiguous_format)
        _launch(launcher, planned, variants.GatherParameters, x.device, x.contiguous(), choice, gathered)
    return gathered
