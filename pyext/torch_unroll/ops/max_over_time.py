"""The operators of max pooling over the steps of a sequence: one window spans all of time, and its offset is the chosen step."""

from __future__ import annotations

from torch import Tensor

from torch_unroll.checks import (
    check_lengths,
    require_alike,
    require_numbers,
    require_place,
    require_rank,
    require_shape,
    widened,
)
from torch_unroll.engines import limits
from torch_unroll.ops.batching import fold_batch
from torch_unroll.ops.max_pool2d import check_offsets, pooling_engine, save_choice, saved_choice, split_batch
from torch_unroll.ops.registration import Operator, operator
from torch_unroll.ops.saving import save
from torch_unroll.shapes import pooling_offset_dtype, require


def _check_steps(x: Tensor, engine: str) -> None:
    require(x.shape[0] > 0, f"x: expected at least one step, got shape {tuple(x.shape)}")
    limits.require(engine, limits.max_over_time(*x.shape))


class MaxOverTimeForward(Operator):
    """x (T, N, C), lengths (N) or None -> y (N, C), the maximum over the first `lengths` steps, and the offset of the step that
    holds it; no offsets without `with_offsets`."""

    @staticmethod
    def check(x, lengths, with_offsets, engine):
        require_alike(x, "x")
        require_rank(x, "x", "TNC")
        _check_steps(x, engine)
        check_lengths(lengths, x.shape[1], x, "x")

    @staticmethod
    def compute(x, lengths, with_offsets, engine):
        return pooling_engine(engine, x).max_over_time_forward(x, widened(lengths), with_offsets)

    @staticmethod
    def fake(x, lengths, with_offsets, engine):
        y = x.new_empty(x.shape[1:])
        return y, x.new_empty(x.shape[1:] if with_offsets else (0,), dtype=pooling_offset_dtype(x.shape[0]))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.steps, ctx.engine = inputs[0].shape[0], inputs[-1]
        save_choice(ctx, output)

    @staticmethod
    def backward(ctx, dy, _):
        dx = None if dy is None else max_over_time_backward(dy, saved_choice(ctx)[0], ctx.steps, ctx.engine)
        return dx, None, None, None

    @staticmethod
    def jvp(ctx, dx, *_):
        return (None if dx is None else max_over_time_gather(dx, saved_choice(ctx)[0], ctx.engine)), None

    @staticmethod
    def vmap(info, in_dims, x, lengths, with_offsets, engine):
        x = fold_batch(x, in_dims[0], info.batch_size, into=1)
        lengths = None if lengths is None else fold_batch(lengths, in_dims[1], info.batch_size)
        return split_batch(max_over_time_forward(x, lengths, with_offsets, engine), info.batch_size, 0, with_offsets)


class MaxOverTimeBackward(Operator):
    """dy (N, C) -> dx (T, N, C): dy at the steps in `offsets`, 0 elsewhere. The argument `steps` is T."""

    @staticmethod
    def check(dy, offsets, steps, engine):
        require_alike(dy, "dy")
        require_place(offsets, "offsets", dy, "dy")
        require_rank(dy, "dy", "NC")
        require_numbers((steps,), "steps", 1, 1)
        limits.require(engine, limits.max_over_time(steps, *dy.shape))
        require_shape(offsets, "offsets", *dy.shape)
        check_offsets(offsets, steps)

    @staticmethod
    def compute(dy, offsets, steps, engine):
        return pooling_engine(engine, dy).max_over_time_backward(dy, offsets, steps)

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
        dy, offsets = (fold_batch(tensor, dim, info.batch_size) for tensor, dim in zip((dy, offsets), in_dims[:2], strict=True))
        return max_over_time_backward(dy, offsets, steps, engine).unflatten(1, (info.batch_size, -1)), 1


class MaxOverTimeGather(Operator):
    """x (T, N, C) -> (N, C): x at the steps that MaxOverTimeForward chose for another tensor; 0 where it chose none."""

    @staticmethod
    def check(x, offsets, engine):
        require_alike(x, "x")
        require_place(offsets, "offsets", x, "x")
        require_rank(x, "x", "TNC")
        _check_steps(x, engine)
        require_shape(offsets, "offsets", *x.shape[1:])
        check_offsets(offsets, x.shape[0])

    @staticmethod
    def compute(x, offsets, engine):
        return pooling_engine(engine, x).max_over_time_gather(x, offsets)

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
        x = fold_batch(x, in_dims[0], info.batch_size, into=1)
        offsets = fold_batch(offsets, in_dims[1], info.batch_size)
        return max_over_time_gather(x, offsets, engine).unflatten(0, (info.batch_size, -1)), 0


max_over_time_forward = operator(
    "max_over_time_forward(Tensor x, Tensor? lengths, bool with_offsets, str engine) -> (Tensor, Tensor)", MaxOverTimeForward
)
max_over_time_backward = operator(
    "max_over_time_backward(Tensor dy, Tensor offsets, SymInt steps, str engine) -> Tensor", MaxOverTimeBackward
)
max_over_time_gather = operator("max_over_time_gather(Tensor x, Tensor offsets, str engine) -> Tensor", MaxOverTimeGather)
