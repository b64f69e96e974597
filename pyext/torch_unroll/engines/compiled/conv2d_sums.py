"""Split-K: allocates the partial sums that the splits of a product write, and launches the kernels that add them up."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from torch_unroll.engines.compiled import Launcher
from torch_unroll.engines.compiled.conv2d_call import Call
from torch_unroll.engines.compiled.conv2d_workspace import allocate_workspace
from torch_unroll.kernels.cuda.conv2d.parameters import (
    CBiasEpilogue,
    Conv2dSumImageSplitsParameters,
    Conv2dSumSplitsParameters,
)
from torch_unroll.kernels.cuda.conv2d.split_k import plan_sum_image_splits, plan_sum_splits
from torch_unroll.shapes import dtype_name


class Biases(NamedTuple):
    """The biases (K) of fprop, each contiguous or None. All are added to a sum before it is rounded."""

    first: Tensor | None = None
    second: Tensor | None = None

    @property
    def addresses(self) -> tuple[int | None, int | None]:
        """The addresses of both, None for one that does not exist."""
        first, second = self
        return None if first is None else first.data_ptr(), None if second is None else second.data_ptr()

    def struct(self) -> CBiasEpilogue:
        """Returns the epilogue that adds them."""
        bias, bias2 = self.addresses
        return CBiasEpilogue(bias=bias, bias2=bias2)

    def total(self, y: Tensor) -> Tensor:
        """Returns their sum (K), in the dtype in which products with the result `y` are summed."""
        total = y.new_zeros(y.shape[1], dtype=sum_dtype(y.dtype))
        for bias in self:
            if bias is not None:
                total += bias
        return total


def contiguous_biases(first: Tensor | None, second: Tensor | None) -> Biases:
    """Returns biases of any stride in the form that kernels accept."""
    return Biases(None if first is None else first.contiguous(), None if second is None else second.contiguous())


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which products are summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def allocate_image_sums(splits: int, result: Tensor) -> Tensor | None:
    """Returns memory for the sums of each split of fprop or dgrad, (splits, N, H, W, channels); None for one split."""
    if splits == 1:
        return None
    N, channels, H, W = result.shape
    return allocate_workspace((splits, N, H, W, channels), result, sum_dtype(result.dtype))


def add_image_splits(launcher: Launcher, sums: Tensor, result: Tensor, biases: Biases) -> None:
    """Overwrites `result`, (N, channels, H, W) of any strides, with the sum of all splits and of the biases."""
    N, channels, H, W = result.shape
    struct = Conv2dSumImageSplitsParameters(
        sums=sums.data_ptr(),
        result=result.data_ptr(),
        stride=(ctypes.c_int64 * 4)(*result.stride()),
        N=N,
        channels=channels,
        H=H,
        W=W,
        splits=sums.shape[0],
        epilogue=biases.struct(),
    )
    launcher.launch(plan_sum_image_splits(dtype_name(result.dtype), N * H * W, channels), struct, result.device)


def add_filter_splits(
    call: Call, sums: Tensor, channels_inner: bool, channels: int, outputs: int, bias: tuple[Tensor, Tensor] | None
) -> None:
    """Overwrites dw, the call's `w`, with the sum of all splits, and likewise db if there is a `bias`.

    Args:
        sums: (splits, groups · outputs, taps).
        channels, outputs: the channels and output channels of a group in `sums`; either may be padded.
        channels_inner: whether channels, not filter positions, are innermost in the order of the taps.
        bias: db (K) and its sums (splits, groups · outputs), both contiguous.
    """
    db, bias_sums = bias or (None, None)
    struct = Conv2dSumSplitsParameters(
        sums=sums.data_ptr(),
        bias_sums=None if bias_sums is None else bias_sums.data_ptr(),
        dw=call.w.data_ptr(),
        db=None if db is None else db.data_ptr(),
        shape=call.problem.shape(),
        splits=sums.shape[0],
        channels_inner=channels_inner,
        channels=channels,
        outputs=outputs,
    )
    plan = plan_sum_splits(call.problem.dtype, call.problem.K, sums.shape[2], bias is not None)
    call.launcher.launch(plan, struct, call.w.device)
