"""Convolution modules: torch.nn's, computed by torch_unroll."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_unroll.conv2d import conv2d
from torch_unroll.nn.leaf import is_recorded, record


class Conv2d(torch.nn.Conv2d):
    """`torch.nn.Conv2d` computed by `torch_unroll.conv2d`: same constructor, parameters, state_dict and repr.

    Args beyond torch's: `engine`, one of `torch_unroll.available_engines()`; None takes the first that can.
    """

    engine: str | None = None  # on the class, for modules that became one by `torch_unroll.replace`

    def __init__(self, *args: Any, engine: str | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.engine = engine

    def forward(self, input: Tensor) -> Tensor:
        return record(self, input) if is_recorded(self, input) else super().forward(input)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups, engine=self.engine)
