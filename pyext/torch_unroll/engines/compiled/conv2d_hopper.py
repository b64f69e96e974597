"""Host code of the variant `hopper`: packs what the copy engine cannot fetch, has tensor maps made, launches.

Parameter structs, maps included, follow from a plan and addresses alone, so they are kept: a training step finds most of its own
again, since the allocator gives it the same addresses.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
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
from torch_unroll.kernels.tensor_map import ITEM_BYTES

Strides = tuple[int, ...]


def fprop(call: Call, bias: Tensor | None, choice: Choice) -> None:
    """y = x * w + bias."""
    groups = call.problem.groups
    w = _fetchable(call.launcher, call.w, 1)
    for chunk in call.chunks(packed_bytes(groups, call.x)):
        x = _fetchable(call.launcher, chunk.x, groups)
        product = chunk if x is chunk.x and w is chunk.w else call.on(x, w, chunk.y)
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
    shape_of_w = call.w if outputs == K else torch.empty((groups * outputs, *call.w.shape[1:]), device="meta")
    for chunk in call.chunks(packed_bytes(groups, call.y)):
        dy = _fetchable(call.launcher, chunk.y, groups)
        product = chunk if dy is chunk.y and shape_of_w is chunk.w else call.on(chunk.x, shape_of_w, dy)
        plan = wgmma.plan("dgrad", product.problem, choice.tile, choice.splits, call.device.multiprocessors)
        _launch_image("dgrad", product, plan, dy, w, chunk.x, None)
        del dy, product


def wgrad(call: Call, choice: Choice) -> None:
    """dw from dy and x, summed over splits of the pixels."""
    groups, (C, K), (R, S) = call.problem.groups, call.problem.group_channels, call.w.shape[2:]
    inputs, outputs = whole_pieces(C, call.x), whole_pieces(K, call.x)
    channels = wgmma.padded_channels(call.problem.dtype, inputs)
    whole = (inputs, outputs) == (C, K)
    shape_of_w = call.w if whole else torch.empty((groups * outputs, inputs, R, S), device="meta")
    sums, splits = None, choice.splits
    for chunk in call.chunks(packed_bytes(groups, call.x, call.y)):
        x, dy = (_fetchable(call.launcher, each, groups) for each in (chunk.x, chunk.y))
        product = chunk if whole and x is chunk.x and dy is chunk.y else call.on(x, shape_of_w, dy)
        plan = wgmma.plan("wgrad", product.problem, choice.tile, splits, call.device.multiprocessors)
        first = sums is None
        if sums is None:
            sums = allocate_workspace((plan.splits, groups * outputs, R * S * channels), call.x, torch.float32)
            splits = plan.splits  # a later chunk adds to the splits of the first, so it has no more
        pointers = (x.data_ptr(), dy.data_ptr(), sums.data_ptr())
        struct = _wgrad_struct(call.launcher, plan, x.device, *pointers, x.stride(), dy.stride(), not first)
        call.launcher.launch(plan.launch, struct, x.device)
        del x, dy, product
    assert sums is not None
    call.sum_splits(sums, True, channels, outputs)


def _launch_image(
    direction: str, product: Call, plan: WgmmaPlan, image: Tensor, filter: Tensor, result: Tensor, bias: Tensor | None
) -> None:
    """Sums over `image` for every pixel of `result`; both are of all groups."""
    launcher, sums = product.launcher, None
    if plan.splits > 1:
        N, channels, H, W = result.shape
        sums = allocate_workspace((plan.splits, N, H, W, channels), result, torch.float32)
    pointers = (image.data_ptr(), filter.data_ptr(), result.data_ptr(), 0 if sums is None else sums.data_ptr())
    struct = _image_struct(
        launcher,
        direction,
        plan,
        result.device,
        *pointers,
        0 if bias is None or sums is not None else bias.data_ptr(),
        *(image.stride(), filter.shape, filter.stride(), result.stride()),
    )
    launcher.launch(plan.launch, struct, result.device)
    if sums is not None:
        sum_image_splits(launcher, sums, result, bias)


@lru_cache(maxsize=4096)
def _image_struct(
    launcher: Launcher,
    direction: str,
    plan: WgmmaPlan,
    device: torch.device,
    image: int,
    filter: int,
    result: int,
    sums: int,
    bias: int,
    image_stride: Strides,
    filter_size: torch.Size,
    filter_stride: Strides,
    result_stride: Strides,
) -> ctypes.Structure:
    """Of fprop or dgrad. Pointers are addresses, 0 for none; nobody changes the struct."""
    p, item = plan.problem, ITEM_BYTES[plan.problem.dtype]
    C, K = p.group_channels
    x_size, y_size = (p.N, p.C, p.H, p.W), (p.N, p.K, p.P, p.Q)
    (image_size, result_size), depth, channels = ((x_size, y_size), C, K) if direction == "fprop" else ((y_size, x_size), K, C)
    block = plan.span // item
    box = (block, plan.tile.columns) if direction == "fprop" or item == 4 else (wgmma.STEP_BYTES // item, block)
    struct: Any = (wgmma.FpropParameters if direction == "fprop" else wgmma.DgradParameters)()
    for i, each in enumerate(plan.images):
        struct.images[i] = _image(launcher, device, p.dtype, image, image_size, image_stride, each, block, plan.tile.rows)
    spec = im2col_maps.filter_map(p.dtype, filter_size, filter_stride, *box, address=filter)
    struct.filter = launcher.tensor_map(spec, device)
    struct.result, struct.sums = result, sums or None
    struct.stride = (ctypes.c_int64 * 4)(*result_stride)
    struct.N, _, struct.height, struct.width = result_size
    struct.groups, struct.channels, struct.depth_channels = p.groups, channels, depth
    struct.stride_h, struct.stride_w = p.residues if direction == "dgrad" else (1, 1)
    struct.span, struct.splits, struct.steps_per_split = plan.span, plan.splits, plan.steps_per_split
    struct.tiles, struct.walk = plan.tiles, plan.walk
    if direction == "fprop":
        struct.epilogue.bias = bias or None
    else:
        four = ctypes.c_int64 * 4
        struct.operands = wgmma.COperandsInMemory(image, filter, four(*image_stride), four(*filter_stride), p.P, p.Q)
    return struct


@lru_cache(maxsize=4096)
def _wgrad_struct(
    launcher: Launcher,
    plan: WgmmaPlan,
    device: torch.device,
    x: int,
    dy: int,
    sums: int,
    x_stride: Strides,
    dy_stride: Strides,
    accumulate: bool,
) -> ctypes.Structure:
    p, item = plan.problem, ITEM_BYTES[plan.problem.dtype]
    pixels = wgmma.STEP_BYTES // item  # of a step
    x_size, dy_size, as_it_is = (p.N, p.C, p.H, p.W), (p.N, p.K, p.P, p.Q), im2col_maps.as_it_is(p.P, p.Q)
    struct: Any = wgmma.WgradParameters()
    struct.x = _image(launcher, device, p.dtype, x, x_size, x_stride, plan.images[0], plan.span // item, pixels)
    struct.dy = _image(launcher, device, p.dtype, dy, dy_size, dy_stride, as_it_is, pixels, pixels).map
    struct.sums = sums
    struct.N, struct.groups, (struct.C, struct.K) = p.N, p.groups, p.group_channels
    struct.span, struct.splits, struct.steps_per_split = plan.span, plan.splits, plan.steps_per_split
    struct.tiles, struct.accumulate = plan.tiles, accumulate
    return struct


def _image(
    launcher: Launcher,
    device: torch.device,
    dtype: str,
    address: int,
    size: tuple[int, int, int, int],
    stride: Strides,
    image: Image,
    channels: int,
    pixels: int,
) -> wgmma.CImage:
    """As the kernels take it; its map is made where there is anything to fetch."""
    vertical, horizontal = image
    filled = wgmma.CImage(vertical=wgmma.CAxis(*vertical), horizontal=wgmma.CAxis(*horizontal))
    if vertical.walked and horizontal.walked:
        spec = im2col_maps.image_map(dtype, size, stride, image, channels, pixels, address)
        filled.map = launcher.tensor_map(spec, device)
    return filled


def _fetchable(launcher: Launcher, tensor: Tensor, groups: int) -> Tensor:
    """A tensor (N, groups · channels, H, W) as the copy engine takes it: channels innermost, in whole pieces of 16 bytes."""
    return _dense(pack_channels(launcher, tensor, groups))


def _dense(packed: Tensor) -> Tensor:
    """Itself; or a copy, where its strides are of a kind that maps do not know, such as of an expanded batch."""
    if _is_known(packed.dtype, packed.shape, packed.stride()):
        return packed
    return allocate_workspace(packed.shape, packed, memory_format=torch.channels_last).copy_(packed)


@lru_cache(maxsize=4096)
def _is_known(dtype: torch.dtype, size: torch.Size, stride: Strides) -> bool:
    name = str(dtype).removeprefix("torch.")
    return im2col_maps.image_map(name, size, stride, im2col_maps.as_it_is(*size[2:]), 16, 1).refused() is None
