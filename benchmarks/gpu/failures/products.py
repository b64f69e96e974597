"""Results as the kernels see them: matrices that are cut into tiles, with the operands that the kernels multiply.

When the evidence of a wrong result is collected, the operands are not computed. They are computed, in the order in which the
kernel walks the depth, when the failure is analysed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Tiling(NamedTuple):
    """The size of the tiles of a result, in elements, and what their rows and columns are."""

    rows: int
    columns: int
    rows_are: str  # what a row of the product is, in words
    columns_are: str
    fragments: bool = False  # whether the sums lie in registers as mma and wgmma arrange them


class Depth(NamedTuple):
    """The dimension that is summed over, including padding, in the order of the kernel."""

    step: int  # elements that are loaded at once
    item: int  # bytes of an element
    splits: int = 1  # blocks that share the depth
    line: int = 0  # elements of a line of a stage, within which a swizzle permutes pieces of 16 bytes; 0 without swizzle
    major: tuple[str, str] = ("depth", "depth")  # the contiguous dimension of the left and of the right operand in a stage
    span: tuple[int, int] = (0, 0)  # bytes of the swizzle of each operand that wgmma reads; 0 for other kernels
    warps: int = 0  # warps that take steps in turn; 0 if all warps take part in every step


@dataclass
class Part:
    """One matrix of a result, such as that of a group, of a residue modulo the stride, or of a direction of a recurrence.

    If it has operands, its elements result from `left @ right.mT + addend`. `label[kind][d]` is the number of the unit of this
    kind ("tap", "channel" or "image") to which depth d belongs, and -1 for padding.
    """

    name: str
    place: Tensor  # (rows, columns): the index of each element in the flat result; -1 for padding
    left: Tensor | None = None  # (rows, depth)
    right: Tensor | None = None  # (columns, depth)
    addend: Tensor | None = None  # (rows, columns), or a shape that expands to it
    label: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def sums(self) -> Tensor:
        """The product without the addend."""
        assert self.left is not None
        assert self.right is not None
        return self.left @ self.right.mT


@dataclass
class Product:
    """A result of a case as matrices."""

    tiling: Tiling
    parts: list[Part]
    depth: Depth | None = None  # None if nothing is summed
    addend: str = "the bias"
    relu: bool = False
    kept: Tensor | None = None  # a mask of the flat result: the elements that depend on the product; the others are always 0
    #: Results of faulty computations: the kind of the fault, its description, and a function that computes the whole result.
    alternatives: list[tuple[str, str, Callable[[], Tensor]]] = field(default_factory=list)

    def finished(self, values: Tensor, place: Tensor, dtype: torch.dtype) -> Tensor:
        """Applies relu if `relu` is set, sets the elements that `kept` excludes to 0, and rounds the others."""
        if self.relu:
            values = values.clamp(min=0)
        if self.kept is not None:
            values = torch.where(self.kept[place.clamp(min=0)], values, values.new_zeros(()))
        return rounded(values, dtype)


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds to the precision of a dtype, and returns float64."""
    return values.to(dtype).double()


def padded(tensor: Tensor, dim: int, multiple: int, value: float = 0) -> Tensor:
    """Pads a dimension with `value` to a multiple."""
    missing = -tensor.shape[dim] % multiple
    if not missing:
        return tensor
    size = list(tensor.shape)
    size[dim] = missing
    return torch.cat([tensor, tensor.new_full(size, value)], dim)


def tiles_of(part: Part, tiling: Tiling, elements: Tensor) -> list[tuple[int, int]]:
    """The (row, column) of each tile that contains a true element of the mask `elements`."""
    whole = padded(padded(elements, 0, tiling.rows), 1, tiling.columns)
    grid = whole.unflatten(1, (-1, tiling.columns)).unflatten(0, (-1, tiling.rows))
    return [(row, column) for row, column in grid.any(3).any(1).nonzero().tolist()]
