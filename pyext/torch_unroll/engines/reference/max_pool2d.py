"""Max pooling cell by cell: the pixels under cell (r, s) of all windows, which form a strided slice of the plane, are compared
with the maxima so far in one operation.

As in torch, a later cell wins if it is larger or NaN, so the first of equal values is chosen, or the last NaN. A window's choice
is stored as the number r·S + s of its cell; `kernels.offsets.no_cell` marks a window that holds no cell of the plane.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_unroll.engines.interface import Pool2dGeometry
from torch_unroll.engines.reference.arithmetic import accumulator
from torch_unroll.engines.reference.windows import cells
from torch_unroll.kernels.offsets import no_cell
from torch_unroll.kernels.shapes import Pair
from torch_unroll.shapes import dtype_name, output_memory_format, pooled_size, pooling_offset_dtype

__all__ = [
    "max_over_time_backward",
    "max_over_time_forward",
    "max_over_time_gather",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "max_pool2d_gather",
    "max_pool2d_indices",
]


def _chosen_cells(offsets: Tensor) -> Tensor:
    """Returns the offsets as int64, with -1 where no cell was chosen."""
    numbers, none = offsets.long(), no_cell(dtype_name(offsets.dtype))
    return numbers if none == -1 else numbers.where(numbers != none, -1)


def max_pool2d_forward(x: Tensor, geometry: Pool2dGeometry, ceil_mode: bool, with_offsets: bool) -> tuple[Tensor, Tensor]:
    size = (*x.shape[:2], *pooled_size(x.shape[2:], *geometry, ceil_mode))
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=output_memory_format(x)).fill_(-torch.inf)
    numbers = torch.full_like(y, -1, dtype=torch.int64)
    for cell, outputs, pixels in cells(x.shape[2:], size[2:], geometry):
        best, chosen, value = y[outputs], numbers[outputs], x[pixels]
        wins = (value > best) | value.isnan() | (chosen < 0)
        best.copy_(value.where(wins, best))
        chosen.masked_fill_(wins, cell)
    dtype = pooling_offset_dtype(geometry.kernel_size[0] * geometry.kernel_size[1])
    return y, numbers.to(dtype) if with_offsets else x.new_empty(0, dtype=dtype)


def max_pool2d_backward(dy: Tensor, offsets: Tensor, x_size: Pair, geometry: Pool2dGeometry) -> Tensor:
    memory_format, sum_dtype = output_memory_format(offsets), accumulator(dy.dtype)
    dx = torch.empty((*dy.shape[:2], *x_size), dtype=sum_dtype, device=dy.device, memory_format=memory_format).zero_()
    numbers, zero = _chosen_cells(offsets), dy.new_zeros((), dtype=sum_dtype)
    for cell, outputs, pixels in cells(x_size, dy.shape[2:], geometry):
        dx[pixels] += dy[outputs].to(sum_dtype).where(numbers[outputs] == cell, zero)
    return dx.to(dy.dtype)


def max_pool2d_gather(x: Tensor, offsets: Tensor, geometry: Pool2dGeometry) -> Tensor:
    gathered = torch.zeros_like(offsets, dtype=x.dtype)
    numbers = _chosen_cells(offsets)
    for cell, outputs, pixels in cells(x.shape[2:], offsets.shape[2:], geometry):
        part = gathered[outputs]
        part.copy_(x[pixels].where(numbers[outputs] == cell, part))
    return gathered


def max_pool2d_indices(offsets: Tensor, x_size: Pair, geometry: Pool2dGeometry) -> Tensor:
    numbers, S = _chosen_cells(offsets), geometry.kernel_size[1]
    rows = _positions(numbers, numbers // S, 0, geometry)
    columns = _positions(numbers, numbers % S, 1, geometry)
    return torch.empty_like(offsets, dtype=torch.int64).copy_(rows * x_size[1] + columns)


def _positions(numbers: Tensor, cell: Tensor, axis: int, geometry: Pool2dGeometry) -> Tensor:
    """Returns the row (axis 0) or column (axis 1) in the plane of each window's chosen cell. `cell` is that cell's row or column
    in its window; `numbers` is below 0 where no cell was chosen."""
    windows = torch.arange(numbers.shape[axis + 2], device=numbers.device).view((-1, 1) if axis == 0 else (-1,))
    start, dilation = windows * geometry.stride[axis] - geometry.padding[axis], geometry.dilation[axis]
    # For a window that chose no cell, torch reports the position of its first cell that is not above or left of the plane.
    first = -(start.clamp(max=0) // dilation)
    return start + cell.where(numbers >= 0, first) * dilation


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
    return dy.where(_chosen_cells(offsets) == time, dy.new_zeros(())).contiguous()


def max_over_time_gather(x: Tensor, offsets: Tensor) -> Tensor:
    numbers, steps = _chosen_cells(offsets), x.shape[0]
    gathered = x.gather(0, numbers.clamp(0, steps - 1).unsqueeze(0)).squeeze(0)
    return gathered.where((numbers >= 0) & (numbers < steps), x.new_zeros(()))
