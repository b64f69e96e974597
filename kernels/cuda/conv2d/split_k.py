"""Cuts the depth of products into splits; plans the kernels of `split_k.cuh`, which add the splits' sums."""

from __future__ import annotations

from functools import lru_cache

from ...arithmetic import ceil_divide
from ...dtypes import CPP_TYPES, DTYPES, ITEM_BYTES
from ...table import Kernel, LaunchConfig, LaunchPlan

_THREADS = 256  # kSumSplitsThreads and kSumImageSplitsThreads
_TILE = 32  # kSumTile


def split_evenly(depth: int, step: int, splits: int) -> tuple[int, int]:
    """Returns the depth of one split, a multiple of `step`, and how many splits are then not empty, at least 1."""
    depth_per_split = ceil_divide(ceil_divide(depth, step), splits) * step
    return depth_per_split, max(1, ceil_divide(depth, depth_per_split)) if depth else 1


def _sum_splits_kernel(dtype: str) -> Kernel:
    return Kernel("conv2d/split_k.cuh", "conv2d_sum_splits_kernel", (CPP_TYPES[dtype],))


def _sum_image_splits_kernel(dtype: str) -> Kernel:
    cpp = CPP_TYPES[dtype]
    return Kernel("conv2d/split_k.cuh", "conv2d_sum_image_splits_kernel", (cpp, f"BiasEpilogue<{cpp}>"))


KERNELS = (
    *(_sum_splits_kernel(dtype) for dtype in DTYPES),
    *(_sum_image_splits_kernel(dtype) for dtype in DTYPES),
)


@lru_cache(maxsize=4096)
def plan_sum_splits(dtype: str, K: int, taps: int, with_bias: bool) -> LaunchPlan:
    """Plans the kernel that adds the splits of wgrad.

    A thread owns one tap of one of the K output channels or, in the last blocks, one element of the bias gradient.
    """
    blocks = K * ceil_divide(taps, _THREADS) + (ceil_divide(K, _THREADS) if with_bias else 0)
    config = LaunchConfig(grid=(blocks, 1, 1), block=(_THREADS, 1, 1))
    return LaunchPlan(_sum_splits_kernel(dtype), config, "sum_splits")


@lru_cache(maxsize=4096)
def plan_sum_image_splits(dtype: str, pixels: int, channels: int) -> LaunchPlan:
    """Plans the kernel that adds the splits of fprop or dgrad; a block owns 32 pixels by 32 channels."""
    config = LaunchConfig(
        grid=(ceil_divide(pixels, _TILE) * ceil_divide(channels, _TILE), 1, 1),
        block=(_THREADS, 1, 1),
        shared_bytes=_TILE * (_TILE + 1) * ITEM_BYTES[dtype],
    )
    return LaunchPlan(_sum_image_splits_kernel(dtype), config, "sum_splits")
