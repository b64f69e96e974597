"""Dtypes without kernels: a named engine refuses the call; by default, torch's own operator gets the call if there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_unroll as tu
from torch_unroll.engines import NAMES, refusal
from torch_unroll.testing import Target, targets

TARGETS = targets("conv2d")
OTHERS = [
    *(torch.complex64, torch.complex128, torch.complex32),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
]

CALLS: dict[str, Callable[..., Any]] = {
    "conv2d": lambda x, **engine: tu.conv2d(x, x, **engine),
    "conv_transpose2d": lambda x, **engine: tu.conv_transpose2d(x, x, **engine),
    "max_pool2d": lambda x, **engine: tu.max_pool2d(x, 2, **engine),
    "unfold": lambda x, **engine: tu.unfold(x, 2, **engine),
    "fold": lambda x, **engine: tu.fold(x.flatten(1).unsqueeze(2)[:, :4], (2, 2), 2, **engine),
    "max_over_time": lambda x, **engine: tu.max_over_time(x[0], **engine),
    "rnn": lambda x, **engine: tu.rnn(x[0], x[0, :1], [x[0, 0]] * 2, **engine),
    "rnn, lengths": lambda x, **engine: tu.rnn(x[0], x[0, :1], [x[0, 0]] * 2, lengths=torch.ones(2).long(), **engine),
    "rnn_cell": lambda x, **engine: tu.rnn_cell(x[0, 0], x[0, 0], x[0, 0], x[0, 0], **engine),
}


@pytest.mark.parametrize("dtype", OTHERS, ids=str)
@pytest.mark.parametrize("engine", NAMES)
def test_every_engine_says_so(engine: str, dtype: torch.dtype) -> None:
    reason = refusal(engine, "conv2d", torch.device("cpu"), dtype)
    assert reason
    if engine == "torch":
        assert str(dtype) in reason


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_named_engine_refuses(target: Target, name: str) -> None:
    for dtype in OTHERS:
        x = torch.empty(2, 2, 2, 2, dtype=dtype)
        with pytest.raises(RuntimeError, match=r"expected a floating-point dtype|no engine takes"):
            CALLS[name](x, engine=target.engine)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "unfold", "fold"])
def test_complex_gradients_by_default(name: str) -> None:
    shape, rest = {
        "conv2d": ((1, 2, 4, 4), [torch.randn(2, 2, 2, 2, dtype=torch.complex128)]),
        "conv_transpose2d": ((1, 2, 3, 3), [torch.randn(2, 2, 2, 2, dtype=torch.complex128)]),
        "unfold": ((1, 2, 3, 3), [2]),
        "fold": ((1, 4, 4), [(3, 3), 2]),
    }[name]
    x = torch.randn(shape, dtype=torch.complex128, requires_grad=True)
    tensors = [value.requires_grad_() for value in rest if isinstance(value, Tensor)]
    numbers = [value for value in rest if not isinstance(value, Tensor)]
    assert torch.autograd.gradcheck(lambda *t: getattr(tu, name)(*t, *numbers), (x, *tensors))


def test_ops_that_torch_lacks_have_no_such_default() -> None:
    """torch has no operator that corresponds to max_over_time."""
    for dtype in OTHERS:
        with pytest.raises(RuntimeError, match=r"x: expected a floating-point dtype|no engine takes"):
            tu.max_over_time(torch.empty(2, 2, 2, dtype=dtype))
