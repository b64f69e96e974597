"""The networks whose layers and training steps are measured."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch


@dataclass(frozen=True)
class NetworkInput:
    """What a network is fed: channels and side of the image, the smallest side it takes, the batch of the suites."""

    channels: int
    image: int
    smallest: int
    classes: int
    N: int


NETWORKS = {
    "lenet5": NetworkInput(1, 32, 32, 10, 256),
    "alexnet": NetworkInput(3, 224, 64, 1000, 64),
    "googlenet": NetworkInput(3, 224, 32, 1000, 32),
    "resnet18": NetworkInput(3, 224, 32, 1000, 32),
    "resnet50": NetworkInput(3, 224, 32, 1000, 32),
    "densenet121": NetworkInput(3, 224, 32, 1000, 32),
}


def build(name: str) -> torch.nn.Module:
    """The network out of torch.nn's own modules, with dropout off: results with different masks cannot be compared."""
    model: Any = getattr(import_module("torch_unroll.models"), name)(nn=torch.nn)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model
