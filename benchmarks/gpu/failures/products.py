"""Results as the kernels see them: matrices of rows and columns, cut into tiles, and the operands whose product they are.

Only the places and the tiling are made for every wrong result; the operands, in the order in which a kernel walks the depth, are
made where a failure is taken apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Tiling(NamedTuple):
    """Of a result, in elements."""

    rows: int
    columns: int
    rows_are: str  # in words: what a row of the product is
    columns_are: str
    fragments: bool = False  # whether sums lie in registers as mma and wgmma have them


class Depth(NamedTuple):
    """What is summed over, in the order of the kernel; padding included."""

    step: int  # elements that are fetched at once
    item: int  # bytes of one
    splits: int = 1  # blocks that share it
    line: int = 0  # elements of a line of a stage, whose pieces of 16 bytes may be permuted
    major: tuple[str, str] = ("depth", "depth")  # of the left and the right operand: what is contiguous in a stage
    span: tuple[int, int] = (0, 0)  # bytes of the swizzle of each operand, where wgmma reads them; else 0
    warps: int = 0  # that take steps in turn; 0: steps are nobody's own


@dataclass
class Part:
    """One matrix of a result: a group, a residue, a direction of a recurrence.

    Of the product `left @ right.mT + addend`; `label[kind][d]` tells which unit of a kind depth d belongs to, -1 for padding.
    """

    name: str
    place: Tensor  # (rows, columns): where an element is in the flat result; -1 where it has none
    left: Tensor | None = None  # (rows, depth)
    right: Tensor | None = None  # (columns, depth)
    addend: Tensor | None = None  # (rows, columns), or what expands to it
    label: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def sums(self) -> Tensor:
        """Without the addend."""
        assert self.left is not None
        assert self.right is not None
        return self.left @ self.right.mT


@dataclass
class Product:
    """A result of a case, taken apart."""

    tiling: Tiling
    parts: list[Part]
    depth: Depth | None = None  # None: nothing is summed
    addend: str = "the bias"
    relu: bool = False
    kept: Tensor | None = None  # flat: elements that the product decides; the others are 0 whatever it is
    #: Results by another meaning: kind, words, and what makes the whole of it.
    alternatives: list[tuple[str, str, Callable[[], Tensor]]] = field(default_factory=list)

    def finished(self, values: Tensor, place: Tensor, dtype: torch.dtype) -> Tensor:
        """What becomes of sums; NaN stays."""
        if self.relu:
            values = values.clamp(min=0)
        if self.kept is not None:
            values = torch.where(self.kept[place.clamp(min=0)], values, values.new_zeros(()))
        return rounded(values, dtype)


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """To a dtype's precision, as float64."""
    return values.to(dtype).double()


def padded(tensor: Tensor, dim: int, multiple: int, value: float = 0) -> Tensor:
    """With its extent rounded up to a multiple."""
    missing = -tensor.shape[dim] % multiple
    if not missing:
        return tensor
    size = list(tensor.shape)
    size[dim] = missing
    return torch.cat([tensor, tensor.new_full(size, value)], dim)


def ceil_divide(a: int, b: int) -> int:
    return -(-a // b)


def tiles_of(part: Part, tiling: Tiling, elements: Tensor) -> list[tuple[int, int]]:
    """The tiles, by their numbers down and across, that hold any of the elements (rows, columns) that are true."""
    down, across = (padded(padded(elements, 0, tiling.rows), 1, tiling.columns).shape[i] for i in (0, 1))
    grid = padded(padded(elements, 0, tiling.rows), 1, tiling.columns).view(
        down // tiling.rows, tiling.rows, across // tiling.columns, tiling.columns
    )
    return [(row, column) for row, column in grid.any(3).any(1).nonzero().tolist()]
