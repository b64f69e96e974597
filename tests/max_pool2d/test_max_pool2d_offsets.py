"""Gathers by arbitrary offsets: an offset that names no pixel yields a zero, and nothing is read out of bounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_unroll.engines import load
from torch_unroll.engines.interface import DTYPES, Pool2dGeometry
from torch_unroll.kernels.shapes import Pair
from torch_unroll.testing import assert_exact

pytestmark = pytest.mark.usefixtures("device")

ENGINES = ("cuda", "torch")
#: Dtype of the offsets -> a window that needs it.
WINDOWS: dict[torch.dtype, Pair] = {torch.uint8: (3, 3), torch.int16: (16, 17), torch.int32: (182, 182)}
#: stride, padding, dilation, outputs. With the first, windows of 3x3 lie within the plane; with the others, some reach beyond it.
GEOMETRIES: list[tuple[Pair, Pair, Pair, Pair]] = [
    ((1, 1), (0, 0), (1, 1), (4, 5)),
    ((2, 1), (1, 1), (1, 1), (3, 7)),
    ((2, 3), (1, 1), (2, 3), (2, 2)),
    ((4, 4), (1, 0), (1, 2), (3, 3)),
]


def offsets_of(kind: torch.dtype, window: Pair, *size: int) -> Tensor:
    """Returns random offsets: cells of the window, "no cell", and numbers outside the window, up to the dtype's extremes."""
    (R, S), limits = window, torch.iinfo(kind)
    numbers = [0, 1, 2, S, S + 1, 2 * S + 2, R * S - 1, R * S, R * S + 1, limits.max // 2, limits.max, limits.min, -1, -2]
    numbers = [number for number in numbers if limits.min <= number <= limits.max]
    return torch.tensor(numbers)[torch.randint(len(numbers), size)].to(kind)


def chosen(x: Tensor, offsets: Tensor, geometry: tuple[Pair, Pair, Pair, Pair]) -> Tensor:
    """Gathers window by window, by the definition."""
    (R, S), stride, padding, dilation = geometry
    gathered = torch.zeros(offsets.shape, dtype=x.dtype)
    for n, c, p, q in torch.cartesian_prod(*map(torch.arange, offsets.shape)).tolist():
        cell = int(offsets[n, c, p, q])
        h = p * stride[0] - padding[0] + cell // S * dilation[0]
        w = q * stride[1] - padding[1] + cell % S * dilation[1]
        if 0 <= cell < R * S and 0 <= h < x.shape[2] and 0 <= w < x.shape[3]:
            gathered[n, c, p, q] = x[n, c, h, w]
    return gathered


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(
    ("kind", "engine"),
    # Engine `torch` is left out where it would visit all 33,124 cells of the largest window one by one.
    [(kind, engine) for kind in WINDOWS for engine in ENGINES if (kind, engine) != (torch.int32, "torch")],
    ids=str,
)
def test_gather(
    kind: torch.dtype, engine: str, geometry: tuple[Pair, Pair, Pair, Pair], memory_format: torch.memory_format
) -> None:
    window, (*numbers, outputs) = WINDOWS[kind], geometry
    offsets = offsets_of(kind, window, 2, 3, *outputs).contiguous(memory_format=memory_format)
    for dtype in DTYPES:
        x = torch.randn(2, 3, 6, 7).to(dtype).contiguous(memory_format=memory_format)
        expected = chosen(x, offsets, (window, *numbers))
        assert expected.any()
        assert_exact(load(engine).max_pool2d_gather(x, offsets, Pool2dGeometry(window, *numbers)), expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("kind", "T"), [(torch.uint8, 9), (torch.int16, 300), (torch.int32, 33000)], ids=str)
def test_gather_over_time(kind: torch.dtype, T: int, engine: str) -> None:
    offsets = offsets_of(kind, (T, 1), 4, 6)
    for dtype in DTYPES:
        x = torch.randn(T, 4, 6).to(dtype)
        expected = chosen(x.permute(1, 2, 0)[..., None], offsets[..., None, None], ((T, 1), (1, 1), (0, 0), (1, 1)))
        assert_exact(load(engine).max_over_time_gather(x, offsets), expected.view(4, 6))
