"""The operators of two-dimensional convolution: fprop, dgrad (gradient of the input), wgrad (of the weight); and pack.

Convolution is bilinear, so the derivative of each of the three is again one of the three: the ops below name each other, which
gives gradients of every order.

Tensor cores take channels innermost. An NCHW image that two ops take (x: fprop and wgrad; dy: dgrad and wgrad) is packed once,
by an op of its own, and both are handed the copy. `x_packed` and `dy_packed` say that a tensor is such a copy: it then counts as
the contiguous tensor it was made of where the layout of a result is asked for, so that packing changes no strides, at any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_unroll.engines import resolve_precision, select
from torch_unroll.kernels.cuda.conv2d import variants
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


def _layout(first: Tensor, first_packed: bool, second: Tensor, second_packed: bool = False) -> torch.memory_format:
    """torch's rule, with packed tensors counting as contiguous."""
    if first_packed:
        return torch.contiguous_format if second_packed else output_memory_format(second)
    return output_memory_format(first) if second_packed else output_memory_format(first, second)


def _packs(image: Tensor, channels: int, groups: int, precision: str) -> bool:
    """Whether every op that takes an image, beside one of so many channels, would pack it, and one copy may serve them all: the
    image is NCHW, tensor cores take it and need not pad it, and the copy is within the workspace for packed images.

    Not under torch.func: vmap makes groups of its batch, which a packed copy would first be unpacked for.
    """
    (N, C, H, W), stride = image.shape, image.stride()
    plane = H * W
    if plane == 1 or stride[3] != 1 or stride[2] != W or stride[1] != plane or stride[0] < C * plane:
        return False
    if (groups > 1 and channels // groups < 4) or torch._C._are_functorch_transforms_active():
        return False
    item = _item_bytes(image, precision)
    return item > 0 and C // groups * item % 16 == 0 and 0 < N * C * plane * item <= variants.workspace_limit // 2


def _item_bytes(image: Tensor, precision: str) -> int:
    """Of an element as tensor cores take it, lowered by autocast or not; 0 where other cores compute, which read any layout."""
    if image.dtype != torch.float32:
        return 2 if image.dtype in (torch.float16, torch.bfloat16) else 0
    device_type = image.device.type if torch._C._is_any_autocast_enabled() else "none"
    if device_type in ("cpu", "cuda") and torch.is_autocast_enabled(device_type):
        return 2
    if precision != "tf32" and (not image.is_cuda or torch.compiler.is_compiling()):
        return 0  # torch's switches say nothing of the CPU; they are read when an op runs, not when it is compiled
    return 4 if resolve_precision(precision, image) == "tf32" else 0


def pack_once(image: Tensor, twice: bool, channels: int, groups: int, precision: str, engine: str) -> tuple[Tensor, bool]:
    """What ops are to take for an image, and whether that is a packed copy: where they take it `twice`, beside one of so many
    channels, and would pack it each time."""
    if twice and _packs(image, channels, groups, precision):
        return conv2d_pack(image, engine), True
    return image, False


class Conv2dPack(Operator):
    """x (N, C, H, W) -> a copy in channels_last memory."""

    autocast = True

    @staticmethod
    def compute(x, engine):
        return select(engine, "conv2d", x.device, x.dtype).conv2d_pack(x)

    @staticmethod
    def fake(x, engine):
        return torch.empty_like(x, memory_format=torch.channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.engine = inputs

    @staticmethod
    def backward(ctx, dy):
        return dy, None

    @staticmethod
    def jvp(ctx, dx, _):
        return conv2d_pack(dx, ctx.engine)

    @staticmethod
    def vmap(info, in_dims, x, engine):
        return conv2d_pack(_fold_batch(x, in_dims[0], info.batch_size), engine).unflatten(0, (info.batch_size, -1)), 0


class Conv2dFprop(Operator):
    """x (N, C, H, W), w (K, C/groups, R, S), bias (K) -> y (N, K, P, Q). `padding` is top, bottom, left, right."""

    autocast = True

    @staticmethod
    def compute(x, w, bias, stride, padding, dilation, groups, precision, engine, x_packed):
        chosen = select(engine, "conv2d", x.device, x.dtype)
        numbers, layout = resolve_precision(precision, x), _layout(x, x_packed, w)
        return chosen.conv2d_fprop(x, w, bias, stride, padding, dilation, groups, numbers, layout)

    @staticmethod
    def fake(x, w, bias, stride, padding, dilation, groups, precision, engine, x_packed):
        P = convolved(x.shape[2], w.shape[2], stride[0], padding[0] + padding[1], dilation[0])
        Q = convolved(x.shape[3], w.shape[3], stride[1], padding[2] + padding[3], dilation[1])
        return x.new_empty(x.shape[0], w.shape[0], P, Q).to(memory_format=_layout(x, x_packed, w))

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, w, bias, *ctx.geometry, ctx.x_packed = inputs
        ctx.has_bias = bias is not None
        save(ctx, x, w)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        need_x, need_w, need_bias = ctx.needs_input_grad[:3]
        image, packed = pack_once(dy, need_x and need_w, x.shape[1], *ctx.geometry[3:])
        dx = conv2d_dgrad(image, w, x.shape[2:], *ctx.geometry, packed) if need_x else None
        dw = conv2d_wgrad(image, x, w.shape[2:], *ctx.geometry, packed, ctx.x_packed) if need_w else None
        return dx, dw, dy.sum((0, 2, 3)) if need_bias else None, *(None for _ in ctx.geometry), None

    @staticmethod
    def jvp(ctx, dx, dw, dbias, *_):
        x, w = ctx.saved_tensors
        return _sum(
            None if dx is None else conv2d_fprop(dx, w, None, *ctx.geometry, ctx.x_packed),
            None if dw is None else conv2d_fprop(x, dw, None, *ctx.geometry, ctx.x_packed),
            None if dbias is None else dbias.view(1, -1, 1, 1),
        )

    @staticmethod
    def vmap(info, in_dims, x, w, bias, stride, padding, dilation, groups, precision, engine, x_packed):
        B, (x_dim, w_dim, bias_dim, *_) = info.batch_size, in_dims
        if w_dim is None and bias_dim is None:
            x = _fold_batch(x, x_dim, B)
            y = conv2d_fprop(x, w, bias, stride, padding, dilation, groups, precision, engine, x_packed)
            return y.unflatten(0, (B, -1)), 0
        x, w = _into_channels(x, x_dim, B), _into_filters(w, w_dim, B)
        bias = None if bias is None else _into_filters(bias, bias_dim, B)
        y = conv2d_fprop(x, w, bias, stride, padding, dilation, B * groups, precision, engine, x_packed)
        return y.unflatten(1, (B, -1)), 1


class Conv2dDgrad(Operator):
    """dy (N, K, P, Q), w (K, C/groups, R, S) -> dx (N, C, H, W); `x_size` is (H, W)."""

    autocast = True

    @staticmethod
    def compute(dy, w, x_size, stride, padding, dilation, groups, precision, engine, dy_packed):
        chosen = select(engine, "conv2d", dy.device, dy.dtype)
        numbers, layout = resolve_precision(precision, dy), _layout(dy, dy_packed, w)
        return chosen.conv2d_dgrad(dy, w, x_size, stride, padding, dilation, groups, numbers, layout)

    @staticmethod
    def fake(dy, w, x_size, stride, padding, dilation, groups, precision, engine, dy_packed):
        layout = _layout(dy, dy_packed, w)
        return dy.new_empty(dy.shape[0], w.shape[1] * groups, *x_size).to(memory_format=layout)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, w, ctx.x_size, *ctx.geometry, ctx.dy_packed = inputs
        save(ctx, dy, w)

    @staticmethod
    def backward(ctx, ddx):
        dy, w = ctx.saved_tensors
        need_dy, need_w = ctx.needs_input_grad[:2]
        image, packed = pack_once(ddx, need_dy and need_w, dy.shape[1], *ctx.geometry[3:])
        ddy = conv2d_fprop(image, w, None, *ctx.geometry, packed) if need_dy else None
        dw = conv2d_wgrad(dy, image, w.shape[2:], *ctx.geometry, ctx.dy_packed, packed) if need_w else None
        return ddy, dw, None, *(None for _ in ctx.geometry), None

    @staticmethod
    def jvp(ctx, ddy, dw, *_):
        dy, w = ctx.saved_tensors
        return _sum(
            None if ddy is None else conv2d_dgrad(ddy, w, ctx.x_size, *ctx.geometry, ctx.dy_packed),
            None if dw is None else conv2d_dgrad(dy, dw, ctx.x_size, *ctx.geometry, ctx.dy_packed),
        )

    @staticmethod
    def vmap(info, in_dims, dy, w, x_size, stride, padding, dilation, groups, precision, engine, dy_packed):
        B, (dy_dim, w_dim, *_) = info.batch_size, in_dims
        if w_dim is None:
            dy = _fold_batch(dy, dy_dim, B)
            dx = conv2d_dgrad(dy, w, x_size, stride, padding, dilation, groups, precision, engine, dy_packed)
            return dx.unflatten(0, (B, -1)), 0
        dy, w = _into_channels(dy, dy_dim, B), _into_filters(w, w_dim, B)
        dx = conv2d_dgrad(dy, w, x_size, stride, padding, dilation, B * groups, precision, engine, dy_packed)
        return dx.unflatten(1, (B, -1)), 1


class Conv2dWgrad(Operator):
    """dy (N, K, P, Q), x (N, C, H, W) -> dw (K, C/groups, R, S); `w_size` is (R, S)."""

    autocast = True

    @staticmethod
    def compute(dy, x, w_size, stride, padding, dilation, groups, precision, engine, dy_packed, x_packed):
        chosen = select(engine, "conv2d", dy.device, dy.dtype)
        numbers, layout = resolve_precision(precision, x), _layout(dy, dy_packed, x, x_packed)
        return chosen.conv2d_wgrad(dy, x, w_size, stride, padding, dilation, groups, numbers, layout)

    @staticmethod
    def fake(dy, x, w_size, stride, padding, dilation, groups, precision, engine, dy_packed, x_packed):
        layout = _layout(dy, dy_packed, x, x_packed)
        return x.new_empty(dy.shape[1], x.shape[1] // groups, *w_size).to(memory_format=layout)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, x, ctx.w_size, *ctx.geometry, ctx.dy_packed, ctx.x_packed = inputs
        save(ctx, dy, x)

    @staticmethod
    def backward(ctx, ddw):
        dy, x = ctx.saved_tensors
        need_dy, need_x = ctx.needs_input_grad[:2]
        ddy = conv2d_fprop(x, ddw, None, *ctx.geometry, ctx.x_packed) if need_dy else None
        dx = conv2d_dgrad(dy, ddw, x.shape[2:], *ctx.geometry, ctx.dy_packed) if need_x else None
        return ddy, dx, None, *(None for _ in ctx.geometry), None, None

    @staticmethod
    def jvp(ctx, ddy, dx, *_):
        dy, x = ctx.saved_tensors
        return _sum(
            None if ddy is None else conv2d_wgrad(ddy, x, ctx.w_size, *ctx.geometry, ctx.dy_packed, ctx.x_packed),
            None if dx is None else conv2d_wgrad(dy, dx, ctx.w_size, *ctx.geometry, ctx.dy_packed, ctx.x_packed),
        )

    @staticmethod
    def vmap(info, in_dims, dy, x, w_size, stride, padding, dilation, groups, precision, engine, dy_packed, x_packed):
        B, (dy_dim, x_dim, *_) = info.batch_size, in_dims
        dy, x = _into_channels(dy, dy_dim, B), _into_channels(x, x_dim, B)
        geometry = (stride, padding, dilation, B * groups, precision, engine)
        dw = conv2d_wgrad(dy, x, w_size, *geometry, dy_packed, x_packed)
        return dw.unflatten(0, (B, -1)), 0


conv2d_pack = operator("conv2d_pack(Tensor x, str engine) -> Tensor", Conv2dPack)
conv2d_fprop = operator(f"conv2d_fprop(Tensor x, Tensor w, Tensor? bias, {_GEOMETRY}, bool x_packed) -> Tensor", Conv2dFprop)
conv2d_dgrad = operator(f"conv2d_dgrad(Tensor dy, Tensor w, SymInt[] x_size, {_GEOMETRY}, bool dy_packed) -> Tensor", Conv2dDgrad)
conv2d_wgrad = operator(
    f"conv2d_wgrad(Tensor dy, Tensor x, SymInt[] w_size, {_GEOMETRY}, bool dy_packed, bool x_packed) -> Tensor", Conv2dWgrad
)
