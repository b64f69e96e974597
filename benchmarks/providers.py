"""Providers, which are the engines of torch_unroll and the baselines they are compared with, and the calls that are timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_unroll.engines import NAMES as ENGINES

Tensors = Mapping[str, Tensor]
Call = Callable[[], tuple[Tensor, ...]]

#: What a user would call without torch_unroll.
BASELINES = ("eager", "compile")


def is_engine(provider: str) -> bool:
    """Whether a provider is an engine of torch_unroll rather than a baseline."""
    return provider in ENGINES


def double(tensors: Tensors) -> dict[str, Tensor]:
    """The same tensors in float64."""
    return {name: tensor.double() for name, tensor in tensors.items()}


def direct_call(function: Callable[..., Any], tensors: Tensors) -> Call:
    """A call of the function without autograd."""

    def call() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (function(**tensors),)

    return call


def _differentiable(tensors: Tensors) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The tensors as leaves of autograd, and those that are differentiated, which are all but `dy`."""
    leaves = {name: tensor.detach().requires_grad_(name != "dy") for name, tensor in tensors.items()}
    return leaves, [leaf for name, leaf in leaves.items() if name != "dy"]


def train_call(function: Callable[..., Any], tensors: Tensors) -> Call:
    """A call that computes the forward pass and the gradient of every input."""
    leaves, inputs = _differentiable(tensors)

    def call() -> tuple[Tensor, ...]:
        y = function(**leaves)
        return (y.detach(), *torch.autograd.grad(y, inputs, leaves["dy"]))

    return call


def backward_call(function: Callable[..., Any], tensors: Tensors) -> Call:
    """A call that computes only the gradient of every input. The forward pass runs once, before the call is returned."""
    leaves, inputs = _differentiable(tensors)
    y = function(**leaves)

    def call() -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, inputs, leaves["dy"], retain_graph=True)

    return call
