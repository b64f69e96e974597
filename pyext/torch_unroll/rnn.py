"""The Elman recurrence: whole sequences (`rnn`) and one step at a time (`rnn_cell`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torch_unroll.autocast import lowered, lowered_dtype
from torch_unroll.engines import DTYPES, claims, limits, resolve
from torch_unroll.engines.interface import NONLINEARITIES
from torch_unroll.linear import linear
from torch_unroll.rnn_cell_ops import rnn_cell_forward
from torch_unroll.rnn_ops import check_batch_sizes, part, rnn_forward
from torch_unroll.rnn_steps import Steps
from torch_unroll.shapes import index, require, require_tensors

_TORCHS: dict[str, Callable[..., Any]] = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}
_TORCHS_CELL: dict[str, Callable[..., Tensor]] = {"tanh": torch.rnn_tanh_cell, "relu": torch.rnn_relu_cell}


def _check_nonlinearity(nonlinearity: str) -> None:
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(f"nonlinearity: expected one of {', '.join(NONLINEARITIES)}, got {nonlinearity!r}")


def _check_alike(input: Tensor, others: dict[str, Tensor | None]) -> None:
    """One dtype that engines take, after autocast where it is enabled, and one device."""
    expected = lowered_dtype(input)
    require(expected in DTYPES, f"input: expected a floating-point dtype (fp16, bf16, fp32, fp64), got {expected}")
    for name, other in others.items():
        if other is not None:
            dtype = lowered_dtype(other)
            require(dtype == expected, f"{name}: expected dtype {expected} like input, got {dtype}")
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


def _check_segments(segments: int, cuttable: bool) -> None:
    if not isinstance(segments, int) or segments < 1:
        raise ValueError(f"recompute_segments: expected a number above 0, got {segments!r}")
    if not cuttable:
        raise ValueError("recompute_segments: expected None for bidirectional or packed input, which no state cuts in two")


def _check_lengths(lengths: Tensor, x: Tensor, N: int) -> None:
    require(lengths.dtype in (torch.int64, torch.int32), f"lengths: expected int64 or int32, got {lengths.dtype}")
    require(lengths.device == x.device, f"lengths: expected device {x.device} like input, got {lengths.device}")
    _check_shape(lengths, "lengths", N)


def _checked_start(
    x: Tensor,
    h0: Tensor | None,
    layers: list[list[tuple[Tensor, ...]]],
    axis: int,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
) -> Tensor:
    """h0, or zeros; raises if anything does not fit. `axis` is that of N in x."""
    rank = 3 if batch_sizes is None else 2
    require(x.dim() == rank, f"input: expected {rank} dimensions with its batch, got shape {_shape(x)}")
    _check_alike(x, {"h0": h0})
    H, states = _check_weights(layers, x), len(layers) * len(layers[0])
    if batch_sizes is None:
        N = x.shape[axis]
        require(x.shape[1 - axis] > 0, "input: expected a sequence of at least one step, got none")
    elif h0 is None or h0.dim() != 3:
        N = int(batch_sizes[0])
    else:
        N = h0.shape[1]  # the operator compares it with batch_sizes when it runs
    if lengths is not None:
        require(batch_sizes is None, "lengths: expected None beside batch_sizes")
        _check_lengths(lengths, x, N)
    if h0 is None:
        return x.new_zeros(states, N, H)
    _check_shape(h0, "h0", states, N, H)
    return h0


@dataclass(frozen=True)
class _Stack:
    """The layers of one call and how they are run."""

    layers: list[list[tuple[Tensor, ...]]]
    batch_first: bool
    dropout: float
    nonlinearity: str
    engine: str

    def layer(self, x: Tensor, h0: Tensor, weights: list[tuple[Tensor, ...]], steps: Steps) -> tuple[Tensor, Tensor]:
        """One layer: x, in the caller's layout, and h0 (D, N, H) -> h laid out like x, and h_n (D, N, H)."""
        w_ih, w_hh, *biases = zip(*weights, strict=True)
        w_ih, w_hh = tuple(map(lowered, w_ih)), tuple(map(lowered, w_hh))
        bias = _joined([lowered(b_ih + b_hh) for b_ih, b_hh in zip(*biases, strict=True)]) if biases else None
        z = linear(x, _joined(w_ih), bias, "rnn", self.engine)
        z = z.transpose(0, 1) if self.batch_first else z
        recurrent = w_hh[0].unsqueeze(0) if len(w_hh) == 1 else torch.stack(w_hh)
        h = rnn_forward(z, recurrent, h0, steps.lengths, steps.batch_sizes, self.nonlinearity, "rnn", self.engine)
        H = h0.shape[-1]
        h_n = [steps.last(part(h, d, H), h0[d].to(h.dtype), d) for d in range(len(weights))]
        return h.transpose(0, 1) if self.batch_first else h, torch.stack(h_n)

    def run(self, x: Tensor, h0: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
        """Every layer, with dropout between them."""
        last = []
        running = steps.running(x.transpose(0, 1) if self.batch_first else x)
        if running is not None:  # 0 · NaN is NaN: what lies past a length would reach the weight's gradient, where dz is 0
            x = x.masked_fill(~(running.transpose(0, 1) if self.batch_first else running), 0)
        for number, (weights, start) in enumerate(zip(self.layers, h0.split(len(self.layers[0])), strict=True)):
            if number > 0 and self.dropout:
                x = torch.dropout(x, self.dropout, True)
            x, h_n = self.layer(x, start, weights, steps)
            last.append(h_n)
        return x, _joined(last)

    def in_segments(self, x: Tensor, h0: Tensor, lengths: Tensor | None, segments: int) -> tuple[Tensor, Tensor]:
        """`run`, keeping only the states between segments of the sequence; backward computes each segment again."""
        axis = 1 if self.batch_first else 0
        parts = x.split(-(-x.shape[axis] // segments), axis)
        outputs, state, begin = [], h0, 0
        for x in parts:
            steps = Steps(None if lengths is None else lengths - begin, None)
            h, state = checkpoint(self.run, x, state, steps, use_reentrant=False)
            outputs.append(h)
            begin += x.shape[axis]
        return torch.cat(outputs, axis), state


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _counts(engine: str, x: Tensor, axis: int, packed: bool) -> bool:
    """Whether the engine counts a sequence's extents; False sends it to torch's operator."""
    if not limits.is_large(x):
        return True
    lead = x.shape[:-1] if axis == 1 or packed else (x.shape[1], x.shape[0])
    return limits.serves(engine, limits.rnn(lead, x.shape[-1], 1 if packed else lead[1], 1))


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
    """An Elman RNN over sequences, as `torch.rnn_tanh` and `torch.rnn_relu`: h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh).

    Each layer is one matrix product for all steps, then one recurrence over T, with BPTT for its backward (Werbos 1990).
    D is 2 if bidirectional, else 1. fp32 products follow `torch.backends.cudnn.rnn.fp32_precision`.

    Args:
        input: (T, N, I); (N, T, I) if batch_first; (T, I) without a batch; or the data (total, I) of a PackedSequence.
            fp16, bf16, fp32 or fp64, of any strides.
        h0: (num_layers·D, N, H), or (num_layers·D, H) without a batch; None for zeros.
        weights: in torch's order, per layer and direction: w_ih (H, I; above the first layer H, D·H), w_hh (H, H) and, for all
            or none, b_ih (H), b_hh (H).
        nonlinearity: "tanh", "relu", "sigmoid" or "identity".
        num_layers, bidirectional: of the stack.
        dropout, training: the probability with which, in training, a layer's outputs are zeroed on their way to the next; the
            mask comes from torch's generator.
        batch_first: whether input and output are (N, T, ·); the states never are.
        batch_sizes: those of a PackedSequence: (T), int64, on the CPU.
        lengths: (N), integers, on input's device, never read by the host: how many steps of a padded sample count, clamped to
            [0, T]. Outputs beyond are 0, and h_n is the state at the sample's last step (h0 for a sample of none).
        recompute_segments: cuts the sequence into so many segments and keeps for the backward pass only the states between them,
            computing the rest again (Chen et al. 2016, arXiv 1604.06174): about √T of them need the least memory. Worth it
            where the output is not kept either. Not for bidirectional or packed input.
        engine: one of `torch_unroll.available_engines()`; None takes the first that can.

    Returns:
        output, like input with D·H features, and h_n, like h0.

    Raises:
        RuntimeError: sizes, dtypes or devices that do not fit, as torch's; a sequence of no steps; or the named engine's reason.
        ValueError: an unknown nonlinearity or engine; recompute_segments where it cannot serve.
    """
    resolved = resolve(engine)
    _check_nonlinearity(nonlinearity)
    num_layers = index(num_layers, "num_layers")
    require_tensors(input=input, h0=h0, batch_sizes=batch_sizes, lengths=lengths)
    if recompute_segments is not None:
        _check_segments(recompute_segments, cuttable=batch_sizes is None and not bidirectional)
    others, names = (h0, lengths, *weights), ("h0", "lengths", "weights")
    claimed = claims(resolved, input, others, names)
    packed, directions = batch_sizes is not None, 2 if bidirectional else 1
    axis = 0 if batch_first and not packed else 1
    batched = packed or input.dim() != 2
    x = input if batched else input.unsqueeze(axis)
    start = h0 if h0 is None or batched else h0.unsqueeze(1)
    if batch_sizes is not None:
        check_batch_sizes(batch_sizes)
    if not (claimed and _counts(resolved, x, axis, packed)):
        # torch's operator reads batch_sizes on the host, where torch.compile has none.
        beyond_torch = lengths is not None or recompute_segments or (packed and torch.compiler.is_compiling())
        resolved = "torch" if beyond_torch or nonlinearity not in _TORCHS else "none"
        if resolved == "torch":
            claims(resolved, input, others, names)
    if resolved == "none":
        states = num_layers * directions
        if start is None:
            N = x.shape[axis] if batch_sizes is None else int(batch_sizes[0])
            start = x.new_zeros(states, N, weights[1].shape[-1])
        settings = (list(weights), len(weights) == 4 * states, num_layers, dropout, training, bidirectional)
        sequence, layout = ((x, batch_sizes, start), ()) if packed else ((x, start), (batch_first,))
        output, h_n = _TORCHS[nonlinearity](*sequence, *settings, *layout)
    else:
        stack = _Stack(
            _by_layer(weights, num_layers, directions),
            batch_first and not packed,
            dropout if training else 0.0,
            nonlinearity,
            resolved,
        )
        start = lowered(_checked_start(x, start, stack.layers, axis, batch_sizes, lengths))
        x = lowered(x)
        if recompute_segments is None:
            output, h_n = stack.run(x, start, Steps(lengths, batch_sizes))
        else:
            output, h_n = stack.in_segments(x, start, lengths, recompute_segments)
    return (output, h_n) if batched else (output.squeeze(axis), h_n.squeeze(1))


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
        engine: one of `torch_unroll.available_engines()`; None takes the first that can.

    Returns:
        The state after the step, like h.

    Raises:
        RuntimeError: sizes, dtypes or devices that do not fit, as torch's; or the named engine's reason for refusing.
        ValueError: an unknown nonlinearity or engine.
    """
    resolved = resolve(engine)
    _check_nonlinearity(nonlinearity)
    require_tensors(input=input, h=h, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh)
    others, names = (h, w_ih, w_hh, b_ih, b_hh), ("h", "w_ih", "w_hh", "b_ih", "b_hh")
    few = not limits.is_large(input, h)
    if not (
        claims(resolved, input, others, names)
        and (few or limits.serves(resolved, limits.rnn_cell(input.shape[:-1].numel(), input.shape[-1], h.shape[-1])))
    ):
        if nonlinearity in _TORCHS_CELL:
            if input.dim() == 1 and h.dim() == 1:
                return _TORCHS_CELL[nonlinearity](input.unsqueeze(0), h.unsqueeze(0), w_ih, w_hh, b_ih, b_hh).squeeze(0)
            return _TORCHS_CELL[nonlinearity](input, h, w_ih, w_hh, b_ih, b_hh)
        resolved = "torch"
        claims(resolved, input, others, names)
    require(input.dim() in (1, 2), f"input: expected 1 or 2 dimensions, got shape {_shape(input)}")
    if input.dim() < 2 and h.dim() != input.dim():  # the type that torch's operator raises here
        raise IndexError(f"h: expected {input.dim()} dimensions like input, got shape {_shape(h)}")
    require(h.dim() == input.dim(), f"h: expected {input.dim()} dimensions like input, got shape {_shape(h)}")
    require(w_ih.dim() == 2, f"w_ih: expected 2 dimensions, got shape {_shape(w_ih)}")
    inputs, H = w_ih.shape[1], h.shape[-1]
    require(input.shape[-1] == inputs, f"input has inconsistent input_size: got {input.shape[-1]} expected {inputs}")
    require(w_hh.dim() == 2, f"w_hh: expected 2 dimensions, got shape {_shape(w_hh)}")
    require(w_hh.shape[1] == H, f"hidden0 has inconsistent hidden_size: got {H}, expected {w_hh.shape[1]}")
    _check_shape(w_ih, "w_ih", H, inputs)
    _check_shape(w_hh, "w_hh", H, H)
    _check_shape(b_ih, "b_ih", H)
    _check_shape(b_hh, "b_hh", H)
    x, state = (input, h) if input.dim() == 2 else (input.unsqueeze(0), h.unsqueeze(0))
    require(x.shape[0] == state.shape[0], f"Input batch size {x.shape[0]} doesn't match hidden0 batch size {state.shape[0]}")
    _check_alike(input, {"h": h, "w_ih": w_ih, "w_hh": w_hh, "b_ih": b_ih, "b_hh": b_hh})
    h_next = rnn_cell_forward(x, state, w_ih, w_hh, b_ih, b_hh, nonlinearity, "rnn", resolved)
    return h_next if input.dim() == 2 else h_next.squeeze(0)
