"""The result of a recurrence as its kernels see it: for each direction, rows are units, and columns are steps and samples.

The state before a step is assumed to be exact, as it is before the first step that went wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.exact.case import ARITHMETIC
from benchmarks.gpu.exact.rnn import RnnCase, RnnCellCase, inputs
from benchmarks.gpu.failures.products import Depth, Part, Product, Tiling, padded
from torch_unroll.kernels.arithmetic import ceil_divide
from torch_unroll.kernels.cuda.rnn import persistent, single_block, tile

_WARPS = persistent.WARPS
_COLUMNS = tile.TILE_COLUMNS


def rnn_product(case: RnnCase, name: str, operands: bool) -> Product:
    """The result `name` of a case as matrices, with the operands of the products if `operands` is set."""
    item = ARITHMETIC[case.arithmetic].itemsize
    rows = {"single_block": single_block.WARP_ROWS}.get(case.variant, tile.TILE_ROWS * max(case.row_tiles, 1))
    tiling = Tiling(rows, _COLUMNS, "unit", "sample" if name == "dh0" else "step and sample", fragments=True)
    warps = 0 if case.variant == "single_block" else _WARPS
    depth = Depth(tile.CHUNK_BYTES // item, item, line=128 // item, warps=warps)
    pass_ = _Pass(case, name)
    product = Product(tiling, list(pass_.parts(operands)), depth, {"h": "z", "dz": "dh", "dh0": ""}[name], kept=pass_.kept)
    product.relu = case.nonlinearity == "relu" and name == "h"
    if operands:
        product.alternatives = list(pass_.alternatives(product))
    return product


class _Pass:
    """A pass over a layer, with the products of all steps as one product."""

    def __init__(self, case: RnnCase, name: str):
        self.case, self.name = case, name
        self.drawn, (self.h, self.dz, self.dh0) = inputs(case.T, case.N, case.H, case.D, case.seed), case.exact()
        self.steps = self.drawn.lengths if case.lengths else torch.full((case.N,), case.T)
        active = (torch.arange(case.T)[:, None] < self.steps)[:, :, None].expand_as(self.h)
        if name == "dz" and case.nonlinearity == "relu":
            active = active & (self.h > 0)
        self.kept = None if name == "dh0" else active.flatten()

    def parts(self, operands: bool) -> Iterator[Part]:
        """A part for each direction."""
        T, N, H, D = self.case.T, self.case.N, self.case.H, self.case.D
        for d in range(D):
            if self.name == "dh0":
                place = torch.arange(D * N * H).view(D, 1, N, H)[d]
            else:
                place = torch.arange(T * N * D * H).view(T, N, D, H)[:, :, d]
            part = Part(f"direction {d}" if D > 1 else "", self._across(place, -1).mT.contiguous())
            if operands:
                step = tile.CHUNK_BYTES // ARITHMETIC[self.case.arithmetic].itemsize
                part.left = padded(self._weight(d), 1, step)
                part.right = padded(self._across(self.state(d)), 1, step)
                if self.name != "dh0":
                    added = self.drawn.z if self.name == "h" else self.drawn.dh
                    part.addend = self._across(added.view(T, N, D, H)[:, :, d]).mT
            yield part

    def _weight(self, d: int) -> Tensor:
        w = self.drawn.w[d]
        return w if self.name == "h" else w.mT

    @staticmethod
    def _across(tensor: Tensor, value: float = 0) -> Tensor:
        """Flattens (steps, N, H) to (steps · N, H), where N is padded to whole tiles."""
        return padded(tensor, 1, _COLUMNS, value).flatten(0, 1)

    def state(self, d: int, back: int = 1) -> Tensor:
        """The state `back` steps before each step: (T, N, H), or (1, N, H) for result dh0.

        The state is h for result h, and dz for results dz and dh0. With `back` 1, it is what the step multiplies by the weight.
        """
        T, N, H = self.case.T, self.case.N, self.case.H
        carried = (self.h if self.name == "h" else self.dz)[:, :, d * H : (d + 1) * H]
        down = (d == 1) != (self.name != "h")
        time = torch.arange(T)[:, None] if self.name != "dh0" else torch.full((1, 1), -1 if down else 0)
        if self.name == "dh0":
            time = time if down else self.steps[None, :]  # the step after the last one
        source = time + back if down else time - back
        outside = (source >= self.steps) | (source < 0) if down else (source < 0).expand(-1, N)
        before = carried[source.clamp(0, T - 1).expand(-1, N), torch.arange(N)]
        initial = self.drawn.h0[d].expand_as(before) if self.name == "h" else torch.zeros_like(before)
        return torch.where(outside[:, :, None], initial, before)

    def alternatives(self, product: Product) -> Iterator[tuple[str, str, Callable[[], Tensor]]]:
        """Results of faulty passes, in the form of `Product.alternatives`."""
        D = self.case.D

        def whole(left: Callable[[int], Tensor], right: Callable[[int], Tensor], addend: Callable[[int], Tensor]) -> Tensor:
            values = torch.zeros(max(int(part.place.max()) for part in product.parts) + 1, dtype=torch.float64)
            for d, part in enumerate(product.parts):
                there = part.place >= 0
                values[part.place[there]] = (left(d) @ right(d).mT + addend(d))[there]
            return values

        def added(d: int) -> Tensor:
            addend = product.parts[d].addend
            return torch.zeros(()) if addend is None else addend

        def stale(d: int, back: int) -> Tensor:
            return self._across(self.state(d, back))

        def usual(d: int) -> Tensor:
            return stale(d, 1)

        for back in (2, 3):
            words = f"the state is that of {back} steps before instead of the previous step"
            yield "stale stage", words, partial(whole, self._weight, partial(stale, back=back), added)
        yield "swapped operands", "the weight is transposed", partial(whole, lambda d: self._weight(d).mT, usual, added)
        if D > 1:
            words = "the weight is that of the other direction"
            yield "wrong place", words, partial(whole, lambda d: self._weight(D - 1 - d), usual, added)
        for later in (1, -1) if self.name != "dh0" and self.case.T > 1 else ():
            words = f"{product.addend} is that of the step {'after' if later == 1 else 'before'}"
            shift = later * ceil_divide(self.case.N, _COLUMNS) * _COLUMNS
            moved = partial(lambda d, by: product.parts[d].addend.roll(-by, 1), by=shift)  # type: ignore[union-attr]
            yield "wrong bias", words, partial(whole, self._weight, usual, moved)

    def first_wrong(self, wrong: Tensor) -> tuple[Tensor, Tensor]:
        """For h or dz, the wrong elements in the first wrong step of each sample and direction, and all elements of later steps.

        Steps are counted in the order in which the pass walks them.
        """
        T, N, H, D = self.case.T, self.case.N, self.case.H, self.case.D
        first, later = wrong.view(T, N, D, H).clone(), torch.zeros(T, N, D, H, dtype=torch.bool)
        for d in range(D):
            down = (d == 1) != (self.name != "h")
            steps = first[:, :, d].any(2).flip(0) if down else first[:, :, d].any(2)  # (T, N), in the order of the walk
            before = (steps.cumsum(0) - steps.int()) > 0
            before = before.flip(0) if down else before
            first[:, :, d] &= ~before[:, :, None]
            later[:, :, d] = before[:, :, None]
        return first.view_as(wrong), later.view_as(wrong)


def first_wrong(case: RnnCase, name: str, wrong: Tensor) -> tuple[Tensor, Tensor]:
    """The wrong elements of a result that no wrong earlier step explains, and all elements of the steps after a wrong one."""
    return (wrong, torch.zeros_like(wrong)) if name == "dh0" else _Pass(case, name).first_wrong(wrong)


def cell_product(case: RnnCellCase, name: str, operands: bool) -> Product:
    """The result `name` of a single step as a matrix, with its operands if `operands` is set; dz is no product and has none."""
    item = ARITHMETIC[case.arithmetic].itemsize
    depth = Depth(tile.CHUNK_BYTES // item, item, warps=_WARPS)
    tiling = Tiling(tile.TILE_ROWS, _COLUMNS, "unit", "sample", fragments=True)
    expected = case.expected()[name]
    N, units = expected.shape
    part = Part("", torch.arange(N * units).view(N, units).mT.contiguous())
    product = Product(tiling, [part], depth if name != "dz" else None)
    if not operands or name == "dz":
        return product
    drawn = case.inputs()
    if name == "h_next":
        product.relu = case.nonlinearity == "relu"
        weights = [padded(drawn[key], 1, depth.step) for key in ("w_ih", "w_hh")]
        inputs = [padded(drawn[key], 1, depth.step) for key in ("x", "h")]
        part.left, part.right = torch.cat(weights, 1), torch.cat(inputs, 1)
        if case.bias:
            part.addend = (drawn["b_ih"] + drawn["b_hh"])[:, None].expand(units, N)
    else:
        weight = drawn["w_ih" if name == "dx" else "w_hh"]
        part.left, part.right = padded(weight.mT, 1, depth.step), padded(case.expected()["dz"].double(), 1, depth.step)
    return product
