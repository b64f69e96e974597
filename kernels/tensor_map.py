"""What the copy engine is told of a tensor (`cuda/platform/tensor_map.h`): the arguments of the driver's two encoders, and what
of them it does not take.

Dimensions stand innermost first: channels, width, height, images; of a filter channels, S, R, K.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

Four = tuple[int, int, int, int]
Three = tuple[int, int, int]
Pair = tuple[int, int]

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
TYPES = tuple(ITEM_BYTES)  # as TensorMapSpec::type counts them


class TensorMap(ctypes.Structure):
    """128 bytes that only the copy engine understands."""

    _fields_ = [("bytes", ctypes.c_uint8 * 128)]


class CTensorMapSpec(ctypes.Structure):
    """Mirror of TensorMapSpec in platform/encode.h."""

    _fields_ = [
        ("address", ctypes.c_void_p),
        ("extent", ctypes.c_uint64 * 4),
        ("stride", ctypes.c_uint64 * 3),
        ("box", ctypes.c_uint32 * 4),
        ("element_stride", ctypes.c_uint32 * 4),
        ("lower", ctypes.c_int32 * 2),
        ("upper", ctypes.c_int32 * 2),
        ("channels", ctypes.c_uint32),
        ("pixels", ctypes.c_uint32),
        ("type", ctypes.c_int32),
        ("swizzle", ctypes.c_int32),
        ("im2col", ctypes.c_int32),
    ]


class TensorMapSpec(NamedTuple):
    """One map, hashable: a map follows from it alone, so a launcher makes it once."""

    address: int
    dtype: str  # float32 arrives rounded to TF32
    extent: Four  # elements
    stride: Three  # bytes, of dimensions 1, 2, 3
    swizzle: int  # bytes: 32, 64 or 128; a row of the box takes that many in shared memory
    box: Four = (0, 0, 0, 0)  # of a tiled map
    element_stride: Four = (1, 1, 1, 1)
    lower: Pair = (0, 0)  # of an im2col map, W and H: the first pixel of a line is at `lower`,
    upper: Pair = (0, 0)  # the last one not past extent - 1 + `upper`
    channels: int = 0
    pixels: int = 0

    @property
    def im2col(self) -> bool:
        """Whether rows of the box are pixels that a filter position meets."""
        return self.pixels > 0

    def struct(self) -> CTensorMapSpec:
        """As the C interface takes it."""
        four, three, two = ctypes.c_uint64 * 4, ctypes.c_uint64 * 3, ctypes.c_int32 * 2
        four32 = ctypes.c_uint32 * 4
        return CTensorMapSpec(
            self.address,
            four(*self.extent),
            three(*self.stride),
            four32(*self.box),
            four32(*self.element_stride),
            two(*self.lower),
            two(*self.upper),
            *(self.channels, self.pixels, TYPES.index(self.dtype), self.swizzle, self.im2col),
        )

    def refused(self) -> str | None:
        """What of it the driver would not take, None if nothing (the encoders' documented limits, for rank 4)."""
        row = (self.channels if self.im2col else self.box[0]) * ITEM_BYTES[self.dtype]
        if self.address % 16:
            return "its first element is not on 16 bytes"
        if any(not 1 <= extent <= 2**32 for extent in self.extent):
            return f"its extents {self.extent} are not all 1 to 2^32"
        if any(stride % 16 or not 0 <= stride < 2**40 for stride in self.stride):
            return f"its strides of {self.stride} bytes are not all multiples of 16 below 2^40"
        inner = (self.extent[0] * ITEM_BYTES[self.dtype], *self.stride)
        if any(inner[i + 1] < inner[i] or (i and inner[i + 1] % inner[i]) for i in range(3)):
            return f"its strides of {self.stride} bytes are not each a multiple of the one before"
        if self.swizzle not in (32, 64, 128):
            return f"a swizzle of {self.swizzle} bytes is none of 32, 64 and 128"
        if row % 16 or not 0 < row <= self.swizzle:
            return f"a row of the box has {row} bytes, not a multiple of 16 up to {self.swizzle}"
        if any(not 1 <= stride <= 8 for stride in self.element_stride):
            return f"strides {self.element_stride} are not all 1 to 8"
        if not self.im2col:
            return None if all(1 <= extent <= 256 for extent in self.box) else f"the box {self.box} is not within 256"
        if any(not -128 <= corner <= 127 for corner in self.lower + self.upper):
            return f"the corners {self.lower} and {self.upper} of its pixels are not within -128 and 127"
        if any(self.extent[1 + i] - 1 + self.upper[i] < self.lower[i] for i in range(2)):
            return f"between the corners {self.lower} and {self.upper} lies no pixel"
        if self.channels > 256 or self.pixels > 1024:
            return f"{self.channels} channels and {self.pixels} pixels of a box are more than 256 and 1024"
        return None
