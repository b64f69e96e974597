"""Max pooling: a thread owns one output (or, backward, one pixel) at a time, in the order of memory.

x (N, C, H, W), y (N, C, P, Q). The offset of a window is the cell r·S + s that it chose, or `none` if it holds no cell of the
plane. NaN and ties are treated as in torch: a later cell wins if it is larger or NaN. Every output is overwritten. In the
backward pass, each pixel sums the gradients of the windows that chose it, in one fixed order and without atomics.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda

from .types import narrow, widen, zero


@cuda.jit(device=True)
def coordinates(i, C, height, width, channels_last):
    """Returns (n, c, row, column) of the i-th element in memory."""
    plane = height * width
    if channels_last:
        return i // (C * plane), i % C, i // (C * width) % height, i // C % width
    return i // (C * plane), i // plane % C, i // width % height, i % width


@cuda.jit
def max_pool2d_forward_strided_kernel(x, lengths, kernel_size, stride, padding, dilation, none, channels_last, y, offsets):
    """x -> y, and offsets unless that array is empty. `lengths` (N, or empty) says how many rows of each image are pooled."""
    N, C, H, W = x.shape
    P, Q = y.shape[2:]
    R, S = kernel_size
    for i in range(cuda.grid(1), N * C * P * Q, cuda.gridsize(1)):
        n, c, p, q = coordinates(i, C, P, Q, channels_last)
        rows = H
        if lengths.shape[0] > 0:
            rows = min(max(lengths[n], 0), H)
        choice = none
        best = zero(x)
        for r in range(R):
            h = p * stride[0] - padding[0] + r * dilation[0]
            for s in range(S):
                w = q * stride[1] - padding[1] + s * dilation[1]
                if 0 <= h < rows and 0 <= w < W:
                    value = widen(x[n, c, h, w])
                    if choice == none or value > best or value != value:
                        choice, best = r * S + s, value
        y[n, c, p, q] = narrow(best if choice != none else -math.inf, y)
        if offsets.shape[0] > 0:
            offsets[n, c, p, q] = choice


@cuda.jit
def max_pool2d_backward_strided_kernel(dy, offsets, kernel_size, stride, padding, dilation, none, channels_last, dx):
    """dy, offsets -> dx: the gradient of a pixel is the sum of the gradients of the windows that chose it."""
    N, C, H, W = dx.shape
    P, Q = dy.shape[2:]
    R, S = kernel_size
    for i in range(cuda.grid(1), N * C * H * W, cuda.gridsize(1)):
        n, c, h, w = coordinates(i, C, H, W, channels_last)
        total = zero(dx)
        for p in range(first_window(h + padding[0], R, stride[0], dilation[0]), min((h + padding[0]) // stride[0] + 1, P)):
            for q in range(first_window(w + padding[1], S, stride[1], dilation[1]), min((w + padding[1]) // stride[1] + 1, Q)):
                cell = np.int64(offsets[n, c, p, q])
                below = h + padding[0] - p * stride[0]
                right = w + padding[1] - q * stride[1]
                if cell != none and cell // S * dilation[0] == below and cell % S * dilation[1] == right:
                    total += widen(dy[n, c, p, q])
        dx[n, c, h, w] = narrow(total, dx)


@cuda.jit(device=True)
def first_window(start, cells, stride, dilation):
    """Returns the first window, along one axis, whose last cell is at `start` or beyond, counted from the edge of the padding."""
    return max((start - (cells - 1) * dilation + stride - 1) // stride, 0)


@cuda.jit
def max_pool2d_gather_kernel(x, offsets, kernel_size, stride, padding, dilation, none, channels_last, gathered):
    """x, offsets -> gathered (N, C, P, Q): the cell of x that each window chose; 0 if it chose none, or if its offset names no
    cell of the window or of the plane."""
    N, C, P, Q = gathered.shape
    H, W = x.shape[2:]
    R, S = kernel_size
    for i in range(cuda.grid(1), N * C * P * Q, cuda.gridsize(1)):
        n, c, p, q = coordinates(i, C, P, Q, channels_last)
        cell = np.int64(offsets[n, c, p, q])
        h = p * stride[0] - padding[0] + cell // S * dilation[0]
        w = q * stride[1] - padding[1] + cell % S * dilation[1]
        if cell != none and 0 <= cell < R * S and 0 <= h < H and 0 <= w < W:
            gathered[n, c, p, q] = x[n, c, h, w]
        else:
            gathered[n, c, p, q] = 0


@cuda.jit
def max_pool2d_indices_kernel(offsets, x_width, kernel_size, stride, padding, dilation, none, channels_last, indices):
    """offsets -> indices (N, C, P, Q), torch's row · W + column. A window without a cell in the plane gets, as in torch, the
    index of its first cell that lies neither above nor to the left of the plane."""
    N, C, P, Q = indices.shape
    S = kernel_size[1]
    for i in range(cuda.grid(1), N * C * P * Q, cuda.gridsize(1)):
        n, c, p, q = coordinates(i, C, P, Q, channels_last)
        h, w = p * stride[0] - padding[0], q * stride[1] - padding[1]
        cell = np.int64(offsets[n, c, p, q])
        if cell == none:
            r, s = (max(-h, 0) + dilation[0] - 1) // dilation[0], (max(-w, 0) + dilation[1] - 1) // dilation[1]
        else:
            r, s = cell // S, cell % S
        indices[n, c, p, q] = (h + r * dilation[0]) * x_width + w + s * dilation[1]
