"""Unfolding (im2col) and folding (col2im) modules of torch.nn, computed by torch_unroll."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.common_types import _size_any_t

from torch_unroll.nn.leaf import is_recorded, record
from torch_unroll.unfold import fold, unfold


class Unfold(torch.nn.Unfold):
    """`torch.nn.Unfold` computed by `torch_unroll.unfold`: same constructor and repr.

    Args beyond torch's: `engine`, as in `torch_unroll.unfold`.
    """

    engine: str | None = None  # for modules that `torch_unroll.replace` made: it does not call __init__

    def __init__(
        self,
        kernel_size: _size_any_t,
        dilation: _size_any_t = 1,
        padding: _size_any_t = 0,
        stride: _size_any_t = 1,
        *,
        engine: str | None = None,
    ):
        super().__init__(kernel_size, dilation, padding, stride)
        self.engine = engine

    def forward(self, input: Tensor) -> Tensor:
        if is_recorded(self, input):
            return record(self, input)
        return unfold(input, self.kernel_size, self.dilation, self.padding, self.stride, engine=self.engine)


class Fold(torch.nn.Fold):
    """`torch.nn.Fold` computed by `torch_unroll.fold`: same constructor and repr.

    Args beyond torch's: `engine`, as in `torch_unroll.fold`.
    """

    engine: str | None = None

    def __init__(
        self,
        output_size: _size_any_t,
        kernel_size: _size_any_t,
        dilation: _size_any_t = 1,
        padding: _size_any_t = 0,
        stride: _size_any_t = 1,
        *,
        engine: str | None = None,
    ):
        super().__init__(output_size, kernel_size, dilation, padding, stride)
        self.engine = engine

    def forward(self, input: Tensor) -> Tensor:
        if is_recorded(self, input):
            return record(self, input)
        return fold(input, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride, engine=self.engine)
