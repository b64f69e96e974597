"""Host code of kernels/numba/rnn.py."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from torch_unroll.engines.numba.launch import launch
from torch_unroll.kernels.numba import rnn as kernels
from torch_unroll.kernels.numba.types import TILE

__all__ = ["rnn_backward", "rnn_cell_backward", "rnn_cell_forward", "rnn_forward", "warmup"]

#: The kernels' numbers of these are their places.
NONLINEARITIES = ("tanh", "relu", "sigmoid", "identity")
#: Above it a step has work for more blocks than there are tiles of samples (predicted; measured: not yet).
SINGLE_BLOCK_MAX_H = 512
#: The name of the variant that passes must run; None: by H. For tests and measurements.
forced: str | None = None


class _Rows(NamedTuple):
    """Where a layer's steps stand in a sequence seen as (rows, D·H), as the kernels take it."""

    first_row: Tensor
    row_step: int
    lengths: Tensor


def _laid_out_like(tensor: Tensor, model: Tensor) -> Tensor:
    return tensor if tensor.stride() == model.stride() else torch.empty_like(model).copy_(tensor)


def _empty_like(z: Tensor) -> Tensor:
    """Laid out like z, with contiguous rows."""
    return torch.empty_like(z if z.stride(-1) == 1 or z.shape[-1] == 1 else z.contiguous())


def _as_rows(sequence: Tensor) -> Tensor:
    """A dense sequence as (rows, D·H) in the order of memory."""
    columns = sequence.shape[-1]
    return sequence.as_strided((sequence.numel() // columns, columns), (columns, 1))


def _rows(h: Tensor, samples: int, lengths: Tensor | None, batch_sizes: tuple[int, ...] | None) -> _Rows:
    """Of sequences laid out like the dense h, in which `_as_rows` finds them."""
    if batch_sizes is not None:
        steps = len(batch_sizes)
        numbers: list[int] = []
        for left, batch in zip(range(steps, 0, -1), reversed(batch_sizes), strict=True):
            numbers += [left] * (batch - len(numbers))
        table = torch.tensor([*accumulate(batch_sizes[:-1], initial=0), *numbers], dtype=torch.int64, device="cpu")
        if h.is_cuda:  # from pinned memory, so that the host does not wait for the copy
            table = table.pin_memory().to(h.device, non_blocking=True)
        return _Rows(table[:steps], 1, table[steps:])
    T, _, columns = h.shape
    first_row = torch.arange(T, device=h.device) * (h.stride(0) // columns)
    if lengths is None:
        lengths = torch.full((samples,), T, dtype=torch.int64, device=h.device)
    return _Rows(first_row, h.stride(1) // columns, lengths.to(torch.int64).clamp(0, T))


def _grid(samples: int, *others: int) -> tuple[int, ...]:
    return (-(-samples // TILE), *others)


def _single_block(H: int) -> bool:
    return forced == "single_block" if forced else H <= SINGLE_BLOCK_MAX_H


def rnn_forward(
    z: Tensor,
    w_hh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    batch_sizes: tuple[int, ...] | None,
    nonlinearity: str,
    precision: str,
) -> Tensor:
    h, (D, N, H) = _empty_like(z), h0.shape
    if lengths is not None:
        h.zero_()  # past the lengths, where no kernel writes
    if h.numel():
        rows = _rows(h, N, lengths, batch_sizes)
        inputs = (_as_rows(_laid_out_like(z, h)), w_hh, h0, *rows, NONLINEARITIES.index(nonlinearity))
        if _single_block(H):
            launch(kernels.rnn_single_block_kernel, _grid(N, D), (TILE, TILE), *inputs, _as_rows(h))
        else:
            for s in range(len(rows.first_row)):
                launch(kernels.rnn_step_kernel, _grid(N, -(-H // TILE), D), (TILE, TILE), *inputs, s, _as_rows(h))
    return h


def rnn_backward(
    dh: Tensor,
    h: Tensor,
    w_hh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    batch_sizes: tuple[int, ...] | None,
    nonlinearity: str,
    precision: str,
) -> tuple[Tensor, Tensor]:
    dz, (D, N, H) = _empty_like(h), h0.shape
    dh0 = torch.zeros_like(h0, memory_format=torch.contiguous_format)
    if lengths is not None:
        dz.zero_()  # past the lengths, where no kernel writes
    if dz.numel():
        rows = _rows(dz, N, lengths, batch_sizes)
        sequences = (_as_rows(_laid_out_like(dh, dz)), _as_rows(_laid_out_like(h, dz)))
        inputs = (*sequences, w_hh.mT, *rows, NONLINEARITIES.index(nonlinearity))
        if _single_block(H):
            launch(kernels.rnn_single_block_backward_kernel, _grid(N, D), (TILE, TILE), *inputs, _as_rows(dz), dh0)
        else:
            grid = _grid(N, -(-H // TILE), D)
            for s in range(len(rows.first_row) + 1):
                launch(kernels.rnn_step_backward_kernel, grid, (TILE, TILE), *inputs, s, _as_rows(dz), dh0)
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
        launch(kernels.rnn_cell_forward_kernel, _grid(N, -(-H // TILE)), (TILE, TILE), *inputs, h_next)
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
    """Calls everything once: a kernel's code depends on nothing but the dtype."""
    global forced
    previous = forced
    x = torch.zeros(1, 1, 1, dtype=dtype, device=device)
    try:
        for variant in ("single_block", "step"):
            forced = variant
            h = rnn_forward(x, x, x, None, None, "tanh", "ieee")
            rnn_backward(x, h, x, x, None, None, "tanh", "ieee")
    finally:
        forced = previous
    h = rnn_cell_forward(x[0], x[0], x[0], x[0], None, None, "tanh", "ieee")
    rnn_cell_backward(x[0], h, x[0], x[0], "tanh", "ieee")
