"""The parts of convolution's host functions: workspace that is counted, and the launches of one call, in chunks of its batch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from torch_unroll.engines.compiled import Launcher
from torch_unroll.engines.compiled.recording import note_workspace
from torch_unroll.engines.interface import Conv2dGeometry
from torch_unroll.kernels.cuda.conv2d import problem as parameters
from torch_unroll.kernels.cuda.conv2d import variants
from torch_unroll.kernels.cuda.conv2d.model import Choice
from torch_unroll.kernels.cuda.conv2d.problem import Conv2dProblem


def allocate_workspace(
    size: Sequence[int],
    like: Tensor,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Uninitialised, and noted for `explain`."""
    workspace = torch.empty(tuple(size), dtype=dtype or like.dtype, device=like.device, memory_format=memory_format)
    note_workspace(workspace)
    return workspace


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What products are summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _problem(x: Tensor, w: Tensor, y: Tensor, geometry: Conv2dGeometry, precision: str) -> Conv2dProblem:
    """One pixel of y along an axis makes the stride meaningless there, one filter position the dilation: they are 1 then, so
    that they are neither planned for nor a reason to refuse."""
    (N, C, H, W), (K, _, R, S), (_, _, P, Q) = x.shape, w.shape, y.shape
    stride, padding, dilation, groups = geometry
    dtype = str(x.dtype).removeprefix("torch.")
    return Conv2dProblem(
        *(dtype, N, C, H, W, K, R, S, P, Q),
        (stride[0] if P > 1 else 1, stride[1] if Q > 1 else 1),
        (padding[0], padding[2]),
        (dilation[0] if R > 1 else 1, dilation[1] if S > 1 else 1),
        groups,
        *(_four(x.stride()), _four(w.stride()), _four(y.stride()), precision),
        *(x.data_ptr() % 16 == 0, w.data_ptr() % 16 == 0, y.data_ptr() % 16 == 0),
    )


def _four(strides: Sequence[int]) -> tuple[int, int, int, int]:
    return strides[0], strides[1], strides[2], strides[3]


# ---- launches of one product each ------------------------------------------------------------------------------------------


class Call:
    """One direction of one convolution on tensors, in chunks of the batch."""

    def __init__(self, launcher: Launcher, x: Tensor, w: Tensor, y: Tensor, geometry: Conv2dGeometry, precision: str):
        self.launcher, self.x, self.w, self.y, self.geometry, self.precision = launcher, x, w, y, geometry, precision
        self.problem = _problem(x, w, y, geometry, precision)
        self.device = launcher.properties(x.device)

    def chunks(self, bytes_per_image: int = 0) -> list[Call]:
        """The same call for as many images at a time as a launch and the workspace take."""
        pixels = (self.x.shape[2] * self.x.shape[3], self.y.shape[2] * self.y.shape[3])
        images = variants.images_per_launch(bytes_per_image, pixels, self.x.shape[0], variants.workspace_limit // 2)
        if images == self.x.shape[0]:
            return [self]
        return [self.on(x, self.w, y) for x, y in zip(self.x.split(images), self.y.split(images), strict=True)]

    def on(self, x: Tensor, w: Tensor, y: Tensor) -> Call:
        """The same call of other tensors."""
        return Call(self.launcher, x, w, y, self.geometry, self.precision)

    def pointwise(self, x: Tensor, w: Tensor, y: Tensor) -> Call:
        """A 1×1 convolution of other tensors with the same groups."""
        return Call(self.launcher, x, w, y, Conv2dGeometry((1, 1), (0, 0, 0, 0), (1, 1), self.problem.groups), self.precision)

    def fprop(self, bias: Tensor | None, choice: Choice) -> None:
        plan = variants.plan_fprop(self.problem, choice.variant == "tensor", choice.tile, choice.splits)
        sums = self._image_sums(plan, self.y)
        pointers = (self.x.data_ptr(), self.w.data_ptr(), self.y.data_ptr())
        epilogue = parameters.CBiasEpilogue(None if bias is None else bias.data_ptr())
        splits = plan.undivided if sums is None else parameters.CSplits(sums.data_ptr(), plan.splits, plan.split)
        struct = parameters.FpropParameters(*pointers, self.problem.shape(), plan.c_walks, splits, epilogue)
        self.launcher.launch(plan.launch, struct, self.x.device)
        if sums is not None:
            sum_image_splits(self.launcher, sums, self.y, bias)

    def dgrad(self, choice: Choice) -> None:
        plan = variants.plan_dgrad(self.problem, choice.variant == "tensor", choice.tile, choice.splits)
        sums = self._image_sums(plan, self.x)
        pointers = (self.y.data_ptr(), self.w.data_ptr(), self.x.data_ptr())
        splits = plan.undivided if sums is None else parameters.CSplits(sums.data_ptr(), plan.splits, plan.split)
        struct = parameters.DgradParameters(*pointers, self.problem.shape(), plan.c_walks, splits)
        self.launcher.launch(plan.launch, struct, self.x.device)
        if sums is not None:
            sum_image_splits(self.launcher, sums, self.x)

    def _image_sums(self, plan: variants.GemmPlan, result: Tensor) -> Tensor | None:
        """Room for the sums of each split, (splits, N, H, W, channels); none where there is but one."""
        if plan.splits == 1:
            return None
        N, channels, H, W = result.shape
        return allocate_workspace((plan.splits, N, H, W, channels), result, sum_dtype(result.dtype))

    def wgrad(self, sums: Tensor, plan: variants.GemmPlan, accumulate: bool) -> None:
        pointers = (self.y.data_ptr(), self.x.data_ptr(), sums.data_ptr())
        struct = parameters.WgradParameters(*pointers, self.problem.shape(), plan.c_walks, plan.splits, plan.split, accumulate)
        self.launcher.launch(plan.launch, struct, self.x.device)

    def wgrad_plan(self, choice: Choice, most_splits: int = 2**31) -> variants.GemmPlan:
        """The plan of wgrad; a later chunk adds to the splits of the first, so it has no more."""
        return variants.plan_wgrad(self.problem, choice.variant == "tensor", choice.tile, min(choice.splits, most_splits))

    def sum_splits(self, sums: Tensor, channels_inner: bool, channels: int, outputs: int) -> None:
        """Adds the splits in `sums`, (splits, groups · outputs, taps of `channels`), into w's place."""
        plan = variants.plan_sum_splits(self.problem.dtype, self.problem.K, sums.shape[2])
        struct = parameters.SumSplitsParameters(
            sums.data_ptr(), self.w.data_ptr(), self.problem.shape(), sums.shape[0], channels_inner, channels, outputs
        )
        self.launcher.launch(plan, struct, self.w.device)

    def im2col(self, columns: Tensor) -> None:
        """x -> columns."""
        self._gather("im2col", parameters.Im2colParameters, self.x, columns)

    def col2im(self, columns: Tensor) -> None:
        """columns -> x."""
        self._gather("col2im", parameters.Col2imParameters, columns, self.x)

    def _gather(self, name: str, struct: type[ctypes.Structure], source: Tensor, result: Tensor) -> None:
        plan = variants.plan_im2col(self.problem, name, self.device.multiprocessors)
        self.launcher.launch(plan, struct(source.data_ptr(), result.data_ptr(), self.problem.shape()), self.x.device)

    def columns(self) -> Tensor:
        """Room for the column matrix, (N, C·R·S, P, Q)."""
        rows = self.problem.C * self.problem.R * self.problem.S
        return allocate_workspace((self.problem.N, rows, self.problem.P, self.problem.Q), self.x)

    @property
    def column_bytes(self) -> int:
        """Of one image's column matrix."""
        problem = self.problem
        return problem.C * problem.R * problem.S * problem.P * problem.Q * self.x.element_size()


def sum_image_splits(launcher: Launcher, sums: Tensor, result: Tensor, bias: Tensor | None = None) -> None:
    """Adds the splits in `sums`, (splits, N, H, W, channels) contiguous and in the type that products are summed in, and a bias
    (channels) contiguous, into `result`, (N, channels, H, W) of any strides."""
    N, channels, H, W = result.shape
    struct = parameters.SumImageSplitsParameters(
        sums.data_ptr(),
        result.data_ptr(),
        (ctypes.c_int64 * 4)(*result.stride()),
        *(N, channels, H, W, sums.shape[0]),
        parameters.CBiasEpilogue(None if bias is None else bias.data_ptr()),
    )
    dtype = str(result.dtype).removeprefix("torch.")
    launcher.launch(variants.plan_sum_image_splits(dtype, N * H * W, channels), struct, result.device)


def _is_packed(tensor: Tensor, groups: int) -> bool:
    """Whether channels are innermost, each group's in whole pieces of 16 bytes."""
    piece = 16 // tensor.element_size()
    aligned = tensor.data_ptr() % 16 == 0
    return parameters.whole_pieces(_four(tensor.stride()), _four(tensor.shape), aligned, groups, piece)


def pack_channels(launcher: Launcher, tensor: Tensor, groups: int, images: int = 0, padded_images: int = 0) -> Tensor:
    """A tensor (N, groups · channels, H, W) as tensor cores take it: channels innermost, each group's padded with zeros to whole
    pieces of 16 bytes; itself, if it is. With `images`, N are groups of so many, each padded to `padded_images`."""
    N, C, H, W = tensor.shape
    dtype = str(tensor.dtype).removeprefix("torch.")
    images, padded_images = images or N, padded_images or N
    if images == padded_images and _is_packed(tensor, groups):
        return tensor
    N, channels, padded = N // images * padded_images, C // groups, whole_pieces(C // groups, tensor)
    packed = allocate_workspace((N, groups * padded, H, W), tensor, memory_format=torch.channels_last)
    pixels_first = abs(tensor.stride(3)) < tensor.stride(1)
    struct = parameters.PackChannelsParameters(
        tensor.data_ptr(),
        packed.data_ptr(),
        (ctypes.c_int64 * 4)(*tensor.stride()),
        *(channels, padded, images, padded_images, H, W, groups, pixels_first),
    )
    launcher.launch(variants.plan_pack_channels(dtype, N, H * W, padded, groups), struct, tensor.device)
    return packed


def whole_pieces(channels: int, tensor: Tensor) -> int:
    """Channels of a group once they are padded to pieces of 16 bytes."""
    piece = 16 // tensor.element_size()
    return -(-channels // piece) * piece


def packed_bytes(groups: int, *tensors: Tensor) -> int:
    """What packing one image of each takes; nothing for those that are used as they are."""
    return sum(
        groups * whole_pieces(tensor.shape[1] // groups, tensor) * tensor[0, 0].numel() * tensor.element_size()
        for tensor in tensors
        if not _is_packed(tensor, groups)
    )
