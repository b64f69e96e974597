"""Gradients that can be differentiated again wherever torch's can, even if nothing that they were computed from requires it.

torch's backward operators take every input of their forward, so under `create_graph` their results require gradients: those by
what they depend on formally are zeros, or nothing at all. Code that penalises gradients relies on both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_unroll.tracing import apply_unseen

_LEGACY_VMAP: Any = torch._C._parse_dispatch_key("VmapMode")


def in_batched_gradients() -> bool:
    """Whether this runs in the vmap of `torch.autograd.grad(..., is_grads_batched=True)`, whose tensors look like any other."""
    return torch._C._dispatch_tls_is_dispatch_key_included(_LEGACY_VMAP)


#: What gradients are tied to that formally depend on the inputs of a forward, with no derivative.
_NOWHERE = torch.empty(0, device="cpu", requires_grad=True)


class _WithHistory(Function):
    """gradient, anchor (0) -> the gradient; its derivative by the anchor is zero, and none by `_NOWHERE`."""

    @staticmethod
    def forward(gradient: Tensor, anchor: Tensor) -> Tensor:
        return gradient.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.leads_on = inputs[1] is not _NOWHERE

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor | None]:
        return outer, outer.new_zeros(0) if ctx.leads_on else None

    @staticmethod
    def jvp(ctx: Any, moved: Tensor, _: Tensor | None) -> Tensor:
        return moved

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], gradient: Tensor, anchor: Tensor) -> tuple[Tensor, int | None]:
        return _WithHistory.apply(gradient, anchor), in_dims[0]


def with_history(gradient: Tensor | None, anchor: Tensor = _NOWHERE) -> Tensor | None:
    """A gradient that can be differentiated again wherever torch's can: under `create_graph` it requires a gradient, even if
    nothing it was computed from does. Its derivative by the anchor's history is zero; without an anchor it has none."""
    if gradient is None or gradient.requires_grad or not torch.is_grad_enabled():
        return gradient
    if in_batched_gradients():
        return gradient + anchor.sum()  # that vmap's tensors lose what a Function notes on them
    return apply_unseen(_WithHistory, gradient, anchor)


class _GradientWithHistory(Function):
    """A tensor as it is; its gradient goes through `with_history`."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor | None:
        return with_history(gradient)

    @staticmethod
    def jvp(ctx: Any, moved: Tensor) -> Tensor:
        return moved


def gradient_with_history(tensor: Tensor, *beside: Tensor) -> Tensor:
    """A tensor whose gradient goes through `with_history`, where one of the tensors beside it requires one; for what is computed
    around an op, though torch's operator computes it within."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return tensor
    if tensor.requires_grad and torch.is_grad_enabled() and any(other.requires_grad for other in beside):
        return apply_unseen(_GradientWithHistory, tensor)
    return tensor
