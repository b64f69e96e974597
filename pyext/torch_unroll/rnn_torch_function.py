"""`__torch_function__` for the recurrences: calls are offered to tensor subclasses, proxies and modes as calls of torch's
functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from torch_unroll.rnn_checks import zero_state
from torch_unroll.signatures import like_rnn, like_rnn_cell
from torch_unroll.torch_function import ask

TORCHS: dict[str, Callable[..., Any]] = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}
TORCHS_CELL: dict[str, Callable[..., Tensor]] = {"tanh": torch.rnn_tanh_cell, "relu": torch.rnn_relu_cell}


def torchs_arguments(x: Any, start: Any, weights: Sequence[Any], options: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of `torch.rnn_tanh`, padded or packed, for a call of `torch_unroll.rnn` that has a batch and an initial
    state."""
    batch_sizes, num_layers, bidirectional = options["batch_sizes"], options["num_layers"], options["bidirectional"]
    has_biases = len(weights) == 4 * num_layers * (2 if bidirectional else 1)
    settings = (list(weights), has_biases, num_layers, options["dropout"], options["training"], bidirectional)
    return (x, start, *settings, options["batch_first"]) if batch_sizes is None else (x, batch_sizes, start, *settings)


def ask_rnn(rnn: Callable[..., Any], input: Any, h0: Any, weights: Sequence[Any], options: dict[str, Any]) -> Any:
    """Offers a call of `torch_unroll.rnn` to modes and to arguments that override it, as a call of torch's function if that can
    express it. torch's function needs a batch and an initial state; a missing state is created here, as torch.nn.RNN does."""
    theirs, batch_sizes = TORCHS.get(options["nonlinearity"]), options["batch_sizes"]
    tensors = (input, h0, batch_sizes, options["lengths"], *weights)
    beyond_torch = options["lengths"] is not None or options["recompute_segments"] is not None
    recorded = any(isinstance(tensor, fx.Proxy) for tensor in tensors)
    batched = isinstance(input, Tensor) and input.dim() == (3 if batch_sizes is None else 2)
    if theirs is None or beyond_torch or recorded or not batched:
        return ask(rnn, tensors, (input, h0, weights), options)
    if h0 is None:
        states = options["num_layers"] * (2 if options["bidirectional"] else 1)
        axis = 0 if options["batch_first"] and batch_sizes is None else 1
        h0 = zero_state(input, axis, batch_sizes, states, weights[1].shape[-1])
    twin = like_rnn(theirs, partial(rnn, nonlinearity=options["nonlinearity"], engine=options["engine"]))
    return ask(rnn, tensors, torchs_arguments(input, h0, weights, options), {}, theirs, twin)


def ask_rnn_cell(rnn_cell: Callable[..., Any], arguments: tuple[Any, ...], nonlinearity: str, engine: str | None) -> Any:
    """Offers a call of `torch_unroll.rnn_cell` in the same way as `ask_rnn`; `arguments` are all tensors of the call."""
    options, theirs = {"nonlinearity": nonlinearity, "engine": engine}, TORCHS_CELL.get(nonlinearity)
    if theirs is None or any(isinstance(tensor, fx.Proxy) for tensor in arguments):
        return ask(rnn_cell, arguments, arguments, options)
    return ask(rnn_cell, arguments, arguments, {}, theirs, like_rnn_cell(theirs, partial(rnn_cell, **options)))
