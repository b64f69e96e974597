"""The kept tiles of a wrong result beside what they are made of, and hypotheses, which predict each tile as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import log2
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.exact.case import Case
from benchmarks.gpu.failures.evidence import product_of, tile_of, unpacked
from benchmarks.gpu.failures.products import Part, Product

#: Bits of agreement beyond what a hypothesis was free to choose, from which on it is no accident.
_LEAST_BITS = 16
#: What stands for NaN, and in integers for the largest number: what memory is poisoned with.
UNWRITTEN = 1e300
#: Wrong elements of a row that is explained as a whole, and the share of all wrong elements that such rows have to hold.
_LEAST_IN_A_ROW, _LEAST_SHARE = 8, 0.05
#: What restricting a hypothesis to the wrong rows and columns costs.
_BOX_BITS = 10


@dataclass
class WrongTile:
    """One tile; all but `part` and the numbers have its rows and columns, as float64."""

    part: Part
    number: tuple[int, int]
    place: Tensor  # -1 beyond the edges
    left: Tensor | None  # its rows of the left operand, as float32
    right: Tensor | None
    addend: Tensor
    result: Tensor
    exact: Tensor
    judged: Tensor  # where the operands are known: the element exists and no earlier step has spoiled it

    @cached_property
    def sums(self) -> Tensor:
        """The right ones, without the addend."""
        assert self.left is not None
        assert self.right is not None
        return (self.left @ self.right.mT).double()

    @cached_property
    def wrong(self) -> Tensor:
        return self.judged & (self.result != self.exact)

    @cached_property
    def right_ones(self) -> Tensor:
        """Elements that came out right."""
        return self.judged & (self.result == self.exact)

    @cached_property
    def box(self) -> Tensor:
        """The rows and columns that hold wrong elements."""
        return self.wrong.any(1)[:, None] & self.wrong.any(0)


@dataclass
class Hypothesis:
    """What may have happened, and what each tile would hold then; NaN where that cannot be told."""

    kind: str
    words: str
    bits: float  # what it was free to choose
    predicted: list[Tensor]


@dataclass(frozen=True)
class Finding:
    """A hypothesis and what the tiles say to it."""

    kind: str
    words: str
    explained: int  # of the wrong elements, exactly
    contradicted: int  # right elements that it would have made wrong
    restricted: bool  # to the rows and columns that hold wrong elements
    bits: float
    claimed: bool  # more than an accident


class Failure:
    """A wrong result of a case, from its evidence."""

    def __init__(self, case: Case, told: Mapping[str, Any]):
        self.case, self.name = case, told["result"]
        expected = case.expected()[self.name]
        self.dtype = expected.dtype
        self.product: Product = product_of(case, self.name, operands=True)
        self.exact = expected.flatten().double()
        self.tiles = [self._tile(kept, told["dtype"]) for kept in told.get("kept", ())]
        results = torch.cat([tile.result[tile.wrong] for tile in self.tiles]) if self.tiles else torch.zeros(0)
        self.wrong = len(results)
        #: Bits that the agreement of one element is worth: a hypothesis that knows nothing agrees by chance.
        shares = torch.unique(results, return_counts=True)[1].double() / max(self.wrong, 1)
        self.bits = max(0.5, -log2(float((shares**2).sum()))) if self.wrong else 0.0

    def _tile(self, kept: Mapping[str, Any], dtype: str) -> WrongTile:
        part, (row, column), tiling = self.product.parts[kept["part"]], kept["tile"], self.product.tiling
        place = tile_of(part.place, tiling, row, column, -1)
        judged = place >= 0
        judged[:, kept["spoiled"]] = False
        if self.product.kept is not None:  # what is 0 whatever the product is says nothing of it, unless it is not 0
            decided = self.product.kept[place.clamp(min=0)]
            judged &= decided | (_readable(unpacked(kept["data"], dtype, tiling)) != 0)
        addend = torch.zeros(1, 1) if part.addend is None else part.addend
        return WrongTile(
            part,
            (row, column),
            place,
            None if part.left is None else _lines(part.left, tiling.rows, row),
            None if part.right is None else _lines(part.right, tiling.columns, column),
            tile_of(addend.expand(part.place.shape), tiling, row, column).double(),
            _readable(unpacked(kept["data"], dtype, tiling)),
            self.exact[place.clamp(min=0)],
            judged,
        )

    def finished(self, tile: WrongTile, sums: Tensor) -> Tensor:
        """What becomes of sums, addend included."""
        return self.product.finished(sums.double(), tile.place, self.dtype)

    def predict(self, kind: str, words: str, bits: float, sums: Callable[[WrongTile], Tensor]) -> Hypothesis:
        """Of what the sums of a tile would be, addend included."""
        return Hypothesis(kind, words, bits, [self.finished(tile, sums(tile)) for tile in self.tiles])

    def judge(self, hypothesis: Hypothesis) -> Finding:
        """The better of two readings: it holds all over the tiles, or in the rows and columns that hold wrong elements."""
        explained = inside = everywhere = in_whole_rows = 0
        for tile, predicted in zip(self.tiles, hypothesis.predicted, strict=True):
            agrees = predicted == tile.result
            explained += int((agrees & tile.wrong).sum())
            against = ~agrees & ~predicted.isnan() & tile.right_ones
            everywhere += int(against.sum())
            inside += int((against & tile.box).sum())
            whole = ~(tile.wrong & ~agrees | against).any(1) & (tile.wrong.sum(1) >= _LEAST_IN_A_ROW)
            in_whole_rows += int((tile.wrong & whole[:, None]).sum())
        readings = [(self.bits * (explained - everywhere) - hypothesis.bits, everywhere, False)]
        readings.append((self.bits * (explained - inside) - hypothesis.bits - _BOX_BITS, inside, True))
        bits, contradicted, restricted = max(readings)
        likely = explained >= (1 + 2**-self.bits) / 2 * self.wrong and contradicted <= explained
        # Something else may have been wrong as well: but accidents do not explain whole rows.
        partly = in_whole_rows >= _LEAST_SHARE * self.wrong and self.bits * in_whole_rows - hypothesis.bits >= 4 * _LEAST_BITS
        claimed = (likely and bits >= _LEAST_BITS) or partly
        return Finding(hypothesis.kind, hypothesis.words, explained, contradicted, restricted, bits, claimed)


def _readable(result: Tensor) -> Tensor:
    unwritten = result.isnan() if result.is_floating_point() else result == torch.iinfo(result.dtype).max
    return result.double().masked_fill(unwritten, UNWRITTEN)


def _lines(operand: Tensor, extent: int, number: int) -> Tensor:
    """The rows of an operand that a tile takes, zeros beyond the last."""
    lines = operand[number * extent : (number + 1) * extent].float()
    return torch.cat([lines, lines.new_zeros(extent - len(lines), lines.shape[1])])
