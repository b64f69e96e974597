"""Host code of the variant wgmma: packs what TMA cannot fetch, makes tensor maps and launches the product."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from torch_unroll.engines.compiled import Launcher
from torch_unroll.engines.compiled.conv2d_call import Call, four
from torch_unroll.engines.compiled.conv2d_gradient import Destination, FilterGradient
from torch_unroll.engines.compiled.conv2d_packing import pack_channels, packed_bytes, padded_channels
from torch_unroll.engines.compiled.conv2d_sums import Biases, add_image_splits, allocate_image_sums
from torch_unroll.engines.compiled.conv2d_workspace import allocate_workspace
from torch_unroll.kernels.cuda.conv2d.parameters import (
    CBiasEpilogue,
    CIm2colImage,
    Conv2dDgradWgmmaParameters,
    Conv2dFpropWgmmaParameters,
    Conv2dWgradWgmmaParameters,
    COperandsInMemory,
)
from torch_unroll.kernels.cuda.conv2d.wgmma import STEP_BYTES, WGMMA, WgmmaPlan, whole_spans
from torch_unroll.kernels.cuda.conv2d.wgmma_maps import Image, filter_map, image_map, unshifted
from torch_unroll.kernels.dtypes import ITEM_BYTES
from torch_unroll.kernels.planning import Configuration
from torch_unroll.kernels.shapes import Four
from torch_unroll.shapes import dtype_name


def fprop(call: Call, biases: Biases, configuration: Configuration) -> None:
    groups, w = call.problem.groups, _fetchable(call.launcher, call.w, 1)
    for chunk in call.chunks(packed_bytes(groups, call.x)):
        product = chunk.on(_fetchable(call.launcher, chunk.x, groups), w, chunk.y)
        plan = WGMMA.plan(product.problem, configuration, call.device)
        _launch_image(call.launcher, plan, product.x, w, chunk.y, biases)
        del product  # frees the packed images before the next chunk's are allocated


def dgrad(call: Call, configuration: Configuration) -> None:
    groups, K = call.problem.groups, call.problem.group_channels[1]
    outputs = padded_channels(K, call.w)
    if call.w.dtype == torch.float32:  # TF32 operands of wgmma need the depth contiguous, so K and C are exchanged
        w = _fetchable(call.launcher, call.w.unflatten(0, (groups, K)).transpose(1, 2).flatten(0, 1), 1)
    else:
        w = _dense(pack_channels(call.launcher, call.w, 1, images=K, padded_images=outputs))
    shape_of_w = call.w if outputs == K else torch.empty((groups * outputs, *call.w.shape[1:]), device="meta")
    for chunk in call.chunks(packed_bytes(groups, call.y)):
        product = chunk.on(chunk.x, shape_of_w, _fetchable(call.launcher, chunk.y, groups))
        plan = WGMMA.plan(product.problem, configuration, call.device)
        _launch_image(call.launcher, plan, product.y, w, chunk.x, Biases())
        del product


def wgrad(call: Call, db: Tensor | None, configuration: Configuration) -> None:
    groups, (C, K), (R, S) = call.problem.groups, call.problem.group_channels, call.w.shape[2:]
    inputs, outputs = padded_channels(C, call.x), padded_channels(K, call.x)
    channels = whole_spans(call.problem.dtype, inputs)
    shape_of_w = call.w if (inputs, outputs) == (C, K) else torch.empty((groups * outputs, inputs, R, S), device="meta")
    chunks = call.chunks(packed_bytes(groups, call.x, call.y))
    gradient = FilterGradient(call, db, len(chunks), channels, outputs)
    for chunk in chunks:
        x, dy = _fetchable(call.launcher, chunk.x, groups), _fetchable(call.launcher, chunk.y, groups)
        plan = WGMMA.plan(chunk.on(x, shape_of_w, dy).problem, gradient.limited(configuration), call.device)
        to = gradient.destination(plan.splits, channels_inner=True)
        struct = _wgrad_struct(call.launcher, x.device, plan, _memory(x), _memory(dy), to)
        call.launcher.launch(gradient.launch(plan.launch, plan.splits), struct, x.device)
        del x, dy
    gradient.add_splits(channels_inner=True)


def _launch_image(launcher: Launcher, plan: WgmmaPlan, image: Tensor, filter: Tensor, result: Tensor, biases: Biases) -> None:
    """Computes the result of fprop or dgrad from the packed filter and the image that it gathers from, x or dy."""
    sums = allocate_image_sums(plan.splits, result)
    struct = _image_struct(
        launcher,
        result.device,
        plan,
        image=_memory(image),
        filter=_memory(filter),
        result=_memory(result),
        sums=None if sums is None else sums.data_ptr(),
        biases=biases.addresses if sums is None else (None, None),
    )
    launcher.launch(plan.launch, struct, result.device)
    if sums is not None:
        add_image_splits(launcher, sums, result, biases)


# ---- parameter structs -------------------------------------------------------------------------------------------------------


class _Memory(NamedTuple):
    """The address, size and strides (in elements) of a tensor."""

    address: int
    size: Four
    stride: Four

    @property
    def c_stride(self) -> ctypes.Array[ctypes.c_int64]:
        return (ctypes.c_int64 * 4)(*self.stride)


def _memory(tensor: Tensor) -> _Memory:
    return _Memory(address=tensor.data_ptr(), size=four(tensor.shape), stride=four(tensor.stride()))


def _image_struct(
    launcher: Launcher,
    device: torch.device,
    plan: WgmmaPlan,
    *,
    image: _Memory,
    filter: _Memory,
    result: _Memory,
    sums: int | None,
    biases: tuple[int | None, int | None],
) -> ctypes.Structure:
    """Returns the parameters of fprop or dgrad. `sums` and `biases` are addresses."""
    problem, item, is_fprop = plan.problem, ITEM_BYTES[plan.problem.dtype], plan.problem.direction == "fprop"
    block = plan.span // item
    channels, rows = (block, plan.tile.columns) if is_fprop or item == 4 else (STEP_BYTES // item, block)
    images = [_image(launcher, device, problem.dtype, image, axes, block, plan.tile.rows) for axes in plan.images]
    filter_spec = filter_map(problem.dtype, filter.size, filter.stride, channels, rows, address=filter.address)
    N, _, height, width = result.size
    stride_h, stride_w = (1, 1) if is_fprop else problem.residues
    struct = (Conv2dFpropWgmmaParameters if is_fprop else Conv2dDgradWgmmaParameters)(
        filter=launcher.tensor_map(filter_spec, device),
        result=result.address,
        sums=sums,
        stride=result.c_stride,
        N=N,
        height=height,
        width=width,
        groups=problem.groups,
        channels=problem.product.columns,
        depth_channels=problem.depth_channels,
        stride_h=stride_h,
        stride_w=stride_w,
        span=plan.span,
        splits=plan.splits,
        steps_per_split=plan.steps_per_split,
        tiles=plan.tiles,
        walk=plan.walk,
    )
    struct.images[: len(images)] = images
    if is_fprop:
        struct.epilogue = CBiasEpilogue(*biases)
    else:
        struct.operands = COperandsInMemory(
            dy=image.address,
            filter=filter.address,
            dy_stride=image.c_stride,
            filter_stride=filter.c_stride,
            P=problem.P,
            Q=problem.Q,
        )
    return struct


def _wgrad_struct(
    launcher: Launcher, device: torch.device, plan: WgmmaPlan, x: _Memory, dy: _Memory, to: Destination
) -> ctypes.Structure:
    """Returns the parameters of wgrad."""
    problem, item = plan.problem, ITEM_BYTES[plan.problem.dtype]
    pixels = STEP_BYTES // item  # that one step covers
    C, K = problem.group_channels
    return Conv2dWgradWgmmaParameters(
        x=_image(launcher, device, problem.dtype, x, plan.images[0], plan.span // item, pixels),
        dy=_image(launcher, device, problem.dtype, dy, unshifted(problem.P, problem.Q), pixels, pixels).map,
        dy_data=dy.address,
        dy_stride=dy.c_stride,
        sums=to.sums,
        bias_sums=to.bias_sums,
        gradient=to.struct(),
        N=problem.N,
        groups=problem.groups,
        C=C,
        K=K,
        span=plan.span,
        splits=plan.splits,
        steps_per_split=plan.steps_per_split,
        tiles=plan.tiles,
        accumulate=to.accumulate,
        product_blocks=plan.launch.config.grid[0],
        walk=to.walk,
    )


def _image(
    launcher: Launcher, device: torch.device, dtype: str, memory: _Memory, image: Image, channels: int, pixels: int
) -> CIm2colImage:
    """Returns an image as kernel parameters hold it; its map is made only if there is anything to fetch."""
    struct = CIm2colImage(vertical=image.vertical.struct(), horizontal=image.horizontal.struct())
    if image.is_gathered:
        spec = image_map(dtype, memory.size, memory.stride, image, channels, pixels, memory.address)
        struct.map = launcher.tensor_map(spec, device)
    return struct


# ---- what TMA can fetch ----------------------------------------------------------------------------------------------------


def _fetchable(launcher: Launcher, tensor: Tensor, groups: int) -> Tensor:
    """Returns a tensor (N, groups · channels, H, W) as TMA needs it: channels innermost, in whole pieces."""
    return _dense(pack_channels(launcher, tensor, groups))


def _dense(packed: Tensor) -> Tensor:
    """Returns the tensor itself, or a copy if maps cannot describe its strides, such as those of an expanded batch."""
    if _is_describable(packed.dtype, packed.shape, packed.stride()):
        return packed
    return allocate_workspace(packed.shape, packed, memory_format=torch.channels_last).copy_(packed)


@lru_cache(maxsize=4096)
def _is_describable(dtype: torch.dtype, size: torch.Size, stride: tuple[int, ...]) -> bool:
    return image_map(dtype_name(dtype), size, stride, unshifted(*size[2:]), 16, 1).refused() is None
