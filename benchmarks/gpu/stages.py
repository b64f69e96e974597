"""Steps whose operands come from other steps, for every warp in its own way: what a warp reads of a stage that is being refilled
depends on when it reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import log2

import torch
from torch import Tensor

from benchmarks.gpu.evidence import ranges
from benchmarks.gpu.tiles import UNWRITTEN, Failure, Hypothesis, WrongTile

#: Rows of the product that one warp has; steps that are searched for each step; coefficients that are sought at once.
_WARP_ROWS, _FURTHEST, _MOST_UNKNOWN = 16, 8, 400


def by_warp(failure: Failure) -> Iterator[Hypothesis]:
    """Of every 16 rows of a tile: which step of the left operand, of the right one, or of both stands in for each step."""
    depth = failure.product.depth
    if depth is None or failure.tiles[0].left is None or failure.product.relu:
        return
    for side, words in (
        ("both", "both operands of a step are those of another one"),
        ("left", "the left operand of a step is the one of another step"),
        ("right", "the right operand of a step is the one of another step"),
    ):
        predicted, choices, distances = [], 0.0, Counter[int]()
        for tile in failure.tiles:
            values = torch.full_like(tile.result, float("nan"))
            for begin in range(0, len(values), _WARP_ROWS):
                rows = slice(begin, begin + _WARP_ROWS)
                sums, chosen = _fitted(tile, rows, depth.step, side)
                values[rows] = sums + tile.addend[rows]
                choices += chosen.numel() * log2(1 + 2 * _FURTHEST)
                distances.update(chosen.tolist())
            predicted.append(failure.finished(tile, values))
        away = [distance for distance in sorted(distances) if distance]
        if away:
            told = f"{words}, so many before (-) or after: {ranges(away)}; differently from warp to warp"
            yield Hypothesis("stale stage", told, choices, predicted)


def _fitted(tile: WrongTile, rows: slice, step: int, side: str) -> tuple[Tensor, Tensor]:
    """The sums of some rows with each step's operands from where they fit best, and how many steps away that is."""
    assert tile.left is not None
    assert tile.right is not None
    left, right = tile.left[rows].unflatten(1, (-1, step)), tile.right.unflatten(1, (-1, step))
    exact = torch.einsum("mtk,ntk->tmn", left, right).double()  # of each step
    steps = len(exact)
    usual = exact.sum(0), torch.zeros(steps, dtype=torch.long)
    known = (tile.judged & (tile.result < UNWRITTEN))[rows]
    if not tile.wrong[rows].any() or steps < 2:
        return usual
    target = (tile.result - tile.addend)[rows]
    pairs = [(at, other) for at in range(steps) for other in range(steps) if abs(at - other) <= _FURTHEST]
    if side == "both":
        coefficients = _solved(exact[:, known].mT, target[known])
        if coefficients is None:
            return usual
        missing, again = ((coefficients == 0).nonzero().flatten(), (coefficients > 1).nonzero().flatten())
        if not len(missing) or not len(again):
            return usual
        distances = torch.zeros(steps, dtype=torch.long)
        distances[missing] = (again[(again[None, :] - missing[:, None]).abs().argmin(1)]) - missing
        return torch.einsum("t,tmn->mn", coefficients, exact), distances
    at, other = torch.tensor(pairs).T
    from_left, from_right = (other, at) if side == "left" else (at, other)
    crossed = torch.einsum("pmk,pnk->pmn", left.transpose(0, 1)[from_left], right.transpose(0, 1)[from_right]).double()
    coefficients = _solved(crossed[:, known].mT, target[known])
    if coefficients is None:
        return usual
    distances = torch.zeros(steps, dtype=torch.long)
    taken = coefficients.nonzero().flatten()
    distances[at[taken]] = (other - at)[taken]
    return torch.einsum("p,pmn->mn", coefficients, crossed), distances


def _solved(matrix: Tensor, target: Tensor) -> Tensor | None:
    """The integer combination of columns that makes up the target; None if there is none that can be told."""
    if matrix.shape[1] > _MOST_UNKNOWN or len(matrix) < 2 * matrix.shape[1]:
        return None
    solution = torch.linalg.lstsq(matrix, target[:, None], driver="gelsd").solution[:, 0].round()
    return solution if bool((matrix @ solution == target).double().mean() > 0.5) else None
