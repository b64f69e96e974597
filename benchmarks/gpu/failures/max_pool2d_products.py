"""Results of pooling, unfold and fold as matrices, and the results of faulty computations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.exact.max_pool2d import WINDOWS, MaxPool2dCase, UnfoldCase, Window, exact_offsets, exact_results
from benchmarks.gpu.failures.products import Part, Product, Tiling

Alternative = tuple[str, str, Callable[[], Tensor]]
_MOST_ROWS, _MOST_COLUMNS = 1024, 64
#: For each shift by a row or a column, the kind of the fault, and the direction in words.
_SHIFTS = {
    (1, 0): ("wrong row", "a row below"),
    (-1, 0): ("wrong row", "a row above"),
    (0, 1): ("wrong column", "a column to the right"),
    (0, -1): ("wrong column", "a column to the left"),
}


def max_pool2d_product(case: MaxPool2dCase, name: str, operands: bool) -> Product:
    """The result `name` of a case as a matrix of pixels by channels."""
    N, C, H, W = case.expected()[name].shape
    place = torch.arange(N * C * H * W).view(N, C, H, W).permute(0, 2, 3, 1).flatten(0, 2)
    tiling = Tiling(min(H * W, _MOST_ROWS), min(C, _MOST_COLUMNS), "pixel", "channel")
    product = Product(tiling, [Part("", place)])
    if operands:
        product.alternatives = list(_alternatives(WINDOWS[case.window], case.seed, name))
    return product


def unfold_product(case: UnfoldCase, name: str, operands: bool) -> Product:
    """The result of a case as a matrix; its rows are channels and taps for unfold, and lines of the image for fold."""
    expected = case.expected()[name]
    rows, columns = expected.shape[-2:]
    place = torch.arange(expected.numel()).view(-1, columns)
    product = Product(Tiling(min(rows, _MOST_ROWS), min(columns, _MOST_COLUMNS), "line", "position"), [Part("", place)])
    if operands:
        x, columns_of_x = case.exact()
        for (down, right), (kind, words) in _SHIFTS.items():
            if name == "columns":
                shifted = partial(lambda x, *by: F.unfold(_shifted(x, *by), *case.geometry), x, down, right)
            else:
                whole = F.fold(columns_of_x, (11, 13), *case.geometry)
                shifted = partial(_shifted, whole, down, right)
            product.alternatives.append((kind, f"pixels are read {words} of their place", shifted))
    return product


def _shifted(image: Tensor, down: int, right: int) -> Tensor:
    """An image whose pixel (h, w) is the pixel (h + down, w + right) of the original, with zeros from outside."""
    H, W = image.shape[2:]
    return F.pad(image, (1, 1, 1, 1))[:, :, 1 + down : 1 + down + H, 1 + right : 1 + right + W]


def _alternatives(window: Window, seed: int, name: str) -> Iterator[Alternative]:
    x, _, dy, _ = exact_results(window, seed)
    offsets, indices = exact_offsets(window, seed)
    R, S = window.kernel
    if name in ("y", "offsets"):
        for (down, right), (kind, words) in _SHIFTS.items():
            yield kind, f"windows are read {words} of their place", partial(_pooled, window, x, name, (down, right))
        for missing, words in _lines(R, S).items():
            yield "missing products", f"{words} of each window is missing", partial(_pooled, window, x, name, (0, 0), *missing)
        if name == "offsets":
            yield "wrong place", "the last of equal values is taken", partial(_pooled, window, x, name, last=True)
        return
    rows, columns = indices // x.shape[3], indices % x.shape[3]
    for (down, right), (kind, words) in _SHIFTS.items():
        moved = (rows + down, columns + right)
        if name == "indices":
            yield kind, f"the indices are those of pixels {words} of their place", partial(_index, x, *moved)
        elif name == "gathered":
            yield kind, f"the selected pixels are read {words} of their place", partial(_gathered, x, *moved)
        else:
            yield kind, f"gradients are added {words} of their place", partial(_scattered, x, dy, *moved)
    if name == "dx":
        r, s = offsets.long() // S, offsets.long() % S
        for (row, column), words in _lines(R, S).items():
            elsewhere = s != column if row is None else r != row
            kept = partial(_scattered, x, dy * elsewhere, rows, columns)
            yield "missing products", f"gradients of {words} of each window are missing", kept


def _lines(R: int, S: int) -> dict[tuple[int | None, int | None], str]:
    """The outer rows and columns of a window, in words."""
    lines: dict[tuple[int | None, int | None], str] = {}
    if R > 1:
        lines |= {(0, None): "the first row", (R - 1, None): "the last row"}
    if S > 1:
        lines |= {(None, 0): "the first column", (None, S - 1): "the last column"}
    return lines


def _pooled(
    window: Window,
    x: Tensor,
    name: str,
    shift: tuple[int, int] = (0, 0),
    without_row: int | None = None,
    without_column: int | None = None,
    last: bool = False,
) -> Tensor:
    """Computes y or offsets by definition, with windows shifted, a row or column left out, or the last of equal maxima taken."""
    (H, W), (R, S) = x.shape[2:], window.kernel
    P, Q = F.max_pool2d(x, *window[1:]).shape[2:]
    h = torch.arange(P)[:, None] * window.stride[0] - window.padding[0] + torch.arange(R) * window.dilation[0] + shift[0]
    w = torch.arange(Q)[:, None] * window.stride[1] - window.padding[1] + torch.arange(S) * window.dilation[1] + shift[1]
    inside_h, inside_w = (h >= 0) & (h < H), (w >= 0) & (w < W)
    if without_row is not None:
        inside_h[:, without_row] = False
    if without_column is not None:
        inside_w[:, without_column] = False
    cells = x[:, :, h.clamp(0, H - 1)][..., w.clamp(0, W - 1)]  # (N, C, P, R, Q, S)
    cells = cells.where(inside_h[:, :, None, None] & inside_w, -torch.inf).transpose(3, 4).flatten(4)
    if name == "y":
        return cells.amax(4)
    best = cells == cells.amax(4, keepdim=True)
    return R * S - 1 - best.flip(4).int().argmax(4) if last else best.int().argmax(4)


def _inside(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return (rows >= 0) & (rows < x.shape[2]) & (columns >= 0) & (columns < x.shape[3])


def _index(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return rows * x.shape[3] + columns


def _gathered(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    index = _index(x, rows, columns).where(_inside(x, rows, columns), 0)
    return x.flatten(2).gather(2, index.flatten(2)).view_as(index)


def _scattered(x: Tensor, dy: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    inside = _inside(x, rows, columns)
    index = _index(x, rows, columns).where(inside, 0).flatten(2)
    return torch.zeros_like(x).flatten(2).scatter_add(2, index, dy.where(inside, 0).flatten(2)).view_as(x)
