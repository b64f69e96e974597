"""Gradients that can be differentiated again wherever torch's can, even if no tensor that they were computed from requires a
gradient.

torch's backward operators take inputs of the forward even where their results do not depend on them, so these results require
gradients under `create_graph`. The gradient of such a result with respect to such an input is zero, or None. Code that
penalises gradients relies on both properties.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_unroll.tracing import apply_unseen

_LEGACY_VMAP: Any = torch._C._parse_dispatch_key("VmapMode")


def in_batched_gradients() -> bool:
    """Whether this runs inside the vmap of `torch.autograd.grad(..., is_grads_batched=True)`, which the tensors
    inside do not reveal."""
    return torch._C._dispatch_tls_is_dispatch_key_included(_LEGACY_VMAP)


#: The default anchor of `with_history`. An anchor is an empty tensor that gives a gradient the history of the tensors that the
#: anchor was computed from. This one was computed from none, so a gradient's own gradient with respect to the inputs of the
#: forward is None instead of zero.
_NOWHERE = torch.empty(0, device="cpu", requires_grad=True)


class _WithHistory(Function):
    """gradient, anchor (an empty tensor) -> the gradient, unchanged. The result's own gradient with respect to the anchor is
    zero, or None if the anchor is `_NOWHERE`."""

    @staticmethod
    def forward(gradient: Tensor, anchor: Tensor) -> Tensor:
        return gradient.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.has_anchor = inputs[1] is not _NOWHERE

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor | None]:
        return outer, outer.new_zeros(0) if ctx.has_anchor else None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Tensor | None) -> Tensor:
        return tangent

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], gradient: Tensor, anchor: Tensor) -> tuple[Tensor, int | None]:
        return _WithHistory.apply(gradient, anchor), in_dims[0]


def with_history(gradient: Tensor | None, anchor: Tensor = _NOWHERE) -> Tensor | None:
    """The gradient, made to require a gradient under `create_graph` even if no tensor that it was computed from does. Its own
    gradient with respect to the tensors that the anchor was computed from is zero; without an anchor, it is None."""
    if gradient is None or gradient.requires_grad or not torch.is_grad_enabled():
        return gradient
    if in_batched_gradients():
        return gradient + anchor.sum()  # the vmap of batched gradients drops the history of a Function
    return apply_unseen(_WithHistory, gradient, anchor)


class _GradientWithHistory(Function):
    """The identity, whose gradient passes through `with_history`."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor | None:
        return with_history(gradient)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent


def gradient_with_history(tensor: Tensor, *others: Tensor) -> Tensor:
    """The tensor, with a gradient that passes through `with_history` if one of the other tensors of the call requires a gradient,
    except under torch.compile and torch.func. This is for a term, such as a bias, that is part of torch's operator but that this
    package adds outside its own operator."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return tensor
    if tensor.requires_grad and torch.is_grad_enabled() and any(other.requires_grad for other in others):
        return apply_unseen(_GradientWithHistory, tensor)
    return tensor
