"""The operators of one step of recurrence on its own: forward and backward, whose derivatives are matrix products around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_unroll.checks import require_alike, require_one_of, require_rank, require_shape
from torch_unroll.engines import limits, resolve_precision, select
from torch_unroll.engines.interface import NONLINEARITIES, PRECISIONS
from torch_unroll.engines.reference.rnn import curvature, slope
from torch_unroll.ops.linear import add, linear, outer
from torch_unroll.ops.registration import Operator, move_batch, operator
from torch_unroll.ops.saving import save_needed, stand_in


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    moved = move_batch(tensor, dim, size)
    assert moved is not None
    return moved.flatten(0, 1)


def _vmap(function: Any, weights: int, info: Any, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> Any:
    """The batch joins N where the `weights` tensors behind the first two are common to it; else one call per entry."""
    B, tensors = info.batch_size, inputs[: 2 + weights]
    if any(dim is not None for dim in in_dims[2 : 2 + weights]):
        calls = [
            function(*(tensor if dim is None else tensor.select(dim, i) for tensor, dim in zip(inputs, in_dims, strict=True)))
            for i in range(B)
        ]
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        return tuple(torch.stack(parts) for parts in zip(*calls, strict=True)), (0,) * len(calls[0])
    rows = [_fold(tensor, dim, B) for tensor, dim in zip(tensors[:2], in_dims, strict=False)]
    outputs = function(*rows, *inputs[2:])
    if isinstance(outputs, Tensor):
        return outputs.unflatten(0, (B, outputs.shape[0] // B)), 0
    return tuple(each.unflatten(0, (B, each.shape[0] // B)) for each in outputs), (0,) * len(outputs)


def _check_weights(I: int, H: int, w_ih: Tensor, w_hh: Tensor, nonlinearity: str, precision: str) -> None:  # noqa: E741
    require_shape(w_ih, "w_ih", H, I)
    require_shape(w_hh, "w_hh", H, H)
    require_one_of(nonlinearity, "nonlinearity", NONLINEARITIES)
    require_one_of(precision, "precision", PRECISIONS)


class RnnCellForward(Operator):
    """x (N, I), h (N, H), w_ih (H, I), w_hh (H, H), biases (H) -> the next h (N, H)."""

    autocast = True

    @staticmethod
    def check(x, h, w_ih, w_hh, b_ih, b_hh, nonlinearity, precision, engine):
        require_alike(x, "x", h=h, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh)
        require_rank(x, "x", "NI")
        require_rank(h, "h", "NH")
        require_shape(h, "h", x.shape[0], h.shape[1])
        _check_weights(x.shape[1], h.shape[1], w_ih, w_hh, nonlinearity, precision)
        limits.require(engine, limits.rnn_cell(x.shape[0], x.shape[1], h.shape[1]))
        require_shape(b_ih, "b_ih", h.shape[1])
        require_shape(b_hh, "b_hh", h.shape[1])

    @staticmethod
    def compute(x, h, w_ih, w_hh, b_ih, b_hh, nonlinearity, precision, engine):
        chosen = select(engine, "rnn_cell", x.device, x.dtype)
        return chosen.rnn_cell_forward(x, h, w_ih, w_hh, b_ih, b_hh, nonlinearity, resolve_precision(precision, x))

    @staticmethod
    def fake(x, h, w_ih, w_hh, b_ih, b_hh, nonlinearity, precision, engine):
        return h.new_empty(h.shape)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, h, w_ih, w_hh, _, _, *ctx.options = inputs
        ctx.shapes = w_ih.shape, w_hh.shape
        need_x, need_h, need_w_ih, need_w_hh = ctx.needs_input_grad[:4]
        is_curved = ctx.options[0] != "identity"
        save_needed(ctx, (x, need_w_ih), (h, need_w_hh), (w_ih, need_x), (w_hh, need_h), (output, is_curved))

    @staticmethod
    def backward(ctx, dh_next):
        x, h, w_ih, w_hh, h_next = ctx.saved_tensors
        w_ih, w_hh = (stand_in(w, dh_next, shape) for w, shape in zip((w_ih, w_hh), ctx.shapes, strict=True))
        h_next = stand_in(h_next, dh_next, dh_next.shape)
        need_w_ih, need_w_hh, need_b_ih, need_b_hh = ctx.needs_input_grad[2:6]
        dz, dx, dh = rnn_cell_backward(dh_next, h_next, w_ih, w_hh, *ctx.options)
        dw_ih = outer(dz, x, *ctx.options[1:]) if need_w_ih else None
        dw_hh = outer(dz, h, *ctx.options[1:]) if need_w_hh else None
        db = dz.sum(0) if need_b_ih or need_b_hh else None
        dx, dh = (gradient if needed else None for gradient, needed in zip((dx, dh), ctx.needs_input_grad, strict=False))
        return dx, dh, dw_ih, dw_hh, db if need_b_ih else None, db if need_b_hh else None, None, None, None

    @staticmethod
    def jvp(ctx, dx, dh, dw_ih, dw_hh, db_ih, db_hh, *_):
        x, h, w_ih, w_hh, h_next = ctx.saved_tensors
        nonlinearity, *told = ctx.options
        moved = add(
            None if dx is None else linear(dx, w_ih, None, *told),
            None if dh is None else linear(dh, w_hh, None, *told),
            None if dw_ih is None else linear(x, dw_ih, None, *told),
            None if dw_hh is None else linear(h, dw_hh, None, *told),
            db_ih,
            db_hh,
        )
        assert moved is not None
        return slope(nonlinearity, h_next, moved.expand_as(h_next))

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return _vmap(rnn_cell_forward, 4, info, in_dims, inputs)


class RnnCellBackward(Operator):
    """dh_next, h_next (N, H) -> dz (N, H), dx = dz w_ih (N, I), dh = dz w_hh (N, H)."""

    autocast = True

    @staticmethod
    def check(dh_next, h_next, w_ih, w_hh, nonlinearity, precision, engine):
        require_alike(h_next, "h_next", dh_next=dh_next, w_ih=w_ih, w_hh=w_hh)
        require_rank(h_next, "h_next", "NH")
        require_shape(dh_next, "dh_next", *h_next.shape)
        require_rank(w_ih, "w_ih", "HI")
        _check_weights(w_ih.shape[1], h_next.shape[1], w_ih, w_hh, nonlinearity, precision)
        limits.require(engine, limits.rnn_cell(h_next.shape[0], w_ih.shape[1], h_next.shape[1]))

    @staticmethod
    def compute(dh_next, h_next, w_ih, w_hh, nonlinearity, precision, engine):
        chosen = select(engine, "rnn_cell", h_next.device, h_next.dtype)
        return chosen.rnn_cell_backward(dh_next, h_next, w_ih, w_hh, nonlinearity, resolve_precision(precision, h_next))

    @staticmethod
    def fake(dh_next, h_next, w_ih, w_hh, nonlinearity, precision, engine):
        return h_next.new_empty(h_next.shape), h_next.new_empty(h_next.shape[0], w_ih.shape[1]), h_next.new_empty(h_next.shape)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dh_next, h_next, w_ih, w_hh, *ctx.options = inputs
        _, need_h_next, need_w_ih, need_w_hh = ctx.needs_input_grad[:4]
        nonlinearity = ctx.options[0]
        bends = need_h_next and nonlinearity in ("tanh", "sigmoid")
        save_needed(
            ctx,
            (dh_next, bends),
            (h_next, nonlinearity != "identity"),
            (w_ih, True),
            (w_hh, True),
            (output[0], need_w_ih or need_w_hh),
        )

    @staticmethod
    def backward(ctx, moved_dz, moved_dx, moved_dh):
        dh_next, h_next, w_ih, w_hh, dz = ctx.saved_tensors
        h_next = stand_in(h_next, w_hh, moved_dz.shape)
        _, need_h_next, need_w_ih, need_w_hh = ctx.needs_input_grad[:4]
        nonlinearity, *told = ctx.options
        s = moved_dz + linear(moved_dx, w_ih, None, *told) + linear(moved_dh, w_hh, None, *told)
        bend = curvature(nonlinearity, h_next) if need_h_next else None
        return (
            slope(nonlinearity, h_next, s),
            None if bend is None else bend * dh_next * s,
            outer(dz, moved_dx, *told) if need_w_ih else None,
            outer(dz, moved_dh, *told) if need_w_hh else None,
            None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx, moved_dh_next, moved_h_next, dw_ih, dw_hh, *_):
        dh_next, h_next, w_ih, w_hh, dz = ctx.saved_tensors
        nonlinearity, *told = ctx.options
        bend = None if moved_h_next is None else curvature(nonlinearity, h_next)
        moved = add(
            None if moved_dh_next is None else slope(nonlinearity, h_next, moved_dh_next),
            None if bend is None else bend * dh_next * moved_h_next,
        )

        def back(w: Tensor, dw: Tensor | None) -> Tensor | None:
            return add(
                None if moved is None else linear(moved, w.mT, None, *told),
                None if dw is None else linear(dz, dw.mT, None, *told),
            )

        results = (moved, back(w_ih, dw_ih), back(w_hh, dw_hh))
        empty = (dz.shape, (dz.shape[0], w_ih.shape[1]), dz.shape)
        return tuple(dz.new_zeros(shape) if each is None else each for each, shape in zip(results, empty, strict=True))

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return _vmap(rnn_cell_backward, 2, info, in_dims, inputs)


rnn_cell_forward = operator(
    "rnn_cell_forward(Tensor x, Tensor h, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh,"
    " str nonlinearity, str precision, str engine) -> Tensor",
    RnnCellForward,
)
rnn_cell_backward = operator(
    "rnn_cell_backward(Tensor dh_next, Tensor h_next, Tensor w_ih, Tensor w_hh, str nonlinearity, str precision, str engine)"
    " -> (Tensor, Tensor, Tensor)",
    RnnCellBackward,
)
