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

from torch_unroll.checks import MOST, is_symbolic, require_alike, require_numbers, require_one_of, require_rank, require_shape
from torch_unroll.engines import resolve_precision, select
from torch_unroll.engines.interface import PRECISIONS
from torch_unroll.kernels.cuda.conv2d import variants
from torch_unroll.registration import Operator, move_batch, operator, save
from torch_unroll.shapes import convolved, output_memory_format, require

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


def _check_geometry(stride, padding, dilation, groups, precision):
    require_numbers(stride, "stride", 2, 1)
    require_numbers(padding, "padding", 4, -MOST)  # below and to the right, a transposed convolution may take rows away
    require(min(padding[0], padding[2]) >= 0, f"padding: expected 0 or more above and to the left, got {tuple(padding)}")
    require_numbers(dilation, "dilation", 2, 1)
    require(groups > 0, f"groups: expected a number above 0, got {groups}")
    require_one_of(precision, "precision", PRECISIONS)


def _check_channels(channels, w_channels, outputs, groups):
    """Those of the image and of the filter; by tensors or by what they would be."""
    require(outputs % groups == 0, f"groups: expected a divisor of {outputs} output channels, got {groups}")
    require(channels == w_channels * groups, f"x: expected {w_channels} channels for {groups} groups each, got {channels}")


def _check_output(size, x_size, w_size, stride, padding, dilation):
    """That a convolution of these extents yields these."""
    require_numbers(w_size, "w", 2, 1)
    for extent, x_extent, w_extent, step, before, after, spread in zip(
        size, x_size, w_size, stride, padding[::2], padding[1::2], dilation, strict=True
    ):
        expected = convolved(x_extent, w_extent, step, before + after, spread)
        fits = is_symbolic(extent, expected) or extent == expected
        require(fits, f"dy: expected extents that the convolution yields, {expected}, got {extent}")


def _channels(saved: Tensor) -> int:
    """Of an image that a hook may have exchanged: the operators that it goes to refuse one of another rank."""
    return saved.shape[1] if saved.dim() == 4 else 0


class Conv2dPack(Operator):
    """x (N, C, H, W) -> a copy in channels_last memory."""

    autocast = True

    @staticmethod
    def check(x, engine):
        require_alike(x, "x")
        require_rank(x, "x", "NCHW")

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
    has_history = True

    @staticmethod
    def check(x, w, bias, stride, padding, dilation, groups, precision, engine, x_packed):
        require_alike(x, "x", w=w, bias=bias)
        require_rank(x, "x", "NCHW")
        require_rank(w, "w", "KCRS")
        _check_geometry(stride, padding, dilation, groups, precision)
        _check_channels(x.shape[1], w.shape[1], w.shape[0], groups)
        require_shape(bias, "bias", w.shape[0])
        require_numbers(w.shape[2:], "w", 2, 1)
        for i in (0, 1):
            extent = convolved(x.shape[2 + i], w.shape[2 + i], stride[i], padding[2 * i] + padding[2 * i + 1], dilation[i])
            fits = extent > 0 or (extent == 0 and x.shape[2 + i] == 0)
            require(extent <= MOST, f"padding: expected an output of extents that 64 bits hold, got one of {extent}")
            require(fits, f"w: expected a filter within the padded x, got {tuple(w.shape)} for {tuple(x.shape)}")

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
        x, w, _, *ctx.geometry, ctx.x_packed = inputs
        save(ctx, x, w)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        need_x, need_w, need_bias = ctx.needs_input_grad[:3]
        image, packed = pack_once(dy, need_x and need_w, _channels(x), *ctx.geometry[3:])
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
    has_history = True

    @staticmethod
    def check(dy, w, x_size, stride, padding, dilation, groups, precision, engine, dy_packed):
        require_alike(dy, "dy", w=w)
        require_rank(dy, "dy", "NKPQ")
        require_rank(w, "w", "KCRS")
        _check_geometry(stride, padding, dilation, groups, precision)
        require_numbers(x_size, "x_size", 2, 0)
        _check_channels(w.shape[1] * groups, w.shape[1], dy.shape[1], groups)
        require(dy.shape[1] == w.shape[0], f"dy: expected {w.shape[0]} channels like w, got {dy.shape[1]}")
        _check_output(dy.shape[2:], x_size, w.shape[2:], stride, padding, dilation)

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
        image, packed = pack_once(ddx, need_dy and need_w, _channels(dy), *ctx.geometry[3:])
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
    has_history = True

    @staticmethod
    def check(dy, x, w_size, stride, padding, dilation, groups, precision, engine, dy_packed, x_packed):
        require_alike(x, "x", dy=dy)
        require_rank(dy, "dy", "NKPQ")
        require_rank(x, "x", "NCHW")
        _check_geometry(stride, padding, dilation, groups, precision)
        require(x.shape[1] % groups == 0, f"groups: expected a divisor of {x.shape[1]} channels, got {groups}")
        _check_channels(x.shape[1], x.shape[1] // groups, dy.shape[1], groups)
        require(dy.shape[0] == x.shape[0], f"dy: expected {x.shape[0]} images like x, got {dy.shape[0]}")
        require_numbers(w_size, "w_size", 2, 1)
        _check_output(dy.shape[2:], x.shape[2:], w_size, stride, padding, dilation)

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
