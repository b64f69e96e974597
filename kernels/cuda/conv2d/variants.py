"""Convolution's rows of the kernel table, and the choice and launch plans of its variants.

A plan depends on the problem and the device alone, never on data, and is computed once for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...table import CPP_TYPES, DTYPES, Kernel, LaunchConfig, LaunchPlan, instantiate
from .problem import Conv2dProblem, Walks, dgrad_walks, fprop_walks, sum_bytes, wgrad_walks

#: Bytes of workspace that one call may take, in chunks of the batch where it would need more. Never less than one image's.
workspace_limit = 256 << 20


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


_LARGE, _SMALL, _DOUBLE = Tile(128, 128, 8, 8, 8), Tile(64, 64, 16, 4, 4), Tile(64, 64, 8, 4, 4)
#: Large first. 16-bit types have one: tensor cores are their first choice.
_TILES = {"float16": (_SMALL,), "bfloat16": (_SMALL,), "float32": (_LARGE, _SMALL), "float64": (_DOUBLE,)}
#: Elements of a piece: what a thread moves of one operand in one step, at most 16 bytes.
_PIECE = {"float16": 4, "bfloat16": 4, "float32": 4, "float64": 2}
_GEMM = "conv2d/implicit_gemm.cuh"
_IM2COL_THREADS = 256


def _gemm_kernel(name: str, dtype: str, tile: Tile) -> Kernel:
    cpp = CPP_TYPES[dtype]
    epilogue = {"fprop": (f"BiasEpilogue<{cpp}>",), "dgrad": (f"NoEpilogue<{cpp}>",), "wgrad": ()}[name]
    return Kernel(_GEMM, f"conv2d_{name}_kernel", (cpp, tile.text, *epilogue))


_types = tuple(CPP_TYPES.values())
KERNELS = (
    *(_gemm_kernel(name, dtype, tile) for dtype in DTYPES for tile in _TILES[dtype] for name in ("fprop", "dgrad", "wgrad")),
    *instantiate("conv2d/split_k.cuh", "conv2d_sum_splits_kernel", _types),
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


def _choose_tile(dtype: str, rows: int, columns: int, parts: int, multiprocessors: int) -> Tile:
    """The largest that still gives every multiprocessor a block and is at least half used."""
    for tile in _TILES[dtype]:
        blocks = _ceil_divide(rows, tile.rows) * _ceil_divide(columns, tile.columns) * parts
        if blocks >= multiprocessors and columns * 2 > tile.columns and rows * 2 > tile.rows:
            return tile
    return _TILES[dtype][-1]


def _gemm_launch(name: str, dtype: str, tile: Tile, rows: int, columns: int, parts: int) -> LaunchPlan:
    blocks = _ceil_divide(rows, tile.rows) * _ceil_divide(columns, tile.columns) * parts
    config = LaunchConfig((blocks, 1, 1), (tile.threads, 1, 1), tile.shared_bytes(dtype))
    return LaunchPlan(_gemm_kernel(name, dtype, tile), config, "implicit")


@lru_cache(maxsize=4096)
def plan_fprop(problem: Conv2dProblem, multiprocessors: int) -> GemmPlan:
    """y(pixel, K) = columns of x(pixel, tap) · filter(K, tap)."""
    K = problem.group_channels[1]
    rows = problem.N * problem.P * problem.Q
    tile = _choose_tile(problem.dtype, rows, K, problem.groups, multiprocessors)
    launch = _gemm_launch("fprop", problem.dtype, tile, rows, K, problem.groups)
    return GemmPlan(launch, fprop_walks(problem, _PIECE[problem.dtype]))


@lru_cache(maxsize=4096)
def plan_dgrad(problem: Conv2dProblem, multiprocessors: int) -> GemmPlan:
    """dx(pixel, C) = columns of dy(pixel, tap) · filter(C, tap), once for each residue of the pixels modulo the stride."""
    C = problem.group_channels[0]
    (stride_h, stride_w), residues = problem.stride, problem.stride[0] * problem.stride[1]
    rows = problem.N * _ceil_divide(problem.H, stride_h) * _ceil_divide(problem.W, stride_w)
    tile = _choose_tile(problem.dtype, rows, C, problem.groups * residues, multiprocessors)
    launch = _gemm_launch("dgrad", problem.dtype, tile, rows, C, problem.groups * residues)
    return GemmPlan(launch, dgrad_walks(problem, _PIECE[problem.dtype]))


@lru_cache(maxsize=4096)
def plan_wgrad(problem: Conv2dProblem, multiprocessors: int, limit: int, most_splits: int) -> GemmPlan:
    """Sums (splits, K, taps) of dy(K, pixel) · columns of x(tap, pixel), each over its own pixels.

    There are as many splits as give each multiprocessor two blocks, as long as a split has 16 steps and all fit `limit` bytes.
    """
    K, pixels = problem.group_channels[1], problem.N * problem.P * problem.Q
    tile = _choose_tile(problem.dtype, K, problem.taps, problem.groups * _ceil_divide(pixels, 1024), multiprocessors)
    blocks = _ceil_divide(K, tile.rows) * _ceil_divide(problem.taps, tile.columns) * problem.groups
    splits = min(
        _ceil_divide(2 * multiprocessors, blocks),
        _ceil_divide(pixels, 16 * tile.depth),
        max(1, limit // (problem.K * problem.taps * sum_bytes(problem.dtype))),
        most_splits,
    )
    pixels_per_split = _ceil_divide(_ceil_divide(pixels, splits), tile.depth) * tile.depth
    splits = _ceil_divide(pixels, pixels_per_split)
    launch = _gemm_launch("wgrad", problem.dtype, tile, K, problem.taps, problem.groups * splits)
    walks = wgrad_walks(problem, _PIECE[problem.dtype], 16 // sum_bytes(problem.dtype))
    return GemmPlan(launch, walks, splits, pixels_per_split)


@lru_cache(maxsize=4096)
def plan_sum_splits(dtype: str, K: int, taps: int) -> LaunchPlan:
    """Adds the splits of wgrad in their order."""
    kernel = Kernel("conv2d/split_k.cuh", "conv2d_sum_splits_kernel", (CPP_TYPES[dtype],))
    return LaunchPlan(kernel, LaunchConfig((K * _ceil_divide(taps, 256), 1, 1), (256, 1, 1)), "sum_splits")


@lru_cache(maxsize=4096)
def plan_im2col(dtype: str, name: str, elements: int, multiprocessors: int) -> LaunchPlan:
    """`im2col` with one thread for each of N·C·P·Q elements, or `col2im` for each of N·C·H·W; at most 64 blocks a
    multiprocessor, which stride over the rest."""
    blocks = min(_ceil_divide(elements, _IM2COL_THREADS), 64 * multiprocessors)
    index = "int32_t" if elements + 64 * multiprocessors * _IM2COL_THREADS < 2**31 else "int64_t"
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


IMPLICIT = Variant("implicit", _index_limits)
EXPLICIT = Variant("explicit", _index_limits)
#: By direction, the preferred first.
VARIANTS: dict[str, tuple[Variant, ...]] = dict.fromkeys(("fprop", "dgrad", "wgrad"), (IMPLICIT, EXPLICIT))


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
