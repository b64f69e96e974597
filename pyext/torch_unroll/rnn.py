"""The Elman recurrence: whole sequences (`rnn`) and one step at a time (`rnn_cell`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.overrides import has_torch_function, has_torch_function_variadic
from torch.utils.checkpoint import checkpoint

from torch_unroll.autocast import lowered
from torch_unroll.checks import is_traced, require_shape, widened
from torch_unroll.engines import claims, limits, resolve
from torch_unroll.engines.interface import DTYPES
from torch_unroll.ops.linear import linear
from torch_unroll.ops.rnn import check_batch_sizes, part, rnn_forward
from torch_unroll.ops.rnn_cell import rnn_cell_forward
from torch_unroll.ops.rnn_steps import Steps
from torch_unroll.programs import in_onnx_export, is_transformed
from torch_unroll.rnn_checks import (
    Layers,
    by_layer,
    check_alike,
    check_nonlinearity,
    check_segments,
    checked_start,
    read_rows,
    shape,
    zero_state,
)
from torch_unroll.rnn_torch_function import TORCHS, TORCHS_CELL, ask_rnn, ask_rnn_cell, torchs_arguments
from torch_unroll.shapes import index, require, require_tensors


@dataclass(frozen=True)
class _Stack:
    """The layers of one call and how they are run."""

    layers: Layers
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

    def dropped(self, x: Tensor) -> Tensor:
        """x with dropout; torch draws the mask for (T, N, ·), also where the batch comes first."""
        if not self.batch_first:
            return torch.dropout(x, self.dropout, True)
        ones = torch.ones_like(x.transpose(0, 1), memory_format=torch.contiguous_format)
        return x * torch.dropout(ones, self.dropout, True).transpose(0, 1)

    def run(self, x: Tensor, h0: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
        """Every layer, with dropout between them."""
        last = []
        running = steps.running(x.transpose(0, 1) if self.batch_first else x)
        if running is not None:  # 0 · NaN is NaN: what lies past a length would reach the weight's gradient, where dz is 0
            x = x.masked_fill(~(running.transpose(0, 1) if self.batch_first else running), 0)
        for number, (weights, start) in enumerate(zip(self.layers, h0.split(len(self.layers[0])), strict=True)):
            if number > 0 and self.dropout:
                x = self.dropped(x)
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
        h0: (num_layers·D, N, H), or (num_layers·D, H) without a batch; None for zeros. Where it has a batch and input (T, I) has
            none, every sample reads the same sequence, as with torch's operators.
        weights: in torch's order, per layer and direction: w_ih (H, I; above the first layer H, D·H), w_hh (H, H) and, for all
            or none, b_ih (H), b_hh (H).
        nonlinearity: "tanh", "relu", "sigmoid" or "identity".
        num_layers, bidirectional: of the stack.
        dropout, training: the probability with which, in training, a layer's outputs are zeroed on their way to the next; the
            mask comes from torch's generator, on the CPU the same as torch's.
        batch_first: whether input and output are (N, T, ·); the states never are.
        batch_sizes: those of a PackedSequence: (T), int64, on the CPU.
        lengths: (N), of any integer dtype, on input's device, never read by the host: how many steps of a padded sample count,
            clamped to [0, T]. Outputs beyond are 0, and h_n is the state at the sample's last step (h0 for a sample of none).
        recompute_segments: cuts the sequence into so many segments and keeps for the backward pass only the states between them,
            computing the rest again (Chen et al. 2016, arXiv 1604.06174): about √T of them need the least memory. Worth it
            where the output is not kept either. Not for bidirectional or packed input.
        engine: one of `torch_unroll.available_engines()`; None takes the first that can.

    Returns:
        output, like input with D·H features and laid out as it is, and h_n, like h0.

    Raises:
        RuntimeError: sizes, dtypes or devices that do not fit, as torch's; a sequence of no steps; or the named engine's reason.
        ValueError: an unknown nonlinearity or engine; recompute_segments where it cannot serve.
    """
    if has_torch_function((input, h0, batch_sizes, lengths, *weights)) and not torch.compiler.is_compiling():
        layout = {"batch_first": batch_first, "batch_sizes": batch_sizes, "lengths": lengths}
        stacked = {"num_layers": num_layers, "bidirectional": bidirectional, "dropout": dropout, "training": training}
        options = {"nonlinearity": nonlinearity, "recompute_segments": recompute_segments, "engine": engine}
        return ask_rnn(rnn, input, h0, weights, {**options, **stacked, **layout})
    resolved = resolve(engine)
    check_nonlinearity(nonlinearity)
    num_layers = index(num_layers, "num_layers")
    require_tensors(input=input, h0=h0, batch_sizes=batch_sizes, lengths=lengths)
    for weight in weights:
        require_tensors(weights=weight)
    if recompute_segments is not None:
        check_segments(recompute_segments, cuttable=batch_sizes is None and not bidirectional)
    others, names = (h0, lengths, *weights), ("h0", "lengths", "weights")
    claimed = claims(resolved, input, others, names)
    if batch_sizes is not None:
        check_batch_sizes(batch_sizes)
    packed, directions = batch_sizes is not None, 2 if bidirectional else 1
    axis = 0 if batch_first and not packed else 1
    beyond_torch = lengths is not None or recompute_segments is not None or nonlinearity not in TORCHS
    x, start, batched = (input, h0, True) if packed else _with_batch(input, h0, axis, beyond_torch)
    claimed = claimed and _counts(resolved, x, axis, packed)
    resolved = _engine_or_torch(resolved, claimed, input, beyond_torch)
    if beyond_torch and not claimed:
        claims(resolved, input, others, names)
    if resolved == "none":
        states = num_layers * directions
        if start is None:
            start = zero_state(x, axis, batch_sizes, states, weights[1].shape[-1])
        layout = {"batch_sizes": batch_sizes, "batch_first": batch_first}
        stacked = {"num_layers": num_layers, "bidirectional": bidirectional, "dropout": dropout, "training": training}
        output, h_n = TORCHS[nonlinearity](*torchs_arguments(x, start, weights, {**stacked, **layout}))
    else:
        stack = _Stack(
            by_layer(weights, num_layers, directions),
            batch_first and not packed,
            dropout if training else 0.0,
            nonlinearity,
            resolved,
        )
        if batch_sizes is not None and not bidirectional:
            x = read_rows(x, batch_sizes)
        start = lowered(checked_start(x, start, stack.layers, axis, batch_sizes, lengths))
        x = lowered(x)
        lengths = widened(lengths)
        if recompute_segments is None:
            output, h_n = stack.run(x, start, Steps(lengths, batch_sizes))
        else:
            output, h_n = stack.in_segments(x, start, lengths, recompute_segments)
    return (output, h_n) if batched else (output.squeeze(axis), h_n.squeeze(1))


def _with_batch(input: Tensor, h0: Tensor | None, axis: int, beyond_torch: bool) -> tuple[Tensor, Tensor | None, bool]:
    """input and h0 with a batch, and whether they came with one. `axis` is that of N in the input."""
    if input.dim() != 2:
        return input, h0, True
    if h0 is not None and h0.dim() == 3 and axis == 1 and not beyond_torch:
        return input.unsqueeze(1).expand(-1, h0.shape[1], -1), h0, True
    if h0 is not None:
        require(h0.dim() == 2, f"h0: expected 2 dimensions like input, got shape {shape(h0)}")
        h0 = h0.unsqueeze(1)
    return input.unsqueeze(axis), h0, False


def _engine_or_torch(resolved: str, claimed: bool, input: Tensor, beyond_torch: bool) -> str:
    """The engine of a call, which the engines claim or not; "none" for torch's own operator."""
    if in_onnx_export():
        require(
            resolved == "auto" and not beyond_torch,
            "ONNX has torch's recurrences alone: expected nonlinearity tanh or relu without lengths, recompute_segments or an"
            " engine's name",
        )
        return "none"
    if claimed:
        return resolved
    if beyond_torch:
        return "torch"
    # Compilers would unroll the steps of torch's operator, and it has no batching rule.
    return "torch" if input.dtype in DTYPES and input.layout == torch.strided and is_transformed() else "none"


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
    if has_torch_function_variadic(input, h, w_ih, w_hh, b_ih, b_hh) and not torch.compiler.is_compiling():
        return ask_rnn_cell(rnn_cell, (input, h, w_ih, w_hh, b_ih, b_hh), nonlinearity, engine)
    resolved = resolve(engine)
    check_nonlinearity(nonlinearity)
    require_tensors(input=input, h=h, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh)
    others, names = (h, w_ih, w_hh, b_ih, b_hh), ("h", "w_ih", "w_hh", "b_ih", "b_hh")
    claimed, beyond_torch = claims(resolved, input, others, names), nonlinearity not in TORCHS_CELL
    if claimed and limits.is_large(input, h):
        claimed = limits.serves(resolved, limits.rnn_cell(input.shape[:-1].numel(), input.shape[-1], h.shape[-1]))
    resolved = _engine_or_torch(resolved, claimed, input, beyond_torch)
    if beyond_torch and not claimed:
        claims(resolved, input, others, names)
    if resolved == "none":
        if input.dim() == 1 and h.dim() == 1:
            return TORCHS_CELL[nonlinearity](input.unsqueeze(0), h.unsqueeze(0), w_ih, w_hh, b_ih, b_hh).squeeze(0)
        return TORCHS_CELL[nonlinearity](input, h, w_ih, w_hh, b_ih, b_hh)
    require(input.dim() in (1, 2), f"input: expected 1 or 2 dimensions, got shape {shape(input)}")
    if input.dim() < 2 and h.dim() != input.dim():  # the type that torch's operator raises here
        raise IndexError(f"h: expected {input.dim()} dimensions like input, got shape {shape(h)}")
    require(w_ih.dim() == 2, f"w_ih: expected 2 dimensions, got shape {shape(w_ih)}")
    require(w_hh.dim() == 2, f"w_hh: expected 2 dimensions, got shape {shape(w_hh)}")
    x, state = (input, h) if input.dim() == 2 else (input.unsqueeze(0), h.unsqueeze(0))
    _check_cell(x, state, w_ih, w_hh)
    require_shape(b_ih, "b_ih", w_hh.shape[1])
    require_shape(b_hh, "b_hh", w_hh.shape[1])
    check_alike(input, "hidden", {"h": h})
    check_alike(input, "parameter", {"w_ih": w_ih, "w_hh": w_hh, "b_ih": b_ih, "b_hh": b_hh})
    h_next = rnn_cell_forward(x, state, w_ih, w_hh, b_ih, b_hh, nonlinearity, "rnn", resolved)
    return h_next if input.dim() == 2 else h_next.squeeze(0)


def _check_cell(x: Tensor, state: Tensor, w_ih: Tensor, w_hh: Tensor) -> None:
    """Extents, in the words of torch's cells."""
    (rows, inputs), H = x.shape, w_hh.shape[1]
    if not is_traced(rows, inputs, H) and (state.shape, w_ih.shape, w_hh.shape) == ((rows, H), (H, inputs), (H, H)):
        return
    for name, weight in (("ih", w_ih), ("hh", w_hh)):
        require(
            weight.shape[0] == H, f"w_{name}: weight_{name} first dim must be 1 * hidden_size = {H}, but got {weight.shape[0]}"
        )
    require(inputs == w_ih.shape[1], f"input has inconsistent input_size: got {inputs} expected {w_ih.shape[1]}")
    require(state.dim() > 0, "h: expected 2 dimensions like input, got shape ()")
    if not is_traced(rows, state.shape[0]):  # of a graph, the operator asks
        require(rows == state.shape[0], f"Input batch size {rows} doesn't match hidden0 batch size {state.shape[0]}")
    require(state.dim() > 1, f"h: expected 2 dimensions like input, got shape {shape(state)}")
    require(state.shape[1] == H, f"hidden0 has inconsistent hidden_size: got {state.shape[1]}, expected {H}")
    require(state.dim() == 2, f"h: expected 2 dimensions like input, got shape {shape(state)}")
