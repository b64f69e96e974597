"""Offsets that no forward pass returns, on engine `numba` in the simulator (run by test_in_simulator.py)."""

from __future__ import annotations

import pytest
import torch

from torch_unroll.engines import load
from torch_unroll.engines.interface import Pool2dGeometry
from torch_unroll.testing import assert_exact


@pytest.mark.parametrize(
    ("kind", "strange"),
    [
        (torch.uint8, [9, 100, 128, 254, 255, 6, 0, 8]),
        (torch.int16, [9, 300, 32767, -2, -1, 6, 0, 8]),
        (torch.int32, [9, 2**31 - 1, -(2**31), -2, -1, 6, 0, 8]),
    ],
    ids=str,
)
def test_a_gather_ignores_offsets_that_name_no_pixel(kind: torch.dtype, strange: list[int]) -> None:
    x, offsets = torch.randn(1, 1, 5, 7), torch.tensor(strange, dtype=torch.int64).to(kind).view(1, 1, 2, 4)
    geometry = Pool2dGeometry((3, 3), (3, 2), (1, 1), (2, 1))
    expected = load("torch").max_pool2d_gather(x, offsets, geometry)
    assert expected.count_nonzero() == 1
    assert_exact(load("numba").max_pool2d_gather(x, offsets, geometry), expected)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_a_gather_over_time_ignores_offsets_beyond_the_steps(kind: torch.dtype) -> None:
    x, offsets = torch.randn(5, 2, 3), torch.tensor([[0, 4, 5], [6, 100, 127]], dtype=kind)
    expected = torch.zeros(2, 3)
    expected[0, 0], expected[0, 1] = x[0, 0, 0], x[4, 0, 1]
    assert_exact(load("numba").max_over_time_gather(x, offsets), expected)
