"""The geometry of one pooling, as every plan reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ...offsets import offset_dtype

Strides = tuple[int, int, int, int]

THREADS = 256  # the kernels' __launch_bounds__
STRIP = 4  # FixedWindow::strip
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
OFFSET_BYTES = {"uint8_t": 1, "int16_t": 2, "int32_t": 4}
#: R, S, stride -> the compiled window; dilation is 1.
FIXED_WINDOWS = {(2, 2, 2): "FixedWindow<2, 2, 2>", (3, 3, 1): "FixedWindow<3, 3, 1>", (3, 3, 2): "FixedWindow<3, 3, 2>"}


@dataclass(frozen=True)
class Pooling:
    """The geometry of one pooling, and the memory format of its dense tensors."""

    N: int
    C: int
    H: int
    W: int
    P: int
    Q: int
    window: tuple[int, int]  # R, S
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    channels_last: bool

    @property
    def planes(self) -> int:
        return self.N if self.channels_last else self.N * self.C

    @property
    def inner(self) -> int:
        return self.C if self.channels_last else 1

    @property
    def x_size(self) -> tuple[int, int, int, int]:
        return (self.N, self.C, self.H, self.W)

    @property
    def outputs(self) -> int:
        return self.N * self.C * self.P * self.Q

    @property
    def offset(self) -> str:
        """The C++ type that holds a cell's place in its window, and one value for "none"."""
        return f"{offset_dtype(self.window[0] * self.window[1])}_t"

    @property
    def compiled_window(self) -> str:
        R, S = self.window
        if self.stride[0] != self.stride[1] or self.dilation != (1, 1):
            return "AnyWindow"
        return FIXED_WINDOWS.get((R, S, self.stride[0]), "AnyWindow")

    @property
    def strip(self) -> int:
        return 1 if self.compiled_window == "AnyWindow" else STRIP

    def pixel_blocks(self, extent: int, axis: int) -> int:
        """`pixel_blocks` of backward.cuh."""
        if self.compiled_window == "AnyWindow":
            return extent
        return -(-(extent + self.padding[axis]) // self.stride[axis])

    @property
    def x_strides(self) -> Strides:
        """Of a dense x, in elements."""
        return self._strides(self.H, self.W)

    @property
    def y_strides(self) -> Strides:
        return self._strides(self.P, self.Q)

    def _strides(self, rows: int, columns: int) -> Strides:
        if self.channels_last:
            return (rows * columns * self.C, 1, columns * self.C, self.C)
        return (self.C * rows * columns, rows * columns, columns, 1)


class Device(NamedTuple):
    """What of a device the plans depend on."""

    multiprocessors: int
    shared_bytes: int  # the most that a block may have
