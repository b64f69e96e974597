"""The Elman recurrence: whole sequences (`rnn`) and one step at a time (`rnn_cell`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torch_unroll.engines import claims, resolve
from torch_unroll.linear import linear
from torch_unroll.rnn_cell_ops import rnn_cell_forward
from torch_unroll.rnn_ops import rnn_forward
from torch_unroll.rnn_steps import Steps
from torch_unroll.shapes import require

NONLINEARITIES = ("tanh", "relu", "sigmoid", "identity")
_TORCHS = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}
_TORCHS_CELL = {"tanh": torch.rnn_tanh_cell, "relu": torch.rnn_relu_cell}


def _check_nonlinearity(nonlinearity: str) -> None:
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(f"nonlinearity: expected one of {', '.join(NONLINEARITIES)}, got {nonlinearity!r}")


def _check_alike(input: Tensor, others: dict[str, Tensor | None]) -> None:
    """One floating-point dtype, unless autocast is about to see to that, and one device."""
    require(input.dtype.is_floating_point, f"input: expected a floating-point dtype, got {input.dtype}")
    cast = torch.is_autocast_enabled(input.device.type)
    for name, other in others.items():
        if other is not None:
            require(cast or other.dtype == input.dtype, f"{name}: expected dtype {input.dtype} like input, got {other.dtype}")
            require(other.device == input.device, f"{name}: expected device {input.device} like input, got {other.device}")


def _check_shape(tensor: Tensor | None, name: str, *expected: int) -> None:
    require(tensor is None or tuple(tensor.shape) == expected, f"{name}: expected shape {expected}, got {_shape(tensor)}")


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _by_layer(weights: Sequence[Tensor], num_layers: int, directions: int) -> list[list[tuple[Tensor, ...]]]:
    """torch's flat list of weights as one tuple per layer and direction: w_ih, w_hh and, if there are any, b_ih, b_hh."""
    parts = num_layers * directions
    require(num_layers > 0, f"num_layers: expected a number above 0, got {num_layers}")
    require(
        len(weights) in (2 * parts, 4 * parts),
        f"weights: expected {2 * parts} tensors, or {4 * parts} with biases, for {num_layers} layers and {directions} directions,"
        f" got {len(weights)}",
    )
    each = len(weights) // parts
    grouped = [tuple(weights[i : i + each]) for i in range(0, len(weights), each)]
    return [grouped[i : i + directions] for i in range(0, parts, directions)]


def _check_weights(layers: list[list[tuple[Tensor, ...]]], input: Tensor) -> int:
    """H; raises if a weight does not fit the layer below it."""
    width, first = input.shape[-1], layers[0][0][1]
    require(first.dim() == 2, f"w_hh of layer 0: expected 2 dimensions, got shape {_shape(first)}")
    H = first.shape[1]
    for layer, directions in enumerate(layers):
        for direction, tensors in enumerate(directions):
            where = f"of layer {layer}" + (", reverse" if direction else "")
            names = ("w_ih", "w_hh", "b_ih", "b_hh")[: len(tensors)]
            for name, tensor, shape in zip(names, tensors, ((H, width), (H, H), (H,), (H,)), strict=False):
                _check_shape(tensor, f"{name} {where}", *shape)
            _check_alike(input, {f"{name} {where}": tensor for name, tensor in zip(names, tensors, strict=True)})
        width = len(directions) * H
    return H


def _layer(
    x: Tensor, h0: Tensor, weights: list[tuple[Tensor, ...]], steps: Steps, batch_first: bool, nonlinearity: str, engine: str
) -> tuple[Tensor, Tensor]:
    """One layer: x, in the caller's layout, and h0 (D, N, H) -> h laid out like x, and h_n (D, N, H)."""
    w_ih, w_hh, *biases = zip(*weights, strict=True)
    bias = None
    if biases:
        summed = [b_ih + b_hh for b_ih, b_hh in zip(*biases, strict=True)]
        bias = summed[0] if len(summed) == 1 else torch.cat(summed)
    z = linear(x, w_ih[0] if len(w_ih) == 1 else torch.cat(w_ih), bias, "rnn", engine)
    recurrent = w_hh[0].unsqueeze(0) if len(w_hh) == 1 else torch.stack(w_hh)
    z = z.transpose(0, 1) if batch_first else z
    h = rnn_forward(z, recurrent, h0, steps.lengths, steps.batch_sizes, nonlinearity, "rnn", engine)
    H = h0.shape[-1]
    h_n = [steps.last(h[..., d * H : (d + 1) * H], h0[d].to(h.dtype), d) for d in range(len(weights))]
    return h.transpose(0, 1) if batch_first else h, torch.stack(h_n)


def _stack(
    x: Tensor,
    h0: Tensor,
    layers: list[list[tuple[Tensor, ...]]],
    steps: Steps,
    batch_first: bool,
    dropout: float,
    nonlinearity: str,
    engine: str,
) -> tuple[Tensor, Tensor]:
    """Every layer, with dropout between them."""
    last = []
    for number, (weights, start) in enumerate(zip(layers, h0.split(len(layers[0])), strict=True)):
        if number > 0 and dropout:
            x = torch.dropout(x, dropout, True)
        x, h_n = _layer(x, start, weights, steps, batch_first, nonlinearity, engine)
        last.append(h_n)
    return x, last[0] if len(last) == 1 else torch.cat(last)


def _stack_in_segments(
    x: Tensor,
    h0: Tensor,
    layers: list[list[tuple[Tensor, ...]]],
    steps: Steps,
    batch_first: bool,
    dropout: float,
    nonlinearity: str,
    engine: str,
    segments: int,
) -> tuple[Tensor, Tensor]:
    """`_stack`, keeping only the states between segments of the sequence; the backward pass computes each segment again."""
    axis = 1 if batch_first else 0
    T, outputs, state = x.shape[axis], [], h0
    length = -(-T // segments)
    for begin in range(0, T, length):
        part = x.narrow(axis, begin, min(length, T - begin))
        within = Steps(None if steps.lengths is None else steps.lengths - begin, None)
        h, state = checkpoint(
            _stack, part, state, layers, within, batch_first, dropout, nonlinearity, engine, use_reentrant=False
        )
        outputs.append(h)
    return torch.cat(outputs, axis), state


def rnn(
    input: Tensor,
    h0: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    recompute_segments: int | None = None,
    engine: str | None = None,
) -> tuple[Tensor, Tensor]:
    """An Elman RNN over whole sequences, h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh); what `torch.rnn_tanh` and `torch.rnn_relu` do.

    Each layer is one matrix product for all steps, then one recurrence over T (BPTT in backward; Werbos 1990). D is 2 if bidirectional,
    else 1. fp32 products follow `torch.backends.cudnn.rnn.fp32_precision`.

    Args:
        input: (T, N, I); (N, T, I) if batch_first; (T, I) without a batch; or the data (total, I) of a PackedSequence.
            fp16, bf16, fp32 or fp64, of any strides.
        h0: (num_layers·D, N, H), or (num_layers·D, H) without a batch; None for zeros.
        weights: in torch's order, per layer and direction: w_ih (H, I or D·H), w_hh (H, H) and, for all or none, b_ih (H), b_hh (H).
        nonlinearity: "tanh", "relu", "sigmoid" or "identity".
        num_layers, bidirectional: of the stack.
        dropout, training: the probability with which, in training, a layer's outputs are zeroed on their way to the next; the mask is
            of torch's generator.
        batch_first: whether input and output are (N, T, ·); the states never are.
        batch_sizes: those of a PackedSequence: (T), int64, on the CPU.
        lengths: (N), integers, on input's device, never read by the host: how many steps of a padded sample count, clamped to [0, T].
            Outputs beyond are 0, and h_n is the state at the sample's last step (h0 for a sample of none).
        recompute_segments: cuts the sequence into so many segments and stores for the backward pass only the states between them,
            computing the rest again: about √T of them need the least memory. Not for bidirectional or packed input.
        engine: one of `torch_unroll.engines()`; None takes the first that can.

    Returns:
        output, like input with D·H features, and h_n, like h0.

    Raises:
        RuntimeError: sizes, dtypes or devices that do not fit, as torch's; a sequence of no steps; or the named engine's reason.
        ValueError: an unknown nonlinearity or engine; recompute_segments where it cannot serve.
    """
    resolved = resolve(engine)
    _check_nonlinearity(nonlinearity)
    if not claims(resolved, input):
        if (
            nonlinearity in _TORCHS
            and lengths is None
            and not recompute_segments
            and not (batch_sizes is not None and torch.compiler.is_compiling())
        ):
            return _torchs_rnn(
                input, h0, weights, nonlinearity, num_layers, bidirectional, dropout, training, batch_first, batch_sizes
            )
        resolved = "torch"
    directions = 2 if bidirectional else 1
    packed = batch_sizes is not None
    batched = packed or input.dim() == 3
    require(
        input.dim() == 2 or (not packed and input.dim() == 3),
        f"input: expected {_ranks(packed)} dimensions, got shape {_shape(input)}",
    )
    layers = _by_layer(weights, num_layers, directions)
    H = _check_weights(layers, input)
    x = input if batched else input.unsqueeze(0 if batch_first else 1)
    N, T = _extents(x, h0, batch_first, batch_sizes)
    require(T is None or T > 0, "input: expected a sequence of at least one step, got none")
    if h0 is None:
        start = x.new_zeros(num_layers * directions, N, H)
    else:
        _check_shape(h0, "h0", num_layers * directions, *((N, H) if batched else (H,)))
        start = h0 if batched else h0.unsqueeze(1)
    _check_alike(input, {"h0": h0})
    if lengths is not None:
        require(not packed, "lengths: expected None beside batch_sizes")
        require(lengths.dtype in (torch.int64, torch.int32), f"lengths: expected int64 or int32, got {lengths.dtype}")
        require(lengths.device == input.device, f"lengths: expected device {input.device} like input, got {lengths.device}")
        _check_shape(lengths, "lengths", N)
    steps = Steps(lengths, batch_sizes)
    arguments: tuple[Any, ...] = (
        x, start, layers, steps, batch_first and not packed, dropout if training else 0.0, nonlinearity, resolved,
    )  # fmt: skip
    if recompute_segments:
        if packed or bidirectional:
            raise ValueError("recompute_segments: expected None for bidirectional or packed input, which no state cuts in two")
        output, h_n = _stack_in_segments(*arguments, recompute_segments)
    else:
        output, h_n = _stack(*arguments)
    return (output, h_n) if batched else (output.squeeze(0 if batch_first else 1), h_n.squeeze(1))


def _ranks(packed: bool) -> str:
    return "2" if packed else "2 or 3"


def _extents(x: Tensor, h0: Tensor | None, batch_first: bool, batch_sizes: Tensor | None) -> tuple[int, int | None]:
    """N, and T where the host knows it. Packed, h0 has the N, which the operator compares with batch_sizes when it runs."""
    if batch_sizes is None:
        return (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
    require(
        batch_sizes.dim() == 1 and batch_sizes.dtype == torch.int64 and batch_sizes.device.type == "cpu",
        f"batch_sizes: expected shape (T,), int64, on the CPU, got {_shape(batch_sizes)}, {batch_sizes.dtype}, on {batch_sizes.device}",
    )
    require(len(batch_sizes) > 0, "batch_sizes: expected a sequence of at least one step, got none")
    return (int(batch_sizes[0]) if h0 is None or h0.dim() != 3 else h0.shape[1]), None


def _torchs_rnn(
    input: Tensor,
    h0: Tensor | None,
    weights: Sequence[Tensor],
    nonlinearity: str,
    num_layers: int,
    bidirectional: bool,
    dropout: float,
    training: bool,
    batch_first: bool,
    batch_sizes: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """torch's own operator, for what no engine claims."""
    directions = 2 if bidirectional else 1
    biases = len(weights) == 4 * num_layers * directions
    states = num_layers * directions
    settings = (list(weights), biases, num_layers, dropout, training, bidirectional)
    H = weights[1].shape[-1] if len(weights) > 1 else 0
    if batch_sizes is not None:
        start = input.new_zeros(states, int(batch_sizes[0]), H) if h0 is None else h0
        return _TORCHS[nonlinearity](input, batch_sizes, start, *settings)
    batched = input.dim() != 2
    x = input if batched else input.unsqueeze(0 if batch_first else 1)
    if h0 is None:
        start = x.new_zeros(states, x.shape[0 if batch_first else 1], H)
    else:
        start = h0 if batched else h0.unsqueeze(1)
    output, h_n = _TORCHS[nonlinearity](x, start, *settings, batch_first)
    return (output, h_n) if batched else (output.squeeze(0 if batch_first else 1), h_n.squeeze(1))


def rnn_cell(
    input: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    engine: str | None = None,
) -> Tensor:
    """One step of an Elman RNN, f(W_ih x + b_ih + W_hh h + b_hh); what `torch.rnn_tanh_cell` and `torch.rnn_relu_cell` do.

    Args:
        input: (N, I), or (I) without a batch.
        h: (N, H), or (H): the state before the step.
        w_ih, w_hh: (H, I) and (H, H).
        b_ih, b_hh: (H) each, or None.
        nonlinearity: "tanh", "relu", "sigmoid" or "identity".
        engine: one of `torch_unroll.engines()`; None takes the first that can.

    Returns:
        The state after the step, like h.

    Raises:
        RuntimeError: sizes, dtypes or devices that do not fit, as torch's; or the named engine's reason for refusing.
        ValueError: an unknown nonlinearity or engine.
    """
    resolved = resolve(engine)
    _check_nonlinearity(nonlinearity)
    if not claims(resolved, input):
        if nonlinearity in _TORCHS_CELL:
            if input.dim() == 1 and h.dim() == 1:
                return _TORCHS_CELL[nonlinearity](input.unsqueeze(0), h.unsqueeze(0), w_ih, w_hh, b_ih, b_hh).squeeze(0)
            return _TORCHS_CELL[nonlinearity](input, h, w_ih, w_hh, b_ih, b_hh)
        resolved = "torch"
    require(input.dim() in (1, 2), f"input: expected 1 or 2 dimensions, got shape {_shape(input)}")
    require(h.dim() == input.dim(), f"h: expected {input.dim()} dimensions like input, got shape {_shape(h)}")
    require(w_ih.dim() == 2, f"w_ih: expected 2 dimensions, got shape {_shape(w_ih)}")
    inputs, H = w_ih.shape[1], h.shape[-1]
    require(input.shape[-1] == inputs, f"input has inconsistent input_size: got {input.shape[-1]} expected {inputs}")
    require(
        w_hh.dim() == 2 and w_hh.shape[1] == H, f"hidden0 has inconsistent hidden_size: got {H}, expected {_shape(w_hh)[-1:]}"
    )
    _check_shape(w_ih, "w_ih", H, inputs)
    _check_shape(w_hh, "w_hh", H, H)
    _check_shape(b_ih, "b_ih", H)
    _check_shape(b_hh, "b_hh", H)
    x, state = (input, h) if input.dim() == 2 else (input.unsqueeze(0), h.unsqueeze(0))
    require(len(x) == len(state), f"Input batch size {len(x)} doesn't match hidden0 batch size {len(state)}")
    _check_alike(input, {"h": h, "w_ih": w_ih, "w_hh": w_hh, "b_ih": b_ih, "b_hh": b_hh})
    h_next = rnn_cell_forward(x, state, w_ih, w_hh, b_ih, b_hh, nonlinearity, "rnn", resolved)
    return h_next if input.dim() == 2 else h_next.squeeze(0)
