"""Host code of the variant simt: one product for each chunk of the batch."""

from __future__ import annotations

from torch import Tensor

from torch_unroll.engines.compiled.conv2d_call import Call
from torch_unroll.engines.compiled.conv2d_gemm import launch_dgrad, launch_fprop, launch_wgrad
from torch_unroll.engines.compiled.conv2d_gradient import FilterGradient
from torch_unroll.engines.compiled.conv2d_sums import Biases
from torch_unroll.kernels.cuda.conv2d.simt import SIMT
from torch_unroll.kernels.planning import Configuration


def fprop(call: Call, biases: Biases, configuration: Configuration) -> None:
    for chunk in call.chunks():
        launch_fprop(chunk, SIMT.plan(chunk.problem, configuration, chunk.device), biases)


def dgrad(call: Call, configuration: Configuration) -> None:
    for chunk in call.chunks():
        launch_dgrad(chunk, SIMT.plan(chunk.problem, configuration, chunk.device))


def wgrad(call: Call, db: Tensor | None, configuration: Configuration) -> None:
    chunks = call.chunks()
    gradient = FilterGradient(call, db, len(chunks), *call.problem.group_channels)
    for chunk in chunks:
        plan = SIMT.plan(chunk.problem, gradient.limited(configuration), chunk.device)
        launch_wgrad(chunk, plan, gradient)
    gradient.add_splits(plan.walks.channels_inner)
