"""The search space: small convolutional networks for the 8×8 digits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_unroll.nn as unrolled
from torch_unroll.training.digits import Digits

#: The values of each choice. Only a grid search uses those of `rate`; other strategies draw the rate from a range or ignore it.
CHOICES: dict[str, tuple[Any, ...]] = {
    "depth": (1, 2, 3),
    "width": (8, 16, 32),
    "kernel_size": (3, 5),
    "pooling": ("max", "stride"),
    "normalisation": ("batch", "none"),
    "rate": (0.01, 0.03, 0.1),
}


@dataclass(frozen=True)
class Candidate:
    """A point of the space: a network of `depth` stages, each of which halves height and width, and its learning rate. The first
    stage has `width` channels, and each further stage twice as many as the one before."""

    depth: int = 2
    width: int = 16
    kernel_size: int = 3
    pooling: str = "max"
    normalisation: str = "batch"
    rate: float = 0.03


def build(candidate: Candidate, *, nn: Any = unrolled) -> torch.nn.Sequential:
    """The network of a candidate: (N, 1, 8, 8) -> (N, 10)."""
    layers: list[torch.nn.Module] = []
    channels = 1
    for stage in range(candidate.depth):
        filters, stride = candidate.width << stage, 2 if candidate.pooling == "stride" else 1
        layers.append(nn.Conv2d(channels, filters, candidate.kernel_size, stride, candidate.kernel_size // 2))
        if candidate.normalisation == "batch":
            layers.append(nn.BatchNorm2d(filters))
        layers.append(nn.ReLU())
        if candidate.pooling == "max":
            layers.append(nn.MaxPool2d(2))
        channels = filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def accuracy(network: torch.nn.Module, images: Tensor, digits: Tensor) -> float:
    """The share of the pictures (N, 8, 8) whose digit has the largest score. Puts the network into eval mode."""
    network.eval()
    with torch.no_grad():
        return float((network(images.unsqueeze(1)).argmax(1) == digits).float().mean())


def train(candidate: Candidate, digits: Digits, epochs: int, seed: int = 0) -> Iterator[float]:
    """Trains a candidate on three quarters of the training digits; yields its accuracy on the last quarter after each epoch.

    The held-out digits are not used, so that they remain an independent test of the candidate that a search selects.
    """
    torch.manual_seed(seed)
    network = build(candidate)
    optimizer = torch.optim.SGD(network.parameters(), candidate.rate, momentum=0.9)
    learn = len(digits.images) * 3 // 4
    for _ in range(epochs):
        network.train()
        for rows in torch.randperm(learn).split(64):
            loss = F.cross_entropy(network(digits.images[rows].unsqueeze(1)), digits.digits[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield accuracy(network, digits.images[learn:], digits.digits[learn:])
