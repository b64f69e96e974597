"""Convolution's rows of the kernel table, and the launch plans of its portable variants.

A plan depends on the problem and on what was chosen for it (`choice.py`), never on data, and is computed once for each.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from math import prod

from ...dtypes import CPP_TYPES, DTYPES
from ...shapes import SizeError
from ...table import Kernel, LaunchConfig, LaunchPlan, instantiate
from . import problem, wgmma
from .problem import ITEM_BYTES, Conv2dProblem, CSplits, CWalks, Walk, Walks, dgrad_walks, fprop_walks, sum_bytes, wgrad_walks

#: Bytes of workspace that one call may take. Half of it is for columns or packed images,
#:     N · groups · (channels of a group, rounded up to 16 bytes) · H · W · bytes of an element
#: for each that has to be packed (C·R·S · P · Q instead for columns), made for as many images at a time as fit, though never for
#: less than one. Half of it is for the sums of split products,
#:     splits · elements of the result · 4 bytes (8 of float64),
#: of which wgrad has always one split, fprop and dgrad none unless they have several. A packed filter comes on top.
#: `choice.set_workspace_limit` changes it.
workspace_limit = 256 << 20
#: Elements and positions up to which a gather computes in 32 bits.
most_int32 = 2**31


_PROBLEM_BYTES = 512  # kProblemBytes of directions.cuh


def _ceil_divide(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Tile:
    """`Tile` of simt.cuh: rows and columns of the result per block, depth per step, rows and columns per thread."""

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int

    @property
    def name(self) -> str:
        """What a choice calls it."""
        return f"{self.rows}x{self.columns}"

    @property
    def threads(self) -> int:
        """Per block."""
        return self.rows // self.thread_rows * (self.columns // self.thread_columns)

    @property
    def resident(self) -> int:
        """Blocks of a multiprocessor."""
        return 2 if self.thread_rows * self.thread_columns <= 16 else 1

    @property
    def text(self) -> str:
        """As C++."""
        return f"SimtTile<{self.rows}, {self.columns}, {self.depth}, {self.thread_rows}, {self.thread_columns}>"

    def step(self, dtype: str) -> int:
        """Depth per step."""
        return self.depth

    def shared_bytes(self, dtype: str) -> int:
        """sizeof(ImplicitGemmMemory): the problem; coordinates; two stages of both tiles, a line padded by 16 bytes."""
        item = sum_bytes(dtype)
        used = 16 * (self.rows + self.columns) + 2 * self.depth * ((self.rows + self.columns) * item + 32)
        return _PROBLEM_BYTES * (1 + _ceil_divide(used, _PROBLEM_BYTES))


@dataclass(frozen=True)
class MmaTile:
    """`MmaTile` of mma.cuh: rows and columns of the result per block, warps down and across."""

    rows: int
    columns: int
    warps_down: int
    warps_across: int

    @property
    def name(self) -> str:
        """What a choice calls it."""
        return f"{self.rows}x{self.columns}"

    @property
    def threads(self) -> int:
        """Per block."""
        return 32 * self.warps_down * self.warps_across

    @property
    def resident(self) -> int:
        """Blocks of a multiprocessor."""
        return 512 // self.threads

    @property
    def text(self) -> str:
        """As C++."""
        return f"MmaTile<{self.rows}, {self.columns}, {self.warps_down}, {self.warps_across}>"

    def step(self, dtype: str) -> int:
        """Depth per step: four pieces of 16 bytes."""
        return 4 * mma_piece(dtype)

    def shared_bytes(self, dtype: str) -> int:
        """sizeof(MmaMemory): the problem; coordinates; four stages of 64 bytes a line, or the sums, padded."""
        stages = 4 * 64 * (self.rows + self.columns)
        sums = 4 * max(self.rows * (self.columns + 8), self.columns * (self.rows + 4))
        used = 16 * (self.rows + self.columns)
        used = _ceil_divide(used, 128) * 128 + max(stages, sums)
        return _PROBLEM_BYTES * (1 + _ceil_divide(used, _PROBLEM_BYTES))


_LARGE, _SMALL, _DOUBLE = Tile(128, 128, 8, 8, 8), Tile(64, 64, 16, 4, 4), Tile(64, 64, 8, 4, 4)
#: Large first. 16-bit types have one: tensor cores are their first choice.
_TILES = {"float16": (_SMALL,), "bfloat16": (_SMALL,), "float32": (_LARGE, _SMALL), "float64": (_DOUBLE,)}
_MMA_TILES = (MmaTile(128, 128, 2, 4), MmaTile(64, 64, 2, 2))
_MMA_DTYPES = ("float16", "bfloat16", "float32")
_IM2COL_THREADS = 256


def piece(dtype: str) -> int:
    """Elements that a thread of `implicit` moves of one operand in one step: at most 16 bytes."""
    return 2 if dtype == "float64" else 4


def mma_piece(dtype: str) -> int:
    """Elements of 16 bytes."""
    return 16 // ITEM_BYTES[dtype]


def _gemm_kernel(direction: str, dtype: str, tile: Tile | MmaTile) -> Kernel:
    cpp = CPP_TYPES[dtype]
    epilogue = {"fprop": (f"BiasEpilogue<{cpp}>",), "dgrad": (f"NoEpilogue<{cpp}>",), "wgrad": ()}[direction]
    variant = "mma" if isinstance(tile, MmaTile) else "simt"
    return Kernel(f"conv2d/{variant}.cuh", f"conv2d_{direction}_{variant}_kernel", (cpp, tile.text, *epilogue))


def _sum_image_splits_kernel(dtype: str) -> Kernel:
    cpp = CPP_TYPES[dtype]
    return Kernel("conv2d/split_k.cuh", "conv2d_sum_image_splits_kernel", (cpp, f"BiasEpilogue<{cpp}>"))


DIRECTIONS = ("fprop", "dgrad", "wgrad")
_types = tuple(CPP_TYPES.values())
_mma_types = tuple(CPP_TYPES[dtype] for dtype in _MMA_DTYPES)
KERNELS = (
    *(_gemm_kernel(direction, dtype, tile) for dtype in DTYPES for tile in _TILES[dtype] for direction in DIRECTIONS),
    *(_gemm_kernel(direction, dtype, tile) for dtype in _MMA_DTYPES for tile in _MMA_TILES for direction in DIRECTIONS),
    *wgmma.KERNELS,
    *instantiate("conv2d/pack_channels.cuh", "pack_channels_kernel", _mma_types),
    *instantiate("conv2d/split_k.cuh", "conv2d_sum_splits_kernel", _types),
    *(_sum_image_splits_kernel(dtype) for dtype in DTYPES),
    *instantiate("conv2d/im2col.cuh", "im2col_kernel", _types, ("int32_t", "int64_t")),
    *instantiate("conv2d/im2col.cuh", "col2im_kernel", _types, ("int32_t", "int64_t")),
)

#: By the name of the template.
PARAMETERS: dict[str, type[ctypes.Structure]] = {
    "conv2d_fprop_simt_kernel": problem.FpropParameters,
    "conv2d_dgrad_simt_kernel": problem.DgradParameters,
    "conv2d_wgrad_simt_kernel": problem.WgradParameters,
    "conv2d_fprop_mma_kernel": problem.FpropParameters,
    "conv2d_dgrad_mma_kernel": problem.DgradParameters,
    "conv2d_wgrad_mma_kernel": problem.WgradParameters,
    "conv2d_fprop_wgmma_kernel": wgmma.FpropParameters,
    "conv2d_dgrad_wgmma_kernel": wgmma.DgradParameters,
    "conv2d_wgrad_wgmma_kernel": wgmma.WgradParameters,
    "pack_channels_kernel": problem.PackChannelsParameters,
    "conv2d_sum_splits_kernel": problem.SumSplitsParameters,
    "conv2d_sum_image_splits_kernel": problem.SumImageSplitsParameters,
    "im2col_kernel": problem.Im2colParameters,
    "col2im_kernel": problem.Col2imParameters,
}


@dataclass(frozen=True)
class GemmPlan:
    """One product: how it is launched, how it walks memory, and how its depth is split."""

    launch: LaunchPlan
    walks: Walks
    splits: int
    split: int  # of wgrad: pixels of one split; of fprop and dgrad: what the depth of one is a multiple of

    @cached_property
    def c_walks(self) -> CWalks:
        """As parameter structs take them."""
        return self.walks.struct()

    @cached_property
    def undivided(self) -> CSplits:
        """What parameter structs of fprop and dgrad take where there is one split."""
        return CSplits(None, 1, self.split)


@cache
def tiles(dtype: str, tensor: bool) -> dict[str, Tile | MmaTile]:
    """By name, the largest first."""
    found: tuple[Tile | MmaTile, ...] = _MMA_TILES if tensor else _TILES[dtype]
    return {tile.name: tile for tile in found}


def split_evenly(depth: int, step: int, splits: int) -> tuple[int, int]:
    """The depth of one split in whole steps, and how many splits then have any."""
    each = _ceil_divide(_ceil_divide(depth, step), splits) * step
    return each, max(1, _ceil_divide(depth, each)) if depth else 1


def _gemm_launch(direction: str, dtype: str, tile: Tile | MmaTile, rows: int, columns: int, parts: int) -> LaunchPlan:
    blocks = _ceil_divide(rows, tile.rows) * _ceil_divide(columns, tile.columns) * parts
    if blocks >= 2**31:
        raise SizeError(f"conv2d_{direction}: expected sizes whose tiles number fewer than 2^31, got {blocks} tiles")
    config = LaunchConfig((blocks, 1, 1), (tile.threads, 1, 1), tile.shared_bytes(dtype))
    return LaunchPlan(_gemm_kernel(direction, dtype, tile), config, "tensor" if isinstance(tile, MmaTile) else "implicit")


def _piece(dtype: str, tensor: bool) -> int:
    return mma_piece(dtype) if tensor else piece(dtype)


def _split_walks(dtype: str, walks: Walks, channels: int, splits: int) -> Walks:
    """Sums of a split have their channels innermost, whatever the result has."""
    if splits == 1:
        return walks
    return walks._replace(c=Walk.COLUMN_PIECES if channels % (16 // sum_bytes(dtype)) == 0 else Walk.COLUMNS)


@lru_cache(maxsize=4096)
def plan_fprop(problem: Conv2dProblem, tensor: bool, tile_name: str, splits: int) -> GemmPlan:
    """y(pixel, K) = columns of x(pixel, tap) · filter(K, tap)."""
    dtype, K = problem.dtype, problem.group_channels[1]
    tile = tiles(dtype, tensor)[tile_name]
    splits = split_evenly(problem.taps, tile.step(dtype), splits)[1]
    launch = _gemm_launch("fprop", dtype, tile, problem.N * problem.P * problem.Q, K, problem.groups * splits)
    walks = _split_walks(dtype, fprop_walks(problem, _piece(dtype, tensor)), K, splits)
    return GemmPlan(launch, walks, splits, tile.step(dtype))


@lru_cache(maxsize=4096)
def plan_dgrad(problem: Conv2dProblem, tensor: bool, tile_name: str, splits: int) -> GemmPlan:
    """dx(pixel, C) = columns of dy(pixel, tap) · filter(C, tap), once for each residue of the pixels modulo the stride."""
    dtype, C = problem.dtype, problem.group_channels[0]
    tile = tiles(dtype, tensor)[tile_name]
    splits = split_evenly(problem.dgrad_taps, tile.step(dtype), splits)[1]
    stride_h, stride_w = problem.stride
    rows = problem.N * _ceil_divide(problem.H, stride_h) * _ceil_divide(problem.W, stride_w)
    launch = _gemm_launch("dgrad", dtype, tile, rows, C, problem.groups * prod(problem.residues) * splits)
    walks = _split_walks(dtype, dgrad_walks(problem, _piece(dtype, tensor)), C, splits)
    return GemmPlan(launch, walks, splits, tile.step(dtype))


@lru_cache(maxsize=4096)
def plan_wgrad(problem: Conv2dProblem, tensor: bool, tile_name: str, splits: int) -> GemmPlan:
    """Sums (splits, K, taps) of dy(K, pixel) · columns of x(tap, pixel), each over its own pixels."""
    dtype, K = problem.dtype, problem.group_channels[1]
    tile = tiles(dtype, tensor)[tile_name]
    pixels_per_split, splits = split_evenly(problem.N * problem.P * problem.Q, tile.step(dtype), splits)
    launch = _gemm_launch("wgrad", dtype, tile, K, problem.taps, problem.groups * splits)
    walks = wgrad_walks(problem, _piece(dtype, tensor), 16 // sum_bytes(dtype))
    return GemmPlan(launch, walks, splits, pixels_per_split)


@lru_cache(maxsize=4096)
def plan_pack_channels(dtype: str, images: int, pixels: int, padded: int, groups: int) -> LaunchPlan:
    """`images` already padded; a block turns 32 pixels by 32 channels."""
    kernel = Kernel("conv2d/pack_channels.cuh", "pack_channels_kernel", (CPP_TYPES[dtype],))
    blocks = images * groups * _ceil_divide(pixels, 32) * _ceil_divide(padded, 32)
    return LaunchPlan(kernel, LaunchConfig((blocks, 1, 1), (256, 1, 1), 32 * 33 * ITEM_BYTES[dtype]), "pack_channels")


@lru_cache(maxsize=4096)
def plan_sum_splits(dtype: str, K: int, taps: int) -> LaunchPlan:
    """Adds the splits of wgrad in their order."""
    kernel = Kernel("conv2d/split_k.cuh", "conv2d_sum_splits_kernel", (CPP_TYPES[dtype],))
    return LaunchPlan(kernel, LaunchConfig((K * _ceil_divide(taps, 256), 1, 1), (256, 1, 1)), "sum_splits")


@lru_cache(maxsize=4096)
def plan_sum_image_splits(dtype: str, pixels: int, channels: int) -> LaunchPlan:
    """Adds the splits of fprop or dgrad in their order; a block owns 32 pixels by 32 channels, and turns them where it must."""
    blocks = _ceil_divide(pixels, 32) * _ceil_divide(channels, 32)
    config = LaunchConfig((blocks, 1, 1), (256, 1, 1), 32 * 33 * ITEM_BYTES[dtype])
    return LaunchPlan(_sum_image_splits_kernel(dtype), config, "sum_splits")


@lru_cache(maxsize=4096)
def plan_im2col(problem: Conv2dProblem, name: str, multiprocessors: int) -> LaunchPlan:
    """`im2col` with one thread for each of N·C·P·Q elements, or `col2im` for each of N·C·H·W; at most 64 blocks a
    multiprocessor, which stride over the rest. Raises SizeError where an integer does not fit the kernels' parameters."""
    p = problem
    p.require_int32()
    if p.N >= 2**31:
        raise SizeError(f"input: expected fewer than 2^31 images, got N = {p.N}")
    elements = p.N * p.C * (p.P * p.Q if name == "im2col" else p.H * p.W)
    positions = (
        max(extent - 1 + pad, (outputs - 1) * stride + (taps - 1) * dilation)
        for extent, outputs, taps, stride, pad, dilation in zip(
            (p.H, p.W), (p.P, p.Q), (p.R, p.S), p.stride, p.pad, p.dilation, strict=True
        )
    )
    blocks = min(_ceil_divide(elements, _IM2COL_THREADS), 64 * multiprocessors)
    largest = max(elements + 64 * multiprocessors * _IM2COL_THREADS, *positions)
    index = "int32_t" if largest < most_int32 else "int64_t"
    kernel = Kernel("conv2d/im2col.cuh", f"{name}_kernel", (CPP_TYPES[p.dtype], index))
    return LaunchPlan(kernel, LaunchConfig((blocks, 1, 1), (_IM2COL_THREADS, 1, 1)), "gather")


def images_per_launch(bytes_per_image: int, pixels_per_image: Sequence[int], images: int, limit: int) -> int:
    """How many images one launch takes: workspace within the limit, but at least one image; pixels counted in 31 bits."""
    by_bytes = limit // bytes_per_image if bytes_per_image else images
    return max(1, min(images, by_bytes, (2**31 - 2**20) // max(pixels_per_image)))
