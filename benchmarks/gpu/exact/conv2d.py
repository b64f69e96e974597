"""Exact cases of convolution: every direction, variant, tile, arithmetic and layout, over different geometries."""

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

from benchmarks.gpu.exact.case import ARITHMETIC, LAYOUTS, Case, RefusedError, generator, integers
from torch_unroll.engines.compiled.conv2d_call import problem_of
from torch_unroll.engines.interface import Conv2dGeometry
from torch_unroll.kernels import planning
from torch_unroll.kernels.cuda.conv2d import im2col
from torch_unroll.kernels.cuda.conv2d.problem import Conv2dProblem
from torch_unroll.kernels.cuda.conv2d.variants import SELECTORS, VARIANTS
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.planning import Configuration

DIRECTIONS = ("fprop", "dgrad", "wgrad")


class Geometry(NamedTuple):
    """The sizes of a convolution; `padding` is top, bottom, left, right."""

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
#: Geometries by name; the name says what the geometry tests.
GEOMETRIES = {
    "1x1": Geometry(N=3, C=64, H=13, W=11, K=96, R=1, S=1, padding=NO_PADDING),
    "3x3": Geometry(N=2, C=64, H=17, W=15, K=72, R=3, S=3),
    "3 channels": Geometry(N=2, C=3, H=23, W=19, K=16, R=7, S=7, stride=(2, 2), padding=(3, 3, 3, 3)),
    "16 channels": Geometry(N=2, C=16, H=17, W=15, K=24, R=3, S=3),
    "32 channels": Geometry(N=2, C=32, H=17, W=15, K=40, R=3, S=3),
    "40 channels": Geometry(N=2, C=40, H=9, W=9, K=24, R=3, S=3),
    "stride 2": Geometry(N=3, C=64, H=16, W=15, K=72, R=3, S=3, stride=(2, 2)),
    "stride 3, dilation 2": Geometry(N=2, C=32, H=19, W=23, K=40, R=3, S=3, stride=(3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)),
    "dilation 1x3": Geometry(N=2, C=48, H=14, W=17, K=56, R=2, S=3, stride=(1, 1), padding=(0, 1, 3, 3), dilation=(1, 3)),
    "residues without taps": Geometry(N=2, C=32, H=12, W=12, K=32, R=1, S=1, stride=(2, 2), padding=NO_PADDING),
    "groups": Geometry(N=2, C=64, H=9, W=9, K=64, R=3, S=3, groups=2),
    "depthwise": Geometry(N=2, C=24, H=11, W=9, K=24, R=3, S=3, groups=24),
    "wide padding": Geometry(N=2, C=16, H=5, W=5, K=16, R=5, S=5, padding=(4, 4, 4, 4)),
    "one pixel": Geometry(N=5, C=64, H=3, W=3, K=64, R=3, S=3, padding=NO_PADDING),
    "several column tiles": Geometry(N=2, C=64, H=31, W=29, K=320, R=3, S=3),
    "persistent blocks": Geometry(N=16, C=16, H=56, W=56, K=40, R=3, S=3),
    "deep": Geometry(N=1, C=512, H=7, W=7, K=128, R=3, S=3),
    "one row of the filter": Geometry(N=4, C=64, H=9, W=12, K=80, R=1, S=5, padding=(0, 0, 2, 2)),
}
#: Smaller geometries for the emulator, also named after what they test.
SMALL_GEOMETRIES = {
    "1x1": Geometry(N=2, C=16, H=5, W=4, K=24, R=1, S=1, padding=NO_PADDING),
    "3x3": Geometry(N=1, C=16, H=6, W=5, K=16, R=3, S=3),
    "3 channels": Geometry(N=1, C=3, H=9, W=8, K=8, R=5, S=5, stride=(2, 2), padding=(2, 2, 2, 2)),
    "32 channels": Geometry(N=1, C=32, H=5, W=6, K=16, R=3, S=2, padding=(1, 1, 1, 0)),
    "64 channels": Geometry(N=1, C=64, H=4, W=5, K=32, R=2, S=2, padding=NO_PADDING),
    "40 channels": Geometry(N=1, C=40, H=4, W=4, K=8, R=2, S=2),
    "stride 2": Geometry(N=1, C=16, H=7, W=8, K=16, R=3, S=3, stride=(2, 2)),
    "stride 3, dilation 2": Geometry(N=1, C=16, H=9, W=8, K=8, R=2, S=3, stride=(3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)),
    "residues without taps": Geometry(N=1, C=16, H=6, W=6, K=16, R=1, S=1, stride=(2, 2), padding=NO_PADDING),
    "groups": Geometry(N=1, C=32, H=4, W=5, K=32, R=3, S=3, groups=2),
    "depthwise": Geometry(N=1, C=6, H=5, W=6, K=6, R=3, S=3, groups=6),
    "wide padding": Geometry(N=1, C=16, H=3, W=3, K=8, R=3, S=3, padding=(2, 2, 2, 2)),
    "one pixel": Geometry(N=2, C=16, H=2, W=2, K=16, R=2, S=2, padding=NO_PADDING),
    "several column tiles": Geometry(N=1, C=16, H=4, W=4, K=136, R=1, S=1, padding=NO_PADDING),
    "deep": Geometry(N=1, C=128, H=3, W=3, K=16, R=3, S=3),
}


class Inputs(NamedTuple):
    """Integers as float64 on the CPU; dy has the shape of y."""

    x: Tensor
    w: Tensor
    bias: Tensor
    dy: Tensor


@cache
def inputs(geometry: Geometry, seed: int) -> Inputs:
    """The inputs of all cases of a geometry."""
    draw = generator(seed, "conv2d", *geometry)
    x = integers((geometry.N, geometry.C, geometry.H, geometry.W), draw)
    w = integers((geometry.K, geometry.C // geometry.groups, geometry.R, geometry.S), draw)
    bias = integers((geometry.K,), draw, most=3)
    return Inputs(x=x, w=w, bias=bias, dy=integers(tuple(convolve(geometry, x, w).shape), draw))


def convolve(geometry: Geometry, x: Tensor, w: Tensor) -> Tensor:
    """Computes a convolution with torch, without a bias."""
    top, bottom, left, right = geometry.padding
    return F.conv2d(F.pad(x, (left, right, top, bottom)), w, None, geometry.stride, 0, geometry.dilation, geometry.groups)


@cache
def _exact(geometry: Geometry, direction: str, seed: int) -> Tensor:
    """Computes the result of a direction with torch on the CPU in float64, without the bias."""
    x, w, _, dy = inputs(geometry, seed)
    if direction == "fprop":
        return convolve(geometry, x, w)
    variable = (x if direction == "dgrad" else w).detach().requires_grad_()
    y = convolve(geometry, variable, w) if direction == "dgrad" else convolve(geometry, x, variable)
    (gradient,) = torch.autograd.grad(y, variable, dy)
    return gradient


@dataclass(frozen=True)
class Conv2dCase(Case):
    """One direction of a convolution by one variant, tile and number of splits.

    `wide` makes im2col compute positions in 64 bits, which only large tensors need.
    """

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
        geometry = Conv2dGeometry(sizes.stride, sizes.padding, sizes.dilation, sizes.groups)
        if hasattr(engine, "launcher"):
            problem = problem_of(self.direction, x, w, dy, geometry, precision)
            self._require(problem, engine.launcher.properties(device))
        with _forced(Configuration(self.variant, self.tile, self.splits), self.wide):
            if self.direction == "fprop":
                return {"y": engine.conv2d_fprop(x, w, bias, geometry, precision)}
            if self.direction == "dgrad":
                return {"dx": engine.conv2d_dgrad(dy, w, (sizes.H, sizes.W), geometry, precision)}
            return {"dw": engine.conv2d_wgrad(dy, x, (sizes.R, sizes.S), geometry, precision)}

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
    """Forces a configuration and, if `wide`, 64-bit positions in im2col, for all calls made within the context."""
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
    """A problem in this direction and arithmetic, from which the tiles of each variant are looked up."""
    x = torch.empty((2, 64, 9, 9), dtype=ARITHMETIC[arithmetic]).contiguous(memory_format=torch.channels_last)
    w = torch.empty((64, 64, 3, 3), dtype=x.dtype).contiguous(memory_format=torch.channels_last)
    geometry = Conv2dGeometry((1, 1), (1, 1, 1, 1), (1, 1), 1)
    return problem_of(direction, x, w, x, geometry, "tf32" if arithmetic == "tf32" else "ieee")


def cases(small: bool, seed: int) -> Iterator[Conv2dCase]:
    """All cases; some of them are refused by their variant when they are computed."""
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
                    yield Conv2dCase(
                        direction=direction,
                        variant=variant.name,
                        tile=tile,
                        splits=splits,
                        arithmetic=arithmetic,
                        layout=layout,
                        geometry=geometry,
                        bias=bias,
                        wide=wide,
                        small=small,
                        seed=seed,
                    )
