"""Host code of unfold, fold and the variant im2col, which writes the columns to memory and multiplies with simt's kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_unroll.engines.compiled.conv2d_call import Call
from torch_unroll.engines.compiled.conv2d_gemm import launch_dgrad, launch_fprop, launch_wgrad
from torch_unroll.engines.compiled.conv2d_gradient import FilterGradient
from torch_unroll.engines.compiled.conv2d_sums import Biases
from torch_unroll.engines.compiled.conv2d_workspace import allocate_workspace
from torch_unroll.kernels.cuda.conv2d.im2col import IM2COL, plan_gather
from torch_unroll.kernels.cuda.conv2d.parameters import Col2imParameters, Im2colParameters
from torch_unroll.kernels.planning import Configuration


def im2col(call: Call, columns: Tensor) -> None:
    """Writes the columns of x, (N, C·R·S, P, Q) contiguous."""
    struct = Im2colParameters(x=call.x.data_ptr(), columns=columns.data_ptr(), shape=call.problem.shape())
    call.launcher.launch(plan_gather(call.problem, "im2col", call.device.multiprocessors), struct, call.x.device)


def col2im(call: Call, columns: Tensor) -> None:
    """Overwrites each pixel of x with the sum of its elements in `columns`, those to which `im2col` would copy the pixel.

    `columns` is (N, C·R·S, P, Q), contiguous.
    """
    struct = Col2imParameters(columns=columns.data_ptr(), x=call.x.data_ptr(), shape=call.problem.shape())
    call.launcher.launch(plan_gather(call.problem, "col2im", call.device.multiprocessors), struct, call.x.device)


def fprop(call: Call, biases: Biases, configuration: Configuration) -> None:
    w, (chunks, columns) = _flattened(call.w), _chunks(call)
    for chunk in chunks:
        im2col(chunk, columns)
        product = chunk.pointwise(columns[: chunk.problem.N], w, chunk.y)
        launch_fprop(product, IM2COL.plan(product.problem, configuration, call.device), biases)


def dgrad(call: Call, configuration: Configuration) -> None:
    w, (chunks, columns) = _flattened(call.w), _chunks(call)
    for chunk in chunks:
        product = chunk.pointwise(columns[: chunk.problem.N], w, chunk.y)
        launch_dgrad(product, IM2COL.plan(product.problem, configuration, call.device))
        col2im(chunk, columns)


def wgrad(call: Call, db: Tensor | None, configuration: Configuration) -> None:
    chunks, columns = _chunks(call)
    shape_of_w = torch.empty((call.problem.K, call.problem.taps, 1, 1), device="meta")
    # The product is that of a 1×1 filter, so its blocks do not see dw as it is.
    gradient = FilterGradient(call, db, len(chunks), *call.problem.group_channels, may_write=False)
    for chunk in chunks:
        product = chunk.pointwise(columns[: chunk.problem.N], shape_of_w, chunk.y)
        plan = IM2COL.plan(product.problem, gradient.limited(configuration), call.device)
        im2col(chunk, columns)
        launch_wgrad(product, plan, gradient)
    gradient.add_splits(channels_inner=False)


def _flattened(w: Tensor) -> Tensor:
    """Returns w, (K, C, R, S), as the 1×1 filter (K, C·R·S, 1, 1) that is applied to the columns."""
    return w.contiguous().flatten(1)[:, :, None, None]


def _chunks(call: Call) -> tuple[list[Call], Tensor]:
    """Returns the call in chunks, and memory for the columns of the largest chunk, (N, C·R·S, P, Q)."""
    problem = call.problem
    rows = problem.C * problem.R * problem.S
    chunks = call.chunks(rows * problem.P * problem.Q * call.x.element_size())
    return chunks, allocate_workspace((chunks[0].problem.N, rows, problem.P, problem.Q), call.x)
