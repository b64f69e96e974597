"""The operators of recurrence over a sequence: forward, backward (BPTT) and tangent.

Backward is linear in dh, tangent is linear in (p, u0), and each is the other's transpose; so the derivative of each of the
three is made of them and of matrix products, which gives derivatives of every order in both directions.

With q = backward(g), u = tangent(p, u0), and for every step t, t⁻ the one walked before it and t⁺ the one after it:

    s_t = p_t + W u_t⁻      u_t = f'(h_t) s_t
    a_t = g_t + Wᵀ q_t⁺     q_t = f'(h_t) a_t
    Σ g_t u_t = Σ q_t p_t + dh0 u0,   of which ∂/∂h_t = f''(h_t) s_t a_t   and   ∂/∂W = Σ q_t u_t⁻ᵀ
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from torch_unroll.checks import (
    check_lengths,
    require_alike,
    require_one_of,
    require_rank,
    require_shape,
    require_strided,
    widened,
)
from torch_unroll.engines import limits, load, resolve_precision, select
from torch_unroll.engines.interface import NONLINEARITIES, PRECISIONS, RnnOptions
from torch_unroll.engines.reference.rnn import curvature
from torch_unroll.ops.linear import add, linear, outer
from torch_unroll.ops.registration import Operator, operator
from torch_unroll.ops.rnn_steps import Steps
from torch_unroll.ops.rnn_vmap import vmap_layer
from torch_unroll.ops.saving import save_needed, stand_in
from torch_unroll.shapes import empty_rows_like, require

_OPTIONS = "Tensor? lengths, Tensor? batch_sizes, str nonlinearity, str precision, str engine"


class _Options(NamedTuple):
    """What the three ops take after their tensors."""

    nonlinearity: str
    precision: str
    engine: str

    @property
    def is_curved(self) -> bool:
        """Whether f' depends on h."""
        return self.nonlinearity != "identity"

    @property
    def bends(self) -> bool:
        """Whether f' has a derivative by h that is not 0 everywhere."""
        return self.nonlinearity in ("tanh", "sigmoid")


def _sizes(batch_sizes: Tensor | None, rows: Tensor, start: Tensor) -> tuple[int, ...] | None:
    """batch_sizes as numbers, checked: they address memory."""
    if batch_sizes is None:
        return None
    sizes = tuple(batch_sizes.tolist())
    require(
        len(sizes) > 0 and sizes[0] == start.shape[1], f"batch_sizes: expected {start.shape[1]} first, as h0 has, got {sizes[:1]}"
    )
    least = min(sizes[0], 1)  # without samples, no step has one
    ordered = sizes[-1] >= least and all(earlier >= later for earlier, later in pairwise(sizes))
    require(ordered, "batch_sizes: expected numbers above 0 that do not grow")
    require(
        sum(sizes) == rows.shape[0], f"batch_sizes: expected a sum of {rows.shape[0]}, the rows of the input, got {sum(sizes)}"
    )
    return sizes


def _check_layer(
    rows_name: str,
    rows: Tensor,
    w_hh: Tensor,
    start_name: str,
    start: Tensor,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    nonlinearity: str,
    precision: str,
    engine: str,
) -> None:
    """One layer's tensors; what `batch_sizes` holds is checked where it is read."""
    require_alike(rows, rows_name, **{"w_hh": w_hh, start_name: start})
    require_rank(w_hh, "w_hh", "DHH")
    require_rank(start, start_name, "DNH")
    (D, N, H), packed = start.shape, batch_sizes is not None
    require(D in (1, 2), f"{start_name}: expected 1 or 2 directions, got {D}")
    require_shape(w_hh, "w_hh", D, H, H)
    if batch_sizes is None:
        require_rank(rows, rows_name, "TNX")
        require_shape(rows, rows_name, rows.shape[0], N, D * H)
    else:
        require_rank(rows, rows_name, "TX")
        require_shape(rows, rows_name, rows.shape[0], D * H)
        check_batch_sizes(batch_sizes)
    limits.require(engine, limits.rnn(rows.shape[:-1], rows.shape[-1], N, H))
    require(lengths is None or not packed, "lengths: expected None beside batch_sizes")
    check_lengths(lengths, N, rows, rows_name)
    require_one_of(nonlinearity, "nonlinearity", NONLINEARITIES)
    require_one_of(precision, "precision", PRECISIONS)


def check_batch_sizes(batch_sizes: Tensor) -> None:
    """What can be known before their numbers are read."""
    require_strided(batch_sizes, "batch_sizes")
    require(
        batch_sizes.dim() == 1 and batch_sizes.dtype == torch.int64 and batch_sizes.device.type == "cpu",
        f"batch_sizes: expected shape (T,), int64, on the CPU, got {tuple(batch_sizes.shape)}, {batch_sizes.dtype},"
        f" on {batch_sizes.device}",
    )
    require(batch_sizes.shape[0] > 0, "batch_sizes: expected a sequence of at least one step, got none")


def part(sequence: Tensor, direction: int, H: int) -> Tensor:
    """What one direction holds; not sliced where it is all: the vmap of `is_grads_batched` has no rule for such a slice."""
    return sequence if sequence.shape[-1] == H else sequence[..., direction * H : (direction + 1) * H]


def _by_direction(start: Tensor, function: Callable[[int], Tensor], dim: int = -1) -> Tensor:
    """One tensor per direction, side by side."""
    parts = [function(direction) for direction in range(start.shape[0])]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _through(
    shift: Callable[[Tensor, Tensor, int], Tensor],
    sequence: Tensor,
    start: Tensor,
    w: Tensor,
    options: _Options,
    transposed: bool,
) -> Tensor:
    """For each step the product of W_hh, or its transpose, with its neighbour in `sequence`."""
    H = w.shape[-1]

    def direction(d: int) -> Tensor:
        matrix = w[d].mT if transposed else w[d]
        return linear(shift(part(sequence, d, H), start[d], d), matrix, None, options.precision, options.engine)

    return _by_direction(start, direction)


def _weight_gradient(q: Tensor, u: Tensor, u0: Tensor, steps: Steps, options: _Options) -> Tensor:
    """Σ q_t u_t⁻ᵀ, (D, H, H)."""
    H = u0.shape[-1]
    return torch.stack(
        [
            outer(part(q, d, H), steps.previous(part(u, d, H), u0[d], d), options.precision, options.engine)
            for d in range(u0.shape[0])
        ]
    )


def _bend(h: Tensor, s: Tensor, a: Tensor, steps: Steps, options: _Options) -> Tensor | None:
    """f''(h) s a, 0 past a sample's length; None where f' is constant."""
    bend = curvature(options.nonlinearity, h)
    if bend is None:
        return None
    product, running = bend * s * a, steps.running(h)
    return product if running is None else torch.where(running, product, torch.zeros_like(product))


class RnnForward(Operator):
    """z (T, N, D·H) or packed (total, D·H), w_hh (D, H, H), h0 (D, N, H) -> h like z; 0 past a sample's length."""

    autocast = True

    @staticmethod
    def check(z, w_hh, h0, lengths, batch_sizes, nonlinearity, precision, engine):
        _check_layer("z", z, w_hh, "h0", h0, lengths, batch_sizes, nonlinearity, precision, engine)

    @staticmethod
    def compute(z, w_hh, h0, lengths, batch_sizes, nonlinearity, precision, engine):
        chosen, sizes = select(engine, "rnn", z.device, z.dtype), _sizes(batch_sizes, z, h0)
        options = RnnOptions(widened(lengths), sizes, nonlinearity, resolve_precision(precision, z))
        return chosen.rnn_forward(z, w_hh, h0, options)

    @staticmethod
    def fake(z, w_hh, h0, lengths, batch_sizes, nonlinearity, precision, engine):
        return empty_rows_like(z)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, w_hh, h0, lengths, batch_sizes, *options = inputs
        ctx.options, ctx.start = _Options(*options), h0.shape
        need_w = ctx.needs_input_grad[1]
        need_h = need_w or ctx.options.is_curved
        save_needed(ctx, (output, need_h), (w_hh, True), (h0, need_w), (lengths, True), (batch_sizes, True))

    @staticmethod
    def backward(ctx, dh):
        h, w_hh, h0, *layout = ctx.saved_tensors
        h, h0 = stand_in(h, w_hh, dh.shape), stand_in(h0, w_hh, ctx.start)
        dz, dh0 = rnn_backward(dh, h, w_hh, h0, *layout, *ctx.options)
        dw = _weight_gradient(dz, h, h0, Steps(*layout), ctx.options) if ctx.needs_input_grad[1] else None
        return dz, dw, dh0, None, None, None, None, None

    @staticmethod
    def jvp(ctx, dz, dw, dh0, *_):
        h, w_hh, h0, *layout = ctx.saved_tensors
        moved = None if dw is None else _through(Steps(*layout).previous, h, h0, dw, ctx.options, transposed=False)
        p, u0 = add(dz, moved), torch.zeros_like(h0) if dh0 is None else dh0
        return rnn_tangent(torch.zeros_like(h) if p is None else p, h, w_hh, u0, *layout, *ctx.options)

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return vmap_layer(rnn_forward, "rwslb", info, in_dims, inputs)


class RnnBackward(Operator):
    """BPTT: dh like h -> dz like h, 0 past a sample's length, and dh0 like h0, of which only the shape counts."""

    autocast = True

    @staticmethod
    def check(dh, h, w_hh, h0, lengths, batch_sizes, nonlinearity, precision, engine):
        _check_layer("h", h, w_hh, "h0", h0, lengths, batch_sizes, nonlinearity, precision, engine)
        require_alike(h, "h", dh=dh)
        require_shape(dh, "dh", *h.shape)

    @staticmethod
    def compute(dh, h, w_hh, h0, lengths, batch_sizes, nonlinearity, precision, engine):
        chosen, sizes = select(engine, "rnn", h.device, h.dtype), _sizes(batch_sizes, h, h0)
        options = RnnOptions(widened(lengths), sizes, nonlinearity, resolve_precision(precision, h))
        return chosen.rnn_backward(dh, h, w_hh, h0, options)

    @staticmethod
    def fake(dh, h, w_hh, h0, lengths, batch_sizes, nonlinearity, precision, engine):
        return empty_rows_like(h), torch.empty_like(h0, memory_format=torch.contiguous_format)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dh, h, w_hh, h0, lengths, batch_sizes, *options = inputs
        ctx.options, ctx.start = _Options(*options), h0.shape
        _, need_h, need_w = ctx.needs_input_grad[:3]
        bends = need_h and ctx.options.bends
        save_needed(
            ctx,
            (dh, bends),
            (h, ctx.options.is_curved),
            (w_hh, True),
            (lengths, True),
            (batch_sizes, True),
            (output[0], bends or need_w),
        )

    @staticmethod
    def backward(ctx, p, u0):
        dh, h, w_hh, *layout, dz = ctx.saved_tensors
        h, h0 = stand_in(h, w_hh, p.shape), stand_in(None, w_hh, ctx.start)
        steps, (_, need_h, need_w) = Steps(*layout), ctx.needs_input_grad[:3]
        u = rnn_tangent(p, h, w_hh, u0, *layout, *ctx.options)
        grad_h = grad_w = None
        if need_h and ctx.options.bends:
            s = p + _through(steps.previous, u, u0, w_hh, ctx.options, transposed=False)
            a = dh + _through(steps.following, dz, h0, w_hh, ctx.options, transposed=True)
            grad_h = _bend(h, s, a, steps, ctx.options)
        if need_w:
            grad_w = _weight_gradient(dz, u, u0, steps, ctx.options)
        return u, grad_h, grad_w, None, None, None, None, None, None

    @staticmethod
    def jvp(ctx, ddh, moved_h, moved_w, *_):
        dh, h, w_hh, *layout, dz = ctx.saved_tensors
        steps, options, h0 = Steps(*layout), ctx.options, stand_in(None, w_hh, ctx.start)
        H = h0.shape[-1]

        def arriving(sequence: Tensor, w: Tensor) -> Tensor:  # Wᵀ of the first step walked: what reaches h0
            return _by_direction(
                h0,
                lambda d: linear(steps.first(part(sequence, d, H), h0[d], d), w[d].mT, None, *options[1:]).unsqueeze(0),
                dim=0,
            )

        # dz_t moves by bend_t directly and by q_t through the recurrence.
        bend = None
        if moved_h is not None:
            bend = _bend(h, moved_h, dh + _through(steps.following, dz, h0, w_hh, options, transposed=True), steps, options)
        g = add(
            ddh,
            None if moved_w is None else _through(steps.following, dz, h0, moved_w, options, transposed=True),
            None if bend is None else _through(steps.following, bend, h0, w_hh, options, transposed=True),
        )
        q, q0 = rnn_backward(torch.zeros_like(h) if g is None else g, h, w_hh, h0, *layout, *options)
        moved_start = add(q0, None if bend is None else arriving(bend, w_hh), None if moved_w is None else arriving(dz, moved_w))
        return add(q, bend), moved_start

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return vmap_layer(rnn_backward, "rrwslb", info, in_dims, inputs)


class RnnTangent(Operator):
    """p like h, u0 (D, N, H) -> u like h: how h moves where z moves by p and h0 by u0.

    The formulas of engine `torch` compute it for every engine: it serves forward-mode and second derivatives only."""

    autocast = True

    @staticmethod
    def check(p, h, w_hh, u0, lengths, batch_sizes, nonlinearity, precision, engine):
        _check_layer("h", h, w_hh, "u0", u0, lengths, batch_sizes, nonlinearity, precision, engine)
        require_alike(h, "h", p=p)
        require_shape(p, "p", *h.shape)

    @staticmethod
    def compute(p, h, w_hh, u0, lengths, batch_sizes, nonlinearity, precision, engine):
        select(engine, "rnn", h.device, h.dtype)  # refuses for the engine that asked
        sizes = _sizes(batch_sizes, h, u0)
        options = RnnOptions(widened(lengths), sizes, nonlinearity, resolve_precision(precision, h))
        return load("torch").rnn_tangent(p, h, w_hh, u0, options)

    @staticmethod
    def fake(p, h, w_hh, u0, lengths, batch_sizes, nonlinearity, precision, engine):
        return empty_rows_like(h)

    @staticmethod
    def setup_context(ctx, inputs, output):
        p, h, w_hh, u0, lengths, batch_sizes, *options = inputs
        ctx.options, ctx.start = _Options(*options), u0.shape
        _, need_h, need_w = ctx.needs_input_grad[:3]
        bends = need_h and ctx.options.bends
        walks = bends or need_w
        save_needed(
            ctx,
            (p, bends),
            (h, ctx.options.is_curved),
            (w_hh, True),
            (u0, walks),
            (lengths, True),
            (batch_sizes, True),
            (output, walks),
        )

    @staticmethod
    def backward(ctx, g):
        p, h, w_hh, u0, *layout, u = ctx.saved_tensors
        h, u0 = stand_in(h, w_hh, g.shape), stand_in(u0, w_hh, ctx.start)
        steps, (_, need_h, need_w) = Steps(*layout), ctx.needs_input_grad[:3]
        q, q0 = rnn_backward(g, h, w_hh, u0, *layout, *ctx.options)
        grad_h = grad_w = None
        if need_h and ctx.options.bends:
            s = p + _through(steps.previous, u, u0, w_hh, ctx.options, transposed=False)
            a = g + _through(steps.following, q, u0, w_hh, ctx.options, transposed=True)
            grad_h = _bend(h, s, a, steps, ctx.options)
        if need_w:
            grad_w = _weight_gradient(q, u, u0, steps, ctx.options)
        return q, grad_h, grad_w, q0, None, None, None, None, None

    @staticmethod
    def jvp(ctx, moved_p, moved_h, moved_w, moved_u0, *_):
        p, h, w_hh, u0, *layout, u = ctx.saved_tensors
        steps, options = Steps(*layout), ctx.options
        bend = None
        if moved_h is not None:
            bend = _bend(h, moved_h, p + _through(steps.previous, u, u0, w_hh, options, transposed=False), steps, options)
        moved = add(
            moved_p,
            None if moved_w is None else _through(steps.previous, u, u0, moved_w, options, transposed=False),
            None if bend is None else _through(steps.previous, bend, torch.zeros_like(u0), w_hh, options, transposed=False),
        )
        start = torch.zeros_like(u0) if moved_u0 is None else moved_u0
        return add(rnn_tangent(torch.zeros_like(h) if moved is None else moved, h, w_hh, start, *layout, *options), bend)

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return vmap_layer(rnn_tangent, "rrwslb", info, in_dims, inputs)


rnn_forward = operator(f"rnn_forward(Tensor z, Tensor w_hh, Tensor h0, {_OPTIONS}) -> Tensor", RnnForward)
rnn_backward = operator(f"rnn_backward(Tensor dh, Tensor h, Tensor w_hh, Tensor h0, {_OPTIONS}) -> (Tensor, Tensor)", RnnBackward)
rnn_tangent = operator(f"rnn_tangent(Tensor p, Tensor h, Tensor w_hh, Tensor u0, {_OPTIONS}) -> Tensor", RnnTangent)
