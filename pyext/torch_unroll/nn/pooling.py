"""Pooling modules: torch.nn's, computed by torch_unroll."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_unroll.max_pool2d import max_pool2d
from torch_unroll.nn.leaf import is_recorded, record


class MaxPool2d(torch.nn.MaxPool2d):
    """`torch.nn.MaxPool2d` computed by `torch_unroll.max_pool2d`: same constructor and repr.

    Args beyond torch's: `engine`, one of `torch_unroll.available_engines()`; None takes the first that can.
    """

    engine: str | None = None

    def __init__(self, *args: Any, engine: str | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
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
