"""The operators of recurrence over a sequence: forward, backward (BPTT) and tangent.

Backward is linear in dh, tangent is linear in (p, u0), and each is the transpose of the other. The derivative of each of the
three operators is therefore composed of these operators, of matrix products and of pointwise functions, which yields derivatives
of every order, in backward and forward mode.

With (q, dh0) = backward(g) and u = tangent(p, u0), where t⁻ is the step walked before step t and t⁺ the step walked after it:

    s_t = p_t + W u_t⁻      u_t = f'(h_t) s_t
    a_t = g_t + Wᵀ q_t⁺     q_t = f'(h_t) a_t
    Σ g_t u_t = Σ q_t p_t + dh0 u0

The derivative of that sum is f''(h_t) s_t a_t with respect to h_t, where f'' is the derivative of f' with respect to h, and
Σ q_t u_t⁻ᵀ with respect to W.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_unroll.checks import require_alike, require_shape, widened
from torch_unroll.engines import load, resolve_precision, select
from torch_unroll.engines.interface import RnnOptions
from torch_unroll.ops.batching import Role, batch_layer
from torch_unroll.ops.registration import Operator, operator
from torch_unroll.ops.rnn_derivatives import Options, Recurrence
from torch_unroll.ops.rnn_layer import check_layer, read_batch_sizes
from torch_unroll.ops.rnn_steps import Steps
from torch_unroll.ops.saving import save_needed, stand_in
from torch_unroll.ops.sums import add
from torch_unroll.shapes import empty_rows_like

_OPTIONS = "Tensor? lengths, Tensor? batch_sizes, str nonlinearity, str precision, str engine"


class RnnForward(Operator):
    """z (T, N, D·H) or packed (total, D·H), w_hh (D, H, H), h0 (D, N, H) -> h like z, 0 past the length of a sample."""

    autocast = True

    @staticmethod
    def check(z, w_hh, h0, lengths, batch_sizes, nonlinearity, precision, engine):
        check_layer("z", z, w_hh, "h0", h0, lengths, batch_sizes, nonlinearity, precision, engine)

    @staticmethod
    def compute(z, w_hh, h0, lengths, batch_sizes, nonlinearity, precision, engine):
        chosen, sizes = select(engine, "rnn", z.device, z.dtype), read_batch_sizes(batch_sizes, z, h0)
        options = RnnOptions(widened(lengths), sizes, nonlinearity, resolve_precision(precision, z))
        return chosen.rnn_forward(z, w_hh, h0, options)

    @staticmethod
    def fake(z, w_hh, h0, lengths, batch_sizes, nonlinearity, precision, engine):
        return empty_rows_like(z)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, w_hh, h0, lengths, batch_sizes, *options = inputs
        ctx.options, ctx.start_shape = Options(*options), h0.shape
        need_w = ctx.needs_input_grad[1]
        need_h = need_w or ctx.options.slope_depends_on_h
        save_needed(ctx, (output, need_h), (w_hh, True), (h0, need_w), (lengths, True), (batch_sizes, True))

    @staticmethod
    def backward(ctx, dh):
        h, w_hh, h0, *layout = ctx.saved_tensors
        h, h0 = stand_in(h, w_hh, dh.shape), stand_in(h0, w_hh, ctx.start_shape)
        dz, dh0 = rnn_backward(dh, h, w_hh, h0, *layout, *ctx.options)
        recurrence = Recurrence(w_hh, Steps(*layout), ctx.options)
        dw = recurrence.weight_gradient(dz, h, h0) if ctx.needs_input_grad[1] else None
        return dz, dw, dh0, None, None, None, None, None

    @staticmethod
    def jvp(ctx, dz, dw, dh0, *_):
        h, w_hh, h0, *layout = ctx.saved_tensors
        recurrence = Recurrence(w_hh, Steps(*layout), ctx.options)
        p = add(dz, None if dw is None else recurrence.product_with_previous(h, h0, dw))  # dz_t + dW h_t⁻
        u0 = torch.zeros_like(h0) if dh0 is None else dh0
        return rnn_tangent(torch.zeros_like(h) if p is None else p, h, w_hh, u0, *layout, *ctx.options)

    @staticmethod
    def vmap(info, in_dims, *inputs):
        roles = (Role.ROWS, Role.WEIGHTS, Role.STATE, Role.LENGTHS, Role.BATCH_SIZES)
        return batch_layer(rnn_forward, roles, info, in_dims, inputs)


def _gradients_of_pairing(
    ctx: Any, recurrence: Recurrence, h: Tensor, p: Tensor, u: Tensor, u0: Tensor, g: Tensor, q: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of Σ g_t u_t = Σ q_t p_t + dh0 u0 with respect to h and W, each None if `ctx` does not need it; that of h is
    also None if f'' is 0 everywhere.

    Two operators need them in their backward: RnnBackward, whose results q and dh0 have the gradients p and u0, and RnnTangent,
    whose result u has the gradient g.
    """
    _, need_h, need_w = ctx.needs_input_grad[:3]
    grad_h = grad_w = None
    if need_h and ctx.options.has_curvature:
        s = p + recurrence.product_with_previous(u, u0)
        a = g + recurrence.product_with_following(q, stand_in(None, recurrence.w, ctx.start_shape))
        grad_h = recurrence.curvature_term(h, s, a)
    if need_w:
        grad_w = recurrence.weight_gradient(q, u, u0)
    return grad_h, grad_w


class RnnBackward(Operator):
    """BPTT: dh like h -> dz like h, 0 past the length of a sample, and dh0 like h0. Only the shape of h0 is used."""

    autocast = True

    @staticmethod
    def check(dh, h, w_hh, h0, lengths, batch_sizes, nonlinearity, precision, engine):
        check_layer("h", h, w_hh, "h0", h0, lengths, batch_sizes, nonlinearity, precision, engine)
        require_alike(h, "h", dh=dh)
        require_shape(dh, "dh", *h.shape)

    @staticmethod
    def compute(dh, h, w_hh, h0, lengths, batch_sizes, nonlinearity, precision, engine):
        chosen, sizes = select(engine, "rnn", h.device, h.dtype), read_batch_sizes(batch_sizes, h, h0)
        options = RnnOptions(widened(lengths), sizes, nonlinearity, resolve_precision(precision, h))
        return chosen.rnn_backward(dh, h, w_hh, h0, options)

    @staticmethod
    def fake(dh, h, w_hh, h0, lengths, batch_sizes, nonlinearity, precision, engine):
        return empty_rows_like(h), torch.empty_like(h0, memory_format=torch.contiguous_format)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dh, h, w_hh, h0, lengths, batch_sizes, *options = inputs
        ctx.options, ctx.start_shape = Options(*options), h0.shape
        _, need_h, need_w = ctx.needs_input_grad[:3]
        need_curvature = need_h and ctx.options.has_curvature
        save_needed(
            ctx,
            (dh, need_curvature),
            (h, ctx.options.slope_depends_on_h),
            (w_hh, True),
            (lengths, True),
            (batch_sizes, True),
            (output[0], need_curvature or need_w),
        )

    @staticmethod
    def backward(ctx, p, u0):
        dh, h, w_hh, *layout, dz = ctx.saved_tensors
        h = stand_in(h, w_hh, p.shape)
        u = rnn_tangent(p, h, w_hh, u0, *layout, *ctx.options)
        recurrence = Recurrence(w_hh, Steps(*layout), ctx.options)
        grad_h, grad_w = _gradients_of_pairing(ctx, recurrence, h, p=p, u=u, u0=u0, g=dh, q=dz)
        return u, grad_h, grad_w, None, None, None, None, None, None

    @staticmethod
    def jvp(ctx, tangent_dh, tangent_h, tangent_w, *_):
        # The letters are those of the module's docstring; a dot marks a tangent. The tangent of q_t = f'(h_t) a_t is
        # q̇_t = c_t + r_t, where c_t = f''(h_t) ḣ_t a_t is due to h_t, and r_t = f'(h_t) ȧ_t is due to a_t:
        # ȧ_t = ġ_t + Ẇᵀ q_t⁺ + Wᵀ (c_t⁺ + r_t⁺). So r is rnn_backward of ġ_t + Ẇᵀ q_t⁺ + Wᵀ c_t⁺.
        g, h, w_hh, *layout, q = ctx.saved_tensors
        recurrence = Recurrence(w_hh, Steps(*layout), ctx.options)
        start = stand_in(None, w_hh, ctx.start_shape)
        c = None
        if tangent_h is not None:
            c = recurrence.curvature_term(h, tangent_h, g + recurrence.product_with_following(q, start))
        source = add(
            tangent_dh,
            None if tangent_w is None else recurrence.product_with_following(q, start, tangent_w),
            None if c is None else recurrence.product_with_following(c, start),
        )
        r, r0 = rnn_backward(torch.zeros_like(h) if source is None else source, h, w_hh, start, *layout, *ctx.options)
        tangent_dh0 = add(
            r0,
            None if c is None else recurrence.product_into_start(c, start),
            None if tangent_w is None else recurrence.product_into_start(q, start, tangent_w),
        )
        return add(r, c), tangent_dh0

    @staticmethod
    def vmap(info, in_dims, *inputs):
        roles = (Role.ROWS, Role.ROWS, Role.WEIGHTS, Role.STATE, Role.LENGTHS, Role.BATCH_SIZES)
        return batch_layer(rnn_backward, roles, info, in_dims, inputs)


class RnnTangent(Operator):
    """p like h, u0 (D, N, H) -> u like h: the change of h when z changes by p and h0 by u0, to first order.

    Engine `torch` computes it on behalf of every engine, since it is needed only in forward mode and for higher derivatives."""

    autocast = True

    @staticmethod
    def check(p, h, w_hh, u0, lengths, batch_sizes, nonlinearity, precision, engine):
        check_layer("h", h, w_hh, "u0", u0, lengths, batch_sizes, nonlinearity, precision, engine)
        require_alike(h, "h", p=p)
        require_shape(p, "p", *h.shape)

    @staticmethod
    def compute(p, h, w_hh, u0, lengths, batch_sizes, nonlinearity, precision, engine):
        select(engine, "rnn", h.device, h.dtype)  # raises if the engine that was asked for refuses the call
        sizes = read_batch_sizes(batch_sizes, h, u0)
        options = RnnOptions(widened(lengths), sizes, nonlinearity, resolve_precision(precision, h))
        return load("torch").rnn_tangent(p, h, w_hh, u0, options)

    @staticmethod
    def fake(p, h, w_hh, u0, lengths, batch_sizes, nonlinearity, precision, engine):
        return empty_rows_like(h)

    @staticmethod
    def setup_context(ctx, inputs, output):
        p, h, w_hh, u0, lengths, batch_sizes, *options = inputs
        ctx.options, ctx.start_shape = Options(*options), u0.shape
        _, need_h, need_w = ctx.needs_input_grad[:3]
        need_curvature = need_h and ctx.options.has_curvature
        need_u = need_curvature or need_w
        save_needed(
            ctx,
            (p, need_curvature),
            (h, ctx.options.slope_depends_on_h),
            (w_hh, True),
            (u0, need_u),
            (lengths, True),
            (batch_sizes, True),
            (output, need_u),
        )

    @staticmethod
    def backward(ctx, g):
        p, h, w_hh, u0, *layout, u = ctx.saved_tensors
        h, u0 = stand_in(h, w_hh, g.shape), stand_in(u0, w_hh, ctx.start_shape)
        q, q0 = rnn_backward(g, h, w_hh, u0, *layout, *ctx.options)
        recurrence = Recurrence(w_hh, Steps(*layout), ctx.options)
        grad_h, grad_w = _gradients_of_pairing(ctx, recurrence, h, p=p, u=u, u0=u0, g=g, q=q)
        return q, grad_h, grad_w, q0, None, None, None, None, None

    @staticmethod
    def jvp(ctx, tangent_p, tangent_h, tangent_w, tangent_u0, *_):
        # The tangent of u_t = f'(h_t) s_t is u̇_t = c_t + r_t, where c_t = f''(h_t) ḣ_t s_t is due to h_t, and r_t = f'(h_t) ṡ_t
        # is due to s_t: ṡ_t = ṗ_t + Ẇ u_t⁻ + W (c_t⁻ + r_t⁻). So r is rnn_tangent of ṗ_t + Ẇ u_t⁻ + W c_t⁻.
        p, h, w_hh, u0, *layout, u = ctx.saved_tensors
        recurrence = Recurrence(w_hh, Steps(*layout), ctx.options)
        c = None
        if tangent_h is not None:
            c = recurrence.curvature_term(h, tangent_h, p + recurrence.product_with_previous(u, u0))
        source = add(
            tangent_p,
            None if tangent_w is None else recurrence.product_with_previous(u, u0, tangent_w),
            None if c is None else recurrence.product_with_previous(c, torch.zeros_like(u0)),
        )
        start = torch.zeros_like(u0) if tangent_u0 is None else tangent_u0
        return add(rnn_tangent(torch.zeros_like(h) if source is None else source, h, w_hh, start, *layout, *ctx.options), c)

    @staticmethod
    def vmap(info, in_dims, *inputs):
        roles = (Role.ROWS, Role.ROWS, Role.WEIGHTS, Role.STATE, Role.LENGTHS, Role.BATCH_SIZES)
        return batch_layer(rnn_tangent, roles, info, in_dims, inputs)


rnn_forward = operator(f"rnn_forward(Tensor z, Tensor w_hh, Tensor h0, {_OPTIONS}) -> Tensor", RnnForward)
rnn_backward = operator(f"rnn_backward(Tensor dh, Tensor h, Tensor w_hh, Tensor h0, {_OPTIONS}) -> (Tensor, Tensor)", RnnBackward)
rnn_tangent = operator(f"rnn_tangent(Tensor p, Tensor h, Tensor w_hh, Tensor u0, {_OPTIONS}) -> Tensor", RnnTangent)
