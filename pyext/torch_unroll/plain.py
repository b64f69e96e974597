"""Calls that nothing but autograd observes on their way through torch's dispatcher."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from torch_unroll.engines.compiled.listening import listener
from torch_unroll.history import in_batched_gradients
from torch_unroll.tracing import is_tracing

#: The types of tensors whose calls no subclass observes.
PLAIN = (Tensor, torch.nn.Parameter)


def is_plain(tensors: Iterable[Tensor | None]) -> bool:
    """Whether no mode, tensor subclass, transform, trace or autocast would observe a call of these tensors."""
    for tensor in tensors:
        if tensor is not None and (
            type(tensor) not in PLAIN or tensor.is_neg() or tensor.is_meta or is_functorch_wrapped_tensor(tensor)
        ):
            return False
    return (
        torch._C._len_torch_dispatch_stack() == (0 if listener() is None else 1)  # what listens is itself a mode
        and not torch._C._are_functorch_transforms_active()
        and not is_tracing()
        and not torch._C._is_any_autocast_enabled()
        and not in_batched_gradients()
    )


def only_computes(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a call of these tensors is plain and no derivative of it, in backward or forward mode, is wanted."""
    return not torch.is_grad_enabled() and forward_ad._current_level < 0 and is_plain(tensors)
