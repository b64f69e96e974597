"""Convolution as a matrix product over unrolled columns, and its two gradients.

y = w · im2col(x);  dx = col2im(wᵀ · dy);  dw = dy · im2col(x)ᵀ  (Chellapilla, Puri & Simard 2006).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_unroll.engines.interface import Conv2dGeometry, Pool2dGeometry
from torch_unroll.engines.reference.arithmetic import accumulator, product
from torch_unroll.engines.reference.windows import cells
from torch_unroll.kernels.shapes import Pair
from torch_unroll.shapes import convolved_size, output_memory_format, unfolded_size

__all__ = ["conv2d_dgrad", "conv2d_fprop", "conv2d_wgrad", "conv2d_wgrad_bias", "fold", "unfold"]


def _window(kernel_size: Pair, geometry: Conv2dGeometry) -> Pool2dGeometry:
    """Returns the windows that a filter sees; of the padding, only that above and to the left affects where they lie."""
    top, _, left, _ = geometry.padding
    return Pool2dGeometry(kernel_size, geometry.stride, (top, left), geometry.dilation)


def _im2col(x: Tensor, output_size: Pair, window: Pool2dGeometry) -> Tensor:
    """Returns the columns (N, C, R·S, P, Q) of x (N, C, H, W)."""
    (N, C, H, W), (R, S) = x.shape, window.kernel_size
    columns = x.new_zeros(N, C, R * S, *output_size)
    for cell, outputs, pixels in cells((H, W), output_size, window):
        columns[:, :, cell][outputs] = x[pixels]
    return columns


def _col2im(columns: Tensor, x_size: Pair, window: Pool2dGeometry) -> Tensor:
    """Returns (N, C, H, W) from columns (N, C, R·S, P, Q): each pixel is the sum of the cells that cover it."""
    N, C, _, P, Q = columns.shape
    x = columns.new_zeros(N, C, *x_size)
    for cell, outputs, pixels in cells(x_size, (P, Q), window):
        x[pixels] += columns[:, :, cell][outputs]
    return x


def conv2d_fprop(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    geometry: Conv2dGeometry,
    precision: str,
    layout: torch.memory_format | None = None,
    bias2: Tensor | None = None,
) -> Tensor:
    N, groups, (K, channels, R, S) = x.shape[0], geometry.groups, w.shape
    P, Q = convolved_size(x.shape[2:], (R, S), geometry.stride, geometry.padding, geometry.dilation)
    columns = _im2col(x, (P, Q), _window((R, S), geometry)).reshape(N, groups, channels * R * S, P * Q)
    y = product(w.reshape(groups, K // groups, channels * R * S), columns, precision).reshape(N, K, P, Q)
    for addend in (bias, bias2):
        if addend is not None:
            y = y + addend.to(y.dtype).view(1, K, 1, 1)
    return y.to(x.dtype).clone(memory_format=layout or output_memory_format(x, w))


def conv2d_dgrad(
    dy: Tensor,
    w: Tensor,
    x_size: Pair,
    geometry: Conv2dGeometry,
    precision: str,
    layout: torch.memory_format | None = None,
) -> Tensor:
    (N, K, P, Q), (_, channels, R, S), groups = dy.shape, w.shape, geometry.groups
    weights = w.reshape(groups, K // groups, channels * R * S).transpose(1, 2)
    columns = product(weights, dy.reshape(N, groups, K // groups, P * Q), precision)
    dx = _col2im(columns.reshape(N, groups * channels, R * S, P, Q), x_size, _window((R, S), geometry))
    return dx.to(dy.dtype).clone(memory_format=layout or output_memory_format(dy, w))


def conv2d_wgrad(
    dy: Tensor,
    x: Tensor,
    w_size: Pair,
    geometry: Conv2dGeometry,
    precision: str,
    dw_stride: Sequence[int] | None = None,
) -> Tensor:
    (N, K, P, Q), C, groups = dy.shape, x.shape[1], geometry.groups
    rows = C // groups * w_size[0] * w_size[1]
    columns = _im2col(x, (P, Q), _window(w_size, geometry)).reshape(N, groups, rows, P * Q)
    dw = product(dy.reshape(N, groups, K // groups, P * Q), columns.transpose(2, 3), precision).sum(0)
    dw = dw.reshape(K, C // groups, *w_size).to(x.dtype)
    return dw if dw_stride is None else dw.new_empty_strided(dw.shape, dw_stride).copy_(dw)


def conv2d_wgrad_bias(
    dy: Tensor,
    x: Tensor,
    w_size: Pair,
    geometry: Conv2dGeometry,
    precision: str,
    dw_stride: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    db = dy.sum((0, 2, 3), dtype=accumulator(dy.dtype)).to(dy.dtype)
    return conv2d_wgrad(dy, x, w_size, geometry, precision, dw_stride), db


def unfold(x: Tensor, geometry: Pool2dGeometry) -> Tensor:
    columns = _im2col(x, unfolded_size(x.shape[2:], *geometry), geometry)
    return columns.flatten(3).flatten(1, 2)


def fold(columns: Tensor, output_size: Pair, geometry: Pool2dGeometry) -> Tensor:
    (N, rows, _), cells_of_window = columns.shape, geometry.kernel_size[0] * geometry.kernel_size[1]
    P, Q = unfolded_size(output_size, *geometry)
    return _col2im(columns.reshape(N, rows // cells_of_window, cells_of_window, P, Q), output_size, geometry)
