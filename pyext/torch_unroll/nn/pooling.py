"""Pooling modules of torch.nn, computed by torch_unroll."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.common_types import _size_any_t

from torch_unroll.max_pool2d import max_pool2d
from torch_unroll.nn.leaf import is_recorded, record


class MaxPool2d(torch.nn.MaxPool2d):
    """`torch.nn.MaxPool2d` computed by `torch_unroll.max_pool2d`: same constructor and repr.

    Args beyond torch's: `engine`, as in `torch_unroll.max_pool2d`.
    """

    engine: str | None = None  # for modules that `torch_unroll.replace` made: it does not call __init__

    def __init__(
        self,
        kernel_size: _size_any_t,
        stride: _size_any_t | None = None,
        padding: _size_any_t = 0,
        dilation: _size_any_t = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        engine: str | None = None,
    ):
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)
        self.engine = engine

    def forward(self, input: Tensor) -> Any:
        if is_recorded(self, input):
            return record(self, input)
        return max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
            engine=self.engine,
        )
