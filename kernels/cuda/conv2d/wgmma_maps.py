"""Which pixels and filter positions TMA gathers in each direction, and the tensor maps that describe them.

The kernel (directions_wgmma.cuh) computes positions as linear functions; an `Axis` holds the coefficients of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import NamedTuple

from ...arithmetic import ceil_divide, round_up
from ...dtypes import ITEM_BYTES
from ...shapes import Four, Three
from ...tensor_map import TensorMapSpec
from .parameters import CIm2colAxis
from .problem import Conv2dProblem

# ---- positions ---------------------------------------------------------------------------------------------------------------


class Axis(NamedTuple):
    """`Im2colAxis` of parameters.cuh: one dimension of an image that is gathered from.

    For tap t, pixel i of the result reads position start + i * up + t * step of the image; tap t is filter position
    first + t * every.
    """

    pixels: int
    start: int
    up: int
    taps: int
    step: int
    first: int
    every: int
    residue: int = 0  # dgrad: pixel i is at position i * stride + residue of dx

    def upper(self, extent: int) -> int:
        """Returns the position that the last pixel reads for tap 0, relative to `extent` - 1, as in `TensorMapSpec.upper`."""
        return self.start + (self.pixels - 1) * self.up - (extent - 1)

    @property
    def is_gathered(self) -> bool:
        """Whether there is anything to fetch."""
        return self.pixels > 0 and self.taps > 0

    def struct(self) -> CIm2colAxis:
        """Returns the struct of parameters.cuh."""
        return CIm2colAxis(**self._asdict())


def fprop_axis(pixels: int, taps: int, stride: int, pad: int, dilation: int) -> Axis:
    """Returns an axis of x, from which every pixel of y gathers at every filter position."""
    return Axis(pixels=pixels, start=-pad, up=stride, taps=taps, step=dilation, first=0, every=1)


def dgrad_axis(pixels: int, taps: int, stride: int, pad: int, dilation: int, residue: int) -> Axis:
    """Returns an axis of dy, for the pixels of dx of one residue modulo the stride.

    These pixels gather at every (stride / gcd(stride, dilation))-th filter position, in descending order; pixels of some residues
    gather at none. `dgrad_axis` of matrices.cuh has the derivation.
    """
    pixels_of_residue = max(0, ceil_divide(pixels - residue, stride))
    every = stride // gcd(stride, dilation)
    first = next((tap for tap in range(min(every, taps)) if (residue + pad - tap * dilation) % stride == 0), None)
    if first is None:
        return Axis(pixels=pixels_of_residue, start=0, up=1, taps=0, step=0, first=0, every=0, residue=residue)
    met = ceil_divide(taps - first, every)
    last = first + (met - 1) * every
    return Axis(
        pixels=pixels_of_residue,
        start=(residue + pad - last * dilation) // stride,
        up=1,
        taps=met,
        step=every * dilation // stride,
        first=last,
        every=-every,
        residue=residue,
    )


class Image(NamedTuple):
    """The two axes of an image that is gathered from."""

    vertical: Axis
    horizontal: Axis

    @property
    def is_gathered(self) -> bool:
        """Whether there is anything to fetch."""
        return self.vertical.is_gathered and self.horizontal.is_gathered

    @property
    def taps(self) -> int:
        """The number of filter positions at which a pixel of the result gathers."""
        return self.vertical.taps * self.horizontal.taps


def images(problem: Conv2dProblem) -> tuple[Image, ...]:
    """Returns the images that are gathered from: x; in dgrad dy, once for each residue of the pixels of dx modulo the stride."""
    p = problem
    if p.direction != "dgrad":
        vertical = fprop_axis(p.P, p.R, p.stride[0], p.pad[0], p.dilation[0])
        return (Image(vertical, fprop_axis(p.Q, p.S, p.stride[1], p.pad[1], p.dilation[1])),)
    rows, columns = p.residues
    return tuple(
        Image(
            dgrad_axis(p.H, p.R, p.stride[0], p.pad[0], p.dilation[0], residue // columns),
            dgrad_axis(p.W, p.S, p.stride[1], p.pad[1], p.dilation[1], residue % columns),
        )
        for residue in range(rows * columns)
    )


def unshifted(height: int, width: int) -> Image:
    """Returns an image as a 1x1 filter gathers from it, with stride 1 and without padding."""
    return Image(fprop_axis(height, 1, 1, 0, 1), fprop_axis(width, 1, 1, 0, 1))


# ---- tensor maps -------------------------------------------------------------------------------------------------------------
# Sizes and strides are torch's: (N, C, H, W) or (K, C, R, S). The channels of a box are 32, 64 or 128 bytes wide, and so is the
# swizzle.


def _innermost_first(sizes: Sequence[int], strides: Sequence[int], item: int) -> tuple[Four, Three]:
    """Returns extents and strides (bytes) in the order of maps; a dimension of one element gets the stride of a dense tensor."""
    extents = (sizes[1], sizes[3], sizes[2], sizes[0])
    byte_strides: list[int] = []
    dense = round_up(sizes[1] * item, 16)
    for extent, stride in zip(extents[1:], (strides[3], strides[2], strides[0]), strict=True):
        byte_strides.append(dense if extent == 1 else stride * item)
        dense = byte_strides[-1] * extent
    return extents, (byte_strides[0], byte_strides[1], byte_strides[2])


def image_map(
    dtype: str, sizes: Sequence[int], strides: Sequence[int], image: Image, channels: int, pixels: int, address: int = 0
) -> TensorMapSpec:
    """Returns the map of an image whose channels are contiguous; a box holds `channels` channels of `pixels` pixels."""
    vertical, horizontal = image
    extent, stride = _innermost_first(sizes, strides, ITEM_BYTES[dtype])
    return TensorMapSpec(
        address=address,
        dtype=dtype,
        extent=extent,
        stride=stride,
        swizzle=channels * ITEM_BYTES[dtype],
        element_stride=(1, horizontal.up, vertical.up, 1),
        lower=(horizontal.start, vertical.start),
        upper=(horizontal.upper(sizes[3]), vertical.upper(sizes[2])),
        channels=channels,
        pixels=pixels,
    )


def filter_map(
    dtype: str, sizes: Sequence[int], strides: Sequence[int], channels: int, rows: int, address: int = 0
) -> TensorMapSpec:
    """Returns the map of a filter; a box holds one filter position: `channels` channels of each of `rows` rows of dimension 0."""
    extent, stride = _innermost_first(sizes, strides, ITEM_BYTES[dtype])
    return TensorMapSpec(
        address=address,
        dtype=dtype,
        extent=extent,
        stride=stride,
        swizzle=channels * ITEM_BYTES[dtype],
        box=(channels, 1, 1, rows),
    )
