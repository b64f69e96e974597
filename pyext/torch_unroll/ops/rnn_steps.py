"""How the steps of a recurrence lie in a tensor: differentiable access to neighbouring steps of padded and packed sequences.

A sequence is (T, N, ·), where the first `lengths[n]` steps of sample n are valid (all of them if `lengths` is None), or packed
(total, ·), where step t has one row for each of its `batch_sizes[t]` samples and the steps follow each other. Direction 0 walks
from the first step to the last, direction 1 from the last to the first. `batch_sizes` stays on the CPU and `lengths` on the
device; neither is read into Python numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """The layout of the steps of one call."""

    lengths: Tensor | None  # (N)
    batch_sizes: Tensor | None  # (T), on the CPU

    def running(self, sequence: Tensor) -> Tensor | None:
        """(T, N, 1): whether each step lies within the length of its sample; None without lengths, when all do."""
        if self.lengths is None:
            return None
        t = torch.arange(sequence.shape[0], device=sequence.device)
        return (t.unsqueeze(1) < self.lengths).unsqueeze(2)

    def previous(self, sequence: Tensor, start: Tensor, direction: int) -> Tensor:
        """For each step the rows of the step walked before it: `start` (N, ·) at the first one, 0 in samples without steps."""
        if self.batch_sizes is not None:
            index = self._packed_neighbours(sequence.shape[0], start.shape[0], direction).to(sequence.device)
            return torch.cat((start, sequence)).index_select(0, index)
        if self.lengths is not None:
            start = start.masked_fill((self.lengths <= 0).unsqueeze(1), 0)
        start = start.unsqueeze(0)
        if direction == 0:
            return torch.cat((start, sequence[:-1]))
        shifted = torch.cat((sequence[1:], start))
        if self.lengths is None:
            return shifted
        t = torch.arange(sequence.shape[0], device=sequence.device).unsqueeze(1)
        return torch.where((t + 1 < self.lengths).unsqueeze(2), shifted, start)

    def following(self, sequence: Tensor, start: Tensor, direction: int) -> Tensor:
        """For each step the rows of the step walked after it; 0 at the last one. Only the shape of `start` is used."""
        return self.previous(sequence, torch.zeros_like(start), 1 - direction)

    def last(self, sequence: Tensor, start: Tensor, direction: int) -> Tensor:
        """(N, ·): for each sample the row of the step walked last; `start` for samples without steps."""
        if direction == 1:
            first = sequence[: start.shape[0]] if self.batch_sizes is not None else sequence[0]
            return first if self.lengths is None else torch.where((self.lengths > 0).unsqueeze(1), first, start)
        if self.batch_sizes is not None:
            return sequence.index_select(0, self._packed_ends(start.shape[0]).to(sequence.device))
        if self.lengths is None:
            return sequence[-1]
        step = self.lengths.to(torch.int64).clamp(1, sequence.shape[0]) - 1
        last = sequence.gather(0, step.view(1, -1, 1).expand(1, -1, sequence.shape[2])).squeeze(0)
        return torch.where((self.lengths > 0).unsqueeze(1), last, start)

    def first(self, sequence: Tensor, start: Tensor, direction: int) -> Tensor:
        """(N, ·): for each sample the row of the step walked first; 0 for samples without steps. Only the shape of `start` is
        used."""
        return self.last(sequence, torch.zeros_like(start), 1 - direction)

    def _packed_neighbours(self, total: int, N: int, direction: int) -> Tensor:
        """For each packed row the index in `cat(start, sequence)` of its sample's row at the step walked before."""
        sizes = self.batch_sizes
        assert sizes is not None
        ends = sizes.cumsum(0)
        row = torch.arange(total, device=sizes.device)
        step = torch.searchsorted(ends, row, right=True)
        sample = row - (ends - sizes)[step]
        if direction == 0:
            return torch.where(step == 0, sample, N + row - sizes[(step - 1).clamp(min=0)])
        next_size = torch.cat((sizes[1:], sizes.new_zeros(1)))[step]
        return torch.where(sample < next_size, N + row + sizes[step], sample)

    def _packed_ends(self, N: int) -> Tensor:
        """For each packed sample the index of the row of its last step."""
        sizes = self.batch_sizes
        assert sizes is not None
        sample = torch.arange(N, device=sizes.device)
        last = (sizes.unsqueeze(0) > sample.unsqueeze(1)).sum(1) - 1
        return (sizes.cumsum(0) - sizes)[last] + sample
