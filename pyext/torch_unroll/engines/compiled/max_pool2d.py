"""Host code of kernels/cuda/max_pool2d: allocates results, states the problem, and launches what is selected for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_unroll.engines.compiled import Launcher
from torch_unroll.engines.compiled.recording import note_selection
from torch_unroll.engines.interface import Pool2dGeometry
from torch_unroll.kernels.cuda.max_pool2d.problem import PIECE_BYTES, Pool2dProblem, dense_strides
from torch_unroll.kernels.cuda.max_pool2d.variants import DIRECTION_PARAMETERS, SELECTORS
from torch_unroll.kernels.shapes import Pair
from torch_unroll.shapes import dtype_name, is_channels_last, pooled_size, pooling_offset_dtype


def _aligned(*tensors: Tensor) -> bool:
    """Whether all tensors start at a multiple of 16 bytes, as all memory that torch allocates does."""
    return all(tensor.data_ptr() % PIECE_BYTES == 0 for tensor in tensors)


def _problem(
    direction: str,
    dtype: torch.dtype,
    x_size: Sequence[int],
    y_extents: Pair,
    geometry: Pool2dGeometry,
    channels_last: bool,
    **options: Any,
) -> Pool2dProblem:
    """Returns a problem. `options` are its remaining fields; if `x_strides` is not among them, x is dense."""
    window, stride, padding, dilation = ((int(height), int(width)) for height, width in geometry)
    (N, C, H, W), (P, Q) = x_size, y_extents
    return Pool2dProblem(
        direction=direction,
        dtype=dtype_name(dtype),
        N=N,
        C=C,
        H=H,
        W=W,
        P=P,
        Q=Q,
        window=window,
        stride=stride,
        padding=padding,
        dilation=dilation,
        channels_last=channels_last,
        **{"x_strides": dense_strides(C, H, W, channels_last), **options},
    )


def _problem_of_offsets(
    direction: str, dtype: torch.dtype, offsets: Tensor, x_extents: Sequence[int], geometry: Pool2dGeometry, **options: Any
) -> Pool2dProblem:
    """Returns the problem of a function that reads offsets; its memory format is that of the offsets."""
    N, C, P, Q = offsets.shape
    return _problem(direction, dtype, (N, C, *x_extents), (P, Q), geometry, is_channels_last(offsets), **options)


def _problem_of_time(direction: str, dtype: torch.dtype, steps: int, N: int, C: int, **options: Any) -> Pool2dProblem:
    """Returns the maximum over time as pooling: each (n, c) is a plane of `steps` rows and one column, covered by one window. In
    memory, the channels of the results are adjacent."""
    geometry = Pool2dGeometry((steps, 1), (1, 1), (0, 0), (1, 1))
    return _problem(direction, dtype, (N, C, steps, 1), (1, 1), geometry, channels_last=True, **options)


def _memory_format(problem: Pool2dProblem) -> torch.memory_format:
    return torch.channels_last if problem.channels_last else torch.contiguous_format


def _empty(problem: Pool2dProblem, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    size = (problem.N, problem.C, rows, columns)
    return torch.empty(size, dtype=dtype, device=device, memory_format=_memory_format(problem))


def _launch(launcher: Launcher, problem: Pool2dProblem, device: torch.device, **tensors: Tensor | None) -> None:
    """Launches the plan that is selected for a problem. `tensors` maps the pointer fields of the parameter struct to the tensors
    that they point to; None makes a null pointer."""
    selected = SELECTORS[f"max_pool2d_{problem.direction}"].select(problem, launcher.properties(device))
    note_selection(selected)
    plan = selected.plan
    pointers = {name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}
    parameters = DIRECTION_PARAMETERS[problem.direction](**pointers, shape=plan.shape, dense=plan.dense)
    launcher.launch(plan.launch, parameters, device)


def max_pool2d_forward(
    launcher: Launcher,
    x: Tensor,
    geometry: Pool2dGeometry,
    ceil_mode: bool,
    with_offsets: bool,
) -> tuple[Tensor, Tensor]:
    P, Q = pooled_size(x.shape[2:], *geometry, ceil_mode)
    problem = _problem(
        "forward",
        x.dtype,
        x.shape,
        (P, Q),
        geometry,
        is_channels_last(x),
        x_strides=x.stride(),
        aligned=_aligned(x),
        with_offsets=with_offsets,
    )
    offset_dtype = pooling_offset_dtype(geometry.kernel_size[0] * geometry.kernel_size[1])
    y = _empty(problem, P, Q, x.dtype, x.device)
    offsets = _empty(problem, P, Q, offset_dtype, x.device) if with_offsets else None
    if y.numel():
        _launch(launcher, problem, x.device, x=x, y=y, offsets=offsets)
    return y, x.new_empty(0, dtype=offset_dtype) if offsets is None else offsets


def max_pool2d_backward(
    launcher: Launcher,
    dy: Tensor,
    offsets: Tensor,
    x_size: Pair,
    geometry: Pool2dGeometry,
) -> Tensor:
    memory_format = torch.channels_last if is_channels_last(offsets) else torch.contiguous_format
    dy, dense_offsets = dy.contiguous(memory_format=memory_format), offsets.contiguous(memory_format=memory_format)
    problem = _problem_of_offsets("backward", dy.dtype, offsets, x_size, geometry, aligned=_aligned(dy, dense_offsets))
    dx = _empty(problem, problem.H, problem.W, dy.dtype, dy.device)
    if dx.numel():
        _launch(launcher, problem, dy.device, dy=dy, offsets=dense_offsets, dx=dx)
    return dx


def _aligned_copy(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Returns the tensor, or a copy if it is not dense in the memory format or does not start at a multiple of 16 bytes."""
    dense = tensor.contiguous(memory_format=memory_format)
    return dense if _aligned(dense) else dense.clone(memory_format=memory_format)


def max_pool2d_gather(launcher: Launcher, x: Tensor, offsets: Tensor, geometry: Pool2dGeometry) -> Tensor:
    problem = _problem_of_offsets("gather", x.dtype, offsets, x.shape[2:], geometry)
    gathered = _empty(problem, problem.P, problem.Q, x.dtype, x.device)
    if gathered.numel():
        memory_format = _memory_format(problem)
        dense_offsets = _aligned_copy(offsets, memory_format)
        dense_x = x.contiguous(memory_format=memory_format)
        _launch(launcher, problem, x.device, ddx=dense_x, offsets=dense_offsets, ddy=gathered)
    return gathered


def max_pool2d_indices(launcher: Launcher, offsets: Tensor, x_size: Pair, geometry: Pool2dGeometry) -> Tensor:
    problem = _problem_of_offsets("indices", torch.int64, offsets, x_size, geometry)
    indices = _empty(problem, problem.P, problem.Q, torch.int64, offsets.device)
    if indices.numel():
        dense_offsets = offsets.contiguous(memory_format=_memory_format(problem))
        _launch(launcher, problem, offsets.device, offsets=dense_offsets, indices=indices)
    return indices


def max_over_time_forward(launcher: Launcher, x: Tensor, lengths: Tensor | None, with_offsets: bool) -> tuple[Tensor, Tensor]:
    T, N, C = x.shape
    y = torch.empty((N, C), dtype=x.dtype, device=x.device)
    offset_dtype = pooling_offset_dtype(T)
    offsets = torch.empty((N, C), dtype=offset_dtype, device=x.device) if with_offsets else None
    step, image, channel = x.stride()
    if lengths is None and image == C * channel:
        N, C, image = 1, N * C, 0  # one image of N·C channels, which fill whole pieces of 16 bytes more often than C do
    if y.numel():
        problem = _problem_of_time(
            "forward",
            x.dtype,
            T,
            N,
            C,
            x_strides=(image, channel, step, 0),
            aligned=_aligned(x),
            with_offsets=with_offsets,
            with_lengths=lengths is not None,
        )
        rows = None if lengths is None else lengths.to(torch.int64).contiguous()
        _launch(launcher, problem, x.device, x=x, y=y, offsets=offsets, lengths=rows)
    return y, x.new_empty(0, dtype=offset_dtype) if offsets is None else offsets


def max_over_time_backward(launcher: Launcher, dy: Tensor, offsets: Tensor, steps: int) -> Tensor:
    N, C = dy.shape
    dx = torch.empty((steps, N, C), dtype=dy.dtype, device=dy.device)
    if dx.numel():
        dy, offsets = dy.contiguous(), offsets.contiguous()
        problem = _problem_of_time("backward", dy.dtype, steps, 1, N * C, aligned=_aligned(dy, offsets))
        _launch(launcher, problem, dy.device, dy=dy, offsets=offsets, dx=dx)
    return dx


def max_over_time_gather(launcher: Launcher, x: Tensor, offsets: Tensor) -> Tensor:
    T, N, C = x.shape
    gathered = torch.empty((N, C), dtype=x.dtype, device=x.device)
    if gathered.numel():
        problem = _problem_of_time("gather", x.dtype, T, 1, N * C)
        dense_offsets = _aligned_copy(offsets, torch.contiguous_format)
        _launch(launcher, problem, x.device, ddx=x.contiguous(), offsets=dense_offsets, ddy=gathered)
    return gathered
