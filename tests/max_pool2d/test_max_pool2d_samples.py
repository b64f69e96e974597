"""torch's own samples of max_pool2d (op_db), and bad calls: values, gradients and exception types."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.programs.torch_databases import op_infos
from torch_unroll.max_pool2d import max_pool2d
from torch_unroll.testing import Target, assert_exact, raised, targets

TARGETS = targets("max_pool2d")


def _info() -> Any:
    return op_infos()["nn.functional.max_pool2d"]


_16_BIT = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float16, torch.bfloat16)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *_16_BIT], ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_samples(target: Target, dtype: torch.dtype) -> None:
    samples = list(_info().sample_inputs(target.device, dtype, requires_grad=True))
    assert samples
    for sample in samples:
        results = []
        for function, extra in ((max_pool2d, {"engine": target.engine}), (F.max_pool2d, {})):
            output = function(sample.input, *sample.args, **sample.kwargs, **extra)
            y, indices = output if isinstance(output, tuple) else (output, None)
            weighting = torch.arange(y.numel(), dtype=dtype, device=y.device).view(y.shape) % 7 - 3
            results.append((y.detach(), indices, torch.autograd.grad(y, sample.input, weighting)[0]))
        for ours, theirs in zip(*results, strict=True):
            if theirs is None:
                assert ours is None
                continue
            assert_exact(ours, theirs, f"{tuple(sample.input.shape)} {sample.args} {sample.kwargs}")
            assert ours.stride() == theirs.stride(), f"{tuple(sample.input.shape)} {sample.args} {sample.kwargs}"


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_error_inputs(target: Target) -> None:
    errors = list(_info().error_inputs(target.device))
    assert errors
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type, match="expected"):
            max_pool2d(sample.input, *sample.args, **sample.kwargs, engine=target.engine)


def _t(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


BAD_CALLS: dict[str, Callable[[Any], Any]] = {
    "input of rank 1": lambda f: f(_t(6), 2),
    "input of rank 2": lambda f: f(_t(6, 5), 2),
    "input of rank 5": lambda f: f(_t(1, 2, 3, 6, 5), 2),
    "input not a tensor": lambda f: f([[1.0]], 2),
    "no channels": lambda f: f(_t(2, 0, 6, 5), 2),
    "no rows": lambda f: f(_t(2, 3, 0, 5), 2),
    "no columns": lambda f: f(_t(2, 3, 6, 0), 2),
    "no channels, unbatched": lambda f: f(_t(0, 6, 5), 2),
    "kernel_size 0": lambda f: f(_t(2, 3, 6, 5), 0),
    "kernel_size negative": lambda f: f(_t(2, 3, 6, 5), (2, -1)),
    "kernel_size of three": lambda f: f(_t(2, 3, 6, 5), (2, 2, 2)),
    "kernel_size of none": lambda f: f(_t(2, 3, 6, 5), ()),
    "kernel_size a float": lambda f: f(_t(2, 3, 6, 5), 2.5),
    "kernel_size a string": lambda f: f(_t(2, 3, 6, 5), "2"),
    "kernel_size None": lambda f: f(_t(2, 3, 6, 5), None),
    "kernel_size beyond 32 bits": lambda f: f(_t(2, 3, 6, 5), 2**31),
    "window larger than the input": lambda f: f(_t(2, 3, 6, 5), 6),
    "dilated window larger than the input": lambda f: f(_t(2, 3, 6, 5), 2, dilation=5),
    "padding too small for the window": lambda f: f(_t(2, 3, 1, 1), 4, padding=1),
    "stride 0": lambda f: f(_t(2, 3, 6, 5), 2, stride=0),
    "stride negative": lambda f: f(_t(2, 3, 6, 5), 2, stride=(1, -1)),
    "stride of three": lambda f: f(_t(2, 3, 6, 5), 2, stride=(1, 1, 1)),
    "stride a float": lambda f: f(_t(2, 3, 6, 5), 2, stride=1.5),
    "stride beyond 32 bits": lambda f: f(_t(2, 3, 6, 5), 2, stride=2**31),
    "padding negative": lambda f: f(_t(2, 3, 6, 5), 2, padding=-1),
    "padding more than half the window": lambda f: f(_t(2, 3, 6, 5), 3, padding=2),
    "padding more than half the window, dilated": lambda f: f(_t(2, 3, 9, 9), 3, padding=2, dilation=3),
    "padding of three": lambda f: f(_t(2, 3, 6, 5), 2, padding=(0, 0, 0)),
    "padding a string": lambda f: f(_t(2, 3, 6, 5), 2, padding="same"),
    "dilation 0": lambda f: f(_t(2, 3, 6, 5), 2, dilation=0),
    "dilation negative": lambda f: f(_t(2, 3, 6, 5), 2, dilation=-2),
    "dilation beyond 32 bits": lambda f: f(_t(2, 3, 6, 5), 1, dilation=2**31),
}


@pytest.mark.parametrize("what", BAD_CALLS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_same_exception_as_torch(target: Target, what: str) -> None:
    expected = raised(lambda: BAD_CALLS[what](F.max_pool2d))
    result = raised(lambda: BAD_CALLS[what](partial(max_pool2d, engine=target.engine)))
    assert expected is not None, "torch accepts this call, so that it is no bad one"
    assert type(result) is type(expected), f"torch: {type(expected).__name__}: {expected}\nours: {result!r}"
    assert "expected" in str(result)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_windows_of_too_many_cells_are_refused(target: Target) -> None:
    with pytest.raises(RuntimeError, match="kernel_size: expected a window of at most"):
        max_pool2d(_t(1, 1, 4, 4), 65536, 2**31 - 1, ceil_mode=True, engine=target.engine)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8], ids=str)
def test_dtypes_that_no_engine_takes_are_left_to_torch(dtype: torch.dtype) -> None:
    info = _info()
    for sample in list(info.sample_inputs("cpu", dtype))[::40] if info.supports_dtype(dtype, "cpu") else []:
        ours = max_pool2d(sample.input, *sample.args, **sample.kwargs)
        assert_exact(ours, F.max_pool2d(sample.input, *sample.args, **sample.kwargs))
    x = torch.arange(16, dtype=dtype).view(1, 1, 4, 4)
    y, indices = max_pool2d(x, 2, return_indices=True)
    assert y.flatten().tolist() == indices.flatten().tolist() == [5, 7, 13, 15]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_named_engine_refuses_other_dtypes(target: Target) -> None:
    with pytest.raises(RuntimeError, match="no engine takes"):
        max_pool2d(torch.arange(16, device=target.device).view(1, 1, 4, 4), 2, engine=target.engine)
