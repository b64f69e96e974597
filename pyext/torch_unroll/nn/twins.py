"""The classes of torch.nn that have a counterpart in torch_unroll.nn."""

from __future__ import annotations

import torch

from torch_unroll.nn.convolution import Conv2d, ConvTranspose2d
from torch_unroll.nn.pooling import MaxPool2d
from torch_unroll.nn.recurrent import RNN, RNNCell
from torch_unroll.nn.unfolding import Fold, Unfold

#: torch's class -> torch_unroll's
OURS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    getattr(torch.nn, ours.__name__): ours for ours in (Conv2d, ConvTranspose2d, Fold, MaxPool2d, RNN, RNNCell, Unfold)
}
#: torch_unroll's class -> torch's
TORCHS = {ours: torchs for torchs, ours in OURS.items()}
