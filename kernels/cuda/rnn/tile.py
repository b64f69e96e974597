"""Extents of the tile of a matrix product that a warp computes, as in tile.cuh and warp_sums.cuh."""

from __future__ import annotations

from ...dtypes import CPP_TYPES, accumulator_bytes

TILE_ROWS, TILE_COLUMNS = 16, 8  # hidden units, samples
CHUNK_BYTES = 64  # of a row of each operand; the product is summed chunk by chunk
FRAGMENT_BYTES = 16  # of a row, in one lane
#: The C++ names of the arithmetics, one of which is a template argument of every kernel.
MATHS = ("half", "bfloat16", "tfloat32", "float", "double")


def arithmetic(dtype: str, precision: str) -> str:
    """Returns the C++ name of how elements of a dtype are multiplied: the type's own name, or tfloat32 for
    float32 with precision "tf32"."""
    return "tfloat32" if dtype == "float32" and precision == "tf32" else CPP_TYPES[dtype]


def warp_sums_bytes(warps: int, rows: int, columns: int, dtype: str) -> int:
    """Returns the bytes of shared memory of a `WarpSums`, whose columns are padded by 4 rows."""
    return warps * columns * (rows + 4) * accumulator_bytes(dtype)
