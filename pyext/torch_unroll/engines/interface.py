"""What every engine provides. Output strides and saved tensors do not depend on the engine.

The floating-point tensors of a call have one dtype, all its tensors are on one device and may have any strides, and their sizes
have been checked against each other. The letters are those of kernels/cuda/shapes.h, and D is the number of directions; pairs are
(height, width). `precision` is "tf32" or "ieee" and matters for float32 alone. If a kernel needs packed operands, the engine
packs them within the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from torch_unroll.kernels.shapes import Pair

#: top, bottom, left, right
Padding = tuple[int, int, int, int]

#: The dtypes of the kernels.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NONLINEARITIES = ("tanh", "relu", "sigmoid", "identity")
#: How fp32 products are computed: as torch's switch for convolution or for recurrence says, or as named.
PRECISIONS = ("conv", "rnn", "tf32", "ieee")


class Conv2dGeometry(NamedTuple):
    """Where the filters of a convolution are applied, and which channels each of them sees."""

    stride: Pair
    padding: Padding
    dilation: Pair
    groups: int


class Pool2dGeometry(NamedTuple):
    """The windows of max pooling, unfold and fold; `padding` is the same on both sides of an axis."""

    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair


class RnnOptions(NamedTuple):
    """How the steps of a recurrent layer are laid out in memory, and how each is computed.

    A sequence is either padded, (T, N, ·), or packed, (total, ·). A packed sequence holds the rows of step 0, then those of step
    1, and so on; step t has `batch_sizes[t]` rows, one for each sample that reaches it.
    """

    #: (N), integers: the steps of each padded sample, to be clamped to [0, T]. None for T steps each, or for a packed sequence.
    lengths: Tensor | None
    batch_sizes: tuple[int, ...] | None  # (T), the rows of each step of a packed sequence; None for a padded sequence
    nonlinearity: str
    precision: str


#: W_hh of all directions: one tensor (D, H, H), or a tensor (H, H) for each direction.
RecurrentWeights = Tensor | Sequence[Tensor]


class Engine(Protocol):
    """The functions of an engine."""

    name: str

    def warmup(self, op: str, dtype: torch.dtype, device: torch.device) -> None:
        """Compiles and loads whatever the first call of an op (one of `kernels.table.OPS`) would otherwise compile and load."""

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
        """Computes y (N, K, P, Q) from x (N, C, H, W), w (K, C/groups, R, S), bias (K) and bias2 (K).

        Both biases are added before the one rounding.
        `layout` is the memory format of y; None stands for torch's rule, `shapes.output_memory_format` of x and w.
        """

    def conv2d_dgrad(
        self,
        dy: Tensor,
        w: Tensor,
        x_size: Pair,
        geometry: Conv2dGeometry,
        precision: str,
        layout: torch.memory_format | None = None,
    ) -> Tensor:
        """Computes dx (N, C, H, W) from dy (N, K, P, Q) and w; `x_size` is (H, W).

        `layout` is the memory format of dx; None stands for torch's rule, `shapes.output_memory_format` of dy and w.
        """

    def conv2d_wgrad(
        self,
        dy: Tensor,
        x: Tensor,
        w_size: Pair,
        geometry: Conv2dGeometry,
        precision: str,
        dw_stride: Sequence[int] | None = None,
    ) -> Tensor:
        """Computes dw (K, C/groups, R, S) from dy and x; `w_size` is (R, S).

        `dw_stride` holds the strides of dw, which lay it out without gaps; None makes dw contiguous.
        """

    def conv2d_wgrad_bias(
        self,
        dy: Tensor,
        x: Tensor,
        w_size: Pair,
        geometry: Conv2dGeometry,
        precision: str,
        dw_stride: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes what `conv2d_wgrad` computes, and the bias gradient db (K), contiguous: the sum of dy over the pixels of all
        images. It is summed in float32, or float64 for float64, and rounded once."""

    def unfold(self, x: Tensor, geometry: Pool2dGeometry) -> Tensor:
        """Copies the windows of x (N, C, H, W) into columns (N, C·R·S, P·Q)."""

    def fold(self, columns: Tensor, output_size: Pair, geometry: Pool2dGeometry) -> Tensor:
        """Computes x (N, C, H, W) from columns (N, C·R·S, P·Q): each pixel is the sum of the cells that cover it."""

    def max_pool2d_forward(
        self, x: Tensor, geometry: Pool2dGeometry, ceil_mode: bool, with_offsets: bool
    ) -> tuple[Tensor, Tensor]:
        """Computes y (N, C, P, Q) from x (N, C, H, W), and the offsets, laid out like y: the cell r·S + s that each window chose.

        `shapes.pooling_offset_dtype` gives the dtype of the offsets. Without `with_offsets` they are an empty tensor of this
        dtype.
        """

    def max_pool2d_backward(self, dy: Tensor, offsets: Tensor, x_size: Pair, geometry: Pool2dGeometry) -> Tensor:
        """Computes dx (N, C, H, W) from dy: each pixel is the sum of dy over the windows that chose it; `x_size` is
        (H, W)."""

    def max_pool2d_gather(self, x: Tensor, offsets: Tensor, geometry: Pool2dGeometry) -> Tensor:
        """Reads from x (N, C, H, W) the cell that each window chose, (N, C, P, Q); 0 where it chose none."""

    def max_pool2d_indices(self, offsets: Tensor, x_size: Pair, geometry: Pool2dGeometry) -> Tensor:
        """Converts offsets into torch's int64 indices, row · W + column; `x_size` is (H, W)."""

    def max_over_time_forward(self, x: Tensor, lengths: Tensor | None, with_offsets: bool) -> tuple[Tensor, Tensor]:
        """Computes y (N, C), the maximum of x (T, N, C) over time, and the offsets (N, C): the step that each value comes from.

        `lengths` (N) limits the maximum to the first steps of each sample; None stands for all T. The offsets are those of a T×1
        window; without `with_offsets` they are empty.
        """

    def max_over_time_backward(self, dy: Tensor, offsets: Tensor, steps: int) -> Tensor:
        """Computes dx (T, N, C) from dy (N, C); `steps` is T."""

    def max_over_time_gather(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Reads from x (T, N, C) the step that each offset names, (N, C); 0 where it names none."""

    def rnn_forward(
        self, z: Tensor, w_hh: RecurrentWeights, h0: Tensor | None, options: RnnOptions, h_n: Tensor | None = None
    ) -> Tensor:
        """Computes h (like z) from z (T, N, D·H) or packed (total, D·H), w_hh and h0 (D, N, H). h is 0 past a sample's
        length.

        None stands for an h0 of zeros. `h_n` (D, N, H), if passed, is contiguous and is overwritten with every sample's state
        after the step that a direction computes last, which is h0 for a sample without steps.
        """

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
        """Back-propagates through time: computes dz (like h) and dh0 (D, N, H) from dh (like h), h and w_hh. dz is 0 past a
        sample's length. The values of h0 are not read.

        `dh_n` (D, N, H) is the gradient of the h_n of `rnn_forward`; None stands for a dh, or a dh_n, of zeros. Without
        `with_dh0`, None takes the place of dh0.
        """

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
        """Computes the next h (N, H) from x (N, I), h (N, H), w_ih (H, I), w_hh (H, H), and the biases (H)."""

    def rnn_cell_backward(
        self, dh_next: Tensor, h_next: Tensor, w_ih: Tensor, w_hh: Tensor, nonlinearity: str, precision: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Computes dz (N, H), dx (N, I) and dh (N, H) from dh_next and h_next (N, H) and the weights."""
