"""Hypotheses that rows or columns of a product contain the values of other rows or columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import log2

import torch
from torch import Tensor

from benchmarks.gpu.failures.products import padded
from benchmarks.gpu.failures.tiles import Failure, Hypothesis, WrongTile

#: The most rules that are tried in one search for rows or for columns. A line that equals more than _MOST_ALIKE others suggests
#: no rule.
_MOST_RULES, _MOST_ALIKE = 6, 64
#: The most pairs of lines, and the most single values, that one comparison of a tile with all lines looks at.
_MOST_MATCHES, _MOST_COMPARED = 16_000_000, 64_000_000
_NAN = float("nan")


@dataclass
class _Lines:
    """A wrong tile, and the values of all lines (rows, or columns) of its part, which is the matrix that contains the tile.

    If the lines are columns, all tensors are transposed, so that each row is a line.
    """

    first: int  # the number of the tile's first line in the part
    wrong: Tensor
    judged: Tensor
    result: Tensor
    place: Tensor
    addend: Tensor | None  # is added to `values`; None if `values` are complete results
    values: Tensor  # (lines of the part, width of the tile)
    known: Tensor  # whether each line of the part exists


def lines(failure: Failure) -> Iterator[Hypothesis]:
    """Hypothesizes that each wrong line (row or column) has the values of another line, its source.

    Sources are looked for by one rule for all lines, and for each line by itself. A rule adds a distance to the number of a line,
    or flips bits of the number. If the addend of a product, such as the bias, differs from line to line, each
    hypothesis has a second form: only the product is that of the source, and the wrong line's own addend was added to it.
    """
    tiling = failure.product.tiling
    for across, kind, line, are in ((0, "wrong row", "row", tiling.rows_are), (1, "wrong column", "column", tiling.columns_are)):
        for own_addend in (False, True):
            if own_addend and not any(_differs(tile.addend, across) for tile in failure.tiles):
                continue
            turned = [_turned(failure, tile, across, own_addend) for tile in failure.tiles]
            matches = [_matches(failure, tile) for tile in turned]
            count = len(turned[0].values)
            ending = f" ({line}s: {are})" + (f", but its own {failure.product.addend}" if own_addend else "")

            def hypothesis(words: str, bits: float, sources: Iterable[Tensor]) -> Hypothesis:
                predicted = [_copied(failure, tile, source) for tile, source in zip(turned, sources, strict=True)]  # noqa: B023
                predicted = [values.mT if across else values for values in predicted]  # noqa: B023
                return Hypothesis(kind=kind, words=words + ending, bits=bits + own_addend, predicted=predicted)  # noqa: B023

            rules = Counter(rule for tile, alike in zip(turned, matches, strict=True) for rule in _rules(tile, alike))
            for (operation, by), _ in rules.most_common(_MOST_RULES):
                words = f"{line} i has the values of {line} i {'+' if by > 0 else '-'} {abs(by)}"
                if operation == "xor":
                    words = f"{line}s i and i xor {by} are exchanged"
                yield hypothesis(words, 2 * log2(count + 1), (_by_rule(tile, operation, by) for tile in turned))
            sources = [_nearest(tile, alike) for tile, alike in zip(turned, matches, strict=True)]
            first = [
                f"{tile.first + i} those of {source[i]}"
                for tile, source in zip(turned, sources, strict=True)
                for i in (source >= 0).nonzero().flatten().tolist()
            ]
            words = f"{line}s have the values of other {line}s: {', '.join(first[:4])}"
            yield hypothesis(words, log2(count + 1) * len(first) + 2, sources)


def _differs(addend: Tensor, across: int) -> bool:
    """Whether the addend differs from line to line."""
    return bool((addend != addend.select(across, 0).unsqueeze(across)).any())


def _turned(failure: Failure, tile: WrongTile, across: int, own_addend: bool) -> _Lines:
    tiling, part = failure.product.tiling, tile.part
    width = (tiling.columns, tiling.rows)[across]
    begin = tile.number[1 - across] * width
    place = (part.place.mT if across else part.place)[:, begin : begin + width]
    values = failure.exact[place.clamp(min=0)]
    if own_addend:
        assert part.left is not None
        assert part.right is not None
        assert tile.left is not None
        assert tile.right is not None
        all_lines, others = (part.right, tile.left) if across else (part.left, tile.right)
        values = (all_lines.float() @ others.mT).double()
    tensors = (tile.wrong, tile.judged, tile.result, tile.place, tile.addend)
    wrong, judged, result, own, addend = (tensor.mT if across else tensor for tensor in tensors)
    values = padded(values, 1, width)[:, :width]
    return _Lines(
        first=tile.number[across] * len(wrong),
        wrong=wrong,
        judged=judged,
        result=result,
        place=own,
        addend=addend if own_addend else None,
        values=values,
        known=(place >= 0).any(1),
    )


def _matches(failure: Failure, tile: _Lines) -> tuple[Tensor, Tensor]:
    """The wrong lines of the tile, or the first of them if there are many, and a mask (wrong lines, lines of the part) of the
    lines that they equal."""
    numbers = tile.wrong.any(1).nonzero().flatten()
    numbers = numbers[: max(1, _MOST_MATCHES // len(tile.values))]
    counted = tile.judged[numbers] & tile.wrong.any(0)
    plain = tile.addend is None or (not failure.product.relu and failure.product.kept is None)
    if len(numbers) and plain and bool((counted == counted[0]).all()):
        # Lines are compared by a random linear combination of their values, which are integers; lines that differ almost never
        # agree in it.
        columns = counted[0].nonzero().flatten()
        code = torch.randint(1 << 24, (len(columns),), generator=torch.Generator().manual_seed(0)).double()
        result = tile.result[numbers][:, columns]
        if tile.addend is not None:
            result = result - tile.addend[numbers][:, columns]
        return numbers, ((result @ code)[:, None] == tile.values[:, columns] @ code) & tile.known
    alike = torch.zeros(len(numbers), len(tile.values), dtype=torch.bool)
    for i, line in enumerate(numbers[: _MOST_COMPARED // tile.values.numel()].tolist()):
        columns = counted[i].nonzero().flatten()
        values = tile.values[:, columns]
        if tile.addend is not None:
            values = failure.product.finished(values + tile.addend[line, columns], tile.place[line, columns], failure.dtype)
        alike[i] = (values == tile.result[line, columns]).all(1) & tile.known
    return numbers, alike


def _rules(tile: _Lines, matches: tuple[Tensor, Tensor]) -> Iterator[tuple[str, int]]:
    """For each wrong line and each line that it equals, the two rules that lead from the wrong line's number to the other one's.

    Wrong lines that equal more than `_MOST_ALIKE` others are left out.
    """
    numbers, alike = matches
    clear = alike.sum(1) <= _MOST_ALIKE
    for line, other in alike[clear].nonzero().tolist():
        number = tile.first + int(numbers[clear][line])
        yield "plus", other - number
        yield "xor", other ^ number


def _by_rule(tile: _Lines, operation: str, by: int) -> Tensor:
    number = tile.first + torch.arange(len(tile.result))
    source = number + by if operation == "plus" else number ^ by
    # A line beyond the last one has sums of 0 but no addend, so it is a source only of lines that keep their own addend.
    beyond = len(tile.values) if tile.addend is not None else -1
    return torch.where(source < len(tile.values), source, beyond).clamp(min=-1)


def _nearest(tile: _Lines, matches: tuple[Tensor, Tensor]) -> Tensor:
    """For each line of the tile, the nearest line that it equals; -1 if there is none."""
    numbers, alike = matches
    distance = (torch.arange(len(tile.values)) - (tile.first + numbers)[:, None]).abs().masked_fill(~alike, 1 << 40)
    source = torch.full((len(tile.result),), -1)
    if len(numbers):
        source[numbers] = torch.where(alike.any(1), distance.argmin(1), -1)
    return source


def _copied(failure: Failure, tile: _Lines, source: Tensor) -> Tensor:
    """The lines of the tile with the values of their source lines: 0 beyond the last line, NaN without a source."""
    values = padded(tile.values, 0, len(tile.values) + 1)[source.clamp(min=0)]
    if tile.addend is not None:
        values = failure.product.finished(values + tile.addend, tile.place, failure.dtype)
    return values.masked_fill((source < 0)[:, None], _NAN)
