"""Host code of the variant `hopper`: packs what the copy engine cannot fetch, has tensor maps made, launches."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from torch_unroll.engines.compiled import Launcher
from torch_unroll.engines.compiled.conv2d_call import (
    Call,
    allocate_workspace,
    pack_channels,
    packed_bytes,
    sum_image_splits,
    whole_pieces,
)
from torch_unroll.kernels.cuda.conv2d import im2col_maps, wgmma
from torch_unroll.kernels.cuda.conv2d.choice import Choice
from torch_unroll.kernels.cuda.conv2d.im2col_maps import Image
from torch_unroll.kernels.cuda.conv2d.wgmma import WgmmaPlan
from torch_unroll.kernels.tensor_map import ITEM_BYTES, TensorMapSpec


def fprop(call: Call, bias: Tensor | None, choice: Choice) -> None:
    """y = x * w + bias."""
    groups = call.problem.groups
    w = _fetchable(call.launcher, call.w, 1)
    for chunk in call.chunks(packed_bytes(groups, call.x)):
        x = _fetchable(call.launcher, chunk.x, groups)
        product = call.on(x, w, chunk.y)
        plan = wgmma.plan("fprop", product.problem, choice.tile, choice.splits, call.device.multiprocessors)
        _launch_image("fprop", product, plan, x, w, chunk.y, bias)
        del x, product  # before the next chunk's takes its place


def dgrad(call: Call, choice: Choice) -> None:
    """dx from dy and w."""
    groups, K = call.problem.groups, call.problem.group_channels[1]
    outputs = whole_pieces(K, call.w)
    if call.w.dtype == torch.float32:  # wgmma takes TF32 with the depth contiguous only
        w = _fetchable(call.launcher, call.w.unflatten(0, (groups, K)).transpose(1, 2).flatten(0, 1), 1)
    else:
        w = _dense(pack_channels(call.launcher, call.w, 1, K, outputs))
    shape_of_w = torch.empty((groups * outputs, *call.w.shape[1:]), device="meta")
    for chunk in call.chunks(packed_bytes(groups, call.y)):
        dy = _fetchable(call.launcher, chunk.y, groups)
        product = call.on(chunk.x, shape_of_w, dy)
        plan = wgmma.plan("dgrad", product.problem, choice.tile, choice.splits, call.device.multiprocessors)
        _launch_image("dgrad", product, plan, dy, w, chunk.x, None)
        del dy, product


def wgrad(call: Call, choice: Choice) -> None:
    """dw from dy and x, summed over splits of the pixels."""
    groups, (C, K), (R, S) = call.problem.groups, call.problem.group_channels, call.w.shape[2:]
    inputs, outputs = whole_pieces(C, call.x), whole_pieces(K, call.x)
    channels = wgmma.padded_channels(call.problem.dtype, inputs)
    shape_of_w = torch.empty((groups * outputs, inputs, R, S), device="meta")
    sums, splits = None, choice.splits
    for chunk in call.chunks(packed_bytes(groups, call.x, call.y)):
        x, dy = (_fetchable(call.launcher, each, groups) for each in (chunk.x, chunk.y))
        product = call.on(x, shape_of_w, dy)
        plan = wgmma.plan("wgrad", product.problem, choice.tile, splits, call.device.multiprocessors)
        first = sums is None
        if sums is None:
            sums = allocate_workspace((plan.splits, groups * outputs, R * S * channels), call.x, torch.float32)
            splits = plan.splits  # a later chunk adds to the splits of the first, so it has no more
        _launch_wgrad(product, plan, x, dy, sums, accumulate=not first)
        del x, dy, product
    assert sums is not None
    call.sum_splits(sums, True, channels, outputs)


def _launch_image(
    direction: str, product: Call, plan: WgmmaPlan, image: Tensor, filter: Tensor, result: Tensor, bias: Tensor | None
) -> None:
    """Sums over `image` for every pixel of `result`; both are of all groups."""
    launcher, problem, groups = product.launcher, product.problem, product.problem.groups
    item = ITEM_BYTES[problem.dtype]
    N, channels, H, W = result.shape
    block = plan.span // item
    depth_contiguous = direction == "fprop" or item == 4
    box = (block, plan.tile.columns) if depth_contiguous else (128 // item, block)
    struct: Any = wgmma.image_parameters(1 if direction == "fprop" else wgmma.MOST_RESIDUES)()
    for i, each in enumerate(plan.images):
        struct.images[i] = _image(launcher, image, each, block, plan.tile.rows)
    spec = im2col_maps.filter_map(problem.dtype, filter.shape, filter.stride(), *box, address=filter.data_ptr())
    struct.filter = launcher.tensor_map(spec, filter.device)
    sums = allocate_workspace((plan.splits, N, H, W, channels), result, torch.float32) if plan.splits > 1 else None
    struct.result, struct.stride = result.data_ptr(), (ctypes.c_int64 * 4)(*result.stride())
    struct.sums = None if sums is None else sums.data_ptr()
    struct.bias = None if bias is None or sums is not None else bias.data_ptr()
    struct.N, struct.height, struct.width, struct.groups = N, H, W, groups
    struct.channels, struct.depth_channels = channels // groups, image.shape[1] // groups
    struct.stride_h, struct.stride_w = problem.stride if direction == "dgrad" else (1, 1)
    struct.span, struct.splits, struct.steps_per_split = plan.span, plan.splits, plan.steps_per_split
    struct.tiles, struct.walk = plan.tiles, plan.walk
    launcher.launch(plan.launch, struct, result.device)
    if sums is not None:
        sum_image_splits(launcher, sums, result, bias)


def _launch_wgrad(product: Call, plan: WgmmaPlan, x: Tensor, dy: Tensor, sums: Tensor, accumulate: bool) -> None:
    launcher, problem = product.launcher, product.problem
    item = ITEM_BYTES[problem.dtype]
    pixels = 128 // item  # of a step
    as_it_is = im2col_maps.as_it_is(problem.P, problem.Q)
    struct: Any = wgmma.WgradParameters()
    struct.x = _image(launcher, x, plan.images[0], plan.span // item, pixels)
    struct.dy = _image(launcher, dy, as_it_is, 128 // item, pixels).map
    struct.sums = sums.data_ptr()
    struct.N, struct.groups, (struct.C, struct.K) = problem.N, problem.groups, problem.group_channels
    struct.span, struct.splits, struct.steps_per_split = plan.span, plan.splits, plan.steps_per_split
    struct.tiles, struct.accumulate = plan.tiles, accumulate
    launcher.launch(plan.launch, struct, x.device)


def _image(launcher: Launcher, tensor: Tensor, image: Image, channels: int, pixels: int) -> wgmma.CImage:
    """As the kernels take it; its map is made where there is anything to fetch."""
    vertical, horizontal = image
    filled = wgmma.CImage(vertical=wgmma.CAxis(*vertical), horizontal=wgmma.CAxis(*horizontal))
    if vertical.walked and horizontal.walked:
        filled.map = launcher.tensor_map(_map(tensor, image, channels, pixels), tensor.device)
    return filled


def _map(tensor: Tensor, image: Image, channels: int, pixels: int) -> TensorMapSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return im2col_maps.image_map(dtype, tensor.shape, tensor.stride(), image, channels, pixels, tensor.data_ptr())


def _fetchable(launcher: Launcher, tensor: Tensor, groups: int) -> Tensor:
    """A tensor (N, groups · channels, H, W) as the copy engine takes it: channels innermost, in whole pieces of 16 bytes."""
    return _dense(pack_channels(launcher, tensor, groups))


def _dense(packed: Tensor) -> Tensor:
    """Itself; or a copy, where its strides are of a kind that maps do not know, such as of an expanded batch."""
    _, _, H, W = packed.shape
    if _map(packed, im2col_maps.as_it_is(H, W), 16, 1).refused() is None:
        return packed
    return allocate_workspace(packed.shape, packed, memory_format=torch.channels_last).copy_(packed)
