"""Launches one product with the kernels of simt or mma and, if fprop or dgrad has several splits, the kernel that adds them."""

from __future__ import annotations

from torch import Tensor

from torch_unroll.engines.compiled.conv2d_call import Call
from torch_unroll.engines.compiled.conv2d_sums import add_image_splits, allocate_image_sums, sum_dtype
from torch_unroll.engines.compiled.conv2d_workspace import allocate_workspace
from torch_unroll.kernels.cuda.conv2d.gemm import GemmPlan
from torch_unroll.kernels.cuda.conv2d.parameters import (
    CBiasEpilogue,
    Conv2dDgradParameters,
    Conv2dFpropParameters,
    Conv2dWgradParameters,
    CSplits,
)


def launch_fprop(call: Call, plan: GemmPlan, bias: Tensor | None) -> None:
    """Computes y from x, w and, unless it is None, a contiguous bias (K)."""
    sums = allocate_image_sums(plan.splits, call.y)
    struct = Conv2dFpropParameters(
        x=call.x.data_ptr(),
        w=call.w.data_ptr(),
        y=call.y.data_ptr(),
        shape=call.problem.shape(),
        walks=plan.c_walks,
        splits=_splits(plan, sums),
        epilogue=CBiasEpilogue(bias=None if bias is None else bias.data_ptr()),
    )
    call.launcher.launch(plan.launch, struct, call.x.device)
    if sums is not None:
        add_image_splits(call.launcher, sums, call.y, bias)


def launch_dgrad(call: Call, plan: GemmPlan) -> None:
    """Computes dx from dy and w."""
    sums = allocate_image_sums(plan.splits, call.x)
    struct = Conv2dDgradParameters(
        dy=call.y.data_ptr(),
        w=call.w.data_ptr(),
        dx=call.x.data_ptr(),
        shape=call.problem.shape(),
        walks=plan.c_walks,
        splits=_splits(plan, sums),
    )
    call.launcher.launch(plan.launch, struct, call.x.device)
    if sums is not None:
        add_image_splits(call.launcher, sums, call.x)


def launch_wgrad(call: Call, plan: GemmPlan, sums: Tensor, accumulate: bool) -> None:
    """Computes the sums of each split of dw from dy and x; overwrites `sums` or, if `accumulate`, adds to them."""
    struct = Conv2dWgradParameters(
        dy=call.y.data_ptr(),
        x=call.x.data_ptr(),
        sums=sums.data_ptr(),
        shape=call.problem.shape(),
        walks=plan.c_walks,
        splits=plan.splits,
        pixels_per_split=plan.split_depth,
        accumulate=accumulate,
    )
    call.launcher.launch(plan.launch, struct, call.x.device)


def allocate_filter_sums(call: Call, plan: GemmPlan) -> Tensor:
    """Returns memory for the sums of each split of wgrad, (splits, K, taps)."""
    return allocate_workspace((plan.splits, call.problem.K, call.problem.taps), call.x, sum_dtype(call.x.dtype))


def _splits(plan: GemmPlan, sums: Tensor | None) -> CSplits:
    if sums is None:
        return plan.one_split
    return CSplits(sums=sums.data_ptr(), count=plan.splits, step=plan.split_depth)
