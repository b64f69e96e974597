"""Convolution modules of torch.nn, computed by torch_unroll."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.common_types import _size_2_t
from torch.types import Device

from torch_unroll.conv2d import conv2d, conv_transpose2d
from torch_unroll.kernels.shapes import Pair
from torch_unroll.nn.leaf import is_recorded, record

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class Conv2d(torch.nn.Conv2d):
    """`torch.nn.Conv2d` computed by `torch_unroll.conv2d`: same constructor, parameters, state_dict and repr.

    Args beyond torch's: `engine`, as in `torch_unroll.conv2d`.
    """

    engine: str | None = None  # for modules that `torch_unroll.replace` made: it does not call __init__

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: str | _size_2_t = 0,
        dilation: _size_2_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        engine: str | None = None,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.engine = engine

    def forward(self, input: Tensor) -> Tensor:
        return record(self, input) if is_recorded(self, input) else super().forward(input)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups, engine=self.engine)


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` computed by `torch_unroll.conv_transpose2d`: same constructor, parameters, state_dict and repr.

    Args beyond torch's: `engine`, as in `torch_unroll.conv2d`.
    """

    engine: str | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: _size_2_t = 0,
        output_padding: _size_2_t = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: _size_2_t = 1,
        padding_mode: PaddingMode = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        engine: str | None = None,
    ):
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,
            device,
            dtype,
        )
        self.engine = engine

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As in `torch.nn.ConvTranspose2d`, `output_size`, (H, W) or the full shape, selects one of the possible output sizes."""
        if is_recorded(self, input, output_size):
            return record(self, input, output_size)
        if self.padding_mode != "zeros":
            raise ValueError(f"padding_mode: expected 'zeros', got {self.padding_mode!r}")
        padding = cast(Pair, self.padding)  # torch.nn.ConvTranspose2d accepts no string
        stride, window, dilation = list(self.stride), list(self.kernel_size), list(self.dilation)
        extra = self._output_padding(input, output_size, stride, list(padding), window, 2, dilation)
        return conv_transpose2d(
            input, self.weight, self.bias, self.stride, padding, extra, self.groups, self.dilation, engine=self.engine
        )
