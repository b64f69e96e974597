"""torch.nn with some modules computed by torch_unroll and the rest unchanged, so that `import torch_unroll.nn as nn` is a drop-in
replacement.

Defined here: Conv2d, ConvTranspose2d, Unfold, Fold, MaxPool2d, RNN, RNNCell, LocallyConnected2d. Every other name is torch.nn's
own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torch_unroll.nn.convolution import Conv2d, ConvTranspose2d
from torch_unroll.nn.locally_connected import LocallyConnected2d
from torch_unroll.nn.pooling import MaxPool2d
from torch_unroll.nn.recurrent import RNN, RNNCell
from torch_unroll.nn.unfolding import Fold, Unfold

__all__ = ["RNN", "Conv2d", "ConvTranspose2d", "Fold", "LocallyConnected2d", "MaxPool2d", "RNNCell", "Unfold"]

if TYPE_CHECKING:  # type checkers then know torch.nn's other names, and report those that it lacks
    from torch.nn import *  # type: ignore[assignment]  # noqa: F403 (the names imported above keep their meaning)
    from torch.nn import functional as functional
    from torch.nn import init as init
    from torch.nn import utils as utils
else:

    def __getattr__(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(torch.nn, name)
