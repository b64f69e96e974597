"""The operators of max pooling: forward, backward (scatter by the choices) and gather (by the same choices).

A pooling's Jacobian is the choice it made, kept as one small offset a window. Scatter and gather are each other's transpose, so
the ops below name each other, which gives gradients of every order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_unroll.engines import select
from torch_unroll.engines.interface import Engine
from torch_unroll.registration import Operator, move_batch, operator, save
from torch_unroll.shapes import output_memory_format, pooled, pooling_offset_dtype

_GEOMETRY = "SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation"


def _engine(name: str, tensor: Tensor) -> Engine:
    return select(name, "max_pool2d", tensor.device, tensor.dtype)


def _fold_batch(tensor: Tensor, dim: int | None, size: int, into: int = 0) -> Tensor:
    """The batch of a vmap joins dimension `into`."""
    moved = move_batch(tensor, dim, size, into)
    assert moved is not None
    return moved.flatten(into, into + 1)


def _split_batch(results: tuple[Tensor, Tensor], size: int, dim: int, with_offsets: bool) -> tuple[tuple[Tensor, Tensor], tuple]:
    """Undoes `_fold_batch` for a forward's results."""
    y, offsets = results
    if not with_offsets:
        return (y.unflatten(dim, (size, -1)), offsets), (dim, None)
    return (y.unflatten(dim, (size, -1)), offsets.unflatten(dim, (size, -1))), (dim, dim)


def _save_choice(ctx: Any, output: tuple[Tensor, Tensor]) -> None:
    offsets = output[1]
    ctx.mark_non_differentiable(offsets)
    ctx.set_materialize_grads(False)
    save(ctx, offsets)


def _choice(ctx: Any) -> Tensor:
    (offsets,) = ctx.saved_tensors
    if offsets.dim() == 1:
        raise RuntimeError("with_offsets: expected True for a forward whose derivative is wanted, got False")
    return offsets


class MaxPool2dForward(Operator):
    """x (N, C, H, W) -> y (N, C, P, Q), and the choice of each window, laid out like y; empty without `with_offsets`."""

    @staticmethod
    def compute(x, kernel_size, stride, padding, dilation, ceil_mode, with_offsets, engine):
        return _engine(engine, x).max_pool2d_forward(x, kernel_size, stride, padding, dilation, ceil_mode, with_offsets)

    @staticmethod
    def fake(x, kernel_size, stride, padding, dilation, ceil_mode, with_offsets, engine):
        P, Q = (pooled(x.shape[i + 2], kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode) for i in (0, 1))
        size, memory_format = (*x.shape[:2], P, Q), output_memory_format(x)
        y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format)
        dtype = pooling_offset_dtype(kernel_size[0] * kernel_size[1])
        if not with_offsets:
            return y, x.new_empty(0, dtype=dtype)
        return y, torch.empty(size, dtype=dtype, device=x.device, memory_format=memory_format)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *geometry, _, _, ctx.engine = inputs
        ctx.geometry, ctx.x_size = geometry, x.shape[2:]
        _save_choice(ctx, output)

    @staticmethod
    def backward(ctx, dy, _):
        dx = None if dy is None else max_pool2d_backward(dy, _choice(ctx), ctx.x_size, *ctx.geometry, ctx.engine)
        return dx, *(None,) * 7

    @staticmethod
    def jvp(ctx, dx, *_):
        return (None if dx is None else max_pool2d_gather(dx, _choice(ctx), *ctx.geometry, ctx.engine)), None

    @staticmethod
    def vmap(info, in_dims, x, kernel_size, stride, padding, dilation, ceil_mode, with_offsets, engine):
        folded = _fold_batch(x, in_dims[0], info.batch_size)
        results = max_pool2d_forward(folded, kernel_size, stride, padding, dilation, ceil_mode, with_offsets, engine)
        return _split_batch(results, info.batch_size, 0, with_offsets)


class MaxPool2dBackward(Operator):
    """dy (N, C, P, Q) -> dx (N, C, H, W): each pixel is the sum of the windows that chose it. `x_size` is (H, W)."""

    @staticmethod
    def compute(dy, offsets, x_size, kernel_size, stride, padding, dilation, engine):
        return _engine(engine, dy).max_pool2d_backward(dy, offsets, x_size, kernel_size, stride, padding, dilation)

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
        dy, offsets = (_fold_batch(each, dim, info.batch_size) for each, dim in zip((dy, offsets), in_dims[:2], strict=True))
        return max_pool2d_backward(dy, offsets, *geometry).unflatten(0, (info.batch_size, -1)), 0


class MaxPool2dGather(Operator):
    """x (N, C, H, W) -> (N, C, P, Q): the cell that each window of another forward chose; 0 where it chose none."""

    @staticmethod
    def compute(x, offsets, kernel_size, stride, padding, dilation, engine):
        return _engine(engine, x).max_pool2d_gather(x, offsets, kernel_size, stride, padding, dilation)

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
        x, offsets = (_fold_batch(each, dim, info.batch_size) for each, dim in zip((x, offsets), in_dims[:2], strict=True))
        return max_pool2d_gather(x, offsets, *geometry).unflatten(0, (info.batch_size, -1)), 0


class MaxPool2dIndices(Operator):
    """offsets (N, C, P, Q) -> torch's int64 indices row · W + column into the plane. No derivative."""

    @staticmethod
    def compute(offsets, x_size, kernel_size, stride, padding, dilation, engine):
        chosen = select(engine, "max_pool2d", offsets.device, torch.float32)  # offsets are of no dtype that engines choose by
        return chosen.max_pool2d_indices(offsets, x_size, kernel_size, stride, padding, dilation)

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
        folded = _fold_batch(offsets, in_dims[0], info.batch_size)
        return max_pool2d_indices(folded, *geometry).unflatten(0, (info.batch_size, -1)), 0


class MaxOverTimeForward(Operator):
    """x (T, N, C), lengths (N) or none -> y (N, C) over the first `lengths` steps, and the step of each, as in pooling."""

    @staticmethod
    def compute(x, lengths, with_offsets, engine):
        return _engine(engine, x).max_over_time_forward(x, lengths, with_offsets)

    @staticmethod
    def fake(x, lengths, with_offsets, engine):
        y = x.new_empty(x.shape[1:])
        return y, x.new_empty(x.shape[1:] if with_offsets else (0,), dtype=pooling_offset_dtype(x.shape[0]))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.steps, ctx.engine = inputs[0].shape[0], inputs[-1]
        _save_choice(ctx, output)

    @staticmethod
    def backward(ctx, dy, _):
        dx = None if dy is None else max_over_time_backward(dy, _choice(ctx), ctx.steps, ctx.engine)
        return dx, None, None, None

    @staticmethod
    def jvp(ctx, dx, *_):
        return (None if dx is None else max_over_time_gather(dx, _choice(ctx), ctx.engine)), None

    @staticmethod
    def vmap(info, in_dims, x, lengths, with_offsets, engine):
        x = _fold_batch(x, in_dims[0], info.batch_size, into=1)
        lengths = None if lengths is None else _fold_batch(lengths, in_dims[1], info.batch_size)
        return _split_batch(max_over_time_forward(x, lengths, with_offsets, engine), info.batch_size, 0, with_offsets)


class MaxOverTimeBackward(Operator):
    """dy (N, C) -> dx (T, N, C): the gradient at the step that was chosen, 0 elsewhere. `steps` is T."""

    @staticmethod
    def compute(dy, offsets, steps, engine):
        return _engine(engine, dy).max_over_time_backward(dy, offsets, steps)

    @staticmethod
    def fake(dy, offsets, steps, engine):
        return dy.new_empty(steps, *dy.shape)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, offsets, ctx.steps, ctx.engine = inputs
        save(ctx, offsets)

    @staticmethod
    def backward(ctx, ddx):
        (offsets,) = ctx.saved_tensors
        return max_over_time_gather(ddx, offsets, ctx.engine), None, None, None

    @staticmethod
    def jvp(ctx, ddy, *_):
        (offsets,) = ctx.saved_tensors
        return max_over_time_backward(ddy, offsets, ctx.steps, ctx.engine)

    @staticmethod
    def vmap(info, in_dims, dy, offsets, steps, engine):
        dy, offsets = (_fold_batch(each, dim, info.batch_size) for each, dim in zip((dy, offsets), in_dims[:2], strict=True))
        return max_over_time_backward(dy, offsets, steps, engine).unflatten(1, (info.batch_size, -1)), 1


class MaxOverTimeGather(Operator):
    """x (T, N, C) -> (N, C): x at the step that another forward chose; 0 where it had none."""

    @staticmethod
    def compute(x, offsets, engine):
        return _engine(engine, x).max_over_time_gather(x, offsets)

    @staticmethod
    def fake(x, offsets, engine):
        return x.new_empty(x.shape[1:])

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, offsets, ctx.engine = inputs
        ctx.steps = x.shape[0]
        save(ctx, offsets)

    @staticmethod
    def backward(ctx, dy):
        (offsets,) = ctx.saved_tensors
        return max_over_time_backward(dy, offsets, ctx.steps, ctx.engine), None, None

    @staticmethod
    def jvp(ctx, dx, *_):
        (offsets,) = ctx.saved_tensors
        return max_over_time_gather(dx, offsets, ctx.engine)

    @staticmethod
    def vmap(info, in_dims, x, offsets, engine):
        x = _fold_batch(x, in_dims[0], info.batch_size, into=1)
        offsets = _fold_batch(offsets, in_dims[1], info.batch_size)
        return max_over_time_gather(x, offsets, engine).unflatten(0, (info.batch_size, -1)), 0


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
max_over_time_forward = operator(
    "max_over_time_forward(Tensor x, Tensor? lengths, bool with_offsets, str engine) -> (Tensor, Tensor)", MaxOverTimeForward
)
max_over_time_backward = operator(
    "max_over_time_backward(Tensor dy, Tensor offsets, SymInt steps, str engine) -> Tensor", MaxOverTimeBackward
)
max_over_time_gather = operator("max_over_time_gather(Tensor x, Tensor offsets, str engine) -> Tensor", MaxOverTimeGather)
