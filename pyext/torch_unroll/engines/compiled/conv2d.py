"""Host code of convolution, unfold and fold: asks for a choice and runs its variant.

Every function takes the launcher first. A call that has nothing to compute launches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torch_unroll.engines.compiled import Launcher, conv2d_hopper
from torch_unroll.engines.compiled.conv2d_call import (
    Call,
    allocate_workspace,
    pack_channels,
    packed_bytes,
    sum_dtype,
    whole_pieces,
)
from torch_unroll.engines.compiled.recording import note_choice
from torch_unroll.engines.interface import Conv2dGeometry, Pair, Pool2dGeometry
from torch_unroll.kernels.cuda.conv2d import variants
from torch_unroll.kernels.cuda.conv2d.choice import Choice, choose
from torch_unroll.shapes import convolved_size, output_memory_format, unfolded_size

#: The only variant or choice allowed, for tests and benchmarks; None: `choice.choose` decides.
forced: str | Choice | None = None


# ---- variants ---------------------------------------------------------------------------------------------------------------


def _implicit_fprop(call: Call, bias: Tensor | None, choice: Choice) -> None:
    for chunk in call.chunks():
        chunk.fprop(bias, choice)


def _explicit_fprop(call: Call, bias: Tensor | None, choice: Choice) -> None:
    flat = call.w.contiguous().flatten(1)[:, :, None, None]  # the columns' rows are C R S
    chunks = call.chunks(call.column_bytes)
    columns = chunks[0].columns()
    for chunk in chunks:
        chunk.im2col(columns)
        chunk.pointwise(columns[: chunk.problem.N], flat, chunk.y).fprop(bias, choice)


def _implicit_dgrad(call: Call, choice: Choice) -> None:
    for chunk in call.chunks():
        chunk.dgrad(choice)


def _explicit_dgrad(call: Call, choice: Choice) -> None:
    flat = call.w.contiguous().flatten(1)[:, :, None, None]
    chunks = call.chunks(call.column_bytes)
    columns = chunks[0].columns()
    for chunk in chunks:
        chunk.pointwise(columns[: chunk.problem.N], flat, chunk.y).dgrad(choice)
        chunk.col2im(columns)


def _sums(call: Call, plan: variants.GemmPlan) -> Tensor:
    return allocate_workspace((plan.splits, call.problem.K, call.problem.taps), call.x, sum_dtype(call.x.dtype))


def _implicit_wgrad(call: Call, choice: Choice) -> None:
    chunks = call.chunks()
    plan = chunks[0].wgrad_plan(choice)
    sums = _sums(call, plan)
    for i, chunk in enumerate(chunks):
        chunk.wgrad(sums, chunk.wgrad_plan(choice, plan.splits), accumulate=i > 0)
    call.sum_splits(sums, plan.walks.channels_inner, *call.problem.group_channels)


def _explicit_wgrad(call: Call, choice: Choice) -> None:
    chunks = call.chunks(call.column_bytes)
    columns = chunks[0].columns()
    shape_of_w = torch.empty((call.problem.K, call.problem.taps, 1, 1), device="meta")
    products = [chunk.pointwise(columns[: chunk.problem.N], shape_of_w, chunk.y) for chunk in chunks]
    plan = products[0].wgrad_plan(choice)
    sums = _sums(call, plan)
    for i, (chunk, product) in enumerate(zip(chunks, products, strict=True)):
        chunk.im2col(columns)
        product.wgrad(sums, product.wgrad_plan(choice, plan.splits), accumulate=i > 0)
    call.sum_splits(sums, False, *call.problem.group_channels)


def _tensor_fprop(call: Call, bias: Tensor | None, choice: Choice) -> None:
    w = pack_channels(call.launcher, call.w, 1)
    for chunk in call.chunks(packed_bytes(call.problem.groups, call.x)):
        x = pack_channels(call.launcher, chunk.x, call.problem.groups)
        call.on(x, w, chunk.y).fprop(bias, choice)
        del x  # before the next chunk's takes its place


def _tensor_dgrad(call: Call, choice: Choice) -> None:
    groups, K = call.problem.groups, call.problem.group_channels[1]
    w = pack_channels(call.launcher, call.w, 1, K, whole_pieces(K, call.w))
    for chunk in call.chunks(packed_bytes(groups, call.y)):
        dy = pack_channels(call.launcher, chunk.y, groups)
        call.on(chunk.x, w, dy).dgrad(choice)
        del dy


def _tensor_wgrad(call: Call, choice: Choice) -> None:
    groups = call.problem.groups
    channels, outputs = (whole_pieces(each, call.x) for each in call.problem.group_channels)
    shape_of_w = torch.empty((groups * outputs, channels, *call.w.shape[2:]), device="meta")
    plan = sums = None
    for chunk in call.chunks(packed_bytes(groups, call.x, call.y)):
        packed = call.on(pack_channels(call.launcher, chunk.x, groups), shape_of_w, pack_channels(call.launcher, chunk.y, groups))
        plan = packed.wgrad_plan(choice, plan.splits if plan else 2**31)
        first, sums = sums is None, _sums(packed, plan) if sums is None else sums
        packed.wgrad(sums, plan, accumulate=not first)
        del packed
    assert sums is not None
    assert plan is not None
    call.sum_splits(sums, plan.walks.channels_inner, channels, outputs)


#: The host functions of each variant in choice.VARIANTS.
_FPROP: dict[str, Callable[[Call, Tensor | None, Choice], None]] = {
    "hopper": conv2d_hopper.fprop,
    "tensor": _tensor_fprop,
    "implicit": _implicit_fprop,
    "explicit": _explicit_fprop,
}
_DGRAD: dict[str, Callable[[Call, Choice], None]] = {
    "hopper": conv2d_hopper.dgrad,
    "tensor": _tensor_dgrad,
    "implicit": _implicit_dgrad,
    "explicit": _explicit_dgrad,
}
_WGRAD: dict[str, Callable[[Call, Choice], None]] = {
    "hopper": conv2d_hopper.wgrad,
    "tensor": _tensor_wgrad,
    "implicit": _implicit_wgrad,
    "explicit": _explicit_wgrad,
}


def _choice(direction: str, call: Call) -> Choice:
    chosen = choose(direction, call.problem, call.device, forced)
    note_choice(f"conv2d_{direction}", chosen.passed_over, chosen)
    return chosen.choice


def _output(
    size: tuple[int, int, int, int], like: Tensor, memory_format: torch.memory_format, stride: Sequence[int] | None = None
) -> Tensor:
    if stride is not None:
        return like.new_empty_strided(size, stride)
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format)


# ---- what engines bind ------------------------------------------------------------------------------------------------------


def conv2d_fprop(
    launcher: Launcher,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    geometry: Conv2dGeometry,
    precision: str,
    layout: torch.memory_format | None = None,
) -> Tensor:
    P, Q = convolved_size(x.shape[2:], w.shape[2:], geometry.stride, geometry.padding, geometry.dilation)
    N, K = x.shape[0], w.shape[0]
    y = _output((N, K, P, Q), x, layout or output_memory_format(x, w))
    if not x.numel() or not w.numel():
        return y.zero_() if bias is None else y.copy_(bias.view(1, K, 1, 1).expand_as(y))
    if y.numel():
        call = Call(launcher, x, w, y, geometry, precision)
        choice = _choice("fprop", call)
        _FPROP[choice.variant](call, None if bias is None else bias.contiguous(), choice)
    return y


def conv2d_dgrad(
    launcher: Launcher,
    dy: Tensor,
    w: Tensor,
    x_size: Pair,
    geometry: Conv2dGeometry,
    precision: str,
    layout: torch.memory_format | None = None,
) -> Tensor:
    dx = _output((dy.shape[0], w.shape[1] * geometry.groups, *x_size), dy, layout or output_memory_format(dy, w))
    if not dy.numel() or not w.numel():
        return dx.zero_()
    if dx.numel():
        call = Call(launcher, dx, w, dy, geometry, precision)
        choice = _choice("dgrad", call)
        _DGRAD[choice.variant](call, choice)
    return dx


def conv2d_wgrad(
    launcher: Launcher,
    dy: Tensor,
    x: Tensor,
    w_size: Pair,
    geometry: Conv2dGeometry,
    precision: str,
    dw_stride: Sequence[int] | None = None,
) -> Tensor:
    dw = _output((dy.shape[1], x.shape[1] // geometry.groups, *w_size), dy, torch.contiguous_format, dw_stride)
    if not dy.numel() or not x.numel():
        return dw.zero_()
    if dw.numel():
        call = Call(launcher, x, dw, dy, geometry, precision)
        choice = _choice("wgrad", call)
        _WGRAD[choice.variant](call, choice)
    return dw


def unfold(launcher: Launcher, x: Tensor, geometry: Pool2dGeometry) -> Tensor:
    (N, C), (R, S), (P, Q) = x.shape[:2], geometry.kernel_size, unfolded_size(x.shape[2:], *geometry)
    columns = _output((N, C * R * S, P, Q), x, torch.contiguous_format)
    if columns.numel():
        _gathering(launcher, x, columns, geometry).im2col(columns)
    return columns.flatten(2)


def fold(launcher: Launcher, columns: Tensor, output_size: Pair, geometry: Pool2dGeometry) -> Tensor:
    (N, rows, _), (R, S) = columns.shape, geometry.kernel_size
    x = _output((N, rows // (R * S), *output_size), columns, torch.contiguous_format)
    if x.numel():
        columns = columns.contiguous().view(N, rows, *unfolded_size(output_size, *geometry))
        _gathering(launcher, x, columns, geometry).col2im(columns)
    return x


def _gathering(launcher: Launcher, x: Tensor, columns: Tensor, window: Pool2dGeometry) -> Call:
    """The convolution whose columns these are; it has no filter but a filter's size."""
    shape_of_w = torch.empty((1, x.shape[1], *window.kernel_size), device="meta")
    height, width = window.padding
    geometry = Conv2dGeometry(window.stride, (height, height, width, width), window.dilation, groups=1)
    return Call(launcher, x, shape_of_w, columns, geometry, "ieee")
