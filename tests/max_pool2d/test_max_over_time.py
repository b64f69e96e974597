"""The maximum over the steps of a sequence on every engine, compared with torch's own operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torch_unroll.engines.interface import DTYPES
from torch_unroll.explain import explain
from torch_unroll.max_pool2d import max_over_time
from torch_unroll.testing import Target, assert_exact, targets

TARGETS = targets("max_pool2d")


def _expected(x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the maximum, and a mask of its step: the first of equal values or the last NaN; no step if the length is zero."""
    steps = torch.arange(x.shape[0], device=x.device).view(-1, 1, 1)
    counts = torch.full_like(steps[0, 0], x.shape[0]) if lengths is None else lengths.clamp(0, x.shape[0])
    inside = steps < counts.view(1, -1, 1)
    y = torch.where(inside, x, -torch.inf).amax(0)
    last_nan = torch.where(inside & x.isnan(), steps, -1).amax(0)
    first = torch.where(inside & (x == y), steps, x.shape[0]).amin(0)
    return y, steps == torch.where(last_nan >= 0, last_nan, first)


def _data(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    x = torch.randint(-3, 4, shape, device=device).to(dtype)
    x[torch.rand(shape, device=device) < 0.05] = torch.nan
    x[: shape[0] // 2, : shape[1] // 2] = -torch.inf
    return x


INPUTS: dict[str, Callable[[torch.dtype, torch.device], Tensor]] = {
    "pieces of channels": lambda dtype, device: _data((7, 3, 16), dtype, device),
    "ten classes": lambda dtype, device: _data((9, 5, 10), dtype, device),
    "one step": lambda dtype, device: _data((1, 4, 8), dtype, device),
    "batch first": lambda dtype, device: _data((5, 6, 8), dtype, device).transpose(0, 1),
    "expanded": lambda dtype, device: _data((6, 1, 8), dtype, device).expand(6, 4, 8),
    "every other channel": lambda dtype, device: _data((6, 4, 17), dtype, device)[..., 1::2],
    "one sequence": lambda dtype, device: _data((7, 1, 16), dtype, device),
    "one short sequence": lambda dtype, device: _data((5, 1, 3), dtype, device),
    "one channel": lambda dtype, device: _data((6, 1, 1), dtype, device),
    "two-byte steps": lambda dtype, device: _data((300, 2, 8), dtype, device),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_like_torch(target: Target, name: str, dtype: torch.dtype, masked: bool) -> None:
    x = INPUTS[name](dtype, target.device)
    T, N, _ = x.shape
    lengths = torch.tensor([T // 2, T + 3, 0, -2, 1, T][:N], device=target.device) if masked else None
    leaf = x.detach().requires_grad_()
    y = max_over_time(leaf, lengths, engine=target.engine)
    expected, chosen = _expected(x, lengths)
    assert_exact(y.detach(), expected)
    assert y.stride() == (x.shape[2], 1)
    with torch.no_grad():
        assert_exact(max_over_time(leaf, lengths, engine=target.engine), expected)
    dy = torch.randint(1, 5, y.shape, device=target.device).to(dtype).requires_grad_()
    (dx,) = torch.autograd.grad(y, leaf, dy, create_graph=True)
    assert_exact(dx.detach(), torch.where(chosen, dy.detach(), 0))
    ddx = torch.randint(1, 5, dx.shape, device=target.device).to(dtype)
    assert_exact(torch.autograd.grad(dx, dy, ddx)[0], torch.where(chosen, ddx, 0).sum(0))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64], ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_lengths_are_clamped(target: Target, dtype: torch.dtype) -> None:
    x = torch.randn(4, 3, 8, device=target.device)
    largest = torch.iinfo(dtype).max
    lengths = torch.tensor([0, 2, largest], dtype=dtype, device=target.device)
    y = max_over_time(x, lengths, engine=target.engine)
    assert_exact(y, torch.stack([torch.full_like(x[0, 0], -torch.inf), x[:2, 1].amax(0), x[:, 2].amax(0)]))


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_empty_batch(target: Target) -> None:
    for shape in ((4, 0, 3), (4, 3, 0)):
        x = torch.empty(shape, device=target.device, requires_grad=True)
        y = max_over_time(x, torch.zeros(shape[1], dtype=torch.int64, device=target.device), engine=target.engine)
        assert y.shape == shape[1:]
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == shape


@pytest.mark.parametrize("target", [target for target in TARGETS if target.engine == "cuda"], ids=str)
def test_pooling_kernels_serve_it(target: Target) -> None:
    x = torch.randn(6, 4, 16, dtype=torch.bfloat16, device=target.device, requires_grad=True)
    lengths = torch.full((4,), 3, device=target.device)
    launches = explain("max_over_time", x, lengths, engine=target.engine).launches
    assert [(plan.kernel.name, plan.variant) for plan in launches] == [
        ("max_pool2d_forward_channels_kernel", "channels"),
        ("max_pool2d_backward_channels_kernel", "channels"),
    ]


@pytest.mark.parametrize(
    ("x", "lengths"),
    [
        (torch.zeros(3, 4), None),
        (torch.zeros(0, 3, 4), None),
        (torch.zeros(2, 3, 4, dtype=torch.int64), None),
        (torch.zeros(2, 3, 4), torch.zeros(4, dtype=torch.int64)),
        (torch.zeros(2, 3, 4), torch.zeros(3)),
        (torch.zeros(2, 3, 4), torch.zeros(3, 1, dtype=torch.int64)),
        (torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.bool)),
        (torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.int64, device="meta")),
    ],
)
def test_bad_calls(x: Tensor, lengths: Tensor | None) -> None:
    with pytest.raises(RuntimeError, match="expected"):
        max_over_time(x, lengths)


def test_without_an_engine_on_the_cpu() -> None:
    x = torch.randn(5, 3, 4)
    assert_exact(max_over_time(x), x.amax(0))
