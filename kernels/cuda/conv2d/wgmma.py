"""Convolution by the copy engine and wgmma: tiles, rows of the kernel table, launch plans, parameter structs."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

from ...dtypes import CPP_TYPES
from ...shapes import SizeError
from ...table import Kernel, LaunchConfig, LaunchPlan
from ...tensor_map import ITEM_BYTES, Pair, TensorMap
from .im2col_maps import Axis, Image, images
from .problem import CBiasEpilogue, CNoEpilogue, Conv2dProblem, Walk, dgrad_walks, fprop_walks

STEP_BYTES = 128  # kStepBytes of wgmma.cuh
MOST_RESIDUES = 16  # kMostResidues of directions_wgmma.cuh
DTYPES = ("float16", "bfloat16", "float32")


def _ceil_divide(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class WgmmaTile:
    """`WgmmaTile` of wgmma.cuh: rows and columns of the result per block, warpgroups down and across."""

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
        return ((100 << 10) if self.blocks == 2 else (200 << 10)) // ((self.rows + self.columns) * STEP_BYTES)

    @property
    def rate(self) -> float:
        """Share of the dense rate that shared memory allows, at 128 bytes a clock: in a step each 64 rows of a warpgroup read
        themselves and the warpgroup's columns, and the copies write all rows; a step of 64x64 takes 128 clocks."""
        rows, columns = self.rows // self.down, self.columns // self.across
        read = self.down * self.across * rows // 64 * (64 + columns) * STEP_BYTES
        written = (self.rows + self.columns) * STEP_BYTES
        return min(1.0, self.rows * self.columns / 32 / ((read + written) / 128))

    @property
    def shared_bytes(self) -> int:
        """sizeof(WgmmaMemory)."""
        chunk = 16 if self.blocks == 2 else 32
        sums = 4 * max(64 * (chunk + 8), chunk * 68)
        used = self.stages * ((self.rows + self.columns) * STEP_BYTES + 16) + self.down * self.across * (sums + 192)
        return _ceil_divide(used, 1024) * 1024


#: By name, as choices call them.
TILES = {
    "128x256": WgmmaTile(128, 256, 2, 1),
    "256x128": WgmmaTile(256, 128, 2, 1),
    "128x128": WgmmaTile(128, 128, 2, 1),
    "128x64": WgmmaTile(128, 64, 2, 1),
    "64x256": WgmmaTile(64, 256, 1, 2),
}
#: By direction. 64 columns serve few channels, 64 rows few pixels, or in wgrad few output channels.
TILES_OF = {
    "fprop": ("128x256", "256x128", "128x128", "128x64", "64x256"),
    "dgrad": ("128x256", "256x128", "128x128", "128x64", "64x256"),
    "wgrad": ("128x256", "256x128", "128x128", "64x256"),
}


def kernel(direction: str, dtype: str, tile: WgmmaTile) -> Kernel:
    """The row of the kernel table."""
    cpp = CPP_TYPES[dtype]
    epilogue = {"fprop": (f"BiasEpilogue<{cpp}>",), "dgrad": (f"NoEpilogue<{cpp}>",), "wgrad": ()}[direction]
    arguments = (cpp, tile.text, *epilogue)
    return Kernel("conv2d/directions_wgmma.cuh", f"conv2d_{direction}_wgmma_kernel", arguments, architecture="90a")


KERNELS = tuple(
    kernel(direction, dtype, TILES[tile])
    for dtype in DTYPES
    for direction, tiles in TILES_OF.items()
    if (direction, dtype) != ("wgrad", "float32")
    for tile in tiles
)


# ---- plans -------------------------------------------------------------------------------------------------------------------


def span(direction: str, dtype: str, channels: int) -> int:
    """Bytes of channels that one copy brings of a pixel: the fewest steps of a filter's worth, then the fewest copies.

    `channels`: of one group of the image that is gathered from.
    """
    item = ITEM_BYTES[dtype]
    return min((128, 64, 32), key=lambda each: (_ceil_divide(channels * item, each) * each, -each))


@dataclass(frozen=True, eq=False)
class WgmmaPlan:
    """One product: its launch, and what its parameters hold beside pointers and maps. Compared by identity, like launch plans."""

    problem: Conv2dProblem
    launch: LaunchPlan
    tile: WgmmaTile
    images: tuple[Image, ...]
    span: int
    splits: int
    steps_per_split: int
    tiles: int
    walk: Walk


def depth_channels(direction: str, problem: Conv2dProblem) -> int:
    """Of a group: those that are summed over, or, in wgrad, those of x."""
    return problem.group_channels[1 if direction == "dgrad" else 0]


def steps(direction: str, problem: Conv2dProblem) -> int:
    """Of 128 bytes of depth, of the residue that has most."""
    item = ITEM_BYTES[problem.dtype]
    if direction == "wgrad":
        return _ceil_divide(problem.N * problem.P * problem.Q * item, STEP_BYTES)
    channels = depth_channels(direction, problem)
    width = span(direction, problem.dtype, channels)
    taps = max(vertical.taps * horizontal.taps for vertical, horizontal in images(direction, problem))
    return _ceil_divide(taps * _ceil_divide(channels * item, width) * width, STEP_BYTES)


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
    residues = prod(problem.residues) if direction == "dgrad" else 1
    return _ceil_divide(rows, tile.rows) * _ceil_divide(columns, tile.columns) * problem.groups * residues


@lru_cache(maxsize=4096)
def plan(direction: str, problem: Conv2dProblem, tile_name: str, splits: int, multiprocessors: int) -> WgmmaPlan:
    """The launch of a problem whose channels come in whole pieces of 16 bytes; fewer splits than asked for, if steps run out."""
    tile, dtype = TILES[tile_name], problem.dtype
    all_steps = max(1, steps(direction, problem))
    steps_per_split = _ceil_divide(all_steps, splits)
    splits = _ceil_divide(all_steps, steps_per_split)
    tiles = count_tiles(direction, problem, tile) * splits
    if tiles >= 2**31:
        raise SizeError(f"conv2d_{direction}: expected sizes whose tiles number fewer than 2^31, got {tiles} tiles")
    config = LaunchConfig((min(tiles, tile.blocks * multiprocessors), 1, 1), (tile.threads, 1, 1), tile.shared_bytes)
    piece = 16 // ITEM_BYTES[dtype]
    if direction == "wgrad":
        walk = Walk.COLUMN_PIECES
    elif splits > 1:
        channels = problem.group_channels[0 if direction == "dgrad" else 1]
        walk = Walk.COLUMN_PIECES if channels % 4 == 0 else Walk.COLUMNS
    else:
        walk = (fprop_walks if direction == "fprop" else dgrad_walks)(problem, piece).c
    width = span(direction, dtype, depth_channels(direction, problem))
    launch = LaunchPlan(kernel(direction, dtype, tile), config, "hopper")
    return WgmmaPlan(problem, launch, tile, images(direction, problem), width, splits, steps_per_split, tiles, walk)


# ---- parameter structs, as in directions_wgmma.cuh ----------------------------------------------------------------------------


class CAxis(ctypes.Structure):
    """Mirror of Im2colAxis."""

    _fields_ = [(name, ctypes.c_int32) for name in Axis._fields]


class CImage(ctypes.Structure):
    """Mirror of Im2colImage."""

    _fields_ = [("map", TensorMap), ("vertical", CAxis), ("horizontal", CAxis)]


class COperandsInMemory(ctypes.Structure):
    """Mirror of OperandsInMemory."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("dy", "filter")),
        *((name, ctypes.c_int64 * 4) for name in ("dy_stride", "filter_stride")),
        *((name, ctypes.c_int32) for name in ("P", "Q")),
    ]


_IMAGE_INTEGERS = (
    *("N", "height", "width", "groups", "channels", "depth_channels", "stride_h", "stride_w"),
    *("span", "splits", "steps_per_split", "tiles", "walk"),
)


def _image_parameters(count: int, epilogue: type[ctypes.Structure]) -> type[ctypes.Structure]:
    """Mirror of Conv2dWgmmaParameters for so many images."""
    fields = [
        ("images", CImage * count),
        ("filter", TensorMap),
        ("result", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("stride", ctypes.c_int64 * 4),
        *((name, ctypes.c_int32) for name in _IMAGE_INTEGERS),
        ("operands", COperandsInMemory),
        ("epilogue", epilogue),
    ]
    return _on_64_bytes("Conv2dWgmmaParameters", fields)


def _on_64_bytes(name: str, fields: list[Any]) -> type[ctypes.Structure]:
    """A structure as long as C++ makes it, whose maps lie on 64 bytes."""
    size = ctypes.sizeof(type(name, (ctypes.Structure,), {"_fields_": fields}))
    padding = ("_padding", ctypes.c_uint8 * (-size % 64))
    return type(name, (ctypes.Structure,), {"_fields_": [*fields, padding], "__doc__": f"Mirror of {name} in the device code."})


FpropParameters = _image_parameters(1, CBiasEpilogue)
DgradParameters = _image_parameters(MOST_RESIDUES, CNoEpilogue)
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
