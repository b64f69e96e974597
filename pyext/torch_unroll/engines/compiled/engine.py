"""Combines this package's host functions and a launcher into an engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_unroll.engines.compiled import Launcher, RecordedLauncher, conv2d, max_pool2d, rnn
from torch_unroll.engines.interface import Conv2dGeometry, Pool2dGeometry, RecurrentWeights, RnnOptions
from torch_unroll.kernels.shapes import Pair
from torch_unroll.kernels.table import kernels_of
from torch_unroll.shapes import dtype_name


class CompiledEngine:
    """The functions of `engines.interface.Engine`, which all launch kernels through one launcher."""

    def __init__(self, name: str, launcher: Launcher):
        self.name = name
        self.launcher: Launcher = RecordedLauncher(name, launcher)

    def warmup(self, op: str, dtype: torch.dtype, device: torch.device) -> None:
        self.launcher.preload(kernels_of(op, dtype_name(dtype)), device)

    def conv2d_fprop(
        self,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        geometry: Conv2dGeometry,
        precision: str,
        layout: torch.memory_format | None = None,
        bias2: Tensor | None = None,
    ) -> Tensor:
        return conv2d.conv2d_fprop(self.launcher, x, w, bias, geometry, precision, layout, bias2)

    def conv2d_dgrad(
        self,
        dy: Tensor,
        w: Tensor,
        x_size: Pair,
        geometry: Conv2dGeometry,
        precision: str,
        layout: torch.memory_format | None = None,
    ) -> Tensor:
        return conv2d.conv2d_dgrad(self.launcher, dy, w, x_size, geometry, precision, layout)

    def conv2d_wgrad(
        self,
        dy: Tensor,
        x: Tensor,
        w_size: Pair,
        geometry: Conv2dGeometry,
        precision: str,
        dw_stride: Sequence[int] | None = None,
    ) -> Tensor:
        return conv2d.conv2d_wgrad(self.launcher, dy, x, w_size, geometry, precision, dw_stride)

    def conv2d_wgrad_bias(
        self,
        dy: Tensor,
        x: Tensor,
        w_size: Pair,
        geometry: Conv2dGeometry,
        precision: str,
        dw_stride: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        return conv2d.conv2d_wgrad_bias(self.launcher, dy, x, w_size, geometry, precision, dw_stride)

    def unfold(self, x: Tensor, geometry: Pool2dGeometry) -> Tensor:
        return conv2d.unfold(self.launcher, x, geometry)

    def fold(self, columns: Tensor, output_size: Pair, geometry: Pool2dGeometry) -> Tensor:
        return conv2d.fold(self.launcher, columns, output_size, geometry)

    def max_pool2d_forward(
        self, x: Tensor, geometry: Pool2dGeometry, ceil_mode: bool, with_offsets: bool
    ) -> tuple[Tensor, Tensor]:
        return max_pool2d.max_pool2d_forward(self.launcher, x, geometry, ceil_mode, with_offsets)

    def max_pool2d_backward(self, dy: Tensor, offsets: Tensor, x_size: Pair, geometry: Pool2dGeometry) -> Tensor:
        return max_pool2d.max_pool2d_backward(self.launcher, dy, offsets, x_size, geometry)

    def max_pool2d_gather(self, x: Tensor, offsets: Tensor, geometry: Pool2dGeometry) -> Tensor:
        return max_pool2d.max_pool2d_gather(self.launcher, x, offsets, geometry)

    def max_pool2d_indices(self, offsets: Tensor, x_size: Pair, geometry: Pool2dGeometry) -> Tensor:
        return max_pool2d.max_pool2d_indices(self.launcher, offsets, x_size, geometry)

    def max_over_time_forward(self, x: Tensor, lengths: Tensor | None, with_offsets: bool) -> tuple[Tensor, Tensor]:
        return max_pool2d.max_over_time_forward(self.launcher, x, lengths, with_offsets)

    def max_over_time_backward(self, dy: Tensor, offsets: Tensor, steps: int) -> Tensor:
        return max_pool2d.max_over_time_backward(self.launcher, dy, offsets, steps)

    def max_over_time_gather(self, x: Tensor, offsets: Tensor) -> Tensor:
        return max_pool2d.max_over_time_gather(self.launcher, x, offsets)

    def rnn_forward(
        self, z: Tensor, w_hh: RecurrentWeights, h0: Tensor | None, options: RnnOptions, h_n: Tensor | None = None
    ) -> Tensor:
        return rnn.rnn_forward(self.launcher, z, w_hh, h0, options, h_n)

    def rnn_backward(
        self,
        dh: Tensor | None,
        h: Tensor,
        w_hh: RecurrentWeights,
        h0: Tensor | None,
        options: RnnOptions,
        dh_n: Tensor | None = None,
        with_dh0: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        return rnn.rnn_backward(self.launcher, dh, h, w_hh, h0, options, dh_n, with_dh0)

    def rnn_cell_forward(
        self,
        x: Tensor,
        h: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        nonlinearity: str,
        precision: str,
    ) -> Tensor:
        return rnn.rnn_cell_forward(self.launcher, x, h, w_ih, w_hh, b_ih, b_hh, nonlinearity, precision)

    def rnn_cell_backward(
        self, dh_next: Tensor, h_next: Tensor, w_ih: Tensor, w_hh: Tensor, nonlinearity: str, precision: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        return rnn.rnn_cell_backward(self.launcher, dh_next, h_next, w_ih, w_hh, nonlinearity, precision)
