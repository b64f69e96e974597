"""What the copy engine walks over in each direction of a convolution, and the tensor maps that tell it.

Positions are computed here, once for each problem, so that a kernel only adds: see directions_wgmma.cuh.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import NamedTuple

from ...tensor_map import ITEM_BYTES, Four, TensorMapSpec, Three
from .problem import Conv2dProblem


def _ceil_divide(a: int, b: int) -> int:
    return -(-a // b)


# ---- positions ---------------------------------------------------------------------------------------------------------------


class Axis(NamedTuple):
    """`Im2colAxis`: one dimension of an image that is gathered from; pixel i and tap t meet at start + i * up + t * step."""

    pixels: int
    start: int
    up: int
    taps: int
    step: int
    first: int
    every: int
    residue: int = 0

    def upper(self, extent: int) -> int:
        """The corner behind which a line of pixels ends, counted from the source's last position."""
        return self.start + (self.pixels - 1) * self.up - (extent - 1)

    @property
    def walked(self) -> bool:
        """Whether there is anything to fetch."""
        return self.pixels > 0 and self.taps > 0


def fprop_axis(pixels: int, taps: int, stride: int, pad: int, dilation: int) -> Axis:
    """Over x: every pixel of y meets every filter position."""
    return Axis(pixels, -pad, stride, taps, dilation, 0, 1)


def dgrad_axis(pixels: int, taps: int, stride: int, pad: int, dilation: int, residue: int) -> Axis:
    """Over dy, for the pixels of dx of one residue modulo the stride: each meets every (stride / gcd(stride, dilation))-th filter
    position, from the last one back, and some residues meet none (`dgrad_axis` of matrices.cuh derives it)."""
    of_residue = max(0, _ceil_divide(pixels - residue, stride))
    every = stride // gcd(stride, dilation)
    first = next((tap for tap in range(min(every, taps)) if (residue + pad - tap * dilation) % stride == 0), None)
    if first is None:
        return Axis(of_residue, 0, 1, 0, 0, 0, 0, residue)
    met, step = _ceil_divide(taps - first, every), every * dilation // stride
    last = first + (met - 1) * every
    return Axis(of_residue, (residue + pad - last * dilation) // stride, 1, met, step, last, -every, residue)


Image = tuple[Axis, Axis]  # vertical, horizontal


def images(direction: str, problem: Conv2dProblem) -> tuple[Image, ...]:
    """What is walked over: x, or dy once for each residue."""
    p = problem
    if direction != "dgrad":
        vertical = fprop_axis(p.P, p.R, p.stride[0], p.pad[0], p.dilation[0])
        return ((vertical, fprop_axis(p.Q, p.S, p.stride[1], p.pad[1], p.dilation[1])),)
    rows, columns = p.residues
    return tuple(
        (
            dgrad_axis(p.H, p.R, p.stride[0], p.pad[0], p.dilation[0], residue // columns),
            dgrad_axis(p.W, p.S, p.stride[1], p.pad[1], p.dilation[1], residue % columns),
        )
        for residue in range(rows * columns)
    )


# ---- tensor maps: sizes and strides are torch's, (N, C, H, W) or (K, C, R, S); a row of a box is one whole span ----------------


def _innermost_first(sizes: Sequence[int], strides: Sequence[int], item: int) -> tuple[Four, Three]:
    """Extents and byte strides as maps have them. A dimension of one element is given the stride it would have if dense."""
    extents = (sizes[1], sizes[3], sizes[2], sizes[0])
    found: list[int] = []
    dense = _ceil_divide(sizes[1] * item, 16) * 16
    for extent, stride in zip(extents[1:], (strides[3], strides[2], strides[0]), strict=True):
        found.append(dense if extent == 1 else stride * item)
        dense = found[-1] * extent
    return extents, (found[0], found[1], found[2])


def image_map(
    dtype: str, sizes: Sequence[int], strides: Sequence[int], image: Image, channels: int, pixels: int, address: int = 0
) -> TensorMapSpec:
    """Boxes of some channels of some pixels of an image, channels contiguous."""
    vertical, horizontal = image
    extent, stride = _innermost_first(sizes, strides, ITEM_BYTES[dtype])
    return TensorMapSpec(
        *(address, dtype, extent, stride, channels * ITEM_BYTES[dtype]),
        element_stride=(1, horizontal.up, vertical.up, 1),
        lower=(horizontal.start, vertical.start),
        upper=(horizontal.upper(sizes[3]), vertical.upper(sizes[2])),
        channels=channels,
        pixels=pixels,
    )


def filter_map(
    dtype: str, sizes: Sequence[int], strides: Sequence[int], channels: int, rows: int, address: int = 0
) -> TensorMapSpec:
    """Boxes of one filter position: some channels of some rows, which are dimension 0."""
    extent, stride = _innermost_first(sizes, strides, ITEM_BYTES[dtype])
    return TensorMapSpec(address, dtype, extent, stride, channels * ITEM_BYTES[dtype], box=(channels, 1, 1, rows))


def as_it_is(height: int, width: int) -> Image:
    """The image of a 1x1 filter."""
    return fprop_axis(height, 1, 1, 0, 1), fprop_axis(width, 1, 1, 0, 1)
