"""An autograd Function that computes nothing: about the least that a call from Python with a gradient takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class Plan:
    """What the Function allocates: outputs, the gradients of its inputs, and in each pass a workspace of so many bytes."""

    outputs: tuple[Layout, ...]
    gradients: tuple[Layout | None, ...]
    forward: tuple[int, ...]
    backward: tuple[int, ...]


def layout(tensor: Tensor) -> Layout:
    """Size, strides and dtype of a tensor."""
    return tensor.shape, tensor.stride(), tensor.dtype


def workspace(allocated: Iterable[int], results: Iterable[Tensor]) -> tuple[int, ...]:
    """The bytes of the allocations that hold none of the results."""
    left = Counter(allocated)
    left.subtract(tensor.untyped_storage().nbytes() for tensor in results)
    return tuple(left.elements())


def _allocate(sizes: Iterable[int]) -> list[Tensor]:
    return [torch.empty(size, dtype=torch.uint8) for size in sizes]


def _empty(wanted: Layout) -> Tensor:
    size, strides, dtype = wanted
    return torch.empty_strided(size, strides, dtype=dtype)


class _Null(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.plan = plan
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)  # no zeros are allocated for the gradient of an output that is not used
        _allocate(plan.forward)
        return tuple(_empty(output) for output in plan.outputs)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        ctx.saved_tensors  # noqa: B018 (unpacking takes time, as it does in every backward pass)
        _allocate(ctx.plan.backward)
        return None, *(None if gradient is None else _empty(gradient) for gradient in ctx.plan.gradients)


def null_call(plan: Plan, inputs: Sequence[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """A call of the Function, which returns its outputs."""
    return lambda: _Null.apply(plan, *inputs)
