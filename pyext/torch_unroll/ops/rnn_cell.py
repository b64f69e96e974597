"""The forward and backward operators of a single recurrent step. Their derivatives are composed of matrix products, sums,
pointwise functions and the two operators themselves."""

from __future__ import annotations

from torch import Tensor

from torch_unroll.checks import require_alike, require_one_of, require_rank, require_shape
from torch_unroll.engines import limits, resolve_precision, select
from torch_unroll.engines.interface import NONLINEARITIES, PRECISIONS
from torch_unroll.nonlinearity import curvature, slope
from torch_unroll.ops.batching import batch_cell
from torch_unroll.ops.linear import linear, outer, outer_and_sum
from torch_unroll.ops.registration import Operator, operator
from torch_unroll.ops.rnn_derivatives import Options
from torch_unroll.ops.saving import save_needed, stand_in
from torch_unroll.ops.sums import add
from torch_unroll.plain import only_computes


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
        x, h, w_ih, w_hh, _, _, *options = inputs
        ctx.options = Options(*options)
        ctx.shapes = w_ih.shape, w_hh.shape
        need_x, need_h, need_w_ih, need_w_hh = ctx.needs_input_grad[:4]
        save_needed(ctx, (x, need_w_ih), (h, need_w_hh), (w_ih, need_x), (w_hh, need_h), (output, ctx.options.slope_depends_on_h))

    @staticmethod
    def backward(ctx, dh_next):
        x, h, w_ih, w_hh, h_next = ctx.saved_tensors
        w_ih, w_hh = (stand_in(w, dh_next, shape) for w, shape in zip((w_ih, w_hh), ctx.shapes, strict=True))
        h_next = stand_in(h_next, dh_next, dh_next.shape)
        need_w_ih, need_w_hh, need_b_ih, need_b_hh = ctx.needs_input_grad[2:6]
        dz, dx, dh = rnn_cell_backward(dh_next, h_next, w_ih, w_hh, *ctx.options)
        precision, engine = ctx.options.precision, ctx.options.engine
        dw_ih: Tensor | None
        db: Tensor | None
        if need_w_ih and (need_b_ih or need_b_hh) and only_computes((dz, x)):
            dw_ih, db = outer_and_sum(dz, x, precision, engine)
        else:
            dw_ih = outer(dz, x, precision, engine) if need_w_ih else None
            db = dz.sum(0) if need_b_ih or need_b_hh else None
        dw_hh = outer(dz, h, precision, engine) if need_w_hh else None
        dx, dh = (gradient if needed else None for gradient, needed in zip((dx, dh), ctx.needs_input_grad, strict=False))
        return dx, dh, dw_ih, dw_hh, db if need_b_ih else None, db if need_b_hh else None, None, None, None

    @staticmethod
    def jvp(ctx, dx, dh, dw_ih, dw_hh, db_ih, db_hh, *_):
        x, h, w_ih, w_hh, h_next = ctx.saved_tensors
        nonlinearity, precision, engine = ctx.options
        dz = add(
            None if dx is None else linear(dx, w_ih, None, precision, engine),
            None if dh is None else linear(dh, w_hh, None, precision, engine),
            None if dw_ih is None else linear(x, dw_ih, None, precision, engine),
            None if dw_hh is None else linear(h, dw_hh, None, precision, engine),
            db_ih,
            db_hh,
        )
        assert dz is not None
        return slope(nonlinearity, h_next, dz.expand_as(h_next))

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return batch_cell(rnn_cell_forward, 4, info, in_dims, inputs)


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
        dh_next, h_next, w_ih, w_hh, *options = inputs
        ctx.options = Options(*options)
        _, need_h_next, need_w_ih, need_w_hh = ctx.needs_input_grad[:4]
        save_needed(
            ctx,
            (dh_next, need_h_next and ctx.options.has_curvature),
            (h_next, ctx.options.slope_depends_on_h),
            (w_ih, True),
            (w_hh, True),
            (output[0], need_w_ih or need_w_hh),
        )

    @staticmethod
    def backward(ctx, grad_dz, grad_dx, grad_dh):
        dh_next, h_next, w_ih, w_hh, dz = ctx.saved_tensors
        h_next = stand_in(h_next, w_hh, grad_dz.shape)
        _, need_h_next, need_w_ih, need_w_hh = ctx.needs_input_grad[:4]
        nonlinearity, precision, engine = ctx.options
        # dx = dz w_ih and dh = dz w_hh pass their gradients on to dz.
        grad_dz = grad_dz + linear(grad_dx, w_ih, None, precision, engine) + linear(grad_dh, w_hh, None, precision, engine)
        second = curvature(nonlinearity, h_next) if need_h_next else None
        return (
            slope(nonlinearity, h_next, grad_dz),
            None if second is None else second * dh_next * grad_dz,
            outer(dz, grad_dx, precision, engine) if need_w_ih else None,
            outer(dz, grad_dh, precision, engine) if need_w_hh else None,
            None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx, tangent_dh_next, tangent_h_next, tangent_w_ih, tangent_w_hh, *_):
        dh_next, h_next, w_ih, w_hh, dz = ctx.saved_tensors
        nonlinearity, precision, engine = ctx.options
        second = None if tangent_h_next is None else curvature(nonlinearity, h_next)
        tangent_dz = add(
            None if tangent_dh_next is None else slope(nonlinearity, h_next, tangent_dh_next),
            None if second is None else second * dh_next * tangent_h_next,
        )

        def tangent_of_product(w: Tensor, tangent_w: Tensor | None) -> Tensor | None:  # the tangent of dz w
            return add(
                None if tangent_dz is None else linear(tangent_dz, w.mT, None, precision, engine),
                None if tangent_w is None else linear(dz, tangent_w.mT, None, precision, engine),
            )

        tangents = (tangent_dz, tangent_of_product(w_ih, tangent_w_ih), tangent_of_product(w_hh, tangent_w_hh))
        shapes = (dz.shape, (dz.shape[0], w_ih.shape[1]), dz.shape)
        return tuple(dz.new_zeros(shape) if tangent is None else tangent for tangent, shape in zip(tangents, shapes, strict=True))

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return batch_cell(rnn_cell_backward, 2, info, in_dims, inputs)


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
