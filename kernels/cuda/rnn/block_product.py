"""What `step` and `single_step` have in common: the tiles of block_product.cuh."""

from __future__ import annotations

from ...arithmetic import ceil_divide
from .tile import TILE_COLUMNS, TILE_ROWS, warp_sums_bytes

PRODUCT_WARPS = 8
THREADS = 32 * PRODUCT_WARPS
#: The tile of a block, units x samples -> the number of its column tiles, which is a template argument.
COLUMN_TILES = {f"{TILE_ROWS}x{TILE_COLUMNS * count}": count for count in (1, 4)}
NARROW, WIDE = COLUMN_TILES
_GRID_LIMIT = 65535  # blocks along y


def tiles(N: int) -> tuple[str, ...]:
    """Returns the tiles for a batch of N samples, the preferred first; a tile that needs too many blocks is left out."""
    preferred = (WIDE, NARROW) if N > TILE_COLUMNS else (NARROW,)
    return tuple(tile for tile in preferred if sample_blocks(N, tile) <= _GRID_LIMIT)


def columns(tile: str) -> int:
    """Returns the number of samples in a tile."""
    return TILE_COLUMNS * COLUMN_TILES[tile]


def sample_blocks(N: int, tile: str) -> int:
    """Returns the number of blocks along y, which divide the samples among them."""
    return ceil_divide(N, columns(tile))


def shared_bytes(dtype: str, tile: str) -> int:
    """Returns the bytes of shared memory of a block, which hold its warps' sums."""
    return warp_sums_bytes(PRODUCT_WARPS, TILE_ROWS, columns(tile), dtype)


def batch_limit(N: int) -> str | None:
    """Returns why a batch is too large even for a grid of wide tiles, or None if such a grid covers it."""
    most = _GRID_LIMIT * columns(WIDE)
    return f"expected at most {most} samples, got N = {N}" if most < N else None
