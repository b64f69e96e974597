"""The tensors of one recurrent layer, and the checks that its operators make before they compute addresses from them."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from torch_unroll.checks import check_lengths, require_alike, require_one_of, require_rank, require_shape, require_strided
from torch_unroll.engines import limits
from torch_unroll.engines.interface import NONLINEARITIES, PRECISIONS
from torch_unroll.shapes import require


def check_layer(
    rows_name: str,
    rows: Tensor,
    w_hh: Tensor,
    start_name: str,
    start: Tensor,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    nonlinearity: str,
    precision: str,
    engine: str,
) -> None:
    """Checks the tensors and options of one layer; `read_batch_sizes` checks the values of `batch_sizes`."""
    require_alike(rows, rows_name, **{"w_hh": w_hh, start_name: start})
    require_rank(w_hh, "w_hh", "DHH")
    require_rank(start, start_name, "DNH")
    (D, N, H), packed = start.shape, batch_sizes is not None
    require(D in (1, 2), f"{start_name}: expected 1 or 2 directions, got {D}")
    require_shape(w_hh, "w_hh", D, H, H)
    if batch_sizes is None:
        require_rank(rows, rows_name, "TNX")
        require_shape(rows, rows_name, rows.shape[0], N, D * H)
    else:
        require_rank(rows, rows_name, "TX")
        require_shape(rows, rows_name, rows.shape[0], D * H)
        check_batch_sizes(batch_sizes)
    limits.require(engine, limits.rnn(rows.shape[:-1], rows.shape[-1], N, H))
    require(lengths is None or not packed, "lengths: expected None together with batch_sizes")
    check_lengths(lengths, N, rows, rows_name)
    require_one_of(nonlinearity, "nonlinearity", NONLINEARITIES)
    require_one_of(precision, "precision", PRECISIONS)


def check_batch_sizes(batch_sizes: Tensor) -> None:
    """Checks what can be checked of `batch_sizes` without reading its values."""
    require_strided(batch_sizes, "batch_sizes")
    require(
        batch_sizes.dim() == 1 and batch_sizes.dtype == torch.int64 and batch_sizes.device.type == "cpu",
        f"batch_sizes: expected shape (T,), int64, on the CPU, got {tuple(batch_sizes.shape)}, {batch_sizes.dtype},"
        f" on {batch_sizes.device}",
    )
    require(batch_sizes.shape[0] > 0, "batch_sizes: expected a sequence of at least one step, got none")


def read_batch_sizes(batch_sizes: Tensor | None, rows: Tensor, start: Tensor) -> tuple[int, ...] | None:
    """The values of `batch_sizes`. They are checked, since kernels compute addresses from them."""
    if batch_sizes is None:
        return None
    sizes = tuple(batch_sizes.tolist())
    require(
        len(sizes) > 0 and sizes[0] == start.shape[1], f"batch_sizes: expected {start.shape[1]} first, as h0 has, got {sizes[:1]}"
    )
    least = min(sizes[0], 1)  # in an empty batch, every step has 0 samples
    ordered = sizes[-1] >= least and all(earlier >= later for earlier, later in pairwise(sizes))
    require(ordered, "batch_sizes: expected non-increasing numbers above 0")
    require(
        sum(sizes) == rows.shape[0], f"batch_sizes: expected a sum of {rows.shape[0]}, the rows of the input, got {sum(sizes)}"
    )
    return sizes


def one_direction(sequence: Tensor, direction: int, H: int) -> Tensor:
    """The features of one direction.

    If there is only one, this is the sequence itself: a slice that takes everything would be an alias, for which the vmap of
    `is_grads_batched` has no batching rule.
    """
    return sequence if sequence.shape[-1] == H else sequence[..., direction * H : (direction + 1) * H]
