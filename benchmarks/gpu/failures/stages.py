"""Hypotheses that, in some steps, a warp multiplied the operands of other steps.

If a stage is refilled too early, timing decides whether a warp reads the old or the new operands, so warps differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from math import log2

import torch
from torch import Tensor

from benchmarks.gpu.failures.tiles import UNWRITTEN, Failure, Hypothesis, WrongTile

#: Rows of a warp's product, the largest distance in steps that is tried, and the most unknowns of a system of equations.
_WARP_ROWS, _FURTHEST, _MOST_UNKNOWN = 16, 8, 400


def by_warp(failure: Failure) -> Iterator[Hypothesis]:
    """Finds, for every 16 rows of a tile, the step from which each step's left, right or both operands come.

    It then does so for each quarter of a step, because one wgmma reads a quarter. The left or right operands of a quarter are
    searched only at the distances that were found for whole steps.
    """
    depth = failure.product.depth
    if depth is None or failure.tiles[0].left is None or failure.product.relu:
        return
    for side, words in (
        ("both", "both operands of a step are those of another step"),
        ("left", "the left operand of a step is that of another step"),
        ("right", "the right operand of a step is that of another step"),
    ):
        distances: Collection[int] = range(-_FURTHEST, _FURTHEST + 1)
        for unit in (depth.step, depth.step // 4):
            predicted, choices, distances_used = [], 0.0, Counter[int]()
            for tile in failure.tiles:
                values = torch.full_like(tile.result, float("nan"))
                for begin in range(0, len(values), _WARP_ROWS):
                    rows = slice(begin, begin + _WARP_ROWS)
                    sums, chosen = _fitted(tile, rows, unit, side, [by * (depth.step // unit) for by in distances])
                    values[rows] = sums + tile.addend[rows]
                    choices += len(chosen) * log2(len(distances))
                    distances_used.update(by * unit // depth.step for by in chosen)
                predicted.append(failure.finished(tile, values))
            away = sorted(by for by in distances_used if by)
            if not away:
                break
            description = f"{words}, by so many steps before (-) or after: {', '.join(map(str, away))}; it differs between warps"
            yield Hypothesis(kind="stale stage", words=description, bits=choices, predicted=predicted)
            distances = [0, *away]


def _fitted(tile: WrongTile, rows: slice, unit: int, side: str, distances: Collection[int]) -> tuple[Tensor, list[int]]:
    """The sums of some rows if the operands of each unit (a step, or a quarter of one) come from the units that fit best.

    Also returns the distances to these units where they are not 0. If nothing fits or nothing is wrong, returns the exact sums
    and no distances.
    """
    assert tile.left is not None
    assert tile.right is not None
    left, right = tile.left[rows].unflatten(1, (-1, unit)).transpose(0, 1), tile.right.unflatten(1, (-1, unit)).transpose(0, 1)
    usual: tuple[Tensor, list[int]] = tile.sums[rows], []
    known = (tile.judged & (tile.result < UNWRITTEN))[rows]
    units, target = len(left), (tile.result - tile.addend)[rows]
    if not tile.wrong[rows].any() or units < 2:
        return usual
    if side == "both":
        products = (left @ right.mT).double()
        coefficients = _solved(products[:, known].mT, target[known])
        if coefficients is None:
            return usual
        missing, again = (coefficients == 0).nonzero().flatten().tolist(), (coefficients > 1).nonzero().flatten().tolist()
        chosen = [min((other - at for other in again), key=abs) for at in missing] if again else []
    else:
        pairs = [(at, at + by) for at in range(units) for by in distances if 0 <= at + by < units]
        if len(pairs) > _MOST_UNKNOWN:
            return usual
        at, other = torch.tensor(pairs).T
        from_left, from_right = (other, at) if side == "left" else (at, other)
        products = (left[from_left] @ right[from_right].mT).double()
        coefficients = _solved(products[:, known].mT, target[known])
        if coefficients is None:
            return usual
        used = coefficients.nonzero().flatten()
        chosen = [by for by in (other - at)[used].tolist() if by]
    return torch.einsum("p,pmn->mn", coefficients, products), chosen


def _solved(matrix: Tensor, target: Tensor) -> Tensor | None:
    """The integer combination of columns that equals the target in most elements; None if none is found."""
    if matrix.shape[1] > _MOST_UNKNOWN or len(matrix) < 2 * matrix.shape[1]:
        return None
    solution = torch.linalg.lstsq(matrix, target[:, None], driver="gelsd").solution[:, 0].round()
    return solution if bool((matrix @ solution == target).double().mean() > 0.5) else None
