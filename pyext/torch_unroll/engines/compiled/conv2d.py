"""The engine functions of convolution, unfold and fold: they select a variant and run its host code.

The functions of an engine take the launcher first. A call with an empty tensor launches no kernel of the library; torch fills its
result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torch_unroll.engines.compiled import Launcher, conv2d_im2col, conv2d_mma, conv2d_simt, conv2d_wgmma
from torch_unroll.engines.compiled.conv2d_call import Call
from torch_unroll.engines.compiled.conv2d_sums import Biases, contiguous_biases
from torch_unroll.engines.compiled.recording import note_selection
from torch_unroll.engines.interface import Conv2dGeometry, Pool2dGeometry
from torch_unroll.kernels.cuda.conv2d.variants import SELECTORS
from torch_unroll.kernels.planning import Configuration
from torch_unroll.kernels.shapes import Pair
from torch_unroll.shapes import convolved_size, output_memory_format, unfolded_size

#: Variant -> its host function.
_FPROP: dict[str, Callable[[Call, Biases, Configuration], None]] = {
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
_WGRAD: dict[str, Callable[[Call, Tensor | None, Configuration], None]] = {
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
    geometry: Conv2dGeometry,
    precision: str,
    layout: torch.memory_format | None = None,
    bias2: Tensor | None = None,
) -> Tensor:
    K, biases = w.shape[0], contiguous_biases(bias, bias2)
    P, Q = convolved_size(x.shape[2:], w.shape[2:], *geometry[:3])
    y = _output((x.shape[0], K, P, Q), x, layout or output_memory_format(x, w))
    if not x.numel() or not w.numel():
        return y.copy_(biases.total(y).view(1, K, 1, 1).expand_as(y))
    if y.numel():
        call = Call(launcher, "fprop", x=x, w=w, y=y, geometry=geometry, precision=precision)
        configuration = _select(call)
        _FPROP[configuration.variant](call, biases, configuration)
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
        call = Call(launcher, "dgrad", x=dx, w=w, y=dy, geometry=geometry, precision=precision)
        configuration = _select(call)
        _DGRAD[configuration.variant](call, configuration)
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
    return _wgrad(launcher, dy, x, w_size, geometry, precision, dw_stride, None)


def conv2d_wgrad_bias(
    launcher: Launcher,
    dy: Tensor,
    x: Tensor,
    w_size: Pair,
    geometry: Conv2dGeometry,
    precision: str,
    dw_stride: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    db = dy.new_empty(dy.shape[1])
    return _wgrad(launcher, dy, x, w_size, geometry, precision, dw_stride, db), db


def _wgrad(
    launcher: Launcher,
    dy: Tensor,
    x: Tensor,
    w_size: Pair,
    geometry: Conv2dGeometry,
    precision: str,
    dw_stride: Sequence[int] | None,
    db: Tensor | None,
) -> Tensor:
    """Returns dw, and overwrites db with the bias gradient if it is wanted."""
    dw = _output((dy.shape[1], x.shape[1] // geometry.groups, *w_size), dy, torch.contiguous_format, dw_stride)
    if not dy.numel() or not x.numel():
        if db is not None:
            torch.sum(dy, (0, 2, 3), out=db)
        return dw.zero_()
    call = Call(launcher, "wgrad", x=x, w=dw, y=dy, geometry=geometry, precision=precision)
    configuration = _select(call)
    _WGRAD[configuration.variant](call, db, configuration)
    return dw


def unfold(launcher: Launcher, x: Tensor, geometry: Pool2dGeometry) -> Tensor:
    N, C, H, W = x.shape
    R, S = geometry.kernel_size
    P, Q = unfolded_size((H, W), *geometry)
    columns = _output((N, C * R * S, P, Q), x, torch.contiguous_format)
    if columns.numel():
        conv2d_im2col.im2col(_unfolding(launcher, x, columns, geometry), columns)
    return columns.flatten(2)


def fold(launcher: Launcher, columns: Tensor, output_size: Pair, geometry: Pool2dGeometry) -> Tensor:
    N, rows, _ = columns.shape
    R, S = geometry.kernel_size
    P, Q = unfolded_size(output_size, *geometry)
    x = _output((N, rows // (R * S), *output_size), columns, torch.contiguous_format)
    if x.numel():
        columns = columns.contiguous().view(N, rows, P, Q)
        conv2d_im2col.col2im(_unfolding(launcher, x, columns, geometry), columns)
    return x


def _unfolding(launcher: Launcher, x: Tensor, columns: Tensor, geometry: Pool2dGeometry) -> Call:
    """Returns a convolution of x whose column matrix is `columns`; of its filter, only the size is used."""
    kernel_size, stride, (vertical, horizontal), dilation = geometry
    shape_of_w = torch.empty((1, x.shape[1], *kernel_size), device="meta")
    convolution = Conv2dGeometry(stride, (vertical, vertical, horizontal, horizontal), dilation, groups=1)
    return Call(launcher, "fprop", x=x, w=shape_of_w, y=columns, geometry=convolution, precision="ieee")
