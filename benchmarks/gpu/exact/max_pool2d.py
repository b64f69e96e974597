"""Exact cases of max pooling with ties, by every variant of forward, backward, gather and indices; and of unfold and fold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.exact.case import ARITHMETIC, LAYOUTS, Case, RefusedError, generator, integers
from torch_unroll.engines.interface import Pool2dGeometry
from torch_unroll.kernels.cuda.max_pool2d.variants import SELECTORS
from torch_unroll.kernels.planning import force
from torch_unroll.shapes import pooling_offset_dtype

DTYPES = ("bfloat16", "float16", "float32", "float64")


class Window(NamedTuple):
    """The size of an input, (N, C, H, W), and the window that pools it."""

    size: tuple[int, int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False


#: The windows that are tested on the emulator, too.
_ANY = {
    "2x2": Window((2, 16, 9, 8), (2, 2), (2, 2)),
    "3x3/2": Window((1, 24, 9, 7), (3, 3), (2, 2), padding=(1, 1)),
    "3x3/1": Window((1, 16, 6, 7), (3, 3), (1, 1), padding=(1, 1)),
    "dilated": Window((1, 8, 9, 9), (2, 3), (1, 2), padding=(1, 1), dilation=(2, 1), ceil_mode=True),
    "odd channels": Window((2, 5, 7, 9), (3, 2), (2, 3), padding=(1, 0)),
    "16-bit offsets": Window((1, 8, 22, 21), (20, 20), (1, 1)),
    "32-bit offsets": Window((1, 8, 184, 182), (182, 181), (1, 1)),
    "tall": Window((1, 8, 200, 1), (200, 1), (200, 1)),
    "tall, 16-bit offsets": Window((1, 8, 20, 20), (20, 20), (20, 20)),
    "tall, 32-bit offsets": Window((1, 8, 182, 181), (182, 181), (182, 181)),
    "tall, one channel": Window((1, 1, 200, 1), (200, 1), (200, 1)),
    "tall, one channel, 16-bit offsets": Window((1, 1, 20, 20), (20, 20), (20, 20)),
    "tall, one channel, 32-bit offsets": Window((1, 1, 182, 181), (182, 181), (182, 181)),
}
#: Windows by name; the name says what the window tests.
WINDOWS = _ANY | {
    "2x2, several blocks": Window((3, 64, 63, 61), (2, 2), (2, 2)),
    "3x3/2, several blocks": Window((2, 128, 57, 55), (3, 3), (2, 2), padding=(1, 1)),
    "3x3/1, several blocks": Window((4, 64, 28, 28), (3, 3), (1, 1), padding=(1, 1)),
    "7x7": Window((4, 128, 7, 7), (7, 7), (7, 7)),
    "5x5/3": Window((2, 40, 31, 33), (5, 5), (3, 3), padding=(2, 2)),
    "large plane": Window((1, 8, 224, 224), (3, 3), (2, 2), padding=(1, 1)),
}


@cache
def exact_results(window: Window, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, y, dy and dx in float64; torch computes y and dx, and of equal maxima it chooses the first, as our kernels do."""
    draw = generator(seed, "max_pool2d", *window)
    x = integers(window.size, draw, most=3).requires_grad_()
    y = F.max_pool2d(x, *window[1:])
    dy = integers(tuple(y.shape), draw)
    (dx,) = torch.autograd.grad(y, x, dy)
    return x.detach(), y.detach(), dy, dx


@cache
def exact_offsets(window: Window, seed: int) -> tuple[Tensor, Tensor]:
    """The offset of each maximum in its window, and its index in the plane, from which the offset is computed."""
    x = exact_results(window, seed)[0]
    _, indices = F.max_pool2d(x, *window[1:], return_indices=True)
    W, Q = x.shape[3], indices.shape[3]
    rows, columns = torch.arange(indices.shape[2])[:, None], torch.arange(Q)
    r = (indices // W - rows * window.stride[0] + window.padding[0]) // window.dilation[0]
    s = (indices % W - columns * window.stride[1] + window.padding[1]) // window.dilation[1]
    return (r * window.kernel[1] + s).to(pooling_offset_dtype(window.kernel[0] * window.kernel[1])), indices


@dataclass(frozen=True)
class MaxPool2dCase(Case):
    """One direction of pooling (forward, backward, gather or indices) by one variant."""

    op: ClassVar[str] = "max_pool2d"
    direction: str  # "forward", "backward", "gather" or "indices"
    variant: str
    dtype: str
    layout: str
    window: str
    seed: int = 0

    @property
    def job(self) -> str:
        return f"max_pool2d {self.direction} {self.variant}"

    def compute(self, engine: Any, device: torch.device) -> dict[str, Tensor]:
        dtype, memory_format, window = ARITHMETIC[self.dtype], LAYOUTS[self.layout], WINDOWS[self.window]
        exact = exact_results(window, self.seed)
        x, dy, offsets = (
            tensor.to(device, dtype if tensor.is_floating_point() else None).contiguous(memory_format=memory_format)
            for tensor in (exact[0], exact[2], exact_offsets(window, self.seed)[0])
        )
        plane, geometry = (x.shape[2], x.shape[3]), Pool2dGeometry(*window[1:5])
        with force(f"max_pool2d_{self.direction}", self.variant):
            try:
                if self.direction == "forward":
                    y, offsets = engine.max_pool2d_forward(x, geometry, window.ceil_mode, True)
                    return {"y": y, "offsets": offsets}
                if self.direction == "backward":
                    return {"dx": engine.max_pool2d_backward(dy, offsets, plane, geometry)}
            except RuntimeError as error:
                if "no variant takes" not in str(error):
                    raise
                raise RefusedError(f"{self.variant} does not take this pooling") from error
            if self.direction == "gather":
                return {"gathered": engine.max_pool2d_gather(x, offsets, geometry)}
            return {"indices": engine.max_pool2d_indices(offsets, plane, geometry)}

    def expected(self) -> Mapping[str, Tensor]:
        dtype, window = ARITHMETIC[self.dtype], WINDOWS[self.window]
        _, y, _, dx = (tensor.to(dtype) for tensor in exact_results(window, self.seed))
        offsets, indices = exact_offsets(window, self.seed)
        results = {"forward": {"y": y, "offsets": offsets}, "backward": {"dx": dx}, "gather": {"gathered": y}}
        return results.get(self.direction, {"indices": indices})


@dataclass(frozen=True)
class UnfoldCase(Case):
    """Unfold, or its transpose, fold."""

    op: ClassVar[str] = "unfold"
    direction: str  # "unfold" or "fold"
    dtype: str
    layout: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    seed: int = 0

    @property
    def job(self) -> str:
        return "unfold and fold"

    @property
    def geometry(self) -> tuple[tuple[int, int], ...]:
        return self.kernel, self.dilation, self.padding, self.stride  # in the order of F.unfold's parameters

    def exact(self) -> tuple[Tensor, Tensor]:
        """The image and its columns, in float64."""
        x = integers((2, 6, 11, 13), generator(self.seed, "unfold"), most=3)
        return x, F.unfold(x, *self.geometry)

    def compute(self, engine: Any, device: torch.device) -> dict[str, Tensor]:
        x, columns = (tensor.to(device, ARITHMETIC[self.dtype]) for tensor in self.exact())
        geometry = Pool2dGeometry(self.kernel, self.stride, self.padding, self.dilation)
        if self.direction == "unfold":
            return {"columns": engine.unfold(x.contiguous(memory_format=LAYOUTS[self.layout]), geometry)}
        return {"x": engine.fold(columns, (11, 13), geometry)}

    def expected(self) -> Mapping[str, Tensor]:
        _, columns = self.exact()
        if self.direction == "unfold":
            return {"columns": columns.to(ARITHMETIC[self.dtype])}
        return {"x": F.fold(columns, (11, 13), *self.geometry).to(ARITHMETIC[self.dtype])}


def cases(small: bool, seed: int) -> Iterator[Case]:
    """All cases; some of them are refused by their variant when they are computed."""
    names = {selector.function.removeprefix("max_pool2d_"): tuple(selector.by_name) for selector in SELECTORS.values()}
    for direction, dtype, layout, window in product(names, DTYPES, LAYOUTS, _ANY if small else WINDOWS):
        for variant in names[direction]:
            yield MaxPool2dCase(direction=direction, variant=variant, dtype=dtype, layout=layout, window=window, seed=seed)
    unfolds = (((3, 3), (2, 2), (1, 1), (1, 1)), ((2, 4), (1, 3), (0, 2), (2, 1)), ((1, 1), (1, 1), (0, 0), (1, 1)))
    for direction, dtype, layout, geometry in product(("unfold", "fold"), DTYPES, LAYOUTS, unfolds):
        if direction == "unfold" or layout == "nchw":
            kernel, stride, padding, dilation = geometry
            yield UnfoldCase(
                direction=direction,
                dtype=dtype,
                layout=layout,
                kernel=kernel,
                stride=stride,
                padding=padding,
                dilation=dilation,
                seed=seed,
            )
