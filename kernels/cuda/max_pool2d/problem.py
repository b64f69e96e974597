"""What a kernel of max pooling is asked to compute."""

from __future__ import annotations

from typing import NamedTuple

from ...arithmetic import ceil_divide
from ...dtypes import CPP_TYPES, ITEM_BYTES
from ...offsets import offset_dtype
from ...shapes import Four, Pair

STRIP = 4  # FixedWindow::strip of windows.cuh
PIECE_BYTES = 16  # the widest access
TOO_MANY_CELLS = "a window has more than 32767 cells"  # why variants without kernels for four-byte offsets refuse
#: C++ type of offsets -> bytes.
OFFSET_BYTES = {"uint8_t": 1, "int16_t": 2, "int32_t": 4}
#: (R, S, stride) -> the window that is compiled in; its dilation is 1.
FIXED_WINDOWS = {(2, 2, 2): "FixedWindow<2, 2, 2>", (3, 3, 1): "FixedWindow<3, 3, 1>", (3, 3, 2): "FixedWindow<3, 3, 2>"}


def dense_strides(C: int, rows: int, columns: int, channels_last: bool) -> Four:
    """Strides in elements of a dense tensor (N, C, rows, columns)."""
    if channels_last:
        return (rows * columns * C, 1, columns * C, C)
    return (C * rows * columns, rows * columns, columns, 1)


class Pool2dProblem(NamedTuple):
    """One call of a max pooling function: its geometry, dtype and layout.

    Every tensor is dense, in channels_last or contiguous order, except for x in the forward pass, which may have any strides.
    """

    direction: str  # "forward", "backward", "gather" or "indices"
    dtype: str  # of x and its gradients; "int64" in the direction "indices"
    N: int
    C: int
    H: int
    W: int
    P: int
    Q: int
    window: Pair  # R, S
    stride: Pair
    padding: Pair
    dilation: Pair
    channels_last: bool
    x_strides: Four  # in elements
    aligned: bool = True  # whether every tensor starts at a multiple of 16 bytes; gather and indices leave it True
    with_offsets: bool = True  # whether offsets are written or read
    with_lengths: bool = False  # whether each image has its own number of rows

    @property
    def planes(self) -> int:
        """Planes of the dense tensors: images in channels_last, else images times channels."""
        return self.N if self.channels_last else self.N * self.C

    @property
    def inner(self) -> int:
        """Elements of one pixel of a plane."""
        return self.C if self.channels_last else 1

    @property
    def x_size(self) -> Four:
        return (self.N, self.C, self.H, self.W)

    @property
    def pixels(self) -> int:
        """Elements of x."""
        return self.N * self.C * self.H * self.W

    @property
    def outputs(self) -> int:
        """Elements of y."""
        return self.N * self.C * self.P * self.Q

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]

    @property
    def offset_type(self) -> str:
        """The narrowest C++ type that holds every offset in the window and a value for "no cell"."""
        return f"{offset_dtype(self.window[0] * self.window[1])}_t"

    @property
    def offset_bytes(self) -> int:
        return OFFSET_BYTES[self.offset_type]

    @property
    def types(self) -> tuple[str, str]:
        """The first two template arguments of every kernel except `max_pool2d_indices_kernel`, which has the second only."""
        return (CPP_TYPES[self.dtype], self.offset_type)

    @property
    def compiled_window(self) -> str:
        """The template argument that says which window a kernel is compiled for."""
        R, S = self.window
        if self.stride[0] != self.stride[1] or self.dilation != (1, 1):
            return "AnyWindow"
        return FIXED_WINDOWS.get((R, S, self.stride[0]), "AnyWindow")

    @property
    def any_window(self) -> bool:
        return self.compiled_window == "AnyWindow"

    @property
    def strip(self) -> int:
        """Windows, or pixel blocks, that a thread of the variants channels and staged walks down."""
        return 1 if self.any_window else STRIP

    def pixel_blocks(self, extent: int, axis: int) -> int:
        """Pixel blocks that cover `extent` pixels of an axis (0 or 1), as `pixel_blocks` of windows.cuh counts them."""
        if self.any_window:
            return extent
        return ceil_divide(extent + self.padding[axis], self.stride[axis])

    @property
    def dense_x_strides(self) -> Four:
        return dense_strides(self.C, self.H, self.W, self.channels_last)

    @property
    def y_strides(self) -> Four:
        return dense_strides(self.C, self.P, self.Q, self.channels_last)

    @property
    def piece(self) -> int:
        """Elements of x in 16 bytes."""
        return PIECE_BYTES // self.item_bytes

    @property
    def layout(self) -> str | None:
        """The layout of x: "channels_last", "nchw", "steps" for sequences stored as a dense (H, N, C), or None for any other."""
        if self._has_strides(self.dense_x_strides):
            return "channels_last" if self.channels_last else "nchw"
        steps = self.channels_last and self.W == 1 and self._has_strides((self.C, 1, self.N * self.C, 1))
        return "steps" if steps else None

    def _has_strides(self, strides: Four) -> bool:
        sides = zip(self.x_strides, strides, self.x_size, strict=True)
        return all(stride == expected or extent == 1 for stride, expected, extent in sides)

    @property
    def key(self) -> str | None:
        """The key of the problem in choices.json, where the function's name precedes it; None if `layout` is None or a tensor is
        not aligned."""
        if self.layout is None or not self.aligned:
            return None
        names = ("N", "C", "H", "W", "P", "Q")
        extents = ",".join(f"{name}={getattr(self, name)}" for name in names)
        pairs = ",".join(f"{name}={getattr(self, name)[0]}x{getattr(self, name)[1]}" for name in ("window", "stride", "padding"))
        options = f",dilation={self.dilation[0]}x{self.dilation[1]}"
        options += ",offsets" * self.with_offsets + ",lengths" * self.with_lengths
        return f"{self.dtype}/{self.layout}/{extents},{pairs}{options}"

    def refuses_pieces(self) -> str | None:
        """Returns why a thread cannot load 16 bytes of a pixel's channels at once, or None if it can."""
        if not self.channels_last or self.x_strides[1] != 1:
            return "the layout is not channels_last"
        if self.C % self.piece:
            return f"{self.C} channels are not a whole number of 16-byte pieces"
        if not self.aligned or any(self.x_strides[axis] % self.piece for axis in (0, 2, 3)):
            return "a tensor, or one of its pixels, does not start at a multiple of 16 bytes"
        return None
