"""The gradients of filter and bias: where the launches of wgrad write, and whether their sums are then added."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from torch_unroll.engines.compiled.conv2d_call import Call, four
from torch_unroll.engines.compiled.conv2d_sums import add_filter_splits, sum_dtype
from torch_unroll.engines.compiled.conv2d_workspace import allocate_workspace
from torch_unroll.kernels.cuda.conv2d.access import Walk, filter_gradient_walk
from torch_unroll.kernels.cuda.conv2d.bias_gradient import with_bias_gradient
from torch_unroll.kernels.cuda.conv2d.parameters import CFilterGradient
from torch_unroll.kernels.planning import Configuration
from torch_unroll.kernels.shapes import Four
from torch_unroll.kernels.table import LaunchPlan


class Destination(NamedTuple):
    """Where one launch of wgrad writes, as addresses: to dw and db, or to the sums of its splits."""

    dw: int | None
    db: int | None
    sums: int | None
    bias_sums: int | None
    accumulate: bool
    stride: Four  # of dw
    channels: int  # of a group of dw
    outputs: int
    walk: Walk  # over dw, if it is written

    def struct(self) -> CFilterGradient:
        """Returns the struct of parameters.cuh."""
        stride = (ctypes.c_int64 * 4)(*self.stride)
        return CFilterGradient(dw=self.dw, db=self.db, stride=stride, channels=self.channels, outputs=self.outputs)


@dataclass(eq=False)
class FilterGradient:
    """The results of one call of wgrad, whose batch is computed in one launch for each chunk.

    If there is one chunk and its depth has one split, the launch writes dw and db. Otherwise launches write the sums of splits,
    to which later chunks add, and `add_splits` launches the kernel that computes dw and db from them.
    """

    call: Call  # the whole call; its `w` is dw
    db: Tensor | None  # (K), contiguous; None if it is not wanted
    chunks: int
    channels: int  # of a group in the operands; they and the outputs may be padded
    outputs: int
    may_write: bool = True  # whether launches see dw as it is, and can write it
    _splits: int = field(default=0, init=False)  # of the first chunk
    _sums: Tensor | None = field(default=None, init=False)
    _bias_sums: Tensor | None = field(default=None, init=False)

    def limited(self, configuration: Configuration) -> Configuration:
        """Returns a configuration for the next chunk, which may not have more splits than the first, whose sums it adds to."""
        return configuration._replace(splits=self._splits) if self._splits else configuration

    def destination(self, splits: int, channels_inner: bool) -> Destination:
        """Returns where the next chunk's launch, whose depth has `splits` splits, writes."""
        dw, (C, K) = self.call.w, self.call.problem.group_channels
        accumulate = self._splits > 0
        self._splits = self._splits or splits
        is_written = self.may_write and self.chunks == 1 and splits == 1
        if not is_written and not accumulate:
            self._allocate(splits)
        stride, walk = four(dw.stride()), Walk.COLUMNS
        if is_written:
            problem = self.call.problem
            walk = filter_gradient_walk(problem.dtype, four(dw.shape), stride, problem.w_aligned, problem.groups, channels_inner)
        return Destination(
            dw=dw.data_ptr() if is_written else None,
            db=self.db.data_ptr() if is_written and self.db is not None else None,
            sums=None if self._sums is None else self._sums.data_ptr(),
            bias_sums=None if self._bias_sums is None else self._bias_sums.data_ptr(),
            accumulate=accumulate,
            stride=stride,
            channels=C,
            outputs=K,
            walk=walk,
        )

    def launch(self, product: LaunchPlan, splits: int) -> LaunchPlan:
        """Returns the launch of a product, with blocks for the bias gradient if it is wanted."""
        if self.db is None:
            return product
        return with_bias_gradient(product, self.call.problem.groups * self.outputs, splits)

    def add_splits(self, channels_inner: bool) -> None:
        """Adds the sums, if launches wrote sums, whose taps are in the order of `channels_inner`."""
        if self._sums is not None:
            bias = None if self.db is None or self._bias_sums is None else (self.db, self._bias_sums)
            add_filter_splits(self.call, self._sums, channels_inner, self.channels, self.outputs, bias)

    def _allocate(self, splits: int) -> None:
        """Allocates memory for the sums of dw, (splits, groups · outputs, taps), followed by those of db if it is wanted."""
        R, S = self.call.w.shape[2:]
        rows, taps = self.call.problem.groups * self.outputs, self.channels * R * S
        count, bias_count = splits * rows * taps, 0 if self.db is None else splits * rows
        memory = allocate_workspace((count + bias_count,), self.call.x, sum_dtype(self.call.x.dtype))
        self._sums = memory[:count].view(splits, rows, taps)
        self._bias_sums = None if self.db is None else memory[count:].view(splits, rows)
