"""The operators of two-dimensional convolution: fprop, dgrad (the gradient of the input) and wgrad (that of the weight).

Convolution is bilinear, so the derivative of each of the three operators is again one of the three: they call each other, which
yields gradients of every order. A call saves only those of its two factors that a wanted gradient needs; in forward mode and
inside torch.func, it saves both factors. It saves the tensors themselves, not packed copies.

Images are computed in the layout that torch's convolution gives them: channels_last if an image or the filter is channels_last.
An operator that is called on its own (`channels_last` None) decides this by its own tensors; the operators that compute the
gradients of that call, of every order, are passed the decision. The gradient of a filter has the filter's strides, if those are
dense, so that it can be accumulated and reduced without a copy.

Tensor cores need channels packed innermost, and engines pack within each call: a training step on an NCHW image packs x in fprop
and in wgrad, and dy in dgrad and in wgrad. Packing each of them once would save two of these four launches, but would keep a copy
of x until backward, in addition to the x that, for example, a preceding ReLU keeps anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_unroll.checks import MOST, is_symbolic, require_alike, require_numbers, require_one_of, require_rank, require_shape
from torch_unroll.engines import resolve_precision, select
from torch_unroll.engines.interface import PRECISIONS, Conv2dGeometry
from torch_unroll.ops.batching import fold_batch, move_batch
from torch_unroll.ops.registration import Operator, computation, operator
from torch_unroll.ops.saving import save_needed
from torch_unroll.ops.sums import add
from torch_unroll.plain import only_computes
from torch_unroll.shapes import convolved, convolved_size, either, is_channels_last, is_dense, require, require_each

_GEOMETRY = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, str precision, str engine, bool? channels_last"


# ---- layouts ----------------------------------------------------------------------------------------------------------------


def _is_channels_last(channels_last: bool | None, *tensors: Tensor) -> bool:
    """Whether the images that a call computes are channels_last; None stands for torch's rule, applied to these tensors."""
    return any(is_channels_last(tensor) for tensor in tensors) if channels_last is None else channels_last


def _memory_format(channels_last: bool | None, *tensors: Tensor) -> torch.memory_format:
    return torch.channels_last if _is_channels_last(channels_last, *tensors) else torch.contiguous_format


def _filter_stride(size: Sequence[int], w_stride: Sequence[int] | None) -> Sequence[int] | None:
    """The strides of dw: those of w if w is dense, otherwise None for a contiguous dw."""
    return w_stride if w_stride is not None and is_dense(size, w_stride) else None


# ---- saved tensors ----------------------------------------------------------------------------------------------------------


def _save_factors(ctx: Any, first: Tensor, second: Tensor) -> None:
    """Saves the first factor of a call if the second one needs a gradient, and the second if the first does: the gradient of
    each factor is computed from the other one."""
    need_first, need_second = ctx.needs_input_grad[:2]
    save_needed(ctx, (first, need_second), (second, need_first))


# ---- batches of torch.func.vmap ---------------------------------------------------------------------------------------------


def _into_groups(tensor: Tensor, dim: int, axis: int, groups: int) -> Tensor:
    """(B, ..., groups · c, ...) -> (..., groups · B · c, ...): the batch widens each group of channels."""
    return tensor.movedim(dim, axis).unflatten(axis + 1, (groups, -1)).movedim(axis, axis + 1).flatten(axis, axis + 2)


def _out_of_groups(tensor: Tensor, size: int, axis: int, groups: int) -> Tensor:
    """(..., groups · B · c, ...) -> (B, ..., groups · c, ...)."""
    return tensor.unflatten(axis, (groups, size, -1)).movedim(axis + 1, 0).flatten(axis + 1, axis + 2)


# ---- checks -----------------------------------------------------------------------------------------------------------------


def _check_geometry(stride, padding, dilation, groups, precision):
    require_numbers(stride, "stride", 2, 1)
    require_numbers(padding, "padding", 4, -MOST)  # a transposed convolution may remove rows below and columns on the right
    message = f"padding: expected 0 or more above and to the left, got {tuple(padding)}"
    require_each((number >= 0 for number in (padding[0], padding[2])), message)
    require_numbers(dilation, "dilation", 2, 1)
    require(groups > 0, f"groups: expected a number above 0, got {groups}")
    require_one_of(precision, "precision", PRECISIONS)


def _check_channels(channels, w_channels, outputs, groups):
    """Checks the numbers of channels of an image, a filter and an output."""
    require(outputs % groups == 0, f"groups: expected a divisor of {outputs} output channels, got {groups}")
    require(channels == w_channels * groups, f"x: expected {w_channels} channels for {groups} groups each, got {channels}")


def _check_output(size, x_size, w_size, stride, padding, dilation):
    """Checks that `size`, the (P, Q) of dy, is what a convolution of these extents yields."""
    require_numbers(w_size, "w", 2, 1)
    for i, extent in enumerate(size):
        expected = convolved(x_size[i], w_size[i], stride[i], padding[2 * i] + padding[2 * i + 1], dilation[i])
        fits = is_symbolic(extent, expected) or extent == expected
        require(fits, f"dy: expected extents that the convolution yields, {expected}, got {extent}")


# ---- operators --------------------------------------------------------------------------------------------------------------


class Conv2dFprop(Operator):
    """x (N, C, H, W), w (K, C/groups, R, S), bias (K) -> y (N, K, P, Q). `padding` is (top, bottom, left, right)."""

    autocast = True
    has_history = True

    @staticmethod
    def check(x, w, bias, stride, padding, dilation, groups, precision, engine, channels_last):
        require_alike(x, "x", w=w, bias=bias)
        require_rank(x, "x", "NCHW")
        require_rank(w, "w", "KCRS")
        _check_geometry(stride, padding, dilation, groups, precision)
        _check_channels(x.shape[1], w.shape[1], w.shape[0], groups)
        require_shape(bias, "bias", w.shape[0])
        require_numbers(w.shape[2:], "w", 2, 1)
        for i in (0, 1):
            extent = convolved(x.shape[2 + i], w.shape[2 + i], stride[i], padding[2 * i] + padding[2 * i + 1], dilation[i])
            require(
                is_symbolic(extent) or extent <= MOST,
                f"padding: expected an output of extents that 64 bits hold, got one of {extent}",
            )
            message = f"w: expected a filter within the padded x, got {tuple(w.shape)} for {tuple(x.shape)}"
            require(extent >= 0, message)
            require(either(extent > 0, x.shape[2 + i] == 0), message)

    @staticmethod
    def compute(x, w, bias, stride, padding, dilation, groups, precision, engine, channels_last):
        chosen = select(engine, "conv2d", x.device, x.dtype)
        numbers, layout = resolve_precision(precision, x), _memory_format(channels_last, x, w)
        geometry = Conv2dGeometry(stride, padding, dilation, groups)
        return chosen.conv2d_fprop(x, w, bias, geometry, numbers, layout)

    @staticmethod
    def fake(x, w, bias, stride, padding, dilation, groups, precision, engine, channels_last):
        P, Q = convolved_size(x.shape[2:], w.shape[2:], stride, padding, dilation)
        size, layout = (x.shape[0], w.shape[0], P, Q), _memory_format(channels_last, x, w)
        return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, w, _, *geometry, channels_last = inputs
        ctx.x_size, ctx.w_size, ctx.w_stride = x.shape[2:], w.shape[2:], w.stride()
        ctx.geometry = (*geometry, _is_channels_last(channels_last, x, w))
        _save_factors(ctx, x, w)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        need_x, need_w, need_bias = ctx.needs_input_grad[:3]
        dx = conv2d_dgrad(dy, w, ctx.x_size, *ctx.geometry) if need_x else None
        if need_w and need_bias and only_computes((dy, x)):
            dw, db = conv2d_wgrad_bias(dy, x, ctx.w_size, ctx.w_stride, *ctx.geometry)
        else:
            dw = conv2d_wgrad(dy, x, ctx.w_size, ctx.w_stride, *ctx.geometry) if need_w else None
            db = dy.sum((0, 2, 3)) if need_bias else None
        return dx, dw, db, *(None for _ in ctx.geometry)

    @staticmethod
    def jvp(ctx, dx, dw, dbias, *_):
        x, w = ctx.saved_tensors
        return add(
            None if dx is None else conv2d_fprop(dx, w, None, *ctx.geometry),
            None if dw is None else conv2d_fprop(x, dw, None, *ctx.geometry),
            None if dbias is None else dbias.view(1, -1, 1, 1),
        )

    @staticmethod
    def vmap(info, in_dims, x, w, bias, stride, padding, dilation, groups, *rest):
        B, (x_dim, w_dim, bias_dim, *_), geometry = info.batch_size, in_dims, (stride, padding, dilation)
        if w_dim is None:
            y = conv2d_fprop(
                x if x_dim is None else fold_batch(x, x_dim, B), w, bias if bias_dim is None else None, *geometry, groups, *rest
            )
            y = y if x_dim is None else y.unflatten(0, (B, -1))
            return (y if bias_dim is None else y + bias.movedim(bias_dim, 0)[:, None, :, None, None]), 0
        biases = None if bias is None else move_batch(bias, bias_dim, B)
        if x_dim is None:
            bias = None if biases is None else _into_groups(biases, 0, 0, groups)
            y = conv2d_fprop(x, _into_groups(w, w_dim, 0, groups), bias, *geometry, groups, *rest)
            return _out_of_groups(y, B, 1, groups), 0
        x, w, bias = fold_batch(x, x_dim, B, into=1), fold_batch(w, w_dim, B), None if biases is None else biases.flatten()
        return conv2d_fprop(x, w, bias, *geometry, B * groups, *rest).unflatten(1, (B, -1)), 1


class Conv2dDgrad(Operator):
    """dy (N, K, P, Q), w (K, C/groups, R, S) -> dx (N, C, H, W); `x_size` is (H, W)."""

    autocast = True
    has_history = True

    @staticmethod
    def check(dy, w, x_size, stride, padding, dilation, groups, precision, engine, channels_last):
        require_alike(dy, "dy", w=w)
        require_rank(dy, "dy", "NKPQ")
        require_rank(w, "w", "KCRS")
        _check_geometry(stride, padding, dilation, groups, precision)
        require_numbers(x_size, "x_size", 2, 0)
        _check_channels(w.shape[1] * groups, w.shape[1], dy.shape[1], groups)
        require(dy.shape[1] == w.shape[0], f"dy: expected {w.shape[0]} channels like w, got {dy.shape[1]}")
        _check_output(dy.shape[2:], x_size, w.shape[2:], stride, padding, dilation)

    @staticmethod
    def compute(dy, w, x_size, stride, padding, dilation, groups, precision, engine, channels_last):
        chosen = select(engine, "conv2d", dy.device, dy.dtype)
        numbers, layout = resolve_precision(precision, dy), _memory_format(channels_last, dy, w)
        geometry = Conv2dGeometry(stride, padding, dilation, groups)
        return chosen.conv2d_dgrad(dy, w, x_size, geometry, numbers, layout)

    @staticmethod
    def fake(dy, w, x_size, stride, padding, dilation, groups, precision, engine, channels_last):
        size, layout = (dy.shape[0], w.shape[1] * groups, *x_size), _memory_format(channels_last, dy, w)
        return torch.empty(size, dtype=dy.dtype, device=dy.device, memory_format=layout)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, w, ctx.x_size, *geometry, channels_last = inputs
        ctx.w_size, ctx.w_stride = w.shape[2:], w.stride()
        ctx.geometry = (*geometry, _is_channels_last(channels_last, dy, w))
        _save_factors(ctx, dy, w)

    @staticmethod
    def backward(ctx, ddx):
        dy, w = ctx.saved_tensors
        need_dy, need_w = ctx.needs_input_grad[:2]
        ddy = conv2d_fprop(ddx, w, None, *ctx.geometry) if need_dy else None
        dw = conv2d_wgrad(dy, ddx, ctx.w_size, ctx.w_stride, *ctx.geometry) if need_w else None
        return ddy, dw, None, *(None for _ in ctx.geometry)

    @staticmethod
    def jvp(ctx, ddy, dw, *_):
        dy, w = ctx.saved_tensors
        return add(
            None if ddy is None else conv2d_dgrad(ddy, w, ctx.x_size, *ctx.geometry),
            None if dw is None else conv2d_dgrad(dy, dw, ctx.x_size, *ctx.geometry),
        )

    @staticmethod
    def vmap(info, in_dims, dy, w, x_size, stride, padding, dilation, groups, *rest):
        B, (dy_dim, w_dim, *_), geometry = info.batch_size, in_dims, (x_size, stride, padding, dilation)
        if w_dim is None:
            return conv2d_dgrad(fold_batch(dy, dy_dim, B), w, *geometry, groups, *rest).unflatten(0, (B, -1)), 0
        if dy_dim is None:
            dx = conv2d_dgrad(dy, fold_batch(w, w_dim, B, into=1), *geometry, groups, *rest)
            return _out_of_groups(dx, B, 1, groups), 0
        dy, w = fold_batch(dy, dy_dim, B, into=1), fold_batch(w, w_dim, B)
        return conv2d_dgrad(dy, w, *geometry, B * groups, *rest).unflatten(1, (B, -1)), 1


class Conv2dWgrad(Operator):
    """dy (N, K, P, Q), x (N, C, H, W) -> dw (K, C/groups, R, S). `w_size` is (R, S), and `w_stride` the strides of w or None; dw
    has the same strides if they are dense, and is contiguous otherwise."""

    autocast = True
    has_history = True

    @staticmethod
    def check(dy, x, w_size, w_stride, stride, padding, dilation, groups, precision, engine, channels_last):
        require_alike(x, "x", dy=dy)
        require_rank(dy, "dy", "NKPQ")
        require_rank(x, "x", "NCHW")
        _check_geometry(stride, padding, dilation, groups, precision)
        require(x.shape[1] % groups == 0, f"groups: expected a divisor of {x.shape[1]} channels, got {groups}")
        _check_channels(x.shape[1], x.shape[1] // groups, dy.shape[1], groups)
        require(dy.shape[0] == x.shape[0], f"dy: expected {x.shape[0]} images like x, got {dy.shape[0]}")
        require_numbers(w_size, "w_size", 2, 1)
        if w_stride is not None:
            require_numbers(w_stride, "w_stride", 4, 0)
        _check_output(dy.shape[2:], x.shape[2:], w_size, stride, padding, dilation)

    @staticmethod
    def compute(dy, x, w_size, w_stride, stride, padding, dilation, groups, precision, engine, channels_last):
        chosen, numbers = select(engine, "conv2d", dy.device, dy.dtype), resolve_precision(precision, x)
        dw_stride = _filter_stride((dy.shape[1], x.shape[1] // groups, *w_size), w_stride)
        geometry = Conv2dGeometry(stride, padding, dilation, groups)
        return chosen.conv2d_wgrad(dy, x, w_size, geometry, numbers, dw_stride)

    @staticmethod
    def fake(dy, x, w_size, w_stride, stride, padding, dilation, groups, precision, engine, channels_last):
        size = (dy.shape[1], x.shape[1] // groups, *w_size)
        dw_stride = _filter_stride(size, w_stride)
        return x.new_empty(size) if dw_stride is None else x.new_empty_strided(size, dw_stride)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, x, ctx.w_size, ctx.w_stride, *geometry, channels_last = inputs
        ctx.x_size = x.shape[2:]
        ctx.geometry = (*geometry, _is_channels_last(channels_last, dy, x))
        _save_factors(ctx, dy, x)

    @staticmethod
    def backward(ctx, ddw):
        dy, x = ctx.saved_tensors
        need_dy, need_x = ctx.needs_input_grad[:2]
        ddy = conv2d_fprop(x, ddw, None, *ctx.geometry) if need_dy else None
        dx = conv2d_dgrad(dy, ddw, ctx.x_size, *ctx.geometry) if need_x else None
        return ddy, dx, None, None, *(None for _ in ctx.geometry)

    @staticmethod
    def jvp(ctx, ddy, dx, *_):
        dy, x = ctx.saved_tensors
        return add(
            None if ddy is None else conv2d_wgrad(ddy, x, ctx.w_size, ctx.w_stride, *ctx.geometry),
            None if dx is None else conv2d_wgrad(dy, dx, ctx.w_size, ctx.w_stride, *ctx.geometry),
        )

    @staticmethod
    def vmap(info, in_dims, dy, x, w_size, w_stride, stride, padding, dilation, groups, *rest):
        B, (dy_dim, x_dim, *_), geometry = info.batch_size, in_dims, (w_size, None, stride, padding, dilation)
        if x_dim is None:
            dw = conv2d_wgrad(_into_groups(dy, dy_dim, 1, groups), x, *geometry, groups, *rest)
            return _out_of_groups(dw, B, 0, groups), 0
        if dy_dim is None:
            return conv2d_wgrad(dy, _into_groups(x, x_dim, 1, groups), *geometry, groups, *rest).unflatten(1, (B, -1)), 1
        dy, x = fold_batch(dy, dy_dim, B, into=1), fold_batch(x, x_dim, B, into=1)
        return conv2d_wgrad(dy, x, *geometry, B * groups, *rest).unflatten(0, (B, -1)), 0


class Conv2dWgradBias(Conv2dWgrad):
    """`Conv2dWgrad`, which also returns the gradient of the bias, (K): the sum of dy over the pixels of all images."""

    @staticmethod
    def compute(dy, x, w_size, w_stride, stride, padding, dilation, groups, precision, engine, channels_last):
        chosen, numbers = select(engine, "conv2d", dy.device, dy.dtype), resolve_precision(precision, x)
        dw_stride = _filter_stride((dy.shape[1], x.shape[1] // groups, *w_size), w_stride)
        geometry = Conv2dGeometry(stride, padding, dilation, groups)
        return chosen.conv2d_wgrad_bias(dy, x, w_size, geometry, numbers, dw_stride)


conv2d_fprop = operator(f"conv2d_fprop(Tensor x, Tensor w, Tensor? bias, {_GEOMETRY}) -> Tensor", Conv2dFprop)
conv2d_dgrad = operator(f"conv2d_dgrad(Tensor dy, Tensor w, SymInt[] x_size, {_GEOMETRY}) -> Tensor", Conv2dDgrad)
conv2d_wgrad = operator(
    f"conv2d_wgrad(Tensor dy, Tensor x, SymInt[] w_size, SymInt[]? w_stride, {_GEOMETRY}) -> Tensor", Conv2dWgrad
)
conv2d_wgrad_bias = computation(
    f"conv2d_wgrad_bias(Tensor dy, Tensor x, SymInt[] w_size, SymInt[]? w_stride, {_GEOMETRY}) -> (Tensor, Tensor)",
    Conv2dWgradBias,
)
