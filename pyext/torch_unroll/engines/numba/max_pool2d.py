"""Host code of kernels/numba/max_pool2d.py. The maximum over time is pooling over planes of T rows and one column."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_unroll.engines.interface import Pool2dGeometry
from torch_unroll.engines.numba.launch import launch_elements
from torch_unroll.kernels.numba import max_pool2d as kernels
from torch_unroll.kernels.offsets import no_cell
from torch_unroll.kernels.shapes import Pair
from torch_unroll.shapes import dtype_name, is_channels_last, output_memory_format, pooled_size, pooling_offset_dtype

__all__ = [
    "max_over_time_backward",
    "max_over_time_forward",
    "max_over_time_gather",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "max_pool2d_gather",
    "max_pool2d_indices",
    "warmup",
]


def _no_cell(offsets: Tensor) -> int:
    return no_cell(dtype_name(offsets.dtype))


def _empty(size: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    return torch.empty(size, dtype=dtype, device=like.device, memory_format=output_memory_format(like))


def _planes(x: Tensor) -> Tensor:
    """Returns x (T, N, C) as planes (N, C, T, 1)."""
    return x.permute(1, 2, 0).unsqueeze(3)


def max_pool2d_forward(x: Tensor, geometry: Pool2dGeometry, ceil_mode: bool, with_offsets: bool) -> tuple[Tensor, Tensor]:
    size = (*x.shape[:2], *pooled_size(x.shape[2:], *geometry, ceil_mode))
    y = _empty(size, x.dtype, x)
    dtype = pooling_offset_dtype(geometry.kernel_size[0] * geometry.kernel_size[1])
    offsets = _empty(size if with_offsets else (0, 0, 0, 0), dtype, x)
    no_lengths = torch.empty(0, dtype=torch.int64, device=x.device)
    _forward(x, no_lengths, geometry, y, offsets)
    return y, offsets if with_offsets else offsets.flatten()


def _forward(x: Tensor, lengths: Tensor, geometry: Pool2dGeometry, y: Tensor, offsets: Tensor) -> None:
    if y.numel():
        kernel = kernels.max_pool2d_forward_strided_kernel
        settings = (*geometry, _no_cell(offsets), is_channels_last(y))
        launch_elements(kernel, y.numel(), y.device, x, lengths, *settings, y, offsets)


def max_pool2d_backward(dy: Tensor, offsets: Tensor, x_size: Pair, geometry: Pool2dGeometry) -> Tensor:
    dx = _empty((*dy.shape[:2], *x_size), dy.dtype, offsets)
    _backward(dy, offsets, geometry, dx)
    return dx


def _backward(dy: Tensor, offsets: Tensor, geometry: Pool2dGeometry, dx: Tensor) -> None:
    if dx.numel():
        settings = (*geometry, _no_cell(offsets), is_channels_last(dx))
        launch_elements(kernels.max_pool2d_backward_strided_kernel, dx.numel(), dx.device, dy, offsets, *settings, dx)


def max_pool2d_gather(x: Tensor, offsets: Tensor, geometry: Pool2dGeometry) -> Tensor:
    gathered = _empty(tuple(offsets.shape), x.dtype, offsets)
    _gather(x, offsets, geometry, gathered)
    return gathered


def _gather(x: Tensor, offsets: Tensor, geometry: Pool2dGeometry, gathered: Tensor) -> None:
    if gathered.numel():
        settings = (*geometry, _no_cell(offsets), is_channels_last(gathered))
        kernel = kernels.max_pool2d_gather_kernel
        launch_elements(kernel, gathered.numel(), gathered.device, x, offsets, *settings, gathered)


def max_pool2d_indices(offsets: Tensor, x_size: Pair, geometry: Pool2dGeometry) -> Tensor:
    indices = _empty(tuple(offsets.shape), torch.int64, offsets)
    if indices.numel():
        settings = (int(x_size[1]), *geometry, _no_cell(offsets), is_channels_last(indices))
        launch_elements(kernels.max_pool2d_indices_kernel, indices.numel(), indices.device, offsets, *settings, indices)
    return indices


def _window_over(steps: int) -> Pool2dGeometry:
    """Returns the geometry of a single window, which covers a plane of `steps` rows and one column."""
    return Pool2dGeometry(kernel_size=(steps, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1))


def max_over_time_forward(x: Tensor, lengths: Tensor | None, with_offsets: bool) -> tuple[Tensor, Tensor]:
    T, N, C = x.shape
    y = x.new_empty(N, C)
    offsets = torch.empty((N, C) if with_offsets else (0, 0), dtype=pooling_offset_dtype(T), device=x.device)
    if lengths is None:
        lengths = torch.empty(0, dtype=torch.int64, device=x.device)
    _forward(_planes(x), lengths.to(torch.int64), _window_over(T), y[..., None, None], offsets[..., None, None])
    return y, offsets if with_offsets else offsets.flatten()


def max_over_time_backward(dy: Tensor, offsets: Tensor, steps: int) -> Tensor:
    dx = dy.new_empty(steps, *dy.shape)
    _backward(dy[..., None, None], offsets[..., None, None], _window_over(steps), _planes(dx))
    return dx


def max_over_time_gather(x: Tensor, offsets: Tensor) -> Tensor:
    gathered = x.new_empty(offsets.shape)
    _gather(_planes(x), offsets[..., None, None], _window_over(x.shape[0]), gathered[..., None, None])
    return gathered


def warmup(dtype: torch.dtype, device: torch.device) -> None:
    """Launches every kernel once for each dtype of offsets, which compiles it: its code depends on nothing but the dtypes."""
    for side in (1, 16, 182):  # windows whose offsets take 8, 16 and 32 bits
        x = torch.zeros(1, 1, 1, 1, dtype=dtype, device=device)
        geometry = Pool2dGeometry(kernel_size=(side, side), stride=(1, 1), padding=(0, 0), dilation=(1, 1))
        offsets = torch.zeros(1, 1, 1, 1, dtype=pooling_offset_dtype(side * side), device=device)
        _forward(x, torch.empty(0, dtype=torch.int64, device=device), geometry, x.clone(), offsets)
        max_pool2d_backward(x, offsets, (1, 1), geometry)
        max_pool2d_gather(x, offsets, geometry)
        max_pool2d_indices(offsets, (1, 1), geometry)
