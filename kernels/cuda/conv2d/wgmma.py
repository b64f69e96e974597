"""Convolution by the copy engine and wgmma: tiles, what is refused, tensor maps and launch plans.

Positions are computed here, once for each problem, so that a kernel only adds: see wgmma_products.cuh.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import gcd
from typing import NamedTuple

from ...table import CPP_TYPES, Kernel, LaunchConfig, LaunchPlan
from ...tensor_map import ITEM_BYTES, Four, Pair, TensorMap, TensorMapSpec, Three
from .problem import Conv2dProblem, Walk, dgrad_walks, fprop_walks

_STEP_BYTES = 128  # kStepBytes of implicit_gemm_wgmma.cuh
_MOST_RESIDUES = 16  # kMostResidues of wgmma_products.cuh
_MOST_OFFSET = 255  # of a filter position, as the copy instruction holds it
DTYPES = ("float16", "bfloat16", "float32")


def _ceil_divide(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class WgmmaTile:
    """`WgmmaTile` of implicit_gemm_wgmma.cuh: rows and columns of the result per block, warpgroups down and across."""

    rows: int
    columns: int
    down: int
    across: int

    @property
    def text(self) -> str:
        """As C++."""
        return f"WgmmaTile<{self.rows}, {self.columns}, {self.down}, {self.across}>"

    @property
    def threads(self) -> int:
        """Per block: the multiplying warpgroups and the warp that fetches."""
        return 128 * self.down * self.across + 32

    @property
    def blocks(self) -> int:
        """Of a multiprocessor."""
        return 2 if self.rows + self.columns <= 256 else 1

    @property
    def stages(self) -> int:
        """Steps that are fetched ahead."""
        return ((100 << 10) if self.blocks == 2 else (200 << 10)) // ((self.rows + self.columns) * _STEP_BYTES)

    @property
    def shared_bytes(self) -> int:
        """sizeof(WgmmaMemory)."""
        chunk = 16 if self.blocks == 2 else 32
        sums = 4 * max(64 * (chunk + 8), chunk * 68)
        used = self.stages * ((self.rows + self.columns) * _STEP_BYTES + 16) + self.down * self.across * (sums + 192)
        return _ceil_divide(used, 1024) * 1024


#: By name, as choices call them.
TILES = {
    "128x256": WgmmaTile(128, 256, 2, 1),
    "256x128": WgmmaTile(256, 128, 2, 1),
    "128x128": WgmmaTile(128, 128, 2, 1),
    "128x64": WgmmaTile(128, 64, 2, 1),
    "64x256": WgmmaTile(64, 256, 1, 2),
}
_IMAGE_TILES = ("128x256", "256x128", "128x128", "128x64")
#: By direction. 64 rows are wgrad's where there are few output channels.
TILES_OF = {"fprop": _IMAGE_TILES, "dgrad": _IMAGE_TILES, "wgrad": ("128x256", "256x128", "128x128", "64x256")}


def kernel(direction: str, dtype: str, tile: WgmmaTile) -> Kernel:
    """The row of the kernel table."""
    cpp = CPP_TYPES[dtype]
    epilogue = {"fprop": (f"BiasEpilogue<{cpp}>",), "dgrad": (f"NoEpilogue<{cpp}>",), "wgrad": ()}[direction]
    arguments = (cpp, tile.text, *epilogue)
    return Kernel("conv2d/wgmma_products.cuh", f"conv2d_{direction}_wgmma_kernel", arguments, architecture="90a")


KERNELS = tuple(
    kernel(direction, dtype, TILES[tile])
    for dtype in DTYPES
    for direction, tiles in TILES_OF.items()
    if (direction, dtype) != ("wgrad", "float32")
    for tile in tiles
)


# ---- positions ---------------------------------------------------------------------------------------------------------------


class Axis(NamedTuple):
    """`Im2colAxis`: one dimension of an image that is gathered from; pixel i and tap t meet at start + i * up + t * step."""

    pixels: int
    start: int
    up: int
    taps: int
    step: int
    first: int
    every: int
    residue: int = 0

    def upper(self, extent: int) -> int:
        """The corner behind which a line of pixels ends, counted from the source's last position."""
        return self.start + (self.pixels - 1) * self.up - (extent - 1)

    @property
    def walked(self) -> bool:
        """Whether there is anything to fetch."""
        return self.pixels > 0 and self.taps > 0


def fprop_axis(pixels: int, taps: int, stride: int, pad: int, dilation: int) -> Axis:
    """Over x: every pixel of y meets every filter position."""
    return Axis(pixels, -pad, stride, taps, dilation, 0, 1)


def dgrad_axis(pixels: int, taps: int, stride: int, pad: int, dilation: int, residue: int) -> Axis:
    """Over dy, for the pixels of dx of one residue modulo the stride: each meets every (stride / gcd(stride, dilation))-th filter
    position, from the last one back, and some residues meet none (`dgrad_axis` of geometry.cuh derives it)."""
    of_residue = max(0, _ceil_divide(pixels - residue, stride))
    every = stride // gcd(stride, dilation)
    first = next((tap for tap in range(min(every, taps)) if (residue + pad - tap * dilation) % stride == 0), None)
    if first is None:
        return Axis(of_residue, 0, 1, 0, 0, 0, 0, residue)
    met, step = _ceil_divide(taps - first, every), every * dilation // stride
    last = first + (met - 1) * every
    return Axis(of_residue, (residue + pad - last * dilation) // stride, 1, met, step, last, -every, residue)


Image = tuple[Axis, Axis]  # vertical, horizontal


def images(direction: str, problem: Conv2dProblem) -> tuple[Image, ...]:
    """What is walked over: x, or dy once for each residue."""
    p = problem
    if direction != "dgrad":
        vertical = fprop_axis(p.P, p.R, p.stride[0], p.pad[0], p.dilation[0])
        return ((vertical, fprop_axis(p.Q, p.S, p.stride[1], p.pad[1], p.dilation[1])),)
    return tuple(
        (
            dgrad_axis(p.H, p.R, p.stride[0], p.pad[0], p.dilation[0], residue // p.stride[1]),
            dgrad_axis(p.W, p.S, p.stride[1], p.pad[1], p.dilation[1], residue % p.stride[1]),
        )
        for residue in range(p.stride[0] * p.stride[1])
    )


# ---- tensor maps: sizes and strides are torch's, (N, C, H, W) or (K, C, R, S); a row of a box is one whole span ----------------


def _innermost_first(sizes: Sequence[int], strides: Sequence[int], item: int) -> tuple[Four, Three]:
    """Extents and byte strides as maps have them. A dimension of one element is given the stride it would have if dense."""
    extents = (sizes[1], sizes[3], sizes[2], sizes[0])
    found: list[int] = []
    dense = _ceil_divide(sizes[1] * item, 16) * 16
    for extent, stride in zip(extents[1:], (strides[3], strides[2], strides[0]), strict=True):
        found.append(dense if extent == 1 else stride * item)
        dense = found[-1] * extent
    return extents, (found[0], found[1], found[2])


def image_map(
    dtype: str, sizes: Sequence[int], strides: Sequence[int], image: Image, channels: int, pixels: int, address: int = 0
) -> TensorMapSpec:
    """Boxes of some channels of some pixels of an image, channels contiguous."""
    vertical, horizontal = image
    extent, stride = _innermost_first(sizes, strides, ITEM_BYTES[dtype])
    return TensorMapSpec(
        *(address, dtype, extent, stride, channels * ITEM_BYTES[dtype]),
        element_stride=(1, horizontal.up, vertical.up, 1),
        lower=(horizontal.start, vertical.start),
        upper=(horizontal.upper(sizes[3]), vertical.upper(sizes[2])),
        channels=channels,
        pixels=pixels,
    )


def filter_map(
    dtype: str, sizes: Sequence[int], strides: Sequence[int], channels: int, rows: int, address: int = 0
) -> TensorMapSpec:
    """Boxes of one filter position: some channels of some rows, which are dimension 0."""
    extent, stride = _innermost_first(sizes, strides, ITEM_BYTES[dtype])
    return TensorMapSpec(address, dtype, extent, stride, channels * ITEM_BYTES[dtype], box=(channels, 1, 1, rows))


def as_it_is(height: int, width: int) -> Image:
    """The image of a 1x1 filter."""
    return fprop_axis(height, 1, 1, 0, 1), fprop_axis(width, 1, 1, 0, 1)


# ---- plans -------------------------------------------------------------------------------------------------------------------


def span(direction: str, dtype: str, channels: int) -> int:
    """Bytes of channels that one copy brings of a pixel: the fewest steps of a filter's worth, then the fewest copies.

    `channels`: of one group of the image that is gathered from.
    """
    item = ITEM_BYTES[dtype]
    return min((128, 64, 32), key=lambda each: (_ceil_divide(channels * item, each) * each, -each))


class HopperPlan(NamedTuple):
    """One product: its launch, and what its parameters hold beside pointers and maps."""

    launch: LaunchPlan
    tile: WgmmaTile
    images: tuple[Image, ...]
    span: int
    splits: int
    steps_per_split: int
    tiles: int
    walk: Walk


def _depth_channels(direction: str, problem: Conv2dProblem) -> int:
    """Of a group: those that are summed over, or, in wgrad, those of x."""
    return problem.group_channels[1 if direction == "dgrad" else 0]


def steps(direction: str, problem: Conv2dProblem) -> int:
    """Of 128 bytes of depth, of the residue that has most."""
    item = ITEM_BYTES[problem.dtype]
    if direction == "wgrad":
        return _ceil_divide(problem.N * problem.P * problem.Q * item, _STEP_BYTES)
    channels = _depth_channels(direction, problem)
    width = span(direction, problem.dtype, channels)
    taps = max(vertical.taps * horizontal.taps for vertical, horizontal in images(direction, problem))
    return _ceil_divide(taps * _ceil_divide(channels * item, width) * width, _STEP_BYTES)


def rows_and_columns(direction: str, problem: Conv2dProblem) -> Pair:
    """Of the result of one group and one residue."""
    C, K = problem.group_channels
    if direction == "fprop":
        return problem.N * problem.P * problem.Q, K
    if direction == "dgrad":
        stride_h, stride_w = problem.stride
        return problem.N * _ceil_divide(problem.H, stride_h) * _ceil_divide(problem.W, stride_w), C
    return K, problem.R * problem.S * padded_channels(problem.dtype, C)


def padded_channels(dtype: str, channels: int) -> int:
    """Of a filter position in wgrad's sums: whole blocks of columns."""
    per_block = span("wgrad", dtype, channels) // ITEM_BYTES[dtype]
    return _ceil_divide(channels, per_block) * per_block


def count_tiles(direction: str, problem: Conv2dProblem, tile: WgmmaTile) -> int:
    """Of one split."""
    rows, columns = rows_and_columns(direction, problem)
    residues = problem.stride[0] * problem.stride[1] if direction == "dgrad" else 1
    return _ceil_divide(rows, tile.rows) * _ceil_divide(columns, tile.columns) * problem.groups * residues


@lru_cache(maxsize=4096)
def plan(direction: str, problem: Conv2dProblem, tile_name: str, splits: int, multiprocessors: int) -> HopperPlan:
    """The launch of a problem whose channels come in whole pieces of 16 bytes; fewer splits than asked for, if steps run out."""
    tile, dtype = TILES[tile_name], problem.dtype
    all_steps = max(1, steps(direction, problem))
    steps_per_split = _ceil_divide(all_steps, splits)
    splits = _ceil_divide(all_steps, steps_per_split)
    tiles = count_tiles(direction, problem, tile) * splits
    config = LaunchConfig((min(tiles, tile.blocks * multiprocessors), 1, 1), (tile.threads, 1, 1), tile.shared_bytes)
    piece = 16 // ITEM_BYTES[dtype]
    if direction == "wgrad":
        walk = Walk.COLUMN_PIECES
    elif splits > 1:
        channels = problem.group_channels[0 if direction == "dgrad" else 1]
        walk = Walk.COLUMN_PIECES if channels % 4 == 0 else Walk.COLUMNS
    else:
        walk = (fprop_walks if direction == "fprop" else dgrad_walks)(problem, piece).c
    width = span(direction, dtype, _depth_channels(direction, problem))
    launch = LaunchPlan(kernel(direction, dtype, tile), config, "hopper")
    return HopperPlan(launch, tile, images(direction, problem), width, splits, steps_per_split, tiles, walk)


# ---- what is refused ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def refuses(direction: str, problem: Conv2dProblem) -> str | None:
    """Why a problem on a GPU of compute capability 9.0 is left to another variant; None if it is not."""
    p = problem
    if p.dtype == "float64":
        return "wgmma multiplies fp16, bf16 and TF32, not float64"
    if p.dtype == "float32" and p.precision != "tf32":
        return "float32 products are to be IEEE: torch.backends.cudnn.conv.fp32_precision = 'tf32' allows tensor cores"
    if p.dtype == "float32" and direction == "wgrad":
        return "wgmma takes TF32 with the depth contiguous only, and wgrad's are pixels"
    if direction == "dgrad" and p.stride[0] * p.stride[1] > _MOST_RESIDUES:
        return f"strides {p.stride} have {p.stride[0] * p.stride[1]} residues, the kernel's parameters hold {_MOST_RESIDUES} maps"
    item = ITEM_BYTES[p.dtype]
    channels = _depth_channels(direction, p)
    if p.groups > 1 and direction != "wgrad" and channels * item % 32:
        return f"a group's {channels} channels are no multiple of {32 // item}: a block of them would reach into the next group"
    for vertical, horizontal in images(direction, p):
        if not (vertical.walked and horizontal.walked):
            continue
        if (offset := max((axis.taps - 1) * axis.step for axis in (vertical, horizontal))) > _MOST_OFFSET:
            return f"the filter reaches over {offset} pixels, the copy engine's offsets over {_MOST_OFFSET}"
        if reason := _map_refused(direction, p, (vertical, horizontal)):
            return f"the copy engine does not take the image: {reason}"
    return None


def _map_refused(direction: str, problem: Conv2dProblem, image: Image) -> str | None:
    """Of the map of an image that has been packed."""
    p, item = problem, ITEM_BYTES[problem.dtype]
    piece = 16 // item
    channels, H, W = (p.K, p.P, p.Q) if direction == "dgrad" else (p.C, p.H, p.W)
    packed = p.groups * _ceil_divide(channels // p.groups, piece) * piece
    dense = (H * W * packed, 1, W * packed, packed)
    return image_map(
        p.dtype, (p.N, packed, H, W), dense, image, span(direction, p.dtype, packed // p.groups) // item, 64
    ).refused()


# ---- parameter structs, as in wgmma_products.cuh ----------------------------------------------------------------------------


class CAxis(ctypes.Structure):
    """Mirror of Im2colAxis."""

    _fields_ = [(name, ctypes.c_int32) for name in Axis._fields]


class CImage(ctypes.Structure):
    """Mirror of Im2colImage."""

    _fields_ = [("map", TensorMap), ("vertical", CAxis), ("horizontal", CAxis)]


_IMAGE_INTEGERS = (
    *("N", "height", "width", "groups", "channels", "depth_channels", "stride_h", "stride_w"),
    *("span", "splits", "steps_per_split", "tiles", "walk"),
)


@cache
def image_parameters(count: int) -> type[ctypes.Structure]:
    """Mirror of Conv2dWgmmaParameters for so many images, where an epilogue without fields, one byte, may as well be a pointer."""
    fields = [
        ("images", CImage * count),
        ("filter", TensorMap),
        ("result", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("stride", ctypes.c_int64 * 4),
        *((name, ctypes.c_int32) for name in _IMAGE_INTEGERS),
        ("bias", ctypes.c_void_p),
    ]
    return _on_64_bytes("Conv2dWgmmaParameters", fields)


def _on_64_bytes(name: str, fields: list[tuple[str, type]]) -> type[ctypes.Structure]:
    """A structure as long as C++ makes it, whose maps lie on 64 bytes."""
    size = ctypes.sizeof(type(name, (ctypes.Structure,), {"_fields_": fields}))
    padding = ("padding", ctypes.c_uint8 * (-size % 64))
    return type(name, (ctypes.Structure,), {"_fields_": [*fields, padding], "__doc__": f"Mirror of {name} in the device code."})


WgradParameters = _on_64_bytes(
    "Conv2dWgradWgmmaParameters",
    [
        ("x", CImage),
        ("dy", TensorMap),
        ("sums", ctypes.c_void_p),
        *(
            (name, ctypes.c_int32)
            for name in ("N", "groups", "C", "K", "span", "splits", "steps_per_split", "tiles", "accumulate")
        ),
    ],
)
