"""One convolution as the kernels see it, the ctypes mirrors of their parameter structs, and how they may walk its memory."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum
from math import gcd, prod
from typing import NamedTuple

from ...shapes import Conv2dShape, SizeError

Pair = tuple[int, int]
Four = tuple[int, int, int, int]

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def sum_bytes(dtype: str) -> int:
    """The size of the type that products are summed in."""
    return 8 if dtype == "float64" else 4


class Conv2dProblem(NamedTuple):
    """A convolution x (N, C, H, W), w (K, C/groups, R, S) -> y (N, K, P, Q), or one of its gradients; hashable."""

    dtype: str
    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    P: int
    Q: int
    stride: Pair
    pad: Pair  # above and to the left; what is below and to the right follows from P and Q
    dilation: Pair
    groups: int
    x_strides: Four
    w_strides: Four
    y_strides: Four
    precision: str = "ieee"
    x_aligned: bool = True  # the first element lies on a 16-byte boundary
    w_aligned: bool = True
    y_aligned: bool = True

    @property
    def group_channels(self) -> Pair:
        """C and K of one group."""
        return self.C // self.groups, self.K // self.groups

    @property
    def taps(self) -> int:
        """Products summed for one element of y."""
        return self.C // self.groups * self.R * self.S

    @property
    def dgrad_taps(self) -> int:
        """Products summed for one element of dx, in the residue modulo the stride that has most."""
        rows, columns = (
            -(-taps // (stride // gcd(stride, dilation)))
            for taps, stride, dilation in zip((self.R, self.S), self.stride, self.dilation, strict=True)
        )
        return self.K // self.groups * rows * columns

    @property
    def residues(self) -> Pair:
        """How many residues modulo the stride the rows of x have, and how many its columns."""
        return min(self.stride[0], self.H), min(self.stride[1], self.W)

    @property
    def pointwise(self) -> bool:
        """Whether output pixel (p, q) depends on input pixel (p, q) alone."""
        return (self.R, self.S, self.stride, self.pad, self.P, self.Q) == (1, 1, (1, 1), (0, 0), self.H, self.W)

    def beyond_int32(self) -> str | None:
        """Which integer does not fit the struct of shapes.h; N aside, which is cut into chunks."""
        for name, sizes in (("stride", self.stride), ("padding", self.pad), ("dilation", self.dilation)):
            if max(sizes) >= 2**31:
                return f"{name}: expected numbers below 2^31, got {sizes}"
        for name, letters in (("input", "CHW"), ("weight", "KRS"), ("output", "PQ")):
            for letter in letters:
                extent = getattr(self, letter)
                if extent >= 2**31:
                    return f"{name}: expected extents below 2^31, got {letter} = {extent}"
        return None

    def require_int32(self) -> None:
        """Raises SizeError where an integer does not fit."""
        if reason := self.beyond_int32():
            raise SizeError(reason)

    def shape(self) -> Conv2dShape:
        """The struct of shapes.h."""
        strides = ((ctypes.c_int64 * 4)(*each) for each in (self.x_strides, self.w_strides, self.y_strides))
        extents = self[self._fields.index("N") : self._fields.index("stride")]
        return Conv2dShape(*extents, *self.stride, *self.pad, *self.dilation, self.groups, *strides)


# ---- parameter structs, as in directions.cuh, split_k.cuh and im2col.cuh -------------------------------------------------


class Walk(IntEnum):
    """Which index of a matrix consecutive threads walk first; in pieces: contiguous, aligned, and there or not as a whole."""

    ROWS = 0
    ROW_PIECES = 1
    COLUMNS = 2
    COLUMN_PIECES = 3


class Walks(NamedTuple):
    """How a product's left operand, right operand and result are walked, and the order of the taps."""

    a: Walk
    b: Walk
    c: Walk
    channels_inner: bool

    def struct(self) -> CWalks:
        """The struct of directions.cuh."""
        return CWalks(*self)


class CWalks(ctypes.Structure):
    """Mirror of `Walks`."""

    _fields_ = [(name, ctypes.c_int32) for name in ("a", "b", "c", "channels_inner")]


def _parameters(
    name: str, pointers: Sequence[str], *rest: tuple[str, type[ctypes._SimpleCData] | type[ctypes.Structure]]
) -> type[ctypes.Structure]:
    fields = [*((pointer, ctypes.c_void_p) for pointer in pointers), ("shape", Conv2dShape), *rest]
    return type(name, (ctypes.Structure,), {"_fields_": fields, "__doc__": f"Mirror of {name} in the device code."})


class CSplits(ctypes.Structure):
    """Mirror of `Splits`."""

    _fields_ = [("sums", ctypes.c_void_p), ("count", ctypes.c_int32), ("step", ctypes.c_int32)]


class CBiasEpilogue(ctypes.Structure):
    """Mirror of `BiasEpilogue`."""

    _fields_ = [("bias", ctypes.c_void_p)]


class CNoEpilogue(ctypes.Structure):
    """Mirror of `NoEpilogue`, to which C++ gives one byte."""

    _fields_ = [("_padding", ctypes.c_uint8)]


_walks, _splits = ("walks", CWalks), ("splits", CSplits)
FpropParameters = _parameters("Conv2dFpropParameters", ("x", "w", "y"), _walks, _splits, ("epilogue", CBiasEpilogue))
DgradParameters = _parameters("Conv2dDgradParameters", ("dy", "w", "dx"), _walks, _splits, ("epilogue", CNoEpilogue))
WgradParameters = _parameters(
    "Conv2dWgradParameters",
    ("dy", "x", "sums"),
    _walks,
    *((name, ctypes.c_int32) for name in ("splits", "pixels_per_split", "accumulate")),
)
SumSplitsParameters = _parameters(
    "Conv2dSumSplitsParameters",
    ("sums", "dw"),
    *((name, ctypes.c_int32) for name in ("splits", "channels_inner", "channels", "outputs")),
)


class SumImageSplitsParameters(ctypes.Structure):
    """Mirror of Conv2dSumImageSplitsParameters in split_k.cuh."""

    _fields_ = [
        ("sums", ctypes.c_void_p),
        ("result", ctypes.c_void_p),
        ("stride", ctypes.c_int64 * 4),
        *((name, ctypes.c_int32) for name in ("N", "channels", "H", "W", "splits")),
        ("epilogue", CBiasEpilogue),
    ]


class PackChannelsParameters(ctypes.Structure):
    """Mirror of PackChannelsParameters in pack_channels.cuh."""

    _fields_ = [
        ("from", ctypes.c_void_p),
        ("to", ctypes.c_void_p),
        ("stride", ctypes.c_int64 * 4),
        *(
            (name, ctypes.c_int32)
            for name in ("channels", "padded", "images", "padded_images", "H", "W", "groups", "pixels_first")
        ),
    ]


Im2colParameters = _parameters("Im2colParameters", ("x", "columns"))
Col2imParameters = _parameters("Col2imParameters", ("columns", "x"))


# ---- walks: from strides alone -----------------------------------------------------------------------------------------


class _Image(NamedTuple):
    """One group's channels of a tensor (N, channels, height, width), for the question what of it is contiguous."""

    sizes: Four
    strides: Four
    aligned: bool
    piece: int

    def _even(self, skip: Sequence[int]) -> bool:
        """Whether stepping along the other dimensions keeps an aligned address aligned."""
        return self.aligned and all(
            size == 1 or stride % self.piece == 0
            for dim, (size, stride) in enumerate(zip(self.sizes, self.strides, strict=True))
            if dim not in skip
        )

    def channel_pieces(self) -> bool:
        """Whether channels come in whole pieces."""
        return self.strides[1] == 1 and self.sizes[1] % self.piece == 0 and self._even((1,))

    def pixel_pieces(self) -> bool:
        """Whether the pixels of a plane, line after line, come in whole pieces."""
        dense = self.strides[3] == 1 and (self.sizes[2] == 1 or self.strides[2] == self.sizes[3])
        return dense and self.sizes[2] * self.sizes[3] % self.piece == 0 and self._even((2, 3))

    def channels_closer(self) -> bool:
        """Whether neighbouring channels lie closer than neighbouring pixels."""
        return self.strides[1] < self.strides[3] if self.sizes[3] > 1 and self.sizes[1] > 1 else self.strides[1] == 1

    def walk(self, pixels_are_rows: bool, shifted: bool) -> Walk:
        """The walk over this image as a matrix of pixels and channels; `shifted`: pixels are reached with strides, offsets or
        padding, so that only channels can come in pieces."""
        along_pixels, along_channels = (Walk.ROWS, Walk.COLUMNS) if pixels_are_rows else (Walk.COLUMNS, Walk.ROWS)
        if self.channel_pieces():
            return Walk(along_channels + 1)
        if not shifted and self.pixel_pieces():
            return Walk(along_pixels + 1)
        return along_channels if self.channels_closer() else along_pixels


def _images(problem: Conv2dProblem, piece: int) -> tuple[_Image, _Image, _Image]:
    C, K = problem.group_channels
    x = _Image((problem.N, C, problem.H, problem.W), problem.x_strides, problem.x_aligned, piece)
    w = _Image((K, C, problem.R, problem.S), problem.w_strides, problem.w_aligned, piece)
    y = _Image((problem.N, K, problem.P, problem.Q), problem.y_strides, problem.y_aligned, piece)
    return x, w, y


def _taps_contiguous(problem: Conv2dProblem) -> bool:
    """Whether one output channel's filter is one run of memory, C R S."""
    _, channel, line, cell = problem.w_strides
    return (cell, line, channel) == (1, problem.S, problem.R * problem.S)


def _group_offsets_even(problem: Conv2dProblem, strides: Four, channels: int, piece: int, dim: int = 1) -> bool:
    """Whether every group's first element is aligned when the first group's is."""
    return problem.groups == 1 or channels * strides[dim] % piece == 0


def whole_pieces(strides: Four, sizes: Four, aligned: bool, groups: int, piece: int) -> bool:
    """Whether every group's channels are contiguous whole pieces; `sizes` are of the whole tensor."""
    N, channels, H, W = sizes
    image = _Image((N, channels // groups, H, W), strides, aligned, piece)
    return image.channel_pieces()


def fprop_walks(problem: Conv2dProblem, piece: int) -> Walks:
    """Rows are output pixels; columns of the operands are taps, of the result output channels."""
    x, w, y = _images(problem, piece)
    C, K = problem.group_channels
    x = x._replace(aligned=x.aligned and _group_offsets_even(problem, x.strides, C, piece))
    w = w._replace(aligned=w.aligned and _group_offsets_even(problem, w.strides, K, piece, dim=0))
    y = y._replace(aligned=y.aligned and _group_offsets_even(problem, y.strides, K, piece))
    channels_inner = x.channels_closer() or not _taps_contiguous(problem)
    a = x.walk(pixels_are_rows=True, shifted=not problem.pointwise)
    if a == Walk.COLUMN_PIECES and not channels_inner:
        a = Walk.COLUMNS
    c = y.walk(pixels_are_rows=True, shifted=False)
    return Walks(a, _filter_walk(problem, w, 0, channels_inner), c, channels_inner)


def dgrad_walks(problem: Conv2dProblem, piece: int) -> Walks:
    """Rows are input pixels; columns of the operands are taps (of K), of the result input channels."""
    x, w, y = _images(problem, piece)
    C, K = problem.group_channels
    x = x._replace(aligned=x.aligned and _group_offsets_even(problem, x.strides, C, piece))
    w = w._replace(aligned=w.aligned and _group_offsets_even(problem, w.strides, K, piece, dim=0))
    y = y._replace(aligned=y.aligned and _group_offsets_even(problem, y.strides, K, piece))
    a = y.walk(pixels_are_rows=True, shifted=not problem.pointwise)
    c = x.walk(pixels_are_rows=True, shifted=problem.stride != (1, 1))
    return Walks(a, _filter_walk(problem, w, 1, True), c, True)


def wgrad_walks(problem: Conv2dProblem, piece: int, sum_piece: int) -> Walks:
    """Rows of the operands are output channels and taps, their columns output pixels; the result is (K, taps), dense."""
    x, _, y = _images(problem, piece)
    C, K = problem.group_channels
    x = x._replace(aligned=x.aligned and _group_offsets_even(problem, x.strides, C, piece))
    y = y._replace(aligned=y.aligned and _group_offsets_even(problem, y.strides, K, piece))
    channels_inner = x.channels_closer()
    a = y.walk(pixels_are_rows=False, shifted=False)
    b = x.walk(pixels_are_rows=False, shifted=not problem.pointwise)
    if b == Walk.ROW_PIECES and not channels_inner:
        b = Walk.ROWS
    return Walks(a, b, Walk.COLUMN_PIECES if problem.taps % sum_piece == 0 else Walk.COLUMNS, channels_inner)


def _filter_walk(problem: Conv2dProblem, w: _Image, rows: int, channels_inner: bool) -> Walk:
    """Over the filter as a matrix whose rows are dimension `rows` (0: K, 1: C) and whose columns are taps of the other one."""
    columns = 1 - rows

    def pieces(dim: int) -> bool:
        return w.strides[dim] == 1 and w.sizes[dim] % w.piece == 0 and w._even((dim,))

    if channels_inner and pieces(columns):
        return Walk.COLUMN_PIECES
    if not channels_inner and prod(w.sizes[1:]) % w.piece == 0 and w._even((1, 2, 3)):
        return Walk.COLUMN_PIECES
    if pieces(rows):
        return Walk.ROW_PIECES
    inner_stride = w.strides[columns] if channels_inner else w.strides[3]
    return Walk.COLUMNS if inner_stride < w.strides[rows] else Walk.ROWS
