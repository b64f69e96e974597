"""Host code of the variant mma: packs operands that do not come in whole pieces of 16 bytes, and launches a product per chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_unroll.engines.compiled.conv2d_call import Call
from torch_unroll.engines.compiled.conv2d_gemm import launch_dgrad, launch_fprop, launch_wgrad
from torch_unroll.engines.compiled.conv2d_gradient import FilterGradient
from torch_unroll.engines.compiled.conv2d_packing import pack_channels, packed_bytes, padded_channels
from torch_unroll.engines.compiled.conv2d_sums import Biases
from torch_unroll.kernels.cuda.conv2d.mma import MMA
from torch_unroll.kernels.planning import Configuration


def fprop(call: Call, biases: Biases, configuration: Configuration) -> None:
    groups, w = call.problem.groups, pack_channels(call.launcher, call.w, 1)
    for chunk in call.chunks(packed_bytes(groups, call.x)):
        product = chunk.on(pack_channels(call.launcher, chunk.x, groups), w, chunk.y)
        launch_fprop(product, MMA.plan(product.problem, configuration, call.device), biases)
        del product  # frees the packed images before the next chunk's are allocated


def dgrad(call: Call, configuration: Configuration) -> None:
    groups, K = call.problem.groups, call.problem.group_channels[1]
    w = pack_channels(call.launcher, call.w, 1, images=K, padded_images=padded_channels(K, call.w))
    for chunk in call.chunks(packed_bytes(groups, call.y)):
        product = chunk.on(chunk.x, w, pack_channels(call.launcher, chunk.y, groups))
        launch_dgrad(product, MMA.plan(product.problem, configuration, call.device))
        del product


def wgrad(call: Call, db: Tensor | None, configuration: Configuration) -> None:
    groups = call.problem.groups
    channels, outputs = (padded_channels(count, call.x) for count in call.problem.group_channels)
    shape_of_w = torch.empty((groups * outputs, channels, *call.w.shape[2:]), device="meta")
    chunks = call.chunks(packed_bytes(groups, call.x, call.y))
    gradient = FilterGradient(call, db, len(chunks), channels, outputs)
    for chunk in chunks:
        x, dy = (pack_channels(call.launcher, image, groups) for image in (chunk.x, chunk.y))
        product = chunk.on(x, shape_of_w, dy)
        plan = MMA.plan(product.problem, gradient.limited(configuration), call.device)
        launch_wgrad(product, plan, gradient)
        del x, dy, product
    gradient.add_splits(plan.walks.channels_inner)
