"""Split-K: allocates the partial sums that the splits of a product write, and launches the kernels that add them up."""

from __future__ import annotations

import ctypes

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


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which products are summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def allocate_image_sums(splits: int, result: Tensor) -> Tensor | None:
    """Returns memory for the sums of each split of fprop or dgrad, (splits, N, H, W, channels); None for one split."""
    if splits == 1:
        return None
    N, channels, H, W = result.shape
    return allocate_workspace((splits, N, H, W, channels), result, sum_dtype(result.dtype))


def add_image_splits(launcher: Launcher, sums: Tensor, result: Tensor, bias: Tensor | None = None) -> None:
    """Overwrites `result`, (N, channels, H, W) of any strides, with the sum of all splits and of `bias`, which is contiguous."""
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
        epilogue=CBiasEpilogue(bias=None if bias is None else bias.data_ptr()),
    )
    launcher.launch(plan_sum_image_splits(dtype_name(result.dtype), N * H * W, channels), struct, result.device)


def add_filter_splits(call: Call, sums: Tensor, channels_inner: bool, channels: int, outputs: int) -> None:
    """Overwrites dw, the call's `w`, with the sum of all splits.

    Args:
        sums: (splits, groups · outputs, taps).
        channels, outputs: the channels and output channels of a group in `sums`; either may be padded.
        channels_inner: whether channels, not filter positions, are innermost in the order of the taps.
    """
    struct = Conv2dSumSplitsParameters(
        sums=sums.data_ptr(),
        dw=call.w.data_ptr(),
        shape=call.problem.shape(),
        splits=sums.shape[0],
        channels_inner=channels_inner,
        channels=channels,
        outputs=outputs,
    )
    plan = plan_sum_splits(call.problem.dtype, call.problem.K, sums.shape[2])
    call.launcher.launch(plan, struct, call.w.device)
