"""The operators of max pooling: forward, backward (a scatter to the chosen cells) and gather (a read of the chosen cells).

The choices that a pooling made determine its Jacobian, and are stored as one small offset for each window. Scatter and gather are
each other's transpose, so the operators below call each other, which yields gradients of every order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_unroll.checks import (
    MOST_INT32,
    is_symbolic,
    require_alike,
    require_numbers,
    require_place,
    require_rank,
    require_shape,
    require_strided,
)
from torch_unroll.engines import limits, select
from torch_unroll.engines.interface import Engine, Pool2dGeometry
from torch_unroll.history import with_history
from torch_unroll.ops.batching import fold_batch
from torch_unroll.ops.registration import Operator, operator
from torch_unroll.ops.saving import save
from torch_unroll.shapes import output_memory_format, pooled, pooled_size, pooling_offset_dtype, require, require_each

_GEOMETRY = "SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation"


def pooling_engine(name: str, tensor: Tensor) -> Engine:
    """The engine that serves a pooling of this tensor."""
    return select(name, "max_pool2d", tensor.device, tensor.dtype)


def split_batch(results: tuple[Tensor, Tensor], size: int, dim: int, with_offsets: bool) -> tuple[tuple[Tensor, Tensor], tuple]:
    """Splits the batch off dimension `dim` of a forward's results. Returns, as a batching rule has to, the results and the
    position of the batch in each of them."""
    y, offsets = results
    if not with_offsets:
        return (y.unflatten(dim, (size, -1)), offsets), (dim, None)
    return (y.unflatten(dim, (size, -1)), offsets.unflatten(dim, (size, -1))), (dim, dim)


def save_choice(ctx: Any, output: tuple[Tensor, ...]) -> None:
    """Saves a forward's offsets and, if there is one, the anchor that follows them (see `Operator.anchored`)."""
    offsets = output[1]
    ctx.mark_non_differentiable(offsets)
    ctx.set_materialize_grads(False)
    save(ctx, *output[1:])


def saved_choice(ctx: Any) -> tuple[Tensor, list[Tensor]]:
    """The offsets that `save_choice` saved, and a list that holds the anchor, if there is one. Both are read at once,
    because a checkpoint allows only one read.

    Raises:
        RuntimeError: the forward stored no offsets.
    """
    offsets, *anchor = ctx.saved_tensors
    if offsets.dim() == 1:
        raise RuntimeError("with_offsets: expected True for a forward that is differentiated, got False")
    return offsets, anchor


def _check_geometry(kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> None:
    """Checks the geometry of a window."""
    for name, numbers, least in (
        ("kernel_size", kernel_size, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        require_numbers(numbers, name, 2, least, MOST_INT32)
    cells = kernel_size[0] * kernel_size[1]
    require(cells <= MOST_INT32, f"kernel_size: expected a window of at most {MOST_INT32} cells, got {tuple(kernel_size)}")
    require_each(
        (2 * padding[i] <= kernel_size[i] for i in (0, 1)),
        f"padding: expected at most half of kernel_size {tuple(kernel_size)}, got {tuple(padding)}",
    )


def _check_planes(extents: Sequence[int], name: str) -> None:
    """Checks that these extents of the image, all but N, are above 0."""
    require_each((extent > 0 for extent in extents), f"{name}: expected extents above 0, got {tuple(extents)}")


def _check_windows(
    offsets: Tensor,
    x_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    engine: str,
) -> None:
    """Checks that offsets can come from a pooling with this geometry, in either rounding mode, and that the extents are within
    the limits of the engine's kernels."""
    _check_geometry(kernel_size, stride, padding, dilation)
    require_rank(offsets, "offsets", "NCPQ")
    check_offsets(offsets, kernel_size[0] * kernel_size[1])
    require_numbers(x_size, "x_size", 2, 1)
    limits.require(engine, limits.max_pool2d((*offsets.shape[:2], *x_size), offsets.shape[2:]))
    for i in (0, 1):
        extent = offsets.shape[2 + i]
        sizes = [pooled(x_size[i], kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode) for ceil_mode in (False, True)]
        fits = is_symbolic(extent, *sizes) or extent in sizes
        require(fits, f"offsets: expected extents that the pooling yields, {sizes}, got {extent}")


def check_offsets(offsets: Tensor, cells: int) -> None:
    """Checks the dtype of offsets into a window of this many cells."""
    dtype = pooling_offset_dtype(cells)
    require(offsets.dtype == dtype, f"offsets: expected {dtype} for windows of {cells} cells, got {offsets.dtype}")


class MaxPool2dForward(Operator):
    """x (N, C, H, W) -> y (N, C, P, Q), and the offset of each window's choice, laid out like y; empty without `with_offsets`."""

    anchored = True

    @staticmethod
    def check(x, kernel_size, stride, padding, dilation, ceil_mode, with_offsets, engine):
        require_alike(x, "x")
        require_rank(x, "x", "NCHW")
        _check_planes(x.shape[1:], "x")
        _check_geometry(kernel_size, stride, padding, dilation)
        size = pooled_size(x.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
        fits = size[0] > 0 and size[1] > 0
        require(fits, f"kernel_size: expected a window within the padded x {tuple(x.shape)}, got {tuple(kernel_size)}")
        limits.require(engine, limits.max_pool2d(x.shape, size))

    @staticmethod
    def compute(x, kernel_size, stride, padding, dilation, ceil_mode, with_offsets, engine):
        geometry = Pool2dGeometry(kernel_size, stride, padding, dilation)
        return pooling_engine(engine, x).max_pool2d_forward(x, geometry, ceil_mode, with_offsets)

    @staticmethod
    def fake(x, kernel_size, stride, padding, dilation, ceil_mode, with_offsets, engine):
        size = (*x.shape[:2], *pooled_size(x.shape[2:], kernel_size, stride, padding, dilation, ceil_mode))
        memory_format = output_memory_format(x)
        y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format)
        dtype = pooling_offset_dtype(kernel_size[0] * kernel_size[1])
        if not with_offsets:
            return y, x.new_empty(0, dtype=dtype)
        return y, torch.empty(size, dtype=dtype, device=x.device, memory_format=memory_format)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *geometry, _, _, ctx.engine = inputs
        ctx.geometry, ctx.x_size = geometry, x.shape[2:]
        save_choice(ctx, output)

    @staticmethod
    def backward(ctx, dy, _, danchor=None):
        offsets, anchor = saved_choice(ctx)
        if dy is None:  # only the anchor has a gradient, and its derivative is zero
            dx = None if danchor is None else danchor.new_zeros(*offsets.shape[:2], *ctx.x_size)
        else:
            dx = max_pool2d_backward(dy, offsets, ctx.x_size, *ctx.geometry, ctx.engine)
            dx = with_history(dx, *anchor) if anchor else dx
        return dx, *(None,) * 7

    @staticmethod
    def jvp(ctx, dx, *_):
        return (None if dx is None else max_pool2d_gather(dx, saved_choice(ctx)[0], *ctx.geometry, ctx.engine)), None

    @staticmethod
    def vmap(info, in_dims, x, kernel_size, stride, padding, dilation, ceil_mode, with_offsets, engine):
        folded = fold_batch(x, in_dims[0], info.batch_size)
        results = max_pool2d_forward(folded, kernel_size, stride, padding, dilation, ceil_mode, with_offsets, engine)
        return split_batch(results, info.batch_size, 0, with_offsets)


class MaxPool2dBackward(Operator):
    """dy (N, C, P, Q) -> dx (N, C, H, W): each pixel sums dy over the windows that chose it. `x_size` is (H, W)."""

    @staticmethod
    def check(dy, offsets, x_size, kernel_size, stride, padding, dilation, engine):
        require_alike(dy, "dy")
        require_place(offsets, "offsets", dy, "dy")
        _check_windows(offsets, x_size, kernel_size, stride, padding, dilation, engine)
        require_shape(dy, "dy", *offsets.shape)

    @staticmethod
    def compute(dy, offsets, x_size, kernel_size, stride, padding, dilation, engine):
        geometry = Pool2dGeometry(kernel_size, stride, padding, dilation)
        return pooling_engine(engine, dy).max_pool2d_backward(dy, offsets, x_size, geometry)

    @staticmethod
    def fake(dy, offsets, x_size, kernel_size, stride, padding, dilation, engine):
        size, memory_format = (*dy.shape[:2], *x_size), output_memory_format(offsets)
        return torch.empty(size, dtype=dy.dtype, device=dy.device, memory_format=memory_format)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, offsets, ctx.x_size, *ctx.geometry, ctx.engine = inputs
        save(ctx, offsets)

    @staticmethod
    def backward(ctx, ddx):
        (offsets,) = ctx.saved_tensors
        return max_pool2d_gather(ddx, offsets, *ctx.geometry, ctx.engine), *(None,) * 7

    @staticmethod
    def jvp(ctx, ddy, *_):
        (offsets,) = ctx.saved_tensors
        return max_pool2d_backward(ddy, offsets, ctx.x_size, *ctx.geometry, ctx.engine)

    @staticmethod
    def vmap(info, in_dims, dy, offsets, *geometry):
        dy, offsets = (fold_batch(tensor, dim, info.batch_size) for tensor, dim in zip((dy, offsets), in_dims[:2], strict=True))
        return max_pool2d_backward(dy, offsets, *geometry).unflatten(0, (info.batch_size, -1)), 0


class MaxPool2dGather(Operator):
    """x (N, C, H, W) -> (N, C, P, Q): x at the cells that MaxPool2dForward chose for another tensor; 0 for a window in
    which it chose none."""

    @staticmethod
    def check(x, offsets, kernel_size, stride, padding, dilation, engine):
        require_alike(x, "x")
        require_place(offsets, "offsets", x, "x")
        require_rank(x, "x", "NCHW")
        _check_windows(offsets, x.shape[2:], kernel_size, stride, padding, dilation, engine)
        require_each(
            (x.shape[i] == offsets.shape[i] for i in (0, 1)),
            f"x: expected N and C like offsets {tuple(offsets.shape)}, got {tuple(x.shape)}",
        )

    @staticmethod
    def compute(x, offsets, kernel_size, stride, padding, dilation, engine):
        geometry = Pool2dGeometry(kernel_size, stride, padding, dilation)
        return pooling_engine(engine, x).max_pool2d_gather(x, offsets, geometry)

    @staticmethod
    def fake(x, offsets, kernel_size, stride, padding, dilation, engine):
        return torch.empty(offsets.shape, dtype=x.dtype, device=x.device, memory_format=output_memory_format(offsets))

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, offsets, *ctx.geometry, ctx.engine = inputs
        ctx.x_size = x.shape[2:]
        save(ctx, offsets)

    @staticmethod
    def backward(ctx, dy):
        (offsets,) = ctx.saved_tensors
        return max_pool2d_backward(dy, offsets, ctx.x_size, *ctx.geometry, ctx.engine), *(None,) * 6

    @staticmethod
    def jvp(ctx, dx, *_):
        (offsets,) = ctx.saved_tensors
        return max_pool2d_gather(dx, offsets, *ctx.geometry, ctx.engine)

    @staticmethod
    def vmap(info, in_dims, x, offsets, *geometry):
        x, offsets = (fold_batch(tensor, dim, info.batch_size) for tensor, dim in zip((x, offsets), in_dims[:2], strict=True))
        return max_pool2d_gather(x, offsets, *geometry).unflatten(0, (info.batch_size, -1)), 0


class MaxPool2dIndices(Operator):
    """offsets (N, C, P, Q) -> torch's int64 indices row · W + column into the plane. They have no derivative."""

    @staticmethod
    def check(offsets, x_size, kernel_size, stride, padding, dilation, engine):
        require_strided(offsets, "offsets")
        _check_windows(offsets, x_size, kernel_size, stride, padding, dilation, engine)

    @staticmethod
    def compute(offsets, x_size, kernel_size, stride, padding, dilation, engine):
        # Engines are selected by the dtype of the images, which is unknown here; every engine accepts float32.
        chosen = select(engine, "max_pool2d", offsets.device, torch.float32)
        return chosen.max_pool2d_indices(offsets, x_size, Pool2dGeometry(kernel_size, stride, padding, dilation))

    @staticmethod
    def fake(offsets, x_size, kernel_size, stride, padding, dilation, engine):
        memory_format = output_memory_format(offsets)
        return torch.empty(offsets.shape, dtype=torch.int64, device=offsets.device, memory_format=memory_format)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx, *_):
        return (None,) * 7

    @staticmethod
    def jvp(ctx, *_):
        return None

    @staticmethod
    def vmap(info, in_dims, offsets, *geometry):
        folded = fold_batch(offsets, in_dims[0], info.batch_size)
        return max_pool2d_indices(folded, *geometry).unflatten(0, (info.batch_size, -1)), 0


max_pool2d_forward = operator(
    f"max_pool2d_forward(Tensor x, {_GEOMETRY}, bool ceil_mode, bool with_offsets, str engine) -> (Tensor, Tensor)",
    MaxPool2dForward,
)
max_pool2d_backward = operator(
    f"max_pool2d_backward(Tensor dy, Tensor offsets, SymInt[] x_size, {_GEOMETRY}, str engine) -> Tensor", MaxPool2dBackward
)
max_pool2d_gather = operator(f"max_pool2d_gather(Tensor x, Tensor offsets, {_GEOMETRY}, str engine) -> Tensor", MaxPool2dGather)
max_pool2d_indices = operator(
    f"max_pool2d_indices(Tensor offsets, SymInt[] x_size, {_GEOMETRY}, str engine) -> Tensor", MaxPool2dIndices
)
