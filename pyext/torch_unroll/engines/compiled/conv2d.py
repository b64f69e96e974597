"""The engine functions of convolution, unfold and fold: they select a variant and run its host code.

Every function takes the launcher first. A call that has nothing to compute launches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torch_unroll.engines.compiled import Launcher, conv2d_im2col, conv2d_mma, conv2d_simt, conv2d_wgmma
from torch_unroll.engines.compiled.conv2d_call import Call
from torch_unroll.engines.compiled.recording import note_selection
from torch_unroll.engines.interface import Padding, Pair
from torch_unroll.kernels.cuda.conv2d.variants import SELECTORS
from torch_unroll.kernels.planning import Configuration
from torch_unroll.shapes import convolved, output_memory_format

#: Variant -> its host function.
_FPROP: dict[str, Callable[[Call, Tensor | None, Configuration], None]] = {
    "wgmma": conv2d_wgmma.fprop,
    "mma": conv2d_mma.fprop,
    "simt": conv2d_simt.fprop,
    "im2col": conv2d_im2col.fprop,
}
_DGRAD: dict[str, Callable[[Call, Configuration], None]] = {
    "wgmma": conv2d_wgmma.dgrad,
    "mma": conv2d_mma.dgrad,
    "simt": conv2d_simt.dgrad,
    "im2col": conv2d_im2col.dgrad,
}
_WGRAD: dict[str, Callable[[Call, Configuration], None]] = {
    "wgmma": conv2d_wgmma.wgrad,
    "mma": conv2d_mma.wgrad,
    "simt": conv2d_simt.wgrad,
    "im2col": conv2d_im2col.wgrad,
}


def _select(call: Call) -> Configuration:
    selected = SELECTORS[f"conv2d_{call.direction}"].select(call.problem, call.device)
    note_selection(selected)
    return selected.configuration


def _output(
    size: tuple[int, int, int, int], like: Tensor, memory_format: torch.memory_format, stride: Sequence[int] | None = None
) -> Tensor:
    if stride is not None:
        return like.new_empty_strided(size, stride)
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format)


def conv2d_fprop(
    launcher: Launcher,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    precision: str,
    layout: torch.memory_format | None = None,
) -> Tensor:
    (N, _, H, W), (K, _, R, S) = x.shape, w.shape
    P = convolved(H, R, stride[0], padding[0] + padding[1], dilation[0])
    Q = convolved(W, S, stride[1], padding[2] + padding[3], dilation[1])
    y = _output((N, K, P, Q), x, layout or output_memory_format(x, w))
    if not x.numel() or not w.numel():
        return y.zero_() if bias is None else y.copy_(bias.view(1, K, 1, 1).expand_as(y))
    if y.numel():
        call = Call(launcher, "fprop", x=x, w=w, y=y, geometry=(stride, padding, dilation, groups), precision=precision)
        configuration = _select(call)
        _FPROP[configuration.variant](call, None if bias is None else bias.contiguous(), configuration)
    return y


def conv2d_dgrad(
    launcher: Launcher,
    dy: Tensor,
    w: Tensor,
    x_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    precision: str,
    layout: torch.memory_format | None = None,
) -> Tensor:
    dx = _output((dy.shape[0], w.shape[1] * groups, *x_size), dy, layout or output_memory_format(dy, w))
    if not dy.numel() or not w.numel():
        return dx.zero_()
    if dx.numel():
        call = Call(launcher, "dgrad", x=dx, w=w, y=dy, geometry=(stride, padding, dilation, groups), precision=precision)
        configuration = _select(call)
        _DGRAD[configuration.variant](call, configuration)
    return dx


def conv2d_wgrad(
    launcher: Launcher,
    dy: Tensor,
    x: Tensor,
    w_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    precision: str,
    dw_stride: Sequence[int] | None = None,
) -> Tensor:
    dw = _output((dy.shape[1], x.shape[1] // groups, *w_size), dy, torch.contiguous_format, dw_stride)
    if not dy.numel() or not x.numel():
        return dw.zero_()
    if dw.numel():
        call = Call(launcher, "wgrad", x=x, w=dw, y=dy, geometry=(stride, padding, dilation, groups), precision=precision)
        configuration = _select(call)
        _WGRAD[configuration.variant](call, configuration)
    return dw


def unfold(launcher: Launcher, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    N, C, H, W = x.shape
    P = convolved(H, kernel_size[0], stride[0], 2 * padding[0], dilation[0])
    Q = convolved(W, kernel_size[1], stride[1], 2 * padding[1], dilation[1])
    columns = _output((N, C * kernel_size[0] * kernel_size[1], P, Q), x, torch.contiguous_format)
    if columns.numel():
        conv2d_im2col.im2col(_unfolding(launcher, x, columns, kernel_size, stride, padding, dilation), columns)
    return columns.flatten(2)


def fold(
    launcher: Launcher, columns: Tensor, output_size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    N, rows, _ = columns.shape
    P = convolved(output_size[0], kernel_size[0], stride[0], 2 * padding[0], dilation[0])
    Q = convolved(output_size[1], kernel_size[1], stride[1], 2 * padding[1], dilation[1])
    x = _output((N, rows // (kernel_size[0] * kernel_size[1]), *output_size), columns, torch.contiguous_format)
    if x.numel():
        columns = columns.contiguous().view(N, rows, P, Q)
        conv2d_im2col.col2im(_unfolding(launcher, x, columns, kernel_size, stride, padding, dilation), columns)
    return x


def _unfolding(
    launcher: Launcher, x: Tensor, columns: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Call:
    """Returns the convolution that has these columns; of its filter only the size counts."""
    shape_of_w = torch.empty((1, x.shape[1], *kernel_size), device="meta")
    both_sides = (padding[0], padding[0], padding[1], padding[1])
    return Call(launcher, "fprop", x=x, w=shape_of_w, y=columns, geometry=(stride, both_sides, dilation, 1), precision="ieee")
