"""Convolution's rows of the kernel table, and the choice and launch plans of its variants.

A plan depends on the problem and the device alone, never on data, and is computed once for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...table import CPP_TYPES, DTYPES, Kernel, LaunchConfig, LaunchPlan, instantiate
from .problem import ITEM_BYTES, Conv2dProblem, Walks, dgrad_walks, fprop_walks, sum_bytes, wgrad_walks

#: Bytes of workspace that one call may take: half of it for columns or packed images, of which as many are made at once as fit,
#: though never less than one; half for wgrad's splits, of which there is never less than one. A packed filter comes on top.
workspace_limit = 256 << 20
#: Elements up to which a gather divides 32-bit indices.
most_int32 = 2**31


_PROBLEM_BYTES = 512  # kProblemBytes of problems.cuh


def _ceil_divide(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Tile:
    """`Tile` of implicit_gemm.cuh: rows and columns of the result per block, depth per step, rows and columns per thread."""

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int

    @property
    def threads(self) -> int:
        """Per block."""
        return self.rows // self.thread_rows * (self.columns // self.thread_columns)

    @property
    def text(self) -> str:
        """As C++."""
        return f"Tile<{self.rows}, {self.columns}, {self.depth}, {self.thread_rows}, {self.thread_columns}>"

    def shared_bytes(self, dtype: str) -> int:
        """sizeof(ImplicitGemmMemory): the problem; coordinates; two stages of both tiles, a line padded by 16 bytes."""
        item = sum_bytes(dtype)
        used = 16 * (self.rows + self.columns) + 2 * self.depth * ((self.rows + self.columns) * item + 32)
        return _PROBLEM_BYTES * (1 + _ceil_divide(used, _PROBLEM_BYTES))


@dataclass(frozen=True)
class MmaTile:
    """`MmaTile` of implicit_gemm_mma.cuh: rows and columns of the result per block, warps down and across."""

    rows: int
    columns: int
    warps_down: int
    warps_across: int

    @property
    def threads(self) -> int:
        """Per block."""
        return 32 * self.warps_down * self.warps_across

    @property
    def text(self) -> str:
        """As C++."""
        return f"MmaTile<{self.rows}, {self.columns}, {self.warps_down}, {self.warps_across}>"

    def depth(self, dtype: str) -> int:
        """Per step: four pieces of 16 bytes."""
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
    mma = "_mma" if isinstance(tile, MmaTile) else ""
    return Kernel(f"conv2d/implicit_gemm{mma}.cuh", f"conv2d_{direction}{mma}_kernel", (cpp, tile.text, *epilogue))


def _sum_image_splits_kernel(dtype: str) -> Kernel:
    cpp = CPP_TYPES[dtype]
    return Kernel("conv2d/split_k.cuh", "conv2d_sum_image_splits_kernel", (cpp, f"BiasEpilogue<{cpp}>"))


DIRECTIONS = ("fprop", "dgrad", "wgrad")
_types = tuple(CPP_TYPES.values())
_mma_types = tuple(CPP_TYPES[dtype] for dtype in _MMA_DTYPES)
KERNELS = (
    *(_gemm_kernel(direction, dtype, tile) for dtype in DTYPES for tile in _TILES[dtype] for direction in DIRECTIONS),
    *(_gemm_kernel(direction, dtype, tile) for dtype in _MMA_DTYPES for tile in _MMA_TILES for direction in DIRECTIONS),
    *instantiate("conv2d/transpose.cuh", "pack_channels_kernel", _mma_types),
    *instantiate("conv2d/split_k.cuh", "conv2d_sum_splits_kernel", _types),
    *(_sum_image_splits_kernel(dtype) for dtype in DTYPES),
    *instantiate("conv2d/im2col.cuh", "im2col_kernel", _types, ("int32_t", "int64_t")),
    *instantiate("conv2d/im2col.cuh", "col2im_kernel", _types, ("int32_t", "int64_t")),
)


@dataclass(frozen=True)
class GemmPlan:
    """One product: how it is launched and how it walks memory."""

    launch: LaunchPlan
    walks: Walks
    splits: int = 1
    pixels_per_split: int = 0


def _choose_tile(dtype: str, tensor: bool, rows: int, columns: int, parts: int, multiprocessors: int) -> Tile | MmaTile:
    """The largest that still gives every multiprocessor a block and is more than half used."""
    tiles: tuple[Tile | MmaTile, ...] = _MMA_TILES if tensor else _TILES[dtype]
    for tile in tiles:
        blocks = _ceil_divide(rows, tile.rows) * _ceil_divide(columns, tile.columns) * parts
        if blocks >= multiprocessors and columns * 2 > tile.columns and rows * 2 > tile.rows:
            return tile
    return tiles[-1]


def _gemm_launch(direction: str, dtype: str, tile: Tile | MmaTile, rows: int, columns: int, parts: int) -> LaunchPlan:
    blocks = _ceil_divide(rows, tile.rows) * _ceil_divide(columns, tile.columns) * parts
    config = LaunchConfig((blocks, 1, 1), (tile.threads, 1, 1), tile.shared_bytes(dtype))
    return LaunchPlan(_gemm_kernel(direction, dtype, tile), config, "tensor" if isinstance(tile, MmaTile) else "implicit")


def _piece(dtype: str, tensor: bool) -> int:
    return mma_piece(dtype) if tensor else piece(dtype)


@lru_cache(maxsize=4096)
def plan_fprop(problem: Conv2dProblem, tensor: bool, multiprocessors: int) -> GemmPlan:
    """y(pixel, K) = columns of x(pixel, tap) · filter(K, tap)."""
    K = problem.group_channels[1]
    rows = problem.N * problem.P * problem.Q
    tile = _choose_tile(problem.dtype, tensor, rows, K, problem.groups, multiprocessors)
    launch = _gemm_launch("fprop", problem.dtype, tile, rows, K, problem.groups)
    return GemmPlan(launch, fprop_walks(problem, _piece(problem.dtype, tensor)))


@lru_cache(maxsize=4096)
def plan_dgrad(problem: Conv2dProblem, tensor: bool, multiprocessors: int) -> GemmPlan:
    """dx(pixel, C) = columns of dy(pixel, tap) · filter(C, tap), once for each residue of the pixels modulo the stride."""
    C = problem.group_channels[0]
    (stride_h, stride_w), residues = problem.stride, problem.stride[0] * problem.stride[1]
    rows = problem.N * _ceil_divide(problem.H, stride_h) * _ceil_divide(problem.W, stride_w)
    tile = _choose_tile(problem.dtype, tensor, rows, C, problem.groups * residues, multiprocessors)
    launch = _gemm_launch("dgrad", problem.dtype, tile, rows, C, problem.groups * residues)
    return GemmPlan(launch, dgrad_walks(problem, _piece(problem.dtype, tensor)))


@lru_cache(maxsize=4096)
def plan_wgrad(problem: Conv2dProblem, tensor: bool, multiprocessors: int, limit: int, most_splits: int) -> GemmPlan:
    """Sums (splits, K, taps) of dy(K, pixel) · columns of x(tap, pixel), each over its own pixels.

    There are as many splits as give each multiprocessor two blocks, as long as a split has 16 steps and all fit `limit` bytes.
    """
    dtype, K, pixels = problem.dtype, problem.group_channels[1], problem.N * problem.P * problem.Q
    tile = _choose_tile(dtype, tensor, K, problem.taps, problem.groups * _ceil_divide(pixels, 1024), multiprocessors)
    depth = tile.depth(dtype) if isinstance(tile, MmaTile) else tile.depth
    blocks = _ceil_divide(K, tile.rows) * _ceil_divide(problem.taps, tile.columns) * problem.groups
    splits = min(
        _ceil_divide(2 * multiprocessors, blocks),
        _ceil_divide(pixels, 16 * depth),
        max(1, limit // (problem.K * problem.taps * sum_bytes(dtype))),
        most_splits,
    )
    pixels_per_split = _ceil_divide(_ceil_divide(pixels, splits), depth) * depth
    splits = _ceil_divide(pixels, pixels_per_split)
    launch = _gemm_launch("wgrad", dtype, tile, K, problem.taps, problem.groups * splits)
    return GemmPlan(launch, wgrad_walks(problem, _piece(dtype, tensor), 16 // sum_bytes(dtype)), splits, pixels_per_split)


@lru_cache(maxsize=4096)
def plan_pack_channels(dtype: str, images: int, pixels: int, padded: int, groups: int) -> LaunchPlan:
    """`images` already padded; a block turns 32 pixels by 32 channels."""
    kernel = Kernel("conv2d/transpose.cuh", "pack_channels_kernel", (CPP_TYPES[dtype],))
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
def plan_im2col(dtype: str, name: str, elements: int, multiprocessors: int) -> LaunchPlan:
    """`im2col` with one thread for each of N·C·P·Q elements, or `col2im` for each of N·C·H·W; at most 64 blocks a
    multiprocessor, which stride over the rest."""
    blocks = min(_ceil_divide(elements, _IM2COL_THREADS), 64 * multiprocessors)
    index = "int32_t" if elements + 64 * multiprocessors * _IM2COL_THREADS < most_int32 else "int64_t"
    kernel = Kernel("conv2d/im2col.cuh", f"{name}_kernel", (CPP_TYPES[dtype], index))
    return LaunchPlan(kernel, LaunchConfig((blocks, 1, 1), (_IM2COL_THREADS, 1, 1)), "gather")


# ---- variants: one predicate selects and explains ------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A way to compute a direction. `refuses` tells why it does not take a problem, None if it does."""

    name: str
    refuses: Callable[[Conv2dProblem], str | None]


def _index_limits(problem: Conv2dProblem) -> str | None:
    largest = max(problem.H * problem.W, problem.P * problem.Q, problem.taps, problem.K // problem.groups * problem.R * problem.S)
    return None if largest < 2**30 else f"one plane, or one filter, has {largest} elements; positions are counted in 30 bits"


def _tensor_cores(problem: Conv2dProblem) -> str | None:
    if problem.dtype == "float64":
        return "tensor cores multiply fp16, bf16 and TF32, not float64"
    if problem.dtype == "float32" and problem.precision != "tf32":
        return "float32 products are to be IEEE: torch.backends.cudnn.conv.fp32_precision = 'tf32' allows tensor cores"
    C, K = problem.group_channels
    if problem.groups > 1 and min(C, K) < 4:
        return f"groups of {C} and {K} channels would leave tensor cores multiplying padding"
    return _index_limits(problem)


TENSOR = Variant("tensor", _tensor_cores)
IMPLICIT = Variant("implicit", _index_limits)
EXPLICIT = Variant("explicit", _index_limits)
#: By direction, the preferred first.
VARIANTS: dict[str, tuple[Variant, ...]] = dict.fromkeys(DIRECTIONS, (TENSOR, IMPLICIT, EXPLICIT))


@lru_cache(maxsize=4096)
def choose(direction: str, problem: Conv2dProblem, forced: str | None = None) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The variant for a problem, the forced one or none if one is forced, and those passed over with their reasons.

    Raises:
        RuntimeError: none takes it.
    """
    passed_over: list[tuple[str, str]] = []
    for variant in VARIANTS[direction]:
        reason = variant.refuses(problem) if forced in (None, variant.name) else f"{forced} is asked for"
        if reason is None:
            return variant.name, tuple(passed_over)
        passed_over.append((variant.name, reason))
    reasons = "; ".join(f"{name}: {why}" for name, why in passed_over)
    raise RuntimeError(f"conv2d_{direction}: no variant takes {problem}: {reasons}")


def images_per_launch(bytes_per_image: int, pixels_per_image: Sequence[int], images: int, limit: int) -> int:
    """How many images one launch takes: workspace within the limit, but at least one image; pixels counted in 31 bits."""
    by_bytes = limit // bytes_per_image if bytes_per_image else images
    return max(1, min(images, by_bytes, (2**31 - 2**20) // max(pixels_per_image)))
