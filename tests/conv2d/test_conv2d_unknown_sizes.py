"""Sizes that depend on data, such as that of a masked batch, compile without a graph break, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch._dynamo
from torch import Tensor

import torch_unroll as tu
from torch_unroll.engines import use_engine
from torch_unroll.testing import Target, targets

TARGETS = targets("conv2d")
Program = Callable[[Tensor, Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def _dynamic_outputs() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        yield
    torch._dynamo.reset()


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _counted(x: Tensor, w: Tensor, mask: Tensor) -> Tensor:
    N = mask.sum().item()
    torch._check(N >= 0)
    torch._check(x.shape[0] >= N)
    return tu.conv2d(x[:N], w, None, 1, 1)


def _autocast(x: Tensor, w: Tensor, mask: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        return tu.conv2d(x[mask], w, None, 1, 1)


#: What depends on data -> a program of x (5, 8, 5, 5), w (8, 8, 3, 3) and a mask of five booleans.
PROGRAMS: dict[str, Program] = {
    "batch": lambda x, w, mask: tu.conv2d(x[mask], w, None, 1, 1),
    "batch, strided": lambda x, w, mask: tu.conv2d(x[mask], w, None, 2, 1),
    "batch, channels_last": lambda x, w, mask: tu.conv2d(channels_last(x)[mask], w, None, 1, 1),
    "batch, made channels_last": lambda x, w, mask: tu.conv2d(channels_last(x[mask]), w, None, 1, 1),
    "batch, channels_last filter": lambda x, w, mask: tu.conv2d(x[mask], channels_last(w), None, 1, 1),
    "batch, groups": lambda x, w, mask: tu.conv2d(x[mask], w[:, :4], None, 1, 1, 1, 2),
    "batch, transposed": lambda x, w, mask: tu.conv_transpose2d(x[mask], w, None, 2, 1),
    "batch, chain": lambda x, w, mask: tu.conv2d(tu.conv2d(x[mask], w, None, 1, 1).relu(), w),
    "batch, pooled": lambda x, w, mask: tu.max_pool2d(tu.conv2d(x[mask], w, None, 1, 1), 2),
    "batch, autocast": _autocast,
    "batch, tf32": lambda x, w, mask: tu.conv2d(x[mask], w, None, 1, 1, precision="tf32"),
    "batch of indices": lambda x, w, mask: tu.conv2d(x[mask.nonzero().squeeze(1)], w, None, 1, 1),
    "batch of a count": _counted,
    "lines": lambda x, w, mask: tu.conv2d(x[:, :, mask], w, None, 1, 1),
    "columns, transposed": lambda x, w, mask: tu.conv_transpose2d(x[:, :, :, mask], w, None, 2, 1),
    "lines, channels_last": lambda x, w, mask: tu.conv2d(channels_last(x)[:, :, mask], w, None, 1, 1),
}


def _check(target: Target, name: str, dtype: torch.dtype, backend: str) -> None:
    drawn = [torch.randint(-1, 2, size).to(dtype) for size in ((5, 8, 5, 5), (8, 8, 3, 3))]
    compiled = torch.compile(PROGRAMS[name], fullgraph=True, backend=backend)
    for mask in ([True, False, True, True, False], [True, True, True, True, True], [True, False, False, False, False]):
        outcomes = []
        for program in (compiled, PROGRAMS[name]):
            x, w = (tensor.clone().requires_grad_() for tensor in drawn)
            with use_engine(target.engine):
                y = program(x, w, torch.tensor(mask))
                outcomes.append([y, *torch.autograd.grad(y.float().square().sum(), (x, w))])
        for ours, expected in zip(*outcomes, strict=True):
            torch.testing.assert_close(ours, expected)
            if sum(mask) > 1:  # an extent of 1 leaves strides ambiguous, and the compiler does not know that it is 1
                assert ours.stride() == expected.stride()


#: The programs that run in the quick suite.
QUICK = ("batch, channels_last", "batch, autocast", "columns, transposed")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PROGRAMS])
def test_programs(name: str) -> None:
    for dtype in (torch.bfloat16,) if name in QUICK else (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        torch._dynamo.reset()
        _check(Target("torch", torch.device("cpu")), name, dtype, "aot_eager")


@pytest.mark.parametrize("target", [target for target in TARGETS if target.engine != "torch"], ids=str)
def test_a_batch_on_every_engine(target: Target) -> None:
    _check(target, "batch", torch.float16, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_by_inductor(target: Target, name: str) -> None:
    _check(target, name, torch.float32, "inductor")
