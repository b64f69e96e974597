"""The neural tangent kernel (Jacot, Gabriel & Hongler 2018) of a finite network, as a score that needs no training.

Θ(x, x') = Σ_θ ∂f(x)/∂θ · ∂f(x')/∂θ. Gradient descent on a wide network learns along Θ's eigenvectors at rates its eigenvalues
give, so a small condition number promises that all of them are learned (Chen, Gong & Wang 2021, TE-NAS, use it so).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap


def neural_tangent_kernel(network: torch.nn.Module, x: Tensor) -> Tensor:
    """Θ (N, N) of a network's summed outputs at x (N, ...), divided by the number of outputs.

    The network is evaluated one input at a time, so its normalisation must be in eval mode.
    """
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    buffers = {name: buffer.detach() for name, buffer in network.named_buffers()}

    def output(parameters: dict[str, Tensor], one: Tensor) -> Tensor:
        found: Tensor = functional_call(network, (parameters, buffers), (one.unsqueeze(0),)).squeeze(0)
        return found

    jacobians = vmap(jacrev(output), (None, 0))(parameters, x)  # name -> (N, outputs, ...)
    flat = torch.cat([jacobian.flatten(2) for jacobian in jacobians.values()], 2)
    return torch.einsum("nop,mop->nm", flat, flat) / flat.shape[1]


def condition_number(network: torch.nn.Module, x: Tensor) -> float:
    """The largest eigenvalue of Θ over its smallest; infinite if Θ is singular in the arithmetic of x."""
    network.eval()
    values = torch.linalg.eigvalsh(neural_tangent_kernel(network, x).double())
    return float(values[-1] / values[0]) if values[0] > 0 else float("inf")
