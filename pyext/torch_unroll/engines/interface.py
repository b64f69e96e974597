"""What every engine provides. Output strides and saved tensors do not depend on the engine.

Tensors are of one dtype and device, of any strides, and already checked: an engine never sees a size that does not fit.
Pairs are (height, width). `precision` is "tf32" or "ieee" and matters for float32 alone. `layout` is that of the result;
None stands for torch's rule, `shapes.output_memory_format` of the two tensors. What a kernel takes packed is packed in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

Pair = tuple[int, int]
#: top, bottom, left, right
Padding = tuple[int, int, int, int]

NONLINEARITIES = ("tanh", "relu", "sigmoid", "identity")
#: How fp32 products are computed: by torch's switch for convolution or for recurrence, or as told.
PRECISIONS = ("conv", "rnn", "tf32", "ieee")

#: Which module of an engine's package holds each function.
MODULES = {
    **dict.fromkeys(("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad", "unfold", "fold"), "conv2d"),
    **dict.fromkeys(("max_pool2d_forward", "max_pool2d_backward", "max_pool2d_gather", "max_pool2d_indices"), "max_pool2d"),
    **dict.fromkeys(("max_over_time_forward", "max_over_time_backward", "max_over_time_gather"), "max_pool2d"),
    **dict.fromkeys(("rnn_forward", "rnn_backward", "rnn_tangent", "rnn_cell_forward", "rnn_cell_backward"), "rnn"),
}


class Engine(Protocol):
    """The functions of an engine; the letters are those of kernels/cuda/shapes.h."""

    name: str

    def refuses(self, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """None if it takes the call; else why not, and what would make it."""

    def warmup(self, op: str, dtype: torch.dtype, device: torch.device) -> None:
        """Compiles and loads whatever calls of an op (one of `kernels.table.OPS`) would on first use."""

    def conv2d_fprop(
        self,
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
        """x (N, C, H, W), w (K, C/groups, R, S), bias (K) -> y (N, K, P, Q)."""

    def conv2d_dgrad(
        self,
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
        """dy (N, K, P, Q), w -> dx (N, C, H, W); x_size is (H, W)."""

    def conv2d_wgrad(
        self,
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
        """dy, x -> dw (K, C/groups, R, S) of dense strides, contiguous without any; w_size is (R, S)."""

    def unfold(self, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
        """x (N, C, H, W) -> columns (N, C·R·S, P·Q)."""

    def fold(self, columns: Tensor, output_size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
        """columns (N, C·R·S, P·Q) -> x (N, C, H, W): each pixel is the sum of the cells that cover it."""

    def max_pool2d_forward(
        self, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool, with_offsets: bool
    ) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) -> y (N, C, P, Q) and each window's choice, laid out like y, or empty without `with_offsets`: one byte,
        two beyond 255 cells, four beyond 32767."""

    def max_pool2d_backward(
        self, dy: Tensor, offsets: Tensor, x_size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
    ) -> Tensor:
        """dy -> dx: each pixel is the sum of the windows that chose it."""

    def max_pool2d_gather(
        self, x: Tensor, offsets: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
    ) -> Tensor:
        """x (N, C, H, W) -> (N, C, P, Q): the cell each window chose; 0 where it chose none."""

    def max_pool2d_indices(
        self, offsets: Tensor, x_size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
    ) -> Tensor:
        """offsets -> torch's int64 indices into the plane."""

    def max_over_time_forward(self, x: Tensor, lengths: Tensor | None, with_offsets: bool) -> tuple[Tensor, Tensor]:
        """x (T, N, C), integer lengths (N) -> y (N, C) and the step each value came from, in the offsets of a T x 1 window."""

    def max_over_time_backward(self, dy: Tensor, offsets: Tensor, steps: int) -> Tensor:
        """dy (N, C) -> dx (T, N, C)."""

    def max_over_time_gather(self, x: Tensor, offsets: Tensor) -> Tensor:
        """x (T, N, C) -> (N, C): the step each sequence chose; 0 where it chose none."""

    def rnn_forward(
        self,
        z: Tensor,
        w_hh: Tensor,
        h0: Tensor,
        lengths: Tensor | None,
        batch_sizes: tuple[int, ...] | None,
        nonlinearity: str,
        precision: str,
    ) -> Tensor:
        """z (T, N, D·H) or packed (total, D·H), w_hh (D, H, H), h0 (D, N, H) -> h like z."""

    def rnn_backward(
        self,
        dh: Tensor,
        h: Tensor,
        w_hh: Tensor,
        h0: Tensor,
        lengths: Tensor | None,
        batch_sizes: tuple[int, ...] | None,
        nonlinearity: str,
        precision: str,
    ) -> tuple[Tensor, Tensor]:
        """BPTT: dh like h -> dz like z, dh0 like h0."""

    def rnn_tangent(
        self,
        p: Tensor,
        h: Tensor,
        w_hh: Tensor,
        u0: Tensor,
        lengths: Tensor | None,
        batch_sizes: tuple[int, ...] | None,
        nonlinearity: str,
        precision: str,
    ) -> Tensor:
        """How h moves where z moves by p and h0 by u0: u like h. Engine `torch` alone has it, and serves every engine's."""

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
        """x (N, I), h (N, H) -> the next h (N, H), in one launch."""

    def rnn_cell_backward(
        self, dh_next: Tensor, h_next: Tensor, w_ih: Tensor, w_hh: Tensor, nonlinearity: str, precision: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """-> dz (N, H), dx (N, I), dh (N, H)."""
