"""torch.nn's modules on these ops, and the rest of torch.nn unchanged, so that `import torch_unroll.nn as nn` drops in.

Here: Conv2d, MaxPool2d, RNN, RNNCell, LocallyConnected2d. Every other name is torch.nn's own.
"""

from __future__ import annotations

from typing import Any

import torch

from torch_unroll.nn.convolution import Conv2d
from torch_unroll.nn.locally_connected import LocallyConnected2d
from torch_unroll.nn.pooling import MaxPool2d
from torch_unroll.nn.recurrent import RNN, RNNCell

__all__ = ["RNN", "Conv2d", "LocallyConnected2d", "MaxPool2d", "RNNCell"]


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(torch.nn, name)
