"""Host code of kernels/numba/rnn.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from torch_unroll.engines.interface import NONLINEARITIES, RecurrentWeights, RnnOptions
from torch_unroll.engines.numba.launch import launch
from torch_unroll.engines.packed import batch_size, packed_rows, set_state
from torch_unroll.kernels.arithmetic import ceil_divide
from torch_unroll.kernels.numba import rnn as kernels
from torch_unroll.kernels.numba.types import TILE
from torch_unroll.shapes import empty_rows_like

__all__ = ["rnn_backward", "rnn_cell_backward", "rnn_cell_forward", "rnn_forward", "warmup"]

#: The largest H for which one launch runs all steps, with a block for each tile of samples and each direction. Above it, one
#: launch for each step, which divides H among blocks too, is predicted to be faster; that has not been measured.
SINGLE_BLOCK_MAX_H = 512

_forced: str | None = None


@contextmanager
def force(variant: str) -> Iterator[None]:
    """Forces a variant, "single_block" or "step", for every pass within the block; elsewhere H decides."""
    global _forced
    previous, _forced = _forced, variant
    try:
        yield
    finally:
        _forced = previous


class _Rows(NamedTuple):
    """Where kernels find the steps of a layer in a sequence that is viewed as (rows, D·H)."""

    first_row: Tensor  # (T), the row of sample 0 at each step
    row_step: int  # how many rows further on the next sample's row is
    lengths: Tensor  # (N), the steps of each sample


def _with_strides_of(model: Tensor, tensor: Tensor) -> Tensor:
    """Returns the tensor, or a copy with the strides of `model` if its own are different."""
    return tensor if tensor.stride() == model.stride() else torch.empty_like(model).copy_(tensor)


def _as_rows(sequence: Tensor) -> Tensor:
    """Returns a view of a dense sequence as (rows, D·H), in the order of memory."""
    columns = sequence.shape[-1]
    return sequence.as_strided((sequence.numel() // columns, columns), (columns, 1))


def _rows(h: Tensor, samples: int, options: RnnOptions) -> _Rows:
    """Returns which row of `_as_rows(h)` holds each step of each sample, and how many steps each sample has.

    h must be dense. The result is also valid for any other sequence of the same shape and strides.
    """
    if options.batch_sizes is not None:
        first_rows, lengths = packed_rows(options.batch_sizes, h.device)
        return _Rows(first_rows, 1, lengths)
    T, _, columns = h.shape
    first_rows = torch.arange(T, device=h.device) * (h.stride(0) // columns)
    if options.lengths is None:
        lengths = torch.full((samples,), T, dtype=torch.int64, device=h.device)
    else:
        lengths = options.lengths.to(torch.int64).clamp(0, T)
    return _Rows(first_rows, h.stride(1) // columns, lengths)


def _grid(samples: int, *others: int) -> tuple[int, ...]:
    return (ceil_divide(samples, TILE), *others)


def _is_single_block(H: int) -> bool:
    return _forced == "single_block" if _forced else H <= SINGLE_BLOCK_MAX_H


def _stacked(w_hh: RecurrentWeights) -> Tensor:
    """Returns W_hh as one tensor (D, H, H)."""
    return w_hh if isinstance(w_hh, Tensor) else torch.stack(tuple(w_hh))


def _state(state: Tensor | None, model: Tensor) -> Tensor:
    """Returns a (D, N, H) tensor as kernels take it: an empty one stands for None."""
    return model.new_empty(0, 0, 0) if state is None else state


def rnn_forward(z: Tensor, w_hh: RecurrentWeights, h0: Tensor | None, options: RnnOptions, h_n: Tensor | None = None) -> Tensor:
    w = _stacked(w_hh)
    h, N, (D, H, _) = empty_rows_like(z), batch_size(z, options.batch_sizes), w.shape
    if options.lengths is not None:
        h.zero_()  # kernels do not write past the lengths
    if h_n is not None:  # kernels do not write to samples without steps
        set_state(h_n, h0)
    if h.numel():
        rows = _rows(h, N, options)
        inputs = (_as_rows(_with_strides_of(h, z)), w, _state(h0, h), *rows, NONLINEARITIES.index(options.nonlinearity))
        outputs = (_as_rows(h), _state(h_n, h))
        if _is_single_block(H):
            launch(kernels.rnn_single_block_kernel, _grid(N, D), (TILE, TILE), *inputs, *outputs)
        else:
            for s in range(len(rows.first_row)):
                launch(kernels.rnn_step_kernel, _grid(N, ceil_divide(H, TILE), D), (TILE, TILE), *inputs, s, *outputs)
    return h


def rnn_backward(
    dh: Tensor | None,
    h: Tensor,
    w_hh: RecurrentWeights,
    h0: Tensor | None,
    options: RnnOptions,
    dh_n: Tensor | None = None,
    with_dh0: bool = True,
) -> tuple[Tensor, Tensor | None]:
    w = _stacked(w_hh)
    dz, N, (D, H, _) = empty_rows_like(h), batch_size(h, options.batch_sizes), w.shape
    dh0 = None
    if with_dh0:
        dh0 = h.new_zeros(D, N, H) if dh_n is None else dh_n.clone(memory_format=torch.contiguous_format)
    if options.lengths is not None:
        dz.zero_()  # kernels do not write past the lengths
    if dz.numel():
        rows = _rows(dz, N, options)
        sequences = (h.new_empty(0, 0) if dh is None else _as_rows(_with_strides_of(dz, dh)), _as_rows(_with_strides_of(dz, h)))
        inputs = (*sequences, w.mT, _state(dh_n, h), *rows, NONLINEARITIES.index(options.nonlinearity))
        outputs = (_as_rows(dz), _state(dh0, h))
        if _is_single_block(H):
            launch(kernels.rnn_single_block_backward_kernel, _grid(N, D), (TILE, TILE), *inputs, *outputs)
        else:
            grid = _grid(N, ceil_divide(H, TILE), D)
            for s in range(len(rows.first_row) + with_dh0):
                launch(kernels.rnn_step_backward_kernel, grid, (TILE, TILE), *inputs, s, *outputs)
    return dz, dh0


def rnn_cell_forward(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    nonlinearity: str,
    precision: str,
) -> Tensor:
    (N, H), h_next = h.shape, h.new_empty(h.shape)
    if h_next.numel():
        biases = (h.new_empty(0) if bias is None else bias for bias in (b_ih, b_hh))
        inputs = (x, h, w_ih, w_hh, *biases, NONLINEARITIES.index(nonlinearity))
        launch(kernels.rnn_cell_forward_kernel, _grid(N, ceil_divide(H, TILE)), (TILE, TILE), *inputs, h_next)
    return h_next


def rnn_cell_backward(
    dh_next: Tensor, h_next: Tensor, w_ih: Tensor, w_hh: Tensor, nonlinearity: str, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    N, dz, dh = h_next.shape[0], h_next.new_empty(h_next.shape), h_next.new_empty(h_next.shape)
    dx = h_next.new_empty(N, w_ih.shape[1])
    if h_next.numel():
        inputs = (dh_next, h_next, w_ih.mT, w_hh.mT, NONLINEARITIES.index(nonlinearity))
        launch(kernels.rnn_cell_backward_kernel, _grid(N), (TILE, TILE), *inputs, dz, dx, dh)
    return dz, dx, dh


def warmup(dtype: torch.dtype, device: torch.device) -> None:
    """Calls every function in every variant, which compiles all kernels: their code depends on nothing but the dtype."""
    x, options = torch.zeros(1, 1, 1, dtype=dtype, device=device), RnnOptions(None, None, "tanh", "ieee")
    for variant in ("single_block", "step"):
        with force(variant):
            h = rnn_forward(x, x, x, options)
            rnn_backward(x, h, x, x, options)
    h = rnn_cell_forward(x[0], x[0], x[0], x[0], None, None, "tanh", "ieee")
    rnn_cell_backward(x[0], h, x[0], x[0], "tanh", "ieee")
