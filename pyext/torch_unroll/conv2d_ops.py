"""The operators of two-dimensional convolution: fprop, dgrad (gradient of the input), wgrad (of the weight).

Convolution is bilinear, so the derivative of each of the three is again one of the three: the ops below name each other, which
gives gradients of every order.
"""

from __future__ import annotations

from torch import Tensor

from torch_unroll.engines import resolve_precision, select
from torch_unroll.registration import Operator, move_batch, operator, save
from torch_unroll.shapes import convolved, output_memory_format

_GEOMETRY = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, str precision, str engine"


def _fold_batch(x: Tensor, dim: int, size: int) -> Tensor:
    """(B, N, ...) -> (B·N, ...): the batch of a vmap joins the batch of the op."""
    return x.movedim(dim, 0).flatten(0, 1)


def _into_channels(x: Tensor, dim: int | None, size: int) -> Tensor:
    """(B, N, C, ...) -> (N, B·C, ...): the batch of a vmap becomes groups."""
    moved = move_batch(x, dim, size, to=1)
    assert moved is not None
    return moved.flatten(1, 2)


def _into_filters(w: Tensor, dim: int | None, size: int) -> Tensor:
    """(B, K, ...) -> (B·K, ...)."""
    moved = move_batch(w, dim, size)
    assert moved is not None
    return moved.flatten(0, 1)


def _sum(*terms: Tensor | None) -> Tensor | None:
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


class Conv2dFprop(Operator):
    """x (N, C, H, W), w (K, C/groups, R, S), bias (K) -> y (N, K, P, Q). `padding` is top, bottom, left, right."""

    autocast = True

    @staticmethod
    def compute(x, w, bias, stride, padding, dilation, groups, precision, engine):
        chosen = select(engine, "conv2d", x.device, x.dtype)
        return chosen.conv2d_fprop(x, w, bias, stride, padding, dilation, groups, resolve_precision(precision, x))

    @staticmethod
    def fake(x, w, bias, stride, padding, dilation, groups, precision, engine):
        P = convolved(x.shape[2], w.shape[2], stride[0], padding[0] + padding[1], dilation[0])
        Q = convolved(x.shape[3], w.shape[3], stride[1], padding[2] + padding[3], dilation[1])
        return x.new_empty(x.shape[0], w.shape[0], P, Q).to(memory_format=output_memory_format(x, w))

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, w, bias, *ctx.geometry = inputs
        ctx.has_bias = bias is not None
        save(ctx, x, w)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        need_x, need_w, need_bias = ctx.needs_input_grad[:3]
        dx = conv2d_dgrad(dy, w, x.shape[2:], *ctx.geometry) if need_x else None
        dw = conv2d_wgrad(dy, x, w.shape[2:], *ctx.geometry) if need_w else None
        return dx, dw, dy.sum((0, 2, 3)) if need_bias else None, *(None for _ in ctx.geometry)

    @staticmethod
    def jvp(ctx, dx, dw, dbias, *_):
        x, w = ctx.saved_tensors
        return _sum(
            None if dx is None else conv2d_fprop(dx, w, None, *ctx.geometry),
            None if dw is None else conv2d_fprop(x, dw, None, *ctx.geometry),
            None if dbias is None else dbias.view(1, -1, 1, 1),
        )

    @staticmethod
    def vmap(info, in_dims, x, w, bias, stride, padding, dilation, groups, precision, engine):
        B, (x_dim, w_dim, bias_dim, *_) = info.batch_size, in_dims
        if w_dim is None and bias_dim is None:
            y = conv2d_fprop(_fold_batch(x, x_dim, B), w, bias, stride, padding, dilation, groups, precision, engine)
            return y.unflatten(0, (B, -1)), 0
        x, w = _into_channels(x, x_dim, B), _into_filters(w, w_dim, B)
        bias = None if bias is None else _into_filters(bias, bias_dim, B)
        y = conv2d_fprop(x, w, bias, stride, padding, dilation, B * groups, precision, engine)
        return y.unflatten(1, (B, -1)), 1


class Conv2dDgrad(Operator):
    """dy (N, K, P, Q), w (K, C/groups, R, S) -> dx (N, C, H, W); `x_size` is (H, W)."""

    autocast = True

    @staticmethod
    def compute(dy, w, x_size, stride, padding, dilation, groups, precision, engine):
        chosen = select(engine, "conv2d", dy.device, dy.dtype)
        return chosen.conv2d_dgrad(dy, w, x_size, stride, padding, dilation, groups, resolve_precision(precision, dy))

    @staticmethod
    def fake(dy, w, x_size, stride, padding, dilation, groups, precision, engine):
        return dy.new_empty(dy.shape[0], w.shape[1] * groups, *x_size).to(memory_format=output_memory_format(dy, w))

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, w, ctx.x_size, *ctx.geometry = inputs
        save(ctx, dy, w)

    @staticmethod
    def backward(ctx, ddx):
        dy, w = ctx.saved_tensors
        need_dy, need_w = ctx.needs_input_grad[:2]
        ddy = conv2d_fprop(ddx, w, None, *ctx.geometry) if need_dy else None
        dw = conv2d_wgrad(dy, ddx, w.shape[2:], *ctx.geometry) if need_w else None
        return ddy, dw, None, *(None for _ in ctx.geometry)

    @staticmethod
    def jvp(ctx, ddy, dw, *_):
        dy, w = ctx.saved_tensors
        return _sum(
            None if ddy is None else conv2d_dgrad(ddy, w, ctx.x_size, *ctx.geometry),
            None if dw is None else conv2d_dgrad(dy, dw, ctx.x_size, *ctx.geometry),
        )

    @staticmethod
    def vmap(info, in_dims, dy, w, x_size, stride, padding, dilation, groups, precision, engine):
        B, (dy_dim, w_dim, *_) = info.batch_size, in_dims
        if w_dim is None:
            dx = conv2d_dgrad(_fold_batch(dy, dy_dim, B), w, x_size, stride, padding, dilation, groups, precision, engine)
            return dx.unflatten(0, (B, -1)), 0
        dy, w = _into_channels(dy, dy_dim, B), _into_filters(w, w_dim, B)
        dx = conv2d_dgrad(dy, w, x_size, stride, padding, dilation, B * groups, precision, engine)
        return dx.unflatten(1, (B, -1)), 1


class Conv2dWgrad(Operator):
    """dy (N, K, P, Q), x (N, C, H, W) -> dw (K, C/groups, R, S); `w_size` is (R, S)."""

    autocast = True

    @staticmethod
    def compute(dy, x, w_size, stride, padding, dilation, groups, precision, engine):
        chosen = select(engine, "conv2d", dy.device, dy.dtype)
        return chosen.conv2d_wgrad(dy, x, w_size, stride, padding, dilation, groups, resolve_precision(precision, x))

    @staticmethod
    def fake(dy, x, w_size, stride, padding, dilation, groups, precision, engine):
        return x.new_empty(dy.shape[1], x.shape[1] // groups, *w_size).to(memory_format=output_memory_format(dy, x))

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, x, ctx.w_size, *ctx.geometry = inputs
        save(ctx, dy, x)

    @staticmethod
    def backward(ctx, ddw):
        dy, x = ctx.saved_tensors
        need_dy, need_x = ctx.needs_input_grad[:2]
        ddy = conv2d_fprop(x, ddw, None, *ctx.geometry) if need_dy else None
        dx = conv2d_dgrad(dy, ddw, x.shape[2:], *ctx.geometry) if need_x else None
        return ddy, dx, None, *(None for _ in ctx.geometry)

    @staticmethod
    def jvp(ctx, ddy, dx, *_):
        dy, x = ctx.saved_tensors
        return _sum(
            None if ddy is None else conv2d_wgrad(ddy, x, ctx.w_size, *ctx.geometry),
            None if dx is None else conv2d_wgrad(dy, dx, ctx.w_size, *ctx.geometry),
        )

    @staticmethod
    def vmap(info, in_dims, dy, x, w_size, stride, padding, dilation, groups, precision, engine):
        B, (dy_dim, x_dim, *_) = info.batch_size, in_dims
        dy, x = _into_channels(dy, dy_dim, B), _into_channels(x, x_dim, B)
        dw = conv2d_wgrad(dy, x, w_size, stride, padding, dilation, B * groups, precision, engine)
        return dw.unflatten(0, (B, -1)), 0


conv2d_fprop = operator(f"conv2d_fprop(Tensor x, Tensor w, Tensor? bias, {_GEOMETRY}) -> Tensor", Conv2dFprop)
conv2d_dgrad = operator(f"conv2d_dgrad(Tensor dy, Tensor w, SymInt[] x_size, {_GEOMETRY}) -> Tensor", Conv2dDgrad)
conv2d_wgrad = operator(f"conv2d_wgrad(Tensor dy, Tensor x, SymInt[] w_size, {_GEOMETRY}) -> Tensor", Conv2dWgrad)
