"""One module of each class that `replace` swaps and `restore` restores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

#: Class -> the module as a function of the namespace, and the shape of its input.
MODULES: dict[str, tuple[Callable[[Any], nn.Module], tuple[int, ...]]] = {
    "Conv2d": (lambda nn: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (2, 2, 5, 4)),
    "ConvTranspose2d": (lambda nn: nn.ConvTranspose2d(2, 4, 3, 2, output_padding=1), (2, 2, 5, 4)),
    "Unfold": (lambda nn: nn.Unfold((2, 3), stride=2), (2, 2, 5, 4)),
    "Fold": (lambda nn: nn.Fold((4, 5), 2), (2, 8, 12)),
    "MaxPool2d": (lambda nn: nn.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 2, 5, 4)),
    "RNN": (lambda nn: nn.RNN(2, 3, 2, nonlinearity="relu", bidirectional=True), (4, 2, 2)),
    "RNNCell": (lambda nn: nn.RNNCell(2, 3, nonlinearity="relu"), (2, 2)),
}
