"""The offsets of max pooling: the cell r·S + s that each window chose, or one other number if the window holds no cell of the
plane."""

from __future__ import annotations


def offset_dtype(cells: int) -> str:
    """Returns torch's name of the dtype of offsets for windows of `cells` cells."""
    if cells <= 255:
        return "uint8"
    if cells <= 32767:
        return "int16"
    return "int32" if cells <= 2**31 - 1 else "int64"


def no_cell(dtype: str) -> int:
    """Returns the offset, in an offset dtype, of a window that holds no cell of the plane."""
    return 255 if dtype == "uint8" else -1
