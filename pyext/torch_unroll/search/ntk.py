"""The neural tangent kernel (Jacot, Gabriel & Hongler 2018) of a finite network, as a score that needs no training.

Θ(x, x') = Σ_θ ∂f(x)/∂θ · ∂f(x')/∂θ, where f is the network and θ runs over its parameters. Gradient descent on a wide network
learns along the eigenvectors of Θ at rates given by its eigenvalues, so a small condition number indicates that the network
learns along all of them. TE-NAS (Chen, Gong & Wang 2021) uses the condition number as a score.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap


def neural_tangent_kernel(network: torch.nn.Module, x: Tensor) -> Tensor:
    """Θ (N, N) at x (N, ...), averaged over the outputs of a network.

    The network is evaluated on one input at a time, so its normalisation must be in eval mode.
    """
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    buffers = {name: buffer.detach() for name, buffer in network.named_buffers()}

    def output(parameters: dict[str, Tensor], one: Tensor) -> Tensor:
        y: Tensor = functional_call(network, (parameters, buffers), (one.unsqueeze(0),)).squeeze(0)
        return y

    jacobians = vmap(jacrev(output), (None, 0))(parameters, x)  # name -> (N, outputs, ...)
    flat = torch.cat([jacobian.flatten(2) for jacobian in jacobians.values()], 2)
    return torch.einsum("nop,mop->nm", flat, flat) / flat.shape[1]


def condition_number(network: torch.nn.Module, x: Tensor) -> float:
    """The largest eigenvalue of Θ divided by the smallest; infinite if the computed smallest one is not positive. Puts the
    network into eval mode."""
    network.eval()
    values = torch.linalg.eigvalsh(neural_tangent_kernel(network, x).double())
    return float(values[-1] / values[0]) if values[0] > 0 else float("inf")
