"""First-order DARTS (Liu, Simonyan & Yang 2019): a cell in which every edge mixes all operations, and the discrete cell derived
from it.

An edge computes Σ_o softmax(α)_o · o(x), where o runs over the operations and α holds one number for each of them. Steps that
train the weights on one half of the data alternate with steps that train α on the other half. The discrete cell keeps the
operation with the largest weight on each edge and, into each node, the two edges whose largest weights are highest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_unroll.nn as unrolled
from torch_unroll.training.digits import Digits

OPERATIONS: dict[str, Callable[[int, Any], torch.nn.Module]] = {
    "skip": lambda channels, nn: nn.Identity(),
    "max_pool_3x3": lambda channels, nn: nn.MaxPool2d(3, 1, 1),
    "conv_3x3": lambda channels, nn: _convolution(channels, 3, nn),
    "conv_5x5": lambda channels, nn: _convolution(channels, 5, nn),
}
Genotype = tuple[tuple[tuple[int, str], ...], ...]  # for each node, its edges as (source, operation); source 0 is the input


def _convolution(channels: int, extent: int, nn: Any) -> torch.nn.Module:
    convolution = nn.Conv2d(channels, channels, extent, padding=extent // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


class MixedOp(torch.nn.Module):
    """The weighted sum of the results of all operations on one input: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, *, nn: Any = unrolled):
        super().__init__()
        self.operations = torch.nn.ModuleList(make(channels, nn) for make in OPERATIONS.values())

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        mixed: Tensor = sum(weight * operation(x) for weight, operation in zip(weights, self.operations, strict=True))
        return mixed


class Cell(torch.nn.Module):
    """A cell in which each node sums the edges from the input and all earlier nodes; the output is the mean of the nodes. `alpha`
    is (edges, operations)."""

    def __init__(self, channels: int, nodes: int = 3, *, nn: Any = unrolled):
        super().__init__()
        self.nodes = nodes
        edges = nodes * (nodes + 1) // 2
        self.edges = torch.nn.ModuleList(MixedOp(channels, nn=nn) for _ in range(edges))
        self.alpha = torch.nn.Parameter(1e-3 * torch.randn(edges, len(OPERATIONS)))

    def forward(self, x: Tensor) -> Tensor:
        states, weights, edge = [x], self.alpha.softmax(1), 0
        for _ in range(self.nodes):
            total = torch.zeros_like(x)
            for state in tuple(states):
                total = total + self.edges[edge](state, weights[edge])
                edge += 1
            states.append(total)
        return torch.stack(states[1:]).mean(0)

    def genotype(self) -> Genotype:
        """The discrete cell: the strongest operation of each edge, and at most two edges, the strongest, into each node."""
        chosen, edge, alpha = [], 0, self.alpha.detach().softmax(1)
        names = list(OPERATIONS)
        for node in range(self.nodes):
            strengths = {source: alpha[edge + source] for source in range(node + 1)}
            kept = sorted(strengths, key=lambda source: -float(strengths[source].max()))[:2]
            chosen.append(tuple((source, names[int(strengths[source].argmax())]) for source in sorted(kept)))
            edge += node + 1
        return tuple(chosen)


class DiscreteCell(torch.nn.Module):
    """The discrete cell that a genotype describes."""

    def __init__(self, channels: int, genotype: Genotype, *, nn: Any = unrolled):
        super().__init__()
        self.genotype = genotype
        self.operations = torch.nn.ModuleList(OPERATIONS[name](channels, nn) for node in genotype for _, name in node)

    def forward(self, x: Tensor) -> Tensor:
        states, operations = [x], iter(self.operations)
        for node in self.genotype:
            total = torch.zeros_like(x)
            for source, _ in node:
                total = total + next(operations)(states[source])
            states.append(total)
        return torch.stack(states[1:]).mean(0)


def network(cell: torch.nn.Module, channels: int, *, nn: Any = unrolled) -> torch.nn.Sequential:
    """A network of a stem, the cell, pooling and a classifier: (N, 1, 8, 8) -> (N, 10)."""
    stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
    return nn.Sequential(stem, cell, nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def search(digits: Digits, epochs: int = 5, channels: int = 8, nodes: int = 3, seed: int = 0) -> Iterator[tuple[float, Cell]]:
    """Trains weights and α alternately; yields, after each epoch, the mean loss on the half of the data for α, and the cell."""
    torch.manual_seed(seed)
    cell = Cell(channels, nodes)
    whole = network(cell, channels)
    weights = [parameter for parameter in whole.parameters() if parameter is not cell.alpha]
    learner = torch.optim.SGD(weights, 0.05, momentum=0.9, weight_decay=3e-4)
    architect = torch.optim.Adam([cell.alpha], 0.01, betas=(0.5, 0.999), weight_decay=1e-3)
    half = len(digits.images) // 2

    def loss(rows: Tensor) -> Tensor:
        return F.cross_entropy(whole(digits.images[rows].unsqueeze(1)), digits.digits[rows])

    for _ in range(epochs):
        total, batches = 0.0, list(zip(torch.randperm(half).split(64), (half + torch.randperm(half)).split(64), strict=True))
        for for_weights, for_alpha in batches:
            value = loss(for_alpha)
            (gradient,) = torch.autograd.grad(value, [cell.alpha])
            cell.alpha.grad = gradient
            architect.step()
            gradients = torch.autograd.grad(loss(for_weights), weights)
            for parameter, gradient in zip(weights, gradients, strict=True):
                parameter.grad = gradient
            learner.step()
            total += float(value.detach())
        yield total / len(batches), cell
