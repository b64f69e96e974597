"""A model, independent of the emulator, of TMA and of wgmma's operands, as kernels/cuda/platform describes them.

The model computes coordinates by closed forms, where the emulator goes step by step. Tensors have the shape (N, H, W, C).
Sequences of coordinates, strides and corners are innermost first, as in tensor maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def gather(tensor: np.ndarray, channel: int, channels: int, w: np.ndarray, h: np.ndarray, n: np.ndarray) -> np.ndarray:
    """A row of channels for each pixel, with zeros outside of the tensor."""
    N, H, W, C = tensor.shape
    c = channel + np.arange(channels)
    inside = (n >= 0) & (n < N) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    inside = inside[:, None] & ((c >= 0) & (c < C))[None]
    rows = tensor[np.clip(n, 0, N - 1), np.clip(h, 0, H - 1), np.clip(w, 0, W - 1)][:, np.clip(c, 0, C - 1)]
    return np.where(inside, rows, 0).astype(tensor.dtype)


def im2col(
    tensor: np.ndarray,
    lower: Sequence[int],
    upper: Sequence[int],
    stride: Sequence[int],
    start: Sequence[int],
    offset: Sequence[int],
    channels: int,
    pixels: int,
) -> np.ndarray:
    """The rows of an im2col copy.

    Its pixels have consecutive numbers m = (n P + p) Q + q, like the outputs (n, p, q) of a convolution.
    """
    _, H, W, _ = tensor.shape
    Q, P = ((extent - 1 + up - low) // u + 1 for extent, low, up, u in zip((W, H), lower, upper, stride, strict=True))
    first = (start[3] * P + (start[2] - lower[1]) // stride[1]) * Q + (start[1] - lower[0]) // stride[0]
    m = first + np.arange(pixels)
    w = lower[0] + m % Q * stride[0] + offset[0]
    h = lower[1] + m // Q % P * stride[1] + offset[1]
    return gather(tensor, start[0], channels, w, h, m // (Q * P))


def tiled(tensor: np.ndarray, start: Sequence[int], box: Sequence[int], stride: Sequence[int]) -> np.ndarray:
    """The rows of a tiled copy."""
    w, h, n = (np.arange(start[i], start[i] + box[i], stride[i]) for i in (1, 2, 3))
    n, h, w = (coordinates.reshape(-1) for coordinates in np.meshgrid(n, h, w, indexing="ij"))
    return gather(tensor, start[0], box[0], w, h, n)


def in_shared_memory(rows: np.ndarray, swizzle: int, *, base: int = 0, fill: int = 0xFF) -> np.ndarray:
    """The bytes of shared memory after a copy of these rows to a destination `base` bytes after a multiple of 1024.

    `fill` is the value of bytes that the copy does not write. Without swizzle (0), the rows are contiguous.
    """
    rows = np.ascontiguousarray(rows).view(np.uint8)
    pitch = swizzle or rows.shape[1]
    shared = np.full((len(rows), pitch), fill, np.uint8)
    pieces, places = rows.reshape(len(rows), -1, 16), shared.reshape(len(rows), -1, 16)
    for i in range(len(rows)):
        for p in range(pieces.shape[1]):
            row = i + base // pitch
            places[i, p ^ (row // (128 // swizzle) % (swizzle // 16)) if swizzle else p] = pieces[i, p]
    return shared.reshape(-1)


def tf32(values: np.ndarray, *, truncate: bool = False) -> np.ndarray:
    """Converts values to TF32, whose mantissa has 10 bits, by rounding to nearest even or by truncation.

    As in the emulator, rounding turns every NaN into 0x7FFFE000.
    """
    if truncate:
        words = values.astype(np.float32).view(np.uint32)
        return (words - words % 0x2000).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        mantissa, exponent = np.frexp(values.astype(np.float64))
        places = np.minimum(11, exponent + 136)  # bits of the rounded mantissa; subnormal numbers have fewer
        rounded = np.ldexp(np.rint(np.ldexp(mantissa, places)), exponent - places).astype(np.float32)
    rounded = np.where(np.isfinite(values), rounded, values.astype(np.float32)).astype(np.float32)
    rounded.view(np.uint32)[np.isnan(values)] = 0x7FFFE000
    return rounded


class Operand(NamedTuple):
    """The bytes of an operand in shared memory, and how descriptors address it; the numbers are in bytes."""

    bytes: np.ndarray
    leading: int
    stride: int
    span: int
    step: int  # the distance between the parts that successive products read
    start: int = 0  # the offset of the first product's part from the first byte, which is at a multiple of 1024


def depth_major(matrix: np.ndarray, span: int) -> Operand:
    """A matrix as an operand in Major::depth. Each of its rows holds 64 bytes, the depth of two products."""
    rows = np.ascontiguousarray(matrix).view(np.uint8)
    blocks = [in_shared_memory(rows[:, first : first + span], span) for first in range(0, rows.shape[1], span)]
    return Operand(np.concatenate(blocks), 16, 8 * span, span, len(rows) * span if span == 32 else 32)


def row_major(matrix: np.ndarray, span: int) -> Operand:
    """A matrix (rows, depth) of 16-bit elements as an operand in Major::rows."""
    depth = matrix.shape[1]
    lines = np.ascontiguousarray(matrix.T).view(np.uint8)
    blocks = [in_shared_memory(lines[:, first : first + span], span) for first in range(0, lines.shape[1], span)]
    return Operand(np.concatenate(blocks), depth * span, 8 * span, span, 16 * span)


def element_read(major: str, swizzle: int, start: int, leading: int, stride: int, size: int) -> np.ndarray:
    """The element that a descriptor selects for each of 64 rows and each depth of one product, as an index into a region.

    The region is a part of shared memory at a multiple of 1024 bytes. `swizzle`, `start`, `leading` and `stride` are the
    descriptor's fields in bytes; `start` is relative to the region. `size` is the number of bytes of an element.
    """
    depth = 32 // size
    mn, k = np.meshgrid(np.arange(64), np.arange(depth), indexing="ij")
    if major == "K":
        atom, line, byte = mn // 8 * stride, mn % 8, k * size
    else:
        atom, line, byte = mn * size // swizzle * leading + k // 8 * stride, k % 8, mn * size % swizzle
    # The swizzle pattern repeats every eight lines. `start` selects a line of the pattern and a byte within that line.
    byte = byte + start % swizzle
    line = line + start // swizzle
    piece = byte // 16 ^ line % 8 // (128 // swizzle) % (swizzle // 16)
    return (atom + line * swizzle + piece * 16 + byte % 16) // size
