"""Windows over a plane, cell by cell: each cell (r, s) of all windows at once is a strided slice of the plane.

Only what lies in the plane is named, so padding takes no memory, however wide it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch_unroll.engines.interface import Pair


def _overlap(extent: int, outputs: int, cell: int, stride: int, padding: int, dilation: int) -> tuple[slice, slice]:
    """Along one axis: the windows whose `cell` lies in the plane, and the pixels it lies on."""
    start = cell * dilation - padding
    first = max(0, -(start // stride))
    last = min(outputs, (extent - 1 - start) // stride + 1)
    if first >= last:
        return slice(0, 0), slice(0, 0)
    step = stride if last - first > 1 else 1  # torch multiplies a step by the tensor's stride, in 64 bits
    return slice(first, last), slice(start + first * stride, start + (last - 1) * stride + 1, step)


def cells(
    x_size: Pair, y_size: Sequence[int], kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Iterator[tuple[int, tuple[slice, ...], tuple[slice, ...]]]:
    """For each cell of the window: its place in it, the outputs that have it, and the pixels they find there.

    Sizes are (height, width), padding is that above and to the left; the slices are of tensors (N, C, height, width).
    """
    whole = (slice(None), slice(None))
    rows, columns = (
        [_overlap(x_size[i], y_size[i], cell, stride[i], padding[i], dilation[i]) for cell in range(kernel_size[i])]
        for i in (0, 1)
    )
    for r, (outputs_h, pixels_h) in enumerate(rows):
        for s, (outputs_w, pixels_w) in enumerate(columns):
            yield r * kernel_size[1] + s, (*whole, outputs_h, outputs_w), (*whole, pixels_h, pixels_w)
