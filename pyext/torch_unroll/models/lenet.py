"""LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998) in its usual modern form: every filter sees all maps, pooling takes the maximum,
and the last layer is linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import torch_unroll.nn as unrolled


class LeNet5(torch.nn.Module):
    """(N, 1, 32, 32) -> (N, classes); 61,706 parameters with ten classes.

    Args:
        num_classes: the number of classes.
        nn: the namespace of the modules: `torch_unroll.nn` or `torch.nn`.
    """

    def __init__(self, num_classes: int = 10, *, nn: Any = unrolled):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5),
            nn.Tanh(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.Tanh(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 120, 5),
            nn.Tanh(),
        )
        self.classifier = nn.Sequential(nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def lenet5(num_classes: int = 10, *, nn: Any = unrolled) -> LeNet5:
    """LeNet-5 for 32×32 images with one channel."""
    return LeNet5(num_classes, nn=nn)
