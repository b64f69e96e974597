"""Max pooling and max over time on engine `numba`, in the simulator (run by test_in_simulator.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torch_unroll as tu
from torch_unroll.engines import load
from torch_unroll.engines.interface import DTYPES
from torch_unroll.testing import assert_as_accurate, assert_exact

#: kernel_size, stride, padding, dilation, ceil_mode
WINDOWS: dict[str, tuple[Any, ...]] = {
    "2x2": (2, 2, 0, 1, False),
    "overlapping": (3, 2, 1, 1, False),
    "asymmetric": ((3, 2), (1, 3), (1, 0), (2, 1), False),
    "ceil": (3, 2, 1, 1, True),
    "global": ((7, 6), 1, 0, 1, False),
}


def _nans_and_ties(dtype: torch.dtype) -> Tensor:
    x = torch.randint(-2, 2, (2, 3, 7, 6)).to(dtype)
    x[0, 0, 2, 3] = x[1, 1, 0, 0] = x[1, 1, 0, 1] = torch.nan
    x[0, 1, 4, 4], x[0, 2] = torch.inf, -torch.inf
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_values_indices_and_gradients(memory_format: torch.memory_format, window: str, dtype: torch.dtype) -> None:
    x = _nans_and_ties(dtype).contiguous(memory_format=memory_format).requires_grad_()
    kernel_size, stride, padding, dilation, ceil_mode = WINDOWS[window]
    y, indices = tu.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode, True, engine="numba")
    expected, its = F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode, True)
    assert_exact(y, expected)
    assert_exact(indices, its)
    assert y.stride() == expected.stride()
    dy = torch.randn(y.shape).to(dtype)
    exact = x.detach().double().requires_grad_()
    reference = F.max_pool2d(exact, kernel_size, stride, padding, dilation, ceil_mode)
    gradients = [torch.autograd.grad(out, leaf, dy.to(out.dtype))[0] for out, leaf in ((y, x), (expected, x), (reference, exact))]
    assert_as_accurate(*gradients)


def test_windows_whose_cells_a_byte_cannot_number() -> None:
    x = torch.randn(1, 2, 17, 19, dtype=torch.float64, requires_grad=True)
    y, indices = tu.max_pool2d(x, (16, 17), 1, (8, 0), return_indices=True, engine="numba")
    expected, its = F.max_pool2d(x, (16, 17), 1, (8, 0), return_indices=True)
    assert_exact(y, expected)
    assert_exact(indices, its)
    dy = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, x, dy)[0], torch.autograd.grad(expected, x, dy)[0])


def test_a_window_without_a_cell() -> None:
    x = torch.randn(1, 1, 2, 2)
    y, indices = tu.max_pool2d(x, 2, 1, 1, 3, return_indices=True, engine="numba")
    expected, its = tu.max_pool2d(x, 2, 1, 1, 3, return_indices=True, engine="torch")
    assert_exact(y, expected)
    assert_exact(indices, its)


def test_derivatives_of_every_order() -> None:
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor) -> Tensor:
        return tu.max_pool2d(x, 3, 2, 1, engine="numba")

    assert torch.autograd.gradcheck(call, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("T", [5, 300])
def test_max_over_time(T: int, dtype: torch.dtype) -> None:
    x = torch.randn(T, 3, 2).to(dtype)
    for lengths in (None, torch.tensor([T, 0, T - 2])):
        mine, its = load("numba"), load("torch")
        y, offsets = mine.max_over_time_forward(x, lengths, True)
        expected, chosen = its.max_over_time_forward(x, lengths, True)
        assert_exact(y, expected)
        assert_exact(offsets, chosen)
        assert mine.max_over_time_forward(x, lengths, False)[1].numel() == 0
        assert_exact(mine.max_over_time_gather(x, offsets), its.max_over_time_gather(x, offsets))
        dy = torch.randn(3, 2).to(dtype)
        assert_exact(mine.max_over_time_backward(dy, offsets, T), its.max_over_time_backward(dy, offsets, T))


def test_compiles_without_graph_breaks_and_empty_batches() -> None:
    compiled = torch.compile(lambda x: tu.max_pool2d(x, 2, engine="numba"), fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    y = compiled(x)
    assert_exact(y, F.max_pool2d(x, 2))
    assert_exact(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(F.max_pool2d(x, 2).sum(), x)[0])
    assert tu.max_pool2d(torch.randn(0, 2, 4, 4), 2, engine="numba").shape == (0, 2, 2, 2)
    expanded = torch.randn(1, 1, 4, 1).expand(2, 3, 4, 5)
    assert_exact(tu.max_pool2d(expanded, 2, engine="numba"), F.max_pool2d(expanded, 2))


def test_warmup_calls_every_kernel() -> None:
    tu.warmup("max_pool2d", dtype=torch.float16, device="cpu", engine="numba")
