"""Hypotheses about the products that make up a wrong sum: some are missing, were added twice, or come from another step.

A wrong element differs from its exact value by a combination of the products of its own row and column. The depth is divided into
units (steps, splits, filter taps, ...), and least squares finds the combination of units, with small integers as coefficients,
that is the same for every element.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log2

import torch
from torch import Tensor

from benchmarks.gpu.exact.conv2d import Conv2dCase
from benchmarks.gpu.failures.evidence import ranges
from benchmarks.gpu.failures.products import Part
from benchmarks.gpu.failures.tiles import UNWRITTEN, Failure, Hypothesis, WrongTile
from torch_unroll.kernels.arithmetic import ceil_divide

#: The most wrong elements, units and products in a system of equations; its solution is then compared with all elements.
_SAMPLE, _MOST_UNITS, _MOST_PRODUCTS = 1500, 512, 16_000_000
#: The operands of a step may wrongly be those of the step this many steps before or, if negative, after.
_SHIFTS = (1, -1, 2, -2, 3, -3, 4, -4)


@dataclass
class _Sample:
    """Wrong elements of a tile with the factors of their products, their wrong sums, and the exact sums."""

    part: Part
    left: Tensor  # (elements, depth)
    right: Tensor
    total: Tensor
    exact: Tensor


def combinations(failure: Failure) -> Iterator[Hypothesis]:
    """Yields the hypotheses about the products that were summed."""
    samples = _samples(failure)
    if not samples or failure.product.depth is None:
        return
    missing = torch.cat([sample.total - sample.exact for sample in samples])
    for order, kind in enumerate(_units(failure, samples[0].part)):
        products = [_by_unit(sample.left * sample.right, _units(failure, sample.part)[kind]) for sample in samples]
        count = max(product.shape[1] for product in products)
        matrix = torch.cat([torch.nn.functional.pad(product, (0, count - product.shape[1])) for product in products])
        for solution in _solutions(matrix, missing):
            yield _combined(failure, kind, solution, 0.1 * order)
    for shift in _SHIFTS:
        for side in ("left", "right"):
            if (hypothesis := _shifted(failure, samples, missing, side, shift)) is not None:
                yield hypothesis


def _samples(failure: Failure) -> list[_Sample]:
    """For each tile, some of the wrong elements whose sum is known: the value minus the addend. It is unknown if the element was
    not written, was set to 0 by ReLU, or does not depend on the product."""
    usable = []
    for tile in failure.tiles:
        elements = tile.wrong & (tile.result < UNWRITTEN) & ((tile.result > 0) if failure.product.relu else True)
        if failure.product.kept is not None:
            elements &= failure.product.kept[tile.place.clamp(min=0)]
        usable.append(elements.nonzero())
    if failure.tiles and failure.tiles[0].left is None:
        return []
    available = sum(map(len, usable))
    draw = torch.Generator().manual_seed(0)
    samples = []
    for tile, elements in zip(failure.tiles, usable, strict=True):
        assert tile.left is not None
        assert tile.right is not None
        most = min(_SAMPLE, max(200, _MOST_PRODUCTS // max(tile.left.shape[1], 1)))
        count = len(elements) if available <= most else ceil_divide(len(elements) * most, available)
        row, column = elements[torch.randperm(len(elements), generator=draw)[:count]].T
        left, right = tile.left[row], tile.right[column]
        exact = (left * right).double().sum(1)
        total = (tile.result - tile.addend)[row, column]
        samples.append(_Sample(part=tile.part, left=left, right=right, total=total, exact=exact))
    return [sample for sample in samples if len(sample.total)]


def _units(failure: Failure, part: Part) -> dict[str, Tensor]:
    """For each kind of unit, the likeliest first, the number of the unit to which each depth belongs; -1 for padding."""
    depth = failure.product.depth
    assert depth is not None
    assert part.left is not None
    number = torch.arange(part.left.shape[1])
    steps = number // depth.step
    units = {"step": steps}
    all_steps = len(number) // depth.step
    per_split = max(1, ceil_divide(all_steps, depth.splits))
    if depth.splits > 1 or len(failure.product.parts) > 1:
        units["step from the end"] = ((steps // per_split + 1) * per_split).clamp(max=all_steps) - 1 - steps
    if depth.splits > 1:
        units["step of a split"] = steps % per_split
        units["split"] = steps // per_split
    if depth.warps:
        units["warp"] = steps % depth.warps
    units["place in a step"] = number % depth.step
    units |= part.label
    units["depth"] = number
    return units


def _by_unit(products: Tensor, units: Tensor) -> Tensor:
    """Sums (elements, depth) over each unit to (elements, units)."""
    there = units >= 0
    count = int(units.max()) + 1
    return products.new_zeros(len(products), count).index_add_(1, units[there], products[:, there]).double()


def _solutions(matrix: Tensor, wanted: Tensor) -> Iterator[Tensor]:
    """Integer coefficients of the columns with which their sum may equal `wanted`: for each sign, the single column that, with
    that sign, equals `wanted` in the most elements; then the rounded solution of least squares, if several of its coefficients
    are not 0 and none is large."""
    for sign in (-1.0, 1.0):
        agrees = (matrix * sign == wanted[:, None]).sum(0)
        solution = torch.zeros(matrix.shape[1], dtype=torch.float64)
        solution[agrees.argmax()] = sign
        yield solution
    if 2 * matrix.shape[1] <= len(matrix) and matrix.shape[1] <= _MOST_UNITS:
        solution = torch.linalg.lstsq(matrix, wanted[:, None], driver="gelsd").solution[:, 0].round()
        if (solution != 0).sum() > 1 and bool(solution.abs().max() <= 64):
            yield solution


def _runs(solution: Tensor) -> int:
    """The number of runs of equal coefficients other than 0."""
    return int(((solution != 0) & (solution != torch.cat([solution.new_zeros(1), solution[:-1]]))).sum())


def _combined(failure: Failure, kind: str, solution: Tensor, surcharge: float) -> Hypothesis:
    def sums(tile: WrongTile) -> Tensor:
        assert tile.left is not None
        assert tile.right is not None
        return (tile.left * (1 + _weights(failure, tile.part, kind, solution))) @ tile.right.mT + tile.addend

    bits = 2 * _runs(solution) * log2(len(solution) + 1) + 2 + surcharge
    negative, positive = (solution < 0).nonzero().flatten(), (solution > 0).nonzero().flatten()
    if not len(positive):
        times = "" if bool((solution[negative] == -1).all()) else " more than once"
        name, words = "missing products", f"{_named(failure, kind, negative)} missing{times}"
    elif not len(negative):
        name, words = "products counted again", f"{_named(failure, kind, positive)} counted more than once"
    else:
        name = "stale stage" if kind.startswith("step") else "wrong depth"
        words = f"{_named(failure, kind, positive)} used in place of {_named(failure, kind, negative, verb=False)}"
    return failure.predict(name, words, bits, sums)


def _weights(failure: Failure, part: Part, kind: str, solution: Tensor) -> Tensor:
    units = _units(failure, part)[kind]
    return torch.where(units >= 0, solution[units.clamp(0, len(solution) - 1)], 0).float()


def _named(failure: Failure, kind: str, units: Tensor, verb: bool = True) -> str:
    """Units in words and, for a single step, what it contains."""
    many = len(units) != 1
    numbers = ranges(units.tolist())
    depth = failure.product.depth
    assert depth is not None
    if kind == "tap":
        assert isinstance(failure.case, Conv2dCase)
        S = failure.case.sizes.S
        words = ", ".join(str((unit // S, unit % S)) for unit in units[:6].tolist()) + (" ..." if len(units) > 6 else "")
        words = f"filter tap{'s' * many} {words}"
    elif kind == "place in a step":
        words = f"depth{'s' * many} {numbers} of the {depth.step} in every step"
    elif kind == "step from the end":
        words = f"step{'s' * many} {numbers} from the end of each split's depth ({depth.step} elements each; 0 is the last)"
    elif kind == "step of a split":
        words = f"step{'s' * many} {numbers} of each split's depth ({depth.step} elements each)"
    elif kind == "step":
        words = f"step{'s' * many} {numbers} of depth ({depth.step} elements each{_content(failure, units)})"
    else:
        words = f"{kind}{'s' * many} {numbers}"
    return f"{words} {'are' if many else 'is'}" if verb else words


def _content(failure: Failure, steps: Tensor) -> str:
    """The taps, channels or images that are summed in a step, in words; empty for several steps or an unlabelled depth."""
    label, depth = failure.tiles[0].part.label, failure.product.depth
    assert depth is not None
    if len(steps) != 1 or not label:
        return ""
    within = slice(int(steps[0]) * depth.step, (int(steps[0]) + 1) * depth.step)
    words = [f"{kind} {ranges(index[within][index[within] >= 0].unique().tolist())}" for kind, index in label.items()]
    return ": " + ", ".join(words)


def _shifted(failure: Failure, samples: list[_Sample], missing: Tensor, side: str, shift: int) -> Hypothesis | None:
    """Hypothesizes that, in some steps, operand `side` is that of the step `shift` steps before (if negative, after).

    Returns None if that does not fit, or if there are too few wrong elements to decide.
    """
    depth = failure.product.depth
    assert depth is not None
    by = shift * depth.step
    parts = {id(sample.part): sample.part for sample in samples}
    count = max(ceil_divide(part.left.shape[1], depth.step) for part in parts.values() if part.left is not None)
    if count <= abs(shift) or 4 * count > len(missing) or 2 * count > _MOST_UNITS:
        return None
    matrices = []
    for sample in samples:
        units = _units(failure, sample.part)["step"]
        left = _moved(sample.left, by) if side == "left" else sample.left
        right = _moved(sample.right, by) if side == "right" else sample.right
        own, other = _by_unit(sample.left * sample.right, units), _by_unit(left * right, units)
        matrices.append(torch.cat([torch.nn.functional.pad(sums, (0, count - sums.shape[1])) for sums in (own, other)], 1))
    solution = torch.linalg.lstsq(torch.cat(matrices), missing[:, None], driver="gelsd").solution[:, 0].round()
    own, other = solution[:count], solution[count:]
    if not other.any() or solution.abs().max() > 4:
        return None

    def sums(tile: WrongTile) -> Tensor:
        assert tile.left is not None
        assert tile.right is not None
        left = _moved(tile.left, by) if side == "left" else tile.left
        right = _moved(tile.right, by) if side == "right" else tile.right
        kept = tile.left * (1 + _weights(failure, tile.part, "step", own))
        return kept @ tile.right.mT + (left * _weights(failure, tile.part, "step", other)) @ right.mT + tile.addend

    away = f"{abs(shift)} step{'s' * (abs(shift) > 1)} {'before' if shift > 0 else 'after'}"
    words = f"the {side} operand of {_named(failure, 'step', other.nonzero().flatten(), verb=False)} is that of {away}"
    bits = 2 * (_runs(own) + _runs(other)) * log2(count + 1) + 6
    return failure.predict("stale stage", words, bits, sums)


def _moved(operand: Tensor, by: int) -> Tensor:
    """Shifts the depth, so that depth d has the values of d - by, and fills with zeros."""
    moved = operand.roll(by, 1)
    if by > 0:
        moved[:, :by] = 0
    else:
        moved[:, by:] = 0
    return moved
