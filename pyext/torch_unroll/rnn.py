"""The Elman recurrence: whole sequences (`rnn`) and one step at a time (`rnn_cell`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function, has_torch_function_variadic

from torch_unroll.autocast import lowered
from torch_unroll.checks import is_traced, require_shape, widened
from torch_unroll.engines import claims, limits, resolve
from torch_unroll.engines.interface import DTYPES
from torch_unroll.kernels.shapes import SizeError
from torch_unroll.ops.registration import operations
from torch_unroll.ops.rnn_cell import rnn_cell_forward
from torch_unroll.ops.rnn_fused import RNN_FUSED, Numbers, rnn_fused
from torch_unroll.ops.rnn_layer import check_batch_sizes
from torch_unroll.ops.rnn_stack import Stack
from torch_unroll.ops.rnn_steps import Steps
from torch_unroll.plain import is_plain
from torch_unroll.prepared.shortcut import Shortcuts
from torch_unroll.programs import in_onnx_export, is_transformed
from torch_unroll.rnn_checks import (
    by_layer,
    check_alike,
    check_nonlinearity,
    check_segments,
    check_tensors,
    checked_start,
    read_rows,
    shape,
    zero_state,
)
from torch_unroll.rnn_torch_function import TORCHS, TORCHS_CELL, ask_rnn, ask_rnn_cell, torchs_arguments
from torch_unroll.shapes import index, require, require_tensors


def _fits_engine(engine: str, x: Tensor, axis: int, packed: bool) -> bool:
    """Whether the extents of a sequence are within the limits of the engine's kernels; if they are not, torch serves the call.

    Raises:
        SizeError: the extents exceed the limits, and engine `cuda` or `cupy` was named.
    """
    if not limits.is_large(x):
        return True
    lead = x.shape[:-1] if axis == 1 or packed else (x.shape[1], x.shape[0])
    return limits.serves(engine, limits.rnn(lead, x.shape[-1], 1 if packed else lead[1], 1))


#: The shortcuts of `rnn`, which the module `nn.RNN` takes as well: by x, h0 and the weights, and the options that `rnn` lists.
RNN_SHORTCUTS = Shortcuts(RNN_FUSED, results=2)


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
    """An Elman RNN over sequences, like `torch.rnn_tanh` and `torch.rnn_relu`: h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh).

    Each layer computes one matrix product for all steps and then one recurrence over T, whose backward is BPTT (Werbos 1990,
    "Backpropagation through time"). D is 2 if bidirectional, otherwise 1. fp32 products follow
    `torch.backends.cudnn.rnn.fp32_precision`.

    Args:
        input: (T, N, I); (N, T, I) if batch_first; (T, I) without a batch; or the data (total, I) of a PackedSequence.
            fp16, bf16, fp32 or fp64, with any strides.
        h0: (num_layers·D, N, H), or (num_layers·D, H) without a batch; None stands for zeros. If it has a batch and the input
            (T, I) has none, every sample reads the same sequence, as in torch; this is not possible with batch_first or an
            option that torch lacks.
        weights: in torch's order, for each layer and direction: w_ih (H, I; above the first layer H, D·H), w_hh (H, H) and,
            for all or none, b_ih (H) and b_hh (H).
        nonlinearity: "tanh", "relu", "sigmoid" or "identity".
        num_layers, bidirectional: the shape of the stack.
        dropout, training: if training, the outputs of each layer but the last are zeroed with probability dropout. The mask
            comes from torch's generator; on the CPU it equals torch's.
        batch_first: whether input and output are (N, T, ·); states never are.
        batch_sizes: that of a PackedSequence: (T), int64, on the CPU.
        lengths: (N), of any integer dtype, on input's device: the number of valid steps of each padded sample, clamped to
            [0, T]. A call does not copy it from the GPU to the host. Outputs past the length of a sample are 0, and h_n is the
            state after the last valid step that a direction computes (h0 if there is none).
        recompute_segments: cuts the sequence into at most this many segments and saves, besides the input, only the states
            between them for backward, which computes the rest again (Chen et al. 2016, arXiv 1604.06174). About √T segments need
            the least memory. This saves memory only if the caller does not keep the output. It is not available for
            bidirectional or packed input.
        engine: as in `conv2d`, but engine `torch` takes the place of torch's own operator if that lacks an option of the call,
            and for floating-point calls under torch.compile and torch.func.

    Returns:
        The output, which has D·H features and the layout of input, and h_n, which has the shape of h0.

    Raises:
        RuntimeError: sizes, dtypes or devices do not fit together, as in torch; the sequence has no steps; or a named engine
            refuses the call.
        ValueError: an unknown nonlinearity or engine, a recompute_segments that is not an int above 0, or one for a call that
            cannot be cut into segments.
    """
    shortcut_options = (nonlinearity, num_layers, bidirectional, dropout if training else 0.0, batch_first, engine)
    is_shortcut = batch_sizes is None and lengths is None and recompute_segments is None and not torch.compiler.is_compiling()
    if is_shortcut and (results := RNN_SHORTCUTS.take((input, h0, *weights), shortcut_options)) is not None:
        return cast(tuple[Tensor, Tensor], results)
    stack_options = {"num_layers": num_layers, "bidirectional": bidirectional, "dropout": dropout, "training": training}
    if has_torch_function((input, h0, batch_sizes, lengths, *weights)) and not torch.compiler.is_compiling():
        layout = {"batch_first": batch_first, "batch_sizes": batch_sizes, "lengths": lengths}
        options = {"nonlinearity": nonlinearity, "recompute_segments": recompute_segments, "engine": engine}
        return ask_rnn(rnn, input, h0, weights, {**options, **stack_options, **layout})
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
    beyond = beyond_torch(nonlinearity, lengths, recompute_segments)
    x, start, batched = (input, h0, True) if packed else _with_batch(input, h0, axis, beyond)
    claimed = claimed and _fits_engine(resolved, x, axis, packed)
    serving = engine_or_torch(resolved, claimed, input, beyond)
    if beyond and not claimed:
        claims(resolved if serving is None else serving, input, others, names)
    if serving is None:
        layout = {"batch_sizes": batch_sizes, "batch_first": batch_first}
        torchs_options: dict[str, Any] = {**stack_options, "num_layers": num_layers, **layout}
        output, h_n = _by_torch(nonlinearity, x, start, weights, axis, num_layers * directions, torchs_options)
    else:
        stack = Stack(
            layers=by_layer(weights, num_layers, directions),
            batch_first=batch_first and not packed,
            dropout=dropout if training else 0.0,
            nonlinearity=nonlinearity,
            engine=serving,
        )
        learned = shortcut_options if is_shortcut and x is input else None
        output, h_n = _check_and_run(stack, x, start, axis, batch_sizes, lengths, recompute_segments, learned)
    return (output, h_n) if batched else (output.squeeze(axis), h_n.squeeze(1))


def _by_torch(
    nonlinearity: str, x: Tensor, h0: Tensor | None, weights: Sequence[Tensor], axis: int, states: int, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Runs torch's own operator; `states` is the number of initial states."""
    if h0 is None:
        h0 = zero_state(x, axis, options["batch_sizes"], states, weights[1].shape[-1])
    output, h_n = TORCHS[nonlinearity](*torchs_arguments(x, h0, weights, options))
    return output, h_n


def _check_and_run(
    stack: Stack,
    x: Tensor,
    h0: Tensor | None,
    axis: int,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    recompute_segments: int | None,
    shortcut_options: tuple[Any, ...] | None,
) -> tuple[Tensor, Tensor]:
    """Checks the tensors of a call that an engine serves, and runs its layers.

    Args:
        axis: that of N in x.
        shortcut_options: the options by which a shortcut knows the call, or None if it may have none.
    """
    if batch_sizes is not None and len(stack.layers[0]) == 1:
        x = read_rows(x, batch_sizes)
    if _is_fused(stack, x, h0, batch_sizes, lengths, recompute_segments):
        check_tensors(x, h0, stack.layers, axis, None, None)
        tensors = (x, h0, *(weight for layer in stack.layers for weights in layer for weight in weights))
        numbers = Numbers(len(stack.layers), stack.batch_first, stack.nonlinearity, stack.engine)
        with suppress(SizeError):  # the layers' own operators know what to do
            results = rnn_fused(tensors, numbers)
            if shortcut_options is not None:
                RNN_SHORTCUTS.learn(tensors, shortcut_options, tuple(numbers))
            return results
    start = lowered(checked_start(x, h0, stack.layers, axis, batch_sizes, lengths))
    x, lengths = lowered(x), widened(lengths)
    if recompute_segments is None:
        return stack.run(x, start, Steps(lengths, batch_sizes))
    return stack.run_in_segments(x, start, lengths, recompute_segments)


def _is_fused(
    stack: Stack,
    x: Tensor,
    h0: Tensor | None,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    recompute_segments: int | None,
) -> bool:
    """Whether `rnn_fused` runs all layers of a call. An identity recurrence, whose output its gradient may not need, is left to
    the operators, which then do not keep it."""
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0 or stack.nonlinearity == "identity":
        return False
    if any(option is not None for option in (batch_sizes, lengths, recompute_segments)) or len(stack.layers[0]) > 1:
        return False
    weights = (weight for layer in stack.layers for weights in layer for weight in weights)
    return not (stack.dropout and len(stack.layers) > 1) and is_plain((x, h0, *weights)) and x.numel() > 0


def _with_batch(input: Tensor, h0: Tensor | None, axis: int, beyond: bool) -> tuple[Tensor, Tensor | None, bool]:
    """Returns input and h0 with a batch, and whether the output keeps the batch: it does if input or h0 came with one. `axis` is
    that of N in the returned input."""
    if input.dim() != 2:
        return input, h0, True
    if h0 is not None and h0.dim() == 3 and axis == 1 and not beyond:
        return input.unsqueeze(1).expand(-1, h0.shape[1], -1), h0, True
    if h0 is not None:
        require(h0.dim() == 2, f"h0: expected 2 dimensions like input, got shape {shape(h0)}")
        h0 = h0.unsqueeze(1)
    return input.unsqueeze(axis), h0, False


def beyond_torch(nonlinearity: str, lengths: Tensor | None = None, recompute_segments: int | None = None) -> bool:
    """Whether a call of `rnn` or `rnn_cell` uses an option that torch's operator lacks."""
    return lengths is not None or recompute_segments is not None or nonlinearity not in TORCHS


def engine_or_torch(resolved: str, claimed: bool, input: Tensor, beyond: bool) -> str | None:
    """The engine that serves a call, or None for torch's own operator.

    Args:
        resolved: the engine that the call asks for.
        claimed: whether that engine serves this input.
        input: the input of the call.
        beyond: whether the call uses an option that torch's operator lacks (`beyond_torch`).
    """
    if in_onnx_export():
        require(
            resolved == "auto" and not beyond,
            "ONNX has torch's recurrences alone: expected nonlinearity tanh or relu without lengths, recompute_segments or an"
            " engine's name",
        )
        return None
    if claimed:
        return resolved
    if beyond:
        return "torch"
    # A compiler would unroll the steps of torch's operator, and torch.func has no batching rule for it.
    return "torch" if input.dtype in DTYPES and input.layout == torch.strided and is_transformed() else None


_CELL_SHORTCUTS = Shortcuts(operations["rnn_cell_forward"])


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
    """One step of an Elman RNN, f(W_ih x + b_ih + W_hh h + b_hh), like `torch.rnn_tanh_cell` and `torch.rnn_relu_cell`.

    Args:
        input: x, (N, I), or (I) without a batch; fp16, bf16, fp32 or fp64, with any strides.
        h: (N, H), or (H) without a batch: the state before the step.
        w_ih, w_hh: (H, I) and (H, H).
        b_ih, b_hh: (H), or None.
        nonlinearity: "tanh", "relu", "sigmoid" or "identity".
        engine: as in `conv2d`, but engine `torch` takes the place of torch's own operator if that lacks an option of the call,
            and for floating-point calls under torch.compile and torch.func.

    Returns:
        The state after the step, with the shape of h.

    Raises:
        RuntimeError: sizes, dtypes or devices do not fit together, as in torch; or a named engine refuses the call.
        IndexError: the input has no batch, and h has another number of dimensions.
        ValueError: an unknown nonlinearity or engine.
    """
    tensors = (input, h, w_ih, w_hh, b_ih, b_hh)
    if not torch.compiler.is_compiling() and (shortcut := _CELL_SHORTCUTS.take(tensors, (nonlinearity, engine))) is not None:
        return cast(Tensor, shortcut)
    if has_torch_function_variadic(input, h, w_ih, w_hh, b_ih, b_hh) and not torch.compiler.is_compiling():
        return ask_rnn_cell(rnn_cell, (input, h, w_ih, w_hh, b_ih, b_hh), nonlinearity, engine)
    resolved = resolve(engine)
    check_nonlinearity(nonlinearity)
    require_tensors(input=input, h=h, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh)
    others, names = (h, w_ih, w_hh, b_ih, b_hh), ("h", "w_ih", "w_hh", "b_ih", "b_hh")
    claimed, beyond = claims(resolved, input, others, names), beyond_torch(nonlinearity)
    if claimed and limits.is_large(input, h):
        claimed = limits.serves(resolved, limits.rnn_cell(input.shape[:-1].numel(), input.shape[-1], h.shape[-1]))
    serving = engine_or_torch(resolved, claimed, input, beyond)
    if beyond and not claimed:
        claims(resolved if serving is None else serving, input, others, names)
    if serving is None:
        if input.dim() == 1 and h.dim() == 1:
            return TORCHS_CELL[nonlinearity](input.unsqueeze(0), h.unsqueeze(0), w_ih, w_hh, b_ih, b_hh).squeeze(0)
        return TORCHS_CELL[nonlinearity](input, h, w_ih, w_hh, b_ih, b_hh)
    require(input.dim() in (1, 2), f"input: expected 1 or 2 dimensions, got shape {shape(input)}")
    if input.dim() < 2 and h.dim() != input.dim():  # the exception type that torch's operator raises here
        raise IndexError(f"h: expected {input.dim()} dimensions like input, got shape {shape(h)}")
    require(w_ih.dim() == 2, f"w_ih: expected 2 dimensions, got shape {shape(w_ih)}")
    require(w_hh.dim() == 2, f"w_hh: expected 2 dimensions, got shape {shape(w_hh)}")
    x, state = (input, h) if input.dim() == 2 else (input.unsqueeze(0), h.unsqueeze(0))
    _check_cell(x, state, w_ih, w_hh)
    require_shape(b_ih, "b_ih", w_hh.shape[1])
    require_shape(b_hh, "b_hh", w_hh.shape[1])
    check_alike(input, "hidden", {"h": h})
    check_alike(input, "parameter", {"w_ih": w_ih, "w_hh": w_hh, "b_ih": b_ih, "b_hh": b_hh})
    numbers = (nonlinearity, "rnn", serving)
    h_next = rnn_cell_forward(x, state, w_ih, w_hh, b_ih, b_hh, *numbers)
    if x is input and not torch.compiler.is_compiling():
        _CELL_SHORTCUTS.learn(tensors, (nonlinearity, engine), numbers)
    return h_next if input.dim() == 2 else h_next.squeeze(0)


def _check_cell(x: Tensor, state: Tensor, w_ih: Tensor, w_hh: Tensor) -> None:
    """Checks the numbers of dimensions and the extents, with the error messages of torch's cells where those have one."""
    (rows, inputs), H = x.shape, w_hh.shape[1]
    if not is_traced(rows, inputs, H) and (state.shape, w_ih.shape, w_hh.shape) == ((rows, H), (H, inputs), (H, H)):
        return
    for name, weight in (("ih", w_ih), ("hh", w_hh)):
        require(
            weight.shape[0] == H, f"w_{name}: weight_{name} first dim must be 1 * hidden_size = {H}, but got {weight.shape[0]}"
        )
    require(inputs == w_ih.shape[1], f"input has inconsistent input_size: got {inputs} expected {w_ih.shape[1]}")
    require(state.dim() > 0, "h: expected 2 dimensions like input, got shape ()")
    if not is_traced(rows, state.shape[0]):  # in a graph, the operator compares them when it runs
        require(rows == state.shape[0], f"Input batch size {rows} doesn't match hidden0 batch size {state.shape[0]}")
    require(state.dim() > 1, f"h: expected 2 dimensions like input, got shape {shape(state)}")
    require(state.shape[1] == H, f"hidden0 has inconsistent hidden_size: got {state.shape[1]}, expected {H}")
    require(state.dim() == 2, f"h: expected 2 dimensions like input, got shape {shape(state)}")
