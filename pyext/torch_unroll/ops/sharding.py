"""How the operators act on the shards of a DTensor: samples are independent of each other, and pooled channels are too.

A rule lists the placements along one dimension of a device mesh, first of the results, then of the arguments. `_register` adds
the rule that everything may be replicated. DTensor redistributes tensors that match no rule, and applies the rules to each
dimension of a mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

#: The placements of the results, and those of the tensors among the arguments.
Rule = tuple[list[Any], list[Any]]


def _placed(results: str, tensors: str) -> Rule:
    """A rule from one character for each result and each tensor: the number of the sharded dimension, r (replicated), or p
    (partial sums)."""
    placements = {"r": Replicate(), "p": Partial()}
    of_results, of_tensors = (
        [placements[letter] if letter in placements else Shard(int(letter)) for letter in letters]
        for letters in (results, tensors)
    )
    return of_results, of_tensors


def _pointwise(w_size: tuple[int, ...], geometry: tuple[Any, ...]) -> bool:
    """Whether a convolution computes each pixel independently of the others. The products of a recurrence for all steps at once
    are such convolutions (see `linear`)."""
    stride, padding = geometry[:2]
    return tuple(w_size) == (1, 1) and tuple(stride) == (1, 1) and not any(padding)


def _fprop(x: Any, w: Any, bias: Any, *geometry: Any) -> list[Rule]:
    dims = "023" if _pointwise(w.shape[2:], geometry) else "0"
    return [_placed(dim, f"{dim}rr") for dim in dims]


def _wgrad(dy: Any, x: Any, w_size: Any, w_stride: Any, *geometry: Any) -> list[Rule]:
    dims = "023" if _pointwise(w_size, geometry) else "0"
    return [_placed("p", dim * 2) for dim in dims]


def _pool_forward(x: Any, *numbers: Any) -> list[Rule]:
    with_offsets = numbers[-2]
    return [_placed(dim + (dim if with_offsets else "r"), dim) for dim in "01"]


def _time_forward(x: Any, lengths: Any, with_offsets: bool, engine: str) -> list[Rule]:
    return [_placed(out + (out if with_offsets else "r"), dim + rows) for out, dim, rows in (("0", "1", "0"), ("1", "2", "r"))]


def _steps(results: str, tensors: str) -> Callable[..., list[Rule]]:
    """The rules of a recurrence over a sequence, which can be sharded only if it is padded. `tensors` describes the tensors that
    precede lengths and batch_sizes."""

    def rules(*inputs: Any) -> list[Rule]:
        return [_placed(results, tensors + "0r")] if inputs[len(tensors) + 1] is None else []

    return rules


def _always(*rules: tuple[str, str]) -> Callable[..., list[Rule]]:
    return lambda *inputs: [_placed(*rule) for rule in rules]


_RULES: dict[str, Callable[..., list[Rule]]] = {
    "conv2d_fprop": _fprop,
    "conv2d_dgrad": _always(("0", "0r")),  # not H or W, even if pointwise: `x_size` is the whole (H, W)
    "conv2d_wgrad": _wgrad,
    "unfold": _always(("0", "0")),
    "fold": _always(("0", "0")),
    "max_pool2d_forward": _pool_forward,
    "max_pool2d_backward": _always(("0", "00"), ("1", "11")),
    "max_pool2d_gather": _always(("0", "00"), ("1", "11")),
    "max_pool2d_indices": _always(("0", "0"), ("1", "1")),
    "max_over_time_forward": _time_forward,
    "max_over_time_backward": _always(("1", "00"), ("2", "11")),
    "max_over_time_gather": _always(("0", "10"), ("1", "21")),
    "rnn_forward": _steps("1", "1r1"),
    "rnn_backward": _steps("11", "11r1"),
    "rnn_tangent": _steps("1", "11r1"),
    "rnn_cell_forward": _always(("0", "00rrrr")),
    "rnn_cell_backward": _always(("000", "00rr")),
}


def _register(name: str, rules: Callable[..., list[Rule]]) -> None:
    op = getattr(torch.ops.torch_unroll, name).default
    types = [str(argument.type) for argument in op._schema.arguments]
    arity, results = sum("Tensor" in name for name in types), len(op._schema.returns)

    @register_sharding(op)
    def shardings(*inputs: Any) -> list[Rule]:
        numbers = [None] * (len(inputs) - arity)
        everywhere = ([Replicate()] * results, [Replicate()] * arity)
        return [
            (
                list(outputs),
                [None if tensor is None else placement for tensor, placement in zip(inputs, placements, strict=False)] + numbers,
            )
            for outputs, placements in (everywhere, *rules(*inputs))
        ]

    # Rules and the sizes of results depend on the arguments from this position on, so DTensor's cache has to compare them.
    DTensor._op_dispatcher.sharding_propagator.op_to_schema_info[op].static_argnum = arity


@cache
def register() -> None:
    """Registers the rules with DTensor."""
    for name, rules in _RULES.items():
        _register(name, rules)
