"""Host code of kernels/numba/conv2d.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_unroll.engines.interface import Padding, Pair
from torch_unroll.engines.numba.launch import launch_elements, launch_tiles, splits
from torch_unroll.kernels.numba import conv2d as kernels
from torch_unroll.kernels.numba.types import TILE
from torch_unroll.shapes import convolved, output_memory_format

__all__ = ["conv2d_dgrad", "conv2d_fprop", "conv2d_wgrad", "fold", "unfold", "warmup"]


def _tiles(rows: int, columns: int) -> int:
    return -(-rows // TILE) * -(-columns // TILE)


def _output(size: tuple[int, ...], like: Tensor, other: Tensor, layout: torch.memory_format | None) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=layout or output_memory_format(like, other))


def conv2d_fprop(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    precision: str,
    layout: torch.memory_format | None = None,
) -> Tensor:
    (N, _, H, W), (K, _, R, S) = x.shape, w.shape
    P = convolved(H, R, stride[0], padding[0] + padding[1], dilation[0])
    Q = convolved(W, S, stride[1], padding[2] + padding[3], dilation[1])
    y = _output((N, K, P, Q), x, w, layout)
    if y.numel():
        tiles, bias = groups * _tiles(K // groups, N * P * Q), x.new_empty(0) if bias is None else bias
        geometry = (stride, (padding[0], padding[2]), dilation, groups)
        launch_tiles(kernels.conv2d_fprop_kernel, tiles, x.device, x, w, bias, *geometry, y)
    return y


def conv2d_dgrad(
    dy: Tensor,
    w: Tensor,
    x_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    precision: str,
    layout: torch.memory_format | None = None,
) -> Tensor:
    N, channels = dy.shape[0], w.shape[1]
    dx = _output((N, channels * groups, *x_size), dy, w, layout)
    if dx.numel():
        tiles = groups * _tiles(channels, N * dx.shape[2] * dx.shape[3])
        geometry = (stride, (padding[0], padding[2]), dilation, groups)
        launch_tiles(kernels.conv2d_dgrad_kernel, tiles, dy.device, dy, w, *geometry, dx)
    return dx


def conv2d_wgrad(
    dy: Tensor,
    x: Tensor,
    w_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    precision: str,
    dw_stride: Sequence[int] | None = None,
) -> Tensor:
    (N, K, P, Q), channels = dy.shape, x.shape[1] // groups
    size = (K, channels, *w_size)
    dw = x.new_empty(size) if dw_stride is None else x.new_empty_strided(size, dw_stride)
    if dw.numel():
        taps, pixels = channels * w_size[0] * w_size[1], N * P * Q
        tiles = groups * _tiles(K // groups, taps)
        pixels_per_split = max(-(-pixels // splits(tiles, x.device)), 8 * TILE)
        pixels_per_split = -(-pixels_per_split // TILE) * TILE  # whole tiles, of which no two splits share one
        parts = max(-(-pixels // pixels_per_split), 1)
        sums = torch.empty((parts, K, taps), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=x.device)
        geometry = (w_size, stride, (padding[0], padding[2]), dilation, groups, pixels_per_split)
        launch_tiles(kernels.conv2d_wgrad_kernel, parts * tiles, x.device, dy, x, *geometry, sums)
        launch_elements(kernels.conv2d_sum_splits_kernel, dw.numel(), x.device, sums, dw)
    return dw


def unfold(x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    N, C, H, W = x.shape
    P = convolved(H, kernel_size[0], stride[0], 2 * padding[0], dilation[0])
    Q = convolved(W, kernel_size[1], stride[1], 2 * padding[1], dilation[1])
    columns = x.new_empty(N, C * kernel_size[0] * kernel_size[1], P * Q)
    if columns.numel():
        geometry = (kernel_size, (P, Q), stride, padding, dilation)
        launch_elements(kernels.im2col_kernel, N * C * P * Q, x.device, x, *geometry, columns)
    return columns


def fold(columns: Tensor, output_size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    N, rows, _ = columns.shape
    P = convolved(output_size[0], kernel_size[0], stride[0], 2 * padding[0], dilation[0])
    Q = convolved(output_size[1], kernel_size[1], stride[1], 2 * padding[1], dilation[1])
    x = columns.new_empty(N, rows // (kernel_size[0] * kernel_size[1]), *output_size)
    if x.numel():
        geometry = (kernel_size, (P, Q), stride, padding, dilation)
        launch_elements(kernels.col2im_kernel, x.numel(), columns.device, columns, *geometry, x)
    return x


def warmup(dtype: torch.dtype, device: torch.device) -> None:
    """Calls everything once: a kernel's code depends on nothing but the dtype."""
    x, pair, none = torch.zeros(1, 1, 1, 1, dtype=dtype, device=device), (1, 1), (0, 0)
    conv2d_fprop(x, x, None, pair, (0, 0, 0, 0), pair, 1, "ieee")
    conv2d_dgrad(x, x, pair, pair, (0, 0, 0, 0), pair, 1, "ieee")
    conv2d_wgrad(x, x, pair, pair, (0, 0, 0, 0), pair, 1, "ieee")
    fold(unfold(x, pair, pair, none, pair), pair, pair, pair, none, pair)
