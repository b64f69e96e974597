"""A convolution whose filters are not shared: every output pixel has its own filters."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.types import Device

from torch_unroll.nn.leaf import is_recorded, record
from torch_unroll.shapes import Size, convolved, pair, require
from torch_unroll.unfold import unfold


class LocallyConnected2d(torch.nn.Module):
    """Local connections without weight sharing: im2col, then one small matrix product per output pixel.

    On a 200×200 image with 400,000 hidden units and 10×10 fields it has 40 million weights, while a fully connected layer has
    16 billion and a convolution with 10 filters 1,000.

    Args:
        in_channels, out_channels: C and K.
        input_size: the (H, W) of the images, which determines the number of filters; an int or a pair.
        kernel_size, stride, padding, dilation: an int or a pair, as in Conv2d.
        bias: whether each output unit has a bias.
        engine: as in `torch_unroll.unfold`.

    Shapes:
        input (N, C, H, W) or (C, H, W); weight (P·Q, K, C·R·S); bias (K, P, Q); output (N, K, P, Q), without N if the
        input has none.

    Raises:
        ValueError: the filter does not fit into the padded input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: Size,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        engine: str | None = None,
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.engine = in_channels, out_channels, engine
        self.input_size, self.kernel_size = pair(input_size, "input_size"), pair(kernel_size, "kernel_size")
        self.stride, self.padding, self.dilation = pair(stride, "stride"), pair(padding, "padding"), pair(dilation, "dilation")
        self.output_size = tuple(
            convolved(self.input_size[i], self.kernel_size[i], self.stride[i], 2 * self.padding[i], self.dilation[i])
            for i in (0, 1)
        )
        if min(self.output_size) <= 0:
            raise ValueError(f"kernel_size: expected one that fits the padded input {self.input_size}, got {self.kernel_size}")
        rows = in_channels * self.kernel_size[0] * self.kernel_size[1]
        weight = torch.empty(math.prod(self.output_size), out_channels, rows, device=device, dtype=dtype)
        self.weight = torch.nn.Parameter(weight)
        b = torch.empty(out_channels, *self.output_size, device=device, dtype=dtype) if bias else None
        self.bias = None if b is None else torch.nn.Parameter(b)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises weight and bias uniformly within ±1/√(C·R·S), as torch.nn's convolutions do."""
        bound = 1 / math.sqrt(max(1, self.weight.shape[2]))
        torch.nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        if is_recorded(self, input):
            return record(self, input)
        require(
            input.dim() in (3, 4) and tuple(input.shape[-3:]) == (self.in_channels, *self.input_size),
            f"input: expected (N, {self.in_channels}, {self.input_size[0]}, {self.input_size[1]}), got {tuple(input.shape)}",
        )
        batched = input if input.dim() == 4 else input.unsqueeze(0)
        columns = unfold(batched, self.kernel_size, self.dilation, self.padding, self.stride, engine=self.engine)
        # The product of (P·Q, K, C·R·S) and (P·Q, C·R·S, N) is (P·Q, K, N); it becomes (N, K, P·Q).
        y = torch.bmm(self.weight, columns.permute(2, 1, 0)).permute(2, 1, 0)
        y = y.reshape(batched.shape[0], self.out_channels, *self.output_size)
        if self.bias is not None:
            y = y + self.bias
        return y if input.dim() == 4 else y.squeeze(0)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, input_size={self.input_size}, kernel_size={self.kernel_size},"
            f" stride={self.stride}, padding={self.padding}, dilation={self.dilation}, bias={self.bias is not None}"
        )
