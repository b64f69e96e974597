"""The sizes of pieces and of padded channels, and launch plans of the kernel in `pack_channels.cuh`."""

from __future__ import annotations

from functools import lru_cache

from ...arithmetic import ceil_divide, round_up
from ...dtypes import CPP_TYPES, ITEM_BYTES
from ...table import Kernel, LaunchConfig, LaunchPlan, instantiate

#: The dtypes of the variants mma and wgmma.
DTYPES = ("float16", "bfloat16", "float32")
_TILE, _THREADS = 32, 256  # kPackTile; kPackTile · kPackRows

KERNELS = tuple(instantiate("conv2d/pack_channels.cuh", "pack_channels_kernel", [CPP_TYPES[dtype] for dtype in DTYPES]))


def piece(dtype: str) -> int:
    """Returns how many elements make a piece of 16 bytes, which tensor-core variants copy as a whole."""
    return 16 // ITEM_BYTES[dtype]


def padded(channels: int, dtype: str) -> int:
    """Returns the channels of a group once they are padded to whole pieces."""
    return round_up(channels, piece(dtype))


@lru_cache(maxsize=4096)
def plan_pack_channels(dtype: str, images: int, pixels: int, channels: int, groups: int) -> LaunchPlan:
    """Plans the packing of `images` images with `channels` channels in each group, both counted after padding.

    A block transposes 32 pixels by 32 channels.
    """
    blocks = images * groups * ceil_divide(pixels, _TILE) * ceil_divide(channels, _TILE)
    config = LaunchConfig(grid=(blocks, 1, 1), block=(_THREADS, 1, 1), shared_bytes=_TILE * (_TILE + 1) * ITEM_BYTES[dtype])
    kernel = Kernel("conv2d/pack_channels.cuh", "pack_channels_kernel", (CPP_TYPES[dtype],))
    return LaunchPlan(kernel, config, "pack_channels")
