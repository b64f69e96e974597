"""Batching rules of `torch.func.vmap`: how the dimension that vmap adds to the inputs of an op is merged into one of the op's own
dimensions or, if that is not possible, the op is called once for each entry."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor


def move_batch(tensor: Tensor, dim: int | None, size: int, to: int = 0) -> Tensor:
    """The tensor with its batch dimension of `size` entries moved from `dim` to `to`. If `dim` is None, the
    tensor has no batch dimension, and is expanded."""
    if dim is None:
        return tensor.unsqueeze(to).expand(*tensor.shape[:to], size, *tensor.shape[to:])
    return tensor.movedim(dim, to)


def fold_batch(tensor: Tensor, dim: int | None, size: int, into: int = 0) -> Tensor:
    """The tensor with its batch dimension merged into dimension `into`, of which the batch becomes the outer part."""
    return move_batch(tensor, dim, size, into).flatten(into, into + 1)


def call_per_entry(function: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> tuple[Any, Any]:
    """Calls a function once for each entry of the batch, and stacks the results along a new first dimension."""
    calls = [
        function(*(value if dim is None else value.select(dim, entry) for value, dim in zip(inputs, in_dims, strict=True)))
        for entry in range(info.batch_size)
    ]
    if isinstance(calls[0], Tensor):
        return torch.stack(calls), 0
    return tuple(torch.stack(results) for results in zip(*calls, strict=True)), (0,) * len(calls[0])


class Role(Enum):
    """The role of a tensor among the inputs of a recurrence over a sequence."""

    ROWS = auto()  # (T, N, ·), or packed (total, ·)
    STATE = auto()  # (D, N, H)
    WEIGHTS = auto()  # (D, H, H)
    LENGTHS = auto()  # (N)
    BATCH_SIZES = auto()  # (T)


def batch_layer(
    function: Callable[..., Any], roles: tuple[Role, ...], info: Any, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]
) -> tuple[Any, Any]:
    """The batching rule of a recurrence. The batch joins N if the weights and `batch_sizes` have no batch; otherwise the function
    is called once for each entry. `roles` describes the tensors, which come first among the inputs."""
    B, tensors, options = info.batch_size, inputs[: len(roles)], inputs[len(roles) :]
    dims = dict(zip(roles, in_dims, strict=False))
    if dims[Role.WEIGHTS] is not None or dims[Role.BATCH_SIZES] is not None:
        return call_per_entry(function, info, in_dims, inputs)

    def unfold(output: Tensor) -> Tensor:
        return output.unflatten(-2, (output.shape[-2] // B, B))

    folded: list[Any] = []
    for role, tensor, dim in zip(roles, tensors, in_dims, strict=False):
        if tensor is None or role is Role.WEIGHTS:
            folded.append(tensor)
        elif role is Role.BATCH_SIZES:
            folded.append(tensor * B)
        else:  # the batch is the inner part of N, so that the samples of a packed step stay sorted by length
            at = 1 if role is Role.LENGTHS else tensor.dim() - (1 if dim is None else 2)
            folded.append(move_batch(tensor, dim, B, to=at).flatten(at - 1, at))
    outputs = function(*folded, *options)
    if isinstance(outputs, Tensor):
        return unfold(outputs), outputs.dim() - 1
    return tuple(map(unfold, outputs)), tuple(output.dim() - 1 for output in outputs)


def batch_cell(
    function: Callable[..., Any], weights: int, info: Any, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]
) -> tuple[Any, Any]:
    """The batching rule of a single step, whose first two inputs are (N, ·) and whose next `weights` inputs are weights. The
    batch joins N if no weight has a batch; otherwise the function is called once for each entry."""
    B = info.batch_size
    if any(dim is not None for dim in in_dims[2 : 2 + weights]):
        return call_per_entry(function, info, in_dims, inputs)
    rows = [fold_batch(tensor, dim, B) for tensor, dim in zip(inputs[:2], in_dims, strict=False)]
    outputs = function(*rows, *inputs[2:])
    if isinstance(outputs, Tensor):
        return outputs.unflatten(0, (B, outputs.shape[0] // B)), 0
    return tuple(output.unflatten(0, (B, output.shape[0] // B)) for output in outputs), (0,) * len(outputs)
