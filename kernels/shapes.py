"""Types of extents, and ctypes mirrors of the structs in `cuda/shapes.h`; `layout.py` checks that both sides agree."""

from __future__ import annotations

import ctypes

Pair = tuple[int, int]  # height, width
Three = tuple[int, int, int]
Four = tuple[int, int, int, int]

_int32, _int64 = ctypes.c_int32, ctypes.c_int64


class SizeError(RuntimeError):
    """A size is too large for the kernels' 32-bit fields or for the limits of a grid."""


class Conv2dShape(ctypes.Structure):
    """Extents, geometry and element strides of one convolution; see `cuda/shapes.h`."""

    _fields_ = [
        *((name, _int32) for name in ("N", "C", "H", "W", "K", "R", "S", "P", "Q")),
        *((name, _int32) for name in ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "groups")),
        ("x_stride", _int64 * 4),
        ("w_stride", _int64 * 4),
        ("y_stride", _int64 * 4),
    ]


class MaxPool2dShape(ctypes.Structure):
    """Extents, geometry and element strides of one pooling; see `cuda/shapes.h`."""

    _fields_ = [
        *((name, _int32) for name in ("N", "C", "H", "W", "R", "S", "P", "Q")),
        *((name, _int32) for name in ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")),
        ("x_stride", _int64 * 4),
        ("y_stride", _int64 * 4),
    ]


class RnnShape(ctypes.Structure):
    """Extents of one direction of one recurrent layer; see `cuda/shapes.h`."""

    _fields_ = [(name, _int32) for name in ("T", "N", "I", "H")]
