"""Hypotheses that operands were read from other places of a stage than those they were written to.

Either pieces of 16 bytes are permuted within lines, or a descriptor of wgmma is wrong. A span is the 32, 64 or 128 bytes within
which a swizzle permutes pieces. A wrong descriptor has the swizzle of a span of another width, or the strides of one, or wrong
distances from one part of the depth to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product as pairs

import torch
from torch import Tensor

from benchmarks.gpu.exact.conv2d import Conv2dCase
from benchmarks.gpu.failures.products import Depth
from benchmarks.gpu.failures.tiles import UNWRITTEN, Failure, Hypothesis, WrongTile
from torch_unroll.kernels.arithmetic import ceil_divide
from torch_unroll.kernels.cuda.conv2d import wgmma

_NAN = float("nan")
#: The bytes of a piece, the lines after which a swizzle repeats, and the most wrong elements in a system of equations.
_PIECE_BYTES, _PERIOD, _SAMPLE = 16, 8, 1500
_SIDES = {(True, False): "the left operand", (False, True): "the right operand", (True, True): "both operands"}


def swizzles(failure: Failure) -> Iterator[Hypothesis]:
    """Yields the hypotheses about where the operands of a stage were read."""
    depth = failure.product.depth
    if depth is None or failure.tiles[0].left is None:
        return
    if depth.line:
        yield from _along_depth(failure, depth)
        if "rows" in depth.major:
            yield from _along_rows(failure, depth)
    if depth.span[0] and isinstance(failure.case, Conv2dCase):
        yield from _by_wgmma(failure, depth, wgmma.TILES[failure.case.tile])


# ---- pieces of a line ----------------------------------------------------------------------------------------------------------


def _along_depth(failure: Failure, depth: Depth) -> Iterator[Hypothesis]:
    """Hypothesizes that pieces are permuted within lines along the depth, by flipping bits of their numbers.

    Each of eight consecutive lines has its own bits: those with which most elements agree.
    """
    piece = _PIECE_BYTES // depth.item
    flips = range(depth.line // piece)
    choices = []  # for each tile, its elements after each flip: (flips, rows, columns)
    for tile in failure.tiles:
        assert tile.left is not None
        assert tile.right is not None
        number = torch.arange(tile.left.shape[1])
        within = number % depth.line
        orders = [number - within + ((within // piece) ^ flip) * piece + within % piece for flip in flips]
        size = tile.left.shape[1]
        sums = [_gathered(tile.left, order, size) @ tile.right.mT + tile.addend for order in orders]
        choices.append(torch.stack([failure.finished(tile, values) for values in sums]))
    for (of_left, of_right), side in _SIDES.items():
        classes = (_PERIOD if of_left else 1, _PERIOD if of_right else 1)
        agreements = torch.zeros(len(choices[0]), classes[0] * classes[1])
        for tile, values in zip(failure.tiles, choices, strict=True):
            agrees = ((values == tile.result) & tile.judged).flatten(1).float()
            agreements.index_add_(1, _classes(tile, classes).flatten(), agrees)
        best = agreements.argmax(0)
        # Where no permutation fits better than the original order, the lines count as not permuted.
        best[agreements.max(0).values == agreements[0]] = 0
        if not best.any():
            continue
        predicted = []
        for tile, values in zip(failure.tiles, choices, strict=True):
            chosen = best[_classes(tile, classes)]
            predicted.append(values.gather(0, chosen[None])[0])
        bits = ", ".join(map(str, best[: min(len(best), _PERIOD)].tolist()))
        words = f"pieces of 16 bytes of {side} are permuted within {depth.line * depth.item} bytes of depth"
        words += f": by flipping {bits} in lines 0, 1, ..."
        yield Hypothesis(kind="swizzle", words=words, bits=3.0 * len(best), predicted=predicted)


def _classes(tile: WrongTile, classes: tuple[int, int]) -> Tensor:
    row, column = torch.arange(tile.result.shape[0]) % classes[0], torch.arange(tile.result.shape[1]) % classes[1]
    return row[:, None] * classes[1] + column


def _gathered(operand: Tensor, order: Tensor, size: int) -> Tensor:
    """Reorders the depth of an operand, with zeros where the order points beyond its `size`."""
    return torch.where(order < size, operand[:, order.clamp(max=size - 1)], 0)


def _along_rows(failure: Failure, depth: Depth) -> Iterator[Hypothesis]:
    """Hypothesizes that pieces are permuted within lines, by flipping bits of their numbers, where a line holds the rows of an
    operand at one depth.

    Depths that are equal modulo 8 share one flip. A result is the sum, over the eight classes of depths, of what a class
    contributes under its flip. With one unknown for each class and flip, which is 1 for the flip that was made and 0 for others,
    least squares finds the flips.
    """
    piece = _PIECE_BYTES // depth.item
    for side, major in zip(("left", "right"), depth.major, strict=True):
        if major != "rows":
            continue
        matrices, wanted = [], []
        draw = torch.Generator().manual_seed(0)
        for tile in failure.tiles:
            elements = (tile.wrong & (tile.result < UNWRITTEN)).nonzero()
            elements = elements[torch.randperm(len(elements), generator=draw)[: ceil_divide(_SAMPLE, len(failure.tiles))]]
            row, column = elements.T
            matrices.append(
                torch.stack([_eighths(tile, row, column, side, flip * piece) for flip in range(_PERIOD)], 2).flatten(1)
            )
            wanted.append((tile.result - tile.addend)[row, column])
        matrix, target = torch.cat(matrices), torch.cat(wanted)
        if len(target) < 2 * matrix.shape[1]:
            continue
        solution = torch.linalg.lstsq(matrix, target[:, None], driver="gelsd").solution.view(_PERIOD, _PERIOD)
        best = solution.argmax(1)
        if not best.any():
            continue

        def sums(tile: WrongTile, side: str = side, best: Tensor = best) -> Tensor:
            left, right = tile.left, tile.right
            assert left is not None
            assert right is not None
            total = tile.addend.clone()
            for eighth, flip in enumerate(best.tolist()):
                moved = (left, right)[side == "right"]
                moved = moved[torch.arange(len(moved)) ^ (flip * piece)][:, eighth::_PERIOD]
                other = (right, left)[side == "right"][:, eighth::_PERIOD]
                total += (moved @ other.mT).double() if side == "left" else (other @ moved.mT).double()
            return total

        words = f"pieces of 16 bytes of the {side} operand are permuted within each depth, across its rows"
        bits = ", ".join(map(str, best.tolist()))
        yield failure.predict("swizzle", f"{words}: by flipping {bits} in depths 0, 1, ...", 3.0 * _PERIOD, sums)


def _eighths(tile: WrongTile, row: Tensor, column: Tensor, side: str, flip: int) -> Tensor:
    """Sums the products over depths equal modulo 8 to (elements, 8), with the bits `flip` of the row or column number flipped."""
    assert tile.left is not None
    assert tile.right is not None
    left, right = (row ^ flip, column) if side == "left" else (row, column ^ flip)
    products = tile.left[left] * tile.right[right]
    return products.unflatten(1, (-1, _PERIOD)).sum(1).double()


# ---- wgmma ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    """The errors in the descriptor of an operand.

    `mode` is the span of its swizzle, and `layout` the span for which its strides are computed; 0 means the correct span. Each
    wgmma reads a part of a step's depth; `odd` multiplies the distance from an even part to the next one, and `two` the distance
    from a part to the next but one.
    """

    mode: int = 0
    layout: int = 0
    odd: int = 1
    two: int = 1


def _by_wgmma(failure: Failure, depth: Depth, tile: wgmma.WgmmaTile) -> Iterator[Hypothesis]:
    reads = [(_Read(mode, layout), "swizzle", _spans(mode, layout)) for mode, layout in pairs((0, 32, 64, 128), repeat=2)]
    reads += [
        (
            _Read(odd=odd, two=two),
            "wrong depth",
            f"with the distances to the next two depths multiplied by {odd} and {two}",
        )
        for odd, two in ((1, 2), (2, 1), (2, 2), (0, 1), (1, 0), (0, 0))
    ]
    for (read, kind, words), ((of_left, of_right), side) in pairs(reads, _SIDES.items()):
        sources = [_source(depth, tile, operand, read if wrong else _Read()) for operand, wrong in enumerate((of_left, of_right))]
        if read == _Read() or all(bool((source == _source(depth, tile, i, _Read())).all()) for i, source in enumerate(sources)):
            continue
        predicted = [_read_so(failure, wrong_tile, depth, sources) for wrong_tile in failure.tiles]
        words = f"{side} of wgmma {'are' if of_left and of_right else 'is'} read {words}"
        yield Hypothesis(kind=kind, words=words, bits=6, predicted=predicted)


def _spans(mode: int, layout: int) -> str:
    words = [f"with a swizzle of {mode} bytes"] if mode else []
    return " and ".join(words + ([f"with the strides of a span of {layout} bytes"] if layout else []))


def _read_so(failure: Failure, tile: WrongTile, depth: Depth, sources: list[Tensor]) -> Tensor:
    """The tile if the operands are read from the places `sources` of the stage (see `_source`); NaN for places beyond it."""
    assert tile.left is not None
    assert tile.right is not None
    stage = torch.cat([tile.left, tile.right]).unflatten(1, (-1, depth.step))
    operands = []
    for source in sources:
        line, place = source.clamp(min=0) // depth.step, source.clamp(min=0) % depth.step
        read = stage[line, :, place]  # (lines, step, steps)
        operands.append(read.masked_fill((source < 0)[:, :, None], _NAN).transpose(1, 2).flatten(1))
    return failure.finished(tile, operands[0] @ operands[1].mT + tile.addend)


def _source(depth: Depth, tile: wgmma.WgmmaTile, operand: int, read: _Read) -> Tensor:
    """The element of the stage from which each element of a step is read, (lines, step); -1 beyond the stage.

    The stage contains the lines of the left operand and then those of the right one. The addresses follow platform/wgmma.h and
    OperandLayout of wgmma.cuh.
    """
    extents = (tile.rows, tile.columns)
    begin = operand * tile.rows * wgmma.STEP_BYTES
    mode, layout = read.mode or depth.span[operand], read.layout or depth.span[operand]
    line, element = torch.arange(extents[operand])[:, None], torch.arange(depth.step)
    if depth.major[operand] == "depth":
        byte, instruction = element * depth.item % 32, element * depth.item // 32
        odd = (extents[operand] * layout if layout == 32 else 32) * read.odd
        two = (64 if layout == 128 else extents[operand] * 64) * read.two
        address = line // 64 * 64 * layout + line % 64 // 8 * 8 * layout + line % 8 * mode + byte
    else:
        instruction = element // 16
        odd, two = 16 * layout * read.odd, 32 * layout * read.two
        group = 64 if operand == 0 else tile.columns // tile.across
        within, per_span = line % group, mode // 2
        address = line // group * (group // 64) * 64 * wgmma.STEP_BYTES + within // per_span * 64 * layout + within % per_span * 2
        address = address + element % 16 // 8 * 8 * layout + element % 8 * mode
    address = begin + address + instruction % 2 * odd + instruction // 2 * two
    address = address ^ ((address >> 7) & (mode // 16 - 1)) << 4
    written = _written(depth, extents)
    return torch.where(address // depth.item < len(written), written[(address // depth.item).clamp(max=len(written) - 1)], -1)


def _written(depth: Depth, extents: tuple[int, int]) -> Tensor:
    """The element that TMA writes to each place of a stage, numbered as in the result of `_source`."""
    places = torch.empty(sum(extents) * depth.step, dtype=torch.long)
    for operand, extent in enumerate(extents):
        span, begin = depth.span[operand], operand * extents[0]
        line, element = torch.arange(extent)[:, None], torch.arange(depth.step)
        if depth.major[operand] == "depth":
            byte = element * depth.item
            address = byte // span * extent * span + line * span + byte % span
        else:
            per_span = span // 2
            address = line // per_span * 64 * span + element * span + line % per_span * 2
        address = address + begin * wgmma.STEP_BYTES
        address = address ^ ((address >> 7) & (span // 16 - 1)) << 4
        places[address // depth.item] = (begin + line) * depth.step + element
    return places
