"""Host code of convolution, unfold and fold: allocates, chooses a variant, fills parameters and launches.

Every function takes the launcher first. A call that has nothing to compute launches nothing.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_unroll.engines.compiled import DeviceProperties, Launcher
from torch_unroll.engines.interface import Padding, Pair
from torch_unroll.kernels.cuda.conv2d import problem as parameters
from torch_unroll.kernels.cuda.conv2d import variants
from torch_unroll.kernels.cuda.conv2d.problem import Conv2dProblem
from torch_unroll.kernels.table import LaunchPlan
from torch_unroll.shapes import convolved, output_memory_format

#: The only variant allowed, for tests and benchmarks; None: `variants.choose` decides.
forced: str | None = None

_SUM_DTYPES = {torch.float64: torch.float64}


class Recorder:
    """A launcher that launches nothing and notes what would be, for `explain` and tests."""

    def __init__(self, launcher: Launcher):
        self._launcher = launcher
        self.plans: list[LaunchPlan] = []
        self.workspace_bytes = 0  # the most at one time
        self._held = 0

    def launch(self, plan: LaunchPlan, parameters: ctypes.Structure, device: torch.device) -> None:
        """Notes the plan."""
        self.plans.append(plan)

    def hold(self, workspace: Tensor) -> None:
        """Counts a workspace as long as it lives."""
        self._held += workspace.nbytes
        self.workspace_bytes = max(self.workspace_bytes, self._held)
        weakref.finalize(workspace, self._let_go, workspace.nbytes)

    def _let_go(self, nbytes: int) -> None:
        self._held -= nbytes

    def resident(self, plan: LaunchPlan, device: torch.device) -> int:
        """The real launcher's answer."""
        return self._launcher.resident(plan, device)

    def properties(self, device: torch.device) -> DeviceProperties:
        """The real launcher's answer."""
        return self._launcher.properties(device)


def _output(launcher: Launcher, size: Sequence[int], like: Tensor, memory_format: torch.memory_format) -> Tensor:
    device = "meta" if isinstance(launcher, Recorder) else like.device
    return torch.empty(tuple(size), dtype=like.dtype, device=device, memory_format=memory_format)


def _workspace(
    launcher: Launcher,
    size: Sequence[int],
    like: Tensor,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    device = "meta" if isinstance(launcher, Recorder) else like.device
    workspace = torch.empty(tuple(size), dtype=dtype or like.dtype, device=device, memory_format=memory_format)
    if isinstance(launcher, Recorder):
        launcher.hold(workspace)
    return workspace


#: stride, padding, dilation, groups
Geometry = tuple[Pair, Padding, Pair, int]


def _problem(x: Tensor, w: Tensor, y: Tensor, geometry: Geometry, precision: str) -> Conv2dProblem:
    (N, C, H, W), (K, _, R, S), (_, _, P, Q) = x.shape, w.shape, y.shape
    stride, padding, dilation, groups = geometry
    dtype = str(x.dtype).removeprefix("torch.")
    pad = (padding[0], padding[2])
    return Conv2dProblem(
        *(dtype, N, C, H, W, K, R, S, P, Q),
        *((stride[0], stride[1]), pad, (dilation[0], dilation[1]), groups),  # lists, where they came by the dispatcher
        *(_four(x.stride()), _four(w.stride()), _four(y.stride()), precision),
        *(x.data_ptr() % 16 == 0, w.data_ptr() % 16 == 0, y.data_ptr() % 16 == 0),
    )


def _four(strides: tuple[int, ...]) -> tuple[int, int, int, int]:
    return strides[0], strides[1], strides[2], strides[3]


# ---- launches of one product each ------------------------------------------------------------------------------------------


class _Call:
    """One direction of one convolution on tensors, in chunks of the batch."""

    def __init__(self, launcher: Launcher, x: Tensor, w: Tensor, y: Tensor, geometry: Geometry, precision: str):
        self.launcher, self.x, self.w, self.y, self.geometry, self.precision = launcher, x, w, y, geometry, precision
        self.problem = _problem(x, w, y, geometry, precision)
        self.multiprocessors = launcher.properties(x.device).multiprocessors

    def chunks(self, bytes_per_image: int = 0) -> list[_Call]:
        """The same call for as many images at a time as a launch and the workspace take."""
        pixels = (self.x.shape[2] * self.x.shape[3], self.y.shape[2] * self.y.shape[3])
        images = variants.images_per_launch(bytes_per_image, pixels, self.x.shape[0], variants.workspace_limit // 2)
        if images == self.x.shape[0]:
            return [self]
        return [self.on(x, self.w, y) for x, y in zip(self.x.split(images), self.y.split(images), strict=True)]

    def on(self, x: Tensor, w: Tensor, y: Tensor) -> _Call:
        """The same call of other tensors."""
        return _Call(self.launcher, x, w, y, self.geometry, self.precision)

    def pointwise(self, x: Tensor, w: Tensor, y: Tensor) -> _Call:
        """A 1×1 convolution of other tensors with the same groups."""
        return _Call(self.launcher, x, w, y, ((1, 1), (0, 0, 0, 0), (1, 1), self.problem.groups), self.precision)

    def fprop(self, bias: Tensor | None, tensor: bool = False) -> None:
        plan = variants.plan_fprop(self.problem, tensor, self.multiprocessors)
        pointers = (self.x.data_ptr(), self.w.data_ptr(), self.y.data_ptr())
        bias_pointer = None if bias is None else bias.data_ptr()
        struct = parameters.FpropParameters(*pointers, self.problem.shape(), plan.walks.struct(), bias_pointer)
        self.launcher.launch(plan.launch, struct, self.x.device)

    def dgrad(self, tensor: bool = False) -> None:
        plan = variants.plan_dgrad(self.problem, tensor, self.multiprocessors)
        pointers = (self.y.data_ptr(), self.w.data_ptr(), self.x.data_ptr())
        struct = parameters.DgradParameters(*pointers, self.problem.shape(), plan.walks.struct())
        self.launcher.launch(plan.launch, struct, self.x.device)

    def wgrad(self, sums: Tensor, plan: variants.GemmPlan, accumulate: bool) -> None:
        pointers = (self.y.data_ptr(), self.x.data_ptr(), sums.data_ptr())
        struct = parameters.WgradParameters(
            *pointers, self.problem.shape(), plan.walks.struct(), plan.splits, plan.pixels_per_split, accumulate
        )
        self.launcher.launch(plan.launch, struct, self.x.device)

    def wgrad_plan(self, most_splits: int = 2**31, tensor: bool = False) -> variants.GemmPlan:
        """The plan of wgrad; a later chunk adds to the splits of the first, so it has no more."""
        return variants.plan_wgrad(self.problem, tensor, self.multiprocessors, variants.workspace_limit // 2, most_splits)

    def sum_splits(self, sums: Tensor, channels_inner: bool, channels: int, outputs: int) -> None:
        """Adds the splits in `sums`, (splits, groups · outputs, taps of `channels`), into w's place."""
        plan = variants.plan_sum_splits(self.problem.dtype, self.problem.K, sums.shape[2])
        struct = parameters.SumSplitsParameters(
            sums.data_ptr(), self.w.data_ptr(), self.problem.shape(), sums.shape[0], channels_inner, channels, outputs
        )
        self.launcher.launch(plan, struct, self.w.device)

    def im2col(self, columns: Tensor) -> None:
        """x -> columns."""
        self._gather("im2col", self.problem.P * self.problem.Q, parameters.Im2colParameters, self.x, columns)

    def col2im(self, columns: Tensor) -> None:
        """columns -> x."""
        self._gather("col2im", self.problem.H * self.problem.W, parameters.Col2imParameters, columns, self.x)

    def _gather(self, name: str, pixels: int, struct: type[ctypes.Structure], source: Tensor, result: Tensor) -> None:
        plan = variants.plan_im2col(self.problem.dtype, name, self.problem.N * self.problem.C * pixels, self.multiprocessors)
        self.launcher.launch(plan, struct(source.data_ptr(), result.data_ptr(), self.problem.shape()), self.x.device)

    def columns(self) -> Tensor:
        """Room for the column matrix, (N, C·R·S, P, Q)."""
        rows = self.problem.C * self.problem.R * self.problem.S
        return _workspace(self.launcher, (self.problem.N, rows, self.problem.P, self.problem.Q), self.x)

    @property
    def column_bytes(self) -> int:
        """Of one image's column matrix."""
        problem = self.problem
        return problem.C * problem.R * problem.S * problem.P * problem.Q * self.x.element_size()


# ---- variants ---------------------------------------------------------------------------------------------------------------


def _implicit_fprop(call: _Call, bias: Tensor | None) -> None:
    for chunk in call.chunks():
        chunk.fprop(bias)


def _explicit_fprop(call: _Call, bias: Tensor | None) -> None:
    flat = call.w.contiguous().flatten(1)[:, :, None, None]  # the columns' rows are C R S
    chunks = call.chunks(call.column_bytes)
    columns = chunks[0].columns()
    for chunk in chunks:
        chunk.im2col(columns)
        chunk.pointwise(columns[: chunk.problem.N], flat, chunk.y).fprop(bias)


def _implicit_dgrad(call: _Call) -> None:
    for chunk in call.chunks():
        chunk.dgrad()


def _explicit_dgrad(call: _Call) -> None:
    flat = call.w.contiguous().flatten(1)[:, :, None, None]
    chunks = call.chunks(call.column_bytes)
    columns = chunks[0].columns()
    for chunk in chunks:
        chunk.pointwise(columns[: chunk.problem.N], flat, chunk.y).dgrad()
        chunk.col2im(columns)


def _sums(call: _Call, plan: variants.GemmPlan) -> Tensor:
    dtype = _SUM_DTYPES.get(call.x.dtype, torch.float32)
    return _workspace(call.launcher, (plan.splits, call.problem.K, call.problem.taps), call.x, dtype)


def _implicit_wgrad(call: _Call) -> None:
    chunks = call.chunks()
    plan = chunks[0].wgrad_plan()
    sums = _sums(call, plan)
    for i, chunk in enumerate(chunks):
        chunk.wgrad(sums, chunk.wgrad_plan(plan.splits), accumulate=i > 0)
    call.sum_splits(sums, plan.walks.channels_inner, *call.problem.group_channels)


def _explicit_wgrad(call: _Call) -> None:
    chunks = call.chunks(call.column_bytes)
    columns = chunks[0].columns()
    shape_of_w = torch.empty((call.problem.K, call.problem.taps, 1, 1), device="meta")
    products = [chunk.pointwise(columns[: chunk.problem.N], shape_of_w, chunk.y) for chunk in chunks]
    plan = products[0].wgrad_plan()
    sums = _sums(call, plan)
    for i, (chunk, product) in enumerate(zip(chunks, products, strict=True)):
        chunk.im2col(columns)
        product.wgrad(sums, product.wgrad_plan(plan.splits), accumulate=i > 0)
    call.sum_splits(sums, False, *call.problem.group_channels)


def _pack(launcher: Launcher, tensor: Tensor, groups: int, images: int = 0, padded_images: int = 0) -> Tensor:
    """A tensor (N, groups · channels, H, W) as tensor cores take it: channels innermost, each group's padded with zeros to whole
    pieces of 16 bytes; itself, if it is. With `images`, N are groups of so many, each padded to `padded_images`."""
    N, C, H, W = tensor.shape
    dtype = str(tensor.dtype).removeprefix("torch.")
    images, padded_images = images or N, padded_images or N
    if images == padded_images and parameters.whole_pieces(
        _four(tensor.stride()), (N, C, H, W), tensor.data_ptr() % 16 == 0, groups, variants.mma_piece(dtype)
    ):
        return tensor
    N, channels, padded = N // images * padded_images, C // groups, _whole_pieces(C // groups, tensor)
    packed = _workspace(launcher, (N, groups * padded, H, W), tensor, memory_format=torch.channels_last)
    pixels_first = abs(tensor.stride(3)) < tensor.stride(1)
    struct = parameters.PackChannelsParameters(
        tensor.data_ptr(),
        packed.data_ptr(),
        (ctypes.c_int64 * 4)(*tensor.stride()),
        *(channels, padded, images, padded_images, H, W, groups, pixels_first),
    )
    launcher.launch(variants.plan_pack_channels(dtype, N, H * W, padded, groups), struct, tensor.device)
    return packed


def _whole_pieces(channels: int, tensor: Tensor) -> int:
    """Channels of a group once they are padded to pieces of 16 bytes."""
    piece = 16 // tensor.element_size()
    return -(-channels // piece) * piece


def _packed_bytes(groups: int, *tensors: Tensor) -> int:
    """What packing one image of each would take."""
    return sum(
        groups * _whole_pieces(tensor.shape[1] // groups, tensor) * tensor[0, 0].numel() * tensor.element_size()
        for tensor in tensors
    )


def _tensor_fprop(call: _Call, bias: Tensor | None) -> None:
    w = _pack(call.launcher, call.w, 1)
    for chunk in call.chunks(_packed_bytes(call.problem.groups, call.x)):
        x = _pack(call.launcher, chunk.x, call.problem.groups)
        call.on(x, w, chunk.y).fprop(bias, tensor=True)
        del x  # before the next chunk's takes its place


def _tensor_dgrad(call: _Call) -> None:
    groups, K = call.problem.groups, call.problem.group_channels[1]
    w = _pack(call.launcher, call.w, 1, K, _whole_pieces(K, call.w))
    for chunk in call.chunks(_packed_bytes(groups, call.y)):
        dy = _pack(call.launcher, chunk.y, groups)
        call.on(chunk.x, w, dy).dgrad(tensor=True)
        del dy


def _tensor_wgrad(call: _Call) -> None:
    groups = call.problem.groups
    channels, outputs = (_whole_pieces(each, call.x) for each in call.problem.group_channels)
    shape_of_w = torch.empty((groups * outputs, channels, *call.w.shape[2:]), device="meta")
    plan = sums = None
    for chunk in call.chunks(_packed_bytes(groups, call.x, call.y)):
        packed = call.on(_pack(call.launcher, chunk.x, groups), shape_of_w, _pack(call.launcher, chunk.y, groups))
        plan = packed.wgrad_plan(tensor=True, most_splits=plan.splits if plan else 2**31)
        first, sums = sums is None, _sums(packed, plan) if sums is None else sums
        packed.wgrad(sums, plan, accumulate=not first)
        del packed
    assert sums is not None
    assert plan is not None
    call.sum_splits(sums, plan.walks.channels_inner, channels, outputs)


_FPROP: dict[str, Callable[[_Call, Tensor | None], None]] = {
    "tensor": _tensor_fprop,
    "implicit": _implicit_fprop,
    "explicit": _explicit_fprop,
}
_DGRAD: dict[str, Callable[[_Call], None]] = {"tensor": _tensor_dgrad, "implicit": _implicit_dgrad, "explicit": _explicit_dgrad}
_WGRAD: dict[str, Callable[[_Call], None]] = {"tensor": _tensor_wgrad, "implicit": _implicit_wgrad, "explicit": _explicit_wgrad}


def _variant(direction: str, problem: Conv2dProblem) -> str:
    return variants.choose(direction, problem, forced)[0]


# ---- what engines bind ------------------------------------------------------------------------------------------------------


def conv2d_fprop(
    launcher: Launcher,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    precision: str,
) -> Tensor:
    (N, _, H, W), (K, _, R, S) = x.shape, w.shape
    P = convolved(H, R, stride[0], padding[0] + padding[1], dilation[0])
    Q = convolved(W, S, stride[1], padding[2] + padding[3], dilation[1])
    y = _output(launcher, (N, K, P, Q), x, output_memory_format(x, w))
    if not x.numel() or not w.numel():
        return y.zero_() if bias is None else y.copy_(bias.view(1, K, 1, 1).expand_as(y))
    if y.numel():
        call = _Call(launcher, x, w, y, (stride, padding, dilation, groups), precision)
        _FPROP[_variant("fprop", call.problem)](call, None if bias is None else bias.contiguous())
    return y


def conv2d_dgrad(
    launcher: Launcher,
    dy: Tensor,
    w: Tensor,
    x_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    precision: str,
) -> Tensor:
    dx = _output(launcher, (dy.shape[0], w.shape[1] * groups, *x_size), dy, output_memory_format(dy, w))
    if not dy.numel() or not w.numel():
        return dx.zero_()
    if dx.numel():
        call = _Call(launcher, dx, w, dy, (stride, padding, dilation, groups), precision)
        _DGRAD[_variant("dgrad", call.problem)](call)
    return dx


def conv2d_wgrad(
    launcher: Launcher,
    dy: Tensor,
    x: Tensor,
    w_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    precision: str,
) -> Tensor:
    dw = _output(launcher, (dy.shape[1], x.shape[1] // groups, *w_size), dy, output_memory_format(dy, x))
    if not dy.numel() or not x.numel():
        return dw.zero_()
    if dw.numel():
        call = _Call(launcher, x, dw, dy, (stride, padding, dilation, groups), precision)
        _WGRAD[_variant("wgrad", call.problem)](call)
    return dw


def unfold(launcher: Launcher, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    N, C, H, W = x.shape
    P = convolved(H, kernel_size[0], stride[0], 2 * padding[0], dilation[0])
    Q = convolved(W, kernel_size[1], stride[1], 2 * padding[1], dilation[1])
    columns = _output(launcher, (N, C * kernel_size[0] * kernel_size[1], P, Q), x, torch.contiguous_format)
    if columns.numel():
        _gathering(launcher, x, columns, kernel_size, stride, padding, dilation).im2col(columns)
    return columns.flatten(2)


def fold(
    launcher: Launcher, columns: Tensor, output_size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    N, rows, _ = columns.shape
    P = convolved(output_size[0], kernel_size[0], stride[0], 2 * padding[0], dilation[0])
    Q = convolved(output_size[1], kernel_size[1], stride[1], 2 * padding[1], dilation[1])
    x = _output(launcher, (N, rows // (kernel_size[0] * kernel_size[1]), *output_size), columns, torch.contiguous_format)
    if x.numel():
        columns = columns.contiguous().view(N, rows, P, Q)
        _gathering(launcher, x, columns, kernel_size, stride, padding, dilation).col2im(columns)
    return x


def _gathering(
    launcher: Launcher, x: Tensor, columns: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> _Call:
    """The convolution whose columns these are; it has no filter but a filter's size."""
    shape_of_w = torch.empty((1, x.shape[1], *kernel_size), device="meta")
    both = (padding[0], padding[0], padding[1], padding[1])
    return _Call(launcher, x, shape_of_w, columns, (stride, both, dilation, 1), "ieee")


# ---- what they would launch --------------------------------------------------------------------------------------------------


def recorded(function: Callable[..., Tensor], launcher: Launcher, *inputs: Any, **options: Any) -> Recorder:
    """What a function of this module would launch for these inputs, and its workspace."""
    recorder = Recorder(launcher)
    function(recorder, *inputs, **options)
    return recorder


def _planner(function: Callable[..., Tensor]) -> Callable[..., list[LaunchPlan]]:
    def plan(launcher: Launcher, *inputs: Any, **options: Any) -> list[LaunchPlan]:
        return recorded(function, launcher, *inputs, **options).plans

    return plan


plan_conv2d_fprop = _planner(conv2d_fprop)
plan_conv2d_dgrad = _planner(conv2d_dgrad)
plan_conv2d_wgrad = _planner(conv2d_wgrad)
plan_unfold = _planner(unfold)
plan_fold = _planner(fold)
