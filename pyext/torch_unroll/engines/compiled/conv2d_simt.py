"""Host code of the variant simt: one product for each chunk of the batch."""

from __future__ import annotations

from torch import Tensor

from torch_unroll.engines.compiled.conv2d_call import Call
from torch_unroll.engines.compiled.conv2d_gemm import allocate_filter_sums, launch_dgrad, launch_fprop, launch_wgrad
from torch_unroll.engines.compiled.conv2d_sums import add_filter_splits
from torch_unroll.kernels.cuda.conv2d.simt import SIMT
from torch_unroll.kernels.planning import Configuration


def fprop(call: Call, bias: Tensor | None, configuration: Configuration) -> None:
    for chunk in call.chunks():
        launch_fprop(chunk, SIMT.plan(chunk.problem, configuration, chunk.device), bias)


def dgrad(call: Call, configuration: Configuration) -> None:
    for chunk in call.chunks():
        launch_dgrad(chunk, SIMT.plan(chunk.problem, configuration, chunk.device))


def wgrad(call: Call, configuration: Configuration) -> None:
    first, *others = call.chunks()
    plan = SIMT.plan(first.problem, configuration, first.device)
    sums = allocate_filter_sums(first, plan)
    launch_wgrad(first, plan, sums, accumulate=False)
    for chunk in others:  # they add to the sums of the first chunk, so they may not have more splits than it
        chunk_plan = SIMT.plan(chunk.problem, configuration._replace(splits=plan.splits), chunk.device)
        launch_wgrad(chunk, chunk_plan, sums, accumulate=True)
    add_filter_splits(call, sums, plan.walks.channels_inner, *call.problem.group_channels)
