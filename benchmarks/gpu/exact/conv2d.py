"""Convolution: every direction, variant, tile and arithmetic, over geometries that each tell something, in both layouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.exact.case import ARITHMETIC, Case, RefusedError, generator, integers
from torch_unroll.engines.compiled.conv2d_call import problem_of
from torch_unroll.kernels import planning
from torch_unroll.kernels.cuda.conv2d import im2col
from torch_unroll.kernels.cuda.conv2d.problem import Conv2dProblem
from torch_unroll.kernels.cuda.conv2d.variants import SELECTORS, VARIANTS
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.planning import Configuration

DIRECTIONS = ("fprop", "dgrad", "wgrad")
LAYOUTS = {"channels_last": torch.channels_last, "nchw": torch.contiguous_format}


class Geometry(NamedTuple):
    """A convolution without its dtype; `padding` is top, bottom, left, right."""

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


NO_PADDING = (0, 0, 0, 0)
#: By what each is there for.
GEOMETRIES = {
    "1x1": Geometry(3, 64, 13, 11, 96, 1, 1, padding=NO_PADDING),
    "3x3": Geometry(2, 64, 17, 15, 72, 3, 3),
    "3 channels": Geometry(2, 3, 23, 19, 16, 7, 7, (2, 2), (3, 3, 3, 3)),
    "16 channels": Geometry(2, 16, 17, 15, 24, 3, 3),
    "32 channels": Geometry(2, 32, 17, 15, 40, 3, 3),
    "40 channels": Geometry(2, 40, 9, 9, 24, 3, 3),
    "stride 2": Geometry(3, 64, 16, 15, 72, 3, 3, (2, 2)),
    "stride 3, dilation 2": Geometry(2, 32, 19, 23, 40, 3, 3, (3, 3), (2, 2, 2, 2), (2, 2)),
    "dilation 1x3": Geometry(2, 48, 14, 17, 56, 2, 3, (1, 1), (0, 1, 3, 3), (1, 3)),
    "residues without taps": Geometry(2, 32, 12, 12, 32, 1, 1, (2, 2), NO_PADDING),
    "groups": Geometry(2, 64, 9, 9, 64, 3, 3, groups=2),
    "depthwise": Geometry(2, 24, 11, 9, 24, 3, 3, groups=24),
    "wide padding": Geometry(2, 16, 5, 5, 16, 5, 5, padding=(4, 4, 4, 4)),
    "one pixel": Geometry(5, 64, 3, 3, 64, 3, 3, padding=NO_PADDING),
    "several column tiles": Geometry(2, 64, 31, 29, 320, 3, 3),
    "persistent blocks": Geometry(16, 16, 56, 56, 40, 3, 3),
    "deep": Geometry(1, 512, 7, 7, 128, 3, 3),
    "one row of the filter": Geometry(4, 64, 9, 12, 80, 1, 5, padding=(0, 0, 2, 2)),
}
#: The same purposes at the emulator's speed.
SMALL_GEOMETRIES = {
    "1x1": Geometry(2, 16, 5, 4, 24, 1, 1, padding=NO_PADDING),
    "3x3": Geometry(1, 16, 6, 5, 16, 3, 3),
    "3 channels": Geometry(1, 3, 9, 8, 8, 5, 5, (2, 2), (2, 2, 2, 2)),
    "32 channels": Geometry(1, 32, 5, 6, 16, 3, 2, padding=(1, 1, 1, 0)),
    "64 channels": Geometry(1, 64, 4, 5, 32, 2, 2, padding=NO_PADDING),
    "40 channels": Geometry(1, 40, 4, 4, 8, 2, 2),
    "stride 2": Geometry(1, 16, 7, 8, 16, 3, 3, (2, 2)),
    "stride 3, dilation 2": Geometry(1, 16, 9, 8, 8, 2, 3, (3, 3), (2, 2, 2, 2), (2, 2)),
    "residues without taps": Geometry(1, 16, 6, 6, 16, 1, 1, (2, 2), NO_PADDING),
    "groups": Geometry(1, 32, 4, 5, 32, 3, 3, groups=2),
    "depthwise": Geometry(1, 6, 5, 6, 6, 3, 3, groups=6),
    "wide padding": Geometry(1, 16, 3, 3, 8, 3, 3, padding=(2, 2, 2, 2)),
    "one pixel": Geometry(2, 16, 2, 2, 16, 2, 2, padding=NO_PADDING),
    "several column tiles": Geometry(1, 16, 4, 4, 136, 1, 1, padding=NO_PADDING),
    "deep": Geometry(1, 128, 3, 3, 16, 3, 3),
}


class Inputs(NamedTuple):
    """Integers as float64 on the CPU; dy fits y."""

    x: Tensor
    w: Tensor
    bias: Tensor
    dy: Tensor


@cache
def inputs(geometry: Geometry, seed: int) -> Inputs:
    """Those of every case of a geometry."""
    draw = generator(seed, "conv2d", *geometry)
    x = integers((geometry.N, geometry.C, geometry.H, geometry.W), draw)
    w = integers((geometry.K, geometry.C // geometry.groups, geometry.R, geometry.S), draw)
    return Inputs(x, w, integers((geometry.K,), draw, most=3), integers(tuple(convolve(geometry, x, w).shape), draw))


def convolve(geometry: Geometry, x: Tensor, w: Tensor) -> Tensor:
    """By torch, without a bias."""
    top, bottom, left, right = geometry.padding
    return F.conv2d(F.pad(x, (left, right, top, bottom)), w, None, geometry.stride, 0, geometry.dilation, geometry.groups)


@cache
def _exact(geometry: Geometry, direction: str, seed: int) -> Tensor:
    """By torch on the CPU in float64, without the bias."""
    x, w, _, dy = inputs(geometry, seed)
    if direction == "fprop":
        return convolve(geometry, x, w)
    variable = (x if direction == "dgrad" else w).detach().requires_grad_()
    y = convolve(geometry, variable, w) if direction == "dgrad" else convolve(geometry, x, variable)
    (gradient,) = torch.autograd.grad(y, variable, dy)
    return gradient


@dataclass(frozen=True)
class Conv2dCase(Case):
    """One direction of a convolution by one choice; `wide` asks im2col for 64-bit positions, which small planes do not need."""

    op: ClassVar[str] = "conv2d"
    direction: str
    variant: str
    tile: str
    splits: int
    arithmetic: str
    layout: str
    geometry: str
    bias: bool = False
    wide: bool = False
    small: bool = False
    seed: int = 0

    @property
    def job(self) -> str:
        return f"conv2d {self.direction} {self.variant} {self.tile}"

    @property
    def sizes(self) -> Geometry:
        return (SMALL_GEOMETRIES if self.small else GEOMETRIES)[self.geometry]

    def compute(self, engine: Any, device: torch.device) -> dict[str, Tensor]:
        dtype, memory_format, sizes = ARITHMETIC[self.arithmetic], LAYOUTS[self.layout], self.sizes
        drawn = inputs(sizes, self.seed)
        x, w, dy = (tensor.to(device, dtype).contiguous(memory_format=memory_format) for tensor in (drawn.x, drawn.w, drawn.dy))
        bias = drawn.bias.to(device, dtype) if self.bias else None
        precision = "tf32" if self.arithmetic == "tf32" else "ieee"
        geometry = (sizes.stride, sizes.padding, sizes.dilation, sizes.groups)
        if hasattr(engine, "launcher"):
            problem = problem_of(self.direction, x, w, dy, geometry, precision)
            self._require(problem, engine.launcher.properties(device))
        with _forced(Configuration(self.variant, self.tile, self.splits), self.wide):
            if self.direction == "fprop":
                return {"y": engine.conv2d_fprop(x, w, bias, *geometry, precision)}
            if self.direction == "dgrad":
                return {"dx": engine.conv2d_dgrad(dy, w, (sizes.H, sizes.W), *geometry, precision)}
            return {"dw": engine.conv2d_wgrad(dy, x, (sizes.R, sizes.S), *geometry, precision)}

    def _require(self, problem: Conv2dProblem, gpu: Device) -> None:
        variant = SELECTORS[f"conv2d_{self.direction}"].variant(self.variant)
        if reason := variant.refuses(problem, gpu):
            raise RefusedError(reason)
        if self.tile not in variant.tiles(problem, gpu):
            raise RefusedError(f"no tile {self.tile} for this problem")
        if self.splits > 1 and variant.most_splits(problem, self.tile, gpu) < self.splits:
            raise RefusedError("not so many splits")

    def expected(self) -> Mapping[str, Tensor]:
        exact = _exact(self.sizes, self.direction, self.seed)
        if self.bias:
            exact = exact + inputs(self.sizes, self.seed).bias.view(1, -1, 1, 1)
        return {{"fprop": "y", "dgrad": "dx", "wgrad": "dw"}[self.direction]: exact.to(ARITHMETIC[self.arithmetic])}


@contextmanager
def _forced(configuration: Configuration, wide: bool) -> Iterator[None]:
    """Forces a configuration, and im2col's width of positions, for the calls within."""
    before = im2col.most_int32
    if wide:
        im2col.most_int32 = 0
    try:
        with planning.force("conv2d", configuration):
            yield
    finally:
        im2col.most_int32 = before


@lru_cache
def _example(direction: str, arithmetic: str) -> Conv2dProblem:
    """A problem that every variant of the arithmetic takes."""
    x = torch.empty((2, 64, 9, 9), dtype=ARITHMETIC[arithmetic]).contiguous(memory_format=torch.channels_last)
    w = torch.empty((64, 64, 3, 3), dtype=x.dtype).contiguous(memory_format=torch.channels_last)
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 1)
    return problem_of(direction, x, w, x, geometry, "tf32" if arithmetic == "tf32" else "ieee")


def cases(small: bool, seed: int) -> Iterator[Conv2dCase]:
    """All of them; what a variant does not take, it refuses when it is asked."""
    geometries = SMALL_GEOMETRIES if small else GEOMETRIES
    for direction in DIRECTIONS:
        for variant, arithmetic in product(VARIANTS, ARITHMETIC):
            for tile in variant.tile_table(_example(direction, arithmetic)):
                for geometry, layout, splits, bias, wide in product(
                    geometries,
                    LAYOUTS,
                    (1, 3),
                    (False, True) if direction == "fprop" else (False,),
                    (False, True) if variant.name == "im2col" else (False,),
                ):
                    named = (direction, variant.name, tile, splits, arithmetic, layout, geometry, bias, wide)
                    yield Conv2dCase(*named, small, seed)
