"""Max pooling over windows and over time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from benchmarks.cases import Operation
from benchmarks.names import Pair, Shape
from benchmarks.ops.conv2d import shrink_channels, shrink_extent
from benchmarks.providers import is_engine
from torch_unroll.shapes import pooled


@dataclass(frozen=True)
class PoolShape(Shape):
    """A batch of images and a pooling window."""

    N: int
    C: int
    H: int
    W: int
    window: Pair
    stride: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    ceil_mode: int = 0

    @property
    def output_size(self) -> Pair:
        P, Q = (
            pooled((self.H, self.W)[i], self.window[i], self.stride[i], self.padding[i], self.dilation[i], bool(self.ceil_mode))
            for i in (0, 1)
        )
        return P, Q


class MaxPool2d(Operation):
    """dgrad goes through autograd for every provider, because each saves the positions of the maxima in its own form."""

    name = "max_pool2d"
    Shape = PoolShape
    directions = ("fprop", "dgrad", "train")
    ours_import = "from torch_unroll.max_pool2d import max_pool2d"

    def sizes(self, shape: PoolShape) -> dict[str, tuple[int, ...]]:
        return {"x": (shape.N, shape.C, shape.H, shape.W)}

    def output(self, shape: PoolShape) -> tuple[int, ...]:
        return (shape.N, shape.C, *shape.output_size)

    def expression(self, shape: PoolShape, direction: str, provider: str) -> str:
        geometry = f"{shape.window}, {shape.stride}, {shape.padding}, {shape.dilation}, {bool(shape.ceil_mode)}"
        return f"max_pool2d(x, {geometry}, engine={provider!r})" if is_engine(provider) else f"F.max_pool2d(x, {geometry})"

    def flops(self, shape: PoolShape, direction: str) -> int:
        """Counts comparisons forward, and one addition per window backward."""
        windows = math.prod(self.output(shape))
        comparisons = windows * math.prod(shape.window)
        return {"fprop": comparisons, "dgrad": windows, "train": comparisons + windows}[direction]

    def bytes(self, shape: PoolShape, direction: str, element_size: int) -> int:
        """Counts x and y forward, dy and dx backward, and one byte per window for the position of its maximum, which dgrad reads,
        and train writes and reads."""
        windows = math.prod(self.output(shape))
        once = element_size * (math.prod(self.sizes(shape)["x"]) + windows)
        return {"fprop": once, "dgrad": once + windows, "train": 2 * (once + windows)}[direction]

    def shrink(self, shape: PoolShape) -> PoolShape:
        H, W = (
            shrink_extent((shape.H, shape.W)[i], shape.window[i], shape.stride[i], shape.padding[i], shape.dilation[i])
            for i in (0, 1)
        )
        return replace(shape, N=1, C=shrink_channels(shape.C), H=H, W=W)


@dataclass(frozen=True)
class TimeShape(Shape):
    """T steps of N feature vectors of size C."""

    T: int
    N: int
    C: int


class MaxOverTime(Operation):
    """The maximum over the steps of a sequence, (T, N, C) -> (N, C)."""

    name = "max_over_time"
    Shape = TimeShape
    layouts = ("nchw",)
    ours_import = "from torch_unroll.max_pool2d import max_over_time"

    def sizes(self, shape: TimeShape) -> dict[str, tuple[int, ...]]:
        return {"x": (shape.T, shape.N, shape.C)}

    def output(self, shape: TimeShape) -> tuple[int, ...]:
        return (shape.N, shape.C)

    def expression(self, shape: TimeShape, direction: str, provider: str) -> str:
        return f"max_over_time(x, engine={provider!r})" if is_engine(provider) else "x.max(0).values"

    def flops(self, shape: TimeShape, direction: str) -> int:
        return shape.T * shape.N * shape.C

    def bytes(self, shape: TimeShape, direction: str, element_size: int) -> int:
        once = element_size * (shape.T + 1) * shape.N * shape.C
        return once * (2 if direction == "train" else 1)

    def shrink(self, shape: TimeShape) -> TimeShape:
        return TimeShape(min(shape.T, 5), min(shape.N, 3), shrink_channels(shape.C))
