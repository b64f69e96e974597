"""The search for the fault behind a wrong result: each hypothesis is tested by computing the result that it predicts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import log2

import torch
from torch import Tensor

from benchmarks.gpu.failures.evidence import tile_of
from benchmarks.gpu.failures.lines import lines
from benchmarks.gpu.failures.stages import by_warp
from benchmarks.gpu.failures.sums import combinations
from benchmarks.gpu.failures.swizzles import swizzles
from benchmarks.gpu.failures.tiles import UNWRITTEN, Failure, Finding, Hypothesis, WrongTile

_NAN = float("nan")
#: Sizes of the squares within which a result may be transposed.
_SQUARES = (256, 128, 64, 32, 16, 8, 4, 2)
#: The search by warps, which is slow, is left out if a hypothesis explains at least this share of the wrong elements.
_MOST_OF = 0.9
#: The most rows or columns by which an addend may be off.
_FURTHEST = 16


def findings(failure: Failure) -> list[Finding]:
    """The findings that are unlikely to be accidental, the likeliest first; empty if there are none."""
    if not failure.wrong:
        return []
    claimed: dict[tuple[str, str], Finding] = {}

    def gather(hypotheses: Iterator[Hypothesis]) -> None:
        for finding in map(failure.judge, hypotheses):
            key = finding.kind, finding.words
            if finding.claimed and (key not in claimed or finding.bits > claimed[key].bits):
                claimed[key] = finding

    for source in (_values, _addends, combinations, _transposed, lines, swizzles, _alternatives):
        gather(source(failure))
    if all(finding.explained < _MOST_OF * failure.wrong for finding in claimed.values()):
        gather(by_warp(failure))
    return sorted(claimed.values(), key=lambda finding: -finding.bits)


def _values(failure: Failure) -> Iterator[Hypothesis]:
    """Hypothesizes that elements were never written, or are zero."""
    for kind, words, value in (
        ("never written", "the elements are NaN: they, or values that they depend on, were never written", UNWRITTEN),
        ("zero", "the elements are 0", 0.0),
    ):
        predicted = [torch.where(tile.box, torch.full_like(tile.result, value), _NAN) for tile in failure.tiles]
        yield Hypothesis(kind=kind, words=words, bits=8, predicted=predicted)


def _addends(failure: Failure) -> Iterator[Hypothesis]:
    """Hypothesizes that the addend is missing, was added more than once, or is that of another row or column."""
    if not any(tile.addend.any() for tile in failure.tiles):
        return
    name, tiling = failure.product.addend, failure.product.tiling
    yield failure.predict("missing bias", f"{name} is not added", 1, lambda tile: tile.sums)
    yield failure.predict("wrong bias", f"{name} is added twice", 3, lambda tile: tile.sums + 2 * tile.addend)
    yield failure.predict("wrong bias", f"{name} is added three times", 3, lambda tile: tile.sums + 3 * tile.addend)
    for axis, are in enumerate((tiling.rows_are, tiling.columns_are)):
        extent = failure.tiles[0].part.place.shape[axis]
        for by in range(-min(_FURTHEST, extent - 1), min(_FURTHEST, extent - 1) + 1):
            moved = partial(_with_addend_moved, failure, axis, by)
            if by and any((moved(tile) != tile.sums + tile.addend).any() for tile in failure.tiles):
                words = f"{name} is that of the {are} {abs(by)} {'after' if by > 0 else 'before'}"
                yield failure.predict("wrong bias", words, 2 * log2(2 * _FURTHEST), moved)


def _with_addend_moved(failure: Failure, axis: int, by: int, tile: WrongTile) -> Tensor:
    assert tile.part.addend is not None
    moved = tile.part.addend.expand(tile.part.place.shape).roll(-by, axis)
    return tile.sums + tile_of(moved, failure.product.tiling, *tile.number)


def _transposed(failure: Failure) -> Iterator[Hypothesis]:
    """Hypothesizes that the operands are exchanged, or that one of them is used as both.

    An exchange transposes the product or blocks of it.
    """
    if failure.tiles[0].left is None:
        return
    rows, columns = failure.product.tiling[:2]
    blocks = {(rows, columns), (min(rows, 64), columns), *((size, size) for size in _SQUARES if size <= min(rows, columns))}
    for block in sorted(blocks, reverse=True):
        within = f" within blocks of {block[0]}x{block[1]}"
        exchanged = partial(_exchanged, block, False)
        yield failure.predict("swapped operands", f"left and right operand are exchanged{within}", 4, exchanged)
        if any(tile.addend.any() for tile in failure.tiles):
            yield failure.predict("swapped operands", f"the result is transposed{within}", 5, partial(_exchanged, block, True))

    for words, side in (
        ("the left operand is multiplied by itself", "left"),
        ("the right operand is multiplied by itself", "right"),
    ):
        if rows == columns:
            yield failure.predict("swapped operands", words, 5, partial(_by_itself, side))


def _by_itself(side: str, tile: WrongTile) -> Tensor:
    operand = tile.left if side == "left" else tile.right
    assert operand is not None
    return operand @ operand.mT + tile.addend


def _exchanged(block: tuple[int, int], with_addend: bool, tile: WrongTile) -> Tensor:
    return (
        _transposed_blocks(tile.sums + tile.addend, block) if with_addend else _transposed_blocks(tile.sums, block) + tile.addend
    )


def _transposed_blocks(values: Tensor, block: tuple[int, int]) -> Tensor:
    """Transposes each block; NaN where an element comes from outside of the tile."""
    row, column = torch.arange(values.shape[0])[:, None], torch.arange(values.shape[1])
    from_row, from_column = row // block[0] * block[0] + column % block[1], column // block[1] * block[1] + row % block[0]
    outside = (from_row >= values.shape[0]) | (from_column >= values.shape[1])
    turned = values[from_row.clamp(max=values.shape[0] - 1), from_column.clamp(max=values.shape[1] - 1)]
    return turned.masked_fill(outside, _NAN)


def _alternatives(failure: Failure) -> Iterator[Hypothesis]:
    """Yields a hypothesis for each of `Product.alternatives`."""
    for kind, words, whole in failure.product.alternatives:
        values = whole().flatten().double()
        predicted = [
            failure.product.finished(values[tile.place.clamp(min=0)], tile.place, failure.dtype) for tile in failure.tiles
        ]
        yield Hypothesis(kind=kind, words=words, bits=5, predicted=predicted)
