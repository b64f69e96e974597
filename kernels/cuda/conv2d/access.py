"""How threads walk over a product's operands and result in memory. The walks follow from the problem's sizes, strides, alignment
and geometry."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from math import prod
from typing import NamedTuple

from ...dtypes import ITEM_BYTES, accumulator_bytes
from ...shapes import Four
from .parameters import CWalks
from .problem import Conv2dProblem


class Walk(IntEnum):
    """Mirror of `Walk` in parameters.cuh: the index of a matrix that consecutive threads advance along.

    They advance element by element, or in pieces: aligned vectors, contiguous in memory, each of which exists as a whole or not
    at all.
    """

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
        """Returns the struct of parameters.cuh."""
        return CWalks(a=self.a, b=self.b, c=self.c, channels_inner=self.channels_inner)


class _Image(NamedTuple):
    """One group's part of an image (N, channels, height, width) or of a filter (K, C, R, S)."""

    sizes: Four
    strides: Four
    aligned: bool
    piece: int  # elements of a piece

    def _stays_aligned(self, except_along: Sequence[int]) -> bool:
        """Whether the first element is aligned, and steps along all dimensions but `except_along` keep an address aligned."""
        return self.aligned and all(
            size == 1 or stride % self.piece == 0
            for dim, (size, stride) in enumerate(zip(self.sizes, self.strides, strict=True))
            if dim not in except_along
        )

    def comes_in_pieces(self, dim: int) -> bool:
        """Whether a dimension is contiguous and comes in whole pieces."""
        return self.strides[dim] == 1 and self.sizes[dim] % self.piece == 0 and self._stays_aligned((dim,))

    def pixels_come_in_pieces(self) -> bool:
        """Whether the pixels of a plane, line after line, come in whole pieces."""
        dense = self.strides[3] == 1 and (self.sizes[2] == 1 or self.strides[2] == self.sizes[3])
        return dense and self.sizes[2] * self.sizes[3] % self.piece == 0 and self._stays_aligned((2, 3))

    def taps_come_in_pieces(self) -> bool:
        """For a filter whose taps are contiguous in memory: whether those of each output channel come in whole pieces."""
        return prod(self.sizes[1:]) % self.piece == 0 and self._stays_aligned((1, 2, 3))

    def has_channels_closer(self) -> bool:
        """Whether neighbouring channels lie closer in memory than neighbouring pixels."""
        return self.strides[1] < self.strides[3] if self.sizes[3] > 1 and self.sizes[1] > 1 else self.strides[1] == 1

    def walk(self, pixels_are_rows: bool, shifted: bool) -> Walk:
        """Returns the walk over this image as a matrix of pixels and channels.

        If `shifted`, pixels are reached with strides, offsets or padding, so only channels can come in pieces.
        """
        along_pixels, along_channels = (Walk.ROWS, Walk.COLUMNS) if pixels_are_rows else (Walk.COLUMNS, Walk.ROWS)
        in_pieces = {Walk.ROWS: Walk.ROW_PIECES, Walk.COLUMNS: Walk.COLUMN_PIECES}
        if self.comes_in_pieces(1):
            return in_pieces[along_channels]
        if not shifted and self.pixels_come_in_pieces():
            return in_pieces[along_pixels]
        return along_channels if self.has_channels_closer() else along_pixels


def _images(problem: Conv2dProblem, piece: int) -> tuple[_Image, _Image, _Image]:
    """Returns the first group of x, w and y; a tensor counts as aligned only if all its groups are."""
    C, K = problem.group_channels

    def image(sizes: Four, strides: Four, aligned: bool, to_next_group: int) -> _Image:
        groups_aligned = problem.groups == 1 or to_next_group % piece == 0
        return _Image(sizes=sizes, strides=strides, aligned=aligned and groups_aligned, piece=piece)

    x_strides, w_strides, y_strides = problem.x_strides, problem.w_strides, problem.y_strides
    return (
        image((problem.N, C, problem.H, problem.W), x_strides, problem.x_aligned, C * x_strides[1]),
        image((K, C, problem.R, problem.S), w_strides, problem.w_aligned, K * w_strides[0]),
        image((problem.N, K, problem.P, problem.Q), y_strides, problem.y_aligned, K * y_strides[1]),
    )


def whole_pieces(strides: Four, sizes: Four, aligned: bool, groups: int, piece: int) -> bool:
    """Whether every group's channels are contiguous and come in whole pieces; `sizes` are those of the whole tensor."""
    N, channels, H, W = sizes
    return _Image(sizes=(N, channels // groups, H, W), strides=strides, aligned=aligned, piece=piece).comes_in_pieces(1)


def walks(problem: Conv2dProblem, piece: int) -> Walks:
    """Returns how threads that move `piece` elements at a time walk over the operands and the result of a product."""
    return {"fprop": _fprop_walks, "dgrad": _dgrad_walks, "wgrad": _wgrad_walks}[problem.direction](problem, piece)


def sum_walk(columns: int, dtype: str) -> Walk:
    """Returns the walk over the sums of a split, whose columns are contiguous: channels in fprop and dgrad, taps in wgrad."""
    return Walk.COLUMN_PIECES if columns % (16 // accumulator_bytes(dtype)) == 0 else Walk.COLUMNS


@lru_cache(maxsize=4096)
def filter_gradient_walk(dtype: str, sizes: Four, strides: Four, aligned: bool, groups: int, channels_inner: bool) -> Walk:
    """Returns the walk over dw (K, C/groups, R, S) as the result of wgrad: rows are output channels, columns are taps.

    Pieces have 16 bytes.
    """
    piece = 16 // ITEM_BYTES[dtype]
    aligned = aligned and (groups == 1 or sizes[0] // groups * strides[0] % piece == 0)
    dw = _Image(sizes=sizes, strides=strides, aligned=aligned, piece=piece)
    if channels_inner:
        return Walk.COLUMN_PIECES if dw.comes_in_pieces(1) else Walk.COLUMNS
    in_pieces = _has_contiguous_taps(sizes, strides) and dw.taps_come_in_pieces()
    return Walk.COLUMN_PIECES if in_pieces else Walk.COLUMNS


def _has_contiguous_taps(sizes: Four, strides: Four) -> bool:
    """Whether the taps of each output channel of a filter (K, C, R, S) are contiguous in this order."""
    _, _, R, S = sizes
    return strides[1:] == (R * S, S, 1)


def _fprop_walks(problem: Conv2dProblem, piece: int) -> Walks:
    """Returns the walks over x (output pixels, taps), w (output channels, taps) and y (output pixels, output channels)."""
    x, w, y = _images(problem, piece)
    channels_inner = x.has_channels_closer() or not _has_contiguous_taps(w.sizes, w.strides)
    a = x.walk(pixels_are_rows=True, shifted=not problem.is_pointwise)
    if a == Walk.COLUMN_PIECES and not channels_inner:
        a = Walk.COLUMNS
    c = y.walk(pixels_are_rows=True, shifted=False)
    return Walks(a=a, b=_filter_walk(w, rows=0, channels_inner=channels_inner), c=c, channels_inner=channels_inner)


def _dgrad_walks(problem: Conv2dProblem, piece: int) -> Walks:
    """Returns the walks over dy (input pixels, taps of K), w (input channels, taps of K), dx (input pixels, input channels)."""
    x, w, y = _images(problem, piece)
    a = y.walk(pixels_are_rows=True, shifted=not problem.is_pointwise)
    c = x.walk(pixels_are_rows=True, shifted=problem.stride != (1, 1))
    return Walks(a=a, b=_filter_walk(w, rows=1, channels_inner=True), c=c, channels_inner=True)


def _wgrad_walks(problem: Conv2dProblem, piece: int) -> Walks:
    """Returns the walks over dy (output channels, output pixels), x (taps, output pixels), the sums (output channels, taps)."""
    x, _, y = _images(problem, piece)
    channels_inner = x.has_channels_closer()
    a = y.walk(pixels_are_rows=False, shifted=False)
    b = x.walk(pixels_are_rows=False, shifted=not problem.is_pointwise)
    if b == Walk.ROW_PIECES and not channels_inner:
        b = Walk.ROWS
    return Walks(a=a, b=b, c=sum_walk(problem.taps, problem.dtype), channels_inner=channels_inner)


def _filter_walk(w: _Image, rows: int, channels_inner: bool) -> Walk:
    """Returns the walk over the filter as a matrix.

    The matrix's rows are dimension `rows` (0: K, 1: C); its columns are taps, whose channels are the other of K and C.
    """
    columns = 1 - rows
    taps_in_pieces = w.comes_in_pieces(columns) if channels_inner else w.taps_come_in_pieces()
    if taps_in_pieces:
        return Walk.COLUMN_PIECES
    if w.comes_in_pieces(rows):
        return Walk.ROW_PIECES
    inner_stride = w.strides[columns] if channels_inner else w.strides[3]
    return Walk.COLUMNS if inner_stride < w.strides[rows] else Walk.ROWS
