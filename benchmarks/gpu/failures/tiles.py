"""The kept tiles of a wrong result with the operands that they result from, and hypotheses that predict whole tiles."""

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

#: A hypothesis is unlikely to agree by accident if its agreement is worth at least this many bits more than its free choices.
_LEAST_BITS = 16
#: Replaces the values with which memory is poisoned: NaN, and the largest integer.
UNWRITTEN = 1e300
#: A row counts as wholly explained only if it has at least _LEAST_IN_A_ROW wrong elements. A hypothesis that explains such rows
#: is claimed if they hold at least _LEAST_SHARE of all wrong elements and their agreement is worth enough bits.
_LEAST_IN_A_ROW, _LEAST_SHARE = 8, 0.05
#: The cost in bits of restricting a hypothesis to the wrong rows and columns.
_BOX_BITS = 10


@dataclass
class WrongTile:
    """A tile that contains wrong elements. Unless stated otherwise, tensors have its rows and columns; values are float64."""

    part: Part
    number: tuple[int, int]
    place: Tensor  # indices in the flat result; -1 beyond the edges
    left: Tensor | None  # (rows, depth) of the left operand, as float32
    right: Tensor | None  # (columns, depth) of the right operand, as float32
    addend: Tensor
    result: Tensor
    exact: Tensor
    # Whether an element counts. It has to exist, and no wrong earlier step may have spoiled it. An element that must be 0 counts
    # only if it is not 0.
    judged: Tensor

    @cached_property
    def sums(self) -> Tensor:
        """The exact sums, without the addend."""
        assert self.left is not None
        assert self.right is not None
        return (self.left @ self.right.mT).double()

    @cached_property
    def wrong(self) -> Tensor:
        return self.judged & (self.result != self.exact)

    @cached_property
    def right_ones(self) -> Tensor:
        """The elements that are right."""
        return self.judged & (self.result == self.exact)

    @cached_property
    def box(self) -> Tensor:
        """The elements whose row and whose column hold wrong elements."""
        return self.wrong.any(1)[:, None] & self.wrong.any(0)


@dataclass
class Hypothesis:
    """A possible fault, and the tiles that it predicts; NaN where it predicts nothing."""

    kind: str
    words: str
    bits: float  # what its free choices are worth, in bits
    predicted: list[Tensor]


@dataclass(frozen=True)
class Finding:
    """A hypothesis and its agreement with the tiles."""

    kind: str
    words: str
    explained: int  # wrong elements that it predicts exactly
    contradicted: int  # right elements that it predicts to be wrong
    restricted: bool  # whether it applies only to the rows and columns that contain wrong elements
    bits: float  # what its agreement is worth, less what its free choices are worth
    claimed: bool  # whether it is unlikely to be accidental


class Failure:
    """A wrong result of a case, reconstructed from its evidence."""

    def __init__(self, case: Case, evidence: Mapping[str, Any]):
        self.case, self.name = case, evidence["result"]
        expected = case.expected()[self.name]
        self.dtype = expected.dtype
        self.product: Product = product_of(case, self.name, operands=True)
        self.exact = expected.flatten().double()
        self.tiles = [self._tile(kept, evidence["dtype"]) for kept in evidence.get("kept", ())]
        results = torch.cat([tile.result[tile.wrong] for tile in self.tiles]) if self.tiles else torch.zeros(0)
        self.wrong = len(results)
        #: The bits that the agreement of one element is worth; fewer if some values are frequent and thus easily guessed.
        shares = torch.unique(results, return_counts=True)[1].double() / max(self.wrong, 1)
        self.bits = max(0.5, -log2(float((shares**2).sum()))) if self.wrong else 0.0

    def _tile(self, kept: Mapping[str, Any], dtype: str) -> WrongTile:
        part, (row, column), tiling = self.product.parts[kept["part"]], kept["tile"], self.product.tiling
        place = tile_of(part.place, tiling, row, column, -1)
        judged = place >= 0
        judged[:, kept["spoiled"]] = False
        if self.product.kept is not None:  # an element that must be 0, whatever the product, counts only if it is not 0
            decided = self.product.kept[place.clamp(min=0)]
            judged &= decided | (_readable(unpacked(kept["data"], dtype, tiling)) != 0)
        addend = torch.zeros(1, 1) if part.addend is None else part.addend
        return WrongTile(
            part=part,
            number=(row, column),
            place=place,
            left=None if part.left is None else _lines(part.left, tiling.rows, row),
            right=None if part.right is None else _lines(part.right, tiling.columns, column),
            addend=tile_of(addend.expand(part.place.shape), tiling, row, column).double(),
            result=_readable(unpacked(kept["data"], dtype, tiling)),
            exact=self.exact[place.clamp(min=0)],
            judged=judged,
        )

    def finished(self, tile: WrongTile, sums: Tensor) -> Tensor:
        """The elements of a tile that result from `sums`, which include the addend."""
        return self.product.finished(sums.double(), tile.place, self.dtype)

    def predict(self, kind: str, words: str, bits: float, sums: Callable[[WrongTile], Tensor]) -> Hypothesis:
        """A hypothesis that predicts, for each tile, the elements that result from `sums(tile)`, which includes the addend."""
        predicted = [self.finished(tile, sums(tile)) for tile in self.tiles]
        return Hypothesis(kind=kind, words=words, bits=bits, predicted=predicted)

    def judge(self, hypothesis: Hypothesis) -> Finding:
        """Judges a hypothesis for whole tiles, or for the rows and columns with wrong elements if that agrees better."""
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
        # Another fault may explain the other elements, but whole rows are hardly ever explained by accident.
        partly = in_whole_rows >= _LEAST_SHARE * self.wrong and self.bits * in_whole_rows - hypothesis.bits >= 4 * _LEAST_BITS
        claimed = (likely and bits >= _LEAST_BITS) or partly
        return Finding(
            kind=hypothesis.kind,
            words=hypothesis.words,
            explained=explained,
            contradicted=contradicted,
            restricted=restricted,
            bits=bits,
            claimed=claimed,
        )


def _readable(result: Tensor) -> Tensor:
    unwritten = result.isnan() if result.is_floating_point() else result == torch.iinfo(result.dtype).max
    return result.double().masked_fill(unwritten, UNWRITTEN)


def _lines(operand: Tensor, extent: int, number: int) -> Tensor:
    """The rows of an operand that belong to a tile, with zeros beyond the last one."""
    lines = operand[number * extent : (number + 1) * extent].float()
    return torch.cat([lines, lines.new_zeros(extent - len(lines), lines.shape[1])])
