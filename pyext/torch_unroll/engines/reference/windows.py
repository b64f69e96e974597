"""Windows over a plane, cell by cell: the pixels under cell (r, s) of all windows form a strided slice of the plane.

The slices leave out what lies in the padding, so padding takes no memory, however wide it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch_unroll.engines.interface import Pool2dGeometry


def _overlap(extent: int, outputs: int, cell: int, stride: int, padding: int, dilation: int) -> tuple[slice, slice]:
    """Returns slices along one axis: the windows whose `cell` lies in the plane, and the pixels under it."""
    start = cell * dilation - padding
    first = max(0, -(start // stride))
    last = min(outputs, (extent - 1 - start) // stride + 1)
    if first >= last:
        return slice(0, 0), slice(0, 0)
    # A single window needs no step, and in torch the product of a huge step and the tensor's stride could overflow 64 bits.
    step = stride if last - first > 1 else 1
    return slice(first, last), slice(start + first * stride, start + (last - 1) * stride + 1, step)


def cells(
    x_size: Sequence[int], y_size: Sequence[int], window: Pool2dGeometry
) -> Iterator[tuple[int, tuple[slice, ...], tuple[slice, ...]]]:
    """Yields, for each cell of the window: its number r·S + s, the outputs for which that cell lies in the plane, and the pixels
    on which it lies.

    Sizes are (height, width), and the padding is that above and to the left. The slices are for tensors (N, C, height, width).
    """
    whole = (slice(None), slice(None))
    rows, columns = (
        [
            _overlap(x_size[i], y_size[i], cell, window.stride[i], window.padding[i], window.dilation[i])
            for cell in range(window.kernel_size[i])
        ]
        for i in (0, 1)
    )
    for r, (outputs_h, pixels_h) in enumerate(rows):
        for s, (outputs_w, pixels_w) in enumerate(columns):
            yield r * len(columns) + s, (*whole, outputs_h, outputs_w), (*whole, pixels_h, pixels_w)
