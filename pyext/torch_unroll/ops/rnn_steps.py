"""Where a recurrence's steps lie in a tensor, and their neighbours: differentiable indexing for padded and packed sequences.

A sequence is (T, N, ·), of which sample n's first `lengths[n]` steps count (None: all), or packed (total, ·): the rows of step t
are those of its `batch_sizes[t]` samples, one step after the other. A direction d is 0 (first to last) or 1 (last to first).
`batch_sizes` stays on the CPU and `lengths` on the device; neither is read by the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """How the steps of one call are laid out."""

    lengths: Tensor | None  # (N)
    batch_sizes: Tensor | None  # (T), on the CPU

    def running(self, sequence: Tensor) -> Tensor | None:
        """(T, N, 1): whether a step lies within its sample's length; None if every one does."""
        if self.lengths is None:
            return None
        t = torch.arange(sequence.shape[0], device=sequence.device)
        return (t.unsqueeze(1) < self.lengths).unsqueeze(2)

    def previous(self, sequence: Tensor, start: Tensor, direction: int) -> Tensor:
        """For each step what the step walked before it holds; `start` (N, ·) where there is none, 0 for samples of no steps."""
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
        """For each step what the step walked after it holds; 0 where there is none. Of `start` only the shape counts."""
        return self.previous(sequence, torch.zeros_like(start), 1 - direction)

    def last(self, sequence: Tensor, start: Tensor, direction: int) -> Tensor:
        """(N, ·): what each sample's step that is walked last holds; `start` for samples of no steps."""
        if direction == 1:
            first = sequence[: start.shape[0]] if self.batch_sizes is not None else sequence[0]
            return first if self.lengths is None else torch.where((self.lengths > 0).unsqueeze(1), first, start)
        if self.batch_sizes is not None:
            return sequence.index_select(0, self._packed_ends(start.shape[0]).to(sequence.device))
        if self.lengths is None:
            return sequence[-1]
        step = self.lengths.to(torch.int64).clamp(1, sequence.shape[0]) - 1
        found = sequence.gather(0, step.view(1, -1, 1).expand(1, -1, sequence.shape[2])).squeeze(0)
        return torch.where((self.lengths > 0).unsqueeze(1), found, start)

    def first(self, sequence: Tensor, start: Tensor, direction: int) -> Tensor:
        """(N, ·): what each sample's step that is walked first holds; 0 for samples of no steps."""
        return self.last(sequence, torch.zeros_like(start), 1 - direction)

    def _packed_neighbours(self, total: int, N: int, direction: int) -> Tensor:
        """For each packed row the row of `cat(start, sequence)` that its sample held before it."""
        sizes = self.batch_sizes
        assert sizes is not None
        ends = sizes.cumsum(0)
        row = torch.arange(total, device=sizes.device)
        step = torch.searchsorted(ends, row, right=True)
        sample = row - (ends - sizes)[step]
        if direction == 0:
            return torch.where(step == 0, sample, N + row - sizes[(step - 1).clamp(min=0)])
        there = torch.cat((sizes[1:], sizes.new_zeros(1)))[step]  # how many samples the next step still has
        return torch.where(sample < there, N + row + sizes[step], sample)

    def _packed_ends(self, N: int) -> Tensor:
        """The row of each packed sample's last step."""
        sizes = self.batch_sizes
        assert sizes is not None
        sample = torch.arange(N, device=sizes.device)
        last = (sizes.unsqueeze(0) > sample.unsqueeze(1)).sum(1) - 1
        return (sizes.cumsum(0) - sizes)[last] + sample
