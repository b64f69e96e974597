"""The networks whose layers and training steps are measured."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch


@dataclass(frozen=True)
class NetworkInput:
    """The input of a network, a batch of N square images with `image` pixels per side, and the number of its output classes.

    `smallest` is the side of the images in a shrunk case.
    """

    channels: int
    image: int
    smallest: int
    classes: int
    N: int


NETWORKS = {
    "lenet5": NetworkInput(channels=1, image=32, smallest=32, classes=10, N=256),
    "alexnet": NetworkInput(channels=3, image=224, smallest=64, classes=1000, N=64),
    "googlenet": NetworkInput(channels=3, image=224, smallest=32, classes=1000, N=32),
    "resnet18": NetworkInput(channels=3, image=224, smallest=32, classes=1000, N=32),
    "resnet50": NetworkInput(channels=3, image=224, smallest=32, classes=1000, N=32),
    "densenet121": NetworkInput(channels=3, image=224, smallest=32, classes=1000, N=32),
}


def build(name: str) -> torch.nn.Module:
    """Builds the network from torch.nn's modules, without dropout, whose random masks would make results incomparable."""
    model: Any = getattr(import_module("torch_unroll.models"), name)(nn=torch.nn)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model
