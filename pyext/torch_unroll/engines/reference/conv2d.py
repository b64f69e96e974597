"""Convolution as a matrix product over unrolled columns, and its two gradients.

y = w · im2col(x);  dx = col2im(wᵀ · dy);  dw = dy · im2col(x)ᵀ  (Chellapilla, Puri & Simard 2006).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_unroll.engines.interface import Padding, Pair
from torch_unroll.engines.reference.arithmetic import product
from torch_unroll.engines.reference.windows import cells
from torch_unroll.shapes import convolved, output_memory_format

__all__ = ["conv2d_dgrad", "conv2d_fprop", "conv2d_wgrad", "fold", "unfold"]


def _im2col(x: Tensor, kernel_size: Pair, output_size: Pair, stride: Pair, padding: Padding, dilation: Pair) -> Tensor:
    """x (N, C, H, W) -> (N, C, R·S, P, Q)."""
    (N, C, H, W), (R, S) = x.shape, kernel_size
    columns = x.new_zeros(N, C, R * S, *output_size)
    for cell, outputs, pixels in cells((H, W), output_size, kernel_size, stride, (padding[0], padding[2]), dilation):
        columns[:, :, cell][outputs] = x[pixels]
    return columns


def _col2im(columns: Tensor, x_size: Pair, kernel_size: Pair, stride: Pair, padding: Padding, dilation: Pair) -> Tensor:
    """columns (N, C, R·S, P, Q) -> (N, C, H, W), summing the cells that cover a pixel."""
    N, C, _, P, Q = columns.shape
    x = columns.new_zeros(N, C, *x_size)
    for cell, outputs, pixels in cells(x_size, (P, Q), kernel_size, stride, (padding[0], padding[2]), dilation):
        x[pixels] += columns[:, :, cell][outputs]
    return x


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
    (N, _, H, W), (K, channels, R, S) = x.shape, w.shape
    P = convolved(H, R, stride[0], padding[0] + padding[1], dilation[0])
    Q = convolved(W, S, stride[1], padding[2] + padding[3], dilation[1])
    columns = _im2col(x, (R, S), (P, Q), stride, padding, dilation).reshape(N, groups, channels * R * S, P * Q)
    y = product(w.reshape(groups, K // groups, channels * R * S), columns, precision).reshape(N, K, P, Q)
    if bias is not None:
        y = y + bias.to(y.dtype).view(1, K, 1, 1)
    return y.to(x.dtype).clone(memory_format=layout or output_memory_format(x, w))


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
    (N, K, P, Q), (_, channels, R, S) = dy.shape, w.shape
    weights = w.reshape(groups, K // groups, channels * R * S).transpose(1, 2)
    columns = product(weights, dy.reshape(N, groups, K // groups, P * Q), precision)
    dx = _col2im(columns.reshape(N, groups * channels, R * S, P, Q), x_size, (R, S), stride, padding, dilation)
    return dx.to(dy.dtype).clone(memory_format=layout or output_memory_format(dy, w))


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
    (N, K, P, Q), C = dy.shape, x.shape[1]
    rows = C // groups * w_size[0] * w_size[1]
    columns = _im2col(x, w_size, (P, Q), stride, padding, dilation).reshape(N, groups, rows, P * Q)
    dw = product(dy.reshape(N, groups, K // groups, P * Q), columns.transpose(2, 3), precision).sum(0)
    dw = dw.reshape(K, C // groups, *w_size).to(x.dtype)
    return dw if dw_stride is None else dw.new_empty_strided(dw.shape, dw_stride).copy_(dw)


def unfold(x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    (N, C, H, W), (R, S) = x.shape, kernel_size
    P = convolved(H, R, stride[0], 2 * padding[0], dilation[0])
    Q = convolved(W, S, stride[1], 2 * padding[1], dilation[1])
    both = (padding[0], padding[0], padding[1], padding[1])
    return _im2col(x, kernel_size, (P, Q), stride, both, dilation).reshape(N, C * R * S, P * Q)


def fold(columns: Tensor, output_size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    (N, rows, _), (R, S) = columns.shape, kernel_size
    P = convolved(output_size[0], R, stride[0], 2 * padding[0], dilation[0])
    Q = convolved(output_size[1], S, stride[1], 2 * padding[1], dilation[1])
    both = (padding[0], padding[0], padding[1], padding[1])
    return _col2im(columns.reshape(N, rows // (R * S), R * S, P, Q), output_size, kernel_size, stride, both, dilation)
