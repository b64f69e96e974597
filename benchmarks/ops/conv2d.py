"""Convolution, transposed convolution, and the unrolling of images into columns (im2col)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from benchmarks.cases import Case, Operation
from benchmarks.names import Pair, Shape
from benchmarks.providers import is_engine
from torch_unroll.engines import refusal
from torch_unroll.shapes import convolved


@dataclass(frozen=True)
class WindowShape(Shape):
    """A batch of images and the filter that slides over them."""

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: int = 0

    @property
    def P(self) -> int:
        return convolved(self.H, self.R, self.stride[0], 2 * self.padding[0], self.dilation[0])

    @property
    def Q(self) -> int:
        return convolved(self.W, self.S, self.stride[1], 2 * self.padding[1], self.dilation[1])


def shrink_extent(extent: int, window: int, stride: int, padding: int, dilation: int) -> int:
    """Returns `extent` or a smaller extent with the same remainder modulo the stride and with room for at least three windows."""
    least = max(1, dilation * (window - 1) + 1 - 2 * padding) + 2 * stride
    return min(extent, least + (extent - least) % stride) if extent > least else extent


def shrink_channels(channels: int, most: int = 16) -> int:
    """At most `most` + 7 channels, with the same remainder modulo 8, on which vector loads and tiles depend."""
    return channels if channels <= most else most + channels % 8


def shrink_window(shape: WindowShape) -> WindowShape:
    """One image with a few windows and few channels; a grouped convolution stays grouped, and a depthwise one depthwise."""
    H, W = (
        shrink_extent((shape.H, shape.W)[i], (shape.R, shape.S)[i], shape.stride[i], shape.padding[i], shape.dilation[i])
        for i in (0, 1)
    )
    if shape.groups == 1:
        return replace(shape, N=1, H=H, W=W, C=shrink_channels(shape.C), K=shrink_channels(shape.K))
    groups = min(shape.groups, 4)
    C, K = (min(channels // shape.groups, 8) * groups for channels in (shape.C, shape.K))
    return replace(shape, N=1, H=H, W=W, C=C, K=K, groups=groups)


class Conv2d(Operation):
    """fprop, dgrad and wgrad run without autograd: fprop calls the public function, dgrad and wgrad call the operators."""

    name = "conv2d"
    Shape = WindowShape
    directions: ClassVar[tuple[str, ...]] = ("fprop", "dgrad", "wgrad", "train")
    direct: ClassVar[tuple[str, ...]] = ("fprop", "dgrad", "wgrad")
    ours_import = "from torch_unroll.conv2d import conv2d\nfrom torch_unroll.ops.conv2d import conv2d_dgrad, conv2d_wgrad"

    def sizes(self, shape: WindowShape) -> dict[str, tuple[int, ...]]:
        sizes: dict[str, tuple[int, ...]] = {
            "x": (shape.N, shape.C, shape.H, shape.W),
            "w": (shape.K, shape.C // shape.groups, shape.R, shape.S),
        }
        if shape.bias:
            sizes["bias"] = (shape.K,)
        return sizes

    def output(self, shape: WindowShape) -> tuple[int, ...]:
        return (shape.N, shape.K, shape.P, shape.Q)

    def expression(self, shape: WindowShape, direction: str, provider: str) -> str:
        stride, padding, dilation, groups = shape.stride, shape.padding, shape.dilation, shape.groups
        if direction in ("fprop", "train"):
            bias = "bias" if shape.bias else "None"
            if is_engine(provider):
                return f"conv2d(x, w, {bias}, {stride}, {padding}, {dilation}, {groups}, engine={provider!r})"
            return f"F.conv2d(x, w, {bias}, {stride}, {padding}, {dilation}, {groups})"
        if is_engine(provider):
            sides = [padding[0], padding[0], padding[1], padding[1]]
            first, size = ("dy, w", (shape.H, shape.W)) if direction == "dgrad" else ("dy, x", (shape.R, shape.S))
            numbers = f"{size}, {stride}" if direction == "dgrad" else f"{size}, None, {stride}"
            return f"conv2d_{direction}({first}, {numbers}, {sides}, {dilation}, {groups}, 'conv', {provider!r}, None)"
        mask, result = ([True, False, False], 0) if direction == "dgrad" else ([False, True, False], 1)
        return (
            f"torch.ops.aten.convolution_backward(dy, x, w, None, {stride}, {padding}, {dilation}, False, (0, 0),"
            f" {groups}, {mask})[{result}]"
        )

    def flops(self, shape: WindowShape, direction: str) -> int:
        """Counts products with the padding too, as is customary."""
        product = 2 * math.prod(self.output(shape)) * (shape.C // shape.groups) * shape.R * shape.S
        return product * (3 if direction == "train" else 1)

    def bytes(self, shape: WindowShape, direction: str, element_size: int) -> int:
        """Counts x, w, y and the bias, if there is one, once for each of fprop, dgrad and wgrad; `train` is their sum."""
        once = element_size * sum(math.prod(size) for size in (*self.sizes(shape).values(), self.output(shape)))
        return once * (3 if direction == "train" else 1)

    def shrink(self, shape: WindowShape) -> WindowShape:
        return shrink_window(shape)


class ConvTranspose2d(Conv2d):
    """Maps (N, K, P, Q) to (N, C, H, W), without a bias; its shape is that of the convolution that it transposes."""

    name = "conv_transpose2d"
    directions = ("fprop", "train")
    direct = ("fprop",)
    ours_import = "from torch_unroll.conv2d import conv_transpose2d"

    def sizes(self, shape: WindowShape) -> dict[str, tuple[int, ...]]:
        return {"x": (shape.N, shape.K, shape.P, shape.Q), "w": (shape.K, shape.C // shape.groups, shape.R, shape.S)}

    def output(self, shape: WindowShape) -> tuple[int, ...]:
        return (shape.N, shape.C, shape.H, shape.W)

    def refusal(self, case: Case, engine: str, device: torch.device) -> str | None:
        return refusal(engine, "conv2d", device, case.torch_dtype)

    def flops(self, shape: WindowShape, direction: str) -> int:
        return Conv2d.flops(CONV2D, shape, direction)

    def expression(self, shape: WindowShape, direction: str, provider: str) -> str:
        reached = (
            (shape.P - 1) * shape.stride[0] - 2 * shape.padding[0] + shape.dilation[0] * (shape.R - 1) + 1,
            (shape.Q - 1) * shape.stride[1] - 2 * shape.padding[1] + shape.dilation[1] * (shape.S - 1) + 1,
        )
        extra = (shape.H - reached[0], shape.W - reached[1])
        call = f"conv_transpose2d(x, w, None, {shape.stride}, {shape.padding}, {extra}, {shape.groups}, {shape.dilation}"
        return f"{call}, engine={provider!r})" if is_engine(provider) else f"F.{call})"


class Unfold(Operation):
    """im2col on its own; the K, groups and bias of its shape are ignored."""

    name = "unfold"
    Shape = WindowShape
    layouts = ("nchw",)
    ours_import = "from torch_unroll.unfold import fold, unfold"
    folds: ClassVar[bool] = False

    def image(self, shape: WindowShape) -> tuple[int, ...]:
        return (shape.N, shape.C, shape.H, shape.W)

    def columns(self, shape: WindowShape) -> tuple[int, ...]:
        return (shape.N, shape.C * shape.R * shape.S, shape.P * shape.Q)

    def sizes(self, shape: WindowShape) -> dict[str, tuple[int, ...]]:
        return {"x": self.columns(shape) if self.folds else self.image(shape)}

    def output(self, shape: WindowShape) -> tuple[int, ...]:
        return self.image(shape) if self.folds else self.columns(shape)

    def expression(self, shape: WindowShape, direction: str, provider: str) -> str:
        size = f"{(shape.H, shape.W)}, " if self.folds else ""
        call = f"{self.name}(x, {size}{(shape.R, shape.S)}, {shape.dilation}, {shape.padding}, {shape.stride}"
        return f"{call}, engine={provider!r})" if is_engine(provider) else f"F.{call})"

    def flops(self, shape: WindowShape, direction: str) -> int:
        """Counts the additions of fold, which is also the backward pass of unfold; unfold itself has none."""
        return math.prod(self.columns(shape)) if self.folds or direction == "train" else 0

    def bytes(self, shape: WindowShape, direction: str, element_size: int) -> int:
        once = element_size * (math.prod(self.image(shape)) + math.prod(self.columns(shape)))
        return once * (2 if direction == "train" else 1)

    def shrink(self, shape: WindowShape) -> Any:
        return shrink_window(shape)


class Fold(Unfold):
    """col2im on its own."""

    name = "fold"
    folds = True


CONV2D = Conv2d()
