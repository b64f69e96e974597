"""How the operators act on the parts of a DTensor: samples are independent of each other, and of their channels where pooled.

A rule names placements on one dimension of a device mesh: those of the results, then those of the arguments. DTensor itself adds
that everything may be replicated, moves what no rule fits, and combines the dimensions of a mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

#: Placements of results, placements of the tensors among the arguments.
Rule = tuple[list[Any], list[Any]]


def _placed(results: str, tensors: str) -> Rule:
    """A letter for every result and every tensor: the dimension that is cut, or r(eplicated), or p(artial sums)."""
    placements = {"r": Replicate(), "p": Partial()}
    result, argument = (
        [placements[kind] if kind in placements else Shard(int(kind)) for kind in kinds] for kinds in (results, tensors)
    )
    return result, argument


def _pointwise(w_size: tuple[int, ...], geometry: tuple[Any, ...]) -> bool:
    """Whether pixels are as independent as samples are; recurrence multiplies all its steps as such an image."""
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
    """Of recurrence: only padded sequences can be cut; `tensors` end with lengths and batch_sizes."""

    def rules(*inputs: Any) -> list[Rule]:
        return [_placed(results, tensors + "0r")] if inputs[len(tensors) + 1] is None else []

    return rules


def _same(*rules: tuple[str, str]) -> Callable[..., list[Rule]]:
    return lambda *inputs: [_placed(*rule) for rule in rules]


_RULES: dict[str, Callable[..., list[Rule]]] = {
    "conv2d_fprop": _fprop,
    "conv2d_dgrad": _same(("0", "0r")),  # whose argument `x_size` is that of the whole
    "conv2d_wgrad": _wgrad,
    "unfold": _same(("0", "0")),
    "fold": _same(("0", "0")),
    "max_pool2d_forward": _pool_forward,
    "max_pool2d_backward": _same(("0", "00"), ("1", "11")),
    "max_pool2d_gather": _same(("0", "00"), ("1", "11")),
    "max_pool2d_indices": _same(("0", "0"), ("1", "1")),
    "max_over_time_forward": _time_forward,
    "max_over_time_backward": _same(("1", "00"), ("2", "11")),
    "max_over_time_gather": _same(("0", "10"), ("1", "21")),
    "rnn_forward": _steps("1", "1r1"),
    "rnn_backward": _steps("11", "11r1"),
    "rnn_tangent": _steps("1", "11r1"),
    "rnn_cell_forward": _same(("0", "00rrrr")),
    "rnn_cell_backward": _same(("000", "00rr")),
}


def _register(name: str, rules: Callable[..., list[Rule]]) -> None:
    op = getattr(torch.ops.torch_unroll, name).default
    kinds = [str(argument.type) for argument in op._schema.arguments]
    arity, results = sum("Tensor" in kind for kind in kinds), len(op._schema.returns)

    @register_sharding(op)
    def shardings(*inputs: Any) -> list[Rule]:
        numbers = [None] * (len(inputs) - arity)
        everywhere = ([Replicate()] * results, [Replicate()] * arity)
        return [
            (list(outputs), [None if tensor is None else place for tensor, place in zip(inputs, places, strict=False)] + numbers)
            for outputs, places in (everywhere, *rules(*inputs))
        ]

    # What a rule and the results' sizes depend on, and what a remembered answer is therefore looked up by.
    DTensor._op_dispatcher.sharding_propagator.op_to_schema_info[op].static_argnum = arity


@cache
def register() -> None:
    """Makes the rules known to DTensor."""
    for name, rules in _RULES.items():
        _register(name, rules)
