"""The evidence of a wrong result: the number, places, values and pattern of the wrong elements, and some wrong tiles.

Nothing else of a wrong result remains without the GPU, so the evidence, with the case, contains everything that `explain` needs.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.exact.case import Case
from benchmarks.gpu.exact.conv2d import Conv2dCase
from benchmarks.gpu.exact.max_pool2d import MaxPool2dCase, UnfoldCase
from benchmarks.gpu.exact.rnn import RnnCase, RnnCellCase
from benchmarks.gpu.failures.conv2d_products import conv2d_product
from benchmarks.gpu.failures.max_pool2d_products import max_pool2d_product, unfold_product
from benchmarks.gpu.failures.products import Part, Product, Tiling, padded, tiles_of
from benchmarks.gpu.failures.rnn_products import cell_product, first_wrong, rnn_product
from torch_unroll.shapes import dtype_name

#: The most characters that the kept tiles of one result may fill.
MOST_KEPT = 64 << 10
_MOST_TILES, _MOST_PARTS, _MOST_VALUES = 64, 4, 8


def product_of(case: Case, name: str, operands: bool) -> Product:
    """The result `name` of a case as its kernel sees it (see products.py), with or without its operands."""
    if isinstance(case, Conv2dCase):
        return conv2d_product(case, operands)
    if isinstance(case, RnnCase):
        return rnn_product(case, name, operands)
    if isinstance(case, RnnCellCase):
        return cell_product(case, name, operands)
    if isinstance(case, MaxPool2dCase):
        return max_pool2d_product(case, name, operands)
    assert isinstance(case, UnfoldCase)
    return unfold_product(case, name, operands)


def evidence(case: Case, name: str, result: Tensor, expected: Tensor) -> dict[str, Any]:
    """The evidence of a wrong result, which can be written as JSON."""
    record: dict[str, Any] = {"result": name, "shape": list(expected.shape), "dtype": dtype_name(expected.dtype)}
    if result.shape != expected.shape or result.dtype != expected.dtype:
        return record | {"wrong": expected.numel(), "instead": f"{dtype_name(result.dtype)} of shape {list(result.shape)}"}
    flat, exact = result.flatten(), expected.flatten()
    wrong = flat != exact
    record |= {"elements": len(flat), "wrong": int(wrong.sum()), "values": _values(flat[wrong], exact[wrong])}
    record["first"] = [
        [*place, result[tuple(place)].item(), expected[tuple(place)].item()]
        for place in (result != expected).nonzero()[:8].tolist()
    ]
    spoiled = torch.zeros_like(wrong)
    if isinstance(case, RnnCase):  # a wrong state makes later steps wrong
        wrong, spoiled = first_wrong(case, name, wrong)
        record["first wrong step"] = int(wrong.sum())
    product = product_of(case, name, operands=False)
    wrong_by_part = {number: _mask_of(part, wrong) for number, part in enumerate(product.parts)}
    wrong_by_part = {number: elements for number, elements in wrong_by_part.items() if elements.any()}
    record["parts"] = [_pattern(product, number, elements) for number, elements in list(wrong_by_part.items())[:_MOST_PARTS]]
    record["wrong parts"] = len(wrong_by_part)
    record["kept"] = _kept(product, wrong_by_part, flat, spoiled)
    return record


def _mask_of(part: Part, elements: Tensor) -> Tensor:
    """Turns the mask `elements` of the flat result into a mask of a part, (rows, columns)."""
    return elements[part.place.clamp(min=0)] & (part.place >= 0)


def _values(result: Tensor, exact: Tensor) -> dict[str, Any]:
    """Counts, among wrong elements, NaN (the content of poisoned memory that was never written), zeros, and the most frequent
    differences."""
    wide, wanted = result.double(), exact.double()
    counts: dict[str, Any] = {"NaN": int(wide.isnan().sum()), "0": int((wide == 0).sum())}
    differences, times = (wide - wanted)[wide.isfinite() & wanted.isfinite()].unique(return_counts=True)
    often = times.argsort(descending=True, stable=True)[:_MOST_VALUES]
    return counts | {"differences": {f"{differences[i].item():g}": int(times[i]) for i in often}}


def _pattern(product: Product, number: int, wrong: Tensor) -> dict[str, Any]:
    """The places of a part's wrong elements, by tile and, if the sums lie in fragments of mma, by lane."""
    tiling = product.tiling
    rows, columns = wrong.any(1).nonzero().flatten(), wrong.any(0).nonzero().flatten()
    tiles = tiles_of(product.parts[number], tiling, wrong)
    record: dict[str, Any] = {
        "part": number,
        "name": product.parts[number].name,
        "wrong": int(wrong.sum()),
        "rows": ranges(rows.tolist()),
        "columns": ranges(columns.tolist()),
        "of": [*wrong.shape],
        "tiles": [list(tile) for tile in tiles[:_MOST_TILES]],
        "wrong tiles": len(tiles),
        "rows in a tile": ranges((rows % tiling.rows).unique().tolist()),
        "columns in a tile": ranges((columns % tiling.columns).unique().tolist()),
    }
    if tiling.fragments:
        row, column = wrong.nonzero().T
        record["lanes"] = ranges((row % 8 * 4 + column % 8 // 2).unique().tolist())
        record["rows of a fragment"] = ranges((row % 16).unique().tolist())
        record["columns of a fragment"] = ranges((column % 8).unique().tolist())
    return record


def ranges(numbers: Iterable[int], most: int = 12) -> str:
    """Abbreviates ascending numbers, as in "0-63, 128-191" and "0-2046 by 2"."""
    numbers = list(numbers)
    words, begin = [], 0
    while begin < len(numbers):
        end, step = begin + 1, 1
        if end < len(numbers):
            step = numbers[end] - numbers[begin]
            while end < len(numbers) and numbers[end] - numbers[end - 1] == step:
                end += 1
        # Two numbers with a gap are no series: the first is listed alone, and the second may begin the next range.
        if end - begin == 2 and step > 1:
            end = begin + 1
        first, last = numbers[begin], numbers[end - 1]
        words.append(str(first) if end == begin + 1 else f"{first}-{last}" + (f" by {step}" if step > 1 else ""))
        begin = end
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


# ---- tiles ---------------------------------------------------------------------------------------------------------------------


def _kept(product: Product, wrong_by_part: Mapping[int, Tensor], flat: Tensor, spoiled: Tensor) -> list[dict[str, Any]]:
    """The first wrong tiles with all their values, taken from the parts in turn: as many as fit, at most `_MOST_TILES`."""
    waiting = [
        [(number, tile) for tile in tiles_of(product.parts[number], product.tiling, wrong)]
        for number, wrong in wrong_by_part.items()
    ]
    kept: list[dict[str, Any]] = []
    room = MOST_KEPT
    for turn in range(max((len(tiles) for tiles in waiting), default=0)):
        for tiles in waiting:
            if turn >= len(tiles) or len(kept) >= _MOST_TILES:
                continue
            number, (row, column) = tiles[turn]
            place = tile_of(product.parts[number].place, product.tiling, row, column, -1)
            data = _packed(flat[place.clamp(min=0)])
            if len(data) > room:
                if kept:
                    return kept
                data = ""  # this tile alone is too large, so it is not kept
            room -= len(data)
            if data:
                columns = (spoiled[place.clamp(min=0)] & (place >= 0)).any(0).nonzero().flatten().tolist()
                kept.append({"part": number, "tile": [row, column], "spoiled": columns, "data": data})
    return kept


def tile_of(matrix: Tensor, tiling: Tiling, row: int, column: int, value: float = 0) -> Tensor:
    """A tile of a matrix, padded with `value` beyond the edges."""
    rows, columns = tiling.rows, tiling.columns
    cut = matrix[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
    return padded(padded(cut, 0, rows, value), 1, columns, value)


def _packed(tile: Tensor) -> str:
    return base64.b64encode(zlib.compress(tile.contiguous().view(torch.uint8).numpy().tobytes(), 9)).decode()


def unpacked(data: str, dtype: str, tiling: Tiling) -> Tensor:
    """The tile that was kept as `data`."""
    raw = bytearray(zlib.decompress(base64.b64decode(data)))
    return torch.frombuffer(raw, dtype=getattr(torch, dtype)).view(tiling.rows, tiling.columns)
