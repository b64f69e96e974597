"""The batch of a sequence, padded or packed, and where kernels find the rows of packed ones."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor


def batch_size(sequence: Tensor, batch_sizes: tuple[int, ...] | None) -> int:
    """Returns the number of samples N of a padded sequence (T, N, ·), or of a packed one (total, ·) with its batch sizes."""
    if batch_sizes is None:
        return sequence.shape[1]
    return batch_sizes[0] if batch_sizes else 0


def set_state(state: Tensor, value: Tensor | None) -> None:
    """Overwrites a state (D, N, H), with zeros if the value is None."""
    if value is None:
        state.zero_()
    else:
        state.copy_(value)


def packed_rows(batch_sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the first row of each step (T) and the number of steps of each sample (N), int64 on the device."""
    lengths: list[int] = []
    for steps, batch in zip(range(len(batch_sizes), 0, -1), reversed(batch_sizes), strict=True):
        lengths += [steps] * (batch - len(lengths))
    table = torch.tensor([*accumulate(batch_sizes[:-1], initial=0), *lengths], dtype=torch.int64, device="cpu")
    if device.type == "cuda":  # from pinned memory, so that the host does not wait for the copy
        table = table.pin_memory().to(device, non_blocking=True)
    first_rows, sample_lengths = table.split((len(batch_sizes), len(lengths)))
    return first_rows, sample_lengths
