"""Tensor maps for TMA (`cuda/platform/tensor_map.h`): the arguments of the driver's two encoders, and their limits.

Dimensions are listed innermost first: C, W, H, N of an image; C, S, R, K of a filter.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from .dtypes import ITEM_BYTES
from .interface import CTensorMapSpec
from .shapes import Four, Three

TYPES = ("float16", "bfloat16", "float32")  # in the order of the values of TensorMapSpec::type


class TensorMap(ctypes.Structure):
    """Mirror of TensorMap in platform/tensor_map.h: 128 opaque bytes that the driver writes and TMA reads."""

    _fields_ = [("bytes", ctypes.c_uint8 * 128)]


class TensorMapSpec(NamedTuple):
    """Everything that determines a map. It is hashable, so a launcher can cache the maps that it encodes."""

    address: int
    dtype: str  # TMA rounds float32 to TF32
    extent: Four  # in elements
    stride: Three  # in bytes, of dimensions 1, 2 and 3
    swizzle: int  # 32, 64 or 128: the bytes that a row of the box occupies in shared memory
    box: Four = (0, 0, 0, 0)  # of a tiled map
    element_stride: Four = (1, 1, 1, 1)
    lower: tuple[int, int] = (0, 0)  # (W, H) of an im2col map: the first pixel position
    upper: tuple[int, int] = (0, 0)  # (W, H) of an im2col map: the last pixel position, relative to extent - 1
    channels: int = 0  # of the box of an im2col map
    pixels: int = 0  # of the box of an im2col map; 0 if the map is tiled

    @property
    def im2col(self) -> bool:
        """Whether this is an im2col map, in whose box each row holds channels of the pixel under one filter position."""
        return self.pixels > 0

    def struct(self) -> CTensorMapSpec:
        """The struct that the C interface takes."""
        return CTensorMapSpec(
            address=self.address,
            extent=(ctypes.c_uint64 * 4)(*self.extent),
            stride=(ctypes.c_uint64 * 3)(*self.stride),
            box=(ctypes.c_uint32 * 4)(*self.box),
            element_stride=(ctypes.c_uint32 * 4)(*self.element_stride),
            lower=(ctypes.c_int32 * 2)(*self.lower),
            upper=(ctypes.c_int32 * 2)(*self.upper),
            channels=self.channels,
            pixels=self.pixels,
            type=TYPES.index(self.dtype),
            swizzle=self.swizzle,
            im2col=self.im2col,
        )

    def refused(self) -> str | None:
        """Why the driver's encoder would refuse this map, according to its documented limits for rank 4; None if it would not."""
        row = (self.channels if self.im2col else self.box[0]) * ITEM_BYTES[self.dtype]
        if self.address % 16:
            return "the address of its first element is not a multiple of 16"
        if any(not 1 <= extent <= 2**32 for extent in self.extent):
            return f"its extents {self.extent} are not all 1 to 2^32"
        if any(stride % 16 or not 0 <= stride < 2**40 for stride in self.stride):
            return f"its strides of {self.stride} bytes are not all multiples of 16 below 2^40"
        inner = (self.extent[0] * ITEM_BYTES[self.dtype], *self.stride)
        if any(inner[i + 1] < inner[i] or (i and inner[i + 1] % inner[i]) for i in range(3)):
            return f"its strides of {self.stride} bytes are not multiples of the preceding ones"
        if self.swizzle not in (32, 64, 128):
            return f"a swizzle of {self.swizzle} bytes is none of 32, 64 and 128"
        if row % 16 or not 0 < row <= self.swizzle:
            return f"a row of the box has {row} bytes, not a multiple of 16 up to {self.swizzle}"
        if any(not 1 <= stride <= 8 for stride in self.element_stride):
            return f"strides {self.element_stride} are not all 1 to 8"
        if not self.im2col:
            return (
                None
                if all(1 <= extent <= 256 for extent in self.box)
                else f"the extents of the box {self.box} are not all 1 to 256"
            )
        if any(not -128 <= corner <= 127 for corner in self.lower + self.upper):
            return f"the corners {self.lower} and {self.upper} of its pixels are not within -128 to 127"
        if any(self.extent[1 + i] - 1 + self.upper[i] < self.lower[i] for i in range(2)):
            return f"there is no pixel between the corners {self.lower} and {self.upper}"
        if self.channels > 256 or self.pixels > 1024:
            return f"a box of {self.channels} channels and {self.pixels} pixels exceeds 256 channels or 1024 pixels"
        return None
