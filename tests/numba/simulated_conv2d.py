"""Convolution, its transpose, unfold and fold on engine `numba`, in the simulator (run by test_in_simulator.py)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torch_unroll as tu
from torch_unroll.engines import load, use_engine
from torch_unroll.engines.interface import DTYPES, Conv2dGeometry
from torch_unroll.engines.numba import launch
from torch_unroll.testing import assert_as_accurate, assert_exact

#: name -> (ours, torch's, shapes of the inputs). Sizes are uneven and asymmetric, and cover several tiles (2 x 2 in the
#: simulator) in every direction, with remainders.
CALLS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "conv2d": (
        lambda *t: tu.conv2d(*t, (2, 1), (1, 2), (1, 2), 2, engine="numba"),
        lambda *t: F.conv2d(*t, (2, 1), (1, 2), (1, 2), 2),
        [(2, 4, 4, 3), (6, 2, 3, 2), (6,)],
    ),
    "same": (
        lambda *t: tu.conv2d(*t, None, 1, "same", (1, 3), engine="numba"),
        lambda *t: F.conv2d(*t, None, 1, "same", (1, 3)),
        [(1, 1, 3, 4), (3, 1, 3, 2)],
    ),
    "depthwise": (
        lambda *t: tu.conv2d(*t, None, 2, 1, 1, 3, engine="numba"),
        lambda *t: F.conv2d(*t, None, 2, 1, 1, 3),
        [(1, 3, 4, 3), (3, 1, 3, 3)],
    ),
    "transpose": (
        lambda *t: tu.conv_transpose2d(*t, (2, 1), (1, 0), (1, 1), 2, (1, 2), engine="numba"),
        lambda *t: F.conv_transpose2d(*t, (2, 1), (1, 0), (1, 1), 2, (1, 2)),
        [(1, 4, 2, 3), (4, 1, 3, 2), (2,)],
    ),
    "unfold": (
        lambda *t: tu.unfold(*t, (3, 2), (1, 2), (2, 0), (2, 1), engine="numba"),
        lambda x: F.unfold(x, (3, 2), (1, 2), (2, 0), (2, 1)),
        [(2, 3, 5, 4)],
    ),
    "fold": (
        lambda *t: tu.fold(*t, (5, 6), (3, 2), (1, 2), (2, 0), (2, 1), engine="numba"),
        lambda x: F.fold(x, (5, 6), (3, 2), (1, 2), (2, 0), (2, 1)),
        [(2, 18, 16)],
    ),
}


def _results(call: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Returns the output and every gradient."""
    leaves = [tensor.to(dtype).detach().requires_grad_() for tensor in inputs]
    y = call(*leaves)
    weighting = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(inputs[0].dtype).to(dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, weighting)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    ours, torchs, shapes = CALLS[name]
    inputs = [torch.randn(shape).to(dtype) for shape in shapes]
    results = (_results(ours, inputs, dtype), _results(torchs, inputs, dtype), _results(torchs, inputs, torch.float64))
    for mine, its, exact in zip(*results, strict=True):
        assert_as_accurate(mine, its, exact, name)
    assert results[0][0].stride() == results[1][0].stride()


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "expanded", "offset"])
def test_layouts(layout: str) -> None:
    x = torch.randn(2, 3, 4, 3)
    x = {
        "channels_last": lambda: x.contiguous(memory_format=torch.channels_last),
        "transposed": lambda: x.mT.contiguous().mT,
        "expanded": lambda: x[:, :1, :1].expand(2, 3, 4, 3),
        "offset": lambda: torch.randn(3, 4, 6, 7)[1:, 1:, 1:5, 2:5],
    }[layout]()
    w = torch.randn(2, 3, 2, 2)
    y, expected = tu.conv2d(x, w, engine="numba"), F.conv2d(x, w)
    assert_as_accurate(y, expected, F.conv2d(x.double(), w.double()))
    assert y.stride() == expected.stride()
    columns = F.unfold(x.contiguous(), 2)
    assert_exact(tu.unfold(x, 2, engine="numba"), columns)


@pytest.mark.parametrize("name", ["conv2d", "transpose", "unfold", "fold"])
def test_derivatives_of_every_order(name: str) -> None:
    smaller = {"conv2d": [(1, 2, 3, 2), (2, 1, 3, 2), (2,)], "transpose": [(1, 2, 2, 1), (2, 1, 3, 2), (2,)]}
    shapes = smaller.get(name, [(1, 1, 2, 3)] if name == "unfold" else [(1, 6, 16)])
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(CALLS[name][0], inputs, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(CALLS[name][0], inputs, fast_mode=True)


def test_the_sum_of_wgrad_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_unroll.engines.numba import conv2d

    splits: list[int] = []
    launch_tiles = launch.launch_tiles

    def recorded(kernel, count, device, *arguments):
        splits.append(arguments[-1].shape[0])
        launch_tiles(kernel, count, device, *arguments)

    monkeypatch.setattr(conv2d, "launch_tiles", recorded)
    x, dy = torch.randn(3, 1, 5, 7), torch.randn(3, 1, 5, 7)
    dw = conv2d.conv2d_wgrad(dy, x, (1, 1), Conv2dGeometry((1, 1), (0, 0, 0, 0), (1, 1), 1), "ieee")
    assert splits == [7]  # 105 pixels in splits of 16
    torch.testing.assert_close(dw.flatten(), (dy.double() * x.double()).sum().float().reshape(1))


def test_empty_inputs_and_the_same_bits_twice() -> None:
    w = torch.randn(2, 3, 2, 2, requires_grad=True)
    empty = torch.randn(0, 3, 3, 3, requires_grad=True)
    y = tu.conv2d(empty, w, engine="numba")
    dx, dw = torch.autograd.grad(y.sum(), (empty, w))
    assert y.shape == (0, 2, 2, 2)
    assert dx.shape == empty.shape
    assert not dw.any()
    x = torch.randn(1, 3, 3, 3)
    assert_exact(tu.conv2d(x, w, engine="numba"), tu.conv2d(x, w, engine="numba"))


def test_compiles_without_graph_breaks() -> None:
    x, w = torch.randn(1, 2, 3, 3, requires_grad=True), torch.randn(2, 2, 2, 2, requires_grad=True)
    compiled = torch.compile(lambda x, w: tu.conv2d(x, w).relu(), fullgraph=True, backend="aot_eager")
    with use_engine("numba"):
        y = compiled(x, w)
    expected = F.conv2d(x, w).relu()
    torch.testing.assert_close(y, expected)
    for mine, its in zip(torch.autograd.grad(y.sum(), (x, w)), torch.autograd.grad(expected.sum(), (x, w)), strict=True):
        torch.testing.assert_close(mine, its)


def test_autocast_and_operator_checks() -> None:
    x, w = torch.randn(1, 2, 3, 3, requires_grad=True), torch.randn(2, 2, 2, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = tu.conv2d(x, w, engine="numba")
    assert y.dtype == torch.bfloat16
    assert {gradient.dtype for gradient in torch.autograd.grad(y.sum(), (x, w))} == {torch.float32}
    geometry = ([1, 1], [0, 0, 0, 0], [1, 1], 1, "conv", "numba")
    torch.library.opcheck(torch.ops.torch_unroll.conv2d_fprop, (x, w, None, *geometry, False))


def test_not_a_number_and_infinity_travel() -> None:
    x = torch.tensor([[[[1.0, torch.nan, torch.inf, -torch.inf]]]])
    for dtype in DTYPES:
        torch.testing.assert_close(
            tu.conv2d(x.to(dtype), torch.ones(1, 1, 1, 1, dtype=dtype), engine="numba"), x.to(dtype), equal_nan=True
        )


def test_warmup_calls_every_kernel() -> None:
    tu.warmup("conv2d", dtype=torch.bfloat16, device="cpu", engine="numba")


def test_refusals_say_why() -> None:
    ones = torch.ones(1, 1, 2, 2, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"numba: has no kernels for torch\.int32"):
        tu.conv2d(ones, ones, engine="numba")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_biases_and_their_gradient(dtype: torch.dtype) -> None:
    x, w, dy = (torch.randint(-2, 3, size).to(dtype) for size in ((2, 4, 3, 3), (6, 2, 2, 2), (2, 6, 2, 2)))
    bias, bias2 = torch.randint(-2, 3, (2, 6)).to(dtype)
    geometry, numba, reference = Conv2dGeometry((1, 1), (0, 0, 0, 0), (1, 1), 2), load("numba"), load("torch")
    for biases in ((bias, bias2), (None, bias2)):
        y, expected = (engine.conv2d_fprop(x, w, biases[0], geometry, "ieee", bias2=biases[1]) for engine in (numba, reference))
        assert_exact(y, expected)
    results = (engine.conv2d_wgrad_bias(dy, x, (2, 2), geometry, "ieee") for engine in (numba, reference))
    for result, expected in zip(*results, strict=True):
        assert_exact(result, expected)
    assert_exact(numba.conv2d_wgrad_bias(dy, x, (2, 2), geometry, "ieee")[1], dy.sum((0, 2, 3)))
