"""The checks of a call of `rnn` or `rnn_cell` before it reaches the operators: errors have torch's types and name the public
arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_unroll.autocast import lowered_dtype
from torch_unroll.checks import check_lengths, is_traced, require_shape
from torch_unroll.engines.interface import DTYPES, NONLINEARITIES
from torch_unroll.ops.rnn_stack import Layers
from torch_unroll.programs import is_transformed
from torch_unroll.shapes import require


def check_nonlinearity(nonlinearity: str) -> None:
    """Raises ValueError unless the kernels compute this nonlinearity."""
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(f"nonlinearity: expected one of {', '.join(NONLINEARITIES)}, got {nonlinearity!r}")


def check_alike(input: Tensor, kind: str, others: dict[str, Tensor | None]) -> None:
    """Requires that the input has, after autocast, a dtype that the engines accept, and that the other tensors have this dtype
    and the input's device. `kind` is the word for the other tensors in torch's error message."""
    expected = lowered_dtype(input)
    require(expected in DTYPES, f"input: expected a floating-point dtype (fp16, bf16, fp32, fp64), got {expected}")
    for name, other in others.items():
        if other is None:
            continue
        if (dtype := lowered_dtype(other)) != expected:
            raise RuntimeError(f"{name}: expected dtype {expected} like input, got {dtype}")
        if other.device != input.device:
            raise RuntimeError(
                f"{name}: Input and {kind} tensors are not at the same device, found input tensor at {input.device} and"
                f" {kind} tensor at {other.device}"
            )


def shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    """The shape as error messages print it."""
    return None if tensor is None else tuple(tensor.shape)


def by_layer(weights: Sequence[Tensor], num_layers: int, directions: int) -> Layers:
    """torch's flat list of weights, cut into layers and directions."""
    parts = num_layers * directions
    require(num_layers > 0, f"num_layers: expected a number above 0, got {num_layers}")
    require(
        len(weights) in (2 * parts, 4 * parts),
        f"weights: expected {2 * parts} tensors, or {4 * parts} with biases, for {num_layers} layers and {directions} directions,"
        f" got {len(weights)}",
    )
    count = len(weights) // parts
    grouped = [tuple(weights[i : i + count]) for i in range(0, len(weights), count)]
    return [grouped[i : i + directions] for i in range(0, parts, directions)]


def _check_weights(layers: Layers, input: Tensor) -> int:
    """Raises if the shape, dtype or device of a weight does not fit the input or the layer below; returns H."""
    width, first = input.shape[-1], layers[0][0][1]
    require(first.dim() == 2, f"w_hh of layer 0: expected 2 dimensions, got shape {shape(first)}")
    H = first.shape[1]
    for layer, directions in enumerate(layers):
        for direction, tensors in enumerate(directions):
            where = f"of layer {layer}" + (", reverse" if direction else "")
            names = ("w_ih", "w_hh", "b_ih", "b_hh")[: len(tensors)]
            for name, tensor, extents in zip(names, tensors, ((H, width), (H, H), (H,), (H,)), strict=False):
                require_shape(tensor, f"{name} {where}", *extents)
            check_alike(input, "parameter", {f"{name} {where}": tensor for name, tensor in zip(names, tensors, strict=True)})
        width = len(directions) * H
    return H


def check_segments(segments: int, cuttable: bool) -> None:
    """Checks `recompute_segments`. `cuttable` says whether the sequence of the call can be cut into segments."""
    if not isinstance(segments, int) or segments < 1:
        raise ValueError(f"recompute_segments: expected a number above 0, got {segments!r}")
    if not cuttable:
        raise ValueError("recompute_segments: expected None for bidirectional or packed input, which cannot be cut into segments")


def _check_steps(T: int) -> None:
    if is_traced(T):
        torch._check(T > 0)
    else:
        require(T > 0, "input: Expected sequence length to be larger than 0 in RNN, got none")


def _first_size(batch_sizes: Tensor) -> int:
    """N of packed data. In a call that is recorded, it is a tensor of the trace or a symbol of the graph, so that later calls may
    have another N."""
    if torch.compiler.is_dynamo_compiling():
        return int(batch_sizes[0])
    first: Any = batch_sizes[0]
    return first if torch._C._get_tracing_state() is not None else first.item()


def read_rows(x: Tensor, batch_sizes: Tensor) -> Tensor:
    """The first sum(batch_sizes) rows of x, packed data for a single direction. Like torch, this ignores further rows.

    If the call is transformed, the sum is not known yet: x is returned unchanged, and the operator rejects further rows when it
    runs. For two directions, the operator always rejects them: torch's reverse direction starts at the last row even if it is a
    further one, which mixes up the steps.
    """
    if type(batch_sizes) is not Tensor or is_transformed():
        return x
    count = batch_sizes.sum()
    if torch._C._get_tracing_state() is not None:
        return x[:count]
    total = int(count)
    return x[:total] if 0 <= total < x.shape[0] else x


def zero_state(x: Tensor, axis: int, batch_sizes: Tensor | None, states: int, H: int) -> Tensor:
    """The initial state (D·layers, N, H) of a call without h0. `axis` is that of N in x."""
    return x.new_zeros(states, x.shape[axis] if batch_sizes is None else _first_size(batch_sizes), H)


def checked_start(
    x: Tensor, h0: Tensor | None, layers: Layers, axis: int, batch_sizes: Tensor | None, lengths: Tensor | None
) -> Tensor:
    """Checks all tensors of a call; returns h0, or zeros in its place. `axis` is that of N in x."""
    H, states = check_tensors(x, h0, layers, axis, batch_sizes, lengths)
    return zero_state(x, axis, batch_sizes, states, H) if h0 is None else h0


def check_tensors(
    x: Tensor, h0: Tensor | None, layers: Layers, axis: int, batch_sizes: Tensor | None, lengths: Tensor | None
) -> tuple[int, int]:
    """Checks all tensors of a call; returns H and the number of initial states. `axis` is that of N in x."""
    rank = 3 if batch_sizes is None else 2
    require(x.dim() == rank, f"input: expected {rank} dimensions with its batch, got shape {shape(x)}")
    check_alike(x, "hidden", {"h0": h0})
    H, states = _check_weights(layers, x), len(layers) * len(layers[0])
    if batch_sizes is None:
        _check_steps(x.shape[1 - axis])
    if batch_sizes is None:
        N = x.shape[axis]
    else:  # the operator compares N with batch_sizes when it runs
        N = h0.shape[1] if h0 is not None and h0.dim() == 3 else _first_size(batch_sizes)
    if lengths is not None:
        require(batch_sizes is None, "lengths: expected None together with batch_sizes")
        check_lengths(lengths, N, x, "input")
    require_shape(h0, "h0", states, N, H)
    return H, states
