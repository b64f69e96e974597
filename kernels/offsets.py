"""The offsets of max pooling: the cell r·S + s that each window chose, in the narrowest type that holds every cell and one number
for a window without a cell."""

from __future__ import annotations


def offset_dtype(cells: int) -> str:
    """Returns torch's name of the dtype of offsets for windows of that many cells."""
    if cells <= 255:
        return "uint8"
    if cells <= 32767:
        return "int16"
    return "int32" if cells <= 2**31 - 1 else "int64"


def no_cell(dtype: str) -> int:
    """Returns the offset of a window that holds no cell of the plane."""
    return 255 if dtype == "uint8" else -1
