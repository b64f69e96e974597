"""Host code of kernels/numba/max_pool2d.py. Max over time is pooling seen sideways: planes T high and one column wide."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_unroll.engines.interface import Pair
from torch_unroll.engines.numba.launch import launch_elements
from torch_unroll.kernels.numba import max_pool2d as kernels
from torch_unroll.shapes import is_channels_last, output_memory_format, pooled, pooling_offset_dtype

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


def _none(offsets: Tensor) -> int:
    """What an offset is where a window holds no cell of the plane."""
    return 255 if offsets.dtype == torch.uint8 else -1


def _empty(size: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    return torch.empty(size, dtype=dtype, device=like.device, memory_format=output_memory_format(like))


def _sideways(x: Tensor) -> Tensor:
    """(T, N, C) as planes, (N, C, T, 1)."""
    return x.permute(1, 2, 0).unsqueeze(3)


def max_pool2d_forward(
    x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool, with_offsets: bool
) -> tuple[Tensor, Tensor]:
    P, Q = (pooled(x.shape[i + 2], kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode) for i in (0, 1))
    size, dtype = (*x.shape[:2], P, Q), pooling_offset_dtype(kernel_size[0] * kernel_size[1])
    y = _empty(size, x.dtype, x)
    offsets = _empty(size if with_offsets else (0, 0, 0, 0), dtype, x)
    no_lengths = torch.empty(0, dtype=torch.int64, device=x.device)
    _forward(x, no_lengths, (kernel_size, stride, padding, dilation), y, offsets)
    return y, offsets if with_offsets else offsets.flatten()


def _forward(x: Tensor, lengths: Tensor, geometry: tuple[Pair, Pair, Pair, Pair], y: Tensor, offsets: Tensor) -> None:
    if y.numel():
        kernel = kernels.max_pool2d_forward_strided_kernel
        order = (_none(offsets), is_channels_last(y))
        launch_elements(kernel, y.numel(), y.device, x, lengths, *geometry, *order, y, offsets)


def max_pool2d_backward(
    dy: Tensor, offsets: Tensor, x_size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    dx = _empty((*dy.shape[:2], *x_size), dy.dtype, offsets)
    _backward(dy, offsets, (kernel_size, stride, padding, dilation), dx)
    return dx


def _backward(dy: Tensor, offsets: Tensor, geometry: tuple[Pair, Pair, Pair, Pair], dx: Tensor) -> None:
    if dx.numel():
        order = (_none(offsets), is_channels_last(dx))
        launch_elements(kernels.max_pool2d_backward_flat_kernel, dx.numel(), dx.device, dy, offsets, *geometry, *order, dx)


def max_pool2d_gather(x: Tensor, offsets: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    gathered = _empty(tuple(offsets.shape), x.dtype, offsets)
    _gather(x, offsets, (kernel_size, stride, padding, dilation), gathered)
    return gathered


def _gather(x: Tensor, offsets: Tensor, geometry: tuple[Pair, Pair, Pair, Pair], gathered: Tensor) -> None:
    if gathered.numel():
        order = (_none(offsets), is_channels_last(gathered))
        kernel = kernels.max_pool2d_gather_kernel
        launch_elements(kernel, gathered.numel(), gathered.device, x, offsets, *geometry, *order, gathered)


def max_pool2d_indices(offsets: Tensor, x_size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    indices = _empty(tuple(offsets.shape), torch.int64, offsets)
    if indices.numel():
        geometry = (kernel_size, stride, padding, dilation, _none(offsets), is_channels_last(indices))
        kernel = kernels.max_pool2d_indices_kernel
        launch_elements(kernel, indices.numel(), indices.device, offsets, int(x_size[1]), *geometry, indices)
    return indices


def _over(steps: int) -> tuple[Pair, Pair, Pair, Pair]:
    """One window as high as the plane."""
    return (steps, 1), (1, 1), (0, 0), (1, 1)


def max_over_time_forward(x: Tensor, lengths: Tensor | None, with_offsets: bool) -> tuple[Tensor, Tensor]:
    T, N, C = x.shape
    y = x.new_empty(N, C)
    offsets = torch.empty((N, C) if with_offsets else (0, 0), dtype=pooling_offset_dtype(T), device=x.device)
    if lengths is None:
        lengths = torch.empty(0, dtype=torch.int64, device=x.device)
    _forward(_sideways(x), lengths.to(torch.int64), _over(T), y[..., None, None], offsets[..., None, None])
    return y, offsets if with_offsets else offsets.flatten()


def max_over_time_backward(dy: Tensor, offsets: Tensor, steps: int) -> Tensor:
    dx = dy.new_empty(steps, *dy.shape)
    _backward(dy[..., None, None], offsets[..., None, None], _over(steps), _sideways(dx))
    return dx


def max_over_time_gather(x: Tensor, offsets: Tensor) -> Tensor:
    gathered = x.new_empty(offsets.shape)
    _gather(_sideways(x), offsets[..., None, None], _over(x.shape[0]), gathered[..., None, None])
    return gathered


def warmup(dtype: torch.dtype, device: torch.device) -> None:
    """Calls everything once for each width of offsets: a kernel's code depends on nothing but the dtypes."""
    pair, none = (1, 1), (0, 0)
    for side in (1, 16, 182):  # windows whose cells take 8, 16 and 32 bits to count
        x, window = torch.zeros(1, 1, 1, 1, dtype=dtype, device=device), (side, side)
        geometry = (window, pair, none, pair)
        offsets = torch.zeros(1, 1, 1, 1, dtype=pooling_offset_dtype(side * side), device=device)
        _forward(x, torch.empty(0, dtype=torch.int64, device=device), geometry, x.clone(), offsets)
        max_pool2d_backward(x, offsets, pair, *geometry)
        max_pool2d_gather(x, offsets, *geometry)
        max_pool2d_indices(offsets, pair, *geometry)
