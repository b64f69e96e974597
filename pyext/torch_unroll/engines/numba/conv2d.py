"""Host code of kernels/numba/conv2d.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_unroll.engines.interface import Conv2dGeometry, Pool2dGeometry
from torch_unroll.engines.numba.launch import launch_elements, launch_tiles, splits
from torch_unroll.kernels.arithmetic import ceil_divide, round_up
from torch_unroll.kernels.numba import conv2d as kernels
from torch_unroll.kernels.numba.types import TILE
from torch_unroll.kernels.shapes import Pair
from torch_unroll.shapes import convolved_size, output_memory_format, unfolded_size

__all__ = ["conv2d_dgrad", "conv2d_fprop", "conv2d_wgrad", "conv2d_wgrad_bias", "fold", "unfold", "warmup"]


def _tiles(rows: int, columns: int) -> int:
    return ceil_divide(rows, TILE) * ceil_divide(columns, TILE)


def _output(size: tuple[int, ...], like: Tensor, other: Tensor, layout: torch.memory_format | None) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=layout or output_memory_format(like, other))


def _arguments(geometry: Conv2dGeometry) -> tuple[Pair, Pair, Pair, int]:
    """Returns the geometry in the form that kernels accept, with only the padding above and to the left."""
    top, _, left, _ = geometry.padding
    return geometry.stride, (top, left), geometry.dilation, geometry.groups


def conv2d_fprop(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    geometry: Conv2dGeometry,
    precision: str,
    layout: torch.memory_format | None = None,
    bias2: Tensor | None = None,
) -> Tensor:
    N, K, groups = x.shape[0], w.shape[0], geometry.groups
    P, Q = convolved_size(x.shape[2:], w.shape[2:], geometry.stride, geometry.padding, geometry.dilation)
    y = _output((N, K, P, Q), x, w, layout)
    if y.numel():
        tiles = groups * _tiles(K // groups, N * P * Q)
        biases = (x.new_empty(0) if addend is None else addend for addend in (bias, bias2))
        launch_tiles(kernels.conv2d_fprop_kernel, tiles, x.device, x, w, *biases, *_arguments(geometry), y)
    return y


def conv2d_dgrad(
    dy: Tensor,
    w: Tensor,
    x_size: Pair,
    geometry: Conv2dGeometry,
    precision: str,
    layout: torch.memory_format | None = None,
) -> Tensor:
    N, channels, groups = dy.shape[0], w.shape[1], geometry.groups
    dx = _output((N, channels * groups, *x_size), dy, w, layout)
    if dx.numel():
        tiles = groups * _tiles(channels, N * dx.shape[2] * dx.shape[3])
        launch_tiles(kernels.conv2d_dgrad_kernel, tiles, dy.device, dy, w, *_arguments(geometry), dx)
    return dx


def conv2d_wgrad(
    dy: Tensor,
    x: Tensor,
    w_size: Pair,
    geometry: Conv2dGeometry,
    precision: str,
    dw_stride: Sequence[int] | None = None,
) -> Tensor:
    (N, K, P, Q), groups = dy.shape, geometry.groups
    channels = x.shape[1] // groups
    size = (K, channels, *w_size)
    dw = x.new_empty(size) if dw_stride is None else x.new_empty_strided(size, dw_stride)
    if dw.numel():
        taps, pixels = channels * w_size[0] * w_size[1], N * P * Q
        tiles = groups * _tiles(K // groups, taps)
        pixels_per_split = max(ceil_divide(pixels, splits(tiles, x.device)), 8 * TILE)
        pixels_per_split = round_up(pixels_per_split, TILE)  # so that no step of TILE pixels spans two splits
        parts = max(ceil_divide(pixels, pixels_per_split), 1)
        sums = torch.empty((parts, K, taps), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=x.device)
        arguments = (w_size, *_arguments(geometry), pixels_per_split)
        launch_tiles(kernels.conv2d_wgrad_kernel, parts * tiles, x.device, dy, x, *arguments, sums)
        launch_elements(kernels.conv2d_sum_splits_kernel, dw.numel(), x.device, sums, dw)
    return dw


def conv2d_wgrad_bias(
    dy: Tensor,
    x: Tensor,
    w_size: Pair,
    geometry: Conv2dGeometry,
    precision: str,
    dw_stride: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    return conv2d_wgrad(dy, x, w_size, geometry, precision, dw_stride), dy.sum((0, 2, 3))


def unfold(x: Tensor, geometry: Pool2dGeometry) -> Tensor:
    (N, C), (R, S), (P, Q) = x.shape[:2], geometry.kernel_size, unfolded_size(x.shape[2:], *geometry)
    columns = x.new_empty(N, C * R * S, P * Q)
    if columns.numel():
        arguments = (geometry.kernel_size, (P, Q), geometry.stride, geometry.padding, geometry.dilation)
        launch_elements(kernels.im2col_kernel, N * C * P * Q, x.device, x, *arguments, columns)
    return columns


def fold(columns: Tensor, output_size: Pair, geometry: Pool2dGeometry) -> Tensor:
    (N, rows, _), (R, S) = columns.shape, geometry.kernel_size
    x = columns.new_empty(N, rows // (R * S), *output_size)
    if x.numel():
        windows = unfolded_size(output_size, *geometry)
        arguments = (geometry.kernel_size, windows, geometry.stride, geometry.padding, geometry.dilation)
        launch_elements(kernels.col2im_kernel, x.numel(), columns.device, columns, *arguments, x)
    return x


def warmup(dtype: torch.dtype, device: torch.device) -> None:
    """Calls every function once, which compiles all kernels: their code depends on nothing but the dtype."""
    x, pixel = torch.zeros(1, 1, 1, 1, dtype=dtype, device=device), (1, 1)
    geometry = Conv2dGeometry(stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1)
    conv2d_fprop(x, x, None, geometry, "ieee")
    conv2d_dgrad(x, x, pixel, geometry, "ieee")
    conv2d_wgrad(x, x, pixel, geometry, "ieee")
    window = Pool2dGeometry(kernel_size=pixel, stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    fold(unfold(x, window), pixel, window)
