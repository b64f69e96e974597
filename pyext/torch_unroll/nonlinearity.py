"""The nonlinearities of the recurrence and their derivatives, written with torch's functions.

Every f here has a derivative that is a function of h = f(z) alone, so z is never saved.
"""

from __future__ import annotations

import torch
from torch import Tensor


def apply(nonlinearity: str, z: Tensor) -> Tensor:
    """Returns f(z), where f is the nonlinearity of this name."""
    if nonlinearity == "identity":
        return z
    function = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}[nonlinearity]
    return function(z)


def slope(nonlinearity: str, h: Tensor, gradient: Tensor) -> Tensor:
    """Returns f'(z) · gradient, computed from h = f(z)."""
    if nonlinearity == "tanh":
        return gradient * (1 - h * h)
    if nonlinearity == "relu":
        return torch.where(h <= 0, torch.zeros_like(gradient), gradient)
    if nonlinearity == "sigmoid":
        return gradient * (h * (1 - h))
    return gradient


def curvature(nonlinearity: str, h: Tensor) -> Tensor | None:
    """The derivative of f' with respect to h = f(z); None if it is 0 everywhere."""
    if nonlinearity == "tanh":
        return -2 * h
    return 1 - 2 * h if nonlinearity == "sigmoid" else None
