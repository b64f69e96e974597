"""Launches one product with the kernels of simt or mma and, if fprop or dgrad has several splits, the kernel that adds them."""

from __future__ import annotations

from torch import Tensor

from torch_unroll.engines.compiled.conv2d_call import Call
from torch_unroll.engines.compiled.conv2d_gradient import FilterGradient
from torch_unroll.engines.compiled.conv2d_sums import Biases, add_image_splits, allocate_image_sums
from torch_unroll.kernels.cuda.conv2d.gemm import GemmPlan
from torch_unroll.kernels.cuda.conv2d.parameters import (
    Conv2dDgradParameters,
    Conv2dFpropParameters,
    Conv2dWgradParameters,
    CSplits,
)


def launch_fprop(call: Call, plan: GemmPlan, biases: Biases) -> None:
    """Computes y from x, w and the biases."""
    sums = allocate_image_sums(plan.splits, call.y)
    struct = Conv2dFpropParameters(
        x=call.x.data_ptr(),
        w=call.w.data_ptr(),
        y=call.y.data_ptr(),
        shape=call.problem.shape(),
        walks=plan.c_walks,
        splits=_splits(plan, sums),
        epilogue=biases.struct(),
    )
    call.launcher.launch(plan.launch, struct, call.x.device)
    if sums is not None:
        add_image_splits(call.launcher, sums, call.y, biases)


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
        add_image_splits(call.launcher, sums, call.x, Biases())


def launch_wgrad(call: Call, plan: GemmPlan, gradient: FilterGradient) -> None:
    """Computes a chunk's part of a filter's gradient, and of the bias gradient if it is wanted, from dy and x."""
    to = gradient.destination(plan.splits, plan.walks.channels_inner)
    struct = Conv2dWgradParameters(
        dy=call.y.data_ptr(),
        x=call.x.data_ptr(),
        sums=to.sums,
        bias_sums=to.bias_sums,
        gradient=to.struct(),
        shape=call.problem.shape(),
        walks=plan.c_walks if to.dw is None else plan.walks._replace(c=to.walk).struct(),
        splits=plan.splits,
        pixels_per_split=plan.split_depth,
        accumulate=to.accumulate,
        product_blocks=plan.launch.config.grid[0],
    )
    call.launcher.launch(gradient.launch(plan.launch, plan.splits), struct, call.x.device)


def _splits(plan: GemmPlan, sums: Tensor | None) -> CSplits:
    if sums is None:
        return plan.one_split
    return CSplits(sums=sums.data_ptr(), count=plan.splits, step=plan.split_depth)
