"""How much of the work a block of the staged variant takes: what fits in shared memory, and what keeps the GPU full."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .pooling import OFFSET_BYTES, Device, Pooling

STAGED_BYTES = 16 << 10  # of input a block stages: seven blocks share an SM, so that some load while others compute


class Share(NamedTuple):
    """A staged block's share of the work, and the shared memory it takes."""

    planes: int
    rows: int
    shared_bytes: int
    items: int


def _region(elements: int, item_bytes: int) -> int:
    """`region_behind` of dense.cuh."""
    return -(-(elements * item_bytes + 16) // 16) * 16


def stage_bytes(pooling: Pooling, item_bytes: int, device: Device) -> int:
    """The input a block stages: less than STAGED_BYTES where that would leave multiprocessors without two blocks each."""
    total = pooling.N * pooling.C * pooling.H * pooling.W * item_bytes
    return min(STAGED_BYTES, max(total // (2 * device.multiprocessors), 2 << 10))


def forward_share(pooling: Pooling, item_bytes: int, device: Device) -> Share | None:
    x_row, y_row, offset_bytes = pooling.W * pooling.inner, pooling.Q * pooling.inner, OFFSET_BYTES[pooling.offset]
    reach = (pooling.window[0] - 1) * pooling.dilation[0] + 1

    def share(planes: int, rows: int) -> Share:
        x_rows = planes * pooling.H if rows == pooling.P else min(pooling.H, (rows - 1) * pooling.stride[0] + reach)
        y_count = planes * rows * y_row
        shared = _region(x_rows * x_row, item_bytes) + _region(y_count, item_bytes) + _region(y_count, offset_bytes)
        return Share(planes, rows, shared, planes * -(-rows // pooling.strip) * y_row)

    stage = stage_bytes(pooling, item_bytes, device)
    fitting = (stage // (x_row * item_bytes) - reach) // pooling.stride[0] + 1
    band = max(fitting, -(-reach // pooling.stride[0]))  # at least as much work as halo
    return _best_share(pooling, share, pooling.H * x_row * item_bytes, stage, pooling.P, band, device)


def backward_share(pooling: Pooling, item_bytes: int, device: Device) -> Share | None:
    x_row, y_row, offset_bytes = pooling.W * pooling.inner, pooling.Q * pooling.inner, OFFSET_BYTES[pooling.offset]
    reach = (pooling.window[0] - 1) * pooling.dilation[0]
    block_rows, blocks = pooling.pixel_blocks(pooling.H, 0), pooling.pixel_blocks(pooling.W, 1)
    pixels = 1 if pooling.compiled_window == "AnyWindow" else pooling.stride[0]

    def share(planes: int, rows: int) -> Share:
        whole = rows == block_rows
        y_rows = planes * pooling.P if whole else min(pooling.P, -(-(rows * pixels + reach) // pooling.stride[0]))
        x_rows = planes * pooling.H if whole else min(pooling.H, rows * pixels)
        shared = _region(y_rows * y_row, item_bytes) + _region(y_rows * y_row, offset_bytes) + _region(x_rows * x_row, item_bytes)
        return Share(planes, rows, shared, planes * -(-rows // pooling.strip) * blocks * pooling.inner)

    stage = stage_bytes(pooling, item_bytes, device)
    band = max(stage // (x_row * item_bytes * pixels), -(-(reach + 1) // pixels))  # at least as much work as halo
    return _best_share(pooling, share, pooling.H * x_row * item_bytes, stage, block_rows, band, device)


def _best_share(
    pooling: Pooling, share: Callable[[int, int], Share], plane_bytes: int, stage: int, rows: int, band: int, device: Device
) -> Share | None:
    """Whole planes where one fits in `stage` bytes; else a band of `band` rows, in whole strips, halved until it fits in shared
    memory; None if not even a single strip does."""
    if plane_bytes <= stage:
        found = share(min(stage // plane_bytes, pooling.planes), rows)
        return found if found.shared_bytes <= device.shared_bytes else None
    strips = -(-max(band, 1) // pooling.strip)
    while strips:
        found = share(1, min(strips * pooling.strip, rows))
        if found.shared_bytes <= device.shared_bytes:
            return found
        strips //= 2
    return None
