"""Max pooling cell by cell: in turn, each cell (r, s) of all windows at once, which is a strided slice of the plane.

A later cell wins if it is larger or NaN, as in torch: the first of equals, and the last NaN. A window's choice is kept as its
cell r·S + s; none where the window holds no cell of the plane.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_unroll.engines.interface import Pair
from torch_unroll.engines.reference.arithmetic import accumulator
from torch_unroll.engines.reference.windows import cells
from torch_unroll.shapes import output_memory_format, pooled, pooling_offset_dtype

__all__ = [
    "max_over_time_backward",
    "max_over_time_forward",
    "max_over_time_gather",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "max_pool2d_gather",
    "max_pool2d_indices",
]


def _numbers(offsets: Tensor) -> Tensor:
    """Offsets as int64, -1 for none."""
    numbers = offsets.long()
    return numbers.where(numbers != 255, -1) if offsets.dtype == torch.uint8 else numbers


def max_pool2d_forward(
    x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool, with_offsets: bool
) -> tuple[Tensor, Tensor]:
    N, C, H, W = x.shape
    P, Q = (pooled(x.shape[i + 2], kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode) for i in (0, 1))
    memory_format = output_memory_format(x)
    y = torch.empty((N, C, P, Q), dtype=x.dtype, device=x.device, memory_format=memory_format).fill_(-torch.inf)
    numbers = torch.full_like(y, -1, dtype=torch.int64)
    for cell, outputs, pixels in cells((H, W), (P, Q), kernel_size, stride, padding, dilation):
        best, chosen, value = y[outputs], numbers[outputs], x[pixels]
        wins = (value > best) | value.isnan() | (chosen < 0)
        best.copy_(value.where(wins, best))
        chosen.masked_fill_(wins, cell)
    dtype = pooling_offset_dtype(kernel_size[0] * kernel_size[1])
    return y, numbers.to(dtype) if with_offsets else x.new_empty(0, dtype=dtype)


def max_pool2d_backward(
    dy: Tensor, offsets: Tensor, x_size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    N, C, P, Q = dy.shape
    memory_format = output_memory_format(offsets)
    wide = accumulator(dy.dtype)
    dx = torch.empty((N, C, *x_size), dtype=wide, device=dy.device, memory_format=memory_format).zero_()
    numbers, zero = _numbers(offsets), dy.new_zeros((), dtype=wide)
    for cell, outputs, pixels in cells(x_size, (P, Q), kernel_size, stride, padding, dilation):
        dx[pixels] += dy[outputs].to(wide).where(numbers[outputs] == cell, zero)
    return dx.to(dy.dtype)


def max_pool2d_gather(x: Tensor, offsets: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    (H, W), (P, Q) = x.shape[2:], offsets.shape[2:]
    gathered = torch.zeros_like(offsets, dtype=x.dtype)
    numbers = _numbers(offsets)
    for cell, outputs, pixels in cells((H, W), (P, Q), kernel_size, stride, padding, dilation):
        here = gathered[outputs]
        here.copy_(x[pixels].where(numbers[outputs] == cell, here))
    return gathered


def max_pool2d_indices(offsets: Tensor, x_size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    numbers = _numbers(offsets)
    places = []
    for i, cell in ((0, numbers // kernel_size[1]), (1, numbers % kernel_size[1])):
        shape = (-1, 1) if i == 0 else (-1,)
        start = torch.arange(offsets.shape[i + 2], device=offsets.device).view(shape) * stride[i] - padding[i]
        # Where a window has no cell, torch reports the first place at which one would not lie above or left of the plane.
        first = -(start.clamp(max=0) // dilation[i])
        places.append(start + cell.where(numbers >= 0, first) * dilation[i])
    return torch.empty_like(offsets, dtype=torch.int64).copy_(places[0] * x_size[1] + places[1])


def max_over_time_forward(x: Tensor, lengths: Tensor | None, with_offsets: bool) -> tuple[Tensor, Tensor]:
    T, N, C = x.shape
    y = torch.full((N, C), -torch.inf, dtype=x.dtype, device=x.device)
    numbers = torch.full((N, C), -1, dtype=torch.int64, device=x.device)
    for t in range(T):
        wins = (x[t] > y) | x[t].isnan() | (numbers < 0)
        if lengths is not None:
            wins &= (t < lengths).unsqueeze(1)
        y = x[t].where(wins, y)
        numbers = numbers.masked_fill(wins, t)
    dtype = pooling_offset_dtype(T)
    return y, numbers.to(dtype) if with_offsets else x.new_empty(0, dtype=dtype)


def max_over_time_backward(dy: Tensor, offsets: Tensor, steps: int) -> Tensor:
    time = torch.arange(steps, device=dy.device).view(-1, 1, 1)
    return dy.where(_numbers(offsets) == time, dy.new_zeros(())).contiguous()


def max_over_time_gather(x: Tensor, offsets: Tensor) -> Tensor:
    numbers, steps = _numbers(offsets), x.shape[0]
    gathered = x.gather(0, numbers.clamp(0, steps - 1).unsqueeze(0)).squeeze(0)
    return gathered.where((numbers >= 0) & (numbers < steps), x.new_zeros(()))
