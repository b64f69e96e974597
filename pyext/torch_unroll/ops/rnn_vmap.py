"""A batch of vmap through the operators of recurrence over a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_unroll.ops.registration import move_batch


def vmap_layer(function: Callable[..., Any], kinds: str, info: Any, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> Any:
    """A batch joins N where W_hh is common to it; else one call per entry. `kinds` says what each tensor is: r(ows of a
    sequence), s(tate, (D, N, H)), w(eights), l(engths), b(atch_sizes)."""
    B, tensors, options = info.batch_size, inputs[: len(kinds)], inputs[len(kinds) :]
    dims = dict(zip(kinds, in_dims, strict=False))
    if dims["w"] is not None or dims["b"] is not None:
        calls = [
            function(
                *(tensor if dim is None else tensor.select(dim, i) for tensor, dim in zip(tensors, in_dims, strict=False)),
                *options,
            )
            for i in range(B)
        ]
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        return tuple(torch.stack(parts) for parts in zip(*calls, strict=True)), (0,) * len(calls[0])

    def unfold(output: Tensor) -> Tensor:
        return output.unflatten(-2, (output.shape[-2] // B, B))

    folded: list[Any] = []
    for kind, tensor, dim in zip(kinds, tensors, in_dims, strict=False):
        if tensor is None or kind == "w":
            folded.append(tensor)
        elif kind == "b":
            folded.append(tensor * B)
        else:  # beside N, behind it: the samples of a packed step stay in the order of their lengths
            at = 1 if kind == "l" else tensor.dim() - (1 if dim is None else 2)
            moved = move_batch(tensor, dim, B, to=at)
            assert moved is not None
            folded.append(moved.flatten(at - 1, at))
    outputs = function(*folded, *options)
    if isinstance(outputs, Tensor):
        return unfold(outputs), outputs.dim() - 1
    return tuple(unfold(part) for part in outputs), tuple(part.dim() - 1 for part in outputs)
